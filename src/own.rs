//! A directory that is ours as a place, and the files in it, each by one name.
//!
//! Invariants: a name is never a path, and no symlink is followed but one of ours under a name that may be one; what is
//! opened is a regular file, and nobody is waited for; what is written to has one name only and is ours. A directory in
//! which others can write is refused unless the user vouches for them; one that is another user's is only read.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::catalog::Kind;
use crate::error::{Error, Foreign, Result};
use crate::os::process::geteuid;
use crate::os::stat::{self, Stat};
use crate::os::{DirFd, dir::Write};

/// What to do about a directory in which others can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    #[default]
    Refused,
    /// The user says that whoever can write there is trusted.
    Allowed,
}

/// Which entries of a directory may be symlinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Links {
    /// Those that the user prepares (`prepared`).
    Prepared,
    /// All of them: this process has made them.
    Made,
}

/// An open directory.
pub struct OwnDir {
    fd: DirFd,
    path: PathBuf,
    sharing: Sharing,
    links: Links,
    owner: u32,
    /// Others can come to the files in it, as far as the files let them.
    is_passable: bool,
}

impl fmt::Debug for OwnDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnDir").field(&self.path).finish()
    }
}

impl OwnDir {
    /// Opens the directory that the user has named, symlinks in its path followed.
    ///
    /// # Errors
    /// `DIR_SHARED` when others can write there; `IO`.
    pub fn open(path: &Path, sharing: Sharing) -> Result<OwnDir> {
        let fd = DirFd::open(path).map_err(|e| Error::io("open", path, &e))?;
        OwnDir::checked(fd, path.to_path_buf(), sharing)
    }

    /// Opens a private directory of links that this process has made itself.
    pub fn of_links(path: &Path) -> Result<OwnDir> {
        OwnDir::open(path, Sharing::Refused).map(|dir| OwnDir { links: Links::Made, ..dir })
    }

    fn checked(fd: DirFd, path: PathBuf, sharing: Sharing) -> Result<OwnDir> {
        let found = fd.stat().map_err(|e| Error::io("stat", &path, &e))?;
        if sharing == Sharing::Refused && found.perm & 0o022 != 0 {
            return Err(Error::DirShared {
                path,
                what: format!("others can write there (mode {:04o}): not used", found.perm),
            });
        }
        let is_passable = found.perm & 0o011 != 0;
        Ok(OwnDir { fd, path, sharing, links: Links::Prepared, owner: found.uid, is_passable })
    }

    /// For messages, and for those who must open by path (SQLite).
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn path_of(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path.join(name.as_ref())
    }

    /// Nothing is written in another user's directory.
    pub fn is_foreign(&self) -> bool {
        self.sharing == Sharing::Refused && !is_us(self.owner)
    }

    /// # Errors
    /// `DIR_SHARED` in another user's directory.
    pub fn check_writable(&self) -> Result<()> {
        if self.is_foreign() {
            let what = format!("it belongs to user {}: it is only read, not written to", self.owner);
            return Err(Error::DirShared { path: self.path.clone(), what });
        }
        Ok(())
    }

    /// Opens a file whose content proves itself.
    ///
    /// # Errors
    /// `IO` with the errno; `FILE_FOREIGN` for what is no regular file.
    pub fn read(&self, name: impl AsRef<OsStr>) -> Result<File> {
        let name = name.as_ref();
        let opened = match self.links {
            Links::Prepared => self.fd.open_file(name.as_bytes()),
            Links::Made => self.fd.open_file_followed(name.as_bytes()),
        };
        self.regular("open", name, opened).map(|(file, _)| file)
    }

    /// Opens a file that the user may have prepared, and whose content is believed; None where there is none. It may be
    /// a symlink, where link and file are ours.
    pub fn prepared(&self, name: impl AsRef<OsStr>) -> Result<Option<File>> {
        let name = name.as_ref();
        self.check_link(name)?;
        let opened = match self.fd.open_file_followed(name.as_bytes()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => self.regular("open", name, opened),
        };
        let (file, found) = opened?;
        self.check_ours(name, &found)?;
        Ok(Some(file))
    }

    /// # Errors
    /// `FILE_FOREIGN` when the entry is a symlink that somebody else has made.
    pub fn check_link(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = name.as_ref();
        match self.stat(name)? {
            Some(link) if link.kind == Kind::Symlink && !self.is_trusted(link.uid) => {
                self.refuse(name, Foreign::Owner(link.uid))
            }
            _ => Ok(()),
        }
    }

    /// Opens a file for writing, and makes it if it is not there.
    pub fn write(&self, name: impl AsRef<OsStr>, perm: u32, how: Write) -> Result<File> {
        let name = name.as_ref();
        self.check_writable()?;
        let (file, found) = self.regular("open", name, self.fd.open_or_create(name.as_bytes(), perm, how))?;
        self.check_written(name, &found)?;
        Ok(file)
    }

    /// Opens a file that is there for writing.
    pub fn rewrite(&self, name: impl AsRef<OsStr>) -> Result<File> {
        let name = name.as_ref();
        self.check_writable()?;
        let (file, found) = self.regular("open for writing", name, self.fd.open_file_writable(name.as_bytes()))?;
        self.check_written(name, &found)?;
        Ok(file)
    }

    /// Makes a file that is not there yet.
    pub fn create(&self, name: impl AsRef<OsStr>, perm: u32) -> Result<File> {
        let name = name.as_ref();
        self.check_writable()?;
        self.fd.create_file(name.as_bytes(), perm).map_err(|e| Error::io("create", self.path_of(name), &e))
    }

    /// Looks at a file that somebody else (SQLite) will open by path and write to. One that is not there is fine.
    pub fn check_before_writing(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = name.as_ref();
        match self.stat(name)? {
            Some(found) if found.kind == Kind::Symlink => self.refuse(name, Foreign::Link),
            Some(found) if found.kind != Kind::File => self.refuse(name, Foreign::NoFile),
            Some(found) => self.check_written(name, &found),
            None => Ok(()),
        }
    }

    /// Renames an entry, and replaces what has the new name.
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let renamed = self.fd.rename_at(from.as_bytes(), &self.fd, to.as_bytes());
        renamed.map_err(|e| Error::io("rename", self.path_of(from), &e))
    }

    /// Removes a file; one that is not there is fine.
    pub fn remove_if_there(&self, name: impl AsRef<OsStr>) -> Result<()> {
        match self.fd.unlink_at(name.as_ref().as_bytes()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", self.path_of(name), &e)),
            _ => Ok(()),
        }
    }

    /// The entry itself; None where there is none.
    pub fn stat(&self, name: impl AsRef<OsStr>) -> Result<Option<Stat>> {
        match self.fd.stat_at(name.as_ref().as_bytes()) {
            Ok(found) => Ok(Some(found)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("stat", self.path_of(name), &e)),
        }
    }

    /// Names of all entries, sorted.
    pub fn names(&self) -> Result<Vec<Vec<u8>>> {
        // A descriptor of its own: a listing has a position.
        let listed = self.fd.open_dir(b".").and_then(|dir| dir.read_names());
        let mut names = listed.map_err(|e| Error::io("list", &self.path, &e))?;
        names.sort_unstable();
        Ok(names)
    }

    /// Makes the names in it durable.
    pub fn sync(&self) -> Result<()> {
        let synced = self.fd.open_dir(b".").and_then(|dir| dir.sync());
        synced.map_err(|e| Error::io("fsync", &self.path, &e))
    }

    /// A directory in it, under the same rules; None where there is none.
    pub fn sub(&self, name: &str) -> Result<Option<OwnDir>> {
        let path = self.path_of(name);
        match self.fd.open_dir(name.as_bytes()) {
            Ok(fd) => OwnDir::checked(fd, path, self.sharing).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {
                self.refuse(name.as_ref(), Foreign::NoDir)
            }
            Err(e) => Err(Error::io("open", path, &e)),
        }
    }

    /// As `sub`, made if it is not there.
    pub fn sub_made(&self, name: &str, perm: u32) -> Result<OwnDir> {
        self.check_writable()?;
        match self.fd.mkdir_at(name.as_bytes(), perm) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create", self.path_of(name), &e));
            }
            _ => {}
        }
        let made = self.sub(name)?.ok_or_else(|| {
            let gone = io::Error::from_raw_os_error(libc::ENOENT);
            Error::io("open", self.path_of(name), &gone)
        })?;
        made.check_writable()?;
        Ok(made)
    }

    /// Sets the permission bits of the entry itself.
    pub fn chmod(&self, name: impl AsRef<OsStr>, perm: u32) -> Result<()> {
        let changed = self.fd.open_entry(name.as_ref().as_bytes()).and_then(|fd| crate::os::file::chmod(fd, perm));
        changed.map_err(|e| Error::io("chmod", self.path_of(name), &e))
    }

    fn regular(&self, op: &'static str, name: &OsStr, opened: io::Result<File>) -> Result<(File, Stat)> {
        let opened = opened.and_then(|file| stat::of_fd(&file).map(|found| (file, found)));
        match opened {
            Ok((_, found)) if found.kind != Kind::File => self.refuse(name, Foreign::NoFile),
            Ok(opened) => Ok(opened),
            Err(e) => match e.raw_os_error() {
                Some(libc::ELOOP) => self.refuse(name, Foreign::Link),
                // A socket, a device, a directory that was to be written to.
                Some(libc::ENXIO | libc::ENODEV | libc::EISDIR) => self.refuse(name, Foreign::NoFile),
                _ => Err(Error::io(op, self.path_of(name), &e)),
            },
        }
    }

    /// Whoever owns the directory can do to its files what they like.
    fn is_trusted(&self, uid: u32) -> bool {
        self.sharing == Sharing::Allowed || is_us(uid) || uid == self.owner
    }

    fn check_ours(&self, name: &OsStr, found: &Stat) -> Result<()> {
        if !self.is_trusted(found.uid) {
            return self.refuse(name, Foreign::Owner(found.uid));
        }
        let others_write = found.perm & 0o022 != 0 && self.is_passable;
        if others_write && self.sharing == Sharing::Refused {
            return self.refuse(name, Foreign::Writable(found.perm));
        }
        Ok(())
    }

    fn check_written(&self, name: &OsStr, found: &Stat) -> Result<()> {
        if found.nlink > 1 {
            return self.refuse(name, Foreign::Names(found.nlink));
        }
        self.check_ours(name, found)
    }

    fn refuse<T>(&self, name: &OsStr, why: Foreign) -> Result<T> {
        Err(Error::FileForeign { path: self.path_of(name), why })
    }
}

fn is_us(uid: u32) -> bool {
    uid == 0 || uid == geteuid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    fn own() -> (tempfile::TempDir, OwnDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = OwnDir::open(temp.path(), Sharing::Refused).unwrap();
        (temp, dir)
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_no_file_of_ours_is_not_written_to() {
        let (temp, dir) = own();
        let victim = temp.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, temp.path().join("link")).unwrap();
        symlink("nowhere", temp.path().join("dangling")).unwrap();
        fs::hard_link(&victim, temp.path().join("second")).unwrap();
        fs::create_dir(temp.path().join("dir")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(temp.path().join("fifo")).status().unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(temp.path().join("socket")).unwrap();
        for name in ["link", "dangling", "second", "dir", "fifo", "socket"] {
            for how in [Write::Over, Write::Append] {
                assert_eq!(dir.write(name, 0o600, how).unwrap_err().code(), "FILE_FOREIGN", "{name}");
            }
            assert_eq!(dir.rewrite(name).unwrap_err().code(), "FILE_FOREIGN", "{name}");
            assert_eq!(dir.check_before_writing(name).unwrap_err().code(), "FILE_FOREIGN", "{name}");
            assert_eq!(dir.create(name, 0o600).unwrap_err().code(), "IO", "{name}");
            if name != "second" {
                assert_eq!(dir.read(name).unwrap_err().code(), "FILE_FOREIGN", "{name}");
            }
        }
        assert_eq!(dir.sub("link").unwrap_err().code(), "FILE_FOREIGN");
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert!(!temp.path().join("nowhere").exists());
        dir.write("own", 0o600, Write::Append).unwrap().write_all(b"mine").unwrap();
        assert_eq!(fs::read(temp.path().join("own")).unwrap(), b"mine");
    }

    #[test]
    fn a_directory_in_which_others_write_needs_a_word() {
        let temp = tempfile::tempdir().unwrap();
        for shared in [0o777, 0o770, 0o702, 0o1777] {
            mode(temp.path(), shared);
            assert_eq!(OwnDir::open(temp.path(), Sharing::Refused).unwrap_err().code(), "DIR_SHARED", "{shared:o}");
            OwnDir::open(temp.path(), Sharing::Allowed).unwrap();
        }
        mode(temp.path(), 0o755);
        let dir = OwnDir::open(temp.path(), Sharing::Refused).unwrap();
        fs::create_dir(temp.path().join("sub")).unwrap();
        mode(&temp.path().join("sub"), 0o777);
        assert_eq!(dir.sub("sub").unwrap_err().code(), "DIR_SHARED");
        assert_eq!(dir.sub_made("sub", 0o700).unwrap_err().code(), "DIR_SHARED");
        // Where others come to a file, its own mode counts.
        fs::write(temp.path().join("conf"), "x").unwrap();
        mode(&temp.path().join("conf"), 0o666);
        assert_eq!(dir.prepared("conf").unwrap_err().code(), "FILE_FOREIGN");
        mode(temp.path(), 0o700);
        OwnDir::open(temp.path(), Sharing::Refused).unwrap().prepared("conf").unwrap().unwrap();
    }

    #[test]
    fn a_prepared_file_may_be_a_link_of_ours_to_a_file_of_ours() {
        let (temp, dir) = own();
        fs::write(temp.path().join("elsewhere"), "x").unwrap();
        symlink("elsewhere", temp.path().join("conf")).unwrap();
        symlink("nowhere", temp.path().join("dangling")).unwrap();
        symlink("/dev/zero", temp.path().join("zero")).unwrap();
        dir.prepared("conf").unwrap().unwrap();
        assert!(dir.prepared("absent").unwrap().is_none() && dir.prepared("dangling").unwrap().is_none());
        assert_eq!(dir.prepared("zero").unwrap_err().code(), "FILE_FOREIGN");
        if geteuid() == 0 {
            lchown(temp.path().join("conf"), Some(7777), None).unwrap();
            assert_eq!(dir.prepared("conf").unwrap_err().code(), "FILE_FOREIGN");
            lchown(temp.path().join("conf"), Some(0), None).unwrap();
            chown(temp.path().join("elsewhere"), Some(7777), None).unwrap();
            assert_eq!(dir.prepared("conf").unwrap_err().code(), "FILE_FOREIGN");
            assert_eq!(dir.write("elsewhere", 0o600, Write::Append).unwrap_err().code(), "FILE_FOREIGN");
        }
    }

    #[test]
    fn another_users_directory_is_only_read() {
        if geteuid() != 0 {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("f"), "x").unwrap();
        chown(temp.path(), Some(7777), None).unwrap();
        let dir = OwnDir::open(temp.path(), Sharing::Refused).unwrap();
        assert!(dir.is_foreign());
        dir.read("f").unwrap();
        for error in [
            dir.write("f", 0o600, Write::Append).unwrap_err(),
            dir.create("g", 0o600).unwrap_err(),
            dir.sub_made("s", 0o700).unwrap_err(),
        ] {
            assert_eq!(error.code(), "DIR_SHARED");
        }
        let vouched = OwnDir::open(temp.path(), Sharing::Allowed).unwrap();
        vouched.create("g", 0o600).unwrap();
    }
}
