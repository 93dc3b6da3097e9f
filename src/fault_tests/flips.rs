//! Every byte of every arc, one at a time: with the index, and without it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;

use super::Rng;
use super::lab::{Copy, lab};
use super::layout::{Layout, entries};
use super::questions::{Ask, Reader, Truth, fresh_store};
use crate::arc::ARC_HEADER_LEN;
use crate::backupdir::BackupDir;
use crate::backupdir::arcs::{self, ArcSource, COMMIT_NUMBER};
use crate::catalog::codec::decode_records;
use crate::catalog::{ArcRole, CatalogFrame, Commit, Named, Record};
use crate::ids::{ArcName, Dirno, FrameNo, FramePlace, Logid, Version};
use crate::index::CatalogSource;
use crate::store::Heal;

/// XORs one byte of a file.
fn flip(file: &fs::File, at: usize, mask: u8) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    byte[0] ^= mask;
    file.write_all_at(&byte, at as u64).unwrap();
}

fn open_for_damage(copy: &Copy, name: ArcName) -> fs::File {
    fs::OpenOptions::new().read(true).write(true).open(copy.path(&name.to_string())).unwrap()
}

#[test]
fn with_the_index_a_flip_in_a_data_arc_costs_one_block_or_is_put_right() {
    let (lab, mut rng) = (lab(), Rng::from_env());
    let truth = &lab.truth;
    let copy = Copy::of(&lab.files);
    let dir = copy.open();
    let mut reader = copy.reader();
    let index = reader.tree.index().clone();
    let bytes_questions: Vec<usize> =
        (0..truth.questions.len()).filter(|n| matches!(truth.questions[*n].0, Ask::Bytes(..))).collect();
    let (mut flips, mut read, mut put_right) = (0, 0, 0);
    for arc in Layout::all(&copy).iter().filter(|arc| arc.role() == ArcRole::Data) {
        let (entry, file) = (arc.entry(), open_for_damage(&copy, arc.name));
        for at in 0..arc.len {
            let part = arc.frame_at(at);
            // One bit, or several.
            let mask = if rng.below(2) == 0 { 1 << rng.below(8) } else { rng.mask() };
            let heal = if at % 2 == 0 { Heal::Off } else { Heal::On };
            let what = || format!("seed {}: byte {at} of {} ^ {mask:#x} ({part:?}, {heal:?})", rng.seed, entry.name);
            flip(&file, at, mask);
            flips += 1;
            let healed = heal == Heal::On && (part.is_some_and(|(_, is_head)| is_head) || mask.count_ones() == 1);
            reader.store = fresh_store(&dir, &index, heal);
            let hit = part.map(|(no, _)| no);
            let code = if part.is_some_and(|(_, is_head)| is_head) { "ARC_FRAME_WRONG" } else { "ARC_TAG_MISMATCH" };
            let frame = |no: u32| FramePlace::new(entry.serial, FrameNo(no));
            if let Some(no) = hit {
                // Nobody reads a block of a file that was read again, cut otherwise, and had not changed.
                let readers = truth.readers_of(frame(no));
                read += readers.len();
                for n in readers.iter().take(2) {
                    match truth.ask(&reader, *n, &what) {
                        None => assert!(healed, "{}: not noticed", what()),
                        Some(error) => assert!(!healed && error.code() == code, "{}: {error}", what()),
                    }
                }
                let met = reader.store.tally().summary();
                let once = u64::from(!readers.is_empty());
                assert_eq!(met.damage, once, "{}: listed once", what());
                assert_eq!((met.healed, met.repaired), if healed { (once, once) } else { (0, 0) }, "{}", what());
                assert!(met.places.iter().all(|met| met.code == code), "{}: {:?}", what(), met.places);
                put_right += met.repaired;
            }
            let neighbours = hit.map_or([0, entry.frames - 1], |no| [no.saturating_sub(1), no + 1]);
            let others = neighbours.iter().filter(|no| Some(**no) != hit && **no < entry.frames);
            let others = others.filter_map(|no| truth.readers_of(frame(*no)).first().copied());
            let any = Some(bytes_questions[rng_pick(at, mask, bytes_questions.len())]);
            for n in others.chain(any) {
                let error = truth.ask(&reader, n, &what);
                let same = matches!(truth.questions[n].0, Ask::Bytes(.., Some(b)) if hit.is_some_and(|no| b.place() == frame(no)));
                assert_eq!(error.is_some(), same && !healed, "{}: {:?}: {error:?}", what(), truth.questions[n].0);
            }
            if at % 251 == 0 {
                let failed: BTreeSet<usize> = truth.judge(&reader, &what).into_iter().map(|(n, _)| n).collect();
                let lost = hit.filter(|_| !healed);
                let wanted = lost.map_or_else(BTreeSet::new, |no| truth.need(frame(no)));
                assert_eq!(failed, wanted, "{}", what());
            }
            flip(&file, at, mask);
        }
    }
    assert!(flips > 10_000 && read > 10_000 && put_right > 1_000, "{flips} {read} {put_right}");
    reader.store = fresh_store(&dir, &index, Heal::Off);
    truth.assert_whole(&reader, &|| "after all flips were undone".into());
}

#[test]
fn with_the_index_no_byte_of_a_catalog_or_commit_arc_is_needed() {
    let lab = lab();
    let mut files = lab.files.clone();
    let known = entries(&Copy::of(&lab.files).open());
    let data = |name: ArcName| known.iter().any(|entry| entry.name == name && entry.role == ArcRole::Data);
    let mut damaged = 0;
    for (name, bytes) in &mut files {
        if ArcName::parse(name).is_some_and(|name| !data(name)) {
            bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
            damaged += 1;
        }
    }
    assert!(damaged >= 8, "{damaged}");
    lab.truth.assert_whole(&Copy::of(&files).reader(), &|| "all bytes of catalog and commit arcs flipped".into());
    // Headers, footers and trailers of data arcs neither.
    for entry in known.iter().filter(|entry| entry.role == ArcRole::Data) {
        let Some(bytes) = files.get_mut(&entry.name.to_string()) else { continue };
        bytes[..ARC_HEADER_LEN].iter_mut().for_each(|byte| *byte ^= 0x55);
        bytes[entry.footer_offset as usize..].iter_mut().for_each(|byte| *byte ^= 0x55);
    }
    lab.truth.assert_whole(&Copy::of(&files).reader(), &|| "and what surrounds the frames of data arcs".into());
}

/// Some number below `bound`.
fn rng_pick(at: usize, mask: u8, bound: usize) -> usize {
    Rng::new(at as u64 ^ u64::from(mask) << 32).below(bound)
}

/// All that a recovery learns from the arcs of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Evidence {
    commit: Result<(Commit, [u8; 32]), &'static str>,
    tables: Vec<(ArcName, Result<Vec<crate::arc::FrameInfo>, &'static str>)>,
    frames: Vec<(CatalogFrame, Result<Vec<u8>, &'static str>)>,
}

impl Evidence {
    fn of(dir: &BackupDir, run: Version) -> Evidence {
        let commit = arcs::read_commit(dir.arcs(), run, dir.keys()).map_err(|e| e.code());
        let (mut tables, mut frames) = (Vec::new(), Vec::new());
        if let Ok((commit, _)) = &commit {
            let mut source = ArcSource::new(dir.arcs(), dir.keys());
            for arc in &commit.arcs {
                tables.push((arc.name, source.frame_table(arc).map_err(|e| e.code())));
            }
            for frame in &commit.catalog {
                let arc = commit.arcs.iter().find(|arc| arc.serial == frame.arc).unwrap();
                frames.push((frame.clone(), source.catalog_frame(frame, arc).map_err(|e| e.code())));
            }
        }
        Evidence { commit, tables, frames }
    }
}

#[test]
fn without_the_index_a_flip_costs_at_most_one_catalog_frame() {
    let (lab, mut rng) = (lab(), Rng::from_env());
    let truth = &lab.truth;
    let whole = Copy::without_index(&lab.files);
    whole.recover();
    let rows = whole.rows();
    truth.assert_whole(&whole.reader(), &|| "recovered from undamaged arcs".into());

    let copy = Copy::without_index(&lab.files);
    let dir = copy.open();
    let (mut flips, mut recoveries) = (0, 0);
    // Frames that were hit, each with one flip that does it.
    let mut hit: BTreeMap<(ArcName, u32), (usize, u8)> = BTreeMap::new();
    for name in copy.arc_names() {
        let file = open_for_damage(&copy, name);
        let before = Evidence::of(&dir, name.version);
        let layout = Layout::of(&whole.open(), name);
        for at in 0..layout.len {
            let part = layout.frame_at(at);
            if layout.role() == ArcRole::Data && part.is_some_and(|(_, is_head)| !is_head) && rng.below(8) != 0 {
                continue;
            }
            let mask = rng.mask();
            let what = format!("seed {}: byte {at} of {name} ^ {mask:#x} ({part:?})", rng.seed);
            flip(&file, at, mask);
            flips += 1;
            let mut found = Evidence::of(&dir, name.version);
            let catalog_frame = part.filter(|_| layout.role() == ArcRole::Catalog).map(|(no, _)| no);
            if let Some(no) = catalog_frame {
                let serial = layout.entry().serial;
                let n = before.frames.iter().position(|(f, _)| (f.arc, f.frame.0) == (serial, no)).unwrap();
                assert!(found.frames[n].1.is_err(), "{what}: not noticed");
                hit.insert((name, no), (at, mask));
                found.frames[n].1 = before.frames[n].1.clone();
            }
            assert!(found == before, "{what}: costs more than a catalog frame:\n{found:?}");
            // What a recovery learns is the same, so its index is; a sample proves that it asks nothing else.
            if rng.below(150) == 0 && catalog_frame.is_none() {
                recoveries += 1;
                let got = copy.recover();
                assert!(got.lost.is_empty() && got.lost_arcs.is_empty() && got.lost_runs.is_empty(), "{what}: {got:?}");
                assert!(copy.rows() == rows, "{what}: another index");
                copy.lose_index();
            }
            flip(&file, at, mask);
        }
    }
    assert!(flips > 10_000 && recoveries > 30 && hit.len() > 6, "{flips} {recoveries} {}", hit.len());

    for ((name, no), (at, mask)) in hit {
        let what = || format!("catalog frame {no} of {name} is lost");
        let file = open_for_damage(&copy, name);
        flip(&file, at, mask);
        let got = copy.recover();
        flip(&file, at, mask);
        assert_eq!(got.lost.len(), 1, "{}", what());
        assert_eq!((got.lost[0].frame.arc, got.lost[0].frame.frame.0), (name, no));
        let lost = Lost::of(&dir, name, no);
        let claimed: BTreeSet<u64> =
            got.lost[0].frame.dirs.iter().flat_map(|(first, count)| first.0..first.0 + count).collect();
        assert_eq!(claimed, lost.dirs.iter().map(|d| d.0).collect(), "{}: what it is said to describe", what());
        lost.judge(truth, &copy.reader(), &what);
        copy.lose_index();
    }
}

/// What a catalog frame tells, and so what is lost with it.
struct Lost {
    run: Version,
    /// Its run told every directory.
    base: bool,
    dirs: BTreeSet<Dirno>,
    nodes: BTreeSet<Logid>,
    extents: BTreeSet<Logid>,
}

impl Lost {
    fn of(dir: &BackupDir, name: ArcName, no: u32) -> Lost {
        assert_ne!(name.number, COMMIT_NUMBER);
        let (commit, _) = arcs::read_commit(dir.arcs(), name.version, dir.keys()).unwrap();
        let arc = commit.arcs.iter().find(|arc| arc.name == name).unwrap();
        let frame = commit.catalog.iter().find(|f| f.arc == arc.serial && f.frame.0 == no).unwrap();
        let plain = ArcSource::new(dir.arcs(), dir.keys()).catalog_frame(frame, arc).unwrap();
        let mut lost = Lost {
            run: name.version,
            base: commit.base,
            dirs: BTreeSet::new(),
            nodes: BTreeSet::new(),
            extents: BTreeSet::new(),
        };
        // A frame that describes no directory only tells some a second time.
        let describes = !frame.dirs.is_empty();
        for record in decode_records(&plain).unwrap() {
            match record {
                Record::Dir { dirno, .. } if describes => drop(lost.dirs.insert(dirno)),
                Record::Put { item: Named::Node(node), .. } => drop(lost.nodes.insert(node.logid)),
                Record::Extents(chunk) => drop(lost.extents.insert(chunk.logid)),
                _ => {}
            }
        }
        lost
    }

    /// Everything is answered but what the frame told.
    fn judge(&self, truth: &Truth, r: &Reader, what: &dyn Fn() -> String) {
        // Since when something is as it is may have been told by the lost frame alone: no part of the tree.
        let failed = truth.judge_those(r, what, &|ask| !matches!(ask, Ask::History(..)));
        for (n, error) in &failed {
            let ask = &truth.questions[*n].0;
            let by_dir = ask.version().is_some_and(|v| v >= self.run)
                && ask.listings(self.base).iter().any(|d| self.dirs.contains(d));
            let by_file = ask.logid().is_some_and(|logid| self.nodes.contains(&logid));
            let by_extents = ask.is_bytes() && ask.logid().is_some_and(|logid| self.extents.contains(&logid));
            assert!(by_dir || by_file || by_extents, "{}: also costs {ask:?}: {error}", what());
            assert!(error.is_damage(), "{}: {ask:?}: {error}", what());
        }
        // What only this frame told can't be known.
        let tells_nothing = self.dirs.is_empty() && self.nodes.is_empty() && self.extents.is_empty();
        assert!(!failed.is_empty() || self.run > Version(0) || tells_nothing, "{}: nothing is missing", what());
        assert!(failed.is_empty() || !tells_nothing, "{}: {failed:?}", what());
    }
}
