//! One file from its start to its end, past what is damaged, into a sink.
//!
//! Invariants: the sink gets the bytes in order, each once: as data, as zeros or as lost with the error; holes that nobody
//! hashes are passed over; one block is held at a time, and two windows are decoded ahead. A file that was read without a
//! loss is compared with its SHA-1.

use std::ops::Range;

use crate::arc::VerifiedBlock;
use crate::catalog::Node;
use crate::crypto::FileHasher;
use crate::error::{Error, Result};
use crate::ids::{BlockId, FileHash, Logid};
use crate::tree::Piece;

/// Looked up in one go; its blocks are decoded ahead.
const WINDOW_BYTES: u64 = 4 << 20;
/// Where the list of blocks has a gap, it is narrowed down to pieces of this size.
const GRAIN_BYTES: u64 = 4096;
/// Zeros that are hashed between two looks at the sink.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Where the blocks of files come from.
pub trait Blocks {
    /// Proves which blocks the file has, where a node does not say so itself.
    fn prove(&self, _node: &Node) -> Result<()> {
        Ok(())
    }
    /// The pieces of `offset..offset + len`, which lies within the file; they tile it.
    fn pieces(&self, node: &Node, offset: u64, len: u64) -> Result<Vec<Piece>>;
    /// Where data begins, at or after `offset`; None if there is none.
    fn next_data(&self, node: &Node, offset: u64) -> Result<Option<u64>>;
    fn block(&self, block: BlockId, len_bytes: u32, file: Logid) -> Result<VerifiedBlock>;
    /// Tells which pieces will be read next, if they are all of one file of which; a hint.
    fn prefetch(&self, _pieces: &[Piece], _file: Option<Logid>) {}
}

/// Where the bytes of a file go. An error ends the reading.
pub trait Sink {
    /// Verified bytes.
    fn data(&mut self, _at: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
    fn zeros(&mut self, _at: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    /// Bytes that can't be had.
    fn lost(&mut self, lost: Lost) -> Result<()>;
    /// Asked before each step; all before `at` is done.
    fn go_on(&mut self, _at: u64) -> Result<()> {
        Ok(())
    }
}

/// A stretch of a file that can't be read.
#[derive(Debug)]
pub struct Lost {
    pub range: Range<u64>,
    /// The block that has it, and its length; none where the list of blocks has a gap.
    pub block: Option<(BlockId, u32)>,
    pub error: Error,
}

/// What is done about the hash of the whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sha1 {
    Compare,
    Ignore,
}

/// How a file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Every byte; the SHA-1 is the one that was backed up.
    Hashed,
    /// Every byte; no SHA-1 was compared.
    Whole,
    /// Every byte is that of a block of the file, but together they are not what was backed up.
    WrongHash { expected: FileHash, found: FileHash },
    /// Something is lost; the sink was told.
    Damaged,
}

/// Reads a file.
///
/// # Errors
/// Only those of the sink.
pub fn read(blocks: &dyn Blocks, node: &Node, sha1: Sha1, sink: &mut dyn Sink) -> Result<Found> {
    // A hash that should be there and is not counts as a wrong one.
    let hashed = sha1 == Sha1::Compare && (node.sha1.is_some() || node.needs_hash());
    let hasher = hashed.then(FileHasher::default);
    let mut reading = Reading { blocks, node, sink, hasher, damaged: false };
    let size = node.attr.size;
    if let Err(error) = blocks.prove(node) {
        reading.sink.lost(Lost { range: 0..size, block: None, error })?;
        return Ok(Found::Damaged);
    }
    let mut at = 0;
    while at < size {
        if !hashed && let Ok(data) = blocks.next_data(node, at) {
            let Some(data) = data else { break };
            at = data;
        }
        let end = size.min(at + WINDOW_BYTES);
        let pieces = blocks.pieces(node, at, end - at);
        // A single block is decoded here sooner than another thread wakes up.
        if let Some(now) = pieces.as_ref().ok().filter(|now| now.len() > 1) {
            blocks.prefetch(now, Some(node.logid));
        }
        if end < size
            && let Ok(next) = blocks.pieces(node, end, WINDOW_BYTES.min(size - end))
        {
            blocks.prefetch(&next, Some(node.logid));
        }
        reading.window(at..end, pieces)?;
        at = end;
    }
    let found = reading.hasher.map(FileHasher::finish);
    Ok(match (reading.damaged, found) {
        (true, _) => Found::Damaged,
        (false, None) => Found::Whole,
        (false, Some(found)) if node.sha1 == Some(found) => Found::Hashed,
        (false, Some(found)) => Found::WrongHash { expected: node.sha1.unwrap_or(FileHash([0; 20])), found },
    })
}

struct Reading<'a> {
    blocks: &'a dyn Blocks,
    node: &'a Node,
    sink: &'a mut dyn Sink,
    /// None where nothing is compared, and once something is lost.
    hasher: Option<FileHasher>,
    damaged: bool,
}

impl Reading<'_> {
    fn window(&mut self, range: Range<u64>, pieces: Result<Vec<Piece>>) -> Result<()> {
        let len = range.end - range.start;
        let pieces = match pieces {
            Ok(pieces) => pieces,
            Err(error) if error.is_damage() && len > GRAIN_BYTES => {
                // Whatever part of the list is left is found by halving.
                let middle = range.start + (len / 2).next_multiple_of(GRAIN_BYTES);
                for half in [range.start..middle, middle..range.end] {
                    self.sink.go_on(half.start)?;
                    let pieces = self.blocks.pieces(self.node, half.start, half.end - half.start);
                    self.window(half, pieces)?;
                }
                return Ok(());
            }
            Err(error) => return self.lost(range, None, error),
        };
        let mut at = range.start;
        for piece in pieces {
            self.sink.go_on(at)?;
            let next = at.saturating_add(piece.len());
            match piece {
                Piece::Zero { len } => self.zeros(at, len)?,
                Piece::Data { block, block_len, start, len } => {
                    let part = start as usize..start as usize + len as usize;
                    match self.blocks.block(block, block_len, self.node.logid) {
                        Ok(verified) => match verified.get(part) {
                            Some(bytes) => self.data(at, bytes)?,
                            None => self.lost(at..next, None, self.contradiction(at))?,
                        },
                        Err(error) => self.lost(at..next, Some((block, block_len)), error)?,
                    }
                }
            }
            at = next;
        }
        if at != range.end { self.lost(at.min(range.end)..range.end, None, self.contradiction(at)) } else { Ok(()) }
    }

    fn contradiction(&self, offset: u64) -> Error {
        Error::ExtentsLost { logid: self.node.logid, offset }
    }

    fn data(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.sink.data(at, bytes)
    }

    fn zeros(&mut self, at: u64, len: u64) -> Result<()> {
        let mut left = if self.hasher.is_some() { len } else { 0 };
        while left > 0 {
            self.sink.go_on(at + (len - left))?;
            let step = left.min(ZEROS.len() as u64);
            if let Some(hasher) = &mut self.hasher {
                hasher.update(ZEROS.get(..step as usize).unwrap_or(&ZEROS));
            }
            left -= step;
        }
        self.sink.zeros(at, len)
    }

    fn lost(&mut self, range: Range<u64>, block: Option<(BlockId, u32)>, error: Error) -> Result<()> {
        self.hasher = None;
        self.damaged = true;
        self.sink.lost(Lost { range, block, error })
    }
}

/// The ranges of a file that can't be read, in order and not touching each other, with the first error of each.
///
/// # Errors
/// Those that are no damage (the disk is out of reach, a lock); damage is in the answer.
pub fn bad_ranges(blocks: &dyn Blocks, node: &Node) -> Result<Vec<(Range<u64>, Error)>> {
    struct Bad(Vec<(Range<u64>, Error)>);
    impl Sink for Bad {
        fn lost(&mut self, Lost { range, error, .. }: Lost) -> Result<()> {
            match self.0.last_mut() {
                _ if !error.is_damage() => return Err(error),
                Some((last, _)) if last.end == range.start => last.end = range.end,
                _ => self.0.push((range, error)),
            }
            Ok(())
        }
    }
    let mut bad = Bad(Vec::new());
    read(blocks, node, Sha1::Ignore, &mut bad)?;
    Ok(bad.0)
}

/// Adds a range to others, in order; where it touches the last one they are one.
pub fn join(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
