//! What a set of versions still needs: names that no other version has, file states, blocks, and how full arcs are of them.
//!
//! Invariants: nothing is passed over: a row that can't be read, a file without its content, a directory whose listing is
//! lost is an error, for what is not seen to be needed may be thrown away; memory holds a bit a file state, a bit a
//! frame, 16 bytes a frame of several blocks, and 16 bytes a long file.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use rusqlite::params;

use super::Index;
use super::fail::Fail;
use super::removal::Subtrees;
use super::row::{self, EntryRow, Key, Table};
use super::rows::{self, PartOf, blob};
use super::schema::{dirno_of_dir_key, version_of_dir_key};
use super::uses::BATCH_ROWS;
use crate::arc::ARC_HEADER_LEN;
use crate::catalog::codec;
use crate::catalog::{ArcEntry, Child, Content, Kind, Segment};
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, BlockId, Dirno, FrameNo, FramePlace, Logid, Slot, Version};

/// Some versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VersionSet(Vec<Version>);

impl VersionSet {
    pub fn new(versions: impl IntoIterator<Item = Version>) -> VersionSet {
        let mut versions: Vec<Version> = versions.into_iter().collect();
        versions.sort_unstable();
        versions.dedup();
        VersionSet(versions)
    }

    pub fn iter(&self) -> impl Iterator<Item = Version> {
        self.0.iter().copied()
    }

    /// The newest of them in an interval of versions; `to` is its end, None: it has none.
    pub fn newest_in(&self, from: Version, to: Option<Version>) -> Option<Version> {
        let end = to.map_or(self.0.len(), |to| self.0.partition_point(|v| *v < to));
        self.0.get(end.checked_sub(1)?).copied().filter(|v| *v >= from)
    }

    pub fn meets(&self, from: Version, to: Option<Version>) -> bool {
        self.newest_in(from, to).is_some()
    }
}

/// Numbers, a bit each, in pieces: ids leap.
#[derive(Clone, Default)]
struct Bits(BTreeMap<u64, Box<[u64; 64]>>);

/// The word of a piece that holds a number's bit, and the bit.
fn bit(n: u64) -> (usize, u64) {
    ((n >> 6 & 63) as usize, 1 << (n & 63))
}

impl Bits {
    fn insert(&mut self, n: u64) {
        let (word, bit) = bit(n);
        if let Some(word) = self.0.entry(n >> 12).or_insert_with(|| Box::new([0; 64])).get_mut(word) {
            *word |= bit;
        }
    }

    fn remove(&mut self, n: u64) {
        let (word, bit) = bit(n);
        if let Some(word) = self.0.get_mut(&(n >> 12)).and_then(|piece| piece.get_mut(word)) {
            *word &= !bit;
        }
    }

    fn contains(&self, n: u64) -> bool {
        let (word, bit) = bit(n);
        self.0.get(&(n >> 12)).and_then(|piece| piece.get(word)).is_some_and(|word| word & bit != 0)
    }

    fn of(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        let pieces = self.0.range(range.start >> 12..=range.end >> 12);
        pieces
            .flat_map(move |(at, _)| (at << 12).max(range.start)..((at + 1) << 12).min(range.end))
            .filter(|n| self.contains(*n))
    }

    fn len(&self) -> u64 {
        self.0.values().flat_map(|piece| piece.iter()).map(|word| u64::from(word.count_ones())).sum()
    }
}

/// Blocks, by their dense numbers.
#[derive(Clone, Default)]
struct Blocks(Bits);

impl Blocks {
    fn insert(&mut self, block: BlockId) {
        self.0.insert(block.dense());
    }

    fn remove(&mut self, block: BlockId) {
        self.0.remove(block.dense());
    }

    fn contains(&self, block: BlockId) -> bool {
        self.0.contains(block.dense())
    }

    /// Those of some neighbouring frames of an arc.
    fn of(&self, frames: Range<FramePlace>) -> impl Iterator<Item = BlockId> {
        let other = |place: FramePlace| place.slot(Slot(0)).0 | BlockId::OTHERS;
        let firsts = self.0.of(frames.start.0..frames.end.0).map(|place| FramePlace(place).slot(Slot(0)));
        let others = self.0.of(other(frames.start)..other(frames.end)).map(|n| BlockId(n & !BlockId::OTHERS));
        firsts.chain(others)
    }
}

/// Blocks that are needed.
pub struct Live {
    /// By the names that files have for them.
    names: Blocks,
    /// Where they are read from.
    places: Blocks,
}

impl Live {
    /// A file that is needed has a block of this name.
    pub fn is_named(&self, block: BlockId) -> bool {
        self.names.contains(block)
    }

    /// A block that is needed is read from one of these frames.
    pub fn is_read_from(&self, frames: Range<FramePlace>) -> bool {
        self.places.of(frames).next().is_some()
    }
}

/// How much of a data arc is needed.
#[derive(Debug, Clone)]
pub struct ArcUse {
    pub entry: ArcEntry,
    /// Bytes of frames.
    pub live_bytes: u64,
    pub dead_bytes: u64,
}

impl ArcUse {
    /// What removing the arc gives back, less what its live frames take elsewhere.
    pub fn free_bytes(&self) -> u64 {
        if self.live_bytes == 0 { self.entry.arc_bytes } else { self.dead_bytes }
    }
}

/// What to do where the index does not know all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gaps {
    Refuse,
    /// The user has accepted that it is gone.
    Accepted,
}

type EntryKey = (i64, Vec<u8>, i64);

impl Index {
    /// All intervals of names in key order, a batch at a time.
    fn each_entry(
        &self,
        stop: &dyn Fn() -> bool,
        mut visit: impl FnMut(Dirno, &[u8], Version, EntryRow) -> Result<()>,
    ) -> Result<()> {
        let mut after: EntryKey = (-1, Vec::new(), -1);
        self.batches(stop, || {
            let batch = self.ask(|c| {
                let sql = "SELECT parent, name, v_from, row FROM entries WHERE (parent, name, v_from)>(?1, ?2, ?3) \
                           ORDER BY parent, name, v_from LIMIT ?4";
                let mut statement = c.prepare_cached(sql)?;
                let mut found = statement.query(params![after.0, after.1, after.2, BATCH_ROWS])?;
                let mut batch = Vec::new();
                while let Some(found) = found.next()? {
                    let (parent, since): (i64, u32) = (found.get(0)?, found.get(2)?);
                    let name = blob(found, 1)?;
                    let row = EntryRow::decode(Key(parent, i64::from(since), name), blob(found, 3)?)?;
                    batch.push((parent, name.to_vec(), since, row));
                }
                Ok(batch)
            })?;
            for (parent, name, since, row) in &batch {
                visit(Dirno(*parent as u64), name, Version(*since), *row)?;
            }
            if let Some((parent, name, since, _)) = batch.last() {
                after = (*parent, name.clone(), i64::from(*since));
            }
            Ok(batch.len())
        })
    }

    /// Visits each path that versions of `going` show and none of `staying` does: the newest version that has it, its
    /// directory there, its name.
    ///
    /// A directory that was removed and made again has another number each time: paths are compared, not numbers.
    pub fn only_in(
        &self,
        going: &VersionSet,
        staying: &VersionSet,
        stop: &dyn Fn() -> bool,
        mut visit: impl FnMut(Version, Dirno, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let both = VersionSet::new(going.iter().chain(staying.iter()));
        let mut open: Option<(Dirno, Vec<u8>, Option<Version>, bool)> = None;
        let mut twins: Option<(Dirno, Vec<Dirno>)> = None;
        let mut judge = |open: Option<(Dirno, Vec<u8>, Option<Version>, bool)>| -> Result<()> {
            let Some((parent, name, Some(newest), false)) = open else { return Ok(()) };
            if twins.as_ref().is_none_or(|(of, _)| *of != parent) {
                let path = self.path_of_dir(newest, parent)?;
                twins = Some((parent, self.dirs_at(&path, &both)?));
            }
            for twin in twins.iter().flat_map(|(_, twins)| twins).filter(|twin| **twin != parent) {
                for (from, row) in self.rows_of(*twin, &name)? {
                    // Of several that go the newest counts.
                    let newer = going.newest_in(from, row.v_to) > Some(newest);
                    if newer || staying.meets(from, row.v_to) {
                        return Ok(());
                    }
                }
            }
            visit(newest, parent, &name)
        };
        self.each_entry(stop, |parent, name, from, row| {
            if open.as_ref().is_none_or(|(dir, known, ..)| *dir != parent || known != name) {
                judge(open.replace((parent, name.to_vec(), None, false)))?;
            }
            if let Some((_, _, newest, stays)) = &mut open {
                *newest = going.newest_in(from, row.v_to).or(*newest);
                *stays |= staying.meets(from, row.v_to);
            }
            Ok(())
        })?;
        judge(open)
    }

    /// All intervals of a name.
    fn rows_of(&self, dir: Dirno, name: &[u8]) -> Result<Vec<(Version, EntryRow)>> {
        self.ask(|c| rows::entry_rows(c, dir, name))
    }

    /// The directories that have this path in some of the versions.
    fn dirs_at(&self, path: &[u8], versions: &VersionSet) -> Result<Vec<Dirno>> {
        let mut at = vec![Dirno::ROOT];
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let mut below = Vec::new();
            for dir in at {
                for (from, row) in self.rows_of(dir, name)? {
                    if let (Child::Dir(dirno), true) = (row.child, versions.meets(from, row.v_to))
                        && !below.contains(&dirno)
                    {
                        below.push(dirno);
                    }
                }
            }
            at = below;
        }
        Ok(at)
    }

    /// The blocks that files of some versions are made of, but for those that only what is in `without` has.
    ///
    /// # Errors
    /// Where it can't be told: `DIRECTORY_LOST`, `EXTENTS_LOST`, `INDEX_…`.
    pub fn live(&self, versions: &VersionSet, without: &Subtrees, gaps: Gaps, stop: &dyn Fn() -> bool) -> Result<Live> {
        if gaps == Gaps::Refuse {
            self.no_listing_is_lost(versions)?;
        }
        let mut files = Bits::default();
        self.each_entry(stop, |parent, name, from, row| {
            if let (Child::Node(logid), true) = (row.child, versions.meets(from, row.v_to))
                && !without.hold(parent, name)
            {
                files.insert(logid.0);
            }
            Ok(())
        })?;
        let mut names = Blocks::default();
        let mut add = |segments: &[Segment]| {
            for segment in segments {
                if let Segment::Data { block, .. } = segment {
                    names.insert(*block);
                }
            }
        };
        // Sizes of long files, less what of their content was seen.
        let mut long: HashMap<i64, u64> = HashMap::new();
        let (mut seen, mut after) = (0u64, -1i64);
        self.batches(stop, || {
            let batch = self.ask(|c| {
                let mut statement = c.prepare_cached("SELECT id, row FROM nodes WHERE id>?1 ORDER BY id LIMIT ?2")?;
                let mut found = statement.query(params![after, BATCH_ROWS])?;
                let mut batch = Vec::new();
                while let Some(found) = found.next()? {
                    let id: i64 = found.get(0)?;
                    if !files.contains(id as u64) {
                        batch.push((id, None));
                        continue;
                    }
                    let body = row::open(Table::Nodes, Key::id(id), blob(found, 1)?)?;
                    let node = rows::decode_node_row(&rows::whole(c, PartOf::Node, id, body)?)?.1;
                    if node.logid.0 as i64 != id {
                        return Err(Fail::Row("the row is another file's"));
                    }
                    batch.push((id, Some((node.attr.kind, node.attr.size, node.content))));
                }
                Ok(batch)
            })?;
            for (id, node) in &batch {
                after = *id;
                match node {
                    None => continue,
                    Some((_, _, Content::Inline(segments))) => add(segments),
                    Some((Kind::File, size, Content::Chunked(_))) => drop(long.insert(*id, *size)),
                    Some((.., Content::Chunked(_))) => {}
                }
                seen += 1;
            }
            Ok(batch.len())
        })?;
        if gaps == Gaps::Refuse && seen != files.len() {
            let what = format!("{} of the files that versions show have no row", files.len() - seen);
            return Err(Error::IndexRow { path: self.path().to_path_buf(), what });
        }
        let mut after = (-1i64, -1i64);
        self.batches(stop, || {
            let batch = self.ask(|c| {
                let sql = "SELECT logid, start, row FROM extents WHERE (logid, start)>(?1, ?2) \
                           ORDER BY logid, start LIMIT ?3";
                let mut statement = c.prepare_cached(sql)?;
                let mut found = statement.query(params![after.0, after.1, BATCH_ROWS])?;
                let mut batch = Vec::new();
                while let Some(found) = found.next()? {
                    let (logid, start): (i64, i64) = (found.get(0)?, found.get(1)?);
                    let body = row::open(Table::Extents, Key(logid, start, &[]), blob(found, 2)?)?;
                    batch.push((logid, start, codec::decode_segments(start as u64, body)?));
                }
                Ok(batch)
            })?;
            for (logid, start, segments) in &batch {
                after = (*logid, *start);
                if let Some(left) = long.get_mut(logid) {
                    add(segments);
                    *left = left.saturating_sub(segments.iter().map(Segment::len).sum());
                }
            }
            Ok(batch.len())
        })?;
        if let (Gaps::Refuse, Some((id, left))) = (gaps, long.iter().find(|(_, left)| **left > 0)) {
            let offset = self.attr(Logid(*id as u64))?.0.size - left;
            return Err(Error::ExtentsLost { logid: Logid(*id as u64), offset });
        }
        self.placed(names, stop)
    }

    fn no_listing_is_lost(&self, versions: &VersionSet) -> Result<()> {
        let lost = self.ask(|c| {
            let mut statement = c.prepare_cached("SELECT id, row FROM lost ORDER BY id")?;
            let mut found = statement.query([])?;
            while let Some(found) = found.next()? {
                let id: i64 = found.get(0)?;
                let to = row::decode_lost(row::open(Table::Lost, Key::id(id), blob(found, 1)?)?)?;
                if let Some(version) = versions.newest_in(version_of_dir_key(id), to) {
                    return Ok(Some((dirno_of_dir_key(id), version)));
                }
            }
            Ok(None)
        })?;
        lost.map_or(Ok(()), |(dirno, version)| Err(Error::DirectoryLost { dirno, version }))
    }

    /// Adds where blocks with these names are read from.
    fn placed(&self, names: Blocks, stop: &dyn Fn() -> bool) -> Result<Live> {
        let mut places = names.clone();
        // A place that is left may be the goal of another move: all go first.
        for pass in [false, true] {
            let mut next = BlockId(0);
            self.batches(stop, || {
                let moves = self.relocations_from(next, BATCH_ROWS as usize)?;
                for (from, to) in moves.iter().filter(|(from, _)| names.contains(*from)) {
                    if pass { places.insert(*to) } else { places.remove(*from) }
                }
                next = moves.last().map_or(next, |(from, _)| BlockId(from.0 + 1));
                Ok(moves.len())
            })?;
        }
        Ok(Live { names, places })
    }

    /// Names of needed blocks that are read from these arcs, in the order of the frames that they are in.
    pub fn names_in(
        &self,
        arcs: &BTreeSet<ArcSerial>,
        live: &Live,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<(BlockId, BlockId)>> {
        let (mut found, mut gone) = (Vec::new(), Blocks::default());
        let mut next = BlockId(0);
        self.batches(stop, || {
            let moves = self.relocations_from(next, BATCH_ROWS as usize)?;
            for (from, to) in moves.iter().filter(|(from, _)| live.is_named(*from)) {
                gone.insert(*from);
                if arcs.contains(&to.arc()) {
                    found.push((*to, *from));
                }
            }
            next = moves.last().map_or(next, |(from, _)| BlockId(from.0 + 1));
            Ok(moves.len())
        })?;
        for arc in arcs {
            let own = live.names.of(frames_of(&self.arc(*arc)?.entry));
            found.extend(own.filter(|name| !gone.contains(*name)).map(|name| (name, name)));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// How full the data arcs are, by serial. An arc of which not all frames are known counts as full if any of it is
    /// needed.
    pub fn arc_uses(&self, live: &Live) -> Result<Vec<ArcUse>> {
        let mut uses = Vec::new();
        for entry in self.data_arcs()? {
            let all_bytes = entry.footer_offset.saturating_sub(ARC_HEADER_LEN as u64);
            let mut live_bytes = 0;
            if live.is_read_from(frames_of(&entry)) {
                live_bytes = self.live_bytes(&entry, live)?.unwrap_or(all_bytes);
            }
            uses.push(ArcUse { entry, live_bytes, dead_bytes: all_bytes.saturating_sub(live_bytes) });
        }
        Ok(uses)
    }

    /// Bytes of frames, of one that several blocks share as large a part as the needed ones are of it. None: not all
    /// frames are known.
    fn live_bytes(&self, entry: &ArcEntry, live: &Live) -> Result<Option<u64>> {
        let (mut live_bytes, mut next) = (0, 0);
        while next < entry.frames {
            let place = FramePlace::new(entry.serial, FrameNo(next));
            let Some(chunk) = self.ask(|c| rows::frames(c, place))?.filter(|chunk| chunk.first.0 == next) else {
                return Ok(None);
            };
            let frame =
                |no: u32| FramePlace::new(entry.serial, FrameNo(no))..FramePlace(place.0 + u64::from(no - next) + 1);
            for (info, no) in chunk.frames.iter().zip(next..) {
                let lens = live.places.of(frame(no)).filter_map(|block| info.block(block.slot()));
                let live_plain: u64 = lens.map(|block| u64::from(block.len)).sum();
                let plain = u64::from(info.plain_len()).max(1);
                let share = u128::from(info.frame_len()) * u128::from(live_plain.min(plain));
                live_bytes += share.div_ceil(u128::from(plain)) as u64;
            }
            next = chunk.end();
        }
        Ok(Some(live_bytes))
    }

    /// The versions whose files must stay readable: those that are shown, and the newest that ever was, for the next
    /// backup builds on it whether it is shown or not.
    pub fn needed(&self) -> Result<VersionSet> {
        let newest = self.newest_ever()?.map(|row| row.version);
        Ok(VersionSet::new(self.versions()?.into_iter().map(|row| row.version).chain(newest)))
    }

    /// True if there is a version, or a path, that is not shown any more.
    pub fn any_removed(&self) -> Result<bool> {
        let all: u64 =
            self.ask(|c| Ok(c.query_row("SELECT count(*) FROM versions", [], |row| row.get::<_, i64>(0))? as u64))?;
        let paths: bool =
            self.ask(|c| Ok(c.query_row("SELECT EXISTS(SELECT 1 FROM removed)", [], |row| row.get(0))?))?;
        Ok(paths || all > self.versions()?.len() as u64)
    }
}

fn frames_of(entry: &ArcEntry) -> Range<FramePlace> {
    let first = FramePlace::new(entry.serial, FrameNo(0));
    first..FramePlace(first.0 + u64::from(entry.frames))
}
