//! Blocks that are bad or missing here come from destinations: what is read is compared with the source tree throughout.

use std::fs;
use std::path::{Path, PathBuf};

use crate::copies::{lab, setid};
use crate::support::arcfile::{block_frames, data_arcs, overwrite};
use crate::support::mount::Mount;
use crate::support::rng::Rng;
use crate::support::{Lab, NONE, Out, oracle, tool};

fn world(rng: &mut Rng) -> Lab {
    let lab = lab(&[("usb", ""), ("nas", "")]);
    setid(&lab, "usb");
    setid(&lab, "nas");
    for number in 0..30 {
        lab.write(&format!("small/{number}"), &rng.bytes(5000 + 700 * number));
    }
    lab.write("big", &rng.bytes(2_600_000));
    lab.assay("backup", NONE).arg(lab.src()).ok();
    lab
}

/// The copies of each arc of file data: here, at usb, at nas.
fn copies_of(lab: &Lab) -> Vec<[PathBuf; 3]> {
    let name = |arc: &PathBuf| arc.file_name().expect("a name").to_owned();
    let copies = |arc: PathBuf| [arc.clone(), lab.path("usb").join(name(&arc)), lab.path("nas").join(name(&arc))];
    data_arcs(&lab.repo()).into_iter().map(copies).collect()
}

/// Damages each of these frames in two places, so that no one bit explains it; returns how many.
fn spoil(path: &Path, rng: &mut Rng, which: impl Fn(usize) -> bool) -> usize {
    let mut bytes = fs::read(path).expect("read");
    let frames = block_frames(&bytes);
    let chosen = frames.iter().enumerate().filter(|(number, _)| which(*number)).map(|(_, frame)| frame);
    let count = chosen
        .map(|frame| {
            for part in 1..3 {
                bytes[frame.offset + (frame.end() - frame.offset) * part / 3] ^= rng.flip();
            }
        })
        .count();
    overwrite(path, &bytes);
    count
}

fn read_all(lab: &Lab, args: &[&str]) -> Out {
    let mount = Mount::start(lab, &lab.repo(), args);
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    mount.end()
}

#[test]
fn one_good_copy_of_each_frame_anywhere_is_enough() {
    let mut rng = Rng::from_env("heal");
    let lab = world(&mut rng);
    read_all(&lab, &[]).ok();
    // Each frame is bad in two of three copies, and no copy is whole.
    let mut bad_here = 0;
    for copies in copies_of(&lab) {
        for (place, path) in copies.iter().enumerate() {
            let count = spoil(path, &mut rng, |number| number % 3 != place);
            bad_here += if place == 0 { count } else { 0 };
        }
    }
    assert!(bad_here > 5, "the fault did not fire");
    let out = read_all(&lab, &["--json"]).code(4);
    let json = out.json();
    assert_eq!(json["elsewhere"].as_u64(), Some(bad_here as u64), "{json}");
    assert_eq!((&json["healed"], &json["damage"]), (&json["elsewhere"], &json["elsewhere"]), "{json}");
    assert!(out.err().contains("read from usb") && out.err().contains("read from nas"), "{}", out.err());
    // A restore does as well.
    let got = lab.assay("get", ["--to"]).arg(lab.path("got")).arg(lab.src()).run().code(4);
    assert!(got.out().contains("read from "), "{}", got.out());
    oracle::rsync_clean(&lab.src(), &crate::atomicity::restored(&lab.path("got"), &lab.src()));
    // Who wants to see what is there sees it, and a selftest does.
    let bare = Mount::start(&lab, &lab.repo(), ["--heal", "off"]);
    let read = tool("cat").arg(bare.latest(&lab.src()).join("big")).run();
    assert!(read.code == Some(1) && read.err().contains("Input/output error"), "{}", read.err());
    bare.end().code(4);
    lab.assay("selftest", ["-v3"]).run().code(4);
    // What is bad in all of them is lost, and costs only itself.
    // (Of the first arc's first frame the copy here was the good one.)
    let [here, ..] = &copies_of(&lab)[0];
    assert_eq!(spoil(here, &mut rng, |number| number == 0), 1);
    let lost = Mount::start(&lab, &lab.repo(), NONE);
    let read = tool("diff").arg("-rq").arg(lab.src()).arg(lost.latest(&lab.src())).run();
    let is_of_big = |line: &str| line.contains("/big: Input/output error");
    assert!(read.out().is_empty() && read.err().lines().all(is_of_big), "{}", read.text());
    assert_eq!((read.code, read.err().lines().count()), (Some(2), 1), "{}", read.text());
    lost.end().code(4);
}

#[test]
fn missing_arcs_come_from_whatever_destination_is_there() {
    let mut rng = Rng::from_env("heal");
    let lab = world(&mut rng);
    let copies = copies_of(&lab);
    copies.iter().for_each(|[here, ..]| fs::remove_file(here).expect("remove"));
    let out = read_all(&lab, &[]).code(4);
    assert!(out.err().contains("ARC_MISSING") && out.err().contains("read from usb"), "{}", out.err());
    // The first one is not plugged in; the second has other bytes under one of the names.
    fs::rename(lab.path("usb"), lab.path("unplugged")).expect("rename");
    assert!(read_all(&lab, &[]).code(4).err().contains("read from nas"));
    let [_, _, there] = &copies[0];
    let pristine = fs::read(there).expect("read");
    overwrite(there, &rng.bytes(pristine.len()));
    let mount = Mount::start(&lab, &lab.repo(), NONE);
    let read = tool("diff").arg("-rq").arg(lab.src()).arg(mount.latest(&lab.src())).run();
    assert!(read.code == Some(2) && !read.out().contains("differ"), "{}", read.text());
    mount.end().code(4);
    // With none of them there is what is here, told as it is.
    fs::rename(lab.path("nas"), lab.path("unplugged-nas")).expect("rename");
    let mount = Mount::start(&lab, &lab.repo(), NONE);
    let read = tool("cat").arg(mount.latest(&lab.src()).join("big")).run();
    assert!(read.code == Some(1) && read.err().contains("Input/output error"), "{}", read.err());
    assert!(mount.end().code(4).err().contains("ARC_MISSING"));
    // Back again, nothing else is needed.
    overwrite(&lab.path("unplugged-nas").join(there.file_name().expect("a name")), &pristine);
    fs::rename(lab.path("unplugged-nas"), lab.path("nas")).expect("rename");
    read_all(&lab, &[]).code(4);
}

#[test]
fn a_mount_of_one_destination_takes_from_another_what_is_bad_there() {
    let mut rng = Rng::from_env("heal");
    let lab = world(&mut rng);
    for [_, usb, _] in copies_of(&lab) {
        spoil(&usb, &mut rng, |number| number % 2 == 0);
    }
    let out = read_all(&lab, &["--from", "usb"]).code(4);
    assert!(out.err().contains("read from nas"), "{}", out.err());
    read_all(&lab, &["--from", "nas"]).ok();
}
