//! A range of a file: its pieces, the blocks that they need, and from these the bytes.
//!
//! Invariant: all bytes of the range, verified, or an error.

use std::cell::RefCell;
use std::ops::{Deref, Range};

use super::wanted;
use crate::arc::VerifiedBlock;
use crate::catalog::Node;
use crate::error::{Error, Result};
use crate::ids::Logid;
use crate::store::Wanted;
use crate::tree::{Piece, Tree};

/// What a range holds: a part of one verified block, or a copy of several.
pub enum Bytes {
    Block(VerifiedBlock, Range<usize>),
    Copied(Copied),
}

/// A copy of parts of several verified blocks. Its memory is kept for the thread's next one: fresh memory for each
/// large reply would cost a page fault for every 4 KiB.
pub struct Copied(Vec<u8>);

thread_local! {
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
/// Larger memory is given back.
const MAX_SPARE_BYTES: usize = 2 << 20;

impl Copied {
    fn with_room(bytes: usize) -> Copied {
        let mut spare = SPARE.take();
        spare.clear();
        spare.reserve(bytes);
        Copied(spare)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        if self.0.capacity() <= MAX_SPARE_BYTES {
            SPARE.set(std::mem::take(&mut self.0));
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Block(block, range) => block.get(range.clone()).unwrap_or_default(),
            Bytes::Copied(copied) => &copied.0,
        }
    }
}

/// A range of a file that is about to be read.
pub struct Asked {
    file: Logid,
    offset: u64,
    len: u64,
    pieces: Vec<Piece>,
}

impl Asked {
    /// Bytes `offset..offset + len` of a file, cut at its end.
    ///
    /// Errors: those of the list of its blocks.
    pub fn of(tree: &Tree, node: &Node, offset: u64, len: u64) -> Result<Asked> {
        let pieces = tree.segments(node, offset, len)?;
        let len = pieces.iter().map(Piece::len).sum();
        Ok(Asked { file: node.logid, offset, len, pieces })
    }

    /// Where it is in the file.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }

    /// The blocks to ask the store for, each as often as the range has it.
    pub fn wanted(&self) -> Vec<Wanted> {
        wanted(&self.pieces).collect()
    }

    /// The bytes, from the blocks in the order in which they were asked for.
    ///
    /// Errors: `ExtentsLost` if they are not those that the range has.
    pub fn bytes(&self, blocks: Vec<VerifiedBlock>) -> Result<Bytes> {
        let bytes = assemble(&self.pieces, blocks, self.len as usize);
        if bytes.len() as u64 != self.len {
            return Err(Error::ExtentsLost { logid: self.file, offset: self.offset });
        }
        Ok(bytes)
    }
}

fn assemble(pieces: &[Piece], blocks: Vec<VerifiedBlock>, total: usize) -> Bytes {
    let mut blocks = blocks.into_iter();
    if let ([Piece::Data { start, len, .. }], Some(block)) = (pieces, blocks.as_slice().first()) {
        let start = *start as usize;
        return Bytes::Block(block.clone(), start..start + *len as usize);
    }
    let mut copied = Copied::with_room(total);
    let bytes = &mut copied.0;
    for piece in pieces {
        match piece {
            Piece::Data { start, len, .. } => {
                let range = *start as usize..*start as usize + *len as usize;
                let block = blocks.next();
                bytes.extend_from_slice(block.as_ref().and_then(|block| block.get(range)).unwrap_or_default());
            }
            Piece::Zero { len } => bytes.resize(bytes.len() + *len as usize, 0),
        }
    }
    Bytes::Copied(copied)
}
