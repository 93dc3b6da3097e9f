//! The front of the pipeline: walks the source, and beside it the version before, both in byte order of names (the
//! order in which `diff -r` will read), and sends steps and jobs.
//!
//! Invariants: every directory is entered by one name relative to its open parent; a path that was given is walked
//! from its own file system, whatever stands above it; what can't be looked at keeps the state that it had; of what
//! is left out on purpose, all that earlier runs were given stays.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use crossbeam::channel::Sender;

use super::catalog::Names;
use super::left_out::LeftOut;
use super::pipeline::{Budget, Job, Step, Totals};
use super::previous::{Children, PrevChild, Previous};
use super::read::Cutting;
use crate::catalog::{Attr, Child, Kind, Xattrs};
use crate::error::{Error, Result};
use crate::ids::{Dirno, Logid};
use crate::index::{DirRow, Entry};
use crate::live::{self, Boundaries, Crossing, Excludes, OpenDir, OpenDirs, Paths, Skip};
use crate::monitor::{Event, Monitor};
use crate::os::{DirFd, Stat, xattr};

pub struct Traverse<'a> {
    pub previous: Previous<'a>,
    pub steps: Sender<Step>,
    pub jobs: Sender<Job>,
    pub budget: &'a Budget,
    pub open_dirs: Arc<OpenDirs>,
    pub boundaries: Boundaries,
    pub excludes: Excludes,
    /// Those that hold below paths that were given, of which we are in the last.
    pub narrowed: Vec<Excludes>,
    pub cutting: Cutting,
    /// Read every file, whatever its attributes say.
    pub full: bool,
    /// List every directory of the version in the catalog.
    pub base: bool,
    /// Only say which files would be read.
    pub dry_run: bool,
    /// What becomes of entries outside of the given paths.
    pub(super) outside: Fate,
    pub monitor: &'a dyn Monitor,
    pub next_logid: u64,
    pub next_dirno: u64,
    /// Files with several names, by device and all that was seen of them.
    pub links: HashMap<(u64, Attr), Links>,
    pub left_out: LeftOut,
}

/// A file of which one name was met.
pub struct Links {
    pub(super) logid: Logid,
    /// It is the node of the version before; the assembler does not have it.
    pub(super) kept: bool,
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

/// What is being told of one directory.
pub(super) struct Level {
    pub(super) names: Names,
    pub(super) kept: Kept,
}

/// What becomes of an entry of the version before at which this run does not look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Stays,
    /// But for what earlier runs were given.
    Goes,
    /// It is not there any more.
    Gone,
}

/// Which entries of a directory are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    /// Those on the way to a path that was given.
    Way(Fate),
}

/// How a directory is opened (again).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    Listing,
    /// Needs no permission to read.
    Place,
}

impl Opening {
    fn open(self, dir: &DirFd, name: &[u8]) -> io::Result<DirFd> {
        match self {
            Opening::Listing => dir.open_dir(name),
            Opening::Place => dir.open_place(name),
        }
    }
}

/// An open directory that is to be walked.
struct Visit<'p> {
    dir: Arc<OpenDir>,
    opening: Opening,
    stat: Stat,
    start_dev: u64,
    dirno: Dirno,
    parent: Dirno,
    name: Vec<u8>,
    was: Option<DirRow>,
    paths: Option<&'p Paths>,
    scope: Scope,
    /// Directories above it.
    depth: usize,
}

/// A directory of the source that is being walked.
struct Here<'p> {
    dirno: Dirno,
    /// None while the walk is far below it, or when it can't be reached any more.
    dir: Option<Arc<OpenDir>>,
    opening: Opening,
    stat: Stat,
    start_dev: u64,
    depth: usize,
    scope: Scope,
    /// Of entries that are not met in the listing.
    fate: Fate,
    paths: Option<&'p Paths>,
    level: Level,
}

/// An entry that is looked at.
struct Met<'p> {
    dir: Arc<OpenDir>,
    name: Vec<u8>,
    stat: Stat,
    was: Option<PrevChild>,
    paths: Option<&'p Paths>,
    start_dev: u64,
}

impl Traverse<'_> {
    /// Saves the paths; what the version before holds beside them stays as it is.
    pub fn run(&mut self, paths: &Paths) -> Result<()> {
        let was = self.previous.dir(Dirno::ROOT)?;
        let root = self.open_dirs.open(|| DirFd::open(Path::new("/")));
        let root = root.and_then(|dir| Ok((dir.stat()?, dir))).map_err(|e| Error::io("open", "/", &e));
        let (stat, dir) = root?;
        let visit = Visit {
            dir,
            opening: Opening::Listing,
            stat,
            start_dev: stat.dev,
            dirno: Dirno::ROOT,
            parent: Dirno::ROOT,
            name: Vec::new(),
            was,
            paths: Some(paths),
            scope: Scope::Way(self.outside),
            depth: 0,
        };
        let mut path = Vec::new();
        if paths.given {
            self.given(&mut path, stat, |this, path| this.directory(Visit { scope: Scope::All, ..visit }, path))?;
        } else {
            if paths.kept {
                self.left_out.keep(b"/");
            }
            self.directory(visit, &mut path)?;
        }
        self.left_out.tell(self.monitor)
    }

    /// Does what is done for a path that was given.
    fn given<T>(
        &mut self,
        path: &mut Vec<u8>,
        stat: Stat,
        save: impl FnOnce(&mut Self, &mut Vec<u8>) -> Result<T>,
    ) -> Result<T> {
        let narrowed = self.excludes.below_given(path, stat.is_dir())?;
        let depth = self.narrowed.len();
        self.narrowed.extend(narrowed);
        let before = self.left_out.counts();
        let done = save(self, path);
        self.left_out.saved_given(path, stat.is_dir(), before);
        self.narrowed.truncate(depth);
        done
    }

    /// Saves a directory as far as its scope goes. Returns it, as long as it is open, for the way back up.
    fn directory(&mut self, visit: Visit<'_>, path: &mut Vec<u8>) -> Result<Option<Arc<OpenDir>>> {
        let Visit { dir, opening, stat, start_dev, dirno, parent, name, was, paths, scope, depth } = visit;
        let (mut before, lost) = self.previous.children(was.as_ref().map(|row| row.dirno))?;
        let listing = match scope {
            Scope::Way(_) => None,
            Scope::All => match live::list(&dir) {
                Ok(listing) => Some(listing),
                Err(e) => {
                    self.failed(path, "list", &e)?;
                    None
                }
            },
        };
        let fate = match scope {
            Scope::Way(fate) => fate,
            Scope::All if listing.is_some() => Fate::Gone,
            Scope::All => Fate::Stays,
        };
        let whole = self.base || was.is_none();
        // What is not known can't be listed: the directory stays lost, also in a base.
        let names = match (fate, lost) {
            (Fate::Stays, true) => {
                self.warn(path, "its names in the version before are lost, and stay so until it is saved as a whole")?;
                if whole { Names::Known } else { Names::Changed }
            }
            (Fate::Goes | Fate::Gone, true) => Names::All,
            (_, false) if whole => Names::All,
            (_, false) => Names::Changed,
        };
        let xattrs = self.xattrs(path, xattr::Subject::Fd(dir.as_fd()))?;
        self.enter(dirno, parent, name, was, names)?;
        let level = Level { names, kept: Kept::default() };
        let entries = entries(&dir, listing, paths);
        let mut here = Here { dirno, dir: Some(dir), opening, stat, start_dev, depth, scope, fate, paths, level };
        for (name, stat) in entries {
            let was = self.catch_up(&mut here, &mut before, &name, path)?;
            let length = path.len();
            path.push(b'/');
            path.extend_from_slice(&name);
            self.entry(&mut here, name, stat, was, path)?;
            path.truncate(length);
        }
        while let Some(left) = before.take()? {
            self.unseen_entry(&mut here, left, path)?;
        }
        let Here { dir, level, .. } = here;
        self.leave(live::attr(&stat), xattrs, level.kept)?;
        Ok(dir)
    }

    /// Deals with what stood before `name` in the version before and was not met; returns what `name` was.
    fn catch_up(
        &mut self,
        here: &mut Here<'_>,
        before: &mut Children<'_>,
        name: &[u8],
        path: &mut Vec<u8>,
    ) -> Result<Option<PrevChild>> {
        loop {
            match before.next_up_to(name)? {
                Some(entry) if entry.entry.name == name => return Ok(Some(entry)),
                Some(other) => self.unseen_entry(here, other, path)?,
                None => return Ok(None),
            }
        }
    }

    fn unseen_entry(&mut self, here: &mut Here<'_>, entry: PrevChild, path: &mut Vec<u8>) -> Result<()> {
        let paths = here.paths.and_then(|paths| paths.child(&entry.entry.name));
        let length = path.len();
        path.push(b'/');
        path.extend_from_slice(&entry.entry.name);
        let done = self.unseen(&mut here.level, entry, here.fate, paths, path);
        path.truncate(length);
        done
    }

    /// An entry of a directory that was listed, or a name on the way to a path that was given.
    fn entry(
        &mut self,
        here: &mut Here<'_>,
        name: Vec<u8>,
        stat: io::Result<Stat>,
        was: Option<PrevChild>,
        path: &mut Vec<u8>,
    ) -> Result<()> {
        let paths = here.paths.and_then(|paths| paths.child(&name));
        let (Some(dir), Ok(stat)) = (here.dir.clone(), &stat) else {
            if let Err(e) = stat {
                self.not_looked_at(path, &e)?;
            }
            return self.unseen_if_any(here, was, Fate::Stays, paths, path);
        };
        let stat = *stat;
        let leads_to_given = paths.is_some_and(Paths::leads_to_given);
        let mut met = Met { dir, name, stat, was, paths, start_dev: here.start_dev };
        if paths.is_some_and(|paths| paths.given) {
            met.start_dev = stat.dev;
            return self.given(path, stat, |this, path| this.save(here, met, path));
        }
        if here.scope == Scope::All {
            // What a restore that was killed had not given its name yet; the next restore removes it.
            if !stat.is_dir() && crate::os::temp::is_ours(&met.name) {
                self.monitor.event(Event::LeftOut { path, why: "of a restore that was cut" });
                return self.unseen_if_any(here, met.was, Fate::Goes, paths, path);
            }
            let excludes = self.narrowed.last().unwrap_or(&self.excludes);
            if !excludes.excludes(path, &stat) {
                self.left_out.met += 1;
                return self.save(here, met, path);
            }
            if self.monitor.interrupted() {
                return Err(Error::Interrupted);
            }
            self.left_out.excluded(path, self.monitor);
            if !leads_to_given {
                return self.unseen_if_any(here, met.was, Fate::Goes, paths, path);
            }
        }
        let fate = if here.scope == Scope::All { Fate::Goes } else { here.fate };
        self.on_the_way(here, met, fate, path)
    }

    /// A name that is looked at only for what was given below it.
    fn on_the_way(&mut self, here: &mut Here<'_>, met: Met<'_>, fate: Fate, path: &mut Vec<u8>) -> Result<()> {
        let fate = match met.paths {
            Some(paths) if paths.kept => {
                self.left_out.keep(path);
                Fate::Stays
            }
            _ => fate,
        };
        let opened = self.open_dirs.open(|| met.dir.open_place(&met.name)).and_then(|dir| Ok((dir.stat()?, dir)));
        match opened {
            Ok((found, dir)) => {
                let (dirno, was) = self.dir_identity(met.was, &met.name)?;
                let visit = Visit {
                    dir,
                    opening: Opening::Place,
                    stat: found,
                    start_dev: found.dev,
                    dirno,
                    parent: here.dirno,
                    name: met.name,
                    was,
                    paths: met.paths,
                    scope: Scope::Way(fate),
                    depth: here.depth + 1,
                };
                drop(met.dir);
                self.descend(here, visit, path)
            }
            Err(e) => {
                self.failed(path, "open", &e)?;
                self.unseen_if_any(here, met.was, Fate::Stays, met.paths, path)
            }
        }
    }

    /// Walks a directory in `here`, and comes back.
    fn descend(&mut self, here: &mut Here<'_>, visit: Visit<'_>, path: &mut Vec<u8>) -> Result<()> {
        let far = here.depth >= self.open_dirs.for_the_walk();
        if far {
            here.dir = None;
        }
        let below = self.directory(visit, path)?;
        if far {
            match self.reopen(here, below, path) {
                Ok(dir) => here.dir = Some(dir),
                Err(e) => self.failed(live::parent_of(path), "open again", &e)?,
            }
        }
        Ok(())
    }

    /// Opens a directory that was closed while the walk was below it: from there, or else from `/`.
    fn reopen(&self, here: &Here<'_>, below: Option<Arc<OpenDir>>, path: &[u8]) -> io::Result<Arc<OpenDir>> {
        let same = |dir: DirFd| match dir.stat()? {
            found if found.same_file(&here.stat) => Ok(dir),
            _ => Err(io::Error::from_raw_os_error(libc::ESTALE)),
        };
        let from_below = |below: Arc<OpenDir>| here.opening.open(&below, b"..").and_then(same);
        self.open_dirs.open(|| match below.map(from_below) {
            Some(Ok(dir)) => Ok(dir),
            _ => {
                let names: Vec<&[u8]> = live::parent_of(path).split(|byte| *byte == b'/').skip(1).collect();
                live::open_place(&names).and_then(|dir| here.opening.open(&dir, b".")).and_then(same)
            }
        })
    }

    /// Saves an entry with all below it.
    fn save(&mut self, here: &mut Here<'_>, met: Met<'_>, path: &mut Vec<u8>) -> Result<()> {
        if self.monitor.interrupted() {
            return Err(Error::Interrupted);
        }
        match met.stat.kind {
            Kind::Dir => self.subdirectory(here, met, path),
            _ => self.leaf(&mut here.level, &met.dir, met.name, met.stat, met.was, path),
        }
    }

    fn subdirectory(&mut self, here: &mut Here<'_>, met: Met<'_>, path: &mut Vec<u8>) -> Result<()> {
        let skip = |stat: &Stat| {
            let magic = || met.dir.open_place(&met.name)?.magic();
            self.boundaries.skip(stat, &here.stat, met.start_dev, magic)
        };
        match skip(&met.stat) {
            Ok(None) => {}
            Ok(Some(why)) => return self.not_entered(here, met, why, path),
            Err(e) => {
                self.failed(path, "look at the mount table for", &e)?;
                return self.unread_directory(here, met, path);
            }
        }
        let opened = self.open_dirs.open(|| met.dir.open_dir(&met.name)).and_then(|dir| Ok((dir.stat()?, dir)));
        let (found, dir) = match opened {
            Ok(opened) => opened,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                self.left_out.vanished += 1;
                return self.unseen_if_any(here, met.was, Fate::Gone, met.paths, path);
            }
            Err(e) => {
                self.failed(path, "open", &e)?;
                return self.unread_directory(here, met, path);
            }
        };
        // What was mounted here, or took its place, since it was listed.
        if !found.same_file(&met.stat)
            && let Ok(Some(why)) = skip(&found)
        {
            return self.not_entered(here, met, why, path);
        }
        let (dirno, was) = self.dir_identity(met.was, &met.name)?;
        let visit = Visit {
            dir,
            opening: Opening::Listing,
            stat: found,
            start_dev: met.start_dev,
            dirno,
            parent: here.dirno,
            name: met.name,
            was,
            paths: met.paths,
            scope: Scope::All,
            depth: here.depth + 1,
        };
        drop(met.dir);
        self.descend(here, visit, path)
    }

    /// A directory in which the walk does not go on. Nothing more is asked of it: that could mount it, or wait for a
    /// server that is gone. Saved as an empty directory, but for what was given below it.
    fn not_entered(&mut self, here: &mut Here<'_>, met: Met<'_>, why: Skip, path: &mut Vec<u8>) -> Result<()> {
        self.left_out.not_entered(path, why, self.monitor);
        if why == Skip::BackupDir {
            return self.unseen_if_any(here, met.was, Fate::Goes, met.paths, path);
        }
        if met.paths.is_some_and(Paths::leads_to_given) {
            return self.on_the_way(here, met, Fate::Goes, path);
        }
        match (met.was, met.paths) {
            (Some(was), Some(paths)) if paths.kept => self.unseen(&mut here.level, was, Fate::Stays, Some(paths), path),
            (was, paths) => self.emptied(here, Met { was, paths, ..met }, Xattrs::new(), path),
        }
    }

    /// A directory that can't be read keeps its state, if it had one.
    fn unread_directory(&mut self, here: &mut Here<'_>, met: Met<'_>, path: &mut Vec<u8>) -> Result<()> {
        if met.paths.is_some_and(Paths::leads_to_given) {
            return self.on_the_way(here, met, Fate::Stays, path);
        }
        match met.was {
            Some(was) if was.entry.kind == Kind::Dir => self.unseen(&mut here.level, was, Fate::Stays, met.paths, path),
            was => {
                let xattrs = self.xattrs(path, xattr::Subject::At(&met.dir, &met.name))?;
                self.emptied(here, Met { was, ..met }, xattrs, path)
            }
        }
    }

    /// A directory without what it holds, but for what earlier runs were given.
    fn emptied(&mut self, here: &mut Here<'_>, met: Met<'_>, xattrs: Xattrs, path: &mut Vec<u8>) -> Result<()> {
        let (dirno, row) = self.dir_identity(met.was, &met.name)?;
        self.only_kept(dirno, here.dirno, met.name, row, met.paths, path, (live::attr(&met.stat), xattrs))
    }

    fn unseen_if_any(
        &mut self,
        here: &mut Here<'_>,
        was: Option<PrevChild>,
        fate: Fate,
        paths: Option<&Paths>,
        path: &mut Vec<u8>,
    ) -> Result<()> {
        was.map_or(Ok(()), |was| self.unseen(&mut here.level, was, fate, paths, path))
    }

    /// Something that is there could not be asked what it is.
    fn not_looked_at(&mut self, path: &[u8], e: &io::Error) -> Result<()> {
        // A walk that stays on its file system has no business in another.
        if self.boundaries.crossing() == Crossing::Stay && live::is_mount_point(path).unwrap_or(false) {
            self.left_out.not_entered(path, Skip::OtherFileSystem, self.monitor);
            return Ok(());
        }
        self.failed(path, "stat", e)
    }

    /// The number of a directory: that of the version before if the name was a directory there too.
    pub(super) fn dir_identity(&mut self, was: Option<PrevChild>, name: &[u8]) -> Result<(Dirno, Option<DirRow>)> {
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

    pub(super) fn enter(
        &mut self,
        dirno: Dirno,
        parent: Dirno,
        name: Vec<u8>,
        was: Option<DirRow>,
        names: Names,
    ) -> Result<()> {
        let known = was.is_some();
        self.send(Step::Enter { dirno, parent, name, was: was.map(|row| row.state), names, known })
    }

    pub(super) fn leave(&mut self, attr: Attr, xattrs: Xattrs, kept: Kept) -> Result<()> {
        let Kept { entries, dirs, totals } = kept;
        self.send(Step::Leave { attr, xattrs, kept: entries, kept_dirs: dirs, totals })
    }

    fn xattrs(&self, path: &[u8], of: xattr::Subject<'_>) -> Result<Xattrs> {
        let (xattrs, failed) = live::readable_xattrs(of);
        if let Some(error) = failed {
            self.send(Step::Incomplete { path: path.to_vec(), error })?;
        }
        Ok(xattrs)
    }

    pub(super) fn new_logid(&mut self) -> Logid {
        self.next_logid += 1;
        Logid(self.next_logid - 1)
    }

    /// Tells what could not be saved; the run goes on, unless the next file would fare no better.
    pub(super) fn failed(&self, path: &[u8], op: &'static str, e: &io::Error) -> Result<()> {
        let path = if path.is_empty() { b"/" } else { path };
        let error = Error::io(op, live::path_of(path), e);
        if error.is_lack_of_descriptors() {
            return Err(error);
        }
        self.send(Step::Failed { path: path.to_vec(), error })
    }

    fn warn(&self, path: &[u8], what: &str) -> Result<()> {
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

/// What is to be looked at, in byte order of the names: all that was listed, and what leads to a path that was given,
/// listed or not.
fn entries(dir: &DirFd, listing: Option<live::Listing>, paths: Option<&Paths>) -> Vec<(Vec<u8>, io::Result<Stat>)> {
    let live::Listing { entries, failed } = listing.unwrap_or_default();
    let mut all: Vec<_> = entries.into_iter().map(|(name, stat)| (name, Ok(stat))).collect();
    let named = paths.into_iter().flat_map(Paths::given_children);
    let unlisted: Vec<&Vec<u8>> = named
        .filter(|name| all.binary_search_by(|(listed, _)| listed.cmp(name)).is_err())
        .filter(|name| !failed.iter().any(|(listed, _)| listed == *name))
        .collect();
    let unlisted = unlisted.into_iter().map(|name| (name.clone(), dir.stat_at(name)));
    let more: Vec<_> = failed.into_iter().map(|(name, e)| (name, Err(e))).chain(unlisted).collect();
    if !more.is_empty() {
        all.extend(more);
        all.sort_by(|a, b| a.0.cmp(&b.0));
    }
    all
}
