//! Blocks that cut runs had stored: which of them the running backup uses again.
//!
//! Invariant: what the backup does not use it drops, and every later commit of a version counts on that.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::error::Result;
use crate::ids::{ArcSerial, BlockId};
use crate::index::Index;

/// Arcs that cut runs have left and that no version uses yet, and which of them the running backup uses.
#[derive(Debug, Default)]
pub struct Spare {
    arcs: Vec<Range<u64>>,
    used: BTreeSet<ArcSerial>,
}

/// Blocks of cut runs that a version uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resumed {
    pub blocks: u64,
    /// Plain bytes of these blocks.
    pub bytes: u64,
}

impl Spare {
    pub fn of(index: &Index) -> Result<Spare> {
        Ok(Spare { arcs: index.spare_arcs()?, used: BTreeSet::new() })
    }

    fn holds(&self, serial: ArcSerial) -> bool {
        self.arcs.iter().any(|range| range.contains(&serial.0))
    }

    /// The running backup uses a block that was stored before.
    pub fn note(&mut self, block: BlockId) {
        if !self.arcs.is_empty() && self.holds(block.arc()) {
            self.used.insert(block.arc());
        }
    }

    /// What of it is used, and the arcs that hold nothing that is.
    pub fn settled(&self, index: &Index) -> Result<(Resumed, BTreeSet<ArcSerial>)> {
        let (mut resumed, mut unused) = (Resumed::default(), BTreeSet::new());
        if self.arcs.is_empty() {
            return Ok((resumed, unused));
        }
        for entry in index.arcs()?.into_iter().map(|row| row.entry).filter(|entry| self.holds(entry.serial)) {
            if self.used.contains(&entry.serial) {
                resumed.blocks += index.blocks_in(entry.serial, 0..entry.frames)?;
                resumed.bytes += entry.plain_bytes;
            } else {
                unused.insert(entry.serial);
            }
        }
        Ok((resumed, unused))
    }
}
