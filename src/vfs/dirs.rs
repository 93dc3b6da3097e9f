//! Reading directories: a reader is an offset, nothing is kept for it.
//!
//! Invariants: offsets count entries (`.` is 1, `..` is 2), in the root they are version numbers, so that a reader goes
//! on where it was whatever came or went; going on costs a page, not the directory; what is remembered for all readers
//! together is bounded.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::{Ino, Lifetime, Place, Stat, Vfs, not_a_directory, place_of};
use crate::catalog::{Child, Kind};
use crate::error::Result;
use crate::ids::{Dirno, Version};
use crate::sync::lock;
use crate::tree::Position;

/// Pages that a reader has not used up: about 150 KiB each.
const MAX_PAGES: usize = 32;
/// Places where pages begin, a name each, in large directories that are being read.
const MAX_MARKS: usize = 32_768;
/// Offset of `..`.
const DOTS: u64 = 2;
/// Offset of the first version.
const FIRST_VERSION: u64 = DOTS + 1;

/// One entry of a directory as it is handed out.
#[derive(Debug, Clone)]
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

/// Some entries that follow each other.
struct Page {
    items: Vec<DirItem>,
    /// Where the next page begins; None after the last.
    next: Option<Mark>,
}

/// Where a page begins: after the entry with this offset.
#[derive(Clone)]
struct Mark {
    offset: u64,
    position: Position,
}

/// What all readers share.
pub(super) struct Listings {
    /// By directory and the offset before the first entry.
    pages: LruCache<(Version, Dirno, u64), Arc<Page>>,
    /// By directory: its pages but the first, in order.
    marks: LruCache<(Version, Dirno), Vec<Mark>>,
    mark_count: usize,
    /// The root, as the newest reader found it.
    root: Option<Arc<Vec<DirItem>>>,
}

impl Listings {
    pub fn new() -> Listings {
        let pages = LruCache::new(NonZeroUsize::new(MAX_PAGES).unwrap_or(NonZeroUsize::MIN));
        Listings { pages, marks: LruCache::unbounded(), mark_count: 0, root: None }
    }

    /// The last place before which everything has been read at `offset`; None: the start.
    fn mark_before(&mut self, dir: (Version, Dirno), offset: u64) -> Option<Mark> {
        let marks = self.marks.get(&dir)?;
        marks.get(marks.partition_point(|mark| mark.offset <= offset).checked_sub(1)?).cloned()
    }

    fn remember(&mut self, dir: (Version, Dirno), mark: &Mark) {
        let marks = self.marks.get_or_insert_mut(dir, Vec::new);
        // Evenly spaced, also after some were given up.
        let stride = match marks.as_slice() {
            [first, second, ..] => second.offset - first.offset,
            _ => 1,
        };
        if marks.last().is_some_and(|last| mark.offset < last.offset.saturating_add(stride)) {
            return;
        }
        marks.push(mark.clone());
        self.mark_count += 1;
        while self.mark_count > MAX_MARKS {
            match self.marks.len() {
                // One directory has them all: every second one will do.
                0 | 1 => {
                    let Some((_, marks)) = self.marks.iter_mut().next() else { return };
                    let mut number = 0;
                    marks.retain(|_| {
                        number += 1;
                        number % 2 == 1
                    });
                    self.mark_count = marks.len();
                }
                _ => {
                    let oldest = self.marks.pop_lru();
                    self.mark_count -= oldest.map_or(0, |(_, marks)| marks.len());
                }
            }
        }
    }
}

impl Vfs {
    /// Opens a directory for reading; tells how long the kernel may keep its listing.
    pub fn opendir(&self, ino: Ino) -> Result<Lifetime> {
        match place_of(ino)? {
            Place::Root => Ok(Lifetime::Never),
            Place::Dir(version, dir) => {
                // Rows of a version that was removed may still be there.
                self.version_row(version)?;
                self.dir_row(version, dir)?;
                self.store.tally().dir_listed();
                Ok(Lifetime::Forever)
            }
            Place::Latest(_) | Place::Node(_) => Err(not_a_directory(ino)),
        }
    }

    /// Hands out the entries after `offset` until `take` says that one had no room (it is handed out next time).
    ///
    /// An error after some entries is kept for the next call: names already given out are right, but a
    /// directory that can't be read to its end never ends quietly.
    pub fn readdir(&self, ino: Ino, offset: u64, mut take: impl FnMut(&DirItem) -> bool) -> Result<()> {
        let mut at = offset;
        if at < DOTS {
            for item in self.dots(ino)?.iter().filter(|item| item.offset > offset) {
                if !take(item) {
                    return Ok(());
                }
                at = item.offset;
            }
        }
        match place_of(ino)? {
            Place::Root => {
                let items = self.root_items(offset)?;
                let rest = items.partition_point(|item| item.offset <= at);
                let _ = items.iter().skip(rest).all(take);
                Ok(())
            }
            Place::Dir(version, dir) => loop {
                let (begin, page) = match self.page_after(version, dir, at) {
                    Err(_) if at > offset => return Ok(()),
                    other => other?,
                };
                let rest = page.items.partition_point(|item| item.offset <= at);
                for item in page.items.iter().skip(rest) {
                    if !take(item) {
                        lock(&self.listings).pages.put((version, dir, begin), page.clone());
                        return Ok(());
                    }
                    at = item.offset;
                }
                lock(&self.listings).pages.pop(&(version, dir, begin));
                if page.next.is_none() {
                    return Ok(());
                }
            },
            Place::Latest(_) | Place::Node(_) => Err(not_a_directory(ino)),
        }
    }

    fn dots(&self, ino: Ino) -> Result<[DirItem; 2]> {
        let parent = match place_of(ino)? {
            Place::Dir(version, dir) if dir != Dirno::ROOT => Ino::of_dir(version, self.dir_row(version, dir)?.parent),
            _ => Ino::ROOT,
        };
        let dot = |name: &[u8], ino, offset| DirItem {
            name: name.to_vec(),
            ino,
            kind: Kind::Dir,
            stat: self.getattr(ino).ok().map(|(stat, _)| stat),
            lifetime: Lifetime::Never,
            offset,
        };
        Ok([dot(b".", ino, 1), dot(b"..", parent, DOTS)])
    }

    /// The page with the entry after `offset`, or the last one; and the offset before its first entry.
    fn page_after(&self, version: Version, dir: Dirno, offset: u64) -> Result<(u64, Arc<Page>)> {
        let start = Mark { offset: DOTS, position: Position::default() };
        let mut mark = lock(&self.listings).mark_before((version, dir), offset).unwrap_or(start);
        loop {
            let page = self.page(version, dir, &mark)?;
            match &page.next {
                Some(next) if next.offset <= offset => mark = next.clone(),
                _ => return Ok((mark.offset, page)),
            }
        }
    }

    fn page(&self, version: Version, dir: Dirno, mark: &Mark) -> Result<Arc<Page>> {
        if let Some(page) = lock(&self.listings).pages.get(&(version, dir, mark.offset)) {
            return Ok(page.clone());
        }
        let list = || -> Result<_> {
            let mut listing = self.tree.list(version, dir)?.from(mark.position.clone());
            Ok((listing.next_page(&self.tree)?, listing))
        };
        let (listed, listing) = list().or_else(|error| {
            self.check_not_gone(version, dir)?;
            Err(error)
        })?;
        let mut offset = mark.offset;
        let mut items = Vec::with_capacity(listed.len());
        for listed in listed {
            let child = listed.entry.child;
            let ino = match child {
                Child::Node(logid) => Ino::of_node(logid),
                Child::Dir(dirno) => Ino::of_dir(version, dirno),
            };
            let stat = listed.attr.ok().map(|(attr, data_bytes)| self.entry_stat(version, child, &attr, data_bytes));
            offset += 1;
            let (name, kind, lifetime) = (listed.entry.name, listed.entry.kind, Lifetime::Forever);
            items.push(DirItem { name, ino, kind, stat, lifetime, offset });
        }
        let next = listing.position().map(|position| Mark { offset, position });
        if let Some(next) = &next {
            lock(&self.listings).remember((version, dir), next);
        }
        Ok(Arc::new(Page { items, next }))
    }

    /// The versions' folders and `latest`. Who goes on may get them as they were when somebody last began.
    fn root_items(&self, offset: u64) -> Result<Arc<Vec<DirItem>>> {
        if let Some(known) = lock(&self.listings).root.clone().filter(|_| offset > DOTS) {
            return Ok(known);
        }
        let versions = self.shown_versions()?;
        lock(&self.folders).extend(versions.iter().map(|row| row.info.name.clone()));
        let mut items: Vec<DirItem> = versions
            .iter()
            .map(|row| DirItem {
                name: row.info.name.clone().into_bytes(),
                ino: Ino::of_dir(row.version, Dirno::ROOT),
                kind: Kind::Dir,
                stat: self.version_stat(row).ok(),
                lifetime: Lifetime::Forever,
                offset: FIRST_VERSION + u64::from(row.version.0),
            })
            .collect();
        if let Some(newest) = versions.last() {
            items.push(DirItem {
                name: b"latest".to_vec(),
                ino: Ino::of_latest(newest.version),
                kind: Kind::Symlink,
                stat: Some(self.latest_stat(newest)),
                lifetime: Lifetime::Never,
                offset: FIRST_VERSION + u64::from(Version::MAX.0) + 1,
            });
        }
        let items = Arc::new(items);
        lock(&self.listings).root = Some(items.clone());
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_bounded_and_lead_near_any_offset() {
        let mut listings = Listings::new();
        let (many, other) = ((Version(0), Dirno(1)), (Version(0), Dirno(2)));
        listings.remember(other, &Mark { offset: 514, position: Position::default() });
        let pages = 3 * MAX_MARKS as u64;
        for page in 1..=pages {
            listings.remember(many, &Mark { offset: page * 512, position: Position::default() });
        }
        assert!(listings.mark_count <= MAX_MARKS && listings.marks.len() == 1);
        for offset in [512 * 9, 512 * (pages / 2) + 7, 512 * pages] {
            let mark = listings.mark_before(many, offset).unwrap().offset;
            assert!(mark <= offset && offset - mark < 8 * 512, "{mark} for {offset}");
        }
        assert!(listings.mark_before(many, 511).is_none() && listings.mark_before(other, 600).is_none());
    }
}
