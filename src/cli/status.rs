//! What a run is at: a bar on a terminal, a line a minute elsewhere, and a line to whoever sends SIGUSR1.
//!
//! Invariants: SIGUSR1, SIGUSR2, SIGALRM and SIGVTALRM end no command from `harmless_signals` on; one thread shows
//! everything, so that the run itself never waits for a terminal.

use std::collections::BTreeMap;
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use signal_hook::consts::{SIGALRM, SIGUSR1, SIGUSR2, SIGVTALRM};

use super::show;
use crate::ids::ArcName;
use crate::monitor::Progress;
use crate::sync::lock;

const DRAW_EVERY: Duration = Duration::from_millis(100);
const OBJECT_EVERY: Duration = Duration::from_secs(1);
const SENT: &str = "Sent";
const LINE_EVERY: Duration = Duration::from_secs(60);

/// How progress is shown, all of it on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum ProgressArg {
    /// A bar on a terminal, else as plain
    #[default]
    Auto,
    /// A line a minute
    Plain,
    /// A JSON object a line, one a second
    Json,
    /// Nothing, unless SIGUSR1 asks for a line
    None,
}

/// A run as others see it.
pub struct Status {
    command: String,
    started: Instant,
    form: ProgressArg,
    task: Mutex<Option<Task>>,
    /// What is being sent, by destination.
    sending: Mutex<BTreeMap<String, Sending>>,
    /// Arcs that were sent, and their bytes.
    sent: Mutex<(u64, u64)>,
    bar: Option<ProgressBar>,
    ending: AtomicBool,
}

/// An arc on its way to a destination.
#[derive(Debug, Clone, Copy)]
struct Sending {
    arc: ArcName,
    bytes: u64,
    of_bytes: u64,
}

/// What is counted.
#[derive(Debug, Clone, Copy)]
struct Task {
    what: &'static str,
    /// What `Progress::files` counts.
    noun: &'static str,
    started: Instant,
    progress: Progress,
}

/// Signals that some send to hear of progress, or by mistake, end no run. Handlers, so that children don't inherit it.
pub fn harmless_signals() {
    for signal in [SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM] {
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
}

impl Status {
    pub fn new(command: &str, form: ProgressArg) -> Status {
        let on_terminal = std::io::stderr().is_terminal();
        let form = if form == ProgressArg::Auto && !on_terminal { ProgressArg::Plain } else { form };
        let bar = (form == ProgressArg::Auto).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        let (task, sending, sent, ending) = Default::default();
        Status { command: command.to_string(), started: Instant::now(), form, task, sending, sent, bar, ending }
    }

    /// What is left to do is to wait until all is sent.
    pub fn begin_sending(&self) {
        self.begin(SENT, "arcs");
    }

    /// A task begins.
    pub fn begin(&self, what: &'static str, noun: &'static str) {
        let (started, progress) = (Instant::now(), Progress::default());
        self.ending.store(false, Ordering::Relaxed);
        *self.task() = Some(Task { what, noun, started, progress });
    }

    pub fn progress(&self, progress: Progress) {
        if let Some(task) = &mut *self.task() {
            task.progress = progress;
        }
    }

    /// So much of an arc was given to a destination.
    pub fn sending(&self, dest: &str, arc: ArcName, bytes: u64, of_bytes: u64) {
        let mut sending = lock(&self.sending);
        if bytes < of_bytes {
            sending.insert(dest.to_string(), Sending { arc, bytes, of_bytes });
        } else {
            sending.remove(dest);
            let mut sent = lock(&self.sent);
            *sent = (sent.0 + 1, sent.1 + of_bytes);
        }
    }

    /// The task is over: nothing more is shown of it unless it is asked for.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        if self.form == ProgressArg::Json {
            self.show();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// True when somebody sees totals.
    pub fn is_shown(&self) -> bool {
        self.form != ProgressArg::None
    }

    /// Does something with the terminal while the bar is away.
    pub fn without_bar<T>(&self, act: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(act),
            None => act(),
        }
    }

    /// The state as a line: what is counted, of how much, how fast, how long still.
    pub fn line(&self) -> String {
        let mut text = self.task_line();
        for (dest, Sending { arc, bytes, of_bytes }) in lock(&self.sending).iter() {
            text += &format!("; {arc} to {dest}, {} of {}", show::bytes(*bytes), show::bytes(*of_bytes));
        }
        text
    }

    fn with_sending(&self, mut object: serde_json::Value) -> serde_json::Value {
        let sending = lock(&self.sending);
        let arcs = sending.iter().map(|(dest, Sending { arc, bytes, of_bytes })| {
            json!({ "destination": dest, "arc": arc.to_string(), "bytes": bytes, "of_bytes": of_bytes })
        });
        if let (Some(fields), false) = (object.as_object_mut(), sending.is_empty()) {
            fields.insert("sending".into(), arcs.collect());
        }
        object
    }

    fn task_line(&self) -> String {
        match self.task_now() {
            Some(task) => task.line(),
            None => format!("{} runs for {}", self.command, show::duration(self.started.elapsed())),
        }
    }

    fn show(&self) {
        let text = match self.task_now() {
            Some(task) if self.form == ProgressArg::Json => self.with_sending(task.object()).to_string(),
            _ => format!("assay: {}", self.line()),
        };
        // Where it goes may be full or gone: that must not change how a run ends.
        self.without_bar(|| drop(writeln!(std::io::stderr().lock(), "{text}")));
    }

    /// Time for another drawing, object or line.
    fn tick(&self) {
        if self.ending.load(Ordering::Relaxed) || self.task_now().is_none() {
            return;
        }
        match &self.bar {
            Some(bar) => {
                bar.set_message(self.line());
                bar.tick();
            }
            None => self.show(),
        }
    }

    fn every(&self) -> Option<Duration> {
        match self.form {
            ProgressArg::Auto => Some(DRAW_EVERY),
            ProgressArg::Plain => Some(LINE_EVERY),
            ProgressArg::Json => Some(OBJECT_EVERY),
            ProgressArg::None => None,
        }
    }

    /// A copy: nobody waits for the lock while something is shown.
    fn task_now(&self) -> Option<Task> {
        let mut task = *self.task();
        if let Some(task) = task.as_mut().filter(|task| task.what == SENT) {
            (task.progress.files, task.progress.bytes) = *lock(&self.sent);
        }
        task
    }

    fn task(&self) -> MutexGuard<'_, Option<Task>> {
        lock(&self.task)
    }
}

impl Task {
    /// Share that is done, and the time that the rest takes at this speed.
    fn outlook(&self) -> Option<(f64, Duration)> {
        let Progress { files, bytes, expected_files, expected_bytes, .. } = self.progress;
        let (done, whole) = if expected_bytes > 0 { (bytes, expected_bytes) } else { (files, expected_files) };
        if whole == 0 || done == 0 {
            return None;
        }
        let share = (done as f64 / whole as f64).min(1.0);
        let left_s = self.started.elapsed().as_secs_f64() * (1.0 - share) / share;
        Some((share, Duration::from_secs_f64(left_s.min(1e8))))
    }

    fn rate(&self) -> u64 {
        (self.progress.bytes as f64 / self.started.elapsed().as_secs_f64().max(0.001)) as u64
    }

    fn line(&self) -> String {
        let Progress { files, bytes, expected_files, expected_bytes, errors } = self.progress;
        let mut text = format!("{} {}", self.what, show::number(files));
        if expected_files > 0 {
            text += &format!(" of {}", show::number(expected_files.max(files)));
        }
        text += &format!(" {}", self.noun);
        if bytes > 0 || expected_bytes > 0 {
            text += &format!(", {}", show::bytes(bytes));
            if expected_bytes > 0 {
                text += &format!(" of about {}", show::bytes(expected_bytes.max(bytes)));
            }
            text += &format!(", {}/s", show::bytes(self.rate()));
        }
        match self.outlook() {
            Some((share, left)) if share < 1.0 => {
                text += &format!(", {:.0} %, {} left", (share * 100.0).floor(), show::duration(left));
            }
            _ => text += &format!(", {}", show::duration(self.started.elapsed())),
        }
        match errors {
            0 => {}
            _ => text += &format!(", {}", show::counted(errors, "error")),
        }
        text
    }

    fn object(&self) -> serde_json::Value {
        let Progress { files, bytes, expected_files, expected_bytes, errors } = self.progress;
        let known = |number: u64| (number > 0).then_some(number);
        json!({
            "type": "progress", "what": self.what, "counts": self.noun,
            "files": files, "expected_files": known(expected_files),
            "bytes": bytes, "expected_bytes": known(expected_bytes),
            "errors": errors, "seconds": self.started.elapsed().as_secs_f64(), "bytes_per_s": self.rate(),
            "left_s": self.outlook().map(|(_, left)| left.as_secs_f64()),
        })
    }
}

/// The thread that shows a status, until it is dropped.
pub struct Watch {
    status: Arc<Status>,
    wake: UnixStream,
    signal: Option<signal_hook::SigId>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// None where there is no thread to be had: then nothing is shown.
    pub fn start(status: Arc<Status>) -> Option<Watch> {
        let (asked, wake) = UnixStream::pair().ok()?;
        asked.set_read_timeout(status.every()).ok()?;
        let signal = signal_hook::low_level::pipe::register(SIGUSR1, wake.try_clone().ok()?).ok();
        let shown = status.clone();
        let thread = std::thread::Builder::new().name("status".into()).spawn(move || watch(&shown, asked)).ok();
        Some(Watch { status, wake, signal, thread })
    }
}

/// A byte of 0 ends it; any other is somebody who asks.
fn watch(status: &Status, mut asked: UnixStream) {
    let mut byte = [0u8];
    loop {
        match asked.read(&mut byte) {
            Ok(1) if byte != *b"\0" => status.show(),
            Ok(_) => return,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => status.tick(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.status.ending.store(true, Ordering::Relaxed);
        if let Some(signal) = self.signal {
            signal_hook::low_level::unregister(signal);
        }
        let _ = self.wake.write_all(b"\0");
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(progress: Progress) -> Task {
        let started = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        Task { what: "Restoring", noun: "files", started, progress }
    }

    #[test]
    fn a_line_tells_how_much_how_fast_and_how_long_still() {
        let line =
            task(Progress { files: 5, bytes: 10 << 20, expected_bytes: 40 << 20, errors: 1, ..Progress::default() })
                .line();
        assert!(line.starts_with("Restoring 5 files, 10.00 MiB of about 40.00 MiB, "), "{line}");
        assert!(line.contains(", 25 %, 30.") && line.ends_with(" s left, 1 error"), "{line}");
        // Only a number of things is known.
        let line = task(Progress { files: 5, expected_files: 20, ..Progress::default() }).line();
        assert!(line.starts_with("Restoring 5 of 20 files, 25 %, 30."), "{line}");
        // Nothing is known beforehand, or more came than was expected.
        let line = task(Progress { files: 5, bytes: 1, expected_bytes: 0, ..Progress::default() }).line();
        assert!(line.ends_with("/s, 10.0 s"), "{line}");
        let line = task(Progress { bytes: 9, expected_bytes: 5, ..Progress::default() }).line();
        assert!(line.contains("9 B of about 9 B") && !line.contains("left"), "{line}");
        let object = task(Progress { files: 5, bytes: 10, expected_bytes: 40, ..Progress::default() }).object();
        assert_eq!((&object["files"], &object["expected_files"]), (&json!(5), &json!(null)));
        assert!((29.0..32.0).contains(&object["left_s"].as_f64().unwrap()), "{object}");
    }
}
