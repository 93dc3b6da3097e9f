//! Which files use which blocks: there is no table for it, so all file states are looked through.
//!
//! Invariants: two passes over whole tables (files, then extents), a batch of rows at a time, so that no transaction is
//! long and memory holds one batch.

use std::ops::Range;

use rusqlite::{Connection, Row, params};

use super::Index;
use super::fail::{Fail, Found};
use super::row::{self, Key, Table};
use super::rows::{self, PartOf, blob};
use crate::catalog::codec;
use crate::catalog::{Content, Segment};
use crate::error::{Error, Result};
use crate::ids::{BlockId, Logid};

/// Rows that one question reads.
pub(super) const BATCH_ROWS: u32 = 4096;

/// In which order file states are looked through, and what becomes of a row that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Oldest first; the first such row ends it with its error.
    Whole,
    /// Newest first; such rows are passed over, for they can't name anything.
    Readable,
}

/// Segments of a file from an offset on, and the key of the row that they are from.
struct Stretch {
    key: (i64, i64),
    /// None: the row can't be read.
    segments: Option<Vec<Segment>>,
}

impl Index {
    /// Visits each use of each block: the block, the file state, and its bytes that are the block.
    ///
    /// `stop` is asked between batches; when it says so, the answer is `INTERRUPTED`.
    pub fn each_use(
        &self,
        pass: Pass,
        stop: &dyn Fn() -> bool,
        mut visit: impl FnMut(BlockId, Logid, Range<u64>),
    ) -> Result<()> {
        for batch_of in [nodes, extents] {
            let mut last = match pass {
                Pass::Whole => (-1, -1),
                Pass::Readable => (i64::MAX, i64::MAX),
            };
            self.batches(stop, || {
                let batch = self.ask(|c| batch_of(c, pass, last))?;
                last = batch.last().map_or(last, |stretch| stretch.key);
                for Stretch { key: (logid, start), segments } in &batch {
                    let mut at = *start as u64;
                    for segment in segments.iter().flatten() {
                        let end = at.saturating_add(segment.len());
                        if let Segment::Data { block, .. } = segment {
                            visit(*block, Logid(*logid as u64), at..end);
                        }
                        at = end;
                    }
                }
                Ok(batch.len())
            })?;
        }
        Ok(())
    }

    /// Calls `batch` until it answers fewer rows than a whole batch has.
    pub(super) fn batches(&self, stop: &dyn Fn() -> bool, mut batch: impl FnMut() -> Result<usize>) -> Result<()> {
        loop {
            if stop() {
                return Err(Error::Interrupted);
            }
            if batch()? < BATCH_ROWS as usize {
                return Ok(());
            }
        }
    }
}

/// Files and the segments that they carry themselves.
fn nodes(c: &Connection, pass: Pass, (last, _): (i64, i64)) -> Found<Vec<Stretch>> {
    let mut statement = c.prepare_cached(match pass {
        Pass::Whole => "SELECT id, row FROM nodes WHERE id>?1 ORDER BY id LIMIT ?2",
        Pass::Readable => "SELECT id, row FROM nodes WHERE id<?1 ORDER BY id DESC LIMIT ?2",
    })?;
    let mut found = statement.query(params![last, BATCH_ROWS])?;
    let segments = |found: &Row<'_>, id: i64| -> Found<Vec<Segment>> {
        let whole = rows::whole(c, PartOf::Node, id, row::open(Table::Nodes, Key::id(id), blob(found, 1)?)?)?;
        Ok(match rows::decode_node_row(&whole)?.1.content {
            Content::Inline(segments) => segments,
            Content::Chunked(_) => Vec::new(),
        })
    };
    let mut batch = Vec::new();
    while let Some(found) = found.next()? {
        let id: i64 = found.get(0)?;
        batch.push(Stretch { key: (id, 0), segments: readable(pass, segments(found, id))? });
    }
    Ok(batch)
}

fn extents(c: &Connection, pass: Pass, last: (i64, i64)) -> Found<Vec<Stretch>> {
    let mut statement = c.prepare_cached(match pass {
        Pass::Whole => {
            "SELECT logid, start, row FROM extents WHERE (logid, start)>(?1, ?2) ORDER BY logid, start LIMIT ?3"
        }
        Pass::Readable => {
            "SELECT logid, start, row FROM extents WHERE (logid, start)<(?1, ?2) ORDER BY logid DESC, start DESC LIMIT ?3"
        }
    })?;
    let mut found = statement.query(params![last.0, last.1, BATCH_ROWS])?;
    let segments = |found: &Row<'_>, (logid, start): (i64, i64)| -> Found<Vec<Segment>> {
        let body = row::open(Table::Extents, Key(logid, start, &[]), blob(found, 2)?)?;
        Ok(codec::decode_segments(start as u64, body)?)
    };
    let mut batch = Vec::new();
    while let Some(found) = found.next()? {
        let key = (found.get(0)?, found.get(1)?);
        batch.push(Stretch { key, segments: readable(pass, segments(found, key))? });
    }
    Ok(batch)
}

fn readable<T>(pass: Pass, read: Found<T>) -> Found<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(Fail::Row(_) | Fail::Known(_)) if pass == Pass::Readable => Ok(None),
        Err(fail) => Err(fail),
    }
}
