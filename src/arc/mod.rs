//! The arc format (docs/format.md): bytes ↔ structs, no I/O.
//!
//! ```text
//! arc     = header ‖ frame 0 ‖ … ‖ frame n-1 ‖ footer frame ‖ trailer
//! frame   = sealed head (32) ‖ ciphertext of (table (24 a block) ‖ stored) ‖ tag (16)
//! footer  = a frame whose plain bytes are the frame table: a `FrameInfo` per frame
//! ```
//! Invariants: everything is authenticated under the arc's own key; salt and id stand in header and trailer, the
//! frame table in the footer and, piecewise, in the frames, so no single damaged byte costs more than one frame; what an arc
//! shows without the key is its length.

pub mod frame;
pub mod pack;
pub mod parity;
#[cfg(test)]
mod parity_tests;
pub mod repair;
#[cfg(test)]
mod repair_tests;
mod search;
pub mod shell;
pub mod writer;
mod zframe;

pub use frame::{
    BLOCK_ENTRY_LEN, BlockInfo, Codec, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameInfo, FrameKind, MAX_BLOCKS,
    MAX_PLAIN_LEN, VerifiedBlock, VerifiedFrame,
};
pub use pack::{Packed, Packer};
pub use shell::{ARC_HEADER_LEN, ARC_TRAILER_LEN, ArcHeader, ArcTrailer, decode_frame_table};
pub use writer::ArcWriter;

/// `catalog` stands before this module and checks what a commit record says of arcs.
const _: () = {
    use crate::catalog::{MAX_BLOCK_BYTES, commit};
    assert!(commit::ARC_HEADER_BYTES == ARC_HEADER_LEN as u64 && commit::ARC_TRAILER_BYTES == ARC_TRAILER_LEN as u64);
    assert!(commit::FRAME_OVERHEAD_BYTES == FRAME_OVERHEAD as u64 && MAX_BLOCK_BYTES as usize == MAX_PLAIN_LEN);
    assert!(commit::TABLE_BYTES.0 == BLOCK_ENTRY_LEN as u64);
    assert!(commit::TABLE_BYTES.1 == (MAX_BLOCKS * BLOCK_ENTRY_LEN) as u64);
};
