//! What a restore leaves alone although it is in the way: above all the backup dir that it reads from.
//!
//! Invariants: an inode that is spared is never removed, replaced or entered, under whatever name it is met, so
//! neither are the directories above it removed; nothing is made at a place that is spared.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::live::Excludes;
use crate::os::{DirFd, Stat};

/// Why `--delete` left something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is the backup dir, or the real place of something that is a symlink there.
    BackupDir,
    /// It is mounted there: a backup without `-X` saves an empty directory in its place.
    OtherFileSystem,
    /// The exclude patterns keep it out of the versions.
    Excluded,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::BackupDir => "it belongs to the backup dir",
            Why::Excluded => "it is excluded from backups",
            Why::OtherFileSystem => "another file system is mounted there",
        })
    }
}

/// Device and inode number.
type Inode = (u64, u64);

/// What is never removed nor replaced.
#[derive(Debug, Clone, Default)]
pub struct Spare {
    inodes: HashSet<Inode>,
    /// Real places of what is a symlink in the backup dir: the directory and the name in it. A backup that runs at
    /// the same time may make another file there at any moment.
    places: HashSet<(Inode, Vec<u8>)>,
    excludes: Option<Arc<Excludes>>,
}

/// SQLite keeps these beside the real place of the index.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

impl Spare {
    /// A backup dir, and where the symlinks in it lead (key.conf and index.db may be kept elsewhere).
    pub fn backup_dir(dir: &Path) -> Result<Spare> {
        let fail = |error: std::io::Error| Error::io("list", dir, &error);
        let mut spare = Spare::default();
        let stat = std::fs::metadata(dir).map_err(fail)?;
        spare.inodes.insert((stat.dev(), stat.ino()));
        for entry in std::fs::read_dir(dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let is_symlink = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            // One that leads nowhere has nothing to spare.
            let Some(real) = entry.path().canonicalize().ok().filter(|_| is_symlink) else { continue };
            let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else { continue };
            let parent = std::fs::metadata(parent).map_err(|error| Error::io("stat", parent, &error))?;
            for suffix in BESIDE.into_iter().chain([""]) {
                let name = [name.as_bytes(), suffix.as_bytes()].concat();
                if let Ok(stat) = std::fs::symlink_metadata(real.with_file_name(OsStr::from_bytes(&name))) {
                    spare.inodes.insert((stat.dev(), stat.ino()));
                }
                spare.places.insert(((parent.dev(), parent.ino()), name));
            }
        }
        Ok(spare)
    }

    /// Spares what is left out of backups too: that a version lacks it says nothing about it.
    pub fn with_excludes(self, excludes: Excludes) -> Spare {
        Spare { excludes: Some(Arc::new(excludes)), ..self }
    }

    /// True when `path` (absolute, as it would be in the version) is excluded, or a directory above it.
    ///
    /// `asked_bytes` is how long the path is that was asked for: as in a backup, patterns are for what is below.
    pub fn excludes(&self, path: &[u8], is_dir: bool, asked_bytes: usize) -> bool {
        let Some(excludes) = &self.excludes else { return false };
        let slashes = (asked_bytes + 1..path.len()).filter(|at| path.get(*at) == Some(&b'/'));
        let mut parents = slashes.filter_map(|at| path.get(..at));
        excludes.excludes_kind(path, is_dir) || parents.any(|above| excludes.excludes_kind(above, true))
    }

    /// Why `name` in `dir` stays; `now` is what is there.
    pub fn entry(&self, dir: &DirFd, name: &[u8], now: Option<&Stat>) -> Option<Why> {
        let inode = now.is_some_and(|now| self.inodes.contains(&(now.dev, now.ino)));
        let place = || dir.stat().is_ok_and(|dir| self.places.contains(&((dir.dev, dir.ino), name.to_vec())));
        (inode || (!self.places.is_empty() && place())).then_some(Why::BackupDir)
    }

    /// Refuses to replace, make or enter `name` in `dir`, whose path is `path`.
    pub fn refuse(&self, dir: &DirFd, name: &[u8], now: Option<&Stat>, path: &Path) -> Result<()> {
        match self.entry(dir, name, now) {
            Some(_) => Err(refused(path)),
            None => Ok(()),
        }
    }

    /// Refuses `dir`, whose path is `path`, if it or a directory above it is spared.
    pub fn refuse_inside(&self, dir: &DirFd, path: &Path) -> Result<()> {
        let fail = |error: std::io::Error| Error::io("open", path, &error);
        let mut at = dir.try_clone().map_err(fail)?;
        let mut stat = at.stat().map_err(fail)?;
        loop {
            if self.inodes.contains(&(stat.dev, stat.ino)) {
                return Err(refused(path));
            }
            at = at.open_place(b"..").map_err(fail)?;
            let above = at.stat().map_err(fail)?;
            if above.same_file(&stat) {
                return Ok(());
            }
            stat = above;
        }
    }
}

fn refused(path: &Path) -> Error {
    let what = "it belongs to the backup dir, which a restore does not change; restore with --to elsewhere".into();
    Error::Unsupported { path: PathBuf::from(path), what }
}
