//! Flips in every part of a frame, before and after it was sealed. What was sealed is kept beside it as the oracle.

use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::frame::{self, BlockInfo, Codec, FRAME_HEADER_LEN, FrameInfo, FrameKind};
use super::repair::{BitFlip, repair, search_plaintext};
use super::search::{SealedFlip, Searched, Within};
use super::{Packed, Packer};
use crate::crypto::{ArcCipher, Keys};
use crate::error::Damage;
use crate::ids::{ArcId, ArcSalt, BackupId, FrameNo};
use crate::testing::Rng;

const NO: FrameNo = FrameNo(5);

/// A frame as it was written, and what it holds.
struct Sealed {
    keys: Keys,
    cipher: ArcCipher,
    info: FrameInfo,
    plain: Vec<u8>,
    stored: Vec<u8>,
    frame: Vec<u8>,
}

impl Sealed {
    fn new(plain: &[u8]) -> Sealed {
        Sealed::of(plain, Packer::new(3).unwrap().pack(plain).unwrap())
    }

    fn of(plain: &[u8], packed: Packed) -> Sealed {
        let keys = Keys::new(&Zeroizing::new([1; 32]), BackupId([2; 16]));
        let cipher = keys.arc_cipher(ArcId([3; 16]), &ArcSalt([4; 32]));
        let info = FrameInfo::of_one(FrameKind::Block, &packed, BlockInfo::of(&keys, plain));
        let frame = frame::seal(&cipher, NO, &info, &packed.stored);
        Sealed { keys, cipher, info, plain: plain.to_vec(), stored: packed.stored, frame }
    }

    /// The same, but for what memory did to the stored bytes on their way into the envelope.
    fn sealed_wrong(self, change: impl FnOnce(&mut Vec<u8>)) -> Sealed {
        let mut stored = self.stored.clone();
        change(&mut stored);
        assert_ne!(stored, self.stored, "the fault did not fire");
        let frame = frame::seal(&self.cipher, NO, &self.info, &stored);
        Sealed { frame, ..self }
    }

    fn with_flips(&self, bits: &[usize]) -> Vec<u8> {
        let mut bytes = self.frame.clone();
        bits.iter().for_each(|bit| bytes[bit / 8] ^= 1 << (bit % 8));
        assert_ne!(bytes, self.frame, "the fault did not fire");
        bytes
    }

    fn repair(&self, damaged: &[u8]) -> Option<super::repair::Repaired> {
        repair(&self.keys, &self.cipher, NO, &self.info, damaged)
    }

    /// The frame is put right, and it is said which bits were wrong.
    #[track_caller]
    fn assert_repaired(&self, bits: &[usize]) {
        let damaged = self.with_flips(bits);
        assert!(frame::open(&self.keys, &self.cipher, NO, &self.info, &damaged).is_err());
        let got = self.repair(&damaged).unwrap_or_else(|| panic!("bits {bits:?} were not found"));
        assert!(got.frame == self.frame && got.opened.into_plain() == self.plain, "bits {bits:?}");
        let flip = |bit: &usize| {
            let (byte, bit) = (bit / 8, (bit % 8) as u8);
            BitFlip { byte: byte as u32, bit, to_one: self.frame[byte] >> bit & 1 == 0 }
        };
        assert_eq!(got.flips, bits.iter().map(flip).collect::<Vec<_>>());
    }

    fn search(&self) -> Option<Searched> {
        search_plaintext(&self.keys, &self.cipher, NO, &self.info, &self.frame, &mut |_, _| true)
    }
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|n| b"one line of a text that shrinks\n"[n * n / 7 % 32]).collect()
}

#[test]
fn every_bit_of_small_frames_is_put_right() {
    let mut rng = Rng::from_env();
    let noise = [15, 16, 17, 100].map(|len| rng.noise(len));
    let plains = noise.iter().map(Vec::as_slice).chain([&b""[..], b"x"]);
    let text = text(900);
    for plain in plains.chain([&text[..]]) {
        let sealed = Sealed::new(plain);
        assert_eq!(sealed.info.codec == Codec::Zstd, plain.len() == 900);
        for bit in 0..sealed.frame.len() * 8 {
            sealed.assert_repaired(&[bit]);
            // The head is known, so what is wrong there does not count.
            sealed.assert_repaired(&[
                bit % 36,
                FRAME_HEADER_LEN * 8 + bit % ((sealed.frame.len() - FRAME_HEADER_LEN) * 8),
            ]);
        }
        let mut no_header = sealed.frame.clone();
        no_header[..FRAME_HEADER_LEN].fill(0x55);
        assert_eq!(sealed.repair(&no_header).unwrap().what(), "its head was changed");
        assert_eq!(sealed.repair(&sealed.frame).unwrap().what(), "nothing was wrong");
    }
}

#[test]
fn the_words_name_byte_bit_and_direction() {
    let sealed = Sealed::new(b"some bytes");
    let mut damaged = sealed.frame.clone();
    damaged[40] ^= 8;
    let to = damaged[40] >> 3 & 1;
    assert_eq!(sealed.repair(&damaged).unwrap().what(), format!("bit 3 of byte 40 was flipped to {to}"));
    damaged[2] ^= 3;
    let wanted = format!("its head was changed and bit 3 of byte 40 was flipped to {to}");
    assert_eq!(sealed.repair(&damaged).unwrap().what(), wanted);
}

#[test]
fn random_bits_of_large_frames_are_put_right_fast() {
    let mut rng = Rng::from_env();
    println!("seed {}", rng.seed);
    for len in [64 << 10, 1 << 20, (1 << 20) + 7] {
        let sealed = Sealed::new(&rng.noise(len));
        let bits: Vec<usize> = (0..40).map(|_| rng.below(sealed.frame.len() * 8)).collect();
        let started = Instant::now();
        bits.iter().for_each(|bit| sealed.assert_repaired(&[*bit]));
        let each = started.elapsed() / 40;
        println!("{len}: {each:?} each, with the copies of this test");
        // What cannot be found costs the most.
        let damaged = sealed.with_flips(&[500, 7000]);
        let started = Instant::now();
        assert!(sealed.repair(&damaged).is_none());
        println!("{len}: {:?} in vain", started.elapsed());
        assert!(each < Duration::from_secs(1));
    }
}

#[test]
fn two_flips_are_never_taken_for_one() {
    let mut rng = Rng::from_env();
    let body = FRAME_HEADER_LEN * 8;
    for plain in [rng.noise(40), text(2000), rng.noise(5000)] {
        let sealed = Sealed::new(&plain);
        for _ in 0..400 {
            let bits = [0, 0].map(|_| body + rng.below(sealed.frame.len() * 8 - body));
            if bits[0] != bits[1] {
                assert!(sealed.repair(&sealed.with_flips(&bits)).is_none(), "seed {}: {bits:?}", rng.seed);
            }
        }
    }
}

#[test]
fn another_place_or_other_bytes_are_never_accepted() {
    let sealed = Sealed::new(&text(3000));
    let Sealed { keys, cipher, info, frame, .. } = &sealed;
    assert!(repair(keys, cipher, FrameNo(6), info, frame).is_none(), "another number");
    let other_arc = keys.arc_cipher(ArcId([9; 16]), &ArcSalt([4; 32]));
    assert!(repair(keys, &other_arc, NO, info, frame).is_none(), "another arc");
    let other_backup = Keys::new(&Zeroizing::new([1; 32]), BackupId([8; 16]));
    let cipher_there = other_backup.arc_cipher(ArcId([3; 16]), &ArcSalt([4; 32]));
    assert!(repair(&other_backup, &cipher_there, NO, info, frame).is_none(), "another backup dir");
    let other = BlockInfo { hash: keys.block_hash(b"else"), ..info.blocks[0] };
    let other_hash = FrameInfo { blocks: vec![other], ..info.clone() };
    assert!(repair(keys, cipher, NO, &other_hash, frame).is_none(), "another block");
    assert!(repair(keys, cipher, NO, info, &frame[1..]).is_none(), "cut");
    assert!(repair(keys, cipher, NO, info, &[]).is_none(), "nothing");

    // One flipped bit on top of a zstd bomb, and of bytes that were not the block's: the bit is found, and not enough.
    let bomb = zstd::bulk::compress(&vec![0; 16 << 20], 3).unwrap();
    for stored in [bomb, zstd::bulk::compress(&text(2999), 3).unwrap()] {
        let wrong = Sealed::of(&sealed.plain, Packed { codec: Codec::Zstd, stored });
        for bit in [300, 900] {
            assert!(wrong.repair(&wrong.with_flips(&[bit])).is_none());
        }
        assert!(wrong.search().is_none());
    }
}

#[test]
fn a_bit_that_was_flipped_before_sealing_is_searched() {
    let mut rng = Rng::from_env();
    // As it is stored plain, a flip of one is a flip of the other.
    let plain = rng.noise(700);
    for bit in [0, 8 * 63 + 7, 8 * 64, 8 * 699 + 7, rng.below(5600)] {
        let (byte, mask) = (bit / 8, 1 << (bit % 8));
        let sealed = Sealed::new(&plain).sealed_wrong(|stored| stored[byte] ^= mask);
        let opened = frame::open(&sealed.keys, &sealed.cipher, NO, &sealed.info, &sealed.frame);
        assert!(matches!(opened, Err(Damage::HashMismatch { .. })));
        assert!(sealed.repair(&sealed.frame).is_none(), "the tag is right: nothing for the fast kind");
        let found = sealed.search().unwrap();
        assert!(found.plain == plain, "seed {}", rng.seed);
        let to_one = plain[byte] & mask == 0;
        let flip = SealedFlip { within: Within::Plain, byte: byte as u32, bit: (bit % 8) as u8, to_one };
        assert_eq!(found.flip, flip);
    }
    // After compression.
    let plain = text(3000);
    let pristine = Sealed::new(&plain);
    assert_eq!(pristine.info.codec, Codec::Zstd);
    for _ in 0..6 {
        let bit = rng.below(pristine.stored.len() * 8);
        let (byte, mask) = (bit / 8, 1u8 << (bit % 8));
        let sealed = Sealed::new(&plain).sealed_wrong(|stored| stored[byte] ^= mask);
        if frame::open(&sealed.keys, &sealed.cipher, NO, &sealed.info, &sealed.frame).is_ok() {
            continue; // A bit that zstd does not look at.
        }
        let found = sealed.search().unwrap_or_else(|| panic!("seed {}: bit {bit}", rng.seed));
        assert!(found.plain == plain, "seed {}", rng.seed);
    }
    // Between hashing and compressing.
    let mut wrong = plain.clone();
    wrong[1234] ^= 0x10;
    let stored = Packer::new(3).unwrap().pack(&wrong).unwrap().stored;
    let found = Sealed::of(&plain, Packed { codec: Codec::Zstd, stored }).search().unwrap();
    assert!(found.plain == plain);
    assert_eq!((found.flip.within, found.flip.byte, found.flip.bit), (Within::Plain, 1234, 4));
}

#[test]
fn the_search_ends_when_told_is_bounded_and_finds_nothing_where_nothing_is() {
    let plain = Rng::new(1).noise(512);
    assert!(Sealed::new(&plain).search().is_none(), "nothing is wrong");
    let two = Sealed::new(&plain).sealed_wrong(|stored| {
        stored[3] ^= 1;
        stored[400] ^= 1;
    });
    assert!(two.search().is_none());
    let mut damaged = Sealed::new(&plain).sealed_wrong(|stored| stored[9] ^= 1);
    damaged.frame[40] ^= 1;
    assert!(damaged.search().is_none(), "the tag is wrong");

    let long = Rng::new(2).noise((1 << 20) + 1);
    let long = Sealed::new(&long).sealed_wrong(|stored| stored[9] ^= 1);
    let Sealed { keys, cipher, info, frame, .. } = &long;
    let never = &mut |_, _| panic!("longer than what is searched");
    assert!(search_plaintext(keys, cipher, NO, info, frame, never).is_none());

    let slow = Rng::new(3).noise(1 << 20);
    let slow = Sealed::new(&slow).sealed_wrong(|stored| {
        stored[0] ^= 1;
        stored[1] ^= 1;
    });
    let Sealed { keys, cipher, info, frame, .. } = &slow;
    let (started, mut said) = (Instant::now(), Vec::new());
    let stop = &mut |done, total| {
        said.push((done, total));
        said.len() < 4
    };
    assert!(search_plaintext(keys, cipher, NO, info, frame, stop).is_none());
    assert!(started.elapsed() < Duration::from_secs(60), "it ends soon after it was told");
    assert_eq!(said.len(), 4);
    assert!(said.iter().all(|(done, total)| done < total && *total == said[0].1), "{said:?}");
    assert!(said[3].0 > 0, "{said:?}");
}
