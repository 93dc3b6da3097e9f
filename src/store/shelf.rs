//! Which frames are at hand, which are on their way and which were found bad a moment ago.
//!
//! Invariants: at most one job reads a frame at any time (single flight), and all blocks of it are at hand then; the frames
//! kept never exceed the byte limit; only verified ones are kept. All of it is under one mutex of the store: what happens
//! under it takes well below a microsecond, a frame takes a hundred times that to decode.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::job::{Job, Outcome};
use crate::arc::VerifiedFrame;
use crate::error::Error;
use crate::ids::FramePlace;

/// How long a frame that was found bad stays bad without being read again: the kernel retries page by page.
pub const VERDICT_TTL: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(5) };
/// Verdicts remembered at a time.
const MAX_VERDICTS: usize = 4096;

/// What the shelf knows of a frame.
pub enum Found {
    Here(VerifiedFrame),
    Coming(Arc<Job>, usize),
    Bad(Error),
    Unknown,
}

/// The byte-bounded cache, the frames in flight and the remembered verdicts.
pub struct Shelf {
    frames: LruCache<FramePlace, (VerifiedFrame, Instant)>,
    /// One that was verified longer ago is verified again.
    max_age: Option<Duration>,
    kept_bytes: u64,
    limit_bytes: u64,
    coming: HashMap<FramePlace, (Arc<Job>, usize)>,
    verdicts: LruCache<FramePlace, (Instant, Error)>,
}

impl Shelf {
    pub fn new(limit_bytes: u64, max_age: Option<Duration>) -> Shelf {
        Shelf {
            frames: LruCache::unbounded(),
            max_age,
            kept_bytes: 0,
            limit_bytes,
            coming: HashMap::new(),
            verdicts: LruCache::new(NonZeroUsize::new(MAX_VERDICTS).unwrap_or(NonZeroUsize::MIN)),
        }
    }

    pub fn find(&mut self, frame: FramePlace) -> Found {
        if let Some((here, verified)) = self.frames.get(&frame) {
            if self.max_age.is_none_or(|max_age| verified.elapsed() < max_age) {
                return Found::Here(here.clone());
            }
            self.drop_frame(frame);
        }
        match self.verdicts.get(&frame) {
            Some((when, error)) if when.elapsed() < VERDICT_TTL => return Found::Bad(error.clone()),
            Some(_) => drop(self.verdicts.pop(&frame)),
            None => {}
        }
        match self.coming.get(&frame) {
            Some((job, slot)) => Found::Coming(job.clone(), *slot),
            None => Found::Unknown,
        }
    }

    /// True when reading ahead would be wasted: the frame is here, coming or bad.
    pub fn knows(&mut self, frame: FramePlace) -> bool {
        !matches!(self.find(frame), Found::Unknown)
    }

    /// Registers the job's frames as coming.
    pub fn expect(&mut self, job: &Arc<Job>) {
        for (slot, asked) in job.asked.iter().enumerate() {
            self.coming.insert(asked.at.frame(), (job.clone(), slot));
        }
    }

    /// Takes the outcome of a frame that was coming.
    pub fn arrive(&mut self, asked: FramePlace, outcome: &Outcome) {
        self.coming.remove(&asked);
        match &outcome.result {
            Ok(opened) => {
                self.verdicts.pop(&outcome.frame);
                self.keep(outcome.frame, opened.clone());
            }
            Err(error) if error.is_damage() => {
                self.verdicts.put(outcome.frame, (Instant::now(), error.clone()));
            }
            Err(_) => {}
        }
    }

    /// Somebody has waited for a frame in vain: for a while nobody waits for it again, as the kernel would.
    pub fn is_late(&mut self, frame: FramePlace) {
        self.verdicts.put(frame, (Instant::now(), Error::TimedOut));
    }

    fn keep(&mut self, frame: FramePlace, opened: VerifiedFrame) {
        let len_bytes = opened.memory_bytes();
        if len_bytes > self.limit_bytes {
            return;
        }
        self.kept_bytes += len_bytes;
        if let Some((old, _)) = self.frames.put(frame, (opened, Instant::now())) {
            self.kept_bytes = self.kept_bytes.saturating_sub(old.memory_bytes());
        }
        while self.kept_bytes > self.limit_bytes {
            let Some((_, (evicted, _))) = self.frames.pop_lru() else { break };
            self.kept_bytes = self.kept_bytes.saturating_sub(evicted.memory_bytes());
        }
    }

    fn drop_frame(&mut self, frame: FramePlace) {
        if let Some((old, _)) = self.frames.pop(&frame) {
            self.kept_bytes = self.kept_bytes.saturating_sub(old.memory_bytes());
        }
    }

    #[cfg(test)]
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }
}
