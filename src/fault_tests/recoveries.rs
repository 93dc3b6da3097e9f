//! The index is lost, and perhaps more: what a recovery brings back, and how things go on from there.

use std::fs;
use std::os::unix::fs::symlink;

use super::Rng;
use super::lab::{Copy, Source, assert_same, lab};
use super::questions::{Ask, Truth};
use crate::backup::Options;
use crate::backupdir::{BackupDir, Config};
use crate::ids::Version;
use crate::index::{Index, State};
use crate::monitor::Silent;
use crate::os::mounts::PRETENDED;
use crate::recover::OnLoss;

pub fn small_source() -> Source {
    let source = Source::new();
    for n in 0..5 {
        source.write(&format!("d{n}/kept"), format!("kept {n}").as_bytes());
    }
    source.write("noise", &Rng::new(7).noise(20_000));
    fs::hard_link(source.join("d0/kept"), source.join("d1/link")).unwrap();
    source
}

/// Three versions of a small source that stays.
pub fn three_versions() -> (Source, Copy) {
    let source = small_source();
    let copy = Copy::init();
    for n in 0..3u64 {
        source.write("d2/changes", &Rng::new(n).noise(500 + n as usize));
        source.write(&format!("new{n}"), format!("new in r{n}").as_bytes());
        copy.backup(&source, &Options::default());
    }
    (source, copy)
}

#[test]
fn a_recovered_index_is_row_for_row_the_lost_one() {
    let lab = lab();
    let before = Copy::of(&lab.files);
    let after = Copy::without_index(&lab.files);
    let got = after.recover();
    assert_eq!(got.versions, (0..4).map(Version).collect::<Vec<_>>());
    assert!(got.lost.is_empty() && got.lost_arcs.is_empty() && got.lost_runs.is_empty() && got.uncommitted_arcs == 0);
    let rows =
        |copy: &Copy| -> Vec<String> { copy.rows().into_iter().filter(|row| !row.starts_with("meta")).collect() };
    let (left, right) = (rows(&before), rows(&after));
    assert!(left.len() > 200);
    let only = |a: &[String], b: &[String]| -> Vec<String> {
        a.iter().filter(|row| !b.contains(row)).take(3).cloned().collect()
    };
    assert!(left == right, "only before: {:?}\nonly after: {:?}", only(&left, &right), only(&right, &left));
    let state = |copy: &Copy| -> State {
        // Only a recovery settles runs by number.
        State { settled_below: Version(0), ..copy.open().open_index().unwrap().state().unwrap() }
    };
    assert_eq!(state(&before), state(&after));
    lab.truth.assert_whole(&after.reader(), &|| "recovered".into());
}

#[test]
fn a_recovered_backup_dir_goes_on_as_the_lost_one_would() {
    let (source, copy) = three_versions();
    let other = Copy::without_index(&copy.files());
    other.recover();
    source.write("d3/more", b"more");
    let (a, b) = (copy.backup(&source, &Options::default()), other.backup(&source, &Options::default()));
    assert_eq!((a.version, a.base), (Some(Version(3)), false));
    let what_it_did = |s: &crate::backup::Summary| (s.version, s.base, s.info.new, s.info.changed, s.info.blocks_new);
    assert_eq!(what_it_did(&a), what_it_did(&b));
    for copy in [copy, other] {
        assert_same(&copy.reader(), Version(3), source.path(), &source.snapshot());
    }
}

/// Replaces a file, whatever its mode.
pub fn put(copy: &Copy, name: &str, bytes: &[u8]) {
    let _ = fs::remove_file(copy.path(name));
    fs::write(copy.path(name), bytes).unwrap();
}

#[test]
fn leftovers_of_a_cut_run_go_and_arcs_below_a_commit_stay() {
    let (source, copy) = three_versions();
    // Blocks that nobody needs, and the end of an arc that was still open.
    copy.cut_run(&[Rng::new(8).noise(3000)]);
    let open = fs::read(copy.path("arc.3.1")).unwrap();
    put(&copy, "arc.3.0.tmp", b"a file of somebody else");
    let run = copy.cut_run(&[Rng::new(9).noise(3000), Rng::new(10).noise(3000)]);
    assert_eq!(run, Version(4));
    let cut = fs::read(copy.path("arc.4.1")).unwrap();
    put(&copy, "arc.4.1", &cut[..cut.len() / 2]);
    put(&copy, "arc.4.0.tmp", b"");
    // A run below a committed one can't have been cut last: whatever it is, it is not ours to remove.
    put(&copy, "arc.1.7", b"not in the commit of r1");
    put(&copy, "arc.9.1", b"garbage");
    put(&copy, "arc.9.2", &open);
    let twin = Copy::without_index(&copy.files());
    source.write("new", b"new");
    let (summary, said) = copy.try_backup(&[source.path()], &Options::default()).unwrap();
    assert_eq!(summary.version, Some(Version(5)), "the numbers of cut runs are burned, that of garbage is not");
    // The catalog arc and the data arc that was cut; of the run before, the catalog arc went when this one began, and the
    // data arc can't be committed.
    assert!(said.warnings.iter().any(|text| text.contains("removed 2 arcs")), "{said:?}");
    let files = copy.files();
    let left: Vec<&String> =
        files.keys().filter(|name| name.starts_with("arc.4") || name.starts_with("arc.3")).collect();
    assert_eq!(left, ["arc.3.0.tmp", "arc.3.1"]);
    assert!(["arc.1.7", "arc.9.1", "arc.9.2"].iter().all(|name| files.contains_key(*name)));
    assert!(["arc.1.7", "arc.9.1", "arc.9.2"].iter().all(|name| said.warnings.iter().any(|text| text.contains(name))));
    assert_same(&copy.reader(), Version(5), source.path(), &source.snapshot());
    assert_eq!(copy.recover().versions.len(), 4);

    // Without the index nobody can tell a cut run from one whose commit record is lost: its arcs stay.
    let got = twin.recover();
    assert_eq!((got.versions.len(), got.uncommitted_arcs, got.strays.len()), (3, 3, 2), "{got:?}");
    assert_eq!(twin.backup(&source, &Options::default()).version, Some(Version(5)));
    assert!(["arc.4.1", "arc.4.2", "arc.3.1", "arc.1.7"].iter().all(|name| twin.files().contains_key(*name)));
    assert_same(&twin.reader(), Version(5), source.path(), &source.snapshot());
}

#[test]
fn a_commit_that_the_index_does_not_know_is_applied() {
    let (source, copy) = three_versions();
    let old_index = copy.files();
    source.write("d0/new", b"committed, but not applied");
    copy.backup(&source, &Options::default());
    let snapshot = source.snapshot();
    let truth = Truth::of(&copy.reader());
    let mut files = copy.files();
    files.insert("index.db".into(), old_index["index.db"].clone());
    files.remove("index.db-wal");
    let behind = Copy::of(&files);
    assert_eq!(behind.reader().tree.versions().unwrap().len(), 3);
    source.write("d0/newer", b"newer");
    assert_eq!(behind.backup(&source, &Options::default()).version, Some(Version(4)));
    let reader = behind.reader();
    let failed =
        truth.judge_those(&reader, &|| "applied late".into(), &|ask| !matches!(ask, Ask::Versions | Ask::Named(_)));
    assert!(failed.is_empty(), "{failed:?}");
    drop(snapshot);
    assert_same(&reader, Version(4), source.path(), &source.snapshot());
}

#[test]
fn a_base_alone_gives_its_version_whole() {
    let source = small_source();
    let long: Vec<u8> = (0..40_000u32).flat_map(|n| format!("{n} ").into_bytes()).collect();
    source.write("long", &long);
    let aside = Source::new();
    aside.write("carried/over", b"a path that the later runs are not asked to save");
    aside.write("carried/long", &long[7..]);
    fs::hard_link(aside.join("carried/over"), aside.join("second")).unwrap();
    let copy = Copy::init();
    let fixed = Options { fixed_block: Some(1024), ..Options::default() };
    copy.try_backup(&[source.path(), aside.path()], &fixed).unwrap();
    for n in 0..2 {
        source.write("d2/changes", &Rng::new(n).noise(800));
        copy.backup(&source, &Options::default());
    }
    copy.make_a_base_due();
    source.write("d2/changes", b"in the base");
    let summary = copy.backup(&source, &Options::default());
    assert_eq!((summary.version, summary.base), (Some(Version(3)), true));
    source.write("d3/after", b"a delta on top of the base");
    assert!(!copy.backup(&source, &Options::default()).base);
    let truth = Truth::of(&copy.reader());
    assert_same(&copy.reader(), Version(4), source.path(), &source.snapshot());
    assert_same(&copy.reader(), Version(4), aside.path(), &aside.snapshot());

    copy.lose_index();
    for run in 0..3 {
        fs::remove_file(copy.path(&format!("arc.{run}.0"))).unwrap();
    }
    let got = copy.recover();
    assert_eq!(got.versions, [Version(3), Version(4)], "{:?}", got.lost_runs);
    assert!(got.lost.is_empty() && got.lost_arcs.is_empty());
    let reader = copy.reader();
    assert_same(&reader, Version(4), source.path(), &source.snapshot());
    assert_same(&reader, Version(4), aside.path(), &aside.snapshot());
    // Inodes, directory numbers and all else too.
    let of_these = |ask: &Ask| {
        let version = ask.version().is_some_and(|v| v >= Version(3));
        version && !matches!(ask, Ask::History(..))
    };
    let failed = truth.judge_those(&reader, &|| "from the base".into(), &of_these);
    assert!(failed.is_empty(), "{failed:?}");
    drop(reader);
    source.write("d4/on", b"on it goes");
    copy.backup(&source, &Options::default());
    assert_same(&copy.reader(), Version(5), source.path(), &source.snapshot());
}

#[test]
fn an_index_lies_where_its_symlink_leads() {
    let (network, local) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (backup, target) = (network.path().join("backup"), local.path().join("elsewhere.db"));
    let (link, pretends) = (backup.join("index.db"), backup.join(PRETENDED));
    let open = || BackupDir::open(&backup, &|_| None).unwrap();
    fs::create_dir(&backup).unwrap();
    fs::write(&pretends, "").unwrap();
    let refused = Index::create(&link, &[1; 48]).unwrap_err();
    assert_eq!(refused.code(), "UNSUPPORTED");
    assert!(refused.to_string().contains("symlink"), "{refused}");
    // To init, which wants the directory empty, it is none: that the link is followed shows below.
    fs::remove_file(&pretends).unwrap();
    symlink(&target, &link).unwrap();
    BackupDir::init(&backup, None, &Config::default()).unwrap();
    fs::write(&pretends, "").unwrap();
    let source = small_source();
    let save = || {
        let options = Options { paths: vec![source.path().into()], ..Options::default() };
        crate::backup::run(&open(), &options, &Silent).unwrap()
    };
    save();
    assert!(target.exists());
    // With the old index, which is kept beside the new one, and with none.
    for kept in [true, false] {
        if !kept {
            fs::remove_file(&target).unwrap();
        }
        let found = crate::recover::run(&open(), OnLoss::Report, &Silent).unwrap();
        assert_eq!(found.versions, [Version(0)]);
        assert_eq!(found.old_index, kept.then(|| local.path().canonicalize().unwrap().join("elsewhere.db.bad")));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(open().open_index().unwrap().versions().unwrap().len(), 1);
    }
    save();
    assert_eq!(open().open_index().unwrap().versions().unwrap().len(), 2);
    let names: Vec<String> =
        fs::read_dir(&backup).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| name == "index.db" || !name.starts_with("index")), "{names:?}");
}
