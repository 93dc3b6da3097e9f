//! What flows through a backup, and the workers in the middle.
//!
//! ```text
//! traverse (1 thread) ── jobs ──> workers (read, hash, dedup) ── replies ─┐
//!          └────────── steps, in tree order, each with its reply ──> assemble (1 thread) ──> run::Output
//! ```
//! Invariants: steps are consumed in the order in which they were sent, so arcs hold blocks in the order of the
//! tree; the plain bytes in flight never exceed the budget, whatever the sizes of the files.

use std::sync::{Arc, Condvar, Mutex};

use crossbeam::channel::{Receiver, Sender};

use super::block::{Found, HashedBlock};
use super::catalog::Names;
use super::read::{self, Cutting, FileError, FileRead, Piece};
use crate::catalog::{Attr, Child, DirState, Kind, Node, Xattrs};
use crate::crypto::Keys;
use crate::error::Result;
use crate::ids::{Dirno, Logid};
use crate::index::DedupTable;
use crate::live::OpenDir;
use crate::os::Stat;
use crate::sync::{lock, wait};

/// Plain bytes that may be between reading and writing.
pub const IN_FLIGHT_BYTES: u64 = 64 << 20;
/// Steps that may wait for the assembler.
pub const IN_FLIGHT_STEPS: usize = 2048;
/// Bookkeeping that a file takes in flight beside its bytes.
const JOB_BYTES: u64 = 4096;

/// A counting gate for bytes.
pub struct Budget {
    state: Mutex<(u64, bool)>,
    changed: Condvar,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { state: Mutex::new((IN_FLIGHT_BYTES, false)), changed: Condvar::new() }
    }
}

impl Budget {
    /// Waits until `bytes` may be taken; more than the whole budget counts as all of it. False when closed.
    pub fn take(&self, bytes: u64) -> bool {
        let bytes = Self::charge(bytes);
        let mut state = lock(&self.state);
        while state.0 < bytes && !state.1 {
            state = wait(&self.changed, state);
        }
        state.0 = state.0.saturating_sub(bytes);
        !state.1
    }

    pub fn give(&self, bytes: u64) {
        let mut state = lock(&self.state);
        state.0 += Self::charge(bytes);
        self.changed.notify_all();
    }

    /// Lets nobody wait any more: the run ends.
    pub fn close(&self) {
        lock(&self.state).1 = true;
        self.changed.notify_all();
    }

    fn charge(bytes: u64) -> u64 {
        (bytes + JOB_BYTES).min(IN_FLIGHT_BYTES)
    }
}

/// Work for the pool.
pub enum Job {
    /// A file that is one block, or empty, as far as its size tells.
    File { dir: Arc<OpenDir>, name: Vec<u8>, stat: Stat, reply: Sender<FileReply> },
    /// A block of a long file.
    Block { plain: Vec<u8>, reply: Sender<HashedBlock> },
}

/// Pieces of a file that is longer than its size told which are held until it is known that they will do.
pub const MAX_HELD_PIECES: usize = 1 << 16;

/// What a worker says of a file.
pub enum FileReply {
    /// It was one block, or failed.
    Whole(Result<FileRead, FileError>),
    /// It is longer than its size told: its pieces, in order, and then the end.
    Hole(u64),
    Block(HashedBlock),
    /// It changed meanwhile (and had at most `MAX_HELD_PIECES`): what was told of it is void.
    Again,
    End(Result<Box<read::Read>, FileError>),
}

/// What an entry was in the version before, for the counts.
#[derive(Debug, Clone, Copy)]
pub struct Was {
    pub child: Child,
    pub kind: Kind,
    pub size: u64,
}

/// Counts of a subtree; `bytes` modulo 2^64, for sparse files can have 2^63 − 1 each: what one run adds another takes away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub files: u64,
    pub dirs: u64,
    pub others: u64,
    pub bytes: u64,
}

impl Totals {
    pub fn add(&mut self, kind: Kind, size: u64) {
        match kind {
            Kind::File => {
                self.files += 1;
                // Files that are one hole may add up to anything: all sums of sizes are modulo 2^64.
                self.bytes = self.bytes.wrapping_add(size);
            }
            Kind::Dir => self.dirs += 1,
            _ => self.others += 1,
        }
    }
    pub fn entries(&self) -> u64 {
        self.files + self.dirs + self.others
    }
}

/// What the walk tells the assembler, in tree order.
pub enum Step {
    /// A directory begins. Unless only what changed follows, `Keep` steps do too.
    Enter {
        dirno: Dirno,
        parent: Dirno,
        name: Vec<u8>,
        was: Option<DirState>,
        names: Names,
        known: bool,
    },
    /// The directory that was entered last ends. `kept` entries (`kept_dirs` of them directories) were not sent.
    Leave {
        attr: Attr,
        xattrs: Xattrs,
        kept: u64,
        kept_dirs: u64,
        totals: Totals,
    },
    /// As `Leave`, for a directory that was not looked at: its state stays.
    LeaveKept {
        state: DirState,
    },
    /// An entry that is as before, in a directory that is listed; what is not known of its blocks was told.
    Keep {
        name: Vec<u8>,
        node: Box<Node>,
    },
    /// Anything but a regular file or a directory.
    Put {
        name: Vec<u8>,
        was: Option<Was>,
        node: Box<Node>,
        path: Vec<u8>,
    },
    /// One more name of a file that an earlier step carries, or kept.
    Link {
        name: Vec<u8>,
        path: Vec<u8>,
        was: Option<Was>,
        logid: Logid,
        last: bool,
    },
    /// A regular file that the pool reads. `old` is its node before when only the proof was missing that it is unchanged.
    File {
        head: FileHead,
        size: u64,
        reply: Receiver<FileReply>,
    },
    /// In a dry run: a file that would be read.
    WouldRead {
        head: FileHead,
        size: u64,
    },
    LongBegin {
        head: FileHead,
    },
    LongHole {
        len: u64,
    },
    LongBlock {
        len: u64,
        reply: Receiver<HashedBlock>,
    },
    /// The file changed while it was read: everything since `LongBegin` is void.
    LongRestart {
        logid: Logid,
    },
    LongEnd {
        read: Result<Box<read::Read>, FileError>,
    },
    /// The name, and what was below it, is gone.
    Remove {
        name: Vec<u8>,
        totals: Totals,
    },
    /// Something could not be saved.
    Failed {
        path: Vec<u8>,
        error: crate::Error,
    },
    /// Something is saved without some of its extended attributes.
    Incomplete {
        path: Vec<u8>,
        error: std::io::Error,
    },
    /// Worth telling, no error.
    Warn {
        path: Vec<u8>,
        what: String,
    },
}

/// Which file a `File` or `LongBegin` step is about.
pub struct FileHead {
    pub name: Vec<u8>,
    pub path: Vec<u8>,
    pub logid: Logid,
    pub was: Option<Was>,
    pub old: Option<Box<Node>>,
    /// It has other names: remember its node for the `Link` steps.
    pub linked: bool,
}

/// A worker gives a larger buffer back after use.
const KEPT_BUFFER_BYTES: usize = 4 << 20;

/// What the pool needs.
pub struct Worker<'a> {
    pub keys: &'a Keys,
    pub dedup: &'a DedupTable,
    pub cutting: Cutting,
}

impl Worker<'_> {
    /// Serves jobs until the walk has ended. A reply that nobody waits for means that the run was given up.
    pub fn run(&self, jobs: Receiver<Job>) {
        let mut buffer = Vec::new();
        for job in jobs {
            match job {
                Job::Block { plain, reply } => {
                    let _ = reply.send(self.block(&plain));
                }
                Job::File { dir, name, stat, reply } => {
                    let to_block = |plain: &[u8]| self.block(plain);
                    let most_bytes = self.cutting.whole_file_bytes();
                    let done = read::whole_file(&dir, &name, &stat, most_bytes, &mut buffer, to_block);
                    if buffer.capacity() > KEPT_BUFFER_BYTES {
                        buffer = Vec::new();
                    }
                    match done.transpose() {
                        Some(done) => drop(reply.send(FileReply::Whole(done))),
                        None => self.piece_by_piece(&dir, &name, &stat, &reply),
                    }
                }
            }
        }
    }

    /// Reads a file that is longer than its size told.
    fn piece_by_piece(&self, dir: &OpenDir, name: &[u8], stat: &Stat, reply: &Sender<FileReply>) {
        for tries_left in (0..read::TRIES).rev() {
            let mut pieces = 0;
            let pass = read::long_pass(dir, name, stat, self.cutting, |piece| {
                let part = match piece {
                    Piece::Nothing => return true,
                    Piece::Hole(len) => FileReply::Hole(len),
                    Piece::Block(plain) => FileReply::Block(self.block(plain)),
                };
                pieces += 1;
                reply.send(part).is_ok()
            });
            let end = match pass {
                // Nobody waits for it any more.
                Ok(None) => return,
                Ok(Some(read)) if read.unsettled && tries_left > 0 && pieces <= MAX_HELD_PIECES => {
                    let _ = reply.send(FileReply::Again);
                    continue;
                }
                Ok(Some(read)) => Ok(Box::new(read)),
                Err(e) => Err(e),
            };
            let _ = reply.send(FileReply::End(end));
            return;
        }
    }

    fn block(&self, plain: &[u8]) -> HashedBlock {
        let hash = self.keys.block_hash(plain);
        let found = match self.dedup.find(&hash) {
            Some(id) => Found::Known(id),
            None => Found::New(plain.to_vec()),
        };
        HashedBlock { hash, plain_len: plain.len() as u32, found }
    }
}
