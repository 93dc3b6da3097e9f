//! An open directory and what can be done to its entries, one name at a time.
//!
//! Invariants: an entry is named by one path component (no `/`, not empty; `.` and `..` only where a caller
//! names them itself); no call follows a symlink in that component; descriptors are close-on-exec.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::stat::{self, Stat};
use super::{c_string, check};
use crate::catalog::{Kind, Timespec};

/// An open directory.
#[derive(Debug)]
pub struct DirFd {
    fd: OwnedFd,
}

impl AsFd for DirFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What is done to a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It is read and written from its start; nothing is cut off.
    Over,
    Append,
}

const DIR_FLAGS: i32 = libc::O_DIRECTORY | libc::O_CLOEXEC;
const WRITE_FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;

impl DirFd {
    /// Opens a directory by a path that the user gave, following symlinks; for listing where permitted, else
    /// only as a place to start from (`O_PATH`).
    pub fn open(path: &Path) -> io::Result<DirFd> {
        let path = path.as_os_str().as_bytes();
        match open_at(libc::AT_FDCWD, path, DIR_FLAGS | libc::O_RDONLY, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                Ok(DirFd { fd: open_at(libc::AT_FDCWD, path, DIR_FLAGS | libc::O_PATH, 0)? })
            }
            other => Ok(DirFd { fd: other? }),
        }
    }

    /// Opens the subdirectory `name` for listing. A symlink is ENOTDIR (or ELOOP).
    pub fn open_dir(&self, name: &[u8]) -> io::Result<DirFd> {
        let flags = DIR_FLAGS | libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        Ok(DirFd { fd: self.open_without_atime(name, flags)? })
    }

    /// Opens the subdirectory `name` only as a place (`O_PATH`): needs no read permission, can't be listed.
    pub fn open_place(&self, name: &[u8]) -> io::Result<DirFd> {
        let flags = DIR_FLAGS | libc::O_PATH | libc::O_NOFOLLOW;
        Ok(DirFd { fd: open_at(self.raw(), name, flags, 0)? })
    }

    /// Opens the entry `name` itself, whatever it is (a symlink too), only as a place (`O_PATH`): nothing is waited
    /// for, and what is done through the descriptor is done to this inode, whoever renames it.
    pub fn open_entry(&self, name: &[u8]) -> io::Result<OwnedFd> {
        open_at(self.raw(), name, libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC, 0)
    }

    /// Another descriptor of the same directory.
    pub fn try_clone(&self) -> io::Result<DirFd> {
        Ok(DirFd { fd: self.fd.try_clone()? })
    }

    /// Opens `name` for reading; never waits for a fifo or device, leaves the access time alone where permitted.
    ///
    /// The caller compares `stat::of_fd` with what it expects: the entry may have become another.
    pub fn open_file(&self, name: &[u8]) -> io::Result<File> {
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        Ok(File::from(self.open_without_atime(name, flags)?))
    }

    /// As `open_file`, and follows a symlink.
    pub fn open_file_followed(&self, name: &[u8]) -> io::Result<File> {
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        Ok(File::from(self.open_without_atime(name, flags)?))
    }

    /// Opens `name`, which must exist, for reading and writing; otherwise as `open_file`.
    pub fn open_file_writable(&self, name: &[u8]) -> io::Result<File> {
        Ok(File::from(open_at(self.raw(), name, libc::O_RDWR | WRITE_FLAGS, 0)?))
    }

    /// Opens `name` for reading and writing, and creates it if it does not exist; otherwise as `open_file`.
    pub fn open_or_create(&self, name: &[u8], perm: u32, how: Write) -> io::Result<File> {
        let append = if how == Write::Append { libc::O_APPEND } else { 0 };
        Ok(File::from(open_at(self.raw(), name, libc::O_RDWR | libc::O_CREAT | WRITE_FLAGS | append, perm)?))
    }

    /// Creates the regular file `name`, which must not exist, for reading and writing.
    pub fn create_file(&self, name: &[u8], perm: u32) -> io::Result<File> {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        Ok(File::from(open_at(self.raw(), name, flags, perm)?))
    }

    /// Makes a regular file without a name, for reading and writing, which is gone if it never gets one; None where the
    /// file system can't do that.
    pub fn create_unnamed(&self, perm: u32) -> io::Result<Option<File>> {
        match open_at(self.raw(), b".", libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC, perm) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {
                Ok(None)
            }
            other => Ok(Some(File::from(other?))),
        }
    }

    /// Gives the open file `file` the name `name`; EEXIST if something has it.
    pub fn link_open(&self, file: &File, name: &[u8]) -> io::Result<()> {
        let (fd, name) = (file.as_raw_fd(), c_string(name)?);
        let link = |from: i32, path: &CStr, flags| {
            // SAFETY: both strings are NUL-terminated.
            check(|| unsafe { libc::linkat(from, path.as_ptr(), self.raw(), name.as_ptr(), flags) }).map(drop)
        };
        match link(fd, c"", libc::AT_EMPTY_PATH) {
            // Without a capability only the kernel's own link leads to the file.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EPERM | libc::EINVAL)) => {
                let path = c_string(format!("/proc/self/fd/{fd}").as_bytes())?;
                link(libc::AT_FDCWD, &path, libc::AT_SYMLINK_FOLLOW)
                    .map_err(|second| if second.raw_os_error() == Some(libc::ENOENT) { error } else { second })
            }
            other => other,
        }
    }

    /// Names of all entries but `.` and `..`, in the order of the file system.
    ///
    /// Descriptors cloned from this one share its position: one listing at a time.
    pub fn read_names(&self) -> io::Result<Vec<Vec<u8>>> {
        // SAFETY: no memory is involved.
        check(|| unsafe { libc::lseek(self.raw(), 0, libc::SEEK_SET) })?;
        let mut names = Vec::new();
        let mut buffer = vec![0u8; 64 << 10];
        loop {
            // SAFETY: the kernel writes at most `buffer.len()` bytes into the buffer.
            let filled = check(|| unsafe {
                libc::syscall(libc::SYS_getdents64, self.raw(), buffer.as_mut_ptr(), buffer.len())
            })?;
            let mut rest = match usize::try_from(filled) {
                Ok(0) | Err(_) => return Ok(names),
                Ok(filled) => buffer.get(..filled).unwrap_or_default(),
            };
            while let Some((name, after)) = split_dirent(rest) {
                if name != b"." && name != b".." {
                    names.push(name.to_vec());
                }
                rest = after;
            }
        }
    }

    /// Attributes of the entry `name`, not following a symlink.
    pub fn stat_at(&self, name: &[u8]) -> io::Result<Stat> {
        stat::at(self, name)
    }

    /// Attributes of this directory.
    pub fn stat(&self) -> io::Result<Stat> {
        stat::of_fd(self)
    }

    /// `f_type` of the file system that it is on, as in linux/magic.h.
    pub fn magic(&self) -> io::Result<u64> {
        // SAFETY: `statfs` is plain integers, for which zeros are valid.
        let mut raw: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: `raw` is writable for the whole call.
        check(|| unsafe { libc::fstatfs(self.raw(), &raw mut raw) })?;
        // The low 32 bits are the number, whatever the sign of the platform's field.
        Ok(raw.f_type as u64 & 0xffff_ffff)
    }

    /// Target of the symlink `name`, of any length.
    pub fn readlink_at(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        readlink_in(self.raw(), &c_string(name)?)
    }

    pub fn mkdir_at(&self, name: &[u8], perm: u32) -> io::Result<()> {
        let name = c_string(name)?;
        // SAFETY: `name` is NUL-terminated.
        check(|| unsafe { libc::mkdirat(self.raw(), name.as_ptr(), perm) }).map(drop)
    }

    /// Creates a fifo, socket, device node or empty file; the device number matters for devices only.
    pub fn mknod_at(&self, name: &[u8], kind: Kind, perm: u32, major: u32, minor: u32) -> io::Result<()> {
        let name = c_string(name)?;
        let mode = stat::mode_of(kind) | (perm & 0o7777);
        let dev = match kind {
            Kind::CharDevice | Kind::BlockDevice => stat::makedev(major, minor),
            _ => 0,
        };
        // SAFETY: `name` is NUL-terminated.
        check(|| unsafe { libc::mknodat(self.raw(), name.as_ptr(), mode, dev) }).map(drop)
    }

    pub fn symlink_at(&self, target: &[u8], name: &[u8]) -> io::Result<()> {
        let (target, name) = (c_string(target)?, c_string(name)?);
        // SAFETY: both strings are NUL-terminated.
        check(|| unsafe { libc::symlinkat(target.as_ptr(), self.raw(), name.as_ptr()) }).map(drop)
    }

    /// Makes `new_name` in `new_dir` a hard link to the entry `name` (a symlink itself, if it is one).
    pub fn link_at(&self, name: &[u8], new_dir: &DirFd, new_name: &[u8]) -> io::Result<()> {
        let (name, new_name) = (c_string(name)?, c_string(new_name)?);
        // SAFETY: both strings are NUL-terminated.
        check(|| unsafe { libc::linkat(self.raw(), name.as_ptr(), new_dir.raw(), new_name.as_ptr(), 0) }).map(drop)
    }

    /// Removes an entry that is not a directory.
    pub fn unlink_at(&self, name: &[u8]) -> io::Result<()> {
        self.unlink_with(name, 0)
    }

    /// Removes an empty directory.
    pub fn rmdir_at(&self, name: &[u8]) -> io::Result<()> {
        self.unlink_with(name, libc::AT_REMOVEDIR)
    }

    fn unlink_with(&self, name: &[u8], flags: i32) -> io::Result<()> {
        let name = c_string(name)?;
        // SAFETY: `name` is NUL-terminated.
        check(|| unsafe { libc::unlinkat(self.raw(), name.as_ptr(), flags) }).map(drop)
    }

    /// Renames an entry, replacing what has the new name.
    pub fn rename_at(&self, name: &[u8], new_dir: &DirFd, new_name: &[u8]) -> io::Result<()> {
        let (name, new_name) = (c_string(name)?, c_string(new_name)?);
        // SAFETY: both strings are NUL-terminated.
        check(|| unsafe { libc::renameat(self.raw(), name.as_ptr(), new_dir.raw(), new_name.as_ptr()) }).map(drop)
    }

    /// Renames an entry; EEXIST if something has the new name. On a file system that can't do that in one step
    /// a file is linked and unlinked (EPERM for a directory).
    pub fn rename_new_at(&self, name: &[u8], new_dir: &DirFd, new_name: &[u8]) -> io::Result<()> {
        let (from, to) = (c_string(name)?, c_string(new_name)?);
        // SAFETY: both strings are NUL-terminated.
        let renamed = check(|| unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                self.raw(),
                from.as_ptr(),
                new_dir.raw(),
                to.as_ptr(),
                libc::RENAME_NOREPLACE,
            )
        });
        match renamed {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                self.link_at(name, new_dir, new_name)?;
                self.unlink_at(name)
            }
            other => other.map(drop),
        }
    }

    /// Sets the permission bits of the entry itself; EOPNOTSUPP for a symlink, which has none.
    #[cfg(test)]
    pub fn chmod_at(&self, name: &[u8], perm: u32) -> io::Result<()> {
        let name = c_string(name)?;
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: `name` is NUL-terminated.
        check(|| unsafe { libc::fchmodat(self.raw(), name.as_ptr(), perm & 0o7777, flags) }).map(drop)
    }

    /// Sets the modification time of the entry itself and leaves its access time alone.
    #[cfg(test)]
    pub fn set_mtime_at(&self, name: &[u8], mtime: Timespec) -> io::Result<()> {
        let name = c_string(name)?;
        let times = times_with(mtime);
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: `name` is NUL-terminated and `times` has the two elements that the call reads.
        check(|| unsafe { libc::utimensat(self.raw(), name.as_ptr(), times.as_ptr(), flags) }).map(drop)
    }

    /// Makes the entries of this directory durable. A directory opened as a place only is EBADF.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: no memory is involved.
        check(|| unsafe { libc::fsync(self.raw()) }).map(drop)
    }

    fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// `O_NOATIME` is for the owner and root only: EPERM means to try without.
    fn open_without_atime(&self, name: &[u8], flags: i32) -> io::Result<OwnedFd> {
        match open_at(self.raw(), name, flags | libc::O_NOATIME, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => open_at(self.raw(), name, flags, 0),
            other => other,
        }
    }
}

/// `utimensat` arguments that set only the modification time.
pub(super) fn times_with(mtime: Timespec) -> [libc::timespec; 2] {
    [
        libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        libc::timespec { tv_sec: mtime.sec, tv_nsec: i64::from(mtime.nsec) },
    ]
}

/// Target of a symlink that was opened by [`DirFd::open_entry`].
pub fn readlink(link: &impl AsFd) -> io::Result<Vec<u8>> {
    readlink_in(link.as_fd().as_raw_fd(), c"")
}

fn readlink_in(dir: i32, name: &CStr) -> io::Result<Vec<u8>> {
    let mut target = vec![0u8; 256];
    loop {
        // SAFETY: `name` is NUL-terminated; at most `target.len()` bytes are written.
        let len = check(|| unsafe { libc::readlinkat(dir, name.as_ptr(), target.as_mut_ptr().cast(), target.len()) })?;
        let len = usize::try_from(len).unwrap_or(0);
        if len < target.len() {
            target.truncate(len);
            return Ok(target);
        }
        target.resize(target.len() * 4, 0);
    }
}

fn open_at(dir: i32, name: &[u8], flags: i32, perm: u32) -> io::Result<OwnedFd> {
    let name = c_string(name)?;
    // SAFETY: `name` is NUL-terminated.
    let fd = check(|| unsafe { libc::openat(dir, name.as_ptr(), flags, perm) })?;
    // SAFETY: the call just gave us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The first record of a getdents64 buffer (u64 ino, i64 off, u16 length, u8 type, name, NUL) and what follows.
fn split_dirent(buffer: &[u8]) -> Option<(&[u8], &[u8])> {
    const NAME_AT: usize = 19;
    let len = buffer.get(16..18).and_then(|raw| raw.try_into().ok()).map(u16::from_ne_bytes)?;
    let record = buffer.get(..usize::from(len))?;
    let name = record.get(NAME_AT..)?.split(|byte| *byte == 0).next()?;
    Some((name, buffer.get(usize::from(len)..)?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn entries_more_than_4096_bytes_deep_can_be_made_listed_and_removed() {
        let temp = tempfile::tempdir().unwrap();
        let component = [b'd'; 250];
        let mut chain = vec![DirFd::open(temp.path()).unwrap()];
        for _ in 0..20 {
            let parent = chain.last().unwrap();
            parent.mkdir_at(&component, 0o755).unwrap();
            chain.push(parent.open_dir(&component).unwrap());
        }
        let deepest = chain.last().unwrap();
        deepest.create_file(b"f", 0o600).unwrap().write_all(b"deep").unwrap();
        deepest.symlink_at(&[b't'; 4000], b"l").unwrap();
        assert_eq!(deepest.readlink_at(b"l").unwrap(), [b't'; 4000]);
        assert_eq!(io::read_to_string(deepest.open_file(b"f").unwrap()).unwrap(), "deep");
        deepest.unlink_at(b"f").unwrap();
        deepest.unlink_at(b"l").unwrap();
        while chain.len() > 1 {
            chain.pop();
            chain.last().unwrap().rmdir_at(&component).unwrap();
        }
        assert_eq!(chain.last().unwrap().read_names().unwrap(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn lists_names_of_any_bytes_completely_and_again() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        let mut expected: Vec<Vec<u8>> = (0..3_000).map(|i| format!("name number {i}").into_bytes()).collect();
        expected.extend([vec![b'x'; 255], b"\xff\xfe not utf-8 \n".to_vec(), b"...".to_vec()]);
        for name in &expected {
            dir.create_file(name, 0o600).unwrap();
        }
        expected.sort();
        for _ in 0..2 {
            let mut found = dir.read_names().unwrap();
            found.sort();
            assert_eq!(found, expected);
        }
        let place = DirFd::open(Path::new("/")).unwrap().open_place(b"etc").unwrap();
        assert_eq!(place.read_names().unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert!(place.stat_at(b"passwd").is_ok());
    }

    #[test]
    fn symlinks_are_never_followed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        dir.mkdir_at(b"d", 0o755).unwrap();
        dir.create_file(b"f", 0o640).unwrap();
        dir.symlink_at(b"d", b"to-d").unwrap();
        dir.symlink_at(b"f", b"to-f").unwrap();
        assert!(dir.open_dir(b"to-d").is_err());
        assert!(dir.open_place(b"to-d").is_err());
        assert_eq!(dir.open_file(b"to-f").unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert!(dir.create_file(b"to-f", 0o600).is_err());
        assert_eq!(dir.chmod_at(b"to-f", 0o777).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        assert_eq!(dir.stat_at(b"f").unwrap().perm, 0o640);
        let past = Timespec { sec: -5, nsec: 7 };
        dir.set_mtime_at(b"to-f", past).unwrap();
        assert_eq!(dir.stat_at(b"to-f").unwrap().mtime, past);
        assert_ne!(dir.stat_at(b"f").unwrap().mtime, past);
        dir.link_at(b"to-f", &dir, b"linked").unwrap();
        assert_eq!(dir.stat_at(b"linked").unwrap().kind, Kind::Symlink);
    }

    #[test]
    fn times_of_all_centuries_keep_their_nanoseconds() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        dir.create_file(b"f", 0o600).unwrap();
        // 1901-12-14, just before 1970, 2038 and 2200.
        for sec in [-2_147_483_647, -1, 0, 2_147_483_648, 7_258_118_400] {
            let mtime = Timespec { sec, nsec: 123_456_789 };
            dir.set_mtime_at(b"f", mtime).unwrap();
            assert_eq!(dir.stat_at(b"f").unwrap().mtime, mtime);
            let meta = std::fs::metadata(temp.path().join("f")).unwrap();
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (sec, 123_456_789));
        }
    }

    #[test]
    fn special_files_get_kind_mode_and_device_number() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        for (name, kind) in [("p", Kind::Fifo), ("s", Kind::Socket)] {
            dir.mknod_at(name.as_bytes(), kind, 0o600, 9, 9).unwrap();
            dir.chmod_at(name.as_bytes(), 0o4751).unwrap();
            let stat = dir.stat_at(name.as_bytes()).unwrap();
            assert_eq!((stat.kind, stat.perm, stat.rdev_major), (kind, 0o4751, 0));
        }
        let made = dir.mknod_at(b"c", Kind::CharDevice, 0o666, 7, 300_000);
        if super::super::process::geteuid() == 0 {
            made.unwrap();
            let stat = dir.stat_at(b"c").unwrap();
            assert_eq!((stat.kind, stat.rdev_major, stat.rdev_minor), (Kind::CharDevice, 7, 300_000));
            crate::os::file::chown(dir.open_entry(b"c").unwrap(), 1234, 5678).unwrap();
            let stat = dir.stat_at(b"c").unwrap();
            assert_eq!((stat.uid, stat.gid), (1234, 5678));
        } else {
            assert_eq!(made.unwrap_err().raw_os_error(), Some(libc::EPERM));
        }
    }

    #[test]
    fn a_rename_to_a_new_name_never_replaces() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        dir.create_file(b"a", 0o600).unwrap();
        dir.create_file(b"b", 0o600).unwrap();
        assert_eq!(dir.rename_new_at(b"a", &dir, b"b").unwrap_err().raw_os_error(), Some(libc::EEXIST));
        dir.rename_new_at(b"a", &dir, b"c").unwrap();
        dir.rename_at(b"c", &dir, b"b").unwrap();
        dir.sync().unwrap();
        let names: Vec<_> = std::fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.iter().map(|n| n.as_bytes()).collect::<Vec<_>>(), [b"b"]);
    }

    #[test]
    fn an_unnamed_file_gets_a_name_once_and_replaces_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        let mut file = dir.open_place(b".").unwrap().create_unnamed(0o600).unwrap().expect("O_TMPFILE");
        file.write_all(b"content").unwrap();
        assert_eq!(dir.read_names().unwrap(), Vec::<Vec<u8>>::new());
        dir.create_file(b"taken", 0o600).unwrap();
        assert_eq!(dir.link_open(&file, b"taken").unwrap_err().raw_os_error(), Some(libc::EEXIST));
        dir.link_open(&file, b"new").unwrap();
        assert_eq!(std::fs::read(temp.path().join("new")).unwrap(), b"content");
    }

    #[test]
    fn opening_a_fifo_does_not_wait() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        dir.mknod_at(b"p", Kind::Fifo, 0o600, 0, 0).unwrap();
        let file = dir.open_file(b"p").unwrap();
        assert_eq!(stat::of_fd(&file).unwrap().kind, Kind::Fifo);
    }
}
