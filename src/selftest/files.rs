//! v5: a restore of everything that keeps nothing. Every file state is rebuilt through tree and store, and its whole-file
//! hash compared; directories are listed to their end, link targets and attributes decoded.
//!
//! Invariants: each state is read once, however many versions and names show it; batches of `BATCH_FILES` are read in the
//! order of their first blocks; memory is bounded by one batch, the cache and 4 KiB for each run of 32,768 states.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::{Cause, Exam, Finding, Hit, Level, Report, Scope};
use crate::catalog::{Child, Kind, Node};
use crate::error::{Damage, Error, Place, Result};
use crate::fetch::{Fetch, Fetched, Way};
use crate::findings::hits::Wrong;
use crate::findings::{Advice, MAX_HITS, Part, Spot};
use crate::ids::{BlockId, CopyId, Dirno, FrameNo, FramePlace, Logid, Version};
use crate::index::{Entry, Listed, ScanTable, Scanned, VersionRow};
use crate::ledger::Extent;
use crate::monitor::{Event, Progress};
use crate::reader::file::{Found as Read, Lost, join};
use crate::reader::walk::{Met, Walk};
use crate::reader::{self, Backup, Sha1, Sink};
use crate::store::{Heal, StoreOptions, Words};
use crate::sync::lock;
use crate::tree::{Found, Piece, Tree, View};

/// Verified blocks that are kept for files that share them.
pub const CACHE_BYTES: u64 = 128 << 20;
/// File states that are sorted by their first block, about 200 bytes each.
const BATCH_FILES: usize = 1 << 16;
/// Read of a file between two words of progress.
const STEP_BYTES: u64 = 1 << 20;
/// Damaged blocks, and other troubles, that are told apart; more are only counted.
const MAX_PLACES: usize = 200_000;

/// A file state that waits to be read.
struct Waiting {
    /// Orders the reads; files without blocks come first.
    first_block: BlockId,
    logid: Logid,
    path: Vec<u8>,
    version: Version,
}

/// What keeps files from being what was backed up and is no damage of a block: one error, and the files that met it.
struct Trouble {
    error: Error,
    cause: Cause,
    /// At most `MAX_HITS`.
    hits: Vec<Hit>,
    /// Files that are in `hits`, and all.
    listed: u64,
    count: u64,
}

/// What is wrong, before it is known by what names.
#[derive(Default)]
struct Wrongs {
    /// By the frame that blocks are read from; a missing arc stands at its first.
    frames: BTreeMap<FramePlace, (Error, Cause)>,
    /// By the words of the error.
    troubles: BTreeMap<String, Trouble>,
    unlisted: u64,
}

struct Reading<'a> {
    exam: &'a Exam<'a>,
    backup: Backup,
    /// For what that store refuses: it shows damage as it is.
    again: Fetch,
    /// By logid / 32,768: which states were met.
    met: HashMap<u64, Box<[u8; 4096]>>,
    lost_dirs: HashSet<Dirno>,
    waiting: Vec<Waiting>,
    wrongs: Mutex<Wrongs>,
    files: AtomicU64,
    /// Files that could not be read, for reasons that say nothing of their bytes.
    unread: AtomicU64,
    bytes: AtomicU64,
    expected: Progress,
    failed: Mutex<Option<Error>>,
}

pub(super) fn check(exam: &Exam<'_>, report: &mut Report) -> Result<()> {
    let tree = Tree::of(exam.dir, exam.index.clone(), View::Whole);
    let rows = match &exam.options.rev {
        Some(rev) => vec![tree.version(rev)?],
        None => match tree.versions() {
            Ok(rows) => rows,
            Err(error) => {
                tell(exam, error, Cause::Index, Vec::new());
                return Ok(());
            }
        },
    };
    let only = rows.first().filter(|_| exam.options.rev.is_some());
    let expected = if exam.monitor.wants_totals() { expected(exam, only) } else { Progress::default() };
    let versions: Vec<Version> = rows.iter().map(|row| row.version).collect();
    let (ledger, words) = (Some(exam.ledger.clone()), Words::Reader);
    let store = StoreOptions { cache_bytes: CACHE_BYTES, heal: Heal::Off, ledger, words, ..StoreOptions::default() };
    let (dir, index) = (exam.dir, exam.index.clone());
    let mut reading = Reading {
        exam,
        backup: Backup::of(dir, index.clone(), reader::Options { store, ..reader::Options::default() }),
        again: Fetch::new(dir.home(), Vec::new(), dir.keys().clone(), index, Heal::On),
        met: HashMap::new(),
        lost_dirs: HashSet::new(),
        waiting: Vec::new(),
        wrongs: Mutex::default(),
        files: AtomicU64::new(0),
        unread: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        expected,
        failed: Mutex::default(),
    };
    let roots = match &exam.options.scope {
        Scope::Paths(paths) => paths.clone(),
        _ => vec![b"/".to_vec()],
    };
    let walked = reading.all(&roots, &versions);
    report.files += reading.files.load(Relaxed);
    report.bytes += reading.bytes.load(Relaxed);
    report.blocks += reading.backup.store.tally().summary().blocks_verified;
    report.not_checked.files += reading.unread.load(Relaxed);
    if matches!(walked, Err(Error::Interrupted)) {
        let done = reading.files.load(Relaxed) + reading.unread.load(Relaxed);
        report.not_checked.files += reading.expected.expected_files.saturating_sub(done);
    }
    reading.tell(report);
    walked
}

/// Files and bytes that will be read: of all states, those of removed versions included, or of one version; nothing where
/// that can't be told beforehand.
fn expected(exam: &Exam<'_>, only: Option<&VersionRow>) -> Progress {
    let mut sum = Progress::default();
    match (&exam.options.scope, only, &exam.due) {
        (_, _, Some(due)) => sum.expected_bytes = due.bytes,
        (Scope::Paths(_), ..) => {}
        (_, Some(row), _) => {
            (sum.expected_files, sum.expected_bytes) = (row.info.files + row.info.others, row.info.tree_bytes);
        }
        (_, None, None) => {
            let Ok(rows) = exam.index.snapshot() else { return sum };
            let mut nodes = rows.cursor(ScanTable::Nodes);
            while let Some(scanned) = nodes.take() {
                if let Scanned::Row(row) = scanned
                    && let Ok((_, node)) = rows.open_node(&row)
                {
                    sum.expected_files += 1;
                    let bytes = if node.attr.kind == Kind::File { node.attr.size } else { 0 };
                    sum.expected_bytes = sum.expected_bytes.saturating_add(bytes);
                }
            }
        }
    }
    sum
}

fn tell(exam: &Exam<'_>, error: Error, cause: Cause, hits: Vec<Hit>) {
    let advice = Advice::of_listing(cause);
    exam.findings.add(Finding { advice, ..Finding::new(Level::Files, cause, error).with_hits(hits) });
}

impl Reading<'_> {
    /// Reads what is at and below some paths, in all of some versions.
    fn all(&mut self, roots: &[Vec<u8>], versions: &[Version]) -> Result<()> {
        for root in roots {
            let mut found = false;
            let mut before = None;
            for v in versions {
                found |= self.version(*v, before, root)?;
                before = Some(*v);
            }
            if let (false, Some(newest)) = (found, versions.last()) {
                return Err(Error::NoPath { path: root.clone(), version: *newest });
            }
        }
        self.read_waiting()
    }

    /// Collects what is at and below a path in a version and was not so in the version looked at before. False if the
    /// path is not there.
    fn version(&mut self, v: Version, before: Option<Version>, root: &[u8]) -> Result<bool> {
        let top = match self.backup.tree.find(v, root) {
            Ok(top) => top,
            Err(Error::NoPath { .. }) => return Ok(false),
            Err(error) => {
                self.lost(v, root, error);
                return Ok(true);
            }
        };
        match top {
            Found::Node(logid, _) => self.meet(v, logid, root)?,
            Found::Dir(dirno) => self.below(v, before, dirno, if root == b"/" { b"" } else { root })?,
        }
        Ok(true)
    }

    fn below(&mut self, v: Version, since: Option<Version>, dirno: Dirno, path: &[u8]) -> Result<()> {
        let (tree, monitor) = (self.backup.tree.clone(), self.exam.monitor);
        let walk = Walk { tree: &tree, version: v, since, stop: &|| monitor.interrupted() };
        walk.below(dirno, path, &mut |path, met| match met {
            Met::Entry(Listed { entry: Entry { child: Child::Node(logid), .. }, .. }) => self.meet(v, *logid, path),
            Met::Entry(_) => Ok(()),
            Met::Lost(dirno, error) => {
                if self.lost_dirs.insert(dirno) {
                    self.lost(v, path, error);
                }
                Ok(())
            }
        })
    }

    /// Tells of a directory that can't be looked at.
    fn lost(&self, v: Version, path: &[u8], error: Error) {
        let path = if path.is_empty() { b"/".to_vec() } else { path.to_vec() };
        let hit = Hit { logid: Logid(0), path, versions: (v, v), bytes: 0..0 };
        let cause = Cause::of(&error);
        tell(self.exam, error, cause, vec![hit]);
    }

    fn meet(&mut self, version: Version, logid: Logid, path: &[u8]) -> Result<()> {
        if self.exam.due.as_ref().is_some_and(|due| !due.file(logid)) {
            return Ok(());
        }
        let part = self.met.entry(logid.0 >> 15).or_insert_with(|| Box::new([0; 4096]));
        let at = logid.0 & 0x7fff;
        let Some(byte) = part.get_mut((at >> 3) as usize) else { return Ok(()) };
        if *byte & 1 << (at & 7) != 0 {
            return Ok(());
        }
        *byte |= 1 << (at & 7);
        let first_block = match self.backup.tree.index().node(logid) {
            Ok(node) => self.first_block(&node),
            // It is told about where it is read.
            Err(_) => BlockId(0),
        };
        self.waiting.push(Waiting { first_block, logid, path: path.to_vec(), version });
        if self.waiting.len() >= BATCH_FILES { self.read_waiting() } else { Ok(()) }
    }

    fn first_block(&self, node: &Node) -> BlockId {
        let pieces = self.backup.tree.segments(node, 0, 1 << 20).unwrap_or_default();
        let first = pieces.iter().find_map(|piece| match piece {
            Piece::Data { block, .. } => Some(*block),
            Piece::Zero { .. } => None,
        });
        first.map_or(BlockId(0), |block| self.backup.tree.index().location(block).unwrap_or(block))
    }

    /// Reads a batch, on all cores.
    fn read_waiting(&mut self) -> Result<()> {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_unstable_by_key(|file| (file.first_block, file.logid));
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let this = &*self;
        let work = || {
            while let Some(file) = waiting.get(next.fetch_add(1, Relaxed)) {
                if stop.load(Relaxed) || this.exam.monitor.interrupted() {
                    return;
                }
                if let Err(error) = this.file(file) {
                    lock(&this.failed).get_or_insert(error);
                    stop.store(true, Relaxed);
                }
            }
        };
        std::thread::scope(|scope| {
            // Where no more threads can be had, this one does it all.
            (1..threads).for_each(|_| drop(std::thread::Builder::new().spawn_scoped(scope, work)));
            work();
        });
        let failed = lock(&self.failed).take();
        match failed {
            Some(error) => Err(error),
            None if self.exam.monitor.interrupted() => Err(Error::Interrupted),
            None => Ok(()),
        }
    }

    fn file(&self, file: &Waiting) -> Result<()> {
        self.exam.monitor.event(Event::Path(&[format!("{} ", file.logid.0).as_bytes(), &file.path].concat()));
        let node = match self.backup.tree.node(file.logid) {
            Ok(node) => node,
            Err(error) => {
                self.trouble(file, &error, None, &[]);
                return Ok(());
            }
        };
        if node.attr.kind == Kind::File {
            return self.content(file, &node);
        }
        if node.attr.kind == Kind::Symlink && node.target.len() as u64 != node.attr.size {
            let what = format!("the target of link {} does not have its length", file.logid.0);
            let error = Error::IndexRow { path: self.exam.index.path().to_path_buf(), what };
            self.trouble(file, &error, None, &[]);
            return Ok(());
        }
        self.files.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Reads a file from its start to its end, past what is damaged.
    fn content(&self, file: &Waiting, node: &Node) -> Result<()> {
        let mut looked = Looked { reading: self, bad: Bad::default(), bytes: 0 };
        let found = reader::file::read(&self.backup, node, Sha1::Compare, &mut looked);
        self.progress(looked.bytes);
        match (looked.bad, found?) {
            (Bad { error: Some(error), cause, ranges, .. }, _) => {
                self.trouble(file, &error, cause, &ranges);
                return Ok(());
            }
            (_, Read::WrongHash { expected, found }) => {
                let error = Error::FileHashMismatch { path: file.path.clone(), expected, found };
                self.trouble(file, &error, None, std::slice::from_ref(&(0..node.attr.size)));
                return Ok(());
            }
            // The blocks are told, with all who use them.
            (_, Read::Damaged) => {}
            (_, Read::Hashed) => self.exam.ledger.file(node.logid, Extent::Hashed),
            (_, Read::Whole) => self.exam.ledger.file(node.logid, Extent::Whole),
        }
        self.files.fetch_add(1, Relaxed);
        Ok(())
    }

    /// A stretch of a file that can't be read; what was accepted as lost hides nothing else.
    fn note(&self, bad: &mut Bad, error: Error, block: Option<BlockId>, cause: Option<Cause>, range: Range<u64>) {
        if self.exam.findings.accept(&error, None, block) {
            self.exam.findings.pass_over();
        } else {
            bad.add(error, cause, range);
        }
    }

    /// Reads a damaged block past the page cache: was it the medium, or only the way from it?
    fn second_look(&self, block: BlockId, error: &Error) -> Cause {
        if !error.is_damage() || self.is_missing(block, error) {
            return Cause::of(error);
        }
        let mut is_right = false;
        if let Ok(asked) = self.again.locate(block) {
            self.again.near(&[asked], &mut |_, _, outcome| {
                is_right = matches!(outcome, Ok(Fetched { way: Way::First | Way::Again { .. }, .. }));
            });
        }
        if is_right { Cause::Transient } else { Cause::of(error) }
    }

    fn progress(&self, bytes: u64) {
        let bytes = self.bytes.fetch_add(bytes, Relaxed) + bytes;
        let (files, errors) = (self.files.load(Relaxed), lock(&self.wrongs).count());
        self.exam.monitor.progress(Progress { files, bytes, errors, ..self.expected });
    }

    /// The block's arc is known to be missing already.
    fn is_missing(&self, block: BlockId, error: &Error) -> bool {
        let first = FramePlace::new(self.place_of(block).arc(), FrameNo(0));
        let known = lock(&self.wrongs).frames.get(&first).is_some_and(|(error, _)| is_missing(error));
        known && is_missing(error)
    }

    fn place_of(&self, block: BlockId) -> FramePlace {
        self.backup.tree.index().location(block).unwrap_or(block).place()
    }

    /// Notes a damaged frame; false if the error is not about stored bytes.
    fn damaged(&self, block: BlockId, error: &Error, cause: Cause) -> bool {
        if !matches!(error, Error::Arc { .. }) {
            return false;
        }
        let place = self.place_of(block);
        let at = if is_missing(error) { FramePlace::new(place.arc(), FrameNo(0)) } else { place };
        let mut wrongs = lock(&self.wrongs);
        let wrongs = &mut *wrongs;
        if let Some((_, known)) = wrongs.frames.get_mut(&at) {
            // What a second read mends must not hide what it does not.
            *known = if *known == Cause::Transient { cause } else { *known };
        } else if wrongs.frames.len() < MAX_PLACES {
            wrongs.frames.insert(at, (error.clone(), cause));
        } else {
            wrongs.unlisted += 1;
        }
        true
    }

    /// Notes what is wrong with a file apart from its blocks. Files with the same trouble are told together.
    fn trouble(&self, file: &Waiting, error: &Error, cause: Option<Cause>, ranges: &[Range<u64>]) {
        let cause = cause.unwrap_or_else(|| Cause::of(error));
        let met = if cause == Cause::Unchecked { &self.unread } else { &self.files };
        met.fetch_add(1, Relaxed);
        let text = error.to_string();
        let mut wrongs = lock(&self.wrongs);
        if wrongs.troubles.len() >= MAX_PLACES && !wrongs.troubles.contains_key(&text) {
            wrongs.unlisted += 1;
            return;
        }
        let new = || Trouble { error: error.clone(), cause, hits: Vec::new(), listed: 0, count: 0 };
        let trouble = wrongs.troubles.entry(text).or_insert_with(new);
        trouble.count += 1;
        let (logid, versions) = (file.logid, (file.version, file.version));
        let hit = |bytes: &Range<u64>| Hit { logid, path: file.path.clone(), versions, bytes: bytes.clone() };
        let ranges = if ranges.is_empty() { std::slice::from_ref(&(0..0)) } else { ranges };
        let room = MAX_HITS.saturating_sub(trouble.hits.len());
        trouble.hits.extend(ranges.iter().take(room).map(hit));
        trouble.listed += u64::from(room > 0);
    }

    /// Hands over what was found: each damaged place once, each trouble once, with the files that they hit.
    fn tell(&self, report: &mut Report) {
        let Wrongs { frames, troubles, unlisted } = std::mem::take(&mut *lock(&self.wrongs));
        self.exam.tell(Level::Files, self.folded(frames), &mut report.notes, None);
        let logids: HashSet<Logid> = troubles.values().flat_map(|trouble| &trouble.hits).map(|hit| hit.logid).collect();
        let stop = || self.exam.monitor.interrupted();
        let names = match logids.is_empty() {
            true => Default::default(),
            false => self.exam.index.names(&logids, MAX_HITS, &stop).unwrap_or_default(),
        };
        for Trouble { error, cause, hits: met, listed, count } in troubles.into_values() {
            let mut hits = Vec::new();
            for hit in met {
                match names.get(&hit.logid).filter(|(names, _)| !names.is_empty()) {
                    Some((names, _)) => hits.extend(names.iter().map(|name| {
                        let (path, versions) = (name.path.clone(), name.versions);
                        Hit { path, versions, ..hit.clone() }
                    })),
                    // It is where it was met.
                    None => hits.push(hit),
                }
            }
            let finding = Finding::new(Level::Files, cause, error).with_hits(hits);
            self.exam.findings.add(Finding { hits_total: finding.hits_total + (count - listed), ..finding });
        }
        self.exam.findings.add_unlisted(unlisted);
    }

    /// Neighbouring frames with the same damage, and all of an arc that is missing or from where it is cut on, are one.
    fn folded(&self, frames: BTreeMap<FramePlace, (Error, Cause)>) -> Vec<Wrong> {
        let mut wrongs: Vec<Wrong> = Vec::new();
        for (place, (error, cause)) in frames {
            let (serial, no) = (place.arc(), place.frame().0);
            if let Some(Wrong { error: before, cause: same, frames: Some((arc, first, end)), spot }) = wrongs.last_mut()
                && (*arc, *end >= no, before.code(), *same) == (serial, true, error.code(), cause)
            {
                *end = (*end).max(no + 1);
                let first = FrameNo(*first);
                if let Part::Frames { count, .. } = &mut spot.part {
                    *count = *end - first.0;
                }
                continue;
            }
            let all = || self.exam.index.arc(serial).map_or(no + 1, |row| row.entry.frames.max(no + 1));
            let (error, part, end) = match error {
                Error::Arc { place: Place { arc, .. }, damage: Damage::Missing } => {
                    let place = Place::in_arc(arc, 0);
                    (Error::Arc { place, damage: Damage::Missing }, Part::Whole, all())
                }
                error @ Error::Arc { damage: Damage::Truncated { .. }, .. } => {
                    let end = all();
                    (error, Part::Frames { first: FrameNo(no), count: end - no }, end)
                }
                error => (error, Part::Frames { first: FrameNo(no), count: 1 }, no + 1),
            };
            let spot = Spot { copy: CopyId::LOCAL, serial: Some(serial), part };
            wrongs.push(Wrong { error, cause, spot, frames: Some((serial, no, end)) });
        }
        wrongs
    }
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Arc { damage: Damage::Missing, .. })
}

impl Wrongs {
    fn count(&self) -> u64 {
        (self.frames.len() + self.troubles.len()) as u64 + self.unlisted
    }
}

/// Takes a file and keeps nothing.
struct Looked<'a> {
    reading: &'a Reading<'a>,
    bad: Bad,
    /// Not yet told as progress.
    bytes: u64,
}

impl Sink for Looked<'_> {
    fn data(&mut self, _: u64, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn zeros(&mut self, _: u64, len: u64) -> Result<()> {
        self.bytes += len;
        Ok(())
    }

    fn lost(&mut self, Lost { range, block, error }: Lost) -> Result<()> {
        self.bytes += range.end - range.start;
        let reading = self.reading;
        let Some(block) = block else {
            reading.note(&mut self.bad, error, None, None, range);
            return Ok(());
        };
        let cause = reading.second_look(block.0, &error);
        if !reading.damaged(block.0, &error, cause) {
            reading.note(&mut self.bad, error, Some(block.0), Some(cause), range);
        }
        Ok(())
    }

    fn go_on(&mut self, _: u64) -> Result<()> {
        if self.reading.exam.monitor.interrupted() {
            return Err(Error::Interrupted);
        }
        if self.bytes >= STEP_BYTES {
            self.reading.progress(std::mem::take(&mut self.bytes));
        }
        Ok(())
    }
}

/// Where a file is bad: ranges in order, not touching each other.
#[derive(Default)]
struct Bad {
    ranges: Vec<Range<u64>>,
    error: Option<Error>,
    cause: Option<Cause>,
}

impl Bad {
    fn add(&mut self, error: Error, cause: Option<Cause>, range: Range<u64>) {
        join(&mut self.ranges, range);
        // What a second read mends must not hide what it does not.
        if self.error.is_none() || (self.cause == Some(Cause::Transient) && cause != Some(Cause::Transient)) {
            (self.error, self.cause) = (Some(error), cause);
        }
    }
}
