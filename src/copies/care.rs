//! Looking after copies: whether they are right, completing them, giving one up.

use std::collections::{BTreeSet, VecDeque};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::facts::facts;
use super::pace::Pace;
use super::place::{OnBad, Place, Sourced};
use super::plan::{Plan, Wanted, Whose};
use super::sender::{Sender, Task};
use super::{Around, Limits, Report};
use crate::backupdir::Lock;
use crate::dest::{self, Known, Settings};
use crate::error::{Error, Result, Trouble};
use crate::ids::ArcName;
use crate::monitor::Event;
use crate::sync::{into_inner, lock};

/// How much longer than its own limits a place may take to be reached.
const LEEWAY: Duration = Duration::from_secs(5);

/// Somebody waits for the answer: what fails is not tried for as long as a backup does it.
fn waited_for(around: &Around) -> Limits {
    Limits { retry: around.limits.idle.min(around.limits.retry), ..around.limits }
}

/// Begins to reach a place; what is returned waits for it.
pub fn reaching(around: &Around, settings: &Settings, known: &Known) -> impl FnOnce() -> Result<Arc<Place>> + use<> {
    let limits = waited_for(around);
    let (tell, told) = mpsc::channel();
    let (around, theirs, known) = (around.clone(), settings.clone(), known.clone());
    let pace = Arc::new(Pace::new(limits, settings.rate, around.monitor.clone()));
    let name = settings.name.clone();
    // It may hang where nobody can end it.
    let work = move || tell.send(Place::reach(&around, &theirs, &known, &pace).map(Arc::new));
    let _ = std::thread::Builder::new().name(format!("reach {name}")).spawn(work);
    move || {
        let limit = limits.idle + LEEWAY;
        told.recv_timeout(limit).unwrap_or_else(|_| {
            let trouble = Trouble::TimedOut { what: "no answer", limit_s: limit.as_secs() };
            Err(Error::Dest { dest: name.as_str().into(), object: "".into(), trouble })
        })
    }
}

/// Reaches places, all at the same time; why not, for those that can't be.
fn reach(around: &Around, places: &[Settings], known: &Known) -> Vec<(Settings, Result<Arc<Place>>)> {
    let begun: Vec<_> = places.iter().map(|settings| (settings.clone(), reaching(around, settings, known))).collect();
    begun.into_iter().map(|(settings, reached)| (settings, reached())).collect()
}

/// Completes destinations from any good copy; what is proven to be wrong there is replaced.
///
/// # Errors
/// What keeps dest.toml, dest.known or the index from being read.
pub fn sync(around: &Around, only: Option<&str>) -> Result<Vec<Report>> {
    let (mut places, known) = around.places()?;
    if let Some(name) = only {
        // One that is off may be named.
        let named = dest::named(&around.dir, name)?;
        if places.iter().all(|settings| settings.name != name) {
            places.push(named);
        }
    }
    let plan = around.plan()?;
    let reached = reach(around, &places, &known);
    let task = Task { on_bad: OnBad::Replace, drop: Arc::default(), leftovers: false };
    let mut reports = Vec::new();
    let is_meant = |settings: &&Settings| only.is_none_or(|name| settings.name == name);
    for settings in places.iter().filter(is_meant) {
        let sender = Sender::new(around, settings, &plan, task.clone());
        sender.close();
        let own = reached.iter().find(|(of, _)| of.name == settings.name).map(|(_, place)| place.clone());
        let report = match own {
            Some(Ok(place)) => {
                let others = reached.iter().filter(|(of, _)| of.name != settings.name);
                let others = others.filter_map(|(_, place)| place.as_ref().ok().cloned()).map(Sourced::Other);
                let sources: Vec<Sourced> = std::iter::once(Sourced::Home).chain(others).collect();
                sender.run(&known, Some(place), &sources);
                sender.wait(std::time::Instant::now(), around.limits.idle)
            }
            Some(Err(error)) => Report { trouble: Some(error), ..sender.wait_for_nothing() },
            None => continue,
        };
        reports.push(report);
    }
    Ok(reports)
}

/// What was compared at a destination.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    pub good: u64,
    pub good_bytes: u64,
    /// Not there.
    pub missing: u64,
    /// Other bytes, or another length.
    pub wrong: u64,
    /// What is right can't be told, for the backup dir itself lacks it.
    pub unknown: u64,
}

/// Compares presence, length and checksum of all that must be at a destination. Each failure is told.
///
/// # Errors
/// What keeps the destination from being asked.
pub fn verify(around: &Around, name: &str) -> Result<Verified> {
    let settings = dest::named(&around.dir, name)?;
    let known = super::known(&around.dir)?;
    let plan = around.plan()?;
    let pace = Arc::new(Pace::new(waited_for(around), None, around.monitor.clone()));
    let place = Place::reach(around, &settings, &known, &pace)?;
    place.check_foreign(&plan)?;
    let queue: Mutex<VecDeque<&Wanted>> = Mutex::new(plan.wanted.iter().collect());
    let (sum, stopped) = (Mutex::new(Verified::default()), Mutex::new(None));
    let work = || {
        while let Some(wanted) = { lock(&queue).pop_front() } {
            let done = place
                .facts_anywhere(wanted)
                .map_err(|error| (true, error))
                .and_then(|facts| place.verify(&facts).map(|()| facts.len_bytes).map_err(|error| (false, error)));
            let mut sum = lock(&sum);
            let error = match done {
                Ok(bytes) => {
                    sum.good += 1;
                    sum.good_bytes += bytes;
                    continue;
                }
                Err((_, Error::Interrupted)) => Err(Error::Interrupted),
                Err((true, error)) => {
                    sum.unknown += 1;
                    Ok(error)
                }
                Err((_, error @ Error::Dest { trouble: Trouble::NotFound, .. })) => {
                    sum.missing += 1;
                    Ok(error)
                }
                Err((_, error @ Error::Dest { trouble: Trouble::Checksum { .. }, .. })) => {
                    sum.wrong += 1;
                    Ok(error)
                }
                Err((_, error)) => Err(error),
            };
            drop(sum);
            match error {
                Ok(error) => around.monitor.event(Event::Failure { path: b"", error: &error }),
                Err(error) => {
                    lock(&stopped).get_or_insert(error);
                    lock(&queue).clear();
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..settings.workers {
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    match into_inner(stopped) {
        Some(error) => Err(error),
        None => Ok(into_inner(sum)),
    }
}

/// What `clear` did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleared {
    pub removed: u64,
    /// The place does not let us delete these.
    pub kept: u64,
}

/// Removes all arcs of this backup from a destination, after `confirm` was told how many, commits first. Its mark stays.
///
/// # Errors
/// `PROTECTED` where an arc has no other good copy: nothing is removed then. None: it was not confirmed.
pub fn clear(
    around: &Around,
    name: &str,
    _: &Lock,
    confirm: &dyn Fn(usize) -> Result<bool>,
) -> Result<Option<Cleared>> {
    let settings = dest::named(&around.dir, name)?;
    let (places, known) = around.places()?;
    let plan = around.plan()?;
    let pace = Arc::new(Pace::new(waited_for(around), None, around.monitor.clone()));
    let place = Place::reach(around, &settings, &known, &pace)?;
    place.check_foreign(&plan)?;
    let wanted: BTreeSet<ArcName> = plan.wanted.iter().map(|wanted| wanted.name).collect();
    // A recovery went without these: what they hold nobody here knows.
    let is_lost = |arc: &ArcName| match plan.whose(*arc) {
        Whose::Wanted => !wanted.contains(arc),
        whose => whose == Whose::Old,
    };
    if let Some(lost) = ours(&plan, &place).find(is_lost) {
        let what = format!("{lost} at {name} is of what this backup dir has lost: it may be the only copy");
        return Err(Error::Protected { what });
    }
    let others: Vec<Settings> = places.into_iter().filter(|other| other.name != name).collect();
    let mut reached: Option<Vec<Arc<Place>>> = None;
    for wanted in plan.wanted.iter().filter(|wanted| place.there.contains_key(&wanted.name)) {
        pace.check()?;
        if is_good_here(around, wanted, &pace) {
            continue;
        }
        let reached = reached.get_or_insert_with(|| {
            reach(around, &others, &known).into_iter().filter_map(|(_, place)| place.ok()).collect()
        });
        // A note is as old as it is: what is to be the last copy is read now.
        let has_it = |other: &Arc<Place>| other.facts_anywhere(wanted).is_ok_and(|facts| other.verify(&facts).is_ok());
        if !reached.iter().any(has_it) {
            let what = format!("{} has no other good copy than the one at {name}", wanted.name);
            return Err(Error::Protected { what });
        }
    }
    let mut going: Vec<ArcName> = ours(&plan, &place).collect();
    // Without its commit an arc is a leftover; the other way round the commit would name what is not there.
    going.sort_by_key(|arc| (arc.number != crate::backupdir::arcs::COMMIT_NUMBER, std::cmp::Reverse(*arc)));
    if !confirm(going.len())? {
        return Ok(None);
    }
    let mut cleared = Cleared::default();
    for arc in going {
        match place.ask(|storage| storage.remove(&arc.to_string())) {
            Ok(()) => {
                place.notes.forget(arc);
                cleared.removed += 1;
            }
            Err(Error::Dest { trouble: Trouble::Denied(_), .. }) => cleared.kept += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(Some(cleared))
}

fn ours<'a>(plan: &'a Plan, place: &'a Place) -> impl Iterator<Item = ArcName> + 'a {
    place.there.keys().copied().filter(|arc| plan.whose(*arc) != Whose::Foreign)
}

/// The backup dir has an arc with its recorded checksum.
fn is_good_here(around: &Around, wanted: &Wanted, pace: &Pace) -> bool {
    facts(around, wanted, pace).is_ok_and(|facts| Sourced::Home.is_good(around, &facts, pace))
}
