//! The index against the model: every question about every version, after random commits.

use std::collections::HashSet;

use super::model::*;
use super::row::MAX_ROWID_VALUE;
use super::schema::{Access, connect};
use super::*;
use crate::catalog::codec::encode_record;
use crate::catalog::*;
use crate::error::Error;
use crate::ids::*;

/// Asks everything about a version; answers must be the model's, and errors are counted.
fn compare(index: &Index, v: Version, root: &Dir, errors_allowed: bool) -> u64 {
    let mut errors = 0;
    let mut fail = |error: &Error| {
        assert!(errors_allowed, "{error}");
        assert!(error.is_damage(), "{error}");
        errors += 1;
    };
    root.each(&mut Vec::new(), &mut |path, dir| {
        match index.dir(v, dir.dirno) {
            Ok(row) => {
                assert_eq!((row.state, row.dirno), (dir.state(), dir.dirno));
                assert_eq!(&row.name, path.last().unwrap_or(&Vec::new()));
            }
            Err(error) => fail(&error),
        }
        let expected: Vec<(&Vec<u8>, Child)> = dir.children.iter().map(|(name, item)| (name, id_of(item))).collect();
        match index.children(v, dir.dirno, None, usize::MAX) {
            Ok(entries) => {
                let found: Vec<(&Vec<u8>, Child)> = entries.iter().map(|e| (&e.name, e.child)).collect();
                assert_eq!(found, expected, "{v} {path:?}");
            }
            Err(error) => fail(&error),
        }
        match index.children_with_attrs(v, dir.dirno, None, 1 << 20) {
            Ok(listed) => {
                assert_eq!(listed.len(), expected.len());
                for (one, (name, item)) in listed.iter().zip(&dir.children) {
                    assert_eq!((&one.entry.name, one.entry.child), (name, id_of(item)));
                    match (&one.attr, item) {
                        (Ok(attr), Item::File(node)) => assert_eq!(attr, &(node.attr.clone(), node.data_bytes)),
                        (Ok(attr), Item::Dir(dir)) => assert_eq!(attr, &(dir.state().attr, 0)),
                        (Err(error), _) => fail(error),
                    }
                }
            }
            Err(error) => fail(&error),
        }
        for (name, item) in &dir.children {
            match index.lookup(v, dir.dirno, name) {
                Ok(entry) => {
                    let entry = entry.unwrap_or_else(|| panic!("{v} {path:?} {name:?} is gone"));
                    assert_eq!((entry.child, &entry.name), (id_of(item), name), "{v} {path:?} {name:?}");
                    assert!(entry.since <= v);
                }
                Err(error) => fail(&error),
            }
            let Item::File(node) = item else { continue };
            match index.node(node.logid) {
                Ok(found) => assert_eq!(found, **node),
                Err(error) => fail(&error),
            }
            if matches!(node.content, Content::Chunked(_)) {
                for chunk in chunks_of(node, 0) {
                    for offset in [chunk.start, chunk.start + chunk.segments[0].len() - 1] {
                        match index.extents_at(node.logid, offset) {
                            Ok(found) => assert_eq!(found, chunk),
                            Err(error) => fail(&error),
                        }
                    }
                }
                assert!(index.extents_at(node.logid, node.attr.size).is_err());
            }
        }
        for absent in [&b"zz"[..], b"n", b"\xff", &[b'x'; 255]] {
            match index.lookup(v, dir.dirno, absent) {
                Ok(found) => assert_eq!(found, None),
                Err(error) => fail(&error),
            }
        }
        match index.path_of_dir(v, dir.dirno) {
            Ok(found) => {
                let expected: Vec<u8> = path.iter().flat_map(|name| [b"/", &name[..]].concat()).collect();
                assert_eq!(found, if expected.is_empty() { b"/".to_vec() } else { expected });
            }
            Err(error) => fail(&error),
        }
    });
    errors
}

fn model(seed: u64, commits: u64) -> Model {
    let mut model = Model::new(seed);
    for i in 0..commits {
        let changes = 1 + model.rng.below(12);
        model.commit(if i == 0 { 40 } else { changes }, i == 0 || i % 7 == 6);
    }
    model
}

#[test]
fn every_version_of_a_random_history_reads_as_the_model_has_it() {
    for seed in 0..12 {
        let model = model(seed, 14);
        let built = Built::of(&model);
        let index = built.index();
        assert_eq!(index.versions().unwrap().len(), 14);
        for (v, (root, touched)) in &model.versions {
            assert_eq!(compare(&index, *v, root, false), 0);
            root.each(&mut Vec::new(), &mut |path, dir| {
                assert_eq!(index.changed_in(*v, dir.dirno).unwrap(), touched.contains(&dir.dirno), "{v} {path:?}");
            });
            let version = index.version(*v).unwrap().unwrap();
            assert_eq!(index.version_by_name(&version.info.name).unwrap(), Some(version));
        }
        let newest = *model.versions.last_key_value().unwrap().0;
        assert_eq!(index.newest().unwrap().unwrap().version, newest);
        assert_eq!(index.state().unwrap().next_run, Version(newest.0 + 1));
        no_row_overflows(&built);
    }
}

/// Pages of type overflow, as SQLite itself counts them, and values that come near.
fn no_row_overflows(built: &Built) {
    let connection = connect(&built.path(), &KEY, Access::Read).unwrap();
    let pages: i64 =
        connection.query_row("SELECT count(*) FROM dbstat WHERE pagetype='overflow'", [], |row| row.get(0)).unwrap();
    assert_eq!(pages, 0);
    let all: i64 = connection.query_row("SELECT count(*) FROM dbstat", [], |row| row.get(0)).unwrap();
    assert!(all > 10);
    let longest: i64 = connection.query_row("SELECT max(length(row)) FROM nodes", [], |row| row.get(0)).unwrap();
    assert!(longest <= MAX_ROWID_VALUE as i64, "{longest}");
}

#[test]
fn pages_of_a_listing_join_to_the_whole() {
    let model = model(3, 8);
    let built = Built::of(&model);
    let index = built.index();
    for (v, (root, _)) in &model.versions {
        root.each(&mut Vec::new(), &mut |_, dir| {
            for limit in 1..5 {
                let mut names: Vec<Vec<u8>> = Vec::new();
                loop {
                    let page = index.children(*v, dir.dirno, names.last().map(|n| &n[..]), limit).unwrap();
                    let end = page.len() < limit;
                    names.extend(page.into_iter().map(|entry| entry.name));
                    if end {
                        break;
                    }
                }
                assert_eq!(names, dir.children.keys().cloned().collect::<Vec<_>>());
                index.check_count(*v, dir.dirno, names.len() as u64).unwrap();
                assert!(index.check_count(*v, dir.dirno, names.len() as u64 + 1).is_err());
            }
        });
    }
}

#[test]
fn the_same_commits_give_the_same_rows() {
    let model = model(21, 10);
    let (a, b) = (Built::of(&model), Built::of(&model));
    let rows = dump(&a.path());
    assert!(rows.len() > 400);
    assert_eq!(rows, dump(&b.path()));
}

#[test]
fn earlier_versions_read_the_same_while_later_ones_are_applied() {
    let model = model(5, 9);
    let built = Built::new();
    let index = built.index();
    let mut writer = built.writer();
    for made in &model.commits {
        apply(&mut writer, made).unwrap();
        for (v, (root, _)) in model.versions.range(..=made.commit.run) {
            assert_eq!(compare(&index, *v, root, false), 0);
        }
        writer.checkpoint().unwrap();
    }
}

#[test]
fn lost_frames_cost_what_they_described_until_a_full_listing_heals_it() {
    let mut errors = 0;
    for seed in 0..25 {
        let mut model = model(seed, 6);
        for _ in 0..3 {
            model.commit(6, false);
        }
        model.commit(2, true);
        let built = Built::new();
        let mut writer = built.writer();
        let healed = model.commits.last().unwrap().commit.run;
        let mut rng = Lcg(seed);
        let mut lost_any = false;
        for made in &model.commits {
            let frames = made.frames.len() as u64;
            let lost: HashSet<FrameNo> = if made.commit.run != healed && rng.below(2) == 0 {
                HashSet::from([FrameNo(rng.below(frames) as u32)])
            } else {
                HashSet::new()
            };
            lost_any |= !lost.is_empty();
            let expected = lost.len();
            let report = writer.apply(&made.commit, made.digest, &mut Source { made, lost, no_tables: false }).unwrap();
            assert_eq!(report.lost.len(), expected);
        }
        let index = built.index();
        for (v, (root, _)) in &model.versions {
            let found = compare(&index, *v, root, lost_any && *v != healed);
            errors += found;
        }
    }
    assert!(errors > 100, "the test must lose something: {errors}");
}

#[test]
fn a_lost_directory_keeps_its_known_children_reachable_and_nothing_else() {
    let mut model = Model::new(1);
    let v = Version(0);
    let file = |logid| Item::File(Box::new(node(logid, 0, 0)));
    let dir = |dirno, children: Vec<(&str, Item)>| Dir {
        dirno: Dirno(dirno),
        salt: dirno,
        children: children.into_iter().map(|(n, i)| (n.as_bytes().to_vec(), i)).collect(),
        listing: std::sync::OnceLock::new(),
    };
    let inner = dir(2, vec![("kept", file(17))]);
    let outer = dir(1, vec![("inner", Item::Dir(inner.clone())), ("gone", file(16))]);
    let root = dir(0, vec![("outer", Item::Dir(outer.clone()))]);
    let frame = |dir: &Dir, parent, name: &[u8]| {
        let mut bytes = Vec::new();
        let (name, state) = (name.to_vec(), Some(dir.state()));
        let head = Record::Dir { dirno: dir.dirno, parent: Dirno(parent), name, listing: Listing::Full, state };
        encode_record(&mut bytes, &head);
        dir.children.iter().for_each(|(name, item)| encode_record(&mut bytes, &put(name, item)));
        (bytes, vec![dir.dirno])
    };
    model.versions.insert(v, (root.clone(), HashSet::new()));
    model.push(v, vec![frame(&root, 0, b""), frame(&outer, 0, b"outer"), frame(&inner, 1, b"inner")], true);
    let built = Built::new();
    let made = &model.commits[0];
    let lost = HashSet::from([FrameNo(1)]);
    let report = built.writer().apply(&made.commit, made.digest, &mut Source { made, lost, no_tables: false }).unwrap();
    assert_eq!(report.lost[0].dirs, [(Dirno(1), 1)]);
    let index = built.index();
    let is_lost = |error: Error| matches!(error, Error::DirectoryLost { dirno: Dirno(1), version: Version(0) });
    let listed = index.children_with_attrs(v, Dirno::ROOT, None, 10).unwrap();
    assert_eq!(listed[0].entry.child, Child::Dir(Dirno(1)));
    assert!(is_lost(listed[0].attr.clone().unwrap_err()));
    assert!(is_lost(index.children(v, Dirno(1), None, 10).unwrap_err()));
    assert!(is_lost(index.lookup(v, Dirno(1), b"gone").unwrap_err()));
    assert!(is_lost(index.lookup(v, Dirno(1), b"never").unwrap_err()));
    assert_eq!(index.lookup(v, Dirno(1), b"inner").unwrap().unwrap().child, Child::Dir(Dirno(2)));
    assert_eq!(index.children(v, Dirno(2), None, 10).unwrap()[0].name, b"kept");
    assert_eq!(index.path_of_node(Logid(17)).unwrap(), (v, b"/outer/inner/kept".to_vec()));
}

#[test]
fn removed_versions_are_not_shown_and_relocated_blocks_keep_their_name() {
    let mut model = model(9, 3);
    let (moved, plain) = (BlockId::first(ArcSerial(0), FrameNo(130)), BlockId::first(ArcSerial(0), FrameNo(131)));
    let to = BlockId::first(ArcSerial(6), FrameNo(5));
    let mut bytes = Vec::new();
    let removed = model.commits[1].commit.run;
    encode_record(&mut bytes, &Record::RemoveVersion(removed));
    encode_record(&mut bytes, &Record::Relocate { from: moved, to });
    encode_record(&mut bytes, &Record::DropArc(ArcSerial(0)));
    model.push(Version(50), vec![(bytes, vec![])], false);
    // The relocated frame holds the same plain bytes.
    let info = block_info(0, 130);
    model.commits[3].tables.get_mut(&ArcSerial(6)).unwrap()[5] = info.clone();
    let built = Built::of(&model);
    let index = built.index();
    assert_eq!(index.versions().unwrap().len(), 2);
    assert_eq!(index.version(removed).unwrap(), None);
    assert_eq!((index.location(moved).unwrap(), index.location(plain).unwrap()), (to, plain));
    assert_eq!(index.find_block(&info.blocks[0].hash).unwrap(), Some(moved));
    assert_eq!(index.find_block(&block_info(0, 131).blocks[0].hash).unwrap(), None);
    assert_eq!(
        index.find_block(&block_info(2, 131).blocks[0].hash).unwrap(),
        Some(BlockId::first(ArcSerial(2), FrameNo(131)))
    );
    assert!(index.arc(ArcSerial(0)).is_err() && index.arcs().unwrap().iter().all(|arc| arc.entry.serial.0 != 0));
    assert!(index.frame_chunk(ArcSerial(0), FrameNo(3)).is_err());
    assert_eq!(index.state().unwrap().hashes, 300 * 4 - 299 - 1);
    for (v, (root, _)) in model.versions.iter().filter(|(v, _)| **v != removed) {
        assert_eq!(compare(&index, *v, root, false), 0);
    }
}

#[test]
fn frames_are_found_with_their_offsets() {
    let model = model(2, 1);
    let built = Built::of(&model);
    let index = built.index();
    let mut offset = crate::arc::ARC_HEADER_LEN as u64;
    for no in 0..300 {
        let chunk = index.frame_chunk(ArcSerial(0), FrameNo(no)).unwrap();
        let chunk_len: usize = chunk.frames.iter().map(|info| info.encode().len()).sum();
        assert!(chunk_len <= MAX_ROWID_VALUE && chunk.frames.len() > 100 || chunk.end() == 300);
        let expected = block_info(0, no);
        assert_eq!(chunk.locate(FrameNo(no)), Some((offset, &expected)));
        assert_eq!(
            index.find_block(&expected.blocks[0].hash).unwrap(),
            Some(BlockId::first(ArcSerial(0), FrameNo(no)))
        );
        let mut other = expected.blocks[0].hash;
        other.0[19] ^= 1;
        assert_eq!(index.find_block(&other).unwrap(), None, "only the last bit differs");
        offset += expected.frame_len();
    }
    assert!(index.frame_chunk(ArcSerial(0), FrameNo(300)).is_err());
    assert!(index.frame_chunk(ArcSerial(77), FrameNo(0)).is_err());
    assert_eq!(index.arc(ArcSerial(1)).unwrap().entry, model.commits[0].commit.arcs[1]);
}

#[test]
fn arcs_without_a_frame_table_are_reported_and_unreadable() {
    let model = model(2, 1);
    let built = Built::new();
    let made = &model.commits[0];
    let mut source = Source { made, lost: HashSet::new(), no_tables: true };
    let report = built.writer().apply(&made.commit, made.digest, &mut source).unwrap();
    assert_eq!(report.unknown_arcs.len(), 2);
    let index = built.index();
    assert!(index.frame_chunk(ArcSerial(0), FrameNo(0)).unwrap_err().is_damage());
    assert_eq!(compare(&index, made.commit.run, &model.versions[&made.commit.run].0, false), 0);
}

#[test]
fn a_commit_that_does_not_follow_is_refused_and_changes_nothing() {
    let model = model(4, 3);
    let built = Built::new();
    let mut writer = built.writer();
    apply(&mut writer, &model.commits[0]).unwrap();
    writer.checkpoint().unwrap();
    let before = dump(&built.path());
    for wrong in [&model.commits[2], &model.commits[0]] {
        assert!(matches!(apply(&mut writer, wrong), Err(Error::CommitDamaged { .. })));
    }
    let mut source = Interrupting;
    let next = &model.commits[1];
    assert!(matches!(writer.apply(&next.commit, next.digest, &mut source), Err(Error::Interrupted)));
    assert_eq!(dump(&built.path()), before);
    writer.pass_over(Version(40)).unwrap();
    assert_eq!(writer.state().unwrap().next_run, Version(41));
    apply(&mut writer, next).unwrap();
    assert_eq!(writer.state().unwrap().next_run, Version(41));
}

struct Interrupting;

impl CatalogSource for Interrupting {
    fn frame_table(&mut self, _: &ArcEntry) -> crate::Result<Vec<crate::arc::FrameInfo>> {
        Ok(vec![])
    }
    fn catalog_frame(&mut self, _: &CatalogFrame, _: &ArcEntry) -> crate::Result<Vec<u8>> {
        Err(Error::Interrupted)
    }
}

/// Tables that are asked for together, and those that were read: each after it was asked for.
#[derive(Default)]
struct Announced {
    batches: Vec<usize>,
    asked: Vec<ArcSerial>,
    read: usize,
}

impl CatalogSource for Announced {
    fn ahead(&mut self, arcs: &mut dyn Iterator<Item = &ArcEntry>) {
        assert_eq!(self.read, self.asked.len(), "asked for before the last ones were read");
        let before = self.asked.len();
        self.asked.extend(arcs.map(|arc| arc.serial));
        self.batches.push(self.asked.len() - before);
    }
    fn frame_table(&mut self, arc: &ArcEntry) -> crate::Result<Vec<crate::arc::FrameInfo>> {
        assert_eq!(self.asked.get(self.read), Some(&arc.serial));
        self.read += 1;
        Ok(vec![])
    }
    fn catalog_frame(&mut self, _: &CatalogFrame, _: &ArcEntry) -> crate::Result<Vec<u8>> {
        Err(Error::Interrupted)
    }
}

#[test]
fn frame_tables_are_asked_for_together_and_none_that_is_known() {
    let model = model(2, 1);
    let built = Built::new();
    let mut writer = built.writer();
    let made = &model.commits[0];
    let first = made.commit.arcs[0].clone();
    let many = |range: std::ops::Range<u32>| {
        let arc = |n: u32| ArcEntry {
            serial: ArcSerial(u64::from(n)),
            name: ArcName { number: n + 1, ..first.name },
            ..first.clone()
        };
        let arcs = range.map(arc).collect();
        Commit { arcs, catalog: vec![], next_serial: 1000, ..made.commit.clone() }
    };
    let mut source = Announced::default();
    writer.apply(&many(0..300), made.digest, &mut source).unwrap();
    assert_eq!((source.batches, source.read), (vec![128, 128, 44], 300));
    // A base lists them again.
    let base = Commit { run: Version(made.commit.run.0 + 1), base: true, ..many(0..310) };
    let base = Commit { roots: vec![(base.run, base.roots[0].1)], ..base };
    let mut source = Announced::default();
    writer.apply(&base, made.digest, &mut source).unwrap();
    assert_eq!((source.batches, source.read), (vec![10], 10));
}
