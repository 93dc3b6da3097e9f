//! `ledger/list`: which segments there are, and how long those are at least that tell of damage. It notices when one is
//! gone, for what it told may have been damage.
//!
//! Invariants: a segment is in the list before a batch is written to it, and its batches are durable before the list counts
//! them, so that no crash looks like a loss; the list is replaced as a whole, under a lock of its own; who writes it and
//! finds something missing says from when on proofs count again.

use std::collections::BTreeMap;
use std::io::Write as _;

use super::files::{self, Refused, new_header, read_records, segment_name};
use super::segment::{SEGMENT_HEADER_LEN, seal_batches};
use super::{Listed, Record};
use crate::crypto::Keys;
use crate::error::{Error, Result};
use crate::ids::SegmentId;
use crate::os::dir::Write;
use crate::os::lock;
use crate::own::OwnDir;

const LIST: &str = "list";
const LIST_LOCK: &str = "list.lock";
const TEMPORARY: &str = "list.tmp";
/// Segments that are listed; more there are only where no backup has merged them for years.
const MAX_SEGMENTS: usize = 30_000;

/// What the list says of a ledger as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    pub list: Listed,
    /// Batches of each segment that is there, as far as they can be read.
    pub there: BTreeMap<SegmentId, u32>,
    /// There is no list, or none that can be read.
    pub lost: bool,
}

impl Found {
    /// The list; what is there is told by who reads the segments.
    pub fn read(dir: &OwnDir, keys: &Keys) -> Found {
        let mut found = Found { lost: true, ..Found::default() };
        if let Ok(file) = dir.read(LIST) {
            let (_, refused) = read_records(&file, None, keys, |record| {
                if let Record::Listed(list) = record {
                    (found.list, found.lost) = (list, false);
                }
            });
            found.lost |= refused.is_some();
        }
        found
    }

    /// A segment has so many batches that can be read.
    pub fn is_there(&mut self, name: &str, batches: u32) {
        self.there.extend(name.strip_suffix(".seg").and_then(parse).map(|id| (id, batches)));
    }

    /// What is in the list and not there, or not to its end; and a list that should be there. An empty segment is none.
    pub fn missing(&self, dir: &OwnDir) -> Vec<Refused> {
        const GONE: &str = "it is missing, or a part of it: what was proven before counts no more";
        if self.lost {
            let any = self.there.values().any(|batches| *batches > 0);
            return any.then(|| Refused { path: dir.path_of(LIST), what: GONE }).into_iter().collect();
        }
        let is_short = |id: &SegmentId, listed: u32| match self.there.get(id) {
            Some(batches) => *batches < listed,
            None => true,
        };
        let gone = self.list.segments.iter().filter(|(id, batches)| is_short(id, **batches));
        gone.map(|(id, _)| Refused { path: dir.path_of(segment_name(*id)), what: GONE }).collect()
    }
}

/// Changes the list. What is missing is taken out of it, and from `now_s` on proofs count again.
pub fn update(dir: &OwnDir, keys: &Keys, now_s: u64, change: impl FnOnce(&mut Listed) -> Result<()>) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("write", dir.path_of(LIST), &error);
    let held = dir.write(LIST_LOCK, 0o600, Write::Over)?;
    lock::exclusive(&held).map_err(failed)?;
    let mut found = Found::read(dir, keys);
    found.there = lengths(dir, keys, &found.list)?;
    if !found.missing(dir).is_empty() {
        found.list.doubt_s = now_s;
    }
    let Found { mut list, there, .. } = found;
    list.segments.retain(|id, batches| there.get(id).is_some_and(|there| there >= batches));
    change(&mut list)?;
    while list.segments.len() > MAX_SEGMENTS {
        list.segments.pop_first();
    }
    let header = new_header().map_err(failed)?;
    let cipher = keys.segment_cipher(header.id, &header.salt);
    let mut bytes = header.encode(keys).to_vec();
    let sealed = seal_batches(&cipher, 0, std::iter::once(Record::Listed(list)), |batch| {
        bytes.extend_from_slice(batch);
        Ok(())
    });
    sealed.map_err(failed)?;
    dir.remove_if_there(TEMPORARY)?;
    let mut file = dir.create(TEMPORARY, 0o600)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    dir.rename(TEMPORARY, LIST)?;
    dir.sync()
}

/// Batches of the segments that are there: counted where the list asks for some, else only whether there are any.
fn lengths(dir: &OwnDir, keys: &Keys, list: &Listed) -> Result<BTreeMap<SegmentId, u32>> {
    let mut there = BTreeMap::new();
    for name in files::list(dir)? {
        let Ok(file) = dir.read(&name) else { continue };
        let Some(id) = name.strip_suffix(".seg").and_then(parse) else { continue };
        let batches = match list.segments.get(&id) {
            Some(1..) => read_records(&file, Some(&name), keys, drop).0,
            _ => u32::from(file.metadata().is_ok_and(|meta| meta.len() > SEGMENT_HEADER_LEN as u64)),
        };
        there.insert(id, batches);
    }
    Ok(there)
}

/// The id in the name of a segment.
pub fn parse(hex: &str) -> Option<SegmentId> {
    let digits = hex.as_bytes();
    if digits.len() != 32 || !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    u128::from_str_radix(hex, 16).ok().map(|id| SegmentId(id.to_be_bytes()))
}
