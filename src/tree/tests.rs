use proptest::prelude::*;

use super::*;
use crate::catalog::{Record, Segment};
use crate::ids::BlockId;
use crate::testing::fixture::{Fixture, chunked, dir_record, node, put, put_dir};

const ROOT: Dirno = Dirno::ROOT;

fn tree(fixture: &Fixture, view: View) -> Tree {
    fixture.tree(view)
}

/// Segments of a file as (data?, length) pairs; blocks are numbered in order.
fn segments(shape: &[(bool, u32)]) -> Vec<Segment> {
    let segment = |(no, (data, len)): (usize, &(bool, u32))| match data {
        true => Segment::Data { block: BlockId(no as u64), len: *len },
        false => Segment::Hole { len: u64::from(*len) },
    };
    shape.iter().enumerate().map(segment).collect()
}

/// The oracle: for each byte the block and offset it comes from, or None in a hole.
fn bytes_of(segments: &[Segment]) -> Vec<Option<(BlockId, u32)>> {
    let expand = |segment: &Segment| match segment {
        Segment::Data { block, len } => (0..*len).map(|at| Some((*block, at))).collect::<Vec<_>>(),
        Segment::Hole { len } => vec![None; *len as usize],
    };
    segments.iter().flat_map(expand).collect()
}

fn bytes_of_pieces(pieces: &[Piece]) -> Vec<Option<(BlockId, u32)>> {
    let expand = |piece: &Piece| match piece {
        Piece::Data { block, start, len, .. } => (*start..start + len).map(|at| Some((*block, at))).collect::<Vec<_>>(),
        Piece::Zero { len } => vec![None; *len as usize],
    };
    pieces.iter().flat_map(expand).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn ranges_and_seeks_agree_with_a_byte_by_byte_model(
        shape in proptest::collection::vec((any::<bool>(), 1u32..30), 1..40),
        per_chunk in 1usize..9,
        offsets in proptest::collection::vec((0u64..700, 0u64..300), 12),
    ) {
        // Longer than a node that carries its segments could be.
        let all = segments(&[&shape[..], &[(false, 65)]].concat());
        let inline = node(20, &all, vec![]);
        let (extents, long) = chunked(node(21, &all, vec![]), per_chunk);
        let mut fixture = Fixture::new();
        let mut records = vec![dir_record(ROOT, ROOT, b"", 2), put(b"a", inline.clone())];
        records.extend(extents);
        records.push(put(b"b", long.clone()));
        fixture.commit(&[], &records);
        let tree = tree(&fixture, View::Whole);
        let model = bytes_of(&all);
        for file in [inline, long] {
            for &(offset, len) in &offsets {
                let pieces = tree.segments(&file, offset, len).unwrap();
                let from = (offset as usize).min(model.len());
                let to = (offset as usize + len as usize).min(model.len());
                prop_assert_eq!(bytes_of_pieces(&pieces), &model[from..to]);
                for to in [SeekTo::Data, SeekTo::Hole] {
                    let found = (from..model.len()).find(|at| model[*at].is_some() == (to == SeekTo::Data));
                    let expected = match (from < model.len(), found, to) {
                        (false, ..) => None,
                        (true, None, SeekTo::Hole) => Some(model.len() as u64),
                        (true, found, _) => found.map(|at| at as u64),
                    };
                    prop_assert_eq!(tree.seek(&file, offset, to).unwrap(), expected);
                }
            }
        }
    }
}

#[test]
fn content_that_does_not_match_the_size_is_an_error() {
    let fixture = Fixture::new();
    let tree = tree(&fixture, View::Whole);
    let mut short = node(20, &segments(&[(true, 10)]), vec![]);
    short.attr.size = 11;
    assert_eq!(tree.segments(&short, 0, 11).unwrap_err().code(), "EXTENTS_LOST");
    assert_eq!(tree.segments(&short, 0, 10).unwrap().len(), 1);
    let mut long = node(20, &segments(&[(true, 10)]), vec![]);
    long.attr.size = 9;
    assert_eq!(tree.segments(&long, 0, 9).unwrap_err().code(), "INDEX_ROW_DAMAGED");
    let (_, lost) = chunked(node(21, &segments(&[(true, 10)]), vec![]), 1);
    assert!(tree.segments(&lost, 0, 1).unwrap_err().is_damage());
}

fn two_versions() -> Fixture {
    let mut fixture = Fixture::new();
    let (sub, other) = (Dirno(1), Dirno(2));
    fixture.commit(
        &[],
        &[
            dir_record(ROOT, ROOT, b"", 3),
            put_dir(b"other", other),
            put(b"same", node(20, &[], vec![])),
            put_dir(b"sub", sub),
            dir_record(sub, ROOT, b"sub", 1),
            put(b"x", node(21, &[], vec![])),
            dir_record(other, ROOT, b"other", 1),
            put(b"y", node(22, &[], vec![])),
        ],
    );
    // x in sub changes.
    fixture.commit(
        &[],
        &[
            Record::Dir {
                dirno: sub,
                parent: ROOT,
                name: b"sub".to_vec(),
                listing: crate::catalog::Listing::Delta,
                state: None,
            },
            put(b"x", node(23, &[], vec![(b"user.v".to_vec(), vec![1])])),
        ],
    );
    fixture
}

fn names(tree: &Tree, version: u32, dir: Dirno) -> Vec<String> {
    let mut listing = tree.list(Version(version), dir).unwrap();
    let mut names = Vec::new();
    loop {
        let page = listing.next_page(tree).unwrap();
        if page.is_empty() {
            return names;
        }
        names.extend(page.into_iter().map(|listed| String::from_utf8(listed.entry.name).unwrap()));
    }
}

#[test]
fn versions_are_found_by_number_name_and_latest() {
    let fixture = two_versions();
    let tree = tree(&fixture, View::Whole);
    for (name, expected) in
        [("latest", 1), ("r0", 0), ("0", 0), ("1", 1), ("2026-01-01-1200-r0", 0), ("2026-01-02-1200-r1", 1)]
    {
        assert_eq!(tree.version(name).unwrap().version, Version(expected), "{name}");
    }
    for name in ["r2", "2026-01-01-1200-r1", "", "newest"] {
        assert_eq!(tree.version(name).unwrap_err().code(), "NO_VERSION", "{name}");
    }
}

#[test]
fn paths_lead_to_each_versions_own_state() {
    let fixture = two_versions();
    let tree = tree(&fixture, View::Whole);
    let file = |logid| Found::Node(Logid(logid), Kind::File);
    assert_eq!(tree.find(Version(0), b"/sub/x").unwrap(), file(21));
    assert_eq!(tree.find(Version(1), b"//sub/./x").unwrap(), file(23));
    assert_eq!(tree.find(Version(1), b"/").unwrap(), Found::Dir(ROOT));
    for absent in [&b"/sub/z"[..], b"/sub/x/y", b"/sub/..", b"/SUB"] {
        assert_eq!(tree.find(Version(1), absent).unwrap_err().code(), "NO_PATH");
    }
}

#[test]
fn the_changed_view_shows_what_a_version_saved_and_the_way_to_it() {
    let fixture = two_versions();
    let whole = tree(&fixture, View::Whole);
    let changed = tree(&fixture, View::Changed);
    assert_eq!(names(&whole, 1, ROOT), ["other", "same", "sub"]);
    assert_eq!(names(&changed, 1, ROOT), ["sub"]);
    assert_eq!(names(&changed, 1, Dirno(1)), ["x"]);
    assert_eq!(names(&changed, 0, ROOT), ["other", "same", "sub"]);
    assert_eq!(changed.child(Version(1), ROOT, b"same").unwrap(), None);
}

#[test]
fn a_listing_with_fewer_names_than_were_saved_is_an_error() {
    let mut fixture = Fixture::new();
    fixture.commit(
        &[],
        &[dir_record(ROOT, ROOT, b"", 3), put(b"a", node(20, &[], vec![])), put(b"b", node(21, &[], vec![]))],
    );
    let tree = tree(&fixture, View::Whole);
    let error = tree.list(Version(0), ROOT).err().unwrap();
    assert_eq!(error.code(), "INDEX_ROW_DAMAGED");
}

#[test]
fn names_that_had_to_make_room_are_found_all_the_same() {
    // Six directories whose names are kept, together more than are kept, and one with more names than are kept of one.
    const NAMES: [u64; 7] = [14_000, 14_000, 14_000, 14_000, 14_000, 14_000, 17_000];
    let name = |number: u64| format!("{number:06}").into_bytes();
    let mut records = vec![dir_record(ROOT, ROOT, b"", NAMES.len() as u64)];
    records.extend((1..=NAMES.len() as u64).map(|dir| put_dir(&[b'd', b'0' + dir as u8], Dirno(dir))));
    let (mut logid, mut firsts) = (20, Vec::new());
    for (dir, names) in (1..).zip(NAMES) {
        records.push(dir_record(Dirno(dir), ROOT, &[b'd', b'0' + dir as u8], names));
        firsts.push(logid);
        records.extend((0..names).map(|number| put(&name(number), node(logid + number, &[], vec![]))));
        logid += names;
    }
    let mut fixture = Fixture::new();
    fixture.commit(&[], &records);
    let tree = tree(&fixture, View::Whole);
    for round in 0..2 {
        for (dir, (names, first)) in (1..).zip(NAMES.into_iter().zip(&firsts)) {
            for number in [0, names / 2, names - 1] {
                let entry = tree.child(Version(0), Dirno(dir), &name(number)).unwrap().unwrap();
                assert_eq!(entry.child, Child::Node(Logid(first + number)), "round {round}, directory {dir}");
            }
            for absent in [name(names), b"".to_vec(), b"00000".to_vec()] {
                assert_eq!(
                    tree.child(Version(0), Dirno(dir), &absent).unwrap(),
                    None,
                    "round {round}, directory {dir}"
                );
            }
        }
    }
}
