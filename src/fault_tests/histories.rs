//! Proofs and damage in a ledger of which the backup dir has another history by now: snapshots that were rolled back, and an
//! index that was lost.

use std::fs;

use super::Rng;
use super::lab::{Copy, Files, Source};
use super::layout::Layout;
use super::recoveries::put;
use super::structures::options;
use crate::backup::Options as BackupOptions;
use crate::catalog::ArcRole;
use crate::ids::{ArcSerial, CopyId, FrameNo, Logid};
use crate::ledger::{How, Ledger};
use crate::monitor::Silent;
use crate::recover::{self, OnLoss};
use crate::selftest::{self, Level, Report};

fn test(copy: &Copy, level: Level) -> Report {
    selftest::run(&copy.open(), &options(level), &Silent).unwrap()
}

fn back_up(copy: &Copy, source: &Source, name: &str, seed: u64) {
    source.write(name, &Rng::new(seed).noise(150_000));
    copy.backup(source, &BackupOptions::default());
}

/// Puts a snapshot of index and arcs back; the ledger stays as it is.
fn roll_back(copy: &Copy, snapshot: &Files) {
    copy.files().keys().for_each(|name| fs::remove_file(copy.path(name)).unwrap());
    snapshot.iter().for_each(|(name, bytes)| fs::write(copy.path(name), bytes).unwrap());
}

/// The newest data arc, and the state of the only file in it.
fn newest(copy: &Copy) -> (ArcSerial, Logid) {
    let index = copy.open().open_index().unwrap();
    let arcs = index.arcs().unwrap().into_iter().map(|row| row.entry).filter(|entry| entry.role == ArcRole::Data);
    (arcs.map(|entry| entry.serial).max().unwrap(), Logid(index.state().unwrap().next_logid - 1))
}

/// Whether a frame of the arc and the file are.
fn proven(ledger: &Ledger, (arc, file): (ArcSerial, Logid)) -> [bool; 2] {
    [ledger.frame(arc, CopyId::LOCAL, FrameNo(0), How::Medium).is_some(), ledger.file(file).is_some()]
}

/// Changes a byte of a block's frame that is not the first; gives what the arc was.
fn damage(copy: &Copy, arc: ArcSerial) -> (String, Vec<u8>) {
    let name = copy.open().open_index().unwrap().arc(arc).unwrap().entry.name;
    let whole = fs::read(copy.path(&name.to_string())).unwrap();
    let mut bytes = whole.clone();
    bytes[Layout::of(&copy.open(), name).frames[1].start + 100] ^= 0xff;
    put(copy, &name.to_string(), &bytes);
    (name.to_string(), whole)
}

#[test]
fn what_was_proven_before_a_rollback_proves_nothing_that_came_after() {
    let source = Source::new();
    let copy = Copy::init();
    let prove = |level| assert_eq!(test(&copy, level).findings.len(), 0);
    back_up(&copy, &source, "first", 1);
    let first = newest(&copy);
    prove(Level::LocalBlocks);
    let snapshot = copy.files();
    back_up(&copy, &source, "second", 2);
    let second = newest(&copy);
    prove(Level::LocalBlocks);
    prove(Level::Files);
    let (name, whole) = damage(&copy, second.0);
    assert_eq!(test(&copy, Level::LocalBlocks).findings.len(), 1);
    put(&copy, &name, &whole);
    let verdicts = |damaged: usize| {
        let ledger = copy.ledger();
        assert_eq!(ledger.open_damage().len(), damaged);
        (proven(&ledger, first), proven(&ledger, second))
    };
    assert_eq!(verdicts(1), ([true, true], [true, true]));
    roll_back(&copy, &snapshot);
    assert_eq!(verdicts(0), ([true, false], [false, false]));
    // The same numbers are given again.
    back_up(&copy, &source, "second", 3);
    assert_eq!(newest(&copy), second, "other numbers: nothing is shown");
    assert_eq!(verdicts(0), ([true, false], [false, false]));
    prove(Level::LocalBlocks);
    prove(Level::Files);
    assert_eq!(verdicts(0), ([true, true], [true, true]));
}

#[test]
fn damage_of_another_history_is_no_loss_that_could_be_accepted() {
    let source = Source::new();
    let copy = Copy::init();
    back_up(&copy, &source, "first", 1);
    let snapshot = copy.files();
    back_up(&copy, &source, "second", 2);
    damage(&copy, newest(&copy).0);
    assert_eq!((test(&copy, Level::LocalBlocks).findings.len(), copy.ledger().open_damage().len()), (1, 1));
    roll_back(&copy, &snapshot);
    back_up(&copy, &source, "second", 3);
    let recovered = recover::run(&copy.open(), OnLoss::Accept, &Silent).unwrap();
    assert_eq!(recovered.accepted, Vec::<String>::new());
}

#[test]
fn what_a_check_without_the_index_notes_is_of_the_history_that_the_arcs_tell() {
    let source = Source::new();
    let copy = Copy::init();
    back_up(&copy, &source, "first", 1);
    back_up(&copy, &source, "second", 2);
    let (arc, file) = newest(&copy);
    damage(&copy, arc);
    copy.lose_index();
    assert!(!test(&copy, Level::LocalBlocks).findings.is_empty());
    copy.recover();
    let ledger = copy.ledger();
    let open: Vec<_> = ledger.open_damage().iter().map(|damage| (damage.arc, damage.frame)).collect();
    assert_eq!(open, [(arc, Some(FrameNo(1)))]);
    assert!(ledger.frame(arc, CopyId::LOCAL, FrameNo(0), How::Medium).is_some() && ledger.file(file).is_none());
}
