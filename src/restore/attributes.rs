//! Setting and comparing attributes, in the order that keeps them: owner (clears setuid and capabilities),
//! extended attributes, mode, and the time last.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::catalog::{Attr, Kind, Xattrs};
use crate::os::{DirFd, Stat, file, process, stat, xattr};

/// What gets the attributes.
#[derive(Debug, Clone, Copy)]
pub enum Handle<'a> {
    /// An open file or directory (not `O_PATH`).
    Fd(BorrowedFd<'a>),
    /// An entry that is not opened: a symlink, fifo, socket or device.
    At(&'a DirFd, &'a [u8]),
}

impl<'a> Handle<'a> {
    pub fn open(fd: &'a impl AsFd) -> Handle<'a> {
        Handle::Fd(fd.as_fd())
    }

    fn stat(self) -> io::Result<Stat> {
        match self {
            Handle::Fd(fd) => stat::of_fd(fd),
            Handle::At(dir, name) => dir.stat_at(name),
        }
    }

    fn chown(self, uid: u32, gid: u32) -> io::Result<()> {
        match self {
            Handle::Fd(fd) => file::chown(fd, uid, gid),
            Handle::At(dir, name) => dir.chown_at(name, uid, gid),
        }
    }

    fn chmod(self, perm: u16) -> io::Result<()> {
        match self {
            Handle::Fd(fd) => file::chmod(fd, u32::from(perm)),
            Handle::At(dir, name) => dir.chmod_at(name, u32::from(perm)),
        }
    }

    fn set_mtime(self, mtime: crate::catalog::Timespec) -> io::Result<()> {
        match self {
            Handle::Fd(fd) => file::set_mtime(fd, mtime),
            Handle::At(dir, name) => dir.set_mtime_at(name, mtime),
        }
    }

    fn xattrs(self) -> xattr::Subject<'a> {
        match self {
            Handle::Fd(fd) => xattr::Subject::Fd(fd),
            Handle::At(dir, name) => xattr::Subject::At(dir, name),
        }
    }
}

/// Something that could not be set: what was tried, and the error.
pub type Failed = (&'static str, io::Error);

/// Keeps the owner or group as it is in `chown`.
const KEEP: u32 = u32::MAX;

/// Sets all attributes; goes on after a failure and gives all of them.
///
/// What an ordinary user can't do (owner, `trusted.*` and `security.*` attributes) is left without a word, as tar
/// does; setuid and setgid are then left out too, for they would speak for the wrong owner.
pub fn apply(handle: Handle<'_>, attr: &Attr, xattrs: &Xattrs) -> Vec<Failed> {
    let mut failed = Vec::new();
    let privileged = process::geteuid() == 0;
    let mut note = |what, result: io::Result<()>| {
        if let Err(error) = result {
            failed.push((what, error));
        }
    };
    let now = match handle.stat() {
        Ok(now) => now,
        Err(error) => return vec![("stat", error)],
    };
    let mut perm = attr.perm;
    if (now.uid, now.gid) != (attr.uid, attr.gid) {
        match handle.chown(attr.uid, attr.gid) {
            Err(error) if !privileged && error.raw_os_error() == Some(libc::EPERM) => {
                let group_set = handle.chown(KEEP, attr.gid).is_ok();
                perm &= if now.uid == attr.uid { 0o7777 } else { !0o4000 };
                perm &= if group_set { 0o7777 } else { !0o2000 };
            }
            result => note("set the owner of", result),
        }
    }
    set_xattrs(handle, xattrs, privileged, &mut note);
    if attr.kind != Kind::Symlink {
        note("set the mode of", handle.chmod(perm));
    }
    note("set the time of", handle.set_mtime(attr.mtime));
    failed
}

fn set_xattrs(
    handle: Handle<'_>,
    wanted: &Xattrs,
    privileged: bool,
    note: &mut impl FnMut(&'static str, io::Result<()>),
) {
    // A default ACL of the parent, or what was there before, may have left attributes that are not wanted.
    match xattr::list(handle.xattrs()) {
        Ok(names) => {
            let extra = names.iter().filter(|name| {
                !name.starts_with(b"security.")
                    && settable(name, privileged)
                    && wanted.binary_search_by(|(known, _)| known.cmp(name)).is_err()
            });
            for name in extra {
                note("remove an extended attribute of", xattr::remove(handle.xattrs(), name));
            }
        }
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => note("list extended attributes of", Err(error)),
    }
    for (name, value) in wanted.iter().filter(|(name, _)| settable(name, privileged)) {
        // Setting what is there already can fail for want of a right that is not needed.
        if xattr::get(handle.xattrs(), name).is_ok_and(|now| now == *value) {
            continue;
        }
        note("set an extended attribute of", xattr::set(handle.xattrs(), name, value));
    }
}

/// Whether this user can be expected to set the attribute.
fn settable(name: &[u8], privileged: bool) -> bool {
    privileged || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_")
}

/// True when an existing entry has all attributes that `apply` would give it (content and link count aside).
pub fn equal(now: &Stat, xattrs_now: &Xattrs, attr: &Attr, xattrs: &Xattrs) -> bool {
    let privileged = process::geteuid() == 0;
    let owner = !privileged || (now.uid, now.gid) == (attr.uid, attr.gid);
    let kind = now.kind == attr.kind && (now.rdev_major, now.rdev_minor) == (attr.rdev_major, attr.rdev_minor);
    let size = attr.kind != Kind::File || now.size == attr.size;
    let perm = attr.kind == Kind::Symlink || now.perm == attr.perm;
    let relevant =
        |xattrs: &Xattrs| -> Xattrs { xattrs.iter().filter(|(name, _)| settable(name, privileged)).cloned().collect() };
    owner && kind && size && perm && now.mtime == attr.mtime && relevant(xattrs_now) == relevant(xattrs)
}
