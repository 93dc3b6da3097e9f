//! The structure of one arc: what surrounds its frames, its frame table, single frames, and all of it proven.
//!
//! Invariants: what is read of a damaged arc is what authenticates; a table made from the frames themselves is a claim,
//! and each frame is proven when it is opened.

use sha2::{Digest, Sha256};

use super::{Bad, Frame, MAX_READ_BYTES};
use crate::arc::frame::{self, Head};
use crate::arc::{
    ARC_HEADER_LEN, ARC_TRAILER_LEN, ArcHeader, ArcTrailer, FRAME_HEADER_LEN, FrameInfo, FrameKind, VerifiedFrame,
    decode_frame_table,
};
use crate::catalog::{ArcEntry, ArcRole};
use crate::crypto::{ArcCipher, Keys};
use crate::depot::{Depot, StoredArc};
use crate::error::{Damage, Error, Place, Result};
use crate::ids::{ArcDigest, ArcName, ArcSerial, BlockId, FrameNo};

/// An arc of a depot, opened.
pub struct ArcFile {
    stored: Box<dyn StoredArc>,
    name: ArcName,
    len: u64,
    cipher: ArcCipher,
    role: ArcRole,
    /// Where the footer frame is and how many frames precede it, if the trailer is readable.
    footer: Option<(u64, u32, u32)>,
}

impl ArcFile {
    /// Opens by header, or by trailer when the header is damaged.
    ///
    /// # Errors
    /// Damage (`Arc`), or what keeps it from being read.
    pub fn open(depot: &dyn Depot, name: ArcName, keys: &Keys) -> Result<ArcFile> {
        let stored = depot.open(name)?;
        let len = stored.len_bytes();
        let whole = |damage| damaged(name, None, 0, damage);
        let (head, tail) = ends(stored.as_ref())?;
        let header = ArcHeader::decode(&head, keys);
        let trailer = ArcTrailer::decode(&tail, keys);
        let (id, salt, role) = match (&header, &trailer) {
            (Ok(h), _) if h.name == name => (h.id, h.salt, h.role),
            (Ok(_), _) => return Err(whole(Damage::WrongFrame)),
            (Err(_), Ok(t)) => (t.id, t.salt, t.role),
            (Err(e), Err(_)) => return Err(whole(e.clone())),
        };
        let footer = trailer.ok().map(|t| (t.footer_offset, t.footer_len, t.frames));
        Ok(ArcFile { stored, name, len, cipher: keys.arc_cipher(id, &salt), role, footer })
    }

    /// Opens by what the commit record says of the arc: needs neither header nor trailer.
    pub fn open_known(depot: &dyn Depot, entry: &ArcEntry, keys: &Keys) -> Result<ArcFile> {
        let stored = depot.open(entry.name)?;
        Ok(ArcFile {
            name: entry.name,
            len: stored.len_bytes(),
            stored,
            cipher: keys.arc_cipher(entry.id, &entry.salt),
            role: entry.role,
            footer: Some((entry.footer_offset, entry.footer_len, entry.frames)),
        })
    }

    /// The bytes of it.
    pub fn stored(&self) -> &dyn StoredArc {
        self.stored.as_ref()
    }

    /// A frame of it, given where it is and what must be there.
    pub fn frame<'a>(
        &'a self,
        keys: &'a Keys,
        (no, offset, info): (FrameNo, u64, &'a FrameInfo),
        block: Option<BlockId>,
    ) -> Frame<'a> {
        Frame { keys, cipher: &self.cipher, arc: self.name, no, block, offset, info }
    }

    pub fn role(&self) -> ArcRole {
        self.role
    }

    /// True when trailer and length agree: it is not cut.
    pub fn is_whole(&self) -> bool {
        let end = |(at, len, _): (u64, u32, u32)| at.checked_add(u64::from(len) + ARC_TRAILER_LEN as u64);
        self.footer.is_some_and(|footer| end(footer) == Some(self.len))
    }

    /// All frames, from the footer. When it is damaged, from the frames themselves: then as many as stand in a row from the
    /// first one, which may be fewer than the arc had.
    pub fn frame_table(&self, keys: &Keys) -> Result<Vec<FrameInfo>> {
        let error = match self.footer_table(keys) {
            Err(error) if error.is_damage() => error,
            other => return other,
        };
        let table = self.walk_heads()?;
        if table.is_empty() { Err(error) } else { Ok(table) }
    }

    /// All frames, from the footer and nothing else.
    pub fn footer_table(&self, keys: &Keys) -> Result<Vec<FrameInfo>> {
        let Some((at, len, frames)) = self.footer else {
            return Err(damaged(self.name, None, self.len, Damage::BadTrailer));
        };
        let bytes = self.bytes(at, u64::from(len))?;
        let table = open_footer(keys, &self.cipher, self.role, frames, at, &bytes);
        table.map_err(|damage| damaged(self.name, None, at, damage))
    }

    /// Length of the file, bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// The table as the frames claim it, heads and tables opened one after the other, up to the first one that makes no sense
    /// or is cut off; each claim is proven when its frame is opened.
    fn walk_heads(&self) -> Result<Vec<FrameInfo>> {
        let mut table = Vec::new();
        let mut at = ARC_HEADER_LEN as u64;
        let bytes = |at, len| match self.bytes(at, len) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_damage() => Ok(None),
            Err(error) => Err(error),
        };
        while self.footer.is_none_or(|(footer_at, ..)| at < footer_at) && table.len() < FrameNo::MAX.0 as usize {
            let no = FrameNo(table.len() as u32);
            let head = bytes(at, FRAME_HEADER_LEN as u64)?;
            let Some(head) = head.and_then(|head| Head::open(&self.cipher, no, head.first_chunk()?)) else { break };
            let sealed = bytes(at + FRAME_HEADER_LEN as u64, head.table_len() as u64)?;
            let claim = sealed.and_then(|sealed| head.claim(&self.cipher, no, &sealed));
            // Within the file, so the sum is in bounds.
            let fits = |info: &FrameInfo| info.kind == FrameKind::of(self.role) && at + info.frame_len() <= self.len;
            let Some(info) = claim.filter(fits) else { break };
            at += info.frame_len();
            table.push(info);
        }
        Ok(table)
    }

    /// Verifies one frame given the arc's table.
    pub fn open_frame(
        &self,
        keys: &Keys,
        table: &[FrameInfo],
        no: FrameNo,
        serial: Option<ArcSerial>,
    ) -> Result<VerifiedFrame> {
        let (before, info) = table
            .split_at_checked(no.0 as usize)
            .and_then(|(before, rest)| Some((before, rest.first()?)))
            .ok_or_else(|| damaged(self.name, Some(no), 0, Damage::BadRecord("no such frame")))?;
        let offset = ARC_HEADER_LEN as u64 + before.iter().map(FrameInfo::frame_len).sum::<u64>();
        let frame = self.frame(keys, (no, offset, info), serial.map(|serial| BlockId::first(serial, no)));
        let end = offset.checked_add(info.frame_len());
        if end.is_none_or(|end| end > self.len) {
            let found_bytes = self.len.saturating_sub(offset);
            let damage = Damage::Truncated { wanted_bytes: info.frame_len(), found_bytes };
            return Err(Error::Arc { place: frame.place(), damage });
        }
        frame.look(self.stored.as_ref()).map(|fetched| fetched.opened).map_err(|bad: Bad| bad.error)
    }

    fn bytes(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) || len > MAX_READ_BYTES {
            let found_bytes = self.len.saturating_sub(offset).min(len);
            return Err(damaged(self.name, None, offset, Damage::Truncated { wanted_bytes: len, found_bytes }));
        }
        self.stored.exactly(offset, len as usize)
    }
}

/// Verifies every byte of a closed arc whose checksum nothing has recorded; gives what a commit says of it, but
/// for the serial. `advance` is told of bytes as they are done, and says whether to go on.
///
/// # Errors
/// `ARC_…` where it is not exactly what was sealed; `INTERRUPTED`.
pub fn prove(depot: &dyn Depot, name: ArcName, keys: &Keys, advance: impl Fn(u64) -> bool) -> Result<ArcEntry> {
    let arc = ArcFile::open(depot, name, keys)?;
    let whole = |damage| damaged(name, None, 0, damage);
    let (head, tail) = ends(arc.stored())?;
    let (header, trailer) =
        (ArcHeader::decode(&head, keys).map_err(whole)?, ArcTrailer::decode(&tail, keys).map_err(whole)?);
    let same = header.name == name && (header.id, header.salt, header.role) == (trailer.id, trailer.salt, trailer.role);
    if !same || !arc.is_whole() {
        return Err(whole(Damage::BadTrailer));
    }
    let table = arc.footer_table(keys)?;
    let mut digest = Sha256::new();
    digest.update(&head);
    let (mut at, mut plain_bytes) = (ARC_HEADER_LEN as u64, 0);
    for (info, no) in table.iter().zip(0..) {
        let bytes = arc.bytes(at, info.frame_len())?;
        arc.frame(keys, (FrameNo(no), at, info), None).judge(&bytes).map_err(|bad| bad.error)?;
        digest.update(&bytes);
        at += info.frame_len();
        plain_bytes += u64::from(info.plain_len());
        if !advance(info.frame_len()) {
            return Err(Error::Interrupted);
        }
    }
    if at != trailer.footer_offset {
        return Err(whole(Damage::BadRecord("frame table")));
    }
    digest.update(arc.bytes(at, u64::from(trailer.footer_len))?);
    digest.update(&tail);
    Ok(ArcEntry {
        serial: ArcSerial(0),
        name,
        role: header.role,
        id: header.id,
        salt: header.salt,
        arc_bytes: arc.len,
        digest: ArcDigest(digest.finalize().into()),
        frames: trailer.frames,
        footer_offset: trailer.footer_offset,
        footer_len: trailer.footer_len,
        plain_bytes,
    })
}

/// Verifies a footer frame and reads the frame table in it: so many frames, of the kind that the role allows, and they end
/// where the footer begins.
pub fn open_footer(
    keys: &Keys,
    cipher: &ArcCipher,
    role: ArcRole,
    frames: u32,
    footer_offset: u64,
    bytes: &[u8],
) -> Result<Vec<FrameInfo>, Damage> {
    let (info, opened) = frame::open_unknown(keys, cipher, crate::arc::writer::FOOTER_NO, bytes)?;
    if info.kind != FrameKind::Footer {
        return Err(Damage::WrongFrame);
    }
    let table = decode_frame_table(&opened.into_plain())?;
    let fits = table.len() == frames as usize
        && table.iter().all(|info| info.kind == FrameKind::of(role))
        && ARC_HEADER_LEN as u64 + table.iter().map(FrameInfo::frame_len).sum::<u64>() == footer_offset;
    if fits { Ok(table) } else { Err(Damage::BadRecord("frame table")) }
}

/// Header and trailer, or what stands in their places.
pub fn ends(arc: &dyn StoredArc) -> Result<(Vec<u8>, Vec<u8>)> {
    let len = arc.len_bytes();
    let head = arc.exactly(0, len.min(ARC_HEADER_LEN as u64) as usize)?;
    let tail_at = len.saturating_sub(ARC_TRAILER_LEN as u64);
    Ok((head, arc.exactly(tail_at, (len - tail_at) as usize)?))
}

fn damaged(arc: ArcName, frame: Option<FrameNo>, offset: u64, damage: Damage) -> Error {
    Error::Arc { place: Place { arc, frame, block: None, offset }, damage }
}
