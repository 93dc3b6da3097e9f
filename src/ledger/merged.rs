//! All segments of a backup dir as one answer: when was this frame, this file, last proven.
//!
//! Invariants: what does not authenticate is named and not believed, what stands before it in its segment is; what was
//! noted in another history counts for nothing, and a proof that is too old, or from a future that no clock error
//! explains, is none; memory is bounded (`MAX_…`). Merging loses nothing of this history at any cut: the merged segment has
//! its name before the first of those that it replaces is removed.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufWriter, Write};

use super::files::{Refused, list, new_header, of_history, read_records, segment_name};
use super::list::{self as list_of, Found};
use super::places::Places;
use super::segment::seal_batches;
use super::spans::{Span, Spans};
use super::{Damage, Extent, Files, Flip, Frames, How, Proof, Record, Run, Session, now_s};
use crate::crypto::Keys;
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, CopyId, FrameNo, FramePlace, Logid, SegmentId};
use crate::index::{Commits, Head};
use crate::os::lock;
use crate::own::OwnDir;

/// Directory of the segments in a backup dir.
pub const LEDGER_DIR: &str = "ledger";
/// A merged segment before it is whole.
const TEMPORARY: &str = "merged.tmp";
/// A proof is worth nothing after 400 days.
pub const PROOF_MAX_AGE_S: u64 = 400 * 86_400;
/// A proof from further ahead than this was made by a clock that was wrong.
const MAX_AHEAD_S: u64 = 86_400;
/// Intervals of frames for each copy and way of reading, about 50 bytes each.
const MAX_FRAME_SPANS: usize = 2 << 20;
/// Intervals of files for each extent.
const MAX_FILE_SPANS: usize = 512 << 10;
/// Selftests, sessions and flips that are remembered, the newest; damaged places.
const MAX_EVENTS: usize = 4096;
const MAX_PLACES: usize = 100_000;
/// Segments come and go while they are listed.
const LISTINGS: usize = 4;

/// What is known, what of it is refused, and what is missing.
type Loaded = (Ledger, Vec<Refused>, Vec<Refused>);

/// What all segments say together.
#[derive(Debug)]
pub struct Ledger {
    now_s: u64,
    /// Proofs from before do not count.
    doubt_s: u64,
    frames: HashMap<(CopyId, How), Spans>,
    files: BTreeMap<Extent, Spans>,
    places: Places,
    runs: Vec<Run>,
    open: Vec<Damage>,
    flips: Vec<Flip>,
    sessions: Vec<Session>,
    being_written: usize,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            now_s: 0,
            doubt_s: 0,
            frames: HashMap::new(),
            files: BTreeMap::new(),
            places: Places::new(MAX_PLACES),
            runs: Vec::new(),
            open: Vec::new(),
            flips: Vec::new(),
            sessions: Vec::new(),
            being_written: 0,
        }
    }
}

impl Ledger {
    /// Reads all segments, of which counts what was noted in the history that has these commits; those that don't
    /// authenticate are named and not believed.
    pub fn load(dir: &OwnDir, keys: &Keys, commits: &Commits) -> Result<(Ledger, Vec<Refused>)> {
        Ledger::load_at(dir, keys, commits, now_s())
    }

    /// As `load`, by another clock.
    pub fn load_at(dir: &OwnDir, keys: &Keys, commits: &Commits, now_s: u64) -> Result<(Ledger, Vec<Refused>)> {
        let Some(dir) = dir.sub(LEDGER_DIR)? else { return Ok((Ledger::empty(now_s), Vec::new())) };
        // A merge may have replaced what was just listed: then the proofs are in a segment that was not.
        for _ in 1..LISTINGS {
            if let Some((ledger, refused, missing)) = Ledger::load_listed(&dir, keys, commits, now_s)?
                && missing.is_empty()
            {
                return Ok((ledger, refused));
            }
        }
        let Some((mut ledger, mut refused, missing)) = Ledger::load_listed(&dir, keys, commits, now_s)? else {
            return Ok((Ledger::empty(now_s), Vec::new()));
        };
        if !missing.is_empty() {
            ledger.doubt(now_s);
            refused.extend(missing);
        }
        Ok((ledger, refused))
    }

    /// Knows nothing yet.
    pub fn empty(now_s: u64) -> Ledger {
        Ledger { now_s, ..Ledger::default() }
    }

    /// What these records say together.
    pub fn of(records: impl IntoIterator<Item = Record>, now_s: u64) -> Ledger {
        let mut ledger = Ledger::empty(now_s);
        records.into_iter().for_each(|record| ledger.take(record));
        ledger.settle();
        ledger
    }

    /// Nothing that was proven until now counts: what is missing may have told that it is damaged since.
    fn doubt(&mut self, now_s: u64) {
        (self.frames, self.files, self.doubt_s) = (HashMap::new(), BTreeMap::new(), now_s);
    }

    /// None when a segment that was there is gone. What is refused, and what is missing.
    fn load_listed(dir: &OwnDir, keys: &Keys, commits: &Commits, now_s: u64) -> Result<Option<Loaded>> {
        let mut known = Found::read(dir, keys);
        let mut ledger = Ledger { doubt_s: known.list.doubt_s, ..Ledger::empty(now_s) };
        let mut refused = Vec::new();
        for name in list(dir)? {
            let path = dir.path_of(&name);
            let file = match dir.read(&name) {
                Ok(file) => file,
                Err(Error::Io { errno: libc::ENOENT, .. }) => return Ok(None),
                Err(_) => {
                    refused.push(Refused { path, what: "it cannot be opened" });
                    continue;
                }
            };
            if !lock::try_shared(&file).unwrap_or(true) {
                ledger.being_written += 1;
            }
            let each = of_history(commits, |record| ledger.take(record));
            let (batches, what) = read_records(&file, Some(&name), keys, each);
            known.is_there(&name, batches);
            refused.extend(what.map(|what| Refused { path, what }));
        }
        ledger.settle();
        let missing = known.missing(dir);
        Ok(Some((ledger, refused, missing)))
    }

    /// Makes one segment, of the newest of these commits, of all that no process is writing to. Only for the holder of the
    /// writer's lock.
    ///
    /// What is refused is kept as `.bad`; what is of another history is dropped.
    pub fn merge(dir: &OwnDir, keys: &Keys, commits: &Commits, now_s: u64) -> Result<Vec<Refused>> {
        let (Some(dir), Some(head)) = (dir.sub(LEDGER_DIR)?, commits.newest()) else { return Ok(Vec::new()) };
        let mut known = Found::read(&dir, keys);
        let mut ledger = Ledger { doubt_s: known.list.doubt_s, ..Ledger::empty(now_s) };
        let (mut merged, mut refused) = (Vec::new(), Vec::new());
        for name in list(&dir)? {
            let Ok(file) = dir.read(&name) else { continue };
            if !lock::try_exclusive(&file).unwrap_or(false) {
                // It is there, and whole for all that can be told while it grows.
                known.is_there(&name, u32::MAX);
                continue;
            }
            let each = of_history(commits, |record| ledger.take(record));
            let (batches, what) = read_records(&file, Some(&name), keys, each);
            known.is_there(&name, batches);
            refused.extend(what.map(|what| Refused { path: dir.path_of(&name), what }));
            merged.push((name, file));
        }
        ledger.settle();
        let missing = known.missing(&dir);
        if !missing.is_empty() {
            ledger.doubt(now_s);
            refused.extend(missing);
        }
        if merged.len() < 2 && refused.is_empty() {
            return Ok(refused);
        }
        let (id, batches) = ledger.write(&dir, keys, head)?;
        list_of::update(&dir, keys, now_s, |list| {
            list.segments.retain(|id, _| merged.iter().all(|(name, _)| *name != segment_name(*id)));
            list.segments.insert(id, batches);
            Ok(())
        })?;
        for (name, _locked) in merged {
            match refused.iter().any(|refused| refused.path == dir.path_of(&name)) {
                true => dir.rename(&name, format!("{name}.bad"))?,
                false => dir.remove_if_there(&name)?,
            }
        }
        dir.sync()?;
        Ok(refused)
    }

    /// Writes what is known as a new segment, durably.
    fn write(&self, dir: &OwnDir, keys: &Keys, head: Head) -> Result<(SegmentId, u32)> {
        let temporary = dir.path_of(TEMPORARY);
        let failed = |error: io::Error| Error::io("write", &temporary, &error);
        let header = new_header().map_err(failed)?;
        let cipher = keys.segment_cipher(header.id, &header.salt);
        dir.remove_if_there(TEMPORARY)?;
        let mut out = BufWriter::new(dir.create(TEMPORARY, 0o600)?);
        out.write_all(&header.encode(keys)).map_err(failed)?;
        let records = std::iter::once(Record::History(head)).chain(self.records());
        let batches = seal_batches(&cipher, 0, records, |bytes| out.write_all(bytes)).map_err(failed)?;
        out.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
        dir.rename(TEMPORARY, segment_name(header.id))?;
        dir.sync()?;
        Ok((header.id, batches))
    }

    /// Adds what a segment, or a writer, says; `settle` follows.
    pub(super) fn take(&mut self, record: Record) {
        let counts = |when_s: u64| {
            when_s >= self.doubt_s
                && when_s.saturating_add(PROOF_MAX_AGE_S) >= self.now_s
                && when_s <= self.now_s.saturating_add(MAX_AHEAD_S)
        };
        match record {
            Record::Frames(frames) => {
                if counts(frames.proof.when_s) {
                    let start = FramePlace::new(frames.arc, frames.first).0;
                    let Proof { when_s, how, by } = frames.proof;
                    let spans = self.frames.entry((frames.copy, how)).or_insert_with(|| Spans::new(MAX_FRAME_SPANS));
                    spans.insert(Span { start, end: start + u64::from(frames.count), when_s, by });
                }
            }
            Record::Files(Files { first, count, extent, when_s, by }) => {
                if counts(when_s) {
                    let spans = self.files.entry(extent).or_insert_with(|| Spans::new(MAX_FILE_SPANS));
                    spans.insert(Span { start: first.0, end: first.0.saturating_add(count), when_s, by });
                }
            }
            Record::Damage(damage) => self.places.take(damage),
            Record::Run(run) => keep_newest(&mut self.runs, run, |run| run.when_s),
            Record::Listed(_) | Record::History(_) => {}
            Record::Flip(flip) => keep_newest(&mut self.flips, flip, |flip| flip.when_s),
            Record::Session(session) => {
                // A session is told again as it goes on, and its counts only grow.
                let done = |session: &Session| (session.bytes_read, session.dirs_listed, session.seconds);
                let same = |known: &&mut Session| (known.started_s, known.by) == (session.started_s, session.by);
                match self.sessions.iter_mut().find(same) {
                    Some(known) if done(known) > done(&session) => {}
                    Some(known) => *known = session,
                    None => keep_newest(&mut self.sessions, session, |session| session.started_s),
                }
            }
        }
    }

    /// Brings what depends on several records up to date.
    pub(super) fn settle(&mut self) {
        self.runs.sort_by_key(|run| run.when_s);
        self.sessions.sort_by_key(|session| session.started_s);
        self.flips.sort_by_key(|flip| flip.when_s);
        let open: Vec<Damage> = self.places.iter().filter(|damage| !damage.mended).cloned().collect();
        for damage in &open {
            self.mended_since(damage).into_iter().for_each(|mended| self.places.take(mended));
        }
        // Kept for a while: another segment may still say that the place is damaged.
        let now_s = self.now_s;
        let recent = |when_ms: u64| (when_ms / 1000).saturating_add(PROOF_MAX_AGE_S) >= now_s;
        self.places.retain(|damage| !damage.mended || recent(damage.when_ms));
        self.open = self.places.iter().filter(|damage| !damage.mended).cloned().collect();
    }

    /// What of some damage was proven to be right since: the frames themselves, or for a missing arc anything in it.
    fn mended_since(&self, damage: &Damage) -> Vec<Damage> {
        let mended = |when_s: u64| Damage { when_ms: when_s.saturating_mul(1000), mended: true, ..damage.clone() };
        let later = |proof: &Proof| proof.when_s.saturating_mul(1000) > damage.when_ms;
        let Some(first) = damage.frame else {
            let of_arc = |how| self.proven(damage.copy, how).filter(|frames| frames.arc == damage.arc);
            let proofs = [How::Read, How::Medium].into_iter().flat_map(of_arc).map(|frames| frames.proof);
            let proof = if damage.is_absence() { proofs.filter(later).max_by_key(|proof| proof.when_s) } else { None };
            return proof.map(|proof| mended(proof.when_s)).into_iter().collect();
        };
        let mut found: Vec<Damage> = Vec::new();
        let (mut at, end) = (first.0, first.0.saturating_add(damage.count));
        while at < end {
            // Frames up to the next one whose proofs may be others, however many there are.
            let place = FramePlace::new(damage.arc, FrameNo(at)).0;
            let layers = [How::Medium, How::Read].into_iter().filter_map(|how| self.frames.get(&(damage.copy, how)));
            let change = layers.filter_map(|spans| spans.change_behind(place)).min();
            let count = change.map_or(end - at, |change| u64::from(end - at).min(change - place) as u32);
            if let Some(proof) = self.proof(damage.arc, damage.copy, FrameNo(at), How::Read).filter(later) {
                let some = Damage { frame: Some(FrameNo(at)), count, ..mended(proof.when_s) };
                match found.last_mut() {
                    Some(last) if last.when_ms == some.when_ms && last.end() == at => last.count += count,
                    _ => found.push(some),
                }
            }
            at += count;
        }
        found
    }

    /// The newest proof of a frame that was read at least in this way; none if it was found damaged since.
    pub fn frame(&self, arc: ArcSerial, copy: CopyId, no: FrameNo, how: How) -> Option<Proof> {
        if self.is_damaged(arc, copy, no) { None } else { self.proof(arc, copy, no, how) }
    }

    /// As `frame`, whatever was found since.
    fn proof(&self, arc: ArcSerial, copy: CopyId, no: FrameNo, how: How) -> Option<Proof> {
        let at = FramePlace::new(arc, no).0;
        let of = |how: How| {
            let span = self.frames.get(&(copy, how))?.get(at)?;
            Some(Proof { when_s: span.when_s, how, by: span.by })
        };
        match how {
            How::Medium => of(How::Medium),
            How::Read => [of(How::Medium), of(How::Read)].into_iter().flatten().max_by_key(|proof| proof.when_s),
        }
    }

    /// All frames of a copy that were proven in exactly this way, in the order of the arcs.
    pub fn proven(&self, copy: CopyId, how: How) -> impl Iterator<Item = Frames> {
        let spans = self.frames.get(&(copy, how)).into_iter().flat_map(Spans::iter);
        spans.map(move |span| {
            let first = FramePlace(span.start);
            // A record ends within its arc, which has far fewer frames than numbers.
            let count = (span.end - span.start) as u32;
            let proof = Proof { when_s: span.when_s, how, by: span.by };
            Frames { arc: first.arc(), copy, first: first.frame(), count, proof }
        })
    }

    /// How a file was last read, the best extent first.
    pub fn file(&self, logid: Logid) -> Option<Files> {
        self.file_since(logid, 0)
    }

    /// As `file`, if it was not longer ago than at `since_s`.
    pub fn file_since(&self, logid: Logid, since_s: u64) -> Option<Files> {
        self.files.iter().rev().find_map(|(extent, spans)| {
            let span = spans.get(logid.0).filter(|span| span.when_s >= since_s)?;
            Some(Files { first: logid, count: 1, extent: *extent, when_s: span.when_s, by: span.by })
        })
    }

    /// Selftests, oldest first.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Mounts and what they did in all, oldest first.
    pub fn sessions(&self) -> &[Session] {
        &self.sessions
    }

    /// Damage that was met and not seen mended since.
    pub fn open_damage(&self) -> &[Damage] {
        &self.open
    }

    /// True if this frame was found damaged and not mended since, or its arc missing.
    pub fn is_damaged(&self, arc: ArcSerial, copy: CopyId, no: FrameNo) -> bool {
        let open = |damage: &&Damage| !damage.mended;
        self.places.frame(arc, copy, no).filter(open).is_some()
            || self.places.whole(arc, copy).filter(open).is_some_and(Damage::is_absence)
    }

    /// Single flipped bits, oldest first.
    #[cfg(test)]
    pub fn flips(&self) -> &[Flip] {
        &self.flips
    }

    /// Two flips that look like one bad cell of memory: the same bit, the same way, in two blocks, or twice in one
    /// whose stored bytes are right. (A bit that is wrong on the medium is met by each reading: that says nothing.)
    pub fn same_flip_twice(&self) -> Option<(Flip, Flip)> {
        let mut seen: HashMap<(u32, u8, bool), Vec<Flip>> = HashMap::new();
        for flip in &self.flips {
            let others = seen.entry((flip.byte, flip.bit, flip.to_one)).or_default();
            let alike = |other: &&Flip| other.block != flip.block || !(other.again || flip.again);
            if let Some(other) = others.iter().find(alike) {
                return Some((*other, *flip));
            }
            others.push(*flip);
        }
        None
    }

    /// Segments that a process is writing now: what it noted in the last minute may be missing here.
    pub fn being_written(&self) -> usize {
        self.being_written
    }

    /// All that is known, for a new segment.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let mut layers: Vec<(CopyId, How)> = self.frames.keys().copied().collect();
        layers.sort_unstable();
        let frames = layers.into_iter().flat_map(|(copy, how)| self.proven(copy, how)).map(Record::Frames);
        let files = self.files.iter().flat_map(|(extent, spans)| {
            spans.iter().map(|Span { start, end, when_s, by }| {
                Record::Files(Files { first: Logid(start), count: end - start, extent: *extent, when_s, by })
            })
        });
        let damage = self.places.iter().cloned().map(Record::Damage);
        let runs = self.runs.iter().cloned().map(Record::Run);
        let sessions = self.sessions.iter().copied().map(Record::Session);
        frames
            .chain(files)
            .chain(damage)
            .chain(runs)
            .chain(self.flips.iter().copied().map(Record::Flip))
            .chain(sessions)
    }
}

fn keep_newest<T>(all: &mut Vec<T>, one: T, when_s: impl Fn(&T) -> u64) {
    all.push(one);
    if all.len() >= 2 * MAX_EVENTS {
        all.sort_by_key(&when_s);
        all.drain(..all.len() - MAX_EVENTS);
    }
}
