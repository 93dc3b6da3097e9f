//! `assay damage`: which bytes of one file can be read, and which can't, by reading all of it now.

use std::ops::Range;

use crate::catalog::Node;
use crate::error::{Error, Result};
use crate::store::{Store, Wanted};
use crate::tree::{Piece, SeekTo, Tree};

/// Asked for in one go while all goes well.
const WINDOW_BYTES: u64 = 4 << 20;
/// Where no content is recorded, the loss is narrowed down to pieces of this size.
const GRAIN_BYTES: u64 = 4096;

/// The bad ranges of a file, in order and not touching each other, with the first error of each.
///
/// # Errors
/// Those that are no damage (the disk is out of reach, a lock); damage is in the answer.
pub fn bad_ranges(tree: &Tree, store: &Store, node: &Node) -> Result<Vec<(Range<u64>, Error)>> {
    let mut bad: Vec<(Range<u64>, Error)> = Vec::new();
    let mut at = 0;
    while at < node.attr.size {
        if let Ok(data) = tree.seek(node, at, SeekTo::Data) {
            let Some(data) = data else { break };
            at = data;
        }
        let len = WINDOW_BYTES.min(node.attr.size - at);
        look(tree, store, node, at..at + len, &mut bad)?;
        at += len;
    }
    Ok(bad)
}

fn look(tree: &Tree, store: &Store, node: &Node, range: Range<u64>, bad: &mut Vec<(Range<u64>, Error)>) -> Result<()> {
    let pieces = match tree.segments(node, range.start, range.end - range.start) {
        Ok(pieces) => pieces,
        Err(error) if !error.is_damage() => return Err(error),
        Err(error) if range.end - range.start <= GRAIN_BYTES => {
            add(bad, range, error);
            return Ok(());
        }
        Err(_) => {
            let step = ((range.end - range.start) / 2).next_multiple_of(GRAIN_BYTES);
            let middle = (range.start + step).min(range.end);
            look(tree, store, node, range.start..middle, bad)?;
            return look(tree, store, node, middle..range.end, bad);
        }
    };
    let wanted = |piece: &Piece| match piece {
        Piece::Data { block, block_len, .. } => Some(Wanted { block: *block, len_bytes: *block_len }),
        Piece::Zero { .. } => None,
    };
    let all: Vec<Wanted> = pieces.iter().filter_map(wanted).collect();
    if store.blocks(&all, Some(node.logid)).is_ok() {
        return Ok(());
    }
    let mut at = range.start;
    for piece in &pieces {
        let end = at + piece.len();
        if let Some(Wanted { block, len_bytes }) = wanted(piece) {
            match store.block(block, len_bytes, Some(node.logid)) {
                Err(error) if error.is_damage() => add(bad, at..end, error),
                other => drop(other?),
            }
        }
        at = end;
    }
    Ok(())
}

fn add(bad: &mut Vec<(Range<u64>, Error)>, range: Range<u64>, error: Error) {
    match bad.last_mut() {
        Some((last, _)) if last.end == range.start => last.end = range.end,
        _ => bad.push((range, error)),
    }
}
