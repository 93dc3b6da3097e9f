//! The arcs in the backup dir.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Depot, StoredArc, Via};
use crate::catalog::Kind;
use crate::error::{Damage, Error, Foreign, Place, Result};
use crate::ids::{ArcName, CopyId};
use crate::os::file::{self, Advice};
use crate::os::stat;
use crate::own::OwnDir;

/// All arcs of a backup dir.
pub struct Local(Arc<OwnDir>);

impl Local {
    pub fn new(dir: &Arc<OwnDir>) -> Local {
        Local(dir.clone())
    }
}

impl Depot for Local {
    fn id(&self) -> CopyId {
        CopyId::LOCAL
    }

    fn name(&self) -> &str {
        ""
    }

    fn open(&self, arc: ArcName) -> Result<Box<dyn StoredArc>> {
        Ok(Box::new(LocalArc::open(&self.0, arc)?))
    }
}

/// An arc file that is open for reading.
#[derive(Debug)]
pub struct LocalArc {
    file: File,
    name: ArcName,
    path: PathBuf,
    len_bytes: u64,
    identity: (u64, u64),
}

impl LocalArc {
    pub fn open(dir: &OwnDir, name: ArcName) -> Result<LocalArc> {
        LocalArc::open_as(dir, name, &name.to_string())
    }

    /// Opens an arc that stands under another name, as one that is not committed yet does.
    pub fn open_as(dir: &OwnDir, name: ArcName, file_name: &str) -> Result<LocalArc> {
        let file = dir.read(file_name).map_err(|error| judged(name, error))?;
        let path = dir.path_of(file_name);
        let found = stat::of_fd(&file).map_err(|e| judged(name, Error::io("stat", &path, &e)))?;
        Ok(LocalArc { file, name, path, len_bytes: found.size, identity: (found.dev, found.ino) })
    }

    /// Makes it durable.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io("fsync", &self.path, &e))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True while its name leads to this very file.
    pub fn is_in(&self, dir: &OwnDir) -> bool {
        let found = dir.stat(self.name.to_string());
        found.is_ok_and(|found| found.is_some_and(|found| (found.dev, found.ino) == self.identity))
    }

    /// Bytes `offset..offset + len`.
    ///
    /// # Errors
    /// `Truncated` where the arc ends before.
    pub fn exactly(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let found = self.read(offset, &mut bytes, Via::Cache)?;
        if found < len {
            let damage = Damage::Truncated { wanted_bytes: len as u64, found_bytes: found as u64 };
            return Err(Error::Arc { place: Place { arc: self.name, frame: None, block: None, offset }, damage });
        }
        Ok(bytes)
    }
}

impl StoredArc for LocalArc {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8], via: Via) -> Result<usize> {
        if via == Via::Medium {
            file::forget_cached(&self.file, offset, buffer.len() as u64);
        }
        file::read_up_to(&self.file, buffer, offset)
            .map_err(|error| super::read_error(self.name, &self.path, offset, &error))
    }

    fn forget(&self) {
        file::forget_cached(&self.file, 0, 0);
        file::advise(&self.file, 0, 0, Advice::Sequential);
    }

    fn release(&self, offset: u64, len: u64) {
        file::advise(&self.file, offset, len, Advice::DontNeed);
    }
}

/// The length of an arc in the backup dir, without opening it.
///
/// # Errors
/// As `Depot::open`.
pub fn find(dir: &OwnDir, name: ArcName) -> Result<u64> {
    let path = || dir.path_of(name.to_string());
    match dir.stat(name.to_string()).map_err(|error| judged(name, error))? {
        Some(found) if found.kind == Kind::File => Ok(found.size),
        // What it leads to is seen when it is opened.
        Some(found) if found.kind == Kind::Symlink => Err(Error::FileForeign { path: path(), why: Foreign::Link }),
        Some(_) | None => Err(damaged(name, Damage::Missing)),
    }
}

fn damaged(arc: ArcName, damage: Damage) -> Error {
    Error::Arc { place: Place { arc, frame: None, block: None, offset: 0 }, damage }
}

/// What an error in opening an arc that should be there says of the arc.
fn judged(arc: ArcName, error: Error) -> Error {
    match error {
        Error::Io { errno: libc::ENOENT, .. } => damaged(arc, Damage::Missing),
        // Something else has its name.
        Error::FileForeign { why: Foreign::NoFile, .. } => damaged(arc, Damage::Missing),
        Error::Io { errno, .. } if Damage::of_errno(errno).is_some() => damaged(arc, Damage::Unreadable(errno)),
        other => other,
    }
}
