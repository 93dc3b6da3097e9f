//! Looking at the source: opening the paths to save, listing directories, reading attributes, and what is
//! left out.
//!
//! Invariants: from `/` on every directory is opened by one name relative to its parent, never through a
//! symlink, so that whoever can write to the source can't lead a backup by root elsewhere; names are raw bytes
//! and lists are in byte order; what can't be read is an error of that entry, never an absent entry.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

pub use super::excludes::Excludes;
use crate::catalog::{Attr, Xattrs, codec};
use crate::error::{Error, Result};
use crate::os::{DirFd, Stat, mounts, xattr};

/// A path to save, found.
#[derive(Debug)]
pub struct OpenedPath {
    /// Absolute, as it will be in the version.
    pub path: Vec<u8>,
    /// The directory that holds the entry, as a place only (can't be listed), but for `/`.
    pub parent: DirFd,
    /// Name in the parent; empty when the path is `/`, which is the parent itself.
    pub name: Vec<u8>,
    pub stat: Stat,
}

/// Makes a path that the user gave absolute: symlinks *before* the last component are resolved (the version
/// shows where things really are), the last one is taken as it is: a symlink is saved as a symlink, unless the
/// path ends in `/`, `.` or `..`.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    let fail = |error: io::Error| Error::io("find", path, &error);
    let bytes = path.as_os_str().as_bytes();
    let whole = bytes.ends_with(b"/") || bytes.ends_with(b"/.") || path.file_name().is_none();
    let resolve = |path: &Path| match std::fs::canonicalize(path) {
        // Deeper than the kernel takes in one path: it must be plain already, and is opened name by name.
        Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) && is_plain(path) => Ok(path.to_path_buf()),
        other => other.map_err(fail),
    };
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !whole => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(resolve(parent)?.join(name))
        }
        _ if bytes.is_empty() => Err(Error::Usage("an empty path can't be found".into())),
        _ => resolve(path),
    }
}

/// Absolute and without `.` and `..`.
fn is_plain(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.starts_with(b"/") && !bytes.split(|byte| *byte == b'/').any(|name| name == b"." || name == b"..")
}

/// Opens a path to save component by component, after [`absolute`].
pub fn open_path(path: &Path) -> Result<OpenedPath> {
    let path = absolute(path)?;
    let fail = |error: io::Error| Error::io("open", &path, &error);
    let mut names: Vec<&[u8]> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.as_bytes()),
            _ => None,
        })
        .collect();
    let name = names.pop().unwrap_or_default().to_vec();
    let parent = open_place(&names).map_err(fail)?;
    let stat = if name.is_empty() { parent.stat() } else { parent.stat_at(&name) }.map_err(fail)?;
    Ok(OpenedPath { parent, name, stat, path: path.into_os_string().into_vec() })
}

/// Opens the directory to which these names lead from `/`, as a place only (but for `/` itself). Never more than two
/// directories are open.
pub fn open_place(names: &[&[u8]]) -> io::Result<DirFd> {
    names.iter().try_fold(DirFd::open(Path::new("/"))?, |dir, name| dir.open_place(name))
}

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

/// What stands before the last name of an absolute path; empty for `/`.
pub fn parent_of(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path.get(..end).unwrap_or_default()
}

/// The same bytes as a path.
pub fn path_of(path: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()))
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
pub const OWN_FSTYPE: &str = "fuse.assay";

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
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::catalog::Kind;
    use crate::os::process::geteuid;

    #[test]
    fn parents_are_opened_from_the_root_and_the_last_symlink_is_kept() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("real/sub")).unwrap();
        symlink("real", base.join("link")).unwrap();
        symlink("sub", base.join("real/inner")).unwrap();

        let opened = open_path(&base.join("link/inner")).unwrap();
        assert_eq!(opened.path, base.join("real/inner").as_os_str().as_bytes());
        assert_eq!((opened.stat.kind, opened.name.as_slice()), (Kind::Symlink, &b"inner"[..]));
        assert!(opened.parent.stat().unwrap().same_file(&DirFd::open(&base.join("real")).unwrap().stat().unwrap()));

        for whole in ["link/", "link/.", "real/sub/.."] {
            assert_eq!(open_path(&base.join(whole)).unwrap().path, base.join("real").as_os_str().as_bytes(), "{whole}");
        }
        let missing = open_path(&base.join("none/x")).unwrap_err();
        assert!(missing.to_string().contains("none/x"), "{missing}");
    }

    #[test]
    fn the_root_itself_is_its_own_parent() {
        let opened = open_path(Path::new("/")).unwrap();
        assert_eq!((opened.path.as_slice(), opened.name.len()), (&b"/"[..], 0));
        assert!(list(&opened.parent).unwrap().entries.iter().any(|(name, _)| name == b"proc"));
        assert!(open_path(Path::new("")).is_err());
    }

    #[test]
    fn a_symlink_in_the_place_of_a_parent_is_refused_when_it_appears_late() {
        let temp = tempfile::tempdir().unwrap();
        symlink("/etc", temp.path().join("evil")).unwrap();
        assert!(DirFd::open(temp.path()).unwrap().open_place(b"evil").is_err());
    }

    #[test]
    fn paths_longer_than_4096_bytes_open() {
        let temp = tempfile::tempdir().unwrap();
        let mut path = temp.path().canonicalize().unwrap();
        let mut dir = DirFd::open(&path).unwrap();
        for _ in 0..20 {
            let component = "d".repeat(255);
            dir.mkdir_at(component.as_bytes(), 0o700).unwrap();
            dir = dir.open_dir(component.as_bytes()).unwrap();
            path.push(component);
        }
        dir.create_file(b"f", 0o600).unwrap();
        path.push("f");
        let opened = open_path(&path).unwrap();
        assert!(opened.path.len() > 5_000);
        assert_eq!(opened.stat.kind, Kind::File);
        assert!(opened.parent.stat().unwrap().same_file(&dir.stat().unwrap()));
    }

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

    #[test]
    fn a_directory_counts_its_saved_subdirectories() {
        assert_eq!((directory_nlink(1, 7), directory_nlink(30, 7)), (1, 9));
    }
}
