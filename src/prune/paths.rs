//! Paths go: out of all versions, in one commit.
//!
//! Invariants: all that is named goes, or nothing; since no version shows a path afterwards, it goes only with protection
//! off.

use super::{Mode, Protection, begin, free_bytes, told};
use crate::backupdir::BackupDir;
use crate::error::{Error, Result};
use crate::ids::Version;
use crate::index::{Index, Subtrees};
use crate::monitor::Monitor;
use crate::run::{Contents, LeftToDo, Whole, records};
use crate::text::shown;

/// Which paths go.
pub struct Request<'a> {
    /// Absolute, as versions hold them.
    pub paths: &'a [Vec<u8>],
    pub protection: Protection,
    pub mode: Mode,
}

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The versions that showed one of the paths, oldest first.
    pub versions: Vec<Version>,
    /// Names with all that is below them; one counts again each time it stood for something new.
    pub entries: u64,
    /// The newest version showed one of them: what is still in the source is saved again by the next backup.
    pub in_newest: bool,
    /// What `pack` could give back afterwards; None: the index can't tell.
    pub free_bytes: Option<u64>,
    pub left_to_do: Option<LeftToDo>,
}

/// Removes paths from all versions.
///
/// # Errors
/// `NO_PATH` for one that no version has, `PROTECTED`; those of a run.
pub fn remove(dir: &BackupDir, request: &Request<'_>, monitor: &dyn Monitor) -> Result<Outcome> {
    if request.mode == Mode::DryRun {
        return Ok(plan(&dir.open_index()?, request, monitor)?.0);
    }
    let lock = dir.lock()?;
    let run = begin(dir, &lock, monitor)?;
    let (mut outcome, trees) = plan(run.index(), request, monitor)?;
    if request.protection == Protection::On {
        let paths: Vec<String> = request.paths.iter().take(5).map(|path| shown(path).to_string()).collect();
        let more = request.paths.len() - paths.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let what = format!("no version would have {}{more} any more", paths.join(", "));
        return Err(Error::Protected { what });
    }
    let mut reserved = run.reserve()?;
    let roots = reserved.roots_without(&trees.tops)?;
    let (committed, ()) = reserved.write(Whole::Remove, |out| {
        // Twice: a lost frame must not bring back what was removed.
        let mut catalog = Vec::new();
        for _ in 0..2 {
            catalog.extend(records::records(out, trees.records().map(Ok))?);
        }
        let arcs = out.finish()?;
        if monitor.interrupted() {
            return Err(Error::Interrupted);
        }
        Ok((Contents { arcs, catalog, roots, version: None }, ()))
    })?;
    outcome.left_to_do = told(committed.apply(), monitor);
    Ok(outcome)
}

fn plan(index: &Index, request: &Request<'_>, monitor: &dyn Monitor) -> Result<(Outcome, Subtrees)> {
    let stop = || monitor.interrupted();
    let mut names = Vec::new();
    for path in request.paths {
        names.extend(names_of(index, path)?);
    }
    let trees = index.subtrees(names, &stop)?;
    let newest = index.newest()?.map(|row| row.version);
    let outcome = Outcome {
        versions: trees.shown_in.iter().copied().collect(),
        entries: trees.intervals,
        in_newest: newest.is_some_and(|newest| trees.shown_in.contains(&newest)),
        free_bytes: free_bytes(index, &index.needed()?, &trees, &stop)?,
        left_to_do: None,
    };
    Ok((outcome, trees))
}

/// The names that a path has in any version that is known, shown or not.
///
/// # Errors
/// `NO_PATH`; `USAGE` for the root.
pub fn names_of(index: &Index, path: &[u8]) -> Result<Vec<crate::index::Name>> {
    let names = index.names_at(path)?;
    if path.iter().all(|byte| *byte == b'/') {
        return Err(Error::Usage("all of a version is no path in it: -r removes versions".into()));
    }
    match names.is_empty() {
        true => {
            let newest = index.newest_ever()?.map_or(Version(0), |row| row.version);
            Err(Error::NoPath { path: path.to_vec(), version: newest })
        }
        false => Ok(names),
    }
}
