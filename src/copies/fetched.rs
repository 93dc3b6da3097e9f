//! A small arc that was fetched from a destination, as a depot of its own: so it is proven by the same code as one here.

use crate::depot::{Depot, Reach, StoredArc, Via};
use crate::error::{Damage, Error, Place, Result};
use crate::ids::{ArcName, CopyId};

#[derive(Clone)]
pub struct Fetched {
    pub name: ArcName,
    pub bytes: Vec<u8>,
}

impl Depot for Fetched {
    fn id(&self) -> CopyId {
        CopyId::LOCAL
    }

    fn name(&self) -> &str {
        ""
    }

    fn reach(&self) -> Reach {
        Reach::Near
    }

    fn list(&self) -> Result<Vec<ArcName>> {
        Ok(vec![self.name])
    }

    fn len_bytes(&self, arc: ArcName) -> Result<u64> {
        self.open(arc).map(|arc| arc.len_bytes())
    }

    fn open(&self, arc: ArcName) -> Result<Box<dyn StoredArc>> {
        if arc == self.name {
            return Ok(Box::new(self.clone()));
        }
        let place = Place::in_arc(arc, 0);
        Err(Error::Arc { place, damage: Damage::Missing })
    }
}

impl StoredArc for Fetched {
    fn name(&self) -> ArcName {
        self.name
    }

    fn copy(&self) -> CopyId {
        CopyId::LOCAL
    }

    fn source(&self) -> String {
        self.name.to_string()
    }

    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, offset: u64, buffer: &mut [u8], _: Via) -> Result<usize> {
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        buffer.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Ok(rest.len().min(buffer.len()))
    }

    fn is_current(&self) -> bool {
        true
    }

    fn forget(&self) {}

    fn release(&self, _: u64, _: u64) {}
}
