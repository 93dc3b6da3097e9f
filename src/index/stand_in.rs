//! Another index of the same backup, in the place of one that is damaged: whoever asks gets its answer, and need not know.
//!
//! It is made when a question first meets damage, once for all who wait, by a thread of its own.
//!
//! Invariants: it is asked only when it has all that was committed when the question was put, and every commit that was
//! seen in the index itself. While the index is of the same commit and its rows can be believed it is asked only what they
//! can't tell, and what it can't tell either ends in their error; in the place of an index that does not open, is behind, has
//! shown what was not backed up or contradicts itself it answers alone, or nothing does, until another file has that name.
//! Nobody waits for it longer than `PATIENCE`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::Index;
use super::history::Head;
use super::view::Files;
use crate::error::{Error, Result};
use crate::monitor::{Event, Monitor, Progress};
use crate::sync::{lock, wait_timeout};

/// How long after its making began whoever needs it waits, and how long after it failed it is not tried again.
const PATIENCE: Duration = Duration::from_secs(60);

/// What makes it.
pub trait Maker: Send {
    /// An index with all that is committed by now. `lacks`: it may lack versions, if it says so.
    fn bring_up(&mut self, lacks: Lacks, monitor: &dyn Monitor) -> Result<Arc<Index>>;
}

/// What to do about versions of which nothing can be read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lacks {
    /// The index knows them: what lacks them would deny them.
    Refused,
    /// Nothing else is there.
    Told,
}

/// Why nothing is asked of the index itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Unopened,
    /// It is behind, has shown what was not backed up, or contradicts itself.
    Mismatch,
}

pub(super) struct StandIn {
    shared: Arc<Shared>,
}

struct Shared {
    maker: Mutex<Box<dyn Maker>>,
    state: Mutex<State>,
    changed: Condvar,
    over: AtomicBool,
    patience: Duration,
}

#[derive(Default)]
struct State {
    made: Option<Made>,
    /// It is being made, or brought up, since then.
    begun: Option<Instant>,
    failed: Option<Instant>,
    /// It is asked alone while the index is these files.
    alone: Option<(Why, Files)>,
    /// The first damage in the place of which it has answered.
    met: Option<Error>,
}

struct Made {
    index: Arc<Index>,
    /// The index itself when this one was brought up, and when that was.
    beside: Files,
    begun: Instant,
    /// A commit that was seen in the index itself and is in this one too.
    has: Option<Head>,
}

/// Wants the making to end with the index that it is for.
struct While<'a>(&'a AtomicBool);

impl Monitor for While<'_> {
    fn progress(&self, _: Progress) {}
    fn event(&self, _: Event<'_>) {}
    fn interrupted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

impl StandIn {
    fn new(maker: Box<dyn Maker>) -> StandIn {
        let (maker, state) = (Mutex::new(maker), Mutex::new(State::default()));
        let (changed, over) = (Condvar::new(), AtomicBool::new(false));
        StandIn { shared: Arc::new(Shared { maker, state, changed, over, patience: PATIENCE }) }
    }

    /// True while it is asked and the index itself is not.
    fn is_alone(&self, of: &Index) -> bool {
        let mut state = lock(&self.shared.state);
        let Some((_, files)) = state.alone else { return false };
        let now = of.files();
        if now.is_there() && !now.is_same_file(&files) {
            // Made anew, or put back.
            let made = state.made.take();
            (state.alone, state.failed) = (None, None);
            made.and_then(|made| made.index.head()).into_iter().for_each(|head| of.history.expect(head));
            return false;
        }
        true
    }

    /// It, brought up to what is committed by now; None if it can't be had, or not soon.
    fn current(&self, of: &Index) -> Option<Arc<Index>> {
        let (asked, files) = (Instant::now(), of.files());
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(made) = &state.made
                && (made.beside == files || made.begun >= asked)
            {
                let (index, head) = (made.index.clone(), of.history.head());
                if head == made.has {
                    return Some(index);
                }
                drop(state);
                // Of another history, or one that lacks what was seen.
                let (run, digest) = head?;
                index.commit_digest(run).ok()?.filter(|found| *found == digest)?;
                let mut state = lock(&self.shared.state);
                state.made.iter_mut().filter(|made| Arc::ptr_eq(&made.index, &index)).for_each(|made| made.has = head);
                return Some(index);
            }
            if let Some(begun) = state.begun {
                state = wait_timeout(&self.shared.changed, state, self.shared.patience.checked_sub(begun.elapsed())?);
                continue;
            }
            if state.failed.is_some_and(|at| at.elapsed() < self.shared.patience) {
                return None;
            }
            let shared = self.shared.clone();
            state.begun = Some(Instant::now());
            let work = move || drop(shared.bring_up(files));
            if std::thread::Builder::new().name("stand-in".into()).spawn(work).is_err() {
                state.begun = None;
                return None;
            }
        }
    }

    /// The newest commit that was seen in it while it answers alone.
    pub fn head(&self) -> Option<Head> {
        let state = lock(&self.shared.state);
        state.made.as_ref().filter(|_| state.alone.is_some())?.index.head()
    }

    /// Puts a question to it that met damage in the index itself.
    fn instead<T>(&self, of: &Index, met: Error, question: impl Fn(&Index) -> Result<T>) -> Result<T> {
        let Some(other) = self.current(of) else { return Err(met) };
        match question(&other) {
            Err(error) if error.errno() == libc::EIO => Err(met),
            answer => {
                // Pages that are authentic and contradict each other are of several times: one is an older image.
                let mix = matches!(met, Error::IndexDamaged { .. }) && other.history.head() == of.history.head();
                let mut state = lock(&self.shared.state);
                if !mix {
                    state.alone.get_or_insert((Why::Mismatch, of.files()));
                }
                note(&mut state, met);
                answer
            }
        }
    }
}

/// Tells of damage once.
fn note(state: &mut State, met: Error) {
    if state.met.is_none() {
        let code = met.code();
        log::warn!(
            "{code}: {met}; what it can't tell is answered from the catalogs: `assay selftest -v2 --fix`, or \
             `assay recover`, makes it anew"
        );
        state.met = Some(met);
    }
}

impl Shared {
    fn bring_up(&self, beside: Files) -> Result<()> {
        let (monitor, begun) = (While(&self.over), Instant::now());
        let why = lock(&self.state).alone.map(|(why, _)| why);
        let lacks = if why == Some(Why::Unopened) { Lacks::Told } else { Lacks::Refused };
        let made = lock(&self.maker).bring_up(lacks, &monitor);
        let mut state = lock(&self.state);
        state.begun = None;
        let done = match made {
            Ok(index) => {
                (state.made, state.failed) = (Some(Made { index, beside, begun, has: None }), None);
                Ok(())
            }
            Err(error) => {
                state.failed = Some(Instant::now());
                if !monitor.interrupted() {
                    log::warn!("the catalogs can't answer for the index: {}: {error}", error.code());
                }
                Err(error)
            }
        };
        drop(state);
        self.changed.notify_all();
        done
    }
}

impl Index {
    /// The same, and what `maker` makes answers where it is damaged.
    pub fn backed_by(mut self, maker: Box<dyn Maker>) -> Index {
        self.stand_in = Some(StandIn::new(maker));
        self
    }

    #[cfg(test)]
    pub(super) fn patient(mut self, patience: Duration) -> Index {
        let shared = self.stand_in.as_mut().and_then(|stand_in| Arc::get_mut(&mut stand_in.shared));
        shared.unwrap().patience = patience;
        self
    }

    /// As `instead`, before anybody waits: the making takes the time that it needs.
    ///
    /// # Errors
    /// `met`, if what makes it can't; `KEY_WRONG`.
    pub fn make_stand_in(&self, met: Error, opens: bool) -> Result<()> {
        let Some(StandIn { shared }) = &self.stand_in else { return Err(met) };
        let files = self.files();
        if !opens {
            lock(&shared.state).alone = Some((Why::Unopened, files));
        }
        match shared.bring_up(files) {
            Err(error @ Error::KeyWrong { .. }) => return Err(error),
            Err(_) => return Err(met),
            Ok(()) => {}
        }
        note(&mut lock(&shared.state), met);
        Ok(())
    }

    /// The first damage in the place of which another index has answered.
    pub fn stood_in_for(&self) -> Option<Error> {
        lock(&self.stand_in.as_ref()?.shared.state).met.clone()
    }

    /// What answers alone at the moment.
    ///
    /// # Errors
    /// The damage for which it does, if it can't be had.
    pub(super) fn alone(&self) -> Result<Option<Arc<Index>>> {
        let Some(stand_in) = self.stand_in.as_ref().filter(|stand_in| stand_in.is_alone(self)) else { return Ok(None) };
        match (stand_in.current(self), self.stood_in_for()) {
            (None, Some(met)) => Err(met),
            (other, _) => Ok(other),
        }
    }

    /// Puts a question again that met damage here, to what stands in; `met` if that has no answer either.
    pub fn instead<T>(&self, met: Error, question: impl Fn(&Index) -> Result<T>) -> Result<T> {
        match &self.stand_in {
            // Else it has answered already.
            Some(stand_in) if met.is_of_index() && !stand_in.is_alone(self) => stand_in.instead(self, met, question),
            _ => Err(met),
        }
    }
}
