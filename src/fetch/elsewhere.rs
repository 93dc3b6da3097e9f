//! The last rung of the ladder: the same frame of another copy.
//!
//! Invariants: what is near is asked one after the other; what leaves the machine is asked in the order given, the next one at
//! once where one fails, and beside it where one takes long, so that one that hangs holds up nobody; what comes first and is
//! right counts; those that have not answered for long are asked last; a question has an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, unbounded};

use super::{Elsewhere, Frame, Looked, Refused};
use crate::depot::{Depot, Reach};
use crate::error::Error;
use crate::ids::CopyId;

/// How long one copy is waited for while there is another.
const LATE: Duration = Duration::from_secs(2);
/// How long all of them are: less than whoever reads has patience, so that damage here is told as what it is.
const QUESTION: Duration = Duration::from_secs(if cfg!(test) { 12 } else { 20 });

/// Reads a frame at a copy and verifies it.
pub type Look = Arc<dyn Fn(&Arc<dyn Depot>) -> Looked + Send + Sync>;

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

    pub fn near(&self, frame: &Frame<'_>) -> Elsewhere {
        let mut all = Elsewhere::default();
        for one in self.of(Reach::Near) {
            if all.takes(frame.at(&one.depot)) {
                break;
            }
        }
        all
    }

    /// It takes as long as the one that has it, and no longer than `QUESTION`.
    pub fn far(&self, look: &Look) -> Elsewhere {
        let mut copies: Vec<&One> = self.of(Reach::Far).collect();
        copies.sort_by_key(|one| one.late.load(Ordering::SeqCst) > 0);
        let (tell, told) = unbounded();
        let until = Instant::now() + QUESTION;
        let (mut left, mut on_way, mut answers_due, mut all) = (copies.into_iter(), vec![], 0, Elsewhere::default());
        while let Some(copy) = left.next() {
            on_way.push(copy.ask(look, &tell));
            answers_due += 1;
            while answers_due > 0 {
                let patience = until.saturating_duration_since(Instant::now());
                let patience = if left.len() > 0 { patience.min(LATE) } else { patience };
                match told.recv_timeout(patience) {
                    Ok(looked) => {
                        answers_due -= 1;
                        if all.takes(looked) {
                            return all;
                        }
                        if left.len() > 0 {
                            break;
                        }
                    }
                    Err(_) => {
                        on_way.iter().for_each(Asked::is_late);
                        break;
                    }
                }
            }
        }
        all
    }
}

impl Elsewhere {
    /// True once it was found.
    fn takes(&mut self, looked: Looked) -> bool {
        match looked {
            Ok(found) => self.found = Some(found),
            Err(refused) => self.refused.push(refused),
        }
        self.found.is_some()
    }
}

impl One {
    /// Has a thread of its own look there; where none can be had that is the answer.
    fn ask(&self, look: &Look, tell: &Sender<Looked>) -> Asked {
        let asked = Asked { copy: self.clone(), settled: Arc::default() };
        let of_thread = Asked { copy: self.clone(), settled: asked.settled.clone() };
        let none = Error::SelfCheck { what: "a copy was not asked".into() };
        let found = Some(Err(Refused { copy: self.depot.id(), error: none }));
        let mut answer = Answer { asked: of_thread, tell: tell.clone(), found };
        let look = look.clone();
        let work = move || answer.found = Some(look(&answer.asked.copy.depot));
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
    tell: Sender<Looked>,
    found: Option<Looked>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.asked.settled.swap(true, Ordering::SeqCst) {
            self.asked.copy.late.fetch_sub(1, Ordering::SeqCst);
        }
        if let Some(found) = self.found.take() {
            // Another one may have been sooner.
            let _ = self.tell.send(found);
        }
    }
}
