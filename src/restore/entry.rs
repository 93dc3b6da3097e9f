//! One entry that is not a directory: made, given its attributes, and only then seen under its name.

use std::path::PathBuf;

use super::DamagedFile;
use super::attributes::{self, Failed};
use super::content::{self, Bad};
use super::draft;
use super::engine::{Made, Restore, check_name, existing};
use crate::catalog::{Attr, Kind, Node};
use crate::error::{Error, Result};
use crate::ids::Logid;
use crate::ledger::Extent;
use crate::live;
use crate::monitor::{Event, Progress};
use crate::os::{DirFd, Stat, file, stat, xattr};

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
                Some(made) => now.same_file(&made.stat).then(Vec::new),
                None => self.unchanged(parent, name, now, &node)?,
            };
            if let Some(lacking) = unchanged {
                self.note_failed(Some(name), lacking);
                self.report.unchanged += 1;
                self.remember(name, &node, *now, false);
                self.done(&node);
                return Ok(());
            }
        }
        self.spare.refuse(parent, name, now.as_ref(), &path)?;
        if now.is_some() && !self.may_replace(&path)? {
            return Ok(());
        }
        if let Some(made) = &made {
            match self.link(parent, name, now, made)? {
                None => {
                    self.count(&node, 0);
                    return Ok(());
                }
                Some(why) => self.note_failed(Some(name), vec![why]),
            }
        }
        match node.attr.kind {
            Kind::File => match self.file(parent, name, now, &node) {
                Err(error) if self.can_name_later && draft::needs_names(&error) => {
                    self.can_name_later = false;
                    self.file(parent, name, now, &node)
                }
                other => other,
            },
            Kind::Dir => Err(Error::Unsupported { path, what: "recorded as a directory and as a file".into() }),
            _ => self.special(parent, name, now, &node),
        }
    }

    fn count(&mut self, node: &Node, bytes: u64) {
        match node.attr.kind {
            Kind::File => self.report.files += 1,
            _ => self.report.others += 1,
        }
        self.report.bytes = self.report.bytes.saturating_add(bytes);
        self.done(node);
    }

    /// Counts an entry that needs no more work, for the progress.
    fn done(&mut self, node: &Node) {
        if node.attr.kind == Kind::File {
            self.so_far.files += 1;
            self.so_far.bytes = self.so_far.bytes.saturating_add(node.attr.size);
        }
        self.show_progress();
    }

    /// What an existing entry lacks beyond this user's rights, if it has all else: the other attributes and, read and
    /// compared, the content to restore. None if it has not.
    fn unchanged(&self, parent: &DirFd, name: &[u8], now: &Stat, node: &Node) -> Result<Option<Vec<Failed>>> {
        let attr = &node.attr;
        // A link too many would tie the file to something else.
        if now.kind != attr.kind || now.mtime != attr.mtime || now.nlink > attr.nlink.max(1) {
            return Ok(None);
        }
        let Ok(xattrs) = live::xattrs(xattr::Subject::At(parent, name)) else { return Ok(None) };
        let lacking = attributes::lacks(now, &xattrs, attr, &node.xattrs);
        let same = match attr.kind {
            _ if lacking.is_none() => false,
            Kind::Symlink => parent.readlink_at(name).is_ok_and(|target| target == node.target),
            Kind::File => {
                let Ok(file) = parent.open_file(name) else { return Ok(None) };
                let opened = stat::of_fd(&file).is_ok_and(|opened| opened.same_file(now));
                match content::is_there(self.source, node, &file, &|| self.monitor.interrupted()) {
                    Err(Error::Interrupted) => return Err(Error::Interrupted),
                    compared => opened && compared.unwrap_or(false),
                }
            }
            _ => true,
        };
        Ok(lacking.filter(|_| same))
    }

    fn file(&mut self, parent: &DirFd, name: &[u8], now: Option<Stat>, node: &Node) -> Result<()> {
        let path = self.target_path(Some(name));
        let draft = self.draft(parent, name)?;
        self.refuse_when_full(&draft.file, node, &path)?;
        let (monitor, before) = (self.monitor, self.progress());
        let tick = |written: u64| {
            monitor.progress(Progress { bytes: before.bytes + written, ..before });
            monitor.interrupted()
        };
        let bad = content::write(self.source, node, &self.saved_path(Some(name)), &draft.file, &tick);
        if let Ok(bad) = &bad {
            let extent = match (bad, node.sha1) {
                (None, Some(_)) => Extent::Hashed,
                (None, None) => Extent::Whole,
                (Some(_), _) => Extent::Part,
            };
            self.source.file_read(node.logid, extent);
        }
        let made = stat::of_fd(&draft.file).map_err(|error| Error::io("stat", &path, &error))?;
        match bad.map_err(|error| with_path(error, &path))? {
            None => {
                let failed = attributes::apply(&draft.file, &node.attr, &node.xattrs);
                self.publish(draft, parent, name, now)?;
                self.note_failed(Some(name), failed);
                self.remember(name, node, made, false);
                self.count(node, node.attr.size);
                Ok(())
            }
            Some(bad) => {
                // Nobody should get rights from a program that is not whole.
                let attr = Attr { perm: node.attr.perm & 0o1777, ..node.attr.clone() };
                let mut xattrs = node.xattrs.clone();
                xattrs.retain(|(name, _)| name != b"security.capability");
                let failed = attributes::apply(&draft.file, &attr, &xattrs);
                let written = self.publish_damaged(draft, parent, name)?;
                self.note_failed(Some(&written), failed);
                self.remember(&written, node, made, true);
                self.note_damaged(name, written, bad, node.logid);
                self.done(node);
                Ok(())
            }
        }
    }

    /// Once the target was full, what can't fit is not begun: each attempt would write as much as there is room.
    fn refuse_when_full(&self, to: &std::fs::File, node: &Node, path: &std::path::Path) -> Result<()> {
        let fits = || file::free_bytes(to).map_or(true, |free| node.data_bytes <= free);
        if self.was_full && !fits() {
            return Err(Error::io("write", path, &std::io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        Ok(())
    }

    fn special(&mut self, parent: &DirFd, name: &[u8], now: Option<Stat>, node: &Node) -> Result<()> {
        let attr = &node.attr;
        let make = |name: &[u8]| match attr.kind {
            Kind::Symlink => parent.symlink_at(&node.target, name),
            kind => parent.mknod_at(name, kind, 0o600, attr.rdev_major, attr.rdev_minor),
        };
        let place = self.target_path(Some(name));
        let temp = match now {
            Some(_) => Some(self.make_temp(parent, name, make)?.0),
            None => {
                make(name).map_err(|error| Error::io("make", &place, &error))?;
                None
            }
        };
        // Whoever else can write here may have put something else there: what is changed is an inode that was looked at.
        let fail = |error| Error::io("open", &place, &error);
        let opened = parent.open_entry(temp.as_ref().map_or(name, |temp| &temp.name)).map_err(fail)?;
        let made = stat::of_fd(&opened).map_err(fail)?;
        let device = (made.rdev_major, made.rdev_minor) == (attr.rdev_major, attr.rdev_minor);
        if made.kind != attr.kind || made.nlink != 1 || !device {
            return Err(Error::Unsupported { path: place, what: "something else came in its place".into() });
        }
        let failed = attributes::apply(&opened, attr, &node.xattrs);
        if let Some(temp) = temp {
            self.rename(temp, parent, name, now)?;
        }
        self.note_failed(Some(name), failed);
        self.remember(name, node, made, false);
        self.count(node, 0);
        Ok(())
    }

    /// Links a name to what was restored under another; gives why that can't be done here.
    fn link(&mut self, parent: &DirFd, name: &[u8], now: Option<Stat>, made: &Made) -> Result<Option<Failed>> {
        let Some((from, first)) = self.open_made(made) else { return Ok(Some(Failed::not_linked(libc::ENOENT))) };
        let linked = match now {
            Some(_) => self
                .make_temp(parent, name, |temp| from.link_at(&first, parent, temp))
                .and_then(|(temp, ())| self.rename(temp, parent, name, now)),
            None => from
                .link_at(&first, parent, name)
                .map_err(|error| Error::io("link", self.target_path(Some(name)), &error)),
        };
        match linked {
            Ok(()) => Ok(None),
            Err(Error::Io {
                errno: errno @ (libc::EXDEV | libc::EMLINK | libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS),
                ..
            }) => Ok(Some(Failed::not_linked(errno))),
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
        self.done(node);
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
