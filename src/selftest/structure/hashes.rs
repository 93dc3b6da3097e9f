//! That each row of `hashes` leads to a block which has this hash, by sums.
//!
//! Hashes are in no order of place. So each block has a number, a bit says that a row leads to it, and the sum over all
//! rows of what a secret function makes of hash and number is compared with the sum over all blocks with that bit: rows
//! that lead to a block of another hash make the sums differ, but for a chance of 2⁻⁶⁴.
//! Invariant: memory holds 4 bytes a frame and a bit a block.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};

use super::Check;
use crate::arc::{BlockInfo, FrameKind};
use crate::error::Result;
use crate::ids::{ArcSerial, BlockId, FrameNo};
use crate::index::{ScanTable, Scanned, Snapshot, hash_key};

/// How many rows there are, if each leads to a block that has its hash. `moved`: from where blocks are read instead.
pub fn prove(check: &Check<'_>, rows: &Snapshot<'_>, moved: &HashMap<BlockId, BlockId>) -> Result<Option<u64>> {
    let mut blocks = Blocks::default();
    if !each(check, rows, |arc, no, found| blocks.count(arc, no, found.len()))? {
        return Ok(None);
    }
    let Some(mut named) = blocks.bits() else { return Ok(None) };
    let secret = RandomState::new();
    let (mut count, mut sum) = (0u64, 0u64);
    let mut hashes = rows.cursor(ScanTable::Hashes);
    while let Some(scanned) = hashes.take() {
        let Scanned::Row(row) = scanned else { return Ok(None) };
        let block = row.block();
        let Some(number) = blocks.number(*moved.get(&block).unwrap_or(&block)) else { return Ok(None) };
        // A block has one hash.
        if !set(&mut named, number) {
            return Ok(None);
        }
        sum = sum.wrapping_add(secret.hash_one((row.key.first, number)));
        count += 1;
        if count.is_multiple_of(1 << 14) {
            check.interrupted()?;
        }
    }
    let mut number = 0u32;
    let whole = each(check, rows, |_, _, found| {
        for block in found {
            if is_set(&named, number) {
                sum = sum.wrapping_sub(secret.hash_one((hash_key(&block.hash), number)));
            }
            number = number.wrapping_add(1);
        }
        true
    })?;
    Ok(Some(count).filter(|_| whole && sum == 0))
}

/// Visits all frames of blocks, in order of place. False: something can't be read, or the visitor said so.
fn each(
    check: &Check<'_>,
    rows: &Snapshot<'_>,
    mut visit: impl FnMut(ArcSerial, FrameNo, &[BlockInfo]) -> bool,
) -> Result<bool> {
    let mut frames = rows.cursor(ScanTable::Frames);
    while let Some(scanned) = frames.take() {
        let Scanned::Row(row) = scanned else { return Ok(false) };
        let (serial, chunk) = row.frames(rows.index())?;
        for (info, no) in chunk.frames.iter().zip(chunk.first.0..).filter(|(info, _)| info.kind == FrameKind::Block) {
            if !visit(serial, FrameNo(no), &info.blocks) {
                return Ok(false);
            }
        }
        check.interrupted()?;
    }
    Ok(true)
}

/// Numbers blocks in order of place.
#[derive(Default)]
struct Blocks {
    /// The number of each frame's first block.
    firsts: Vec<u32>,
    /// The first frame of each arc, and where it is in `firsts`.
    arcs: BTreeMap<ArcSerial, (FrameNo, usize)>,
    count: u32,
}

impl Blocks {
    /// False: there are more than can be numbered, or frames are missing between.
    fn count(&mut self, arc: ArcSerial, no: FrameNo, blocks: usize) -> bool {
        let at = self.firsts.len();
        let (first, from) = *self.arcs.entry(arc).or_insert((no, at));
        self.firsts.push(self.count);
        let next = u32::try_from(blocks).ok().and_then(|blocks| self.count.checked_add(blocks));
        self.count = next.unwrap_or(self.count);
        next.is_some() && no.0.checked_sub(first.0) == Some((at - from) as u32)
    }

    fn number(&self, block: BlockId) -> Option<u32> {
        let (first, from) = self.arcs.get(&block.arc())?;
        let at = from + block.frame().0.checked_sub(first.0)? as usize;
        let number = self.firsts.get(at)?.checked_add(u32::from(block.slot().0))?;
        (number < self.firsts.get(at + 1).copied().unwrap_or(self.count)).then_some(number)
    }

    fn bits(&self) -> Option<Vec<u64>> {
        Some(vec![0; usize::try_from(self.count / 64).ok()? + 1])
    }
}

/// False if the bit is set already.
fn set(bits: &mut [u64], number: u32) -> bool {
    let Some(word) = bits.get_mut(number as usize / 64) else { return false };
    let before = *word;
    *word |= 1 << (number % 64);
    before != *word
}

fn is_set(bits: &[u64], number: u32) -> bool {
    bits.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
}
