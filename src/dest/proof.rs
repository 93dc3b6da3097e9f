//! Proof that an object is stored: nothing counts as stored before it.
//!
//! Invariants: what is compared is the SHA-256 of what is there with that of what was to be sent; what a service says to
//! have compared counts only where the lie test found that it does compare; what is read back comes from the medium.

use sha2::{Digest, Sha256};

use super::settings::Verify;
use super::{Body, Compared, MAX_READ_BYTES, Storage, Sum, sha256, trouble};
use crate::error::{Result, Trouble};
use crate::text::hex;

/// Bytes that are read back at a time.
const READ_BYTES: u64 = 4 << 20;
const _: () = assert!(READ_BYTES <= MAX_READ_BYTES);

/// What was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It was read, and has the right length and SHA-256.
    ReadBack,
    /// The service has compared the SHA-256, and was found to refuse a wrong one.
    Server,
    /// Nothing.
    Unverified,
}

/// Stores an object and proves it. `is_honest`: the service was found to refuse a wrong SHA-256.
///
/// # Errors
/// Those of the storage; `Checksum`.
pub fn put_proven(
    storage: &dyn Storage,
    object: &str,
    body: &dyn Body,
    verify: Verify,
    is_honest: bool,
) -> Result<Proof> {
    let compared = storage.put(object, body)?;
    match (verify, compared) {
        (Verify::Trust, _) => Ok(Proof::Unverified),
        (Verify::Server, Compared::Sha256) if is_honest => Ok(Proof::Server),
        (Verify::Server | Verify::Read, _) => {
            prove(storage, object, body.len_bytes(), &sha256(body)?)?;
            Ok(Proof::ReadBack)
        }
    }
}

/// Reads an object back and compares it.
///
/// # Errors
/// `Checksum` when it has other bytes or another length; those of the storage.
pub fn prove(storage: &dyn Storage, object: &str, len_bytes: u64, source: &Sum) -> Result<()> {
    let mismatch = |found: String| {
        let (source, found) = (hex(source).into(), found.into());
        trouble(storage.name(), object, Trouble::Checksum { source, found })
    };
    match storage.stat(object)? {
        Some(found) if found == len_bytes => {}
        Some(found) => return Err(mismatch(format!("none: {found} of {len_bytes} bytes are there"))),
        None => return Err(trouble(storage.name(), object, Trouble::NotFound)),
    }
    storage.forget(object)?;
    let mut hasher = Sha256::new();
    let mut at = 0;
    while at < len_bytes {
        let end = len_bytes.min(at + READ_BYTES);
        hasher.update(storage.read(object, at..end)?);
        at = end;
    }
    let found: Sum = hasher.finalize().into();
    if found == *source { Ok(()) } else { Err(mismatch(hex(&found))) }
}
