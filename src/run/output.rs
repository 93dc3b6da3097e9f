//! The arcs of one run: rolls over to the next at the size limit and makes closed ones durable on the side.
//!
//! Invariants: at most one data arc and one catalog arc are open; numbers and serials are given in the order of
//! creation and never again; where a block will be is settled when it comes, and depends on nothing but the blocks before it; `finish` returns only when every arc of the run is on the medium.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::queue::Queue;
use crate::arc::{BlockInfo, FrameKind, MAX_PLAIN_LEN, Packed, Packer};
use crate::backupdir::BackupDir;
use crate::backupdir::arcs::{self, ArcFileWriter};
use crate::catalog::codec::Records;
use crate::catalog::{ArcEntry, ArcRole};
use crate::copies::Sending;
use crate::crypto::Keys;
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, BlockHash, BlockId, FrameNo, FramePlace, Slot};
use crate::index::OpenRun;
use crate::own::OwnDir;

/// Frames an arc may hold, and blocks in them: bounds its frame table (about 22 bytes a block) and the writer's memory.
const MAX_FRAMES: usize = 131_071;
const MAX_ARC_BLOCKS: usize = 1 << 19;
/// Closed arcs that may wait for the medium at once.
const MAX_SYNCING: usize = 2;

/// All arcs of a run, closed and on the medium, names included.
#[derive(Debug)]
pub struct Durable {
    arcs: Vec<ArcEntry>,
    next_serial: u64,
}

impl Durable {
    pub fn arcs(&self) -> &[ArcEntry] {
        &self.arcs
    }

    pub(super) fn into_parts(self) -> (Vec<ArcEntry>, u64) {
        (self.arcs, self.next_serial)
    }
}

pub struct Output<'a> {
    dir: &'a OwnDir,
    keys: &'a Keys,
    run: OpenRun,
    arc_size_limit: u64,
    queue: Queue,
    /// Bytes of all frames of blocks so far.
    block_bytes: u64,
    next_number: u32,
    next_serial: ArcSerial,
    packer: Packer,
    data: Option<ArcFileWriter>,
    catalog: Option<ArcFileWriter>,
    done: Vec<ArcEntry>,
    syncing: Vec<JoinHandle<Result<()>>>,
    /// Told of closed arcs, so that they are sent while the run goes on.
    pub sending: Option<&'a Sending>,
}

impl<'a> Output<'a> {
    pub(super) fn new(dir: &'a BackupDir, run: OpenRun, next_serial: u64) -> Result<Output<'a>> {
        Ok(Output {
            dir: dir.own(),
            keys: dir.keys(),
            run,
            arc_size_limit: dir.config().arc_size_limit,
            queue: Queue::new(dir.config().zstd_level),
            block_bytes: 0,
            next_number: arcs::COMMIT_NUMBER + 1,
            next_serial: ArcSerial(next_serial),
            packer: Packer::new(3)?,
            data: None,
            catalog: None,
            done: Vec::new(),
            syncing: Vec::new(),
            sending: None,
        })
    }

    /// Takes a block and returns its name. Small ones that follow each other share a frame.
    ///
    /// It is compressed by other threads and written later, in order; what goes wrong with that is told by a later call, `finish`
    /// at the latest.
    pub fn block(&mut self, plain: Vec<u8>, hash: BlockHash) -> Result<BlockId> {
        let info = BlockInfo { len: plain.len() as u32, hash };
        if plain.len() > MAX_PLAIN_LEN {
            return Err(Error::SelfCheck { what: "a block is too long".into() });
        }
        if let Some(id) = self.queue.share(&plain, info)? {
            return Ok(id);
        }
        let place = self.place()?;
        self.queue.begin(place, plain, info)?;
        while let Some((packed, blocks)) = self.queue.overflow()? {
            self.write(&packed, blocks)?;
        }
        Ok(place.slot(Slot(0)))
    }

    /// Bytes that frames of blocks take in arcs, all those that were written.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Writes what waits.
    pub fn flush(&mut self) -> Result<()> {
        while let Some((packed, blocks)) = self.queue.first()? {
            self.write(&packed, blocks)?;
        }
        Ok(())
    }

    /// Where the next frame of blocks will be. An arc ends behind the first frame that makes it as long as the limit.
    fn place(&mut self) -> Result<FramePlace> {
        if self.data.as_ref().is_some_and(|arc| self.is_full(arc)) {
            self.flush()?;
            if let Some(arc) = self.data.take_if(|arc| arc.len_bytes() >= self.arc_size_limit || is_at_bound(arc, 0, 0))
            {
                self.close(arc, ArcRole::Data)?;
            }
        }
        let waiting = self.queue.frames();
        let arc = self.open(ArcRole::Data)?;
        Ok(FramePlace::new(arc.serial(), FrameNo((arc.frames().len() + waiting) as u32)))
    }

    /// It may be, with what waits.
    fn is_full(&self, arc: &ArcFileWriter) -> bool {
        arc.len_bytes() + self.queue.most_bytes() >= self.arc_size_limit
            || is_at_bound(arc, self.queue.frames(), self.queue.blocks())
    }

    fn write(&mut self, packed: &Packed, blocks: Vec<BlockInfo>) -> Result<()> {
        let dir = self.dir;
        let arc = self.open(ArcRole::Data)?;
        let (before, path) = (arc.len_bytes(), arcs::write_path(dir, arc.name(), ArcRole::Data));
        arc.append(FrameKind::Block, packed, blocks).map_err(|e| e.at(&path))?;
        let written = arc.len_bytes() - before;
        self.block_bytes += written;
        Ok(())
    }

    /// Appends a catalog frame and returns where it is.
    pub fn catalog(&mut self, plain: &[u8]) -> Result<FramePlace> {
        // A reader that refuses a record would lose every directory of the frame.
        Records::new(plain, |_| Ok(()))
            .map_err(|bad| Error::SelfCheck { what: format!("a catalog frame does not decode: {}", bad.0) })?;
        let packed = self.packer.pack(plain)?;
        let block = BlockInfo::of(self.keys, plain);
        let limit = self.arc_size_limit;
        if let Some(arc) = self.catalog.take_if(|arc| arc.len_bytes() >= limit || is_at_bound(arc, 0, 0)) {
            self.close(arc, ArcRole::Catalog)?;
        }
        let dir = self.dir;
        let arc = self.open(ArcRole::Catalog)?;
        let path = arcs::write_path(dir, arc.name(), ArcRole::Catalog);
        arc.append(FrameKind::Catalog, &packed, vec![block]).map_err(|e| e.at(&path))
    }

    /// The arc that is written, or a new one.
    fn open(&mut self, role: ArcRole) -> Result<&mut ArcFileWriter> {
        if self.slot(role).is_none() {
            let serial = Some(self.next_serial).filter(|s| *s <= ArcSerial::MAX);
            let serial = serial
                .ok_or_else(|| Error::Unsupported { path: self.dir.path().into(), what: "too many arcs".into() })?;
            let arc = arcs::create(self.dir, self.keys, self.run, self.next_number, role, serial)?;
            self.next_number += 1;
            self.next_serial.0 += 1;
            *self.slot(role) = Some(arc);
        }
        self.slot(role).as_mut().ok_or_else(|| Error::SelfCheck { what: "no arc is open".into() })
    }

    fn slot(&mut self, role: ArcRole) -> &mut Option<ArcFileWriter> {
        match role {
            ArcRole::Catalog => &mut self.catalog,
            ArcRole::Data | ArcRole::Commit => &mut self.data,
        }
    }

    fn close(&mut self, arc: ArcFileWriter, role: ArcRole) -> Result<()> {
        let (entry, file) = arcs::finish(self.dir, self.keys, arc, role, &mut self.packer)?;
        let path: PathBuf = arcs::write_path(self.dir, entry.name, role);
        if let Some(sending) = self.sending {
            sending.closed(&entry);
        }
        self.done.push(entry);
        while self.syncing.len() >= MAX_SYNCING {
            join(self.syncing.remove(0))?;
        }
        let file = Arc::new(file);
        let (theirs, at) = (file.clone(), path.clone());
        let sync = move || theirs.sync_all().map_err(|e| Error::io("fsync", at, &e));
        match std::thread::Builder::new().spawn(sync) {
            Ok(thread) => self.syncing.push(thread),
            Err(_) => file.sync_all().map_err(|e| Error::io("fsync", path, &e))?,
        }
        Ok(())
    }

    /// Closes all arcs and waits until they, and their names, are on the medium.
    pub fn finish(&mut self) -> Result<Durable> {
        self.flush()?;
        for role in [ArcRole::Data, ArcRole::Catalog] {
            if let Some(arc) = self.slot(role).take() {
                self.close(arc, role)?;
            }
        }
        for thread in self.syncing.drain(..) {
            join(thread)?;
        }
        self.dir.sync()?;
        self.done.sort_by_key(|arc| arc.serial);
        Ok(Durable { arcs: std::mem::take(&mut self.done), next_serial: self.next_serial.0 })
    }
}

impl Output<'_> {
    /// Ends it without a commit: the open arc of blocks is closed, so that the next run can use what is in it.
    pub(super) fn abandon(&mut self) {
        let _ = self.flush();
        if let Some(arc) = self.data.take() {
            let _ = self.close(arc, ArcRole::Data);
        }
        for thread in self.syncing.drain(..) {
            let _ = join(thread);
        }
    }
}

fn is_at_bound(arc: &ArcFileWriter, frames: usize, blocks: usize) -> bool {
    arc.frames().len() + frames >= MAX_FRAMES || arc.blocks() + blocks >= MAX_ARC_BLOCKS
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err(Error::SelfCheck { what: "the thread that makes arcs durable died".into() }))
}
