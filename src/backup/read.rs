//! Reading files that may change meanwhile, and cutting long ones into blocks.
//!
//! Invariants: a file is read through one descriptor that was opened without following symlinks and without
//! blocking; `stat` before and after must agree, or it is read again (three times in all), and then saved as it
//! was read, marked unsettled; the file hash is of exactly the bytes that went into blocks (and holes).

use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastcdc::v2020::{FastCDC, Normalization};

use super::pipeline::HashedBlock;
use super::walk;
use crate::catalog::{Attr, Kind, Timespec, Xattrs};
use crate::crypto::FileHasher;
use crate::error::{Error, Result};
use crate::ids::FileHash;
use crate::os::{DirFd, Stat, file, stat};

const TRIES: u32 = 3;
/// A file that was small when it was listed is read up to here (or to what is one block anyway) if it grows meanwhile.
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

/// A file that was read whole into one block.
#[derive(Debug)]
pub struct FileRead {
    /// As `stat` said after the last byte; the size is that of what was read.
    pub attr: Attr,
    pub xattrs: Xattrs,
    pub sha1: FileHash,
    /// None for an empty file.
    pub block: Option<HashedBlock>,
    pub racy: bool,
    pub unsettled: bool,
    /// The name stands for another file now than when it was listed: other names of that one are not about this.
    pub replaced: bool,
}

/// Reads a file that had at most `block_bytes`, as one block.
///
/// # Errors
/// `Io` with EFBIG when it has grown far beyond that meanwhile: a part of it would be no state that it ever had.
pub fn whole_file(
    dir: &DirFd,
    name: &[u8],
    listed: &Stat,
    block_bytes: u64,
    buffer: &mut Vec<u8>,
    mut to_block: impl FnMut(&[u8]) -> Result<HashedBlock>,
) -> Result<FileRead, FileError> {
    let mut tries = TRIES;
    let most_bytes = MAX_GROWN_BYTES.max(block_bytes);
    let (after, xattrs, racy, unsettled) = loop {
        let began = now();
        let opened = open(dir, name)?;
        let before = stat::of_fd(&opened)?;
        if before.size > most_bytes {
            return Err(FileError::Io(io::Error::from_raw_os_error(libc::EFBIG)));
        }
        let wanted = before.size.max(listed.size) as usize;
        buffer.resize(wanted + 1, 0);
        let got = file::read_up_to(&opened, buffer, 0)?;
        buffer.truncate(got);
        let xattrs = walk::xattrs_of_fd(&opened)?;
        let after = stat::of_fd(&opened)?;
        let settled = same_state(&before, &after) && got as u64 == after.size;
        tries -= 1;
        if settled || tries == 0 {
            break (after, xattrs, is_racy(after.ctime, began), !settled);
        }
    };
    let mut hasher = FileHasher::default();
    hasher.update(buffer);
    let mut attr = walk::attr(&after);
    attr.size = buffer.len() as u64;
    let block = if buffer.is_empty() { None } else { Some(to_block(buffer).map_err(FileError::Fatal)?) };
    let replaced = !after.same_file(listed);
    Ok(FileRead { attr, xattrs, sha1: hasher.finish(), block, racy: racy || unsettled, unsettled, replaced })
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
}

/// What one pass over a long file found.
pub struct LongPass {
    pub sha1: FileHash,
    pub size: u64,
}

const READ_BYTES: usize = 4 << 20;

/// Reads a file once from start to end and hands out its pieces; stops early when `emit` returns false.
pub fn long_file(
    opened: &File,
    size: u64,
    cutting: Cutting,
    mut emit: impl FnMut(Piece<'_>) -> bool,
) -> io::Result<Option<LongPass>> {
    let mut hasher = FileHasher::default();
    let mut at = 0;
    let mut buffer = Vec::new();
    for range in file::data_ranges(opened, size) {
        let range = range?;
        if range.start > at {
            hash_zeros(&mut hasher, range.start - at);
            if !emit(Piece::Hole(range.start - at)) {
                return Ok(None);
            }
        }
        at = range.end;
        let mut next = range.start;
        buffer.clear();
        while next < range.end || !buffer.is_empty() {
            let room = READ_BYTES.max(2 * cutting.longest_bytes()).saturating_sub(buffer.len());
            let fill = (range.end - next).min(room as u64) as usize;
            let kept = buffer.len();
            buffer.resize(kept + fill, 0);
            let got = file::read_up_to(opened, buffer.get_mut(kept..).unwrap_or_default(), next)?;
            buffer.truncate(kept + got);
            hasher.update(buffer.get(kept..).unwrap_or_default());
            next += got as u64;
            let short = got < fill;
            let done = cut(&buffer, cutting, short || next >= range.end, |block| emit(Piece::Block(block)));
            let Some(done) = done else { return Ok(None) };
            buffer.drain(..done);
            if short {
                // Cut short meanwhile: what was read is what there is.
                return Ok(Some(LongPass { sha1: hasher.finish(), size: next }));
            }
        }
    }
    if size > at {
        hash_zeros(&mut hasher, size - at);
        if !emit(Piece::Hole(size - at)) {
            return Ok(None);
        }
    }
    Ok(Some(LongPass { sha1: hasher.finish(), size }))
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

fn hash_zeros(hasher: &mut FileHasher, mut len: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while len > 0 {
        let step = len.min(ZEROS.len() as u64);
        hasher.update(ZEROS.get(..step as usize).unwrap_or(&ZEROS));
        len -= step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha1::{Digest, Sha1};
    use std::io::{Seek, SeekFrom, Write};

    fn pieces(file: &File, size: u64, cutting: Cutting) -> (Vec<u8>, Vec<usize>, u64, LongPass) {
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
            assert_eq!((pass.size, pass.sha1.0), (size, Sha1::digest(&wanted).into()));
            assert!(holes >= 3 << 20, "holes are kept");
            assert!(lens.iter().all(|len| *len <= cutting.longest_bytes()));
            let short = lens.iter().filter(|len| **len < cutting.longest_bytes() / 16).count();
            assert!(short <= 1, "only the last block may be shorter than a quarter of the average");
        }
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
