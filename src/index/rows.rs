//! Reads single rows on one connection; readers and `apply` share it.
//!
//! Invariants: each row is opened by its seal before anything in it is believed; statements come from the
//! connection's cache, none is prepared twice.

use std::borrow::Cow;

use rusqlite::{Connection, params};

use super::fail::{Fail, Found};
use super::row::{self, ArcValue, BadRow, EntryRow, Key, Main, Table};
use super::schema::{dir_key, version_of_dir_key};
use super::{DirRow, FrameChunk, Root, State, VersionRow};
use crate::arc::{ARC_HEADER_LEN, FrameInfo, decode_frame_table};
use crate::catalog::codec::{self, BadRecord, Decoder, Encoder};
use crate::catalog::{Attr, DirState, ExtentChunk, Node};
use crate::error::Error;
use crate::ids::{ArcSerial, BlockHash, BlockId, Dirno, FrameNo, FramePlace, Logid, TreeDigest, Version};

/// The value of a rowid table's row, unsealed.
pub fn value<T>(
    c: &Connection,
    table: Table,
    id: i64,
    read: impl FnOnce(&[u8]) -> Result<T, Fail>,
) -> Found<Option<T>> {
    let sql = match table {
        Table::Meta => "SELECT row FROM meta WHERE id=?1",
        Table::Versions => "SELECT row FROM versions WHERE id=?1",
        Table::Arcs => "SELECT row FROM arcs WHERE id=?1",
        Table::Frames => "SELECT row FROM frames WHERE id=?1",
        Table::Relocations => "SELECT row FROM relocations WHERE id=?1",
        Table::Nodes => "SELECT row FROM nodes WHERE id=?1",
        Table::Dirs => "SELECT row FROM dirs WHERE id=?1",
        Table::Lost => "SELECT row FROM lost WHERE id=?1",
        Table::Commits => "SELECT row FROM commits WHERE id=?1",
        Table::Entries | Table::Extents | Table::Parts | Table::Removed => return Err(Fail::Row("not a rowid table")),
    };
    let mut statement = c.prepare_cached(sql)?;
    statement.raw_bind_parameter(1, id)?;
    let mut rows = statement.raw_query();
    match rows.next()? {
        None => Ok(None),
        Some(found) => read(row::open(table, Key::id(id), blob(found, 0)?)?).map(Some),
    }
}

pub fn blob<'a>(found: &'a rusqlite::Row<'_>, column: usize) -> Result<&'a [u8], Fail> {
    found.get_ref(column)?.as_blob().map_err(|_| Fail::Row("column is no blob"))
}

/// Which long value a row in `parts` continues.
#[derive(Clone, Copy)]
#[repr(i64)]
pub enum PartOf {
    Version = 1,
    Node = 2,
    Dir = 3,
}

/// Puts a long value together again.
pub fn whole<'a>(c: &Connection, of: PartOf, id: i64, body: &'a [u8]) -> Found<Cow<'a, [u8]>> {
    let main = Main::read(body)?;
    let mut bytes = Cow::Borrowed(main.first);
    if main.parts > 0 {
        let bytes = bytes.to_mut();
        let mut statement = c.prepare_cached("SELECT no, row FROM parts WHERE kind=?1 AND id=?2 ORDER BY no")?;
        let mut rows = statement.query(params![of as i64, id])?;
        let mut seen = 0u64;
        while let Some(found) = rows.next()? {
            let no: i64 = found.get(0)?;
            seen += 1;
            if no != seen as i64 {
                return Err(Fail::Row("a part of the value is missing"));
            }
            bytes.extend_from_slice(row::open(Table::Parts, part_key(of, id, no).key(), blob(found, 1)?)?);
        }
        if seen != main.parts {
            return Err(Fail::Row("a part of the value is missing"));
        }
        main.check(bytes)?;
    }
    Ok(bytes)
}

/// Key of a row in `parts`, with the bytes that its seal needs.
pub struct PartKey {
    id: i64,
    no: i64,
    of: [u8; 1],
}

pub fn part_key(of: PartOf, id: i64, no: i64) -> PartKey {
    PartKey { id, no, of: [of as u8] }
}

impl PartKey {
    pub fn key(&self) -> Key<'_> {
        Key(self.id, self.no, &self.of)
    }
}

const STATE_ID: i64 = 1;
const COUNTER: BadRecord = BadRecord("counter out of range");
/// A counter of runs that has none left.
const LAST_RUN: u64 = Version::MAX.0 as u64 + 1;

pub fn state(c: &Connection) -> Found<State> {
    value(c, Table::Meta, STATE_ID, |body| Ok(decode_state(body)?))?.ok_or(Fail::Row("the state row is missing"))
}

pub(super) fn decode_state(body: &[u8]) -> Result<State, BadRow> {
    let mut d = Decoder::new(body);
    let state = State {
        next_serial: d.within(0, ArcSerial::MAX.0 + 1, COUNTER)?,
        next_logid: d.within(Logid::FIRST.0, Logid::MAX.0 + 1, COUNTER)?,
        next_dirno: d.within(1, Dirno::MAX.0 + 1, COUNTER)?,
        next_run: Version(d.within(0, LAST_RUN, COUNTER)? as u32),
        settled_below: Version(d.within(0, LAST_RUN, COUNTER)? as u32),
        last_commit: if d.flag()? { Some((d.version()?, d.array()?)) } else { None },
        catalog_bytes_since_base: d.uint()?,
        base_catalog_bytes: d.uint()?,
        hashes: d.uint()?,
        newest: if d.flag()? { Some(d.version()?) } else { None },
        versions: d.array()?,
    };
    d.end()?;
    Ok(state)
}

pub(super) fn encode_state(state: &State) -> Vec<u8> {
    let mut e = Encoder::default();
    e.uint(state.next_serial);
    e.uint(state.next_logid);
    e.uint(state.next_dirno);
    e.uint(u64::from(state.next_run.0));
    e.uint(u64::from(state.settled_below.0));
    e.u8(u8::from(state.last_commit.is_some()));
    if let Some((run, digest)) = &state.last_commit {
        e.uint(u64::from(run.0));
        e.raw(digest);
    }
    e.uint(state.catalog_bytes_since_base);
    e.uint(state.base_catalog_bytes);
    e.uint(state.hashes);
    e.u8(u8::from(state.newest.is_some()));
    if let Some(newest) = state.newest {
        e.uint(u64::from(newest.0));
    }
    e.raw(&state.versions);
    e.0
}

pub fn put_state(c: &Connection, state: &State) -> Found<()> {
    let sealed = row::seal(Table::Meta, Key::id(STATE_ID), encode_state(state));
    c.prepare_cached("INSERT OR REPLACE INTO meta(id, row) VALUES(?1, ?2)")?.execute(params![STATE_ID, sealed])?;
    Ok(())
}

/// A version and whether it was removed.
pub fn version_of(c: &Connection, id: i64, body: &[u8]) -> Found<(VersionRow, bool)> {
    decode_version(id, &whole(c, PartOf::Version, id, body)?)
}

pub(super) fn decode_version(id: i64, whole: &[u8]) -> Found<(VersionRow, bool)> {
    let (head, rest) = version_head(id, whole)?;
    let VersionHead { version, removed, base, root } = head;
    Ok((VersionRow { version, info: codec::decode_version_info(rest)?, base, root }, removed))
}

/// What a version's row begins with.
struct VersionHead {
    version: Version,
    removed: bool,
    base: bool,
    root: Root,
}

fn version_head(id: i64, bytes: &[u8]) -> Found<(VersionHead, &[u8])> {
    let version = u32::try_from(id).ok().map(Version).filter(|v| *v <= Version::MAX);
    let version = version.ok_or(Fail::Row("impossible version"))?;
    let mut d = Decoder::new(bytes);
    let (removed, base) = (d.flag()?, d.flag()?);
    let root = Root { digest: TreeDigest(d.array()?), set_by: d.version()? };
    Ok((VersionHead { version, removed, base, root }, d.rest()))
}

pub fn encode_version(row: &VersionRow, removed: bool) -> Vec<u8> {
    let mut e = Encoder::default();
    e.u8(u8::from(removed));
    e.u8(u8::from(row.base));
    e.raw(&row.root.digest.0);
    e.uint(u64::from(row.root.set_by.0));
    e.raw(&codec::encode_version_info(&row.info));
    e.0
}

/// What the state row says of all versions.
pub type VersionsKnown = (Option<Version>, [u8; 32]);

/// The newest version that is shown, and a digest over which versions there are, which of them were removed, and their
/// roots.
pub fn versions_digest(c: &Connection) -> Found<VersionsKnown> {
    let (mut newest, mut all) = (None, Encoder::default());
    let mut statement = c.prepare_cached("SELECT id, row FROM versions ORDER BY id")?;
    let mut rows = statement.query([])?;
    while let Some(found) = rows.next()? {
        let id: i64 = found.get(0)?;
        let first = Main::read(row::open(Table::Versions, Key::id(id), blob(found, 1)?)?)?.first;
        let (VersionHead { version, removed, root, .. }, _) = version_head(id, first)?;
        all.uint(u64::from(version.0));
        all.u8(u8::from(removed));
        all.raw(&root.digest.0);
        all.uint(u64::from(root.set_by.0));
        if !removed {
            newest = Some(version);
        }
    }
    Ok((newest, crate::crypto::sha256(&all.0)))
}

pub const OTHER_VERSIONS: &str = "its versions are not those of its last commit";

/// # Errors
/// A version is missing, or is another than the last commit left.
pub fn check_versions(c: &Connection, state: &State) -> Found<()> {
    if versions_digest(c)? != (state.newest, state.versions) {
        return Err(Fail::Row(OTHER_VERSIONS));
    }
    Ok(())
}

pub fn version(c: &Connection, v: Version) -> Found<Option<(VersionRow, bool)>> {
    let id = i64::from(v.0);
    value(c, Table::Versions, id, |body| version_of(c, id, body))
}

/// All rows of a name, oldest first.
pub fn entry_rows(c: &Connection, dir: Dirno, name: &[u8]) -> Found<Vec<(Version, EntryRow)>> {
    let mut statement =
        c.prepare_cached("SELECT v_from, row FROM entries WHERE parent=?1 AND name=?2 ORDER BY v_from")?;
    let mut found = statement.query(params![dir.0 as i64, name])?;
    let mut rows = Vec::new();
    while let Some(found) = found.next()? {
        let from = Version(found.get(0)?);
        rows.push((from, EntryRow::decode(Key(dir.0 as i64, i64::from(from.0), name), blob(found, 1)?)?));
    }
    Ok(rows)
}

/// The newest row of a name that a version up to `v` brought.
pub fn entry(c: &Connection, dir: Dirno, name: &[u8], v: Version) -> Found<Option<(Version, EntryRow)>> {
    let mut statement = c.prepare_cached(
        "SELECT v_from, row FROM entries WHERE parent=?1 AND name=?2 AND v_from<=?3 ORDER BY v_from DESC LIMIT 1",
    )?;
    statement.raw_bind_parameter(1, dir.0 as i64)?;
    statement.raw_bind_parameter(2, name)?;
    statement.raw_bind_parameter(3, v.0)?;
    let mut rows = statement.raw_query();
    match rows.next()? {
        None => Ok(None),
        Some(found) => {
            let v_from = Version(found.get(0)?);
            let entry = EntryRow::decode(Key(dir.0 as i64, i64::from(v_from.0), name), blob(found, 1)?)?;
            Ok(Some((v_from, entry)))
        }
    }
}

/// What is known of a directory in a state: `state` is None when its own record was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirValue {
    pub parent: Dirno,
    pub name: Vec<u8>,
    pub gone: bool,
    pub state: Option<DirState>,
}

impl DirValue {
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        e.uint(self.parent.0);
        e.bytes(&self.name);
        e.u8(u8::from(self.gone));
        if let Some(state) = &self.state {
            e.raw(&codec::encode_dir_state(state));
        }
        e.0
    }

    pub(super) fn decode(dirno: Dirno, bytes: &[u8]) -> Result<DirValue, BadRow> {
        let mut d = Decoder::new(bytes);
        let ((parent, name), gone) = (codec::parent_and_name(&mut d, dirno)?, d.flag()?);
        let rest = d.rest();
        let state = if rest.is_empty() { None } else { Some(codec::decode_dir_state(rest)?) };
        Ok(DirValue { parent, name, gone, state })
    }
}

/// The newest state of a directory that a version up to `v` brought.
pub fn dir(c: &Connection, dirno: Dirno, v: Version) -> Found<Option<(Version, DirValue)>> {
    let mut statement =
        c.prepare_cached("SELECT id, row FROM dirs WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT 1")?;
    statement.raw_bind_parameter(1, dir_key(dirno, Version(0)))?;
    statement.raw_bind_parameter(2, dir_key(dirno, v))?;
    let mut rows = statement.raw_query();
    match rows.next()? {
        None => Ok(None),
        Some(found) => {
            let id: i64 = found.get(0)?;
            let body = row::open(Table::Dirs, Key::id(id), blob(found, 1)?)?;
            let value = DirValue::decode(dirno, &whole(c, PartOf::Dir, id, body)?)?;
            Ok(Some((version_of_dir_key(id), value)))
        }
    }
}

/// Since when (and until when) the listing of a directory is lost, by the newest row up to `v`.
pub fn lost_row(c: &Connection, dirno: Dirno, v: Version) -> Found<Option<(Version, Option<Version>)>> {
    let mut statement =
        c.prepare_cached("SELECT id, row FROM lost WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT 1")?;
    statement.raw_bind_parameter(1, dir_key(dirno, Version(0)))?;
    statement.raw_bind_parameter(2, dir_key(dirno, v))?;
    let mut rows = statement.raw_query();
    match rows.next()? {
        None => Ok(None),
        Some(found) => {
            let id: i64 = found.get(0)?;
            let v_to = row::decode_lost(row::open(Table::Lost, Key::id(id), blob(found, 1)?)?)?;
            Ok(Some((version_of_dir_key(id), v_to)))
        }
    }
}

/// Since when the directory is lost, if it is in `v`.
pub fn lost_since(c: &Connection, dirno: Dirno, v: Version) -> Found<Option<Version>> {
    Ok(lost_row(c, dirno, v)?.filter(|(_, to)| to.is_none_or(|to| v < to)).map(|(from, _)| from))
}

/// The directory in `v` with its state.
pub fn dir_row(c: &Connection, v: Version, dirno: Dirno) -> Found<DirRow> {
    let lost = || Fail::Known(Error::DirectoryLost { dirno, version: v });
    let lost_from = lost_since(c, dirno, v)?;
    match dir(c, dirno, v)? {
        Some((since, DirValue { parent, name, gone: false, state: Some(state) })) => {
            if lost_from.is_some_and(|from| since < from) {
                return Err(lost());
            }
            Ok(DirRow { dirno, parent, name, state, since })
        }
        Some((_, DirValue { gone: false, .. })) => Err(lost()),
        _ if lost_from.is_some() => Err(lost()),
        _ => Err(Fail::Row("the directory has no row")),
    }
}

/// A node's attributes, from the first part of its row.
pub fn attr(c: &Connection, logid: Logid) -> Found<(Attr, u64)> {
    value(c, Table::Nodes, logid.0 as i64, |body| {
        let mut d = Decoder::new(Main::read(body)?.first);
        d.dirno()?;
        Ok(codec::decode_node_attr(d.rest())?)
    })?
    .ok_or(Fail::Row("the file has no row"))
}

/// A node's encoded bytes and the directory of its first link.
pub fn node_bytes(c: &Connection, logid: Logid) -> Found<Option<(Dirno, Vec<u8>)>> {
    let id = logid.0 as i64;
    value(c, Table::Nodes, id, |body| {
        let whole = whole(c, PartOf::Node, id, body)?;
        let mut d = Decoder::new(&whole);
        Ok((d.dirno()?, d.rest().to_vec()))
    })
}

/// The whole value of a node's row: directory of its first link, and the node.
pub fn decode_node_row(whole: &[u8]) -> Result<(Dirno, Node), BadRow> {
    let mut d = Decoder::new(whole);
    Ok((d.dirno()?, codec::decode_node(d.rest())?))
}

pub fn node(c: &Connection, logid: Logid) -> Found<Node> {
    node_if_any(c, logid)?.ok_or(Fail::Row("the file has no row"))
}

pub fn node_if_any(c: &Connection, logid: Logid) -> Found<Option<Node>> {
    let Some((_, bytes)) = node_bytes(c, logid)? else { return Ok(None) };
    let node = codec::decode_node(&bytes)?;
    if node.logid == logid { Ok(Some(node)) } else { Err(Fail::Row("the row is another file's")) }
}

/// The stretch of a long file that covers `offset`.
pub fn extents(c: &Connection, logid: Logid, offset: u64) -> Found<ExtentChunk> {
    let lost = || Fail::Known(Error::ExtentsLost { logid, offset });
    let Ok(offset) = i64::try_from(offset) else { return Err(lost()) };
    let mut statement =
        c.prepare_cached("SELECT start, row FROM extents WHERE logid=?1 AND start<=?2 ORDER BY start DESC LIMIT 1")?;
    statement.raw_bind_parameter(1, logid.0 as i64)?;
    statement.raw_bind_parameter(2, offset)?;
    let mut rows = statement.raw_query();
    let Some(found) = rows.next()? else { return Err(lost()) };
    let chunk = extent_chunk(logid, found)?;
    if chunk.end() <= offset as u64 {
        return Err(lost());
    }
    Ok(chunk)
}

/// The first stretch that begins at `offset` or after it.
pub fn extents_from(c: &Connection, logid: Logid, offset: u64) -> Found<Option<ExtentChunk>> {
    let Ok(offset) = i64::try_from(offset) else { return Ok(None) };
    let mut statement =
        c.prepare_cached("SELECT start, row FROM extents WHERE logid=?1 AND start>=?2 ORDER BY start LIMIT 1")?;
    let mut rows = statement.query([logid.0 as i64, offset])?;
    rows.next()?.map(|found| extent_chunk(logid, found)).transpose()
}

/// Of a row with `start` and `row`.
fn extent_chunk(logid: Logid, found: &rusqlite::Row<'_>) -> Found<ExtentChunk> {
    let start: i64 = found.get(0)?;
    let body = row::open(Table::Extents, Key(logid.0 as i64, start, &[]), blob(found, 1)?)?;
    let segments = codec::decode_segments(start as u64, body)?;
    Ok(ExtentChunk { logid, start: start as u64, segments })
}

pub fn arc(c: &Connection, serial: ArcSerial) -> Found<Option<ArcValue>> {
    let id = serial.0 as i64;
    let mut statement = c.prepare_cached("SELECT row FROM arcs WHERE id=?1")?;
    let mut rows = statement.query([id])?;
    match rows.next()? {
        None => Ok(None),
        Some(found) => Ok(Some(ArcValue::decode(id, blob(found, 0)?)?)),
    }
}

/// The row that begins at a frame, or the last one before it of the same arc: if a row has the frame, this one does.
pub fn frames(c: &Connection, place: FramePlace) -> Found<Option<FrameChunk>> {
    let first = FramePlace::new(place.arc(), FrameNo(0));
    chunk(c, "SELECT id, row FROM frames WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT 1", first, place)
}

/// The first row of an arc that begins at a frame or behind it.
pub fn next_frames(c: &Connection, place: FramePlace) -> Found<Option<FrameChunk>> {
    let last = FramePlace::new(place.arc(), FrameNo::MAX);
    chunk(c, "SELECT id, row FROM frames WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT 1", place, last)
}

fn chunk(c: &Connection, sql: &str, first: FramePlace, last: FramePlace) -> Found<Option<FrameChunk>> {
    let mut statement = c.prepare_cached(sql)?;
    statement.raw_bind_parameter(1, first.0 as i64)?;
    statement.raw_bind_parameter(2, last.0 as i64)?;
    let mut rows = statement.raw_query();
    match rows.next()? {
        None => Ok(None),
        Some(found) => {
            let id: i64 = found.get(0)?;
            let body = row::open(Table::Frames, Key::id(id), blob(found, 1)?)?;
            Ok(Some(decode_frames(FramePlace(id as u64).frame(), body)?))
        }
    }
}

/// The rows of an arc's frame table, each with the number of its first frame: as many whole frames as fit.
pub fn encode_frames(table: &[FrameInfo]) -> impl Iterator<Item = (FrameNo, Vec<u8>)> {
    let mut rest = table.iter().zip(0..).peekable();
    let mut offset = ARC_HEADER_LEN as u64;
    std::iter::from_fn(move || {
        let first = FrameNo(rest.peek()?.1);
        let mut body = offset.to_le_bytes().to_vec();
        while let Some((info, _)) = rest.peek() {
            let entry = info.encode();
            if body.len() > 8 && body.len() + entry.len() > row::MAX_ROWID_BODY {
                break;
            }
            body.extend_from_slice(&entry);
            offset += info.frame_len();
            rest.next();
        }
        Some((first, body))
    })
}

pub fn decode_frames(first: FrameNo, body: &[u8]) -> Result<FrameChunk, BadRow> {
    let (offset, rest) = body.split_first_chunk::<8>().ok_or(BadRow("frame row is too short"))?;
    let offset = u64::from_le_bytes(*offset);
    let frames = decode_frame_table(rest).map_err(|_| BadRow("frame row is no frame table"))?;
    let places = ARC_HEADER_LEN as u64..MAX_ARC_BYTES;
    let last = first.0 as usize + frames.len();
    if frames.is_empty() || last > FrameNo::MAX.0 as usize || !places.contains(&offset) {
        return Err(BadRow("frame row out of range"));
    }
    Ok(FrameChunk { first, offset, frames })
}

/// Frames of an arc that has as many as can be, each as long as it can be, end before: offsets can be added.
const MAX_ARC_BYTES: u64 = 1 << 62;

/// Where a block is read from: its name, unless it was relocated.
pub fn location(c: &Connection, block: BlockId) -> Found<BlockId> {
    let to = value(c, Table::Relocations, block.0 as i64, |body| Ok(decode_relocation(body)?))?;
    Ok(to.unwrap_or(block))
}

pub fn decode_relocation(body: &[u8]) -> Result<BlockId, BadRow> {
    let mut d = Decoder::new(body);
    let to = d.block()?;
    d.end()?;
    Ok(to)
}

/// Row of a block hash in `hashes`: its first 63 bits.
pub fn hash_key(hash: &BlockHash) -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = hash.0;
    (u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1) as i64
}

pub fn hash_row(c: &Connection, key: i64) -> Found<Option<BlockId>> {
    let mut statement = c.prepare_cached("SELECT block FROM hashes WHERE id=?1")?;
    statement.raw_bind_parameter(1, key)?;
    let mut rows = statement.raw_query();
    match rows.next()? {
        None => Ok(None),
        // `hashes` has no seals: a block that is not there is told where it is looked up.
        Some(found) => Ok(u64::try_from(found.get::<_, i64>(0)?).ok().map(BlockId)),
    }
}

/// The block that has this hash, by all 160 bits of it.
pub fn find_block(c: &Connection, hash: &BlockHash) -> Found<Option<BlockId>> {
    let Some(block) = hash_row(c, hash_key(hash))? else { return Ok(None) };
    let place = location(c, block)?;
    let Some(chunk) = frames(c, place.place())? else { return Ok(None) };
    let same = chunk.block(place).is_some_and(|info| info.hash == *hash);
    Ok(same.then_some(block))
}

/// A directory has a state of its own exactly in the versions that changed something in or below it.
pub fn changed(c: &Connection, v: Version, dirno: Dirno) -> Found<bool> {
    let mut statement =
        c.prepare_cached("SELECT EXISTS(SELECT 1 FROM dirs WHERE id=?1) OR EXISTS(SELECT 1 FROM lost WHERE id=?1)")?;
    Ok(statement.query_row([dir_key(dirno, v)], |found| found.get(0))?)
}
