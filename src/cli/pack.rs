//! `assay pack`.

use clap::Args;
use serde_json::json;

use super::rm::{exit, left_text};
use super::ui::Ui;
use super::{Context, print, print_json, say, show};
use crate::backupdir::BackupDir;
use crate::backupdir::config::parse_size;
use crate::catalog::ArcRole;
use crate::error::{Error, Exit, Result};
use crate::findings::{Cause, Finding, Level};
use crate::monitor::Monitor;
use crate::prune::pack::{self, DEFAULT_THRESHOLD, Options, Packed};
use crate::prune::{self, Mode};
use crate::selftest;
use crate::text::counted;

/// Give back the room of what no version needs any more
///
/// Arcs of which nothing is needed are removed. Of those that hold much that is not needed the rest is read, verified,
/// and sealed into new arcs; the old ones are removed when that is committed, about one new arc at a time: as much room
/// is needed before any is given back. What was committed stays if it is interrupted. Before anything goes the index is
/// compared with the catalogs, as `assay selftest -v2` does.
///
/// An arc with a damaged block that is needed stays, and is told: put it back from a copy, or see `assay selftest --fix`.
#[derive(Debug, Args)]
pub struct PackArgs {
    /// Write an arc anew if at least so many percent of it are not needed
    #[arg(long, value_name = "PERCENT", default_value_t = DEFAULT_THRESHOLD, value_parser = clap::value_parser!(u8).range(1..=100))]
    threshold: u8,
    /// Write at most so many bytes (500M, 20GiB); the emptiest arcs come first
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    limit: Option<u64>,
    /// Say what would be done; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl PackArgs {
    pub fn dry_run(&self) -> bool {
        self.dry_run
    }
}

pub fn run(context: &Context, args: &PackArgs) -> Result<Exit> {
    let dir = context.open_to_save()?;
    super::meet(context, &dir)?;
    let mode = if args.dry_run { Mode::DryRun } else { Mode::Do };
    let options = Options { threshold: args.threshold, limit_bytes: args.limit, mode };
    if mode == Mode::Do {
        check_index(context, &dir)?;
    }
    let ui = Ui::counting(context, "Packing", "blocks");
    let done = pack::run(&dir, &options, &ui);
    ui.finish();
    let packed = done?;
    let sent = super::rm::after(context, &dir, mode)?;
    super::log::outcome(&format!(
        "{} dropped, {} written anew, {} freed",
        counted(packed.dropped, "arc"),
        show::number(packed.rewritten),
        show::bytes(freed_bytes(&packed))
    ));
    if args.json {
        print_json(&sent.with(json!({
            "dry_run": args.dry_run,
            "dropped_arcs": packed.dropped,
            "rewritten_arcs": packed.rewritten,
            "damaged_arcs": packed.damaged,
            "blocks_moved": packed.blocks_moved,
            "removed_bytes": packed.removed_bytes,
            "written_bytes": packed.written_bytes,
            "freed_bytes": freed_bytes(&packed),
            "dead_bytes_left": packed.dead_bytes_left,
            "left_to_do": packed.left_to_do.map(left_text),
        })))?;
    } else if !context.quiet {
        print(&(as_text(&packed, args.dry_run) + &sent.text()))?;
    }
    if packed.damaged > 0 {
        say("help: put the arc back from a copy of the backup dir, or try `assay selftest -v3 --fix`; then pack again");
    }
    Ok(exit(&ui, packed.left_to_do).max(sent.exit()))
}

/// What an index that lacks something takes for dead would be gone for good: it is compared with the catalogs first.
fn check_index(context: &Context, dir: &BackupDir) -> Result<()> {
    let options = selftest::Options::of(Level::Structure);
    let ui = Ui::counting(context, "Checking the index", "steps");
    prune::settle(dir, &ui)?;
    let report = selftest::run(dir, &options, &ui);
    ui.finish();
    let report = report?;
    if ui.interrupted() {
        return Err(Error::Interrupted);
    }
    // Damage of blocks keeps their arcs, and nothing else.
    let arcs = dir.open_index()?.all_arcs()?;
    let is_of_blocks = |error: &Error| match error {
        Error::Arc { place, .. } => {
            arcs.iter().any(|arc| arc.entry.name == place.arc && arc.entry.role == ArcRole::Data)
        }
        _ => false,
    };
    let harmless = |finding: &Finding| finding.cause == Cause::Stray || is_of_blocks(&finding.error);
    match report.findings.iter().find(|finding| !harmless(finding)) {
        Some(wrong) => {
            let what = format!("nothing was packed, since it is not what the catalogs say: {}", wrong.error);
            Err(Error::IndexDamaged { path: dir.index_path(), what })
        }
        None => Ok(()),
    }
}

fn freed_bytes(packed: &Packed) -> u64 {
    packed.removed_bytes.saturating_sub(packed.written_bytes)
}

fn as_text(packed: &Packed, dry_run: bool) -> String {
    let mut text = if dry_run { "Dry run: nothing was written.\n".to_string() } else { String::new() };
    let mut line = |title: &str, what: String| text += &format!("{title:<10}{what}\n");
    line("Dropped", format!("{} of which nothing is needed", counted(packed.dropped, "arc")));
    line("Anew", format!("{}, {} written", counted(packed.rewritten, "arc"), show::bytes(packed.written_bytes)));
    line("Freed", show::bytes(freed_bytes(packed)));
    if packed.dead_bytes_left > 0 {
        line("Left", format!("{} that nothing needs, in arcs that stay", show::bytes(packed.dead_bytes_left)));
    }
    if packed.damaged > 0 {
        line("Damaged", format!("{}: not removed, see above", counted(packed.damaged, "arc")));
    }
    if let Some(left) = packed.left_to_do {
        line("Left", left_text(left).into());
    }
    text
}
