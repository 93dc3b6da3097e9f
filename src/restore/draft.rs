//! From something finished to its final name.
//!
//! Invariants: a new entry gets no other name before its own. What replaces another needs a temporary name for the time
//! between two system calls (or while it is written, where files without a name can't be made), which is recognised by
//! everybody: the next restore removes it, no backup saves it. In an append-only directory, where it could not be
//! removed, none is made.

use std::fs::File;
use std::io;

use super::Extra;
use super::engine::Restore;
use super::leftovers::hold;
use crate::error::{Error, Result};
use crate::os::{DirFd, Stat, temp};
use crate::text::shown;

/// An entry with a temporary name, which is removed unless it was renamed.
pub(super) struct Temp<'d> {
    dir: &'d DirFd,
    pub name: Vec<u8>,
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // It is as good as gone, or the next restore takes it.
            let _ = self.dir.unlink_at(&self.name);
        }
    }
}

impl Temp<'_> {
    fn renamed(mut self) {
        self.name.clear();
    }
}

/// A regular file that has no final name yet.
pub(super) struct Draft<'d> {
    pub file: File,
    temp: Option<Temp<'d>>,
}

/// What was tried when a file that is whole could not be given its name.
const NAMING: &str = "give its name to";

/// True where files can be made without a name, but not be given one later.
pub(super) fn needs_names(error: &Error) -> bool {
    matches!(error, Error::Io { op: NAMING, errno: libc::EOPNOTSUPP | libc::ENOSYS | libc::EXDEV | libc::ENOENT, .. })
}

/// Longest file name of Linux's file systems, bytes.
const NAME_MAX: usize = 255;

impl Restore<'_> {
    /// An empty file in the directory of its final name.
    pub(super) fn draft<'d>(&self, dir: &'d DirFd, name: &[u8]) -> Result<Draft<'d>> {
        let unnamed = if self.can_name_later { dir.create_unnamed(0o600) } else { Ok(None) };
        if let Some(file) = unnamed.map_err(|error| Error::io("make", self.target_path(Some(name)), &error))? {
            return Ok(Draft { file, temp: None });
        }
        let (temp, file) = self.make_temp(dir, name, |temp| dir.create_file(temp, 0o600))?;
        hold(&file);
        Ok(Draft { file, temp: Some(temp) })
    }

    /// Makes something under a free temporary name in the directory of its final name.
    pub(super) fn make_temp<'d, T>(
        &self,
        dir: &'d DirFd,
        name: &[u8],
        make: impl Fn(&[u8]) -> io::Result<T>,
    ) -> Result<(Temp<'d>, T)> {
        let fail = |op, error: &io::Error| Error::io(op, self.target_path(Some(name)), error);
        if dir.stat().map_err(|error| fail("stat", &error))?.append_only {
            return Err(fail("replace, in an append-only directory,", &io::Error::from_raw_os_error(libc::EPERM)));
        }
        loop {
            // Who can foresee the name can have something there.
            let random = crate::crypto::random().map_err(|error| fail("get random bytes for", &error))?;
            let temp = temp::name(u64::from_ne_bytes(random));
            match make(&temp) {
                Ok(made) => return Ok((Temp { dir, name: temp }, made)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(fail("make", &error)),
            }
        }
    }

    /// Gives the finished file its final name; `now` is what may be replaced there.
    pub(super) fn publish(&mut self, draft: Draft<'_>, parent: &DirFd, name: &[u8], now: Option<Stat>) -> Result<()> {
        let Draft { file, temp } = draft;
        if let Some(temp) = temp {
            return self.rename(temp, parent, name, now);
        }
        if now.is_some_and(|now| !now.is_dir()) {
            hold(&file);
            let named = self.make_temp(parent, name, |temp| parent.link_open(&file, temp));
            let (temp, ()) = named.map_err(|error| match error {
                Error::Io { op: "make", path, errno } => Error::Io { op: NAMING, path, errno },
                other => other,
            })?;
            return self.rename(temp, parent, name, now);
        }
        self.clear_the_way(parent, name, now)?;
        // Nothing may be there: what came meanwhile was not asked about.
        parent.link_open(&file, name).map_err(|error| Error::io(NAMING, self.target_path(Some(name)), &error))
    }

    /// As `publish`, for anything with a temporary name.
    pub(super) fn rename(&mut self, temp: Temp<'_>, parent: &DirFd, name: &[u8], now: Option<Stat>) -> Result<()> {
        self.clear_the_way(parent, name, now)?;
        let renamed = match now {
            Some(now) if !now.is_dir() => parent.rename_at(&temp.name, parent, name),
            _ => parent.rename_new_at(&temp.name, parent, name),
        };
        match renamed {
            Ok(()) => {
                temp.renamed();
                Ok(())
            }
            Err(error) => Err(Error::io("rename", self.target_path(Some(name)), &error)),
        }
    }

    /// Removes the directory that an entry replaces.
    fn clear_the_way(&mut self, parent: &DirFd, name: &[u8], now: Option<Stat>) -> Result<()> {
        if !now.is_some_and(|now| now.is_dir()) {
            return Ok(());
        }
        let path = self.target_path(Some(name));
        if self.extra != Extra::Delete {
            return match parent.rmdir_at(name) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) => {
                    let what = "a directory that is not empty is in its place; --delete removes it with all in it";
                    Err(Error::Unsupported { path, what: what.into() })
                }
                other => other.map_err(|error| Error::io("remove the directory in the place of", &path, &error)),
            };
        }
        let parent_stat = parent.stat().map_err(|error| Error::io("stat", &path, &error))?;
        let removal = self.remove_tree(parent, &parent_stat, name);
        self.report.deleted += removal.removed;
        if let Some((names, error)) = removal.left.into_iter().next() {
            return Err(Error::io("remove", self.below(&names), &error));
        }
        match removal.spared.into_iter().next() {
            Some((names, why)) => {
                let what = format!("the directory in its place can't go: {}: {why}", shown(&self.below(&names)));
                Err(Error::Unsupported { path, what })
            }
            None => Ok(()),
        }
    }

    /// Gives a file that is not whole a name that says so.
    pub(super) fn publish_damaged(&self, draft: Draft<'_>, parent: &DirFd, name: &[u8]) -> Result<Vec<u8>> {
        let Draft { file, temp } = draft;
        let written = self.damaged_name(name, |new| match &temp {
            Some(temp) => parent.rename_new_at(&temp.name, parent, new),
            None => parent.link_open(&file, new),
        })?;
        if let Some(temp) = temp {
            temp.renamed();
        }
        Ok(written)
    }

    /// Finds a free `.damaged` name; `take` must fail with EEXIST if the name is not free.
    pub(super) fn damaged_name(&self, name: &[u8], take: impl Fn(&[u8]) -> io::Result<()>) -> Result<Vec<u8>> {
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
