//! GHASH, the hash in AES-GCM (NIST SP 800-38D), and which single flipped bit explains a wrong result.
//!
//! GHASH is a polynomial in H over GF(2^128), one coefficient for each 16 bytes, so it is linear in what it hashes: a
//! flip of bit j in the k-th block from the end changes it by x^j · H^k. Divided by H again and again, that change
//! becomes the single bit x^j after k steps.
//!
//! Invariants: bytes are read as GCM does, the highest bit of the first byte is x^0; nothing here decides that bytes
//! are right. All arithmetic is that of the crate `ghash`, in constant time.

use ::ghash::universal_hash::UniversalHash;
use ::ghash::{Block, GHash};
use zeroize::Zeroizing;

/// x^0.
const ONE: u128 = 1 << 127;

/// A bit of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitAt {
    pub byte: usize,
    /// 0 is the lowest.
    pub bit: u8,
}

/// GHASH of associated data and ciphertext, with the block of their lengths.
pub(super) fn ghash(hash_key: &[u8; 16], associated_data: &[u8], ciphertext: &[u8]) -> u128 {
    let mut hash = GHash::new(hash_key.into());
    hash.update_padded(associated_data);
    hash.update_padded(ciphertext);
    let lengths = ((associated_data.len() as u128 * 8) << 64) | (ciphertext.len() as u128 * 8);
    hash.update(&[Block::from(lengths.to_be_bytes())]);
    value(hash)
}

/// The bit of ciphertext ‖ tag whose flip makes this `difference` between the tag that is there and the right one.
pub(super) fn flipped_bit(hash_key: &[u8; 16], difference: u128, ciphertext_len: usize) -> Option<BitAt> {
    let single = |value: u128| {
        let place = value.leading_zeros();
        (value.count_ones() == 1).then_some(BitAt { byte: place as usize / 8, bit: 7 - (place % 8) as u8 })
    };
    if let Some(BitAt { byte, bit }) = single(difference) {
        return Some(BitAt { byte: ciphertext_len + byte, bit });
    }
    let inverse = Zeroizing::new(inverse(u128::from_be_bytes(*hash_key)));
    let mut change = GHash::new(&inverse.to_be_bytes().into());
    // The last block is that of the lengths.
    change.update(&[Block::from(difference.to_be_bytes())]);
    for block in (0..ciphertext_len.div_ceil(16)).rev() {
        change.update(&[Block::default()]);
        if let Some(BitAt { byte, bit }) = single(value(change.clone())) {
            let byte = block * 16 + byte;
            return (byte < ciphertext_len).then_some(BitAt { byte, bit });
        }
    }
    None
}

fn value(hash: GHash) -> u128 {
    u128::from_be_bytes(hash.finalize().into())
}

/// GHASH of one block is its product with the key.
fn product(a: u128, b: u128) -> u128 {
    let mut hash = GHash::new(&a.to_be_bytes().into());
    hash.update(&[Block::from(b.to_be_bytes())]);
    value(hash)
}

/// a^(2^128 − 2), which is 1/a: the product of a^2, a^4, a^8, … (0 for 0).
fn inverse(a: u128) -> u128 {
    let (mut power, mut result) = (a, ONE);
    for _ in 1..128 {
        power = product(power, power);
        result = product(result, power);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_the_one_of_the_standard() {
        // Test case 2 of "The Galois/Counter Mode of Operation" (McGrew, Viega): H, C and GHASH(H, {}, C).
        let h = 0x66e9_4bd4_ef8a_2c3b_884c_fa59_ca34_2b2e_u128;
        let c = 0x0388_dace_60b6_a392_f328_c2b9_71b2_fe78_u128;
        let hash = 0xf38c_bb1a_d692_23dc_c345_7ae5_b6b0_f885_u128;
        assert_eq!(ghash(&h.to_be_bytes(), &[], &c.to_be_bytes()), hash);
        assert_eq!(product(product(c, h) ^ 128, h), hash);
    }

    proptest::proptest! {
        #[test]
        fn dividing_undoes_multiplying(a: u128, b: u128, c: u128) {
            proptest::prop_assert_eq!(product(a, b), product(b, a));
            proptest::prop_assert_eq!(product(a, b ^ c), product(a, b) ^ product(a, c));
            let back = if a == 0 { 0 } else { b };
            proptest::prop_assert_eq!(product(product(a, b), inverse(a)), back);
        }
    }
}
