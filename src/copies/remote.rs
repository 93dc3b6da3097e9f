//! The arcs at a destination, read by ranges: a depot that leaves the machine.
//!
//! An arc is read in pieces of one size, at multiples of it, so that no byte is on its way twice at a time.
//!
//! Invariants: a piece is what the destination gave for exactly that range, or for as much of it as the object has; an arc is missing only if the
//! destination says so when it is asked for by name; what is held is sealed bytes, of a bounded size, and what is to come
//! from the medium comes from the destination again.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use lru::LruCache;

use super::Around;
use super::ahead::{Ahead, MAX_RUN_PIECES, RUN_PIECES};
use super::breaker::Breaker;
use super::gate::{Gate, Who};
use super::meter::Meter;
use super::pace::{Limits, Pace};
use super::usual::Usual;
use crate::backupdir::{BackupDir, Lock};
use crate::depot::{Depot, Reach, StoredArc, Via};
use crate::dest::mark::{self, Mark};
use crate::dest::{Known, Settings, Storage};
use crate::error::{Damage, Error, Result, Trouble};
use crate::ids::{ArcName, CopyId};
use crate::sync::{lock, wait_timeout};

/// What is asked for at once, at least.
pub(super) const PIECE_BYTES: u64 = 256 << 10;
/// Pieces that are held: 64 MiB.
const MAX_PIECES: usize = 256;
/// Pieces that are asked for ahead by one call, at most: what is asked for must still be there when it is read.
const MAX_AHEAD: usize = MAX_PIECES / 2;
/// Threads that ask for what is said to be needed soon.
const BATCH_THREADS: usize = 16;
/// Threads that ask ahead of readers in order, and what may wait for them.
const AHEAD_THREADS: usize = 8;
const MAX_TASKS: usize = 32;
/// A request that would usually take longer than this is too long.
const MAX_USUAL: Duration = Duration::from_secs(2);
/// How long a listing is taken for what is there.
const LISTING_LASTS: Duration = Duration::from_secs(60);
/// How long a reader has patience with a destination, and waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);

/// A piece of an arc, by its number.
type Key = (ArcName, u64);

/// Pieces of an arc from one on up to another, and the arc's length.
type Task = (Key, u64, u64);

#[derive(Clone)]
enum Piece {
    Coming,
    Here(Arc<Vec<u8>>),
}

/// What was asked of a destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub requests: u64,
    pub bytes: u64,
}

/// All arcs at a destination.
#[derive(Clone)]
pub struct Remote(Arc<Inner>);

struct Inner {
    settings: Settings,
    mark: Mark,
    around: Around,
    storage: Mutex<Arc<dyn Storage>>,
    pace: Pace,
    gate: Gate,
    /// Lengths of arcs, as they were told. A copy that is cut or put right meanwhile is asked again by whoever reads past them.
    lens: Mutex<BTreeMap<ArcName, u64>>,
    listed: Mutex<Option<Instant>>,
    pieces: Mutex<LruCache<Key, Piece>>,
    arrived: Condvar,
    streams: Ahead,
    usual: Usual,
    /// To the threads that ask ahead, once there is a reader in order.
    tasks: OnceLock<Sender<Task>>,
    meter: Arc<Meter>,
    breaker: Mutex<Breaker>,
}

impl Remote {
    /// Opens a destination to read from it; its mark says that it is this backup's.
    ///
    /// # Errors
    /// `DEST_…`.
    pub fn open(around: &Around, settings: &Settings) -> Result<Remote> {
        let meter = Arc::new(Meter::new(around.budget.clone()));
        let around = &around.metered(&meter);
        let limits = Limits { retry: PATIENCE.min(around.limits.retry), ..around.limits };
        let pace = Pace::new(limits, None, around.monitor.clone());
        let storage: Arc<dyn Storage> = Arc::from(pace.attempt(|| (around.open)(settings))?);
        let mark = pace.attempt(|| mark_of(around, storage.as_ref()))?;
        let held = NonZeroUsize::new(MAX_PIECES).unwrap_or(NonZeroUsize::MIN);
        Ok(Remote(Arc::new(Inner {
            settings: settings.clone(),
            mark,
            around: around.clone(),
            storage: Mutex::new(storage),
            pace,
            gate: Gate::default(),
            lens: Mutex::default(),
            listed: Mutex::default(),
            pieces: Mutex::new(LruCache::new(held)),
            arrived: Condvar::new(),
            streams: Ahead::default(),
            usual: Usual::default(),
            tasks: OnceLock::new(),
            meter,
            breaker: Mutex::default(),
        })))
    }

    /// Notes in a backup dir that this is one of its copies: its number is not given to another then.
    pub fn remember(&self, dir: &BackupDir, _: &Lock) -> Result<()> {
        let mut known = Known::read(dir)?;
        known.seen(&self.0.mark, &self.0.settings.name);
        known.write(dir)
    }

    /// It has failed several times in a row: others are asked first for a while.
    pub fn is_down(&self) -> bool {
        lock(&self.0.breaker).is_open(Instant::now())
    }

    /// The next listing is a new one.
    pub fn look_again(&self) {
        *lock(&self.0.listed) = None;
    }

    pub(super) fn arc(&self, name: ArcName) -> Result<RemoteArc> {
        Ok(RemoteArc { remote: self.clone(), name, len_bytes: self.0.len_bytes(name)? })
    }

    /// How long it usually takes to read a little.
    pub(super) fn usual(&self) -> Option<Duration> {
        self.0.usual.of(0)
    }

    /// What was asked so far.
    pub fn traffic(&self) -> Traffic {
        self.0.meter.traffic()
    }
}

impl Inner {
    /// Asks on behalf of somebody who waits for it, and for a turn until then.
    fn ask<T>(&self, until: Instant, bytes: u64, act: impl Fn(&dyn Storage) -> Result<T>) -> Result<T> {
        self.pace.attempt(|| {
            let _passed = self.gate.pass(Who::Reader, bytes, until)?;
            self.once(&act)
        })
    }

    fn once<T>(&self, act: impl Fn(&dyn Storage) -> Result<T>) -> Result<T> {
        let count = |storage: &dyn Storage| {
            let done = act(storage);
            lock(&self.breaker).note(&done, Instant::now());
            done
        };
        let storage = lock(&self.storage).clone();
        match count(storage.as_ref()) {
            // Credentials that ran out are asked for again; a disk that was plugged in anew has its place again.
            Err(Error::Dest { trouble: Trouble::Denied(_) | Trouble::Absent(_), .. }) => {
                let fresh: Arc<dyn Storage> = Arc::from((self.around.open)(&self.settings)?);
                if mark_of(&self.around, fresh.as_ref())? != self.mark {
                    let what = "it has the mark of another copy by now".into();
                    let trouble = Trouble::NotOurs(what);
                    return Err(Error::Dest { dest: self.settings.name.as_str().into(), object: "".into(), trouble });
                }
                *lock(&self.storage) = fresh.clone();
                count(fresh.as_ref())
            }
            done => done,
        }
    }

    fn list(&self) -> Result<Vec<ArcName>> {
        let mut listed = lock(&self.listed);
        if listed.is_none_or(|at| at.elapsed() > LISTING_LASTS) {
            let found = self.ask(Instant::now() + PATIENCE, 0, |storage| storage.list())?;
            let arcs = found.into_iter().filter_map(|object| Some((ArcName::parse(&object.name)?, object.len_bytes)));
            *lock(&self.lens) = arcs.collect();
            *listed = Some(Instant::now());
        }
        Ok(lock(&self.lens).keys().copied().collect())
    }

    fn len_bytes(&self, arc: ArcName) -> Result<u64> {
        let known = lock(&self.lens).get(&arc).copied();
        known.map_or_else(|| self.len_now(arc), Ok)
    }

    fn len_now(&self, arc: ArcName) -> Result<u64> {
        let len = self
            .ask(Instant::now() + PATIENCE, 0, |storage| storage.stat(&arc.to_string()))?
            .ok_or_else(|| missing(arc))?;
        lock(&self.lens).insert(arc, len);
        Ok(len)
    }

    /// One piece, and with it those after it, up to `to`, that nobody has asked for.
    fn piece(&self, (arc, number): Key, to: u64, len: u64) -> Result<Arc<Vec<u8>>> {
        let until = Instant::now() + PATIENCE;
        let mut pieces = lock(&self.pieces);
        loop {
            match pieces.get(&(arc, number)) {
                Some(Piece::Here(bytes)) => return Ok(bytes.clone()),
                Some(Piece::Coming) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::TimedOut);
                    }
                    pieces = wait_timeout(&self.arrived, pieces, left);
                }
                None => break,
            }
        }
        let claimed = self.claim(&mut pieces, arc, number..to);
        drop(pieces);
        let range = claimed.bytes(len);
        let bytes = self.ask(until, range.end - range.start, |storage| self.fetch(storage, arc, &range));
        self.put(claimed, &bytes.map_err(|error| of_arc(arc, error))?)
    }

    /// What nobody has asked for of pieces that will be needed.
    ///
    /// It is asked for once: an error is met again by whoever reads it. And it is claimed when it may be asked for, not
    /// before: a reader waits for no more than a request.
    fn piece_ahead(&self, ((arc, start), end, len): Task) {
        let bytes = bytes_of(&(start..end), len);
        let Ok(_passed) = self.gate.pass(Who::Ahead, bytes.end - bytes.start, Instant::now() + PATIENCE) else {
            return;
        };
        let mut pieces = lock(&self.pieces);
        let Some(first) = (start..end).find(|number| !pieces.contains(&(arc, *number))) else { return };
        let claimed = self.claim(&mut pieces, arc, first..end);
        drop(pieces);
        let range = claimed.bytes(len);
        if let Ok(bytes) = self.once(|storage| self.fetch(storage, arc, &range)) {
            let _ = self.put(claimed, &bytes);
        }
    }

    fn fetch(&self, storage: &dyn Storage, arc: ArcName, range: &Range<u64>) -> Result<Vec<u8>> {
        let begun = Instant::now();
        let object = arc.to_string();
        let read = storage.read(&object, range.clone());
        let bytes = match read {
            Err(Error::Dest { trouble: Trouble::WrongRange { .. }, .. }) => {
                // One that was cut since gives no more however often it is asked.
                let found_bytes = storage.stat(&object)?.ok_or_else(|| missing(arc))?;
                lock(&self.lens).insert(arc, found_bytes);
                if found_bytes <= range.start {
                    let damage = Damage::Truncated { wanted_bytes: range.end, found_bytes };
                    return Err(Error::arc(arc, range.start, damage));
                }
                if found_bytes < range.end { storage.read(&object, range.start..found_bytes) } else { read }
            }
            _ => read,
        }?;
        self.usual.note(begun.elapsed(), bytes.len() as u64);
        Ok(bytes)
    }

    /// Pieces that may be asked for at once: over a slow line no more than what comes soon.
    fn most_pieces(&self) -> u64 {
        let is_soon = |pieces: u64| self.usual.of(pieces * PIECE_BYTES).is_none_or(|usual| usual <= MAX_USUAL);
        [MAX_RUN_PIECES, RUN_PIECES].into_iter().find(|pieces| is_soon(*pieces)).unwrap_or(1)
    }

    /// Pieces from the first of these on, which nobody has asked for, up to one that somebody has.
    fn claim(&self, pieces: &mut LruCache<Key, Piece>, arc: ArcName, wanted: Range<u64>) -> Claimed<'_> {
        let others = (wanted.start + 1..wanted.end).find(|next| pieces.contains(&(arc, *next)));
        let run = wanted.start..others.unwrap_or(wanted.end);
        run.clone().for_each(|number| drop(pieces.put((arc, number), Piece::Coming)));
        Claimed { inner: self, arc, run }
    }

    /// Holds what has come; gives the first piece of it.
    fn put(&self, claimed: Claimed<'_>, bytes: &[u8]) -> Result<Arc<Vec<u8>>> {
        let arc = claimed.arc;
        let parts: Vec<Arc<Vec<u8>>> = bytes.chunks(PIECE_BYTES as usize).map(|part| Arc::new(part.to_vec())).collect();
        let first = parts.first().cloned().ok_or_else(|| missing(arc))?;
        let mut pieces = lock(&self.pieces);
        for (part, number) in parts.into_iter().zip(claimed.run.clone()) {
            pieces.put((arc, number), Piece::Here(part));
        }
        drop(pieces);
        Ok(first)
    }

    /// A piece is to be read: has others fetch what will be needed after it, and gives up to where the reader asks by itself.
    fn ask_ahead(self: &Arc<Inner>, arc: ArcName, number: u64, wanted_to: u64, len: u64) -> u64 {
        let next = self.streams.note(arc, number, wanted_to, len.div_ceil(PIECE_BYTES), self.most_pieces());
        for run in next.ahead {
            let tasks = self.tasks.get_or_init(|| ahead_threads(self));
            // Where all are busy, it is fetched when it is needed.
            let _ = tasks.try_send(((arc, run.start), run.end, len));
        }
        next.to
    }

    fn read(self: &Arc<Inner>, arc: ArcName, len: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let end = len.min(offset.saturating_add(buffer.len() as u64));
        let (mut at, last) = (offset, end.div_ceil(PIECE_BYTES));
        let mut rest = buffer;
        while at < end {
            let number = at / PIECE_BYTES;
            let to = self.ask_ahead(arc, number, last, len);
            let piece = self.piece((arc, number), to, len)?;
            let part = piece.get((at - number * PIECE_BYTES) as usize..).unwrap_or_default();
            let part = part.get(..((end - at) as usize).min(part.len())).unwrap_or_default();
            let Some((to, after)) =
                std::mem::take(&mut rest).split_at_mut_checked(part.len()).filter(|_| !part.is_empty())
            else {
                break;
            };
            to.copy_from_slice(part);
            (at, rest) = (at + part.len() as u64, after);
        }
        Ok((at.max(offset) - offset) as usize)
    }

    fn forget(&self, arc: ArcName, range: Range<u64>) {
        let mut pieces = lock(&self.pieces);
        for number in range.start / PIECE_BYTES..range.end.div_ceil(PIECE_BYTES) {
            if matches!(pieces.peek(&(arc, number)), Some(Piece::Here(_))) {
                pieces.pop(&(arc, number));
            }
        }
    }

    /// The runs of pieces that are not there.
    fn absent(&self, wanted: &[(ArcName, Range<u64>)]) -> Vec<Task> {
        let mut numbers: Vec<(Key, u64)> = Vec::new();
        for (arc, range) in wanted {
            // What can't be told is told to whoever reads it.
            let Ok(len) = self.len_bytes(*arc) else { continue };
            let end = range.end.min(len).div_ceil(PIECE_BYTES);
            numbers.extend((range.start / PIECE_BYTES..end).map(|number| ((*arc, number), len)));
        }
        numbers.sort_unstable();
        numbers.dedup();
        let pieces = lock(&self.pieces);
        numbers.retain(|(key, _)| !pieces.contains(key));
        numbers.truncate(MAX_AHEAD);
        drop(pieces);
        let in_a_row = |one: &(Key, u64), next: &(Key, u64)| one.0.0 == next.0.0 && one.0.1 + 1 == next.0.1;
        let rows = numbers.chunk_by(in_a_row).flat_map(|row| row.chunks(RUN_PIECES as usize));
        rows.filter_map(|run| run.first().map(|(key, len)| (*key, key.1 + run.len() as u64, *len))).collect()
    }
}

/// Threads that ask for what is needed next; they end when nobody reads any more.
fn ahead_threads(inner: &Arc<Inner>) -> Sender<Task> {
    let (tasks, queue) = bounded::<Task>(MAX_TASKS);
    for number in 0..AHEAD_THREADS {
        let (queue, inner) = (queue.clone(), Arc::downgrade(inner));
        let work = move || {
            while let Ok(task) = queue.recv() {
                let Some(inner) = inner.upgrade() else { return };
                inner.piece_ahead(task);
            }
        };
        let _ = std::thread::Builder::new().name(format!("ahead-{number}")).spawn(work);
    }
    tasks
}

/// Pieces that are on their way: when they don't come, whoever waits asks again.
struct Claimed<'a> {
    inner: &'a Inner,
    arc: ArcName,
    run: Range<u64>,
}

impl Claimed<'_> {
    fn bytes(&self, len: u64) -> Range<u64> {
        bytes_of(&self.run, len)
    }
}

/// Where pieces are in an arc of this length.
fn bytes_of(run: &Range<u64>, len: u64) -> Range<u64> {
    run.start * PIECE_BYTES..(run.end * PIECE_BYTES).min(len)
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        let mut pieces = lock(&self.inner.pieces);
        for number in self.run.clone() {
            if matches!(pieces.peek(&(self.arc, number)), Some(Piece::Coming)) {
                pieces.pop(&(self.arc, number));
            }
        }
        self.inner.arrived.notify_all();
    }
}

impl Depot for Remote {
    fn id(&self) -> CopyId {
        self.0.mark.copy
    }

    fn name(&self) -> &str {
        &self.0.settings.name
    }

    fn reach(&self) -> Reach {
        Reach::Far
    }

    fn list(&self) -> Result<Vec<ArcName>> {
        self.0.list()
    }

    fn len_bytes(&self, arc: ArcName) -> Result<u64> {
        self.0.len_bytes(arc)
    }

    fn open(&self, arc: ArcName) -> Result<Box<dyn StoredArc>> {
        Ok(Box::new(self.arc(arc)?))
    }

    fn ahead(&self, wanted: &[(ArcName, Range<u64>)]) {
        let runs = Mutex::new(self.0.absent(wanted).into_iter());
        let count = lock(&runs).len().min(BATCH_THREADS);
        std::thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| {
                    loop {
                        let next = lock(&runs).next();
                        let Some(task) = next else { return };
                        self.0.piece_ahead(task);
                    }
                });
            }
        });
    }
}

#[derive(Clone)]
pub struct RemoteArc {
    remote: Remote,
    name: ArcName,
    len_bytes: u64,
}

impl RemoteArc {
    /// Nothing need be waited for to read this.
    pub fn is_here(&self, offset: u64, len: usize) -> bool {
        let pieces = lock(&self.remote.0.pieces);
        self.numbers(offset, len).all(|number| matches!(pieces.peek(&(self.name, number)), Some(Piece::Here(_))))
    }

    /// How long it usually takes to read this.
    pub fn usual(&self, offset: u64, len: usize) -> Option<Duration> {
        let pieces = lock(&self.remote.0.pieces);
        let absent = |number: &u64| !matches!(pieces.peek(&(self.name, *number)), Some(Piece::Here(_)));
        let missing = self.numbers(offset, len).filter(absent).count() as u64;
        // It may be asked for with what comes after it.
        self.remote.0.usual.of(missing.max(RUN_PIECES) * PIECE_BYTES)
    }

    fn numbers(&self, offset: u64, len: usize) -> Range<u64> {
        offset / PIECE_BYTES..offset.saturating_add(len as u64).min(self.len_bytes).div_ceil(PIECE_BYTES)
    }
}

impl StoredArc for RemoteArc {
    fn name(&self) -> ArcName {
        self.name
    }

    fn copy(&self) -> CopyId {
        self.remote.id()
    }

    fn source(&self) -> String {
        format!("{} at {}", self.name, self.remote.name())
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8], via: Via) -> Result<usize> {
        let remote = &self.remote.0;
        if via == Via::Cache {
            return remote.read(self.name, self.len_bytes, offset, buffer);
        }
        let end = offset.saturating_add(buffer.len() as u64);
        remote.forget(self.name, offset..end);
        let known = remote.len_bytes(self.name)?;
        let len = if end > known { remote.len_now(self.name)? } else { known };
        remote.read(self.name, len, offset, buffer)
    }

    fn is_current(&self) -> bool {
        true
    }

    fn forget(&self) {
        self.remote.0.forget(self.name, 0..self.len_bytes);
    }

    fn release(&self, offset: u64, len: u64) {
        // What lies wholly within.
        let range = offset.next_multiple_of(PIECE_BYTES)..(offset + len) / PIECE_BYTES * PIECE_BYTES;
        self.remote.0.forget(self.name, range);
    }
}

/// Which copy of this backup it is.
fn mark_of(around: &Around, storage: &dyn Storage) -> Result<Mark> {
    mark::read(storage, around.dir.keys(), &Known::read(&around.dir)?)
}

/// What a destination says of an object, said of the arc.
fn of_arc(arc: ArcName, error: Error) -> Error {
    match error {
        Error::Dest { trouble: Trouble::NotFound, .. } => missing(arc),
        other => other,
    }
}

fn missing(arc: ArcName) -> Error {
    Error::arc(arc, 0, Damage::Missing)
}
