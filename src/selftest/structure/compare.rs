//! The index and its shadow, row by row in key order.
//!
//! Invariants: where all catalogs are whole every byte of every row counts; where some are lost, names and directories
//! are compared as the versions show them that both know for sure, and rows that only a lost catalog can explain are
//! passed over, never reported. A table or directory of the index that differs is one finding.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::names::{NO_FILE, Names};
use super::shadow::{Shadow, dim_arcs, given_up, known_runs};
use super::{Cause, Check, Ground, Hit, Subject};
use crate::catalog::Child;
use crate::error::Result;
use crate::ids::{ArcSerial, BlockId, Dirno, Logid, Version};
use crate::index::{ArcValue, Ascent, DirValue, RowKey, ScanRow, ScanTable, Scanned, Snapshot, Span};
use crate::text::shown;

/// True if some directory's listing is or was lost by the index.
pub fn any_lost(rows: &Snapshot<'_>) -> bool {
    rows.cursor(ScanTable::Lost).take().is_some()
}

struct Comparison<'c, 's, 'i> {
    check: &'c Check<'c>,
    ground: &'c Ground<'s, 'i>,
    names: Names<'s, 'i>,
    shadow: &'s Snapshot<'s>,
    /// The shadow lacks what a damaged catalog or commit told.
    shadow_gaps: bool,
    /// The index lacks what a recovery gave up.
    index_gaps: bool,
    /// Runs that both know.
    both: BTreeSet<Version>,
    applied: BTreeSet<Version>,
    given_up: BTreeSet<Version>,
    /// Arcs whose frame table the shadow does not have.
    dim: BTreeSet<ArcSerial>,
    /// Versions at which something is lost begins or ends, on either side.
    turns: BTreeSet<Version>,
    /// The name or directory that was compared last.
    done: Option<RowKey>,
    /// Differences in the names of one directory, to be told together.
    names_differ: Option<(Dirno, Vec<Hit>, u64)>,
}

/// Compares all tables. True if both sides were whole, so that every row was compared.
pub fn compare(check: &Check<'_>, ground: &Ground<'_, '_>, shadow: &Shadow<'_>, rows: &Snapshot<'_>) -> Result<bool> {
    let known = known_runs(ground.rows);
    let state = ground.rows.state()?;
    let applied = shadow.rebuild.applied();
    let given_up = given_up(applied, &known, state.settled_below);
    let mut comparison = Comparison {
        check,
        ground,
        names: ground.names,
        shadow: rows,
        shadow_gaps: !shadow.rebuild.lost_frames().is_empty() || known.iter().any(|run| !applied.contains(run)),
        index_gaps: ground.any_lost || !given_up.is_empty(),
        both: applied.difference(&given_up).copied().collect(),
        applied: applied.clone(),
        given_up,
        dim: dim_arcs(shadow, rows),
        turns: BTreeSet::new(),
        done: None,
        names_differ: None,
    };
    comparison.turns = comparison.lost_turns();
    comparison.counters()?;
    for table in ScanTable::ALL {
        comparison.table(table)?;
        check.step();
        comparison.tell_names(None);
    }
    Ok(!comparison.shadow_gaps && !comparison.index_gaps)
}

impl Comparison<'_, '_, '_> {
    fn exact(&self) -> bool {
        !self.shadow_gaps && !self.index_gaps
    }

    fn lost_turns(&self) -> BTreeSet<Version> {
        let mut turns = BTreeSet::new();
        for side in [self.ground.rows, self.shadow] {
            let mut cursor = side.cursor(ScanTable::Lost);
            while let Some(scanned) = cursor.take() {
                if let Scanned::Row(row) = scanned {
                    turns.insert(row.key.version());
                    turns.extend(row.lost_until(side.index()).ok().flatten());
                }
            }
        }
        turns
    }

    fn counters(&self) -> Result<()> {
        let (own, told) = (self.ground.rows.state()?, self.shadow.state()?);
        // The index passes numbers over after losses, and burns those of runs that were cut.
        let enough = own.next_serial >= told.next_serial
            && own.next_logid >= told.next_logid
            && own.next_dirno >= told.next_dirno
            && own.next_run >= told.next_run;
        let same_end = self.shadow_gaps || own.last_commit == told.last_commit;
        let same_count = !self.exact() || !self.dim.is_empty() || own.hashes == told.hashes;
        let same_versions = match self.exact() {
            true => (own.newest, own.versions) == (told.newest, told.versions),
            false => self.ground.rows.index().versions().is_ok(),
        };
        if !(enough && same_end && same_count && same_versions) {
            self.check.index_wrong(Subject::Counters, "the counters are not those that the commits give".into());
        }
        Ok(())
    }

    fn table(&mut self, table: ScanTable) -> Result<()> {
        let (mut own, mut told) = (self.ground.rows.cursor(table), self.shadow.cursor(table));
        let mut steps = 0u32;
        loop {
            steps = steps.wrapping_add(1);
            if steps.is_multiple_of(1 << 14) {
                self.check.interrupted()?;
            }
            // A hole in the index: what the shadow has there is not missing.
            if let Some(Scanned::Bad { .. }) = own.peek() {
                if let Some(Scanned::Bad { after, before, error }) = own.take() {
                    self.check.unreadable(table, &after, before.as_ref(), error, Some(&self.names));
                    while matches!(told.peek(), Some(Scanned::Row(row)) if before.as_ref().is_none_or(|end| row.key < *end))
                    {
                        told.take();
                    }
                }
                continue;
            }
            if let Some(Scanned::Bad { .. }) = told.peek() {
                if let Some(Scanned::Bad { error, .. }) = told.take() {
                    self.check.report(Subject::Shadow, error, Cause::Unchecked, Vec::new());
                }
                return Ok(());
            }
            let order = match (own.peek(), told.peek()) {
                (None, None) => return Ok(()),
                (Some(Scanned::Row(_)), None) => Ordering::Less,
                (None, Some(Scanned::Row(_))) => Ordering::Greater,
                (Some(Scanned::Row(a)), Some(Scanned::Row(b))) => a.key.cmp(&b.key),
                _ => return Ok(()),
            };
            let row = |cursor: &mut crate::index::Cursor<'_, '_>| match cursor.take() {
                Some(Scanned::Row(row)) => Some(row),
                _ => None,
            };
            let a = if order == Ordering::Greater { None } else { row(&mut own) };
            let b = if order == Ordering::Less { None } else { row(&mut told) };
            if a.as_ref().map(|row| &row.value) != b.as_ref().map(|row| &row.value) {
                self.differ(a.as_ref(), b.as_ref())?;
            }
        }
    }

    fn differ(&mut self, own: Option<&ScanRow>, told: Option<&ScanRow>) -> Result<()> {
        let Some(row) = own.or(told) else { return Ok(()) };
        let counts = match row.table {
            ScanTable::Frames => self.frames_count(own, told),
            ScanTable::Hashes => self.hashes_count(),
            _ if self.exact() => true,
            ScanTable::Versions => self.versions_count(own, told)?,
            ScanTable::Arcs => self.arcs_count(own, told),
            ScanTable::Nodes | ScanTable::Extents => self.contents_count(own, told)?,
            ScanTable::Entries => {
                let name = RowKey { second: 0, ..row.key.clone() };
                if self.done.as_ref() == Some(&name) {
                    return Ok(());
                }
                let counts = self.name_differs(Dirno(row.key.first as u64), &row.key.name)?;
                self.done = Some(name);
                counts
            }
            ScanTable::Dirs => {
                let dir = RowKey::before(row.key.dirno().0 as i64);
                if self.done.as_ref() == Some(&dir) {
                    return Ok(());
                }
                let counts = self.dir_differs(row.key.dirno())?;
                self.done = Some(dir);
                counts
            }
            ScanTable::Lost => {
                let readable = told.is_none() && self.applied.contains(&row.key.version());
                if readable {
                    let what = "directories are marked as lost that can be read now".into();
                    let hits = self.names.dir_hit(row.key.dirno(), row.key.version(), None);
                    self.check.report(Subject::GivenUp, self.check.row_error(what), Cause::Index, hits);
                }
                false
            }
            // They follow from rows that are compared, and from losses.
            ScanTable::Commits | ScanTable::Relocations | ScanTable::Removed | ScanTable::Parts => false,
        };
        if counts {
            self.tell(row, own.is_some(), told.is_some());
        }
        Ok(())
    }

    fn tell(&mut self, row: &ScanRow, own: bool, told: bool) {
        let what = match (own, told) {
            (true, true) => "is not what the catalog says",
            (true, false) => "is not in the catalog",
            _ => "is missing, the catalog has it",
        };
        let first = row.key.first as u64;
        let names = &self.names;
        let (subject, about, hits) = match row.table {
            ScanTable::Entries => return self.note_name(row),
            ScanTable::Commits | ScanTable::Versions => {
                (Subject::Version(Version(first as u32)), format!("r{first}"), Vec::new())
            }
            ScanTable::Arcs => self.about_arc(ArcSerial(first)),
            ScanTable::Frames => self.about_arc(ArcSerial(first >> 17)),
            ScanTable::Hashes => self.about_arc(row.block().arc()),
            ScanTable::Relocations => self.about_arc(BlockId(first).arc()),
            ScanTable::Nodes | ScanTable::Extents => about_file(names, Logid(first)),
            ScanTable::Dirs | ScanTable::Lost => about_dir(names, row.key.dirno()),
            ScanTable::Removed => about_dir(names, Dirno(row.key.second as u64)),
            ScanTable::Parts => match row.key.first {
                1 => (Subject::Version(Version(row.key.second as u32)), format!("r{}", row.key.second), Vec::new()),
                2 => about_file(names, Logid(row.key.second as u64)),
                _ => about_dir(names, Dirno(row.key.second as u64 >> 24)),
            },
        };
        let what = format!("{about}: a row of table {} {what}", row.table.name());
        self.check.report(subject, self.check.row_error(what), Cause::Index, hits);
    }

    fn about_arc(&self, serial: ArcSerial) -> (Subject, String, Vec<Hit>) {
        let name = self.ground.arcs.get(&serial).map(|fact| fact.name.to_string());
        (Subject::Arc(serial), name.unwrap_or_else(|| format!("arc number {}", serial.0)), Vec::new())
    }

    /// Names of one directory are told together.
    fn note_name(&mut self, row: &ScanRow) {
        let dirno = Dirno(row.key.first as u64);
        if self.names_differ.as_ref().is_none_or(|(known, ..)| *known != dirno) {
            self.tell_names(Some(dirno));
        }
        let span = match row.span(self.ground.rows.index()) {
            Ok(span) => span,
            Err(_) => Span {
                parent: dirno,
                name: row.key.name.clone(),
                from: Version(row.key.second as u32),
                to: None,
                kind: crate::catalog::Kind::File,
                child: Child::Node(NO_FILE),
                digest: None,
            },
        };
        if let Some((_, hits, count)) = &mut self.names_differ {
            *count += 1;
            if hits.len() < super::MAX_HITS {
                hits.push(self.names.span(&span));
            }
        }
    }

    fn tell_names(&mut self, next: Option<Dirno>) {
        let done = std::mem::replace(&mut self.names_differ, next.map(|dirno| (dirno, Vec::new(), 0)));
        if let Some((dirno, hits, count)) = done {
            let v = hits.first().map_or(self.names.last, |hit| hit.versions.0);
            let path = shown(&self.names.dir(v, dirno)).to_string();
            let what = format!("{path}: {count} of its names are not what the catalog says");
            self.check.report(Subject::Dir(dirno), self.check.row_error(what), Cause::Index, hits);
        }
    }

    /// A piece of a frame table that the shadow does not have proves nothing.
    fn frames_count(&self, own: Option<&ScanRow>, told: Option<&ScanRow>) -> bool {
        let Some(row) = own.or(told) else { return false };
        let serial = ArcSerial(row.key.first as u64 >> 17);
        if self.dim.contains(&serial) {
            return false;
        }
        let listed = self.ground.arcs.get(&serial).is_some_and(|fact| !fact.dropped);
        match (own, told) {
            (Some(_), None) => !self.shadow_gaps,
            (None, Some(_)) => self.exact() || listed,
            _ => true,
        }
    }

    fn hashes_count(&self) -> bool {
        // Which of several equal blocks is found depends on the arcs that were known when they were stored.
        self.exact() && self.dim.is_empty()
    }

    fn versions_count(&self, own: Option<&ScanRow>, told: Option<&ScanRow>) -> Result<bool> {
        Ok(match (own, told) {
            (Some(_), None) => false,
            (None, Some(row)) => !self.given_up.contains(&Version(row.key.first as u32)),
            (Some(own), Some(told)) => {
                let (a, b) = (self.ground.rows.open_version(own), self.shadow.open_version(told)?);
                // It may have been removed by a run that is lost.
                a.map_or(true, |a| a.0 != b.0)
            }
            _ => false,
        })
    }

    fn arcs_count(&self, own: Option<&ScanRow>, told: Option<&ScanRow>) -> bool {
        let value = |row: &ScanRow| row.arc(self.ground.rows.index()).ok();
        match (own.map(value), told.map(value)) {
            (Some(own), None) => own.is_none_or(|own| self.applied.contains(&own.run)),
            (None, Some(told)) => told.is_some_and(|told| !self.given_up.contains(&told.run)),
            (Some(Some(own)), Some(Some(told))) => ArcValue { dropped: told.dropped, ..own } != told,
            _ => true,
        }
    }

    fn contents_count(&self, own: Option<&ScanRow>, told: Option<&ScanRow>) -> Result<bool> {
        Ok(match (own, told) {
            (Some(_), None) => !self.shadow_gaps,
            (None, Some(_)) => !self.index_gaps,
            (Some(own), Some(told)) if own.table == ScanTable::Nodes => {
                let told = self.shadow.open_node(told)?.1;
                // Which version proved it unchanged, and where it was met first, depends on what could be read.
                self.ground
                    .rows
                    .open_node(own)
                    .map_or(true, |(_, own)| crate::catalog::Node { racy: told.racy, ..own } != told)
            }
            _ => true,
        })
    }

    /// Versions at which two histories may begin to differ, of those that both sides know.
    fn points(&self, changes: impl Iterator<Item = Version>) -> BTreeSet<Version> {
        let at = changes.chain(self.turns.iter().copied());
        at.filter_map(|change| self.both.range(change..).next().copied()).collect()
    }

    fn name_differs(&self, parent: Dirno, name: &[u8]) -> Result<bool> {
        let told = self.shadow.spans(parent, name)?;
        let Ok(own) = self.ground.rows.spans(parent, name) else { return Ok(true) };
        let changes = own.iter().chain(&told).flat_map(|span| [Some(span.from), span.to]).flatten();
        for v in self.points(changes) {
            let at = |spans: &[Span]| spans.iter().find(|span| span.covers(v)).map(|span| (span.kind, span.child));
            if at(&own) != at(&told) && !self.doubtful(parent, v) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn dir_differs(&self, dirno: Dirno) -> Result<bool> {
        let told = self.shadow.dir_states(dirno)?;
        let Ok(own) = self.ground.rows.dir_states(dirno) else { return Ok(true) };
        let changes = own.iter().chain(&told).map(|(v, _)| *v);
        for v in self.points(changes) {
            let at = |states: &[(Version, DirValue)]| {
                let newest = states.iter().rev().find(|(since, _)| *since <= v).map(|(_, value)| value.clone());
                newest.filter(|value| !value.gone)
            };
            if at(&own) != at(&told) && !self.doubtful(dirno, v) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The directory, or one above it, is lost in this version on one side: what is in it can't be told.
    fn doubtful(&self, dirno: Dirno, v: Version) -> bool {
        let lost = |side: &Snapshot<'_>| {
            let mut at = dirno;
            let mut ascent = Ascent::from(dirno);
            loop {
                if side.lost_since(at, v).map_or(true, |since| since.is_some()) {
                    return true;
                }
                if at == Dirno::ROOT {
                    return false;
                }
                match side.dir_at(at, v) {
                    Ok(Some((_, value))) => at = value.parent,
                    Ok(None) => return false,
                    Err(_) => return true,
                }
                if !ascent.step(at) {
                    return true;
                }
            }
        };
        lost(self.shadow) || (self.ground.any_lost && lost(self.ground.rows))
    }
}

fn about_file(names: &Names<'_, '_>, logid: Logid) -> (Subject, String, Vec<Hit>) {
    let hits = names.file(logid);
    let path = hits.first().map(|hit| shown(&hit.path).to_string());
    (Subject::File(logid), path.unwrap_or_else(|| format!("file {}", logid.0)), hits)
}

fn about_dir(names: &Names<'_, '_>, dirno: Dirno) -> (Subject, String, Vec<Hit>) {
    let hits = names.dir_anywhere(dirno);
    let path = hits.first().map(|hit| shown(&hit.path).to_string());
    (Subject::Dir(dirno), path.unwrap_or_else(|| format!("directory {}", dirno.0)), hits)
}
