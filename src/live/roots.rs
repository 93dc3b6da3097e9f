//! The paths of a run as one tree of names: those that it was given, those that earlier runs were given, and the
//! way from `/` to each of them.
//!
//! Invariants: nothing is held open; a path stands in the tree whatever other path is above or below it.

use std::collections::BTreeMap;
use std::path::Path;

use super::bounds::is_own_mount;
use super::paths::{OpenedPath, absolute, open_path};
use crate::error::{Error, Result};
use crate::monitor::{Event, Monitor};
use crate::text::shown;

/// A name on the way to a path, or a path itself.
#[derive(Debug, Default)]
pub struct Paths {
    /// This run saves it with all below it.
    pub given: bool,
    /// An earlier run was given it: it stays as it is where this run does not look.
    pub kept: bool,
    children: BTreeMap<Vec<u8>, Paths>,
}

impl Paths {
    pub fn child(&self, name: &[u8]) -> Option<&Paths> {
        self.children.get(name)
    }

    /// Names of the children at or below which something is given, in byte order.
    pub fn given_children(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.children.iter().filter(|(_, child)| child.leads_to_given()).map(|(name, _)| name)
    }

    /// It, or something below it, is given.
    pub fn leads_to_given(&self) -> bool {
        self.given || self.children.values().any(Paths::leads_to_given)
    }

    /// It, or something below it, was given to an earlier run.
    pub fn leads_to_kept(&self) -> bool {
        self.kept || self.children.values().any(Paths::leads_to_kept)
    }

    /// Adds to `into` what earlier runs were given at `path`, which is where this stands, and below it.
    pub fn list_kept(&self, path: &[u8], into: &mut Vec<Vec<u8>>) {
        if self.kept {
            into.push(if path.is_empty() { b"/".to_vec() } else { path.to_vec() });
        }
        for (name, child) in &self.children {
            child.list_kept(&[path, b"/", name].concat(), into);
        }
    }

    fn at(&mut self, path: &[u8]) -> &mut Paths {
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        names.fold(self, |node, name| node.children.entry(name.to_vec()).or_default())
    }
}

/// The paths of a run.
#[derive(Debug)]
pub struct Roots {
    pub tree: Paths,
    /// Those that were given and found, sorted.
    pub given: Vec<Vec<u8>>,
    pub failures: u64,
}

impl Roots {
    /// Looks for the paths. One that is not there is reported and left out. `earlier` are those of earlier runs.
    ///
    /// # Errors
    /// The last one, when not a single path is found; `USAGE` for a path in the backup dir.
    pub fn find(
        paths: &[std::path::PathBuf],
        earlier: &[Vec<u8>],
        backup_dir: &Path,
        monitor: &dyn Monitor,
    ) -> Result<Roots> {
        let mut roots = Roots { tree: Paths::default(), given: Vec::new(), failures: 0 };
        let mut failures = Vec::new();
        for path in paths {
            let absolute = absolute(path);
            match &absolute {
                Err(e @ Error::Usage(_)) => return Err(e.clone()),
                Ok(absolute) if absolute.starts_with(backup_dir) => {
                    return Err(Error::Usage(format!("{} is in the backup dir itself", shown(&path))));
                }
                _ => {}
            }
            let found = absolute.and_then(|_| open_path(path));
            match found.and_then(|found| refuse_own_mount(path, found)) {
                Ok(found) => {
                    if let Some(what) = hint(path, &found) {
                        monitor.event(Event::Warning { path: &found.path, what });
                    }
                    roots.tree.at(&found.path).given = true;
                    roots.given.push(found.path);
                }
                Err(e) if e.is_lack_of_descriptors() => return Err(e),
                Err(e) => failures.push((path, e)),
            }
        }
        roots.given.sort();
        roots.given.dedup();
        if roots.given.is_empty() {
            let last = failures.pop().map(|(_, error)| error);
            report(&failures, monitor);
            return Err(last.unwrap_or_else(|| Error::Usage("no path given".into())));
        }
        report(&failures, monitor);
        roots.failures = failures.len() as u64;
        for path in earlier {
            roots.tree.at(path).kept = true;
        }
        Ok(roots)
    }
}

fn report(failures: &[(&std::path::PathBuf, Error)], monitor: &dyn Monitor) {
    for (path, error) in failures {
        monitor.event(Event::Failure { path: std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()), error });
    }
}

/// What a mount of ours shows is a backup already; reading it would only compare the backup with itself.
fn refuse_own_mount(path: &Path, found: OpenedPath) -> Result<OpenedPath> {
    let magic =
        || if found.name.is_empty() { found.parent.magic() } else { found.parent.open_place(&found.name)?.magic() };
    let own = found.stat.is_dir().then(|| is_own_mount(found.stat.dev, magic));
    match own.unwrap_or_else(|| is_own_mount(found.stat.dev, || found.parent.magic())) {
        Ok(false) => Ok(found),
        Ok(true) => Err(Error::Unsupported { path: path.into(), what: "it is in a mounted backup".into() }),
        Err(e) => Err(Error::io("look at the mount table for", path, &e)),
    }
}

/// Something was given that holds no content itself, although the user may think that it does.
fn hint(path: &Path, found: &OpenedPath) -> Option<String> {
    use crate::catalog::Kind;
    Some(match found.stat.kind {
        Kind::Symlink => match std::fs::canonicalize(path) {
            Ok(target) => format!(
                "a symlink, saved as such and not what it leads to; to save that, give {} (or the link with a / at its end)",
                shown(&target)
            ),
            Err(_) => "a symlink that leads nowhere, saved as such".into(),
        },
        Kind::BlockDevice | Kind::CharDevice => {
            "a device: its node is saved, not what it holds; to save that, copy it into a file".into()
        }
        Kind::Fifo | Kind::Socket => "no regular file: it is saved, but nothing that goes through it".into(),
        Kind::File | Kind::Dir => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_beside_above_and_below_each_other_in_any_order() {
        for order in [[&b"/a/b/c"[..], b"/a", b"/a/b"], [b"/a", b"/a/b", b"/a/b/c"], [b"/a/b", b"/a/b/c", b"/a"]] {
            let mut tree = Paths::default();
            order.iter().for_each(|path| tree.at(path).given = true);
            tree.at(b"/a/x").kept = true;
            let a = tree.child(b"a").unwrap();
            assert!(a.given && a.child(b"b").unwrap().given && a.child(b"b").unwrap().child(b"c").unwrap().given);
            assert_eq!(a.given_children().collect::<Vec<_>>(), [b"b"]);
            let mut kept = Vec::new();
            tree.list_kept(b"", &mut kept);
            assert_eq!((kept, tree.leads_to_kept()), (vec![b"/a/x".to_vec()], true));
        }
        let mut root = Paths::default();
        root.at(b"/").kept = true;
        let mut kept = Vec::new();
        root.list_kept(b"", &mut kept);
        assert_eq!(kept, [b"/"]);
    }
}
