//! Versions as trees of files: names to entries, file ranges to blocks.
//!
//! Invariants: a name, a directory's state and a file's state are proven from the version's commit record down before they
//! are given out (`proof`); a listing that ends without an error has exactly the names that were backed up; the pieces of a
//! range tile it without gap or overlap; symlinks are never followed; remembered rows are bounded in number.

mod content;
mod listing;
mod proof;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lru::LruCache;

use crate::backupdir::BackupDir;
use crate::catalog::{Attr, Child, ExtentChunk, Kind, Node};
use crate::crypto::Keys;
use crate::depot::Depot;
use crate::error::{Error, Result};
use crate::ids::{Dirno, Logid, TreeDigest, Version};
pub use crate::index::Listed;
use crate::index::{DirRow, Entry, Index, VersionRow};
use crate::sync::lock;
pub use content::{Piece, SeekTo};
pub use listing::{Listing, Position};
use proof::Proofs;

/// File states kept decoded, at most about 3 KiB each.
const MAX_NODES: usize = 2048;
/// Pieces of long extent lists kept decoded, at most 1.6 KiB each.
const MAX_CHUNKS: usize = 4096;

/// How long the name `latest` may be behind. A backup ends no sooner than this after its version appeared, so that
/// whoever looks after it has ended finds the new version.
pub const LATEST_LIFETIME: Duration = Duration::from_millis(20);

/// Which entries of a version are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum View {
    /// The complete tree at that point in time.
    #[default]
    Whole,
    /// Only what that version saved, and the directories that lead to it.
    Changed,
}

/// What a path stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Dir(Dirno),
    Node(Logid, Kind),
}

/// All versions of one backup dir.
pub struct Tree {
    index: Arc<Index>,
    view: View,
    proofs: Proofs,
    nodes: Mutex<LruCache<Logid, Arc<Node>>>,
    /// By file and offset / 1 MiB: the piece that was last found there.
    chunks: Mutex<LruCache<(Logid, u64), Arc<ExtentChunk>>>,
}

impl Tree {
    pub fn of(dir: &BackupDir, index: impl Into<Arc<Index>>, view: View) -> Tree {
        Tree::new(index.into(), dir.home(), dir.keys().clone(), view)
    }

    /// `home` has the commit records.
    pub fn new(index: Arc<Index>, home: Arc<dyn Depot>, keys: Arc<Keys>, view: View) -> Tree {
        let bounded = |count| NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
        Tree {
            index,
            view,
            proofs: Proofs::new(home, keys),
            nodes: Mutex::new(LruCache::new(bounded(MAX_NODES))),
            chunks: Mutex::new(LruCache::new(bounded(MAX_CHUNKS))),
        }
    }

    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// All versions that are shown, oldest first.
    pub fn versions(&self) -> Result<Vec<VersionRow>> {
        self.index.versions()
    }

    /// Finds the version that a user names: `latest`, `r3`, `3` or the whole folder name.
    pub fn version(&self, name: &str) -> Result<VersionRow> {
        let found = if name == "latest" {
            self.index.newest()?
        } else if let Ok(version) = name.parse::<Version>() {
            self.index.version(version)?
        } else {
            self.index.version_by_name(name)?
        };
        found.ok_or_else(|| Error::NoVersion(name.to_string()))
    }

    /// Finds an absolute path in a version; empty and `.` components don't count, `..` is not a name.
    pub fn find(&self, version: Version, path: &[u8]) -> Result<Found> {
        let mut at = Found::Dir(Dirno::ROOT);
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
        for name in names {
            let Found::Dir(dir) = at else { return Err(Error::NoPath { path: path.to_vec(), version }) };
            let entry =
                self.child(version, dir, name)?.ok_or_else(|| Error::NoPath { path: path.to_vec(), version })?;
            at = match entry.child {
                Child::Dir(dirno) => Found::Dir(dirno),
                Child::Node(logid) => Found::Node(logid, entry.kind),
            };
        }
        Ok(at)
    }

    /// One name of a directory; None if it is not there. `DirectoryLost` if that can't be told.
    pub fn child(&self, version: Version, dir: Dirno, name: &[u8]) -> Result<Option<Entry>> {
        match self.proofs.child(&self.index, version, dir, name)? {
            Some(entry) if self.shows(version, &entry)? => Ok(Some(entry)),
            _ => Ok(None),
        }
    }

    fn shows(&self, version: Version, entry: &Entry) -> Result<bool> {
        Ok(match (self.view, entry.child) {
            (View::Whole, _) => true,
            (View::Changed, Child::Node(_)) => entry.since == version,
            (View::Changed, Child::Dir(dirno)) => entry.since == version || self.index.changed_in(version, dirno)?,
        })
    }

    pub fn dir(&self, version: Version, dir: Dirno) -> Result<DirRow> {
        self.proofs.dir(&self.index, version, dir)
    }

    /// The digest of all that a version shows, proven by its commit record.
    pub fn root(&self, version: Version) -> Result<TreeDigest> {
        let row = self.dir(version, Dirno::ROOT)?;
        Ok(crate::catalog::digest::dir(&row.state))
    }

    /// The file state that an entry of a directory stands for.
    pub fn node_of(&self, version: Version, dir: Dirno, entry: &Entry) -> Result<Arc<Node>> {
        let Child::Node(logid) = entry.child else {
            return Err(self.row_damage("a directory in the place of a file".into()));
        };
        if let Some(node) = lock(&self.nodes).get(&logid) {
            return Ok(node.clone());
        }
        let node = Arc::new(self.index.node_of(version, dir, entry)?);
        lock(&self.nodes).put(logid, node.clone());
        Ok(node)
    }

    /// Attributes and bytes in data ranges of a file state.
    pub fn attr(&self, logid: Logid) -> Result<(Attr, u64)> {
        if let Some(node) = lock(&self.nodes).get(&logid) {
            return Ok((node.attr.clone(), node.data_bytes));
        }
        self.index.attr(logid)
    }

    pub fn node(&self, logid: Logid) -> Result<Arc<Node>> {
        if let Some(node) = lock(&self.nodes).get(&logid) {
            return Ok(node.clone());
        }
        let node = Arc::new(self.index.node(logid)?);
        lock(&self.nodes).put(logid, node.clone());
        Ok(node)
    }

    /// The nodes of a stretch of numbers, of those that a file has, by one question; they stay at hand.
    pub fn nodes(&self, logids: Range<u64>) -> Result<Vec<Arc<Node>>> {
        let nodes: Vec<Arc<Node>> = self.index.nodes(logids)?.into_iter().map(Arc::new).collect();
        let mut known = lock(&self.nodes);
        nodes.iter().for_each(|node| drop(known.put(node.logid, node.clone())));
        Ok(nodes)
    }

    /// Reads a directory's names in byte order.
    pub fn list(&self, version: Version, dir: Dirno) -> Result<Listing> {
        Listing::start(self, version, dir)
    }

    fn row_damage(&self, what: String) -> Error {
        Error::IndexRow { path: self.index.path().to_path_buf(), what }
    }
}
