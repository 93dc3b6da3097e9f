//! That the index goes on with the history that this process has seen.
//!
//! Invariants: an answer counts only if, whenever the file changed, the last commit that was seen is still among those
//! that the index knows: another history under a process that runs is told, never shown. Whatever was answered is of the
//! last commit that was seen, or from before it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rusqlite::Connection;

use super::Index;
use super::fail::{Fail, Found};
use super::row::{self, Key, Table};
use super::rows::{self, blob};
use super::stand_in::StandIn;
use super::view::{Files, View};
use crate::error::{Error, Result};
use crate::ids::Version;
use crate::sync::lock;

/// A run, and SHA-256 of its commit record: a state of a backup that no other history has.
pub type Head = (Version, [u8; 32]);

/// The commits that make a history: what names one of them is of this history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commits(BTreeMap<Version, [u8; 32]>);

impl Commits {
    pub fn has(&self, (run, digest): &Head) -> bool {
        self.0.get(run) == Some(digest)
    }

    /// The digest of a run's record.
    pub fn of(&self, run: Version) -> Option<[u8; 32]> {
        self.0.get(&run).copied()
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Head> + '_ {
        self.0.iter().map(|(run, digest)| (*run, *digest))
    }

    pub fn newest(&self) -> Option<Head> {
        self.0.last_key_value().map(|(run, digest)| (*run, *digest))
    }
}

impl Extend<Head> for Commits {
    fn extend<T: IntoIterator<Item = Head>>(&mut self, commits: T) {
        self.0.extend(commits);
    }
}

/// What the index was when it was last looked at.
#[derive(Default)]
pub(super) struct History(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    last: Option<Head>,
    files: Option<Files>,
}

impl History {
    /// Another file may be in the place of the index.
    pub fn doubt(&self) {
        lock(&self.0).files = None;
    }

    pub fn head(&self) -> Option<Head> {
        lock(&self.0).last
    }

    /// A commit that was seen elsewhere: the index must have it from now on.
    pub fn expect(&self, head: Head) {
        let mut seen = lock(&self.0);
        if Some(head.0) > seen.last.map(|(run, _)| run) {
            *seen = Seen { last: Some(head), files: None };
        }
    }

    /// Looks whether the history is the same, if anything was written since the last time.
    ///
    /// On a new connection: one that is open has pages in memory, and would not see what was copied over the file.
    pub fn verify(&self, view: &View, open: &Connection, key: &[u8; 48]) -> Found<()> {
        let files = view.files_now();
        // Another file, or none: what is open is the one that was there, as it was.
        let replaced = !view.is_of(&files);
        let known = {
            let seen = lock(&self.0);
            if !replaced && seen.files == Some(files) {
                return Ok(());
            }
            seen.last
        };
        let new = known.filter(|_| !replaced).map(|_| view.connect(key)).transpose()?;
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
        seen.files = Some(files).filter(|_| !replaced);
        Ok(())
    }
}

/// The digest of a run's commit record.
pub(super) fn commit(c: &Connection, run: Version) -> Found<Option<[u8; 32]>> {
    rows::value(c, Table::Commits, i64::from(run.0), digest)
}

fn digest(body: &[u8]) -> Found<[u8; 32]> {
    <[u8; 32]>::try_from(body).map_err(|_| Fail::Row("a digest is 32 bytes long"))
}

pub(super) fn put_commit(c: &Connection, run: Version, digest: [u8; 32]) -> Found<()> {
    let id = i64::from(run.0);
    c.prepare_cached("INSERT OR REPLACE INTO commits(id, row) VALUES(?1, ?2)")?
        .execute(rusqlite::params![id, row::seal(Table::Commits, Key::id(id), digest.to_vec())])?;
    Ok(())
}

impl Index {
    /// The newest commit that this process has seen here.
    pub fn head(&self) -> Option<Head> {
        self.stand_in.as_ref().and_then(StandIn::head).or_else(|| self.history.head())
    }

    /// All commits.
    pub fn commits(&self) -> Result<Commits> {
        self.ask(|c| {
            let mut statement = c.prepare_cached("SELECT id, row FROM commits")?;
            let mut rows = statement.query([])?;
            let mut commits = Commits::default();
            while let Some(found) = rows.next()? {
                let id: i64 = found.get(0)?;
                let run = u32::try_from(id).map_err(|_| Fail::Row("no run has this number"))?;
                commits.extend([(Version(run), digest(row::open(Table::Commits, Key::id(id), blob(found, 1)?)?)?)]);
            }
            Ok(commits)
        })
    }

    /// The digest of a run's commit record, if the index knows the run.
    pub fn commit_digest(&self, run: Version) -> Result<Option<[u8; 32]>> {
        self.ask(|c| commit(c, run))
    }
}
