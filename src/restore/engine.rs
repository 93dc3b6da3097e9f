//! The walk of a restore: directories on a stack (depth has no limit but open files), entries one by one.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::attributes::{self, Failed};
use super::target;
use super::{Decision, Extra, Options, Report, Source, Spare, Target, Why};
use crate::catalog::codec::valid_name;
use crate::catalog::{Child, DirState, Kind};
use crate::error::{Error, Result};
use crate::ids::{Dirno, Logid};
use crate::monitor::{Event, Monitor, Progress};
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
    dir: DirFd,
    stat: Stat,
    /// None if it is lost.
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
    confirm: &'a mut dyn FnMut(&Path) -> Decision,
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
    pub report: Report,
}

impl<'a> Restore<'a> {
    pub fn new(
        source: &'a dyn Source,
        options: &Options,
        monitor: &'a dyn Monitor,
        confirm: &'a mut dyn FnMut(&Path) -> Decision,
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
            report: Report::default(),
        })
    }

    pub fn run(mut self, paths: &[Vec<u8>]) -> Result<Report> {
        let mut found = Vec::new();
        let mut first = None;
        for path in paths {
            match parse_path(path).and_then(|names| Ok((path, names, self.source.find(path)?))) {
                Ok(known) => found.push(known),
                Err(error) => {
                    self.fail(path.clone(), &error);
                    first.get_or_insert(error);
                }
            }
        }
        if let (true, Some(error)) = (found.is_empty(), first) {
            return Err(error);
        }
        for (path, names, child) in found {
            self.place.clear();
            match self.path(path, names, child) {
                Ok(()) => {}
                Err(Error::Interrupted) => {
                    self.report.interrupted = true;
                    break;
                }
                Err(error) => {
                    let ends = ends_all(&error);
                    self.fail(path.clone(), &error);
                    if ends {
                        self.report.stopped = Some(error);
                        break;
                    }
                }
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
            let level = self.level(base, None, dirno, Some(state), Border::Top)?;
            return self.tree(level);
        };
        let mut made = Vec::new();
        let parent = match self.target {
            Target::Below(_) => {
                self.prefix = names.iter().flat_map(|name| [b"/", name.as_slice()].concat()).collect();
                Ok(base)
            }
            Target::Original => {
                self.prefix.clear();
                self.open_parents(base, &names, &mut made)
            }
        };
        let result = parent.and_then(|parent| match child {
            Child::Node(logid) => self.entry(&parent, &name, logid),
            Child::Dir(dirno) => match self.enter(&parent, &name, dirno, Border::Top)? {
                Some(level) => self.tree(level),
                None => Ok(()),
            },
        });
        // The place now leads to the last parent that was opened.
        for (dir, state) in made.iter().rev() {
            let failed = attributes::apply(dir, &state.attr, &state.xattrs);
            self.note_failed(None, failed);
            self.report.dirs += 1;
            self.place.pop();
        }
        result
    }

    /// Opens the directories that lead to an original place; makes absent ones and puts them in `made`.
    fn open_parents(&mut self, base: DirFd, names: &[Vec<u8>], made: &mut Vec<(DirFd, DirState)>) -> Result<DirFd> {
        let mut dir = base;
        for name in names {
            let path = self.target_path(Some(name));
            let opened = match dir.open_dir(name) {
                Err(error) if error.raw_os_error() == Some(libc::EACCES) => dir.open_place(name),
                other => other,
            };
            let next = match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let Child::Dir(dirno) = self.source.find(&self.saved_path(Some(name)))? else {
                        return Err(no_name(name));
                    };
                    let state = self.source.dir(dirno)?;
                    let next = dir.mkdir_at(name, 0o700).and_then(|()| dir.open_dir(name));
                    let next = next.map_err(|error| Error::io("make", &path, &error))?;
                    made.push((next.try_clone().map_err(|error| Error::io("open", &path, &error))?, state));
                    next
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {
                    let what = "a parent of the original place is no directory now; restore with --to".into();
                    return Err(Error::Unsupported { path, what });
                }
                other => other.map_err(|error| Error::io("open", &path, &error))?,
            };
            let stat = next.stat().map_err(|error| Error::io("stat", &path, &error))?;
            self.spare.refuse(&dir, name, Some(&stat), &path)?;
            dir = next;
            self.place.push(name.clone());
        }
        Ok(dir)
    }

    fn tree(&mut self, first: Level) -> Result<()> {
        let mut stack = vec![first];
        let result = self.levels(&mut stack);
        // Whatever ended it, directories that were begun get their attributes.
        while let Some(level) = stack.pop() {
            self.leave(level, Extra::Keep);
        }
        result
    }

    fn levels(&mut self, stack: &mut Vec<Level>) -> Result<()> {
        while let Some(level) = stack.last_mut() {
            if self.monitor.interrupted() {
                return Err(Error::Interrupted);
            }
            let Some((name, child)) = level.entries.next() else {
                if let Some(level) = stack.pop() {
                    self.leave(level, self.extra);
                }
                continue;
            };
            if level.fresh {
                level.ahead = match level.ahead.checked_sub(1) {
                    Some(left) => left,
                    None => self.look_ahead(level.entries.as_slice()),
                };
            }
            let result = match child {
                Child::Node(logid) => {
                    let result = self.entry(&level.dir, &name, logid);
                    match &mut level.keep {
                        Some(keep) => keep.extend(self.new_names.drain(..)),
                        None => self.new_names.clear(),
                    }
                    result
                }
                Child::Dir(dirno) => match self.enter(&level.dir, &name, dirno, Border::Below(level.deletes_on)) {
                    Ok(entered) => {
                        stack.extend(entered);
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = result {
                if ends_all(&error) {
                    return Err(error);
                }
                self.fail(self.saved_path(Some(&name)), &error);
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
    fn enter(&mut self, parent: &DirFd, name: &[u8], dirno: Dirno, border: Border) -> Result<Option<Level>> {
        check_name(name)?;
        let path = self.target_path(Some(name));
        let state = match self.source.dir(dirno) {
            Ok(state) => Some(state),
            Err(error) => {
                self.fail(self.saved_path(Some(name)), &error);
                None
            }
        };
        let now = existing(parent, name).map_err(|error| Error::io("stat", &path, &error))?;
        self.spare.refuse(parent, name, now.as_ref(), &path)?;
        let make = || parent.mkdir_at(name, 0o700).map_err(|error| Error::io("make", &path, &error));
        match now {
            None => make()?,
            Some(stat) if stat.is_dir() => {}
            Some(_) => {
                if !self.may_replace(&path)? {
                    return Ok(None);
                }
                parent.unlink_at(name).map_err(|error| Error::io("remove", &path, &error))?;
                make()?;
            }
        }
        let dir = match parent.open_dir(name) {
            // Ours, but without the right to read it; it gets its saved mode in the end.
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                parent.chmod_at(name, 0o700).and_then(|()| parent.open_dir(name))
            }
            other => other,
        };
        let dir = dir.map_err(|error| Error::io("open", &path, &error))?;
        let fresh = !now.is_some_and(|now| now.is_dir());
        Ok(Some(Level { fresh, ..self.level(dir, Some(name), dirno, state, border)? }))
    }

    fn level(
        &mut self,
        dir: DirFd,
        name: Option<&[u8]>,
        dirno: Dirno,
        state: Option<DirState>,
        border: Border,
    ) -> Result<Level> {
        let path = self.target_path(name);
        let stat = dir.stat().map_err(|error| Error::io("stat", &path, &error))?;
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
        Ok(Level {
            dir,
            stat,
            state,
            entries: names.entries.into_iter(),
            fresh: false,
            ahead: 0,
            deletes_on,
            keep,
            named: name.is_some(),
        })
    }

    fn leave(&mut self, level: Level, extra: Extra) {
        if let (Extra::Delete, Some(keep)) = (extra, &level.keep) {
            self.delete_extra(&level.dir, &level.stat, keep);
        }
        if let Some(state) = &level.state {
            let failed = attributes::apply(&level.dir, &state.attr, &state.xattrs);
            self.note_failed(None, failed);
        }
        self.report.dirs += 1;
        if level.named {
            self.place.pop();
        }
    }

    /// Asks whether what is at `path` may be replaced; counts a no.
    pub fn may_replace(&mut self, path: &Path) -> Result<bool> {
        if self.always {
            return Ok(true);
        }
        match (self.confirm)(path) {
            Decision::Yes => Ok(true),
            Decision::All => {
                self.always = true;
                Ok(true)
            }
            Decision::No => {
                self.report.kept += 1;
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

    pub fn note_failed(&mut self, name: Option<&[u8]>, failed: Vec<Failed>) {
        for (op, error) in failed {
            let error = Error::io(op, self.target_path(name), &error);
            self.fail(self.saved_path(name), &error);
        }
    }

    pub fn fail(&mut self, path: Vec<u8>, error: &Error) {
        self.monitor.event(Event::Failure { path: &path, error });
        self.report.error_count += 1;
        self.report.damage_in_errors |= error.is_damage();
        if self.report.errors.len() < super::MAX_LISTED {
            self.report.errors.push((path, error.clone()));
        }
    }

    pub fn show_progress(&self) {
        self.monitor.progress(Progress {
            files: self.report.files,
            bytes: self.report.bytes,
            errors: self.report.error_count + self.report.damaged_count,
            ..Progress::default()
        });
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

/// True for what all that follows would meet too.
fn ends_all(error: &Error) -> bool {
    match error {
        Error::Interrupted => true,
        Error::Io { errno, .. } => matches!(*errno, libc::ENOSPC | libc::EDQUOT | libc::EROFS),
        _ => false,
    }
}
