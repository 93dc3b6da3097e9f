//! The kept corpora, given to every decoder by each `cargo test`; `ASSAY_BLESS=1 cargo test --lib fuzz` adds what encoders make
//! today, of the backup dir in mount-tests/fixtures and of records that it does not have.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::arc::Packer;
use crate::arc::frame::BlockInfo;
use crate::arc::parity::Percent;
use crate::catalog::codec::encode_record;
use crate::catalog::{Kind, Loss, Named};
use crate::ids::{ArcDigest, ArcName, ArcSerial, BlockId, CopyId, Logid};
use crate::ledger::segment::{
    BATCH_HEADER_LEN, BatchHeader, SEGMENT_HEADER_LEN, SegmentHeader, open_batch, seal_batches,
};
use crate::ledger::{By, Damage, Extent, Files, Flip, Session};

/// What a target is given, as a file that is kept.
type Seeds = BTreeSet<(&'static str, Vec<u8>)>;

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/fuzz/corpus")
}

/// Longer ones only make a fuzzer slow.
const MAX_SEED_BYTES: usize = 2000;

#[test]
fn the_kept_corpora_break_no_law_and_are_understood() {
    if std::env::var_os("ASSAY_BLESS").is_some() {
        for (target, bytes) in made() {
            assert_eq!(decode(target, &bytes), Some(true), "{target}: what an encoder made is refused: {bytes:02x?}");
            if bytes.len() <= MAX_SEED_BYTES {
                let name = hex(&sha256(&bytes)[..8]);
                fs::create_dir_all(kept().join(target)).unwrap();
                fs::write(kept().join(target).join(name), bytes).unwrap();
            }
        }
    }
    for target in targets() {
        let dir = kept().join(target);
        let files = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
        let accepted = files.iter().filter(|file| decode(target, &fs::read(file).unwrap()) == Some(true)).count();
        assert!(accepted > 0, "{target}: none of {} is accepted: ASSAY_BLESS=1 cargo test --lib fuzz", files.len());
    }
    let dirs = fs::read_dir(kept()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(dirs.collect::<BTreeSet<_>>(), targets().map(str::to_string).collect(), "a corpus of no target");
}

fn made() -> Seeds {
    let mut seeds = Seeds::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-tests/fixtures/format2/backup");
    let key_conf = fs::read_to_string(fixture.join("key.conf")).unwrap();
    let (master, id) = keyfile::decode(&key_conf, || None).unwrap();
    let keys = Keys::new(&master, id);
    for entry in fs::read_dir(&fixture).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("arc.") {
            of_arc(&fs::read(path).unwrap(), &keys, &mut seeds);
        }
    }
    for entry in fs::read_dir(fixture.join("ledger")).unwrap() {
        of_segment(&fs::read(entry.unwrap().path()).unwrap(), &keys, &mut seeds);
    }
    by_hand(&mut seeds);
    let without_sum: String =
        key_conf.lines().filter(|line| !line.starts_with("checksum")).map(|line| format!("{line}\n")).collect();
    seeds.insert(("key-conf", without_sum.into()));
    let rows: Vec<Vec<u8>> = seeds.iter().filter_map(|(target, bytes)| row_of(target, bytes)).collect();
    seeds.extend(rows.into_iter().map(|row| ("index-row", row)));
    seeds.insert(("config", fs::read(fixture.join("config.toml")).unwrap()));
    seeds.insert(("config", b"arc-size-limit = 1048577\nblock-size = \"512k\"\n".to_vec()));
    seeds
}

fn of_arc(bytes: &[u8], keys: &Keys, seeds: &mut Seeds) {
    let header = ArcHeader::decode(bytes, keys).unwrap();
    let trailer = ArcTrailer::decode(&bytes[bytes.len() - ARC_TRAILER_LEN..], keys).unwrap();
    // Under the key that the targets have.
    seeds.insert(("arc-header", opened(&header.encode(&KEYS), 88, 40, Domain::Header)));
    seeds.insert(("arc-trailer", opened(&trailer.encode(&KEYS), 56, 8, Domain::Trailer)));
    let cipher = keys.arc_cipher(trailer.id, &trailer.salt);
    let footer = &bytes[trailer.footer_offset as usize..][..trailer.footer_len as usize];
    let (_, table) = frame::open_unknown(keys, &cipher, FrameNo(u32::MAX), footer).unwrap();
    let table = table.into_plain();
    let mut at = ARC_HEADER_LEN;
    for (info, no) in decode_frame_table(&table).unwrap().iter().zip(0..) {
        let sealed = &bytes[at..][..info.frame_len() as usize];
        at += sealed.len();
        let plain = frame::open(keys, &cipher, FrameNo(no), info, sealed).unwrap().into_plain();
        match info.kind {
            FrameKind::Block => drop(seeds.insert(("frame", frame_of(&plain[..plain.len().min(300)])))),
            FrameKind::Commit => of_commit(&plain, seeds),
            _ => of_catalog(&plain, seeds),
        }
    }
    seeds.insert(("frame-table", table));
}

/// A header or trailer, as its target takes it.
fn opened(bytes: &[u8], clear_len: usize, id_at: usize, domain: Domain) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let cipher = KEYS.arc_cipher(ArcId(array_at(&bytes, id_at)), &ArcSalt(array_at(&bytes, id_at + 16)));
    let (clear, rest) = bytes.split_at_mut(clear_len);
    let (inner, tag) = rest.split_last_chunk_mut().unwrap();
    assert!(cipher.open(domain, 0, clear, inner, tag));
    bytes.truncate(bytes.len() - TAG_LEN);
    bytes
}

/// A frame of two blocks, or of one.
fn frame_of(plain: &[u8]) -> Vec<u8> {
    let packed = Packer::new(3).unwrap().pack(plain).unwrap();
    let (first, second) = plain.split_at(plain.len() / 3);
    let both = if first.is_empty() { vec![second] } else { vec![first, second] };
    let blocks = both.into_iter().map(|block| BlockInfo::of(&KEYS, block)).collect();
    let stored_len = packed.stored.len() as u32;
    let info = FrameInfo { kind: FrameKind::Block, codec: packed.codec, stored_len, blocks };
    let table = info.blocks.iter().flat_map(|block| [&block.len.to_le_bytes()[..], &block.hash.0].concat());
    [&info.head(FrameNo(5))[..], &table.collect::<Vec<_>>(), &packed.stored].concat()
}

fn of_commit(plain: &[u8], seeds: &mut Seeds) {
    let commit = Commit::decode(plain).unwrap();
    seeds.extend(commit.version.iter().map(|info| ("version-info", info.encode())));
    seeds.extend(commit.arcs.iter().map(|arc| ("arc-entry", arc.encode())));
    seeds.insert(("commit", plain.to_vec()));
}

/// Frames of a few records: the first ones, and each kind with its directory.
fn of_catalog(plain: &[u8], seeds: &mut Seeds) {
    let all: Vec<Record> = Records::new(plain, |_| Ok(())).unwrap().map(Result::unwrap).collect();
    for few in all.chunks(5).step_by(3).filter(|few| !matches!(few[0], Record::Put { .. } | Record::Remove { .. })) {
        seeds.insert(("records", encoded(few)));
    }
    for record in &all {
        match record {
            Record::Put { item: Named::Node(node), .. } => {
                let attr = &node.attr;
                if attr.kind != Kind::File || attr.size > 3000 || node.logid.0 % 8 == 0 {
                    seeds.insert(("node", codec::encode_node(node)));
                }
            }
            Record::Dir { state: Some(state), .. } => drop(seeds.insert(("dir-state", codec::encode_dir_state(state)))),
            Record::Extents(chunk) => {
                let segments = codec::encode_segments(&chunk.segments);
                seeds.insert(("segments", [&chunk.start.to_le_bytes()[..], &segments].concat()));
            }
            _ => {}
        }
    }
}

fn encoded(records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    records.iter().for_each(|record| encode_record(&mut out, record));
    out
}

fn of_segment(bytes: &[u8], keys: &Keys, seeds: &mut Seeds) {
    let header = SegmentHeader::decode(bytes.first_chunk().unwrap(), keys).unwrap();
    seeds.insert(("ledger-header", header.encode(&KEYS)[..80].to_vec()));
    let (cipher, mut rest) = (keys.segment_cipher(header.id, &header.salt), &bytes[SEGMENT_HEADER_LEN..]);
    for number in 0.. {
        let Some((head, body)) = rest.split_first_chunk::<BATCH_HEADER_LEN>() else { return };
        let head = BatchHeader::decode(head);
        let mut batch = body[..head.body_len()].to_vec();
        open_batch(&cipher, number, &head, &mut batch).unwrap();
        seeds.insert(("ledger-batch", [&head.records.to_le_bytes()[..], &batch[..head.len as usize]].concat()));
        rest = &body[head.body_len()..];
    }
}

/// What the fixture does not have.
fn by_hand(seeds: &mut Seeds) {
    let serial = ArcSerial(300);
    let losses = [
        Loss::Run(Version(3)),
        Loss::Arc { serial, from: 4096 },
        Loss::Frame { serial, frame: FrameNo(7) },
        Loss::Shell(serial),
    ];
    seeds.insert(("records", encoded(&losses.map(Record::AcceptLoss))));
    let (arc, percent) = (ArcName { version: Version(3), number: 1 }, Percent::new(2).unwrap());
    let parity = ParityHeader { arc, id: ArcId([3; 16]), arc_bytes: 70_000, digest: ArcDigest([5; 32]), percent };
    seeds.insert(("parity-header", parity.encode().to_vec()));
    let moves = Record::Relocate { from: BlockId(1 << 24), to: BlockId(5 << 24 | 3) };
    seeds.insert(("records", encoded(&[moves, Record::RemoveVersion(Version(1)), Record::DropArc(serial)])));
    let damage = Damage {
        when_ms: 1_699_999_999_000,
        arc: serial,
        copy: CopyId(0),
        frame: Some(FrameNo(3)),
        count: 9,
        code: "FRAME_BAD_TAG".into(),
        mended: false,
    };
    let events = [
        ledger::Record::History((Version(4), [0xd1; 32])),
        ledger::Record::Damage(damage.clone()),
        ledger::Record::Damage(Damage { frame: None, count: 0, mended: true, ..damage }),
        ledger::Record::Flip(Flip {
            when_s: 1_699_999_999,
            block: BlockId(5),
            byte: 77,
            bit: 3,
            to_one: true,
            again: false,
        }),
        ledger::Record::Session(Session {
            started_s: 1_699_999_000,
            by: By::Mount,
            seconds: 60,
            dirs_listed: 1,
            files_read: 2,
            bytes_read: 300,
        }),
        ledger::Record::Files(Files {
            first: Logid(16),
            count: 5,
            extent: Extent::Whole,
            when_s: 1_699_999_999,
            by: By::Get,
        }),
    ];
    seal_batches(&SEGMENT, 0, events.into_iter(), |batch| {
        let header = BatchHeader::decode(batch.first_chunk().unwrap());
        let mut body = batch[BATCH_HEADER_LEN..].to_vec();
        open_batch(&SEGMENT, 0, &header, &mut body).unwrap();
        seeds.insert(("ledger-batch", [&header.records.to_le_bytes()[..], &body[..header.len as usize]].concat()));
        Ok(())
    })
    .unwrap();
    for plain in [&b""[..], b"x", &[7; 200], b"hello hello hello hello hello hello hello hello hello"] {
        seeds.insert(("frame", frame_of(plain)));
    }
    for text in ["*.o\n/var/tmp/\n!keep.o\n", "# none\n\n/home/*/.cache\n[a-z]?x{b,c}/**/d\\ \n"] {
        seeds.insert(("excludes", text.into()));
    }
    for word in ["arc.3.1", "r12", "b12.34.5", "1d/30d,500MB", "12h/2w", "7d4w12m1y", "2w", "5", "1.5GiB", "64KiB"] {
        seeds.insert(("words", word.into()));
    }
    let digest = [9; 32];
    for row in [
        // Counters, a last commit, sizes, a newest version; an entry; what is read elsewhere, lost, in one part.
        [&[1, 5, 20, 2, 4, 4, 1, 3][..], &digest, &[10, 20, 30, 1, 3], &digest].concat(),
        [&[6, 0, 1, 16][..], &[8; 16]].concat(),
        vec![6, 3, 2, 4],
        vec![5, 0x80, 0x80, 0x80, 8],
        vec![10, 4],
        vec![11, 0, b'x'],
        // Runs that were begun, arcs that nobody uses, a loss that was accepted.
        [&[20, 1, 3][..], &[7; 16]].concat(),
        vec![21, 2, 5, 2, 9, 1],
        vec![22, 1, 3, 5, 6],
    ] {
        seeds.insert(("index-row", row));
    }
}

/// A row of the index that holds what another target takes.
fn row_of(target: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let before: Vec<u8> = match target {
        "version-info" => [&[2, 0, 1][..], &[9; 32], &[3]].concat(),
        "arc-entry" => vec![3, 0, *bytes.get(1)?],
        "frame-table" => [&[4][..], &112u64.to_le_bytes()].concat(),
        "node" => vec![7, 5],
        "dir-state" => vec![8, 0, 1, b'n', 0],
        _ => return None,
    };
    Some([before, bytes.to_vec()].concat())
}
