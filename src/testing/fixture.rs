//! A small backup dir for tests, made of real arcs and a real index, without the backup engine.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use super::Rng;
use crate::arc::{ArcWriter, BlockInfo, FrameInfo, FrameKind, Packer};
use crate::catalog::digest::ItemDigest;
use crate::catalog::{
    ArcEntry, ArcRole, Attr, CatalogFrame, Commit, Content, DirState, ExtentChunk, Kind, Listing, Named, Node, Record,
    Segment, Timespec, VersionInfo, Xattrs, digest,
};
use crate::crypto::Keys;
use crate::depot::Local;
use crate::error::Result;
use crate::ids::{ArcId, ArcName, ArcSerial, BackupId, Dirno, FrameNo, ListingDigest, Logid, TreeDigest, Version};
use crate::index::{CatalogSource, Index, IndexWriter};
use crate::own::{OwnDir, Sharing};
use crate::store::{Store, StoreOptions};
use crate::tree::{Tree, View};

pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub keys: Arc<Keys>,
    pub index: Arc<Index>,
    writer: IndexWriter,
    next_serial: u64,
    runs: u32,
    /// Directories as the last commit left them, with the record that tells where they are.
    dirs: BTreeMap<Dirno, (Record, BTreeMap<Vec<u8>, Named>)>,
}

struct InMemory(Vec<(ArcSerial, Vec<FrameInfo>)>, Vec<u8>);

impl CatalogSource for InMemory {
    fn frame_table(&mut self, arc: &ArcEntry) -> Result<Vec<FrameInfo>> {
        Ok(self.0.iter().find(|(serial, _)| *serial == arc.serial).unwrap().1.clone())
    }
    fn catalog_frame(&mut self, _: &CatalogFrame, _: &ArcEntry) -> Result<Vec<u8>> {
        Ok(self.1.clone())
    }
}

pub fn attr(kind: Kind, size: u64) -> Attr {
    Attr {
        kind,
        perm: 0o640,
        uid: 1000,
        gid: 100,
        size,
        mtime: Timespec { sec: -5, nsec: 7 },
        ctime: Timespec { sec: 9, nsec: 1 },
        nlink: 1,
        rdev_major: 0,
        rdev_minor: 0,
        source_ino: 77,
    }
}

pub fn dir_record(dirno: Dirno, parent: Dirno, name: &[u8], children: u64) -> Record {
    let attr = Attr { perm: 0o755, nlink: 2, ..attr(Kind::Dir, 4096) };
    let (xattrs, listing) = (vec![(b"user.d".to_vec(), b"1".to_vec())], ListingDigest([0; 32]));
    let state = Some(DirState { attr, xattrs, children, listing });
    Record::Dir { dirno, parent, name: name.to_vec(), listing: Listing::Full, state }
}

pub fn put_dir(name: &[u8], dirno: Dirno) -> Record {
    Record::Put { name: name.to_vec(), item: Named::Dir(dirno) }
}

pub fn node(logid: u64, segments: &[Segment], xattrs: Xattrs) -> Node {
    let size = segments.iter().map(Segment::len).sum();
    let data = segments.iter().filter(|s| matches!(s, Segment::Data { .. }));
    Node {
        logid: Logid(logid),
        attr: attr(Kind::File, size),
        data_bytes: data.map(Segment::len).sum(),
        racy: false,
        sha1: segments.is_empty().then(|| crate::crypto::FileHasher::default().finish()),
        target: Vec::new(),
        xattrs,
        content: Content::Inline(segments.to_vec()),
    }
}

pub fn put(name: &[u8], node: Node) -> Record {
    Record::Put { name: name.to_vec(), item: Named::Node(Box::new(node)) }
}

/// Turns a node's inline list into chunks of `per_chunk` segments.
pub fn chunked(mut node: Node, per_chunk: usize) -> (Vec<Record>, Node) {
    let Content::Inline(segments) = node.content.clone() else { unreachable!() };
    let mut digest = digest::Segments::default();
    digest.add(&segments);
    node.content = Content::Chunked(digest.finish());
    let mut start = 0;
    let mut records = Vec::new();
    for part in segments.chunks(per_chunk) {
        records.push(Record::Extents(ExtentChunk { logid: node.logid, start, segments: part.to_vec() }));
        start += part.iter().map(Segment::len).sum::<u64>();
    }
    (records, node)
}

/// Bytes that zstd shrinks a little, different for each seed.
pub fn some_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| (rng.next() >> 40) as u8 & 0x3f).collect()
}

impl Fixture {
    pub fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let keys = Arc::new(Keys::new(&zeroize::Zeroizing::new([7; 32]), BackupId([1; 16])));
        let path = dir.path().join("index.db");
        Index::create(&path, &keys.index_key()).unwrap();
        let writer = IndexWriter::open(&path, &keys.index_key()).unwrap();
        let index = Arc::new(Index::open(&path, &keys.index_key()).unwrap());
        Fixture { dir, keys, index, writer, next_serial: 0, runs: 0, dirs: BTreeMap::new() }
    }

    /// The records with the digests of their directories, and of those above them; and the root's.
    fn digested(&mut self, records: &[Record]) -> (Vec<Record>, TreeDigest) {
        let mut open = Dirno::ROOT;
        for record in records {
            match record {
                Record::Dir { dirno, listing, state, .. } => {
                    open = *dirno;
                    let mut told = record.clone();
                    let before = self.dirs.remove(dirno);
                    if let (None, Record::Dir { state, .. }, Some((Record::Dir { state: was, .. }, _))) =
                        (state, &mut told, &before)
                    {
                        state.clone_from(was);
                    }
                    let names = before.map(|(_, names)| names).filter(|_| *listing != Listing::Full);
                    self.dirs.insert(*dirno, (told, names.unwrap_or_default()));
                }
                Record::Put { name, item } => {
                    self.dirs.get_mut(&open).unwrap().1.insert(name.clone(), item.clone());
                }
                Record::Remove { name } => drop(self.dirs.get_mut(&open).unwrap().1.remove(name)),
                _ => {}
            }
        }
        let mut states = BTreeMap::new();
        let root = self.digest_of(Dirno::ROOT, &mut states);
        let mut all = records.to_vec();
        let mut told = BTreeSet::new();
        for record in &mut all {
            if let Record::Dir { dirno, state: Some(state), .. } = record
                && let Some(digested) = states.get(dirno)
            {
                *state = digested.clone();
                told.insert(*dirno);
            }
        }
        for (dirno, digested) in states {
            let Some((Record::Dir { parent, name, state, .. }, _)) = self.dirs.get_mut(&dirno) else { unreachable!() };
            if state.as_ref() != Some(&digested) {
                *state = Some(digested);
                if !told.contains(&dirno) {
                    let (parent, name, state) = (*parent, name.clone(), state.clone());
                    all.push(Record::Dir { dirno, parent, name, listing: Listing::Delta, state });
                }
            }
        }
        (all, root)
    }

    fn digest_of(&self, dirno: Dirno, states: &mut BTreeMap<Dirno, DirState>) -> TreeDigest {
        let Some((Record::Dir { state: Some(state), .. }, names)) = self.dirs.get(&dirno) else {
            return TreeDigest([0; 32]);
        };
        let mut listing = digest::Listing::new(digest::Known::All);
        for (name, item) in names {
            let digest = match item {
                Named::Node(node) => ItemDigest::Node(digest::node(node)),
                Named::Dir(below) => ItemDigest::Dir(self.digest_of(*below, states)),
            };
            listing.add(name, item.kind(), &digest);
        }
        let state = DirState { listing: listing.finish(), ..state.clone() };
        let digest = digest::dir(&state);
        states.insert(dirno, state);
        digest
    }

    fn arc(&mut self, role: ArcRole, kind: FrameKind, frames: &[Vec<u8>]) -> (ArcEntry, Vec<FrameInfo>) {
        let serial = ArcSerial(self.next_serial);
        self.next_serial += 1;
        let name = ArcName { version: Version(self.runs), number: serial.0 as u32 + 1 };
        let mut packer = Packer::new(1).unwrap();
        let mut arc =
            ArcWriter::create(Vec::new(), &self.keys, name, role, serial, ArcId(crate::crypto::random().unwrap()))
                .unwrap();
        for plain in frames {
            let packed = packer.pack(plain).unwrap();
            arc.append(kind, &packed, vec![BlockInfo::of(&self.keys, plain)]).unwrap();
        }
        let infos = arc.frames().to_vec();
        let done = arc.finish(&self.keys, &mut packer).unwrap();
        std::fs::File::create(self.dir.path().join(name.to_string())).unwrap().write_all(&done.out).unwrap();
        (done.entry, infos)
    }

    /// The serial that the next commit's data arc will have: its n-th block is `BlockId::first(serial, n)`.
    pub fn next_data_serial(&self) -> ArcSerial {
        ArcSerial(self.next_serial)
    }

    /// Commits a version with one data arc of these blocks and one catalog frame of these records.
    pub fn commit(&mut self, blocks: &[Vec<u8>], records: &[Record]) -> Version {
        let (records, root) = self.digested(records);
        let mut catalog = Vec::new();
        records.iter().for_each(|record| crate::catalog::codec::encode_record(&mut catalog, record));
        let (data, data_frames) = self.arc(ArcRole::Data, FrameKind::Block, blocks);
        let (cat, cat_frames) = self.arc(ArcRole::Catalog, FrameKind::Catalog, std::slice::from_ref(&catalog));
        let run = Version(self.runs);
        self.runs += 1;
        let told: BTreeSet<Dirno> = records
            .iter()
            .filter_map(|record| match record {
                Record::Dir { dirno, .. } => Some(*dirno),
                _ => None,
            })
            .collect();
        let mut dirs: Vec<(Dirno, u64)> = Vec::new();
        for dirno in told {
            match dirs.last_mut() {
                Some((first, count)) if first.0 + *count == dirno.0 => *count += 1,
                _ => dirs.push((dirno, 1)),
            }
        }
        let commit = Commit {
            run,
            run_id: [run.0 as u8; 16],
            previous: self.writer.state().unwrap().last_commit,
            version: Some(VersionInfo {
                name: format!("2026-01-0{}-1200-{run}", run.0 + 1),
                finished: Timespec { sec: 1_000_000 + i64::from(run.0), nsec: 5 },
                tree_bytes: 123_456,
                files: 3,
                ..VersionInfo::default()
            }),
            roots: vec![(run, root)],
            base: run.0 == 0,
            catalog: vec![CatalogFrame { arc: cat.serial, frame: FrameNo(0), dirs }],
            next_serial: self.next_serial,
            next_logid: 1 << 20,
            next_dirno: 1 << 20,
            arcs: vec![data.clone(), cat.clone()],
        };
        let mut source = InMemory(vec![(data.serial, data_frames), (cat.serial, cat_frames)], catalog);
        let digest = crate::backupdir::arcs::write_commit(&self.own(), &self.keys, &commit).unwrap();
        let report = self.writer.apply(&commit, digest, &mut source).unwrap();
        assert!(report.lost.is_empty() && report.unknown_arcs.is_empty());
        run
    }

    pub fn tree(&self, view: View) -> Tree {
        Tree::new(self.index.clone(), Arc::new(Local::new(&self.own())), self.keys.clone(), view)
    }

    pub fn own(&self) -> Arc<OwnDir> {
        Arc::new(OwnDir::open(self.dir.path(), Sharing::Refused).unwrap())
    }

    pub fn store(&self, options: StoreOptions) -> Store {
        Store::new(Arc::new(Local::new(&self.own())), self.keys.clone(), self.index.clone(), options)
    }

    pub fn arc_path(&self, serial: ArcSerial) -> std::path::PathBuf {
        self.dir.path().join(self.index.arc(serial).unwrap().entry.name.to_string())
    }

    /// Changes two bytes of the n-th frame behind its header, in place: more than a repair puts right.
    pub fn spoil_frame(&self, serial: ArcSerial, frame: FrameNo) {
        self.flip_bit(serial, frame, 40, 2);
        self.flip_bit(serial, frame, 49, 5);
    }

    /// Flips a bit of the n-th frame, in place.
    pub fn flip_bit(&self, serial: ArcSerial, frame: FrameNo, byte: usize, bit: u8) {
        let chunk = self.index.frame_chunk(serial, frame).unwrap();
        let (offset, _) = chunk.locate(frame).unwrap();
        let path = self.arc_path(serial);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[offset as usize + byte] ^= 1 << bit;
        std::fs::write(&path, bytes).unwrap();
    }
}
