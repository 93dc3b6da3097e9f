//! What a version's entries look like, as values: nodes, directories, catalog records and the commit record.
//!
//! Pure format code: `codec` turns these values into the bytes of catalog and commit frames (docs/format.md)
//! and back, and refuses anything that is not exactly such bytes. Catalogs are the truth; the index is made
//! from them by one function (`index::apply`).

pub mod codec;
pub mod commit;
pub mod digest;
#[cfg(test)]
mod digest_tests;
mod numbers;
#[cfg(test)]
mod refusal_tests;

use crate::ids::{ArcSerial, BlockId, Dirno, FileHash, FrameNo, ListingDigest, Logid, SegmentsDigest, Version};

pub use commit::{ArcEntry, ArcRole, CatalogFrame, Commit, VersionInfo};

/// Seconds since 1970 (negative before) and nanoseconds 0..1e9, as in `struct timespec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timespec {
    pub sec: i64,
    pub nsec: u32,
}

/// File type; the discriminants are the on-disk codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    File = 1,
    Dir = 2,
    Symlink = 3,
    Fifo = 4,
    Socket = 5,
    CharDevice = 6,
    BlockDevice = 7,
}

/// What `stat` says of one file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attr {
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: 0..=0o7777.
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    /// `st_size`: bytes of a file, length of a symlink's target, what the file system said for a directory.
    pub size: u64,
    pub mtime: Timespec,
    pub ctime: Timespec,
    /// Links as `stat` gave them; a directory's are 2 + saved subdirectories (1 where the file system doesn't count).
    pub nlink: u32,
    /// Device number of a device node, (0, 0) otherwise.
    pub rdev_major: u32,
    pub rdev_minor: u32,
    /// Inode number in the source, only to notice changes.
    pub source_ino: u64,
}

/// Extended attributes (ACLs are `system.posix_acl_*`), sorted by name, names unique.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Longest block, plain bytes.
pub const MAX_BLOCK_BYTES: u32 = 64 << 20;

/// A piece of a file's content; the segments of a file tile `0..size` without gap or overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// All `len` plain bytes of one block (1 to `MAX_BLOCK_BYTES`, equal to the block's plain length).
    Data { block: BlockId, len: u32 },
    /// `len` zero bytes that take no space (`len` > 0).
    Hole { len: u64 },
}

impl Segment {
    pub fn len(&self) -> u64 {
        match self {
            Segment::Data { len, .. } => u64::from(*len),
            Segment::Hole { len } => *len,
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The whole list (empty for an empty file and for anything but a regular file).
    Inline(Vec<Segment>),
    /// Too long for one row: in `ExtentChunk`s that tile `0..size`, all segments of which have this digest.
    Chunked(SegmentsDigest),
}

/// A stretch of a long file's segments, at most `ExtentChunk::MAX_SEGMENTS` of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentChunk {
    pub logid: Logid,
    /// File offset of the first segment, bytes; with what follows at most 2^63 − 1.
    pub start: u64,
    /// At least one.
    pub segments: Vec<Segment>,
}

impl ExtentChunk {
    /// Keeps an encoded chunk below what a `WITHOUT ROWID` row holds without an overflow page (981 bytes).
    pub const MAX_SEGMENTS: usize = 64;

    /// File offset after the last segment.
    pub fn end(&self) -> u64 {
        self.start + self.segments.iter().map(Segment::len).sum::<u64>()
    }
}

/// Segments that a node carries itself; longer lists are `Content::Chunked`.
pub const MAX_INLINE_SEGMENTS: usize = 64;

/// One stored state of anything but a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub logid: Logid,
    pub attr: Attr,
    /// Bytes in data segments (not holes): `st_blocks` comes from it.
    pub data_bytes: u64,
    /// The ctime was so fresh when the file was read that a later change may not show, or something of it could not be
    /// read: read it again next time.
    pub racy: bool,
    /// SHA-1 of the content; regular files only, and not of those that are mostly holes.
    pub sha1: Option<FileHash>,
    /// Symlinks only.
    pub target: Vec<u8>,
    pub xattrs: Xattrs,
    pub content: Content,
}

/// Zeros of holes that a file's hash takes in at any rate; beyond, as many as there is data before them.
pub const HASHED_HOLE_BYTES: u64 = 1 << 30;

impl Node {
    /// The content is one whole block.
    pub fn is_one_block(&self) -> bool {
        let Content::Inline(segments) = &self.content else { return false };
        matches!(segments.as_slice(), [Segment::Data { len, .. }] if u64::from(*len) == self.attr.size)
    }

    /// No hash is only right where holes made it too expensive.
    pub fn needs_hash(&self) -> bool {
        self.attr.kind == Kind::File && self.attr.size.saturating_sub(self.data_bytes) <= HASHED_HOLE_BYTES
    }
}

/// One state of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirState {
    pub attr: Attr,
    pub xattrs: Xattrs,
    /// Entries in the directory in this state: a listing with another count is damage.
    pub children: u64,
    /// Binds the names, and all that is below them.
    pub listing: ListingDigest,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Child {
    Node(Logid),
    Dir(Dirno),
}

/// What a name is said to stand for: a file's state in full, a directory by its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    Node(Box<Node>),
    Dir(Dirno),
}

impl Named {
    pub fn kind(&self) -> Kind {
        match self {
            Named::Node(node) => node.attr.kind,
            Named::Dir(_) => Kind::Dir,
        }
    }

    pub fn child(&self) -> Child {
        match self {
            Named::Node(node) => Child::Node(node.logid),
            Named::Dir(dirno) => Child::Dir(*dirno),
        }
    }
}

/// How the `Put`s after a `Dir` record relate to what the directory held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Listing {
    /// Only what changed.
    Delta = 1,
    /// First part of the complete list: names not put by this and the following `FullMore` parts are gone.
    Full = 2,
    /// Next part of a complete list that did not fit one record.
    FullMore = 3,
    /// Not all names are known: those that follow are sure, and there may have been others.
    Lost = 4,
}

/// One record of a catalog frame. Each frame starts with a `Dir` or a record that needs none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Opens a directory: the following `Put` and `Remove` records are about it. The root is its own parent,
    /// with an empty name. `state` is absent in all parts of a directory but the last, and in a delta that
    /// leaves the directory's state as it was.
    Dir { dirno: Dirno, parent: Dirno, name: Vec<u8>, listing: Listing, state: Option<DirState> },
    /// `name` stands for this from this version on.
    Put { name: Vec<u8>, item: Named },
    /// `name` is gone from this version on (with all below it, if it was a directory).
    Remove { name: Vec<u8> },
    /// Content of a long file, written before the `Put` of its node.
    Extents(ExtentChunk),
    /// The version is no longer shown; what only it used may be packed away.
    RemoveVersion(Version),
    /// The name, with all below it, is shown in no version before this commit.
    RemovePath { dirno: Dirno, name: Vec<u8> },
    /// The block is now read from `to` (same plain bytes, same block hash); its name stays `from`.
    Relocate { from: BlockId, to: BlockId },
    /// The arc holds no block that is in use; its file is gone or may go.
    DropArc(ArcSerial),
    /// The user has accepted that this is gone.
    AcceptLoss(Loss),
}

/// Something that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Loss {
    /// A run of which there is no commit record any more.
    Run(Version),
    /// An arc, from this byte offset on; 0: all of it.
    Arc {
        serial: ArcSerial,
        from: u64,
    },
    Frame {
        serial: ArcSerial,
        frame: FrameNo,
    },
    /// Header, footer or trailer of an arc.
    Shell(ArcSerial),
}
