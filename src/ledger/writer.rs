//! The segment that this process appends to.
//!
//! Invariants: noting takes one short mutex and never the disk; what is held between two flushes is bounded, more is
//! not noted; all notes since a flush have the time of the first of them, never a later one, and are written as of the newest
//! commit that the process has seen by then: what they name is of this commit or from before it. A segment is locked by
//! its process as long as that lives, and never written to after a write has failed: what was noted then stays in memory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};

use super::bits::Bits;
use super::files::{new_header, segment_name};
use super::list;
use super::merged::LEDGER_DIR;
use super::places::Places;
use super::segment::seal_batches;
use super::{By, Extent, Files, Frames, How, Ledger, Proof, Record, now_ms};
use crate::crypto::{ArcCipher, Keys};
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, CopyId, FrameNo, FramePlace, Logid, SegmentId};
use crate::index::{Commits, Head, Index};
use crate::own::OwnDir;
use crate::sync::lock;

/// How often notes are written.
pub const FLUSH_EVERY_S: u64 = 60;
/// Bitmaps of notes between two flushes, 512 bytes each, in all at most.
const MAX_BITMAPS: usize = 16384;
/// Other records, and damaged places, between two flushes.
const MAX_RECORDS: usize = 10_000;

type Clock = Box<dyn Fn() -> u64 + Send + Sync>;
type Newest = Box<dyn Fn() -> Option<Head> + Send + Sync>;

/// Takes notes from any thread; `flush`, each `FLUSH_EVERY_S`, makes them durable.
pub struct LedgerWriter {
    dir: Arc<OwnDir>,
    keys: Arc<Keys>,
    by: By,
    /// The newest commit that this process has seen.
    head: Newest,
    clock: Clock,
    notes: Mutex<Notes>,
    sink: Mutex<Sink>,
}

/// What was noted since the last flush.
struct Notes {
    /// When the first of them was made.
    since_s: u64,
    frames: HashMap<(CopyId, How), Bits>,
    files: BTreeMap<Extent, Bits>,
    damage: Places,
    others: Vec<Record>,
    /// What was damaged when last read, over all flushes.
    bad: Places,
}

impl Default for Notes {
    fn default() -> Notes {
        Notes {
            since_s: 0,
            frames: HashMap::new(),
            files: BTreeMap::new(),
            damage: Places::new(MAX_RECORDS),
            others: Vec::new(),
            bad: Places::new(MAX_RECORDS),
        }
    }
}

/// Where notes go.
enum Sink {
    /// Nothing was written yet.
    None,
    Segment {
        ledger: OwnDir,
        id: SegmentId,
        file: File,
        cipher: Box<ArcCipher>,
        next_batch: u32,
        /// Of which commit the last records are.
        head: Option<Head>,
    },
    /// Writing is not possible.
    Memory(Box<Ledger>),
}

impl LedgerWriter {
    /// Notes of what this index has told. Nothing is written before the first `flush` that has something to say.
    pub fn new(dir: &Arc<OwnDir>, keys: Arc<Keys>, by: By, index: &Arc<Index>) -> LedgerWriter {
        let index = index.clone();
        LedgerWriter::with(dir, keys, by, move || index.head(), now_ms)
    }

    /// As `new`, by another teller of the newest commit, and by another clock: milliseconds since 1970.
    pub fn with(
        dir: &Arc<OwnDir>,
        keys: Arc<Keys>,
        by: By,
        head: impl Fn() -> Option<Head> + Send + Sync + 'static,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> LedgerWriter {
        LedgerWriter {
            dir: dir.clone(),
            keys,
            by,
            head: Box::new(head),
            clock: Box::new(clock),
            notes: Mutex::new(Notes::default()),
            sink: Mutex::new(Sink::None),
        }
    }

    /// Makes damage known that is open in a ledger: what of it reads right from now on is noted as mended, at the moment
    /// when it did.
    pub fn expecting(self, known: &Ledger) -> LedgerWriter {
        known.open_damage().iter().for_each(|damage| self.notes().bad.take(damage.clone()));
        self
    }

    /// The time by this writer's clock.
    pub fn now_s(&self) -> u64 {
        self.now_ms() / 1000
    }

    /// The same, milliseconds.
    pub fn now_ms(&self) -> u64 {
        (self.clock)()
    }

    /// A frame was verified just now. Never waits for the disk.
    pub fn frame(&self, arc: ArcSerial, copy: CopyId, no: FrameNo, how: How) {
        let mut notes = self.note();
        let notes = &mut *notes;
        let room = notes.room_for((copy, how));
        notes.frames.entry((copy, how)).or_default().insert(FramePlace::new(arc, no).0, room);
        if !notes.bad.is_empty() {
            let mended = notes.bad.mend(arc, copy, no, self.now_ms());
            mended.into_iter().for_each(|damage| notes.damage.take(damage));
        }
    }

    /// A file was read just now, to this extent. Never waits for the disk.
    pub fn file(&self, logid: Logid, extent: Extent) {
        let mut notes = self.note();
        let room = notes.room();
        let bits = notes.files.entry(extent).or_default();
        let own = bits.bitmaps();
        bits.insert(logid.0, own + room);
    }

    pub fn record(&self, record: Record) {
        let mut notes = self.notes();
        match record {
            Record::Damage(damage) => {
                notes.bad.take(damage.clone());
                notes.bad.retain(|damage| !damage.mended);
                notes.damage.take(damage);
            }
            other if notes.others.len() < MAX_RECORDS => notes.others.push(other),
            _ => {}
        }
    }

    /// Appends what was noted since the last time; nothing while no commit was seen.
    ///
    /// # Errors
    /// The first write that fails, unless nobody may write here: from then on all is kept in memory, as after a
    /// warning. It is never a reason to stop what is being noted.
    pub fn flush(&self) -> Result<()> {
        let mut sink = lock(&self.sink);
        let records = {
            let mut notes = self.notes();
            let bad = notes.bad.clone();
            let taken = std::mem::replace(&mut *notes, Notes { bad, ..Notes::default() });
            drop(notes);
            taken.records(self.by)
        };
        // After they were taken: none of them is of a later commit.
        let (Some(head), false) = ((self.head)(), records.is_empty()) else { return Ok(()) };
        let error = match self.append(&mut sink, head, &records) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let mut memory = Box::new(Ledger::empty(self.now_s()));
        records.into_iter().for_each(|record| memory.take(record));
        *sink = Sink::Memory(memory);
        log::warn!("{error}; what is verified is remembered only as long as this process runs");
        let not_ours = |errno: i32| matches!(errno, libc::EROFS | libc::EACCES | libc::EPERM);
        match error {
            Error::Io { errno, .. } if not_ours(errno) => Ok(()),
            error => Err(error),
        }
    }

    /// Flushes if it is time; errors as `flush`. For those who have no clock that tells them.
    pub fn flush_if_due(&self) -> Result<()> {
        let since_s = self.notes().since_s;
        if since_s > 0 && since_s + FLUSH_EVERY_S <= self.now_s() { self.flush() } else { Ok(()) }
    }

    /// All that is known: what all segments say of the history that has these commits, and what was noted here.
    pub fn known(&self, commits: &Commits) -> Result<Ledger> {
        // Meanwhile nothing is on its way from memory to the disk.
        let sink = lock(&self.sink);
        let (mut ledger, _) = Ledger::load_at(&self.dir, &self.keys, commits, self.now_s())?;
        self.add_notes(&sink, &mut ledger);
        Ok(ledger)
    }

    /// Adds to a ledger what is not on the disk, or not yet.
    #[cfg(test)]
    pub fn add_to(&self, ledger: &mut Ledger) {
        let sink = lock(&self.sink);
        self.add_notes(&sink, ledger);
    }

    fn add_notes(&self, sink: &Sink, ledger: &mut Ledger) {
        if let Sink::Memory(memory) = sink {
            memory.records().for_each(|record| ledger.take(record));
        }
        let records = self.notes().records(self.by);
        records.into_iter().for_each(|record| ledger.take(record));
        ledger.settle();
    }

    fn append(&self, sink: &mut Sink, head: Head, records: &[Record]) -> Result<()> {
        if let Sink::None = sink {
            *sink = self.begin()?;
        }
        match sink {
            Sink::Segment { ledger, id, file, cipher, next_batch, head: told } => {
                let moved = Some(head).filter(|head| told.replace(*head) != Some(*head));
                let told = moved.map(Record::History).into_iter().chain(records.iter().cloned());
                let written = seal_batches(cipher, *next_batch, told, |bytes| file.write_all(bytes));
                *next_batch = written
                    .and_then(|next| file.sync_data().map(|()| next))
                    .map_err(|error| Error::io("write", ledger.path(), &error))?;
                if records.iter().any(|record| matches!(record, Record::Damage(_))) {
                    let batches = *next_batch;
                    list::update(ledger, &self.keys, self.now_s(), |list| {
                        list.segments.insert(*id, batches);
                        Ok(())
                    })?;
                }
            }
            Sink::Memory(memory) => records.iter().cloned().for_each(|record| memory.take(record)),
            Sink::None => {}
        }
        Ok(())
    }

    /// Makes this process's segment. In another user's directory nothing is written.
    fn begin(&self) -> Result<Sink> {
        if self.dir.is_foreign() {
            return Ok(Sink::Memory(Box::new(Ledger::empty(self.now_s()))));
        }
        let ledger = self.dir.sub_made(LEDGER_DIR, 0o700)?;
        let failed = |error: std::io::Error| Error::io("write to", ledger.path(), &error);
        let header = new_header().map_err(failed)?;
        let mut made = None;
        list::update(&ledger, &self.keys, self.now_s(), |list| {
            let mut file = ledger.create(segment_name(header.id), 0o600)?;
            // A reader that looks whether anybody writes here may hold it for a moment.
            crate::os::lock::exclusive(&file).map_err(failed)?;
            file.write_all(&header.encode(&self.keys)).map_err(failed)?;
            ledger.sync()?;
            list.segments.insert(header.id, 0);
            made = Some(file);
            Ok(())
        })?;
        let Some(file) = made else { return Ok(Sink::None) };
        let cipher = Box::new(self.keys.segment_cipher(header.id, &header.salt));
        Ok(Sink::Segment { ledger, id: header.id, file, cipher, next_batch: 0, head: None })
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        lock(&self.notes)
    }

    /// The notes, to add one whose time counts.
    fn note(&self) -> MutexGuard<'_, Notes> {
        let mut notes = self.notes();
        if notes.since_s == 0 {
            notes.since_s = self.now_s();
        }
        notes
    }
}

impl Notes {
    /// Bitmaps that may still be made.
    fn room(&self) -> usize {
        let frames: usize = self.frames.values().map(Bits::bitmaps).sum();
        let files: usize = self.files.values().map(Bits::bitmaps).sum();
        MAX_BITMAPS.saturating_sub(frames + files)
    }

    /// Bitmaps that a set of frames may have.
    fn room_for(&self, of: (CopyId, How)) -> usize {
        self.frames.get(&of).map_or(0, Bits::bitmaps) + self.room()
    }

    fn records(&self, by: By) -> Vec<Record> {
        let when_s = self.since_s;
        let mut records = Vec::new();
        for ((copy, how), bits) in &self.frames {
            let proof = Proof { when_s, how: *how, by };
            records.extend(bits.runs().into_iter().map(|run| {
                let first = FramePlace(run.start);
                // Frames of two arcs are never neighbours, and an arc has fewer than 2^24.
                let count = (run.end - run.start) as u32;
                Record::Frames(Frames { arc: first.arc(), copy: *copy, first: first.frame(), count, proof })
            }));
        }
        for (extent, bits) in &self.files {
            records.extend(bits.runs().into_iter().map(|run| {
                let (first, count) = (Logid(run.start), run.end - run.start);
                Record::Files(Files { first, count, extent: *extent, when_s, by })
            }));
        }
        records.extend(self.damage.iter().cloned().map(Record::Damage));
        records.extend(self.others.iter().cloned());
        records
    }
}
