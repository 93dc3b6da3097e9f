//! Headers, trailers, frame tables: what is accepted is written again, and each rule is broken behind a right tag.

use super::*;
use crate::arc::{BlockInfo, Codec, Packer, frame};
use crate::ids::{BlockHash, FrameNo};
use crate::testing::Rng;
use crate::testing::mutate::{assert_canonical, mutate};
use zeroize::Zeroizing;

const ID: ArcId = ArcId([3; 16]);
const SALT: ArcSalt = ArcSalt([4; 32]);

fn keys() -> Keys {
    Keys::new(&Zeroizing::new([1; 32]), BackupId([2; 16]))
}

fn header() -> ArcHeader {
    ArcHeader { name: ArcName { version: Version(3), number: 1 }, role: ArcRole::Data, id: ID, salt: SALT }
}

fn trailer() -> ArcTrailer {
    let (footer_offset, footer_len, frames) = (112 + 3 * 152, 100, 3);
    ArcTrailer { role: ArcRole::Data, id: ID, salt: SALT, footer_offset, footer_len, frames }
}

/// As a writer would seal it that had these bytes in mind.
fn changed<const N: usize>(keys: &Keys, part: (Domain, usize), whole: &[u8; N], at: usize, change: &[u8]) -> [u8; N] {
    let (cipher, mut bytes) = (keys.arc_cipher(ID, &SALT), *whole);
    assert!(open(&cipher, part.0, &mut bytes, part.1));
    bytes[at..at + change.len()].copy_from_slice(change);
    seal(&cipher, part.0, &mut bytes, part.1);
    bytes
}

fn with(bytes: &[u8], at: usize, change: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + change.len()].copy_from_slice(change);
    bytes
}

const HEADER: (Domain, usize) = (Domain::Header, HEADER_CLEAR_LEN);
const TRAILER: (Domain, usize) = (Domain::Trailer, TRAILER_CLEAR_LEN);

#[test]
fn headers_that_no_writer_makes_are_refused_behind_a_right_tag() {
    let keys = keys();
    let whole = header().encode(&keys);
    assert_eq!(ArcHeader::decode(&changed(&keys, HEADER, &whole, 0, b"ASSAY"), &keys), Ok(header()));
    for (what, at, change) in [
        ("magic", 0, &b"ASSAYARK"[..]),
        ("an older format", 8, &[1, 0]),
        ("format", 8, &[3, 0]),
        ("incompatible feature", 14, &[1, 0]),
        ("incompatible feature", 14, &[0, 0x80]),
        ("version", 16, &(1u32 << 24).to_le_bytes()),
        ("data arc with the number of a commit arc", 20, &[0, 0, 0, 0]),
        ("commit arc with another number", 88, &[3]),
        ("backup id", 24, &[9]),
        ("role", 88, &[0]),
        ("role", 88, &[4]),
        ("first zero", 89, &[1]),
        ("last zero", 95, &[0x80]),
    ] {
        let bad = changed(&keys, HEADER, &whole, at, change);
        assert_eq!(ArcHeader::decode(&bad, &keys), Err(Damage::BadHeader), "{what}");
    }
    // Features that a reader may ignore.
    for at in 10..14 {
        assert_eq!(ArcHeader::decode(&changed(&keys, HEADER, &whole, at, &[1]), &keys), Ok(header()), "byte {at}");
    }
}

#[test]
fn trailers_that_no_writer_makes_are_refused_behind_a_right_tag() {
    let keys = keys();
    let whole = trailer().encode(&keys);
    for (what, at, change) in [
        ("magic", 0, &b"ASSAYARC"[..]),
        ("offset below the frames", 56, &(111u64 + 3 * 72).to_le_bytes()),
        ("offset above the frames", 56, &(113u64 + 3 * (48 + 128 * 24 + (64 << 20))).to_le_bytes()),
        ("offset", 56, &u64::MAX.to_le_bytes()),
        ("length below a frame's", 64, &71u32.to_le_bytes()),
        ("length above a frame's", 64, &(73u32 + (64 << 20)).to_le_bytes()),
        ("length", 64, &u32::MAX.to_le_bytes()),
        ("frames", 68, &(1u32 << 17).to_le_bytes()),
        ("frames", 68, &u32::MAX.to_le_bytes()),
        ("role", 72, &[0]),
        ("first zero", 73, &[1]),
        ("last zero", 77, &[1]),
        ("format", 78, &[1, 0]),
        ("format", 78, &[3, 0]),
    ] {
        let bad = changed(&keys, TRAILER, &whole, at, change);
        assert_eq!(ArcTrailer::decode(&bad, &keys), Err(Damage::BadTrailer), "{what}");
    }
}

#[test]
fn headers_and_trailers_are_written_again_as_they_were_read() {
    let keys = keys();
    let mut rng = Rng::from_env();
    let (head, tail) = (header().encode(&keys), trailer().encode(&keys));
    let cipher = keys.arc_cipher(ID, &SALT);
    let (mut open_head, mut open_tail) = (head, tail);
    assert!(open(&cipher, HEADER.0, &mut open_head, HEADER.1) && open(&cipher, TRAILER.0, &mut open_tail, TRAILER.1));
    let (mut heads, mut tails) = (0, 0);
    // An AES key a case: fewer of them.
    for _ in 0..10_000 {
        let (mut head, mut tail) = (open_head.to_vec(), open_tail.to_vec());
        mutate(&mut rng, &mut head, &tail.clone());
        mutate(&mut rng, &mut tail, b"\x01\0\0\0\0\0\0\0\x01");
        head.resize(ARC_HEADER_LEN, 0);
        tail.resize(ARC_TRAILER_LEN, 0);
        // Identity stays, or the tag would be another key's; features may be ignored.
        head[10..14].fill(0);
        head[40..88].copy_from_slice(&[&ID.0[..], &SALT.0].concat());
        tail[8..56].copy_from_slice(&[&ID.0[..], &SALT.0].concat());
        let (mut head, mut tail) = (head.try_into().unwrap(), tail.try_into().unwrap());
        seal::<ARC_HEADER_LEN>(&cipher, HEADER.0, &mut head, HEADER.1);
        seal::<ARC_TRAILER_LEN>(&cipher, TRAILER.0, &mut tail, TRAILER.1);
        if let Ok(header) = ArcHeader::decode(&head, &keys) {
            heads += 1;
            assert_eq!(header.encode(&keys)[..], head[..], "seed {}", rng.seed);
        }
        if let Ok(trailer) = ArcTrailer::decode(&tail, &keys) {
            tails += 1;
            assert_eq!(trailer.encode(&keys)[..], tail[..], "seed {}", rng.seed);
        }
    }
    assert!(heads > 500 && tails > 500, "{heads} {tails}, seed {}", rng.seed);
}

fn an_info(rng: &mut Rng, kind: FrameKind) -> FrameInfo {
    let count = if kind == FrameKind::Block { 1 + rng.below(4) } else { 1 };
    let block =
        |rng: &mut Rng| BlockInfo { len: 1 + rng.below(1 << 20) as u32, hash: BlockHash([rng.next() as u8; 20]) };
    let blocks: Vec<BlockInfo> = (0..count).map(|_| block(rng)).collect();
    let plain_len = blocks.iter().map(|block| block.len).sum::<u32>();
    let codec = if rng.below(2) == 0 { Codec::Plain } else { Codec::Zstd };
    let stored_len = if codec == Codec::Plain { plain_len } else { rng.below(plain_len as usize) as u32 };
    FrameInfo { kind, codec, stored_len, blocks }
}

#[test]
fn frames_and_their_tables_are_written_again_as_they_were_read() {
    let kind = |rng: &mut Rng| [FrameKind::Block, FrameKind::Catalog, FrameKind::Commit][rng.below(3)];
    // What stands behind the seals: the head, and the table that the body begins with.
    assert_canonical(
        "frame",
        |rng| {
            let kind = kind(rng);
            let info = an_info(rng, kind);
            [&info.head(FrameNo(7))[..], &info.table()].concat()
        },
        |bytes| {
            let (no, info) = frame::claimed(bytes)?;
            Some([&info.head(no)[..], &info.table()].concat())
        },
    );
    assert_canonical(
        "frame table",
        |rng| {
            let kind = kind(rng);
            (0..rng.below(4)).flat_map(|_| an_info(rng, kind).encode()).collect()
        },
        |bytes| {
            let table = decode_frame_table(bytes).ok()?;
            Some(table.iter().flat_map(FrameInfo::encode).collect())
        },
    );
}

#[test]
fn frame_tables_that_no_writer_makes_are_refused() {
    let of = |kind, codec, stored_len, lens: &[u32]| {
        let blocks = lens.iter().map(|len| BlockInfo { len: *len, hash: BlockHash([0; 20]) }).collect();
        FrameInfo { kind, codec, stored_len, blocks }
    };
    use {Codec::*, FrameKind::*};
    let good = of(Block, Zstd, 9, &[4, 6]);
    let good_bytes = good.encode();
    assert_eq!(decode_frame_table(&[&good_bytes[..], &good_bytes].concat()).map(|table| table.len()), Ok(2));
    let full = of(Block, Zstd, 9, &[4; 128]);
    assert_eq!(decode_frame_table(&full.encode()), Ok(vec![full]));
    assert!(decode_frame_table(&of(Block, Plain, 0, &[0]).encode()).is_ok(), "alone it may be empty");
    let wrong_frames = [
        ("a footer in a table", of(Footer, Plain, 10, &[10])),
        ("plain bytes that are stored shorter", of(Block, Plain, 9, &[10])),
        ("compressed bytes that are not shorter", of(Block, Zstd, 10, &[4, 6])),
        ("a block that is too long", of(Block, Plain, (64 << 20) + 1, &[(64 << 20) + 1])),
        ("blocks that are too long together", of(Block, Zstd, 9, &[32 << 20, 33 << 20])),
        ("lengths whose sum overflows", of(Block, Zstd, 9, &[u32::MAX, 11])),
        ("no block", of(Block, Plain, 0, &[])),
        ("too many blocks", of(Block, Zstd, 9, &[1; 129])),
        ("an empty block among others", of(Block, Zstd, 3, &[4, 0])),
        ("two catalogs in a frame", of(Catalog, Zstd, 9, &[4, 6])),
    ];
    for (what, bytes) in wrong_frames.iter().map(|(what, info)| (*what, info.encode())).chain([
        ("two kinds", [&good_bytes[..], &of(Catalog, Zstd, 9, &[10]).encode()].concat()),
        ("an unknown kind", with(&good_bytes, 0, &[5])),
        ("an unknown codec", with(&good_bytes, 1, &[2])),
        ("a byte left over", [&good_bytes[..], &[0]].concat()),
        ("an entry that is cut", good_bytes[..good_bytes.len() - 1].to_vec()),
    ]) {
        assert_eq!(decode_frame_table(&bytes), Err(Damage::BadRecord("frame table")), "{what}");
    }
    // The same behind the seals of a frame; a footer may be in one.
    let claim = |info: &FrameInfo| frame::claimed(&[&info.head(FrameNo(7))[..], &info.table()].concat());
    assert_eq!(claim(&good), Some((FrameNo(7), good.clone())));
    for (what, info) in wrong_frames.iter().skip(1) {
        assert_eq!(claim(info), None, "{what}");
    }
    let two = [&good.head(FrameNo(7))[..], &of(Block, Zstd, 9, &[4, 7]).table()].concat();
    assert_eq!(frame::claimed(&two), None, "lengths that do not add up");
}

#[test]
fn changed_compressed_bytes_never_open_as_something_else() {
    let keys = keys();
    let cipher = keys.arc_cipher(ID, &SALT);
    let mut rng = Rng::from_env();
    let plain = b"all work and no play makes a dull tree ".repeat(20);
    let stored = Packer::new(3).unwrap().pack(&plain).unwrap().stored;
    let mut opened = 0;
    for _ in 0..20_000 {
        let mut bytes = stored.clone();
        mutate(&mut rng, &mut bytes, &stored);
        let (stored_len, blocks) = (bytes.len() as u32, vec![BlockInfo::of(&keys, &plain)]);
        let info = FrameInfo { kind: FrameKind::Block, codec: Codec::Zstd, stored_len, blocks };
        let sealed = frame::seal(&cipher, FrameNo(0), &info, &bytes);
        match frame::open(&keys, &cipher, FrameNo(0), &info, &sealed) {
            Ok(frame) => {
                opened += 1;
                assert!(frame.into_plain() == plain, "seed {}", rng.seed);
            }
            Err(Damage::BadCompression | Damage::HashMismatch { .. }) => {}
            Err(other) => panic!("{other:?}, seed {}", rng.seed),
        }
    }
    assert!(opened < 20_000);
}
