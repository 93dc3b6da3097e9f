//! Changes rows of an index so that each has a right seal and is wrong all the same (tests only).

use std::path::Path;

use rusqlite::{Connection, params};

use super::row::{self, ArcValue, EntryRow, Key, Main, Table, seal, split};
use super::rows::{self, DirValue};
use super::schema::{Access, connect, dirno_of_dir_key};
use super::{FrameChunk, State};
use crate::catalog::codec::{self, Decoder, Encoder};
use crate::catalog::{Node, Segment, VersionInfo};
use crate::ids::{ArcSerial, BlockId, Dirno, Logid, Version};

/// A writing connection to an index.
pub struct Vandal {
    c: Connection,
}

impl Vandal {
    pub fn of(path: &Path, key: &[u8; 48]) -> Vandal {
        Vandal { c: connect(path, key, Access::Write).unwrap() }
    }

    /// Runs SQL and returns how many rows it changed.
    pub fn sql(&self, sql: &str) -> usize {
        let changed = self.c.execute(sql, []).unwrap();
        self.settle();
        changed
    }

    fn settle(&self) {
        self.c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    }

    pub fn numbers(&self, sql: &str) -> Vec<i64> {
        let mut statement = self.c.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    fn put(&self, table: &str, id: i64, value: Vec<u8>) {
        let sql = format!("INSERT OR REPLACE INTO {table}(id, row) VALUES(?1, ?2)");
        self.c.execute(&sql, params![id, value]).unwrap();
        self.settle();
    }

    fn body(&self, table: &str, of: Table, id: i64) -> Vec<u8> {
        let sql = format!("SELECT row FROM {table} WHERE id=?1");
        let value: Vec<u8> = self.c.query_row(&sql, [id], |row| row.get(0)).unwrap();
        row::open(of, Key::id(id), &value).unwrap().to_vec()
    }

    /// A value that fits one row.
    fn put_short(&self, table: &str, of: Table, id: i64, bytes: &[u8]) {
        let cut = split(bytes);
        assert!(cut.parts.is_empty());
        self.put(table, id, seal(of, Key::id(id), cut.main));
    }

    fn short(&self, table: &str, of: Table, id: i64) -> Vec<u8> {
        let body = self.body(table, of, id);
        let main = Main::read(&body).unwrap();
        assert_eq!(main.parts, 0);
        main.first.to_vec()
    }

    pub fn state(&self, change: impl FnOnce(&mut State)) {
        let mut state = rows::state(&self.c).unwrap();
        change(&mut state);
        rows::put_state(&self.c, &state).unwrap();
        self.settle();
    }

    pub fn version(&self, v: Version, change: impl FnOnce(&mut VersionInfo)) {
        let (mut row, removed) = rows::version(&self.c, v).unwrap().unwrap();
        change(&mut row.info);
        self.put_short("versions", Table::Versions, i64::from(v.0), &rows::encode_version(&row, removed));
    }

    pub fn arc(&self, serial: ArcSerial, change: impl FnOnce(&mut ArcValue)) {
        let id = serial.0 as i64;
        let value: Vec<u8> = self.c.query_row("SELECT row FROM arcs WHERE id=?1", [id], |row| row.get(0)).unwrap();
        let mut value = ArcValue::decode(id, &value).unwrap();
        change(&mut value);
        self.put("arcs", id, value.encode());
    }

    pub fn frames(&self, id: i64, change: impl FnOnce(&mut FrameChunk)) {
        let mut chunk =
            rows::decode_frames(crate::ids::FramePlace(id as u64).frame(), &self.body("frames", Table::Frames, id))
                .unwrap();
        change(&mut chunk);
        let mut body = chunk.offset.to_le_bytes().to_vec();
        chunk.frames.iter().for_each(|info| body.extend_from_slice(&info.encode()));
        self.put("frames", id, seal(Table::Frames, Key::id(id), body));
    }

    pub fn relocation(&self, from: BlockId, to: BlockId) {
        let mut e = Encoder::default();
        e.uint(to.0);
        self.put("relocations", from.0 as i64, seal(Table::Relocations, Key::id(from.0 as i64), e.0));
    }

    pub fn lost(&self, id: i64, to: u64) {
        let mut e = Encoder::default();
        e.uint(to);
        self.put("lost", id, seal(Table::Lost, Key::id(id), e.0));
    }

    pub fn node(&self, logid: Logid, change: impl FnOnce(&mut Node)) {
        let bytes = self.short("nodes", Table::Nodes, logid.0 as i64);
        let mut d = Decoder::new(&bytes);
        let first_link = d.uint().unwrap();
        let mut node = codec::decode_node(d.rest()).unwrap();
        change(&mut node);
        let mut e = Encoder::default();
        e.uint(first_link);
        e.raw(&codec::encode_node(&node));
        self.put_short("nodes", Table::Nodes, logid.0 as i64, &e.0);
    }

    pub fn dir(&self, id: i64, change: impl FnOnce(&mut DirValue)) {
        let mut value = DirValue::decode(dirno_of_dir_key(id), &self.short("dirs", Table::Dirs, id)).unwrap();
        change(&mut value);
        self.put_short("dirs", Table::Dirs, id, &value.encode());
    }

    /// Puts an entry, whatever it was.
    pub fn entry(&self, parent: Dirno, name: &[u8], from: Version, entry: EntryRow) {
        let key = Key(parent.0 as i64, i64::from(from.0), name);
        self.c
            .execute(
                "INSERT OR REPLACE INTO entries(parent, name, v_from, row) VALUES(?1, ?2, ?3, ?4)",
                params![parent.0 as i64, name, from.0, entry.encode(key)],
            )
            .unwrap();
        self.settle();
    }

    /// All entries.
    pub fn entries(&self) -> Vec<(Dirno, Vec<u8>, Version, EntryRow)> {
        let mut statement = self.c.prepare("SELECT parent, name, v_from, row FROM entries").unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut entries = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let (parent, name, from): (i64, Vec<u8>, i64) =
                (row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap());
            let value: Vec<u8> = row.get(3).unwrap();
            let entry = EntryRow::decode(Key(parent, from, &name), &value).unwrap();
            entries.push((Dirno(parent as u64), name, Version(from as u32), entry));
        }
        entries
    }

    pub fn extents(&self, logid: Logid, start: u64, segments: &[Segment]) {
        let key = Key(logid.0 as i64, start as i64, &[]);
        let value = seal(Table::Extents, key, codec::encode_segments(segments));
        self.c
            .execute(
                "INSERT OR REPLACE INTO extents(logid, start, row) VALUES(?1, ?2, ?3)",
                params![key.0, key.1, value],
            )
            .unwrap();
        self.settle();
    }
}
