//! Newtypes for the numbers that could be swapped by accident.
//!
//! Invariants: an id is never given twice in one backup dir; ids are dense and only grow; the numbers a
//! user sees (`r3`, `arc.3.1`) are made by the `Display` implementations here and parsed nowhere else.

use std::fmt;
use std::str::FromStr;

/// Number of a backup run, shown as `r0`, `r1`, …; burned when a run is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub u32);

impl Version {
    /// Versions fit the 24 bits that a directory inode has for them.
    pub const MAX: Version = Version((1 << 24) - 1);
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

impl FromStr for Version {
    type Err = String;
    /// Accepts `r12` and `12`.
    fn from_str(s: &str) -> Result<Self, String> {
        s.strip_prefix('r')
            .unwrap_or(s)
            .parse()
            .ok()
            .map(Version)
            .filter(|v| *v <= Version::MAX)
            .ok_or_else(|| format!("`{s}` is not a version such as r3"))
    }
}

/// File name of an arc: `arc.V.N`, where V is the run that wrote it and N counts within the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArcName {
    pub version: Version,
    pub number: u32,
}

impl fmt::Display for ArcName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arc.{}.{}", self.version.0, self.number)
    }
}

impl ArcName {
    /// Parses exactly what `Display` writes; anything else in a backup dir is not an arc.
    pub fn parse(name: &str) -> Option<ArcName> {
        let (version, number) = name.strip_prefix("arc.")?.split_once('.')?;
        let parsed = ArcName { version: Version(version.parse().ok()?), number: number.parse().ok()? };
        (parsed.to_string() == name && parsed.version <= Version::MAX).then_some(parsed)
    }
}

/// Ordinal of a committed arc in the whole backup dir; what block ids are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArcSerial(pub u64);

impl ArcSerial {
    /// 2^39 arcs: with `FrameNo` and `Slot` a block id stays a positive `i64`.
    pub const MAX: ArcSerial = ArcSerial((1 << 39) - 1);
}

/// A copy of the arcs: 0 is the local one, destinations have numbers of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CopyId(pub u16);

impl CopyId {
    pub const LOCAL: CopyId = CopyId(0);
    /// What is computed from the local copy and its parity: no copy of its own, nothing is noted of it.
    pub const PARITY: CopyId = CopyId(u16::MAX - 1);
}

/// Position of a frame in its arc, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameNo(pub u32);

impl FrameNo {
    pub const BITS: u32 = 17;
    pub const MAX: FrameNo = FrameNo((1 << FrameNo::BITS) - 1);
}

/// Position of a block in its frame, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u8);

impl Slot {
    pub const BITS: u32 = 7;
    pub const MAX: Slot = Slot((1 << Slot::BITS) - 1);
}

/// A frame of an arc: arc serial and frame number in one number. Neighbours follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FramePlace(pub u64);

impl FramePlace {
    pub fn new(arc: ArcSerial, frame: FrameNo) -> FramePlace {
        FramePlace(arc.0 << FrameNo::BITS | u64::from(frame.0))
    }
    pub fn arc(self) -> ArcSerial {
        ArcSerial(self.0 >> FrameNo::BITS)
    }
    pub fn frame(self) -> FrameNo {
        FrameNo((self.0 & u64::from(FrameNo::MAX.0)) as u32)
    }
    pub fn slot(self, slot: Slot) -> BlockId {
        BlockId(self.0 << Slot::BITS | u64::from(slot.0))
    }
}

/// Where a block was first stored: arc serial, frame number and slot in one number.
///
/// It stays the block's name when the block is relocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u64);

impl BlockId {
    /// The last slot of the last frame of the last arc.
    pub const MAX: BlockId = BlockId((1 << 63) - 1);

    pub fn new(arc: ArcSerial, frame: FrameNo, slot: Slot) -> BlockId {
        FramePlace::new(arc, frame).slot(slot)
    }
    /// The first block of a frame, and the only one of most.
    pub fn first(arc: ArcSerial, frame: FrameNo) -> BlockId {
        BlockId::new(arc, frame, Slot(0))
    }
    pub fn place(self) -> FramePlace {
        FramePlace(self.0 >> Slot::BITS)
    }
    pub fn arc(self) -> ArcSerial {
        self.place().arc()
    }
    pub fn frame(self) -> FrameNo {
        self.place().frame()
    }
    /// Another number of it, for sets of bits: first blocks of frames are neighbours, for most frames have no other.
    pub fn dense(self) -> u64 {
        if self.slot() == Slot(0) { self.place().0 } else { self.0 | BlockId::OTHERS }
    }
    /// Where the dense numbers of blocks begin that are not the first of their frames.
    pub const OTHERS: u64 = 1 << 63;

    pub fn slot(self) -> Slot {
        Slot((self.0 & u64::from(Slot::MAX.0)) as u8)
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}.{}.{}", self.arc().0, self.frame().0, self.slot().0)
    }
}

/// One stored state of one file (anything but a directory); hard links share it. It is the inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Logid(pub u64);

impl Logid {
    /// Smaller inode numbers belong to the mount itself (root, `latest`).
    pub const FIRST: Logid = Logid(16);
    /// Larger inode numbers are those of directories.
    pub const MAX: Logid = Logid((1 << 63) - 1);
}

/// A directory, the same one in all versions in which its path is a directory without a break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dirno(pub u64);

impl Dirno {
    /// `/` of the saved tree: the directory that a version's folder in the mount shows.
    pub const ROOT: Dirno = Dirno(0);
    /// Directories fit the 39 bits that a directory inode has for them.
    pub const MAX: Dirno = Dirno((1 << 39) - 1);
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

byte_id!(
    /// Random name of a backup dir, in key.conf and in every frame's associated data.
    BackupId, 16
);
byte_id!(
    /// Random name of an arc, in every frame's associated data: a frame can't move between arcs.
    ArcId, 16
);
byte_id!(
    /// Random salt from which the key of one arc is derived.
    ArcSalt, 32
);
byte_id!(
    /// Random name of a ledger segment, in the associated data of all that it holds.
    SegmentId, 16
);
byte_id!(
    /// Random name of a destination: the same place emptied and marked again has another.
    DestId, 16
);
byte_id!(
    /// HMAC-SHA1 of a block's plain bytes under this backup dir's hash key.
    BlockHash, 20
);
byte_id!(
    /// Plain SHA-1 of a whole file, as `sha1sum` prints it.
    FileHash, 20
);
byte_id!(
    /// SHA-256 of a whole arc file, as `sha256sum` prints it.
    ArcDigest, 32
);
byte_id!(
    /// First half of a SHA-256 over all that is known of one file state, but for its logid.
    NodeDigest, 16
);
byte_id!(
    /// SHA-256 over where all bytes of a long file are.
    SegmentsDigest, 32
);
byte_id!(
    /// SHA-256 over a directory's names, each with the digest of what it stands for.
    ListingDigest, 32
);
impl ListingDigest {
    /// What a listing of which not all names are known has in place of the last bytes of the hash.
    pub const PARTIAL: [u8; 8] = [0; 8];

    /// All names were known when it was made: else it says nothing of those that are known now.
    pub fn is_of_all(&self) -> bool {
        !self.0.ends_with(&ListingDigest::PARTIAL)
    }
}

byte_id!(
    /// SHA-256 over a directory state, listing included: with the root's, a whole version.
    TreeDigest, 32
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_only_canonical_names_parse() {
        let name = ArcName { version: Version(3), number: 12 };
        assert_eq!(ArcName::parse(&name.to_string()), Some(name));
        for bad in ["arc.3", "arc.03.1", "arc.3.1.tmp", "arc.3.x", "arc.16777216.0", "index.db", "arc.+3.1"] {
            assert_eq!(ArcName::parse(bad), None, "{bad}");
        }
        for kept in ["arc.3.1.7.bad", "arc.3.1.bad", "arc.3.1.footer.bad", "arc.3.1.7.bad.tmp"] {
            assert_eq!(ArcName::parse(kept), None, "{kept}");
        }
        assert_eq!("r7".parse(), Ok(Version(7)));
        assert!("r-1".parse::<Version>().is_err());
    }

    #[test]
    fn block_ids_take_apart_into_what_they_were_made_of() {
        let id = BlockId::new(ArcSerial::MAX, FrameNo::MAX, Slot::MAX);
        assert_eq!((id, id.arc(), id.frame(), id.slot()), (BlockId::MAX, ArcSerial::MAX, FrameNo::MAX, Slot(127)));
        assert!(i64::try_from(id.0).is_ok());
        let place = FramePlace::new(ArcSerial(5), FrameNo::MAX);
        assert_eq!((place.arc(), place.frame(), place.slot(Slot(3)).place()), (ArcSerial(5), FrameNo::MAX, place));
        assert_eq!(FramePlace(place.0 + 1), FramePlace::new(ArcSerial(6), FrameNo(0)));
        assert_eq!(BlockId(place.slot(Slot::MAX).0 + 1), BlockId::first(ArcSerial(6), FrameNo(0)));
        assert_eq!(
            (place.slot(Slot(0)).dense(), FramePlace(place.0 + 1).slot(Slot(0)).dense()),
            (place.0, place.0 + 1)
        );
        assert_eq!(id.dense() & !BlockId::OTHERS, id.0);
    }
}
