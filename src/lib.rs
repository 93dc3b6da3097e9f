//! Assay: a backup program whose mount verifies every block on read.
//!
//! A read goes through six steps, and can be read in one sitting: `fuse.rs` (adapter) → `vfs/` (the filesystem, no FUSE
//! types) → `tree/` (entry → extents) → `store/` (cache, single flight, answers that come later) → `fetch/` (the frame from
//! wherever it is right) → `depot/` (sealed bytes from where they lie), judged by `arc/frame.rs` (the one function that
//! verifies a block).
//!
//! A module uses only what stands before it in this order (docs/architecture.md says what each is for; a test in
//! mount-tests/project.rs keeps it true): ids, text, error, sync, monitor, catalog, os, scratch, own, crypto, arc, index,
//! ledger, depot, fetch, live, backupdir, parity, memory, dest, copies, store, run, tree, backup, prune, recover, follow, standin, findings, reader, compare, mend, vfs,
//! restore, coverage, selftest, watch, fuse, mount, cli, fuzz.
//!
//! What a program that uses the library needs is named below; all else is ours, so that the compiler tells what nobody uses.

mod arc;
mod backup;
mod backupdir;
mod catalog;
mod cli;
mod compare;
mod copies;
mod coverage;
mod crypto;
mod depot;
mod dest;
mod error;
mod fetch;
mod findings;
mod follow;
mod fuse;
#[doc(hidden)]
pub mod fuzz;
mod ids;
mod index;
mod ledger;
mod live;
mod memory;
mod mend;
mod monitor;
mod mount;
mod os;
mod own;
mod parity;
mod prune;
mod reader;
mod recover;
mod restore;
mod run;
mod scratch;
mod selftest;
mod standin;
mod store;
mod sync;
mod text;
mod tree;
mod vfs;
mod watch;

#[cfg(test)]
mod docs_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod testing;

pub use backup::{Options as BackupOptions, Summary as BackupSummary, run as back_up};
pub use backupdir::{BackupDir, Config};
pub use cli::{end, run as main};
pub use error::{Damage, Error, Exit, Place, Result, Trouble};
pub use findings::{Cause, Finding, Level};
pub use ids::{BlockId, Logid, Version};
pub use monitor::{Event, Monitor, Progress, Silent};
pub use reader::{Backup, Options as ReadOptions};
pub use recover::{OnLoss, Recovered, run as recover};
pub use selftest::{Options as SelftestOptions, Report as SelftestReport, run as selftest};
pub use tree::{Tree, View};

/// What contrib/bench measures from within, and nobody else uses.
#[doc(hidden)]
pub mod bench {
    pub use crate::arc::{
        BLOCK_ENTRY_LEN, BlockInfo, Codec, FRAME_HEADER_LEN, FrameInfo, FrameKind, Packer,
        frame::{open, seal},
    };
    pub use crate::backup::catalog::{CatalogBuilder, Names};
    pub use crate::catalog::{
        ArcEntry, ArcRole, Attr, CatalogFrame, Child, Commit, Content, DirState, Kind, Node, Segment, Timespec,
        VersionInfo,
    };
    pub use crate::crypto::{ArcCipher, Domain, FileHasher, Keys, TAG_LEN, sha256};
    pub use crate::ids::{
        ArcDigest, ArcId, ArcName, ArcSalt, ArcSerial, BackupId, BlockHash, Dirno, FileHash, FrameNo,
    };
    pub use crate::index::{CatalogSource, DedupTable, Index, IndexWriter};
    pub use crate::run::{Contents, NewVersion, Output, Run, Whole};
    pub use crate::tree::{Found, Piece};
}
