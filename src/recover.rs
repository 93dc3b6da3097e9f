//! `assay recover`: a new index from the arcs and key.conf alone.
//!
//! Invariants: arcs are only read; the new index replaces the old one by a rename after it is complete, and the
//! old one is kept beside it; what could not be read is named, and everything else is there.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backupdir::arcs::{self, ArcSource};
use crate::backupdir::{Accepted, BackupDir, Claim, What, remove_if_there};
use crate::catalog::{ArcEntry, ArcRole, Commit, Loss};
use crate::depot::Reach;
use crate::error::{Error, Place, Result};
use crate::ids::{ArcName, ArcSerial, CopyId, Dirno, Version};
use crate::index::{Index, IndexWriter, LostFrame, State};
use crate::ledger::Ledger;
use crate::monitor::{Event, Monitor, Progress};
use crate::tree::{Tree, View};

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
    /// Runs that the old index knew and of which no commit is there any more, as after a rollback of the storage.
    pub missing_runs: Vec<Version>,
    /// Versions whose root directory, as the catalogs tell it, is not the one that their commit record binds.
    pub unproven: Vec<(Version, Error)>,
    /// Files with names of arcs that are none of this backup dir, or not those.
    pub strays: Vec<Error>,
    /// All of this that is gone, and what of it nobody has accepted yet.
    pub losses: Vec<Loss>,
    pub open_losses: usize,
    /// Losses that were accepted, now or before, as text.
    pub accepted: Vec<String>,
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

/// Runs whose commits, footers and catalogs are asked for together, where they are far.
pub(crate) const RUNS_AHEAD: usize = 32;
/// Footers that are asked for with them, at most.
const FOOTERS_AHEAD: usize = 64;
/// A catalog arc that is no longer is fetched as a whole.
const WHOLE_CATALOG_BYTES: u64 = 4 << 20;
/// Paths that are named for one lost frame.
const MAX_PATHS: usize = 1000;

/// What to do about what is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLoss {
    Report,
    /// Note it, with the damage that the ledger knows of, so that it is not told again.
    Accept,
}

/// Rebuilds the index.
///
/// # Errors
/// When not a single version can be brought back, or the new index can't be written.
pub fn run(dir: &BackupDir, on_loss: OnLoss, monitor: &dyn Monitor) -> Result<Recovered> {
    let _lock = dir.lock()?;
    let new_path = new_index_path(dir)?;
    let made = build(dir, &new_path, monitor).and_then(|recovered| match on_loss {
        OnLoss::Report => Ok(recovered),
        OnLoss::Accept => accept(dir, &new_path, recovered),
    });
    let mut recovered = match made {
        Ok(recovered) => recovered,
        Err(e) => {
            remove_index(&new_path)?;
            return Err(e);
        }
    };
    recovered.old_index = replace_index(dir, &new_path)?;
    Ok(recovered)
}

/// Notes all that is gone as accepted, in the new index.
fn accept(dir: &BackupDir, path: &Path, mut recovered: Recovered) -> Result<Recovered> {
    let key = dir.keys().index_key();
    let index = Index::open(path, &key)?;
    let known: HashSet<ArcSerial> = index.arcs()?.iter().map(|row| row.entry.serial).collect();
    let (ledger, _) = Ledger::load(dir.own(), dir.keys(), &index.commits()?)?;
    drop(index);
    let damage =
        ledger.open_damage().iter().filter(|damage| damage.copy == CopyId::LOCAL && known.contains(&damage.arc));
    recovered.losses.extend(damage.map(|damage| match damage.frame {
        Some(frame) => Loss::Frame { serial: damage.arc, frame },
        None => Loss::Shell(damage.arc),
    }));
    let mut writer = IndexWriter::open(path, &key)?;
    writer.accept(&recovered.losses)?;
    writer.checkpoint()?;
    drop(writer);
    recovered.accepted = Accepted::of(&Index::open(path, &key)?)?.texts();
    recovered.open_losses = 0;
    Ok(recovered)
}

/// Where a new index is made: beside the old one, which may be where a symlink leads to.
pub fn new_index_path(dir: &BackupDir) -> Result<PathBuf> {
    Ok(with_suffix(&dir.index_to_replace()?, ".new"))
}

/// Makes a whole new index at `path`; nothing else is changed.
pub fn build(dir: &BackupDir, path: &Path, monitor: &dyn Monitor) -> Result<Recovered> {
    if arcs::key_opens_an_arc(dir.arcs(), dir.keys()) == Some(false) {
        return Err(Error::KeyWrong { path: dir.key_path() });
    }
    let mut rebuild = Rebuild::begin(dir, path)?;
    if !arcs::runs(dir.arcs())?.iter().any(|run| run.committed) && Index::target(&dir.index_path())?.exists() {
        let what = "there is no committed run to recover from".into();
        return Err(Error::CommitDamaged { run: Version(0), what });
    }
    rebuild.go_on(None, monitor)?;
    let before = dir.open_index().and_then(|index| Before::of(&index)).ok();
    rebuild.finish(before)
}

/// What the index before knew, if it can be read.
pub struct Before {
    state: State,
    runs: BTreeSet<Version>,
    accepted: Vec<Loss>,
}

impl Before {
    fn of(index: &Index) -> Result<Before> {
        let accepted = index.losses()?.into_iter().map(|(loss, _)| loss).collect();
        Ok(Before { state: index.state()?, runs: index.known_runs()?, accepted })
    }
}

/// Gives a finished new index its place; the old one is kept beside it, and its path returned.
pub fn replace_index(dir: &BackupDir, new_path: &Path) -> Result<Option<PathBuf>> {
    remove_log(new_path)?;
    let target = Index::target(&dir.index_path())?;
    let old_index = set_aside(&target)?;
    std::fs::rename(new_path, &target).map_err(|e| Error::io("rename", new_path, &e))?;
    crate::backupdir::sync_dir(target.parent().unwrap_or(dir.path()))?;
    Ok(old_index)
}

/// A new index that is being made from the arcs, run by run.
pub struct Rebuild<'a> {
    dir: &'a BackupDir,
    path: PathBuf,
    writer: IndexWriter,
    recovered: Recovered,
    lost: Vec<(Version, LostFrame)>,
    /// Runs that were applied.
    applied: BTreeSet<Version>,
    /// Runs whose own commit record can't be read; other lost runs only follow one of them.
    unreadable: BTreeSet<Version>,
    /// First run that was not looked at yet.
    next: Version,
    lost_arcs: u64,
}

impl<'a> Rebuild<'a> {
    /// Makes an empty index at `path`, and replaces one that is there.
    pub fn begin(dir: &'a BackupDir, path: &Path) -> Result<Rebuild<'a>> {
        remove_index(path)?;
        Index::create(path, &dir.keys().index_key())?;
        Ok(Rebuild {
            dir,
            path: path.to_path_buf(),
            writer: IndexWriter::open(path, &dir.keys().index_key())?,
            recovered: Recovered::default(),
            lost: Vec::new(),
            applied: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            next: Version(0),
            lost_arcs: 0,
        })
    }

    /// For an index that is thrown away soon: nothing is made durable.
    pub fn without_sync(self) -> Result<Rebuild<'a>> {
        Ok(Rebuild { writer: self.writer.without_sync()?, ..self })
    }

    /// Applies the runs that were not looked at yet. `last` is a run that is known to be the last committed one; None:
    /// that is told by the arcs.
    pub fn go_on(&mut self, last: Option<Version>, monitor: &dyn Monitor) -> Result<()> {
        let runs = arcs::runs(self.dir.arcs())?;
        let is_committed = |run: &&arcs::Run| run.committed && Claim::of(self.dir, run).committed;
        let last_commit = last.or_else(|| runs.iter().rev().find(is_committed).map(|run| run.version));
        let fresh = |run: &&arcs::Run| run.version >= self.next && last.is_none_or(|last| run.version <= last);
        let fresh: Vec<&arcs::Run> = runs.iter().filter(fresh).collect();
        for (done, run) in fresh.iter().enumerate() {
            if done % RUNS_AHEAD == 0 {
                let next = fresh.get(done..).unwrap_or_default();
                ahead(self.dir, next.get(..RUNS_AHEAD).unwrap_or(next));
            }
            monitor.progress(Progress {
                files: done as u64,
                expected_files: fresh.len() as u64,
                ..Progress::default()
            });
            if monitor.interrupted() {
                return Err(Error::Interrupted);
            }
            self.next = Version(run.version.0 + 1);
            let read = arcs::read_commit(self.dir.arcs(), run.version, self.dir.keys());
            if let Err(error) = &read {
                if !error.is_damage() {
                    return Err(error.clone());
                }
                let claim = Claim::of(self.dir, run);
                // Nobody can tell what an arc is that can't be opened.
                let unread = claim.strays.iter().find_map(|stray| match &stray.what {
                    What::Unreadable(error) if !error.is_damage() => Some(error.clone()),
                    _ => None,
                });
                if let Some(error) = unread {
                    return Err(error);
                }
                self.recovered.strays.extend(claim.strays.iter().filter_map(|stray| stray.stray(self.dir)));
                if !claim.committed && claim.arcs == 0 {
                    continue;
                }
                if !claim.committed && last_commit.is_none_or(|last| run.version > last) {
                    self.writer.pass_over(run.version)?;
                    self.recovered.uncommitted_arcs += claim.arcs;
                    // Cut, or committed and its commit arc is lost too: nobody can tell, so nothing may be reused or
                    // removed.
                    self.lost_arcs += claim.arcs as u64;
                    continue;
                }
                self.unreadable.insert(run.version);
            }
            self.writer.pass_over(run.version)?;
            self.apply(run, read, monitor)?;
        }
        Ok(())
    }

    /// After a lost commit record only a base, which stands alone, tells the whole tree again.
    fn apply(&mut self, run: &arcs::Run, read: Result<(Commit, [u8; 32])>, monitor: &dyn Monitor) -> Result<()> {
        let applied = read.and_then(|(commit, digest)| {
            self.writer.apply(&commit, digest, &mut ArcSource::new(self.dir.arcs(), self.dir.keys()))
        });
        match applied {
            Ok(report) => {
                self.lost.extend(report.lost.into_iter().map(|frame| (run.version, frame)));
                self.recovered.lost_arcs.extend(report.unknown_arcs);
                self.applied.insert(run.version);
                Ok(())
            }
            Err(e @ (Error::CommitDamaged { .. } | Error::Arc { .. })) => {
                monitor.event(Event::Failure { path: run.version.to_string().as_bytes(), error: &e });
                self.lost_arcs += run.arcs.len() as u64 + 1;
                self.recovered.lost_runs.push((run.version, e));
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    pub fn applied(&self) -> &BTreeSet<Version> {
        &self.applied
    }

    /// Runs whose own commit record can't be read, and why.
    pub fn unreadable(&self) -> impl Iterator<Item = &(Version, Error)> {
        self.recovered.lost_runs.iter().filter(|(run, _)| self.unreadable.contains(run))
    }

    /// Runs that could not be applied.
    pub fn lost_runs(&self) -> &[(Version, Error)] {
        &self.recovered.lost_runs
    }

    pub fn lost_frames(&self) -> &[(Version, LostFrame)] {
        &self.lost
    }

    pub fn lost_arcs(&self) -> &[(ArcName, Error)] {
        &self.recovered.lost_arcs
    }

    /// Moves what was applied into the file, for readers of it, and gives memory back.
    pub fn rest(&mut self) -> Result<()> {
        self.writer.checkpoint()?;
        self.writer.release_memory()
    }

    /// Ends it: the next run goes on without what could not be applied.
    ///
    /// # Errors
    /// `COMMIT_DAMAGED` when not one run could be applied.
    pub fn finish(self, before: Option<Before>) -> Result<Recovered> {
        let Rebuild { dir, path, mut writer, mut recovered, lost, applied, lost_arcs, .. } = self;
        if let (true, Some((run, error))) = (applied.is_empty(), recovered.lost_runs.first()) {
            let what = format!("not one version can be brought back; the first is {run}: {error}");
            return Err(Error::CommitDamaged { run: *run, what });
        }
        writer.leave_behind(lost_arcs, before.as_ref().map(|before| &before.state))?;
        writer.accept(before.as_ref().map_or(&[], |before| &before.accepted))?;
        writer.checkpoint()?;
        drop(writer);
        let index = Arc::new(Index::open(&path, &dir.keys().index_key())?);
        recovered.versions = index.versions()?.into_iter().map(|row| row.version).collect();
        recovered.unproven = unproven(dir, &index, &recovered.versions)?;
        if let Some(before) = before {
            let lost = |run: &Version| recovered.lost_runs.iter().any(|(lost, _)| lost == run);
            let now = index.known_runs()?;
            recovered.missing_runs = before.runs.difference(&now).filter(|run| !lost(run)).copied().collect();
        }
        // An arc that was dropped since holds nothing that could be missed.
        let in_use: HashSet<ArcName> = index.arcs()?.into_iter().map(|row| row.entry.name).collect();
        recovered.lost_arcs.retain(|(name, _)| in_use.contains(name));
        recovered.lost = lost.into_iter().map(|(version, frame)| name_dirs(&index, version, frame)).collect();
        recovered.losses = losses(dir, &index, &recovered)?;
        let accepted = Accepted::of(&index)?;
        recovered.open_losses = recovered.losses.iter().filter(|loss| !accepted.holds(loss)).count();
        recovered.accepted = accepted.texts();
        Ok(recovered)
    }
}

/// What the next runs need, where it is far: their commits, then what these say of footers and catalogs.
pub(crate) fn ahead(dir: &BackupDir, runs: &[&arcs::Run]) {
    let depot = dir.arcs();
    if depot.reach() == Reach::Near {
        return;
    }
    let committed: Vec<Version> = runs.iter().filter(|run| run.committed).map(|run| run.version).collect();
    let commits: Vec<_> = committed.iter().map(|run| (arcs::commit_arc(*run), 0..u64::MAX)).collect();
    depot.ahead(&commits);
    let (mut catalogs, mut footers) = (Vec::new(), Vec::new());
    for run in committed {
        // One that can't be read is told of in its turn.
        let Ok((commit, _)) = arcs::read_commit(depot, run, dir.keys()) else { continue };
        for arc in commit.arcs.iter().filter(|arc| arc.name.version == run) {
            match arc.role {
                ArcRole::Catalog if arc.arc_bytes <= WHOLE_CATALOG_BYTES => catalogs.push((arc.name, 0..arc.arc_bytes)),
                _ => footers.push((arc.name, arc.footer_offset..arc.arc_bytes)),
            }
        }
    }
    depot.ahead(&catalogs);
    // Those of a run that has more are asked for when it is applied.
    footers.truncate(FOOTERS_AHEAD);
    depot.ahead(&footers);
}

fn unproven(dir: &BackupDir, index: &Arc<Index>, versions: &[Version]) -> Result<Vec<(Version, Error)>> {
    let tree = Tree::of(dir, index.clone(), View::Whole);
    let mut unproven = Vec::new();
    for version in versions {
        match tree.root(*version) {
            Err(error @ Error::TreeMismatch { .. }) => unproven.push((*version, error)),
            // What is lost is told as such.
            Ok(_) | Err(Error::DirectoryLost { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(unproven)
}

/// All that is gone, each thing once.
fn losses(dir: &BackupDir, index: &Index, recovered: &Recovered) -> Result<Vec<Loss>> {
    let arcs: BTreeMap<ArcName, ArcEntry> = index.arcs()?.into_iter().map(|row| (row.entry.name, row.entry)).collect();
    // From where on an arc is gone.
    let mut gone: BTreeMap<ArcSerial, u64> = BTreeMap::new();
    for (name, error) in &recovered.lost_arcs {
        let from = match error {
            Error::Arc { place: Place { frame: Some(_), offset, .. }, .. } => *offset,
            _ => 0,
        };
        gone.extend(arcs.get(name).map(|entry| (entry.serial, from)));
    }
    for (name, entry) in &arcs {
        match dir.arcs().len_bytes(*name) {
            Ok(len_bytes) if len_bytes < entry.arc_bytes => {
                gone.entry(entry.serial).or_insert(len_bytes.min(entry.footer_offset));
            }
            Err(error) if error.is_damage() => drop(gone.insert(entry.serial, 0)),
            _ => {}
        }
    }
    let runs = recovered.lost_runs.iter().map(|(run, _)| run).chain(&recovered.missing_runs);
    let mut losses: Vec<Loss> = runs.map(|run| Loss::Run(*run)).collect();
    for LostFrame { arc, frame, .. } in recovered.lost.iter().map(|lost| &lost.frame) {
        let serial = arcs.get(arc).map(|entry| entry.serial).filter(|serial| gone.get(serial) != Some(&0));
        losses.extend(serial.map(|serial| Loss::Frame { serial, frame: *frame }));
    }
    losses.extend(gone.into_iter().map(|(serial, from)| Loss::Arc { serial, from }));
    Ok(losses)
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

pub(crate) fn remove_index(path: &Path) -> Result<()> {
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
