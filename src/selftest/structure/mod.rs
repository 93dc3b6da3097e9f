//! v2: the index agrees with the catalogs in the arcs, and all of it with itself. No block is read.
//!
//! First one scan that only says whether all agrees: `told`, `hashes` and `digests` compare the index with commits,
//! catalogs, footers and root digests. What does not agree is explained by two kinds of check. `compare`: a shadow index
//! is made from commit and catalog frames by the one function that makes indexes, and both are compared row by row.
//! `arcs`, `content`, `tree`: rules that rows of different tables obey.
//! Invariants: all of it is about one commit (the shadow is brought to the commit of the snapshot), so that a backup
//! beside it gives no false alarm; a thing that is wrong is told once, by the first check that meets it; memory is
//! bounded by `content::WINDOW` and three page caches; what a recovery gave up is told once and not as its
//! consequences.

mod arcs;
mod compare;
mod content;
mod digests;
mod hashes;
mod names;
mod shadow;
mod strays;
mod told;
mod tree;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::sync::Arc;

use super::{Advice, BlockRef, Cause, Exam, Finding, Findings, Hit, Level, Options, Report, Scope};
use crate::backupdir::BackupDir;
use crate::error::{Error, Result};
use crate::findings::MAX_HITS;
use crate::ids::{ArcName, ArcSerial, Dirno, FrameNo, Logid, Version};
use crate::index::{RowKey, ScanTable, Scanned, Snapshot, VersionSet};
use crate::ledger::{By, Ledger, LedgerWriter};
use crate::monitor::{Event, Hushed, Monitor, Progress};
use crate::sync::both;
use crate::text::shown;
use arcs::ArcFacts;
use names::Names;
use shadow::Shadow;
use told::Told;

/// What a finding is about: the second finding about the same thing is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    Counters,
    Version(Version),
    /// Its commit record.
    Commit(Version),
    /// What the index says of an arc, its frames and blocks.
    Arc(ArcSerial),
    /// The file itself.
    ArcFile(ArcName),
    /// A catalog frame.
    Catalog(ArcName, FrameNo),
    Dir(Dirno),
    File(Logid),
    /// Rows that can't be read, from this one on.
    Rows(ScanTable, i64),
    /// What a recovery gave up.
    GivenUp,
    /// The comparison itself.
    Shadow,
    /// Commits that the index does not know.
    Behind,
    /// A file that does not belong where it is.
    Stray(ArcName),
}

/// Subjects that are remembered; beyond them a thing may be told twice.
const MAX_SUBJECTS: usize = 1 << 20;
/// Attempts to check while damage and backups change what is seen.
const MAX_ATTEMPTS: usize = 3;

/// What all checks share.
pub(super) struct Check<'a> {
    exam: &'a Exam<'a>,
    seen: RefCell<HashSet<Subject>>,
    /// What was wrong with the index, folded or not.
    told: Cell<u64>,
    blind: RefCell<HashSet<ScanTable>>,
    /// Only these arcs, with `Scope::Arcs` and `Scope::Blocks`.
    only_arcs: Option<HashSet<ArcSerial>>,
    only_version: Option<Version>,
    /// Steps that are done, and how many there are; of the one scan, file states and directories.
    steps: Cell<(u64, u64)>,
    /// Only counts what is wrong: to be told, it has to be explained first.
    quiet: bool,
}

/// Steps beside the runs that are applied: arcs, each table that is compared, hashes, the rules of names and contents.
const STEPS: u64 = 3 + ScanTable::ALL.len() as u64;

pub(super) fn check(exam: &Exam<'_>, report: &mut Report) -> Result<()> {
    let only_version = match &exam.options.rev {
        Some(rev) => {
            Some(crate::tree::Tree::of(exam.dir, exam.index.clone(), crate::tree::View::Whole).version(rev)?.version)
        }
        None => None,
    };
    let check = Check { only_arcs: only_arcs(exam)?, only_version, quiet: false, ..Check::quiet(exam) };
    match check.run(report) {
        Err(error @ (Error::IndexDamaged { .. } | Error::IndexRow { .. })) => {
            check.report(Subject::Counters, error, Cause::Index, Vec::new());
            Ok(())
        }
        other => other,
    }
}

/// All that v2 finds wrong with what is in place now.
pub(super) fn look_again(dir: &BackupDir, monitor: &dyn Monitor) -> Result<Vec<Finding>> {
    again(dir, monitor, |exam| {
        check(exam, &mut Report::default())?;
        Ok(exam.findings.take().0)
    })
}

/// True if the one scan finds nothing wrong, so that no shadow is made.
#[cfg(test)]
pub(crate) fn agrees(dir: &BackupDir) -> Result<bool> {
    again(dir, &crate::monitor::Silent, |exam| Check::quiet(exam).agrees(&mut Report::default()))
}

fn again<T>(dir: &BackupDir, monitor: &dyn Monitor, look: impl FnOnce(&Exam<'_>) -> Result<T>) -> Result<T> {
    let options = Options::of(Level::Structure);
    let hushed = Hushed(monitor);
    let (known, findings) = (Ledger::default(), Findings::default());
    let index = Arc::new(dir.open_index()?);
    // Nothing is noted on this level.
    let ledger = Arc::new(LedgerWriter::new(dir.own(), dir.keys().clone(), By::Selftest, &index));
    let (shown, options) = (Default::default(), &options);
    let monitor = &hushed;
    look(&Exam { dir, index, options, monitor, ledger, known, findings, due: None, around: None, seed: 0, shown })
}

fn only_arcs(exam: &Exam<'_>) -> Result<Option<HashSet<ArcSerial>>> {
    match &exam.options.scope {
        Scope::Everything | Scope::Paths(_) => Ok(None),
        Scope::Arcs(names) => {
            let rows = exam.index.arcs()?;
            let named = rows.iter().filter(|row| names.contains(&row.entry.name)).map(|row| row.entry.serial);
            Ok(Some(named.collect()))
        }
        Scope::Blocks(blocks) => {
            let mut arcs = HashSet::new();
            for block in blocks {
                let id = match block {
                    BlockRef::Id(id) => Some(*id),
                    BlockRef::Hash(hash) => exam.index.find_block(hash)?,
                };
                if let Some(id) = id {
                    arcs.insert(exam.index.location(id)?.arc());
                }
            }
            Ok(Some(arcs))
        }
    }
}

/// What is known when the rules are checked.
pub(super) struct Ground<'s, 'i> {
    pub rows: &'s Snapshot<'i>,
    pub names: Names<'s, 'i>,
    pub arcs: ArcFacts,
    /// The index agreed with whole catalogs: what is wrong now was written so.
    pub proven: bool,
    /// A recovery from damaged catalogs could not fill in what rows speak of.
    pub gaps: bool,
    /// Some directory's listing is, or was, lost.
    pub any_lost: bool,
    /// Versions whose files must be whole.
    pub needed: VersionSet,
}

/// Those that are shown, and the newest, on which the next backup builds.
fn needed(rows: &Snapshot<'_>) -> VersionSet {
    let (mut shown, mut newest) = (Vec::new(), None);
    let mut cursor = rows.cursor(ScanTable::Versions);
    while let Some(scanned) = cursor.take() {
        if let Scanned::Row(row) = scanned
            && let Ok((version, removed)) = rows.open_version(&row)
        {
            shown.extend(Some(version.version).filter(|_| !removed));
            newest = Some(version.version);
        }
    }
    VersionSet::new(shown.into_iter().chain(newest))
}

impl<'a> Check<'a> {
    fn run(&self, report: &mut Report) -> Result<()> {
        crate::scratch::tidy();
        if self.only_arcs.is_none() && self.agrees(report)? {
            return strays::check(self, report);
        }
        let mut shadow = match self.only_arcs {
            Some(_) => None,
            None => self.try_shadow(Shadow::begin(self.exam))?,
        };
        for _ in 0..MAX_ATTEMPTS {
            let snapshot = self.agree(&mut shadow)?;
            self.one_state(&snapshot, shadow.as_ref(), report)?;
            if !snapshot.moved() {
                break;
            }
        }
        strays::check(self, report)
    }

    /// True if all agrees, as one scan of the index, the commits and the catalogs proves. What does not is not told.
    fn agrees(&self, report: &mut Report) -> Result<bool> {
        let exam = self.exam;
        let state = exam.index.state();
        let state = match &state {
            Ok(state) => state,
            Err(_) => return Ok(false),
        };
        // Each has a connection of its own, on the same state of the index.
        let of_all_else = || {
            let (check, rows, mut seen) = (Check::quiet(exam), exam.index.snapshot()?, Report::default());
            let Some(told) = Told::read(&check, state)? else { return Ok(None) };
            let agrees = rows.state()? == *state
                && told.is_in(&rows, state)?
                && check.arcs_agree(&rows, &mut seen)?
                && hashes::prove(&check, &rows, told.moved())? == Some(state.hashes)
                && !rows.moved();
            Ok(agrees.then(|| (told.into_racy(), seen.arcs)))
        };
        let of_names = || {
            let (check, rows) = (Check::quiet(exam), exam.index.snapshot()?);
            check.steps.set((0, state.next_logid + state.next_dirno));
            let names = Names { rows: &rows, shadow: None, last: state.last_commit.map_or(Version(0), |(run, _)| run) };
            let (arcs, needed) = (arcs::facts(&exam.index.all_arcs()?), needed(&rows));
            let ground = Ground { rows: &rows, names, arcs, proven: true, gaps: false, any_lost: false, needed };
            let racy = digests::prove(&check, &ground)?;
            Ok(racy.filter(|_| rows.state().is_ok_and(|now| now == *state) && !rows.moved()))
        };
        match both(of_all_else, of_names) {
            (Err(Error::Interrupted), _) | (_, Err(Error::Interrupted)) => Err(Error::Interrupted),
            (Ok(Some((told, arcs))), Ok(Some(found))) if told == found => {
                report.arcs += arcs;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// A check that only counts what is wrong.
    fn quiet(exam: &'a Exam<'a>) -> Check<'a> {
        Check {
            exam,
            seen: RefCell::default(),
            told: Cell::new(0),
            blind: RefCell::default(),
            only_arcs: None,
            only_version: None,
            steps: Cell::new((0, STEPS)),
            quiet: true,
        }
    }

    fn arcs_agree(&self, rows: &Snapshot<'_>, report: &mut Report) -> Result<bool> {
        arcs::check(self, rows, None, report)?;
        Ok(self.index_is_clean())
    }

    /// Without a shadow the rules are still checked, and it is told that the comparison was not made.
    fn try_shadow<T>(&self, made: Result<T>) -> Result<Option<T>> {
        match made {
            Ok(made) => Ok(Some(made)),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                self.report(Subject::Shadow, error, Cause::Unchecked, Vec::new());
                Ok(None)
            }
        }
    }

    /// Brings the shadow and a snapshot to the same commit: backups may go on meanwhile.
    fn agree(&self, shadow: &mut Option<Shadow<'a>>) -> Result<Snapshot<'a>> {
        loop {
            let last = self.exam.index.state()?.last_commit;
            if let (Some(made), Some((run, _))) = (shadow.as_mut(), last)
                && self
                    .try_shadow(made.go_on(run, &Hush { monitor: self.exam.monitor, level: self.exam.options.level }))?
                    .is_none()
            {
                *shadow = None;
            }
            let snapshot = self.exam.index.snapshot()?;
            if snapshot.state()?.last_commit == last {
                return Ok(snapshot);
            }
        }
    }

    fn one_state(&self, rows: &Snapshot<'a>, shadow: Option<&Shadow<'a>>, report: &mut Report) -> Result<()> {
        let state = rows.state()?;
        let shadow_rows = shadow.map(|shadow| shadow.index.snapshot()).transpose()?;
        let runs = shadow.map_or(0, |shadow| shadow.rebuild.applied().len() as u64);
        self.steps.set((runs, runs + STEPS));
        let last = state.last_commit.map_or(Version(0), |(run, _)| run);
        let names = Names { rows, shadow: shadow_rows.as_ref(), last };
        if let Some(shadow) = shadow {
            shadow::tell_losses(self, shadow, rows, &names)?;
        }
        let arcs = arcs::check(self, rows, shadow_rows.as_ref(), report)?;
        self.step();
        if self.only_arcs.is_some() {
            return Ok(());
        }
        let any_lost = compare::any_lost(rows);
        let mut ground = Ground { rows, names, arcs, proven: false, gaps: false, any_lost, needed: needed(rows) };
        if let (Some(shadow), Some(shadow_rows)) = (shadow, &shadow_rows) {
            let whole = compare::compare(self, &ground, shadow, shadow_rows)?;
            ground.gaps = !whole && state.settled_below > Version(0);
            ground.proven = whole && self.index_is_clean();
        }
        arcs::hashes(self, rows, &state)?;
        self.step();
        tree::check(self, &ground)?;
        self.step();
        Ok(())
    }

    /// The one scan is so far in file states and directories.
    fn walked(&self, done: u64) {
        let (before, of) = self.steps.get();
        self.steps.set((done.clamp(before, of.max(before)), of));
        self.show_progress();
    }

    /// One more step is done. Where files or arcs are read afterwards, these are what is counted.
    fn step(&self) {
        let (done, of) = self.steps.get();
        self.steps.set(((done + 1).min(of), of));
        self.show_progress();
    }

    fn show_progress(&self) {
        if self.exam.options.level == Level::Structure {
            let ((files, expected_files), errors) = (self.steps.get(), self.exam.findings.count());
            self.exam.monitor.progress(Progress { files, expected_files, errors, ..Progress::default() });
        }
    }

    fn interrupted(&self) -> Result<()> {
        if self.exam.monitor.interrupted() { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn knows(&self, subject: Subject) -> bool {
        self.seen.borrow().contains(&subject)
    }

    /// Tells what is wrong with a subject, unless something was told about it already or nobody asked.
    fn report(&self, subject: Subject, error: Error, cause: Cause, hits: Vec<Hit>) {
        self.advise(subject, error, cause, hits, Advice::of_structure(cause));
    }

    /// As `report`, where v2 knows better what to do.
    fn advise(&self, subject: Subject, error: Error, cause: Cause, hits: Vec<Hit>, advice: Advice) {
        if self.quiet || matches!(cause, Cause::Index | Cause::Unchecked) {
            self.told.set(self.told.get() + 1);
        }
        if self.quiet {
            return;
        }
        {
            let mut seen = self.seen.borrow_mut();
            if seen.contains(&subject) || (seen.len() < MAX_SUBJECTS && !seen.insert(subject)) {
                return;
            }
        }
        if !self.concerns(subject, &hits) {
            return;
        }
        let finding = Finding::new(Level::Structure, cause, error).with_hits(hits);
        self.exam.findings.add(Finding { advice, ..finding });
    }

    /// v3 and v4 read the arcs themselves, and tell what is wrong with their files.
    fn arcs_are_read_later(&self) -> bool {
        matches!(self.exam.options.level, Level::LocalBlocks | Level::AllCopies)
    }

    /// Another finding explains whatever is wrong with the subject.
    fn fold(&self, subject: Subject) {
        self.seen.borrow_mut().insert(subject);
    }

    /// Nothing was wrong with the index so far.
    fn index_is_clean(&self) -> bool {
        self.told.get() == 0
    }

    /// A part of the table can't be read: rules that need its rows wait until that is mended.
    fn blind(&self, table: ScanTable) -> bool {
        self.blind.borrow().contains(&table)
    }

    /// The index contradicts the arcs.
    fn index_wrong(&self, subject: Subject, what: String) {
        self.report(subject, self.row_error(what), Cause::Index, Vec::new());
    }

    fn file_broken(&self, ground: &Ground<'_, '_>, logid: Logid, what: &str) {
        let hits = ground.names.file(logid);
        let path = hits.first().map(|hit| shown(&hit.path).to_string());
        let what = format!("{}: {what}", path.unwrap_or_else(|| format!("file {}", logid.0)));
        self.broken(ground, Subject::File(logid), what, hits);
    }

    /// A rule is broken by rows of the index.
    fn broken(&self, ground: &Ground<'_, '_>, subject: Subject, what: String, hits: Vec<Hit>) {
        let error = self.row_error(what);
        match ground.proven {
            true => self.advise(subject, error, Cause::Catalog, hits, Advice::SaveAgain),
            false => self.report(subject, error, Cause::Index, hits),
        }
    }

    fn row_error(&self, what: String) -> Error {
        Error::IndexRow { path: self.exam.index.path().to_path_buf(), what }
    }

    /// A range of rows that can't be read.
    fn unreadable(
        &self,
        table: ScanTable,
        after: &RowKey,
        before: Option<&RowKey>,
        error: Error,
        names: Option<&Names<'_, '_>>,
    ) {
        let place = |key: &RowKey| match table {
            ScanTable::Entries => format!("directory {} name {}", key.first, shown(&key.name)),
            ScanTable::Extents => format!("file {} offset {}", key.first, key.second),
            ScanTable::Dirs | ScanTable::Lost => format!("directory {} in {}", key.dirno().0, key.version()),
            ScanTable::Parts => format!("{} {} {}", key.first, key.second, key.third),
            _ => key.first.to_string(),
        };
        let from = if after.first == i64::MIN { "the start".into() } else { place(after) };
        let to = before.map_or_else(|| "the end".into(), place);
        let what = format!("table {}, after {from}, before {to}: {error}", table.name());
        let cause = Cause::of(&error);
        let error = match error {
            Error::IndexDamaged { path, .. } => Error::IndexDamaged { path, what },
            Error::IndexIo { path, .. } => Error::IndexIo { path, what },
            _ => self.row_error(what),
        };
        self.blind.borrow_mut().insert(table);
        let hits = names.map(|names| names.of_range(table, after, before)).unwrap_or_default();
        self.report(Subject::Rows(table, after.first), error, cause, hits);
    }

    /// True if the finding is about what was asked for.
    fn concerns(&self, subject: Subject, hits: &[Hit]) -> bool {
        if let Some(arcs) = &self.only_arcs {
            return match subject {
                Subject::Arc(serial) => arcs.contains(&serial),
                Subject::ArcFile(_) | Subject::Rows(..) | Subject::Behind | Subject::Stray(_) => true,
                _ => false,
            };
        }
        if let Some(v) = self.only_version {
            let concerned = match subject {
                Subject::Version(version) => version == v,
                Subject::Commit(run) => run <= v,
                Subject::Counters | Subject::Behind | Subject::Stray(_) => false,
                Subject::Dir(_) | Subject::File(_) | Subject::Catalog(..) => {
                    hits.is_empty() || hits.iter().any(|hit| hit.versions.0 <= v && v <= hit.versions.1)
                }
                Subject::Arc(_) | Subject::ArcFile(_) | Subject::Rows(..) | Subject::GivenUp | Subject::Shadow => true,
            };
            if !concerned {
                return false;
            }
        }
        match &self.exam.options.scope {
            Scope::Paths(asked) => match subject {
                Subject::Dir(_) | Subject::File(_) | Subject::Catalog(..) | Subject::Rows(..) => {
                    hits.iter().any(|hit| asked.iter().any(|path| touches(&hit.path, path)))
                }
                _ => false,
            },
            _ => true,
        }
    }
}

/// One path is the other, or a directory above it.
fn touches(one: &[u8], other: &[u8]) -> bool {
    let names = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
    };
    names(one).iter().zip(names(other)).all(|(a, b)| *a == b)
}

/// Passes on only the wish to stop, and, while the shadow of `-v2` is made, its runs as steps: what a rebuild meets is
/// told as findings.
struct Hush<'a> {
    monitor: &'a dyn Monitor,
    level: Level,
}

impl Monitor for Hush<'_> {
    fn progress(&self, Progress { files, expected_files, .. }: Progress) {
        if self.level == Level::Structure {
            let expected_files = expected_files + STEPS;
            self.monitor.progress(Progress { files, expected_files, ..Progress::default() });
        }
    }
    fn event(&self, _: Event<'_>) {}
    fn interrupted(&self) -> bool {
        self.monitor.interrupted()
    }
}
