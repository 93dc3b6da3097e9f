//! One sealed record of an arc, and the only function that verifies one.
//!
//! Invariant: a `VerifiedBlock` exists only if its bytes were authenticated in their own place, decompressed to
//! their recorded length and hashed to their recorded block hash, in that order. There is no switch round it.

use std::alloc::{Layout, handle_alloc_error};
use std::cell::RefCell;
use std::ops::Deref;

use zstd::zstd_safe::DCtx;

use super::zframe;
use crate::catalog::ArcRole;
use crate::crypto::{ArcCipher, Domain, Keys, TAG_LEN};
use crate::error::Damage;
use crate::ids::{BlockHash, FrameNo};

/// frame number u32 ‖ kind u8 ‖ codec u8 ‖ zero u16 ‖ plain length u32 ‖ stored length u32 ‖ block hash, little endian.
pub const FRAME_HEADER_LEN: usize = 36;
/// What a frame takes beyond its stored bytes.
pub const FRAME_OVERHEAD: usize = FRAME_HEADER_LEN + TAG_LEN;
/// Bounds what a hostile length can make a reader allocate.
pub const MAX_PLAIN_LEN: usize = 64 << 20;

/// What a frame holds; the discriminants are the on-disk codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    Block = 1,
    Catalog = 2,
    Commit = 3,
    Footer = 4,
}

impl FrameKind {
    /// What an arc of this role is made of.
    pub fn of(role: ArcRole) -> FrameKind {
        match role {
            ArcRole::Data => FrameKind::Block,
            ArcRole::Catalog => FrameKind::Catalog,
            ArcRole::Commit => FrameKind::Commit,
        }
    }
}

/// How the plain bytes are stored inside the envelope; the discriminants are the on-disk codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    Plain = 0,
    Zstd = 1,
}

/// What the frame table and the index know of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameInfo {
    pub kind: FrameKind,
    pub codec: Codec,
    /// Bytes of ciphertext, without the tag.
    pub stored_len: u32,
    pub plain_len: u32,
    pub hash: BlockHash,
}

impl FrameInfo {
    pub const ENCODED_LEN: usize = 30;

    /// Bytes that the whole frame takes in the arc.
    pub fn frame_len(&self) -> u64 {
        u64::from(self.stored_len) + FRAME_OVERHEAD as u64
    }

    /// kind u8 ‖ codec u8 ‖ stored length u32 ‖ plain length u32 ‖ block hash.
    pub fn encode(&self) -> [u8; Self::ENCODED_LEN] {
        let mut out = [0; Self::ENCODED_LEN];
        out[0] = self.kind as u8;
        out[1] = self.codec as u8;
        out[2..6].copy_from_slice(&self.stored_len.to_le_bytes());
        out[6..10].copy_from_slice(&self.plain_len.to_le_bytes());
        out[10..].copy_from_slice(&self.hash.0);
        out
    }

    /// None for codes that this version doesn't know and lengths out of bounds.
    pub fn decode(bytes: &[u8; Self::ENCODED_LEN]) -> Option<FrameInfo> {
        let [kind, codec, s0, s1, s2, s3, p0, p1, p2, p3, hash @ ..] = *bytes;
        let info = FrameInfo {
            kind: match kind {
                1 => FrameKind::Block,
                2 => FrameKind::Catalog,
                3 => FrameKind::Commit,
                4 => FrameKind::Footer,
                _ => return None,
            },
            codec: match codec {
                0 => Codec::Plain,
                1 => Codec::Zstd,
                _ => return None,
            },
            stored_len: u32::from_le_bytes([s0, s1, s2, s3]),
            plain_len: u32::from_le_bytes([p0, p1, p2, p3]),
            hash: BlockHash(hash),
        };
        // What does not shrink is stored plain.
        let fits = match info.codec {
            Codec::Plain => info.stored_len == info.plain_len,
            Codec::Zstd => info.stored_len < info.plain_len,
        };
        (fits && info.plain_len as usize <= MAX_PLAIN_LEN).then_some(info)
    }

    /// The header that this frame has on disk.
    pub fn header(&self, no: FrameNo) -> [u8; FRAME_HEADER_LEN] {
        let mut out = [0; FRAME_HEADER_LEN];
        out[0..4].copy_from_slice(&no.0.to_le_bytes());
        out[4] = self.kind as u8;
        out[5] = self.codec as u8;
        out[8..12].copy_from_slice(&self.plain_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.stored_len.to_le_bytes());
        out[16..].copy_from_slice(&self.hash.0);
        out
    }

    /// Reads a header found on disk: a claim, true only once `open` has accepted the frame with it.
    pub fn from_header(header: &[u8; FRAME_HEADER_LEN]) -> Option<(FrameNo, FrameInfo)> {
        let [n0, n1, n2, n3, kind, codec, 0, 0, p0, p1, p2, p3, s0, s1, s2, s3, hash @ ..] = *header else {
            return None;
        };
        let mut info = [0; Self::ENCODED_LEN];
        info[..10].copy_from_slice(&[kind, codec, s0, s1, s2, s3, p0, p1, p2, p3]);
        info[10..].copy_from_slice(&hash);
        Some((FrameNo(u32::from_le_bytes([n0, n1, n2, n3])), FrameInfo::decode(&info)?))
    }

    pub(super) fn domain(&self) -> Domain {
        match self.kind {
            FrameKind::Footer => Domain::Footer,
            FrameKind::Block | FrameKind::Catalog | FrameKind::Commit => Domain::Frame,
        }
    }
}

/// Plain bytes that passed every check. Only `open` makes one.
#[derive(Debug)]
pub struct VerifiedBlock(Vec<u8>);

impl VerifiedBlock {
    /// The bytes, for those that take them apart at once.
    pub fn into_plain(self) -> Vec<u8> {
        self.0
    }
}

impl Deref for VerifiedBlock {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Seals `stored` (already packed) as the frame `no` of an arc and returns the frame's bytes.
pub fn seal(cipher: &ArcCipher, no: FrameNo, info: &FrameInfo, stored: &[u8]) -> Vec<u8> {
    let header = info.header(no);
    let mut out = Vec::with_capacity(FRAME_OVERHEAD + stored.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(stored);
    // The header is in `out`: it can't be too short to be split behind it.
    let (_, body) = out.split_at_mut(FRAME_HEADER_LEN);
    let tag = cipher.seal(info.domain(), no.0, &header, body);
    out.extend_from_slice(&tag);
    out
}

thread_local! {
    /// Decryption buffer and zstd context, kept for the next frame of this thread.
    static SCRATCH: RefCell<(Vec<u8>, Option<DCtx<'static>>)> =
        const { RefCell::new((Vec::new(), None)) };
}

/// A larger buffer is given back after use.
const KEPT_SCRATCH_BYTES: usize = 4 << 20;

/// Verifies one frame: length → header → AEAD → zstd, one frame bounded by the authenticated length → length → block hash.
///
/// `expected` comes from the index or the frame table, `frame` is what was read from the frame's place.
/// Nothing of `frame` is returned unless all of it is right.
pub fn open(
    keys: &Keys,
    cipher: &ArcCipher,
    no: FrameNo,
    expected: &FrameInfo,
    frame: &[u8],
) -> Result<VerifiedBlock, Damage> {
    let wanted_bytes = expected.frame_len();
    let (header, stored, tag) =
        take_apart(frame, wanted_bytes).ok_or(Damage::Truncated { wanted_bytes, found_bytes: frame.len() as u64 })?;
    if *header != expected.header(no) {
        return Err(Damage::WrongFrame);
    }
    let plain = SCRATCH.with_borrow_mut(|(buffer, context)| {
        buffer.clear();
        buffer.extend_from_slice(stored);
        let opened = cipher.open(expected.domain(), no.0, header, buffer, tag);
        let plain = if opened { unpack(context, expected, buffer) } else { Err(Damage::BadTag) };
        if buffer.capacity() > KEPT_SCRATCH_BYTES {
            *buffer = Vec::new();
        }
        plain
    })?;
    let found = keys.block_hash(&plain);
    if found != expected.hash {
        return Err(Damage::HashMismatch { expected: expected.hash, found });
    }
    Ok(VerifiedBlock(plain))
}

/// Tells whether a frame that was just sealed decrypts to `stored` again.
pub fn opens_to(cipher: &ArcCipher, no: FrameNo, info: &FrameInfo, frame: &[u8], stored: &[u8]) -> bool {
    let Some((header, sealed, tag)) = take_apart(frame, info.frame_len()) else { return false };
    SCRATCH.with_borrow_mut(|(buffer, _)| {
        buffer.clear();
        buffer.extend_from_slice(sealed);
        cipher.open(info.domain(), no.0, header, buffer, tag) && buffer == stored
    })
}

fn take_apart(frame: &[u8], wanted_bytes: u64) -> Option<(&[u8; FRAME_HEADER_LEN], &[u8], &[u8; TAG_LEN])> {
    if frame.len() as u64 != wanted_bytes {
        return None;
    }
    let (header, rest) = frame.split_first_chunk()?;
    let (stored, tag) = rest.split_last_chunk()?;
    Some((header, stored, tag))
}

/// A zstd context for `unpack`. Without memory for one the process ends, as it does wherever memory is short: bytes that
/// can't be looked at are not damaged.
pub(super) fn unpacker() -> DCtx<'static> {
    DCtx::try_create().unwrap_or_else(|| handle_alloc_error(Layout::new::<[u8; 128 << 10]>()))
}

/// Stored bytes → plain bytes of the recorded length.
pub(super) fn unpack(
    context: &mut Option<DCtx<'static>>,
    expected: &FrameInfo,
    stored: &[u8],
) -> Result<Vec<u8>, Damage> {
    let plain_len = expected.plain_len as usize;
    if expected.codec == Codec::Plain {
        return if stored.len() == plain_len { Ok(stored.to_vec()) } else { Err(Damage::BadCompression) };
    }
    if !zframe::is_one_frame(stored, expected.plain_len) {
        return Err(Damage::BadCompression);
    }
    let mut plain = Vec::with_capacity(plain_len);
    context.get_or_insert_with(unpacker).decompress(&mut plain, stored).map_err(|_| Damage::BadCompression)?;
    if plain.len() == plain_len { Ok(plain) } else { Err(Damage::BadCompression) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arc::Packer;
    use crate::ids::{ArcId, ArcSalt, BackupId};
    use zeroize::Zeroizing;

    fn sealed(plain: &[u8]) -> (Keys, ArcCipher, FrameInfo, Vec<u8>) {
        let keys = Keys::new(&Zeroizing::new([1; 32]), BackupId([2; 16]));
        let cipher = keys.arc_cipher(ArcId([3; 16]), &ArcSalt([4; 32]));
        let packed = Packer::new(3).unwrap().pack(plain).unwrap();
        let info = FrameInfo {
            kind: FrameKind::Block,
            codec: packed.codec,
            stored_len: packed.stored.len() as u32,
            plain_len: plain.len() as u32,
            hash: keys.block_hash(plain),
        };
        let bytes = seal(&cipher, FrameNo(5), &info, &packed.stored);
        (keys, cipher, info, bytes)
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_refused() {
        for plain in [&b"hello hello hello hello hello hello hello hello hello"[..], b"x", b""] {
            let (keys, cipher, info, bytes) = sealed(plain);
            assert_eq!(&*open(&keys, &cipher, FrameNo(5), &info, &bytes).unwrap(), plain);
            assert_eq!(FrameInfo::from_header(bytes.first_chunk().unwrap()), Some((FrameNo(5), info)));
            assert_eq!(FrameInfo::decode(&info.encode()), Some(info));
            for at in 0..bytes.len() {
                for mask in [1, 0x80, 0xff] {
                    let mut bad = bytes.clone();
                    bad[at] ^= mask;
                    let wanted = if at < FRAME_HEADER_LEN { Damage::WrongFrame } else { Damage::BadTag };
                    assert_eq!(open(&keys, &cipher, FrameNo(5), &info, &bad).err(), Some(wanted), "byte {at}");
                }
                let cut = open(&keys, &cipher, FrameNo(5), &info, &bytes[..at]);
                assert!(matches!(cut, Err(Damage::Truncated { .. })));
            }
            assert_eq!(open(&keys, &cipher, FrameNo(6), &info, &bytes).err(), Some(Damage::WrongFrame));
        }
    }

    #[test]
    fn a_frame_sealed_over_other_bytes_than_its_hash_says_is_refused() {
        let (keys, cipher, mut info, _) = sealed(b"what the hash is of, but not what is sealed");
        info.codec = Codec::Plain;
        info.stored_len = info.plain_len;
        let bytes = seal(&cipher, FrameNo(0), &info, &vec![b'.'; info.plain_len as usize]);
        assert!(matches!(open(&keys, &cipher, FrameNo(0), &info, &bytes), Err(Damage::HashMismatch { .. })));
    }

    #[test]
    fn a_zstd_bomb_is_stopped_at_the_recorded_length() {
        let (keys, cipher, mut info, _) = sealed(b"");
        let bomb = zstd::bulk::compress(&vec![0; 16 << 20], 3).unwrap();
        info.codec = Codec::Zstd;
        info.plain_len = 4096;
        info.stored_len = bomb.len() as u32;
        let bytes = seal(&cipher, FrameNo(0), &info, &bomb);
        assert_eq!(open(&keys, &cipher, FrameNo(0), &info, &bytes).err(), Some(Damage::BadCompression));
    }
}
