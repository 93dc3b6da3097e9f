//! Where a walk of the source ends: the backup dir, other file systems, mounts of ours.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::os::{DirFd, Stat, mounts};

/// Whether a walk goes on below mount points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crossing {
    /// Stays on the file system of the path that was given.
    Stay,
    /// Enters other file systems (`-X`).
    Cross,
}

/// Why a walk does not enter a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// It is the backup dir: not saved at all.
    BackupDir,
    /// Another file system starts here: saved as an empty directory.
    OtherFileSystem,
    /// A mount of ours: saved as an empty directory, also when crossing.
    OwnMount,
}

/// File system type of our mounts in the mount table.
const OWN_FSTYPE: &str = "fuse.assay";

/// Which directories a walk does not enter.
#[derive(Debug, Clone)]
pub struct Boundaries {
    backup_dir: Stat,
    crossing: Crossing,
}

impl Boundaries {
    pub fn new(backup_dir: &Path, crossing: Crossing) -> Result<Boundaries> {
        let stat = DirFd::open(backup_dir).and_then(|dir| dir.stat());
        let backup_dir = stat.map_err(|error| Error::io("open", backup_dir, &error))?;
        Ok(Boundaries { backup_dir, crossing })
    }

    /// Whether the walk leaves out the directory `dir`, found in `parent` on a walk that started on file system
    /// `start_dev`; None to enter it. Only a change of file system costs a look at the mount table.
    pub fn skip(
        &self,
        dir: &Stat,
        parent: &Stat,
        start_dev: u64,
        magic: impl FnOnce() -> io::Result<u64>,
    ) -> io::Result<Option<Skip>> {
        if dir.same_file(&self.backup_dir) {
            return Ok(Some(Skip::BackupDir));
        }
        if dir.dev == parent.dev {
            return Ok(None);
        }
        if dir.dev != start_dev && self.crossing == Crossing::Stay {
            return Ok(Some(Skip::OtherFileSystem));
        }
        Ok(is_own_mount(dir.dev, magic)?.then_some(Skip::OwnMount))
    }

    pub fn crossing(&self) -> Crossing {
        self.crossing
    }
}

/// True for the device number of one of our mounts; a path on one is not to be saved. `magic` says what kind of file
/// system it is, for where there is no mount table.
pub fn is_own_mount(dev: u64, magic: impl FnOnce() -> io::Result<u64>) -> io::Result<bool> {
    // FUSE file systems have no device, so their major number is 0.
    if crate::os::stat::major(dev) != 0 {
        return Ok(false);
    }
    match mounts::all() {
        Ok(mounts) => Ok(mounts.iter().any(|mount| mount.dev == dev && mount.fstype == OWN_FSTYPE)),
        Err(e) if e.kind() == io::ErrorKind::NotFound && magic()? != mounts::FUSE_MAGIC => Ok(false),
        Err(e) => Err(e),
    }
}

/// True when `path` is a mount point. Its root may be such that it can't be asked anything: a FUSE mount whose server
/// is gone (ENOTCONN) or that belongs to another user (EACCES, for root too), a file system that the server no longer
/// exports (ESTALE).
pub fn is_mount_point(path: &[u8]) -> io::Result<bool> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    Ok(mounts::all()?.iter().any(|mount| mount.point == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backup_dir_and_other_file_systems_are_not_entered() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("backup")).unwrap();
        std::fs::create_dir(temp.path().join("data")).unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        let here = dir.stat().unwrap();
        let (backup, data) = (dir.stat_at(b"backup").unwrap(), dir.stat_at(b"data").unwrap());
        let root = DirFd::open(Path::new("/")).unwrap();
        let (top, proc) = (root.stat().unwrap(), root.stat_at(b"proc").unwrap());
        let stay = Boundaries::new(&temp.path().join("backup"), Crossing::Stay).unwrap();
        let cross = Boundaries::new(&temp.path().join("backup"), Crossing::Cross).unwrap();
        for boundaries in [&stay, &cross] {
            assert_eq!(boundaries.skip(&backup, &here, here.dev, || Ok(0)).unwrap(), Some(Skip::BackupDir));
            assert_eq!(boundaries.skip(&data, &here, here.dev, || Ok(0)).unwrap(), None);
        }
        assert_eq!(stay.skip(&proc, &top, top.dev, || Ok(0)).unwrap(), Some(Skip::OtherFileSystem));
        assert_eq!(stay.skip(&proc, &top, proc.dev, || Ok(0)).unwrap(), None, "back on the file system of the start");
        assert_eq!(cross.skip(&proc, &top, top.dev, || Ok(0)).unwrap(), None);
        assert!(!is_own_mount(proc.dev, || Ok(0)).unwrap());
        assert!(is_mount_point(b"/proc").unwrap() && !is_mount_point(b"/etc").unwrap());
    }
}
