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
pub mod lab;
mod losses;
pub mod mutate;
mod proofs;
pub mod questions;
mod reads;
mod recoveries;
mod removals;
mod reserved;
mod restored;
mod rules;
mod runs;
mod sealed;
mod slow;
mod structures;
mod swaps;

/// Random numbers from a seed that failures name (xorshift64*).
pub struct Rng {
    pub seed: u64,
    state: u64,
}

impl Rng {
    /// Takes ASSAY_TEST_SEED, or the clock.
    pub fn from_env() -> Rng {
        let clock = || std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
        Rng::new(std::env::var("ASSAY_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(clock))
    }

    pub fn new(seed: u64) -> Rng {
        Rng { seed, state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    pub fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((self.next() >> 20) % bound as u64) as usize
    }

    /// A byte that changes what it is XORed with.
    pub fn mask(&mut self) -> u8 {
        self.below(255) as u8 + 1
    }

    /// Bytes that no compressor shrinks.
    pub fn noise(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 40) as u8).collect()
    }
}
