//! Arcs that are not kept in the backup dir, because destinations have them: which, and how they are read all the same.
//!
//! Invariants: an arc is noted in `copies/away`, durably, before its file here goes; so one that is missing here and is not
//! noted is lost, and is told as such. What is here is read here. Only arcs of file data go: commits and catalogs stay.

use std::collections::BTreeMap;
use std::io::{Read, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::Around;
use super::hedge::{self, Far};
use crate::backupdir::BackupDir;
use crate::crypto::sha256;
use crate::depot::{Depot, Reach, StoredArc};
use crate::dest::{self, Settings};
use crate::error::{Error, Result};
use crate::ids::{ArcName, CopyId};
use crate::own::OwnDir;
use crate::sync::lock;
use crate::text::hex;

const DIR: &str = "copies";
const FILE: &str = "away";
const FILE_NEW: &str = "away.new";
/// More than this is no file of ours.
const MAX_BYTES: u64 = 256 << 20;
/// How long what was read of the file is taken for what it says.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Arcs that are not here, and their lengths.
pub type Away = BTreeMap<ArcName, u64>;

/// What is noted as kept elsewhere.
///
/// # Errors
/// What keeps the file from being read; a line that is damaged notes nothing.
pub fn read(dir: &BackupDir) -> Result<Away> {
    let Some(own) = dir.own().sub(DIR)? else { return Ok(Away::new()) };
    read_in(&own)
}

fn read_in(own: &OwnDir) -> Result<Away> {
    if own.stat(FILE)?.is_none() {
        return Ok(Away::new());
    }
    let mut bytes = Vec::new();
    let read = own.read(FILE)?.take(MAX_BYTES).read_to_end(&mut bytes);
    read.map_err(|error| Error::io("read", own.path_of(FILE), &error))?;
    Ok(bytes.split(|byte| *byte == b'\n').filter_map(|line| parse(std::str::from_utf8(line).ok()?)).collect())
}

/// Durably, in one step.
pub fn write(dir: &BackupDir, away: &Away) -> Result<()> {
    let own = dir.own().sub_made(DIR, 0o700)?;
    own.remove_if_there(FILE_NEW)?;
    let mut out = own.create(FILE_NEW, 0o600)?;
    let text: String = away.iter().map(|(name, len_bytes)| line(*name, *len_bytes)).collect();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.sync_all());
    written.map_err(|error| Error::io("write", own.path_of(FILE_NEW), &error))?;
    own.rename(FILE_NEW, FILE)?;
    own.sync()
}

fn line(name: ArcName, len_bytes: u64) -> String {
    let text = format!("{name} {len_bytes}");
    format!("{text} {}\n", check(&text))
}

fn parse(line: &str) -> Option<(ArcName, u64)> {
    let (text, sum) = line.rsplit_once(' ')?;
    let (name, len_bytes) = text.split_once(' ').filter(|_| sum == check(text))?;
    Some((ArcName::parse(name)?, len_bytes.parse().ok()?))
}

fn check(text: &str) -> String {
    hex(sha256(text.as_bytes()).first_chunk::<4>().unwrap_or(&[0; 4]))
}

/// The arcs of a backup dir: those that are here, and those that are away, from the first destination that has them.
///
/// Destinations may be named, and arcs go, while somebody reads for weeks.
pub struct PartlyHere {
    local: Arc<dyn Depot>,
    around: Around,
    /// Whether arcs could be away when it was made.
    reach: Reach,
    far: Mutex<Vec<Arc<Far>>>,
    away: Mutex<(Away, Option<Instant>)>,
}

impl PartlyHere {
    pub fn of(around: &Around, local: Arc<dyn Depot>) -> PartlyHere {
        let has_none = dest::all(&around.dir).is_ok_and(|all| all.is_empty());
        let is_near = has_none && read(&around.dir).is_ok_and(|away| away.is_empty());
        let reach = if is_near { Reach::Near } else { Reach::Far };
        PartlyHere { local, around: around.clone(), reach, far: Mutex::default(), away: Mutex::default() }
    }

    /// The destinations that dest.toml names now.
    fn places(&self) -> Result<Vec<Arc<Far>>> {
        let used = dest::all(&self.around.dir)?.into_iter().filter(|settings| !settings.off);
        let mut far = lock(&self.far);
        let known = std::mem::take(&mut *far);
        let opened = |settings: Settings| {
            let same = known.iter().find(|far| far.settings == settings).cloned();
            same.unwrap_or_else(|| Arc::new(Far::new(settings)))
        };
        *far = used.map(opened).collect();
        Ok(far.clone())
    }

    /// The noted length of an arc that is away.
    fn away(&self, arc: ArcName, anew: bool) -> Option<u64> {
        let mut away = lock(&self.away);
        // Where many are away not each of them has the file read.
        let is_old = away.1.is_none_or(|at| at.elapsed() > LOOK_EVERY);
        if is_old || (anew && !away.0.contains_key(&arc)) {
            // What can't be read notes nothing: the arc is told as missing.
            *away = (read(&self.around.dir).unwrap_or_default(), Some(Instant::now()));
        }
        away.0.get(&arc).copied()
    }
}

impl Depot for PartlyHere {
    fn id(&self) -> CopyId {
        self.local.id()
    }

    fn name(&self) -> &str {
        self.local.name()
    }

    fn reach(&self) -> Reach {
        self.reach
    }

    fn reach_of(&self, arc: ArcName) -> Reach {
        match self.away(arc, false) {
            Some(_) if self.local.len_bytes(arc).is_err() => Reach::Far,
            _ => Reach::Near,
        }
    }

    fn list(&self) -> Result<Vec<ArcName>> {
        self.local.list()
    }

    fn len_bytes(&self, arc: ArcName) -> Result<u64> {
        match self.local.len_bytes(arc) {
            Err(error) if error.is_missing_arc() => match self.away(arc, true) {
                Some(arc_bytes) => Ok(arc_bytes),
                None => self.local.len_bytes(arc),
            },
            found => found,
        }
    }

    fn open(&self, arc: ArcName) -> Result<Box<dyn StoredArc>> {
        match self.local.open(arc) {
            Err(error) if error.is_missing_arc() => match self.away(arc, true) {
                Some(arc_bytes) => hedge::open(&self.around, &self.places()?, arc, arc_bytes),
                // It may have come back just now.
                None => self.local.open(arc),
            },
            opened => opened,
        }
    }
}
