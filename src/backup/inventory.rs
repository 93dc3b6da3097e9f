//! What the index counts on, and whether it is still there: looked at before a run builds on it.
//!
//! Invariants: only names, lengths and the ends of a few commit arcs are looked at, never data; what is missing is told
//! once a run, and nothing in it is taken for stored.

use std::collections::HashSet;

use crate::backupdir::{Accepted, BackupDir, arcs};
use crate::catalog::{ArcEntry, ArcRole};
use crate::error::{Damage, Error, Result};
use crate::ids::{CopyId, FrameNo, FramePlace, Version};
use crate::index::{Index, Lost};
use crate::ledger::Ledger;
use crate::monitor::{Event, Monitor};

/// Arcs and commits that are named one by one.
const MAX_TOLD: u64 = 100;

/// What a run can't count on.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Arcs that are missing or cut short, frames that were found damaged and not seen right since: their blocks are stored anew.
    pub lost: Lost,
    /// A recovery could not get past what is missing: the next catalog must stand alone.
    pub base_due: bool,
    pub failures: u64,
}

impl Inventory {
    /// Compares the arcs that the index knows with the files.
    ///
    /// # Errors
    /// Those of the index. What is wrong with arcs is told to the monitor.
    pub fn take(dir: &BackupDir, index: &Index, monitor: &dyn Monitor) -> Result<Inventory> {
        let mut found = Inventory::default();
        let since_base = index.since_base()?;
        let accepted = Accepted::of(index)?;
        for row in index.arcs()? {
            let Err(error) = check(dir, &row.entry) else { continue };
            // What only can't be looked at counts as there.
            if error.is_damage() {
                found.lost.arcs.insert(row.entry.serial);
                let needed = since_base.first().is_none_or(|base| row.run >= *base);
                found.base_due |= row.entry.role == ArcRole::Catalog && needed;
            }
            if !accepted.covers(&error, None, index) {
                found.tell(&error, monitor);
            }
        }
        // Runs without a version too: the next commit names them.
        let base = since_base.first().copied().unwrap_or(Version(0));
        for run in index.known_runs()?.range(base..) {
            if let Err(error) = arcs::check_commit(dir.arcs(), *run, dir.keys()) {
                found.base_due |= error.is_damage();
                if !accepted.covers(&error, None, index) {
                    found.tell(&error, monitor);
                }
            }
        }
        found.lost.frames = damaged(dir, index).unwrap_or_default();
        if found.failures > MAX_TOLD {
            let what = format!("{} more arcs are missing or cut short", found.failures - MAX_TOLD);
            monitor.event(Event::Warning { path: b"", what });
        }
        Ok(found)
    }

    fn tell(&mut self, error: &Error, monitor: &dyn Monitor) {
        self.failures += 1;
        if self.failures <= MAX_TOLD {
            monitor.event(Event::Failure { path: b"", error });
        }
    }
}

/// Frames of file data that are known to be damaged. An arc that was written to since may have been mended.
fn damaged(dir: &BackupDir, index: &Index) -> Result<HashSet<FramePlace>> {
    let (ledger, _) = Ledger::load(dir.own(), dir.keys(), &dir.commits(index)?)?;
    let mut frames = HashSet::new();
    for damage in ledger.open_damage().iter().filter(|damage| damage.copy == CopyId::LOCAL) {
        let (Some(first), Ok(row)) = (damage.frame, index.arc(damage.arc)) else { continue };
        let found = dir.own().stat(row.entry.name.to_string()).ok().flatten();
        let is_as_it_was = found.is_some_and(|found| damage.is_of(&found));
        if row.entry.role == ArcRole::Data && is_as_it_was {
            let all = first.0..first.0.saturating_add(damage.count).min(row.entry.frames);
            frames.extend(all.map(|no| FramePlace::new(damage.arc, FrameNo(no))));
        }
    }
    Ok(frames)
}

fn check(dir: &BackupDir, arc: &ArcEntry) -> Result<()> {
    let found_bytes = dir.arcs().len_bytes(arc.name)?;
    if found_bytes >= arc.arc_bytes {
        return Ok(());
    }
    let damage = Damage::Truncated { wanted_bytes: arc.arc_bytes, found_bytes };
    Err(Error::arc(arc.name, found_bytes, damage))
}
