//! What a version shows, proven from its commit record down.
//!
//! A version is entered by its root: the digest in the sealed record of the run that set it. A directory's state is proven
//! by the listing that it stands in, its listing by its state; each once, on the way down, when it is first needed, and then
//! remembered. What is proven stays so: rows that a version shows never change.
//!
//! Invariants: a name or a state that was not compared with a digest is given out only where a recovery could not read the
//! catalog that tells it (the listing above is lost): there the chain begins anew. A commit record that is damaged costs
//! nothing: the root is then what the index says. Memory is bounded in states and in names.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;

use crate::backupdir::arcs;
use crate::catalog::Child;
use crate::catalog::digest::{self, ItemDigest};
use crate::crypto::Keys;
use crate::depot::Depot;
use crate::error::{Error, Result};
use crate::ids::{Dirno, TreeDigest, Version};
use crate::index::{Ascent, DirRow, Entry, Index, ProvenEntry, Root};
use crate::sync::lock;

/// Versions whose roots are remembered, 60 bytes each.
const MAX_ROOTS: usize = 4096;
/// Directories whose states are remembered, about 100 bytes each.
const MAX_STATES: usize = 32768;
/// Listings that are remembered, about 100 bytes each, and names that are kept of them, about 150 bytes each; of those
/// with more names than a quarter, or whose names had to go, only that they are proven.
const MAX_LISTINGS: usize = 16384;
const MAX_NAMES: usize = 65536;

/// What a directory has, proven.
pub(super) enum Proven {
    /// All of it.
    Names(Names),
    /// All rows are right, and not kept.
    Many,
    /// Its listing is lost.
    Lost,
}

type Names = Arc<Vec<ProvenEntry>>;

pub(super) struct Proofs {
    home: Arc<dyn Depot>,
    keys: Arc<Keys>,
    known: Mutex<Known>,
}

struct Known {
    roots: LruCache<Version, Root>,
    /// By version: what the listing above says.
    states: LruCache<(Version, Dirno), TreeDigest>,
    /// By the version that brought the state: the digest of the state.
    listings: LruCache<(Dirno, Version), TreeDigest>,
    kept: LruCache<(Dirno, Version), Names>,
    kept_names: usize,
}

impl Known {
    fn new() -> Known {
        let bounded = |count| NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
        Known {
            roots: LruCache::new(bounded(MAX_ROOTS)),
            states: LruCache::new(bounded(MAX_STATES)),
            listings: LruCache::new(bounded(MAX_LISTINGS)),
            kept: LruCache::new(bounded(MAX_LISTINGS)),
            kept_names: 0,
        }
    }

    fn keep(&mut self, dir: Dirno, since: Version, digest: TreeDigest, names: Option<Names>) {
        self.listings.put((dir, since), digest);
        let Some(names) = names else { return };
        self.kept_names += names.len();
        if let Some((_, old)) = self.kept.push((dir, since), names) {
            self.kept_names -= old.len();
        }
        while self.kept_names > MAX_NAMES {
            let Some((_, old)) = self.kept.pop_lru() else { return };
            self.kept_names -= old.len();
        }
    }
}

impl Proofs {
    pub fn new(home: Arc<dyn Depot>, keys: Arc<Keys>) -> Proofs {
        Proofs { home, keys, known: Mutex::new(Known::new()) }
    }

    /// The state of a directory.
    ///
    /// # Errors
    /// `TREE_MISMATCH`, `DIRECTORY_LOST`, `INDEX_…`, `VERSION_GONE`.
    pub fn dir(&self, index: &Index, v: Version, dir: Dirno) -> Result<DirRow> {
        self.asked(index, v, |index| self.proven(index, v, dir).map(|(row, _)| row))
    }

    /// A directory's state and its names.
    ///
    /// # Errors
    /// As `dir`; `INDEX_ROW_DAMAGED` if it has another number of names than its state says.
    pub fn listing(&self, index: &Index, v: Version, dir: Dirno) -> Result<(DirRow, Proven)> {
        self.asked(index, v, |index| {
            let (row, digest) = self.proven(index, v, dir)?;
            let names = self.names(index, v, &row, digest)?;
            Ok((row, names))
        })
    }

    /// One name of a directory.
    pub fn child(&self, index: &Index, v: Version, dir: Dirno, name: &[u8]) -> Result<Option<Entry>> {
        match self.listing(index, v, dir) {
            Ok((_, Proven::Names(names))) => Ok(find(&names, name).map(|found| found.entry.clone())),
            Ok((_, Proven::Many | Proven::Lost)) | Err(Error::DirectoryLost { .. }) => index.lookup(v, dir, name),
            Err(error) => Err(error),
        }
    }

    /// Paths that were removed from a version, or an index that took this one's place, give it another root: what was
    /// proven of the one before says nothing.
    ///
    /// An index that shows what was not backed up is asked no more, if there is another one.
    fn asked<T>(&self, index: &Index, v: Version, question: impl Fn(&Index) -> Result<T>) -> Result<T> {
        let answer = match question(index) {
            Err(Error::TreeMismatch { .. }) if lock(&self.known).roots.peek(&v) != index.root(v).ok().as_ref() => {
                *lock(&self.known) = Known::new();
                question(index)
            }
            other => other,
        };
        match answer {
            Err(met @ Error::TreeMismatch { .. }) => index.instead(met, question),
            other => other,
        }
    }

    /// The root of a version: in its commit record, and the same in the index.
    fn root(&self, index: &Index, v: Version) -> Result<TreeDigest> {
        if let Some(root) = lock(&self.known).roots.get(&v) {
            return Ok(root.digest);
        }
        let root = index.root(v)?;
        match arcs::read_commit(&*self.home, root.set_by, &self.keys) {
            Ok((commit, digest))
                if commit.roots.contains(&(v, root.digest)) && index.commit_digest(root.set_by)? == Some(digest) => {}
            Ok(_) => {
                let what = format!("its root is not the one in the commit record of {}", root.set_by);
                return Err(Error::TreeMismatch { version: v, dirno: Dirno::ROOT, what });
            }
            Err(error) if error.is_damage() => log::warn!("{v} is read as the index has it: {error}"),
            Err(error) => return Err(error),
        }
        lock(&self.known).roots.put(v, root);
        Ok(root.digest)
    }

    /// A directory's state, with its digest.
    fn proven(&self, index: &Index, v: Version, dir: Dirno) -> Result<(DirRow, TreeDigest)> {
        let asked = index.dir(v, dir)?;
        // From the directory up to one that is proven.
        let (mut way, mut ring) = (Vec::new(), Ascent::from(dir));
        let mut row = asked.clone();
        let mut above = loop {
            let known = lock(&self.known).states.get(&(v, row.dirno)).copied();
            if let Some(known) = known {
                break (known, row);
            }
            if row.dirno == Dirno::ROOT {
                break (self.root(index, v)?, row);
            }
            let parent = row.parent;
            if !ring.step(parent) {
                return Err(mismatch(v, dir, "it is its own ancestor"));
            }
            way.push(row);
            row = match index.dir(v, parent) {
                Ok(row) => row,
                Err(Error::DirectoryLost { .. }) => {
                    let Some(top) = way.pop() else { return Err(mismatch(v, dir, "it has no place")) };
                    break (digest::dir(&top.state), top);
                }
                Err(error) => return Err(error),
            };
        };
        loop {
            let (expected, row) = above;
            let digest = digest::dir(&row.state);
            if digest != expected {
                return Err(mismatch(v, row.dirno, "its state is not the one that was backed up"));
            }
            lock(&self.known).states.put((v, row.dirno), digest);
            let Some(below) = way.pop() else { return Ok((asked, digest)) };
            let expected = match self.names(index, v, &row, digest)? {
                Proven::Names(names) => match find(&names, &below.name) {
                    Some(ProvenEntry { entry, item: ItemDigest::Dir(digest) })
                        if entry.child == Child::Dir(below.dirno) =>
                    {
                        *digest
                    }
                    _ => return Err(mismatch(v, below.dirno, "it is not in the directory that it says")),
                },
                // The scan that proved all names took this row in.
                Proven::Many | Proven::Lost => digest::dir(&below.state),
            };
            above = (expected, below);
        }
    }

    /// The names of a directory whose state is proven.
    fn names(&self, index: &Index, v: Version, row: &DirRow, digest: TreeDigest) -> Result<Proven> {
        {
            let (key, mut known) = ((row.dirno, row.since), lock(&self.known));
            if known.listings.get(&key) == Some(&digest) {
                return Ok(known.kept.get(&key).cloned().map_or(Proven::Many, Proven::Names));
            }
        }
        let Some(names) = index.dir_names(v, row.dirno, MAX_NAMES / 4)? else { return Ok(Proven::Lost) };
        // What was saved when not all names were known says nothing of those that were put back since.
        let whole = row.state.listing.is_of_all();
        if whole && names.listing != row.state.listing && !names.doubt {
            return Err(mismatch(v, row.dirno, "its names are not those that were backed up"));
        }
        if whole && names.count != row.state.children {
            let what = format!(
                "directory {} in {v} lists {} names, {} were backed up",
                row.dirno.0, names.count, row.state.children
            );
            return Err(Error::IndexRow { path: index.path().to_path_buf(), what });
        }
        let names = names.entries.map(Arc::new);
        lock(&self.known).keep(row.dirno, row.since, digest, names.clone());
        Ok(names.map_or(Proven::Many, Proven::Names))
    }
}

fn find<'a>(names: &'a [ProvenEntry], name: &[u8]) -> Option<&'a ProvenEntry> {
    let at = names.binary_search_by(|one| one.entry.name.as_slice().cmp(name)).ok()?;
    names.get(at)
}

fn mismatch(version: Version, dirno: Dirno, what: &str) -> Error {
    Error::TreeMismatch { version, dirno, what: what.into() }
}
