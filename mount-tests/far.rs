//! A backup from nothing but one destination and the key: recovered, mounted and restored on a machine that has no arc.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

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
    assert!(failed.err().contains(&format!("checksum mismatch for {bad} at usb: source=")), "{}", failed.err());
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
