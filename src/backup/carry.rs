//! What the walk does not look at: entries of the version before that stay as they are, or go.
//!
//! Invariants: what stays, stays with all below it, in a base listed anew, as far as it is known, and told where it is not;
//! what goes leaves behind what an earlier run was given by name.

use super::catalog::Names;
use super::pipeline::Step;
use super::previous::PrevChild;
use super::traverse::{Fate, Kept, Level, Traverse};
use crate::catalog::{Attr, Child, Xattrs};
use crate::error::{Error, Result};
use crate::ids::Dirno;
use crate::index::DirRow;
use crate::live::Paths;

impl Traverse<'_> {
    /// An entry of the version before at which this run does not look. `paths` are those at and below it.
    pub(super) fn unseen(
        &mut self,
        level: &mut Level,
        entry: PrevChild,
        fate: Fate,
        paths: Option<&Paths>,
        path: &mut Vec<u8>,
    ) -> Result<()> {
        match paths.filter(|_| fate != Fate::Gone) {
            Some(paths) if fate == Fate::Stays || paths.kept => {
                paths.list_kept(path, &mut self.left_out.kept_paths);
                self.carry_over(level, entry, path)
            }
            Some(paths) if paths.leads_to_kept() => match entry.entry.child {
                Child::Dir(dirno) => match self.previous.dir(dirno)? {
                    Some(row) => {
                        let state = (row.state.attr.clone(), row.state.xattrs.clone());
                        self.only_kept(dirno, row.parent, entry.entry.name, Some(row), Some(paths), path, state)
                    }
                    None => self.remove(entry),
                },
                Child::Node(_) => self.remove(entry),
            },
            _ if fate == Fate::Stays => self.carry_over(level, entry, path),
            _ => self.remove(entry),
        }
    }

    /// A directory of which nothing is saved but what earlier runs were given.
    #[expect(clippy::too_many_arguments, reason = "a directory has that many parts")]
    pub(super) fn only_kept(
        &mut self,
        dirno: Dirno,
        parent: Dirno,
        name: Vec<u8>,
        was: Option<DirRow>,
        paths: Option<&Paths>,
        path: &mut Vec<u8>,
        (attr, xattrs): (Attr, Xattrs),
    ) -> Result<()> {
        let (mut before, lost) = self.previous.children(was.as_ref().map(|row| row.dirno))?;
        let names = if self.base || lost || was.is_none() { Names::All } else { Names::Changed };
        self.enter(dirno, parent, name, was, names)?;
        let mut level = Level { names, kept: Kept::default() };
        while let Some(entry) = before.take()? {
            let length = path.len();
            path.push(b'/');
            path.extend_from_slice(&entry.entry.name);
            let paths = paths.and_then(|paths| paths.child(&entry.entry.name));
            self.unseen(&mut level, entry, Fate::Goes, paths, path)?;
            path.truncate(length);
        }
        self.leave(attr, xattrs, level.kept)
    }

    pub(super) fn remove(&mut self, gone: PrevChild) -> Result<()> {
        let totals = self.previous.totals(&gone)?;
        self.send(Step::Remove { name: gone.entry.name, totals })
    }

    /// An entry stays as it is; in a base with all below it.
    fn carry_over(&mut self, level: &mut Level, entry: PrevChild, path: &mut Vec<u8>) -> Result<()> {
        if level.names == Names::Changed {
            level.kept.add(entry.entry.kind, entry.size());
            return Ok(());
        }
        self.carry_over_listed(entry, path)
    }

    fn carry_over_listed(&mut self, entry: PrevChild, path: &mut Vec<u8>) -> Result<()> {
        if self.monitor.interrupted() {
            return Err(Error::Interrupted);
        }
        match entry.entry.child {
            Child::Node(logid) => {
                let node = Box::new(self.previous.node(logid)?);
                match self.previous.knows_blocks(&node) {
                    Err(error @ Error::ExtentsLost { .. }) => self.send(Step::Failed { path: path.clone(), error })?,
                    known => known?,
                }
                self.send(Step::Keep { name: entry.entry.name, node })
            }
            Child::Dir(dirno) => match self.previous.dir(dirno)? {
                Some(row) => self.carry_over_dir(row, entry.entry.name, path),
                // There is nothing to list; versions before have what is known below it.
                None => {
                    let error = Error::DirectoryLost { dirno, version: self.previous.version() };
                    self.send(Step::Failed { path: path.clone(), error })?;
                    self.remove(entry)
                }
            },
        }
    }

    fn carry_over_dir(&mut self, row: DirRow, name: Vec<u8>, path: &mut Vec<u8>) -> Result<()> {
        let (dirno, parent, state) = (row.dirno, row.parent, row.state.clone());
        let (mut children, lost) = self.previous.children(Some(dirno))?;
        self.enter(dirno, parent, name, Some(row), if lost { Names::Known } else { Names::All })?;
        while let Some(entry) = children.take()? {
            let length = path.len();
            path.push(b'/');
            path.extend_from_slice(&entry.entry.name);
            self.carry_over_listed(entry, path)?;
            path.truncate(length);
        }
        self.send(Step::LeaveKept { state })
    }
}
