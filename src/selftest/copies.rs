//! v4: the copies at destinations, one after the other.
//!
//! Invariants: what can't be asked is unknown, never damaged; what was never sent there is behind, never missing; each is told
//! and counted, and holds up no other. At a destination one arc is read at a time, once, and compared with its recorded
//! SHA-256; all that is asked is counted, and nothing is asked beyond the limit.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use super::blocks::Run;
use super::inc;
use super::medium::{self, Job};
use super::plan::Plan;
use super::shell::BadPart;
use super::{Exam, Level, Report, Schedule};
use crate::catalog::ArcEntry;
use crate::copies::{self, Around, Budget, Meter, Proving, State};
use crate::depot::{Depot, Reach};
use crate::dest::{self, Settings, Sum, settings::OnFail};
use crate::error::{Damage, Error, Place, Result, Trouble};
use crate::findings::{Advice, Cause, Finding, Fixed, Part, Spot};
use crate::ids::ArcName;
use crate::ledger;
use crate::sync::{into_inner, lock};
use crate::text::counted;

/// More reads at a time don't make a line faster.
const MOST_READS: usize = 16;

/// What a selftest did at one destination.
#[derive(Debug, Clone, Default)]
pub struct CopyReport {
    pub name: String,
    /// Its failures don't count.
    pub ignored: bool,
    /// Arcs that were read, all of them or what was to be read of them, and are right; commits too.
    pub arcs: u64,
    pub blocks: u64,
    /// Plain bytes of these blocks.
    pub bytes: u64,
    /// Arcs in which something is wrong.
    pub damaged: u64,
    /// Arcs that were there, and are not.
    pub missing: u64,
    /// Arcs that must be there or were to be read, and were not.
    pub unproven: u64,
    pub requests: u64,
    pub fetched_bytes: u64,
    /// Why no more was done.
    pub trouble: Option<Error>,
}

pub(super) fn check(exam: &Exam<'_>, plan: &Plan, report: &mut Report) -> Result<()> {
    let places = exam.around.map_or(Ok(Vec::new()), |around| dest::all(&around.dir));
    let mut places = match places {
        Ok(places) => places,
        Err(error) => {
            exam.findings.add(Finding::new(Level::AllCopies, Cause::Unchecked, error));
            return Ok(());
        }
    };
    // What one that is off has is not known.
    let is_complete = places.iter().all(|settings| !settings.off);
    places.retain(|settings| !settings.off);
    let is_away = |entry: &&ArcEntry| is_complete && exam.dir.arcs().reach_of(entry.name) == Reach::Far;
    let mut nowhere: BTreeSet<ArcName> = plan.arcs.iter().filter(is_away).map(|entry| entry.name).collect();
    let Some(around) = exam.around.filter(|_| !places.is_empty()) else {
        report.notes.push("no destinations were asked: -v4 did what -v3 does".into());
        return Ok(());
    };
    if !plan.indexed {
        let what = "the destinations were not asked: that needs the index".into();
        let error = Error::IndexDamaged { path: exam.index.path().to_path_buf(), what };
        exam.findings.add(Finding::new(Level::AllCopies, Cause::Unchecked, error));
        return Ok(());
    }
    let budget = exam.options.download_limit.map(|limit| Arc::new(Budget::new(limit)));
    // What is left of a schedule's limit is for these.
    let mut left = exam.options.inc.and_then(|schedule| schedule.limit_bytes);
    left = left.map(|left| left.saturating_sub(exam.due.as_ref().map_or(0, |due| due.bytes)));
    for (settings, number) in places.iter().zip(1..) {
        if exam.monitor.interrupted() {
            break;
        }
        let meter = Arc::new(Meter::new(budget.clone()));
        let mut copy = CopyReport {
            name: settings.name.clone(),
            ignored: settings.on_fail == OnFail::Ignore,
            ..CopyReport::default()
        };
        let share = left.map(|left| left / (places.len() as u64 + 1 - number));
        let limit = share.into_iter().chain(budget.as_ref().map(|budget| budget.left())).min();
        let mut visit = Visit { exam, around, settings, copy: &mut copy, due_bytes: 0, behind: BTreeSet::new() };
        let done = visit.all(plan, &meter, limit, report);
        left = left.map(|left| left.saturating_sub(visit.due_bytes));
        nowhere.retain(|name| visit.behind.contains(name));
        match done {
            Ok(()) | Err(Error::Interrupted) => {}
            Err(error) => visit.unknown(error, report),
        }
        let traffic = meter.traffic();
        (copy.requests, copy.fetched_bytes) = (traffic.requests, traffic.bytes);
        report.copies.push(copy);
    }
    // An arc that is not here and was never sent to any of them: behind is each of them, and lost is the arc.
    for arc in nowhere.into_iter().filter(|_| !exam.monitor.interrupted()) {
        let place = Place::in_arc(arc, 0);
        let error = Error::Arc { place: place.clone(), damage: Damage::Missing };
        exam.findings.add(Finding { place: Some(place), ..Finding::new(Level::AllCopies, Cause::Missing, error) });
    }
    Ok(())
}

/// Has destinations completed from the good copies that there are by now; what was wrong there learns what came of it.
pub(super) fn complete(exam: &Exam<'_>, report: &Report) {
    let is_open = |finding: &Finding| {
        let may_be_sent = matches!(finding.cause, Cause::Medium | Cause::Memory | Cause::Missing | Cause::Catalog)
            || finding.advice == Advice::SyncCopy;
        finding.at.is_some() && finding.fixed.is_none() && may_be_sent
    };
    let Some(around) = exam.within_limit(report) else { return };
    let sent = exam.findings.work_on(|findings| {
        if !findings.iter().any(is_open) {
            return Ok(());
        }
        for report in copies::sync(&around, None)? {
            let noted = around.states(&report.name);
            let is_complete = report.behind == 0 && report.failed == 0 && report.trouble.is_none();
            let why = report.trouble.as_ref().map_or("no copy of it is good".into(), Error::to_string);
            let of_place = |finding: &&mut Finding| finding.at.as_deref() == Some(report.name.as_str());
            for finding in findings.iter_mut().filter(of_place).filter(|finding| is_open(finding)) {
                let state = finding.place.as_ref().and_then(|place| noted.get(&place.arc).copied());
                finding.fixed = Some(match state {
                    Some(State::Proven) => Fixed::SentAgain { is_proven: true },
                    Some(State::Unverified) => Fixed::SentAgain { is_proven: false },
                    None if is_complete => Fixed::SentAgain { is_proven: true },
                    _ => Fixed::Not { why: why.clone() },
                });
            }
        }
        Ok(())
    });
    if let Err(error) = sent {
        exam.findings.add(Finding::new(Level::AllCopies, Cause::Unchecked, error));
    }
}

/// One destination.
struct Visit<'a> {
    exam: &'a Exam<'a>,
    around: &'a Around,
    settings: &'a Settings,
    copy: &'a mut CopyReport,
    /// What a schedule has chosen here.
    due_bytes: u64,
    /// Arcs that were never sent there.
    behind: BTreeSet<ArcName>,
}

impl Visit<'_> {
    fn all(&mut self, plan: &Plan, meter: &Arc<Meter>, limit: Option<u64>, report: &mut Report) -> Result<()> {
        // All of it, until something was read.
        self.copy.unproven = (plan.arcs.len() + plan.commits.len()) as u64;
        let far = Proving::reach(self.around, self.settings, meter)?;
        let wanted = |name: ArcName| far.is_wanted(name);
        let there = plan.arcs.iter().filter(|entry| wanted(entry.name)).cloned();
        let (behind, mut arcs): (Vec<ArcEntry>, Vec<ArcEntry>) = there.partition(|entry| far.is_behind(entry.name));
        self.copy.unproven = (arcs.len() + behind.len()) as u64;
        self.behind = behind.iter().map(|entry| entry.name).collect();
        let behind_commits = self.commits(&far, plan);
        let behind: Vec<ArcName> = behind.iter().map(|entry| entry.name).chain(behind_commits).collect();
        let mut due = None;
        if let Some(schedule) = &self.exam.options.inc {
            let chosen = inc::due_there(self.exam, &schedule.within(limit), far.id(), &arcs)?;
            report.notes.extend(chosen.notes(Some(far.name())));
            self.due_bytes = chosen.bytes;
            self.copy.unproven -= arcs.len() as u64;
            arcs.retain(|entry| !chosen.frames(entry.serial).is_empty());
            self.copy.unproven += arcs.len() as u64;
            due = Some(chosen);
        }
        let expected = if self.exam.options.sample.is_some() { 0 } else { self.expected(&arcs, due.as_ref()) };
        self.exam.show_expected(arcs.len() as u64, expected);
        let plan = Plan { arcs, indexed: true, ..Plan::default() };
        let run = Run::far(self.exam, &far, &plan, due.as_ref());
        let reads = (self.settings.workers as usize).min(MOST_READS);
        medium::verify_all(self.exam.dir.keys(), run.jobs(), reads, &run)?;
        let outcome = run.tell(&mut report.notes);
        self.copy.blocks += outcome.blocks;
        self.copy.bytes += outcome.plain_bytes;
        self.count(outcome.arcs, outcome.damaged, outcome.missing);
        if let Some(first) = behind.first() {
            let what = match behind.len() {
                1 => format!("{first} was"),
                many => format!("{} were, {first} first,", counted(many as u64, "arc")),
            };
            let error = self.trouble(Trouble::Behind(what));
            self.tell(Cause::Unchecked, error, report);
        }
        far.lost().map_or(Ok(()), Err)
    }

    fn expected(&self, arcs: &[ArcEntry], due: Option<&inc::Due>) -> u64 {
        due.map_or_else(|| arcs.iter().map(|entry| entry.arc_bytes).sum(), |due| due.bytes)
    }

    /// Proves the commits that are to be there; gives those that were never sent.
    fn commits(&mut self, far: &Proving, plan: &Plan) -> Vec<ArcName> {
        let schedule: Option<&Schedule> = self.exam.options.inc.as_ref();
        let now_s = ledger::now_s();
        let is_meant = |name: ArcName| plan.commits.contains(&name.version);
        let is_due = |name| schedule.is_none_or(|schedule| schedule.is_due(far.proven_s(name), now_s));
        let meant = far.commits().iter().filter(|wanted| is_meant(wanted.name));
        let (behind, there): (Vec<_>, Vec<_>) = meant.partition(|wanted| far.is_behind(wanted.name));
        let due: VecDeque<_> = there.into_iter().filter(|wanted| is_due(wanted.name)).collect();
        self.copy.unproven += (due.len() + behind.len()) as u64;
        let (queue, done) = (Mutex::new(due), Mutex::new(Vec::new()));
        let work = || {
            while let Some(wanted) = { lock(&queue).pop_front() } {
                if far.lost().is_some() || self.exam.monitor.interrupted() {
                    return;
                }
                let found = far.commit(wanted).err();
                lock(&done).push((wanted.name, found));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..(self.settings.workers as usize).min(MOST_READS) {
                // With fewer threads it only takes longer.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        let mut done = into_inner(done);
        done.sort_by_key(|(name, _)| *name);
        for (name, error) in done {
            self.commit(far, name, error);
        }
        behind.iter().map(|wanted| wanted.name).collect()
    }

    fn commit(&mut self, far: &Proving, name: ArcName, error: Option<Error>) {
        let Some(error) = error else { return self.count(1, 0, 0) };
        let (cause, error) = match error {
            Error::Dest { trouble: Trouble::NotFound, .. } => {
                let place = Place::in_arc(name, 0);
                (Cause::Missing, Error::Arc { place, damage: Damage::Missing })
            }
            Error::Dest { trouble: Trouble::Checksum { .. }, .. } => (Cause::Medium, error),
            // Told once for the whole place.
            error if far.lost().is_some() && !error.is_damage() => return drop(error),
            error => (Cause::of(&error), error),
        };
        self.count(0, u64::from(cause != Cause::Missing && error.is_damage()), u64::from(cause == Cause::Missing));
        let place = Some(Place::in_arc(name, 0));
        let spot = Some(Spot { copy: far.id(), serial: None, part: Part::Whole });
        let finding = Finding::new(Level::AllCopies, cause, error).at(Some(far.name()));
        self.exam.findings.add(Finding { place, spot, ..finding });
    }

    /// So many arcs were read.
    fn count(&mut self, right: u64, damaged: u64, missing: u64) {
        let copy = &mut *self.copy;
        (copy.arcs, copy.damaged, copy.missing) = (copy.arcs + right, copy.damaged + damaged, copy.missing + missing);
        copy.unproven = copy.unproven.saturating_sub(right + damaged + missing);
    }

    fn trouble(&self, trouble: Trouble) -> Error {
        Error::Dest { dest: self.settings.name.as_str().into(), object: "".into(), trouble }
    }

    /// Nothing more can be asked of it: what was not read is not known.
    fn unknown(&mut self, error: Error, report: &mut Report) {
        self.copy.trouble = Some(error.clone());
        self.tell(Cause::Unchecked, error, report);
    }

    fn tell(&self, cause: Cause, error: Error, report: &mut Report) {
        if self.copy.ignored {
            report.notes.push(format!("{error} (its failures are ignored)"));
            return;
        }
        let advice = match &error {
            Error::Dest { trouble: Trouble::Behind(_), .. } => Some(Advice::SyncCopy),
            _ => None,
        };
        let finding = Finding::new(Level::AllCopies, cause, error).at(Some(&self.settings.name));
        self.exam.findings.add(Finding { advice: advice.unwrap_or(finding.advice), ..finding });
    }
}

impl Run<'_> {
    /// All that was asked of an arc at a destination was judged, or nothing more can be asked there.
    pub fn close_far(&self, mut job: Job, far: &Proving) {
        let is_over = far.lost().is_some();
        if is_over {
            // What was found until then stands; the rest was not seen.
            job.bad_parts.retain(|bad_part| bad_part.error.is_damage());
            lock(&job.bad).retain(|bad| bad.error.is_damage());
            lock(&self.unread).insert(job.name);
        } else {
            self.closed(&job);
        }
        let name = job.name;
        let entry = self.entry(job.serial).filter(|entry| !is_over && self.is_asked(entry));
        let sum = job.sum.take().map(into_inner);
        let found = sum.zip(entry).and_then(|(sum, entry)| {
            let len = entry.arc_bytes.checked_sub(entry.footer_offset)?;
            sum.end(entry.footer_offset, &job.bytes.exactly(entry.footer_offset, len as usize).ok()?)
        });
        self.judge(job);
        if let Some(entry) = entry {
            self.conclude(entry, found, far);
        }
        let is_right = !is_over && !self.is_wrong(name) && !lock(&self.unread).contains(&name);
        self.right.fetch_add(u64::from(is_right), Relaxed);
    }

    /// What was read and judged part by part, as a whole.
    fn conclude(&self, entry: &ArcEntry, found: Option<Sum>, far: &Proving) {
        let is_wrong = self.is_wrong(entry.name);
        match far.conclude(entry, found, is_wrong) {
            Ok(()) => {}
            Err(error) if !error.is_damage() => drop(lock(&self.unread).insert(entry.name)),
            // It is a finding already, with its place: this has both sums.
            Err(error) if is_wrong => far.tell(&error),
            Err(error) => {
                let bad_part = BadPart { part: Part::Whole, offset: 0, error, cause: Cause::Medium };
                self.bad_part(entry.name, Some(entry), &bad_part);
            }
        }
    }
}
