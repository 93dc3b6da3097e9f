//! What goes into the report, and what of it is told at once.
//!
//! Invariant: all is counted; what one cause does to many entries is told a few times and not for each.

use super::attributes::{Failed, Lack};
use super::engine::Restore;
use super::{MAX_LISTED, Totals};
use crate::catalog::Child;
use crate::error::Error;
use crate::ids::Dirno;
use crate::monitor::{Event, Progress};

/// How often a cause that many entries share is told.
const MAX_TOLD: u64 = 5;

impl Restore<'_> {
    /// Notes which attributes an entry of the current directory, or that itself, did not get.
    pub(super) fn note_failed(&mut self, name: Option<&[u8]>, failed: Vec<Failed>) {
        let path = self.target_path(name);
        for (number, lack) in Lack::ALL.into_iter().enumerate() {
            let Some(count) = self.report.lacking_counts.get_mut(number) else { continue };
            let mut of_this_kind = failed.iter().filter(|failed| failed.lack == lack).peekable();
            if of_this_kind.peek().is_none() {
                continue;
            }
            *count += 1;
            let told = *count <= MAX_TOLD;
            for failed in of_this_kind {
                let error = failed.error(&path);
                if told {
                    self.monitor.event(Event::Failure { path: b"", error: &error });
                }
                if self.report.lacking.len() < MAX_LISTED {
                    self.report.lacking.push((path.clone(), lack, error));
                }
            }
        }
    }

    pub(super) fn fail(&mut self, path: Vec<u8>, error: &Error) {
        let errno = match error {
            Error::Io { errno, .. } => Some(*errno),
            _ => None,
        };
        let full = matches!(errno, Some(libc::ENOSPC | libc::EDQUOT));
        self.was_full |= full;
        // All that follows will meet it too.
        let mut told = true;
        if full || errno == Some(libc::EROFS) {
            self.full_count += 1;
            told = self.full_count <= MAX_TOLD;
        }
        if told {
            self.monitor.event(Event::Failure { path: &path, error });
        }
        self.report.error_count += 1;
        self.report.damage_in_errors |= error.is_damage();
        if self.report.errors.len() < MAX_LISTED {
            self.report.errors.push((path, error.clone()));
        }
    }

    /// As `fail`, for an entry that is not there therefore, with all below.
    pub(super) fn fail_with_all_below(&mut self, path: Vec<u8>, child: Child, error: &Error) {
        self.report.missing += match child {
            Child::Dir(dirno) => self.below_dir(dirno).entries,
            Child::Node(_) => 1,
        };
        self.fail(path, error);
    }

    /// What there is in a directory of the version, itself included.
    pub(super) fn below_dir(&self, dirno: Dirno) -> Totals {
        self.source.totals(Child::Dir(dirno), &|| self.monitor.interrupted())
    }

    pub(super) fn progress(&self) -> Progress {
        let expected = self.report.expected.unwrap_or_default();
        Progress {
            files: self.so_far.files,
            bytes: self.so_far.bytes,
            expected_files: expected.files,
            expected_bytes: expected.bytes,
            errors: self.report.error_count + self.report.damaged_count,
        }
    }

    pub(super) fn show_progress(&self) {
        self.monitor.progress(self.progress());
    }
}
