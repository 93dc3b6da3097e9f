//! Which blocks are at hand, which are on their way and which were found bad a moment ago.
//!
//! Invariants: at most one job reads a block at any time (single flight); the blocks kept never exceed the byte
//! limit; only verified blocks are kept. All of it is under one mutex of the store: what happens under it takes
//! well below a microsecond, a block takes a hundred times that to decode.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::Wanted;
use crate::arc::VerifiedBlock;
use crate::error::{Error, Result};
use crate::ids::{BlockId, Logid};
use crate::sync::{lock, wait};

/// How long a block that was found bad stays bad without being read again: the kernel retries page by page.
pub const VERDICT_TTL: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(5) };
/// Verdicts remembered at a time.
const MAX_VERDICTS: usize = 4096;

pub type Outcome = Result<Arc<VerifiedBlock>>;

/// A few blocks that one thread reads and verifies together; whoever needs one of them first may be that thread.
pub struct Job {
    pub wanted: Vec<Wanted>,
    /// The file they are read for, to name it when one is bad.
    pub file: Option<Logid>,
    claimed: AtomicBool,
    outcomes: Mutex<Vec<Option<Outcome>>>,
    arrived: Condvar,
}

impl Job {
    pub fn new(wanted: Vec<Wanted>, file: Option<Logid>) -> Job {
        let outcomes = Mutex::new(vec![None; wanted.len()]);
        Job { wanted, file, claimed: AtomicBool::new(false), outcomes, arrived: Condvar::new() }
    }

    /// True for exactly one caller, which then must deliver every block.
    pub fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    pub fn deliver(&self, slot: usize, outcome: Outcome) {
        let mut outcomes = lock(&self.outcomes);
        if let Some(place) = outcomes.get_mut(slot)
            && place.is_none()
        {
            *place = Some(outcome);
            self.arrived.notify_all();
        }
    }

    pub fn delivered(&self, slot: usize) -> bool {
        lock(&self.outcomes).get(slot).is_some_and(Option::is_some)
    }

    /// Waits until the job's thread has delivered the block.
    pub fn wait(&self, slot: usize) -> Outcome {
        let mut outcomes = lock(&self.outcomes);
        loop {
            match outcomes.get(slot) {
                Some(Some(outcome)) => return outcome.clone(),
                Some(None) => outcomes = wait(&self.arrived, outcomes),
                None => return Err(Error::Usage(format!("a job has no block {slot}"))),
            }
        }
    }
}

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
        if let Some((job, slot)) = self.coming.get(&block) {
            return Found::Coming(job.clone(), *slot);
        }
        match self.verdicts.get(&block) {
            Some((when, error)) if when.elapsed() < VERDICT_TTL => Found::Bad(error.clone()),
            Some(_) => {
                self.verdicts.pop(&block);
                Found::Unknown
            }
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
            Ok(verified) => self.keep(block, verified.clone()),
            Err(error) if error.is_damage() => {
                self.verdicts.put(block, (Instant::now(), error.clone()));
            }
            Err(_) => {}
        }
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
