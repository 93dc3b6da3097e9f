//! A destination whose copies are proven: its arcs as a depot, each read once, from its start to its end.
//!
//! Invariants: what is read is what the destination gave for exactly that range, or an error; what is about the place ends all
//! that is done there, and says nothing of an arc; an arc is missing only if the destination says so when it is asked for by
//! name; as proven is noted what was compared to its last byte, and what is found wrong is noted so that `dest sync` looks
//! at it. At most the ends of an arc and `MAX_AGAIN` pieces of it are in memory.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::Around;
use super::care::reaching;
use super::facts::{Facts, facts};
use super::meter::Meter;
use super::notes::State;
use super::place::Place;
use super::plan::{Plan, Wanted, What};
use super::sender::ends;
use crate::arc::ARC_HEADER_LEN;
use crate::backupdir::arcs::COMMIT_NUMBER;
use crate::catalog::ArcEntry;
use crate::depot::{Depot, Reach, StoredArc, Via};
use crate::dest::{Checksum, Settings, Storage, Sum, compare};
use crate::error::{Damage, Error, Place as At, Result, Trouble};
use crate::ids::{ArcName, CopyId, Version};
use crate::monitor::Event;
use crate::sync::lock;
use crate::text::hex;

/// What is read again at once, where a part was wrong; a shorter arc is read as a whole.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces of an arc that were read again and are kept.
const MAX_AGAIN: usize = 4;
/// Footer and trailer of an arc are shorter.
const MAX_TAIL_BYTES: u64 = 16 << 20;

#[derive(Clone)]
pub struct Proving(Arc<Inner>);

struct Inner {
    around: Around,
    place: Arc<Place>,
    arcs: BTreeMap<ArcName, ArcEntry>,
    commits: Vec<Wanted>,
    /// The newest commit that is there: all before it must be there too.
    newest: Option<Version>,
    /// Why nothing more is asked of it.
    lost: Mutex<Option<Error>>,
}

impl Proving {
    /// Reaches a destination, which nobody sends to from then on; all that is asked of it is counted.
    ///
    /// # Errors
    /// `DEST_…`; those of the index.
    pub fn reach(around: &Around, settings: &Settings, meter: &Arc<Meter>) -> Result<Proving> {
        let around = around.metered(meter);
        let known = super::known(&around.dir)?;
        let place = reaching(&around, settings, &known)()?;
        let plan: Arc<Plan> = around.plan()?;
        place.check_foreign(&plan)?;
        let is_commit = |name: &&ArcName| name.number == COMMIT_NUMBER;
        let newest = place.there.keys().filter(is_commit).map(|name| name.version).max();
        let (mut arcs, mut commits) = (BTreeMap::new(), Vec::new());
        for wanted in &plan.wanted {
            match &wanted.what {
                What::Arc(entry) => drop(arcs.insert(wanted.name, entry.clone())),
                What::Commit(_) => commits.push(wanted.clone()),
            }
        }
        Ok(Proving(Arc::new(Inner { around, place, arcs, commits, newest, lost: Mutex::default() })))
    }

    /// Why nothing more is asked of it.
    pub fn lost(&self) -> Option<Error> {
        lock(&self.0.lost).clone()
    }

    /// It must be there.
    pub fn is_wanted(&self, name: ArcName) -> bool {
        self.0.arcs.contains_key(&name)
    }

    /// Commits that must be there.
    pub fn commits(&self) -> &[Wanted] {
        &self.0.commits
    }

    /// It was never sent there, as far as notes and commits tell: nothing is gone.
    pub fn is_behind(&self, name: ArcName) -> bool {
        let place = &self.0.place;
        let noted = place.notes.of(name).map(|note| note.state);
        let is_there = place.there.contains_key(&name) && noted != Some(State::Sending);
        let is_named = self.0.newest.is_some_and(|newest| newest >= name.version);
        noted.is_none_or(|state| state == State::Sending) && !is_there && !is_named
    }

    /// When it was last noted as proven; 0: never.
    pub fn proven_s(&self, name: ArcName) -> u64 {
        let note = self.0.place.notes.of(name).filter(|note| note.state == State::Proven);
        note.map_or(0, |note| note.at_s)
    }

    /// Something of the arc is wrong, or it is not there.
    pub fn found_wrong(&self, entry: &ArcEntry, error: &Error) {
        let is_gone = matches!(error, Error::Arc { damage: Damage::Missing, .. });
        let found = match is_gone {
            true => Err(self.gone(entry.name)),
            false => Err(error.clone()),
        };
        self.0.place.found(entry.name, entry.id, &found);
    }

    fn gone(&self, name: ArcName) -> Error {
        Error::Dest { dest: self.0.place.name().into(), object: name.to_string().into(), trouble: Trouble::NotFound }
    }

    /// All of an arc was read and judged: what that says of it as a whole. `found` is the SHA-256 of what was read, if all of
    /// it could be. Where that leaves a doubt, a byte that was right when it came again, all is read once more.
    ///
    /// # Errors
    /// `DEST_CHECKSUM` where it is not as recorded; what keeps it from being read.
    pub fn conclude(&self, entry: &ArcEntry, found: Option<Sum>, is_damaged: bool) -> Result<()> {
        let (place, facts) = (&self.0.place, Facts::of(entry));
        let found = match (is_damaged, found) {
            (false, Some(found)) if found == facts.sum => Some(hex(&found)),
            (true, Some(found)) if found != facts.sum => Some(hex(&found)),
            (true, None) => Some(match place.there.get(&entry.name) {
                Some(len) if *len != entry.arc_bytes => format!("none: {len} of {} bytes are there", entry.arc_bytes),
                _ => "none: not all of it can be read".into(),
            }),
            _ => None,
        };
        let Some(value) = found else { return self.about(place.verify(&facts)) };
        let source = Checksum::sha256(&facts.sum);
        let done = compare(place.name(), &facts.name.to_string(), &source, &Checksum { value, ..source.clone() });
        place.noted(&facts, &done);
        done
    }

    /// Proves a commit: it is the one that the index knows and, where that is right here too, the same bytes.
    ///
    /// # Errors
    /// As `conclude`; damage of arcs and commits, as of the copy there.
    pub fn commit(&self, wanted: &Wanted) -> Result<u64> {
        let (place, What::Commit(digest)) = (&self.0.place, &wanted.what) else { return Ok(0) };
        self.0.check()?;
        if let Ok(facts) = facts(&self.0.around, wanted, &place.pace) {
            return self.about(place.verify(&facts)).map(|()| facts.len_bytes);
        }
        let found = self.about(place.facts_there(wanted.name, digest));
        match &found {
            Ok(facts) => place.noted(facts, &Ok(())),
            Err(error) if error.is_damage() => place.notes.forget(wanted.name),
            Err(_) => {}
        }
        found.map(|facts| facts.len_bytes)
    }

    /// Tells something that is wrong there.
    pub fn tell(&self, error: &Error) {
        self.0.around.monitor.event(Event::Failure { path: b"", error });
    }

    fn about<T>(&self, done: Result<T>) -> Result<T> {
        done.inspect_err(|error| self.0.keep(error))
    }
}

impl Inner {
    fn check(&self) -> Result<()> {
        lock(&self.lost).clone().map_or(Ok(()), Err)
    }

    /// What is about the place ends all.
    fn keep(&self, error: &Error) {
        if ends(error, self.place.name()) {
            lock(&self.lost).get_or_insert_with(|| error.clone());
        }
    }

    fn len_bytes(&self, arc: ArcName) -> Result<u64> {
        let listed = self.place.there.get(&arc).copied();
        if let Some(len) = listed.filter(|len| self.arcs.get(&arc).is_none_or(|entry| entry.arc_bytes == *len)) {
            return Ok(len);
        }
        // A listing may be stale.
        self.check()?;
        let found = self.place.ask(|storage| storage.stat(&arc.to_string()));
        found.inspect_err(|error| self.keep(error))?.ok_or_else(|| Error::arc(arc, 0, Damage::Missing))
    }

    fn read(&self, arc: ArcName, range: &Range<u64>, is_bad: &AtomicBool) -> Result<Vec<u8>> {
        self.check()?;
        let object = arc.to_string();
        let read = |storage: &dyn Storage| storage.read(&object, range.clone());
        // Once it is known that the place answers, what it can't give is asked for with less patience.
        let done = match is_bad.load(Ordering::Relaxed) {
            false => self.place.ask(read),
            true => read(self.place.storage().as_ref()),
        };
        match done {
            Err(Error::Dest { trouble: Trouble::NotFound, .. }) => Err(Error::arc(arc, 0, Damage::Missing)),
            Err(error @ Error::Dest { trouble: Trouble::Failed(_), .. })
                if self.place.is_unreadable(&error, |storage| read(storage).map(drop)) =>
            {
                is_bad.store(true, Ordering::Relaxed);
                let place = At::in_arc(arc, range.start);
                Err(Error::Arc { place, damage: Damage::Unreadable(libc::EIO) })
            }
            done => done.inspect_err(|error| self.keep(error)),
        }
    }
}

impl Depot for Proving {
    fn id(&self) -> CopyId {
        self.0.place.copy
    }

    fn name(&self) -> &str {
        self.0.place.name()
    }

    fn reach(&self) -> Reach {
        Reach::Far
    }

    fn list(&self) -> Result<Vec<ArcName>> {
        Ok(self.0.place.there.keys().copied().collect())
    }

    fn len_bytes(&self, arc: ArcName) -> Result<u64> {
        self.0.len_bytes(arc)
    }

    fn open(&self, name: ArcName) -> Result<Box<dyn StoredArc>> {
        self.0.place.begin(name);
        let len_bytes = self.0.len_bytes(name)?;
        let footer_at = self.0.arcs.get(&name).map_or(len_bytes, |entry| entry.footer_offset);
        let arc = FarArc {
            inner: self.0.clone(),
            name,
            len_bytes,
            footer_at,
            kept: Mutex::default(),
            again: Mutex::default(),
            is_bad: AtomicBool::new(false),
        };
        arc.forget();
        Ok(Box::new(arc))
    }
}

/// An arc at a destination. Its ends, which are read by themselves, are asked for once, and all of a short one.
struct FarArc {
    inner: Arc<Inner>,
    name: ArcName,
    len_bytes: u64,
    footer_at: u64,
    kept: Mutex<Vec<(u64, Vec<u8>)>>,
    /// What came a second time.
    again: Mutex<VecDeque<(u64, Vec<u8>)>>,
    is_bad: AtomicBool,
}

impl FarArc {
    fn fetch(&self, range: &Range<u64>) -> Result<Vec<u8>> {
        self.inner.read(self.name, range, &self.is_bad)
    }

    /// What is kept along with what was asked for.
    fn wider(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let is_head = range.start == 0 && range.end <= ARC_HEADER_LEN as u64;
        if is_head && self.len_bytes <= PIECE_BYTES {
            Some(0..self.len_bytes)
        } else if is_head {
            Some(0..range.end)
        } else {
            let is_tail = range.start >= self.footer_at && self.len_bytes - self.footer_at <= MAX_TAIL_BYTES;
            is_tail.then_some(self.footer_at..self.len_bytes)
        }
    }

    fn once(&self, range: &Range<u64>, buffer: &mut [u8]) -> Result<usize> {
        let mut kept = lock(&self.kept);
        if let Some(count) = kept.iter().find_map(|piece| copied(piece, range, buffer)) {
            return Ok(count);
        }
        match self.wider(range) {
            Some(wider) => {
                let piece = (wider.start, self.fetch(&wider)?);
                let count = copied(&piece, range, buffer).unwrap_or(0);
                kept.push(piece);
                Ok(count)
            }
            None => {
                // Several are read at a time.
                drop(kept);
                Ok(copied(&(range.start, self.fetch(range)?), range, buffer).unwrap_or(0))
            }
        }
    }

    /// From the destination, once more; with its neighbours, for they may be wrong too.
    fn again(&self, range: &Range<u64>, buffer: &mut [u8]) -> Result<usize> {
        let mut again = lock(&self.again);
        if let Some(count) = again.iter().find_map(|piece| copied(piece, range, buffer)) {
            return Ok(count);
        }
        self.forget();
        let start = range.start / PIECE_BYTES * PIECE_BYTES;
        let wider = start..(start + PIECE_BYTES).max(range.end).min(self.len_bytes);
        // One bad place fails the whole piece: what is asked for may be well.
        let piece = match self.fetch(&wider) {
            Ok(bytes) => (wider.start, bytes),
            Err(error) if error.is_damage() && wider != *range => (range.start, self.fetch(range)?),
            Err(error) => return Err(error),
        };
        let count = copied(&piece, range, buffer).unwrap_or(0);
        again.push_back(piece);
        if again.len() > MAX_AGAIN {
            again.pop_front();
        }
        Ok(count)
    }
}

/// Copies a range of a piece that has all of it.
fn copied((start, bytes): &(u64, Vec<u8>), range: &Range<u64>, buffer: &mut [u8]) -> Option<usize> {
    let from = range.start.checked_sub(*start)? as usize;
    let part = bytes.get(from..from + (range.end - range.start) as usize)?;
    buffer.get_mut(..part.len())?.copy_from_slice(part);
    Some(part.len())
}

impl StoredArc for FarArc {
    fn name(&self) -> ArcName {
        self.name
    }

    fn copy(&self) -> CopyId {
        self.inner.place.copy
    }

    fn source(&self) -> String {
        format!("{} at {}", self.name, self.inner.place.name())
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8], via: Via) -> Result<usize> {
        let range = offset..self.len_bytes.min(offset.saturating_add(buffer.len() as u64));
        match via {
            _ if range.is_empty() => Ok(0),
            Via::Cache => self.once(&range, buffer),
            Via::Medium => self.again(&range, buffer),
        }
    }

    fn is_current(&self) -> bool {
        true
    }

    fn forget(&self) {
        // What is not there, or can't be reached, is told by whoever reads it.
        let _ = self.inner.place.storage().forget(&self.name.to_string());
    }

    fn release(&self, _: u64, _: u64) {}
}
