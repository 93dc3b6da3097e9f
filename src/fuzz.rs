//! What contrib/fuzz asks of every decoder of what a backup dir holds, behind any seal: whatever the bytes, it refuses them
//! or gives a value that is written again as those bytes. Nobody else uses it.
//!
//! Invariants: a law that is broken is a panic; seals are made here, under a key that is known, so that no decoder is shielded by
//! one; no I/O, but that patterns are looked up where they stand.

use std::sync::LazyLock;

use zeroize::Zeroizing;

use crate::arc::frame::{self, BLOCK_ENTRY_LEN, FrameInfo, FrameKind};
use crate::arc::parity::ParityHeader;
use crate::arc::{ARC_HEADER_LEN, ARC_TRAILER_LEN, ArcHeader, ArcTrailer, decode_frame_table};
use crate::backupdir::Config;
use crate::backupdir::config::parse_size;
use crate::catalog::codec::{self, Records};
use crate::catalog::{ArcEntry, Commit, Record, VersionInfo, digest};
use crate::crypto::{ArcCipher, Domain, Keys, TAG_LEN, keyfile, sha256};
use crate::ids::{ArcId, ArcName, ArcSalt, BackupId, FrameNo, SegmentId, Version};
use crate::live::Excludes;
use crate::prune::rules;
use crate::selftest::{BlockRef, Schedule};
use crate::text::hex;
use crate::{index, ledger};

/// Asks one decoder; true if it accepts the bytes.
type Target = fn(&[u8]) -> bool;

/// Each by its name, in the order of docs/format.md.
const TARGETS: &[(&str, Target)] = &[
    ("key-conf", key_conf),
    ("config", config),
    ("excludes", excludes),
    ("words", words),
    ("arc-header", arc_header),
    ("arc-trailer", arc_trailer),
    ("frame", a_frame),
    ("frame-table", frame_table),
    ("records", records),
    ("node", |bytes| again(bytes, codec::decode_node(bytes), codec::encode_node)),
    ("dir-state", |bytes| again(bytes, codec::decode_dir_state(bytes), codec::encode_dir_state)),
    ("segments", segments),
    ("commit", |bytes| again(bytes, Commit::decode(bytes), Commit::encode)),
    ("version-info", |bytes| again(bytes, VersionInfo::decode(bytes), VersionInfo::encode)),
    ("arc-entry", |bytes| again(bytes, ArcEntry::decode(bytes), ArcEntry::encode)),
    ("parity-header", |bytes| again(bytes, ParityHeader::decode(bytes).ok_or(()), |header| header.encode().to_vec())),
    ("index-row", index_row),
    ("ledger-header", ledger_header),
    ("ledger-batch", ledger_batch),
];

/// Names of all targets.
pub fn targets() -> impl Iterator<Item = &'static str> {
    TARGETS.iter().map(|(name, _)| *name)
}

/// Gives bytes to the decoder of this name and tells whether it accepts them; None if there is no such target.
pub fn decode(target: &str, bytes: &[u8]) -> Option<bool> {
    TARGETS.iter().find(|(name, _)| *name == target).map(|(_, ask)| ask(bytes))
}

/// The law: what is accepted is written again, byte for byte.
fn again<T, E>(bytes: &[u8], decoded: Result<T, E>, encode: impl FnOnce(&T) -> Vec<u8>) -> bool {
    let Ok(value) = decoded else { return false };
    assert!(encode(&value) == bytes, "accepted, and written again as other bytes");
    true
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::new(&Zeroizing::new([1; 32]), BackupId([2; 16])));
static ARC: LazyLock<ArcCipher> = LazyLock::new(|| KEYS.arc_cipher(ArcId([3; 16]), &ArcSalt([4; 32])));
static SEGMENT: LazyLock<ArcCipher> = LazyLock::new(|| KEYS.segment_cipher(SegmentId([3; 16]), &ArcSalt([4; 32])));

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

// --- text -------------------------------------------------------------------------------------------------------

/// The text without its checksum, which is made here as docs/format.md says it.
fn key_conf(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let checksum = toml::from_str::<toml::Table>(text).ok().map(|table| checksum(&table));
    let text = checksum.map_or(text.to_string(), |sum| format!("checksum = \"{sum}\"\n{text}"));
    let Ok((master, id)) = keyfile::decode(&text, || None) else { return false };
    let written = keyfile::encode(&master, id, None).and_then(|text| keyfile::decode(&text, || None));
    assert!(written == Ok((master, id)), "accepted, and written as another key");
    true
}

fn checksum(table: &toml::Table) -> String {
    let plain = |value: &toml::Value| value.as_str().map_or(value.to_string(), str::to_string);
    let key = table.get("key").map(plain);
    let wrapped = table.get("wrapped").and_then(toml::Value::as_table).map(|wrapped| {
        let parts = ["kdf", "memory_kib", "passes", "lanes", "salt", "sealed"];
        parts.map(|part| wrapped.get(part).map(plain).unwrap_or_default()).join("/")
    });
    let head = ["format", "backup_id"].map(|name| table.get(name).map(plain).unwrap_or_default());
    let [format, backup_id] = head;
    let sum = sha256(format!("{format}/{backup_id}/{key:?}/{wrapped:?}").as_bytes());
    hex(sum.first_chunk::<16>().unwrap_or(&[0; 16]))
}

fn config(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let Ok(config) = Config::parse(text) else { return false };
    // As it is written it has whole KiB and MiB.
    let whole = |bytes: u64, unit: u64| bytes / unit * unit;
    let wanted = Config {
        arc_size_limit: whole(config.arc_size_limit, 1 << 20),
        cache_size_limit: config.cache_size_limit,
        ..config.clone()
    };
    assert!(Config::parse(&config.to_text()) == Ok(wanted), "accepted, and written as other settings");
    true
}

fn excludes(bytes: &[u8]) -> bool {
    let Ok(excludes) = Excludes::parse("inex.conf".as_ref(), bytes, &[]) else { return false };
    for path in [&b"/a"[..], b"/home/ann/file.o", b"/\xff/\n/...", &[b"/a".repeat(60), b"/b".to_vec()].concat()] {
        for is_dir in [false, true] {
            excludes.excludes_kind(path, is_dir);
        }
    }
    excludes.in_vain(&[b"/home".to_vec()]);
    // An error only if the patterns can't be used together.
    let _ = excludes.below_given(b"/home/ann/file.o", false);
    true
}

/// One word: names of arcs, versions, blocks, schedules, rules, sizes.
fn words(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let mut accepted = parse_size(text).is_ok() | rules::parse_last(text).is_ok() | rules::parse_schedule(text).is_ok();
    let mut exactly = |value: Option<String>| {
        assert!(value.as_deref().is_none_or(|value| value == text), "accepted, and shown as another word");
        accepted |= value.is_some();
    };
    exactly(ArcName::parse(text).map(|name| name.to_string()));
    if let Ok(BlockRef::Id(id)) = text.parse() {
        exactly(Some(id.to_string()));
    }
    if let Ok(version) = text.parse::<Version>() {
        assert!(version.to_string().parse() == Ok(version), "shown as another version");
        accepted = true;
    }
    if let Ok(schedule) = text.parse::<Schedule>() {
        assert!(schedule.to_string().parse() == Ok(schedule), "shown as another schedule");
        accepted = true;
    }
    accepted
}

// --- arcs -------------------------------------------------------------------------------------------------------

/// Puts a seal on the last bytes of a header or trailer.
fn sealed<const N: usize>(bytes: &[u8], clear_len: usize, id_at: usize, domain: Domain) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    let cipher = KEYS.arc_cipher(ArcId(array_at(&out, id_at)), &ArcSalt(array_at(&out, id_at + 16)));
    let (clear, rest) = out.split_at_mut(clear_len);
    if let Some((inner, tag)) = rest.split_last_chunk_mut::<TAG_LEN>() {
        *tag = cipher.seal(domain, 0, clear, inner);
    }
    out
}

/// A header before it is sealed, without its tag.
fn arc_header(bytes: &[u8]) -> bool {
    let mut bytes: [u8; ARC_HEADER_LEN] = sealed(bytes, 88, 40, Domain::Header);
    let Ok(header) = ArcHeader::decode(&bytes, &KEYS) else { return false };
    // Features that are ignored are the one thing that is not written again: they are part of what is sealed over.
    if array_at::<4>(&bytes, 10) == [0; 4] {
        return again(&bytes, Ok::<_, ()>(header), |header| header.encode(&KEYS).to_vec());
    }
    bytes.iter_mut().skip(10).take(4).for_each(|byte| *byte = 0);
    assert!(header.encode(&KEYS).starts_with(bytes.get(..88).unwrap_or_default()), "another header");
    true
}

fn arc_trailer(bytes: &[u8]) -> bool {
    let bytes: [u8; ARC_TRAILER_LEN] = sealed(bytes, 56, 8, Domain::Trailer);
    again(&bytes, ArcTrailer::decode(&bytes, &KEYS), |trailer| trailer.encode(&KEYS).to_vec())
}

/// Head, table and stored bytes of a frame before they are sealed. Hashes of blocks are made here, by another way to the plain
/// bytes.
fn a_frame(bytes: &[u8]) -> bool {
    let Some((head, body)) = bytes.split_first_chunk::<16>() else { return false };
    let [n0, n1, n2, n3, kind, codec, b0, b1, ..] = *head;
    let no = FrameNo(u32::from_le_bytes([n0, n1, n2, n3]));
    let table_len = usize::from(u16::from_le_bytes([b0, b1])) * BLOCK_ENTRY_LEN;
    let mut body = body.to_vec();
    let Some((table, stored)) = body.split_at_mut_checked(table_len) else { return false };
    let plain = match codec {
        0 => Some(stored.to_vec()),
        _ => zstd::bulk::decompress(stored, u32::from_le_bytes(array_at(head, 12)).min(1 << 20) as usize).ok(),
    };
    let mut rest = plain.as_deref().unwrap_or_default();
    for entry in table.as_chunks_mut::<BLOCK_ENTRY_LEN>().0 {
        let len = u32::from_le_bytes(array_at(entry, 0)) as usize;
        let (block, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        rest = after;
        entry.iter_mut().skip(4).zip(KEYS.block_hash(block).0).for_each(|(to, from)| *to = from);
    }
    let stored = stored.to_vec();
    let mut sealed_head = *head;
    let head_tag = ARC.seal(Domain::Head, no.0, &[], &mut sealed_head);
    let domain = if kind == FrameKind::Footer as u8 { Domain::Footer } else { Domain::Frame };
    let tag = ARC.seal(domain, no.0, head, &mut body);
    let sealed = [&sealed_head[..], &head_tag, &body, &tag].concat();
    let Ok((info, opened)) = frame::open_unknown(&KEYS, &ARC, no, &sealed) else { return false };
    assert!(frame::seal(&ARC, no, &info, &stored) == sealed, "accepted, and sealed as another frame");
    assert!(plain.is_some_and(|plain| plain == opened.into_plain()), "other bytes than zstd's");
    true
}

fn frame_table(bytes: &[u8]) -> bool {
    again(bytes, decode_frame_table(bytes), |table| table.iter().flat_map(FrameInfo::encode).collect())
}

// --- catalog ----------------------------------------------------------------------------------------------------

/// All records of a catalog frame.
fn records(bytes: &[u8]) -> bool {
    let all = Records::new(bytes, |_| Ok(())).and_then(Iterator::collect::<codec::Decoded<Vec<Record>>>);
    again(bytes, all, |all| {
        let mut out = Vec::new();
        for record in all {
            codec::encode_record(&mut out, record);
            if let Record::Put { item: crate::catalog::Named::Node(node), .. } = record {
                digest::node(node);
            }
        }
        out
    })
}

/// Where in the file they begin (8 bytes), and segments.
fn segments(bytes: &[u8]) -> bool {
    let Some((start, bytes)) = bytes.split_first_chunk() else { return false };
    again(bytes, codec::decode_segments(u64::from_le_bytes(*start), bytes), |list| codec::encode_segments(list))
}

// --- index and ledger -------------------------------------------------------------------------------------------

/// Which table (a byte), and a row of it before it is sealed.
fn index_row(bytes: &[u8]) -> bool {
    let Some((table, body)) = bytes.split_first() else { return false };
    let written = index::row_again(*table, body);
    again(body, written.ok_or(()), Vec::clone)
}

/// A header before it is sealed, without its tag.
fn ledger_header(bytes: &[u8]) -> bool {
    let mut sealed = [0; ledger::segment::SEGMENT_HEADER_LEN];
    let (clear, tag) = sealed.split_at_mut(80);
    clear.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    let cipher = KEYS.segment_cipher(SegmentId(array_at(clear, 32)), &ArcSalt(array_at(clear, 48)));
    tag.copy_from_slice(&cipher.seal(Domain::Segment, 0, clear, &mut []));
    let decoded = ledger::segment::SegmentHeader::decode(&sealed, &KEYS);
    again(&sealed, decoded, |header| header.encode(&KEYS).to_vec())
}

/// How many records (4 bytes), and a batch of them before it is sealed.
fn ledger_batch(bytes: &[u8]) -> bool {
    use ledger::segment::{BatchHeader, open_batch, seal_batches};
    let Some((count, plain)) = bytes.split_first_chunk() else { return false };
    let header = BatchHeader { number: 0, records: u32::from_le_bytes(*count), len: plain.len() as u32 };
    let mut body = plain.to_vec();
    let tag = SEGMENT.seal(Domain::Batch, 0, &header.encode(), &mut body);
    body.extend_from_slice(&tag);
    let sealed = [&header.encode()[..], &body].concat();
    let Ok(records) = open_batch(&SEGMENT, 0, &header, &mut body) else { return false };
    let mut written = Vec::new();
    let all = seal_batches(&SEGMENT, 0, records.iter().cloned(), |batch| {
        written.extend_from_slice(batch);
        Ok(())
    });
    assert!(all.is_ok() && written == sealed, "accepted, and sealed as another batch");
    // What is merged is read again, too.
    let merged = ledger::Ledger::of(records, 1_700_000_000);
    let mut numbers = 0..;
    let all = seal_batches(&SEGMENT, 0, merged.records(), |batch| {
        let (header, mut body) =
            (BatchHeader::decode(&array_at(batch, 0)), batch.iter().skip(12).copied().collect::<Vec<_>>());
        let opened = open_batch(&SEGMENT, numbers.next().unwrap_or_default(), &header, &mut body);
        assert!(opened.is_ok(), "merged, and not accepted");
        Ok(())
    });
    assert!(all.is_ok(), "merged, and not sealed");
    true
}

#[cfg(test)]
mod tests;
