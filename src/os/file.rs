//! Reading and writing an open file by offset; where its data is; what the page cache should do.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::dir::times_with;
use super::process::geteuid;
use super::{c_string, check};
use crate::catalog::Timespec;

/// Opens a file that the user names, by its path, to be read; nobody is waited for, be it a fifo.
pub fn open_named(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Fills `buffer` from `offset` on as far as the file goes; fewer bytes than asked for mean its end.
pub fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Ranges of `0..size` that hold data, in order; what lies between are holes.
///
/// Where the file system knows no holes, or answers nonsense (the file changes meanwhile), the rest counts as
/// data. Moves the file's position, so read by offset.
pub fn data_ranges(file: &File, size: u64) -> DataRanges<'_> {
    data_ranges_in(file, 0..size)
}

/// As [`data_ranges`], of a part of the file.
pub fn data_ranges_in(file: &File, part: Range<u64>) -> DataRanges<'_> {
    DataRanges { file, size: part.end, next: part.start }
}

/// Iterator of [`data_ranges`]; ends after the first error.
#[derive(Debug)]
pub struct DataRanges<'a> {
    file: &'a File,
    size: u64,
    next: u64,
}

impl Iterator for DataRanges<'_> {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.size {
            return None;
        }
        let range = match self.seek(self.next, libc::SEEK_DATA) {
            Ok(start) => self.seek(start, libc::SEEK_HOLE).map(|end| start..end),
            Err(error) => Err(error),
        };
        match range {
            Ok(range) if range.start >= self.size => {
                self.next = self.size;
                None
            }
            Ok(range) if range.start >= self.next && range.end > range.start => {
                self.next = range.end.min(self.size);
                Some(Ok(range.start..self.next))
            }
            Ok(_) => self.the_rest(),
            // No data up to the end.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                self.next = self.size;
                None
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)) => {
                self.the_rest()
            }
            Err(error) => {
                self.next = self.size;
                Some(Err(error))
            }
        }
    }
}

impl DataRanges<'_> {
    fn the_rest(&mut self) -> Option<io::Result<Range<u64>>> {
        let start = std::mem::replace(&mut self.next, self.size);
        Some(Ok(start..self.size))
    }

    fn seek(&self, from: u64, whence: i32) -> io::Result<u64> {
        let from = i64::try_from(from).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: no memory is involved.
        let found = check(|| unsafe { libc::lseek(self.file.as_raw_fd(), from, whence) })?;
        u64::try_from(found).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

/// Sets the modification time of what is open (`O_PATH` too) and leaves its access time alone.
pub fn set_mtime(file: impl AsFd, mtime: Timespec) -> io::Result<()> {
    let times = times_with(mtime);
    let fd = file.as_fd();
    // SAFETY: `times` has the two elements that the call reads.
    match check(|| unsafe { libc::futimens(fd.as_raw_fd(), times.as_ptr()) }) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
            let flags = libc::AT_EMPTY_PATH;
            // SAFETY: the empty name is NUL-terminated and `times` has the two elements that the call reads.
            let set = check(|| unsafe { libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), flags) });
            by_link_on_an_old_kernel(set, fd, |link| {
                // SAFETY: `link` is NUL-terminated and `times` has the two elements that the call reads.
                check(|| unsafe { libc::utimensat(libc::AT_FDCWD, link.as_ptr(), times.as_ptr(), 0) })
            })
        }
        other => other.map(drop),
    }
}

/// Sets owner and group of what is open (`O_PATH` too). Clears setuid and setgid: set the mode afterwards.
pub fn chown(file: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the empty name is NUL-terminated.
    check(|| unsafe { libc::fchownat(fd, c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) }).map(drop)
}

/// Sets the permission bits of what is open (`O_PATH` too); a symlink has none.
pub fn chmod(file: impl AsFd, perm: u32) -> io::Result<()> {
    let fd = file.as_fd();
    // SAFETY: no memory is involved.
    match check(|| unsafe { libc::fchmod(fd.as_raw_fd(), perm & 0o7777) }) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
            // SAFETY: the empty name is NUL-terminated.
            let set = check(|| unsafe {
                libc::syscall(SYS_FCHMODAT2, fd.as_raw_fd(), c"".as_ptr(), perm & 0o7777, libc::AT_EMPTY_PATH)
            });
            by_link_on_an_old_kernel(set.map(|_| 0), fd, |link| {
                // SAFETY: `link` is NUL-terminated.
                check(|| unsafe { libc::chmod(link.as_ptr(), perm & 0o7777) })
            })
        }
        other => other.map(drop),
    }
}

/// The same number on every architecture (Linux 6.6).
const SYS_FCHMODAT2: libc::c_long = 452;

/// What kernels that can't act on an `O_PATH` descriptor do by their link to it, which needs /proc.
fn by_link_on_an_old_kernel(
    done: io::Result<i32>,
    fd: BorrowedFd<'_>,
    by_link: impl FnOnce(CString) -> io::Result<i32>,
) -> io::Result<()> {
    match done {
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::ENOENT | libc::EPERM)) =>
        {
            by_link(c_string(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_bytes())?).map(drop)
        }
        other => other.map(drop),
    }
}

/// Bytes that this user can still write to the file system that holds what is open.
pub fn free_bytes(file: impl AsFd) -> io::Result<u64> {
    // SAFETY: `statvfs` is plain integers, for which zeros are valid.
    let mut raw: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `raw` is writable for the whole call.
    check(|| unsafe { libc::fstatvfs(file.as_fd().as_raw_fd(), &raw mut raw) })?;
    let blocks = if geteuid() == 0 { raw.f_bfree } else { raw.f_bavail };
    Ok(blocks.saturating_mul(raw.f_frsize))
}

/// What the page cache should expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    Sequential,
    /// Drops the clean pages.
    DontNeed,
}

/// Tells the page cache how a range is used (`len` 0: to the end); a hint, so without a result.
pub fn advise(file: &File, offset: u64, len: u64, advice: Advice) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    let advice = match advice {
        Advice::Sequential => libc::POSIX_FADV_SEQUENTIAL,
        Advice::DontNeed => libc::POSIX_FADV_DONTNEED,
    };
    // SAFETY: no memory is involved.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, advice) };
}

/// The page cache holds a file in pieces of up to this size, and forgets only those that lie in a range as a whole.
const CACHED_PIECE_BYTES: u64 = 2 << 20;

/// Makes the next read of a range come from the medium (`len` 0: from `offset` to the end).
///
/// Forgets whole pieces of the page cache, so more than the range, after what was written to them is on the medium:
/// the kernel keeps what is not.
pub fn forget_cached(file: &File, offset: u64, len: u64) {
    let start = offset / CACHED_PIECE_BYTES * CACHED_PIECE_BYTES;
    let len = match len {
        0 => 0,
        len => (offset - start).saturating_add(len).next_multiple_of(CACHED_PIECE_BYTES),
    };
    let (Ok(from), Ok(count)) = (i64::try_from(start), i64::try_from(len)) else { return };
    let written = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: no memory is involved.
    unsafe { libc::sync_file_range(file.as_raw_fd(), from, count, written) };
    advise(file, start, len, Advice::DontNeed);
}

#[cfg(test)]
mod tests {
    use super::super::DirFd;
    use super::*;
    use crate::os::stat;

    /// A directory on a disk: a file system in memory has no medium to read from.
    fn on_disk() -> tempfile::TempDir {
        tempfile::tempdir_in(if Path::new("/var/tmp").is_dir() { Path::new("/var/tmp") } else { Path::new(".") })
            .unwrap()
    }

    /// Pages of the file that are in the page cache.
    fn cached_pages(file: &File) -> Vec<bool> {
        let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
        // SAFETY: the mapping is only asked about, and unmapped again.
        unsafe {
            let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap();
            let at = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
            assert_ne!(at, libc::MAP_FAILED);
            let mut pages = vec![0u8; len.div_ceil(page)];
            assert_eq!(libc::mincore(at, len, pages.as_mut_ptr()), 0);
            libc::munmap(at, len);
            pages.iter().map(|page| page & 1 != 0).collect()
        }
    }

    #[test]
    fn what_is_forgotten_is_in_memory_no_more_however_small_and_however_fresh() {
        const PAGE: u64 = 4096;
        let temp = on_disk();
        let path = temp.path().join("f");
        for synced in [true, false] {
            std::fs::write(&path, vec![7; 5 << 20]).unwrap();
            let file = File::options().read(true).write(true).open(&path).unwrap();
            if synced {
                file.sync_all().unwrap();
            }
            // Within one page, over the border of two, up to the end of the file, all of it.
            for (offset, len) in [(PAGE + 100, 50), (7 * PAGE - 3, 6), ((5 << 20) - 10, 10), (0, 0)] {
                file.write_all_at(b"fresh", offset).unwrap();
                file.read_exact_at(&mut [0; 4], offset).unwrap();
                assert!(cached_pages(&file)[(offset / PAGE) as usize], "nothing to forget at {offset}");
                // A descriptor of its own, that can only read.
                forget_cached(&File::open(&path).unwrap(), offset, len);
                let cached = cached_pages(&file);
                let last = if len == 0 { cached.len() as u64 - 1 } else { (offset + len - 1) / PAGE };
                let left: Vec<u64> = (offset / PAGE..=last).filter(|page| cached[*page as usize]).collect();
                assert!(left.is_empty(), "pages {left:?} of {offset}+{len} are still there");
            }
            assert_eq!(std::fs::read(&path).unwrap()[PAGE as usize + 100..][..5], *b"fresh");
        }
    }

    #[test]
    fn reads_stop_at_the_end_and_only_there() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"0123456789", 0).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(read_up_to(&file, &mut buffer, 4).unwrap(), 6);
        assert_eq!(&buffer[..6], b"456789");
        assert_eq!(read_up_to(&file, &mut buffer, 100).unwrap(), 0);
        assert_eq!(file.read_exact_at(&mut buffer, 4).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        file.read_exact_at(&mut buffer, 2).unwrap();
        assert_eq!(&buffer, b"23456789");
    }

    #[test]
    fn data_ranges_cover_every_written_byte_and_skip_big_holes() {
        const MIB: u64 = 1 << 20;
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * MIB + 5).unwrap();
        for at in [3 * MIB + 7, 20 * MIB, 64 * MIB + 4] {
            file.write_all_at(b"x", at).unwrap();
        }
        let size = file.metadata().unwrap().len();
        let ranges: Vec<_> = data_ranges(&file, size).map(Result::unwrap).collect();
        for at in [3 * MIB + 7, 20 * MIB, 64 * MIB + 4] {
            assert!(ranges.iter().any(|range| range.contains(&at)), "{at} in {ranges:?}");
        }
        assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
        assert!(ranges.iter().all(|range| range.end <= size && !range.is_empty()));
        let data: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(data < 4 * MIB, "a file system without holes? {ranges:?}");
        assert_eq!(data_ranges(&file, 0).count(), 0);
        let hole = tempfile::tempfile().unwrap();
        hole.set_len(MIB).unwrap();
        assert_eq!(data_ranges(&hole, MIB).count(), 0);
    }

    #[test]
    fn a_file_that_answers_nonsense_counts_as_data() {
        // /dev/zero answers every lseek with 0.
        let zero = File::open("/dev/zero").unwrap();
        assert_eq!(
            data_ranges(&zero, 10).map(Result::unwrap).collect::<Vec<_>>(),
            Vec::from_iter([Range { start: 0, end: 10 }])
        );
    }

    #[test]
    fn a_place_gets_attributes_whoever_takes_its_name() {
        use crate::catalog::Kind;
        use crate::os::xattr::{self, Subject};
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap();
        let mtime = Timespec { sec: -5, nsec: 7 };
        dir.mknod_at(b"fifo", Kind::Fifo, 0o600, 0, 0).unwrap();
        dir.symlink_at(b"other", b"link").unwrap();
        dir.create_file(b"other", 0o600).unwrap();
        let other = dir.stat_at(b"other").unwrap();
        for name in [&b"fifo"[..], b"link"] {
            let place = dir.open_entry(name).unwrap();
            dir.rename_at(name, &dir, b"moved").unwrap();
            dir.link_at(b"other", &dir, name).unwrap();
            let (before, root) = (stat::of_fd(&place).unwrap(), crate::os::process::geteuid() == 0);
            set_mtime(&place, mtime).unwrap();
            let (uid, gid) = if root { (77, 78) } else { (before.uid, before.gid) };
            chown(&place, uid, gid).unwrap();
            if root {
                xattr::set(Subject::Fd(place.as_fd()), b"trusted.t", b"v").unwrap();
                assert_eq!(xattr::get(Subject::At(&dir, b"moved"), b"trusted.t").unwrap(), b"v");
                assert!(xattr::get(Subject::At(&dir, b"other"), b"trusted.t").is_err());
            }
            if before.kind == Kind::Fifo {
                chmod(&place, 0o4751).unwrap();
                assert_eq!(dir.stat_at(b"moved").unwrap().perm, 0o4751);
            }
            let moved = dir.stat_at(b"moved").unwrap();
            assert_eq!((moved.kind, moved.mtime, moved.uid, moved.gid), (before.kind, mtime, uid, gid));
            dir.unlink_at(name).unwrap();
            let now = dir.stat_at(b"other").unwrap();
            assert_eq!((now.perm, now.uid, now.mtime), (other.perm, other.uid, other.mtime));
        }
    }

    #[test]
    fn attributes_are_set_through_the_descriptor() {
        let file = tempfile::tempfile().unwrap();
        let mtime = Timespec { sec: -86_400 * 365 * 68, nsec: 999_999_999 };
        chmod(&file, 0o6755).unwrap();
        set_mtime(&file, mtime).unwrap();
        let found = stat::of_fd(&file).unwrap();
        assert_eq!((found.perm, found.mtime), (0o6755, mtime));
        if crate::os::process::geteuid() == 0 {
            chown(&file, 77, 78).unwrap();
            let found = stat::of_fd(&file).unwrap();
            assert_eq!((found.uid, found.gid, found.perm & 0o6000), (77, 78, 0), "chown clears setuid");
        }
        advise(&file, 0, 0, Advice::DontNeed);
    }
}
