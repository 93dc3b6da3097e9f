//! Private directories for copies that are thrown away: of the index, of arcs.
//!
//! Invariants: only their owner can look in; each is locked as long as its process lives, and gone when dropped; what a
//! process left that was killed, the next one of the same user takes away.

use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::os::{lock, process};

/// How the names of all scratch directories begin.
const PREFIX: &str = "assay-scratch-";
/// Others may take away what was just made, before it is locked.
const TRIES: usize = 8;

/// A directory of its own, until it is dropped.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
    _locked: File,
}

impl Scratch {
    /// Makes one, after taking away what nobody uses any more.
    ///
    /// # Errors
    /// What keeps it from being made.
    pub fn new() -> Result<Scratch> {
        let parent = place();
        sweep(&parent);
        let failed = |e: std::io::Error| Error::io("make a directory in", &parent, &e);
        for _ in 1..TRIES {
            if let Some(made) = Scratch::make(&parent).map_err(failed)? {
                return Ok(made);
            }
        }
        Scratch::make(&parent)
            .and_then(|made| made.ok_or_else(|| std::io::Error::from_raw_os_error(libc::EBUSY)))
            .map_err(failed)
    }

    /// None if it was taken away again.
    fn make(parent: &Path) -> std::io::Result<Option<Scratch>> {
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let locked = match open_dir(dir.path()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mine = lock::try_exclusive(&locked)? && is_named(&locked, dir.path());
        Ok(mine.then_some(Scratch { dir, _locked: locked }))
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// The directory for temporary files; /var/tmp is on a disk where /tmp may be memory.
fn place() -> PathBuf {
    let usual = std::env::temp_dir();
    let on_disk = PathBuf::from("/var/tmp");
    if usual == Path::new("/tmp") && on_disk.is_dir() { on_disk } else { usual }
}

/// Takes away what processes of this user that were killed have left.
pub fn tidy() {
    sweep(&place());
}

/// Removes what processes of this user left. What can't be removed stays: it is in nobody's way.
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if !entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let Ok(found) = open_dir(&path) else { continue };
        let own = found.metadata().is_ok_and(|meta| meta.uid() == process::geteuid());
        if own && lock::try_exclusive(&found).unwrap_or(false) && is_named(&found, &path) {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

fn open_dir(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// The name still leads to what is open.
fn is_named(open: &File, path: &Path) -> bool {
    let (open, named) = (open.metadata(), path.symlink_metadata());
    open.is_ok_and(|open| named.is_ok_and(|named| (open.dev(), open.ino()) == (named.dev(), named.ino())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_stays_and_what_was_left_goes() {
        let made = Scratch::new().unwrap();
        std::fs::create_dir(made.path().join("sub")).unwrap();
        let parent = made.path().parent().unwrap().to_path_buf();
        let left = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent).unwrap().keep();
        std::fs::write(left.join("index.db"), b"a copy").unwrap();
        let link = parent.join(format!("{PREFIX}link-{}", std::process::id()));
        std::os::unix::fs::symlink(made.path(), &link).unwrap();
        let other = Scratch::new().unwrap();
        assert!(made.path().join("sub").exists() && !left.exists() && link.symlink_metadata().is_ok());
        std::fs::remove_file(&link).unwrap();
        let path = other.path().to_path_buf();
        assert_ne!(path, made.path());
        drop(other);
        assert!(!path.exists());
    }
}
