//! Two versions of one backup dir, side by side.
//!
//! Invariants: both sides are proven as whoever reads them proves them; a page of names of each side is held for each
//! directory between the top and where the walk is.

use std::cmp::Ordering;

use super::Scope;
use super::side::{Side, entry_at};
use super::{Change, Letter, Met, Visit, attributes, nodes, xattrs};
use crate::catalog::{Child, Kind, digest};
use crate::error::{Error, Result};
use crate::ids::{Dirno, Version};
use crate::index::Entry;
use crate::tree::Tree;

/// Two versions.
pub struct Versions<'a> {
    pub tree: &'a Tree,
    /// None: there is nothing, and all is new.
    pub first: Option<Version>,
    pub second: Version,
    /// Asked at each page of names; true ends it.
    pub stop: &'a dyn Fn() -> bool,
}

/// A directory that both, or one of them, have.
struct Open {
    first: Option<Side>,
    second: Option<Side>,
    path_len: usize,
}

impl Versions<'_> {
    /// Compares what a path is in both, and all below it. `path` is empty for the root.
    ///
    /// # Errors
    /// `NO_PATH` if neither has it; `Interrupted`; those of `visit`.
    pub fn below(&self, path: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        let first = self.first.map(|version| entry_at(self.tree, version, path)).transpose()?.flatten();
        let second = entry_at(self.tree, self.second, path)?;
        if first.is_none() && second.is_none() {
            return Err(Error::NoPath { path: path.to_vec(), version: self.second });
        }
        let mut open: Vec<Open> = Vec::new();
        let mut at = path.to_vec();
        // The path itself stands in a directory: it is compared as the entry that it is there.
        self.pair(first, second, &at, &mut open, visit)?;
        while let Some(dir) = open.last_mut() {
            if (self.stop)() {
                return Err(Error::Interrupted);
            }
            at.truncate(dir.path_len);
            match self.next(dir) {
                Ok(None) => drop(open.pop()),
                Ok(Some((one, other))) => {
                    if let Some((_, entry)) = one.as_ref().or(other.as_ref()) {
                        at.push(b'/');
                        at.extend_from_slice(&entry.name);
                    }
                    self.pair(one, other, &at, &mut open, visit)?;
                }
                Err(error) => {
                    open.pop();
                    visit(&at, Met::Failed(&error))?;
                }
            }
        }
        Ok(())
    }

    /// Only asked where the first side has something.
    fn first(&self) -> Version {
        self.first.unwrap_or(self.second)
    }

    /// The next name of either side, with the directory that has it.
    #[expect(clippy::type_complexity, reason = "the two sides of one name")]
    fn next(&self, dir: &mut Open) -> Result<Option<(Option<(Dirno, Entry)>, Option<(Dirno, Entry)>)>> {
        let name = |side: &Option<Side>| side.as_ref().and_then(|side| side.peek().map(<[u8]>::to_vec));
        let order = match (name(&dir.first), name(&dir.second)) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.cmp(&other),
        };
        let take = |side: &mut Option<Side>| side.as_mut().map_or(Ok(None), |side| side.take(self.tree));
        let one = if order == Ordering::Greater { None } else { take(&mut dir.first)? };
        let other = if order == Ordering::Less { None } else { take(&mut dir.second)? };
        Ok(Some((one, other)))
    }

    fn pair(
        &self,
        one: Option<(Dirno, Entry)>,
        other: Option<(Dirno, Entry)>,
        path: &[u8],
        open: &mut Vec<Open>,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        match (one, other) {
            (None, None) => Ok(()),
            (Some((_, gone)), None) => self.alone(gone, Letter::Removed, path, open, visit),
            (None, Some((_, new))) => self.alone(new, Letter::Added, path, open, visit),
            (Some((in_first, a)), Some((in_second, b))) => match (a.child, b.child) {
                (Child::Dir(one), Child::Dir(other)) => self.dirs(one, other, path, open, visit),
                (Child::Node(one), Child::Node(other)) if one == other => Ok(()),
                (Child::Node(_), Child::Node(_)) => {
                    let found = self
                        .tree
                        .node_of(self.first(), in_first, &a)
                        .and_then(|one| Ok((one, self.tree.node_of(self.second, in_second, &b)?)));
                    match found {
                        Ok((one, other)) => match Change::of(b.kind, nodes(&one, &other)) {
                            Some(change) => visit(path, Met::Change(&change)),
                            None => Ok(()),
                        },
                        Err(error) => visit(path, Met::Failed(&error)),
                    }
                }
                (first, _) => {
                    let change = Change {
                        letter: Letter::Attributes,
                        kind: b.kind,
                        differs: vec![super::What::Type],
                        verdict: None,
                    };
                    visit(path, Met::Change(&change))?;
                    let (dir, letter) = match (first, b.child) {
                        (Child::Dir(dir), _) => (dir, Letter::Removed),
                        (_, Child::Dir(dir)) => (dir, Letter::Added),
                        _ => return Ok(()),
                    };
                    self.enter_alone(dir, letter, path, open, visit)
                }
            },
        }
    }

    /// Something that only one has, and all below it.
    fn alone(
        &self,
        entry: Entry,
        letter: Letter,
        path: &[u8],
        open: &mut Vec<Open>,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        visit(path, Met::Change(&Change::whole(letter, entry.kind)))?;
        match entry.child {
            Child::Node(_) => Ok(()),
            Child::Dir(dir) => self.enter_alone(dir, letter, path, open, visit),
        }
    }

    fn enter_alone(
        &self,
        dir: Dirno,
        letter: Letter,
        path: &[u8],
        open: &mut Vec<Open>,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        let added = letter == Letter::Added;
        match Side::open(self.tree, if added { self.second } else { self.first() }, dir) {
            Ok(side) => {
                let (first, second) = if added { (None, Some(side)) } else { (Some(side), None) };
                open.push(Open { first, second, path_len: path.len() });
                Ok(())
            }
            Err(error) => visit(path, Met::Failed(&error)),
        }
    }

    /// A directory that both have.
    fn dirs(&self, one: Dirno, other: Dirno, path: &[u8], open: &mut Vec<Open>, visit: &mut Visit<'_>) -> Result<()> {
        let rows = self.tree.dir(self.first(), one).and_then(|row| Ok((row, self.tree.dir(self.second, other)?)));
        let (first, second) = match rows {
            Ok(rows) => rows,
            Err(error) => return visit(path, Met::Failed(&error)),
        };
        let whole = first.state.listing.is_of_all();
        if whole && digest::dir(&first.state) == digest::dir(&second.state) {
            return Ok(());
        }
        let mut differs = attributes(&first.state.attr, &second.state.attr, Scope::Stored);
        differs.extend(xattrs(&first.state.xattrs, &second.state.xattrs));
        if let Some(change) = Change::of(Kind::Dir, differs) {
            visit(path, Met::Change(&change))?;
        }
        if whole && first.state.listing == second.state.listing {
            return Ok(());
        }
        let sides =
            Side::open(self.tree, self.first(), one).and_then(|a| Ok((a, Side::open(self.tree, self.second, other)?)));
        match sides {
            Ok((first, second)) => {
                open.push(Open { first: Some(first), second: Some(second), path_len: path.len() });
                Ok(())
            }
            Err(error) => visit(path, Met::Failed(&error)),
        }
    }
}
