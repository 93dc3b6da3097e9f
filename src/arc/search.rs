//! Looks for the single bit that was flipped before a block was sealed: the tag is right and the block hash is not. No I/O.
//!
//! Invariants: plain bytes come out only with the recorded block hash; the work is bounded by the length of the block,
//! reported, and can be stopped; memory is three times the block a core at most.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, bounded};

use super::frame::{self, Codec, FRAME_HEADER_LEN, FrameInfo};
use crate::crypto::{ArcCipher, Keys};
use crate::ids::{BlockHash, FrameNo};

/// The longest block that is searched: each bit costs hashing about half of it, so the time grows with the square.
const MAX_SEARCH_LEN: usize = 1 << 20;
/// Bytes that SHA-1 takes at a time: what stands before is hashed once for all bits in them.
const HASH_BLOCK: usize = 64;
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Which bytes had the flipped bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// Those of the block, after it was hashed and before it was compressed.
    Plain,
    /// The compressed ones.
    Stored,
}

/// A bit that was flipped before the block was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedFlip {
    pub within: Within,
    pub byte: u32,
    /// 0 is the lowest.
    pub bit: u8,
    /// It should be 0 and was sealed as 1.
    pub to_one: bool,
}

impl fmt::Display for SealedFlip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let within = match self.within {
            Within::Plain => "block",
            Within::Stored => "compressed block",
        };
        write!(f, "bit {} of byte {} of the {within}", self.bit, self.byte)
    }
}

/// A block that was found.
#[derive(Debug)]
pub struct Searched {
    /// All of the frame's plain bytes: each block has its recorded length and hash.
    pub plain: Vec<u8>,
    pub flip: SealedFlip,
}

/// Tries all single bits of the plain bytes, and of the compressed ones, until the block hash matches.
///
/// `go_on(done, total)` is called every tenth of a second, with bytes of work; false stops the search. Takes seconds for
/// 64 KiB and up to an hour for 1 MiB. None if the tag is wrong, nothing is wrong, or no single bit explains it.
pub fn search_plaintext(
    keys: &Keys,
    cipher: &ArcCipher,
    no: FrameNo,
    expected: &FrameInfo,
    frame: &[u8],
    go_on: &mut dyn FnMut(u64, u64) -> bool,
) -> Option<Searched> {
    if expected.plain_len() as usize > MAX_SEARCH_LEN || frame.len() as u64 != expected.frame_len() {
        return None;
    }
    let (ciphertext, tag) = frame.get(FRAME_HEADER_LEN..)?.split_last_chunk()?;
    let mut body = ciphertext.to_vec();
    if !cipher.open(expected.kind.domain(), no.0, &expected.head(no), &mut body, tag) {
        return None;
    }
    let stored = body.strip_prefix(expected.table().as_slice())?;
    let plain = frame::unpack(&mut None, expected, stored).ok();
    let compressed = expected.codec == Codec::Zstd;
    let suspect = plain.as_deref().map(|plain| suspect(keys, expected, plain));
    let in_plain = suspect.as_ref().map_or(0, |(range, _)| work_in_plain(range.len()));
    let in_stored = if compressed { stored.len() as u64 * 8 * u64::from(expected.plain_len()) } else { 0 };
    let total = in_plain + in_stored;
    if let (Some(plain), Some((range, hash))) = (plain, suspect) {
        expected.first_mismatch(keys, &plain)?;
        let block = plain.get(range.clone())?;
        if let Some(mut searched) = flip_in_plain(keys, hash, block, &mut |done| go_on(done, total))? {
            let right = [plain.get(..range.start)?, &searched.plain, plain.get(range.end..)?].concat();
            searched.flip.byte += range.start as u32;
            searched.plain = right;
            if expected.first_mismatch(keys, &searched.plain).is_none() {
                return Some(searched);
            }
        }
    }
    if compressed { flip_in_stored(keys, expected, stored, &mut |done| go_on(in_plain + done, total))? } else { None }
}

/// Where the first block that is wrong is in the plain bytes, and its hash; an empty range if none is.
fn suspect(keys: &Keys, expected: &FrameInfo, plain: &[u8]) -> (Range<usize>, BlockHash) {
    let slot = expected.first_mismatch(keys, plain).map(|(slot, _)| slot);
    let mut start = 0;
    for (at, block) in expected.slots() {
        let end = start + block.len as usize;
        if Some(at) == slot {
            return (start..end, block.hash);
        }
        start = end;
    }
    (0..0, BlockHash([0; 20]))
}

/// Bytes that are hashed if all bits are tried.
fn work_in_plain(len: usize) -> u64 {
    (0..len).map(|at| work_at(len, at)).sum()
}

fn work_at(len: usize, at: usize) -> u64 {
    8 * (len - at / HASH_BLOCK * HASH_BLOCK) as u64
}

/// None if it was stopped.
fn flip_in_plain(
    keys: &Keys,
    hash: BlockHash,
    plain: &[u8],
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Option<Option<Searched>> {
    let worker = || {
        // The state before the hash block that has the byte; bytes come in rising order.
        let (mut before, mut hashed) = (keys.block_hasher(), 0);
        move |at: usize| {
            let start = at / HASH_BLOCK * HASH_BLOCK;
            before.update(plain.get(hashed..start)?);
            hashed = start;
            let (same, rest) = plain.get(start..)?.split_at_checked(at - start)?;
            let (byte, after) = rest.split_first()?;
            flipped(at, *byte, Within::Plain, |byte| {
                let mut hasher = before.clone();
                hasher.update(same);
                hasher.update(&[byte]);
                hasher.update(after);
                (hasher.finish() == hash).then(|| [plain.get(..at).unwrap_or_default(), &[byte], after].concat())
            })
        }
    };
    on_all_cores(plain.len(), &|at| work_at(plain.len(), at), &worker, go_on)
}

/// None if it was stopped.
fn flip_in_stored(
    keys: &Keys,
    expected: &FrameInfo,
    stored: &[u8],
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Option<Option<Searched>> {
    let worker = || {
        let mut context = None;
        let mut bytes = stored.to_vec();
        move |at: usize| {
            let byte = *bytes.get(at)?;
            let found = flipped(at, byte, Within::Stored, |byte| {
                *bytes.get_mut(at)? = byte;
                let plain = frame::unpack(&mut context, expected, &bytes).ok()?;
                expected.first_mismatch(keys, &plain).is_none().then_some(plain)
            });
            *bytes.get_mut(at)? = byte;
            found
        }
    };
    let each = u64::from(expected.plain_len()) * 8;
    on_all_cores(stored.len(), &|_| each, &worker, go_on)
}

/// Flips each bit of a byte in turn.
fn flipped(at: usize, sealed: u8, within: Within, mut test: impl FnMut(u8) -> Option<Vec<u8>>) -> Option<Searched> {
    (0..8u8).find_map(|bit| {
        let plain = test(sealed ^ 1 << bit)?;
        let to_one = sealed >> bit & 1 != 0;
        Some(Searched { plain, flip: SealedFlip { within, byte: at as u32, bit, to_one } })
    })
}

/// Gives the places `0..len` to workers, in rising order to each, until one finds something. None if stopped.
fn on_all_cores<W: FnMut(usize) -> Option<Searched>>(
    len: usize,
    work: &(dyn Fn(usize) -> u64 + Sync),
    worker: &(dyn Fn() -> W + Sync),
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Option<Option<Searched>> {
    let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (next, done, stop) = (&next, &done, &stop);
    std::thread::scope(|scope| {
        let (found_by, found) = bounded::<Searched>(1);
        for number in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let found_by = found_by.clone();
            let search = move || {
                let mut test = worker();
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= len {
                        return;
                    }
                    if let Some(searched) = test(at) {
                        stop.store(true, Ordering::Relaxed);
                        // Another one that was found too is as good.
                        let _ = found_by.try_send(searched);
                    }
                    done.fetch_add(work(at), Ordering::Relaxed);
                }
            };
            if std::thread::Builder::new().spawn_scoped(scope, search.clone()).is_err() && number == 0 {
                search();
            }
        }
        drop(found_by);
        let stopped = loop {
            match found.recv_timeout(REPORT_EVERY) {
                Ok(searched) => break Some(Some(searched)),
                Err(RecvTimeoutError::Disconnected) => break Some(None),
                Err(RecvTimeoutError::Timeout) => {
                    if !go_on(done.load(Ordering::Relaxed)) {
                        break None;
                    }
                }
            }
        };
        stop.store(true, Ordering::Relaxed);
        stopped
    })
}
