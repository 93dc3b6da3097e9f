//! The questions that the rest of the program asks of the index.
//!
//! Invariants: each answer holds for the version asked about whatever is applied meanwhile; what the index cannot
//! know is an error (`DIRECTORY_LOST`, `EXTENTS_LOST`, `INDEX_ROW_DAMAGED`), never "not there".

use std::ops::{Range, RangeInclusive};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::fail::{Fail, Found};
use super::listing;
use super::row::{self, ArcValue, EntryRow, Key, Table};
use super::rows::{self, blob};
use super::{ArcRow, DirRow, Entry, FrameChunk, Index, Root, State, VersionRow};
use crate::catalog::{ArcEntry, ArcRole, Attr, Child, ExtentChunk, Node};
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, BlockHash, BlockId, Dirno, FrameNo, FramePlace, Logid, Version};
use crate::sync::lock;

/// How long it is believed that the versions are those of the last commit.
const CHECKED_FOR: Duration = Duration::from_secs(1);

/// Notices a chain of parents that is a ring: the last place that was marked is met again (Brent).
pub struct Ascent {
    steps: u64,
    mark: Dirno,
}

impl Ascent {
    pub fn from(start: Dirno) -> Ascent {
        Ascent { steps: 0, mark: start }
    }

    /// One step up, to `at`; false in a ring, at the latest after three times round it.
    pub fn step(&mut self, at: Dirno) -> bool {
        if at == self.mark {
            return false;
        }
        self.steps += 1;
        if self.steps.is_power_of_two() {
            self.mark = at;
        }
        true
    }
}

impl Index {
    /// All versions that were not removed, oldest first.
    pub fn versions(&self) -> Result<Vec<VersionRow>> {
        self.look_first()?;
        self.ask(|c| {
            self.check_versions(c)?;
            let mut statement = c.prepare_cached("SELECT id, row FROM versions ORDER BY id")?;
            let mut rows = statement.query([])?;
            let mut versions = Vec::new();
            while let Some(found) = rows.next()? {
                let id: i64 = found.get(0)?;
                let body = row::open(Table::Versions, Key::id(id), blob(found, 1)?)?;
                let (version, removed) = rows::version_of(c, id, body)?;
                if !removed {
                    versions.push(version);
                }
            }
            Ok(versions)
        })
    }

    /// The newest version that was not removed.
    pub fn newest(&self) -> Result<Option<VersionRow>> {
        self.look_first()?;
        self.ask(|c| match self.versions_known(c)?.newest {
            Some(newest) => match rows::version(c, newest)? {
                Some((version, false)) => Ok(Some(version)),
                _ => Err(Fail::Row("the newest version has no row")),
            },
            None => Ok(None),
        })
    }

    /// The newest version, also when it was removed: the one that open intervals show.
    pub fn newest_ever(&self) -> Result<Option<VersionRow>> {
        self.ask(|c| {
            let mut statement = c.prepare_cached("SELECT id, row FROM versions ORDER BY id DESC LIMIT 1")?;
            let mut rows = statement.query([])?;
            let Some(found) = rows.next()? else { return Ok(None) };
            let id: i64 = found.get(0)?;
            let body = row::open(Table::Versions, Key::id(id), blob(found, 1)?)?;
            Ok(Some(rows::version_of(c, id, body)?.0))
        })
    }

    /// The versions from the last base on, oldest first, removed ones too: without one of their commits a recovery
    /// can't go on.
    pub fn since_base(&self) -> Result<Vec<Version>> {
        self.ask(|c| {
            let mut statement = c.prepare_cached("SELECT id, row FROM versions ORDER BY id DESC")?;
            let mut rows = statement.query([])?;
            let mut since = Vec::new();
            while let Some(found) = rows.next()? {
                let id: i64 = found.get(0)?;
                let body = row::open(Table::Versions, Key::id(id), blob(found, 1)?)?;
                let (version, _) = rows::version_of(c, id, body)?;
                since.push(version.version);
                if version.base {
                    break;
                }
            }
            since.reverse();
            Ok(since)
        })
    }

    /// What proves a version, also one that was removed.
    ///
    /// # Errors
    /// `INDEX_ROW_DAMAGED` also if the versions are not those of the last commit: this one may be as it was before.
    pub fn root(&self, v: Version) -> Result<Root> {
        let root = self.ask(|c| match rows::version(c, v)? {
            Some((version, _)) => Ok(version.root),
            None => Err(Error::VersionGone { version: v }.into()),
        })?;
        self.ask(|c| self.versions_known(c).map(|_| root))
    }

    /// The versions are those of the last commit. Asked again and again it is looked at once a second.
    fn check_versions(&self, c: &Connection) -> Found<State> {
        let state = rows::state(c)?;
        let known = (state.newest, state.versions);
        let mut checked = lock(&self.versions_checked);
        if !checked.is_some_and(|(before, at)| before == known && at.elapsed() < CHECKED_FOR) {
            rows::check_versions(c, &state)?;
            *checked = Some((known, Instant::now()));
        }
        Ok(state)
    }

    /// As `check_versions`, for who asks about one version: where a row of another one can't be read it can't be told
    /// whether all are there, and that costs only the other one.
    fn versions_known(&self, c: &Connection) -> Found<State> {
        match self.check_versions(c) {
            Err(Fail::Row(what)) if what != rows::OTHER_VERSIONS => rows::state(c),
            other => other,
        }
    }

    /// The version, also one that was removed, and whether it was.
    pub fn version_ever(&self, v: Version) -> Result<Option<(VersionRow, bool)>> {
        self.ask(|c| rows::version(c, v))
    }

    /// The version, unless it never was or was removed.
    pub fn version(&self, v: Version) -> Result<Option<VersionRow>> {
        self.look_first()?;
        self.ask(|c| {
            self.versions_known(c)?;
            Ok(rows::version(c, v)?.filter(|(_, removed)| !removed).map(|(version, _)| version))
        })
    }

    /// The version whose folder in the mount has this name (`YYYY-MM-DD-HHMM-rN`).
    pub fn version_by_name(&self, name: &str) -> Result<Option<VersionRow>> {
        let Some(v) = name.rsplit_once('-').and_then(|(_, number)| number.parse().ok()) else {
            return Ok(None);
        };
        Ok(self.version(v)?.filter(|version| version.info.name == name))
    }

    /// What `name` in `dir` stands for in `v`.
    ///
    /// # Errors
    /// `DIRECTORY_LOST` if the directory's record is damaged and nothing else tells.
    pub fn lookup(&self, v: Version, dir: Dirno, name: &[u8]) -> Result<Option<Entry>> {
        self.ask(|c| {
            let found = rows::entry(c, dir, name, v)?.filter(|(_, entry)| entry.covers(v));
            if found.as_ref().is_none_or(|(since, _)| *since < v) {
                let lost = rows::lost_since(c, dir, v)?;
                if lost.is_some_and(|from| found.as_ref().is_none_or(|(since, _)| *since < from)) {
                    return Err(Error::DirectoryLost { dirno: dir, version: v }.into());
                }
            }
            Ok(found.map(|(since, row)| entry_of(name, since, row)))
        })
    }

    /// The directory as `v` shows it.
    pub fn dir(&self, v: Version, dir: Dirno) -> Result<DirRow> {
        self.ask(|c| rows::dir_row(c, v, dir))
    }

    pub fn node(&self, logid: Logid) -> Result<Node> {
        self.ask(|c| rows::node(c, logid))
    }

    /// The nodes of a stretch of numbers, of those that a file has: for those who guess.
    pub fn nodes(&self, logids: Range<u64>) -> Result<Vec<Node>> {
        let node = |c: &_, number| rows::node_if_any(c, Logid(number)).transpose();
        self.ask(|c| logids.clone().filter_map(|number| node(c, number)).collect())
    }

    /// The node that an entry stands for.
    ///
    /// # Errors
    /// `TREE_MISMATCH` if it is another than the one that was backed up under this name.
    pub fn node_of(&self, v: Version, dir: Dirno, entry: &Entry) -> Result<Node> {
        self.ask(|c| listing::node_of(c, v, dir, entry))
    }

    /// Attributes of a node, and its bytes in data segments.
    pub fn attr(&self, logid: Logid) -> Result<(Attr, u64)> {
        self.ask(|c| rows::attr(c, logid))
    }

    /// The stretch of a long file's segments that covers byte `offset`.
    pub fn extents_at(&self, logid: Logid, offset: u64) -> Result<ExtentChunk> {
        self.ask(|c| rows::extents(c, logid, offset))
    }

    /// The same where it is known, else the next one that is.
    pub fn known_extents(&self, logid: Logid, offset: u64) -> Result<Option<ExtentChunk>> {
        self.ask(|c| match rows::extents(c, logid, offset) {
            Ok(chunk) => Ok(Some(chunk)),
            Err(Fail::Known(Error::ExtentsLost { .. })) => rows::extents_from(c, logid, offset),
            Err(fail) => Err(fail),
        })
    }

    /// A committed arc.
    ///
    /// # Errors
    /// `ARC_DROPPED`.
    pub fn arc(&self, serial: ArcSerial) -> Result<ArcRow> {
        self.ask(|c| match rows::arc(c, serial)? {
            Some(ArcValue { entry, run, dropped: false }) => Ok(ArcRow { entry, run }),
            Some(ArcValue { entry, .. }) => Err(Error::ArcDropped { arc: entry.name }.into()),
            None => Err(Fail::Row("the arc has no row")),
        })
    }

    /// All committed arcs that were not dropped, by serial.
    pub fn arcs(&self) -> Result<Vec<ArcRow>> {
        let there = self.all_arcs()?.into_iter().filter(|value| !value.dropped);
        Ok(there.map(|value| ArcRow { entry: value.entry, run: value.run }).collect())
    }

    /// Of the arcs, those of file data.
    pub fn data_arcs(&self) -> Result<impl Iterator<Item = ArcEntry>> {
        Ok(self.arcs()?.into_iter().map(|row| row.entry).filter(|entry| entry.role == ArcRole::Data))
    }

    /// The neighbours of a frame and itself.
    ///
    /// # Errors
    /// `INDEX_ROW_DAMAGED` if the arc has no such frame, or its frame table could not be read when it was applied;
    /// `ARC_DROPPED`.
    pub fn frame_chunk(&self, serial: ArcSerial, frame: FrameNo) -> Result<FrameChunk> {
        self.ask(|c| match rows::frames(c, FramePlace::new(serial, frame))? {
            Some(chunk) if chunk.locate(frame).is_some() => Ok(chunk),
            _ => match rows::arc(c, serial)? {
                Some(ArcValue { entry, dropped: true, .. }) => Err(Error::ArcDropped { arc: entry.name }.into()),
                _ => Err(Fail::Row("the frame is not known")),
            },
        })
    }

    /// How many blocks some frames of an arc hold.
    pub fn blocks_in(&self, serial: ArcSerial, frames: Range<u32>) -> Result<u64> {
        let (mut next, mut count) = (frames.start, 0);
        while next < frames.end {
            let chunk = self.frame_chunk(serial, FrameNo(next))?;
            let here = chunk.frames.iter().zip(chunk.first.0..).filter(|(_, no)| (next..frames.end).contains(no));
            count += here.map(|(info, _)| info.blocks.len() as u64).sum::<u64>();
            next = chunk.end();
        }
        Ok(count)
    }

    /// Where a block is read from.
    pub fn location(&self, block: BlockId) -> Result<BlockId> {
        self.ask(|c| rows::location(c, block))
    }

    /// Relocated blocks of a range of names, with the place that each is read from.
    pub fn relocations(&self, names: RangeInclusive<BlockId>) -> Result<Vec<(BlockId, BlockId)>> {
        self.some_relocations(names, i64::MAX)
    }

    /// The first relocated blocks from a name on.
    pub fn relocations_from(&self, first: BlockId, limit: usize) -> Result<Vec<(BlockId, BlockId)>> {
        self.some_relocations(first..=BlockId::MAX, limit as i64)
    }

    fn some_relocations(&self, names: RangeInclusive<BlockId>, limit: i64) -> Result<Vec<(BlockId, BlockId)>> {
        self.ask(|c| {
            let sql = "SELECT id, row FROM relocations WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3";
            let mut statement = c.prepare_cached(sql)?;
            let mut rows = statement.query([names.start().0 as i64, names.end().0 as i64, limit])?;
            let mut moved = Vec::new();
            while let Some(found) = rows.next()? {
                let id: i64 = found.get(0)?;
                let to = rows::decode_relocation(row::open(Table::Relocations, Key::id(id), blob(found, 1)?)?)?;
                moved.push((BlockId(id as u64), to));
            }
            Ok(moved)
        })
    }

    /// True if any block is read from another place than where it was stored first.
    pub fn has_moved_blocks(&self) -> Result<bool> {
        self.ask(|c| Ok(c.prepare_cached("SELECT 1 FROM relocations LIMIT 1")?.exists([])?))
    }

    /// A committed block with this hash.
    pub fn find_block(&self, hash: &BlockHash) -> Result<Option<BlockId>> {
        self.ask(|c| rows::find_block(c, hash))
    }

    /// True if `v` changed something in or below the directory.
    pub fn changed_in(&self, v: Version, dir: Dirno) -> Result<bool> {
        self.ask(|c| rows::changed(c, v, dir))
    }

    pub fn state(&self) -> Result<State> {
        self.ask(rows::state)
    }

    /// The version since which a directory is as it is in `v`, whatever became of what is below it.
    pub fn dir_since(&self, v: Version, dir: Dirno) -> Result<Version> {
        self.ask(|c| {
            let DirRow { state, mut since, .. } = rows::dir_row(c, v, dir)?;
            while let Some(before) = since.0.checked_sub(1)
                && let Some((older, value)) = rows::dir(c, dir, Version(before))?
                && let Some(was) = value.state
                && (&was.attr, &was.xattrs, was.children) == (&state.attr, &state.xattrs, state.children)
            {
                since = older;
            }
            Ok(since)
        })
    }

    /// Absolute path of a directory in `v`; `/` for the root.
    pub fn path_of_dir(&self, v: Version, dir: Dirno) -> Result<Vec<u8>> {
        self.ask(|c| path_of_dir(c, v, dir))
    }

    /// One path of a node and a version that shows it there, for messages.
    ///
    /// # Errors
    /// `INDEX_ROW_DAMAGED` if no version that is left shows it.
    pub fn path_of_node(&self, logid: Logid) -> Result<(Version, Vec<u8>)> {
        self.ask(|c| {
            let (dir, _) = rows::node_bytes(c, logid)?.ok_or(Fail::Row("the file has no row"))?;
            let mut statement = c.prepare_cached("SELECT name, v_from, row FROM entries WHERE parent=?1")?;
            let mut rows = statement.query([dir.0 as i64])?;
            while let Some(found) = rows.next()? {
                let name = blob(found, 0)?;
                let since = Version(found.get(1)?);
                let entry = EntryRow::decode(Key(dir.0 as i64, i64::from(since.0), name), blob(found, 2)?)?;
                if entry.child != Child::Node(logid) {
                    continue;
                }
                if let Some(v) = shown_in(c, since, &entry)? {
                    let mut path = path_of_dir(c, v, dir)?;
                    if path.last() != Some(&b'/') {
                        path.push(b'/');
                    }
                    path.extend_from_slice(name);
                    return Ok((v, path));
                }
            }
            Err(Fail::Row("no version shows the file where it was first linked"))
        })
    }
}

pub(super) fn entry_of(name: &[u8], since: Version, row: EntryRow) -> Entry {
    Entry { name: name.to_vec(), kind: row.kind, child: row.child, since, digest: row.digest }
}

/// The first version with the entry that was not removed.
fn shown_in(c: &Connection, since: Version, entry: &EntryRow) -> Found<Option<Version>> {
    let mut statement = c.prepare_cached("SELECT id, row FROM versions WHERE id>=?1 ORDER BY id")?;
    let mut rows = statement.query([since.0])?;
    while let Some(found) = rows.next()? {
        let id: i64 = found.get(0)?;
        let body = row::open(Table::Versions, Key::id(id), blob(found, 1)?)?;
        let (version, removed) = rows::version_of(c, id, body)?;
        if !entry.covers(version.version) {
            break;
        }
        if !removed {
            return Ok(Some(version.version));
        }
    }
    Ok(None)
}

pub(super) fn path_of_dir(c: &Connection, v: Version, dir: Dirno) -> Found<Vec<u8>> {
    let mut names = Vec::new();
    let mut at = dir;
    let mut ascent = Ascent::from(dir);
    while at != Dirno::ROOT {
        let (_, value) = rows::dir(c, at, v)?.ok_or(Fail::Row("the directory has no row"))?;
        names.push(value.name);
        at = value.parent;
        if !ascent.step(at) {
            return Err(Fail::Row("the directory is its own ancestor"));
        }
    }
    let mut path = Vec::new();
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    if path.is_empty() {
        path.push(b'/');
    }
    Ok(path)
}
