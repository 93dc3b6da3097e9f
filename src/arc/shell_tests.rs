//! Headers, trailers, frame tables: what is accepted is written again, and each rule is broken behind a right tag.

use super::*;
use crate::arc::{Codec, FRAME_HEADER_LEN, Packer, frame};
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

/// Gives changed bytes a right tag.
fn sealed(keys: &Keys, domain: Domain, mut bytes: Vec<u8>) -> Vec<u8> {
    let at = bytes.len() - TAG_LEN;
    let tag = keys.arc_cipher(ID, &SALT).seal(domain, 0, &bytes[..at], &mut []);
    bytes[at..].copy_from_slice(&tag);
    bytes
}

fn with(bytes: &[u8], at: usize, change: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + change.len()].copy_from_slice(change);
    bytes
}

#[test]
fn headers_that_no_writer_makes_are_refused_behind_a_right_tag() {
    let keys = keys();
    let whole = header().encode(&keys);
    assert_eq!(ArcHeader::decode(&sealed(&keys, Domain::Header, whole.to_vec()), &keys), Ok(header()));
    for (what, at, change) in [
        ("magic", 0, &b"ASSAYARK"[..]),
        ("format", 8, &[2, 0]),
        ("incompatible feature", 14, &[1, 0]),
        ("incompatible feature", 14, &[0, 0x80]),
        ("role", 16, &[0]),
        ("role", 16, &[4]),
        ("first zero", 17, &[1]),
        ("last zero", 19, &[0x80]),
        ("version", 20, &(1u32 << 24).to_le_bytes()),
        ("data arc with the number of a commit arc", 24, &[0, 0, 0, 0]),
        ("commit arc with another number", 16, &[3]),
        ("backup id", 28, &[9]),
        ("zero before the tag", 92, &[1]),
        ("zero before the tag", 95, &[1]),
    ] {
        let bad = sealed(&keys, Domain::Header, with(&whole, at, change));
        assert_eq!(ArcHeader::decode(&bad, &keys), Err(Damage::BadHeader), "{what}");
    }
    // Features that a reader may ignore.
    for at in 10..14 {
        let other = sealed(&keys, Domain::Header, with(&whole, at, &[1]));
        assert_eq!(ArcHeader::decode(&other, &keys), Ok(header()), "byte {at}");
    }
}

#[test]
fn trailers_that_no_writer_makes_are_refused_behind_a_right_tag() {
    let keys = keys();
    let whole = trailer().encode(&keys);
    for (what, at, change) in [
        ("magic", 0, &b"ASSAYARC"[..]),
        ("format", 8, &[2, 0]),
        ("role", 10, &[0]),
        ("first zero", 11, &[1]),
        ("last zero", 15, &[1]),
        ("offset below the frames", 64, &(111u64 + 3 * 52).to_le_bytes()),
        ("offset above the frames", 64, &(113u64 + 3 * (52 + (64 << 20))).to_le_bytes()),
        ("offset", 64, &u64::MAX.to_le_bytes()),
        ("length below a frame's", 72, &51u32.to_le_bytes()),
        ("length above a frame's", 72, &(53u32 + (64 << 20)).to_le_bytes()),
        ("length", 72, &u32::MAX.to_le_bytes()),
        ("frames", 76, &(1u32 << 24).to_le_bytes()),
        ("frames", 76, &u32::MAX.to_le_bytes()),
    ] {
        let bad = sealed(&keys, Domain::Trailer, with(&whole, at, change));
        assert_eq!(ArcTrailer::decode(&bad, &keys), Err(Damage::BadTrailer), "{what}");
    }
}

#[test]
fn headers_and_trailers_are_written_again_as_they_were_read() {
    let keys = keys();
    let mut rng = Rng::from_env();
    let (head, tail) = (header().encode(&keys), trailer().encode(&keys));
    let (mut heads, mut tails) = (0, 0);
    // An AES key a case: fewer of them.
    for case in 0..10_000 {
        let (mut head, mut tail) = (head.to_vec(), tail.to_vec());
        if case > 0 {
            mutate(&mut rng, &mut head, &tail.clone());
            mutate(&mut rng, &mut tail, b"\x01\0\0\0\0\0\0\0\x01");
            head.resize(ARC_HEADER_LEN, 0);
            tail.resize(ARC_TRAILER_LEN, 0);
            // Identity stays, or the tag would be another key's; features may be ignored.
            head[10..14].fill(0);
            head[44..92].copy_from_slice(&[&ID.0[..], &SALT.0].concat());
            tail[16..64].copy_from_slice(&[&ID.0[..], &SALT.0].concat());
            (head, tail) = (sealed(&keys, Domain::Header, head), sealed(&keys, Domain::Trailer, tail));
        }
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
    let plain_len = 1 + rng.below(1 << 20) as u32;
    let codec = if rng.below(2) == 0 { Codec::Plain } else { Codec::Zstd };
    let stored_len = if codec == Codec::Plain { plain_len } else { rng.below(plain_len as usize) as u32 };
    FrameInfo { kind, codec, stored_len, plain_len, hash: BlockHash([rng.next() as u8; 20]) }
}

#[test]
fn frame_headers_and_tables_are_written_again_as_they_were_read() {
    let kind = |rng: &mut Rng| [FrameKind::Block, FrameKind::Catalog, FrameKind::Commit][rng.below(3)];
    assert_canonical(
        "frame header",
        |rng| {
            let kind = kind(rng);
            an_info(rng, kind).header(FrameNo(rng.next() as u32)).to_vec()
        },
        |bytes| {
            let header: &[u8; FRAME_HEADER_LEN] = bytes.try_into().ok()?;
            FrameInfo::from_header(header).map(|(no, info)| info.header(no).to_vec())
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
    let info = |kind, codec, stored_len, plain_len| {
        FrameInfo { kind, codec, stored_len, plain_len, hash: BlockHash([0; 20]) }.encode()
    };
    use {Codec::*, FrameKind::*};
    let good = info(Block, Zstd, 9, 10);
    assert_eq!(decode_frame_table(&[good, good].concat()).map(|table| table.len()), Ok(2));
    for (what, bytes) in [
        ("two kinds", [good, info(Catalog, Zstd, 9, 10)].concat()),
        ("a footer in a table", info(Footer, Plain, 10, 10).to_vec()),
        ("an unknown kind", with(&good, 0, &[5])),
        ("an unknown codec", with(&good, 1, &[2])),
        ("plain bytes that are stored shorter", info(Block, Plain, 9, 10).to_vec()),
        ("compressed bytes that are not shorter", info(Block, Zstd, 10, 10).to_vec()),
        ("a block that is too long", info(Block, Plain, (64 << 20) + 1, (64 << 20) + 1).to_vec()),
        ("a byte left over", [&good[..], &[0]].concat()),
        ("an entry that is cut", good[..29].to_vec()),
    ] {
        assert_eq!(decode_frame_table(&bytes), Err(Damage::BadRecord("frame table")), "{what}");
    }
    let mut header = FrameInfo::decode(&good).unwrap().header(FrameNo(1));
    for at in [6, 7] {
        header[at] = 1;
        assert_eq!(FrameInfo::from_header(&header), None, "zero field of a frame header");
        header[at] = 0;
    }
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
        let (stored_len, plain_len) = (bytes.len() as u32, plain.len() as u32);
        let hash = keys.block_hash(&plain);
        let info = FrameInfo { kind: FrameKind::Block, codec: Codec::Zstd, stored_len, plain_len, hash };
        let sealed = frame::seal(&cipher, FrameNo(0), &info, &bytes);
        match frame::open(&keys, &cipher, FrameNo(0), &info, &sealed) {
            Ok(block) => {
                opened += 1;
                assert!(*block == plain[..], "seed {}", rng.seed);
            }
            Err(Damage::BadCompression | Damage::HashMismatch { .. }) => {}
            Err(other) => panic!("{other:?}, seed {}", rng.seed),
        }
    }
    assert!(opened < 20_000);
}
