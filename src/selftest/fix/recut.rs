//! Seals lost blocks anew: a run without a version, with a data arc, and Relocate records as its catalog.
//!
//! Invariants: the order of writes is a backup's (docs/format.md), so a kill leaves all of it or nothing; only bytes
//! with the recorded length and block hash are sealed; the old arc keeps its bytes and its recorded checksum.

use crate::arc::{FrameInfo, FrameKind, Packer};
use crate::backup::output::Output;
use crate::backup::resume::{Whole, clear_failed_run};
use crate::backup::{catalog, settle};
use crate::backupdir::{BackupDir, Lock, arcs};
use crate::catalog::Commit;
use crate::error::{Damage, Error, Place, Result};
use crate::ids::{ArcName, BlockId, Version};
use crate::index::{Index, IndexWriter, OpenRun};
use crate::monitor::Monitor;

/// What `recut` did.
#[derive(Debug)]
pub struct Recut {
    pub run: Version,
    /// The first arc that holds them.
    pub arc: ArcName,
    /// Name and new place of each block.
    pub moved: Vec<(BlockId, BlockId)>,
}

/// What is recorded of a block, and where it is read from.
pub fn recorded(index: &Index, block: BlockId) -> Result<(BlockId, u64, FrameInfo)> {
    let place = index.location(block)?;
    let chunk = index.frame_chunk(place.arc(), place.frame())?;
    match chunk.locate(place.frame()) {
        Some((offset, info)) if info.kind == FrameKind::Block => Ok((place, offset, *info)),
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
    _: &Lock,
    index: &Index,
    writer: &mut IndexWriter,
    blocks: &[(BlockId, Vec<u8>)],
    monitor: &dyn Monitor,
) -> Result<Recut> {
    if blocks.is_empty() {
        return Err(Error::Usage("no block to seal anew".into()));
    }
    for (block, plain) in blocks {
        let (place, offset, info) = recorded(index, *block)?;
        let found = dir.keys().block_hash(plain);
        if found != info.hash || plain.len() != info.plain_len as usize {
            let arc = index.arc(place.arc())?.entry.name;
            let place = Place { arc, frame: Some(place.frame()), block: Some(*block), offset };
            return Err(Error::Arc { place, damage: Damage::HashMismatch { expected: info.hash, found } });
        }
    }
    let run = settle::settle(dir, index, writer, monitor)?.survey.next_run;
    let state = index.state()?;
    let open_run = OpenRun::new(run).map_err(|e| Error::io("get random bytes for", dir.path(), &e))?;
    writer.reserve_run(open_run)?;
    let written = (|| {
        let mut out = Output::new(dir.own(), dir.keys(), open_run, state.next_serial, dir.config().arc_size_limit)?;
        let mut packer = Packer::new(dir.config().zstd_level)?;
        let mut moved = Vec::new();
        for (block, plain) in blocks {
            let packed = packer.pack(plain)?;
            let to = out.block(&packed, plain.len() as u32, dir.keys().block_hash(plain))?;
            moved.push((*block, to));
        }
        let catalog = catalog::relocations(&mut out, moved.iter().copied().map(Ok))?;
        let (arcs, next_serial) = out.finish()?;
        let arc = arcs.first().map_or(ArcName { version: run, number: arcs::COMMIT_NUMBER }, |entry| entry.name);
        let commit = Commit {
            run,
            run_id: open_run.id,
            previous: state.last_commit,
            version: None,
            base: false,
            arcs,
            catalog,
            next_serial,
            next_logid: state.next_logid,
            next_dirno: state.next_dirno,
        };
        arcs::write_commit(dir.own(), dir.keys(), &commit)?;
        Ok((arc, moved))
    })();
    let (arc, moved) = match written {
        Ok(written) => written,
        Err(e) => {
            let _ = clear_failed_run(dir, index, open_run, Whole::Remove);
            return Err(e);
        }
    };
    settle::apply(dir, writer, run)?;
    writer.checkpoint()?;
    Ok(Recut { run, arc, moved })
}
