//! What an arc must be, wherever a copy of it lies: from the index or, of a commit, whose checksum nothing has recorded, from
//! one that was proven.

use super::Around;
use super::pace::Pace;
use super::plan::{Wanted, What};
use crate::backupdir::arcs;
use crate::catalog::ArcEntry;
use crate::depot::Depot;
use crate::dest::Sum;
use crate::error::{Error, Result};
use crate::fetch;
use crate::ids::{ArcId, ArcName};

/// What must be there under a name.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    pub name: ArcName,
    pub id: ArcId,
    pub len_bytes: u64,
    pub sum: Sum,
}

impl Facts {
    pub fn of(entry: &ArcEntry) -> Facts {
        Facts { name: entry.name, id: entry.id, len_bytes: entry.arc_bytes, sum: entry.digest.0 }
    }
}

/// What must be at every destination under a name.
pub fn facts(around: &Around, wanted: &Wanted, pace: &Pace) -> Result<Facts> {
    let name = wanted.name;
    match &wanted.what {
        What::Arc(entry) => Ok(Facts::of(entry)),
        What::Commit(digest) => facts_of_commit(around, &around.here(), name, digest, pace),
    }
}

/// Every byte of a commit arc is proven, and its record is the one that the index knows.
pub fn facts_of_commit(
    around: &Around,
    depot: &dyn Depot,
    name: ArcName,
    digest: &[u8; 32],
    pace: &Pace,
) -> Result<Facts> {
    let keys = around.dir.keys();
    let proven = fetch::prove(depot, name, keys, |_| pace.check().is_ok())?;
    let (_, found) = arcs::read_commit(depot, name.version, keys)?;
    if found != *digest {
        let what = "it is not the one that the index knows".into();
        return Err(Error::CommitDamaged { run: name.version, what });
    }
    Ok(Facts { name, id: proven.id, len_bytes: proven.arc_bytes, sum: proven.digest.0 })
}
