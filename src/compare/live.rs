//! A version and the live tree, side by side.
//!
//! Invariants: the source is only read, name by name from `/` on, as a backup reads it, and no further: what patterns leave
//! out and what is on other file systems counts only where the version has it; a file that changes while it is compared is
//! told as that; where bytes are compared, all bytes of both sides are.

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::side::{Side, entry_at};
use super::{Change, Letter, Met, Scope, Verdict, Visit, What, attributes, xattrs};
use crate::catalog::{Attr, Child, Kind, Node};
use crate::error::{Error, Result};
use crate::ids::{Dirno, Version};
use crate::index::Entry;
use crate::live::{self, Boundaries, Excludes};
use crate::os::{DirFd, Stat, xattr};
use crate::reader::file::{self, Lost};
use crate::reader::{Backup, Sha1, Sink};

/// What of files is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// Sizes, times and attributes.
    Stat,
    /// And every byte.
    Bytes,
}

/// A version and what the source is now.
pub struct Live<'a> {
    pub backup: &'a Backup,
    pub version: Version,
    pub files: Files,
    pub boundaries: &'a Boundaries,
    pub excludes: &'a Excludes,
    /// Asked at each name; true ends it.
    pub stop: &'a dyn Fn() -> bool,
}

/// Something in the source.
struct Here {
    dir: Arc<DirFd>,
    name: Vec<u8>,
    stat: io::Result<Stat>,
    /// The file system on which the path that was asked for stands.
    start_dev: u64,
}

/// The names of a directory of the source.
struct Names {
    dir: Arc<DirFd>,
    start_dev: u64,
    names: std::iter::Peekable<std::vec::IntoIter<(Vec<u8>, io::Result<Stat>)>>,
}

/// A directory that both, or one of them, have.
struct Open {
    side: Option<Side>,
    here: Option<Names>,
    path_len: usize,
}

impl Live<'_> {
    /// Compares what a path is in the version and in the source, and all below it.
    ///
    /// # Errors
    /// `NO_PATH` if neither has it; `Interrupted`; those of `visit`.
    pub fn below(&self, path: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        let stored = entry_at(&self.backup.tree, self.version, path)?;
        let here = match live::open_path(&live::path_of(path)) {
            Ok(found) => {
                let start_dev = found.stat.dev;
                Some(Here { dir: Arc::new(found.parent), name: found.name, stat: Ok(found.stat), start_dev })
            }
            Err(Error::Io { errno: libc::ENOENT | libc::ENOTDIR, .. }) => None,
            Err(error) => return visit(path, Met::Failed(&error)),
        };
        if stored.is_none() && here.is_none() {
            return Err(Error::NoPath { path: path.to_vec(), version: self.version });
        }
        let mut at = if path == b"/" { Vec::new() } else { path.to_vec() };
        let mut open: Vec<Open> = Vec::new();
        self.pair(stored, here, None, &at, &mut open, visit)?;
        while let Some(dir) = open.last_mut() {
            if (self.stop)() {
                return Err(Error::Interrupted);
            }
            at.truncate(dir.path_len);
            match self.next(dir) {
                Ok(None) => drop(open.pop()),
                Ok(Some((stored, here))) => {
                    let name = stored.as_ref().map(|(_, entry)| &entry.name).or(here.as_ref().map(|here| &here.name));
                    at.push(b'/');
                    at.extend_from_slice(name.map_or(&[][..], Vec::as_slice));
                    let parent = open.last().and_then(|dir| dir.here.as_ref()).map(|names| names.dir.clone());
                    self.pair(stored, here, parent.as_deref(), &at, &mut open, visit)?;
                }
                Err(error) => {
                    open.pop();
                    visit(&at, Met::Failed(&error))?;
                }
            }
        }
        Ok(())
    }

    /// The next name of either side.
    #[expect(clippy::type_complexity, reason = "the two sides of one name")]
    fn next(&self, dir: &mut Open) -> Result<Option<(Option<(Dirno, Entry)>, Option<Here>)>> {
        let stored = dir.side.as_ref().and_then(Side::peek);
        let here = dir.here.as_mut().and_then(|names| names.names.peek()).map(|(name, _)| name.as_slice());
        let order = match (stored, here) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.cmp(other),
        };
        let found = match &mut dir.side {
            Some(side) if order != Ordering::Greater => side.take(&self.backup.tree)?,
            _ => None,
        };
        let mut met = None;
        if order != Ordering::Less
            && let Some(names) = &mut dir.here
            && let Some((name, stat)) = names.names.next()
        {
            met = Some(Here { dir: names.dir.clone(), name, stat, start_dev: names.start_dev });
        }
        Ok(Some((found, met)))
    }

    /// One name; `parent` is the directory of the source that it is in, if it is below another.
    fn pair(
        &self,
        stored: Option<(Dirno, Entry)>,
        here: Option<Here>,
        parent: Option<&DirFd>,
        path: &[u8],
        open: &mut Vec<Open>,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        let here = match here {
            None => None,
            Some(Here { stat: Err(error), .. }) => {
                return visit(path, Met::Failed(&Error::io("look at", live::path_of(path), &error)));
            }
            Some(Here { dir, name, stat: Ok(stat), start_dev }) => Some((dir, name, stat, start_dev)),
        };
        match (stored, here) {
            (None, None) => Ok(()),
            (Some((_, gone)), None) => {
                visit(path, Met::Change(&Change::whole(Letter::Removed, gone.kind)))?;
                match gone.child {
                    Child::Dir(dirno) => self.enter(Some(dirno), None, path, open, visit),
                    Child::Node(_) => Ok(()),
                }
            }
            (None, Some((dir, name, stat, start_dev))) => {
                let left_out = parent.is_some()
                    && (self.excludes.excludes(path, &stat) || !stat.is_dir() && crate::os::temp::is_ours(&name));
                if left_out {
                    return Ok(());
                }
                visit(path, Met::Change(&Change::whole(Letter::Added, stat.kind)))?;
                match stat.is_dir() {
                    true => self.enter(None, Some((dir, name, stat, start_dev, parent)), path, open, visit),
                    false => Ok(()),
                }
            }
            (Some((in_dir, entry)), Some((dir, name, stat, start_dev))) => match entry.child {
                Child::Dir(dirno) if stat.is_dir() => {
                    if let Err(error) = self.dir(dirno, &dir, &name, &stat, path, visit) {
                        return visit(path, Met::Failed(&error));
                    }
                    self.enter(Some(dirno), Some((dir, name, stat, start_dev, parent)), path, open, visit)
                }
                Child::Node(_) if !stat.is_dir() => match self.node(in_dir, &entry, &dir, &name, &stat, path) {
                    Ok(Some(change)) => visit(path, Met::Change(&change)),
                    Ok(None) => Ok(()),
                    Err(error) => visit(path, Met::Failed(&error)),
                },
                child => {
                    let change = Change {
                        letter: Letter::Attributes,
                        kind: stat.kind,
                        differs: vec![What::Type],
                        verdict: None,
                    };
                    visit(path, Met::Change(&change))?;
                    match child {
                        Child::Dir(dirno) => self.enter(Some(dirno), None, path, open, visit),
                        Child::Node(_) => {
                            self.enter(None, Some((dir, name, stat, start_dev, parent)), path, open, visit)
                        }
                    }
                }
            },
        }
    }

    /// Goes into a directory of one or both sides.
    #[expect(clippy::type_complexity, reason = "what `pair` has taken apart")]
    fn enter(
        &self,
        dirno: Option<Dirno>,
        here: Option<(Arc<DirFd>, Vec<u8>, Stat, u64, Option<&DirFd>)>,
        path: &[u8],
        open: &mut Vec<Open>,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        let side = match dirno.map(|dirno| Side::open(&self.backup.tree, self.version, dirno)).transpose() {
            Ok(side) => side,
            Err(error) => return visit(path, Met::Failed(&error)),
        };
        let mut names = None;
        if let Some((dir, name, stat, start_dev, parent)) = here {
            match self.list(&dir, &name, &stat, start_dev, parent) {
                Ok(found) => names = found,
                Err(error) => {
                    return visit(path, Met::Failed(&Error::io("list", live::path_of(path), &error)));
                }
            }
        }
        open.push(Open { side, here: names, path_len: path.len() });
        Ok(())
    }

    /// The names in a directory of the source. None: the walk of a backup would not enter it.
    fn list(
        &self,
        dir: &DirFd,
        name: &[u8],
        stat: &Stat,
        start_dev: u64,
        parent: Option<&DirFd>,
    ) -> io::Result<Option<Names>> {
        let inner = if name.is_empty() { dir.try_clone()? } else { dir.open_dir(name)? };
        if let Some(parent) = parent
            && self.boundaries.skip(stat, &parent.stat()?, start_dev, || inner.magic())?.is_some()
        {
            return Ok(None);
        }
        let live::Listing { entries, failed } = live::list(&inner)?;
        let entries = entries.into_iter().map(|(name, stat)| (name, Ok(stat)));
        let mut names: Vec<_> = entries.chain(failed.into_iter().map(|(name, error)| (name, Err(error)))).collect();
        names.sort_by(|a: &(Vec<u8>, io::Result<Stat>), b| a.0.cmp(&b.0));
        Ok(Some(Names { dir: Arc::new(inner), start_dev, names: names.into_iter().peekable() }))
    }

    fn dir(
        &self,
        dirno: Dirno,
        dir: &DirFd,
        name: &[u8],
        stat: &Stat,
        path: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        let state = self.backup.tree.dir(self.version, dirno)?.state;
        let mut differs = attributes(&state.attr, &live::attr(stat), Scope::Restorable);
        let place = if name.is_empty() { dir.try_clone() } else { dir.open_dir(name) };
        let found = place.and_then(|place| live::xattrs(xattr::Subject::Fd(place.as_fd())));
        let found = found.map_err(|error| Error::io("read attributes of", live::path_of(path), &error))?;
        differs.extend(xattrs(&state.xattrs, &found));
        match Change::of(Kind::Dir, differs) {
            Some(change) => visit(path, Met::Change(&change)),
            None => Ok(()),
        }
    }

    fn node(
        &self,
        in_dir: Dirno,
        entry: &Entry,
        dir: &DirFd,
        name: &[u8],
        stat: &Stat,
        path: &[u8],
    ) -> Result<Option<Change>> {
        let fail = |op: &'static str| move |error: io::Error| Error::io(op, live::path_of(path), &error);
        let node = self.backup.tree.node_of(self.version, in_dir, entry)?;
        let mut differs = attributes(&node.attr, &live::attr(stat), Scope::Restorable);
        if node.attr.kind != stat.kind {
            return Ok(Change::of(stat.kind, vec![What::Type]));
        }
        let found = live::xattrs(xattr::Subject::At(dir, name)).map_err(fail("read attributes of"))?;
        differs.extend(xattrs(&node.xattrs, &found));
        let mut verdict = None;
        match stat.kind {
            Kind::Symlink => {
                let target = dir.readlink_at(name).map_err(fail("read"))?;
                differs.extend((target != node.target).then_some(What::Target));
            }
            Kind::File if self.files == Files::Bytes => {
                verdict = self.bytes(&node, dir, name, stat, path)?;
                differs.extend(verdict.is_some().then_some(What::Content));
            }
            // That is how a backup sees that a file was written to.
            Kind::File => differs.extend(differs.contains(&What::Mtime).then_some(What::Content)),
            _ => {}
        }
        Ok(Change::of(stat.kind, differs).map(|change| Change { verdict, ..change }))
    }

    /// Compares all bytes. None: they are the same.
    fn bytes(&self, node: &Node, dir: &DirFd, name: &[u8], stat: &Stat, path: &[u8]) -> Result<Option<Verdict>> {
        let fail = |error: io::Error| Error::io("read", live::path_of(path), &error);
        let file = dir.open_file(name).map_err(fail)?;
        let mut sink = Compare { file: &file, path, stop: self.stop, same: true, lost: None, buffer: Vec::new() };
        let found = file::read(self.backup, node, Sha1::Compare, &mut sink)?;
        let Compare { mut same, lost, .. } = sink;
        // What is longer than the version has it.
        same &= stat.size == node.attr.size && file.read_at(&mut [0], node.attr.size).map_err(fail)? == 0;
        let after = crate::os::stat::of_fd(&file).map_err(fail)?;
        if live::attr(&after) != live::attr(stat) {
            let what = "it changed while it was compared".into();
            return Err(Error::NotKept { path: live::path_of(path), what });
        }
        let bad = lost.is_some() || matches!(found, file::Found::WrongHash { .. } | file::Found::Damaged);
        Ok(verdict(&node.attr, &live::attr(stat), bad, same))
    }
}

/// Why a content is another one; None: it is not.
fn verdict(stored: &Attr, now: &Attr, bad: bool, same: bool) -> Option<Verdict> {
    let traces = |attr: &Attr| (attr.size, attr.mtime, attr.ctime);
    match (bad, same) {
        (true, _) => Some(Verdict::BackupBad),
        (false, true) => None,
        (false, false) if traces(stored) == traces(now) => Some(Verdict::SourceRotted),
        (false, false) => Some(Verdict::SourceEdited),
    }
}

/// Bytes at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// Compares what the version has with an open file.
struct Compare<'a> {
    file: &'a File,
    path: &'a [u8],
    stop: &'a dyn Fn() -> bool,
    same: bool,
    lost: Option<Error>,
    buffer: Vec<u8>,
}

impl Compare<'_> {
    /// The file's bytes there are what `is` says of each stretch of them.
    fn against(&mut self, at: u64, len: u64, mut is: impl FnMut(usize, &[u8]) -> bool) -> Result<()> {
        self.buffer.resize(BUFFER_BYTES, 0);
        let mut done = 0u64;
        while self.same && done < len {
            let want = BUFFER_BYTES.min(usize::try_from(len - done).unwrap_or(BUFFER_BYTES));
            let Some(buffer) = self.buffer.get_mut(..want) else { return Ok(()) };
            let read = self.file.read_at(buffer, at + done);
            let read =
                read.map_err(|error| Error::io("read", Path::new(std::ffi::OsStr::from_bytes(self.path)), &error))?;
            self.same = read > 0 && is(done as usize, buffer.get(..read).unwrap_or_default());
            done += read as u64;
        }
        Ok(())
    }
}

impl Sink for Compare<'_> {
    fn data(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.against(at, bytes.len() as u64, |from, found| bytes.get(from..from + found.len()) == Some(found))
    }

    fn zeros(&mut self, at: u64, len: u64) -> Result<()> {
        self.against(at, len, |_, found| found.iter().all(|byte| *byte == 0))
    }

    fn lost(&mut self, lost: Lost) -> Result<()> {
        self.lost.get_or_insert(lost.error);
        Ok(())
    }

    fn go_on(&mut self, _: u64) -> Result<()> {
        if (self.stop)() { Err(Error::Interrupted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leaves_no_trace_is_rot() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("f"), b"x").unwrap();
        let stored = live::attr(&DirFd::open(temp.path()).unwrap().stat_at(b"f").unwrap());
        assert_eq!(verdict(&stored, &stored, false, true), None);
        assert_eq!(verdict(&stored, &stored, false, false), Some(Verdict::SourceRotted));
        assert_eq!(verdict(&stored, &stored, true, false), Some(Verdict::BackupBad));
        assert_eq!(verdict(&stored, &stored, true, true), Some(Verdict::BackupBad));
        let later = |time: crate::catalog::Timespec| crate::catalog::Timespec { sec: time.sec + 1, ..time };
        for edited in [
            Attr { ctime: later(stored.ctime), ..stored.clone() },
            Attr { mtime: later(stored.mtime), ..stored.clone() },
            Attr { size: 2, ..stored.clone() },
        ] {
            assert_eq!(verdict(&stored, &edited, false, false), Some(Verdict::SourceEdited));
        }
        // A mode, say, is no trace of a write.
        let chmod = Attr { perm: 0o600, ..stored.clone() };
        assert_eq!(verdict(&stored, &chmod, false, false), Some(Verdict::SourceRotted));
    }
}
