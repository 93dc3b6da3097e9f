//! `assay rm`.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args};
use serde_json::{Value, json};

use super::copies::Sent;
use super::json::with_names;
use super::paths::{given, stored};
use super::ui::Ui;
use super::{Context, print, print_json, show};
use crate::backupdir::BackupDir;
use crate::error::{Error, Exit, Result};
use crate::ids::Version;
use crate::index::VersionRow;
use crate::prune::paths;
use crate::prune::versions::{self, OnProtected, Outcome, Request};
use crate::prune::{Mode, Protection};
use crate::run::LeftToDo;
use crate::text::{counted, shown};

/// Remove versions, or paths from all versions
///
/// What other versions share with them stays. All that is named goes at once, or nothing. A running mount shows it no
/// more (a path: within a second), and what is open in it answers ESTALE. The room comes back with `assay pack`.
///
/// Without --force nothing is removed if the newest version is named, or if a path is in no version that would stay: so
/// PATHs are removed only with it, and --dry-run says before what would go. What is still in the source is saved again by
/// the next backup, unless it is excluded. The names stay in catalog arcs, which only who has the key can read.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["paths", "rev"]))]
pub struct RmArgs {
    /// Files and directories, with all below them, to remove from all versions
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
    /// Versions: 3, r3, a folder's name, latest, or a range such as r1..r3
    #[arg(short, long = "rev", num_args = 1.., value_name = "REV", value_parser = NonEmptyStringValueParser::new())]
    rev: Vec<String>,
    /// Remove also what is the last of its kind: the newest version, the last copy of a path
    #[arg(long)]
    force: bool,
    /// Say what would go; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl RmArgs {
    pub fn dry_run(&self) -> bool {
        self.dry_run
    }
}

pub fn run(context: &Context, args: &RmArgs) -> Result<Exit> {
    let dir = context.open()?;
    super::meet(context, &dir)?;
    if !args.paths.is_empty() {
        return remove_paths(context, &dir, args);
    }
    let request = Request {
        choose: &|all| Ok(versions::named(all, &chosen(&args.rev, all)?)),
        protection: if args.force { Protection::Off } else { Protection::On },
        on_protected: OnProtected::Refuse,
        mode: if args.dry_run { Mode::DryRun } else { Mode::Do },
    };
    let (outcome, ui, sent) = remove(context, "Removing", &dir, &request)?;
    match (args.json, context.quiet) {
        (true, _) => print_json(&sent.with(as_json(&outcome, args.dry_run)))?,
        (false, false) => print(&(as_text(&outcome, args.dry_run) + &sent.text()))?,
        (false, true) => {}
    }
    Ok(exit(&ui, outcome.left_to_do).max(sent.exit()))
}

fn remove_paths(context: &Context, dir: &BackupDir, args: &RmArgs) -> Result<Exit> {
    let index = dir.open_index()?;
    let known = |path: &[u8]| paths::names_of(&index, path).map(|_| ());
    let mut going: Vec<Vec<u8>> = Vec::new();
    for path in &args.paths {
        let given = given(path, dir.path())?;
        going.push(stored(&given.path, known)?.0);
    }
    drop(index);
    let request = paths::Request {
        paths: &going,
        protection: if args.force { Protection::Off } else { Protection::On },
        mode: if args.dry_run { Mode::DryRun } else { Mode::Do },
    };
    let ui = Ui::counting(context, "Removing", "paths");
    let done = paths::remove(dir, &request, &ui);
    ui.finish();
    let outcome = done?;
    let sent = after(context, dir, request.mode)?;
    super::log::outcome(&format!("{} removed", counted(going.len() as u64, "path")));
    if args.json {
        let versions: Vec<u32> = outcome.versions.iter().map(|version| version.0).collect();
        let names: Vec<&[u8]> = going.iter().map(Vec::as_slice).collect();
        let value = json!({
            "dry_run": args.dry_run,
            "versions": versions,
            "entries": outcome.entries,
            "in_newest": outcome.in_newest,
            "free_bytes": outcome.free_bytes,
            "left_to_do": outcome.left_to_do.map(left_text),
        });
        print_json(&sent.with(with_names(value, "paths", &names)))?;
    } else if !context.quiet {
        print(&(paths_text(&going, &outcome, args.dry_run) + &sent.text()))?;
    }
    Ok(exit(&ui, outcome.left_to_do).max(sent.exit()))
}

fn paths_text(going: &[Vec<u8>], outcome: &paths::Outcome, dry_run: bool) -> String {
    let verb = if dry_run { "would go" } else { "removed" };
    let mut text: String = going.iter().map(|path| format!("{}  {verb}\n", shown(path))).collect();
    let entries = counted(outcome.entries, "entry");
    let versions = counted(outcome.versions.len() as u64, "version");
    text += &match dry_run {
        true => format!("Dry run: nothing was written. {entries} would go from {versions}.\n"),
        false => format!("{entries} removed from {versions}.\n"),
    };
    if outcome.in_newest {
        text += "What is still in the source is saved again by the next backup, unless it is excluded (inex.conf).\n";
    }
    text + &free_text(outcome.free_bytes, dry_run) + &left_line(outcome.left_to_do)
}

/// Removes what is asked for, and notes it in the log of runs.
pub(super) fn remove(
    context: &Context,
    title: &'static str,
    dir: &BackupDir,
    request: &Request<'_>,
) -> Result<(Outcome, Ui, Sent)> {
    let ui = Ui::counting(context, title, "versions");
    let done = versions::remove(dir, request, &ui);
    ui.finish();
    let outcome = done?;
    let sent = after(context, dir, request.mode)?;
    super::log::outcome(&format!("{} removed", counted(outcome.going().count() as u64, "version")));
    Ok((outcome, ui, sent))
}

/// What comes after something was removed.
pub(super) fn after(context: &Context, dir: &BackupDir, mode: Mode) -> Result<Sent> {
    if mode == Mode::DryRun {
        return Ok(Sent::default());
    }
    super::wrote(context, dir)?;
    Ok(super::copies::send(context, dir))
}

/// The versions that REVs name.
fn chosen(revs: &[String], all: &[VersionRow]) -> Result<BTreeSet<Version>> {
    let find = |rev: &str| -> Result<Version> {
        let found = match rev.parse::<Version>() {
            _ if rev == "latest" => all.last(),
            Ok(version) => all.iter().find(|row| row.version == version),
            Err(_) => all.iter().find(|row| row.info.name == rev),
        };
        found.map(|row| row.version).ok_or_else(|| Error::NoVersion(rev.to_string()))
    };
    let mut going = BTreeSet::new();
    for rev in revs {
        match rev.split_once("..") {
            None => drop(going.insert(find(rev)?)),
            Some((first, last)) => {
                let (first, last) = (find(first)?, find(last)?);
                if first > last {
                    return Err(Error::Usage(format!("{rev} is no range: it ends before it begins")));
                }
                going.extend(all.iter().map(|row| row.version).filter(|v| (first..=last).contains(v)));
            }
        }
    }
    Ok(going)
}

/// What of an ended run is left to do, for people.
pub(super) fn left_text(left: LeftToDo) -> &'static str {
    match left {
        LeftToDo::Durable => {
            "it may not outlive a power cut yet, and does not show yet: the next backup, rm, retain or pack sees to that"
        }
        LeftToDo::Apply => {
            "it does not show yet: the next backup, rm, retain or pack, or `assay recover`, sees to that"
        }
        LeftToDo::Checkpoint => "it shows; the next run moves the write-ahead log into the index",
    }
}

pub(super) fn exit(ui: &Ui, left: Option<LeftToDo>) -> Exit {
    match left {
        _ if ui.met_damage() => Exit::Damage,
        Some(_) => Exit::FinishedWithErrors,
        None => Exit::Ok,
    }
}

fn as_text(outcome: &Outcome, dry_run: bool) -> String {
    let mut text = String::new();
    for verdict in outcome.going() {
        let VersionRow { version, info, .. } = &verdict.version;
        let verb = if dry_run { "would go" } else { "removed" };
        text += &format!("{:<6} {}  {verb}\n", version.to_string(), show::time(info.started));
    }
    text + &summary_text(outcome, dry_run)
}

/// The lines after the versions.
pub(super) fn summary_text(outcome: &Outcome, dry_run: bool) -> String {
    let going = outcome.going().count();
    let stay = counted((outcome.verdicts.len() - going) as u64, "version");
    let mut text = if dry_run {
        format!("Dry run: nothing was written. {} would go, {stay} would stay.\n", counted(going as u64, "version"))
    } else {
        format!("{} removed, {stay} left.\n", counted(going as u64, "version"))
    };
    if outcome.last_copies.count > 0 {
        let paths: Vec<Vec<u8>> = outcome.last_copies.paths.iter().take(8).map(|(_, path)| path.clone()).collect();
        let mut names = show::names(&paths);
        let more = outcome.last_copies.count - paths.len() as u64;
        if more > 0 {
            names += &format!(", {} more", show::number(more));
        }
        text += &format!("In no version any more: {}: {names}\n", counted(outcome.last_copies.count, "path"));
    }
    text + &free_text(outcome.free_bytes, dry_run) + &left_line(outcome.left_to_do)
}

fn free_text(free_bytes: Option<u64>, dry_run: bool) -> String {
    match free_bytes {
        Some(0) => String::new(),
        Some(bytes) if dry_run => format!("`assay pack` could free {} then.\n", show::bytes(bytes)),
        Some(bytes) => format!("`assay pack` could free {}.\n", show::bytes(bytes)),
        None => "How much `assay pack` could free can't be told: parts of the catalog are lost.\n".into(),
    }
}

fn left_line(left: Option<LeftToDo>) -> String {
    left.map_or(String::new(), |left| format!("Left: {}\n", left_text(left)))
}

pub(super) fn as_json(outcome: &Outcome, dry_run: bool) -> Value {
    let paths: Vec<&[u8]> = outcome.last_copies.paths.iter().map(|(_, path)| path.as_slice()).collect();
    json!({
        "dry_run": dry_run,
        "versions": outcome.verdicts.iter().map(|verdict| json!({
            "version": verdict.version.version.0,
            "name": verdict.version.info.name,
            "keep": verdict.keep,
            "why": verdict.why,
        })).collect::<Vec<_>>(),
        "removed": outcome.going().map(|verdict| verdict.version.version.0).collect::<Vec<_>>(),
        "last_copies": with_names(json!({ "count": outcome.last_copies.count }), "paths", &paths),
        "free_bytes": outcome.free_bytes,
        "left_to_do": outcome.left_to_do.map(left_text),
    })
}
