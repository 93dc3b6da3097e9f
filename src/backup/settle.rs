//! Brings index and arcs together: applies commits that the index does not know, clears away what a cut run left.
//!
//! Invariants: run under the backup dir's lock; a run counts if and only if its commit arc is there; only arcs of
//! runs without one are removed; a commit is applied only on top of the very commit that it names.

use crate::backupdir::BackupDir;
use crate::backupdir::arcs::{self, ArcSource};
use crate::error::{Error, Result};
use crate::ids::{ArcName, Version};
use crate::index::{ApplyReport, Index, IndexWriter};
use crate::own::OwnDir;

/// What `settle` did.
#[derive(Debug)]
pub struct Settled {
    /// Commits that the index did not know, and what of them could not be read.
    pub applied: Vec<(Version, ApplyReport)>,
    pub removed_arcs: usize,
    /// First number that no run has had.
    pub next_run: Version,
}

/// Settles what earlier runs left behind.
///
/// # Errors
/// `COMMIT_DAMAGED` when a commit that the index needs is damaged or does not follow the last one it knows.
pub fn settle(dir: &BackupDir, index: &Index, writer: &mut IndexWriter) -> Result<Settled> {
    let state = index.state()?;
    let known = state.last_commit;
    let mut settled = Settled { applied: Vec::new(), removed_arcs: 0, next_run: state.next_run };
    let runs = arcs::runs(dir.own())?;
    // A run that was cut is cleared away before the next one commits, so only one above all commits can be.
    let last_commit = runs.iter().filter(|run| run.committed).map(|run| run.version).max();
    for run in runs {
        settled.next_run = settled.next_run.max(Version(run.version.0 + 1));
        if known.is_some_and(|(last, _)| run.version <= last) {
            continue;
        }
        if run.version < state.settled_below {
            // A recovery has told that it is lost, and that its arcs are left alone.
        } else if !run.committed && last_commit.is_none_or(|last| run.version > last) {
            settled.removed_arcs += run.arcs.len();
            remove(dir.own(), &run.arcs)?;
        } else if !run.committed {
            let what = format!("{} is missing", ArcName { version: run.version, number: arcs::COMMIT_NUMBER });
            return Err(Error::CommitDamaged { run: run.version, what });
        } else {
            // The run that made it may have been killed before it was durable: the index must not be ahead of it.
            arcs::sync_commit(dir.own(), run.version)?;
            let report = apply(dir, writer, run.version)?;
            settled.applied.push((run.version, report));
        }
    }
    remove(dir.own(), &[])?;
    if settled.next_run > Version::MAX {
        return Err(Error::Unsupported { path: dir.path().into(), what: "too many runs".into() });
    }
    Ok(settled)
}

/// Applies the commit of one run to the index.
///
/// # Errors
/// `COMMIT_DAMAGED` when its record can't be read, or follows another commit than the last one applied.
pub fn apply(dir: &BackupDir, writer: &mut IndexWriter, run: Version) -> Result<ApplyReport> {
    let (commit, digest) = arcs::read_commit(dir.own(), run, dir.keys())?;
    writer.apply(&commit, digest, &mut ArcSource::new(dir.own(), dir.keys()))
}

fn remove(dir: &OwnDir, names: &[crate::ids::ArcName]) -> Result<()> {
    arcs::remove_leftovers(dir, names)
}
