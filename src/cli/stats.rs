//! `assay stats`.

use clap::Args;
use serde_json::json;

use super::{Context, open_index, print, print_json, show};
use crate::backupdir::arcs;
use crate::error::{Exit, Result};

/// Show sizes, counts and ratios of the whole backup
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: &StatsArgs) -> Result<Exit> {
    let dir = context.open()?;
    let index = open_index(&dir)?;
    let versions = index.versions()?;
    // Sizes on disk, commit arcs included: what a copy of the backup dir has to carry.
    let (mut arcs_found, mut arc_bytes) = (0u64, 0u64);
    for name in arcs::list(dir.path())? {
        if let Ok(meta) = std::fs::metadata(dir.path().join(name.to_string())) {
            arcs_found += 1;
            arc_bytes += meta.len();
        }
    }
    let index_bytes = std::fs::metadata(dir.index_path()).map_or(0, |meta| meta.len());
    let sum = |of: fn(&crate::catalog::VersionInfo) -> u64| versions.iter().map(|row| of(&row.info)).sum::<u64>();
    let newest = versions.last().map(|row| row.info.clone()).unwrap_or_default();
    let all_trees = sum(|info| info.tree_bytes);
    let (plain, stored) = (sum(|info| info.plain_bytes), sum(|info| info.stored_bytes));
    let (read, blocks) = (sum(|info| info.bytes_read), sum(|info| info.blocks_new));
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
        }))?;
        return Ok(Exit::Ok);
    }
    print(&format!(
        "Versions       {}\n\
         Newest         {} ({} files, {} directories, {} others, {})\n\
         All versions   {} as separate trees\n\
         Arcs           {} files, {}\n\
         Index          {}\n\
         Blocks         {} of {} on average\n\
         Dedup          {} (bytes read to bytes in blocks)\n\
         Compression    {} (bytes in blocks to bytes stored)\n\
         In all         {} (all versions to arcs and index)\n",
        show::number(versions.len() as u64),
        if newest.name.is_empty() { "none yet" } else { &newest.name },
        show::number(newest.files),
        show::number(newest.dirs),
        show::number(newest.others),
        show::bytes(newest.tree_bytes),
        show::bytes(all_trees),
        show::number(arcs_found),
        show::bytes(arc_bytes),
        show::bytes(index_bytes),
        show::number(blocks),
        show::bytes(plain.checked_div(blocks).unwrap_or(0)),
        show::ratio(read, plain),
        show::ratio(plain, stored),
        show::ratio(all_trees, arc_bytes + index_bytes),
    ))?;
    Ok(Exit::Ok)
}
