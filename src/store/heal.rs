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
use crate::depot::Via;
use crate::error::{Damage, Error, Place};
use crate::ids::{BlockId, Logid};
use crate::ledger::{Flip, How, Record};
use crate::text::shown;

/// A frame that was refused, or not read.
pub(super) struct Bad {
    /// Damage, or what kept it from being read.
    pub error: Error,
    /// What was read in its place; None if nothing could be.
    pub bytes: Option<Vec<u8>>,
}

impl Bad {
    pub fn refused(place: Place, damage: Damage, bytes: &[u8]) -> Bad {
        Bad { error: Error::Arc { place, damage }, bytes: Some(bytes.to_vec()) }
    }

    pub fn unread(place: Place, error: Error) -> Bad {
        let error = match error {
            Error::Arc { damage, .. } => Error::Arc { place, damage },
            other => other,
        };
        Bad { error, bytes: None }
    }
}

/// A block that came from elsewhere.
struct Healed {
    block: VerifiedBlock,
    end: End,
    /// Where it is stored, and what was wrong there.
    place: BlockId,
    flips: Vec<BitFlip>,
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
        let healed = match self.heal {
            Heal::On => self.healed(want.block, located, first),
            Heal::Off => Err(None),
        };
        // An error that says nothing of the bytes gives way to one that does.
        let error = match &healed {
            Err(Some(second)) if !first.error.is_damage() => second.clone(),
            _ => first.error.clone(),
        };
        let end = healed.as_ref().map_or(End::Lost, |healed| healed.end.clone());
        let mut more = format!("expected hash {}, source {}", located.info.hash, shown(&arc.path()));
        if let Some(how) = end.how() {
            more += &format!("; {how}");
        }
        let path = || self.index.path_of_node(file?).ok();
        let new = self.note_once(want.block.0, Some(located.serial), &error, &more, end.clone(), path);
        let healed = healed.map_err(|_| error)?;
        // What the arc has is one flip however often it is read; what a read brought is another one each time.
        let again = end != End::ReadAgain;
        if new || !again {
            self.note_flips(healed.place, &healed.flips, again);
        }
        Ok(Arc::new(healed.block))
    }

    /// Reads the block again from where it is now, and from the disk; repairs what came from there if need be. The error
    /// is what the second read ended in, if there was one.
    fn healed(&self, block: BlockId, was: &Located, first: &Bad) -> Result<Healed, Option<Error>> {
        self.arcs.forget_place(block);
        let located = self.arcs.locate(block).map_err(|_| None)?;
        let arc = self.arcs.reopen(located.serial).map_err(Some)?;
        let place = BlockId::new(located.serial, located.no);
        let second = arc.with_bytes(located.offset, located.info.frame_len() as usize, Via::Medium, |bytes| {
            let bytes = bytes.map_err(|error| Bad::unread(arc.place(&located, block), error))?;
            let block = self
                .verify(&arc, &located, How::Medium, bytes)
                .map_err(|damage| Bad::refused(arc.place(&located, block), damage, bytes))?;
            let same_place = |first: &&Vec<u8>| place == BlockId::new(was.serial, was.no) && first.len() == bytes.len();
            let flips = first.bytes.as_ref().filter(same_place).map_or_else(Vec::new, |first| flips(first, bytes));
            Ok::<_, Bad>(Healed { block, end: End::ReadAgain, place, flips })
        });
        let bad = match second {
            Ok(healed) => return Ok(healed),
            Err(bad) => bad,
        };
        let repaired = bad.bytes.and_then(|bytes| repair(&self.keys, &arc.cipher, located.no, &located.info, &bytes));
        let repaired = repaired.ok_or(Some(bad.error))?;
        self.tally.block_verified(repaired.block.len() as u64);
        let end = End::Repaired(repaired.what());
        Ok(Healed { block: repaired.block, end, place, flips: repaired.flips })
    }

    fn note_flips(&self, block: BlockId, flips: &[BitFlip], again: bool) {
        let Some(ledger) = self.ledger.as_ref().filter(|_| flips.len() <= MAX_FLIPS) else { return };
        for BitFlip { byte, bit, to_one } in flips.iter().copied() {
            ledger.record(Record::Flip(Flip { when_s: ledger.now_s(), block, byte, bit, to_one, again }));
        }
    }
}
