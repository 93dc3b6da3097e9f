//! `assay damage`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::ops::Range;

use clap::Args;
use serde_json::json;

use super::json::with_name;
use super::{Context, open_index, paths, print, print_json};
use crate::error::{Error, Exit, Result};
use crate::ledger::By;
use crate::reader::{self, Backup, bad_ranges};
use crate::store::{StoreOptions, Words};
use crate::text::shown;
use crate::tree::Found;

/// Read a file of a version and print which bytes of it are damaged, as a map for ddrescue
///
/// The map (`+` can be read, `-` is lost) goes with what `assay get` writes as NAME.damaged: `ddrescue` fills the lost
/// ranges from another copy of the file. Exit code 4 means that there are some.
#[derive(Debug, Args)]
pub struct DamageArgs {
    /// The file, as it was backed up
    #[arg(value_name = "FILE")]
    file: OsString,
    /// The version, as r3, 3, or a folder name of the mount; the newest if not given
    #[arg(short, long, value_name = "REV")]
    rev: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: &DamageArgs) -> Result<Exit> {
    let dir = context.open()?;
    let store = StoreOptions { words: Words::Reader, ..StoreOptions::default() };
    let reading = reader::Options { by: Some(By::Selftest), store, ..reader::Options::default() };
    let backup = Backup::of(&dir, open_index(&dir)?, reading);
    let tree = &backup.tree;
    let given = [paths::given(&args.file, dir.path())?];
    let version = tree.version(paths::version_of(args.rev.as_deref(), &given)?)?.version;
    let [given] = &given;
    let (path, _) = paths::stored(&given.path, |path| tree.find(version, path).map(drop))?;
    let Found::Node(logid, crate::catalog::Kind::File) = tree.find(version, &path)? else {
        return Err(Error::Usage(format!("{} is no regular file", shown(&path))));
    };
    let node = tree.node(logid)?;
    let bad = bad_ranges(&backup, &node)?;
    backup.flush_notes();
    let healed = backup.store.summary().places.into_iter().filter(|met| met.healed).collect::<Vec<_>>();
    if args.json {
        let found = json!({
            "version": version.0,
            "size": node.attr.size,
            "healed_blocks": healed.len(),
            "damaged": bad.iter().map(|(range, error)| json!({
                "start": range.start, "end": range.end, "code": error.code(), "error": error.to_string()
            })).collect::<Vec<_>>(),
        });
        print_json(&with_name(found, "path", &path))?;
    } else {
        print(&mapfile(&shown(&path).to_string(), version, node.attr.size, &bad))?;
        if !context.quiet {
            healed.iter().for_each(|met| super::say(&format!("assay: {}: {met}", met.code)));
        }
    }
    // What was put right on the way is readable, but the backup is not as it was.
    Ok(if bad.is_empty() && healed.is_empty() { Exit::Ok } else { Exit::Damage })
}

/// A map file of GNU ddrescue: comments, the current position, then ranges that tile the file.
fn mapfile(path: &str, version: crate::ids::Version, size: u64, bad: &[(Range<u64>, Error)]) -> String {
    let mut text = format!("# Mapfile of {path} in {version}, by assay\n");
    for (range, error) in bad {
        // Writing to a String can't fail.
        let _ = writeln!(text, "# {}-{}: {}: {error}", range.start, range.end, error.code());
    }
    text += "# current_pos  current_status  current_pass\n0x00000000     +               1\n#      pos        size  status\n";
    let mut at = 0;
    let mut line = |start: u64, end: u64, status: char| {
        if start < end {
            let _ = writeln!(text, "0x{start:08X}  0x{:08X}  {status}", end - start);
        }
    };
    for (range, _) in bad {
        line(at, range.start, '+');
        line(range.start, range.end, '-');
        at = range.end;
    }
    line(at, size, '+');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_tiles_the_file() {
        let lost = || Error::ExtentsLost { logid: crate::ids::Logid(20), offset: 0 };
        let bad = [(0..16, lost()), (100..130, lost())];
        let text = mapfile("/f", crate::ids::Version(3), 200, &bad);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).skip(1).collect();
        let wanted = [
            "0x00000000  0x00000010  -",
            "0x00000010  0x00000054  +",
            "0x00000064  0x0000001E  -",
            "0x00000082  0x00000046  +",
        ];
        assert_eq!(lines, wanted);
        assert!(mapfile("/f", crate::ids::Version(3), 0, &[]).ends_with("status\n"));
    }
}
