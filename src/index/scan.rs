//! Whole tables in key order, for the selftest: one state of the index, read page by page.
//!
//! Invariants: all cursors of a snapshot see one transaction; memory holds a few pages of rows; a part of a table that
//! can't be read is told with its range of keys, and the scan goes on behind it; after an error the connection is
//! replaced, and `moved` says if the index has been committed to meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use rusqlite::{Connection, params};

use super::fail::{Fail, Found};
use super::row::{self, ArcValue, EntryRow, Key, Table};
use super::rows::{self, DirValue, PartOf, blob};
use super::schema::{dir_key, dirno_of_dir_key, version_of_dir_key};
use super::view::View;
use super::{FrameChunk, Index, State, VersionRow};
use crate::catalog::codec;
use crate::catalog::{Child, Node, Segment};
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, BlockId, Dirno, FramePlace, Logid, NodeDigest, Version};

/// Rows fetched by one query.
const PAGE_ROWS: i64 = 1024;
/// What was read in order is not read again.
const SCAN_CACHE_KIB: u32 = 4 * 1024;
/// States of one directory and rows of one name that are looked at.
const MAX_STATES: usize = 1 << 20;

/// A table that can be read from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScanTable {
    Commits,
    Versions,
    Arcs,
    Frames,
    Hashes,
    Relocations,
    Entries,
    Nodes,
    Dirs,
    Extents,
    Lost,
    Removed,
    Parts,
}

impl ScanTable {
    /// All but `meta`, which has one row.
    pub const ALL: [ScanTable; 13] = [
        ScanTable::Commits,
        ScanTable::Versions,
        ScanTable::Arcs,
        ScanTable::Frames,
        ScanTable::Hashes,
        ScanTable::Relocations,
        ScanTable::Nodes,
        ScanTable::Dirs,
        ScanTable::Entries,
        ScanTable::Extents,
        ScanTable::Lost,
        ScanTable::Removed,
        ScanTable::Parts,
    ];

    pub fn name(self) -> &'static str {
        match self {
            ScanTable::Commits => "commits",
            ScanTable::Versions => "versions",
            ScanTable::Arcs => "arcs",
            ScanTable::Frames => "frames",
            ScanTable::Hashes => "hashes",
            ScanTable::Relocations => "relocations",
            ScanTable::Entries => "entries",
            ScanTable::Nodes => "nodes",
            ScanTable::Dirs => "dirs",
            ScanTable::Extents => "extents",
            ScanTable::Lost => "lost",
            ScanTable::Removed => "removed",
            ScanTable::Parts => "parts",
        }
    }

    fn sql(self) -> &'static str {
        match self {
            ScanTable::Commits => "SELECT row, id FROM commits WHERE id>?1 ORDER BY id LIMIT ?5",
            ScanTable::Versions => "SELECT row, id FROM versions WHERE id>?1 ORDER BY id LIMIT ?5",
            ScanTable::Arcs => "SELECT row, id FROM arcs WHERE id>?1 ORDER BY id LIMIT ?5",
            ScanTable::Frames => "SELECT row, id FROM frames WHERE id>?1 ORDER BY id LIMIT ?5",
            ScanTable::Hashes => "SELECT block, id FROM hashes WHERE id>?1 ORDER BY id LIMIT ?5",
            ScanTable::Relocations => "SELECT row, id FROM relocations WHERE id>?1 ORDER BY id LIMIT ?5",
            ScanTable::Nodes => "SELECT row, id FROM nodes WHERE id>?1 ORDER BY id LIMIT ?5",
            ScanTable::Dirs => "SELECT row, id FROM dirs WHERE id>?1 ORDER BY id LIMIT ?5",
            ScanTable::Lost => "SELECT row, id FROM lost WHERE id>?1 ORDER BY id LIMIT ?5",
            ScanTable::Entries => {
                "SELECT row, parent, v_from, name FROM entries WHERE (parent, name, v_from)>(?1, ?2, ?3) \
                 ORDER BY parent, name, v_from LIMIT ?5"
            }
            ScanTable::Extents => {
                "SELECT row, logid, start FROM extents WHERE (logid, start)>(?1, ?3) \
                 ORDER BY logid, start LIMIT ?5"
            }
            ScanTable::Removed => {
                "SELECT row, run, parent, name FROM removed WHERE (run, name, parent)>(?1, ?2, ?3) \
                 ORDER BY run, name, parent LIMIT ?5"
            }
            ScanTable::Parts => {
                "SELECT row, kind, id, no FROM parts WHERE (kind, id, no)>(?1, ?3, ?4) \
                 ORDER BY kind, id, no LIMIT ?5"
            }
        }
    }
}

/// Where a row is. Rowid tables use `first` only; entries: parent, name, version; extents: logid, start; parts: kind,
/// id, number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    pub first: i64,
    pub name: Vec<u8>,
    pub second: i64,
    pub third: i64,
}

impl RowKey {
    /// Before every row whose first column is `first`.
    pub fn before(first: i64) -> RowKey {
        // For rowid tables only `first` is compared, so it has to be the number before.
        RowKey { first: first.saturating_sub(1), name: Vec::new(), second: i64::MAX, third: i64::MAX }
    }

    fn start_of(table: ScanTable, first: i64) -> RowKey {
        match table {
            ScanTable::Entries | ScanTable::Extents | ScanTable::Removed | ScanTable::Parts => {
                RowKey { first, name: Vec::new(), second: -1, third: -1 }
            }
            _ => RowKey::before(first),
        }
    }

    pub fn dirno(&self) -> Dirno {
        Dirno((self.first as u64) >> 24)
    }

    pub fn version(&self) -> Version {
        version_of_dir_key(self.first)
    }
}

/// A row as it is stored, not opened yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanRow {
    pub table: ScanTable,
    pub key: RowKey,
    /// With its seal; of `hashes` the block id.
    pub value: Vec<u8>,
}

/// The next thing in a table.
#[derive(Debug)]
pub enum Scanned {
    Row(ScanRow),
    /// Rows after one key and before another (None: the end) can't be read.
    Bad {
        after: RowKey,
        before: Option<RowKey>,
        error: Error,
    },
}

/// An interval of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub parent: Dirno,
    pub name: Vec<u8>,
    pub from: Version,
    /// None: still there.
    pub to: Option<Version>,
    pub kind: crate::catalog::Kind,
    pub child: Child,
    pub digest: Option<NodeDigest>,
}

impl Span {
    pub fn covers(&self, v: Version) -> bool {
        self.from <= v && self.to.is_none_or(|to| v < to)
    }
}

/// One state of the index, held by a read transaction on a connection of its own.
pub struct Snapshot<'i> {
    index: &'i Index,
    /// With the view that it is open on: a private copy lasts as long.
    connection: RefCell<Option<(Arc<View>, Connection)>>,
    commit: Option<(Version, [u8; 32])>,
    moved: Cell<bool>,
}

impl Index {
    /// Holds the present state of the index for scans. The write-ahead log can't be emptied before it is dropped.
    pub fn snapshot(&self) -> Result<Snapshot<'_>> {
        let snapshot = Snapshot { index: self, connection: RefCell::new(None), commit: None, moved: Cell::new(false) };
        let state = snapshot.ask(rows::state)?;
        Ok(Snapshot { commit: state.last_commit, ..snapshot })
    }
}

impl<'i> Snapshot<'i> {
    pub fn index(&self) -> &'i Index {
        self.index
    }

    /// True if a connection had to be replaced and the new one sees a later commit: start again.
    pub fn moved(&self) -> bool {
        self.moved.get()
    }

    pub fn state(&self) -> Result<State> {
        self.ask(rows::state)
    }

    pub fn cursor(&self, table: ScanTable) -> Cursor<'_, 'i> {
        self.cursor_after(table, RowKey { first: i64::MIN, name: Vec::new(), second: -1, third: -1 })
    }

    pub fn cursor_after(&self, table: ScanTable, after: RowKey) -> Cursor<'_, 'i> {
        Cursor { snapshot: self, table, after, page: VecDeque::new(), ended: false }
    }

    /// Asks on the snapshot's connection, on a fresh one again if that fails.
    fn ask<T>(&self, question: impl Fn(&Connection) -> Found<T>) -> Result<T> {
        let first = self.put_to(&question);
        match first {
            Err(Fail::Sql(_) | Fail::Row(_)) => self.put_to(&question).map_err(|fail| fail.at(self.index.path())),
            other => other.map_err(|fail| fail.at(self.index.path())),
        }
    }

    fn put_to<T>(&self, question: &impl Fn(&Connection) -> Found<T>) -> Found<T> {
        let mut slot = self.connection.borrow_mut();
        if slot.is_none() {
            let fresh = self.index.connect()?;
            fresh.1.execute_batch(&format!("PRAGMA cache_size=-{SCAN_CACHE_KIB}; BEGIN"))?;
            let commit = rows::state(&fresh.1)?.last_commit;
            self.index.look_at_history(&fresh.0, &fresh.1)?;
            if self.commit.is_some() && commit != self.commit {
                self.moved.set(true);
            }
            *slot = Some(fresh);
        }
        let answer = match slot.as_ref() {
            Some((_, connection)) => question(connection),
            None => Err(Fail::Row("no connection")),
        };
        if matches!(answer, Err(Fail::Sql(_) | Fail::Row(_))) {
            *slot = None;
        }
        answer
    }

    /// Rows after a key, and why there are no more if not because the page is full or the table ends.
    fn page(&self, table: ScanTable, after: &RowKey) -> (Vec<ScanRow>, Option<Error>) {
        let found = RefCell::new(Vec::new());
        let asked = self.put_to(&|c: &Connection| {
            found.borrow_mut().clear();
            let mut statement = c.prepare_cached(table.sql())?;
            for at in 1..=statement.parameter_count() {
                match at {
                    1 => statement.raw_bind_parameter(at, after.first)?,
                    2 => statement.raw_bind_parameter(at, &after.name)?,
                    3 => statement.raw_bind_parameter(at, after.second)?,
                    4 => statement.raw_bind_parameter(at, after.third)?,
                    _ => statement.raw_bind_parameter(at, PAGE_ROWS)?,
                }
            }
            let mut rows = statement.raw_query();
            while let Some(row) = rows.next()? {
                let value = match table {
                    ScanTable::Hashes => row.get::<_, i64>(0)?.to_be_bytes().to_vec(),
                    _ => blob(row, 0)?.to_vec(),
                };
                let mut key = RowKey { first: row.get(1)?, name: Vec::new(), second: 0, third: 0 };
                match table {
                    ScanTable::Entries | ScanTable::Removed => {
                        (key.second, key.name) = (row.get(2)?, blob(row, 3)?.to_vec());
                    }
                    ScanTable::Extents => key.second = row.get(2)?,
                    ScanTable::Parts => (key.second, key.third) = (row.get(2)?, row.get(3)?),
                    _ => {}
                }
                found.borrow_mut().push(ScanRow { table, key, value });
            }
            Ok(())
        });
        (found.into_inner(), asked.err().map(|fail| fail.at(self.index.path())))
    }

    /// A version and whether it was removed.
    pub fn open_version(&self, row: &ScanRow) -> Result<(VersionRow, bool)> {
        self.ask(|c| {
            let body = row::open(Table::Versions, Key::id(row.key.first), &row.value)?;
            rows::version_of(c, row.key.first, body)
        })
    }

    /// A file state and the directory of its first link.
    pub fn open_node(&self, row: &ScanRow) -> Result<(Dirno, Node)> {
        self.ask(|c| {
            let body = row::open(Table::Nodes, Key::id(row.key.first), &row.value)?;
            let whole = rows::whole(c, PartOf::Node, row.key.first, body)?;
            let (first_link, node) = rows::decode_node_row(&whole)?;
            if node.logid.0 as i64 != row.key.first {
                return Err(Fail::Row("the row is another file's"));
            }
            Ok((first_link, node))
        })
    }

    pub fn open_dir(&self, row: &ScanRow) -> Result<DirValue> {
        self.ask(|c| {
            let body = row::open(Table::Dirs, Key::id(row.key.first), &row.value)?;
            let dirno = dirno_of_dir_key(row.key.first);
            Ok(DirValue::decode(dirno, &rows::whole(c, PartOf::Dir, row.key.first, body)?)?)
        })
    }

    /// All states of a directory, oldest first.
    pub fn dir_states(&self, dirno: Dirno) -> Result<Vec<(Version, DirValue)>> {
        let mut cursor = self.cursor_after(ScanTable::Dirs, RowKey::before(dir_key(dirno, Version(0))));
        let mut states = Vec::new();
        while let Some(scanned) = cursor.take() {
            match scanned {
                Scanned::Row(row) if row.key.dirno() == dirno && states.len() < MAX_STATES => {
                    states.push((row.key.version(), self.open_dir(&row)?));
                }
                Scanned::Row(_) => break,
                Scanned::Bad { error, .. } => return Err(error),
            }
        }
        Ok(states)
    }

    /// All intervals of a name, oldest first.
    pub fn spans(&self, parent: Dirno, name: &[u8]) -> Result<Vec<Span>> {
        self.ask(|c| {
            let mut statement =
                c.prepare_cached("SELECT v_from, row FROM entries WHERE parent=?1 AND name=?2 ORDER BY v_from")?;
            let mut rows = statement.query(params![parent.0 as i64, name])?;
            let mut spans = Vec::new();
            while let Some(found) = rows.next()? {
                spans.push(span(parent, name, Version(found.get(0)?), blob(found, 1)?)?);
            }
            Ok(spans)
        })
    }

    /// The names in a directory, in all versions, that stand for this child.
    pub fn spans_of(&self, parent: Dirno, child: Child) -> Result<Vec<Span>> {
        self.ask(|c| {
            let mut statement = c.prepare_cached("SELECT name, v_from, row FROM entries WHERE parent=?1")?;
            let mut rows = statement.query([parent.0 as i64])?;
            let mut spans = Vec::new();
            while let Some(found) = rows.next()? {
                let span = span(parent, blob(found, 0)?, Version(found.get(1)?), blob(found, 2)?)?;
                if span.child == child {
                    spans.push(span);
                }
            }
            Ok(spans)
        })
    }

    /// Of a row of `parts`: the value that it continues is one that is continued.
    pub fn continues(&self, part: &RowKey) -> Result<bool> {
        let table = [PartOf::Version, PartOf::Node, PartOf::Dir].into_iter().find(|of| *of as i64 == part.first);
        let table = match table {
            Some(PartOf::Version) => Table::Versions,
            Some(PartOf::Node) => Table::Nodes,
            Some(PartOf::Dir) => Table::Dirs,
            None => return Ok(false),
        };
        let parts = self.ask(|c| rows::value(c, table, part.second, |body| Ok(row::Main::read(body)?.parts)))?;
        Ok(parts.is_some_and(|parts| parts > 0))
    }

    /// Where the first link of a file state is, if it has a row.
    pub fn first_link(&self, logid: Logid) -> Result<Option<Dirno>> {
        Ok(self.ask(|c| rows::node_bytes(c, logid))?.map(|(dirno, _)| dirno))
    }

    pub fn lost_since(&self, dirno: Dirno, v: Version) -> Result<Option<Version>> {
        self.ask(|c| rows::lost_since(c, dirno, v))
    }

    pub fn dir_at(&self, dirno: Dirno, v: Version) -> Result<Option<(Version, DirValue)>> {
        self.ask(|c| rows::dir(c, dirno, v))
    }

    /// The frame of a block where it is read from; None if no row has it.
    pub fn chunk_of(&self, place: BlockId) -> Result<Option<FrameChunk>> {
        self.ask(|c| rows::frames(c, place.place()))
    }

    pub fn arc(&self, serial: ArcSerial) -> Result<Option<ArcValue>> {
        self.ask(|c| rows::arc(c, serial))
    }

    pub fn location(&self, block: BlockId) -> Result<BlockId> {
        self.ask(|c| rows::location(c, block))
    }
}

fn span(parent: Dirno, name: &[u8], from: Version, value: &[u8]) -> Result<Span, row::BadRow> {
    let row = EntryRow::decode(Key(parent.0 as i64, i64::from(from.0), name), value)?;
    Ok(Span { parent, name: name.to_vec(), from, to: row.v_to, kind: row.kind, child: row.child, digest: row.digest })
}

/// Reads one table of a snapshot.
pub struct Cursor<'s, 'i> {
    snapshot: &'s Snapshot<'i>,
    table: ScanTable,
    after: RowKey,
    page: VecDeque<Scanned>,
    ended: bool,
}

impl Cursor<'_, '_> {
    pub fn peek(&mut self) -> Option<&Scanned> {
        if self.page.is_empty() && !self.ended {
            self.fetch();
        }
        self.page.front()
    }

    pub fn take(&mut self) -> Option<Scanned> {
        self.peek()?;
        self.page.pop_front()
    }

    fn fetch(&mut self) {
        let (rows, error) = self.snapshot.page(self.table, &self.after);
        let Some(error) = error else {
            self.ended = rows.len() < PAGE_ROWS as usize;
            return self.accept(rows);
        };
        if !rows.is_empty() {
            // What came before the error is judged row by row; the next query begins at the error.
            return self.accept(rows);
        }
        // A second chance, as every question has.
        let (rows, again) = self.snapshot.page(self.table, &self.after);
        if again.is_none() || !rows.is_empty() {
            self.ended = again.is_none() && rows.len() < PAGE_ROWS as usize;
            return self.accept(rows);
        }
        self.pass_over(error);
    }

    fn accept(&mut self, rows: Vec<ScanRow>) {
        if let Some(last) = rows.last() {
            self.after = last.key.clone();
        }
        self.page.extend(rows.into_iter().map(Scanned::Row));
    }

    /// Finds the first key behind an unreadable place: steps that double, then halves back.
    fn pass_over(&mut self, error: Error) {
        let from = self.after.first.max(-1);
        let start = |step: i64| RowKey::start_of(self.table, from.saturating_add(step));
        let (mut bad, mut good) = (0i64, None);
        while good.is_none() {
            let step = if bad == 0 { 1 } else { bad.saturating_mul(2) };
            match self.snapshot.page(self.table, &start(step)) {
                (rows, error) if error.is_none() || !rows.is_empty() => good = Some((step, rows, error.is_none())),
                _ if step == i64::MAX => break,
                _ => bad = step,
            }
        }
        let Some((mut step, mut rows, mut clean)) = good else {
            self.ended = true;
            return self.page.push_back(Scanned::Bad { after: self.after.clone(), before: None, error });
        };
        while step - bad > 1 {
            let middle = bad + (step - bad) / 2;
            match self.snapshot.page(self.table, &start(middle)) {
                (found, error) if error.is_none() || !found.is_empty() => {
                    (step, rows, clean) = (middle, found, error.is_none());
                }
                _ => bad = middle,
            }
        }
        let before = rows.first().map(|row| row.key.clone());
        self.page.push_back(Scanned::Bad { after: self.after.clone(), before, error });
        self.ended = clean && rows.len() < PAGE_ROWS as usize;
        self.accept(rows);
    }
}

impl ScanRow {
    fn at<T>(&self, index: &Index, opened: Result<T, row::BadRow>) -> Result<T> {
        opened.map_err(|bad| Fail::from(bad).at(index.path()))
    }

    pub fn span(&self, index: &Index) -> Result<Span> {
        let from = Version(u32::try_from(self.key.second).unwrap_or(u32::MAX));
        self.at(index, span(Dirno(self.key.first as u64), &self.key.name, from, &self.value))
    }

    pub fn arc(&self, index: &Index) -> Result<ArcValue> {
        self.at(index, ArcValue::decode(self.key.first, &self.value))
    }

    pub fn frames(&self, index: &Index) -> Result<(ArcSerial, FrameChunk)> {
        let place = FramePlace(self.key.first as u64);
        let opened = row::open(Table::Frames, Key::id(self.key.first), &self.value)
            .and_then(|body| rows::decode_frames(place.frame(), body));
        Ok((place.arc(), self.at(index, opened)?))
    }

    pub fn relocation(&self, index: &Index) -> Result<(BlockId, BlockId)> {
        let opened =
            row::open(Table::Relocations, Key::id(self.key.first), &self.value).and_then(rows::decode_relocation);
        Ok((BlockId(self.key.first as u64), self.at(index, opened)?))
    }

    /// Of `hashes`: the block.
    pub fn block(&self) -> BlockId {
        BlockId(self.value.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)))
    }

    pub fn extents(&self, index: &Index) -> Result<(Logid, u64, Vec<Segment>)> {
        let key = Key(self.key.first, self.key.second, &[]);
        let opened = row::open(Table::Extents, key, &self.value)
            .and_then(|body| Ok(codec::decode_segments(self.key.second as u64, body)?));
        Ok((Logid(self.key.first as u64), self.key.second as u64, self.at(index, opened)?))
    }

    /// Of `lost`: the end of the interval.
    pub fn lost_until(&self, index: &Index) -> Result<Option<Version>> {
        let opened = row::open(Table::Lost, Key::id(self.key.first), &self.value).and_then(row::decode_lost);
        self.at(index, opened)
    }
}
