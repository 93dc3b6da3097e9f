//! Everything that can be asked about a backup dir, the right answers, and the judge.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::backupdir::BackupDir;
use crate::catalog::{Child, Kind, Node};
use crate::error::{Error, Result};
use crate::ids::{BlockId, Dirno, FramePlace, Logid, Slot, Version};
use crate::index::{DirRow, Entry};
use crate::reader::{self, Backup};
use crate::store::{Heal, Store, StoreOptions};
use crate::tree::{Found, Piece, Tree};

/// Reads a backup dir through tree and store; no block is cached.
pub struct Reader {
    pub tree: Arc<Tree>,
    pub store: Arc<Store>,
}

impl Reader {
    pub fn new(dir: &BackupDir) -> Reader {
        let index = Arc::new(dir.open_index().unwrap());
        let Backup { tree, store } = open(dir, &index, Heal::Off);
        Reader { tree, store }
    }

    /// Bytes of a file, cut at its end. Blocks are read as `get` and the mount do.
    pub fn bytes(&self, logid: Logid, offset: u64, len: u64) -> Result<Vec<u8>> {
        let node = self.tree.node(logid)?;
        let mut bytes = Vec::new();
        for piece in self.tree.segments(&node, offset, len)? {
            match piece {
                Piece::Zero { len } => bytes.resize(bytes.len() + len as usize, 0),
                Piece::Data { block, block_len, start, len } => {
                    let block = self.store.block(block, block_len, Some(logid))?;
                    bytes.extend_from_slice(&block[start as usize..(start + len) as usize]);
                }
            }
        }
        Ok(bytes)
    }

    pub fn names(&self, v: Version, dir: Dirno) -> Result<Vec<Entry>> {
        let mut listing = self.tree.list(v, dir)?;
        let mut entries = Vec::new();
        loop {
            let page = listing.next_page(&self.tree)?;
            if page.is_empty() {
                return Ok(entries);
            }
            entries.extend(page.into_iter().map(|listed| listed.entry));
        }
    }

    /// All that a version has at and below a path, by relative path.
    pub fn below(&self, v: Version, path: &[u8]) -> BTreeMap<Vec<u8>, Child> {
        let top = match self.tree.find(v, path).unwrap() {
            Found::Dir(dirno) => Child::Dir(dirno),
            Found::Node(logid, _) => Child::Node(logid),
        };
        let mut found = BTreeMap::from([(Vec::new(), top)]);
        let mut open: Vec<(Vec<u8>, Child)> = vec![(Vec::new(), top)];
        while let Some((path, child)) = open.pop() {
            let Child::Dir(dirno) = child else { continue };
            for entry in self.names(v, dirno).unwrap() {
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(&entry.name);
                found.insert(below.clone(), entry.child);
                open.push((below, entry.child));
            }
        }
        found
    }
}

/// A store that has seen nothing yet.
pub fn fresh_store(dir: &BackupDir, index: &Arc<crate::index::Index>, heal: Heal) -> Arc<Store> {
    open(dir, index, heal).store
}

fn open(dir: &BackupDir, index: &Arc<crate::index::Index>, heal: Heal) -> Backup {
    let store = StoreOptions { cache_bytes: 0, heal, threads: 0, ..StoreOptions::default() };
    Backup::of(dir, index.clone(), reader::Options { store, ..reader::Options::default() })
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    Versions,
    Named(String),
    /// State, parent and name of a directory.
    Dir(Version, Dirno),
    Names(Version, Dirno),
    /// A name that is not there.
    Absent(Version, Dirno),
    Child(Version, Dirno, Vec<u8>),
    /// Through the directories in the last field.
    Path(Version, Vec<u8>, Vec<Dirno>),
    PathOf(Version, Dirno),
    /// History: whether the version changed it, and since when it and its names are as they are.
    History(Version, Dirno),
    Attr(Logid),
    Node(Logid),
    /// A range that is one block's, or a hole.
    Bytes(Logid, u64, u64, Option<BlockId>),
    /// The whole file hashes to what its node says.
    Sha1(Logid),
}

impl Ask {
    pub fn answer(&self, r: &Reader) -> Result<String> {
        Ok(match self {
            Ask::Versions => format!("{:?}", r.tree.versions()?),
            Ask::Named(name) => format!("{:?}", r.tree.version(name)?),
            Ask::Dir(v, dir) => format!("{:?}", DirRow { since: *v, ..r.tree.dir(*v, *dir)? }),
            Ask::Names(v, dir) => {
                let plain = |e: Entry| Entry { since: *v, ..e };
                format!("{:?}", r.names(*v, *dir)?.into_iter().map(plain).collect::<Vec<_>>())
            }
            Ask::Absent(v, dir) => format!("{:?}", r.tree.child(*v, *dir, b"no such name")?),
            Ask::Child(v, dir, name) => {
                format!("{:?}", r.tree.child(*v, *dir, name)?.map(|e| Entry { since: *v, ..e }))
            }
            Ask::Path(v, path, _) => match r.tree.find(*v, path) {
                // "Not there" would be an answer, and a wrong one.
                Err(Error::NoPath { .. }) => "not there".into(),
                found => format!("{:?}", found?),
            },
            Ask::PathOf(v, dir) => format!("{:?}", r.tree.index().path_of_dir(*v, *dir)?),
            Ask::History(v, dir) => {
                let since: Vec<Version> = r.names(*v, *dir)?.iter().map(|e| e.since).collect();
                format!("{:?}", (r.tree.index().changed_in(*v, *dir)?, r.tree.dir(*v, *dir)?.since, since))
            }
            Ask::Attr(logid) => format!("{:?}", r.tree.index().attr(*logid)?),
            // Whether it was proven unchanged is no part of the tree.
            Ask::Node(logid) => format!("{:?}", Node { racy: false, ..r.tree.index().node(*logid)? }),
            Ask::Bytes(logid, offset, len, _) => {
                let bytes = r.bytes(*logid, *offset, *len)?;
                format!("{} bytes, {:?}", bytes.len(), crate::crypto::sha256(&bytes))
            }
            Ask::Sha1(logid) => {
                let mut hasher = crate::crypto::FileHasher::default();
                hasher.update(&r.bytes(*logid, 0, u64::MAX)?);
                format!("{:?}", Some(hasher.finish()) == r.tree.node(*logid)?.sha1)
            }
        })
    }

    pub fn version(&self) -> Option<Version> {
        match self {
            Ask::Dir(v, _) | Ask::Names(v, _) | Ask::Absent(v, _) | Ask::Child(v, ..) => Some(*v),
            Ask::Path(v, ..) | Ask::PathOf(v, _) | Ask::History(v, _) => Some(*v),
            _ => None,
        }
    }

    /// Directories whose names the answer may need: what a directory itself is stands in the catalog twice. In a
    /// base that tells every directory, whatever lies below one whose names are lost is reached all the same.
    pub fn listings(&self, base: bool) -> Vec<Dirno> {
        match self {
            Ask::Names(_, dir) | Ask::Absent(_, dir) | Ask::Child(_, dir, _) | Ask::History(_, dir) => vec![*dir],
            Ask::Path(.., through) if base => through.last().copied().into_iter().collect(),
            Ask::Path(.., through) => through.clone(),
            _ => vec![],
        }
    }

    pub fn logid(&self) -> Option<Logid> {
        match self {
            Ask::Attr(logid) | Ask::Node(logid) | Ask::Bytes(logid, ..) | Ask::Sha1(logid) => Some(*logid),
            _ => None,
        }
    }

    pub fn is_bytes(&self) -> bool {
        matches!(self, Ask::Bytes(..) | Ask::Sha1(_))
    }
}

/// All questions with the answers of an undamaged backup dir.
pub struct Truth {
    pub questions: Vec<(Ask, String)>,
    /// By block: the questions that read it.
    pub readers: BTreeMap<BlockId, Vec<usize>>,
}

impl Truth {
    pub fn of(r: &Reader) -> Truth {
        let mut asks = vec![Ask::Versions, Ask::Named("latest".into())];
        let mut logids = BTreeSet::new();
        for row in r.tree.versions().unwrap() {
            let v = row.version;
            asks.extend([Ask::Named(v.to_string()), Ask::Named(row.info.name)]);
            tree_of(r, v, Dirno::ROOT, &mut Vec::new(), &mut vec![Dirno::ROOT], &mut asks, &mut logids);
        }
        for logid in &logids {
            asks.extend([Ask::Attr(*logid), Ask::Node(*logid), Ask::Sha1(*logid)]);
            let node = r.tree.node(*logid).unwrap();
            if node.attr.kind != Kind::File {
                continue;
            }
            let mut at = 0;
            for piece in r.tree.segments(&node, 0, u64::MAX).unwrap() {
                let block = match piece {
                    Piece::Data { block, .. } => Some(block),
                    Piece::Zero { .. } => None,
                };
                asks.push(Ask::Bytes(*logid, at, piece.len(), block));
                at += piece.len();
            }
        }
        asks.retain(|ask| !matches!(ask, Ask::Sha1(logid) if r.tree.node(*logid).unwrap().sha1.is_none()));
        let questions: Vec<(Ask, String)> = asks
            .into_iter()
            .map(|ask| {
                let answer = ask.answer(r).unwrap_or_else(|e| panic!("{ask:?}: {e}"));
                assert!(!matches!(ask, Ask::Sha1(_)) || answer == "true", "{ask:?}");
                (ask, answer)
            })
            .collect();
        let mut readers: BTreeMap<BlockId, Vec<usize>> = BTreeMap::new();
        for (n, (ask, _)) in questions.iter().enumerate() {
            if let Ask::Bytes(_, _, _, Some(block)) = ask {
                readers.entry(*block).or_default().push(n);
            }
        }
        Truth { questions, readers }
    }

    /// The questions that read a block of a frame.
    pub fn readers_of(&self, frame: FramePlace) -> Vec<usize> {
        let blocks = frame.slot(Slot(0))..=frame.slot(Slot::MAX);
        self.readers.range(blocks).flat_map(|(_, readers)| readers).copied().collect()
    }

    /// Questions about a frame, the hashes of its files included.
    pub fn need(&self, frame: FramePlace) -> BTreeSet<usize> {
        let direct: BTreeSet<usize> = self.readers_of(frame).into_iter().collect();
        let files: BTreeSet<Logid> = direct.iter().filter_map(|n| self.questions[*n].0.logid()).collect();
        let whole = |ask: &Ask| matches!(ask, Ask::Sha1(logid) if files.contains(logid));
        let hashes = self.questions.iter().enumerate().filter(|(_, (ask, _))| whole(ask)).map(|(n, _)| n);
        direct.iter().copied().chain(hashes).collect()
    }

    /// Asks one question; None if the answer is right.
    ///
    /// Panics on a wrong answer: there is nothing to weigh.
    pub fn ask(&self, r: &Reader, n: usize, what: &dyn Fn() -> String) -> Option<Error> {
        let (ask, right) = &self.questions[n];
        match ask.answer(r) {
            Ok(answer) => {
                assert!(answer == *right, "{}: WRONG ANSWER to {ask:?}:\n{answer}\nright:\n{right}", what());
                None
            }
            Err(error) => Some(error),
        }
    }

    /// Asks everything; returns the questions that had no answer.
    pub fn judge(&self, r: &Reader, what: &dyn Fn() -> String) -> Vec<(usize, Error)> {
        self.judge_those(r, what, &|_| true)
    }

    pub fn judge_those(
        &self,
        r: &Reader,
        what: &dyn Fn() -> String,
        those: &dyn Fn(&Ask) -> bool,
    ) -> Vec<(usize, Error)> {
        let asked = (0..self.questions.len()).filter(|n| those(&self.questions[*n].0));
        asked.filter_map(|n| self.ask(r, n, what).map(|error| (n, error))).collect()
    }

    /// Asks everything; all must be answered.
    pub fn assert_whole(&self, r: &Reader, what: &dyn Fn() -> String) {
        let failed = self.judge(r, what);
        let shown: Vec<_> = failed.iter().take(5).map(|(n, error)| (&self.questions[*n].0, error)).collect();
        assert!(failed.is_empty(), "{}: {} questions failed, the first: {shown:?}", what(), failed.len());
    }
}

fn tree_of(
    r: &Reader,
    v: Version,
    dir: Dirno,
    path: &mut Vec<u8>,
    through: &mut Vec<Dirno>,
    asks: &mut Vec<Ask>,
    logids: &mut BTreeSet<Logid>,
) {
    asks.extend([Ask::Dir(v, dir), Ask::Names(v, dir), Ask::Absent(v, dir), Ask::History(v, dir)]);
    asks.push(Ask::PathOf(v, dir));
    for entry in r.names(v, dir).unwrap() {
        let len = path.len();
        path.push(b'/');
        path.extend_from_slice(&entry.name);
        asks.push(Ask::Child(v, dir, entry.name));
        asks.push(Ask::Path(v, path.clone(), through.clone()));
        match entry.child {
            Child::Node(logid) => {
                logids.insert(logid);
            }
            Child::Dir(below) => {
                through.push(below);
                tree_of(r, v, below, path, through, asks, logids);
                through.pop();
            }
        }
        path.truncate(len);
    }
}
