//! `assay compare`.

use std::ffi::OsString;

use clap::Args;

use super::changes::Changes;
use super::paths::{given, stored, version_of};
use super::ui::Ui;
use super::{Context, open_index};
use crate::compare::live::{Files, Live};
use crate::error::{Exit, Result};
use crate::ledger::By;
use crate::live::{Boundaries, Crossing, Excludes};
use crate::monitor::Monitor;
use crate::reader::{self, Backup};
use crate::store::{StoreOptions, Words};

/// Say what differs between a version and the files as they are now
///
/// One line a path: `+` only the source has it, `-` only the version, `M` its content differs, `T` its type or attributes;
/// then in what. Without -f a file's content counts as another one where its size or mtime is. Times that a restore can't
/// set (ctime), link counts, and what the backup would leave out do not count.
///
/// With -f every byte of both sides is read, and of a file that differs it is said why: `source edited` (a time or the size
/// shows it), `source rotted` (the bytes differ, size and all times are as they were), `backup bad` (what was backed up
/// can't be read).
///
/// Exit code 0: no difference; 1: there are some; 3: something could not be compared; 4: damage.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The version, as r3, 3, or a folder name of the mount; the newest if not given
    #[arg(short, long, value_name = "REV")]
    rev: Option<String>,
    /// Read and compare the contents of files
    #[arg(short = 'f', long = "files")]
    files: bool,
    /// Enter other file systems, as `backup -X` does
    #[arg(short = 'X', long)]
    cross: bool,
    /// A pattern of what the backup leaves out, beside those in inex.conf
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Files and directories, with all below them; the paths that the version was given if not given
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Verified blocks that are kept in memory, bytes.
const CACHE_BYTES: u64 = 64 << 20;

pub fn run(context: &Context, args: &CompareArgs) -> Result<Exit> {
    let dir = context.open()?;
    let store = StoreOptions { cache_bytes: CACHE_BYTES, words: Words::Reader, ..StoreOptions::default() };
    let reading = reader::Options { by: Some(By::Selftest), store, ..reader::Options::default() };
    let backup = Backup::of(&dir, open_index(&dir)?, reading);
    let given = args.paths.iter().map(|path| given(path, dir.path())).collect::<Result<Vec<_>>>()?;
    let row = backup.tree.version(version_of(args.rev.as_deref(), &given)?)?;
    let boundaries = Boundaries::new(dir.path(), if args.cross { Crossing::Cross } else { Crossing::Stay })?;
    let excludes = Excludes::parse(&dir.excludes_path(), &dir.excludes()?, &args.exclude)?;
    let ui = Ui::counting(context, "Comparing", "paths");
    let mut changes = Changes::new(args.json);
    let live = Live {
        backup: &backup,
        version: row.version,
        files: if args.files { Files::Bytes } else { Files::Stat },
        boundaries: &boundaries,
        excludes: &excludes,
        stop: &|| ui.interrupted(),
    };
    let known = |path: &[u8]| backup.tree.find(row.version, path).map(drop);
    let mut paths = [row.info.paths.clone(), row.info.kept_paths.clone()].concat();
    if !given.is_empty() {
        paths = given.iter().map(|given| Ok(stored(&given.path, known)?.0)).collect::<Result<_>>()?;
    }
    for path in &paths {
        live.below(path, &mut |path, met| changes.met(path, met))?;
    }
    backup.flush_notes();
    ui.finish();
    changes.end(context.quiet)
}
