//! `-v2 --fix`: the index made anew from the catalogs, if that loses nothing.
//!
//! Invariants: it happens under the writer's lock; the old index is kept as index.db.bad until v2 finds nothing wrong
//! with the new one, and put back if it does; fewer versions or files than before are never the result.

use std::path::Path;

use super::Mending;
use crate::backupdir::{BackupDir, remove_if_there};
use crate::error::{Error, Result};
use crate::findings::{Cause, Finding, Fixed, Level};
use crate::index::{Index, ScanRow, ScanTable, Scanned};
use crate::monitor::Hushed;
use crate::recover;

/// How the making of a new index ended.
enum Rebuilt {
    /// It is in place. What v2 finds wrong with it all the same: the catalogs say so.
    Done { left: Vec<String> },
    /// Why the index was left as it is.
    Refused { why: String },
}

/// Corrects what the findings so far say is wrong with the index or the catalogs, and notes it in them.
pub(super) fn mend(mending: Mending<'_>, findings: &mut [Finding]) -> Result<()> {
    let is_open = |finding: &Finding| finding.fixed.is_none() && finding.level <= Level::Structure;
    let of_index = |finding: &Finding| is_open(finding) && finding.cause == Cause::Index;
    if findings.iter().any(of_index) {
        let rebuilt = rebuild(mending)?;
        for finding in findings.iter_mut().filter(|finding| of_index(finding)) {
            finding.fixed = Some(match &rebuilt {
                Rebuilt::Done { left } if left.contains(&finding.error.to_string()) => written_so(),
                Rebuilt::Done { .. } => Fixed::IndexRebuilt,
                Rebuilt::Refused { why } => Fixed::Not { why: why.clone() },
            });
        }
    }
    // A rule that the catalogs break themselves is broken in a base too.
    let of_catalog = |finding: &Finding| is_open(finding) && finding.cause == Cause::Catalog;
    let by_rule = |finding: &Finding| matches!(finding.error, Error::IndexRow { .. });
    if findings.iter().any(|finding| of_catalog(finding) && !by_rule(finding)) {
        make_base_due(mending.dir)?;
    }
    for finding in findings.iter_mut().filter(|finding| of_catalog(finding)) {
        finding.fixed = Some(if by_rule(finding) { written_so() } else { Fixed::BaseIsDue });
    }
    Ok(())
}

fn written_so() -> Fixed {
    Fixed::Not { why: "the catalogs say so too".into() }
}

fn make_base_due(dir: &BackupDir) -> Result<()> {
    let lock = dir.lock()?;
    let mut writer = dir.open_index_writer(&lock)?;
    writer.make_base_due()?;
    writer.checkpoint()
}

/// Makes the index anew. It need not open for that.
fn rebuild(Mending { dir, monitor, look_again, .. }: Mending<'_>) -> Result<Rebuilt> {
    let _lock = dir.lock()?;
    let new_path = recover::new_index_path(dir)?;
    if let Err(error) = recover::build(dir, &new_path, &Hushed(monitor)) {
        recover::remove_index(&new_path)?;
        return match error {
            Error::CommitDamaged { .. } => Ok(Rebuilt::Refused { why: error.to_string() }),
            other => Err(other),
        };
    }
    if let Some(why) = makes_less(dir, &new_path)? {
        recover::remove_index(&new_path)?;
        return Ok(Rebuilt::Refused { why });
    }
    let old = recover::replace_index(dir, &new_path)?;
    let findings = look_again()?;
    let wrong = findings.iter().find(|finding| matches!(finding.cause, Cause::Index | Cause::Unchecked));
    match (wrong.map(|finding| finding.error.to_string()), old) {
        (None, old) => {
            if let Some(old) = old {
                remove_if_there(&with_log(&old))?;
                remove_if_there(&old)?;
            }
            Ok(Rebuilt::Done { left: findings.iter().map(|finding| finding.error.to_string()).collect() })
        }
        (Some(why), Some(old)) => {
            recover::remove_index(&dir.index_path())?;
            for (from, to) in [(with_log(&old), with_log(&dir.index_path())), (old, dir.index_path())] {
                if from.exists() {
                    std::fs::rename(&from, &to).map_err(|e| Error::io("rename", from, &e))?;
                }
            }
            crate::backupdir::sync_dir(dir.path())?;
            Ok(Rebuilt::Refused { why: format!("the new index is not right either: {why}") })
        }
        (Some(why), None) => Ok(Rebuilt::Refused { why: format!("the new index is not right: {why}") }),
    }
}

fn with_log(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// What an index can show, as far as its rows can be read.
#[derive(Debug, Default)]
struct Readable {
    versions: u64,
    file_states: u64,
    /// Times at which some directory's listing is lost.
    lost_listings: u64,
}

fn readable(index: &Index) -> Result<Readable> {
    let rows = index.snapshot()?;
    let count = |table: ScanTable, good: &dyn Fn(&ScanRow) -> bool| {
        let mut cursor = rows.cursor(table);
        let mut count = 0;
        while let Some(scanned) = cursor.take() {
            count += u64::from(matches!(&scanned, Scanned::Row(row) if good(row)));
        }
        count
    };
    Ok(Readable {
        versions: count(ScanTable::Versions, &|row| rows.open_version(row).is_ok_and(|(_, removed)| !removed)),
        file_states: count(ScanTable::Nodes, &|row| rows.open_node(row).is_ok()),
        lost_listings: count(ScanTable::Lost, &|_| true),
    })
}

/// Why the new index would make fewer versions, files or directories readable; None if it does not.
fn makes_less(dir: &BackupDir, new_path: &Path) -> Result<Option<String>> {
    let new = readable(&Index::open(new_path, &dir.keys().index_key())?)?;
    // An index that can't be read at all has nothing to lose.
    let old = match dir.open_index().and_then(|index| readable(&index)) {
        Ok(old) => old,
        Err(error) if error.is_damage() => return Ok(None),
        Err(error) => return Err(error),
    };
    let less =
        new.versions < old.versions || new.file_states < old.file_states || new.lost_listings > old.lost_listings;
    Ok(less.then(|| {
        format!(
            "catalogs are damaged too: a new index would have {} versions, {} file states and {} lost listings, this one \
             has {}, {} and {}",
            new.versions,
            new.file_states,
            new.lost_listings,
            old.versions,
            old.file_states,
            old.lost_listings
        )
    }))
}
