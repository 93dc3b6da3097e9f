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
use crate::dest;
use crate::error::{Error, Result, Trouble};
use crate::ids::{ArcName, CopyId};
use crate::sync::lock;

/// How long one that could not be reached is not tried again.
const REST: Duration = Duration::from_secs(30);

pub struct Other {
    around: Around,
    far: Far,
    /// Why it was not reached, and when.
    failed: Mutex<Option<(Error, Instant)>>,
}

/// The destinations that dest.toml names, in its order, but for one and those that are off. What keeps them from being told is
/// no reason not to read what is here: then there are none.
pub fn others(around: &Around, except: Option<&str>) -> Vec<Arc<dyn Depot>> {
    let all = dest::all(&around.dir).unwrap_or_default();
    let used = all.into_iter().filter(|settings| !settings.off && Some(settings.name.as_str()) != except);
    let other = |settings| -> Arc<dyn Depot> {
        Arc::new(Other { around: around.impatient(), far: Far::new(settings), failed: Mutex::default() })
    };
    used.map(other).collect()
}

impl Other {
    fn remote(&self) -> Result<Remote> {
        if let Some(remote) = self.far.opened() {
            let resting = || Trouble::Failed("it failed several times in a row".into());
            return if remote.is_down() { Err(self.trouble(resting())) } else { Ok(remote) };
        }
        // Whoever comes meanwhile waits, and hears the same.
        let mut failed = lock(&self.failed);
        if let Some((error, at)) = failed.as_ref()
            && at.elapsed() < REST
        {
            return Err(error.clone());
        }
        let reached = self.far.remote(&self.around);
        *failed = reached.as_ref().err().map(|error| (error.clone(), Instant::now()));
        reached
    }

    fn trouble(&self, trouble: Trouble) -> Error {
        Error::Dest { dest: self.name().into(), object: "".into(), trouble }
    }
}

/// No copy has this number.
const UNKNOWN: CopyId = CopyId(u16::MAX);

impl Depot for Other {
    /// Once it was reached.
    fn id(&self) -> CopyId {
        self.far.opened().map_or(UNKNOWN, |remote| remote.id())
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
