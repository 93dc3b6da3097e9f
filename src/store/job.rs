//! A few frames that are on their way: who fetches them, and who waits for them.
//!
//! Invariants: one thread fetches what is near; each frame is delivered once; whoever waits, waits no longer than its
//! deadline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use crate::arc::VerifiedFrame;
use crate::error::{Error, Result};
use crate::fetch::Asked;
use crate::ids::{FramePlace, Logid};
use crate::sync::{lock, wait_timeout};

/// What came of a frame.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The one that was looked at last: another one than was asked for where blocks of that were relocated meanwhile.
    pub frame: FramePlace,
    pub result: Result<VerifiedFrame>,
}

/// Called once, by whoever delivers a frame.
pub type Tell = Box<dyn FnOnce() + Send>;

/// A few frames that one thread fetches together; whoever needs one of them first may be that thread.
pub struct Job {
    /// A block of each.
    pub asked: Vec<Asked>,
    /// The file they are fetched for, to name it when one is bad.
    pub file: Option<Logid>,
    claimed: AtomicBool,
    slots: Mutex<Vec<Slot>>,
    changed: Condvar,
}

/// How it stands with a frame of a job.
enum Slot {
    /// The job's thread fetches it.
    Near,
    /// It is left to those who ask far copies; these want to know of its outcome.
    Far(Vec<Tell>),
    Delivered(Outcome),
}

impl Job {
    pub fn new(asked: Vec<Asked>, file: Option<Logid>) -> Job {
        let slots = Mutex::new(asked.iter().map(|_| Slot::Near).collect());
        Job { asked, file, claimed: AtomicBool::new(false), slots, changed: Condvar::new() }
    }

    /// True for exactly one caller, which then must deliver every frame, or leave it to others.
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
    pub fn wait_near(&self, slot: usize, deadline: Instant) -> Result<Option<Outcome>> {
        self.wait_while(slot, deadline, |slot| matches!(slot, Slot::Near))
    }

    /// Waits until the frame is delivered.
    pub fn wait(&self, slot: usize, deadline: Instant) -> Result<Outcome> {
        let outcome = self.wait_while(slot, deadline, |slot| !matches!(slot, Slot::Delivered(_)))?;
        outcome.ok_or_else(|| Error::Usage(format!("a job has no frame {slot}")))
    }

    fn wait_while(&self, slot: usize, deadline: Instant, pending: impl Fn(&Slot) -> bool) -> Result<Option<Outcome>> {
        let mut slots = lock(&self.slots);
        loop {
            match slots.get(slot) {
                Some(Slot::Delivered(outcome)) => return Ok(Some(outcome.clone())),
                Some(waiting) if pending(waiting) => {}
                _ => return Ok(None),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::TimedOut);
            }
            slots = wait_timeout(&self.changed, slots, left);
        }
    }

    /// Calls `tell` when the frame is delivered, or at once if it is.
    pub fn when_delivered(&self, slot: usize, tell: Tell) {
        if let Some(Slot::Far(waiting)) = lock(&self.slots).get_mut(slot) {
            return waiting.push(tell);
        }
        tell();
    }
}
