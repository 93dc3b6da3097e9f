//! A file's bytes: from verified blocks to a new file, and comparing an existing file with them.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::Source;
use crate::catalog::Node;
use crate::crypto::FileHasher;
use crate::error::{Error, Result};
use crate::ids::FileHash;
use crate::os::file;
use crate::tree::Piece;

/// What is asked for in one go; its blocks are prefetched.
const WINDOW: u64 = 4 << 20;
/// A loss of the block list is narrowed down to pieces of this size.
const LOSS_GRAIN: u64 = 4096;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Where a file's content is bad.
#[derive(Debug)]
pub struct Bad {
    /// In order, not touching each other.
    pub ranges: Vec<Range<u64>>,
    /// What was wrong first.
    pub error: Error,
}

/// Writes the content of one file from its start to its end.
pub struct ContentWriter<'a> {
    source: &'a dyn Source,
    node: &'a Node,
    /// An empty file, opened for writing.
    file: &'a File,
    /// None once something is missing, or where no hash is known.
    hasher: Option<FileHasher>,
    bad: Option<Bad>,
    /// Told between blocks how many bytes are done; true ends it.
    tick: &'a dyn Fn(u64) -> bool,
}

impl<'a> ContentWriter<'a> {
    pub fn new(
        source: &'a dyn Source,
        node: &'a Node,
        file: &'a File,
        tick: &'a dyn Fn(u64) -> bool,
    ) -> ContentWriter<'a> {
        ContentWriter { source, node, file, hasher: is_hashed(node).then(FileHasher::default), bad: None, tick }
    }

    /// Writes everything that is good and leaves holes for the rest. `path` (in the version) is for messages.
    ///
    /// None when all of it was good and the SHA-1 is the one that was backed up; an error when the target
    /// can't be written or the source fails without being damaged.
    pub fn write(mut self, path: &[u8]) -> Result<Option<Bad>> {
        let size = self.node.attr.size;
        let mut at = 0;
        while at < size {
            // Zeros that nobody hashes are a hole in the new file as well.
            if !is_hashed(self.node)
                && let Ok(data) = self.source.next_data(self.node, at)
            {
                let Some(data) = data else { break };
                at = data;
            }
            let len = WINDOW.min(size - at);
            let next = at + len;
            if next < size
                && let Ok(pieces) = self.source.pieces(self.node, next, WINDOW.min(size - next))
            {
                self.source.prefetch(&pieces, Some(self.node.logid));
            }
            self.window(at, len)?;
            at = next;
        }
        // Holes at the end, and an exact size whatever was written.
        self.file.set_len(size).map_err(write_error)?;
        let found = self.hasher.take().map(FileHasher::finish);
        if self.bad.is_none() && found != self.node.sha1 {
            let (expected, found) = (self.node.sha1.unwrap_or(FileHash([0; 20])), found.unwrap_or(FileHash([0; 20])));
            let error = Error::FileHashMismatch { path: path.to_vec(), expected, found };
            self.bad = Some(Bad { ranges: Vec::from_iter([Range { start: 0, end: size }]), error });
        }
        Ok(self.bad)
    }

    fn window(&mut self, at: u64, len: u64) -> Result<()> {
        let pieces = match self.source.pieces(self.node, at, len) {
            Ok(pieces) => pieces,
            Err(error) if error.is_damage() && len > LOSS_GRAIN => {
                // Whatever part of the list is left is found by halving.
                let half = (len / 2).next_multiple_of(LOSS_GRAIN);
                self.window(at, half)?;
                return self.window(at + half, len - half);
            }
            Err(error) => return self.lost(at..at + len, error),
        };
        // A single block is decoded here sooner than another thread wakes up.
        if pieces.len() > 1 {
            self.source.prefetch(&pieces, Some(self.node.logid));
        }
        let mut at = at;
        let end = at + len;
        for piece in pieces {
            if (self.tick)(at) {
                return Err(Error::Interrupted);
            }
            let len = match piece {
                Piece::Zero { len } => {
                    self.hash_zeros(at, len)?;
                    len
                }
                Piece::Data { block, block_len, start, len } => {
                    let range = at..at + u64::from(len);
                    match self.source.block(block, block_len, self.node.logid) {
                        Ok(bytes) => {
                            let wanted = start as usize..start as usize + len as usize;
                            match bytes.get(wanted) {
                                Some(bytes) => self.good(at, bytes)?,
                                None => self.lost(range, self.contradiction(at))?,
                            }
                        }
                        Err(error) => self.lost(range, error)?,
                    }
                    u64::from(len)
                }
            };
            at = at.saturating_add(len);
        }
        if at != end { self.lost(at.min(end)..end, self.contradiction(at)) } else { Ok(()) }
    }

    fn contradiction(&self, offset: u64) -> Error {
        Error::ExtentsLost { logid: self.node.logid, offset }
    }

    fn good(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.file.write_all_at(bytes, at).map_err(write_error)
    }

    fn hash_zeros(&mut self, at: u64, len: u64) -> Result<()> {
        let Some(hasher) = &mut self.hasher else { return Ok(()) };
        let mut left = len;
        while left > 0 {
            if (self.tick)(at + (len - left)) {
                return Err(Error::Interrupted);
            }
            let step = left.min(ZEROS.len() as u64);
            hasher.update(ZEROS.get(..step as usize).unwrap_or(&ZEROS));
            left -= step;
        }
        Ok(())
    }

    /// Notes a bad range; passes on what is not damage of the backup.
    fn lost(&mut self, range: Range<u64>, error: Error) -> Result<()> {
        if !error.is_damage() {
            return Err(error);
        }
        self.hasher = None;
        let bad = self.bad.get_or_insert_with(|| Bad { ranges: Vec::new(), error });
        match bad.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => bad.ranges.push(range),
        }
        Ok(())
    }
}

/// A hash that should be there and is not counts as a wrong one.
fn is_hashed(node: &Node) -> bool {
    node.sha1.is_some() || node.needs_hash()
}

fn write_error(error: std::io::Error) -> Error {
    Error::io("write", "", &error)
}

/// Whether an existing file has the content to restore: each block of the list, by its keyed hash, and zeros between.
///
/// Files with one SHA-1 and other bytes can be bought; who has no key of the backup can't make a second block for a keyed
/// hash. An error when the list can't be read.
pub fn is_there(source: &dyn Source, node: &Node, existing: &File, interrupted: &dyn Fn() -> bool) -> Result<bool> {
    let read_error = |error: std::io::Error| Error::io("read", "", &error);
    let size = node.attr.size;
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < size {
        let data = source.next_data(node, at)?.unwrap_or(size);
        if data > at {
            if !is_zero(existing, at..data, interrupted)? {
                return Ok(false);
            }
            at = data;
            continue;
        }
        let before = at;
        // The last block may reach beyond what is asked for: it is taken whole, and the next window starts behind it.
        for piece in source.pieces(node, at, WINDOW.min(size - at))? {
            if interrupted() {
                return Err(Error::Interrupted);
            }
            match piece {
                Piece::Zero { len } => {
                    if !is_zero(existing, at..at + len, interrupted)? {
                        return Ok(false);
                    }
                    at += len;
                }
                Piece::Data { block, block_len, start: 0, .. } => {
                    buffer.resize(block_len as usize, 0);
                    let filled = file::read_up_to(existing, &mut buffer, at).map_err(read_error)?;
                    if filled < buffer.len() || !source.is_block(block, &buffer)? {
                        return Ok(false);
                    }
                    at += u64::from(block_len);
                }
                Piece::Data { .. } => return Ok(false),
            }
        }
        if at == before {
            return Err(Error::ExtentsLost { logid: node.logid, offset: at });
        }
    }
    let beyond = file::read_up_to(existing, &mut [0], size).map_err(read_error)?;
    Ok(at == size && beyond == 0)
}

/// Whether a range of a file reads as zeros; its holes are not read.
fn is_zero(existing: &File, range: Range<u64>, interrupted: &dyn Fn() -> bool) -> Result<bool> {
    let read_error = |error: std::io::Error| Error::io("read", "", &error);
    let mut buffer = vec![0; ZEROS.len()];
    for data in file::data_ranges_in(existing, range) {
        let data = data.map_err(read_error)?;
        let mut at = data.start;
        while at < data.end {
            if interrupted() {
                return Err(Error::Interrupted);
            }
            let len = (data.end - at).min(buffer.len() as u64);
            let part = buffer.get_mut(..len as usize).unwrap_or_default();
            let filled = file::read_up_to(existing, part, at).map_err(read_error)?;
            if filled < part.len() || part.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += len;
        }
    }
    Ok(true)
}
