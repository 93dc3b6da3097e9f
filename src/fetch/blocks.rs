//! Blocks by name: found in the index, read from the backup dir, and up the ladder where that fails.
//!
//! Invariants: neighbouring frames are fetched by one read; bounded numbers of open arcs; an arc that was replaced or put
//! back is noticed within a second, or at once after a bad read; what leaves the machine is asked only by `far`.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::elsewhere::{Copies, Look};
use super::places::Places;
use super::{ArcFile, Bad, Elsewhere, Fetched, Frame, FrameCache, Located, Proven, Way, with_bytes};
use crate::arc::FrameKind;
use crate::crypto::{ArcCipher, Keys};
use crate::depot::{Depot, Reach, Via};
use crate::error::{Error, Result};
use crate::ids::{ArcName, ArcSerial, BlockId, CopyId};
use crate::index::Index;
use crate::os::process::open_file_limit;
use crate::sync::lock;

/// Arcs kept open; a quarter of the files that this process may have open, if that is less.
const MAX_OPEN_ARCS: usize = 128;
/// Arcs whose keys are held, opened or not.
const MAX_KNOWN_ARCS: usize = 1024;
/// How long an open arc is trusted to be the one under its name.
const RECHECK: Duration = Duration::from_secs(1);
/// Adjacent frames up to this many bytes are fetched by one read.
const MAX_RUN_BYTES: u64 = 1 << 20;

/// A block that is wanted, and where it was found to be.
#[derive(Debug, Clone)]
pub struct Asked {
    pub block: BlockId,
    pub at: Located,
}

/// What came of a block's frame.
pub type Outcome = Result<Fetched, Bad>;
/// Learns what came of blocks: its number among those asked for, and where it was looked for at last.
pub type Each<'a> = &'a mut dyn FnMut(usize, &Asked, Outcome);

/// How far up the ladder a read goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Heal {
    /// To its end.
    #[default]
    On,
    /// Not at all: the damage is shown as it is.
    Off,
}

struct Opened {
    arc: ArcFile,
    /// Milliseconds on our clock.
    checked_ms: AtomicU64,
}

/// What judges the frames of an arc that was not opened.
struct Known {
    name: ArcName,
    cipher: ArcCipher,
}

impl Known {
    fn frame<'a>(&'a self, keys: &'a Keys, asked: &'a Asked) -> Frame<'a> {
        let Located { no, offset, ref info, .. } = asked.at;
        Frame { keys, cipher: &self.cipher, arc: self.name, no, block: Some(asked.block), offset, info }
    }
}

/// The blocks of a backup dir.
pub struct Fetch {
    home: Arc<dyn Depot>,
    copies: Copies,
    /// Of frames that were far.
    cache: Option<Arc<FrameCache>>,
    keys: Arc<Keys>,
    index: Arc<Index>,
    heal: Heal,
    places: Places,
    open: Mutex<LruCache<ArcSerial, Arc<Opened>>>,
    known: Mutex<LruCache<ArcSerial, Arc<Known>>>,
    started: Instant,
}

impl Fetch {
    /// `home` is read first, `copies` where it fails.
    pub fn new(
        home: Arc<dyn Depot>,
        copies: Vec<Arc<dyn Depot>>,
        keys: Arc<Keys>,
        index: Arc<Index>,
        heal: Heal,
    ) -> Fetch {
        let most = MAX_OPEN_ARCS.min((open_file_limit() / 4) as usize);
        let open = Mutex::new(LruCache::new(NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN)));
        let known = Mutex::new(LruCache::new(NonZeroUsize::new(MAX_KNOWN_ARCS).unwrap_or(NonZeroUsize::MIN)));
        let (places, copies) = (Places::new(index.clone()), Copies::new(copies));
        Fetch { home, copies, cache: None, keys, index, heal, places, open, known, started: Instant::now() }
    }

    /// Keeps what was far, and asks there first; not where damage is to be shown as it is.
    pub fn keeping(self, cache: Option<Arc<FrameCache>>) -> Fetch {
        let cache = cache.filter(|_| self.heal == Heal::On);
        Fetch { cache, ..self }
    }

    /// Finds a block's frame.
    pub fn locate(&self, block: BlockId) -> Result<Asked> {
        Ok(Asked { block, at: self.places.locate(block)? })
    }

    /// Forgets where a block is: it may have been relocated since.
    pub fn forget(&self, block: BlockId) {
        self.places.forget(block);
    }

    /// Whether bytes are a block's, by its keyed hash; nothing is read from an arc.
    pub fn is_block(&self, block: BlockId, bytes: &[u8]) -> Result<bool> {
        let info = self.places.locate(block)?.block;
        Ok(info.len as usize == bytes.len() && info.hash == self.keys.block_hash(bytes))
    }

    /// Is there a copy that `far` could ask, or is all of it far?
    pub fn has_far(&self) -> bool {
        self.has_far_home() || (self.heal == Heal::On && self.copies.has_far())
    }

    /// May what is read first leave the machine?
    pub fn has_far_home(&self) -> bool {
        self.home.reach() == Reach::Far
    }

    /// What is read first for any of these leaves the machine: `near` may take as long as that.
    pub fn is_far(&self, asked: &[Asked]) -> bool {
        self.has_far_home() && asked.iter().any(|asked| self.reach(asked.at.serial) == Reach::Far)
    }

    fn reach(&self, serial: ArcSerial) -> Reach {
        let opened = lock(&self.open).peek(&serial).map(|opened| opened.arc.stored().name());
        let name = opened.or_else(|| Some(self.known(serial)?.name));
        name.map_or(Reach::Near, |name| self.home.reach_of(name))
    }

    fn known(&self, serial: ArcSerial) -> Option<Arc<Known>> {
        if let Some(known) = lock(&self.known).get(&serial) {
            return Some(known.clone());
        }
        let entry = self.index.arc(serial).ok()?.entry;
        let known = Arc::new(Known { name: entry.name, cipher: self.keys.arc_cipher(entry.id, &entry.salt) });
        lock(&self.known).put(serial, known.clone());
        Some(known)
    }

    /// What was fetched before of what is far (`is_far`): from this machine, and nobody else is asked.
    pub fn kept(&self, asked: &Asked) -> Option<Fetched> {
        let opened = self.of_cache(asked, |cache, frame| cache.find(frame))??;
        Some(Fetched { opened, copy: CopyId::LOCAL, way: Way::Kept, met: None })
    }

    /// As `kept`, as far as can be told without reading it.
    pub fn may_be_kept(&self, asked: &Asked) -> bool {
        self.of_cache(asked, |cache, frame| cache.may_have(frame)).unwrap_or(false)
    }

    fn of_cache<T>(&self, asked: &Asked, ask: impl FnOnce(&FrameCache, &Frame<'_>) -> T) -> Option<T> {
        let cache = self.cache.as_ref().filter(|_| asked.at.info.kind == FrameKind::Block)?;
        let known = self.known(asked.at.serial)?;
        Some(ask(cache, &self.frame_of(&known, asked)))
    }

    fn frame_of<'a>(&'a self, known: &'a Known, asked: &'a Asked) -> Frame<'a> {
        known.frame(&self.keys, asked)
    }

    /// Keeps frames of an arc, if it is far.
    fn keep(&self, arc: ArcName, right: &[Proven<'_>]) {
        if let Some(cache) = self.cache.as_ref().filter(|_| self.home.reach_of(arc) == Reach::Far) {
            right.iter().for_each(|proven| cache.admit(proven));
        }
    }

    /// The arc of a frame, its length, and where in it the frame is.
    pub fn range(&self, asked: &Asked) -> Result<(ArcName, u64, Range<u64>)> {
        let entry = self.index.arc(asked.at.serial)?.entry;
        Ok((entry.name, entry.arc_bytes, asked.at.offset..asked.at.offset + asked.at.info.frame_len()))
    }

    /// The copy that an arc is read from first.
    pub fn copy(&self, serial: ArcSerial) -> CopyId {
        let opened = lock(&self.open).peek(&serial).map(|opened| opened.arc.stored().copy());
        opened.unwrap_or_else(|| self.home.id())
    }

    /// Fetches frames from what is near (and from what is read first, be it far), on this thread: those of some blocks, no two
    /// of which share one. `each` learns by their numbers in `asked` what came of them, and where they were looked for at
    /// last; those that were right at first come sooner than those that were not.
    pub fn near(&self, asked: &[Asked], each: Each<'_>) {
        let mut at = 0;
        while let Some(rest) = asked.get(at..).filter(|rest| !rest.is_empty()) {
            let count = stretch(rest);
            let stretch = rest.get(..count).unwrap_or_default();
            self.stretch(stretch, &mut |number, asked, outcome| {
                let of_home = |fetched| self.of_home(asked.at.serial, fetched);
                each(at + number, asked, outcome.map(of_home));
            });
            at += count;
        }
    }

    /// What no other copy had is of the one that is read first.
    fn of_home(&self, serial: ArcSerial, fetched: Fetched) -> Fetched {
        match fetched.way {
            Way::Copy { .. } | Way::Kept => fetched,
            Way::First | Way::Again { .. } | Way::Repaired(_) => Fetched { copy: self.copy(serial), ..fetched },
        }
    }

    /// From the copies that leave the machine; it may take as long as they do.
    pub fn far(&self, asked: &Asked) -> Elsewhere {
        let may = self.heal == Heal::On && asked.at.info.kind == FrameKind::Block;
        let Some(known) = self.known(asked.at.serial).filter(|_| may) else { return Elsewhere::default() };
        let (keys, asked) = (self.keys.clone(), asked.clone());
        self.copies.far(&(Arc::new(move |copy: &_| known.frame(&keys, &asked).at(copy)) as Look))
    }

    /// Frames that lie in a row.
    fn stretch(&self, asked: &[Asked], each: Each<'_>) {
        let (Some(Asked { at: first, .. }), Some(Asked { at: last, .. })) = (asked.first(), asked.last()) else {
            return;
        };
        let opened = match self.open(first.serial) {
            Ok(opened) => opened,
            Err(error) => {
                for (asked, number) in asked.iter().zip(0..) {
                    self.climb(asked, unopened(asked, error.clone()), &mut |asked, outcome| {
                        each(number, asked, outcome)
                    });
                }
                return;
            }
        };
        let len = last.offset + last.info.frame_len() - first.offset;
        let mut failed = Vec::new();
        with_bytes(opened.arc.stored(), first.offset, len, Via::Cache, |bytes| {
            let mut right = Vec::new();
            for (asked, number) in asked.iter().zip(0..) {
                let result = match &bytes {
                    Ok(bytes) => {
                        let start = (asked.at.offset - first.offset) as usize;
                        let end = (start + asked.at.info.frame_len() as usize).min(bytes.len());
                        self.frame(&opened.arc, asked).judged(bytes.get(start..end).unwrap_or_default())
                    }
                    Err(error) => Err(self.frame(&opened.arc, asked).unread(error.clone())),
                };
                match result {
                    Ok((fetched, proven)) => {
                        each(number, asked, Ok(fetched));
                        right.push(proven);
                    }
                    Err(bad) => failed.push((number, asked, bad)),
                }
            }
            // No reader waits for that.
            self.keep(opened.arc.stored().name(), &right);
        });
        // A read error of one sector failed the whole read: the other frames may be well.
        let one_by_one = asked.len() > 1 && failed.iter().any(|(.., bad)| bad.bytes.is_none());
        for (number, asked, bad) in failed {
            let alone = if one_by_one { self.frame(&opened.arc, asked).alone(opened.arc.stored()) } else { Err(bad) };
            match alone {
                Ok(fetched) => each(number, asked, Ok(fetched)),
                Err(bad) => self.climb(asked, bad, &mut |asked, outcome| each(number, asked, outcome)),
            }
        }
    }

    fn frame<'a>(&'a self, arc: &'a ArcFile, asked: &'a Asked) -> Frame<'a> {
        let Located { no, offset, ref info, .. } = asked.at;
        arc.frame(&self.keys, (no, offset, info), Some(asked.block))
    }

    /// The rungs after the first. The error is the first one's, unless that says nothing of the bytes and a later one does.
    fn climb(&self, asked: &Asked, first: Bad, end: &mut dyn FnMut(&Asked, Outcome)) {
        let (asked, first) = match self.moved_since(asked) {
            Some(now) => match self
                .open(now.at.serial)
                .map_err(|error| unopened(&now, error))
                .and_then(|opened| self.frame(&opened.arc, &now).alone(opened.arc.stored()))
            {
                Ok(fetched) => return end(&now, Ok(fetched)),
                Err(bad) => (now, bad),
            },
            None => (asked.clone(), first),
        };
        let gives_up = self.heal == Heal::Off || asked.at.info.kind != FrameKind::Block;
        end(&asked, if gives_up { Err(first) } else { self.heal(&asked, first) });
    }

    fn heal(&self, asked: &Asked, first: Bad) -> Outcome {
        // What is read now is what has the arc's name now.
        let again = self.reopen(asked.at.serial).map_err(|error| unopened(asked, error)).and_then(|opened| {
            let frame = self.frame(&opened.arc, asked);
            let again = frame.again(opened.arc.stored(), &first);
            again.or_else(|second| frame.repaired(&second).ok_or(second))
        });
        let bad = match again {
            Ok(fetched) => return Ok(Fetched { met: Some(first.error), ..fetched }),
            Err(second) if second.error.is_damage() && !first.error.is_damage() => second,
            Err(_) => first,
        };
        let near = self.known(asked.at.serial).map(|known| self.copies.near(&self.frame_of(&known, asked)));
        match near.and_then(|near| near.found) {
            Some(fetched) => Ok(Fetched { met: Some(bad.error), ..fetched }),
            None => Err(bad),
        }
    }

    /// Where the block is now, if it was relocated since its place was looked up.
    fn moved_since(&self, asked: &Asked) -> Option<Asked> {
        self.places.forget(asked.block);
        self.locate(asked.block).ok().filter(|now| now.at.place() != asked.at.place())
    }

    /// Where an arc is read from, in words, if it could be opened.
    pub fn source(&self, serial: ArcSerial) -> Option<String> {
        lock(&self.open).peek(&serial).map(|opened| opened.arc.stored().source())
    }

    /// The name of a copy, for messages.
    pub fn copy_name(&self, id: CopyId) -> &str {
        self.copies.name(id)
    }

    /// The arc, opened if need be. `Missing` and `Unreadable` are damage of the arc as a whole.
    fn open(&self, serial: ArcSerial) -> Result<Arc<Opened>> {
        let now_ms = self.started.elapsed().as_millis() as u64;
        let known = lock(&self.open).get(&serial).cloned();
        if let Some(opened) = known {
            let age_ms = now_ms.saturating_sub(opened.checked_ms.load(Ordering::Relaxed));
            if age_ms < RECHECK.as_millis() as u64 {
                return Ok(opened);
            }
            if opened.arc.stored().is_current() {
                opened.checked_ms.store(now_ms, Ordering::Relaxed);
                return Ok(opened);
            }
        }
        self.reopen(serial)
    }

    /// Opens what has the arc's name now.
    fn reopen(&self, serial: ArcSerial) -> Result<Arc<Opened>> {
        lock(&self.open).pop(&serial);
        let entry = self.index.arc(serial)?.entry;
        let arc = match ArcFile::open_known(self.home.as_ref(), &entry, &self.keys) {
            Err(error) if error.is_lack_of_descriptors() => {
                lock(&self.open).clear();
                ArcFile::open_known(self.home.as_ref(), &entry, &self.keys)
            }
            other => other,
        }?;
        let checked_ms = AtomicU64::new(self.started.elapsed().as_millis() as u64);
        let opened = Arc::new(Opened { arc, checked_ms });
        lock(&self.open).put(serial, opened.clone());
        Ok(opened)
    }
}

/// How many of these lie in a row, so that one read fetches them.
fn stretch(asked: &[Asked]) -> usize {
    let Some(Asked { at: first, .. }) = asked.first() else { return 0 };
    let (mut end, mut count) = (first.offset, 0);
    for Asked { at, .. } in asked {
        let next = end + at.info.frame_len();
        let fits = at.serial == first.serial && at.offset == end && next - first.offset <= MAX_RUN_BYTES;
        if count > 0 && !fits {
            break;
        }
        (end, count) = (next, count + 1);
    }
    count
}

fn unopened(asked: &Asked, error: Error) -> Bad {
    let place = (asked.at.no, Some(asked.block), asked.at.offset);
    Bad { is_whole_arc: true, ..Bad::unread(error, place) }
}
