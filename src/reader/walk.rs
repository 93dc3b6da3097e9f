//! The walk through a version: everything in and below a directory, or only what is not as another version has it.
//!
//! Invariants: names come in byte order, what is in a directory right behind it; one page of names is held for each
//! directory between the top and where the walk is; a directory that can't be listed costs only its own names.

use crate::catalog::Child;
use crate::error::{Error, Result};
use crate::ids::{Dirno, Version};
use crate::tree::{Listed, Listing, Tree};

/// What the walk comes to.
pub enum Met<'a> {
    Entry(&'a Listed),
    /// A directory that can't be listed, or not to its end.
    Lost(Dirno, Error),
}

/// A way to walk.
pub struct Walk<'a> {
    pub tree: &'a Tree,
    pub version: Version,
    /// Only what is not as this earlier version has it, and the directories that lead there.
    pub since: Option<Version>,
    /// Asked at each page of names; true ends it.
    pub stop: &'a dyn Fn() -> bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Top,
    All,
}

/// A directory on the way from the top to where the walk is.
struct Open {
    dirno: Dirno,
    listing: Listing,
    page: std::vec::IntoIter<Listed>,
    path_len: usize,
}

/// Gets each path with what is there. An error ends the walk.
pub type Visit<'a> = dyn FnMut(&[u8], Met<'_>) -> Result<()> + 'a;

impl Walk<'_> {
    /// Visits what is in and below the directory `top`, whose path is `path` (empty for the root).
    ///
    /// # Errors
    /// `Interrupted`, and those of `visit`.
    pub fn below(&self, top: Dirno, path: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        self.go(top, path, Depth::All, visit)
    }

    /// As `below`, but only what is in the directory itself.
    pub fn entries(&self, top: Dirno, path: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        self.go(top, path, Depth::Top, visit)
    }

    fn go(&self, top: Dirno, path: &[u8], depth: Depth, visit: &mut Visit<'_>) -> Result<()> {
        let mut path = path.to_vec();
        let mut open = Vec::new();
        self.enter(top, &path, &mut open, visit)?;
        while let Some(dir) = open.last_mut() {
            path.truncate(dir.path_len);
            let Some(listed) = dir.page.next() else {
                if (self.stop)() {
                    return Err(Error::Interrupted);
                }
                match dir.listing.next_page(self.tree) {
                    Ok(page) if !page.is_empty() => {
                        dir.page = page.into_iter();
                        continue;
                    }
                    Ok(_) => {}
                    Err(error) => visit(&path, Met::Lost(dir.dirno, error))?,
                }
                open.pop();
                continue;
            };
            path.push(b'/');
            path.extend_from_slice(&listed.entry.name);
            let fresh = self.since.is_none_or(|since| listed.entry.since > since);
            match listed.entry.child {
                Child::Node(_) if fresh => visit(&path, Met::Entry(&listed))?,
                Child::Node(_) => {}
                Child::Dir(dirno) => {
                    if fresh || self.changed(dirno, &path, visit)? {
                        visit(&path, Met::Entry(&listed))?;
                        if depth == Depth::All {
                            self.enter(dirno, &path, &mut open, visit)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn enter(&self, dirno: Dirno, path: &[u8], open: &mut Vec<Open>, visit: &mut Visit<'_>) -> Result<()> {
        match self.tree.list(self.version, dirno) {
            Ok(listing) => open.push(Open { dirno, listing, page: Vec::new().into_iter(), path_len: path.len() }),
            Err(error) => visit(path, Met::Lost(dirno, error))?,
        }
        Ok(())
    }

    /// Something in or below the directory is not as it was; where that can't be told it is looked at.
    fn changed(&self, dirno: Dirno, path: &[u8], visit: &mut Visit<'_>) -> Result<bool> {
        let Some(since) = self.since else { return Ok(true) };
        for run in since.0 + 1..=self.version.0 {
            match self.tree.index().changed_in(Version(run), dirno) {
                Ok(false) => {}
                Ok(true) => return Ok(true),
                Err(error) => {
                    visit(path, Met::Lost(dirno, error))?;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
