//! `assay watch`: the service that proves, mends and completes, and tells of it, a line an event.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::copies::around_of;
use super::ui::Ui;
use super::{Context, print, print_json, say, show};
use crate::backupdir::BackupDir;
use crate::backupdir::config::{parse_duration, parse_size};
use crate::catalog::Timespec;
use crate::error::{Error, Exit, Result, Trouble};
use crate::ids::ArcName;
use crate::ledger::now_s;
use crate::monitor::{self, Monitor, Progress};
use crate::text::one_line;
use crate::watch::{Event, Kind, Round, Rules, Watch};

/// Prove the backup part by part, mend and complete its copies, and tell what happens, until it is stopped
///
/// Each round looks at the names of all copies and reads at once what has changed, proves the part that is due (as
/// `selftest -v4 --inc` does), puts right what any good copy has, here and at destinations, and sends what is missing there.
/// What no copy has right waits for `recovery-wait-interval` of config.toml (5m), in which a copy may come back; then what is
/// left is put together, as by `selftest -v4 --fix`, again after 1, 2, 4, 5 minutes while something is missing. A line is printed for each event; `on-event` in config.toml is a shell command
/// that is run for each, with ASSAY_EVENT, ASSAY_TEXT, ASSAY_ARC, ASSAY_DESTINATION and ASSAY_DIR. Only one watch runs on a
/// backup dir. SIGTERM and Ctrl-C end it within a second; what it was at goes on the next time.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// How often the next part is proven
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    interval: Duration,
    /// In what time everything is proven once
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = parse_duration)]
    period: Duration,
    /// Read no more than SIZE in a round
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    limit: Option<u64>,
    /// One round, and an exit code as that of `selftest`
    #[arg(long)]
    once: bool,
    /// Print one JSON object an event
    #[arg(long)]
    json: bool,
}

/// How long work that is under way may take to stop.
const LAST_WORDS: Duration = Duration::from_millis(700);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a command that hears of an event may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Events that wait for it; more are only printed.
const MAX_WAITING: usize = 1000;

/// Knows when to stop, and passes on both sums where they differ.
struct Ears<T>(Arc<Ui>, T);

impl<T: Fn(&Event) + Send + Sync> Monitor for Ears<T> {
    fn progress(&self, _: Progress) {}

    fn event(&self, event: monitor::Event<'_>) {
        if let monitor::Event::Failure { error: error @ Error::Dest { dest, object, trouble }, .. } = event
            && matches!(trouble, Trouble::Checksum { .. })
        {
            let (text, arc) = (format!("{}: {error}", error.code()), ArcName::parse(object));
            (self.1)(&Event { kind: Kind::Damage, text, arc, dest: Some(dest.to_string()) });
        }
    }

    fn interrupted(&self) -> bool {
        self.0.interrupted()
    }
}

pub fn run(context: &Context, args: &WatchArgs) -> Result<Exit> {
    let dir = context.open_to_save()?;
    super::meet(context, &dir)?;
    let _only = dir.lock_to_watch()?;
    let ui = Arc::new(Ui::beside(context));
    let rules = Rules {
        interval: args.interval,
        period: args.period,
        recovery_wait: dir.config().recovery_wait_interval,
        limit_bytes: args.limit,
    };
    let bell = Arc::new(Bell::start(&dir));
    let (json, quiet) = (args.json, context.quiet);
    let teller = bell.clone();
    let tell = move |event: &Event| {
        teller.ring(event);
        // Whoever reads the lines may be gone: the work goes on.
        let _ = told(event, json, quiet);
    };
    let (once, watched) = (args.once, ui.clone());
    let (done, over) = sync_channel(1);
    // It may hang where nobody can end it: the process does, and nothing is lost.
    let work = move || {
        let hush: Arc<dyn Monitor> = Arc::new(Ears(watched, tell.clone()));
        let around = around_of(&dir, hush.clone());
        let mut watch = Watch::new(&around, rules, hush.as_ref(), &tell);
        loop {
            let round = watch.round();
            if once || hush.interrupted() {
                let _ = done.send(round);
                return;
            }
            let until = Instant::now() + watch.rest();
            while Instant::now() < until && !hush.interrupted() {
                std::thread::sleep(LOOK_EVERY);
            }
        }
    };
    let thread = std::thread::Builder::new().name("watch".into()).spawn(work);
    thread.map_err(|error| Error::io("start a thread for", "the watch", &error))?;
    let mut stopped: Option<Instant> = None;
    let round = loop {
        match over.recv_timeout(LOOK_EVERY) {
            Ok(round) => break Some(round),
            Err(RecvTimeoutError::Disconnected) => break None,
            Err(RecvTimeoutError::Timeout) if ui.interrupted() => {
                if stopped.get_or_insert_with(Instant::now).elapsed() > LAST_WORDS {
                    break None;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    if once && !ui.interrupted() {
        bell.finish(COMMAND_LIMIT);
    }
    Ok(match round {
        _ if ui.interrupted() && !once => Exit::Ok,
        _ if ui.interrupted() => Exit::Interrupted,
        None => Exit::Failed,
        Some(Round { met: true, .. }) => Exit::Damage,
        Some(Round { incomplete: true, .. }) => Exit::FinishedWithErrors,
        Some(_) => Exit::Ok,
    })
}

fn told(event: &Event, json: bool, quiet: bool) -> Result<()> {
    let at_s = now_s();
    if json {
        return print_json(&json!({
            "type": "event",
            "event": event.kind.text(),
            "at_s": at_s,
            "text": event.text,
            "arc": event.arc.map(|arc| arc.to_string()),
            "destination": event.dest,
        }));
    }
    if quiet && event.kind == Kind::Proven {
        return Ok(());
    }
    let at = show::time(Timespec { sec: at_s as i64, nsec: 0 });
    print(&format!("{at} {}: {}\n", event.kind.text(), one_line(&event.text)))
}

/// Runs `on-event`, one event after the other.
struct Bell {
    tell: Option<SyncSender<Event>>,
    /// Events that were handed over, and those that were told.
    rung: AtomicU64,
    told: Arc<AtomicU64>,
}

impl Bell {
    fn start(dir: &BackupDir) -> Bell {
        let told = Arc::new(AtomicU64::new(0));
        let Some(command) = dir.config().on_event.clone() else {
            return Bell { tell: None, rung: AtomicU64::new(0), told };
        };
        let (tell, events) = sync_channel::<Event>(MAX_WAITING);
        let (path, count) = (dir.path().to_path_buf(), told.clone());
        let work = move || {
            for event in events {
                call(&command, &path, &event);
                count.fetch_add(1, Ordering::SeqCst);
            }
        };
        let thread = std::thread::Builder::new().name("on-event".into()).spawn(work);
        Bell { tell: thread.ok().map(|_| tell), rung: AtomicU64::new(0), told }
    }

    fn ring(&self, event: &Event) {
        let Some(tell) = self.tell.as_ref().filter(|_| event.kind.is_news()) else { return };
        match tell.try_send(event.clone()) {
            Ok(()) => drop(self.rung.fetch_add(1, Ordering::SeqCst)),
            Err(_) => say("assay: warning: on-event takes too long: an event was only printed"),
        }
    }

    /// Waits until all were told.
    fn finish(&self, limit: Duration) {
        let until = Instant::now() + limit;
        while self.told.load(Ordering::SeqCst) < self.rung.load(Ordering::SeqCst) && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

fn call(command: &str, dir: &std::path::Path, event: &Event) {
    let arc = event.arc.map_or_else(String::new, |arc| arc.to_string());
    let started = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .env("ASSAY_EVENT", event.kind.text())
        .env("ASSAY_TEXT", one_line(&event.text))
        .env("ASSAY_ARC", arc)
        .env("ASSAY_DESTINATION", event.dest.as_deref().unwrap_or_default())
        .env("ASSAY_DIR", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    let failed = |what: &str| say(&format!("assay: warning: on-event: {what}"));
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return failed(&error.to_string()),
    };
    let until = Instant::now() + COMMAND_LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => return failed(&format!("`{command}` ended with {status}")),
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return failed(&format!("`{command}` took more than {} s", COMMAND_LIMIT.as_secs()));
            }
        }
    }
}
