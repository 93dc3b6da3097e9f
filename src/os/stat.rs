//! What the file system says of one file: `statx` without following symlinks or triggering automounts.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use super::{c_string, check};
use crate::catalog::{Kind, Timespec};

/// Attributes of one file, directory or other entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: 0..=0o7777.
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: Timespec,
    pub ctime: Timespec,
    pub nlink: u32,
    pub ino: u64,
    /// Device number of the file system, as `st_dev`.
    pub dev: u64,
    pub rdev_major: u32,
    pub rdev_minor: u32,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// The entry is the root of a mount (false where the kernel can't tell).
    pub mount_root: bool,
    /// `chattr +a`: entries can be made in such a directory, but not renamed or removed.
    pub append_only: bool,
}

impl Stat {
    /// True when both describe the same inode.
    pub fn same_file(&self, other: &Stat) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }

    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }
}

/// Attributes of an open file or directory (`O_PATH` too).
pub fn of_fd(fd: impl AsFd) -> io::Result<Stat> {
    statx(fd.as_fd().as_raw_fd(), c"", libc::AT_EMPTY_PATH)
}

/// Attributes of the entry `name` of an open directory, not following a symlink.
pub fn at(dir: impl AsFd, name: &[u8]) -> io::Result<Stat> {
    statx(dir.as_fd().as_raw_fd(), &c_string(name)?, 0)
}

fn statx(dir: RawFd, name: &CStr, flags: i32) -> io::Result<Stat> {
    let flags = flags | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: `statx` is plain integers, for which zeros are valid.
    let mut raw: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is NUL-terminated and `raw` is writable for the whole call.
    check(|| unsafe { libc::statx(dir, name.as_ptr(), flags, libc::STATX_BASIC_STATS, &raw mut raw) })?;
    let kind = kind_of(u32::from(raw.stx_mode)).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    let mount_bit = libc::STATX_ATTR_MOUNT_ROOT as u64;
    Ok(Stat {
        kind,
        perm: raw.stx_mode & 0o7777,
        uid: raw.stx_uid,
        gid: raw.stx_gid,
        size: raw.stx_size,
        mtime: Timespec { sec: raw.stx_mtime.tv_sec, nsec: raw.stx_mtime.tv_nsec },
        ctime: Timespec { sec: raw.stx_ctime.tv_sec, nsec: raw.stx_ctime.tv_nsec },
        nlink: raw.stx_nlink,
        ino: raw.stx_ino,
        dev: makedev(raw.stx_dev_major, raw.stx_dev_minor),
        rdev_major: if is_device { raw.stx_rdev_major } else { 0 },
        rdev_minor: if is_device { raw.stx_rdev_minor } else { 0 },
        blocks: raw.stx_blocks,
        mount_root: raw.stx_attributes & mount_bit != 0,
        append_only: raw.stx_attributes & libc::STATX_ATTR_APPEND as u64 != 0,
    })
}

/// The file type in a mode; None for what Linux does not have.
pub fn kind_of(mode: u32) -> Option<Kind> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG => Kind::File,
        libc::S_IFDIR => Kind::Dir,
        libc::S_IFLNK => Kind::Symlink,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFCHR => Kind::CharDevice,
        libc::S_IFBLK => Kind::BlockDevice,
        _ => return None,
    })
}

/// The file type bits of a mode.
pub fn mode_of(kind: Kind) -> u32 {
    match kind {
        Kind::File => libc::S_IFREG,
        Kind::Dir => libc::S_IFDIR,
        Kind::Symlink => libc::S_IFLNK,
        Kind::Fifo => libc::S_IFIFO,
        Kind::Socket => libc::S_IFSOCK,
        Kind::CharDevice => libc::S_IFCHR,
        Kind::BlockDevice => libc::S_IFBLK,
    }
}

/// Device number as `st_dev` and `st_rdev` have it.
pub fn makedev(major: u32, minor: u32) -> u64 {
    libc::makedev(major, minor)
}

pub fn major(dev: u64) -> u32 {
    libc::major(dev)
}

pub fn minor(dev: u64) -> u32 {
    libc::minor(dev)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn agrees_with_the_standard_library_on_files_directories_links_and_devices() {
        let temp = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(temp.path()).unwrap();
        std::fs::write(temp.path().join("f"), vec![1; 70_000]).unwrap();
        std::fs::hard_link(temp.path().join("f"), temp.path().join("g")).unwrap();
        std::os::unix::fs::symlink("nowhere", temp.path().join("l")).unwrap();
        for (name, kind) in [("f", Kind::File), ("l", Kind::Symlink), (".", Kind::Dir)] {
            let stat = at(&dir, name.as_bytes()).unwrap();
            let meta = std::fs::symlink_metadata(temp.path().join(name)).unwrap();
            assert_eq!(stat.kind, kind);
            assert_eq!(mode_of(stat.kind) | u32::from(stat.perm), meta.mode());
            assert_eq!((stat.dev, stat.ino, stat.size), (meta.dev(), meta.ino(), meta.size()));
            assert_eq!((u64::from(stat.nlink), stat.blocks), (meta.nlink(), meta.blocks()));
            assert_eq!((stat.mtime.sec, i64::from(stat.mtime.nsec)), (meta.mtime(), meta.mtime_nsec()));
            assert_eq!((stat.uid, stat.gid), (meta.uid(), meta.gid()));
        }
        assert!(at(&dir, b"f").unwrap().same_file(&at(&dir, b"g").unwrap()));
        assert_eq!(of_fd(&dir).unwrap(), at(&dir, b".").unwrap());
        let null = at(std::fs::File::open("/dev").unwrap(), b"null").unwrap();
        assert_eq!((null.kind, null.rdev_major, null.rdev_minor), (Kind::CharDevice, 1, 3));
        assert_eq!(at(&dir, b"no\0pe").unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_mount_point_is_the_root_of_a_mount() {
        let root = std::fs::File::open("/").unwrap();
        assert!(at(&root, b"proc").unwrap().mount_root);
        assert!(!at(&root, b"etc").unwrap().mount_root);
    }

    #[test]
    fn device_numbers_take_apart_into_what_they_were_made_of() {
        for (a, b) in [(0, 0), (8, 1), (259, 70_000), (4_095, 1_048_575)] {
            assert_eq!((major(makedev(a, b)), minor(makedev(a, b))), (a, b));
        }
    }
}
