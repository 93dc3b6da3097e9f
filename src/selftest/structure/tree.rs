//! Rules of names, directories and versions: who is where, when, and how many.
//!
//! Invariants: entries are walked in key order, once for each window of file states; per directory only its own states
//! and counts are held, per version four numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::content::{Contents, Fact, WINDOW};
use super::{Cause, Check, Ground, Subject};
use crate::catalog::{Child, Kind};
use crate::error::Result;
use crate::ids::{Dirno, Logid, Version};
use crate::index::{Ascent, Cursor, DirValue, ScanTable, Scanned, Span};
use crate::text::shown;

/// Recently met directories whose states are remembered.
const MAX_KNOWN: usize = 256;

/// From a version on, until another one.
type Interval = (Version, Option<Version>);

/// Checks nodes, extents, entries, dirs and versions.
pub fn check(check: &Check<'_>, ground: &Ground<'_, '_>) -> Result<()> {
    let mut contents = Contents::new(check, ground);
    let mut totals = Totals::default();
    let mut from = Logid(0);
    loop {
        let facts = contents.window()?;
        let last = facts.len() < WINDOW;
        let end = if last { None } else { facts.last().map(|fact| Logid(fact.logid.0 + 1)) };
        let mut pass = Pass {
            check,
            ground,
            first: from == Logid(0),
            from,
            end,
            facts,
            totals: &mut totals,
            known: HashMap::new(),
        };
        pass.run()?;
        pass.too_many_names()?;
        match end {
            Some(end) => from = end,
            None => break,
        }
    }
    versions(check, ground, &totals)
}

/// Files, directories, others, bytes that come and go with each version; modulo 2^64, as a version's totals are.
#[derive(Default)]
pub struct Totals(BTreeMap<Version, [i64; 4]>);

impl Totals {
    pub fn add(&mut self, span: &Span, what: [i64; 4]) {
        let ends = [(Some(span.from), 1), (span.to, -1)];
        for (v, sign) in ends.into_iter().filter_map(|(v, sign)| Some((v?, sign))) {
            for (sum, part) in self.0.entry(v).or_default().iter_mut().zip(what) {
                // Sizes may add up to anything: what is compared is their sum modulo 2^64.
                *sum = sum.wrapping_add(part.wrapping_mul(sign));
            }
        }
    }
}

/// One walk over all entries, for file states `from..end`.
struct Pass<'c, 's, 'i> {
    check: &'c Check<'c>,
    ground: &'c Ground<'s, 'i>,
    /// Also checks what needs no file states.
    first: bool,
    from: Logid,
    end: Option<Logid>,
    facts: Vec<Fact>,
    totals: &'c mut Totals,
    known: HashMap<Dirno, std::rc::Rc<Vec<(Version, DirValue)>>>,
}

impl Pass<'_, '_, '_> {
    fn run(&mut self) -> Result<()> {
        let rows = self.ground.rows;
        let mut entries = rows.cursor(ScanTable::Entries);
        let mut dirs = rows.cursor(ScanTable::Dirs);
        let mut lost = rows.cursor(ScanTable::Lost);
        let mut steps = 0u32;
        loop {
            steps = steps.wrapping_add(1);
            if steps.is_multiple_of(1 << 10) {
                self.check.interrupted()?;
            }
            let entry_dir = next(self, &mut entries, ScanTable::Entries);
            let dir = if self.first { next(self, &mut dirs, ScanTable::Dirs) } else { None };
            let Some(dirno) = entry_dir.into_iter().chain(dir).min() else { return Ok(()) };
            let mut here = Here::new(dirno);
            if self.first {
                self.states(&mut here, &mut dirs);
                self.losses(&mut here, &mut lost);
                self.place(&here)?;
            }
            while next(self, &mut entries, ScanTable::Entries) == Some(dirno) {
                let Some(Scanned::Row(row)) = entries.take() else { break };
                match row.span(rows.index()) {
                    Ok(span) => self.entry(&mut here, span)?,
                    Err(error) => {
                        let hits = self.ground.names.dir_anywhere(dirno);
                        self.check.report(Subject::Dir(dirno), error, Cause::Index, hits);
                        here.torn = true;
                    }
                }
            }
            if self.first && !here.torn {
                self.count(&here);
            }
        }
    }

    fn states(&self, here: &mut Here, dirs: &mut Cursor<'_, '_>) {
        while matches!(dirs.peek(), Some(Scanned::Row(row)) if row.key.dirno() == here.dirno) {
            let Some(Scanned::Row(row)) = dirs.take() else { return };
            match self.ground.rows.open_dir(&row) {
                Ok(value) => here.states.push((row.key.version(), value)),
                Err(error) => {
                    let hits = self.ground.names.dir_anywhere(here.dirno);
                    self.check.report(Subject::Dir(here.dirno), error, Cause::Index, hits);
                    here.torn = true;
                }
            }
        }
    }

    fn losses(&self, here: &mut Here, lost: &mut Cursor<'_, '_>) {
        loop {
            match lost.peek() {
                Some(Scanned::Row(row)) if row.key.dirno() <= here.dirno => {}
                Some(Scanned::Bad { .. }) => {}
                _ => return,
            }
            match lost.take() {
                Some(Scanned::Row(row)) => {
                    let until = row.lost_until(self.ground.rows.index());
                    let backwards = until.as_ref().is_ok_and(|to| to.is_some_and(|to| to <= row.key.version()));
                    if let Some(error) = until.as_ref().err() {
                        let subject = Subject::Dir(row.key.dirno());
                        self.check.report(subject, error.clone(), Cause::Index, Vec::new());
                        here.torn = true;
                    } else if backwards {
                        self.dir_broken(row.key.dirno(), row.key.version(), "its listing is lost until before it was");
                    } else if let (Ok(until), true) = (until, row.key.dirno() == here.dirno) {
                        here.lost.push((row.key.version(), until));
                    }
                }
                Some(Scanned::Bad { after, before, error }) => {
                    self.check.unreadable(ScanTable::Lost, &after, before.as_ref(), error, None);
                    here.torn = true;
                }
                None => return,
            }
        }
    }

    /// A directory that is there has one name, in a directory that is there, all the time.
    fn place(&self, here: &Here) -> Result<()> {
        let Some((since, first)) = here.states.first() else { return Ok(()) };
        if here.dirno == Dirno::ROOT || here.torn || self.check.blind(ScanTable::Entries) {
            return Ok(());
        }
        if let Some((v, _)) =
            here.states.iter().find(|(_, value)| value.parent != first.parent || value.name != first.name)
        {
            self.dir_broken(here.dirno, *v, "it has another place or name than before");
            return Ok(());
        }
        if first.parent >= here.dirno && self.is_below_itself(here.dirno, *since)? {
            // It has no path.
            let what = format!("directory {} is below itself", here.dirno.0);
            self.check.broken(self.ground, Subject::Dir(here.dirno), what, Vec::new());
            return Ok(());
        }
        let spans = match self.ground.rows.spans(first.parent, &first.name) {
            Ok(spans) => spans,
            // The row is told about where it is walked over.
            Err(_) => return Ok(()),
        };
        let named: Vec<Interval> =
            spans.iter().filter(|span| span.child == Child::Dir(here.dirno)).map(|span| (span.from, span.to)).collect();
        for (from, to) in here.alive() {
            if !covers(&named, from, to) && !self.check.knows(Subject::Dir(first.parent)) {
                // What is missing is a name in the parent.
                let path = shown(&self.ground.names.dir(from, here.dirno)).to_string();
                let what = format!("{path}: no name leads to this directory all the time from {from} on");
                let hits = self.ground.names.dir_hit(here.dirno, from, to);
                let subject = if self.check.knows(Subject::Dir(here.dirno)) {
                    Subject::Dir(here.dirno)
                } else {
                    Subject::Dir(first.parent)
                };
                self.check.broken(self.ground, subject, what, hits);
            }
        }
        Ok(())
    }

    fn is_below_itself(&self, dirno: Dirno, v: Version) -> Result<bool> {
        let mut at = dirno;
        let mut ascent = Ascent::from(dirno);
        while at != Dirno::ROOT {
            match self.ground.rows.dir_at(at, v) {
                Ok(Some((_, value))) => at = value.parent,
                _ => return Ok(false),
            }
            if !ascent.step(at) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn entry(&mut self, here: &mut Here, span: Span) -> Result<()> {
        if self.first {
            self.entry_alone(here, &span)?;
        }
        let Child::Node(logid) = span.child else { return Ok(()) };
        let in_window = logid >= self.from && self.end.is_none_or(|end| logid < end);
        if !in_window {
            return Ok(());
        }
        let found = self.facts.binary_search_by_key(&logid, |fact| fact.logid).ok();
        match found.and_then(|at| self.facts.get_mut(at)) {
            Some(fact) if fact.kind == span.kind => {
                let needed = fact.packed_away && self.ground.needed.meets(span.from, span.to);
                if needed && !self.check.knows(Subject::File(logid)) {
                    self.check.file_broken(self.ground, logid, "content of it is in an arc that was dropped");
                }
                fact.named = fact.named.saturating_add(1);
                if fact.kind == Kind::File {
                    self.totals.add(&span, [0, 0, 0, fact.size as i64]);
                }
            }
            Some(_) if self.check.knows(Subject::Dir(span.parent)) => {}
            Some(_) => self.check.file_broken(self.ground, logid, "a name says that it is of another type"),
            None if self.ground.gaps || self.check.blind(ScanTable::Nodes) => {}
            // A name that leads nowhere: the name itself may be wrong, or the file's row gone.
            None if self.check.knows(Subject::Dir(span.parent)) => {}
            None => {
                let hit = self.ground.names.span(&span);
                let what = format!("{}: file {} has no row", shown(&hit.path), logid.0);
                self.check.broken(self.ground, Subject::File(logid), what, vec![hit]);
            }
        }
        Ok(())
    }

    fn entry_alone(&mut self, here: &mut Here, span: &Span) -> Result<()> {
        match (span.kind, span.child) {
            (Kind::Dir, _) => self.totals.add(span, [0, 1, 0, 0]),
            (Kind::File, _) => self.totals.add(span, [1, 0, 0, 0]),
            _ => self.totals.add(span, [0, 0, 1, 0]),
        }
        *here.counts.entry(span.from).or_default() += 1;
        if let Some(to) = span.to {
            *here.counts.entry(to).or_default() -= 1;
        }
        let wrong = if span.to.is_some_and(|to| to <= span.from) {
            Some("ends before it begins")
        } else if here
            .before
            .as_ref()
            .is_some_and(|before| before.name == span.name && before.to.is_none_or(|to| to > span.from))
        {
            Some("stands for two things at the same time")
        } else {
            None
        };
        if let Some(what) = wrong {
            self.name_broken(Subject::Dir(span.parent), span, what);
        } else if !self.check.blind(ScanTable::Dirs) && !here.torn {
            let nowhere = here.states.is_empty();
            if !self.is_there(&here.states, span) {
                let what =
                    if nowhere { "is in a directory that has no row" } else { "is in a directory that is not there" };
                self.name_broken(Subject::Dir(span.parent), span, what);
            }
            if let Child::Dir(dirno) = span.child
                && !self.leads_to(dirno, span)
                && !self.check.knows(Subject::Dir(span.parent))
            {
                self.name_broken(Subject::Dir(dirno), span, "leads to a directory that is not there, or elsewhere");
            }
        }
        here.before = Some(span.clone());
        Ok(())
    }

    /// While the name is there the directory is, under this name.
    fn leads_to(&mut self, dirno: Dirno, span: &Span) -> bool {
        let states = match self.known.get(&dirno) {
            Some(states) => states.clone(),
            None => {
                // A row that can't be opened is told about where it is walked over.
                let Ok(states) = self.ground.rows.dir_states(dirno) else { return true };
                if self.known.len() >= MAX_KNOWN {
                    self.known.clear();
                }
                let states = std::rc::Rc::new(states);
                self.known.insert(dirno, states.clone());
                states
            }
        };
        let here = states.iter().all(|(_, value)| value.parent == span.parent && value.name == span.name);
        here && self.is_there(&states, span)
    }

    /// A directory with these states is there all the time that a name is.
    fn is_there(&self, states: &[(Version, DirValue)], span: &Span) -> bool {
        let first = states.first().map(|(since, _)| *since);
        // A recovery from damaged catalogs may know names from before it knows of the directory.
        let from = if self.ground.gaps { first.map_or(span.from, |first| first.max(span.from)) } else { span.from };
        let unknown = self.ground.gaps && (first.is_none() || span.to.is_some_and(|to| to <= from));
        unknown || covers(&alive(states), from, span.to)
    }

    /// The number of names in each version is the one that the directory had.
    fn count(&self, here: &Here) {
        if self.check.blind(ScanTable::Entries) || self.check.blind(ScanTable::Dirs) {
            return;
        }
        let mut points: BTreeSet<Version> = here.counts.keys().copied().collect();
        points.extend(here.states.iter().map(|(v, _)| *v));
        points.extend(here.lost.iter().flat_map(|(from, to)| [Some(*from), *to]).flatten());
        let mut counts = here.counts.iter().peekable();
        let mut names = 0i64;
        for v in points {
            while let Some((_, change)) = counts.next_if(|(at, _)| **at <= v) {
                names += change;
            }
            let is_lost = here.lost.iter().any(|(from, to)| *from <= v && to.is_none_or(|to| v < to));
            let state = here.states.iter().rev().find(|(since, _)| *since <= v).map(|(_, value)| value);
            let Some(value) = state.filter(|value| !value.gone && !is_lost) else { continue };
            match &value.state {
                Some(state) if !state.listing.is_of_all() || i64::try_from(state.children) == Ok(names) => {}
                Some(state) => {
                    let what = format!("it has {names} names in {v}, and {} by its own record", state.children);
                    return self.dir_broken(here.dirno, v, &what);
                }
                None if self.ground.any_lost || self.ground.gaps => {}
                None => return self.dir_broken(here.dirno, v, "it has no attributes"),
            }
        }
    }

    /// Names of one file in one version are at most its links. Whole catalogs that say otherwise saw links change.
    fn too_many_names(&self) -> Result<()> {
        if self.ground.proven || self.check.blind(ScanTable::Nodes) {
            return Ok(());
        }
        let many = |fact: &&Fact| u32::from(fact.named) > fact.nlink;
        let mut suspects: BTreeMap<Logid, (u32, Vec<Interval>)> =
            self.facts.iter().filter(many).map(|fact| (fact.logid, (fact.nlink, Vec::new()))).collect();
        if suspects.is_empty() {
            return Ok(());
        }
        let mut entries = self.ground.rows.cursor(ScanTable::Entries);
        while let Some(scanned) = entries.take() {
            let Scanned::Row(row) = scanned else { continue };
            let Ok(span) = row.span(self.ground.rows.index()) else { continue };
            if let Child::Node(logid) = span.child
                && let Some((_, spans)) = suspects.get_mut(&logid)
            {
                // A name that is known to be wrong is none too many.
                if !self.check.knows(Subject::Dir(span.parent)) {
                    spans.push((span.from, span.to));
                }
            }
        }
        for (logid, (nlink, spans)) in suspects {
            let at = |v: Version| spans.iter().filter(|(from, to)| *from <= v && to.is_none_or(|to| v < to)).count();
            if let Some((v, _)) = spans.iter().find(|(from, _)| at(*from) > nlink as usize) {
                let what = format!("it has {} names in {v}, and {nlink} links", at(*v));
                self.check.file_broken(self.ground, logid, &what);
            }
        }
        Ok(())
    }

    fn dir_broken(&self, dirno: Dirno, v: Version, what: &str) {
        let path = shown(&self.ground.names.dir(v, dirno)).to_string();
        let hits = self.ground.names.dir_hit(dirno, v, None);
        self.check.broken(self.ground, Subject::Dir(dirno), format!("{path}: {what}"), hits);
    }

    fn name_broken(&self, subject: Subject, span: &Span, what: &str) {
        let hit = self.ground.names.span(span);
        let what = format!("{} {what}", shown(&hit.path));
        self.check.broken(self.ground, subject, what, vec![hit]);
    }
}

/// The directory of the cursor's next row; what can't be read is told.
fn next(pass: &Pass<'_, '_, '_>, cursor: &mut Cursor<'_, '_>, table: ScanTable) -> Option<Dirno> {
    loop {
        match cursor.peek()? {
            Scanned::Row(row) if table == ScanTable::Entries => return Some(Dirno(row.key.first as u64)),
            Scanned::Row(row) => return Some(row.key.dirno()),
            Scanned::Bad { .. } => {
                if let Some(Scanned::Bad { after, before, error }) = cursor.take() {
                    let names = Some(&pass.ground.names);
                    pass.check.unreadable(table, &after, before.as_ref(), error, names);
                }
            }
        }
    }
}

/// One directory while its rows are walked over.
struct Here {
    dirno: Dirno,
    states: Vec<(Version, DirValue)>,
    lost: Vec<Interval>,
    /// How the number of names changes.
    counts: BTreeMap<Version, i64>,
    before: Option<Span>,
    /// Some row could not be opened: sums say nothing.
    torn: bool,
}

impl Here {
    fn new(dirno: Dirno) -> Here {
        Here { dirno, states: Vec::new(), lost: Vec::new(), counts: BTreeMap::new(), before: None, torn: false }
    }

    fn alive(&self) -> Vec<Interval> {
        alive(&self.states)
    }
}

/// When a directory with these states is there.
fn alive(states: &[(Version, DirValue)]) -> Vec<Interval> {
    let mut intervals: Vec<Interval> = Vec::new();
    for (v, value) in states {
        match intervals.last_mut() {
            Some((_, to @ None)) if value.gone => *to = Some(*v),
            Some((_, None)) => {}
            _ if !value.gone => intervals.push((*v, None)),
            _ => {}
        }
    }
    intervals
}

/// Intervals in order of their beginning cover `from..to` without a gap.
fn covers(intervals: &[Interval], from: Version, to: Option<Version>) -> bool {
    let mut reached = from;
    for (begin, end) in intervals {
        if *begin > reached {
            return false;
        }
        match end {
            None => return true,
            Some(end) => reached = reached.max(*end),
        }
        if to.is_some_and(|to| reached >= to) {
            return true;
        }
    }
    false
}

/// Names of versions are unique; totals are what the entries sum to.
pub fn versions(check: &Check<'_>, ground: &Ground<'_, '_>, totals: &Totals) -> Result<()> {
    let mut cursor = ground.rows.cursor(ScanTable::Versions);
    let mut names = HashMap::new();
    let mut changes = totals.0.iter().peekable();
    // The root is nobody's entry.
    let mut sum = [0i64, 1, 0, 0];
    while let Some(scanned) = cursor.take() {
        let row = match scanned {
            Scanned::Row(row) => row,
            Scanned::Bad { after, before, error } => {
                check.unreadable(ScanTable::Versions, &after, before.as_ref(), error, None);
                continue;
            }
        };
        let v = Version(row.key.first as u32);
        let info = match ground.rows.open_version(&row) {
            Ok((version, _)) => version.info,
            Err(error) => {
                check.report(Subject::Version(v), error, Cause::Index, Vec::new());
                continue;
            }
        };
        while let Some((_, change)) = changes.next_if(|(at, _)| **at <= v) {
            sum.iter_mut().zip(change).for_each(|(sum, part)| *sum = sum.wrapping_add(*part));
        }
        if let Some(other) = names.insert(info.name.clone(), v) {
            let what = format!("{v} has the name {}, which {other} has", info.name);
            check.broken(ground, Subject::Version(v), what, Vec::new());
        }
        let recorded = [info.files, info.dirs, info.others, info.tree_bytes].map(|n| n as i64);
        // Sums over rows that are wrong, or not there, say nothing of their own.
        let sound = check.index_is_clean() && !ground.any_lost && !ground.gaps;
        if sound && recorded != sum && !any_partial(ground)? {
            let what = format!("{v} has files, directories, others and bytes {sum:?}, and {recorded:?} by its record");
            check.broken(ground, Subject::Version(v), what, Vec::new());
        }
    }
    Ok(())
}

/// Some version was saved when not all names of a directory were known: it counts those that were.
fn any_partial(ground: &Ground<'_, '_>) -> Result<bool> {
    let mut cursor = ground.rows.cursor(ScanTable::Dirs);
    while let Some(scanned) = cursor.take() {
        if let Scanned::Row(row) = scanned
            && ground.rows.open_dir(&row)?.state.is_some_and(|state| !state.listing.is_of_all())
        {
            return Ok(true);
        }
    }
    Ok(false)
}
