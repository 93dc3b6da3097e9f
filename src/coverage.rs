//! `assay coverage`: which share of a version is proven, by what, and how long ago; which files were read.
//!
//! Invariants: only the index and the ledger are read, no data; a block counts once however many files use it, and as
//! proven only if the ledger has a proof of the place that it is read from now; memory is a bit a block and file (at
//! most `MAX_BITMAPS` × 512 bytes each), whatever the size of the backup.

use crate::catalog::{Attr, Child, Kind};
use crate::error::{Error, Result};
use crate::ids::{BlockId, CopyId, Dirno, FrameNo, Logid, Version};
use crate::index::{Entry, VersionRow};
use crate::ledger::bits::{Bits, Insert};
use crate::ledger::{By, Extent, How, Ledger, Proof, Session};
use crate::monitor::{Event, Monitor, Progress};
use crate::reader::walk::{Met, Walk};
use crate::tree::{Found, Listed, Piece, Tree};

/// Bitmaps of 4,096 blocks each: 512 million blocks, beyond which one that several files use may count again.
const MAX_BITMAPS: usize = 131_072;
/// Bytes of a file whose blocks are looked up at a time.
const WINDOW_BYTES: u64 = 1 << 30;
/// Upper ends of the ages that are told apart, days.
pub const AGES_DAYS: [u64; 4] = [1, 7, 30, 90];

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `r3`, `3`, `latest` or a folder name; the newest if not given.
    pub rev: Option<String>,
    /// Absolute; empty: the whole version.
    pub path: Vec<u8>,
    /// What is older counts as not proven and not read.
    pub since: Since,
}

/// How old a proof may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Since {
    #[default]
    Ever,
    /// Not older than this.
    Age { seconds: u64 },
    /// Since the newest mount began.
    Mount,
}

/// How much of a file was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reading {
    None,
    Part,
    Whole,
}

/// Blocks, and their plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    pub blocks: u64,
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.blocks += 1;
        self.bytes += bytes;
    }
}

/// What is proven of a version.
#[derive(Debug, Clone)]
pub struct Coverage {
    pub version: VersionRow,
    /// Nothing that is older counted, seconds since 1970.
    pub since_s: u64,
    /// Files (states, hard links once) with content.
    pub files: u64,
    pub whole: u64,
    /// Of the whole ones: those whose SHA-1 was compared.
    pub hashed: u64,
    pub part: u64,
    pub none: u64,
    pub total: Amount,
    pub proven: Amount,
    /// By the newest proof of each block.
    pub by: Vec<(How, By, Amount)>,
    /// By its age: up to each of `AGES_DAYS`, and older.
    pub ages: [Amount; AGES_DAYS.len() + 1],
    pub oldest_s: Option<u64>,
    pub newest_s: Option<u64>,
    /// Blocks that are damaged as far as is known.
    pub damaged: u64,
    /// Directories and files about which the index could not say everything.
    pub failures: u64,
    /// The newest mount, as far as it is noted.
    pub mount: Option<Session>,
    /// There is more that is about to be noted.
    pub being_written: bool,
    /// There were more blocks than can be told apart.
    pub inexact: bool,
    /// It was stopped before all was looked up: the counts are of what was.
    pub interrupted: bool,
}

/// Walks a version; `each` gets every file with content, by each of its names.
pub fn run(
    tree: &Tree,
    ledger: &Ledger,
    options: &Options,
    monitor: &dyn Monitor,
    now_s: u64,
    each: &mut dyn FnMut(&[u8], Reading) -> Result<()>,
) -> Result<Coverage> {
    let version = tree.version(options.rev.as_deref().unwrap_or("latest"))?;
    let mount = ledger.sessions().iter().rev().find(|session| session.by == By::Mount).copied();
    let since_s = match options.since {
        Since::Ever => 0,
        Since::Age { seconds } => now_s.saturating_sub(seconds),
        Since::Mount => mount.map(|session| session.started_s).ok_or_else(|| {
            Error::Usage("nothing that a mount has read is noted yet: unmount, or send the mount SIGUSR1".into())
        })?,
    };
    let v = version.version;
    // Below a path it is not known how many there are.
    let whole = options.path.iter().all(|byte| *byte == b'/');
    let progress = Progress { expected_files: if whole { version.info.files } else { 0 }, ..Progress::default() };
    let result = Coverage {
        version,
        since_s,
        files: 0,
        whole: 0,
        hashed: 0,
        part: 0,
        none: 0,
        total: Amount::default(),
        proven: Amount::default(),
        by: Vec::new(),
        ages: [Amount::default(); AGES_DAYS.len() + 1],
        oldest_s: None,
        newest_s: None,
        damaged: 0,
        failures: 0,
        mount,
        being_written: ledger.being_written() > 0,
        inexact: false,
        interrupted: false,
    };
    let moved = tree.index().has_moved_blocks()?;
    let mut count = Count {
        tree,
        ledger,
        monitor,
        now_s,
        moved,
        blocks: Bits::default(),
        files: Bits::default(),
        progress,
        result,
        each,
    };
    let mut path = options.path.as_slice();
    while let Some(shorter) = path.strip_suffix(b"/") {
        path = shorter;
    }
    let walked = match tree.find(v, path)? {
        Found::Dir(dir) => count.below(v, dir, path),
        Found::Node(logid, Kind::File) => count.file(path, logid, tree.attr(logid)),
        Found::Node(..) => Ok(()),
    };
    match walked {
        Err(Error::Interrupted) => count.result.interrupted = true,
        other => other?,
    }
    Ok(count.result)
}

struct Count<'a> {
    tree: &'a Tree,
    ledger: &'a Ledger,
    monitor: &'a dyn Monitor,
    now_s: u64,
    /// Some block is not where it was stored first.
    moved: bool,
    /// Blocks and files that were counted.
    blocks: Bits,
    files: Bits,
    /// Names of files, and the bytes of what they stand for, each once.
    progress: Progress,
    result: Coverage,
    each: &'a mut dyn FnMut(&[u8], Reading) -> Result<()>,
}

impl Count<'_> {
    fn below(&mut self, version: Version, top: Dirno, path: &[u8]) -> Result<()> {
        let (tree, monitor) = (self.tree, self.monitor);
        let walk = Walk { tree, version, since: None, stop: &|| monitor.interrupted() };
        walk.below(top, path, &mut |path, met| match met {
            _ if monitor.interrupted() => Err(Error::Interrupted),
            Met::Entry(Listed { entry: Entry { child: Child::Node(logid), kind: Kind::File, .. }, attr }) => {
                self.file(path, *logid, attr.clone())
            }
            Met::Entry(_) => Ok(()),
            Met::Lost(_, error) => self.trouble(path, error),
        })
    }

    /// What is damaged is told; the rest is counted.
    fn trouble(&mut self, path: &[u8], error: Error) -> Result<()> {
        if !error.is_damage() {
            return Err(error);
        }
        self.result.failures += 1;
        self.monitor.event(Event::Failure { path, error: &error });
        Ok(())
    }

    fn file(&mut self, path: &[u8], logid: Logid, attr: Result<(Attr, u64)>) -> Result<()> {
        self.progress.files += 1;
        self.progress.bytes = self.result.total.bytes;
        self.progress.errors = self.result.failures;
        self.monitor.progress(self.progress);
        let size = match attr {
            Ok((attr, _)) => attr.size,
            Err(error) => return self.trouble(path, error),
        };
        if size == 0 {
            return Ok(());
        }
        let read = self.ledger.file_since(logid, self.result.since_s).map(|files| files.extent);
        let reading = match read {
            None => Reading::None,
            Some(Extent::Part) => Reading::Part,
            Some(Extent::Whole | Extent::Hashed) => Reading::Whole,
        };
        (self.each)(path, reading)?;
        if self.files.insert(logid.0, MAX_BITMAPS) == Insert::Known {
            return Ok(());
        }
        let result = &mut self.result;
        result.files += 1;
        match reading {
            Reading::None => result.none += 1,
            Reading::Part => result.part += 1,
            Reading::Whole => result.whole += 1,
        }
        result.hashed += u64::from(read == Some(Extent::Hashed));
        self.content(logid, size).or_else(|error| self.trouble(path, error))?;
        Ok(())
    }

    fn content(&mut self, logid: Logid, size: u64) -> Result<()> {
        let node = self.tree.node(logid)?;
        let mut at = 0;
        while at < size {
            if self.monitor.interrupted() {
                return Err(Error::Interrupted);
            }
            let len = WINDOW_BYTES.min(size - at);
            for piece in self.tree.segments(&node, at, len)? {
                if let Piece::Data { block, block_len, .. } = piece {
                    match self.blocks.insert(block.dense(), MAX_BITMAPS) {
                        Insert::Known => continue,
                        Insert::Full => self.result.inexact = true,
                        Insert::New => {}
                    }
                    self.block(block, u64::from(block_len))?;
                }
            }
            at += len;
        }
        Ok(())
    }

    fn block(&mut self, block: BlockId, bytes: u64) -> Result<()> {
        let place = if self.moved { self.tree.index().location(block)? } else { block };
        let result = &mut self.result;
        result.total.add(bytes);
        result.damaged += u64::from(self.ledger.is_damaged(place.arc(), CopyId::LOCAL, place.frame()));
        let Some(proof) = newest(self.ledger, place).filter(|proof| proof.when_s >= result.since_s) else {
            return Ok(());
        };
        result.proven.add(bytes);
        let known = result.by.iter().position(|(how, by, _)| (*how, *by) == (proof.how, proof.by));
        let at = known.unwrap_or_else(|| {
            result.by.push((proof.how, proof.by, Amount::default()));
            result.by.len() - 1
        });
        if let Some((.., amount)) = result.by.get_mut(at) {
            amount.add(bytes);
        }
        let age_days = self.now_s.saturating_sub(proof.when_s) / 86_400;
        let bucket = AGES_DAYS.iter().position(|days| age_days < *days).unwrap_or(AGES_DAYS.len());
        if let Some(amount) = result.ages.get_mut(bucket) {
            amount.add(bytes);
        }
        result.oldest_s = Some(result.oldest_s.map_or(proof.when_s, |oldest_s| oldest_s.min(proof.when_s)));
        result.newest_s = result.newest_s.max(Some(proof.when_s));
        Ok(())
    }
}

fn newest(ledger: &Ledger, place: BlockId) -> Option<Proof> {
    let frame: FrameNo = place.frame();
    ledger.frame(place.arc(), CopyId::LOCAL, frame, How::Read)
}

impl Coverage {
    /// A mount walked directories and read not one file: as `rsync -a` does without `-c`.
    pub fn only_walked(&self) -> bool {
        self.mount.is_some_and(|session| session.files_read == 0 && session.dirs_listed > 0)
    }
}
