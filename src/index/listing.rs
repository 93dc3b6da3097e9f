//! Listings of directories: one range scan in name order, with or without attributes.
//!
//! Invariants: a listing is complete or an error: a lost directory, or one whose rows are fewer or more than its
//! state counts, is never shown short. A damaged row of a child costs only that child's attributes.

use rusqlite::Connection;

use super::fail::{Fail, Found};
use super::queries::entry_of;
use super::row::{EntryRow, Key};
use super::rows::{self, blob};
use super::{Entry, Index, Listed, ProvenEntry};
use crate::catalog::digest::{self, ItemDigest};
use crate::catalog::{Attr, Child, Node};
use crate::error::{Error, Result};
use crate::ids::{Dirno, Version};
use crate::text::shown;

impl Index {
    /// At most `limit` entries of the directory in byte order of their names, those after the name `after`.
    ///
    /// Fewer than `limit` means that the end was reached. A listing read from its start to its end in one call is
    /// checked against the directory's count; who reads it in pieces calls `check_count` at the end.
    ///
    /// # Errors
    /// `DIRECTORY_LOST`, `INDEX_ROW_DAMAGED`.
    pub fn children(&self, v: Version, dir: Dirno, after: Option<&[u8]>, limit: usize) -> Result<Vec<Entry>> {
        self.ask(|c| {
            let mut entries = Vec::new();
            scan(c, v, dir, after, limit, |entry| {
                entries.push(entry);
                Ok(())
            })?;
            Ok(entries)
        })
    }

    /// As `children`, with attributes, in one pass.
    pub fn children_with_attrs(
        &self,
        v: Version,
        dir: Dirno,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        let listed = self.children_with_attrs_here(v, dir, after, limit)?;
        let again = |other: &Index| all_match(other.children_with_attrs_here(v, dir, after, limit)?);
        Ok(match mismatch_in(&listed) {
            Some(met) => self.instead(met, again).unwrap_or(listed),
            None => listed,
        })
    }

    fn children_with_attrs_here(
        &self,
        v: Version,
        dir: Dirno,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        let all = self.ask(|c| {
            let mut listed = Vec::new();
            scan(c, v, dir, after, limit, |entry| {
                listed.push(listed_of(c, v, dir, entry, None)?);
                Ok(())
            })?;
            Ok(listed)
        });
        match all {
            // A row is damaged: the names may still be whole, and each child is asked about by itself.
            Err(Error::IndexDamaged { .. } | Error::IndexRow { .. } | Error::IndexIo { .. }) => {
                let entries = self.children(v, dir, after, limit)?;
                Ok(entries
                    .into_iter()
                    .map(|entry| Listed { attr: self.ask(|c| attr_of(c, v, dir, &entry, None)), entry })
                    .collect())
            }
            other => other,
        }
    }

    /// Proven names with attributes, which are those that were backed up with the names.
    pub fn attrs(&self, v: Version, dir: Dirno, entries: &[ProvenEntry]) -> Vec<Listed> {
        let listed = self.attrs_here(v, dir, entries);
        match mismatch_in(&listed) {
            Some(met) => self.instead(met, |other| all_match(other.attrs_here(v, dir, entries))).unwrap_or(listed),
            None => listed,
        }
    }

    fn attrs_here(&self, v: Version, dir: Dirno, entries: &[ProvenEntry]) -> Vec<Listed> {
        let of = |c: &Connection, one: &ProvenEntry| listed_of(c, v, dir, one.entry.clone(), Some(&one.item));
        match self.ask(|c| entries.iter().map(|one| of(c, one)).collect::<Found<Vec<_>>>()) {
            Ok(listed) => listed,
            // A row is damaged: each is asked about by itself.
            Err(_) => entries
                .iter()
                .map(|one| Listed {
                    attr: self.ask(|c| attr_of(c, v, dir, &one.entry, Some(&one.item))),
                    entry: one.entry.clone(),
                })
                .collect(),
        }
    }

    /// Of a directory whose listing is lost: the entries that other records tell, and so are sure.
    pub fn known_children(&self, v: Version, dir: Dirno) -> Result<Vec<Listed>> {
        self.ask(|c| {
            let lost_from = rows::lost_since(c, dir, v)?;
            let mut entries = Vec::new();
            scan_rows(c, v, dir, None, usize::MAX, |entry| {
                if lost_from.is_none_or(|from| entry.since >= from) {
                    entries.push(listed_of(c, v, dir, entry, None)?);
                }
                Ok(())
            })?;
            Ok(entries)
        })
    }

    /// Checks that a listing read in pieces was complete: `seen` entries in all.
    ///
    /// # Errors
    /// `INDEX_ROW_DAMAGED` if the directory has another number of entries in `v`.
    pub fn check_count(&self, v: Version, dir: Dirno, seen: u64) -> Result<()> {
        self.ask(|c| check_count(c, v, dir, seen))
    }
}

/// An entry that stands for something else than what was backed up.
fn mismatch_in(listed: &[Listed]) -> Option<Error> {
    let mut errors = listed.iter().filter_map(|one| one.attr.as_ref().err());
    errors.find(|error| matches!(error, Error::TreeMismatch { .. })).cloned()
}

fn all_match(listed: Vec<Listed>) -> Result<Vec<Listed>> {
    mismatch_in(&listed).map_or(Ok(listed), Err)
}

fn check_count(c: &Connection, v: Version, dir: Dirno, seen: u64) -> Found<()> {
    if rows::dir_row(c, v, dir)?.state.children != seen {
        return Err(Fail::Row("the directory has another number of entries than recorded"));
    }
    Ok(())
}

/// What cannot be told of one entry costs only that one.
fn listed_of(c: &Connection, v: Version, dir: Dirno, entry: Entry, item: Option<&ItemDigest>) -> Found<Listed> {
    let attr = match attr_of(c, v, dir, &entry, item) {
        Ok(attr) => Ok(attr),
        Err(Fail::Known(error)) => Err(error),
        Err(fail) => return Err(fail),
    };
    Ok(Listed { entry, attr })
}

/// `item`: the digest that a subdirectory was proven to have.
fn attr_of(c: &Connection, v: Version, dir: Dirno, entry: &Entry, item: Option<&ItemDigest>) -> Found<(Attr, u64)> {
    match entry.child {
        Child::Node(_) => {
            let node = node_of(c, v, dir, entry)?;
            Ok((node.attr, node.data_bytes))
        }
        Child::Dir(dirno) => {
            let state = rows::dir_row(c, v, dirno)?.state;
            match item {
                Some(item) if *item != ItemDigest::Dir(digest::dir(&state)) => Err(mismatch(v, dirno, "its state")),
                _ => Ok((state.attr, 0)),
            }
        }
    }
}

/// The node that an entry stands for.
pub(super) fn node_of(c: &Connection, v: Version, dir: Dirno, entry: &Entry) -> Found<Node> {
    let Child::Node(logid) = entry.child else { return Err(Fail::Row("a directory in the place of a file")) };
    let node = rows::node(c, logid)?;
    if entry.digest != Some(digest::node(&node)) || node.attr.kind != entry.kind {
        return Err(mismatch(v, dir, &format!("the file {}", shown(&entry.name))));
    }
    Ok(node)
}

fn mismatch(version: Version, dirno: Dirno, what: &str) -> Fail {
    Error::TreeMismatch { version, dirno, what: format!("{what} is not the one that was backed up") }.into()
}

/// Runs over the entries of `v`, which must all be known.
fn scan(
    c: &Connection,
    v: Version,
    dir: Dirno,
    after: Option<&[u8]>,
    limit: usize,
    each: impl FnMut(Entry) -> Found<()>,
) -> Found<()> {
    if rows::lost_since(c, dir, v)?.is_some() {
        return Err(Error::DirectoryLost { dirno: dir, version: v }.into());
    }
    let seen = scan_rows(c, v, dir, after, limit, each)?;
    if after.is_none() && seen < limit as u64 { check_count(c, v, dir, seen) } else { Ok(()) }
}

/// Runs over the entries of `v` that have rows, and counts them. While the scan's statement is open, all that `each`
/// asks sees the same snapshot.
pub(super) fn scan_rows(
    c: &Connection,
    v: Version,
    dir: Dirno,
    after: Option<&[u8]>,
    limit: usize,
    mut each: impl FnMut(Entry) -> Found<()>,
) -> Found<u64> {
    // No name is empty: everything comes after the empty name.
    let mut statement =
        c.prepare_cached("SELECT name, v_from, row FROM entries WHERE parent=?1 AND name>?2 ORDER BY name, v_from")?;
    statement.raw_bind_parameter(1, dir.0 as i64)?;
    statement.raw_bind_parameter(2, after.unwrap_or_default())?;
    let mut rows = statement.raw_query();
    let mut seen = 0u64;
    while seen < limit as u64 {
        let Some(found) = rows.next()? else { break };
        let since = Version(found.get(1)?);
        if since > v {
            continue;
        }
        let name = blob(found, 0)?;
        let row = EntryRow::decode(Key(dir.0 as i64, i64::from(since.0), name), blob(found, 2)?)?;
        if row.covers(v) {
            seen += 1;
            each(entry_of(name, since, row))?;
        }
    }
    Ok(seen)
}
