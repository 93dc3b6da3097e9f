//! Random numbers from a printed seed (xorshift64*), so that a failed test can be repeated.

pub struct Rng(u64);

impl Rng {
    /// Takes `ASSAY_TEST_SEED` or the clock, and prints what it took.
    pub fn from_env(test: &str) -> Rng {
        let seed = match std::env::var("ASSAY_TEST_SEED") {
            Ok(text) => text.parse().expect("ASSAY_TEST_SEED is a number"),
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map(|d| d.as_nanos() as u64)
                .unwrap_or(1),
        };
        println!("{test}: ASSAY_TEST_SEED={seed}");
        Rng::new(seed)
    }
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// A number below `bound` (> 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    /// A byte that is not 0, to XOR with.
    pub fn flip(&mut self) -> u8 {
        (self.below(255) + 1) as u8
    }
    /// `len` bytes that no compressor shrinks.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
    /// `len` bytes of lines that compress well.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        let words = ["alpha", "beta", "gamma", "delta", "version", "arc", "frame", "block", "\n"];
        let mut bytes = Vec::with_capacity(len + 16);
        while bytes.len() < len {
            bytes.extend_from_slice(words[self.below(words.len() as u64) as usize].as_bytes());
            bytes.push(b' ');
        }
        bytes.truncate(len);
        bytes
    }
}
