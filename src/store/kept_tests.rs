//! What was fetched from far before is read without asking for it again, and proves nothing of what is far.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::*;
use crate::depot::faulty::{Fault, Faulty, Read};
use crate::depot::{Local, Reach};
use crate::fetch::FrameCache;
use crate::ids::{CopyId, Dirno, FrameNo};
use crate::ledger::{By, How, Ledger};
use crate::own::{OwnDir, Sharing};
use crate::testing::Rng;
use crate::testing::fixture::{Fixture, dir_record, some_bytes};

const COUNT: usize = 120;

struct World {
    fixture: Fixture,
    temp: tempfile::TempDir,
    wanted: Vec<Wanted>,
    blocks: Vec<Vec<u8>>,
}

fn world() -> World {
    let mut fixture = Fixture::new();
    let blocks: Vec<_> = (0..COUNT as u64).map(|n| some_bytes(n, 4000 + 97 * n as usize)).collect();
    let serial = fixture.next_data_serial();
    fixture.commit(&blocks, &[dir_record(Dirno::ROOT, Dirno::ROOT, b"", 0)]);
    let want = |(no, block): (usize, &Vec<u8>)| Wanted {
        block: BlockId::first(serial, FrameNo(no as u32)),
        len_bytes: block.len() as u32,
    };
    let wanted = blocks.iter().enumerate().map(want).collect();
    World { fixture, temp: tempfile::tempdir().unwrap(), wanted, blocks }
}

impl World {
    fn home(&self, rule: impl Fn(&Read) -> Option<Fault> + Send + Sync + 'static) -> Faulty {
        Faulty::new(Arc::new(Local::new(&self.fixture.own())), rule).copy(1, "usb", Reach::Far)
    }

    fn frames(&self) -> Arc<FrameCache> {
        let own = OwnDir::open(self.temp.path(), Sharing::Refused).unwrap();
        Arc::new(FrameCache::open(&own, 1 << 30).unwrap())
    }

    fn store(&self, home: &Faulty, options: StoreOptions) -> Store {
        let (keys, index) = (self.fixture.keys.clone(), self.fixture.index.clone());
        Store::new(Arc::new(home.clone()), keys, index, options)
    }

    fn options(&self, threads: usize) -> StoreOptions {
        StoreOptions { threads, frames: Some(self.frames()), ..StoreOptions::default() }
    }

    /// Has the cache hold some of the blocks.
    fn keep(&self, which: impl Fn(usize) -> bool) {
        let store = self.store(&self.home(|_| None), self.options(0));
        for (no, want) in self.wanted.iter().enumerate().filter(|(no, _)| which(*no)) {
            assert_eq!(store.block(want.block, want.len_bytes, None).unwrap()[..], self.blocks[no][..]);
        }
        // Who reads does not wait for it.
        let begun = Instant::now();
        let is_kept = |want: &Wanted| store.far_range(want.block).unwrap().is_none();
        while (0..COUNT).any(|no| is_kept(&self.wanted[no]) != which(no)) {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Frames of which the ledger has a proof of a copy.
    fn proven(&self, writer: &LedgerWriter) -> usize {
        writer.flush().unwrap();
        let (own, commits) = (self.fixture.own(), self.fixture.index.commits().unwrap());
        let (ledger, _) = Ledger::load(&own, &self.fixture.keys, &commits).unwrap();
        assert_eq!(ledger.open_damage().len(), 0);
        let has = |want: &&Wanted| {
            let of = |copy| ledger.frame(want.block.arc(), copy, want.block.frame(), How::Read);
            of(CopyId(1)).is_some() || of(CopyId::LOCAL).is_some()
        };
        self.wanted.iter().filter(has).count()
    }
}

#[test]
fn what_was_read_before_is_read_without_asking_and_proves_no_copy() {
    for (threads, spread) in [(0, Spread::Pool), (2, Spread::Pool), (2, Spread::Caller)] {
        let world = world();
        world.keep(|_| true);
        let writer = |fixture: &Fixture| {
            Arc::new(LedgerWriter::new(&fixture.own(), fixture.keys.clone(), By::Mount, &fixture.index))
        };
        let ledger = writer(&world.fixture);
        let home = world.home(|_| None);
        let store = world.store(&home, StoreOptions { ledger: Some(ledger.clone()), ..world.options(threads) });
        store.set_spread(spread);
        for (start, part) in world.wanted.chunks(8).enumerate() {
            store.prefetch(world.wanted.iter().skip(8 * start).take(40).copied(), None);
            // What is here is answered by who asks, before it goes on.
            let (answers, told) = channel();
            store.ask(part, None, move |answer| _ = answers.send(answer));
            let got = told.try_recv().unwrap().unwrap();
            assert!(got.iter().zip(&world.blocks[8 * start..]).all(|(got, block)| got[..] == block[..]));
        }
        assert_eq!((home.reads().len(), home.opened().len()), (0, 0), "nobody was asked");
        let summary = store.tally().summary();
        assert_eq!((summary.damage, summary.blocks_verified), (0, COUNT as u64));
        assert_eq!(world.proven(&ledger), 0, "nothing is known of what is far");
        // What was asked for there is.
        let ledger = writer(&world.fixture);
        let store =
            world.store(&home, StoreOptions { ledger: Some(ledger.clone()), threads, ..StoreOptions::default() });
        store.blocks(&world.wanted, None).unwrap();
        assert_eq!(world.proven(&ledger), COUNT);
    }
}

#[test]
fn of_a_request_only_what_is_not_kept_is_asked_for() {
    for threads in [0, 2] {
        let world = world();
        world.keep(|no| no % 7 < 3);
        let (home, options) = (world.home(|_| None), world.options(threads));
        let frames = options.frames.clone().unwrap();
        let store = world.store(&home, options);
        let got = store.blocks(&world.wanted, None).unwrap();
        assert!(got.iter().zip(&world.blocks).all(|(got, block)| got[..] == block[..]));
        let held = (0..COUNT).filter(|no| no % 7 < 3).count();
        assert_eq!((frames.hits().frames, store.tally().summary().blocks_verified), (held as u64, COUNT as u64));
        let ranges = (0..COUNT).map(|no| {
            let at = store.inner.fetch.locate(world.wanted[no].block).unwrap().at;
            (no, at.offset..at.offset + at.info.frame_len())
        });
        for (no, range) in ranges {
            let asked =
                home.reads().iter().filter(|(_, read, _)| read.start < range.end && range.start < read.end).count();
            assert_eq!(asked, usize::from(no % 7 >= 3), "frame {no}");
        }
    }
}

#[test]
fn a_cache_that_rots_is_no_damage_and_is_put_right() {
    let world = world();
    world.keep(|_| true);
    let mut rng = Rng::from_env();
    println!("seed {}", rng.seed);
    let file = fs::read_dir(world.temp.path().join("frames")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&file).unwrap();
    for _ in 0..30 {
        let at = rng.below(bytes.len());
        bytes[at] ^= rng.mask();
    }
    fs::write(&file, &bytes).unwrap();
    for round in 0..2 {
        let home = world.home(|_| None);
        let ledger =
            LedgerWriter::new(&world.fixture.own(), world.fixture.keys.clone(), By::Mount, &world.fixture.index);
        let ledger = Arc::new(ledger);
        let store = world.store(&home, StoreOptions { ledger: Some(ledger.clone()), ..world.options(2) });
        let got = store.blocks(&world.wanted, None).unwrap();
        assert!(got.iter().zip(&world.blocks).all(|(got, block)| got[..] == block[..]));
        assert_eq!(store.tally().summary().damage, 0);
        assert_eq!(world.proven(&ledger), ledger_count(&home, &store, &world), "what was asked for, and no more");
        assert_eq!(home.reads().is_empty(), round == 1, "round {round}");
        let begun = Instant::now();
        while fs::read(&file).unwrap()[200..]
            != fs::read(world.fixture.arc_path(world.wanted[0].block.arc())).unwrap()[200..bytes.len()]
        {
            assert!(begun.elapsed() < Duration::from_secs(20), "what was wrong is kept anew");
            std::thread::sleep(Duration::from_millis(2));
        }
        // Where nothing was asked for nothing is noted.
        let ledgers = fs::remove_dir_all(world.fixture.dir.path().join("ledger"));
        assert_eq!(ledgers.is_ok(), round == 0);
    }
}

/// Frames that were asked for.
fn ledger_count(home: &Faulty, store: &Store, world: &World) -> usize {
    let is_asked = |want: &&Wanted| {
        let at = store.inner.fetch.locate(want.block).unwrap().at;
        home.reads().iter().any(|(_, read, _)| read.contains(&at.offset))
    };
    world.wanted.iter().filter(is_asked).count()
}

#[test]
fn what_is_kept_is_at_hand_while_the_destination_stalls() {
    let world = world();
    world.keep(|no| no < 20);
    let home = world.home(|_| Some(Fault::Wait(Duration::from_secs(3))));
    let deadline = Duration::from_secs(2);
    let store = world.store(&home, StoreOptions { deadline, cache_bytes: 0, ..world.options(2) });
    let (answers, told) = channel();
    for want in &world.wanted[20..] {
        let answers = answers.clone();
        store.ask(&[*want], None, move |answer| _ = answers.send(answer.map(drop).map_err(|error| error.code())));
    }
    let (begun, stop, mut slowest) = (Instant::now(), AtomicBool::new(false), Duration::ZERO);
    let mut read = 0;
    while !stop.load(Relaxed) {
        let (asked, want) = (Instant::now(), world.wanted[read % 20]);
        assert!(store.block(want.block, want.len_bytes, None).unwrap()[..] == world.blocks[read % 20][..]);
        slowest = slowest.max(asked.elapsed());
        read += 1;
        stop.store(begun.elapsed() > Duration::from_secs(1), Relaxed);
    }
    assert!(read > 100 && slowest < Duration::from_millis(1500), "{read} reads, the slowest {slowest:?}");
    for _ in 20..COUNT {
        assert_eq!(told.recv_timeout(Duration::from_secs(20)).unwrap(), Err("READ_TIMED_OUT"));
    }
}
