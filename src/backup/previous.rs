//! The version before, as the walk sees it: directory rows, children in order, nodes.

use std::collections::{HashMap, VecDeque};

use super::pipeline::{Totals, Was};
use crate::catalog::{Attr, Child, Content, Node, Segment, Timespec};
use crate::error::{Error, Result};
use crate::ids::{Dirno, Logid, Version};
use crate::index::{DirRow, Entry, Index, Listed, Lost};

/// Entries that are fetched at once: bounds memory in directories of any size.
const PAGE: usize = 2048;

pub struct Previous<'a> {
    index: &'a Index,
    /// None for the first backup.
    version: Option<Version>,
    /// When each version was begun that has nothing in it which was in doubt for another reason than its ctime.
    started: HashMap<Version, Timespec>,
    lost: &'a Lost,
    /// The index may know files whose blocks it does not know.
    gaps: bool,
}

/// An entry of the version before.
#[derive(Debug, Clone)]
pub struct PrevChild {
    pub entry: Entry,
    /// None when its row is damaged: the entry then counts as changed.
    pub attr: Option<Attr>,
}

impl PrevChild {
    /// `st_size`, as far as it is known.
    pub fn size(&self) -> u64 {
        self.attr.as_ref().map_or(0, |attr| attr.size)
    }

    pub fn as_was(&self) -> Was {
        Was { child: self.entry.child, kind: self.entry.kind, size: self.size() }
    }
}

impl<'a> Previous<'a> {
    pub fn new(index: &'a Index, lost: &'a Lost) -> Result<Previous<'a>> {
        let versions = index.versions()?;
        // Deltas go on top of what the open intervals show, whether that version is still shown or not.
        Ok(Previous {
            index,
            lost,
            gaps: index.has_gaps()?,
            version: index.newest_ever()?.map(|row| row.version),
            started: versions
                .iter()
                .filter(|row| row.info.torn == 0 && row.info.incomplete == 0)
                .map(|row| (row.version, row.info.started))
                .collect(),
        })
    }

    pub fn version(&self) -> Version {
        self.version.unwrap_or(Version(0))
    }

    /// The row of a directory; None if it is new, or lost.
    pub fn dir(&self, dirno: Dirno) -> Result<Option<DirRow>> {
        let Some(version) = self.version else { return Ok(None) };
        match self.index.dir(version, dirno) {
            Ok(row) => Ok(Some(row)),
            Err(Error::DirectoryLost { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub fn node(&self, logid: Logid) -> Result<Node> {
        self.index.node(logid)
    }

    /// True when content of the file is lost, or its blocks are not known (or nobody can tell): to be
    /// whole again in the next version it must be read, and stored anew, even if it did not change.
    pub fn has_lost_content(&self, logid: Logid) -> bool {
        (self.gaps || !self.lost.is_empty()) && self.node(logid).and_then(|node| self.any_lost(&node)).unwrap_or(true)
    }

    fn any_lost(&self, node: &Node) -> Result<bool> {
        let mut lost = false;
        self.each_part(node, |segments| {
            for segment in segments {
                if let Segment::Data { block, .. } = segment {
                    lost |= self.lost.holds(self.index.location(*block)?);
                }
            }
            Ok(())
        })?;
        Ok(lost)
    }

    /// # Errors
    /// `EXTENTS_LOST` where it is not known which blocks the file is made of.
    pub fn knows_blocks(&self, node: &Node) -> Result<()> {
        self.each_part(node, |_| Ok(()))
    }

    fn each_part(&self, node: &Node, mut each: impl FnMut(&[Segment]) -> Result<()>) -> Result<()> {
        if let Content::Inline(segments) = &node.content {
            return each(segments);
        }
        let mut offset = 0;
        while offset < node.attr.size {
            let chunk = self.index.extents_at(node.logid, offset)?;
            each(&chunk.segments)?;
            offset = chunk.end();
        }
        Ok(())
    }

    /// True unless the ctime proves that the node can't carry the racy flag, without looking at the node.
    pub fn may_be_racy(&self, attr: &Attr, since: Version) -> bool {
        self.started.get(&since).is_none_or(|started| attr.ctime.sec + 3 >= started.sec)
    }

    /// The children of a directory (none for None). True when its listing is lost: then those that are known.
    pub fn children(&self, dirno: Option<Dirno>) -> Result<(Children<'a>, bool)> {
        let from = self.version.zip(dirno);
        let mut children = Children { index: self.index, from, page: VecDeque::new(), last: None };
        match children.fetch() {
            Ok(()) => Ok((children, false)),
            Err(Error::DirectoryLost { .. }) => {
                let known = match children.from.take() {
                    Some((version, dirno)) => self.index.known_children(version, dirno)?,
                    None => Vec::new(),
                };
                children.add(known);
                Ok((children, true))
            }
            Err(e) => Err(e),
        }
    }

    /// What is known of the version: less than its record counts where listings are lost.
    pub fn known(&self) -> Result<Totals> {
        // The root is nobody's entry.
        let mut totals = Totals { dirs: 1, ..Totals::default() };
        let (mut children, _) = self.children(Some(Dirno::ROOT))?;
        while let Some(child) = children.take()? {
            self.count(&child, &mut totals)?;
        }
        Ok(totals)
    }

    /// What an entry, with all below it, counts.
    pub fn totals(&self, child: &PrevChild) -> Result<Totals> {
        let mut totals = Totals::default();
        self.count(child, &mut totals)?;
        Ok(totals)
    }

    fn count(&self, child: &PrevChild, totals: &mut Totals) -> Result<()> {
        totals.add(child.entry.kind, child.size());
        if let Child::Dir(dirno) = child.entry.child {
            let (mut children, _) = self.children(Some(dirno))?;
            while let Some(child) = children.take()? {
                self.count(&child, totals)?;
            }
        }
        Ok(())
    }
}

/// The children of one directory, in byte order of their names.
pub struct Children<'a> {
    index: &'a Index,
    from: Option<(Version, Dirno)>,
    page: VecDeque<PrevChild>,
    last: Option<Vec<u8>>,
}

impl Children<'_> {
    fn fetch(&mut self) -> Result<()> {
        let Some((version, dirno)) = self.from else { return Ok(()) };
        let rows = self.index.children_with_attrs(version, dirno, self.last.as_deref(), PAGE)?;
        match rows.last() {
            Some(row) if rows.len() >= PAGE => self.last = Some(row.entry.name.clone()),
            _ => self.from = None,
        }
        self.add(rows);
        Ok(())
    }

    fn add(&mut self, rows: Vec<Listed>) {
        self.page.extend(
            rows.into_iter().map(|row| PrevChild { entry: row.entry, attr: row.attr.ok().map(|(attr, _)| attr) }),
        );
    }

    fn peek(&mut self) -> Result<Option<&PrevChild>> {
        if self.page.is_empty() {
            self.fetch()?;
        }
        Ok(self.page.front())
    }

    pub fn take(&mut self) -> Result<Option<PrevChild>> {
        self.peek()?;
        Ok(self.page.pop_front())
    }

    /// The next child if its name is not after `name`.
    pub fn next_up_to(&mut self, name: &[u8]) -> Result<Option<PrevChild>> {
        let due = self.peek()?.is_some_and(|child| child.entry.name.as_slice() <= name);
        Ok(if due { self.page.pop_front() } else { None })
    }
}
