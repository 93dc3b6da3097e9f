//! A depot for tests: another one's, in which reads are remembered, fail, lie, or take their time.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Depot, Reach, StoredArc, Via};
use crate::error::{Damage, Error, Place, Result};
use crate::ids::{ArcName, CopyId};
use crate::sync::lock;

/// What happens to a read.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    Errno(i32),
    /// XOR of one byte at an offset in the arc.
    Flip(u64, u8),
    Wait(Duration),
}

/// A read of an arc: where, and from where.
pub type Read = (ArcName, Range<u64>, Via);

type Rule = Box<dyn Fn(&Read) -> Option<Fault> + Send + Sync>;

struct Shared {
    reads: Mutex<Vec<Read>>,
    opened: Mutex<Vec<ArcName>>,
    rule: Rule,
}

#[derive(Clone)]
pub struct Faulty {
    inner: Arc<dyn Depot>,
    id: CopyId,
    name: &'static str,
    reach: Reach,
    hides: Arc<dyn Fn(ArcName) -> bool + Send + Sync>,
    shared: Arc<Shared>,
}

impl Faulty {
    /// The depot as it is, and what was read of it.
    pub fn recording(inner: Arc<dyn Depot>) -> Faulty {
        Faulty::new(inner, |_| None)
    }

    pub fn new(inner: Arc<dyn Depot>, rule: impl Fn(&Read) -> Option<Fault> + Send + Sync + 'static) -> Faulty {
        let shared = Shared { reads: Mutex::default(), opened: Mutex::default(), rule: Box::new(rule) };
        let (id, name, reach) = (inner.id(), "", inner.reach());
        Faulty { inner, id, name, reach, hides: Arc::new(|_| false), shared: Arc::new(shared) }
    }

    /// As another copy.
    pub fn copy(self, id: u16, name: &'static str, reach: Reach) -> Faulty {
        Faulty { id: CopyId(id), name, reach, ..self }
    }

    /// Without some arcs.
    pub fn hiding(self, hides: impl Fn(ArcName) -> bool + Send + Sync + 'static) -> Faulty {
        Faulty { hides: Arc::new(hides), ..self }
    }

    pub fn reads(&self) -> Vec<Read> {
        lock(&self.shared.reads).clone()
    }

    pub fn opened(&self) -> Vec<ArcName> {
        lock(&self.shared.opened).clone()
    }

    fn missing(&self, arc: ArcName) -> Result<()> {
        let place = Place::in_arc(arc, 0);
        if (self.hides)(arc) { Err(Error::Arc { place, damage: Damage::Missing }) } else { Ok(()) }
    }
}

impl Depot for Faulty {
    fn id(&self) -> CopyId {
        self.id
    }
    fn name(&self) -> &str {
        self.name
    }
    fn reach(&self) -> Reach {
        self.reach
    }
    fn list(&self) -> Result<Vec<ArcName>> {
        Ok(self.inner.list()?.into_iter().filter(|arc| !(self.hides)(*arc)).collect())
    }
    fn len_bytes(&self, arc: ArcName) -> Result<u64> {
        self.missing(arc)?;
        self.inner.len_bytes(arc)
    }
    fn open(&self, arc: ArcName) -> Result<Box<dyn StoredArc>> {
        self.missing(arc)?;
        lock(&self.shared.opened).push(arc);
        Ok(Box::new(FaultyArc { inner: self.inner.open(arc)?, copy: self.id, shared: self.shared.clone() }))
    }
}

struct FaultyArc {
    inner: Box<dyn StoredArc>,
    copy: CopyId,
    shared: Arc<Shared>,
}

impl StoredArc for FaultyArc {
    fn name(&self) -> ArcName {
        self.inner.name()
    }
    fn copy(&self) -> CopyId {
        self.copy
    }
    fn source(&self) -> String {
        self.inner.source()
    }
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }
    fn read(&self, offset: u64, buffer: &mut [u8], via: Via) -> Result<usize> {
        let range = offset..offset + buffer.len() as u64;
        let read = (self.name(), range.clone(), via);
        let fault = (self.shared.rule)(&read);
        lock(&self.shared.reads).push(read);
        match fault {
            Some(Fault::Errno(errno)) => {
                let error = io::Error::from_raw_os_error(errno);
                return Err(super::read_error(self.name(), Path::new("faulty"), offset, &error));
            }
            Some(Fault::Wait(time)) => std::thread::sleep(time),
            _ => {}
        }
        let count = self.inner.read(offset, buffer, via)?;
        if let Some(Fault::Flip(at, mask)) = fault
            && range.contains(&at)
            && let Some(byte) = buffer.get_mut((at - offset) as usize)
        {
            *byte ^= mask;
        }
        Ok(count)
    }
    fn is_current(&self) -> bool {
        self.inner.is_current()
    }
    fn forget(&self) {
        self.inner.forget();
    }
    fn release(&self, offset: u64, len: u64) {
        self.inner.release(offset, len);
    }
}
