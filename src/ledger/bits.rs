//! A set of numbers that come in clusters, in little memory.
//!
//! Invariants: a bit a number, in bitmaps of 512 bytes that exist only where a number is; never more bitmaps than the
//! caller allows; inserting takes well below a microsecond.

use std::collections::HashMap;
use std::ops::Range;

const BITS: u32 = 12;
const WORDS: usize = (1 << BITS) / 64;

/// What became of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insert {
    New,
    Known,
    /// There is no room to remember it.
    Full,
}

#[derive(Debug, Clone, Default)]
pub struct Bits {
    bitmaps: HashMap<u64, Box<[u64; WORDS]>>,
    count: u64,
}

impl Bits {
    fn place(number: u64) -> (u64, usize, u64) {
        (number >> BITS, (number >> 6) as usize % WORDS, 1 << (number & 63))
    }

    pub fn contains(&self, number: u64) -> bool {
        let (bitmap, word, bit) = Self::place(number);
        self.bitmaps.get(&bitmap).and_then(|words| words.get(word)).is_some_and(|word| word & bit != 0)
    }

    /// Adds a number, unless that takes more than `max_bitmaps`.
    pub fn insert(&mut self, number: u64, max_bitmaps: usize) -> Insert {
        let (bitmap, word, bit) = Self::place(number);
        if self.bitmaps.len() >= max_bitmaps && !self.bitmaps.contains_key(&bitmap) {
            return Insert::Full;
        }
        let words = self.bitmaps.entry(bitmap).or_insert_with(|| Box::new([0; WORDS]));
        match words.get_mut(word) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                self.count += 1;
                Insert::New
            }
            _ => Insert::Known,
        }
    }

    /// Numbers in the set.
    pub fn len(&self) -> u64 {
        self.count
    }

    pub fn bitmaps(&self) -> usize {
        self.bitmaps.len()
    }

    /// Neighbouring numbers, in order.
    pub fn runs(&self) -> Vec<Range<u64>> {
        let mut bitmaps: Vec<u64> = self.bitmaps.keys().copied().collect();
        bitmaps.sort_unstable();
        let mut runs: Vec<Range<u64>> = Vec::new();
        for bitmap in bitmaps {
            let words = self.bitmaps.get(&bitmap).into_iter().flat_map(|words| words.iter());
            for (at, word) in words.enumerate() {
                let base = (bitmap << BITS) + at as u64 * 64;
                let mut left = *word;
                while left != 0 {
                    let start = base + u64::from(left.trailing_zeros());
                    let len = u64::from((left >> (start - base)).trailing_ones());
                    left &= u64::MAX.checked_shl((start - base + len) as u32).unwrap_or(0);
                    match runs.last_mut() {
                        Some(last) if last.end == start => last.end += len,
                        _ => runs.push(start..start + len),
                    }
                }
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    proptest::proptest! {
        #[test]
        fn runs_are_exactly_the_numbers_put_in(
            parts in proptest::collection::vec((0u64..20_000, 1u64..200), 1..20)
        ) {
            let (mut bits, mut naive) = (Bits::default(), BTreeSet::new());
            for number in parts.into_iter().flat_map(|(start, len)| start..start + len) {
                let wanted = if naive.insert(number) { Insert::New } else { Insert::Known };
                assert_eq!(bits.insert(number, usize::MAX), wanted);
            }
            let runs = bits.runs();
            assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            assert_eq!(runs.into_iter().flatten().collect::<Vec<_>>(), naive.iter().copied().collect::<Vec<_>>());
            assert_eq!(bits.len(), naive.len() as u64);
            assert!((0..21_000).all(|number| bits.contains(number) == naive.contains(&number)));
        }
    }

    #[test]
    fn there_are_never_more_bitmaps_than_allowed() {
        let mut bits = Bits::default();
        assert_eq!(bits.insert(5, 1), Insert::New);
        assert_eq!(bits.insert(1 << 20, 1), Insert::Full);
        assert_eq!((bits.insert(6, 1), bits.insert(5, 1), bits.len()), (Insert::New, Insert::Known, 2));
    }
}
