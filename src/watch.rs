//! `assay watch`: rounds in which what changed is looked at again, what is due is proven, what is wrong is mended, and what is
//! missing is sent.
//!
//! Invariants: a round only calls what `selftest`, `dest sync` and `dest status` do; nothing is kept between processes, so a
//! kill costs nothing but the round; what a good copy anywhere has is healed at once, and only what none has waits for
//! `recovery-wait`, in which a copy may come back that is only away; what is told was so when it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::copies::{self, Around, Condition, Standing, Stands};
use crate::error::Error;
use crate::findings::{Cause, Finding};
use crate::ids::ArcName;
use crate::monitor::Monitor;
use crate::selftest::{self, Fix, Level, Options, Report, Schedule, Scope};
use crate::text::{counted, shown};

/// How often names are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The first pause after a recovery that did not get all back; it doubles, up to `recovery_wait`.
const BACK_OFF: Duration = Duration::from_secs(60);
/// More arcs of a place that come to stand alike are told as one.
const TOLD_ONE_BY_ONE: usize = 10;

/// How it is done.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How often the next part is proven.
    pub interval: Duration,
    /// In what time all of it is.
    pub period: Duration,
    /// How long what no copy has right may come back by itself.
    pub recovery_wait: Duration,
    /// Bytes that a round may read.
    pub limit_bytes: Option<u64>,
}

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A copy stands otherwise than before.
    State,
    Damage,
    Healed,
    /// No copy has it right: what is left is put together later.
    Recovery,
    /// Bytes of a file that are nowhere any more.
    Lost,
    Sent,
    Behind,
    /// Something could not be done.
    Failed,
    /// A part was proven, and nothing is wrong with it.
    Proven,
}

impl Kind {
    pub fn text(self) -> &'static str {
        match self {
            Kind::State => "state",
            Kind::Damage => "damage",
            Kind::Healed => "healed",
            Kind::Recovery => "recovery",
            Kind::Lost => "lost",
            Kind::Sent => "sent",
            Kind::Behind => "behind",
            Kind::Failed => "failed",
            Kind::Proven => "proven",
        }
    }

    /// Whoever is responsible wants to hear of it.
    pub fn is_news(self) -> bool {
        self != Kind::Proven
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: Kind,
    pub text: String,
    pub arc: Option<ArcName>,
    pub dest: Option<String>,
}

/// A place, empty for the backup dir, and an arc there.
type Copy = (String, ArcName);

pub struct Watch<'a> {
    around: &'a Around,
    rules: Rules,
    monitor: &'a dyn Monitor,
    tell: &'a dyn Fn(&Event),
    seen: BTreeMap<Copy, Condition>,
    /// Arcs that were wrong, or had changed, when names were looked at last.
    doubtful: BTreeSet<ArcName>,
    /// What was wrong, or had changed, when an arc was read last: it is read again when there is more.
    read: BTreeMap<ArcName, BTreeSet<(String, Condition)>>,
    part_due: Instant,
    sending: Retry,
    recovery: Option<Retry>,
    troubles: Troubles,
}

/// What a round does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Look,
    Again,
    Part,
    Send,
    Recover,
    Lost,
}

/// What was told and stays: it is told again only once the act that met it was done without meeting it.
#[derive(Default)]
struct Troubles {
    told: BTreeMap<String, Act>,
    met: BTreeSet<String>,
}

impl Troubles {
    /// True the first time.
    fn meet(&mut self, act: Act, text: &str) -> bool {
        self.met.insert(text.to_string());
        self.told.insert(text.to_string(), act).is_none()
    }

    /// An act was done to its end.
    fn done(&mut self, act: Act) {
        let met = std::mem::take(&mut self.met);
        self.told.retain(|text, of| *of != act || met.contains(text));
    }
}

/// What is tried again, less and less often.
struct Retry {
    due: Instant,
    pause: Duration,
    tries: u32,
}

/// So often it is tried with pauses of no more than `recovery_wait`; then whoever writes is left alone for longer.
const EAGER_TRIES: u32 = 8;

impl Retry {
    fn after(wait: Duration) -> Retry {
        Retry { due: Instant::now() + wait, pause: BACK_OFF, tries: 0 }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// It failed: not sooner than after a pause, which grows.
    fn failed(&mut self, rules: &Rules) {
        let patient = rules.recovery_wait.max(rules.interval);
        let most = if self.tries < EAGER_TRIES { rules.recovery_wait } else { patient };
        let pause = self.pause.min(most);
        *self = Retry { due: Instant::now() + pause, pause: pause * 2, tries: self.tries.saturating_add(1) };
    }
}

/// What a round came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Damage was met, mended or not.
    pub met: bool,
    /// Damage that was met and is not mended.
    pub damaged: bool,
    /// Something could not be done, or is missing somewhere.
    pub incomplete: bool,
}

impl<'a> Watch<'a> {
    pub fn new(around: &'a Around, rules: Rules, monitor: &'a dyn Monitor, tell: &'a dyn Fn(&Event)) -> Watch<'a> {
        let (seen, troubles) = (BTreeMap::new(), Troubles::default());
        let (doubtful, read, part_due) = (BTreeSet::new(), BTreeMap::new(), Instant::now());
        let (sending, recovery) = (Retry::after(Duration::ZERO), None);
        Watch { around, rules, monitor, tell, seen, doubtful, read, part_due, sending, recovery, troubles }
    }

    /// How long nothing is to be done.
    pub fn rest(&self) -> Duration {
        let recovery = self.recovery.as_ref().map(|recovery| recovery.due);
        let next = recovery.into_iter().chain([self.part_due, self.sending.due]).min().unwrap_or(self.part_due);
        next.saturating_duration_since(Instant::now()).min(LOOK_EVERY).min(self.rules.interval)
    }

    /// One round. What fails in it is told, and the next one tries again.
    pub fn round(&mut self) -> Round {
        let mut round = Round::default();
        let all = self.look().unwrap_or_default();
        let doubts = self.doubts(&all);
        let again: Vec<ArcName> = doubts
            .iter()
            .filter(|(arc, now)| self.read.get(arc).is_none_or(|known| !now.is_subset(known)))
            .map(|(arc, _)| *arc)
            .collect();
        self.read.retain(|arc, _| doubts.contains_key(arc));
        if !again.is_empty() {
            let download_limit = self.rules.limit_bytes;
            let scope = Scope::Arcs(again.clone());
            if self.test(Act::Again, Options { scope, download_limit, ..self.options() }, &mut round).is_some() {
                let read = doubts.into_iter().filter(|(arc, _)| again.contains(arc));
                self.read.extend(read);
            }
        }
        if Instant::now() >= self.part_due && !self.monitor.interrupted() {
            self.part_due = Instant::now() + self.rules.interval;
            let (every_s, period_s) = (self.rules.interval.as_secs().max(1), self.rules.period.as_secs());
            let schedule = Schedule { every_s, period_s: period_s.max(every_s), limit_bytes: self.rules.limit_bytes };
            self.test(Act::Part, Options { inc: Some(schedule), ..self.options() }, &mut round);
        }
        if self.sending.is_due() {
            self.complete(&mut round);
        }
        self.recover(&mut round);
        self.look();
        round
    }

    /// Arcs of which something says that they are to be read now, and not only when their turn comes; and where.
    fn doubts(&self, all: &[Standing]) -> BTreeMap<ArcName, BTreeSet<(String, Condition)>> {
        let all = all.iter().map(|standing| (standing.arc, doubtful(standing)));
        all.filter(|(_, doubts)| !doubts.is_empty()).collect()
    }

    /// What every test here is like: all copies, and what a good one has is put right.
    fn options(&self) -> Options {
        Options { fix: Fix::FromCopies, ..Options::of(Level::AllCopies) }
    }

    fn event(&self, kind: Kind, text: impl Into<String>, arc: Option<ArcName>, dest: Option<&str>) {
        (self.tell)(&Event { kind, text: text.into(), arc, dest: dest.map(str::to_string) });
    }

    /// Tells what stays as it is, once.
    fn trouble(&mut self, act: Act, kind: Kind, text: String, dest: Option<&str>) {
        if self.troubles.meet(act, &text) {
            self.event(kind, text, None, dest);
        }
    }

    /// Looks at names, and tells what stands otherwise than before.
    fn look(&mut self) -> Option<Vec<Standing>> {
        let all = match copies::status(self.around, None) {
            Ok(all) => all,
            Err(error) => {
                self.trouble(Act::Look, Kind::Failed, format!("{}: {error}", error.code()), None);
                return None;
            }
        };
        self.troubles.done(Act::Look);
        self.doubtful = self.doubts(&all).into_keys().collect();
        let mut before = std::mem::take(&mut self.seen);
        let mut changed: BTreeMap<(String, Condition), Vec<(ArcName, String)>> = BTreeMap::new();
        for standing in &all {
            let here = standing.here.iter().map(|stands| (String::new(), stands));
            let there = standing.copies.iter().map(|copy| (copy.dest.clone(), &copy.stands));
            for (place, stands) in here.chain(there) {
                let known = before.remove(&(place.clone(), standing.arc));
                self.seen.insert((place.clone(), standing.arc), stands.condition);
                // At the start only what is not well is worth a line.
                let is_usual = matches!(stands.condition, Condition::Ready | Condition::Unknown);
                if known != Some(stands.condition) && !(known.is_none() && is_usual) {
                    let what = (standing.arc, stands.why.clone());
                    changed.entry((place, stands.condition)).or_default().push(what);
                }
            }
        }
        for ((place, condition), arcs) in changed {
            let dest = Some(place.as_str()).filter(|place| !place.is_empty());
            let at = dest.map_or_else(|| " here".to_string(), |dest| format!(" at {dest}"));
            if arcs.len() > TOLD_ONE_BY_ONE {
                let why = arcs.first().map(|(_, why)| why.as_str()).unwrap_or_default();
                let count = counted(arcs.len() as u64, "arc");
                self.event(Kind::State, format!("{count}{at}: {}{}", condition.text(), because(why)), None, dest);
                continue;
            }
            for (arc, why) in arcs {
                let text = format!("{arc}{at}: {}{}", condition.text(), because(&why));
                self.event(Kind::State, text, Some(arc), dest);
            }
        }
        Some(all)
    }

    /// Runs a test that mends, and tells what it found; None if it did not come to its end.
    fn test(&mut self, act: Act, options: Options, round: &mut Round) -> Option<Report> {
        if self.monitor.interrupted() {
            return None;
        }
        let report = match selftest::run_everywhere(self.around, &options, self.monitor) {
            Ok(report) => report,
            Err(Error::Interrupted) => return None,
            Err(error) => {
                round.incomplete = true;
                self.trouble(act, Kind::Failed, format!("{}: {error}", error.code()), None);
                return None;
            }
        };
        let mut by_arc: BTreeMap<(Option<ArcName>, Option<&str>), Vec<&Finding>> = BTreeMap::new();
        for finding in &report.findings {
            let arc = finding.place.as_ref().map(|place| place.arc);
            by_arc.entry((arc, finding.at.as_deref())).or_default().push(finding);
        }
        for ((arc, dest), findings) in by_arc {
            self.found(act, (arc, dest), &findings, round);
        }
        if report.interrupted {
            return None;
        }
        self.troubles.done(act);
        if report.findings.is_empty() {
            let there: u64 = report.copies.iter().map(|copy| copy.arcs).sum();
            let what = format!("{} here and {there} at destinations, nothing is wrong", counted(report.arcs, "arc"));
            self.event(Kind::Proven, what, None, None);
        }
        Some(report)
    }

    /// Tells what was found of one arc at one place, or of no arc, as one event.
    fn found(
        &mut self,
        act: Act,
        (arc, dest): (Option<ArcName>, Option<&str>),
        findings: &[&Finding],
        round: &mut Round,
    ) {
        let (unchecked, wrong): (Vec<&Finding>, Vec<&Finding>) =
            findings.iter().partition(|finding| finding.cause == Cause::Unchecked);
        for finding in unchecked {
            round.incomplete = true;
            self.trouble(act, Kind::Failed, said(finding), dest);
        }
        // What is left says more than what is mended.
        let open = wrong.iter().find(|finding| !finding.is_fixed());
        let Some(first) = open.or(wrong.first()) else { return };
        let more = wrong.len() as u64 - 1;
        let more = if more > 0 { format!(" (and {} more)", counted(more, "place")) } else { String::new() };
        let what = format!("{}{more}", said(first));
        round.met = true;
        if open.is_some() {
            round.damaged = true;
            if self.troubles.meet(act, &what) {
                self.event(Kind::Damage, what, arc, dest);
            }
            return;
        }
        self.event(Kind::Damage, what.clone(), arc, dest);
        let how = first.fixed.as_ref().map_or_else(String::new, |fixed| format!(": {fixed}"));
        self.event(Kind::Healed, format!("{what}{how}"), arc, dest);
    }

    /// Sends what destinations lack.
    fn complete(&mut self, round: &mut Round) {
        if self.monitor.interrupted() {
            return;
        }
        let sent = match copies::sync(self.around, None) {
            Ok(sent) => sent,
            Err(error) => {
                round.incomplete = true;
                self.sending.failed(&self.rules);
                return self.trouble(Act::Send, Kind::Failed, format!("{}: {error}", error.code()), None);
            }
        };
        let is_done = sent.iter().all(|report| report.ignored || (report.trouble.is_none() && report.behind == 0));
        match is_done {
            true => self.sending = Retry::after(self.rules.interval),
            false => self.sending.failed(&self.rules),
        }
        for report in sent {
            let dest = Some(report.name.as_str());
            if report.sent > 0 {
                let what = format!("{} sent to {}", counted(report.sent, "arc"), report.name);
                self.event(Kind::Sent, what, None, dest);
            }
            if let Some(error) = &report.trouble {
                round.incomplete |= !report.ignored;
                self.trouble(Act::Send, Kind::Failed, format!("{}: {error}", error.code()), dest);
            } else if report.behind > 0 {
                round.incomplete |= !report.ignored;
                let what = format!("{} is behind: {}", report.name, counted(report.behind, "arc"));
                self.trouble(Act::Send, Kind::Behind, what, dest);
            }
        }
        self.troubles.done(Act::Send);
    }

    /// Puts together what no copy has right, once the wait is over.
    fn recover(&mut self, round: &mut Round) {
        if !round.damaged && self.recovery.is_none() {
            return;
        }
        let Some(recovery) = &self.recovery else {
            self.recovery = Some(Retry::after(self.rules.recovery_wait));
            let wait_s = self.rules.recovery_wait.as_secs();
            let what = format!("no good copy of all of it: in {wait_s} s what is left is put together");
            return self.event(Kind::Recovery, what, None, None);
        };
        if !recovery.is_due() || self.monitor.interrupted() {
            round.damaged = true;
            return;
        }
        // All that is known to be wrong, by the ledger and the notes: what was healed meanwhile reads right.
        let wrong: Vec<ArcName> = self.doubtful.iter().copied().collect();
        let scope = if wrong.is_empty() { Scope::Everything } else { Scope::Arcs(wrong) };
        let level = if scope == Scope::Everything { Level::Structure } else { Level::AllCopies };
        let met_now = round.damaged;
        let mut done = Round::default();
        let report = self.test(Act::Recover, Options { scope, fix: Fix::Correct, ..Options::of(level) }, &mut done);
        let has_run = report.is_some();
        (round.met, round.incomplete) = (round.met | done.met, round.incomplete | done.incomplete);
        if has_run && !done.damaged && !met_now {
            self.recovery = None;
            return self.event(Kind::Healed, "what is left was put together: nothing is known to be wrong", None, None);
        }
        round.damaged = true;
        if let Some(recovery) = &mut self.recovery {
            recovery.failed(&self.rules);
        }
        let left = report.into_iter().flat_map(|report| report.findings).filter(|finding| !finding.is_fixed());
        for finding in left {
            for hit in &finding.hits {
                let (first, last) = hit.versions;
                let versions = if first == last { first.to_string() } else { format!("{first} to {last}") };
                let text = format!("{} in {versions}, bytes {}-{}", shown(&hit.path), hit.bytes.start, hit.bytes.end);
                self.trouble(Act::Lost, Kind::Lost, text, finding.at.as_deref());
            }
        }
        self.troubles.done(Act::Lost);
    }
}

fn said(finding: &Finding) -> String {
    match (&finding.error, &finding.at) {
        (Error::Dest { .. }, _) | (_, None) => format!("{}: {}", finding.error.code(), finding.error),
        (error, Some(dest)) => format!("{}: at {dest}: {error}", error.code()),
    }
}

fn because(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(": {why}") }
}

fn is_wrong(condition: Condition) -> bool {
    matches!(condition, Condition::Failed | Condition::Missing)
}

/// Places where it is wrong, or another one than was looked at.
fn doubtful(standing: &Standing) -> BTreeSet<(String, Condition)> {
    let here = standing.here.iter().map(|stands| (String::new(), stands));
    // What was never sent is behind, and what is off is nobody's.
    let there = standing.copies.iter().filter(|copy| copy.noted.is_some() && !copy.is_off);
    let there = there.map(|copy| (copy.dest.clone(), &copy.stands));
    let is_doubtful = |stands: &Stands| is_wrong(stands.condition) || stands.has_changed;
    let doubtful = here.chain(there).filter(|(_, stands)| is_doubtful(stands));
    doubtful.map(|(place, stands)| (place, stands.condition)).collect()
}
