//! `assay recover`.

use clap::Args;
use serde_json::{Value, json};

use super::json::{with_name, with_names};
use super::ui::Ui;
use super::{Context, print, print_json, show};
use crate::error::{Error, Exit, Result};
use crate::memory::OnChange;
use crate::recover::{self, OnLoss, Recovered};
use crate::text::shown;

/// Rebuild the index from the arcs and key.conf
///
/// Needs nothing but the arc files and key.conf. An index that is there is kept beside the new one as
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
}

pub fn run(context: &Context, args: &RecoverArgs) -> Result<Exit> {
    let dir = context.open()?;
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
    super::log::outcome(as_text(&found).lines().next().unwrap_or_default());
    if args.json {
        print_json(&as_json(&found))?;
    } else {
        print(&as_text(&found))?;
    }
    Ok(if found.open_losses == 0 && found.unproven.is_empty() && !other_history { Exit::Ok } else { Exit::Damage })
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
