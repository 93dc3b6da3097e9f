//! Reading files that may change meanwhile, and cutting long ones into blocks.
//!
//! Invariants: a file is read through one descriptor that was opened without following symlinks and without
//! blocking; it is read to its end, whatever `stat` says of its size (/proc and many a FUSE file system say 0);
//! `stat` before and after must agree, or it is read again (three times in all), and then saved as it was read,
//! marked unsettled; the file hash is of exactly the bytes that went into blocks (and holes).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastcdc::v2020::{FastCDC, Normalization};

use super::block::HashedBlock;
use crate::catalog::{Attr, HASHED_HOLE_BYTES, Kind, Timespec, Xattrs};
use crate::crypto::FileHasher;
use crate::error::{Error, Result};
use crate::ids::FileHash;
use crate::live;
use crate::os::{DirFd, Stat, file, stat, xattr};

/// How often a file is read that changes meanwhile.
pub const TRIES: u32 = 3;
/// A file that was small when it was listed is read into memory up to here (or to what is one block anyway).
const MAX_GROWN_BYTES: u64 = 8 << 20;

/// Why a file is not saved.
#[derive(Debug)]
pub enum FileError {
    /// It was removed, or replaced by something that is no regular file, before it could be opened.
    Vanished,
    Io(io::Error),
    /// Something that concerns the whole run.
    Fatal(Error),
}

impl From<io::Error> for FileError {
    fn from(e: io::Error) -> FileError {
        match e.raw_os_error() {
            Some(libc::ENOENT | libc::ELOOP | libc::ESTALE) => FileError::Vanished,
            _ => FileError::Io(e),
        }
    }
}

/// A file after its last byte, but for its blocks.
#[derive(Debug)]
pub struct Read {
    /// As `stat` said after the last byte; the size is that of what was read.
    pub attr: Attr,
    pub xattrs: Xattrs,
    /// Why some of its extended attributes are missing.
    pub xattrs_failed: Option<io::Error>,
    /// None for one that is mostly holes.
    pub sha1: Option<FileHash>,
    pub racy: bool,
    pub unsettled: bool,
    /// The name stands for another file now than when it was listed: other names of that one are not about this.
    pub replaced: bool,
}

/// A file that was read whole into one block.
#[derive(Debug)]
pub struct FileRead {
    pub read: Read,
    /// None for an empty file.
    pub block: Option<HashedBlock>,
}

impl Read {
    fn new(
        opened: &File,
        listed: &Stat,
        states: [Stat; 2],
        began: Timespec,
        size: u64,
        sha1: Option<FileHash>,
    ) -> Read {
        let [before, after] = states;
        let (xattrs, xattrs_failed) = live::readable_xattrs(xattr::Subject::Fd(opened.as_fd()));
        let unsettled = !same_state(&before, &after);
        let in_doubt = unsettled || size != after.size || xattrs_failed.is_some();
        let attr = Attr { size, ..live::attr(&after) };
        let (racy, replaced) = (in_doubt || is_racy(after.ctime, began), !after.same_file(listed));
        Read { attr, xattrs, xattrs_failed, sha1, racy, unsettled, replaced }
    }
}

/// Reads a file that had at most `block_bytes`, as one block. None when it is so long that it has to be read piece by
/// piece.
pub fn whole_file(
    dir: &DirFd,
    name: &[u8],
    listed: &Stat,
    block_bytes: u64,
    buffer: &mut Vec<u8>,
    mut to_block: impl FnMut(&[u8]) -> HashedBlock,
) -> Result<Option<FileRead>, FileError> {
    let mut tries = TRIES;
    let most_bytes = MAX_GROWN_BYTES.max(block_bytes);
    let mut read = loop {
        let began = now();
        let opened = open(dir, name)?;
        let before = stat::of_fd(&opened)?;
        let expected = before.size.max(listed.size).min(most_bytes);
        if before.size > most_bytes || !to_the_end(&opened, expected as usize, most_bytes as usize, buffer)? {
            return Ok(None);
        }
        let after = stat::of_fd(&opened)?;
        tries -= 1;
        if same_state(&before, &after) || tries == 0 {
            break Read::new(&opened, listed, [before, after], began, buffer.len() as u64, None);
        }
    };
    let mut hasher = FileHasher::default();
    hasher.update(buffer);
    read.sha1 = Some(hasher.finish());
    let block = if buffer.is_empty() { None } else { Some(to_block(buffer)) };
    Ok(Some(FileRead { read, block }))
}

/// Fills the buffer with all that the file holds; false when that is more than `most_bytes`.
fn to_the_end(opened: &File, expected_bytes: usize, most_bytes: usize, buffer: &mut Vec<u8>) -> io::Result<bool> {
    buffer.clear();
    let mut room = expected_bytes + 1;
    loop {
        let kept = buffer.len();
        buffer.resize(kept + room, 0);
        let got = file::read_up_to(opened, buffer.get_mut(kept..).unwrap_or_default(), kept as u64)?;
        buffer.truncate(kept + got);
        if got < room || buffer.len() > most_bytes {
            return Ok(buffer.len() <= most_bytes);
        }
        room = (2 * buffer.len()).max(64 << 10);
    }
}

/// Opens a regular file; anything else that has taken its place counts as vanished.
pub fn open(dir: &DirFd, name: &[u8]) -> Result<File, FileError> {
    let opened = dir.open_file(name)?;
    match stat::of_fd(&opened)?.kind {
        Kind::File => Ok(opened),
        _ => Err(FileError::Vanished),
    }
}

/// True when nothing that a write changes differs.
pub fn same_state(a: &Stat, b: &Stat) -> bool {
    (a.size, a.mtime, a.ctime) == (b.size, b.mtime, b.ctime)
}

/// The ctime is so close to the time of reading that a change just after it could leave it as it is: file systems
/// stamp with the kernel's tick (up to 10 ms), some only with one or two seconds.
pub fn is_racy(ctime: Timespec, began: Timespec) -> bool {
    let slack = if ctime.nsec == 0 { Duration::from_secs(2) } else { Duration::from_millis(100) };
    let edge = i128::from(ctime.sec) * 1_000_000_000 + i128::from(ctime.nsec) + slack.as_nanos() as i128;
    edge >= i128::from(began.sec) * 1_000_000_000 + i128::from(began.nsec)
}

/// The system clock.
pub fn now() -> Timespec {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timespec { sec: since.as_secs() as i64, nsec: since.subsec_nanos() }
}

/// How a file's bytes are cut into blocks.
#[derive(Debug, Clone, Copy)]
pub enum Cutting {
    /// FastCDC (Xia et al., 2020) with this average size, a power of two.
    Content {
        average_bytes: u32,
        seed: u64,
    },
    Fixed {
        block_bytes: u32,
    },
}

impl Cutting {
    /// Files up to this size are one block.
    pub fn whole_file_bytes(&self) -> u64 {
        match self {
            Cutting::Content { average_bytes, .. } => u64::from(*average_bytes),
            Cutting::Fixed { block_bytes } => u64::from(*block_bytes),
        }
    }

    fn longest_bytes(&self) -> usize {
        match self {
            Cutting::Content { average_bytes, .. } => *average_bytes as usize * 4,
            Cutting::Fixed { block_bytes } => *block_bytes as usize,
        }
    }
}

/// A stretch of a long file, in order.
pub enum Piece<'a> {
    Hole(u64),
    Block(&'a [u8]),
    /// Only asks whether to go on.
    Nothing,
}

const READ_BYTES: usize = 4 << 20;

/// Opens a file, reads it once from start to end and hands out its pieces. None when `emit` has returned false.
pub fn long_pass(
    dir: &DirFd,
    name: &[u8],
    listed: &Stat,
    cutting: Cutting,
    emit: impl FnMut(Piece<'_>) -> bool,
) -> Result<Option<Read>, FileError> {
    let began = now();
    let opened = open(dir, name)?;
    let before = stat::of_fd(&opened)?;
    let Some((size, sha1)) = long_file(&opened, before.size, cutting, emit).map_err(FileError::Io)? else {
        return Ok(None);
    };
    let after = stat::of_fd(&opened)?;
    Ok(Some(Read::new(&opened, listed, [before, after], began, size, sha1)))
}

/// Reads a file once from start to end and hands out its pieces; stops early when `emit` returns false. Returns its
/// size and hash.
fn long_file(
    opened: &File,
    size: u64,
    cutting: Cutting,
    emit: impl FnMut(Piece<'_>) -> bool,
) -> io::Result<Option<(u64, Option<FileHash>)>> {
    let mut pass = Pass { opened, cutting, emit, hash: SparseHasher::default(), buffer: Vec::new() };
    let mut at = 0;
    for range in file::data_ranges(opened, size) {
        let range = range?;
        if !pass.hole(range.start - at) {
            return Ok(None);
        }
        match pass.data(range.clone())? {
            Some(end) if end < range.end => return Ok(Some((end, pass.hash.finish()))),
            Some(end) => at = end,
            None => return Ok(None),
        }
    }
    if !pass.hole(size - at) {
        return Ok(None);
    }
    // One that grows is read again; one that has more than it says is read to its end.
    let grows = stat::of_fd(opened)?.size > size;
    let end = if grows { Some(size) } else { pass.data(size..i64::MAX as u64)? };
    Ok(end.map(|end| (end, pass.hash.finish())))
}

/// One pass over a long file.
struct Pass<'a, Emit> {
    opened: &'a File,
    cutting: Cutting,
    emit: Emit,
    hash: SparseHasher,
    buffer: Vec<u8>,
}

impl<Emit: FnMut(Piece<'_>) -> bool> Pass<'_, Emit> {
    /// False when it was stopped.
    fn hole(&mut self, len: u64) -> bool {
        let emit = &mut self.emit;
        len == 0 || (self.hash.zeros(len, || emit(Piece::Nothing)) && emit(Piece::Hole(len)))
    }

    /// Returns where the data ended: before the end of the range, if the file does. None when it was stopped.
    fn data(&mut self, range: Range<u64>) -> io::Result<Option<u64>> {
        let mut next = range.start;
        self.buffer.clear();
        while next < range.end || !self.buffer.is_empty() {
            let room = READ_BYTES.max(2 * self.cutting.longest_bytes()).saturating_sub(self.buffer.len());
            let fill = (range.end - next).min(room as u64) as usize;
            let kept = self.buffer.len();
            self.buffer.resize(kept + fill, 0);
            let got = file::read_up_to(self.opened, self.buffer.get_mut(kept..).unwrap_or_default(), next)?;
            self.buffer.truncate(kept + got);
            self.hash.data(self.buffer.get(kept..).unwrap_or_default());
            next += got as u64;
            let short = got < fill;
            let emit = &mut self.emit;
            let last = short || next >= range.end;
            let done = cut(&self.buffer, self.cutting, last, |block| emit(Piece::Block(block)));
            let Some(done) = done else { return Ok(None) };
            self.buffer.drain(..done);
            if short {
                break;
            }
        }
        Ok(Some(next))
    }
}

/// The hash of a file with holes, as long as hashing their zeros takes no longer than the file is worth.
struct SparseHasher {
    hasher: Option<FileHasher>,
    zeros_left: u64,
}

impl Default for SparseHasher {
    fn default() -> SparseHasher {
        SparseHasher { hasher: Some(FileHasher::default()), zeros_left: HASHED_HOLE_BYTES }
    }
}

impl SparseHasher {
    fn data(&mut self, bytes: &[u8]) {
        self.zeros_left = self.zeros_left.saturating_add(bytes.len() as u64);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
    }

    /// False when `go_on`, which is asked now and then, has said so.
    fn zeros(&mut self, mut len: u64, mut go_on: impl FnMut() -> bool) -> bool {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        match self.zeros_left.checked_sub(len) {
            Some(left) => self.zeros_left = left,
            None => self.hasher = None,
        }
        let Some(hasher) = &mut self.hasher else { return true };
        while len > 0 {
            let step = len.min(ZEROS.len() as u64);
            hasher.update(ZEROS.get(..step as usize).unwrap_or(&ZEROS));
            len -= step;
            if len % (16 << 20) < step && !go_on() {
                return false;
            }
        }
        true
    }

    fn finish(self) -> Option<FileHash> {
        self.hasher.map(FileHasher::finish)
    }
}

/// Hands out whole blocks from the front of `bytes`; all of it when `last`. Returns how many bytes that were.
fn cut(bytes: &[u8], cutting: Cutting, last: bool, mut emit: impl FnMut(&[u8]) -> bool) -> Option<usize> {
    let mut done = 0;
    let longest = cutting.longest_bytes();
    let chunker = match cutting {
        Cutting::Content { average_bytes, seed } => {
            let average = average_bytes as usize;
            Some(FastCDC::with_level_and_seed(bytes, average / 4, average, average * 4, Normalization::Level1, seed))
        }
        Cutting::Fixed { .. } => None,
    };
    while done < bytes.len() && (last || bytes.len() - done >= longest) {
        let end = match &chunker {
            Some(chunker) => chunker.cut(done, bytes.len() - done).1,
            None => (done + longest).min(bytes.len()),
        };
        // A chunker that does not advance would loop for ever.
        let end = if end > done { end } else { bytes.len() };
        if !emit(bytes.get(done..end)?) {
            return None;
        }
        done = end;
    }
    Some(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha1::{Digest, Sha1};
    use std::io::{Seek, SeekFrom, Write};

    fn pieces(file: &File, size: u64, cutting: Cutting) -> (Vec<u8>, Vec<usize>, u64, (u64, Option<FileHash>)) {
        let (mut bytes, mut lens, mut holes) = (Vec::new(), Vec::new(), 0);
        let pass = long_file(file, size, cutting, |piece| {
            match piece {
                Piece::Hole(len) => {
                    holes += len;
                    bytes.resize(bytes.len() + len as usize, 0);
                }
                Piece::Block(block) => {
                    lens.push(block.len());
                    bytes.extend_from_slice(block);
                }
                Piece::Nothing => {}
            }
            true
        });
        (bytes, lens, holes, pass.unwrap().unwrap())
    }

    #[test]
    fn pieces_of_a_sparse_file_add_up_to_it_in_bounds_and_with_its_sha1() {
        let mut file = tempfile::tempfile().unwrap();
        let noise: Vec<u8> = (0..9_000_001u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        file.seek(SeekFrom::Start(1 << 20)).unwrap();
        file.write_all(&noise).unwrap();
        let size = (1 << 20) + noise.len() as u64 + (3 << 20);
        file.set_len(size).unwrap();
        let mut wanted = vec![0; 1 << 20];
        wanted.extend_from_slice(&noise);
        wanted.resize(size as usize, 0);
        for cutting in [
            Cutting::Content { average_bytes: 64 << 10, seed: 7 },
            Cutting::Content { average_bytes: 1 << 20, seed: 0 },
            Cutting::Fixed { block_bytes: 100_000 },
        ] {
            let (bytes, lens, holes, pass) = pieces(&file, size, cutting);
            assert!(bytes == wanted);
            assert_eq!(pass, (size, Some(FileHash(Sha1::digest(&wanted).into()))));
            assert!(holes >= 3 << 20, "holes are kept");
            assert!(lens.iter().all(|len| *len <= cutting.longest_bytes()));
            let short = lens.iter().filter(|len| **len < cutting.longest_bytes() / 16).count();
            assert!(short <= 1, "only the last block may be shorter than a quarter of the average");
        }
    }

    #[test]
    fn a_file_that_has_more_than_it_says_is_read_to_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        let noise: Vec<u8> = (0..300_000u32).flat_map(|n| n.to_le_bytes()).collect();
        file.write_all(&noise).unwrap();
        let cutting = Cutting::Content { average_bytes: 64 << 10, seed: 7 };
        // It grew since: what it was is what is read.
        assert_eq!(pieces(&file, 1000, cutting).3.0, 1000);
        let cpus = File::open("/proc/cpuinfo").unwrap();
        let wanted = std::fs::read("/proc/cpuinfo").unwrap();
        let (bytes, _, _, (size, _)) = pieces(&cpus, 0, cutting);
        assert_eq!((bytes.len(), size), (wanted.len(), wanted.len() as u64));
        let mut buffer = Vec::new();
        assert!(to_the_end(&cpus, 0, 1 << 20, &mut buffer).unwrap() && buffer.len() == wanted.len());
        assert!(to_the_end(&file, 10, noise.len(), &mut buffer).unwrap() && buffer == noise);
        assert!(!to_the_end(&file, 10, noise.len() - 1, &mut buffer).unwrap());
    }

    #[test]
    fn huge_holes_take_no_time_and_can_be_stopped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 42).unwrap();
        let cutting = Cutting::Content { average_bytes: 64 << 10, seed: 7 };
        let mut holes = 0;
        let count = |piece: Piece<'_>| {
            holes += if let Piece::Hole(len) = piece { len } else { 0 };
            true
        };
        assert_eq!(long_file(&file, 1 << 42, cutting, count).unwrap(), Some((1 << 42, None)));
        assert_eq!(holes, 1 << 42);
        file.set_len(1 << 29).unwrap();
        let mut asked = 0;
        let stop = |piece: Piece<'_>| {
            asked += u32::from(matches!(piece, Piece::Nothing));
            asked < 3
        };
        assert_eq!(long_file(&file, 1 << 29, cutting, stop).unwrap(), None);
    }

    #[test]
    fn cut_points_follow_the_content_and_the_seed() {
        let noise: Vec<u8> = (0..150_000u32).flat_map(|n| Sha1::digest(n.to_le_bytes()).to_vec()).collect();
        let blocks = |bytes: &[u8], seed| {
            let mut all = std::collections::BTreeSet::new();
            cut(bytes, Cutting::Content { average_bytes: 64 << 10, seed }, true, |b| {
                all.insert(b.to_vec());
                true
            });
            all
        };
        let shifted: Vec<u8> = [b"inserted".as_slice(), &noise].concat();
        let (a, b) = (blocks(&noise, 1), blocks(&shifted, 1));
        assert!(a.intersection(&b).count() * 10 > a.len() * 8, "an insertion changes few blocks");
        assert!(blocks(&noise, 2).intersection(&a).count() < 3, "another seed cuts elsewhere");
    }

    #[test]
    fn a_fresh_ctime_is_racy() {
        let at = |sec, nsec| Timespec { sec, nsec };
        assert!(is_racy(at(100, 5), at(100, 6)));
        assert!(is_racy(at(100, 5), at(99, 0)), "a clock that was set back proves nothing");
        assert!(!is_racy(at(100, 5), at(101, 0)));
        assert!(is_racy(at(100, 0), at(101, 0)) && !is_racy(at(100, 0), at(103, 0)));
    }
}
