//! File data that only destinations keep (`cache-size-limit`): what is read from there is compared with the source tree.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::copies::{arcs_at, lab, setid};
use crate::far::new_machine;
use crate::support::arcfile::{arc_names, data_arcs, rewrite};
use crate::support::mount::Mount;
use crate::support::rng::Rng;
use crate::support::{Lab, NONE, names_in, oracle};

fn limit(lab: &Lab, text: &str) {
    let path = lab.repo().join("config.toml");
    let kept: String = fs::read_to_string(&path)
        .expect("read")
        .lines()
        .filter(|line| !line.starts_with("cache-size-limit"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&path, format!("{kept}cache-size-limit = {text}\n")).expect("write");
}

/// Three arcs, wherever its blocks are cut.
fn noise(lab: &Lab, rng: &mut Rng, name: &str) {
    lab.write(name, &rng.bytes(2_700_000));
}

fn read_all_of(lab: &Lab, repo: &Path) {
    let mount = Mount::start(lab, repo, NONE);
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    mount.end().ok();
}

#[test]
fn what_every_destination_has_need_not_stay_here() {
    let mut rng = Rng::from_env("kept");
    let lab = lab(&[("usb", ""), ("nas", "")]);
    setid(&lab, "usb");
    setid(&lab, "nas");
    limit(&lab, "0");
    noise(&lab, &mut rng, "one");
    // While one of them is not there, everything stays.
    fs::rename(lab.path("nas"), lab.path("unplugged")).expect("rename");
    let absent = lab.assay("backup", NONE).arg(lab.src()).run().code(3);
    assert!(absent.out().contains("Here      3 arcs"), "{}", absent.out());
    assert_eq!(data_arcs(&lab.repo()).len(), 3);
    fs::rename(lab.path("unplugged"), lab.path("nas")).expect("rename");
    let done = lab.assay("backup", ["--json"]).arg(lab.src()).ok().json();
    assert_eq!((&done["kept"]["arcs"], &done["kept"]["away_arcs"]), (&0.into(), &3.into()), "{done}");
    let data = |names: &[Vec<u8>]| names.iter().filter(|name| name.starts_with(b"arc.0.")).count();
    assert_eq!(data(&names_in(&lab.repo())), 2, "a commit and a catalog");

    // Everything goes on as before.
    read_all_of(&lab, &lab.repo());
    for level in ["-v2", "-v3"] {
        let tested = lab.assay("selftest", [level]).ok();
        assert!(level != "-v3" || tested.out().contains("not read: 3 arcs"), "{}", tested.out());
    }
    lab.assay("selftest", ["-v5"]).ok();
    let status = lab.assay("dest", ["status"]).ok();
    assert_eq!(status.out().matches("not here").count(), 3, "{}", status.out());
    fs::copy(lab.src().join("one"), lab.src().join("again")).expect("copy");
    let again = lab.assay("backup", ["--json"]).arg(lab.src()).ok().json();
    assert_eq!(again["blocks_new"], 0, "{again}");
    lab.assay("get", ["--to"]).arg(lab.path("got")).arg(lab.src()).ok();
    oracle::rsync_clean(&lab.src(), &crate::atomicity::restored(&lab.path("got"), &lab.src()));

    // One copy is wrong, one destination is away: the other one serves.
    let lost = arcs_at(&lab.path("usb")).into_iter().find(|name| name == "arc.0.1").expect("an arc");
    fs::remove_file(lab.path("usb").join(&lost)).expect("remove");
    read_all_of(&lab, &lab.repo());
    fs::rename(lab.path("usb"), lab.path("unplugged")).expect("rename");
    read_all_of(&lab, &lab.repo());
    // With none of them nothing is damaged: it can't be read, and is told so.
    fs::rename(lab.path("nas"), lab.path("unplugged-nas")).expect("rename");
    let none = lab.assay("get", ["--to"]).arg(lab.path("nothing")).arg(lab.src().join("one")).run().code(1);
    assert!(none.err().contains("DEST_ABSENT") && !none.err().contains("ARC_MISSING"), "{}", none.err());
    lab.assay("selftest", ["-v3"]).ok();
    fs::rename(lab.path("unplugged-nas"), lab.path("nas")).expect("rename");
    fs::rename(lab.path("unplugged"), lab.path("usb")).expect("rename");

    // A copy is completed from the other one, though nothing is here.
    lab.assay("dest", ["sync"]).ok();
    assert!(lab.path("usb").join(&lost).exists());
    lab.assay("dest", ["verify", "usb"]).ok();
    // What nobody noted as kept elsewhere is missing.
    let here =
        arc_names(&lab.repo()).into_iter().find(|name| name == "arc.2.1" || name == "arc.1.1").expect("a catalog");
    let aside = lab.path("aside");
    fs::rename(lab.repo().join(&here), &aside).expect("rename");
    let missing = lab.assay("selftest", ["-v2"]).run().code(4);
    assert!(missing.text().contains(&here), "{}", missing.text());
    fs::rename(&aside, lab.repo().join(&here)).expect("rename");

    // Nor is anything known to be elsewhere when the note itself is lost; the remedy that is told makes it anew.
    fs::remove_file(lab.repo().join("copies/away")).expect("remove");
    let lost = lab.assay("get", ["--to"]).arg(lab.path("nothing")).arg(lab.src().join("one")).run().code(4);
    assert!(lost.out().contains("the arc is missing; read from usb"), "{}", lost.text());
    let tested = lab.assay("selftest", ["-v2"]).run().code(4);
    assert!(tested.text().contains("recover --from NAME"), "{}", tested.text());
    lab.assay("recover", ["--from", "usb"]).ok();
    lab.assay("selftest", ["-v5"]).ok();
    read_all_of(&lab, &lab.repo());

    // All of it comes back, each proven, when it is to stay here.
    limit(&lab, "-1");
    lab.assay("dest", ["sync"]).ok();
    assert_eq!(data_arcs(&lab.repo()).len(), 3);
    fs::rename(lab.path("usb"), lab.path("unplugged")).expect("rename");
    fs::rename(lab.path("nas"), lab.path("unplugged-nas")).expect("rename");
    let tested = lab.assay("selftest", ["-v3"]).ok();
    assert!(!tested.out().contains("not read"), "{}", tested.out());
    read_all_of(&lab, &lab.repo());
}

/// A copy of which nothing is here is no source of its own: the last one can't be cleared, nor be replaced by itself.
#[test]
fn the_last_copy_is_not_taken_for_one_that_is_here() {
    let mut rng = Rng::from_env("last copy");
    let lab = lab(&[("usb", ""), ("nas", "off = true")]);
    setid(&lab, "usb");
    setid(&lab, "nas");
    limit(&lab, "0");
    noise(&lab, &mut rng, "one");
    lab.assay("backup", NONE).arg(lab.src()).ok();
    let before = arcs_at(&lab.path("usb"));
    let refused = lab.assay("dest", ["clear", "usb", "--yes"]).run();
    assert!(refused.err().contains("PROTECTED") && refused.err().contains("arc.0.1"), "{}", refused.err());
    assert_eq!(arcs_at(&lab.path("usb")), before);
    // A new destination gets from here what is here, and is told how to get the rest.
    let path = lab.repo().join("dest.toml");
    fs::write(&path, fs::read_to_string(&path).expect("read").replace("off = true", "")).expect("write");
    let behind = lab.assay("backup", NONE).arg(lab.src()).run().code(3);
    assert!(behind.err().contains("ARC_AWAY") && behind.err().contains("dest sync"), "{}", behind.err());
    assert!(!behind.err().contains("ARC_MISSING"), "{}", behind.err());
    lab.assay("dest", ["sync"]).ok();
    lab.assay("dest", ["verify", "nas"]).ok();
    // One that is wrong is replaced by the other one, and stays as it is where that is wrong too.
    let spoil = |name: &str| rewrite(&lab.path(name).join("arc.0.1"), |bytes| bytes[70_000] ^= 1);
    spoil("usb");
    lab.assay("dest", ["verify", "usb"]).run().code(4);
    lab.assay("dest", ["sync"]).run();
    lab.assay("dest", ["verify", "usb"]).ok();
    spoil("usb");
    spoil("nas");
    lab.assay("dest", ["verify", "usb"]).run().code(4);
    lab.assay("dest", ["sync"]).run().code(4);
    assert!(lab.path("usb").join("arc.0.1").exists(), "most of it is good");
    let cleared = lab.assay("dest", ["clear", "nas", "--yes"]).run();
    assert!(cleared.err().contains("PROTECTED"), "{}", cleared.err());
}

/// The newest stay, as far as there is room, and what a mount has open turns into what destinations have.
#[test]
fn a_running_mount_does_not_notice_that_arcs_go() {
    let mut rng = Rng::from_env("going");
    let lab = lab(&[("usb", "")]);
    setid(&lab, "usb");
    for name in ["one", "two"] {
        noise(&lab, &mut rng, name);
        lab.assay("backup", NONE).arg(lab.src()).ok();
    }
    let mount = Mount::start(&lab, &lab.repo(), ["--direct"]);
    let shown = mount.latest(&lab.src());
    oracle::rsync_clean(&lab.src(), &shown);
    limit(&lab, "\"2660k\"");
    noise(&lab, &mut rng, "three");
    let done = lab.assay("backup", ["--json"]).arg(lab.src()).ok().json();
    assert!(done["kept"]["gone_arcs"].as_u64().is_some_and(|gone| gone >= 4), "{done}");
    let stayed = data_arcs(&lab.repo());
    assert!(stayed.iter().all(|path| path.to_string_lossy().contains("arc.2.")), "{stayed:?}");
    std::thread::sleep(Duration::from_millis(1100));
    for name in ["one", "two"] {
        assert_eq!(fs::read(shown.join(name)).expect("read"), fs::read(lab.src().join(name)).expect("read"));
    }
    // Removing and packing take no arc for lost that is away.
    fs::remove_file(lab.src().join("one")).expect("remove");
    lab.assay("backup", NONE).arg(lab.src()).ok();
    lab.assay("rm", ["--force", "-r", "0", "-r", "1", "-r", "2"]).run();
    lab.assay("pack", NONE).ok();
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    mount.end().ok();
    lab.assay("selftest", ["-v5"]).ok();
}

/// A copy that is damaged at the only destination is damage, with its place.
#[test]
fn damage_of_what_only_a_destination_has_is_told_as_such() {
    let mut rng = Rng::from_env("damaged far");
    let lab = lab(&[("usb", "")]);
    setid(&lab, "usb");
    limit(&lab, "0");
    noise(&lab, &mut rng, "one");
    lab.assay("backup", NONE).arg(lab.src()).ok();
    let at = lab.path("usb").join("arc.0.2");
    let place = 100_000 + rng.below(600_000) as usize;
    println!("arc.0.2 at {place}");
    rewrite(&at, |bytes| bytes[place..place + 40].iter_mut().for_each(|byte| *byte ^= 0x5a));
    let got = lab.assay("get", ["--to"]).arg(lab.path("got")).arg(lab.src()).run().code(4);
    assert!(got.text().contains("arc.0.2"), "{}", got.text());
    let damaged = fs::read(lab.path("got").join("src").join("one.damaged")).expect("read");
    let original = fs::read(lab.src().join("one")).expect("read");
    assert_eq!(damaged.len(), original.len());
    let differing = damaged.iter().zip(&original).filter(|(a, b)| a != b);
    assert!(
        differing.clone().count() > 0 && differing.clone().all(|(found, _)| *found == 0),
        "no wrong byte is given out"
    );
}

/// Threads that ask destinations are never waited for at the end: nothing may be torn down beneath them.
#[test]
fn the_end_of_the_program_is_no_crash() {
    let mut rng = Rng::from_env("end");
    let lab = lab(&[("usb", "")]);
    setid(&lab, "usb");
    limit(&lab, "0");
    lab.write("small", &rng.bytes(300_000));
    lab.assay("backup", NONE).arg(lab.src()).ok();
    for round in 0..25 {
        lab.assay("get", ["--to"]).arg(lab.path(&format!("got{round}"))).arg(lab.src()).ok();
    }
}

#[test]
fn a_machine_with_nothing_but_the_key_mounts_a_destination_and_follows_it() {
    let mut rng = Rng::from_env("follow");
    let lab = lab(&[("usb", "")]);
    setid(&lab, "usb");
    noise(&lab, &mut rng, "one");
    lab.assay("backup", NONE).arg(lab.src()).ok();
    let (new, cache) = (new_machine(&lab, "new"), lab.path("cache"));
    let from = ["--from", "usb", "--cache-dir", cache.to_str().expect("UTF-8"), "--follow", "1"];
    let planned = lab.assay_on(&new, "mount", &from[..4]).args(["--json", "--plan"]).arg(lab.src()).ok().json();
    assert_eq!((&planned["files"], &planned["far_arcs"]), (&1.into(), &3.into()), "{planned}");
    assert!(planned["bytes"].as_u64().is_some_and(|bytes| (2_700_000..2_900_000).contains(&bytes)), "{planned}");
    let left = |names: Vec<Vec<u8>>| names.into_iter().filter(|name| name != b"logs").count();
    assert_eq!(left(names_in(&new)), 2, "nothing is made where the key is: {:?}", names_in(&new));

    // No more is fetched than may be, and what fails is told.
    let out = lab.path("limited");
    let limited =
        lab.assay_on(&new, "get", &from[..4]).args(["--download-limit", "1M", "--to"]).arg(&out).arg(lab.src());
    let limited = limited.run().code(3);
    assert!(limited.err().contains("DOWNLOAD_LIMIT: ") && limited.err().contains("1048576"), "{}", limited.err());
    assert!(!out.join("src").join("one").exists(), "half a file has no name");

    let mount = Mount::start(&lab, &new, from);
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    // The other machine goes on.
    lab.write("two", b"of another machine");
    lab.assay("backup", NONE).arg(lab.src()).ok();
    let until = Instant::now() + Duration::from_secs(30);
    let two = || mount.latest(&lab.src()).join("two");
    while !two().exists() {
        assert!(Instant::now() < until, "the new version does not appear: {}", mount.err());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(fs::read(two()).expect("read"), b"of another machine");
    let folder = mount.folder(0);
    lab.assay("rm", ["-r", "0"]).ok();
    lab.assay("pack", NONE).ok();
    while names_in(&lab.mnt()).iter().any(|name| name == folder.as_bytes()) {
        assert!(Instant::now() < until, "the removed version stays: {}", mount.err());
        std::thread::sleep(Duration::from_millis(200));
    }
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    let ended = mount.end().ok();
    assert!(ended.err().contains("fetched   ") && ended.err().contains("from usb"), "{}", ended.err());

    // The index is there, and no more is read of it; one that is of no use is made anew.
    let again = lab.assay_on(&new, "get", &from[..4]).arg("--to").arg(lab.path("got")).arg(lab.src()).ok();
    assert!(!again.err().contains("requests"), "{}", again.err());
    oracle::rsync_clean(&lab.src(), &crate::atomicity::restored(&lab.path("got"), &lab.src()));
    let mirror = fs::read_dir(&cache).expect("list").next().expect("a mirror").expect("list").path();
    rewrite(&mirror.join("index.db"), |bytes| bytes.iter_mut().take(9000).for_each(|byte| *byte ^= 0x55));
    let mount = Mount::start(&lab, &new, &from[..4]);
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    mount.end().ok();
    assert_eq!(left(names_in(&new)), 2, "nothing is made where the key is: {:?}", names_in(&new));
}

/// What only destinations keep is not missing because none is used: nobody asked them.
#[test]
fn what_is_at_destinations_that_are_off_is_not_lost() {
    let mut rng = Rng::from_env("off");
    let lab = lab(&[("usb", "")]);
    setid(&lab, "usb");
    limit(&lab, "0");
    noise(&lab, &mut rng, "one");
    lab.assay("backup", NONE).arg(lab.src()).ok();
    let path = lab.repo().join("dest.toml");
    let named = fs::read_to_string(&path).expect("read");
    for (step, text) in ["", &format!("{named}off = true\n")].into_iter().enumerate() {
        fs::write(&path, text).expect("write");
        let got = lab.assay("get", ["--to"]).arg(lab.path(&format!("got{step}"))).arg(lab.src()).run().code(3);
        assert!(got.text().contains("ARC_AWAY") && !got.text().contains("ARC_MISSING"), "{}", got.text());
        let tested = lab.assay("selftest", ["-v5"]).run().code(3);
        assert!(tested.text().contains("ARC_AWAY") && !tested.text().contains("ARC_MISSING"), "{}", tested.text());
    }
    fs::write(&path, named).expect("write");
    lab.assay("selftest", ["-v5"]).ok();
}

/// The only place that had it is gone for good, and a new one has its name: that is loss, is told, and is put right.
#[test]
fn what_no_destination_has_any_more_is_told_and_made_anew() {
    let mut rng = Rng::from_env("gone");
    let lab = lab(&[("usb", "")]);
    setid(&lab, "usb");
    limit(&lab, "0");
    noise(&lab, &mut rng, "one");
    lab.assay("backup", NONE).arg(lab.src()).ok();
    for name in names_in(&lab.path("usb")) {
        fs::remove_file(lab.path("usb").join(String::from_utf8(name).expect("UTF-8"))).expect("remove");
    }
    lab.assay("dest", ["setid", "usb", "--anew"]).ok();
    let told = lab.assay("backup", NONE).arg(lab.src()).run().code(3);
    assert!(told.err().contains("ARC_AWAY") && told.err().contains("selftest -v5 --fix"), "{}", told.err());
    let tested = lab.assay("selftest", ["-v4"]).run().code(4);
    assert_eq!(tested.text().matches("ARC_MISSING").count(), 3, "{}", tested.text());
    lab.assay("selftest", ["-v5", "--fix"]).run();
    lab.assay("backup", NONE).arg(lab.src()).run();
    read_all_of(&lab, &lab.repo());
    lab.assay("pack", NONE).run();
    lab.assay("backup", NONE).arg(lab.src()).ok();
    lab.assay("selftest", ["-v4"]).ok();
    lab.assay("selftest", ["-v5"]).ok();
}

/// A mount is there for weeks: destinations are named, and arcs go, while it is.
#[test]
fn a_mount_that_is_older_than_the_destinations_reads_what_went_there() {
    let mut rng = Rng::from_env("older");
    let (lab, named) = (lab(&[("usb", "")]), "dest.toml");
    fs::rename(lab.repo().join(named), lab.path(named)).expect("rename");
    noise(&lab, &mut rng, "one");
    lab.assay("backup", NONE).arg(lab.src()).ok();
    let mount = Mount::start(&lab, &lab.repo(), ["--direct"]);
    fs::rename(lab.path(named), lab.repo().join(named)).expect("rename");
    setid(&lab, "usb");
    limit(&lab, "0");
    let done = lab.assay("backup", ["--json"]).arg(lab.src()).ok().json();
    assert_eq!(done["kept"]["gone_arcs"], 3, "{done}");
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    mount.end().ok();
}

/// A destination that is behind another one is read as what it has; one that was put back to an older state is told as that,
/// each time, and no byte as lost.
#[test]
fn an_older_state_at_a_destination_is_told_as_an_older_state() {
    let mut rng = Rng::from_env("older state");
    let lab = lab(&[("usb", ""), ("nas", "")]);
    setid(&lab, "usb");
    setid(&lab, "nas");
    noise(&lab, &mut rng, "one");
    lab.assay("backup", NONE).arg(lab.src()).ok();
    fs::rename(lab.path("nas"), lab.path("unplugged")).expect("rename");
    noise(&lab, &mut rng, "two");
    lab.assay("backup", NONE).arg(lab.src()).run().code(3);
    fs::rename(lab.path("unplugged"), lab.path("nas")).expect("rename");
    let (new, cache) = (new_machine(&lab, "new"), lab.path("cache"));
    let get = |dest: &str, to: &str| {
        let from = ["--from", dest, "--cache-dir", cache.to_str().expect("UTF-8"), "--to"];
        lab.assay_on(&new, "get", from).arg(lab.path(to)).arg(lab.src())
    };
    let both = |to: &str| oracle::rsync_clean(&lab.src(), &crate::atomicity::restored(&lab.path(to), &lab.src()));
    get("usb", "both").ok();
    both("both");
    get("nas", "one").ok();
    assert!(!crate::atomicity::restored(&lab.path("one"), &lab.src()).join("two").exists());
    get("usb", "again").ok();
    both("again");
    for name in arcs_at(&lab.path("usb")).iter().filter(|name| name.starts_with("arc.1.")) {
        fs::remove_file(lab.path("usb").join(name)).expect("remove");
    }
    for _ in 0..2 {
        let back = get("usb", "back").run().code(1);
        assert!(back.err().contains("HISTORY_CHANGED") && !back.text().contains("ARC_MISSING"), "{}", back.text());
    }
    get("usb", "accepted").arg("--accept-history").ok();
    assert!(!crate::atomicity::restored(&lab.path("accepted"), &lab.src()).join("two").exists());
}
