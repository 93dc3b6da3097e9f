//! Brings index and arcs together: applies commits that the index does not know, and takes up what cut runs have left.
//!
//! Invariants: run under the backup dir's lock; a run counts if and only if its commit arc is there and is its own; a
//! commit is applied only on top of the very commit that it names.

use super::apply::apply;
use super::leftovers::resume;
use crate::backupdir::arcs;
use crate::backupdir::{BackupDir, Survey, What};
use crate::depot;
use crate::error::{Error, Result};
use crate::ids::Version;
use crate::index::{ApplyReport, Index, IndexWriter};
use crate::monitor::Monitor;

/// What `settle` did.
#[derive(Debug)]
pub struct Settled {
    /// Commits that the index did not know, and what of them could not be read.
    pub applied: Vec<(Version, ApplyReport)>,
    /// Leftovers of cut runs.
    pub removed_arcs: usize,
    /// What the index did not list before they were taken up.
    pub survey: Survey,
}

/// Settles what earlier runs left behind.
///
/// # Errors
/// `COMMIT_DAMAGED` when a commit that the index needs is damaged or does not follow the last one it knows; those of
/// `resume`.
pub fn settle(dir: &BackupDir, index: &Index, writer: &mut IndexWriter, monitor: &dyn Monitor) -> Result<Settled> {
    let mut survey = Survey::take(dir, index)?;
    let mut applied = Vec::new();
    for found in &survey.unlisted {
        let run = found.name.version;
        match &found.what {
            What::Commit => {
                let (commit, _) = arcs::read_commit(dir.arcs(), run, dir.keys())?;
                let last = writer.state()?.last_commit;
                if let Some((previous, _)) = commit.previous.filter(|previous| Some(*previous) != last) {
                    let what = format!("{run} follows it, and the index does not know it");
                    return Err(Error::CommitDamaged { run: previous, what });
                }
                // The run that made it may have been killed before it was durable: the index must not be ahead of it.
                depot::sync(dir.own(), arcs::commit_arc(run))?;
                applied.push((run, apply(dir, writer, run)?));
            }
            What::BadCommit(error) => return Err(error.clone()),
            _ => {}
        }
    }
    if !applied.is_empty() {
        survey = Survey::take(dir, index)?;
    }
    let removed_arcs = resume(dir, &survey, index, writer, monitor)?;
    Ok(Settled { applied, removed_arcs, survey })
}
