//! `--delete`: removing a tree without following symlinks or leaving its file system.

use std::io;

use crate::os::{DirFd, Stat};

/// What could not be removed: names from the starting directory down, and why.
pub type Left = (Vec<Vec<u8>>, io::Error);

struct Level {
    dir: DirFd,
    name: Vec<u8>,
    rest: Vec<Vec<u8>>,
    /// Something below stays, so this directory does too.
    stays: bool,
}

/// Removes the entry `name` of `parent` with all below it; gives how many entries went, and what is left.
///
/// A mount point, and all above it, stays.
pub fn remove_tree(parent: &DirFd, parent_stat: &Stat, name: &[u8]) -> (u64, Vec<Left>) {
    let (mut removed, mut left) = (0, Vec::new());
    let mut stack: Vec<Level> = Vec::new();
    let mut next = Some(name.to_vec());
    loop {
        if let Some(name) = next.take() {
            let at = stack.last().map_or(parent, |level| &level.dir);
            match remove_or_enter(at, parent_stat, &name) {
                Ok(None) => removed += 1,
                Ok(Some((dir, rest))) => stack.push(Level { dir, name, rest, stays: false }),
                Err(error) => {
                    let names = stack.iter().map(|level| level.name.clone()).chain([name]).collect();
                    left.push((names, error));
                    stack.iter_mut().for_each(|level| level.stays = true);
                }
            }
        }
        let Some(level) = stack.last_mut() else { return (removed, left) };
        next = level.rest.pop();
        if next.is_some() {
            continue;
        }
        let Some(Level { name, stays: false, .. }) = stack.pop() else { continue };
        let at = stack.last().map_or(parent, |level| &level.dir);
        match at.rmdir_at(&name) {
            Ok(()) => removed += 1,
            Err(error) => {
                let names = stack.iter().map(|level| level.name.clone()).chain([name]).collect();
                left.push((names, error));
                stack.iter_mut().for_each(|level| level.stays = true);
            }
        }
    }
}

/// Removes anything but a directory; opens a directory and lists it.
fn remove_or_enter(at: &DirFd, start: &Stat, name: &[u8]) -> io::Result<Option<(DirFd, Vec<Vec<u8>>)>> {
    let stat = at.stat_at(name)?;
    if stat.dev != start.dev || stat.mount_root {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    if !stat.is_dir() {
        return at.unlink_at(name).map(|()| None);
    }
    let dir = at.open_dir(name)?;
    let opened = dir.stat()?;
    if opened.dev != start.dev {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let names = dir.read_names()?;
    Ok(Some((dir, names)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (removed, left) = remove_tree(&dir, &dir.stat().unwrap(), b"in");
        assert_eq!((removed, left.len()), (7, 0));
        assert_eq!(std::fs::read(temp.path().join("outside/precious")).unwrap(), b"p");
        assert!(!temp.path().join("in").exists());
    }

    #[test]
    fn another_file_system_is_not_touched() {
        let root = DirFd::open(std::path::Path::new("/")).unwrap();
        let (removed, left) = remove_tree(&root, &root.stat().unwrap(), b"proc");
        assert_eq!((removed, left.len()), (0, 1));
        assert_eq!(left[0].1.raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn what_is_missing_is_named_with_its_whole_path() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        let (removed, left) = remove_tree(&dir, &dir.stat().unwrap(), b"none");
        assert_eq!(removed, 0);
        assert_eq!(left[0].0, [b"none".to_vec()]);
    }
}
