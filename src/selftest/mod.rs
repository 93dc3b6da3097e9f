//! `assay selftest`: proves a backup level by level, and says what is wrong, where, why, and what can be done.
//!
//! Invariants: without `fix` nothing in the backup dir changes but the ledger; a block counts as good only when
//! `arc::frame::open` accepted it; each thing that is wrong is one finding, however often it is met; a check that
//! could not be made is a finding too, never silence. Levels are cumulative but for v5, which reads what files need.

mod blocks;
mod files;
mod findings;
mod pages;
mod structure;

use std::sync::Arc;

use crate::backupdir::BackupDir;
use crate::error::{Error, Result};
use crate::ids::{ArcName, BlockHash, BlockId};
use crate::index::Index;
use crate::ledger::{By, Ledger, LedgerWriter};
use crate::monitor::Monitor;

pub use findings::{Cause, Finding, Findings, Hit};
pub use structure::Fixed;

/// What a selftest proves; each level includes those before it, but v5 reads files where v3 and v4 read arcs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// The index opens with this key and can be read.
    Opens = 0,
    /// Its pages authenticate, its B-trees are sound.
    Pages = 1,
    /// All structures agree with each other and with the catalogs; no data is read.
    Structure = 2,
    /// Each block of the local arcs, read from the medium.
    LocalBlocks = 3,
    /// The same of every copy at every destination.
    AllCopies = 4,
    /// Every file of every version rebuilt and compared with its whole-file hash.
    Files = 5,
}

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
    /// `b12.34`
    Id(BlockId),
    Hash(BlockHash),
}

/// What to do about what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fix {
    /// Nothing: only say it.
    #[default]
    Report,
    /// Correct what can be corrected.
    Correct,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub level: Level,
    pub scope: Scope,
    /// Only this version (v2 and v5): `r3`, `3`, `latest` or a folder name.
    pub rev: Option<String>,
    /// So many random blocks of each arc (v3, v4).
    pub sample: Option<u32>,
    pub fix: Fix,
}

/// What a selftest did.
#[derive(Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// Findings beyond those listed.
    pub unlisted: u64,
    pub arcs: u64,
    pub blocks: u64,
    /// Plain bytes of these blocks.
    pub bytes: u64,
    pub files: u64,
    pub interrupted: bool,
}

/// What all levels share while they run.
pub(crate) struct Exam<'a> {
    pub dir: &'a BackupDir,
    pub index: Arc<Index>,
    pub options: &'a Options,
    pub monitor: &'a dyn Monitor,
    pub ledger: Arc<LedgerWriter>,
    /// What earlier runs have proven.
    pub known: Ledger,
    pub findings: Findings,
}

/// Runs a selftest.
///
/// # Errors
/// Only what keeps it from starting: not a backup dir, a wrong key, a combination of options that makes no sense.
/// Whatever is wrong with the backup is a finding.
pub fn run(dir: &BackupDir, options: &Options, monitor: &dyn Monitor) -> Result<Report> {
    let index = Arc::new(dir.open_index()?);
    let (known, _) = Ledger::load(dir.path(), dir.keys())?;
    let ledger = Arc::new(LedgerWriter::new(dir.path(), dir.keys().clone(), By::Selftest));
    let exam = Exam { dir, index, options, monitor, ledger, known, findings: Findings::default() };
    let mut report = Report::default();
    if options.level >= Level::Pages {
        pages::check(&exam, &mut report)?;
    }
    if options.level >= Level::Structure {
        structure::check(&exam, &mut report)?;
    }
    match options.level {
        Level::Opens | Level::Pages | Level::Structure => {}
        Level::LocalBlocks | Level::AllCopies => blocks::check(&exam, &mut report)?,
        Level::Files => files::check(&exam, &mut report)?,
    }
    if options.fix == Fix::Correct && options.level >= Level::Structure {
        structure::fix(&exam)?;
    }
    (report.findings, report.unlisted) = exam.findings.take();
    if monitor.interrupted() {
        return Err(Error::Interrupted);
    }
    Ok(report)
}
