//! Verified blocks, from the cache or from an arc: the only way from stored bytes to a reader.
//!
//! Invariants: what leaves here is a `VerifiedBlock`; a block is read by one thread at a time however many want
//! it; cache, open files and remembered verdicts are bounded; a bad block gives an error that names its place,
//! and is logged and listed once. Bytes that fail are never trusted: they are read again, or repaired (`heal`).

mod arcs;
#[cfg(test)]
pub(crate) mod fixture;
mod heal;
mod shelf;
mod tally;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, select_biased, unbounded};

use crate::arc::{FrameKind, VerifiedBlock, frame};
use crate::crypto::Keys;
use crate::depot::Via;
use crate::error::{Damage, Error, Place, Result};
use crate::ids::{ArcSerial, BlockId, CopyId, FrameNo, Logid, Version};
use crate::index::Index;
use crate::ledger::{self, How, LedgerWriter};
use crate::own::OwnDir;
use crate::sync::lock;
use crate::text::shown;
use arcs::{Arcs, Located, OpenArc};
use heal::Bad;
use shelf::{Found, Job, Outcome, Shelf};
use tally::End;
pub use tally::{Met, Summary, Tally};

/// Default bound of the cache of verified blocks.
pub const DEFAULT_CACHE_BYTES: u64 = 64 << 20;
/// Adjacent frames up to this many bytes are fetched by one read.
const MAX_RUN_BYTES: u64 = 1 << 20;
/// Plain bytes that one job decodes: large enough to hide the hand-over, small enough to spread over the cores.
const JOB_BYTES: u64 = 256 << 10;

/// A block and the plain length that its user expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub block: BlockId,
    pub len_bytes: u32,
}

/// What to do about bytes that fail verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Heal {
    /// Read them again from the disk; put a single flipped bit right, in memory.
    #[default]
    On,
    /// Show the damage as it is.
    Off,
}

/// How a store works; `Default` suits most.
#[derive(Clone)]
pub struct StoreOptions {
    pub cache_bytes: u64,
    pub heal: Heal,
    /// Threads that decode ahead; 0: none.
    pub threads: usize,
    /// A block that was verified longer ago than this is verified again; none: while it is in the cache it is good.
    pub max_age: Option<Duration>,
    /// Takes note of what was verified.
    pub ledger: Option<Arc<crate::ledger::LedgerWriter>>,
    pub words: Words,
}

/// Who tells of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// The store, a line in the log for each place.
    Log,
    /// Who reads, from the errors and the tally.
    Reader,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
        let (cache_bytes, heal, words) = (DEFAULT_CACHE_BYTES, Heal::On, Words::Log);
        StoreOptions { cache_bytes, heal, threads, max_age: None, ledger: None, words }
    }
}

/// Which threads decode the blocks of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// The thread that asks and the pool; the pool also decodes ahead.
    Pool,
    /// The thread that asks: right when there are as many of them as cores. Then the bytes stay in one core's
    /// cache, which on two cores saves a tenth of all CPU time of a sequential read.
    Caller,
}

struct Inner {
    arcs: Arcs,
    keys: Arc<Keys>,
    index: Arc<Index>,
    shelf: Mutex<Shelf>,
    tally: Tally,
    heal: Heal,
    words: Words,
    ledger: Option<Arc<LedgerWriter>>,
    /// Plain bytes that were asked for ahead and have not arrived.
    ahead_bytes: AtomicU64,
    max_ahead_bytes: u64,
}

/// The ways into the pool.
struct Queues {
    now: Sender<Arc<Job>>,
    ahead: Sender<Arc<Job>>,
}

/// The blocks of one backup dir. Starts its threads when made, ends them when dropped.
pub struct Store {
    inner: Arc<Inner>,
    /// None while dropping.
    queues: Option<Queues>,
    pool_rests: AtomicBool,
    threads: Vec<JoinHandle<()>>,
}

impl Store {
    pub fn new(dir: &Arc<OwnDir>, keys: Arc<Keys>, index: Arc<Index>, cache_bytes: u64) -> Store {
        Store::with_options(dir, keys, index, StoreOptions { cache_bytes, ..StoreOptions::default() })
    }

    pub fn with_options(dir: &Arc<OwnDir>, keys: Arc<Keys>, index: Arc<Index>, options: StoreOptions) -> Store {
        let inner = Arc::new(Inner {
            arcs: Arcs::new(dir, keys.clone(), index.clone()),
            keys,
            index,
            shelf: Mutex::new(Shelf::new(options.cache_bytes, options.max_age)),
            tally: Tally::default(),
            heal: options.heal,
            words: options.words,
            ledger: options.ledger,
            ahead_bytes: AtomicU64::new(0),
            max_ahead_bytes: (options.cache_bytes / 4).min(16 << 20),
        });
        let (now_tx, now_rx) = unbounded();
        let (ahead_tx, ahead_rx) = unbounded();
        let threads = (0..options.threads)
            .filter_map(|number| {
                let (inner, now, ahead) = (inner.clone(), now_rx.clone(), ahead_rx.clone());
                std::thread::Builder::new()
                    .name(format!("decode-{number}"))
                    .spawn(move || serve(&inner, &now, &ahead))
                    .ok()
            })
            .collect();
        Store {
            inner,
            queues: Some(Queues { now: now_tx, ahead: ahead_tx }),
            pool_rests: AtomicBool::new(false),
            threads,
        }
    }

    /// Chooses who decodes from now on; `Pool` at first.
    pub fn set_spread(&self, spread: Spread) {
        self.pool_rests.store(spread == Spread::Caller, Ordering::Relaxed);
    }

    /// The ways into the pool, if it has threads and is to be used.
    fn pool(&self) -> Option<&Queues> {
        let rests = self.pool_rests.load(Ordering::Relaxed) || self.threads.is_empty();
        self.queues.as_ref().filter(|_| !rests)
    }

    /// Where the arcs are.
    pub fn dir(&self) -> &OwnDir {
        self.inner.arcs.dir()
    }

    /// What was verified so far and the damage met.
    pub fn tally(&self) -> &Tally {
        &self.inner.tally
    }

    /// Where it is noted what was verified.
    pub fn ledger(&self) -> Option<&Arc<LedgerWriter>> {
        self.inner.ledger.as_ref()
    }

    /// Bytes `start..end` of a file of `size_bytes` were given to a reader.
    pub fn file_read(&self, logid: Logid, start: u64, end: u64, size_bytes: u64) {
        let extent = self.tally().file_read(logid, start, end, size_bytes);
        if let (Some(extent), Some(ledger)) = (extent, self.ledger()) {
            ledger.file(logid, extent);
        }
    }

    /// One block, verified. `file` names the reader in messages about damage.
    ///
    /// Errors: `Arc` for damage (with its place), index errors, `IndexRow` if the block has another length.
    pub fn block(&self, block: BlockId, expected_len: u32, file: Option<Logid>) -> Result<Arc<VerifiedBlock>> {
        let mut blocks = self.blocks(&[Wanted { block, len_bytes: expected_len }], file)?;
        blocks.pop().ok_or_else(|| Error::Usage("no block asked for".into()))
    }

    /// Blocks in the order asked for, or the first error: never a part of them. Decodes on all cores.
    pub fn blocks(&self, wanted: &[Wanted], file: Option<Logid>) -> Result<Vec<Arc<VerifiedBlock>>> {
        let mut found = Vec::with_capacity(wanted.len());
        let jobs = {
            let mut shelf = lock(&self.inner.shelf);
            let mut missing: Vec<Wanted> = Vec::new();
            for want in wanted {
                match shelf.find(want.block) {
                    Found::Bad(error) => return Err(error),
                    Found::Unknown => {
                        if !missing.iter().any(|known| known.block == want.block) {
                            missing.push(*want);
                        }
                        found.push(Found::Unknown);
                    }
                    known => found.push(known),
                }
            }
            let jobs = into_jobs(missing, file);
            jobs.iter().for_each(|job| shelf.expect(job));
            if !jobs.is_empty() {
                for (want, place) in wanted.iter().zip(&mut found) {
                    if matches!(place, Found::Unknown) {
                        *place = shelf.find(want.block);
                    }
                }
            }
            jobs
        };
        if let Some(Queues { now, .. }) = self.pool() {
            // The first job is this thread's own; if the pool is slow, so are the others.
            for job in jobs.iter().skip(1) {
                let _ = now.send(job.clone());
            }
        }
        let mut blocks = Vec::with_capacity(wanted.len());
        for (want, place) in wanted.iter().zip(found) {
            let verified = match place {
                Found::Here(verified) => {
                    self.inner.tally.cache_hit();
                    verified
                }
                Found::Coming(job, slot) => {
                    if !job.delivered(slot) && job.claim() {
                        self.inner.run(&job);
                    }
                    job.wait(slot)?
                }
                Found::Bad(error) => return Err(error),
                Found::Unknown => return Err(Error::Usage("a block was not asked for".into())),
            };
            if verified.len() != want.len_bytes as usize {
                return Err(self.inner.wrong_length(want, verified.len()));
            }
            blocks.push(verified);
        }
        Ok(blocks)
    }

    /// Whether `bytes` are a block's, by its keyed hash; nothing is read from an arc.
    pub fn is_block(&self, block: BlockId, bytes: &[u8]) -> Result<bool> {
        let info = self.inner.arcs.locate(block)?.info;
        Ok(info.plain_len as usize == bytes.len() && info.hash == self.inner.keys.block_hash(bytes))
    }

    /// Starts decoding blocks that will probably be wanted soon; does nothing when too much is under way already.
    pub fn prefetch(&self, wanted: impl IntoIterator<Item = Wanted>, file: Option<Logid>) {
        let Some(Queues { ahead, .. }) = self.pool() else { return };
        let jobs = {
            let mut shelf = lock(&self.inner.shelf);
            let mut missing: Vec<Wanted> = Vec::new();
            let mut room = self.inner.max_ahead_bytes.saturating_sub(self.inner.ahead_bytes.load(Ordering::Relaxed));
            for want in wanted {
                if shelf.knows(want.block) || missing.iter().any(|known| known.block == want.block) {
                    continue;
                }
                let Some(left) = room.checked_sub(u64::from(want.len_bytes)) else { break };
                room = left;
                missing.push(want);
            }
            let jobs = into_jobs(missing, file);
            for job in &jobs {
                shelf.expect(job);
                self.inner.ahead_bytes.fetch_add(job_bytes(job), Ordering::Relaxed);
            }
            jobs
        };
        for job in jobs {
            let _ = ahead.send(job);
        }
    }

    /// Notes damage that was met outside of blocks (index rows, lost directories): counted and logged once for
    /// each `key`. `path` says what it was met at, and is only asked the first time.
    pub fn note_damage(&self, key: u64, error: &Error, path: impl FnOnce() -> Option<(Version, Vec<u8>)>) {
        self.inner.note_once(key, None, error, "", End::Lost, path);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.queues = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Cuts blocks into jobs of about `JOB_BYTES`.
fn into_jobs(missing: Vec<Wanted>, file: Option<Logid>) -> Vec<Arc<Job>> {
    let mut jobs = Vec::new();
    let mut part: Vec<Wanted> = Vec::new();
    let mut part_bytes = 0;
    for want in missing {
        if !part.is_empty() && part_bytes + u64::from(want.len_bytes) > JOB_BYTES {
            jobs.push(Arc::new(Job::new(std::mem::take(&mut part), file)));
            part_bytes = 0;
        }
        part_bytes += u64::from(want.len_bytes);
        part.push(want);
    }
    if !part.is_empty() {
        jobs.push(Arc::new(Job::new(part, file)));
    }
    jobs
}

fn job_bytes(job: &Job) -> u64 {
    job.wanted.iter().map(|want| u64::from(want.len_bytes)).sum()
}

/// One thread of the pool: what is needed now goes before what is read ahead. Ends when the store is dropped.
fn serve(inner: &Inner, now: &Receiver<Arc<Job>>, ahead: &Receiver<Arc<Job>>) {
    loop {
        select_biased! {
            recv(now) -> job => match job {
                Ok(job) => {
                    if job.claim() {
                        inner.run(&job);
                    }
                }
                Err(_) => return,
            },
            recv(ahead) -> job => match job {
                Ok(job) => {
                    inner.ahead_bytes.fetch_sub(job_bytes(&job), Ordering::Relaxed);
                    if job.claim() {
                        inner.run(&job);
                    }
                }
                Err(_) => return,
            },
        }
    }
}

/// Delivers an error for whatever a job did not deliver, even if its thread panics: nobody waits for ever.
struct Deliver<'a> {
    inner: &'a Inner,
    job: &'a Job,
}

impl Deliver<'_> {
    fn outcome(&self, slot: usize, outcome: Outcome) {
        if let Some(want) = self.job.wanted.get(slot) {
            lock(&self.inner.shelf).arrive(want.block, &outcome);
        }
        self.job.deliver(slot, outcome);
    }
}

impl Drop for Deliver<'_> {
    fn drop(&mut self) {
        for slot in 0..self.job.wanted.len() {
            if !self.job.delivered(slot) {
                self.outcome(slot, Err(Error::SelfCheck { what: "a block was not delivered".into() }));
            }
        }
    }
}

impl Inner {
    /// Reads and verifies the blocks of a job that the caller has claimed.
    fn run(&self, job: &Job) {
        let deliver = Deliver { inner: self, job };
        let mut run: Vec<(usize, Located)> = Vec::new();
        let mut run_end = 0;
        let mut run_bytes = 0;
        for (slot, want) in job.wanted.iter().enumerate() {
            let located = match self.arcs.locate(want.block) {
                Ok(located) => located,
                Err(error) => {
                    self.note(want.block.0, None, job.file, &error, "");
                    deliver.outcome(slot, Err(error));
                    continue;
                }
            };
            let len = located.info.frame_len();
            let adjacent = run.last().is_some_and(|(_, last)| last.serial == located.serial)
                && run_end == located.offset
                && run_bytes + len <= MAX_RUN_BYTES;
            if !adjacent {
                self.read_run(&deliver, &run, run_bytes);
                run.clear();
                run_bytes = 0;
            }
            run_bytes += len;
            run_end = located.offset + len;
            run.push((slot, located));
        }
        self.read_run(&deliver, &run, run_bytes);
    }

    /// Fetches adjacent frames by one read and verifies each.
    fn read_run(&self, deliver: &Deliver<'_>, run: &[(usize, Located)], run_bytes: u64) {
        let Some((_, first)) = run.first() else { return };
        let arc = match self.arcs.open(first.serial) {
            Ok(arc) => arc,
            Err(error) => {
                // It is one place, told once; a log says each block that was wanted.
                let (each, mut told) = (error.is_damage() && self.words == Words::Log, false);
                for (slot, located) in run {
                    let Some(want) = deliver.job.wanted.get(*slot) else { continue };
                    if let Some(verified) = self.relocated_since(want.block, located) {
                        deliver.outcome(*slot, Ok(Arc::new(verified)));
                        continue;
                    }
                    if !each && !std::mem::replace(&mut told, true) {
                        let key = BlockId::new(first.serial, FrameNo(0)).0;
                        self.note(key, Some(first.serial), deliver.job.file, &error, "");
                    }
                    // Each reader's error names its own block.
                    let error = match error.clone() {
                        Error::Arc { place, damage } => Error::Arc {
                            place: Place {
                                frame: Some(located.no),
                                block: Some(want.block),
                                offset: located.offset,
                                ..place
                            },
                            damage,
                        },
                        other => other,
                    };
                    if each {
                        let more = format!("expected hash {}", located.info.hash);
                        self.note(want.block.0, Some(first.serial), deliver.job.file, &error, &more);
                    }
                    deliver.outcome(*slot, Err(error));
                }
                return;
            }
        };
        let first_offset = first.offset;
        let mut failed: Vec<(usize, &Located, Bad)> = Vec::new();
        arc.with_bytes(first_offset, run_bytes as usize, Via::Cache, |bytes| {
            for (slot, located) in run {
                let Some(want) = deliver.job.wanted.get(*slot) else { continue };
                let place = || arc.place(located, want.block);
                let result = match &bytes {
                    Ok(bytes) => {
                        let start = (located.offset - first_offset) as usize;
                        let end = (start + located.info.frame_len() as usize).min(bytes.len());
                        let bytes = bytes.get(start..end).unwrap_or_default();
                        let verified = self.verify(&arc, located, How::Read, bytes);
                        verified.map_err(|damage| Bad::refused(place(), damage, bytes))
                    }
                    Err(error) => Err(Bad::unread(place(), error.clone())),
                };
                match result {
                    Ok(verified) => deliver.outcome(*slot, Ok(Arc::new(verified))),
                    Err(bad) => failed.push((*slot, located, bad)),
                }
            }
        });
        let one_by_one = run.len() > 1 && failed.iter().any(|(.., bad)| bad.bytes.is_none());
        for (slot, located, bad) in failed {
            let Some(want) = deliver.job.wanted.get(slot) else { continue };
            // A read error of one sector failed the whole run: its other frames may be well.
            let alone = if one_by_one { self.read_one(&arc, located, want.block) } else { Err(bad) };
            let outcome = match alone {
                Ok(verified) => Ok(Arc::new(verified)),
                Err(bad) => self.second_source(&arc, located, want, deliver.job.file, &bad),
            };
            deliver.outcome(slot, outcome);
        }
    }

    fn read_one(&self, arc: &OpenArc, located: &Located, block: BlockId) -> std::result::Result<VerifiedBlock, Bad> {
        let place = || arc.place(located, block);
        arc.with_bytes(located.offset, located.info.frame_len() as usize, Via::Cache, |bytes| match bytes {
            Ok(bytes) => {
                self.verify(arc, located, How::Read, bytes).map_err(|damage| Bad::refused(place(), damage, bytes))
            }
            Err(error) => Err(Bad::unread(place(), error)),
        })
    }

    /// The block from another place, if it was relocated since its place was looked up.
    fn relocated_since(&self, block: BlockId, was: &Located) -> Option<VerifiedBlock> {
        self.arcs.forget_place(block);
        let located = self.arcs.locate(block).ok().filter(|now| (now.serial, now.no) != (was.serial, was.no))?;
        self.read_one(&*self.arcs.open(located.serial).ok()?, &located, block).ok()
    }

    fn verify(
        &self,
        arc: &OpenArc,
        located: &Located,
        how: How,
        frame_bytes: &[u8],
    ) -> std::result::Result<VerifiedBlock, Damage> {
        if located.info.kind != FrameKind::Block {
            return Err(Damage::WrongFrame);
        }
        let verified = frame::open(&self.keys, &arc.cipher, located.no, &located.info, frame_bytes)?;
        self.tally.block_verified(verified.len() as u64);
        if let Some(ledger) = &self.ledger {
            ledger.frame(located.serial, CopyId::LOCAL, located.no, how);
        }
        Ok(verified)
    }

    fn wrong_length(&self, want: &Wanted, found: usize) -> Error {
        let error = Error::IndexRow {
            path: self.index.path().to_path_buf(),
            what: format!("block {} has {found} bytes, a file expects {}", want.block, want.len_bytes),
        };
        self.note(want.block.0, None, None, &error, "");
        error
    }

    fn note(&self, key: u64, arc: Option<ArcSerial>, file: Option<Logid>, error: &Error, more: &str) {
        self.note_once(key, arc, error, more, End::Lost, || self.index.path_of_node(file?).ok());
    }

    /// Lists and logs damage, once a place: path, version, arc, frame, block, expected and found hash, source. True
    /// the first time.
    fn note_once(
        &self,
        key: u64,
        arc: Option<ArcSerial>,
        error: &Error,
        more: &str,
        end: End,
        path: impl FnOnce() -> Option<(Version, Vec<u8>)>,
    ) -> bool {
        if !error.is_damage() {
            if self.words == Words::Log && self.tally.is_first(key, error.code()) {
                log::warn!("{}: {error}", error.code());
            }
            return true;
        }
        // Each time: it may have been right in between.
        self.remember(arc, error, &end);
        let describe = || {
            let (path, version) = tally::shown_path(path());
            let how = end.how().unwrap_or_default();
            Met { code: error.code(), path, version, what: error.to_string(), healed: end != End::Lost, how }
        };
        let met = self.tally.damage(key, describe, error.code(), &end);
        if let Some(met) = met.as_ref().filter(|_| self.words == Words::Log) {
            let version = met.version.map_or_else(String::new, |version| format!(" in r{version}"));
            let path = if met.path.is_empty() { "(path unknown)".into() } else { shown(&met.path).to_string() };
            let separator = if more.is_empty() { "" } else { ", " };
            log::error!("{}: {path}{version}: {}{separator}{more}", met.code, met.what);
        }
        met.is_some()
    }

    /// Damage of an arc goes to the ledger too.
    fn remember(&self, arc: Option<ArcSerial>, error: &Error, end: &End) {
        if let (Some(ledger), Some(arc), Error::Arc { place, damage }) = (&self.ledger, arc, error) {
            // A missing arc is one place, however many blocks were looked for in it.
            let frame = place.frame.filter(|_| *damage != Damage::Missing);
            ledger.record(ledger::Record::Damage(ledger::Damage {
                when_ms: ledger.now_ms(),
                arc,
                copy: CopyId::LOCAL,
                frame,
                count: u32::from(frame.is_some()),
                code: error.code().to_string(),
                mended: *end == End::ReadAgain,
            }));
        }
    }
}
