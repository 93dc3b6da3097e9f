//! Which arcs a selftest reads: those that the index knew at its start, or, without it, those that commit records name.
//!
//! Invariant: what a backup adds while the selftest runs is not looked at, so that it can't be taken for damage.

use std::collections::{BTreeMap, BTreeSet};

use super::{BlockRef, Exam, Level, Report, Scope};
use crate::backupdir::arcs::{self, COMMIT_NUMBER};
use crate::catalog::ArcEntry;
use crate::depot::Reach;
use crate::error::{Error, Result};
use crate::ids::{ArcName, ArcSerial, Version};
use crate::text::counted;

/// What is to be read.
#[derive(Debug, Default, Clone)]
pub(super) struct Plan {
    /// In the order of the medium, as far as names tell: by serial.
    pub arcs: Vec<ArcEntry>,
    /// Runs whose commit arc must be there.
    pub commits: Vec<Version>,
    /// Arcs of committed runs of which nothing is known, because their commit record can't be read.
    pub orphans: Vec<ArcName>,
    pub notes: Vec<String>,
    /// The arcs are those that the index knows.
    pub indexed: bool,
}

impl Plan {
    pub fn make(exam: &Exam<'_>) -> Result<Plan> {
        // The directory first: an arc that comes after this is in neither list, or in the index only.
        let on_disk = arcs::runs(exam.dir.arcs())?;
        let mut plan = match Plan::by_index(exam, &on_disk) {
            Ok(plan) => plan,
            Err(error) if error.is_damage() || matches!(error, Error::IndexIo { .. }) => {
                Plan::by_commits(exam, &on_disk)
            }
            Err(error) => return Err(error),
        };
        match &exam.options.scope {
            Scope::Everything | Scope::Paths(_) => {}
            Scope::Arcs(names) => plan.keep_only(|name, _| names.contains(&name)),
            Scope::Blocks(blocks) => {
                let mut serials = BTreeSet::new();
                for block in blocks {
                    serials.extend(place_of(exam, block).map(|place| place.arc()));
                }
                plan.keep_only(|_, serial| serial.is_some_and(|serial| serials.contains(&serial)));
            }
        }
        Ok(plan)
    }

    /// What of it is at hand: arcs that are not kept here are proven where they are.
    pub fn near(&self, exam: &Exam<'_>, report: &mut Report) -> Plan {
        let is_here = |entry: &&ArcEntry| exam.dir.arcs().reach_of(entry.name) == Reach::Near;
        let (here, away): (Vec<&ArcEntry>, Vec<&ArcEntry>) = self.arcs.iter().partition(is_here);
        let is_asked_there = exam.options.level == Level::AllCopies && exam.around.is_some();
        if !away.is_empty() && !is_asked_there {
            let arcs = counted(away.len() as u64, "arc");
            report.notes.push(format!("not read: {arcs} that only destinations keep; -v4 proves them there"));
        }
        Plan { arcs: here.into_iter().cloned().collect(), ..self.clone() }
    }

    fn keep_only(&mut self, wanted: impl Fn(ArcName, Option<ArcSerial>) -> bool) {
        self.arcs.retain(|entry| wanted(entry.name, Some(entry.serial)));
        self.commits.retain(|run| wanted(commit_arc(*run), None));
        self.orphans.retain(|name| wanted(*name, None));
        self.notes.clear();
    }

    fn by_index(exam: &Exam<'_>, on_disk: &[arcs::Run]) -> Result<Plan> {
        let state = exam.index.state()?;
        let rows = exam.index.arcs()?;
        let versions: BTreeSet<Version> = exam.index.versions()?.into_iter().map(|row| row.version).collect();
        let last = state.last_commit.map(|(last, _)| last);
        let settled = |run: Version| last.is_some_and(|last| run <= last);
        // A recovery has told of those that it gave up.
        let known = |run: Version| versions.contains(&run) || run >= state.settled_below;
        let mut commits: BTreeSet<Version> = versions.iter().copied().collect();
        commits.extend(rows.iter().map(|row| row.run).filter(|run| known(*run)));
        let committed = |run: &&arcs::Run| run.committed && settled(run.version) && known(run.version);
        commits.extend(on_disk.iter().filter(committed).map(|run| run.version));
        // What the index does not list is what v2 looks at.
        let arcs = rows.into_iter().map(|row| row.entry).collect();
        Ok(Plan { arcs, commits: commits.into_iter().collect(), orphans: Vec::new(), notes: Vec::new(), indexed: true })
    }

    /// What the commit records themselves tell; those that can't be read are found when their arcs are checked.
    fn by_commits(exam: &Exam<'_>, on_disk: &[arcs::Run]) -> Plan {
        let mut entries: BTreeMap<ArcSerial, ArcEntry> = BTreeMap::new();
        let committed = || on_disk.iter().filter(|run| run.committed).map(|run| run.version);
        for run in committed() {
            let Ok((commit, _)) = arcs::read_commit(exam.dir.arcs(), run, exam.dir.keys()) else { continue };
            if commit.base {
                entries.clear();
            }
            entries.extend(commit.arcs.into_iter().map(|entry| (entry.serial, entry)));
        }
        let named: BTreeSet<ArcName> = entries.values().map(|entry| entry.name).collect();
        let last = committed().max();
        let others = on_disk.iter().flat_map(|run| &run.arcs).copied();
        let others = others.filter(|name| name.number != COMMIT_NUMBER && !named.contains(name));
        let (orphans, unfinished): (Vec<_>, Vec<_>) = others.partition(|name| last.is_some_and(|v| name.version <= v));
        let mut notes = Vec::new();
        if let Some(first) = unfinished.first() {
            notes.push(format!(
                "not looked at: {} of no commit, first {first}",
                counted(unfinished.len() as u64, "arc")
            ));
        }
        let arcs = entries.into_values().collect();
        Plan { arcs, commits: committed().collect(), orphans, notes, indexed: false }
    }
}

pub(super) fn commit_arc(run: Version) -> ArcName {
    ArcName { version: run, number: COMMIT_NUMBER }
}

/// Where a block is read from, as far as that can be told.
pub(super) fn place_of(exam: &Exam<'_>, block: &BlockRef) -> Option<crate::ids::BlockId> {
    let id = match block {
        BlockRef::Id(id) => *id,
        BlockRef::Hash(hash) => exam.index.find_block(hash).ok()??,
    };
    Some(exam.index.location(id).unwrap_or(id))
}
