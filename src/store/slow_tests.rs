//! A copy that is far and slow keeps nobody waiting but those who need it, and those not for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::*;
use crate::depot::faulty::{Fault, Faulty};
use crate::depot::{Local, Reach};
use crate::ids::{Dirno, FrameNo};
use crate::testing::fixture::{Fixture, dir_record, some_bytes};

const READERS: usize = 100;

/// Blocks of an arc that is here, and of one that only the far copy has.
struct World {
    fixture: Fixture,
    here: (Vec<Wanted>, Vec<Vec<u8>>),
    far: (Vec<Wanted>, Vec<Vec<u8>>),
}

fn world() -> World {
    let mut fixture = Fixture::new();
    let mut arc = |seed: u64| {
        let blocks: Vec<_> = (0..READERS as u64).map(|n| some_bytes(seed + n, 4000)).collect();
        let serial = fixture.next_data_serial();
        fixture.commit(&blocks, &[dir_record(Dirno::ROOT, Dirno::ROOT, b"", 0)]);
        let want = |no: usize| Wanted { block: BlockId::first(serial, FrameNo(no as u32)), len_bytes: 4000 };
        ((0..READERS).map(want).collect::<Vec<_>>(), blocks)
    };
    let (here, far) = (arc(0), arc(1000));
    World { fixture, here, far }
}

/// A store whose far copy takes `wait` for each read.
fn store(world: &World, wait: Duration, deadline: Duration) -> Store {
    let local: Arc<dyn Depot> = Arc::new(Local::new(&world.fixture.own()));
    let gone = world.fixture.index.arc(world.far.0[0].block.arc()).unwrap().entry.name;
    let home = Faulty::recording(local.clone()).hiding(move |arc| arc == gone);
    let slow = Faulty::new(local, move |_| Some(Fault::Wait(wait))).copy(1, "far", Reach::Far);
    let options = StoreOptions { cache_bytes: 0, deadline, copies: vec![Arc::new(slow)], ..StoreOptions::default() };
    Store::new(Arc::new(home), world.fixture.keys.clone(), world.fixture.index.clone(), options)
}

#[test]
fn what_is_far_comes_later_and_is_verified() {
    let world = world();
    let store = store(&world, Duration::from_millis(5), Duration::from_secs(20));
    let (wanted, blocks) = (&world.far.0, &world.far.1);
    // Those who can wait, and those who are told, from the same blocks at once.
    let (answers, told) = channel();
    for want in wanted {
        let answers = answers.clone();
        store.ask(&[world.here.0[0], *want], None, move |answer| drop(answers.send(answer)));
    }
    let got = store.blocks(wanted, None).unwrap();
    assert!(got.iter().zip(blocks).all(|(got, block)| got[..] == block[..]));
    let mut answered: Vec<Vec<u8>> = Vec::new();
    for _ in wanted {
        let blocks = told.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
        assert!(blocks[0][..] == world.here.1[0][..]);
        answered.push(blocks[1].to_vec());
    }
    answered.sort();
    let mut expected = blocks.clone();
    expected.sort();
    assert!(answered == expected);
    let summary = store.tally().summary();
    assert_eq!(
        (summary.damage, summary.healed),
        (READERS as u64, READERS as u64),
        "it is told that it was missing here"
    );
    assert!(summary.places[0].how.contains("far"), "{}", summary.places[0].how);
}

#[test]
fn readers_of_a_stalled_copy_hold_nobody_up_and_wait_no_longer_than_the_deadline() {
    let world = world();
    let deadline = Duration::from_secs(2);
    let store = store(&world, Duration::from_secs(5), deadline);
    let started = Instant::now();
    let (answers, told) = channel();
    for want in &world.far.0 {
        let answers = answers.clone();
        store.ask(&[*want], None, move |answer| {
            // Nobody listens any more if the test has failed.
            let _ = answers.send((answer.map(drop).map_err(|error| error.code()), started.elapsed()));
        });
    }
    assert!(started.elapsed() < Duration::from_millis(1500), "who asks does not wait: {:?}", started.elapsed());
    // Meanwhile what is here is read at once.
    let (stop, mut slowest) = (AtomicBool::new(false), Duration::ZERO);
    let mut read = 0;
    while !stop.load(Relaxed) {
        let asked = Instant::now();
        let want = world.here.0[read % READERS];
        assert!(store.block(want.block, want.len_bytes, None).unwrap()[..] == world.here.1[read % READERS][..]);
        slowest = slowest.max(asked.elapsed());
        read += 1;
        stop.store(started.elapsed() > Duration::from_secs(1), Relaxed);
    }
    assert!(read > 100 && slowest < Duration::from_millis(1500), "{read} reads, the slowest {slowest:?}");
    for _ in &world.far.0 {
        let (answer, after) = told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(answer, Err("READ_TIMED_OUT"));
        assert!(after >= deadline && after < deadline + Duration::from_secs(2), "{after:?}");
    }
    let want = world.far.0[0];
    let asked = Instant::now();
    assert_eq!(store.block(want.block, want.len_bytes, None).unwrap_err().code(), "READ_TIMED_OUT");
    assert!(asked.elapsed() < deadline + Duration::from_secs(2));
}

#[test]
fn a_store_that_ends_answers_whoever_still_waits() {
    let world = world();
    let store = store(&world, Duration::from_millis(300), Duration::from_secs(600));
    let (answers, told) = channel();
    for want in &world.far.0 {
        let answers = answers.clone();
        store.ask(&[*want], None, move |answer| _ = answers.send(answer.is_ok()));
    }
    drop(store);
    drop(answers);
    assert_eq!(told.iter().count(), READERS, "each is answered once");
}

/// A copy that hangs makes no damage unmet.
#[test]
fn what_is_damaged_here_is_told_so_though_a_copy_hangs() {
    let world = world();
    let store = store(&world, Duration::from_secs(40), Duration::from_secs(30));
    let begun = Instant::now();
    let error = store.blocks(&world.far.0[..1], None).map(drop).unwrap_err();
    assert_eq!((error.code(), store.tally().summary().damage), ("ARC_MISSING", 1));
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    // What waits for its turn when it all ends is told too.
    let (answers, told) = channel();
    for want in &world.far.0[1..40] {
        let answers = answers.clone();
        store.ask(&[*want], None, move |answer| _ = answers.send(answer.map(drop).map_err(|error| error.code())));
    }
    drop(store);
    let codes: Vec<_> = (1..40).map(|_| told.recv_timeout(Duration::from_secs(30)).unwrap()).collect();
    assert!(codes.iter().filter(|code| **code == Err("ARC_MISSING")).count() > 15, "{codes:?}");
}
