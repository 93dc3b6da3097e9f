//! Parity of an arc, in a file beside it: what is lost of the arc comes back byte for byte, as far as there is parity for it.
//!
//! ```text
//! sidecar = header (112) ‖ pages ‖ zeros up to a multiple of 4096 ‖ parity shards ‖ pages ‖ header
//! page    = up to 511 hashes (8 each) ‖ check (8)
//! ```
//! An arc is *shards* of 4 KiB, and each 16,384 of them (64 MiB) are a *region*, one word of a Reed–Solomon code: as many
//! shards as a region has parity shards may be bad, wherever they lie. Hashes of all shards say which are; they and the header
//! are there twice.
//!
//! Invariants: a sidecar is made of sealed bytes alone, and tells nothing that the arc does not tell; nothing is authenticated
//! here: what comes back has the hash that the sidecar has for it, and is believed no sooner than any other bytes of an arc
//! (its frame opens, or the SHA-256 of all of it is the recorded one). Memory is bounded by one region.

use std::collections::BTreeMap;
use std::ops::Range;

use reed_solomon_simd::engine::DefaultEngine;
use reed_solomon_simd::rate::{HighRateDecoder, HighRateEncoder, RateDecoder, RateEncoder};
use sha2::{Digest, Sha256};

use crate::crypto::sha256;
use crate::error::{Error, Result};
use crate::ids::{ArcDigest, ArcId, ArcName, Version};

/// What is lost or there as a whole: a sector of today's disks, a page of the kernel.
pub const SHARD_BYTES: usize = 4096;
/// Shards of an arc that share their parity.
pub const REGION_SHARDS: u64 = 16384;
pub const PARITY_HEADER_LEN: usize = 112;
pub const PARITY_MAGIC: &[u8; 8] = b"ASSAYPAR";
/// Version of the layout.
pub const PARITY_FORMAT: u16 = 1;
/// Hashes of a page: with its check it has the length of a shard.
pub const PAGE_HASHES: u64 = 511;
pub const SHARD_HASH_LEN: usize = 8;
const REGION_BYTES: u64 = REGION_SHARDS * SHARD_BYTES as u64;
/// The code works on so much of each shard at a time: what bounds its memory.
const COLUMN_BYTES: usize = 512;
/// A small region has at least so many parity shards, if it has as many others.
const MIN_PARITY: u64 = 4;
const MAX_PERCENT: u8 = 50;
/// An arc that is longer is none.
const MAX_ARC_BYTES: u64 = 1 << 40;
/// Shards that are read at once.
const AT_ONCE: usize = 256;

/// The beginning of the SHA-256 of a shard.
pub type ShardHash = [u8; SHARD_HASH_LEN];

/// Reads from an offset on, and says how many bytes came: none where they can't be had.
pub type Bytes<'a> = &'a dyn Fn(u64, &mut [u8]) -> usize;

/// How much parity there is for so much of an arc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percent(u8);

impl Percent {
    pub fn new(percent: u8) -> Option<Percent> {
        (1..=MAX_PERCENT).contains(&percent).then_some(Percent(percent))
    }

    pub fn get(self) -> u8 {
        self.0
    }

    fn parity_shards(self, data_shards: u64) -> u64 {
        (data_shards * u64::from(self.0)).div_ceil(100).max(data_shards.min(MIN_PARITY))
    }
}

/// What a sidecar says of its arc and of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParityHeader {
    pub arc: ArcName,
    pub id: ArcId,
    pub arc_bytes: u64,
    pub digest: ArcDigest,
    pub percent: Percent,
}

/// A part of an arc that has parity of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    pub number: u64,
    /// Of its first byte in the arc.
    pub offset: u64,
    pub data_shards: usize,
    pub parity_shards: usize,
    /// Number of its first hash: first those of its data, then those of its parity.
    first_hash: u64,
    /// Of its first parity shard in the sidecar.
    parity_offset: u64,
}

impl ParityHeader {
    pub fn encode(&self) -> [u8; PARITY_HEADER_LEN] {
        let mut out = [0; PARITY_HEADER_LEN];
        out[0..8].copy_from_slice(PARITY_MAGIC);
        out[8..10].copy_from_slice(&PARITY_FORMAT.to_le_bytes());
        out[10..12].copy_from_slice(&u16::from(self.percent.0).to_le_bytes());
        out[12..16].copy_from_slice(&(SHARD_BYTES as u32).to_le_bytes());
        out[16..20].copy_from_slice(&self.arc.version.0.to_le_bytes());
        out[20..24].copy_from_slice(&self.arc.number.to_le_bytes());
        out[24..40].copy_from_slice(&self.id.0);
        out[40..48].copy_from_slice(&self.arc_bytes.to_le_bytes());
        out[48..52].copy_from_slice(&(REGION_SHARDS as u32).to_le_bytes());
        out[52..56].copy_from_slice(&(self.percent.parity_shards(REGION_SHARDS) as u32).to_le_bytes());
        out[56..88].copy_from_slice(&self.digest.0);
        let check = sha256(&out[..96]);
        out[96..112].copy_from_slice(&check[..16]);
        out
    }

    /// None for anything but what `encode` writes.
    pub fn decode(bytes: &[u8]) -> Option<ParityHeader> {
        let bytes: &[u8; PARITY_HEADER_LEN] = bytes.try_into().ok()?;
        let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let header = ParityHeader {
            arc: ArcName { version: Version(u32_at(16)?), number: u32_at(20)? },
            id: ArcId(*bytes.get(24..)?.first_chunk()?),
            arc_bytes: u64::from_le_bytes(*bytes.get(40..)?.first_chunk()?),
            digest: ArcDigest(*bytes.get(56..)?.first_chunk()?),
            percent: Percent::new(bytes[10])?,
        };
        let fits = header.arc_bytes <= MAX_ARC_BYTES && header.arc.version <= Version::MAX;
        (fits && header.encode() == *bytes).then_some(header)
    }

    /// The header of a sidecar, from its start or from its end.
    pub fn read(sidecar: Bytes<'_>, sidecar_bytes: u64) -> Option<ParityHeader> {
        let at = |offset| {
            let mut bytes = [0; PARITY_HEADER_LEN];
            if sidecar(offset, &mut bytes) == bytes.len() { ParityHeader::decode(&bytes) } else { None }
        };
        at(0).or_else(|| at(sidecar_bytes.checked_sub(PARITY_HEADER_LEN as u64)?))
    }

    fn regions(&self) -> u64 {
        self.arc_bytes.div_ceil(REGION_BYTES)
    }

    /// Shards of data and of parity in a region.
    fn shape(&self, number: u64) -> (u64, u64) {
        let bytes = self.arc_bytes.saturating_sub(number * REGION_BYTES).min(REGION_BYTES);
        let data = bytes.div_ceil(SHARD_BYTES as u64);
        (data, self.percent.parity_shards(data))
    }

    /// Shards of data and of parity in all regions.
    fn shards(&self) -> (u64, u64) {
        let whole = self.arc_bytes / REGION_BYTES;
        let (data, parity) = self.shape(whole);
        (whole * REGION_SHARDS + data, whole * self.percent.parity_shards(REGION_SHARDS) + parity)
    }

    /// The region in which a byte of the arc is.
    pub fn region_of(&self, offset: u64) -> Region {
        self.region(offset / REGION_BYTES)
    }

    fn region(&self, number: u64) -> Region {
        let (data_shards, parity_shards) = self.shape(number);
        let parity_before = number * self.percent.parity_shards(REGION_SHARDS);
        Region {
            number,
            offset: number * REGION_BYTES,
            data_shards: data_shards as usize,
            parity_shards: parity_shards as usize,
            first_hash: number * REGION_SHARDS + parity_before,
            parity_offset: self.parity_offset() + parity_before * SHARD_BYTES as u64,
        }
    }

    fn pages_bytes(&self) -> u64 {
        let (data, parity) = self.shards();
        (data + parity + (data + parity).div_ceil(PAGE_HASHES)) * SHARD_HASH_LEN as u64
    }

    fn parity_offset(&self) -> u64 {
        (PARITY_HEADER_LEN as u64 + self.pages_bytes()).next_multiple_of(SHARD_BYTES as u64)
    }

    /// Where the two copies of the pages begin.
    fn pages_at(&self) -> [u64; 2] {
        [PARITY_HEADER_LEN as u64, self.parity_offset() + self.shards().1 * SHARD_BYTES as u64]
    }

    /// Length of the sidecar.
    pub fn sidecar_bytes(&self) -> u64 {
        self.pages_at()[1] + self.pages_bytes() + PARITY_HEADER_LEN as u64
    }

    /// Ends a page: its hashes, bound to their place.
    fn check(&self, page: u64, hashes: &[u8]) -> ShardHash {
        short(Sha256::new().chain_update(self.encode()).chain_update(page.to_le_bytes()).chain_update(hashes))
    }
}

impl Region {
    /// Of the shard that has this byte of the arc.
    pub fn shard_of(&self, offset: u64) -> usize {
        (offset.saturating_sub(self.offset) / SHARD_BYTES as u64) as usize
    }

    /// Offset in the arc of a shard.
    pub fn offset_of(&self, shard: usize) -> u64 {
        self.offset + (shard * SHARD_BYTES) as u64
    }

    /// Its hashes, data before parity: None for those that are lost.
    pub fn hashes(&self, header: &ParityHeader, sidecar: Bytes<'_>) -> Vec<Option<ShardHash>> {
        let wanted = self.first_hash..self.first_hash + (self.data_shards + self.parity_shards) as u64;
        let all = header.shards().0 + header.shards().1;
        let mut hashes = Vec::with_capacity(self.data_shards + self.parity_shards);
        for page in wanted.start / PAGE_HASHES..wanted.end.div_ceil(PAGE_HASHES) {
            let first = page * PAGE_HASHES;
            let count = all.saturating_sub(first).min(PAGE_HASHES);
            let mut bytes = vec![0; (count as usize + 1) * SHARD_HASH_LEN];
            let is_right = header.pages_at().into_iter().any(|pages_at| {
                let at = pages_at + page * (PAGE_HASHES + 1) * SHARD_HASH_LEN as u64;
                let whole = sidecar(at, &mut bytes) == bytes.len();
                whole && bytes.split_last_chunk().is_some_and(|(all, check)| header.check(page, all) == *check)
            });
            let of_page = bytes.chunks_exact(SHARD_HASH_LEN).take(count as usize);
            let of_page = of_page.map(|hash| hash.first_chunk().copied().filter(|_| is_right)).zip(first..);
            hashes.extend(of_page.filter(|(_, number)| wanted.contains(number)).map(|(hash, _)| hash));
        }
        hashes
    }

    /// Puts right what can be put right of its data. `hashes` are all of the region's.
    pub fn mend(
        &self,
        header: &ParityHeader,
        hashes: &[Option<ShardHash>],
        arc: Bytes<'_>,
        sidecar: Bytes<'_>,
    ) -> Mended {
        let (of_data, of_parity) = hashes.split_at_checked(self.data_shards).unwrap_or_default();
        let data = Shards::read(arc, self.offset, header.arc_bytes, of_data);
        let parity_end = self.parity_offset + (self.parity_shards * SHARD_BYTES) as u64;
        let parity = Shards::read(sidecar, self.parity_offset, parity_end, of_parity);
        let mut mended = Mended { bad: data.bad(), parity: self.parity_shards - parity.bad(), shards: BTreeMap::new() };
        if (1..=mended.parity).contains(&mended.bad) {
            let right = |(number, bytes): &(usize, Vec<u8>)| of_data.get(*number) == Some(&Some(hash(bytes)));
            mended.shards = restored(&data, &parity).into_iter().filter(right).collect();
        }
        mended
    }
}

/// What was put right of a region.
#[derive(Debug, Default)]
pub struct Mended {
    /// How many shards of data were bad.
    pub bad: usize,
    /// How many of them can be put right.
    pub parity: usize,
    /// Those that were, by their numbers.
    pub shards: BTreeMap<usize, Vec<u8>>,
}

/// Shards as they were read, and which of them are right.
#[derive(Debug)]
pub struct Shards {
    /// Whole shards; zeros where nothing was read.
    pub bytes: Vec<u8>,
    pub right: Vec<bool>,
}

impl Shards {
    /// Reads shards from an offset on, up to an end, and compares them with their hashes.
    pub fn read(source: Bytes<'_>, offset: u64, end: u64, hashes: &[Option<ShardHash>]) -> Shards {
        let mut bytes = vec![0; hashes.len() * SHARD_BYTES];
        let (mut at, mut right) = (offset, Vec::with_capacity(hashes.len()));
        for (piece, hashes) in bytes.chunks_mut(AT_ONCE * SHARD_BYTES).zip(hashes.chunks(AT_ONCE)) {
            if fill(source, at, end, piece).is_none() {
                piece.chunks_exact_mut(SHARD_BYTES).zip(0..).for_each(|(shard, number)| {
                    if fill(source, at + number * SHARD_BYTES as u64, end, shard).is_none() {
                        shard.fill(0);
                    }
                });
            }
            at += piece.len() as u64;
            right.extend(
                piece.chunks_exact(SHARD_BYTES).zip(hashes).map(|(shard, wanted)| Some(hash(shard)) == *wanted),
            );
        }
        Shards { bytes, right }
    }

    fn bad(&self) -> usize {
        self.right.iter().filter(|right| !**right).count()
    }

    /// A column of those that are right.
    fn right_ones(&self, column: &Range<usize>) -> impl Iterator<Item = (usize, &[u8])> {
        let all = self.bytes.chunks_exact(SHARD_BYTES).zip(&self.right).enumerate();
        all.filter_map(|(number, (shard, right))| Some((number, shard.get(column.clone()).filter(|_| *right)?)))
    }
}

/// Fills a buffer as far as `end`, zeros behind it; None where not all of it came.
fn fill(source: Bytes<'_>, at: u64, end: u64, buffer: &mut [u8]) -> Option<()> {
    let wanted = end.saturating_sub(at).min(buffer.len() as u64) as usize;
    let (wanted, behind) = buffer.split_at_mut_checked(wanted)?;
    behind.fill(0);
    (wanted.is_empty() || source(at, wanted) == wanted.len()).then_some(())
}

/// Makes the sidecar of an arc. `read` fills a buffer from an offset on, and fails where it can't; `put` writes at an offset of
/// the sidecar. Gives the SHA-256 of what it was made of: the sidecar counts only if that is the one in the header.
///
/// # Errors
/// Those of `read` and `put`.
pub fn encode(
    header: &ParityHeader,
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    put: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<ArcDigest> {
    let (mut digest, mut hashes) = (Sha256::new(), Vec::<u8>::new());
    let hash_all = |bytes: &[u8]| bytes.chunks_exact(SHARD_BYTES).flat_map(hash).collect::<Vec<u8>>();
    for region in (0..header.regions()).map(|number| header.region(number)) {
        let mut data = vec![0; region.data_shards * SHARD_BYTES];
        let data_bytes = (header.arc_bytes - region.offset).min(data.len() as u64) as usize;
        let (own, _) = data.split_at_mut_checked(data_bytes).unwrap_or_default();
        let mut at = region.offset;
        for piece in own.chunks_mut(AT_ONCE * SHARD_BYTES) {
            read(at, piece)?;
            digest.update(&piece);
            at += piece.len() as u64;
        }
        let parity = parity_of(&data, region.parity_shards)?;
        hashes.extend(hash_all(&data).into_iter().chain(hash_all(&parity)));
        put(region.parity_offset, &parity)?;
    }
    let mut pages = Vec::with_capacity(header.pages_bytes() as usize);
    for (of_page, number) in hashes.chunks(PAGE_HASHES as usize * SHARD_HASH_LEN).zip(0..) {
        pages.extend_from_slice(of_page);
        pages.extend_from_slice(&header.check(number, of_page));
    }
    for at in header.pages_at() {
        put(at, &pages)?;
    }
    put(0, &header.encode())?;
    put(header.sidecar_bytes() - PARITY_HEADER_LEN as u64, &header.encode())?;
    Ok(ArcDigest(digest.finalize().into()))
}

/// Parity shards of the data of a region.
fn parity_of(data: &[u8], parity_shards: usize) -> Result<Vec<u8>> {
    let mut parity = vec![0; parity_shards * SHARD_BYTES];
    let mut encoder: Option<HighRateEncoder<DefaultEngine>> = None;
    let (data_shards, broken) = (data.len() / SHARD_BYTES, |e: reed_solomon_simd::Error| Error::SelfCheck {
        what: format!("parity can't be made: {e}"),
    });
    for column in columns() {
        let encoder = match &mut encoder {
            Some(encoder) => {
                encoder.reset(data_shards, parity_shards, COLUMN_BYTES).map_err(broken)?;
                encoder
            }
            none => {
                let new = HighRateEncoder::new(data_shards, parity_shards, COLUMN_BYTES, DefaultEngine::new(), None);
                none.insert(new.map_err(broken)?)
            }
        };
        for part in data.chunks_exact(SHARD_BYTES).filter_map(|shard| shard.get(column.clone())) {
            encoder.add_original_shard(part).map_err(broken)?;
        }
        let made = encoder.encode().map_err(broken)?;
        let targets = parity.chunks_exact_mut(SHARD_BYTES).filter_map(|shard| shard.get_mut(column.clone()));
        targets.zip(made.recovery_iter()).for_each(|(target, made)| target.copy_from_slice(made));
    }
    Ok(parity)
}

/// The shards of data that are not right, as the code gives them; none where it can't.
fn restored(data: &Shards, parity: &Shards) -> BTreeMap<usize, Vec<u8>> {
    let mut shards = BTreeMap::<usize, Vec<u8>>::new();
    let mut decode = |column: Range<usize>| -> Result<(), reed_solomon_simd::Error> {
        let (of_data, of_parity) = (data.right.len(), parity.right.len());
        let mut decoder = HighRateDecoder::new(of_data, of_parity, COLUMN_BYTES, DefaultEngine::new(), None)?;
        data.right_ones(&column).try_for_each(|(number, part)| decoder.add_original_shard(number, part))?;
        parity.right_ones(&column).try_for_each(|(number, part)| decoder.add_recovery_shard(number, part))?;
        for (number, part) in decoder.decode()?.restored_original_iter() {
            shards.entry(number).or_default().extend_from_slice(part);
        }
        Ok(())
    };
    match columns().try_for_each(&mut decode) {
        Ok(()) => shards,
        Err(_) => BTreeMap::new(),
    }
}

fn columns() -> impl Iterator<Item = Range<usize>> {
    (0..SHARD_BYTES).step_by(COLUMN_BYTES).map(|start| start..start + COLUMN_BYTES)
}

fn hash(shard: &[u8]) -> ShardHash {
    short(Sha256::new().chain_update(shard))
}

fn short(digest: Sha256) -> ShardHash {
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(digest.finalize());
    [a, b, c, d, e, f, g, h]
}
