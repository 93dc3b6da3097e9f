//! Bytes in the wrong place: arcs that end too early, frames and whole arcs that were exchanged.

use std::collections::BTreeSet;
use std::fs;

use super::Rng;
use super::lab::{Copy, Files, Source, lab};
use super::questions::{Ask, Reader, Truth, fresh_store};
use crate::arc::ARC_HEADER_LEN;
use crate::backup::Options;
use crate::backupdir::BackupDir;
use crate::backupdir::arcs::{ArcSource, COMMIT_NUMBER};
use crate::catalog::{ArcEntry, ArcRole};
use crate::fetch::ArcFile;
use crate::ids::{ArcName, ArcSerial, BlockId, FrameNo, FramePlace, Version};
use crate::index::CatalogSource;
use crate::monitor::Silent;
use crate::recover::OnLoss;
use crate::store::Heal;

fn entries(dir: &BackupDir) -> Vec<ArcEntry> {
    dir.open_index().unwrap().arcs().unwrap().into_iter().map(|row| row.entry).collect()
}

/// Offsets at which the frames of an arc begin, and where the last one ends.
fn edges(dir: &BackupDir, entry: &ArcEntry) -> Vec<u64> {
    let table = ArcSource::new(dir.arcs(), dir.keys()).frame_table(entry).unwrap();
    let mut edges = vec![ARC_HEADER_LEN as u64];
    for info in table {
        edges.push(edges[edges.len() - 1] + info.frame_len());
    }
    assert_eq!(edges.last(), Some(&entry.footer_offset));
    edges
}

fn commit_edges(dir: &BackupDir, name: ArcName) -> Vec<u64> {
    let arc = ArcFile::open(dir.arcs(), name, dir.keys()).unwrap();
    let ends = arc.frame_table(dir.keys()).unwrap().into_iter().scan(ARC_HEADER_LEN as u64, |at, info| {
        *at += info.frame_len();
        Some(*at)
    });
    std::iter::once(ARC_HEADER_LEN as u64).chain(ends).collect()
}

fn around(edges: &[u64], len: u64) -> BTreeSet<u64> {
    let near = |at: u64| [at.saturating_sub(1), at, at + 1];
    edges.iter().chain(&[0, len]).flat_map(|at| near(*at)).filter(|at| *at < len).collect()
}

#[test]
fn with_the_index_a_cut_costs_the_frames_behind_it() {
    let lab = lab();
    let (truth, copy) = (&lab.truth, Copy::of(&lab.files));
    let dir = copy.open();
    let mut reader = copy.reader();
    let index = reader.tree.index().clone();
    let reads = |ask: &Ask, serial: ArcSerial| matches!(ask, Ask::Bytes(.., Some(block)) if block.arc() == serial);
    for entry in entries(&dir) {
        let (path, edges) = (copy.path(&entry.name.to_string()), edges(&dir, &entry));
        let bytes = fs::read(&path).unwrap();
        for cut in around(&edges, bytes.len() as u64) {
            let what = || format!("{} cut at {cut}", entry.name);
            fs::write(&path, &bytes[..cut as usize]).unwrap();
            reader.store = fresh_store(&dir, &index, Heal::On);
            for (n, error) in truth.judge_those(&reader, &what, &|ask| reads(ask, entry.serial)) {
                let Ask::Bytes(.., Some(block)) = truth.questions[n].0 else { unreachable!() };
                assert!(edges[block.frame().0 as usize + 1] > cut, "{}: {block} is all there: {error}", what());
                assert_eq!(error.code(), "ARC_FRAME_TRUNCATED", "{}", what());
            }
            let behind = |ask: &Ask| matches!(ask, Ask::Bytes(.., Some(b)) if edges[b.frame().0 as usize + 1] > cut);
            let lost = |ask: &Ask| reads(ask, entry.serial) && behind(ask);
            let all = truth.questions.iter().filter(|(ask, _)| lost(ask)).count();
            let failed = truth.judge_those(&reader, &what, &lost).len();
            assert_eq!(failed, all, "{}", what());
        }
        fs::write(&path, &bytes).unwrap();
    }
    reader.store = fresh_store(&dir, &index, Heal::Off);
    truth.assert_whole(&reader, &|| "after all arcs were whole again".into());
}

#[test]
fn without_the_index_a_cut_costs_what_is_behind_it_at_most() {
    let (lab, mut rng) = (lab(), Rng::from_env());
    let truth = &lab.truth;
    let whole = Copy::of(&lab.files);
    let known = entries(&whole.open());
    let copy = Copy::without_index(&lab.files);
    for name in copy.arc_names() {
        let path = copy.path(&name.to_string());
        let bytes = fs::read(&path).unwrap();
        let entry = known.iter().find(|entry| entry.name == name);
        let dir = whole.open();
        let edges = entry.map_or_else(|| commit_edges(&dir, name), |entry| edges(&dir, entry));
        let mut cuts: Vec<u64> = match entry.map(|entry| entry.role) {
            Some(ArcRole::Data) => {
                around(&edges, bytes.len() as u64).into_iter().filter(|_| rng.below(12) == 0).collect()
            }
            Some(_) => around(&edges, bytes.len() as u64).into_iter().filter(|_| rng.below(3) == 0).collect(),
            None => around(&edges, bytes.len() as u64).into_iter().collect(),
        };
        cuts.extend([ARC_HEADER_LEN as u64 + 1, bytes.len() as u64 - 1]);
        for cut in cuts {
            let what = || format!("seed {}: {name} cut at {cut}, no index", rng.seed);
            fs::write(&path, &bytes[..cut as usize]).unwrap();
            let got = match crate::recover::run(&copy.open(), OnLoss::Report, &Silent) {
                Ok(got) => got,
                Err(e) => {
                    // Nothing follows from a first run that can't be read.
                    assert!(name.to_string() == "arc.0.0" && cut < edges[1], "{}: {e}", what());
                    assert_eq!(e.code(), "COMMIT_DAMAGED", "{}", what());
                    continue;
                }
            };
            let reader = copy.reader();
            let not_history = |ask: &Ask| !matches!(ask, Ask::History(..) | Ask::Versions | Ask::Named(_));
            let failed = truth.judge_those(&reader, &what, &|ask| {
                not_history(ask) && ask.version().is_none_or(|v| got.versions.contains(&v))
            });
            match entry.map(|entry| entry.role) {
                Some(ArcRole::Data) => {
                    let serial = entry.unwrap().serial;
                    for (n, error) in failed {
                        let behind = |b: &BlockId| b.arc() == serial && edges[b.frame().0 as usize + 1] > cut;
                        let need = match &truth.questions[n].0 {
                            Ask::Bytes(.., Some(block)) => behind(block),
                            Ask::Sha1(_) => true,
                            _ => false,
                        };
                        assert!(need, "{}: also costs {:?}: {error}", what(), truth.questions[n].0);
                    }
                    let frames_gone = edges.last().is_some_and(|end| cut < *end);
                    assert_eq!(got.lost_arcs.len(), usize::from(frames_gone), "{}: {:?}", what(), got.lost_arcs);
                }
                Some(_) => {
                    let gone = edges.iter().skip(1).filter(|end| **end > cut).count();
                    assert_eq!(got.lost.len(), gone, "{}: {:?}", what(), got.lost);
                    assert!(failed.iter().all(|(_, error)| error.is_damage()), "{}", what());
                }
                None => {
                    let is_lost = got.lost_runs.iter().any(|(run, _)| *run == name.version);
                    assert_eq!(is_lost, cut < edges[1], "{}: one copy of the record is whole", what());
                    assert!(is_lost || failed.is_empty(), "{}", what());
                }
            }
            drop(reader);
            copy.lose_index();
            remove_set_aside(&copy);
        }
        fs::write(&path, &bytes).unwrap();
    }
}

fn remove_set_aside(copy: &Copy) {
    for name in copy.files().keys().filter(|name| name.starts_with("index.db.bad")) {
        fs::remove_file(copy.path(name)).unwrap();
    }
}

#[test]
fn frames_of_equal_size_that_changed_places_are_refused() {
    let lab = lab();
    let (truth, copy) = (&lab.truth, Copy::of(&lab.files));
    let dir = copy.open();
    let mut reader = copy.reader();
    let index = reader.tree.index().clone();
    let mut swaps = 0;
    for entry in entries(&dir) {
        let (path, edges) = (copy.path(&entry.name.to_string()), edges(&dir, &entry));
        let bytes = fs::read(&path).unwrap();
        let frame = |n: usize| edges[n] as usize..edges[n + 1] as usize;
        let pairs = (1..edges.len() - 1).filter(|n| frame(*n).len() == frame(n - 1).len());
        for n in pairs.take(8) {
            for head in [0, crate::arc::FRAME_HEADER_LEN] {
                let what = || format!("frames {} and {n} of {} exchanged from their byte {head} on", n - 1, entry.name);
                let mut bad = bytes.clone();
                bad[frame(n - 1)][head..].copy_from_slice(&bytes[frame(n)][head..]);
                bad[frame(n)][head..].copy_from_slice(&bytes[frame(n - 1)][head..]);
                fs::write(&path, &bad).unwrap();
                swaps += 1;
                reader.store = fresh_store(&dir, &index, Heal::On);
                let code = if head == 0 { "ARC_FRAME_WRONG" } else { "ARC_TAG_MISMATCH" };
                let failed = truth.judge_those(&reader, &what, &Ask::is_bytes);
                let block = |n: usize| FramePlace::new(entry.serial, FrameNo(n as u32));
                let wanted: BTreeSet<usize> = truth.need(block(n)).union(&truth.need(block(n - 1))).copied().collect();
                assert!(entry.role == ArcRole::Catalog || failed.iter().all(|(_, e)| e.code() == code), "{}", what());
                match entry.role {
                    ArcRole::Data => assert_eq!(failed.into_iter().map(|f| f.0).collect::<BTreeSet<_>>(), wanted),
                    _ => assert!(failed.is_empty(), "{}", what()),
                }
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(swaps > 8, "{swaps}");
}

/// Two backup dirs with one key and one r0 whose later runs saved different things, and the right answers of both.
fn siblings() -> [(Copy, Truth); 2] {
    let source = Source::new();
    for n in 0..6 {
        source.write(&format!("d{n}/same"), format!("the same in both {n}").as_bytes());
        source.write(&format!("d{n}/differs"), &Rng::new(n).noise(700));
    }
    let first = Copy::init();
    first.backup(&source, &Options::default());
    let second = Copy::of(&first.files());
    for (salt, copy) in [(100, &first), (200, &second)] {
        for n in 0..6 {
            source.write(&format!("d{n}/differs"), &Rng::new(salt + n).noise(700));
        }
        copy.backup(&source, &Options::default());
        source.write("later", &Rng::new(salt + 50).noise(900));
        copy.backup(&source, &Options::default());
    }
    [first, second].map(|copy| {
        let truth = Truth::of(&copy.reader());
        (copy, truth)
    })
}

fn arcs_of(files: &Files, run: u32) -> Vec<String> {
    let of = |name: &&String| ArcName::parse(name).is_some_and(|arc| arc.version == Version(run));
    files.keys().filter(of).cloned().collect()
}

#[test]
fn arcs_of_another_history_with_the_same_key_never_give_wrong_answers() {
    let [(first, truth), (second, other)] = siblings();
    let (files, foreign) = (first.files(), second.files());
    let names = arcs_of(&files, 1);
    assert_eq!(names, arcs_of(&foreign, 1));
    assert!(names.len() >= 3);
    // Every choice of arcs of r1 from the other history.
    for choice in 1..1u32 << names.len() {
        let mut mixed = files.clone();
        for (n, name) in names.iter().enumerate().filter(|(n, _)| choice & 1 << n != 0) {
            assert_ne!(mixed[name], foreign[name], "{n}");
            mixed.insert(name.clone(), foreign[name].clone());
        }
        let what = || format!("arcs of r1 exchanged, choice {choice:b}");
        let copy = Copy::of(&mixed);
        let failed = truth.judge(&copy.reader(), &what);
        let commit_is_foreign = choice & 1 << names.iter().position(|n| n.ends_with(".0")).unwrap() != 0;
        for (n, error) in &failed {
            // The index knows the tree; but one that its commit record does not prove is not shown.
            let ask = &truth.questions[*n].0;
            let unproven = commit_is_foreign && ask.version() == Some(Version(1)) && error.code() == "TREE_MISMATCH";
            assert!(ask.is_bytes() || unproven, "{}: {ask:?}: {error}", what());
        }

        let copy = Copy::without_index(&mixed);
        let got = copy.recover();
        let reader = copy.reader();
        // Which history the commit record is of decides about r1; r2 names its r1 by digest.
        let right = if commit_is_foreign { &other } else { &truth };
        let shown = |ask: &Ask| !matches!(ask, Ask::Versions | Ask::Named(_) | Ask::History(..));
        let told = |ask: &Ask| shown(ask) && ask.version().is_none_or(|v| got.versions.contains(&v));
        let failed = right.judge_those(&reader, &what, &told);
        assert!(failed.iter().all(|(_, e)| e.is_damage()), "{}: {failed:?}", what());
        assert_eq!(got.versions.contains(&Version(2)), !commit_is_foreign, "{}", what());
    }
}

#[test]
fn an_arc_of_another_backup_dir_is_refused() {
    let lab = lab();
    let [(stranger, _), _] = siblings();
    let foreign = stranger.files();
    for name in lab.files.keys().filter(|name| ArcName::parse(name).is_some()) {
        let Some(bytes) = foreign.get(name) else { continue };
        let mut mixed = lab.files.clone();
        mixed.insert(name.clone(), bytes.clone());
        judge_a_lost_arc(&lab.truth, &mixed, name);
    }
}

#[test]
fn an_arc_under_another_arcs_name_is_refused() {
    let lab = lab();
    let names: Vec<&String> = lab.files.keys().filter(|name| ArcName::parse(name).is_some()).collect();
    for (n, name) in names.iter().enumerate() {
        let mut mixed = lab.files.clone();
        mixed.insert(name.to_string(), lab.files[names[(n + 1) % names.len()]].clone());
        judge_a_lost_arc(&lab.truth, &mixed, name);
    }
}

/// The file under this name is not the arc: with the index its blocks are lost, without it what it told.
fn judge_a_lost_arc(truth: &Truth, mixed: &Files, name: &str) {
    let name = ArcName::parse(name).unwrap();
    let what = || format!("{name} is another arc");
    let copy = Copy::of(mixed);
    let entry = entries(&copy.open()).into_iter().find(|entry| entry.name == name);
    let failed: BTreeSet<usize> = truth.judge(&copy.reader(), &what).into_iter().map(|(n, _)| n).collect();
    let mut wanted = BTreeSet::new();
    if let Some(entry) = entry.filter(|entry| entry.role == ArcRole::Data) {
        (0..entry.frames).for_each(|no| wanted.extend(truth.need(FramePlace::new(entry.serial, FrameNo(no)))));
    }
    assert_eq!(failed, wanted, "{}", what());

    let copy = Copy::without_index(mixed);
    if let Err(e) = crate::recover::run(&copy.open(), OnLoss::Report, &Silent) {
        assert_eq!((name.to_string().as_str(), e.code()), ("arc.0.0", "COMMIT_DAMAGED"), "{}", what());
        return;
    }
    let index = copy.open().open_index().unwrap();
    let versions: BTreeSet<Version> = index.versions().unwrap().iter().map(|row| row.version).collect();
    let told = |ask: &Ask| {
        !matches!(ask, Ask::Versions | Ask::Named(_) | Ask::History(..))
            && ask.version().is_none_or(|v| versions.contains(&v))
    };
    let reader: Reader = copy.reader();
    assert!(truth.judge_those(&reader, &what, &told).iter().all(|(_, e)| e.is_damage()), "{}", what());
    assert_eq!(versions.contains(&name.version), name.number != COMMIT_NUMBER, "{}", what());
}
