//! Directories of the source: their entries, attributes and extended attributes.
//!
//! Invariants: names are raw bytes and lists are in byte order; what can't be read is an error of that entry, never an
//! absent entry.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::AsFd;

use crate::catalog::{Attr, Xattrs, codec};
use crate::os::{DirFd, Stat, xattr};

/// The entries of a directory.
#[derive(Debug, Default)]
pub struct Listing {
    /// In byte order of the names.
    pub entries: Vec<(Vec<u8>, Stat)>,
    /// Entries that could not be asked for their attributes, in byte order.
    pub failed: Vec<(Vec<u8>, io::Error)>,
}

/// Lists a directory. An entry that vanishes meanwhile is left out; one that is listed and can't be found is not.
pub fn list(dir: &DirFd) -> io::Result<Listing> {
    let mut names = dir.read_names()?;
    names.sort_unstable();
    // A directory that changes while it is read may show a name twice.
    names.dedup();
    let mut listing = Listing { entries: Vec::with_capacity(names.len()), failed: Vec::new() };
    let mut missing = Vec::new();
    for name in names {
        if !codec::valid_name(&name) {
            listing.failed.push((name, io::Error::from_raw_os_error(libc::ENAMETOOLONG)));
            continue;
        }
        match dir.stat_at(&name) {
            Ok(stat) => listing.entries.push((name, stat)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push((name, error)),
            Err(error) => listing.failed.push((name, error)),
        }
    }
    if !missing.is_empty() {
        let still_listed: HashSet<Vec<u8>> = dir.read_names()?.into_iter().collect();
        let unreachable = |name: &[u8]| {
            still_listed.contains(name) && dir.stat_at(name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        missing.retain(|(name, _)| unreachable(name));
        listing.failed.append(&mut missing);
        listing.failed.sort_by(|a, b| a.0.cmp(&b.0));
    }
    Ok(listing)
}

/// The attributes to save. A directory's `nlink` is the source's: see [`directory_nlink`].
pub fn attr(stat: &Stat) -> Attr {
    Attr {
        kind: stat.kind,
        perm: stat.perm,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        mtime: stat.mtime,
        ctime: stat.ctime,
        nlink: stat.nlink,
        rdev_major: stat.rdev_major,
        rdev_minor: stat.rdev_minor,
        source_ino: stat.ino,
    }
}

/// Link count to show for a directory with so many saved subdirectories: 1 where the file system does not
/// count them (as btrfs does).
pub fn directory_nlink(nlink: u32, subdirectories: u64) -> u32 {
    if nlink == 1 { 1 } else { u32::try_from(subdirectories.saturating_add(2)).unwrap_or(u32::MAX) }
}

/// Extended attributes that one entry may have, bytes: all of them go into one record. ext4 allows a fraction of it.
const MAX_XATTR_BYTES: usize = 16 << 20;

/// Those extended attributes that can be read, sorted by name, and the first reason why others can't.
pub fn readable_xattrs(subject: xattr::Subject<'_>) -> (Xattrs, Option<io::Error>) {
    let mut found = Xattrs::new();
    let mut failed = None;
    let names: BTreeSet<Vec<u8>> = match xattr::list(subject) {
        Ok(names) => names.into_iter().collect(),
        Err(error) if no_xattrs(&error) => return (found, None),
        Err(error) => return (found, Some(error)),
    };
    let mut room = MAX_XATTR_BYTES;
    for name in names {
        let read = xattr::get(subject, &name).and_then(|value| {
            let left = room.checked_sub(name.len() + value.len());
            room = left.ok_or_else(|| io::Error::from_raw_os_error(libc::E2BIG))?;
            Ok(value)
        });
        match read {
            Ok(value) => found.push((name, value)),
            Err(error) if no_xattrs(&error) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    (found, failed)
}

/// All extended attributes that the caller may see, sorted by name.
pub fn xattrs(subject: xattr::Subject<'_>) -> io::Result<Xattrs> {
    let (found, failed) = readable_xattrs(subject);
    failed.map_or(Ok(found), Err)
}

/// [`xattrs`] of an open file or directory.
pub fn xattrs_of_fd(fd: &impl AsFd) -> io::Result<Xattrs> {
    xattrs(xattr::Subject::Fd(fd.as_fd()))
}

/// There is none of that name (any more), or this file system has none.
fn no_xattrs(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::catalog::Kind;
    use crate::os::process::geteuid;

    #[test]
    fn lists_are_in_byte_order_with_every_kind() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        for name in [&b"b"[..], b"a\xff", b"a", b"B", b"a b", &[b'n'; 255]] {
            dir.create_file(name, 0o640).unwrap();
        }
        dir.mknod_at(b"socket", Kind::Socket, 0o600, 0, 0).unwrap();
        dir.symlink_at(b"gone", b"symlink").unwrap();
        let listing = list(&dir).unwrap();
        let found: Vec<&[u8]> = listing.entries.iter().map(|(name, _)| name.as_slice()).collect();
        assert_eq!(found, [&b"B"[..], b"a", b"a b", b"a\xff", b"b", &[b'n'; 255], b"socket", b"symlink"]);
        let saved = attr(&listing.entries[7].1);
        assert_eq!((saved.kind, saved.size), (Kind::Symlink, 4));
        assert!(listing.failed.is_empty());
    }

    #[test]
    fn xattrs_come_sorted_and_unsupported_means_none() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        let file = dir.create_file(b"f", 0o600).unwrap();
        for (name, value) in [(&b"user.z"[..], &b"1"[..]), (b"user.a", b"\0\xff"), (b"user.m", b"")] {
            xattr::set(xattr::Subject::Fd(file.as_fd()), name, value).unwrap();
        }
        let expected: Xattrs = vec![
            (b"user.a".to_vec(), b"\0\xff".to_vec()),
            (b"user.m".to_vec(), Vec::new()),
            (b"user.z".to_vec(), b"1".to_vec()),
        ];
        assert_eq!(xattrs_of_fd(&file).unwrap(), expected);
        assert_eq!(xattrs(xattr::Subject::At(&dir, b"f")).unwrap(), expected);
        let proc = DirFd::open(Path::new("/proc")).unwrap();
        assert_eq!(xattrs(xattr::Subject::At(&proc, b"version")).unwrap(), Xattrs::new());
        assert!(xattrs(xattr::Subject::At(&dir, b"missing")).is_err());
        if geteuid() != 0 {
            // Who may not read a file may not read its attributes: that must not look like none.
            dir.chmod_at(b"f", 0).unwrap();
            assert!(xattrs(xattr::Subject::At(&dir, b"f")).is_err());
        }
    }

    #[test]
    fn a_directory_counts_its_saved_subdirectories() {
        assert_eq!((directory_nlink(1, 7), directory_nlink(30, 7)), (1, 9));
    }
}
