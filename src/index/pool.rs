//! A small pool of read connections, and the rule for errors: discard, reopen, ask once more.
//!
//! Invariants: at most `MAX_READERS` connections exist (their page caches bound the memory); a connection that
//! returned an error, or a row that does not match its seal, is never used again: SQLCipher serves zeroed pages
//! after the first page that it refused.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, ErrorCode, OptionalExtension};
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::row::BadRow;
use super::rows;
use super::schema::{self, Access, MAX_READERS};
use super::writer;
use crate::error::{Error, Result};

/// Why a question to one connection had no answer.
#[derive(Debug)]
pub(super) enum Fail {
    Sql(rusqlite::Error),
    Row(&'static str),
    /// An answer of its own: asking again would give the same.
    Known(Error),
}

impl From<rusqlite::Error> for Fail {
    fn from(error: rusqlite::Error) -> Fail {
        Fail::Sql(error)
    }
}

impl From<BadRow> for Fail {
    fn from(bad: BadRow) -> Fail {
        Fail::Row(bad.0)
    }
}

impl From<crate::catalog::codec::BadRecord> for Fail {
    fn from(bad: crate::catalog::codec::BadRecord) -> Fail {
        Fail::Row(bad.0)
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Fail {
        Fail::Known(error)
    }
}

impl Fail {
    /// The error as the rest of the library knows it.
    pub(super) fn at(self, path: &Path) -> Error {
        let path = path.to_path_buf();
        match self {
            Fail::Known(error) => error,
            Fail::Row(what) => Error::IndexRow { path, what: what.into() },
            Fail::Sql(error) => match error.sqlite_error_code() {
                Some(
                    ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::DiskFull
                    | ErrorCode::CannotOpen
                    | ErrorCode::PermissionDenied
                    | ErrorCode::ReadOnly
                    | ErrorCode::OperationInterrupted,
                ) => Error::IndexIo { path, what: error.to_string() },
                Some(_) => Error::IndexDamaged { path, what: error.to_string() },
                None => Error::IndexRow { path, what: error.to_string() },
            },
        }
    }
}

/// The index, open for reading by any number of threads.
///
/// Open it after the process has forked, not before: SQLite's locks do not survive a fork.
pub struct Index {
    path: PathBuf,
    key: Zeroizing<[u8; 48]>,
    access: Access,
    /// Private copy of index and WAL, where the backup dir can't be written and has a WAL.
    copy: Option<TempDir>,
    pool: Mutex<Pool>,
    returned: Condvar,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    live: usize,
    /// Threads that wait for one: waking nobody costs a system call too.
    waiting: usize,
}

impl Index {
    /// Makes an empty index with mode 0600. The caller syncs the directory.
    ///
    /// # Errors
    /// `IO` if the file exists, `UNSUPPORTED` on a network file system.
    pub fn create(path: &Path, key: &[u8; 48]) -> Result<()> {
        writer::create(path, key)
    }

    /// Opens an existing index.
    ///
    /// Where the directory can't be written, it is read as it is if it has no WAL, and from a private copy otherwise.
    ///
    /// # Errors
    /// `KEY_WRONG`, `INDEX_DAMAGED` (also when it is missing), `INDEX_TOO_NEW`, `INDEX_IO`, `UNSUPPORTED`.
    pub fn open(path: &Path, key: &[u8; 48]) -> Result<Index> {
        let path = &real_path(path)?;
        refuse_network(path)?;
        let mut index = Index::over(path, key, Access::Read);
        let first = match index.connect() {
            Err(Fail::Sql(error)) if needs_writable(&error) => {
                index.read_where_nothing_can_be_written()?;
                index.connect()
            }
            other => other,
        };
        let connection = first.map_err(|fail| open_error(fail, path, key))?;
        check_format(&connection, path)?;
        let mut pool = index.lock();
        pool.live += 1;
        pool.idle.push(connection);
        drop(pool);
        Ok(index)
    }

    fn over(path: &Path, key: &[u8; 48], access: Access) -> Index {
        Index {
            path: path.to_path_buf(),
            key: Zeroizing::new(*key),
            access,
            copy: None,
            pool: Mutex::new(Pool::default()),
            returned: Condvar::new(),
        }
    }

    /// An index whose file nobody else uses, opened at the first question.
    #[cfg(test)]
    pub(super) fn open_alone(path: &Path, key: &[u8; 48]) -> Index {
        Index::over(path, key, Access::ReadImmutable)
    }

    /// As `open` where the directory can't be written (which root never meets but on a read-only file system).
    #[cfg(test)]
    pub(super) fn open_unwritable(path: &Path, key: &[u8; 48]) -> Result<Index> {
        let mut index = Index::over(path, key, Access::Read);
        index.read_where_nothing_can_be_written()?;
        Ok(index)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read_where_nothing_can_be_written(&mut self) -> Result<()> {
        let wal = wal_path(&self.path);
        match std::fs::metadata(&wal) {
            Ok(meta) if meta.len() > 0 => {
                self.copy = Some(copy_with_wal(&self.path, &wal)?);
            }
            _ => self.access = Access::ReadImmutable,
        }
        Ok(())
    }

    pub(super) fn connect(&self) -> Result<Connection, Fail> {
        let path = match &self.copy {
            Some(dir) => dir.path().join("index.db"),
            None => self.path.clone(),
        };
        Ok(schema::connect(&path, &self.key, self.access)?)
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks a question; on damage once more on a fresh connection.
    pub(super) fn ask<T>(&self, question: impl Fn(&Connection) -> Result<T, Fail>) -> Result<T> {
        self.ask_raw(question).map_err(|fail| fail.at(&self.path))
    }

    fn ask_raw<T>(&self, question: impl Fn(&Connection) -> Result<T, Fail>) -> Result<T, Fail> {
        let mut lease = self.lease()?;
        match lease.put_to(&question) {
            Err(Fail::Sql(_) | Fail::Row(_)) => {
                lease.connection = None;
                lease.connection = Some(self.connect()?);
                let second = lease.put_to(&question);
                if matches!(second, Err(Fail::Sql(_) | Fail::Row(_))) {
                    lease.connection = None;
                }
                second
            }
            other => other,
        }
    }

    /// A connection of one's own; waits while all are in use.
    fn lease(&self) -> Result<Lease<'_>, Fail> {
        let mut pool = self.lock();
        loop {
            if let Some(connection) = pool.idle.pop() {
                return Ok(Lease { index: self, connection: Some(connection) });
            }
            if pool.live < MAX_READERS {
                pool.live += 1;
                break;
            }
            pool.waiting += 1;
            pool = self.returned.wait(pool).unwrap_or_else(PoisonError::into_inner);
            pool.waiting -= 1;
        }
        drop(pool);
        let mut lease = Lease { index: self, connection: None };
        lease.connection = Some(self.connect()?);
        Ok(lease)
    }
}

impl Drop for Index {
    /// The last connection leaves no empty WAL behind. One with content stays for the next writer.
    fn drop(&mut self) {
        let no_wal = std::fs::metadata(wal_path(&self.path)).is_ok_and(|meta| meta.len() == 0);
        let pool = self.pool.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (true, Access::Read, Some(last)) = (no_wal, self.access, pool.idle.first()) {
            let _ = last.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
            pool.idle.truncate(1);
        }
        pool.idle.clear();
    }
}

/// A connection out of the pool; goes back unless it was thrown away.
struct Lease<'a> {
    index: &'a Index,
    connection: Option<Connection>,
}

impl Lease<'_> {
    fn put_to<T>(&self, question: &impl Fn(&Connection) -> Result<T, Fail>) -> Result<T, Fail> {
        match &self.connection {
            Some(connection) => question(connection),
            None => Err(Fail::Row("no connection")),
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut pool = self.index.lock();
        match self.connection.take() {
            Some(connection) => pool.idle.push(connection),
            None => pool.live -= 1,
        }
        let awaited = pool.waiting > 0;
        drop(pool);
        if awaited {
            self.index.returned.notify_one();
        }
    }
}

fn needs_writable(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied))
}

pub(super) fn wal_path(path: &Path) -> PathBuf {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    wal.into()
}

/// The file behind `path`, symlinks followed (SQLite keeps the WAL beside that one).
pub(super) fn real_path(path: &Path) -> Result<PathBuf> {
    let meta = std::fs::canonicalize(path).and_then(|real| Ok((std::fs::metadata(&real)?, real)));
    match meta {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::IndexDamaged { path: path.to_path_buf(), what: "the file is missing".into() })
        }
        Err(e) => Err(Error::io("open", path, &e)),
        Ok((meta, _)) if meta.len() == 0 => {
            Err(Error::IndexDamaged { path: path.to_path_buf(), what: "the file is empty".into() })
        }
        Ok((_, real)) => Ok(real),
    }
}

/// SQLite's WAL needs memory that all users share, which machines do not.
pub(super) fn refuse_network(path: &Path) -> Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if crate::os::mounts::fs_is_network(dir).map_err(|e| Error::io("statfs", dir, &e))? {
        return Err(Error::Unsupported {
            path: path.to_path_buf(),
            what: "the index can't be used on a network file system; \
                   keep the backup dir on a local disk, or replace index.db by a symlink to one"
                .into(),
        });
    }
    Ok(())
}

/// Tells a wrong key from a damaged first page: the file starts with the salt that the key material came with.
pub(super) fn open_error(fail: Fail, path: &Path, key: &[u8; 48]) -> Error {
    let not_a_database =
        matches!(&fail, Fail::Sql(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase));
    if not_a_database {
        use std::io::Read;
        let mut found = [0u8; 16];
        let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut found));
        let (_, salt) = key.split_at(32);
        let equal = found.iter().zip(salt).filter(|(a, b)| a == b).count();
        if read.is_ok() && equal < 8 {
            return Error::KeyWrong { path: path.to_path_buf() };
        }
    }
    match fail.at(path) {
        Error::IndexDamaged { path, .. } if not_a_database => {
            Error::IndexDamaged { path, what: "its first page is damaged".into() }
        }
        other => other,
    }
}

pub(super) fn check_format(connection: &Connection, path: &Path) -> Result<()> {
    let damaged = |what: &str| Error::IndexDamaged { path: path.to_path_buf(), what: what.into() };
    let pragma = |name: &str| -> Result<u32> {
        let value: Option<i64> = connection
            .query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
            .optional()
            .map_err(|error| Fail::from(error).at(path))?;
        value.and_then(|value| u32::try_from(value).ok()).ok_or_else(|| damaged("it has no format number"))
    };
    if pragma("application_id")? != schema::APPLICATION_ID {
        return Err(damaged("it is no index of this program"));
    }
    let found = pragma("user_version")?;
    if found > schema::FORMAT {
        return Err(Error::IndexTooNew { path: path.to_path_buf(), found, known: schema::FORMAT });
    }
    if found < schema::FORMAT {
        return Err(damaged("it was never finished"));
    }
    rows::state(connection).map(|_| ()).map_err(|fail| fail.at(path))
}

/// Index and WAL as they were at one moment, encrypted as they are, in a private directory.
fn copy_with_wal(path: &Path, wal: &Path) -> Result<TempDir> {
    let look = || -> std::io::Result<_> {
        let (a, b) = (std::fs::metadata(path)?, std::fs::metadata(wal)?);
        Ok((a.len(), a.modified()?, b.len(), b.modified()?))
    };
    let io = |e: std::io::Error| Error::io("copy", path, &e);
    for _ in 0..5 {
        let dir = tempfile::Builder::new().prefix("assay-index-").tempdir().map_err(io)?;
        let before = look().map_err(io)?;
        for (from, name) in [(path, "index.db"), (wal, "index.db-wal")] {
            let mut source = std::fs::File::open(from).map_err(io)?;
            let mut target = std::fs::File::create(dir.path().join(name)).map_err(io)?;
            std::io::copy(&mut source, &mut target).map_err(io)?;
        }
        if look().map_err(io)? == before {
            return Ok(dir);
        }
    }
    Err(Error::IndexIo {
        path: path.to_path_buf(),
        what: "it changes all the time, and its directory can't be written".into(),
    })
}
