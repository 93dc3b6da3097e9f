//! What is on its way from destinations at a time, counted below the trait, and who waits for whom.

use super::reading::{none, reader};
use super::*;
use crate::depot::Depot;
use crate::ids::ArcName;

const PIECE: u64 = 256 << 10;

/// Requests in flight, and the most that were.
#[derive(Default)]
struct Flight {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Flight {
    /// Each read of an arc takes so long, and is counted.
    fn slow(self: &Arc<Flight>, time: Duration) -> Rule {
        let flight = self.clone();
        Arc::new(move |_, request, object| {
            if request == Request::Read && object.starts_with("arc.") {
                let now = flight.now.fetch_add(1, Ordering::SeqCst) + 1;
                flight.most.fetch_max(now, Ordering::SeqCst);
                std::thread::sleep(time);
                flight.now.fetch_sub(1, Ordering::SeqCst);
            }
            None
        })
    }
}

/// A backup of some data arcs of four pieces, and their names.
fn many(world: &World, runs: usize) -> Vec<ArcName> {
    (0..runs * 4).for_each(|_| world.change());
    world.backup();
    let names = world.arcs("usb").iter().filter_map(|name| ArcName::parse(name)).collect::<Vec<_>>();
    names
        .into_iter()
        .filter(|arc| fs::metadata(world.path("usb").join(arc.to_string())).unwrap().len() > 3 * PIECE)
        .collect()
}

#[test]
fn a_hundred_readers_and_all_that_is_asked_ahead_keep_within_the_gate() {
    let world = World::new(&["usb"]);
    let arcs = many(&world, 2);
    let flight = Arc::new(Flight::default());
    let remote = reader(&world, flight.slow(Duration::from_millis(15)));
    let seed = lock(&world.rng).next();
    let everything: Vec<_> = arcs.iter().map(|arc| (*arc, 0..u64::MAX)).collect();
    std::thread::scope(|scope| {
        for part in everything.chunks(6) {
            let remote = &remote;
            scope.spawn(move || remote.ahead(part));
        }
        for number in 0..100 {
            let (remote, arcs, world) = (&remote, &arcs, &world);
            scope.spawn(move || {
                let mut rng = Rng::new(seed ^ number);
                for _ in 0..4 {
                    let arc = arcs[rng.below(arcs.len())];
                    let bytes = fs::read(world.path("usb").join(arc.to_string())).unwrap();
                    let start = rng.below(bytes.len() - 100);
                    let len = 1 + rng.below(bytes.len() - start);
                    let found = remote.open(arc).unwrap().exactly(start as u64, len).unwrap();
                    assert!(found == bytes[start..start + len], "{arc} at {start}");
                }
            });
        }
    });
    let most = flight.most.load(Ordering::SeqCst);
    assert!((16..=32).contains(&most), "{most} in flight");
    assert_eq!(flight.now.load(Ordering::SeqCst), 0);
}

#[test]
fn who_waits_for_bytes_does_not_wait_for_what_is_asked_ahead() {
    let world = World::new(&["usb"]);
    let arcs = many(&world, 3);
    let flight = Arc::new(Flight::default());
    let request = Duration::from_millis(1000);
    let remote = reader(&world, flight.slow(request));
    // Lengths are known.
    remote.list().unwrap();
    let (alone, soon) = arcs.split_first().unwrap();
    assert!(soon.len() >= 20, "{}", soon.len());
    // Two requests an arc.
    let wanted: Vec<_> = soon.iter().flat_map(|arc| [(*arc, 0..PIECE), (*arc, 2 * PIECE..3 * PIECE)]).collect();
    std::thread::scope(|scope| {
        for part in wanted.chunks(wanted.len() / 3 + 1) {
            let remote = &remote;
            scope.spawn(move || remote.ahead(part));
        }
        let begun = Instant::now();
        while flight.now.load(Ordering::SeqCst) < 24 && begun.elapsed() < Duration::from_millis(800) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(flight.now.load(Ordering::SeqCst), 24, "as much as may be");
        // One that nobody has asked for, and one that waits for its turn.
        let last = &wanted.last().unwrap().0;
        for (arc, offset) in [(*alone, 5), (*last, 2 * PIECE)] {
            let remote = &remote;
            scope.spawn(move || {
                let begun = Instant::now();
                remote.open(arc).unwrap().exactly(offset, 100).unwrap();
                assert!(begun.elapsed() < request * 19 / 10, "{arc}: {:?}", begun.elapsed());
            });
        }
    });
    assert!(flight.most.load(Ordering::SeqCst) <= 32);
    // Nothing was asked for twice.
    let reads = world.count("usb", Request::Read);
    assert!(reads <= wanted.len() + 1, "{reads} requests for {}", wanted.len());
}

#[test]
fn what_fails_ahead_is_asked_for_by_whoever_reads_it() {
    let world = World::new(&["usb"]);
    world.backup();
    let arc = ArcName { version: crate::ids::Version(0), number: 1 };
    let remote = reader(&world, once(Request::Read, "arc.0.1", || Fault::Fail(Trouble::Failed("reset".into()))));
    remote.ahead(&[(arc, 0..PIECE)]);
    assert_eq!((world.fired(), world.count("usb", Request::Read)), (1, 1), "it is asked for once");
    let bytes = fs::read(world.path("usb/arc.0.1")).unwrap();
    assert!(remote.open(arc).unwrap().exactly(0, bytes.len()).unwrap() == bytes);
    let remote = reader(&world, none());
    remote.ahead(&[(arc, 0..u64::MAX)]);
    let before = world.count("usb", Request::Read);
    assert!(remote.open(arc).unwrap().exactly(0, bytes.len()).unwrap() == bytes);
    assert_eq!(world.count("usb", Request::Read), before);
}
