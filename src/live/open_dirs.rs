//! The directories of the source that a run holds open: those between the path and where the walk is, and those
//! whose files wait to be read.
//!
//! Invariants: no more than `most` of them at a time, however deep or wide the tree is; the walk itself never holds
//! more than half of these, so that it never waits for itself.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex};

use crate::os::{DirFd, process};
use crate::sync::{lock, wait};

/// A fraction of what the process may open: the rest is for files, arcs and the index.
const FRACTION: u64 = 4;
const FEWEST: usize = 8;
const MOST: usize = 512;

#[derive(Debug)]
pub struct OpenDirs {
    held: Mutex<usize>,
    changed: Condvar,
    most: usize,
}

impl OpenDirs {
    /// As many as the limit of open files allows.
    pub fn within_limit() -> Arc<OpenDirs> {
        let limit = process::open_file_limit() / FRACTION;
        OpenDirs::at_most(usize::try_from(limit).unwrap_or(MOST).clamp(FEWEST, MOST))
    }

    fn at_most(most: usize) -> Arc<OpenDirs> {
        Arc::new(OpenDirs { held: Mutex::new(0), changed: Condvar::new(), most })
    }

    /// How many directories above where it is the walk may keep open.
    pub fn for_the_walk(&self) -> usize {
        self.most / 2 - 1
    }

    /// Waits until there is room for one more, then opens it.
    pub fn open<E>(self: &Arc<OpenDirs>, open: impl FnOnce() -> Result<DirFd, E>) -> Result<Arc<OpenDir>, E> {
        let mut held = lock(&self.held);
        while *held >= self.most {
            held = wait(&self.changed, held);
        }
        *held += 1;
        drop(held);
        match open() {
            Ok(dir) => Ok(Arc::new(OpenDir { dir, among: self.clone() })),
            Err(e) => {
                self.give_back();
                Err(e)
            }
        }
    }

    fn give_back(&self) {
        *lock(&self.held) -= 1;
        self.changed.notify_all();
    }
}

/// An open directory that counts.
#[derive(Debug)]
pub struct OpenDir {
    dir: DirFd,
    among: Arc<OpenDirs>,
}

impl Deref for OpenDir {
    type Target = DirFd;
    fn deref(&self) -> &DirFd {
        &self.dir
    }
}

impl Drop for OpenDir {
    fn drop(&mut self) {
        self.among.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_last_place_is_given_when_somebody_leaves() {
        let dirs = OpenDirs::at_most(2);
        let open = || DirFd::open(Path::new("/"));
        let first = dirs.open(open).unwrap();
        let second = dirs.open(open).unwrap();
        std::thread::scope(|scope| {
            let third = scope.spawn(|| dirs.open(open).unwrap().stat().unwrap());
            drop(second);
            assert!(third.join().unwrap().is_dir());
        });
        assert!(dirs.open(|| DirFd::open(Path::new("/nonexistent"))).is_err());
        drop(first);
        assert_eq!(*dirs.held.lock().unwrap(), 0);
    }
}
