//! An index that follows what its arcs tell, where other machines write them.
//!
//! Invariants: the arcs are only read; a commit is applied only on top of the very commit that it names, and where none
//! follows any more the index is made anew, whole, before it takes the old one's place; who finds another at it lets it work.

use crate::backupdir::BackupDir;
use crate::backupdir::arcs;
use crate::error::{Error, Result};
use crate::index::{Index, IndexWriter};
use crate::monitor::Monitor;
use crate::recover::{self, OnLoss, Recovered};
use crate::run;

/// What became of the index.
#[derive(Debug)]
pub enum Followed {
    /// It has all that the arcs tell.
    Current,
    /// What it lacked was added.
    Added,
    /// It was made anew.
    Made(Box<Recovered>),
    /// Another process is at it.
    Busy,
}

/// Brings the index of `dir` up to its arcs.
///
/// # Errors
/// What keeps the arcs from being read; `HISTORY_CHANGED` where the last commit that the index has is gone;
/// `COMMIT_DAMAGED` where there is no commit that can be read; `INDEX_*`.
pub fn follow(dir: &BackupDir, monitor: &dyn Monitor) -> Result<Followed> {
    match dir.has_index().then(|| add(dir, monitor)) {
        Some(Err(Error::Locked { .. })) => Ok(Followed::Busy),
        // What the index has is not what is told any more, or it can't be read.
        None | Some(Err(Error::CommitDamaged { .. } | Error::IndexDamaged { .. } | Error::IndexRow { .. })) => {
            anew(dir, monitor)
        }
        Some(added) => added,
    }
}

/// Makes the index of `dir` anew, whatever it has.
///
/// # Errors
/// As `follow`.
pub fn anew(dir: &BackupDir, monitor: &dyn Monitor) -> Result<Followed> {
    match recover::run(dir, OnLoss::Report, monitor) {
        Err(Error::Locked { .. }) => Ok(Followed::Busy),
        made => {
            let made = made?;
            // What it knew is told by the arcs.
            made.old_index.as_deref().map_or(Ok(()), recover::remove_index)?;
            Ok(Followed::Made(Box::new(made)))
        }
    }
}

fn add(dir: &BackupDir, monitor: &dyn Monitor) -> Result<Followed> {
    let lock = dir.lock()?;
    let index = dir.open_index()?;
    add_to(dir, &index, || dir.open_index_writer(&lock), monitor)
}

/// Adds to an index of `dir`, wherever it is, what it lacks: by a writer that is only opened if there is anything.
///
/// # Errors
/// As `follow`; `COMMIT_DAMAGED` also where what follows is not told any more.
pub fn add_to(
    dir: &BackupDir,
    index: &Index,
    writer: impl FnOnce() -> Result<IndexWriter>,
    monitor: &dyn Monitor,
) -> Result<Followed> {
    let runs = arcs::runs(dir.arcs())?;
    let last = index.state()?.last_commit.map(|(run, _)| run);
    if let Some(run) = last
        && !runs.iter().any(|known| known.version == run && known.committed)
        // A listing may be stale.
        && let Err(error) = dir.arcs().len_bytes(arcs::commit_arc(run))
    {
        if !error.is_damage() {
            return Err(error);
        }
        let what = format!("{run} was at {}, and is not there any more", dir.arcs().name());
        return Err(Error::HistoryChanged { path: dir.path().to_path_buf(), what });
    }
    let fresh = runs.iter().filter(|run| run.committed && last.is_none_or(|last| run.version > last));
    let fresh: Vec<&arcs::Run> = fresh.collect();
    if fresh.is_empty() {
        return Ok(Followed::Current);
    }
    let mut writer = writer()?;
    for some in fresh.chunks(recover::RUNS_AHEAD) {
        recover::ahead(dir, some);
        for run in some {
            if monitor.interrupted() {
                return Err(Error::Interrupted);
            }
            run::apply(dir, &mut writer, run.version)?;
        }
    }
    writer.checkpoint()?;
    Ok(Followed::Added)
}
