//! Versions read: the tree and the store of one backup dir, joined.
//!
//! Invariants: bytes come from verified blocks only; whoever reads past damage is told of each byte that is lost, and why;
//! memory is bounded whatever is read.

pub mod file;
pub mod plan;
mod range;
#[cfg(test)]
mod tests;
pub mod walk;

use std::sync::Arc;

use crate::arc::VerifiedBlock;
use crate::backupdir::BackupDir;
use crate::catalog::Node;
use crate::error::Result;
use crate::ids::{BlockId, Logid};
use crate::index::Index;
use crate::ledger::{By, LedgerWriter};
use crate::store::{Store, StoreOptions, Wanted};
use crate::tree::{Piece, SeekTo, Tree, View};
pub use file::{Blocks, Sha1, Sink, bad_ranges};
pub use range::{Asked, Bytes};

/// How a backup dir is read; `Default` suits most.
#[derive(Clone, Default)]
pub struct Options {
    pub view: View,
    /// Who notes in the ledger what is verified; nobody where `store` does not name a ledger either.
    pub by: Option<By>,
    pub store: StoreOptions,
}

/// One backup dir, opened to be read.
pub struct Backup {
    pub tree: Arc<Tree>,
    pub store: Arc<Store>,
}

impl Backup {
    /// Starts the threads of the store; reads nothing.
    pub fn of(dir: &BackupDir, index: impl Into<Arc<Index>>, options: Options) -> Backup {
        let index = index.into();
        let Options { view, by, mut store } = options;
        if let Some(by) = by {
            store.ledger = Some(Arc::new(LedgerWriter::new(dir.own(), dir.keys().clone(), by, &index)));
        }
        let store = Store::new(dir.home(), dir.keys().clone(), index.clone(), store);
        Backup { tree: Arc::new(Tree::of(dir, index, view)), store: Arc::new(store) }
    }

    pub fn index(&self) -> &Arc<Index> {
        self.tree.index()
    }

    /// Writes down what was verified. A failure is told in the log, and what was read is right all the same.
    pub fn flush_notes(&self) {
        if let Some(ledger) = self.store.ledger() {
            let _ = ledger.flush();
        }
    }
}

impl Blocks for Backup {
    fn prove(&self, node: &Node) -> Result<()> {
        self.tree.prove_list(node)
    }

    fn pieces(&self, node: &Node, offset: u64, len: u64) -> Result<Vec<Piece>> {
        self.tree.segments(node, offset, len)
    }

    fn next_data(&self, node: &Node, offset: u64) -> Result<Option<u64>> {
        self.tree.seek(node, offset, SeekTo::Data)
    }

    fn block(&self, block: BlockId, len_bytes: u32, file: Logid) -> Result<VerifiedBlock> {
        self.store.block(block, len_bytes, Some(file))
    }

    fn prefetch(&self, pieces: &[Piece], file: Option<Logid>) {
        self.store.prefetch(wanted(pieces), file);
    }
}

/// The blocks of pieces, each as often as they have it.
pub fn wanted(pieces: &[Piece]) -> impl Iterator<Item = Wanted> + '_ {
    pieces.iter().filter_map(|piece| match *piece {
        Piece::Data { block, block_len, .. } => Some(Wanted { block, len_bytes: block_len }),
        Piece::Zero { .. } => None,
    })
}
