//! What a path that the user gives is called in a version.
//!
//! Versions hold paths as they really are: absolute, with the symlinks before the last name resolved. The user may
//! write it otherwise, and what the path leads through may be gone or changed by now: each reading is tried. In a mount of
//! the same backup dir a path has the version in it, and means what is shown there.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::live;
use crate::os::mounts;
use crate::text::shown;

/// What the user named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// As it was given; if it is in a mount, what it is there below the folder of its version.
    pub path: OsString,
    /// That folder.
    pub folder: Option<String>,
}

/// Takes a path in a mount of the backup dir apart; any other stays as it is.
///
/// Errors: `Usage` if it is in a mount of another backup dir.
pub fn given(what: &OsStr, backup_dir: &Path) -> Result<Given> {
    let plain = Given { path: what.into(), folder: None };
    let Some((mount, inside)) = mount_of(Path::new(what)) else { return Ok(plain) };
    let own = backup_dir.canonicalize().unwrap_or_default();
    // fusermount takes text only.
    if mount.source != own && mount.source.as_os_str() != shown(&own).to_string().as_str() {
        let (what, source) = (shown(what), shown(&mount.source));
        return Err(Error::Usage(format!("{what} is in a mount of another backup dir: name that with -c {source}")));
    }
    let mut names = inside.components();
    let folder = names.next().and_then(|name| name.as_os_str().to_str().map(str::to_string));
    Ok(match folder {
        Some(_) => Given { path: Path::new("/").join(names.as_path()).into(), folder },
        None => plain,
    })
}

/// The mount of ours that a path is in, and the rest of the path.
pub fn mount_of(path: &Path) -> Option<(mounts::Mount, PathBuf)> {
    let absolute = live::absolute(path).or_else(|_| std::path::absolute(path)).ok()?;
    let all = mounts::all().ok()?;
    let mount = mounts::holding(&all, &absolute).filter(|mount| mount.fstype == "fuse.assay")?;
    Some((mount.clone(), absolute.strip_prefix(&mount.point).ok()?.to_path_buf()))
}

/// The version that paths are of: the one that was asked for, or the one in whose folder they are, or the newest.
pub fn version_of<'a>(asked: Option<&'a str>, given: &'a [Given]) -> Result<&'a str> {
    let mut folders = given.iter().map(|given| given.folder.as_deref());
    let first = folders.next().flatten();
    match (asked, folders.find(|folder| *folder != first)) {
        (Some(asked), _) => Ok(asked),
        (None, None) => Ok(first.unwrap_or("latest")),
        (None, Some(_)) => Err(Error::Usage("the paths are of different versions: name one with -r".into())),
    }
}

/// The first reading of a path that `find` knows, or the first of all if none is known. `true` if it is known.
///
/// A reading that `find` can't judge (for damage, say) counts as known: using it tells what is wrong.
pub fn stored(given: &OsStr, mut find: impl FnMut(&[u8]) -> Result<()>) -> Result<(Vec<u8>, bool)> {
    let readings = readings(Path::new(given));
    let known = readings.iter().find(|path| !matches!(find(path), Err(Error::NoPath { .. })));
    match (known, readings.first()) {
        (Some(path), _) => Ok((path.clone(), true)),
        (None, Some(first)) => Ok((first.clone(), false)),
        (None, None) => Err(Error::Usage("an empty path can't be found".into())),
    }
}

/// All readings, the most literal first.
fn readings(given: &Path) -> Vec<Vec<u8>> {
    // Fails for an empty path, and for a relative one when the current directory is gone.
    let Ok(absolute) = std::path::absolute(given) else { return Vec::new() };
    let climbs = absolute.components().any(|part| part == Component::ParentDir);
    let lexical = without_climbing(&absolute);
    let literal = (given.is_absolute() && !climbs).then(|| lexical.clone());
    let resolved = live::absolute(given).ok();
    let resolved_in_part = resolved_in_part(&lexical);
    let mut found: Vec<Vec<u8>> = Vec::new();
    for path in literal.into_iter().chain(resolved).chain([lexical, resolved_in_part]) {
        let path = path.into_os_string().into_vec();
        if !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

/// `a/b/../c` is `a/c`, whatever `b` is or was.
fn without_climbing(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    out
}

/// Resolves the symlinks in as many parents as there still are.
fn resolved_in_part(path: &Path) -> PathBuf {
    for above in path.ancestors().skip(1) {
        if let (Ok(real), Ok(rest)) = (above.canonicalize(), path.strip_prefix(above)) {
            return real.join(rest);
        }
    }
    PathBuf::from(OsStr::from_bytes(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(given: &Path, known: &Path) -> Option<PathBuf> {
        let no_path = || Error::NoPath { path: Vec::new(), version: crate::ids::Version(0) };
        let find = |path: &[u8]| if path == known.as_os_str().as_bytes() { Ok(()) } else { Err(no_path()) };
        let (path, found) = stored(given.as_os_str(), find).unwrap();
        found.then(|| PathBuf::from(OsStr::from_bytes(&path)))
    }

    #[test]
    fn each_reading_of_a_path_is_found() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("real/sub")).unwrap();
        std::os::unix::fs::symlink("real", base.join("link")).unwrap();
        let real = base.join("real/sub/f");
        for given in ["real/sub/f", "link/sub/f", "link/sub/../sub/f", "real/sub//./f", "link/sub/f/"] {
            assert_eq!(chosen(&base.join(given), &real), Some(real.clone()), "{given}");
        }
        // The link was a directory when it was saved; parents are gone.
        assert_eq!(chosen(&base.join("link/x"), &base.join("link/x")), Some(base.join("link/x")));
        assert_eq!(chosen(&base.join("link/gone/x"), &base.join("real/gone/x")), Some(base.join("real/gone/x")));
        assert_eq!(chosen(&base.join("gone/../real/x"), &base.join("real/x")), Some(base.join("real/x")));
        assert_eq!(chosen(&base.join("other"), &real), None);
        let here = std::env::current_dir().unwrap();
        assert_eq!(chosen(Path::new("gone/deep/x"), &here.join("gone/deep/x")), Some(here.join("gone/deep/x")));
        assert_eq!(chosen(Path::new("/"), Path::new("/")), Some(PathBuf::from("/")));
        assert!(matches!(stored(OsStr::new(""), |_| Ok(())), Err(Error::Usage(_))));
    }
}
