//! Copies of arcs at destinations: what is missing there is sent, proven, noted, and removed when nobody needs it.
//!
//! ```text
//! reach (DESTID, notes, one LIST) ─> is all of it ours? ─> remove ─> backlog, oldest run first ─> arcs as they are closed ─> commit
//! ```
//!
//! Invariants: nothing unverified is sent (`body`); nothing counts as stored before its proof (`place`); a commit comes after
//! all that it needs (`sender`); each destination goes its own way, and the backup dir is as good whatever becomes of them.

mod ahead;
mod away;
mod body;
mod breaker;
mod care;
mod estimate;
mod facts;
mod fetched;
mod gate;
mod hedge;
mod home;
mod keep;
mod meter;
mod notes;
mod other;
mod pace;
mod place;
mod plan;
mod proving;
mod remote;
mod sender;
mod standing;
#[cfg(test)]
mod tests;
mod usual;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::backupdir::{BackupDir, arcs};
use crate::catalog::{ArcEntry, Commit};
use crate::crypto::sha256;
use crate::depot::Local;
use crate::dest::{self, Known, Settings, Storage};
use crate::error::{Error, Exit, Result};
use crate::ids::ArcName;
use crate::monitor::{Event, Monitor};
use crate::sync::lock;
pub use away::{PartlyHere, read as away};
pub use care::{clear, sync, verify};
pub use estimate::Estimate;
pub use home::{Brought, MEND_PATIENCE, bring_home, bring_one};
pub use keep::{Kept, bring_back, keep_within, leave_away};
use meter::Metered;
pub use meter::{Budget, Meter};
use notes::Noted;
pub use notes::{Note, State, tidy};
pub use other::others;
pub use pace::Limits;
use place::{Done, OnBad, Sourced};
pub use plan::What;
use plan::{Plan, Wanted};
pub use proving::Proving;
pub use remote::{Remote, Traffic};
use sender::{Sender, Task};
pub use standing::{Condition, Standing, Stands, counts, note_here, stamp_here, status};

/// Opens a destination.
pub type Opener = Arc<dyn Fn(&Settings) -> Result<Box<dyn Storage>> + Send + Sync>;

/// How long a destination may fail where there is another way.
const IMPATIENCE: Duration = Duration::from_secs(5);

/// What all that is done with copies needs.
#[derive(Clone)]
pub struct Around {
    pub dir: BackupDir,
    pub open: Opener,
    pub limits: Limits,
    pub monitor: Arc<dyn Monitor>,
    /// What may be fetched to be read.
    budget: Option<Arc<Budget>>,
    told: Arc<Mutex<Vec<Error>>>,
    /// Directories that are being looked at.
    looking: Arc<Mutex<BTreeSet<String>>>,
}

impl Around {
    pub fn new(dir: &BackupDir, open: Opener, monitor: Arc<dyn Monitor>) -> Around {
        Around {
            dir: dir.clone(),
            open,
            limits: Limits::default(),
            monitor,
            budget: None,
            told: Arc::default(),
            looking: Arc::default(),
        }
    }

    /// Readers fetch no more than so many bytes, together.
    pub fn within(self, limit_bytes: Option<u64>) -> Around {
        Around { budget: limit_bytes.map(|limit| Arc::new(Budget::new(limit))), ..self }
    }

    /// The arcs that are in the backup dir itself: a copy at a destination is no source of its own.
    fn here(&self) -> Local {
        Local::new(self.dir.own())
    }

    /// Only destinations keep it.
    fn is_away(&self, arc: ArcName) -> bool {
        away::read(&self.dir).is_ok_and(|away| away.contains_key(&arc))
    }

    /// For a destination of which there is another one, or without which nothing is lost.
    fn impatient(&self) -> Around {
        let retry = IMPATIENCE.min(self.limits.retry);
        Around { limits: Limits { retry, ..self.limits }, ..self.clone() }
    }

    /// The same, with what is asked of destinations counted.
    fn metered(&self, meter: &Arc<Meter>) -> Around {
        let (open, meter) = (self.open.clone(), meter.clone());
        let open = move |settings: &Settings| {
            let inner = open(settings)?;
            Ok(Box::new(Metered { inner, meter: meter.clone() }) as Box<dyn Storage>)
        };
        Around { open: Arc::new(open), ..self.clone() }
    }

    /// A failure; one that several destinations meet is one.
    fn tell_once(&self, error: &Error) {
        let mut told = lock(&self.told);
        if !told.contains(error) {
            told.push(error.clone());
            drop(told);
            self.monitor.event(Event::Failure { path: b"", error });
        }
    }

    /// What is noted of the place that had this name last.
    fn noted(&self, name: &str) -> Noted {
        notes::noted(&self.dir, name)
    }

    /// How far the copies at the place that had this name last have come.
    pub fn states(&self, name: &str) -> std::collections::BTreeMap<ArcName, State> {
        self.noted(name).into_iter().map(|(arc, note)| (arc, note.state)).collect()
    }

    /// Destinations that are used, and what is known of them.
    fn places(&self) -> Result<(Vec<Settings>, Known)> {
        let all = dest::all(&self.dir)?.into_iter().filter(|settings| !settings.off).collect();
        Ok((all, known(&self.dir)?))
    }

    fn plan(&self) -> Result<Arc<Plan>> {
        Plan::of(&self.dir.open_index()?).map(Arc::new)
    }

    /// All destinations have the last commit, as far as is noted: a commit comes last, so they have all.
    fn is_everywhere(&self, plan: &Plan, places: &[Settings]) -> bool {
        let Some(last) = plan.last_commit.map(arcs::commit_arc) else { return false };
        let has =
            |settings: &Settings| self.noted(&settings.name).get(&last).is_some_and(|note| note.state > State::Sending);
        places.iter().all(has)
    }
}

/// What is known of destinations: from dest.known, and by which of their names they were ever reached.
///
/// # Errors
/// What keeps dest.toml, dest.known or the notes from being read.
pub fn known(dir: &BackupDir) -> Result<Known> {
    let mut known = Known::read(dir)?;
    for settings in dest::all(dir)? {
        if notes::was_reached(dir, &settings.name)? {
            known.reached_as(&settings.name);
        }
    }
    Ok(known)
}

/// What came of one destination.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub name: String,
    /// Its failures don't count.
    pub ignored: bool,
    /// Arcs that were sent, commits too, and their bytes.
    pub sent: u64,
    pub sent_bytes: u64,
    /// Arcs that were proven.
    pub proven: u64,
    /// Arcs that are there, and of which nothing was compared.
    pub unverified: u64,
    /// Arcs that are not there, and their bytes.
    pub behind: u64,
    pub behind_bytes: u64,
    /// Objects that nobody needs any more.
    pub removed: u64,
    pub failed: u64,
    /// One of these, if there is one that is neither here nor at a destination that was asked.
    pub away: Option<ArcName>,
    pub damaged: bool,
    /// Why no more was done.
    pub trouble: Option<Error>,
}

impl Report {
    fn count(&mut self, done: Done) {
        let state = match done {
            Done::Was(state) => {
                self.unverified += u64::from(state == State::Unverified);
                return;
            }
            Done::Found(state) => state,
            Done::Sent(state, bytes) => {
                self.sent += 1;
                self.sent_bytes += bytes;
                state
            }
        };
        self.proven += u64::from(state == State::Proven);
        self.unverified += u64::from(state == State::Unverified);
    }

    pub fn exit(&self) -> Exit {
        let trouble = self.trouble.as_ref().filter(|_| !self.ignored);
        match trouble {
            _ if self.damaged => Exit::Damage,
            Some(Error::Interrupted) => Exit::Interrupted,
            Some(error) if error.is_damage() => Exit::Damage,
            Some(_) => Exit::FinishedWithErrors,
            None if !self.ignored && (self.behind > 0 || self.failed > 0) => Exit::FinishedWithErrors,
            None => Exit::Ok,
        }
    }
}

/// Copies being made while a run goes on.
pub struct Sending {
    around: Around,
    senders: Mutex<Vec<Arc<Sender>>>,
    trouble: Mutex<Option<Error>>,
}

impl Sending {
    pub fn new(around: Around) -> Sending {
        Sending { around, senders: Mutex::default(), trouble: Mutex::default() }
    }

    /// Begins with what earlier runs have left to send. Earlier runs are settled, and the caller holds the lock.
    ///
    /// What keeps it from beginning is told at its end.
    pub fn begin(&self) {
        if let Err(error) = self.start() {
            lock(&self.trouble).get_or_insert(error);
        }
    }

    fn start(&self) -> Result<()> {
        let (places, known) = self.around.places()?;
        if places.is_empty() {
            return Ok(());
        }
        let plan = self.around.plan()?;
        *lock(&self.senders) = start(&self.around, &places, known, &plan);
        Ok(())
    }

    /// An arc of the run is closed.
    pub fn closed(&self, arc: &ArcEntry) {
        let wanted = Wanted { name: arc.name, what: What::Arc(arc.clone()), needed: true };
        lock(&self.senders).iter().for_each(|sender| sender.add(wanted.clone()));
    }

    /// The run is committed.
    pub fn committed(&self, commit: &Commit) {
        let what = What::Commit(sha256(&commit.encode()));
        let wanted = Wanted { name: arcs::commit_arc(commit.run), what, needed: true };
        lock(&self.senders).iter().for_each(|sender| sender.add(wanted.clone()));
    }

    /// The run has failed: nothing more is sent, for whoever waits is to hear of it.
    pub fn give_up(self) {
        let senders = std::mem::take(&mut *lock(&self.senders));
        senders.iter().for_each(|sender| sender.pace.end());
        wait(&self.around, &senders);
    }

    /// Waits until all is sent, as long as anything goes forward.
    ///
    /// # Errors
    /// What keeps dest.toml, dest.known or the index from being read.
    pub fn finish(self) -> Result<Vec<Report>> {
        if let Some(error) = lock(&self.trouble).take() {
            return Err(error);
        }
        let senders = std::mem::take(&mut *lock(&self.senders));
        Ok(wait(&self.around, &senders))
    }
}

/// Sends what is missing, where no run is under way in this process.
///
/// # Errors
/// What keeps dest.toml, dest.known or the index from being read.
pub fn send(around: &Around) -> Result<Vec<Report>> {
    let (places, known) = around.places()?;
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let plan = around.plan()?;
    Ok(wait(around, &start(around, &places, known, &plan)))
}

fn start(around: &Around, places: &[Settings], known: Known, plan: &Arc<Plan>) -> Vec<Arc<Sender>> {
    let known = Arc::new(known);
    let everywhere = around.is_everywhere(plan, places);
    let drop = if everywhere { plan.dropped.keys().copied().collect() } else { BTreeSet::new() };
    let task = Task { on_bad: OnBad::Tell, drop: Arc::new(drop), leftovers: true };
    let begin = |settings: &Settings| {
        let sender = Sender::new(around, settings, plan, task.clone());
        let (theirs, known) = (sender.clone(), known.clone());
        let work = move || theirs.run(&known, None, &[Sourced::Home]);
        // It outlives the run only where a place hangs: then the process ends it.
        let name = format!("send {}", settings.name);
        if std::thread::Builder::new().name(name).spawn(work).is_err() {
            sender.run(&Known::default(), None, &[]);
        }
        sender
    };
    places.iter().map(begin).collect()
}

fn wait(around: &Around, senders: &[Arc<Sender>]) -> Vec<Report> {
    senders.iter().for_each(|sender| sender.close());
    let since = Instant::now();
    senders.iter().map(|sender| sender.wait(since, around.limits.idle)).collect()
}
