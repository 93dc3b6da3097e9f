//! An index that changes, or is replaced, under open readers: answers are those of one state, and the newest is found.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use super::fail::Fail;
use super::model::*;
use super::view::wal_path;
use super::*;

/// Longer than a reader may take to look again.
const A_WHILE: Duration = Duration::from_millis(1_100);

fn history() -> Model {
    let mut model = Model::new(11);
    model.commit(12, true);
    (0..5).for_each(|_| model.commit(6, false));
    model
}

fn commit(built: &Built, made: &Made) {
    let mut writer = built.writer();
    apply(&mut writer, made).unwrap();
    writer.checkpoint().unwrap();
}

/// Proves that the index shows exactly the first `count` versions, whole.
fn assert_shows(index: &Index, model: &Model, count: usize) {
    let found: Vec<Version> = index.versions().unwrap().into_iter().map(|row| row.version).collect();
    let wanted: Vec<Version> = model.versions.keys().copied().take(count).collect();
    assert_eq!(found, wanted);
    assert_eq!(index.newest().unwrap().map(|row| row.version), wanted.last().copied());
    for (v, (root, _)) in model.versions.iter().take(count) {
        root.each(&mut Vec::new(), &mut |_, dir| {
            assert_eq!(index.dir(*v, dir.dirno).unwrap().state, dir.state());
            let names: Vec<_> =
                index.children(*v, dir.dirno, None, 1000).unwrap().into_iter().map(|e| e.name).collect();
            assert_eq!(names, dir.children.keys().cloned().collect::<Vec<_>>(), "{v}");
        });
    }
}

#[test]
fn what_is_committed_elsewhere_appears_where_nothing_can_be_written() {
    let model = history();
    let built = Built::new();
    commit(&built, &model.commits[0]);
    let index = Index::open_read_only(&built.path(), &KEY).unwrap();
    assert_shows(&index, &model, 1);
    // No WAL is left: the file itself has changed.
    commit(&built, &model.commits[1]);
    assert_shows(&index, &model, 2);
    // The WAL has it.
    let mut writer = built.writer();
    apply(&mut writer, &model.commits[2]).unwrap();
    assert!(wal_path(&built.path()).exists());
    assert_shows(&index, &model, 3);
    // Copies are rare.
    apply(&mut writer, &model.commits[3]).unwrap();
    std::thread::sleep(A_WHILE);
    assert_shows(&index, &model, 4);
    // And end when there is no WAL any more.
    apply(&mut writer, &model.commits[4]).unwrap();
    writer.checkpoint().unwrap();
    drop(writer);
    assert_shows(&index, &model, 5);
    drop(index);
    let names: Vec<_> = std::fs::read_dir(built.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["index.db"], "reading an unwritable directory leaves nothing");
}

#[test]
fn questions_open_no_connections_while_nothing_is_written() {
    let model = history();
    let built = Built::new();
    commit(&built, &model.commits[0]);
    let mut writer = built.writer();
    for with_wal in [false, true] {
        if with_wal {
            apply(&mut writer, &model.commits[1]).unwrap();
        }
        let indexes = [Index::open(&built.path(), &KEY).unwrap(), Index::open(&built.path(), &KEY).unwrap()];
        let ask = || indexes.iter().for_each(|index| assert_shows(index, &model, 1 + usize::from(with_wal)));
        (0..2).for_each(|_| ask());
        let before = schema::OPENED.get();
        (0..10).for_each(|_| ask());
        assert_eq!(schema::OPENED.get(), before, "with a WAL: {with_wal}");
    }
}

#[test]
fn a_question_during_which_the_file_changes_is_asked_again() {
    let model = history();
    let built = Built::new();
    commit(&built, &model.commits[0]);
    let index = Index::open_read_only(&built.path(), &KEY).unwrap();
    let count =
        |c: &rusqlite::Connection| Ok::<i64, Fail>(c.query_row("SELECT count(*) FROM versions", [], |r| r.get(0))?);
    let asked = Cell::new(0);
    let (before, after) = index
        .ask(|c| {
            let before = count(c)?;
            if asked.replace(asked.get() + 1) == 0 {
                commit(&built, &model.commits[1]);
            }
            Ok((before, count(c)?))
        })
        .unwrap();
    assert_eq!((before, after, asked.get()), (2, 2, 2));
    // One that never stops changing is asked of a copy.
    asked.set(0);
    let next = Cell::new(2);
    let (before, after) = index
        .ask(|c| {
            let before = count(c)?;
            asked.set(asked.get() + 1);
            if let Some(made) = model.commits.get(next.replace(next.get() + 1)) {
                commit(&built, made);
            }
            Ok((before, count(c)?))
        })
        .unwrap();
    assert_eq!(before, after, "one state");
    assert!((2..=5).contains(&asked.get()), "{}", asked.get());
    assert_shows(&index, &model, 6);
}

#[test]
fn readers_beside_a_writer_never_see_half_a_commit_where_nothing_can_be_written() {
    let mut model = Model::new(12);
    model.commit(12, true);
    (0..40).for_each(|_| model.commit(8, false));
    let built = Built::new();
    commit(&built, &model.commits[0]);
    let index = Index::open_read_only(&built.path(), &KEY).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            model.commits[1..].iter().for_each(|made| commit(&built, made));
            done.store(true, Relaxed);
        });
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    // A question may be given up when the file changes all the time, but never answered wrong.
                    let Ok(versions) = index.versions() else { continue };
                    let newest = versions.last().unwrap().version;
                    let root = &model.versions[&newest].0;
                    match index.children(newest, Dirno::ROOT, None, 1000) {
                        Ok(shown) => assert_eq!(shown.len(), root.children.len()),
                        Err(error) => assert_eq!(error.code(), "INDEX_IO"),
                    }
                }
            });
        }
    });
    std::thread::sleep(A_WHILE);
    assert_shows(&index, &model, model.versions.len());
}

/// Puts the index at `new` in the place of `old`, as a recovery does.
fn replace(old: &Path, new: &Path) {
    std::fs::rename(old, old.with_extension("bad")).unwrap();
    std::fs::rename(new, old).unwrap();
}

#[test]
fn an_index_that_was_replaced_is_followed() {
    let model = history();
    for unwritable in [false, true] {
        let (built, other) = (Built::new(), Built::new());
        model.commits[..2].iter().for_each(|made| commit(&built, made));
        model.commits[..3].iter().for_each(|made| commit(&other, made));
        let open = if unwritable { Index::open_read_only } else { Index::open };
        let index = open(&built.path(), &KEY).unwrap();
        assert_shows(&index, &model, 2);
        let held = Cell::new(false);
        let seen = index.ask(|c| {
            if !held.replace(true) {
                replace(&built.path(), &other.path());
            }
            Ok(c.query_row("SELECT count(*) FROM versions", [], |r| r.get::<_, i64>(0))?)
        });
        assert_eq!(seen.unwrap(), if unwritable { 3 } else { 2 }, "what is asked already ends on the old file");
        assert_shows(&index, &model, 3);
        commit(&built, &model.commits[3]);
        assert_shows(&index, &model, 4);
        // The old file is damaged and gone: nobody needs it.
        std::fs::remove_file(built.path().with_extension("bad")).unwrap();
        assert_shows(&index, &model, 4);
    }
}

#[test]
fn questions_about_one_version_follow_too_if_a_little_later() {
    let model = history();
    let (built, other) = (Built::new(), Built::new());
    commit(&built, &model.commits[0]);
    model.commits[..2].iter().for_each(|made| commit(&other, made));
    let index = built.index();
    let second = *model.versions.keys().nth(1).unwrap();
    assert!(index.dir(second, Dirno::ROOT).is_ok(), "the row of the version before covers it");
    let run = |index: &Index| index.state().unwrap().last_commit.map(|(run, _)| run);
    replace(&built.path(), &other.path());
    std::thread::sleep(A_WHILE);
    assert_eq!(run(&index), Some(second));
}

#[test]
fn a_missing_or_foreign_file_in_its_place_does_not_stop_readers() {
    let model = history();
    let built = Built::of(&model);
    let index = built.index();
    let away = built.path().with_extension("away");
    std::fs::rename(built.path(), &away).unwrap();
    assert_shows(&index, &model, 6);
    std::fs::write(built.path(), vec![7; 8192]).unwrap();
    std::thread::sleep(A_WHILE);
    assert_shows(&index, &model, 6);
    std::fs::rename(&away, built.path()).unwrap();
    assert_shows(&index, &model, 6);
    let other = Built::of(&model);
    let wal = wal_path(&built.path());
    replace(&built.path(), &other.path());
    std::fs::write(&wal, b"").unwrap();
    drop(index);
    assert!(wal.exists(), "closing the old file touches nothing of the new one");
}
