//! What who reads an arc in order will need next: the one place where more is asked for than somebody wants now.
//!
//! Invariants: what is asked for ahead of a reader is no more than what was read in a row before, and `MAX_AHEAD`, but for
//! the rest of one run; readers share `MAX_AHEAD_OF_ALL`, so that what has come is still there when it is read.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::ids::ArcName;
use crate::sync::lock;

/// Pieces in a row that somebody who waits for the first of them asks for at once, at most.
pub(super) const RUN_PIECES: u64 = 4;
/// Pieces in a row that are asked for at once when nobody waits for them yet, at most: 4 MiB.
pub(super) const MAX_RUN_PIECES: u64 = 16;
/// Pieces that are asked for ahead of one reader: 16 MiB.
const MAX_AHEAD: u64 = 64;
/// Pieces that are asked for ahead of all readers: half of those that are held.
const MAX_AHEAD_OF_ALL: u64 = 128;
/// Readers that are remembered, and for how long they are thought to go on.
const MAX_STREAMS: usize = 64;
const LASTS: Duration = Duration::from_secs(10);
/// Who reads with several requests at a time reads out of order.
const SLACK: u64 = 16;

/// How many pieces are asked for at once, so many pieces after the first one that was read in a row.
pub(super) fn run_pieces(place: u64) -> u64 {
    (place / 8).clamp(RUN_PIECES, MAX_RUN_PIECES)
}

/// How far an arc was read in a row.
struct Stream {
    arc: ArcName,
    start: u64,
    /// The piece after the furthest that was read.
    next: u64,
    /// Pieces before this one were asked for.
    asked_to: u64,
    read_at: Instant,
}

impl Stream {
    fn row(&self) -> u64 {
        self.next - self.start
    }

    fn goes_on_with(&self, number: u64) -> bool {
        // A jump into the middle of what somebody else reads is not taken for a step.
        let (back, on) = if self.row() < RUN_PIECES { (2, 1) } else { (SLACK.min(self.row()), RUN_PIECES) };
        number + back >= self.next && number <= self.next + on
    }
}

/// What is to be asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// Who reads asks for pieces before this one, where nobody has.
    pub to: u64,
    /// What others are to ask for, each at once.
    pub ahead: Vec<Range<u64>>,
}

#[derive(Default)]
pub struct Ahead(Mutex<VecDeque<Stream>>);

impl Ahead {
    /// A piece is read, of an arc of so many, by somebody who wants those before `wanted_to` now. No more than `most` may be
    /// asked for at once.
    pub fn note(&self, arc: ArcName, number: u64, wanted_to: u64, pieces: u64, most: u64) -> Next {
        let mut streams = lock(&self.0);
        let now = Instant::now();
        let known = streams.iter().position(|stream| stream.arc == arc && stream.goes_on_with(number));
        let known = known.and_then(|at| streams.remove(at));
        let mut stream = known.unwrap_or(Stream { arc, start: number, next: number, asked_to: number, read_at: now });
        let is_next = number == stream.next;
        stream.start = stream.start.min(number);
        stream.next = stream.next.max(number + 1);
        stream.read_at = now;
        let is_reading = |other: &&Stream| other.row() > 1 && now.saturating_duration_since(other.read_at) < LASTS;
        let share = MAX_AHEAD_OF_ALL / (streams.iter().filter(is_reading).count() as u64 + 1);
        let row = stream.row();
        let window = row.min(MAX_AHEAD).min(share).max(RUN_PIECES - 1).min(4 * most);
        // One piece is no row.
        let to = (stream.next + if row > 1 { window } else { 0 }).min(pieces);
        let own = wanted_to.max(if is_next { to } else { 0 }).min(number + RUN_PIECES.min(most)).max(number + 1);
        if number >= stream.asked_to {
            stream.asked_to = own;
        }
        let mut next = Next { to: own, ahead: Vec::new() };
        loop {
            let start = stream.asked_to.max(stream.next);
            let run = run_pieces(start - stream.start).min((window / 4).max(RUN_PIECES)).min(most);
            let is_end = to == pieces && row >= RUN_PIECES;
            let end = to.min(start + run);
            if start >= to || (end - start < run && !is_end) {
                break;
            }
            next.ahead.push(start..end);
            stream.asked_to = end;
        }
        streams.push_front(stream);
        streams.truncate(MAX_STREAMS);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Version;

    fn arc(number: u32) -> ArcName {
        ArcName { version: Version(0), number }
    }

    #[test]
    fn a_reader_in_order_is_a_window_behind_what_was_asked_for_in_longer_and_longer_runs() {
        let ahead = Ahead::default();
        let (mut asked_to, mut runs) = (0, Vec::new());
        for number in 0..600 {
            let next = ahead.note(arc(1), number, number + 1, 600, MAX_RUN_PIECES);
            if number >= asked_to {
                runs.push(number..next.to);
                asked_to = next.to;
            }
            for range in next.ahead {
                assert_eq!(range.start, asked_to, "each piece once, and none is left out");
                asked_to = range.end;
                runs.push(range);
            }
            assert!(asked_to <= number + 1 + (number + 1).clamp(3, MAX_AHEAD), "{asked_to} at {number}");
            let behind = asked_to == 600 || asked_to > number + MAX_AHEAD - MAX_RUN_PIECES;
            assert!(number < 70 || behind, "{asked_to} at {number}");
        }
        assert_eq!(asked_to, 600);
        assert_eq!(runs[..4], [0..1, 1..5, 5..9, 9..13]);
        assert!(runs.iter().all(|run| run.end - run.start <= 16) && runs[runs.len() - 2].clone().count() == 16);
        // 150 runs of four.
        assert!(runs.len() < 60, "{} requests", runs.len());
    }

    #[test]
    fn who_jumps_about_asks_for_nothing() {
        let ahead = Ahead::default();
        for number in [900, 30, 550, 200, 710, 80, 400] {
            let next = ahead.note(arc(1), number, number + 1, 1000, MAX_RUN_PIECES);
            assert_eq!(next, Next { to: number + 1, ahead: Vec::new() });
        }
        // Who leaves one out reads no row yet.
        assert_eq!(ahead.note(arc(4), 0, 1, 1000, MAX_RUN_PIECES).to, 1);
        assert_eq!(ahead.note(arc(4), 2, 3, 1000, MAX_RUN_PIECES), Next { to: 3, ahead: Vec::new() });
        // What is wanted now is asked for at once.
        assert_eq!(ahead.note(arc(2), 5, 8, 1000, MAX_RUN_PIECES), Next { to: 8, ahead: Vec::new() });
        assert_eq!(ahead.note(arc(3), 5, 80, 1000, MAX_RUN_PIECES).to, 9);
        // A little out of order is in order.
        let numbers = [1001, 1000, 1003, 1002, 1005, 1004, 1007, 1006];
        assert!(numbers.iter().any(|number| !ahead.note(arc(1), *number, 0, 2000, MAX_RUN_PIECES).ahead.is_empty()));
    }

    #[test]
    fn several_readers_of_one_arc_and_of_others_share_what_is_held() {
        let ahead = Ahead::default();
        let begin = |reader: usize| (reader as u64 % 2) * 1000;
        let mut asked_to: Vec<u64> = (0..10).map(begin).collect();
        for step in 0..200 {
            for (reader, asked_to) in asked_to.iter_mut().enumerate() {
                // Two in each arc.
                let number = begin(reader) + step;
                let next = ahead.note(arc(reader as u32 / 2), number, number + 1, 2000, MAX_RUN_PIECES);
                *asked_to = if number >= *asked_to { next.to } else { *asked_to };
                *asked_to = next.ahead.last().map_or(*asked_to, |range| range.end);
            }
            let left = asked_to.iter().enumerate().map(|(reader, to)| to.saturating_sub(begin(reader) + step + 1));
            assert!(left.sum::<u64>() <= MAX_AHEAD_OF_ALL, "at {step}");
        }
        let least = asked_to.iter().enumerate().map(|(reader, to)| to - begin(reader)).min();
        assert!(least > Some(204), "each has its share: {asked_to:?}");
    }

    #[test]
    fn over_a_slow_line_less_is_asked_for_at_a_time() {
        let ahead = Ahead::default();
        for number in 0..200 {
            let next = ahead.note(arc(1), number, number + 1, 200, 1);
            assert!(next.to == number + 1 && next.ahead.iter().all(|run| run.end - run.start == 1), "{next:?}");
            assert!(next.ahead.last().is_none_or(|run| run.end <= number + 5), "{next:?}");
        }
    }
}
