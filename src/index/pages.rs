//! Are the pages of the index authentic, are its B-trees sound: SQLCipher's check and SQLite's.
//!
//! Invariants: each check has a connection of its own that is thrown away after it (after a page that it refused, one
//! serves zeros); pages that were not read twice as bad are told apart from those that were, so that a page that is
//! being written is no false alarm; what SQLite's check says counts only when every page is authentic.

use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::Connection;

use super::Index;
use super::fail::Fail;
use super::view::{real_path, wal_path};
use crate::error::{Error, Result};
use crate::os::file::{forget_cached, read_up_to};
use crate::sync::both;

/// Complaints that are kept.
const MAX_FAULTS: usize = 100_000;
/// Complaints of SQLite's check that are kept.
const MAX_TREE_FAULTS: u32 = 1000;
/// A page that a writer is just writing is whole after this time.
const SETTLE: Duration = Duration::from_millis(50);
const STOP_POLL: Duration = Duration::from_millis(100);

/// Something wrong with pages of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadPage {
    /// Does not authenticate, twice.
    Page { what: String },
    /// Did not authenticate once, and then did.
    Once { what: String },
    /// B-trees, free list or counters do not fit together.
    Tree { what: String },
}

impl Index {
    /// Reads and authenticates every page from the medium, then checks the B-trees.
    ///
    /// `stop` is asked now and then; when it says so, the answer is `INTERRUPTED`.
    ///
    /// # Errors
    /// `INDEX_IO` and `IO` when it can't be read; damage is in the answer.
    pub fn check_pages(&self, stop: &(dyn Fn() -> bool + Sync)) -> Result<Vec<BadPage>> {
        let sql = format!("PRAGMA integrity_check({MAX_TREE_FAULTS})");
        let (first, trees) = both(|| self.unauthentic(stop), || self.complaints(&sql, stop));
        let first = first?;
        let mut bad = Vec::new();
        if !first.is_empty() {
            std::thread::sleep(SETTLE);
            let second = self.unauthentic(stop)?;
            bad.extend(second.values().map(|what| BadPage::Page { what: what.clone() }));
            let once = first.iter().filter(|(page, _)| !second.contains_key(*page));
            bad.extend(once.map(|(_, what)| BadPage::Once { what: what.clone() }));
        }
        if !bad.iter().any(|bad| matches!(bad, BadPage::Page { .. })) {
            // A page that was not authentic once is no fault of the trees.
            let trees = if bad.is_empty() { trees } else { self.complaints(&sql, stop) };
            match trees {
                Ok(lines) => {
                    let lines = lines.into_iter().filter(|line| line != "ok");
                    bad.extend(lines.map(|what| BadPage::Tree { what }));
                }
                Err(Error::IndexDamaged { what, .. } | Error::IndexRow { what, .. }) => {
                    bad.push(BadPage::Tree { what });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(bad)
    }

    /// Reads the write-ahead log to its end; its length in bytes, 0 when there is none.
    ///
    /// What it holds is checked by SQLite itself, which takes it up to the last commit that is whole.
    pub fn read_wal(&self) -> Result<u64> {
        let path = wal_path(&real_path(self.path())?);
        let io = |e: std::io::Error| Error::io("read", &path, &e);
        let file = match std::fs::File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            other => other.map_err(io)?,
        };
        let mut buffer = vec![0; 1 << 20];
        let mut len_bytes = 0u64;
        loop {
            match read_up_to(&file, &mut buffer, len_bytes).map_err(io)? {
                0 => return Ok(len_bytes),
                count => len_bytes += count as u64,
            }
        }
    }

    /// Pages that do not authenticate, by what SQLCipher says of them.
    fn unauthentic(&self, stop: &(dyn Fn() -> bool + Sync)) -> Result<BTreeMap<String, String>> {
        if let Ok(file) = std::fs::File::open(self.path()) {
            forget_cached(&file, 0, 0);
        }
        let lines = match self.complaints("PRAGMA cipher_integrity_check", stop) {
            // It can't even begin: a connection reads the first page before anything else.
            Err(Error::IndexDamaged { what, .. } | Error::IndexRow { what, .. }) => vec![what],
            other => other?,
        };
        Ok(lines.into_iter().map(|line| (page_of(&line), line)).collect())
    }

    /// The lines that a check answers, on a connection of its own.
    fn complaints(&self, sql: &str, stop: &(dyn Fn() -> bool + Sync)) -> Result<Vec<String>> {
        let (_view, connection) = self.connect().map_err(|fail| fail.at(self.path()))?;
        let lines = interruptible(&connection, stop, || {
            let mut statement = connection.prepare(sql)?;
            let mut rows = statement.query([])?;
            let mut lines = Vec::new();
            while let Some(row) = rows.next()? {
                if lines.len() < MAX_FAULTS {
                    lines.push(row.get::<_, String>(0)?);
                }
            }
            Ok(lines)
        });
        match lines {
            _ if stop() => Err(Error::Interrupted),
            lines => lines.map_err(|error| Fail::Sql(error).at(self.path())),
        }
    }
}

/// What a complaint is about, so that two about one page are known as such.
fn page_of(line: &str) -> String {
    match line.rsplit_once("page ").and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next()) {
        Some(number) if !number.is_empty() => format!("{number:0>12}"),
        _ => line.to_string(),
    }
}

/// Runs `work` on the connection and breaks it off when `stop` says so.
fn interruptible<T>(connection: &Connection, stop: &(dyn Fn() -> bool + Sync), work: impl FnOnce() -> T) -> T {
    let handle = connection.get_interrupt_handle();
    let (done, finished) = crossbeam::channel::bounded::<()>(0);
    std::thread::scope(|scope| {
        // Where no thread can be had the work is not broken off.
        let _ = std::thread::Builder::new().spawn_scoped(scope, move || {
            // Ends when the other end of the channel is dropped.
            while let Err(crossbeam::channel::RecvTimeoutError::Timeout) = finished.recv_timeout(STOP_POLL) {
                if stop() {
                    handle.interrupt();
                }
            }
        });
        let result = work();
        drop(done);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::super::model::{Built, Model};
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn every_flipped_page_is_named_and_no_other() {
        let mut model = Model::new(3);
        model.commit(12, true);
        let built = Built::of(&model);
        let index = built.index();
        let go_on = || false;
        assert_eq!(index.check_pages(&go_on).unwrap(), []);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(built.path()).unwrap();
        let pages = file.metadata().unwrap().len() / 4096;
        assert!(pages > 10, "{pages}");
        for page in 1..pages {
            let at = page * 4096 + page * 37 % 4096;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
            let found = index.check_pages(&go_on).unwrap();
            let [BadPage::Page { what }] = &found[..] else { panic!("page {}: {found:?}", page + 1) };
            assert!(what.ends_with(&format!("page {}", page + 1)), "{what}");
            file.write_all_at(&byte, at).unwrap();
        }
        assert_eq!(index.check_pages(&go_on).unwrap(), []);
        assert!(matches!(index.check_pages(&|| true), Err(Error::Interrupted)));
    }
}
