//! The names of one directory of a version, one by one.
//!
//! Invariant: names come in byte order, proven as whoever lists the directory proves them; a page of them is held.

use crate::catalog::{Child, Kind};
use crate::error::{Error, Result};
use crate::ids::{Dirno, Version};
use crate::index::Entry;
use crate::live;
use crate::tree::{Found, Listing, Tree};

/// A directory of a version, at its next name.
pub struct Side {
    pub dirno: Dirno,
    listing: Listing,
    page: std::vec::IntoIter<Entry>,
    next: Option<Entry>,
}

impl Side {
    pub fn open(tree: &Tree, version: Version, dirno: Dirno) -> Result<Side> {
        let mut side = Side { dirno, listing: tree.list(version, dirno)?, page: Vec::new().into_iter(), next: None };
        side.step(tree)?;
        Ok(side)
    }

    pub fn peek(&self) -> Option<&[u8]> {
        self.next.as_ref().map(|entry| entry.name.as_slice())
    }

    /// The next name, with the directory that has it.
    pub fn take(&mut self, tree: &Tree) -> Result<Option<(Dirno, Entry)>> {
        let Some(entry) = self.next.take() else { return Ok(None) };
        self.step(tree)?;
        Ok(Some((self.dirno, entry)))
    }

    fn step(&mut self, tree: &Tree) -> Result<()> {
        self.next = self.page.next();
        if self.next.is_none() {
            self.page = self.listing.next_names(tree)?.into_iter();
            self.next = self.page.next();
        }
        Ok(())
    }
}

/// What an absolute path is in a version, as the entry that stands in its directory. None: the version does not have it.
pub fn entry_at(tree: &Tree, version: Version, path: &[u8]) -> Result<Option<(Dirno, Entry)>> {
    let root =
        Entry { name: Vec::new(), kind: Kind::Dir, child: Child::Dir(Dirno::ROOT), since: version, digest: None };
    let Some(name) = path.rsplit(|byte| *byte == b'/').next().filter(|name| !name.is_empty()) else {
        return Ok(Some((Dirno::ROOT, root)));
    };
    match tree.find(version, live::parent_of(path)) {
        Ok(Found::Dir(parent)) => Ok(tree.child(version, parent, name)?.map(|entry| (parent, entry))),
        Ok(Found::Node(..)) | Err(Error::NoPath { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
