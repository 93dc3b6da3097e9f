//! Arc files of a backup dir: listing, reading tables and commit records, creating and committing.
//!
//! Invariants: a name is never written twice; a commit arc appears under its final name by one rename after all
//! other arcs of its run are durable, so an arc file that is there and named by a commit record was whole once.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::sync::Arc;

use crate::arc::{ArcWriter, BlockInfo, FrameInfo, FrameKind, Packer, VerifiedFrame};
use crate::catalog::{ArcEntry, ArcRole, CatalogFrame, Commit};
use crate::crypto::Keys;
use crate::depot::{Depot, Local, Reach, sha256_of};
use crate::error::{Damage, Error, Place, Result};
use crate::fetch::ArcFile;
use crate::ids::{ArcName, ArcSerial, FrameNo, Version};
use crate::index::{Commits, OpenRun};
use crate::own::OwnDir;

pub(super) const TMP_SUFFIX: &str = ".tmp";
/// What an arc is called while it is brought back from other copies.
pub const FETCHED_SUFFIX: &str = ".fetched";

/// What stands under a name has this SHA-256 on the medium.
///
/// # Errors
/// What keeps it from being read.
pub fn reads_back(dir: &Arc<OwnDir>, name: ArcName, file_name: &str, digest: &[u8; 32]) -> Result<bool> {
    let arc = Local::new(dir).open_as(name, file_name)?;
    arc.forget();
    Ok(sha256_of(arc.as_ref(), &|_| Ok(()), |_| Ok(()))? == *digest)
}

/// It is being brought back, or was to be.
pub fn is_fetched(dir: &OwnDir, name: ArcName) -> bool {
    dir.stat(format!("{name}{FETCHED_SUFFIX}")).is_ok_and(|found| found.is_some())
}

/// Removes arcs that were not brought back to their end. The caller holds the lock of those who mend.
pub fn clear_fetched(dir: &OwnDir) -> Result<()> {
    for name in dir.names()?.iter().filter_map(|name| std::str::from_utf8(name).ok()) {
        if name.strip_suffix(FETCHED_SUFFIX).and_then(ArcName::parse).is_some() {
            dir.remove_if_there(name)?;
        }
    }
    Ok(())
}

/// Names of all arcs in the directory, and the commit arcs that stand under their temporary names.
pub(super) fn list_all(dir: &OwnDir) -> Result<Vec<(ArcName, bool)>> {
    let mut names = Vec::new();
    for text in dir.names()?.iter().filter_map(|name| std::str::from_utf8(name).ok()) {
        let tmp = text.strip_suffix(TMP_SUFFIX).and_then(ArcName::parse).filter(|name| name.number == COMMIT_NUMBER);
        names.extend(ArcName::parse(text).map(|name| (name, false)).or(tmp.map(|name| (name, true))));
    }
    names.sort();
    Ok(names)
}

/// True if a file has the name of this arc, whatever is in it.
pub fn is_there(dir: &OwnDir, name: ArcName) -> bool {
    dir.stat(name.to_string()).is_ok_and(|found| found.is_some())
}

/// True if a file has the temporary name of the run's commit arc.
pub fn is_being_committed(dir: &OwnDir, run: Version) -> bool {
    dir.stat(write_name(commit_arc(run), ArcRole::Commit)).is_ok_and(|found| found.is_some())
}

pub fn commit_arc(run: Version) -> ArcName {
    ArcName { version: run, number: COMMIT_NUMBER }
}

/// None when there is no arc on which the key could be tried.
pub fn key_opens_an_arc(depot: &dyn Depot, keys: &Keys) -> Option<bool> {
    let names = depot.list().ok()?;
    let mut tried = None;
    for name in names.iter().take(16) {
        match ArcFile::open(depot, *name, keys) {
            Ok(_) => return Some(true),
            Err(error) if error.is_damage() => tried = Some(false),
            Err(_) => {}
        }
    }
    tried
}

/// Number of a run's commit arc: `arc.V.0` exists if and only if run V was committed.
pub const COMMIT_NUMBER: u32 = 0;

/// Reads the commit record of a run and its SHA-256.
///
/// # Errors
/// `COMMIT_DAMAGED` when neither copy of the record is right; what keeps them from being read.
pub fn read_commit(depot: &dyn Depot, run: Version, keys: &Keys) -> Result<(Commit, [u8; 32])> {
    let (commit, digest) = read_record(depot, run, keys)?;
    if commit.run == run {
        Ok((commit, digest))
    } else {
        Err(Error::CommitDamaged { run, what: format!("it is the record of {}", commit.run) })
    }
}

/// Commits whose records can be read, each with the one before it, or a base.
pub fn commits(depot: &dyn Depot, keys: &Keys) -> Result<Commits> {
    let mut commits = Commits::default();
    for run in runs(depot)?.iter().filter(|run| run.committed) {
        if let Ok((commit, digest)) = read_commit(depot, run.version, keys)
            && (commit.base || commit.previous.is_none_or(|previous| commits.has(&previous)))
        {
            commits.extend([(run.version, digest)]);
        }
    }
    Ok(commits)
}

/// Reads the commit record in `arc.V.0`, whatever run it is of.
pub fn read_record(depot: &dyn Depot, run: Version, keys: &Keys) -> Result<(Commit, [u8; 32])> {
    let name = ArcName { version: run, number: COMMIT_NUMBER };
    let damaged = |what: &dyn std::fmt::Display| Error::CommitDamaged { run, what: what.to_string() };
    let judged = |error: Error| if error.is_damage() { damaged(&error) } else { error };
    let arc = ArcFile::open(depot, name, keys).map_err(judged)?;
    let table = arc.frame_table(keys).map_err(judged)?;
    let mut last = damaged(&"the commit arc holds no record");
    for (n, _) in table.iter().enumerate().filter(|(_, info)| info.kind == FrameKind::Commit) {
        match arc.open_frame(keys, &table, FrameNo(n as u32), None) {
            Ok(opened) => {
                let record = opened.into_plain();
                match Commit::decode(&record) {
                    Ok(commit) => return Ok((commit, crate::crypto::sha256(&record))),
                    Err(e) => last = damaged(&e),
                }
            }
            Err(e) => last = judged(e),
        }
    }
    Err(last)
}

/// Is the commit of a run there? Looks at the ends of its arc, and at the record only if they are damaged.
///
/// # Errors
/// As `read_commit`.
pub fn check_commit(depot: &dyn Depot, run: Version, keys: &Keys) -> Result<()> {
    match ArcFile::open(depot, ArcName { version: run, number: COMMIT_NUMBER }, keys) {
        Ok(arc) if arc.is_whole() => Ok(()),
        _ => read_commit(depot, run, keys).map(|_| ()),
    }
}

/// A run as its files show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub version: Version,
    pub arcs: Vec<ArcName>,
    /// Its commit arc is there: the run was committed, whatever became of the arc since.
    pub committed: bool,
}

/// Runs found on disk, oldest first.
pub fn runs(depot: &dyn Depot) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for name in depot.list()? {
        let committed = name.number == COMMIT_NUMBER;
        match runs.last_mut().filter(|run| run.version == name.version) {
            Some(run) => {
                run.arcs.push(name);
                run.committed |= committed;
            }
            None => runs.push(Run { version: name.version, arcs: vec![name], committed }),
        }
    }
    Ok(runs)
}

/// Gives `index::apply` the frame tables and catalog frames of a commit, verified.
pub struct ArcSource<'a> {
    depot: &'a dyn Depot,
    keys: &'a Keys,
    /// The catalog arc that was used last, with its table.
    current: Option<(ArcSerial, ArcFile, Vec<FrameInfo>)>,
}

impl<'a> ArcSource<'a> {
    pub fn new(depot: &'a dyn Depot, keys: &'a Keys) -> ArcSource<'a> {
        ArcSource { depot, keys, current: None }
    }
}

impl crate::index::CatalogSource for ArcSource<'_> {
    fn ahead(&mut self, arcs: &mut dyn Iterator<Item = &ArcEntry>) {
        if self.depot.reach() == Reach::Far {
            self.depot.ahead(&arcs.map(|arc| (arc.name, arc.footer_offset..arc.arc_bytes)).collect::<Vec<_>>());
        }
    }

    fn frame_table(&mut self, arc: &ArcEntry) -> Result<Vec<FrameInfo>> {
        ArcFile::open_known(self.depot, arc, self.keys)?.frame_table(self.keys)
    }

    fn catalog_frame(&mut self, wanted: &CatalogFrame, arc: &ArcEntry) -> Result<Vec<u8>> {
        if self.current.as_ref().is_none_or(|(serial, ..)| *serial != arc.serial) {
            let file = ArcFile::open_known(self.depot, arc, self.keys)?;
            let table = file.frame_table(self.keys)?;
            self.current = Some((arc.serial, file, table));
        }
        match &self.current {
            Some((serial, file, table)) => {
                file.open_frame(self.keys, table, wanted.frame, Some(*serial)).map(VerifiedFrame::into_plain)
            }
            None => {
                let place = Place { arc: arc.name, frame: Some(wanted.frame), block: None, offset: 0 };
                Err(Error::Arc { place, damage: Damage::Missing })
            }
        }
    }
}

/// An arc being written in the backup dir.
pub type ArcFileWriter = ArcWriter<BufWriter<File>>;

/// Starts an arc file; a commit arc starts under a temporary name.
///
/// # Errors
/// `IO` also when the name is taken: names are never written twice.
pub fn create(
    dir: &OwnDir,
    keys: &Keys,
    run: OpenRun,
    number: u32,
    role: ArcRole,
    serial: ArcSerial,
) -> Result<ArcFileWriter> {
    let name = ArcName { version: run.version, number };
    let path = write_path(dir, name, role);
    let file = dir.create(write_name(name, role), 0o400)?;
    let out = BufWriter::with_capacity(1 << 20, file);
    ArcWriter::create(out, keys, name, role, serial, run.arc_id(number)).map_err(|e| e.at(&path))
}

/// Ends an arc file; the returned file still has to be made durable by `sync_all`.
pub fn finish(
    dir: &OwnDir,
    keys: &Keys,
    arc: ArcFileWriter,
    role: ArcRole,
    packer: &mut Packer,
) -> Result<(ArcEntry, File)> {
    let path = write_path(dir, arc.name(), role);
    let done = arc.finish(keys, packer).map_err(|e| e.at(&path))?;
    let file = done.out.into_inner().map_err(|e| Error::io("write", &path, e.error()))?;
    Ok((done.entry, file))
}

/// Where an arc stands while it is written.
pub fn write_path(dir: &OwnDir, name: ArcName, role: ArcRole) -> PathBuf {
    dir.path_of(write_name(name, role))
}

fn write_name(name: ArcName, role: ArcRole) -> String {
    match role {
        ArcRole::Commit => format!("{name}{TMP_SUFFIX}"),
        ArcRole::Data | ArcRole::Catalog => name.to_string(),
    }
}

/// Writes the commit arc of a run and gives it its final name: the moment from which the version exists.
///
/// All other arcs of the run must be durable, names included, before.
pub fn write_commit(dir: &OwnDir, keys: &Keys, commit: &Commit) -> Result<[u8; 32]> {
    let name = ArcName { version: commit.run, number: COMMIT_NUMBER };
    let record = commit.encode();
    let self_check = |why: &str| Error::SelfCheck { what: format!("the commit record does not decode: {why}") };
    if Commit::decode(&record).map_err(|bad| self_check(bad.0))? != *commit {
        return Err(self_check("it becomes another"));
    }
    let tmp_name = write_name(name, ArcRole::Commit);
    let tmp = dir.path_of(&tmp_name);
    let mut packer = Packer::new(3)?;
    let run = OpenRun { version: commit.run, id: commit.run_id };
    let mut arc = create(dir, keys, run, COMMIT_NUMBER, ArcRole::Commit, ArcSerial(0))?;
    let packed = packer.pack(&record)?;
    let block = BlockInfo::of(keys, &record);
    for _ in 0..2 {
        arc.append(FrameKind::Commit, &packed, vec![block]).map_err(|e| e.at(&tmp))?;
    }
    let (_, file) = finish(dir, keys, arc, ArcRole::Commit, &mut packer)?;
    file.sync_all().map_err(|e| Error::io("fsync", &tmp, &e))?;
    dir.rename(&tmp_name, name.to_string())?;
    dir.sync()?;
    Ok(crate::crypto::sha256(&record))
}
