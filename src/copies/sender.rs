//! One destination's share of a run: what is missing there is sent, oldest run first, by a thread of its own and as many
//! workers as its table allows.
//!
//! Invariants: a commit is sent when all before it is there, and not at all where some of that is not; what one
//! destination does holds up no other.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::notes::State;
use super::pace::Pace;
use super::place::{Done, OnBad, Place, Sourced};
use super::plan::{Plan, Wanted, What};
use super::{Around, Report};
use crate::backupdir::arcs::commit_arc;
use crate::dest::settings::OnFail;
use crate::dest::{Known, Settings};
use crate::error::{Error, Result, Trouble};
use crate::ids::ArcName;
use crate::sync::{lock, wait_timeout};

/// How often whoever waits looks whether it is all over.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is to be done beside sending.
#[derive(Clone)]
pub struct Task {
    pub on_bad: OnBad,
    /// Dropped arcs that may go: all destinations have the commit that dropped them.
    pub drop: Arc<BTreeSet<ArcName>>,
    /// What cut runs have left may go.
    pub leftovers: bool,
}

pub struct Sender {
    around: Around,
    pub settings: Settings,
    plan: Arc<Plan>,
    task: Task,
    pub pace: Arc<Pace>,
    work: Mutex<Work>,
    changed: Condvar,
    /// It was reached.
    answered: AtomicBool,
    over: AtomicBool,
}

struct Work {
    queue: VecDeque<Wanted>,
    active: usize,
    /// Nothing more comes.
    closed: bool,
    /// Something that later commits need is not there.
    failed: bool,
    report: Report,
    /// What was not brought.
    missing: Vec<Wanted>,
}

impl Sender {
    pub fn new(around: &Around, settings: &Settings, plan: &Arc<Plan>, task: Task) -> Arc<Sender> {
        let pace = Arc::new(Pace::new(around.limits, settings.rate, around.monitor.clone()));
        let report =
            Report { name: settings.name.clone(), ignored: settings.on_fail == OnFail::Ignore, ..Report::default() };
        let queue = plan.wanted.iter().cloned().collect();
        let missing = Vec::new();
        let work = Work { queue, active: 0, closed: false, failed: false, report, missing };
        Arc::new(Sender {
            around: around.clone(),
            settings: settings.clone(),
            plan: plan.clone(),
            task,
            pace,
            work: Mutex::new(work),
            changed: Condvar::new(),
            answered: AtomicBool::new(false),
            over: AtomicBool::new(false),
        })
    }

    /// All of it, to the end.
    pub fn run(&self, known: &Known, reached: Option<Arc<Place>>, sources: &[Sourced]) {
        if let Err(error) = self.all(known, reached, sources) {
            lock(&self.work).report.trouble.get_or_insert(error);
        }
        self.over.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    fn all(&self, known: &Known, reached: Option<Arc<Place>>, sources: &[Sourced]) -> Result<()> {
        let place = match reached {
            Some(place) => place,
            None => Arc::new(Place::reach(&self.around, &self.settings, known, &self.pace)?),
        };
        self.answered.store(true, Ordering::Relaxed);
        // Other runs may have come since this one began, and have sent: nobody does from here on.
        let now = self.around.plan()?;
        place.check_foreign(&now)?;
        // One that is older than its notes may still need what was dropped.
        let has_last = self.plan.last_commit.is_some_and(|last| place.there.contains_key(&commit_arc(last)));
        let none = BTreeSet::new();
        let drop = if has_last { self.task.drop.as_ref() } else { &none };
        let (removed, kept) = place.clear_away(&now, drop, self.task.leftovers)?;
        if kept > 0 {
            let objects = crate::text::counted(kept, "object");
            place.warn(format!("{} does not let us delete: {objects} that nobody needs stay there", place.name()));
        }
        lock(&self.work).report.removed = removed;
        self.arrange(&place);
        std::thread::scope(|scope| {
            for _ in 1..self.settings.workers {
                // With fewer threads it only takes longer.
                let _ = std::thread::Builder::new().spawn_scoped(scope, || self.serve(&place, sources));
            }
            self.serve(&place, sources);
        });
        lock(&self.work).report.damaged |= place.met_damage.load(Ordering::Relaxed);
        Ok(())
    }

    /// Where an arc was dropped that never got there, what was put in its place comes before any commit: until then the
    /// commits that named it would name nothing.
    fn arrange(&self, place: &Place) {
        let Some(last) = self.plan.last_commit else { return };
        let has = |name: &ArcName| place.there.contains_key(name);
        let hole = |name: &ArcName| !has(name) && !has(&commit_arc(name.version));
        if !self.plan.dropped.keys().any(hole) {
            return;
        }
        let mut work = lock(&self.work);
        let (settled, own): (Vec<Wanted>, Vec<Wanted>) =
            work.queue.drain(..).partition(|wanted| wanted.name.version <= last);
        let (commits, arcs): (Vec<Wanted>, Vec<Wanted>) = settled.into_iter().partition(Wanted::is_commit);
        work.queue.extend(arcs.into_iter().chain(commits).chain(own));
    }

    /// One worker.
    fn serve(&self, place: &Place, sources: &[Sourced]) {
        while let Some(wanted) = self.next(place) {
            let done = place.bring(&wanted, sources, self.task.on_bad);
            let mut work = lock(&self.work);
            work.active -= 1;
            match done {
                Ok(done) => work.report.count(done),
                Err(error) if ends(&error, &self.settings.name) => {
                    work.report.trouble.get_or_insert(error);
                    work.missing.push(wanted);
                }
                Err(error) => {
                    work.failed |= wanted.needed;
                    work.report.failed += 1;
                    if let Error::ArcAway { arc } = error {
                        work.report.away.get_or_insert(arc);
                    }
                    work.report.damaged |= error.is_damage();
                    work.missing.push(wanted);
                    drop(work);
                    self.around.tell_once(&error);
                }
            }
            self.changed.notify_all();
        }
    }

    fn next(&self, place: &Place) -> Option<Wanted> {
        let mut work = lock(&self.work);
        loop {
            if work.report.trouble.is_some() {
                return None;
            }
            if let Err(error) = self.pace.check() {
                work.report.trouble.get_or_insert(error);
                return None;
            }
            match work.queue.pop_front() {
                Some(first) if first.is_commit() && work.active > 0 => work.queue.push_front(first),
                Some(first) if first.is_commit() && work.failed => match place.is_stored(&first) {
                    Some(state) => work.report.count(Done::Was(state)),
                    None => work.missing.push(first),
                },
                Some(first) => {
                    work.active += 1;
                    return Some(first);
                }
                None if work.closed => return None,
                None => {}
            }
            if work.queue.is_empty() || work.active > 0 {
                work = wait_timeout(&self.changed, work, LOOK_EVERY);
            }
        }
    }

    /// One more arc is to be sent.
    pub fn add(&self, wanted: Wanted) {
        lock(&self.work).queue.push_back(wanted);
        self.changed.notify_all();
    }

    /// Nothing more comes.
    pub fn close(&self) {
        lock(&self.work).closed = true;
        self.changed.notify_all();
    }

    /// Waits until it has ended, or nothing went forward for so long: then it is given up.
    pub fn wait(&self, since: Instant, idle: Duration) -> Report {
        const LAST_WORDS: Duration = Duration::from_secs(3);
        let mut given_up: Option<Instant> = None;
        let mut work = lock(&self.work);
        loop {
            if self.over.load(Ordering::Acquire) {
                break;
            }
            let limit = if self.answered.load(Ordering::Relaxed) { idle } else { idle / 4 };
            let stands = self.pace.last_forward().max(since).elapsed() > limit;
            if given_up.is_none() && (stands || self.pace.check().is_err()) {
                given_up = Some(Instant::now());
                self.pace.end();
                if stands {
                    let trouble = Trouble::TimedOut { what: "nothing went forward", limit_s: limit.as_secs() };
                    let dest = self.settings.name.as_str().into();
                    let said = self.pace.trouble();
                    let error = said.unwrap_or(Error::Dest { dest, object: "".into(), trouble });
                    work.report.trouble.get_or_insert(error);
                }
            }
            if given_up.is_some_and(|at| at.elapsed() > LAST_WORDS) {
                break;
            }
            work = wait_timeout(&self.changed, work, LOOK_EVERY);
        }
        let mut report = work.report.clone();
        let noted = self.around.noted(&self.settings.name);
        let is_noted = |wanted: &&Wanted| noted.get(&wanted.name).is_some_and(|note| note.state > State::Sending);
        let behind: Vec<&Wanted> = work.queue.iter().filter(|wanted| !is_noted(wanted)).chain(&work.missing).collect();
        report.behind = behind.len() as u64;
        report.behind_bytes = behind.iter().map(|wanted| wanted.arc_bytes()).sum();
        report
    }

    /// The report of a destination that was not reached.
    pub fn wait_for_nothing(&self) -> Report {
        self.over.store(true, Ordering::Release);
        self.wait(Instant::now(), Duration::ZERO)
    }
}

impl Wanted {
    pub fn is_commit(&self) -> bool {
        matches!(self.what, What::Commit(_))
    }

    /// Of a commit nothing is recorded: it is small.
    pub fn arc_bytes(&self) -> u64 {
        match &self.what {
            What::Arc(entry) => entry.arc_bytes,
            What::Commit(_) => 0,
        }
    }
}

/// What is about the place, and not about one arc.
pub fn ends(error: &Error, name: &str) -> bool {
    match error {
        Error::Interrupted | Error::DownloadLimit { .. } => true,
        Error::Dest { dest, trouble, .. } if **dest == *name => !matches!(
            trouble,
            Trouble::Checksum { .. }
                | Trouble::Algorithm { .. }
                | Trouble::Refused(_)
                | Trouble::Exists
                | Trouble::NotFound
        ),
        _ => false,
    }
}
