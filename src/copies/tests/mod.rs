//! What is at a destination is compared with the backup dir's own files, byte by byte; faults are injected below the trait.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::backup::{self, Options};
use crate::backupdir::Config;
use crate::dest::faulty::{Fault, Faulty, Request};
use crate::dest::mark;
use crate::error::Trouble;
use crate::monitor::Progress;
use crate::testing::Rng;
use crate::testing::lab::{Source, scratch};

mod flight;
mod hedging;
mod keeping;
mod liars;
mod lines;
mod proving;
mod reading;
mod standing;

fn variables(name: &str) -> Option<String> {
    (name == "SECRET").then(|| crate::dest::tests::servers::SECRET.to_string())
}

type Rule = Arc<dyn Fn(&str, Request, &str) -> Option<Fault> + Send + Sync>;

#[derive(Default)]
struct Ears(Mutex<(Vec<String>, Vec<&'static str>)>);

impl Monitor for Ears {
    fn progress(&self, _: Progress) {}
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Warning { what, .. } => lock(&self.0).0.push(what),
            Event::Failure { error, .. } => {
                println!("told: {error}");
                lock(&self.0).1.push(error.code());
            }
            _ => {}
        }
    }
}

/// A backup dir with destinations in directories beside it.
struct World {
    temp: tempfile::TempDir,
    source: Source,
    rng: Mutex<Rng>,
    ears: Arc<Ears>,
    fired: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<(String, Request, String)>>>,
    /// Bytes that destinations have given.
    given: Arc<AtomicU64>,
}

impl World {
    fn new(names: &[&str]) -> World {
        World::with(names, "")
    }

    fn with(names: &[&str], more: &str) -> World {
        World::of(&|temp| {
            let table = |name: &&str| {
                let path = temp.join(name);
                fs::create_dir(&path).unwrap();
                let path = path.to_str().unwrap();
                format!("[[destination]]\nname = \"{name}\"\ntype = \"dir\"\npath = \"{path}\"\n{more}\n")
            };
            names.iter().map(table).collect()
        })
    }

    /// With this dest.toml; all places are marked.
    fn of(tables: &dyn Fn(&std::path::Path) -> String) -> World {
        let temp = scratch();
        let config = Config { arc_size_limit: 1 << 20, block_size: 16 << 10, ..Config::default() };
        BackupDir::init(&temp.path().join("b"), None, &config).unwrap();
        fs::write(temp.path().join("b/dest.toml"), tables(temp.path())).unwrap();
        let rng = Rng::from_env();
        println!("seed {}", rng.seed);
        let world = World {
            temp,
            source: Source::new(),
            rng: Mutex::new(rng),
            ears: Arc::default(),
            fired: Arc::default(),
            requests: Arc::default(),
            given: Arc::default(),
        };
        let dir = world.dir();
        for settings in dest::all(&dir).unwrap() {
            let storage = dest::open(&dir, &settings, &variables).unwrap();
            let mut known = Known::read(&dir).unwrap();
            let held = dir.lock().unwrap();
            mark::set(storage.as_ref(), &settings, mark::Before::Absent, &dir, &held, &mut known).unwrap();
        }
        world.change();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn dir(&self) -> BackupDir {
        self.dir_at("b")
    }

    fn dir_at(&self, name: &str) -> BackupDir {
        BackupDir::open(&self.path(name), &|_| None).unwrap()
    }

    /// Some more that is to be saved: three arcs.
    fn change(&self) {
        let mut rng = lock(&self.rng);
        let name = format!("f{}", rng.next());
        self.source.write(&name, &rng.noise((2 << 20) + 70_000));
    }

    fn around(&self, dir: &BackupDir, rule: Rule) -> Around {
        let (home, fired, requests) = (dir.clone(), self.fired.clone(), self.requests.clone());
        let given = self.given.clone();
        let open = move |settings: &Settings| {
            let (rule, fired, requests, name) = (rule.clone(), fired.clone(), requests.clone(), settings.name.clone());
            let rule = move |request, object: &str| {
                lock(&requests).push((name.clone(), request, object.to_string()));
                rule(&name, request, object).inspect(|_| {
                    fired.fetch_add(1, Ordering::Relaxed);
                })
            };
            let storage = dest::open(&home, settings, &variables)?;
            Ok(Box::new(Faulty::new(storage, rule).counting(given.clone())) as Box<dyn Storage>)
        };
        let mut around = Around::new(dir, Arc::new(open), self.ears.clone());
        let ms = Duration::from_millis;
        around.limits = Limits { retry: ms(1500), pauses: (ms(10), ms(100)), idle: ms(4000) };
        around
    }

    /// A backup with copies, in which these faults happen.
    fn backup_with(&self, rule: Rule) -> Vec<Report> {
        self.backup_at("b", rule)
    }

    fn backup_at(&self, at: &str, rule: Rule) -> Vec<Report> {
        lock(&self.requests).clear();
        self.fired.store(0, Ordering::Relaxed);
        *lock(&self.ears.0) = Default::default();
        let dir = self.dir_at(at);
        let sending = Sending::new(self.around(&dir, rule));
        let options = Options { paths: vec![self.source.path().to_path_buf()], ..Options::default() };
        backup::run_sending(&dir, &options, Some(&sending), self.ears.as_ref()).unwrap();
        sending.finish().unwrap()
    }

    fn backup(&self) -> Vec<Report> {
        self.backup_with(Arc::new(|_, _, _| None))
    }

    fn fired(&self) -> usize {
        self.fired.load(Ordering::Relaxed)
    }

    fn count(&self, name: &str, request: Request) -> usize {
        lock(&self.requests).iter().filter(|(of, asked, _)| of == name && *asked == request).count()
    }

    fn failures(&self) -> Vec<&'static str> {
        lock(&self.ears.0).1.clone()
    }

    fn arcs(&self, name: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("arc."))
            .collect();
        names.sort();
        names
    }

    /// The destination has the arcs of the backup dir, in the same bytes, and nothing else.
    #[track_caller]
    fn is_whole(&self, name: &str) {
        let arcs = self.arcs("b");
        assert_eq!(self.arcs(name), arcs, "{name}");
        for arc in arcs {
            let read = |dir: &str| fs::read(self.path(dir).join(&arc)).unwrap();
            assert!(read("b") == read(name), "{arc} at {name} has other bytes");
        }
    }
}

fn once(wanted: Request, part: &'static str, fault: impl Fn() -> Fault + Send + Sync + 'static) -> Rule {
    let left = AtomicUsize::new(1);
    Arc::new(move |_, request, object| {
        let hits = request == wanted && object.contains(part);
        (hits && left.swap(0, Ordering::Relaxed) == 1).then(&fault)
    })
}

fn always(
    name: &'static str,
    wanted: Request,
    part: &'static str,
    fault: impl Fn() -> Fault + Send + Sync + 'static,
) -> Rule {
    Arc::new(move |dest, request, object| (dest == name && request == wanted && object.contains(part)).then(&fault))
}

#[test]
fn all_destinations_get_all_arcs_and_each_is_proven() {
    let world = World::new(&["usb", "nas"]);
    let first = world.backup();
    for one in &first {
        assert_eq!((one.exit(), one.behind, one.sent, one.proven), (Exit::Ok, 0, 5, 5), "{one:?}");
        world.is_whole(&one.name);
    }
    // The second run sends what is new, lists once, and asks nothing else of what is old.
    world.change();
    let second = world.backup();
    assert!(second.iter().all(|one| one.exit() == Exit::Ok && one.sent == 5), "{second:?}");
    assert_eq!((world.count("usb", Request::Put), world.count("usb", Request::List)), (5, 1));
    let old = |(_, _, object): &&(String, Request, String)| object.starts_with("arc.0.");
    assert_eq!(lock(&world.requests).iter().filter(old).count(), 0);
    world.is_whole("usb");
    // Notes may be lost: what is there is proven again, and not sent again.
    fs::remove_dir_all(world.path("b/copies")).unwrap();
    world.change();
    let third = world.backup();
    assert!(third.iter().all(|one| one.exit() == Exit::Ok && (one.sent, one.proven) == (5, 15)), "{third:?}");
    // A commit comes after all that it needs.
    for name in ["usb", "nas"] {
        let asked = lock(&world.requests).clone();
        let puts: Vec<&String> = asked
            .iter()
            .filter(|(of, request, _)| of == name && *request == Request::Put)
            .map(|(.., object)| object)
            .collect();
        assert_eq!(puts.last().unwrap().as_str(), "arc.2.0");
    }
    let all = status(&world.around(&world.dir(), Arc::new(|_, _, _| None)), None).unwrap();
    assert_eq!(all.len(), 15);
    assert!(all.iter().all(
        |one| one.here.is_some() && one.copies.iter().filter(|copy| copy.noted == Some(State::Proven)).count() == 2
    ));
}

#[test]
fn what_goes_wrong_on_the_way_is_tried_again_and_never_counts() {
    let broken = || Trouble::Failed("reset".into());
    let cases: Vec<(&str, Rule)> = vec![
        ("reset before", once(Request::Put, "arc.", move || Fault::Fail(broken()))),
        ("answer lost", once(Request::Put, "arc.", move || Fault::FailAfter(broken()))),
        (
            "busy",
            once(Request::Put, "arc.", || Fault::Fail(Trouble::Busy { what: "slow".into(), retry_after_s: Some(1) })),
        ),
        ("flipped", once(Request::Put, "arc.0.2", || Fault::Flip)),
        ("cut short", once(Request::Put, "arc.0.1", || Fault::Shorten(1000))),
        ("flipped when read", once(Request::Read, "arc.0.1", || Fault::Flip)),
        ("commit flipped", once(Request::Put, "arc.0.0", || Fault::Flip)),
        ("list", once(Request::List, "", move || Fault::Fail(broken()))),
        (
            "wrong range",
            once(Request::Read, "arc.0.0", || {
                Fault::Fail(Trouble::WrongRange { wanted: "a".into(), found: "b".into() })
            }),
        ),
        ("denied once", once(Request::Put, "arc.", || Fault::Fail(Trouble::Denied("ExpiredToken".into())))),
        ("stat fails", once(Request::Stat, "arc.", move || Fault::Fail(broken()))),
        ("gone when read back", once(Request::Read, "arc.0.1", || Fault::Fail(Trouble::NotFound))),
        ("gone when looked for", once(Request::Stat, "arc.0.1", || Fault::Hide)),
    ];
    let gone_late = [Request::Stat, Request::Read].map(|then| {
        let (put, gone) = (
            once(Request::Put, "arc.0.1", move || Fault::FailAfter(broken())),
            once(then, "arc.0.1", move || match then {
                Request::Stat => Fault::Hide,
                _ => Fault::Fail(Trouble::NotFound),
            }),
        );
        let put_first = AtomicBool::new(false);
        let rule: Rule = Arc::new(move |name, request, object| {
            let first = put(name, request, object).inspect(|_| put_first.store(true, Ordering::Relaxed));
            first.or_else(|| put_first.load(Ordering::Relaxed).then(|| gone(name, request, object)).flatten())
        });
        ("what a cut put left is gone late", 2, rule)
    });
    for (what, fired, rule) in cases.into_iter().map(|(what, rule)| (what, 1, rule)).chain(gone_late) {
        let world = World::new(&["usb"]);
        let reports = world.backup_with(rule);
        assert_eq!(world.fired(), fired, "{what}");
        assert_eq!((reports[0].exit(), reports[0].behind), (Exit::Ok, 0), "{what}: {reports:?}");
        world.is_whole("usb");
    }
}

#[test]
fn a_place_that_changes_bytes_gets_no_commit_and_the_others_go_on() {
    let world = World::new(&["usb", "nas"]);
    let reports = world.backup_with(always("usb", Request::Put, "arc.0.1", || Fault::Flip));
    assert_eq!(world.fired(), 3, "it is sent three times");
    assert_eq!((reports[0].exit(), reports[1].exit()), (Exit::Damage, Exit::Ok), "{reports:?}");
    assert_eq!((reports[0].failed, reports[0].behind), (1, 2), "{reports:?}");
    assert_eq!(world.failures(), ["DEST_CHECKSUM"]);
    assert!(lock(&world.ears.0).0.iter().any(|what| what.starts_with("arc.0.1 at usb: expected checksum ")));
    assert!(!world.path("usb/arc.0.0").exists());
    world.is_whole("nas");
    // The next run puts it right: it was noted as being sent.
    world.change();
    let reports = world.backup();
    assert!(reports.iter().all(|one| one.exit() == Exit::Ok), "{reports:?}");
    world.is_whole("usb");
}

#[test]
fn one_that_is_absent_full_or_dead_holds_up_nobody_and_is_caught_up() {
    let full = || Fault::Fail(Trouble::Full("no space".into()));
    let dead = || Fault::Wait(Duration::from_secs(20));
    let refusing = || Fault::Fail(Trouble::Denied("403".into()));
    let busy = || Fault::Fail(Trouble::Busy { what: "503".into(), retry_after_s: Some(3600) });
    let cases: Vec<(&str, &str, Rule)> = vec![
        ("full", "DEST_FULL", always("usb", Request::Put, "arc.", full)),
        ("dead when listed", "DEST_TIMED_OUT", always("usb", Request::List, "", dead)),
        ("dead when sent to", "DEST_TIMED_OUT", always("usb", Request::Put, "arc.0.2", dead)),
        ("refusing", "DEST_DENIED", always("usb", Request::Put, "arc.", refusing)),
        ("busy for an hour", "DEST_BUSY", always("usb", Request::Put, "arc.0.0", busy)),
        ("gone", "DEST_ABSENT", always("usb", Request::List, "", || Fault::Fail(Trouble::Absent("gone".into())))),
    ];
    for (what, code, rule) in cases {
        let world = World::new(&["usb", "nas"]);
        let begun = Instant::now();
        let reports = world.backup_with(rule);
        assert!(begun.elapsed() < Duration::from_secs(18), "{what}: {:?}", begun.elapsed());
        assert!(world.fired() > 0, "{what}");
        let code_found = reports[0].trouble.as_ref().map(Error::code);
        assert_eq!((code_found, reports[0].exit()), (Some(code), Exit::FinishedWithErrors), "{what}: {reports:?}");
        assert!(reports[0].behind > 0, "{what}: {reports:?}");
        assert_eq!(reports[1].exit(), Exit::Ok, "{what}: {reports:?}");
        world.is_whole("nas");
        assert!(!world.path("usb/arc.0.0").exists(), "{what}");
        if what.starts_with("dead") {
            // Its thread still holds the notes: as with another process, that is told.
            let reports = world.backup();
            assert_eq!(reports[0].trouble.as_ref().map(Error::code), Some("DEST_IN_USE"), "{what}");
            continue;
        }
        world.change();
        let reports = world.backup();
        assert!(reports.iter().all(|one| one.exit() == Exit::Ok), "{what}: {reports:?}");
        world.is_whole("usb");
    }
}

#[test]
fn a_stale_listing_makes_nothing_missing() {
    let world = World::new(&["usb"]);
    world.backup();
    world.change();
    let reports = world.backup_with(always("usb", Request::List, "", || Fault::Hide));
    assert_eq!((world.fired(), world.count("usb", Request::Put)), (1, 5), "what was there is not sent again");
    assert_eq!(reports[0].exit(), Exit::Ok, "{reports:?}");
    world.is_whole("usb");
    // What is really gone is told, and sent again.
    fs::remove_file(world.path("usb/arc.0.1")).unwrap();
    world.change();
    let reports = world.backup();
    assert_eq!((reports[0].exit(), reports[0].sent), (Exit::Ok, 6), "{reports:?}");
    assert!(lock(&world.ears.0).0.iter().any(|what| what.contains("arc.0.1 was at usb and is gone")));
    world.is_whole("usb");
}

#[test]
fn damage_here_is_never_sent_and_sync_takes_another_copy() {
    let world = World::new(&["usb", "nas"]);
    world.backup_with(always("nas", Request::Put, "arc.0.2", || Fault::Fail(Trouble::Refused("no".into()))));
    let good = fs::read(world.path("b/arc.0.2")).unwrap();
    assert!(!world.path("nas/arc.0.2").exists() && !world.path("nas/arc.0.0").exists());
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    let at = world.path("b/arc.0.2");
    fs::remove_file(&at).unwrap();
    fs::write(&at, bad).unwrap();
    world.change();
    let reports = world.backup();
    assert_eq!((reports[0].exit(), reports[1].exit()), (Exit::Ok, Exit::Damage), "{reports:?}");
    assert!(world.failures().contains(&"ARC_CHECKSUM"), "{:?}", world.failures());
    assert!(!world.path("nas/arc.0.2").exists(), "nothing that is not proven is sent");
    assert!(!world.path("nas/arc.1.0").exists(), "nor a commit that needs it");
    let around = world.around(&world.dir(), Arc::new(|_, _, _| None));
    let reports = sync(&around, Some("nas")).unwrap();
    assert_eq!((reports.len(), reports[0].exit(), reports[0].behind), (1, Exit::Damage, 0), "{reports:?}");
    assert!(fs::read(world.path("nas/arc.0.2")).unwrap() == good);
    assert!(world.path("nas/arc.1.0").exists() && world.path("nas/arc.0.0").exists());
}

#[test]
fn a_commit_that_is_damaged_here_comes_from_a_copy_that_is_proven() {
    let world = World::new(&["usb", "nas", "bad"]);
    let refused = || Fault::Fail(Trouble::Refused("no".into()));
    world.backup_with(always("nas", Request::Put, "arc.0.0", refused));
    let good = fs::read(world.path("b/arc.0.0")).unwrap();
    for copy in ["b", "bad"] {
        let at = world.path(copy).join("arc.0.0");
        let mut bytes = good.clone();
        bytes[300] ^= 1;
        fs::remove_file(&at).unwrap();
        fs::write(&at, bytes).unwrap();
    }
    let around = world.around(&world.dir(), Arc::new(|_, _, _| None));
    let reports = sync(&around, Some("nas")).unwrap();
    assert_eq!((reports[0].exit(), reports[0].behind, reports[0].sent), (Exit::Damage, 0, 1), "{reports:?}");
    assert!(fs::read(world.path("nas/arc.0.0")).unwrap() == good);
    // A copy of a commit is proven by itself where there is nothing here to compare it with.
    assert_eq!(verify(&around, "usb").unwrap().good, 5);
    let found = verify(&around, "bad").unwrap();
    assert_eq!((found.good, found.unknown), (4, 1));
}

#[test]
fn verify_finds_what_is_wrong_there_and_sync_puts_it_right() {
    let world = World::new(&["usb"]);
    world.backup();
    let around = world.around(&world.dir(), Arc::new(|_, _, _| None));
    let found = verify(&around, "usb").unwrap();
    assert_eq!((found.good, found.missing, found.wrong, found.unknown), (5, 0, 0, 0));
    let change = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(world.path(name)).unwrap();
        change(&mut bytes);
        fs::write(world.path(name), bytes).unwrap();
    };
    change("usb/arc.0.1", &|bytes| bytes[5000] ^= 1);
    change("usb/arc.0.2", &|bytes| bytes.push(0));
    change("usb/arc.0.0", &|bytes| bytes[200] ^= 1);
    fs::remove_file(world.path("usb/arc.0.3")).unwrap();
    let found = verify(&around, "usb").unwrap();
    assert_eq!((found.good, found.missing, found.wrong, found.unknown), (1, 1, 3, 0));
    let reports = sync(&around, None).unwrap();
    assert_eq!((reports[0].exit(), reports[0].sent), (Exit::Ok, 4), "{reports:?}");
    world.is_whole("usb");
    assert_eq!(verify(&around, "usb").unwrap().good, 5);
}

#[test]
fn another_history_is_found_out_before_anything_is_sent() {
    let world = World::new(&["usb"]);
    world.backup();
    let copied = std::process::Command::new("cp").arg("-a").arg(world.path("b")).arg(world.path("twin")).status();
    assert!(copied.unwrap().success());
    world.change();
    world.backup();
    world.is_whole("usb");
    let before = world.arcs("usb");
    // The copy of the backup dir makes a run of the same number.
    world.change();
    let reports = world.backup_at("twin", Arc::new(|_, _, _| None));
    assert_eq!(reports[0].trouble.as_ref().map(Error::code), Some("DEST_DIVERGED"), "{reports:?}");
    assert_eq!(reports[0].exit(), Exit::FinishedWithErrors);
    assert_eq!((world.count("usb", Request::Put), world.count("usb", Request::Remove)), (0, 0));
    assert_eq!(world.arcs("usb"), before);
    // A later one of the copy too, and with runs above those that are there.
    for _ in 0..2 {
        world.change();
        let reports = world.backup_at("twin", Arc::new(|_, _, _| None));
        assert_eq!(reports[0].trouble.as_ref().map(Error::code), Some("DEST_DIVERGED"), "{reports:?}");
    }
    assert_eq!(world.arcs("usb"), before);
    // The right one goes on.
    world.change();
    assert_eq!(world.backup()[0].exit(), Exit::Ok);
    world.is_whole("usb");
}

/// An index that a recovery had to make without some runs takes what it does not know for nobody's leftovers.
#[test]
fn what_a_recovery_could_not_read_is_left_alone_there() {
    let world = World::new(&["usb"]);
    for _ in 0..3 {
        world.backup();
        world.change();
    }
    let before = world.arcs("usb");
    fs::remove_file(world.path("b/arc.1.0")).unwrap();
    crate::recover::run(&world.dir(), crate::recover::OnLoss::Accept, world.ears.as_ref()).unwrap();
    for _ in 0..2 {
        let reports = world.backup();
        assert_eq!((reports[0].exit(), reports[0].behind, reports[0].removed), (Exit::Ok, 0, 0), "{reports:?}");
        world.change();
    }
    let after = world.arcs("usb");
    assert!(before.iter().all(|arc| after.contains(arc)) && after.len() > before.len(), "{after:?}");
    let newest = world.dir().open_index().unwrap().state().unwrap().last_commit.unwrap().0;
    assert!(after.contains(&arcs::commit_arc(newest).to_string()));
}

/// A run that failed, or was killed, and what it has sent: the next one takes it up, or takes it away.
#[test]
fn what_a_cut_run_has_sent_is_used_or_removed() {
    let world = World::new(&["usb"]);
    world.backup();
    // Three whole arcs of blocks of a run that is cut: two are sent, and a catalog that nobody will ever name.
    let dir = world.dir();
    let held = dir.lock().unwrap();
    let sending = Sending::new(world.around(&dir, Arc::new(|_, _, _| None)));
    let reserved = crate::run::Run::begin(&dir, &held, &crate::monitor::Silent).unwrap().reserve().unwrap();
    let cut = reserved.number();
    sending.begin();
    let noise = lock(&world.rng).noise(3 << 20);
    reserved.cut(|out| {
        out.sending = Some(&sending);
        for block in noise.chunks(16 << 10) {
            let hash = crate::arc::BlockInfo::of(dir.keys(), block).hash;
            out.block(block.to_vec(), hash).unwrap();
        }
        out.flush().unwrap();
    });
    let reports = sending.finish().unwrap();
    assert_eq!((reports[0].behind, reports[0].exit()), (0, Exit::Ok), "{reports:?}");
    drop(held);
    let of_cut =
        |place: &str| world.arcs(place).iter().filter(|arc| arc.starts_with(&format!("arc.{}.", cut.0))).count();
    let sent = of_cut("usb");
    assert!(sent >= 2, "{sent}");
    // One of them is lost here before the next run: there it is nobody's any more.
    fs::remove_file(world.path(&format!("b/arc.{}.1", cut.0))).unwrap();
    world.change();
    // A place that does not let us delete keeps it, and that is no failure.
    let reports =
        world.backup_with(always("usb", Request::Remove, "arc.", || Fault::Fail(Trouble::Denied("403".into()))));
    assert_eq!((reports[0].exit(), reports[0].behind, reports[0].removed), (Exit::Ok, 0, 0), "{reports:?}");
    assert!(world.fired() > 0 && lock(&world.ears.0).0.iter().any(|what| what.contains("does not let us delete")));
    assert!(world.arcs("usb").contains(&format!("arc.{}.1", cut.0)));
    world.change();
    let reports = world.backup();
    assert_eq!(reports[0].exit(), Exit::Ok, "{reports:?}");
    world.change();
    world.backup();
    world.is_whole("usb");
}

#[test]
fn as_many_requests_are_in_flight_as_the_table_says() {
    // Half of them send where what is sent is read back.
    for (workers, verify, sends) in [(1, "read", 1), (3, "read", 2), (3, "trust", 3)] {
        let world = World::with(&["usb"], &format!("workers = {workers}\nverify = \"{verify}\""));
        (0..2).for_each(|_| world.change());
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (current, highest) = (now.clone(), most.clone());
        let reports = world.backup_with(Arc::new(move |_, request, _| {
            if request == Request::Put {
                highest.fetch_max(current.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(400));
                current.fetch_sub(1, Ordering::SeqCst);
            }
            None
        }));
        assert_eq!((reports[0].exit(), most.load(Ordering::SeqCst)), (Exit::Ok, sends), "{reports:?}");
        assert_eq!(now.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn where_nothing_is_compared_it_is_said() {
    let world = World::with(&["usb"], "verify = \"trust\"\nworkers = 1");
    let reports = world.backup();
    assert_eq!((reports[0].exit(), reports[0].proven, reports[0].unverified), (Exit::Ok, 0, 5), "{reports:?}");
    assert_eq!(world.count("usb", Request::Read), 1, "but for DESTID");
    let around = world.around(&world.dir(), Arc::new(|_, _, _| None));
    let all = status(&around, Some("usb")).unwrap();
    assert!(all.iter().all(|one| one.copies[0].noted == Some(State::Unverified)));
    verify(&around, "usb").unwrap();
    let all = status(&around, Some("usb")).unwrap();
    assert!(all.iter().all(|one| one.copies[0].noted == Some(State::Proven)));
}

#[test]
fn clear_never_takes_a_last_copy() {
    let world = World::new(&["usb", "nas"]);
    world.backup();
    let dir = world.dir();
    let held = dir.lock().unwrap();
    let around = world.around(&dir, Arc::new(|_, _, _| None));
    let at = world.path("b/arc.0.1");
    let good = fs::read(&at).unwrap();
    fs::remove_file(&at).unwrap();
    // It is at the other destination, as far as is noted; but not in truth.
    fs::remove_file(world.path("nas/arc.0.1")).unwrap();
    let refused = clear(&around, "usb", &held, &|_| panic!("nobody is asked")).unwrap_err();
    assert_eq!(refused.code(), "PROTECTED");
    assert_eq!(world.arcs("usb").len(), 5);
    fs::write(world.path("nas/arc.0.1"), &good).unwrap();
    assert_eq!(clear(&around, "usb", &held, &|_| Ok(false)), Ok(None));
    assert_eq!(world.arcs("usb").len(), 5);
    let cleared = clear(&around, "usb", &held, &|objects| Ok(objects == 5)).unwrap().unwrap();
    assert_eq!((cleared.removed, cleared.kept, world.arcs("usb").len()), (5, 0, 0));
    assert!(world.path("usb/DESTID").exists());
    // Now the other one has the last copy.
    assert_eq!(clear(&around, "nas", &held, &|_| Ok(true)).unwrap_err().code(), "PROTECTED");
    drop(held);
    // What is lost here is told, and sent from nowhere; sync has the other copy for it.
    let reports = sync(&around, Some("usb")).unwrap();
    assert_eq!((reports[0].behind, world.arcs("usb").len()), (0, 5), "{reports:?}");
}
