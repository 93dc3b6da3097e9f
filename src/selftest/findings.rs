//! What a selftest found: each thing once, with its place, cause, the files that it hits and the remedy.

use std::ops::Range;
use std::sync::Mutex;

use super::Level;
use crate::error::{Error, Place};
use crate::ids::{Logid, Version};
use crate::store::lock;

/// Why something is wrong, as far as can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A second read, past the page cache, was right: memory, cable or controller.
    Transient,
    /// The stored bytes are not those that were written.
    Medium,
    /// Authentic bytes with wrong content: they were wrong before they were sealed.
    Memory,
    /// The arc file, or a part of it, is not there.
    Missing,
    /// The index says something else than the arcs, or can't be read.
    Index,
    /// The catalog or commit record in an arc.
    Catalog,
    /// Another key, another backup dir.
    Key,
    /// It could not be checked: an I/O error, a permission.
    Unchecked,
}

/// A file that uses what is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    pub logid: Logid,
    pub path: Vec<u8>,
    /// First and last version that show it so.
    pub versions: (Version, Version),
    /// Bytes of the file; the whole of it if that can't be told.
    pub bytes: Range<u64>,
}

/// Something that is wrong.
#[derive(Debug, Clone)]
pub struct Finding {
    pub level: Level,
    pub error: Error,
    pub cause: Cause,
    /// Where in an arc, if it is there.
    pub place: Option<Place>,
    /// At most `MAX_HITS`.
    pub hits: Vec<Hit>,
    pub hits_total: u64,
    /// What the user can do.
    pub remedy: &'static str,
    /// What was done about it.
    pub fixed: Option<String>,
}

/// Findings that are listed; more are counted.
pub const MAX_LISTED: usize = 10_000;
/// Files that are named for one finding.
pub const MAX_HITS: usize = 100;

/// Collects from any thread.
#[derive(Debug, Default)]
pub struct Findings(Mutex<(Vec<Finding>, u64)>);

impl Findings {
    pub fn add(&self, finding: Finding) {
        let mut all = lock(&self.0);
        if all.0.len() < MAX_LISTED {
            all.0.push(finding);
        } else {
            all.1 += 1;
        }
    }

    pub fn count(&self) -> u64 {
        let all = lock(&self.0);
        all.0.len() as u64 + all.1
    }

    /// Counts findings that are not listed.
    pub fn add_unlisted(&self, count: u64) {
        lock(&self.0).1 += count;
    }

    /// All of them, and how many more there were.
    pub fn take(&self) -> (Vec<Finding>, u64) {
        std::mem::take(&mut *lock(&self.0))
    }
}
