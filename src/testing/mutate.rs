//! Bytes that no encoder wrote, made of bytes that one did: for decoders, behind any seal.
//!
//! The law that all of them keep: what is accepted is written again as it was read, byte for byte.

use super::Rng;

/// Cases a decoder, each one change (or several) of a valid encoding, or noise.
const CASES: usize = 100_000;

/// Changes `bytes` somehow: bits, single bytes, stretches that are removed, told twice, swapped or taken from `other`.
pub fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + rng.below(3) * rng.below(2) {
        let at = rng.below(bytes.len() + 1);
        let len = (1 + rng.below(8)).min(bytes.len() - at);
        let stretch = at..at + len;
        match rng.below(9) {
            0 if len > 0 => bytes[at] ^= 1 << rng.below(8),
            1 if len > 0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5)],
            2 if len > 0 => bytes[at] = bytes[at].wrapping_add([1, 2, 0xff][rng.below(3)]),
            3 => bytes.insert(at, [0, 0x80, rng.next() as u8][rng.below(3)]),
            4 => drop(bytes.drain(stretch)),
            5 => bytes.splice(at..at, bytes[stretch].to_vec()).for_each(drop),
            6 if bytes.len() >= at + 2 * len => bytes[at..at + 2 * len].rotate_left(len),
            7 if !other.is_empty() => {
                let from = rng.below(other.len());
                let to = (from + 1 + rng.below(16)).min(other.len());
                bytes.splice(stretch, other[from..to].iter().copied()).for_each(drop);
            }
            // A number in a longer form: a continuation bit, and nothing more to say.
            _ if len > 0 && bytes[at] < 0x80 => {
                bytes[at] |= 0x80;
                bytes.insert(at + 1, 0);
            }
            _ => bytes.truncate(at),
        }
    }
}

/// Asks a decoder about samples, changed samples and noise. `again` decodes and encodes what came of it; None: refused.
pub fn assert_canonical(
    what: &str,
    mut sample: impl FnMut(&mut Rng) -> Vec<u8>,
    mut again: impl FnMut(&[u8]) -> Option<Vec<u8>>,
) {
    let mut rng = Rng::from_env();
    let (seed, mut accepted) = (rng.seed, 0);
    let mut before = Vec::new();
    for case in 0..CASES {
        let whole = sample(&mut rng);
        let mut bytes = whole.clone();
        match case % 20 {
            0 => assert_eq!(again(&bytes).as_ref(), Some(&whole), "{what}: a sample is refused, seed {seed}"),
            1 => bytes = (0..rng.below(80)).map(|_| (rng.next() >> 40) as u8).collect(),
            _ => mutate(&mut rng, &mut bytes, &before),
        }
        if let Some(written) = again(&bytes) {
            accepted += 1;
            assert!(written == bytes, "{what}: read {bytes:02x?} and wrote {written:02x?}, seed {seed}");
        }
        before = whole;
    }
    assert!(accepted > CASES / 20, "{what}: {accepted} accepted, seed {seed}");
}
