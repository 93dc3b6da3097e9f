//! What runs that were cut have left: whole arcs of blocks are used again, all else is removed.
//!
//! Invariants: only what is proven to be a leftover is touched (`backupdir::Survey`); every byte of an arc is verified
//! before a commit names it; the commit is one without a version, under the burned number of the run that wrote the
//! arcs, so that no object is written or named twice; what the next version then does not use it drops.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::apply::apply;
use crate::backupdir::arcs::{self, COMMIT_NUMBER};
use crate::backupdir::{BackupDir, Survey, Unlisted, What};
use crate::catalog::{ArcEntry, ArcRole, Commit, Loss};
use crate::depot;
use crate::error::{Error, Result};
use crate::fetch::{self, ArcFile};
use crate::ids::{ArcName, ArcSerial};
use crate::index::{Index, IndexWriter, OpenRun};
use crate::monitor::{Monitor, Progress};
use crate::parity;

/// What becomes of the whole arcs of a cut run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// They stay for the next backup.
    Keep,
    /// They go too: there is no room for them.
    Remove,
}

/// Clears away what is proven to be left by cut runs and by arcs that were dropped, and commits the blocks of whole
/// arcs. Returns how many arcs were removed.
///
/// # Errors
/// `INTERRUPTED`, and what keeps files from being removed or the commit from being written; the next run goes on.
pub(super) fn resume(
    dir: &BackupDir,
    survey: &Survey,
    index: &Index,
    writer: &mut IndexWriter,
    monitor: &dyn Monitor,
) -> Result<usize> {
    let mut removed = clear_dropped(dir, survey, index)?;
    let mut runs: BTreeMap<_, (OpenRun, Vec<&Unlisted>)> = BTreeMap::new();
    for found in &survey.unlisted {
        if let What::Leftover(run) = found.what {
            runs.entry(run.version).or_insert((run, Vec::new())).1.push(found);
        }
    }
    for (run, left) in runs.into_values() {
        let whole: Vec<ArcName> = left.iter().filter(|found| is_whole(dir, found)).map(|found| found.name).collect();
        let mut proven = prove(dir, &whole, monitor)?;
        let names: BTreeSet<ArcName> = proven.iter().map(|entry| entry.name).collect();
        removed += remove(dir, left.into_iter().filter(|found| found.tmp || !names.contains(&found.name)))?;
        // What stands under the temporary name by now is nobody's to remove: the arcs only cost their room.
        if !proven.is_empty() && !arcs::is_being_committed(dir.own(), run.version) {
            let state = writer.state()?;
            let mut next_serial = state.next_serial;
            for entry in &mut proven {
                entry.serial = ArcSerial(next_serial);
                next_serial += 1;
            }
            dir.own().sync()?;
            let commit = Commit {
                run: run.version,
                run_id: run.id,
                previous: state.last_commit,
                version: None,
                roots: Vec::new(),
                base: false,
                arcs: proven,
                catalog: Vec::new(),
                next_serial,
                next_logid: state.next_logid,
                next_dirno: state.next_dirno,
            };
            arcs::write_commit(dir.own(), dir.keys(), &commit)?;
            apply(dir, writer, run.version)?;
        }
    }
    Ok(removed)
}

/// Removes the files of arcs that a commit has just dropped.
pub(super) fn remove_dropped(dir: &BackupDir, index: &Index) -> Result<()> {
    clear_dropped(dir, &Survey::take(dir, index)?, index).map(|_| ())
}

/// An arc that the index calls dropped goes only while all is there that makes it dispensable. Where arcs are older than the
/// index (a snapshot was put back), or what was written instead of it is gone, it may be all that is left of its blocks.
fn clear_dropped(dir: &BackupDir, survey: &Survey, index: &Index) -> Result<usize> {
    let dropped = || survey.unlisted.iter().filter(|found| matches!(found.what, What::Dropped));
    if dropped().next().is_none() || !nothing_is_missing(dir, index)? {
        return Ok(0);
    }
    remove(dir, dropped())
}

/// All that the index lists is there, but for what was accepted as lost, and its last commit is the one that it knows.
fn nothing_is_missing(dir: &BackupDir, index: &Index) -> Result<bool> {
    let present: BTreeSet<ArcName> = dir.arcs().list()?.into_iter().collect();
    let lost: Vec<Loss> = index.losses()?.into_iter().map(|(loss, _)| loss).collect();
    let is_lost = |serial: ArcSerial| lost.contains(&Loss::Arc { serial, from: 0 });
    let arcs = index.arcs()?.into_iter().all(|row| present.contains(&row.entry.name) || is_lost(row.entry.serial));
    let mut runs = index.known_runs()?.into_iter();
    let runs = runs.all(|run| present.contains(&arcs::commit_arc(run)) || lost.contains(&Loss::Run(run)));
    let last = match index.state()?.last_commit {
        Some((run, digest)) => arcs::read_commit(dir.arcs(), run, dir.keys()).is_ok_and(|(_, found)| found == digest),
        None => false,
    };
    Ok(arcs && runs && last)
}

/// Removes what a run that failed has left, but for what the next one can use.
pub(super) fn clear_failed_run(dir: &BackupDir, index: &Index, run: OpenRun, whole: Whole) -> Result<()> {
    let survey = Survey::take(dir, index)?;
    let of_run = |found: &&Unlisted| matches!(found.what, What::Leftover(of) if of == run);
    let goes = |found: &&Unlisted| whole == Whole::Remove || !is_whole(dir, found);
    remove(dir, survey.unlisted.iter().filter(of_run).filter(goes)).map(|_| ())
}

fn remove<'f>(dir: &BackupDir, files: impl Iterator<Item = &'f Unlisted>) -> Result<usize> {
    let mut removed = 0;
    for found in files {
        dir.own().remove_if_there(found.file_name())?;
        if !found.tmp {
            parity::remove(dir.own(), found.name)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// A closed arc of blocks, by its ends.
fn is_whole(dir: &BackupDir, found: &Unlisted) -> bool {
    let closed = |arc: &ArcFile| arc.role() == ArcRole::Data && arc.is_whole();
    let open = || ArcFile::open(dir.arcs(), found.name, dir.keys());
    !found.tmp && found.name.number != COMMIT_NUMBER && open().is_ok_and(|arc| closed(&arc))
}

/// Verifies arcs to their last byte, on all cores; those that are good, by name, still without serials.
fn prove(dir: &BackupDir, names: &[ArcName], monitor: &dyn Monitor) -> Result<Vec<ArcEntry>> {
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(names.len());
    let (next, done_bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let work = || -> Result<Vec<ArcEntry>> {
        let mut good = Vec::new();
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let advance = |bytes: u64| {
                let bytes = done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
                monitor.progress(Progress { bytes, ..Progress::default() });
                !monitor.interrupted()
            };
            let durable = depot::sync(dir.own(), *name);
            match durable.and_then(|()| fetch::prove(dir.arcs(), *name, dir.keys(), advance)) {
                Ok(entry) => good.push(entry),
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                // It was never committed: nothing is lost but what is stored once more.
                Err(error) => log::debug!("{name} is not used again: {error}"),
            }
        }
        Ok(good)
    };
    let mut good = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            good.extend(thread.join().map_err(|_| Error::SelfCheck { what: "a thread died".into() })??);
        }
        Ok::<_, Error>(())
    })?;
    good.sort_by_key(|entry| entry.name);
    Ok(good)
}
