//! The arcs of one run: rolls over to the next at the size limit and makes closed ones durable on the side.
//!
//! Invariants: at most one data arc and one catalog arc are open; numbers and serials are given in the order of
//! creation and never again; `finish` returns only when every arc of the run is on the medium.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::arc::{FrameKind, Packed, Packer};
use crate::backupdir::BackupDir;
use crate::backupdir::arcs::{self, ArcFileWriter};
use crate::catalog::codec::Records;
use crate::catalog::{ArcEntry, ArcRole};
use crate::crypto::Keys;
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, BlockHash, BlockId};
use crate::index::OpenRun;
use crate::own::OwnDir;

/// Frames an arc may hold: bounds its frame table (30 bytes each) and the writer's memory.
const MAX_FRAMES: usize = 1 << 17;
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
    next_number: u32,
    next_serial: ArcSerial,
    packer: Packer,
    data: Option<ArcFileWriter>,
    catalog: Option<ArcFileWriter>,
    done: Vec<ArcEntry>,
    syncing: Vec<JoinHandle<Result<()>>>,
}

impl<'a> Output<'a> {
    pub(super) fn new(dir: &'a BackupDir, run: OpenRun, next_serial: u64) -> Result<Output<'a>> {
        Ok(Output {
            dir: dir.own(),
            keys: dir.keys(),
            run,
            arc_size_limit: dir.config().arc_size_limit,
            next_number: arcs::COMMIT_NUMBER + 1,
            next_serial: ArcSerial(next_serial),
            packer: Packer::new(3)?,
            data: None,
            catalog: None,
            done: Vec::new(),
            syncing: Vec::new(),
        })
    }

    /// Appends a block and returns its name.
    pub fn block(&mut self, packed: &Packed, plain_len: u32, hash: BlockHash) -> Result<BlockId> {
        self.append(ArcRole::Data, FrameKind::Block, packed, plain_len as usize, hash)
    }

    /// Appends a catalog frame and returns where it is.
    pub fn catalog(&mut self, plain: &[u8]) -> Result<BlockId> {
        // A reader that refuses a record would lose every directory of the frame.
        Records::new(plain, |_| Ok(()))
            .map_err(|bad| Error::SelfCheck { what: format!("a catalog frame does not decode: {}", bad.0) })?;
        let packed = self.packer.pack(plain)?;
        self.append(ArcRole::Catalog, FrameKind::Catalog, &packed, plain.len(), self.keys.block_hash(plain))
    }

    fn append(
        &mut self,
        role: ArcRole,
        kind: FrameKind,
        packed: &Packed,
        plain_len: usize,
        hash: BlockHash,
    ) -> Result<BlockId> {
        let limit = self.arc_size_limit;
        let full = |arc: &ArcFileWriter| arc.len_bytes() >= limit || arc.frames().len() >= MAX_FRAMES;
        if let Some(arc) = self.slot(role).take_if(|arc| full(arc)) {
            self.close(arc, role)?;
        }
        if self.slot(role).is_none() {
            let serial = Some(self.next_serial).filter(|s| *s <= ArcSerial::MAX);
            let serial = serial
                .ok_or_else(|| Error::Unsupported { path: self.dir.path().into(), what: "too many arcs".into() })?;
            let arc = arcs::create(self.dir, self.keys, self.run, self.next_number, role, serial)?;
            self.next_number += 1;
            self.next_serial.0 += 1;
            *self.slot(role) = Some(arc);
        }
        let path = |name| arcs::write_path(self.dir, name, role);
        match self.slot(role) {
            Some(arc) => {
                let name = arc.name();
                arc.append(kind, packed, plain_len, hash).map_err(|e| e.at(&path(name)))
            }
            None => Err(Error::SelfCheck { what: "no arc is open".into() }),
        }
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
        if let Some(arc) = self.data.take() {
            let _ = self.close(arc, ArcRole::Data);
        }
        for thread in self.syncing.drain(..) {
            let _ = join(thread);
        }
    }
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err(Error::SelfCheck { what: "the thread that makes arcs durable died".into() }))
}
