//! `--delete`: removing a tree without following symlinks, leaving its file system, or taking what is spared.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::descent::Descent;
use super::engine::Restore;
use super::{Spare, Why};
use crate::error::Error;
use crate::monitor::Event;
use crate::os::{DirFd, Stat, temp};

/// Trail from the starting directory down.
pub type Trail = Vec<Vec<u8>>;

/// What became of a tree.
#[derive(Debug, Default)]
pub struct Removal {
    /// Entries that went.
    pub removed: u64,
    pub spared: Vec<(Trail, Why)>,
    /// What could not be removed.
    pub left: Vec<(Trail, io::Error)>,
}

struct Level {
    name: Vec<u8>,
    rest: Vec<Vec<u8>>,
    /// Something below stays, so this directory does too.
    stays: bool,
}

enum Step {
    Removed,
    Spared(Why),
    Entered(DirFd, Stat, Vec<Vec<u8>>),
}

/// What a removal has to know.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    /// Asked before each entry; true ends it.
    pub stop: &'a dyn Fn() -> bool,
    pub spare: &'a Spare,
    /// Path of the parent in the version.
    pub saved: &'a [u8],
    /// As in [`Spare::excludes`].
    pub asked_bytes: usize,
}

/// Removes the entry `name` of `parent` with all below it.
///
/// What is spared and a mount point stay, and all directories above them.
pub fn remove_tree(parent: &DirFd, parent_stat: &Stat, name: &[u8], limits: Limits<'_>) -> Removal {
    let mut removal = Removal::default();
    let mut stack: Descent<Level> = Descent::new();
    let mut next = Some(name.to_vec());
    loop {
        if (limits.stop)() {
            return removal;
        }
        if let Some(name) = next.take() {
            let above = stack.iter().map(|level| level.name.as_slice());
            let path = above.chain([name.as_slice()]).fold(limits.saved.to_vec(), join);
            let step = lowest(&mut stack, parent).and_then(|at| remove_or_enter(at, parent_stat, &name, &path, limits));
            match step {
                Ok(Step::Removed) => removal.removed += 1,
                Ok(Step::Entered(dir, stat, rest)) => stack.push(dir, stat, Level { name, rest, stays: false }),
                Ok(Step::Spared(why)) => removal.spared.push((stays(&mut stack, name), why)),
                Err(error) => removal.left.push((stays(&mut stack, name), error)),
            }
        }
        let Some((_, _, level)) = stack.last() else { return removal };
        next = level.rest.pop();
        if next.is_some() {
            continue;
        }
        let Some((_, _, Level { name, stays: false, .. })) = stack.pop() else { continue };
        match lowest(&mut stack, parent).and_then(|at| at.rmdir_at(&name)) {
            Ok(()) => removal.removed += 1,
            Err(error) => removal.left.push((stays(&mut stack, name), error)),
        }
    }
}

fn lowest<'a>(stack: &'a mut Descent<Level>, parent: &'a DirFd) -> io::Result<&'a DirFd> {
    stack.last().map_or(Ok(parent), |(dir, ..)| dir)
}

fn join(mut dir: Vec<u8>, name: &[u8]) -> Vec<u8> {
    if dir.last() != Some(&b'/') {
        dir.push(b'/');
    }
    dir.extend_from_slice(name);
    dir
}

/// Notes that `name` stays, and so all above it; gives where it is.
fn stays(stack: &mut Descent<Level>, name: Vec<u8>) -> Trail {
    stack.iter_mut().for_each(|level| level.stays = true);
    stack.iter().map(|level| level.name.clone()).chain([name]).collect()
}

/// Removes anything but a directory; opens a directory and lists it.
fn remove_or_enter(at: &DirFd, start: &Stat, name: &[u8], path: &[u8], limits: Limits<'_>) -> io::Result<Step> {
    let stat = at.stat_at(name)?;
    if let Some(why) = limits.spare.entry(at, name, Some(&stat)) {
        return Ok(Step::Spared(why));
    }
    if stat.dev != start.dev || stat.mount_root {
        return Ok(Step::Spared(Why::OtherFileSystem));
    }
    if limits.spare.excludes(path, stat.is_dir(), limits.asked_bytes) {
        return Ok(Step::Spared(Why::Excluded));
    }
    if !stat.is_dir() {
        return at.unlink_at(name).map(|()| Step::Removed);
    }
    let dir = at.open_dir(name)?;
    let opened = dir.stat()?;
    // Another may have come in its place.
    if !opened.same_file(&stat) || opened.mount_root {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let names = dir.read_names()?;
    Ok(Step::Entered(dir, opened, names))
}

impl Restore<'_> {
    /// Removes the entries of the current directory that the version does not have.
    pub(super) fn delete_extra(&mut self, dir: &DirFd, stat: &Stat, keep: &HashSet<Vec<u8>>) {
        let mut names = match dir.read_names() {
            Ok(names) => names,
            Err(error) => {
                let error = Error::io("list", self.target_path(None), &error);
                return self.fail(self.saved_path(None), &error);
            }
        };
        names.sort_unstable();
        // A temporary name that is left is another restore's, which runs.
        for name in names.iter().filter(|name| !keep.contains(*name) && !temp::is_ours(name)) {
            let removal = self.remove_tree(dir, stat, name);
            self.report.deleted += removal.removed;
            for (names, why) in removal.spared {
                self.note_spared(self.below(&names), why);
            }
            for (names, error) in removal.left {
                let error = Error::io("remove", self.below(&names), &error);
                self.fail(self.saved_path(Some(name)), &error);
            }
        }
    }

    pub(super) fn remove_tree(&self, dir: &DirFd, stat: &Stat, name: &[u8]) -> Removal {
        let saved = self.saved_path(None);
        let stop = || self.monitor.interrupted();
        let limits = Limits { stop: &stop, spare: &self.spare, saved: &saved, asked_bytes: self.asked_bytes };
        remove_tree(dir, stat, name, limits)
    }

    /// Path on disk of what is below the current directory.
    pub(super) fn below(&self, names: &Trail) -> PathBuf {
        let mut path = self.target_path(None);
        path.extend(names.iter().map(|name| OsStr::from_bytes(name)));
        path
    }

    pub(super) fn note_spared(&mut self, path: PathBuf, why: Why) {
        // There may be many of those, and the user named them.
        if why != Why::Excluded {
            let what = format!("nothing removed here: {why}");
            self.monitor.event(Event::Warning { path: path.as_os_str().as_bytes(), what });
        }
        self.report.spared_count += 1;
        if self.report.spared.len() < super::MAX_LISTED {
            self.report.spared.push((path, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Limits<'static> {
        let spare = Box::leak(Box::new(Spare::default()));
        Limits { stop: &|| false, spare, saved: b"/", asked_bytes: 0 }
    }

    #[test]
    fn a_tree_goes_but_not_what_its_symlinks_lead_to() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("outside")).unwrap();
        std::fs::write(temp.path().join("outside/precious"), "p").unwrap();
        std::fs::create_dir_all(temp.path().join("in/a/b/c")).unwrap();
        std::fs::create_dir_all(temp.path().join("in/d")).unwrap();
        std::fs::write(temp.path().join("in/a/b/f"), "f").unwrap();
        std::os::unix::fs::symlink(temp.path().join("outside"), temp.path().join("in/a/link")).unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        let done = remove_tree(&dir, &dir.stat().unwrap(), b"in", none());
        assert_eq!((done.removed, done.left.len(), done.spared.len()), (7, 0, 0));
        assert_eq!(std::fs::read(temp.path().join("outside/precious")).unwrap(), b"p");
        assert!(!temp.path().join("in").exists());
    }

    #[test]
    fn another_file_system_is_not_touched() {
        let root = DirFd::open(std::path::Path::new("/")).unwrap();
        let done = remove_tree(&root, &root.stat().unwrap(), b"proc", none());
        assert_eq!((done.removed, done.left.len()), (0, 0));
        assert_eq!(done.spared, [(vec![b"proc".to_vec()], Why::OtherFileSystem)]);
    }

    #[test]
    fn what_is_missing_is_named_with_its_whole_path() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        let done = remove_tree(&dir, &dir.stat().unwrap(), b"none", none());
        assert_eq!(done.removed, 0);
        assert_eq!(done.left[0].0, [b"none".to_vec()]);
    }
}
