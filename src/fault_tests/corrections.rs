//! `selftest --fix`, `--inc` and `--drill` on damaged copies: what can be corrected is, nothing else changes, and
//! nothing that was readable is lost.

use std::collections::BTreeSet;
use std::fs;

use super::Rng;
use super::lab::{Copy, Source, assert_same, lab};
use super::layout::{Layout, entries};
use super::questions::Ask;
use super::recoveries::put;
use super::structures::options;
use crate::backup::Options as BackupOptions;
use crate::catalog::{ArcEntry, ArcRole};
use crate::ids::Version;
use crate::ledger::Extent;
use crate::monitor::Silent;
use crate::selftest::{self, Fix, Level, Options, Report};

fn test(copy: &Copy, level: Level, fix: Fix) -> Report {
    selftest::run(&copy.open(), &Options { fix, ..options(level) }, &Silent).unwrap()
}

fn entry(copy: &Copy, role: ArcRole) -> ArcEntry {
    entries(&copy.open()).into_iter().find(|entry| entry.role == role).unwrap()
}

fn told(report: &Report) -> Vec<String> {
    report.findings.iter().map(|f| format!("{}: {}: {:?}", f.error.code(), f.error, f.fixed)).collect()
}

#[test]
fn a_lost_block_comes_back_from_the_live_file_and_only_from_the_same_bytes() {
    for original in ["there", "changed", "gone"] {
        let source = Source::new();
        let mut rng = Rng::new(5);
        source.write("wanted", &rng.noise(3000));
        source.write("other", &rng.noise(3000));
        let copy = Copy::init();
        copy.backup(&source, &BackupOptions::default());
        let snapshot = source.snapshot();
        let arc = entry(&copy, ArcRole::Data);
        // Names are in byte order: the first frame is that of `other`, the second of `wanted`.
        let offset = Layout::of(&copy.open(), arc.name).frames[1].start;
        let mut bytes = fs::read(copy.path(&arc.name.to_string())).unwrap();
        [100, 900].iter().for_each(|at| bytes[offset + at] ^= 0xff);
        put(&copy, &arc.name.to_string(), &bytes);
        match original {
            "changed" => source.write("wanted", &rng.noise(3000)),
            "gone" => fs::remove_file(source.join("wanted")).unwrap(),
            _ => {}
        }
        let fixed = test(&copy, Level::LocalBlocks, Fix::Correct);
        assert_eq!(fixed.findings.len(), 1, "{original}: {:?}", told(&fixed));
        assert_eq!(fixed.findings[0].is_fixed(), original == "there", "{original}: {:?}", told(&fixed));
        let after = test(&copy, Level::LocalBlocks, Fix::Report);
        let whole = test(&copy, Level::Files, Fix::Report);
        if original == "there" {
            assert_eq!((told(&after), told(&whole)), (vec![], vec![]));
            assert_same(&copy.reader(), Version(0), source.path(), &snapshot);
            copy.lose_index();
            copy.recover();
            assert_same(&copy.reader(), Version(0), source.path(), &snapshot);
            source.write("later", b"a backup after it");
            copy.backup(&source, &BackupOptions::default());
            assert_same(&copy.reader(), Version(0), source.path(), &snapshot);
        } else {
            assert_eq!((after.findings.len(), whole.findings.len()), (1, 1), "{original}: {:?}", told(&after));
            assert_eq!(whole.findings[0].hits.len(), 1, "the other file is whole");
        }
    }
}

#[test]
fn a_missing_arc_comes_back_as_far_as_the_live_files_go() {
    let source = Source::new();
    let mut rng = Rng::new(7);
    for n in 0..6 {
        source.write(&format!("f{n}"), &rng.noise(2000));
    }
    let copy = Copy::init();
    copy.backup(&source, &BackupOptions::default());
    let snapshot = source.snapshot();
    let arc = entry(&copy, ArcRole::Data);
    fs::remove_file(copy.path(&arc.name.to_string())).unwrap();
    let fixed = test(&copy, Level::LocalBlocks, Fix::Correct);
    assert!(fixed.findings.iter().any(|f| f.is_fixed()), "{:?}", told(&fixed));
    assert_same(&copy.reader(), Version(0), source.path(), &snapshot);
    assert_eq!(told(&test(&copy, Level::Files, Fix::Report)).len(), 1, "v2 still misses the file of the arc");
}

#[test]
fn incremental_runs_prove_everything_once_and_then_only_what_is_due() {
    let lab = lab();
    for level in [Level::LocalBlocks, Level::Files] {
        let copy = Copy::of(&lab.files);
        let inc = |spec: &str| {
            let options = Options { inc: Some(spec.parse().unwrap()), ..options(level) };
            let report = selftest::run(&copy.open(), &options, &Silent).unwrap();
            assert_eq!(told(&report), Vec::<String>::new());
            report
        };
        let first = inc("1d/30d");
        assert!(first.blocks > 0 && first.notes.iter().any(|note| note.contains("was due")), "{:?}", first.notes);
        let ledger = copy.ledger();
        let run = ledger.runs().last().unwrap();
        assert_eq!((run.level, run.inc.as_deref()), (level as u8, Some("1d/30d")));
        let limited = inc("1d/30d,1");
        assert_eq!((limited.files, limited.bytes < first.bytes), (0, true), "the limit holds");
        assert!(limited.notes.iter().any(|note| note.contains("with this limit")), "{:?}", limited.notes);
        // Each run goes on with what the ones before have left, until all is proven.
        if level == Level::Files {
            (0..60).for_each(|_| drop(inc("1d/30d")));
            let ledger = copy.ledger();
            let files = lab.truth.questions.iter().filter_map(|(ask, _)| match ask {
                Ask::Sha1(logid) => Some(*logid),
                _ => None,
            });
            let hashed = |logid| ledger.file(logid).is_some_and(|files| files.extent == Extent::Hashed);
            let (done, left): (Vec<_>, Vec<_>) = files.partition(|logid| hashed(*logid));
            assert!(done.len() > 20 && left.is_empty(), "{} done, left {left:?}", done.len());
        }
    }
}

#[test]
fn a_drill_finds_all_of_its_own_damage_and_leaves_the_backup_as_it_is() {
    let lab = lab();
    let copy = Copy::of(&lab.files);
    let before = copy.files();
    let done = selftest::drill::run(&copy.open(), 48, 42, &Silent).unwrap();
    assert!(done.passed(), "{done:#?}");
    let kinds: BTreeSet<bool> = done.drilled.iter().filter_map(|one| one.healed).collect();
    assert_eq!(kinds, BTreeSet::from([true]), "single bits of blocks are repaired");
    assert_eq!(selftest::drill::run(&copy.open(), 48, 42, &Silent).unwrap(), done, "a seed repeats a drill");
    let files = |files: super::lab::Files| -> super::lab::Files {
        // What readers of the index leave while it is open.
        files.into_iter().filter(|(name, _)| !name.starts_with("index.db-")).collect()
    };
    assert!(files(copy.files()) == files(before), "nothing was written");
}
