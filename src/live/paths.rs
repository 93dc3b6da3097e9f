//! Paths of the source: made absolute, and opened name by name.
//!
//! Invariant: from `/` on every directory is opened by one name relative to its parent, never through a symlink, so that
//! whoever can write to the source can't lead a backup by root elsewhere.

use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::os::{DirFd, Stat};

/// A path to save, found.
#[derive(Debug)]
pub struct OpenedPath {
    /// Absolute, as it will be in the version.
    pub path: Vec<u8>,
    /// The directory that holds the entry, as a place only (can't be listed), but for `/`.
    pub parent: DirFd,
    /// Name in the parent; empty when the path is `/`, which is the parent itself.
    pub name: Vec<u8>,
    pub stat: Stat,
}

/// Makes a path that the user gave absolute: symlinks *before* the last component are resolved (the version
/// shows where things really are), the last one is taken as it is: a symlink is saved as a symlink, unless the
/// path ends in `/`, `.` or `..`.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    let fail = |error: io::Error| Error::io("find", path, &error);
    let bytes = path.as_os_str().as_bytes();
    let whole = bytes.ends_with(b"/") || bytes.ends_with(b"/.") || path.file_name().is_none();
    let resolve = |path: &Path| match std::fs::canonicalize(path) {
        // Deeper than the kernel takes in one path: it must be plain already, and is opened name by name.
        Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) && is_plain(path) => Ok(path.to_path_buf()),
        other => other.map_err(fail),
    };
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !whole => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(resolve(parent)?.join(name))
        }
        _ if bytes.is_empty() => Err(Error::Usage("an empty path can't be found".into())),
        _ => resolve(path),
    }
}

/// Absolute and without `.` and `..`.
fn is_plain(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.starts_with(b"/") && !bytes.split(|byte| *byte == b'/').any(|name| name == b"." || name == b"..")
}

/// Opens a path to save component by component, after [`absolute`].
pub fn open_path(path: &Path) -> Result<OpenedPath> {
    let path = absolute(path)?;
    let fail = |error: io::Error| Error::io("open", &path, &error);
    let mut names: Vec<&[u8]> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.as_bytes()),
            _ => None,
        })
        .collect();
    let name = names.pop().unwrap_or_default().to_vec();
    let parent = open_place(&names).map_err(fail)?;
    let stat = if name.is_empty() { parent.stat() } else { parent.stat_at(&name) }.map_err(fail)?;
    Ok(OpenedPath { parent, name, stat, path: path.into_os_string().into_vec() })
}

/// Opens the directory to which these names lead from `/`, as a place only (but for `/` itself). Never more than two
/// directories are open.
pub fn open_place(names: &[&[u8]]) -> io::Result<DirFd> {
    names.iter().try_fold(DirFd::open(Path::new("/"))?, |dir, name| dir.open_place(name))
}

/// What stands before the last name of an absolute path; empty for `/`.
pub fn parent_of(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path.get(..end).unwrap_or_default()
}

/// The same bytes as a path.
pub fn path_of(path: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::list;
    use super::*;
    use crate::catalog::Kind;

    #[test]
    fn parents_are_opened_from_the_root_and_the_last_symlink_is_kept() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("real/sub")).unwrap();
        symlink("real", base.join("link")).unwrap();
        symlink("sub", base.join("real/inner")).unwrap();

        let opened = open_path(&base.join("link/inner")).unwrap();
        assert_eq!(opened.path, base.join("real/inner").as_os_str().as_bytes());
        assert_eq!((opened.stat.kind, opened.name.as_slice()), (Kind::Symlink, &b"inner"[..]));
        assert!(opened.parent.stat().unwrap().same_file(&DirFd::open(&base.join("real")).unwrap().stat().unwrap()));

        for whole in ["link/", "link/.", "real/sub/.."] {
            assert_eq!(open_path(&base.join(whole)).unwrap().path, base.join("real").as_os_str().as_bytes(), "{whole}");
        }
        let missing = open_path(&base.join("none/x")).unwrap_err();
        assert!(missing.to_string().contains("none/x"), "{missing}");
    }

    #[test]
    fn the_root_itself_is_its_own_parent() {
        let opened = open_path(Path::new("/")).unwrap();
        assert_eq!((opened.path.as_slice(), opened.name.len()), (&b"/"[..], 0));
        assert!(list(&opened.parent).unwrap().entries.iter().any(|(name, _)| name == b"proc"));
        assert!(open_path(Path::new("")).is_err());
    }

    #[test]
    fn a_symlink_in_the_place_of_a_parent_is_refused_when_it_appears_late() {
        let temp = tempfile::tempdir().unwrap();
        symlink("/etc", temp.path().join("evil")).unwrap();
        assert!(DirFd::open(temp.path()).unwrap().open_place(b"evil").is_err());
    }

    #[test]
    fn paths_longer_than_4096_bytes_open() {
        let temp = tempfile::tempdir().unwrap();
        let mut path = temp.path().canonicalize().unwrap();
        let mut dir = DirFd::open(&path).unwrap();
        for _ in 0..20 {
            let component = "d".repeat(255);
            dir.mkdir_at(component.as_bytes(), 0o700).unwrap();
            dir = dir.open_dir(component.as_bytes()).unwrap();
            path.push(component);
        }
        dir.create_file(b"f", 0o600).unwrap();
        path.push("f");
        let opened = open_path(&path).unwrap();
        assert!(opened.path.len() > 5_000);
        assert_eq!(opened.stat.kind, Kind::File);
        assert!(opened.parent.stat().unwrap().same_file(&dir.stat().unwrap()));
    }
}
