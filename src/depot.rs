//! Where arcs are: the backup dir, and whatever else holds copies of them. What is read there is sealed bytes.
//!
//! Invariants: no other code opens an arc to read it; nothing here judges bytes; which errors speak of stored bytes and
//! which of this process, this machine or a permission is said by one table (`Damage::of_errno`).

mod local;

pub use local::{Local, LocalArc, find};

use std::io;
use std::path::Path;

use crate::error::{Damage, Error, Place, Result};
use crate::ids::{ArcName, CopyId};

/// Where the bytes of a read come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Perhaps from the kernel's page cache.
    Cache,
    /// From the medium: the page cache forgets them before.
    Medium,
}

/// A place that holds a copy of all arcs.
pub trait Depot: Sync {
    fn id(&self) -> CopyId;
    /// For messages; empty for the backup dir itself.
    fn name(&self) -> &str;
    /// # Errors
    /// `Missing` and `Unreadable` are damage; anything else (a permission, a connection) keeps the arc from being read.
    fn open(&self, arc: ArcName) -> Result<Box<dyn StoredArc>>;
}

/// An arc of a depot.
pub trait StoredArc: Send + Sync {
    fn len_bytes(&self) -> u64;
    /// Fills `buffer` from `offset` on as far as the arc goes.
    ///
    /// # Errors
    /// As `Depot::open`.
    fn read(&self, offset: u64, buffer: &mut [u8], via: Via) -> Result<usize>;
    /// Makes the next read of all of it come from the medium.
    fn forget(&self);
    /// A range will not be needed again soon: gives its memory back, no more.
    fn release(&self, offset: u64, len: u64);
}

/// What a read of an arc that failed says of it: damage, or nothing.
pub fn read_error(arc: ArcName, path: &Path, offset: u64, error: &io::Error) -> Error {
    match error.raw_os_error().and_then(Damage::of_errno) {
        Some(damage) => Error::Arc { place: Place { arc, frame: None, block: None, offset }, damage },
        None => Error::io("read", path, error),
    }
}
