//! Selftests of damaged copies: each kind of damage is found where it is, as what it is, with the files that it hits.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::Rng;
use super::acts::LEVELS;
use super::lab::{Copy, Files, Source, lab};
use super::layout::{Layout, Users, entries, told};
use super::structures::options;
use crate::backup::Options as BackupOptions;
use crate::backupdir::arcs::COMMIT_NUMBER;
use crate::catalog::Child;
use crate::error::Exit;
use crate::ids::{ArcName, BlockId, FileHash, FrameNo, Version};
use crate::monitor::{Event, Monitor, Progress, Silent};
use crate::selftest::{self, Cause, Fix, Level, Options, Part, Report, Scope};

fn test(copy: &Copy, level: Level) -> Report {
    selftest::run(&copy.open(), &options(level), &Silent).unwrap()
}

fn changed(files: &Files, name: ArcName, change: impl FnOnce(&mut Vec<u8>)) -> Copy {
    let mut files = files.clone();
    let bytes = files.get_mut(&name.to_string()).unwrap();
    let before = bytes.clone();
    change(bytes);
    assert!(*bytes != before, "the fault did not fire");
    Copy::of(&files)
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
    let arcs = Layout::all(&copy);
    for level in LEVELS {
        let report = test(&copy, level);
        assert!(report.findings.is_empty() && report.found() == 0, "{level:?}: {:#?}", report.findings);
        if matches!(level, Level::LocalBlocks | Level::AllCopies) {
            // Of a commit arc two copies of the record.
            assert_eq!((report.arcs, report.blocks), (arcs.len() as u64, arcs.iter().map(Layout::stored).sum()));
            assert!(report.bytes >= entries(&copy.open()).iter().map(|arc| arc.plain_bytes).sum());
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
fn arcs_are_proven_without_the_index_too() {
    let lab = lab();
    let whole = Copy::of(&lab.files);
    let arc = Layout::all(&whole).into_iter().max_by_key(|arc| arc.frames.len()).unwrap();
    let entry = arc.entry();
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
            bytes[arc.frames[2].start + 40] ^= 0xff;
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
    let arcs = Layout::all(&whole);
    let sampled = |copy: &Copy, count: u32| {
        let options = Options { sample: Some(count), ..options(Level::LocalBlocks) };
        selftest::run(&copy.open(), &options, &Silent).unwrap()
    };
    for count in [1, 2, 5, 1000] {
        // So many frames, with all their blocks.
        let (mut least, mut most) = (8, 8);
        for arc in arcs.iter().filter(|arc| arc.entry.is_some()) {
            let mut lens: Vec<_> = arc.infos.iter().map(|info| info.blocks.len() as u64).collect();
            lens.sort_unstable();
            least += lens.iter().take(count as usize).sum::<u64>();
            most += lens.iter().rev().take(count as usize).sum::<u64>();
        }
        let report = sampled(&whole, count);
        assert_eq!((least..=most).contains(&report.blocks), report.findings.is_empty(), "{}", report.blocks);
        assert!(report.findings.is_empty());
    }
    let arc = arcs.iter().max_by_key(|arc| arc.frames.len()).unwrap();
    let last = arc.frames.last().unwrap().start;
    let copy = changed(&lab.files, arc.name, |bytes| bytes[last + 36] ^= 0x81);
    for _ in 0..5 {
        assert_eq!(sampled(&copy, 2).findings.len(), 1);
    }
    let cut = changed(&lab.files, arc.name, |bytes| bytes.truncate(last));
    assert!(sampled(&cut, 1).findings.iter().any(|f| f.error.code() == "ARC_FRAME_TRUNCATED"));
}

#[test]
fn a_part_is_tested_alone_and_a_block_names_its_files() {
    let lab = lab();
    let copy = Copy::of(&lab.files);
    let (dir, reader) = (copy.open(), copy.reader());
    let run = |scope| selftest::run(&dir, &Options { scope, ..options(Level::LocalBlocks) }, &Silent);
    let (arcs, users) = (Layout::all(&copy), Users::of(&reader));
    let arc = arcs.iter().max_by_key(|arc| arc.frames.len()).unwrap();
    let entry = arc.entry();
    let report = run(Scope::Arcs(vec![arc.name])).unwrap();
    assert_eq!((report.arcs, report.blocks, report.found()), (1, arc.stored(), 0));
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
            assert_eq!(told(&used.hits), users.told(&BTreeSet::from([block])), "not of all in its frame");
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

#[test]
fn a_wrong_file_hash_over_good_blocks_is_the_indexs() {
    let copy = Copy::of(&lab().files);
    let users = Users::of(&copy.reader());
    let logid = *users.blocks.values().next().unwrap().keys().next().unwrap();
    copy.vandal().node(logid, |node| node.sha1 = Some(FileHash([7; 20])));
    let mut findings = test(&copy, Level::Files).findings;
    findings.retain(|finding| finding.level == Level::Files);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    let one = &findings[0];
    assert_eq!((one.error.code(), one.cause), ("FILE_HASH_MISMATCH", Cause::Index));
    assert!(one.hits.iter().all(|hit| hit.logid == logid) && !one.hits.is_empty());
}

#[test]
fn versions_and_paths_narrow_it_down() {
    let copy = Copy::of(&lab().files);
    let reader = copy.reader();
    let users = Users::of(&reader);
    let top = reader.below(Version(0), b"/");
    let count = |v: u32| {
        let of = reader.below(Version(v), b"/").into_values();
        of.filter_map(|child| if let Child::Node(logid) = child { Some(logid) } else { None })
            .collect::<BTreeSet<_>>()
            .len() as u64
    };
    let run = |options: Options| selftest::run(&copy.open(), &options, &Silent).unwrap();
    assert_eq!(run(options(Level::Files)).files, users.names.len() as u64, "each state once");
    for v in 0..4 {
        let report = run(Options { rev: Some(format!("r{v}")), ..options(Level::Files) });
        assert_eq!(report.files, count(v), "r{v}");
    }
    let file = top.keys().find(|path| path.ends_with(b"/long")).unwrap();
    let path = [b"/", &file[..]].concat();
    let report = run(Options { scope: Scope::Paths(vec![path.clone()]), ..options(Level::Files) });
    let states = users.names.values().filter(|names| names.contains_key(&path)).count() as u64;
    assert_eq!((report.files, states > 1), (states, true));
    let nowhere = Options { scope: Scope::Paths(vec![b"/no/such".to_vec()]), ..options(Level::Files) };
    let error = selftest::run(&copy.open(), &nowhere, &Silent).unwrap_err();
    assert_eq!(error.code(), "NO_PATH");
}
