//! A file's bytes: which blocks and holes make up a range, and where data begins and ends.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::Tree;
use crate::catalog::{Content, ExtentChunk, Node, Segment, digest};
use crate::error::{Error, Result};
use crate::ids::BlockId;
use crate::sync::lock;

/// A stretch of a file range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Bytes `start..start + len` of a block that has `block_len` bytes in all.
    Data { block: BlockId, block_len: u32, start: u32, len: u32 },
    /// `len` zero bytes.
    Zero { len: u64 },
}

impl Piece {
    pub fn len(&self) -> u64 {
        match self {
            Piece::Data { len, .. } => u64::from(*len),
            Piece::Zero { len } => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What `lseek` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    Data,
    Hole,
}

impl Tree {
    /// The pieces of `offset..offset + len`, cut at the end of the file; they tile exactly that range.
    ///
    /// Errors: `ExtentsLost` where no content is recorded, `IndexRow` where it contradicts the file's size.
    pub fn segments(&self, node: &Node, offset: u64, len: u64) -> Result<Vec<Piece>> {
        let end = offset.saturating_add(len).min(node.attr.size);
        let mut pieces = Vec::new();
        let mut reached = offset;
        if offset < end {
            self.walk(node, offset, |start, segment| {
                let from = offset.max(start) - start;
                let to = end.min(start + segment.len()) - start;
                pieces.push(match segment {
                    // Both are below the segment's length, a u32.
                    Segment::Data { block, len } => {
                        Piece::Data { block: *block, block_len: *len, start: from as u32, len: (to - from) as u32 }
                    }
                    Segment::Hole { .. } => Piece::Zero { len: to - from },
                });
                reached = start + to;
                if reached < end { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if reached < end {
                return Err(Error::ExtentsLost { logid: node.logid, offset: reached });
            }
        }
        Ok(pieces)
    }

    /// Proves the list of blocks of a long file. One that is not known to its end is told where it is read.
    ///
    /// # Errors
    /// `INDEX_ROW_DAMAGED` if it is not the one that was backed up.
    pub fn prove_list(&self, node: &Node) -> Result<()> {
        let Content::Chunked(recorded) = node.content else { return Ok(()) };
        let (mut list, mut at) = (digest::Segments::default(), 0);
        while at < node.attr.size {
            let Ok(chunk) = self.index().extents_at(node.logid, at) else { return Ok(()) };
            let end = chunk.end();
            if chunk.start != at || end <= at {
                return Ok(());
            }
            list.add(&chunk.segments);
            at = end;
        }
        match list.finish() == recorded {
            true => Ok(()),
            false => Err(self.row_damage(format!("file {} has other blocks than were backed up", node.logid.0))),
        }
    }

    /// Where data or a hole begins, at or after `offset`; None past the end of the file (ENXIO).
    ///
    /// The end of the file counts as a hole, as with any Linux file system.
    pub fn seek(&self, node: &Node, offset: u64, to: SeekTo) -> Result<Option<u64>> {
        let size = node.attr.size;
        if offset >= size {
            return Ok(None);
        }
        if node.data_bytes == size {
            return Ok(Some(if to == SeekTo::Data { offset } else { size }));
        }
        let mut found = None;
        self.walk(node, offset, |start, segment| {
            if matches!(segment, Segment::Data { .. }) == (to == SeekTo::Data) {
                found = Some(start.max(offset));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(match to {
            SeekTo::Data => found,
            SeekTo::Hole => Some(found.unwrap_or(size)),
        })
    }

    /// Visits the segments from the one that covers `offset` on, with their file offsets.
    fn walk(&self, node: &Node, offset: u64, mut visit: impl FnMut(u64, &Segment) -> ControlFlow<()>) -> Result<()> {
        match &node.content {
            Content::Inline(segments) => self.walk_part(node, 0, segments, offset, &mut visit).map(|_| ()),
            Content::Chunked(_) => {
                let mut at = offset;
                while at < node.attr.size {
                    let chunk = self.chunk(node, at)?;
                    match self.walk_part(node, chunk.start, &chunk.segments, at, &mut visit)? {
                        ControlFlow::Break(()) => break,
                        ControlFlow::Continue(next) => at = next,
                    }
                }
                Ok(())
            }
        }
    }

    /// Visits segments that begin at `start` and checks that they stay within the file; gives where they end.
    fn walk_part(
        &self,
        node: &Node,
        start: u64,
        segments: &[Segment],
        offset: u64,
        visit: &mut impl FnMut(u64, &Segment) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), u64>> {
        let mut at = start;
        for segment in segments {
            let next = at.checked_add(segment.len()).filter(|next| *next <= node.attr.size && !segment.is_empty());
            let Some(next) = next else {
                return Err(self.row_damage(format!("the content of file {} does not fit its size", node.logid.0)));
            };
            if next > offset && visit(at, segment).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            at = next;
        }
        Ok(ControlFlow::Continue(at))
    }

    /// The piece of a long extent list that covers `offset`.
    fn chunk(&self, node: &Node, offset: u64) -> Result<Arc<ExtentChunk>> {
        let key = (node.logid, offset >> 20);
        let covers = |chunk: &ExtentChunk| {
            let len: u64 = chunk.segments.iter().map(Segment::len).fold(0, u64::saturating_add);
            chunk.start <= offset && offset < chunk.start.saturating_add(len)
        };
        let known = lock(&self.chunks).get(&key).cloned();
        if let Some(chunk) = known.filter(|chunk| covers(chunk)) {
            return Ok(chunk);
        }
        let chunk = Arc::new(self.index().extents_at(node.logid, offset)?);
        if !covers(&chunk) || chunk.logid != node.logid {
            return Err(Error::ExtentsLost { logid: node.logid, offset });
        }
        lock(&self.chunks).put(key, chunk.clone());
        Ok(chunk)
    }
}
