//! Round trips, and whatever else bytes can be.

use super::*;
use proptest::prelude::*;

fn time() -> impl Strategy<Value = Timespec> {
    (any::<i64>(), 0..1_000_000_000u32).prop_map(|(sec, nsec)| Timespec { sec, nsec })
}

fn an_attr(kind: Kind, size: u64) -> impl Strategy<Value = Attr> {
    let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    (0..=0o7777u16, any::<(u32, u32, u32, u64, u32, u32)>(), time(), time()).prop_map(
        move |(perm, (uid, gid, nlink, source_ino, major, minor), mtime, ctime)| Attr {
            kind,
            perm,
            uid,
            gid,
            size,
            mtime,
            ctime,
            nlink,
            source_ino,
            rdev_major: if device { major } else { 0 },
            rdev_minor: if device { minor } else { 0 },
        },
    )
}

fn a_list() -> impl Strategy<Value = Vec<Segment>> {
    let data = (0..i64::MAX as u64, 1..=u32::MAX).prop_map(|(block, len)| Segment::Data { block: BlockId(block), len });
    let hole = (1..1u64 << 50).prop_map(|len| Segment::Hole { len });
    prop::collection::vec(prop_oneof![data, hole], 0..20)
}

fn some_xattrs() -> impl Strategy<Value = Xattrs> {
    prop::collection::vec((prop::collection::vec(any::<u8>(), 1..9), prop::collection::vec(any::<u8>(), 0..300)), 0..4)
}

fn a_file() -> impl Strategy<Value = Node> {
    (a_list(), any::<(u64, bool, bool, [u8; 20], u64)>(), some_xattrs()).prop_flat_map(
        |(list, (logid, racy, chunked, sha1, data_bytes), xattrs)| {
            let size = list.iter().map(Segment::len).sum();
            let content = if chunked { Content::Chunked } else { Content::Inline(list) };
            an_attr(Kind::File, size).prop_map(move |attr| Node {
                logid: Logid(logid >> 1),
                attr,
                data_bytes,
                racy,
                sha1: Some(FileHash(sha1)),
                target: Vec::new(),
                xattrs: xattrs.clone(),
                content: content.clone(),
            })
        },
    )
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let name = || "[a-z]{1,800}".prop_map(String::into_bytes);
    let put = (name(), a_file()).prop_map(|(name, node)| Record::Put {
        name,
        child: Child::Node(node.logid),
        kind: Kind::File,
        node: Some(Box::new(node)),
    });
    let device = (name(), an_attr(Kind::CharDevice, 0)).prop_map(|(name, attr)| Record::Put {
        name,
        child: Child::Node(Logid(77)),
        kind: Kind::CharDevice,
        node: Some(Box::new(Node {
            logid: Logid(77),
            attr,
            data_bytes: 0,
            racy: false,
            sha1: None,
            target: vec![],
            xattrs: vec![],
            content: Content::Inline(vec![]),
        })),
    });
    let dir = (name(), 1..1u64 << 39, an_attr(Kind::Dir, 4096), some_xattrs(), any::<u64>()).prop_map(
        |(name, n, attr, xattrs, children)| Record::Dir {
            dirno: Dirno(n),
            parent: Dirno(n / 2),
            name,
            listing: Listing::Full,
            state: Some(DirState { attr, xattrs, children }),
        },
    );
    let extents = a_list().prop_map(|segments| Record::Extents(ExtentChunk { logid: Logid(5), start: 9, segments }));
    let rare = prop_oneof![
        Just(Record::RemoveVersion(Version(3))),
        Just(Record::Relocate { from: BlockId(1), to: BlockId(2) }),
        Just(Record::DropArc(crate::ids::ArcSerial(4))),
    ];
    prop::collection::vec(
        prop_oneof![put, device, dir, extents, rare, name().prop_map(|name| Record::Remove { name })],
        0..8,
    )
}

fn encoded(records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    records.iter().for_each(|r| encode_record(&mut out, r));
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn records_come_back_equal(list in records()) {
        prop_assert_eq!(decode_records(&encoded(&list)), Ok(list));
    }

    #[test]
    fn any_bytes_and_any_change_decode_or_are_refused_without_a_panic(list in records(), at: usize, mask in 1u8.., noise: Vec<u8>) {
        let _ = decode_records(&noise);
        let _ = Commit::decode(&noise);
        let mut bytes = encoded(&list);
        if !bytes.is_empty() {
            let at = at % bytes.len();
            bytes[at] ^= mask;
            let _ = decode_records(&bytes);
            let _ = decode_records(&bytes[..at]);
        }
    }

    #[test]
    fn attributes_need_only_the_first_bytes_of_a_node(node in a_file()) {
        let bytes = encode_node(&node);
        prop_assert_eq!(decode_node_attr(&bytes[..bytes.len().min(150)]), Ok((node.attr.clone(), node.data_bytes)));
        prop_assert_eq!(decode_node(&bytes), Ok(node));
    }
}

#[test]
fn a_commit_comes_back_equal_and_every_cut_is_refused() {
    let commit = Commit {
        run: Version(7),
        run_id: [1; 16],
        previous: Some((Version(5), [2; 32])),
        version: Some(VersionInfo {
            name: "2026-01-01-0000-r7".into(),
            paths: vec![b"/a\xff".to_vec()],
            files: 3,
            ..Default::default()
        }),
        base: true,
        arcs: vec![ArcEntry {
            serial: crate::ids::ArcSerial(1 << 38),
            name: crate::ids::ArcName { version: Version(7), number: 0 },
            role: ArcRole::Catalog,
            id: crate::ids::ArcId([3; 16]),
            salt: crate::ids::ArcSalt([4; 32]),
            arc_bytes: 1 << 40,
            digest: crate::ids::ArcDigest([5; 32]),
            frames: 9,
            footer_offset: 1 << 39,
            footer_len: 300,
            plain_bytes: 1 << 41,
        }],
        catalog: vec![CatalogFrame {
            arc: crate::ids::ArcSerial(2),
            frame: crate::ids::FrameNo(0),
            dirs: vec![(Dirno(9), 3), (Dirno(2), 1)],
        }],
        next_serial: 1,
        next_logid: 2,
        next_dirno: 3,
    };
    let bytes = commit.encode();
    assert_eq!(Commit::decode(&bytes), Ok(commit));
    for len in 0..bytes.len() {
        assert!(Commit::decode(&bytes[..len]).is_err());
    }
}
