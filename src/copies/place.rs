//! A destination that was reached, and what is done there to one arc.
//!
//! Invariants: an arc counts as stored there when it was proven, or is noted and shown as unverified; only what this
//! backup dir was sending may be replaced, or what is proven to be wrong while the right bytes are at hand; nothing is
//! called missing before it was asked for by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::body::{ArcBody, Source};
use super::facts::{Facts, facts, facts_of_commit};
use super::fetched::Fetched;
use super::notes::{Note, Notes, State};
use super::pace::Pace;
use super::plan::{Plan, Wanted, What, Whose};
use super::{Around, Opener};
use crate::arc::{ARC_HEADER_LEN, ArcHeader};
use crate::depot::{Depot, sha256_of};
use crate::dest::mark::DESTID;
use crate::dest::settings::Verify;
use crate::dest::{Body, Compared, Known, Lie, Object, Proof, Settings, Stamp, Storage, mark, prove, put_proven};
use crate::error::{Error, Result, Trouble};
use crate::ids::{ArcId, ArcName, CopyId};
use crate::monitor::Event;
use crate::sync::lock;
use crate::text::hex;

/// How often an arc that arrives with other bytes is sent.
const MOST_SENDS: u32 = 3;
/// Credentials are not asked for more often.
const RENEW_EVERY: Duration = Duration::from_secs(60);

/// What came of an arc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It was there, and noted.
    Was(State),
    /// It was there, and had to be proven.
    Found(State),
    Sent(State, u64),
}

/// What may be done to a copy that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBad {
    Tell,
    Replace,
}

pub struct Place {
    around: Around,
    settings: Settings,
    storage: Mutex<(Arc<Paced>, Option<Instant>)>,
    pub pace: Arc<Pace>,
    pub copy: CopyId,
    pub notes: Notes,
    is_honest: bool,
    /// A source was damaged, and passed over.
    pub met_damage: AtomicBool,
    /// What files were when their reading began.
    begun: Mutex<BTreeMap<ArcName, Stamp>>,
    /// Arcs as the one listing had them, with their lengths.
    pub there: BTreeMap<ArcName, u64>,
}

impl Place {
    /// Opens it, reads its mark, takes its notes, and lists it.
    pub fn reach(around: &Around, settings: &Settings, known: &Known, pace: &Arc<Pace>) -> Result<Place> {
        // By its name, until its mark is read: this only says how many send at a time.
        let trusted = settings.checksum().zip(known.of_name(&settings.name)).is_some_and(|(sum, of)| of.refuses(sum));
        let storage = pace.attempt(|| paced(&around.open, settings, pace, trusted))?;
        let mark = pace.attempt(|| mark::read(storage.as_ref(), around.dir.keys(), known))?;
        let notes = Notes::hold(&around.dir, mark.id, &settings.name)?;
        let listed = pace.attempt(|| storage.list())?;
        let arc = |object: Object| Some((ArcName::parse(&object.name)?, object.len_bytes));
        Ok(Place {
            around: around.clone(),
            settings: settings.clone(),
            storage: Mutex::new((storage, None)),
            pace: pace.clone(),
            copy: mark.copy,
            notes,
            is_honest: settings
                .checksum()
                .is_some_and(|sum| known.of_mark(&mark).is_some_and(|place| place.refuses(sum))),
            met_damage: AtomicBool::new(false),
            begun: Mutex::default(),
            there: listed.into_iter().filter_map(arc).collect(),
        })
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    pub fn storage(&self) -> Arc<Paced> {
        lock(&self.storage).0.clone()
    }

    /// Asks for something, with patience, and with new credentials where the old ones are not taken any more.
    pub fn ask<T>(&self, act: impl Fn(&dyn Storage) -> Result<T>) -> Result<T> {
        self.pace.attempt(|| match act(self.storage().as_ref()) {
            Err(Error::Dest { trouble: Trouble::Denied(_), .. }) if self.renew()? => act(self.storage().as_ref()),
            done => done,
        })
    }

    /// Opens it anew, if that was not done lately.
    fn renew(&self) -> Result<bool> {
        let mut storage = lock(&self.storage);
        if storage.1.is_some_and(|last| last.elapsed() < RENEW_EVERY) {
            return Ok(false);
        }
        *storage = (paced(&self.around.open, &self.settings, &self.pace, self.is_honest)?, Some(Instant::now()));
        Ok(true)
    }

    fn trouble(&self, object: &str, trouble: Trouble) -> Error {
        Error::Dest { dest: self.name().into(), object: object.into(), trouble }
    }

    pub fn warn(&self, what: String) {
        self.around.monitor.event(Event::Warning { path: b"", what });
    }

    /// Nobody else may write there with this key.
    ///
    /// # Errors
    /// `DEST_DIVERGED`.
    pub fn check_foreign(&self, plan: &Plan) -> Result<()> {
        let dir = &self.around.dir;
        for name in self.there.keys() {
            if plan.whose(*name) == Whose::Foreign {
                return Err(self.diverged(*name));
            }
            // What is noted as stored this backup dir has sent itself.
            if self.stored(*name).is_none()
                && let (Some(id), Some(found)) = (plan.id_of(dir, *name), self.id_there(*name)?)
                && id != found
            {
                return Err(self.diverged(*name));
            }
        }
        Ok(())
    }

    fn stored(&self, name: ArcName) -> Option<Note> {
        self.notes.of(name).filter(|note| note.state > State::Sending)
    }

    fn diverged(&self, name: ArcName) -> Error {
        self.trouble("", Trouble::Diverged(format!("{name} there is not of this one's history")))
    }

    /// The id of an arc that is there, by its header.
    fn id_there(&self, name: ArcName) -> Result<Option<ArcId>> {
        let len = ARC_HEADER_LEN as u64;
        if self.there.get(&name).is_some_and(|found| *found < len) {
            return Ok(None);
        }
        let read = |storage: &dyn Storage| storage.read(&name.to_string(), 0..len);
        let head = match self.ask(read) {
            Err(Error::Dest { trouble: Trouble::NotFound | Trouble::WrongRange { .. }, .. }) => return Ok(None),
            Err(error) if self.is_unreadable(&error, |storage| read(storage).map(drop)) => return Ok(None),
            head => head?,
        };
        // One with another's name is out of its place, and no other history's.
        let header = ArcHeader::decode(&head, self.around.dir.keys()).ok().filter(|header| header.name == name);
        Ok(header.map(|header| header.id))
    }

    /// It fails again and again while the place answers: a medium has bad places, and what lies there is as wrong as other
    /// bytes are.
    pub fn is_unreadable(&self, error: &Error, act: impl Fn(&dyn Storage) -> Result<()>) -> bool {
        let is_failed = |error: &Error| matches!(error, Error::Dest { trouble: Trouble::Failed(_), .. });
        let mark = |storage: &dyn Storage| storage.forget(DESTID).and_then(|()| storage.read(DESTID, 0..1));
        let answers = || self.ask(mark).is_ok();
        is_failed(error) && answers() && act(self.storage().as_ref()).is_err_and(|error| is_failed(&error)) && answers()
    }

    /// What an arc there is found to be when it was read.
    fn judged<T>(&self, facts: &Facts, read: Result<T>) -> Result<T> {
        let Err(error @ Error::Dest { trouble: Trouble::Failed(what), .. }) = &read else { return read };
        let object = facts.name.to_string();
        if !self.is_unreadable(error, |storage| prove(storage, &object, facts.len_bytes, &facts.sum)) {
            return read;
        }
        let (source, found) = (hex(&facts.sum).into(), format!("none: {what}").into());
        Err(self.trouble(&object, Trouble::Checksum { source, found }))
    }

    /// Removes what nobody needs any more: what was dropped, and what cut runs have left, where it is proven to be theirs.
    /// Returns how much went, and how much the place does not let go.
    pub fn clear_away(&self, plan: &Plan, dropped: &BTreeSet<ArcName>, leftovers: bool) -> Result<(u64, u64)> {
        let (mut removed, mut kept) = (0, 0);
        for name in self.there.keys().copied() {
            let goes = match plan.whose(name) {
                Whose::Dropped => dropped.contains(&name),
                Whose::Leftover if leftovers => {
                    let noted = self.notes.of(name).map(|note| note.id);
                    let id = plan.id_of(&self.around.dir, name).or(noted);
                    self.stored(name).is_some() || (id.is_some() && self.id_there(name)? == id)
                }
                _ => false,
            };
            if !goes {
                continue;
            }
            match self.ask(|storage| storage.remove(&name.to_string())) {
                Ok(()) => {
                    self.notes.forget(name);
                    removed += 1;
                }
                Err(Error::Dest { trouble: Trouble::Denied(_), .. }) => kept += 1,
                Err(error) => return Err(error),
            }
        }
        Ok((removed, kept))
    }

    /// It is there, as far as notes and listing tell; None: that is to be found out.
    pub fn is_stored(&self, wanted: &Wanted) -> Option<State> {
        let note = self.stored(wanted.name)?;
        let len_bytes = match &wanted.what {
            What::Arc(entry) if entry.id == note.id => entry.arc_bytes,
            What::Arc(_) => return None,
            // Where it is lost here its copy is none the worse.
            What::Commit(_) => {
                let here = self.around.here().len_bytes(wanted.name);
                here.ok().or(self.there.get(&wanted.name).copied())?
            }
        };
        (self.there.get(&wanted.name) == Some(&len_bytes)).then_some(note.state)
    }

    /// What must be there under the name. What is recorded nowhere, a commit's own checksum, is proven first: here or, where
    /// that can't be, by the copies.
    pub fn facts(&self, wanted: &Wanted, sources: &[Sourced]) -> Result<Facts> {
        let here = facts(&self.around, wanted, &self.pace);
        let (Err(error), What::Commit(digest)) = (&here, &wanted.what) else { return here };
        for source in sources {
            if let Sourced::Other(place) = source
                && let Ok(facts) = place.facts_there(wanted.name, digest)
            {
                self.met_damage.fetch_or(error.is_damage(), Ordering::Relaxed);
                self.around.tell_once(error);
                return Ok(facts);
            }
        }
        here
    }

    /// As `facts`, perhaps by what is there.
    pub fn facts_anywhere(&self, wanted: &Wanted) -> Result<Facts> {
        let here = facts(&self.around, wanted, &self.pace);
        match (&here, &wanted.what) {
            (Err(_), What::Commit(digest)) => self.facts_there(wanted.name, digest).or(here),
            _ => here,
        }
    }

    /// As the copy there has it, if that is the commit that the index knows.
    pub fn facts_there(&self, name: ArcName, digest: &[u8; 32]) -> Result<Facts> {
        let object = name.to_string();
        let Some(len) = self.ask(|storage| storage.stat(&object))?.filter(|len| *len > 0) else {
            return Err(self.trouble(&object, Trouble::NotFound));
        };
        let bytes = self.ask(|storage| storage.read(&object, 0..len))?;
        facts_of_commit(&self.around, &Fetched { name, bytes }, name, digest, &self.pace)
    }

    /// Sees to it that an arc is there.
    pub fn bring(&self, wanted: &Wanted, sources: &[Sourced], on_bad: OnBad) -> Result<Done> {
        let looks_again = on_bad == OnBad::Replace && self.has_changed(wanted.name);
        if let Some(state) = self.is_stored(wanted).filter(|_| !looks_again) {
            return Ok(Done::Was(state));
        }
        let facts = self.facts(wanted, sources)?;
        let name = facts.name;
        let noted = self.notes.of(name).filter(|note| note.id == facts.id).map(|note| note.state);
        let is_stored = noted.is_some_and(|state| state > State::Sending) && !looks_again;
        let mut may_replace = noted == Some(State::Sending) || on_bad == OnBad::Replace;
        if noted.is_some() || self.there.contains_key(&name) {
            match self.ask(|storage| storage.stat(&name.to_string()))? {
                // A listing may be stale: its own word counts.
                Some(len) if len == facts.len_bytes && is_stored => {
                    return Ok(Done::Was(noted.unwrap_or(State::Unverified)));
                }
                Some(_) => {
                    let mut settled = self.ask(|storage| self.settle(storage, &facts, sources, may_replace));
                    if matches!(settled, Err(Error::Dest { trouble: Trouble::Failed(_), .. }))
                        && let Err(error) = self.judged(&facts, settled.clone())
                    {
                        let go = |storage: &dyn Storage| {
                            self.put_away(storage, &facts, sources, may_replace, error.clone()).map(|()| None)
                        };
                        settled = self.ask(go);
                    }
                    if let Err(error) = &settled {
                        self.found(name, facts.id, &Err(error.clone()));
                    }
                    if let Some(state) = settled? {
                        self.found(name, facts.id, &Ok(state));
                        return Ok(Done::Found(state));
                    }
                }
                None if noted.is_some_and(|state| state > State::Sending) => {
                    self.warn(format!("{name} was at {} and is gone: it is sent again", self.name()));
                }
                None => {}
            }
        }
        let mut sends = 0;
        loop {
            match self.send(&facts, sources, &mut may_replace) {
                Err(error @ Error::Dest { trouble: Trouble::Checksum { .. }, .. })
                    if may_replace && sends + 1 < MOST_SENDS =>
                {
                    sends += 1;
                    self.warn(format!("{error}: it is sent again"));
                }
                done => return done,
            }
        }
    }

    fn send(&self, facts: &Facts, sources: &[Sourced], may_replace: &mut bool) -> Result<Done> {
        let mut last = Error::SelfCheck { what: format!("there is no source for {}", facts.name) };
        for source in sources {
            match self.send_from(facts, source, sources, may_replace) {
                Err(error) if source.is_at_fault(&error) => {
                    if sources.len() > 1 && !matches!(error, Error::ArcAway { .. }) {
                        self.met_damage.fetch_or(error.is_damage(), Ordering::Relaxed);
                        self.around.tell_once(&error);
                    }
                    last = error;
                }
                done => return done,
            }
        }
        Err(last)
    }

    fn send_from(&self, facts: &Facts, source: &Sourced, sources: &[Sourced], may_replace: &mut bool) -> Result<Done> {
        let name = facts.name;
        self.notes.put(name, Note::now(facts.id, State::Sending));
        let furthest = Mutex::new(0);
        let given = |bytes: u64| {
            let mut furthest = lock(&furthest);
            if bytes > *furthest {
                *furthest = bytes;
                self.pace.went_forward();
                self.around.monitor.sending(self.name(), name, bytes, facts.len_bytes);
            }
        };
        let replace = std::cell::Cell::new(*may_replace);
        let is_again = std::cell::Cell::new(*may_replace);
        let state = self.ask(|storage| {
            if is_again.replace(true)
                && let Some(state) = self.settle(storage, facts, sources, replace.get())?
            {
                return Ok(state);
            }
            let opened = source.open(&self.around, name)?;
            let body = ArcBody::new(name, opened, (facts.len_bytes, facts.sum), &self.pace, &given);
            let object = name.to_string();
            match put_proven(storage, &object, &body, self.settings.verify, self.is_honest) {
                Ok(Proof::ReadBack | Proof::Server) => Ok(State::Proven),
                Ok(Proof::Unverified) => Ok(State::Unverified),
                Err(Error::Dest { trouble: Trouble::Exists, .. }) => {
                    // It may go between two looks; then there is room for ours.
                    let again = || self.trouble(&object, Trouble::Failed("what stood there is gone".into()));
                    self.settle(storage, facts, sources, replace.get())?.ok_or_else(again)
                }
                Err(error) => {
                    // What this put has left may be anything.
                    replace.set(true);
                    Err(error)
                }
            }
        });
        *may_replace = replace.get();
        let state = state?;
        self.found(name, facts.id, &Ok(state));
        Ok(Done::Sent(state, facts.len_bytes))
    }

    /// What is under a name that may be half of something: it is right; or it is wrong, and was removed; or there is nothing.
    ///
    /// # Errors
    /// `DEST_DIVERGED`; `DEST_CHECKSUM` where it may not be replaced, or there is nothing better to put in its place.
    fn settle(
        &self,
        storage: &dyn Storage,
        facts: &Facts,
        sources: &[Sourced],
        may_replace: bool,
    ) -> Result<Option<State>> {
        let object = facts.name.to_string();
        let Some(len_bytes) = storage.stat(&object)? else { return Ok(None) };
        if self.settings.verify == Verify::Trust && len_bytes == facts.len_bytes && !may_replace {
            return Ok(Some(State::Unverified));
        }
        match prove(storage, &object, facts.len_bytes, &facts.sum) {
            Ok(()) => Ok(Some(State::Proven)),
            // What a put that was cut has left is removed by some services after a while.
            Err(Error::Dest { trouble: Trouble::NotFound, .. }) => Ok(None),
            Err(error @ Error::Dest { trouble: Trouble::Checksum { .. }, .. }) => {
                self.put_away(storage, facts, sources, may_replace, error).map(|()| None)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes what is wrong, if it may go and something better is at hand.
    ///
    /// # Errors
    /// `DEST_DIVERGED`; what is wrong with it where it stays.
    fn put_away(
        &self,
        storage: &dyn Storage,
        facts: &Facts,
        sources: &[Sourced],
        may_replace: bool,
        wrong: Error,
    ) -> Result<()> {
        if !matches!(wrong, Error::Dest { trouble: Trouble::Checksum { .. }, .. }) {
            return Err(wrong);
        }
        let object = facts.name.to_string();
        let has_header = storage.stat(&object)?.is_some_and(|len| len >= ARC_HEADER_LEN as u64);
        if has_header && self.id_there(facts.name)?.is_some_and(|id| id != facts.id) {
            return Err(self.diverged(facts.name));
        }
        // Most of what has one wrong byte is good: it stays until something better is proven.
        if !may_replace || !sources.iter().any(|source| source.is_good(&self.around, facts, &self.pace)) {
            return Err(wrong);
        }
        match storage.remove(&object) {
            Err(Error::Dest { trouble: Trouble::Denied(_), .. }) => Err(wrong),
            done => done,
        }
    }

    /// Reads an arc there, all of it, and compares it.
    pub fn verify(&self, facts: &Facts) -> Result<()> {
        let object = facts.name.to_string();
        self.begin(facts.name);
        let done = self.ask(|storage| prove(storage, &object, facts.len_bytes, &facts.sum));
        let done = self.judged(facts, done);
        self.noted(facts, &done);
        done
    }

    /// Notes what was found of an arc when all of it was compared.
    pub fn noted(&self, facts: &Facts, found: &Result<()>) {
        self.found(facts.name, facts.id, &found.clone().map(|()| State::Proven));
    }

    /// Notes how far a copy has come, or what is wrong with it; what only keeps it from being asked says nothing of it.
    pub fn found(&self, name: ArcName, id: ArcId, found: &Result<State>) {
        let (state, why) = match found {
            Ok(state) => (*state, String::new()),
            Err(Error::Dest { trouble: Trouble::NotFound, .. }) => (State::Gone, String::new()),
            Err(error) if error.is_damage() => (State::Failed, error.to_string()),
            Err(_) => return,
        };
        // Without it a change is not seen, but by content.
        let before = lock(&self.begun).remove(&name);
        let stamp = before.or_else(|| self.storage().stamp(&name.to_string()).ok().flatten());
        self.notes.put(name, Note { stamp, why: why.into(), ..Note::now(id, state) });
    }

    /// It is going to be read: what changes from now on is seen.
    pub fn begin(&self, name: ArcName) {
        if let Ok(Some(stamp)) = self.storage().stamp(&name.to_string()) {
            lock(&self.begun).insert(name, stamp);
        }
    }

    /// It was changed since it was found to be as noted, as far as its file tells.
    fn has_changed(&self, name: ArcName) -> bool {
        let before = self.notes.of(name).and_then(|note| note.stamp);
        let now = || self.storage().stamp(&name.to_string()).ok().flatten();
        before.is_some_and(|before| now().is_some_and(|now| now.differs(&before).is_some()))
    }
}

/// Where arcs may be read from.
#[derive(Clone)]
pub enum Sourced {
    Home,
    Other(Arc<Place>),
}

impl Sourced {
    fn open(&self, around: &Around, name: ArcName) -> Result<Source> {
        match self {
            Sourced::Home => match around.here().open(name) {
                Err(error) if around.is_away(name) && error.is_damage() => Err(Error::ArcAway { arc: name }),
                opened => opened.map(Source::Home),
            },
            Sourced::Other(place) => Ok(Source::Copy(place.storage())),
        }
    }

    /// All of it was read just now, and is right.
    pub fn is_good(&self, around: &Around, facts: &Facts, pace: &Pace) -> bool {
        match self {
            Sourced::Home => is_good_here(around, facts, pace).unwrap_or(false),
            Sourced::Other(place) => place.verify(facts).is_ok(),
        }
    }

    /// Another source may be good.
    fn is_at_fault(&self, error: &Error) -> bool {
        match (self, error) {
            (Sourced::Home, Error::Arc { .. } | Error::ArcAway { .. } | Error::Io { .. }) => true,
            (Sourced::Other(place), Error::Dest { dest, .. }) => **dest == *place.name(),
            _ => false,
        }
    }
}

fn is_good_here(around: &Around, facts: &Facts, pace: &Pace) -> Result<bool> {
    let arc = around.here().open(facts.name)?;
    Ok(sha256_of(arc.as_ref(), &|_| pace.check(), |_| Ok(()))? == facts.sum)
}

fn paced(open: &Opener, settings: &Settings, pace: &Arc<Pace>, is_honest: bool) -> Result<Arc<Paced>> {
    // What was sent is read back while others send: a line that goes both ways is used both ways.
    let puts = match settings.verify {
        Verify::Server if is_honest => settings.workers,
        Verify::Trust => settings.workers,
        Verify::Server | Verify::Read => settings.workers.div_ceil(2),
    };
    Ok(Arc::new(Paced { inner: open(settings)?, pace: pace.clone(), puts: puts as usize }))
}

/// A storage of which each answer counts as going forward, and nothing more is asked once the run ends.
pub struct Paced {
    inner: Box<dyn Storage>,
    pace: Arc<Pace>,
    /// At a time.
    puts: usize,
}

impl Paced {
    fn answered<T>(&self, act: impl FnOnce(&dyn Storage) -> Result<T>) -> Result<T> {
        self.pace.check()?;
        let done = act(self.inner.as_ref())?;
        self.pace.went_forward();
        Ok(done)
    }
}

impl Storage for Paced {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn put(&self, object: &str, body: &dyn Body) -> Result<Compared> {
        self.pace.check()?;
        let _turn = self.pace.turn(self.puts)?;
        self.inner.put(object, body)
    }

    fn stat(&self, object: &str) -> Result<Option<u64>> {
        // What is only looked for goes nowhere.
        self.pace.check()?;
        self.inner.stat(object)
    }

    fn read(&self, object: &str, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
        self.answered(|storage| storage.read(object, range))
    }

    fn list(&self) -> Result<Vec<Object>> {
        self.answered(|storage| storage.list())
    }

    fn remove(&self, object: &str) -> Result<()> {
        self.answered(|storage| storage.remove(object))
    }

    fn lies(&self) -> &'static [Lie] {
        self.inner.lies()
    }

    fn lie(&self, object: &str, bytes: &[u8], lie: Lie) -> Result<()> {
        self.inner.lie(object, bytes, lie)
    }

    fn stamp(&self, object: &str) -> Result<Option<Stamp>> {
        self.pace.check()?;
        self.inner.stamp(object)
    }

    fn forget(&self, object: &str) -> Result<()> {
        self.inner.forget(object)
    }
}
