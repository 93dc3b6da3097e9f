//! Writes over a stretch of an arc.
//!
//! Order of writes, each durable before the next: the old bytes go to `ARC.PART.bad`; the new ones into the arc; they are
//! read back past the page cache and proven; `.bad` is removed. A kill in between leaves `.bad`, and the next attempt
//! keeps that one: what is in the arc then may be a half-done write.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::depot::{Depot, Local, Via};
use crate::error::{Error, Result};
use crate::ids::ArcName;
use crate::own::OwnDir;
use crate::text::shown;

/// More than this behind the end of an arc is not kept, and so not cut off.
const MAX_EXTRA_BYTES: u64 = 64 << 20;

const BAD_SUFFIX: &str = ".bad";

/// What attempts that were cut have left: an arc, and which part of it.
pub fn left(dir: &OwnDir) -> Result<Vec<(ArcName, String)>> {
    let names = dir.names()?;
    let names = names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.strip_suffix(BAD_SUFFIX));
    let parts = names.filter_map(|name| name.rsplit_once('.'));
    Ok(parts.filter_map(|(arc, part)| Some((ArcName::parse(arc)?, part.to_string()))).collect())
}

/// A stretch of an arc that is to be put right.
pub struct Stretch<'a> {
    pub dir: &'a Arc<OwnDir>,
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
        let path = self.dir.path_of(self.arc.to_string());
        let refuse = |what: &str| Error::NotFixed { path: path.clone(), what: what.into() };
        let arc = Local::new(self.dir).open(self.arc)?;
        let len = arc.len_bytes();
        if self.offset > len {
            return Err(refuse("it is cut short before the place"));
        }
        let end = self.offset + self.right.len() as u64;
        if self.last && len > end + MAX_EXTRA_BYTES {
            return Err(refuse("too much follows its end"));
        }
        let old_end = if self.last { len } else { len.min(end) };
        let old = arc.exactly(self.offset, (old_end - self.offset) as usize)?;
        if old == self.right {
            // An attempt that was cut has come that far.
            self.dir.remove_if_there(self.bad())?;
            return Ok(false);
        }
        let writable = self.open_for_writing()?;
        let bad = self.keep(&old)?;
        let new_len = if self.last { end } else { len.max(end) };
        let written = write(&writable, self.offset, self.right, new_len)
            .map_err(|e| e.to_string())
            .and_then(|()| self.prove(new_len, proven));
        if let Err(what) = written {
            return Err(match write(&writable, self.offset, &old, len) {
                Ok(()) => {
                    self.dir.remove_if_there(&bad)?;
                    refuse(&what)
                }
                Err(e) => {
                    let path = path.clone();
                    Error::NotFixed {
                        path,
                        what: format!("{what}; then {e}; its old bytes are in {}", shown(&self.dir.path_of(&bad))),
                    }
                }
            });
        }
        self.dir.remove_if_there(&bad)?;
        self.dir.sync()?;
        Ok(true)
    }

    fn bad(&self) -> String {
        format!("{}.{}{BAD_SUFFIX}", self.arc, self.part)
    }

    /// Puts the old bytes beside the arc, durably; gives the name of that file.
    fn keep(&self, old: &[u8]) -> Result<String> {
        let bad = self.bad();
        self.dir.check_before_writing(&bad)?;
        if self.dir.stat(&bad)?.is_some() {
            return Ok(bad);
        }
        let tmp = format!("{bad}.tmp");
        self.dir.remove_if_there(&tmp)?;
        let mut file = self.dir.create(&tmp, 0o600)?;
        let written = file.write_all(old).and_then(|()| file.sync_all());
        let written = written.map_err(|e| Error::io("write", self.dir.path_of(&tmp), &e));
        if let Err(error) = written.and_then(|()| self.dir.rename(&tmp, &bad)) {
            let _ = self.dir.remove_if_there(&tmp);
            return Err(error);
        }
        self.dir.sync()?;
        Ok(bad)
    }

    /// Reads back what was written, through another descriptor and past the page cache.
    fn prove(&self, len: u64, proven: &dyn Fn(&[u8]) -> bool) -> Result<(), String> {
        let read = || {
            let arc = Local::new(self.dir).open(self.arc)?;
            let mut found = vec![0; self.right.len()];
            let count = arc.read(self.offset, &mut found, Via::Medium)?;
            found.truncate(count);
            Ok::<_, Error>((found, arc.len_bytes()))
        };
        match read() {
            Ok((found, found_len)) if found == self.right && found_len == len && proven(&found) => Ok(()),
            Ok(_) => Err("what was written reads back differently".into()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Arcs are read-only files, also for their owner.
    fn open_for_writing(&self) -> Result<File> {
        let name = self.arc.to_string();
        match self.dir.rewrite(&name) {
            Err(Error::Io { errno: libc::EACCES, .. }) => {}
            opened => return opened,
        }
        let perm = self.dir.stat(&name)?.map_or(0o400, |found| u32::from(found.perm));
        self.dir.chmod(&name, perm | 0o200)?;
        let opened = self.dir.rewrite(&name);
        self.dir.chmod(&name, perm)?;
        opened
    }
}

fn write(file: &File, offset: u64, bytes: &[u8], len: u64) -> std::io::Result<()> {
    file.write_all_at(bytes, offset)?;
    file.set_len(len)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::ids::Version;
    use crate::own::Sharing;

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

    fn replace(
        dir: &tempfile::TempDir,
        offset: u64,
        right: &[u8],
        last: bool,
        proven: &dyn Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        let dir = Arc::new(OwnDir::open(dir.path(), Sharing::Refused).unwrap());
        Stretch { dir: &dir, arc: ARC, part: "7", offset, right, last }.replace(proven)
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
            assert!(replace(&dir, offset, right, last, &proven).unwrap());
            let end = if last { before.len() } else { before.len().min(offset as usize + right.len()) };
            assert_eq!(*seen.borrow(), [(right.to_vec(), before[offset as usize..end].to_vec())]);
            assert_eq!(state(&dir), arc(after));
            assert!(!replace(&dir, offset, right, last, &proven).unwrap(), "it is right already");
        }
    }

    #[test]
    fn what_is_not_proven_goes_again() {
        for (offset, right, last) in [(3, &b"abc"[..], false), (8, b"abc", false), (3, b"abc", true)] {
            let dir = dir_with(b"0123456789");
            let error = replace(&dir, offset, right, last, &|_| false).unwrap_err();
            assert_eq!(error.code(), "NOT_FIXED");
            assert_eq!(state(&dir), arc(b"0123456789"));
        }
        let dir = dir_with(b"0123456789");
        let error = replace(&dir, 11, b"abc", false, &|_| true).unwrap_err();
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
        assert!(replace(&dir, 3, b"abc", false, &kept).unwrap());
        fs::remove_file(dir.path().join("arc.3.1.7.bad.tmp")).unwrap();
        assert_eq!(state(&dir), arc(b"012abc6789"));
    }

    #[test]
    fn what_is_no_arc_of_ours_is_an_error_and_stays() {
        let dir = dir_with(b"0123456789");
        fs::remove_file(dir.path().join("arc.3.1")).unwrap();
        fs::create_dir(dir.path().join("arc.3.1")).unwrap();
        assert_eq!(replace(&dir, 0, b"x", false, &|_| true).unwrap_err().code(), "ARC_MISSING");
        assert!(!dir.path().join("arc.3.1.7.bad").exists());
    }
}
