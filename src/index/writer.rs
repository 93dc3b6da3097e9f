//! The one connection that writes.
//!
//! Invariants: it exists only under the backup dir's lock; each commit is one transaction; a run's number is
//! reserved (and synced) before any of its arcs is written.

use std::collections::BTreeSet;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::State;
use super::apply::{ApplyReport, CatalogSource, apply_commit};
use super::fail::{Fail, Found, open_error};
use super::removal::{Name, roots_without};
use super::rows;
use super::runs::{self, OpenRun, Told};
use super::schema::{self, Access};
use super::view::{check_format, check_shared, real_path, refuse_network, target_path};
use crate::catalog::{Commit, Loss};
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, Dirno, Logid, TreeDigest, Version};

/// Numbers passed over for runs whose commit record is lost: more than they can have used.
const LOST_LOGIDS: u64 = 1 << 40;
const LOST_DIRNOS: u64 = 1 << 28;
/// How long a checkpoint waits for readers.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(1);

/// Exclusive writer of the index.
pub struct IndexWriter {
    path: PathBuf,
    connection: Connection,
}

impl IndexWriter {
    /// Opens an existing index for writing; the caller holds the backup dir's lock.
    ///
    /// # Errors
    /// As `Index::open`, but the directory must be writable, and no version may be missing.
    pub fn open(path: &Path, key: &[u8; 48]) -> Result<IndexWriter> {
        let path = real_path(path)?;
        refuse_network(&path)?;
        let connection =
            schema::connect(&path, key, Access::Write).map_err(|error| open_error(Fail::Sql(error), &path, key))?;
        check_format(&connection, &path)?;
        let state = rows::state(&connection);
        state.and_then(|state| rows::check_versions(&connection, &state)).map_err(|fail| fail.at(&path))?;
        Ok(IndexWriter { path, connection })
    }

    pub fn state(&self) -> Result<State> {
        rows::state(&self.connection).map_err(|fail| fail.at(&self.path))
    }

    /// Burns a run's number: no later run gets it, whatever becomes of this one, and what it leaves is known by its id.
    pub fn reserve_run(&mut self, run: OpenRun) -> Result<()> {
        self.transaction(|c| {
            pass_over(c, run.version)?;
            runs::put_open_run(c, run)
        })
    }

    /// No later run gets this number.
    pub fn pass_over(&mut self, v: Version) -> Result<()> {
        self.transaction(|c| pass_over(c, v))
    }

    /// Ends a recovery: what it could not apply stays behind, and the next run goes on without it.
    ///
    /// Numbers that the `lost_arcs` of lost runs may have used are passed over, and the next catalog is a base: should
    /// a lost commit record come back one day, nothing in it contradicts what was saved since.
    /// Nor is a number given again that the index before gave, if its counters are known.
    pub fn leave_behind(&mut self, lost_arcs: u64, before: Option<&State>) -> Result<()> {
        self.transaction(|c| {
            let mut state = rows::state(c)?;
            if let Some(before) = before {
                state.next_run = state.next_run.max(before.next_run);
                state.next_serial = state.next_serial.max(before.next_serial);
                state.next_logid = state.next_logid.max(before.next_logid);
                state.next_dirno = state.next_dirno.max(before.next_dirno);
            }
            state.settled_below = state.next_run;
            if lost_arcs > 0 {
                // Where none are left the next run can't give any, and says so.
                state.next_serial = state.next_serial.saturating_add(lost_arcs).min(ArcSerial::MAX.0 + 1);
                state.next_logid = state.next_logid.saturating_add(LOST_LOGIDS).min(Logid::MAX.0 + 1);
                state.next_dirno = state.next_dirno.saturating_add(LOST_DIRNOS).min(Dirno::MAX.0 + 1);
                state.catalog_bytes_since_base = u64::MAX / 2;
            }
            rows::put_state(c, &state)
        })
    }

    /// The roots that versions have once these names are gone from all of them, of those that have another one then;
    /// nothing is changed.
    pub fn roots_without(&mut self, names: &BTreeSet<Name>) -> Result<Vec<(Version, TreeDigest)>> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let roots = transaction.map_err(Fail::from).and_then(|tried| roots_without(&tried, names));
        roots.map_err(|fail| fail.at(&self.path))
    }

    /// Notes losses that the user has accepted; the next commit tells them too.
    pub fn accept(&mut self, losses: &[Loss]) -> Result<()> {
        self.transaction(|c| losses.iter().try_for_each(|loss| runs::put_loss(c, loss, Told::Here)))
    }

    /// Makes a commit part of the index, in one transaction.
    ///
    /// The commit must follow the last one applied (by digest), or be a base, which stands alone. `digest` is the
    /// SHA-256 of its record. Damaged catalog frames and frame tables are noted in the report and in the index.
    ///
    /// # Errors
    /// `COMMIT_DAMAGED` if the commit does not follow; errors of `source` that are no damage; `INDEX_*`.
    /// Nothing is changed then.
    pub fn apply(&mut self, commit: &Commit, digest: [u8; 32], source: &mut dyn CatalogSource) -> Result<ApplyReport> {
        self.transaction(|c| apply_commit(c, commit, digest, source))
    }

    /// The next catalog will be a base, which tells everything anew.
    pub fn make_base_due(&mut self) -> Result<()> {
        self.transaction(|c| {
            let mut state = rows::state(c)?;
            state.catalog_bytes_since_base = u64::MAX / 2;
            rows::put_state(c, &state)
        })
    }

    /// For an index that is thrown away soon: nothing is made durable.
    pub fn without_sync(self) -> Result<IndexWriter> {
        self.connection.execute_batch("PRAGMA synchronous=OFF").map_err(|error| Fail::Sql(error).at(&self.path))?;
        Ok(self)
    }

    /// Gives back the memory of the page cache.
    pub fn release_memory(&self) -> Result<()> {
        self.connection.execute_batch("PRAGMA shrink_memory").map_err(|error| Fail::Sql(error).at(&self.path))
    }

    /// Moves the WAL into the file and empties it, unless a reader is in the way (then the next one does).
    pub fn checkpoint(&mut self) -> Result<()> {
        // Readers' transactions are short, but for a selftest's: nobody waits for that.
        let checkpointed = self.connection.busy_timeout(CHECKPOINT_WAIT).and_then(|()| {
            let done = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            self.connection.busy_timeout(schema::BUSY_WAIT).and(done)
        });
        check_shared(&self.path)?;
        checkpointed.map_err(|error| Fail::Sql(error).at(&self.path))
    }

    fn transaction<T>(&mut self, work: impl FnOnce(&Connection) -> Result<T, Fail>) -> Result<T> {
        let done = (|| {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = work(&transaction)?;
            check_shared(&self.path)?;
            transaction.commit()?;
            check_shared(&self.path)?;
            Ok(result)
        })();
        done.map_err(|fail: Fail| fail.at(&self.path))
    }
}

fn pass_over(c: &Connection, v: Version) -> Found<()> {
    let mut state = rows::state(c)?;
    state.next_run = state.next_run.max(Version(v.0.saturating_add(1)));
    rows::put_state(c, &state)
}

/// Makes an empty index where `path` leads to. The caller syncs the directory.
pub(super) fn create(path: &Path, key: &[u8; 48]) -> Result<()> {
    let path = &target_path(path)?;
    refuse_network(path)?;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::io("create", path, &e))?;
    let made = (|| -> Result<(), Fail> {
        let connection = schema::connect(path, key, Access::Write)?;
        connection.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        connection.execute_batch(schema::TABLES)?;
        rows::put_state(
            &connection,
            &State {
                next_serial: 0,
                next_logid: Logid::FIRST.0,
                next_dirno: 1,
                next_run: Version(0),
                settled_below: Version(0),
                last_commit: None,
                catalog_bytes_since_base: 0,
                base_catalog_bytes: 0,
                hashes: 0,
                newest: None,
                versions: crate::crypto::sha256(&[]),
            },
        )?;
        connection.execute_batch(&format!(
            "PRAGMA application_id={}; PRAGMA user_version={}; COMMIT",
            schema::APPLICATION_ID,
            schema::FORMAT
        ))?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    })();
    made.map_err(|fail| fail.at(path))
}
