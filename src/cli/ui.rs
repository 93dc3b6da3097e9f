//! A monitor for people: a progress line on a terminal, plain lines elsewhere; Ctrl-C asks the run to stop.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::show;
use crate::error::Error;
use crate::monitor::{Event, Monitor, Progress};
use crate::text::shown;

/// How often the line is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);

pub struct Ui {
    bar: Option<ProgressBar>,
    started: Instant,
    next_draw_ms: AtomicU64,
    last: Mutex<Progress>,
    /// Print each path as it is handled.
    list_paths: bool,
    /// What `Progress::files` counts.
    noun: &'static str,
    interrupted: Arc<AtomicBool>,
    warnings: AtomicU64,
    damaged: AtomicBool,
}

impl Ui {
    /// `what` stands before the numbers.
    pub fn new(quiet: bool, list_paths: bool, what: &'static str) -> Ui {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
            // The second signal ends the program at once, for those who can't wait.
            let _ = signal_hook::flag::register_conditional_default(signal, interrupted.clone());
            let _ = signal_hook::flag::register(signal, interrupted.clone());
        }
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(what);
            bar
        });
        Ui {
            bar,
            started: Instant::now(),
            next_draw_ms: AtomicU64::new(0),
            last: Mutex::new(Progress::default()),
            list_paths,
            noun: "files",
            interrupted,
            warnings: AtomicU64::new(0),
            damaged: AtomicBool::new(false),
        }
    }

    /// Counts something else than files.
    pub fn counting(self, noun: &'static str) -> Ui {
        Ui { noun, ..self }
    }

    /// Takes the progress line away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// True when a failure was damage.
    pub fn met_damage(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// A question for the terminal; the line is away while it is asked. None when nobody can answer.
    pub fn ask(&self, question: &str) -> Option<String> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        let asked = || {
            let _ = write!(std::io::stderr().lock(), "{question} ");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).ok().filter(|len| *len > 0).map(|_| line.trim().to_string())
        };
        match &self.bar {
            Some(bar) => bar.suspend(asked),
            None => asked(),
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| super::say(text)),
            None => super::say(text),
        }
    }

    fn message(&self, progress: Progress) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        let rate = progress.bytes as f64 / seconds;
        let mut text = format!("{} {}, {}", show::number(progress.files), self.noun, show::bytes(progress.bytes));
        if progress.expected_bytes > 0 {
            text += &format!(" of about {}", show::bytes(progress.expected_bytes.max(progress.bytes)));
        }
        text += &format!(", {}/s", show::bytes(rate as u64));
        let left = progress.expected_bytes.saturating_sub(progress.bytes);
        if left > 0 && rate > 1.0 {
            text += &format!(", {} left", show::duration(Duration::from_secs_f64((left as f64 / rate).min(1e8))));
        }
        if progress.errors > 0 {
            text += &format!(", {} errors", progress.errors);
        }
        text
    }
}

impl Monitor for Ui {
    fn progress(&self, progress: Progress) {
        let Some(bar) = &self.bar else { return };
        let now = self.started.elapsed().as_millis() as u64;
        if now < self.next_draw_ms.load(Ordering::Relaxed) {
            return;
        }
        self.next_draw_ms.store(now + DRAW_EVERY.as_millis() as u64, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = progress;
        bar.set_message(self.message(progress));
        bar.tick();
    }

    fn event(&self, event: Event<'_>) {
        match event {
            Event::Path(path) => {
                if self.list_paths {
                    let _ = super::print(&format!("{}\n", shown(path)));
                }
            }
            Event::Warning { path, what } => {
                self.warnings.fetch_add(1, Ordering::Relaxed);
                let place = if path.is_empty() { String::new() } else { format!("{}: ", shown(path)) };
                self.line(&format!("assay: warning: {place}{what}"));
            }
            Event::Failure { path, error } => {
                self.damaged.fetch_or(error.is_damage(), Ordering::Relaxed);
                // An I/O error names its path itself.
                let place = match error {
                    Error::Io { .. } => String::new(),
                    _ if path.is_empty() => String::new(),
                    _ => format!("{}: ", shown(path)),
                };
                self.line(&format!("assay: {}: {place}{error}", error.code()));
            }
        }
    }

    fn wants_totals(&self) -> bool {
        self.bar.is_some()
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
