//! Arcs brought home from a destination, each proven by its recorded checksum before it has its name.
//!
//! Invariants: an arc that is here with the right bytes is not fetched; what is fetched stands under another name until it was
//! read back past the page cache and is proven and durable, so what is wrong here keeps its name until then; a commit counts
//! as right when its record is the one that the index has.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::fetched::Fetched;
use super::notes::{Note, State};
use super::plan::What;
use super::remote::Remote;
use super::standing::note_here;
use crate::backupdir::{BackupDir, Lock, MendLock, arcs};
use crate::crypto::sha256;
use crate::depot::{Depot, Local, sha256_of};
use crate::dest::{Checksum, compare};
use crate::error::{Error, Result};
use crate::fetch;
use crate::ids::ArcName;
use crate::index::Index;
use crate::monitor::{Event, Monitor, Progress};
use crate::sync::{into_inner, lock};

/// How long somebody who mends is waited for.
pub const MEND_PATIENCE: Duration = Duration::from_secs(15);
/// Arcs that are fetched at a time.
const AT_A_TIME: usize = 4;
/// A commit arc that is longer is none.
const MAX_COMMIT_BYTES: u64 = 64 << 20;

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
    let rows: Vec<_> = rows.into_iter().filter(|row| only(row.entry.name)).collect();
    let expected_bytes = rows.iter().map(|row| row.entry.arc_bytes).sum();
    let mut wanted: Vec<(ArcName, What)> = rows.into_iter().map(|row| (row.entry.name, What::Arc(row.entry))).collect();
    let commits = index.commits()?;
    let commits = commits.iter().map(|(run, digest)| (arcs::commit_arc(run), What::Commit(digest)));
    wanted.extend(commits.filter(|(name, _)| only(*name)));
    let (expected_files, bytes) = (wanted.len() as u64, AtomicU64::new(0));
    let (queue, done) = (Mutex::new(wanted.iter()), Mutex::new((Brought::default(), None)));
    let home = Home::of(dir, remote);
    let _mends = dir.lock_to_mend(MEND_PATIENCE)?;
    let work = || {
        loop {
            let next = lock(&queue).next();
            let Some((name, what)) = next else { return };
            let come = home.bring(*name, what, &|count| {
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
                    done.0.failed.push((*name, error));
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

/// Fetches one arc from a copy; None: it is here with the right bytes. The caller makes its name durable (`OwnDir::sync`).
///
/// # Errors
/// Damage, of the copy there; what keeps it from being read or written.
pub fn bring_one(
    dir: &BackupDir,
    _: &MendLock,
    (name, what): (ArcName, &What),
    from: &dyn Depot,
    advance: &dyn Fn(u64) -> Result<()>,
) -> Result<Option<u64>> {
    Home::of(dir, from).bring(name, what, advance)
}

/// How much of a commit arc is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    No,
    /// Its record is the one that the index knows.
    Record,
    All,
}

struct Home<'a> {
    dir: &'a BackupDir,
    local: Local,
    from: &'a dyn Depot,
}

impl<'a> Home<'a> {
    fn of(dir: &'a BackupDir, from: &'a dyn Depot) -> Home<'a> {
        Home { dir, local: Local::new(dir.own()), from }
    }

    /// Bytes of an arc that was fetched; None if it was here.
    fn bring(&self, name: ArcName, what: &What, advance: &dyn Fn(u64) -> Result<()>) -> Result<Option<u64>> {
        match what {
            What::Arc(entry) => {
                // What can't be read here is wrong here.
                if let Some(arc) = self.local.open(name).ok().filter(|arc| arc.len_bytes() == entry.arc_bytes)
                    && self.is_right(sha256_of(arc.as_ref(), advance, |_| Ok(())), &entry.digest.0)?
                {
                    return Ok(None);
                }
                let there = self.from.open(name)?;
                self.store(name, &entry.digest.0, &mut |out| {
                    let found = Checksum::sha256(&sha256_of(there.as_ref(), advance, out)?);
                    compare(self.from.name(), &name.to_string(), &Checksum::sha256(&entry.digest.0), &found)
                })?;
                note_here(self.dir, name, Note::now(entry.id, State::Proven));
                Ok(Some(entry.arc_bytes))
            }
            What::Commit(digest) => {
                let here = self.right(&self.local, name, digest).unwrap_or(Right::No);
                if here == Right::All {
                    return Ok(None);
                }
                let there = self.from.open(name)?;
                let len = there.len_bytes();
                if len > MAX_COMMIT_BYTES {
                    let what = format!("it has {len} bytes");
                    return Err(Error::CommitDamaged { run: name.version, what });
                }
                let bytes = there.exactly(0, len as usize)?;
                let found = self.right(&Fetched { name, bytes: bytes.clone() }, name, digest)?;
                if found <= here {
                    return match here {
                        Right::No => {
                            let what = format!("at {} is another one than the index knows", self.from.name());
                            Err(Error::CommitDamaged { run: name.version, what })
                        }
                        _ => Ok(None),
                    };
                }
                advance(0)?;
                self.store(name, &sha256(&bytes), &mut |out| out(&bytes))?;
                Ok(Some(len))
            }
        }
    }

    fn is_right(&self, found: Result<[u8; 32]>, digest: &[u8; 32]) -> Result<bool> {
        match found {
            Ok(found) => Ok(found == *digest),
            Err(error) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn right(&self, depot: &dyn Depot, name: ArcName, digest: &[u8; 32]) -> Result<Right> {
        let keys = self.dir.keys();
        let (_, found) = arcs::read_commit(depot, name.version, keys)?;
        Ok(match found == *digest {
            false => Right::No,
            true if fetch::prove(depot, name, keys, |_| true).is_ok() => Right::All,
            true => Right::Record,
        })
    }

    /// Writes an arc under another name, and gives it its own when all of it is durable and reads back right.
    fn store(&self, name: ArcName, digest: &[u8; 32], fill: Fill<'_>) -> Result<()> {
        let (own, temporary) = (self.dir.own(), format!("{name}{}", arcs::FETCHED_SUFFIX));
        own.remove_if_there(&temporary)?;
        let mut file = own.create(&temporary, 0o400)?;
        let path = own.path_of(&temporary);
        let read_back = || match arcs::reads_back(own, name, &temporary, digest)? {
            true => Ok(()),
            false => {
                let what = "what was written reads back differently".into();
                Err(Error::NotFixed { path: path.clone(), what })
            }
        };
        let stored = fill(&mut |bytes| file.write_all(bytes).map_err(|e| Error::io("write", &path, &e)))
            .and_then(|()| file.sync_all().map_err(|e| Error::io("fsync", &path, &e)))
            .and_then(|()| read_back());
        if let Err(error) = stored {
            let _ = own.remove_if_there(&temporary);
            return Err(error);
        }
        own.rename(&temporary, name.to_string())
    }
}

/// Writes all bytes of an arc, piece by piece.
type Fill<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;
