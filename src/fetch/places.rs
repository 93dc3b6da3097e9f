//! Block → where its frame is, and what must be there.
//!
//! Invariants: bounded numbers of remembered pieces; a block that was relocated is found at its new place, at the latest
//! after `forget`.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;

use crate::arc::{BlockInfo, FrameInfo};
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, BlockId, FrameNo, FramePlace, Slot};
use crate::index::{Chunks, FrameChunk, Index};
use crate::sync::lock;

/// Pieces of frame tables kept, each below 4 KiB as it is stored.
const MAX_CHUNKS: usize = 512;
/// Relocations are asked for by neighbourhoods of 16 frames, so at most 2,048 at a time.
const NEIGHBOUR_BITS: u32 = 4;
const MAX_NEIGHBOURHOODS: usize = 512;

/// The place of one block, its frame, and what must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    pub serial: ArcSerial,
    pub no: FrameNo,
    pub slot: Slot,
    /// Of the frame.
    pub offset: u64,
    pub info: FrameInfo,
    pub block: BlockInfo,
}

impl Located {
    /// The frame.
    pub fn frame(&self) -> FramePlace {
        FramePlace::new(self.serial, self.no)
    }

    /// The place as a number; a block that was never relocated has it for its name.
    pub fn place(&self) -> BlockId {
        self.frame().slot(self.slot)
    }
}

/// Name and present place of each block that was relocated.
type Moved = Vec<(BlockId, BlockId)>;

/// What of the index was asked lately.
pub(super) struct Places {
    index: Arc<Index>,
    chunks: Mutex<Chunks>,
    /// Relocations of the blocks of neighbouring frames, in order; nearly always none.
    moved: Mutex<LruCache<(ArcSerial, u32), Arc<Moved>>>,
}

impl Places {
    pub fn new(index: Arc<Index>) -> Places {
        let bound = NonZeroUsize::new(MAX_NEIGHBOURHOODS).unwrap_or(NonZeroUsize::MIN);
        Places { index, chunks: Mutex::new(Chunks::bounded(MAX_CHUNKS)), moved: Mutex::new(LruCache::new(bound)) }
    }

    /// Finds a block's frame, also one that was relocated.
    pub fn locate(&self, block: BlockId) -> Result<Located> {
        let place = self.place_of(block)?;
        match self.at(place) {
            // The arc was packed since its place was looked up; or no version needs the block.
            Err(error @ Error::ArcDropped { .. }) => {
                self.forget(block);
                let now = self.place_of(block)?;
                if now == place { Err(error) } else { self.at(now) }
            }
            other => other,
        }
    }

    fn at(&self, place: BlockId) -> Result<Located> {
        let (serial, no, slot) = (place.arc(), place.frame(), place.slot());
        let unknown = || Error::IndexRow {
            path: self.index.path().to_path_buf(),
            what: format!("the frame table of arc number {} has no block {} in frame {}", serial.0, slot.0, no.0),
        };
        let found = |chunk: &FrameChunk| chunk.locate(no).map(|(offset, info)| (offset, info.clone()));
        let known = lock(&self.chunks).get(place.place()).and_then(found);
        let (offset, info) = match known {
            Some(located) => located,
            None => {
                let chunk = self.index.frame_chunk(serial, no)?;
                let located = found(&chunk);
                lock(&self.chunks).put(serial, chunk);
                located.ok_or_else(unknown)?
            }
        };
        let block = *info.block(slot).ok_or_else(unknown)?;
        Ok(Located { serial, no, slot, offset, info, block })
    }

    fn place_of(&self, block: BlockId) -> Result<BlockId> {
        let key = neighbours(block);
        let known = lock(&self.moved).get(&key).cloned();
        let moved = match known {
            Some(moved) => moved,
            None => {
                let first = FrameNo(key.1 << NEIGHBOUR_BITS);
                let last = FrameNo(first.0 | ((1 << NEIGHBOUR_BITS) - 1));
                let range = BlockId::first(block.arc(), first)..=BlockId::new(block.arc(), last, Slot::MAX);
                let moved = Arc::new(self.index.relocations(range)?);
                lock(&self.moved).put(key, moved.clone());
                moved
            }
        };
        let found = moved.binary_search_by_key(&block, |(from, _)| *from).ok().and_then(|at| moved.get(at));
        Ok(found.map_or(block, |(_, to)| *to))
    }

    /// Forgets where a block is: it may have been relocated since.
    pub fn forget(&self, block: BlockId) {
        lock(&self.moved).pop(&neighbours(block));
    }
}

/// Arc and number of the neighbourhood.
fn neighbours(block: BlockId) -> (ArcSerial, u32) {
    (block.arc(), block.frame().0 >> NEIGHBOUR_BITS)
}
