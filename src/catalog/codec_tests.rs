//! What an encoder writes is read back equal, and what a decoder accepts is written again, byte for byte.

use super::*;
use crate::ids::{
    ArcDigest, ArcId, ArcName, ArcSalt, ArcSerial, FrameNo, ListingDigest, SegmentsDigest, TreeDigest, Version,
};
use crate::testing::Rng;
use crate::testing::mutate::assert_canonical;

/// Small numbers mostly, and now and then one near the bound.
fn up_to(rng: &mut Rng, bound: u64) -> u64 {
    match rng.below(8) {
        0 => bound - rng.next() % (bound + 1).min(3),
        1 => rng.next() % bound.max(1),
        _ => rng.next() % bound.clamp(1, 300),
    }
}

fn a_time(rng: &mut Rng) -> Timespec {
    let sec = [0, -1, i64::MIN, i64::MAX, 1_700_000_000][rng.below(5)];
    Timespec { sec, nsec: up_to(rng, 999_999_999) as u32 }
}

fn some_text(rng: &mut Rng, longest: usize) -> Vec<u8> {
    let len = 1 + rng.below(longest);
    (0..len).map(|_| b'a' + rng.below(26) as u8).collect()
}

fn an_attr(rng: &mut Rng, kind: Kind, size: u64) -> Attr {
    let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    let mut number = |used: bool| if used { up_to(rng, u64::from(u32::MAX)) as u32 } else { 0 };
    let (uid, gid, nlink) = (number(true), number(true), number(true));
    let (rdev_major, rdev_minor) = (number(device), number(device));
    let (mtime, ctime) = (a_time(rng), a_time(rng));
    let (perm, source_ino) = (up_to(rng, 0o7777) as u16, up_to(rng, u64::MAX - 1));
    Attr { kind, perm, uid, gid, size, mtime, ctime, nlink, rdev_major, rdev_minor, source_ino }
}

fn some_segments(rng: &mut Rng, at_least: usize) -> Vec<Segment> {
    let mut next = up_to(rng, BlockId::MAX.0 - 100);
    (0..at_least + rng.below(6))
        .map(|_| match rng.below(4) {
            0 => Segment::Hole { len: 1 + up_to(rng, 1 << 50) },
            n => {
                next = if n == 1 { up_to(rng, BlockId::MAX.0 - 100) } else { next + 1 };
                Segment::Data { block: BlockId(next), len: 1 + up_to(rng, u64::from(MAX_BLOCK_BYTES) - 1) as u32 }
            }
        })
        .collect()
}

fn some_xattrs(rng: &mut Rng) -> Xattrs {
    let mut list: Xattrs =
        (0..rng.below(4)).map(|_| (some_text(rng, 3), vec![rng.next() as u8; rng.below(20)])).collect();
    list.sort();
    list.dedup_by(|a, b| a.0 == b.0);
    list
}

fn a_node(rng: &mut Rng) -> Node {
    use Kind::*;
    let kind = [File, File, File, Symlink, Fifo, Socket, CharDevice, BlockDevice][rng.below(8)];
    let file = kind == File;
    let list = if file { some_segments(rng, 0) } else { Vec::new() };
    let target = if kind == Symlink { some_text(rng, 30) } else { Vec::new() };
    let mut data_bytes = list.iter().filter(|s| matches!(s, Segment::Data { .. })).map(Segment::len).sum();
    let mut size = list.iter().map(Segment::len).sum::<u64>() + target.len() as u64;
    let mut content = Content::Inline(list);
    if file && rng.below(4) == 0 {
        size = 65 + up_to(rng, i64::MAX as u64 - 65);
        data_bytes = up_to(rng, size);
        content = Content::Chunked(SegmentsDigest([rng.next() as u8; 32]));
    }
    Node {
        logid: Logid(Logid::FIRST.0 + up_to(rng, Logid::MAX.0 - Logid::FIRST.0)),
        attr: an_attr(rng, kind, size),
        data_bytes,
        racy: rng.below(2) == 0,
        sha1: (file && rng.below(4) > 0).then_some(FileHash([7; 20])),
        target,
        xattrs: some_xattrs(rng),
        content,
    }
}

fn a_dir_state(rng: &mut Rng) -> DirState {
    let size = up_to(rng, i64::MAX as u64);
    DirState {
        attr: an_attr(rng, Kind::Dir, size),
        children: up_to(rng, u64::MAX - 1),
        xattrs: some_xattrs(rng),
        listing: ListingDigest([rng.next() as u8; 32]),
    }
}

fn a_dirno(rng: &mut Rng) -> Dirno {
    Dirno(1 + up_to(rng, Dirno::MAX.0 - 1))
}

fn a_dir(rng: &mut Rng) -> Record {
    let state = (rng.below(2) == 0).then(|| a_dir_state(rng));
    let listing = [Listing::Delta, Listing::Full, Listing::FullMore, Listing::Lost][rng.below(4)];
    if rng.below(5) == 0 {
        return Record::Dir { dirno: Dirno::ROOT, parent: Dirno::ROOT, name: Vec::new(), listing, state };
    }
    let dirno = a_dirno(rng);
    let parent = Dirno(up_to(rng, dirno.0 - 1));
    Record::Dir { dirno, parent, name: some_text(rng, 20), listing, state }
}

/// A record that may follow a Dir.
fn a_record(rng: &mut Rng) -> Record {
    let name = some_text(rng, 20);
    match rng.below(14) {
        9 => Record::RemovePath { dirno: a_dirno(rng), name },
        0 | 1 => a_dir(rng),
        2 => Record::Remove { name },
        3 => {
            let (segments, start) = (some_segments(rng, 1), up_to(rng, 1 << 50));
            Record::Extents(ExtentChunk { logid: Logid(16 + up_to(rng, 1 << 50)), start, segments })
        }
        4 => Record::RemoveVersion(Version(up_to(rng, u64::from(Version::MAX.0)) as u32)),
        5 => {
            let from = up_to(rng, BlockId::MAX.0 - 1);
            Record::Relocate { from: BlockId(from), to: BlockId(from + 1) }
        }
        6 => Record::DropArc(ArcSerial(up_to(rng, ArcSerial::MAX.0))),
        8 => {
            let serial = ArcSerial(up_to(rng, ArcSerial::MAX.0));
            let frame = FrameNo(up_to(rng, (1 << FrameNo::BITS) - 1) as u32);
            let run = Version(up_to(rng, u64::from(Version::MAX.0)) as u32);
            let losses = [
                Loss::Run(run),
                Loss::Arc { serial, from: up_to(rng, u64::MAX - 1) },
                Loss::Frame { serial, frame },
                Loss::Shell(serial),
            ];
            Record::AcceptLoss(losses[rng.below(4)])
        }
        // Far from the directories that `a_dir` makes.
        7 => Record::Put { name, item: Named::Dir(Dirno(3 << 35 | rng.next() >> 40)) },
        _ => Record::Put { name, item: Named::Node(Box::new(a_node(rng))) },
    }
}

fn some_records(rng: &mut Rng) -> Vec<Record> {
    let mut list = vec![a_dir(rng)];
    (0..rng.below(4)).for_each(|_| list.push(a_record(rng)));
    list
}

fn encoded(records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    records.iter().for_each(|record| encode_record(&mut out, record));
    out
}

fn an_arc(rng: &mut Rng, serial: u64, name: ArcName, role: ArcRole) -> ArcEntry {
    let frames = 1 + rng.below(1000) as u32;
    let footer_offset = 112 + u64::from(frames) * (72 + up_to(rng, 1 << 20));
    let footer_len = 72 + rng.below(1 << 20) as u32;
    ArcEntry {
        serial: ArcSerial(serial),
        name,
        role,
        id: ArcId([rng.next() as u8; 16]),
        salt: ArcSalt([3; 32]),
        arc_bytes: footer_offset + u64::from(footer_len) + 96,
        digest: ArcDigest([4; 32]),
        frames,
        footer_offset,
        footer_len,
        plain_bytes: up_to(rng, u64::from(frames) << 20),
    }
}

fn some_paths(rng: &mut Rng) -> Vec<Vec<u8>> {
    (0..rng.below(3)).map(|_| [b"/".to_vec(), some_text(rng, 9)].concat()).collect()
}

fn an_info(rng: &mut Rng, run: Version) -> VersionInfo {
    let text = |rng: &mut Rng| String::from_utf8(some_text(rng, 9)).unwrap();
    VersionInfo {
        name: format!("2026-01-01-0000-{run}"),
        tag: text(rng),
        host: text(rng),
        started: a_time(rng),
        finished: a_time(rng),
        paths: some_paths(rng),
        kept_paths: some_paths(rng),
        not_entered: some_paths(rng),
        torn: up_to(rng, u64::MAX - 1),
        files: up_to(rng, u64::MAX - 1),
        tree_bytes: up_to(rng, u64::MAX - 1),
        ..VersionInfo::default()
    }
}

pub(super) fn a_commit(rng: &mut Rng) -> Commit {
    let run = Version(1 + up_to(rng, u64::from(Version::MAX.0) - 1) as u32);
    let base = rng.below(2) == 0;
    let before = Version(rng.below(run.0 as usize) as u32);
    let mut arcs = Vec::new();
    let mut serial = up_to(rng, 1 << 38);
    if base {
        for number in 1..1 + rng.below(3) as u32 {
            arcs.push(an_arc(rng, serial, ArcName { version: before, number }, ArcRole::Data));
            serial += 1 + up_to(rng, 3);
        }
    }
    for number in 1..1 + rng.below(4) as u32 {
        let role = if rng.below(2) == 0 { ArcRole::Data } else { ArcRole::Catalog };
        arcs.push(an_arc(rng, serial, ArcName { version: run, number }, role));
        serial += 1;
    }
    let next_dirno = 100_000 + up_to(rng, Dirno::MAX.0 - 100_000);
    let mut catalog = Vec::new();
    for arc in arcs.iter().filter(|arc| arc.role == ArcRole::Catalog && arc.name.version == run) {
        for frame in 0..arc.frames.min(3) {
            let mut at = 0;
            let dirs = (0..rng.below(4)).map(|n| {
                at += u64::from(n > 0) + rng.below(5000) as u64;
                let count = 1 + rng.below(5000) as u64;
                at += count;
                (Dirno(at - count), count)
            });
            catalog.push(CatalogFrame { arc: arc.serial, frame: FrameNo(frame), dirs: dirs.collect() });
        }
    }
    let version = (rng.below(4) > 0).then(|| an_info(rng, run));
    let removed = (0..before.0).take(rng.below(3)).map(Version);
    let roots = removed.chain(version.as_ref().map(|_| run)).map(|v| (v, TreeDigest([v.0 as u8; 32])));
    Commit {
        run,
        run_id: [1; 16],
        previous: (!base || rng.below(2) == 0).then_some((before, [2; 32])),
        roots: roots.collect(),
        version,
        base,
        arcs,
        catalog,
        next_serial: serial + up_to(rng, 1 << 30),
        next_logid: 16 + up_to(rng, Logid::MAX.0 - 15),
        next_dirno,
    }
}

#[test]
fn records_are_written_again_as_they_were_read() {
    assert_canonical(
        "records",
        |rng| {
            let list = some_records(rng);
            let bytes = encoded(&list);
            assert_eq!(decode_records(&bytes).as_ref(), Ok(&list), "seed {}", rng.seed);
            bytes
        },
        |bytes| decode_records(bytes).ok().map(|list| encoded(&list)),
    );
}

#[test]
fn nodes_directories_and_segments_are_written_again_as_they_were_read() {
    let head = |node: &Node| (node.attr.clone(), node.data_bytes);
    assert_canonical(
        "node",
        |rng| encode_node(&a_node(rng)),
        |bytes| {
            let node = decode_node(bytes).ok()?;
            // The first bytes are enough for the attributes, and say the same.
            assert_eq!(decode_node_attr(&bytes[..bytes.len().min(150)]), Ok(head(&node)));
            Some(encode_node(&node))
        },
    );
    assert_canonical(
        "directory",
        |rng| encode_dir_state(&a_dir_state(rng)),
        |bytes| decode_dir_state(bytes).ok().map(|state| encode_dir_state(&state)),
    );
    assert_canonical(
        "segments",
        |rng| encode_segments(&some_segments(rng, 1)),
        |bytes| {
            let list = decode_segments(1 << 62, bytes).ok()?;
            assert!((1 << 62) + list.iter().map(Segment::len).sum::<u64>() <= i64::MAX as u64);
            Some(encode_segments(&list))
        },
    );
}

#[test]
fn commits_and_what_stands_in_them_are_written_again_as_they_were_read() {
    assert_canonical(
        "commit",
        |rng| {
            let commit = a_commit(rng);
            let bytes = commit.encode();
            assert_eq!(Commit::decode(&bytes).as_ref(), Ok(&commit), "seed {}", rng.seed);
            bytes
        },
        |bytes| Commit::decode(bytes).ok().map(|commit| commit.encode()),
    );
    assert_canonical(
        "arc entry",
        |rng| an_arc(rng, 5, ArcName { version: Version(3), number: 1 }, ArcRole::Data).encode(),
        |bytes| ArcEntry::decode(bytes).ok().map(|entry| entry.encode()),
    );
    assert_canonical(
        "version info",
        |rng| an_info(rng, Version(4)).encode(),
        |bytes| VersionInfo::decode(bytes).ok().map(|info| info.encode()),
    );
}

#[test]
fn every_cut_is_refused() {
    let mut rng = Rng::from_env();
    let (commit, node, state) = (a_commit(&mut rng).encode(), a_node(&mut rng), a_dir_state(&mut rng));
    let (node, state) = (encode_node(&node), encode_dir_state(&state));
    assert!((0..commit.len()).all(|len| Commit::decode(&commit[..len]).is_err()), "seed {}", rng.seed);
    assert!((0..node.len()).all(|len| decode_node(&node[..len]).is_err()), "seed {}", rng.seed);
    assert!((0..state.len()).all(|len| decode_dir_state(&state[..len]).is_err()), "seed {}", rng.seed);
}
