//! Proof that an object is stored: nothing counts as stored before it.
//!
//! Invariants: what is compared is a checksum of what is there with that of what was sent, by SHA-256 where it is read
//! back; what a service says to have compared counts only where the lie test found that it does compare; what is read back
//! comes from the medium.

use std::time::Instant;

use sha2::{Digest, Sha256};

use super::settings::Verify;
use super::{Body, Checksum, Compared, MAX_READ_BYTES, Storage, Sum, trouble};
use crate::error::{Error, Result, Trouble};
use crate::text::hex;

/// Bytes that are read back at a time, at first and at most: as many as come in about a second.
const READ_BYTES: u64 = 256 << 10;
const MOST_BYTES: u64 = 4 << 20;
const _: () = assert!(MOST_BYTES <= MAX_READ_BYTES);

/// What was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It was read, and has the right length and SHA-256.
    ReadBack,
    /// The service's own checksum is the right one, and it was found to refuse a wrong one.
    Server,
    /// Nothing.
    Unverified,
}

/// Stores an object and proves it. `is_honest`: the service was found to refuse a wrong checksum of the kind that it tells.
///
/// # Errors
/// Those of the storage; `Algorithm`, `Checksum`; `Failed` where it is gone again, as what a service removes late of a put
/// that was cut before this one.
pub fn put_proven(
    storage: &dyn Storage,
    object: &str,
    body: &dyn Body,
    verify: Verify,
    is_honest: bool,
) -> Result<Proof> {
    stored_and_proven(storage, object, body, verify, is_honest).map_err(|error| match error {
        // What it is sent from may say so too.
        Error::Dest { dest, trouble: Trouble::NotFound, .. } if *dest == *storage.name() => {
            trouble(storage.name(), object, Trouble::Failed("what was sent is not there".into()))
        }
        other => other,
    })
}

fn stored_and_proven(
    storage: &dyn Storage,
    object: &str,
    body: &dyn Body,
    verify: Verify,
    is_honest: bool,
) -> Result<Proof> {
    let told = storage.put(object, body)?;
    match (verify, told) {
        (Verify::Trust, _) => Ok(Proof::Unverified),
        (Verify::Server, Compared::Told { source, found }) if is_honest => {
            compare(storage.name(), object, &source, &found)?;
            Ok(Proof::Server)
        }
        (Verify::Server | Verify::Read, _) => {
            prove(storage, object, body.len_bytes(), &body.sum()?)?;
            Ok(Proof::ReadBack)
        }
    }
}

/// Reads an object back and compares it.
///
/// # Errors
/// `Checksum` when it has other bytes or another length; those of the storage.
pub fn prove(storage: &dyn Storage, object: &str, len_bytes: u64, source: &Sum) -> Result<()> {
    let source = Checksum::sha256(source);
    let found = |value: String| Checksum { value, ..source.clone() };
    match storage.stat(object)? {
        Some(len) if len == len_bytes => {}
        Some(len) => {
            let what = format!("none: {len} of {len_bytes} bytes are there");
            return compare(storage.name(), object, &source, &found(what));
        }
        None => return Err(trouble(storage.name(), object, Trouble::NotFound)),
    }
    storage.forget(object)?;
    let mut hasher = Sha256::new();
    let (mut at, mut piece) = (0, READ_BYTES);
    while at < len_bytes {
        let (end, begun) = (len_bytes.min(at + piece), Instant::now());
        hasher.update(storage.read(object, at..end)?);
        at = end;
        piece = match begun.elapsed().as_millis() {
            0..500 => MOST_BYTES.min(piece * 2),
            500..2000 => piece,
            _ => READ_BYTES.max(piece / 2),
        };
    }
    compare(storage.name(), object, &source, &found(hex(&hasher.finalize())))
}

/// Compares the algorithms of two sides, then the values.
///
/// # Errors
/// `Algorithm`; `Checksum`.
pub fn compare(dest: &str, object: &str, source: &Checksum, found: &Checksum) -> Result<()> {
    let sides = |source: &str, found: &str| (source.into(), found.into());
    if source.algorithm != found.algorithm {
        let (source, found) = sides(&source.algorithm, &found.algorithm);
        return Err(trouble(dest, object, Trouble::Algorithm { source, found }));
    }
    if source.value != found.value {
        let (source, found) = sides(&source.value, &found.value);
        return Err(trouble(dest, object, Trouble::Checksum { source, found }));
    }
    Ok(())
}
