//! `assay coverage`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::ui::Ui;
use super::{Context, open_index, print, print_json, show};
use crate::catalog::Timespec;
use crate::coverage::{self, AGES_DAYS, Amount, Coverage, Options, Reading, Since};
use crate::error::{Exit, Result};
use crate::ledger::{By, How, Ledger, now_s};
use crate::live;
use crate::text::shown;
use crate::tree::{Tree, View};

/// Show what of a version was proven, by what, and how long ago
///
/// Mounts, `assay get` and selftests note each block that they verify. Only what was read from the arcs counts: not
/// what came from the page cache, and not a pair of files that diff skipped because two versions share the inode. After
/// `diff -r` over a mount, `assay coverage --since mount --list none` names the files that it did not read.
#[derive(Debug, Args)]
pub struct CoverageArgs {
    /// The version, as r3, 3, or a folder name of the mount; the newest if not given
    #[arg(short, long, value_name = "REV")]
    rev: Option<String>,
    /// Count only what was proven since then: 30m, 12h, 7d or 4w ago, or `mount`, when the newest mount began
    #[arg(long, value_name = "AGE", value_parser = parse_since)]
    since: Option<Since>,
    /// Print the paths of the files that were read so
    #[arg(long, value_name = "HOW", conflicts_with = "json")]
    list: Option<ListArg>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Only this file, or what is below this directory, as it was backed up
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ListArg {
    /// To the last byte
    Whole,
    /// Some bytes
    Part,
    /// Not at all
    None,
}

impl ListArg {
    fn reading(self) -> Reading {
        match self {
            ListArg::Whole => Reading::Whole,
            ListArg::Part => Reading::Part,
            ListArg::None => Reading::None,
        }
    }
}

/// `90s`, `30m`, `12h`, `7d`, `4w` or `mount`.
fn parse_since(text: &str) -> Result<Since, String> {
    if text == "mount" {
        return Ok(Since::Mount);
    }
    let bad = || format!("`{text}` is not an age such as 30m, 12h, 7d or 4w");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(bad)?;
    let unit_s = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(bad()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_s)).ok_or_else(bad)?;
    Ok(Since::Age { seconds })
}

pub fn run(context: &Context, args: &CoverageArgs) -> Result<Exit> {
    let dir = context.open()?;
    let tree = Tree::of(&dir, open_index(&dir)?, View::Whole);
    let (ledger, refused) = Ledger::load(dir.own(), dir.keys(), &dir.commits(tree.index())?)?;
    for refused in &refused {
        log::warn!("{}: not believed: {}", shown(&refused.path), refused.what);
    }
    let path = match &args.path {
        Some(path) => std::os::unix::ffi::OsStrExt::as_bytes(live::absolute(path)?.as_os_str()).to_vec(),
        None => Vec::new(),
    };
    let asked = path.clone();
    let options = Options { rev: args.rev.clone(), path, since: args.since.unwrap_or_default() };
    let ui = Ui::new(context, "Looking up");
    let mut out = String::new();
    let mut each = |path: &[u8], reading: Reading| {
        if args.list.is_some_and(|list| list.reading() == reading) {
            out += &format!("{}\n", shown(path));
        }
        if out.len() > 1 << 16 { ui.print(&std::mem::take(&mut out)) } else { Ok(()) }
    };
    let done = coverage::run(&tree, &ledger, &options, &ui, now_s(), &mut each);
    ui.finish();
    let result = done?;
    print(&out)?;
    if args.json {
        print_json(&as_json(&result))?;
    } else if args.list.is_none() {
        print(&as_text(&result, &asked))?;
    }
    Ok(match result.failures {
        _ if result.interrupted => Exit::Interrupted,
        0 => Exit::Ok,
        _ => Exit::Damage,
    })
}

fn how_text(how: How) -> &'static str {
    match how {
        How::Read => "read",
        How::Medium => "medium",
    }
}

fn by_text(by: By) -> &'static str {
    match by {
        By::Mount => "mount",
        By::Get => "get",
        By::Selftest => "selftest",
    }
}

fn time(when_s: u64) -> String {
    show::time(Timespec { sec: when_s as i64, nsec: 0 })
}

fn percent(part: u64, whole: u64) -> String {
    // Rounded down: 100.0 % is all.
    let tenths = (u128::from(part) * 1000).checked_div(u128::from(whole)).unwrap_or(1000);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

fn amount(amount: &Amount) -> String {
    format!("{}, {}", show::counted(amount.blocks, "block"), show::bytes(amount.bytes))
}

fn as_text(found: &Coverage, path: &[u8]) -> String {
    let mut text = found.version.info.name.clone();
    if !path.is_empty() {
        text += &format!(", {}", shown(path));
    }
    text.push('\n');
    let mut line = |title: &str, value: String| text += &format!("  {title:<9}{value}\n");
    if found.since_s > 0 {
        line("since", time(found.since_s));
    }
    line(
        "files",
        format!(
            "{} with content: {} read whole, {} in part, {} not at all",
            show::number(found.files),
            show::number(found.whole),
            show::number(found.part),
            show::number(found.none)
        ),
    );
    if found.hashed > 0 {
        line("", format!("{} of them compared with their SHA-1", show::number(found.hashed)));
    }
    let at_most = if found.inexact { "at most " } else { "" };
    line("blocks", format!("{at_most}{}", amount(&found.total)));
    let shares = (percent(found.proven.blocks, found.total.blocks), percent(found.proven.bytes, found.total.bytes));
    let proven = match found.total.blocks {
        0 => "there is nothing to prove".into(),
        _ => format!("{}: {} of the blocks, {} of the bytes", amount(&found.proven), shares.0, shares.1),
    };
    line("proven", proven);
    for (how, by, part) in &found.by {
        let how = match how {
            How::Read => "through the page cache",
            How::Medium => "from the medium",
        };
        line("", format!("{} by {} {how}", amount(part), by_text(*by)));
    }
    let ends = AGES_DAYS.iter().map(|days| Some(*days)).chain([None]);
    let starts = [0].into_iter().chain(AGES_DAYS);
    let mut title = "age";
    for ((part, end), start) in found.ages.iter().zip(ends).zip(starts).collect::<Vec<_>>().into_iter().rev() {
        if part.blocks > 0 {
            let age = match end {
                Some(1) => "less than a day".to_string(),
                Some(end) => format!("{start} to {end} days"),
                None => format!("more than {start} days"),
            };
            line(std::mem::take(&mut title), format!("{age}: {}", amount(part)));
        }
    }
    if let (Some(oldest_s), Some(newest_s)) = (found.oldest_s, found.newest_s) {
        line("", format!("oldest {}, newest {}", time(oldest_s), time(newest_s)));
    }
    let damage = match found.damaged {
        0 => "none known".into(),
        count => show::counted(count, "block") + ", not proven since",
    };
    line("damage", damage);
    if found.failures > 0 {
        line("", format!("the index could not tell all of {}", show::counted(found.failures, "entry")));
    }
    if found.interrupted {
        text += "Interrupted: the counts are of what was looked up until then.\n";
    }
    if found.being_written {
        text += "A mount or another process is verifying: what it read in the last minute may be missing here (unmount it, or \
                 send it SIGUSR1).\n";
    }
    if let Some(mount) = found.mount.filter(|_| found.only_walked()) {
        text += &format!(
            "The mount of {} listed {} and read no file. `rsync -a` compares size and mtime only: use \
             `rsync -c`, or `diff -r`.\n",
            time(mount.started_s),
            show::counted(mount.dirs_listed, "directory")
        );
    }
    text
}

fn as_json(found: &Coverage) -> serde_json::Value {
    let amount = |amount: &Amount| json!({ "blocks": amount.blocks, "bytes": amount.bytes });
    let ends = AGES_DAYS.iter().map(|days| Some(*days)).chain([None]);
    json!({
        "version": found.version.version.0,
        "name": found.version.info.name,
        "since_s": (found.since_s > 0).then_some(found.since_s),
        "files": { "with_content": found.files, "whole": found.whole, "hashed": found.hashed, "part": found.part,
                   "none": found.none },
        "total": amount(&found.total),
        "proven": amount(&found.proven),
        "by": found.by.iter().map(|(how, by, part)| json!({
            "how": how_text(*how), "by": by_text(*by), "blocks": part.blocks, "bytes": part.bytes
        })).collect::<Vec<_>>(),
        "ages": found.ages.iter().zip(ends).map(|(part, end)| json!({
            "below_days": end, "blocks": part.blocks, "bytes": part.bytes
        })).collect::<Vec<_>>(),
        "oldest_s": found.oldest_s,
        "newest_s": found.newest_s,
        "damaged_blocks": found.damaged,
        "failures": found.failures,
        "being_written": found.being_written,
        "only_walked": found.only_walked(),
        "inexact": found.inexact,
        "interrupted": found.interrupted,
        "mount": found.mount.map(|session| json!({
            "started_s": session.started_s, "seconds": session.seconds, "dirs_listed": session.dirs_listed,
            "files_read": session.files_read, "bytes_read": session.bytes_read
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read_and_nonsense_is_refused() {
        for (text, seconds) in [("0s", 0), ("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("4w", 2_419_200)] {
            assert_eq!(parse_since(text), Ok(Since::Age { seconds }), "{text}");
        }
        assert_eq!(parse_since("mount"), Ok(Since::Mount));
        for bad in ["", "d", "7", "7x", "-1d", "99999999999999999999d", "1é"] {
            assert!(parse_since(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_share_is_never_rounded_up_to_all() {
        assert_eq!(
            (percent(9_999, 10_000), percent(7, 7), percent(0, 0)),
            ("99.9 %".into(), "100.0 %".into(), "100.0 %".into())
        );
    }
}
