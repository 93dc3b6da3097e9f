//! Parity against damage: what is within the bound comes back, what is beyond it is an error, nothing is ever other bytes.

use proptest::prelude::*;

use super::parity::*;
use crate::crypto::sha256;
use crate::error::Result;
use crate::ids::{ArcDigest, ArcId, ArcName, Version};
use crate::testing::Rng;

const NAME: ArcName = ArcName { version: Version(3), number: 1 };

fn header_of(arc: &[u8], percent: u8) -> ParityHeader {
    let (id, digest) = (ArcId([7; 16]), ArcDigest(sha256(arc)));
    ParityHeader { arc: NAME, id, arc_bytes: arc.len() as u64, digest, percent: Percent::new(percent).unwrap() }
}

fn sidecar_of(arc: &[u8], percent: u8) -> Vec<u8> {
    let header = header_of(arc, percent);
    let mut sidecar = vec![0; header.sidecar_bytes() as usize];
    let mut read = |at: u64, buffer: &mut [u8]| -> Result<()> {
        buffer.copy_from_slice(&arc[at as usize..][..buffer.len()]);
        Ok(())
    };
    let mut put = |at: u64, bytes: &[u8]| -> Result<()> {
        sidecar[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    };
    assert_eq!(encode(&header, &mut read, &mut put).unwrap(), header.digest);
    sidecar
}

/// Reads of bytes of which some shards can't be had, or of which the end is missing.
fn source<'a>(bytes: &'a [u8], unreadable: &'a [usize]) -> impl Fn(u64, &mut [u8]) -> usize + 'a {
    move |at, buffer| {
        let at = at as usize;
        if unreadable.iter().any(|shard| shard * SHARD_BYTES < at + buffer.len() && at < (shard + 1) * SHARD_BYTES) {
            return 0;
        }
        let rest = bytes.get(at..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        count
    }
}

/// All of the arc, as far as each of its shards is right or comes back; the numbers of those that do not.
fn read_all(arc: Bytes<'_>, sidecar: &[u8]) -> Option<(Vec<u8>, Vec<u64>)> {
    let side = source(sidecar, &[]);
    let header = ParityHeader::read(&side, sidecar.len() as u64)?;
    let (mut bytes, mut lost) = (Vec::new(), Vec::new());
    while (bytes.len() as u64) < header.arc_bytes {
        let region = header.region_of(bytes.len() as u64);
        let hashes = region.hashes(&header, &side);
        let data = Shards::read(arc, region.offset, header.arc_bytes, &hashes[..region.data_shards]);
        let mended = region.mend(&header, &hashes, arc, &side);
        for (number, shard) in data.bytes.chunks(SHARD_BYTES).enumerate() {
            match (data.right[number], mended.shards.get(&number)) {
                (true, _) => bytes.extend_from_slice(shard),
                (false, Some(shard)) => bytes.extend_from_slice(shard),
                (false, None) => {
                    lost.push(region.offset_of(number) / SHARD_BYTES as u64);
                    bytes.extend_from_slice(shard);
                }
            }
        }
    }
    bytes.truncate(header.arc_bytes as usize);
    Some((bytes, lost))
}

fn whole(arc: &[u8], unreadable: &[usize], sidecar: &[u8]) -> Option<Vec<u8>> {
    let (bytes, lost) = read_all(&source(arc, unreadable), sidecar)?;
    lost.is_empty().then_some(bytes)
}

#[test]
fn each_length_comes_back_when_as_much_is_lost_as_there_is_parity_for() {
    let mut rng = Rng::new(1);
    for (len, parity) in [(1, 1), (4095, 1), (4096, 1), (4097, 2), (3 * 4096, 3), (20 * 4096 + 7, 4), (600 * 4096, 12)]
    {
        let arc = rng.noise(len);
        let sidecar = sidecar_of(&arc, 2);
        let shards = len.div_ceil(SHARD_BYTES);
        assert_eq!(whole(&arc, &[], &sidecar).as_ref(), Some(&arc), "{len}");
        // Cut at its end.
        assert_eq!(whole(&arc[..(shards - parity) * SHARD_BYTES], &[], &sidecar).as_ref(), Some(&arc), "{len}");
        // Sectors that can't be read.
        let gone: Vec<usize> = (0..parity).collect();
        assert_eq!(whole(&arc, &gone, &sidecar).as_ref(), Some(&arc), "{len}");
        if shards > parity {
            let gone: Vec<usize> = (0..=parity).collect();
            let (bytes, lost) = read_all(&source(&arc, &gone), &sidecar).unwrap();
            assert_eq!(lost, gone.iter().map(|shard| *shard as u64).collect::<Vec<_>>(), "{len}");
            assert_eq!(bytes[gone.len() * SHARD_BYTES..], arc[gone.len() * SHARD_BYTES..], "what is right is read");
        }
    }
    let none = sidecar_of(&[], 2);
    assert_eq!((none.len(), whole(&[], &[], &none)), (SHARD_BYTES + PARITY_HEADER_LEN, Some(vec![])));
}

#[test]
fn regions_stand_for_themselves() {
    // Two regions, the second a short one.
    let arc = Rng::new(2).noise((REGION_SHARDS as usize + 100) * SHARD_BYTES + 5);
    let sidecar = sidecar_of(&arc, 1);
    let mut damaged = arc.clone();
    damaged[1_000_000..1_000_000 + 163 * SHARD_BYTES].fill(0);
    damaged.truncate(arc.len() - 3 * SHARD_BYTES);
    assert_eq!(whole(&damaged, &[], &sidecar).as_ref(), Some(&arc));
    damaged[0] ^= 1;
    let (bytes, lost) = read_all(&source(&damaged, &[]), &sidecar).unwrap();
    let in_first = lost.iter().all(|shard| *shard < REGION_SHARDS);
    assert!(lost.len() == 165 && in_first && bytes[64 << 20..] == arc[64 << 20..], "{lost:?}");
}

/// What other releases of the library must give too.
#[test]
fn the_code_is_the_one_that_sidecars_on_disks_have() {
    let arc = Rng::new(3).noise(300 * SHARD_BYTES + 9);
    let sidecar = sidecar_of(&arc, 2);
    let found = ArcDigest(sha256(&sidecar)).to_string();
    assert_eq!(
        (sidecar.len(), found.as_str()),
        (35_352, "4d4cce73e2309291096743b179e19d8b576da47f42169d69fd9d144dfad4c8b5")
    );
}

#[test]
fn a_header_is_believed_as_it_was_written_and_no_other() {
    let header = header_of(b"some", 2);
    let bytes = header.encode();
    assert_eq!(ParityHeader::decode(&bytes), Some(header));
    for at in 0..bytes.len() {
        let mut other = bytes;
        other[at] ^= 1 << (at % 8);
        assert_eq!(ParityHeader::decode(&other), None, "{at}");
        assert_eq!(ParityHeader::decode(&bytes[..at]), None, "{at}");
    }
}

/// Seed, percent and length of an arc; shards and how each is damaged; bursts: where, how long, by which mask; a cut.
type Case = (u64, u8, usize, Vec<(usize, u8)>, Vec<(usize, usize, u8)>, usize);

fn damage() -> impl Strategy<Value = Case> {
    let shards = prop::collection::vec((0..400usize, 0..3u8), 0..14);
    let bursts = prop::collection::vec((0..200_000usize, 1..9000usize, 1..=255u8), 0..3);
    (any::<u64>(), 1..=50u8, 0..200_000usize, shards, bursts, 0..100_000usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn within_the_bound_all_comes_back_and_beyond_it_nothing_else_does(
        (seed, percent, len, shards, bursts, cut) in damage(), side in 0..3usize
    ) {
        let arc = Rng::new(seed).noise(len);
        let sidecar = sidecar_of(&arc, percent);
        let mut damaged = arc.clone();
        let mut unreadable = Vec::new();
        for (shard, how) in shards {
            let range = (shard * SHARD_BYTES).min(len)..((shard + 1) * SHARD_BYTES).min(len);
            match how {
                0 => unreadable.push(shard),
                1 => damaged[range].fill(0),
                _ => damaged[range].iter_mut().step_by(511).for_each(|byte| *byte ^= 0x10),
            }
        }
        for (at, length, mask) in bursts {
            damaged[at.min(len)..(at + length).min(len)].iter_mut().for_each(|byte| *byte ^= mask);
        }
        damaged.truncate(len - if side == 1 { cut.min(len) / 8 } else { 0 });
        // By the bytes, not by the hashes.
        let is_bad = |shard: &usize| {
            let range = shard * SHARD_BYTES..((shard + 1) * SHARD_BYTES).min(len);
            unreadable.contains(shard) || damaged.get(range.clone()) != Some(&arc[range])
        };
        let bad = (0..len.div_ceil(SHARD_BYTES)).filter(is_bad).count();
        let parity = header_of(&arc, percent).region_of(0).parity_shards;
        let (bytes, lost) = read_all(&source(&damaged, &unreadable), &sidecar).unwrap();
        if bad <= parity {
            prop_assert!(lost.is_empty() && bytes == arc, "{bad} of {parity}");
        } else {
            prop_assert_eq!(lost.len(), bad);
        }
        for (number, (found, wanted)) in bytes.chunks(SHARD_BYTES).zip(arc.chunks(SHARD_BYTES)).enumerate() {
            prop_assert!(found == wanted || lost.contains(&(number as u64)));
        }
    }

    #[test]
    fn damage_of_the_sidecar_costs_what_it_hits(
        seed in any::<u64>(), len in 1..3_000_000usize, at in 0..1000usize, length in 1..20_000usize, is_cut in any::<bool>()
    ) {
        let arc = Rng::new(seed).noise(len);
        let intact = sidecar_of(&arc, 5);
        let mut sidecar = intact.clone();
        let (at, long) = (at * intact.len() / 1000, intact.len() >= 8 * SHARD_BYTES);
        let end = if is_cut { intact.len() } else { (at + length).min(intact.len()) };
        match is_cut {
            true => sidecar.truncate(at),
            false => sidecar[at..end].iter_mut().for_each(|byte| *byte ^= 0x55),
        }
        // One shard of the arc is gone, and comes back if a shard of parity is left.
        let Some((bytes, lost)) = read_all(&source(&arc, &[0]), &sidecar) else {
            prop_assert!(at < PARITY_HEADER_LEN && end + PARITY_HEADER_LEN > intact.len(), "one header is right");
            return Ok(());
        };
        let is_enough = long && if is_cut { at > intact.len() / 2 } else { end - at < 2 * SHARD_BYTES };
        prop_assert!(!is_enough || lost.is_empty(), "{lost:?}");
        for (number, (found, wanted)) in bytes.chunks(SHARD_BYTES).zip(arc.chunks(SHARD_BYTES)).enumerate() {
            prop_assert!(found == wanted || lost.contains(&(number as u64)));
        }
    }

    #[test]
    fn the_sidecar_of_another_arc_gives_nothing_of_this_one(seed in any::<u64>(), len in 50..300_000usize) {
        let mut rng = Rng::new(seed);
        let (arc, other) = (rng.noise(len), rng.noise(len));
        let (bytes, lost) = read_all(&source(&arc, &[]), &sidecar_of(&other, 10)).unwrap();
        // Where there is as much parity as data it has all of its own arc, whose digest its header names.
        prop_assert!(lost.len() == len.div_ceil(SHARD_BYTES) || (len <= 4 * SHARD_BYTES && bytes == other));
    }
}
