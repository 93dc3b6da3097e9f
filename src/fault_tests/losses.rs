//! Arcs and commit records that disappear between runs: the next run says so, builds nothing on them, and what it saves
//! is whole.

use std::fs;
use std::path::Path;

use super::Rng;
use super::lab::{Copy, Said, Source, assert_same};
use super::runs::{let_it_age, logid};
use crate::backup::{Options, Summary};
use crate::ids::Version;

/// Backs up; damage may be told.
fn backup(copy: &Copy, source: &Source) -> (Summary, Said) {
    copy.try_backup(&[source.path()], &Options::default()).unwrap()
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

/// Leaves little more than the header.
fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::remove_file(path).unwrap();
    fs::write(path, &bytes[..150]).unwrap();
}

/// Two versions of files that are one block, several, and too many for a node; the second version adds `later`.
fn two_versions() -> (Source, Copy) {
    let source = Source::new();
    let mut rng = Rng::new(31);
    source.write("one", &rng.noise(3000));
    source.write("several", &rng.noise(60_000));
    source.write("many", &rng.noise(1_500_000));
    fs::hard_link(source.join("one"), source.join("linked")).unwrap();
    let_it_age();
    let copy = Copy::init();
    copy.backup(&source, &Options::default());
    source.write("later", &rng.noise(5000));
    copy.backup(&source, &Options::default());
    (source, copy)
}

#[test]
fn nothing_is_built_on_a_data_arc_that_is_lost() {
    for (damage, code) in [(remove as fn(&Path), "missing"), (cut, "cut short")] {
        let (source, copy) = two_versions();
        damage(&copy.path("arc.0.1"));
        for name in ["one", "several", "many", "later"] {
            fs::copy(source.join(name), source.join(&format!("copy-of-{name}"))).unwrap();
        }
        let_it_age();
        let (summary, said) = backup(&copy, &source);
        assert_eq!((said.failures.len(), summary.info.errors), (1, 1), "{said:?}");
        assert!(said.failures[0].contains("arc.0.1") && said.failures[0].contains(code), "{said:?}");
        assert!(!summary.base, "the catalogs are all there");
        assert_eq!((summary.info.new, summary.info.changed), (4, 4), "what was in the arc is read again");
        assert_same(&copy.reader(), Version(2), source.path(), &source.snapshot());
        let reader = copy.reader();
        let lost = logid(&reader, 0, &source.join("several"));
        assert!(reader.bytes(lost, 0, 60_000).is_err(), "the fault was there");
        drop(reader);
        // It stays lost, and is told, but nothing is read or stored again for it.
        let (summary, said) = backup(&copy, &source);
        assert_eq!((summary.info.changed, summary.info.blocks_new, said.failures.len()), (0, 0, 1), "{said:?}");
        copy.lose_index();
        copy.recover();
        for v in [2, 3] {
            assert_same(&copy.reader(), Version(v), source.path(), &source.snapshot());
        }
    }
}

#[test]
fn a_base_follows_a_commit_record_or_a_catalog_that_is_lost() {
    for name in ["arc.1.0", "arc.0.0", "arc.1.2"] {
        for damage in [remove as fn(&Path), cut] {
            let (source, copy) = two_versions();
            assert!(copy.path(name).exists(), "{name}");
            damage(&copy.path(name));
            source.write("after", b"saved after the loss");
            let (summary, said) = backup(&copy, &source);
            let told = if name == "arc.1.2" { "arc.1.2" } else { "commit record" };
            assert!(said.failures.len() == 1 && said.failures[0].contains(told), "{name}: {said:?}");
            assert!(summary.base && summary.info.errors == 1, "{name}: {summary:?}");
            let snapshot = source.snapshot();
            assert_same(&copy.reader(), Version(2), source.path(), &snapshot);
            // A recovery gets past the loss.
            let recovered = Copy::without_index(&copy.files());
            recovered.recover();
            assert_same(&recovered.reader(), Version(2), source.path(), &snapshot);
            // Once the base is there a lost commit record is no more in the way; a lost catalog arc stays one.
            let (summary, said) = backup(&copy, &source);
            assert!(!summary.base && said.failures.len() == usize::from(name == "arc.1.2"), "{name}: {said:?}");
            assert_same(&copy.reader(), Version(3), source.path(), &snapshot);
        }
    }
}

#[test]
fn a_commit_arc_with_a_damaged_end_is_no_loss() {
    let (source, copy) = two_versions();
    let mut bytes = fs::read(copy.path("arc.1.0")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::remove_file(copy.path("arc.1.0")).unwrap();
    fs::write(copy.path("arc.1.0"), &bytes).unwrap();
    let (summary, said) = backup(&copy, &source);
    assert!(said.failures.is_empty() && !summary.base, "its record can be read: {said:?}");
}
