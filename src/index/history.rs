//! That the index goes on with the history that this process has seen.
//!
//! Invariant: an answer counts only if, whenever the file changed, the last commit that was seen is still among those
//! that the index knows: another history under a process that runs is told, never shown.

use std::sync::Mutex;

use rusqlite::Connection;

use super::Index;
use super::fail::{Fail, Found};
use super::row::{self, Key, Table};
use super::rows;
use super::view::{Files, View};
use crate::error::{Error, Result};
use crate::ids::Version;
use crate::sync::lock;

/// What the index was when it was last looked at.
#[derive(Default)]
pub(super) struct History(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    last: Option<(Version, [u8; 32])>,
    files: Option<Files>,
}

impl History {
    /// Another file may be in the place of the index.
    pub fn doubt(&self) {
        lock(&self.0).files = None;
    }

    /// Looks whether the history is the same, if anything was written since the last time.
    ///
    /// On a new connection: one that is open has pages in memory, and would not see what was copied over the file.
    pub fn verify(&self, view: &View, open: &Connection, key: &[u8; 48]) -> Found<()> {
        let files = view.files_now();
        // Another file, or none: what is open is the one that was there, as it was.
        if !view.is_of(&files) {
            return Ok(());
        }
        let known = {
            let seen = lock(&self.0);
            if seen.files == Some(files) {
                return Ok(());
            }
            seen.last
        };
        let new = known.map(|_| view.connect(key)).transpose()?;
        let c = new.as_ref().unwrap_or(open);
        let last = rows::state(c)?.last_commit;
        let is_there = |(run, digest)| Found::Ok(commit(c, run)? == Some(digest));
        if let Some((run, _)) = known.filter(|_| known != last)
            && !known.map_or(Ok(true), is_there)?
        {
            if !last.map_or(Ok(true), is_there)? {
                return Err(Fail::Row("the last commit is not among the commits"));
            }
            let what = format!("it is not the history that was seen before, which had another {run}");
            return Err(Fail::Known(Error::HistoryChanged { path: view.path().to_path_buf(), what }));
        }
        let mut seen = lock(&self.0);
        if last.map(|(run, _)| run) >= seen.last.map(|(run, _)| run) {
            seen.last = last;
        }
        seen.files = Some(files);
        Ok(())
    }
}

/// The digest of a run's commit record.
pub(super) fn commit(c: &Connection, run: Version) -> Found<Option<[u8; 32]>> {
    rows::value(c, Table::Commits, i64::from(run.0), |body| {
        <[u8; 32]>::try_from(body).map_err(|_| Fail::Row("a digest is 32 bytes long"))
    })
}

pub(super) fn put_commit(c: &Connection, run: Version, digest: [u8; 32]) -> Found<()> {
    let id = i64::from(run.0);
    c.prepare_cached("INSERT OR REPLACE INTO commits(id, row) VALUES(?1, ?2)")?
        .execute(rusqlite::params![id, row::seal(Table::Commits, Key::id(id), digest.to_vec())])?;
    Ok(())
}

impl Index {
    /// The digest of a run's commit record, if the index knows the run.
    pub fn commit_digest(&self, run: Version) -> Result<Option<[u8; 32]>> {
        self.ask(|c| commit(c, run))
    }
}
