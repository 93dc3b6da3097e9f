//! A commit becomes part of the index.

use crate::backupdir::BackupDir;
use crate::backupdir::arcs::{self, ArcSource};
use crate::error::Result;
use crate::ids::Version;
use crate::index::{ApplyReport, IndexWriter};

/// Applies the commit of one run to the index.
///
/// # Errors
/// `COMMIT_DAMAGED` when its record can't be read, or follows another commit than the last one applied.
pub fn apply(dir: &BackupDir, writer: &mut IndexWriter, run: Version) -> Result<ApplyReport> {
    let (commit, digest) = arcs::read_commit(dir.arcs(), run, dir.keys())?;
    writer.apply(&commit, digest, &mut ArcSource::new(dir.arcs(), dir.keys()))
}
