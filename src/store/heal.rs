//! Where else a block comes from when the first read of it failed: the disk once more, past the page cache, then the
//! repair of one flipped bit, in memory.
//!
//! Invariants: what is served was accepted by `arc::frame::open`; the arc is not changed; each flipped bit that was
//! found is noted in the ledger with its place.

use std::sync::Arc;

use super::arcs::{Located, OpenArc};
use super::tally::End;
use super::{Heal, Inner, Outcome, Wanted};
use crate::arc::VerifiedBlock;
use crate::arc::repair::{BitFlip, flips, repair};
use crate::error::{Damage, Error};
use crate::ids::{BlockId, Logid};
use crate::ledger::{Flip, How, Record, now_s};

/// A frame that was refused.
pub(super) struct Bad {
    pub damage: Damage,
    /// What was read in its place.
    pub bytes: Vec<u8>,
}

impl Bad {
    pub fn unreadable(error: &std::io::Error) -> Bad {
        Bad { damage: Damage::Unreadable(error.raw_os_error().unwrap_or(libc::EIO)), bytes: Vec::new() }
    }
}

/// More differing bits than this are no flips: the frame was overwritten.
const MAX_FLIPS: usize = 2;

impl Inner {
    /// The block from elsewhere, or the damage; the one place for further sources. What was met is listed and logged.
    pub(super) fn second_source(
        &self,
        arc: &OpenArc,
        located: &Located,
        want: &Wanted,
        file: Option<Logid>,
        first: &Bad,
    ) -> Outcome {
        if let Some(verified) = self.relocated_since(want.block, located) {
            return Ok(Arc::new(verified));
        }
        let error = Error::Arc { place: arc.place(located, want.block), damage: first.damage.clone() };
        let healed = match self.heal {
            Heal::On => self.healed(want.block, located, first),
            Heal::Off => None,
        };
        let (block, end) = healed.map_or((None, End::Lost), |(block, end)| (Some(block), end));
        let mut more = format!("expected hash {}, source {}", located.info.hash, arc.path.display());
        if let Some(how) = end.how() {
            more += &format!("; {how}");
        }
        self.note_once(want.block.0, Some(located.serial), &error, &more, end, || self.index.path_of_node(file?).ok());
        block.map(Arc::new).ok_or(error)
    }

    /// Reads the block again from where it is now, and from the disk; repairs what came from there if need be.
    fn healed(&self, block: BlockId, was: &Located, first: &Bad) -> Option<(VerifiedBlock, End)> {
        self.arcs.forget_place(block);
        let located = self.arcs.locate(block).ok()?;
        let arc = self.arcs.reopen(located.serial).ok()?;
        arc.forget_cached(located.offset, located.info.frame_len());
        let place = BlockId::new(located.serial, located.no);
        let second = arc.with_bytes(located.offset, located.info.frame_len() as usize, |bytes| {
            let bytes = bytes.map_err(|error| Bad::unreadable(&error))?;
            let verified = self
                .verify(&arc, &located, How::Medium, bytes)
                .map_err(|damage| Bad { damage, bytes: bytes.to_vec() })?;
            if place == BlockId::new(was.serial, was.no) && first.bytes.len() == bytes.len() {
                self.note_flips(place, &flips(&first.bytes, bytes), false);
            }
            Ok(verified)
        });
        match second {
            Ok(verified) => Some((verified, End::ReadAgain)),
            Err(Bad { bytes, .. }) => {
                let repaired = repair(&self.keys, &arc.cipher, located.no, &located.info, &bytes)?;
                self.tally.block_verified(repaired.block.len() as u64);
                self.note_flips(place, &repaired.flips, true);
                let what = repaired.what();
                Some((repaired.block, End::Repaired(what)))
            }
        }
    }

    fn note_flips(&self, block: BlockId, flips: &[BitFlip], again: bool) {
        let Some(ledger) = self.ledger.as_ref().filter(|_| flips.len() <= MAX_FLIPS) else { return };
        for BitFlip { byte, bit, to_one } in flips.iter().copied() {
            ledger.record(Record::Flip(Flip { when_s: now_s(), block, byte, bit, to_one, again }));
        }
    }
}
