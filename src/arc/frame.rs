//! One sealed record of an arc, with one block in it or several, and the only function that verifies one.
//!
//! Invariant: a `VerifiedBlock` exists only if its frame was authenticated in its own place and decompressed to its
//! recorded length, and each block in it hashed to its recorded block hash, in that order. There is no switch round it.

use std::alloc::{Layout, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, Range};
use std::sync::Arc;

use zstd::zstd_safe::DCtx;

use super::pack::Packed;
use super::zframe;
use crate::catalog::ArcRole;
use crate::catalog::codec::{BadRecord, Decoder, Encoder};
use crate::crypto::{ArcCipher, Domain, Keys, TAG_LEN};
use crate::error::Damage;
use crate::ids::{BlockHash, FrameNo, Slot};

/// A sealed head on disk: the 16 bytes of it and their tag.
pub const FRAME_HEADER_LEN: usize = HEAD_LEN + TAG_LEN;
/// frame number u32 ‖ kind u8 ‖ codec u8 ‖ blocks u16 ‖ stored length u32 ‖ plain length u32, little endian.
const HEAD_LEN: usize = 16;
/// What a frame takes beyond its stored bytes and its table.
pub const FRAME_OVERHEAD: usize = FRAME_HEADER_LEN + TAG_LEN;
/// An entry of a frame's table: plain length u32 ‖ block hash.
pub const BLOCK_ENTRY_LEN: usize = 24;
/// Blocks that a frame may hold.
pub const MAX_BLOCKS: usize = 1 << Slot::BITS;
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

    fn of_code(code: u8) -> Option<FrameKind> {
        [FrameKind::Block, FrameKind::Catalog, FrameKind::Commit, FrameKind::Footer]
            .into_iter()
            .find(|kind| *kind as u8 == code)
    }
}

/// How the plain bytes are stored inside the envelope; the discriminants are the on-disk codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    Plain = 0,
    Zstd = 1,
}

impl Codec {
    fn of_code(code: u8) -> Option<Codec> {
        [Codec::Plain, Codec::Zstd].into_iter().find(|codec| *codec as u8 == code)
    }
}

/// What is known of a block before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockInfo {
    pub len: u32,
    pub hash: BlockHash,
}

impl BlockInfo {
    pub fn of(keys: &Keys, plain: &[u8]) -> BlockInfo {
        BlockInfo { len: plain.len() as u32, hash: keys.block_hash(plain) }
    }
}

/// What the frame table and the index know of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameInfo {
    pub kind: FrameKind,
    pub codec: Codec,
    /// Bytes that the blocks take as they are stored, all together.
    pub stored_len: u32,
    /// One, or up to `MAX_BLOCKS` of a frame of blocks.
    pub blocks: Vec<BlockInfo>,
}

/// The 16 bytes that begin a frame, opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    kind: FrameKind,
    codec: Codec,
    blocks: u16,
    stored_len: u32,
    plain_len: u32,
}

impl Head {
    fn of(info: &FrameInfo) -> Head {
        let FrameInfo { kind, codec, stored_len, ref blocks } = *info;
        Head { kind, codec, blocks: blocks.len() as u16, stored_len, plain_len: info.plain_len() }
    }

    fn encode(&self, no: FrameNo) -> [u8; HEAD_LEN] {
        let mut out = [0; HEAD_LEN];
        out[0..4].copy_from_slice(&no.0.to_le_bytes());
        out[4] = self.kind as u8;
        out[5] = self.codec as u8;
        out[6..8].copy_from_slice(&self.blocks.to_le_bytes());
        out[8..12].copy_from_slice(&self.stored_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.plain_len.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; HEAD_LEN]) -> Option<(FrameNo, Head)> {
        let [n0, n1, n2, n3, kind, codec, b0, b1, s0, s1, s2, s3, p0, p1, p2, p3] = *bytes;
        let head = Head {
            kind: FrameKind::of_code(kind)?,
            codec: Codec::of_code(codec)?,
            blocks: u16::from_le_bytes([b0, b1]),
            stored_len: u32::from_le_bytes([s0, s1, s2, s3]),
            plain_len: u32::from_le_bytes([p0, p1, p2, p3]),
        };
        head.is_possible().then_some((FrameNo(u32::from_le_bytes([n0, n1, n2, n3])), head))
    }

    /// Opens the head that begins a frame: what it says is authentic.
    pub fn open(cipher: &ArcCipher, no: FrameNo, sealed: &[u8; FRAME_HEADER_LEN]) -> Option<Head> {
        let (head, tag) = sealed.split_first_chunk::<HEAD_LEN>()?;
        let mut head = *head;
        let opened = cipher.open(Domain::Head, no.0, &[], &mut head, tag.first_chunk()?);
        Head::decode(&head).filter(|(found, _)| opened && *found == no).map(|(_, head)| head)
    }

    fn is_possible(&self) -> bool {
        let most = if self.kind == FrameKind::Block { MAX_BLOCKS } else { 1 };
        // What does not shrink is stored plain.
        let fits = match self.codec {
            Codec::Plain => self.stored_len == self.plain_len,
            Codec::Zstd => self.stored_len < self.plain_len,
        };
        fits && (1..=most).contains(&usize::from(self.blocks)) && self.plain_len as usize <= MAX_PLAIN_LEN
    }

    /// Bytes of the table that the body begins with.
    pub fn table_len(&self) -> usize {
        usize::from(self.blocks) * BLOCK_ENTRY_LEN
    }

    /// What the table behind the sealed head says, `sealed` being as many bytes of the body: a claim, true only once `open`
    /// has accepted the frame with it.
    pub fn claim(&self, cipher: &ArcCipher, no: FrameNo, sealed: &[u8]) -> Option<FrameInfo> {
        let mut table = sealed.get(..self.table_len())?.to_vec();
        cipher.decrypt_unproven(self.kind.domain(), no.0, &mut table);
        self.with_table(&table)
    }

    fn with_table(&self, table: &[u8]) -> Option<FrameInfo> {
        let (entries, rest) = table.as_chunks::<BLOCK_ENTRY_LEN>();
        let block = |[l0, l1, l2, l3, hash @ ..]: &[u8; BLOCK_ENTRY_LEN]| BlockInfo {
            len: u32::from_le_bytes([*l0, *l1, *l2, *l3]),
            hash: BlockHash(*hash),
        };
        let Head { kind, codec, stored_len, .. } = *self;
        let info = FrameInfo { kind, codec, stored_len, blocks: entries.iter().map(block).collect() };
        (rest.is_empty() && info.is_possible() && Head::of(&info) == *self).then_some(info)
    }
}

impl FrameInfo {
    /// Of a frame that holds one block.
    pub fn of_one(kind: FrameKind, packed: &Packed, block: BlockInfo) -> FrameInfo {
        FrameInfo { kind, codec: packed.codec, stored_len: packed.stored.len() as u32, blocks: vec![block] }
    }

    /// Bytes that the whole frame takes in the arc.
    pub fn frame_len(&self) -> u64 {
        (FRAME_OVERHEAD + self.blocks.len() * BLOCK_ENTRY_LEN) as u64 + u64::from(self.stored_len)
    }

    /// Bytes of its blocks.
    pub fn plain_len(&self) -> u32 {
        self.blocks.iter().fold(0, |sum: u32, block| sum.saturating_add(block.len))
    }

    pub fn block(&self, slot: Slot) -> Option<&BlockInfo> {
        self.blocks.get(usize::from(slot.0))
    }

    /// Slots and blocks, in order.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, &BlockInfo)> {
        (0..=Slot::MAX.0).map(Slot).zip(&self.blocks)
    }

    /// An entry of a frame table: kind ‖ codec ‖ stored length ‖ list of (plain length, block hash).
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        e.u8(self.kind as u8);
        e.u8(self.codec as u8);
        e.uint(u64::from(self.stored_len));
        e.uint(self.blocks.len() as u64);
        for block in &self.blocks {
            e.uint(u64::from(block.len));
            e.raw(&block.hash.0);
        }
        e.0
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<FrameInfo, BadRecord> {
        const BAD: BadRecord = BadRecord("frame table");
        let (kind, codec) = (FrameKind::of_code(d.u8()?).ok_or(BAD)?, Codec::of_code(d.u8()?).ok_or(BAD)?);
        let (stored_len, count) = (d.small()?, d.count()?);
        if count > MAX_BLOCKS {
            return Err(BAD);
        }
        let mut blocks = Vec::with_capacity(count);
        for _ in 0..count {
            blocks.push(BlockInfo { len: d.small()?, hash: BlockHash(d.array()?) });
        }
        Some(FrameInfo { kind, codec, stored_len, blocks }).filter(FrameInfo::is_possible).ok_or(BAD)
    }

    /// Only a block that is alone may be empty.
    fn is_possible(&self) -> bool {
        let plain_len: u64 = self.blocks.iter().map(|block| u64::from(block.len)).sum();
        let alone = self.blocks.len() == 1;
        plain_len <= MAX_PLAIN_LEN as u64
            && self.blocks.len() <= MAX_BLOCKS
            && self.blocks.iter().all(|block| alone || block.len > 0)
            && Head::of(self).is_possible()
    }

    /// The sealed head that this frame has on disk.
    pub fn header(&self, cipher: &ArcCipher, no: FrameNo) -> [u8; FRAME_HEADER_LEN] {
        let mut out = [0; FRAME_HEADER_LEN];
        let (head, tag) = out.split_at_mut(HEAD_LEN);
        head.copy_from_slice(&self.head(no));
        tag.copy_from_slice(&cipher.seal(Domain::Head, no.0, &[], head));
        out
    }

    /// What the head says: the body is bound to it.
    pub fn head(&self, no: FrameNo) -> [u8; HEAD_LEN] {
        Head::of(self).encode(no)
    }

    pub(super) fn table(&self) -> Vec<u8> {
        let mut table = Vec::with_capacity(self.blocks.len() * BLOCK_ENTRY_LEN);
        for block in &self.blocks {
            table.extend_from_slice(&block.len.to_le_bytes());
            table.extend_from_slice(&block.hash.0);
        }
        table
    }

    /// The first block whose bytes do not have its hash, and the hash that they have.
    pub(super) fn first_mismatch(&self, keys: &Keys, plain: &[u8]) -> Option<(Slot, BlockHash)> {
        let mut rest = plain;
        self.slots().find_map(|(slot, block)| {
            let (bytes, after) = rest.split_at_checked(block.len as usize).unwrap_or((rest, &[]));
            rest = after;
            Some((slot, keys.block_hash(bytes))).filter(|(_, found)| *found != block.hash)
        })
    }
}

impl FrameKind {
    pub(super) fn domain(self) -> Domain {
        match self {
            FrameKind::Footer => Domain::Footer,
            FrameKind::Block | FrameKind::Catalog | FrameKind::Commit => Domain::Frame,
        }
    }
}

/// Plain bytes of all blocks of a frame that passed every check. Only `open` makes one; clones share the bytes.
#[derive(Debug, Clone)]
pub struct VerifiedFrame(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    plain: Vec<u8>,
    /// Where each block ends.
    ends: Vec<u32>,
}

impl VerifiedFrame {
    fn new(plain: Vec<u8>, info: &FrameInfo) -> VerifiedFrame {
        let end = |end: &mut u32, block: &BlockInfo| {
            *end += block.len;
            Some(*end)
        };
        VerifiedFrame(Arc::new(Opened { plain, ends: info.blocks.iter().scan(0, end).collect() }))
    }

    pub fn block(&self, slot: Slot) -> Option<VerifiedBlock> {
        let at = usize::from(slot.0);
        let end = *self.0.ends.get(at)?;
        let start = at.checked_sub(1).and_then(|before| self.0.ends.get(before)).copied().unwrap_or(0);
        Some(VerifiedBlock { frame: self.clone(), bytes: start as usize..end as usize })
    }

    pub fn blocks(&self) -> usize {
        self.0.ends.len()
    }

    /// Bytes of its blocks.
    pub fn plain_len(&self) -> u64 {
        self.0.plain.len() as u64
    }

    /// Bytes that it takes while it is kept.
    pub fn memory_bytes(&self) -> u64 {
        (self.0.plain.capacity() + size_of_val(self.0.ends.as_slice())) as u64
    }

    /// The bytes of all blocks, for those that take them apart at once.
    pub fn into_plain(self) -> Vec<u8> {
        Arc::try_unwrap(self.0).map_or_else(|shared| shared.plain.clone(), |opened| opened.plain)
    }
}

/// Plain bytes of a block that passed every check: a part of its frame's.
#[derive(Debug, Clone)]
pub struct VerifiedBlock {
    frame: VerifiedFrame,
    bytes: Range<usize>,
}

impl Deref for VerifiedBlock {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.frame.0.plain.get(self.bytes.clone()).unwrap_or_default()
    }
}

/// Seals `stored` (already packed) as the frame `no` of an arc and returns the frame's bytes.
pub fn seal(cipher: &ArcCipher, no: FrameNo, info: &FrameInfo, stored: &[u8]) -> Vec<u8> {
    let table = info.table();
    let mut out = Vec::with_capacity(FRAME_OVERHEAD + table.len() + stored.len());
    out.extend_from_slice(&info.header(cipher, no));
    out.extend_from_slice(&table);
    out.extend_from_slice(stored);
    // The head is in `out`: it can't be too short to be split behind it.
    let (_, body) = out.split_at_mut(FRAME_HEADER_LEN);
    let tag = cipher.seal(info.kind.domain(), no.0, &info.head(no), body);
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

/// Verifies one frame: length → head → AEAD → table → zstd, one frame bounded by the authenticated length → length → hash of
/// each block.
///
/// `expected` comes from the index or the frame table, `frame` is what was read from the frame's place.
/// Nothing of `frame` is returned unless all of it is right.
pub fn open(
    keys: &Keys,
    cipher: &ArcCipher,
    no: FrameNo,
    expected: &FrameInfo,
    frame: &[u8],
) -> Result<VerifiedFrame, Damage> {
    let wanted_bytes = expected.frame_len();
    let (header, body, tag) =
        take_apart(frame, wanted_bytes).ok_or(Damage::Truncated { wanted_bytes, found_bytes: frame.len() as u64 })?;
    if *header != expected.header(cipher, no) {
        return Err(Damage::WrongFrame);
    }
    let plain = SCRATCH.with_borrow_mut(|(buffer, context)| {
        buffer.clear();
        buffer.extend_from_slice(body);
        let opened = cipher.open(expected.kind.domain(), no.0, &expected.head(no), buffer, tag);
        let plain = match buffer.strip_prefix(expected.table().as_slice()) {
            _ if !opened => Err(Damage::BadTag),
            // An authentic frame with other blocks in it.
            None => Err(Damage::WrongFrame),
            Some(stored) => unpack(context, expected, stored),
        };
        if buffer.capacity() > KEPT_SCRATCH_BYTES {
            *buffer = Vec::new();
        }
        plain
    })?;
    if let Some((slot, found)) = expected.first_mismatch(keys, &plain) {
        let expected = expected.block(slot).map_or(found, |block| block.hash);
        return Err(Damage::HashMismatch { expected, found });
    }
    Ok(VerifiedFrame::new(plain, expected))
}

/// Verifies a frame of which nothing but its number is known.
///
/// # Errors
/// As `open`; `WrongFrame` where its head does not open.
pub fn open_unknown(
    keys: &Keys,
    cipher: &ArcCipher,
    no: FrameNo,
    frame: &[u8],
) -> Result<(FrameInfo, VerifiedFrame), Damage> {
    let found_bytes = frame.len() as u64;
    let (header, body) =
        frame.split_first_chunk().ok_or(Damage::Truncated { wanted_bytes: FRAME_OVERHEAD as u64, found_bytes })?;
    let head = Head::open(cipher, no, header).ok_or(Damage::WrongFrame)?;
    let wanted_bytes = (FRAME_OVERHEAD + head.table_len()) as u64 + u64::from(head.stored_len);
    if wanted_bytes != found_bytes {
        return Err(Damage::Truncated { wanted_bytes, found_bytes });
    }
    // A table that makes no sense was changed: then the tag is not right either.
    let info = head.claim(cipher, no, body).ok_or(Damage::BadTag)?;
    let opened = open(keys, cipher, no, &info, frame)?;
    Ok((info, opened))
}

/// Number and content of a frame as an opened head and the table behind it claim them.
#[cfg(test)]
pub(super) fn claimed(bytes: &[u8]) -> Option<(FrameNo, FrameInfo)> {
    let (head, table) = bytes.split_first_chunk()?;
    let (no, head) = Head::decode(head)?;
    Some((no, head.with_table(table)?))
}

/// Tells whether a frame that was just sealed decrypts to `stored` again, behind its table.
pub fn opens_to(cipher: &ArcCipher, no: FrameNo, info: &FrameInfo, frame: &[u8], stored: &[u8]) -> bool {
    let Some((header, sealed, tag)) = take_apart(frame, info.frame_len()) else { return false };
    SCRATCH.with_borrow_mut(|(buffer, _)| {
        buffer.clear();
        buffer.extend_from_slice(sealed);
        Head::open(cipher, no, header) == Some(Head::of(info))
            && cipher.open(info.kind.domain(), no.0, &info.head(no), buffer, tag)
            && buffer.strip_prefix(info.table().as_slice()) == Some(stored)
    })
}

fn take_apart(frame: &[u8], wanted_bytes: u64) -> Option<(&[u8; FRAME_HEADER_LEN], &[u8], &[u8; TAG_LEN])> {
    if frame.len() as u64 != wanted_bytes {
        return None;
    }
    let (header, rest) = frame.split_first_chunk()?;
    let (body, tag) = rest.split_last_chunk()?;
    Some((header, body, tag))
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
    let plain_len = expected.plain_len();
    if expected.codec == Codec::Plain {
        return if stored.len() == plain_len as usize { Ok(stored.to_vec()) } else { Err(Damage::BadCompression) };
    }
    if !zframe::is_one_frame(stored, plain_len) {
        return Err(Damage::BadCompression);
    }
    let mut plain = Vec::with_capacity(plain_len as usize);
    context.get_or_insert_with(unpacker).decompress(&mut plain, stored).map_err(|_| Damage::BadCompression)?;
    if plain.len() == plain_len as usize { Ok(plain) } else { Err(Damage::BadCompression) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arc::Packer;
    use crate::ids::{ArcId, ArcSalt, BackupId};
    use zeroize::Zeroizing;

    fn cipher() -> (Keys, ArcCipher) {
        let keys = Keys::new(&Zeroizing::new([1; 32]), BackupId([2; 16]));
        let cipher = keys.arc_cipher(ArcId([3; 16]), &ArcSalt([4; 32]));
        (keys, cipher)
    }

    fn sealed(blocks: &[&[u8]]) -> (Keys, ArcCipher, FrameInfo, Vec<u8>) {
        let (keys, cipher) = cipher();
        let Packed { codec, stored } = Packer::new(3).unwrap().pack(&blocks.concat()).unwrap();
        let blocks = blocks.iter().map(|plain| BlockInfo::of(&keys, plain)).collect();
        let info = FrameInfo { kind: FrameKind::Block, codec, stored_len: stored.len() as u32, blocks };
        let bytes = seal(&cipher, FrameNo(5), &info, &stored);
        (keys, cipher, info, bytes)
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_refused() {
        let text = &b"hello hello hello hello hello hello hello hello hello"[..];
        for blocks in [&[text][..], &[b"x"], &[b""], &[b"x", text, b"yz"], &[text, text, text]] {
            let (keys, cipher, info, bytes) = sealed(blocks);
            let opened = open(&keys, &cipher, FrameNo(5), &info, &bytes).unwrap();
            for (slot, block) in (0..).map(Slot).zip(blocks) {
                assert_eq!(&*opened.block(slot).unwrap(), *block);
            }
            assert!(opened.block(Slot(blocks.len() as u8)).is_none());
            assert_eq!(opened.into_plain(), blocks.concat());
            assert_eq!(open_unknown(&keys, &cipher, FrameNo(5), &bytes).unwrap().0, info);
            assert_eq!(FrameInfo::decode(&mut Decoder::new(&info.encode())), Ok(info.clone()));
            for at in 0..bytes.len() {
                for mask in [1, 0x80, 0xff] {
                    let mut bad = bytes.clone();
                    bad[at] ^= mask;
                    let wanted = if at < FRAME_HEADER_LEN { Damage::WrongFrame } else { Damage::BadTag };
                    assert_eq!(open_unknown(&keys, &cipher, FrameNo(5), &bad).err(), Some(wanted.clone()), "byte {at}");
                    assert_eq!(open(&keys, &cipher, FrameNo(5), &info, &bad).err(), Some(wanted), "byte {at}");
                }
                for cut in [
                    open(&keys, &cipher, FrameNo(5), &info, &bytes[..at]).err(),
                    open_unknown(&keys, &cipher, FrameNo(5), &bytes[..at]).err(),
                ] {
                    assert!(matches!(cut, Some(Damage::Truncated { .. })));
                }
            }
            assert_eq!(open(&keys, &cipher, FrameNo(6), &info, &bytes).err(), Some(Damage::WrongFrame));
        }
    }

    #[test]
    fn a_frame_sealed_over_other_bytes_than_a_hash_says_is_refused() {
        let (keys, cipher, mut info, bytes) = sealed(&[b"what", b"the hash is of, but not", b"what is sealed"]);
        let stored = b"what" as &[u8];
        let sealed = seal(&cipher, FrameNo(5), &info, &[stored, &b"."[..].repeat(37)].concat());
        assert!(matches!(open(&keys, &cipher, FrameNo(5), &info, &sealed), Err(Damage::HashMismatch { .. })));
        // Other blocks than those that are in it, or other bounds between them.
        info.blocks[1].hash.0[0] ^= 1;
        assert_eq!(open(&keys, &cipher, FrameNo(5), &info, &bytes).err(), Some(Damage::WrongFrame));
        info.blocks[1].hash.0[0] ^= 1;
        (info.blocks[0].len, info.blocks[1].len) = (info.blocks[0].len - 1, info.blocks[1].len + 1);
        assert_eq!(open(&keys, &cipher, FrameNo(5), &info, &bytes).err(), Some(Damage::WrongFrame));
    }

    #[test]
    fn a_zstd_bomb_is_stopped_at_the_recorded_length() {
        let (keys, cipher, mut info, _) = sealed(&[b""]);
        let bomb = zstd::bulk::compress(&vec![0; 16 << 20], 3).unwrap();
        info.codec = Codec::Zstd;
        info.blocks[0].len = 4096;
        info.stored_len = bomb.len() as u32;
        let bytes = seal(&cipher, FrameNo(0), &info, &bomb);
        assert_eq!(open(&keys, &cipher, FrameNo(0), &info, &bytes).err(), Some(Damage::BadCompression));
    }
}
