//! An arc that several destinations have: read at the first, and at the next one too where that takes much longer than usual.
//!
//! Invariants: the bytes of a read are of one copy, and `copy` names it to the thread that has read them; a second one is asked
//! only after an error or three times the usual time, and while one is late others are asked first; what is read from the
//! medium is of the first in dest.toml that has it: what another gave and was found to be wrong is looked for there.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::ThreadId;
use std::time::Duration;

use crossbeam::channel::{Sender, unbounded};
use lru::LruCache;

use super::Around;
use super::remote::{Remote, RemoteArc};
use crate::depot::{StoredArc, Via};
use crate::dest::Settings;
use crate::error::{Damage, Error, Result};
use crate::ids::{ArcName, CopyId};
use crate::sync::lock;

/// An answer is late after so many times what is usual, and no sooner than this.
const TIMES: u32 = 3;
const LEAST: Duration = Duration::from_millis(100);
/// What is usual where nothing has come yet.
const UNKNOWN: Duration = Duration::from_millis(500);
/// What is usual for the first connection, and the mark that is read by it.
const OPENING: Duration = Duration::from_millis(1500);
/// Threads of which it is known what they have read last.
const MAX_THREADS: usize = 256;

/// A destination that is asked when it is needed.
pub struct Far {
    pub settings: Settings,
    remote: Mutex<Option<Remote>>,
    opening: Mutex<()>,
    /// Requests that have not been answered for long.
    late: AtomicIsize,
}

impl Far {
    pub fn new(settings: Settings) -> Far {
        Far { settings, remote: Mutex::default(), opening: Mutex::default(), late: AtomicIsize::new(0) }
    }

    /// It fails, or it does not answer: others are asked first.
    fn is_last(&self) -> bool {
        self.late.load(Ordering::SeqCst) > 0 || lock(&self.remote).as_ref().is_some_and(Remote::is_down)
    }

    pub fn opened(&self) -> Option<Remote> {
        lock(&self.remote).clone()
    }

    pub fn remote(&self, around: &Around) -> Result<Remote> {
        if let Some(remote) = self.opened() {
            return Ok(remote);
        }
        let _one = lock(&self.opening);
        match self.opened() {
            Some(remote) => Ok(remote),
            None => {
                // Whoever asks whether it is open waits for nobody.
                let remote = Remote::open(around, &self.settings)?;
                *lock(&self.remote) = Some(remote.clone());
                Ok(remote)
            }
        }
    }

    /// How long it usually takes to say how long an arc is.
    fn usual(&self) -> Duration {
        lock(&self.remote).as_ref().map_or(OPENING, |remote| remote.usual().unwrap_or(UNKNOWN))
    }

    fn arc(&self, around: &Around, name: ArcName, arc_bytes: u64) -> Result<RemoteArc> {
        let arc = self.remote(around)?.arc(name)?;
        let found_bytes = arc.len_bytes();
        if found_bytes < arc_bytes {
            return Err(Error::arc(name, found_bytes, Damage::Truncated { wanted_bytes: arc_bytes, found_bytes }));
        }
        Ok(arc)
    }
}

/// Opens an arc at the first of these that has all of it.
///
/// # Errors
/// `ARC_AWAY` where there is none; else what kept one from being read or, if all were, what is wrong with it.
pub fn open(around: &Around, all: &[Arc<Far>], name: ArcName, arc_bytes: u64) -> Result<Box<dyn StoredArc>> {
    if let [only] = all {
        return Ok(Box::new(only.arc(around, name, arc_bytes)?));
    }
    let around = around.impatient();
    let (order, places) = (order(all, 0), all.to_vec());
    let usual = |place: usize| Some(all.get(place).map_or(OPENING, |far| far.usual()));
    let (theirs, of) = (places.clone(), around.clone());
    let act = move |place: usize| theirs.get(place).ok_or(Error::ArcAway { arc: name })?.arc(&of, name, arc_bytes);
    // Where nobody is asked nobody knows of it that it is gone.
    let (place, first) =
        race(all, order, &usual, Arc::new(act)).map_err(|failed| failed.unwrap_or(Error::ArcAway { arc: name }))?;
    let opened: Vec<OnceLock<RemoteArc>> = places.iter().map(|_| OnceLock::new()).collect();
    opened.get(place).map(|known| known.set(first.clone()));
    let last = Mutex::new(LruCache::new(NonZeroUsize::new(MAX_THREADS).unwrap_or(NonZeroUsize::MIN)));
    Ok(Box::new(Hedged(Arc::new(Inner { around, places, first: (place, first), opened, last }))))
}

/// One of them first, but for those that fail or don't answer: these come last.
fn order(places: &[Arc<Far>], first: usize) -> Vec<usize> {
    let is_last = |place: &usize| places.get(*place).is_some_and(|far| far.is_last());
    let others = (0..places.len()).filter(|place| *place != first);
    let (last, first): (Vec<usize>, Vec<usize>) = std::iter::once(first).chain(others).partition(is_last);
    first.into_iter().chain(last).collect()
}

/// What was not asked may have it.
fn graver(before: Option<Error>, error: Error) -> Error {
    match before {
        Some(before) if !before.is_damage() || error.is_damage() => before,
        _ => error,
    }
}

/// Asks places, in this order, each in a thread of its own, and gives the first answer: the next one after an error, or when
/// the one before has taken three times as long as is usual; not then where `usual` says nothing.
///
/// # Errors
/// The gravest, if any place was asked.
fn race<T: Send + 'static>(
    places: &[Arc<Far>],
    order: Vec<usize>,
    usual: &dyn Fn(usize) -> Option<Duration>,
    act: Arc<dyn Fn(usize) -> Result<T> + Send + Sync>,
) -> Result<(usize, T), Option<Error>> {
    let (tell, told) = unbounded();
    let mut left = order.into_iter();
    let (mut on_way, mut answers_due, mut failed): (Vec<Asked>, usize, _) = (Vec::new(), 0, None);
    loop {
        let Some(place) = left.next() else { return Err(failed) };
        let Some(far) = places.get(place) else { continue };
        on_way.push(ask(far, place, &act, &tell));
        answers_due += 1;
        let patience = usual(place).map(|usual| usual.saturating_mul(TIMES).max(LEAST));
        loop {
            let answer = match patience.filter(|_| left.len() > 0) {
                Some(patience) => told.recv_timeout(patience).ok(),
                None => told.recv().ok(),
            };
            match answer {
                Some((place, Ok(found))) => return Ok((place, found)),
                Some((_, Err(error))) => {
                    failed = Some(graver(failed, error));
                    answers_due -= 1;
                    if answers_due == 0 {
                        break;
                    }
                }
                None => {
                    on_way.iter().for_each(Asked::is_late);
                    break;
                }
            }
        }
    }
}

/// Has a thread of its own ask a place.
fn ask<T: Send + 'static>(
    far: &Arc<Far>,
    place: usize,
    act: &Arc<dyn Fn(usize) -> Result<T> + Send + Sync>,
    tell: &Sender<(usize, Result<T>)>,
) -> Asked {
    let asked = Asked { far: far.clone(), settled: Arc::default() };
    let found = Some(Err(Error::SelfCheck { what: "a read at a destination was not answered".into() }));
    let answer = Answer { asked: asked.clone(), place, tell: tell.clone(), found };
    let act = act.clone();
    let work = move || {
        let mut answer = answer;
        answer.found = Some(act(place));
    };
    // Where no thread can be had that is the answer.
    let _ = std::thread::Builder::new().name("hedge".into()).spawn(work);
    asked
}

/// A request on its way to a place.
#[derive(Clone)]
struct Asked {
    far: Arc<Far>,
    /// It was answered, or it is late.
    settled: Arc<AtomicBool>,
}

impl Asked {
    fn is_late(&self) {
        if !self.settled.swap(true, Ordering::SeqCst) {
            self.far.late.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Answers in any case, also where its thread panics.
struct Answer<T> {
    asked: Asked,
    place: usize,
    tell: Sender<(usize, Result<T>)>,
    found: Option<Result<T>>,
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if self.asked.settled.swap(true, Ordering::SeqCst) {
            self.asked.far.late.fetch_sub(1, Ordering::SeqCst);
        }
        // Another one may have been sooner.
        self.found.take().map(|found| self.tell.send((self.place, found)));
    }
}

struct Hedged(Arc<Inner>);

struct Inner {
    around: Around,
    /// As dest.toml has them.
    places: Vec<Arc<Far>>,
    /// The place that is asked first, and the arc there.
    first: (usize, RemoteArc),
    /// At each place, once it was asked.
    opened: Vec<OnceLock<RemoteArc>>,
    /// The place, other than the first, that threads have read from last.
    last: Mutex<LruCache<ThreadId, usize>>,
}

impl Inner {
    fn opened(&self, place: usize) -> Option<&RemoteArc> {
        self.opened.get(place)?.get()
    }

    fn read(&self, place: usize, (offset, len, via): (u64, usize, Via)) -> Result<Vec<u8>> {
        let name = self.first.1.name();
        let away = Error::ArcAway { arc: name };
        let (Some(far), Some(opened)) = (self.places.get(place), self.opened.get(place)) else { return Err(away) };
        let arc = match opened.get() {
            Some(arc) => arc,
            None => {
                let arc = far.arc(&self.around, name, self.first.1.len_bytes())?;
                opened.get_or_init(|| arc)
            }
        };
        let mut bytes = vec![0; len];
        let count = arc.read(offset, &mut bytes, via)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// The copy that this thread has read from last.
    fn last(&self) -> &RemoteArc {
        let last = lock(&self.last).get(&std::thread::current().id()).copied();
        last.and_then(|place| self.opened(place)).unwrap_or(&self.first.1)
    }

    fn read_from(&self, place: usize) {
        let (mut last, thread) = (lock(&self.last), std::thread::current().id());
        let _ = if place == self.first.0 { last.pop(&thread) } else { last.put(thread, place) };
    }
}

impl Hedged {
    fn first_answer(&self, what: (u64, usize, Via)) -> Result<Vec<u8>> {
        let ((offset, len, via), inner) = (what, self.0.clone());
        let order =
            if via == Via::Cache { order(&self.0.places, self.0.first.0) } else { (0..self.0.places.len()).collect() };
        let usual = |place: usize| {
            let usual = || self.0.opened(place).and_then(|arc| arc.usual(offset, len)).unwrap_or(UNKNOWN);
            (via == Via::Cache).then(usual)
        };
        let found = race(&self.0.places, order, &usual, Arc::new(move |place| inner.read(place, what)));
        let (place, bytes) = found.map_err(|failed| failed.unwrap_or(Error::ArcAway { arc: self.0.first.1.name() }))?;
        self.0.read_from(place);
        Ok(bytes)
    }
}

impl StoredArc for Hedged {
    fn name(&self) -> ArcName {
        self.0.first.1.name()
    }

    fn copy(&self) -> CopyId {
        self.0.last().copy()
    }

    fn source(&self) -> String {
        self.0.last().source()
    }

    fn len_bytes(&self) -> u64 {
        self.0.first.1.len_bytes()
    }

    fn read(&self, offset: u64, buffer: &mut [u8], via: Via) -> Result<usize> {
        // What is here takes no thread.
        let place = order(&self.0.places, self.0.first.0).first().copied().unwrap_or(0);
        if let Some(arc) = self.0.opened(place).filter(|arc| via == Via::Cache && arc.is_here(offset, buffer.len())) {
            self.0.read_from(place);
            return arc.read(offset, buffer, via);
        }
        let bytes = self.first_answer((offset, buffer.len(), via))?;
        buffer.get_mut(..bytes.len()).unwrap_or_default().copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn is_current(&self) -> bool {
        true
    }

    fn forget(&self) {
        self.0.opened.iter().filter_map(OnceLock::get).for_each(StoredArc::forget);
    }

    fn release(&self, offset: u64, len: u64) {
        self.0.opened.iter().filter_map(OnceLock::get).for_each(|arc| arc.release(offset, len));
    }
}
