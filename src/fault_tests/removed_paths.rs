//! Paths that go out of all versions: random histories held against snapshots of the source without them.

use std::collections::{BTreeMap, BTreeSet};

use super::Rng;
use super::lab::{Copy, Snapshot, Source, assert_same};
use super::runs::{assert_totals, change_at_random, naming_seed};
use crate::backup::Options;
use crate::catalog::Kind;
use crate::ids::Version;
use crate::monitor::Silent;
use crate::prune::paths::{self, Outcome, Request};
use crate::prune::{Mode, Protection, pack};

fn rm(copy: &Copy, path: Vec<u8>, protection: Protection, mode: Mode) -> crate::Result<Outcome> {
    paths::remove(&copy.open(), &Request { paths: &[path], protection, mode }, &Silent)
}

fn absolute(source: &Source, below: &[u8]) -> Vec<u8> {
    [source.path().as_os_str().as_encoded_bytes(), b"/", below].concat()
}

/// Takes a path out of a snapshot; true if it was there.
fn take(snapshot: &mut Snapshot, path: &[u8]) -> bool {
    let Some(snap) = snapshot.get(path) else { return false };
    let is_dir = snap.kind == Kind::Dir;
    let below = [path, b"/"].concat();
    snapshot.retain(|name, _| name != path && !name.starts_with(&below));
    let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |at| &path[..at]);
    if let (true, Some(parent)) = (is_dir, snapshot.get_mut(parent)) {
        parent.nlink = if parent.nlink > 1 { parent.nlink - 1 } else { 1 };
    }
    true
}

#[track_caller]
fn assert_history(copy: &Copy, source: &Source, wanted: &BTreeMap<Version, Snapshot>) {
    let reader = copy.reader();
    for (v, tree) in wanted {
        assert_same(&reader, *v, source.path(), tree);
        assert_totals(&reader, *v);
    }
    let wrong = crate::selftest::written_wrong(&copy.open()).unwrap();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn random_histories_lose_the_paths_that_are_removed_and_nothing_else() {
    let mut rng = Rng::from_env();
    let source = Source::new();
    let mut copy = Copy::init();
    let mut wanted: BTreeMap<Version, Snapshot> = BTreeMap::new();
    let seed = rng.seed;
    naming_seed(seed, || {
        for step in 0..40 {
            match if wanted.len() < 2 { 0 } else { rng.below(10) } {
                0..=3 => {
                    change_at_random(&source, &mut rng);
                    if rng.below(4) == 0 {
                        copy.make_a_base_due();
                    }
                    let summary = copy.backup(&source, &Options { full: rng.below(4) == 0, ..Options::default() });
                    wanted.insert(summary.version.unwrap(), source.snapshot());
                }
                4..=7 => {
                    let all: BTreeSet<Vec<u8>> =
                        wanted.values().flat_map(|tree| tree.keys().filter(|path| !path.is_empty()).cloned()).collect();
                    let all: Vec<Vec<u8>> = all.into_iter().collect();
                    let path = all[rng.below(all.len())].clone();
                    let newest = wanted.last_key_value().unwrap().1.contains_key(&path);
                    let refused = rm(&copy, absolute(&source, &path), Protection::On, Mode::Do).unwrap_err();
                    assert_eq!(refused.code(), "PROTECTED");
                    let dry = rm(&copy, absolute(&source, &path), Protection::On, Mode::DryRun).unwrap();
                    let done = rm(&copy, absolute(&source, &path), Protection::Off, Mode::Do).unwrap();
                    assert_eq!(dry, done, "step {step}");
                    let had: Vec<Version> =
                        wanted.iter_mut().filter_map(|(v, tree)| take(tree, &path).then_some(*v)).collect();
                    assert_eq!((done.versions, done.in_newest), (had, newest), "step {step}");
                    let again = rm(&copy, absolute(&source, &path), Protection::Off, Mode::Do).unwrap_err();
                    assert_eq!(again.code(), "NO_PATH", "step {step}");
                    // What could be freed is what pack frees.
                    if rng.below(2) == 0 {
                        let options = pack::Options { threshold: 1, limit_bytes: None, mode: Mode::Do };
                        let packed = pack::run(&copy.open(), &options, &Silent).unwrap();
                        assert_eq!((packed.damaged, packed.left_to_do), (0, None));
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
    });
}

#[test]
fn a_root_that_was_removed_is_no_hindrance() {
    let (mut rng, source) = (Rng::from_env(), Source::new());
    let copy = Copy::init();
    source.write("one/a", &rng.noise(5000));
    source.write("two/b", &rng.noise(5000));
    let backup = |path: &str| copy.try_backup(&[&source.join(path)], &Options::default()).unwrap().0;
    backup("one");
    backup("two");
    rm(&copy, absolute(&source, b"one"), Protection::Off, Mode::Do).unwrap();
    let summary = backup("two");
    let reader = copy.reader();
    let mut tree = source.snapshot();
    take(&mut tree, b"one");
    for v in [Version(1), summary.version.unwrap()] {
        let shown = reader.below(v, source.path().as_os_str().as_encoded_bytes());
        assert_eq!(shown.keys().collect::<Vec<_>>(), tree.keys().collect::<Vec<_>>());
    }
    let wrong = crate::selftest::written_wrong(&copy.open()).unwrap();
    assert!(wrong.is_empty(), "{wrong:?}");
}
