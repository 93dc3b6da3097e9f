//! Damaged index files: an answer is the right one or an error, whatever byte is wrong.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::model::*;
use super::view::wal_path;
use super::*;
use crate::catalog::*;
use crate::error::Error;
use crate::ids::*;

const PAGE: usize = 4096;

/// A question; a listing gives an answer per child, for a damaged child may be an error of its own.
pub(super) type Question = Box<dyn Fn(&Index) -> Vec<Result<String>> + Send + Sync>;

fn one<T: std::fmt::Debug>(answer: Result<T>) -> Vec<Result<String>> {
    vec![answer.map(|value| format!("{value:?}"))]
}

/// Three commits with files, a 60,000-byte xattr, a 4,095-byte target and a file in chunks.
pub(super) fn history() -> Model {
    let mut model = Model::new(6);
    add_files(&mut model, &[3, 4, 5, 6, 19]);
    model.commit(14, true);
    model.commit(4, false);
    model.commit(4, false);
    model
}

/// One commit of a few files, among them a 60,000-byte xattr, a long target and a file in chunks: all tables, and values
/// that fill more than a page, in few pages.
fn small_history() -> Model {
    let mut model = Model::new(2);
    model.blocks = 130;
    add_files(&mut model, &[0, 3, 4, 5]);
    model.commit(2, true);
    model
}

fn add_files(model: &mut Model, salts: &[u64]) {
    let file = |salt: &u64| (format!("f{salt}").into_bytes(), Item::File(Box::new(node(100_000 + salt, *salt, 0))));
    model.root.children = salts.iter().map(file).collect();
}

pub(super) fn questions(model: &Model) -> Vec<Question> {
    let mut all: Vec<Question> = vec![
        Box::new(|i| one(i.versions())),
        Box::new(|i| one(i.newest())),
        Box::new(|i| one(i.state())),
        Box::new(|i| one(i.arcs())),
    ];
    for serial in 0..4 {
        all.push(Box::new(move |i| one(i.arc(ArcSerial(serial)))));
        for frame in [0, 255] {
            let hash = block_info(serial, frame).blocks[0].hash;
            all.push(Box::new(move |i| one(i.find_block(&hash))));
            all.push(Box::new(move |i| one(i.location(BlockId::first(ArcSerial(serial), FrameNo(frame))))));
        }
    }
    for frame in [0, 128, 299] {
        all.push(Box::new(move |i| one(i.frame_chunk(ArcSerial(0), FrameNo(frame)))));
    }
    let mut logids = BTreeSet::new();
    let (first, last) = (model.versions.first_key_value().unwrap(), model.versions.last_key_value().unwrap());
    for (v, (root, _)) in [first, last] {
        let v = *v;
        all.push(Box::new(move |i| one(i.version(v))));
        root.each(&mut Vec::new(), &mut |_, dir| {
            let dirno = dir.dirno;
            all.push(Box::new(move |i| one(i.dir(v, dirno))));
            all.push(Box::new(move |i| one(i.path_of_dir(v, dirno))));
            all.push(Box::new(move |i| one(i.changed_in(v, dirno))));
            all.push(Box::new(move |i| one(i.children(v, dirno, None, 1000))));
            all.push(Box::new(move |i| match i.children_with_attrs(v, dirno, None, 1000) {
                Err(error) => vec![Err(error)],
                Ok(listed) => {
                    listed.into_iter().map(|l| l.attr.map(|attr| format!("{:?} {attr:?}", l.entry))).collect()
                }
            }));
            all.push(Box::new(move |i| one(i.lookup(v, dirno, b"absent"))));
            for (name, item) in &dir.children {
                let name = name.clone();
                all.push(Box::new(move |i| one(i.lookup(v, dirno, &name))));
                if let Item::File(node) = item {
                    logids.insert((node.logid, matches!(node.content, Content::Chunked(_))));
                }
            }
        });
    }
    for (logid, chunked) in logids {
        all.push(Box::new(move |i| one(i.node(logid))));
        all.push(Box::new(move |i| one(i.attr(logid))));
        all.push(Box::new(move |i| one(i.path_of_node(logid))));
        if chunked {
            all.push(Box::new(move |i| one(i.extents_at(logid, 1500))));
        }
    }
    all
}

/// Whether the question met the damage. A wrong answer fails the test.
fn met(question: &Question, expected: &[Result<String>], index: &Index, place: &str) -> bool {
    let answers = question(index);
    if let [Err(error)] = &answers[..] {
        assert!(matches!(error, Error::IndexDamaged { .. } | Error::IndexRow { .. }), "{place}: {error:?}");
        return true;
    }
    assert_eq!(answers.len(), expected.len(), "{place}");
    let mut met = false;
    for (answer, right) in answers.iter().zip(expected) {
        match answer {
            Ok(text) => assert_eq!(Some(text), right.as_ref().ok(), "{place}"),
            Err(_) => met = true,
        }
    }
    met
}

/// Asks everything while one byte at a time is wrong; `stride` is the distance of the bytes tried in a page.
fn flip(model: &Model, stride: usize) {
    let built = Built::of(model);
    let clean = std::fs::read(built.path()).unwrap();
    let index = built.index();
    let mut questions = questions(model);
    questions.retain(|question| question(&index).iter().all(|answer| answer.is_ok()));
    assert!(questions.len() > 30);
    let expected: Vec<Vec<Result<String>>> = questions.iter().map(|question| question(&index)).collect();
    drop(index);
    let pages = clean.len() / PAGE;
    let next = AtomicUsize::new(0);
    let (pages_met, flips) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.db");
        std::fs::write(&path, &clean).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        loop {
            let page = next.fetch_add(1, Relaxed);
            if page >= pages {
                return;
            }
            // A question that does not read this page can't be answered wrong because of it: all are asked about the
            // first flip, one that met the damage and one more about every other.
            let mut asked: Vec<usize> = (0..questions.len()).collect();
            for (no, at) in (page % stride..PAGE).step_by(stride).enumerate() {
                let place = page * PAGE + at;
                let mask = [0x01, 0x80, 0xff, 0x10][(no + page) % 4];
                file.write_all_at(&[clean[place] ^ mask], place as u64).unwrap();
                let text = format!("page {page} byte {at} mask {mask:#x}");
                let index = Index::open_alone(&path, &KEY);
                let hit: Vec<usize> =
                    asked.iter().copied().filter(|i| met(&questions[*i], &expected[*i], &index, &text)).collect();
                if page == 0 && at < 16 {
                    assert!(hit.is_empty(), "the salt is known from the key");
                } else if asked.len() == questions.len() {
                    pages_met.fetch_add(usize::from(!hit.is_empty()), Relaxed);
                    asked = hit.iter().copied().take(1).chain([page % questions.len()]).collect();
                } else if asked[0] != page % questions.len() {
                    assert_eq!(hit[0], asked[0], "{text}: this byte is as much part of the page as the first");
                }
                file.write_all_at(&[clean[place]], place as u64).unwrap();
                flips.fetch_add(1, Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let workers = [scope.spawn(work), scope.spawn(work)];
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    let (pages_met, flips) = (pages_met.into_inner(), flips.into_inner());
    assert!(flips >= pages * (PAGE / stride) && pages_met > pages / 2, "{flips} flips, {pages_met} of {pages} pages");
}

#[test]
fn a_flip_of_any_byte_gives_right_answers_or_errors() {
    flip(&small_history(), 1);
}

/// The bytes of the same kinds of rows in several versions: with ASSAY_ALL_POINTS=1 each of them.
#[test]
fn flips_in_history_give_right_answers_or_errors() {
    let all = std::env::var_os("ASSAY_ALL_POINTS").is_some_and(|value| value == "1");
    flip(&history(), if all { 1 } else { 509 });
}

#[test]
fn pages_of_an_older_state_crash_nothing() {
    let model = history();
    let questions = questions(&model);
    let built = Built::new();
    let mut writer = built.writer();
    let mut images = Vec::new();
    for made in &model.commits {
        apply(&mut writer, made).unwrap();
        writer.checkpoint().unwrap();
        images.push(std::fs::read(built.path()).unwrap());
    }
    drop(writer);
    let newest = images.pop().unwrap();
    let path = built.dir.path().join("mixed.db");
    let mut replaced = 0;
    for old in images {
        for (at, page) in old.chunks(PAGE).enumerate() {
            let place = at * PAGE..(at + 1) * PAGE;
            if newest[place.clone()] == *page {
                continue;
            }
            let mut mixed = newest.clone();
            mixed[place].copy_from_slice(page);
            std::fs::write(&path, &mixed).unwrap();
            let index = Index::open_alone(&path, &KEY);
            questions.iter().for_each(|question| drop(question(&index)));
            replaced += 1;
        }
    }
    assert!(replaced > 20, "{replaced}");
}

#[test]
fn wrong_keys_and_damaged_first_pages_are_told_apart() {
    let built = Built::of(&small_history());
    let path = built.path();
    let mut other = KEY;
    other.iter_mut().for_each(|byte| *byte ^= 0x5a);
    assert!(matches!(Index::open(&path, &other), Err(Error::KeyWrong { .. })));
    assert!(matches!(IndexWriter::open(&path, &other), Err(Error::KeyWrong { .. })));
    let clean = std::fs::read(&path).unwrap();
    for place in [16, 100, 4000, 4095] {
        let mut bad = clean.clone();
        bad[place] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert!(matches!(Index::open(&path, &KEY), Err(Error::IndexDamaged { .. })), "{place}");
        assert!(matches!(IndexWriter::open(&path, &KEY), Err(Error::IndexDamaged { .. })), "{place}");
    }
    for len in [0, 1, 100, PAGE, PAGE + 1, clean.len() - 1, clean.len() - PAGE] {
        std::fs::write(&path, &clean[..len]).unwrap();
        if let Ok(index) = Index::open(&path, &KEY) {
            let _ = index.versions();
        }
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Index::open(&path, &KEY), Err(Error::IndexDamaged { .. })));
}

#[test]
fn a_damaged_node_page_costs_attributes_not_the_listing() {
    let model = history();
    let built = Built::of(&model);
    let (v, (root, _)) = model.versions.first_key_value().unwrap();
    // The node's page is found by breaking one page after the other.
    let clean = std::fs::read(built.path()).unwrap();
    let mut seen = 0;
    for page in 1..clean.len() / PAGE {
        let mut bad = clean.clone();
        bad[page * PAGE + 7] ^= 1;
        std::fs::write(built.path(), &bad).unwrap();
        let Ok(index) = Index::open(&built.path(), &KEY) else { continue };
        let (Err(_), Ok(listed)) = (index.attr(Logid(100_003)), index.children_with_attrs(*v, Dirno::ROOT, None, 1000))
        else {
            continue;
        };
        assert_eq!(listed.len(), root.children.len());
        assert!(listed.iter().any(|one| one.attr.is_err()));
        seen += 1;
    }
    assert!(seen > 0);
}

#[test]
fn a_connection_that_met_damage_is_not_asked_again() {
    let model = history();
    let built = Built::of(&model);
    let clean = std::fs::read(built.path()).unwrap();
    let questions = questions(&model);
    let index = built.index();
    let expected: Vec<Vec<Result<String>>> = questions.iter().map(|question| question(&index)).collect();
    drop(index);
    // Damage is there for a while, then it is gone (a bad cable): answers after it are right again.
    let index = Index::open_alone(&built.path(), &KEY);
    let mut bad = clean.clone();
    bad.chunks_mut(PAGE).skip(1).for_each(|page| page[99] ^= 4);
    std::fs::write(built.path(), &bad).unwrap();
    assert!(questions.iter().filter(|question| question(&index).iter().any(|a| a.is_err())).count() > 50);
    std::fs::write(built.path(), &clean).unwrap();
    for (question, right) in questions.iter().zip(&expected) {
        assert!(!met(question, right, &index, "after the damage was gone"));
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_read_with_and_without_a_wal() {
    let model = history();
    let built = Built::new();
    let mut writer = built.writer();
    let (last, first) = model.commits.split_last().unwrap();
    first.iter().for_each(|made| drop(apply(&mut writer, made).unwrap()));
    writer.checkpoint().unwrap();
    apply(&mut writer, last).unwrap();
    // As found on a disk that was unplugged: the WAL holds the last commit.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.db");
    std::fs::copy(built.path(), &path).unwrap();
    std::fs::copy(wal_path(&built.path()), wal_path(&path)).unwrap();
    let with_wal = Index::open_read_only(&path, &KEY).unwrap();
    assert_eq!(with_wal.versions().unwrap().len(), 3);
    writer.checkpoint().unwrap();
    drop(writer);
    assert!(!wal_path(&built.path()).exists(), "the last writer leaves no WAL");
    let without = Index::open_read_only(&built.path(), &KEY).unwrap();
    assert_eq!(without.versions().unwrap().len(), 3);
    let names: Vec<_> = std::fs::read_dir(built.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["index.db"], "reading an unwritable directory leaves nothing");
}

#[test]
fn readers_leave_no_files_behind() {
    let built = Built::of(&small_history());
    let index = built.index();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..50).for_each(|_| drop(index.versions().unwrap())));
        }
    });
    drop(index);
    let names: Vec<_> = std::fs::read_dir(built.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["index.db"]);
}
