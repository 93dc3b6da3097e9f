//! docs/format.md: constants, offsets, codes, derived keys and examples against the code.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{file, table};
use crate::arc::{
    ARC_HEADER_LEN, ARC_TRAILER_LEN, ArcHeader, ArcTrailer, BlockInfo, Codec, FrameInfo, FrameKind, parity, shell,
    writer,
};
use crate::catalog::codec::{Encoder, encode_record};
use crate::catalog::{ArcRole, Attr, Content, ExtentChunk, Kind, Listing, Loss, Named, Node, Record, Timespec};
use crate::crypto::Keys;
use crate::ids::{
    ArcDigest, ArcId, ArcName, ArcSalt, ArcSerial, BackupId, BlockHash, BlockId, Dirno, FrameNo, Logid, SegmentId,
    Version,
};

const MASTER: [u8; 32] = [0x5a; 32];
const ID: BackupId = BackupId([0xb1; 16]);
const LAYOUT: &str = "| offset | bytes | field |";

fn page() -> String {
    file("docs/format.md")
}

fn keys() -> Keys {
    Keys::new(&Zeroizing::new(MASTER), ID)
}

/// (offset, length) of each field of a layout table, which must tile `0..total`.
fn layout(heading: &str, total: usize) -> impl Fn(&str) -> std::ops::Range<usize> {
    let mut at = 0;
    let fields: Vec<(String, std::ops::Range<usize>)> = table(&page(), heading, LAYOUT)
        .into_iter()
        .map(|row| {
            let (offset, bytes): (usize, usize) = (row[0].parse().unwrap(), row[1].parse().unwrap());
            assert_eq!(offset, at, "{heading}: {row:?} does not begin where the field before ends");
            at += bytes;
            (row[2].clone(), offset..at)
        })
        .collect();
    assert_eq!(at, total, "{heading}: the fields do not add up");
    let heading = heading.to_string();
    move |start| {
        let mut found = fields.iter().filter(|(name, _)| name.starts_with(start));
        let range = found.next().unwrap_or_else(|| panic!("{heading}: no field {start}")).1.clone();
        assert!(found.next().is_none(), "{heading}: two fields {start}");
        range
    }
}

#[test]
fn the_arc_header_is_laid_out_as_described() {
    let (id, salt) = (ArcId([0x1d; 16]), ArcSalt([0x5a; 32]));
    let name = ArcName { version: Version(0x01_02_03), number: 0x0405_0607 };
    let bytes = ArcHeader { name, role: ArcRole::Catalog, id, salt }.encode(&keys());
    let at = layout("### Arc header", ARC_HEADER_LEN);
    assert_eq!(&bytes[at("magic")], b"ASSAYARC");
    assert_eq!(bytes[at("format version")], shell::FORMAT.to_le_bytes());
    for zeros in ["compatible", "read-only", "incompatible"] {
        assert_eq!(bytes[at(zeros)], [0, 0]);
    }
    assert_eq!(bytes[at("V of")], [3, 2, 1, 0]);
    assert_eq!(bytes[at("N of")], [7, 6, 5, 4]);
    assert_eq!(bytes[at("backup id")], ID.0);
    assert_eq!(bytes[at("arc id")], id.0);
    assert_eq!(bytes[at("salt")], salt.0);
    let sealed = at("role").start;
    assert_eq!((at("zero").len(), at("tag").len()), (7, 16));
    let (clear, plain) = (&bytes[..sealed], [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[sealed..], described_seal(id, salt, "arc header", 0, clear, &plain));
}

#[test]
fn the_arc_trailer_is_laid_out_as_described() {
    let (id, salt) = (ArcId([0x1d; 16]), ArcSalt([0x5a; 32]));
    let trailer = ArcTrailer {
        role: ArcRole::Data,
        id,
        salt,
        footer_offset: 0x0102_0304_0506,
        footer_len: 0x0708,
        frames: 0x090a,
    };
    let bytes = trailer.encode(&keys());
    let at = layout("### Arc trailer", ARC_TRAILER_LEN);
    assert_eq!(&bytes[at("magic")], b"ASSAYEND");
    assert_eq!((&bytes[at("arc id")], &bytes[at("salt")]), (&id.0[..], &salt.0[..]));
    let sealed = at("offset of").start;
    let mut plain = vec![0; at("tag").start - sealed];
    let mut put = |field, value: &[u8]| plain[at(field).start - sealed..at(field).end - sealed].copy_from_slice(value);
    put("offset of", &[6, 5, 4, 3, 2, 1, 0, 0]);
    put("length of", &[8, 7, 0, 0]);
    put("number of", &[10, 9, 0, 0]);
    put("role", &[1]);
    put("format version", &shell::FORMAT.to_le_bytes());
    assert_eq!(bytes[sealed..], described_seal(id, salt, "arc trailer", 0, &bytes[..sealed], &plain));
}

#[test]
fn the_parity_header_is_laid_out_as_described() {
    let (id, digest) = (ArcId([0x1d; 16]), ArcDigest([0x5d; 32]));
    let name = ArcName { version: Version(0x01_02_03), number: 0x0405_0607 };
    let percent = parity::Percent::new(2).unwrap();
    let bytes = parity::ParityHeader { arc: name, id, arc_bytes: 0x0102_0304, digest, percent }.encode();
    let at = layout("### Parity header", parity::PARITY_HEADER_LEN);
    assert_eq!((&bytes[at("magic")], &bytes[at("layout")]), (&b"ASSAYPAR"[..], &[1, 0][..]));
    assert_eq!((&bytes[at("percent")], &bytes[at("bytes of")]), (&[2, 0][..], &[0, 16, 0, 0][..]));
    assert_eq!((&bytes[at("V of")], &bytes[at("N of")]), (&[3, 2, 1, 0][..], &[7, 6, 5, 4][..]));
    assert_eq!((&bytes[at("arc id")], &bytes[at("length of")]), (&id.0[..], &[4, 3, 2, 1, 0, 0, 0, 0][..]));
    // 2 % of 16,384 shards.
    assert_eq!((&bytes[at("shards of")], &bytes[at("parity shards")]), (&[0, 64, 0, 0][..], &[72, 1, 0, 0][..]));
    assert_eq!((&bytes[at("SHA-256 of the arc")], &bytes[at("zero")]), (&digest.0[..], &[0; 8][..]));
    assert_eq!(bytes[at("first bytes")], crate::crypto::sha256(&bytes[..96])[..16]);
}

#[test]
fn frames_and_frame_tables_are_laid_out_and_sealed_as_described() {
    let (id, salt) = (ArcId([7; 16]), ArcSalt([8; 32]));
    let cipher = keys().arc_cipher(id, &salt);
    let stored = b"stored bytes";
    let block = |len, byte| BlockInfo { len, hash: BlockHash([byte; 20]) };
    let both = vec![block(0x0102_0304, 0xaa), block(300, 0xbb)];
    let (number, of_footer) = (0x0506, writer::FOOTER_NO.0);
    for (kind, code, blocks, what, no) in [
        (FrameKind::Block, 1, both.clone(), "frame", number),
        (FrameKind::Catalog, 2, both[..1].to_vec(), "frame", number),
        (FrameKind::Footer, 4, both[..1].to_vec(), "footer frame", of_footer),
    ] {
        let info = FrameInfo { kind, codec: Codec::Zstd, stored_len: stored.len() as u32, blocks };
        let at = layout("### Head", 16);
        let mut head = vec![0; 16];
        let mut put = |field, value: &[u8]| head[at(field)].copy_from_slice(value);
        put("frame number", &no.to_le_bytes());
        put("kind", &[code]);
        put("codec", &[1]);
        put("number of blocks", &(info.blocks.len() as u16).to_le_bytes());
        put("stored length", &[12, 0, 0, 0]);
        put("plain length", &info.plain_len().to_le_bytes());
        let at = layout("### Body", 24);
        let mut body = Vec::new();
        for block in &info.blocks {
            let mut entry = vec![0; 24];
            entry[at("plain length")].copy_from_slice(&block.len.to_le_bytes());
            entry[at("block hash")].copy_from_slice(&block.hash.0);
            body.extend(entry);
        }
        body.extend_from_slice(stored);
        let described = [
            described_seal(id, salt, "frame head", u64::from(no), &[], &head),
            described_seal(id, salt, what, u64::from(no), &head, &body),
        ];
        assert_eq!(crate::arc::frame::seal(&cipher, FrameNo(no), &info, stored), described.concat());
        assert_eq!(info.frame_len() as usize, described.concat().len());

        let mut e = Encoder::default();
        e.u8(code);
        e.u8(1);
        e.uint(12);
        e.uint(info.blocks.len() as u64);
        for block in &info.blocks {
            e.uint(u64::from(block.len));
            e.raw(&block.hash.0);
        }
        assert_eq!(info.encode(), e.0, "### Footer");
    }
    assert!(page().contains(&format!("frame number; {of_footer} in the footer")));
    let overhead = (crate::arc::FRAME_OVERHEAD, crate::arc::BLOCK_ENTRY_LEN);
    assert!(page().contains(&format!("takes {} bytes and {} a block beyond", overhead.0, overhead.1)));
}

/// Info strings of "Derived keys", by the name of the key.
fn info_of(key: &str) -> (Vec<u8>, usize) {
    let rows = table(&page(), "### Derived keys", "| key | info (ASCII) | bytes | use |");
    let row = rows.into_iter().find(|row| row[0] == key).unwrap_or_else(|| panic!("no key {key}"));
    (row[1].split(" ‖ ").next().unwrap().as_bytes().to_vec(), row[2].parse().unwrap())
}

fn described_key(key: &str, more: &[u8]) -> Vec<u8> {
    let (mut info, len) = info_of(key);
    info.extend_from_slice(more);
    let mut out = vec![0; len];
    Hkdf::<Sha256>::new(Some(&ID.0), &MASTER).expand(&info, &mut out).unwrap();
    out
}

/// Ciphertext ‖ tag of something in an arc, made as "Nonces and associated data" says.
fn described_seal(id: ArcId, salt: ArcSalt, what: &str, number: u64, header: &[u8], plain: &[u8]) -> Vec<u8> {
    let key = described_key("arc", &[&id.0[..], &salt.0[..]].concat());
    described_seal_by(&key, id, what, number, header, plain)
}

fn described_seal_by(key: &[u8], id: ArcId, what: &str, number: u64, header: &[u8], plain: &[u8]) -> Vec<u8> {
    let rows = table(&page(), "### Nonces and associated data", "| domain | what | number | header part |");
    let domain: u32 = rows.iter().find(|row| row[1] == what).unwrap()[0].parse().unwrap();
    let key: [u8; 32] = key.try_into().unwrap();
    let nonce: [u8; 12] = [&domain.to_be_bytes()[..], &number.to_be_bytes()[..]].concat().try_into().unwrap();
    let aad = [b"assay v2", &ID.0[..], &id.0[..], header].concat();
    let mut bytes = plain.to_vec();
    let tag = Aes256Gcm::new(&key.into())
        .encrypt_inout_detached(&Nonce::from(nonce), &aad, bytes.as_mut_slice().into())
        .unwrap();
    bytes.extend_from_slice(&tag);
    bytes
}

#[test]
fn the_mark_of_a_destination_is_laid_out_as_described() {
    use crate::dest::mark::{MARK_FORMAT, MARK_LEN, Mark};
    let salt = ArcSalt([0x5a; 32]);
    let mark = Mark { id: crate::ids::DestId([0xd1; 16]), copy: crate::ids::CopyId(0x0102) };
    let bytes = mark.encode(&keys(), &salt);
    let at = layout("### Mark", MARK_LEN);
    assert_eq!((&bytes[at("magic")], &bytes[at("zero")]), (&b"ASSAYDST"[..], &[0; 6][..]));
    assert_eq!(bytes[at("format version")], MARK_FORMAT.to_le_bytes());
    assert_eq!((&bytes[at("backup id")], &bytes[at("salt")]), (&ID.0[..], &salt.0[..]));
    let sealed = at("sealed: destination id").start;
    assert_eq!((at("sealed: copy number").end, at("tag").len()), (82, 16));
    let plain = [&[0xd1; 16][..], &[2, 1]].concat();
    let key = described_key("destination", &[&[0; 16][..], &salt.0[..]].concat());
    let wanted = described_seal_by(&key, ArcId([0; 16]), "mark", 0, &bytes[..sealed], &plain);
    assert_eq!(bytes[sealed..], wanted);
}

#[test]
fn keys_are_derived_as_described() {
    let keys = keys();
    assert_eq!(keys.index_key().to_vec(), described_key("index", &[]));
    assert_eq!(keys.chunker_seed().to_le_bytes().to_vec(), described_key("chunker seed", &[]));
    let mut mac = <Hmac<Sha1> as hmac::KeyInit>::new_from_slice(&described_key("block hash", &[])).unwrap();
    mac.update(b"some block");
    assert_eq!(keys.block_hash(b"some block").0[..], mac.finalize().into_bytes()[..]);
}

#[test]
fn a_ledger_segment_is_laid_out_and_sealed_as_described() {
    use crate::ledger::segment::{BATCH_HEADER_LEN, SEGMENT_HEADER_LEN, SegmentHeader, seal_batches};
    let (id, salt) = (SegmentId([0x1d; 16]), ArcSalt([0x5a; 32]));
    let cipher = keys().segment_cipher(id, &salt);
    let key = described_key("ledger", &[&id.0[..], &salt.0[..]].concat());
    let bytes = SegmentHeader { id, salt }.encode(&keys());
    let at = layout("### Segment header", SEGMENT_HEADER_LEN);
    assert_eq!((&bytes[at("magic")], &bytes[at("format")]), (&b"ASSAYLED"[..], &[2, 0][..]));
    assert_eq!(bytes[at("zero")], [0; 6]);
    assert_eq!((&bytes[at("backup id")], &bytes[at("segment id")]), (&ID.0[..], &id.0[..]));
    assert_eq!(bytes[at("salt")], salt.0);
    let tag = at("tag");
    let arc = ArcId(id.0);
    assert_eq!(bytes[tag.clone()], described_seal_by(&key, arc, "segment header", 0, &bytes[..tag.start], &[]));

    let records = ledger_records();
    let mut batch = Vec::new();
    let next = seal_batches(&cipher, 0x0102, records.iter().map(|(_, record)| record.clone()), |bytes| {
        batch.extend_from_slice(bytes);
        Ok(())
    });
    assert_eq!(next.unwrap(), 0x0103);
    let at = layout("### Batch", BATCH_HEADER_LEN);
    let (header, sealed) = batch.split_at(BATCH_HEADER_LEN);
    assert_eq!((&header[at("batch number")], &header[at("number of records")]), (&[2, 1, 0, 0][..], &[8, 0, 0, 0][..]));
    assert_eq!(header[at("sealed length")], (sealed.len() as u32 - 16).to_le_bytes());
    // By the fields of the table: all numbers here are below 128, so a byte each.
    let plain = [
        &[1, 7, 0, 3, 4, 100, 2, 3][..],
        &[2, 16, 5, 3, 100, 1],
        &[3, 100, 9, 3, 2, b'1', b'd', 0, 10, 11, 12, 13],
        &[4, 100, 7, 0, 4, 2, 1, b'X', 1],
        &[5, 100, 1, 2, 3, 1, 0],
        &[6, 100, 2, 1, 2, 3, 4],
        &[&[7, 100, 1][..], &[0x2e; 16], &[5]].concat(),
        &[&[8, 6][..], &[0xd1; 32]].concat(),
    ]
    .concat();
    assert_eq!(sealed, described_seal_by(&key, arc, "batch", 0x0102, header, &plain));
}

fn ledger_records() -> Vec<(&'static str, crate::ledger::Record)> {
    use crate::ledger::{By, Damage, Extent, Files, Flip, Frames, How, Listed, Proof, Record, Run, Session};
    let (arc, copy, when_s) = (ArcSerial(7), crate::ids::CopyId(0), 100);
    let proof = Proof { when_s, how: How::Medium, by: By::Selftest };
    let run = Run {
        when_s,
        seconds: 9,
        level: 3,
        inc: Some("1d".into()),
        scope: String::new(),
        blocks: 10,
        bytes: 11,
        findings: 12,
        fixed: 13,
    };
    let damage =
        Damage { when_ms: when_s, arc, copy, frame: Some(FrameNo(3)), count: 2, code: "X".into(), mended: true };
    let flip = Flip { when_s, block: BlockId(1), byte: 2, bit: 3, to_one: true, again: false };
    let session = Session { started_s: when_s, by: By::Get, seconds: 1, dirs_listed: 2, files_read: 3, bytes_read: 4 };
    vec![
        ("Frames", Record::Frames(Frames { arc, copy, first: FrameNo(3), count: 4, proof })),
        ("Files", Record::Files(Files { first: Logid(16), count: 5, extent: Extent::Hashed, when_s, by: By::Mount })),
        ("Run", Record::Run(run)),
        ("Damage", Record::Damage(damage)),
        ("Flip", Record::Flip(flip)),
        ("Session", Record::Session(session)),
        ("Listed", Record::Listed(Listed { doubt_s: 100, segments: [(SegmentId([0x2e; 16]), 5)].into() })),
        ("History", Record::History((Version(6), [0xd1; 32]))),
    ]
}

#[test]
fn ledger_codes_are_the_described_ones() {
    use crate::ledger::{By, Extent, How};
    let named_records: Vec<(u8, String)> =
        ledger_records().iter().zip(1..).map(|((name, _), code)| (code, (*name).to_string())).collect();
    assert_eq!(codes("### Ledger records", "| code | record | fields |"), named_records);
    let how = [(How::Read as u8, "read"), (How::Medium as u8, "medium")];
    assert_eq!(codes("### Ledger records", "| code | how | meaning |"), named(&how));
    let by = [(By::Mount as u8, "mount"), (By::Get as u8, "get"), (By::Selftest as u8, "selftest")];
    assert_eq!(codes("### Ledger records", "| code | by | meaning |"), named(&by));
    let extents = [(Extent::Part as u8, "part"), (Extent::Whole as u8, "whole"), (Extent::Hashed as u8, "hashed")];
    assert_eq!(codes("### Ledger records", "| code | extent | meaning |"), named(&extents));
}

/// Code → name of a table.
fn codes(heading: &str, header: &str) -> Vec<(u8, String)> {
    table(&page(), heading, header).into_iter().map(|row| (row[0].parse().unwrap(), row[1].clone())).collect()
}

fn named(pairs: &[(u8, &str)]) -> Vec<(u8, String)> {
    pairs.iter().map(|(code, name)| (*code, (*name).to_string())).collect()
}

#[test]
fn codes_are_the_described_ones() {
    use {ArcRole as R, FrameKind as F, Kind as K, Listing as L};
    let roles = [(R::Data as u8, "data"), (R::Catalog as u8, "catalog"), (R::Commit as u8, "commit")];
    assert_eq!(codes("### Roles", "| code | role | frames in it |"), named(&roles));
    let kinds = [
        (F::Block as u8, "block"),
        (F::Catalog as u8, "catalog"),
        (F::Commit as u8, "commit"),
        (F::Footer as u8, "footer"),
    ];
    assert_eq!(codes("## Frame", "| code | kind |"), named(&kinds));
    let codecs: Vec<(u8, String)> = codes("## Frame", "| code | codec |")
        .into_iter()
        .map(|(code, name)| (code, name.split([':', ',']).next().unwrap().to_string()))
        .collect();
    assert_eq!(codecs, named(&[(Codec::Plain as u8, "plain"), (Codec::Zstd as u8, "zstd")]));
    let listings =
        [(L::Delta as u8, "delta"), (L::Full as u8, "full"), (L::FullMore as u8, "full-more"), (L::Lost as u8, "lost")];
    assert_eq!(codes("### Records", "| code | listing | meaning |"), named(&listings));
    let types = [
        (K::File as u8, "file"),
        (K::Dir as u8, "dir"),
        (K::Symlink as u8, "symlink"),
        (K::Fifo as u8, "fifo"),
        (K::Socket as u8, "socket"),
        (K::CharDevice as u8, "character device"),
        (K::BlockDevice as u8, "block device"),
    ];
    assert_eq!(codes("### File types", "| code | type |"), named(&types));
    for code in 0..=u8::MAX {
        assert_eq!(Kind::from_code(code).is_some(), types.iter().any(|(known, _)| *known == code));
    }
}

#[test]
fn record_codes_are_the_described_ones() {
    let records = [
        (
            "Dir",
            Record::Dir { dirno: Dirno(1), parent: Dirno(0), name: b"d".to_vec(), listing: Listing::Full, state: None },
        ),
        ("Put", Record::Put { name: b"n".to_vec(), item: Named::Dir(Dirno(1)) }),
        ("Remove", Record::Remove { name: b"n".to_vec() }),
        ("Extents", Record::Extents(ExtentChunk { logid: Logid(16), start: 0, segments: vec![] })),
        ("RemoveVersion", Record::RemoveVersion(Version(1))),
        ("Relocate", Record::Relocate { from: BlockId(1), to: BlockId(2) }),
        ("DropArc", Record::DropArc(ArcSerial(1))),
        ("AcceptLoss", Record::AcceptLoss(Loss::Run(Version(1)))),
        ("RemovePath", Record::RemovePath { dirno: Dirno(0), name: b"n".to_vec() }),
    ];
    let serial = ArcSerial(1);
    let losses = [
        ("Run", Loss::Run(Version(1))),
        ("Arc", Loss::Arc { serial, from: 0 }),
        ("Frame", Loss::Frame { serial, frame: FrameNo(0) }),
        ("Shell", Loss::Shell(serial)),
    ];
    let coded: Vec<(u8, String)> = losses
        .iter()
        .map(|(name, loss)| {
            let mut bytes = Vec::new();
            encode_record(&mut bytes, &Record::AcceptLoss(*loss));
            (bytes[1], (*name).to_string())
        })
        .collect();
    assert_eq!(codes("### Records", "| code | loss | fields |"), coded);
    let coded: Vec<(u8, String)> = records
        .iter()
        .map(|(name, record)| {
            let mut bytes = Vec::new();
            encode_record(&mut bytes, record);
            (bytes[0], (*name).to_string())
        })
        .collect();
    assert_eq!(codes("### Records", "| code | record | fields |"), coded);
}

#[test]
fn node_flags_are_the_described_ones() {
    let attr = Attr {
        kind: Kind::File,
        perm: 0,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: Timespec::default(),
        ctime: Timespec::default(),
        nlink: 1,
        rdev_major: 0,
        rdev_minor: 0,
        source_ino: 0,
    };
    let plain = Node {
        logid: Logid(16),
        attr,
        data_bytes: 0,
        racy: false,
        sha1: None,
        target: vec![],
        xattrs: vec![],
        content: Content::Inline(vec![]),
    };
    // logid, type, perm, uid, gid, size, two times of two numbers, links, inode, data bytes: a byte each.
    let flags = |node: &Node| crate::catalog::codec::encode_node(node)[13];
    assert_eq!(flags(&plain), 0);
    let coded = [
        (flags(&Node { racy: true, ..plain.clone() }), "racy".to_string()),
        (flags(&Node { sha1: Some(crate::ids::FileHash([0; 20])), ..plain.clone() }), "sha1".to_string()),
        (
            flags(&Node { content: Content::Chunked(crate::ids::SegmentsDigest([0; 32])), ..plain }),
            "chunked".to_string(),
        ),
    ];
    assert_eq!(codes("### Node", "| flag | name | meaning |"), coded);
}

#[test]
fn examples_are_right() {
    for row in table(&page(), "## Numbers and strings", "| value | as | bytes |") {
        let mut encoder = Encoder::default();
        match row[1].as_str() {
            "number" => encoder.uint(row[0].parse().unwrap()),
            "signed" => encoder.int(row[0].parse().unwrap()),
            "string" => encoder.bytes(row[0].as_bytes()),
            other => panic!("{other}"),
        }
        let shown: Vec<String> = encoder.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(shown.join(" "), row[2], "{row:?}");
    }
}

/// Value of an integer expression such as `64 << 20`, `64 * 1024` or `0x4173_6179`.
fn value_of(expression: &str) -> u64 {
    let number = |text: &str| {
        let digits = text.trim().replace('_', "");
        match digits.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
            None => digits.parse().unwrap_or_else(|_| panic!("{expression}")),
        }
    };
    match expression.split_once("<<") {
        Some((base, shift)) => number(base) << number(shift),
        None => expression.split('*').map(number).product(),
    }
}

#[test]
fn constants_are_those_of_the_source() {
    let rows = table(&page(), "### Constants", "| constant | value | source |");
    let bounds = table(&file("docs/architecture.md"), "## Bounds", "| constant | value | source | bounds |");
    for row in rows.iter().chain(&bounds) {
        let (name, value, source) = (&row[0], &row[1], &row[2]);
        let text = file(&format!("src/{source}"));
        let line = text
            .lines()
            .find(|line| line.contains(&format!("const {name}: ")))
            .unwrap_or_else(|| panic!("src/{source} has no {name}"));
        let expression = line.split_once(" = ").unwrap().1.trim_end_matches(';');
        assert_eq!(value_of(expression), value.parse::<u64>().unwrap(), "{name} in src/{source}");
    }
}

#[test]
fn the_map_of_modules_lists_all_in_the_order_of_the_tests() {
    let rows = table(&file("docs/architecture.md"), "## Modules", "| module | does |");
    let listed: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    let rules = file("mount-tests/project.rs");
    let order = rules.split_once("const ORDER: &[&str] = &[").unwrap().1.split_once("];").unwrap().0;
    let order: Vec<&str> = order.split('"').skip(1).step_by(2).filter(|name| !name.ends_with("_tests")).collect();
    assert_eq!(listed, order);
    let root = file("src/lib.rs");
    fn module(line: &str) -> Option<&str> {
        line.trim_start_matches("pub ").trim_start_matches("pub(crate) ").strip_prefix("mod ")?.strip_suffix(';')
    }
    let mut declared: Vec<&str> = root.lines().filter_map(module).filter(|name| !name.ends_with("_tests")).collect();
    let mut sorted = listed;
    sorted.sort_unstable();
    declared.sort_unstable();
    assert_eq!(declared, sorted);
}

#[test]
fn the_tables_of_the_index_are_the_described_ones() {
    let text = page();
    let sql = text.split_once("```sql\n").unwrap().1.split_once("```").unwrap().0;
    assert!(file("src/index/schema.rs").contains(sql), "docs/format.md, Index: not the SQL of src/index/schema.rs");
    let rows = table(&text, "## Index", "| table | key | row |");
    for row in &rows {
        assert!(sql.contains(&format!("CREATE TABLE {}(", row[0])), "{row:?}");
    }
    assert_eq!(rows.len(), sql.matches("CREATE TABLE").count());
}
