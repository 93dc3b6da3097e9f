//! The arcs in the backup dir.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Depot, Reach, StoredArc, Via};
use crate::catalog::Kind;
use crate::error::{Damage, Error, Foreign, Result};
use crate::ids::{ArcName, CopyId};
use crate::os::file::{self, Advice};
use crate::os::stat;
use crate::own::OwnDir;
use crate::text::shown;

/// All arcs of a backup dir.
#[derive(Debug, Clone)]
pub struct Local(Arc<OwnDir>);

impl Local {
    pub fn new(dir: &Arc<OwnDir>) -> Local {
        Local(dir.clone())
    }

    /// Opens an arc that stands under another name, as one that is not committed yet does.
    pub fn open_as(&self, name: ArcName, file_name: &str) -> Result<Box<dyn StoredArc>> {
        let file = self.0.read(file_name).map_err(|error| judged(name, error))?;
        let path = self.0.path_of(file_name);
        let found = stat::of_fd(&file).map_err(|e| judged(name, Error::io("stat", &path, &e)))?;
        let (len_bytes, identity) = (found.size, (found.dev, found.ino));
        Ok(Box::new(LocalArc { dir: self.0.clone(), file, name, path, len_bytes, identity }))
    }
}

impl Depot for Local {
    fn id(&self) -> CopyId {
        CopyId::LOCAL
    }

    fn name(&self) -> &str {
        ""
    }

    fn reach(&self) -> Reach {
        Reach::Near
    }

    fn list(&self) -> Result<Vec<ArcName>> {
        list(&self.0)
    }

    fn len_bytes(&self, arc: ArcName) -> Result<u64> {
        let path = || self.0.path_of(arc.to_string());
        match self.0.stat(arc.to_string()).map_err(|error| judged(arc, error))? {
            Some(found) if found.kind == Kind::File => Ok(found.size),
            // What it leads to is seen when it is opened.
            Some(found) if found.kind == Kind::Symlink => Err(Error::FileForeign { path: path(), why: Foreign::Link }),
            Some(_) | None => Err(damaged(arc, Damage::Missing)),
        }
    }

    fn open(&self, arc: ArcName) -> Result<Box<dyn StoredArc>> {
        self.open_as(arc, &arc.to_string())
    }
}

struct LocalArc {
    dir: Arc<OwnDir>,
    file: File,
    name: ArcName,
    path: PathBuf,
    len_bytes: u64,
    identity: (u64, u64),
}

impl StoredArc for LocalArc {
    fn name(&self) -> ArcName {
        self.name
    }

    fn copy(&self) -> CopyId {
        CopyId::LOCAL
    }

    fn source(&self) -> String {
        shown(&self.path).to_string()
    }

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

    fn is_current(&self) -> bool {
        let found = self.dir.stat(self.name.to_string());
        found.is_ok_and(|found| found.is_some_and(|found| (found.dev, found.ino) == self.identity))
    }

    fn forget(&self) {
        file::forget_cached(&self.file, 0, 0);
        file::advise(&self.file, 0, 0, Advice::Sequential);
    }

    fn release(&self, offset: u64, len: u64) {
        file::advise(&self.file, offset, len, Advice::DontNeed);
    }
}

/// Names of all arcs in a directory, sorted; files with other names are not arcs.
pub fn list(dir: &OwnDir) -> Result<Vec<ArcName>> {
    let names = dir.names()?;
    let mut arcs: Vec<ArcName> =
        names.iter().filter_map(|name| ArcName::parse(std::str::from_utf8(name).ok()?)).collect();
    arcs.sort();
    Ok(arcs)
}

/// Makes an arc durable, and its name.
pub fn sync(dir: &OwnDir, name: ArcName) -> Result<()> {
    let name = name.to_string();
    dir.read(&name)?.sync_all().map_err(|e| Error::io("fsync", dir.path_of(&name), &e))?;
    dir.sync()
}

fn damaged(arc: ArcName, damage: Damage) -> Error {
    Error::arc(arc, 0, damage)
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
