//! Assay: a backup program whose mount verifies every block on read.
//!
//! A read goes through six steps, and can be read in one sitting: `fuse.rs` (adapter) → `vfs/` (the filesystem, no FUSE
//! types) → `tree/` (entry → extents) → `store/` (cache, single flight, answers that come later) → `fetch/` (the frame from
//! wherever it is right) → `depot/` (sealed bytes from where they lie), judged by `arc/frame.rs` (the one function that
//! verifies a block).
//!
//! A module uses only what stands before it in this order (docs/architecture.md says what each is for; a test in
//! mount-tests/project.rs keeps it true): ids, text, error, sync, monitor, catalog, os, scratch, own, crypto, arc, index,
//! ledger, depot, fetch, live, backupdir, store, run, tree, backup, prune, recover, findings, reader, mend, vfs, restore,
//! coverage, selftest, fuse, mount, cli.

pub mod arc;
pub mod backup;
pub mod backupdir;
pub mod catalog;
pub mod cli;
pub mod coverage;
pub mod crypto;
pub mod depot;
pub mod error;
pub mod fetch;
pub mod findings;
pub mod fuse;
pub mod ids;
pub mod index;
pub mod ledger;
pub mod live;
pub mod mend;
pub mod monitor;
pub mod mount;
pub mod os;
pub mod own;
pub mod prune;
pub mod reader;
pub mod recover;
pub mod restore;
pub mod run;
pub mod scratch;
pub mod selftest;
pub mod store;
pub mod sync;
pub mod text;
pub mod tree;
pub mod vfs;

#[cfg(test)]
mod docs_tests;
#[cfg(test)]
mod fault_tests;

pub use error::{Error, Exit, Result};
