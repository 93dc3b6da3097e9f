//! Which files use a block: there is no table for it, so all file states are looked through, newest first.
//!
//! Invariants: memory holds one page of rows; a row that can't be read is passed over, for it can't name anything.

use std::collections::HashSet;
use std::ops::ControlFlow;

use rusqlite::params;

use super::Index;
use super::fail::{Fail, Found};
use super::row::{self, Key, Table};
use super::rows::{self, blob};
use crate::catalog::codec;
use crate::catalog::{Content, Segment};
use crate::error::Result;
use crate::ids::{BlockId, Logid};

/// File states fetched by one query.
const PAGE_ROWS: i64 = 512;

/// A stretch of a file state that is one whole block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockUse {
    pub block: BlockId,
    pub logid: Logid,
    /// In the file.
    pub offset: u64,
    pub len: u32,
}

impl Index {
    /// Visits all uses of the blocks, newest file state first, until told to stop.
    pub fn uses(&self, blocks: &HashSet<BlockId>, mut visit: impl FnMut(BlockUse) -> ControlFlow<()>) -> Result<()> {
        let mut below = i64::MAX;
        loop {
            let (page, next) = self.ask(|c| {
                let mut statement = c.prepare_cached("SELECT id FROM nodes WHERE id<?1 ORDER BY id DESC LIMIT ?2")?;
                let ids: Vec<i64> =
                    statement.query_map(params![below, PAGE_ROWS], |row| row.get(0))?.collect::<Result<_, _>>()?;
                let mut uses = Vec::new();
                for id in &ids {
                    match uses_in(c, Logid(*id as u64), blocks, &mut uses) {
                        Ok(()) | Err(Fail::Row(_) | Fail::Known(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok((uses, ids.last().copied()))
            })?;
            if page.into_iter().try_for_each(&mut visit).is_break() {
                return Ok(());
            }
            let Some(last) = next else { return Ok(()) };
            below = last;
        }
    }
}

fn uses_in(c: &rusqlite::Connection, logid: Logid, blocks: &HashSet<BlockId>, uses: &mut Vec<BlockUse>) -> Found<()> {
    let mut look = |start: u64, segments: &[Segment]| {
        let mut offset = start;
        for segment in segments {
            if let Segment::Data { block, len } = segment
                && blocks.contains(block)
            {
                uses.push(BlockUse { block: *block, logid, offset, len: *len });
            }
            offset = offset.saturating_add(segment.len());
        }
    };
    match rows::node(c, logid)?.content {
        Content::Inline(segments) => look(0, &segments),
        Content::Chunked => {
            let mut statement = c.prepare_cached("SELECT start, row FROM extents WHERE logid=?1 ORDER BY start")?;
            let mut found = statement.query([logid.0 as i64])?;
            while let Some(chunk) = found.next()? {
                let start: i64 = chunk.get(0)?;
                let body = row::open(Table::Extents, Key(logid.0 as i64, start, &[]), blob(chunk, 1)?)?;
                look(start as u64, &codec::decode_segments(start as u64, body)?);
            }
        }
    }
    Ok(())
}
