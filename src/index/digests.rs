//! The digest of a directory's names from the index's rows.
//!
//! Invariant: this is the only code that makes a digest of rows, so that whoever builds on a version (the next backup,
//! the removal of paths) and whoever reads it mean the same thing by it.

use std::cmp::Ordering;

use rusqlite::Connection;

use super::fail::{Fail, Found};
use super::listing::scan_rows;
use super::{Entry, Index, rows};
use crate::catalog::digest::{self, ItemDigest, Known, Listing};
use crate::catalog::{Child, Kind};
use crate::error::{Error, Result};
use crate::ids::{Dirno, ListingDigest, TreeDigest, Version};

/// What is to become of a name: what it stands for, or nothing.
pub type Change = (Vec<u8>, Option<(Kind, ItemDigest)>);

/// Of a subdirectory of which nothing is known but its name.
pub const UNKNOWN: TreeDigest = TreeDigest([0; 32]);

/// A name with the digest of what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenEntry {
    pub entry: Entry,
    pub item: ItemDigest,
}

/// The names of a directory, as rows have them.
pub struct DirNames {
    pub listing: ListingDigest,
    pub count: u64,
    /// None: they are more than were to be kept.
    pub entries: Option<Vec<ProvenEntry>>,
    /// Of some subdirectory nothing is known but its name: a recovery could not read its records.
    pub doubt: bool,
}

impl Index {
    /// The names of a directory in a version, and their digest; at most `most` of them are kept. None: its listing is lost.
    pub fn dir_names(&self, v: Version, dir: Dirno, most: usize) -> Result<Option<DirNames>> {
        self.ask(|c| {
            if rows::lost_since(c, dir, v)?.is_some() {
                return Ok(None);
            }
            let (mut listing, mut kept, mut doubt) = (Listing::new(Known::All), Some(Vec::new()), false);
            let count = scan_rows(c, v, dir, None, usize::MAX, |entry| {
                let item = item_digest(c, v, &entry)?;
                doubt |= item == ItemDigest::Dir(UNKNOWN);
                listing.add(&entry.name, entry.kind, &item);
                match &mut kept {
                    Some(entries) if entries.len() < most => entries.push(ProvenEntry { entry, item }),
                    _ => kept = None,
                }
                Ok(())
            })?;
            Ok(Some(DirNames { listing: listing.finish(), count, entries: kept, doubt }))
        })
    }

    /// The digest of a directory's names in a version once these changes, in byte order of their names, are made.
    ///
    /// What the rows say now is compared with the directory's state first: on names that were rolled back nothing is built.
    ///
    /// # Errors
    /// `TREE_MISMATCH`, `DIRECTORY_LOST`, `INDEX_…`.
    pub fn listing_digest(&self, v: Version, dir: Dirno, changes: &[Change]) -> Result<ListingDigest> {
        self.ask(|c| {
            let lost_since = rows::lost_since(c, dir, v)?;
            let known = if lost_since.is_some() { Known::Some } else { Known::All };
            let (mut as_it_is, mut changed) = (Listing::new(known), Listing::new(known));
            let (mut changes, mut doubt) = (changes.iter().peekable(), lost_since.is_some());
            let put = |listing: &mut Listing, (name, item): &Change| {
                if let Some((kind, item)) = item {
                    listing.add(name, *kind, item);
                }
            };
            scan_rows(c, v, dir, None, usize::MAX, |entry| {
                if lost_since.is_some_and(|from| entry.since < from) {
                    return Ok(());
                }
                let item = item_digest(c, v, &entry)?;
                doubt |= item == ItemDigest::Dir(UNKNOWN);
                as_it_is.add(&entry.name, entry.kind, &item);
                loop {
                    match changes.peek().map(|(name, _)| name.as_slice().cmp(entry.name.as_slice())) {
                        Some(Ordering::Less) => changes.next().into_iter().for_each(|change| put(&mut changed, change)),
                        Some(Ordering::Equal) => {
                            changes.next().into_iter().for_each(|change| put(&mut changed, change));
                            return Ok(());
                        }
                        _ => break,
                    }
                }
                changed.add(&entry.name, entry.kind, &item);
                Ok(())
            })?;
            changes.for_each(|change| put(&mut changed, change));
            let recorded = rows::dir(c, dir, v)?.and_then(|(_, value)| value.state).map(|state| state.listing);
            doubt |= recorded.is_some_and(|listing| !listing.is_of_all());
            if !doubt && recorded != Some(as_it_is.finish()) {
                let what = "its names are not those that were backed up".into();
                return Err(Error::TreeMismatch { version: v, dirno: dir, what }.into());
            }
            Ok(changed.finish())
        })
    }
}

/// The digest of a directory's names in a version, as its rows are now.
pub fn listing_now(c: &Connection, v: Version, dir: Dirno) -> Found<ListingDigest> {
    let mut listing = Listing::new(Known::All);
    scan_rows(c, v, dir, None, usize::MAX, |entry| {
        listing.add(&entry.name, entry.kind, &item_digest(c, v, &entry)?);
        Ok(())
    })?;
    Ok(listing.finish())
}

/// The digest of what an entry stands for.
pub fn item_digest(c: &Connection, v: Version, entry: &Entry) -> Found<ItemDigest> {
    match (entry.child, entry.digest) {
        (Child::Node(_), Some(digest)) => Ok(ItemDigest::Node(digest)),
        (Child::Node(_), None) => Err(Fail::Row("the entry has no digest")),
        (Child::Dir(dirno), _) => {
            let Some((_, value)) = rows::dir(c, dirno, v)?.filter(|(_, value)| !value.gone) else {
                return Err(Fail::Row("a name stands for a directory that is gone"));
            };
            Ok(ItemDigest::Dir(value.state.map_or(UNKNOWN, |state| digest::dir(&state))))
        }
    }
}
