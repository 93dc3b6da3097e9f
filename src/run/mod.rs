//! A run written: the one sequence in which anything becomes part of the backup, a type for each stage of it.
//!
//! ```text
//! Run::begin ──> Run ──reserve──> Reserved ──write──> Committed ──apply──> Applied
//! ```
//!
//! Each step is durable before the next begins, and this is why:
//!
//! 1. **begin** settles what earlier runs left. A commit is built on the one before it, so the index must know the last
//!    one; and what a cut run left must be told from what this run writes.
//! 2. **reserve** burns the run's number, with a random id, in the index. Arcs that are found later without a commit are
//!    proven to be this run's by the id, and may be removed; and no name is ever written twice.
//! 3. **write** fills data and catalog arcs. `Output::finish` alone gives the `Durable` that a commit is made of: all
//!    arcs, and their names, are on the medium.
//! 4. Then the commit arc appears under its name by one rename: **from here on what the run did is so**. Whatever fails
//!    before leaves the backup dir as it was, but for the burned number; nothing that fails after it undoes it.
//! 5. **apply** tells the index, in one transaction, and only after the commit is durable: an index must not know what a
//!    power cut may take back. Arcs that the commit dropped are removed after that, when nothing leads to them any more.
//!    Last the write-ahead log is emptied. All of this is done by the next run if it fails.

mod apply;
mod leftovers;
pub mod output;
mod queue;
pub mod records;
pub mod settle;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backupdir::{BackupDir, COPIES_DIR, Lock, arcs};
use crate::catalog::{ArcEntry, CatalogFrame, Commit, VersionInfo};
use crate::copies;
use crate::error::{Error, Result};
use crate::ids::{TreeDigest, Version};
use crate::index::{ApplyReport, Index, IndexWriter, Name, OpenRun, State};
use crate::monitor::Monitor;
pub use apply::apply;
pub use leftovers::Whole;
pub use output::{Durable, Output};
pub use settle::Settled;

/// A run that has begun: earlier ones are settled, nothing is written yet.
pub struct Run<'a> {
    dir: &'a BackupDir,
    index: Arc<Index>,
    writer: IndexWriter,
    settled: Settled,
}

impl<'a> Run<'a> {
    /// Settles what earlier runs left.
    ///
    /// # Errors
    /// Those of `settle::settle`, and of opening the index.
    pub fn begin(dir: &'a BackupDir, lock: &'a Lock, monitor: &dyn Monitor) -> Result<Run<'a>> {
        let mut writer = dir.open_index_writer(lock)?;
        let index = Arc::new(dir.open_index()?);
        // Unless somebody is at it, or nobody ever was.
        if dir.own().sub(COPIES_DIR)?.is_some()
            && let Ok(mends) = dir.lock_to_mend(Duration::ZERO)
        {
            arcs::clear_fetched(dir.own())?;
            copies::tidy(dir, &mends);
        }
        let settled = settle::settle(dir, &index, &mut writer, monitor)?;
        Ok(Run { dir, index, writer, settled })
    }

    pub fn settled(&self) -> &Settled {
        &self.settled
    }

    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// Burns the number of the run.
    pub fn reserve(mut self) -> Result<Reserved<'a>> {
        let no_random = |e: std::io::Error| Error::io("get random bytes for", self.dir.path(), &e);
        let run = OpenRun::new(self.settled.survey.next_run).map_err(no_random)?;
        self.writer.reserve_run(run)?;
        let state = self.writer.state()?;
        Ok(Reserved { dir: self.dir, index: self.index, writer: self.writer, run, state })
    }
}

/// What a run adds.
pub struct Contents {
    pub arcs: Durable,
    pub catalog: Vec<CatalogFrame>,
    /// Roots that earlier versions have from now on.
    pub roots: Vec<(Version, TreeDigest)>,
    /// None: maintenance.
    pub version: Option<NewVersion>,
}

pub struct NewVersion {
    pub info: VersionInfo,
    /// Digest of its root directory.
    pub root: TreeDigest,
    /// Of a base: the arcs of earlier runs that are in use.
    pub base: Option<Vec<ArcEntry>>,
    pub next_logid: u64,
    pub next_dirno: u64,
}

/// A run whose number is burned.
pub struct Reserved<'a> {
    dir: &'a BackupDir,
    index: Arc<Index>,
    writer: IndexWriter,
    run: OpenRun,
    state: State,
}

impl<'a> Reserved<'a> {
    pub fn number(&self) -> Version {
        self.run.version
    }

    /// The roots that versions have once these names are gone from all of them, of those that have another one then.
    pub fn roots_without(&mut self, names: &BTreeSet<Name>) -> Result<Vec<(Version, TreeDigest)>> {
        self.writer.roots_without(names)
    }

    /// Lets `fill` write the arcs, and commits what it says of them.
    ///
    /// # Errors
    /// Whatever keeps the run from its commit. Its arcs are gone then, but for whole ones of blocks if they are to be
    /// kept and there is room.
    pub fn write<T>(
        mut self,
        whole: Whole,
        fill: impl FnOnce(&mut Output<'a>) -> Result<(Contents, T)>,
    ) -> Result<(Committed<'a>, T)> {
        let dir = self.dir;
        let mut out = Output::new(dir, self.run, self.state.next_serial)?;
        let written = fill(&mut out).and_then(|(contents, filled)| {
            let commit = self.commit_of(contents)?;
            let not_durable = match arcs::write_commit(dir.own(), dir.keys(), &commit) {
                Ok(_) => None,
                // It has its name: it counts.
                Err(error) if arcs::is_there(dir.own(), arcs::commit_arc(self.run.version)) => Some(error),
                Err(error) => return Err(error),
            };
            Ok((commit, not_durable, filled))
        });
        match written {
            Ok((commit, not_durable, filled)) => {
                let Reserved { index, writer, .. } = self;
                Ok((Committed { dir, index, writer, commit, not_durable }, filled))
            }
            Err(error) => {
                out.abandon();
                // A full disk gets its room back.
                let whole = if error.is_lack_of_space() { Whole::Remove } else { whole };
                let _ = leftovers::clear_failed_run(dir, &self.index, self.run, whole);
                Err(error)
            }
        }
    }

    /// As `write`, killed before the commit.
    #[cfg(test)]
    pub fn cut(self, fill: impl FnOnce(&mut Output<'a>)) -> Version {
        fill(&mut Output::new(self.dir, self.run, self.state.next_serial).unwrap());
        self.run.version
    }

    fn commit_of(&mut self, contents: Contents) -> Result<Commit> {
        let (own, next_serial) = contents.arcs.into_parts();
        let (mut arcs, mut info, mut roots) = (Vec::new(), None, contents.roots);
        let base = matches!(&contents.version, Some(new) if new.base.is_some());
        let (mut next_logid, mut next_dirno) = (self.state.next_logid, self.state.next_dirno);
        if let Some(new) = contents.version {
            arcs = new.base.unwrap_or_default();
            info = Some(new.info);
            roots.push((self.run.version, new.root));
            (next_logid, next_dirno) = (new.next_logid, new.next_dirno);
        }
        arcs.extend(own);
        Ok(Commit {
            run: self.run.version,
            run_id: self.run.id,
            previous: self.writer.state()?.last_commit,
            version: info,
            roots,
            base,
            arcs,
            catalog: contents.catalog,
            next_serial,
            next_logid,
            next_dirno,
        })
    }
}

/// A run that has its commit.
pub struct Committed<'a> {
    dir: &'a BackupDir,
    index: Arc<Index>,
    writer: IndexWriter,
    commit: Commit,
    not_durable: Option<Error>,
}

/// What comes after the commit, and is done by the next run if it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftToDo {
    /// The directory could not be synced after the commit got its name.
    Durable,
    /// The index does not know the commit yet.
    Apply,
    /// The index knows it, but its write-ahead log could not be emptied.
    Checkpoint,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Applied {
    pub commit: Commit,
    pub report: ApplyReport,
    /// When the index got to know it.
    pub appeared: Instant,
    pub left: Option<(LeftToDo, Error)>,
    /// Why arcs that were dropped are still there.
    pub not_removed: Option<Error>,
}

impl Committed<'_> {
    /// Tells the index, and removes what the commit dropped. The run counts whatever comes of it.
    pub fn apply(self) -> Applied {
        let Committed { dir, index, mut writer, commit, not_durable } = self;
        let applied = match not_durable {
            Some(error) => Err((LeftToDo::Durable, error)),
            None => apply::apply(dir, &mut writer, commit.run).map_err(|error| (LeftToDo::Apply, error)),
        };
        let appeared = Instant::now();
        match applied {
            Ok(report) => {
                let not_removed = leftovers::remove_dropped(dir, &index).err();
                drop(index);
                let left = writer.checkpoint().err().map(|error| (LeftToDo::Checkpoint, error));
                Applied { commit, report, appeared, left, not_removed }
            }
            Err(left) => {
                Applied { commit, report: ApplyReport::default(), appeared, left: Some(left), not_removed: None }
            }
        }
    }
}

impl Applied {
    /// For who takes a run that is not quite over for one that failed.
    pub fn whole(self) -> Result<Applied> {
        match self.left {
            Some((_, error)) => Err(error),
            None => Ok(self),
        }
    }
}
