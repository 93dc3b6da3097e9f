//! What a run does not look at, on purpose: counted and named, so that nothing is left out without a word.

use crate::catalog::VersionInfo;
use crate::error::{Error, Result};
use crate::live::Skip;
use crate::monitor::{Event, Monitor};

#[derive(Debug, Default)]
pub struct LeftOut {
    /// Entries that are not left out.
    pub met: u64,
    pub vanished: u64,
    excluded: u64,
    not_entered: Vec<Vec<u8>>,
    /// What earlier runs were given and this one did not look at.
    pub kept_paths: Vec<Vec<u8>>,
    /// Directories that were given, and of which patterns leave out all.
    emptied: Vec<Vec<u8>>,
    /// A path was given of which something is saved.
    something: bool,
}

impl LeftOut {
    /// Entries met and excluded so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.met, self.excluded)
    }

    pub fn excluded(&mut self, path: &[u8], monitor: &dyn Monitor) {
        self.excluded += 1;
        monitor.event(Event::LeftOut { path, why: "excluded" });
    }

    pub fn not_entered(&mut self, path: &[u8], why: Skip, monitor: &dyn Monitor) {
        let what = match why {
            Skip::BackupDir => "the backup dir itself",
            Skip::OtherFileSystem => "another file system, not entered",
            Skip::OwnMount => "a mounted backup, not entered",
        };
        monitor.event(Event::LeftOut { path, why: what });
        if why != Skip::BackupDir {
            self.not_entered.push(path.to_vec());
        }
    }

    /// What an earlier run was given stays.
    pub fn keep(&mut self, path: &[u8]) {
        self.kept_paths.push(if path.is_empty() { b"/".to_vec() } else { path.to_vec() });
    }

    /// A path that was given is done; `before` are the counts when it was begun.
    pub fn saved_given(&mut self, path: &[u8], is_dir: bool, before: (u64, u64)) {
        let (met, excluded) = before;
        if is_dir && self.met == met && self.excluded > excluded {
            self.emptied.push(if path.is_empty() { b"/".to_vec() } else { path.to_vec() });
        } else {
            self.something = true;
        }
    }

    /// # Errors
    /// `ALL_EXCLUDED` when nothing is left of all that was given.
    pub fn tell(&self, monitor: &dyn Monitor) -> Result<()> {
        if !self.something && !self.emptied.is_empty() {
            return Err(Error::AllExcluded { excluded: self.excluded });
        }
        for path in &self.emptied {
            monitor.event(Event::Warning { path, what: "patterns leave out all that is in it".into() });
        }
        Ok(())
    }

    /// Adds what is to be known of it to a version's counts.
    pub fn into_info(mut self, info: &mut VersionInfo) {
        self.kept_paths.sort();
        self.kept_paths.dedup();
        info.kept_paths = self.kept_paths;
        info.not_entered = self.not_entered;
        info.excluded = self.excluded;
        info.vanished += self.vanished;
    }
}
