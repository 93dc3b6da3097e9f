//! `selftest -v4`: what is wrong at one destination is found where it is, and all else is proven.

use super::*;
use crate::arc::{ARC_HEADER_LEN, ARC_TRAILER_LEN, FRAME_HEADER_LEN};
use crate::catalog::{ArcEntry, ArcRole};
use crate::findings::{Cause, Finding, Level, Part};
use crate::ids::{ArcName, CopyId, FrameNo};
use crate::ledger::{How, Ledger};
use crate::selftest::{self, Options as Test, Report as Tested};

fn none() -> Rule {
    Arc::new(|_, _, _| None)
}

fn v4() -> Test {
    Test::of(Level::AllCopies)
}

fn test(world: &World, rule: Rule, options: &Test) -> Tested {
    lock(&world.requests).clear();
    world.fired.store(0, Ordering::Relaxed);
    world.given.store(0, Ordering::Relaxed);
    *lock(&world.ears.0) = Default::default();
    selftest::run_everywhere(&world.around(&world.dir(), rule), options, world.ears.as_ref()).unwrap()
}

fn shown(report: &Tested) -> Vec<String> {
    let one = |finding: &Finding| format!("{:?}: {}: {}", finding.at, finding.error.code(), finding.error);
    report.findings.iter().map(one).collect()
}

fn states(world: &World, dest: &str) -> Vec<(ArcName, Option<State>)> {
    let all = status(&world.around(&world.dir(), none()), Some(dest)).unwrap();
    all.iter().map(|one| (one.arc, one.copies.first().and_then(|copy| copy.noted))).collect()
}

fn replace(at: &std::path::Path, bytes: &[u8]) {
    fs::remove_file(at).unwrap();
    fs::write(at, bytes).unwrap();
}

/// How many arcs there are: blocks are cut by their content, so the number is not always the same.
fn arcs(world: &World) -> u64 {
    world.arcs("b").len() as u64
}

/// Bytes of all that is at a destination.
fn stored(world: &World, dest: &str) -> u64 {
    fs::read_dir(world.path(dest)).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn each_arc_of_each_copy_is_read_once_and_proven() {
    let world = World::with(&["usb", "nas"], "verify = \"trust\"");
    world.backup();
    assert!(states(&world, "usb").iter().all(|(_, state)| *state == Some(State::Unverified)));
    let report = test(&world, none(), &v4());
    assert!(report.findings.is_empty() && report.notes.is_empty(), "{:?} {:?}", shown(&report), report.notes);
    assert_eq!(report.copies.len(), 2);
    let mut fetched = 0;
    for (copy, name) in report.copies.iter().zip(["usb", "nas"]) {
        assert_eq!((copy.name.as_str(), copy.arcs), (name, arcs(&world)));
        assert_eq!((copy.damaged, copy.missing, copy.unproven, &copy.trouble), (0, 0, 0, &None));
        // All of it, DESTID too, and no byte twice.
        assert_eq!(copy.fetched_bytes, stored(&world, name));
        fetched += copy.fetched_bytes;
        let asked = lock(&world.requests).iter().filter(|(of, ..)| of == name).count();
        assert_eq!(copy.requests, asked as u64);
        // A listing, DESTID, a short arc at once, of a longer one its ends too.
        assert!(copy.requests <= 3 + 2 + 4 * arcs(&world), "{}", copy.requests);
        assert!(states(&world, name).iter().all(|(_, state)| *state == Some(State::Proven)));
    }
    assert_eq!(world.given.load(Ordering::Relaxed), fetched);
    // The ledger knows it of each copy.
    let (dir, index) = (world.dir(), world.dir().open_index().unwrap());
    let (known, _) = Ledger::load(dir.own(), dir.keys(), &dir.commits(&index).unwrap()).unwrap();
    for row in index.arcs().unwrap() {
        for (copy, no) in (0..3).flat_map(|copy| (0..row.entry.frames).map(move |no| (copy, no))) {
            let proof = known.frame(row.entry.serial, CopyId(copy), FrameNo(no), How::Medium);
            assert!(proof.is_some(), "{} {no} of copy {copy}", row.entry.name);
        }
    }
    // One that is off is not asked.
    let path = world.path("b/dest.toml");
    fs::write(&path, fs::read_to_string(&path).unwrap().replacen("verify = \"trust\"", "off = true", 1)).unwrap();
    let report = test(&world, none(), &v4());
    assert_eq!(report.copies.iter().map(|copy| copy.name.as_str()).collect::<Vec<_>>(), ["nas"]);
}

#[test]
fn damage_of_each_class_is_told_with_its_place_and_sync_puts_it_right() {
    let world = World::new(&["usb", "nas"]);
    world.change();
    world.backup();
    let (dir, index) = (world.dir(), world.dir().open_index().unwrap());
    let all: Vec<_> = index.arcs().unwrap().into_iter().map(|row| row.entry).collect();
    let mut data: Vec<_> = all.iter().filter(|entry| entry.role == ArcRole::Data).collect();
    assert!(data.len() > 2, "{} arcs", data.len());
    data.sort_by_key(|entry| std::cmp::Reverse(entry.frames));
    // Damaged is a shorter one than its neighbour.
    let (entry, other) = match data[0].arc_bytes <= data[1].arc_bytes {
        true => (data[0].clone(), data[1].clone()),
        false => (data[1].clone(), data[0].clone()),
    };
    let chunk = index.frame_chunk(entry.serial, FrameNo(0)).unwrap();
    let first = chunk.frames[0].frame_len() as usize;
    let footer = entry.footer_offset as usize;
    let end = entry.arc_bytes as usize;
    let second = Part::Frames { first: FrameNo(1), count: 1 };
    let at_second = ARC_HEADER_LEN + first;
    let second_len = chunk.frames[1].frame_len() as usize;
    type Change = Box<dyn Fn(&mut Vec<u8>)>;
    let flip = |at: usize| -> Change { Box::new(move |bytes| bytes[at] ^= 0x10) };
    let read = |entry: &ArcEntry| fs::read(world.path("usb").join(entry.name.to_string())).unwrap();
    let (wrong, short) = (read(&other), read(data[data.len() - 1]));
    let cases: Vec<(&str, Change, &str, Part)> = vec![
        ("header", flip(20), "ARC_HEADER_BAD", Part::Header),
        ("head of a frame", flip(at_second + 3), "ARC_FRAME_WRONG", second),
        ("body", flip(at_second + second_len / 2), "ARC_TAG_MISMATCH", second),
        ("tag", flip(at_second + second_len - 3), "ARC_TAG_MISMATCH", second),
        ("footer", flip(footer + FRAME_HEADER_LEN + 9), "ARC_TAG_MISMATCH", Part::Footer),
        ("trailer", flip(end - 5), "ARC_TRAILER_BAD", Part::Trailer),
        ("swapped for a shorter one", Box::new(move |bytes| bytes.clone_from(&short)), "ARC_FRAME_WRONG", Part::Whole),
        ("swapped", Box::new(move |bytes| bytes.clone_from(&wrong)), "ARC_FRAME_WRONG", Part::Whole),
        (
            "cut",
            Box::new(move |bytes| bytes.truncate(at_second + second_len / 2)),
            "ARC_FRAME_TRUNCATED",
            Part::Frames { first: FrameNo(1), count: entry.frames - 1 },
        ),
        ("cut footer", Box::new(move |bytes| bytes.truncate(end - 9)), "ARC_FRAME_TRUNCATED", Part::Trailer),
        ("longer", Box::new(|bytes| bytes.extend([0; 4096])), "ARC_TRAILER_BAD", Part::Trailer),
        ("empty", Box::new(Vec::clear), "ARC_FRAME_TRUNCATED", Part::Frames { first: FrameNo(0), count: entry.frames }),
    ];
    assert!(end - footer > ARC_TRAILER_LEN + FRAME_HEADER_LEN + 9);
    let path = world.path("usb").join(entry.name.to_string());
    for (what, change, code, part) in cases {
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        change(&mut bad);
        assert!(bad != good, "{what}");
        replace(&path, &bad);
        let report = test(&world, none(), &v4());
        let [found] = &report.findings[..] else { panic!("{what}: {:?}", shown(&report)) };
        assert_eq!((found.error.code(), found.at.as_deref()), (code, Some("usb")), "{what}");
        assert_eq!(found.place.as_ref().map(|place| place.arc), Some(entry.name), "{what}");
        let spot = found.spot.unwrap();
        assert_eq!((spot.part, spot.copy, spot.serial), (part, CopyId(1), Some(entry.serial)), "{what}");
        assert!(found.remedy().contains("`assay dest sync usb`"), "{}", found.remedy());
        assert_eq!(found.exit(), Exit::Damage);
        // Both sums are told as after a transfer.
        assert!(what.contains("shorter") || world.failures() == ["DEST_CHECKSUM"], "{what}: {:?}", world.failures());
        let counts: Vec<_> = report.copies.iter().map(|copy| (copy.arcs, copy.damaged, copy.unproven)).collect();
        assert_eq!(counts, [(arcs(&world) - 1, 1, 0), (arcs(&world), 0, 0)], "{what}");
        for (arc, state) in states(&world, "usb") {
            assert_eq!(state == Some(State::Proven), arc != entry.name, "{what}: {arc}");
        }
        let reports = sync(&world.around(&dir, none()), None).unwrap();
        assert!(reports.iter().all(|one| one.exit() == Exit::Ok), "{what}: {reports:?}");
        world.is_whole("usb");
        let report = test(&world, none(), &v4());
        assert!(report.findings.is_empty() && report.copies[0].arcs == arcs(&world), "{what}: {:?}", shown(&report));
    }
}

#[test]
fn what_was_there_and_is_gone_is_missing_and_what_was_never_sent_is_behind() {
    let world = World::new(&["usb", "nas"]);
    world.backup();
    fs::remove_file(world.path("usb/arc.0.2")).unwrap();
    // All notes may be lost: the commit that is there tells that it was.
    for lose in [false, true] {
        if lose {
            fs::remove_dir_all(world.path("b/copies")).unwrap();
        }
        let report = test(&world, none(), &v4());
        let [found] = &report.findings[..] else { panic!("{:?}", shown(&report)) };
        assert_eq!(
            (found.error.code(), found.at.as_deref(), found.cause),
            ("ARC_MISSING", Some("usb"), Cause::Missing)
        );
        let place = found.place.as_ref().unwrap();
        assert!(place.arc.to_string() == "arc.0.2" && found.remedy().contains("sync usb"));
        let copy = &report.copies[0];
        assert_eq!((copy.arcs, copy.missing, copy.damaged, copy.unproven), (arcs(&world) - 1, 1, 0, 0));
    }
    sync(&world.around(&world.dir(), none()), None).unwrap();
    world.is_whole("usb");
    // A whole run that never came, and half of an object of it.
    world.change();
    let full = || Fault::Fail(Trouble::Full("full".into()));
    world.backup_with(always("usb", Request::Put, "arc.1.2", full));
    fs::write(world.path("usb/arc.1.2"), "half").unwrap();
    let behind = arcs(&world) - world.arcs("usb").iter().filter(|name| *name != "arc.1.2").count() as u64;
    let report = test(&world, none(), &v4());
    let [found] = &report.findings[..] else { panic!("{:?}", shown(&report)) };
    assert_eq!(
        (found.error.code(), found.exit(), found.cause),
        ("DEST_BEHIND", Exit::FinishedWithErrors, Cause::Unchecked)
    );
    assert!(found.error.to_string().contains("arc.1."), "{}", found.error);
    let copy = &report.copies[0];
    assert_eq!((copy.arcs, copy.missing, copy.damaged, copy.unproven), (arcs(&world) - behind, 0, 0, behind));
    assert_eq!((report.copies[1].arcs, report.copies[1].unproven), (arcs(&world), 0));
}

#[test]
fn a_commit_that_is_wrong_or_gone_there_is_told() {
    let world = World::new(&["usb"]);
    world.backup();
    let path = world.path("usb/arc.0.0");
    let good = fs::read(&path).unwrap();
    for at in [10, good.len() / 2, good.len() - 5] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        replace(&path, &bad);
        let report = test(&world, none(), &v4());
        let [found] = &report.findings[..] else { panic!("{:?}", shown(&report)) };
        assert!(found.error.to_string().starts_with("arc.0.0 at usb: expected checksum "), "{}", found.error);
        assert_eq!(
            (found.exit(), report.copies[0].damaged, report.copies[0].arcs),
            (Exit::Damage, 1, arcs(&world) - 1)
        );
        // Where it is damaged here too, what there is says by itself that it is.
        let here = fs::read(world.path("b/arc.0.0")).unwrap();
        replace(&world.path("b/arc.0.0"), &bad);
        let report = test(&world, none(), &v4());
        let there = report.findings.iter().find(|finding| finding.at.as_deref() == Some("usb"));
        assert!(there.is_some_and(|found| found.exit() == Exit::Damage), "{:?}", shown(&report));
        assert_eq!(report.copies[0].arcs, arcs(&world) - 1);
        replace(&world.path("b/arc.0.0"), &here);
        sync(&world.around(&world.dir(), none()), None).unwrap();
        world.is_whole("usb");
    }
    // Nothing but the copy has it.
    fs::remove_file(world.path("b/arc.0.0")).unwrap();
    let report = test(&world, none(), &v4());
    assert_eq!((report.copies[0].arcs, report.copies[0].damaged), (arcs(&world) + 1, 0), "{:?}", shown(&report));
    fs::write(world.path("b/arc.0.0"), &good).unwrap();
    fs::remove_file(&path).unwrap();
    let report = test(&world, none(), &v4());
    let [found] = &report.findings[..] else { panic!("{:?}", shown(&report)) };
    assert_eq!((found.error.code(), report.copies[0].missing), ("ARC_MISSING", 1));
}

/// Nobody is called damaged for not answering, and nobody waits for one that does not.
#[test]
fn one_that_is_absent_or_goes_away_is_unknown_and_the_others_are_proven() {
    let absent = || Fault::Fail(Trouble::Absent("gone".into()));
    let reset = || Fault::Fail(Trouble::Failed("reset".into()));
    let dead = || Fault::Wait(Duration::from_secs(20));
    let denied = || Fault::Fail(Trouble::Denied("403".into()));
    let range = || Fault::Fail(Trouble::WrongRange { wanted: "a".into(), found: "b".into() });
    let gone: Rule = {
        let reads = AtomicUsize::new(0);
        Arc::new(move |dest, request, _| {
            let counts = dest == "usb" && request == Request::Read;
            (counts && reads.fetch_add(1, Ordering::Relaxed) > 6).then(reset)
        })
    };
    let cases: Vec<(&str, &str, Rule)> = vec![
        ("absent", "DEST_ABSENT", always("usb", Request::List, "", absent)),
        ("dead", "DEST_TIMED_OUT", always("usb", Request::List, "", dead)),
        ("denied", "DEST_DENIED", always("usb", Request::Read, "arc.0.2", denied)),
        ("wrong ranges", "DEST_WRONG_RANGE", always("usb", Request::Read, "arc.0.2", range)),
        ("a line that breaks for good", "DEST_FAILED", gone),
    ];
    for (what, code, rule) in cases {
        let world = World::new(&["usb", "nas"]);
        world.backup();
        let begun = Instant::now();
        let report = test(&world, rule, &v4());
        assert!(begun.elapsed() < Duration::from_secs(18), "{what}: {:?}", begun.elapsed());
        assert!(world.fired() > 0, "{what}");
        let [found] = &report.findings[..] else { panic!("{what}: {:?}", shown(&report)) };
        assert_eq!(
            (found.error.code(), found.at.as_deref(), found.exit()),
            (code, Some("usb"), Exit::FinishedWithErrors)
        );
        let (usb, nas) = (&report.copies[0], &report.copies[1]);
        assert_eq!((usb.damaged, usb.missing, usb.arcs + usb.unproven), (0, 0, arcs(&world)), "{what}: {usb:?}");
        assert!(usb.unproven > 0 && usb.trouble.is_some(), "{what}");
        assert_eq!((nas.arcs, nas.unproven), (arcs(&world), 0), "{what}");
        // No note went.
        assert!(states(&world, "usb").iter().all(|(_, state)| *state == Some(State::Proven)), "{what}");
    }
    // Where its failures don't count they are told all the same.
    let world = World::with(&["usb"], "onfail = \"ignore\"");
    world.backup();
    fs::rename(world.path("usb"), world.path("away")).unwrap();
    let report = test(&world, none(), &v4());
    assert!(report.findings.is_empty() && report.notes[0].contains("usb"), "{:?}", report.notes);
    assert_eq!(report.copies[0].trouble.as_ref().map(Error::code), Some("DEST_ABSENT"));
}

/// What came wrong once is told as that, and the arc is proven.
#[test]
fn a_flip_on_the_line_is_no_damage_of_the_copy() {
    let world = World::new(&["usb"]);
    world.backup();
    test(&world, none(), &v4());
    let is_meant = |request: Request, object: &str| {
        request == Request::Read && object.starts_with("arc.") && !object.ends_with(".0")
    };
    let reads = lock(&world.requests).iter().filter(|(_, request, object)| is_meant(*request, object)).count();
    assert!(reads > 6, "{reads}");
    for number in 0..reads {
        let left = AtomicUsize::new(number);
        let rule: Rule = Arc::new(move |_, request, object| {
            (is_meant(request, object) && left.fetch_sub(1, Ordering::Relaxed) == 0).then_some(Fault::Flip)
        });
        let report = test(&world, rule, &v4());
        assert_eq!(world.fired(), 1, "{number}");
        let [found] = &report.findings[..] else { panic!("{number}: {:?}", shown(&report)) };
        assert_eq!((found.cause, found.at.as_deref()), (Cause::Transient, Some("usb")), "{number}");
        assert_eq!((report.copies[0].arcs, report.copies[0].damaged), (arcs(&world), 0), "{number}");
        assert!(states(&world, "usb").iter().all(|(_, state)| *state == Some(State::Proven)));
    }
}

/// A bad place of a medium: what is around it is proven, and nobody waits for long.
#[test]
fn what_a_medium_can_not_read_is_damage_of_that_part() {
    let world = World::new(&["usb"]);
    world.backup();
    let bad = || Fault::Fail(Trouble::Failed("Input/output error".into()));
    let begun = Instant::now();
    let report = test(&world, always("usb", Request::Read, "arc.0.1", bad), &v4());
    assert!(world.fired() > 0 && begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(!report.findings.is_empty());
    for found in &report.findings {
        assert_eq!((found.error.code(), found.at.as_deref()), ("ARC_UNREADABLE", Some("usb")), "{:?}", shown(&report));
        assert_eq!(found.place.as_ref().unwrap().arc.to_string(), "arc.0.1");
    }
    let copy = &report.copies[0];
    assert_eq!((copy.arcs, copy.damaged, copy.unproven, &copy.trouble), (arcs(&world) - 1, 1, 0, &None));
    let unproven: Vec<_> =
        states(&world, "usb").into_iter().filter(|(_, state)| *state == Some(State::Failed)).collect();
    assert_eq!(unproven.len(), 1, "`dest sync` looks at it");
}

#[test]
fn a_sample_asks_for_its_blocks_and_no_more() {
    let world = World::new(&["usb"]);
    world.backup();
    for (count, seed) in [(1, None), (3, Some(7)), (3, Some(7))] {
        let options = Test { sample: Some(count), seed, ..v4() };
        let report = test(&world, none(), &options);
        assert!(report.findings.is_empty(), "{:?}", shown(&report));
        let copy = &report.copies[0];
        assert_eq!((copy.arcs, copy.unproven), (arcs(&world), 0));
        let reads = |name: &str| {
            let asked = lock(&world.requests);
            asked.iter().filter(|(_, request, object)| *request == Request::Read && object == name).count()
        };
        let rows = world.dir().open_index().unwrap().arcs().unwrap();
        let mut expected = 0;
        for row in &rows {
            let most = row.entry.frames.min(count) as usize;
            // Neighbours are asked for at once.
            let found = reads(&row.entry.name.to_string());
            assert!((1..=most).contains(&found), "{}: {found} of {most}", row.entry.name);
            expected += found;
        }
        assert_eq!(reads("DESTID") + reads("arc.0.0"), 2);
        assert!(copy.fetched_bytes < stored(&world, "usb") / 4, "{}", copy.fetched_bytes);
        assert_eq!(copy.fetched_bytes, world.given.load(Ordering::Relaxed));
        assert_eq!(seed.or(report.seed), report.seed);
        println!("{expected} reads, {} bytes, seed {:?}", copy.fetched_bytes, report.seed);
    }
    let by_seed = |seed| {
        let report = test(&world, none(), &Test { sample: Some(2), seed: Some(seed), ..v4() });
        report.copies[0].fetched_bytes
    };
    assert_eq!(by_seed(11), by_seed(11));
    // The last one always: what is cut shows.
    let path = world.path("usb/arc.0.1");
    let bytes = fs::read(&path).unwrap();
    replace(&path, &bytes[..bytes.len() - 20_000]);
    let report = test(&world, none(), &Test { sample: Some(2), ..v4() });
    assert_eq!(shown(&report).len(), 1, "{:?}", shown(&report));
    assert_eq!(report.findings[0].error.code(), "ARC_FRAME_TRUNCATED");
}

#[test]
fn a_download_limit_is_kept_and_what_was_proven_counts() {
    let world = World::with(&["usb"], "verify = \"trust\"");
    world.backup();
    let all = stored(&world, "usb");
    for limit in [1, 1000, all / 3, all - 1] {
        let report = test(&world, none(), &Test { download_limit: Some(limit), ..v4() });
        let [found] = &report.findings[..] else { panic!("{limit}: {:?}", shown(&report)) };
        assert_eq!((found.error.code(), found.exit()), ("DOWNLOAD_LIMIT", Exit::FinishedWithErrors), "{limit}");
        let given = world.given.load(Ordering::Relaxed);
        assert!(given <= limit && report.copies[0].fetched_bytes <= limit, "{given} of {limit}");
        assert!(report.copies[0].unproven > 0);
    }
    let report = test(&world, none(), &Test { download_limit: Some(all), ..v4() });
    assert!(report.findings.is_empty() && report.copies[0].arcs == arcs(&world), "{:?}", shown(&report));
}

/// Each run goes on where the last one ended, until all is proven, and `dest status` says so.
#[test]
fn incremental_runs_come_round_within_their_limit() {
    let world = World::with(&["usb"], "verify = \"trust\"");
    world.backup();
    let all = stored(&world, "usb");
    let limit = 1_300_000.min(all / 2);
    let options = Test { inc: Some("1d/1d".parse().unwrap()), download_limit: Some(limit), ..v4() };
    let mut rounds = 0;
    while states(&world, "usb").iter().any(|(_, state)| *state != Some(State::Proven)) {
        rounds += 1;
        assert!(rounds < 8, "{:?}", states(&world, "usb"));
        let report = test(&world, none(), &options);
        assert!(report.findings.is_empty(), "the plan keeps within it: {:?}", shown(&report));
        assert!(world.given.load(Ordering::Relaxed) <= limit);
        assert!(report.copies[0].arcs > 0);
        assert!(report.notes.iter().any(|note| note.contains("usb")), "{:?}", report.notes);
        // Proofs are told apart by seconds.
        std::thread::sleep(Duration::from_millis(1100));
    }
    assert!(rounds >= all.div_ceil(limit), "{rounds} for {all} bytes");
}
