//! What the commit records say, and the records of the catalogs that are about whole versions, arcs and blocks: all that
//! the index has but names and contents, which `digests` proves.
//!
//! Invariants: the chain of commits is followed by digest from the last one that the index knows to the first; every
//! catalog frame is opened and decoded; memory holds the commits, the rows that are told, and one frame.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Check;
use crate::backupdir::arcs::{self, ArcSource};
use crate::catalog::codec::Records;
use crate::catalog::{Commit, Named, Record};
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, BlockId, Dirno, Logid, Version};
use crate::index::{ArcValue, CatalogSource, Root, ScanRow, ScanTable, Scanned, Snapshot, State, VersionRow};

/// Blocks that were moved, or file states to be read again, that are remembered, up to 40 bytes each; with more of them
/// the shadow is made.
const MAX_TOLD: usize = 1 << 20;

/// What the index must have.
#[derive(Default)]
pub struct Told {
    commits: BTreeMap<Version, [u8; 32]>,
    versions: BTreeMap<Version, (VersionRow, bool)>,
    arcs: BTreeMap<ArcSerial, ArcValue>,
    moved: HashMap<BlockId, BlockId>,
    /// Runs that took paths out of versions, with directory and name.
    removed: BTreeSet<(Version, Vec<u8>, Dirno)>,
    next: [u64; 3],
    /// File states that the next backup reads again; no digest binds this.
    racy: Racy,
}

/// File states that are to be read again.
pub type Racy = HashSet<Logid>;

impl Told {
    /// Reads all commits and catalogs up to the last one that the index knows. None: something there can't be read, does
    /// not fit, or is more than is remembered.
    pub fn read(check: &Check<'_>, state: &State) -> Result<Option<Told>> {
        let dir = check.exam.dir;
        let mut chain: Vec<(Commit, [u8; 32])> = Vec::new();
        let mut at = state.last_commit;
        while let Some((run, digest)) = at {
            check.interrupted()?;
            match arcs::read_commit(dir.arcs(), run, dir.keys()) {
                Ok((commit, found)) if found == digest => {
                    at = commit.previous;
                    chain.push((commit, digest));
                }
                _ => return Ok(None),
            }
        }
        // One that is there and that the chain passes over was given up by a recovery.
        let known: BTreeSet<Version> = chain.iter().map(|(commit, _)| commit.run).collect();
        let passed_over = |run: &arcs::Run| {
            run.committed
                && !known.contains(&run.version)
                && state.last_commit.is_some_and(|(last, _)| run.version < last)
        };
        if arcs::runs(dir.arcs())?.iter().any(passed_over) {
            return Ok(None);
        }
        let mut told = Told::default();
        let mut source = ArcSource::new(dir.arcs(), dir.keys());
        for (commit, digest) in chain.into_iter().rev() {
            if !told.commit(check, &commit, digest, &mut source)? {
                return Ok(None);
            }
        }
        Ok(Some(told))
    }

    fn commit(
        &mut self,
        check: &Check<'_>,
        commit: &Commit,
        digest: [u8; 32],
        source: &mut ArcSource<'_>,
    ) -> Result<bool> {
        let run = commit.run;
        self.commits.insert(run, digest);
        for (version, root) in &commit.roots {
            let root = Root { digest: *root, set_by: run };
            match &commit.version {
                Some(info) if *version == run => {
                    let row = VersionRow { version: run, info: info.clone(), base: commit.base, root };
                    self.versions.insert(run, (row, false));
                }
                _ => match self.versions.get_mut(version) {
                    Some((row, _)) => row.root = root,
                    None => return Ok(false),
                },
            }
        }
        for entry in &commit.arcs {
            let value = ArcValue { entry: entry.clone(), run: entry.name.version, dropped: false };
            // A base lists the arcs of earlier runs too.
            let known = self.arcs.entry(entry.serial).or_insert(value);
            if known.entry != *entry {
                return Ok(false);
            }
        }
        let mut dropped: BTreeSet<ArcSerial> = BTreeSet::new();
        for frame in &commit.catalog {
            check.interrupted()?;
            let Some(arc) = commit.arc(frame.arc) else { return Ok(false) };
            let plain = match source.catalog_frame(frame, arc) {
                Ok(plain) => plain,
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(_) => return Ok(false),
            };
            let read = Records::new(&plain, |record| {
                commit.counts(record)?;
                self.record(run, record, &mut dropped);
                Ok(())
            });
            if read.is_err() || self.moved.len().max(self.racy.len()) > MAX_TOLD {
                return Ok(false);
            }
        }
        if !dropped.is_empty() {
            self.moved.retain(|_, to| !dropped.contains(&to.arc()));
        }
        for (next, counted) in self.next.iter_mut().zip([commit.next_serial, commit.next_logid, commit.next_dirno]) {
            *next = counted.max(*next);
        }
        Ok(true)
    }

    fn record(&mut self, run: Version, record: &Record, dropped: &mut BTreeSet<ArcSerial>) {
        match record {
            Record::RemoveVersion(version) => {
                self.versions.entry(*version).and_modify(|(_, removed)| *removed = true);
            }
            Record::RemovePath { dirno, name } => {
                self.removed.insert((run, name.clone(), *dirno));
            }
            Record::Relocate { from, to } => {
                self.moved.insert(*from, *to);
            }
            Record::DropArc(serial) => {
                dropped.insert(*serial);
                self.arcs.entry(*serial).and_modify(|arc| arc.dropped = true);
            }
            Record::Put { item: Named::Node(node), .. } if node.racy => {
                self.racy.insert(node.logid);
            }
            Record::Put { item: Named::Node(node), .. } if !self.racy.is_empty() => {
                self.racy.remove(&node.logid);
            }
            // They are about names and contents, or about losses, of which the index has no row here.
            Record::Dir { .. } | Record::Put { .. } | Record::Remove { .. } | Record::Extents(_) => {}
            Record::AcceptLoss(_) => {}
        }
    }

    /// Blocks that are read from elsewhere than their name says.
    pub fn moved(&self) -> &HashMap<BlockId, BlockId> {
        &self.moved
    }

    pub fn into_racy(self) -> Racy {
        self.racy
    }

    /// True if the rows of the index say all that, and nothing else.
    pub fn is_in(&self, rows: &Snapshot<'_>, state: &State) -> Result<bool> {
        let counted = [state.next_serial, state.next_logid, state.next_dirno];
        let enough = counted.iter().zip(&self.next).all(|(own, told)| own >= told)
            && self.commits.keys().next_back().is_none_or(|last| *last < state.next_run);
        if !enough || rows.index().versions().is_err() {
            return Ok(false);
        }
        let id = |row: &ScanRow| Version(u32::try_from(row.key.first).unwrap_or(u32::MAX));
        let commits = all(rows, ScanTable::Commits, self.commits.len(), |row| {
            Ok(self.commits.contains_key(&id(row))
                && rows.index().commit_digest(id(row))? == self.commits.get(&id(row)).copied())
        })?;
        let versions = all(rows, ScanTable::Versions, self.versions.len(), |row| self.version(id(row), rows, row))?;
        let arcs = all(rows, ScanTable::Arcs, self.arcs.len(), |row| {
            Ok(self.arcs.get(&ArcSerial(row.key.first as u64)) == Some(&row.arc(rows.index())?))
        })?;
        let moved = all(rows, ScanTable::Relocations, self.moved.len(), |row| {
            let (from, to) = row.relocation(rows.index())?;
            Ok(self.moved.get(&from) == Some(&to))
        })?;
        let removed = all(rows, ScanTable::Removed, self.removed.len(), |row| {
            Ok(self.removed.contains(&(id(row), row.key.name.clone(), Dirno(row.key.second as u64))))
        })?;
        let parts = every(rows, ScanTable::Parts, |row| rows.continues(&row.key))?.is_some();
        Ok(commits && versions && arcs && moved && removed && parts && rows.cursor(ScanTable::Lost).take().is_none())
    }

    /// What the taking out of paths has changed in a version's counts is compared with its names.
    fn version(&self, v: Version, rows: &Snapshot<'_>, row: &ScanRow) -> Result<bool> {
        let Some((told, removed)) = self.versions.get(&v) else { return Ok(false) };
        let (mut own, own_removed) = rows.open_version(row)?;
        if self.removed.last().is_some_and(|(run, ..)| *run > v) {
            let counts = |row: &VersionRow| (row.info.files, row.info.dirs, row.info.others, row.info.tree_bytes);
            (own.info.files, own.info.dirs, own.info.others, own.info.tree_bytes) = counts(told);
        }
        Ok((&own, own_removed) == (told, *removed))
    }
}

/// True if the table has so many rows, and each is as it should be.
fn all(
    rows: &Snapshot<'_>,
    table: ScanTable,
    count: usize,
    is_right: impl FnMut(&ScanRow) -> Result<bool>,
) -> Result<bool> {
    Ok(every(rows, table, is_right)? == Some(count))
}

/// How many rows the table has; None if one of them is not as it should be.
fn every(
    rows: &Snapshot<'_>,
    table: ScanTable,
    mut is_right: impl FnMut(&ScanRow) -> Result<bool>,
) -> Result<Option<usize>> {
    let mut cursor = rows.cursor(table);
    let mut count = 0;
    while let Some(scanned) = cursor.take() {
        match scanned {
            Scanned::Row(row) if is_right(&row)? => count += 1,
            _ => return Ok(None),
        }
    }
    Ok(Some(count))
}
