//! The end of the pipeline: takes steps in tree order, writes new blocks, builds nodes and the catalog, counts.
//!
//! Invariants: a block gets into a node only after its place in an arc (of this run or an earlier one) is settled; a file that
//! failed is absent from the version, never half there; nothing here depends on timing but the racy flags.

use std::collections::HashMap;
use std::io;

use crossbeam::channel::Receiver;

use super::block::{Found, HashedBlock};
use super::catalog::CatalogBuilder;
use super::expect::Expected;
use super::pipeline::{Budget, FileHead, FileReply, MAX_HELD_PIECES, Step, Totals, Was};
use super::read::{FileError, FileRead, Read};
use super::spare::Spare;
use crate::catalog::{
    CatalogFrame, Child, Content, ExtentChunk, Kind, MAX_INLINE_SEGMENTS, Node, Segment, VersionInfo, digest,
};
use crate::error::{Error, Result};
use crate::ids::{FileHash, Logid, TreeDigest, Version};
use crate::index::{DedupTable, Index};
use crate::live;
use crate::monitor::{Event, Monitor, Progress};
use crate::run::output::Output;

pub struct Assembler<'a, 'o> {
    out: &'a mut Output<'o>,
    index: &'a Index,
    spare: Spare,
    catalog: CatalogBuilder<'a>,
    dedup: &'a DedupTable,
    budget: &'a Budget,
    monitor: &'a dyn Monitor,
    info: VersionInfo,
    /// Change of the tree's totals against the version before.
    gained: Totals,
    lost: Totals,
    /// Nodes with further links to come; None when the file could not be saved.
    linked: HashMap<Logid, Option<Box<Node>>>,
    long: Option<LongFile>,
    expected: &'a Expected,
    progress: Progress,
}

/// A long file whose blocks are coming.
struct LongFile {
    head: FileHead,
    segments: Vec<Segment>,
    /// File offset of the first of `segments`; earlier ones are in the catalog.
    start: u64,
    data_bytes: u64,
    /// Segments that stay here before the first of them go into the catalog.
    held: usize,
    /// Of those that went there.
    digest: digest::Segments,
}

impl LongFile {
    fn new(head: FileHead, held: usize) -> LongFile {
        let digest = digest::Segments::default();
        LongFile { head, segments: Vec::new(), start: 0, data_bytes: 0, held, digest }
    }
}

impl<'a, 'o> Assembler<'a, 'o> {
    #[expect(clippy::too_many_arguments, reason = "the parts of a pipeline meet here")]
    pub fn new(
        out: &'a mut Output<'o>,
        index: &'a Index,
        dedup: &'a DedupTable,
        spare: Spare,
        budget: &'a Budget,
        monitor: &'a dyn Monitor,
        expected: &'a Expected,
        before: Option<Version>,
    ) -> Assembler<'a, 'o> {
        Assembler {
            out,
            index,
            spare,
            catalog: CatalogBuilder::new(before.map(|version| (index, version))),
            dedup,
            budget,
            monitor,
            info: VersionInfo::default(),
            gained: Totals::default(),
            lost: Totals::default(),
            linked: HashMap::new(),
            long: None,
            expected,
            progress: Progress::default(),
        }
    }

    pub fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Enter { dirno, parent, name, was, names, known } => {
                if !known {
                    self.count(Kind::Dir, 0, None);
                }
                self.catalog.enter(dirno, parent, name, was, names, known);
            }
            Step::Leave { mut attr, xattrs, kept, kept_dirs, totals } => {
                self.progress.files += totals.files;
                self.progress.bytes = self.progress.bytes.saturating_add(totals.bytes);
                self.catalog.kept(kept, kept_dirs);
                let subdirs = self.catalog.subdirs();
                attr.nlink = live::directory_nlink(attr.nlink, subdirs);
                self.catalog.leave(self.out, attr, xattrs)?;
            }
            Step::LeaveKept { state } => self.catalog.leave_kept(self.out, state)?,
            Step::Keep { name, node } => {
                self.progress.files += u64::from(node.attr.kind == Kind::File);
                self.progress.bytes = self.progress.bytes.saturating_add(node.attr.size);
                self.keep_known_extents(&node)?;
                self.catalog.put(name, &node, false);
            }
            Step::Put { name, was, node, path } => {
                self.monitor.event(Event::Path(&path));
                if node.attr.nlink > 1 {
                    self.linked.insert(node.logid, Some(node.clone()));
                }
                self.put_node(name, &node, was);
            }
            Step::Link { name, path, was, logid, last } => self.link(name, path, was, logid, last),
            Step::File { head, size, reply } => {
                let first = reply.recv().unwrap_or_else(|_| died());
                self.budget.give(size);
                match first {
                    FileReply::Whole(read) => self.file(head, read)?,
                    first => self.longer(head, first, &reply)?,
                }
            }
            // Dry runs have a consumer of their own.
            Step::WouldRead { .. } => {}
            Step::LongBegin { head } => {
                self.long = Some(LongFile::new(head, MAX_INLINE_SEGMENTS));
            }
            Step::LongHole { len } => self.segment(Segment::Hole { len })?,
            Step::LongBlock { len, reply } => {
                let block = reply.recv().map_err(|_| worker_died());
                self.budget.give(len);
                self.long_block(block?)?;
            }
            Step::LongRestart { logid } => {
                self.long = self.long.take().map(|long| {
                    let head = FileHead { logid, ..long.head };
                    LongFile::new(head, long.held)
                });
            }
            Step::LongEnd { read } => self.long_end(read)?,
            Step::Remove { name, totals } => {
                self.catalog.remove(name);
                self.info.removed += totals.entries();
                self.lose(totals);
            }
            Step::Failed { path, error } => self.failed(&path, &error),
            Step::Incomplete { path, error } => self.incomplete(&path, &error),
            Step::Warn { path, what } => self.monitor.event(Event::Warning { path: &path, what }),
        }
        (self.progress.expected_files, self.progress.expected_bytes) = self.expected.get();
        self.monitor.progress(self.progress);
        Ok(())
    }

    /// Closes the catalog; returns its frames, the root's digest, the counts of this run, and how the tree's totals
    /// changed.
    pub fn finish(mut self) -> Result<(Spare, Vec<CatalogFrame>, TreeDigest, VersionInfo, Totals, Totals)> {
        self.out.flush()?;
        self.info.stored_bytes = self.out.block_bytes();
        let (frames, root) = self.catalog.finish(self.out)?;
        Ok((self.spare, frames, root, self.info, self.gained, self.lost))
    }

    fn file(&mut self, head: FileHead, read: Result<FileRead, FileError>) -> Result<()> {
        self.progress.files += 1;
        let read = match read {
            Ok(read) => read,
            Err(e) => return self.file_failed(head, e),
        };
        self.monitor.event(Event::Path(&head.path));
        let FileRead { read, block } = read;
        self.progress.bytes = self.progress.bytes.saturating_add(read.attr.size);
        self.info.bytes_read += read.attr.size;
        let segments = match block {
            Some(block) => vec![self.store(block)?],
            None => Vec::new(),
        };
        let data_bytes = read.attr.size;
        self.saved(head, read, data_bytes, Content::Inline(segments))
    }

    /// A file whose worker sends it piece by piece.
    fn longer(&mut self, head: FileHead, first: FileReply, rest: &Receiver<FileReply>) -> Result<()> {
        let empty = |head| LongFile::new(head, MAX_HELD_PIECES);
        self.long = Some(empty(head));
        let mut reply = first;
        loop {
            match reply {
                FileReply::Hole(len) => self.segment(Segment::Hole { len })?,
                FileReply::Block(block) => self.long_block(block)?,
                FileReply::Again => self.long = self.long.take().map(|long| empty(long.head)),
                FileReply::End(read) => return self.long_end(read),
                FileReply::Whole(read) => return self.long_end(read.map(|read| Box::new(read.read))),
            }
            if self.monitor.interrupted() {
                return Err(Error::Interrupted);
            }
            reply = rest.recv().unwrap_or_else(|_| died());
        }
    }

    fn long_block(&mut self, block: HashedBlock) -> Result<()> {
        let len = u64::from(block.plain_len);
        let segment = self.store(block)?;
        self.progress.bytes += len;
        self.info.bytes_read += len;
        self.segment(segment)
    }

    fn long_end(&mut self, read: Result<Box<Read>, FileError>) -> Result<()> {
        self.progress.files += 1;
        let Some(mut long) = self.long.take() else { return Ok(()) };
        let read = match read {
            Ok(read) => *read,
            Err(e) => return self.file_failed(long.head, e),
        };
        self.monitor.event(Event::Path(&long.head.path));
        let content = if long.start == 0 && long.segments.len() <= MAX_INLINE_SEGMENTS {
            Content::Inline(std::mem::take(&mut long.segments))
        } else {
            self.flush_segments(&mut long, 1)?;
            Content::Chunked(std::mem::take(&mut long.digest).finish())
        };
        self.saved(long.head, read, long.data_bytes, content)
    }

    /// A file was read whole: it gets its new node, or keeps the old one if nothing but the doubt has changed.
    fn saved(&mut self, head: FileHead, read: Read, data_bytes: u64, content: Content) -> Result<()> {
        let Read { attr, xattrs, xattrs_failed, sha1, racy, unsettled, replaced } = read;
        let logid = head.logid;
        let mut node = Node { logid, attr, data_bytes, racy, sha1, target: Vec::new(), xattrs, content };
        if unsettled {
            self.info.torn += 1;
            let what = "changed while it was read, three times; saved as it was read last".into();
            self.monitor.event(Event::Warning { path: &head.path, what });
        }
        if let Some(error) = xattrs_failed {
            self.incomplete(&head.path, &error);
        }
        let mut rewrite = false;
        if let Some(old) = head.old.filter(|old| same_but_for_proof(old, &node)) {
            rewrite = old.racy != node.racy;
            node = Node { racy: node.racy, ..*old };
        }
        if head.linked {
            // Other names of a file that stood here when it was listed wait for its content in vain.
            self.linked.insert(head.logid, (!replaced).then(|| Box::new(node.clone())));
        }
        let same = head.was.is_some_and(|was| was.child == Child::Node(node.logid));
        if same {
            self.keep_extents(&node)?;
            self.catalog.put(head.name, &node, rewrite);
        } else {
            self.put_node(head.name, &node, head.was);
        }
        Ok(())
    }

    /// In a full listing a node that stays is told with all that belongs to it: a base stands alone.
    fn keep_extents(&mut self, node: &Node) -> Result<()> {
        self.tell_extents(node, |index, offset| index.extents_at(node.logid, offset).map(Some))
    }

    /// The same, as far as it is known.
    fn keep_known_extents(&mut self, node: &Node) -> Result<()> {
        self.tell_extents(node, |index, offset| index.known_extents(node.logid, offset))
    }

    fn tell_extents(&mut self, node: &Node, next: impl Fn(&Index, u64) -> Result<Option<ExtentChunk>>) -> Result<()> {
        if !matches!(node.content, Content::Chunked(_)) || !self.catalog.is_listed() {
            return Ok(());
        }
        let mut offset = 0;
        while offset < node.attr.size
            && let Some(chunk) = next(self.index, offset)?
        {
            offset = chunk.end();
            self.catalog.extents(self.out, chunk)?;
        }
        Ok(())
    }

    fn link(&mut self, name: Vec<u8>, path: Vec<u8>, was: Option<Was>, logid: Logid, last: bool) {
        let node = if last { self.linked.remove(&logid) } else { self.linked.get(&logid).cloned() };
        match node.flatten() {
            Some(node) if was.is_some_and(|was| was.child == Child::Node(node.logid)) => {
                self.catalog.put(name, &node, false);
            }
            Some(node) => self.put_node(name, &node, was),
            None => {
                let e = io::Error::from_raw_os_error(libc::ESTALE);
                self.failed(&path, &Error::io("read the other name of", live::path_of(&path), &e));
                self.absent(name, was);
            }
        }
    }

    /// Records a file that is new or changed.
    fn put_node(&mut self, name: Vec<u8>, node: &Node, was: Option<Was>) {
        self.count(node.attr.kind, node.attr.size, was);
        self.catalog.put(name, node, true);
    }

    /// Counts an entry that is new or changed.
    fn count(&mut self, kind: Kind, size: u64, was: Option<Was>) {
        match was {
            Some(was) => {
                self.info.changed += 1;
                let mut old = Totals::default();
                old.add(was.kind, was.size);
                self.lose(old);
            }
            None => self.info.new += 1,
        }
        self.gained.add(kind, size);
    }

    /// A file that could not be read is not in this version, even if it was in the one before; unless it is known to be
    /// unchanged, and was only to be read once more.
    fn file_failed(&mut self, head: FileHead, error: FileError) -> Result<()> {
        let unchanged = head.old.filter(|old| !old.racy && matches!(error, FileError::Io(_)));
        if head.linked {
            self.linked.insert(head.logid, unchanged.clone());
        }
        match error {
            FileError::Fatal(e) => return Err(e),
            FileError::Vanished => {
                self.info.vanished += 1;
                let what = "vanished before it could be read".into();
                self.monitor.event(Event::Warning { path: &head.path, what });
            }
            FileError::Io(e) => {
                let error = Error::io("read", live::path_of(&head.path), &e);
                if error.is_lack_of_descriptors() {
                    return Err(error);
                }
                self.failed(&head.path, &error);
            }
        }
        match unchanged {
            Some(node) => {
                self.keep_extents(&node)?;
                self.catalog.put(head.name, &node, false);
            }
            None => self.absent(head.name, head.was),
        }
        Ok(())
    }

    fn absent(&mut self, name: Vec<u8>, was: Option<Was>) {
        if let Some(was) = was {
            let mut totals = Totals::default();
            totals.add(was.kind, was.size);
            self.lose(totals);
            self.info.removed += 1;
            self.catalog.remove(name);
        }
    }

    fn failed(&mut self, path: &[u8], error: &Error) {
        self.info.errors += 1;
        self.progress.errors += 1;
        self.monitor.event(Event::Failure { path, error });
    }

    fn incomplete(&mut self, path: &[u8], error: &io::Error) {
        self.info.incomplete += 1;
        self.failed(path, &Error::io("save all extended attributes of", live::path_of(path), error));
    }

    fn lose(&mut self, totals: Totals) {
        self.lost.files += totals.files;
        self.lost.dirs += totals.dirs;
        self.lost.others += totals.others;
        self.lost.bytes = self.lost.bytes.wrapping_add(totals.bytes);
    }

    /// Writes a block unless it is stored already.
    fn store(&mut self, block: HashedBlock) -> Result<Segment> {
        let len = block.plain_len;
        // Another worker may have met the same bytes meanwhile.
        let known = match &block.found {
            Found::Known(id) => Some(*id),
            Found::New(_) => self.dedup.find_new(&block.hash),
        };
        let id = match (known, block.found) {
            (Some(id), _) | (None, Found::Known(id)) => {
                self.info.blocks_deduped += 1;
                self.spare.note(id);
                id
            }
            (None, Found::New(plain)) => {
                let id = self.out.block(plain, block.hash)?;
                self.dedup.insert(&block.hash, id);
                self.info.blocks_new += 1;
                self.info.plain_bytes += u64::from(len);
                id
            }
        };
        Ok(Segment::Data { block: id, len })
    }

    fn segment(&mut self, segment: Segment) -> Result<()> {
        let Some(mut long) = self.long.take() else { return Ok(()) };
        if let Segment::Data { len, .. } = segment {
            long.data_bytes += u64::from(len);
        }
        long.segments.push(segment);
        if long.segments.len() > long.held {
            long.held = MAX_INLINE_SEGMENTS;
            self.flush_segments(&mut long, ExtentChunk::MAX_SEGMENTS)?;
        }
        self.long = Some(long);
        Ok(())
    }

    /// Moves segments into the catalog, chunk by chunk, while there are at least `at_least` of them.
    fn flush_segments(&mut self, long: &mut LongFile, at_least: usize) -> Result<()> {
        while long.segments.len() >= at_least.max(1) {
            let count = long.segments.len().min(ExtentChunk::MAX_SEGMENTS);
            let segments: Vec<Segment> = long.segments.drain(..count).collect();
            let len: u64 = segments.iter().map(Segment::len).sum();
            long.digest.add(&segments);
            self.catalog.extents(self.out, ExtentChunk { logid: long.head.logid, start: long.start, segments })?;
            long.start += len;
        }
        Ok(())
    }
}

/// Everything that makes a stored state is equal; where the bytes are, and whether that is proven, may differ.
fn same_but_for_proof(old: &Node, new: &Node) -> bool {
    fn state(node: &Node) -> (&crate::catalog::Attr, Option<FileHash>, &[u8], &crate::catalog::Xattrs, u64) {
        (&node.attr, node.sha1, &node.target, &node.xattrs, node.data_bytes)
    }
    state(old) == state(new)
}

fn died() -> FileReply {
    FileReply::Whole(Err(FileError::Fatal(worker_died())))
}

fn worker_died() -> Error {
    Error::SelfCheck { what: "a worker thread died".into() }
}
