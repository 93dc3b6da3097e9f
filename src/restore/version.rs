//! A version of a backup dir as the source of a restore: the tree and the store of verified blocks.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::{Names, Source, Totals};
use crate::arc::VerifiedBlock;
use crate::catalog::{Child, DirState, Node};
use crate::error::{Error, Result};
use crate::ids::{BlockId, Dirno, Logid, Version};
use crate::index::VersionRow;
use crate::ledger::Extent;
use crate::reader::walk::{Met, Walk};
use crate::reader::{Backup, Blocks};
use crate::tree::{Found, Piece};

/// Names fetched by one query.
const PAGE: usize = 512;

pub struct VersionSource<'a> {
    backup: &'a Backup,
    version: Version,
}

impl VersionSource<'_> {
    pub fn new(backup: &Backup, version: Version) -> VersionSource<'_> {
        VersionSource { backup, version }
    }
}

/// Refuses `--delete` for a path of `version` that may lack what a backup could not read: as rsync does, which
/// deletes nothing after an I/O error.
///
/// A run that was given other paths only took this one over, so the runs before it are asked too.
pub fn refuse_delete(versions: &[VersionRow], version: Version, path: &[u8]) -> Result<()> {
    let asked = Path::new(OsStr::from_bytes(path));
    for row in versions.iter().rev().filter(|row| row.version <= version) {
        let saved = || row.info.paths.iter().map(|saved| Path::new(OsStr::from_bytes(saved)));
        let whole = saved().any(|saved| asked.starts_with(saved));
        if row.info.errors > 0 && (whole || saved().any(|saved| saved.starts_with(asked))) {
            let (run, errors) = (row.version, row.info.errors);
            return Err(Error::DeleteUnsafe { path: path.to_vec(), version, run, errors });
        }
        if whole {
            break;
        }
    }
    Ok(())
}

impl Blocks for VersionSource<'_> {
    fn pieces(&self, node: &Node, offset: u64, len: u64) -> Result<Vec<Piece>> {
        self.backup.pieces(node, offset, len)
    }

    fn next_data(&self, node: &Node, offset: u64) -> Result<Option<u64>> {
        self.backup.next_data(node, offset)
    }

    fn block(&self, block: BlockId, len_bytes: u32, file: Logid) -> Result<VerifiedBlock> {
        self.backup.block(block, len_bytes, file)
    }

    fn prefetch(&self, pieces: &[Piece], file: Option<Logid>) {
        self.backup.prefetch(pieces, file);
    }
}

impl Source for VersionSource<'_> {
    fn find(&self, path: &[u8]) -> Result<Child> {
        Ok(match self.backup.tree.find(self.version, path)? {
            Found::Dir(dirno) => Child::Dir(dirno),
            Found::Node(logid, _) => Child::Node(logid),
        })
    }

    fn dir(&self, dir: Dirno) -> Result<DirState> {
        Ok(self.backup.tree.dir(self.version, dir)?.state)
    }

    fn names(&self, dir: Dirno) -> Names {
        let mut names = Names::default();
        let read_all = |names: &mut Names| {
            let mut listing = self.backup.tree.list(self.version, dir)?;
            loop {
                let page = listing.next_page(&self.backup.tree)?;
                if page.is_empty() {
                    return Ok(());
                }
                names.entries.extend(page.into_iter().map(|listed| (listed.entry.name, listed.entry.child)));
            }
        };
        names.incomplete = read_all(&mut names).err();
        if names.incomplete.is_some() {
            // The list is known to be wrong; the entries that can be told are restored all the same.
            loop {
                let after = names.entries.last().map(|(name, _)| name.as_slice());
                let Ok(page) = self.backup.tree.index().children(self.version, dir, after, PAGE) else { break };
                let ended = page.len() < PAGE;
                names.entries.extend(page.into_iter().map(|entry| (entry.name, entry.child)));
                if ended {
                    break;
                }
            }
        }
        names
    }

    fn node(&self, logid: Logid) -> Result<Arc<Node>> {
        self.backup.tree.node(logid)
    }

    fn is_block(&self, block: BlockId, bytes: &[u8]) -> Result<bool> {
        self.backup.store.is_block(block, bytes)
    }

    fn totals(&self, child: Child, stop: &dyn Fn() -> bool) -> Totals {
        let mut totals = Totals { entries: 1, ..Totals::default() };
        let tree = &self.backup.tree;
        match child {
            Child::Node(logid) => {
                if let Ok((attr, _)) = tree.attr(logid) {
                    totals.add_file(attr.kind, attr.size);
                }
            }
            Child::Dir(dirno) => {
                let walk = Walk { tree, version: self.version, since: None, stop };
                // What can't be listed is told when it is restored, and whoever stops it knows.
                let _ = walk.below(dirno, b"", &mut |_, met| {
                    let Met::Entry(listed) = met else { return Ok(()) };
                    totals.entries += 1;
                    if let (Child::Node(_), Ok((attr, _))) = (listed.entry.child, &listed.attr) {
                        totals.add_file(attr.kind, attr.size);
                    }
                    Ok(())
                });
            }
        }
        totals
    }

    fn file_read(&self, file: Logid, extent: Extent) {
        if let Some(ledger) = self.backup.store.ledger() {
            ledger.file(file, extent);
            // It has said so itself, and the restore does not depend on it.
            let _ = ledger.flush_if_due();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::VersionInfo;

    #[test]
    fn delete_is_refused_where_a_run_may_have_missed_something() {
        // Runs as (paths, errors), the version asked, the path, and the run that is to blame.
        type Run<'a> = (&'a [&'a str], u64);
        let blamed = |runs: &[Run<'_>], version: u32, path: &str| {
            let row = |(number, (paths, errors)): (usize, &Run<'_>)| VersionRow {
                version: Version(number as u32),
                info: VersionInfo {
                    paths: paths.iter().map(|path| path.as_bytes().to_vec()).collect(),
                    errors: *errors,
                    ..VersionInfo::default()
                },
                base: false,
                root: crate::index::Root { digest: crate::ids::TreeDigest([0; 32]), set_by: Version(0) },
            };
            let rows: Vec<VersionRow> = runs.iter().enumerate().map(row).collect();
            match refuse_delete(&rows, Version(version), path.as_bytes()) {
                Ok(()) => None,
                Err(Error::DeleteUnsafe { run, .. }) => Some(run.0),
                Err(other) => panic!("{other}"),
            }
        };
        let runs: &[Run<'_>] = &[(&["/a"], 1), (&["/b"], 0), (&["/a/x"], 0), (&["/a"], 0), (&["/b"], 2)];
        assert_eq!(blamed(runs, 0, "/a"), Some(0));
        assert_eq!(blamed(runs, 1, "/a/x/deep"), Some(0), "taken over");
        assert_eq!(blamed(runs, 2, "/a"), Some(0), "saved again only in part");
        assert_eq!(blamed(runs, 2, "/a/x/deep"), None);
        assert_eq!(blamed(runs, 2, "/b"), None);
        assert_eq!(blamed(runs, 3, "/a"), None, "read whole since");
        assert_eq!(blamed(runs, 4, "/a"), None, "errors elsewhere");
        assert_eq!(blamed(runs, 4, "/"), Some(4));
        assert_eq!(blamed(runs, 4, "/bb"), None);
    }
}
