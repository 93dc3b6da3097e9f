//! What surrounds the frames of an arc: header, frame table (footer) and trailer.
//!
//! ```text
//! header (112): "ASSAYARC" format u16 flags[6] version u32 number u32 backup id[16] arc id[16] salt[32]
//!               sealed { role u8 zero[7] } tag[16]
//! trailer (96): "ASSAYEND" arc id[16] salt[32]
//!               sealed { footer offset u64 footer length u32 frames u32 role u8 zero[5] format u16 } tag[16]
//! ```
//! Integers are little endian. `flags` are three u16 sets of features (compatible, read-only compatible,
//! incompatible); this version writes zeros, refuses any incompatible one and ignores the others: the one thing that is
//! not written again as it was read. What is clear is associated data of what is sealed: it tells no more than the file's name does.

use super::frame::{FrameInfo, FrameKind};
use crate::catalog::ArcRole;
use crate::catalog::codec::Decoder;
use crate::catalog::commit::footer_fits;
use crate::crypto::{ArcCipher, Domain, Keys, TAG_LEN};
use crate::error::Damage;
use crate::ids::{ArcId, ArcName, ArcSalt, BackupId, Version};

pub const ARC_HEADER_LEN: usize = 112;
pub const ARC_TRAILER_LEN: usize = 96;
/// Where the sealed bytes begin.
const HEADER_CLEAR_LEN: usize = 88;
const TRAILER_CLEAR_LEN: usize = 56;
/// Version of the format that this program writes.
pub const FORMAT: u16 = 2;

/// What an arc begins with, and what its trailer begins with.
pub const HEADER_MAGIC: &[u8; 8] = b"ASSAYARC";
pub const TRAILER_MAGIC: &[u8; 8] = b"ASSAYEND";

/// First bytes of an arc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArcHeader {
    pub name: ArcName,
    pub role: ArcRole,
    pub id: ArcId,
    pub salt: ArcSalt,
}

/// Last bytes of an arc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArcTrailer {
    pub role: ArcRole,
    pub id: ArcId,
    pub salt: ArcSalt,
    pub footer_offset: u64,
    /// Whole footer frame: header, ciphertext and tag.
    pub footer_len: u32,
    pub frames: u32,
}

impl ArcHeader {
    pub fn encode(&self, keys: &Keys) -> [u8; ARC_HEADER_LEN] {
        let mut out = [0; ARC_HEADER_LEN];
        out[0..8].copy_from_slice(HEADER_MAGIC);
        out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..20].copy_from_slice(&self.name.version.0.to_le_bytes());
        out[20..24].copy_from_slice(&self.name.number.to_le_bytes());
        out[24..40].copy_from_slice(&keys.backup_id().0);
        out[40..56].copy_from_slice(&self.id.0);
        out[56..88].copy_from_slice(&self.salt.0);
        out[88] = self.role as u8;
        seal(&keys.arc_cipher(self.id, &self.salt), Domain::Header, &mut out, HEADER_CLEAR_LEN);
        out
    }

    /// Authenticates and reads a header.
    ///
    /// # Errors
    /// `Truncated`, or `BadHeader` for anything else: another format, another backup dir, changed bytes.
    pub fn decode(bytes: &[u8], keys: &Keys) -> Result<ArcHeader, Damage> {
        let mut bytes: [u8; ARC_HEADER_LEN] = *prefix(bytes)?;
        let name = ArcName { version: Version(u32_at(&bytes, 16)), number: u32_at(&bytes, 20) };
        let (id, salt) = (ArcId(array_at(&bytes, 40)), ArcSalt(array_at(&bytes, 56)));
        let ours = bytes[0..8] == *HEADER_MAGIC
            && u16::from_le_bytes(array_at(&bytes, 8)) == FORMAT
            && bytes[14..16] == [0, 0]
            && name.version <= Version::MAX
            && BackupId(array_at(&bytes, 24)) == keys.backup_id();
        if !ours || !open(&keys.arc_cipher(id, &salt), Domain::Header, &mut bytes, HEADER_CLEAR_LEN) {
            return Err(Damage::BadHeader);
        }
        let role = role(bytes[88]).filter(|_| bytes[89..96] == [0; 7]).ok_or(Damage::BadHeader)?;
        let commit = role == ArcRole::Commit;
        if commit == (name.number == 0) { Ok(ArcHeader { name, role, id, salt }) } else { Err(Damage::BadHeader) }
    }
}

impl ArcHeader {
    /// The backup dir that a header names, authentic or not; None for what is no header.
    pub fn backup_id(bytes: &[u8]) -> Option<BackupId> {
        let bytes: &[u8; ARC_HEADER_LEN] = bytes.first_chunk()?;
        (bytes[0..8] == *HEADER_MAGIC).then(|| BackupId(array_at(bytes, 24)))
    }
}

impl ArcTrailer {
    pub fn encode(&self, keys: &Keys) -> [u8; ARC_TRAILER_LEN] {
        let mut out = [0; ARC_TRAILER_LEN];
        out[0..8].copy_from_slice(TRAILER_MAGIC);
        out[8..24].copy_from_slice(&self.id.0);
        out[24..56].copy_from_slice(&self.salt.0);
        out[56..64].copy_from_slice(&self.footer_offset.to_le_bytes());
        out[64..68].copy_from_slice(&self.footer_len.to_le_bytes());
        out[68..72].copy_from_slice(&self.frames.to_le_bytes());
        out[72] = self.role as u8;
        out[78..80].copy_from_slice(&FORMAT.to_le_bytes());
        seal(&keys.arc_cipher(self.id, &self.salt), Domain::Trailer, &mut out, TRAILER_CLEAR_LEN);
        out
    }

    /// Authenticates and reads a trailer.
    ///
    /// # Errors
    /// `Truncated`, or `BadTrailer` for anything else.
    pub fn decode(bytes: &[u8], keys: &Keys) -> Result<ArcTrailer, Damage> {
        let mut bytes: [u8; ARC_TRAILER_LEN] = *prefix(bytes)?;
        let (id, salt) = (ArcId(array_at(&bytes, 8)), ArcSalt(array_at(&bytes, 24)));
        let ours = bytes[0..8] == *TRAILER_MAGIC;
        if !ours || !open(&keys.arc_cipher(id, &salt), Domain::Trailer, &mut bytes, TRAILER_CLEAR_LEN) {
            return Err(Damage::BadTrailer);
        }
        let trailer = ArcTrailer {
            role: role(bytes[72]).ok_or(Damage::BadTrailer)?,
            id,
            salt,
            footer_offset: u64::from_le_bytes(array_at(&bytes, 56)),
            footer_len: u32_at(&bytes, 64),
            frames: u32_at(&bytes, 68),
        };
        let sound = bytes[73..78] == [0; 5]
            && u16::from_le_bytes(array_at(&bytes, 78)) == FORMAT
            && footer_fits(trailer.footer_offset, trailer.footer_len, trailer.frames);
        if sound { Ok(trailer) } else { Err(Damage::BadTrailer) }
    }
}

/// Seals what stands between the clear bytes and the room for the tag, in place.
fn seal<const N: usize>(cipher: &ArcCipher, domain: Domain, bytes: &mut [u8; N], clear_len: usize) {
    let (clear, rest) = bytes.split_at_mut(clear_len);
    if let Some((sealed, tag)) = rest.split_last_chunk_mut::<TAG_LEN>() {
        *tag = cipher.seal(domain, 0, clear, sealed);
    }
}

/// Opens what `seal` has sealed.
fn open<const N: usize>(cipher: &ArcCipher, domain: Domain, bytes: &mut [u8; N], clear_len: usize) -> bool {
    let (clear, rest) = bytes.split_at_mut(clear_len);
    rest.split_last_chunk_mut::<TAG_LEN>().is_some_and(|(sealed, tag)| cipher.open(domain, 0, clear, sealed, tag))
}

/// A frame table, or part of one: `FrameInfo::encode` of each frame, one after the other. All are of the one kind that
/// the arc's role allows.
pub fn decode_frame_table(plain: &[u8]) -> Result<Vec<FrameInfo>, Damage> {
    let bad = Damage::BadRecord("frame table");
    let (mut d, mut frames) = (Decoder::new(plain), Vec::<FrameInfo>::new());
    while !d.is_empty() {
        let info = FrameInfo::decode(&mut d).map_err(|_| bad.clone())?;
        if info.kind == FrameKind::Footer || frames.first().is_some_and(|first| first.kind != info.kind) {
            return Err(bad);
        }
        frames.push(info);
    }
    Ok(frames)
}

#[cfg(test)]
#[path = "shell_tests.rs"]
mod tests;

fn role(code: u8) -> Option<ArcRole> {
    match code {
        1 => Some(ArcRole::Data),
        2 => Some(ArcRole::Catalog),
        3 => Some(ArcRole::Commit),
        _ => None,
    }
}

fn prefix<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], Damage> {
    bytes.first_chunk().ok_or(Damage::Truncated { wanted_bytes: N as u64, found_bytes: bytes.len() as u64 })
}

/// `N` bytes at a constant offset of a fixed-size record.
#[expect(clippy::indexing_slicing, reason = "the caller's layout guarantees that they are there")]
fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[offset..offset + N]);
    out
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}
