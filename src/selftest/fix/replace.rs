//! Writes over a stretch of an arc.
//!
//! Order of writes, each durable before the next: the old bytes go to `ARC.PART.bad`; the new ones into the arc; they are
//! read back past the page cache and proven; `.bad` is removed. A kill in between leaves `.bad`, and the next attempt
//! keeps that one: what is in the arc then may be a half-done write.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::backupdir::{remove_if_there, sync_dir};
use crate::error::{Error, Result};
use crate::ids::ArcName;
use crate::os::file::{Advice, advise, read_up_to};
use crate::text::shown;

/// More than this behind the end of an arc is not kept, and so not cut off.
const MAX_EXTRA_BYTES: u64 = 64 << 20;

/// A stretch of an arc that is to be put right.
pub struct Stretch<'a> {
    pub dir: &'a Path,
    pub arc: ArcName,
    /// Names the `.bad` file.
    pub part: &'a str,
    pub offset: u64,
    pub right: &'a [u8],
    /// The arc ends with it: whatever follows goes.
    pub last: bool,
}

impl Stretch<'_> {
    /// Replaces what is there; false if it is right already. `proven` judges the bytes that are read back.
    pub fn replace(&self, proven: &dyn Fn(&[u8]) -> bool) -> Result<bool> {
        let path = self.dir.join(self.arc.to_string());
        let refuse = |what: &str| Error::NotFixed { path: path.clone(), what: what.into() };
        let failed = |op: &'static str| {
            let path = path.clone();
            move |e: std::io::Error| Error::io(op, path, &e)
        };
        let file = File::open(&path).map_err(failed("open"))?;
        let len = file.metadata().map_err(failed("stat"))?.len();
        if self.offset > len {
            return Err(refuse("it is cut short before the place"));
        }
        let end = self.offset + self.right.len() as u64;
        if self.last && len > end + MAX_EXTRA_BYTES {
            return Err(refuse("too much follows its end"));
        }
        let old_end = if self.last { len } else { len.min(end) };
        let mut old = vec![0; (old_end - self.offset) as usize];
        file.read_exact_at(&mut old, self.offset).map_err(failed("read"))?;
        if old == self.right {
            return Ok(false);
        }
        let bad = self.keep(&old)?;
        let writable = open_for_writing(&path).map_err(failed("open for writing"))?;
        let new_len = if self.last { end } else { len.max(end) };
        let written = write(&writable, self.offset, self.right, new_len)
            .map_err(|e| e.to_string())
            .and_then(|()| self.prove(&path, new_len, proven));
        if let Err(what) = written {
            return Err(match write(&writable, self.offset, &old, len) {
                Ok(()) => {
                    remove_if_there(&bad)?;
                    refuse(&what)
                }
                Err(e) => {
                    let path = path.clone();
                    Error::NotFixed { path, what: format!("{what}; then {e}; its old bytes are in {}", shown(&bad)) }
                }
            });
        }
        remove_if_there(&bad)?;
        sync_dir(self.dir)?;
        Ok(true)
    }

    /// Puts the old bytes beside the arc, durably.
    fn keep(&self, old: &[u8]) -> Result<PathBuf> {
        let bad = self.dir.join(format!("{}.{}.bad", self.arc, self.part));
        if bad.exists() {
            return Ok(bad);
        }
        let tmp = bad.with_extension("bad.tmp");
        remove_if_there(&tmp)?;
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp).and_then(|mut file| {
            file.write_all(old)?;
            file.sync_all()?;
            fs::rename(&tmp, &bad)
        });
        if let Err(e) = written {
            let _ = remove_if_there(&tmp);
            return Err(Error::io("write", tmp, &e));
        }
        sync_dir(self.dir)?;
        Ok(bad)
    }

    /// Reads back what was written, through another descriptor and past the page cache.
    fn prove(&self, path: &Path, len: u64, proven: &dyn Fn(&[u8]) -> bool) -> Result<(), String> {
        let read = || {
            let file = File::open(path)?;
            advise(&file, self.offset, self.right.len() as u64, Advice::DontNeed);
            let mut found = vec![0; self.right.len()];
            let count = read_up_to(&file, &mut found, self.offset)?;
            found.truncate(count);
            std::io::Result::Ok((found, file.metadata()?.len()))
        };
        match read() {
            Ok((found, found_len)) if found == self.right && found_len == len && proven(&found) => Ok(()),
            Ok(_) => Err("what was written reads back differently".into()),
            Err(e) => Err(e.to_string()),
        }
    }
}

fn write(file: &File, offset: u64, bytes: &[u8], len: u64) -> std::io::Result<()> {
    file.write_all_at(bytes, offset)?;
    file.set_len(len)?;
    file.sync_all()
}

/// Arcs are read-only files, also for their owner.
fn open_for_writing(path: &Path) -> std::io::Result<File> {
    let open = || OpenOptions::new().write(true).open(path);
    match open() {
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {}
        opened => return opened,
    }
    let mode = fs::metadata(path)?.permissions();
    fs::set_permissions(path, Permissions::from_mode(mode.mode() | 0o200))?;
    let opened = open();
    fs::set_permissions(path, mode)?;
    opened
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Version;

    const ARC: ArcName = ArcName { version: Version(3), number: 1 };

    fn dir_with(bytes: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("arc.3.1"), bytes).unwrap();
        fs::set_permissions(dir.path().join("arc.3.1"), Permissions::from_mode(0o400)).unwrap();
        dir
    }

    fn state(dir: &tempfile::TempDir) -> Vec<(String, Vec<u8>, u32)> {
        let of = |entry: fs::DirEntry| {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap(), mode)
        };
        let mut files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| of(entry.unwrap())).collect();
        files.sort();
        files
    }

    fn stretch<'a>(dir: &'a tempfile::TempDir, offset: u64, right: &'a [u8], last: bool) -> Stretch<'a> {
        Stretch { dir: dir.path(), arc: ARC, part: "7", offset, right, last }
    }

    fn arc(bytes: &[u8]) -> Vec<(String, Vec<u8>, u32)> {
        vec![("arc.3.1".into(), bytes.to_vec(), 0o400)]
    }

    #[test]
    fn what_is_proven_stays_and_nothing_is_left_beside_it() {
        for (before, offset, right, last, after) in [
            (&b"0123456789"[..], 3, &b"abc"[..], false, &b"012abc6789"[..]),
            (b"0123456789", 8, b"abc", false, b"01234567abc"),
            (b"0123456789", 10, b"abc", true, b"0123456789abc"),
            (b"0123456789", 3, b"abc", true, b"012abc"),
        ] {
            let dir = dir_with(before);
            let seen = std::cell::RefCell::new(Vec::new());
            let proven = |found: &[u8]| {
                let kept = fs::read(dir.path().join("arc.3.1.7.bad")).unwrap();
                seen.borrow_mut().push((found.to_vec(), kept));
                true
            };
            assert!(stretch(&dir, offset, right, last).replace(&proven).unwrap());
            let end = if last { before.len() } else { before.len().min(offset as usize + right.len()) };
            assert_eq!(*seen.borrow(), [(right.to_vec(), before[offset as usize..end].to_vec())]);
            assert_eq!(state(&dir), arc(after));
            assert!(!stretch(&dir, offset, right, last).replace(&proven).unwrap(), "it is right already");
        }
    }

    #[test]
    fn what_is_not_proven_goes_again() {
        for (offset, right, last) in [(3, &b"abc"[..], false), (8, b"abc", false), (3, b"abc", true)] {
            let dir = dir_with(b"0123456789");
            let error = stretch(&dir, offset, right, last).replace(&|_| false).unwrap_err();
            assert_eq!(error.code(), "NOT_FIXED");
            assert_eq!(state(&dir), arc(b"0123456789"));
        }
        let dir = dir_with(b"0123456789");
        let error = stretch(&dir, 11, b"abc", false).replace(&|_| true).unwrap_err();
        assert!(error.to_string().contains("cut short"), "{error}");
        assert_eq!(state(&dir), arc(b"0123456789"));
    }

    #[test]
    fn an_attempt_that_was_cut_is_made_again_and_its_bad_file_is_the_one_that_counts() {
        // Killed in the middle of the write: the old bytes were "345".
        let dir = dir_with(b"012ab56789");
        fs::write(dir.path().join("arc.3.1.7.bad"), b"345").unwrap();
        fs::write(dir.path().join("arc.3.1.7.bad.tmp"), b"3").unwrap();
        let kept = |_: &[u8]| fs::read(dir.path().join("arc.3.1.7.bad")).unwrap() == b"345";
        assert!(stretch(&dir, 3, b"abc", false).replace(&kept).unwrap());
        fs::remove_file(dir.path().join("arc.3.1.7.bad.tmp")).unwrap();
        assert_eq!(state(&dir), arc(b"012abc6789"));
    }

    #[test]
    fn an_arc_that_nobody_may_write_is_an_error_and_stays() {
        let dir = dir_with(b"0123456789");
        fs::remove_file(dir.path().join("arc.3.1")).unwrap();
        fs::create_dir(dir.path().join("arc.3.1")).unwrap();
        assert_eq!(stretch(&dir, 0, b"x", false).replace(&|_| true).unwrap_err().code(), "IO");
        assert!(!dir.path().join("arc.3.1.7.bad").exists());
    }
}
