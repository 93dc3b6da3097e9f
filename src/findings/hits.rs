//! From damaged places to the files, versions and byte ranges that use them.
//!
//! Invariant: a damaged place is one finding, however many files use it.

use std::collections::HashSet;

use super::{Cause, Finding, Findings, Hit, Level, MAX_HITS, Spot};
use crate::error::{Error, Place, Result};
use crate::ids::{ArcSerial, BlockId, FrameNo, Slot};
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

/// Finds out which files are hit, and hands over what was found: in the copy that is here, or `at` a destination.
pub fn tell(
    findings: &Findings,
    index: &Index,
    (level, at): (Level, Option<&str>),
    wrong: Vec<Wrong>,
    notes: &mut Vec<String>,
    stop: &dyn Fn() -> bool,
) {
    let moved: Vec<Moved> = wrong.iter().map(|wrong| wrong.frames.map_or(Moved::None, |at| moved(index, at))).collect();
    let mut places = Places::default();
    for (tag, wrong) in wrong.iter().enumerate() {
        if let Some((serial, first, end)) = wrong.frames {
            places.add(serial, first..end, tag);
        }
    }
    let found = find(index, &places, wrong.len(), stop);
    let is_told = found.is_ok();
    let mut hits = match found {
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
    let mut left_out = 0;
    for (Wrong { error, cause, spot, .. }, moved) in wrong.into_iter().zip(moved) {
        let (hits, hits_total) = hits.next().unwrap_or_default();
        // What was not sealed anew of a frame of which some was is nobody's loss, if nobody uses it.
        if moved == Moved::All || (moved == Moved::Some && is_told && hits_total == 0) {
            left_out += 1;
            continue;
        }
        let place = Finding::new(level, cause, error).at(at);
        findings.add(Finding { spot: Some(spot), hits, hits_total, ..place });
    }
    if left_out > 0 {
        let places = counted(left_out, "damaged place");
        notes.push(format!("left out: {places}, of which all that they held was sealed anew in other arcs"));
    }
}

/// How many of the blocks of some frames are read from another place by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moved {
    None,
    Some,
    All,
}

fn moved(index: &Index, (serial, first, end): (ArcSerial, u32, u32)) -> Moved {
    let (Some(last), true) = (end.checked_sub(1), first < end) else { return Moved::None };
    let names = BlockId::first(serial, FrameNo(first))..=BlockId::new(serial, FrameNo(last), Slot::MAX);
    let moved = index.relocations(names).unwrap_or_default();
    // A block that was moved here, or one that never moved, is read from here.
    let here = |place: BlockId| place.arc() == serial && (first..end).contains(&place.frame().0);
    if moved.is_empty() || moved.iter().any(|(_, place)| here(*place)) {
        return Moved::None;
    }
    let all = index.relocations(BlockId(0)..=BlockId::MAX).unwrap_or_default();
    if all.iter().any(|(_, place)| here(*place)) {
        return Moved::None;
    }
    match index.blocks_in(serial, first..end) {
        Ok(count) if moved.len() as u64 >= count => Moved::All,
        _ => Moved::Some,
    }
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
        places.add_block(located, uses.len());
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
