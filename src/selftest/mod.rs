//! `assay selftest`: proves a backup level by level, and says what is wrong, where, why, and what can be done.
//!
//! Invariants: without `fix` nothing in the backup dir changes but ledger and notes; a block counts as good only when
//! `arc::frame::open` accepted it; each thing that is wrong is one finding, however often it is met; a check that
//! could not be made is a finding too, never silence. Levels are cumulative but for v5, which reads what files need.

mod blocks;
mod copies;
pub mod drill;
mod files;
mod in_order;
mod inc;
mod medium;
mod options;
mod pages;
mod plan;
mod schedule;
mod shell;
mod structure;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::backupdir::arcs::COMMIT_NUMBER;
use crate::backupdir::{Accepted, BackupDir};
use crate::copies::{Around, others};
use crate::depot::Depot;
use crate::error::{Error, Exit, Result};
pub use crate::findings::hits::BlockUse;
use crate::findings::hits::{self, Wrong};
pub use crate::findings::{Advice, Cause, Finding, Findings, Hit, Level, Part};
use crate::ids::{ArcName, BlockHash, BlockId};
use crate::index::{Commits, Index};
use crate::ledger::{self, By, Ledger, LedgerWriter, Record};
use crate::mend::{self, Mending};
use crate::monitor::{Event, Monitor, Progress, Silent};
use crate::parity::Parity;
use crate::sync::lock;
use crate::text::counted;

pub use copies::CopyReport;
pub use drill::Drilled;
pub use inc::Due;
pub use schedule::Schedule;
#[cfg(test)]
pub(crate) use structure::agrees;

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Scope {
    #[default]
    Everything,
    /// With v2 to v4.
    Arcs(Vec<ArcName>),
    /// Absolute paths, in any version or in `rev`; with v2 or v5.
    Paths(Vec<Vec<u8>>),
    /// The arcs that hold these blocks; with v2 to v4.
    Blocks(Vec<BlockRef>),
}

/// A block as a user names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockRef {
    /// `b12.34.0`
    Id(BlockId),
    Hash(BlockHash),
}

/// What to do about what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fix {
    /// Nothing: only say it.
    #[default]
    Report,
    /// Put right what another copy has, and where one bit was flipped; no live file is asked, and no writer is waited for.
    FromCopies,
    /// Correct what can be corrected.
    Correct,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub level: Level,
    pub scope: Scope,
    /// Only this version (v2 and v5): `r3`, `3`, `latest` or a folder name.
    pub rev: Option<String>,
    /// So many random blocks of each arc and copy (v3, v4).
    pub sample: Option<u32>,
    /// Chooses the blocks of a sample again.
    pub seed: Option<u64>,
    /// Only what is due (v3 to v5).
    pub inc: Option<Schedule>,
    /// Bytes that may be fetched from destinations (v4).
    pub download_limit: Option<u64>,
    pub fix: Fix,
}

/// What a selftest did.
#[derive(Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// Findings beyond those listed.
    pub unlisted: u64,
    pub arcs: u64,
    /// Frames that were verified.
    pub blocks: u64,
    /// Plain bytes of these blocks.
    pub bytes: u64,
    pub files: u64,
    /// Worth knowing, but no damage.
    pub notes: Vec<String>,
    /// Who uses the blocks that were named.
    pub uses: Vec<BlockUse>,
    pub not_checked: NotChecked,
    /// Of v4, a destination each.
    pub copies: Vec<CopyReport>,
    /// What chose the blocks of a sample.
    pub seed: Option<u64>,
    pub interrupted: bool,
}

/// What was to be looked at and was not: it could not be read, or the run was interrupted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NotChecked {
    pub arcs: u64,
    /// Files and links; 0 too where nobody counted before.
    pub files: u64,
}

impl Report {
    pub fn found(&self) -> u64 {
        self.findings.len() as u64 + self.unlisted
    }
}

/// What all levels share while they run.
pub(crate) struct Exam<'a> {
    pub dir: &'a BackupDir,
    /// Where it does not open, each question to it is an error.
    pub index: Arc<Index>,
    pub options: &'a Options,
    pub monitor: &'a dyn Monitor,
    pub ledger: Arc<LedgerWriter>,
    /// What earlier runs have proven.
    pub known: Ledger,
    pub findings: Findings,
    /// What an incremental run is limited to, of the copy that is here.
    pub due: Option<Due>,
    /// How destinations are reached, where they are to be.
    pub around: Option<&'a Around>,
    pub seed: u64,
    /// Totals of the copies that are done, and what is expected.
    pub shown: Mutex<Progress>,
}

/// Runs a selftest.
///
/// # Errors
/// Only what keeps it from starting: a combination of options, or a version, path, arc or block, that makes no sense.
/// Whatever is wrong with the backup is a finding, also an index that does not open.
pub fn run(dir: &BackupDir, options: &Options, monitor: &dyn Monitor) -> Result<Report> {
    run_with(dir, None, options, monitor)
}

/// As `run`, with the copies at destinations: v4 reads them, and what is wrong here is mended from them.
pub fn run_everywhere(around: &Around, options: &Options, monitor: &dyn Monitor) -> Result<Report> {
    run_with(&around.dir, Some(around), options, monitor)
}

fn run_with(dir: &BackupDir, around: Option<&Around>, options: &Options, monitor: &dyn Monitor) -> Result<Report> {
    options.check()?;
    let random = |error: std::io::Error| Error::io("get random bytes for", dir.path(), &error);
    let seed = match options.seed {
        Some(seed) => seed,
        None => u64::from_le_bytes(crate::crypto::random().map_err(random)?),
    };
    let started = Instant::now();
    let findings = Findings::default();
    let mut report = Report { seed: options.sample.map(|_| seed), ..Report::default() };
    let (index, opens) = match dir.open_index() {
        Ok(index) => (index, true),
        Err(error) => {
            let wrong_key = error.exit_code() == Exit::WrongKey;
            findings.add(Finding::of(Level::Opens, error));
            if wrong_key {
                // Nothing can be checked with it.
                (report.findings, report.unlisted) = findings.take();
                return Ok(report);
            }
            (dir.unopened_index(), false)
        }
    };
    let index = Arc::new(index);
    let commits = dir.commits(&index);
    let newest = commits.as_ref().ok().and_then(Commits::newest);
    let known = match commits.and_then(|commits| Ledger::load(dir.own(), dir.keys(), &commits)) {
        Ok((known, refused)) => {
            for refused in refused {
                let what = format!("this part of the ledger is not believed: {}", refused.what);
                monitor.event(Event::Warning { path: refused.path.as_os_str().as_encoded_bytes(), what });
            }
            known
        }
        Err(error) => {
            monitor.event(Event::Warning { path: b"", what: format!("the ledger can't be read: {error}") });
            Ledger::default()
        }
    };
    // Where the index can't tell.
    let head = {
        let index = index.clone();
        move || index.head().or(newest)
    };
    let ledger = LedgerWriter::with(dir.own(), dir.keys().clone(), By::Selftest, head, ledger::now_ms);
    let ledger = Arc::new(ledger.expecting(&known));
    let findings = match Accepted::of(&index) {
        Ok(accepted) if opens && !accepted.is_empty() => Findings::but_for(accepted, index.clone()),
        _ => findings,
    };
    let shown = Mutex::default();
    let mut exam = Exam { dir, index, options, monitor, ledger, known, findings, due: None, around, seed, shown };
    exam.known_names(opens)?;
    if let Some(schedule) = options.inc.as_ref().filter(|_| opens) {
        match inc::due(&exam, schedule) {
            Ok(due) => {
                report.notes.extend(due.notes(None));
                exam.due = Some(due);
            }
            Err(error) => exam.findings.add(Finding::new(options.level, Cause::Unchecked, error)),
        }
    }
    if opens {
        exam.reads();
    }
    match exam.levels(opens, &mut report) {
        // What was found until then is told all the same.
        Err(Error::Interrupted) => report.interrupted = true,
        other => other?,
    }
    if opens && !monitor.interrupted() {
        exam.uses(&mut report)?;
    }
    if options.fix != Fix::Report && !monitor.interrupted() {
        let look_again = || structure::look_again(dir, monitor);
        let copies = exam.others(&report);
        let mending = Mending { dir, ledger: &exam.ledger, monitor, copies: &copies, look_again: &look_again };
        match options.fix {
            Fix::Report => {}
            Fix::FromCopies => mend::heal_all(mending, &exam.findings)?,
            Fix::Correct => mend::mend(mending, &exam.findings)?,
        }
        if options.level == Level::AllCopies && !monitor.interrupted() {
            copies::complete(&exam, &report);
        }
    }
    report.interrupted |= monitor.interrupted();
    if let passed_over @ 1.. = exam.findings.passed_over() {
        report.notes.push(format!(
            "passed over, as about losses that were accepted: {} (`assay stats` lists them)",
            counted(passed_over, "finding")
        ));
    }
    (report.findings, report.unlisted) = exam.findings.take();
    if !report.interrupted {
        exam.ledger.record(Record::Run(ledger::Run {
            when_s: ledger::now_s(),
            seconds: started.elapsed().as_secs(),
            level: options.level as u8,
            inc: options.inc.map(|schedule| schedule.to_string()),
            scope: options.scope_text(),
            blocks: report.blocks + report.copies.iter().map(|copy| copy.blocks).sum::<u64>(),
            bytes: report.bytes + report.copies.iter().map(|copy| copy.bytes).sum::<u64>(),
            findings: report.found(),
            fixed: report.findings.iter().filter(|finding| finding.is_fixed()).count() as u64,
        }));
    }
    if let Err(error) = exam.ledger.flush() {
        monitor.event(Event::Warning { path: b"", what: format!("what was proven can't be remembered: {error}") });
    }
    Ok(report)
}

/// Rules of v2 that arcs and index break together: what is wrong was written so. Empty after each run of a writer that is
/// right; debug builds and tests look.
pub fn written_wrong(dir: &BackupDir) -> Result<Vec<Finding>> {
    let mut findings = structure::look_again(dir, &Silent)?;
    findings.retain(|finding| finding.cause == Cause::Catalog && matches!(finding.error, Error::IndexRow { .. }));
    Ok(findings)
}

impl Exam<'_> {
    /// Hands over what is wrong with arcs, here or at a destination, with the files that it hits.
    fn tell(&self, level: Level, wrong: Vec<Wrong>, notes: &mut Vec<String>, at: Option<&str>) {
        hits::tell(&self.findings, &self.index, (level, at), wrong, notes, &|| self.monitor.interrupted());
    }

    /// More is to be read.
    fn show_expected(&self, arcs: u64, bytes: u64) {
        let mut shown = lock(&self.shown);
        shown.expected_files += arcs;
        shown.expected_bytes += bytes;
    }

    /// Copies that help to mend what is here, within what may still be fetched.
    fn others(&self, report: &Report) -> Vec<Arc<dyn Depot>> {
        let parity: Arc<dyn Depot> = Arc::new(Parity::of(self.dir));
        let others = self.within_limit(report).map_or_else(Vec::new, |around| others(&around, None));
        [parity].into_iter().chain(others).collect()
    }

    /// Destinations, with what may still be fetched.
    fn within_limit(&self, report: &Report) -> Option<Around> {
        let fetched: u64 = report.copies.iter().map(|copy| copy.fetched_bytes).sum();
        let limit = self.options.download_limit.map(|limit| limit.saturating_sub(fetched));
        self.around.map(|around| around.clone().within(limit))
    }

    /// v0: the index answers.
    fn reads(&self) {
        let index = &self.index;
        // v2 tells which version it is that is missing, or another.
        let versions = if self.options.level < Level::Structure { index.versions().map(drop) } else { Ok(()) };
        let asked = [index.state().map(drop), versions, index.arcs().map(drop)];
        for error in asked.into_iter().filter_map(Result::err) {
            self.findings.add(Finding::of(Level::Opens, error));
        }
    }

    fn levels(&self, opens: bool, report: &mut Report) -> Result<()> {
        let level = self.options.level;
        let go_on = || !self.monitor.interrupted();
        if opens {
            if level >= Level::Pages {
                pages::check(self, report)?;
            }
            if level >= Level::Structure && go_on() {
                structure::check(self, report)?;
            }
        } else if level >= Level::Pages {
            let what = match level {
                Level::Files => "pages, structure and files were not checked: that needs the index",
                _ => "pages and structure were not checked: that needs the index",
            };
            let error = Error::IndexDamaged { path: self.index.path().to_path_buf(), what: what.into() };
            self.findings.add(Finding::new(level, Cause::Unchecked, error));
        }
        match level {
            Level::LocalBlocks | Level::AllCopies if go_on() => blocks::check(self, report),
            Level::Files if opens && go_on() => files::check(self, report),
            _ => Ok(()),
        }
    }

    /// Refuses arcs and blocks that are not there: a typing error must not look like a clean run.
    fn known_names(&self, opens: bool) -> Result<()> {
        match &self.options.scope {
            Scope::Everything | Scope::Paths(_) => Ok(()),
            Scope::Arcs(names) => {
                let known = self.index.all_arcs().unwrap_or_default();
                let commits = self.index.commits().unwrap_or_default();
                let is_there = |name: &ArcName| {
                    known.iter().any(|row| row.entry.name == *name)
                        || (name.number == COMMIT_NUMBER && commits.of(name.version).is_some())
                        || self.dir.own().stat(name.to_string()).is_ok_and(|found| found.is_some())
                };
                match names.iter().find(|name| !is_there(name)) {
                    Some(name) => Err(Error::Usage(format!("there is no {name} in this backup dir"))),
                    None => Ok(()),
                }
            }
            Scope::Blocks(_) if !opens => Ok(()),
            Scope::Blocks(blocks) => blocks.iter().try_for_each(|block| match block {
                BlockRef::Hash(hash) if self.index.find_block(hash)?.is_none() => {
                    Err(Error::Usage(format!("no block has the hash {hash}")))
                }
                BlockRef::Id(id) => {
                    let place = self.index.location(*id).unwrap_or(*id);
                    match self.index.frame_chunk(place.arc(), place.frame()) {
                        Err(Error::IndexRow { .. }) => Err(Error::Usage(format!("there is no block {id}"))),
                        _ => Ok(()),
                    }
                }
                BlockRef::Hash(_) => Ok(()),
            }),
        }
    }

    /// Which files use the blocks that were named, good or not.
    fn uses(&self, report: &mut Report) -> Result<()> {
        let Scope::Blocks(blocks) = &self.options.scope else { return Ok(()) };
        let mut named: Vec<(BlockId, BlockId)> = Vec::new();
        for block in blocks {
            let Some(located) = plan::place_of(self, block) else { continue };
            named.push(match block {
                BlockRef::Id(id) => (*id, located),
                BlockRef::Hash(hash) => (self.index.find_block(hash)?.unwrap_or(located), located),
            });
        }
        let (mut uses, places) = hits::of_blocks(&self.index, named)?;
        match hits::find(&self.index, &places, uses.len(), &|| self.monitor.interrupted()) {
            Ok(found) => {
                for (used, (hits, hits_total)) in uses.iter_mut().zip(found) {
                    (used.hits, used.hits_total) = (hits, hits_total);
                }
            }
            Err(Error::Interrupted) => {}
            Err(error) => self.findings.add(Finding::new(self.options.level, Cause::Unchecked, error)),
        }
        report.uses = uses;
        Ok(())
    }
}
