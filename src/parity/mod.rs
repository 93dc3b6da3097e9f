//! Parity of arcs in the backup dir: sidecars `arc.V.N.par`, made, looked after, and read from as one more copy of each arc.
//!
//! Invariants: a sidecar is made only of an arc whose SHA-256 is the recorded one (of a commit: that was proven), appears whole
//! by one rename, and is never written to again; it goes when its arc went; nobody needs it to read an arc that is right, and
//! nothing is believed because of it.

mod depot;
#[cfg(test)]
mod tests;

pub use depot::Parity;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::arc::parity::{ParityHeader, Percent, encode};
use crate::backupdir::{BackupDir, Lock, arcs};
use crate::catalog::{ArcEntry, Loss};
use crate::depot::{Depot, Local, StoredArc, Via};
use crate::error::{Damage, Error, Result};
use crate::fetch;
use crate::ids::{ArcName, ArcSerial, Version};
use crate::index::Index;
use crate::monitor::Monitor;
use crate::own::OwnDir;

const SUFFIX: &str = ".par";
/// How long one run makes sidecars, which keeps others from writing; the next one goes on.
const PATIENCE: Duration = Duration::from_secs(300);
/// What a sidecar is called before its rename.
const TMP_SUFFIX: &str = ".par.tmp";

fn file_name(arc: ArcName) -> String {
    format!("{arc}{SUFFIX}")
}

/// Arcs that have a sidecar, sorted.
fn listed(own: &OwnDir) -> Result<BTreeSet<ArcName>> {
    let names = own.names()?;
    let arc = |name: &Vec<u8>| ArcName::parse(std::str::from_utf8(name).ok()?.strip_suffix(SUFFIX)?);
    Ok(names.iter().filter_map(arc).collect())
}

/// Removes the sidecar of an arc that was removed.
///
/// # Errors
/// `IO`.
pub fn remove(own: &OwnDir, arc: ArcName) -> Result<()> {
    own.remove_if_there(file_name(arc))
}

/// What `keep` did.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Arcs that got a sidecar, and its bytes.
    pub made: u64,
    pub bytes: u64,
    /// Arcs that got none, and why.
    pub failed: Vec<Error>,
    /// Arcs that were left for the next time.
    pub left: u64,
}

/// An arc that is to have a sidecar.
enum Wanted {
    Arc(ArcEntry),
    Commit(Version, [u8; 32]),
}

/// Makes the sidecars that are missing, if the settings want any, and removes those whose arcs went.
///
/// # Errors
/// Those of the index and of listing the directory; what is wrong with an arc, or keeps a sidecar from being written, is told.
pub fn keep(dir: &BackupDir, _: &Lock, index: &Index, monitor: &dyn Monitor) -> Result<Kept> {
    let own = dir.own();
    let (sidecars, here) = (listed(own)?, crate::depot::list(own)?.into_iter().collect::<BTreeSet<_>>());
    let (rows, commits) = (index.arcs()?, index.commits()?);
    let commits: Vec<(Version, [u8; 32])> = commits.iter().collect();
    let of_index: BTreeSet<ArcName> =
        rows.iter().map(|row| row.entry.name).chain(commits.iter().map(|(run, _)| arcs::commit_arc(*run))).collect();
    for arc in sidecars.iter().filter(|arc| !of_index.contains(arc) && !here.contains(arc)) {
        remove(own, *arc)?;
    }
    for name in own.names()?.iter().filter(|name| is_cut(name)) {
        own.remove_if_there(OsStr::from_bytes(name))?;
    }
    let mut kept = Kept::default();
    let Some(percent) = dir.config().parity else { return Ok(kept) };
    let lost: Vec<Loss> = index.losses()?.into_iter().map(|(loss, _)| loss).collect();
    let is_lost = |serial: ArcSerial| {
        lost.iter().any(|loss| match loss {
            Loss::Run(_) => false,
            Loss::Arc { serial: of, .. } | Loss::Frame { serial: of, .. } | Loss::Shell(of) => *of == serial,
        })
    };
    let lacks = |name: ArcName| here.contains(&name) && !sidecars.contains(&name);
    let data = rows.into_iter().map(|row| row.entry);
    let data = data.filter(|entry| lacks(entry.name) && !is_lost(entry.serial)).map(Wanted::Arc);
    let commits =
        commits.into_iter().filter(|(run, _)| lacks(arcs::commit_arc(*run)) && !lost.contains(&Loss::Run(*run)));
    let mut wanted = data.chain(commits.map(|(run, digest)| Wanted::Commit(run, digest)));
    let until = Instant::now() + PATIENCE;
    while let Some(next) = wanted.next() {
        if Instant::now() > until {
            kept.left = 1 + wanted.count() as u64;
            break;
        }
        match made(dir, &next, percent, monitor) {
            Ok(bytes) => (kept.made, kept.bytes) = (kept.made + 1, kept.bytes + bytes),
            Err(Error::Interrupted) => {
                kept.left = 1 + wanted.count() as u64;
                break;
            }
            Err(error) => {
                let is_full = error.is_lack_of_space();
                kept.failed.push(error);
                if is_full {
                    kept.left = wanted.count() as u64;
                    break;
                }
            }
        }
    }
    own.sync()?;
    Ok(kept)
}

/// A sidecar that was being made when its run was cut.
fn is_cut(name: &[u8]) -> bool {
    let arc = std::str::from_utf8(name).ok().and_then(|name| name.strip_suffix(TMP_SUFFIX));
    arc.and_then(ArcName::parse).is_some()
}

/// Makes one sidecar; its length.
fn made(dir: &BackupDir, wanted: &Wanted, percent: Percent, monitor: &dyn Monitor) -> Result<u64> {
    let local = Local::new(dir.own());
    let goes_on = || if monitor.interrupted() { Err(Error::Interrupted) } else { Ok(()) };
    goes_on()?;
    let header = |entry: &ArcEntry| {
        let ArcEntry { name: arc, id, arc_bytes, digest, .. } = *entry;
        ParityHeader { arc, id, arc_bytes, digest, percent }
    };
    let header = match wanted {
        Wanted::Arc(entry) => header(entry),
        Wanted::Commit(run, digest) => {
            let proven = fetch::prove(&local, arcs::commit_arc(*run), dir.keys(), |_| !monitor.interrupted())?;
            if arcs::read_commit(&local, *run, dir.keys())?.1 != *digest {
                return Err(Error::CommitDamaged { run: *run, what: "it is not the one that the index knows".into() });
            }
            header(&proven)
        }
    };
    let arc = local.open(header.arc)?;
    let own = dir.own();
    let tmp = format!("{}{TMP_SUFFIX}", header.arc);
    let file = own.create(&tmp, 0o400)?;
    let written = write(arc.as_ref(), &header, &file, own, &tmp, &goes_on);
    match written.and_then(|()| own.rename(&tmp, file_name(header.arc))) {
        Ok(()) => Ok(header.sidecar_bytes()),
        Err(error) => {
            let _ = own.remove_if_there(&tmp);
            Err(error)
        }
    }
}

fn write(
    arc: &dyn StoredArc,
    header: &ParityHeader,
    file: &File,
    own: &OwnDir,
    name: &str,
    goes_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let mut read = |at: u64, buffer: &mut [u8]| {
        goes_on()?;
        let found = arc.read(at, buffer, Via::Cache)?;
        arc.release(at, found as u64);
        if found < buffer.len() {
            let (wanted_bytes, found_bytes) = (header.arc_bytes, at + found as u64);
            return Err(Error::arc(header.arc, 0, Damage::Truncated { wanted_bytes, found_bytes }));
        }
        Ok(())
    };
    let mut put =
        |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).map_err(|e| Error::io("write", own.path_of(name), &e));
    let found = encode(header, &mut read, &mut put)?;
    if found != header.digest {
        return Err(Error::arc(header.arc, 0, Damage::WrongSum(Box::new((header.digest, found)))));
    }
    file.sync_all().map_err(|e| Error::io("fsync", own.path_of(name), &e))
}
