//! Tests through the real program: real mounts, real kills, and diff, rsync, tar, git and sqlite3 as oracles.
//!
//! Nothing here is skipped: a missing tool or /dev/fuse is a failed test that names what to install. Each
//! random choice comes from a seed that is printed; `ASSAY_TEST_SEED=N` repeats it.

#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod atomicity;
mod attributes;
mod cli;
mod concurrency;
mod copies;
mod copies_full;
mod copies_heal;
mod copies_mend;
mod copies_patterns;
mod copies_proven;
mod copies_states;
mod coverage;
mod damage;
mod destinations;
mod differences;
mod far;
mod fidelity;
mod fixtures;
mod habits;
mod history;
mod index_damage;
mod kept;
mod left_out;
mod memory;
mod mountpoint;
mod names;
mod parity;
mod paths;
mod place;
mod project;
mod recover;
mod removals;
mod removed_paths;
mod repair;
mod replaced;
mod restore;
mod restore_hazards;
mod selftest;
mod signals;
mod support;
mod user;
mod verifying;
mod versions;
mod watch;
