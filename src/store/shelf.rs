//! Which blocks are at hand, which are on their way and which were found bad a moment ago.
//!
//! Invariants: at most one job reads a block at any time (single flight); the blocks kept never exceed the byte
//! limit; only verified blocks are kept. All of it is under one mutex of the store: what happens under it takes
//! well below a microsecond, a block takes a hundred times that to decode.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::job::{Job, Outcome};
use crate::arc::VerifiedBlock;
use crate::error::Error;
use crate::ids::BlockId;

/// How long a block that was found bad stays bad without being read again: the kernel retries page by page.
pub const VERDICT_TTL: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(5) };
/// Verdicts remembered at a time.
const MAX_VERDICTS: usize = 4096;

/// What the shelf knows of a block.
pub enum Found {
    Here(Arc<VerifiedBlock>),
    Coming(Arc<Job>, usize),
    Bad(Error),
    Unknown,
}

/// The byte-bounded cache, the blocks in flight and the remembered verdicts.
pub struct Shelf {
    blocks: LruCache<BlockId, (Arc<VerifiedBlock>, Instant)>,
    /// A block that was verified longer ago is verified again.
    max_age: Option<Duration>,
    kept_bytes: u64,
    limit_bytes: u64,
    coming: HashMap<BlockId, (Arc<Job>, usize)>,
    verdicts: LruCache<BlockId, (Instant, Error)>,
}

impl Shelf {
    pub fn new(limit_bytes: u64, max_age: Option<Duration>) -> Shelf {
        Shelf {
            blocks: LruCache::unbounded(),
            max_age,
            kept_bytes: 0,
            limit_bytes,
            coming: HashMap::new(),
            verdicts: LruCache::new(NonZeroUsize::new(MAX_VERDICTS).unwrap_or(NonZeroUsize::MIN)),
        }
    }

    pub fn find(&mut self, block: BlockId) -> Found {
        if let Some((here, verified)) = self.blocks.get(&block) {
            if self.max_age.is_none_or(|max_age| verified.elapsed() < max_age) {
                return Found::Here(here.clone());
            }
            self.drop_block(block);
        }
        match self.verdicts.get(&block) {
            Some((when, error)) if when.elapsed() < VERDICT_TTL => return Found::Bad(error.clone()),
            Some(_) => drop(self.verdicts.pop(&block)),
            None => {}
        }
        match self.coming.get(&block) {
            Some((job, slot)) => Found::Coming(job.clone(), *slot),
            None => Found::Unknown,
        }
    }

    /// True when reading ahead would be wasted: the block is here, coming or bad.
    pub fn knows(&mut self, block: BlockId) -> bool {
        !matches!(self.find(block), Found::Unknown)
    }

    /// Registers the job's blocks as coming.
    pub fn expect(&mut self, job: &Arc<Job>) {
        for (slot, wanted) in job.wanted.iter().enumerate() {
            self.coming.insert(wanted.block, (job.clone(), slot));
        }
    }

    /// Takes the outcome of a block that was coming.
    pub fn arrive(&mut self, block: BlockId, outcome: &Outcome) {
        self.coming.remove(&block);
        match outcome {
            Ok(verified) => {
                self.verdicts.pop(&block);
                self.keep(block, verified.clone());
            }
            Err(error) if error.is_damage() => {
                self.verdicts.put(block, (Instant::now(), error.clone()));
            }
            Err(_) => {}
        }
    }

    /// Somebody has waited for a block in vain: for a while nobody waits for it again, as the kernel would.
    pub fn is_late(&mut self, block: BlockId) {
        self.verdicts.put(block, (Instant::now(), Error::TimedOut));
    }

    fn keep(&mut self, block: BlockId, verified: Arc<VerifiedBlock>) {
        let len_bytes = verified.len() as u64;
        if len_bytes > self.limit_bytes {
            return;
        }
        self.kept_bytes += len_bytes;
        if let Some((old, _)) = self.blocks.put(block, (verified, Instant::now())) {
            self.kept_bytes = self.kept_bytes.saturating_sub(old.len() as u64);
        }
        while self.kept_bytes > self.limit_bytes {
            let Some((_, (evicted, _))) = self.blocks.pop_lru() else { break };
            self.kept_bytes = self.kept_bytes.saturating_sub(evicted.len() as u64);
        }
    }

    fn drop_block(&mut self, block: BlockId) {
        if let Some((old, _)) = self.blocks.pop(&block) {
            self.kept_bytes = self.kept_bytes.saturating_sub(old.len() as u64);
        }
    }

    #[cfg(test)]
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }
}
