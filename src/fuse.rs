//! The FUSE adapter, and the only importer of fuser: it decodes a request, asks the `Vfs` and replies.
//!
//! Invariants: an error is never ENOSYS by accident (the kernel would turn that operation off for the whole
//! mount); whatever would change something gets EROFS; a read is answered whole or with an error. Requests are
//! answered by the thread that received them: handing a small one on costs more than decoding its block. Only a read
//! whose bytes are far is answered later, by whoever has them.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    Session, SessionACL,
};

use crate::catalog::{Kind, Timespec};
use crate::error::Error;
use crate::os::mounts::MountPoint;
use crate::text::shown;
use crate::tree::{LATEST_LIFETIME, SeekTo};
use crate::vfs::{DirItem, FsSize, Ino, Lifetime, Stat, Vfs};

/// Requests are this large at most.
const MAX_REQUEST_BYTES: u32 = 1 << 20;
/// Read-ahead asked of the kernel, once the mount has a backing-device entry to raise.
const READ_AHEAD_KIB: u32 = 4096;
/// Reads ahead, and direct reads of `libaio` and the like, that may wait for an answer at a time.
const MAX_BACKGROUND: u16 = 1024;
/// What never changes is kept for a hundred years.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
const GENERATION: Generation = Generation(0);

/// The mount table has `fuse.assay` as the type.
const SUBTYPE: &str = "assay";

/// Who may use the mount besides the user that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    #[default]
    Owner,
    Everyone,
}

/// Whether the kernel may keep what it has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Caching {
    #[default]
    PageCache,
    /// Each read comes here and is verified again.
    Direct,
}

/// A mounted filesystem; its requests are answered by threads of its own.
///
/// Ended by `unmount`, or from outside and then `forget`: dropped, it would unmount whatever is at its mount point
/// by then, for fuser 0.18 takes a connection that is gone for one that is mounted.
pub struct Mounted {
    session: BackgroundSession,
    by: MountedBy,
}

/// Who has mounted it: for the other mounts fuser has no part in it, which knows places by their paths only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MountedBy {
    Ourselves,
    Helper,
}

impl Mounted {
    /// Mounts at `point` and starts to answer; `ended` is called once when it is unmounted, by whomever.
    ///
    /// `name` is what the mount table has as the source. Where this user needs the helper, `point` is only a path to
    /// it: whether the mount is where it should be is to be looked at then.
    pub fn start(
        vfs: Arc<Vfs>,
        point: &MountPoint,
        name: &OsStr,
        access: Access,
        caching: Caching,
        threads: usize,
        ended: impl FnOnce() + Send + Sync + 'static,
    ) -> io::Result<Mounted> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::RO,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::DefaultPermissions,
            MountOption::FSName(helper_name(name)),
            MountOption::Subtype(SUBTYPE.into()),
        ];
        config.acl = match access {
            Access::Owner => SessionACL::Owner,
            Access::Everyone => SessionACL::All,
        };
        config.n_threads = Some(threads.max(1));
        config.clone_fd = true;
        let adapter = Adapter { vfs, caching, zero_message_open: false, ended: Some(Box::new(ended)) };
        let options = match access {
            Access::Owner => "default_permissions",
            Access::Everyone => "default_permissions,allow_other",
        };
        let (session, by) = match point.mount_fuse(name, SUBTYPE, options) {
            Ok(device) => (Session::from_fd(adapter, device, config.acl, config)?, MountedBy::Ourselves),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                (Session::new(adapter, point.path()?, &config)?, MountedBy::Helper)
            }
            Err(error) => return Err(error),
        };
        Ok(Mounted { session: session.spawn()?, by })
    }

    /// Has the kernel forget these names, each in its directory.
    pub fn forget_names(&self, names: impl IntoIterator<Item = (Ino, Vec<u8>)>) {
        let notifier = self.session.notifier();
        for (dir, name) in names {
            // Mostly it did not know the name.
            let _ = notifier.inval_entry(INodeNo(dir.0), OsStr::from_bytes(&name));
        }
    }

    /// Takes the mount, which has this device number, out of the tree, and waits until no file is open any more.
    pub fn unmount(self, device: Option<u64>) -> io::Result<()> {
        match (self.by, device) {
            (MountedBy::Helper, _) => self.session.umount_and_join(),
            (MountedBy::Ourselves, Some(device)) => {
                crate::os::mounts::detach(device)?;
                self.session.join()
            }
            // It was never seen in the tree. Its end is that of the process.
            (MountedBy::Ourselves, None) => Ok(()),
        }
    }

    /// Lets go of a mount that is gone.
    pub fn forget(self) {
        std::mem::forget(self);
    }
}

/// The name as fusermount takes it in a list of options.
fn helper_name(name: &OsStr) -> String {
    let text = name.to_str().map_or_else(|| shown(name).to_string(), str::to_string);
    text.replace('\\', "\\\\").replace(',', "\\,")
}

/// Lets the kernel read further ahead than its 128 KiB, and tells whether it could: that needs root.
pub fn raise_read_ahead(device: u64) -> bool {
    let (major, minor) = (crate::os::stat::major(device), crate::os::stat::minor(device));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    let written = std::fs::write(&path, READ_AHEAD_KIB.to_string());
    if let Err(error) = &written {
        log::debug!("{path}: {error}");
    }
    written.is_ok()
}

struct Adapter {
    vfs: Arc<Vfs>,
    caching: Caching,
    /// The kernel does without opens once the first one is answered with ENOSYS.
    zero_message_open: bool,
    ended: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Adapter {
    fn errno(&self, ino: INodeNo, error: &Error) -> Errno {
        errno(&self.vfs, ino, error)
    }
}

fn errno(vfs: &Vfs, ino: INodeNo, error: &Error) -> Errno {
    Errno::from_i32(vfs.errno(Ino(ino.0), error))
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // A number that is refused tells the nearest one that is not.
        if let Err(nearest) = config.set_max_write(MAX_REQUEST_BYTES) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(READ_AHEAD_KIB << 10) {
            let _ = config.set_max_readahead(nearest);
        }
        // What the kernel reads ahead of one file must not stand in the way of another's: many may wait for what is far.
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3);
        let mut wanted = vec![
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ];
        if self.caching == Caching::Direct {
            wanted.extend([InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP]);
        }
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                log::debug!("the kernel lacks {flag:?}");
            }
        }
        self.zero_message_open = self.caching == Caching::PageCache
            && config.capabilities().contains(InitFlags::FUSE_NO_OPEN_SUPPORT)
            && config.add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT).is_ok();
        Ok(())
    }

    fn destroy(&mut self) {
        if let Some(ended) = self.ended.take() {
            ended();
        }
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.vfs.lookup(Ino(parent.0), name.as_bytes()) {
            Ok((Some(stat), lifetime)) => {
                reply.entry_with_ttls(&FOREVER, &duration(lifetime), &file_attr(&stat), GENERATION);
            }
            // Inode 0: the name is not there, and the kernel may remember that.
            Ok((None, Lifetime::Forever)) => reply.entry(&FOREVER, &absent(), GENERATION),
            Ok((None, Lifetime::Briefly | Lifetime::Moment | Lifetime::Never)) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(self.errno(parent, &error)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.vfs.getattr(Ino(ino.0)) {
            Ok((stat, lifetime)) => reply.attr(&duration(lifetime), &file_attr(&stat)),
            Err(error) => reply.error(self.errno(ino, &error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.vfs.readlink(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(self.errno(ino, &error)),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_ACCMODE != libc::O_RDONLY {
            reply.error(Errno::EROFS);
        } else if self.zero_message_open {
            reply.error(Errno::ENOSYS);
        } else {
            let how = match self.caching {
                Caching::PageCache => FopenFlags::FOPEN_KEEP_CACHE,
                Caching::Direct => FopenFlags::FOPEN_DIRECT_IO,
            };
            reply.opened(FileHandle(0), how | FopenFlags::FOPEN_NOFLUSH);
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let vfs = self.vfs.clone();
        self.vfs.read(Ino(ino.0), offset, size, move |bytes| match bytes {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(&vfs, ino, &error)),
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // There is nothing to flush; so answered, the kernel never asks again and each close saves a round trip.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.vfs.opendir(Ino(ino.0)) {
            Ok(Lifetime::Forever) => {
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
            }
            Ok(Lifetime::Briefly | Lifetime::Moment | Lifetime::Never) => {
                reply.opened(FileHandle(0), FopenFlags::empty())
            }
            Err(error) => reply.error(self.errno(ino, &error)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = self.vfs.readdir(Ino(ino.0), offset, |item| {
            !reply.add(INodeNo(item.ino.0), item.offset, file_type(item.kind), OsStr::from_bytes(&item.name))
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.errno(ino, &error)),
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let result = self.vfs.readdir(Ino(ino.0), offset, |item| {
            let (attr, lifetime) = match &item.stat {
                Some(stat) => (file_attr(stat), duration(item.lifetime)),
                // Not to be believed for any time: the next question is a lookup, which gives the error.
                None => (unknown(item), Duration::ZERO),
            };
            !reply.add(INodeNo(item.ino.0), item.offset, OsStr::from_bytes(&item.name), &lifetime, &attr, GENERATION)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.errno(ino, &error)),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.vfs.size() {
            Ok(FsSize { blocks, blocks_free, files, files_free }) => {
                let unit = FsSize::UNIT;
                reply.statfs(blocks, blocks_free, blocks_free, files, files_free, unit, FsSize::MAX_NAME_LEN, unit);
            }
            Err(error) => reply.error(self.errno(ino, &error)),
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.vfs.getxattr(Ino(ino.0), name.as_bytes()) {
            Ok(Some(value)) => reply_xattr(&value, size, reply),
            Ok(None) => reply.error(Errno::ENODATA),
            Err(error) => reply.error(self.errno(ino, &error)),
        }
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.vfs.listxattr(Ino(ino.0), request.uid()) {
            Ok(names) => reply_xattr(&names, size, reply),
            Err(error) => reply.error(self.errno(ino, &error)),
        }
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let to = match whence {
            libc::SEEK_DATA => SeekTo::Data,
            libc::SEEK_HOLE => SeekTo::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.vfs.seek(Ino(ino.0), offset, to) {
            // File sizes are below 2^63.
            Ok(Some(found)) => reply.offset(found as i64),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(self.errno(ino, &error)),
        }
    }

    // What follows would change something. The kernel refuses most of it itself on a read-only mount.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<fuser::TimeOrNow>,
        _: Option<fuser::TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: fuser::WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: fuser::IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: fuser::ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}

/// `size` 0 asks for the length; a value that doesn't fit the caller's buffer is ERANGE.
fn reply_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(_) => reply.error(Errno::E2BIG),
    }
}

fn duration(lifetime: Lifetime) -> Duration {
    match lifetime {
        Lifetime::Forever => FOREVER,
        Lifetime::Briefly => Duration::from_secs(1),
        Lifetime::Moment => LATEST_LIFETIME,
        Lifetime::Never => Duration::ZERO,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn file_attr(stat: &Stat) -> FileAttr {
    let (mtime, ctime) = (system_time(stat.mtime), system_time(stat.ctime));
    FileAttr {
        ino: INodeNo(stat.ino.0),
        size: stat.size,
        blocks: stat.blocks,
        // Access times are not saved.
        atime: mtime,
        mtime,
        ctime,
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind),
        perm: stat.perm,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: kernel_device(stat.rdev_major, stat.rdev_minor),
        blksize: FsSize::UNIT,
        flags: 0,
    }
}

/// A name that is not there.
fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: FsSize::UNIT,
        flags: 0,
    }
}

/// An entry whose attributes can't be read.
fn unknown(item: &DirItem) -> FileAttr {
    FileAttr { ino: INodeNo(item.ino.0), kind: file_type(item.kind), ..absent() }
}

/// fuser takes times as `SystemTime`, which on Linux is a timespec of 64 bits: exact before 1970 and after 2038.
fn system_time(time: Timespec) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let seconds = if time.sec < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    seconds.and_then(|at| at.checked_add(Duration::from_nanos(u64::from(time.nsec)))).unwrap_or(UNIX_EPOCH)
}

/// The 32 bits in which the kernel passes device numbers (`new_encode_dev`): 12 bits of major, 20 of minor.
fn kernel_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_far_from_1970_stay_exact() {
        for (sec, nsec) in
            [(-1, 999_999_999), (-1, 0), (-86_400 * 365 * 69, 1), (1 << 33, 123_456_789), (0, 0), (-(1 << 40), 7)]
        {
            let time = system_time(Timespec { sec, nsec });
            // The way back, independent of the function above: nanoseconds since 1970 as one number.
            let wanted = i128::from(sec) * 1_000_000_000 + i128::from(nsec);
            let found = match time.duration_since(UNIX_EPOCH) {
                Ok(after) => after.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            assert_eq!(found, wanted, "{sec}.{nsec}");
        }
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_decodes_them() {
        for (major, minor) in [(0, 0), (8, 1), (259, 70_000), (4095, 0xf_ffff)] {
            let dev = kernel_device(major, minor);
            // new_decode_dev of linux/kdev_t.h.
            assert_eq!(((dev & 0xfff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xfff00)), (major, minor));
        }
    }
}
