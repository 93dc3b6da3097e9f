//! Selftests of damaged copies: each kind of damage is found where it is, as what it is, with the files that it hits.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::Rng;
use super::lab::{Copy, Files, Source, lab};
use super::questions::{Ask, Reader, Truth};
use crate::arc::{FrameInfo, frame};
use crate::backup::Options as BackupOptions;
use crate::backupdir::BackupDir;
use crate::backupdir::arcs::{ArcSource, COMMIT_NUMBER};
use crate::catalog::{ArcEntry, ArcRole};
use crate::error::Exit;
use crate::ids::{ArcName, ArcSerial, BlockId, FrameNo, FramePlace, Logid, Version};
use crate::index::CatalogSource;
use crate::monitor::{Event, Monitor, Progress, Silent};
use crate::selftest::{self, Cause, Finding, Fix, Level, Options, Part, Report, Scope};
use crate::tree::Found;

const LEVELS: [Level; 6] =
    [Level::Opens, Level::Pages, Level::Structure, Level::LocalBlocks, Level::AllCopies, Level::Files];

fn options(level: Level) -> Options {
    Options { level, scope: Scope::Everything, rev: None, sample: None, inc: None, fix: Fix::Report }
}

fn test(copy: &Copy, level: Level) -> Report {
    selftest::run(&copy.open(), &options(level), &Silent).unwrap()
}

fn entries(dir: &BackupDir) -> Vec<ArcEntry> {
    dir.open_index().unwrap().arcs().unwrap().into_iter().map(|row| row.entry).collect()
}

/// Offset, length and table entry of each frame.
fn frames(dir: &BackupDir, entry: &ArcEntry) -> Vec<(u64, FrameInfo)> {
    let table = ArcSource::new(dir.arcs(), dir.keys()).frame_table(entry).unwrap();
    let mut at = crate::arc::ARC_HEADER_LEN as u64;
    let placed = table.into_iter().map(|info| {
        at += info.frame_len();
        (at - info.frame_len(), info)
    });
    placed.collect()
}

fn changed(files: &Files, name: ArcName, change: impl FnOnce(&mut Vec<u8>)) -> Copy {
    let mut files = files.clone();
    let bytes = files.get_mut(&name.to_string()).unwrap();
    let before = bytes.clone();
    change(bytes);
    assert!(*bytes != before, "the fault did not fire");
    Copy::of(&files)
}

fn range_of(truth: &Truth, n: usize) -> (Logid, u64, u64) {
    let Ask::Bytes(logid, at, len, _) = truth.questions[n].0 else { unreachable!() };
    (logid, at, at + len)
}

/// Who uses frames of an arc, by the answers of the undamaged backup dir; touching ranges of a file are one.
fn users(truth: &Truth, serial: ArcSerial, frames: std::ops::Range<u32>) -> BTreeSet<(Logid, u64, u64)> {
    let mut ranges = BTreeSet::new();
    for no in frames {
        for n in truth.readers_of(FramePlace::new(serial, FrameNo(no))) {
            ranges.insert(range_of(truth, n));
        }
    }
    joined(ranges)
}

fn joined(ranges: BTreeSet<(Logid, u64, u64)>) -> BTreeSet<(Logid, u64, u64)> {
    let mut joined: Vec<(Logid, u64, u64)> = Vec::new();
    for (logid, start, end) in ranges {
        match joined.last_mut() {
            Some(last) if last.0 == logid && last.2 == start => last.2 = end,
            _ => joined.push((logid, start, end)),
        }
    }
    joined.into_iter().collect()
}

/// Proves that the hits of a finding are exactly the users of these frames, under names that show them.
fn assert_hits(reader: &Reader, truth: &Truth, f: &Finding, serial: ArcSerial, frames: std::ops::Range<u32>) {
    let named: BTreeSet<_> = f.hits.iter().map(|hit| (hit.logid, hit.bytes.start, hit.bytes.end)).collect();
    assert_eq!(named, users(truth, serial, frames), "{f:?}");
    assert_eq!(f.hits.len() as u64, f.hits_total);
    for hit in &f.hits {
        for version in [hit.versions.0, hit.versions.1] {
            let found = reader.tree.find(version, &hit.path).unwrap();
            assert!(matches!(found, Found::Node(logid, _) if logid == hit.logid), "{hit:?} in {version}");
        }
    }
}

/// The one finding of a run that reads blocks.
fn only(report: &Report, what: &dyn Fn() -> String) -> Finding {
    let [finding] = &report.findings[..] else { panic!("{}: {:#?}", what(), report.findings) };
    assert_eq!(finding.exit(), Exit::Damage, "{}", what());
    finding.clone()
}

#[test]
fn clean_backup_dirs_have_no_findings_at_any_level() {
    let lab = lab();
    let copy = Copy::of(&lab.files);
    let files = || {
        // SQLite makes and removes an empty log as it likes.
        let kept = |(name, bytes): &(String, Vec<u8>)| name != "index.db-wal" || !bytes.is_empty();
        copy.files().into_iter().filter(kept).collect::<Files>()
    };
    let before = files();
    let arcs = entries(&copy.open());
    for level in LEVELS {
        let report = test(&copy, level);
        assert!(report.findings.is_empty() && report.found() == 0, "{level:?}: {:#?}", report.findings);
        if matches!(level, Level::LocalBlocks | Level::AllCopies) {
            // Of a commit arc two copies of the record.
            let tables = arcs.iter().flat_map(|arc| frames(&copy.open(), arc));
            let blocks = tables.map(|(_, info)| info.blocks.len() as u64).sum::<u64>() + 2 * 4;
            assert_eq!((report.arcs, report.blocks), (arcs.len() as u64 + 4, blocks));
            assert!(report.bytes >= arcs.iter().map(|arc| arc.plain_bytes).sum());
        }
        assert_eq!(report.notes.len(), usize::from(level == Level::AllCopies), "{:?}", report.notes);
    }
    let after = files();
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
    assert!(after == before, "a selftest changed the backup dir");
    let empty = Copy::init();
    for level in LEVELS {
        assert!(test(&empty, level).findings.is_empty(), "{level:?}");
    }
    let recovered = Copy::without_index(&lab.files);
    recovered.recover();
    assert!(test(&recovered, Level::LocalBlocks).findings.is_empty());
}

#[test]
fn a_changed_byte_of_any_arc_is_one_finding_in_its_place() {
    let (lab, mut rng) = (lab(), Rng::from_env());
    let whole = Copy::of(&lab.files);
    let (dir, reader) = (whole.open(), whole.reader());
    let mut seen = BTreeSet::new();
    for entry in entries(&dir) {
        let frames = frames(&dir, &entry);
        let mut at = rng.below(13);
        while at < entry.arc_bytes as usize {
            let mask = rng.mask();
            let copy = changed(&lab.files, entry.name, |bytes| bytes[at] ^= mask);
            let report = test(&copy, Level::LocalBlocks);
            let what = || format!("seed {}: byte {at} of {} ^ {mask:#x}", rng.seed, entry.name);
            let hit = frames.iter().position(|(start, info)| (*start..start + info.frame_len()).contains(&(at as u64)));
            let (code, part) = match hit {
                _ if at < crate::arc::ARC_HEADER_LEN => ("ARC_HEADER_BAD", "header"),
                _ if at as u64 >= entry.footer_offset + u64::from(entry.footer_len) => ("ARC_TRAILER_BAD", "trailer"),
                None if (at as u64) < entry.footer_offset + 32 => ("", "footer"),
                None => ("ARC_TAG_MISMATCH", "footer"),
                Some(n) if (at as u64) < frames[n].0 + 32 => ("ARC_FRAME_WRONG", "frame"),
                Some(_) => ("ARC_TAG_MISMATCH", "frame"),
            };
            seen.insert(part);
            if entry.role == ArcRole::Data {
                let f = only(&report, &what);
                assert!(code.is_empty() || f.error.code() == code, "{}: {f:?}", what());
                assert_eq!(f.cause, Cause::Medium, "{}", what());
                let place = f.place.clone().unwrap();
                assert_eq!((place.arc, place.frame.map(|no| no.0 as usize)), (entry.name, hit), "{}", what());
                match hit {
                    None => assert!(f.hits.is_empty()),
                    Some(n) => {
                        let first = FrameNo(n as u32);
                        assert_eq!(f.spot.unwrap().part, Part::Frames { first, count: 1 });
                        assert_hits(&reader, &lab.truth, &f, entry.serial, first.0..first.0 + 1);
                    }
                }
            } else {
                let here = |f: &&Finding| f.place.as_ref().is_some_and(|place| place.arc == entry.name);
                assert!(report.findings.iter().any(|f| here(&f)), "{}: {:#?}", what(), report.findings);
            }
            at += 1 + rng.below(250);
        }
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn a_changed_byte_of_a_commit_arc_is_found() {
    let (lab, mut rng) = (lab(), Rng::from_env());
    for name in Copy::of(&lab.files).arc_names().into_iter().filter(|name| name.number == COMMIT_NUMBER) {
        let len = lab.files[&name.to_string()].len();
        for _ in 0..12 {
            let (at, mask) = (rng.below(len), rng.mask());
            let copy = changed(&lab.files, name, |bytes| bytes[at] ^= mask);
            let report = test(&copy, Level::LocalBlocks);
            let what = || format!("seed {}: byte {at} of {name} ^ {mask:#x}", rng.seed);
            assert!(!report.findings.is_empty(), "{}", what());
            for f in &report.findings {
                assert_eq!(f.place.as_ref().map(|place| place.arc), Some(name), "{}: {f:?}", what());
            }
        }
    }
}

#[test]
fn missing_and_cut_arcs_are_one_finding_each_with_all_their_files() {
    let lab = lab();
    let whole = Copy::of(&lab.files);
    let (dir, reader) = (whole.open(), whole.reader());
    let here = |report: &Report, name: ArcName| -> Vec<Finding> {
        let here = |f: &&Finding| f.place.as_ref().is_some_and(|place| place.arc == name);
        assert!(report.findings.iter().all(|f| here(&f)), "{:#?}", report.findings);
        report.findings.clone()
    };
    for entry in entries(&dir).into_iter().filter(|entry| entry.role == ArcRole::Data) {
        let copy = Copy::of(&lab.files);
        fs::remove_file(copy.path(&entry.name.to_string())).unwrap();
        let report = test(&copy, Level::LocalBlocks);
        let [f] = &here(&report, entry.name)[..] else { panic!("{:#?}", report.findings) };
        assert_eq!((f.error.code(), f.cause), ("ARC_MISSING", Cause::Missing));
        let wanted = users(&lab.truth, entry.serial, 0..entry.frames);
        assert_eq!(f.hits_total as usize, wanted.len().max(f.hits.len()), "{}", entry.name);
        assert!(!f.hits.is_empty() || wanted.is_empty());

        let frames = frames(&dir, &entry);
        let mut cuts: Vec<u64> = frames.iter().step_by(7).map(|(start, _)| start + 20).collect();
        cuts.extend([0, 50, entry.footer_offset + 5, entry.arc_bytes - 1]);
        for cut in cuts {
            let copy = changed(&lab.files, entry.name, |bytes| bytes.truncate(cut as usize));
            let report = test(&copy, Level::LocalBlocks);
            let cut_off = |f: &&Finding| f.level == Level::LocalBlocks;
            let found: Vec<Finding> = here(&report, entry.name).into_iter().filter(|f| cut_off(&f)).collect();
            let first = frames.partition_point(|(start, info)| start + info.frame_len() <= cut) as u32;
            let [f] = &found[..] else { panic!("{} cut at {cut}: {:#?}", entry.name, report.findings) };
            assert_eq!((f.error.code(), f.cause), ("ARC_FRAME_TRUNCATED", Cause::Missing));
            if first < entry.frames {
                let count = entry.frames - first;
                assert_eq!(f.spot.unwrap().part, Part::Frames { first: FrameNo(first), count });
                if f.hits_total as usize == f.hits.len() {
                    assert_hits(&reader, &lab.truth, f, entry.serial, first..entry.frames);
                }
            }
        }
    }
    let commit = ArcName { version: Version(1), number: COMMIT_NUMBER };
    let copy = Copy::of(&lab.files);
    fs::remove_file(copy.path(&commit.to_string())).unwrap();
    let report = test(&copy, Level::LocalBlocks);
    // Once, however many levels meet it.
    let [f] = &report.findings[..] else { panic!("{:#?}", report.findings) };
    assert_eq!((f.error.code(), f.error.to_string().contains("r1")), ("COMMIT_DAMAGED", true));
}

#[test]
fn an_arc_under_anothers_name_and_one_of_a_stranger_are_told_apart() {
    let lab = lab();
    let whole = Copy::of(&lab.files);
    let dir = whole.open();
    let data: Vec<ArcEntry> = entries(&dir).into_iter().filter(|entry| entry.role == ArcRole::Data).collect();
    let whole_arc = |copy: &Copy, entry: &ArcEntry| {
        let report = test(copy, Level::LocalBlocks);
        let mine = |f: &&Finding| f.level == Level::LocalBlocks && f.spot.is_some_and(|s| s.part == Part::Whole);
        let [f] = &report.findings.iter().filter(mine).collect::<Vec<_>>()[..] else { panic!("{report:#?}") };
        assert_eq!(f.place.as_ref().unwrap().arc, entry.name);
        (f.error.code(), f.cause, f.hits_total > 0)
    };
    // Longer than the one in whose place it stands: else it is a cut one.
    let (short, long) =
        (data.iter().min_by_key(|e| e.arc_bytes).unwrap(), data.iter().max_by_key(|e| e.arc_bytes).unwrap());
    let other = lab.files[&long.name.to_string()].clone();
    let copy = changed(&lab.files, short.name, |bytes| *bytes = other);
    assert_eq!(whole_arc(&copy, short), ("ARC_FRAME_WRONG", Cause::Missing, true));
    let source = Source::new();
    source.write("f", &Rng::new(5).noise(20_000));
    let stranger = Copy::init();
    stranger.backup(&source, &BackupOptions::default());
    let foreign = stranger.files()["arc.0.1"].clone();
    let copy = changed(&lab.files, short.name, |bytes| *bytes = foreign);
    assert_eq!(whole_arc(&copy, short), ("ARC_HEADER_BAD", Cause::Key, true));
}

#[test]
fn a_block_that_was_wrong_before_it_was_sealed_is_not_blamed_on_the_medium() {
    let lab = lab();
    let whole = Copy::of(&lab.files);
    let (dir, reader) = (whole.open(), whole.reader());
    let entry = entries(&dir).into_iter().find(|entry| entry.role == ArcRole::Data).unwrap();
    let frames = frames(&dir, &entry);
    let cipher = dir.keys().arc_cipher(entry.id, &entry.salt);
    for (codec, code) in [(0u8, "BLOCK_HASH_MISMATCH"), (1, "BLOCK_COMPRESSION_BAD")] {
        let n = frames.iter().position(|(_, info)| info.codec as u8 == codec && info.plain_len() > 100).unwrap();
        let ((start, info), no) = (&frames[n], FrameNo(n as u32));
        let sealed = frame::seal(&cipher, no, info, &vec![7; info.stored_len as usize]);
        let copy = changed(&lab.files, entry.name, |bytes| {
            bytes[*start as usize..][..sealed.len()].copy_from_slice(&sealed);
        });
        let f = only(&test(&copy, Level::LocalBlocks), &|| format!("{code} in frame {n}"));
        assert_eq!((f.error.code(), f.cause), (code, Cause::Memory));
        assert_hits(&reader, &lab.truth, &f, entry.serial, no.0..no.0 + 1);
    }
}

#[test]
fn neighbouring_bad_frames_are_one_finding_and_a_gap_makes_two() {
    let lab = lab();
    let whole = Copy::of(&lab.files);
    let (dir, reader) = (whole.open(), whole.reader());
    let entry = entries(&dir).into_iter().max_by_key(|entry| entry.frames).unwrap();
    let frames = frames(&dir, &entry);
    let copy = changed(&lab.files, entry.name, |bytes| {
        for n in [3, 4, 5, 6, 9] {
            bytes[frames[n].0 as usize + 40] ^= 0xff;
        }
    });
    let report = test(&copy, Level::LocalBlocks);
    let parts: Vec<Part> = report.findings.iter().map(|f| f.spot.unwrap().part).collect();
    let part = |first, count| Part::Frames { first: FrameNo(first), count };
    assert_eq!(parts, [part(3, 4), part(9, 1)]);
    assert_hits(&reader, &lab.truth, &report.findings[0], entry.serial, 3..7);
    assert_hits(&reader, &lab.truth, &report.findings[1], entry.serial, 9..10);
    let lost: u64 = [3, 4, 5, 6, 9].iter().map(|n| frames[*n].1.blocks.len() as u64).sum();
    assert_eq!(report.blocks, test(&Copy::of(&lab.files), Level::LocalBlocks).blocks - lost);
}

#[test]
fn arcs_are_proven_without_the_index_too() {
    let lab = lab();
    let whole = Copy::of(&lab.files);
    let dir = whole.open();
    let entry = entries(&dir).into_iter().max_by_key(|entry| entry.frames).unwrap();
    let frames = frames(&dir, &entry);
    let blocks = test(&whole, Level::LocalBlocks).blocks;
    let mut files = lab.files.clone();
    files.retain(|name, _| !name.starts_with("index.db"));
    let index_findings = |report: &Report| {
        report
            .findings
            .iter()
            .filter(|f| f.error.code() == "INDEX_DAMAGED")
            .map(|f| (f.level, f.cause))
            .collect::<Vec<_>>()
    };
    let opens = (Level::Opens, Cause::Index);
    let report = test(&Copy::of(&files), Level::LocalBlocks);
    assert_eq!(index_findings(&report), [opens, (Level::LocalBlocks, Cause::Unchecked)]);
    assert_eq!((report.findings.len(), report.blocks), (2, blocks));
    assert_eq!(index_findings(&test(&Copy::of(&files), Level::Opens)), [opens]);
    // A bad frame, and a bad footer whose frames are found by their headers; then even without the commit record.
    for lose_commit in [false, true] {
        let mut files = files.clone();
        let commit = ArcName { version: entry.name.version, number: COMMIT_NUMBER };
        if lose_commit {
            files.get_mut(&commit.to_string()).unwrap().iter_mut().for_each(|byte| *byte ^= 0x3c);
        }
        let copy = changed(&files, entry.name, |bytes| {
            bytes[frames[2].0 as usize + 40] ^= 0xff;
            bytes[entry.footer_offset as usize + 60] ^= 1;
        });
        let report = test(&copy, Level::LocalBlocks);
        let here: Vec<_> =
            report.findings.iter().filter(|f| f.place.as_ref().is_some_and(|p| p.arc == entry.name)).collect();
        let parts: BTreeSet<String> = here.iter().map(|f| format!("{:?}", f.spot.unwrap().part)).collect();
        let frame = Part::Frames { first: FrameNo(2), count: 1 };
        assert_eq!(parts, [format!("{:?}", Part::Footer), format!("{frame:?}")].into(), "{:#?}", report.findings);
        let commit_found = report.findings.iter().any(|f| f.error.code() == "COMMIT_DAMAGED");
        assert_eq!(commit_found, lose_commit, "{:#?}", report.findings);
    }
}

#[test]
fn pages_of_the_index_are_named_and_a_wrong_key_ends_it() {
    let lab = lab();
    let mut files = lab.files.clone();
    let index = files.get_mut("index.db").unwrap();
    assert!(index.len() > 5 * 4096);
    index[4096 * 4 + 1000] ^= 0xff;
    let copy = Copy::of(&files);
    for level in [Level::Opens, Level::Pages, Level::LocalBlocks] {
        let report = test(&copy, level);
        let page = report.findings.iter().find(|f| f.level == Level::Pages);
        assert_eq!(page.is_some(), level >= Level::Pages, "{:#?}", report.findings);
        if let Some(page) = page {
            assert_eq!((page.error.code(), page.cause), ("INDEX_DAMAGED", Cause::Index));
            assert!(page.error.to_string().contains("page 5"), "{}", page.error);
        }
    }
    let other = Copy::init().files()["key.conf"].clone();
    let mut files = lab.files.clone();
    files.insert("key.conf".into(), other);
    let f = test(&Copy::of(&files), Level::Files).findings.pop().unwrap();
    assert_eq!((f.error.code(), f.cause, f.exit()), ("KEY_WRONG", Cause::Key, Exit::WrongKey));
}

#[test]
fn a_sample_reads_so_many_blocks_and_from_two_on_the_last() {
    let lab = lab();
    let whole = Copy::of(&lab.files);
    let dir = whole.open();
    let arcs = entries(&dir);
    let sampled = |copy: &Copy, count: u32| {
        let options = Options { sample: Some(count), ..options(Level::LocalBlocks) };
        selftest::run(&copy.open(), &options, &Silent).unwrap()
    };
    for count in [1, 2, 5, 1000] {
        // So many frames, with all their blocks.
        let lens = |arc| frames(&dir, arc).iter().map(|(_, info)| info.blocks.len() as u64).collect::<Vec<_>>();
        let (mut least, mut most) = (8, 8);
        for mut lens in arcs.iter().map(lens) {
            lens.sort_unstable();
            least += lens.iter().take(count as usize).sum::<u64>();
            most += lens.iter().rev().take(count as usize).sum::<u64>();
        }
        let report = sampled(&whole, count);
        assert_eq!((least..=most).contains(&report.blocks), report.findings.is_empty(), "{}", report.blocks);
        assert!(report.findings.is_empty());
    }
    let entry = arcs.iter().max_by_key(|entry| entry.frames).unwrap();
    let last = frames(&dir, entry).pop().unwrap();
    let copy = changed(&lab.files, entry.name, |bytes| bytes[last.0 as usize + 36] ^= 0x81);
    for _ in 0..5 {
        assert_eq!(sampled(&copy, 2).findings.len(), 1);
    }
    let cut = changed(&lab.files, entry.name, |bytes| bytes.truncate(last.0 as usize));
    assert!(sampled(&cut, 1).findings.iter().any(|f| f.error.code() == "ARC_FRAME_TRUNCATED"));
}

#[test]
fn a_part_is_tested_alone_and_a_block_names_its_files() {
    let lab = lab();
    let copy = Copy::of(&lab.files);
    let (dir, reader) = (copy.open(), copy.reader());
    let run = |scope| selftest::run(&dir, &Options { scope, ..options(Level::LocalBlocks) }, &Silent);
    let arcs = entries(&dir);
    let entry = arcs.iter().max_by_key(|entry| entry.frames).unwrap();
    let report = run(Scope::Arcs(vec![entry.name])).unwrap();
    let blocks = frames(&dir, entry).iter().map(|(_, info)| info.blocks.len() as u64).sum();
    assert_eq!((report.arcs, report.blocks, report.found()), (1, blocks, 0));
    let commit = ArcName { version: Version(2), number: COMMIT_NUMBER };
    assert_eq!(run(Scope::Arcs(vec![commit])).unwrap().blocks, 2);
    for no in [0, 5, entry.frames - 1] {
        let block = BlockId::first(entry.serial, FrameNo(no));
        let hash = reader.tree.index().frame_chunk(entry.serial, FrameNo(no)).unwrap().block(block).unwrap().hash;
        for named in [block.to_string(), hash.to_string()] {
            let report = run(Scope::Blocks(vec![named.parse().unwrap()])).unwrap();
            assert_eq!((report.arcs, report.found(), report.uses.len()), (1, 0, 1));
            let used = &report.uses[0];
            assert_eq!((used.block, used.place.arc, used.place.frame), (block, entry.name, Some(FrameNo(no))));
            let named: BTreeSet<_> = used.hits.iter().map(|hit| (hit.logid, hit.bytes.start, hit.bytes.end)).collect();
            let own = lab.truth.readers.get(&block).into_iter().flatten();
            let own = joined(own.map(|n| range_of(&lab.truth, *n)).collect());
            assert_eq!(named, own, "of this block, not of all in its frame");
        }
    }
    for scope in [
        Scope::Arcs(vec![ArcName { version: Version(77), number: 1 }]),
        Scope::Blocks(vec!["b0.99999.0".parse().unwrap()]),
        Scope::Blocks(vec!["b4711.0.0".parse().unwrap()]),
        Scope::Blocks(vec!["0123456789012345678901234567890123456789".parse().unwrap()]),
    ] {
        assert_eq!(run(scope.clone()).unwrap_err().exit_code(), Exit::Usage, "{scope:?}");
    }
}

#[test]
fn what_a_cut_backup_leaves_is_told_and_is_no_damage() {
    let copy = Copy::of(&lab().files);
    copy.cut_run(&[b"a block".to_vec()]);
    fs::write(copy.path("arc.4.0.tmp"), b"").unwrap();
    let report = test(&copy, Level::LocalBlocks);
    assert!(report.findings.is_empty() && report.notes.len() == 1, "{report:#?}");
    assert!(report.notes[0].contains("arc.4."), "{:?}", report.notes);
}

#[test]
fn commits_that_the_index_does_not_know_and_what_does_not_belong_here_are_findings() {
    let source = Source::new();
    source.write("f", b"one");
    let copy = Copy::init();
    copy.backup(&source, &BackupOptions::default());
    let index = copy.files()["index.db"].clone();
    source.write("f", b"two");
    copy.backup(&source, &BackupOptions::default());
    fs::write(copy.path("index.db"), index).unwrap();
    for level in [Level::Structure, Level::LocalBlocks, Level::Files] {
        let report = test(&copy, level);
        let [found] = report.findings.as_slice() else { panic!("{report:#?}") };
        assert!(found.cause == Cause::Index && found.error.to_string().contains("r1 is committed"), "{report:#?}");
    }
    let fixed =
        selftest::run(&copy.open(), &Options { fix: Fix::Correct, ..options(Level::Structure) }, &Silent).unwrap();
    assert!(fixed.findings.iter().all(|finding| finding.is_fixed()), "{fixed:#?}");
    assert!(test(&copy, Level::Files).findings.is_empty());
    fs::rename(copy.path("arc.0.1"), copy.path("arc.8.1")).unwrap();
    fs::write(copy.path("arc.8.2"), b"junk").unwrap();
    let report = test(&copy, Level::Structure);
    let causes: Vec<Cause> = report.findings.iter().map(|finding| finding.cause).collect();
    assert_eq!(causes, [Cause::Missing, Cause::Stray, Cause::Stray], "{report:#?}");
    assert!(report.findings[1].error.to_string().contains("rename it to arc.0.1"), "{report:#?}");
}

#[test]
fn beside_running_backups_nothing_is_taken_for_damage() {
    let (source, copy, mut rng) = (Source::new(), Copy::init(), Rng::from_env());
    source.write("f0", b"first");
    copy.backup(&source, &BackupOptions::default());
    let done = AtomicBool::new(false);
    let runs = std::thread::scope(|scope| {
        let tester = scope.spawn(|| {
            let mut runs = 0;
            while !done.load(Relaxed) || runs < 3 {
                for level in [Level::Pages, Level::LocalBlocks] {
                    let report = test(&copy, level);
                    assert!(report.findings.is_empty(), "{:#?}", report.findings);
                }
                runs += 1;
            }
            runs
        });
        for n in 0..12 {
            source.write(&format!("f{n}"), &rng.noise(30_000));
            copy.backup(&source, &BackupOptions::default());
        }
        done.store(true, Relaxed);
        tester.join().unwrap()
    });
    assert!(runs >= 3, "{runs}");
}

#[test]
fn an_interrupted_run_says_so_and_keeps_what_it_found() {
    struct Impatient(AtomicBool);
    impl Monitor for Impatient {
        fn progress(&self, _: Progress) {}
        fn event(&self, event: Event<'_>) {
            self.0.fetch_or(matches!(event, Event::Path(_)), Relaxed);
        }
        fn interrupted(&self) -> bool {
            self.0.load(Relaxed)
        }
    }
    let lab = lab();
    let first = entries(&Copy::of(&lab.files).open()).remove(0);
    let copy = changed(&lab.files, first.name, |bytes| bytes[120] ^= 0x42);
    let report = selftest::run(&copy.open(), &options(Level::LocalBlocks), &Impatient(AtomicBool::new(false))).unwrap();
    assert!(report.interrupted && report.arcs < entries(&copy.open()).len() as u64);
    // The damaged arc may not have been judged yet when another one was done.
    assert!(report.findings.len() <= 1, "{:#?}", report.findings);
}
