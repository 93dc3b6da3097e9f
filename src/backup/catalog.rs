//! Builds the catalog of a version: entries come in tree order, frames of whole directories go out.
//!
//! Invariants: a frame holds whole directories, or one part of a very long one, so a lost frame costs only the
//! listings that its entry in the commit record names; the parts of a directory follow each other; each directory is
//! told a second time, without its names, in another frame, so that what lies below a lost listing is still reached.

use crate::catalog::codec::encode_record;
use crate::catalog::digest::{self, ItemDigest, Known};
use crate::catalog::{Attr, CatalogFrame, DirState, ExtentChunk, Kind, Listing, Named, Node, Record, Xattrs};
use crate::error::{Error, Result};
use crate::ids::{Dirno, ListingDigest, TreeDigest, Version};
use crate::index::{Change, Index};
use crate::live;
use crate::run::output::Output;
use crate::run::records::CLOSE_AT_BYTES;

/// Which of a directory's names come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Those that changed.
    Changed,
    All,
    /// Those that are known, while others are lost.
    Known,
}

/// A directory whose entries are still coming.
struct OpenDir {
    dirno: Dirno,
    parent: Dirno,
    name: Vec<u8>,
    names: Names,
    /// State in the version before.
    was: Option<DirState>,
    /// Its names, cut where a frame will end.
    parts: Vec<Vec<u8>>,
    /// The same, by their digests: only those that are others than before, or all.
    changes: Vec<Change>,
    children: u64,
    subdirs: u64,
    /// It, or something below, is not as it was, be it that only less of it is known.
    differs: bool,
}

impl OpenDir {
    fn head(&self, listing: Listing, state: Option<DirState>) -> Record {
        Record::Dir { dirno: self.dirno, parent: self.parent, name: self.name.clone(), listing, state }
    }

    fn change(&mut self, name: Vec<u8>, item: Option<(Kind, ItemDigest)>) {
        // A file takes the place of a directory: first that goes, then this comes.
        if let Some((last, is)) = self.changes.last_mut().filter(|(last, _)| *last == name) {
            (*last, *is) = (name, item);
            return;
        }
        self.changes.push((name, item));
    }

    /// Where the next record goes.
    #[expect(clippy::indexing_slicing, reason = "there is a last part")]
    fn records(&mut self) -> &mut Vec<u8> {
        if self.parts.last().is_none_or(|part| part.len() >= CLOSE_AT_BYTES) {
            self.parts.push(Vec::new());
        }
        let last = self.parts.len() - 1;
        &mut self.parts[last]
    }
}

pub struct CatalogBuilder<'a> {
    /// What the version before is in.
    before: Option<(&'a Index, Version)>,
    root: Option<TreeDigest>,
    open: Vec<OpenDir>,
    frame: Vec<u8>,
    frame_dirs: Vec<(Dirno, u64)>,
    extents: Vec<u8>,
    /// Directories told again.
    again: Vec<u8>,
    frames: Vec<CatalogFrame>,
}

impl<'a> CatalogBuilder<'a> {
    pub fn new(before: Option<(&'a Index, Version)>) -> CatalogBuilder<'a> {
        CatalogBuilder {
            before,
            root: None,
            open: Vec::new(),
            frame: Vec::new(),
            frame_dirs: Vec::new(),
            extents: Vec::new(),
            again: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// A directory in the one that is open. `known`: the version before has it.
    pub fn enter(
        &mut self,
        dirno: Dirno,
        parent: Dirno,
        name: Vec<u8>,
        was: Option<DirState>,
        names: Names,
        known: bool,
    ) {
        if let Some(dir) = self.open.last_mut() {
            dir.children += 1;
            dir.subdirs += 1;
            if !known || dir.names != Names::Changed {
                encode_record(dir.records(), &Record::Put { name: name.clone(), item: Named::Dir(dirno) });
            }
        }
        let (parts, changes) = (Vec::new(), Vec::new());
        self.open.push(OpenDir {
            dirno,
            parent,
            name,
            names,
            was,
            parts,
            changes,
            children: 0,
            subdirs: 0,
            differs: false,
        });
    }

    /// A file of the directory that is open. `changed` is false for one that is as before: it counts, and is
    /// recorded only in a full listing.
    pub fn put(&mut self, name: Vec<u8>, node: &Node, changed: bool) {
        let Some(dir) = self.open.last_mut() else { return };
        dir.children += 1;
        if changed || dir.names != Names::Changed {
            dir.change(name.clone(), Some((node.attr.kind, ItemDigest::Node(digest::node(node)))));
            encode_record(dir.records(), &Record::Put { name, item: Named::Node(Box::new(node.clone())) });
        }
    }

    pub fn remove(&mut self, name: Vec<u8>) {
        let Some(dir) = self.open.last_mut() else { return };
        dir.differs = true;
        // A full listing removes by silence.
        if dir.names != Names::All {
            dir.change(name.clone(), None);
            encode_record(dir.records(), &Record::Remove { name });
        }
    }

    pub fn extents(&mut self, out: &mut Output, chunk: ExtentChunk) -> Result<()> {
        encode_record(&mut self.extents, &Record::Extents(chunk));
        if self.extents.len() >= CLOSE_AT_BYTES { self.flush_extents(out) } else { Ok(()) }
    }

    /// Counts entries that were not put because they are as before.
    pub fn kept(&mut self, entries: u64, dirs: u64) {
        if let Some(dir) = self.open.last_mut() {
            dir.children += entries;
            dir.subdirs += dirs;
        }
    }

    /// Not only changes of the open directory are recorded.
    pub fn is_listed(&self) -> bool {
        self.open.last().is_some_and(|dir| dir.names != Names::Changed)
    }

    /// Subdirectories of the open directory so far.
    pub fn subdirs(&self) -> u64 {
        self.open.last().map_or(0, |dir| dir.subdirs)
    }

    /// Ends the open directory, which has these attributes.
    ///
    /// # Errors
    /// `TREE_MISMATCH` if what the index says of the version before is not what that version's digests say.
    pub fn leave(&mut self, out: &mut Output, attr: Attr, xattrs: Xattrs) -> Result<()> {
        let Some(mut dir) = self.open.pop() else { return Ok(()) };
        let (listing, children) = (self.listing(&mut dir)?, dir.children);
        self.end(out, dir, DirState { attr, xattrs, children, listing })
    }

    /// Ends the open directory, which was not looked at: `state` is the one that it has.
    ///
    /// # Errors
    /// As `leave`.
    pub fn leave_kept(&mut self, out: &mut Output, mut state: DirState) -> Result<()> {
        let Some(mut dir) = self.open.pop() else { return Ok(()) };
        let listing = self.listing(&mut dir)?;
        if dir.names == Names::All && !dir.differs && listing != state.listing {
            let version = self.before.map_or(Version(0), |(_, version)| version);
            let what = "its names are not those that were backed up".into();
            return Err(Error::TreeMismatch { version, dirno: dir.dirno, what });
        }
        if dir.names == Names::All && dir.differs {
            state.children = dir.children;
            state.attr.nlink = live::directory_nlink(state.attr.nlink, dir.subdirs);
        }
        self.end(out, dir, DirState { listing, ..state })
    }

    fn listing(&self, dir: &mut OpenDir) -> Result<ListingDigest> {
        // In the order of the walk they are sorted; nothing depends on it.
        dir.changes.sort_by(|a, b| a.0.cmp(&b.0));
        let known = if dir.names == Names::Known { Known::Some } else { Known::All };
        match (&dir.was, self.before) {
            (Some(was), Some((index, version))) if dir.names == Names::Changed => match dir.changes.as_slice() {
                [] if was.listing.is_of_all() => Ok(was.listing),
                changes => index.listing_digest(version, dir.dirno, changes),
            },
            _ => {
                let mut listing = digest::Listing::new(known);
                for (name, item) in &dir.changes {
                    item.iter().for_each(|(kind, item)| listing.add(name, *kind, item));
                }
                Ok(listing.finish())
            }
        }
    }

    fn end(&mut self, out: &mut Output, dir: OpenDir, state: DirState) -> Result<()> {
        let same_state = dir.was.as_ref() == Some(&state);
        match self.open.last_mut() {
            None => self.root = Some(digest::dir(&state)),
            Some(above) if same_state && above.names == Names::Changed => {}
            Some(above) => {
                above.differs |= !same_state;
                above.change(dir.name.clone(), Some((Kind::Dir, ItemDigest::Dir(digest::dir(&state)))));
            }
        }
        if same_state && dir.parts.is_empty() && dir.names == Names::Changed {
            return Ok(());
        }
        let told = if same_state && dir.names == Names::Changed { None } else { Some(state.clone()) };
        let (first, more) = match dir.names {
            Names::Changed => (Listing::Delta, Listing::Delta),
            Names::All => (Listing::Full, Listing::FullMore),
            Names::Known => (Listing::Lost, Listing::Delta),
        };
        let last = dir.parts.len().saturating_sub(1);
        for (n, records) in dir.parts.iter().enumerate() {
            let listing = if n == 0 { first } else { more };
            self.part(out, &dir, listing, told.clone().filter(|_| n == last), records)?;
        }
        if dir.parts.is_empty() {
            self.part(out, &dir, first, told, &[])?;
        }
        encode_record(&mut self.again, &dir.head(Listing::Delta, Some(state)));
        if self.again.len() >= CLOSE_AT_BYTES { self.flush_again(out) } else { Ok(()) }
    }

    fn part(
        &mut self,
        out: &mut Output,
        dir: &OpenDir,
        listing: Listing,
        state: Option<DirState>,
        records: &[u8],
    ) -> Result<()> {
        if !self.frame.is_empty() && self.frame.len() + records.len() >= CLOSE_AT_BYTES {
            self.flush_dirs(out)?;
        }
        encode_record(&mut self.frame, &dir.head(listing, state));
        self.frame.extend_from_slice(records);
        match self.frame_dirs.last_mut() {
            Some((first, count)) if first.0 + *count == dir.dirno.0 => *count += 1,
            _ => self.frame_dirs.push((dir.dirno, 1)),
        }
        Ok(())
    }

    fn flush_dirs(&mut self, out: &mut Output) -> Result<()> {
        let dirs = std::mem::take(&mut self.frame_dirs);
        let plain = std::mem::take(&mut self.frame);
        self.flush(out, &plain, dirs)
    }

    /// Not between two parts of a directory: those follow each other.
    fn flush_again(&mut self, out: &mut Output) -> Result<()> {
        self.flush_dirs(out)?;
        let plain = std::mem::take(&mut self.again);
        self.flush(out, &plain, Vec::new())
    }

    fn flush_extents(&mut self, out: &mut Output) -> Result<()> {
        let plain = std::mem::take(&mut self.extents);
        self.flush(out, &plain, Vec::new())
    }

    fn flush(&mut self, out: &mut Output, plain: &[u8], dirs: Vec<(Dirno, u64)>) -> Result<()> {
        if !plain.is_empty() {
            let id = out.catalog(plain)?;
            self.frames.push(CatalogFrame { arc: id.arc(), frame: id.frame(), dirs });
        }
        Ok(())
    }

    /// Writes what is left and returns the frames for the commit record, and the root directory's digest.
    pub fn finish(mut self, out: &mut Output) -> Result<(Vec<CatalogFrame>, TreeDigest)> {
        self.flush_extents(out)?;
        self.flush_again(out)?;
        let root = self.root.ok_or_else(|| Error::SelfCheck { what: "the walk did not end at the root".into() })?;
        Ok((self.frames, root))
    }
}
