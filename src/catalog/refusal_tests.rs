//! Each rule of docs/format.md, broken by hand: the decoder refuses it by name.

use super::codec::*;
use super::*;
use crate::ids::{
    ArcDigest, ArcId, ArcName, ArcSalt, ArcSerial, FileHash, FrameNo, ListingDigest, SegmentsDigest, TreeDigest,
};

fn attr(kind: Kind, size: u64) -> Attr {
    let time = Timespec::default();
    Attr {
        kind,
        perm: 0o644,
        uid: 0,
        gid: 0,
        size,
        mtime: time,
        ctime: time,
        nlink: 1,
        rdev_major: 0,
        rdev_minor: 0,
        source_ino: 0,
    }
}

/// A file of a block of 10 bytes and a hole of 20.
fn file() -> Node {
    let content = vec![Segment::Data { block: BlockId(9), len: 10 }, Segment::Hole { len: 20 }];
    Node {
        logid: Logid(16),
        attr: attr(Kind::File, 30),
        data_bytes: 10,
        racy: false,
        sha1: None,
        target: vec![],
        xattrs: vec![],
        content: Content::Inline(content),
    }
}

fn other(kind: Kind) -> Node {
    Node { attr: attr(kind, 0), data_bytes: 0, content: Content::Inline(vec![]), ..file() }
}

fn symlink() -> Node {
    Node { attr: attr(Kind::Symlink, 6), target: b"target".to_vec(), ..other(Kind::Symlink) }
}

fn state() -> DirState {
    DirState { attr: attr(Kind::Dir, 4096), xattrs: vec![], children: 0, listing: ListingDigest([0; 32]) }
}

fn dir(dirno: u64, parent: u64, name: &[u8]) -> Record {
    let (dirno, parent) = (Dirno(dirno), Dirno(parent));
    Record::Dir { dirno, parent, name: name.to_vec(), listing: Listing::Delta, state: None }
}

fn put(item: Named) -> Record {
    Record::Put { name: b"n".to_vec(), item }
}

fn bytes_of(records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    records.iter().for_each(|record| encode_record(&mut out, record));
    out
}

/// What is refused, and by which rule.
fn assert_refused<T>(decode: impl Fn(&[u8]) -> Decoded<T>, cases: Vec<(&'static str, Vec<u8>)>) {
    for (rule, bytes) in cases {
        assert_eq!(decode(&bytes).err(), Some(BadRecord(rule)), "{bytes:02x?}");
    }
}

#[test]
fn numbers_have_one_form() {
    let number = |bytes: &[u8]| {
        let mut d = Decoder::new(bytes);
        d.uint().and_then(|value| d.end().map(|()| value))
    };
    let max = [[0xff; 9].as_slice(), &[1]].concat();
    assert_eq!((number(&[0]), number(&max)), (Ok(0), Ok(u64::MAX)));
    assert_refused(
        number,
        vec![
            ("number longer than it need be", vec![0x80, 0]),
            ("number longer than it need be", vec![0xff, 0x80, 0]),
            ("number longer than it need be", [[0xff; 9].as_slice(), &[0]].concat()),
            ("number of more than 64 bits", [[0xff; 9].as_slice(), &[2]].concat()),
            ("number of more than 64 bits", [[0xff; 9].as_slice(), &[0x81, 0]].concat()),
            ("cut short", vec![]),
            ("cut short", vec![0x80]),
            ("bytes left over", vec![0, 0]),
        ],
    );
    assert_refused(
        |bytes| Decoder::new(bytes).time(),
        vec![("nanoseconds out of range", {
            let mut e = Encoder::default();
            e.int(0);
            e.uint(1_000_000_000);
            e.0
        })],
    );
    assert_refused(|bytes| Decoder::new(bytes).string(), vec![("text is not UTF-8", vec![1, 0xff])]);
    assert_refused(|bytes| Decoder::new(bytes).flag(), vec![("flag is neither 0 nor 1", vec![2])]);
    assert_refused(
        |bytes| Decoder::new(bytes).small::<u32>(),
        vec![("number out of range", {
            let mut e = Encoder::default();
            e.uint(1 << 32);
            e.0
        })],
    );
}

#[test]
fn nodes_that_no_file_has() {
    let node = |change: &dyn Fn(&mut Node)| {
        let mut node = file();
        change(&mut node);
        encode_node(&node)
    };
    let with = |kind: Kind, change: &dyn Fn(&mut Node)| {
        let mut node = other(kind);
        change(&mut node);
        encode_node(&node)
    };
    let link = |change: &dyn Fn(&mut Node)| {
        let mut node = symlink();
        change(&mut node);
        encode_node(&node)
    };
    let xattr = |name: &[u8]| (name.to_vec(), b"v".to_vec());
    let hole = |len| Segment::Hole { len };
    for good in [file(), symlink(), other(Kind::Socket), Node { attr: attr(Kind::Symlink, 0), ..other(Kind::Symlink) }]
    {
        assert_eq!(decode_node(&encode_node(&good)), Ok(good));
    }
    // logid, type, perm, uid, gid, size, two times, links, inode, data bytes: a byte each but for the permissions.
    let flags_at = 14;
    let mut unknown_flag = encode_node(&file());
    assert_eq!(unknown_flag[flags_at], 0);
    unknown_flag[flags_at] = 8;
    let mut unknown_kind = encode_node(&file());
    unknown_kind[1] = 8;
    let mut no_count = encode_node(&file());
    *no_count.last_mut().unwrap() = 1;
    assert_refused(
        decode_node,
        vec![
            ("logid out of range", node(&|n| n.logid = Logid(15))),
            ("logid out of range", node(&|n| n.logid = Logid(1 << 63))),
            ("unknown file type", unknown_kind),
            ("permissions out of range", node(&|n| n.attr.perm = 0o10000)),
            ("size out of range", node(&|n| n.attr.size = 1 << 63)),
            ("unknown flag of a node", unknown_flag),
            ("directory in the place of a node", with(Kind::Dir, &|_| ())),
            ("size of what has no content", with(Kind::Fifo, &|n| n.attr.size = 1)),
            ("size of what has no content", with(Kind::BlockDevice, &|n| n.attr.size = 1)),
            ("flag of what is no regular file", link(&|n| n.sha1 = Some(FileHash([0; 20])))),
            (
                "flag of what is no regular file",
                with(Kind::Fifo, &|n| n.content = Content::Chunked(SegmentsDigest([0; 32]))),
            ),
            ("segments do not add up to the file's size", node(&|n| n.attr.size = 31)),
            ("segments do not add up to the file's size", node(&|n| n.content = Content::Inline(vec![hole(29)]))),
            (
                "segments do not add up to the file's size",
                with(Kind::Socket, &|n| {
                    n.content = Content::Inline(vec![hole(1)]);
                }),
            ),
            ("data bytes are not the sum of its data ranges", node(&|n| n.data_bytes = 9)),
            ("more data bytes than the file has", node(&|n| n.data_bytes = 31)),
            ("more data bytes than the file has", link(&|n| n.data_bytes = 1)),
            (
                "file too short for Extents records",
                node(&|n| {
                    (n.content, n.attr.size) = (Content::Chunked(SegmentsDigest([0; 32])), 64);
                }),
            ),
            (
                "too many segments",
                node(&|n| {
                    n.content = Content::Inline(vec![hole(1); 65]);
                    (n.attr.size, n.data_bytes) = (65, 0);
                }),
            ),
            ("empty segment", node(&|n| n.content = Content::Inline(vec![hole(0), hole(30)]))),
            (
                "block too long",
                node(&|n| {
                    let len = MAX_BLOCK_BYTES + 1;
                    n.content = Content::Inline(vec![Segment::Data { block: BlockId(0), len }]);
                    (n.attr.size, n.data_bytes) = (u64::from(len), u64::from(len));
                }),
            ),
            (
                "block id out of range",
                node(&|n| {
                    n.content = Content::Inline(vec![Segment::Data { block: BlockId(1 << 63), len: 30 }]);
                    n.data_bytes = 30;
                }),
            ),
            ("file too long", node(&|n| n.content = Content::Inline(vec![hole((1 << 63) - 1), hole(30)]))),
            ("count too large", no_count),
            ("target of what is no symlink", node(&|n| n.target = b"x".to_vec())),
            ("impossible target", link(&|n| n.target = b"a\0b   ".to_vec())),
            ("symlink of another size than its target", link(&|n| n.attr.size = 5)),
            ("impossible name of an extended attribute", node(&|n| n.xattrs = vec![xattr(b"")])),
            ("impossible name of an extended attribute", node(&|n| n.xattrs = vec![xattr(b"user.\0")])),
            ("extended attributes out of order", node(&|n| n.xattrs = vec![xattr(b"b"), xattr(b"a")])),
            ("extended attributes out of order", node(&|n| n.xattrs = vec![xattr(b"a"), xattr(b"a")])),
        ],
    );
    assert_refused(
        decode_dir_state,
        vec![
            ("directory with another type", encode_dir_state(&DirState { attr: attr(Kind::File, 0), ..state() })),
            ("extended attributes out of order", {
                encode_dir_state(&DirState { xattrs: vec![xattr(b"b"), xattr(b"a")], ..state() })
            }),
        ],
    );
}

#[test]
fn records_that_no_catalog_holds() {
    let extents = |logid: u64, start: u64, segments: Vec<Segment>| {
        bytes_of(&[Record::Extents(ExtentChunk { logid: Logid(logid), start, segments })])
    };
    let hole = |len| Segment::Hole { len };
    let name = |name: &[u8]| bytes_of(&[dir(1, 0, b"d"), Record::Remove { name: name.to_vec() }]);
    let in_root = |record: Record| bytes_of(&[dir(0, 0, b""), record]);
    let node = |logid: u64| put(Named::Node(Box::new(Node { logid: Logid(logid), ..file() })));
    let subdir = |dirno: u64| put(Named::Dir(Dirno(dirno)));
    // Six bytes of a Dir, then code, length of the name, name, type.
    let mut fifo = in_root(node(16));
    fifo[9] = Kind::Fifo as u8;
    assert!(decode_records(&extents(16, (1 << 63) - 2, vec![hole(1)])).is_ok());
    let moved = |from: u64, to: u64| bytes_of(&[Record::Relocate { from: BlockId(from), to: BlockId(to) }]);
    let gone = |dirno: u64, name: &[u8]| Record::RemovePath { dirno: Dirno(dirno), name: name.to_vec() };
    // code, dirno, parent, name (length and a byte), listing, state.
    let (mut listing, mut flag) = (bytes_of(&[dir(1, 0, b"d")]), bytes_of(&[dir(1, 0, b"d")]));
    (listing[5], flag[6]) = (5, 2);
    let mut long = bytes_of(&[Record::DropArc(ArcSerial(1))]);
    long.splice(1.., [0x81, 0]).for_each(drop);
    assert_refused(
        decode_records,
        vec![
            ("unknown record", vec![10]),
            ("unknown loss", vec![8, 0]),
            ("unknown loss", vec![8, 5, 1]),
            ("number longer than it need be", long),
            ("unknown listing", listing),
            ("flag is neither 0 nor 1", flag),
            ("directory number out of range", bytes_of(&[dir(1 << 39, 0, b"d")])),
            ("directory number out of range", bytes_of(&[dir(1, 1 << 39, b"d")])),
            ("root directory with a name or parent", bytes_of(&[dir(0, 0, b"d")])),
            ("root directory with a name or parent", bytes_of(&[dir(0, 1, b"")])),
            ("directory below itself", bytes_of(&[dir(7, 7, b"d")])),
            ("directory below itself", bytes_of(&[dir(7, 0, b"d"), subdir(7)])),
            ("root directory below another", bytes_of(&[dir(7, 0, b"d"), subdir(0)])),
            ("directory number out of range", in_root(subdir(1 << 39))),
            ("logid out of range", in_root(node(15))),
            ("logid out of range", in_root(node(1 << 63))),
            ("entry and node disagree", fifo),
            ("entry of no directory", bytes_of(&[node(16)])),
            ("entry of no directory", bytes_of(&[Record::Remove { name: b"n".to_vec() }])),
            ("impossible name", name(b"")),
            ("impossible name", name(b".")),
            ("impossible name", name(b"..")),
            ("impossible name", name(b"a/b")),
            ("impossible name", name(b"a\0b")),
            ("impossible name", name(&[b'n'; MAX_NAME_LEN + 1])),
            ("logid out of range", extents(15, 0, vec![hole(1)])),
            ("no segments", extents(16, 0, vec![])),
            ("too many segments", extents(16, 0, vec![hole(1); 65])),
            ("file too long", extents(16, (1 << 63) - 1, vec![hole(1)])),
            ("file too long", extents(16, u64::MAX, vec![hole(1)])),
            ("version out of range", bytes_of(&[Record::RemoveVersion(Version(1 << 24))])),
            ("directory number out of range", bytes_of(&[gone(1 << 39, b"n")])),
            ("impossible name", bytes_of(&[gone(0, b"a/b")])),
            ("block id out of range", moved(1 << 63, 0)),
            ("block id out of range", moved(0, 1 << 63)),
            ("block that moves to where it is", moved(5, 5)),
            ("arc serial out of range", bytes_of(&[Record::DropArc(ArcSerial(1 << 39))])),
        ],
    );
    assert_eq!(decode_segments(0, &[0]), Err(BadRecord("no segments")));
}

fn arc(run: u32, number: u32, serial: u64, role: ArcRole) -> ArcEntry {
    ArcEntry {
        serial: ArcSerial(serial),
        name: ArcName { version: Version(run), number },
        role,
        id: ArcId([1; 16]),
        salt: ArcSalt([2; 32]),
        arc_bytes: 112 + 2 * 152 + 100 + 96,
        digest: ArcDigest([3; 32]),
        frames: 2,
        footer_offset: 112 + 2 * 152,
        footer_len: 100,
        plain_bytes: 1000,
    }
}

/// Run 5 on top of run 4, with a data arc and a catalog arc of two frames.
fn commit() -> Commit {
    let frame = |no: u32, dirs: &[(u64, u64)]| CatalogFrame {
        arc: ArcSerial(11),
        frame: FrameNo(no),
        dirs: dirs.iter().map(|(first, count)| (Dirno(*first), *count)).collect(),
    };
    Commit {
        run: Version(5),
        run_id: [4; 16],
        previous: Some((Version(4), [5; 32])),
        version: Some(VersionInfo { name: "2026-01-01-0000-r5".into(), ..VersionInfo::default() }),
        roots: vec![(Version(5), TreeDigest([6; 32]))],
        base: false,
        arcs: vec![arc(5, 1, 10, ArcRole::Data), arc(5, 2, 11, ArcRole::Catalog)],
        catalog: vec![frame(0, &[(3, 2), (9, 1)]), frame(1, &[])],
        next_serial: 12,
        next_logid: 100,
        next_dirno: 10,
    }
}

#[test]
fn commits_that_no_run_writes() {
    assert_eq!(Commit::decode(&commit().encode()), Ok(commit()));
    let with = |change: &dyn Fn(&mut Commit)| {
        let mut commit = commit();
        change(&mut commit);
        commit.encode()
    };
    let base = |change: &dyn Fn(&mut Commit)| {
        with(&|c| {
            c.base = true;
            c.arcs.insert(0, arc(2, 1, 3, ArcRole::Data));
            change(c);
        })
    };
    assert!(Commit::decode(&base(&|c| c.previous = None)).is_ok());
    assert!(Commit::decode(&with(&|c| (c.previous, c.version, c.roots) = (None, None, vec![]))).is_ok());
    let dirs = |dirs: &[(u64, u64)]| {
        with(&|c| {
            c.next_dirno = Dirno::MAX.0 + 1;
            c.catalog[0].dirs = dirs.iter().map(|(first, count)| (Dirno(*first), *count)).collect();
        })
    };
    assert!(Commit::decode(&dirs(&[(Dirno::MAX.0, 1)])).is_ok());
    let (mut format, mut flag) = (commit().encode(), commit().encode());
    (format[0], flag[18]) = (1, 8);
    assert_refused(
        Commit::decode,
        vec![
            ("commit record of another format", format),
            ("version out of range", with(&|c| c.run = Version(1 << 24))),
            ("unknown flag of a commit", flag),
            ("version out of range", with(&|c| c.previous = Some((Version(1 << 24), [0; 32])))),
            ("commit before this one is not below it", with(&|c| c.previous = Some((Version(5), [0; 32])))),
            ("commit before this one is not below it", base(&|c| c.previous = Some((Version(6), [0; 32])))),
            ("first version that is no base", with(&|c| c.previous = None)),
            ("version name of another run", with(&|c| c.version.as_mut().unwrap().name = "2026-01-01-0000-r15".into())),
            ("impossible version name", with(&|c| c.version.as_mut().unwrap().name = "../x-r5".into())),
            ("impossible path", with(&|c| c.version.as_mut().unwrap().paths = vec![b"home".to_vec()])),
            ("impossible path", with(&|c| c.version.as_mut().unwrap().paths = vec![b"/a\0b".to_vec()])),
            ("impossible path", with(&|c| c.version.as_mut().unwrap().kept_paths = vec![b"".to_vec()])),
            ("impossible path", with(&|c| c.version.as_mut().unwrap().not_entered = vec![b"a".to_vec()])),
            ("roots out of order", with(&|c| c.roots.insert(0, c.roots[0]))),
            ("roots out of order", with(&|c| c.roots.push((Version(4), TreeDigest([6; 32]))))),
            ("root of a later version", with(&|c| c.roots[0].0 = Version(6))),
            ("version without its root, or the other way round", with(&|c| c.roots.clear())),
            ("version without its root, or the other way round", with(&|c| c.roots[0].0 = Version(3))),
            ("version without its root, or the other way round", with(&|c| c.version = None)),
            ("arc of another run", with(&|c| c.arcs[0].name.version = Version(4))),
            ("arc of another run", base(&|c| c.arcs[0].name.version = Version(6))),
            ("arcs out of order", with(&|c| c.arcs.swap(0, 1))),
            ("arcs out of order", with(&|c| c.arcs[1].serial = ArcSerial(10))),
            ("arcs out of order", with(&|c| c.arcs[1].name.number = 1)),
            ("arcs out of order", base(&|c| c.arcs[0].serial = ArcSerial(10))),
            ("arc above the next serial", with(&|c| c.next_serial = 11)),
            ("role of an arc", with(&|c| c.arcs[0].role = ArcRole::Commit)),
            ("catalog frame of no catalog arc of this run", with(&|c| c.catalog[0].arc = ArcSerial(10))),
            ("catalog frame of no catalog arc of this run", with(&|c| c.catalog[0].arc = ArcSerial(9))),
            (
                "catalog frame of no catalog arc of this run",
                base(&|c| {
                    c.arcs[0].role = ArcRole::Catalog;
                    c.catalog[0].arc = ArcSerial(3);
                }),
            ),
            ("catalog frame that its arc does not have", with(&|c| c.catalog[1].frame = FrameNo(2))),
            ("frame number out of range", with(&|c| c.catalog[1].frame = FrameNo(1 << 17))),
            ("arc serial out of range", with(&|c| c.catalog[1].arc = ArcSerial(1 << 39))),
            ("catalog frames out of order", with(&|c| c.catalog.swap(0, 1))),
            ("catalog frames out of order", with(&|c| c.catalog[0].frame = FrameNo(1))),
            ("directory above the next one", with(&|c| c.next_dirno = 9)),
            ("directory run out of range", dirs(&[(3, 0)])),
            ("directory run out of range", dirs(&[(3, (1 << 16) + 1)])),
            ("directory run out of range", dirs(&[(3, u64::MAX)])),
            ("directory run out of range", dirs(&[(Dirno::MAX.0, 2)])),
            ("directory run out of range", dirs(&[(u64::MAX, 1)])),
            ("directory run that goes on with the one before", dirs(&[(3, 2), (5, 1)])),
            ("too many directories in a frame", dirs(&[(3, 1 << 16), (1 << 20, 1)])),
            ("counter out of range", with(&|c| c.next_serial = (1 << 39) + 1)),
            ("counter out of range", with(&|c| c.next_logid = (1 << 63) + 1)),
            ("counter out of range", with(&|c| c.next_logid = 15)),
            ("counter out of range", with(&|c| c.next_dirno = (1 << 39) + 1)),
            ("counter out of range", with(&|c| c.next_dirno = 0)),
        ],
    );
}

#[test]
fn records_that_their_commit_does_not_count() {
    let refused = Err(BadRecord("id that its commit does not count"));
    for (record, counts) in [
        (Record::RemoveVersion(Version(4)), true),
        (Record::RemoveVersion(Version(5)), false),
        (Record::DropArc(ArcSerial(11)), true),
        (Record::DropArc(ArcSerial(12)), false),
        (Record::RemovePath { dirno: Dirno(10), name: b"n".to_vec() }, false),
        (Record::Put { name: b"n".to_vec(), item: Named::Dir(Dirno(10)) }, false),
        (Record::AcceptLoss(Loss::Run(Version(5))), false),
        (Record::AcceptLoss(Loss::Shell(ArcSerial(12))), false),
    ] {
        assert_eq!(commit().counts(&record), if counts { Ok(()) } else { refused }, "{record:?}");
    }
}

#[test]
fn arcs_that_no_writer_makes() {
    let with = |change: &dyn Fn(&mut ArcEntry)| {
        let mut arc = arc(5, 1, 10, ArcRole::Data);
        change(&mut arc);
        arc.encode()
    };
    assert_refused(
        ArcEntry::decode,
        vec![
            ("arc serial out of range", with(&|a| a.serial = ArcSerial(1 << 39))),
            ("version out of range", with(&|a| a.name.version = Version(1 << 24))),
            ("arc with the name of a commit arc", with(&|a| a.name.number = 0)),
            ("parts of an arc that do not add up", with(&|a| a.arc_bytes += 1)),
            ("parts of an arc that do not add up", with(&|a| a.arc_bytes = u64::MAX)),
            ("parts of an arc that do not add up", with(&|a| a.frames = u32::MAX)),
            ("parts of an arc that do not add up", with(&|a| a.frames = 9)),
            ("parts of an arc that do not add up", with(&|a| a.footer_offset = u64::MAX)),
            ("parts of an arc that do not add up", with(&|a| (a.footer_len, a.arc_bytes) = (51, a.arc_bytes - 49))),
            ("more plain bytes than the frames can hold", with(&|a| a.plain_bytes = (128 << 20) + 1)),
        ],
    );
}

/// docs/format.md lists the rules; each of them is in the code, and each in the code is listed and was broken above.
#[test]
fn all_rules_are_described_and_tried() {
    let literals = |text: &str| -> std::collections::BTreeSet<String> {
        text.split("BadRecord(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_string()).collect()
    };
    let source = |name: &str| {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(root.join(name)).unwrap()
    };
    let codes: String = ["numbers", "codec", "commit"].map(|name| source(&format!("src/catalog/{name}.rs"))).concat();
    let (own, page) = (include_str!("refusal_tests.rs"), source("docs/format.md"));
    for rule in literals(&codes) {
        assert!(own.contains(&format!("\"{rule}\"")), "nothing here breaks the rule: {rule}");
        assert!(page.contains(&format!("| {rule} |")), "docs/format.md does not list the rule: {rule}");
    }
    let listed = page.split_once("### Refusals").unwrap().1.split_once("\n## ").unwrap().0;
    let listed: Vec<&str> = listed.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()).collect();
    for rule in listed.iter().filter(|rule| **rule != "refusal") {
        assert!(codes.contains(&format!("\"{rule}\"")), "no code refuses by the rule: {rule}");
    }
}
