//! What is in the cache is compared with the arcs, and what it gives with the blocks that were saved.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::depot::faulty::{Fault, Faulty, Read};
use crate::depot::{Local, Reach};
use crate::fetch::{Asked, Fetch, Heal};
use crate::ids::{BlockId, Dirno, FrameNo};
use crate::own::Sharing;
use crate::testing::Rng;
use crate::testing::fixture::{Fixture, dir_record};

struct World {
    fixture: Fixture,
    temp: tempfile::TempDir,
    /// Of each arc its blocks, and their names.
    arcs: Vec<(Vec<Vec<u8>>, Vec<BlockId>)>,
    rng: Rng,
}

fn never(_: &Read) -> Option<Fault> {
    None
}

impl World {
    fn new(arcs: usize, blocks: usize) -> World {
        let (mut fixture, mut rng) = (Fixture::new(), Rng::from_env());
        println!("seed {}", rng.seed);
        let arc = |_| {
            let lens = (0..blocks).map(|_| 3000 + rng.below(30_000)).collect::<Vec<_>>();
            let blocks: Vec<Vec<u8>> = lens.into_iter().map(|len| rng.noise(len)).collect();
            let serial = fixture.next_data_serial();
            fixture.commit(&blocks, &[dir_record(Dirno::ROOT, Dirno::ROOT, b"", 0)]);
            let names = (0..blocks.len() as u32).map(|no| BlockId::first(serial, FrameNo(no))).collect();
            (blocks, names)
        };
        let arcs = (0..arcs).map(arc).collect();
        World { fixture, temp: tempfile::tempdir().unwrap(), arcs, rng }
    }

    fn own(&self) -> OwnDir {
        OwnDir::open(self.temp.path(), Sharing::Refused).unwrap()
    }

    fn cache(&self, max_bytes: u64) -> Arc<FrameCache> {
        Arc::new(FrameCache::open(&self.own(), max_bytes).unwrap())
    }

    fn far(&self, rule: impl Fn(&Read) -> Option<Fault> + Send + Sync + 'static) -> Faulty {
        Faulty::new(Arc::new(Local::new(&self.fixture.own())), rule).copy(1, "usb", Reach::Far)
    }

    fn fetch_by(&self, home: &Faulty, cache: &Arc<FrameCache>, heal: Heal) -> Fetch {
        let (keys, index) = (self.fixture.keys.clone(), self.fixture.index.clone());
        Fetch::new(Arc::new(home.clone()), Vec::new(), keys, index, heal).keeping(Some(cache.clone()))
    }

    fn fetch(&self, home: &Faulty, cache: &Arc<FrameCache>) -> Fetch {
        self.fetch_by(home, cache, Heal::On)
    }

    /// The file of an arc in the cache, and the arc.
    fn paths(&self, arc: usize) -> (PathBuf, PathBuf) {
        let serial = self.arcs[arc].1[0].arc();
        let id = self.fixture.index.arc(serial).unwrap().entry.id;
        (self.temp.path().join(DIR).join(name(id)), self.fixture.arc_path(serial))
    }

    fn allocated(&self) -> u64 {
        let files = fs::read_dir(self.temp.path().join(DIR)).unwrap();
        files.filter_map(|entry| entry.unwrap().metadata().ok()).map(|found| found.blocks() * 512).sum()
    }
}

/// What the cache has of some blocks.
fn kept(fetch: &Fetch, names: &[BlockId]) -> Vec<Option<Vec<u8>>> {
    let kept = |name: &BlockId| fetch.kept(&fetch.locate(*name).unwrap());
    names.iter().map(|name| kept(name).map(|fetched| fetched.opened.into_plain())).collect()
}

/// What is read at the destination.
fn near(fetch: &Fetch, names: &[BlockId]) -> Vec<Option<Vec<u8>>> {
    let asked: Vec<Asked> = names.iter().map(|name| fetch.locate(*name).unwrap()).collect();
    let mut found = vec![None; names.len()];
    fetch.near(&asked, &mut |number, _, outcome| {
        found[number] = outcome.ok().map(|fetched| fetched.opened.into_plain());
    });
    found
}

fn all(blocks: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
    blocks.iter().cloned().map(Some).collect()
}

#[test]
fn what_was_proven_is_kept_at_its_place_and_found_without_asking() {
    let world = World::new(2, 30);
    let home = world.far(never);
    for (arc, (blocks, names)) in world.arcs.iter().enumerate() {
        let cache = world.cache(64 << 20);
        let fetch = world.fetch(&home, &cache);
        assert_eq!(kept(&fetch, names), vec![None; names.len()]);
        // Not the first, not all: what was not read is a hole.
        assert_eq!(near(&fetch, &names[3..20]), all(&blocks[3..20]));
        let before = (home.reads().len(), home.opened().len());
        let later = world.fetch(&home, &world.cache(64 << 20));
        assert_eq!(kept(&later, &names[3..20]), all(&blocks[3..20]));
        assert!(
            names
                .iter()
                .enumerate()
                .all(|(no, name)| { later.may_be_kept(&later.locate(*name).unwrap()) == (3..20).contains(&no) })
        );
        assert_eq!((home.reads().len(), home.opened().len()), before, "nobody was asked");
        let (file, original) = world.paths(arc);
        let (held, original) = (fs::read(&file).unwrap(), fs::read(original).unwrap());
        let first = fetch.locate(names[3]).unwrap().at.offset as usize;
        assert!(held[..first].iter().all(|byte| *byte == 0) && held[first..] == original[first..held.len()]);
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        // Damage is shown as it is: not by what was kept.
        assert_eq!(kept(&world.fetch_by(&home, &cache, Heal::Off), names), vec![None; names.len()]);
    }
    assert_eq!(fs::read_dir(world.temp.path().join(DIR)).unwrap().count(), 2);
}

#[test]
fn what_is_near_and_what_is_read_once_is_not_kept() {
    let world = World::new(1, 10);
    let (blocks, names) = &world.arcs[0];
    assert!(FrameCache::found(&world.own()).unwrap().is_none());
    let cache = world.cache(64 << 20);
    let local = Faulty::recording(Arc::new(Local::new(&world.fixture.own())));
    assert_eq!(near(&world.fetch(&local, &cache), names), all(blocks));
    let passes = Arc::new(FrameCache::found(&world.own()).unwrap().unwrap());
    let home = world.far(never);
    assert_eq!(near(&world.fetch(&home, &passes), names), all(blocks));
    assert_eq!(fs::read_dir(world.temp.path().join(DIR)).unwrap().count(), 0);
    // It reads what is there all the same.
    near(&world.fetch(&home, &cache), &names[..5]);
    assert_eq!(kept(&world.fetch(&home, &passes), &names[..5]), all(&blocks[..5]));
    assert_eq!(passes.hits().frames, 5);
}

#[test]
fn what_is_torn_flipped_swapped_or_foreign_is_a_miss_and_is_kept_anew() {
    let mut world = World::new(2, 12);
    let home = world.far(never);
    let cache = world.cache(64 << 20);
    let fetch = world.fetch(&home, &cache);
    let place = |no: usize| fetch.locate(world.arcs[0].1[no]).unwrap().at;
    let range = |no: usize| place(no).offset as usize..(place(no).offset + place(no).info.frame_len()) as usize;
    let ((file, _), (other, _)) = (world.paths(0), world.paths(1));
    near(&fetch, &world.arcs[0].1);
    near(&fetch, &world.arcs[1].1);
    let (whole, foreign) = (fs::read(&file).unwrap(), fs::read(&other).unwrap());
    let mut rng = Rng::new(world.rng.next());
    for round in 0..80 {
        let mut bytes = whole.clone();
        let (one, two) = (rng.below(12), rng.below(12));
        let what = rng.below(7);
        match what {
            // A bit, a torn page, a cut end.
            0 => bytes[range(one).start + rng.below(range(one).len())] ^= rng.mask(),
            1 => {
                let from = rng.below(bytes.len());
                let to = bytes.len().min(from + 1 + rng.below(9000));
                bytes[from..to].fill(0);
            }
            2 => bytes.truncate(rng.below(bytes.len())),
            // A frame in the place of another, of the same arc or of another one.
            3 => {
                let len = range(one).len().min(range(two).len());
                bytes.copy_within(range(one).start..range(one).start + len, range(two).start);
            }
            4 => {
                let at = rng.below(bytes.len().min(foreign.len()));
                let len = rng.below(bytes.len().min(foreign.len()) - at);
                bytes[at..at + len].copy_from_slice(&foreign[at..at + len]);
            }
            5 => bytes = foreign.clone(),
            _ => bytes = rng.noise(whole.len()),
        }
        fs::write(&file, &bytes).unwrap();
        let (blocks, names) = &world.arcs[0];
        let found = kept(&fetch, names);
        for (no, found) in found.iter().enumerate() {
            let is_same = bytes.get(range(no)) == whole.get(range(no));
            assert_eq!(found.as_ref(), is_same.then_some(&blocks[no]), "round {round}, {what}: frame {no}");
        }
        let missing: Vec<usize> = (0..12).filter(|no| found[*no].is_none()).collect();
        for no in missing {
            assert_eq!(near(&fetch, &names[no..=no]), all(&blocks[no..=no]));
        }
        assert_eq!(kept(&fetch, names), all(blocks), "round {round}, {what}");
    }
}

#[test]
fn what_is_no_file_of_ours_is_neither_read_nor_written() {
    let world = World::new(1, 5);
    let home = world.far(never);
    let (file, original) = world.paths(0);
    let (blocks, names) = &world.arcs[0];
    let victim = world.temp.path().join("victim");
    let run = |program: &str, args: &[&std::path::Path]| {
        assert!(Command::new(program).args(args).status().unwrap().success());
    };
    let prepared: [&dyn Fn(); 4] = [
        &|| symlink(&victim, &file).unwrap(),
        &|| fs::hard_link(&victim, &file).unwrap(),
        &|| fs::create_dir(&file).unwrap(),
        &|| run("mkfifo", &[&file]),
    ];
    for (number, prepare) in prepared.iter().enumerate() {
        let cache = world.cache(64 << 20);
        fs::copy(&original, &victim).unwrap();
        let before = fs::read(&victim).unwrap();
        prepare();
        let fetch = world.fetch(&home, &cache);
        assert_eq!(kept(&fetch, names), vec![None; 5], "{number}");
        assert_eq!(near(&fetch, names), all(blocks), "{number}");
        assert!(fs::read(&victim).unwrap() == before && lock(&cache.rest).is_told, "{number}");
        run("rm", &[std::path::Path::new("-rf"), &file, &victim]);
    }
    symlink(world.fixture.dir.path(), world.temp.path().join("link")).unwrap();
    let other = OwnDir::open(world.temp.path(), Sharing::Refused).unwrap();
    fs::remove_dir(world.temp.path().join(DIR)).unwrap();
    symlink(world.fixture.dir.path(), world.temp.path().join(DIR)).unwrap();
    assert_eq!(FrameCache::open(&other, 1 << 20).unwrap_err().code(), "FILE_FOREIGN");
}

/// A server that lies, now and again: nothing of it that did not open is here.
#[test]
fn what_did_not_open_is_nowhere_in_the_cache() {
    let world = World::new(3, 40);
    let lies = |(_, range, _): &Read| {
        let mut rng = Rng::new(range.start ^ range.end << 20);
        // Two bits: it can't be put right.
        let flips = rng.below(3) > 0;
        flips.then(|| Fault::Flip(range.start + rng.below((range.end - range.start) as usize) as u64, 0x11))
    };
    let home = world.far(lies);
    let cache = world.cache(64 << 20);
    let fetch = world.fetch(&home, &cache);
    let (mut refused, mut held_bytes) = (0, 0);
    for (arc, (blocks, names)) in world.arcs.iter().enumerate() {
        for start in (0..40).step_by(4) {
            let found = near(&fetch, &names[start..start + 4]);
            for (found, block) in found.iter().zip(&blocks[start..]) {
                assert!(found.as_ref().is_none_or(|found| found == block));
                refused += usize::from(found.is_none());
            }
        }
        let (file, original) = world.paths(arc);
        let (held, original) = (fs::read(&file).unwrap_or_default(), fs::read(&original).unwrap());
        for name in names {
            let at = fetch.locate(*name).unwrap().at;
            let range = at.offset as usize..(at.offset + at.info.frame_len()) as usize;
            let part = held.get(range.clone()).unwrap_or_default();
            assert!(part.iter().all(|byte| *byte == 0) || part == &original[range]);
            held_bytes += part.iter().filter(|byte| **byte != 0).count();
        }
    }
    assert!(refused > 0 && held_bytes > 0, "{refused} refused, {held_bytes} bytes held");
}

#[test]
fn it_stays_within_its_bound_and_what_was_read_longest_ago_goes_first() {
    let world = World::new(8, 30);
    let home = world.far(never);
    let bound = 2 << 20;
    let cache = world.cache(bound);
    let fetch = world.fetch(&home, &cache);
    let ago = |arc: usize, seconds: u64| {
        let file = File::options().write(true).open(world.paths(arc).0).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    for (arc, (blocks, names)) in world.arcs.iter().enumerate() {
        for start in (0..30).step_by(3) {
            assert_eq!(near(&fetch, &names[start..start + 3]), all(&blocks[start..start + 3]));
            assert!(world.allocated() <= bound, "{} bytes", world.allocated());
        }
        // The first one was read long ago, and then again and again.
        ago(arc, 1000 - 10 * arc as u64);
        if arc > 0 {
            ago(0, 5000);
        }
        assert_eq!(kept(&fetch, &world.arcs[0].1[..1]), all(&world.arcs[0].0[..1]), "after arc {arc}");
    }
    assert!(world.allocated() > bound / 3);
    let here: Vec<usize> = (0..8).filter(|arc| world.paths(*arc).0.exists()).collect();
    assert!(here.len() < 7 && here.contains(&0) && here.contains(&7) && !here.contains(&1), "{here:?}");
    // Files with other names are nobody's business; what is longer than all of it is not kept.
    let cache = world.cache(1000);
    assert_eq!(near(&world.fetch(&home, &cache), &world.arcs[1].1), all(&world.arcs[1].0));
    assert!(!world.paths(1).0.exists() && here.iter().all(|arc| world.paths(*arc).0.exists()));
}

#[test]
fn many_who_write_read_and_evict_at_once_get_what_was_saved() {
    let world = World::new(6, 40);
    let bound = 1 << 20;
    let (processes, stop) = (4, AtomicBool::new(false));
    let seed = world.rng.clone_below(1 << 30, 1) as u64;
    let hits = AtomicU64::new(0);
    std::thread::scope(|scope| {
        // As many caches as there would be processes, with two threads each, and one who removes what it likes.
        let mut cache = world.cache(bound);
        let workers: Vec<_> = (0..2 * processes)
            .map(|number| {
                if number % 2 == 0 {
                    cache = world.cache(bound);
                }
                let fetch = world.fetch(&world.far(never), &cache);
                let (arcs, hits, cache) = (&world.arcs, &hits, cache.clone());
                scope.spawn(move || {
                    let mut rng = Rng::new(seed + number);
                    for _ in 0..150 {
                        let (blocks, names) = &arcs[rng.below(6)];
                        let start = rng.below(36);
                        for no in start..start + 4 {
                            let found = kept(&fetch, &names[no..=no]);
                            if found[0].is_some() {
                                hits.fetch_add(1, Relaxed);
                                assert_eq!(found, all(&blocks[no..=no]));
                            }
                        }
                        assert_eq!(near(&fetch, &names[start..start + 4]), all(&blocks[start..start + 4]));
                    }
                    assert!(!lock(&cache.rest).is_told);
                })
            })
            .collect();
        let (files, stop) = ((0..6).map(|arc| world.paths(arc).0).collect::<Vec<_>>(), &stop);
        scope.spawn(move || {
            let mut rng = Rng::new(seed + 100);
            while !stop.load(Relaxed) {
                let _ = fs::remove_file(&files[rng.below(6)]);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let done: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, Relaxed);
        done.into_iter().for_each(|done| done.unwrap());
    });
    assert!(hits.load(Relaxed) > 100, "{hits:?}");
    let most = bound + 2 * processes * (bound / STEPS).max(33_000 + EDGES_BYTES);
    assert!(world.allocated() <= most, "{} of {most}", world.allocated());
}

#[test]
fn on_a_full_disk_reads_go_on_and_nothing_is_kept_for_a_while() {
    if crate::os::process::geteuid() != 0 {
        return;
    }
    let world = World::new(3, 60);
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m,mode=700", "small"]).arg(world.temp.path()));
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let (home, cache) = (world.far(never), world.cache(1 << 30));
        let fetch = world.fetch(&home, &cache);
        for (blocks, names) in &world.arcs {
            assert_eq!(near(&fetch, names), all(blocks));
        }
        assert!(lock(&cache.rest).is_told, "the fault fired");
        let all_names: Vec<BlockId> = world.arcs.iter().flat_map(|(_, names)| names.clone()).collect();
        let all_blocks: Vec<Vec<u8>> = world.arcs.iter().flat_map(|(blocks, _)| blocks.clone()).collect();
        let has = || -> BTreeSet<usize> {
            let found = kept(&fetch, &all_names);
            let is_right = |(found, block): (&Option<Vec<u8>>, _)| found.as_ref().is_none_or(|found| found == block);
            assert!(found.iter().zip(&all_blocks).all(is_right));
            (0..found.len()).filter(|no| found[*no].is_some()).collect()
        };
        let before = has();
        assert!((1..180).contains(&before.len()), "{before:?}");
        // There is room again, and it is not tried at once.
        run(Command::new("mount").args(["-o", "remount,size=64m"]).arg(world.temp.path()));
        near(&fetch, &all_names);
        assert_eq!(has(), before);
        lock(&cache.rest).until = Some(Instant::now());
        near(&fetch, &all_names);
        assert!(has().len() == 180 && !lock(&cache.rest).is_told);
    }));
    run(Command::new("umount").arg(world.temp.path()));
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
