//! selftest -v2: silent on whatever is whole, and one finding for each thing that is not.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Rng;
use super::lab::{Copy, Files, assert_same, lab};
use super::recoveries::{put, small_source, three_versions};
use super::reserved::maintain;
use crate::backup::Options as BackupOptions;
use crate::backupdir::arcs;
use crate::catalog::{ArcRole, Record};
use crate::fetch::ArcFile;
use crate::ids::{ArcName, FrameNo, Version};
use crate::monitor::Silent;
use crate::selftest::{self, Cause, Finding, Fix, Level, Options, Scope};

pub fn options(level: Level) -> Options {
    Options { level, scope: Scope::Everything, rev: None, sample: None, inc: None, fix: Fix::Report }
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

fn fixed(copy: &Copy) -> Vec<Finding> {
    found(copy, &Options { fix: Fix::Correct, ..options(Level::Structure) })
}

#[test]
fn clean_labs_have_no_finding() {
    assert_clean(&Copy::init(), "empty");
    let copy = Copy::of(&lab().files);
    // An empty write-ahead log goes with the last reader.
    let files = |copy: &Copy| copy.files().into_iter().filter(|(name, _)| !name.ends_with("-wal")).collect::<Files>();
    let before = files(&copy);
    assert_clean(&copy, "lab");
    assert!(files(&copy) == before, "a selftest changes nothing");
    assert_clean(&recovered(&copy), "recovered");

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

#[test]
fn removed_versions_moved_blocks_and_dropped_arcs_are_no_findings() {
    let copy = Copy::of(&lab().files);
    let dir = copy.open();
    maintain(&dir, &[], |_| vec![Record::RemoveVersion(Version(1))]);
    let old = dir.open_index().unwrap().arcs().unwrap();
    let old = old.into_iter().map(|row| row.entry).find(|entry| entry.role == ArcRole::Data).unwrap();
    let blocks = super::fixes::blocks_in(&dir.open_index().unwrap(), &old);
    maintain(&dir, &blocks, |to| {
        blocks.iter().zip(to).map(|(from, to)| Record::Relocate { from: *from, to: *to }).collect()
    });
    assert_clean(&copy, "moved");
    assert_clean(&recovered(&copy), "moved, recovered");
    maintain(&dir, &[], |_| vec![Record::DropArc(old.serial)]);
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

/// Each frame of each catalog arc: the arc's name, the frame, and its place in the file.
fn catalog_frames(copy: &Copy) -> Vec<(String, u32, usize)> {
    let dir = copy.open();
    let mut frames = Vec::new();
    for row in dir.open_index().unwrap().arcs().unwrap() {
        if row.entry.role != ArcRole::Catalog {
            continue;
        }
        let arc = ArcFile::open(dir.arcs(), row.entry.name, dir.keys()).unwrap();
        let mut at = 112;
        for (info, no) in arc.frame_table(dir.keys()).unwrap().iter().zip(0..) {
            frames.push((row.entry.name.to_string(), no, at));
            at += info.frame_len() as usize;
        }
    }
    frames
}

fn flip(copy: &Copy, name: &str, places: &[usize]) {
    let mut bytes = fs::read(copy.path(name)).unwrap();
    places.iter().for_each(|at| bytes[*at] ^= 0x11);
    put(copy, name, &bytes);
}

#[test]
fn a_damaged_catalog_frame_is_one_finding_with_any_index() {
    let lab = lab();
    let frames = catalog_frames(&Copy::of(&lab.files));
    assert!(frames.len() > 10, "{}", frames.len());
    for (name, no, at) in frames {
        let what = format!("{name} frame {no}");
        let copy = Copy::of(&lab.files);
        flip(&copy, &name, &[at + 40, at + 50]);
        let one = assert_one(&copy, Cause::Catalog, "ARC_TAG_MISMATCH", &what);
        let place = one.place.unwrap();
        assert_eq!((place.arc.to_string(), place.frame), (name.clone(), Some(FrameNo(no))), "{what}");
        let again = recovered(&copy);
        let told = assert_one(&again, Cause::Catalog, "ARC_TAG_MISMATCH", &format!("{what}, recovered"));
        assert_eq!(told.place.unwrap().frame, Some(FrameNo(no)), "{what}");
        // The good arc comes back: what the recovery gave up is told, and brought back.
        put(&again, &name, &lab.files[&name]);
        let findings = v2(&again);
        assert!(findings.iter().all(|f| f.cause == Cause::Index), "{what}: {:#?}", shown(&findings));
        let acts = fixed(&again);
        assert!(acts.iter().all(|f| f.fixed.is_some()), "{what}: {:#?}", shown(&acts));
        assert_clean(&again, &format!("{what}, put back"));
        lab.truth.assert_whole(&again.reader(), &|| what.clone());
    }
}

#[test]
fn a_backup_over_losses_makes_no_new_findings() {
    let source = small_source();
    for n in 0..40 {
        source.write(&format!("d1/sub{n}/file"), format!("file {n}").as_bytes());
    }
    let copy = Copy::init();
    copy.backup(&source, &BackupOptions::default());
    source.write("d1/sub3/file", b"changed");
    copy.backup(&source, &BackupOptions::default());
    let frames: Vec<_> = catalog_frames(&copy).into_iter().filter(|(name, ..)| name.starts_with("arc.0.")).collect();
    let files = copy.files();
    for (name, no, at) in frames {
        let what = format!("{name} frame {no}");
        let copy = Copy::of(&files);
        flip(&copy, &name, &[at + 40, at + 50]);
        let again = recovered(&copy);
        source.write("d1/sub4/file", format!("changed {no}").as_bytes());
        again.backup(&source, &BackupOptions::default());
        assert_same(&again.reader(), Version(2), source.path(), &source.snapshot());
        assert_one(&again, Cause::Catalog, "ARC_TAG_MISMATCH", &format!("{what}, backed up"));
        // The index that knew all goes on too.
        copy.backup(&source, &BackupOptions::default());
        assert_one(&copy, Cause::Catalog, "ARC_TAG_MISMATCH", &format!("{what}, never recovered"));
        copy.make_a_base_due();
        fs::remove_dir_all(source.join("d1/sub5")).unwrap();
        copy.backup(&source, &BackupOptions::default());
        source.write("d1/sub5/file", b"back");
        copy.backup(&source, &BackupOptions::default());
        assert_one(&copy, Cause::Catalog, "ARC_TAG_MISMATCH", &format!("{what}, and a base"));
    }
}

#[test]
fn a_lost_commit_record_is_one_finding_and_comes_back() {
    let (source, copy) = three_versions();
    let whole = copy.files();
    for name in ["arc.0.0", "arc.1.0", "arc.2.0"] {
        let copy = Copy::of(&whole);
        let len = whole[name].len();
        flip(&copy, name, &[150, len - 96 - 140, len - 200, len - 300]);
        let damaged = arcs::read_commit(copy.open().arcs(), ArcName::parse(name).unwrap().version, copy.open().keys());
        if damaged.is_ok() {
            put(&copy, name, b"");
        }
        assert_one(&copy, Cause::Catalog, "COMMIT_DAMAGED", name);
        fs::remove_file(copy.path(name)).unwrap();
        assert_one(&copy, Cause::Catalog, "COMMIT_DAMAGED", &format!("{name} missing"));
        // A base goes on without it, with the index that knows all.
        copy.make_a_base_due();
        if name != "arc.2.0" {
            source.write("d1/after", name.as_bytes());
            let told = copy.try_backup(&[source.path()], &BackupOptions::default()).unwrap().1;
            assert!(told.failures.iter().all(|text| text.contains(name)), "{told:?}");
            source.write("d1/after", b"once more");
            let told = copy.try_backup(&[source.path()], &BackupOptions::default()).unwrap().1;
            assert!(told.failures.iter().all(|text| text.contains(name)), "{told:?}");
            assert_one(&copy, Cause::Catalog, "COMMIT_DAMAGED", &format!("{name} missing, two backups later"));
        }
    }
    // A recovery gives up r1 and r2; nobody can tell that they were.
    let copy = Copy::of(&whole);
    fs::remove_file(copy.path("arc.1.0")).unwrap();
    let again = recovered(&copy);
    let findings = v2(&again);
    assert!(findings.iter().all(|f| f.cause == Cause::Catalog), "{:#?}", shown(&findings));
    source.write("d1/after", b"after the recovery");
    again.try_backup(&[source.path()], &BackupOptions::default()).unwrap();
    let findings = v2(&again);
    assert!(findings.iter().all(|f| f.cause == Cause::Catalog), "{:#?}", shown(&findings));
    put(&again, "arc.1.0", &whole["arc.1.0"]);
    let one = assert_one(&again, Cause::Index, "INDEX_ROW_DAMAGED", "put back");
    assert!(one.error.to_string().contains("r1, r2"), "{}", one.error);
    let acts = fixed(&again);
    assert!(acts.iter().all(|f| f.fixed.is_some()), "{:#?}", shown(&acts));
    assert_clean(&again, "fixed");
    assert_eq!(again.reader().tree.versions().unwrap().len(), 4);
    assert!(!again.path("index.db.bad").exists());
}

#[test]
fn arcs_that_are_gone_cut_or_without_footer_are_one_finding_each() {
    let lab = lab();
    let dir = Copy::of(&lab.files);
    for row in dir.open().open_index().unwrap().arcs().unwrap() {
        let (name, entry) = (row.entry.name.to_string(), row.entry);
        let catalog = entry.role == ArcRole::Catalog;
        type Act<'a> = (&'a str, &'a str, &'a dyn Fn(&Copy));
        let damage: [Act<'_>; 3] = [
            ("gone", "ARC_MISSING", &|copy| fs::remove_file(copy.path(&name)).unwrap()),
            ("cut", "ARC_FRAME_TRUNCATED", &|copy| put(copy, &name, &lab.files[&name][..entry.footer_offset as usize])),
            ("footer", "ARC_TAG_MISMATCH", &|copy| flip(copy, &name, &[entry.footer_offset as usize + 38])),
        ];
        for (what, code, act) in damage {
            let what = format!("{name} {what}");
            let copy = Copy::of(&lab.files);
            act(&copy);
            let findings = v2(&copy);
            assert_eq!(findings.len(), 1, "{what}: {:#?}", shown(&findings));
            assert_eq!(findings[0].error.code(), code, "{what}");
            assert!(catalog || findings[0].cause != Cause::Index, "{what}");
            let again = recovered(&copy);
            let findings = v2(&again);
            assert_eq!(findings.len(), 1, "{what}, recovered: {:#?}", shown(&findings));
            assert_eq!(findings[0].error.code(), code, "{what}, recovered");
        }
    }
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

impl crate::monitor::Monitor for Impatient {
    fn progress(&self, _: crate::monitor::Progress) {}
    fn event(&self, _: crate::monitor::Event<'_>) {}
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
