//! One frame, from wherever it is right: the ladder of a read.
//!
//! The rungs, in order: as it comes; again, past the page cache; with one flipped bit put right, in memory; from another
//! copy of the arc. What none of them gives is damage, with its place.
//!
//! What was fetched from far is kept (`cache`), and asked for there before any rung.
//!
//! Invariants: what leaves here was verified (`proven`); no arc is changed; what was met on the way up is told to whoever
//! asks, and noted by nobody here.

mod arc_file;
mod blocks;
mod cache;
mod elsewhere;
mod places;
mod proven;
#[cfg(test)]
mod tests;

pub use arc_file::{ArcFile, ends, open_footer, prove};
pub use blocks::{Asked, Fetch, Heal};
pub use cache::{FrameCache, Hits};
pub use places::Located;
use proven::Proven;

use std::cell::RefCell;
use std::sync::Arc;

use crate::arc::frame::Head;
use crate::arc::repair::{BitFlip, Repaired, flips, repair};
use crate::arc::{
    BLOCK_ENTRY_LEN, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameInfo, FrameKind, MAX_BLOCKS, MAX_PLAIN_LEN, VerifiedFrame,
};
use crate::crypto::{ArcCipher, Keys};
use crate::depot::{Depot, StoredArc, Via};
use crate::error::{Damage, Error, Place, Result};
use crate::ids::{ArcName, BlockId, CopyId, FrameNo};

/// A frame: where it is and what must be there.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    pub keys: &'a Keys,
    pub cipher: &'a ArcCipher,
    pub arc: ArcName,
    pub no: FrameNo,
    /// A block that is in it, if one is known by name.
    pub block: Option<BlockId>,
    /// Of its first byte in the arc.
    pub offset: u64,
    pub info: &'a FrameInfo,
}

/// How a frame was come by.
#[derive(Debug)]
pub enum Way {
    /// As it came.
    First,
    /// It was right when it was read again; where both reads gave bytes, the bits in which they differed.
    Again { flips: Vec<BitFlip> },
    /// One flipped bit was found, and put right in memory.
    Repaired(Repair),
    /// Another copy has it, sealed as `frame`; where that was put right in memory too, what is stored there is not what was
    /// verified.
    Copy { is_repaired: bool, frame: Vec<u8> },
    /// It was fetched before, and is proven again: this says nothing of the copy that it was fetched from.
    Kept,
}

/// What was wrong with a frame, and the frame as it was written.
#[derive(Debug)]
pub struct Repair {
    pub what: String,
    pub flips: Vec<BitFlip>,
    pub frame: Vec<u8>,
}

/// A frame that was verified.
#[derive(Debug)]
pub struct Fetched {
    pub opened: VerifiedFrame,
    /// The copy that had it.
    pub copy: CopyId,
    pub way: Way,
    /// What was wrong at first.
    pub met: Option<Error>,
}

/// A frame that was refused, or not read.
#[derive(Debug)]
pub struct Bad {
    /// Damage, or what kept it from being read.
    pub error: Error,
    /// What was read in its place; None if nothing could be.
    pub bytes: Option<Vec<u8>>,
    /// What is there is authentic, and another frame than the one that is expected: who expects it is wrong.
    pub is_another: bool,
    /// The arc could not be opened at all.
    pub is_whole_arc: bool,
}

impl Bad {
    fn refused(place: Place, damage: Damage, bytes: &[u8]) -> Bad {
        Bad { error: Error::Arc { place, damage }, bytes: Some(bytes.to_vec()), is_another: false, is_whole_arc: false }
    }

    /// What kept it from being read, told of this frame.
    fn unread(error: Error, (frame, block, offset): (FrameNo, Option<BlockId>, u64)) -> Bad {
        let error = match error {
            Error::Arc { place, damage } => {
                Error::Arc { place: Place { arc: place.arc, frame: Some(frame), block, offset }, damage }
            }
            other => other,
        };
        Bad { error, bytes: None, is_another: false, is_whole_arc: false }
    }
}

impl Frame<'_> {
    pub fn place(&self) -> Place {
        Place { arc: self.arc, frame: Some(self.no), block: self.block, offset: self.offset }
    }

    fn unread(&self, error: Error) -> Bad {
        Bad::unread(error, (self.no, self.block, self.offset))
    }

    fn fetched(&self, opened: VerifiedFrame, way: Way) -> Fetched {
        Fetched { opened, copy: CopyId::LOCAL, way, met: None }
    }

    /// Verifies what was read in the frame's place.
    pub fn judge(&self, bytes: &[u8]) -> Result<VerifiedFrame, Bad> {
        self.proven(bytes).map(|(opened, _)| opened)
    }

    fn proven<'b>(&self, bytes: &'b [u8]) -> Result<(VerifiedFrame, Proven<'b>), Bad> {
        Proven::open(self, bytes).map_err(|damage| Bad::refused(self.place(), damage, bytes))
    }

    /// As the first rung, for blocks: what holds none is refused.
    fn judged<'b>(&self, bytes: &'b [u8]) -> Result<(Fetched, Proven<'b>), Bad> {
        if self.info.kind != FrameKind::Block {
            return Err(Bad::refused(self.place(), Damage::WrongFrame, bytes));
        }
        self.proven(bytes).map(|(opened, proven)| (self.fetched(opened, Way::First), proven))
    }

    fn alone(&self, arc: &dyn StoredArc) -> Result<Fetched, Bad> {
        with_bytes(arc, self.offset, self.info.frame_len(), Via::Cache, |bytes| match bytes {
            Ok(bytes) => self.judged(bytes).map(|(fetched, _)| fetched),
            Err(error) => Err(self.unread(error)),
        })
    }

    /// Reads it by itself.
    pub fn read(&self, arc: &dyn StoredArc, via: Via) -> Result<VerifiedFrame, Bad> {
        with_bytes(arc, self.offset, self.info.frame_len(), via, |bytes| match bytes {
            Ok(bytes) => self.judge(bytes),
            Err(error) => Err(self.unread(error)),
        })
    }

    /// Reads it by itself, and again from the medium if it is not right.
    pub fn look(&self, arc: &dyn StoredArc) -> Result<Fetched, Bad> {
        match self.read(arc, Via::Cache) {
            Ok(opened) => Ok(self.fetched(opened, Way::First)),
            Err(first) => self.again(arc, &first),
        }
    }

    /// From the medium, after a first look that failed.
    pub fn again(&self, arc: &dyn StoredArc, first: &Bad) -> Result<Fetched, Bad> {
        with_bytes(arc, self.offset, self.info.frame_len(), Via::Medium, |bytes| {
            let bytes = bytes.map_err(|error| self.unread(error))?;
            let opened = self.judge(bytes).map_err(|bad| self.compared(arc, bad))?;
            let before = first.bytes.as_ref().filter(|before| before.len() == bytes.len());
            let flips = before.map_or_else(Vec::new, |before| flips(before, bytes));
            let met = Some(first.error.clone());
            Ok(Fetched { met, ..self.fetched(opened, Way::Again { flips }) })
        })
    }

    /// Is what stands in its place an authentic frame, but another one?
    fn compared(&self, arc: &dyn StoredArc, bad: Bad) -> Bad {
        let is_wrong = matches!(bad.error, Error::Arc { damage: Damage::WrongFrame, .. });
        let claim = || {
            let (header, body) = bad.bytes.as_ref()?.split_first_chunk::<FRAME_HEADER_LEN>()?;
            let head = Head::open(self.cipher, self.no, header)?;
            // Where more stands there than was expected, what was read may end before its table does.
            match head.claim(self.cipher, self.no, body) {
                Some(info) => Some(info),
                None => {
                    let at = self.offset + FRAME_HEADER_LEN as u64;
                    with_bytes(arc, at, head.table_len() as u64, Via::Medium, |table| {
                        head.claim(self.cipher, self.no, table.ok()?)
                    })
                }
            }
        };
        let is_another = is_wrong
            && claim()
                .filter(|info| info != self.info)
                .is_some_and(|info| Frame { info: &info, ..*self }.read(arc, Via::Medium).is_ok());
        Bad { is_another, ..bad }
    }

    /// With one flipped bit put right.
    pub fn repaired(&self, bad: &Bad) -> Option<Fetched> {
        let repaired = repair(self.keys, self.cipher, self.no, self.info, bad.bytes.as_ref()?)?;
        let what = repaired.what();
        let Repaired { frame, opened, flips } = repaired;
        let way = Way::Repaired(Repair { what, flips, frame });
        Some(Fetched { met: Some(bad.error.clone()), ..self.fetched(opened, way) })
    }

    /// As another copy has it.
    pub fn at(&self, copy: &Arc<dyn Depot>) -> Looked {
        let arc = copy.open(self.arc).map_err(|error| Refused::of(copy.id(), error))?;
        let sealed = |via| {
            with_bytes(arc.as_ref(), self.offset, self.info.frame_len(), via, |bytes| {
                let bytes = bytes.map_err(|error| self.unread(error))?;
                self.judge(bytes).map(|opened| (opened, bytes.to_vec()))
            })
        };
        // What was fetched of it by now is enough, unless it is wrong.
        let looked = sealed(Via::Cache).or_else(|_| sealed(Via::Medium));
        let (opened, frame, is_repaired) = match looked {
            Ok((opened, frame)) => (opened, frame, false),
            Err(bad) => {
                match repair(self.keys, self.cipher, self.no, self.info, bad.bytes.as_deref().unwrap_or_default()) {
                    Some(repaired) => (repaired.opened, repaired.frame, true),
                    None => return Err(Refused::of(arc.copy(), bad.error)),
                }
            }
        };
        Ok(Fetched { copy: arc.copy(), ..self.fetched(opened, Way::Copy { is_repaired, frame }) })
    }
}

/// What came of a frame at another copy.
pub type Looked = Result<Fetched, Refused>;

/// A copy that does not have it, and why.
#[derive(Debug, Clone)]
pub struct Refused {
    pub copy: CopyId,
    pub error: Error,
}

impl Refused {
    fn of(copy: CopyId, error: Error) -> Refused {
        Refused { copy, error }
    }
}

/// What came of a frame at all other copies.
#[derive(Debug, Default)]
pub struct Elsewhere {
    pub found: Option<Fetched>,
    /// Those that were asked before it was found.
    pub refused: Vec<Refused>,
}

/// Reads a part of an arc that is no frame of blocks and judges it; what is not right is read again, from the medium. Gives
/// with it what was wrong at first.
///
/// # Errors
/// What was wrong the second time.
pub fn look<T>(
    arc: &dyn StoredArc,
    offset: u64,
    len: u64,
    mut judge: impl FnMut(&[u8]) -> Result<T, Damage>,
) -> Result<(T, Option<Error>)> {
    let mut read = |via| {
        with_bytes(arc, offset, len, via, |bytes| {
            let place = || Place { arc: arc.name(), frame: None, block: None, offset };
            judge(bytes?).map_err(|damage| Error::Arc { place: place(), damage })
        })
    };
    match read(Via::Cache) {
        Ok(value) => Ok((value, None)),
        Err(first) => Ok((read(Via::Medium)?, Some(first))),
    }
}

thread_local! {
    /// Sealed bytes on their way to `judge`.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
/// A larger buffer is given back after use.
const KEPT_BUFFER_BYTES: usize = 4 << 20;
/// Nothing that is read at once is longer than this.
const MAX_READ_BYTES: u64 = (MAX_PLAIN_LEN + FRAME_OVERHEAD + MAX_BLOCKS * BLOCK_ENTRY_LEN) as u64;

/// Reads `len` bytes at `offset` and lends them; fewer when the arc ends before.
fn with_bytes<T>(arc: &dyn StoredArc, offset: u64, len: u64, via: Via, use_them: impl FnOnce(Result<&[u8]>) -> T) -> T {
    with_buffer(len, |target| arc.read(offset, target, via), use_them)
}

/// Has a buffer of `len` bytes filled, and lends as many as came.
fn with_buffer<T, E>(
    len: u64,
    fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    use_them: impl FnOnce(Result<&[u8], E>) -> T,
) -> T {
    // A read within a read has a buffer of its own.
    let mut buffer = BUFFER.with(RefCell::take);
    let len = len.min(MAX_READ_BYTES) as usize;
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let target = buffer.get_mut(..len).unwrap_or_default();
    let result = match fill(target) {
        Ok(count) => use_them(Ok(target.get(..count).unwrap_or_default())),
        Err(error) => use_them(Err(error)),
    };
    if buffer.len() <= KEPT_BUFFER_BYTES {
        BUFFER.set(buffer);
    }
    result
}
