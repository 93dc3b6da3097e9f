//! What must be at every destination, as the index has it; and what of a listing is ours.

use std::collections::{BTreeMap, BTreeSet};

use crate::backupdir::{BackupDir, arcs};
use crate::catalog::{ArcEntry, Loss};
use crate::error::Result;
use crate::ids::{ArcId, ArcName, Version};
use crate::index::{Index, OpenRun};

/// An arc that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub name: ArcName,
    pub what: What,
    /// Commits from it on need it.
    pub needed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Blocks or catalog: its checksum is recorded in the commit of its run.
    Arc(ArcEntry),
    /// The commit of a run: the SHA-256 of its record is in the next commit, and in the index.
    Commit([u8; 32]),
}

/// All that must be there, and what tells whose the rest is.
#[derive(Debug)]
pub struct Plan {
    /// Oldest run first; of each its arcs, then its commit.
    pub wanted: Vec<Wanted>,
    /// Arcs that were dropped.
    pub dropped: BTreeMap<ArcName, ArcId>,
    /// Every arc that was ever committed, commit arcs too.
    committed: BTreeMap<ArcName, Option<ArcId>>,
    /// Runs that were begun since the last commit.
    open: Vec<OpenRun>,
    runs: BTreeSet<Version>,
    /// Of runs below that not all may be known.
    settled_below: Version,
    /// Above every number that was ever given.
    pub next_run: Version,
    pub last_commit: Option<Version>,
}

/// Whose an object with an arc's name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// It must be there.
    Wanted,
    /// It was dropped: it may go.
    Dropped,
    /// Of a run of ours that was not committed, if its id says so; it may go then.
    Leftover,
    /// Perhaps of a run that a recovery could not read: nobody here knows what needs it.
    Old,
    /// Of a run of which this backup dir knows nothing.
    Foreign,
}

impl Plan {
    /// # Errors
    /// Those of the index.
    pub fn of(index: &Index) -> Result<Plan> {
        let state = index.state()?;
        let (all, commits) = (index.all_arcs()?, index.commits()?);
        let lost: Vec<Loss> = index.losses()?.into_iter().map(|(loss, _)| loss).collect();
        let since = index.since_base()?.first().copied();
        let (mut by_run, mut dropped) = (BTreeMap::<Version, Vec<Wanted>>::new(), BTreeMap::new());
        let mut committed: BTreeMap<ArcName, Option<ArcId>> = BTreeMap::new();
        for arc in all {
            let entry = arc.entry;
            committed.insert(entry.name, Some(entry.id));
            if arc.dropped {
                dropped.insert(entry.name, entry.id);
            } else if !lost.contains(&Loss::Arc { serial: entry.serial, from: 0 }) {
                let wanted = Wanted { name: entry.name, what: What::Arc(entry), needed: true };
                by_run.entry(arc.run).or_default().push(wanted);
            }
        }
        let runs = index.known_runs()?;
        for run in &runs {
            committed.insert(arcs::commit_arc(*run), None);
            if let Some(digest) = commits.of(*run).filter(|_| !lost.contains(&Loss::Run(*run))) {
                let needed = since.is_none_or(|since| *run >= since);
                let wanted = Wanted { name: arcs::commit_arc(*run), what: What::Commit(digest), needed };
                by_run.entry(*run).or_default().push(wanted);
            }
        }
        Ok(Plan {
            wanted: by_run.into_values().flatten().collect(),
            dropped,
            committed,
            open: index.open_runs()?,
            runs,
            settled_below: state.settled_below,
            next_run: state.next_run,
            last_commit: state.last_commit.map(|(run, _)| run),
        })
    }

    pub fn whose(&self, name: ArcName) -> Whose {
        if self.dropped.contains_key(&name) {
            Whose::Dropped
        } else if self.committed.contains_key(&name) {
            Whose::Wanted
        } else if name.version < self.settled_below {
            Whose::Old
        } else if name.version < self.next_run && name.number != arcs::COMMIT_NUMBER {
            Whose::Leftover
        } else {
            Whose::Foreign
        }
    }

    /// The id that the arc of this name has, where the index or a commit of ours tells it.
    pub fn id_of(&self, dir: &BackupDir, name: ArcName) -> Option<ArcId> {
        if let Some(Some(id)) = self.committed.get(&name) {
            return Some(*id);
        }
        if let Some(open) = self.open.iter().find(|open| open.version == name.version) {
            return Some(open.arc_id(name.number));
        }
        if !self.runs.contains(&name.version) {
            return None;
        }
        let (commit, _) = arcs::read_commit(dir.arcs(), name.version, dir.keys()).ok()?;
        Some(OpenRun { version: name.version, id: commit.run_id }.arc_id(name.number))
    }
}
