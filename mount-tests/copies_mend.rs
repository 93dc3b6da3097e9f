//! `selftest --fix` with destinations: what is wrong is put right from other copies, to the byte, here and there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::copies::{arcs_at, lab, setid};
use crate::support::arcfile::{block_frames, overwrite};
use crate::support::mount::Mount;
use crate::support::rng::Rng;
use crate::support::{Lab, NONE, Out, oracle, strace, tool};

/// Two versions, at two destinations.
fn world(rng: &mut Rng) -> Lab {
    let lab = lab(&[("usb", ""), ("nas", "")]);
    setid(&lab, "usb");
    setid(&lab, "nas");
    for number in 0..20 {
        lab.write(&format!("small/{number}"), &rng.bytes(3000 + 900 * number));
    }
    lab.write("big", &rng.bytes(2_600_000));
    lab.assay("backup", NONE).arg(lab.src()).ok();
    lab.write("more", &rng.bytes(1_300_000));
    lab.assay("backup", NONE).arg(lab.src()).ok();
    lab
}

type Arcs = BTreeMap<String, Vec<u8>>;

fn arcs(dir: &Path) -> Arcs {
    arcs_at(dir).into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).expect("read"))).collect()
}

/// The places that hold copies, the backup dir first.
fn places(lab: &Lab) -> [PathBuf; 3] {
    [lab.repo(), lab.path("usb"), lab.path("nas")]
}

#[track_caller]
fn same(found: &Arcs, pristine: &Arcs, what: &str) {
    assert_eq!(found.keys().collect::<Vec<_>>(), pristine.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in pristine {
        assert!(found[name] == *bytes, "{what}: {name} has other bytes");
    }
}

/// Destroys the whole of a frame's body.
fn ruin_frame(bytes: &mut [u8], number: usize) {
    let frame = block_frames(bytes)[number];
    bytes[frame.body()..frame.end()].iter_mut().for_each(|byte| *byte ^= 0x5a);
}

fn selftest(lab: &Lab, args: &[&str]) -> Out {
    lab.assay("selftest", args).run()
}

#[test]
fn whatever_is_wrong_here_is_put_back_from_a_copy_to_the_byte() {
    let mut rng = Rng::from_env("mend");
    let lab = world(&mut rng);
    let pristine = arcs(&lab.repo());
    let names: Vec<&String> = pristine.keys().collect();
    let data: Vec<&&String> = names.iter().filter(|name| !block_frames(&pristine[**name]).is_empty()).collect();
    assert!(data.len() >= 4 && names.len() >= 8, "{names:?}");
    let path = |name: &str| lab.repo().join(name);
    let mut hurt = |level: &str, how: &dyn Fn(&mut Rng), code: &str| {
        how(&mut rng);
        let out = selftest(&lab, &[level, "--fix"]).code(4);
        assert!(out.out().contains(code) && out.out().contains(" fixed\n"), "{code}: {}", out.out());
        same(&arcs(&lab.repo()), &pristine, code);
        assert!(names_of_leftovers(&lab).is_empty(), "{code}: {:?}", names_of_leftovers(&lab));
        selftest(&lab, &["-v3"]).ok();
    };
    hurt("-v3", &|_| fs::remove_file(path(data[0])).expect("remove"), "ARC_MISSING");
    // Every arc of one run, its commit and its catalog too.
    let of_second = names.iter().filter(|name| name.starts_with("arc.1."));
    let of_second: Vec<_> = of_second.collect();
    hurt("-v3", &|_| of_second.iter().for_each(|name| fs::remove_file(path(name)).expect("remove")), "COMMIT_DAMAGED");
    let cut = |rng: &mut Rng| {
        let bytes = &pristine[*data[1]];
        overwrite(&path(data[1]), &bytes[..1 + rng.below(bytes.len() as u64 - 1) as usize]);
    };
    hurt("-v3", &cut, "ARC_");
    hurt("-v3", &|rng| overwrite(&path(data[2]), &rng.bytes(pristine[*data[2]].len())), "ARC_");
    // Another arc of the same backup in its place.
    hurt("-v3", &|_| overwrite(&path(data[1]), &pristine[*data[0]]), "ARC_");
    let frames = |_: &mut Rng| {
        let mut bytes = pristine[*data[0]].clone();
        ruin_frame(&mut bytes, 0);
        ruin_frame(&mut bytes, 1);
        overwrite(&path(data[0]), &bytes);
    };
    hurt("-v3", &frames, "ARC_");
    let shell = |_: &mut Rng| {
        let mut bytes = pristine[*data[0]].clone();
        let len = bytes.len();
        bytes[..50].fill(0x55);
        bytes[len - 60..].fill(0x55);
        overwrite(&path(data[0]), &bytes);
    };
    hurt("-v3", &shell, "ARC_");
    // A catalog arc in which nothing is right.
    let catalog = names.iter().find(|name| !data.contains(name) && !name.ends_with(".0")).expect("a catalog arc");
    hurt("-v3", &|_| overwrite(&path(catalog), &vec![7; pristine[catalog.as_str()].len()]), "ARC_");
    hurt("-v2", &|_| fs::remove_file(path(catalog)).expect("remove"), "ARC_MISSING");
    let mount = Mount::start(&lab, &lab.repo(), NONE);
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    mount.end().ok();
}

fn names_of_leftovers(lab: &Lab) -> Vec<String> {
    let names = crate::support::names_in(&lab.repo()).into_iter().map(|name| String::from_utf8(name).expect("UTF-8"));
    names.filter(|name| name.contains(".bad") || name.contains(".fetched") || name.contains(".mended")).collect()
}

#[test]
fn three_copies_none_of_them_whole_become_three_good_ones() {
    let mut rng = Rng::from_env("mend");
    let lab = world(&mut rng);
    let pristine = scatter(&lab);
    let out = selftest(&lab, &["-v4", "--fix"]).code(4);
    for (place, what) in places(&lab).iter().zip(["here", "usb", "nas"]) {
        same(&arcs(place), &pristine, &format!("{what}: {}", out.out()));
    }
    assert!(!out.out().contains("not fixed"), "{}", out.out());
    let clean = selftest(&lab, &["-v4"]).ok();
    assert!(clean.out().contains("nothing is wrong"), "{}", clean.out());
}

#[test]
fn an_arc_that_nobody_has_whole_is_put_together_and_what_is_lost_is_told() {
    let mut rng = Rng::from_env("mend");
    let lab = world(&mut rng);
    let pristine = arcs(&lab.repo());
    let name = pristine.keys().find(|name| block_frames(&pristine[*name]).len() > 5).expect("a large arc").clone();
    // Here it is gone; the copies have different bad frames, and one that is bad in both.
    fs::remove_file(lab.repo().join(&name)).expect("remove");
    for (place, number) in [("usb", 1), ("nas", 3)] {
        let mut bytes = pristine[&name].clone();
        ruin_frame(&mut bytes, number);
        ruin_frame(&mut bytes, 4);
        overwrite(&lab.path(place).join(&name), &bytes);
    }
    // No live file has the bytes.
    let originals = lab.path("originals");
    fs::rename(lab.src(), &originals).expect("rename");
    let out = selftest(&lab, &["-v4", "--fix"]).code(4);
    assert!(out.out().contains("not fixed"), "{}", out.out());
    let found = fs::read(lab.repo().join(&name)).expect("it is here again");
    let lost = block_frames(&pristine[&name])[4];
    assert_eq!(found.len(), pristine[&name].len());
    let differs: Vec<usize> = (0..found.len()).filter(|at| found[*at] != pristine[&name][*at]).collect();
    let bounds = lost.offset..lost.end();
    assert!(!differs.is_empty() && differs.iter().all(|at| bounds.contains(at)), "{:?} {bounds:?}", differs.first());
    // Once the original is back its blocks are cut again from it.
    fs::rename(&originals, lab.src()).expect("rename");
    let out = selftest(&lab, &["-v4", "--fix"]).code(4);
    assert!(out.out().contains("sealed anew"), "{}", out.out());
    let mount = Mount::start(&lab, &lab.repo(), NONE);
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    mount.end().ok();
}

#[test]
fn a_destination_that_is_away_keeps_nobody_from_being_mended() {
    let mut rng = Rng::from_env("mend");
    let lab = world(&mut rng);
    let pristine = arcs(&lab.repo());
    let name = pristine.keys().find(|name| !block_frames(&pristine[*name]).is_empty()).expect("a data arc").clone();
    fs::rename(lab.path("usb"), lab.path("unplugged")).expect("rename");
    fs::remove_file(lab.repo().join(&name)).expect("remove");
    let mut bytes = pristine[&name].clone();
    bytes.truncate(bytes.len() / 2);
    overwrite(&lab.path("nas").join(&name), &bytes);
    // The one that is whole is not there, nor are the originals.
    fs::rename(lab.src(), lab.path("originals")).expect("rename");
    let out = selftest(&lab, &["-v4", "--fix"]).code(4);
    assert!(out.text().contains("DEST_") && out.out().contains("not fixed"), "{}", out.text());
    fs::rename(lab.path("unplugged"), lab.path("usb")).expect("rename");
    let out = selftest(&lab, &["-v4", "--fix"]).code(4);
    for place in places(&lab) {
        same(&arcs(&place), &pristine, &out.text());
    }
    selftest(&lab, &["-v4"]).ok();
}

/// Each frame is bad in two of three places; returns the arcs as they were.
fn scatter(lab: &Lab) -> Arcs {
    let pristine = arcs(&lab.repo());
    for (at, place) in places(lab).iter().enumerate() {
        for (name, bytes) in &pristine {
            let mut bytes = bytes.clone();
            let frames = block_frames(&bytes).len();
            (0..frames).filter(|number| number % 3 != at).for_each(|number| ruin_frame(&mut bytes, number));
            if frames > 0 {
                overwrite(&place.join(name), &bytes);
            }
        }
    }
    assert!(arcs(&lab.repo()) != pristine, "the fault did not fire");
    pristine
}

#[test]
fn a_mount_that_writes_mends_what_its_readers_meet_and_holds_up_no_backup() {
    let mut rng = Rng::from_env("mend");
    let lab = world(&mut rng);
    let pristine = scatter(&lab);
    let gone = pristine.keys().rfind(|name| !block_frames(&pristine[*name]).is_empty()).expect("a data arc");
    overwrite(&lab.path("nas").join(gone), &pristine[gone]);
    fs::remove_file(lab.repo().join(gone)).expect("remove");
    let mount = Mount::start(&lab, &lab.repo(), ["--heal", "write", "--json"]);
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    // Meanwhile it may be at its work: nobody waits for it.
    let beside = lab.assay("backup", NONE).arg(lab.src()).run();
    assert!(matches!(beside.code, Some(0 | 4)), "{}", beside.text());
    let out = mount.end().code(4);
    let json = out.json();
    assert!(json["mended"].as_u64() > Some(3), "{json}");
    assert!(out.err().contains("mended: ") && !out.err().contains("not mended"), "{}", out.err());
    let mut found = arcs(&lab.repo());
    found.retain(|name, _| pristine.contains_key(name));
    same(&found, &pristine, &out.err());
    assert!(names_of_leftovers(&lab).is_empty(), "{:?}", names_of_leftovers(&lab));
    let again = Mount::start(&lab, &lab.repo(), NONE);
    oracle::rsync_clean(&lab.src(), &again.latest(&lab.src()));
    again.end().ok();
    lab.assay("selftest", ["-v3"]).ok();
}

#[test]
fn a_restore_that_writes_mends_too_and_memory_writes_nothing() {
    let mut rng = Rng::from_env("mend");
    let lab = world(&mut rng);
    let pristine = scatter(&lab);
    let damaged = arcs(&lab.repo());
    let get = |heal: &str, to: &str| lab.assay("get", ["--heal", heal, "--to"]).arg(lab.path(to)).arg(lab.src()).run();
    assert!(get("memory", "first").code(4).out().contains("read from "));
    same(&arcs(&lab.repo()), &damaged, "memory");
    assert!(get("off", "bare").code(4).out().contains("lost"));
    let out = get("write", "second").code(4);
    assert!(out.out().contains("mended in the backup dir"), "{}", out.out());
    same(&arcs(&lab.repo()), &pristine, &out.text());
    for to in ["first", "second"] {
        oracle::rsync_clean(&lab.src(), &crate::atomicity::restored(&lab.path(to), &lab.src()));
    }
    let refused = lab.assay("mount", ["--from", "usb", "--heal", "write"]).arg(lab.mnt()).run().code(2);
    assert!(refused.err().contains("selftest -v4 --fix"), "{}", refused.err());
}

#[test]
fn killed_at_any_write_it_is_mended_the_next_time() {
    let mut rng = Rng::from_env("mend and kill");
    let lab = world(&mut rng);
    let pristine = arcs(&lab.repo());
    let data: Vec<&String> = pristine.keys().filter(|name| !block_frames(&pristine[*name]).is_empty()).collect();
    // One arc is gone, one is cut and whole nowhere, one has two bad frames.
    fs::remove_file(lab.repo().join(data[0])).expect("remove");
    overwrite(&lab.repo().join(data[1]), &pristine[data[1]][..5000]);
    for (place, number) in [("usb", 0), ("nas", 1)] {
        let mut bytes = pristine[data[1]].clone();
        ruin_frame(&mut bytes, number);
        overwrite(&lab.path(place).join(data[1]), &bytes);
    }
    let mut bytes = pristine[data[2]].clone();
    ruin_frame(&mut bytes, 0);
    ruin_frame(&mut bytes, 2);
    overwrite(&lab.repo().join(data[2]), &bytes);
    let saved = lab.path("saved");
    tool("cp").arg("-a").arg(lab.repo()).arg(&saved).ok();
    let reset = || {
        fs::remove_dir_all(lab.repo()).expect("remove");
        tool("cp").arg("-a").arg(&saved).arg(lab.repo()).ok();
    };
    let (home, log) = (lab.path("home"), lab.path("strace.log"));
    let make = crate::atomicity::command("selftest", &lab.repo(), &[Path::new("-v3"), Path::new("--fix")]);
    let judge = |what: &str| {
        // What is there is as it was, or better: all of it can be read.
        let mount = Mount::start(&lab, &lab.repo(), NONE);
        oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
        mount.end();
        let out = lab.assay("selftest", ["-v3", "--fix"]).run();
        assert!(matches!(out.code, Some(0 | 4)), "{what}: {}", out.text());
        same(&arcs(&lab.repo()), &pristine, what);
        assert!(names_of_leftovers(&lab).is_empty(), "{what}: {:?}", names_of_leftovers(&lab));
        lab.assay("selftest", ["-v3"]).ok();
    };
    strace::kill_at_some(&make, &home, &log, reset, judge);
}

#[test]
fn a_frame_that_is_lost_is_stored_anew_by_the_next_backup_that_meets_its_file() {
    let mut rng = Rng::from_env("mend");
    let lab = Lab::new();
    lab.write("big", &rng.bytes(900_000));
    lab.write("small", &rng.bytes(9000));
    lab.init();
    lab.backup();
    let path = lab.repo().join("arc.0.1");
    let mut bytes = fs::read(&path).expect("read");
    ruin_frame(&mut bytes, 1);
    overwrite(&path, &bytes);
    // Nobody knows of it yet; whoever meets it notes it.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let mount = Mount::start(&lab, &lab.repo(), NONE);
    let read = tool("diff").arg("-rq").arg(lab.src()).arg(mount.latest(&lab.src())).run();
    assert_eq!(read.code, Some(2), "{}", read.text());
    mount.end().code(4);
    let json = lab.assay("backup", ["--json"]).arg(lab.src()).run().json();
    let new = json["blocks_new"].as_u64().unwrap_or_default();
    assert!((1..8).contains(&new), "{json}");
    let mount = Mount::start(&lab, &lab.repo(), NONE);
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    mount.end().ok();
    // The version before still has the hole; nothing more is stored.
    let again = lab.assay("backup", ["--json"]).arg(lab.src()).run().json();
    assert_eq!(again["blocks_new"], 0, "{again}");
}

#[test]
fn a_mount_that_mends_may_be_killed_at_any_time() {
    let mut rng = Rng::from_env("mend and kill");
    let lab = world(&mut rng);
    let pristine = arcs(&lab.repo());
    let data: Vec<&String> = pristine.keys().filter(|name| !block_frames(&pristine[*name]).is_empty()).collect();
    for round in 0..8 {
        fs::remove_file(lab.repo().join(data[0])).expect("remove");
        let mut bytes = pristine[data[1]].clone();
        (0..block_frames(&bytes).len()).for_each(|number| ruin_frame(&mut bytes, number));
        overwrite(&lab.repo().join(data[1]), &bytes);
        let mount = Mount::start(&lab, &lab.repo(), ["--heal", "write"]);
        oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
        std::thread::sleep(std::time::Duration::from_millis(rng.below(700)));
        mount.signal(libc::SIGKILL);
        assert_eq!(mount.end().signal, Some(libc::SIGKILL));
        lab.assay("selftest", ["-v3", "--fix"]).run();
        same(&arcs(&lab.repo()), &pristine, &format!("round {round}"));
        assert!(names_of_leftovers(&lab).is_empty(), "round {round}: {:?}", names_of_leftovers(&lab));
    }
}
