//! `assay backup`: one run from the lock to the commit.
//!
//! What is written goes through `run`, which holds the order of writes.

pub mod assemble;
mod block;
pub mod carry;
pub mod catalog;
pub mod expect;
pub mod inventory;
pub mod leaf;
pub mod left_out;
pub mod pipeline;
pub mod previous;
pub mod read;
pub mod spare;
pub mod traverse;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crossbeam::channel::{Receiver, bounded};

use crate::backupdir::{BackupDir, Lock};
use crate::catalog::VersionInfo;
use crate::copies::Sending;
use crate::error::{Error, Result};
use crate::ids::{BlockId, Logid, Version};
use crate::index::{ApplyReport, DedupTable, Index, Told, VersionRow};
use crate::ledger::Ledger;
use crate::live::{self, Boundaries, Crossing, Excludes, OpenDirs, Paths, Roots};
use crate::monitor::{Event, Monitor};
use crate::parity::{self, Kept};
pub use crate::run::LeftToDo;
use crate::run::{Applied, Contents, NewVersion, Run, Settled, Whole, records};
use crate::text::{counted, shown};
use crate::tree::LATEST_LIFETIME;
use assemble::Assembler;
use expect::Expected;
use inventory::Inventory;
use left_out::LeftOut;
use pipeline::{Budget, IN_FLIGHT_STEPS, Job, Step, Totals, Worker};
use previous::Previous;
use read::Cutting;
pub use spare::Resumed;
use spare::Spare;
use traverse::{Fate, Traverse};

/// Memory for the table of blocks that this run has written.
const DEDUP_BYTES: usize = 96 << 20;
/// A base catalog is due when the deltas since the last one have grown past it, and past this.
const MIN_BASE_BYTES: u64 = 1 << 20;
/// The walk recurses once a directory: room for paths of a million bytes. Halved where there is less memory, down to
/// room for paths of some thousand directories.
const WALK_STACK_BYTES: usize = 1 << 30;
const MIN_WALK_STACK_BYTES: usize = 16 << 20;

/// What to back up and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub paths: Vec<PathBuf>,
    /// Read every file again.
    pub full: bool,
    /// Enter other file systems.
    pub cross: bool,
    /// Cut files at multiples of this size instead of by content, bytes.
    pub fixed_block: Option<u32>,
    pub tag: String,
    pub excludes: Vec<String>,
    /// Write nothing.
    pub dry_run: bool,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Summary {
    /// None for a dry run.
    pub version: Option<Version>,
    pub info: VersionInfo,
    /// Files that the run wrote, bytes, commit and catalog included.
    pub arc_bytes: u64,
    pub arcs: usize,
    pub base: bool,
    /// Blocks that runs that were cut had stored, and that this version uses.
    pub resumed: Resumed,
    /// The version is saved, and this could not be done any more.
    pub left_to_do: Option<LeftToDo>,
    /// Parity of arcs that had none.
    pub parity: Kept,
}

impl LeftToDo {
    pub fn text(self) -> &'static str {
        match self {
            LeftToDo::Durable => {
                "it may not outlive a power cut yet, and does not show yet: the next backup makes it durable and adds it \
                 to the index"
            }
            LeftToDo::Apply => "it does not show yet: the next backup, or `assay recover`, adds it to the index",
            LeftToDo::Checkpoint => "it shows; the next backup moves the write-ahead log into the index",
        }
    }
}

/// Largest block of `-B`, bytes.
pub const MAX_FIXED_BLOCK: u32 = 16 << 20;

/// Makes a new version.
///
/// # Errors
/// Whatever keeps the run from a commit. Files that can't be read don't: they are reported and counted.
pub fn run(dir: &BackupDir, options: &Options, monitor: &dyn Monitor) -> Result<Summary> {
    run_sending(dir, options, None, monitor)
}

/// As `run`, and copies are made meanwhile.
pub fn run_sending<'a>(
    dir: &'a BackupDir,
    options: &Options,
    sending: Option<&'a Sending>,
    monitor: &dyn Monitor,
) -> Result<Summary> {
    let started = read::now();
    // A dry run only looks, so nobody has to wait for it, nor it for anybody.
    let lock = if options.dry_run { None } else { Some(dir.lock()?) };
    let excludes = Excludes::parse(&dir.excludes_path(), &dir.excludes()?, &options.excludes)?;
    let boundaries = Boundaries::new(dir.path(), if options.cross { Crossing::Cross } else { Crossing::Stay })?;
    let boundaries_seen = boundaries.clone();
    let begun = lock.as_ref().map(|lock| Run::begin(dir, lock, monitor)).transpose()?;
    if let (Some(sending), Some(_)) = (sending, &begun) {
        sending.begin();
    }
    let index = match &begun {
        Some(run) => run.index().clone(),
        None => Arc::new(dir.open_index()?),
    };
    let settled = begun.as_ref().map(Run::settled);
    let settled_damage = settled.iter().flat_map(|settled| &settled.applied);
    let settled_damage = settled_damage.map(|(_, report)| tell(report, monitor)).sum::<u64>();
    let warn = |what: String| monitor.event(Event::Warning { path: b"", what });
    if let Some(Settled { survey, removed_arcs, .. }) = settled {
        survey.strays(dir).for_each(|stray| warn(stray.to_string()));
        if *removed_arcs > 0 {
            warn(format!("removed {} of a run that was cut", counted(*removed_arcs as u64, "arc")));
        }
    }
    let state = index.state()?;
    let newest = index.newest_ever()?;
    // The run builds on the newest version also if that was removed; but what no other has is not kept: it was meant to go.
    let shown = index.newest()?;
    let is_shown = shown.as_ref().map(|row| row.version) == newest.as_ref().map(|row| row.version);
    let earlier = shown.iter().flat_map(|row| row.info.paths.iter().chain(&row.info.kept_paths));
    let roots = Roots::find(&options.paths, &earlier.cloned().collect::<Vec<_>>(), dir.path(), monitor)?;
    for what in excludes.in_vain(&roots.given) {
        monitor.event(Event::Warning { path: b"", what });
    }
    let inventory = Inventory::take(dir, &index, monitor)?;
    let outgrown = state.catalog_bytes_since_base > state.base_catalog_bytes.max(MIN_BASE_BYTES);
    let base = newest.is_none() || outgrown || inventory.base_due;
    let budget = Budget::default();
    let open_dirs = OpenDirs::within_limit();
    let (jobs_to, jobs) = bounded(IN_FLIGHT_STEPS);
    let (steps_to, steps) = bounded(IN_FLIGHT_STEPS);
    let previous = Previous::new(&index, &inventory.lost)?;
    // What is told anew of a lost listing is new: it must not count a second time.
    let before = if index.any_lost()? { previous.known()? } else { totals_of(newest.as_ref()) };
    let walk = Traverse {
        previous,
        steps: steps_to,
        jobs: jobs_to,
        budget: &budget,
        open_dirs: open_dirs.clone(),
        boundaries,
        excludes,
        narrowed: Vec::new(),
        cutting: cutting(dir, options),
        full: options.full,
        base,
        dry_run: options.dry_run,
        outside: if is_shown { Fate::Stays } else { Fate::Goes },
        monitor,
        next_logid: state.next_logid.max(Logid::FIRST.0),
        next_dirno: state.next_dirno.max(1),
        links: HashMap::new(),
        left_out: LeftOut::default(),
    };
    let before_this = newest.as_ref().map(|row| row.version);
    let expected = Expected::new(before);
    let Some(begun) = begun else {
        let mut info = std::thread::scope(|scope| {
            let walker = spawn_walk(scope, walk, &roots.tree)?;
            let mut info = dry(steps, monitor);
            join(walker)?.map(|walked| {
                walked.left_out.into_info(&mut info);
                info
            })
        })?;
        info.errors += roots.failures + inventory.failures;
        let resumed = Resumed::default();
        return Ok(Summary {
            version: None,
            info,
            arc_bytes: 0,
            arcs: 0,
            base,
            resumed,
            left_to_do: None,
            parity: Kept::default(),
        });
    };

    let reserved = begun.reserve()?;
    let run = reserved.number();
    let (committed, resumed) = reserved.write(Whole::Keep, |out| {
        out.sending = sending;
        let dedup = DedupTable::new(index.clone(), DEDUP_BYTES)?.without(inventory.lost.clone());
        let spare = Spare::of(&index)?;
        let assembler = Assembler::new(out, &index, &dedup, spare, &budget, monitor, &expected, before_this);
        let (assembler, walked) = std::thread::scope(|scope| {
            // Without a version before there is nothing to estimate from.
            if newest.is_none() && monitor.wants_totals() {
                let count = || expected.count(&roots.given, &boundaries_seen, open_dirs.for_the_walk() / 2, monitor);
                let _ = std::thread::Builder::new().spawn_scoped(scope, count);
            }
            let done = flow(dir, &dedup, &budget, walk, &roots.tree, jobs, steps, assembler);
            expected.stop();
            done
        })?;
        let (spare, mut catalog, root, mut info, gained, lost) = assembler.finish()?;
        let (resumed, unused) = spare.settled(&index)?;
        if let Some(error) = dedup.trouble() {
            info.errors += 1;
            monitor.event(Event::Failure { path: b"", error: &error });
        }
        if base {
            catalog.extend(records::relocations(out, in_force(&index))?);
        }
        let losses = index.losses()?.into_iter().filter(|(_, told)| base || *told == Told::Here);
        catalog.extend(records::losses(out, losses.map(|(loss, _)| loss))?);
        catalog.extend(records::drops(out, unused.iter().copied())?);
        let arcs = out.finish()?;
        let earlier = || -> Result<Vec<_>> {
            let in_use = index.arcs()?.into_iter().map(|row| row.entry);
            Ok(in_use.filter(|arc| !unused.contains(&arc.serial)).collect())
        };
        complete(&mut info, run, started, options, roots.given, roots.failures);
        walked.left_out.into_info(&mut info);
        tree_totals(&mut info, before, gained, lost);
        if monitor.interrupted() {
            return Err(Error::Interrupted);
        }
        let base = if base { Some(earlier()?) } else { None };
        let version = NewVersion { info, root, base, next_logid: walked.next_logid, next_dirno: walked.next_dirno };
        Ok((Contents { arcs, catalog, roots: Vec::new(), version: Some(version) }, resumed))
    })?;
    drop(index);
    let Applied { commit, report, appeared, left, not_removed } = committed.apply();
    if let Some(error) = not_removed {
        warn(format!("arcs that hold nothing that is used were not removed: {error}"));
    }
    if let (Some(sending), None | Some((LeftToDo::Checkpoint, _))) = (sending, &left) {
        sending.committed(&commit);
    }
    if let Some((_, error)) = &left {
        monitor.event(Event::Failure { path: b"", error });
    }
    let unreadable = tell(&report, monitor);
    merge_ledger(dir, monitor);
    let parity = lock.as_ref().map_or_else(Kept::default, |lock| keep_parity(dir, lock, monitor));
    drop(lock);
    std::thread::sleep(LATEST_LIFETIME.saturating_sub(appeared.elapsed()));
    let own = || commit.arcs.iter().filter(|arc| arc.name.version == run);
    let (arcs, arc_bytes) = (own().count() + 1, own().map(|arc| arc.arc_bytes).sum());
    let mut info = commit.version.unwrap_or_default();
    info.errors +=
        unreadable + settled_damage + inventory.failures + u64::from(left.is_some()) + parity.failed.len() as u64;
    let left_to_do = left.map(|(left, _)| left);
    Ok(Summary { version: Some(run), info, arc_bytes, arcs, base, resumed, left_to_do, parity })
}

/// Tells what of a catalog could not be read when it was applied; returns how much that was.
fn tell(report: &ApplyReport, monitor: &dyn Monitor) -> u64 {
    let errors = report.lost.iter().map(|lost| &lost.error).chain(report.unknown_arcs.iter().map(|(_, error)| error));
    errors.map(|error| monitor.event(Event::Failure { path: b"", error })).count() as u64
}

/// What mounts and selftests have noted becomes one segment. The version is there whatever comes of it.
fn merge_ledger(dir: &BackupDir, monitor: &dyn Monitor) {
    let warn = |what: String| monitor.event(Event::Warning { path: b"", what });
    let commits = dir.open_index().and_then(|index| index.commits());
    match commits.and_then(|commits| Ledger::merge(dir.own(), dir.keys(), &commits, crate::ledger::now_s())) {
        Ok(refused) => {
            refused
                .iter()
                .for_each(|refused| warn(format!("{}: not believed: {}", shown(&refused.path), refused.what)));
        }
        Err(error) => warn(format!("the ledger was not merged: {error}")),
    }
}

/// Makes the parity that is missing. The version is there whatever comes of it.
fn keep_parity(dir: &BackupDir, lock: &Lock, monitor: &dyn Monitor) -> Kept {
    let kept = dir.open_index().and_then(|index| parity::keep(dir, lock, &index, monitor));
    let kept = kept.unwrap_or_else(|error| Kept { failed: vec![error], ..Kept::default() });
    kept.failed.iter().for_each(|error| monitor.event(Event::Failure { path: b"", error }));
    if kept.left > 0 {
        let what = format!("{} got no parity yet: the next backup makes it", counted(kept.left, "arc"));
        monitor.event(Event::Warning { path: b"", what });
    }
    kept
}

/// Runs walk, workers and assembler until all steps are taken.
#[expect(clippy::too_many_arguments, reason = "the parts of a pipeline meet here, and only here")]
fn flow<'a, 'o>(
    dir: &BackupDir,
    dedup: &DedupTable,
    budget: &Budget,
    walk: Traverse<'_>,
    paths: &Paths,
    jobs: Receiver<Job>,
    steps: Receiver<Step>,
    mut assembler: Assembler<'a, 'o>,
) -> Result<(Assembler<'a, 'o>, Walked)> {
    let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16) + 2;
    std::thread::scope(|scope| {
        let pool: Vec<std::thread::ScopedJoinHandle<'_, ()>> = (0..workers)
            .map(|_| {
                let jobs = jobs.clone();
                let cutting = walk.cutting;
                let worker = Worker { keys: dir.keys(), dedup, cutting };
                std::thread::Builder::new().spawn_scoped(scope, move || worker.run(jobs))
            })
            .collect::<std::io::Result<_>>()
            .map_err(|e| Error::io("start a thread for", "the backup", &e))?;
        drop(jobs);
        let walker = spawn_walk(scope, walk, paths)?;
        let mut failed = None;
        for step in &steps {
            if let Err(e) = assembler.step(step) {
                failed = Some(e);
                break;
            }
        }
        drop(steps);
        budget.close();
        let walked = join(walker);
        for worker in pool {
            join(worker)?;
        }
        match failed {
            Some(e) => Err(e),
            None => Ok((assembler, walked??)),
        }
    })
}

/// What the walk has come to.
struct Walked {
    next_logid: u64,
    next_dirno: u64,
    left_out: LeftOut,
}

fn spawn_walk<'scope, 'env: 'scope>(
    scope: &'scope std::thread::Scope<'scope, 'env>,
    walk: Traverse<'env>,
    paths: &'env Paths,
) -> Result<std::thread::ScopedJoinHandle<'scope, Result<Walked>>> {
    let mut stack_bytes = WALK_STACK_BYTES;
    // A machine of little memory refuses the room, although most of it is never touched.
    while stack_bytes > MIN_WALK_STACK_BYTES
        && std::thread::Builder::new().stack_size(stack_bytes).spawn(|| ()).map(std::thread::JoinHandle::join).is_err()
    {
        stack_bytes /= 2;
    }
    std::thread::Builder::new()
        .stack_size(stack_bytes)
        .spawn_scoped(scope, move || {
            let mut walk = walk;
            let done = walk.run(paths);
            // Dropping the rest of `walk` ends the workers and the steps.
            let Traverse { next_logid, next_dirno, left_out, .. } = walk;
            done.map(|()| Walked { next_logid, next_dirno, left_out })
        })
        .map_err(|e| Error::io("start a thread for", "the walk", &e))
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> Result<T> {
    thread.join().map_err(|_| Error::SelfCheck { what: "a thread died".into() })
}

/// Says what a run would do.
fn dry(steps: Receiver<Step>, monitor: &dyn Monitor) -> VersionInfo {
    let mut info = VersionInfo::default();
    let mut count = |was: bool| if was { info.changed += 1 } else { info.new += 1 };
    let (mut removed, mut errors, mut bytes_read) = (0, 0, 0);
    for step in steps {
        match step {
            Step::WouldRead { head, size } => {
                monitor.event(Event::Path(&head.path));
                bytes_read = u64::saturating_add(bytes_read, size);
                count(head.was.is_some());
            }
            Step::Put { was, path, .. } => {
                monitor.event(Event::Path(&path));
                count(was.is_some());
            }
            Step::Enter { known: false, .. } => count(false),
            Step::Link { was: None, .. } => count(false),
            Step::Remove { totals, .. } => removed += totals.entries(),
            Step::Failed { path, error } => {
                errors += 1;
                monitor.event(Event::Failure { path: &path, error: &error });
            }
            Step::Incomplete { path, error } => {
                errors += 1;
                let error = Error::io("save all extended attributes of", live::path_of(&path), &error);
                monitor.event(Event::Failure { path: &path, error: &error });
            }
            Step::Warn { path, what } => monitor.event(Event::Warning { path: &path, what }),
            _ => {}
        }
    }
    (info.removed, info.errors, info.bytes_read) = (removed, errors, bytes_read);
    info
}

/// All relocations, some at a time: the time that it takes is theirs, whatever the counters say.
fn in_force(index: &Index) -> impl Iterator<Item = Result<(BlockId, BlockId)>> {
    const AT_ONCE: usize = 4096;
    let mut next = Some(BlockId(0));
    let page = move || {
        let found = index.relocations_from(next?, AT_ONCE);
        let last = found.as_ref().ok().filter(|moves| moves.len() == AT_ONCE).and_then(|moves| moves.last());
        next = last.filter(|(from, _)| *from < BlockId::MAX).map(|(from, _)| BlockId(from.0 + 1));
        let (moves, failed) = match found {
            Ok(moves) => (moves, None),
            Err(error) => (Vec::new(), Some(Err(error))),
        };
        Some(moves.into_iter().map(Ok).chain(failed))
    };
    std::iter::from_fn(page).flatten()
}

fn cutting(dir: &BackupDir, options: &Options) -> Cutting {
    match options.fixed_block {
        Some(block_bytes) => Cutting::Fixed { block_bytes },
        None => Cutting::Content { average_bytes: dir.config().block_size as u32, seed: dir.keys().chunker_seed() },
    }
}

fn complete(
    info: &mut VersionInfo,
    run: Version,
    started: crate::catalog::Timespec,
    options: &Options,
    paths: Vec<Vec<u8>>,
    failures: u64,
) {
    info.name = format!("{}-{run}", jiff::Timestamp::now().strftime("%Y-%m-%d-%H%M"));
    info.started = started;
    info.finished = read::now();
    info.tag = options.tag.clone();
    info.host = crate::os::process::hostname();
    info.paths = paths;
    info.errors += failures;
}

fn totals_of(newest: Option<&VersionRow>) -> Totals {
    newest.map_or_else(Totals::default, |row| Totals {
        files: row.info.files,
        dirs: row.info.dirs,
        others: row.info.others,
        bytes: row.info.tree_bytes,
    })
}

/// The tree's totals: those before, and what this run gained and lost.
fn tree_totals(info: &mut VersionInfo, before: Totals, gained: Totals, lost: Totals) {
    let sum = |before: u64, gained: u64, lost: u64| before.wrapping_add(gained).wrapping_sub(lost);
    info.files = sum(before.files, gained.files, lost.files);
    info.dirs = sum(before.dirs, gained.dirs, lost.dirs);
    info.others = sum(before.others, gained.others, lost.others);
    info.tree_bytes = before.bytes.wrapping_add(gained.bytes).wrapping_sub(lost.bytes);
}
