//! SHA-256 of an arc whose pieces come in any order.
//!
//! Invariant: a piece that came early is kept until all before it has come, and given back then: whoever bounds what is on
//! its way bounds these too.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// Bytes of a piece, and the buffer that they were in.
pub(super) type Done = (u64, Option<Vec<u8>>);

#[derive(Debug)]
pub(super) struct InOrder {
    hasher: Sha256,
    next: u64,
    early: BTreeMap<u64, Vec<u8>>,
    /// A piece did not come as one: what all of it is can't be told.
    is_broken: bool,
}

impl InOrder {
    /// What comes follows these.
    pub fn after(head: &[u8]) -> InOrder {
        let hasher = Sha256::new_with_prefix(head);
        InOrder { hasher, next: head.len() as u64, early: BTreeMap::new(), is_broken: false }
    }

    /// Takes a piece of `len` bytes; None or fewer: it did not come. Gives back the pieces that are done with.
    pub fn add(&mut self, start: u64, len: u64, bytes: Option<Vec<u8>>) -> Vec<Done> {
        match bytes {
            Some(bytes) if !self.is_broken && bytes.len() as u64 == len => {
                self.early.insert(start, bytes);
            }
            bytes => {
                self.is_broken = true;
                let early = std::mem::take(&mut self.early).into_values();
                return early.map(|bytes| (bytes.len() as u64, Some(bytes))).chain([(len, bytes)]).collect();
            }
        }
        let mut done = Vec::new();
        while let Some(bytes) = self.early.remove(&self.next) {
            self.hasher.update(&bytes);
            self.next += bytes.len() as u64;
            done.push((bytes.len() as u64, Some(bytes)));
        }
        done
    }

    /// The sum of all, if `tail` follows what has come.
    pub fn end(self, tail_at: u64, tail: &[u8]) -> Option<[u8; 32]> {
        let is_whole = !self.is_broken && self.early.is_empty() && self.next == tail_at;
        is_whole.then(|| self.hasher.chain_update(tail).finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_are_one_sum_and_each_is_given_back_once() {
        let all: Vec<u8> = (0..1000_u32).map(|n| (n * 7 % 251) as u8).collect();
        let wanted: [u8; 32] = Sha256::digest(&all).into();
        let starts = [10, 200, 450, 451, 900];
        let pieces: Vec<(u64, Vec<u8>)> = starts
            .iter()
            .zip(starts[1..].iter().chain(&[990]))
            .map(|(start, end)| (*start as u64, all[*start..*end].to_vec()))
            .collect();
        for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
            let mut sum = InOrder::after(&all[..10]);
            let mut back = 0;
            for at in order {
                let (start, bytes) = pieces[at].clone();
                back += sum.add(start, bytes.len() as u64, Some(bytes)).iter().map(|(len, _)| len).sum::<u64>();
            }
            assert_eq!((back, sum.end(990, &all[990..])), (980, Some(wanted)), "{order:?}");
        }
        // Without one of them, or with a shorter one, there is no sum, and nothing stays.
        for fault in 0..5 {
            let mut sum = InOrder::after(&all[..10]);
            let mut back = 0;
            for at in [1, 0, 4, 3, 2] {
                let (start, bytes) = pieces[at].clone();
                let len = bytes.len() as u64;
                let bytes = if at != fault { Some(bytes) } else { Some(bytes[1..].to_vec()).filter(|_| at % 2 == 0) };
                back += sum.add(start, len, bytes).iter().map(|(len, _)| len).sum::<u64>();
            }
            assert_eq!((back, sum.end(990, &all[990..])), (980, None), "{fault}");
        }
        let mut sum = InOrder::after(&all[..10]);
        sum.add(10, 190, Some(all[10..200].to_vec()));
        assert_eq!(sum.end(990, &all[990..]), None, "some never came");
    }
}
