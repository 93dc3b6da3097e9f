//! What has been proven, when and how: sealed append-only segments below `ledger/`, one a process.
//!
//! Invariants: a proof is noted only for bytes that `arc::frame::open` accepted; noting never waits for the disk;
//! losing the tail of a segment only means verifying again; a segment that does not authenticate is refused, never
//! believed; what was noted in another history than the index's counts for nothing, for its counters may mean other
//! arcs and files; nobody needs the writer's lock to append.

pub(crate) mod bits;
mod files;
mod list;
mod merged;
mod places;
pub(crate) mod segment;
mod spans;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;

use crate::ids::{ArcSerial, BlockId, CopyId, FrameNo, Logid, SegmentId};
use crate::index::Head;
use crate::os::stat::Stat;

pub use merged::Ledger;
pub use writer::{FLUSH_EVERY_S, LedgerWriter};

/// How stored bytes were read when they were verified; the discriminants are the on-disk codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum How {
    /// Through the kernel's page cache: the bytes may have been there already.
    Read = 1,
    /// The page cache was told to forget them before: they came from the medium.
    Medium = 2,
}

/// Who verified; the discriminants are the on-disk codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum By {
    Mount = 1,
    Get = 2,
    Selftest = 3,
}

/// One verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// Seconds since 1970.
    pub when_s: u64,
    pub how: How,
    pub by: By,
}

/// Neighbouring frames of one copy of an arc that were verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frames {
    pub arc: ArcSerial,
    pub copy: CopyId,
    pub first: FrameNo,
    pub count: u32,
    pub proof: Proof,
}

/// How much of a file was read; the discriminants are the on-disk codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Extent {
    Part = 1,
    /// Every byte was given to a reader.
    Whole = 2,
    /// And the file's SHA-1 was computed on the way and is the recorded one.
    Hashed = 3,
}

/// Files (states of files) with neighbouring numbers that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Files {
    pub first: Logid,
    pub count: u64,
    pub extent: Extent,
    pub when_s: u64,
    pub by: By,
}

/// A selftest that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub when_s: u64,
    pub seconds: u64,
    pub level: u8,
    /// The schedule as it was given, for incremental runs.
    pub inc: Option<String>,
    /// Part of the backup, as it was given; empty: all of it.
    pub scope: String,
    pub blocks: u64,
    pub bytes: u64,
    pub findings: u64,
    pub fixed: u64,
}

/// Damage of neighbouring frames, or of an arc apart from them, as it stood at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Milliseconds since 1970: it is told from what was read a moment before or after.
    pub when_ms: u64,
    pub arc: ArcSerial,
    pub copy: CopyId,
    /// The first frame; None: header, footer, trailer, or the file itself.
    pub frame: Option<FrameNo>,
    /// Frames from the first on; 0 without one.
    pub count: u32,
    /// Stable error code.
    pub code: String,
    /// It reads right again: healed, put back or fixed.
    pub mended: bool,
}

impl Damage {
    /// It was met in this very file, and not in one that was put there, or written to, since.
    pub fn is_of(&self, found: &Stat) -> bool {
        let written_ms = found.ctime.sec.saturating_mul(1000).saturating_add(i64::from(found.ctime.nsec) / 1_000_000);
        i64::try_from(self.when_ms).is_ok_and(|when_ms| when_ms >= written_ms)
    }

    /// The arc is not there: whatever was known of its frames can't be read.
    pub fn is_absence(&self) -> bool {
        self.frame.is_none() && self.code == "ARC_MISSING"
    }
}

/// A single flipped bit that was found: the same one twice speaks for bad memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flip {
    pub when_s: u64,
    pub block: BlockId,
    /// In the frame as it is stored, bytes from its header's first one.
    pub byte: u32,
    /// 0 is the lowest.
    pub bit: u8,
    /// It should be 0 and was read as 1.
    pub to_one: bool,
    /// The second read, past the page cache, had it too.
    pub again: bool,
}

/// What a mount (or restore) did from its start on; told again as it goes on, the last one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    pub started_s: u64,
    pub by: By,
    pub seconds: u64,
    pub dirs_listed: u64,
    /// Files of which at least one byte was read.
    pub files_read: u64,
    pub bytes_read: u64,
}

/// The segments of a ledger, as `list` has them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listed {
    /// What was proven before does not count: segments were missing then.
    pub doubt_s: u64,
    /// Each with so many batches at least.
    pub segments: BTreeMap<SegmentId, u32>,
}

/// One thing that a segment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Frames(Frames),
    Files(Files),
    Run(Run),
    Damage(Damage),
    Flip(Flip),
    Session(Session),
    /// In the list only.
    Listed(Listed),
    /// What follows in this segment, up to the next one, is of this commit or from before it.
    History(Head),
}

/// The clock, seconds since 1970.
pub fn now_s() -> u64 {
    now_ms() / 1000
}

/// The clock, milliseconds since 1970.
pub fn now_ms() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
