//! Seals lost blocks anew: a run without a version, with a data arc, and Relocate records as its catalog.
//!
//! Invariants: the order of writes is a backup's (docs/format.md), so a kill leaves all of it or nothing; only bytes
//! with the recorded length and block hash are sealed; the old arc keeps its bytes and its recorded checksum.

use crate::arc::BlockInfo;
use crate::backupdir::{BackupDir, Lock, arcs};
use crate::error::{Damage, Error, Place, Result};
use crate::ids::{ArcName, BlockId, Version};
use crate::index::Index;
use crate::monitor::Monitor;
use crate::run::{Contents, Run, Whole, records};

/// What `recut` did.
#[derive(Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "tests ask for the run and the moves"))]
pub struct Recut {
    pub run: Version,
    /// The first arc that holds them.
    pub arc: ArcName,
    /// Name and new place of each block.
    pub moved: Vec<(BlockId, BlockId)>,
}

/// Where a block is read from, where its frame is in the arc, and what is recorded of it.
pub fn recorded(index: &Index, block: BlockId) -> Result<(BlockId, u64, BlockInfo)> {
    let place = index.location(block)?;
    let chunk = index.frame_chunk(place.arc(), place.frame())?;
    match (chunk.locate(place.frame()), chunk.block(place)) {
        (Some((offset, _)), Some(info)) => Ok((place, offset, *info)),
        _ => Err(Error::IndexRow { path: index.path().to_path_buf(), what: format!("{block} is no block") }),
    }
}

/// Seals blocks into a new arc, from which they are read from then on, under their old names.
///
/// # Errors
/// `BLOCK_HASH_MISMATCH` if bytes are not those of their block, before anything is written. Whatever fails before the
/// commit leaves the backup dir as it was, but for the burned number of the run.
pub fn recut(
    dir: &BackupDir,
    lock: &Lock,
    index: &Index,
    blocks: &[(BlockId, Vec<u8>)],
    monitor: &dyn Monitor,
) -> Result<Recut> {
    if blocks.is_empty() {
        return Err(Error::Usage("no block to seal anew".into()));
    }
    for (block, plain) in blocks {
        let (place, offset, info) = recorded(index, *block)?;
        let found = dir.keys().block_hash(plain);
        if found != info.hash || plain.len() != info.len as usize {
            let arc = index.arc(place.arc())?.entry.name;
            let place = Place { arc, frame: Some(place.frame()), block: Some(*block), offset };
            return Err(Error::Arc { place, damage: Damage::HashMismatch { expected: info.hash, found } });
        }
    }
    let reserved = Run::begin(dir, lock, monitor)?.reserve()?;
    let run = reserved.number();
    let (committed, moved) = reserved.write(Whole::Remove, |out| {
        let mut moved = Vec::new();
        for (block, plain) in blocks {
            let to = out.block(plain.clone(), dir.keys().block_hash(plain))?;
            moved.push((*block, to));
        }
        let catalog = records::relocations(out, moved.iter().copied().map(Ok))?;
        Ok((Contents { arcs: out.finish()?, catalog, roots: Vec::new(), version: None }, moved))
    })?;
    let commit = committed.apply().whole()?.commit;
    let arc = commit.arcs.first().map_or(ArcName { version: run, number: arcs::COMMIT_NUMBER }, |entry| entry.name);
    Ok(Recut { run, arc, moved })
}
