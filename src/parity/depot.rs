//! An arc as it is once its bad shards are put right by its sidecar: one more copy of it, near, and read like any other.
//!
//! Invariants: what is right here is read here, and no more of the arc is read for it; one region is put right at a time; what
//! was put right is held within bounds; a region that can't be is told, and not tried anew by each reader.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{file_name, listed};
use crate::arc::parity::{Mended, ParityHeader, Region, SHARD_BYTES, ShardHash, Shards};
use crate::backupdir::BackupDir;
use crate::depot::{Depot, Local, Reach, StoredArc, Via};
use crate::error::{Error, Result};
use crate::ids::{ArcName, CopyId};
use crate::os::file::read_up_to;
use crate::os::stat;
use crate::own::OwnDir;
use crate::sync::lock;
use crate::text::shown;

/// Shards that were put right and are kept, all regions together; those of one region at least.
const MAX_MENDED_BYTES: usize = 8 << 20;
/// How long what can't be put right is not tried again.
const REST: Duration = Duration::from_secs(30);

/// All arcs that have a sidecar.
pub struct Parity(Arc<Shared>);

struct Shared {
    own: Arc<OwnDir>,
    home: Arc<dyn Depot>,
    /// The newest last.
    mended: Mutex<VecDeque<Held>>,
}

/// A region that was put right as far as it could be.
struct Held {
    arc: ArcName,
    region: u64,
    mended: Mended,
    at: Instant,
}

impl Held {
    /// Not all of it could be put right a moment ago.
    fn rests(&self) -> bool {
        self.mended.shards.len() < self.mended.bad && self.at.elapsed() < REST
    }
}

impl Parity {
    pub fn of(dir: &BackupDir) -> Parity {
        Parity::over(dir.own(), Arc::new(Local::new(dir.own())))
    }

    /// Sidecars of a directory, for the arcs that are read elsewhere.
    pub(super) fn over(own: &Arc<OwnDir>, home: Arc<dyn Depot>) -> Parity {
        Parity(Arc::new(Shared { own: own.clone(), home, mended: Mutex::default() }))
    }

    fn opened(&self, arc: ArcName) -> Result<ParityArc> {
        let (shared, name) = (self.0.clone(), file_name(arc));
        let (file, path) = (shared.own.read(&name)?, shared.own.path_of(&name));
        let bytes = stat::of_fd(&file).map_err(|e| Error::io("stat", &path, &e))?.size;
        let header = ParityHeader::read(&|at, buffer| read_up_to(&file, buffer, at).unwrap_or(0), bytes);
        let short = |what: &str| Error::ParityShort { path: path.clone(), what: what.into() };
        let header =
            header.filter(|header| header.arc == arc).ok_or_else(|| short("it is damaged, or of another arc"))?;
        let stored = shared.home.open(arc).map_err(|error| match error.is_damage() {
            true => short("its arc can't be opened"),
            false => error,
        })?;
        Ok(ParityArc { shared, stored, file, path, header, hashes: Mutex::default() })
    }
}

impl Depot for Parity {
    fn id(&self) -> CopyId {
        CopyId::PARITY
    }

    fn name(&self) -> &str {
        "parity"
    }

    fn reach(&self) -> Reach {
        Reach::Near
    }

    fn list(&self) -> Result<Vec<ArcName>> {
        Ok(listed(&self.0.own)?.into_iter().collect())
    }

    fn len_bytes(&self, arc: ArcName) -> Result<u64> {
        self.opened(arc).map(|arc| arc.header.arc_bytes)
    }

    fn open(&self, arc: ArcName) -> Result<Box<dyn StoredArc>> {
        Ok(Box::new(self.opened(arc)?))
    }
}

/// Hashes of all shards of a region.
type Hashes = Arc<Vec<Option<ShardHash>>>;

struct ParityArc {
    shared: Arc<Shared>,
    /// What is there of the arc.
    stored: Box<dyn StoredArc>,
    /// Its sidecar.
    file: File,
    path: PathBuf,
    header: ParityHeader,
    /// Those of the region that was read last.
    hashes: Mutex<Option<(u64, Hashes)>>,
}

impl ParityArc {
    fn hashes(&self, region: &Region) -> Hashes {
        let mut held = lock(&self.hashes);
        match held.as_ref().filter(|(number, _)| *number == region.number) {
            Some((_, hashes)) => hashes.clone(),
            None => {
                let hashes = Arc::new(region.hashes(&self.header, &|at, buffer| self.sidecar(at, buffer)));
                *held = Some((region.number, hashes.clone()));
                hashes
            }
        }
    }

    fn sidecar(&self, at: u64, buffer: &mut [u8]) -> usize {
        read_up_to(&self.file, buffer, at).unwrap_or(0)
    }

    fn here(&self, at: u64, buffer: &mut [u8], via: Via) -> usize {
        self.stored.read(at, buffer, via).unwrap_or(0)
    }

    /// Fills a buffer with bytes of one region.
    fn read_in(&self, region: &Region, offset: u64, buffer: &mut [u8], via: Via) -> Result<()> {
        let hashes = self.hashes(region);
        let last = (offset + buffer.len() as u64).saturating_sub(1);
        let (first, last) = (region.shard_of(offset), region.shard_of(last));
        let (at, end) = (region.offset_of(first), self.header.arc_bytes);
        let wanted = hashes.get(first..=last).unwrap_or_default();
        let mut shards = Shards::read(&|at, buffer| self.here(at, buffer, via), at, end, wanted);
        if shards.right.iter().any(|right| !right) {
            self.put_right(region, &hashes, first, &mut shards)?;
        }
        let from = (offset - at) as usize;
        match shards.bytes.get(from..from + buffer.len()) {
            Some(bytes) => buffer.copy_from_slice(bytes),
            None => return Err(self.short(region, &Mended::default())),
        }
        Ok(())
    }

    /// Puts those shards right that are not, by all that is right of the region.
    fn put_right(&self, region: &Region, hashes: &Hashes, first: usize, shards: &mut Shards) -> Result<()> {
        let mut all = lock(&self.shared.mended);
        let position = all.iter().position(|held| held.arc == self.header.arc && held.region == region.number);
        let known = position.and_then(|position| all.remove(position));
        let bad: Vec<usize> =
            (first..).zip(&shards.right).filter(|(_, right)| !**right).map(|(shard, _)| shard).collect();
        let has_all = |held: &Held| bad.iter().all(|shard| held.mended.shards.contains_key(shard));
        let held = match known.filter(|held| has_all(held) || held.rests()) {
            Some(held) => held,
            None => {
                let (here, sidecar) = (
                    |at, buffer: &mut [u8]| self.here(at, buffer, Via::Cache),
                    |at, buffer: &mut [u8]| self.sidecar(at, buffer),
                );
                let mended = region.mend(&self.header, hashes, &here, &sidecar);
                let held = Held { arc: self.header.arc, region: region.number, mended, at: Instant::now() };
                if !has_all(&held) {
                    log::warn!("{}", self.short(region, &held.mended));
                }
                held
            }
        };
        let done = match has_all(&held) {
            true => Ok(()),
            false => Err(self.short(region, &held.mended)),
        };
        for (target, shard) in shards.bytes.chunks_exact_mut(SHARD_BYTES).zip(first..) {
            if let Some(right) = held.mended.shards.get(&shard) {
                target.copy_from_slice(right);
            }
        }
        all.push_back(held);
        let bytes = |all: &VecDeque<Held>| all.iter().map(|held| held.mended.shards.len() * SHARD_BYTES).sum::<usize>();
        while all.len() > 1 && bytes(&all) > MAX_MENDED_BYTES {
            all.pop_front();
        }
        done
    }

    fn short(&self, region: &Region, mended: &Mended) -> Error {
        let (bad, parity) = (crate::text::counted(mended.bad as u64, "sector"), mended.parity);
        let from = region.offset;
        let what = format!("from offset {from} on {bad} of {} are bad, and {parity} can be put right", self.header.arc);
        Error::ParityShort { path: self.path.clone(), what }
    }
}

impl StoredArc for ParityArc {
    fn name(&self) -> ArcName {
        self.header.arc
    }

    fn copy(&self) -> CopyId {
        CopyId::PARITY
    }

    fn source(&self) -> String {
        format!("{} with {}", self.stored.source(), shown(&self.path))
    }

    fn len_bytes(&self) -> u64 {
        self.header.arc_bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8], via: Via) -> Result<usize> {
        let len = self.header.arc_bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let mut rest = buffer.get_mut(..len).unwrap_or_default();
        let mut at = offset;
        while !rest.is_empty() {
            let region = self.header.region_of(at);
            let of_region = region.offset_of(region.data_shards).saturating_sub(at).min(rest.len() as u64);
            let (part, behind) = rest.split_at_mut_checked(of_region.max(1) as usize).unwrap_or_default();
            self.read_in(&region, at, part, via)?;
            at += part.len() as u64;
            rest = behind;
        }
        Ok(len)
    }

    fn is_current(&self) -> bool {
        self.stored.is_current()
    }

    fn forget(&self) {
        self.stored.forget();
    }

    fn release(&self, offset: u64, len: u64) {
        self.stored.release(offset, len);
    }
}
