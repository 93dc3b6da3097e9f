//! The paths to save as one tree: the way from `/` to each of them, opened.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::walk::{self, OpenedPath};
use crate::error::{Error, Result};
use crate::monitor::{Event, Monitor};
use crate::os::{DirFd, Stat};
use crate::text::shown;

/// A directory on the way to a path, or a path itself.
#[derive(Debug)]
pub struct PathNode {
    /// For a target below `/`: the directory that holds it, which is not used.
    pub dir: Arc<DirFd>,
    pub stat: Stat,
    /// Saved with all below it.
    pub target: bool,
    pub children: BTreeMap<Vec<u8>, PathNode>,
}

impl PathNode {
    /// Opens the paths. One that can't be opened is reported and left out.
    ///
    /// # Errors
    /// The last one, when not a single path can be opened; `USAGE` for a path in the backup dir.
    pub fn open(paths: &[std::path::PathBuf], backup_dir: &Path, monitor: &dyn Monitor) -> Result<Opened> {
        let mut root: Option<PathNode> = None;
        let mut opened = Vec::new();
        let mut failures = Vec::new();
        for path in paths {
            let absolute = walk::absolute(path);
            match &absolute {
                Err(e @ Error::Usage(_)) => return Err(e.clone()),
                Ok(absolute) if absolute.starts_with(backup_dir) => {
                    return Err(Error::Usage(format!("{} is in the backup dir itself", shown(&path))));
                }
                _ => {}
            }
            let found = absolute.and_then(|_| walk::open_path(path));
            match found.and_then(|found| refuse_own_mount(path, found)) {
                Ok(found) => {
                    opened.push(found.path.clone());
                    let node = root.take();
                    root = Some(insert(node, found)?);
                }
                Err(e) if e.is_lack_of_descriptors() => return Err(e),
                Err(e) => failures.push((path, e)),
            }
        }
        opened.sort();
        opened.dedup();
        let last = if root.is_none() { failures.pop() } else { None };
        for (path, error) in &failures {
            monitor.event(Event::Failure { path: std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()), error });
        }
        match (root, last) {
            (Some(root), _) => Ok(Opened { root, paths: opened, failures: failures.len() as u64 }),
            (None, Some((_, error))) => Err(error),
            (None, None) => Err(Error::Usage("no path given".into())),
        }
    }
}

/// The paths that were opened.
#[derive(Debug)]
pub struct Opened {
    pub root: PathNode,
    pub paths: Vec<Vec<u8>>,
    pub failures: u64,
}

/// What a mount of ours shows is a backup already; reading it would only compare the backup with itself.
fn refuse_own_mount(path: &Path, found: OpenedPath) -> Result<OpenedPath> {
    match walk::is_own_mount(found.stat.dev) {
        Ok(false) => Ok(found),
        Ok(true) => Err(Error::Unsupported { path: path.into(), what: "it is in a mounted backup".into() }),
        Err(e) => Err(Error::io("look at the mount table for", path, &e)),
    }
}

fn insert(root: Option<PathNode>, found: OpenedPath) -> Result<PathNode> {
    let mut ancestors = found.ancestors.into_iter();
    let first = ancestors.next().ok_or(Error::Usage("a path without a root".into()))?;
    let mut root = root.unwrap_or_else(|| PathNode {
        dir: Arc::new(first.dir),
        stat: first.stat,
        target: false,
        children: BTreeMap::new(),
    });
    let mut at = &mut root;
    for ancestor in ancestors {
        if at.target {
            return Ok(root);
        }
        at = at.children.entry(ancestor.name).or_insert_with(|| PathNode {
            dir: Arc::new(ancestor.dir),
            stat: ancestor.stat,
            target: false,
            children: BTreeMap::new(),
        });
    }
    if found.name.is_empty() {
        at.target = true;
        at.children.clear();
    } else if !at.target {
        let dir = at.dir.clone();
        let child = at.children.entry(found.name).or_insert(PathNode {
            dir,
            stat: found.stat,
            target: true,
            children: BTreeMap::new(),
        });
        child.target = true;
        child.children.clear();
    }
    Ok(root)
}
