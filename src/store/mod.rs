//! Verified blocks, from the cache or fetched: the only way from stored bytes to a reader.
//!
//! Invariants: what leaves here is a `VerifiedBlock`; a frame is fetched once at a time however many want blocks of it, and
//! all of them are at hand then; what is near is fetched by whoever needs it first, what is far by threads of its own, and nobody waits for it longer than the
//! deadline; cache, verdicts and what is waited for are bounded; a bad block gives an error that names its place, and is
//! logged and listed once.

mod far;
mod job;
#[cfg(test)]
mod kept_tests;
mod later;
mod notes;
mod shelf;
#[cfg(test)]
mod slow_tests;
mod tally;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, select_biased, unbounded};

use crate::arc::{VerifiedBlock, VerifiedFrame};
use crate::crypto::Keys;
use crate::depot::Depot;
use crate::error::{Error, Result};
pub use crate::fetch::Heal;
use crate::fetch::{Asked, Fetch, FrameCache};
use crate::ids::{ArcName, BlockId, FramePlace, Logid, Version};
use crate::index::Index;
use crate::ledger::LedgerWriter;
use crate::sync::lock;
use far::Far;
use job::{Job, Outcome};
use later::{Ask, Later, Part};
use notes::Notes;
use shelf::{Found, Shelf};
pub use tally::{Met, Summary, Tally};

/// Default bound of the cache of verified blocks.
pub const DEFAULT_CACHE_BYTES: u64 = 32 << 20;
/// How long a reader waits for blocks, at most.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Plain bytes that one job decodes: large enough to hide the hand-over, small enough to spread over the cores.
const JOB_BYTES: u64 = 256 << 10;

/// A block and the plain length that its user expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub block: BlockId,
    pub len_bytes: u32,
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
    pub ledger: Option<Arc<LedgerWriter>>,
    pub words: Words,
    /// Hears of each damaged place of what is read first, once.
    pub on_damage: Option<OnDamage>,
    /// Asked where the backup dir fails.
    pub copies: Vec<Arc<dyn Depot>>,
    /// Keeps what was fetched from far.
    pub frames: Option<Arc<FrameCache>>,
    /// How long a reader waits, at most.
    pub deadline: Duration,
}

/// Hears of damage, on whatever thread meets it.
pub type OnDamage = Arc<dyn Fn(&Error) + Send + Sync>;

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
        StoreOptions {
            cache_bytes: DEFAULT_CACHE_BYTES,
            heal: Heal::On,
            threads,
            max_age: None,
            ledger: None,
            words: Words::Log,
            on_damage: None,
            copies: Vec::new(),
            frames: None,
            deadline: DEADLINE,
        }
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
    fetch: Fetch,
    shelf: Mutex<Shelf>,
    notes: Notes,
    /// None where nothing is far.
    far: Option<Far>,
    deadline: Duration,
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
    /// None without threads, and while dropping.
    queues: Option<Queues>,
    pool_rests: AtomicBool,
    threads: Vec<JoinHandle<()>>,
}

impl Store {
    /// `home` is asked first.
    pub fn new(home: Arc<dyn Depot>, keys: Arc<Keys>, index: Arc<Index>, options: StoreOptions) -> Store {
        let StoreOptions { cache_bytes, heal, threads, max_age, ledger, words, on_damage, .. } = options;
        let StoreOptions { copies, frames, deadline, .. } = options;
        let fetch = Fetch::new(home, copies, keys, index.clone(), heal).keeping(frames);
        let inner = Arc::new(Inner {
            far: fetch.has_far().then(Far::default),
            fetch,
            shelf: Mutex::new(Shelf::new(cache_bytes, max_age)),
            notes: Notes { tally: Tally::default(), index, ledger, words, on_damage },
            deadline,
            ahead_bytes: AtomicU64::new(0),
            max_ahead_bytes: (cache_bytes / 4).min(16 << 20),
        });
        let (now_tx, now_rx) = unbounded();
        let (ahead_tx, ahead_rx) = unbounded();
        let started: Vec<JoinHandle<()>> = (0..threads)
            .filter_map(|number| {
                let (inner, now, ahead) = (inner.clone(), now_rx.clone(), ahead_rx.clone());
                let thread = std::thread::Builder::new().name(format!("decode-{number}"));
                thread.spawn(move || serve(&inner, &now, &ahead)).ok()
            })
            .collect();
        far::start(&inner);
        Store {
            inner,
            queues: Some(Queues { now: now_tx, ahead: ahead_tx }).filter(|_| !started.is_empty()),
            pool_rests: AtomicBool::new(false),
            threads: started,
        }
    }

    /// Chooses who decodes from now on; `Pool` at first.
    pub fn set_spread(&self, spread: Spread) {
        self.pool_rests.store(spread == Spread::Caller, Ordering::Relaxed);
    }

    /// The ways into the pool, if it has threads and is to be used.
    fn pool(&self) -> Option<&Queues> {
        let rests = self.pool_rests.load(Ordering::Relaxed);
        self.queues.as_ref().filter(|_| !rests)
    }

    /// What was verified so far and the damage met.
    pub fn tally(&self) -> &Tally {
        &self.inner.notes.tally
    }

    /// What was read so far, and the damage met, that of the index too.
    pub fn summary(&self) -> Summary {
        self.inner.notes.index();
        self.tally().summary()
    }

    /// Where it is noted what was verified.
    pub fn ledger(&self) -> Option<&Arc<LedgerWriter>> {
        self.inner.notes.ledger.as_ref()
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
    pub fn block(&self, block: BlockId, expected_len: u32, file: Option<Logid>) -> Result<VerifiedBlock> {
        let mut blocks = self.blocks(&[Wanted { block, len_bytes: expected_len }], file)?;
        blocks.pop().ok_or_else(|| Error::Usage("no block asked for".into()))
    }

    /// Blocks in the order asked for, or the first error: never a part of them. Decodes on all cores.
    ///
    /// # Errors
    /// As `block`; `READ_TIMED_OUT` when they have not come by the deadline.
    pub fn blocks(&self, wanted: &[Wanted], file: Option<Logid>) -> Result<Vec<VerifiedBlock>> {
        match self.gather(wanted, file)? {
            Gathered::Here(blocks) => Ok(blocks),
            Gathered::Later(later) => later.wait(),
        }
    }

    /// As `blocks`, and `then` gets the answer: on this thread before it returns, while all of it is near; else later, on
    /// another one, and no later than the deadline.
    pub fn ask(
        &self,
        wanted: &[Wanted],
        file: Option<Logid>,
        then: impl FnOnce(Result<Vec<VerifiedBlock>>) + Send + 'static,
    ) {
        match self.gather(wanted, file) {
            Ok(Gathered::Here(blocks)) => then(Ok(blocks)),
            Ok(Gathered::Later(later)) => match &self.inner.far {
                Some(far) => far.answer(later, Box::new(then)),
                None => then(later.wait()),
            },
            Err(error) => then(Err(error)),
        }
    }

    fn gather(&self, wanted: &[Wanted], file: Option<Logid>) -> Result<Gathered> {
        let inner = &self.inner;
        let deadline = Instant::now() + inner.deadline;
        let mut located = Vec::with_capacity(wanted.len());
        for want in wanted {
            located.push(inner.locate(want, file)?);
        }
        let mut found = Vec::with_capacity(wanted.len());
        let jobs = {
            let mut shelf = lock(&inner.shelf);
            let mut missing: Vec<Asked> = Vec::new();
            for asked in &located {
                let frame = asked.at.frame();
                match shelf.find(frame) {
                    Found::Bad(error) => return Err(error),
                    Found::Unknown => {
                        if !missing.iter().any(|known| known.at.frame() == frame) {
                            missing.push(asked.clone());
                        }
                        found.push(Found::Unknown);
                    }
                    known => found.push(known),
                }
            }
            let jobs = into_jobs(missing, file);
            jobs.iter().for_each(|job| shelf.expect(job));
            if !jobs.is_empty() {
                for (asked, known) in located.iter().zip(&mut found) {
                    if matches!(known, Found::Unknown) {
                        *known = shelf.find(asked.at.frame());
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
        let mut parts = Vec::new();
        for ((want, asked), known) in wanted.iter().zip(&located).zip(found) {
            let ask = Ask { want: *want, place: asked.at.place() };
            let part = match known {
                Found::Here(opened) => {
                    inner.notes.tally.cache_hit();
                    let here = Outcome { frame: asked.at.frame(), result: Ok(opened) };
                    Part::Here(inner.block_of(&ask, here, file, deadline)?)
                }
                Found::Coming(job, slot) => {
                    if !job.delivered(slot) && job.claim() {
                        inner.run(&job);
                    }
                    match job.wait_near(slot, deadline)? {
                        Some(outcome) => Part::Here(inner.block_of(&ask, outcome, file, deadline)?),
                        None => Part::Coming(job, slot),
                    }
                }
                Found::Bad(error) => return Err(error),
                Found::Unknown => return Err(Error::Usage("a block was not asked for".into())),
            };
            match part {
                Part::Here(block) if parts.is_empty() => blocks.push(block),
                part => parts.push((ask, part)),
            }
        }
        if parts.is_empty() {
            return Ok(Gathered::Here(blocks));
        }
        Ok(Gathered::Later(Later { inner: inner.clone(), blocks, parts, file, deadline }))
    }

    /// Whether `bytes` are a block's, by its keyed hash; nothing is read from an arc.
    pub fn is_block(&self, block: BlockId, bytes: &[u8]) -> Result<bool> {
        self.inner.fetch.is_block(block, bytes)
    }

    /// Where a block would be fetched from, if that is far and it is not kept here: the arc, its length, and the range of
    /// it. Nothing is read.
    pub fn far_range(&self, block: BlockId) -> Result<Option<(ArcName, u64, Range<u64>)>> {
        let (fetch, asked) = (&self.inner.fetch, [self.inner.fetch.locate(block)?]);
        let [one] = &asked;
        if fetch.is_far(&asked) && !fetch.may_be_kept(one) { fetch.range(one).map(Some) } else { Ok(None) }
    }

    /// Starts decoding blocks that will probably be wanted soon; does nothing when too much is under way already.
    pub fn prefetch(&self, wanted: impl IntoIterator<Item = Wanted>, file: Option<Logid>) {
        let pool = self.pool();
        // What is far is asked for whoever decodes it.
        if pool.is_none() && !self.inner.fetch.has_far_home() {
            return;
        }
        let jobs = {
            let mut missing: Vec<Asked> = Vec::new();
            let mut room = self.inner.max_ahead_bytes.saturating_sub(self.inner.ahead_bytes.load(Ordering::Relaxed));
            for want in wanted {
                // One that can't be found is told of when it is needed.
                let Ok(asked) = self.inner.fetch.locate(want.block) else { continue };
                let frame = asked.at.frame();
                let is_known =
                    missing.iter().any(|known| known.at.frame() == frame) || lock(&self.inner.shelf).knows(frame);
                // What is kept here is near.
                let is_far = || {
                    let fetch = &self.inner.fetch;
                    fetch.is_far(std::slice::from_ref(&asked)) && !fetch.may_be_kept(&asked)
                };
                if is_known || (pool.is_none() && !is_far()) {
                    continue;
                }
                let Some(left) = room.checked_sub(u64::from(asked.at.info.plain_len())) else { break };
                room = left;
                missing.push(asked);
            }
            let mut shelf = lock(&self.inner.shelf);
            missing.retain(|asked| !shelf.knows(asked.at.frame()));
            let jobs = into_jobs(missing, file);
            for job in &jobs {
                shelf.expect(job);
                self.inner.ahead_bytes.fetch_add(job_bytes(job), Ordering::Relaxed);
            }
            jobs
        };
        for job in jobs {
            match pool {
                Some(Queues { ahead, .. }) => drop(ahead.send(job)),
                None => self.inner.take_ahead(&job),
            }
        }
    }

    /// Notes damage that was met outside of blocks (index rows, lost directories): counted and logged once for
    /// each `key`. `path` says what it was met at, and is only asked the first time.
    pub fn note_damage(&self, key: u64, error: &Error, path: impl FnOnce() -> Option<(Version, Vec<u8>)>) {
        self.inner.notes.damage(key, error, path);
    }
}

/// Blocks that are at hand, or not all of them yet.
enum Gathered {
    Here(Vec<VerifiedBlock>),
    Later(Later),
}

impl Drop for Store {
    fn drop(&mut self) {
        self.queues = None;
        self.inner.far.iter().for_each(|far| far.close(&self.inner));
        // An answer may be what kept it, so this may be one of them.
        let this = std::thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != this) {
            let _ = thread.join();
        }
    }
}

/// Cuts frames into jobs of about `JOB_BYTES`.
fn into_jobs(missing: Vec<Asked>, file: Option<Logid>) -> Vec<Arc<Job>> {
    let mut jobs = Vec::new();
    let mut part: Vec<Asked> = Vec::new();
    let mut part_bytes = 0;
    for asked in missing {
        let len_bytes = u64::from(asked.at.info.plain_len());
        if !part.is_empty() && part_bytes + len_bytes > JOB_BYTES {
            jobs.push(Arc::new(Job::new(std::mem::take(&mut part), file)));
            part_bytes = 0;
        }
        part_bytes += len_bytes;
        part.push(asked);
    }
    if !part.is_empty() {
        jobs.push(Arc::new(Job::new(part, file)));
    }
    jobs
}

fn job_bytes(job: &Job) -> u64 {
    job.asked.iter().map(|asked| u64::from(asked.at.info.plain_len())).sum()
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
                Ok(job) => inner.take_ahead(&job),
                Err(_) => return,
            },
        }
    }
}

/// Delivers an error for whatever a job did not deliver, even if its thread panics: nobody waits for ever.
struct Deliver<'a> {
    inner: &'a Inner,
    job: &'a Arc<Job>,
}

impl Deliver<'_> {
    fn result(&self, slot: usize, frame: FramePlace, result: Result<VerifiedFrame>) {
        self.inner.deliver(self.job, slot, Outcome { frame, result });
    }
}

impl Drop for Deliver<'_> {
    fn drop(&mut self) {
        for (slot, asked) in self.job.asked.iter().enumerate() {
            if self.job.is_near(slot) {
                let what = "a frame was not delivered".into();
                self.result(slot, asked.at.frame(), Err(Error::SelfCheck { what }));
            }
        }
    }
}

/// How often a block is looked for anew because it was relocated meanwhile.
const MAX_MOVES: u32 = 3;

impl Inner {
    fn locate(&self, want: &Wanted, file: Option<Logid>) -> Result<Asked> {
        let located = self.fetch.locate(want.block);
        located.inspect_err(|error| self.notes.unlocated(want.block, file, error))
    }

    fn take_ahead(&self, job: &Arc<Job>) {
        self.ahead_bytes.fetch_sub(job_bytes(job), Ordering::Relaxed);
        if job.claim() {
            self.run(job);
        }
    }

    fn deliver(&self, job: &Arc<Job>, slot: usize, outcome: Outcome) {
        if let Some(asked) = job.asked.get(slot) {
            lock(&self.shelf).arrive(asked.at.frame(), &outcome);
        }
        job.deliver(slot, outcome);
    }

    /// The block out of what came of its frame; it is looked for anew if it was relocated meanwhile.
    fn block_of(
        self: &Arc<Inner>,
        ask: &Ask,
        mut outcome: Outcome,
        file: Option<Logid>,
        deadline: Instant,
    ) -> Result<VerifiedBlock> {
        let mut place = ask.place;
        for _ in 0..MAX_MOVES {
            if outcome.frame == place.place() {
                break;
            }
            self.fetch.forget(ask.want.block);
            let asked = self.locate(&ask.want, file)?;
            place = asked.at.place();
            let (job, slot) = {
                let mut shelf = lock(&self.shelf);
                match shelf.find(place.place()) {
                    Found::Bad(error) => return Err(error),
                    Found::Here(opened) => {
                        outcome = Outcome { frame: place.place(), result: Ok(opened) };
                        continue;
                    }
                    Found::Coming(job, slot) => (job, slot),
                    Found::Unknown => {
                        let job = Arc::new(Job::new(vec![asked], file));
                        shelf.expect(&job);
                        (job, 0)
                    }
                }
            };
            if !job.delivered(slot) && job.claim() {
                self.run(&job);
            }
            outcome = job.wait(slot, deadline)?;
        }
        let opened = outcome.result?;
        let block = opened.block(place.slot()).filter(|_| outcome.frame == place.place());
        let block = block.ok_or_else(|| Error::SelfCheck { what: format!("{} moves all the time", ask.want.block) })?;
        self.notes.of_length(&ask.want, block)
    }

    /// Fetches the frames of a job that the caller has claimed; what only a far copy can have is left to others.
    fn run(&self, job: &Arc<Job>) {
        let deliver = Deliver { inner: self, job };
        if let Some(far) = self.far.as_ref().filter(|_| self.fetch.is_far(&job.asked)) {
            let mut left = Vec::new();
            for (slot, asked) in job.asked.iter().enumerate() {
                match self.fetch.kept(asked) {
                    Some(kept) => {
                        let opened = self.notes.fetched(&self.fetch, asked, job.file, kept);
                        deliver.result(slot, asked.at.frame(), Ok(opened));
                    }
                    None => left.push((slot, asked.at.frame())),
                }
            }
            if !left.is_empty()
                && let Err(error) = far.send_all(job)
            {
                left.into_iter().for_each(|(slot, frame)| deliver.result(slot, frame, Err(error.clone())));
            }
            return;
        }
        let mut told = None;
        self.fetch.near(&job.asked, &mut |slot, asked, outcome| {
            let frame = asked.at.frame();
            let bad = match outcome {
                Ok(fetched) => {
                    let opened = self.notes.fetched(&self.fetch, asked, job.file, fetched);
                    return deliver.result(slot, frame, Ok(opened));
                }
                Err(bad) => bad,
            };
            if let Some(far) = &self.far {
                let Err(unsent) = far.send(job, slot, asked.clone(), bad) else { return };
                let (_, bad) = *unsent;
                return deliver.result(slot, frame, Err(self.notes.lost(&self.fetch, asked, job.file, bad, &mut told)));
            }
            deliver.result(slot, frame, Err(self.notes.lost(&self.fetch, asked, job.file, bad, &mut told)));
        });
    }
}
