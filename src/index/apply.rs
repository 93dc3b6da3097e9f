//! Turns a commit's catalog into rows: the only code that changes tables.
//!
//! Used after a backup, after a crash and in `recover`; the same commits in the same order give the same rows.
//! Invariants: memory holds one frame and the names of one directory's full listing, whatever the backup's size;
//! what a damaged frame described is marked lost from this version on, and is found again only where a later
//! record says it anew; rows of earlier versions change only by the end of their interval.

use std::collections::{BTreeSet, HashSet};

use rusqlite::{Connection, params};

use super::fail::{Fail, Found};
use super::history;
use super::row::{EntryRow, Key, MAX_KEYED_ROW, Table, seal, split};
use super::rows::{self, DirValue, PartOf, blob, part_key};
use super::runs;
use super::schema::dir_key;
use super::{Root, State, VersionRow};
use crate::arc::FrameInfo;
use crate::catalog::codec::{self, Encoder, Records};
use crate::catalog::{
    ArcEntry, ArcRole, CatalogFrame, Child, Commit, Content, DirState, Listing, Named, Node, Record, Segment,
};
use crate::error::{Damage, Error, Place, Result};
use crate::ids::{ArcName, ArcSerial, Dirno, FrameNo, Logid, Version};

/// How `apply` gets at the arcs of a commit.
pub trait CatalogSource {
    /// The frame tables of these arcs are read next.
    fn ahead(&mut self, _arcs: &mut dyn Iterator<Item = &ArcEntry>) {}
    /// All frames of the arc, the footer excepted. Damage leaves the arc's blocks unreadable; other errors end the run.
    fn frame_table(&mut self, arc: &ArcEntry) -> Result<Vec<FrameInfo>>;
    /// The verified plain bytes of a catalog frame. Damage marks its directories lost; other errors end the run.
    fn catalog_frame(&mut self, frame: &CatalogFrame, arc: &ArcEntry) -> Result<Vec<u8>>;
}

/// A catalog frame that could not be read, and the directories that it described.
#[derive(Debug, Clone)]
pub struct LostFrame {
    pub arc: ArcName,
    pub frame: FrameNo,
    /// Runs of directory numbers: first, count.
    pub dirs: Vec<(Dirno, u64)>,
    pub error: Error,
}

/// What `apply` met.
#[derive(Debug, Clone, Default)]
pub struct ApplyReport {
    pub lost: Vec<LostFrame>,
    /// Arcs whose frame table could not be read, or not to its end.
    pub unknown_arcs: Vec<(ArcName, Error)>,
    /// Records that contradict the index and were left out (a file's state told twice, differently).
    pub conflicts: u64,
    /// Intervals opened and closed.
    pub opened: u64,
    pub closed: u64,
}

/// Rows per step where a directory's rows are read and changed by turns.
const STEP: usize = 512;

/// Applies one commit inside the caller's transaction.
pub(super) fn apply_commit(
    c: &Connection,
    commit: &Commit,
    digest: [u8; 32],
    source: &mut dyn CatalogSource,
) -> Found<ApplyReport> {
    let mut state = rows::state(c)?;
    let refuse = |what: &str| Fail::Known(Error::CommitDamaged { run: commit.run, what: what.into() });
    if commit.run > Version::MAX || state.last_commit.is_some_and(|(last, _)| commit.run <= last) {
        return Err(refuse("its run is not above the last one"));
    }
    if commit.previous != state.last_commit && !commit.base {
        return Err(refuse("it does not follow the last commit that is known"));
    }
    let any_lost = c.query_row("SELECT EXISTS(SELECT 1 FROM lost)", [], |row| row.get(0))?;
    // In a delta all that a node is made of comes with it.
    let chunked = (commit.base && !runs::has_gaps(c)?).then(Vec::new);
    let mut apply = Apply { any_lost, chunked, ..Apply::new(c, commit.run, &state) };
    apply.roots(commit)?;
    state.hashes += apply.arcs(commit, source)?;
    for frame in &commit.catalog {
        let Some(arc) = commit.arc(frame.arc) else {
            return Err(refuse("it names a catalog arc that it does not list"));
        };
        apply.frame(frame, arc, commit, source, &mut state.hashes)?;
    }
    apply.finish_listing()?;
    apply.drop_unclaimed_extents()?;
    apply.note_gaps()?;
    apply.forget_moves_to_dropped()?;
    apply.digest_anew()?;
    let catalog_bytes = commit
        .arcs
        .iter()
        .filter(|arc| arc.role == ArcRole::Catalog && arc.name.version == commit.run)
        .fold(0u64, |sum, arc| sum.saturating_add(arc.plain_bytes));
    if commit.base {
        (state.base_catalog_bytes, state.catalog_bytes_since_base) = (catalog_bytes, 0);
    } else {
        state.catalog_bytes_since_base = state.catalog_bytes_since_base.saturating_add(catalog_bytes);
    }
    state.next_serial = state.next_serial.max(commit.next_serial);
    state.next_logid = state.next_logid.max(commit.next_logid);
    state.next_dirno = state.next_dirno.max(commit.next_dirno);
    state.next_run = state.next_run.max(Version(commit.run.0 + 1));
    state.last_commit = Some((commit.run, digest));
    (state.newest, state.versions) = rows::versions_digest(c)?;
    rows::put_state(c, &state)?;
    history::put_commit(c, commit.run, digest)?;
    runs::note_commit(c, commit)?;
    Ok(apply.report)
}

/// The directory that `Put` and `Remove` are about.
struct OpenDir {
    dirno: Dirno,
    /// Names put so far, while a complete list is being read.
    full: Option<HashSet<Vec<u8>>>,
    /// Since when its listing is lost, if it is.
    lost_since: Option<Version>,
}

pub(super) struct Apply<'a> {
    pub(super) c: &'a Connection,
    pub(super) v: Version,
    any_lost: bool,
    /// From these numbers on, no commit before this one has rows.
    first_new_logid: u64,
    first_new_dirno: u64,
    open: Option<OpenDir>,
    /// Arcs that this commit drops.
    pub(super) dropped: BTreeSet<ArcSerial>,
    /// Directories from which this commit took a name, with the versions that had it.
    pub(super) named_less: Vec<(Dirno, Version, Option<Version>)>,
    /// Long files that a base tells, with their sizes, to be looked at for what is not known of them.
    chunked: Option<Vec<(Logid, u64)>>,
    pub(super) report: ApplyReport,
}

impl<'a> Apply<'a> {
    pub(super) fn new(c: &'a Connection, v: Version, state: &State) -> Apply<'a> {
        Apply {
            c,
            v,
            any_lost: true,
            first_new_logid: state.next_logid,
            first_new_dirno: state.next_dirno,
            open: None,
            dropped: BTreeSet::new(),
            named_less: Vec::new(),
            chunked: None,
            report: ApplyReport::default(),
        }
    }
}

impl Apply<'_> {
    fn frame(
        &mut self,
        frame: &CatalogFrame,
        arc: &ArcEntry,
        commit: &Commit,
        source: &mut dyn CatalogSource,
        hashes: &mut u64,
    ) -> Found<()> {
        let plain = source.catalog_frame(frame, arc);
        let records = plain.as_deref().map_err(Error::clone).and_then(|plain| {
            Records::new(plain, |record| commit.counts(record)).map_err(|bad| Error::Arc {
                place: Place { arc: arc.name, frame: Some(frame.frame), block: None, offset: 0 },
                damage: Damage::BadRecord(bad.0),
            })
        });
        match records {
            Ok(mut records) => {
                records.try_for_each(|record| self.record(record.map_err(|bad| Fail::Row(bad.0))?, hashes))
            }
            Err(error) if error.is_damage() => {
                self.lose(frame)?;
                let (arc, frame, dirs) = (arc.name, frame.frame, frame.dirs.clone());
                self.report.lost.push(LostFrame { arc, frame, dirs, error });
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn lose(&mut self, frame: &CatalogFrame) -> Found<()> {
        self.any_lost = true;
        runs::note_gap(self.c)?;
        for (first, count) in &frame.dirs {
            for dirno in (first.0..first.0 + count).map(Dirno) {
                self.put_lost(dirno, self.v, None)?;
                if let Some(open) = self.open.as_mut().filter(|open| open.dirno == dirno) {
                    open.full = None;
                    open.lost_since = Some(self.v);
                }
            }
        }
        Ok(())
    }

    fn put_lost(&self, dirno: Dirno, from: Version, to: Option<Version>) -> Found<()> {
        let id = dir_key(dirno, from);
        let mut e = Encoder::default();
        e.uint(to.map_or(0, |v| u64::from(v.0)));
        self.c
            .prepare_cached("INSERT OR REPLACE INTO lost(id, row) VALUES(?1, ?2)")?
            .execute(params![id, seal(Table::Lost, Key::id(id), e.0)])?;
        Ok(())
    }

    fn lost_since(&self, dirno: Dirno) -> Found<Option<Version>> {
        if !self.any_lost {
            return Ok(None);
        }
        rows::lost_since(self.c, dirno, self.v)
    }

    fn record(&mut self, record: Record, hashes: &mut u64) -> Found<()> {
        match record {
            Record::Dir { dirno, parent, name, listing, state } => self.dir(dirno, parent, name, listing, state),
            Record::Put { name, item } => self.put(name, &item),
            Record::Remove { name } => self.remove(&name),
            Record::Extents(chunk) => self.extents(chunk.logid, chunk.start, &chunk.segments),
            Record::RemoveVersion(version) => self.remove_version(version),
            Record::RemovePath { dirno, name } => self.remove_path(dirno, &name),
            Record::Relocate { from, to } => self.relocate(from, to),
            Record::AcceptLoss(loss) => runs::put_loss(self.c, &loss, runs::Told::InACommit),
            Record::DropArc(serial) => {
                *hashes = hashes.saturating_sub(self.drop_arc(serial)?);
                Ok(())
            }
        }
    }

    fn dir(
        &mut self,
        dirno: Dirno,
        parent: Dirno,
        name: Vec<u8>,
        listing: Listing,
        state: Option<DirState>,
    ) -> Found<()> {
        let goes_on = listing != Listing::Full && self.open.as_ref().is_some_and(|open| open.dirno == dirno);
        if !goes_on {
            self.finish_listing()?;
            if dirno != Dirno::ROOT {
                // The record itself proves where the directory is, also when the parent's own frame is lost.
                self.put_entry(parent, &name, &Named::Dir(dirno), None)?;
            }
            let mut lost_since = self.lost_since(dirno)?;
            if listing == Listing::Lost && lost_since.is_none() {
                self.any_lost = true;
                self.put_lost(dirno, self.v, None)?;
                lost_since = Some(self.v);
            }
            // A list of which a part was lost in this very version is not complete.
            let complete = listing == Listing::Full && lost_since != Some(self.v);
            self.open = Some(OpenDir { dirno, full: complete.then(HashSet::new), lost_since });
        }
        let known = rows::dir(self.c, dirno, self.v)?;
        let value = DirValue { parent, name, gone: false, state };
        let write = match &known {
            None => true,
            Some((_, old)) if value.state.is_none() => old.gone,
            Some((since, old)) => {
                let doubted = self.open.as_ref().and_then(|open| open.lost_since).is_some_and(|from| *since < from);
                *old != value || doubted
            }
        };
        if write { self.put_dir(dirno, &value) } else { Ok(()) }
    }

    fn put_dir(&self, dirno: Dirno, value: &DirValue) -> Found<()> {
        self.put_long(Table::Dirs, PartOf::Dir, dir_key(dirno, self.v), &value.encode())
    }

    fn put(&mut self, name: Vec<u8>, item: &Named) -> Found<()> {
        let Some(open) = self.open.as_mut() else {
            self.report.conflicts += 1;
            return Ok(());
        };
        let dirno = open.dirno;
        // Inside a complete list every name is stated anew, so nothing stays in doubt.
        let doubt = if open.full.is_some() { None } else { open.lost_since };
        if let Some(names) = &mut open.full {
            names.insert(name.clone());
        }
        match item {
            Named::Node(node) => self.put_node(dirno, node)?,
            Named::Dir(child) => {
                if rows::dir(self.c, *child, self.v)?.is_none_or(|(_, value)| value.gone) {
                    self.put_dir(*child, &DirValue { parent: dirno, name: name.clone(), gone: false, state: None })?;
                }
            }
        }
        self.put_entry_in(dirno, &name, item, doubt)
    }

    /// As `put_entry_in`, for a directory that is not the open one.
    fn put_entry(&mut self, dir: Dirno, name: &[u8], item: &Named, doubt: Option<Version>) -> Found<()> {
        let doubt = if doubt.is_some() { doubt } else { self.lost_since(dir)? };
        self.put_entry_in(dir, name, item, doubt)
    }

    /// From this version on, `name` stands for `child`. An interval from before `doubt` is not continued.
    fn put_entry_in(&mut self, dir: Dirno, name: &[u8], item: &Named, doubt: Option<Version>) -> Found<()> {
        let new = EntryRow::of(item);
        if dir.0 >= self.first_new_dirno && self.insert_entry(dir, name, new)? {
            self.report.opened += 1;
            return Ok(());
        }
        let old = rows::entry(self.c, dir, name, self.v)?.filter(|(_, row)| row.v_to.is_none());
        if let Some((since, row)) = old {
            if row == new {
                if doubt.is_none_or(|from| since >= from) {
                    return Ok(());
                }
                self.end_interval(dir, name, since, row)?;
            } else {
                self.close(dir, name, since, row)?;
            }
        }
        self.report.opened += 1;
        self.write_entry(dir, name, self.v, new)
    }

    /// In a directory of this very version there is nothing to look up; false if the name is there already.
    fn insert_entry(&self, dir: Dirno, name: &[u8], row: EntryRow) -> Found<bool> {
        let key = Key(dir.0 as i64, i64::from(self.v.0), name);
        let new = self
            .c
            .prepare_cached("INSERT OR IGNORE INTO entries(parent, name, v_from, row) VALUES(?1, ?2, ?3, ?4)")?
            .execute(params![dir.0 as i64, name, self.v.0, row.encode(key)])?;
        Ok(new == 1)
    }

    fn write_entry(&self, dir: Dirno, name: &[u8], since: Version, row: EntryRow) -> Found<()> {
        let key = Key(dir.0 as i64, i64::from(since.0), name);
        self.c
            .prepare_cached("INSERT OR REPLACE INTO entries(parent, name, v_from, row) VALUES(?1, ?2, ?3, ?4)")?
            .execute(params![dir.0 as i64, name, since.0, row.encode(key)])?;
        Ok(())
    }

    fn remove(&mut self, name: &[u8]) -> Found<()> {
        let Some(dirno) = self.open.as_ref().map(|open| open.dirno) else {
            self.report.conflicts += 1;
            return Ok(());
        };
        match rows::entry(self.c, dirno, name, self.v)? {
            // A subdirectory is told before its parent: what this version has put here already took the old
            // entry's place, and a removal speaks of the old one.
            Some((since, row)) if row.v_to.is_none() && since < self.v => self.close(dirno, name, since, row),
            _ => Ok(()),
        }
    }

    /// Ends an entry with this version, and everything below it.
    fn close(&mut self, dir: Dirno, name: &[u8], since: Version, row: EntryRow) -> Found<()> {
        self.end_interval(dir, name, since, row)?;
        let mut below = match row.child {
            Child::Dir(dirno) => vec![dirno],
            Child::Node(_) => vec![],
        };
        while let Some(dirno) = below.pop() {
            if let Some((_, value)) = rows::dir(self.c, dirno, self.v)?.filter(|(_, value)| !value.gone) {
                self.put_dir(dirno, &DirValue { gone: true, state: None, ..value })?;
            }
            self.each_open(dirno, |apply, name, since, row| {
                apply.end_interval(dirno, name, since, row)?;
                if let Child::Dir(child) = row.child {
                    below.push(child);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn end_interval(&mut self, dir: Dirno, name: &[u8], since: Version, row: EntryRow) -> Found<()> {
        self.report.closed += 1;
        if since == self.v {
            self.c
                .prepare_cached("DELETE FROM entries WHERE parent=?1 AND name=?2 AND v_from=?3")?
                .execute(params![dir.0 as i64, name, since.0])?;
            return Ok(());
        }
        self.write_entry(dir, name, since, EntryRow { v_to: Some(self.v), ..row })
    }

    /// Runs over a directory's open entries, a few at a time, so that `each` may change them.
    fn each_open(
        &mut self,
        dir: Dirno,
        mut each: impl FnMut(&mut Self, &[u8], Version, EntryRow) -> Found<()>,
    ) -> Found<()> {
        let mut after: Vec<u8> = Vec::new();
        loop {
            let mut step: Vec<(Vec<u8>, Version, EntryRow)> = Vec::new();
            let mut scanned = 0;
            {
                let mut statement = self.c.prepare_cached(
                    "SELECT name, v_from, row FROM entries WHERE parent=?1 AND name>?2 ORDER BY name, v_from",
                )?;
                let mut rows = statement.query(params![dir.0 as i64, after])?;
                while let Some(found) = rows.next()? {
                    let name = blob(found, 0)?;
                    // A name's rows stay together: a step ends only where the next name begins.
                    if scanned >= STEP && name != after {
                        break;
                    }
                    scanned += 1;
                    after.clear();
                    after.extend_from_slice(name);
                    let since = Version(found.get(1)?);
                    let row = EntryRow::decode(Key(dir.0 as i64, i64::from(since.0), name), blob(found, 2)?)?;
                    if row.v_to.is_none() {
                        step.push((name.to_vec(), since, row));
                    }
                }
            }
            for (name, since, row) in step {
                each(self, &name, since, row)?;
            }
            if scanned < STEP {
                return Ok(());
            }
        }
    }

    /// Ends the open directory: after a complete list, names that were not put are gone, and nothing is lost.
    fn finish_listing(&mut self) -> Found<()> {
        let Some(OpenDir { dirno, full: Some(names), lost_since }) = self.open.take() else { return Ok(()) };
        self.each_open(
            dirno,
            |apply, name, since, row| {
                if names.contains(name) { Ok(()) } else { apply.close(dirno, name, since, row) }
            },
        )?;
        match lost_since {
            Some(from) => self.put_lost(dirno, from, Some(self.v)),
            None => Ok(()),
        }
    }

    fn put_node(&mut self, dir: Dirno, node: &Node) -> Found<()> {
        if let (Some(chunked), Content::Chunked(_)) = (&mut self.chunked, &node.content) {
            chunked.push((node.logid, node.attr.size));
        }
        let encoded = codec::encode_node(node);
        let value = |first_link: Dirno| {
            let mut e = Encoder(Vec::with_capacity(encoded.len() + 8));
            e.uint(first_link.0);
            e.raw(&encoded);
            e.0
        };
        if node.logid.0 >= self.first_new_logid && self.insert_short_node(node.logid, &value(dir))? {
            return Ok(());
        }
        let first_link = match rows::node_bytes(self.c, node.logid)? {
            None => dir,
            Some((_, old)) if old == encoded => return Ok(()),
            Some((first_link, old)) => {
                let same_but_racy =
                    codec::decode_node(&old).is_ok_and(|old| old == Node { racy: old.racy, ..node.clone() });
                if !same_but_racy {
                    self.report.conflicts += 1;
                    return Ok(());
                }
                first_link
            }
        };
        self.put_long(Table::Nodes, PartOf::Node, node.logid.0 as i64, &value(first_link))
    }

    /// Writes a node that is new and fits one row; false if neither is sure.
    fn insert_short_node(&self, logid: Logid, bytes: &[u8]) -> Found<bool> {
        let cut = split(bytes);
        if !cut.parts.is_empty() {
            return Ok(false);
        }
        let id = logid.0 as i64;
        let new = self
            .c
            .prepare_cached("INSERT OR IGNORE INTO nodes(id, row) VALUES(?1, ?2)")?
            .execute(params![id, seal(Table::Nodes, Key::id(id), cut.main)])?;
        Ok(new == 1)
    }

    fn extents(&mut self, logid: Logid, start: u64, segments: &[Segment]) -> Found<()> {
        let start_id = start as i64;
        let body = codec::encode_segments(segments);
        if body.len() + 32 > MAX_KEYED_ROW && segments.len() > 1 {
            let (head, tail) = segments.split_at(segments.len() / 2);
            let middle = start + head.iter().map(Segment::len).sum::<u64>();
            self.extents(logid, start, head)?;
            return self.extents(logid, middle, tail);
        }
        let sealed = seal(Table::Extents, Key(logid.0 as i64, start_id, &[]), body);
        self.c
            .prepare_cached("INSERT OR IGNORE INTO extents(logid, start, row) VALUES(?1, ?2, ?3)")?
            .execute(params![logid.0 as i64, start_id, sealed])?;
        Ok(())
    }

    /// The list of a long file is told while the file is read, before it is known what becomes of it: of one that could
    /// not be read to its end, changed meanwhile, or turned out to be a state that is stored already, no node follows.
    fn drop_unclaimed_extents(&self) -> Found<()> {
        self.c
            .prepare_cached("DELETE FROM extents WHERE logid >= ?1 AND logid NOT IN (SELECT id FROM nodes)")?
            .execute([i64::try_from(self.first_new_logid).unwrap_or(i64::MAX)])?;
        Ok(())
    }

    /// A base may carry a file of whose list of blocks not all was known.
    fn note_gaps(&mut self) -> Found<()> {
        for (logid, size) in self.chunked.take().unwrap_or_default() {
            let mut offset = 0;
            while offset < size {
                match rows::extents(self.c, logid, offset) {
                    Ok(chunk) => offset = chunk.end(),
                    Err(Fail::Known(Error::ExtentsLost { .. })) => return runs::note_gap(self.c),
                    Err(fail) => return Err(fail),
                }
            }
        }
        Ok(())
    }

    fn remove_version(&mut self, version: Version) -> Found<()> {
        match rows::version(self.c, version)? {
            Some((row, _)) => self.put_version(&row, true),
            None => Ok(()),
        }
    }

    /// The version that the commit makes, and new roots of earlier ones.
    fn roots(&self, commit: &Commit) -> Found<()> {
        for (version, root) in &commit.roots {
            let root = Root { digest: *root, set_by: commit.run };
            match &commit.version {
                Some(info) if *version == commit.run => {
                    let (version, info) = (*version, info.clone());
                    self.put_version(&VersionRow { version, info, base: commit.base, root }, false)?;
                }
                _ => {
                    if let Some((row, removed)) = rows::version(self.c, *version)? {
                        self.put_version(&VersionRow { root, ..row }, removed)?;
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn put_version(&self, row: &VersionRow, removed: bool) -> Found<()> {
        let value = rows::encode_version(row, removed);
        self.put_long(Table::Versions, PartOf::Version, i64::from(row.version.0), &value)
    }

    /// Writes a value that may need rows in `parts`; earlier parts of the same key go.
    pub(super) fn put_long(&self, table: Table, of: PartOf, id: i64, bytes: &[u8]) -> Found<()> {
        let sql = match table {
            Table::Versions => "INSERT OR REPLACE INTO versions(id, row) VALUES(?1, ?2)",
            Table::Nodes => "INSERT OR REPLACE INTO nodes(id, row) VALUES(?1, ?2)",
            Table::Dirs => "INSERT OR REPLACE INTO dirs(id, row) VALUES(?1, ?2)",
            _ => return Err(Fail::Row("not a table of long values")),
        };
        let cut = split(bytes);
        self.c.prepare_cached("DELETE FROM parts WHERE kind=?1 AND id=?2")?.execute(params![of as i64, id])?;
        for (part, no) in cut.parts.into_iter().zip(1i64..) {
            let sealed = seal(Table::Parts, part_key(of, id, no).key(), part);
            self.c
                .prepare_cached("INSERT INTO parts(kind, id, no, row) VALUES(?1, ?2, ?3, ?4)")?
                .execute(params![of as i64, id, no, sealed])?;
        }
        self.c.prepare_cached(sql)?.execute(params![id, seal(table, Key::id(id), cut.main)])?;
        Ok(())
    }
}
