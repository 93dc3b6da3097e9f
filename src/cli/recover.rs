//! `assay recover`.

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::json::{with_name, with_names};
use super::ui::Ui;
use super::{Context, print, print_json, show};
use crate::backupdir::BackupDir;
use crate::copies::{self, Brought, Remote, Traffic};
use crate::depot::Depot;
use crate::error::{Error, Exit, Result};
use crate::ids::ArcName;
use crate::index::Index;
use crate::memory::OnChange;
use crate::recover::{self, OnLoss, Recovered};
use crate::text::shown;
use crate::tree::{Tree, View};

/// Rebuild the index from the arcs and key.conf
///
/// Needs nothing but the arc files and key.conf, here or at a destination (`--from`). An index that is there is kept beside the new one as
/// index.db.bad. Says which directories can't be shown when parts of the catalog are damaged.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Accept what is gone as gone: backups and selftests don't tell it again
    ///
    /// That is all that this recovery finds missing, and the damage that `assay damage` knows of. Put back from a copy
    /// what can be put back before. Reading what is lost stays an error; `assay stats` lists what was accepted.
    #[arg(long)]
    accept_loss: bool,
    /// Read the arcs at this destination of dest.toml: commits, catalogs and frame tables, no file data
    ///
    /// The backup dir needs nothing but key.conf and dest.toml. Commits and catalogs come home; file data is noted as kept
    /// there, and read there by whatever needs it. `assay dest sync` fetches it later, as --arcs does now.
    #[arg(long, value_name = "DEST")]
    from: Option<String>,
    /// Fetch all arcs too, each proven by its recorded checksum; those that are here and right are not fetched again
    #[arg(long, requires = "from")]
    arcs: bool,
}

pub fn run(context: &Context, args: &RecoverArgs) -> Result<Exit> {
    let home = context.open()?;
    let remote = args.from.as_deref().map(|name| super::copies::remote(&home, name)).transpose()?;
    let dir = match &remote {
        Some(remote) => {
            refuse_more(&home, remote)?;
            home.clone().seen_through(|_| Arc::new(remote.clone()))
        }
        None => home.clone(),
    };
    let ui = Ui::counting(context, "Recovering", "runs");
    let done = recover::run(&dir, if args.accept_loss { OnLoss::Accept } else { OnLoss::Report }, &ui);
    ui.finish();
    let found = done?;
    let on_change = if args.accept_loss { OnChange::Accept } else { context.on_change };
    let other_history = match super::meet_as(context, &dir, on_change) {
        Err(error @ Error::HistoryChanged { .. }) => {
            super::report(&error);
            true
        }
        met => met.map(|()| false)?,
    };
    let mut away = None;
    if let Some(remote) = &remote {
        let (lock, index) = (home.lock()?, home.open_index()?);
        remote.remember(&home, &lock)?;
        let data: BTreeSet<ArcName> = data_arcs(&index)?;
        let ui = Ui::counting(context, "Fetching", "arcs");
        let brought = copies::bring_home(&home, &lock, &index, remote, &|arc| args.arcs || !data.contains(&arc), &ui);
        ui.finish();
        let brought = brought?;
        let left = copies::leave_away(&home, &lock, &index, remote)?;
        away = Some(Away {
            name: remote.name().to_string(),
            newest: newest(&dir)?,
            traffic: remote.traffic(),
            brought,
            left,
        });
    }
    let all_came = away.as_ref().is_none_or(|away| away.brought.failed.is_empty());
    super::log::outcome(as_text(&found).lines().next().unwrap_or_default());
    if args.json {
        print_json(&with_away(as_json(&found), away.as_ref()))?;
    } else {
        print(&(as_text(&found) + &away.as_ref().map_or_else(String::new, Away::text)))?;
    }
    let is_whole = found.open_losses == 0 && found.unproven.is_empty() && !other_history && all_came;
    Ok(if is_whole { Exit::Ok } else { Exit::Damage })
}

/// An index made from a destination knows nothing of arcs that only are here.
fn refuse_more(home: &BackupDir, remote: &Remote) -> Result<()> {
    let there = remote.list()?;
    match home.arcs().list()?.iter().find(|name| there.binary_search(name).is_err()) {
        Some(name) => Err(Error::Usage(format!(
            "{name} is here and not at {}: recover without --from, or use an empty directory",
            remote.name()
        ))),
        None => Ok(()),
    }
}

fn data_arcs(index: &Index) -> Result<BTreeSet<ArcName>> {
    Ok(index.data_arcs()?.map(|entry| entry.name).collect())
}

/// The newest version, as `assay versions --digest` prints it.
fn newest(dir: &BackupDir) -> Result<Option<String>> {
    let tree = Tree::of(dir, dir.open_index()?, View::Whole);
    let Some(row) = tree.index().newest()? else { return Ok(None) };
    Ok(match tree.root(row.version) {
        Ok(root) => Some(format!("{} {} {root}", row.version, row.info.name)),
        // It was told with what else is wrong.
        Err(error) if error.is_damage() => None,
        Err(error) => return Err(error),
    })
}

/// What was read at a destination.
struct Away {
    name: String,
    newest: Option<String>,
    traffic: Traffic,
    brought: Brought,
    /// Arcs of file data that stay there.
    left: u64,
}

impl Away {
    fn text(&self) -> String {
        let Away { name, newest, traffic, brought, left } = self;
        let Brought { arcs, bytes, were_here, failed } = brought;
        let requests = show::counted(traffic.requests, "request");
        let mut text = format!("From {name}: {requests}, {} read.\n", show::bytes(traffic.bytes));
        let arcs = show::counted(*arcs, "arc");
        text += &format!("{arcs} fetched ({}), {were_here} were here.\n", show::bytes(*bytes));
        if !failed.is_empty() {
            text += &format!("NOT fetched: {}.\n", show::counted(failed.len() as u64, "arc"));
        }
        if *left > 0 {
            let arcs = show::counted(*left, "arc");
            text += &format!("{arcs} of file data are kept there, and read there: `assay dest sync` fetches them.\n");
        }
        if let Some(line) = newest {
            text += &format!("Newest: {line}\nIf you have noted such lines: `assay versions --expect`.\n");
        }
        text
    }
}

fn with_away(mut value: Value, away: Option<&Away>) -> Value {
    if let (Some(fields), Some(Away { name, newest, traffic, brought, left })) = (value.as_object_mut(), away) {
        fields.insert("from".into(), json!(name));
        fields.insert("newest".into(), json!(newest));
        fields.insert("requests".into(), json!(traffic.requests));
        fields.insert("bytes".into(), json!(traffic.bytes));
        let failed = brought.failed.iter().map(|(arc, e)| json!({"arc": arc.to_string(), "error": e.to_string()}));
        fields.insert("arcs_fetched".into(), json!(brought.arcs));
        fields.insert("arcs_here".into(), json!(brought.were_here));
        fields.insert("arcs_failed".into(), failed.collect());
        fields.insert("arcs_away".into(), json!(left));
    }
    value
}

fn as_text(found: &Recovered) -> String {
    let mut text = format!("Recovered {}.\n", show::counted(found.versions.len() as u64, "version"));
    if let Some(path) = &found.old_index {
        text += &format!("The old index is kept as {}.\n", shown(path));
    }
    for (_, error) in &found.unproven {
        text += &format!("{error}\n");
    }
    for (version, error) in &found.lost_runs {
        text += &format!("{version} is lost: {error}\n");
    }
    for lost in &found.lost {
        let what = match lost.count {
            0 => "a frame that lists no directory is damaged (parts of long files, or what is told twice)".into(),
            dirs => format!("{} can't be listed", show::counted(dirs, "directory")),
        };
        text += &format!("{}: {what}: {}\n", lost.version, lost.frame.error);
        for path in &lost.paths {
            text += &format!("  {}\n", shown(path));
        }
    }
    for (arc, error) in &found.lost_arcs {
        text += &format!("The blocks of {arc} can't be read: {error}\n");
    }
    for run in &found.missing_runs {
        text += &format!("{run} is missing: the old index knew it, and there is no commit of it\n");
    }
    for stray in &found.strays {
        text += &format!("{stray}\n");
    }
    if found.uncommitted_arcs > 0 {
        text += &format!(
            "Left alone: {} of no commit. A backup was cut, or its arc.V.0 is lost.\n",
            show::counted(found.uncommitted_arcs as u64, "arc")
        );
    }
    for loss in &found.accepted {
        text += &format!("Accepted as lost: {loss}\n");
    }
    if found.open_losses > 0 {
        text += "If nothing of this can be put back from a copy: `assay recover --accept-loss`.\n";
    }
    text
}

fn as_json(found: &Recovered) -> serde_json::Value {
    let value = json!({
        "versions": found.versions.iter().map(|v| v.0).collect::<Vec<_>>(),
        "lost_versions": found.lost_runs.iter().map(|(v, e)| json!({"version": v.0, "error": e.to_string()})).collect::<Vec<_>>(),
        "lost_frames": found.lost.iter().map(|lost| with_names(json!({
            "version": lost.version.0,
            "arc": lost.frame.arc.to_string(),
            "frame": lost.frame.frame.0,
            "error": lost.frame.error.to_string(),
        }), "directories", &lost.paths)).collect::<Vec<_>>(),
        "lost_arcs": found.lost_arcs.iter().map(|(arc, e)| json!({"arc": arc.to_string(), "error": e.to_string()})).collect::<Vec<_>>(),
        "uncommitted_arcs": found.uncommitted_arcs,
        "missing_versions": found.missing_runs.iter().map(|run| run.0).collect::<Vec<_>>(),
        "unproven_versions": found.unproven.iter().map(|(v, e)| json!({"version": v.0, "error": e.to_string()})).collect::<Vec<_>>(),
        "strays": found.strays.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "accepted_losses": found.accepted,
        "open_losses": found.open_losses,
        "old_index": Value::Null,
    });
    match &found.old_index {
        Some(path) => with_name(value, "old_index", path),
        None => value,
    }
}
