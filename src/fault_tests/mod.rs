//! Faults injected into a small real backup dir, in one process and without a mount. What happens to one arc, and what comes
//! after it, stands in `table` (`layout` knows where, `damage` does it, `acts` come after it); the others tell stories.
//!
//! Invariants: the truth is a snapshot of the source taken with std::fs at the time of each backup (`lab`), and all
//! answers of the undamaged backup dir (`questions`), which are compared with that snapshot first. A damaged copy may
//! answer each question right or with an error, never otherwise. A failure names the seed: set ASSAY_TEST_SEED to it.

mod acts;
mod corrections;
mod damage;
mod fixes;
mod flips;
mod hazards;
mod histories;
mod layout;
mod observer;
mod proofs;
mod reads;
mod recoveries;
mod removals;
mod removed_paths;
mod reserved;
mod rollbacks;
mod rules;
mod runs;
mod sealed;
mod slow;
mod stand_ins;
mod structures;
mod swaps;
mod table;

use crate::testing::{Rng, lab, questions};
