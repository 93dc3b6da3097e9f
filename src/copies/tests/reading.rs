//! Arcs read at a destination: what comes is compared with the files of the backup dir, and requests are counted.

use super::*;
use crate::copies::{Estimate, PartlyHere, Remote, keep_within};
use crate::depot::{Depot, Local, Reach, Via};
use crate::error::Damage;
use crate::fetch::FrameCache;
use crate::ids::{ArcName, Version};
use crate::reader::{self, Backup, wanted};
use crate::store::{StoreOptions, Wanted};
use crate::tree::Found;

const ARC: ArcName = ArcName { version: Version(0), number: 1 };

pub(super) fn none() -> Rule {
    Arc::new(|_, _, _| None)
}

/// A backup with one destination, and a reader of it; what is counted begins here.
pub(super) fn reader(world: &World, rule: Rule) -> Remote {
    let dir = world.dir();
    let remote = Remote::open(&world.around(&dir, rule), &dest::named(&dir, "usb").unwrap()).unwrap();
    lock(&world.requests).clear();
    world.fired.store(0, Ordering::Relaxed);
    remote
}

#[test]
fn ranges_are_the_bytes_of_the_arc_however_they_are_asked_for() {
    let world = World::new(&["usb"]);
    world.backup();
    let remote = reader(&world, none());
    let bytes = fs::read(world.path("b/arc.0.1")).unwrap();
    let mut seeds: Vec<u64> = (0..8).map(|_| lock(&world.rng).next()).collect();
    std::thread::scope(|scope| {
        for seed in seeds.drain(..) {
            let (remote, bytes) = (&remote, &bytes);
            scope.spawn(move || {
                let arc = remote.open(ARC).unwrap();
                let mut rng = Rng::new(seed);
                for _ in 0..200 {
                    let start = rng.below(bytes.len() + 1000);
                    let mut buffer = vec![0; 1 + rng.below(400_000)];
                    let via = if rng.below(20) == 0 { Via::Medium } else { Via::Cache };
                    let count = arc.read(start as u64, &mut buffer, via).unwrap();
                    let rest = bytes.get(start..).unwrap_or_default();
                    assert_eq!(buffer[..count], rest[..buffer.len().min(rest.len())], "at {start}");
                    arc.release(start as u64, count as u64);
                }
            });
        }
    });
}

#[test]
fn each_piece_is_asked_for_once_and_a_reader_that_goes_on_asks_for_more_at_a_time() {
    let world = World::new(&["usb"]);
    world.backup();
    let remote = reader(&world, none());
    let bytes = fs::read(world.path("b/arc.0.1")).unwrap();
    let (arc, before) = (remote.open(ARC).unwrap(), remote.traffic().bytes);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for (number, part) in bytes.chunks(100_000).enumerate() {
                    assert_eq!(arc.exactly(number as u64 * 100_000, part.len()).unwrap(), part);
                }
            });
        }
    });
    let mut estimate = Estimate::default();
    estimate.add(ARC, bytes.len() as u64, 0..bytes.len() as u64);
    // The first piece by itself, then up to four at a time; no more than one over what was planned.
    let asked = world.count("usb", Request::Read) as u64;
    let planned = estimate.traffic().requests - 1;
    assert!(planned <= asked && asked <= planned + 1, "{asked} requests, {planned} were planned");
    assert_eq!(remote.traffic().bytes - before, bytes.len() as u64);
}

#[test]
fn what_goes_wrong_is_tried_again_for_a_while_and_ends_with_its_own_error() {
    let world = World::new(&["usb"]);
    world.backup();
    let bytes = fs::read(world.path("b/arc.0.1")).unwrap();
    let faults: Vec<(&str, Fault)> = vec![
        ("reset", Fault::Fail(Trouble::Failed("reset".into()))),
        ("busy", Fault::Fail(Trouble::Busy { what: "slow down".into(), retry_after_s: Some(1) })),
        ("range", Fault::Fail(Trouble::WrongRange { wanted: "bytes 0 to 9".into(), found: "bytes 1 to 10".into() })),
        ("lost answer", Fault::FailAfter(Trouble::Failed("reset".into()))),
    ];
    for (what, fault) in faults {
        let passing = fault.clone();
        let remote = reader(&world, once(Request::Read, "arc.0.1", move || passing.clone()));
        assert_eq!(remote.open(ARC).unwrap().exactly(5, 70_000).unwrap(), bytes[5..70_005], "{what}");
        assert_eq!(world.fired(), 1, "{what}");
        assert!(!remote.is_down());
        let remote = reader(&world, always("usb", Request::Read, "arc.", move || fault.clone()));
        let begun = Instant::now();
        let failed = remote.open(ARC).unwrap().exactly(5, 70_000).unwrap_err();
        assert!(matches!(failed, Error::Dest { .. }) && !failed.is_damage(), "{what}: {failed}");
        assert!(begun.elapsed() < Duration::from_secs(8), "{what}");
        assert!((2..200).contains(&world.fired()), "{what}: {} times", world.fired());
        assert!(world.fired() < 3 || remote.is_down(), "{what}");
        // Nothing of it is held: the next reader asks anew.
        let before = world.fired();
        assert!(remote.open(ARC).unwrap().exactly(5, 1).is_err() && world.fired() > before, "{what}");
    }
}

#[test]
fn an_arc_is_missing_only_when_it_was_asked_for_by_name() {
    let world = World::new(&["usb"]);
    world.backup();
    let hidden = reader(&world, Arc::new(|_, request, _| (request == Request::List).then_some(Fault::Hide)));
    assert_eq!(hidden.list().unwrap(), Vec::new());
    assert!(hidden.open(ARC).unwrap().exactly(0, 10).is_ok(), "a stale listing hides nothing");
    fs::remove_file(world.path("usb/arc.0.1")).unwrap();
    let gone = |error: Error| matches!(error, Error::Arc { damage: Damage::Missing, .. });
    assert!(reader(&world, none()).open(ARC).err().is_some_and(gone));
    assert!(hidden.open(ARC).unwrap().exactly(600_000, 10).err().is_some_and(gone));
}

#[test]
fn a_copy_that_is_cut_while_it_is_read_gives_what_it_has_and_all_of_it_once_it_is_whole_again() {
    let world = World::new(&["usb"]);
    world.backup();
    let (path, bytes) = (world.path("usb/arc.0.1"), fs::read(world.path("b/arc.0.1")).unwrap());
    let remote = reader(&world, none());
    let arc = remote.open(ARC).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1000]).unwrap();
    let (at, begun) = (bytes.len() - 3000, Instant::now());
    let mut buffer = vec![0; 3000];
    assert_eq!(arc.read(at as u64, &mut buffer, Via::Cache).unwrap(), 2000);
    assert_eq!(buffer[..2000], bytes[at..at + 2000]);
    assert!(begun.elapsed() < Duration::from_millis(900) && !remote.is_down(), "it is not tried again and again");
    fs::write(&path, &bytes).unwrap();
    let again = remote.open(ARC).unwrap();
    assert_eq!(again.read(at as u64, &mut buffer, Via::Medium).unwrap(), 3000);
    assert_eq!(buffer[..], bytes[at..]);
}

/// What is kept elsewhere is read from the destination that answers, and nothing goes that not all have.
#[test]
fn arcs_go_only_when_every_destination_says_that_it_has_them() {
    let world = World::new(&["usb", "nas"]);
    world.backup();
    let data = ["arc.0.1", "arc.0.2", "arc.0.3"];
    let (dir, local) = (world.dir(), Local::new(world.dir().own()));
    let keep = |rule: Rule, limit| keep_within(&world.around(&dir, rule), &dir.lock().unwrap(), limit).unwrap();
    let here = || world.arcs("b").iter().filter(|name| data.contains(&name.as_str())).count();
    // Told by one of them, or by a note alone.
    let kept = keep(always("nas", Request::Stat, "arc.0.2", || Fault::Fail(Trouble::Denied("no".into()))), u64::MAX);
    assert_eq!((kept.arcs, kept.away, here()), (3, 0, 3));
    fs::rename(world.path("nas/arc.0.2"), world.path("aside")).unwrap();
    let kept = keep(none(), 0);
    assert_eq!((kept.arcs, kept.away, kept.gone, here()), (1, 2, 2, 1), "one has no copy at nas");
    fs::rename(world.path("aside"), world.path("nas/arc.0.2")).unwrap();
    let absent = keep(always("nas", Request::Read, "DESTID", || Fault::Fail(Trouble::Absent("unplugged".into()))), 0);
    assert_eq!((absent.gone, here()), (0, 1));
    fs::write(world.path("nas/arc.0.2.more"), b"").unwrap();
    assert_eq!((keep(none(), 0).away, here()), (3, 0));

    let around =
        world.around(&dir, always("usb", Request::Read, "arc.", || Fault::Fail(Trouble::Failed("dead".into()))));
    let depot = PartlyHere::of(&around, Arc::new(local));
    let commit = ArcName { version: Version(0), number: 0 };
    assert_eq!((depot.reach_of(ARC), depot.reach_of(commit)), (Reach::Far, Reach::Near));
    let original = fs::read(world.path("usb/arc.0.1")).unwrap();
    assert_eq!(depot.len_bytes(ARC).unwrap(), original.len() as u64);
    let first = depot.open(ARC).unwrap();
    let usb = first.copy();
    assert_eq!(first.exactly(0, 10).unwrap(), original[..10], "usb fails, and nas does not");
    assert_ne!(first.copy(), usb);
    // It is down now, and asked last.
    std::thread::sleep(Duration::from_millis(500));
    let (second, before) = (depot.open(ARC).unwrap(), world.fired());
    assert_ne!(second.copy(), usb);
    assert_eq!(second.exactly(0, original.len()).unwrap(), original);
    assert_eq!((second.copy(), world.fired()), (first.copy(), before));
    let listed: Vec<String> = depot.list().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(listed, world.arcs("b"), "what is listed is what is here");
}

/// The notes of what is away are not there before they are whole, and nothing goes before they are.
#[test]
fn a_note_that_is_damaged_makes_an_arc_missing_and_nothing_else() {
    let world = World::new(&["usb"]);
    world.backup();
    let dir = world.dir();
    keep_within(&world.around(&dir, none()), &dir.lock().unwrap(), 0).unwrap();
    let path = world.path("b/copies/away");
    let text = fs::read_to_string(&path).unwrap();
    let lines = text.lines().count();
    assert!(lines > 1);
    for (at, _) in text.char_indices().filter(|(_, c)| *c != '\n') {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 4;
        fs::write(&path, &bytes).unwrap();
        let found = crate::copies::away(&dir).unwrap();
        assert!(
            found.len() == lines - 1 && found.iter().all(|(name, len)| text.contains(&format!("{name} {len} "))),
            "{at}"
        );
    }
    fs::write(&path, &text).unwrap();
    let depot = PartlyHere::of(&world.around(&dir, none()), dir.home());
    let unknown = ArcName { version: Version(9), number: 9 };
    let missing = |error: Error| matches!(error, Error::Arc { damage: Damage::Missing, .. });
    assert!(depot.open(unknown).err().is_some_and(missing) && depot.len_bytes(unknown).err().is_some_and(missing));
}

/// Frames that were kept are asked for by nobody, not even ahead of who reads them in order.
#[test]
fn what_was_kept_of_a_destination_is_read_without_a_request() {
    let world = World::new(&["usb"]);
    world.backup();
    let file = fs::read_dir(world.source.path()).unwrap().next().unwrap().unwrap().path();
    let original = fs::read(&file).unwrap();
    let open = || {
        let dir = world.dir();
        let frames = Arc::new(FrameCache::open(dir.own(), 1 << 30).unwrap());
        let store = StoreOptions { frames: Some(frames), threads: 2, ..StoreOptions::default() };
        let remote: Arc<dyn Depot> = Arc::new(reader(&world, none()));
        let dir = dir.seen_through(|_| remote);
        let backup = Backup::of(&dir, dir.open_index().unwrap(), reader::Options { store, ..Default::default() });
        let path = std::os::unix::ffi::OsStrExt::as_bytes(file.as_os_str());
        let Found::Node(logid, _) = backup.tree.find(Version(0), path).unwrap() else { panic!("a file") };
        let node = backup.tree.node(logid).unwrap();
        let wanted: Vec<Wanted> = wanted(&backup.tree.segments(&node, 0, node.attr.size).unwrap()).collect();
        (backup, wanted)
    };
    let read = |backup: &Backup, all: &[Wanted]| -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, some) in all.chunks(4).enumerate() {
            backup.store.prefetch(all.iter().skip(4 * number).take(32).copied(), None);
            backup.store.blocks(some, None).unwrap().iter().for_each(|block| bytes.extend_from_slice(block));
        }
        bytes
    };
    let (first, all) = open();
    assert!(read(&first, &all) == original);
    assert!(world.count("usb", Request::Read) > 5);
    let begun = Instant::now();
    while all.iter().any(|want| first.store.far_range(want.block).unwrap().is_some()) {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(first);
    let (second, all) = open();
    assert!(read(&second, &all) == original);
    // The version is proven by its commit, which is no file data.
    let asked = lock(&world.requests).clone();
    assert!(asked.iter().all(|(.., object)| object == "arc.0.0"), "{asked:?}");
}
