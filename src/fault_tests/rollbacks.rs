//! An index of which a part is as it was before: pages that the disk lost the last write of, one by one and in pairs, and
//! whole older files. Every question has the right answer or an error, and `selftest -v2` tells it with the remedy.

use std::collections::BTreeSet;
use std::fs;

use super::lab::{Copy, Files, Source};
use super::structures::options;
use crate::backup::Options as BackupOptions;
use crate::catalog::Record;
use crate::error::Error;
use crate::ids::{Dirno, TreeDigest, Version};
use crate::monitor::Silent;
use crate::prune::{self, Mode, Protection};
use crate::run::{Contents, Run, Whole, records::records};
use crate::selftest::{self, Cause, Level};
use crate::testing::Rng;
use crate::testing::questions::{Ask, Reader, Truth};

const PAGE: usize = 4096;

/// The index after each of some backups, and the backup dir after the last.
fn history() -> (Vec<Vec<u8>>, Files) {
    let source = Source::new();
    let copy = Copy::init();
    let mut images = Vec::new();
    let mut note = || images.push(fs::read(copy.path("index.db")).unwrap());
    source.write("kept/same", b"same");
    for n in 0..4u64 {
        for m in 0..12 {
            source.write(&format!("d{}/file-{m}-{}", m % 3, n % 2), &Rng::new(n * 100 + m).noise(300));
        }
        source.write(&format!("new{n}/deep/er"), b"new");
        let _ = fs::remove_dir_all(source.join(&format!("new{}", n.wrapping_sub(2))));
        copy.backup(&source, &BackupOptions::default());
        note();
    }
    // A path goes from all versions, and a version as a whole.
    let path = [source.path().as_os_str().as_encoded_bytes(), b"/d1/file-1-0"].concat();
    let gone = prune::paths::Request { paths: &[path], protection: Protection::Off, mode: Mode::Do };
    prune::paths::remove(&copy.open(), &gone, &Silent).unwrap();
    note();
    // Saved again it would be the same state under another number.
    fs::remove_file(source.join("d1/file-1-0")).unwrap();
    source.write("kept/late", b"late");
    copy.backup(&source, &BackupOptions::default());
    note();
    (images, copy.files())
}

/// What only says since when something is as it is, and rows that are asked for by their number alone, are no part of a
/// version's tree.
fn of_the_tree(ask: &Ask) -> bool {
    !matches!(ask, Ask::History(..) | Ask::PathOf(..))
}

/// Asks everything; whatever has an answer has the right one. True if something had none.
fn judge(files: &Files, index: Vec<u8>, truth: &Truth, what: &str) -> bool {
    let mut files = files.clone();
    files.insert("index.db".into(), index);
    let copy = Copy::of(&files);
    let opened = copy.open().open_index();
    let failed = match opened {
        Ok(index) => {
            // As a whole it is older than its arcs, and that is told: which versions there are nobody asks it then.
            let older =
                crate::backupdir::unknown_commits(&copy.open(), &index).is_ok_and(|unknown| !unknown.is_empty());
            let those = |ask: &Ask| of_the_tree(ask) && !(older && matches!(ask, Ask::Versions | Ask::Named(_)));
            !truth.judge_those(&copy.reader(), &|| what.into(), &those).is_empty() || older
        }
        Err(error) => {
            assert!(is_told(&error), "{what}: {error}");
            true
        }
    };
    if failed {
        match selftest::run(&copy.open(), &options(Level::Structure), &Silent) {
            Err(error) => assert!(is_told(&error), "{what}: {error}"),
            Ok(report) => {
                let told: Vec<_> = report.findings.iter().filter(|found| found.cause == Cause::Index).collect();
                assert!(!told.is_empty(), "{what}: reading fails, and selftest -v2 tells nothing of the index");
            }
        }
    }
    failed
}

/// Damage, or another history than the one that this machine has seen.
fn is_told(error: &Error) -> bool {
    error.is_damage() || error.code() == "HISTORY_CHANGED"
}

fn mixed(newest: &[u8], old: &[u8], pages: &[usize]) -> Vec<u8> {
    let mut index = newest.to_vec();
    for at in pages.iter().map(|page| page * PAGE) {
        index[at..at + PAGE].copy_from_slice(&old[at..at + PAGE]);
    }
    index
}

#[test]
fn no_older_page_of_the_index_is_taken_for_what_a_version_has() {
    let all = std::env::var_os("ASSAY_ALL_POINTS").is_some();
    let mut rng = Rng::from_env();
    let (mut images, files) = history();
    let newest = images.pop().unwrap();
    let truth = Truth::of(&Copy::of(&files).reader());
    let (mut tried, mut failed) = (0, 0);
    for (n, old) in images.iter().enumerate() {
        let differ: Vec<usize> =
            (0..old.len() / PAGE).filter(|page| newest[page * PAGE..][..PAGE] != old[page * PAGE..][..PAGE]).collect();
        assert!(differ.len() > 8, "image {n} differs in {} pages", differ.len());
        for page in &differ {
            if all || rng.below(5) == 0 {
                tried += 1;
                let what = format!("seed {}, page {page} as after commit {n}", rng.seed);
                failed += u32::from(judge(&files, mixed(&newest, old, &[*page]), &truth, &what));
            }
        }
        for _ in 0..if all { differ.len() * 4 } else { 2 } {
            let pair: BTreeSet<usize> = (0..2).map(|_| differ[rng.below(differ.len())]).collect();
            let pair: Vec<usize> = pair.into_iter().collect();
            tried += 1;
            let what = format!("seed {}, pages {pair:?} as after commit {n}", rng.seed);
            failed += u32::from(judge(&files, mixed(&newest, old, &pair), &truth, &what));
        }
    }
    assert!(failed * 3 > tried, "{failed} of {tried} were noticed: the faults did not fire");
}

#[test]
fn an_older_index_as_a_whole_answers_for_no_version_that_it_does_not_know() {
    let (mut images, files) = history();
    images.pop();
    let truth = Truth::of(&Copy::of(&files).reader());
    for (n, old) in images.into_iter().enumerate() {
        let mut files = files.clone();
        files.insert("index.db".into(), old);
        let copy = Copy::of(&files);
        // The last one lacks a version, those before also that a path was removed: what they show is as it was.
        let unknown = crate::backupdir::unknown_commits(&copy.open(), &copy.open().open_index().unwrap()).unwrap();
        assert!(!unknown.is_empty(), "index {n}: nobody tells that it is older than its arcs");
        let reader = copy.reader();
        let known: BTreeSet<_> = reader.tree.versions().unwrap().into_iter().map(|row| row.version).collect();
        for (ask, _) in truth.questions.iter().filter(|(ask, _)| ask.version().is_some_and(|v| !known.contains(&v))) {
            if of_the_tree(ask) {
                assert!(ask.answer(&reader).is_err(), "index {n}: {ask:?}");
            }
        }
        let report = selftest::run(&copy.open(), &options(Level::Structure), &Silent).unwrap();
        assert!(!report.findings.is_empty(), "index {n}");
    }
}

/// What is compared is compared with the arcs: an index that agrees with itself and not with its commit records is told.
#[test]
fn a_root_that_no_commit_record_has_proves_nothing() {
    let (_, files) = history();
    let copy = Copy::of(&files);
    let reader = |copy: &Copy| Reader::new(&copy.open());
    let names = |copy: &Copy| {
        let reader = reader(copy);
        let newest = reader.tree.version("latest").unwrap().version;
        reader.names(newest, Dirno::ROOT).map(|names| names.len())
    };
    assert_eq!(names(&copy), Ok(1));
    // The commit record of the last run as that of another history: the file is authentic, its root another one.
    let other = Copy::of(&files);
    let source = Source::new();
    source.write("other", b"history");
    other.backup(&source, &BackupOptions::default());
    let last = other.arc_names().into_iter().filter(|name| name.number == 0).max().unwrap();
    let fork = Copy::of(&files);
    let more = Source::new();
    more.write("fork", b"history");
    fork.backup(&more, &BackupOptions::default());
    fs::remove_file(fork.path(&last.to_string())).unwrap();
    fs::copy(other.path(&last.to_string()), fork.path(&last.to_string())).unwrap();
    assert_eq!(names(&fork).unwrap_err().code(), "TREE_MISMATCH");
}

/// A recovery does not only believe the catalogs: what a commit record binds is another tree, and each version says so.
#[test]
fn a_recovery_tells_a_root_that_the_catalogs_do_not_have() {
    let (_, files) = history();
    let copy = Copy::of(&files);
    assert!(Copy::without_index(&files).recover().unproven.is_empty());
    {
        let dir = copy.open();
        let lock = dir.lock().unwrap();
        let run = Run::begin(&dir, &lock, &Silent).unwrap().reserve().unwrap();
        let roots = vec![(Version(1), TreeDigest([7; 32]))];
        let written = run.write(Whole::Remove, |out| {
            let catalog = records(out, [Ok(Record::RemoveVersion(Version(0)))])?;
            Ok((Contents { arcs: out.finish()?, catalog, roots, version: None }, ()))
        });
        written.unwrap().0.apply().whole().unwrap();
    }
    let again = Copy::without_index(&copy.files());
    let found = again.recover();
    let told: Vec<_> = found.unproven.iter().map(|(v, error)| (*v, error.code())).collect();
    assert_eq!(told, [(Version(1), "TREE_MISMATCH")]);
    assert!(!crate::selftest::agrees(&again.open()).unwrap());
    let reader = Reader::new(&again.open());
    assert_eq!(reader.names(Version(1), Dirno::ROOT).unwrap_err().code(), "TREE_MISMATCH");
    assert!(reader.names(Version(2), Dirno::ROOT).is_ok());
}
