//! What tests of several modules share: small worlds to ask and to damage, and one source of random numbers.
//!
//! - `fixture`: a backup dir of real arcs and a real index, without the backup engine.
//! - `lab`: backups of a real source, their truth by std::fs, and copies that may be damaged; `questions` asks all of one.
//! - `mutate`: bytes that are almost right.
//!
//! Invariant: a seed gives the same world again.

pub mod fixture;
pub mod lab;
pub mod mutate;
pub mod questions;

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

    /// A number below `bound` that depends on the state and `salt`, without moving on.
    pub fn clone_below(&self, bound: usize, salt: usize) -> usize {
        Rng::new(self.seed ^ self.state ^ (salt as u64) << 40).below(bound)
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
