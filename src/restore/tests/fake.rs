//! A version in memory whose blocks are really sealed, so that only the real check can open them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::arc::{BlockInfo, FrameInfo, FrameKind, Packer, VerifiedBlock, frame};
use crate::catalog::{Attr, Child, Content, DirState, Kind, Node, Segment, Timespec, Xattrs};
use crate::crypto::{ArcCipher, FileHasher, Keys};
use crate::error::{Error, Place, Result};
use crate::ids::{ArcId, ArcName, ArcSalt, ArcSerial, BackupId, BlockId, Dirno, FrameNo, Logid, Version};
use crate::monitor::Silent;
use crate::os::process::{getegid, geteuid};
use crate::reader::Blocks;
use crate::restore::{Decision, Extra, Names, Options, Question, Report, Source, Spare, Target, Totals, run};
use crate::tree::Piece;

pub const BLOCK: usize = 5_000;

/// A directory and its entries.
pub type Listed = (DirState, Vec<(Vec<u8>, Child)>);

/// A version in memory.
pub struct Fake {
    keys: Keys,
    cipher: ArcCipher,
    pub dirs: BTreeMap<Dirno, Listed>,
    pub nodes: HashMap<Logid, Arc<Node>>,
    blocks: Vec<(FrameInfo, Vec<u8>)>,
    pub unlistable: HashSet<Dirno>,
    /// Part of a file whose block list is lost.
    pub lost: HashMap<Logid, Range<u64>>,
    pub spare: Spare,
}

pub fn attr(kind: Kind, perm: u16) -> Attr {
    let (uid, gid) = if geteuid() == 0 { (1234, 5678) } else { (geteuid(), getegid()) };
    Attr {
        kind,
        perm,
        uid,
        gid,
        size: 0,
        mtime: Timespec { sec: 1_500_000_000, nsec: 123_456_789 },
        ctime: Timespec::default(),
        nlink: 1,
        rdev_major: 0,
        rdev_minor: 0,
        source_ino: 1,
    }
}

impl Fake {
    pub fn new() -> Fake {
        let keys = Keys::new(&Zeroizing::new([1; 32]), BackupId([2; 16]));
        let cipher = keys.arc_cipher(ArcId([3; 16]), &ArcSalt([4; 32]));
        let root = DirState {
            attr: attr(Kind::Dir, 0o755),
            xattrs: Xattrs::new(),
            children: 0,
            listing: crate::ids::ListingDigest([0; 32]),
        };
        Fake {
            keys,
            cipher,
            dirs: BTreeMap::from([(Dirno::ROOT, (root, Vec::new()))]),
            nodes: HashMap::new(),
            blocks: Vec::new(),
            unlistable: HashSet::new(),
            lost: HashMap::new(),
            spare: Spare::default(),
        }
    }

    pub fn put(&mut self, parent: Dirno, name: &[u8], child: Child) {
        let dir = self.dirs.get_mut(&parent).unwrap();
        dir.1.push((name.to_vec(), child));
        dir.1.sort_by(|a, b| a.0.cmp(&b.0));
        dir.0.children += 1;
    }

    pub fn add_dir(&mut self, parent: Dirno, name: &[u8], perm: u16) -> Dirno {
        let dirno = Dirno(self.dirs.len() as u64);
        let mut state = DirState {
            attr: attr(Kind::Dir, perm),
            xattrs: Xattrs::new(),
            children: 0,
            listing: crate::ids::ListingDigest([0; 32]),
        };
        state.attr.mtime.sec += dirno.0 as i64;
        self.dirs.insert(dirno, (state, Vec::new()));
        self.put(parent, name, Child::Dir(dirno));
        dirno
    }

    pub fn add_node(&mut self, parent: Dirno, name: &[u8], attr: Attr, change: impl FnOnce(&mut Node)) -> Logid {
        let logid = Logid(16 + self.nodes.len() as u64);
        let mut node = Node {
            logid,
            attr,
            data_bytes: 0,
            racy: false,
            sha1: None,
            target: Vec::new(),
            xattrs: Xattrs::new(),
            content: Content::Inline(Vec::new()),
        };
        change(&mut node);
        self.nodes.insert(logid, Arc::new(node));
        self.put(parent, name, Child::Node(logid));
        logid
    }

    /// A file in blocks of `BLOCK` bytes; blocks of zeros become holes.
    pub fn add_file(&mut self, parent: Dirno, name: &[u8], content: &[u8], change: impl FnOnce(&mut Node)) -> Logid {
        let mut segments = Vec::new();
        for plain in content.chunks(BLOCK) {
            if plain.iter().all(|byte| *byte == 0) {
                segments.push(Segment::Hole { len: plain.len() as u64 });
                continue;
            }
            let packed = Packer::new(1).unwrap().pack(plain).unwrap();
            let info = FrameInfo::of_one(FrameKind::Block, &packed, BlockInfo::of(&self.keys, plain));
            let no = self.blocks.len();
            let sealed = frame::seal(&self.cipher, FrameNo(no as u32), &info, &packed.stored);
            self.blocks.push((info, sealed));
            segments.push(Segment::Data {
                block: BlockId::first(ArcSerial(0), FrameNo(no as u32)),
                len: plain.len() as u32,
            });
        }
        let mut hasher = FileHasher::default();
        hasher.update(content);
        self.add_node(parent, name, attr(Kind::File, 0o640), |node| {
            node.attr.size = content.len() as u64;
            node.sha1 = Some(hasher.finish());
            node.content = Content::Inline(segments);
            change(node);
        })
    }

    /// Damages the stored bytes of one block of a file.
    pub fn flip(&mut self, file: Logid, block: usize) {
        let Content::Inline(segments) = &self.nodes[&file].content else { panic!() };
        let Segment::Data { block, .. } = segments[block] else { panic!() };
        self.blocks[block.frame().0 as usize].1[40] ^= 1;
    }

    pub fn get(&self, paths: &[&str], target: &Path) -> Report {
        self.get_with(paths, Target::Below(target.into()), Extra::Keep, &mut |question| panic!("asked: {question:?}"))
    }

    /// As `get`, but nothing can be done.
    pub fn get_fails(&self, path: &str, target: &Path) -> Error {
        let options = Options {
            paths: vec![path.as_bytes().to_vec()],
            target: Target::Below(target.into()),
            extra: Extra::Keep,
            spare: self.spare.clone(),
        };
        run(self, &options, &Silent, &mut |_| Decision::All).unwrap_err()
    }

    pub fn get_with(
        &self,
        paths: &[&str],
        target: Target,
        extra: Extra,
        confirm: &mut dyn FnMut(Question<'_>) -> Decision,
    ) -> Report {
        let paths = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        run(self, &Options { paths, target, extra, spare: self.spare.clone() }, &Silent, confirm).unwrap()
    }
}

impl Source for Fake {
    fn find(&self, path: &[u8]) -> Result<Child> {
        let mut at = Child::Dir(Dirno::ROOT);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let gone = Error::NoPath { path: path.to_vec(), version: Version(0) };
            let Child::Dir(dirno) = at else { return Err(gone) };
            at = self.dirs[&dirno].1.iter().find(|(known, _)| known == name).ok_or(gone)?.1;
        }
        Ok(at)
    }
    fn dir(&self, dir: Dirno) -> Result<DirState> {
        Ok(self.dirs[&dir].0.clone())
    }
    fn names(&self, dir: Dirno) -> Names {
        let lost = Error::DirectoryLost { dirno: dir, version: Version(0) };
        Names { entries: self.dirs[&dir].1.clone(), incomplete: self.unlistable.contains(&dir).then_some(lost) }
    }
    fn node(&self, logid: Logid) -> Result<Arc<Node>> {
        Ok(self.nodes[&logid].clone())
    }
    fn is_block(&self, block: BlockId, bytes: &[u8]) -> Result<bool> {
        Ok(self.blocks[block.frame().0 as usize].0.blocks[0].hash == self.keys.block_hash(bytes))
    }
    fn totals(&self, child: Child, stop: &dyn Fn() -> bool) -> Totals {
        let mut totals = Totals { entries: 1, ..Totals::default() };
        match child {
            Child::Node(logid) => totals.add_file(self.nodes[&logid].attr.kind, self.nodes[&logid].attr.size),
            _ if stop() => {}
            Child::Dir(dirno) => {
                self.dirs[&dirno].1.iter().for_each(|(_, child)| totals.add(self.totals(*child, stop)))
            }
        }
        totals
    }
}

impl Blocks for Fake {
    fn next_data(&self, _: &Node, offset: u64) -> Result<Option<u64>> {
        Ok(Some(offset))
    }
    fn pieces(&self, node: &Node, offset: u64, len: u64) -> Result<Vec<Piece>> {
        let end = offset + len;
        if self.lost.get(&node.logid).is_some_and(|lost| lost.start < end && offset < lost.end) {
            return Err(Error::ExtentsLost { logid: node.logid, offset });
        }
        let Content::Inline(segments) = &node.content else { panic!() };
        let (mut at, mut pieces) = (0, Vec::new());
        for segment in segments {
            let (from, to) = (at.max(offset), (at + segment.len()).min(end));
            if from < to {
                pieces.push(match *segment {
                    Segment::Data { block, len } => {
                        Piece::Data { block, block_len: len, start: (from - at) as u32, len: (to - from) as u32 }
                    }
                    Segment::Hole { .. } => Piece::Zero { len: to - from },
                });
            }
            at += segment.len();
        }
        Ok(pieces)
    }
    fn block(&self, block: BlockId, len: u32, _: Logid) -> Result<VerifiedBlock> {
        let (info, bytes) = &self.blocks[block.frame().0 as usize];
        assert_eq!(info.plain_len(), len);
        frame::open(&self.keys, &self.cipher, block.frame(), info, bytes)
            .map(|opened| opened.block(block.slot()).unwrap())
            .map_err(|damage| Error::Arc {
                place: Place {
                    arc: ArcName { version: Version(0), number: 0 },
                    frame: Some(block.frame()),
                    block: Some(block),
                    offset: 0,
                },
                damage,
            })
    }
}
