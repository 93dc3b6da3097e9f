//! The front of the pipeline: walks the source beside the tree of the version before, in byte order of the names
//! (the order in which `diff -r` will read), and sends steps and jobs.
//!
//! Invariants: every directory is entered by one name relative to its open parent; an entry counts as unchanged
//! only if all its attributes equal the stored ones and its content was proven by a read after its ctime had aged.

use std::collections::HashMap;
use std::sync::Arc;

use crossbeam::channel::Sender;

use super::catalog::Names;
use super::pipeline::{Budget, Job, Step, Totals};
use super::previous::{Children, PrevChild, Previous};
use super::read::Cutting;
use super::roots::PathNode;
use super::walk::{self, Boundaries, Excludes, Skip};
use crate::catalog::{Child, Kind, Timespec};
use crate::error::{Error, Result};
use crate::ids::{Dirno, Logid};
use crate::index::{DirRow, Entry};
use crate::monitor::Monitor;
use crate::os::{DirFd, Stat, xattr};

pub struct Traverse<'a> {
    pub previous: Previous<'a>,
    pub steps: Sender<Step>,
    pub jobs: Sender<Job>,
    pub budget: &'a Budget,
    pub boundaries: Boundaries,
    pub excludes: Excludes,
    pub cutting: Cutting,
    /// Read every file, whatever its attributes say.
    pub full: bool,
    /// List every directory of the version in the catalog.
    pub base: bool,
    /// Only say which files would be read.
    pub dry_run: bool,
    pub monitor: &'a dyn Monitor,
    pub next_logid: u64,
    pub next_dirno: u64,
    /// Files with several names, by device and inode.
    pub links: HashMap<(u64, u64), Links>,
}

/// A file of which one name was met.
pub struct Links {
    pub(super) logid: Logid,
    /// It is the node of the version before; the assembler does not have it.
    pub(super) kept: bool,
    /// What it was when it was met.
    pub(super) seen: (Kind, u64, Timespec),
    pub(super) names_left: u32,
}

/// Counts of entries that are not sent one by one because they are as before.
#[derive(Default)]
pub(super) struct Kept {
    entries: u64,
    dirs: u64,
    totals: Totals,
}

impl Kept {
    pub(super) fn add(&mut self, kind: Kind, size: u64) {
        self.entries += 1;
        self.dirs += u64::from(kind == Kind::Dir);
        self.totals.add(kind, size);
    }
}

/// A directory of the source that is being walked.
pub(super) struct Here {
    pub(super) dirno: Dirno,
    pub(super) dir: Arc<DirFd>,
    pub(super) stat: Stat,
    pub(super) start_dev: u64,
    pub(super) names: Names,
    pub(super) kept: Kept,
}

impl Traverse<'_> {
    /// Saves the paths; what the version before holds beside them stays as it is.
    pub fn run(&mut self, roots: PathNode) -> Result<()> {
        let was = self.previous.dir(Dirno::ROOT)?;
        if roots.target {
            let dir = Arc::new(self.reopen(&roots)?);
            return self.directory(
                dir,
                roots.stat,
                roots.stat.dev,
                Dirno::ROOT,
                Dirno::ROOT,
                Vec::new(),
                was,
                &mut Vec::new(),
            );
        }
        self.parent(roots, Dirno::ROOT, Dirno::ROOT, Vec::new(), was, &mut Vec::new())
    }

    fn reopen(&self, node: &PathNode) -> Result<DirFd> {
        node.dir.open_dir(b".").map_err(|e| Error::io("open", "/", &e))
    }

    /// A directory on the way to a path: of its entries only those on the way are looked at.
    fn parent(
        &mut self,
        node: PathNode,
        dirno: Dirno,
        parent: Dirno,
        name: Vec<u8>,
        was: Option<DirRow>,
        path: &mut Vec<u8>,
    ) -> Result<()> {
        let (mut before, lost) = self.previous.children(was.as_ref().map(|row| row.dirno))?;
        if lost {
            self.warn(path, "its names in the version before are lost, and stay so until it is saved as a whole")?;
        }
        // What is not known can't be listed: the directory stays lost, also in a base.
        let names = match (self.base || was.is_none(), lost) {
            (true, true) => Names::Known,
            (true, false) => Names::All,
            (false, _) => Names::Changed,
        };
        self.enter(dirno, parent, name, was, names)?;
        let stat = node.stat;
        let mut here = Here { dirno, dir: node.dir, stat, start_dev: stat.dev, names, kept: Kept::default() };
        for (name, child) in node.children {
            let was = loop {
                match before.next_up_to(&name)? {
                    Some(entry) if entry.entry.name == name => break Some(entry),
                    Some(entry) => self.carry_over(&mut here, entry)?,
                    None => break None,
                }
            };
            let length = path.len();
            path.push(b'/');
            path.extend_from_slice(&name);
            if child.target {
                here.start_dev = child.stat.dev;
                self.entry(&mut here, name, child.stat, was, path)?;
            } else {
                let (number, row) = self.dir_identity(was, &name)?;
                self.parent(child, number, dirno, name, row, path)?;
            }
            path.truncate(length);
        }
        while let Some(entry) = before.take()? {
            self.carry_over(&mut here, entry)?;
        }
        let xattrs = self.xattrs(path, xattr::Subject::Fd(std::os::fd::AsFd::as_fd(&*here.dir)))?;
        self.leave(stat, xattrs, here.kept)
    }

    /// An entry that this run was not asked to look at stays; in a base with all below it.
    fn carry_over(&mut self, here: &mut Here, entry: PrevChild) -> Result<()> {
        if here.names == Names::Changed {
            here.kept.add(entry.entry.kind, entry.size());
            return Ok(());
        }
        self.carry_over_listed(entry)
    }

    fn carry_over_listed(&mut self, entry: PrevChild) -> Result<()> {
        match entry.entry.child {
            Child::Node(logid) => {
                let node = Some(Box::new(self.previous.node(logid)?));
                let (name, kind) = (entry.entry.name, entry.entry.kind);
                self.send(Step::Keep { name, kind, child: Child::Node(logid), node })
            }
            Child::Dir(dirno) => self.carry_over_dir(dirno, entry.entry.name),
        }
    }

    fn carry_over_dir(&mut self, dirno: Dirno, name: Vec<u8>) -> Result<()> {
        let Some(row) = self.previous.dir(dirno)? else {
            return Err(Error::DirectoryLost { dirno, version: self.previous.version() });
        };
        let state = row.state.clone();
        let (mut children, lost) = self.previous.children(Some(dirno))?;
        self.enter(dirno, row.parent, name, Some(row), if lost { Names::Known } else { Names::All })?;
        while let Some(entry) = children.take()? {
            self.carry_over_listed(entry)?;
        }
        self.send(Step::LeaveKept { state })
    }

    /// A directory that is saved with all below it.
    #[expect(clippy::too_many_arguments, reason = "a directory has that many parts")]
    fn directory(
        &mut self,
        dir: Arc<DirFd>,
        stat: Stat,
        start_dev: u64,
        dirno: Dirno,
        parent: Dirno,
        name: Vec<u8>,
        was: Option<DirRow>,
        path: &mut Vec<u8>,
    ) -> Result<()> {
        let (mut before, lost) = self.previous.children(was.as_ref().map(|row| row.dirno))?;
        let names = if self.base || was.is_none() || lost { Names::All } else { Names::Changed };
        self.enter(dirno, parent, name, was, names)?;
        let mut here = Here { dirno, dir, stat, start_dev, names, kept: Kept::default() };
        let listing = match walk::list(&here.dir) {
            Ok(listing) => listing,
            Err(e) => {
                self.failed(path, "list", &e)?;
                walk::Listing { entries: Vec::new(), failed: Vec::new() }
            }
        };
        for (name, e) in &listing.failed {
            let mut full = path.clone();
            full.push(b'/');
            full.extend_from_slice(name);
            match walk::is_fuse_mount_point(&full) {
                Err(error) => self.failed(&full, "look at the mount table for", &error)?,
                Ok(true) => self.warn(&full, "a FUSE mount that can't be looked into; left out")?,
                _ => self.failed(&full, "stat", e)?,
            }
        }
        for (name, stat) in listing.entries {
            let was = self.catch_up(&mut before, &name)?;
            let length = path.len();
            path.push(b'/');
            path.extend_from_slice(&name);
            // What a restore that was killed had not given its name yet; the next restore removes it.
            let leftover = !stat.is_dir() && crate::os::temp::is_ours(&name);
            if !leftover && !self.excludes.excludes(path, &stat) {
                self.entry(&mut here, name, stat, was, path)?;
            } else if let Some(was) = was {
                self.remove(was)?;
            }
            path.truncate(length);
        }
        while let Some(gone) = before.take()? {
            self.remove(gone)?;
        }
        let xattrs = self.xattrs(path, xattr::Subject::Fd(std::os::fd::AsFd::as_fd(&*here.dir)))?;
        self.leave(stat, xattrs, here.kept)
    }

    /// Removes what stood before `name` in the version before and is no more; returns what `name` was.
    fn catch_up(&mut self, before: &mut Children<'_>, name: &[u8]) -> Result<Option<PrevChild>> {
        loop {
            match before.next_up_to(name)? {
                Some(entry) if entry.entry.name == name => return Ok(Some(entry)),
                Some(gone) => self.remove(gone)?,
                None => return Ok(None),
            }
        }
    }

    pub(super) fn remove(&mut self, gone: PrevChild) -> Result<()> {
        let totals = self.previous.totals(&gone)?;
        self.send(Step::Remove { name: gone.entry.name, totals })
    }

    /// The number of a directory: that of the version before if the name was a directory there too.
    fn dir_identity(&mut self, was: Option<PrevChild>, name: &[u8]) -> Result<(Dirno, Option<DirRow>)> {
        match was {
            Some(PrevChild { entry: Entry { child: Child::Dir(dirno), .. }, .. }) => {
                Ok((dirno, self.previous.dir(dirno)?))
            }
            other => {
                if let Some(gone) = other {
                    debug_assert_eq!(gone.entry.name, name);
                    self.remove(gone)?;
                }
                let dirno = Dirno(self.next_dirno);
                self.next_dirno += 1;
                Ok((dirno, None))
            }
        }
    }

    fn entry(
        &mut self,
        here: &mut Here,
        name: Vec<u8>,
        stat: Stat,
        was: Option<PrevChild>,
        path: &mut Vec<u8>,
    ) -> Result<()> {
        if self.monitor.interrupted() {
            return Err(Error::Interrupted);
        }
        match stat.kind {
            Kind::Dir => self.subdirectory(here, name, stat, was, path),
            _ => self.leaf(here, name, stat, was, path),
        }
    }

    fn subdirectory(
        &mut self,
        here: &mut Here,
        name: Vec<u8>,
        stat: Stat,
        was: Option<PrevChild>,
        path: &mut Vec<u8>,
    ) -> Result<()> {
        let skip = match self.boundaries.skip(&stat, &here.stat, here.start_dev) {
            Ok(Some(Skip::BackupDir)) => {
                return if let Some(was) = was { self.remove(was) } else { Ok(()) };
            }
            Ok(skip) => skip.is_some(),
            Err(e) => {
                self.failed(path, "look at the mount table for", &e)?;
                true
            }
        };
        // What is not entered is not even opened: that could mount it, or wait for a server that is gone.
        let opened = if skip { None } else { Some(here.dir.open_dir(&name).and_then(|dir| Ok((dir.stat()?, dir)))) };
        let (number, row) = match &opened {
            Some(Err(e)) if e.raw_os_error() == Some(libc::ENOENT) => {
                return if let Some(was) = was { self.remove(was) } else { Ok(()) };
            }
            _ => self.dir_identity(was, &name)?,
        };
        let parent = here.dirno;
        // What was mounted here, or took its place, since it was listed.
        let other = |found: &Stat| {
            !found.same_file(&stat) && !matches!(self.boundaries.skip(found, &here.stat, here.start_dev), Ok(None))
        };
        match opened {
            Some(Ok((found, dir))) if !other(&found) => {
                self.directory(Arc::new(dir), found, here.start_dev, number, parent, name, row, path)
            }
            opened => {
                // Saved as an empty directory; what it held before is gone from this version.
                if let Some(Err(e)) = &opened {
                    self.failed(path, "open", e)?;
                }
                let (mut before, _) = self.previous.children(row.as_ref().map(|row| row.dirno))?;
                let names = if self.base { Names::All } else { Names::Changed };
                self.enter(number, parent, name.clone(), row, names)?;
                while let Some(gone) = before.take()? {
                    self.remove(gone)?;
                }
                let xattrs = self.xattrs(path, xattr::Subject::At(&here.dir, &name))?;
                self.leave(stat, xattrs, Kept::default())
            }
        }
    }

    fn enter(&mut self, dirno: Dirno, parent: Dirno, name: Vec<u8>, was: Option<DirRow>, names: Names) -> Result<()> {
        let known = was.is_some();
        self.send(Step::Enter { dirno, parent, name, was: was.map(|row| row.state), names, known })
    }

    fn leave(&mut self, stat: Stat, xattrs: crate::catalog::Xattrs, kept: Kept) -> Result<()> {
        let Kept { entries, dirs, totals } = kept;
        self.send(Step::Leave { stat, xattrs, kept: entries, kept_dirs: dirs, totals })
    }

    pub(super) fn xattrs(&self, path: &[u8], of: xattr::Subject<'_>) -> Result<crate::catalog::Xattrs> {
        match walk::xattrs(of) {
            Ok(found) => Ok(found),
            Err(e) => {
                self.failed(path, "read the extended attributes of", &e)?;
                Ok(Vec::new())
            }
        }
    }

    pub(super) fn new_logid(&mut self) -> Logid {
        self.next_logid += 1;
        Logid(self.next_logid - 1)
    }

    /// Tells what could not be saved; the run goes on, unless the next file would fare no better.
    pub(super) fn failed(&self, path: &[u8], op: &'static str, e: &std::io::Error) -> Result<()> {
        let error = Error::io(op, walk::path_of(path), e);
        if error.is_lack_of_descriptors() {
            return Err(error);
        }
        self.send(Step::Failed { path: path.to_vec(), error })
    }

    pub(super) fn warn(&self, path: &[u8], what: &str) -> Result<()> {
        self.send(Step::Warn { path: path.to_vec(), what: what.into() })
    }

    pub(super) fn take(&self, bytes: u64) -> Result<()> {
        if self.budget.take(bytes) { Ok(()) } else { Err(Error::Interrupted) }
    }

    /// The assembler is gone only after an error of its own, which is the one that counts.
    pub(super) fn send(&self, step: Step) -> Result<()> {
        self.steps.send(step).map_err(|_| Error::Interrupted)
    }
}
