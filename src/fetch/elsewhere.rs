//! The last rung of the ladder: the same frame of another copy.
//!
//! Invariants: what is near is asked one after the other; what leaves the machine is asked in the order given, the next one at
//! once where one fails, and beside it where one takes long, so that one that hangs holds up nobody; what comes first and is
//! right counts; those that have not answered for long are asked last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Sender, unbounded};

use super::{Fetched, Frame};
use crate::depot::{Depot, Reach};
use crate::ids::CopyId;

/// How long one copy is waited for while there is another.
const LATE: Duration = Duration::from_secs(2);

/// Reads a frame at a copy and verifies it.
pub type Look = Arc<dyn Fn(&Arc<dyn Depot>) -> Option<Fetched> + Send + Sync>;

pub struct Copies(Vec<One>);

#[derive(Clone)]
struct One {
    depot: Arc<dyn Depot>,
    /// Requests that have not been answered for long.
    late: Arc<AtomicIsize>,
}

/// A request on its way to a copy.
struct Asked {
    copy: One,
    /// It was answered, or it is late.
    settled: Arc<AtomicBool>,
}

impl Copies {
    pub fn new(depots: Vec<Arc<dyn Depot>>) -> Copies {
        Copies(depots.into_iter().map(|depot| One { depot, late: Arc::default() }).collect())
    }

    pub fn has_far(&self) -> bool {
        self.of(Reach::Far).next().is_some()
    }

    /// For messages; empty for one that is not among these.
    pub fn name(&self, id: CopyId) -> &str {
        self.0.iter().find(|one| one.depot.id() == id).map_or("", |one| one.depot.name())
    }

    fn of(&self, reach: Reach) -> impl Iterator<Item = &One> {
        self.0.iter().filter(move |one| one.depot.reach() == reach)
    }

    pub fn near(&self, frame: &Frame<'_>) -> Option<Fetched> {
        self.of(Reach::Near).find_map(|one| frame.at(&one.depot))
    }

    /// It takes as long as the one that has it.
    pub fn far(&self, look: &Look) -> Option<Fetched> {
        let mut copies: Vec<&One> = self.of(Reach::Far).collect();
        copies.sort_by_key(|one| one.late.load(Ordering::SeqCst) > 0);
        if let [only] = copies.as_slice() {
            return look(&only.depot);
        }
        let (tell, told) = unbounded();
        let (mut left, mut on_way, mut answers_due) = (copies.into_iter(), Vec::new(), 0);
        while let Some(copy) = left.next() {
            on_way.push(copy.ask(look, &tell));
            answers_due += 1;
            while answers_due > 0 {
                let answer = if left.len() > 0 { told.recv_timeout(LATE).ok() } else { told.recv().ok() };
                match answer {
                    Some(Some(fetched)) => return Some(fetched),
                    Some(None) => answers_due -= 1,
                    None => {
                        on_way.iter().for_each(Asked::is_late);
                        break;
                    }
                }
            }
        }
        None
    }
}

impl One {
    /// Has a thread of its own look there; where none can be had that is the answer.
    fn ask(&self, look: &Look, tell: &Sender<Option<Fetched>>) -> Asked {
        let asked = Asked { copy: self.clone(), settled: Arc::default() };
        let of_thread = Asked { copy: self.clone(), settled: asked.settled.clone() };
        let mut answer = Answer { asked: of_thread, tell: tell.clone(), found: None };
        let look = look.clone();
        let work = move || answer.found = look(&answer.asked.copy.depot);
        let _ = std::thread::Builder::new().name("copy".into()).spawn(work);
        asked
    }
}

impl Asked {
    fn is_late(&self) {
        if !self.settled.swap(true, Ordering::SeqCst) {
            self.copy.late.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Answers in any case, also where its thread panics.
struct Answer {
    asked: Asked,
    tell: Sender<Option<Fetched>>,
    found: Option<Fetched>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.asked.settled.swap(true, Ordering::SeqCst) {
            self.asked.copy.late.fetch_sub(1, Ordering::SeqCst);
        }
        // Another one may have been sooner.
        let _ = self.tell.send(self.found.take());
    }
}
