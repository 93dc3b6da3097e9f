//! Opening the directory that the user gave as the target, one component at a time.
//!
//! Invariants: a symlink on the way is followed only if the caller or root owns it, for whoever else can write there would
//! choose where the files go, and so whose files they replace (`fs.protected_symlinks` asks the same in sticky
//! directories); `..` leads back to where the way came from, wherever that directory was moved; nothing is made in what
//! is spared.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Spare;
use crate::catalog::Kind;
use crate::error::{Error, Result};
use crate::os::{DirFd, dir, process, stat};

/// Symlinks that are followed on the way, as in the kernel.
const MAX_LINKS: u32 = 40;

struct Way {
    /// Where it started and the directories since.
    dirs: Vec<DirFd>,
    /// Names still to go, the next one last.
    rest: Vec<Vec<u8>>,
    /// What was gone so far, for messages.
    path: PathBuf,
    links: u32,
}

/// Opens the directory at `path`, for listing where that is permitted; makes what is absent, for the caller only.
pub fn open(path: &Path, spare: &Spare) -> Result<DirFd> {
    let fail = |op, at: &Path, error: io::Error| Error::io(op, at, &error);
    let mut way = Way { dirs: Vec::new(), rest: Vec::new(), path: PathBuf::new(), links: 0 };
    way.go(path.as_os_str().as_bytes()).map_err(|error| fail("open", path, error))?;
    let mut asked = false;
    while let Some(name) = way.rest.pop() {
        way.path.push(OsStr::from_bytes(&name));
        if name == b".." {
            way.up().map_err(|error| fail("open", &way.path, error))?;
            continue;
        }
        let at = way.last().map_err(|error| fail("open", path, error))?;
        match at.open_place(&name) {
            Ok(next) => way.dirs.push(next),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !std::mem::replace(&mut asked, true) {
                    spare.refuse_inside(at, path)?;
                }
                let made = at.mkdir_at(&name, 0o777).and_then(|()| at.open_place(&name));
                let next = made.map_err(|error| fail("make", &way.path, error))?;
                way.dirs.push(next);
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => {
                let target = link_to_follow(at, &name, &way.path)?;
                way.links += 1;
                if way.links > MAX_LINKS {
                    return Err(fail("open", &way.path, io::Error::from_raw_os_error(libc::ELOOP)));
                }
                way.go(&target).map_err(|error| fail("open", &way.path, error))?;
            }
            Err(error) => return Err(fail("open", &way.path, error)),
        }
    }
    let place = way.last().map_err(|error| fail("open", path, error))?;
    spare.refuse_inside(place, path)?;
    match place.open_dir(b".") {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => place.try_clone(),
        other => other,
    }
    .map_err(|error| fail("open", path, error))
}

impl Way {
    fn last(&self) -> io::Result<&DirFd> {
        self.dirs.last().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }

    /// Puts the names of `path` before what is still to go.
    fn go(&mut self, path: &[u8]) -> io::Result<()> {
        if path.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        if path.starts_with(b"/") {
            self.dirs = vec![DirFd::open(Path::new("/"))?];
            self.path = PathBuf::from("/");
        } else if self.dirs.is_empty() {
            self.dirs.push(DirFd::open(Path::new("."))?);
        } else {
            // A relative symlink: its own name is no part of the way.
            self.path.pop();
        }
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
        self.rest.extend(names.map(<[u8]>::to_vec).rev());
        Ok(())
    }

    fn up(&mut self) -> io::Result<()> {
        let here = self.dirs.pop().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        if self.dirs.is_empty() {
            // Above where it started, which the user chose.
            self.dirs.push(here.open_place(b"..")?);
        }
        Ok(())
    }
}

/// Target of the symlink `name`, if it may be followed.
fn link_to_follow(at: &DirFd, name: &[u8], path: &Path) -> Result<Vec<u8>> {
    let fail = |error: io::Error| Error::io("open", path, &error);
    let entry = at.open_entry(name).map_err(fail)?;
    let stat = stat::of_fd(&entry).map_err(fail)?;
    if stat.kind != Kind::Symlink {
        return Err(fail(io::Error::from_raw_os_error(libc::ENOTDIR)));
    }
    if stat.uid != 0 && stat.uid != process::geteuid() {
        let what = format!("this symlink on the way to the target belongs to user {}; name the real place", stat.uid);
        return Err(Error::Unsupported { path: path.into(), what });
    }
    dir::readlink(&entry).map_err(fail)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, lchown, symlink};

    use super::*;

    fn ino(dir: &DirFd) -> u64 {
        dir.stat().unwrap().ino
    }

    #[test]
    fn each_way_to_a_directory_is_gone_as_the_kernel_goes_it() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("real/sub")).unwrap();
        symlink("real", base.join("relative")).unwrap();
        symlink(base.join("relative/sub"), base.join("absolute")).unwrap();
        symlink("../real/../relative", base.join("real/up")).unwrap();
        symlink("round", base.join("round")).unwrap();
        std::fs::write(base.join("file"), "").unwrap();
        let none = Spare::default();
        for way in
            ["real/sub", "relative/sub", "absolute", "absolute/../sub/.", "real/up/sub//", "real/up/up/sub/../sub"]
        {
            let wanted = std::fs::metadata(base.join(way)).unwrap().ino();
            assert_eq!(ino(&open(&base.join(way), &none).unwrap()), wanted, "{way}");
        }
        for (way, errno) in [("round", libc::ELOOP), ("file", libc::ENOTDIR), ("file/x", libc::ENOTDIR)] {
            assert!(
                matches!(open(&base.join(way), &none), Err(Error::Io { errno: found, .. }) if found == errno),
                "{way}"
            );
        }
        let made = open(&base.join("relative/new/er/../est"), &none).unwrap();
        assert_eq!(ino(&made), std::fs::metadata(base.join("real/new/est")).unwrap().ino());
        assert!(base.join("real/new/er").is_dir());
        let here = std::fs::metadata(".").unwrap().ino();
        assert_eq!(ino(&open(Path::new("."), &none).unwrap()), here);
        assert!(open(Path::new(""), &none).is_err());
        let above = std::fs::metadata("..").unwrap().ino();
        assert_eq!(ino(&open(Path::new(".."), &none).unwrap()), above);
    }

    #[test]
    fn a_symlink_of_somebody_else_is_refused_wherever_it_is_on_the_way() {
        if process::geteuid() != 0 {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("victim/sub")).unwrap();
        symlink("victim", base.join("theirs")).unwrap();
        lchown(base.join("theirs"), Some(1234), Some(1234)).unwrap();
        symlink("theirs", base.join("ours")).unwrap();
        for way in ["theirs", "theirs/sub", "theirs/new", "ours/sub", "victim/../theirs/."] {
            let Err(Error::Unsupported { path, what }) = open(&base.join(way), &Spare::default()) else {
                panic!("{way}")
            };
            assert!(path.ends_with("theirs") && what.contains("1234"), "{way}: {path:?} {what}");
        }
        assert!(!base.join("victim/new").exists());
    }

    #[test]
    fn nothing_is_made_in_the_backup_dir() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("backup/ledger")).unwrap();
        symlink("backup/ledger", base.join("link")).unwrap();
        let spare = Spare::backup_dir(&base.join("backup")).unwrap();
        for way in ["backup", "backup/ledger", "backup/new/er", "link/new", "link"] {
            assert!(matches!(open(&base.join(way), &spare), Err(Error::Unsupported { .. })), "{way}");
        }
        assert!(!base.join("backup/new").exists() && !base.join("backup/ledger/new").exists());
        open(&base.join("beside"), &spare).unwrap();
    }
}
