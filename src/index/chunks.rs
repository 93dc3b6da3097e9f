//! Pieces of frame tables that were read lately.
//!
//! Invariant: a bounded number of pieces; pieces of one index at one time do not overlap.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use lru::LruCache;

use super::FrameChunk;
use crate::ids::{ArcSerial, FramePlace};

/// Rows of `frames` by their first frames; which of them has a frame can only be told in order.
pub struct Chunks {
    kept: LruCache<FramePlace, FrameChunk>,
    firsts: BTreeSet<FramePlace>,
}

impl Chunks {
    /// Each takes below 4 KiB in the index, and up to five times that here.
    pub fn bounded(most: usize) -> Chunks {
        let bound = NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN);
        Chunks { kept: LruCache::new(bound), firsts: BTreeSet::new() }
    }

    /// The piece with a frame.
    pub fn get(&mut self, place: FramePlace) -> Option<&FrameChunk> {
        let first = self.firsts.range(..=place).next_back().filter(|first| first.arc() == place.arc())?;
        self.kept.get(first).filter(|chunk| chunk.locate(place.frame()).is_some())
    }

    pub fn put(&mut self, serial: ArcSerial, chunk: FrameChunk) {
        let first = FramePlace::new(serial, chunk.first);
        self.firsts.insert(first);
        if let Some((gone, _)) = self.kept.push(first, chunk).filter(|(gone, _)| *gone != first) {
            self.firsts.remove(&gone);
        }
    }
}
