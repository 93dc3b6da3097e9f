//! What docs/verifying.md says of each way to read a backup, executed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::mount::Mount;
use crate::support::{Cmd, Lab, NONE, Out, arcfile, tool};

/// A backup of three files; the only block of `bad` is changed on the disk afterwards.
fn damaged_lab() -> Lab {
    let lab = Lab::with_files(&[("good", b"nothing wrong here"), ("bad", &[7; 40_000]), ("sub/empty", b"")]);
    damage(&lab, 40_000);
    lab
}

/// Changes the block with this plain length in two places.
fn damage(lab: &Lab, plain_len: usize) {
    let arc = arcfile::data_arcs(&lab.repo())[0].clone();
    let frames = arcfile::block_frames(&fs::read(&arc).expect("arc"));
    let victim = *frames.iter().find(|frame| frame.lens == [plain_len]).expect("the block");
    arcfile::rewrite(&arc, |bytes| arcfile::spoil(bytes, &victim));
}

/// Runs one way of reading on a mount of its own; gives what it said, and what the mount said.
fn read_by(lab: &Lab, way: impl Fn(&Path) -> Cmd) -> (Out, Out) {
    let mount = lab.mount();
    let shown = mount.latest(&lab.src());
    let said = way(&shown).run();
    (said, mount.end())
}

fn with_slash(path: &Path) -> String {
    format!("{}/", path.display())
}

#[test]
fn ways_that_read_everything_meet_the_damage() {
    let lab = damaged_lab();
    let src = lab.src();
    let diff = |shown: &Path| tool("diff").args(["-r", "--no-dereference"]).arg(&src).arg(shown);
    let rsync = |shown: &Path| {
        let options = ["-aHAXnc", "--delete", "--itemize-changes"];
        tool("rsync").args(options).arg(with_slash(&src)).arg(with_slash(shown))
    };
    let cat = |shown: &Path| tool("sh").arg("-c").arg(format!("find {} -type f -exec cat {{}} +", shown.display()));
    let tar = |shown: &Path| tool("sh").arg("-c").arg(format!("set -e; tar -cf - -C {} . | cat", shown.display()));
    // rsync takes a file that it can't read for one that differs.
    let error = "Input/output error";
    let ways: [&dyn Fn(&Path) -> Cmd; 4] = [&diff, &rsync, &cat, &tar];
    for (way, sign) in ways.into_iter().zip([error, ">fc", error, error]) {
        let (said, mount) = read_by(&lab, way);
        assert!(said.text().contains(sign), "{}: {}", said.what, said.text());
        let told = mount.code(4).text();
        assert!(told.contains("ARC_TAG_MISMATCH") && told.contains("/bad"), "{}: {told}", said.what);
    }
    let said = lab.assay("get", ["--to"]).arg(lab.out_dir()).arg(&src).run().code(4);
    assert!(said.text().contains("bad: bytes 0-40000 are lost"), "{}", said.text());
}

#[test]
fn ways_that_read_no_content_do_not_meet_it() {
    let lab = damaged_lab();
    let src = lab.src();
    let rsync = |shown: &Path| tool("rsync").args(["-an", "--itemize-changes"]).arg(with_slash(&src)).arg(shown);
    let find = |shown: &Path| tool("find").arg(shown).arg("-ls");
    let tar = |shown: &Path| tool("tar").args(["-cf", "/dev/null", "-C"]).arg(shown).arg(".");
    let ways: [&dyn Fn(&Path) -> Cmd; 3] = [&rsync, &find, &tar];
    for way in ways {
        let (said, mount) = read_by(&lab, way);
        let said = said.ok();
        let told = mount.ok().text();
        assert!(told.contains("damage    none met") && told.contains("read      0 files"), "{}: {told}", said.what);
    }
    let copy = arcs_and_key(&lab);
    lab.assay_on(&copy, "recover", NONE).ok();
}

/// A directory with hard links to the arcs and the key, and nothing else.
fn arcs_and_key(lab: &Lab) -> PathBuf {
    let copy = lab.path("proof");
    fs::create_dir(&copy).expect("mkdir");
    for entry in fs::read_dir(lab.repo()).expect("backup dir") {
        let name = entry.expect("entry").file_name();
        if name.to_string_lossy().starts_with("arc.") || name == "key.conf" {
            fs::hard_link(lab.repo().join(&name), copy.join(&name)).expect("link");
        }
    }
    copy
}

#[test]
fn damage_of_the_catalog_is_met_by_recover_only() {
    let lab = Lab::with_files(&[("file", b"some content"), ("sub/other", b"more of it")]);
    let arc = lab.repo().join("arc.0.2");
    arcfile::rewrite(&arc, |bytes| bytes[arcfile::ARC_HEADER_LEN + arcfile::FRAME_HEADER_LEN + 3] ^= 0x20);
    let (said, mount) = read_by(&lab, |shown| tool("diff").arg("-r").arg(lab.src()).arg(shown));
    assert_eq!((said.code, mount.code), (Some(0), Some(0)));
    let copy = arcs_and_key(&lab);
    let said = lab.assay_on(&copy, "recover", NONE).run().code(4);
    assert!(said.text().contains("arc.0.2"), "{}", said.text());
}

#[test]
fn comparing_two_versions_skips_what_is_one_inode() {
    // Too long to share a frame.
    let lab = Lab::with_files(&[("same", &[3; 40_000]), ("other", &[1; 39_000])]);
    lab.write("other", &[2; 39_000]);
    lab.backup();
    damage(&lab, 40_000);
    let mount = lab.mount();
    let (old, new) = (mount.version(0, &lab.src()), mount.version(1, &lab.src()));
    let said = tool("diff").args(["-rq"]).arg(&old).arg(&new).run().code(1);
    assert!(said.out().contains("other") && !said.text().contains("same"), "{}", said.text());
    assert!(mount.end().ok().text().contains("damage    none met"));
    let (said, mount) = read_by(&lab, |shown| tool("diff").arg("-rq").arg(lab.src()).arg(shown));
    assert!(said.code(2).err().contains("same: Input/output error"));
    mount.code(4);
}

#[test]
fn changed_mounts_show_every_state_of_every_file() {
    let lab = Lab::with_files(&[("a", b"a0"), ("b", b"b0"), ("sub/c", b"c0")]);
    lab.write("a", b"a1, longer");
    lab.write("sub/d", b"d1");
    lab.backup();
    fs::remove_file(lab.src().join("b")).expect("remove");
    lab.write("sub/c", b"c2, longer still");
    lab.backup();
    let mount = lab.mount_with(["--changed"]);
    let mut states = BTreeSet::new();
    for version in 0..3 {
        let shown = mount.version(version, &lab.src());
        let found = tool("find").arg(&shown).args(["-type", "f"]).ok().out();
        for path in found.lines() {
            let content = String::from_utf8(fs::read(path).expect("read")).expect("text");
            assert!(states.insert((version, content.clone())), "{path}");
        }
    }
    let wanted = [(0, "a0"), (0, "b0"), (0, "c0"), (1, "a1, longer"), (1, "d1"), (2, "c2, longer still")];
    assert_eq!(states, wanted.map(|(version, content)| (version, content.to_string())).into());
    mount.end().ok();
}

#[test]
fn an_arc_that_is_put_back_is_taken_up_by_a_running_mount() {
    let lab = Lab::with_files(&[("file", b"some content")]);
    let arc = arcfile::data_arcs(&lab.repo())[0].clone();
    let away = lab.path("away");
    fs::rename(&arc, &away).expect("rename");
    let mount = lab.mount();
    let shown = mount.latest(&lab.src()).join("file");
    assert_eq!(fs::read(&shown).expect_err("the arc is away").raw_os_error(), Some(libc::EIO));
    fs::rename(&away, &arc).expect("rename");
    let start = Instant::now();
    while fs::read(&shown).ok().as_deref() != Some(b"some content") {
        assert!(start.elapsed() < Duration::from_secs(20), "the arc is not taken up");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(Mount::end(mount).code(4).text().contains("ARC_MISSING"));
}

#[test]
fn the_recorded_sha1_is_that_of_sha1sum() {
    let lab = Lab::with_files(&[("file", b"some content")]);
    let path = lab.src().join("file");
    let listed = lab.assay("ls", ["--json"]).arg(&path).ok().json();
    let sum = tool("sha1sum").arg(&path).ok().out();
    assert_eq!(listed["sha1"].as_str(), sum.split(' ').next());
}
