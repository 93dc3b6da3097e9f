//! A monitor for people: warnings and failures as lines, progress into the run's status; Ctrl-C asks the run to stop.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Context;
use super::status::Status;
use crate::error::{Error, Result};
use crate::ids::ArcName;
use crate::monitor::{Event, Monitor, Progress};
use crate::text::shown;

/// What is printed of the paths that a run comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    Nothing,
    /// Those that it leaves out.
    LeftOut,
    /// Each as it is handled, too.
    All,
}

pub struct Ui {
    status: Arc<Status>,
    started: Instant,
    listing: Listing,
    interrupted: Arc<AtomicBool>,
    warnings: AtomicU64,
    damaged: AtomicBool,
}

impl Ui {
    /// `what` stands before the number of files.
    pub fn new(context: &Context, what: &'static str) -> Ui {
        Ui::counting(context, what, "files")
    }

    /// Counts something else than files.
    pub fn counting(context: &Context, what: &'static str, noun: &'static str) -> Ui {
        context.status.begin(what, noun);
        Ui::beside(context)
    }

    /// For what goes on beside another task.
    pub fn beside(context: &Context) -> Ui {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // A run under nohup(1) outlives its terminal.
            if signal == SIGHUP && crate::os::process::is_ignored(signal) {
                continue;
            }
            // The second signal ends the program at once, for those who can't wait.
            let _ = signal_hook::flag::register_conditional_default(signal, interrupted.clone());
            let _ = signal_hook::flag::register(signal, interrupted.clone());
        }
        Ui {
            status: context.status.clone(),
            started: Instant::now(),
            listing: Listing::Nothing,
            interrupted,
            warnings: AtomicU64::new(0),
            damaged: AtomicBool::new(false),
        }
    }

    pub fn listing(self, listing: Listing) -> Ui {
        Ui { listing, ..self }
    }

    /// The task is over; the bar goes away.
    pub fn finish(&self) {
        self.status.end();
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// True when a failure was damage.
    pub fn met_damage(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Prints to standard output, which may be the bar's terminal.
    pub fn print(&self, text: &str) -> Result<()> {
        self.status.without_bar(|| super::print(text))
    }

    /// A question for the terminal; the bar is away while it is asked. None when nobody can answer.
    pub fn ask(&self, question: &str) -> Option<String> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        self.status.without_bar(|| {
            let _ = write!(std::io::stderr().lock(), "{question} ");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).ok().filter(|len| *len > 0).map(|_| line.trim().to_string())
        })
    }

    fn line(&self, text: &str) {
        self.status.without_bar(|| super::say(text));
    }
}

impl Monitor for Ui {
    fn progress(&self, progress: Progress) {
        self.status.progress(progress);
    }

    fn event(&self, event: Event<'_>) {
        match event {
            Event::Path(path) => {
                if self.listing == Listing::All {
                    let _ = self.print(&format!("{}\n", shown(path)));
                }
            }
            Event::LeftOut { path, why } => {
                if self.listing != Listing::Nothing {
                    let _ = super::print(&format!("{}  ({why})\n", shown(path)));
                }
            }
            Event::Warning { path, what } => {
                self.warnings.fetch_add(1, Ordering::Relaxed);
                let place = if path.is_empty() { String::new() } else { format!("{}: ", shown(path)) };
                self.line(&format!("assay: warning: {place}{what}"));
            }
            Event::Failure { path, error } => {
                self.damaged.fetch_or(error.is_damage(), Ordering::Relaxed);
                // These name their path themselves.
                let place = match error {
                    Error::Io { .. } | Error::NoPath { .. } => String::new(),
                    _ if path.is_empty() => String::new(),
                    _ => format!("{}: ", shown(path)),
                };
                self.line(&format!("assay: {}: {place}{error}", error.code()));
            }
        }
    }

    fn sending(&self, dest: &str, arc: ArcName, bytes: u64, of_bytes: u64) {
        self.status.sending(dest, arc, bytes, of_bytes);
    }

    fn wants_totals(&self) -> bool {
        self.status.is_shown()
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
