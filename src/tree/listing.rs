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
        let mut shown = Vec::new();
        while shown.is_empty() && !self.ended {
            self.at.of.get_or_insert(self.dir.state.children);
            let page = self.fetch(tree)?;
            self.at.seen += page.len() as u64;
            self.ended = page.len() < PAGE;
            if let Some(last) = page.last() {
                self.at.after = Some(last.entry.name.clone());
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
            for listed in page {
                if tree.view == View::Whole || tree.shows(self.version, &listed.entry)? {
                    shown.push(listed);
                }
            }
        }
        Ok(shown)
    }

    fn fetch(&self, tree: &Tree) -> Result<Vec<Listed>> {
        let index = tree.index();
        let (version, dir, after) = (self.version, self.dir.dirno, self.at.after.as_deref());
        match &self.names {
            Some(names) => {
                let from = after.map_or(0, |after| names.partition_point(|one| one.entry.name.as_slice() <= after));
                let rest = names.get(from..).unwrap_or_default();
                Ok(index.attrs(version, dir, rest.get(..PAGE).unwrap_or(rest)))
            }
            None => index.children_with_attrs(version, dir, after, PAGE),
        }
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
