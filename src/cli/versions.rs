//! `assay versions`.

use std::ffi::OsString;

use clap::Args;
use serde_json::json;

use super::backup::with_left_out;
use super::json::with_names;
use super::noted::{self, Noted};
use super::{Context, open_index, print, print_json, show};
use crate::backupdir::{Accepted, BackupDir};
use crate::catalog::VersionInfo;
use crate::error::{Exit, Result};
use crate::index::VersionRow;
use crate::text::{counted, one_line, shown};
use crate::tree::{Tree, View};

/// List the versions, oldest first
///
/// A version's root digest stands for all that it shows: names, attributes, contents. Noted elsewhere (mailed by the nightly
/// run, say) it tells later whether the version is still there, and still the same.
#[derive(Debug, Args)]
pub struct VersionsArgs {
    /// Print an array with all that is known of each version
    #[arg(long)]
    json: bool,
    /// Print a line a version to note elsewhere: version, folder name, root digest
    #[arg(long, conflicts_with = "json")]
    digest: bool,
    /// Compare with noted lines: one such line, a file of them, or - for standard input; exit 4 if a version is missing
    /// or another
    #[arg(long, value_name = "LINE|FILE", conflicts_with_all = ["json", "digest"])]
    expect: Option<OsString>,
}

pub fn run(context: &Context, args: &VersionsArgs) -> Result<Exit> {
    let dir = context.open()?;
    let index = open_index(&dir)?;
    if args.digest || args.expect.is_some() {
        let tree = Tree::of(&dir, index, View::Whole);
        return match &args.expect {
            Some(given) => expect(&dir, &tree, &noted::lines(given)?),
            None => {
                let line = |row: &VersionRow| -> Result<String> {
                    Ok(format!("{} {} {}\n", row.version, row.info.name, tree.root(row.version)?))
                };
                print(&tree.versions()?.iter().map(line).collect::<Result<String>>()?)?;
                Ok(Exit::Ok)
            }
        };
    }
    let versions = index.versions()?;
    let accepted = Accepted::of(&index)?;
    if args.json {
        print_json(&versions.iter().map(|row| as_json(row, &accepted)).collect())?;
        return Ok(Exit::Ok);
    }
    let mut text = String::new();
    if versions.is_empty() {
        text += "No versions yet: make one with `assay backup PATH`.\n";
    }
    for row in &versions {
        let info = &row.info;
        let paths: Vec<String> = info.paths.iter().map(|path| shown(path).to_string()).collect();
        let tag = if info.tag.is_empty() { String::new() } else { format!("  [{}]", one_line(&info.tag)) };
        text += &format!(
            "{:<6} {}  {:>17}  {:>11}  +{} ~{} -{}{}  {}{tag}\n",
            row.version.to_string(),
            show::time(info.started),
            show::counted(info.files, "file"),
            show::bytes(info.tree_bytes),
            show::number(info.new),
            show::number(info.changed),
            show::number(info.removed),
            marks(info),
            paths.join(" "),
        );
    }
    let accepted = accepted.texts();
    if let Some(first) = accepted.first() {
        let more = if accepted.len() > 1 { format!(" and {} more", accepted.len() - 1) } else { String::new() };
        text += &format!("Accepted as lost: {first}{more} (`assay stats`).\n");
    }
    print(&text)?;
    Ok(Exit::Ok)
}

/// Says of each noted version what became of it.
fn expect(dir: &BackupDir, tree: &Tree, noted: &[Noted]) -> Result<Exit> {
    let mut exit = Exit::Ok;
    let mut text = String::new();
    for one in noted {
        let fate = noted::fate(dir, tree, one)?;
        if fate.is_wrong() {
            exit = Exit::Damage;
        }
        text += &format!("{:<6} {}  {fate}\n", one.version.to_string(), one_line(&one.name));
    }
    if exit == Exit::Damage {
        text += "help: `assay selftest -v2` tells what is wrong here; look for a newer copy of the backup dir\n";
    }
    print(&text)?;
    Ok(exit)
}

/// What is not in it, or not as it was.
fn marks(info: &VersionInfo) -> String {
    let mut text = String::new();
    if info.errors > 0 {
        text += &format!("  {}", counted(info.errors, "error"));
    }
    let counts = [(info.torn, "torn"), (info.vanished, "vanished"), (info.excluded, "excluded")];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!("  {} {what}", show::number(count));
    }
    for (title, paths) in [("not entered", &info.not_entered), ("kept", &info.kept_paths)] {
        if !paths.is_empty() {
            text += &format!("  {title}: {}", show::names(paths));
        }
    }
    text
}

fn as_json(row: &VersionRow, accepted: &Accepted) -> serde_json::Value {
    let info = &row.info;
    let value = json!({
        "version": row.version.0,
        "name": info.name,
        "started_s": info.started.sec,
        "finished_s": info.finished.sec,
        "tag": info.tag,
        "host": info.host,
        "files": info.files,
        "dirs": info.dirs,
        "others": info.others,
        "tree_bytes": info.tree_bytes,
        "new": info.new,
        "changed": info.changed,
        "removed": info.removed,
        "errors": info.errors,
        "excluded": info.excluded,
        "vanished": info.vanished,
        "torn": info.torn,
        "incomplete": info.incomplete,
        "bytes_read": info.bytes_read,
        "blocks_new": info.blocks_new,
        "blocks_deduped": info.blocks_deduped,
        "plain_bytes": info.plain_bytes,
        "stored_bytes": info.stored_bytes,
        "root": row.root.digest.to_string(),
        "base_catalog": row.base,
        "accepted_losses": accepted.texts_of(row.version),
    });
    with_left_out(with_names(value, "paths", &info.paths), info)
}
