//! A backup from nothing but one destination and the key: recovered, mounted and restored on a machine that has no arc.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::copies::{arcs_at, lab, setid};
use crate::support::arcfile::{arc_names, data_arcs, overwrite};
use crate::support::mount::Mount;
use crate::support::rng::Rng;
use crate::support::{Lab, NONE, odd, oracle, tool};

/// Three versions of a tree, each at `usb`; gives the lines that were noted of them.
fn world(lab: &Lab, rng: &mut Rng) -> String {
    setid(lab, "usb");
    for round in 0..3 {
        if round == 0 {
            odd::odd_tree(&lab.src(), rng);
        }
        lab.write(&format!("noise{round}"), &rng.bytes(1_700_000));
        lab.write("changes", format!("in round {round}").as_bytes());
        lab.assay("backup", NONE).arg(lab.src()).ok();
    }
    lab.assay("versions", ["--digest"]).ok().out()
}

/// What a user brings to a new machine: the key, and where the copy is.
pub fn new_machine(lab: &Lab, name: &str) -> PathBuf {
    let dir = lab.path(name);
    fs::create_dir(&dir).expect("mkdir");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("chmod");
    for file in ["key.conf", "dest.toml"] {
        fs::copy(lab.repo().join(file), dir.join(file)).expect("copy");
    }
    dir
}

#[test]
fn a_new_machine_mounts_and_restores_what_only_a_destination_has() {
    let mut rng = Rng::from_env("far");
    let lab = lab(&[("usb", "")]);
    let noted = world(&lab, &mut rng);
    let home = lab.repo();
    let aside = lab.path("burned");
    let new = new_machine(&lab, "new");
    fs::rename(&home, &aside).expect("rename");

    let done = lab.assay_on(&new, "recover", ["--from", "usb"]).ok();
    let newest = noted.lines().last().expect("a version").trim();
    assert!(done.out().contains("Recovered 3 versions") && done.out().contains(newest), "{}", done.out());
    let data: Vec<PathBuf> = data_arcs(&aside);
    let here = arc_names(&new);
    assert!(
        !here.is_empty() && data.iter().all(|arc| !new.join(arc.file_name().expect("a name")).exists()),
        "{here:?}"
    );
    fs::write(lab.path("noted"), &noted).expect("write");
    lab.assay_on(&new, "versions", ["--expect"]).arg(lab.path("noted")).ok();

    let mount = Mount::start(&lab, &new, ["--from", "usb"]);
    let shown = mount.latest(&lab.src());
    oracle::rsync_clean(&lab.src(), &shown);
    let old = fs::read(mount.version(0, &lab.src()).join("changes")).expect("read");
    assert_eq!(old, b"in round 0");
    mount.end().ok();
    lab.assay_on(&new, "get", ["--from", "usb", "--to"]).arg(lab.path("got")).arg(lab.src()).ok();
    let got = crate::atomicity::restored(&lab.path("got"), &lab.src());
    oracle::rsync_clean(&lab.src(), &got);

    // It is a backup dir whose file data is kept there: no word more is needed.
    let mount = Mount::start(&lab, &new, NONE);
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    mount.end().ok();
    for level in ["-v2", "-v3", "-v4", "-v5"] {
        lab.assay_on(&new, "selftest", [level]).ok();
    }
    lab.write("more", b"more");
    let next = lab.assay_on(&new, "backup", ["--json"]).arg(lab.src()).ok().json();
    assert!(next["blocks_new"].as_u64().is_some_and(|new| new <= 1), "what is there is not stored again: {next}");
    // Without the destination the names are there, and the contents are not; nothing is called lost.
    fs::rename(lab.path("usb"), lab.path("unplugged")).expect("rename");
    lab.assay_on(&new, "ls", ["-r", "0"]).arg(lab.src()).ok();
    let absent = lab.assay_on(&new, "get", ["--to"]).arg(lab.path("nothing")).arg(lab.src().join("noise1")).run();
    let absent = absent.code(1);
    assert!(absent.err().contains("DEST_ABSENT") && !absent.err().contains("ARC_MISSING"), "{}", absent.err());
    fs::rename(lab.path("unplugged"), lab.path("usb")).expect("rename");
    // All of it comes home when it is asked to.
    lab.assay_on(&new, "dest", ["sync"]).ok();
    for arc in data {
        tool("cmp").arg(&arc).arg(new.join(arc.file_name().expect("a name"))).ok();
    }
}

#[test]
fn all_arcs_come_home_each_proven_and_what_is_wrong_there_is_named() {
    let mut rng = Rng::from_env("home");
    let lab = lab(&[("usb", "")]);
    world(&lab, &mut rng);
    let new = new_machine(&lab, "new");
    // One byte of one arc, and one arc altogether.
    let data: Vec<String> = arcs_at(&lab.path("usb")).into_iter().filter(|name| !name.ends_with(".0")).collect();
    let (bad, gone) = (&data[rng.below(2) as usize], &data[data.len() - 1]);
    let at = lab.path("usb").join(bad);
    let mut bytes = fs::read(&at).expect("read");
    let place = 200 + rng.below(bytes.len() as u64 / 2) as usize;
    bytes[place] ^= 1 << rng.below(8);
    println!("{bad} at {place}, {gone} gone");
    overwrite(&at, &bytes);
    fs::rename(lab.path("usb").join(gone), lab.path("kept-arc")).expect("rename");

    let failed = lab.assay_on(&new, "recover", ["--from", "usb", "--arcs"]).run().code(4);
    assert!(failed.err().contains(&format!("{bad} at usb: expected checksum ")), "{}", failed.err());
    assert!(failed.text().contains(gone.as_str()), "{}", failed.text());
    let mut expected = arc_names(&lab.repo());
    expected.retain(|name| name != bad && name != gone);
    let mut found = arc_names(&new);
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "nothing that is wrong has a name here");

    // What is put right there is all that is fetched.
    bytes[place] = fs::read(lab.repo().join(bad)).expect("read")[place];
    overwrite(&at, &bytes);
    fs::rename(lab.path("kept-arc"), lab.path("usb").join(gone)).expect("rename");
    let done = lab.assay_on(&new, "recover", ["--from", "usb", "--arcs", "--json"]).ok().json();
    assert_eq!(
        (done["arcs_fetched"].as_u64(), done["arcs_failed"].as_array().map(Vec::len)),
        (Some(2), Some(0)),
        "{done}"
    );
    for arc in arc_names(&lab.repo()) {
        tool("cmp").arg(lab.repo().join(&arc)).arg(new.join(&arc)).ok();
    }
    lab.assay_on(&new, "selftest", ["-v5"]).ok();
    // It goes on from here, and the copy with it.
    lab.write("more", b"more");
    lab.assay_on(&new, "backup", NONE).arg(lab.src()).ok();
    lab.assay_on(&new, "dest", ["verify", "usb"]).ok();
}

#[test]
fn what_is_no_copy_of_this_backup_is_refused_before_anything_is_made() {
    let mut rng = Rng::from_env("no copy");
    let lab = lab(&[("usb", "")]);
    world(&lab, &mut rng);
    let new = new_machine(&lab, "new");
    let unknown = lab.assay_on(&new, "recover", ["--from", "nas"]).run().code(2);
    assert!(unknown.err().contains("it has usb"), "{}", unknown.err());
    fs::rename(lab.path("usb"), lab.path("unplugged")).expect("rename");
    let absent = lab.assay_on(&new, "recover", ["--from", "usb"]).run();
    assert!(absent.err().contains("DEST_ABSENT"), "{}", absent.err());
    fs::create_dir(lab.path("usb")).expect("mkdir");
    let empty = lab.assay_on(&new, "recover", ["--from", "usb"]).run();
    assert!(empty.err().contains("DEST_UNMARKED"), "{}", empty.err());
    assert!(!new.join("index.db").exists(), "nothing was made");
    // An index from an older copy would not know what is here.
    fs::remove_dir(lab.path("usb")).expect("rmdir");
    fs::rename(lab.path("unplugged"), lab.path("usb")).expect("rename");
    let last = arcs_at(&lab.path("usb")).into_iter().filter(|name| name.ends_with(".0")).max().expect("a commit");
    fs::remove_file(lab.path("usb").join(&last)).expect("remove");
    let more = lab.assay("recover", ["--from", "usb"]).run().code(2);
    assert!(more.err().contains(&format!("{last} is here and not at usb")), "{}", more.err());
    lab.assay("selftest", ["-v2"]).ok();
}

/// Reads all of the newest version through a mount of `usb` that keeps what it fetches, and compares it.
#[track_caller]
fn read_all(lab: &Lab, args: &[&str]) -> (Value, Value) {
    let mount = start(lab, args);
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    end(mount)
}

fn start(lab: &Lab, args: &[&str]) -> Mount {
    let fixed = ["--from", "usb", "--json", "--follow", "3600", "--cache-dir"];
    let cmd = lab.assay_on(&lab.path("new"), "mount", fixed).arg(lab.path("cache")).args(args);
    Mount::spawn(cmd.arg(lab.mnt()), &lab.mnt(), &lab.root)
}

/// What was asked of the destination, and what came from the cache.
#[track_caller]
fn end(mount: Mount) -> (Value, Value) {
    let summary = mount.end().ok().json();
    assert_eq!(summary["damage"], 0, "{summary}");
    (summary["fetched"]["requests"].clone(), summary["fetched"]["cached"]["frames"].clone())
}

/// The directory of the cache, if there is one, and the bytes that it takes.
fn frames(lab: &Lab) -> Option<(PathBuf, u64)> {
    let mirrors = fs::read_dir(lab.path("cache")).ok()?;
    let dir = mirrors.map(|mirror| mirror.expect("entry").path().join("frames")).find(|dir| dir.exists())?;
    let sizes = fs::read_dir(&dir).expect("read").map(|file| file.expect("entry").metadata().expect("stat").blocks());
    let bytes = sizes.sum::<u64>() * 512;
    Some((dir, bytes))
}

#[test]
fn what_was_fetched_is_read_again_without_a_request_also_after_kill_9() {
    let mut rng = Rng::from_env("kept");
    let lab = lab(&[("usb", "")]);
    world(&lab, &mut rng);
    new_machine(&lab, "new");
    let (cold, none) = read_all(&lab, &["--cache-size", "0"]);
    assert!(frames(&lab).is_none() && none == 0);
    // What a mount needs in which no contents are read.
    let idle = start(&lab, &[]);
    oracle::listing(&idle.latest(&lab.src()));
    let (idle, _) = end(idle);
    assert!(idle.as_u64() < cold.as_u64(), "{idle} of {cold}");

    for round in 0..4 {
        let mount = start(&lab, &[]);
        // It ends with an error, or has read all of it.
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(lab.path("tar")).arg("-C").arg(&mount.point).arg("latest");
        let mut reader = tar.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tar");
        std::thread::sleep(Duration::from_millis(rng.below(100 * (round + 1))));
        mount.signal(libc::SIGKILL);
        reader.wait().expect("wait");
        assert_eq!(mount.end().signal, Some(libc::SIGKILL));
    }
    // What was read last when it ended may be missing.
    let all_is_kept = || {
        let mut reads = (0..4).map(|_| read_all(&lab, &[]));
        let found = reads.find(|(asked, frames)| *asked == idle && frames.as_u64() > Some(10));
        assert!(found.is_some(), "no mount asked as little as one in which nothing is read");
    };
    all_is_kept();

    // Rot in the cache is no damage: what is wrong is fetched again.
    let (dir, _) = frames(&lab).expect("a cache");
    for file in fs::read_dir(&dir).expect("read") {
        let path = file.expect("entry").path();
        let mut bytes = fs::read(&path).expect("read");
        for _ in 0..5 {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= rng.flip();
        }
        overwrite(&path, &bytes);
    }
    let (asked, _) = read_all(&lab, &[]);
    assert!(asked.as_u64() > idle.as_u64(), "{asked}");
    // It is all of it: nothing of the file data there is needed.
    all_is_kept();
    for arc in data_arcs(&lab.repo()) {
        let arc = lab.path("usb").join(arc.file_name().expect("a name"));
        let len = fs::metadata(&arc).expect("stat").len() as usize;
        overwrite(&arc, &rng.bytes(len));
    }
    read_all(&lab, &[]);
    let get = ["--from", "usb", "--cache-dir"];
    let get = lab.assay_on(&lab.path("new"), "get", get).arg(lab.path("cache")).arg("--to").arg(lab.path("got"));
    get.arg(lab.src()).ok();
    oracle::rsync_clean(&lab.src(), &crate::atomicity::restored(&lab.path("got"), &lab.src()));
    // Who wants to see what is there sees it.
    let bare = start(&lab, &["--heal", "off"]);
    let read = tool("cat").arg(bare.latest(&lab.src()).join("noise0")).run();
    assert!(read.code == Some(1) && read.err().contains("Input/output error"), "{}", read.err());
    bare.end().code(4);
}

#[test]
fn a_cache_keeps_to_its_size_and_is_not_made_unasked_where_the_arcs_are() {
    let mut rng = Rng::from_env("kept");
    let lab = lab(&[("usb", "")]);
    world(&lab, &mut rng);
    new_machine(&lab, "new");
    for _ in 0..2 {
        read_all(&lab, &["--cache-size", "1500k"]);
        let (_, bytes) = frames(&lab).expect("a cache");
        assert!((300_000..=1_500 << 10).contains(&bytes), "{bytes}");
    }
    // On the machine that makes the backups a mount proves the copy, unless it is told to keep what it reads.
    fs::remove_dir_all(lab.path("cache")).expect("remove");
    fs::remove_dir_all(lab.path("new")).expect("remove");
    fs::rename(lab.repo(), lab.path("new")).expect("rename");
    assert_eq!(read_all(&lab, &[]).1, 0);
    assert!(frames(&lab).is_none());
    read_all(&lab, &["--cache-size", "64MiB"]);
    assert!(read_all(&lab, &["--cache-size", "64MiB"]).1.as_u64() > Some(10));
    // A selftest looks at the copy itself.
    let arc = lab.path("usb").join(data_arcs(&lab.path("new"))[0].file_name().expect("a name"));
    let mut bytes = fs::read(&arc).expect("read");
    let at = 200 + rng.below(bytes.len() as u64 / 2) as usize;
    bytes[at] ^= rng.flip();
    overwrite(&arc, &bytes);
    read_all(&lab, &["--cache-size", "64MiB"]);
    let found = lab.assay_on(&lab.path("new"), "selftest", ["-v4"]).run().code(4);
    assert!(found.text().contains(" at usb"), "{}", found.text());
}
