//! Mending where there is no room, and where a destination is away: what can be put right is, and nothing gets worse.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::copies::{arcs_at, lab as lab_with, setid};
use crate::support::arcfile::{block_frames, overwrite};
use crate::support::mount::Mount;
use crate::support::rng::Rng;
use crate::support::{Lab, NONE, is_root, names_in, oracle, tool};

/// A small disk of its own.
fn disk(at: &Path, size: &str) {
    fs::create_dir_all(at).expect("mkdir");
    tool("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "disk"]).arg(at).ok();
}

/// Takes all the room that is left.
fn fill(at: &Path) -> PathBuf {
    let path = at.join("filler");
    let mut file = fs::File::create(&path).expect("create");
    let piece = vec![1; 4096];
    while file.write_all(&piece).is_ok() {}
    path
}

fn arcs(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    arcs_at(dir).into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).expect("read"))).collect()
}

fn leftovers(dir: &Path) -> Vec<String> {
    let names = names_in(dir).into_iter().map(|name| String::from_utf8(name).expect("UTF-8"));
    names.filter(|name| [".bad", ".fetched", ".mended", ".part"].iter().any(|end| name.contains(end))).collect()
}

fn ruined(bytes: &[u8], numbers: &[usize]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for frame in numbers.iter().map(|number| block_frames(&bytes)[*number]).collect::<Vec<_>>() {
        bytes[frame.body()..frame.end()].iter_mut().for_each(|byte| *byte ^= 0x5a);
    }
    bytes
}

/// A backup, at these destinations; and the names of its arcs of file data.
fn save(lab: &Lab, rng: &mut Rng, places: &[&str]) -> Vec<String> {
    places.iter().for_each(|name| setid(lab, name));
    lab.write("big", &rng.bytes(2_600_000));
    lab.write("small", b"some bytes");
    lab.assay("backup", NONE).arg(lab.src()).ok();
    let all = arcs(&lab.repo());
    let data: Vec<String> =
        all.iter().filter(|(_, bytes)| block_frames(bytes).len() > 1).map(|(name, _)| name.clone()).collect();
    assert!(data.len() > 1, "{data:?}");
    data
}

#[test]
fn a_fix_with_one_place_full_and_one_away_mends_what_can_be_mended() {
    if !is_root() {
        return;
    }
    let mut rng = Rng::from_env("full and away");
    let lab = lab_with(&[("usb", ""), ("nas", ""), ("attic", "")]);
    let usb = lab.path("usb");
    disk(&usb, "16m");
    let data = save(&lab, &mut rng, &["usb", "nas", "attic"]);
    let pristine = arcs(&lab.repo());
    // Here one is gone and one has bad frames; at usb one is gone and its room is taken, one has a bad frame.
    fs::remove_file(lab.repo().join(&data[0])).expect("remove");
    overwrite(&lab.repo().join(&data[1]), &ruined(&pristine[&data[1]], &[0, 1]));
    fs::remove_file(usb.join(&data[0])).expect("remove");
    let bad_there = ruined(&pristine[&data[1]], &[1]);
    overwrite(&usb.join(&data[1]), &bad_there);
    let filler = fill(&usb);
    fs::rename(lab.path("nas"), lab.path("unplugged")).expect("rename");
    let at_nas = arcs(&lab.path("unplugged"));

    let out = lab.assay("selftest", ["-v4", "--fix"]).run().code(4);
    println!("{}", out.text());
    assert!(arcs(&lab.repo()) == pristine, "{}", out.text());
    assert!(out.text().contains("DEST_FULL") && out.text().contains("DEST_ABSENT"), "{}", out.text());
    assert!(arcs(&lab.path("attic")) == pristine && arcs(&lab.path("unplugged")) == at_nas, "{}", out.text());
    for (name, bytes) in arcs(&usb) {
        assert!(bytes == pristine[&name] || (name == data[1] && bytes == bad_there), "{name}: {}", out.text());
    }
    // What is there that is not as good as it was is what was gone, and what was bad.
    let gone: Vec<&String> = pristine.keys().filter(|name| !usb.join(name).exists()).collect();
    assert!(gone.iter().all(|name| data[..2].contains(name)), "{gone:?}: {}", out.text());
    assert_eq!((leftovers(&lab.repo()), leftovers(&usb)), (vec![], vec![]), "{}", out.text());
    assert!(!lab.path("nas").exists(), "it is never made");

    // With room and all of them there it is completed.
    fs::remove_file(filler).expect("remove");
    fs::rename(lab.path("unplugged"), lab.path("nas")).expect("rename");
    let out = lab.assay("selftest", ["-v4", "--fix"]).run();
    for place in [lab.repo(), usb.clone(), lab.path("nas"), lab.path("attic")] {
        assert!(arcs(&place) == pristine, "{}: {}", place.display(), out.text());
    }
    lab.assay("selftest", ["-v4"]).ok();
    tool("umount").arg(&usb).ok();
}

#[test]
fn a_full_disk_keeps_no_reader_from_the_right_bytes_and_no_arc_gets_worse() {
    if !is_root() {
        return;
    }
    let mut rng = Rng::from_env("heal on a full disk");
    let lab = lab_with(&[("usb", "")]);
    let data = save(&lab, &mut rng, &["usb"]);
    let pristine = arcs(&lab.repo());
    let disk_at = lab.path("disk");
    disk(&disk_at, "32m");
    let repo = disk_at.join("backup");
    tool("cp").arg("-a").arg(lab.repo()).arg(&repo).ok();
    fs::remove_file(repo.join(&data[0])).expect("remove");
    let cut = pristine[&data[1]][..pristine[&data[1]].len() / 2].to_vec();
    overwrite(&repo.join(&data[1]), &cut);
    let mount = Mount::start(&lab, &repo, ["--heal", "write", "--json"]);
    let filler = fill(&disk_at);
    let shown = mount.latest(&lab.src());
    oracle::diff_clean(&lab.src(), &shown, &[]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    oracle::diff_clean(&lab.src(), &shown, &[]);
    let out = mount.end().code(4);
    println!("{}", out.text());
    assert!(out.err().contains("not mended: ") && out.err().contains("No space left"), "{}", out.err());
    let json = out.json();
    assert_eq!((&json["healed"], &json["mended"]), (&json["damage"], &0.into()), "{json}");
    assert!(!repo.join(&data[0]).exists() && fs::read(repo.join(&data[1])).expect("read") == cut, "{}", out.err());
    assert_eq!(leftovers(&repo), Vec::<String>::new(), "{}", out.err());
    // With room it is mended the next time.
    fs::remove_file(filler).expect("remove");
    let mount = Mount::start(&lab, &repo, ["--heal", "write"]);
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    let out = mount.end().code(4);
    assert!(arcs(&repo) == pristine, "{}", out.err());
    lab.assay_on(&repo, "selftest", ["-v3"]).ok();
    tool("umount").arg(&disk_at).ok();
}
