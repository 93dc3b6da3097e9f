//! Arcs brought home from a destination, each proven by its recorded checksum before it has its name.
//!
//! Invariants: an arc that is here with the right bytes is not fetched; what is fetched stands under another name until it is
//! proven and durable; a commit counts as right when its record is the one that the index has.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::fetched::Fetched;
use super::remote::Remote;
use crate::backupdir::{BackupDir, Lock, arcs};
use crate::depot::{Depot, Local, StoredArc, Via};
use crate::dest::{Checksum, compare};
use crate::error::{Error, Result};
use crate::ids::{ArcDigest, ArcName, Version};
use crate::index::Index;
use crate::monitor::{Event, Monitor, Progress};
use crate::sync::{into_inner, lock};

/// Arcs that are fetched at a time.
const AT_A_TIME: usize = 4;
/// Bytes of an arc that are in memory.
const PIECE_BYTES: usize = 1 << 20;
/// A commit arc that is longer is none.
const MAX_COMMIT_BYTES: u64 = 64 << 20;
/// What an arc is called while it is fetched.
const SUFFIX: &str = ".fetched";

/// What came of it.
#[derive(Debug, Default)]
pub struct Brought {
    pub arcs: u64,
    pub bytes: u64,
    /// Arcs that were here.
    pub were_here: u64,
    /// Those that are not here now.
    pub failed: Vec<(ArcName, Error)>,
}

/// What must be here under a name.
enum Wanted {
    Arc { name: ArcName, digest: ArcDigest, arc_bytes: u64 },
    Commit { run: Version, digest: [u8; 32] },
}

impl Wanted {
    fn name(&self) -> ArcName {
        match self {
            Wanted::Arc { name, .. } => *name,
            Wanted::Commit { run, .. } => arcs::commit_arc(*run),
        }
    }
}

/// Fetches arcs that the index knows and that are not here.
///
/// # Errors
/// Those of the index and of this machine; `INTERRUPTED`. What the destination has not, or has wrong, is in the answer.
pub fn bring_home(
    dir: &BackupDir,
    _: &Lock,
    index: &Index,
    remote: &Remote,
    only: &dyn Fn(ArcName) -> bool,
    monitor: &dyn Monitor,
) -> Result<Brought> {
    let rows = index.arcs()?;
    let arc = |entry: &crate::catalog::ArcEntry| Wanted::Arc {
        name: entry.name,
        digest: entry.digest,
        arc_bytes: entry.arc_bytes,
    };
    let rows: Vec<_> = rows.iter().filter(|row| only(row.entry.name)).collect();
    let mut wanted: Vec<Wanted> = rows.iter().map(|row| arc(&row.entry)).collect();
    let expected_bytes = rows.iter().map(|row| row.entry.arc_bytes).sum();
    let commits = index.commits()?;
    let commits = commits.iter().map(|(run, digest)| Wanted::Commit { run, digest });
    wanted.extend(commits.filter(|commit| only(commit.name())));
    let (expected_files, bytes) = (wanted.len() as u64, AtomicU64::new(0));
    let (queue, done) = (Mutex::new(wanted.iter()), Mutex::new((Brought::default(), None)));
    let home = Home { dir, local: Local::new(dir.own()), remote };
    let work = || {
        loop {
            let next = lock(&queue).next();
            let Some(wanted) = next else { return };
            let come = home.bring(wanted, &|count| {
                bytes.fetch_add(count, Ordering::Relaxed);
                let so_far = lock(&done);
                let files = so_far.0.arcs + so_far.0.were_here;
                drop(so_far);
                let bytes = bytes.load(Ordering::Relaxed);
                monitor.progress(Progress { files, bytes, expected_files, expected_bytes, errors: 0 });
                if monitor.interrupted() { Err(Error::Interrupted) } else { Ok(()) }
            });
            let mut done = lock(&done);
            match come {
                Ok(None) => done.0.were_here += 1,
                Ok(Some(count)) => {
                    done.0.arcs += 1;
                    done.0.bytes += count;
                }
                Err(error @ (Error::Arc { .. } | Error::Dest { .. } | Error::CommitDamaged { .. })) => {
                    monitor.event(Event::Failure { path: b"", error: &error });
                    done.0.failed.push((wanted.name(), error));
                }
                // This machine is what fails: nothing more comes.
                Err(error) => {
                    done.1.get_or_insert(error);
                    return;
                }
            }
        }
    };
    std::thread::scope(|scope| (0..AT_A_TIME).for_each(|_| drop(scope.spawn(work))));
    dir.own().sync()?;
    match into_inner(done) {
        (_, Some(error)) => Err(error),
        (mut brought, None) => {
            brought.failed.sort_by_key(|(name, _)| *name);
            Ok(brought)
        }
    }
}

struct Home<'a> {
    dir: &'a BackupDir,
    local: Local,
    remote: &'a Remote,
}

impl Home<'_> {
    /// Bytes of an arc that was fetched; None if it was here.
    fn bring(&self, wanted: &Wanted, advance: &dyn Fn(u64) -> Result<()>) -> Result<Option<u64>> {
        match *wanted {
            Wanted::Arc { name, digest, arc_bytes } => {
                let here = self.local.open(name).ok().filter(|arc| arc.len_bytes() == arc_bytes);
                if let Some(arc) = here
                    && copied(arc.as_ref(), advance, |_| Ok(()))? == digest.0
                {
                    return Ok(None);
                }
                let there = self.remote.open(name)?;
                self.store(name, |out| {
                    let found = Checksum::sha256(&copied(there.as_ref(), advance, out)?);
                    compare(self.remote.name(), &name.to_string(), &Checksum::sha256(&digest.0), &found)
                })?;
                Ok(Some(arc_bytes))
            }
            Wanted::Commit { run, digest } => {
                let is_right = |depot: &dyn Depot| {
                    let found = arcs::read_commit(depot, run, self.dir.keys());
                    found.map(|(_, found)| found == digest)
                };
                if matches!(is_right(&self.local), Ok(true)) {
                    return Ok(None);
                }
                let name = arcs::commit_arc(run);
                let there = self.remote.open(name)?;
                let len = there.len_bytes();
                if len > MAX_COMMIT_BYTES {
                    return Err(Error::CommitDamaged { run, what: format!("it has {len} bytes") });
                }
                let bytes = there.exactly(0, len as usize)?;
                if !is_right(&Fetched { name, bytes: bytes.clone() })? {
                    let what = format!("at {} is another one than the index knows", self.remote.name());
                    return Err(Error::CommitDamaged { run, what });
                }
                advance(0)?;
                self.store(name, |out| out(&bytes))?;
                Ok(Some(len))
            }
        }
    }

    /// Writes an arc under another name, and gives it its own when all of it is right and durable.
    fn store(&self, name: ArcName, fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>) -> Result<()> {
        let (own, temporary) = (self.dir.own(), format!("{name}{SUFFIX}"));
        own.remove_if_there(&temporary)?;
        let mut file = own.create(&temporary, 0o400)?;
        let path = own.path_of(&temporary);
        let filled = fill(&mut |bytes| file.write_all(bytes).map_err(|e| Error::io("write", &path, &e)))
            .and_then(|()| file.sync_all().map_err(|e| Error::io("fsync", &path, &e)));
        if let Err(error) = filled {
            let _ = own.remove_if_there(&temporary);
            return Err(error);
        }
        own.rename(&temporary, name.to_string())
    }
}

/// Reads an arc from its start to its end, hands it on, and gives its SHA-256.
fn copied(
    arc: &dyn StoredArc,
    advance: &dyn Fn(u64) -> Result<()>,
    mut out: impl FnMut(&[u8]) -> Result<()>,
) -> Result<[u8; 32]> {
    let (mut digest, mut at, mut buffer) = (Sha256::new(), 0, vec![0; PIECE_BYTES]);
    loop {
        let count = arc.read(at, &mut buffer, Via::Cache)?;
        let piece = buffer.get(..count).unwrap_or_default();
        if piece.is_empty() {
            return Ok(digest.finalize().into());
        }
        digest.update(piece);
        out(piece)?;
        arc.release(at, count as u64);
        at += count as u64;
        advance(count as u64)?;
    }
}
