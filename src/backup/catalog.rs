//! Builds the catalog of a version: entries come in tree order, frames of whole directories go out.
//!
//! Invariants: a frame holds whole directories, or one part of a very long one, so a lost frame costs only the
//! directories that its entry in the commit record names; memory holds at most one part per open directory.

use super::output::Output;
use crate::catalog::codec::encode_record;
use crate::catalog::{CatalogFrame, Child, DirState, ExtentChunk, Kind, Listing, Node, Record};
use crate::error::Result;
use crate::ids::Dirno;

/// Plain bytes after which a frame is closed: small, because a lost frame costs all directories in it.
const FRAME_BYTES: usize = 64 << 10;
/// The same; in unit tests a small tree has many frames.
const CLOSE_AT_BYTES: usize = if cfg!(test) { FRAME_BYTES / 32 } else { FRAME_BYTES };

/// A directory whose entries are still coming.
struct OpenDir {
    dirno: Dirno,
    parent: Dirno,
    name: Vec<u8>,
    /// All entries come, not only changes.
    listed: bool,
    /// State in the version before.
    was: Option<DirState>,
    records: Vec<u8>,
    parts: u32,
    children: u64,
    subdirs: u64,
}

#[derive(Default)]
pub struct CatalogBuilder {
    open: Vec<OpenDir>,
    frame: Vec<u8>,
    frame_dirs: Vec<(Dirno, u64)>,
    extents: Vec<u8>,
    frames: Vec<CatalogFrame>,
}

impl CatalogBuilder {
    pub fn enter(&mut self, dirno: Dirno, parent: Dirno, name: Vec<u8>, was: Option<DirState>, listed: bool) {
        self.open.push(OpenDir {
            dirno,
            parent,
            name,
            listed,
            was,
            records: Vec::new(),
            parts: 0,
            children: 0,
            subdirs: 0,
        });
    }

    /// An entry of the directory that is open. `changed` is false for one that is as before: it counts, and is
    /// recorded only in a full listing.
    pub fn put(
        &mut self,
        out: &mut Output,
        name: Vec<u8>,
        child: Child,
        kind: Kind,
        node: Option<&Node>,
        changed: bool,
    ) -> Result<()> {
        let Some(dir) = self.open.last_mut() else { return Ok(()) };
        dir.children += 1;
        dir.subdirs += u64::from(kind == Kind::Dir);
        if changed || dir.listed {
            encode_record(&mut dir.records, &Record::Put { name, child, kind, node: node.cloned().map(Box::new) });
        }
        self.flush_long_dir(out)
    }

    pub fn remove(&mut self, out: &mut Output, name: Vec<u8>) -> Result<()> {
        // A full listing removes by silence.
        if let Some(dir) = self.open.last_mut().filter(|dir| !dir.listed) {
            encode_record(&mut dir.records, &Record::Remove { name });
        }
        self.flush_long_dir(out)
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

    /// The open directory is listed in full.
    pub fn is_listed(&self) -> bool {
        self.open.last().is_some_and(|dir| dir.listed)
    }

    /// Entries and subdirectories of the open directory so far.
    pub fn counts(&self) -> (u64, u64) {
        self.open.last().map_or((0, 0), |dir| (dir.children, dir.subdirs))
    }

    /// Ends the open directory. Returns whether anything of it was recorded.
    pub fn leave(&mut self, out: &mut Output, state: DirState) -> Result<bool> {
        let Some(dir) = self.open.pop() else { return Ok(false) };
        let same_state = dir.was.as_ref() == Some(&state);
        if same_state && dir.records.is_empty() && dir.parts == 0 && !dir.listed {
            return Ok(false);
        }
        self.part(out, &dir, if same_state && !dir.listed { None } else { Some(state) })?;
        Ok(true)
    }

    fn flush_long_dir(&mut self, out: &mut Output) -> Result<()> {
        let Some(mut dir) = self.open.pop_if(|dir| dir.records.len() >= CLOSE_AT_BYTES) else { return Ok(()) };
        self.part(out, &dir, None)?;
        dir.records.clear();
        dir.parts += 1;
        self.open.push(dir);
        Ok(())
    }

    fn part(&mut self, out: &mut Output, dir: &OpenDir, state: Option<DirState>) -> Result<()> {
        let listing = match (dir.listed, dir.parts) {
            (false, _) => Listing::Delta,
            (true, 0) => Listing::Full,
            (true, _) => Listing::FullMore,
        };
        if !self.frame.is_empty() && self.frame.len() + dir.records.len() >= CLOSE_AT_BYTES {
            self.flush_dirs(out)?;
        }
        let head = Record::Dir { dirno: dir.dirno, parent: dir.parent, name: dir.name.clone(), listing, state };
        encode_record(&mut self.frame, &head);
        self.frame.extend_from_slice(&dir.records);
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

    /// Writes what is left and returns the frames for the commit record.
    pub fn finish(mut self, out: &mut Output) -> Result<Vec<CatalogFrame>> {
        self.flush_extents(out)?;
        self.flush_dirs(out)?;
        Ok(self.frames)
    }
}
