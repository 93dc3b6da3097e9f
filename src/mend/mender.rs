//! Mends what readers meet, beside them: `--heal write`.
//!
//! Invariants: readers and writers wait for nothing that is done here; one process mends at a time; what is written comes from other copies, or is a bit put right: the live originals are not asked, for whoever compares
//! a mount with them would compare them with themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Mending, heal};
use crate::backupdir::BackupDir;
use crate::depot::Depot;
use crate::error::{Error, Result};
use crate::findings::{Finding, Fixed};
use crate::ledger::LedgerWriter;
use crate::monitor::{Event, Monitor, Progress};
use crate::store::OnDamage;

/// How long more is gathered after something was met.
const GATHER: Duration = Duration::from_millis(300);
/// How often the lock is tried while another process mends.
const TRY_EVERY: Duration = Duration::from_secs(2);
/// How long the end waits for another process.
const LAST_WAIT: Duration = Duration::from_secs(10);
/// So often what waits is tried where that fails for other reasons than its own.
const MAX_FAILED: u32 = 5;
/// Places that wait to be mended; more are met again, or by the selftest.
const MAX_WAITING: usize = 10_000;

/// What it came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mended {
    /// Places that are right again.
    pub mended: u64,
    /// Those that are not.
    pub left: u64,
}

enum News {
    Met(Error),
    End,
}

pub struct Mender {
    tell: Sender<News>,
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Mended>,
}

impl Mender {
    /// # Errors
    /// `DIR_SHARED` where nothing may be written; what keeps a thread from being started.
    pub fn start(dir: &BackupDir, copies: Vec<Arc<dyn Depot>>, ledger: Arc<LedgerWriter>) -> Result<Mender> {
        dir.own().check_writable()?;
        let (tell, told) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let worker =
            Worker { dir: dir.clone(), copies, ledger, watch: Watch(stop.clone()), waiting: Vec::new(), failed: 0 };
        let thread = std::thread::Builder::new().name("mender".into()).spawn(move || worker.run(&told));
        let worker = thread.map_err(|error| Error::io("start a thread for", dir.path(), &error))?;
        Ok(Mender { tell, stop, worker })
    }

    /// For whoever meets damage.
    pub fn told(&self) -> OnDamage {
        let tell = self.tell.clone();
        // After the end nobody mends any more.
        Arc::new(move |error| drop(tell.send(News::Met(error.clone()))))
    }

    /// Ends it: once all that was met is mended or, with `now`, between two pieces of work.
    pub fn end(self, now: bool) -> Mended {
        self.stop.store(now, Ordering::Relaxed);
        // A thread that is gone has ended.
        let _ = self.tell.send(News::End);
        self.worker.join().unwrap_or_default()
    }
}

/// Tells the log.
struct Watch(Arc<AtomicBool>);

impl Monitor for Watch {
    fn progress(&self, _: Progress) {}

    fn event(&self, event: Event<'_>) {
        match event {
            Event::Warning { what, .. } => log::warn!("{what}"),
            Event::Failure { error, .. } => log::error!("{}: {error}", error.code()),
            Event::Path(_) | Event::LeftOut { .. } => {}
        }
    }

    fn interrupted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct Worker {
    dir: BackupDir,
    copies: Vec<Arc<dyn Depot>>,
    ledger: Arc<LedgerWriter>,
    watch: Watch,
    waiting: Vec<Error>,
    /// How often all that waits could not be tried.
    failed: u32,
}

impl Worker {
    fn run(mut self, told: &Receiver<News>) -> Mended {
        let mut sum = Mended::default();
        let mut is_over = false;
        while !is_over {
            let mut next = match self.waiting.is_empty() {
                true => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => told.recv_timeout(TRY_EVERY),
            };
            let until = Instant::now() + GATHER;
            while let Ok(News::Met(error)) = next {
                self.take(error, &mut sum);
                next = told.recv_timeout(until.saturating_duration_since(Instant::now()));
            }
            is_over = !matches!(next, Err(RecvTimeoutError::Timeout));
            self.mend(&mut sum);
        }
        let until = Instant::now() + LAST_WAIT;
        while !self.waiting.is_empty() && !self.watch.interrupted() && Instant::now() < until {
            std::thread::sleep(GATHER);
            self.mend(&mut sum);
        }
        sum.left += self.waiting.len() as u64;
        if let Err(error) = self.ledger.flush() {
            log::warn!("{}: what was found can't be noted: {error}", error.code());
        }
        sum
    }

    fn take(&mut self, error: Error, sum: &mut Mended) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push(error);
        } else {
            sum.left += 1;
        }
    }

    /// All that waits, if nobody else mends.
    fn mend(&mut self, sum: &mut Mended) {
        if self.waiting.is_empty() || self.watch.interrupted() {
            return;
        }
        let look_again = || Ok(Vec::new());
        let (ledger, copies) = (self.ledger.as_ref(), self.copies.as_slice());
        let mending = Mending { dir: &self.dir, ledger, monitor: &self.watch, copies, look_again: &look_again };
        match heal(mending, &self.waiting) {
            Err(Error::Locked { .. }) => {}
            Err(error) => {
                log::error!("{}: nothing is mended: {error}", error.code());
                self.failed += 1;
                if self.failed >= MAX_FAILED {
                    sum.left += self.waiting.drain(..).count() as u64;
                    self.failed = 0;
                }
            }
            Ok(findings) => {
                self.waiting.clear();
                self.failed = 0;
                for finding in &findings {
                    self.said(finding);
                    match finding.fixed {
                        // It was right before anything was written.
                        Some(Fixed::RightByNow) => {}
                        _ if finding.is_fixed() => sum.mended += 1,
                        _ => sum.left += 1,
                    }
                }
            }
        }
    }

    fn said(&self, finding: &Finding) {
        let fixed = finding.fixed.as_ref().map_or_else(|| "nothing was tried".into(), ToString::to_string);
        if finding.is_fixed() {
            log::warn!("mended: {}: {fixed}", finding.error);
        } else {
            log::error!("not mended: {}: {fixed}", finding.error);
        }
    }
}
