//! Sealed bytes that are what was written, as a type: where only such may go, only these can.
//!
//! Invariants: `Proven::open` is the only caller of `arc::frame::open` outside of those who write arcs, and the only maker
//! of a `Proven`; what it holds are the very bytes that were opened, all of the frame and no more.

use super::Frame;
use crate::arc::{VerifiedFrame, frame};
use crate::error::Damage;
use crate::ids::ArcId;

/// A frame as it is stored, which opened as the one of its arc that must be there.
#[derive(Debug, Clone, Copy)]
pub struct Proven<'a> {
    arc: ArcId,
    offset: u64,
    sealed: &'a [u8],
}

impl<'a> Proven<'a> {
    /// Verifies what was read in a frame's place.
    pub fn open(frame: &Frame<'_>, sealed: &'a [u8]) -> Result<(VerifiedFrame, Proven<'a>), Damage> {
        let opened = frame::open(frame.keys, frame.cipher, frame.no, frame.info, sealed)?;
        Ok((opened, Proven { arc: frame.cipher.arc_id(), offset: frame.offset, sealed }))
    }

    pub fn arc(&self) -> ArcId {
        self.arc
    }

    /// Of its first byte in the arc.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn sealed(&self) -> &'a [u8] {
        self.sealed
    }
}
