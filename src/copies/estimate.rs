//! What reads of a destination would come to, before any is made.
//!
//! Invariant: each byte counts once, however many want it, as it is fetched once while it is held.

use std::collections::BTreeMap;
use std::ops::Range;

use super::ahead::run_pieces;
use super::remote::{PIECE_BYTES, Traffic};
use crate::ids::ArcName;

/// The pieces of arcs that are wanted.
#[derive(Debug, Default)]
pub struct Estimate {
    arcs: BTreeMap<ArcName, Wanted>,
}

#[derive(Debug)]
struct Wanted {
    arc_bytes: u64,
    /// A bit for each piece.
    pieces: Vec<u64>,
}

impl Estimate {
    /// A range of an arc will be read.
    pub fn add(&mut self, arc: ArcName, arc_bytes: u64, range: Range<u64>) {
        let end = range.end.min(arc_bytes).div_ceil(PIECE_BYTES);
        let empty = || Wanted { arc_bytes, pieces: vec![0; arc_bytes.div_ceil(PIECE_BYTES * 64) as usize] };
        let wanted = self.arcs.entry(arc).or_insert_with(empty);
        for piece in range.start / PIECE_BYTES..end {
            if let Some(word) = wanted.pieces.get_mut((piece / 64) as usize) {
                *word |= 1 << (piece % 64);
            }
        }
    }

    pub fn arcs(&self) -> u64 {
        self.arcs.len() as u64
    }

    /// Requests and bytes, when all of it is read in order: one more for each arc, whose length is asked for.
    pub fn traffic(&self) -> Traffic {
        let mut traffic = Traffic { requests: self.arcs(), bytes: 0 };
        for Wanted { arc_bytes, pieces } in self.arcs.values() {
            // Pieces in a row, and how many of them come with the ones before.
            let (mut row, mut asked) = (0, 0);
            for piece in 0..arc_bytes.div_ceil(PIECE_BYTES) {
                let is_wanted = pieces.get((piece / 64) as usize).is_some_and(|word| word >> (piece % 64) & 1 == 1);
                if !is_wanted {
                    (row, asked) = (0, 0);
                    continue;
                }
                if row == asked {
                    asked += run_pieces(row);
                    traffic.requests += 1;
                }
                row += 1;
                traffic.bytes += PIECE_BYTES.min(arc_bytes - piece * PIECE_BYTES);
            }
        }
        traffic
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Version;

    #[test]
    fn each_piece_counts_once_and_a_few_in_a_row_are_one_request() {
        let arc = |number| ArcName { version: Version(0), number };
        let mut estimate = Estimate::default();
        let bytes = 100 * PIECE_BYTES + 10;
        estimate.add(arc(1), bytes, 5..6);
        estimate.add(arc(1), bytes, 0..PIECE_BYTES);
        assert_eq!(estimate.traffic(), Traffic { requests: 2, bytes: PIECE_BYTES });
        estimate.add(arc(1), bytes, PIECE_BYTES - 1..PIECE_BYTES + 1);
        assert_eq!(estimate.traffic(), Traffic { requests: 2, bytes: 2 * PIECE_BYTES });
        // The last piece is a short one, and what is beyond the end is not there.
        estimate.add(arc(1), bytes, 100 * PIECE_BYTES..200 * PIECE_BYTES);
        assert_eq!(estimate.traffic(), Traffic { requests: 3, bytes: 2 * PIECE_BYTES + 10 });
        estimate.add(arc(2), bytes, 0..bytes);
        // Ten of four, then 5, 5, 6, 7, 7, 8, 9, 10 and what is left.
        let all = Traffic { requests: 3 + 1 + 19, bytes: 2 * PIECE_BYTES + 10 + bytes };
        assert_eq!((estimate.traffic(), estimate.arcs()), (all, 2));
    }
}
