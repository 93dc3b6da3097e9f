//! Rules of arcs, frames, hashes and relocations, and the footers of the arcs against the index.
//!
//! Invariant: an arc whose row contradicts its commit record is left to `compare`: its file is not blamed for it.

use std::collections::BTreeMap;

use super::{Cause, Check, Report, Subject};
use crate::arc::{ARC_HEADER_LEN, BlockInfo, FrameInfo, FrameKind};
use crate::catalog::{ArcEntry, ArcRole};
use crate::depot::Reach;
use crate::error::{Damage, Error, Place, Result};
use crate::fetch::ArcFile;
use crate::ids::{ArcName, ArcSerial, BlockId, FrameNo, FramePlace, Version};
use crate::index::{ArcValue, Cursor, FrameChunk, ScanTable, Scanned, Snapshot, State, hash_key};

/// Hashes that are looked up in one pass over the frames, 24 bytes each.
const MAX_HASHES: usize = 2 << 20;
/// The same; in unit tests there are few hashes, and several passes all the same.
const BATCH: usize = if cfg!(test) { 64 } else { MAX_HASHES };

#[derive(Debug, Clone, Copy)]
pub struct ArcFact {
    pub name: ArcName,
    pub frames: u32,
    pub dropped: bool,
}

impl ArcFact {
    fn of(entry: &ArcEntry, dropped: bool) -> ArcFact {
        ArcFact { name: entry.name, frames: entry.frames, dropped }
    }
}

/// What the index says of each arc.
pub type ArcFacts = BTreeMap<ArcSerial, ArcFact>;

pub fn facts(arcs: &[ArcValue]) -> ArcFacts {
    arcs.iter().map(|ArcValue { entry, dropped, .. }| (entry.serial, ArcFact::of(entry, *dropped))).collect()
}

/// Checks each arc's row, frames, file length and footer.
pub fn check<'i>(
    check: &Check<'_>,
    rows: &Snapshot<'i>,
    shadow: Option<&Snapshot<'_>>,
    report: &mut Report,
) -> Result<ArcFacts> {
    let mut facts = ArcFacts::new();
    let mut arcs = rows.cursor(ScanTable::Arcs);
    let mut frames = FrameRows { check, rows, cursor: rows.cursor(ScanTable::Frames), next: None };
    while let Some(scanned) = arcs.take() {
        check.interrupted()?;
        let row = match scanned {
            Scanned::Row(row) => row,
            Scanned::Bad { after, before, error } => {
                check.unreadable(ScanTable::Arcs, &after, before.as_ref(), error, None);
                continue;
            }
        };
        let serial = ArcSerial(row.key.first as u64);
        frames.without_arc_below(serial);
        let value = match row.arc(rows.index()) {
            Ok(value) => value,
            Err(error) => {
                check.report(Subject::Arc(serial), error, Cause::Index, Vec::new());
                frames.skip(serial);
                continue;
            }
        };
        let entry = &value.entry;
        facts.insert(serial, ArcFact::of(entry, value.dropped));
        let asked = check.only_arcs.as_ref().is_none_or(|asked| asked.contains(&serial));
        if value.dropped || !asked {
            if value.dropped && frames.has(serial) {
                check.index_wrong(Subject::Arc(serial), format!("{} was dropped, and has frames", entry.name));
            }
            frames.skip(serial);
            continue;
        }
        let told = shadow.map_or(Ok(None), |shadow| shadow.arc(serial));
        let trusted = told.is_ok_and(|told| told.is_none_or(|told| told.entry == *entry));
        if trusted {
            file_and_footer(check, entry, &mut frames);
            report.arcs += u64::from(!check.arcs_are_read_later());
        } else {
            frames.skip(serial);
        }
    }
    frames.without_arc_below(ArcSerial(u64::MAX));
    relocations(check, rows, &facts)?;
    Ok(facts)
}

/// The frame table in the arc, and the rows that must be its copy.
fn file_and_footer(check: &Check<'_>, entry: &ArcEntry, frames: &mut FrameRows<'_, '_, '_>) {
    let is_away = check.exam.dir.arcs().reach_of(entry.name) == Reach::Far;
    let table = match if is_away { Ok(None) } else { footer(check, entry).map(Some) } {
        Ok(table) => table,
        Err(_) if check.arcs_are_read_later() => {
            check.fold(Subject::ArcFile(entry.name));
            None
        }
        Err(error) => {
            let dir = check.exam.dir;
            let by_itself = ArcFile::open(dir.arcs(), entry.name, dir.keys());
            if by_itself.and_then(|arc| arc.footer_table(dir.keys())).is_ok() {
                // Its own header, footer and trailer agree: it is the index that does not.
                check.index_wrong(Subject::Arc(entry.serial), format!("{} is not what the index says", entry.name));
            } else {
                let cause = Cause::of(&error);
                check.report(Subject::ArcFile(entry.name), error, cause, Vec::new());
            }
            None
        }
    };
    let mut offset = ARC_HEADER_LEN as u64;
    let (mut count, mut plain_bytes) = (0u32, 0u64);
    let mut wrong = None;
    while let Some(chunk) = frames.take(entry.serial) {
        if chunk.first.0 != count || chunk.offset != offset {
            wrong.get_or_insert(format!("frames of {} do not follow each other at frame {count}", entry.name));
        }
        let from_footer = table.as_ref().map(|table| table.get(count as usize..).unwrap_or_default());
        if from_footer.is_some_and(|footer| !footer.starts_with(&chunk.frames)) {
            wrong.get_or_insert(format!("frames of {} from {count} on are not those of its footer", entry.name));
        }
        let kind = if entry.role == ArcRole::Catalog { FrameKind::Catalog } else { FrameKind::Block };
        if chunk.frames.iter().any(|info| info.kind != kind) {
            wrong.get_or_insert(format!("{} has frames of another kind than its own", entry.name));
        }
        count = count.saturating_add(chunk.frames.len() as u32);
        offset += chunk.frames.iter().map(FrameInfo::frame_len).sum::<u64>();
        plain_bytes += chunk.frames.iter().map(|info| u64::from(info.plain_len())).sum::<u64>();
    }
    if (count, offset, plain_bytes) != (entry.frames, entry.footer_offset, entry.plain_bytes) {
        let what = format!("{} has {} frames, the index lists {count} up to offset {offset}", entry.name, entry.frames);
        wrong.get_or_insert(what);
    }
    match wrong {
        // A recovery lists what it can of an arc whose footer is damaged.
        Some(_) if table.is_none() && !is_away => check.fold(Subject::Arc(entry.serial)),
        Some(what) if !check.blind(ScanTable::Frames) => check.index_wrong(Subject::Arc(entry.serial), what),
        _ => {}
    }
}

/// The frame table in an arc of the right length.
fn footer(check: &Check<'_>, entry: &ArcEntry) -> Result<Vec<FrameInfo>> {
    let dir = check.exam.dir;
    let arc = ArcFile::open_known(dir.arcs(), entry, dir.keys())?;
    let found_bytes = arc.len_bytes();
    if found_bytes != entry.arc_bytes {
        let place = Place::in_arc(entry.name, found_bytes);
        return Err(Error::Arc { place, damage: Damage::Truncated { wanted_bytes: entry.arc_bytes, found_bytes } });
    }
    arc.footer_table(dir.keys())
}

/// The rows of `frames`, arc by arc.
struct FrameRows<'c, 's, 'i> {
    check: &'c Check<'c>,
    rows: &'s Snapshot<'i>,
    cursor: Cursor<'s, 'i>,
    next: Option<(ArcSerial, FrameChunk)>,
}

impl FrameRows<'_, '_, '_> {
    fn peek(&mut self) -> Option<ArcSerial> {
        while self.next.is_none() {
            match self.cursor.take()? {
                Scanned::Row(row) => match row.frames(self.rows.index()) {
                    Ok(found) => self.next = Some(found),
                    Err(error) => {
                        let serial = FramePlace(row.key.first as u64).arc();
                        self.check.report(Subject::Arc(serial), error, Cause::Index, Vec::new());
                    }
                },
                Scanned::Bad { after, before, error } => {
                    self.check.unreadable(ScanTable::Frames, &after, before.as_ref(), error, None);
                }
            }
        }
        self.next.as_ref().map(|(serial, _)| *serial)
    }

    fn has(&mut self, serial: ArcSerial) -> bool {
        self.peek() == Some(serial)
    }

    fn take(&mut self, serial: ArcSerial) -> Option<FrameChunk> {
        if self.has(serial) { self.next.take().map(|(_, chunk)| chunk) } else { None }
    }

    fn skip(&mut self, serial: ArcSerial) {
        while self.take(serial).is_some() {}
    }

    fn without_arc_below(&mut self, serial: ArcSerial) {
        while let Some(found) = self.peek().filter(|found| *found < serial) {
            if !self.check.blind(ScanTable::Arcs) {
                let what = format!("frames of arc number {}, which the index does not list", found.0);
                self.check.index_wrong(Subject::Arc(found), what);
            }
            self.skip(found);
        }
    }
}

fn relocations(check: &Check<'_>, rows: &Snapshot<'_>, facts: &ArcFacts) -> Result<()> {
    let recovered = rows.state()?.settled_below > Version(0);
    let mut cursor = rows.cursor(ScanTable::Relocations);
    while let Some(scanned) = cursor.take() {
        let row = match scanned {
            Scanned::Row(row) => row,
            Scanned::Bad { after, before, error } => {
                check.unreadable(ScanTable::Relocations, &after, before.as_ref(), error, None);
                continue;
            }
        };
        let serial = BlockId(row.key.first as u64).arc();
        let (from, to) = match row.relocation(rows.index()) {
            Ok(ends) => ends,
            Err(error) => {
                check.report(Subject::Arc(serial), error, Cause::Index, Vec::new());
                continue;
            }
        };
        let known = |block: BlockId| facts.get(&block.arc()).filter(|fact| block.frame().0 < fact.frames);
        let info = |block: BlockId| -> Result<Option<BlockInfo>> {
            Ok(rows.chunk_of(block)?.and_then(|chunk| chunk.block(block).copied()))
        };
        let (old, new) = (info(from)?, info(to)?);
        // A recovery that could begin only at a base never saw the arcs that were dropped before.
        let from_known = known(from).is_some() || (recovered && !facts.contains_key(&from.arc()));
        let fits = from_known
            && known(to).is_some_and(|fact| !fact.dropped)
            && new.is_some()
            && old.zip(new).is_none_or(|(old, new)| old == new);
        if !fits && !check.blind(ScanTable::Frames) && !check.blind(ScanTable::Arcs) {
            check.index_wrong(Subject::Arc(from.arc()), format!("block {from} was moved to {to}, where it is not"));
        }
    }
    Ok(())
}

/// Each hash must lead to a block that has it; a batch at a time, because hashes are in no order of place.
pub fn hashes(check: &Check<'_>, rows: &Snapshot<'_>, state: &State) -> Result<()> {
    let mut cursor = rows.cursor(ScanTable::Hashes);
    let mut seen = 0u64;
    loop {
        check.interrupted()?;
        // Place, key of the hash.
        let mut batch: Vec<(BlockId, i64, BlockId)> = Vec::new();
        while batch.len() < BATCH {
            match cursor.take() {
                Some(Scanned::Row(row)) => batch.push((row.block(), row.key.first, row.block())),
                Some(Scanned::Bad { after, before, error }) => {
                    check.unreadable(ScanTable::Hashes, &after, before.as_ref(), error, None);
                }
                None => break,
            }
        }
        if batch.is_empty() {
            break;
        }
        seen += batch.len() as u64;
        relocate(rows, &mut batch);
        find(check, rows, &batch);
    }
    if seen != state.hashes && check.index_is_clean() {
        let what = format!("the index has {seen} block hashes, and counts {}", state.hashes);
        check.index_wrong(Subject::Counters, what);
    }
    Ok(())
}

fn relocate(rows: &Snapshot<'_>, batch: &mut [(BlockId, i64, BlockId)]) {
    batch.sort_unstable();
    let mut moved = rows.cursor(ScanTable::Relocations);
    let mut at = batch.iter_mut().peekable();
    while let Some(scanned) = moved.take() {
        let Scanned::Row(row) = scanned else { continue };
        let Ok((from, to)) = row.relocation(rows.index()) else { continue };
        while let Some(entry) = at.next_if(|entry| entry.0 <= from) {
            if entry.0 == from {
                entry.0 = to;
            }
        }
    }
    batch.sort_unstable();
}

fn find(check: &Check<'_>, rows: &Snapshot<'_>, batch: &[(BlockId, i64, BlockId)]) {
    let mut frames = rows.cursor(ScanTable::Frames);
    let mut at = batch.iter().peekable();
    let wrong = |block: BlockId| {
        if !check.blind(ScanTable::Frames) && !check.knows(Subject::Arc(block.arc())) {
            check.index_wrong(Subject::Arc(block.arc()), format!("the hash of block {block} is another one"));
        }
    };
    while let Some(scanned) = frames.take() {
        let Scanned::Row(row) = scanned else { continue };
        let Ok((serial, chunk)) = row.frames(rows.index()) else { continue };
        let first = BlockId::first(serial, chunk.first);
        while let Some((.., block)) = at.next_if(|(place, ..)| *place < first) {
            wrong(*block);
        }
        let end = BlockId::first(serial, FrameNo(chunk.end()));
        while let Some((place, key, block)) = at.next_if(|(place, ..)| *place < end) {
            if chunk.block(*place).is_none_or(|info| hash_key(&info.hash) != *key) {
                wrong(*block);
            }
        }
    }
    at.for_each(|(.., block)| wrong(*block));
}
