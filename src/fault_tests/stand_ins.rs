//! A damaged index and whole catalogs: a reader sees all that was backed up, whatever is wrong with the index.

use std::fs;
use std::sync::Arc;

use super::Rng;
use super::lab::{Copy, Files, Source, lab};
use super::layout::Layout;
use super::questions::{Reader, Truth};
use super::recoveries::put;
use crate::backup::Options;
use crate::catalog::ArcRole;
use crate::error::Error;
use crate::index::Index;
use crate::reader::{self, Backup};
use crate::standin;

const PAGE: usize = 4096;

fn reader(copy: &Copy) -> Reader {
    let dir = copy.open();
    let index: Arc<Index> = Arc::new(standin::open(&dir).unwrap());
    let Backup { tree, store } = Backup::of(&dir, index, reader::Options::default());
    Reader { tree, store }
}

/// Of the index as it was met, told in the summary, once.
fn told(reader: &Reader) -> bool {
    let (met, summary) = (reader.tree.index().stood_in_for(), reader.store.summary());
    assert_eq!((summary.catalogs, summary.damage), (u64::from(met.is_some()), summary.healed));
    let again = reader.store.summary();
    assert_eq!((again.damage, again.places.len() as u64), (summary.damage, summary.damage), "it is told once");
    met.is_some()
}

fn index_of(files: &Files) -> &Vec<u8> {
    &files["index.db"]
}

#[test]
fn a_byte_that_is_wrong_anywhere_in_the_index_costs_nothing() {
    let (lab, mut rng) = (lab(), Rng::from_env());
    let copy = Copy::of(&lab.files);
    let good = index_of(&lab.files);
    let (mut met, mut refused) = (0, 0);
    for n in 0..30 {
        // Each of the first pages, then any.
        let page = if n < 6 { n } else { rng.below(good.len() / PAGE) };
        let (at, mask) = (page * PAGE + rng.below(PAGE), rng.mask());
        let what = || format!("seed {}: byte {at} of the index ^ {mask:#x}", rng.seed);
        let mut bytes = good.clone();
        bytes[at] ^= mask;
        put(&copy, "index.db", &bytes);
        refused += usize::from(copy.open().open_index().is_err());
        let reader = reader(&copy);
        lab.truth.assert_whole(&reader, &what);
        let was_met = told(&reader);
        met += usize::from(was_met);
        drop(reader);
        if !was_met {
            // Then nothing of it is needed.
            lab.truth.assert_whole(&copy.reader(), &what);
        }
        assert!(fs::read(copy.path("index.db")).unwrap() == bytes, "{}: it is left as it is", what());
    }
    assert!(met > 15 && refused > 0, "{met} met, {refused} did not open");
}

#[test]
fn an_older_page_in_the_index_costs_nothing() {
    let (lab, mut rng) = (lab(), Rng::from_env());
    let source = Source::new();
    let copy = Copy::init();
    for step in 0..40 {
        source.write(&format!("d{}/f{step}", step % 7), &rng.noise(200));
    }
    copy.backup(&source, &Options::default());
    let old = fs::read(copy.path("index.db")).unwrap();
    for step in 0..7 {
        source.write(&format!("d{step}/later"), b"new");
        fs::remove_file(source.join(&format!("d{step}/f{step}"))).unwrap();
    }
    copy.backup(&source, &Options::default());
    let new = fs::read(copy.path("index.db")).unwrap();
    let truth = Truth::of(&copy.reader());
    let mut mismatches = 0;
    for page in (0..old.len() / PAGE).filter(|page| old[page * PAGE..][..PAGE] != new[page * PAGE..][..PAGE]) {
        let mut bytes = new.clone();
        bytes[page * PAGE..][..PAGE].copy_from_slice(&old[page * PAGE..][..PAGE]);
        put(&copy, "index.db", &bytes);
        let reader = reader(&copy);
        // What is asked of the index without its proofs may be of before, until the tree was read.
        truth.judge_those(&reader, &|| format!("page {page}"), &|ask| matches!(ask, super::questions::Ask::Names(..)));
        if let Some(Error::TreeMismatch { .. } | Error::IndexRow { .. }) = reader.tree.index().stood_in_for() {
            mismatches += 1;
            truth.assert_whole(&reader, &|| format!("page {page}"));
        }
        told(&reader);
    }
    assert!(mismatches > 0 && lab.files.len() > 3, "no older page showed what was not backed up");
}

/// But for what SQLite leaves where it opened what it could not read.
fn files(copy: &Copy) -> Files {
    let mut files = copy.files();
    files.retain(|name, bytes| name != "index.db-wal" || !bytes.is_empty());
    files
}

#[test]
fn an_index_that_is_none_is_made_of_the_catalogs_and_nothing_else_is_changed() {
    let lab = lab();
    let good = index_of(&lab.files);
    let noise = Rng::new(7).noise(good.len());
    let mut no_head = good.clone();
    no_head[..PAGE].fill(0x55);
    for (what, bytes) in [
        ("no head", Some(no_head)),
        ("empty", Some(Vec::new())),
        ("half", Some(good[..good.len() / 2].to_vec())),
        ("noise", Some(noise)),
        ("missing", None),
    ] {
        let copy = Copy::of(&lab.files);
        match &bytes {
            Some(bytes) => put(&copy, "index.db", bytes),
            None => copy.lose_index(),
        }
        let before = files(&copy);
        let reader = reader(&copy);
        lab.truth.assert_whole(&reader, &|| what.into());
        assert!(told(&reader), "{what}");
        drop(reader);
        let after = files(&copy);
        assert!(after == before, "{what}: something was changed");
    }
}

#[test]
fn it_goes_on_with_the_backup_and_ends_with_a_good_index() {
    let lab = lab();
    let (copy, ahead, source) = (Copy::of(&lab.files), Copy::of(&lab.files), Source::new());
    let spoil = |bytes: &[u8]| [&[0x55; PAGE], &bytes[PAGE..]].concat();
    fs::write(copy.path("index.db"), spoil(index_of(&lab.files))).unwrap();
    let reader = reader(&copy);
    lab.truth.assert_whole(&reader, &|| "before".into());
    source.write("one more", b"version");
    ahead.backup(&source, &Options::default());
    let (files, truth) = (ahead.files(), Truth::of(&ahead.reader()));
    for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("arc.")) {
        fs::write(copy.path(name), bytes).unwrap_or_else(|_| assert!(lab.files.contains_key(name), "{name}"));
    }
    fs::write(copy.path("index.db"), spoil(&files["index.db"])).unwrap();
    truth.assert_whole(&reader, &|| "one version more".into());
    // A recovery puts another file in its place.
    fs::write(copy.path("index.db.new"), &files["index.db"]).unwrap();
    fs::rename(copy.path("index.db.new"), copy.path("index.db")).unwrap();
    truth.assert_whole(&reader, &|| "a good index".into());
    assert!(told(&reader), "what was met is not forgotten");
    // It is that one which answers now.
    fs::remove_file(copy.path("arc.0.0")).unwrap();
    reader.tree.index().versions().unwrap();
}

#[test]
fn versions_that_no_commit_tells_any_more_are_not_denied() {
    let lab = lab();
    let good = index_of(&lab.files);
    let commits: Vec<_> =
        Layout::all(&Copy::of(&lab.files)).into_iter().filter(|arc| arc.role() == ArcRole::Commit).collect();
    let last = commits.last().unwrap();
    let mut bytes = lab.files[&last.name.to_string()].clone();
    let from = bytes.len() / 8;
    bytes[from..].fill(0);
    let copy = Copy::of(&lab.files);
    put(&copy, &last.name.to_string(), &bytes);
    let (mut met, mut asked) = (0, 0);
    for page in 1..good.len() / PAGE {
        let mut bytes = good.clone();
        bytes[page * PAGE + 77] ^= 8;
        put(&copy, "index.db", &bytes);
        if copy.open().open_index().is_err() {
            continue;
        }
        asked += 1;
        // One that can't even be opened is refused: it is the index that knows more.
        let Ok(index) = standin::open(&copy.open()) else { continue };
        let Backup { tree, store } = Backup::of(&copy.open(), index, reader::Options::default());
        let reader = Reader { tree, store };
        let failed = lab.truth.judge_those(&reader, &|| format!("page {page}"), &|ask| !ask.is_bytes());
        assert!(failed.iter().all(|(_, error)| error.is_damage()), "page {page}: {failed:?}");
        assert!(reader.tree.index().stood_in_for().is_none(), "page {page}");
        met += usize::from(!failed.is_empty());
    }
    assert!(met > 3 && asked > met, "{met} of {asked} pages met");
    // Where there is nothing else it tells what is left.
    put(&copy, "index.db", b"nothing");
    let index = standin::open(&copy.open()).unwrap();
    assert_eq!(index.versions().unwrap().len() + 1, commits.len());
}

#[test]
fn without_catalogs_or_with_another_key_it_is_refused_as_ever() {
    let lab = lab();
    let copy = Copy::of(&lab.files);
    put(&copy, "index.db", b"nothing");
    for name in copy.arc_names() {
        fs::remove_file(copy.path(&name.to_string())).unwrap();
    }
    assert!(matches!(standin::open(&copy.open()), Err(Error::IndexDamaged { .. })));
    // The key of another backup dir.
    let other = Copy::init();
    for bytes in [&b"nothing"[..], index_of(&lab.files)] {
        let copy = Copy::of(&lab.files);
        put(&copy, "key.conf", &fs::read(other.path("key.conf")).unwrap());
        put(&copy, "index.db", bytes);
        assert!(matches!(standin::open(&copy.open()), Err(Error::KeyWrong { .. })));
    }
}
