//! Catalog frames of records that are about no directory.

use super::output::Output;
use crate::catalog::codec::encode_record;
use crate::catalog::{CatalogFrame, Loss, Record};
use crate::error::Result;
use crate::ids::{ArcSerial, BlockId};

/// Plain bytes after which a frame is closed: small, because a lost frame costs all directories in it.
const FRAME_BYTES: usize = 64 << 10;
/// The same; in unit tests a small tree has many frames.
pub const CLOSE_AT_BYTES: usize = if cfg!(test) { FRAME_BYTES / 32 } else { FRAME_BYTES };

/// Writes frames of Relocate records: (name, present place) of blocks.
pub fn relocations(
    out: &mut Output<'_>,
    moves: impl IntoIterator<Item = Result<(BlockId, BlockId)>>,
) -> Result<Vec<CatalogFrame>> {
    records(out, moves.into_iter().map(|moved| moved.map(|(from, to)| Record::Relocate { from, to })))
}

/// Writes frames of DropArc records.
pub fn drops(out: &mut Output<'_>, arcs: impl IntoIterator<Item = ArcSerial>) -> Result<Vec<CatalogFrame>> {
    records(out, arcs.into_iter().map(|serial| Ok(Record::DropArc(serial))))
}

/// Writes frames of AcceptLoss records.
pub fn losses(out: &mut Output<'_>, losses: impl IntoIterator<Item = Loss>) -> Result<Vec<CatalogFrame>> {
    records(out, losses.into_iter().map(|loss| Ok(Record::AcceptLoss(loss))))
}

/// Writes frames of records that are about no directory.
pub fn records(out: &mut Output<'_>, records: impl IntoIterator<Item = Result<Record>>) -> Result<Vec<CatalogFrame>> {
    let (mut frames, mut plain) = (Vec::new(), Vec::new());
    let mut close = |plain: &mut Vec<u8>| -> Result<()> {
        let at = out.catalog(plain)?;
        frames.push(CatalogFrame { arc: at.arc(), frame: at.frame(), dirs: Vec::new() });
        plain.clear();
        Ok(())
    };
    for record in records {
        encode_record(&mut plain, &record?);
        if plain.len() >= CLOSE_AT_BYTES {
            close(&mut plain)?;
        }
    }
    if !plain.is_empty() {
        close(&mut plain)?;
    }
    Ok(frames)
}
