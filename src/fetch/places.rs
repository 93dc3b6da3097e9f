//! Block → where its frame is, and what must be there.
//!
//! Invariants: bounded numbers of remembered pieces; a block that was relocated is found at its new place, at the latest
//! after `forget`.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;

use crate::arc::FrameInfo;
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, BlockId, FrameNo};
use crate::index::Index;
use crate::sync::lock;

/// Pieces of frame tables kept, each up to 128 frames in 40 bytes each.
const MAX_CHUNKS: usize = 1024;
const NEIGHBOUR_BITS: u32 = 6;

/// The place of one frame and what must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    pub serial: ArcSerial,
    pub no: FrameNo,
    pub offset: u64,
    pub info: FrameInfo,
}

impl Located {
    /// The place as a number; a block that was never relocated has it for its name.
    pub fn place(&self) -> BlockId {
        BlockId::new(self.serial, self.no)
    }
}

struct Chunk {
    first: FrameNo,
    /// Offset in the arc and expectation of each frame.
    frames: Vec<(u64, FrameInfo)>,
}

impl Chunk {
    fn get(&self, no: FrameNo) -> Option<(u64, FrameInfo)> {
        self.frames.get(no.0.checked_sub(self.first.0)? as usize).copied()
    }
}

/// Name and present place of each block that was relocated.
type Moved = Vec<(BlockId, BlockId)>;

/// What of the index was asked lately.
pub(super) struct Places {
    index: Arc<Index>,
    /// By arc and frame number / 64: a piece covers at least 64 frames, so few are held under several keys.
    chunks: Mutex<LruCache<(ArcSerial, u32), Arc<Chunk>>>,
    /// Relocations of 64 neighbouring blocks; nearly always none.
    moved: Mutex<LruCache<(ArcSerial, u32), Arc<Moved>>>,
}

impl Places {
    pub fn new(index: Arc<Index>) -> Places {
        let bound = NonZeroUsize::new(MAX_CHUNKS).unwrap_or(NonZeroUsize::MIN);
        Places { index, chunks: Mutex::new(LruCache::new(bound)), moved: Mutex::new(LruCache::new(bound)) }
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
        let (serial, no) = (place.arc(), place.frame());
        let key = neighbours(place);
        let known = lock(&self.chunks).get(&key).and_then(|chunk| chunk.get(no));
        let (offset, info) = match known {
            Some(found) => found,
            None => {
                let row = self.index.frame_chunk(serial, no)?;
                let mut offset = row.offset;
                let mut frames = Vec::with_capacity(row.frames.len());
                for info in row.frames {
                    frames.push((offset, info));
                    offset += info.frame_len();
                }
                let chunk = Arc::new(Chunk { first: row.first, frames });
                lock(&self.chunks).put(key, chunk.clone());
                chunk.get(no).ok_or_else(|| Error::IndexRow {
                    path: self.index.path().to_path_buf(),
                    what: format!("the frame table of arc number {} has no frame {}", serial.0, no.0),
                })?
            }
        };
        Ok(Located { serial, no, offset, info })
    }

    fn place_of(&self, block: BlockId) -> Result<BlockId> {
        let key = neighbours(block);
        let known = lock(&self.moved).get(&key).cloned();
        let moved = match known {
            Some(moved) => moved,
            None => {
                let first = FrameNo(key.1 << NEIGHBOUR_BITS);
                let last = FrameNo(first.0 | ((1 << NEIGHBOUR_BITS) - 1));
                let range = BlockId::new(block.arc(), first)..=BlockId::new(block.arc(), last);
                let moved = Arc::new(self.index.relocations(range)?);
                lock(&self.moved).put(key, moved.clone());
                moved
            }
        };
        Ok(moved.iter().find(|(from, _)| *from == block).map_or(block, |(_, to)| *to))
    }

    /// Forgets where a block is: it may have been relocated since.
    pub fn forget(&self, block: BlockId) {
        lock(&self.moved).pop(&neighbours(block));
    }
}

/// Arc and frame number / 64.
fn neighbours(block: BlockId) -> (ArcSerial, u32) {
    (block.arc(), block.frame().0 >> NEIGHBOUR_BITS)
}
