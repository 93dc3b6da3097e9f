//! Where arcs are: the backup dir, and whatever else holds copies of them. What is read there is sealed bytes.
//!
//! Invariants: no other code opens an arc to read it, or joins an arc's name to a path; nothing here judges bytes; which
//! errors speak of stored bytes and which of this process, this machine or a permission is said by one table
//! (`Damage::of_errno`).

#[cfg(test)]
pub(crate) mod faulty;
mod local;

pub use local::{Local, list, sync};

use std::io;
use std::ops::Range;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Damage, Error, Result};
use crate::ids::{ArcName, CopyId};

/// Where the bytes of a read come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Via {
    /// Perhaps from the kernel's page cache.
    Cache,
    /// From the medium: the page cache forgets them before.
    Medium,
}

/// How long a read may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// As long as a disk of this machine: whoever needs the bytes reads them.
    Near,
    /// It leaves the machine: no thread that answers others waits for it.
    Far,
}

/// A place that holds a copy of all arcs.
pub trait Depot: Send + Sync {
    fn id(&self) -> CopyId;
    /// For messages; empty for the backup dir itself.
    fn name(&self) -> &str;
    /// Of all of it: near only if each arc is.
    fn reach(&self) -> Reach;
    /// Of one arc.
    fn reach_of(&self, _arc: ArcName) -> Reach {
        self.reach()
    }
    /// Names of all arcs that are there, sorted.
    fn list(&self) -> Result<Vec<ArcName>>;
    /// The length of an arc, without opening it.
    ///
    /// # Errors
    /// As `open`.
    fn len_bytes(&self, arc: ArcName) -> Result<u64>;
    /// # Errors
    /// `Missing` and `Unreadable` are damage; anything else (a permission, a connection) keeps the arc from being read.
    fn open(&self, arc: ArcName) -> Result<Box<dyn StoredArc>>;
    /// Says what will be read soon: where each read costs a way, it is fetched now, much of it at a time.
    fn ahead(&self, _wanted: &[(ArcName, Range<u64>)]) {}
}

/// An arc of a depot, open for reading.
pub trait StoredArc: Send + Sync {
    fn name(&self) -> ArcName;
    /// Whose it is.
    fn copy(&self) -> CopyId;
    /// Where it is, in words.
    fn source(&self) -> String;
    fn len_bytes(&self) -> u64;
    /// Fills `buffer` from `offset` on as far as the arc goes.
    ///
    /// # Errors
    /// As `Depot::open`.
    fn read(&self, offset: u64, buffer: &mut [u8], via: Via) -> Result<usize>;
    /// False once its name leads to something else.
    fn is_current(&self) -> bool;
    /// Makes the next read of all of it come from the medium.
    fn forget(&self);
    /// A range will not be needed again soon: gives its memory back, no more.
    fn release(&self, offset: u64, len: u64);

    /// Bytes `offset..offset + len`.
    ///
    /// # Errors
    /// `Truncated` where the arc ends before.
    fn exactly(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let found = self.read(offset, &mut bytes, Via::Cache)?;
        if found < len {
            let damage = Damage::Truncated { wanted_bytes: len as u64, found_bytes: found as u64 };
            return Err(Error::arc(self.name(), offset, damage));
        }
        Ok(bytes)
    }
}

/// Bytes of an arc that are in memory while all of it is read.
const PIECE_BYTES: usize = 1 << 20;

/// Reads an arc from its start to its end, from the medium, hands it on, and gives its SHA-256.
///
/// # Errors
/// As `read`; those of `advance`, which hears how much was read, and of `out`.
pub fn sha256_of(
    arc: &dyn StoredArc,
    advance: &dyn Fn(u64) -> Result<()>,
    mut out: impl FnMut(&[u8]) -> Result<()>,
) -> Result<[u8; 32]> {
    let (mut digest, mut at, mut buffer) = (Sha256::new(), 0, vec![0; PIECE_BYTES]);
    loop {
        let count = arc.read(at, &mut buffer, Via::Medium)?;
        let piece = buffer.get(..count).unwrap_or_default();
        if piece.is_empty() {
            return Ok(digest.finalize().into());
        }
        digest.update(piece);
        out(piece)?;
        arc.release(at, count as u64);
        at += count as u64;
        advance(count as u64)?;
    }
}

/// What a read of an arc that failed says of it: damage, or nothing.
pub fn read_error(arc: ArcName, path: &Path, offset: u64, error: &io::Error) -> Error {
    match error.raw_os_error().and_then(Damage::of_errno) {
        Some(damage) => Error::arc(arc, offset, damage),
        None => Error::io("read", path, error),
    }
}
