//! Answers that come later: blocks that are not all at hand, and who wants to hear of them.
//!
//! Invariants: each question is answered exactly once, with all of its blocks or one error, and no later than its deadline.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::job::Job;
use super::{Inner, Wanted};
use crate::arc::VerifiedBlock;
use crate::error::{Error, Result};
use crate::ids::{BlockId, Logid};
use crate::sync::lock;

/// Takes the answer.
pub type Then = Box<dyn FnOnce(Result<Vec<VerifiedBlock>>) + Send>;

pub enum Part {
    Here(VerifiedBlock),
    Coming(Arc<Job>, usize),
}

/// A block that was asked for, and where it was found to be.
pub struct Ask {
    pub want: Wanted,
    pub place: BlockId,
}

/// Blocks that are here, and those that follow them, not all of which are.
pub struct Later {
    pub inner: Arc<Inner>,
    pub blocks: Vec<VerifiedBlock>,
    pub parts: Vec<(Ask, Part)>,
    pub file: Option<Logid>,
    pub deadline: Instant,
}

impl Later {
    /// Waits for them.
    pub fn wait(self) -> Result<Vec<VerifiedBlock>> {
        let Later { inner, mut blocks, parts, file, deadline } = self;
        for (ask, part) in parts {
            blocks.push(match part {
                Part::Here(verified) => verified,
                Part::Coming(job, slot) => match job.wait(slot, deadline) {
                    Err(Error::TimedOut) => {
                        lock(&inner.shelf).is_late(ask.place.place());
                        return Err(Error::TimedOut);
                    }
                    outcome => inner.block_of(&ask, outcome?, file, deadline)?,
                },
            });
        }
        Ok(blocks)
    }

    /// What has not come yet is late.
    fn is_late(&self) {
        let coming = |part: &Part| part.coming().is_some_and(|(job, slot)| !job.delivered(slot));
        let late = self.parts.iter().filter(|(_, part)| coming(part));
        late.for_each(|(ask, _)| lock(&self.inner.shelf).is_late(ask.place.place()));
    }
}

/// A question whose answer is not there yet.
pub struct Pending {
    pub deadline: Instant,
    missing: AtomicUsize,
    /// None once it was answered.
    open: Mutex<Option<(Later, Then)>>,
}

impl Pending {
    /// Answers when all blocks have come, perhaps at once.
    pub fn start(later: Later, then: Then) -> Arc<Pending> {
        let jobs: Vec<(Arc<Job>, usize)> = later.parts.iter().filter_map(|(_, part)| part.coming()).collect();
        // One more than there are, so that nothing is answered before all have been told whom to tell.
        let missing = AtomicUsize::new(jobs.len() + 1);
        let pending = Arc::new(Pending { deadline: later.deadline, missing, open: Mutex::new(Some((later, then))) });
        for (job, slot) in jobs {
            let told = pending.clone();
            job.when_delivered(slot, Box::new(move || told.arrived()));
        }
        pending.arrived();
        pending
    }

    /// One of the blocks was delivered.
    pub fn arrived(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some((later, then)) = lock(&self.open).take()
        {
            then(later.wait());
        }
    }

    pub fn is_open(&self) -> bool {
        lock(&self.open).is_some()
    }

    /// The deadline has come.
    pub fn give_up(&self) {
        let open = lock(&self.open).take();
        if let Some((later, then)) = open {
            later.is_late();
            then(Err(Error::TimedOut));
        }
    }
}

impl Part {
    fn coming(&self) -> Option<(Arc<Job>, usize)> {
        match self {
            Part::Here(_) => None,
            Part::Coming(job, slot) => Some((job.clone(), *slot)),
        }
    }
}
