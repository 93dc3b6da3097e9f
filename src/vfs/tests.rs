use super::*;
use crate::catalog::{Node, Segment};
use crate::ids::{BlockId, FrameNo};
use crate::store::StoreOptions;
use crate::testing::fixture::{Fixture, dir_record, node, put, put_dir, some_bytes};
use crate::tree::View;

const V0: Version = Version(0);
const BIG: Dirno = Dirno(1);
const BLOCK: usize = 4000;

fn vfs(fixture: &Fixture, options: VfsOptions) -> Arc<Vfs> {
    let store = Arc::new(fixture.store(StoreOptions::default()));
    let tree = Arc::new(fixture.tree(View::Whole));
    Arc::new(Vfs::new(&Backup { tree, store }, options))
}

/// `/f`: three blocks with a hole between; `/big`: 1500 names.
fn fixture() -> (Fixture, Vec<u8>) {
    let mut fixture = Fixture::new();
    let serial = fixture.next_data_serial();
    let blocks: Vec<_> = (0..3).map(|seed| some_bytes(seed, BLOCK)).collect();
    let data = |no| Segment::Data { block: BlockId::first(serial, FrameNo(no)), len: BLOCK as u32 };
    let xattrs = vec![(b"trusted.t".to_vec(), b"secret".to_vec()), (b"user.u".to_vec(), b"value".to_vec())];
    let file = node(20, &[data(0), data(1), Segment::Hole { len: 5000 }, data(2)], xattrs);
    let mut records = vec![
        dir_record(Dirno::ROOT, Dirno::ROOT, b"", 2),
        put_dir(b"big", BIG),
        put(b"f", file),
        dir_record(BIG, Dirno::ROOT, b"big", 1500),
    ];
    records.extend((0..1500).map(|no| put(format!("n{no:04}").as_bytes(), node(100 + no, &[], vec![]))));
    fixture.commit(&blocks, &records);
    let content = [&blocks[0][..], &blocks[1], &[0; 5000], &blocks[2]].concat();
    (fixture, content)
}

fn folder(version: u32) -> Ino {
    Ino::of_dir(Version(version), Dirno::ROOT)
}

fn entries(vfs: &Vfs, ino: Ino, per_call: usize) -> Vec<(String, u64)> {
    vfs.opendir(ino).unwrap();
    let mut all: Vec<(String, u64)> = Vec::new();
    loop {
        let offset = all.last().map_or(0, |(_, offset)| *offset);
        let before = all.len();
        vfs.readdir(ino, offset, |item| {
            let room = all.len() < before + per_call;
            if room {
                all.push((String::from_utf8(item.name.clone()).unwrap(), item.offset));
            }
            room
        })
        .unwrap();
        if all.len() == before {
            return all;
        }
    }
}

#[test]
fn reads_give_exactly_the_range_cut_at_the_end() {
    let (fixture, content) = fixture();
    let vfs = vfs(&fixture, VfsOptions::default());
    for (offset, len) in
        [(0, 1), (0, 17_000), (3999, 2), (8000, 5000), (7999, 5002), (16_999, 10), (17_000, 9), (1 << 40, 1)]
    {
        let expected = content.get(offset..(offset + len).min(content.len())).unwrap_or_default();
        assert_eq!(&vfs.read_now(Ino(20), offset as u64, len as u32).unwrap()[..], expected, "{offset}+{len}");
    }
    let summary = vfs.summary();
    assert_eq!((summary.files_read, summary.files_wholly_read), (1, 1));
}

#[test]
fn a_read_that_touches_a_bad_block_gives_nothing_of_it() {
    let (fixture, content) = fixture();
    fixture.spoil_frame(crate::ids::ArcSerial(0), FrameNo(1));
    let vfs = vfs(&fixture, VfsOptions::default());
    for (offset, len) in [(0, 17_000), (3999, 2), (4000, 1), (7999, 100)] {
        let error = vfs.read_now(Ino(20), offset, len).err().unwrap();
        assert_eq!(vfs.errno(Ino(20), &error), libc::EIO);
    }
    assert_eq!(vfs.read_now(Ino(20), 0, 4000).unwrap()[..], content[..4000]);
    assert_eq!(vfs.read_now(Ino(20), 8000, 9000).unwrap()[..], content[8000..]);
    let place = &vfs.summary().places[0];
    assert_eq!((place.path.as_slice(), place.version), (&b"/f"[..], Some(0)));
}

#[test]
fn a_large_directory_is_read_once_whole_however_small_the_pieces() {
    let (fixture, _) = fixture();
    let vfs = vfs(&fixture, VfsOptions::default());
    let mut expected = vec![".".to_string(), "..".to_string()];
    expected.extend((0..1500).map(|no| format!("n{no:04}")));
    for per_call in [1, 23, 511, 5000] {
        let found = entries(&vfs, Ino::of_dir(V0, BIG), per_call);
        assert_eq!(found.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), expected);
        assert!(found.iter().enumerate().all(|(at, (_, offset))| *offset == at as u64 + 1));
    }
}

#[test]
fn a_directory_can_be_read_again_from_any_offset() {
    let (fixture, _) = fixture();
    let vfs = vfs(&fixture, VfsOptions::default());
    let big = Ino::of_dir(V0, BIG);
    for offset in [0, 1200, 1, 0, 700, 1502, 1501] {
        let mut next = None;
        vfs.readdir(big, offset, |item| {
            next = Some((item.offset, item.name.clone()));
            false
        })
        .unwrap();
        let expected = match offset {
            0 => Some((1, b".".to_vec())),
            1 => Some((2, b"..".to_vec())),
            1502 => None,
            offset => Some((offset + 1, format!("n{:04}", offset - 2).into_bytes())),
        };
        assert_eq!(next, expected);
    }
}

#[test]
fn the_root_shows_versions_and_a_latest_that_moves() {
    let (mut fixture, _) = fixture();
    let vfs = vfs(&fixture, VfsOptions::default());
    let (first, lifetime) = vfs.lookup(Ino::ROOT, b"latest").unwrap();
    assert_eq!(lifetime, Lifetime::Moment);
    assert_eq!(vfs.readlink(first.as_ref().unwrap().ino).unwrap(), b"2026-01-01-1200-r0");
    fixture.commit(&[], &[]);
    let (second, _) = vfs.lookup(Ino::ROOT, b"latest").unwrap();
    assert_ne!(first.unwrap().ino, second.as_ref().unwrap().ino);
    assert_eq!(vfs.readlink(second.unwrap().ino).unwrap(), b"2026-01-02-1200-r1");
    let names: Vec<_> = entries(&vfs, Ino::ROOT, 100).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [".", "..", "2026-01-01-1200-r0", "2026-01-02-1200-r1", "latest"]);
    assert_eq!(vfs.getattr(Ino::ROOT).unwrap().0.nlink, 4);
    // A name that is not there may be there soon.
    assert_eq!(vfs.lookup(Ino::ROOT, b"2026-01-03-1200-r2").unwrap(), (None, Lifetime::Never));
}

#[test]
fn one_version_alone_is_its_own_latest() {
    let (mut fixture, _) = fixture();
    fixture.commit(&[], &[]);
    let vfs = vfs(&fixture, VfsOptions { only: Some(V0), ..VfsOptions::default() });
    let latest = vfs.lookup(Ino::ROOT, b"latest").unwrap().0.unwrap();
    assert_eq!(vfs.readlink(latest.ino).unwrap(), b"2026-01-01-1200-r0");
    assert_eq!(vfs.lookup(Ino::ROOT, b"2026-01-02-1200-r1").unwrap().0, None);
    assert_eq!(entries(&vfs, Ino::ROOT, 10).len(), 4);
}

#[test]
fn attributes_are_the_saved_ones() {
    let (fixture, _) = fixture();
    let vfs = vfs(&fixture, VfsOptions::default());
    let (stat, lifetime) = vfs.lookup(folder(0), b"f").unwrap();
    let stat = stat.unwrap();
    assert_eq!(lifetime, Lifetime::Forever);
    assert_eq!((stat.ino, stat.size, stat.perm, stat.uid, stat.gid), (Ino(20), 17_000, 0o640, 1000, 100));
    assert_eq!(stat.mtime, Timespec { sec: -5, nsec: 7 });
    // Three blocks of data, the hole takes no space: 12,000 bytes in units of 4 KiB.
    assert_eq!(stat.blocks, 3 * 8);
    assert_eq!(vfs.getattr(stat.ino).unwrap().0, stat);
    assert_eq!(vfs.lookup(folder(0), b"absent").unwrap(), (None, Lifetime::Forever));
    let mine = vfs_with_owner(&fixture);
    assert_eq!(mine.getattr(Ino(20)).map(|(stat, _)| (stat.uid, stat.gid)).unwrap(), (7, 8));
}

fn vfs_with_owner(fixture: &Fixture) -> Arc<Vfs> {
    vfs(fixture, VfsOptions { owners: Owners::All { uid: 7, gid: 8 }, ..VfsOptions::default() })
}

#[test]
fn trusted_attributes_are_listed_for_root_only() {
    let (fixture, _) = fixture();
    let vfs = vfs(&fixture, VfsOptions::default());
    assert_eq!(vfs.listxattr(Ino(20), 0).unwrap(), b"trusted.t\0user.u\0");
    assert_eq!(vfs.listxattr(Ino(20), 1000).unwrap(), b"user.u\0");
    assert_eq!(vfs.getxattr(Ino(20), b"user.u").unwrap().unwrap(), b"value");
    assert_eq!(vfs.getxattr(Ino(20), b"user.absent").unwrap(), None);
    assert_eq!(vfs.listxattr(folder(0), 0).unwrap(), b"user.d\0");
}

#[test]
fn what_is_not_there_is_an_error_and_not_a_panic() {
    let (fixture, _) = fixture();
    let vfs = vfs(&fixture, VfsOptions::default());
    for ino in [Ino(0), Ino(2), Ino(1 << 40), folder(9), Ino::of_latest(Version(9)), Ino(u64::MAX)] {
        assert!(vfs.getattr(ino).is_err() && vfs.read_now(ino, 0, 1).is_err() && vfs.opendir(ino).is_err());
        assert!(vfs.lookup(ino, b"x").is_err() && vfs.readlink(ino).is_err());
    }
    // The version was never there, or was removed while it was mounted.
    let gone = vfs.opendir(folder(9)).err().unwrap();
    assert_eq!(vfs.errno(folder(9), &gone), libc::ESTALE);
    assert_eq!(vfs.errno(folder(0), &vfs.read_now(folder(0), 0, 1).err().unwrap()), libc::EISDIR);
}

#[test]
fn a_file_whose_sha1_is_another_is_refused_and_stays_so() {
    let mut fixture = Fixture::new();
    let serial = fixture.next_data_serial();
    let blocks: Vec<_> = (0..3).map(|seed| some_bytes(seed, BLOCK)).collect();
    let data = |no| Segment::Data { block: BlockId::first(serial, FrameNo(no)), len: BLOCK as u32 };
    let hash = |parts: &[&[u8]]| {
        let mut hasher = crate::crypto::FileHasher::default();
        parts.iter().for_each(|part| hasher.update(part));
        Some(hasher.finish())
    };
    let all = [data(0), data(1), data(2)];
    let right = Node { sha1: hash(&[&blocks[0], &blocks[1], &blocks[2]]), ..node(20, &all, vec![]) };
    // As if the index had the blocks in another order.
    let wrong = Node { sha1: hash(&[&blocks[1], &blocks[0], &blocks[2]]), ..node(21, &all, vec![]) };
    let records = [dir_record(Dirno::ROOT, Dirno::ROOT, b"", 2), put(b"right", right), put(b"wrong", wrong)];
    fixture.commit(&blocks, &records);
    let size = 3 * BLOCK as u32;
    let (right, wrong) = (Ino::of_node(Logid(20)), Ino::of_node(Logid(21)));
    for hashing in [Hashing::Small, Hashing::All] {
        let new = || vfs(&fixture, VfsOptions { hashing, ..VfsOptions::default() });
        let one = new();
        assert_eq!(one.read_now(right, 0, size).unwrap().len(), size as usize);
        let error = one.read_now(wrong, 0, size).err().unwrap();
        assert_eq!((error.code(), one.errno(wrong, &error)), ("FILE_HASH_MISMATCH", libc::EIO));
        // A part of it, too, and it is damage that counts once.
        let again = one.read_now(wrong, 0, 10).err().unwrap();
        assert_eq!((again.code(), one.errno(wrong, &again)), ("FILE_HASH_MISMATCH", libc::EIO));
        let summary = one.summary();
        assert_eq!(
            (summary.damage, summary.places[0].path.as_slice(), summary.files_wholly_read),
            (1, &b"/wrong"[..], 1)
        );
        assert_eq!(one.getxattr(wrong, b"system.assay.health").unwrap().unwrap(), b"damaged");
        assert_eq!(one.getxattr(wrong, b"system.assay.damage").unwrap().unwrap(), b"0-12000");
        // In several requests, slightly out of order.
        let several = new();
        let parts = [(0, 4000), (8000, 4000), (4000, 4000)];
        let read = |ino, (offset, len)| several.read_now(ino, offset, len).map(|bytes| bytes.len());
        assert!(parts.iter().all(|part| read(right, *part).is_ok()));
        assert_eq!(parts.iter().all(|part| read(wrong, *part).is_ok()), hashing == Hashing::Small);
        // Not in sequence: nothing is said.
        let random = new();
        assert!([(4000, 4000), (0, 3000)].iter().all(|(at, len)| random.read_now(wrong, *at, *len).is_ok()));
    }
}

#[test]
fn a_file_of_one_block_is_proven_by_that_block() {
    let mut fixture = Fixture::new();
    let serial = fixture.next_data_serial();
    let blocks: Vec<_> = (0..2).map(|seed| some_bytes(seed, BLOCK)).collect();
    let data = |no| Segment::Data { block: BlockId::first(serial, FrameNo(no)), len: BLOCK as u32 };
    let hash = |bytes: &[u8]| {
        let mut hasher = crate::crypto::FileHasher::default();
        hasher.update(bytes);
        Some(hasher.finish())
    };
    let file = |logid, no: u32| Node { sha1: hash(&blocks[no as usize]), ..node(logid, &[data(no)], vec![]) };
    let padded = Node { sha1: None, ..node(22, &[data(0), Segment::Hole { len: 1 }], vec![]) };
    assert!(file(20, 0).is_one_block() && !padded.is_one_block() && !node(23, &[], vec![]).is_one_block());
    let root = dir_record(Dirno::ROOT, Dirno::ROOT, b"", 2);
    fixture.commit(&blocks, &[root, put(b"bad", file(21, 1)), put(b"good", file(20, 0))]);
    fixture.spoil_frame(serial, FrameNo(1));
    let by = crate::ledger::By::Mount;
    let ledger = Arc::new(crate::ledger::LedgerWriter::new(&fixture.own(), fixture.keys.clone(), by, &fixture.index));
    let store = Arc::new(fixture.store(StoreOptions { ledger: Some(ledger.clone()), ..StoreOptions::default() }));
    let tree = Arc::new(fixture.tree(View::Whole));
    let vfs = Arc::new(Vfs::new(&Backup { tree, store }, VfsOptions::default()));
    assert!(vfs.read_now(Ino::of_node(Logid(20)), 0, BLOCK as u32 + 1).unwrap().to_vec() == blocks[0]);
    let error = vfs.read_now(Ino::of_node(Logid(21)), 0, BLOCK as u32).err().unwrap();
    assert!(matches!(error, Error::Arc { .. }), "{error}");
    // What was given out counts as hashed, and only that.
    let known = ledger.known(&fixture.index.commits().unwrap()).unwrap();
    let extent = |logid| known.file(Logid(logid)).map(|files| files.extent);
    assert_eq!((extent(20), extent(21)), (Some(crate::ledger::Extent::Hashed), None));
}

#[test]
fn attributes_of_a_huge_hole_take_no_time() {
    let mut fixture = Fixture::new();
    let serial = fixture.next_data_serial();
    let data = |no| Segment::Data { block: BlockId::first(serial, FrameNo(no)), len: BLOCK as u32 };
    let hole = Segment::Hole { len: (1 << 62) - 2 * BLOCK as u64 };
    let records = [
        dir_record(Dirno::ROOT, Dirno::ROOT, b"", 2),
        put(b"hole", node(20, &[data(0), hole, data(1)], vec![])),
        put(b"all", node(21, &[hole], vec![])),
    ];
    fixture.commit(&[some_bytes(1, BLOCK), some_bytes(2, BLOCK)], &records);
    let vfs = vfs(&fixture, VfsOptions::default());
    let value = |ino, name: &str| {
        let value = vfs.getxattr(Ino(ino), format!("system.assay.{name}").as_bytes()).unwrap().unwrap();
        String::from_utf8(value).unwrap()
    };
    assert_eq!(value(20, "blocks").lines().count(), 3);
    assert!(value(20, "blocks").starts_with("2\n") && !value(20, "blocks").contains('…'));
    assert_eq!(
        (value(20, "health"), value(20, "damage"), value(21, "health")),
        ("unknown".into(), "".into(), "good".into())
    );
    assert!(value(20, "verified").contains(r#""only_to":null"#), "{}", value(20, "verified"));
}
