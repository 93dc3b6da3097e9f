//! One entry that is not a directory: made under a temporary name, given its attributes, then renamed.

use std::io;
use std::path::PathBuf;

use super::DamagedFile;
use super::Extra;
use super::attributes;
use super::content::{Bad, ContentWriter, hash_existing};
use super::engine::{Made, Restore, check_name, existing};
use crate::backup::walk;
use crate::catalog::{Attr, Kind, Node};
use crate::error::{Error, Result};
use crate::ids::Logid;
use crate::ledger::Extent;
use crate::monitor::{Event, Progress};
use crate::os::{DirFd, Stat, stat, xattr};
use crate::text::shown;

/// An entry with a temporary name, which is removed unless it was renamed.
struct Temp<'d> {
    dir: &'d DirFd,
    name: Vec<u8>,
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // It is as good as gone, or the next run with --delete takes it.
            let _ = self.dir.unlink_at(&self.name);
        }
    }
}

impl Temp<'_> {
    fn renamed(mut self) {
        self.name.clear();
    }
}

/// Longest file name of Linux's file systems, bytes.
const NAME_MAX: usize = 255;

impl Restore<'_> {
    /// Restores one entry of the current directory.
    pub(super) fn entry(&mut self, parent: &DirFd, name: &[u8], logid: Logid) -> Result<()> {
        check_name(name)?;
        self.monitor.event(Event::Path(&self.saved_path(Some(name))));
        let node = self.source.node(logid)?;
        let path = self.target_path(Some(name));
        let now = existing(parent, name).map_err(|error| Error::io("stat", &path, &error))?;
        let made = self.made.get(&logid).cloned();
        if let Some(made) = made.as_ref().filter(|made| made.damaged) {
            return self.link_damaged(parent, name, &node, made);
        }
        if let Some(now) = &now {
            let unchanged = match &made {
                Some(made) => now.same_file(&made.stat),
                None => self.is_unchanged(parent, name, now, &node)?,
            };
            if unchanged {
                self.report.unchanged += 1;
                self.remember(name, &node, *now, false);
                return Ok(());
            }
        }
        self.spare.refuse(parent, name, now.as_ref(), &path)?;
        if now.is_some() && !self.may_replace(&path)? {
            return Ok(());
        }
        if let Some(made) = made
            && self.link(parent, name, now, &made)?
        {
            self.count(node.attr.kind, 0);
            return Ok(());
        }
        match node.attr.kind {
            Kind::File => self.file(parent, name, now, &node),
            Kind::Dir => Err(Error::Unsupported { path, what: "recorded as a directory and as a file".into() }),
            _ => self.special(parent, name, now, &node),
        }
    }

    fn count(&mut self, kind: Kind, bytes: u64) {
        match kind {
            Kind::File => self.report.files += 1,
            _ => self.report.others += 1,
        }
        self.report.bytes += bytes;
        self.show_progress();
    }

    /// True if an existing entry has the attributes and, read and compared, the content to restore.
    fn is_unchanged(&self, parent: &DirFd, name: &[u8], now: &Stat, node: &Node) -> Result<bool> {
        let attr = &node.attr;
        // A link too many would tie the file to something else.
        if now.kind != attr.kind || now.mtime != attr.mtime || (now.nlink > 1 && attr.nlink == 1) {
            return Ok(false);
        }
        let Ok(xattrs) = walk::xattrs(xattr::Subject::At(parent, name)) else { return Ok(false) };
        if !attributes::equal(now, &xattrs, attr, &node.xattrs) {
            return Ok(false);
        }
        match attr.kind {
            Kind::Symlink => Ok(parent.readlink_at(name).is_ok_and(|target| target == node.target)),
            Kind::File => {
                let Ok(file) = parent.open_file(name) else { return Ok(false) };
                if !stat::of_fd(&file).is_ok_and(|opened| opened.same_file(now)) {
                    return Ok(false);
                }
                match hash_existing(&file, attr.size, &|| self.monitor.interrupted()) {
                    Ok(hash) => Ok(hash.is_some() && hash == node.sha1),
                    Err(Error::Interrupted) => Err(Error::Interrupted),
                    Err(_) => Ok(false),
                }
            }
            _ => Ok(true),
        }
    }

    fn file(&mut self, parent: &DirFd, name: &[u8], now: Option<Stat>, node: &Node) -> Result<()> {
        let path = self.target_path(Some(name));
        let (temp, file) = self.make_temp(parent, name, |temp| parent.create_file(temp, 0o600))?;
        let (monitor, report) = (self.monitor, &self.report);
        let before =
            Progress { files: report.files, bytes: report.bytes, errors: report.error_count, ..Progress::default() };
        let tick = |written: u64| {
            monitor.progress(Progress { bytes: before.bytes + written, ..before });
            monitor.interrupted()
        };
        let bad = ContentWriter::new(self.source, node, &file, &tick).write(&self.saved_path(Some(name)));
        if let Ok(bad) = &bad {
            self.source.file_read(node.logid, if bad.is_none() { Extent::Hashed } else { Extent::Part });
        }
        let made = stat::of_fd(&file).map_err(|error| Error::io("stat", &path, &error))?;
        match bad.map_err(|error| with_path(error, &path))? {
            None => {
                let failed = attributes::apply(&file, &node.attr, &node.xattrs);
                self.rename(temp, parent, name, now)?;
                self.note_failed(Some(name), failed);
                self.remember(name, node, made, false);
                self.count(Kind::File, node.attr.size);
                Ok(())
            }
            Some(bad) => {
                // Nobody should get rights from a program that is not whole.
                let attr = Attr { perm: node.attr.perm & 0o1777, ..node.attr.clone() };
                let mut xattrs = node.xattrs.clone();
                xattrs.retain(|(name, _)| name != b"security.capability");
                let failed = attributes::apply(&file, &attr, &xattrs);
                self.note_failed(Some(name), failed);
                let written = self.damaged_name(name, |new| parent.rename_new_at(&temp.name, parent, new))?;
                temp.renamed();
                self.remember(&written, node, made, true);
                self.note_damaged(name, written, bad, node.logid);
                Ok(())
            }
        }
    }

    fn special(&mut self, parent: &DirFd, name: &[u8], now: Option<Stat>, node: &Node) -> Result<()> {
        let attr = &node.attr;
        let (temp, ()) = self.make_temp(parent, name, |temp| match attr.kind {
            Kind::Symlink => parent.symlink_at(&node.target, temp),
            kind => parent.mknod_at(temp, kind, 0o600, attr.rdev_major, attr.rdev_minor),
        })?;
        // Nobody but us knows the name; still, what is changed is an inode that was looked at, and only this one.
        let place = self.target_path(Some(name));
        let fail = |error| Error::io("open", &place, &error);
        let opened = parent.open_entry(&temp.name).map_err(fail)?;
        let made = stat::of_fd(&opened).map_err(fail)?;
        let device = (made.rdev_major, made.rdev_minor) == (attr.rdev_major, attr.rdev_minor);
        if made.kind != attr.kind || made.nlink != 1 || !device {
            return Err(Error::Unsupported { path: place, what: "something else came in its place".into() });
        }
        let failed = attributes::apply(&opened, attr, &node.xattrs);
        self.rename(temp, parent, name, now)?;
        self.note_failed(Some(name), failed);
        self.remember(name, node, made, false);
        self.count(attr.kind, 0);
        Ok(())
    }

    /// Links a name to what was restored under another; false if that can't be done here.
    fn link(&mut self, parent: &DirFd, name: &[u8], now: Option<Stat>, made: &Made) -> Result<bool> {
        let Some((from, first)) = self.open_made(made) else { return Ok(false) };
        match self.make_temp(parent, name, |temp| from.link_at(&first, parent, temp)) {
            Ok((temp, ())) => self.rename(temp, parent, name, now).map(|()| true),
            Err(Error::Io { errno: libc::EXDEV | libc::EMLINK | libc::EPERM | libc::EOPNOTSUPP, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A further name of a damaged file gets a `.damaged` name too.
    fn link_damaged(&mut self, parent: &DirFd, name: &[u8], node: &Node, made: &Made) -> Result<()> {
        let known = self.report.damaged.iter().find(|damaged| damaged.logid == node.logid);
        let bad = known.map(|known| Bad { ranges: known.ranges.clone(), error: known.error.clone() });
        let (Some((from, first)), Some(bad)) = (self.open_made(made), bad) else {
            let now = existing(parent, name).unwrap_or(None);
            return self.file(parent, name, now, node);
        };
        let written = self.damaged_name(name, |new| from.link_at(&first, parent, new))?;
        self.note_damaged(name, written, bad, node.logid);
        Ok(())
    }

    /// The directory and name of a file restored before, if it is still there.
    fn open_made(&self, made: &Made) -> Option<(DirFd, Vec<u8>)> {
        let (name, parents) = made.place.split_last()?;
        let mut dir = self.base.try_clone().ok()?;
        for parent in parents {
            dir = dir.open_place(parent).ok()?;
        }
        let now = dir.stat_at(name).ok()?;
        now.same_file(&made.stat).then(|| (dir, name.clone()))
    }

    fn remember(&mut self, name: &[u8], node: &Node, stat: Stat, damaged: bool) {
        if node.attr.nlink > 1 {
            let place = self.place.iter().cloned().chain([name.to_vec()]).collect();
            self.made.entry(node.logid).or_insert(Made { place, stat, damaged });
        }
    }

    fn note_damaged(&mut self, name: &[u8], written: Vec<u8>, bad: Bad, logid: Logid) {
        let path = self.saved_path(Some(name));
        self.monitor.event(Event::Failure { path: &path, error: &bad.error });
        self.report.damaged_count += 1;
        if self.report.damaged.len() < super::MAX_LISTED {
            let file = DamagedFile {
                path,
                written: self.target_path(Some(&written)),
                ranges: bad.ranges,
                error: bad.error,
                logid,
            };
            self.report.damaged.push(file);
        }
        self.new_names.push(written);
        self.show_progress();
    }

    /// Makes something under a free temporary name in the directory of its final name.
    fn make_temp<'d, T>(
        &self,
        dir: &'d DirFd,
        name: &[u8],
        make: impl Fn(&[u8]) -> io::Result<T>,
    ) -> Result<(Temp<'d>, T)> {
        loop {
            // Who can foresee the name can have something there.
            let random =
                crate::crypto::random().map_err(|e| Error::io("get random bytes for", self.target_path(None), &e))?;
            let temp = format!(".assay-tmp-{:032x}", u128::from_ne_bytes(random)).into_bytes();
            match make(&temp) {
                Ok(made) => return Ok((Temp { dir, name: temp }, made)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("make", self.target_path(Some(name)), &error)),
            }
        }
    }

    /// Gives the finished entry its final name; `now` is what may be replaced there.
    fn rename(&mut self, temp: Temp<'_>, parent: &DirFd, name: &[u8], now: Option<Stat>) -> Result<()> {
        let path = self.target_path(Some(name));
        let fail = |op, error: io::Error| Err(Error::io(op, &path, &error));
        match now {
            Some(now) if now.is_dir() && self.extra == Extra::Delete => {
                let parent_stat = parent.stat().map_err(|error| Error::io("stat", &path, &error))?;
                let removal = self.remove_tree(parent, &parent_stat, name);
                self.report.deleted += removal.removed;
                if let Some((_, error)) = removal.left.into_iter().next() {
                    return fail("remove", error);
                }
                if let Some((names, why)) = removal.spared.into_iter().next() {
                    let place = self.below(&names);
                    let what = format!("the directory in its place can't go: {}: {why}", shown(&place));
                    return Err(Error::Unsupported { path, what });
                }
            }
            Some(now) if now.is_dir() => {
                if let Err(error) = parent.rmdir_at(name) {
                    return fail("remove the directory in the place of", error);
                }
            }
            _ => {}
        }
        let renamed = match now {
            Some(now) if !now.is_dir() => parent.rename_at(&temp.name, parent, name),
            // Nothing may be there: what came meanwhile was not asked about.
            _ => parent.rename_new_at(&temp.name, parent, name),
        };
        match renamed {
            Ok(()) => {
                temp.renamed();
                Ok(())
            }
            Err(error) => fail("rename", error),
        }
    }

    /// Finds a free `.damaged` name; `take` must fail with EEXIST if the name is not free.
    fn damaged_name(&self, name: &[u8], take: impl Fn(&[u8]) -> io::Result<()>) -> Result<Vec<u8>> {
        let mut number = 1;
        loop {
            let suffix = if number == 1 { ".damaged".to_string() } else { format!(".damaged.{number}") };
            let kept = name.len().min(NAME_MAX - suffix.len());
            let candidate = [name.get(..kept).unwrap_or(name), suffix.as_bytes()].concat();
            match take(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(Error::io("write", self.target_path(Some(&candidate)), &error)),
            }
        }
    }
}

/// Puts the place into an error of code that works on an open file only.
fn with_path(error: Error, place: &std::path::Path) -> Error {
    match error {
        Error::Io { op, path, errno } if path.as_os_str().is_empty() => {
            Error::Io { op, path: PathBuf::from(place), errno }
        }
        other => other,
    }
}
