//! Puts a frame right that was written well and has changed since, as far as one flipped bit explains it. No I/O.
//!
//! Invariants: what comes out was accepted by `frame::open`, the one function that verifies, so a wrong guess can only
//! fail; the frame that comes out is, to the bit, the one that was written.

use super::frame::{self, FRAME_HEADER_LEN, FrameInfo, VerifiedFrame};
use crate::crypto::{ArcCipher, Keys};
use crate::error::Damage;
use crate::ids::FrameNo;

pub use super::search::search_plaintext;

/// A bit of a frame that is not as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitFlip {
    /// In the frame, from its header's first byte.
    pub byte: u32,
    /// 0 is the lowest.
    pub bit: u8,
    /// It should be 0 and is 1.
    pub to_one: bool,
}

/// A frame that was put right.
#[derive(Debug)]
pub struct Repaired {
    /// The frame as it was written.
    pub frame: Vec<u8>,
    pub opened: VerifiedFrame,
    /// All bits in which the damaged bytes differ, by place. Outside of the head it is at most one.
    pub flips: Vec<BitFlip>,
}

impl Repaired {
    /// What was wrong, in words.
    pub fn what(&self) -> String {
        let (header, body) = self.flips.split_at(self.flips.partition_point(|flip| flip.in_header()));
        match (header, body) {
            ([], []) => "nothing was wrong".into(),
            ([flip], []) | ([], [flip]) => flip.to_string(),
            (_, []) => "its head was changed".into(),
            (_, [flip, ..]) => format!("its head was changed and {flip}"),
        }
    }
}

impl BitFlip {
    fn in_header(&self) -> bool {
        (self.byte as usize) < FRAME_HEADER_LEN
    }
}

impl std::fmt::Display for BitFlip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "bit {} of byte {} was flipped to {}", self.bit, self.byte, u8::from(self.to_one))
    }
}

/// Finds the frame as it was written: the head is known, and if the tag does not match, the way in which it does not
/// tells which bit of ciphertext or tag was flipped. Takes a few milliseconds for 1 MiB, whether it succeeds or not.
///
/// None if no single bit explains the damage, and if the bytes were wrong before they were sealed.
pub fn repair(keys: &Keys, cipher: &ArcCipher, no: FrameNo, expected: &FrameInfo, damaged: &[u8]) -> Option<Repaired> {
    if damaged.len() as u64 != expected.frame_len() {
        return None;
    }
    let mut frame = damaged.to_vec();
    let header = expected.header(cipher, no);
    frame.get_mut(..FRAME_HEADER_LEN)?.copy_from_slice(&header);
    let opened = match frame::open(keys, cipher, no, expected, &frame) {
        Err(Damage::BadTag) => {
            let (ciphertext, tag) = frame.get(FRAME_HEADER_LEN..)?.split_last_chunk()?;
            let at = cipher.flipped_bit(expected.kind.domain(), no.0, &expected.head(no), ciphertext, tag)?;
            *frame.get_mut(FRAME_HEADER_LEN + at.byte)? ^= 1 << at.bit;
            frame::open(keys, cipher, no, expected, &frame)
        }
        other => other,
    };
    let opened = opened.ok()?;
    let flips = flips(damaged, &frame);
    Some(Repaired { frame, opened, flips })
}

/// All bits in which the bytes that were found differ from the right ones, by place.
pub fn flips(found: &[u8], right: &[u8]) -> Vec<BitFlip> {
    let differing = found.iter().zip(right).zip(0u32..).filter(|((found, right), _)| found != right);
    differing
        .flat_map(|((found, right), byte)| {
            let bits = (0..8u8).filter(move |bit| (found ^ right) >> bit & 1 != 0);
            bits.map(move |bit| BitFlip { byte, bit, to_one: found >> bit & 1 != 0 })
        })
        .collect()
}
