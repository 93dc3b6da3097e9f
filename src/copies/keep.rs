//! What of the file data is kept in the backup dir, once destinations have it: as much as `cache-size-limit` says.
//!
//! Invariants: a file goes only when every destination has the arc by its note, proven, and says so now when it is asked by
//! name, with its length; what goes was noted as away before (`away`); the newest stay longest.

use std::collections::BTreeSet;

use super::away::{self, Away};
use super::notes::State;
use super::remote::Remote;
use super::{Around, bring_home};
use crate::backupdir::{BackupDir, Lock};
use crate::catalog::ArcEntry;
use crate::depot::{Depot, Local};
use crate::error::Result;
use crate::ids::ArcName;
use crate::index::Index;

/// How it stands with what is kept here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Arcs of file data that are here.
    pub arcs: u64,
    pub bytes: u64,
    /// Those that destinations have for it.
    pub away: u64,
    pub away_bytes: u64,
    /// Of these, what went now.
    pub gone: u64,
}

/// Removes what destinations have and what is more than `limit_bytes`, the oldest first.
///
/// # Errors
/// Those of the index, and of this machine. A destination that can't be asked keeps everything here.
pub fn keep_within(around: &Around, _: &Lock, limit_bytes: u64) -> Result<Kept> {
    let (index, local) = (around.dir.open_index()?, around.here());
    let known = away::read(&around.dir)?;
    let (mut here, mut far) = (Vec::new(), Away::new());
    for entry in index.data_arcs()? {
        match local.len_bytes(entry.name) {
            Ok(len_bytes) if len_bytes == entry.arc_bytes => here.push(entry),
            // What is wrong with it is for others to tell.
            Ok(_) => {}
            Err(_) => far.extend(known.get_key_value(&entry.name).map(|(name, len_bytes)| (*name, *len_bytes))),
        }
    }
    here.sort_by_key(|entry| entry.serial);
    let mut here_bytes: u64 = here.iter().map(|entry| entry.arc_bytes).sum();
    let mut surplus = Vec::new();
    for entry in &here {
        if here_bytes <= limit_bytes {
            break;
        }
        here_bytes -= entry.arc_bytes;
        surplus.push(entry);
    }
    let gone = stored_everywhere(around, &surplus).unwrap_or_default();
    far.extend(here.iter().filter(|entry| gone.contains(&entry.name)).map(|entry| (entry.name, entry.arc_bytes)));
    if far != known {
        away::write(&around.dir, &far)?;
    }
    gone.iter().try_for_each(|name| around.dir.own().remove_if_there(name.to_string()))?;
    if !gone.is_empty() {
        around.dir.own().sync()?;
    }
    let stays: Vec<&ArcEntry> = here.iter().filter(|entry| !gone.contains(&entry.name)).collect();
    Ok(Kept {
        arcs: stays.len() as u64,
        bytes: stays.iter().map(|entry| entry.arc_bytes).sum(),
        away: far.len() as u64,
        away_bytes: far.values().sum(),
        gone: gone.len() as u64,
    })
}

/// Fetches what is away and is to be here again, each arc proven by its recorded checksum.
///
/// # Errors
/// Those of the index, and of this machine. What can't be fetched stays away.
pub fn bring_back(around: &Around, lock: &Lock) -> Result<Kept> {
    let local = around.here();
    let away = away::read(&around.dir)?;
    let is_away = |name: ArcName| away.contains_key(&name) && local.len_bytes(name).is_err();
    let (places, _) = around.places()?;
    for settings in &places {
        if !away.keys().any(|name| is_away(*name)) {
            break;
        }
        // Why it can't be reached was told when it was sent to.
        let Ok(remote) = Remote::open(&around.impatient(), settings) else { continue };
        bring_home(&around.dir, lock, &around.dir.open_index()?, &remote, &is_away, around.monitor.as_ref())?;
    }
    keep_within(around, lock, u64::MAX)
}

/// Notes file data that is not here and that a destination has, in its length, as kept there; how much that is.
///
/// # Errors
/// Those of the index, of this machine, and of the listing.
pub fn leave_away(dir: &BackupDir, _: &Lock, index: &Index, remote: &Remote) -> Result<u64> {
    let local = Local::new(dir.own());
    remote.list()?;
    let is_there = |entry: &ArcEntry| remote.len_bytes(entry.name).is_ok_and(|len| len == entry.arc_bytes);
    let gone = index.data_arcs()?.filter(|entry| local.len_bytes(entry.name).is_err() && is_there(entry));
    let mut away = away::read(dir)?;
    let before = away.clone();
    away.extend(gone.map(|entry| (entry.name, entry.arc_bytes)));
    if away != before {
        away::write(dir, &away)?;
    }
    Ok(away.keys().filter(|name| local.len_bytes(**name).is_err()).count() as u64)
}

/// Those that every destination has.
fn stored_everywhere(around: &Around, arcs: &[&ArcEntry]) -> Result<BTreeSet<ArcName>> {
    let (places, _) = around.places()?;
    if places.is_empty() {
        return Ok(BTreeSet::new());
    }
    let noted: Vec<_> = places.iter().map(|settings| around.noted(&settings.name)).collect();
    let is_proven = |entry: &&ArcEntry| {
        let mut notes = noted.iter().map(|noted| noted.get(&entry.name));
        notes.all(|note| note.is_some_and(|note| note.state == State::Proven && note.id == entry.id))
    };
    // Where one lacks it the others need not be asked.
    let mut stored: Vec<&ArcEntry> = arcs.iter().copied().filter(is_proven).collect();
    for settings in &places {
        if stored.is_empty() {
            break;
        }
        let remote = Remote::open(&around.impatient(), settings)?;
        let asked = std::mem::take(&mut stored);
        for entry in asked {
            match remote.len_bytes(entry.name) {
                Ok(len_bytes) if len_bytes == entry.arc_bytes => stored.push(entry),
                // It does not answer: the lock is not held for as many waits as there are arcs.
                Err(error) if !error.is_damage() => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
    }
    Ok(stored.into_iter().map(|entry| entry.name).collect())
}
