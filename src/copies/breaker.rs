//! Whether it may be worth asking a destination.
//!
//! Invariant: it is down only after failures in a row, for longer and longer, and up again with the first answer.

use std::time::{Duration, Instant};

use super::pace;
use crate::error::{Error, Result, Trouble};

/// After so many failures in a row it counts as down, so long at first and at most.
const FAILURES: u32 = 3;
const DOWN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

#[derive(Default)]
pub struct Breaker {
    failures: u32,
    down_until: Option<Instant>,
}

impl Breaker {
    /// What came of a request.
    pub fn note<T>(&mut self, done: &Result<T>, now: Instant) {
        // What it says of an object it has said.
        match done {
            Err(error) if pace::may_pass(error).is_some() || is_absent(error) => self.failures += 1,
            _ => *self = Breaker::default(),
        }
        if let Some(more) = self.failures.checked_sub(FAILURES) {
            let pause = DOWN.0.saturating_mul(1 << more.min(16)).min(DOWN.1);
            self.down_until = Some(now + pause);
        }
    }

    pub fn is_open(&self, now: Instant) -> bool {
        self.down_until.is_some_and(|until| until > now)
    }
}

fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Dest { trouble: Trouble::Absent(_), .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(trouble: Trouble) -> Result<()> {
        Err(Error::Dest { dest: "usb".into(), object: "arc.0.1".into(), trouble })
    }

    /// For how long it is down, in seconds, if it is.
    fn down_s(breaker: &Breaker, now: Instant) -> Option<u64> {
        let is_open = |s: &u64| breaker.is_open(now + Duration::from_secs(*s));
        (0..1000).take_while(is_open).last().map(|last| last + 1)
    }

    #[test]
    fn it_is_down_for_longer_and_longer_up_to_a_minute_and_up_with_the_first_answer() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..2 {
            let reset = || failed(Trouble::Failed("reset".into()));
            let absent = || failed(Trouble::Absent("unplugged".into()));
            let mut found = Vec::new();
            for number in 0..9 {
                breaker.note(&if number % 2 == 0 { reset() } else { absent() }, now);
                found.push(down_s(&breaker, now));
                now += Duration::from_secs(1);
            }
            let expected = [0, 0, 5, 10, 20, 40, 60, 60, 60].map(|s| Some(s).filter(|s| *s > 0));
            assert_eq!(found, expected);
            // A failure later on counts from then.
            now += Duration::from_secs(1000);
            assert!(!breaker.is_open(now));
            breaker.note(&reset(), now);
            assert_eq!(down_s(&breaker, now), Some(60));
            breaker.note(&Ok(()), now);
            assert_eq!(down_s(&breaker, now), None);
        }
        // However many there are.
        (0..100_000).for_each(|_| breaker.note(&failed(Trouble::Failed("reset".into())), now));
        assert_eq!(down_s(&breaker, now), Some(60));
    }

    #[test]
    fn what_a_service_says_of_an_object_is_an_answer() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for trouble in [Trouble::NotFound, Trouble::Denied("403".into())] {
            (0..10).for_each(|_| breaker.note(&failed(trouble.clone()), now));
            assert!(!breaker.is_open(now), "{trouble:?}");
        }
        // Two failures, an answer, two failures: never three in a row.
        for _ in 0..5 {
            (0..2).for_each(|_| breaker.note(&failed(Trouble::Failed("reset".into())), now));
            breaker.note(&failed(Trouble::NotFound), now);
            assert!(!breaker.is_open(now));
        }
    }
}
