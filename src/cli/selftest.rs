//! `assay selftest`.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::copies::Sent;
use super::json::with_name;
use super::ui::{Listing, Ui};
use super::{Context, paths, print, print_json, show};
use crate::backupdir::BackupDir;
use crate::error::{Error, Exit, Result};
use crate::ids::ArcName;
use crate::selftest::{
    self, BlockRef, BlockUse, CopyReport, Drilled, Finding, Fix, Hit, Level, NotChecked, Options, Part, Report,
    Schedule, Scope,
};
use crate::text::shown;
use crate::tree::{Tree, View};

/// Prove the backup, level by level
///
/// -v0: the index opens with this key and can be read. -v1: and its pages are authentic, its B-trees sound. -v2: and all
/// structures agree: entries, versions, extents, blocks, arcs, catalogs; no data is read. -v3: and each block of the
/// arcs is right, read from the medium, not from the page cache. -v4: the same of every copy at every destination that is
/// not off, each arc read once and compared with its recorded SHA-256. -v5: as -v2, and every file of every version is rebuilt and its SHA-1 compared.
///
/// Nothing in the backup dir changes (but the ledger, which remembers what was proven) unless --fix is given. Exit
/// code 0: nothing is wrong, 4: damage was found, 3: something could not be checked (a destination that is absent or
/// behind, or the download limit), 12: the key is wrong.
#[derive(Debug, Args)]
pub struct SelftestArgs {
    /// Only these: arcs (arc.3.1) or blocks (b12.34.0, or a block hash) with -v2 to -v4; files or directories, as
    /// absolute paths, with -v2 or -v5. A block is tested with the arc that holds it, and its files are listed
    #[arg(value_name = "PATH|ARC|BLOCK")]
    targets: Vec<OsString>,
    /// How much is proven, 0 to 5
    #[arg(short = 'v', long, value_name = "LEVEL", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=5))]
    level: u8,
    /// Only this version, with -v2 or -v5: r3, 3, latest or a folder name of the mount
    #[arg(short, long, value_name = "REV")]
    rev: Option<String>,
    /// Test only N random blocks of each arc and copy, with -v3 or -v4; from 2 on the last one always
    #[arg(long, value_name = "N")]
    sample: Option<u32>,
    /// Prove, in each run, what is due, so that everything is proven once a period: 1d/30d (runs come daily, all in 30
    /// days) or 1d/30d,500MB (and no run reads more). With -v3 to -v5; each copy has its own turn
    #[arg(long, value_name = "SPEC")]
    inc: Option<Schedule>,
    /// Fetch at most so many bytes from destinations in this run (500M, 2GiB), with -v4. Exit code 3 if that leaves
    /// something out; what was proven counts, so with --inc the next run goes on
    #[arg(long, value_name = "SIZE", value_parser = crate::backupdir::config::parse_size)]
    download_limit: Option<u64>,
    /// Damage N random things in copies, never in the real files, and show that each is found and put right
    #[arg(long, value_name = "N", conflicts_with_all = ["level", "rev", "sample", "inc", "download_limit", "fix", "targets"])]
    drill: Option<u32>,
    /// Repeat the damage of an earlier drill, or the choice of an earlier sample
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Print each arc, or logid and path of each file, as it is verified
    #[arg(long)]
    debug: bool,
    /// Correct what can be corrected, and say so
    #[arg(long)]
    fix: bool,
    /// Print one JSON object a finding, and a summary, one a line
    #[arg(long)]
    json: bool,
}

/// Files that are printed for one finding; `--json` has all that the selftest lists.
const MAX_SHOWN_HITS: usize = 10;

pub fn run(context: &Context, args: &SelftestArgs) -> Result<Exit> {
    let level = Level::from_number(args.level).ok_or_else(|| Error::Usage("levels are 0 to 5".into()))?;
    let dir = context.open()?;
    if let Some(count) = args.drill {
        return drill(context, &dir, args, count);
    }
    let options = Options {
        level,
        scope: scope(&dir, args)?,
        rev: args.rev.clone(),
        sample: args.sample,
        seed: args.seed,
        inc: args.inc,
        download_limit: args.download_limit,
        fix: if args.fix { Fix::Correct } else { Fix::Report },
    };
    let noun = match level {
        Level::Files => "files",
        Level::LocalBlocks | Level::AllCopies => "arcs",
        Level::Opens | Level::Pages | Level::Structure => "steps",
    };
    let ui = Ui::counting(context, "Testing", noun).listing(if args.debug { Listing::All } else { Listing::Nothing });
    let ui = Arc::new(ui);
    let done = match level {
        _ if args.fix || level == Level::AllCopies => {
            selftest::run_everywhere(&super::copies::around_of(&dir, ui.clone()), &options, ui.as_ref())
        }
        _ => selftest::run(&dir, &options, ui.as_ref()),
    };
    ui.finish();
    let report = done?;
    if args.fix {
        super::check_writer(&dir)?;
    }
    let sent = if args.fix { super::copies::send(context, &dir) } else { Sent::default() };
    let exit = exit(&report).max(sent.exit());
    let summary = summary_text(&report, level, ui.elapsed());
    super::log::outcome(summary.lines().last().unwrap_or_default().trim_start_matches("Result"));
    if args.json {
        report.findings.iter().try_for_each(|finding| print_json(&finding_json(finding)))?;
        report.uses.iter().try_for_each(|used| print_json(&use_json(used)))?;
        print_json(&sent.with(summary_json(&report, level, ui.elapsed(), exit)))?;
        return Ok(exit);
    }
    for finding in &report.findings {
        print(&finding_text(finding))?;
    }
    for used in &report.uses {
        print(&use_text(used))?;
    }
    if !context.quiet {
        print(&(summary_text(&report, level, ui.elapsed()) + &sent.text()))?;
    }
    Ok(exit)
}

/// Trust by trial: damage that is known to be there must be found.
fn drill(context: &Context, dir: &BackupDir, args: &SelftestArgs, count: u32) -> Result<Exit> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => {
            u64::from_le_bytes(crate::crypto::random().map_err(|e| Error::io("get random bytes for", dir.path(), &e))?)
        }
    };
    let ui =
        Ui::counting(context, "Drilling", "drills").listing(if args.debug { Listing::All } else { Listing::Nothing });
    let done = selftest::drill::run(dir, count, seed, &ui);
    ui.finish();
    let report = done?;
    let exit = match (report.interrupted, report.passed()) {
        (true, _) => Exit::Interrupted,
        (false, true) => Exit::Ok,
        (false, false) => Exit::Failed,
    };
    let outcome = |one: &Drilled| match (one.found, one.healed) {
        (None, _) => "NOT FOUND".to_string(),
        (Some(code), None) => format!("{code} there"),
        (Some(code), Some(true)) => format!("{code} there; repaired, reads right"),
        (Some(code), Some(false)) => format!("{code} there, but NOT REPAIRED"),
    };
    if args.json {
        for one in &report.drilled {
            print_json(&json!({"type": "drill", "what": one.what, "found": one.found, "healed": one.healed}))?;
        }
        print_json(&json!({
            "type": "summary", "seed": report.seed, "drills": report.drilled.len(), "passed": report.passed(),
            "found_elsewhere": report.elsewhere, "interrupted": report.interrupted, "exit": exit as u8,
        }))?;
        return Ok(exit);
    }
    for one in &report.drilled {
        print(&format!("{}\n  {}\n", one.what, outcome(one)))?;
    }
    let found = report.drilled.iter().filter(|one| one.found.is_some()).count();
    let healed = report.drilled.iter().filter(|one| one.healed == Some(true)).count();
    let mut text =
        format!("Drill     {} damaged, {found} found in their place, {healed} repaired", report.drilled.len());
    text += &format!(" (copies only; --seed {} repeats it)\n", report.seed);
    if report.elsewhere > 0 {
        let elsewhere = show::counted(report.elsewhere, "finding");
        text += &format!("Note      {elsewhere} not in the place of a drill: run the selftest itself\n");
    }
    if report.interrupted {
        text += &format!("Result    interrupted: {} of {count} were done\n", report.drilled.len());
    }
    print(&text)?;
    Ok(exit)
}

/// All targets must be of one sort: they ask for different levels.
fn scope(dir: &BackupDir, args: &SelftestArgs) -> Result<Scope> {
    let (mut arcs, mut blocks, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for target in &args.targets {
        let text = target.to_str().unwrap_or_default();
        if let Some(name) = ArcName::parse(text) {
            arcs.push(name);
        } else if let Ok(block) = text.parse::<BlockRef>() {
            blocks.push(block);
        } else {
            files.push(target);
        }
    }
    match (arcs.is_empty(), blocks.is_empty(), files.is_empty()) {
        (true, true, true) => Ok(Scope::Everything),
        (false, true, true) => Ok(Scope::Arcs(arcs)),
        (true, false, true) => Ok(Scope::Blocks(blocks)),
        (true, true, false) => Ok(Scope::Paths(stored_paths(dir, args.rev.as_deref(), &files)?)),
        _ => Err(Error::Usage("arcs, blocks and paths are tested one sort at a time".into())),
    }
}

/// The paths as some version has them. A typing error must not look like a clean run.
fn stored_paths(dir: &BackupDir, rev: Option<&str>, given: &[&OsString]) -> Result<Vec<Vec<u8>>> {
    // An index that does not open is the selftest's to tell.
    let tree = dir.open_index().ok().map(|index| Tree::of(dir, index, View::Whole));
    let versions = match (&tree, rev) {
        (Some(tree), Some(rev)) => vec![tree.version(rev)?],
        (Some(tree), None) => tree.versions().unwrap_or_default(),
        (None, _) => Vec::new(),
    };
    let find = |path: &[u8]| {
        let Some(tree) = &tree else { return Ok(()) };
        let mut last = Ok(());
        for row in versions.iter().rev() {
            last = tree.find(row.version, path).map(drop);
            if !matches!(last, Err(Error::NoPath { .. })) {
                break;
            }
        }
        last
    };
    let one = |given: &&OsString| match paths::stored(given, find)? {
        (path, true) => Ok(path),
        (path, false) => Err(Error::Usage(format!("{} is in no version", shown(&path)))),
    };
    given.iter().map(one).collect()
}

fn exit(report: &Report) -> Exit {
    if report.interrupted {
        return Exit::Interrupted;
    }
    let has = |exit| report.findings.iter().any(|finding| finding.exit() == exit);
    [Exit::WrongKey, Exit::Damage, Exit::FinishedWithErrors].into_iter().find(|exit| has(*exit)).unwrap_or(Exit::Ok)
}

fn level_text(level: Level) -> &'static str {
    match level {
        Level::Opens => "-v0: the index opens",
        Level::Pages => "-v1: pages of the index",
        Level::Structure => "-v2: structure, no data",
        Level::LocalBlocks => "-v3: every block of the arcs, from the medium",
        Level::AllCopies => "-v4: every block of every copy, from the medium",
        Level::Files => "-v5: every file rebuilt and hashed",
    }
}

/// More than one frame, or a part that has no number.
fn extent_text(finding: &Finding) -> String {
    match finding.spot.map(|spot| spot.part) {
        Some(Part::Frames { first, count }) if count > 1 => {
            format!(" ({count} frames, to {})", first.0.saturating_add(count - 1))
        }
        Some(Part::Footer) => " (footer)".into(),
        _ => String::new(),
    }
}

fn finding_text(finding: &Finding) -> String {
    // An error of a destination names it.
    let at = match (&finding.at, &finding.error) {
        (None, _) | (_, Error::Dest { .. }) => String::new(),
        (Some(dest), _) => format!("at {}: ", shown(dest.as_bytes())),
    };
    let mut text = format!("{}: {at}{}{}\n", finding.error.code(), finding.error, extent_text(finding));
    text += &format!("  why: {}\n", finding.cause.text());
    text += &hits_text(&finding.hits, finding.hits_total);
    if let Some(fixed) = &finding.fixed {
        text += &format!("  {}: {fixed}\n", if fixed.is_done() { "fixed" } else { "not fixed" });
    }
    if !finding.is_fixed() {
        text += &format!("  do: {}\n", finding.remedy());
    }
    text
}

fn use_text(used: &BlockUse) -> String {
    let unused = if used.hits.is_empty() { ": no file that a version shows uses it" } else { " is used by" };
    format!("{}{unused}\n{}", used.place, hits_text(&used.hits, used.hits_total))
}

fn hits_text(hits: &[Hit], total: u64) -> String {
    let mut text = String::new();
    for hit in hits.iter().take(MAX_SHOWN_HITS) {
        let (first, last) = hit.versions;
        let versions = if first == last { first.to_string() } else { format!("{first} to {last}") };
        let path = shown(&hit.path);
        let bytes = match hit.bytes.is_empty() {
            true => String::new(),
            false => format!(", bytes {}-{}", hit.bytes.start, hit.bytes.end),
        };
        text += &format!("  hits: {path} in {versions}{bytes}\n");
    }
    let more = total.saturating_sub(hits.len().min(MAX_SHOWN_HITS) as u64);
    if more > 0 {
        text += &format!("  hits: and {} more\n", show::number(more));
    }
    text
}

fn summary_text(report: &Report, level: Level, elapsed: Duration) -> String {
    let mut text = String::new();
    for note in &report.notes {
        text += &format!("Note      {note}\n");
    }
    text += &report.seed.map_or_else(String::new, |seed| format!("Sample    --seed {seed} chooses the same blocks\n"));
    text += &format!("Level     {}\n", level_text(level));
    let counted = |counts: [(u64, &str); 3]| -> Vec<String> {
        let some = counts.into_iter().filter(|(count, _)| *count > 0);
        some.map(|(count, noun)| show::counted(count, noun)).collect()
    };
    let mut checked = counted([(report.arcs, "arc"), (report.blocks, "block"), (report.files, "file")]);
    if report.bytes > 0 {
        checked.push(show::bytes(report.bytes));
    }
    if !checked.is_empty() {
        text += &format!("Checked   {}{}\n", checked.join(", "), if report.copies.is_empty() { "" } else { ", here" });
    }
    let NotChecked { arcs, files } = report.not_checked;
    let not_checked = counted([(arcs, "arc"), (0, "block"), (files, "file")]);
    if !not_checked.is_empty() {
        text += &format!("Not read  {}\n", not_checked.join(", "));
    }
    report.copies.iter().for_each(|copy| text += &format!("Copy      {}\n", copy_text(copy)));
    let mut time = show::duration(elapsed);
    if report.bytes > 0 && report.copies.is_empty() {
        time += &format!(", {}/s", show::bytes((report.bytes as f64 / elapsed.as_secs_f64().max(0.001)) as u64));
    }
    text += &format!("Time      {time}\n");
    let fixed = report.findings.iter().filter(|finding| finding.is_fixed()).count();
    let mut verdict = match report.found() {
        0 if report.interrupted => "nothing is wrong so far".to_string(),
        0 => "nothing is wrong".to_string(),
        found => show::counted(found, "finding"),
    };
    if report.unlisted > 0 {
        verdict += &format!(", {} of them not listed", show::number(report.unlisted));
    }
    if fixed > 0 {
        verdict += &format!(", {fixed} of them fixed");
    }
    if report.interrupted {
        verdict += "; interrupted: the rest was not checked";
    }
    text + &format!("Result    {verdict}\n")
}

fn copy_text(copy: &CopyReport) -> String {
    let mut parts = vec![format!(
        "{} proven, {}, {}",
        show::counted(copy.arcs, "arc"),
        show::counted(copy.blocks, "block"),
        show::bytes(copy.bytes)
    )];
    let more = [(copy.damaged, "damaged"), (copy.missing, "missing"), (copy.unproven, "not proven")];
    parts.extend(more.iter().filter(|(count, _)| *count > 0).map(|(n, word)| format!("{} {word}", show::number(*n))));
    parts.push(format!("{}, {} fetched", show::counted(copy.requests, "request"), show::bytes(copy.fetched_bytes)));
    let ignored = if copy.ignored { ", ignored" } else { "" };
    parts.extend(copy.trouble.as_ref().map(|error| format!("{}{ignored}", error.code())));
    format!("{}: {}", copy.name, parts.join("; "))
}

fn copy_json(copy: &CopyReport) -> serde_json::Value {
    json!({
        "name": copy.name,
        "arcs": copy.arcs,
        "blocks": copy.blocks,
        "bytes": copy.bytes,
        "damaged": copy.damaged,
        "missing": copy.missing,
        "unproven": copy.unproven,
        "requests": copy.requests,
        "fetched_bytes": copy.fetched_bytes,
        "ignored": copy.ignored,
        "error": copy.trouble.as_ref().map(Error::code),
        "message": copy.trouble.as_ref().map(ToString::to_string),
    })
}

fn finding_json(finding: &Finding) -> serde_json::Value {
    let place = finding.place.as_ref();
    let (part, frames) = match finding.spot.map(|spot| spot.part) {
        Some(Part::Whole) => (Some("whole"), None),
        Some(Part::Header) => (Some("header"), None),
        Some(Part::Footer) => (Some("footer"), None),
        Some(Part::Trailer) => (Some("trailer"), None),
        Some(Part::Frames { count, .. }) => (Some("frames"), Some(count)),
        None => (None, None),
    };
    json!({
        "type": "finding",
        "level": finding.level as u8,
        "code": finding.error.code(),
        "cause": finding.cause.word(),
        "what": finding.error.to_string(),
        "copy": finding.spot.map(|spot| spot.copy.0),
        "destination": finding.at,
        "arc": place.map(|place| place.arc.to_string()),
        "part": part,
        "frame": place.and_then(|place| place.frame).map(|no| no.0),
        "frames": frames,
        "block": place.and_then(|place| place.block).map(|block| block.to_string()),
        "offset": place.map(|place| place.offset),
        "hits": hits_json(&finding.hits),
        "hits_total": finding.hits_total,
        "remedy": finding.remedy(),
        "fixed": finding.fixed.as_ref().filter(|fixed| fixed.is_done()).map(ToString::to_string),
        "not_fixed": finding.fixed.as_ref().filter(|fixed| !fixed.is_done()).map(ToString::to_string),
    })
}

fn use_json(used: &BlockUse) -> serde_json::Value {
    json!({
        "type": "block",
        "block": used.block.to_string(),
        "arc": used.place.arc.to_string(),
        "frame": used.place.frame.map(|no| no.0),
        "offset": used.place.offset,
        "hits": hits_json(&used.hits),
        "hits_total": used.hits_total,
    })
}

fn hits_json(hits: &[Hit]) -> Vec<serde_json::Value> {
    let one = |hit: &Hit| {
        let value = json!({
            "logid": hit.logid.0,
            "first_version": hit.versions.0.0,
            "last_version": hit.versions.1.0,
            "start": hit.bytes.start,
            "end": hit.bytes.end,
        });
        with_name(value, "path", &hit.path)
    };
    hits.iter().map(one).collect()
}

fn summary_json(report: &Report, level: Level, elapsed: Duration, exit: Exit) -> serde_json::Value {
    json!({
        "type": "summary",
        "level": level as u8,
        "arcs": report.arcs,
        "blocks": report.blocks,
        "bytes": report.bytes,
        "files": report.files,
        "seconds": elapsed.as_secs_f64(),
        "findings": report.found(),
        "unlisted": report.unlisted,
        "fixed": report.findings.iter().filter(|finding| finding.is_fixed()).count(),
        "notes": report.notes,
        "copies": report.copies.iter().map(copy_json).collect::<Vec<_>>(),
        "seed": report.seed,
        "not_checked": { "arcs": report.not_checked.arcs, "files": report.not_checked.files },
        "interrupted": report.interrupted,
        "exit": exit as u8,
    })
}
