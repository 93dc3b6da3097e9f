//! How fast, and how long, a destination is asked.
//!
//! Invariants: what may pass is tried again, with growing pauses or after as long as the service asks for, until so long
//! nothing went forward; a pause ends at once when the run ends; only bytes that went further than ever count as forward.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, Trouble};
use crate::monitor::Monitor;
use crate::sync::{lock, wait_timeout};

/// How often somebody who waits looks whether the user wants to stop.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// So often an act may fail that went forward before it did, as a long upload over a line that breaks.
const ENOUGH_TRIES: u32 = 10;

/// How long is waited.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For a destination that fails, in all, without anything going forward.
    pub retry: Duration,
    /// The first pause, and the longest.
    pub pauses: (Duration, Duration),
    /// For a destination where nothing goes forward, once nothing else is left to do; a fourth of it for one that never
    /// answered.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            retry: Duration::from_secs(15 * 60),
            pauses: (Duration::from_secs(1), Duration::from_secs(60)),
            idle: Duration::from_secs(60),
        }
    }
}

pub struct Pace {
    limits: Limits,
    /// Bytes a second.
    rate: Option<u64>,
    monitor: Arc<dyn Monitor>,
    ended: AtomicBool,
    times: Mutex<Times>,
    changed: Condvar,
}

struct Times {
    /// When something went forward last.
    forward: Instant,
    /// From when on bytes may be sent, by the rate.
    free: Instant,
    /// What has kept it from going forward since.
    trouble: Option<Error>,
    /// Who holds a turn.
    turns: usize,
}

/// Somebody's turn to send.
pub struct Turn<'a>(&'a Pace);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.times).turns -= 1;
        self.0.changed.notify_all();
    }
}

impl Pace {
    pub fn new(limits: Limits, rate: Option<u64>, monitor: Arc<dyn Monitor>) -> Pace {
        let now = Instant::now();
        let times = Mutex::new(Times { forward: now, free: now, trouble: None, turns: 0 });
        Pace { limits, rate, monitor, ended: AtomicBool::new(false), times, changed: Condvar::new() }
    }

    /// Nothing more is asked; what is under way is given up at its next step.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// # Errors
    /// `INTERRUPTED`.
    pub fn check(&self) -> Result<()> {
        let stop = self.ended.load(Ordering::Relaxed) || self.monitor.interrupted();
        if stop { Err(Error::Interrupted) } else { Ok(()) }
    }

    pub fn went_forward(&self) {
        let mut times = lock(&self.times);
        times.forward = Instant::now();
        times.trouble = None;
    }

    /// What keeps it from going forward, if anything was said.
    pub fn trouble(&self) -> Option<Error> {
        lock(&self.times).trouble.clone()
    }

    /// Since when nothing went forward.
    pub fn last_forward(&self) -> Instant {
        lock(&self.times).forward
    }

    /// Waits until fewer than `most` others send.
    pub fn turn(&self, most: usize) -> Result<Turn<'_>> {
        let mut times = lock(&self.times);
        while times.turns >= most {
            times = wait_timeout(&self.changed, times, LOOK_EVERY);
            drop(times);
            self.check()?;
            times = lock(&self.times);
        }
        times.turns += 1;
        Ok(Turn(self))
    }

    /// Waits until so many bytes may be sent.
    pub fn spend(&self, bytes: u64) -> Result<()> {
        self.check()?;
        let Some(rate) = self.rate else { return Ok(()) };
        let now = Instant::now();
        let start = {
            let mut times = lock(&self.times);
            let start = times.free.max(now);
            times.free = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
            // It is slow because it was told to be.
            times.forward = times.forward.max(now);
            start
        };
        self.pause(start.saturating_duration_since(now))
    }

    fn pause(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        let mut times = lock(&self.times);
        loop {
            self.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            times = wait_timeout(&self.changed, times, left.min(LOOK_EVERY));
        }
    }

    /// Does something, again and again while what keeps it from being done may pass.
    ///
    /// # Errors
    /// The last one.
    pub fn attempt<T>(&self, mut act: impl FnMut() -> Result<T>) -> Result<T> {
        let (mut failing_since, mut tries, mut pause) = (None, 0, self.limits.pauses.0);
        loop {
            self.check()?;
            let error = match act() {
                Ok(done) => {
                    self.went_forward();
                    return Ok(done);
                }
                Err(error) => error,
            };
            let Some(asked) = may_pass(&error) else { return Err(error) };
            lock(&self.times).trouble = Some(error.clone());
            let now = Instant::now();
            let first = *failing_since.get_or_insert(now);
            // What goes forward each time and never ends is not tried for ever.
            tries += 1;
            let since = if tries < ENOUGH_TRIES { first.max(self.last_forward()) } else { first };
            let wait = pause.max(asked);
            if now.saturating_duration_since(since) + wait > self.limits.retry {
                return Err(error);
            }
            self.pause(wait)?;
            pause = (pause * 2).min(self.limits.pauses.1);
        }
    }
}

/// For what may pass: how long the service asks to wait.
pub fn may_pass(error: &Error) -> Option<Duration> {
    let Error::Dest { trouble, .. } = error else { return None };
    match trouble {
        Trouble::Busy { retry_after_s, .. } => Some(Duration::from_secs(retry_after_s.unwrap_or(0))),
        Trouble::Failed(_) | Trouble::TimedOut { .. } | Trouble::WrongRange { .. } => Some(Duration::ZERO),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Silent;

    fn pace(retry_ms: u64, rate: Option<u64>) -> Pace {
        let ms = Duration::from_millis;
        Pace::new(Limits { retry: ms(retry_ms), pauses: (ms(20), ms(80)), idle: ms(100) }, rate, Arc::new(Silent))
    }

    fn trouble(trouble: Trouble) -> Error {
        Error::Dest { dest: "usb".into(), object: "arc.0.1".into(), trouble }
    }

    #[test]
    fn what_may_pass_is_tried_again_within_bounds() {
        let mut tries = 0;
        let failing = || {
            tries += 1;
            if tries < 4 { Err(trouble(Trouble::Failed("reset".into()))) } else { Ok(tries) }
        };
        let begun = Instant::now();
        assert_eq!(pace(1000, None).attempt(failing), Ok(4));
        assert!(begun.elapsed() >= Duration::from_millis(20 + 40 + 80));
        // It ends, and an error that does not pass ends it at once.
        let begun = Instant::now();
        let mut tries = 0;
        let done = pace(300, None).attempt(|| -> Result<()> {
            tries += 1;
            Err(trouble(Trouble::Failed("reset".into())))
        });
        assert!(done.is_err() && (3..8).contains(&tries), "{tries}");
        assert!(begun.elapsed() < Duration::from_millis(900));
        let mut tries = 0;
        let done = pace(300, None).attempt(|| -> Result<()> {
            tries += 1;
            Err(trouble(Trouble::Denied("no".into())))
        });
        assert!(done.is_err() && tries == 1);
    }

    #[test]
    fn what_goes_forward_each_time_and_never_ends_is_given_up_too() {
        let pace = pace(300, None);
        let (begun, mut tries) = (Instant::now(), 0);
        let done = pace.attempt(|| -> Result<()> {
            tries += 1;
            pace.went_forward();
            assert!(tries < 100, "it is tried for ever");
            Err(trouble(Trouble::Failed("Input/output error".into())))
        });
        assert!(done.is_err() && tries >= ENOUGH_TRIES, "{tries}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_service_that_asks_to_wait_is_waited_for_but_not_for_ever() {
        let busy = |s| trouble(Trouble::Busy { what: "slow down".into(), retry_after_s: Some(s) });
        let mut tries = 0;
        let begun = Instant::now();
        let done = pace(5000, None).attempt(|| {
            tries += 1;
            if tries == 1 { Err(busy(1)) } else { Ok(()) }
        });
        assert!(done.is_ok() && begun.elapsed() >= Duration::from_secs(1));
        let begun = Instant::now();
        assert!(pace(5000, None).attempt(|| -> Result<()> { Err(busy(3600)) }).is_err());
        assert!(begun.elapsed() < Duration::from_secs(1), "nobody waits an hour");
    }

    #[test]
    fn a_rate_holds_for_all_workers_together_and_an_end_is_heard() {
        let slow = pace(1000, Some(100_000));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..4).for_each(|_| slow.spend(5_000).unwrap()));
            }
        });
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(540) && took < Duration::from_millis(2000), "{took:?}");
        let stuck = pace(100_000, Some(1));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| stuck.spend(1).and_then(|()| stuck.spend(1_000)).and_then(|()| stuck.spend(1)));
            std::thread::sleep(Duration::from_millis(100));
            stuck.end();
            assert_eq!(waits.join().unwrap(), Err(Error::Interrupted));
        });
    }
}
