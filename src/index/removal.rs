//! Paths that are taken out of all versions: what lies below a name, and the rows that go with it.
//!
//! Invariants: no version shows the name, or what is below it, afterwards; each state of the directory that had it, and
//! each version's totals, count what is left; the directories below stay known as gone, so that who has one open is
//! told; file states stay, for other names may lead to them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rusqlite::{Connection, params};

use super::Index;
use super::apply::Apply;
use super::digests::listing_now;
use super::fail::Found;
use super::live::VersionSet;
use super::queries::Ascent;
use super::row::{EntryRow, Key, Table, seal};
use super::rows::{self, DirValue, PartOf, blob};
use super::schema::{dir_key, version_of_dir_key};
use crate::catalog::{Child, DirState, Kind, Record, codec, digest};
use crate::error::{Error, Result};
use crate::ids::{Dirno, TreeDigest, Version};

/// A name in a directory.
pub type Name = (Dirno, Vec<u8>);

/// Some names, with all that is below them in any version.
#[derive(Debug, Clone, Default)]
pub struct Subtrees {
    pub tops: BTreeSet<Name>,
    /// The directories that go.
    dirs: HashSet<Dirno>,
    /// Intervals of names that go.
    pub intervals: u64,
    /// The versions that show one of `tops`.
    pub shown_in: BTreeSet<Version>,
}

impl Subtrees {
    /// A name in a directory is one of them, or below.
    pub fn hold(&self, parent: Dirno, name: &[u8]) -> bool {
        self.dirs.contains(&parent) || (!self.tops.is_empty() && self.tops.contains(&(parent, name.to_vec())))
    }

    pub fn records(&self) -> impl Iterator<Item = Record> {
        self.tops.iter().map(|(dirno, name)| Record::RemovePath { dirno: *dirno, name: name.clone() })
    }
}

/// What comes and goes with each version: files, directories, others, bytes; all modulo 2^64.
#[derive(Default)]
struct Totals(BTreeMap<Version, [u64; 4]>);

impl Totals {
    fn add(&mut self, from: Version, to: Option<Version>, what: [u64; 4]) {
        for (sum, part) in self.0.entry(from).or_default().iter_mut().zip(what) {
            *sum = sum.wrapping_add(part);
        }
        if let Some(to) = to {
            for (sum, part) in self.0.entry(to).or_default().iter_mut().zip(what) {
                *sum = sum.wrapping_sub(part);
            }
        }
    }
}

/// Visits all intervals of names in a directory.
fn each_row(c: &Connection, dir: Dirno, mut visit: impl FnMut(Version, EntryRow) -> Found<()>) -> Found<()> {
    let mut statement = c.prepare_cached("SELECT name, v_from, row FROM entries WHERE parent=?1")?;
    let mut found = statement.query([dir.0 as i64])?;
    while let Some(found) = found.next()? {
        let (name, from) = (blob(found, 0)?, Version(found.get(1)?));
        visit(from, EntryRow::decode(Key(dir.0 as i64, i64::from(from.0), name), blob(found, 2)?)?)?;
    }
    Ok(())
}

impl Index {
    /// The names that this path has in any version that is known, shown or not.
    pub fn names_at(&self, path: &[u8]) -> Result<Vec<Name>> {
        let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).peekable();
        let mut at = vec![Dirno::ROOT];
        while let Some(name) = names.next() {
            let mut below: Vec<Dirno> = Vec::new();
            let mut found = Vec::new();
            for dir in at {
                let rows = self.ask(|c| rows::entry_rows(c, dir, name))?;
                if !rows.is_empty() {
                    found.push((dir, name.to_vec()));
                }
                for (_, row) in rows {
                    if let Child::Dir(dirno) = row.child
                        && !below.contains(&dirno)
                    {
                        below.push(dirno);
                    }
                }
            }
            if names.peek().is_none() {
                return Ok(found);
            }
            at = below;
        }
        Ok(Vec::new())
    }

    /// All that is below some names; one inside another counts once.
    pub fn subtrees(&self, tops: impl IntoIterator<Item = Name>, stop: &dyn Fn() -> bool) -> Result<Subtrees> {
        let mut trees = Subtrees { tops: tops.into_iter().collect(), ..Subtrees::default() };
        let shown = VersionSet::new(self.versions()?.into_iter().map(|row| row.version));
        let mut below: Vec<Dirno> = Vec::new();
        let mut of_tops: BTreeMap<Name, u64> = BTreeMap::new();
        for (dir, name) in &trees.tops {
            let rows = self.ask(|c| rows::entry_rows(c, *dir, name))?;
            of_tops.insert((*dir, name.clone()), rows.len() as u64);
            for (from, row) in rows {
                trees.shown_in.extend(shown.iter().filter(|v| *v >= from && row.v_to.is_none_or(|to| *v < to)));
                below.extend(dir_of(&row));
            }
        }
        while let Some(dir) = below.pop() {
            if stop() {
                return Err(Error::Interrupted);
            }
            if !trees.dirs.insert(dir) {
                continue;
            }
            let (rows, dirs) = self.ask(|c| {
                let (mut rows, mut dirs) = (0, BTreeSet::new());
                each_row(c, dir, |_, row| {
                    rows += 1;
                    dirs.extend(dir_of(&row));
                    Ok(())
                })?;
                Ok((rows, dirs))
            })?;
            trees.intervals += rows;
            below.extend(dirs);
        }
        let dirs = &trees.dirs;
        trees.tops.retain(|(dir, _)| !dirs.contains(dir));
        trees.intervals += trees.tops.iter().filter_map(|top| of_tops.get(top)).sum::<u64>();
        Ok(trees)
    }

    /// A directory was taken out of all versions.
    pub fn is_removed(&self, dir: Dirno) -> Result<bool> {
        self.ask(|c| Ok(first_state(c, dir)?.is_some_and(|(_, value)| value.gone)))
    }

    /// The names that runs above `after` have taken out of all versions, and the newest run that the index knows.
    pub fn removed_after(&self, after: Option<Version>) -> Result<(Vec<Name>, Option<Version>)> {
        self.ask(|c| {
            let last = rows::state(c)?.last_commit.map(|(run, _)| run);
            let mut statement = c.prepare_cached("SELECT run, name, parent, row FROM removed WHERE run>?1")?;
            let mut found = statement.query([after.map_or(-1, |run| i64::from(run.0))])?;
            let mut names = Vec::new();
            while let Some(found) = found.next()? {
                let (run, name, parent): (i64, _, i64) = (found.get(0)?, blob(found, 1)?, found.get(2)?);
                super::row::open(Table::Removed, Key(run, parent, name), blob(found, 3)?)?;
                names.push((Dirno(parent as u64), name.to_vec()));
            }
            Ok((names, last))
        })
    }
}

/// The first row of a directory.
fn first_state(c: &Connection, dir: Dirno) -> Found<Option<(Version, DirValue)>> {
    match next_state(c, dir_key(dir, Version(0)), dir)? {
        Some(first) => rows::dir(c, dir, first),
        None => Ok(None),
    }
}

/// The version of a directory's first row from a key on.
fn next_state(c: &Connection, from: i64, dir: Dirno) -> Found<Option<Version>> {
    let mut statement = c.prepare_cached("SELECT id FROM dirs WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT 1")?;
    let mut found = statement.query([from, dir_key(dir, Version::MAX)])?;
    Ok(match found.next()? {
        Some(found) => Some(version_of_dir_key(found.get(0)?)),
        None => None,
    })
}

fn dir_of(row: &EntryRow) -> Option<Dirno> {
    match row.child {
        Child::Dir(dirno) => Some(dirno),
        Child::Node(_) => None,
    }
}

impl Apply<'_> {
    pub(super) fn remove_path(&mut self, dirno: Dirno, name: &[u8]) -> Found<()> {
        let rows = rows::entry_rows(self.c, dirno, name)?;
        let mut totals = Totals::default();
        let mut below: Vec<Dirno> = Vec::new();
        for (from, row) in &rows {
            self.named_less.push((dirno, *from, row.v_to));
            self.uncount(dirno, *from, row)?;
            self.total(&mut totals, *from, row)?;
            below.extend(dir_of(row));
        }
        let key = params![dirno.0 as i64, name];
        self.c.prepare_cached("DELETE FROM entries WHERE parent=?1 AND name=?2")?.execute(key)?;
        while let Some(dir) = below.pop() {
            let mut inner: BTreeSet<Dirno> = BTreeSet::new();
            each_row(self.c, dir, |from, row| {
                inner.extend(dir_of(&row));
                self.total(&mut totals, from, &row)
            })?;
            below.extend(inner);
            self.c.prepare_cached("DELETE FROM entries WHERE parent=?1")?.execute([dir.0 as i64])?;
            self.bury(dir)?;
        }
        self.take_from_versions(totals)?;
        let run = i64::from(self.v.0);
        let sealed = seal(Table::Removed, Key(run, dirno.0 as i64, name), Vec::new());
        self.c
            .prepare_cached("INSERT OR IGNORE INTO removed(run, parent, name, row) VALUES(?1, ?2, ?3, ?4)")?
            .execute(params![run, dirno.0 as i64, name, sealed])?;
        Ok(())
    }

    fn total(&self, totals: &mut Totals, from: Version, row: &EntryRow) -> Found<()> {
        let what = match (row.kind, row.child) {
            (Kind::File, Child::Node(logid)) => {
                // Of a state that is lost the size is not known, and the version's totals are not either.
                let size = rows::node_bytes(self.c, logid)?
                    .map_or(Ok(0), |(_, bytes)| codec::decode_node_attr(&bytes).map(|(attr, _)| attr.size))?;
                [1, 0, 0, size]
            }
            (Kind::Dir, _) => [0, 1, 0, 0],
            _ => [0, 0, 1, 0],
        };
        totals.add(from, row.v_to, what);
        Ok(())
    }

    /// Counts one entry less in each state that the directory had while it had this one.
    fn uncount(&mut self, dir: Dirno, from: Version, row: &EntryRow) -> Found<()> {
        self.split_state(dir, from)?;
        if let Some(to) = row.v_to {
            self.split_state(dir, to)?;
        }
        let mut at = from;
        while row.v_to.is_none_or(|to| at < to) {
            if let Some((since, value)) = rows::dir(self.c, dir, at)?
                && since == at
                && let Some(state) = value.state.clone()
            {
                let subdir = row.kind == Kind::Dir && state.attr.nlink > 2;
                let attr = crate::catalog::Attr { nlink: state.attr.nlink - u32::from(subdir), ..state.attr };
                let state = DirState { attr, children: state.children.saturating_sub(1), ..state };
                self.put_dir_at(dir, at, &DirValue { state: Some(state), ..value })?;
            }
            match next_state(self.c, dir_key(dir, at) + 1, dir)? {
                Some(next) => at = next,
                None => break,
            }
        }
        Ok(())
    }

    /// Gives the state that the directory has at a version a row there.
    fn split_state(&mut self, dir: Dirno, at: Version) -> Found<()> {
        match rows::dir(self.c, dir, at)? {
            Some((since, value)) if since < at && value.state.is_some() => self.put_dir_at(dir, at, &value),
            _ => Ok(()),
        }
    }

    fn put_dir_at(&self, dir: Dirno, at: Version, value: &DirValue) -> Found<()> {
        self.put_long(Table::Dirs, PartOf::Dir, dir_key(dir, at), &value.encode())
    }

    /// Of a directory that no version has only its place stays known.
    fn bury(&mut self, dir: Dirno) -> Found<()> {
        let grave = first_state(self.c, dir)?;
        let [from, to] = [dir_key(dir, Version(0)), dir_key(dir, Version::MAX)];
        self.c.prepare_cached("DELETE FROM parts WHERE kind=?1 AND id BETWEEN ?2 AND ?3")?.execute([
            PartOf::Dir as i64,
            from,
            to,
        ])?;
        self.c.prepare_cached("DELETE FROM dirs WHERE id BETWEEN ?1 AND ?2")?.execute([from, to])?;
        self.c.prepare_cached("DELETE FROM lost WHERE id BETWEEN ?1 AND ?2")?.execute([from, to])?;
        match grave {
            Some((at, value)) => self.put_dir_at(dir, at, &DirValue { gone: true, state: None, ..value }),
            None => Ok(()),
        }
    }

    fn take_from_versions(&self, totals: Totals) -> Found<()> {
        let Some(first) = totals.0.keys().next().copied() else { return Ok(()) };
        let ids: Vec<i64> = {
            let mut statement = self.c.prepare_cached("SELECT id FROM versions WHERE id>=?1 ORDER BY id")?;
            let found = statement.query_map([first.0], |row| row.get(0))?;
            found.collect::<rusqlite::Result<_>>()?
        };
        let mut changes = totals.0.into_iter().peekable();
        let mut sum = [0u64; 4];
        for id in ids {
            while let Some((_, change)) = changes.next_if(|(v, _)| i64::from(v.0) <= id) {
                for (sum, part) in sum.iter_mut().zip(change) {
                    *sum = sum.wrapping_add(part);
                }
            }
            let version = Version(u32::try_from(id).unwrap_or(u32::MAX));
            if sum == [0; 4] {
                continue;
            }
            if let Some((mut row, removed)) = rows::version(self.c, version)? {
                let [files, dirs, others, bytes] = sum;
                row.info.files = row.info.files.saturating_sub(files);
                row.info.dirs = row.info.dirs.saturating_sub(dirs);
                row.info.others = row.info.others.saturating_sub(others);
                row.info.tree_bytes = row.info.tree_bytes.wrapping_sub(bytes);
                self.put_version(&row, removed)?;
            }
        }
        Ok(())
    }

    /// Gives the directories that have lost a name, and those above them, the digests of what is left.
    pub(super) fn digest_anew(&mut self) -> Found<()> {
        // By the number of directories above: those below come first.
        let mut spans: BTreeMap<(usize, Dirno), (Version, Option<Version>)> = BTreeMap::new();
        for (dirno, from, to) in std::mem::take(&mut self.named_less) {
            let mut way = vec![dirno];
            let (mut at, mut ring) = (dirno, Ascent::from(dirno));
            while at != Dirno::ROOT {
                match first_state(self.c, at)? {
                    Some((_, value)) if ring.step(value.parent) => at = value.parent,
                    _ => break,
                }
                way.push(at);
            }
            for (below, dir) in way.iter().enumerate() {
                let (first, last) = spans.entry((way.len() - below, *dir)).or_insert((from, to));
                *first = from.min(*first);
                *last = last.zip(to).map(|(one, other)| one.max(other));
            }
        }
        for ((_, dir), (from, to)) in spans.into_iter().rev() {
            let mut next = Some(from);
            while let Some(at) = next.filter(|at| to.is_none_or(|to| *at < to)) {
                self.digest_state_anew(dir, at)?;
                next = next_state(self.c, dir_key(dir, at) + 1, dir)?;
            }
        }
        Ok(())
    }

    fn digest_state_anew(&self, dir: Dirno, at: Version) -> Found<()> {
        let Some((since, value)) = rows::dir(self.c, dir, at)? else { return Ok(()) };
        let Some(state) = value.state.clone().filter(|_| since == at) else { return Ok(()) };
        // What is not known, or was not then, has no digest: the state keeps the one that it had.
        if !state.listing.is_of_all() || rows::lost_since(self.c, dir, at)?.is_some() {
            return Ok(());
        }
        let listing = listing_now(self.c, at, dir)?;
        let same = listing == state.listing;
        let value = DirValue { state: Some(DirState { listing, ..state }), ..value };
        if same { Ok(()) } else { self.put_dir_at(dir, at, &value) }
    }
}

/// The roots of versions as they are once these names are gone; of those versions whose root is another then.
pub(super) fn roots_without(c: &Connection, names: &BTreeSet<Name>) -> Found<Vec<(Version, TreeDigest)>> {
    let state = rows::state(c)?;
    let mut apply = Apply::new(c, state.next_run, &state);
    for (dirno, name) in names {
        apply.remove_path(*dirno, name)?;
    }
    apply.digest_anew()?;
    let ids: Vec<u32> = {
        let mut statement = c.prepare_cached("SELECT id FROM versions ORDER BY id")?;
        let found = statement.query_map([], |row| row.get(0))?;
        found.collect::<rusqlite::Result<_>>()?
    };
    let mut roots = Vec::new();
    for version in ids.into_iter().map(Version) {
        let root =
            rows::dir(c, Dirno::ROOT, version)?.and_then(|(_, value)| value.state).map(|root| digest::dir(&root));
        if let (Some(root), Some((row, _))) = (root, rows::version(c, version)?)
            && root != row.root.digest
        {
            roots.push((version, root));
        }
    }
    Ok(roots)
}
