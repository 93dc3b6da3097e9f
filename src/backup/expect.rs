//! How much a run will have to look at, for the progress line only.
//!
//! From the version before where there is one; else counted beside the backup, which costs a second look at every
//! name and is done only when somebody watches.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::pipeline::Totals;
use crate::catalog::Kind;
use crate::live::{self, Boundaries};
use crate::monitor::Monitor;
use crate::os::DirFd;

#[derive(Debug)]
pub struct Expected {
    files: AtomicU64,
    bytes: AtomicU64,
    known: AtomicBool,
    stopped: AtomicBool,
}

impl Expected {
    pub fn new(before: Totals) -> Expected {
        Expected {
            files: AtomicU64::new(before.files),
            bytes: AtomicU64::new(before.bytes),
            known: AtomicBool::new(before.files > 0),
            stopped: AtomicBool::new(false),
        }
    }

    /// Files and bytes; zeros while they are not known.
    pub fn get(&self) -> (u64, u64) {
        match self.known.load(Ordering::Relaxed) {
            true => (self.files.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed)),
            false => (0, 0),
        }
    }

    /// Ends `count` early.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Counts what is below the paths, with at most `most_open` directories waiting. Errors are the backup's business,
    /// not this one's.
    pub fn count(&self, paths: &[Vec<u8>], boundaries: &Boundaries, most_open: usize, monitor: &dyn Monitor) {
        for path in paths {
            let Ok(opened) = live::open_path(&live::path_of(path)) else { continue };
            match opened.stat.kind {
                Kind::Dir => {
                    let name = if opened.name.is_empty() { b"." } else { opened.name.as_slice() };
                    let Ok(dir) = opened.parent.open_dir(name) else { continue };
                    let mut open = vec![(dir, opened.stat)];
                    while let Some((dir, stat)) = open.pop() {
                        // Very wide trees stay uncounted: the descriptors belong to the backup.
                        let crowded = open.len() > most_open;
                        if crowded || self.stopped.load(Ordering::Relaxed) || monitor.interrupted() {
                            return;
                        }
                        self.directory(&dir, &stat, opened.stat.dev, boundaries, &mut open);
                    }
                }
                kind => self.add(kind, opened.stat.size),
            }
        }
        self.known.store(true, Ordering::Relaxed);
    }

    fn directory(
        &self,
        dir: &DirFd,
        stat: &crate::os::Stat,
        start_dev: u64,
        boundaries: &Boundaries,
        open: &mut Vec<(DirFd, crate::os::Stat)>,
    ) {
        let Ok(listing) = live::list(dir) else { return };
        for (name, found) in listing.entries {
            match found.kind {
                Kind::Dir if matches!(boundaries.skip(&found, stat, start_dev, || dir.magic()), Ok(None)) => {
                    open.extend(dir.open_dir(&name).ok().map(|dir| (dir, found)));
                }
                kind => self.add(kind, found.size),
            }
        }
    }

    fn add(&self, kind: Kind, size: u64) {
        if kind == Kind::File {
            self.files.fetch_add(1, Ordering::Relaxed);
            // Holes add up to anything; this is only a guess.
            self.bytes.fetch_add(size.min(1 << 50), Ordering::Relaxed);
        }
    }
}
