//! Which files use a set of places in arcs, and under which names: the question that damage raises.
//!
//! Invariants: whole tables are passed over once whatever the number of places (files and extents, then names), a
//! batch of rows at a time, so that no transaction is long; what is kept is bounded by the number of places and the
//! caller's limit, what is more is counted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use rusqlite::{Connection, params};

use super::Index;
use super::fail::Found;
use super::queries::path_of_dir;
use super::row::{self, EntryRow, Key, Table};
use super::rows::blob;
use super::uses::{BATCH_ROWS, Pass};
use crate::catalog::Child;
use crate::catalog::codec::Decoder;
use crate::error::Result;
use crate::ids::{ArcSerial, BlockId, Dirno, FrameNo, FramePlace, Logid, Slot, Version};

/// Frames of arcs, or single blocks, in ranges that do not overlap; each range has a tag of the caller's.
#[derive(Debug, Default)]
pub struct Places(BTreeMap<u64, (u64, usize)>);

impl Places {
    pub fn add(&mut self, arc: ArcSerial, frames: Range<u32>, tag: usize) {
        let start = FramePlace::new(arc, FrameNo(frames.start));
        let end = FramePlace(start.0 + u64::from(frames.end.saturating_sub(frames.start)));
        self.0.insert(start.slot(Slot(0)).0, (end.slot(Slot(0)).0, tag));
    }

    pub fn add_block(&mut self, place: BlockId, tag: usize) {
        self.0.insert(place.0, (place.0 + 1, tag));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn tag(&self, place: BlockId) -> Option<usize> {
        let (_, (end, tag)) = self.0.range(..=place.0).next_back()?;
        (place.0 < *end).then_some(*tag)
    }
}

/// Bytes of a file that are in a place that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    pub tag: usize,
    pub logid: Logid,
    pub bytes: Range<u64>,
}

/// All uses of some places.
#[derive(Debug, Default)]
pub struct Users {
    /// At most as many for one tag as the caller wanted.
    pub uses: Vec<Use>,
    /// How many there are, by tag.
    pub totals: HashMap<usize, u64>,
}

/// A name of a file and the first and last version that show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    pub path: Vec<u8>,
    pub versions: (Version, Version),
}

/// Names by file: at most as many as the caller wanted, and how many there are.
pub type Names = HashMap<Logid, (Vec<NamedFile>, u64)>;

/// Puts neighbouring uses together, counts and bounds them.
struct Collector {
    users: Users,
    max_each: u64,
    open: Option<Use>,
}

impl Collector {
    fn push(&mut self, tag: usize, logid: Logid, bytes: Range<u64>) {
        match &mut self.open {
            Some(open) if (open.tag, open.logid, open.bytes.end) == (tag, logid, bytes.start) => {
                open.bytes.end = bytes.end;
            }
            _ => {
                self.close();
                self.open = Some(Use { tag, logid, bytes });
            }
        }
    }

    fn close(&mut self) {
        let Some(done) = self.open.take() else { return };
        let total = self.users.totals.entry(done.tag).or_default();
        *total += 1;
        if *total <= self.max_each {
            self.users.uses.push(done);
        }
    }
}

impl Index {
    /// Who uses these places, relocations considered: at most `max_each` uses a tag, and how many there are.
    ///
    /// `stop` is asked between batches; when it says so, the answer is `INTERRUPTED`.
    pub fn users(&self, places: &Places, max_each: usize, stop: &dyn Fn() -> bool) -> Result<Users> {
        let moved = self.moved(places, stop)?;
        let tag_of = |block: BlockId| match moved.get(&block) {
            Some(tag) => *tag,
            None => places.tag(block),
        };
        let mut found = Collector { users: Users::default(), max_each: max_each as u64, open: None };
        self.each_use(Pass::Whole, stop, |block, logid, bytes| {
            if let Some(tag) = tag_of(block) {
                found.push(tag, logid, bytes);
            }
        })?;
        found.close();
        Ok(found.users)
    }

    /// The names under which versions that are left show these files; at most `max_each` a file, and how many.
    pub fn names(&self, logids: &HashSet<Logid>, max_each: usize, stop: &dyn Fn() -> bool) -> Result<Names> {
        let versions: Vec<Version> = self.versions()?.into_iter().map(|row| row.version).collect();
        let shown = |since: Version, to: Option<Version>| {
            let first = versions.get(versions.partition_point(|v| *v < since))?;
            let end = to.map_or(versions.len(), |to| versions.partition_point(|v| *v < to));
            let last = versions.get(end.checked_sub(1)?)?;
            (first <= last).then_some((*first, *last))
        };
        let mut names = Names::new();
        let mut after = (-1i64, Vec::new(), -1i64);
        self.batches(stop, || {
            let batch = self.ask(|c| entries(c, &after, logids))?;
            after = batch.last;
            for (parent, name, since, row) in batch.found {
                let Child::Node(logid) = row.child else { continue };
                let Some(versions) = shown(since, row.v_to) else { continue };
                let (kept, total) = names.entry(logid).or_default();
                *total += 1;
                if kept.len() < max_each {
                    let mut path = self.ask(|c| path_of_dir(c, versions.1, parent)).unwrap_or_else(|_| b"...".to_vec());
                    if path.last() != Some(&b'/') {
                        path.push(b'/');
                    }
                    path.extend_from_slice(&name);
                    kept.push(NamedFile { path, versions });
                }
            }
            Ok(batch.read)
        })?;
        Ok(names)
    }

    /// Blocks that are read elsewhere than where their name says, as far as `places` are concerned.
    fn moved(&self, places: &Places, stop: &dyn Fn() -> bool) -> Result<HashMap<BlockId, Option<usize>>> {
        let mut moved = HashMap::new();
        let mut after = -1i64;
        self.batches(stop, || {
            let batch = self.ask(|c| relocations(c, after))?;
            if let Some((last, _)) = batch.last() {
                after = last.0 as i64;
            }
            for (from, to) in &batch {
                let tag = places.tag(*to);
                if tag.is_some() || places.tag(*from).is_some() {
                    moved.insert(*from, tag);
                }
            }
            Ok(batch.len())
        })?;
        Ok(moved)
    }
}

fn relocations(c: &Connection, after: i64) -> Found<Vec<(BlockId, BlockId)>> {
    let mut statement = c.prepare_cached("SELECT id, row FROM relocations WHERE id>?1 ORDER BY id LIMIT ?2")?;
    let mut found = statement.query(params![after, BATCH_ROWS])?;
    let mut batch = Vec::new();
    while let Some(found) = found.next()? {
        let id: i64 = found.get(0)?;
        let mut d = Decoder::new(row::open(Table::Relocations, Key::id(id), blob(found, 1)?)?);
        batch.push((BlockId(id as u64), BlockId(d.uint()?)));
        d.end()?;
    }
    Ok(batch)
}

type EntryKey = (i64, Vec<u8>, i64);

/// What a batch of entries holds of some files.
#[derive(Default)]
struct EntryBatch {
    found: Vec<(Dirno, Vec<u8>, Version, EntryRow)>,
    /// Rows that were looked at, and the last one of a whole batch.
    read: usize,
    last: EntryKey,
}

fn entries(c: &Connection, after: &EntryKey, logids: &HashSet<Logid>) -> Found<EntryBatch> {
    let sql = "SELECT parent, name, v_from, row FROM entries WHERE (parent, name, v_from)>(?1, ?2, ?3) \
               ORDER BY parent, name, v_from LIMIT ?4";
    let mut statement = c.prepare_cached(sql)?;
    let mut found = statement.query(params![after.0, after.1, after.2, BATCH_ROWS])?;
    let mut batch = EntryBatch::default();
    while let Some(found) = found.next()? {
        let (parent, since): (i64, u32) = (found.get(0)?, found.get(2)?);
        let name = blob(found, 1)?;
        let row = EntryRow::decode(Key(parent, i64::from(since), name), blob(found, 3)?)?;
        if matches!(row.child, Child::Node(logid) if logids.contains(&logid)) {
            batch.found.push((Dirno(parent as u64), name.to_vec(), Version(since), row));
        }
        batch.read += 1;
        if batch.read == BATCH_ROWS as usize {
            batch.last = (parent, name.to_vec(), i64::from(since));
        }
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::super::model::{Built, Item, Model, node};
    use super::*;
    use crate::catalog::codec::encode_record;
    use crate::catalog::{Content, Record, Segment};
    use crate::error::Error;

    #[test]
    fn uses_join_follow_relocations_and_are_counted_beyond_the_limit() {
        let block = |arc, frame| BlockId::first(ArcSerial(arc), FrameNo(frame));
        let data = |frame| Segment::Data { block: block(0, frame), len: 1000 };
        let mut file = node(100_001, 1, 0);
        file.content = Content::Inline(vec![data(1), data(2), Segment::Hole { len: 4096 }, data(130), data(2)]);
        (file.attr.size, file.data_bytes) = (8096, 4000);
        let long = node(100_004, 4, 0);
        assert!(matches!(long.content, Content::Chunked(_)), "its first kilobyte is frame 1");
        let mut model = Model::new(1);
        model.root.children = [(b"a", &file), (b"b", &file), (b"c", &long)]
            .into_iter()
            .map(|(name, node)| (name.to_vec(), Item::File(Box::new(node.clone()))))
            .collect();
        model.commit(0, true);
        let mut bytes = Vec::new();
        encode_record(&mut bytes, &Record::Relocate { from: block(0, 130), to: block(2, 5) });
        model.push(Version(50), vec![(bytes, vec![])], false);
        let built = Built::of(&model);
        let index = built.index();

        let mut places = Places::default();
        places.add(ArcSerial(0), 1..3, 0);
        places.add(ArcSerial(2), 5..6, 1);
        places.add(ArcSerial(0), 130..131, 2);
        let used = |tag, logid, bytes| Use { tag, logid: Logid(logid), bytes };
        let wanted = [
            used(0, 100_001, 0..2000),
            used(1, 100_001, 6096..7096),
            used(0, 100_001, 7096..8096),
            used(0, 100_004, 0..1000),
        ];
        let go_on = || false;
        let found = index.users(&places, 10, &go_on).unwrap();
        assert_eq!((&found.uses[..], &found.totals), (&wanted[..], &HashMap::from([(0, 3), (1, 1)])));
        let few = index.users(&places, 1, &go_on).unwrap();
        assert_eq!((&few.uses[..], &few.totals), (&wanted[..2], &found.totals));

        let v = index.versions().unwrap()[0].version;
        let named = |path: &[u8]| NamedFile { path: path.to_vec(), versions: (v, v) };
        let names = index.names(&HashSet::from([Logid(100_001), Logid(7)]), 10, &go_on).unwrap();
        assert_eq!(names, HashMap::from([(Logid(100_001), (vec![named(b"/a"), named(b"/b")], 2))]));
        let one = index.names(&HashSet::from([Logid(100_001)]), 1, &go_on).unwrap();
        assert_eq!(one[&Logid(100_001)], (vec![named(b"/a")], 2));
        assert!(matches!(index.users(&places, 1, &|| true), Err(Error::Interrupted)));
    }
}
