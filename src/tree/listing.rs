//! The names of one directory, a page at a time. All of them are proven before the first is given.

use std::sync::Arc;

use super::proof::Proven;
use super::{Tree, View};
use crate::catalog::{Attr, Child};
use crate::error::{Error, Result};
use crate::ids::{Dirno, Version};
use crate::index::{DirRow, Entry, Listed, ProvenEntry};

/// Names fetched by one query.
const PAGE: usize = 512;

/// How far a directory was read.
#[derive(Debug, Clone, Default)]
pub struct Position {
    after: Option<Vec<u8>>,
    seen: u64,
    /// How many there were when it was begun.
    of: Option<u64>,
}

/// A directory being read. Reading it to the end costs one pass whatever its size.
pub struct Listing {
    pub version: Version,
    pub dir: DirRow,
    /// None: too many to be kept.
    names: Option<Arc<Vec<ProvenEntry>>>,
    at: Position,
    ended: bool,
}

impl Listing {
    pub(super) fn start(tree: &Tree, version: Version, dir: Dirno) -> Result<Listing> {
        let (row, names) = tree.proofs.listing(&tree.index, version, dir)?;
        let names = match names {
            Proven::Names(names) => Some(names),
            Proven::Many => None,
            Proven::Lost => return Err(Error::DirectoryLost { dirno: dir, version }),
        };
        Ok(Listing { version, dir: row, names, at: Position::default(), ended: false })
    }

    /// Goes on where another listing of this directory was.
    pub fn from(self, at: Position) -> Listing {
        Listing { at, ended: false, ..self }
    }

    /// Where to go on; None at the end.
    pub fn position(&self) -> Option<Position> {
        (!self.ended).then(|| self.at.clone())
    }

    /// The next names, in byte order; empty at the end.
    ///
    /// Errors: `DirectoryLost`; `IndexRow` at the end if there were more or fewer names than were backed up.
    pub fn next_page(&mut self, tree: &Tree) -> Result<Vec<Listed>> {
        self.next(tree, Listing::fetch, |listed| &listed.entry)
    }

    /// As `next_page`, without attributes.
    pub fn next_names(&mut self, tree: &Tree) -> Result<Vec<Entry>> {
        self.next(tree, Listing::fetch_names, |entry| entry)
    }

    fn next<T>(
        &mut self,
        tree: &Tree,
        fetch: impl Fn(&Listing, &Tree) -> Result<Vec<T>>,
        entry: impl Fn(&T) -> &Entry,
    ) -> Result<Vec<T>> {
        let mut shown = Vec::new();
        while shown.is_empty() && !self.ended {
            self.at.of.get_or_insert(self.dir.state.children);
            let page = fetch(self, tree)?;
            self.at.seen += page.len() as u64;
            self.ended = page.len() < PAGE;
            if let Some(last) = page.last() {
                self.at.after = Some(entry(last).name.clone());
            }
            if (self.ended && self.at.seen != self.dir.state.children) || self.at.seen > self.dir.state.children {
                let now = tree.dir(self.version, self.dir.dirno)?.state.children;
                if self.at.of.is_some_and(|of| of != now) {
                    return Err(Error::PathGone { version: self.version });
                }
                return Err(tree.row_damage(format!(
                    "directory {} in {} lists {} names, {} were backed up",
                    self.dir.dirno.0, self.version, self.at.seen, self.dir.state.children
                )));
            }
            for one in page {
                if tree.view == View::Whole || tree.shows(self.version, entry(&one))? {
                    shown.push(one);
                }
            }
        }
        Ok(shown)
    }

    fn fetch(&self, tree: &Tree) -> Result<Vec<Listed>> {
        let (version, dir, after) = (self.version, self.dir.dirno, self.at.after.as_deref());
        match self.kept() {
            Some(kept) => Ok(tree.index().attrs(version, dir, kept)),
            None => tree.index().children_with_attrs(version, dir, after, PAGE),
        }
    }

    fn fetch_names(&self, tree: &Tree) -> Result<Vec<Entry>> {
        match self.kept() {
            Some(kept) => Ok(kept.iter().map(|one| one.entry.clone()).collect()),
            None => tree.index().children(self.version, self.dir.dirno, self.at.after.as_deref(), PAGE),
        }
    }

    /// The next names, if they were kept when they were proven.
    fn kept(&self) -> Option<&[ProvenEntry]> {
        let names = self.names.as_ref()?;
        let after = self.at.after.as_deref();
        let from = after.map_or(0, |after| names.partition_point(|one| one.entry.name.as_slice() <= after));
        let rest = names.get(from..).unwrap_or_default();
        Some(rest.get(..PAGE).unwrap_or(rest))
    }
}

impl Tree {
    /// Attributes of what an entry stands for.
    pub fn entry_attr(&self, version: Version, dir: Dirno, entry: &Entry) -> Result<(Attr, u64)> {
        match entry.child {
            Child::Node(_) => {
                let node = self.node_of(version, dir, entry)?;
                Ok((node.attr.clone(), node.data_bytes))
            }
            Child::Dir(dirno) => Ok((self.dir(version, dirno)?.state.attr, 0)),
        }
    }
}
