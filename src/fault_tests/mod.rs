//! Faults injected into a small real backup dir, in one process and without a mount: every byte of every arc,
//! cuts, swaps, lost arcs, lost commit records, changing sources.
//!
//! Invariants: the truth is a snapshot of the source taken with std::fs at the time of each backup (`lab`), and all
//! answers of the undamaged backup dir (`questions`), which are compared with that snapshot first. A damaged copy may
//! answer each question right or with an error, never otherwise. A failure names the seed: set ASSAY_TEST_SEED to it.

mod corrections;
mod fixes;
mod flips;
mod hazards;
mod losses;
mod observer;
mod proofs;
mod reads;
mod recoveries;
mod removals;
mod removed_paths;
mod reserved;
mod restored;
mod rollbacks;
mod rules;
mod runs;
mod sealed;
mod slow;
mod structures;
mod swaps;

use crate::testing::{Rng, lab, questions};
