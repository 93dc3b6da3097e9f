//! Puts a part of an arc back, in place: a frame, or what surrounds the frames.
//!
//! Invariant: only the recorded bytes are written. Of a frame the tag and the block hashes prove that; of the rest the
//! recorded SHA-256 of the whole arc, computed with the new parts before anything is written.

use sha2::{Digest, Sha256};

use super::replace::Stretch;
use crate::arc::repair::repair;
use crate::arc::writer::FOOTER_NO;
use crate::arc::{
    ARC_HEADER_LEN, ArcHeader, ArcTrailer, BLOCK_ENTRY_LEN, BlockInfo, Codec, FRAME_OVERHEAD, FrameInfo, FrameKind,
    Packer, frame,
};
use crate::backupdir::{BackupDir, MendLock};
use crate::catalog::ArcEntry;
use crate::crypto::{ArcCipher, Keys};
use crate::error::{Damage, Error, Result};
use crate::fetch::Frame;
use crate::ids::FrameNo;
use crate::index::Index;

/// Bytes of an arc that are hashed at a time.
const READ_BYTES: usize = 1 << 20;

/// A frame, where it is and what must be there.
#[derive(Debug, Clone, Copy)]
pub struct FrameAt<'a> {
    pub arc: &'a ArcEntry,
    pub no: FrameNo,
    /// Of its first byte in the arc.
    pub offset: u64,
    pub info: &'a FrameInfo,
}

/// Writes a frame in place as it was written first (`arc::repair` or another copy gives the bytes); false if it is
/// there already.
///
/// # Errors
/// `Arc` if the bytes are not this very frame; `NOT_FIXED` and `IO`, and then the arc is as it was.
pub fn rewrite_frame(dir: &BackupDir, _: &MendLock, at: FrameAt<'_>, bytes: &[u8]) -> Result<bool> {
    let cipher = dir.keys().arc_cipher(at.arc.id, &at.arc.salt);
    let FrameAt { arc, no, offset, info } = at;
    let frame = Frame { keys: dir.keys(), cipher: &cipher, arc: arc.name, no, block: None, offset, info };
    frame.judge(bytes).map_err(|bad| bad.error)?;
    let part = at.no.0.to_string();
    let stretch =
        Stretch { dir: dir.own(), arc: at.arc.name, part: &part, offset: at.offset, right: bytes, last: false };
    stretch.replace(&|found| frame.judge(found).is_ok())
}

/// Rebuilds header, footer and trailer of an arc from its entry and the index, and writes those that differ; says
/// which.
///
/// # Errors
/// `NOT_FIXED` if the arc would not have its recorded SHA-256: a frame is damaged too, or the footer can't be made
/// again to the byte. Nothing is written then.
pub fn rewrite_shell(dir: &BackupDir, _: &MendLock, index: &Index, entry: &ArcEntry) -> Result<Vec<&'static str>> {
    let path = dir.own().path_of(entry.name.to_string());
    let refuse = |what: &str| Error::NotFixed { path: path.clone(), what: what.into() };
    let keys = dir.keys();
    let ArcEntry { name, role, id, salt, footer_offset, footer_len, frames, .. } = *entry;
    let header = ArcHeader { name, role, id, salt }.encode(keys);
    let trailer = ArcTrailer { role, id, salt, footer_offset, footer_len, frames }.encode(keys);
    let file = dir.arcs().open(name)?;
    let there = file.len_bytes().saturating_sub(footer_offset).min(u64::from(footer_len));
    let damaged = file.exactly(footer_offset, there as usize)?;
    let cipher = keys.arc_cipher(id, &salt);
    let table = frame_table(index, entry)?;
    let footer = footer(keys, &cipher, &table, footer_len, &damaged)?
        .ok_or_else(|| refuse("its footer cannot be rebuilt: it compresses differently now"))?;
    let tail = [footer.as_slice(), &trailer].concat();

    let mut digest = Sha256::new();
    digest.update(header);
    let mut at = ARC_HEADER_LEN as u64;
    while at < footer_offset {
        let count = (footer_offset - at).min(READ_BYTES as u64) as usize;
        digest.update(file.exactly(at, count).map_err(|error| match error {
            Error::Arc { damage: Damage::Truncated { .. }, .. } => refuse("it is cut short"),
            other => other,
        })?);
        at += count as u64;
    }
    digest.update(&tail);
    if entry.digest.0 != <[u8; 32]>::from(digest.finalize()) {
        return Err(refuse("it cannot be rebuilt: frames of it are damaged too, or it was written by another program"));
    }
    let mut replaced = Vec::new();
    let head = Stretch { dir: dir.own(), arc: name, part: "header", offset: 0, right: &header, last: false };
    if head.replace(&|found| ArcHeader::decode(found, keys).is_ok())? {
        replaced.push("header");
    }
    let end = Stretch { dir: dir.own(), arc: name, part: "footer", offset: footer_offset, right: &tail, last: true };
    if end.replace(&|found| found.get(footer.len()..).is_some_and(|t| ArcTrailer::decode(t, keys).is_ok()))? {
        replaced.push("footer and trailer");
    }
    Ok(replaced)
}

/// All frames of an arc, by the index.
pub(super) fn frame_table(index: &Index, entry: &ArcEntry) -> Result<Vec<FrameInfo>> {
    let mut table: Vec<FrameInfo> = Vec::new();
    while (table.len() as u64) < u64::from(entry.frames) {
        let chunk = index.frame_chunk(entry.serial, FrameNo(table.len() as u32))?;
        let known = table.len() - (chunk.first.0 as usize).min(table.len());
        table.extend(chunk.frames.into_iter().skip(known));
    }
    Ok(table)
}

/// The footer as it was written: what is there, put right if need be, or sealed again. None if that has another length.
pub(super) fn footer(
    keys: &Keys,
    cipher: &ArcCipher,
    table: &[FrameInfo],
    footer_len: u32,
    damaged: &[u8],
) -> Result<Option<Vec<u8>>> {
    let plain: Vec<u8> = table.iter().flat_map(FrameInfo::encode).collect();
    let stored_len = footer_len.saturating_sub((FRAME_OVERHEAD + BLOCK_ENTRY_LEN) as u32);
    let info = FrameInfo {
        kind: FrameKind::Footer,
        codec: if stored_len as usize == plain.len() { Codec::Plain } else { Codec::Zstd },
        stored_len,
        blocks: vec![BlockInfo::of(keys, &plain)],
    };
    if let Some(repaired) = repair(keys, cipher, FOOTER_NO, &info, damaged) {
        return Ok(Some(repaired.frame));
    }
    let packed = Packer::new(FOOTER_LEVEL)?.pack(&plain)?;
    let same = packed.codec == info.codec && packed.stored.len() == stored_len as usize;
    // Sealing other bytes under this nonce would never leave this process: the digest is compared first.
    Ok(same.then(|| frame::seal(cipher, FOOTER_NO, &info, &packed.stored)))
}

/// The zstd level at which all writers of arcs pack their footers.
const FOOTER_LEVEL: i32 = 3;
