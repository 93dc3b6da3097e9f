//! A few blocks that are on their way: who fetches them, and who waits for them.
//!
//! Invariants: one thread fetches what is near; each block is delivered once; whoever waits, waits no longer than its
//! deadline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use super::Wanted;
use crate::arc::VerifiedBlock;
use crate::error::{Error, Result};
use crate::ids::Logid;
use crate::sync::{lock, wait_timeout};

pub type Outcome = Result<Arc<VerifiedBlock>>;
/// Called once, by whoever delivers a block.
pub type Tell = Box<dyn FnOnce() + Send>;

/// A few blocks that one thread fetches together; whoever needs one of them first may be that thread.
pub struct Job {
    pub wanted: Vec<Wanted>,
    /// The file they are fetched for, to name it when one is bad.
    pub file: Option<Logid>,
    claimed: AtomicBool,
    slots: Mutex<Vec<Slot>>,
    changed: Condvar,
}

/// How it stands with a block of a job.
enum Slot {
    /// The job's thread fetches it.
    Near,
    /// It is left to those who ask far copies; these want to know of its outcome.
    Far(Vec<Tell>),
    Delivered(Outcome),
}

impl Job {
    pub fn new(wanted: Vec<Wanted>, file: Option<Logid>) -> Job {
        let slots = Mutex::new(wanted.iter().map(|_| Slot::Near).collect());
        Job { wanted, file, claimed: AtomicBool::new(false), slots, changed: Condvar::new() }
    }

    /// True for exactly one caller, which then must deliver every block, or leave it to others.
    pub fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    /// Nobody waits for it any longer than for what is far.
    pub fn leave(&self, slot: usize) {
        if let Some(place @ Slot::Near) = lock(&self.slots).get_mut(slot) {
            *place = Slot::Far(Vec::new());
            self.changed.notify_all();
        }
    }

    pub fn deliver(&self, slot: usize, outcome: Outcome) {
        let before = match lock(&self.slots).get_mut(slot) {
            None | Some(Slot::Delivered(_)) => return,
            Some(place) => std::mem::replace(place, Slot::Delivered(outcome)),
        };
        self.changed.notify_all();
        if let Slot::Far(waiting) = before {
            waiting.into_iter().for_each(|tell| tell());
        }
    }

    pub fn delivered(&self, slot: usize) -> bool {
        matches!(lock(&self.slots).get(slot), Some(Slot::Delivered(_)))
    }

    pub fn is_near(&self, slot: usize) -> bool {
        matches!(lock(&self.slots).get(slot), Some(Slot::Near))
    }

    /// Waits for the job's thread, until it has delivered the block or left it to others; then None.
    pub fn wait_near(&self, slot: usize, deadline: Instant) -> Option<Outcome> {
        self.wait_while(slot, deadline, |slot| matches!(slot, Slot::Near))
    }

    /// Waits until the block is delivered.
    pub fn wait(&self, slot: usize, deadline: Instant) -> Outcome {
        let outcome = self.wait_while(slot, deadline, |slot| !matches!(slot, Slot::Delivered(_)));
        outcome.unwrap_or_else(|| Err(Error::Usage(format!("a job has no block {slot}"))))
    }

    fn wait_while(&self, slot: usize, deadline: Instant, pending: impl Fn(&Slot) -> bool) -> Option<Outcome> {
        let mut slots = lock(&self.slots);
        loop {
            match slots.get(slot)? {
                Slot::Delivered(outcome) => return Some(outcome.clone()),
                waiting if !pending(waiting) => return None,
                _ => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(Err(Error::TimedOut));
            }
            slots = wait_timeout(&self.changed, slots, left);
        }
    }

    /// Calls `tell` when the block is delivered, or at once if it is.
    pub fn when_delivered(&self, slot: usize, tell: Tell) {
        if let Some(Slot::Far(waiting)) = lock(&self.slots).get_mut(slot) {
            return waiting.push(tell);
        }
        tell();
    }
}
