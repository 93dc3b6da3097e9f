//! The only unsafe code and libc calls: files, directories, attributes and processes as Linux has them.
//!
//! Invariants: names and targets are raw bytes; nothing here follows a symlink unless its name says so; every
//! path is one name relative to an open directory, so that depth has no limit; errors are `io::Error` with the
//! errno that the kernel gave, and interrupted calls are repeated.

#![allow(unsafe_code)]

pub mod crash;
pub mod dir;
pub mod file;
pub mod lock;
pub mod mapped;
pub mod mounts;
pub mod process;
pub mod stat;
pub mod temp;
pub mod term;
pub mod xattr;

pub use dir::DirFd;
pub use stat::Stat;

use std::ffi::CString;
use std::io;

/// A file name, link target or attribute name as C wants it; a NUL inside is EINVAL.
fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Turns the -1 of a system call into its errno, and repeats an interrupted one.
fn check<T: PartialEq + From<i8>>(mut call: impl FnMut() -> T) -> io::Result<T> {
    loop {
        let result = call();
        if result != T::from(-1i8) {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
