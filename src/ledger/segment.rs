//! The bytes of a segment (docs/format.md, "Ledger"): header, then sealed batches of records. Pure.
//!
//! ```text
//! header (96): "ASSAYLED" format u16 zero[6] backup id[16] segment id[16] salt[32] tag[16]
//! batch:       number u32 records u32 length u32, then length sealed bytes and a tag[16]
//! ```
//! Integers are little endian. Invariants: a batch opens only in its own place of its own segment; the nonce is the
//! batch number, which only grows, and nobody but its process appends to a segment; decoding never panics, allocates
//! no more than `MAX_BATCH_BYTES`, and refuses what no encoder writes.

use std::collections::BTreeMap;

use super::{By, Damage, Extent, Files, Flip, Frames, How, Listed, Proof, Record, Run, Session};
use crate::arc::{BLOCK_ENTRY_LEN, FRAME_OVERHEAD, MAX_BLOCKS, MAX_PLAIN_LEN};
use crate::catalog::codec::{BadRecord, Decoded, Decoder, Encoder, require};
use crate::crypto::{ArcCipher, Domain, Keys, TAG_LEN};
use crate::ids::{ArcSalt, BackupId, CopyId, FrameNo, Logid, SegmentId};

/// Version of the format that this program writes.
pub const SEGMENT_FORMAT: u16 = 2;
pub const SEGMENT_HEADER_LEN: usize = 96;
pub const BATCH_HEADER_LEN: usize = 12;
/// Plain bytes of a batch, at most.
pub const MAX_BATCH_BYTES: usize = 1 << 20;
/// Where an encoder closes a batch; a record is far shorter than the rest.
const FULL_BATCH_BYTES: usize = MAX_BATCH_BYTES - (64 << 10);
/// Texts in a record are cut here, bytes.
const MAX_TEXT_BYTES: usize = 8 << 10;

/// A whole frame.
const MAX_FRAME_LEN: u64 = (MAX_PLAIN_LEN + FRAME_OVERHEAD + MAX_BLOCKS * BLOCK_ENTRY_LEN) as u64;

const MAGIC: &[u8; 8] = b"ASSAYLED";

/// First bytes of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    pub id: SegmentId,
    pub salt: ArcSalt,
}

impl SegmentHeader {
    pub fn encode(&self, keys: &Keys) -> [u8; SEGMENT_HEADER_LEN] {
        let mut out = [0; SEGMENT_HEADER_LEN];
        out[0..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&SEGMENT_FORMAT.to_le_bytes());
        out[16..32].copy_from_slice(&keys.backup_id().0);
        out[32..48].copy_from_slice(&self.id.0);
        out[48..80].copy_from_slice(&self.salt.0);
        let tag = keys.segment_cipher(self.id, &self.salt).seal(Domain::Segment, 0, &out[..80], &mut []);
        out[80..].copy_from_slice(&tag);
        out
    }

    /// Authenticates and reads a header; says what is wrong otherwise.
    pub fn decode(bytes: &[u8; SEGMENT_HEADER_LEN], keys: &Keys) -> Result<SegmentHeader, &'static str> {
        let header = SegmentHeader { id: SegmentId(array_at(bytes, 32)), salt: ArcSalt(array_at(bytes, 48)) };
        if bytes[0..8] != *MAGIC {
            return Err("it is no ledger segment");
        }
        if u16::from_le_bytes(array_at(bytes, 8)) != SEGMENT_FORMAT {
            return Err("its format is not known");
        }
        if bytes[10..16] != [0; 6] {
            return Err("its header has bytes that are not known");
        }
        if BackupId(array_at(bytes, 16)) != keys.backup_id() {
            return Err("it belongs to another backup dir");
        }
        let tag: [u8; TAG_LEN] = array_at(bytes, 80);
        let cipher = keys.segment_cipher(header.id, &header.salt);
        if !cipher.open(Domain::Segment, 0, &bytes[..80], &mut [], &tag) {
            return Err("its header does not authenticate");
        }
        Ok(header)
    }
}

/// What stands before the sealed bytes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    pub number: u32,
    pub records: u32,
    /// Of the sealed bytes, without the tag.
    pub len: u32,
}

impl BatchHeader {
    pub fn encode(&self) -> [u8; BATCH_HEADER_LEN] {
        let mut out = [0; BATCH_HEADER_LEN];
        out[0..4].copy_from_slice(&self.number.to_le_bytes());
        out[4..8].copy_from_slice(&self.records.to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8; BATCH_HEADER_LEN]) -> BatchHeader {
        let field = |at| u32::from_le_bytes(array_at(bytes, at));
        BatchHeader { number: field(0), records: field(4), len: field(8) }
    }

    /// Sealed bytes and tag.
    pub fn body_len(&self) -> usize {
        self.len as usize + TAG_LEN
    }
}

/// Seals records as batches numbered from `number` on; gives their bytes and the number of the next one.
pub fn seal_batches(
    cipher: &ArcCipher,
    mut number: u32,
    records: impl Iterator<Item = Record>,
    mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<u32> {
    let mut plain = Encoder::default();
    let mut count = 0;
    let mut seal = |plain: &mut Encoder, count: &mut u32| {
        let mut bytes = std::mem::take(&mut plain.0);
        let header = BatchHeader { number, records: *count, len: bytes.len() as u32 }.encode();
        let tag = cipher.seal(Domain::Batch, number, &header, &mut bytes);
        *count = 0;
        // The number is used up also when writing fails.
        number += 1;
        write(&[&header[..], &bytes, &tag].concat())
    };
    for record in records {
        put_record(&mut plain, &record);
        count += 1;
        if plain.0.len() >= FULL_BATCH_BYTES {
            seal(&mut plain, &mut count)?;
        }
    }
    if count > 0 {
        seal(&mut plain, &mut count)?;
    }
    Ok(number)
}

/// Opens a batch in its place; `body` is sealed bytes and tag. Says what is wrong otherwise.
pub fn open_batch(
    cipher: &ArcCipher,
    number: u32,
    header: &BatchHeader,
    body: &mut [u8],
) -> Result<Vec<Record>, &'static str> {
    let (Some((sealed, tag)), true) = (body.split_last_chunk_mut::<TAG_LEN>(), header.number == number) else {
        return Err("a batch is not in its place");
    };
    if !cipher.open(Domain::Batch, number, &header.encode(), sealed, tag) {
        return Err("a batch does not authenticate");
    }
    let mut decoder = Decoder::new(sealed);
    let mut records = Vec::new();
    while !decoder.is_empty() {
        records.push(record(&mut decoder).map_err(|_| "a record is of a kind that is not known")?);
    }
    if records.len() != header.records as usize {
        return Err("a batch has another number of records");
    }
    if records.is_empty() {
        return Err("a batch has no records");
    }
    Ok(records)
}

fn put_record(e: &mut Encoder, record: &Record) {
    match record {
        Record::Frames(frames) => {
            e.u8(1);
            e.uint(frames.arc.0);
            e.uint(u64::from(frames.copy.0));
            e.uint(u64::from(frames.first.0));
            e.uint(u64::from(frames.count));
            e.uint(frames.proof.when_s);
            e.u8(frames.proof.how as u8);
            e.u8(frames.proof.by as u8);
        }
        Record::Files(files) => {
            e.u8(2);
            e.uint(files.first.0);
            e.uint(files.count);
            e.u8(files.extent as u8);
            e.uint(files.when_s);
            e.u8(files.by as u8);
        }
        Record::Run(run) => {
            e.u8(3);
            e.uint(run.when_s);
            e.uint(run.seconds);
            e.u8(run.level);
            e.bytes(short(run.inc.as_deref().unwrap_or_default()));
            e.bytes(short(&run.scope));
            [run.blocks, run.bytes, run.findings, run.fixed].into_iter().for_each(|count| e.uint(count));
        }
        Record::Damage(damage) => {
            e.u8(4);
            e.uint(damage.when_ms);
            e.uint(damage.arc.0);
            e.uint(u64::from(damage.copy.0));
            e.uint(damage.frame.map_or(0, |no| u64::from(no.0) + 1));
            e.uint(u64::from(damage.count));
            e.bytes(short(&damage.code));
            e.u8(u8::from(damage.mended));
        }
        Record::Flip(flip) => {
            e.u8(5);
            e.uint(flip.when_s);
            e.uint(flip.block.0);
            e.uint(u64::from(flip.byte));
            e.u8(flip.bit);
            e.u8(u8::from(flip.to_one));
            e.u8(u8::from(flip.again));
        }
        Record::Session(session) => {
            e.u8(6);
            e.uint(session.started_s);
            e.u8(session.by as u8);
            let counts = [session.seconds, session.dirs_listed, session.files_read, session.bytes_read];
            counts.into_iter().for_each(|count| e.uint(count));
        }
        Record::Listed(list) => {
            e.u8(7);
            e.uint(list.doubt_s);
            e.uint(list.segments.len() as u64);
            for (id, batches) in &list.segments {
                e.raw(&id.0);
                e.uint(u64::from(*batches));
            }
        }
        Record::History((run, digest)) => {
            e.u8(8);
            e.uint(u64::from(run.0));
            e.raw(digest);
        }
    }
}

/// A text for a record, cut where it is too long for one.
fn short(text: &str) -> &[u8] {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = ends.take_while(|end| *end <= MAX_TEXT_BYTES).last().unwrap_or(0);
    text.get(..end).unwrap_or_default().as_bytes()
}

fn record(d: &mut Decoder<'_>) -> Decoded<Record> {
    Ok(match d.u8()? {
        1 => {
            let (arc, copy, first) = (d.serial()?, CopyId(d.small()?), d.frame_no()?);
            // Not up to the last one: runs of two arcs must not touch.
            let count = run(d, u64::from(first.0), u64::from(FrameNo::MAX.0) - 1)? as u32;
            Record::Frames(Frames {
                arc,
                copy,
                first,
                count,
                proof: Proof { when_s: d.uint()?, how: how(d)?, by: by(d)? },
            })
        }
        2 => {
            let first = d.logid()?;
            let count = run(d, first.0, Logid::MAX.0)?;
            Record::Files(Files { first, count, extent: extent(d)?, when_s: d.uint()?, by: by(d)? })
        }
        3 => Record::Run(Run {
            when_s: d.uint()?,
            seconds: d.uint()?,
            level: d.u8()?,
            inc: Some(text(d)?).filter(|inc| !inc.is_empty()),
            scope: text(d)?,
            blocks: d.uint()?,
            bytes: d.uint()?,
            findings: d.uint()?,
            fixed: d.uint()?,
        }),
        4 => {
            let (when_ms, arc, copy) = (d.uint()?, d.serial()?, CopyId(d.small()?));
            let frame = match d.within(0, u64::from(FrameNo::MAX.0) + 1, BadRecord("frame number out of range"))? {
                0 => None,
                no => Some(FrameNo(no as u32 - 1)),
            };
            let count = match frame {
                Some(first) => run(d, u64::from(first.0), u64::from(FrameNo::MAX.0) - 1)? as u32,
                None => d.within(0, 0, BadRecord("run out of range"))? as u32,
            };
            Record::Damage(Damage { when_ms, arc, copy, frame, count, code: text(d)?, mended: d.flag()? })
        }
        5 => Record::Flip(Flip {
            when_s: d.uint()?,
            block: d.block()?,
            byte: d.within(0, MAX_FRAME_LEN - 1, BadRecord("byte behind the frame"))? as u32,
            bit: Some(d.u8()?).filter(|bit| *bit < 8).ok_or(BadRecord("bit of no byte"))?,
            to_one: d.flag()?,
            again: d.flag()?,
        }),
        6 => Record::Session(Session {
            started_s: d.uint()?,
            by: by(d)?,
            seconds: d.uint()?,
            dirs_listed: d.uint()?,
            files_read: d.uint()?,
            bytes_read: d.uint()?,
        }),
        7 => {
            let (doubt_s, count) = (d.uint()?, d.uint()?);
            let mut segments = BTreeMap::new();
            for _ in 0..count {
                let id = SegmentId(d.array()?);
                if segments.last_key_value().is_some_and(|(last, _)| *last >= id) {
                    return Err(BadRecord("segments out of order"));
                }
                segments.insert(id, d.small()?);
            }
            Record::Listed(Listed { doubt_s, segments })
        }
        8 => Record::History((d.version()?, d.array()?)),
        _ => return Err(BadRecord("record code")),
    })
}

/// The length of a run of numbers from `first` on: not empty, and up to the last one at most.
fn run(d: &mut Decoder<'_>, first: u64, last: u64) -> Decoded<u64> {
    d.within(1, (last + 1).saturating_sub(first), BadRecord("run out of range"))
}

fn text(d: &mut Decoder<'_>) -> Decoded<String> {
    let text = d.string()?;
    require(text.len() <= MAX_TEXT_BYTES, BadRecord("text too long"))?;
    Ok(text)
}

fn how(d: &mut Decoder<'_>) -> Decoded<How> {
    match d.u8()? {
        1 => Ok(How::Read),
        2 => Ok(How::Medium),
        _ => Err(BadRecord("how")),
    }
}

fn by(d: &mut Decoder<'_>) -> Decoded<By> {
    match d.u8()? {
        1 => Ok(By::Mount),
        2 => Ok(By::Get),
        3 => Ok(By::Selftest),
        _ => Err(BadRecord("by")),
    }
}

fn extent(d: &mut Decoder<'_>) -> Decoded<Extent> {
    match d.u8()? {
        1 => Ok(Extent::Part),
        2 => Ok(Extent::Whole),
        3 => Ok(Extent::Hashed),
        _ => Err(BadRecord("extent")),
    }
}

/// `N` bytes at a constant offset of a fixed-size record.
fn array_at<const N: usize, const LEN: usize>(bytes: &[u8; LEN], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[offset..offset + N]);
    out
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
