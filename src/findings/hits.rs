//! From damaged places to the files, versions and byte ranges that use them.
//!
//! Invariant: a damaged place is one finding, however many files use it.

use std::collections::HashSet;
use std::ops::Range;

use super::{Cause, Finding, Findings, Hit, Level, MAX_HITS, Spot};
use crate::error::{Error, Place, Result};
use crate::ids::{ArcSerial, BlockId, FrameNo};
use crate::index::{Index, Places};
use crate::text::counted;

/// Something wrong with an arc, before it is known which files it hits.
pub struct Wrong {
    pub error: Error,
    pub cause: Cause,
    pub spot: Spot,
    /// Frames of a data arc that can't be read.
    pub frames: Option<(ArcSerial, u32, u32)>,
}

/// Finds out which files are hit, and hands over what was found.
pub fn tell(
    findings: &Findings,
    index: &Index,
    level: Level,
    mut wrong: Vec<Wrong>,
    notes: &mut Vec<String>,
    stop: &dyn Fn() -> bool,
) {
    let before = wrong.len();
    wrong.retain(|wrong| wrong.frames.is_none_or(|(serial, first, end)| is_in_use(index, serial, first..end)));
    if wrong.len() < before {
        let places = counted((before - wrong.len()) as u64, "damaged place");
        notes.push(format!("left out: {places}, of which all that they held was sealed anew in other arcs"));
    }
    let mut places = Places::default();
    for (tag, wrong) in wrong.iter().enumerate() {
        if let Some((serial, first, end)) = wrong.frames {
            places.add(serial, first..end, tag);
        }
    }
    let mut hits = match find(index, &places, wrong.len(), stop) {
        Ok(hits) => hits,
        Err(Error::Interrupted) => Vec::new(),
        Err(error) => {
            let what = format!("which files use what is damaged can't be told: {error}");
            let error = Error::IndexRow { path: index.path().to_path_buf(), what };
            findings.add(Finding::new(level, Cause::Unchecked, error));
            Vec::new()
        }
    }
    .into_iter();
    for Wrong { error, cause, spot, .. } in wrong {
        let (hits, hits_total) = hits.next().unwrap_or_default();
        findings.add(Finding { spot: Some(spot), hits, hits_total, ..Finding::new(level, cause, error) });
    }
}

/// False if every block of these frames is read from another place by now.
fn is_in_use(index: &Index, serial: ArcSerial, frames: Range<u32>) -> bool {
    let (Some(last), Some(first)) = (frames.clone().next_back(), frames.clone().next()) else { return true };
    let names = BlockId::new(serial, FrameNo(first))..=BlockId::new(serial, FrameNo(last));
    let moved = index.relocations(names).unwrap_or_default();
    // A block that was moved here, or one that never moved, is read from here.
    let here = |place: BlockId| place.arc() == serial && frames.contains(&place.frame().0);
    let moved_here = || {
        let all = index.relocations(BlockId(0)..=BlockId(i64::MAX as u64)).unwrap_or_default();
        all.iter().any(|(_, place)| here(*place))
    };
    moved.len() < frames.len() || moved.iter().any(|(_, place)| here(*place)) || moved_here()
}

/// Who uses a block that was named.
#[derive(Debug, Clone)]
pub struct BlockUse {
    pub block: BlockId,
    /// Where it is read from.
    pub place: Place,
    pub hits: Vec<Hit>,
    pub hits_total: u64,
}

/// Blocks that were named (by name, and the place that each is read from), each once, without their users as yet; and
/// their places, tagged 0, 1, ….
pub fn of_blocks(index: &Index, blocks: Vec<(BlockId, BlockId)>) -> Result<(Vec<BlockUse>, Places)> {
    let (mut uses, mut places) = (Vec::<BlockUse>::new(), Places::default());
    for (block, located) in blocks {
        if uses.iter().any(|known| known.block == block) {
            continue;
        }
        let Ok(chunk) = index.frame_chunk(located.arc(), located.frame()) else { continue };
        let offset = chunk.locate(located.frame()).map_or(0, |(offset, _)| offset);
        let arc = index.arc(located.arc())?.entry.name;
        places.add(located.arc(), located.frame().0..located.frame().0 + 1, uses.len());
        let place = Place { arc, frame: Some(located.frame()), block: Some(block), offset };
        uses.push(BlockUse { block, place, hits: Vec::new(), hits_total: 0 });
    }
    Ok((uses, places))
}

/// Hits of one place: at most `MAX_HITS`, and how many there are.
pub type Hits = (Vec<Hit>, u64);

/// The hits of each of `count` places, which are tagged 0, 1, ….
pub fn find(index: &Index, places: &Places, count: usize, stop: &dyn Fn() -> bool) -> Result<Vec<Hits>> {
    let mut hits: Vec<Hits> = (0..count).map(|_| Hits::default()).collect();
    if places.is_empty() {
        return Ok(hits);
    }
    let users = index.users(places, MAX_HITS, stop)?;
    let logids: HashSet<_> = users.uses.iter().map(|used| used.logid).collect();
    let names = index.names(&logids, MAX_HITS, stop)?;
    for used in &users.uses {
        // A file that no version shows any more is nobody's loss.
        let (Some((listed, total)), Some((names, names_total))) = (hits.get_mut(used.tag), names.get(&used.logid))
        else {
            continue;
        };
        *total += names_total;
        let room = MAX_HITS.saturating_sub(listed.len());
        listed.extend(names.iter().take(room).map(|name| Hit {
            logid: used.logid,
            path: name.path.clone(),
            versions: name.versions,
            bytes: used.bytes.clone(),
        }));
    }
    for (tag, uses) in &users.totals {
        if let Some((_, total)) = hits.get_mut(*tag) {
            *total += uses.saturating_sub(MAX_HITS as u64);
        }
    }
    Ok(hits)
}
