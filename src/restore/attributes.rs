//! Setting and comparing attributes, in the order that keeps them: owner (clears setuid and capabilities),
//! extended attributes, mode, and the time last.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::catalog::{Attr, Kind, Xattrs};
use crate::os::xattr::{self, Subject};
use crate::os::{Stat, file, process, stat};

/// Something that could not be set: what was tried, and the error.
pub type Failed = (&'static str, io::Error);

/// Keeps the owner or group as it is in `chown`.
const KEEP: u32 = u32::MAX;

/// Sets all attributes of what is open (`O_PATH` will do); goes on after a failure and gives all of them.
///
/// What an ordinary user can't do (owner, `trusted.*` and `security.*` attributes) is left without a word, as tar
/// does. setuid and setgid are left out wherever the owner is not the right one, for they would speak for another.
pub fn apply(to: &impl AsFd, attr: &Attr, xattrs: &Xattrs) -> Vec<Failed> {
    let mut failed = Vec::new();
    let privileged = process::geteuid() == 0;
    let mut note = |what, result: io::Result<()>| {
        if let Err(error) = result {
            failed.push((what, error));
        }
    };
    let to = to.as_fd();
    let now = match stat::of_fd(to) {
        Ok(now) => now,
        Err(error) => return vec![("stat", error)],
    };
    let mut perm = attr.perm;
    if (now.uid, now.gid) != (attr.uid, attr.gid)
        && let Err(error) = file::chown(to, attr.uid, attr.gid)
    {
        let group_set = now.gid == attr.gid || file::chown(to, KEEP, attr.gid).is_ok();
        perm &= if now.uid == attr.uid { 0o7777 } else { !0o4000 };
        perm &= if group_set { 0o7777 } else { !0o2000 };
        if privileged || error.raw_os_error() != Some(libc::EPERM) {
            note("set the owner of", Err(error));
        }
    }
    set_xattrs(to, xattrs, privileged, &mut note);
    if attr.kind != Kind::Symlink {
        note("set the mode of", file::chmod(to, u32::from(perm)));
    }
    note("set the time of", file::set_mtime(to, attr.mtime));
    failed
}

fn set_xattrs(
    to: BorrowedFd<'_>,
    wanted: &Xattrs,
    privileged: bool,
    note: &mut impl FnMut(&'static str, io::Result<()>),
) {
    // A default ACL of the parent, or what was there before, may have left attributes that are not wanted.
    match xattr::list(Subject::Fd(to)) {
        Ok(names) => {
            let extra = names.iter().filter(|name| {
                !name.starts_with(b"security.")
                    && settable(name, privileged)
                    && wanted.binary_search_by(|(known, _)| known.cmp(name)).is_err()
            });
            for name in extra {
                note("remove an extended attribute of", xattr::remove(Subject::Fd(to), name));
            }
        }
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => note("list extended attributes of", Err(error)),
    }
    for (name, value) in wanted.iter().filter(|(name, _)| settable(name, privileged)) {
        // Setting what is there already can fail for want of a right that is not needed.
        if xattr::get(Subject::Fd(to), name).is_ok_and(|now| now == *value) {
            continue;
        }
        note("set an extended attribute of", xattr::set(Subject::Fd(to), name, value));
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
