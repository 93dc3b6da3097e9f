//! No good copy, and nothing that may be the best there is, goes by mistake.

use super::*;
use crate::ids::Version;
use crate::prune::{Mode, Protection, pack, versions};

fn none() -> Rule {
    Arc::new(|_, _, _| None)
}

fn flip(at: &std::path::Path) {
    let mut bytes = fs::read(at).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(at).unwrap();
    fs::write(at, bytes).unwrap();
}

/// A copy with one wrong byte is mostly good: it stays where nothing better is at hand.
#[test]
fn sync_removes_what_is_wrong_only_when_it_has_what_is_right() {
    let world = World::new(&["usb", "nas"]);
    world.backup();
    let good = fs::read(world.path("b/arc.0.1")).unwrap();
    for bad in ["usb/arc.0.1", "nas/arc.0.1"] {
        flip(&world.path(bad));
    }
    let around = world.around(&world.dir(), none());
    assert_eq!((verify(&around, "usb").unwrap().wrong, verify(&around, "nas").unwrap().wrong), (1, 1));
    let wrong = fs::read(world.path("usb/arc.0.1")).unwrap();
    for lost in [false, true] {
        if lost {
            fs::remove_file(world.path("b/arc.0.1")).unwrap()
        } else {
            flip(&world.path("b/arc.0.1"))
        }
        let reports = sync(&around, Some("usb")).unwrap();
        assert_eq!((reports[0].exit(), reports[0].behind, reports[0].sent), (Exit::Damage, 1, 0), "{reports:?}");
        assert!(fs::read(world.path("usb/arc.0.1")).unwrap() == wrong, "lost here: {lost}");
    }
    // One good copy anywhere is enough.
    fs::write(world.path("nas/arc.0.1"), &good).unwrap();
    let reports = sync(&around, Some("usb")).unwrap();
    assert_eq!((reports[0].behind, reports[0].sent), (0, 1), "{reports:?}");
    assert!(fs::read(world.path("usb/arc.0.1")).unwrap() == good);
}

#[test]
fn sync_puts_right_what_verify_found_wrong_where_nothing_is_compared_else() {
    let world = World::with(&["usb"], "verify = \"trust\"");
    world.backup();
    flip(&world.path("usb/arc.0.1"));
    let around = world.around(&world.dir(), none());
    assert_eq!(verify(&around, "usb").unwrap().wrong, 1);
    let reports = sync(&around, None).unwrap();
    assert_eq!((reports[0].exit(), reports[0].sent), (Exit::Ok, 1), "{reports:?}");
    world.is_whole("usb");
}

/// A note tells what was: the copy that is to be the last one is read.
#[test]
fn clear_believes_no_note() {
    let world = World::new(&["usb", "nas"]);
    world.backup();
    fs::remove_file(world.path("b/arc.0.1")).unwrap();
    flip(&world.path("nas/arc.0.1"));
    let dir = world.dir();
    let held = dir.lock().unwrap();
    let refused = clear(&world.around(&dir, none()), "usb", &held, &|_| panic!("nobody is asked")).unwrap_err();
    assert_eq!(refused.code(), "PROTECTED");
    assert_eq!(world.arcs("usb").len(), 5);
}

/// What a recovery went without may be good there, and nowhere else.
#[test]
fn clear_leaves_what_this_backup_dir_has_lost() {
    for lost in ["arc.0.1", "arc.1.0"] {
        let world = World::new(&["usb"]);
        for _ in 0..3 {
            world.backup();
            world.change();
        }
        let before = world.arcs("usb");
        fs::remove_file(world.path("b").join(lost)).unwrap();
        crate::recover::run(&world.dir(), crate::recover::OnLoss::Accept, world.ears.as_ref()).unwrap();
        let dir = world.dir();
        let held = dir.lock().unwrap();
        let refused = clear(&world.around(&dir, none()), "usb", &held, &|_| panic!("nobody is asked")).unwrap_err();
        assert_eq!(refused.code(), "PROTECTED", "{lost}");
        assert_eq!(world.arcs("usb"), before, "{lost}");
    }
}

/// A place that was put back to what it was is older than its notes: its newest commit still needs what was dropped.
#[test]
fn what_was_dropped_stays_where_the_commit_that_dropped_it_is_gone() {
    let world = World::new(&["usb"]);
    world.backup();
    let old = world.temp.path().join("old");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
        assert!(copied.unwrap().success());
    };
    copy(&world.path("usb"), &old);
    // All that the first run has saved goes, and its arcs with it.
    let first = fs::read_dir(world.source.path()).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(first).unwrap();
    world.change();
    world.backup();
    let dir = world.dir();
    let choose: &dyn Fn(&[_]) -> _ = &|all| Ok(versions::named(all, &[Version(0)].into()));
    let on_protected = versions::OnProtected::Refuse;
    let request = versions::Request { choose, protection: Protection::Off, on_protected, mode: Mode::Do };
    versions::remove(&dir, &request, world.ears.as_ref()).unwrap();
    let options = pack::Options { threshold: pack::DEFAULT_THRESHOLD, limit_bytes: None, mode: Mode::Do };
    pack::run(&dir, &options, world.ears.as_ref()).unwrap();
    assert!(send(&world.around(&dir, none())).unwrap()[0].behind == 0);
    assert!(!world.path("b/arc.0.1").exists(), "it was dropped");
    fs::remove_dir_all(world.path("usb")).unwrap();
    copy(&old, &world.path("usb"));
    // Nothing can be sent: as long as that is so the old backup there is whole.
    let reports = world.backup_with(always("usb", Request::Put, "arc.", || Fault::Fail(Trouble::Full("full".into()))));
    assert_eq!((reports[0].exit(), reports[0].removed), (Exit::FinishedWithErrors, 0), "{reports:?}");
    for arc in fs::read_dir(&old).unwrap() {
        assert!(world.path("usb").join(arc.unwrap().file_name()).exists());
    }
}

/// A bad place of a medium: it is found, told, and put right, and the rest is looked at all the same.
#[test]
fn what_a_medium_can_not_read_is_wrong_and_is_put_right() {
    let world = World::new(&["usb"]);
    world.backup();
    // As long as the file is the old one.
    let bad = world.path("usb/arc.0.1");
    let inode = |at: &std::path::Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(at).unwrap());
    let old = inode(&bad);
    let kept = fs::File::open(&bad).unwrap();
    let rule: Rule = Arc::new(move |_, request, object| {
        let hits = request == Request::Read && object == "arc.0.1" && bad.exists() && inode(&bad) == old;
        hits.then(|| Fault::Fail(Trouble::Failed("Input/output error".into())))
    });
    let around = world.around(&world.dir(), rule);
    let found = verify(&around, "usb").unwrap();
    assert_eq!((found.good, found.missing, found.wrong, found.unknown), (4, 0, 1, 0));
    assert_eq!(world.failures().last(), Some(&"DEST_CHECKSUM"));
    let reports = sync(&around, Some("usb")).unwrap();
    assert_eq!((reports[0].exit(), reports[0].sent, reports[0].behind), (Exit::Ok, 1, 0), "{reports:?}");
    world.is_whole("usb");
    drop(kept);
    // Where the place as a whole does not answer, nothing is called wrong.
    let dead = Arc::new(AtomicUsize::new(0));
    let asked = dead.clone();
    let rule: Rule = Arc::new(move |_, request, object| {
        let begun = object == "arc.0.1" || asked.load(Ordering::Relaxed) > 0;
        (request == Request::Read && begun).then(|| {
            asked.fetch_add(1, Ordering::Relaxed);
            Fault::Fail(Trouble::Failed("reset".into()))
        })
    });
    let error = verify(&world.around(&world.dir(), rule), "usb").unwrap_err();
    assert!(error.code() == "DEST_FAILED" && dead.load(Ordering::Relaxed) > 0, "{error}");
    let all = status(&around, Some("usb")).unwrap();
    assert!(all.iter().all(|one| one.copies.iter().any(|copy| copy.noted == Some(State::Proven))), "no note went");
}

/// A mount point without its disk is no new place either where dest.toml has called the disk otherwise since.
#[test]
fn a_place_with_a_new_name_is_absent_without_its_disk_and_not_unmarked() {
    let world = World::new(&["usb"]);
    world.backup();
    let text = fs::read_to_string(world.path("b/dest.toml")).unwrap();
    fs::write(world.path("b/dest.toml"), text.replace("\"usb\"\n", "\"stick\"\n")).unwrap();
    world.change();
    let reports = world.backup();
    assert_eq!((reports[0].name.as_str(), reports[0].exit()), ("stick", Exit::Ok), "{reports:?}");
    fs::rename(world.path("usb"), world.path("disk")).unwrap();
    fs::create_dir(world.path("usb")).unwrap();
    world.change();
    let reports = world.backup();
    assert_eq!(reports[0].trouble.as_ref().map(Error::code), Some("DEST_ABSENT"), "{reports:?}");
    let dir = world.dir();
    let (settings, mut known) = (dest::named(&dir, "stick").unwrap(), known(&dir).unwrap());
    let storage = dest::open(&dir, &settings, &variables).unwrap();
    let held = dir.lock().unwrap();
    let set = mark::set(storage.as_ref(), &settings, mark::Before::Absent, &dir, &held, &mut known);
    assert_eq!(set.unwrap_err().code(), "DEST_ABSENT");
    assert_eq!(fs::read_dir(world.path("usb")).unwrap().count(), 0);
}

/// One that has nothing yet is no source, and no reason to give up.
#[test]
fn sync_asks_the_next_one_where_one_does_not_have_it() {
    let world = World::new(&["new1", "new2", "nas"]);
    let refused = || Fault::Fail(Trouble::Refused("no".into()));
    let (one, two) = (always("new1", Request::Put, "arc.", refused), always("new2", Request::Put, "arc.", refused));
    world.backup_with(Arc::new(move |name, request, object| {
        one(name, request, object).or_else(|| two(name, request, object))
    }));
    let good = fs::read(world.path("nas/arc.0.2")).unwrap();
    assert!(!world.path("new2/arc.0.2").exists());
    fs::remove_file(world.path("b/arc.0.2")).unwrap();
    let around = world.around(&world.dir(), Arc::new(|_, _, _| None));
    let reports = sync(&around, Some("new1")).unwrap();
    assert_eq!((reports[0].exit(), reports[0].behind), (Exit::Damage, 0), "{reports:?}");
    assert!(fs::read(world.path("new1/arc.0.2")).unwrap() == good);
}
