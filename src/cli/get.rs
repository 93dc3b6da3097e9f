//! `assay get`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::ui::Ui;
use super::{Context, open_index, print, print_json, show};
use crate::backup::walk;
use crate::error::{Exit, Result};
use crate::restore::{self, Decision, Extra, Options, Report, Target, VersionSource};
use crate::store::Store;
use crate::tree::{Tree, View};

/// Restore files and directories with all their attributes
///
/// Without --to and --orig they go into the current directory, under their last name. A file with damage is
/// written as NAME.damaged, with holes where the bad ranges are, and the exit code is 4.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// What to restore: absolute paths as they were backed up (relative ones count from the current directory)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The version, as r3, 3, or a folder name of the mount; the newest if not given
    #[arg(short, long, value_name = "REV")]
    rev: Option<String>,
    /// Put each path below this directory, under its last name
    #[arg(long, value_name = "DIR", conflicts_with = "orig")]
    to: Option<PathBuf>,
    /// Put each path where it was
    #[arg(long)]
    orig: bool,
    /// Remove what the restored directories hold and the version does not
    #[arg(long)]
    delete: bool,
    /// Replace what exists without asking
    #[arg(short, long)]
    yes: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Verified blocks that are kept in memory, bytes.
const CACHE_BYTES: u64 = 64 << 20;

pub fn run(context: &Context, args: &GetArgs) -> Result<Exit> {
    let dir = context.open()?;
    let index = Arc::new(open_index(&dir)?);
    let store = Arc::new(Store::new(dir.path(), dir.keys().clone(), index.clone(), CACHE_BYTES));
    let tree = Arc::new(Tree::new(index, View::Whole));
    let row = tree.version(args.rev.as_deref().unwrap_or("latest"))?;
    let source = VersionSource::new(tree, store, row.version);
    let target = match (&args.to, args.orig) {
        (_, true) => Target::Original,
        (Some(to), _) => Target::Below(to.clone()),
        (None, false) => Target::Below(".".into()),
    };
    let paths: Result<Vec<Vec<u8>>> = args.paths.iter().map(|path| stored_path(path)).collect();
    let extra = if args.delete { Extra::Delete } else { Extra::Keep };
    let options = Options { paths: paths?, target, extra };
    let ui = Ui::new(context.quiet, false, "Restoring");
    let mut confirm = |path: &Path| if args.yes { Decision::All } else { ask(&ui, path) };
    let done = restore::run(&source, &options, &ui, &mut confirm);
    ui.finish();
    let report = done?;
    if args.json {
        print_json(&as_json(&report))?;
    } else if !context.quiet {
        print(&as_text(&report, &row.info.name))?;
    }
    Ok(report.exit())
}

/// The path as the version has it: absolute, with the symlinks before its last name resolved if it still exists.
pub(super) fn stored_path(path: &Path) -> Result<Vec<u8>> {
    use std::os::unix::ffi::OsStringExt;
    let absolute = if path.is_absolute() { path.to_path_buf() } else { walk::absolute(path)? };
    Ok(absolute.into_os_string().into_vec())
}

fn ask(ui: &Ui, path: &Path) -> Decision {
    match ui.ask(&format!("{} exists. Replace it? [y]es, [n]o, [a]ll, [q]uit:", path.display())).as_deref() {
        Some("y" | "yes") => Decision::Yes,
        Some("a" | "all") => Decision::All,
        Some("q" | "quit") => Decision::Quit,
        _ => Decision::No,
    }
}

fn as_text(report: &Report, from: &str) -> String {
    let mut text = format!(
        "Restored {} files, {} directories, {} others, {} from {from}\n",
        show::number(report.files),
        show::number(report.dirs),
        show::number(report.others),
        show::bytes(report.bytes),
    );
    let counts = [
        (report.unchanged, "were there already, unchanged"),
        (report.kept, "exist and were left alone (-y replaces them)"),
        (report.deleted, "were removed"),
        (report.damaged_count, "are damaged and were written as .damaged"),
        (report.error_count, "failed"),
    ];
    for (count, what) in counts.iter().filter(|(count, _)| *count > 0) {
        text += &format!("{} {what}\n", show::number(*count));
    }
    for file in &report.damaged {
        let ranges: Vec<String> = file.ranges.iter().map(|r| format!("{}-{}", r.start, r.end)).collect();
        text += &format!("  {}: bytes {} are lost\n", show::path(&file.path), ranges.join(", "));
    }
    text
}

fn as_json(report: &Report) -> serde_json::Value {
    json!({
        "files": report.files,
        "dirs": report.dirs,
        "others": report.others,
        "bytes": report.bytes,
        "unchanged": report.unchanged,
        "kept": report.kept,
        "deleted": report.deleted,
        "damaged": report.damaged.iter().map(|file| json!({
            "path": show::path(&file.path),
            "written": file.written.display().to_string(),
            "ranges": file.ranges.iter().map(|r| [r.start, r.end]).collect::<Vec<_>>(),
            "code": file.error.code(),
        })).collect::<Vec<_>>(),
        "errors": report.errors.iter().map(|(path, e)| json!({
            "path": show::path(path), "code": e.code(), "error": e.to_string()
        })).collect::<Vec<_>>(),
        "error_count": report.error_count,
    })
}
