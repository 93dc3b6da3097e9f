//! Blocks from what leaves the machine, copies or all there is: threads that may be kept waiting, and the clock that lets nobody else be.
//!
//! Invariants: at most `MAX_TASKS` frames wait for their turn; one for which nobody waits any more is not asked for; a
//! question whose deadline has come is answered by the clock's thread; once closed, each question is answered at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Instant;

use super::Inner;
use super::job::{Job, Outcome};
use super::later::{Later, Pending, Then};
use crate::arc::VerifiedFrame;
use crate::error::{Error, Result};
use crate::fetch::{Asked, Bad};
use crate::ids::FramePlace;
use crate::sync::{lock, wait, wait_timeout};

/// Frames that are asked for at a time.
const THREADS: usize = 16;
const MAX_TASKS: usize = 4096;

struct Task {
    job: Arc<Job>,
    what: What,
    sent: Instant,
}

enum What {
    /// All frames of the job that were not delivered: what is read first is far.
    Job,
    /// One that what is near does not have.
    Frame { slot: usize, of: Box<(Asked, Bad)> },
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    closed: bool,
}

#[derive(Default)]
struct Clock {
    /// By deadline, and a number that tells those of one moment apart.
    pending: BTreeMap<(Instant, u64), Weak<Pending>>,
    last: u64,
    closed: bool,
}

#[derive(Default)]
pub(super) struct Far {
    queue: Mutex<Queue>,
    more: Condvar,
    clock: Mutex<Clock>,
    sooner: Condvar,
}

/// Starts the threads, if there is something far. Nobody waits for their end: they may be kept by a server that is.
pub(super) fn start(inner: &Arc<Inner>) {
    let Some(far) = &inner.far else { return };
    let thread = |name: String, work: fn(&Inner)| {
        let inner = inner.clone();
        std::thread::Builder::new().name(name).spawn(move || work(&inner))
    };
    let mut asking = (0..THREADS).map_while(|number| thread(format!("far-{number}"), serve).ok());
    let clock = thread("deadlines".into(), |inner| inner.far.iter().for_each(Far::watch));
    if clock.is_err() || asking.by_ref().count() == 0 {
        far.close(inner);
    }
}

fn serve(inner: &Inner) {
    let Some(far) = &inner.far else { return };
    while let Some(Task { job, what, sent }) = far.next() {
        let owed = |slot| Owed { inner, job: &job, slot };
        // Who asked has been told that it took too long.
        let too_late = sent.elapsed() > inner.deadline;
        match what {
            What::Job => {
                let open = job.asked.iter().enumerate().filter(|(slot, _)| !job.delivered(*slot));
                let (all, asked): (Vec<Owed<'_>>, Vec<Asked>) =
                    open.map(|(slot, asked)| (owed(slot), asked.clone())).unzip();
                if too_late {
                    asked.iter().zip(&all).for_each(|(asked, one)| one.pay(asked.at.frame(), Err(Error::TimedOut)));
                    continue;
                }
                inner.fetch.near(&asked, &mut |number, asked, outcome| {
                    let result = match outcome {
                        Ok(fetched) => Ok(inner.notes.fetched(&inner.fetch, asked, job.file, fetched)),
                        Err(bad) => inner.ask_copies(&job, asked, bad),
                    };
                    all.get(number).iter().for_each(|one| one.pay(asked.at.frame(), result.clone()));
                });
            }
            What::Frame { slot, of } => {
                let (asked, bad) = *of;
                let unasked = |bad| Err(inner.unasked(&job, &asked, bad));
                let result = if too_late { unasked(bad) } else { inner.ask_copies(&job, &asked, bad) };
                owed(slot).pay(asked.at.frame(), result);
            }
        }
    }
}

impl Inner {
    fn ask_copies(&self, job: &Job, asked: &Asked, bad: Bad) -> Result<VerifiedFrame> {
        let elsewhere = self.fetch.far(asked);
        self.notes.refused(&self.fetch, asked, &elsewhere.refused);
        match elsewhere.found {
            Some(mut fetched) => {
                fetched.met = Some(bad.error);
                Ok(self.notes.fetched(&self.fetch, asked, job.file, fetched))
            }
            None => Err(self.unasked(job, asked, bad)),
        }
    }

    /// No copy has it, or none was asked: what is wrong where it was read is told.
    fn unasked(&self, job: &Job, asked: &Asked, bad: Bad) -> Error {
        self.notes.lost(&self.fetch, asked, job.file, bad, &mut None)
    }
}

/// A frame that is delivered also if its thread panics.
struct Owed<'a> {
    inner: &'a Inner,
    job: &'a Arc<Job>,
    slot: usize,
}

impl Owed<'_> {
    fn pay(&self, frame: FramePlace, result: Result<VerifiedFrame>) {
        self.inner.deliver(self.job, self.slot, Outcome { frame, result });
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        if let Some(asked) = self.job.asked.get(self.slot).filter(|_| !self.job.delivered(self.slot)) {
            self.pay(asked.at.frame(), Err(Error::SelfCheck { what: "a frame was not delivered".into() }));
        }
    }
}

impl Far {
    /// Leaves a frame to the threads here, which deliver it.
    ///
    /// # Errors
    /// What is wrong with it, when so many wait already that its turn would not come.
    pub fn send(&self, job: &Arc<Job>, slot: usize, asked: Asked, bad: Bad) -> Result<(), Box<(Asked, Bad)>> {
        match self.put(job, What::Frame { slot, of: Box::new((asked, bad)) }) {
            Err(What::Frame { of, .. }) => Err(of),
            Ok(()) | Err(What::Job) => Ok(()),
        }
    }

    /// As `send`, all frames of a job that were not delivered.
    ///
    /// # Errors
    /// `READ_TIMED_OUT`.
    pub fn send_all(&self, job: &Arc<Job>) -> Result<()> {
        self.put(job, What::Job).map_err(|_| Error::TimedOut)
    }

    fn put(&self, job: &Arc<Job>, what: What) -> Result<(), What> {
        let mut queue = lock(&self.queue);
        if queue.closed || queue.tasks.len() >= MAX_TASKS {
            return Err(what);
        }
        match &what {
            What::Job => (0..job.asked.len()).for_each(|slot| job.leave(slot)),
            What::Frame { slot, .. } => job.leave(*slot),
        }
        queue.tasks.push_back(Task { job: job.clone(), what, sent: Instant::now() });
        self.more.notify_one();
        Ok(())
    }

    fn next(&self) -> Option<Task> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.closed {
                return None;
            }
            match queue.tasks.pop_front() {
                Some(task) => return Some(task),
                None => queue = wait(&self.more, queue),
            }
        }
    }

    /// Answers when the blocks have come, or at the deadline.
    pub fn answer(&self, later: Later, then: Then) {
        let pending = Pending::start(later, then);
        if !pending.is_open() {
            return;
        }
        let mut clock = lock(&self.clock);
        if clock.closed {
            drop(clock);
            return pending.give_up();
        }
        clock.last += 1;
        let key = (pending.deadline, clock.last);
        clock.pending.insert(key, Arc::downgrade(&pending));
        self.sooner.notify_one();
    }

    /// The clock's thread.
    fn watch(&self) {
        let mut clock = lock(&self.clock);
        while !clock.closed {
            let Some((&(deadline, number), _)) = clock.pending.first_key_value() else {
                clock = wait(&self.sooner, clock);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                clock = wait_timeout(&self.sooner, clock, left);
                continue;
            }
            let due = clock.pending.remove(&(deadline, number));
            drop(clock);
            due.and_then(|due| due.upgrade()).iter().for_each(|due| due.give_up());
            clock = lock(&self.clock);
        }
    }

    /// Ends the threads, and answers whoever still waits.
    pub fn close(&self, inner: &Inner) {
        let tasks = {
            let mut queue = lock(&self.queue);
            queue.closed = true;
            std::mem::take(&mut queue.tasks)
        };
        self.more.notify_all();
        let late = |asked: &Asked| Outcome { frame: asked.at.frame(), result: Err(Error::TimedOut) };
        for Task { job, what, .. } in tasks {
            match what {
                What::Job => job.asked.iter().enumerate().for_each(|(slot, asked)| job.deliver(slot, late(asked))),
                What::Frame { slot, of } => {
                    let (asked, bad) = *of;
                    let result = Err(inner.unasked(&job, &asked, bad));
                    job.deliver(slot, Outcome { frame: asked.at.frame(), result });
                }
            }
        }
        let pending = {
            let mut clock = lock(&self.clock);
            clock.closed = true;
            std::mem::take(&mut clock.pending)
        };
        self.sooner.notify_all();
        pending.into_values().filter_map(|pending| pending.upgrade()).for_each(|pending| pending.give_up());
    }
}
