//! How each copy of an arc stands: ready, unknown, failed, recovering, missing; never better than the truth.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::copies::{arcs_at, lab, setid};
use crate::support::rng::Rng;
use crate::support::{Lab, NONE, tool};

fn world(rng: &mut Rng) -> Lab {
    let lab = lab(&[("usb", ""), ("nas", "")]);
    setid(&lab, "usb");
    setid(&lab, "nas");
    lab.write("big", &rng.bytes(2_600_000));
    lab.write("small", b"some bytes");
    lab.assay("backup", NONE).arg(lab.src()).ok();
    lab
}

/// State and reason of one arc's copy; `place` is "" for the backup dir.
#[track_caller]
fn state(lab: &Lab, arc: &str, place: &str) -> (String, String) {
    let out = lab.assay("dest", ["status", "--json"]).ok().out();
    let all = out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let one = all.into_iter().find(|one| one["arc"] == arc).expect("the arc");
    let stands = match place {
        "" => one["here"].clone(),
        place => {
            let copies = one["copies"].as_array().expect("copies").clone();
            copies.into_iter().find(|copy| copy["name"] == place).expect("the place")
        }
    };
    let text = |key: &str| stands[key].as_str().unwrap_or_default().to_string();
    (text("state"), text("why"))
}

#[track_caller]
fn is(lab: &Lab, arc: &str, place: &str, wanted: &str, why: &str) {
    let (state, found) = state(lab, arc, place);
    assert!(state == wanted && found.contains(why), "{arc} at `{place}`: {state}: {found}");
}

/// How many arcs stand how at each place, by `stats`.
fn counts(lab: &Lab) -> Vec<Value> {
    lab.assay("stats", ["--json"]).ok().json()["copies"].as_array().expect("copies").clone()
}

fn sha256(path: &Path) -> String {
    tool("sha256sum").arg(path).ok().out().split(' ').next().expect("a sum").to_string()
}

/// Other bytes under the name, with the same size, inode and mtime.
fn overwrite_unseen(path: &Path, rng: &mut Rng) {
    let keeper = path.with_extension("keeper");
    tool("touch").arg("-r").arg(path).arg(&keeper).ok();
    let len = fs::metadata(path).expect("stat").len() as usize;
    let mut file = fs::OpenOptions::new().write(true).open(path).expect("open");
    std::io::Write::write_all(&mut file, &rng.bytes(len)).expect("write");
    drop(file);
    tool("touch").arg("-r").arg(&keeper).arg(path).ok();
    fs::remove_file(keeper).expect("remove");
}

fn paths(lab: &Lab, arc: &str) -> [PathBuf; 3] {
    ["backup", "usb", "nas"].map(|place| lab.path(place).join(arc))
}

#[test]
fn what_is_overwritten_and_removed_is_told_recovered_and_has_its_checksum_again() {
    let mut rng = Rng::from_env("states");
    let lab = world(&mut rng);
    let [here, usb, nas] = paths(&lab, "arc.0.1");
    let recorded = sha256(&here);
    // What was just sent was proven there; what is here was written, and not read since.
    is(&lab, "arc.0.1", "usb", "ready", "");
    is(&lab, "arc.0.1", "", "unknown", "not all of it was read");
    lab.assay("selftest", ["-v4"]).ok();
    let arcs = arcs_at(&lab.repo()).len();
    for place in counts(&lab) {
        assert_eq!(place["ready"].as_u64(), Some(arcs as u64), "{place}");
    }
    // One copy is overwritten, size and mtime kept; the other one is removed. Here it is overwritten too.
    overwrite_unseen(&usb, &mut rng);
    fs::remove_file(&nas).expect("remove");
    is(&lab, "arc.0.1", "nas", "missing", "no such file");
    // By content it is found.
    let wrong = sha256(&usb);
    let found = lab.assay("selftest", ["-v4"]).run().code(4);
    let said = format!("arc.0.1 at usb: expected checksum {recorded} doesn't match the existing file checksum {wrong}");
    assert!(found.text().contains(&said), "{}", found.text());
    is(&lab, "arc.0.1", "usb", "failed", &format!("{recorded} doesn't match the existing file checksum {wrong}"));
    is(&lab, "arc.0.1", "nas", "missing", "no such file");
    let told = lab.assay("dest", ["status"]).ok().out();
    assert!(told.contains(&said) && told.contains("arc.0.1 at nas: no such file"), "{told}");
    // All of it heals from what is here, and the recorded checksum is the same.
    lab.assay("selftest", ["-v4", "--fix"]).run().code(4);
    for path in [&here, &usb, &nas] {
        assert_eq!(sha256(path), recorded, "{}", path.display());
    }
    for place in counts(&lab) {
        assert_eq!(place["ready"].as_u64(), Some(arcs as u64), "{place}");
    }
    lab.assay("selftest", ["-v4"]).ok();
}

#[test]
fn a_touch_is_looked_at_and_nothing_else_comes_of_it() {
    let mut rng = Rng::from_env("states");
    let lab = world(&mut rng);
    lab.assay("selftest", ["-v4"]).ok();
    let [here, usb, nas] = paths(&lab, "arc.0.1");
    let bytes = fs::read(&here).expect("read");
    std::thread::sleep(Duration::from_millis(20));
    // Touched; written anew with the same bytes; the same under another inode, with the old mtime.
    tool("touch").arg(&here).arg(&usb).ok();
    let copy = nas.with_extension("copy");
    fs::write(&copy, &bytes).expect("write");
    tool("touch").arg("-r").arg(&nas).arg(&copy).ok();
    fs::rename(&copy, &nas).expect("rename");
    is(&lab, "arc.0.1", "", "unknown", "its mtime changed");
    is(&lab, "arc.0.1", "usb", "unknown", "its mtime changed");
    is(&lab, "arc.0.1", "nas", "unknown", "its inode changed");
    lab.assay("selftest", ["-v4"]).ok();
    for place in ["", "usb", "nas"] {
        is(&lab, "arc.0.1", place, "ready", "");
    }
    // Shorter: that needs no other look.
    fs::OpenOptions::new().write(true).open(&usb).expect("open").set_len(1000).expect("cut");
    is(&lab, "arc.0.1", "usb", "failed", "1000 of");
    // Other bytes, seen by their mtime: unknown, then failed, then sent again.
    crate::support::arcfile::overwrite(&nas, &rng.bytes(bytes.len()));
    is(&lab, "arc.0.1", "nas", "unknown", "changed");
    lab.assay("dest", ["verify", "nas"]).run().code(4);
    is(&lab, "arc.0.1", "nas", "failed", "doesn't match");
    lab.assay("dest", ["sync"]).run();
    for (place, path) in [("usb", &usb), ("nas", &nas)] {
        is(&lab, "arc.0.1", place, "ready", "");
        assert!(fs::read(path).expect("read") == bytes);
    }
}

#[test]
fn a_copy_that_can_not_be_asked_is_unknown_and_never_failed() {
    let mut rng = Rng::from_env("states");
    let lab = world(&mut rng);
    fs::rename(lab.path("usb"), lab.path("unplugged")).expect("rename");
    is(&lab, "arc.0.1", "usb", "unknown", "it can't be asked");
    // A test that could not ask it says nothing of it either; what is here is mended from the other one.
    let [here, ..] = paths(&lab, "arc.0.1");
    let recorded = sha256(&here);
    overwrite_unseen(&here, &mut rng);
    lab.assay("selftest", ["-v4", "--fix"]).run();
    assert_eq!(sha256(&here), recorded);
    is(&lab, "arc.0.1", "", "ready", "");
    is(&lab, "arc.0.1", "usb", "unknown", "it can't be asked");
    fs::rename(lab.path("unplugged"), lab.path("usb")).expect("rename");
    is(&lab, "arc.0.1", "usb", "ready", "");
}

#[test]
fn damage_that_a_reader_meets_here_is_a_state_too() {
    let mut rng = Rng::from_env("states");
    let lab = world(&mut rng);
    lab.assay("selftest", ["-v4"]).ok();
    let [here, ..] = paths(&lab, "arc.0.1");
    std::thread::sleep(Duration::from_millis(1100));
    overwrite_unseen(&here, &mut rng);
    is(&lab, "arc.0.1", "", "ready", "");
    lab.assay("get", ["--to"]).arg(lab.path("got")).arg(lab.src()).run().code(4);
    is(&lab, "arc.0.1", "", "failed", "was met");
    lab.assay("get", ["--heal", "write", "--to"]).arg(lab.path("more")).arg(lab.src()).run().code(4);
    let (state, why) = state(&lab, "arc.0.1", "");
    assert!(state != "failed" && state != "missing", "{state} {why}");
    lab.assay("selftest", ["-v3"]).ok();
    is(&lab, "arc.0.1", "", "ready", "");
}
