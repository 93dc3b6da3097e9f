//! selftest -v2: silent on whatever is whole, and one finding for each thing that is not.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Rng;
use super::lab::{Copy, Files, lab};
use super::layout::Layout;
use super::recoveries::{put, small_source, three_versions};
use super::reserved::maintain;
use crate::backup::Options as BackupOptions;
use crate::catalog::{ArcRole, Record};
use crate::ids::Version;
use crate::monitor::{Event, Monitor, Progress, Silent};
use crate::selftest::{self, Cause, Finding, Level, Options};

pub fn options(level: Level) -> Options {
    Options::of(level)
}

pub fn found(copy: &Copy, options: &Options) -> Vec<Finding> {
    selftest::run(&copy.open(), options, &Silent).unwrap().findings
}

/// For messages.
pub fn shown(findings: &[Finding]) -> Vec<String> {
    findings
        .iter()
        .map(|f| {
            let hit = |h: &selftest::Hit| {
                let (path, (from, to)) = (String::from_utf8_lossy(&h.path), h.versions);
                format!("{path} {from}-{to} {:?}", h.bytes)
            };
            let hits: Vec<String> = f.hits.iter().map(hit).collect();
            format!("{:?} {}: {} {hits:?}", f.cause, f.error.code(), f.error)
        })
        .collect()
}

pub fn v2(copy: &Copy) -> Vec<Finding> {
    found(copy, &options(Level::Structure))
}

pub fn assert_clean(copy: &Copy, what: &str) {
    let findings = v2(copy);
    assert!(findings.is_empty(), "{what}: {:#?}", shown(&findings));
}

/// Exactly one finding, of this cause and with this code.
fn assert_one(copy: &Copy, cause: Cause, code: &str, what: &str) -> Finding {
    let findings = v2(copy);
    assert_eq!(findings.len(), 1, "{what}: {:#?}", shown(&findings));
    let one = findings.into_iter().next().unwrap();
    assert_eq!((one.cause, one.error.code()), (cause, code), "{what}: {}", one.error);
    one
}

fn recovered(copy: &Copy) -> Copy {
    let again = Copy::without_index(&copy.files());
    again.recover();
    again
}

#[test]
fn what_is_whole_has_no_finding() {
    // What a cut run leaves, before and after a recovery that can't tell.
    let (source, copy) = three_versions();
    let behind = copy.files()["index.db"].clone();
    copy.cut_run(&[b"a block that nobody needs".to_vec()]);
    put(&copy, "arc.3.0.tmp", b"");
    assert_clean(&copy, "leftovers");
    let twin = recovered(&copy);
    assert_clean(&twin, "leftovers, recovered");
    twin.backup(&source, &BackupOptions::default());
    assert_clean(&twin, "leftovers, recovered, backed up");
    copy.backup(&source, &BackupOptions::default());
    assert_clean(&copy, "leftovers cleared");

    // A commit that the index does not know yet.
    let mut files = copy.files();
    files.insert("index.db".into(), behind);
    assert_one(&Copy::of(&files), Cause::Index, "INDEX_ROW_DAMAGED", "behind");
    copy.make_a_base_due();
    source.write("d0/more", b"more");
    assert!(copy.backup(&source, &BackupOptions::default()).base);
    assert_clean(&copy, "after a base");
    assert_clean(&recovered(&copy), "after a base, recovered");
}

#[derive(Default)]
struct Watching(Mutex<Vec<Progress>>);

impl Monitor for Watching {
    fn progress(&self, progress: Progress) {
        self.0.lock().unwrap().push(progress);
    }
    fn event(&self, _: Event<'_>) {}
}

#[test]
fn it_says_how_far_it_is() {
    let (copy, watching) = (Copy::of(&lab().files), Watching::default());
    selftest::run(&copy.open(), &options(Level::Structure), &watching).unwrap();
    let told = watching.0.into_inner().unwrap();
    assert!(told.iter().all(|now| now.files <= now.expected_files), "{told:?}");
    assert!(told.windows(2).all(|two| two[0].files <= two[1].files), "{told:?}");
    let last = told.last().unwrap();
    assert!(told.len() > 5 && last.files * 10 > last.expected_files * 8, "{told:?}");
}

#[test]
fn removed_versions_moved_blocks_and_dropped_arcs_are_no_findings() {
    let copy = Copy::of(&lab().files);
    let dir = copy.open();
    maintain(&dir, &[], |_| vec![Record::RemoveVersion(Version(1))]);
    let old = Layout::all(&copy).into_iter().find(|arc| arc.role() == ArcRole::Data).unwrap();
    let blocks: Vec<_> = (0..old.frames.len()).flat_map(|no| old.blocks(no)).collect();
    maintain(&dir, &blocks, |to| {
        blocks.iter().zip(to).map(|(from, to)| Record::Relocate { from: *from, to: *to }).collect()
    });
    assert_clean(&copy, "moved");
    assert_clean(&recovered(&copy), "moved, recovered");
    maintain(&dir, &[], |_| vec![Record::DropArc(old.entry().serial)]);
    assert!(!copy.path(&old.name.to_string()).exists(), "the run that drops it removes it");
    assert_clean(&copy, "dropped");
    assert_clean(&recovered(&copy), "dropped, recovered");
    let v5 = found(&copy, &options(Level::Files));
    assert!(v5.is_empty(), "{:#?}", shown(&v5));
}

#[test]
fn backups_beside_it_give_no_false_alarm() {
    let (source, copy) = three_versions();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let backups = scope.spawn(|| {
            let mut rng = Rng::new(11);
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                source.write("d2/changes", &rng.noise(700));
                source.write(&format!("d{}/new{n}", n % 5), b"new");
                let _ = fs::remove_file(source.join(&format!("d{}/new{}", (n - 1) % 5, n - 1)));
                if n.is_multiple_of(3) {
                    let _ = fs::remove_dir_all(source.join("d4"));
                    source.write("d4/again", &rng.noise(50));
                }
                copy.backup(&source, &BackupOptions::default());
            }
            n
        });
        for _ in 0..25 {
            assert_clean(&copy, "beside backups");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(backups.join().unwrap() > 3);
    });
    assert_clean(&copy, "in the end");
}

#[test]
fn pages_replaced_by_older_images_of_themselves_are_found() {
    const PAGE: usize = 4096;
    let source = small_source();
    let copy = Copy::init();
    let mut images: Vec<Vec<u8>> = Vec::new();
    for n in 0..6u64 {
        for m in 0..30 {
            source.write(&format!("d{}/file-{m}-{n}", m % 5), &Rng::new(n * 100 + m).noise(300));
        }
        source.write(&format!("new{n}/deep/er"), b"new");
        let _ = fs::remove_dir_all(source.join(&format!("new{}", n.wrapping_sub(2))));
        copy.backup(&source, &BackupOptions::default());
        images.push(fs::read(copy.path("index.db")).unwrap());
    }
    let files: Files = copy.files();
    let newest = images.pop().unwrap();
    let clean = copy.rows();
    let (mut replaced, mut told) = (0, 0);
    for old in images.iter().rev() {
        for (at, page) in old.chunks(PAGE).enumerate() {
            let place = at * PAGE..(at + 1) * PAGE;
            if newest[place.clone()] == *page {
                continue;
            }
            replaced += 1;
            let mut mixed = newest.clone();
            mixed[place].copy_from_slice(page);
            let mut files = files.clone();
            files.insert("index.db".into(), mixed);
            let copy = Copy::of(&files);
            match selftest::run(&copy.open(), &options(Level::Structure), &Silent) {
                // It does not even open.
                Err(error) => assert!(error.is_damage(), "{error}"),
                Ok(report) if !report.findings.is_empty() => told += 1,
                Ok(_) => assert_eq!(copy.rows(), clean, "page {at} of another state was not noticed"),
            }
        }
    }
    assert!(replaced > 30 && told * 10 > replaced * 8, "{told} of {replaced}");
}

/// Wants the run to stop after so many questions.
struct Impatient(std::sync::atomic::AtomicI64);

impl Monitor for Impatient {
    fn progress(&self, _: Progress) {}
    fn event(&self, _: Event<'_>) {}
    fn wants_totals(&self) -> bool {
        true
    }
    fn interrupted(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) <= 0
    }
}

#[test]
fn a_selftest_that_is_interrupted_tells_what_it_did_and_what_it_did_not() {
    let copy = Copy::of(&lab().files);
    for level in [Level::Structure, Level::LocalBlocks, Level::Files] {
        let whole = selftest::run(&copy.open(), &options(level), &Silent).unwrap();
        assert_eq!(whole.not_checked, Default::default());
        for patience in [0, 1, 3, 10, 30, 60, 100, 200] {
            let report = selftest::run(&copy.open(), &options(level), &Impatient(patience.into())).unwrap();
            assert!(report.findings.is_empty(), "{level:?} {patience}: {:#?}", shown(&report.findings));
            let (arcs, files) = (report.not_checked.arcs, report.not_checked.files);
            match level {
                // Those of v2 count as its own.
                Level::LocalBlocks if report.arcs > 0 => assert_eq!(report.arcs + arcs, whole.arcs, "{patience}"),
                Level::Files if report.files + files > 0 => assert_eq!(report.files + files, whole.files, "{patience}"),
                _ => {}
            }
            assert!(
                report.interrupted || (report.arcs, report.files) == (whole.arcs, whole.files),
                "{level:?} {patience}"
            );
        }
    }
    let dir = copy.open();
    let tree = crate::tree::Tree::of(&dir, dir.open_index().unwrap(), crate::tree::View::Whole);
    let run = |patience: i64| {
        let (ledger, asked) = (crate::ledger::Ledger::empty(1), crate::coverage::Options::default());
        crate::coverage::run(&tree, &ledger, &asked, &Impatient(patience.into()), 1, &mut |_, _| Ok(())).unwrap()
    };
    let (all, some) = (run(i64::MAX), run(20));
    assert!(!all.interrupted && some.interrupted && some.total.blocks < all.total.blocks);
}
