//! The digests against bytes that are put together here by hand, as docs/format.md has them.

use sha2::{Digest, Sha256};

use super::digest::{self, ItemDigest, Known};
use super::*;
use crate::ids::{ListingDigest, NodeDigest, TreeDigest};

/// Bytes, small numbers as one byte each.
fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn sha(parts: &[&[u8]]) -> [u8; 32] {
    Sha256::digest(bytes(parts)).into()
}

fn attr(kind: Kind, size: u64) -> Attr {
    Attr {
        kind,
        perm: 5,
        uid: 1,
        gid: 2,
        size,
        mtime: Timespec { sec: -1, nsec: 4 },
        ctime: Timespec { sec: 3, nsec: 0 },
        nlink: 7,
        rdev_major: 0,
        rdev_minor: 0,
        source_ino: 9,
    }
}

/// Type, permissions, uid, gid, size, mtime (zigzag), ctime, links, inode.
fn attr_bytes(kind: u8, size: u8) -> [u8; 11] {
    [kind, 5, 1, 2, size, 1, 4, 6, 0, 7, 9]
}

fn node(content: Content, size: u64) -> Node {
    Node {
        logid: Logid(300),
        attr: attr(Kind::File, size),
        data_bytes: size,
        racy: true,
        sha1: Some(FileHash([8; 20])),
        target: vec![],
        xattrs: vec![(b"u".to_vec(), b"v".to_vec())],
        content,
    }
}

#[test]
fn a_node_is_bound_but_for_its_number_and_its_doubt() {
    let list = vec![Segment::Data { block: BlockId(2), len: 10 }];
    let one = node(Content::Inline(list), 10);
    let xattrs = [1, 1, b'u', 1, b'v'];
    // Data bytes, flags; then one segment: its length × 2, the block less 0, zigzag.
    let by_hand = sha(&[b"assay node v2", &attr_bytes(1, 10), &[10, 2], &[8; 20], &[1, 20, 4], &[0], &xattrs]);
    assert_eq!(digest::node(&one).0, by_hand[..16]);
    assert_eq!(digest::node(&Node { logid: Logid(17), racy: false, ..one.clone() }), digest::node(&one));
    let long = node(Content::Chunked(SegmentsDigest([6; 32])), 100);
    let by_hand = sha(&[b"assay node v2", &attr_bytes(1, 100), &[100, 6], &[8; 20], &[6; 32], &[0], &xattrs]);
    assert_eq!(digest::node(&long).0, by_hand[..16]);
    let others: [&dyn Fn(&mut Node); 7] = [
        &|n| n.attr.perm = 6,
        &|n| n.attr.ctime.nsec = 1,
        &|n| n.sha1 = None,
        &|n| n.data_bytes = 9,
        &|n| n.xattrs.clear(),
        &|n| n.attr.source_ino = 10,
        &|n| n.content = Content::Inline(vec![Segment::Data { block: BlockId(3), len: 10 }]),
    ];
    for change in others {
        let mut other = one.clone();
        change(&mut other);
        assert_ne!(digest::node(&other), digest::node(&one), "{other:?}");
    }
}

#[test]
fn segments_count_in_their_order_and_not_as_they_are_cut() {
    let list = [
        Segment::Data { block: BlockId(5), len: 10 },
        Segment::Hole { len: 3 },
        Segment::Data { block: BlockId(6), len: 1 },
        Segment::Data { block: BlockId(2), len: 1 },
    ];
    // Block 6 is the one expected after 5; 2 is 5 less than 7.
    let by_hand = sha(&[b"assay segments v2", &[20, 10, 7, 2, 0, 2, 9]]);
    for cut in 0..=list.len() {
        let mut digest = digest::Segments::default();
        digest.add(&list[..cut]);
        digest.add(&list[cut..]);
        assert_eq!(digest.finish().0, by_hand, "cut at {cut}");
    }
}

#[test]
fn a_listing_binds_names_types_digests_and_whether_all_are_known() {
    let items = [
        (b"a".as_slice(), Kind::File, ItemDigest::Node(NodeDigest([1; 16]))),
        (b"bc", Kind::Dir, ItemDigest::Dir(TreeDigest([2; 32]))),
    ];
    let of = |known, items: &[(&[u8], Kind, ItemDigest)]| {
        let mut listing = digest::Listing::new(known);
        items.iter().for_each(|(name, kind, item)| listing.add(name, *kind, item));
        listing.finish()
    };
    let names = bytes(&[&[1, b'a', 1], &[1; 16], &[2, b'b', b'c', 2], &[2; 32]]);
    assert_eq!(of(Known::All, &items).0, sha(&[b"assay listing v2", &[0], &names]));
    let some = of(Known::Some, &items);
    assert_eq!(some.0[..24], sha(&[b"assay listing v2", &[1], &names])[..24]);
    assert_eq!((&some.0[24..], some.is_of_all(), of(Known::All, &items).is_of_all()), (&[0; 8][..], false, true));
    assert_eq!(of(Known::All, &[]).0, sha(&[b"assay listing v2", &[0]]));
}

#[test]
fn a_directory_binds_its_own_state_and_its_listing() {
    let state = DirState {
        attr: attr(Kind::Dir, 4),
        xattrs: vec![(b"u".to_vec(), vec![])],
        children: 6,
        listing: ListingDigest([3; 32]),
    };
    let by_hand = sha(&[b"assay dir v2", &attr_bytes(2, 4), &[6], &[1, 1, b'u', 0], &[3; 32]]);
    assert_eq!(digest::dir(&state).0, by_hand);
}
