//! The walk of a restore: directories on a stack, entries one by one.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::attributes;
use super::descent::{Descent, reopen};
use super::leftovers::sweep;
use super::{Decision, Extra, Options, Question, Report, Source, Spare, Target, Totals, Why, target};
use crate::catalog::codec::valid_name;
use crate::catalog::{Child, DirState, Kind};
use crate::error::{Error, Result};
use crate::ids::{Dirno, Logid};
use crate::monitor::Monitor;
use crate::os::{DirFd, Stat, file, process};

/// Entries whose blocks are asked for at once, and the largest file for which that is done.
const LOOK_AHEAD: usize = 64;
const SMALL_BYTES: u64 = 256 << 10;

/// A file with several links that was restored, to link the other names to.
#[derive(Debug, Clone)]
pub(super) struct Made {
    /// Names from the base directory down.
    pub place: Vec<Vec<u8>>,
    pub stat: Stat,
    /// It is at a `.damaged` name; position in the report's list.
    pub damaged: bool,
}

/// A directory that is being restored.
struct Level {
    /// None if it is lost, or if the directory is to keep the attributes that it has.
    state: Option<DirState>,
    entries: std::vec::IntoIter<(Vec<u8>, Child)>,
    /// The directory was made just now: all its files will be read.
    fresh: bool,
    /// Entries from here on whose blocks were asked for.
    ahead: usize,
    /// Device of the file system that `--delete` may work on here and below; None where it may not.
    deletes_on: Option<u64>,
    /// What `--delete` must not touch; None when nothing may be deleted here.
    keep: Option<HashSet<Vec<u8>>>,
    /// Its name is the last one of the place.
    named: bool,
}

/// A parent of an original place, from the first that was made on.
struct Parent {
    /// What is above it.
    above: Stat,
    /// None if it was there.
    state: Option<DirState>,
}

/// A directory that was opened to be restored.
struct Entered {
    dir: DirFd,
    stat: Stat,
    level: Level,
}

/// Where a directory stands, for `--delete`: it must not empty what is mounted in the tree, which a backup saves as
/// an empty directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Border {
    /// A path that was asked for, or the target itself.
    Top,
    /// In a directory whose `deletes_on` is this.
    Below(Option<u64>),
}

impl Border {
    /// `deletes_on` of a directory; `empty` if the version has nothing in it.
    fn deletes_on(self, stat: &Stat, empty: bool) -> Option<u64> {
        let inside = match self {
            // Asked for by name; but an empty one may be a mount point that was not entered.
            Border::Top => !(stat.mount_root && empty),
            Border::Below(above) => above == Some(stat.dev) && !stat.mount_root,
        };
        inside.then_some(stat.dev)
    }
}

pub(super) struct Restore<'a> {
    pub source: &'a dyn Source,
    pub monitor: &'a dyn Monitor,
    confirm: &'a mut dyn FnMut(Question<'_>) -> Decision,
    always: bool,
    target: Target,
    pub extra: Extra,
    pub spare: Spare,
    pub base: DirFd,
    base_path: PathBuf,
    /// Path in the version of what the base directory stands for; empty for `/`.
    prefix: Vec<u8>,
    /// Length of the path in the version that is being restored.
    pub asked_bytes: usize,
    /// Names from the base directory to the directory that is being restored.
    pub place: Vec<Vec<u8>>,
    pub made: HashMap<Logid, Made>,
    /// Names of damaged files that were just written.
    pub new_names: Vec<Vec<u8>>,
    /// A file that was made without a name can be given one later.
    pub can_name_later: bool,
    /// A write failed for want of space.
    pub was_full: bool,
    /// Errors of a target that takes no more.
    pub full_count: u64,
    /// Files and bytes that need no more work.
    pub so_far: Totals,
    pub report: Report,
}

impl<'a> Restore<'a> {
    pub fn new(
        source: &'a dyn Source,
        options: &Options,
        monitor: &'a dyn Monitor,
        confirm: &'a mut dyn FnMut(Question<'_>) -> Decision,
    ) -> Result<Restore<'a>> {
        let (base, base_path) = match &options.target {
            Target::Below(dir) => (target::open(dir, &options.spare)?, dir.clone()),
            Target::Original => {
                let root = PathBuf::from("/");
                (DirFd::open(&root).map_err(|error| Error::io("open", &root, &error))?, root)
            }
        };
        Ok(Restore {
            source,
            monitor,
            confirm,
            always: false,
            target: options.target.clone(),
            extra: options.extra,
            spare: options.spare.clone(),
            base,
            base_path,
            prefix: Vec::new(),
            asked_bytes: 0,
            place: Vec::new(),
            made: HashMap::new(),
            new_names: Vec::new(),
            can_name_later: process::geteuid() == 0 || Path::new("/proc/self/fd").exists(),
            was_full: false,
            full_count: 0,
            so_far: Totals::default(),
            report: Report::default(),
        })
    }

    pub fn run(mut self, paths: &[Vec<u8>]) -> Result<Report> {
        let mut found = Vec::new();
        let mut missing = Vec::new();
        for path in paths {
            match parse_path(path).and_then(|names| Ok((path, names, self.source.find(path)?))) {
                Ok(known) => found.push(known),
                Err(error) => missing.push((path.clone(), error)),
            }
        }
        // Where there is nothing to restore the last one ends it, and is told by whoever asked.
        let ends_it = if found.is_empty() { missing.pop() } else { None };
        missing.into_iter().for_each(|(path, error)| self.fail(path, &error));
        if let Some((_, error)) = ends_it {
            return Err(error);
        }
        if self.monitor.wants_totals() {
            let mut expected = Totals::default();
            for (_, _, child) in &found {
                expected.add(self.source.totals(*child, &|| self.monitor.interrupted()));
            }
            // A sum that was cut short is none.
            self.report.expected = (!self.monitor.interrupted()).then_some(expected);
        }
        if matches!(self.target, Target::Below(_)) {
            sweep(&self.base);
        }
        for (path, names, child) in found {
            self.place.clear();
            match self.path(path, names, child) {
                Ok(()) => {}
                Err(Error::Interrupted) => {
                    self.report.interrupted = true;
                    break;
                }
                Err(error) => self.fail_with_all_below(path.clone(), child, &error),
            }
        }
        Ok(self.report)
    }

    fn path(&mut self, path: &[u8], mut names: Vec<Vec<u8>>, child: Child) -> Result<()> {
        let base = self.base.try_clone().map_err(|error| Error::io("open", &self.base_path, &error))?;
        self.asked_bytes = names.iter().map(|name| 1 + name.len()).sum();
        let Some(name) = names.pop() else {
            let Child::Dir(dirno) = child else { return Err(no_name(path)) };
            self.prefix.clear();
            let state = self.source.dir(dirno)?;
            let stat = base.stat().map_err(|error| Error::io("stat", &self.base_path, &error))?;
            let entered = self.level(base, stat, None, dirno, Some(state), Border::Top)?;
            return self.tree(entered);
        };
        let mut made = Vec::new();
        let parent = match self.target {
            Target::Below(_) => {
                self.prefix = names.iter().flat_map(|name| [b"/", name.as_slice()].concat()).collect();
                base
            }
            Target::Original => {
                self.prefix.clear();
                let (parent, opened) = self.open_parents(base, &names, &mut made);
                if let Err(error) = opened {
                    // What was made on the way gets its attributes all the same.
                    self.leave_parents(parent, made);
                    return Err(error);
                }
                sweep(&parent);
                parent
            }
        };
        let result = match child {
            Child::Node(logid) => self.entry(&parent, &name, logid),
            Child::Dir(dirno) => match self.enter(&parent, &name, dirno, Border::Top) {
                Ok(Some(entered)) => self.tree(entered),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            },
        };
        self.leave_parents(parent, made);
        result
    }
    /// Opens the directories that lead to an original place and makes absent ones; gives the last that could be opened.
    ///
    /// `made` gets, from the first that was made on, what was above each and the attributes of those that were made.
    fn open_parents(&mut self, base: DirFd, names: &[Vec<u8>], made: &mut Vec<Parent>) -> (DirFd, Result<()>) {
        let mut dir = base;
        for name in names {
            match self.open_parent(&dir, name) {
                Ok((next, above, state)) => {
                    if state.is_some() || !made.is_empty() {
                        made.push(Parent { above, state });
                    }
                    dir = next;
                    self.place.push(name.clone());
                }
                Err(error) => return (dir, Err(error)),
            }
        }
        (dir, Ok(()))
    }

    fn open_parent(&self, dir: &DirFd, name: &[u8]) -> Result<(DirFd, Stat, Option<DirState>)> {
        let path = self.target_path(Some(name));
        let fail = |op, error: io::Error| Error::io(op, &path, &error);
        let above = dir.stat().map_err(|error| fail("stat", error))?;
        let opened = match dir.open_dir(name) {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => dir.open_place(name),
            other => other,
        };
        let (next, state) = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.spare.refuse(dir, name, None, &path)?;
                let Child::Dir(dirno) = self.source.find(&self.saved_path(Some(name)))? else {
                    return Err(no_name(name));
                };
                let state = self.source.dir(dirno)?;
                let next = dir.mkdir_at(name, 0o700).and_then(|()| dir.open_dir(name));
                (next.map_err(|error| fail("make", error))?, Some(state))
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {
                let what = "a parent of the original place is no directory now; restore with --to".into();
                return Err(Error::Unsupported { path, what });
            }
            other => (other.map_err(|error| fail("open", error))?, None),
        };
        let stat = next.stat().map_err(|error| fail("stat", error))?;
        self.spare.refuse(dir, name, Some(&stat), &path)?;
        Ok((next, above, state))
    }

    /// Gives the parents that were made their attributes, from `dir`, the lowest, up.
    fn leave_parents(&mut self, mut dir: DirFd, made: Vec<Parent>) {
        for Parent { above, state } in made.into_iter().rev() {
            // Before the attributes close the way.
            let up = reopen(&dir, &above);
            if let Some(state) = state {
                let failed = attributes::apply(&dir, &state.attr, &state.xattrs);
                self.note_failed(None, failed);
                self.report.dirs += 1;
            }
            self.place.pop();
            match up {
                Ok(up) => dir = up,
                Err(error) => {
                    let error = Error::io("open", self.target_path(None), &error);
                    return self.fail(self.saved_path(None), &error);
                }
            }
        }
    }

    fn tree(&mut self, first: Entered) -> Result<()> {
        let mut stack = Descent::new();
        stack.push(first.dir, first.stat, first.level);
        let result = self.levels(&mut stack);
        // Whatever ended it, directories that were begun get their attributes.
        while !stack.is_empty() {
            self.leave(&mut stack, Extra::Keep);
        }
        result
    }

    fn levels(&mut self, stack: &mut Descent<Level>) -> Result<()> {
        while let Some((dir, _, level)) = stack.last() {
            if self.monitor.interrupted() {
                return Err(Error::Interrupted);
            }
            let Some((name, child)) = level.entries.next() else {
                self.leave(stack, self.extra);
                continue;
            };
            let dir = match dir {
                Ok(dir) => dir,
                Err(error) => {
                    let error = Error::io("open again", self.target_path(None), &error);
                    self.fail_with_all_below(self.saved_path(Some(&name)), child, &error);
                    continue;
                }
            };
            if level.fresh {
                level.ahead = match level.ahead.checked_sub(1) {
                    Some(left) => left,
                    None => self.look_ahead(level.entries.as_slice()),
                };
            }
            let result = match child {
                Child::Node(logid) => {
                    let result = self.entry(dir, &name, logid);
                    match &mut level.keep {
                        Some(keep) => keep.extend(self.new_names.drain(..)),
                        None => self.new_names.clear(),
                    }
                    result
                }
                Child::Dir(dirno) => match self.enter(dir, &name, dirno, Border::Below(level.deletes_on)) {
                    Ok(Some(Entered { dir, stat, level })) => {
                        stack.push(dir, stat, level);
                        Ok(())
                    }
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                },
            };
            match result {
                Ok(()) => {}
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(error) => self.fail_with_all_below(self.saved_path(Some(&name)), child, &error),
            }
        }
        Ok(())
    }

    /// Has the small files among the next entries decoded by other threads; gives for how many entries that is.
    fn look_ahead(&self, entries: &[(Vec<u8>, Child)]) -> usize {
        let next = entries.get(..LOOK_AHEAD).unwrap_or(entries);
        let mut pieces = Vec::new();
        for (_, child) in next {
            let Child::Node(logid) = child else { continue };
            let Ok(node) = self.source.node(*logid) else { continue };
            if node.attr.kind == Kind::File && (1..=SMALL_BYTES).contains(&node.attr.size) {
                pieces.extend(self.source.pieces(&node, 0, node.attr.size).unwrap_or_default());
            }
        }
        self.source.prefetch(&pieces, None);
        next.len()
    }

    /// Makes or opens a directory; None if the user keeps what is in its place.
    fn enter(&mut self, parent: &DirFd, name: &[u8], dirno: Dirno, border: Border) -> Result<Option<Entered>> {
        check_name(name)?;
        let path = self.target_path(Some(name));
        let mut state = match self.source.dir(dirno) {
            Ok(state) => Some(state),
            Err(error) => {
                self.fail(self.saved_path(Some(name)), &error);
                None
            }
        };
        let now = existing(parent, name).map_err(|error| Error::io("stat", &path, &error))?;
        self.spare.refuse(parent, name, now.as_ref(), &path)?;
        let make = || parent.mkdir_at(name, 0o700).map_err(|error| Error::io("make", &path, &error));
        let fresh = match now {
            None => {
                make()?;
                true
            }
            Some(stat) if stat.is_dir() => false,
            Some(_) => {
                if !self.may_replace(&path)? {
                    self.report.missing += self.below_dir(dirno).entries - 1;
                    return Ok(None);
                }
                parent.unlink_at(name).map_err(|error| Error::io("remove", &path, &error))?;
                make()?;
                true
            }
        };
        let fail = |error: io::Error| Error::io("open", &path, &error);
        let place = parent.open_place(name).map_err(fail)?;
        let stat = place.stat().map_err(fail)?;
        // With --orig the user named this very place.
        if let (false, Target::Below(_), Some(saved)) = (fresh, &self.target, &state)
            && attributes::would_change(&place, &stat, &saved.attr, &saved.xattrs)
            && !self.may_change(&path)?
        {
            state = None;
        }
        let dir = match place.open_dir(b".") {
            // Ours, but without the right to read it; it gets its saved mode in the end.
            Err(error) if error.raw_os_error() == Some(libc::EACCES) && state.is_some() => {
                file::chmod(&place, 0o700).and_then(|()| place.open_dir(b"."))
            }
            other => other,
        };
        let dir = dir.map_err(fail)?;
        if let Some(saved) = &state {
            attributes::narrow(&dir, &stat, &saved.attr);
        }
        if !fresh {
            sweep(&dir);
        }
        let entered = self.level(dir, stat, Some(name), dirno, state, border)?;
        Ok(Some(Entered { level: Level { fresh, ..entered.level }, ..entered }))
    }

    fn level(
        &mut self,
        dir: DirFd,
        stat: Stat,
        name: Option<&[u8]>,
        dirno: Dirno,
        state: Option<DirState>,
        border: Border,
    ) -> Result<Entered> {
        let path = self.target_path(name);
        if state.is_some() && stat.perm & 0o700 != 0o700 && process::geteuid() == stat.uid && stat.uid != 0 {
            file::chmod(&dir, u32::from(stat.perm) | 0o700).map_err(|error| Error::io("chmod", &path, &error))?;
        }
        let names = self.source.names(dirno);
        if let Some(error) = &names.incomplete {
            self.fail(self.saved_path(name), error);
        }
        let deletes = self.extra == Extra::Delete;
        let deletes_on = border.deletes_on(&stat, names.entries.is_empty());
        if deletes && deletes_on.is_none() && border != Border::Below(None) {
            self.note_spared(path, Why::OtherFileSystem);
        }
        let keep = (deletes && deletes_on.is_some() && names.incomplete.is_none())
            .then(|| names.entries.iter().map(|(name, _)| name.clone()).collect());
        self.place.extend(name.map(<[u8]>::to_vec));
        let level = Level {
            state,
            entries: names.entries.into_iter(),
            fresh: false,
            ahead: 0,
            deletes_on,
            keep,
            named: name.is_some(),
        };
        Ok(Entered { dir, stat, level })
    }

    /// Goes up; the directory that is left gets its attributes.
    fn leave(&mut self, stack: &mut Descent<Level>, extra: Extra) {
        let Some((dir, stat, level)) = stack.pop() else { return };
        match dir {
            Ok(dir) => {
                if let (Extra::Delete, Some(keep)) = (extra, &level.keep) {
                    self.delete_extra(&dir, &stat, keep);
                }
                if let Some(state) = &level.state {
                    let failed = attributes::apply(&dir, &state.attr, &state.xattrs);
                    self.note_failed(None, failed);
                }
                self.report.dirs += 1;
            }
            Err(error) => {
                let error = Error::io("open again", self.target_path(None), &error);
                self.fail(self.saved_path(None), &error);
            }
        }
        if level.named {
            self.place.pop();
        }
    }

    /// Asks whether what is at `path` may be replaced; counts a no.
    pub fn may_replace(&mut self, path: &Path) -> Result<bool> {
        self.ask(Question::Replace(path), path)
    }

    /// Asks whether the directory at `path` may get the saved attributes; counts a no.
    fn may_change(&mut self, path: &Path) -> Result<bool> {
        self.ask(Question::Change(path), path)
    }

    fn ask(&mut self, question: Question<'_>, path: &Path) -> Result<bool> {
        if self.always {
            return Ok(true);
        }
        match (self.confirm)(question) {
            Decision::Yes => Ok(true),
            Decision::All => {
                self.always = true;
                Ok(true)
            }
            Decision::No => {
                self.report.kept_count += 1;
                if self.report.kept.len() < super::MAX_LISTED {
                    self.report.kept.push(path.into());
                }
                Ok(false)
            }
            Decision::Quit => Err(Error::Interrupted),
        }
    }

    /// Path in the version of an entry of the current directory, or of that itself.
    pub fn saved_path(&self, name: Option<&[u8]>) -> Vec<u8> {
        let mut path = self.prefix.clone();
        for name in self.place.iter().map(Vec::as_slice).chain(name) {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() { b"/".to_vec() } else { path }
    }

    /// Path on disk of an entry of the current directory, or of that itself; for messages and questions.
    pub fn target_path(&self, name: Option<&[u8]>) -> PathBuf {
        let mut path = self.base_path.clone();
        path.extend(self.place.iter().map(Vec::as_slice).chain(name).map(OsStr::from_bytes));
        path
    }
}

/// The names of a path in the version.
fn parse_path(path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.map(|name| check_name(name).map(|()| name.to_vec())).collect()
}

/// Attributes of an entry, None if there is none.
pub(super) fn existing(parent: &DirFd, name: &[u8]) -> io::Result<Option<Stat>> {
    match parent.stat_at(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Refuses what would lead out of the target directory, whatever a catalog says.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if valid_name(name) { Ok(()) } else { Err(no_name(name)) }
}

fn no_name(name: &[u8]) -> Error {
    Error::Unsupported { path: PathBuf::from(OsStr::from_bytes(name)), what: "not the name of an entry".into() }
}
