//! `assay stats`.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json};

use super::{Context, open_index, print, print_json, show};
use crate::arc::ARC_HEADER_LEN;
use crate::backupdir::Accepted;
use crate::catalog::Timespec;
use crate::copies::{self, Condition};
use crate::dest::Known;
use crate::error::{Error, Exit, Result};
use crate::index::{Index, Subtrees};
use crate::ledger::{Damage, Ledger, Run};
use crate::prune;
use crate::text::shown;

/// Show sizes, counts and ratios of the whole backup, its last selftests and the damage that is known
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Damaged places that are listed.
const MAX_LISTED: usize = 20;

pub fn run(context: &Context, args: &StatsArgs) -> Result<Exit> {
    let dir = context.open()?;
    let index = open_index(&dir)?;
    let versions = index.versions()?;
    // Sizes on disk, commit arcs included: what a copy of the backup dir has to carry.
    let (mut arcs_found, mut arc_bytes) = (0u64, 0u64);
    for name in dir.arcs().list()? {
        if let Ok(len_bytes) = dir.arcs().len_bytes(name) {
            arcs_found += 1;
            arc_bytes += len_bytes;
        }
    }
    // Where nothing was removed there is nothing that no version needs: it need not be counted.
    let free_bytes = match index.any_removed()? {
        true => prune::free_bytes(&index, &index.needed()?, &Subtrees::default(), &|| false)?,
        false => Some(0),
    };
    let accepted = Accepted::of(&index)?.texts();
    let index_bytes = std::fs::metadata(dir.index_path()).map_or(0, |meta| meta.len());
    let sum = |of: fn(&crate::catalog::VersionInfo) -> u64| {
        versions.iter().map(|row| of(&row.info)).fold(0, u64::saturating_add)
    };
    let newest = versions.last().map(|row| row.info.clone()).unwrap_or_default();
    let all_trees = sum(|info| info.tree_bytes);
    let read = sum(|info| info.bytes_read);
    // As the arcs have them: what a run that was cut had stored is of no version.
    let (mut blocks, mut plain, mut stored) = (0, 0, 0);
    for entry in index.data_arcs()? {
        blocks += u64::from(entry.frames);
        plain += entry.plain_bytes;
        stored += entry.footer_offset.saturating_sub(ARC_HEADER_LEN as u64);
    }
    let (ledger, refused) = Ledger::load(dir.own(), dir.keys(), &dir.commits(&index)?)?;
    for refused in &refused {
        log::warn!("{}: not believed: {}", shown(&refused.path), refused.what);
    }
    let standing = copies::status(&super::copies::around(context, &dir), None);
    let standing = standing.inspect_err(|error| log::warn!("{}: {error}", error.code())).unwrap_or_default();
    let standing = copies::counts(&standing);
    // The last of each level.
    let selftests: BTreeMap<u8, &Run> = ledger.runs().iter().map(|run| (run.level, run)).collect();
    // What was in an arc that is packed away is no damage any more.
    let there = |found: &&Damage| !matches!(index.arc(found.arc), Err(Error::ArcDropped { .. }));
    let open: Vec<&Damage> = ledger.open_damage().iter().filter(there).collect();
    // Only names: what can't be read of them is told by whoever needs more.
    let known = Known::read(&dir).unwrap_or_default();
    let damage: Vec<Value> = open.iter().take(MAX_LISTED).map(|found| damage(&index, &known, found)).collect();
    if args.json {
        print_json(&json!({
            "versions": versions.len(),
            "arcs": arcs_found,
            "arc_bytes": arc_bytes,
            "index_bytes": index_bytes,
            "newest": { "name": newest.name, "files": newest.files, "dirs": newest.dirs, "others": newest.others,
                        "tree_bytes": newest.tree_bytes },
            "all_versions_bytes": all_trees,
            "bytes_read": read,
            "blocks": blocks,
            "plain_bytes": plain,
            "stored_bytes": stored,
            "selftests": selftests.values().map(|run| json!({
                "level": run.level, "when_s": run.when_s, "seconds": run.seconds, "scope": run.scope, "inc": run.inc,
                "blocks": run.blocks, "bytes": run.bytes, "findings": run.findings, "fixed": run.fixed,
            })).collect::<Vec<_>>(),
            "copies": standing.iter().map(standing_json).collect::<Vec<_>>(),
            "free_bytes": free_bytes,
            "accepted_losses": accepted,
            "open_damage": open.len(),
            "damage": damage,
            "memory_suspected": ledger.same_flip_twice().is_some(),
        }))?;
        return Ok(Exit::Ok);
    }
    print(&format!(
        "Versions       {}\n\
         Newest         {} ({}, {}, {}, {})\n\
         All versions   {} as separate trees\n\
         Arcs           {}, {}\n\
         Index          {}\n\
         Blocks         {} of {} on average\n\
         Dedup          {} (bytes read to bytes in blocks)\n\
         Compression    {} (bytes in blocks to bytes stored)\n\
         In all         {} (all versions to arcs and index)\n",
        show::number(versions.len() as u64),
        if newest.name.is_empty() { "none yet" } else { &newest.name },
        show::counted(newest.files, "file"),
        show::counted(newest.dirs, "directory"),
        show::counted(newest.others, "other"),
        show::bytes(newest.tree_bytes),
        show::bytes(all_trees),
        show::counted(arcs_found, "file"),
        show::bytes(arc_bytes),
        show::bytes(index_bytes),
        show::number(blocks),
        show::bytes(plain.checked_div(blocks).unwrap_or(0)),
        show::ratio(read, plain),
        show::ratio(plain, stored),
        show::ratio(all_trees, arc_bytes + index_bytes),
    ))?;
    if let Some(bytes) = free_bytes.filter(|bytes| *bytes > 0) {
        print(&format!("To free        {} by `assay pack`\n", show::bytes(bytes)))?;
    }
    if let Some(first) = accepted.first() {
        let more = if accepted.len() > 1 {
            format!(" and {} more (--json lists them)", accepted.len() - 1)
        } else {
            String::new()
        };
        print(&format!("Lost           {first}{more}: accepted\n"))?;
    }
    print(&standing.iter().map(standing_text).collect::<String>())?;
    print(&health_text(&selftests, open.len(), &damage, ledger.same_flip_twice().is_some()))?;
    Ok(Exit::Ok)
}

/// How many arcs stand how, at one place.
type Counts = (String, BTreeMap<Condition, u64>);

fn standing_json((name, counts): &Counts) -> Value {
    let count = |condition: &Condition| (condition.text().to_string(), json!(counts.get(condition).unwrap_or(&0)));
    let mut fields: serde_json::Map<String, Value> = Condition::ALL.iter().map(count).collect();
    let name = if name.is_empty() { None } else { Some(name) };
    fields.insert("destination".into(), json!(name));
    Value::Object(fields)
}

fn standing_text((name, counts): &Counts) -> String {
    let parts: Vec<String> =
        counts.iter().map(|(condition, count)| format!("{} {}", show::number(*count), condition.text())).collect();
    let title = if name.is_empty() { "Arcs here".to_string() } else { format!("Arcs at {name}") };
    format!("{title:<14} {}\n", if parts.is_empty() { "none".into() } else { parts.join(", ") })
}

fn damage(index: &Index, known: &Known, found: &Damage) -> Value {
    let arc =
        index.arc(found.arc).map_or_else(|_| format!("arc number {}", found.arc.0), |row| row.entry.name.to_string());
    json!({ "code": found.code, "arc": arc, "frame": found.frame.map(|no| no.0), "frames": found.count,
            "copy": found.copy.0, "destination": known.name_of(found.copy), "when_s": found.when_ms / 1000 })
}

fn health_text(selftests: &BTreeMap<u8, &Run>, open: usize, damage: &[Value], memory_suspected: bool) -> String {
    let time = |when_s: u64| show::time(Timespec { sec: when_s as i64, nsec: 0 });
    let mut lines = Vec::new();
    let mut line = |title: &str, value: String| lines.push(format!("{title:<15}{value}\n"));
    for run in selftests.values() {
        let part = if run.scope.is_empty() { String::new() } else { format!(" of {}", run.scope) };
        let found = match run.findings {
            0 => "nothing found".into(),
            count => format!("{}, {} fixed", show::counted(count, "finding"), show::number(run.fixed)),
        };
        line("Selftest", format!("-v{}{part} {}: {found}", run.level, time(run.when_s)));
    }
    if selftests.is_empty() {
        line("Selftest", "none yet".into());
    }
    match open {
        0 => line("Damage", "none known".into()),
        count => line("Damage", format!("{}, not seen right since", show::counted(count as u64, "place"))),
    }
    for place in damage {
        let text = |key: &str| place.get(key).and_then(Value::as_str).unwrap_or_default();
        let number = |key: &str| place.get(key).and_then(Value::as_u64);
        let frames = number("frames").filter(|count| *count > 1);
        let frame = match (number("frame"), frames) {
            (Some(no), Some(count)) => format!(" frames {no} to {}", no + count - 1),
            (Some(no), None) => format!(" frame {no}"),
            (None, _) => String::new(),
        };
        let when_s = place.get("when_s").and_then(Value::as_u64).unwrap_or_default();
        let at = place.get("destination").and_then(Value::as_str).map(|name| format!(" at {}", shown(name.as_bytes())));
        line("", format!("{} {}{frame}{}, {}", text("code"), text("arc"), at.unwrap_or_default(), time(when_s)));
    }
    if damage.len() < open {
        line("", format!("… and {} more", open - damage.len()));
    }
    if memory_suspected {
        line("Memory", "the same bit was wrong twice: test the memory of this machine".into());
    }
    lines.concat()
}
