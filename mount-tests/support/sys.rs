//! The few system calls that the standard library has no name for.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

pub fn euid() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}

/// Sends a signal to a child that was not waited for yet.
pub fn kill(child: u32, signal: i32) -> io::Result<()> {
    // SAFETY: two numbers; the child's id can't have been given to another process.
    match unsafe { libc::kill(child as libc::pid_t, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn seek(file: &File, offset: i64, whence: i32) -> io::Result<u64> {
    // SAFETY: the descriptor is open for the whole call.
    match unsafe { libc::lseek(file.as_raw_fd(), offset, whence) } {
        -1 => Err(io::Error::last_os_error()),
        at => Ok(at as u64),
    }
}

/// The data ranges (start, end) of a file by SEEK_DATA and SEEK_HOLE.
pub fn data_ranges(path: &Path) -> io::Result<Vec<(u64, u64)>> {
    let file = File::open(path)?;
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let start = match seek(&file, at, libc::SEEK_DATA) {
            Ok(start) => start,
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return Ok(ranges),
            Err(e) => return Err(e),
        };
        let end = seek(&file, start as i64, libc::SEEK_HOLE)?;
        ranges.push((start, end));
        at = end as i64;
    }
}

/// Result of one lseek with a given whence.
pub fn seek_errno(path: &Path, offset: i64, whence: i32) -> Result<u64, i32> {
    let file = File::open(path).expect("open");
    seek(&file, offset, whence).map_err(|e| e.raw_os_error().unwrap_or(0))
}

/// A copy of the file's bytes, read through a private memory map.
pub fn mmap_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len() as usize;
    // SAFETY: a fresh private mapping of `len` bytes of an open file, unmapped below and not used after.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0);
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let bytes = std::slice::from_raw_parts(at.cast::<u8>(), len).to_vec();
        libc::munmap(at, len);
        Ok(bytes)
    }
}

/// Walks down `levels` directories named `name` below `base`, which may be deeper than any path can name.
fn walk_down(base: &Path, name: &str, levels: usize, create: bool) -> io::Result<File> {
    let name = CString::new(name)?;
    let mut dir = File::open(base)?;
    for _ in 0..levels {
        // SAFETY: the descriptor is open and the name is a C string; the new descriptor is owned by one File.
        dir = unsafe {
            if create && libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), 0o755) != 0 {
                return Err(io::Error::last_os_error());
            }
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            match libc::openat(dir.as_raw_fd(), name.as_ptr(), flags) {
                -1 => return Err(io::Error::last_os_error()),
                fd => File::from_raw_fd(fd),
            }
        };
    }
    Ok(dir)
}

fn open_in(dir: &File, name: &str, flags: i32) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: as above.
    match unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC, 0o644) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: a descriptor that nobody else owns.
        fd => Ok(unsafe { File::from_raw_fd(fd) }),
    }
}

/// Makes `levels` nested directories with a file `leaf` in the last one.
pub fn write_deep(base: &Path, name: &str, levels: usize, leaf: &str, bytes: &[u8]) -> io::Result<()> {
    let dir = walk_down(base, name, levels, true)?;
    open_in(&dir, leaf, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY)?.write_all(bytes)
}

pub fn read_deep(base: &Path, name: &str, levels: usize, leaf: &str) -> io::Result<Vec<u8>> {
    let dir = walk_down(base, name, levels, false)?;
    let mut bytes = Vec::new();
    open_in(&dir, leaf, libc::O_RDONLY)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How the whole file reads in pieces of `piece` bytes: the bytes, and the pieces (by number) that gave EIO.
/// Any other error, a short read before the end, or bytes past the end panic.
pub fn read_pieces(path: &Path, piece: usize) -> (Vec<u8>, Vec<usize>) {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let len = file.metadata().expect("stat").len() as usize;
    let mut bytes = vec![0; len];
    let mut bad = Vec::new();
    for (number, chunk) in bytes.chunks_mut(piece).enumerate() {
        match file.read_at(chunk, (number * piece) as u64) {
            Ok(got) => assert_eq!(got, chunk.len(), "{}: short read of piece {number}", path.display()),
            Err(e) if e.raw_os_error() == Some(libc::EIO) => bad.push(number),
            Err(e) => panic!("{}: piece {number}: {e}", path.display()),
        }
    }
    assert!(matches!(file.read_at(&mut [0; 16], len as u64), Ok(0)), "{}: bytes past the end", path.display());
    (bytes, bad)
}
