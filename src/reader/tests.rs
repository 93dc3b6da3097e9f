//! Whole files and walks, compared with what was put in.

use std::collections::BTreeMap;
use std::ops::Range;

use proptest::prelude::*;

use super::file::{Found, Lost, read};
use super::walk::{Met, Walk};
use super::*;
use crate::catalog::{Child, Record, Segment};
use crate::crypto::FileHasher;
use crate::error::Error;
use crate::ids::{Dirno, FileHash, FrameNo, Version};
use crate::store::StoreOptions;
use crate::testing::Rng;
use crate::testing::fixture::{Fixture, chunked, dir_record, node, put, put_dir, some_bytes};
use crate::testing::lab::{Copy, Source};
use crate::tree::View;

const GRAIN: u64 = 4096;

/// Keeps everything, and looks at the order.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    lost: Vec<(Range<u64>, Option<BlockId>, Error)>,
    /// Steps after which it has had enough.
    patience: Option<usize>,
}

impl Kept {
    fn reach(&mut self, at: u64) {
        assert!(at >= self.bytes.len() as u64, "went back to {at}");
        self.bytes.resize(at as usize, 0);
    }
}

impl Sink for Kept {
    fn data(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.reach(at);
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
    fn zeros(&mut self, at: u64, len: u64) -> Result<()> {
        self.reach(at);
        self.reach(at + len);
        Ok(())
    }
    fn lost(&mut self, Lost { range, block, error }: Lost) -> Result<()> {
        self.reach(range.start);
        self.reach(range.end);
        self.lost.push((range, block.map(|(block, _)| block), error));
        Ok(())
    }
    fn go_on(&mut self, at: u64) -> Result<()> {
        assert!(at <= self.bytes.len() as u64 + (64 << 20));
        match &mut self.patience {
            Some(0) => Err(Error::Interrupted),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn open(fixture: &Fixture) -> Backup {
    let store =
        fixture.store(StoreOptions { threads: 2, words: crate::store::Words::Reader, ..StoreOptions::default() });
    Backup { tree: Arc::new(fixture.tree(View::Whole)), store: Arc::new(store) }
}

fn sha1(bytes: &[u8]) -> FileHash {
    let mut hasher = FileHasher::default();
    hasher.update(bytes);
    hasher.finish()
}

/// A stretch of a file: data or hole, its length, and whether its block is damaged.
type Part = (bool, usize, bool);

fn part() -> impl Strategy<Value = Part> {
    let len = prop_oneof![4 => 1..9000usize, 1 => Just(5 << 20)];
    (any::<bool>(), len, proptest::bool::weighted(0.2))
        .prop_map(|(data, len, bad)| (data, if data { len % 9000 + 1 } else { len }, bad))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_file_is_read_past_all_that_is_damaged(
        parts in proptest::collection::vec(part(), 1..14),
        per_chunk in 0..4usize,
        lost_chunk in proptest::option::of(0..14usize),
        hash in 0..3u8,
    ) {
        let mut fixture = Fixture::new();
        let serial = fixture.next_data_serial();
        let (mut content, mut blocks, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        // What can't be had, byte ranges in order, with the block.
        let mut bad: Vec<(Range<u64>, BlockId)> = Vec::new();
        // Longer than a node that carries its segments could be.
        for (data, len, spoilt) in parts.iter().chain(&[(false, 65, false)]) {
            let start = content.len() as u64;
            if !data {
                content.resize(content.len() + len, 0);
                segments.push(Segment::Hole { len: *len as u64 });
                continue;
            }
            let block = BlockId::first(serial, FrameNo(blocks.len() as u32));
            let bytes = some_bytes(blocks.len() as u64, *len);
            content.extend_from_slice(&bytes);
            blocks.push(bytes);
            segments.push(Segment::Data { block, len: *len as u32 });
            if *spoilt {
                bad.push((start..content.len() as u64, block));
            }
        }
        let size = content.len() as u64;
        let mut file = node(20, &segments, vec![]);
        file.sha1 = [None, Some(sha1(&content)), Some(sha1(b"something else"))][usize::from(hash)];
        let (mut extents, file) = if per_chunk == 0 { (Vec::new(), file) } else { chunked(file, per_chunk) };
        // A part of the list of blocks that the index does not have.
        let gap = lost_chunk.filter(|_| !extents.is_empty()).map(|number| {
            let Record::Extents(chunk) = extents.remove(number % extents.len()) else { unreachable!() };
            chunk.start..chunk.start + chunk.segments.iter().map(Segment::len).sum::<u64>()
        });
        let root = dir_record(Dirno::ROOT, Dirno::ROOT, b"", 1);
        let records: Vec<Record> = [root, put(b"f", file.clone())].into_iter().chain(extents).collect();
        fixture.commit(&blocks, &records);
        for (_, block) in &bad {
            fixture.spoil_frame(serial, block.frame());
        }
        let damaged = !bad.is_empty() || gap.is_some();

        let backup = open(&fixture);
        for compare in [Sha1::Compare, Sha1::Ignore] {
            let mut kept = Kept::default();
            let found = read(&backup, &file, compare, &mut kept).unwrap();
            kept.reach(size);
            let wanted = match (damaged, compare, file.sha1) {
                (true, ..) => Found::Damaged,
                (false, Sha1::Ignore, _) => Found::Whole,
                (false, Sha1::Compare, Some(expected)) if expected == sha1(&content) => Found::Hashed,
                (false, Sha1::Compare, expected) => {
                    Found::WrongHash { expected: expected.unwrap_or(FileHash([0; 20])), found: sha1(&content) }
                }
            };
            prop_assert_eq!(found, wanted);
            let mut wanted = content.clone();
            let mut told = Vec::new();
            for (range, block, error) in &kept.lost {
                prop_assert!(error.is_damage(), "{}", error);
                prop_assert_eq!(matches!(error, Error::Arc { .. }), block.is_some());
                let within = |bad: &Range<u64>| bad.start <= range.start && range.end <= bad.end;
                let is_bad = bad.iter().any(|(bad, of)| Some(*of) == *block && within(bad));
                let in_gap = gap.as_ref().is_some_and(|gap| {
                    range.start + 2 * GRAIN >= gap.start && range.end <= gap.end + 2 * GRAIN
                });
                prop_assert!(is_bad || in_gap, "{:?}", range);
                wanted[range.start as usize..range.end as usize].fill(0);
                super::file::join(&mut told, range.clone());
            }
            for lost in bad.iter().map(|(range, _)| range).chain(&gap) {
                let covers = |told: &Range<u64>| told.start <= lost.start && lost.end <= told.end;
                prop_assert!(told.iter().any(covers), "{:?} of {}", lost, size);
            }
            prop_assert!(kept.bytes == wanted);
        }
        let ranges = bad_ranges(&backup, &file).unwrap();
        prop_assert!(ranges.windows(2).all(|pair| pair[0].0.end < pair[1].0.start), "{:?}", ranges);
        if gap.is_none() {
            let mut joined = Vec::new();
            bad.iter().for_each(|(range, _)| super::file::join(&mut joined, range.clone()));
            prop_assert_eq!(ranges.into_iter().map(|(range, _)| range).collect::<Vec<_>>(), joined);
        }
    }
}

/// A file of four blocks, and its bytes.
fn four_blocks() -> (Fixture, Node, Vec<u8>) {
    let mut fixture = Fixture::new();
    let serial = fixture.next_data_serial();
    let blocks: Vec<_> = (0..4).map(|seed| some_bytes(seed, 5000)).collect();
    let segments: Vec<_> =
        (0..4).map(|no| Segment::Data { block: BlockId::first(serial, FrameNo(no)), len: 5000 }).collect();
    let file = Node { sha1: Some(sha1(&blocks.concat())), ..node(20, &segments, vec![]) };
    fixture.commit(&blocks, &[dir_record(Dirno::ROOT, Dirno::ROOT, b"", 1), put(b"f", file.clone())]);
    (fixture, file, blocks.concat())
}

#[test]
fn a_sink_that_has_had_enough_ends_the_reading() {
    let (fixture, file, content) = four_blocks();
    let backup = open(&fixture);
    for patience in 0..4 {
        let mut kept = Kept { patience: Some(patience), ..Kept::default() };
        assert_eq!(read(&backup, &file, Sha1::Compare, &mut kept).unwrap_err(), Error::Interrupted);
        assert!(kept.bytes == content[..patience * 5000] && kept.lost.is_empty());
    }
    let mut kept = Kept { patience: Some(4), ..Kept::default() };
    assert_eq!(read(&backup, &file, Sha1::Compare, &mut kept).unwrap(), Found::Hashed);
}

#[test]
fn what_is_out_of_reach_is_no_damage_of_the_file() {
    /// One block of it can't be read just now.
    struct Away(Backup, BlockId);
    let error = || Error::io("read", "arc.0.1", &std::io::Error::from_raw_os_error(libc::EACCES));
    impl Blocks for Away {
        fn pieces(&self, node: &Node, offset: u64, len: u64) -> Result<Vec<Piece>> {
            self.0.pieces(node, offset, len)
        }
        fn next_data(&self, node: &Node, offset: u64) -> Result<Option<u64>> {
            self.0.next_data(node, offset)
        }
        fn block(&self, block: BlockId, len_bytes: u32, file: Logid) -> Result<VerifiedBlock> {
            let away = Error::io("read", "arc.0.1", &std::io::Error::from_raw_os_error(libc::EACCES));
            if block == self.1 { Err(away) } else { self.0.block(block, len_bytes, file) }
        }
    }
    let (fixture, file, content) = four_blocks();
    let away = Away(open(&fixture), BlockId::first(crate::ids::ArcSerial(0), FrameNo(2)));
    assert_eq!(bad_ranges(&away, &file).unwrap_err(), error());
    let mut kept = Kept::default();
    assert_eq!(read(&away, &file, Sha1::Compare, &mut kept).unwrap(), Found::Damaged);
    assert_eq!(kept.lost, [(10_000..15_000, Some(away.1), error())]);
    assert!(kept.bytes[..10_000] == content[..10_000] && kept.bytes[15_000..] == content[15_000..]);
}

type Seen = Vec<(Vec<u8>, Child)>;

fn walked(
    backup: &Backup,
    version: Version,
    since: Option<Version>,
    path: &[u8],
    stop: &dyn Fn() -> bool,
) -> (Seen, Result<()>) {
    let crate::tree::Found::Dir(top) = backup.tree.find(version, path).unwrap() else { panic!("no directory") };
    let mut seen = Seen::new();
    let result = Walk { tree: &backup.tree, version, since, stop }.below(top, path, &mut |path, met| match met {
        Met::Entry(listed) => {
            assert!(listed.attr.is_ok());
            seen.push((path.to_vec(), listed.entry.child));
            Ok(())
        }
        Met::Lost(_, error) => Err(error),
    });
    (seen, result)
}

/// A path, and of a directory when it changed.
type AtSource = (Vec<u8>, Option<(i64, i64)>);

/// All paths at the source, parents first, names in byte order.
fn paths_of(dir: &std::path::Path) -> Vec<AtSource> {
    use std::os::unix::fs::MetadataExt;
    let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort_by(|a, b| a.file_name().unwrap().cmp(b.file_name().unwrap()));
    let mut paths = Vec::new();
    for path in entries {
        let meta = std::fs::metadata(&path).unwrap();
        let changed = meta.is_dir().then(|| (meta.ctime(), meta.ctime_nsec()));
        paths.push((path.as_os_str().as_encoded_bytes().to_vec(), changed));
        if meta.is_dir() {
            paths.extend(paths_of(&path));
        }
    }
    paths
}

#[test]
fn a_walk_meets_every_path_or_those_that_are_not_as_before() {
    let mut rng = Rng::from_env();
    println!("ASSAY_TEST_SEED={}", rng.seed);
    let (source, copy) = (Source::new(), Copy::init());
    let top = source.path().as_os_str().as_encoded_bytes().to_vec();
    let mut versions = Vec::new();
    for round in 0..5 {
        for _ in 0..40 >> round {
            let dir = ["", "a/", "a-b/", "a/deep/", "a/deep/er/", "z/", "z\u{1}/"][rng.below(7)];
            std::fs::create_dir_all(source.join(dir)).unwrap();
            let name = format!("{dir}{}", rng.below(30));
            match rng.below(6) {
                0 if source.join(dir).exists() && !dir.is_empty() && round > 0 => {
                    std::fs::remove_dir_all(source.join(dir)).unwrap()
                }
                1 => drop(std::fs::remove_file(source.join(&name))),
                _ => source.write(&name, format!("{round} {name}").as_bytes()),
            }
        }
        if round == 2 {
            // More than a page.
            (0..600).for_each(|number| source.write(&format!("z/wide {number}"), b"w"));
        }
        copy.backup(&source, &Default::default());
        versions.push(paths_of(source.path()));
    }
    let backup = {
        let dir = copy.open();
        Backup::of(&dir, dir.open_index().unwrap(), Options::default())
    };
    let go_on = || false;
    let all: Vec<Seen> = (0..versions.len())
        .map(|v| {
            let (seen, result) = walked(&backup, Version(v as u32), None, &top, &go_on);
            result.unwrap();
            assert!(seen.iter().map(|(path, _)| path).eq(versions[v].iter().map(|(path, _)| path)), "version {v}");
            seen
        })
        .collect();
    for v in 1..versions.len() {
        for since in 0..v {
            let before: BTreeMap<_, _> = all[since].iter().cloned().collect();
            let (seen, result) = walked(&backup, Version(v as u32), Some(Version(since as u32)), &top, &go_on);
            result.unwrap();
            let is_new = |(path, child): &&(Vec<u8>, Child)| before.get(path) != Some(child);
            let new: Seen = all[v].iter().filter(is_new).cloned().collect();
            let met: Seen = seen.iter().filter(is_new).cloned().collect();
            assert_eq!(met, new, "version {v} since {since}");
            // What is as it was is a directory on the way, and one in or below which something changed, or came and went.
            for (path, child) in seen.iter().filter(|seen| !is_new(seen)) {
                assert!(matches!(child, Child::Dir(_)), "{path:?} is as it was");
                let below = [path.as_slice(), b"/"].concat();
                let of = |v: usize| {
                    let here = |at: &[u8]| at == path.as_slice() || at.starts_with(&below);
                    let children = all[v].iter().filter(|(path, _)| here(path));
                    (
                        children.collect::<Vec<_>>(),
                        versions[v].iter().filter(|(path, _)| here(path)).collect::<Vec<_>>(),
                    )
                };
                assert!((since..v).any(|v| of(v) != of(v + 1)), "{path:?} is as it was");
            }
        }
    }
    // An end before the end.
    let mut seen_before = 0;
    for polls in 0u32.. {
        let left = std::cell::Cell::new(polls);
        let stop = || left.replace(left.get().saturating_sub(1)) == 0;
        let (seen, result) = walked(&backup, Version(2), None, &top, &stop);
        assert!(seen.len() >= seen_before && seen == all[2][..seen.len()]);
        seen_before = seen.len();
        if result.is_ok() {
            assert!(polls > 3 && seen.len() == all[2].len());
            break;
        }
        assert_eq!(result.unwrap_err(), Error::Interrupted);
        assert!(polls > 0 || seen.is_empty());
    }
}

#[test]
fn a_directory_that_cannot_be_listed_costs_its_own_names_only() {
    let mut fixture = Fixture::new();
    let (short, gone, good) = (Dirno(1), Dirno(2), Dirno(3));
    let empty = |logid| node(logid, &[], vec![]);
    fixture.commit(
        &[],
        &[
            dir_record(Dirno::ROOT, Dirno::ROOT, b"", 4),
            put_dir(b"a", short),
            put_dir(b"b", gone),
            put_dir(b"c", good),
            put(b"d", empty(20)),
            // One name more than there is.
            dir_record(short, Dirno::ROOT, b"a", 2),
            put(b"x", empty(21)),
            dir_record(good, Dirno::ROOT, b"c", 1),
            put(b"y", empty(22)),
        ],
    );
    let backup = open(&fixture);
    let (mut seen, mut lost) = (Vec::new(), Vec::new());
    let walk = Walk { tree: &backup.tree, version: Version(0), since: None, stop: &|| false };
    walk.below(Dirno::ROOT, b"", &mut |path, met| {
        match met {
            Met::Entry(_) => seen.push(String::from_utf8(path.to_vec()).unwrap()),
            Met::Lost(dirno, error) => lost.push((path.to_vec(), dirno, error.is_damage())),
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, ["/a", "/b", "/c", "/c/y", "/d"]);
    assert_eq!(lost, [(b"/a".to_vec(), short, true), (b"/b".to_vec(), gone, true)]);
    let mut seen = Vec::new();
    let visit = &mut |path: &[u8], met: Met<'_>| {
        assert!(matches!(met, Met::Entry(_)));
        seen.push(String::from_utf8(path.to_vec()).unwrap());
        Ok(())
    };
    walk.entries(Dirno::ROOT, b"", visit).unwrap();
    assert_eq!(seen, ["/a", "/b", "/c", "/d"]);
}
