//! A directory, as on a disk of its own or a share of the network.
//!
//! Invariants: the directory must be there, is never made, and is held open: nobody unmounts its disk meanwhile, and no
//! name leads out of it; one that has lost its place all the same is `Absent`, never empty. An object gets its name when all of it is on the medium, by a rename that replaces nothing.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Body, Compared, Lie, Object, PIECE_BYTES, Stamp, Storage, check_range, pieces, trouble, wrong_range};
use crate::catalog::Kind;
use crate::error::{Error, Result, Trouble, io_text};
use crate::os::{DirFd, file, stat};
use crate::text::shown;

/// What an object has behind its name until it is whole.
pub(super) const PART: &str = ".part";

pub struct Dir {
    name: String,
    path: PathBuf,
    root: DirFd,
}

impl Dir {
    /// # Errors
    /// `Absent`.
    pub fn open(name: &str, path: &Path) -> Result<Dir> {
        match DirFd::open(path) {
            Ok(root) => Ok(Dir { name: name.to_string(), path: path.to_path_buf(), root }),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                let what = format!("{}: {}", shown(path), io_text(&error));
                Err(trouble(name, "", Trouble::Absent(what)))
            }
            Err(error) => Err(failed(name, "", &error)),
        }
    }

    fn failed(&self, object: &str, error: &io::Error) -> Error {
        self.check_place().err().unwrap_or_else(|| failed(&self.name, object, error))
    }

    /// What is held open is what has the path: else what is not in it says nothing, as of a disk that was plugged in anew.
    fn check_place(&self) -> Result<()> {
        let identity = |dir: &DirFd| dir.stat_at(b".").map(|found| (found.dev, found.ino));
        let now = match DirFd::open(&self.path).and_then(|now| identity(&now)) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
            now => now,
        };
        let what = match (identity(&self.root), now) {
            (Ok(held), Ok(now)) if held == now => return Ok(()),
            (_, Ok(_)) => "another directory has its place".into(),
            (_, Err(error)) => io_text(&error),
        };
        Err(trouble(&self.name, "", Trouble::Absent(format!("{}: {what}", shown(&self.path)))))
    }

    /// Opens an object for reading, and tells its length.
    fn open_object(&self, object: &str) -> Result<(File, u64)> {
        let opened = self.root.open_file(object.as_bytes());
        let opened = opened.and_then(|file| stat::of_fd(&file).map(|found| (file, found)));
        match opened {
            Ok((file, found)) if found.kind == Kind::File => Ok((file, found.size)),
            Ok(_) => Err(self.no_file(object)),
            Err(error) => Err(self.failed(object, &error)),
        }
    }

    fn no_file(&self, object: &str) -> Error {
        trouble(&self.name, object, Trouble::Refused("it is no regular file".into()))
    }

    /// Writes all of it durably under another name.
    fn write_part(&self, part: &[u8], object: &str, body: &dyn Body) -> Result<()> {
        let mut created = self.root.create_file(part, 0o600);
        if created.as_ref().is_err_and(|error| error.kind() == ErrorKind::AlreadyExists) {
            // A put that was cut has left it.
            let removed = self.root.unlink_at(part);
            created = removed.and_then(|()| self.root.create_file(part, 0o600));
        }
        let mut file = created.map_err(|error| self.failed(object, &error))?;
        for piece in pieces(body, PIECE_BYTES) {
            let (_, bytes) = piece?;
            file.write_all(&bytes).map_err(|error| self.failed(object, &error))?;
        }
        file.sync_all().map_err(|error| self.failed(object, &error))
    }

    /// Writes an object and gives it its name, which must not be taken.
    fn write(&self, object: &str, body: &dyn Body) -> Result<()> {
        let part = format!("{object}{PART}").into_bytes();
        let named = self.write_part(&part, object, body).and_then(|()| {
            let renamed = self.root.rename_new_at(&part, &self.root, object.as_bytes());
            renamed.map_err(|error| self.failed(object, &error))
        });
        if let Err(error) = named {
            // It takes room that may be needed; what could not be removed is replaced by the next put.
            let _ = self.root.unlink_at(&part);
            return Err(error);
        }
        self.root.sync().map_err(|error| self.failed(object, &error))
    }
}

impl Storage for Dir {
    fn name(&self) -> &str {
        &self.name
    }

    fn put(&self, object: &str, body: &dyn Body) -> Result<Compared> {
        if self.stat(object)?.is_some() {
            return Err(trouble(&self.name, object, Trouble::Exists));
        }
        self.write(object, body)?;
        Ok(Compared::Nothing)
    }

    fn lies(&self) -> &'static [Lie] {
        &[Lie::Replace]
    }

    fn lie(&self, object: &str, bytes: &[u8], _: Lie) -> Result<()> {
        self.write(object, &bytes)
    }

    fn stat(&self, object: &str) -> Result<Option<u64>> {
        match self.root.stat_at(object.as_bytes()) {
            Ok(found) if found.kind == Kind::File => Ok(Some(found.size)),
            Ok(_) => Err(self.no_file(object)),
            Err(error) if error.kind() == ErrorKind::NotFound => self.check_place().map(|()| None),
            Err(error) => Err(self.failed(object, &error)),
        }
    }

    fn stamp(&self, object: &str) -> Result<Option<Stamp>> {
        match self.root.stat_at(object.as_bytes()) {
            Ok(found) if found.kind == Kind::File => Ok(Some(Stamp::of(&found))),
            Ok(_) => Err(self.no_file(object)),
            Err(error) if error.kind() == ErrorKind::NotFound => self.check_place().map(|()| None),
            Err(error) => Err(self.failed(object, &error)),
        }
    }

    fn read(&self, object: &str, range: Range<u64>) -> Result<Vec<u8>> {
        check_range(&self.name, object, &range)?;
        let (file, _) = self.open_object(object)?;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        match file::read_up_to(&file, &mut bytes, range.start) {
            Ok(count) if count == bytes.len() => Ok(bytes),
            Ok(count) => Err(wrong_range(&self.name, object, &range, format!("{count} bytes, and its end"))),
            Err(error) => Err(self.failed(object, &error)),
        }
    }

    fn list(&self) -> Result<Vec<Object>> {
        // A descriptor of its own: a listing has a position.
        let names = self.root.open_dir(b".").and_then(|dir| dir.read_names());
        let names = names.map_err(|error| self.failed("", &error))?;
        let mut objects = Vec::new();
        for name in names {
            let Ok(name) = String::from_utf8(name) else { continue };
            let found = match self.root.stat_at(name.as_bytes()) {
                Ok(found) => found,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(self.failed(&name, &error)),
            };
            if found.kind == Kind::File && !name.ends_with(PART) {
                objects.push(Object { name, len_bytes: found.size });
            }
        }
        self.check_place()?;
        objects.sort();
        Ok(objects)
    }

    fn remove(&self, object: &str) -> Result<()> {
        match self.root.unlink_at(object.as_bytes()) {
            Ok(()) => self.root.sync().map_err(|error| self.failed(object, &error)),
            Err(error) if error.kind() == ErrorKind::NotFound => self.check_place(),
            Err(error) => Err(self.failed(object, &error)),
        }
    }

    fn forget(&self, object: &str) -> Result<()> {
        let (file, _) = self.open_object(object)?;
        file::forget_cached(&file, 0, 0);
        Ok(())
    }
}

fn failed(name: &str, object: &str, error: &io::Error) -> Error {
    let what = io_text(error);
    let kind = match error.raw_os_error() {
        Some(libc::ENOENT) => Trouble::NotFound,
        Some(libc::EEXIST) => Trouble::Exists,
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Trouble::Full(what),
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => Trouble::Denied(what),
        Some(libc::ELOOP | libc::EISDIR | libc::ENXIO | libc::ENODEV | libc::ENAMETOOLONG) => Trouble::Refused(what),
        _ => Trouble::Failed(what),
    };
    trouble(name, object, kind)
}
