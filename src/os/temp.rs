//! Names of what is written beside its final name, for the moment before it takes that name: made here, recognised by
//! everybody.
//!
//! Invariant: only a name that was made here is recognised, for what has one may be removed: half of it is random, the
//! other half follows from that.

const PREFIX: &[u8] = b".assay-tmp-";
const HALF: usize = 16;

/// A name that nobody else has, from a random number.
pub fn name(random: u64) -> Vec<u8> {
    [PREFIX, format!("{random:016x}{:016x}", check(random)).as_bytes()].concat()
}

pub fn is_ours(name: &[u8]) -> bool {
    let number = name.strip_prefix(PREFIX).and_then(|rest| rest.get(..HALF));
    let number = number.and_then(|digits| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
    number.is_some_and(|number| self::name(number) == name)
}

/// The mixing function of SplitMix64: no secret, only nothing that a person would write.
fn check(random: u64) -> u64 {
    let mut mixed = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_were_made_here_are_recognised() {
        for random in [0, 1, 77, u64::MAX] {
            let made = name(random);
            assert!(is_ours(&made));
            let shorter = &made[..made.len() - 1];
            let mut other = made.clone();
            *other.last_mut().unwrap() ^= 1;
            for no in [shorter, &other, &[made.as_slice(), b"0"].concat(), &made[1..], &made.to_ascii_uppercase()] {
                assert!(!is_ours(no), "{no:?}");
            }
        }
        for no in [&b""[..], b".assay-tmp-", b".assay-tmp-00000000000000000000000000000000", b".assay-tmp-\xff"] {
            assert!(!is_ours(no));
        }
    }
}
