//! What surrounds the frames of an arc: header, frame table (footer) and trailer.
//!
//! ```text
//! header (112): "ASSAYARC" format u16 flags[6] role u8 zero[3] version u32 number u32
//!               backup id[16] arc id[16] salt[32] zero[4] tag[16]
//! trailer (96): "ASSAYEND" format u16 role u8 zero[5] arc id[16] salt[32] footer offset u64
//!               footer length u32 frames u32 tag[16]
//! ```
//! Integers are little endian. `flags` are three u16 sets of features (compatible, read-only compatible,
//! incompatible); this version writes zeros, refuses any incompatible one and ignores the others: the one thing that is
//! not written again as it was read. The tags are AES-GCM tags over
//! nothing with the bytes before them as associated data.

use super::frame::{FrameInfo, FrameKind};
use crate::catalog::ArcRole;
use crate::catalog::commit::footer_fits;
use crate::crypto::{Domain, Keys, TAG_LEN};
use crate::error::Damage;
use crate::ids::{ArcId, ArcName, ArcSalt, BackupId, Version};

pub const ARC_HEADER_LEN: usize = 112;
pub const ARC_TRAILER_LEN: usize = 96;
/// Version of the format that this program writes.
pub const FORMAT: u16 = 1;

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
        out[16] = self.role as u8;
        out[20..24].copy_from_slice(&self.name.version.0.to_le_bytes());
        out[24..28].copy_from_slice(&self.name.number.to_le_bytes());
        out[28..44].copy_from_slice(&keys.backup_id().0);
        out[44..60].copy_from_slice(&self.id.0);
        out[60..92].copy_from_slice(&self.salt.0);
        let tag = keys.arc_cipher(self.id, &self.salt).seal(Domain::Header, 0, &out[..96], &mut []);
        out[96..].copy_from_slice(&tag);
        out
    }

    /// Authenticates and reads a header.
    ///
    /// # Errors
    /// `Truncated`, or `BadHeader` for anything else: another format, another backup dir, changed bytes.
    pub fn decode(bytes: &[u8], keys: &Keys) -> Result<ArcHeader, Damage> {
        let bytes: &[u8; ARC_HEADER_LEN] = prefix(bytes)?;
        let header = ArcHeader {
            name: ArcName { version: Version(u32_at(bytes, 20)), number: u32_at(bytes, 24) },
            role: role(bytes[16]).ok_or(Damage::BadHeader)?,
            id: ArcId(array_at(bytes, 44)),
            salt: ArcSalt(array_at(bytes, 60)),
        };
        let commit = header.role == ArcRole::Commit;
        let ours = bytes[0..8] == *HEADER_MAGIC
            && u16::from_le_bytes(array_at(bytes, 8)) == FORMAT
            && bytes[14..16] == [0, 0]
            && bytes[17..20] == [0; 3]
            && bytes[92..96] == [0; 4]
            && header.name.version <= Version::MAX
            && commit == (header.name.number == 0)
            && BackupId(array_at(bytes, 28)) == keys.backup_id();
        let cipher = keys.arc_cipher(header.id, &header.salt);
        let tag: [u8; TAG_LEN] = array_at(bytes, 96);
        if ours && cipher.open(Domain::Header, 0, &bytes[..96], &mut [], &tag) {
            Ok(header)
        } else {
            Err(Damage::BadHeader)
        }
    }
}

impl ArcHeader {
    /// The backup dir that a header names, authentic or not; None for what is no header.
    pub fn backup_id(bytes: &[u8]) -> Option<BackupId> {
        let bytes: &[u8; ARC_HEADER_LEN] = bytes.first_chunk()?;
        (bytes[0..8] == *HEADER_MAGIC).then(|| BackupId(array_at(bytes, 28)))
    }
}

impl ArcTrailer {
    pub fn encode(&self, keys: &Keys) -> [u8; ARC_TRAILER_LEN] {
        let mut out = [0; ARC_TRAILER_LEN];
        out[0..8].copy_from_slice(TRAILER_MAGIC);
        out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        out[10] = self.role as u8;
        out[16..32].copy_from_slice(&self.id.0);
        out[32..64].copy_from_slice(&self.salt.0);
        out[64..72].copy_from_slice(&self.footer_offset.to_le_bytes());
        out[72..76].copy_from_slice(&self.footer_len.to_le_bytes());
        out[76..80].copy_from_slice(&self.frames.to_le_bytes());
        let tag = keys.arc_cipher(self.id, &self.salt).seal(Domain::Trailer, 0, &out[..80], &mut []);
        out[80..].copy_from_slice(&tag);
        out
    }

    /// Authenticates and reads a trailer.
    ///
    /// # Errors
    /// `Truncated`, or `BadTrailer` for anything else.
    pub fn decode(bytes: &[u8], keys: &Keys) -> Result<ArcTrailer, Damage> {
        let bytes: &[u8; ARC_TRAILER_LEN] = prefix(bytes)?;
        let trailer = ArcTrailer {
            role: role(bytes[10]).ok_or(Damage::BadTrailer)?,
            id: ArcId(array_at(bytes, 16)),
            salt: ArcSalt(array_at(bytes, 32)),
            footer_offset: u64::from_le_bytes(array_at(bytes, 64)),
            footer_len: u32_at(bytes, 72),
            frames: u32_at(bytes, 76),
        };
        let ours = bytes[0..8] == *TRAILER_MAGIC
            && u16::from_le_bytes(array_at(bytes, 8)) == FORMAT
            && bytes[11..16] == [0; 5]
            && footer_fits(trailer.footer_offset, trailer.footer_len, trailer.frames);
        let cipher = keys.arc_cipher(trailer.id, &trailer.salt);
        let tag: [u8; TAG_LEN] = array_at(bytes, 80);
        if ours && cipher.open(Domain::Trailer, 0, &bytes[..80], &mut [], &tag) {
            Ok(trailer)
        } else {
            Err(Damage::BadTrailer)
        }
    }
}

/// A frame table, or part of one: `FrameInfo::encode` of each frame, one after the other. All are of the one kind that
/// the arc's role allows.
pub fn decode_frame_table(plain: &[u8]) -> Result<Vec<FrameInfo>, Damage> {
    let (entries, rest) = plain.as_chunks::<{ FrameInfo::ENCODED_LEN }>();
    let frames: Option<Vec<FrameInfo>> = entries.iter().map(FrameInfo::decode).collect();
    let alike = |frames: &Vec<FrameInfo>| {
        let kind = frames.first().map(|info| info.kind);
        kind != Some(FrameKind::Footer) && frames.iter().all(|info| Some(info.kind) == kind)
    };
    frames.filter(|frames| rest.is_empty() && alike(frames)).ok_or(Damage::BadRecord("frame table"))
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
