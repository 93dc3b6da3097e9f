//! Rules of file states: content tiles the size, each block has a frame of its length.
//!
//! Invariant: at most `WINDOW` file states are remembered at a time, for the rules of names in `tree`.

use super::{Cause, Check, Ground, Subject};
use crate::catalog::digest::Segments;
use crate::catalog::{Content, Kind, Node, Segment};
use crate::error::Result;
use crate::ids::{BlockId, Logid};
use crate::index::{Chunks, Cursor, FrameChunk, ScanTable, Scanned};

/// File states whose names are checked in one pass over the entries, 24 bytes each.
const MAX_FACTS: usize = 3 << 20;
/// The same; in unit tests there are few files, and several passes all the same.
pub const WINDOW: usize = if cfg!(test) { 32 } else { MAX_FACTS };
/// Pieces of frame tables that are kept, up to 20 KiB each.
const MAX_CHUNKS: usize = 512;

/// What the rules of names need to know of a file state.
#[derive(Debug, Clone, Copy)]
pub struct Fact {
    pub logid: Logid,
    pub size: u64,
    pub nlink: u32,
    pub kind: Kind,
    /// Rows in entries that name it, up to this many.
    pub named: u16,
    /// Content of it was packed away: right unless a version needs it.
    pub packed_away: bool,
}

/// Walks nodes and extents side by side.
pub struct Contents<'c, 's, 'i> {
    check: &'c Check<'c>,
    ground: &'c Ground<'s, 'i>,
    nodes: Cursor<'s, 'i>,
    extents: Cursor<'s, 'i>,
    chunks: Chunks,
    any_moved: bool,
}

impl<'c, 's, 'i> Contents<'c, 's, 'i> {
    pub fn new(check: &'c Check<'c>, ground: &'c Ground<'s, 'i>) -> Contents<'c, 's, 'i> {
        let rows = ground.rows;
        Contents {
            check,
            ground,
            nodes: rows.cursor(ScanTable::Nodes),
            extents: rows.cursor(ScanTable::Extents),
            chunks: Chunks::bounded(MAX_CHUNKS),
            any_moved: rows.cursor(ScanTable::Relocations).take().is_some(),
        }
    }

    /// Checks the next file states, and gives what is needed of them; fewer than `WINDOW` at the end.
    pub fn window(&mut self) -> Result<Vec<Fact>> {
        let mut facts = Vec::new();
        while facts.len() < WINDOW {
            let Some((Node { logid, attr, .. }, packed_away)) = self.next()? else { break };
            let (size, nlink, kind) = (attr.size, attr.nlink, attr.kind);
            facts.push(Fact { logid, size, nlink, kind, named: 0, packed_away });
            if facts.len() % 4096 == 0 {
                self.check.interrupted()?;
            }
        }
        Ok(facts)
    }

    /// Checks the next file state; true: content of it is in arcs that were dropped. None at the end.
    pub fn next(&mut self) -> Result<Option<(Node, bool)>> {
        loop {
            match self.nodes.take() {
                None => {
                    self.extents_below(Logid(u64::MAX))?;
                    return Ok(None);
                }
                Some(Scanned::Bad { after, before, error }) => {
                    self.check.unreadable(ScanTable::Nodes, &after, before.as_ref(), error, None);
                }
                Some(Scanned::Row(row)) => {
                    let logid = Logid(row.key.first as u64);
                    self.extents_below(logid)?;
                    match self.ground.rows.open_node(&row) {
                        Ok((_, node)) => {
                            let packed_away = self.content(&node)?;
                            return Ok(Some((node, packed_away)));
                        }
                        Err(error) => {
                            let hits = self.ground.names.file(logid);
                            self.check.report(Subject::File(logid), error, Cause::Index, hits);
                        }
                    }
                }
            }
        }
    }

    /// True if content of it is in arcs that were dropped.
    fn content(&mut self, node: &Node) -> Result<bool> {
        let mut sum = Sum::default();
        match &node.content {
            Content::Inline(segments) => self.add(&mut sum, 0, segments)?,
            Content::Chunked(digest) => {
                let mut all = Segments::default();
                while let Some((start, segments)) = self.extents_of(node.logid) {
                    self.add(&mut sum, start, &segments)?;
                    all.add(&segments);
                }
                sum.other_list = all.finish() != *digest;
            }
        }
        if self.check.blind(ScanTable::Extents) && matches!(node.content, Content::Chunked(_)) {
            return Ok(false);
        }
        let size = if node.attr.kind == Kind::File { node.attr.size } else { 0 };
        let what = if let Some((offset, block)) = sum.no_block {
            if sum.dropped {
                return Ok(true);
            }
            // An arc that is told about already explains it.
            if self.check.knows(Subject::Arc(block.arc())) {
                return Ok(false);
            }
            format!("block {block} at offset {offset} is not there, or has another length")
        } else if sum.torn || sum.end != size {
            // A recovery could not read the frame that told it.
            if self.ground.gaps {
                return Ok(false);
            }
            format!("its content does not tile its {size} bytes: it ends, or is torn, at {}", sum.end)
        } else if sum.data_bytes != node.data_bytes {
            format!("{} bytes in data ranges are recorded, {} are there", node.data_bytes, sum.data_bytes)
        } else if sum.other_list {
            "its list of extents is not the one that it was saved with".into()
        } else {
            return Ok(false);
        };
        if self.check.knows(Subject::File(node.logid)) {
            return Ok(false);
        }
        self.check.file_broken(self.ground, node.logid, &what);
        Ok(false)
    }

    fn add(&mut self, sum: &mut Sum, start: u64, segments: &[Segment]) -> Result<()> {
        sum.torn |= start != sum.end;
        for segment in segments {
            if let Segment::Data { block, len } = segment {
                sum.data_bytes = sum.data_bytes.saturating_add(u64::from(*len));
                if sum.no_block.is_none() && !self.block_is(*block, *len)? {
                    sum.no_block = Some((sum.end, *block));
                    let serial = self.ground.rows.location(*block)?.arc();
                    sum.dropped = self.ground.arcs.get(&serial).is_some_and(|fact| fact.dropped);
                }
            }
            if !sum.torn {
                sum.end = sum.end.saturating_add(segment.len());
            }
        }
        Ok(())
    }

    /// The block is read from a frame of kind block with this plain length.
    fn block_is(&mut self, block: BlockId, len: u32) -> Result<bool> {
        if self.check.blind(ScanTable::Frames) || self.check.blind(ScanTable::Relocations) {
            return Ok(true);
        }
        let place = if self.any_moved { self.ground.rows.location(block)? } else { block };
        let is = |chunk: &FrameChunk| chunk.block(place).is_some_and(|info| info.len == len);
        if let Some(chunk) = self.chunks.get(place.place()) {
            return Ok(is(chunk));
        }
        let Ok(Some(chunk)) = self.ground.rows.chunk_of(place) else { return Ok(false) };
        let found = is(&chunk);
        self.chunks.put(place.arc(), chunk);
        Ok(found)
    }

    /// The next stretch of a file, if it has one more.
    fn extents_of(&mut self, logid: Logid) -> Option<(u64, Vec<Segment>)> {
        loop {
            match self.extents.peek()? {
                Scanned::Row(row) if row.key.first == logid.0 as i64 => {}
                Scanned::Row(_) => return None,
                Scanned::Bad { .. } => {}
            }
            match self.extents.take()? {
                Scanned::Row(row) => match row.extents(self.ground.rows.index()) {
                    Ok((_, start, segments)) => return Some((start, segments)),
                    Err(error) => {
                        let hits = self.ground.names.file(logid);
                        self.check.report(Subject::File(logid), error, Cause::Index, hits);
                    }
                },
                Scanned::Bad { after, before, error } => {
                    self.check.unreadable(ScanTable::Extents, &after, before.as_ref(), error, None);
                }
            }
        }
    }

    /// Stretches of files that have no row, or one that is not long.
    fn extents_below(&mut self, logid: Logid) -> Result<()> {
        loop {
            let owner = match self.extents.peek() {
                Some(Scanned::Row(row)) if (row.key.first as u64) < logid.0 => Logid(row.key.first as u64),
                Some(Scanned::Bad { .. }) => {
                    if let Some(Scanned::Bad { after, before, error }) = self.extents.take() {
                        self.check.unreadable(ScanTable::Extents, &after, before.as_ref(), error, None);
                    }
                    continue;
                }
                _ => return Ok(()),
            };
            while self.extents_of(owner).is_some() {}
            let explained = self.ground.gaps || self.check.blind(ScanTable::Nodes) || self.ground.any_lost;
            if !explained && !self.check.knows(Subject::File(owner)) {
                self.check.file_broken(self.ground, owner, "it has a list of extents, and no row that needs one");
            }
        }
    }
}

#[derive(Default)]
struct Sum {
    end: u64,
    data_bytes: u64,
    torn: bool,
    /// It is not what the file state's digest binds.
    other_list: bool,
    no_block: Option<(u64, BlockId)>,
    /// It was in an arc that was dropped.
    dropped: bool,
}
