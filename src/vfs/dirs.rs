//! Open directories: each remembers how far it was read, so that a directory costs one pass whatever its size.
//!
//! Offsets count entries: `.` is 1, `..` is 2. Going back to an earlier offset starts the pass again.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::{Ino, Lifetime, Place, Stat, Vfs, not_a_directory, place_of};
use crate::catalog::{Child, Kind};
use crate::error::{Error, Result};
use crate::ids::Dirno;
use crate::store::lock;
use crate::tree::Listing;

/// One entry of a directory as it is handed out.
#[derive(Debug)]
pub struct DirItem {
    pub name: Vec<u8>,
    pub ino: Ino,
    pub kind: Kind,
    /// None if the attributes can't be read: asking for them by name gives the error.
    pub stat: Option<Stat>,
    pub lifetime: Lifetime,
    /// Where reading continues after this entry.
    pub offset: u64,
}

/// A directory being read.
pub(super) struct OpenDir {
    ino: Ino,
    parent: Ino,
    listing: Option<Listing>,
    waiting: VecDeque<DirItem>,
    /// Offset of the next item in `waiting`, or of the next one to come.
    next: u64,
    started: bool,
    /// The error that ended the pass: each further read gives it again.
    failed: Option<Error>,
}

impl Vfs {
    /// Opens a directory for reading; the handle is to be released.
    pub fn opendir(&self, ino: Ino) -> Result<(u64, Lifetime)> {
        let (parent, listing, lifetime) = match place_of(ino)? {
            Place::Root => (Ino::ROOT, None, Lifetime::Never),
            Place::Dir(version, dir) => {
                let listing = self.list(version, dir)?;
                self.store.tally().dir_listed();
                let parent = if dir == Dirno::ROOT { Ino::ROOT } else { Ino::of_dir(version, listing.dir.parent) };
                (parent, Some(listing), Lifetime::Forever)
            }
            Place::Latest(_) | Place::Node(_) => return Err(not_a_directory(ino)),
        };
        let dir = OpenDir { ino, parent, listing, waiting: VecDeque::new(), next: 1, started: false, failed: None };
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        lock(&self.dirs).insert(handle, Arc::new(Mutex::new(dir)));
        Ok((handle, lifetime))
    }

    fn list(&self, version: crate::ids::Version, dir: Dirno) -> Result<Listing> {
        // Rows of a version that was removed may still be there.
        self.check_not_gone(version)?;
        self.tree.list(version, dir)
    }

    pub fn releasedir(&self, handle: u64) {
        lock(&self.dirs).remove(&handle);
    }

    /// Hands out the entries after `offset` until `take` says that one had no room (it is handed out next time).
    ///
    /// An error after some entries is kept for the next call: names already given out are right, but a
    /// directory that can't be read to its end never ends quietly.
    pub fn readdir(&self, handle: u64, offset: u64, mut take: impl FnMut(&DirItem) -> bool) -> Result<()> {
        let dir = lock(&self.dirs).get(&handle).cloned();
        let dir = dir.ok_or_else(|| Error::Usage(format!("no open directory {handle}")))?;
        let mut dir = lock(&dir);
        if offset.saturating_add(1) < dir.next {
            self.rewind(&mut dir)?;
        }
        let mut taken = false;
        loop {
            match self.fill(&mut dir) {
                Ok(()) => {}
                Err(_) if taken => return Ok(()),
                Err(error) => return Err(error),
            }
            let Some(item) = dir.waiting.front() else { return Ok(()) };
            if item.offset > offset {
                if !take(item) {
                    return Ok(());
                }
                taken = true;
            }
            dir.next = item.offset + 1;
            dir.waiting.pop_front();
        }
    }

    fn rewind(&self, dir: &mut OpenDir) -> Result<()> {
        if let Some(Place::Dir(version, dirno)) = dir.ino.place() {
            dir.listing = Some(self.list(version, dirno)?);
        }
        dir.waiting.clear();
        dir.next = 1;
        dir.started = false;
        dir.failed = None;
        Ok(())
    }

    /// Makes sure that something is waiting, unless the directory ends here.
    fn fill(&self, dir: &mut OpenDir) -> Result<()> {
        if !dir.waiting.is_empty() {
            return Ok(());
        }
        if let Some(error) = &dir.failed {
            return Err(error.clone());
        }
        let mut offset = dir.next;
        if !dir.started {
            dir.started = true;
            for (name, ino) in [(&b"."[..], dir.ino), (b"..", dir.parent)] {
                let stat = self.getattr(ino).ok().map(|(stat, _)| stat);
                let lifetime = Lifetime::Never;
                dir.waiting.push_back(DirItem { name: name.to_vec(), ino, kind: Kind::Dir, stat, lifetime, offset });
                offset += 1;
            }
            if dir.listing.is_none() {
                let items = self.root_items(offset).inspect_err(|error| dir.failed = Some(error.clone()))?;
                dir.waiting.extend(items);
            }
            return Ok(());
        }
        let Some(listing) = &mut dir.listing else { return Ok(()) };
        let version = listing.version;
        let page = listing.next_page(&self.tree).inspect_err(|error| dir.failed = Some(error.clone()))?;
        for listed in page {
            let (ino, child) = match listed.entry.child {
                Child::Node(logid) => (Ino::of_node(logid), listed.entry.child),
                Child::Dir(dirno) => (Ino::of_dir(version, dirno), listed.entry.child),
            };
            let stat = listed.attr.ok().map(|(attr, data_bytes)| self.entry_stat(version, child, &attr, data_bytes));
            let lifetime = Lifetime::Forever;
            dir.waiting.push_back(DirItem {
                name: listed.entry.name,
                ino,
                kind: listed.entry.kind,
                stat,
                lifetime,
                offset,
            });
            offset += 1;
        }
        Ok(())
    }

    /// The versions' folders and `latest`.
    fn root_items(&self, mut offset: u64) -> Result<Vec<DirItem>> {
        let mut items = Vec::new();
        let versions = self.shown_versions()?;
        for row in &versions {
            items.push(DirItem {
                name: row.info.name.clone().into_bytes(),
                ino: Ino::of_dir(row.version, Dirno::ROOT),
                kind: Kind::Dir,
                stat: self.version_stat(row).ok(),
                lifetime: Lifetime::Forever,
                offset,
            });
            offset += 1;
        }
        if let Some(newest) = versions.last() {
            items.push(DirItem {
                name: b"latest".to_vec(),
                ino: Ino::of_latest(newest.version),
                kind: Kind::Symlink,
                stat: Some(self.latest_stat(newest)),
                lifetime: Lifetime::Never,
                offset,
            });
        }
        Ok(items)
    }
}
