//! Versions that go, and room that comes back: random histories held against snapshots of the source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::Rng;
use super::lab::{Copy, Source, assert_same};
use super::runs::{change_at_random, naming_seed};
use crate::arc::ARC_HEADER_LEN;
use crate::backup::Options;
use crate::catalog::ArcRole;
use crate::ids::Version;
use crate::monitor::Silent;
use crate::prune::pack::{self, Packed};
use crate::prune::rules::{self, Last, Rules};
use crate::prune::versions::{self, OnProtected, Outcome, Request};
use crate::prune::{Mode, Protection};

type Snapshots = BTreeMap<Version, super::lab::Snapshot>;

fn rm(copy: &Copy, going: &BTreeSet<Version>, protection: Protection) -> crate::Result<Outcome> {
    let choose: &dyn Fn(&[_]) -> _ = &|all| Ok(versions::named(all, going));
    let request = Request { choose, protection, on_protected: OnProtected::Refuse, mode: Mode::Do };
    versions::remove(&copy.open(), &request, &Silent)
}

fn retain(copy: &Copy, count: u32, protection: Protection) -> Outcome {
    let rules = Rules { last: Some(Last::Versions(count)), ..Rules::default() };
    let now = jiff::Zoned::now();
    let choose: &dyn Fn(&[_]) -> _ = &|all| Ok(rules::judge(all, &rules, &now));
    let request = Request { choose, protection, on_protected: OnProtected::Keep, mode: Mode::Do };
    versions::remove(&copy.open(), &request, &Silent).unwrap()
}

fn pack_all(copy: &Copy, threshold: u8, mode: Mode) -> Packed {
    let options = pack::Options { threshold, limit_bytes: None, mode };
    pack::run(&copy.open(), &options, &Silent).unwrap()
}

/// Paths that only versions that go have.
fn only_in(all: &Snapshots, going: &BTreeSet<Version>) -> BTreeSet<Vec<u8>> {
    let of = |goes: bool| -> BTreeSet<Vec<u8>> {
        all.iter().filter(|(v, _)| going.contains(v) == goes).flat_map(|(_, tree)| tree.keys().cloned()).collect()
    };
    of(true).difference(&of(false)).cloned().collect()
}

/// Exactly these versions are there, as they were, and the index obeys its rules.
fn assert_history(copy: &Copy, source: &Source, wanted: &Snapshots) {
    let reader = copy.reader();
    let there: Vec<Version> = reader.tree.versions().unwrap().iter().map(|row| row.version).collect();
    assert_eq!(there, wanted.keys().copied().collect::<Vec<_>>());
    wanted.iter().for_each(|(v, tree)| assert_same(&reader, *v, source.path(), tree));
    assert!(crate::selftest::agrees(&copy.open()).unwrap(), "one scan does not prove it");
    let wrong = crate::selftest::written_wrong(&copy.open()).unwrap();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Bytes of frames in data arcs, and of their files that are there.
fn data_bytes(copy: &Copy) -> (u64, u64) {
    let index = copy.open().open_index().unwrap();
    let arcs = index.arcs().unwrap().into_iter().map(|row| row.entry).filter(|entry| entry.role == ArcRole::Data);
    let frames = arcs.clone().map(|entry| entry.footer_offset - ARC_HEADER_LEN as u64).sum();
    (frames, arcs.map(|entry| fs::metadata(copy.path(&entry.name.to_string())).unwrap().len()).sum())
}

#[test]
fn random_histories_of_backups_removals_packs_and_recoveries() {
    let mut rng = Rng::from_env();
    let source = Source::new();
    let mut copy = Copy::init();
    let mut wanted = Snapshots::new();
    let seed = rng.seed;
    naming_seed(seed, || {
        for step in 0..40 {
            let versions: Vec<Version> = wanted.keys().copied().collect();
            let what = if wanted.len() < 2 { 0 } else { rng.below(10) };
            match what {
                0..=3 => {
                    change_at_random(&source, &mut rng);
                    if rng.below(5) == 0 {
                        copy.make_a_base_due();
                    }
                    let summary = copy.backup(&source, &Options { full: rng.below(4) == 0, ..Options::default() });
                    wanted.insert(summary.version.unwrap(), source.snapshot());
                }
                4 | 5 => {
                    let going: BTreeSet<Version> =
                        (0..1 + rng.below(2)).map(|_| versions[rng.below(versions.len())]).collect();
                    let lost = only_in(&wanted, &going);
                    let newest = going.contains(versions.last().unwrap());
                    let before = copy.files();
                    let refused = rm(&copy, &going, Protection::On);
                    assert_eq!(refused.is_err(), newest || !lost.is_empty(), "step {step}: {refused:?}");
                    if let Err(error) = refused {
                        assert_eq!(error.code(), "PROTECTED");
                        let names = |files: &super::lab::Files| files.keys().cloned().collect::<Vec<_>>();
                        assert_eq!(names(&copy.files()), names(&before), "what is refused writes no arc");
                        let outcome = rm(&copy, &going, Protection::Off).unwrap();
                        // Where nothing stays the directories above the source go too.
                        let above = source.path().components().count() - 2;
                        let above = if going.len() == wanted.len() { above } else { 0 };
                        assert_eq!(outcome.last_copies.count, (lost.len() + above) as u64, "step {step}");
                    }
                    wanted.retain(|v, _| !going.contains(v));
                }
                6 => {
                    let count = 1 + rng.below(4);
                    let protection = if rng.below(2) == 0 { Protection::On } else { Protection::Off };
                    let outcome = retain(&copy, count as u32, protection);
                    let going: BTreeSet<Version> = outcome.going().map(|verdict| verdict.version.version).collect();
                    let by_rule: BTreeSet<Version> = versions.iter().rev().skip(count).copied().collect();
                    if protection == Protection::Off {
                        assert_eq!(going, by_rule, "step {step}");
                    } else {
                        assert!(going.is_subset(&by_rule) && only_in(&wanted, &going).is_empty(), "step {step}");
                        // Each version that stays against the rules has a path that no newer one has.
                        for stays in by_rule.difference(&going) {
                            let older: BTreeSet<Version> = by_rule.range(..=*stays).copied().collect();
                            assert!(!only_in(&wanted, &older).is_empty(), "step {step}: {stays}");
                        }
                    }
                    wanted.retain(|v, _| !going.contains(v));
                }
                7 | 8 => {
                    let threshold = [1, 25, 60][rng.below(3)];
                    let (frames, files) = data_bytes(&copy);
                    let dry = pack_all(&copy, threshold, Mode::DryRun);
                    let done = pack_all(&copy, threshold, Mode::Do);
                    assert_eq!((dry.dropped, dry.rewritten), (done.dropped, done.rewritten), "step {step}");
                    assert_eq!((done.damaged, done.left_to_do), (0, None));
                    let (frames_after, files_after) = data_bytes(&copy);
                    assert!(frames_after <= frames && files_after <= files + 500, "step {step}: {done:?}");
                    let again = pack_all(&copy, threshold, Mode::Do);
                    assert_eq!((again.dropped, again.rewritten), (0, 0), "step {step}: all was done");
                    if threshold == 1 {
                        assert_eq!(done.dead_bytes_left * 100 / frames_after.max(1), 0, "step {step}");
                    }
                }
                _ => {
                    let again = Copy::without_index(&copy.files());
                    let got = again.recover();
                    let lost = (got.lost.len(), got.lost_runs.len(), got.lost_arcs.len(), got.open_losses);
                    assert_eq!(lost, (0, 0, 0, 0), "step {step}: {got:?}");
                    copy = again;
                }
            }
            assert_history(&copy, &source, &wanted);
        }
        let again = Copy::without_index(&copy.files());
        again.recover();
        assert_history(&again, &source, &wanted);
    });
}

#[test]
fn a_base_after_a_pack_stands_alone() {
    let mut rng = Rng::from_env();
    let source = Source::new();
    let copy = Copy::init();
    source.write("stays", &rng.noise(9000));
    source.write("changes", &rng.noise(9000));
    copy.backup(&source, &Options::default());
    source.write("changes", &rng.noise(9000));
    copy.backup(&source, &Options::default());
    rm(&copy, &BTreeSet::from([Version(0)]), Protection::On).unwrap();
    let packed = pack_all(&copy, 1, Mode::Do);
    assert_eq!((packed.dropped, packed.rewritten, packed.damaged), (0, 1, 0), "{packed:?}");
    assert!(!copy.path("arc.0.1").exists());
    copy.make_a_base_due();
    source.write("new", b"in the base");
    let v = copy.backup(&source, &Options::default()).version.unwrap();
    let snapshot = source.snapshot();
    // Everything older is lost: commits, catalogs, and what they alone told.
    let base = copy.open().open_index().unwrap().arcs().unwrap();
    let needed: BTreeSet<String> = base.iter().map(|row| row.entry.name.to_string()).collect();
    let mut files = copy.files();
    files.retain(|name, _| {
        !name.starts_with("arc.")
            || name.starts_with(&format!("arc.{}.", v.0))
            || (needed.contains(name) && !name.ends_with(".2"))
    });
    let alone = Copy::without_index(&files);
    let got = alone.recover();
    assert_eq!(got.versions, [v], "{got:?}");
    assert_same(&alone.reader(), v, source.path(), &snapshot);
    let wrong = crate::selftest::written_wrong(&alone.open()).unwrap();
    assert!(
        wrong.iter().all(|finding| finding.error.code() == "COMMIT_DAMAGED" || finding.error.code() == "ARC_MISSING"),
        "{wrong:?}"
    );
}
