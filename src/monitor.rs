//! Where the library says what it is doing: the CLI shows it, tests record it. The library never prints.

use crate::error::Error;
use crate::ids::ArcName;

/// Totals so far of a long run. All fields only grow, but the expected totals may be absent (0).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub files: u64,
    pub bytes: u64,
    pub expected_files: u64,
    pub expected_bytes: u64,
    pub errors: u64,
}

/// Something worth telling that does not end the run.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// Processing of a path begins (or, for `ls`-like output, the path was handled).
    Path(&'a [u8]),
    /// Left out, as it was asked for; `why` in a few words.
    LeftOut { path: &'a [u8], why: &'static str },
    /// Worth knowing; the exit code stays as it is. `path` may be empty.
    Warning { path: &'a [u8], what: String },
    /// Something was left out or failed; the run goes on and exits 3 (4 if it is damage).
    Failure { path: &'a [u8], error: &'a Error },
}

/// Receives progress and events, from any thread.
pub trait Monitor: Send + Sync {
    fn progress(&self, progress: Progress);
    fn event(&self, event: Event<'_>);
    /// So many bytes of an arc were given to a destination.
    fn sending(&self, _dest: &str, _arc: ArcName, _bytes: u64, _of_bytes: u64) {}
    /// True when somebody sees `Progress`, so that counting beforehand what there is to do is worth its cost.
    fn wants_totals(&self) -> bool {
        false
    }
    /// True when the user wants the run to stop; checked between pieces of work.
    fn interrupted(&self) -> bool {
        false
    }
}

/// Discards everything.
pub struct Silent;

impl Monitor for Silent {
    fn progress(&self, _: Progress) {}
    fn event(&self, _: Event<'_>) {}
}

/// Passes on only the wish to stop.
pub struct Hushed<'a>(pub &'a dyn Monitor);

impl Monitor for Hushed<'_> {
    fn progress(&self, _: Progress) {}
    fn event(&self, _: Event<'_>) {}
    fn interrupted(&self) -> bool {
        self.0.interrupted()
    }
}
