//! `assay recover`: a new index from the arcs and key.conf alone.
//!
//! Invariants: arcs are only read; the new index replaces the old one by a rename after it is complete, and the
//! old one is kept beside it; what could not be read is named, and everything else is there.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::backup::settle;
use crate::backupdir::{BackupDir, arcs, remove_if_there};
use crate::error::{Error, Result};
use crate::ids::{ArcName, Dirno, Version};
use crate::index::{Index, IndexWriter, LostFrame};
use crate::monitor::{Event, Monitor, Progress};

/// What a recovery found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// All that can be read now.
    pub versions: Vec<Version>,
    /// Catalog frames that could not be read; their directories answer with errors.
    pub lost: Vec<LostDirs>,
    /// Arcs whose frame table could not be read, or not to its end; their (last) blocks answer with errors.
    pub lost_arcs: Vec<(ArcName, Error)>,
    /// Runs whose commit record is damaged: they, and what follows up to the next base catalog, are missing.
    pub lost_runs: Vec<(Version, Error)>,
    /// Arcs above the last commit that belong to no commit: left alone, now and later.
    pub uncommitted_arcs: usize,
    /// Where the old index was put.
    pub old_index: Option<PathBuf>,
}

/// Directories that a damaged catalog frame described.
#[derive(Debug)]
pub struct LostDirs {
    pub version: Version,
    pub frame: LostFrame,
    /// Their paths, as far as other frames name them; at most `MAX_PATHS`.
    pub paths: Vec<Vec<u8>>,
    pub count: u64,
}

/// Paths that are named for one lost frame.
const MAX_PATHS: usize = 1000;

/// Rebuilds the index.
///
/// # Errors
/// When not a single version can be brought back, or the new index can't be written.
pub fn run(dir: &BackupDir, monitor: &dyn Monitor) -> Result<Recovered> {
    let _lock = dir.lock()?;
    if arcs::key_opens_an_arc(dir.path(), dir.keys()) == Some(false) {
        return Err(Error::KeyWrong { path: dir.key_path() });
    }
    // Where index.db is a symlink, the index is made and kept where that leads to.
    let target = Index::target(&dir.index_path())?;
    let new_path = with_suffix(&target, ".new");
    remove_index(&new_path)?;
    Index::create(&new_path, &dir.keys().index_key())?;
    let mut writer = IndexWriter::open(&new_path, &dir.keys().index_key())?;
    let mut recovered = Recovered::default();
    let runs = arcs::runs(dir.path())?;
    if !runs.iter().any(|run| run.committed) && target.exists() {
        let what = "there is no committed run to recover from".into();
        remove_index(&new_path)?;
        return Err(Error::CommitDamaged { run: Version(0), what });
    }
    let last_commit = runs.iter().filter(|run| run.committed).map(|run| run.version).max();
    let mut lost = Vec::new();
    let (mut applied, mut lost_arcs) = (0, 0);
    for (done, run) in runs.iter().enumerate() {
        monitor.progress(Progress { files: done as u64, expected_files: runs.len() as u64, ..Progress::default() });
        if monitor.interrupted() {
            remove_index(&new_path)?;
            return Err(Error::Interrupted);
        }
        writer.reserve_run(run.version)?;
        if !run.committed && last_commit.is_none_or(|last| run.version > last) {
            recovered.uncommitted_arcs += run.arcs.len();
            // Cut, or committed and its commit arc is lost too: nobody can tell, so nothing may be reused or removed.
            lost_arcs += run.arcs.len() as u64;
            continue;
        }
        // After a lost commit record only a base, which stands alone, tells the whole tree again.
        match settle::apply(dir, &mut writer, run.version) {
            Ok(report) => {
                lost.extend(report.lost.into_iter().map(|frame| (run.version, frame)));
                recovered.lost_arcs.extend(report.unknown_arcs);
                applied += 1;
            }
            Err(e @ (Error::CommitDamaged { .. } | Error::Arc { .. })) => {
                monitor.event(Event::Failure { path: run.version.to_string().as_bytes(), error: &e });
                lost_arcs += run.arcs.len() as u64 + 1;
                recovered.lost_runs.push((run.version, e));
            }
            Err(e) => return Err(e),
        }
    }
    if let (0, Some((run, error))) = (applied, recovered.lost_runs.first()) {
        let what = format!("not one version can be brought back; the first is {run}: {error}");
        remove_index(&new_path)?;
        return Err(Error::CommitDamaged { run: *run, what });
    }
    writer.leave_behind(lost_arcs)?;
    writer.checkpoint()?;
    drop(writer);
    let index = Index::open(&new_path, &dir.keys().index_key())?;
    recovered.versions = index.versions()?.into_iter().map(|row| row.version).collect();
    // An arc that was dropped since holds nothing that could be missed.
    let in_use: HashSet<ArcName> = index.arcs()?.into_iter().map(|row| row.entry.name).collect();
    recovered.lost_arcs.retain(|(name, _)| in_use.contains(name));
    recovered.lost = lost.into_iter().map(|(version, frame)| name_dirs(&index, version, frame)).collect();
    drop(index);
    remove_log(&new_path)?;
    recovered.old_index = set_aside(&target)?;
    std::fs::rename(&new_path, &target).map_err(|e| Error::io("rename", &new_path, &e))?;
    crate::backupdir::sync_dir(target.parent().unwrap_or(dir.path()))?;
    Ok(recovered)
}

fn name_dirs(index: &Index, version: Version, frame: LostFrame) -> LostDirs {
    let numbers = frame.dirs.iter().flat_map(|(first, count)| (first.0..first.0.saturating_add(*count)).map(Dirno));
    let paths = numbers.take(MAX_PATHS).filter_map(|dirno| index.path_of_dir(version, dirno).ok()).collect();
    let count = frame.dirs.iter().map(|(_, count)| count).sum();
    LostDirs { version, frame, paths, count }
}

/// Moves the old index out of the way, together with its write-ahead log.
///
/// The index goes first, though readers find none for a moment then: one that opened it after its log was moved would
/// make a new log, which is that of the new index as soon as that has the name.
fn set_aside(old: &Path) -> Result<Option<PathBuf>> {
    if !old.exists() {
        remove_index(old)?;
        return Ok(None);
    }
    let aside = (0..u32::MAX)
        .map(|n| with_suffix(old, &if n == 0 { ".bad".into() } else { format!(".bad{n}") }))
        .find(|path| !path.exists())
        .unwrap_or_else(|| with_suffix(old, ".bad"));
    for suffix in ["", "-wal"] {
        let (from, to) = (with_suffix(old, suffix), with_suffix(&aside, suffix));
        match std::fs::rename(&from, &to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("rename", from, &e)),
            _ => {}
        }
    }
    remove_index(old)?;
    Ok(Some(aside))
}

fn remove_index(path: &Path) -> Result<()> {
    remove_if_there(&with_suffix(path, ""))?;
    remove_log(path)
}

/// Removes what SQLite keeps beside a database that is closed and checkpointed.
fn remove_log(path: &Path) -> Result<()> {
    ["-wal", "-shm", "-journal"].iter().try_for_each(|suffix| remove_if_there(&with_suffix(path, suffix)))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
