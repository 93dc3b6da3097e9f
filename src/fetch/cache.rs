//! Frames that were fetched from far, sealed as they came, on a disk of this machine: who reads them again asks nobody.
//!
//! A sparse file an arc, named by the arc's id, frames at their own offsets; no index, no lock, no fsync. A frame is there
//! if it opens.
//!
//! Invariants: only what was opened is admitted (`Proven`); what does not open here is a miss, and says nothing of any copy;
//! what is found here proves no copy. Allocated bytes stay within the bound, and a sixteenth of it more for each further
//! process that writes; arcs that were read longest ago go first. What goes wrong here fails no read.

use std::cmp::Reverse;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use super::{Frame, Proven, with_buffer};
use crate::arc::VerifiedFrame;
use crate::catalog::{Kind, Timespec};
use crate::error::{Error, Result};
use crate::ids::ArcId;
use crate::os::dir::Write;
use crate::os::file::{data_ranges_in, read_up_to};
use crate::own::OwnDir;
use crate::sync::lock;
use crate::text::hex;

const DIR: &str = "frames";
/// How old the mtime of a file gets that is read: by it all processes see which were read last.
const TOUCH_EVERY: Duration = Duration::from_secs(10);
/// What was written since all of it was last measured is at most this part of the bound.
const STEPS: u64 = 16;
/// A frame may lie in two blocks of the file system that it does not fill.
const EDGES_BYTES: u64 = 2 * 4096;
/// How long nothing is kept after that has failed.
const REST: Duration = Duration::from_secs(60);

/// What was found here so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hits {
    pub frames: u64,
    pub bytes: u64,
}

/// The frames that were kept, of all arcs.
pub struct FrameCache {
    dir: OwnDir,
    /// Allocated bytes; none: what is there is read, and nothing is kept.
    max_bytes: Option<u64>,
    /// Bytes that may be written before all of it is measured again.
    room: Mutex<u64>,
    rest: Mutex<Rest>,
    frames: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Default)]
struct Rest {
    until: Option<Instant>,
    is_told: bool,
}

impl fmt::Debug for FrameCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FrameCache").field(&self.dir).finish()
    }
}

impl FrameCache {
    /// The cache in a directory of ours, made if need be, of so many bytes.
    ///
    /// # Errors
    /// `DIR_SHARED`, `FILE_FOREIGN` where it is not ours alone; `IO`.
    pub fn open(dir: &OwnDir, max_bytes: u64) -> Result<FrameCache> {
        Ok(FrameCache::of(dir.sub_made(DIR, 0o700)?, Some(max_bytes)))
    }

    /// As `open`, to read what is there and keep nothing; none where nothing is.
    pub fn found(dir: &OwnDir) -> Result<Option<FrameCache>> {
        Ok(dir.sub(DIR)?.map(|dir| FrameCache::of(dir, None)))
    }

    fn of(dir: OwnDir, max_bytes: Option<u64>) -> FrameCache {
        FrameCache {
            dir,
            max_bytes,
            room: Mutex::default(),
            rest: Mutex::default(),
            frames: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    pub fn hits(&self) -> Hits {
        Hits { frames: self.frames.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }

    /// A frame, if it is here.
    pub fn find(&self, frame: &Frame<'_>) -> Option<VerifiedFrame> {
        let file = self.file_with(frame)?;
        let read = |buffer: &mut [u8]| read_up_to(&file, buffer, frame.offset);
        let opened = with_buffer(frame.info.frame_len(), read, |bytes| frame.judge(bytes.ok()?).ok())?;
        touch(&file);
        self.frames.fetch_add(1, Relaxed);
        self.bytes.fetch_add(frame.info.frame_len(), Relaxed);
        Some(opened)
    }

    /// Whether a frame is here, as far as can be told without reading it.
    pub fn may_have(&self, frame: &Frame<'_>) -> bool {
        self.file_with(frame).is_some()
    }

    /// The file of the frame's arc, if it has no hole there; it may be torn all the same.
    fn file_with(&self, frame: &Frame<'_>) -> Option<File> {
        let place = frame.offset..frame.offset.checked_add(frame.info.frame_len())?;
        let file = self.dir.rewrite(name(frame.cipher.arc_id())).ok()?;
        let first = data_ranges_in(&file, place.clone()).next()?.ok()?;
        (first == place).then_some(file)
    }

    /// Keeps a frame.
    pub fn admit(&self, proven: &Proven<'_>) {
        let Some(max_bytes) = self.max_bytes else { return };
        if lock(&self.rest).until.is_some_and(|until| until > Instant::now()) {
            return;
        }
        match self.write(proven, max_bytes) {
            Ok(()) => {
                let mut rest = lock(&self.rest);
                if rest.until.is_some() {
                    *rest = Rest::default();
                }
            }
            Err(error) => {
                let mut rest = lock(&self.rest);
                rest.until = Some(Instant::now() + REST);
                // Once, until it is well again.
                if !std::mem::replace(&mut rest.is_told, true) {
                    let code = error.code();
                    log::warn!(
                        "what is fetched is not kept for the next time, until that is possible again: {code}: {error}"
                    );
                }
            }
        }
    }

    fn write(&self, proven: &Proven<'_>, max_bytes: u64) -> Result<()> {
        let wanted = proven.sealed().len() as u64 + EDGES_BYTES;
        if wanted > max_bytes {
            return Ok(());
        }
        self.make_room(wanted, max_bytes)?;
        let name = name(proven.arc());
        let file = self.dir.write(&name, 0o600, Write::Over)?;
        let written = file.write_all_at(proven.sealed(), proven.offset());
        written.map_err(|error| Error::io("write", self.dir.path_of(name), &error))
    }

    /// Takes room for so many bytes; arcs that were read longest ago go for them.
    fn make_room(&self, wanted: u64, max_bytes: u64) -> Result<()> {
        let mut room = lock(&self.room);
        if *room < wanted {
            let step = (max_bytes / STEPS).max(wanted);
            let mut files = self.all()?;
            let mut used: u64 = files.iter().map(|(.., bytes)| bytes).sum();
            files.sort_unstable_by_key(|(last_read, ..)| Reverse((last_read.sec, last_read.nsec)));
            while used + step > max_bytes {
                let Some((_, name, bytes)) = files.pop() else { break };
                self.dir.remove_if_there(&name)?;
                used = used.saturating_sub(bytes);
            }
            *room = step;
        }
        *room -= wanted;
        Ok(())
    }

    /// All files: when they were last read, their names, and allocated bytes.
    fn all(&self) -> Result<Vec<(Timespec, String, u64)>> {
        let mut files = Vec::new();
        for name in self.dir.names()? {
            let Some(name) = String::from_utf8(name).ok().filter(|name| is_name(name)) else { continue };
            // One that has gone meanwhile has none.
            if let Some(found) = self.dir.stat(&name)?.filter(|found| found.kind == Kind::File) {
                files.push((found.mtime, name, found.blocks * 512));
            }
        }
        Ok(files)
    }
}

/// Notes that a file was read.
fn touch(file: &File) {
    let now = SystemTime::now();
    let noted = file.metadata().and_then(|found| found.modified());
    if noted.is_ok_and(|noted| now.duration_since(noted).is_ok_and(|age| age > TOUCH_EVERY)) {
        // Where it can't be noted, the file goes sooner.
        let _ = file.set_modified(now);
    }
}

fn name(arc: ArcId) -> String {
    hex(&arc.0)
}

fn is_name(name: &str) -> bool {
    name.len() == 2 * size_of::<ArcId>() && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests;
