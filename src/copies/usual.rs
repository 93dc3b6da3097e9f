//! How long a destination usually takes.
//!
//! Invariant: one answer that took very long says little: what is usual changes by a part each time.

use std::sync::Mutex;
use std::time::Duration;

use crate::sync::lock;

/// Of the newest answer in what is usual.
const WEIGHT: f64 = 1.0 / 8.0;
/// An answer counts as if it had taken so many times what is usual, at most.
const MOST: f64 = 4.0;

/// Seconds and bytes of an answer, on an average in which older ones count less and less.
#[derive(Default)]
pub struct Usual(Mutex<Option<(f64, f64)>>);

impl Usual {
    /// So many bytes have come.
    pub fn note(&self, time: Duration, bytes: u64) {
        let mut usual = lock(&self.0);
        let (time_s, bytes) = (time.as_secs_f64(), bytes as f64);
        *usual = Some(match *usual {
            None => (time_s, bytes),
            Some((before_s, before)) => {
                (before_s + (time_s.min(before_s * MOST) - before_s) * WEIGHT, before + (bytes - before) * WEIGHT)
            }
        });
    }

    /// How long so many bytes would take: no less than what usually comes, and in proportion where it is more.
    pub fn of(&self, bytes: u64) -> Option<Duration> {
        let (time_s, usual_bytes) = (*lock(&self.0))?;
        Some(Duration::from_secs_f64(time_s * (bytes as f64 / usual_bytes.max(1.0)).max(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usual_follows_slowly() {
        let usual = Usual::default();
        assert_eq!(usual.of(1000), None);
        let ms = Duration::from_millis;
        (0..50).for_each(|_| usual.note(ms(20), 1000));
        assert_eq!((usual.of(10), usual.of(1000), usual.of(3000)), (Some(ms(20)), Some(ms(20)), Some(ms(60))));
        usual.note(ms(20_000), 1000);
        assert!(usual.of(1000).unwrap() < ms(30), "one is not many");
        (0..50).for_each(|_| usual.note(ms(200), 1000));
        assert!(usual.of(1000).unwrap() > ms(190));
    }
}
