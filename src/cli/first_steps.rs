//! `assay` alone: what to do first, or how the backup is.

use std::io::IsTerminal;
use std::path::Path;

use clap::CommandFactory;

use super::{log, print};
use crate::error::Exit;
use crate::own::Sharing;
use crate::text::shown;

/// Runs that are shown.
const RUNS: usize = 3;

/// In a terminal a few lines for people; elsewhere a command was forgotten.
///
/// Nothing is opened that needs a key, so nothing is asked.
pub fn run(dir: &Path, sharing: Sharing) -> Exit {
    if !std::io::stdout().is_terminal() || !std::io::stderr().is_terminal() {
        super::say("assay: USAGE: a command is missing");
        super::say("help: `assay --help` lists the commands");
        return Exit::Usage;
    }
    let text = if dir.join("key.conf").exists() { state(dir, sharing) } else { first_steps(dir) };
    match print(&text) {
        Ok(()) => Exit::Ok,
        Err(error) => error.exit_code(),
    }
}

fn first_steps(dir: &Path) -> String {
    format!(
        "There is no backup dir in {} yet (-c DIR names another).\n\n  \
         assay init                    makes one; keep a copy of its key.conf elsewhere\n  \
         assay backup ~/Documents      saves a directory as a new version\n  \
         mkdir mnt; assay mount mnt    shows all versions; what is read is verified first\n\n\
         assay --help lists the commands.\n",
        shown(dir)
    )
}

fn state(dir: &Path, sharing: Sharing) -> String {
    let mut text = format!("Backup dir {}\n\n", shown(dir));
    let runs = log::last_runs(dir, sharing, RUNS).unwrap_or_default();
    for run in &runs {
        text += &format!("{}\n", run.line());
    }
    if runs.is_empty() {
        text += "No run is logged yet: assay backup PATH saves a path as a new version.\n";
    }
    let names: Vec<String> = super::Cli::command()
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(|command| command.get_name().to_string())
        .collect();
    text + &format!("\nCommands: {}; assay --help says more.\n", names.join(", "))
}
