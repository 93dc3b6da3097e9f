//! Writes one arc: numbers frames, seals each, opens it again and compares before a byte goes out.
//!
//! Invariants: frame numbers are dense from 0 and never reused; an arc that was not finished is never appended to.

use std::io::Write;

use sha2::{Digest, Sha256};

use super::frame::{self, BlockInfo, FrameInfo, FrameKind};
use super::pack::{Packed, Packer};
use super::shell::{ARC_HEADER_LEN, ARC_TRAILER_LEN, ArcHeader, ArcTrailer};
use crate::catalog::{ArcEntry, ArcRole};
use crate::crypto::{ArcCipher, Keys};
use crate::error::{Damage, Error, Result};
use crate::ids::{ArcDigest, ArcId, ArcName, ArcSalt, ArcSerial, FrameNo, FramePlace};
use crate::text::shown;

/// Why an append failed.
#[derive(Debug)]
pub enum AppendError {
    Io(std::io::Error),
    /// The sealed frame does not open to what went in.
    SelfCheck(Damage),
}

impl AppendError {
    /// Names the file.
    pub fn at(self, path: &std::path::Path) -> Error {
        match self {
            AppendError::Io(e) => Error::io("write", path, &e),
            AppendError::SelfCheck(damage) => {
                Error::SelfCheck { what: format!("a sealed frame of {}: {}", shown(&path), damage.code()) }
            }
        }
    }
}

impl From<std::io::Error> for AppendError {
    fn from(e: std::io::Error) -> Self {
        AppendError::Io(e)
    }
}

/// An arc being written to `W`.
pub struct ArcWriter<W: Write> {
    out: W,
    header: ArcHeader,
    serial: ArcSerial,
    cipher: ArcCipher,
    digest: Sha256,
    offset: u64,
    plain_bytes: u64,
    blocks: usize,
    frames: Vec<FrameInfo>,
}

/// A finished arc and its file.
pub struct FinishedArc<W> {
    pub entry: ArcEntry,
    pub out: W,
}

impl<W: Write> ArcWriter<W> {
    /// Starts an arc with a fresh random salt and writes its header.
    pub fn create(
        out: W,
        keys: &Keys,
        name: ArcName,
        role: ArcRole,
        serial: ArcSerial,
        id: ArcId,
    ) -> Result<ArcWriter<W>, AppendError> {
        let header = ArcHeader { name, role, id, salt: ArcSalt(crate::crypto::random()?) };
        let cipher = keys.arc_cipher(header.id, &header.salt);
        let bytes = header.encode(keys);
        if ArcHeader::decode(&bytes, keys).as_ref() != Ok(&header) {
            return Err(AppendError::SelfCheck(Damage::BadHeader));
        }
        let mut writer = ArcWriter {
            out,
            header,
            serial,
            cipher,
            digest: Sha256::new(),
            offset: 0,
            plain_bytes: 0,
            blocks: 0,
            frames: Vec::new(),
        };
        writer.put(&bytes)?;
        // From here on the file says what it is, whatever ends its writer.
        writer.out.flush()?;
        debug_assert_eq!(writer.offset, ARC_HEADER_LEN as u64);
        Ok(writer)
    }

    pub fn name(&self) -> ArcName {
        self.header.name
    }

    /// Bytes written so far.
    pub fn len_bytes(&self) -> u64 {
        self.offset
    }

    /// Frames written so far.
    pub fn frames(&self) -> &[FrameInfo] {
        &self.frames
    }

    /// Blocks in them.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    pub fn serial(&self) -> ArcSerial {
        self.serial
    }

    /// Seals packed blocks as one frame, opens it again, compares, writes; returns where it is.
    pub fn append(
        &mut self,
        kind: FrameKind,
        packed: &Packed,
        blocks: Vec<BlockInfo>,
    ) -> Result<FramePlace, AppendError> {
        let too_long = || AppendError::SelfCheck(Damage::BadRecord("frame too long"));
        let stored_len = u32::try_from(packed.stored.len()).map_err(|_| too_long())?;
        let info = FrameInfo { kind, codec: packed.codec, stored_len, blocks };
        if info.plain_len() as usize > frame::MAX_PLAIN_LEN || info.blocks.len() > frame::MAX_BLOCKS {
            return Err(too_long());
        }
        let no = FrameNo(self.frames.len() as u32);
        let bytes = self.sealed(no, &info, &packed.stored)?;
        self.put(&bytes)?;
        self.plain_bytes += u64::from(info.plain_len());
        self.blocks += info.blocks.len();
        self.frames.push(info);
        Ok(FramePlace::new(self.serial, no))
    }

    /// The frame as bytes, opened again and compared before it goes out; that `stored` unpacks was proven by `Packer`.
    fn sealed(&self, no: FrameNo, info: &FrameInfo, stored: &[u8]) -> Result<Vec<u8>, AppendError> {
        let bytes = frame::seal(&self.cipher, no, info, stored);
        match frame::opens_to(&self.cipher, no, info, &bytes, stored) {
            true => Ok(bytes),
            false => Err(AppendError::SelfCheck(Damage::BadTag)),
        }
    }

    /// Writes footer and trailer. The caller makes the file durable.
    pub fn finish(mut self, keys: &Keys, packer: &mut Packer) -> Result<FinishedArc<W>, AppendError> {
        let table: Vec<u8> = self.frames.iter().flat_map(|info| info.encode()).collect();
        let packed = packer.pack(&table).map_err(|_| AppendError::SelfCheck(Damage::BadCompression))?;
        let info = FrameInfo::of_one(FrameKind::Footer, &packed, BlockInfo::of(keys, &table));
        let footer = self.sealed(FOOTER_NO, &info, &packed.stored)?;
        let footer_offset = self.offset;
        self.put(&footer)?;
        let trailer = ArcTrailer {
            role: self.header.role,
            id: self.header.id,
            salt: self.header.salt,
            footer_offset,
            footer_len: footer.len() as u32,
            frames: self.frames.len() as u32,
        };
        let bytes = trailer.encode(keys);
        debug_assert_eq!(bytes.len(), ARC_TRAILER_LEN);
        self.put(&bytes)?;
        self.out.flush()?;
        let entry = ArcEntry {
            serial: self.serial,
            name: self.header.name,
            role: self.header.role,
            id: self.header.id,
            salt: self.header.salt,
            arc_bytes: self.offset,
            digest: ArcDigest(self.digest.finalize().into()),
            frames: self.frames.len() as u32,
            footer_offset,
            footer_len: footer.len() as u32,
            plain_bytes: self.plain_bytes,
        };
        Ok(FinishedArc { entry, out: self.out })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), AppendError> {
        self.out.write_all(bytes)?;
        self.digest.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

/// The frame number that a footer carries.
pub const FOOTER_NO: FrameNo = FrameNo(u32::MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arc::shell::decode_frame_table;
    use crate::ids::{BackupId, Version};
    use zeroize::Zeroizing;

    #[test]
    fn a_written_arc_reads_back_from_its_footer_and_from_its_frames() {
        let keys = Keys::new(&Zeroizing::new([1; 32]), BackupId([2; 16]));
        let mut packer = Packer::new(3).unwrap();
        let name = ArcName { version: Version(3), number: 1 };
        let mut writer =
            ArcWriter::create(Vec::new(), &keys, name, ArcRole::Data, ArcSerial(9), ArcId([5; 16])).unwrap();
        let frames: Vec<Vec<Vec<u8>>> =
            (1..20u8).map(|n| (0..n).map(|at| vec![n; usize::from(n + at) * 50]).collect()).collect();
        for blocks in &frames {
            let packed = packer.pack(&blocks.concat()).unwrap();
            let infos = blocks.iter().map(|block| BlockInfo::of(&keys, block));
            writer.append(FrameKind::Block, &packed, infos.collect()).unwrap();
        }
        let FinishedArc { entry, out } = writer.finish(&keys, &mut packer).unwrap();
        assert_eq!(entry.arc_bytes, out.len() as u64);
        assert_eq!(entry.digest.0, crate::crypto::sha256(&out));

        let header = ArcHeader::decode(&out, &keys).unwrap();
        assert_eq!(header.name, name);
        let trailer = ArcTrailer::decode(&out[out.len() - ARC_TRAILER_LEN..], &keys).unwrap();
        let cipher = keys.arc_cipher(trailer.id, &trailer.salt);
        let footer = &out[trailer.footer_offset as usize..][..trailer.footer_len as usize];
        let (_, opened) = frame::open_unknown(&keys, &cipher, FOOTER_NO, footer).unwrap();
        let table = decode_frame_table(&opened.into_plain()).unwrap();

        let mut at = ARC_HEADER_LEN;
        for (n, (blocks, info)) in frames.iter().zip(&table).enumerate() {
            let bytes = &out[at..][..info.frame_len() as usize];
            let no = FrameNo(n as u32);
            assert_eq!(frame::open_unknown(&keys, &cipher, no, bytes).unwrap().0, *info);
            assert_eq!(frame::open(&keys, &cipher, no, info, bytes).unwrap().into_plain(), blocks.concat());
            at += bytes.len();
        }
        assert_eq!((at as u64, table.len()), (trailer.footer_offset, frames.len()));
        for at in (0..ARC_HEADER_LEN).chain(out.len() - ARC_TRAILER_LEN..out.len()) {
            let mut bad = out.clone();
            bad[at] ^= 4;
            let header = ArcHeader::decode(&bad, &keys);
            let trailer = ArcTrailer::decode(&bad[bad.len() - ARC_TRAILER_LEN..], &keys);
            assert_eq!((header.is_err(), trailer.is_err()), (at < ARC_HEADER_LEN, at >= ARC_HEADER_LEN), "byte {at}");
        }
    }
}
