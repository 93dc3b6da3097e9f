//! key.conf: the master key of a backup dir, bare or wrapped by a passphrase. Text ↔ keys, no file I/O.
//!
//! Invariants: every field is covered by a checksum (bare) or by the AEAD (wrapped), so a damaged file is told
//! apart from a wrong passphrase; a wrapped key is sealed with AES-256-GCM under Argon2id (RFC 9106) of the passphrase.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{MasterKey, sha256};
use crate::ids::BackupId;
use crate::text::hex;

/// Why a key file gives no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyFileError {
    /// The text is not a whole, undamaged key file.
    Damaged(&'static str),
    /// It is whole, and of a backup dir in another format than this program's.
    OtherFormat(u32),
    /// The key is wrapped and no passphrase was given.
    NeedsPassphrase,
    /// The passphrase does not unwrap the key.
    WrongPassphrase,
    /// The parameters ask for more memory than there is, or the random source failed.
    Unusable(&'static str),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    format: u32,
    backup_id: String,
    /// Bare master key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrapped: Option<Wrapped>,
    /// First 16 bytes of the SHA-256 of all fields above, in hex.
    checksum: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    kdf: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
    /// Nonce, ciphertext and tag of the master key.
    sealed: String,
}

/// Format of the backup dir.
pub const FORMAT: u32 = 2;
const HEAD: &str = "# Assay key file. Without it nothing in this backup can be read: keep a copy elsewhere.\n";
/// RFC 9106, second recommended option: 64 MiB, 3 passes, 4 lanes.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// A hostile file must not make us allocate more than this, nor compute for longer than these passes over it take.
const MAX_MEMORY_KIB: u32 = 1024 * 1024;
const MAX_PASSES: u32 = 16;
const MAX_LANES: u32 = 64;

/// Makes the text of a new key file.
pub fn encode(master: &MasterKey, backup_id: BackupId, passphrase: Option<&str>) -> Result<String, KeyFileError> {
    let mut file =
        KeyFile { format: FORMAT, backup_id: backup_id.to_string(), key: None, wrapped: None, checksum: String::new() };
    match passphrase {
        None => file.key = Some(hex(master.as_slice())),
        Some(passphrase) => file.wrapped = Some(wrap(master, backup_id, passphrase)?),
    }
    file.checksum = file.sum();
    toml::to_string(&file).map(|text| format!("{HEAD}{text}")).map_err(|_| KeyFileError::Unusable("encoding"))
}

/// Reads a key file; `passphrase` is asked only when the key is wrapped.
pub fn decode(
    text: &str,
    passphrase: impl FnOnce() -> Option<Zeroizing<String>>,
) -> Result<(MasterKey, BackupId), KeyFileError> {
    let file: KeyFile = toml::from_str(text).map_err(|_| KeyFileError::Damaged("it is not a key file"))?;
    if file.checksum != file.sum() {
        return Err(KeyFileError::Damaged("its checksum does not match"));
    }
    if file.format != FORMAT {
        return Err(KeyFileError::OtherFormat(file.format));
    }
    let backup_id = BackupId(unhex(&file.backup_id).ok_or(KeyFileError::Damaged("backup_id"))?);
    match (&file.key, &file.wrapped) {
        (Some(key), None) => {
            let key = unhex(key).ok_or(KeyFileError::Damaged("key"))?;
            Ok((Zeroizing::new(key), backup_id))
        }
        (None, Some(wrapped)) => {
            let passphrase = passphrase().ok_or(KeyFileError::NeedsPassphrase)?;
            Ok((unwrap_key(wrapped, backup_id, &passphrase)?, backup_id))
        }
        _ => Err(KeyFileError::Damaged("it needs either key or wrapped")),
    }
}

impl KeyFile {
    fn sum(&self) -> String {
        let wrapped = self
            .wrapped
            .as_ref()
            .map(|w| format!("{}/{}/{}/{}/{}/{}", w.kdf, w.memory_kib, w.passes, w.lanes, w.salt, w.sealed));
        let all = format!("{}/{}/{:?}/{wrapped:?}", self.format, self.backup_id, self.key.as_deref());
        hex(&sha256(all.as_bytes())[..16])
    }
}

fn wrap(master: &MasterKey, backup_id: BackupId, passphrase: &str) -> Result<Wrapped, KeyFileError> {
    let random_failed = |_| KeyFileError::Unusable("no random numbers");
    let salt: [u8; 16] = super::random().map_err(random_failed)?;
    let nonce: [u8; 12] = super::random().map_err(random_failed)?;
    let aead = passphrase_cipher(passphrase, &salt, MEMORY_KIB, PASSES, LANES)?;
    let mut bytes = Zeroizing::new(**master);
    let tag = aead
        .encrypt_inout_detached(&Nonce::from(nonce), &backup_id.0, bytes.as_mut_slice().into())
        .map_err(|_| KeyFileError::Unusable("sealing"))?;
    Ok(Wrapped {
        kdf: "argon2id".into(),
        memory_kib: MEMORY_KIB,
        passes: PASSES,
        lanes: LANES,
        salt: hex(&salt),
        sealed: hex(&nonce) + &hex(bytes.as_slice()) + &hex(&tag),
    })
}

fn unwrap_key(wrapped: &Wrapped, backup_id: BackupId, passphrase: &str) -> Result<MasterKey, KeyFileError> {
    let damaged = || KeyFileError::Damaged("the wrapped key");
    let bounded = wrapped.memory_kib <= MAX_MEMORY_KIB && wrapped.passes <= MAX_PASSES && wrapped.lanes <= MAX_LANES;
    if wrapped.kdf != "argon2id" || !bounded {
        return Err(damaged());
    }
    let salt: [u8; 16] = unhex(&wrapped.salt).ok_or_else(damaged)?;
    let sealed: [u8; 60] = unhex(&wrapped.sealed).ok_or_else(damaged)?;
    let (nonce, rest) = sealed.split_first_chunk::<12>().ok_or_else(damaged)?;
    let (bytes, tag) = rest.split_first_chunk::<32>().ok_or_else(damaged)?;
    let tag = Tag::try_from(tag).map_err(|_| damaged())?;
    let aead = passphrase_cipher(passphrase, &salt, wrapped.memory_kib, wrapped.passes, wrapped.lanes)?;
    let mut master = Zeroizing::new(*bytes);
    aead.decrypt_inout_detached(&Nonce::from(*nonce), &backup_id.0, master.as_mut_slice().into(), &tag)
        .map_err(|_| KeyFileError::WrongPassphrase)?;
    Ok(master)
}

fn passphrase_cipher(
    passphrase: &str,
    salt: &[u8],
    memory_kib: u32,
    passes: u32,
    lanes: u32,
) -> Result<Aes256Gcm, KeyFileError> {
    let params = argon2::Params::new(memory_kib, passes, lanes, Some(32))
        .map_err(|_| KeyFileError::Damaged("the Argon2 parameters"))?;
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let mut key = Zeroizing::new([0u8; 32]);
    argon2
        .hash_password_into(passphrase.as_bytes(), salt, key.as_mut_slice())
        .map_err(|_| KeyFileError::Unusable("Argon2 failed"))?;
    Ok(Aes256Gcm::new((&*key).into()))
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let mut out = [0; N];
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in out.iter_mut().zip(pairs) {
        let digit = |c: u8| (c as char).to_digit(16).filter(|_| !c.is_ascii_uppercase());
        *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Option<Zeroizing<String>> {
        None
    }

    #[test]
    fn a_bare_key_comes_back_and_every_changed_byte_is_noticed() {
        let master = Zeroizing::new([7; 32]);
        let text = encode(&master, BackupId([1; 16]), None).unwrap();
        assert_eq!(decode(&text, none).unwrap(), (master.clone(), BackupId([1; 16])));
        for at in HEAD.len()..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            // A change that the text format does not care about (white space) may pass, with the right key only.
            match String::from_utf8(bytes).map(|t| decode(&t, none)) {
                Ok(Ok(found)) => assert_eq!(found, (master.clone(), BackupId([1; 16]))),
                Ok(Err(e)) => assert!(matches!(e, KeyFileError::Damaged(_)), "byte {at}: {e:?}"),
                Err(_) => {}
            }
        }
    }

    #[test]
    fn a_key_file_of_another_format_says_so_if_it_is_whole() {
        // As the release before format 2 wrote it.
        let old = "format = 1\nbackup_id = \"01010101010101010101010101010101\"\nkey = \
                   \"0707070707070707070707070707070707070707070707070707070707070707\"\nchecksum = \
                   \"28f26b0af8b77d9ce9b2a4f3b9d84b1c\"\n";
        let mut file: KeyFile = toml::from_str(old).unwrap();
        file.checksum = file.sum();
        assert_eq!(decode(&toml::to_string(&file).unwrap(), none).err(), Some(KeyFileError::OtherFormat(1)));
        assert_eq!(decode(old, none).err(), Some(KeyFileError::Damaged("its checksum does not match")));
        file.format = 3;
        file.checksum = file.sum();
        assert_eq!(decode(&toml::to_string(&file).unwrap(), none).err(), Some(KeyFileError::OtherFormat(3)));
    }

    #[test]
    fn a_key_file_cannot_ask_for_hours_or_all_memory() {
        let text = encode(&Zeroizing::new([7; 32]), BackupId([1; 16]), Some("p")).unwrap();
        for (is, asked) in [
            ("passes = 3", "passes = 4294967295"),
            ("passes = 3", "passes = 17"),
            ("memory_kib = 65536", "memory_kib = 4194304"),
            ("lanes = 4", "lanes = 16777215"),
        ] {
            let mut file: KeyFile = toml::from_str(&text.replace(is, asked)).unwrap();
            file.checksum = file.sum();
            let hostile = toml::to_string(&file).unwrap();
            let opened = decode(&hostile, || Some(Zeroizing::new("p".into())));
            assert_eq!(opened.err(), Some(KeyFileError::Damaged("the wrapped key")), "{asked}");
        }
    }

    #[test]
    fn a_wrapped_key_needs_its_passphrase() {
        let master = Zeroizing::new([7; 32]);
        let text = encode(&master, BackupId([1; 16]), Some("correct horse")).unwrap();
        assert!(!text.contains(&hex(&[7; 32])));
        let with = |p: &str| decode(&text, || Some(Zeroizing::new(p.to_string())));
        assert_eq!(with("correct horse").unwrap().0, master);
        assert_eq!(with("wrong").err(), Some(KeyFileError::WrongPassphrase));
        assert_eq!(decode(&text, none).err(), Some(KeyFileError::NeedsPassphrase));
    }
}
