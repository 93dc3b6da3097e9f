//! `assay get`: writes files of a version back, with every attribute.
//!
//! Invariants: what has a final name is whole and verified, block by block and by the file's SHA-1; a file with
//! damage only ever gets a `.damaged` name. Below the target directory every entry is reached by one name
//! relative to its opened parent, never through a symlink. Nothing that exists is replaced without a yes; what
//! was compared and is equal stays as it is. A directory that exists is not replaced: it gets the saved entries, and the
//! saved attributes unasked only where the user named that very place. Only `Extra::Delete` removes what the version does
//! not have, unasked too. The backup dir itself is never removed, replaced or written into. What was not done as asked is
//! counted, and so in the exit code. Restored data is not flushed to the disk.

mod attributes;
mod content;
mod descent;
mod draft;
mod engine;
mod entry;
mod leftovers;
mod notes;
mod remove;
mod spare;
mod target;
#[cfg(test)]
mod tests;
mod version;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::catalog::{Child, DirState, Kind, Node};
use crate::error::{Error, Exit, Result};
use crate::ids::{BlockId, Dirno, Logid};
use crate::ledger::Extent;
use crate::monitor::Monitor;
use crate::reader::Blocks;
pub use attributes::Lack;
pub use spare::{Spare, Why};
pub use version::{VersionSource, refuse_delete};

/// Names of a directory.
#[derive(Debug, Default)]
pub struct Names {
    pub entries: Vec<(Vec<u8>, Child)>,
    /// Why there may be more.
    pub incomplete: Option<Error>,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Names of any kind, directories included.
    pub entries: u64,
    /// Names of regular files.
    pub files: u64,
    /// Their bytes, holes included.
    pub bytes: u64,
}

impl Totals {
    fn add_file(&mut self, kind: Kind, bytes: u64) {
        if kind == Kind::File {
            self.files += 1;
            self.bytes += bytes;
        }
    }

    pub fn add(&mut self, other: Totals) {
        self.entries += other.entries;
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// One version, as the restore reads it.
pub trait Source: Blocks {
    /// What an absolute path stands for.
    fn find(&self, path: &[u8]) -> Result<Child>;
    fn dir(&self, dir: Dirno) -> Result<DirState>;
    fn names(&self, dir: Dirno) -> Names;
    fn node(&self, logid: Logid) -> Result<Arc<Node>>;
    /// Whether `bytes` are a block, by its keyed hash.
    fn is_block(&self, block: BlockId, bytes: &[u8]) -> Result<bool>;
    /// What there is to restore of `child`, as far as it can be listed; `stop` cuts the counting short.
    fn totals(&self, child: Child, stop: &dyn Fn() -> bool) -> Totals;
    /// A file's content was read to this extent.
    fn file_read(&self, _file: Logid, _extent: Extent) {}
}

/// Where the files go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Each path under its last name in this directory, which is made if it is absent (`/`: its entries).
    Below(PathBuf),
    /// Where they were. Parents that are absent are made as the version has them; a symlink in the place of
    /// a parent is an error.
    Original,
}

/// What happens to entries of restored directories that the version does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    Keep,
    /// `--delete`. Never on another file system, never what is excluded, never in a directory whose list in the
    /// version has damage.
    Delete,
}

/// What the user is asked.
#[derive(Debug, Clone, Copy)]
pub enum Question<'a> {
    /// May this be replaced?
    Replace(&'a Path),
    /// May the owner, mode and extended attributes of this directory be changed to the saved ones?
    Change(&'a Path),
}

/// Answer to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Yes,
    No,
    /// Yes to this and all that follow.
    All,
    /// Ends the restore.
    Quit,
}

#[derive(Debug, Clone)]
pub struct Options {
    /// Absolute paths in the version.
    pub paths: Vec<Vec<u8>>,
    pub target: Target,
    pub extra: Extra,
    pub spare: Spare,
}

/// A file that could not be restored whole.
#[derive(Debug, Clone)]
pub struct DamagedFile {
    pub logid: Logid,
    /// Path in the version.
    pub path: Vec<u8>,
    /// What was written instead.
    pub written: PathBuf,
    /// Byte ranges that are bad, in order; holes in what was written. The whole file if only its SHA-1 is wrong.
    pub ranges: Vec<Range<u64>>,
    /// The first thing that was wrong.
    pub error: Error,
}

/// Items that each list of a report holds; more are only counted.
pub const MAX_LISTED: usize = 10_000;

/// What a restore did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Regular files written (also as links to one written before).
    pub files: u64,
    /// Directories made, or given their attributes.
    pub dirs: u64,
    /// Symlinks, fifos, sockets and devices made.
    pub others: u64,
    /// Bytes of file content written, holes included.
    pub bytes: u64,
    /// Entries that were there already, equal in content and in the attributes that this user can set.
    pub unchanged: u64,
    /// What was to be replaced or changed and what the user wanted to keep (nobody there to ask means that too).
    pub kept: Vec<PathBuf>,
    pub kept_count: u64,
    /// Entries removed by `--delete` (with all below counted).
    pub deleted: u64,
    /// What `--delete` would have removed and left, with the reason.
    pub spared: Vec<(PathBuf, Why)>,
    pub spared_count: u64,
    pub damaged: Vec<DamagedFile>,
    pub damaged_count: u64,
    /// Paths (in the version) and what went wrong; damaged files and attributes not included.
    pub errors: Vec<(Vec<u8>, Error)>,
    pub error_count: u64,
    /// Entries of the version that are not there for these errors, with all below; and those below a directory that was
    /// not made because what is in its place is kept.
    pub missing: u64,
    /// Attributes that an entry, by its path on disk, did not get.
    pub lacking: Vec<(PathBuf, Lack, Error)>,
    /// Entries without each of `Lack::ALL`.
    pub lacking_counts: [u64; Lack::ALL.len()],
    /// Some error was damage of the backup.
    pub damage_in_errors: bool,
    /// The user ended the restore before its end.
    pub interrupted: bool,
    /// What there was to do, if that was counted.
    pub expected: Option<Totals>,
}

impl Report {
    /// What was kept, and what has other attributes, is not what was asked for.
    pub fn exit(&self) -> Exit {
        let done = self.files + self.dirs + self.others + self.unchanged + self.deleted;
        if self.interrupted {
            Exit::Interrupted
        } else if self.damaged_count > 0 || self.damage_in_errors {
            Exit::Damage
        } else if self.error_count > 0 && done == 0 {
            Exit::Failed
        } else if self.error_count + self.kept_count + self.lacking_counts.iter().sum::<u64>() > 0 {
            Exit::FinishedWithErrors
        } else {
            Exit::Ok
        }
    }
}

/// Restores the paths; `confirm` is asked before anything that exists is replaced.
///
/// What fails is reported, and the rest goes on. An error is returned only when nothing could be done at all,
/// for instance because the version has none of the paths.
pub fn run(
    source: &dyn Source,
    options: &Options,
    monitor: &dyn Monitor,
    confirm: &mut dyn FnMut(Question<'_>) -> Decision,
) -> Result<Report> {
    engine::Restore::new(source, options, monitor, confirm)?.run(&options.paths)
}
