//! A destination as another copy of what is in the backup dir: it is asked where that fails.
//!
//! Invariants: nothing is asked of it, not even whether it is there, before something is needed; one that could not be
//! reached is left alone for a while, so that not each block that is bad here waits for it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::Around;
use super::hedge::Far;
use super::remote::Remote;
use crate::depot::{Depot, Reach, StoredArc};
use crate::dest::{self, Known};
use crate::error::{Error, Result};
use crate::ids::{ArcName, CopyId};
use crate::sync::lock;

/// How long one that could not be reached is not tried again.
const REST: Duration = Duration::from_secs(30);

pub struct Other {
    around: Around,
    far: Far,
    id: CopyId,
    /// Why it was not reached, and when.
    failed: Mutex<Option<(Error, Instant)>>,
}

/// The destinations that dest.toml names, in its order, but for one, those that are off, and those that have no mark of ours.
/// What keeps them from being told is no reason not to read what is here: then there are none.
pub fn others(around: &Around, except: Option<&str>) -> Vec<Arc<dyn Depot>> {
    let (Ok(all), Ok(known)) = (dest::all(&around.dir), Known::read(&around.dir)) else { return Vec::new() };
    let used = all.into_iter().filter(|settings| !settings.off && Some(settings.name.as_str()) != except);
    let marked =
        used.filter_map(|settings| known.of_name(&settings.name).map(|place| (CopyId(place.copy()), settings)));
    let other = |(id, settings)| -> Arc<dyn Depot> {
        Arc::new(Other { around: around.impatient(), far: Far::new(settings), id, failed: Mutex::default() })
    };
    marked.map(other).collect()
}

impl Other {
    fn remote(&self) -> Result<Remote> {
        if let Some((error, at)) = lock(&self.failed).as_ref()
            && at.elapsed() < REST
        {
            return Err(error.clone());
        }
        let reached = self.far.remote(&self.around);
        *lock(&self.failed) = reached.as_ref().err().map(|error| (error.clone(), Instant::now()));
        reached
    }
}

impl Depot for Other {
    fn id(&self) -> CopyId {
        self.id
    }

    fn name(&self) -> &str {
        &self.far.settings.name
    }

    fn reach(&self) -> Reach {
        Reach::Far
    }

    fn list(&self) -> Result<Vec<ArcName>> {
        self.remote()?.list()
    }

    fn len_bytes(&self, arc: ArcName) -> Result<u64> {
        self.remote()?.len_bytes(arc)
    }

    fn open(&self, arc: ArcName) -> Result<Box<dyn StoredArc>> {
        self.remote()?.open(arc)
    }
}
