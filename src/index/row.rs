//! The bytes of index rows: every value ends in a seal, and long values are cut into parts.
//!
//! Invariants: a seal binds the bytes to their table and key, so that a row read back as zeros, or another
//! row's bytes, is refused; no value is long enough for an SQLite overflow page (`MAX_*` below), because a bad
//! overflow page can come back as zeros without an error.

use sha1::{Digest, Sha1};

use crate::catalog::codec::{self, BadRecord, Decoder, Encoder};
use crate::catalog::{ArcEntry, Child, Kind, Named, digest};
use crate::ids::{NodeDigest, Version};

/// Longest value of a rowid table (4,096-byte pages with 80 reserved hold 3,981 bytes without overflow).
pub const MAX_ROWID_VALUE: usize = 3_900;
/// The same without the seal.
pub const MAX_ROWID_BODY: usize = MAX_ROWID_VALUE - SEAL_LEN;
/// Longest key and value together of a `WITHOUT ROWID` table (the page holds 981 bytes without overflow).
pub const MAX_KEYED_ROW: usize = 940;

const SEAL_LEN: usize = 4;
const FIRST_LEN: usize = 3_700;
const PART_LEN: usize = 850;

/// Which table a row belongs to; the discriminants go into the seals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Table {
    Meta = 1,
    Versions = 2,
    Arcs = 3,
    Frames = 4,
    Relocations = 5,
    Entries = 6,
    Nodes = 7,
    Dirs = 8,
    Extents = 9,
    Lost = 10,
    Parts = 11,
    Removed = 12,
    Commits = 13,
}

/// The primary key of a row, as the seal sees it: unused fields are 0 or empty.
#[derive(Debug, Clone, Copy)]
pub struct Key<'a>(pub i64, pub i64, pub &'a [u8]);

impl Key<'_> {
    pub fn id(id: i64) -> Key<'static> {
        Key(id, 0, &[])
    }
}

/// A row whose seal or content is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow(pub &'static str);

impl From<BadRecord> for BadRow {
    fn from(bad: BadRecord) -> BadRow {
        BadRow(bad.0)
    }
}

fn seal_of(table: Table, key: Key<'_>, body: &[u8]) -> [u8; SEAL_LEN] {
    let mut head = [0u8; 19];
    let (tag, rest) = head.split_at_mut(1);
    tag.fill(table as u8);
    for (slot, byte) in rest
        .iter_mut()
        .zip(key.0.to_le_bytes().into_iter().chain(key.1.to_le_bytes()).chain((key.2.len() as u16).to_le_bytes()))
    {
        *slot = byte;
    }
    let digest: [u8; 20] = Sha1::new().chain_update(head).chain_update(key.2).chain_update(body).finalize().into();
    let [a, b, c, d, ..] = digest;
    [a, b, c, d]
}

/// Appends the seal to `body`.
pub fn seal(table: Table, key: Key<'_>, mut body: Vec<u8>) -> Vec<u8> {
    let seal = seal_of(table, key, &body);
    body.extend_from_slice(&seal);
    body
}

/// The bytes that `seal` was given.
pub fn open<'a>(table: Table, key: Key<'_>, value: &'a [u8]) -> Result<&'a [u8], BadRow> {
    let Some((body, seal)) = value.split_last_chunk::<SEAL_LEN>() else {
        return Err(BadRow("row is too short"));
    };
    if seal_of(table, key, body) != *seal {
        return Err(BadRow("row does not match its seal"));
    }
    Ok(body)
}

/// Value of an `entries` row: current from the key's version until `v_to` (None: still).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRow {
    pub v_to: Option<Version>,
    pub kind: Kind,
    pub child: Child,
    /// Of what is no directory.
    pub digest: Option<NodeDigest>,
}

impl EntryRow {
    /// A name that from now on stands for this.
    pub fn of(item: &Named) -> EntryRow {
        let digest = match item {
            Named::Node(node) => Some(digest::node(node)),
            Named::Dir(_) => None,
        };
        EntryRow { v_to: None, kind: item.kind(), child: item.child(), digest }
    }

    pub fn encode(&self, key: Key<'_>) -> Vec<u8> {
        let mut body = Encoder(Vec::with_capacity(40));
        body.uint(self.v_to.map_or(0, |v| u64::from(v.0)));
        body.u8(self.kind as u8);
        body.uint(match self.child {
            Child::Node(logid) => logid.0,
            Child::Dir(dirno) => dirno.0,
        });
        if let Some(digest) = &self.digest {
            body.raw(&digest.0);
        }
        seal(Table::Entries, key, body.0)
    }

    pub fn decode(key: Key<'_>, value: &[u8]) -> Result<EntryRow, BadRow> {
        let mut body = Decoder::new(open(Table::Entries, key, value)?);
        let v_to = end_of_interval(&mut body)?;
        let kind = Kind::from_code(body.u8()?).ok_or(BadRow("unknown file type"))?;
        let child = codec::child(&mut body, kind)?;
        let digest = match child {
            Child::Node(_) => Some(NodeDigest(body.array()?)),
            Child::Dir(_) => None,
        };
        body.end()?;
        Ok(EntryRow { v_to, kind, child, digest })
    }

    /// True if an entry that came with a version up to `v` is still there in `v`.
    pub fn covers(&self, v: Version) -> bool {
        self.v_to.is_none_or(|to| v < to)
    }
}

/// The version that ended it; 0: none has.
fn end_of_interval(d: &mut Decoder<'_>) -> Result<Option<Version>, BadRow> {
    Ok(Some(d.version()?).filter(|v| *v != Version(0)))
}

/// Body of a `lost` row: the end of the interval.
pub fn decode_lost(body: &[u8]) -> Result<Option<Version>, BadRow> {
    let mut d = Decoder::new(body);
    let v_to = end_of_interval(&mut d)?;
    d.end()?;
    Ok(v_to)
}

/// A long value cut up: the body of its main row, and the bodies of rows in `parts`, numbered from 1.
pub struct Split {
    pub main: Vec<u8>,
    pub parts: Vec<Vec<u8>>,
}

/// Cuts `bytes` so that no row needs an overflow page.
pub fn split(bytes: &[u8]) -> Split {
    let (first, rest) = bytes.split_at(bytes.len().min(FIRST_LEN));
    let parts: Vec<Vec<u8>> = rest.chunks(PART_LEN).map(<[u8]>::to_vec).collect();
    let mut main = Encoder(Vec::with_capacity(first.len() + 16));
    main.uint(parts.len() as u64);
    if !parts.is_empty() {
        main.raw(&whole_sum(bytes));
    }
    main.raw(first);
    Split { main: main.0, parts }
}

/// A main row taken apart: the first bytes of the value, how many parts follow, and what all must sum to.
pub struct Main<'a> {
    pub first: &'a [u8],
    pub parts: u64,
    sum: [u8; SEAL_LEN],
}

impl<'a> Main<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Main<'a>, BadRow> {
        let mut body = Decoder::new(bytes);
        let parts = body.uint()?;
        let sum = if parts == 0 { [0; SEAL_LEN] } else { body.array()? };
        let first = body.rest();
        if first.len() > FIRST_LEN || (parts > 0 && first.len() < FIRST_LEN) {
            return Err(BadRow("value is cut elsewhere"));
        }
        Ok(Main { first, parts, sum })
    }

    /// Checks the whole value once its parts have been appended to `first`.
    pub fn check(&self, whole: &[u8]) -> Result<(), BadRow> {
        if self.parts != 0 && whole_sum(whole) != self.sum {
            return Err(BadRow("parts of the value do not belong together"));
        }
        Ok(())
    }
}

fn whole_sum(bytes: &[u8]) -> [u8; SEAL_LEN] {
    let digest: [u8; 20] = Sha1::digest(bytes).into();
    let [a, b, c, d, ..] = digest;
    [a, b, c, d]
}

/// Value of an `arcs` row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArcValue {
    pub entry: ArcEntry,
    pub run: Version,
    pub dropped: bool,
}

impl ArcValue {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Encoder(Vec::with_capacity(160));
        body.u8(u8::from(self.dropped));
        body.uint(u64::from(self.run.0));
        body.raw(&self.entry.encode());
        seal(Table::Arcs, Key::id(self.entry.serial.0 as i64), body.0)
    }

    pub fn decode(serial: i64, value: &[u8]) -> Result<ArcValue, BadRow> {
        let mut body = Decoder::new(open(Table::Arcs, Key::id(serial), value)?);
        let (dropped, run) = (body.flag()?, body.version()?);
        let entry = ArcEntry::decode(body.rest())?;
        if entry.serial.0 as i64 != serial || entry.name.version != run {
            return Err(BadRow("the row is another arc's"));
        }
        Ok(ArcValue { entry, run, dropped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_refuses_changed_bytes_and_other_places() {
        let key = Key(7, 3, b"name");
        let value = seal(Table::Entries, key, b"body".to_vec());
        assert_eq!(open(Table::Entries, key, &value), Ok(&b"body"[..]));
        for at in 0..value.len() {
            let mut bad = value.clone();
            bad[at] ^= 0x40;
            assert!(open(Table::Entries, key, &bad).is_err(), "byte {at}");
        }
        assert!(open(Table::Dirs, key, &value).is_err());
        assert!(open(Table::Entries, Key(8, 3, b"name"), &value).is_err());
        assert!(open(Table::Entries, Key(7, 4, b"name"), &value).is_err());
        assert!(open(Table::Entries, Key(7, 3, b"nam"), &value).is_err());
        for zeros in 0..64 {
            assert!(open(Table::Entries, key, &vec![0; zeros]).is_err());
        }
    }

    #[test]
    fn long_values_are_cut_below_the_limits_and_come_back() {
        for len in [0, 1, FIRST_LEN, FIRST_LEN + 1, FIRST_LEN + PART_LEN, 65_536 * 3 + 17] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            let split = split(&bytes);
            assert!(split.main.len() + SEAL_LEN <= MAX_ROWID_VALUE);
            assert!(split.parts.iter().all(|part| part.len() + SEAL_LEN + 20 <= MAX_KEYED_ROW));
            let main = Main::read(&split.main).unwrap();
            assert_eq!(main.parts, split.parts.len() as u64);
            let mut whole = main.first.to_vec();
            split.parts.iter().for_each(|part| whole.extend_from_slice(part));
            assert_eq!((main.check(&whole), &whole), (Ok(()), &bytes));
            if main.parts > 0 {
                whole.truncate(len - 1);
                assert!(main.check(&whole).is_err());
            }
        }
    }
}
