//! `assay backup`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::changes::Changes;
use super::copies::{self, Back, Sent};
use super::json::with_names;
use super::ui::{Listing, Ui};
use super::{Context, print, print_json, report, say, show};
use crate::backup::{self, LeftToDo, MAX_FIXED_BLOCK, Options, Resumed, Summary};
use crate::backupdir::BackupDir;
use crate::catalog::VersionInfo;
use crate::compare::versions::Versions;
use crate::copies::Sending;
use crate::error::{Error, Exit, Result};
use crate::ids::Version;
use crate::monitor::Monitor;
use crate::parity::Kept;
use crate::text::counted;
use crate::tree::{Tree, View};

/// Save paths as a new version
///
/// Files whose size, mtime, ctime and inode are as in the version before are not read again. Paths that earlier
/// runs saved and this one does not name stay in the tree as they were. Parents of each path are saved too.
///
/// Each path is saved as far as its own file system goes, and saved whatever pattern covers it or a directory above it.
/// The summary names what was not looked at. Exit code 3: something could not be read, or changed each time it was read.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// What to save
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Read every file, changed or not
    #[arg(long)]
    full: bool,
    /// Enter other file systems too
    #[arg(short = 'X', long = "cross")]
    cross: bool,
    /// Cut files into blocks of this size (4KiB to 16MiB) instead of by content: for disk images and databases
    #[arg(short = 'B', long, value_name = "SIZE", value_parser = block_size)]
    block_size: Option<u32>,
    /// A note that `assay versions` shows
    #[arg(short, long, default_value = "", hide_default_value = true)]
    tag: String,
    /// Leave out what matches, as a line of .gitignore in the current directory would; more patterns stand in inex.conf,
    /// where one with a slash starts at /
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Say what would be saved; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print what changed since the version before, as `assay diff` does, and what is left out; with --dry-run what would
    /// be saved
    #[arg(short, long)]
    verbose: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

impl BackupArgs {
    pub fn dry_run(&self) -> bool {
        self.dry_run
    }
}

fn block_size(text: &str) -> Result<u32, String> {
    let size = crate::backupdir::config::parse_size(text)?;
    u32::try_from(size)
        .ok()
        .filter(|size| (4096..=MAX_FIXED_BLOCK).contains(size))
        .ok_or_else(|| "the block size must be between 4KiB and 16MiB".to_string())
}

pub fn run(context: &Context, args: &BackupArgs) -> Result<Exit> {
    let dir = context.open_to_save()?;
    super::meet(context, &dir)?;
    let options = Options {
        paths: args.paths.clone(),
        full: args.full,
        cross: args.cross,
        fixed_block: args.block_size,
        tag: args.tag.clone(),
        excludes: args.exclude.clone(),
        dry_run: args.dry_run,
    };
    let listing = match (args.json, args.dry_run, args.verbose) {
        (false, true, _) => Listing::All,
        (false, false, true) => Listing::LeftOut,
        _ => Listing::Nothing,
    };
    let ui = Ui::new(context, "Backing up").listing(listing);
    let sending = (!args.dry_run).then(|| Sending::new(copies::around(context, &dir)));
    let done = backup::run_sending(&dir, &options, sending.as_ref(), &ui);
    ui.finish();
    let time = ui.elapsed();
    // What is saved is remembered before a slow line may take its time.
    let remembered = if done.is_ok() { super::wrote(context, &dir) } else { Ok(()) };
    let sent = match sending {
        None => Sent::default(),
        Some(sending) if done.is_err() => {
            sending.give_up();
            Sent::default()
        }
        Some(sending) => {
            context.status.begin_sending();
            let sent = Sent::told(sending.finish()).keeping(context, &dir, Back::Stays);
            context.status.end();
            sent
        }
    };
    let summary = match done {
        Err(Error::Interrupted) if !ui_was_interrupted(&ui) => {
            return Err(Error::SelfCheck { what: "the pipeline stopped without a reason".into() });
        }
        other => other?,
    };
    remembered?;
    let info = &summary.info;
    super::log::outcome(&format!(
        "{}, {} new, {} changed, {} removed, {}",
        info.name,
        info.new,
        info.changed,
        info.removed,
        counted(info.errors, "error")
    ));
    let exit = match (summary.info.errors, summary.info.torn) {
        (0, 0) => Exit::Ok,
        _ if ui.met_damage() => Exit::Damage,
        _ => Exit::FinishedWithErrors,
    };
    let exit = exit.max(sent.exit());
    let saved = summary.version.map(|version| format!("{version} ({}) is saved", summary.info.name));
    if let (Some(saved), Some(left)) = (&saved, summary.left_to_do) {
        say(&format!("assay: {saved}; {}", left.text()));
    }
    if let (Listing::LeftOut, Some(version)) = (listing, summary.version)
        && summary.left_to_do.is_none()
    {
        list_changes(&dir, version, &summary.info.paths, &ui)?;
    }
    let printed = match (args.json, context.quiet) {
        (true, _) => print_json(&sent.with(as_json(&summary, time))),
        (false, false) => print(&(as_text(&summary, time) + &sent.text())),
        (false, true) => Ok(()),
    };
    match (printed, saved) {
        (Ok(()), _) => Ok(exit),
        // What counts is done: whoever goes by the exit code must not do it again.
        (Err(error), Some(saved)) => {
            report(&error);
            say(&format!("assay: {saved}; only its summary could not be printed"));
            Ok(exit.max(Exit::FinishedWithErrors))
        }
        (Err(error), None) => Err(error),
    }
}

/// Prints what a version has changed.
fn list_changes(dir: &BackupDir, version: Version, paths: &[Vec<u8>], ui: &Ui) -> Result<()> {
    let tree = Tree::of(dir, dir.open_index()?, View::Whole);
    let before = tree.versions()?.into_iter().map(|row| row.version).rfind(|before| *before < version);
    let versions = Versions { tree: &tree, first: before, second: version, stop: &|| ui.interrupted() };
    let mut changes = Changes::new(false);
    for path in paths {
        match versions.below(path, &mut |path, met| changes.met(path, met)) {
            // What could not be read was told.
            Err(Error::NoPath { .. }) => {}
            done => done?,
        }
    }
    changes.flush()
}

/// Adds the paths that were not looked at.
pub(super) fn with_left_out(value: serde_json::Value, info: &VersionInfo) -> serde_json::Value {
    with_names(with_names(value, "kept_paths", &info.kept_paths), "not_entered", &info.not_entered)
}

fn ui_was_interrupted(ui: &Ui) -> bool {
    crate::monitor::Monitor::interrupted(ui)
}

fn as_text(summary: &Summary, time: Duration) -> String {
    let info = &summary.info;
    let counts = format!(
        "{} new, {} changed, {} removed",
        show::number(info.new),
        show::number(info.changed),
        show::number(info.removed)
    );
    let rest = not_done(info);
    if summary.version.is_none() {
        return format!(
            "Dry run: nothing was written.\nEntries   {counts}\nTo read   {}\n{rest}",
            show::bytes(info.bytes_read)
        );
    }
    let found = info.blocks_new + info.blocks_deduped;
    let resumed = match summary.resumed {
        Resumed { blocks: 0, .. } => String::new(),
        Resumed { blocks, bytes } => {
            let blocks = show::counted(blocks, "block");
            format!("Resumed   {blocks}, {} of a run that was cut\n", show::bytes(bytes))
        }
    };
    let parity = match summary.parity {
        Kept { made: 0, .. } => String::new(),
        Kept { made, bytes, .. } => format!("Parity    {} for {}\n", show::bytes(bytes), show::counted(made, "arc")),
    };
    let left = summary.left_to_do.map_or_else(String::new, |left| format!("Left      {}\n", left.text()));
    format!(
        "Version   {}\n\
         Entries   {counts}\n\
         Tree      {}, {}, {}, {}\n\
         Read      {} in {} ({}/s)\n\
         Stored    {} in {}; {} of {} new\n\
         Ratios    dedup {}, compression {}\n{parity}{resumed}{rest}{left}",
        info.name,
        show::counted(info.files, "file"),
        show::counted(info.dirs, "directory"),
        show::counted(info.others, "other"),
        show::bytes(info.tree_bytes),
        show::bytes(info.bytes_read),
        show::duration(time),
        show::bytes((info.bytes_read as f64 / time.as_secs_f64().max(0.001)) as u64),
        show::bytes(summary.arc_bytes),
        show::counted(summary.arcs as u64, "arc"),
        show::number(info.blocks_new),
        show::counted(found, "block"),
        show::ratio(info.bytes_read, info.plain_bytes),
        show::ratio(info.plain_bytes, info.stored_bytes),
    )
}

/// What was not saved, or not as it was asked for; a line each.
fn not_done(info: &VersionInfo) -> String {
    let mut text = String::new();
    let mut line = |title: &str, what: String| text += &format!("{title:<10}{what}\n");
    if !info.kept_paths.is_empty() {
        line("Kept", format!("{}: saved by earlier runs, not looked at", show::names(&info.kept_paths)));
    }
    if !info.not_entered.is_empty() {
        let what = "other file systems (give them as paths, or use -X)";
        line("Not saved", format!("{}: {what}", show::names(&info.not_entered)));
    }
    if info.excluded > 0 {
        let what = "left out by patterns, with all below";
        line("Excluded", format!("{}: {what}", counted(info.excluded, "entry")));
    }
    if info.vanished > 0 {
        line("Vanished", format!("{} before it could be read", counted(info.vanished, "entry")));
    }
    if info.torn > 0 {
        let what = "changed each time it was read; saved as it was read last";
        line("Torn", format!("{}: {what}", counted(info.torn, "file")));
    }
    if info.errors > 0 {
        line("Errors", format!("{}: see above; the rest is saved", show::number(info.errors)));
    }
    text
}

fn as_json(summary: &Summary, time: Duration) -> serde_json::Value {
    let info = &summary.info;
    let value = json!({
        "version": summary.version.map(|v| v.0),
        "name": info.name,
        "dry_run": summary.version.is_none(),
        "new": info.new,
        "changed": info.changed,
        "removed": info.removed,
        "errors": info.errors,
        "excluded": info.excluded,
        "vanished": info.vanished,
        "torn": info.torn,
        "incomplete": info.incomplete,
        "files": info.files,
        "dirs": info.dirs,
        "others": info.others,
        "tree_bytes": info.tree_bytes,
        "bytes_read": info.bytes_read,
        "blocks_new": info.blocks_new,
        "blocks_deduped": info.blocks_deduped,
        "plain_bytes": info.plain_bytes,
        "stored_bytes": info.stored_bytes,
        "arc_bytes": summary.arc_bytes,
        "arcs": summary.arcs,
        "base_catalog": summary.base,
        "resumed_blocks": summary.resumed.blocks,
        "resumed_bytes": summary.resumed.bytes,
        "parity_arcs": summary.parity.made,
        "parity_bytes": summary.parity.bytes,
        "left_to_do": summary.left_to_do.map(LeftToDo::text),
        "time_s": time.as_secs_f64(),
    });
    with_left_out(value, info)
}
