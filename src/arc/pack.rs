//! Plain bytes → stored bytes: compresses, and proves on the spot that the result gives the plain bytes back.

use zstd::zstd_safe::{CCtx, CParameter, DCtx};

use super::frame::Codec;
use crate::error::{Error, Result};

/// Stored bytes of a frame before they are sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    pub codec: Codec,
    pub stored: Vec<u8>,
}

/// A worker's compression contexts.
pub struct Packer {
    compressor: CCtx<'static>,
    decompressor: DCtx<'static>,
    check: Vec<u8>,
}

/// Blocks below this hold nothing to compress: a zstd frame costs about as much.
const MIN_COMPRESS_LEN: usize = 32;

impl Packer {
    /// `level` is zstd's, 1..=19.
    pub fn new(level: i32) -> Result<Packer> {
        let no_memory = || Error::Io { op: "get memory for", path: "zstd".into(), errno: libc::ENOMEM };
        let mut compressor = CCtx::try_create().ok_or_else(no_memory)?;
        compressor.set_parameter(CParameter::CompressionLevel(level)).map_err(|_| no_memory())?;
        Ok(Packer { compressor, decompressor: DCtx::try_create().ok_or_else(no_memory)?, check: Vec::new() })
    }

    /// Compresses; bytes that don't shrink are stored as they are.
    ///
    /// # Errors
    /// `SELF_CHECK` when the compressed bytes don't decompress to `plain`: bad memory or CPU.
    pub fn pack(&mut self, plain: &[u8]) -> Result<Packed> {
        let as_is = || Ok(Packed { codec: Codec::Plain, stored: plain.to_vec() });
        if plain.len() < MIN_COMPRESS_LEN {
            return as_is();
        }
        let mut stored = Vec::with_capacity(plain.len());
        // A destination of the plain size: what does not shrink fails to fit, and needs no more room.
        let fits = self.compressor.compress2(&mut stored, plain);
        if fits.is_err() || stored.len() >= plain.len() - plain.len() / 64 {
            return as_is();
        }
        self.check.clear();
        self.check.reserve(plain.len());
        let same = self.decompressor.decompress(&mut self.check, &stored).is_ok() && self.check == plain;
        if !same {
            return Err(Error::SelfCheck { what: "a compressed block does not decompress to what it was".into() });
        }
        Ok(Packed { codec: Codec::Zstd, stored })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_shrinks_noise_is_kept_and_both_come_back() {
        let mut packer = Packer::new(3).unwrap();
        let text = b"all work and no play ".repeat(500);
        let packed = packer.pack(&text).unwrap();
        assert_eq!(packed.codec, Codec::Zstd);
        assert!(packed.stored.len() < text.len() / 10);
        assert_eq!(zstd::decode_all(&packed.stored[..]).unwrap(), text);
        let noise: [u8; 4096] = crate::crypto::random().unwrap();
        assert_eq!(packer.pack(&noise).unwrap(), Packed { codec: Codec::Plain, stored: noise.to_vec() });
        assert_eq!(packer.pack(b"").unwrap().stored, b"");
    }
}
