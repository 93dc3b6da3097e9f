//! Paths and versions for findings: from the index, and from the shadow where the index can't tell.

use super::Hit;
use crate::catalog::Child;
use crate::error::Result;
use crate::ids::{Dirno, Logid, Version};
use crate::index::{RowKey, ScanTable, Snapshot, Span};

/// What a hit on a directory has as its logid.
pub const NO_FILE: Logid = Logid(0);
/// Directories that are looked at to name a range of rows.
const MAX_NAMED: u64 = 16;

#[derive(Clone, Copy)]
pub struct Names<'s, 'i> {
    pub rows: &'s Snapshot<'i>,
    pub shadow: Option<&'s Snapshot<'s>>,
    pub last: Version,
}

impl Names<'_, '_> {
    /// The path of a directory in a version; `?` if nobody knows it.
    pub fn dir(&self, v: Version, dirno: Dirno) -> Vec<u8> {
        let own = self.rows.index().path_of_dir(v, dirno);
        let path = own.or_else(|e| self.shadow.map_or(Err(e), |shadow| shadow.index().path_of_dir(v, dirno)));
        path.unwrap_or_else(|_| format!("(directory {})", dirno.0).into_bytes())
    }

    /// A directory that is hit from one version to another.
    pub fn dir_hit(&self, dirno: Dirno, from: Version, to: Option<Version>) -> Vec<Hit> {
        let path = self.dir(from, dirno);
        vec![Hit { logid: NO_FILE, path, versions: (from, self.end(to)), bytes: 0..0 }]
    }

    /// A directory in all versions that have it.
    pub fn dir_anywhere(&self, dirno: Dirno) -> Vec<Hit> {
        let states = |snapshot: &Snapshot<'_>| snapshot.dir_states(dirno).ok().filter(|states| !states.is_empty());
        let Some(states) = states(self.rows).or_else(|| self.shadow.and_then(states)) else { return Vec::new() };
        let from = states.first().map_or(Version(0), |(v, _)| *v);
        let to = states.last().filter(|(_, value)| value.gone).map(|(v, _)| *v);
        self.dir_hit(dirno, from, to)
    }

    pub fn span(&self, span: &Span) -> Hit {
        let mut path = self.dir(span.from, span.parent);
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(&span.name);
        let logid = match span.child {
            Child::Node(logid) => logid,
            Child::Dir(_) => NO_FILE,
        };
        Hit { logid, path, versions: (span.from, self.end(span.to)), bytes: 0..0 }
    }

    /// The names of a file state where it was first linked.
    pub fn file(&self, logid: Logid) -> Vec<Hit> {
        let look = |snapshot: &Snapshot<'_>| -> Result<Vec<Span>> {
            match snapshot.first_link(logid)? {
                Some(dir) => snapshot.spans_of(dir, Child::Node(logid)),
                None => Ok(Vec::new()),
            }
        };
        let mut spans = look(self.rows).unwrap_or_default();
        if spans.is_empty() {
            spans = self.shadow.map_or_else(Vec::new, |shadow| look(shadow).unwrap_or_default());
        }
        spans.iter().map(|span| self.span(span)).collect()
    }

    /// The directories whose rows lie in a range that can't be read.
    pub fn of_range(&self, table: ScanTable, after: &RowKey, before: Option<&RowKey>) -> Vec<Hit> {
        let dirno = |key: &RowKey| match table {
            ScanTable::Entries => Some(key.first.max(0) as u64),
            ScanTable::Dirs | ScanTable::Lost => Some(key.dirno().0),
            _ => None,
        };
        let (Some(first), Some(before)) = (dirno(after), before.or(Some(after))) else { return Vec::new() };
        let first = if after.first == i64::MIN { 0 } else { first };
        let last = dirno(before).unwrap_or(first).max(first);
        (first..=last).take(MAX_NAMED as usize).flat_map(|dirno| self.dir_anywhere(Dirno(dirno))).collect()
    }

    /// The last version before `to`.
    pub fn end(&self, to: Option<Version>) -> Version {
        to.map_or(self.last, |to| Version(to.0.saturating_sub(1)))
    }
}
