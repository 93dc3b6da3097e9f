//! Where a block's frame is and what bytes are there: open arc files, their ciphers, pieces of the frame table.
//!
//! Invariants: bounded numbers of open files and remembered pieces; nothing here judges bytes, `arc::frame::open`
//! does; an arc file that was replaced or put back is noticed within a second, or at once after a bad read.

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::arc::FrameInfo;
use crate::crypto::{ArcCipher, Keys};
use crate::depot::{LocalArc, StoredArc, Via};
use crate::error::{Error, Place, Result};
use crate::ids::{ArcName, ArcSerial, BlockId, FrameNo};
use crate::index::Index;
use crate::os::process::open_file_limit;
use crate::own::OwnDir;
use crate::sync::lock;

/// Arc files kept open; a quarter of the files that this process may have open, if that is less.
const MAX_OPEN_ARCS: usize = 128;
/// Pieces of frame tables kept, each up to 128 frames in 40 bytes each.
const MAX_CHUNKS: usize = 1024;
/// How long an open file is trusted to be the one under its name.
const RECHECK: Duration = Duration::from_secs(1);

/// An arc whose file is open.
pub struct OpenArc {
    pub name: ArcName,
    pub cipher: ArcCipher,
    file: LocalArc,
    /// Milliseconds on the store's clock.
    checked_ms: AtomicU64,
}

/// The place of one frame and what must be there.
#[derive(Clone)]
pub struct Located {
    pub serial: ArcSerial,
    pub no: FrameNo,
    pub offset: u64,
    pub info: FrameInfo,
}

struct Chunk {
    first: FrameNo,
    /// Offset in the arc and expectation of each frame.
    frames: Vec<(u64, FrameInfo)>,
}

impl Chunk {
    fn get(&self, no: FrameNo) -> Option<(u64, FrameInfo)> {
        self.frames.get(no.0.checked_sub(self.first.0)? as usize).copied()
    }
}

/// Name and present place of each block that was relocated.
type Moved = Vec<(BlockId, BlockId)>;

/// All arcs of one backup dir.
pub struct Arcs {
    dir: Arc<OwnDir>,
    keys: Arc<Keys>,
    index: Arc<Index>,
    open: Mutex<LruCache<ArcSerial, Arc<OpenArc>>>,
    /// By arc and frame number / 64: a piece covers at least 64 frames, so few are held under several keys.
    chunks: Mutex<LruCache<(ArcSerial, u32), Arc<Chunk>>>,
    /// Relocations of 64 neighbouring blocks; nearly always none.
    moved: Mutex<LruCache<(ArcSerial, u32), Arc<Moved>>>,
    started: Instant,
}

impl Arcs {
    pub fn new(dir: &Arc<OwnDir>, keys: Arc<Keys>, index: Arc<Index>) -> Arcs {
        let bounded = |count| NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
        Arcs {
            dir: dir.clone(),
            keys,
            index,
            open: Mutex::new(LruCache::new(bounded(MAX_OPEN_ARCS.min((open_file_limit() / 4) as usize)))),
            chunks: Mutex::new(LruCache::new(bounded(MAX_CHUNKS))),
            moved: Mutex::new(LruCache::new(bounded(MAX_CHUNKS))),
            started: Instant::now(),
        }
    }

    pub fn dir(&self) -> &OwnDir {
        &self.dir
    }

    /// Finds a block's frame, also one that was relocated.
    pub fn locate(&self, block: BlockId) -> Result<Located> {
        let place = self.place_of(block)?;
        let (serial, no) = (place.arc(), place.frame());
        let key = neighbours(place);
        let known = lock(&self.chunks).get(&key).and_then(|chunk| chunk.get(no));
        let (offset, info) = match known {
            Some(found) => found,
            None => {
                let row = self.index.frame_chunk(serial, no)?;
                let mut offset = row.offset;
                let mut frames = Vec::with_capacity(row.frames.len());
                for info in row.frames {
                    frames.push((offset, info));
                    offset += info.frame_len();
                }
                let chunk = Arc::new(Chunk { first: row.first, frames });
                lock(&self.chunks).put(key, chunk.clone());
                chunk.get(no).ok_or_else(|| Error::IndexRow {
                    path: self.dir.path().to_path_buf(),
                    what: format!("the frame table of arc number {} has no frame {}", serial.0, no.0),
                })?
            }
        };
        Ok(Located { serial, no, offset, info })
    }

    fn place_of(&self, block: BlockId) -> Result<BlockId> {
        let key = neighbours(block);
        let known = lock(&self.moved).get(&key).cloned();
        let moved = match known {
            Some(moved) => moved,
            None => {
                let first = FrameNo(key.1 << NEIGHBOUR_BITS);
                let last = FrameNo(first.0 | ((1 << NEIGHBOUR_BITS) - 1));
                let range = BlockId::new(block.arc(), first)..=BlockId::new(block.arc(), last);
                let moved = Arc::new(self.index.relocations(range)?);
                lock(&self.moved).put(key, moved.clone());
                moved
            }
        };
        Ok(moved.iter().find(|(from, _)| *from == block).map_or(block, |(_, to)| *to))
    }

    /// Forgets where a block is: it may have been relocated since.
    pub fn forget_place(&self, block: BlockId) {
        lock(&self.moved).pop(&neighbours(block));
    }

    /// The arc, opened if need be. `Missing` and `Unreadable` are damage of the arc as a whole.
    pub fn open(&self, serial: ArcSerial) -> Result<Arc<OpenArc>> {
        let now_ms = self.started.elapsed().as_millis() as u64;
        let known = lock(&self.open).get(&serial).cloned();
        if let Some(arc) = known {
            let age_ms = now_ms.saturating_sub(arc.checked_ms.load(Ordering::Relaxed));
            if age_ms < RECHECK.as_millis() as u64 || arc.file.is_in(&self.dir) {
                if age_ms >= RECHECK.as_millis() as u64 {
                    arc.checked_ms.store(now_ms, Ordering::Relaxed);
                }
                return Ok(arc);
            }
        }
        self.reopen(serial)
    }

    /// Opens the file that has the arc's name now.
    pub fn reopen(&self, serial: ArcSerial) -> Result<Arc<OpenArc>> {
        lock(&self.open).pop(&serial);
        let entry = self.index.arc(serial)?.entry;
        let file = match LocalArc::open(&self.dir, entry.name) {
            Err(error) if error.is_lack_of_descriptors() => {
                lock(&self.open).clear();
                LocalArc::open(&self.dir, entry.name)
            }
            other => other,
        };
        let arc = Arc::new(OpenArc {
            name: entry.name,
            cipher: self.keys.arc_cipher(entry.id, &entry.salt),
            file: file?,
            checked_ms: AtomicU64::new(self.started.elapsed().as_millis() as u64),
        });
        lock(&self.open).put(serial, arc.clone());
        Ok(arc)
    }
}

const NEIGHBOUR_BITS: u32 = 6;

/// Arc and frame number / 64.
fn neighbours(block: BlockId) -> (ArcSerial, u32) {
    (block.arc(), block.frame().0 >> NEIGHBOUR_BITS)
}

thread_local! {
    /// Ciphertext on its way to `arc::frame::open`.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
/// A larger buffer is given back after use.
const KEPT_BUFFER_BYTES: usize = 4 << 20;

impl OpenArc {
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Reads `len` bytes at `offset` and lends them; fewer when the file ends before.
    pub fn with_bytes<T>(&self, offset: u64, len: usize, via: Via, use_them: impl FnOnce(Result<&[u8]>) -> T) -> T {
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let target = buffer.get_mut(..len).unwrap_or_default();
            let result = match self.file.read(offset, target, via) {
                Ok(count) => use_them(Ok(target.get(..count).unwrap_or_default())),
                Err(error) => use_them(Err(error)),
            };
            if buffer.len() > KEPT_BUFFER_BYTES {
                *buffer = Vec::new();
            }
            result
        })
    }

    pub fn place(&self, located: &Located, block: BlockId) -> Place {
        Place { arc: self.name, frame: Some(located.no), block: Some(block), offset: located.offset }
    }
}
