//! The shadow: an index made from the arcs alone, in a private directory, to compare the real one with.
//!
//! Invariants: it is made by the function that `recover` uses, encrypted with the same key, and gone when dropped; what
//! the arcs can't tell any more is told once, with the directories that it hits.

use std::collections::BTreeSet;

use super::names::Names;
use super::{Cause, Check, Exam, Hit, Subject};
use crate::backupdir::arcs::COMMIT_NUMBER;
use crate::error::{Damage, Error, Result};
use crate::ids::{ArcName, ArcSerial, Dirno, Version};
use crate::index::{Index, LostFrame, ScanTable, Scanned, Snapshot};
use crate::monitor::Monitor;
use crate::recover::Rebuild;
use crate::scratch::Scratch;

/// Directories that are named for one lost frame.
const MAX_DIRS: u64 = 1000;

pub struct Shadow<'a> {
    pub rebuild: Rebuild<'a>,
    pub index: Index,
    _dir: Scratch,
}

impl<'a> Shadow<'a> {
    pub fn begin(exam: &Exam<'a>) -> Result<Shadow<'a>> {
        let dir = Scratch::new()?;
        let path = dir.path().join("index.db");
        let rebuild = Rebuild::begin(exam.dir, &path)?.without_sync()?;
        let index = Index::open(&path, &exam.dir.keys().index_key())?;
        Ok(Shadow { rebuild, index, _dir: dir })
    }

    /// Applies all runs up to `last`.
    pub fn go_on(&mut self, last: Version, monitor: &dyn Monitor) -> Result<()> {
        self.rebuild.go_on(Some(last), monitor)?;
        self.rebuild.rest()
    }
}

/// Runs of which the index has a version or an arc.
pub fn known_runs(rows: &Snapshot<'_>) -> BTreeSet<Version> {
    let mut runs = BTreeSet::new();
    let mut versions = rows.cursor(ScanTable::Versions);
    while let Some(scanned) = versions.take() {
        if let Scanned::Row(row) = scanned {
            runs.extend(u32::try_from(row.key.first).map(Version));
        }
    }
    let mut arcs = rows.cursor(ScanTable::Arcs);
    while let Some(scanned) = arcs.take() {
        if let Scanned::Row(row) = scanned {
            runs.extend(row.arc(rows.index()).map(|arc| arc.run));
        }
    }
    runs
}

/// Tells what the arcs don't tell any more, and what a recovery gave up although they tell it.
pub fn tell_losses(check: &Check<'_>, shadow: &Shadow<'_>, rows: &Snapshot<'_>, names: &Names<'_, '_>) -> Result<()> {
    let known = known_runs(rows);
    let rebuild = &shadow.rebuild;
    for (run, error) in rebuild.unreadable() {
        let name = ArcName { version: *run, number: COMMIT_NUMBER }.to_string();
        let is_there = check.exam.dir.own().stat(name).is_ok_and(|found| found.is_some());
        // Where neither index nor arc know the run, it may never have been committed.
        if known.contains(run) || is_there {
            check.report(Subject::Commit(*run), error.clone(), Cause::Catalog, Vec::new());
        }
    }
    let lost: BTreeSet<Version> = rebuild.lost_runs().iter().map(|(run, _)| *run).collect();
    for run in known.iter().filter(|run| !rebuild.applied().contains(run) && !lost.contains(run)) {
        let error = Error::CommitDamaged { run: *run, what: "there is no arc of it".into() };
        check.report(Subject::Commit(*run), error, Cause::Catalog, Vec::new());
    }
    let settled_below = rows.state()?.settled_below;
    let given_up: Vec<String> =
        given_up(rebuild.applied(), &known, settled_below).iter().map(Version::to_string).collect();
    if !given_up.is_empty() {
        let what = format!("a recovery gave up {}, and can read them now", given_up.join(", "));
        check.report(Subject::GivenUp, check.row_error(what), Cause::Index, Vec::new());
    }
    tell_frames(check, rebuild.lost_frames(), names);
    Ok(())
}

pub fn given_up(applied: &BTreeSet<Version>, known: &BTreeSet<Version>, settled_below: Version) -> BTreeSet<Version> {
    applied.difference(known).filter(|run| **run < settled_below).copied().collect()
}

/// Frames of an arc that is gone as a whole are one finding.
fn tell_frames(check: &Check<'_>, frames: &[(Version, LostFrame)], names: &Names<'_, '_>) {
    let gone = |error: &Error| matches!(error, Error::Arc { damage: Damage::Missing, .. });
    let mut at = frames.iter().peekable();
    while let Some((run, frame)) = at.next() {
        let mut hits = dirs_of(frame, *run, names);
        let whole = gone(&frame.error);
        while let Some((run, more)) = at.next_if(|(_, more)| whole && more.arc == frame.arc && gone(&more.error)) {
            hits.extend(dirs_of(more, *run, names));
        }
        let subject = if whole { Subject::ArcFile(frame.arc) } else { Subject::Catalog(frame.arc, frame.frame) };
        check.report(subject, frame.error.clone(), Cause::Catalog, hits);
    }
}

fn dirs_of(frame: &LostFrame, run: Version, names: &Names<'_, '_>) -> Vec<Hit> {
    let numbers = frame.dirs.iter().flat_map(|(first, count)| (first.0..first.0.saturating_add(*count)).map(Dirno));
    numbers.take(MAX_DIRS as usize).flat_map(|dirno| names.dir_hit(dirno, run, None)).collect()
}

/// Arcs whose frame table the shadow does not have to its end.
pub fn dim_arcs(shadow: &Shadow<'_>, rows: &Snapshot<'_>) -> BTreeSet<ArcSerial> {
    let names: BTreeSet<ArcName> = shadow.rebuild.lost_arcs().iter().map(|(name, _)| *name).collect();
    let mut dim = BTreeSet::new();
    let mut arcs = rows.cursor(ScanTable::Arcs);
    while let Some(scanned) = arcs.take() {
        if let Scanned::Row(row) = scanned
            && let Ok(arc) = row.arc(rows.index())
            && names.contains(&arc.entry.name)
        {
            dim.insert(arc.entry.serial);
        }
    }
    dim
}
