//! Setting and comparing attributes, in the order that keeps them: owner (clears setuid and capabilities),
//! extended attributes, mode, and the time last.
//!
//! Invariant: what an entry has in the end is looked at again: whatever was refused, clamped or ignored is told.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::catalog::{Attr, Kind, Timespec, Xattrs};
use crate::error::Error;
use crate::live;
use crate::os::xattr::{self, Subject};
use crate::os::{Stat, file, process, stat};
use crate::text::shown;

/// Which attribute is not as it was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    Owner,
    Mode,
    /// An extended attribute or ACL.
    Extended,
    Time,
    /// A hard link that became a file of its own.
    Link,
}

impl Lack {
    pub const ALL: [Lack; 5] = [Lack::Owner, Lack::Mode, Lack::Extended, Lack::Time, Lack::Link];

    /// For counts: "3 did not get their …".
    pub fn noun(self) -> &'static str {
        match self {
            Lack::Owner => "owner",
            Lack::Mode => "mode",
            Lack::Extended => "extended attributes",
            Lack::Time => "time",
            Lack::Link => "hard link (they are files of their own)",
        }
    }
}

/// An attribute that an entry did not get.
#[derive(Debug)]
pub struct Failed {
    pub lack: Lack,
    why: Why,
}

#[derive(Debug)]
enum Why {
    /// What was tried, and the error.
    Refused(&'static str, io::Error),
    /// What it is instead.
    Other(String),
}

impl Failed {
    fn refused(lack: Lack, op: &'static str, error: io::Error) -> Failed {
        Failed { lack, why: Why::Refused(op, error) }
    }

    pub fn not_linked(errno: i32) -> Failed {
        Failed::refused(Lack::Link, "link", io::Error::from_raw_os_error(errno))
    }

    fn other(lack: Lack, what: String) -> Failed {
        Failed { lack, why: Why::Other(what) }
    }

    pub fn error(&self, path: &Path) -> Error {
        match &self.why {
            Why::Refused(op, error) => Error::io(op, path, error),
            Why::Other(what) => Error::NotKept { path: path.into(), what: what.clone() },
        }
    }
}

/// Keeps the owner or group as it is in `chown`.
const KEEP: u32 = u32::MAX;

/// Sets all attributes of what is open (`O_PATH` will do); goes on after a failure and gives all of them.
///
/// setuid and setgid are left out wherever the owner is not the right one, for they would speak for another.
pub fn apply(to: &impl AsFd, attr: &Attr, xattrs: &Xattrs) -> Vec<Failed> {
    let mut failed = Vec::new();
    let to = to.as_fd();
    let now = match stat::of_fd(to) {
        Ok(now) => now,
        Err(error) => return vec![Failed::refused(Lack::Mode, "stat", error)],
    };
    let mut perm = attr.perm;
    if (now.uid, now.gid) != (attr.uid, attr.gid)
        && let Err(error) = file::chown(to, attr.uid, attr.gid)
    {
        let group_set = now.gid == attr.gid || file::chown(to, KEEP, attr.gid).is_ok();
        perm &= if now.uid == attr.uid { 0o7777 } else { !0o4000 };
        perm &= if group_set { 0o7777 } else { !0o2000 };
        failed.push(Failed::refused(Lack::Owner, "set the owner of", error));
    }
    set_xattrs(to, xattrs, &mut failed);
    if attr.kind != Kind::Symlink
        && let Err(error) = file::chmod(to, u32::from(perm))
    {
        failed.push(Failed::refused(Lack::Mode, "set the mode of", error));
    }
    if let Err(error) = file::set_mtime(to, attr.mtime) {
        failed.push(Failed::refused(Lack::Time, "set the time of", error));
    }
    match stat::of_fd(to) {
        Ok(now) => {
            for found in differences(&now, attr) {
                if !failed.iter().any(|known| known.lack == found.lack) {
                    failed.push(found);
                }
            }
        }
        Err(error) => failed.push(Failed::refused(Lack::Mode, "stat", error)),
    }
    failed
}

/// Takes away, before anything is put into a directory, whatever rights the saved attributes don't give.
pub fn narrow(dir: &impl AsFd, now: &Stat, attr: &Attr) {
    // What fails here is told when all attributes are set.
    if (now.uid, now.gid) != (attr.uid, attr.gid) && process::geteuid() == 0 {
        let _ = file::chown(dir, attr.uid, attr.gid);
    }
    let perm = (now.perm & attr.perm) | 0o700;
    if perm != now.perm {
        let _ = file::chmod(dir, u32::from(perm));
    }
}

/// Owner, mode and time that are not as saved.
fn differences(now: &Stat, attr: &Attr) -> Vec<Failed> {
    let mut found = Vec::new();
    if (now.uid, now.gid) != (attr.uid, attr.gid) {
        let what = format!("it belongs to {}:{}, saved was {}:{}", now.uid, now.gid, attr.uid, attr.gid);
        found.push(Failed::other(Lack::Owner, what));
    }
    if attr.kind != Kind::Symlink && now.perm != attr.perm {
        let what = format!("its mode is {:04o}, saved was {:04o}", now.perm, attr.perm);
        found.push(Failed::other(Lack::Mode, what));
    }
    if now.mtime != attr.mtime {
        let seconds = |time: Timespec| format!("{}.{:09}", time.sec, time.nsec);
        let what = format!("its time is {}, saved was {} (s since 1970)", seconds(now.mtime), seconds(attr.mtime));
        found.push(Failed::other(Lack::Time, what));
    }
    found
}

fn set_xattrs(to: BorrowedFd<'_>, wanted: &Xattrs, failed: &mut Vec<Failed>) {
    let privileged = process::geteuid() == 0;
    let mut note = |op, result: io::Result<()>| match result {
        Ok(()) => true,
        Err(error) => {
            failed.push(Failed::refused(Lack::Extended, op, error));
            false
        }
    };
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
        Err(error) => drop(note("list extended attributes of", Err(error))),
    }
    let is_there = |name: &[u8], value: &[u8]| xattr::get(Subject::Fd(to), name).is_ok_and(|now| now == value);
    let mut lost = Vec::new();
    for (name, value) in wanted {
        // Setting what is there already can fail for want of a right that is not needed.
        let set =
            is_there(name, value) || note("set an extended attribute of", xattr::set(Subject::Fd(to), name, value));
        if set && !is_there(name, value) {
            lost.push(name);
        }
    }
    for name in lost {
        let what = format!("the extended attribute {} was set and is not there", shown(name));
        failed.push(Failed::other(Lack::Extended, what));
    }
}

/// Whether this user can be expected to set the attribute.
fn settable(name: &[u8], privileged: bool) -> bool {
    privileged || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_")
}

/// What `now` and `xattrs_now` lack of the saved attributes (content and link count aside).
///
/// None if this user could mend some of it: then it is another state of the entry. Else what is beyond the user's rights:
/// the owner, and extended attributes that only root can set.
pub fn lacks(now: &Stat, xattrs_now: &Xattrs, attr: &Attr, xattrs: &Xattrs) -> Option<Vec<Failed>> {
    let privileged = process::geteuid() == 0;
    let kind = now.kind == attr.kind && (now.rdev_major, now.rdev_minor) == (attr.rdev_major, attr.rdev_minor);
    if !kind || (attr.kind == Kind::File && now.size != attr.size) {
        return None;
    }
    let mut found = differences(now, attr);
    if found.iter().any(|failed| privileged || failed.lack != Lack::Owner) {
        return None;
    }
    let relevant =
        |xattrs: &Xattrs| -> Xattrs { xattrs.iter().filter(|(name, _)| settable(name, privileged)).cloned().collect() };
    if relevant(xattrs_now) != relevant(xattrs) {
        return None;
    }
    for (name, _) in xattrs.iter().filter(|wanted| !xattrs_now.contains(wanted)) {
        found.push(Failed::other(Lack::Extended, format!("the extended attribute {} is not as saved", shown(name))));
    }
    Some(found)
}

/// True when setting a directory's attributes would change what it is now, its time aside: that changes with what is
/// put into it.
pub fn would_change(dir: &impl AsFd, now: &Stat, attr: &Attr, xattrs: &Xattrs) -> bool {
    let Ok(xattrs_now) = live::xattrs_of_fd(dir) else { return true };
    lacks(&Stat { mtime: attr.mtime, ..*now }, &xattrs_now, attr, xattrs).is_none()
}
