//! A file's bytes: from verified blocks to a new file, and comparing an existing file with them.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::Source;
use crate::catalog::Node;
use crate::error::{Error, Result};
use crate::os::file;
use crate::reader::file::{Found, Lost, join};
use crate::reader::{self, Sha1, Sink};
use crate::tree::Piece;

/// Compared with a file in one go.
const WINDOW: u64 = 4 << 20;
/// Read of a file in one go, where it should be zeros.
const STEP: usize = 64 << 10;

/// Where a file's content is bad.
#[derive(Debug)]
pub struct Bad {
    /// In order, not touching each other.
    pub ranges: Vec<Range<u64>>,
    /// What was wrong first.
    pub error: Error,
}

/// Writes everything of a file that is good and leaves holes for the rest. `to` is an empty file, opened for writing; `path`
/// (in the version) is for messages. `tick` is told how many bytes are done; true ends it.
///
/// What is bad; None when all of it was good and the SHA-1 is the one that was backed up. An error when the target can't be
/// written or the source fails without being damaged.
pub fn write(
    source: &dyn Source,
    node: &Node,
    path: &[u8],
    to: &File,
    tick: &dyn Fn(u64) -> bool,
) -> Result<Option<Bad>> {
    let mut draft = Draft { to, tick, bad: None };
    let found = reader::file::read(source, node, Sha1::Compare, &mut draft)?;
    let size = node.attr.size;
    // Holes at the end, and an exact size whatever was written.
    to.set_len(size).map_err(write_error)?;
    if let Found::WrongHash { expected, found } = found {
        let error = Error::FileHashMismatch { path: path.to_vec(), expected, found };
        draft.bad = Some(Bad { ranges: Vec::from_iter([Range { start: 0, end: size }]), error });
    }
    Ok(draft.bad)
}

/// A new file that is being written. Zeros are holes in it.
struct Draft<'a> {
    to: &'a File,
    tick: &'a dyn Fn(u64) -> bool,
    bad: Option<Bad>,
}

impl Sink for Draft<'_> {
    fn data(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.to.write_all_at(bytes, at).map_err(write_error)
    }

    /// Notes a bad range; passes on what is not damage of the backup.
    fn lost(&mut self, Lost { range, error, .. }: Lost) -> Result<()> {
        if !error.is_damage() {
            return Err(error);
        }
        join(&mut self.bad.get_or_insert_with(|| Bad { ranges: Vec::new(), error }).ranges, range);
        Ok(())
    }

    fn go_on(&mut self, at: u64) -> Result<()> {
        if (self.tick)(at) { Err(Error::Interrupted) } else { Ok(()) }
    }
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
    let mut buffer = vec![0; STEP];
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
