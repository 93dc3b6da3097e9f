//! Extended attributes of anything, also of symlinks, fifos, devices and files that can't be opened.
//!
//! The calls take an open file or a path. What has neither is reached as `/proc/self/fd/N/name`, and where /proc is not
//! mounted by a thread that goes into the directory.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use super::{DirFd, c_string, check};

/// Whose attributes.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// An open file or directory, `O_PATH` too.
    Fd(BorrowedFd<'a>),
    /// An entry of a directory, not following a symlink.
    At(&'a DirFd, &'a [u8]),
}

/// A subject as the calls take it.
#[derive(Clone, Copy)]
enum Target<'a> {
    Fd(i32),
    /// The kernel's link to an open file, which must be followed.
    Link(&'a CStr),
    Entry(&'a CStr),
}

impl Subject<'_> {
    fn call<T: Send>(self, call: impl Fn(Target<'_>) -> io::Result<T> + Sync) -> io::Result<T> {
        match self {
            Subject::Fd(fd) if !is_place(fd) => call(Target::Fd(fd.as_raw_fd())),
            Subject::Fd(fd) if proc_is_there() => call(Target::Link(&link_to(fd, b"")?)),
            Subject::Fd(fd) => inside(fd, || call(Target::Entry(c"."))),
            Subject::At(dir, name) if proc_is_there() => {
                call(Target::Entry(&link_to(dir.as_fd(), &[b"/", name].concat())?))
            }
            Subject::At(dir, name) => {
                let name = c_string(name)?;
                inside(dir.as_fd(), || call(Target::Entry(&name)))
            }
        }
    }
}

fn link_to(fd: BorrowedFd<'_>, rest: &[u8]) -> io::Result<CString> {
    c_string(&[format!("/proc/self/fd/{}", fd.as_raw_fd()).as_bytes(), rest].concat())
}

fn proc_is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| std::fs::symlink_metadata("/proc/self/fd").is_ok())
}

/// Opened with `O_PATH`.
fn is_place(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: no memory is involved.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    flags >= 0 && flags & libc::O_PATH != 0
}

/// Runs `call` in a thread that has `dir` as its working directory, and nobody else has.
fn inside<T: Send>(dir: BorrowedFd<'_>, call: impl Fn() -> io::Result<T> + Sync) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no memory is involved; only this thread's working directory becomes its own.
            check(|| unsafe { libc::unshare(libc::CLONE_FS) })?;
            // SAFETY: no memory is involved.
            check(|| unsafe { libc::fchdir(dir.as_raw_fd()) })?;
            call()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread died")))
    })
}

/// Names of the attributes that the caller may see, in the order of the file system.
pub fn list(subject: Subject<'_>) -> io::Result<Vec<Vec<u8>>> {
    let packed = subject.call(|target| {
        read_growing(|buffer| {
            let (data, len) = (buffer.as_mut_ptr().cast(), buffer.len());
            // SAFETY: the path is NUL-terminated and at most `len` bytes are written to the buffer.
            check(|| unsafe {
                match target {
                    Target::Fd(fd) => libc::flistxattr(fd, data, len),
                    Target::Link(path) => libc::listxattr(path.as_ptr(), data, len),
                    Target::Entry(path) => libc::llistxattr(path.as_ptr(), data, len),
                }
            })
        })
    })?;
    Ok(packed.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Value of one attribute; ENODATA if there is none of that name.
pub fn get(subject: Subject<'_>, attribute: &[u8]) -> io::Result<Vec<u8>> {
    let attribute = c_string(attribute)?;
    subject.call(|target| {
        read_growing(|buffer| {
            let (data, len) = (buffer.as_mut_ptr().cast(), buffer.len());
            // SAFETY: both strings are NUL-terminated and at most `len` bytes are written to the buffer.
            check(|| unsafe {
                match target {
                    Target::Fd(fd) => libc::fgetxattr(fd, attribute.as_ptr(), data, len),
                    Target::Link(path) => libc::getxattr(path.as_ptr(), attribute.as_ptr(), data, len),
                    Target::Entry(path) => libc::lgetxattr(path.as_ptr(), attribute.as_ptr(), data, len),
                }
            })
        })
    })
}

/// Creates or replaces one attribute.
pub fn set(subject: Subject<'_>, attribute: &[u8], value: &[u8]) -> io::Result<()> {
    let attribute = c_string(attribute)?;
    subject.call(|target| {
        let (data, len) = (value.as_ptr().cast(), value.len());
        // SAFETY: both strings are NUL-terminated and `len` bytes of the value are read.
        check(|| unsafe {
            match target {
                Target::Fd(fd) => libc::fsetxattr(fd, attribute.as_ptr(), data, len, 0),
                Target::Link(path) => libc::setxattr(path.as_ptr(), attribute.as_ptr(), data, len, 0),
                Target::Entry(path) => libc::lsetxattr(path.as_ptr(), attribute.as_ptr(), data, len, 0),
            }
        })
        .map(drop)
    })
}

/// Removes one attribute; ENODATA if there is none of that name.
pub fn remove(subject: Subject<'_>, attribute: &[u8]) -> io::Result<()> {
    let attribute = c_string(attribute)?;
    subject.call(|target| {
        // SAFETY: both strings are NUL-terminated.
        check(|| unsafe {
            match target {
                Target::Fd(fd) => libc::fremovexattr(fd, attribute.as_ptr()),
                Target::Link(path) => libc::removexattr(path.as_ptr(), attribute.as_ptr()),
                Target::Entry(path) => libc::lremovexattr(path.as_ptr(), attribute.as_ptr()),
            }
        })
        .map(drop)
    })
}

/// Calls with growing buffers until the answer fits (Linux allows 64 KiB, and says ERANGE for too little).
fn read_growing(mut call: impl FnMut(&mut [u8]) -> io::Result<isize>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; 512];
    loop {
        match call(&mut buffer) {
            Ok(len) => {
                buffer.truncate(usize::try_from(len).unwrap_or(0));
                return Ok(buffer);
            }
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && buffer.len() < 1 << 20 => {
                buffer.resize(buffer.len() * 16, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::Path;

    use super::*;
    use crate::catalog::Kind;
    use crate::os::process::geteuid;

    #[test]
    fn values_of_files_and_directories_round_trip_by_name_and_by_descriptor() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        let file = dir.create_file(b"f", 0o600).unwrap();
        let long: Vec<u8> = (0..3_000u32).map(|i| i as u8).collect();
        set(Subject::At(&dir, b"f"), b"user.long", &long).unwrap();
        set(Subject::Fd(file.as_fd()), b"user.empty", b"").unwrap();
        assert_eq!(get(Subject::Fd(file.as_fd()), b"user.long").unwrap(), long);
        assert_eq!(get(Subject::At(&dir, b"f"), b"user.empty").unwrap(), b"");
        let mut names = list(Subject::At(&dir, b"f")).unwrap();
        names.sort();
        assert_eq!(names, [b"user.empty".to_vec(), b"user.long".to_vec()]);
        remove(Subject::At(&dir, b"f"), b"user.long").unwrap();
        let missing = get(Subject::At(&dir, b"f"), b"user.long").unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENODATA));
        set(Subject::Fd(dir.as_fd()), b"user.dir", b"d").unwrap();
        let place = DirFd::open(temp.path().parent().unwrap()).unwrap();
        let place = place.open_place(temp.path().file_name().unwrap().as_encoded_bytes()).unwrap();
        assert_eq!(get(Subject::Fd(place.as_fd()), b"user.dir").unwrap(), b"d");
    }

    #[test]
    fn a_thread_inside_the_directory_sees_what_a_path_through_proc_sees() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        let place = DirFd::open(temp.path().parent().unwrap()).unwrap();
        let place = place.open_place(temp.path().file_name().unwrap().as_encoded_bytes()).unwrap();
        dir.create_file(b"f", 0o600).unwrap();
        set(Subject::At(&dir, b"f"), b"user.a", b"1").unwrap();
        set(Subject::Fd(dir.as_fd()), b"user.dir", b"2").unwrap();
        let before = std::env::current_dir().unwrap();
        let names = |name: &'static CStr| {
            inside(place.as_fd(), || {
                let mut buffer = [0u8; 64];
                // SAFETY: the name is NUL-terminated and at most 64 bytes are written.
                let len = check(|| unsafe { libc::llistxattr(name.as_ptr(), buffer.as_mut_ptr().cast(), 64) })?;
                Ok(buffer[..len as usize].to_vec())
            })
        };
        assert_eq!((names(c"f").unwrap(), names(c".").unwrap()), (b"user.a\0".to_vec(), b"user.dir\0".to_vec()));
        assert_eq!(names(c"none").unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert_eq!(std::env::current_dir().unwrap(), before);
    }

    #[test]
    fn acl_bytes_are_kept_as_they_are() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        dir.create_file(b"f", 0o640).unwrap();
        // Version 2; user::rw- user:1234:r-- group::r-- mask::r-- other::---
        let mut acl = vec![2, 0, 0, 0];
        let entries: [(u16, u16, u32); 5] =
            [(1, 6, u32::MAX), (2, 4, 1234), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
        for (tag, perm, id) in entries {
            acl.extend([&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        set(Subject::At(&dir, b"f"), b"system.posix_acl_access", &acl).unwrap();
        assert_eq!(get(Subject::At(&dir, b"f"), b"system.posix_acl_access").unwrap(), acl);
        assert_eq!(list(Subject::At(&dir, b"f")).unwrap(), [b"system.posix_acl_access".to_vec()]);
    }

    #[test]
    fn a_symlink_is_not_followed_and_special_files_can_be_asked() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        dir.create_file(b"f", 0o600).unwrap();
        set(Subject::At(&dir, b"f"), b"user.a", b"1").unwrap();
        dir.symlink_at(b"f", b"l").unwrap();
        dir.mknod_at(b"p", Kind::Fifo, 0o600, 0, 0).unwrap();
        assert_eq!(list(Subject::At(&dir, b"l")).unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(list(Subject::At(&dir, b"p")).unwrap(), Vec::<Vec<u8>>::new());
        assert!(set(Subject::At(&dir, b"l"), b"user.b", b"2").is_err(), "user.* is not for symlinks");
        if geteuid() == 0 {
            for name in [b"l", b"p"] {
                set(Subject::At(&dir, name), b"trusted.t", b"v").unwrap();
                assert_eq!(get(Subject::At(&dir, name), b"trusted.t").unwrap(), b"v");
            }
            assert_eq!(list(Subject::At(&dir, b"f")).unwrap(), [b"user.a".to_vec()]);
        }
    }

    #[test]
    fn a_name_with_a_nul_is_refused() {
        let root = DirFd::open(Path::new("/")).unwrap();
        assert_eq!(list(Subject::At(&root, b"a\0b")).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
