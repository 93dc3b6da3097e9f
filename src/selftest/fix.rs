//! What `selftest --fix` does to a backup dir: each act alone, proven before and after.
//!
//! - `rewrite_frame`, `rewrite_shell`: a part of an arc is written in place, only with exactly the recorded bytes.
//! - `recut`: blocks whose bytes are known again are sealed into a new arc, by a run without a version.
//! - `originals`, `read_original`: where the live source may still have a lost block.
//!
//! Invariants: (key, nonce) never seals other bytes than the first time; what is replaced stands beside the arc as
//! `.bad` until the new bytes were read back and proven; whatever fails leaves the backup dir as it was, or with
//! both; a kill at any instant does too.

mod originals;
mod recut;
mod replace;
mod rewrite;

pub use originals::{Original, originals, read_original};
pub use recut::{Recut, recorded, recut};
pub use rewrite::{FrameAt, rewrite_frame, rewrite_shell};
