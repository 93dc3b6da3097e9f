//! A version of a backup dir as the source of a restore: the tree and the store of verified blocks.

use std::sync::Arc;

use super::{Names, Source};
use crate::arc::VerifiedBlock;
use crate::catalog::{Child, DirState, Node};
use crate::error::Result;
use crate::ids::{BlockId, Dirno, Logid, Version};
use crate::ledger::Extent;
use crate::store::{Store, Wanted};
use crate::tree::{Found, Piece, Tree};

/// Names fetched by one query.
const PAGE: usize = 512;

pub struct VersionSource {
    tree: Arc<Tree>,
    store: Arc<Store>,
    version: Version,
}

impl VersionSource {
    pub fn new(tree: Arc<Tree>, store: Arc<Store>, version: Version) -> VersionSource {
        VersionSource { tree, store, version }
    }
}

impl Source for VersionSource {
    fn find(&self, path: &[u8]) -> Result<Child> {
        Ok(match self.tree.find(self.version, path)? {
            Found::Dir(dirno) => Child::Dir(dirno),
            Found::Node(logid, _) => Child::Node(logid),
        })
    }

    fn dir(&self, dir: Dirno) -> Result<DirState> {
        Ok(self.tree.dir(self.version, dir)?.state)
    }

    fn names(&self, dir: Dirno) -> Names {
        let mut names = Names::default();
        let read_all = |names: &mut Names| {
            let mut listing = self.tree.list(self.version, dir)?;
            loop {
                let page = listing.next_page(&self.tree)?;
                if page.is_empty() {
                    return Ok(());
                }
                names.entries.extend(page.into_iter().map(|listed| (listed.entry.name, listed.entry.child)));
            }
        };
        names.incomplete = read_all(&mut names).err();
        if names.incomplete.is_some() {
            // The list is known to be wrong; the entries that can be told are restored all the same.
            loop {
                let after = names.entries.last().map(|(name, _)| name.as_slice());
                let Ok(page) = self.tree.index().children(self.version, dir, after, PAGE) else { break };
                let ended = page.len() < PAGE;
                names.entries.extend(page.into_iter().map(|entry| (entry.name, entry.child)));
                if ended {
                    break;
                }
            }
        }
        names
    }

    fn node(&self, logid: Logid) -> Result<Arc<Node>> {
        self.tree.node(logid)
    }

    fn pieces(&self, node: &Node, offset: u64, len: u64) -> Result<Vec<Piece>> {
        self.tree.segments(node, offset, len)
    }

    fn block(&self, block: BlockId, len: u32, file: Logid) -> Result<Arc<VerifiedBlock>> {
        self.store.block(block, len, Some(file))
    }

    fn prefetch(&self, pieces: &[Piece], file: Option<Logid>) {
        let wanted = pieces.iter().filter_map(|piece| match *piece {
            Piece::Data { block, block_len, .. } => Some(Wanted { block, len_bytes: block_len }),
            Piece::Zero { .. } => None,
        });
        self.store.prefetch(wanted, file);
    }

    fn file_read(&self, file: Logid, extent: Extent) {
        if let Some(ledger) = self.store.ledger() {
            ledger.file(file, extent);
            // It has said so itself, and the restore does not depend on it.
            let _ = ledger.flush_if_due();
        }
    }
}
