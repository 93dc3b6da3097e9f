//! Keys, the AEAD and the block hash. Pure code, no I/O but `/dev/urandom` through getrandom.
//!
//! Invariants: every key comes from the master key by HKDF-SHA256 (RFC 5869) with an `info` of its own; each arc
//! has a key of its own (random salt), and a nonce is a frame number within it, so (key, nonce) never repeats as
//! long as no arc is appended to after it was closed or cut. Keys are wiped when dropped.

mod ghash;
pub mod keyfile;

use aes_gcm::aead::AeadInOut;
use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::BlockCipherEncrypt;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::ids::{ArcId, ArcSalt, BackupId, BlockHash, FileHash, SegmentId};
pub use ghash::BitAt;

/// Bytes of an AES-GCM tag (NIST SP 800-38D).
pub const TAG_LEN: usize = 16;

/// The 256-bit key from which all others are derived.
pub type MasterKey = Zeroizing<[u8; 32]>;

/// All keys of one backup dir.
pub struct Keys {
    backup_id: BackupId,
    arcs: Hkdf<Sha256>,
    block_hash: Hmac<Sha1>,
    index_key: Zeroizing<[u8; 48]>,
    chunker_seed: u64,
}

impl Keys {
    pub fn new(master: &MasterKey, backup_id: BackupId) -> Keys {
        let hkdf = Hkdf::<Sha256>::new(Some(&backup_id.0), master.as_slice());
        let mut hash_key = derive::<32>(&hkdf, b"assay block hash v2");
        let block_hash = new_hmac(hash_key.as_slice());
        hash_key.zeroize();
        let seed = derive::<8>(&hkdf, b"assay chunker seed v2");
        Keys {
            backup_id,
            block_hash,
            index_key: derive(&hkdf, b"assay index v2"),
            chunker_seed: u64::from_le_bytes(*seed),
            arcs: hkdf,
        }
    }

    pub fn backup_id(&self) -> BackupId {
        self.backup_id
    }

    /// HMAC-SHA1 of plain bytes: the identity of a block in this backup dir.
    pub fn block_hash(&self, plain: &[u8]) -> BlockHash {
        let mut hasher = self.block_hasher();
        hasher.update(plain);
        hasher.finish()
    }

    /// A block hash to be fed piece by piece.
    pub fn block_hasher(&self) -> BlockHasher {
        BlockHasher(self.block_hash.clone())
    }

    /// SQLCipher's raw key (32 bytes) and salt (16 bytes).
    pub fn index_key(&self) -> Zeroizing<[u8; 48]> {
        self.index_key.clone()
    }

    /// Shifts the chunker's cut points, which only hampers fingerprinting by block sizes.
    pub fn chunker_seed(&self) -> u64 {
        self.chunker_seed
    }

    /// The cipher for all frames of one arc.
    pub fn arc_cipher(&self, id: ArcId, salt: &ArcSalt) -> ArcCipher {
        self.cipher(b"assay arc v2", id, salt)
    }

    /// The cipher for all batches of one ledger segment, whose id stands where an arc's does.
    pub fn segment_cipher(&self, id: SegmentId, salt: &ArcSalt) -> ArcCipher {
        self.cipher(b"assay ledger v2", ArcId(id.0), salt)
    }

    /// The cipher for the mark of one destination, which has no id outside of what is sealed.
    pub fn mark_cipher(&self, salt: &ArcSalt) -> ArcCipher {
        self.cipher(b"assay destination v2", ArcId([0; 16]), salt)
    }

    fn cipher(&self, purpose: &[u8], id: ArcId, salt: &ArcSalt) -> ArcCipher {
        let key = derive::<32>(&self.arcs, &[purpose, &id.0, &salt.0].concat());
        let block = Aes256::new((&*key).into());
        ArcCipher { backup_id: self.backup_id, arc_id: id, aead: block.clone().into(), block }
    }
}

fn derive<const N: usize>(hkdf: &Hkdf<Sha256>, info: &[u8]) -> Zeroizing<[u8; N]> {
    let mut out = Zeroizing::new([0; N]);
    match hkdf.expand(info, out.as_mut_slice()) {
        Ok(()) => out,
        Err(_) => unreachable!("HKDF-SHA256 gives up to 8,160 bytes, {N} were asked for"),
    }
}

fn new_hmac(key: &[u8]) -> Hmac<Sha1> {
    match <Hmac<Sha1> as hmac::KeyInit>::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes keys of any length"),
    }
}

/// What a sealed record is for; part of the nonce, so that no two records of an arc share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Domain {
    Frame = 0,
    Header = 1,
    Footer = 2,
    Trailer = 3,
    /// Header of a ledger segment.
    Segment = 4,
    /// Batch of a ledger segment.
    Batch = 5,
    /// Head of a frame.
    Head = 6,
    /// Mark of a destination.
    Mark = 7,
}

/// AES-256-GCM under the key of one arc, bound to the backup dir and the arc by the associated data.
pub struct ArcCipher {
    backup_id: BackupId,
    arc_id: ArcId,
    aead: Aes256Gcm,
    /// AES alone, under the same key.
    block: Aes256,
}

impl ArcCipher {
    /// The arc that it is of.
    pub fn arc_id(&self) -> ArcId {
        self.arc_id
    }

    /// Encrypts in place. `number` is that of the frame or batch (0 of what there is one).
    pub fn seal(&self, domain: Domain, number: u32, header: &[u8], bytes: &mut [u8]) -> [u8; TAG_LEN] {
        let sealed =
            self.aead.encrypt_inout_detached(&nonce(domain, number), &self.associated_data(header), bytes.into());
        match sealed {
            Ok(tag) => tag.into(),
            Err(_) => unreachable!("AES-GCM seals up to 64 GiB, a frame is at most 64 MiB"),
        }
    }

    /// Decrypts in place and tells whether the tag matches; on false the bytes must not be used.
    #[must_use]
    pub fn open(&self, domain: Domain, number: u32, header: &[u8], bytes: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
        let tag = Tag::from(*tag);
        self.aead
            .decrypt_inout_detached(&nonce(domain, number), &self.associated_data(header), bytes.into(), &tag)
            .is_ok()
    }

    /// Decrypts the first bytes of a record without its tag: a guess, until `open` accepts all of it.
    pub fn decrypt_unproven(&self, domain: Domain, number: u32, bytes: &mut [u8]) {
        // SP 800-38D, 7.2: the counter of the first 16 bytes of ciphertext is 2.
        for (piece, counter) in bytes.chunks_mut(16).zip(2u32..) {
            let mut mask = self.counter_block(domain, number, counter);
            self.block.encrypt_block((&mut mask).into());
            piece.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
        }
    }

    fn counter_block(&self, domain: Domain, number: u32, counter: u32) -> [u8; 16] {
        let mut block = [0; 16];
        let (nonce_bytes, counter_bytes) = block.split_at_mut(12);
        nonce_bytes.copy_from_slice(&nonce(domain, number));
        counter_bytes.copy_from_slice(&counter.to_be_bytes());
        block
    }

    /// The one bit of ciphertext ‖ tag whose flip makes the tag wrong in just this way; None if no single bit does.
    ///
    /// It is a guess until `open` accepts the bytes with that bit flipped back.
    pub fn flipped_bit(
        &self,
        domain: Domain,
        number: u32,
        header: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN],
    ) -> Option<BitAt> {
        let mut hash_key = Zeroizing::new([0; 16]);
        self.block.encrypt_block((&mut *hash_key).into());
        // SP 800-38D, 7.1: for a nonce of 96 bits, the tag is GHASH XOR the cipher of nonce ‖ 1.
        let mut mask = self.counter_block(domain, number, 1);
        self.block.encrypt_block((&mut mask).into());
        let hash = ghash::ghash(&hash_key, &self.associated_data(header), ciphertext);
        let difference = hash ^ u128::from_be_bytes(mask) ^ u128::from_be_bytes(*tag);
        ghash::flipped_bit(&hash_key, difference, ciphertext.len())
    }

    fn associated_data(&self, header: &[u8]) -> Vec<u8> {
        let mut aad = Vec::with_capacity(40 + header.len());
        aad.extend_from_slice(b"assay v2");
        aad.extend_from_slice(&self.backup_id.0);
        aad.extend_from_slice(&self.arc_id.0);
        aad.extend_from_slice(header);
        aad
    }
}

fn nonce(domain: Domain, number: u32) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut bytes = [0; 12];
    let (domain_bytes, rest) = bytes.split_at_mut(4);
    domain_bytes.copy_from_slice(&(domain as u32).to_be_bytes());
    rest.copy_from_slice(&u64::from(number).to_be_bytes());
    Nonce::from(bytes)
}

/// Running block hash.
#[derive(Clone)]
pub struct BlockHasher(Hmac<Sha1>);

impl BlockHasher {
    pub fn update(&mut self, plain: &[u8]) {
        self.0.update(plain);
    }
    pub fn finish(self) -> BlockHash {
        BlockHash(self.0.finalize().into_bytes().into())
    }
}

/// Running SHA-1 of a whole file.
#[derive(Clone, Default)]
pub struct FileHasher(Sha1);

impl FileHasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    pub fn finish(self) -> FileHash {
        FileHash(self.0.finalize().into())
    }
}

/// SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Fills an array with random bytes from the operating system.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| std::io::Error::other(e.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(byte: u8) -> Keys {
        Keys::new(&Zeroizing::new([byte; 32]), BackupId([9; 16]))
    }

    #[test]
    fn block_hash_depends_on_the_key_and_file_hash_is_plain_sha1() {
        assert_ne!(keys(1).block_hash(b"abc"), keys(2).block_hash(b"abc"));
        let mut hasher = FileHasher::default();
        hasher.update(b"abc");
        // FIPS 180-1, appendix A.
        assert_eq!(hasher.finish().to_string(), "a9993e364706816aba3e25717850c26c9cd0d89d");
    }

    #[test]
    fn a_sealed_record_opens_only_in_its_own_place() {
        let keys = keys(1);
        let salt = ArcSalt([3; 32]);
        let cipher = keys.arc_cipher(ArcId([1; 16]), &salt);
        let mut bytes = b"plain".to_vec();
        let tag = cipher.seal(Domain::Frame, 7, b"header", &mut bytes);
        let opens = |cipher: &ArcCipher, domain, number, header: &[u8]| {
            cipher.open(domain, number, header, &mut bytes.clone(), &tag)
        };
        assert!(opens(&cipher, Domain::Frame, 7, b"header"));
        let mut guess = bytes[..3].to_vec();
        cipher.decrypt_unproven(Domain::Frame, 7, &mut guess);
        assert_eq!(guess, b"pla");
        assert!(!opens(&cipher, Domain::Frame, 8, b"header"));
        assert!(!opens(&cipher, Domain::Footer, 7, b"header"));
        assert!(!opens(&cipher, Domain::Frame, 7, b"other"));
        assert!(!opens(&keys.arc_cipher(ArcId([2; 16]), &salt), Domain::Frame, 7, b"header"));
        assert!(!opens(&keys.arc_cipher(ArcId([1; 16]), &ArcSalt([4; 32])), Domain::Frame, 7, b"header"));
        let other_backup = Keys::new(&Zeroizing::new([1; 32]), BackupId([8; 16]));
        assert!(!opens(&other_backup.arc_cipher(ArcId([1; 16]), &salt), Domain::Frame, 7, b"header"));
    }
}
