//! A block between its reader and the writer of arcs.

use crate::ids::{BlockHash, BlockId};

/// A block on its way to an arc.
#[derive(Debug)]
pub struct HashedBlock {
    pub hash: BlockHash,
    pub plain_len: u32,
    pub found: Found,
}

/// Whether a block is stored already.
#[derive(Debug)]
pub enum Found {
    Known(BlockId),
    /// Its bytes.
    New(Vec<u8>),
}
