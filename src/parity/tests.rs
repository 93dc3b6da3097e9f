//! Arcs of a real backup, damaged: what comes by parity is compared with the bytes that were written.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use std::sync::Arc;

use super::*;
use crate::arc::parity::SHARD_BYTES;
use crate::backup::Options;
use crate::backupdir::Config;
use crate::depot::faulty::{Fault, Faulty};
use crate::ids::CopyId;
use crate::monitor::Silent;
use crate::prune;
use crate::testing::Rng;
use crate::testing::lab::{Copy, Source};

/// Changes the bytes of an arc.
type Harm<'a> = &'a dyn Fn(&mut Vec<u8>);

/// A backup dir whose arcs have parity; nothing is in it.
fn with_parity(percent: Option<u8>) -> Copy {
    let copy = Copy::init();
    set(&copy, percent);
    copy
}

fn set(copy: &Copy, percent: Option<u8>) {
    let config = Config { block_size: 4 << 10, parity: percent.and_then(Percent::new), ..Config::default() };
    fs::write(copy.path("config.toml"), config.to_text()).unwrap();
}

fn sidecars(copy: &Copy) -> Vec<ArcName> {
    listed(copy.open().own()).unwrap().into_iter().collect()
}

/// A source with a file of so many bytes that nothing shrinks.
fn source(bytes: usize) -> Source {
    let source = Source::new();
    source.write("noise", &Rng::new(5).noise(bytes));
    source
}

fn overwrite(copy: &Copy, name: &str, bytes: &[u8]) {
    fs::remove_file(copy.path(name)).unwrap();
    fs::write(copy.path(name), bytes).unwrap();
}

/// All of an arc, in pieces of random lengths.
fn read_all(depot: &dyn Depot, arc: ArcName, rng: &mut Rng) -> Result<Vec<u8>> {
    let arc = depot.open(arc)?;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < arc.len_bytes() {
        let len = (1 + rng.below(300_000) as u64).min(arc.len_bytes() - bytes.len() as u64);
        bytes.extend(arc.exactly(bytes.len() as u64, len as usize)?);
    }
    Ok(bytes)
}

#[test]
fn each_arc_gets_a_sidecar_also_those_that_were_there_before() {
    let (copy, source) = (with_parity(None), source(300_000));
    let plain = copy.backup(&source, &Options::default());
    assert_eq!((plain.parity.made, sidecars(&copy)), (0, vec![]));
    set(&copy, Some(2));
    source.write("more", b"more");
    fs::write(copy.path("arc.0.1.par.tmp"), "of a run that was cut").unwrap();
    fs::write(copy.path("arc.7.1.par"), "of an arc that went").unwrap();
    let summary = copy.backup(&source, &Options::default());
    assert_eq!((summary.parity.made as usize, sidecars(&copy)), (copy.arc_names().len(), copy.arc_names()));
    let of_parity = |name: &String| name.contains(".par");
    let files: BTreeMap<String, Vec<u8>> = copy.files().into_iter().filter(|(name, _)| of_parity(name)).collect();
    assert_eq!(summary.parity.bytes, files.values().map(|bytes| bytes.len() as u64).sum::<u64>());
    assert!(!files.keys().any(|name| name.ends_with(".tmp")));
    let mode = fs::metadata(copy.path("arc.0.1.par")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o400);
    // What is there is not made again, and one that was deleted is.
    fs::remove_file(copy.path("arc.0.0.par")).unwrap();
    source.write("more", b"and more");
    let new = copy.backup(&source, &Options::default());
    assert_eq!((new.parity.made, sidecars(&copy)), (4, copy.arc_names()));
    assert!(files.iter().all(|(name, bytes)| fs::read(copy.path(name)).unwrap() == *bytes));
    // Whoever wants none keeps what there is.
    set(&copy, None);
    source.write("more", b"and no more");
    assert_eq!(copy.backup(&source, &Options::default()).parity.made, 0);
    assert_eq!(sidecars(&copy).len() + 3, copy.arc_names().len());
}

#[test]
fn lost_sectors_bursts_and_cut_ends_come_back() {
    let (copy, source) = (with_parity(Some(2)), source(3_000_000));
    copy.backup(&source, &Options::default());
    let (dir, mut rng) = (copy.open(), Rng::new(9));
    for arc in copy.arc_names() {
        let name = arc.to_string();
        let intact = fs::read(copy.path(&name)).unwrap();
        let shards = intact.len().div_ceil(SHARD_BYTES);
        let parity = (shards * 2).div_ceil(100).max(shards.min(4));
        let lost = SHARD_BYTES * parity;
        let damages: [Harm<'_>; 5] = [
            // A run of sectors, in the middle and at the start.
            &|bytes| bytes.iter_mut().skip(shards / 2 * SHARD_BYTES).take(lost).for_each(|byte| *byte = 0),
            &|bytes| bytes.iter_mut().take(lost).for_each(|byte| *byte = 0),
            // A burst, wherever it begins.
            &|bytes| bytes.iter_mut().skip(100).take(lost - SHARD_BYTES + 1).for_each(|byte| *byte ^= 0xa5),
            // A byte here and there.
            &|bytes| bytes.iter_mut().skip(9).step_by(SHARD_BYTES).take(parity).for_each(|byte| *byte ^= 1),
            &|bytes| bytes.truncate(bytes.len().next_multiple_of(SHARD_BYTES) - lost),
        ];
        for (number, damage) in damages.iter().enumerate() {
            let mut bytes = intact.clone();
            damage(&mut bytes);
            assert!(bytes != intact, "the fault fired");
            overwrite(&copy, &name, &bytes);
            let depot = Parity::of(&dir);
            assert_eq!(depot.len_bytes(arc), Ok(intact.len() as u64));
            assert!(read_all(&depot, arc, &mut rng) == Ok(intact.clone()), "{name}, damage {number}");
        }
        // One more than there is parity for, and what is right is read all the same.
        if shards > parity {
            let mut bytes = intact.clone();
            bytes.iter_mut().step_by(SHARD_BYTES).take(parity + 1).for_each(|byte| *byte ^= 1);
            overwrite(&copy, &name, &bytes);
            let depot = Parity::of(&dir);
            let error = read_all(&depot, arc, &mut rng).unwrap_err();
            assert!(error.code() == "PARITY_SHORT" && !error.is_damage(), "{error}");
            assert!(error.to_string().contains(&format!("{} sectors", parity + 1)), "{error}");
            let right = SHARD_BYTES * (parity + 1);
            let rest = depot.open(arc).unwrap().exactly(right as u64, intact.len() - right);
            assert!(rest.as_deref() == Ok(&intact[right..]));
        }
        overwrite(&copy, &name, &intact);
    }
}

#[test]
fn sectors_that_cannot_be_read_come_back() {
    let (copy, source) = (with_parity(Some(3)), source(3_000_000));
    copy.backup(&source, &Options::default());
    let dir = copy.open();
    let arc = ArcName { version: Version(0), number: 1 };
    let intact = fs::read(copy.path("arc.0.1")).unwrap();
    static FIRED: AtomicUsize = AtomicUsize::new(0);
    // Two sectors of the medium, and the header.
    let home = Faulty::new(Arc::new(Local::new(dir.own())), |(_, range, _)| {
        let bad = [0, 500_000, 1_000_000].iter().any(|at| range.contains(at));
        bad.then(|| FIRED.fetch_add(1, Ordering::Relaxed)).map(|_| Fault::Errno(libc::EIO))
    });
    let depot = Parity::over(dir.own(), Arc::new(home));
    assert!(read_all(&depot, arc, &mut Rng::new(1)) == Ok(intact.clone()));
    assert!(FIRED.load(Ordering::Relaxed) > 3, "the fault fired");
    let opened = depot.open(arc).unwrap();
    assert_eq!((opened.copy(), opened.read(intact.len() as u64, &mut [0; 9], Via::Medium)), (CopyId::PARITY, Ok(0)));
    assert!(opened.source().ends_with("arc.0.1.par") && opened.is_current());
}

#[test]
fn a_damaged_arc_gets_no_sidecar_and_is_told() {
    let (copy, source) = (with_parity(None), source(300_000));
    copy.backup(&source, &Options::default());
    for (name, at) in [("arc.0.1", 200_000), ("arc.0.0", 150)] {
        let mut bytes = fs::read(copy.path(name)).unwrap();
        bytes[at] ^= 1;
        overwrite(&copy, name, &bytes);
    }
    set(&copy, Some(2));
    source.write("more", b"more");
    let (summary, said) = copy.try_backup(&[source.path()], &Options::default()).unwrap();
    assert_eq!(said.failures.len(), 2, "{said:?}");
    assert!(said.failures[0].contains("another checksum") && said.failures[1].contains("arc.0.0"), "{said:?}");
    assert_eq!((summary.info.errors, summary.parity.failed.len()), (2, 2));
    let bad = |arc: &ArcName| ["arc.0.0", "arc.0.1"].contains(&arc.to_string().as_str());
    let good: Vec<ArcName> = copy.arc_names().into_iter().filter(|arc| !bad(arc)).collect();
    assert_eq!(sidecars(&copy), good);
    assert!(!copy.files().keys().any(|name| name.ends_with(".tmp")));
}

#[test]
fn a_sidecar_that_is_none_says_so_and_is_no_damage_of_the_arc() {
    let (copy, source) = (with_parity(Some(2)), source(300_000));
    copy.backup(&source, &Options::default());
    let depot = Parity::of(&copy.open());
    let open = |name: &str| depot.open(ArcName::parse(name).unwrap()).map(drop).unwrap_err();
    let other = fs::read(copy.path("arc.0.2.par")).unwrap();
    overwrite(&copy, "arc.0.1.par", &other);
    let missing = open("arc.5.1");
    fs::remove_file(copy.path("arc.0.2")).unwrap();
    let errors = [open("arc.0.1"), open("arc.0.2")];
    assert!(errors.iter().all(|error| error.code() == "PARITY_SHORT" && !error.is_damage()), "{errors:?}");
    assert!(missing.code() == "IO" && !missing.is_damage(), "{missing}");
    assert_eq!((depot.list().unwrap().len(), copy.arc_names().len()), (3, 2));
}

#[test]
fn what_is_packed_away_takes_its_sidecar_with_it() {
    let (copy, source) = (with_parity(Some(2)), source(300_000));
    copy.backup(&source, &Options::default());
    source.write("noise", &Rng::new(6).noise(100_000));
    copy.backup(&source, &Options::default());
    let dir = copy.open();
    let going = BTreeSet::from([Version(0)]);
    let request = prune::versions::Request {
        choose: &|versions| Ok(prune::versions::named(versions, &going)),
        protection: prune::Protection::Off,
        on_protected: prune::versions::OnProtected::Refuse,
        mode: prune::Mode::Do,
    };
    prune::versions::remove(&dir, &request, &Silent).unwrap();
    let before = copy.arc_names();
    prune::pack::run(&dir, &prune::pack::Options { threshold: 50, limit_bytes: None, mode: prune::Mode::Do }, &Silent)
        .unwrap();
    let gone: Vec<ArcName> = before.into_iter().filter(|arc| !copy.arc_names().contains(arc)).collect();
    assert!(gone.contains(&ArcName::parse("arc.0.1").unwrap()), "the arc went: {gone:?}");
    assert!(sidecars(&copy).iter().all(|arc| copy.arc_names().contains(arc)), "{:?}", sidecars(&copy));
}

#[test]
fn what_goes_bad_while_it_is_read_is_put_right_too() {
    let (copy, source) = (with_parity(Some(5)), source(1_000_000));
    copy.backup(&source, &Options::default());
    let intact = fs::read(copy.path("arc.0.1")).unwrap();
    let depot = Parity::of(&copy.open());
    let spoil = |sectors: usize| {
        let mut bytes = intact.clone();
        bytes.iter_mut().step_by(SHARD_BYTES).take(sectors).for_each(|byte| *byte ^= 1);
        overwrite(&copy, "arc.0.1", &bytes);
    };
    let read = || read_all(&depot, ArcName::parse("arc.0.1").unwrap(), &mut Rng::new(1));
    for sectors in [1, 4, 9] {
        spoil(sectors);
        assert!(read().as_deref() == Ok(&intact[..]), "{sectors}");
    }
    // Too many, and put back: what is right needs no parity.
    spoil(100);
    assert_eq!(read().unwrap_err().code(), "PARITY_SHORT");
    overwrite(&copy, "arc.0.1", &intact);
    assert!(read().as_deref() == Ok(&intact[..]));
}

struct Stopped(AtomicUsize);

impl Monitor for Stopped {
    fn progress(&self, _: crate::monitor::Progress) {}
    fn event(&self, _: crate::monitor::Event<'_>) {}
    /// After some questions.
    fn interrupted(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) >= 3
    }
}

#[test]
fn whoever_stops_it_finds_whole_sidecars_or_none() {
    let (copy, source) = (with_parity(None), source(300_000));
    copy.backup(&source, &Options::default());
    set(&copy, Some(2));
    let dir = copy.open();
    let (lock, index) = (dir.lock().unwrap(), dir.open_index().unwrap());
    let kept = keep(&dir, &lock, &index, &Stopped(AtomicUsize::new(0))).unwrap();
    assert_eq!((kept.made, kept.left, kept.failed.len()), (1, 2, 0));
    assert!(!copy.files().keys().any(|name| name.ends_with(".tmp")));
    let rest = keep(&dir, &lock, &index, &Silent).unwrap();
    assert_eq!((rest.made, rest.left, sidecars(&copy)), (2, 0, copy.arc_names()));
    // As if nobody had stopped it.
    let other = Copy::of(&copy.files());
    other.arc_names().iter().for_each(|arc| remove(other.open().own(), *arc).unwrap());
    let dir = other.open();
    keep(&dir, &dir.lock().unwrap(), &dir.open_index().unwrap(), &Silent).unwrap();
    let of_parity = |copy: &Copy| {
        let files = copy.files().into_iter().filter(|(name, _)| name.ends_with(SUFFIX));
        files.collect::<BTreeMap<String, Vec<u8>>>()
    };
    assert!(of_parity(&other) == of_parity(&copy) && of_parity(&other).len() == 3);
}
