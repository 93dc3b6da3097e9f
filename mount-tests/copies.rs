//! Copies at destinations: what is there is compared with cmp and sha256sum; kills, full and unmounted disks, real servers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::arcfile::{arc_names, data_arcs, overwrite};
use crate::support::rng::Rng;
use crate::support::{Lab, NONE, Out, is_root, names_in, tool};

/// A backup dir with small arcs, and destinations in directories beside it, each with these lines more.
pub fn lab(places: &[(&str, &str)]) -> Lab {
    let lab = Lab::new();
    lab.init();
    let path = lab.repo().join("config.toml");
    let text = fs::read_to_string(&path).expect("read");
    fs::write(&path, text.replace("arc-size-limit = \"64MiB\"", "arc-size-limit = \"1MiB\"")).expect("write");
    let mut tables = String::new();
    for (name, more) in places {
        fs::create_dir(lab.path(name)).expect("mkdir");
        let place = lab.path(name);
        tables +=
            &format!("[[destination]]\nname = \"{name}\"\ntype = \"dir\"\npath = \"{}\"\n{more}\n", place.display());
    }
    fs::write(lab.repo().join("dest.toml"), tables).expect("write");
    lab
}

pub fn setid(lab: &Lab, name: &str) {
    lab.assay("dest", ["setid", name]).ok();
}

fn add_noise(lab: &Lab, rng: &mut Rng, name: &str, bytes: usize) {
    lab.write(name, &rng.bytes(bytes));
}

fn backup(lab: &Lab) -> Out {
    lab.assay("backup", NONE).arg(lab.src()).run()
}

pub fn arcs_at(dir: &Path) -> Vec<String> {
    let names = names_in(dir).into_iter().map(|name| String::from_utf8(name).expect("UTF-8"));
    names.filter(|name| name.starts_with("arc.")).collect()
}

/// The same arcs, in the same bytes, and nothing else but the mark.
#[track_caller]
fn is_whole(lab: &Lab, place: &Path) {
    let mut here = arc_names(&lab.repo());
    here.sort();
    let mut there = arcs_at(place);
    there.sort();
    assert_eq!(there, here, "{}", place.display());
    for arc in here {
        tool("cmp").arg(lab.repo().join(&arc)).arg(place.join(&arc)).ok();
    }
}

#[test]
fn a_backup_is_copied_while_it_is_made_and_the_copy_is_a_backup() {
    let mut rng = Rng::from_env("copies");
    let lab = lab(&[("usb", ""), ("nas", "workers = 1\nrate = \"40M\"")]);
    let unmarked = {
        lab.write("a", b"some bytes");
        backup(&lab).code(3)
    };
    assert!(unmarked.err().contains("DEST_UNMARKED") && unmarked.err().contains("dest setid"), "{}", unmarked.err());
    setid(&lab, "usb");
    setid(&lab, "nas");
    add_noise(&lab, &mut rng, "noise", 5 << 20);
    let done = backup(&lab).code(0);
    assert!(done.out().contains("usb: ") && done.out().contains("complete"), "{}", done.out());
    for name in ["usb", "nas"] {
        is_whole(&lab, &lab.path(name));
    }
    // The recorded checksum is what sha256sum says of the copy.
    let status = lab.assay("dest", ["status", "--json"]).ok();
    assert!(status.out().lines().count() >= 8, "{}", status.out());
    for line in status.out().lines() {
        let arc: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(
            (&arc["copies"][1]["noted"], &arc["copies"][1]["state"]),
            (&"proven".into(), &"ready".into()),
            "{line}"
        );
    }
    lab.assay("dest", ["verify", "nas"]).ok();
    // A second time there is nothing to send but the new version.
    let done = lab.assay("backup", ["--json"]).arg(lab.src()).ok().json();
    assert_eq!(
        (&done["destinations"][0]["behind"], &done["destinations"][0]["error"]),
        (&0.into(), &().into()),
        "{done}"
    );
    assert!(done["destinations"][0]["sent"].as_u64().is_some_and(|sent| sent <= 3), "{done}");

    // The copy, with the key, is the backup.
    let copy = lab.path("from-copy");
    fs::create_dir(&copy).expect("mkdir");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o700)).expect("chmod");
    for arc in arcs_at(&lab.path("usb")) {
        fs::copy(lab.path("usb").join(&arc), copy.join(&arc)).expect("copy");
    }
    for file in ["key.conf", "config.toml"] {
        fs::copy(lab.repo().join(file), copy.join(file)).expect("copy");
    }
    lab.assay_on(&copy, "recover", NONE).ok();
    lab.assay_on(&copy, "get", ["--to"]).arg(lab.path("got")).arg(lab.src()).ok();
    let got = crate::atomicity::restored(&lab.path("got"), &lab.src());
    tool("diff").arg("-r").arg(lab.src()).arg(got).ok();
}

/// Killed at any moment while it sends, the next run completes both sides.
#[test]
fn a_kill_while_sending_costs_nothing() {
    let mut rng = Rng::from_env("kill sending");
    let lab = lab(&[("usb", "rate = \"6M\""), ("nas", "workers = 1")]);
    setid(&lab, "usb");
    setid(&lab, "nas");
    let (mut cut, mut parts) = (0, 0);
    for round in 0..8 {
        add_noise(&lab, &mut rng, &format!("noise{round}"), 3 << 20);
        let (mut command, _) = lab.assay("backup", NONE).arg(lab.src()).into_parts();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawn");
        // Somewhere between the first object and the end.
        let (begun, before) = (Instant::now(), arcs_at(&lab.path("nas")).len());
        while arcs_at(&lab.path("nas")).len() == before && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(rng.below(700)));
        let is_running = child.try_wait().expect("wait").is_none();
        let _ = child.kill();
        child.wait().expect("wait");
        cut += u32::from(is_running);
        parts += u32::from(arcs_at(&lab.path("usb")).iter().any(|name| name.ends_with(".part")));
        if round % 3 == 2 {
            backup(&lab).code(0);
            is_whole(&lab, &lab.path("usb"));
            is_whole(&lab, &lab.path("nas"));
        }
    }
    println!("{cut} of 8 cut, {parts} with a part of an arc");
    assert!(cut >= 4, "only {cut} kills hit");
    backup(&lab).code(0);
    is_whole(&lab, &lab.path("usb"));
    is_whole(&lab, &lab.path("nas"));
    lab.assay("dest", ["verify", "usb"]).ok();
    lab.assay("selftest", ["-v3"]).ok();
}

#[test]
fn an_unmounted_disk_is_absent_and_a_full_one_is_caught_up() {
    if !is_root() {
        return;
    }
    let mut rng = Rng::from_env("full disk");
    let lab = lab(&[("usb", ""), ("nas", "")]);
    let usb = lab.path("usb");
    let mount = |size: &str| tool("mount").args(["-t", "tmpfs", "-o", size, "disk"]).arg(&usb).ok();
    mount("size=32m");
    setid(&lab, "usb");
    setid(&lab, "nas");
    add_noise(&lab, &mut rng, "one", 3 << 20);
    backup(&lab).code(0);
    is_whole(&lab, &usb);
    // Its disk fills up in the midst of an arc.
    tool("mount").args(["-o", "remount,size=6m"]).arg(&usb).ok();
    add_noise(&lab, &mut rng, "two", 6 << 20);
    let full = backup(&lab).code(3);
    assert!(full.err().contains("assay: DEST_FULL: usb"), "{}", full.err());
    assert!(full.out().contains("behind: ") && full.out().contains("DEST_FULL"), "{}", full.out());
    is_whole(&lab, &lab.path("nas"));
    assert!(!usb.join("arc.1.0").exists());
    tool("mount").args(["-o", "remount,size=64m"]).arg(&usb).ok();
    backup(&lab).code(0);
    is_whole(&lab, &usb);
    // Without its disk the mount point is empty: nothing is sent there, nothing is taken for lost.
    let kept = lab.path("kept");
    tool("mount")
        .arg("--bind")
        .arg(&usb)
        .arg({
            fs::create_dir(&kept).expect("mkdir");
            &kept
        })
        .ok();
    tool("umount").arg(&usb).ok();
    add_noise(&lab, &mut rng, "three", 1 << 20);
    let absent = backup(&lab).code(3);
    assert!(absent.err().contains("DEST_ABSENT") && !absent.err().contains("is gone"), "{}", absent.err());
    assert!(names_in(&usb).is_empty());
    for command in ["verify", "clear"] {
        assert!(lab.assay("dest", [command, "usb"]).run().code(1).err().contains("DEST_ABSENT"));
    }
    tool("mount").arg("--bind").arg(&kept).arg(&usb).ok();
    let back = backup(&lab).code(0);
    assert!(!back.err().contains("is gone"), "{}", back.err());
    is_whole(&lab, &usb);
    tool("umount").arg(&usb).ok();
    tool("umount").arg(&kept).ok();
}

/// `rm` and `pack` reach destinations one run later, and only once all of them have the commit.
#[test]
fn what_nobody_needs_goes_one_run_later() {
    let mut rng = Rng::from_env("removal");
    let lab = lab(&[("usb", ""), ("nas", "")]);
    setid(&lab, "usb");
    setid(&lab, "nas");
    add_noise(&lab, &mut rng, "old", 3 << 20);
    backup(&lab).code(0);
    fs::remove_file(lab.src().join("old")).expect("remove");
    add_noise(&lab, &mut rng, "new", 1 << 20);
    backup(&lab).code(0);
    let removed = lab.assay("rm", ["-r", "r0", "--force"]).ok();
    assert!(removed.out().contains("usb: ") && removed.out().contains("complete"), "{}", removed.out());
    fs::rename(lab.path("nas"), lab.path("away")).expect("rename");
    let packed = lab.assay("pack", ["--json"]).run().code(3).json();
    assert!(packed["dropped_arcs"].as_u64().is_some_and(|dropped| dropped >= 2), "{packed}");
    let old = |place: &str| arcs_at(&lab.path(place)).iter().filter(|name| name.starts_with("arc.0.")).count();
    let (at_usb, here) = (old("usb"), arc_names(&lab.repo()).iter().filter(|name| name.starts_with("arc.0.")).count());
    assert!(at_usb > here, "{at_usb} {here}");
    // One destination lacks the commit: nothing goes anywhere.
    backup(&lab).code(3);
    backup(&lab).code(3);
    assert_eq!(old("usb"), at_usb);
    fs::rename(lab.path("away"), lab.path("nas")).expect("rename");
    backup(&lab).code(0);
    assert_eq!((old("usb"), old("nas")), (at_usb, at_usb));
    let done = lab.assay("backup", ["--json"]).arg(lab.src()).ok().json();
    assert!(done["destinations"][0]["removed"].as_u64().is_some_and(|removed| removed >= 2), "{done}");
    is_whole(&lab, &lab.path("usb"));
    is_whole(&lab, &lab.path("nas"));

    // What was packed away before a destination ever got it is not missed there.
    fs::rename(lab.path("nas"), lab.path("away")).expect("rename");
    add_noise(&lab, &mut rng, "short-lived", 2 << 20);
    backup(&lab).code(3);
    fs::remove_file(lab.src().join("short-lived")).expect("remove");
    backup(&lab).code(3);
    let newest = lab.versions().pop().expect("a version");
    lab.assay("rm", ["-r", &format!("r{}", newest - 1), "--force"]).run().code(3);
    lab.assay("pack", NONE).run().code(3);
    fs::rename(lab.path("away"), lab.path("nas")).expect("rename");
    backup(&lab).code(0);
    backup(&lab).code(0);
    is_whole(&lab, &lab.path("usb"));
    is_whole(&lab, &lab.path("nas"));
    lab.assay("dest", ["verify", "nas"]).ok();
}

#[test]
fn damage_here_is_not_copied_and_what_is_wrong_there_is_put_right() {
    let mut rng = Rng::from_env("copied damage");
    let lab = lab(&[("usb", ""), ("nas", "off = true")]);
    setid(&lab, "usb");
    setid(&lab, "nas");
    add_noise(&lab, &mut rng, "one", 3 << 20);
    backup(&lab).code(0);
    assert_eq!(arcs_at(&lab.path("nas")).len(), 0, "it is off");
    let arc = data_arcs(&lab.repo()).remove(0);
    let good = fs::read(&arc).expect("read");
    let mut bad = good.clone();
    bad[good.len() / 3] ^= 4;
    overwrite(&arc, &bad);
    // The other destination has the right bytes.
    let synced = lab.assay("dest", ["sync", "nas"]).run().code(4);
    assert!(synced.err().contains("assay: ARC_CHECKSUM: arc.0."), "{}", synced.err());
    let name = arc.file_name().expect("a name");
    assert!(fs::read(lab.path("nas").join(name)).expect("read") == good);
    assert_eq!(arcs_at(&lab.path("nas")), arcs_at(&lab.path("usb")));
    overwrite(&arc, &good);
    lab.assay("dest", ["verify", "nas"]).ok();
    let there = lab.path("nas").join(name);
    fs::set_permissions(&there, fs::Permissions::from_mode(0o600)).expect("chmod");
    overwrite(&there, &bad);
    let found = lab.assay("dest", ["verify", "nas"]).run().code(4);
    assert!(found.err().contains("assay: DEST_CHECKSUM: arc.0."), "{}", found.err());
    lab.assay("dest", ["sync", "nas"]).ok();
    is_whole(&lab, &lab.path("nas"));
    // A last copy is not given up.
    fs::remove_file(&arc).expect("remove");
    overwrite(&there, &bad);
    let refused = lab.assay("dest", ["clear", "usb", "--yes"]).run().code(1);
    assert!(refused.err().contains("PROTECTED") && refused.err().contains("no other good copy"), "{}", refused.err());
    fs::write(&arc, &good).expect("write");
    assert!(lab.assay("dest", ["clear", "usb"]).run().code(2).err().contains("--yes"));
    lab.assay("dest", ["clear", "usb", "--yes"]).ok();
    assert_eq!(names_in(&lab.path("usb")), [b"DESTID".to_vec()]);
    backup(&lab).code(0);
    is_whole(&lab, &lab.path("usb"));
}

/// Killed at any moment, `sync` and `clear` leave what the next one completes; nothing is lost on the way.
#[test]
fn a_kill_of_sync_or_clear_costs_nothing() {
    let mut rng = Rng::from_env("kill sync");
    let lab = lab(&[("usb", "workers = 2"), ("nas", "off = true\nrate = \"8M\"")]);
    setid(&lab, "usb");
    setid(&lab, "nas");
    add_noise(&lab, &mut rng, "one", 6 << 20);
    backup(&lab).code(0);
    let mut cut = 0;
    for round in 0..8 {
        let args: &[&str] = if round % 2 == 0 { &["sync", "nas"] } else { &["clear", "nas", "--yes"] };
        let (mut command, _) = lab.assay("dest", args).into_parts();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawn");
        std::thread::sleep(Duration::from_millis(100 + rng.below(400)));
        cut += u32::from(child.try_wait().expect("wait").is_none());
        let _ = child.kill();
        child.wait().expect("wait");
        is_whole(&lab, &lab.path("usb"));
        assert!(lab.path("nas/DESTID").exists());
    }
    println!("{cut} of 8 cut");
    assert!(cut >= 2, "only {cut} kills hit");
    lab.assay("dest", ["sync", "nas"]).ok();
    is_whole(&lab, &lab.path("nas"));
    lab.assay("dest", ["verify", "nas"]).ok();
    lab.assay("dest", ["clear", "nas", "--yes"]).ok();
    assert_eq!(names_in(&lab.path("nas")), [b"DESTID".to_vec()]);
    lab.assay("selftest", ["-v3"]).ok();
}

/// While another process sends there, a destination is left behind, and the backup is made.
#[test]
fn a_slow_line_keeps_no_backup_from_being_made() {
    let mut rng = Rng::from_env("slow line");
    let lab = lab(&[("usb", "rate = \"300k\"\nworkers = 2")]);
    setid(&lab, "usb");
    add_noise(&lab, &mut rng, "one", 2 << 20);
    let (mut command, _) = lab.assay("backup", NONE).arg(lab.src()).into_parts();
    let mut slow = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawn");
    let begun = Instant::now();
    while !lab.repo().join("arc.0.0").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no commit");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut second: Option<Out> = None;
    // The lock is released a moment after the commit.
    for _ in 0..100 {
        let out = backup(&lab);
        if out.code != Some(11) {
            second = Some(out);
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let second = second.expect("a second backup").code(3);
    assert!(second.err().contains("DEST_IN_USE") && slow.try_wait().expect("wait").is_none(), "{}", second.err());
    assert!(slow.wait().expect("wait").success());
    assert!(begun.elapsed() >= Duration::from_secs(5), "the rate was not kept");
    backup(&lab).code(0);
    is_whole(&lab, &lab.path("usb"));
}
