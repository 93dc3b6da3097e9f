//! How much is asked of a destination at a time.
//!
//! Invariants: no more than so many requests and bytes are on their way (one that is longer than all of these goes alone);
//! what is asked ahead leaves places to those who wait for their bytes, and goes after them; they go in the order in which
//! they came; nobody waits past a deadline; a place is given back whatever becomes of the request.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::sync::{lock, wait_timeout};

/// Requests in flight at one destination.
pub(super) const REQUESTS: usize = 32;
/// Of these, kept for those who wait for their bytes.
const KEPT_REQUESTS: usize = 8;
/// Bytes in flight at one destination.
const IN_FLIGHT_BYTES: u64 = 64 << 20;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Somebody waits for the bytes.
    Reader,
    /// They will be needed, perhaps.
    Ahead,
}

#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    requests: usize,
    /// Of these, by those who ask ahead.
    ahead: usize,
    bytes: u64,
    /// Readers who wait, in their order.
    waiting: VecDeque<u64>,
    last: u64,
}

impl State {
    fn has_room(&self, who: Who, turn: u64, bytes: u64) -> bool {
        let is_next = match who {
            Who::Reader => self.waiting.front() == Some(&turn),
            Who::Ahead => self.waiting.is_empty() && self.ahead < REQUESTS - KEPT_REQUESTS,
        };
        let fits = self.bytes.checked_add(bytes).is_some_and(|sum| sum <= IN_FLIGHT_BYTES);
        is_next && self.requests < REQUESTS && (fits || self.requests == 0)
    }
}

impl Gate {
    /// Waits for a place.
    ///
    /// # Errors
    /// `READ_TIMED_OUT`.
    pub fn pass(&self, who: Who, bytes: u64, until: Instant) -> Result<Passed<'_>> {
        let mut state = lock(&self.state);
        state.last += 1;
        let turn = state.last;
        if who == Who::Reader {
            state.waiting.push_back(turn);
        }
        let may = loop {
            if state.has_room(who, turn, bytes) {
                break true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break false;
            }
            state = wait_timeout(&self.changed, state, left);
        };
        if who == Who::Reader {
            state.waiting.retain(|other| *other != turn);
            // Who comes next may have room too.
            self.changed.notify_all();
        }
        if !may {
            return Err(Error::TimedOut);
        }
        state.requests += 1;
        state.ahead += usize::from(who == Who::Ahead);
        state.bytes += bytes;
        Ok(Passed { gate: self, who, bytes })
    }
}

/// A request that is on its way.
pub struct Passed<'a> {
    gate: &'a Gate,
    who: Who,
    bytes: u64,
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.gate.state);
        state.requests -= 1;
        state.ahead -= usize::from(self.who == Who::Ahead);
        state.bytes -= self.bytes;
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::testing::Rng;

    const MIB: u64 = 1 << 20;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn the_bounds_hold_whoever_comes_and_whatever_becomes_of_it() {
        let gate = Gate::default();
        let seed = Rng::from_env().seed;
        println!("seed {seed}");
        let (requests, ahead, bytes, most) =
            (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for number in 0..100 {
                let (gate, requests, ahead, bytes, most) = (&gate, &requests, &ahead, &bytes, &most);
                scope.spawn(move || {
                    let mut rng = Rng::new(seed ^ number);
                    for _ in 0..20 {
                        let who = if number % 2 == 0 { Who::Ahead } else { Who::Reader };
                        let len = if rng.below(20) == 0 { 70 * MIB } else { rng.below(9) as u64 * MIB };
                        let panics = rng.below(10) == 0;
                        let ask = || {
                            let passed = gate.pass(who, len, soon()).unwrap();
                            let count = requests.fetch_add(1, Ordering::SeqCst) + 1;
                            let of_ahead = ahead.fetch_add(u64::from(who == Who::Ahead), Ordering::SeqCst);
                            let sum = bytes.fetch_add(len, Ordering::SeqCst) + len;
                            std::thread::sleep(Duration::from_micros(300));
                            let is_over = count > 32
                                || (who == Who::Ahead && of_ahead >= 24)
                                || (sum > 64 * MIB && (count > 1 || sum != len));
                            most.fetch_max(count, Ordering::SeqCst);
                            bytes.fetch_sub(len, Ordering::SeqCst);
                            ahead.fetch_sub(u64::from(who == Who::Ahead), Ordering::SeqCst);
                            requests.fetch_sub(1, Ordering::SeqCst);
                            let _passed = passed;
                            // It unwinds as a panic does, and prints nothing.
                            if panics {
                                std::panic::resume_unwind(Box::new(()));
                            }
                            is_over
                        };
                        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask));
                        assert!(done.map_or(panics, |is_over| !is_over));
                    }
                });
            }
        });
        let state = lock(&gate.state);
        assert_eq!((state.requests, state.ahead, state.bytes, state.waiting.len()), (0, 0, 0, 0));
        assert!(most.load(Ordering::SeqCst) > 8, "they went side by side");
    }

    #[test]
    fn readers_have_places_where_as_much_is_asked_ahead_as_may_be() {
        let gate = Gate::default();
        let now = Instant::now();
        let ahead: Vec<_> = (0..24).map(|_| gate.pass(Who::Ahead, MIB, now).unwrap()).collect();
        assert_eq!(gate.pass(Who::Ahead, 0, now).err(), Some(Error::TimedOut));
        let readers: Vec<_> = (0..8).map(|_| gate.pass(Who::Reader, MIB, now).unwrap()).collect();
        assert_eq!(gate.pass(Who::Reader, 0, now).err(), Some(Error::TimedOut), "all are taken");
        drop(ahead);
        // Whoever waits for bytes may have all.
        let more: Vec<_> = (0..24).map(|_| gate.pass(Who::Reader, MIB, now).unwrap()).collect();
        assert!(gate.pass(Who::Ahead, 0, now).is_err());
        drop((readers, more));
        assert!(gate.pass(Who::Ahead, 0, now).is_ok());
    }

    #[test]
    fn a_long_request_waits_for_its_room_and_is_not_overtaken_for_ever() {
        let gate = Gate::default();
        let first = gate.pass(Who::Reader, 40 * MIB, Instant::now()).unwrap();
        std::thread::scope(|scope| {
            let long = scope.spawn(|| gate.pass(Who::Reader, 65 * MIB, soon()).map(drop));
            while lock(&gate.state).waiting.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let in_time = Instant::now() + Duration::from_millis(50);
            assert!(gate.pass(Who::Ahead, 1, in_time).is_err() && gate.pass(Who::Reader, 1, in_time).is_err());
            assert!(!long.is_finished());
            drop(first);
            assert!(long.join().unwrap().is_ok());
        });
        assert!(gate.pass(Who::Reader, 1, Instant::now()).is_ok());
    }

    #[test]
    fn who_gives_up_waiting_holds_up_nobody() {
        let gate = Gate::default();
        let held = gate.pass(Who::Reader, 60 * MIB, Instant::now()).unwrap();
        std::thread::scope(|scope| {
            let gives_up =
                scope.spawn(|| gate.pass(Who::Reader, 60 * MIB, Instant::now() + Duration::from_millis(100)).err());
            while lock(&gate.state).waiting.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let begun = Instant::now();
            assert!(gate.pass(Who::Reader, MIB, soon()).is_ok(), "there is room for it");
            assert!(begun.elapsed() < Duration::from_secs(5));
            assert_eq!(gives_up.join().unwrap(), Some(Error::TimedOut));
        });
        drop(held);
    }
}
