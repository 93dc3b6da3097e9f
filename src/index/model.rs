//! A model of a backup for tests: versions as nested maps, and the commits that make an index of them.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::apply::CatalogSource;
use super::{ApplyReport, Index, IndexWriter};
use crate::arc::{BlockInfo, Codec, FrameInfo, FrameKind};
use crate::catalog::codec::{decode_records, encode_record};
use crate::catalog::*;
use crate::error::{Damage, Error, Place, Result};
use crate::ids::*;

pub const KEY: [u8; 48] = [7; 48];

/// Deterministic numbers: tests need no outside randomness.
pub struct Lcg(pub u64);

impl Lcg {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub fn attr(kind: Kind, salt: u64) -> Attr {
    Attr {
        kind,
        perm: 0o644,
        uid: 1000,
        gid: (salt % 7) as u32,
        size: 0,
        mtime: Timespec { sec: salt as i64 - 5_000, nsec: (salt % 1_000_000_000) as u32 },
        ctime: Timespec { sec: salt as i64, nsec: 0 },
        nlink: 1 + (salt % 3) as u32,
        rdev_major: if matches!(kind, Kind::CharDevice | Kind::BlockDevice) { 8 } else { 0 },
        rdev_minor: 0,
        source_ino: salt,
    }
}

/// A file of one or two blocks in data arc `serial`, a long symlink or one with a big xattr, by `salt`.
pub fn node(logid: u64, salt: u64, serial: u64) -> Node {
    let kind = match salt % 8 {
        5 => Kind::Symlink,
        6 => Kind::Fifo,
        _ => Kind::File,
    };
    let mut node = Node {
        logid: Logid(logid),
        attr: attr(kind, salt),
        data_bytes: 0,
        racy: kind == Kind::File && salt % 5 == 1,
        sha1: None,
        target: vec![],
        xattrs: vec![],
        content: Content::Inline(vec![]),
    };
    match kind {
        Kind::Symlink => {
            let len = if salt % 16 == 5 { 4_095 } else { 11 };
            node.target = (0..len).map(|i| b'a' + (i + salt) as u8 % 26).collect();
            node.attr.size = len;
        }
        Kind::File => {
            let segments = vec![
                Segment::Data { block: BlockId::first(ArcSerial(serial), FrameNo(0)), len: 1000 },
                Segment::Hole { len: 4096 + salt % 9 },
            ];
            node.attr.size = segments.iter().map(Segment::len).sum();
            node.data_bytes = 1000;
            node.sha1 = Some(FileHash([salt as u8; 20]));
            if salt % 16 == 3 {
                node.xattrs = vec![(b"user.big".to_vec(), (0..60_000).map(|i| (i * salt / 7) as u8).collect())];
            }
            node.content = Content::Inline(segments);
            if salt % 16 == 4 {
                let mut list = digest::Segments::default();
                chunks_of(&node, 0).iter().for_each(|chunk| list.add(&chunk.segments));
                node.content = Content::Chunked(list.finish());
            }
        }
        _ => {}
    }
    node
}

pub fn chunks_of(node: &Node, serial: u64) -> Vec<ExtentChunk> {
    let first = Segment::Data { block: BlockId::first(ArcSerial(serial), FrameNo(1)), len: 1000 };
    let hole = Segment::Hole { len: node.attr.size - 1000 };
    vec![
        ExtentChunk { logid: node.logid, start: 0, segments: vec![first] },
        ExtentChunk { logid: node.logid, start: 1000, segments: vec![hole] },
    ]
}

#[derive(Debug, Clone)]
pub struct Dir {
    pub dirno: Dirno,
    pub salt: u64,
    pub children: BTreeMap<Vec<u8>, Item>,
    /// Computed once; a change of the tree forgets it.
    pub listing: OnceLock<ListingDigest>,
}

#[derive(Debug, Clone)]
pub enum Item {
    File(Box<Node>),
    Dir(Dir),
}

impl Dir {
    /// With the digest of all that is below.
    pub fn state(&self) -> DirState {
        let listing = *self.listing.get_or_init(|| {
            let mut listing = digest::Listing::new(digest::Known::All);
            for (name, item) in &self.children {
                let (kind, digest) = match item {
                    Item::File(node) => (node.attr.kind, digest::ItemDigest::Node(digest::node(node))),
                    Item::Dir(dir) => (Kind::Dir, digest::ItemDigest::Dir(digest::dir(&dir.state()))),
                };
                listing.add(name, kind, &digest);
            }
            listing.finish()
        });
        let mut attr = attr(Kind::Dir, self.salt);
        attr.nlink = 2;
        let xattrs = if self.salt % 11 == 3 { vec![(b"user.d".to_vec(), vec![9; 5_000])] } else { vec![] };
        DirState { attr, xattrs, children: self.children.len() as u64, listing }
    }

    fn forget_digests(&mut self) {
        self.listing = OnceLock::new();
        for item in self.children.values_mut() {
            if let Item::Dir(dir) = item {
                dir.forget_digests();
            }
        }
    }

    pub fn find(&mut self, path: &[Vec<u8>]) -> Option<&mut Dir> {
        match path.split_first() {
            None => Some(self),
            Some((name, rest)) => match self.children.get_mut(name) {
                Some(Item::Dir(dir)) => dir.find(rest),
                _ => None,
            },
        }
    }

    pub fn each(&self, path: &mut Vec<Vec<u8>>, visit: &mut impl FnMut(&[Vec<u8>], &Dir)) {
        visit(path, self);
        for (name, item) in &self.children {
            if let Item::Dir(dir) = item {
                path.push(name.clone());
                dir.each(path, visit);
                path.pop();
            }
        }
    }
}

/// What one directory's records say: None puts everything (a full listing).
pub type Changes = BTreeMap<Vec<Vec<u8>>, HashSet<Vec<u8>>>;

/// A commit with the bytes of its catalog frames.
pub struct Made {
    pub commit: Commit,
    pub digest: [u8; 32],
    pub tables: BTreeMap<ArcSerial, Vec<FrameInfo>>,
    pub frames: BTreeMap<(ArcSerial, FrameNo), Vec<u8>>,
}

/// A backup that changes at random.
pub struct Model {
    pub rng: Lcg,
    pub root: Dir,
    pub versions: BTreeMap<Version, (Dir, HashSet<Dirno>)>,
    pub commits: Vec<Made>,
    /// Frames of each commit's data arc.
    pub blocks: u32,
    next_logid: u64,
    next_dirno: u64,
    next_serial: u64,
}

impl Model {
    pub fn new(seed: u64) -> Model {
        Model {
            rng: Lcg(seed),
            root: Dir { dirno: Dirno::ROOT, salt: 1, children: BTreeMap::new(), listing: OnceLock::new() },
            versions: BTreeMap::new(),
            commits: Vec::new(),
            blocks: 300,
            next_logid: Logid::FIRST.0,
            next_dirno: 1,
            next_serial: 0,
        }
    }

    fn some_dir(&mut self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        self.root.each(&mut Vec::new(), &mut |path, _| all.push(path.to_vec()));
        all.swap_remove(self.rng.below(all.len() as u64) as usize)
    }

    fn new_item(&mut self, depth: usize) -> Item {
        if self.rng.below(4) == 0 && depth < 6 {
            let dirno = Dirno(self.next_dirno);
            self.next_dirno += 1;
            let mut children = BTreeMap::new();
            for i in 0..self.rng.below(4) {
                children.insert(format!("n{i}").into_bytes(), self.new_item(depth + 1));
            }
            return Item::Dir(Dir { dirno, salt: self.rng.below(1 << 30), children, listing: OnceLock::new() });
        }
        self.next_logid += 1;
        Item::File(Box::new(node(self.next_logid - 1, self.rng.below(1 << 20), self.next_serial)))
    }

    /// Changes a few things and commits them; `base` lists every directory.
    pub fn commit(&mut self, changes: u64, base: bool) {
        let mut changed: Changes = BTreeMap::new();
        if self.versions.is_empty() {
            changed.entry(vec![]).or_default();
        }
        for _ in 0..changes {
            let path = self.some_dir();
            let mut name = format!("n{}", self.rng.below(9)).into_bytes();
            if self.rng.below(6) == 0 {
                name = vec![0xff; crate::catalog::codec::MAX_NAME_LEN];
            }
            let action = self.rng.below(10);
            let item = self.new_item(path.len());
            let salt = self.rng.below(1 << 30);
            let dir = self.root.find(&path).unwrap();
            match action {
                0..6 => drop(dir.children.insert(name.clone(), item)),
                6..9 => drop(dir.children.remove(&name)),
                _ => dir.salt = salt,
            }
            changed.entry(path).or_default().insert(name);
        }
        self.emit(changed, base);
    }

    /// Turns the changes into a commit, its frames cut at random places.
    fn emit(&mut self, changed: Changes, base: bool) {
        self.root.forget_digests();
        let run = Version(self.commits.len() as u32 + 3);
        let before = self.versions.last_key_value().map(|(_, (root, _))| root.clone());
        let mut frames: Vec<(Vec<u8>, Vec<Dirno>)> = vec![(Vec::new(), Vec::new())];
        let mut touched = HashSet::new();
        let mut all = Vec::new();
        self.root.each(&mut Vec::new(), &mut |path, dir| all.push((path.to_vec(), dir.clone())));
        let parents: BTreeMap<Vec<Vec<u8>>, Dirno> = all.iter().map(|(path, dir)| (path.clone(), dir.dirno)).collect();
        for (path, dir) in &all {
            let old = before.clone().and_then(|mut root| root.find(path).filter(|o| o.dirno == dir.dirno).cloned());
            let names = changed.get(path);
            let same = old.as_ref().is_some_and(|old| {
                old.state() == dir.state()
                    && old.children.len() == dir.children.len()
                    && old.children.iter().all(|(n, i)| dir.children.get(n).is_some_and(|j| id_of(i) == id_of(j)))
            });
            if !same {
                for depth in 0..=path.len() {
                    touched.insert(parents[&path[..depth]]);
                }
            }
            if same && names.is_none() && !base {
                continue;
            }
            let full = base || old.is_none() || self.rng.below(5) == 0;
            let parent = path.split_last().map_or(Dirno::ROOT, |(_, up)| parents[up]);
            let name = path.last().cloned().unwrap_or_default();
            let mut records = Vec::new();
            let no_names = HashSet::new();
            let touched_names = names.unwrap_or(&no_names);
            if full {
                records.extend(dir.children.iter().map(|(name, item)| put(name, item)));
            } else {
                for name in touched_names {
                    records.push(match dir.children.get(name) {
                        Some(item) => put(name, item),
                        None => Record::Remove { name: name.clone() },
                    });
                }
                records.sort_by_key(|record| format!("{record:?}"));
            }
            let cut = if self.rng.below(4) == 0 { records.len() / 2 } else { 0 };
            let tail = records.split_off(cut);
            let state =
                if !full && old.is_some_and(|old| old.state() == dir.state()) { None } else { Some(dir.state()) };
            let open = |listing, state| Record::Dir { dirno: dir.dirno, parent, name: name.clone(), listing, state };
            let (first, more) =
                if full { (Listing::Full, Listing::FullMore) } else { (Listing::Delta, Listing::Delta) };
            let mut parts = vec![];
            if cut > 0 {
                parts.push((open(first, None), records));
                parts.push((open(more, state), tail));
            } else {
                parts.push((open(first, state), tail));
            }
            for (head, records) in parts {
                if self.rng.below(3) == 0 || (head_is_more(&head) && self.rng.below(2) == 0) {
                    frames.push((Vec::new(), Vec::new()));
                }
                let (bytes, dirs) = frames.last_mut().unwrap();
                for record in &records {
                    if let Record::Put { item: Named::Node(node), .. } = record
                        && matches!(node.content, Content::Chunked(_))
                    {
                        for chunk in chunks_of(node, 0) {
                            encode_record(bytes, &Record::Extents(chunk));
                        }
                    }
                }
                encode_record(bytes, &head);
                records.iter().for_each(|record| encode_record(bytes, record));
                dirs.push(dir.dirno);
            }
        }
        self.versions.insert(run, (self.root.clone(), touched));
        self.push(run, frames, base);
    }

    /// The counters stand above all that a catalog names.
    fn count(&mut self, frame: &[u8]) {
        for record in decode_records(frame).unwrap() {
            match record {
                Record::Dir { dirno, .. } => self.next_dirno = self.next_dirno.max(dirno.0 + 1),
                Record::Put { item: Named::Node(node), .. } => {
                    self.next_logid = self.next_logid.max(node.logid.0 + 1);
                }
                _ => {}
            }
        }
    }

    /// Adds a commit with these catalog frames, a data arc and no version of its own if `run` has none.
    pub fn push(&mut self, run: Version, frames: Vec<(Vec<u8>, Vec<Dirno>)>, base: bool) {
        let (data, catalog) = (ArcSerial(self.next_serial), ArcSerial(self.next_serial + 1));
        self.next_serial += 2;
        frames.iter().for_each(|(bytes, _)| self.count(bytes));
        let mut tables: BTreeMap<ArcSerial, Vec<FrameInfo>> = BTreeMap::new();
        tables.insert(data, (0..self.blocks).map(|i| block_info(data.0, i)).collect());
        let table = frames.iter().map(|(bytes, _)| FrameInfo {
            kind: FrameKind::Catalog,
            codec: Codec::Plain,
            stored_len: bytes.len() as u32,
            blocks: vec![BlockInfo { len: bytes.len() as u32, hash: BlockHash([1; 20]) }],
        });
        tables.insert(catalog, table.collect());
        let arc = |serial: ArcSerial, role, number| ArcEntry {
            serial,
            name: ArcName { version: run, number },
            role,
            id: ArcId([serial.0 as u8; 16]),
            salt: ArcSalt([3; 32]),
            arc_bytes: (1 << 24) + 1000 + 96,
            digest: ArcDigest([4; 32]),
            frames: tables[&serial].len() as u32,
            footer_offset: 1 << 24,
            footer_len: 1000,
            plain_bytes: 1 << 21,
        };
        let version = self.versions.get(&run).map(|(root, _)| VersionInfo {
            name: format!("2026-01-01-0000-{run}"),
            paths: vec![vec![b'/'; 5_000]],
            dirs: root.children.len() as u64,
            ..VersionInfo::default()
        });
        let commit = Commit {
            run,
            run_id: [run.0 as u8; 16],
            previous: self.commits.last().map(|made| (made.commit.run, made.digest)),
            roots: version.iter().map(|_| (run, digest::dir(&self.versions[&run].0.state()))).collect(),
            version,
            base,
            arcs: vec![arc(data, ArcRole::Data, 1), arc(catalog, ArcRole::Catalog, 2)],
            catalog: frames
                .iter()
                .zip(0..)
                .map(|((_, dirs), no)| CatalogFrame {
                    arc: catalog,
                    frame: FrameNo(no),
                    dirs: dirs.iter().map(|dir| (*dir, 1)).collect(),
                })
                .collect(),
            next_serial: self.next_serial,
            next_logid: self.next_logid,
            next_dirno: self.next_dirno,
        };
        let frames = frames.into_iter().zip(0..).map(|((bytes, _), no)| ((catalog, FrameNo(no)), bytes)).collect();
        self.commits.push(Made { commit, digest: [run.0 as u8; 32], tables, frames });
    }
}

pub fn id_of(item: &Item) -> Child {
    match item {
        Item::File(node) => Child::Node(node.logid),
        Item::Dir(dir) => Child::Dir(dir.dirno),
    }
}

fn head_is_more(head: &Record) -> bool {
    matches!(head, Record::Dir { listing: Listing::FullMore, .. })
}

pub fn put(name: &[u8], item: &Item) -> Record {
    let item = match item {
        Item::File(node) => Named::Node(node.clone()),
        Item::Dir(dir) => Named::Dir(dir.dirno),
    };
    Record::Put { name: name.to_vec(), item }
}

/// Frame `no` of data arc `serial`; each has a hash of its own.
pub fn block_info(serial: u64, no: u32) -> FrameInfo {
    let digest = crate::crypto::sha256(format!("{serial} {no}").as_bytes());
    let hash = BlockHash(*digest.first_chunk().unwrap());
    let blocks = vec![BlockInfo { len: 1000, hash }];
    FrameInfo { kind: FrameKind::Block, codec: Codec::Zstd, stored_len: 500 + no % 400, blocks }
}

/// Serves a commit's frames, some of them damaged.
pub struct Source<'a> {
    pub made: &'a Made,
    pub lost: HashSet<FrameNo>,
    pub no_tables: bool,
}

fn damage(arc: &ArcEntry, frame: Option<FrameNo>) -> Error {
    Error::Arc { place: Place { arc: arc.name, frame, block: None, offset: 0 }, damage: Damage::BadTag }
}

impl CatalogSource for Source<'_> {
    fn frame_table(&mut self, arc: &ArcEntry) -> Result<Vec<FrameInfo>> {
        if self.no_tables { Err(damage(arc, None)) } else { Ok(self.made.tables[&arc.serial].clone()) }
    }
    fn catalog_frame(&mut self, frame: &CatalogFrame, arc: &ArcEntry) -> Result<Vec<u8>> {
        if self.lost.contains(&frame.frame) {
            return Err(damage(arc, Some(frame.frame)));
        }
        Ok(self.made.frames[&(frame.arc, frame.frame)].clone())
    }
}

pub fn apply(writer: &mut IndexWriter, made: &Made) -> Result<ApplyReport> {
    writer.apply(&made.commit, made.digest, &mut Source { made, lost: HashSet::new(), no_tables: false })
}

/// An index of all commits of a model, in a directory of its own.
pub struct Built {
    pub dir: tempfile::TempDir,
}

impl Built {
    pub fn new() -> Built {
        let dir = tempfile::tempdir().unwrap();
        let built = Built { dir };
        Index::create(&built.path(), &KEY).unwrap();
        built
    }
    pub fn of(model: &Model) -> Built {
        let built = Built::new();
        let mut writer = built.writer();
        for made in &model.commits {
            let report = apply(&mut writer, made).unwrap();
            assert!(report.lost.is_empty() && report.unknown_arcs.is_empty() && report.conflicts == 0, "{report:?}");
        }
        writer.checkpoint().unwrap();
        built
    }
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("index.db")
    }
    pub fn writer(&self) -> IndexWriter {
        IndexWriter::open(&self.path(), &KEY).unwrap()
    }
    pub fn index(&self) -> Index {
        Index::open(&self.path(), &KEY).unwrap()
    }
}

pub fn dump(path: &Path) -> Vec<String> {
    dump_with(path, &KEY)
}

/// Every row of every table as text.
pub fn dump_with(path: &Path, key: &[u8; 48]) -> Vec<String> {
    let connection = super::schema::connect(path, key, super::schema::Access::Read).unwrap();
    let mut lines = Vec::new();
    for table in super::schema::TABLE_NAMES {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let cells: Vec<String> =
                (0..columns).map(|i| format!("{:?}", row.get::<_, rusqlite::types::Value>(i).unwrap())).collect();
            lines.push(format!("{table} {}", cells.join(" ")));
        }
    }
    lines
}
