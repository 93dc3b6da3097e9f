//! The arcs at a destination, read by ranges: a depot that leaves the machine.
//!
//! An arc is read in pieces of one size, at multiples of it, so that no byte is on its way twice at a time.
//!
//! Invariants: a piece is what the destination gave for exactly that range, or an error; an arc is missing only if the
//! destination says so when it is asked for by name; what is held is sealed bytes, of a bounded size, and what is to come
//! from the medium comes from the destination again.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use lru::LruCache;

use super::ahead::Ahead;
use super::meter::Meter;
use super::pace::{self, Limits, Pace};
use super::{Around, Opener};
use crate::backupdir::{BackupDir, Lock};
use crate::depot::{Depot, Reach, StoredArc, Via};
use crate::dest::mark::{self, Mark};
use crate::dest::{Known, Settings, Storage};
use crate::error::{Damage, Error, Place, Result, Trouble};
use crate::ids::{ArcName, CopyId};
use crate::sync::{lock, wait};

/// What is asked for at once, at least.
pub(super) const PIECE_BYTES: u64 = 256 << 10;
/// Pieces in a row that are asked for at once, at most.
pub(super) const RUN_PIECES: u64 = 4;
/// Pieces that are held: 64 MiB.
const MAX_PIECES: usize = 256;
/// Pieces that are asked for ahead by one call, at most: what is asked for must still be there when it is read.
const MAX_AHEAD: usize = MAX_PIECES / 2;
/// Requests in flight while much is asked for ahead.
const IN_FLIGHT: usize = 16;
/// Threads that ask ahead of readers in order, and what may wait for them.
const AHEAD_THREADS: usize = 8;
const MAX_TASKS: usize = 32;
/// How long a listing is taken for what is there.
const LISTING_LASTS: Duration = Duration::from_secs(60);
/// How long a reader has patience with a destination.
const PATIENCE: Duration = Duration::from_secs(30);
/// After so many failures in a row it counts as down, so long at first and at most.
const FAILURES: u32 = 3;
const DOWN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

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
    open: Opener,
    storage: Mutex<Arc<dyn Storage>>,
    pace: Pace,
    /// Arcs whose lengths are known; they never change.
    lens: Mutex<BTreeMap<ArcName, u64>>,
    listed: Mutex<Option<Instant>>,
    pieces: Mutex<LruCache<Key, Piece>>,
    arrived: Condvar,
    streams: Ahead,
    /// To the threads that ask ahead, once there is a reader in order.
    tasks: OnceLock<Sender<Task>>,
    meter: Arc<Meter>,
    breaker: Mutex<Breaker>,
}

/// Whether it may be worth asking.
#[derive(Default)]
struct Breaker {
    failures: u32,
    down_until: Option<Instant>,
}

impl Breaker {
    fn note<T>(&mut self, done: &Result<T>) {
        // What it says of an object it has said.
        match done {
            Err(error) if pace::may_pass(error).is_some() || is_absent(error) => self.failures += 1,
            _ => *self = Breaker::default(),
        }
        if let Some(more) = self.failures.checked_sub(FAILURES) {
            let pause = DOWN.0.saturating_mul(1 << more.min(16)).min(DOWN.1);
            self.down_until = Some(Instant::now() + pause);
        }
    }

    fn is_open(&self) -> bool {
        self.down_until.is_some_and(|until| until > Instant::now())
    }
}

fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Dest { trouble: Trouble::Absent(_), .. })
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
        let known = Known::read(&around.dir)?;
        let mark = pace.attempt(|| mark::read(storage.as_ref(), around.dir.keys(), &known))?;
        let held = NonZeroUsize::new(MAX_PIECES).unwrap_or(NonZeroUsize::MIN);
        Ok(Remote(Arc::new(Inner {
            settings: settings.clone(),
            mark,
            open: around.open.clone(),
            storage: Mutex::new(storage),
            pace,
            lens: Mutex::default(),
            listed: Mutex::default(),
            pieces: Mutex::new(LruCache::new(held)),
            arrived: Condvar::new(),
            streams: Ahead::new(),
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
        lock(&self.0.breaker).is_open()
    }

    /// The next listing is a new one.
    pub fn look_again(&self) {
        *lock(&self.0.listed) = None;
    }

    /// What was asked so far.
    pub fn traffic(&self) -> Traffic {
        self.0.meter.traffic()
    }
}

impl Inner {
    fn ask<T>(&self, act: impl Fn(&dyn Storage) -> Result<T>) -> Result<T> {
        let count = |storage: &dyn Storage| {
            let done = act(storage);
            lock(&self.breaker).note(&done);
            done
        };
        self.pace.attempt(|| {
            let storage = lock(&self.storage).clone();
            match count(storage.as_ref()) {
                // Credentials that ran out are asked for again.
                Err(Error::Dest { trouble: Trouble::Denied(_), .. }) => {
                    let fresh: Arc<dyn Storage> = Arc::from((self.open)(&self.settings)?);
                    *lock(&self.storage) = fresh.clone();
                    count(fresh.as_ref())
                }
                done => done,
            }
        })
    }

    fn list(&self) -> Result<Vec<ArcName>> {
        let mut listed = lock(&self.listed);
        if listed.is_none_or(|at| at.elapsed() > LISTING_LASTS) {
            let found = self.ask(|storage| storage.list())?;
            let arcs = found.into_iter().filter_map(|object| Some((ArcName::parse(&object.name)?, object.len_bytes)));
            *lock(&self.lens) = arcs.collect();
            *listed = Some(Instant::now());
        }
        Ok(lock(&self.lens).keys().copied().collect())
    }

    fn len_bytes(&self, arc: ArcName) -> Result<u64> {
        if let Some(len) = lock(&self.lens).get(&arc) {
            return Ok(*len);
        }
        let len = self.ask(|storage| storage.stat(&arc.to_string()))?.ok_or_else(|| missing(arc))?;
        lock(&self.lens).insert(arc, len);
        Ok(len)
    }

    fn fetch(&self, arc: ArcName, range: Range<u64>) -> Result<Vec<u8>> {
        let found = self.ask(|storage| storage.read(&arc.to_string(), range.clone()));
        let bytes = found.map_err(|error| match error {
            Error::Dest { trouble: Trouble::NotFound, .. } => missing(arc),
            other => other,
        })?;
        Ok(bytes)
    }

    /// One piece, and with it those after it, up to `end`, that nobody has asked for.
    fn piece(&self, (arc, number): Key, end: u64, len: u64) -> Result<Arc<Vec<u8>>> {
        let mut pieces = lock(&self.pieces);
        loop {
            match pieces.get(&(arc, number)) {
                Some(Piece::Here(bytes)) => return Ok(bytes.clone()),
                Some(Piece::Coming) => pieces = wait(&self.arrived, pieces),
                None => break,
            }
        }
        // Who reads on will need what comes next.
        let reads_on = number > 0 && pieces.contains(&(arc, number - 1));
        let wanted = if reads_on { len.div_ceil(PIECE_BYTES) } else { end };
        let most = wanted.min(number + RUN_PIECES);
        let run =
            number..(number + 1..most).find(|next| pieces.contains(&(arc, *next))).unwrap_or(most).max(number + 1);
        run.clone().for_each(|number| drop(pieces.put((arc, number), Piece::Coming)));
        drop(pieces);
        let claimed = Claimed { inner: self, arc, run: run.clone() };
        let range = run.start * PIECE_BYTES..(run.end * PIECE_BYTES).min(len);
        let bytes = self.fetch(arc, range)?;
        let mut parts = bytes.chunks(PIECE_BYTES as usize).map(|part| Arc::new(part.to_vec()));
        let first = parts.next().ok_or_else(|| missing(arc))?;
        let mut pieces = lock(&self.pieces);
        pieces.put((arc, number), Piece::Here(first.clone()));
        for (part, number) in parts.zip(number + 1..) {
            pieces.put((arc, number), Piece::Here(part));
        }
        drop(pieces);
        drop(claimed);
        Ok(first)
    }

    /// Has others fetch what a reader in order will need.
    fn ask_ahead(self: &Arc<Inner>, arc: ArcName, number: u64, len: u64) {
        let Some(range) = self.streams.note(arc, number) else { return };
        let tasks = self.tasks.get_or_init(|| ahead_threads(self));
        let end = range.end.min(len.div_ceil(PIECE_BYTES));
        for start in (range.start..end).step_by(RUN_PIECES as usize) {
            // Where all are busy, it is fetched when it is needed.
            let _ = tasks.try_send(((arc, start), end.min(start + RUN_PIECES), len));
        }
    }

    fn read(self: &Arc<Inner>, arc: ArcName, len: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let end = len.min(offset.saturating_add(buffer.len() as u64));
        let (mut at, last) = (offset, end.div_ceil(PIECE_BYTES));
        let mut rest = buffer;
        while at < end {
            let number = at / PIECE_BYTES;
            self.ask_ahead(arc, number, len);
            let piece = self.piece((arc, number), last, len)?;
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
    fn absent(&self, wanted: &[(ArcName, Range<u64>)]) -> Vec<(Key, u64, u64)> {
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
            while let Ok((key, end, len)) = queue.recv() {
                let Some(inner) = inner.upgrade() else { return };
                // An error is met again by whoever reads it.
                if !lock(&inner.pieces).contains(&key) {
                    let _ = inner.piece(key, end, len);
                }
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
        Ok(Box::new(RemoteArc { remote: self.clone(), name: arc, len_bytes: self.0.len_bytes(arc)? }))
    }

    fn ahead(&self, wanted: &[(ArcName, Range<u64>)]) {
        let runs = Mutex::new(self.0.absent(wanted).into_iter());
        let count = lock(&runs).len().min(IN_FLIGHT);
        std::thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| {
                    loop {
                        let next = lock(&runs).next();
                        let Some((key, end, len)) = next else { return };
                        // An error is met again by whoever reads it.
                        let _ = self.0.piece(key, end, len);
                    }
                });
            }
        });
    }
}

struct RemoteArc {
    remote: Remote,
    name: ArcName,
    len_bytes: u64,
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
        if via == Via::Medium {
            self.remote.0.forget(self.name, offset..offset.saturating_add(buffer.len() as u64));
        }
        self.remote.0.read(self.name, self.len_bytes, offset, buffer)
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

fn missing(arc: ArcName) -> Error {
    Error::Arc { place: Place { arc, frame: None, block: None, offset: 0 }, damage: Damage::Missing }
}
