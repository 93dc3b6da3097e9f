//! Who is asked when, with makers that take their time or fail.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::damage_tests::{history, questions};
use super::model::{Built, KEY, apply};
use super::*;
use crate::error::Error;
use crate::monitor::Monitor;

/// Opens the index at a path after a while, if it has the number of versions.
struct Slow {
    path: PathBuf,
    takes: Duration,
    asked: Arc<AtomicUsize>,
}

impl Maker for Slow {
    fn bring_up(&mut self, _: Lacks, _: &dyn Monitor) -> Result<Arc<Index>> {
        self.asked.fetch_add(1, Relaxed);
        std::thread::sleep(self.takes);
        Index::open(&self.path, &KEY).map(Arc::new)
    }
}

/// Damages all pages but the first.
fn spoil(built: &Built) {
    let mut bytes = std::fs::read(built.path()).unwrap();
    bytes.chunks_mut(4096).skip(1).for_each(|page| page[99] ^= 4);
    std::fs::write(built.path(), bytes).unwrap();
}

fn backed(damaged: &Built, good: PathBuf, takes: Duration) -> (Index, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let maker = Slow { path: good, takes, asked: asked.clone() };
    (Index::open_alone(&damaged.path(), &KEY).backed_by(Box::new(maker)), asked)
}

#[test]
fn it_is_made_once_for_all_who_wait_and_answers_as_the_index_would() {
    let model = history();
    let (damaged, good) = (Built::of(&model), Built::of(&model));
    let all = questions(&model);
    let expected: Vec<String> = all.iter().map(|ask| format!("{:?}", ask(&good.index()))).collect();
    spoil(&damaged);
    let (index, asked) = backed(&damaged, good.path(), Duration::from_millis(300));
    std::thread::scope(|scope| {
        for from in 0..6 {
            let (all, expected, index) = (&all, &expected, &index);
            scope.spawn(move || {
                for n in (0..all.len()).map(|n| (n + from * 7) % all.len()) {
                    assert_eq!(format!("{:?}", all[n](index)), expected[n], "question {n}");
                }
            });
        }
    });
    assert_eq!(asked.load(Relaxed), 1);
    assert!(index.stood_in_for().is_some_and(|met| met.is_of_index()));
}

#[test]
fn nobody_waits_longer_than_patience_and_then_it_takes_over() {
    let model = history();
    let (damaged, good) = (Built::of(&model), Built::of(&model));
    spoil(&damaged);
    let (index, asked) = backed(&damaged, good.path(), Duration::from_millis(1500));
    let index = index.patient(Duration::from_millis(300));
    let begun = Instant::now();
    assert!(index.versions().is_err_and(|error| error.is_of_index()));
    let waited = begun.elapsed();
    assert!((300..1400).contains(&waited.as_millis()), "{waited:?}");
    let again = Instant::now();
    assert!(index.versions().is_err() && index.stood_in_for().is_none());
    assert!(again.elapsed() < Duration::from_millis(250), "nobody waits anew for what is long in the making");
    std::thread::sleep(Duration::from_millis(1600));
    assert_eq!(index.versions().unwrap(), good.index().versions().unwrap());
    assert_eq!(asked.load(Relaxed), 1);
}

#[test]
fn what_lacks_a_commit_that_was_seen_is_not_asked() {
    let model = history();
    let (damaged, behind) = (Built::of(&model), Built::new());
    let mut writer = behind.writer();
    model.commits.iter().take(2).for_each(|made| drop(apply(&mut writer, made).unwrap()));
    writer.checkpoint().unwrap();
    drop(writer);
    let (index, asked) = backed(&damaged, behind.path(), Duration::ZERO);
    let newest = index.newest().unwrap().unwrap();
    assert!(newest.version > behind.index().newest().unwrap().unwrap().version);
    spoil(&damaged);
    // "Not there" would be a lie.
    assert!(matches!(index.version(newest.version), Err(Error::IndexDamaged { .. } | Error::IndexRow { .. })));
    assert!(index.stood_in_for().is_none() && asked.load(Relaxed) > 0);
}

#[test]
fn one_that_can_not_be_made_leaves_all_as_it_was_and_is_not_tried_at_each_question() {
    let model = history();
    let damaged = Built::of(&model);
    spoil(&damaged);
    let (index, asked) = backed(&damaged, damaged.dir.path().join("none"), Duration::ZERO);
    for _ in 0..5 {
        let error = index.versions().unwrap_err();
        assert!(error.is_of_index() && error.to_string().contains("index.db"), "{error}");
    }
    assert_eq!(asked.load(Relaxed), 1);
}

#[test]
fn one_that_is_behind_is_not_asked_beside_what_is_ahead() {
    let model = history();
    let (damaged, ahead) = (Built::new(), Built::of(&model));
    let mut writer = damaged.writer();
    model.commits.iter().take(2).for_each(|made| drop(apply(&mut writer, made).unwrap()));
    writer.checkpoint().unwrap();
    drop(writer);
    let clean = std::fs::read(damaged.path()).unwrap();
    let all = questions(&model);
    let expected: Vec<String> = all.iter().map(|ask| format!("{:?}", ask(&ahead.index()))).collect();
    for page in 1..clean.len() / 4096 {
        let mut bytes = clean.clone();
        bytes[page * 4096 + 5] ^= 1;
        std::fs::write(damaged.path(), bytes).unwrap();
        let (index, _) = backed(&damaged, ahead.path(), Duration::ZERO);
        // Until damage is met it tells what it knows.
        all.iter().for_each(|ask| drop(ask(&index)));
        if index.stood_in_for().is_some() {
            for (ask, right) in all.iter().zip(&expected) {
                assert_eq!(format!("{:?}", ask(&index)), *right, "page {page}");
            }
        }
    }
}
