//! A small pool of read connections, and the rule for errors: discard, reopen, ask once more.
//!
//! Invariants: at most `MAX_READERS` connections are kept (their page caches bound the memory), all idle ones open on
//! one view; no answer mixes two states of the index; a connection that returned an error, or a row that does not match its seal, is never used again: SQLCipher serves zeroed pages
//! after the first page that it refused.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use zeroize::Zeroizing;

use super::fail::{Fail, has_salt};
use super::history::History;
use super::rows::VersionsKnown;
use super::schema::MAX_READERS;
use super::stand_in::StandIn;
use super::view::{self, Files, LOOK_EVERY, View, check_format, check_shared};
use super::writer;
use crate::error::Result;
use crate::sync::{lock, wait};

/// How long a recovery may leave the place of the index empty.
const RENAME: Duration = Duration::from_millis(20);
/// So often an older state is looked at again before it is told, and after how long.
const MAX_DOUBTS: u32 = 3;
const SETTLE: Duration = Duration::from_millis(30);
/// Times that a question is asked again because the index changed meanwhile; the last ones ask a copy.
const MAX_FALLEN: usize = 5;

/// The index, open for reading by any number of threads.
///
/// Open it after the process has forked, not before: SQLite's locks do not survive a fork.
pub struct Index {
    /// As it was named: where it leads is looked at again and again.
    path: PathBuf,
    key: Zeroizing<[u8; 48]>,
    /// False: as where the directory can't be written.
    may_write: bool,
    pool: Mutex<Pool>,
    returned: Condvar,
    pub(super) history: History,
    /// Newest version and digest of all versions, when they were last found to be those that are there.
    pub(super) versions_checked: Mutex<Option<(VersionsKnown, Instant)>>,
    /// Held by the thread that makes a new view; before this moment no copy is made.
    renewal: Mutex<Instant>,
    pub(super) stand_in: Option<StandIn>,
}

struct Pool {
    /// What all idle connections are open on.
    view: Arc<View>,
    idle: Vec<Connection>,
    live: usize,
    /// Threads that wait for one: waking nobody costs a system call too.
    waiting: usize,
    looked: Instant,
}

impl Index {
    /// Where the file of an index is, or would be made: a symlink, also one that leads to nothing, is followed.
    ///
    /// # Errors
    /// `IO` when the directory that it leads to is not there.
    pub fn target(path: &Path) -> Result<PathBuf> {
        view::target_path(path)
    }

    /// True if the file is an index with this key, damaged or not.
    pub fn is_of(path: &Path, key: &[u8; 48]) -> bool {
        has_salt(path, key) == Some(true)
    }

    /// Makes an empty index with mode 0600 where `path` leads to. The caller syncs the directory.
    ///
    /// # Errors
    /// `IO` if the file exists, `UNSUPPORTED` on a network file system.
    pub fn create(path: &Path, key: &[u8; 48]) -> Result<()> {
        writer::create(path, key)
    }

    /// Opens an existing index.
    ///
    /// Where the directory can't be written, it is read as it is if it has no WAL, and from a private copy otherwise.
    /// What `path` leads to is followed: a new file, or a change where nothing can be locked.
    ///
    /// # Errors
    /// `KEY_WRONG`, `INDEX_DAMAGED` (also when it is missing), `INDEX_TOO_NEW`, `INDEX_IO`, `UNSUPPORTED`.
    pub fn open(path: &Path, key: &[u8; 48]) -> Result<Index> {
        Index::open_as(path, key, true)
    }

    fn open_as(path: &Path, key: &[u8; 48], may_write: bool) -> Result<Index> {
        let (view, connection) = View::open(path, key, may_write, true)?;
        check_format(&connection, path)?;
        let index = Index::over(path, key, may_write, view);
        let mut pool = index.lock();
        pool.live += 1;
        pool.idle.push(connection);
        drop(pool);
        Ok(index)
    }

    fn over(path: &Path, key: &[u8; 48], may_write: bool, view: View) -> Index {
        let now = Instant::now();
        Index {
            path: path.to_path_buf(),
            key: Zeroizing::new(*key),
            may_write,
            history: History::default(),
            renewal: Mutex::new(if view.is_copy() { now + LOOK_EVERY } else { now }),
            pool: Mutex::new(Pool { view: Arc::new(view), idle: Vec::new(), live: 0, waiting: 0, looked: now }),
            returned: Condvar::new(),
            versions_checked: Mutex::new(None),
            stand_in: None,
        }
    }

    /// An index that could not be opened: each question tries, and is an error while it can't be.
    pub fn unopened(path: &Path, key: &[u8; 48], may_write: bool) -> Index {
        Index::over(path, key, may_write, View::unopened(path, may_write))
    }

    /// A connection that is not of the pool, with what it is open on.
    pub(super) fn connect(&self) -> Result<(Arc<View>, Connection), Fail> {
        let view = self.lock().view.clone();
        let connection = view.connect(&self.key)?;
        Ok((view, connection))
    }

    /// A connection that is not of the pool sees a state of the same history.
    pub(super) fn look_at_history(&self, view: &View, open: &Connection) -> Result<(), Fail> {
        self.history.verify(view, open, &self.key)
    }

    /// An index whose file nobody else uses, opened at the first question.
    #[cfg(test)]
    pub(super) fn open_alone(path: &Path, key: &[u8; 48]) -> Index {
        Index::over(path, key, false, View::immutable(path))
    }

    /// As `open` where the directory can't be written: nothing is, also where it could be.
    pub fn open_read_only(path: &Path, key: &[u8; 48]) -> Result<Index> {
        Index::open_as(path, key, false)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// `INDEX_IO` when memory that SQLite shares with other processes was lost: no answer is to be had any more.
    pub fn check_shared(&self) -> Result<()> {
        check_shared(&self.path)
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        lock(&self.pool)
    }

    /// Follows `path` to what it leads to now, where connections would not see it by themselves.
    ///
    /// Each question does it once in a while; those about versions do it first.
    pub(super) fn look(&self) -> Result<(), Fail> {
        let mut pool = self.lock();
        pool.looked = Instant::now();
        let view = pool.view.clone();
        drop(pool);
        if view.is_behind(&self.path) { self.renew(&view, true) } else { Ok(()) }
    }

    /// As `look`, for those whose question comes next: that meets the damage too, and knows what to do about it.
    pub(super) fn look_first(&self) -> Result<()> {
        match self.look().map_err(|fail| fail.at(&self.path)) {
            Err(error) if self.stand_in.is_some() && error.is_of_index() => Ok(()),
            looked => looked,
        }
    }

    /// What is there now.
    pub(super) fn files(&self) -> Files {
        let view = self.lock().view.clone();
        view.files_at(&self.path)
    }

    fn look_if_due(&self) -> Result<(), Fail> {
        let pool = self.lock();
        let due = pool.view.may_fall() || pool.looked.elapsed() >= LOOK_EVERY;
        drop(pool);
        if due { self.look() } else { Ok(()) }
    }

    /// Puts a new view in the place of `old`, unless another thread does. While `old` stands nobody waits for it.
    fn renew(&self, old: &Arc<View>, in_place: bool) -> Result<(), Fail> {
        let stands = old.stands();
        let mut not_before = match self.renewal.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::WouldBlock) if stands => return Ok(()),
            Err(_) => lock(&self.renewal),
        };
        let began = Instant::now();
        let too_early = stands && began < *not_before && old.needs_copy();
        if too_early || !Arc::ptr_eq(old, &self.lock().view) {
            return Ok(());
        }
        if !self.path.exists() {
            std::thread::sleep(RENAME);
        }
        match View::open(&self.path, &self.key, self.may_write, in_place) {
            Ok((view, connection)) => {
                let copied = view.is_copy();
                let mut pool = self.lock();
                self.history.doubt();
                pool.view = Arc::new(view);
                let closed = std::mem::take(&mut pool.idle);
                pool.live -= closed.len();
                if pool.live < MAX_READERS {
                    pool.live += 1;
                    pool.idle.push(connection);
                }
                drop(pool);
                self.returned.notify_all();
                if copied {
                    *not_before = began + view::copy_lasts(began.elapsed());
                }
                Ok(())
            }
            // What is open stays right, only old.
            Err(_) if stands => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks a question; on damage once more on a fresh connection, and then of what stands in, if anything does. It is
    /// answered from one state of one index.
    pub(super) fn ask<T>(&self, question: impl Fn(&Connection) -> Result<T, Fail>) -> Result<T> {
        if let Some(other) = self.alone()? {
            return other.ask_own(&question);
        }
        self.ask_own(&question).or_else(|met| self.instead(met, |other| other.ask_own(&question)))
    }

    fn ask_own<T>(&self, question: &impl Fn(&Connection) -> Result<T, Fail>) -> Result<T> {
        check_shared(&self.path)?;
        let answer = self.ask_raw(question).map_err(|fail| fail.at(&self.path));
        check_shared(&self.path)?;
        answer
    }

    fn ask_raw<T>(&self, question: impl Fn(&Connection) -> Result<T, Fail>) -> Result<T, Fail> {
        self.look_if_due()?;
        let mut lease = self.lease();
        let (mut failed, mut doubts) = (false, 0);
        for fallen in 0..MAX_FALLEN {
            let answer = lease.put_to(&question);
            if !lease.view.stands() {
                lease.connection = None;
                self.renew(&lease.view, fallen + 2 < MAX_FALLEN)?;
                lease.view = self.lock().view.clone();
                continue;
            }
            match answer {
                Err(fail @ (Fail::Sql(_) | Fail::Row(_))) => {
                    lease.connection = None;
                    if failed {
                        return Err(fail);
                    }
                    failed = true;
                    match &fail {
                        Fail::Sql(error) if view::needs_writable(error) => self.renew(&lease.view, true)?,
                        _ => self.look()?,
                    }
                    lease.view = self.lock().view.clone();
                }
                // What is no live view may have been made while somebody wrote, and be older than what was seen.
                Err(Fail::Known(_)) if doubts < MAX_DOUBTS && !lease.view.is_live() => {
                    lease.connection = None;
                    doubts += 1;
                    std::thread::sleep(SETTLE);
                    self.renew(&lease.view, true)?;
                    lease.view = self.lock().view.clone();
                }
                other => return other,
            }
        }
        Err(view::restless(&self.path).into())
    }

    /// The right to one connection; waits while all are in use.
    fn lease(&self) -> Lease<'_> {
        let mut pool = self.lock();
        loop {
            if let Some(connection) = pool.idle.pop() {
                return Lease { index: self, view: pool.view.clone(), connection: Some(connection) };
            }
            if pool.live < MAX_READERS {
                pool.live += 1;
                return Lease { index: self, view: pool.view.clone(), connection: None };
            }
            pool.waiting += 1;
            pool = wait(&self.returned, pool);
            pool.waiting -= 1;
        }
    }
}

impl Drop for Index {
    /// The last connection leaves no empty WAL behind. One with content stays for the next writer.
    fn drop(&mut self) {
        let mut pool = lock(&self.pool);
        // SQLite removes a WAL by its name: it must not be that of an index that took this one's place.
        if pool.view.is_live() && pool.view.has_empty_wal() && !pool.view.is_behind(&self.path) {
            if let Some(last) = pool.idle.first() {
                let _ = last.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
            }
            pool.idle.truncate(1);
        }
        pool.idle.clear();
    }
}

/// A connection out of the pool, opened when it is needed; goes back unless it was thrown away.
struct Lease<'a> {
    index: &'a Index,
    /// What the connection is open on.
    view: Arc<View>,
    connection: Option<Connection>,
}

impl Lease<'_> {
    fn put_to<T>(&mut self, question: &impl Fn(&Connection) -> Result<T, Fail>) -> Result<T, Fail> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.view.connect(&self.index.key)?),
        };
        let answer = in_one_transaction(connection, question)?;
        match self.index.history.verify(&self.view, connection, &self.index.key) {
            // What another thread has seen since is newer than what this one still has open.
            Err(Fail::Known(_)) if !Arc::ptr_eq(&self.view, &self.index.lock().view) => {
                Err(Fail::Row("another index is there by now"))
            }
            verified => verified.map(|()| answer),
        }
    }
}

/// Each transaction costs a dozen system calls, and by itself each statement is one.
fn in_one_transaction<T>(c: &Connection, question: &impl Fn(&Connection) -> Result<T, Fail>) -> Result<T, Fail> {
    c.prepare_cached("BEGIN")?.execute([])?;
    let answer = question(c);
    // SQLite has ended it where it met damage.
    let end = || if c.is_autocommit() { Ok(0) } else { c.prepare_cached("COMMIT")?.execute([]) };
    let ended = end();
    let answer = answer?;
    ended?;
    Ok(answer)
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut pool = self.index.lock();
        match self.connection.take() {
            Some(connection) if Arc::ptr_eq(&self.view, &pool.view) => pool.idle.push(connection),
            _ => pool.live -= 1,
        }
        let awaited = pool.waiting > 0;
        drop(pool);
        if awaited {
            self.index.returned.notify_one();
        }
    }
}
