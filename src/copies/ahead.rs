//! What who reads an arc in order will need next.
//!
//! Invariant: what is asked for ahead is no more than what was read in a row before, and `MAX_AHEAD`.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Mutex;

use lru::LruCache;

use super::remote::RUN_PIECES;
use crate::ids::ArcName;
use crate::sync::lock;

/// Pieces that are asked for ahead of one reader: 8 MiB, what a line of 20 ms and 400 MB/s has on its way.
const MAX_AHEAD: u64 = 32;
/// Arcs whose readers are remembered.
const MAX_STREAMS: usize = 64;
/// Who reads with several requests at a time reads out of order.
const SLACK: u64 = 16;

/// How far an arc was read in a row.
#[derive(Clone, Copy)]
struct Stream {
    start: u64,
    /// The piece after the furthest that was read.
    next: u64,
    /// Pieces before this one were asked for.
    asked_to: u64,
}

pub struct Ahead(Mutex<LruCache<ArcName, Stream>>);

impl Ahead {
    pub fn new() -> Ahead {
        Ahead(Mutex::new(LruCache::new(NonZeroUsize::new(MAX_STREAMS).unwrap_or(NonZeroUsize::MIN))))
    }

    /// Notes that a piece is read, and gives those that are to be asked for now.
    pub fn note(&self, arc: ArcName, number: u64) -> Option<Range<u64>> {
        let mut streams = lock(&self.0);
        let known = streams.get(&arc).copied();
        let known = known.filter(|stream| number <= stream.next + RUN_PIECES && number + SLACK >= stream.next);
        let mut stream = known.unwrap_or(Stream { start: number, next: number, asked_to: number });
        stream.next = stream.next.max(number + 1);
        let to = stream.next + (stream.next - stream.start).min(MAX_AHEAD);
        let wanted = stream.asked_to.max(stream.next)..to;
        let many = wanted.end.saturating_sub(wanted.start) >= RUN_PIECES;
        if many {
            stream.asked_to = to;
        }
        streams.put(arc, stream);
        many.then_some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Version;

    const ARC: ArcName = ArcName { version: Version(0), number: 1 };

    #[test]
    fn a_reader_in_order_is_always_a_window_behind_what_was_asked_for() {
        let ahead = Ahead::new();
        let mut asked_to = 0;
        for number in 0..300 {
            if let Some(range) = ahead.note(ARC, number) {
                assert!(range.start >= asked_to && range.start > number, "{range:?} at {number}");
                asked_to = range.end;
            }
            assert!(asked_to <= number + 1 + (number + 1).min(MAX_AHEAD));
            assert!(number < 40 || asked_to > number + MAX_AHEAD - RUN_PIECES, "{asked_to} at {number}");
        }
    }

    #[test]
    fn who_jumps_about_asks_for_nothing() {
        let ahead = Ahead::new();
        for number in [900, 30, 550, 200, 710, 80, 400] {
            assert_eq!(ahead.note(ARC, number), None);
        }
        // A little out of order is in order.
        let numbers = [1001, 1000, 1003, 1002, 1005, 1004, 1007, 1006].map(|number| ahead.note(ARC, number));
        assert!(numbers.iter().flatten().count() > 0);
    }
}
