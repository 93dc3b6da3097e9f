//! An arc on its way to a destination.
//!
//! Invariants: its last bytes are given only if all of it has the recorded checksum, so that nothing else is ever stored
//! whole; where it is read from is not believed.

use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use super::pace::Pace;
use crate::depot::{StoredArc, Via};
use crate::dest::{Body, Storage, Sum};
use crate::error::{Damage, Error, Place, Result, Trouble};
use crate::ids::{ArcDigest, ArcName};
use crate::sync::lock;

/// Where an arc is read from.
pub enum Source {
    Home(Box<dyn StoredArc>),
    /// A copy at another destination.
    Copy(Arc<dyn Storage>),
}

pub struct ArcBody<'a> {
    name: ArcName,
    source: Source,
    len_bytes: u64,
    sum: Sum,
    pace: &'a Pace,
    /// Told of bytes that were given, all so far.
    given: &'a (dyn Fn(u64) + Sync),
    /// How far it was read in order, and the hash of that.
    read: Mutex<(u64, Sha256)>,
}

impl<'a> ArcBody<'a> {
    pub fn new(
        name: ArcName,
        source: Source,
        (len_bytes, sum): (u64, Sum),
        pace: &'a Pace,
        given: &'a (dyn Fn(u64) + Sync),
    ) -> ArcBody<'a> {
        ArcBody { name, source, len_bytes, sum, pace, given, read: Mutex::new((0, Sha256::new())) }
    }

    fn wrong(&self, found: Sum) -> Error {
        match &self.source {
            Source::Home(_) => {
                let damage = Damage::WrongSum(Box::new((ArcDigest(self.sum), ArcDigest(found))));
                Error::arc(self.name, 0, damage)
            }
            Source::Copy(storage) => {
                let (source, found) = (ArcDigest(self.sum).to_string().into(), ArcDigest(found).to_string().into());
                let trouble = Trouble::Checksum { source, found };
                Error::Dest { dest: storage.name().into(), object: self.name.to_string().into(), trouble }
            }
        }
    }
}

impl Body for ArcBody<'_> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn fill(&self, start: u64, piece: &mut [u8]) -> Result<()> {
        self.pace.spend(piece.len() as u64)?;
        let end = start + piece.len() as u64;
        match &self.source {
            Source::Home(arc) => {
                let found_bytes = arc.read(start, piece, Via::Cache)? as u64;
                if found_bytes < piece.len() as u64 {
                    let damage = Damage::Truncated { wanted_bytes: self.len_bytes, found_bytes: start + found_bytes };
                    let place = Place::in_arc(self.name, 0);
                    return Err(Error::Arc { place, damage });
                }
            }
            Source::Copy(storage) => {
                let bytes = storage.read(&self.name.to_string(), start..end)?;
                piece.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
            }
        }
        let mut read = lock(&self.read);
        if start == 0 {
            *read = (0, Sha256::new());
        }
        if start != read.0 {
            return Err(Error::SelfCheck { what: format!("{} is not sent in order", self.name) });
        }
        read.1.update(&*piece);
        read.0 = end;
        if end == self.len_bytes {
            let found: Sum = read.1.clone().finalize().into();
            if found != self.sum {
                return Err(self.wrong(found));
            }
        }
        drop(read);
        (self.given)(end);
        Ok(())
    }

    fn sum(&self) -> Result<Sum> {
        Ok(self.sum)
    }
}
