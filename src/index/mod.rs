//! The index: an SQLCipher file that answers "what is in this directory in this version" and "where are its
//! bytes" without ever reading more than the question needs.
//!
//! It is a projection of the catalogs: `apply` is the only function that writes it, and can write it anew.
//! Invariants: a row that version V shows stays readable as it was while later versions are applied, so readers
//! need no long transactions; every value is sealed (`row`), no row has an overflow page (`schema`); a connection
//! that met an error is thrown away with its answers and the question is asked once more on a new one; nothing
//! is answered from a row that does not match its seal.

mod again;
mod apply;
mod apply_arcs;
mod chunks;
mod dedup;
mod digests;
mod fail;
mod history;
mod listing;
mod live;
mod pages;
mod pool;
mod queries;
mod removal;
mod row;
mod rows;
mod runs;
mod scan;
mod schema;
mod stand_in;
mod users;
mod uses;
mod view;
mod writer;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod row_tests;
#[cfg(test)]
mod stand_in_tests;
#[cfg(test)]
pub(crate) mod vandal;
#[cfg(test)]
mod view_tests;

use crate::arc::{BlockInfo, FrameInfo, FrameKind};
use crate::catalog::{ArcEntry, Attr, Child, DirState, Kind, VersionInfo};
use crate::error::Result;
use crate::ids::{BlockId, Dirno, FrameNo, NodeDigest, TreeDigest, Version};

pub use again::row_again;
pub use apply::{ApplyReport, CatalogSource, LostFrame};
pub use chunks::Chunks;
pub use dedup::{DedupTable, Lost};
pub use digests::{Change, ProvenEntry};
pub use history::{Commits, Head};
pub use live::{ArcUse, Gaps, Live, VersionSet};
pub use pages::BadPage;
pub use pool::Index;
pub use queries::Ascent;
pub use removal::{Name, Subtrees};
pub use row::ArcValue;
#[cfg(test)]
pub(crate) use row::EntryRow;
pub use rows::{DirValue, hash_key};
pub use runs::{OpenRun, Told};
pub use scan::{Cursor, RowKey, ScanRow, ScanTable, Scanned, Snapshot, Span};
pub use stand_in::{Lacks, Maker};
pub use users::Places;
pub use uses::Pass;
pub use writer::IndexWriter;

/// A version that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRow {
    pub version: Version,
    pub info: VersionInfo,
    /// Its catalog lists every directory.
    pub base: bool,
    pub root: Root,
}

/// What a version's whole tree is proven by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// Of the root directory's state.
    pub digest: TreeDigest,
    /// The run whose commit record says so.
    pub set_by: Version,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub kind: Kind,
    pub child: Child,
    /// The version from which on the name stands for this child.
    pub since: Version,
    /// Of what is no directory.
    pub digest: Option<NodeDigest>,
}

/// An entry with what `stat` says of it, or why that can't be told (a damaged row costs one entry, not the listing).
#[derive(Debug, Clone)]
pub struct Listed {
    pub entry: Entry,
    /// Attributes, and bytes in data segments (0 for a directory).
    pub attr: Result<(Attr, u64)>,
}

/// A directory as one version shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirRow {
    pub dirno: Dirno,
    pub parent: Dirno,
    pub name: Vec<u8>,
    pub state: DirState,
    /// The version that brought this state: the last one in which it, or anything below it, changed.
    pub since: Version,
}

/// A committed arc that holds frames in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArcRow {
    pub entry: ArcEntry,
    /// The run that committed it.
    pub run: Version,
}

/// Neighbouring frames of an arc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameChunk {
    pub first: FrameNo,
    /// Where the first of them starts in the arc, bytes.
    pub offset: u64,
    pub frames: Vec<FrameInfo>,
}

impl FrameChunk {
    /// Place of a frame: its offset in the arc in bytes, and its table entry; None if the chunk doesn't hold it.
    pub fn locate(&self, frame: FrameNo) -> Option<(u64, &FrameInfo)> {
        let at = frame.0.checked_sub(self.first.0)? as usize;
        let info = self.frames.get(at)?;
        let before: u64 = self.frames.iter().take(at).map(FrameInfo::frame_len).sum();
        Some((self.offset + before, info))
    }

    /// What is known of the block in a place; None if the chunk holds no block there.
    pub fn block(&self, place: BlockId) -> Option<&BlockInfo> {
        let (_, info) = self.locate(place.frame())?;
        if info.kind == FrameKind::Block { info.block(place.slot()) } else { None }
    }

    /// The number of the frame behind it.
    pub fn end(&self) -> u32 {
        self.first.0 + self.frames.len() as u32
    }
}

/// What the next run needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub next_serial: u64,
    pub next_logid: u64,
    pub next_dirno: u64,
    /// The number of the next run: above every run that was committed or reserved.
    pub next_run: Version,
    /// Runs below that were not applied are lost for good: a recovery could not read their commit records.
    pub settled_below: Version,
    /// Run and SHA-256 of the last commit record applied.
    pub last_commit: Option<Head>,
    /// Plain bytes of the catalog arcs since the last base, and of that base's own.
    pub catalog_bytes_since_base: u64,
    pub base_catalog_bytes: u64,
    /// Block hashes that can be found.
    pub hashes: u64,
    /// The newest version that is shown, and a digest over all versions there are.
    pub newest: Option<Version>,
    pub versions: [u8; 32],
}
