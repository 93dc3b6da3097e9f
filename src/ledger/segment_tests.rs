//! Segments behind right seals: what is accepted is written again, and each rule is broken by hand.

use super::*;
use crate::ids::{ArcSerial, BlockId, Version};
use crate::testing::Rng;
use crate::testing::mutate::assert_canonical;
use zeroize::Zeroizing;

const ID: SegmentId = SegmentId([3; 16]);
const SALT: ArcSalt = ArcSalt([4; 32]);

fn keys() -> Keys {
    Keys::new(&Zeroizing::new([1; 32]), BackupId([2; 16]))
}

fn text(rng: &mut Rng) -> String {
    "x".repeat(rng.below(5))
}

fn a_record(rng: &mut Rng) -> Record {
    let when_s = rng.next() >> rng.below(64);
    let arc = ArcSerial(rng.next() >> (25 + rng.below(30)));
    let copy = CopyId(rng.below(3) as u16);
    let (number, first) = (rng.next() >> rng.below(64), FrameNo(rng.below(1 << 16) as u32));
    let by = [By::Mount, By::Get, By::Selftest][rng.below(3)];
    match rng.below(7) {
        0 => {
            let proof = Proof { when_s, how: [How::Read, How::Medium][rng.below(2)], by };
            Record::Frames(Frames { arc, copy, first, count: 1 + rng.below(1 << 16) as u32, proof })
        }
        1 => {
            let extent = [Extent::Part, Extent::Whole, Extent::Hashed][rng.below(3)];
            let first = Logid(16 + (number >> 2));
            Record::Files(Files { first, count: 1 + rng.below(1 << 20) as u64, extent, when_s, by })
        }
        2 => Record::Run(Run {
            when_s,
            seconds: number,
            level: rng.below(6) as u8,
            inc: Some(text(rng)).filter(|text| !text.is_empty()),
            scope: text(rng),
            blocks: number,
            bytes: number,
            findings: 0,
            fixed: 1,
        }),
        3 => {
            let (frame, mended) = ((rng.below(3) > 0).then_some(first), rng.below(2) == 0);
            let count = if frame.is_some() { 1 + rng.below(100) as u32 } else { 0 };
            Record::Damage(Damage { when_ms: when_s, arc, copy, frame, count, code: text(rng), mended })
        }
        4 => {
            let (byte, bit, to_one) = (rng.below(1 << 20) as u32, rng.below(8) as u8, rng.below(2) == 0);
            Record::Flip(Flip { when_s, block: BlockId(number >> 1), byte, bit, to_one, again: !to_one })
        }
        5 => Record::History((Version(rng.below(1 << 24) as u32), [when_s as u8; 32])),
        _ => Record::Session(Session {
            started_s: when_s,
            by,
            seconds: number,
            dirs_listed: 1,
            files_read: 2,
            bytes_read: 3,
        }),
    }
}

fn plain_of(records: &[Record]) -> Vec<u8> {
    let mut e = Encoder::default();
    records.iter().for_each(|record| put_record(&mut e, record));
    e.0
}

fn decode(bytes: &[u8]) -> Decoded<Vec<Record>> {
    let mut d = Decoder::new(bytes);
    let mut records = Vec::new();
    while !d.is_empty() {
        records.push(record(&mut d)?);
    }
    Ok(records)
}

#[test]
fn ledger_records_are_written_again_as_they_were_read() {
    assert_canonical(
        "ledger records",
        |rng| {
            let records: Vec<Record> = (0..1 + rng.below(3)).map(|_| a_record(rng)).collect();
            let bytes = plain_of(&records);
            assert_eq!(decode(&bytes).as_ref(), Ok(&records), "seed {}", rng.seed);
            bytes
        },
        |bytes| decode(bytes).ok().map(|records| plain_of(&records)),
    );
}

#[test]
fn ledger_records_that_no_writer_makes_are_refused() {
    let proof = Proof { when_s: 1, how: How::Read, by: By::Get };
    let frames = |arc: u64, first: u32, count: u32| {
        let (arc, copy, first) = (ArcSerial(arc), CopyId::LOCAL, FrameNo(first));
        Record::Frames(Frames { arc, copy, first, count, proof })
    };
    let files = |first: u64, count: u64| {
        let (first, extent) = (Logid(first), Extent::Part);
        Record::Files(Files { first, count, extent, when_s: 1, by: By::Get })
    };
    let flip = |block: u64, byte: u32, bit: u8| {
        Record::Flip(Flip { when_s: 1, block: BlockId(block), byte, bit, to_one: true, again: true })
    };
    let damage = |frame: Option<u32>, count: u32| {
        let (frame, code) = (frame.map(FrameNo), "X".to_string());
        Record::Damage(Damage { when_ms: 1, arc: ArcSerial(1), copy: CopyId::LOCAL, frame, count, code, mended: false })
    };
    assert!(decode(&plain_of(&[frames(1, 0, (1 << 17) - 1), files(16, (1 << 63) - 16)])).is_ok());
    for (rule, record) in [
        ("arc serial out of range", frames(1 << 39, 0, 1)),
        ("frame number out of range", frames(1, 1 << 17, 1)),
        ("run out of range", frames(1, 0, 0)),
        ("run out of range", frames(1, 0, 1 << 17)),
        ("run out of range", frames(1, (1 << 17) - 1, 1)),
        ("logid out of range", files(15, 1)),
        ("logid out of range", files(1 << 63, 1)),
        ("run out of range", files(16, 0)),
        ("run out of range", files(16, (1 << 63) - 15)),
        ("run out of range", files(16, u64::MAX)),
        ("block id out of range", flip(1 << 63, 0, 0)),
        ("byte behind the frame", flip(1, (64 << 20) + 48 + 128 * 24, 0)),
        ("bit of no byte", flip(1, 0, 8)),
        ("frame number out of range", damage(Some(1 << 17), 1)),
        ("version out of range", Record::History((Version(1 << 24), [1; 32]))),
        ("run out of range", damage(Some(1), 0)),
        ("run out of range", damage(Some(1), (1 << 17) - 1)),
        ("run out of range", damage(None, 1)),
    ] {
        assert_eq!(decode(&plain_of(std::slice::from_ref(&record))), Err(BadRecord(rule)), "{record:?}");
    }
    // Bytes after the code: when, seconds, level, then two texts.
    let long = [&[3, 1, 1, 1][..], &[0x81, 0x40], &vec![b'x'; (8 << 10) + 1]].concat();
    let whole = plain_of(&[damage(Some(1), 1)]);
    let changed = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        bytes
    };
    for (rule, bytes) in [
        ("text too long", long),
        ("record code", vec![9]),
        ("cut short", [&[8, 1][..], &[7; 31]].concat()),
        ("segments out of order", [&[7, 0, 2][..], &[2; 16], &[0], &[1; 16], &[0]].concat()),
        ("segments out of order", [&[7, 0, 2][..], &[1; 16], &[0], &[1; 16], &[0]].concat()),
        ("cut short", vec![7, 0, 0xff, 0x7f]),
        ("flag is neither 0 nor 1", changed(whole.len() - 1, 2)),
        ("text is not UTF-8", changed(whole.len() - 2, 0xff)),
        ("number longer than it need be", vec![4, 0x81, 0]),
        ("how", vec![1, 1, 0, 0, 1, 1, 3]),
        ("by", vec![1, 1, 0, 0, 1, 1, 1, 4]),
        ("extent", vec![2, 16, 1, 4]),
        ("cut short", vec![6, 1]),
    ] {
        assert_eq!(decode(&bytes), Err(BadRecord(rule)), "{bytes:02x?}");
    }
}

#[test]
fn a_segment_header_with_other_bytes_is_refused_behind_a_right_tag() {
    let keys = keys();
    let header = SegmentHeader { id: ID, salt: SALT };
    let whole = header.encode(&keys);
    let sealed = |mut bytes: [u8; SEGMENT_HEADER_LEN]| {
        let tag = keys.segment_cipher(ID, &SALT).seal(Domain::Segment, 0, &bytes[..80], &mut []);
        bytes[80..].copy_from_slice(&tag);
        bytes
    };
    assert_eq!(SegmentHeader::decode(&sealed(whole), &keys), Ok(header));
    for at in (0..32).chain([80, 95]) {
        let mut bad = whole;
        bad[at] ^= 1;
        let bad = if at < 80 { sealed(bad) } else { bad };
        assert!(SegmentHeader::decode(&bad, &keys).is_err(), "byte {at}");
    }
}
