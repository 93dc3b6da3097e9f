//! selftest -v5: each file state is rebuilt and compared; damage is told by file, range and versions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;

use super::lab::{Copy, lab};
use super::questions::Reader;
use super::recoveries::put;
use super::structures::{found, options, shown};
use crate::catalog::{Child, Kind};
use crate::ids::{BlockId, FileHash, FramePlace, Logid, Version};
use crate::selftest::{Cause, Finding, Level, Options, Scope};
use crate::tree::Piece;

/// For each file: its names with the versions that show them, and where each block is.
struct Users {
    names: BTreeMap<Logid, BTreeMap<Vec<u8>, BTreeSet<Version>>>,
    blocks: BTreeMap<BlockId, BTreeMap<Logid, Vec<Range<u64>>>>,
}

fn users(r: &Reader) -> Users {
    let (mut names, mut blocks) = (BTreeMap::<Logid, BTreeMap<_, BTreeSet<_>>>::new(), BTreeMap::new());
    for row in r.tree.versions().unwrap() {
        for (path, child) in r.below(row.version, b"/") {
            let Child::Node(logid) = child else { continue };
            names.entry(logid).or_default().entry([b"/", &path[..]].concat()).or_default().insert(row.version);
        }
    }
    for logid in names.keys() {
        let node = r.tree.node(*logid).unwrap();
        if node.attr.kind != Kind::File {
            continue;
        }
        let mut at = 0;
        for piece in r.tree.segments(&node, 0, u64::MAX).unwrap() {
            if let Piece::Data { block, .. } = piece {
                let of: &mut BTreeMap<Logid, Vec<Range<u64>>> = blocks.entry(block).or_default();
                of.entry(*logid).or_default().push(at..at + piece.len());
            }
            at += piece.len();
        }
    }
    Users { names, blocks }
}

fn v5(copy: &Copy) -> Vec<Finding> {
    found(copy, &options(Level::Files)).into_iter().filter(|finding| finding.level == Level::Files).collect()
}

fn joined(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => all.push(range.clone()),
        }
    }
    all
}

/// The damaged place is one finding, which names every file that uses one of these blocks, with its ranges, names and
/// versions, and no other.
fn assert_told(findings: &[Finding], users: &Users, bad: &[BlockId], cause: Cause, what: &str) {
    let [finding] = findings else { panic!("{what}: {:#?}", shown(findings)) };
    assert_eq!(finding.cause, cause, "{what}: {}", finding.error);
    let mut wanted: BTreeMap<(Vec<u8>, Version), Vec<Range<u64>>> = BTreeMap::new();
    // Blocks that share a frame are lost together.
    let frames: BTreeSet<FramePlace> = bad.iter().map(|block| block.place()).collect();
    let lost = users.blocks.iter().filter(|(block, _)| frames.contains(&block.place()));
    for (logid, ranges) in lost.flat_map(|(_, used)| used) {
        for (path, versions) in &users.names[logid] {
            for v in versions {
                wanted.entry((path.clone(), *v)).or_default().extend(ranges.iter().cloned());
            }
        }
    }
    let mut told: BTreeMap<(Vec<u8>, Version), Vec<Range<u64>>> = BTreeMap::new();
    for hit in &finding.hits {
        for v in hit.versions.0.0..=hit.versions.1.0 {
            told.entry((hit.path.clone(), Version(v))).or_default().push(hit.bytes.clone());
        }
    }
    let tidy = |all: BTreeMap<(Vec<u8>, Version), Vec<Range<u64>>>| -> Vec<_> {
        let of = |(key, mut ranges): (_, Vec<Range<u64>>)| {
            ranges.sort_by_key(|range| range.start);
            (key, joined(&ranges))
        };
        all.into_iter().map(of).collect()
    };
    assert_eq!(tidy(told), tidy(wanted), "{what}: {:#?}", shown(findings));
    assert_eq!(finding.hits_total, finding.hits.len() as u64, "{what}");
}

#[test]
fn a_clean_lab_restores_without_a_finding() {
    let copy = Copy::of(&lab().files);
    let findings = found(&copy, &options(Level::Files));
    assert!(findings.is_empty(), "{:#?}", shown(&findings));
}

#[test]
fn each_kind_of_damage_is_told_by_file_range_and_versions() {
    let lab = lab();
    let clean = Copy::of(&lab.files);
    let users = users(&clean.reader());
    let index = clean.open().open_index().unwrap();
    let blocks: Vec<BlockId> = users.blocks.keys().copied().collect();
    for block in blocks.iter().step_by(blocks.len() / 14 + 1) {
        let name = index.arc(block.arc()).unwrap().entry.name.to_string();
        let chunk = index.frame_chunk(block.arc(), block.frame()).unwrap();
        let at = chunk.locate(block.frame()).unwrap().0 as usize;
        let len = chunk.locate(block.frame()).unwrap().1.frame_len() as usize;
        let flip = |places: &[usize]| {
            let copy = Copy::of(&lab.files);
            let mut bytes = lab.files[&name].clone();
            places.iter().for_each(|place| bytes[*place] ^= 0x21);
            put(&copy, &name, &bytes);
            copy
        };
        for (what, places) in [("body", [at + 36, at + len - 20]), ("tag", [at + len - 1, at + len - 9])] {
            let copy = flip(&places);
            assert_told(&v5(&copy), &users, &[*block], Cause::Medium, &format!("{block} {what}"));
        }
    }
    // A whole arc, and the end of one.
    for row in index.arcs().unwrap().iter().filter(|row| row.entry.role == crate::catalog::ArcRole::Data) {
        let (name, serial) = (row.entry.name.to_string(), row.entry.serial);
        let of_arc: Vec<BlockId> = blocks.iter().copied().filter(|block| block.arc() == serial).collect();
        let copy = Copy::of(&lab.files);
        fs::remove_file(copy.path(&name)).unwrap();
        assert_told(&v5(&copy), &users, &of_arc, Cause::Missing, &format!("{name} gone"));
        let half = of_arc[of_arc.len() / 2];
        let chunk = index.frame_chunk(serial, half.frame()).unwrap();
        let cut = chunk.locate(half.frame()).unwrap().0 as usize + 20;
        put(&copy, &name, &lab.files[&name][..cut]);
        let behind: Vec<BlockId> = of_arc.iter().copied().filter(|block| *block >= half).collect();
        assert_told(&v5(&copy), &users, &behind, Cause::Missing, &format!("{name} cut"));
    }
}

#[test]
fn a_wrong_file_hash_over_good_blocks_is_the_indexs() {
    let copy = Copy::of(&lab().files);
    let users = users(&copy.reader());
    let logid = *users.blocks.values().next().unwrap().keys().next().unwrap();
    copy.vandal().node(logid, |node| node.sha1 = Some(FileHash([7; 20])));
    let findings = v5(&copy);
    assert_eq!(findings.len(), 1, "{:#?}", shown(&findings));
    let one = &findings[0];
    assert_eq!((one.error.code(), one.cause), ("FILE_HASH_MISMATCH", Cause::Index));
    assert!(one.hits.iter().all(|hit| hit.logid == logid) && !one.hits.is_empty());
}

#[test]
fn versions_and_paths_narrow_it_down() {
    let copy = Copy::of(&lab().files);
    let reader = copy.reader();
    let users = users(&reader);
    let top = reader.below(Version(0), b"/");
    let count = |v: u32| {
        let of = reader.below(Version(v), b"/").into_values();
        of.filter_map(|child| if let Child::Node(logid) = child { Some(logid) } else { None })
            .collect::<BTreeSet<_>>()
            .len() as u64
    };
    let run = |options: Options| crate::selftest::run(&copy.open(), &options, &crate::monitor::Silent).unwrap();
    assert_eq!(run(options(Level::Files)).files, users.names.len() as u64, "each state once");
    for v in 0..4 {
        let report = run(Options { rev: Some(format!("r{v}")), ..options(Level::Files) });
        assert_eq!(report.files, count(v), "r{v}");
    }
    let file = top.keys().find(|path| path.ends_with(b"/long")).unwrap();
    let path = [b"/", &file[..]].concat();
    let report = run(Options { scope: Scope::Paths(vec![path.clone()]), ..options(Level::Files) });
    let states = users.names.values().filter(|names| names.contains_key(&path)).count() as u64;
    assert_eq!((report.files, states > 1), (states, true));
    let nowhere = Options { scope: Scope::Paths(vec![b"/no/such".to_vec()]), ..options(Level::Files) };
    let error = crate::selftest::run(&copy.open(), &nowhere, &crate::monitor::Silent).unwrap_err();
    assert_eq!(error.code(), "NO_PATH");
}
