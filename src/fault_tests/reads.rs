//! What is read of arcs, and how often: seen by a depot that remembers each read.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::lab::{Copy, lab};
use crate::arc::{ARC_HEADER_LEN, ARC_TRAILER_LEN};
use crate::backupdir::BackupDir;
use crate::catalog::ArcRole;
use crate::depot::faulty::Faulty;
use crate::ids::ArcName;
use crate::monitor::Silent;
use crate::recover::OnLoss;
use crate::selftest::{self, Level, Options};

/// The backup dir, and what will be read of its arcs.
fn recorded(copy: &Copy) -> (BackupDir, Faulty) {
    let mut seen = None;
    let dir = copy.open().seen_through(|inner| {
        let faulty = Faulty::recording(inner);
        seen = Some(faulty.clone());
        Arc::new(faulty)
    });
    (dir, seen.unwrap())
}

#[test]
fn v3_reads_each_frame_once() {
    let copy = Copy::of(&lab().files);
    let index = copy.open().open_index().unwrap();
    let (dir, depot) = recorded(&copy);
    let options = Options::of(Level::LocalBlocks);
    let report = selftest::run(&dir, &options, &Silent).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let mut reads: BTreeMap<ArcName, Vec<(u64, u64)>> = BTreeMap::new();
    for (arc, range, _) in depot.reads() {
        reads.entry(arc).or_default().push((range.start, range.end));
    }
    for entry in index.arcs().unwrap().into_iter().map(|row| row.entry).filter(|entry| entry.role == ArcRole::Data) {
        // v2 has read what surrounds the frames; of them every byte is read now, and once.
        let found = reads.remove(&entry.name).unwrap();
        let mut at = ARC_HEADER_LEN as u64;
        let mut frames: Vec<_> = found.iter().filter(|(start, _)| (at..entry.footer_offset).contains(start)).collect();
        frames.sort_unstable();
        for (start, end) in frames {
            assert_eq!(*start, at, "{}: read twice, or not at all", entry.name);
            at = *end;
        }
        assert_eq!(at, entry.footer_offset, "{}", entry.name);
        for part in [(0, ARC_HEADER_LEN as u64), (entry.footer_offset, at + u64::from(entry.footer_len))] {
            assert!(found.contains(&part), "{}: {part:?} of {found:?}", entry.name);
        }
    }
}

#[test]
fn recover_reads_no_frame_of_a_data_arc() {
    let copy = Copy::of(&lab().files);
    let entries = copy.open().open_index().unwrap().arcs().unwrap();
    copy.lose_index();
    let (dir, depot) = recorded(&copy);
    let recovered = crate::recover::run(&dir, OnLoss::Report, &Silent).unwrap();
    assert!(recovered.lost.is_empty() && recovered.lost_arcs.is_empty());
    let reads = depot.reads();
    assert!(!reads.is_empty());
    for entry in entries.into_iter().map(|row| row.entry).filter(|entry| entry.role == ArcRole::Data) {
        let frames = ARC_HEADER_LEN as u64..entry.footer_offset;
        assert!(entry.arc_bytes > frames.end + ARC_TRAILER_LEN as u64);
        let of_frames: Vec<_> = reads
            .iter()
            .filter(|(arc, range, _)| *arc == entry.name && range.start < frames.end && range.end > frames.start)
            .collect();
        assert!(of_frames.is_empty(), "{}: {of_frames:?}", entry.name);
    }
    lab().truth.assert_whole(&copy.reader(), &|| "recovered".into());
}
