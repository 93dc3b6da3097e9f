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
use crate::crypto::FileHasher;
use crate::error::{Damage, Error, Place, Result};
use crate::findings::hits::Wrong;
use crate::findings::{Advice, MAX_HITS, Part, Spot};
use crate::ids::{BlockId, CopyId, Dirno, FrameNo, Logid, Version};
use crate::index::{ScanTable, Scanned, VersionRow};
use crate::ledger::Extent;
use crate::monitor::{Event, Progress};
use crate::store::{Heal, Store, StoreOptions, Wanted, Words};
use crate::sync::lock;
use crate::tree::{Found, Piece, SeekTo, Tree, View};

/// Verified blocks that are kept for files that share them.
pub const CACHE_BYTES: u64 = 128 << 20;
/// File states that are sorted by their first block, about 200 bytes each.
const BATCH_FILES: usize = 1 << 16;
/// Asked for in one go; the next one is decoded meanwhile.
const WINDOW_BYTES: u64 = 4 << 20;
/// Where the list of blocks has a hole, it is narrowed down to pieces of this size.
const GRAIN_BYTES: u64 = 64 << 10;
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
    /// By the place that the block is read from; a missing arc stands at its first.
    blocks: BTreeMap<BlockId, (Error, Cause)>,
    /// By the words of the error.
    troubles: BTreeMap<String, Trouble>,
    unlisted: u64,
}

struct Reading<'a> {
    exam: &'a Exam<'a>,
    tree: Tree,
    store: Store,
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
    let tree = Tree::new(exam.index.clone(), View::Whole);
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
    let store = open_store(exam, Heal::Off, CACHE_BYTES);
    let mut reading = Reading {
        exam,
        tree,
        store,
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
    report.blocks += reading.store.tally().summary().blocks_verified;
    report.not_checked.files += reading.unread.load(Relaxed);
    if matches!(walked, Err(Error::Interrupted)) {
        let done = reading.files.load(Relaxed) + reading.unread.load(Relaxed);
        report.not_checked.files += reading.expected.expected_files.saturating_sub(done);
    }
    reading.tell(report);
    walked
}

fn open_store(exam: &Exam<'_>, heal: Heal, cache_bytes: u64) -> Store {
    let ledger = Some(exam.ledger.clone());
    let options = StoreOptions { cache_bytes, heal, ledger, words: Words::Reader, ..StoreOptions::default() };
    Store::with_options(exam.dir.own(), exam.dir.keys().clone(), exam.index.clone(), options)
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
        let top = match self.tree.find(v, root) {
            Ok(top) => top,
            Err(Error::NoPath { .. }) => return Ok(false),
            Err(error) => {
                let hit = Hit { logid: Logid(0), path: root.to_vec(), versions: (v, v), bytes: 0..0 };
                tell(self.exam, error.clone(), Cause::of(&error), vec![hit]);
                return Ok(true);
            }
        };
        match top {
            Found::Node(logid, _) => self.meet(v, logid, root.to_vec())?,
            Found::Dir(dirno) => {
                let path = if root == b"/" { Vec::new() } else { root.to_vec() };
                self.below(v, before, dirno, path)?;
            }
        }
        Ok(true)
    }

    fn below(&mut self, v: Version, before: Option<Version>, dirno: Dirno, path: Vec<u8>) -> Result<()> {
        let mut open = vec![(dirno, path)];
        while let Some((dirno, path)) = open.pop() {
            if self.exam.monitor.interrupted() {
                return Err(Error::Interrupted);
            }
            if let Err(error) = self.directory(v, before, dirno, &path, &mut open) {
                if matches!(error, Error::Interrupted) {
                    return Err(error);
                }
                if self.lost_dirs.insert(dirno) {
                    let shown = if path.is_empty() { b"/".to_vec() } else { path };
                    let hit = Hit { logid: Logid(0), path: shown, versions: (v, v), bytes: 0..0 };
                    tell(self.exam, error.clone(), Cause::of(&error), vec![hit]);
                }
            }
        }
        Ok(())
    }

    fn directory(
        &mut self,
        v: Version,
        before: Option<Version>,
        dirno: Dirno,
        path: &[u8],
        open: &mut Vec<(Dirno, Vec<u8>)>,
    ) -> Result<()> {
        let mut listing = self.tree.list(v, dirno)?;
        loop {
            let page = listing.next_page(&self.tree)?;
            if page.is_empty() {
                return Ok(());
            }
            for listed in page {
                let entry = listed.entry;
                let path = [path, b"/", &entry.name].concat();
                let fresh = before.is_none_or(|before| entry.since > before);
                match entry.child {
                    Child::Node(logid) if fresh => self.meet(v, logid, path)?,
                    Child::Node(_) => {}
                    Child::Dir(child) => {
                        if fresh || self.changed(child, before, v)? {
                            open.push((child, path));
                        }
                    }
                }
            }
        }
    }

    /// Something in or below the directory changed after one version, up to another.
    fn changed(&self, dirno: Dirno, before: Option<Version>, v: Version) -> Result<bool> {
        let Some(before) = before else { return Ok(true) };
        for run in before.0 + 1..=v.0 {
            if self.tree.index().changed_in(Version(run), dirno)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn meet(&mut self, version: Version, logid: Logid, path: Vec<u8>) -> Result<()> {
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
        let first_block = match self.tree.index().node(logid) {
            Ok(node) => self.first_block(&node),
            // It is told about where it is read.
            Err(_) => BlockId(0),
        };
        self.waiting.push(Waiting { first_block, logid, path, version });
        if self.waiting.len() >= BATCH_FILES { self.read_waiting() } else { Ok(()) }
    }

    fn first_block(&self, node: &Node) -> BlockId {
        let pieces = self.tree.segments(node, 0, 1 << 20).unwrap_or_default();
        let first = pieces.iter().find_map(|piece| match piece {
            Piece::Data { block, .. } => Some(*block),
            Piece::Zero { .. } => None,
        });
        first.map_or(BlockId(0), |block| self.tree.index().location(block).unwrap_or(block))
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
        let node = match self.tree.node(file.logid) {
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
        let size = node.attr.size;
        let mut bad = Bad::default();
        let mut hasher = node.sha1.map(|_| FileHasher::default());
        let mut at = 0;
        while at < size {
            // Zeros that nobody hashes need not be looked at.
            if hasher.is_none()
                && let Ok(data) = self.tree.seek(node, at, SeekTo::Data)
            {
                let Some(data) = data else { break };
                at = data;
            }
            if self.exam.monitor.interrupted() {
                return Err(Error::Interrupted);
            }
            let len = WINDOW_BYTES.min(size - at);
            if at + len < size
                && let Ok(ahead) = self.tree.segments(node, at + len, WINDOW_BYTES.min(size - at - len))
            {
                self.store.prefetch(wanted(&ahead), Some(node.logid));
            }
            self.window(node, at, len, &mut hasher, &mut bad);
            at += len;
            self.progress(len);
        }
        match bad.error {
            Some(error) => {
                self.trouble(file, &error, bad.cause, &bad.ranges);
                return Ok(());
            }
            // The blocks are told, with all who use them.
            None if bad.blocks => {}
            None => {
                let found = hasher.map(FileHasher::finish);
                match node.sha1.zip(found) {
                    Some((expected, found)) if expected != found => {
                        let error = Error::FileHashMismatch { path: file.path.clone(), expected, found };
                        self.trouble(file, &error, None, std::slice::from_ref(&(0..size)));
                        return Ok(());
                    }
                    Some(_) => self.exam.ledger.file(node.logid, Extent::Hashed),
                    None => self.exam.ledger.file(node.logid, Extent::Whole),
                }
            }
        }
        self.files.fetch_add(1, Relaxed);
        Ok(())
    }

    fn window(&self, node: &Node, at: u64, len: u64, hasher: &mut Option<FileHasher>, bad: &mut Bad) {
        let pieces = match self.tree.segments(node, at, len) {
            Ok(pieces) => pieces,
            Err(error) if len <= GRAIN_BYTES => return self.note(bad, error, None, None, at..at + len),
            Err(_) => {
                let mut from = at;
                while from < at + len {
                    let part = GRAIN_BYTES.min(at + len - from);
                    self.window(node, from, part, hasher, bad);
                    from += part;
                }
                return;
            }
        };
        let all = self.store.blocks(&wanted(&pieces).collect::<Vec<_>>(), Some(node.logid));
        let mut blocks = all.unwrap_or_default().into_iter();
        let mut offset = at;
        for piece in &pieces {
            match *piece {
                Piece::Zero { len } => hasher.iter_mut().for_each(|hasher| zeros(hasher, len)),
                Piece::Data { block, block_len, start, len } => {
                    let found = match blocks.next() {
                        Some(found) => Ok(found),
                        None => self.store.block(block, block_len, Some(node.logid)),
                    };
                    let found = found.or_else(|error| {
                        let (again, cause) = self.second_look(node.logid, block, block_len, &error);
                        if self.damaged(block, &error, cause) {
                            bad.blocks = true;
                        } else {
                            self.note(bad, error.clone(), Some(block), Some(cause), offset..offset + u64::from(len));
                        }
                        again.ok_or(error)
                    });
                    let part =
                        |bytes: &[u8]| bytes.get(start as usize..start as usize + len as usize).map(<[u8]>::to_vec);
                    if let Some(bytes) = found.ok().and_then(|found| part(&found)) {
                        hasher.iter_mut().for_each(|hasher| hasher.update(&bytes));
                    }
                }
            }
            offset += piece.len();
        }
    }

    /// A stretch of a file that can't be read; what was accepted as lost hides nothing else.
    fn note(&self, bad: &mut Bad, error: Error, block: Option<BlockId>, cause: Option<Cause>, range: Range<u64>) {
        if self.exam.findings.accept(&error, None, block) {
            self.exam.findings.pass_over();
            bad.blocks = true;
        } else {
            bad.add(error, cause, range);
        }
    }

    /// Reads a damaged block past the page cache: was it the medium, or only the way from it?
    fn second_look(
        &self,
        file: Logid,
        block: BlockId,
        len: u32,
        error: &Error,
    ) -> (Option<std::sync::Arc<crate::arc::VerifiedBlock>>, Cause) {
        if !error.is_damage() || self.is_missing(block, error) {
            return (None, Cause::of(error));
        }
        let small = |heal| {
            let words = Words::Reader;
            let options = StoreOptions { cache_bytes: 0, heal, threads: 0, words, ..StoreOptions::default() };
            Store::with_options(self.exam.dir.own(), self.exam.dir.keys().clone(), self.exam.index.clone(), options)
        };
        let healed = small(Heal::On).block(block, len, Some(file)).ok();
        // The healing read made the kernel forget the range, so this one comes from the medium.
        let bare = small(Heal::Off).block(block, len, Some(file));
        let cause = if healed.is_some() && bare.is_ok() { Cause::Transient } else { Cause::of(error) };
        (healed, cause)
    }

    fn progress(&self, bytes: u64) {
        let bytes = self.bytes.fetch_add(bytes, Relaxed) + bytes;
        let (files, errors) = (self.files.load(Relaxed), lock(&self.wrongs).count());
        self.exam.monitor.progress(Progress { files, bytes, errors, ..self.expected });
    }

    /// The block's arc is known to be missing already.
    fn is_missing(&self, block: BlockId, error: &Error) -> bool {
        let first = BlockId::new(self.place_of(block).arc(), FrameNo(0));
        let known = lock(&self.wrongs).blocks.get(&first).is_some_and(|(error, _)| is_missing(error));
        known && is_missing(error)
    }

    fn place_of(&self, block: BlockId) -> BlockId {
        self.tree.index().location(block).unwrap_or(block)
    }

    /// Notes a damaged block by its place; false if the error is not about stored bytes.
    fn damaged(&self, block: BlockId, error: &Error, cause: Cause) -> bool {
        if !matches!(error, Error::Arc { .. }) {
            return false;
        }
        let place = self.place_of(block);
        let at = if is_missing(error) { BlockId::new(place.arc(), FrameNo(0)) } else { place };
        let mut wrongs = lock(&self.wrongs);
        let wrongs = &mut *wrongs;
        if let Some((_, known)) = wrongs.blocks.get_mut(&at) {
            // What a second read mends must not hide what it does not.
            *known = if *known == Cause::Transient { cause } else { *known };
        } else if wrongs.blocks.len() < MAX_PLACES {
            wrongs.blocks.insert(at, (error.clone(), cause));
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
        let Wrongs { blocks, troubles, unlisted } = std::mem::take(&mut *lock(&self.wrongs));
        self.exam.tell(Level::Files, self.folded(blocks), &mut report.notes);
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

    /// Neighbouring blocks with the same damage, and all of an arc that is missing or from where it is cut on, are one.
    fn folded(&self, blocks: BTreeMap<BlockId, (Error, Cause)>) -> Vec<Wrong> {
        let mut wrongs: Vec<Wrong> = Vec::new();
        for (place, (error, cause)) in blocks {
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
                    let place = Place { arc, frame: None, block: None, offset: 0 };
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
        (self.blocks.len() + self.troubles.len()) as u64 + self.unlisted
    }
}

/// Where a file is bad: ranges in order, not touching each other.
#[derive(Default)]
struct Bad {
    ranges: Vec<Range<u64>>,
    error: Option<Error>,
    cause: Option<Cause>,
    /// Some block is damaged.
    blocks: bool,
}

impl Bad {
    fn add(&mut self, error: Error, cause: Option<Cause>, range: Range<u64>) {
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
        // What a second read mends must not hide what it does not.
        if self.error.is_none() || (self.cause == Some(Cause::Transient) && cause != Some(Cause::Transient)) {
            (self.error, self.cause) = (Some(error), cause);
        }
    }
}

fn wanted(pieces: &[Piece]) -> impl Iterator<Item = Wanted> + '_ {
    pieces.iter().filter_map(|piece| match *piece {
        Piece::Data { block, block_len, .. } => Some(Wanted { block, len_bytes: block_len }),
        Piece::Zero { .. } => None,
    })
}

fn zeros(hasher: &mut FileHasher, len: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut left = len;
    while left > 0 {
        let part = left.min(ZEROS.len() as u64);
        hasher.update(ZEROS.get(..part as usize).unwrap_or_default());
        left -= part;
    }
}
