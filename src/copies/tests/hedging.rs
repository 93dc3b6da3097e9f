//! Two destinations have an arc, and one of them takes its time.

use std::sync::atomic::AtomicBool;

use super::reading::none;
use super::*;
use crate::copies::{PartlyHere, keep_within};
use crate::depot::{Depot, Via};
use crate::dest::Known;
use crate::ids::{ArcName, CopyId, Version};

const ARC: ArcName = ArcName { version: Version(0), number: 1 };
const PIECE: u64 = 256 << 10;

/// No file data is here any more.
fn far(world: &World, rule: Rule, limit_bytes: Option<u64>) -> PartlyHere {
    world.backup();
    let dir = world.dir();
    let around = world.around(&dir, none());
    let places = dest::all(&dir).unwrap().len();
    assert_eq!(keep_within(&around, &dir.lock().unwrap(), 0).unwrap().away, 3, "{places} places");
    let depot = PartlyHere::of(&world.around(&dir, rule).within(limit_bytes), dir.home());
    lock(&world.requests).clear();
    world.fired.store(0, Ordering::Relaxed);
    depot
}

/// Reads of arcs at a destination take so long while the switch is on.
fn stalls(name: &'static str, time: Duration) -> (Rule, Arc<AtomicBool>) {
    let on = Arc::new(AtomicBool::new(false));
    let switch = on.clone();
    let rule: Rule = Arc::new(move |dest, request, object| {
        let hits = dest == name && request == Request::Read && object.starts_with("arc.");
        (hits && switch.load(Ordering::SeqCst)).then_some(Fault::Wait(time))
    });
    (rule, on)
}

fn reads(world: &World, name: &str) -> usize {
    let asked = lock(&world.requests);
    asked.iter().filter(|(of, asked, object)| of == name && *asked == Request::Read && object != "DESTID").count()
}

fn copy_of(world: &World, name: &str) -> CopyId {
    let known = Known::read(&world.dir()).unwrap();
    (1..9).map(CopyId).find(|copy| known.name_of(*copy) == Some(name)).unwrap()
}

#[test]
fn where_one_takes_too_long_the_next_one_answers_and_is_asked_first_until_the_first_is_back() {
    let world = World::new(&["usb", "nas"]);
    let stall = Duration::from_secs(6);
    let (rule, on) = stalls("usb", stall);
    let depot = far(&world, rule, None);
    let bytes = fs::read(world.path("usb/arc.0.1")).unwrap();
    let arc = depot.open(ARC).unwrap();
    let read = |offset: u64| {
        let begun = Instant::now();
        assert!(arc.exactly(offset, 1000).unwrap() == bytes[offset as usize..][..1000]);
        (begun.elapsed(), arc.copy())
    };
    let (usb, nas) = (copy_of(&world, "usb"), copy_of(&world, "nas"));
    assert_eq!((read(10).1, reads(&world, "nas")), (usb, 0));
    on.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    let (took, copy) = read(2 * PIECE);
    assert!(took < stall / 2 && took >= Duration::from_millis(100), "{took:?}");
    assert_eq!((copy, world.fired()), (nas, 1));
    // What this thread has read is what it is told of, and nobody else.
    let other = std::thread::scope(|scope| scope.spawn(|| arc.copy()).join().unwrap());
    assert_eq!(other, usb);
    assert!(arc.source().ends_with("at nas"), "{}", arc.source());
    // No second read waits for it.
    let before = reads(&world, "usb");
    let (took, copy) = read(3 * PIECE + 5);
    assert!(took < stall / 3, "{took:?}");
    assert_eq!((copy, reads(&world, "usb")), (nas, before));
    // It answers at last: nothing of that is lost, and it is first again.
    on.store(false, Ordering::SeqCst);
    while begun.elapsed() < stall * 2 && read(10).1 != usb {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() >= stall - Duration::from_millis(500) && begun.elapsed() < stall * 2);
    let before = reads(&world, "usb");
    assert_eq!((read(2 * PIECE).1, reads(&world, "usb")), (usb, before), "its late answer is there");
}

#[test]
fn what_another_gave_and_is_wrong_is_looked_for_at_the_first() {
    let world = World::new(&["usb", "nas"]);
    let (slow, on) = stalls("usb", Duration::from_secs(2));
    let wrong = always("nas", Request::Read, "arc.", || Fault::Flip);
    let rule: Rule =
        Arc::new(move |dest, request, object| slow(dest, request, object).or_else(|| wrong(dest, request, object)));
    let depot = far(&world, rule, None);
    let bytes = fs::read(world.path("usb/arc.0.1")).unwrap();
    let arc = depot.open(ARC).unwrap();
    arc.exactly(10, 1000).unwrap();
    on.store(true, Ordering::SeqCst);
    let at = 2 * PIECE;
    let mut found = vec![0; 1000];
    assert_eq!(arc.read(at, &mut found, Via::Cache), Ok(1000));
    assert!(found != bytes[at as usize..][..1000] && arc.copy() == copy_of(&world, "nas"));
    // Also where it is opened anew by whoever found it wrong, while the first one is still late.
    let anew = depot.open(ARC).unwrap();
    assert_eq!(anew.copy(), copy_of(&world, "nas"));
    assert_eq!(anew.read(at, &mut found, Via::Medium), Ok(1000));
    assert!(found == bytes[at as usize..][..1000] && anew.copy() == copy_of(&world, "usb"));
    assert_eq!(arc.read(at, &mut found, Via::Medium), Ok(1000));
    assert!(found == bytes[at as usize..][..1000] && arc.copy() == copy_of(&world, "usb"));
}

#[test]
fn one_that_fails_is_not_waited_for() {
    let world = World::new(&["usb", "nas"]);
    let rule = always("usb", Request::Read, "arc.", || Fault::Fail(Trouble::Denied("403".into())));
    let depot = far(&world, rule, None);
    let arc = depot.open(ARC).unwrap();
    let bytes = fs::read(world.path("nas/arc.0.1")).unwrap();
    assert!(arc.exactly(0, bytes.len()).unwrap() == bytes && arc.copy() == copy_of(&world, "nas"));
    assert!(world.fired() > 0);
    // Where none can say it the first error is told.
    let rule: Rule = Arc::new(|_, request, object| {
        (request == Request::Read && object.starts_with("arc.")).then(|| Fault::Fail(Trouble::Denied("403".into())))
    });
    let depot = PartlyHere::of(&world.around(&world.dir(), rule), world.dir().home());
    let failed = depot.open(ARC).unwrap().exactly(0, 10).unwrap_err();
    assert!(matches!(&failed, Error::Dest { dest, .. } if **dest == *"usb") && !failed.is_damage(), "{failed}");
}

#[test]
fn nothing_is_asked_for_twice_where_all_take_as_long_or_there_is_no_other() {
    let time = Duration::from_millis(250);
    for names in [&["usb", "nas"][..], &["usb"]] {
        let world = World::new(names);
        let rule: Rule = Arc::new(move |_, request, object| {
            (request == Request::Read && object.starts_with("arc.")).then_some(Fault::Wait(time))
        });
        let depot = far(&world, rule, None);
        let bytes = fs::read(world.path("usb/arc.0.1")).unwrap();
        let arc = depot.open(ARC).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for (number, part) in bytes.chunks(100_000).enumerate() {
                        assert!(arc.exactly(number as u64 * 100_000, part.len()).unwrap() == part);
                    }
                });
            }
        });
        assert_eq!(world.count("nas", Request::Read), 0, "nothing was asked of the other one");
        assert!(world.fired() >= 2 && world.fired() <= 3, "{}", world.fired());
    }
    // One that stalls, and no other.
    let world = World::new(&["usb"]);
    let (rule, on) = stalls("usb", Duration::from_secs(1));
    let depot = far(&world, rule, None);
    let arc = depot.open(ARC).unwrap();
    arc.exactly(10, 1000).unwrap();
    on.store(true, Ordering::SeqCst);
    arc.exactly(2 * PIECE, 1000).unwrap();
    assert_eq!((world.fired(), reads(&world, "usb")), (1, 2));
}

#[test]
fn what_is_asked_twice_counts_twice_and_is_not_asked_where_it_would_be_too_much() {
    let world = World::new(&["usb", "nas"]);
    let (rule, on) = stalls("usb", Duration::from_secs(2));
    // Two pieces, and the marks.
    let depot = far(&world, rule, Some(2 * PIECE + 10_000));
    let bytes = fs::read(world.path("usb/arc.0.1")).unwrap();
    let arc = depot.open(ARC).unwrap();
    arc.exactly(10, 1000).unwrap();
    on.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    assert!(arc.exactly(2 * PIECE, 1000).unwrap() == bytes[2 * PIECE as usize..][..1000]);
    assert!(begun.elapsed() >= Duration::from_millis(1900), "there was no room for a second one");
    assert_eq!((arc.copy(), reads(&world, "nas")), (copy_of(&world, "usb"), 0));
    on.store(false, Ordering::SeqCst);
    assert_eq!(arc.exactly(3 * PIECE + 5, 10).unwrap_err().code(), "DOWNLOAD_LIMIT");
}
