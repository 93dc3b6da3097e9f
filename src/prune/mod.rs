//! What takes something away: versions (`rm`, `retain`), paths (`rm`) and the room that nobody needs any more (`pack`).
//!
//! Invariants: everything is written by a `run`, so that it happens whole or not at all; what must stay is looked up under
//! the lock, in the index that the run builds on; whatever the index can't tell to be dead counts as needed, or ends the
//! run.

pub mod pack;
pub mod paths;
pub mod rules;
pub mod versions;

use std::collections::BTreeSet;

use crate::backupdir::{BackupDir, Lock, arcs};
use crate::catalog::{ArcRole, Loss};
use crate::error::{Error, Result};
use crate::ids::ArcSerial;
use crate::index::{ApplyReport, Gaps, Index, Subtrees, VersionSet};
use crate::monitor::{Event, Monitor};
use crate::run::{Applied, LeftToDo, Run};

/// Do it, or only say what would be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Do,
    DryRun,
}

/// What is the last of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    On,
    /// It may go too.
    Off,
}

/// Only where the loss of something that tells names was accepted may the index lack some: lost blocks take no guard away.
fn gaps(index: &Index) -> Result<Gaps> {
    let data: BTreeSet<ArcSerial> = index
        .all_arcs()?
        .iter()
        .map(|arc| &arc.entry)
        .filter(|arc| arc.role == ArcRole::Data)
        .map(|arc| arc.serial)
        .collect();
    let of_blocks = |loss: &Loss| match loss {
        Loss::Run(_) => false,
        Loss::Arc { serial, .. } | Loss::Frame { serial, .. } | Loss::Shell(serial) => data.contains(serial),
    };
    Ok(if index.losses()?.iter().all(|(loss, _)| of_blocks(loss)) { Gaps::Refuse } else { Gaps::Accepted })
}

/// What `pack` could give back, bytes, if only these versions were needed, without some paths. None: the index can't tell.
pub fn free_bytes(
    index: &Index,
    needed: &VersionSet,
    without: &Subtrees,
    stop: &dyn Fn() -> bool,
) -> Result<Option<u64>> {
    let counted = index.live(needed, without, gaps(index)?, stop).and_then(|live| index.arc_uses(&live));
    match counted {
        Ok(uses) => Ok(Some(uses.iter().map(|arc| arc.free_bytes()).sum())),
        Err(Error::DirectoryLost { .. } | Error::ExtentsLost { .. } | Error::IndexRow { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Settles what earlier runs left, for who looks at the index before a run: a commit that it does not know yet is applied.
///
/// # Errors
/// Those of beginning a run.
pub fn settle(dir: &BackupDir, monitor: &dyn Monitor) -> Result<()> {
    let lock = dir.lock()?;
    begin(dir, &lock, monitor).map(drop)
}

/// Begins a run, and tells what it settled.
fn begin<'a>(dir: &'a BackupDir, lock: &'a Lock, monitor: &dyn Monitor) -> Result<Run<'a>> {
    let run = Run::begin(dir, lock, monitor)?;
    // What is removed is removed by a commit on top of the last one: without that the chain would end before it.
    if let Some((last, digest)) = run.index().state()?.last_commit {
        let (_, found) = arcs::read_commit(dir.arcs(), last, dir.keys())?;
        if found != digest {
            return Err(Error::CommitDamaged { run: last, what: "it is not the one that the index knows".into() });
        }
    }
    let settled = run.settled();
    settled.applied.iter().for_each(|(_, report)| tell(report, monitor));
    let warn = |what: String| monitor.event(Event::Warning { path: b"", what });
    settled.survey.strays(dir).for_each(|stray| warn(stray.to_string()));
    Ok(run)
}

fn tell(report: &ApplyReport, monitor: &dyn Monitor) {
    let errors = report.lost.iter().map(|lost| &lost.error).chain(report.unknown_arcs.iter().map(|(_, error)| error));
    errors.for_each(|error| monitor.event(Event::Failure { path: b"", error }));
}

/// Tells what of an ended run failed; what is left to do for the next.
fn told(applied: Applied, monitor: &dyn Monitor) -> Option<LeftToDo> {
    let Applied { report, left, not_removed, .. } = applied;
    tell(&report, monitor);
    if let Some((_, error)) = &left {
        monitor.event(Event::Failure { path: b"", error });
    }
    if let Some(error) = not_removed {
        let what = format!("arcs that hold nothing that is used were not removed: {error}");
        monitor.event(Event::Warning { path: b"", what });
    }
    left.map(|(left, _)| left)
}
