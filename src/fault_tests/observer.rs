//! What somebody sees who has the arcs and not the key: the length of each, and what its name says.
//!
//! He knows the tree that was backed up, to the byte, and looks for it: lengths in clear, bytes that come again, bytes that are not
//! as random ones are.

use super::lab::{Copy, Files, Source, lab};
use crate::arc::{ARC_HEADER_LEN, ARC_TRAILER_LEN};
use crate::backup::Options;
use crate::ids::ArcName;
use crate::testing::Rng;

/// Bytes of header and trailer that are clear: magic, format, features, name, backup id, arc id, salt.
const CLEAR_HEADER: usize = 88;
const CLEAR_TRAILER: usize = 56;

/// The arcs without what is clear.
fn sealed(files: &Files) -> Vec<(ArcName, Vec<u8>)> {
    let arc = |(name, bytes): (&String, &Vec<u8>)| {
        let name = ArcName::parse(name)?;
        let trailer = bytes.len() - ARC_TRAILER_LEN;
        assert!(trailer > ARC_HEADER_LEN);
        Some((name, [&bytes[CLEAR_HEADER..trailer], &bytes[trailer + CLEAR_TRAILER..]].concat()))
    };
    files.iter().filter_map(arc).collect()
}

/// A length as somebody might have written it: 4 and 8 bytes, both ends first.
fn written(len: u64) -> Vec<Vec<u8>> {
    let small = (len as u32).to_le_bytes();
    let mut ways = vec![small.to_vec(), len.to_le_bytes().to_vec(), len.to_be_bytes().to_vec()];
    ways.push(small.iter().rev().copied().collect());
    ways
}

#[test]
fn no_length_number_or_kind_stands_in_an_arc_in_clear() {
    let copy = Copy::of(&lab().files);
    let dir = copy.open();
    let index = dir.open_index().unwrap();
    let arcs = sealed(&lab().files);
    assert!(arcs.len() > 8);
    for entry in index.arcs().unwrap().into_iter().map(|row| row.entry) {
        let table = crate::fetch::ArcFile::open_known(dir.arcs(), &entry, dir.keys()).unwrap();
        let table = table.frame_table(dir.keys()).unwrap();
        let mut known = vec![entry.footer_offset, u64::from(entry.footer_len), entry.plain_bytes];
        for info in &table {
            known.extend([u64::from(info.stored_len), u64::from(info.plain_len()), info.frame_len()]);
            known.extend(info.blocks.iter().map(|block| u64::from(block.len)));
        }
        // One of 65,536 stands anywhere by chance; of four bytes nothing does.
        known.retain(|len| *len >= 1 << 8);
        known.sort_unstable();
        known.dedup();
        let (_, bytes) = arcs.iter().find(|(name, _)| *name == entry.name).unwrap();
        for len in known {
            for way in written(len) {
                assert!(!bytes.windows(way.len()).any(|found| found == way), "{}: {len}", entry.name);
            }
        }
    }
    // Heads of frames begin with numbers 0, 1, 2, … behind each other: not here.
    for (name, bytes) in &arcs {
        let numbers = (0..bytes.len().saturating_sub(4)).filter(|at| bytes[at + 1..at + 4] == [0; 3]).count();
        assert!(numbers <= 2, "{name}: {numbers}");
    }
}

#[test]
fn two_backups_of_one_tree_have_nothing_in_common_but_lengths() {
    let source = Source::new();
    let mut rng = Rng::from_env();
    for n in 0..60 {
        let len = 100 + 97 * n;
        source.write(&format!("d{}/f{n}", n % 7), &if n % 2 == 0 { rng.noise(len) } else { vec![b'a'; len] });
    }
    // What a time takes in the records is the same in both.
    let twins: Vec<Files> = (0..2)
        .map(|_| {
            let copy = Copy::init();
            copy.backup(&source, &Options::default());
            copy.files()
        })
        .collect();
    let [one, other] = &twins[..] else { unreachable!() };
    let (mut same, mut total, mut counts) = (0usize, 0usize, [0u64; 256]);
    for ((name, ours), (twin, theirs)) in sealed(one).into_iter().zip(sealed(other)) {
        assert_eq!(name, twin);
        same += ours.iter().zip(&theirs).filter(|(a, b)| a == b).count();
        total += ours.len().min(theirs.len());
        ours.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    }
    assert!(total > 50_000, "{total}");
    // As of random bytes: one in 256 is the same, give or take six standard deviations.
    let (expected, spread) = (total as f64 / 256.0, 6.0 * (total as f64 / 256.0).sqrt());
    assert!((same as f64 - expected).abs() < spread, "seed {}: {same} of {total}", rng.seed);
    let all: f64 = counts.iter().sum::<u64>() as f64;
    let chi: f64 = counts.iter().map(|n| (*n as f64 - all / 256.0).powi(2) / (all / 256.0)).sum();
    // 255 degrees of freedom: six standard deviations above is 390.
    assert!(chi < 390.0, "seed {}: {chi}", rng.seed);
}
