//! The index under a running mount: replaced by a recovery, or changed where the mount can only read.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Lab, Mount, NONE, is_root, names_in, oracle, tool};

/// A read-only view of a directory; goes when dropped.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn of(dir: &Path, at: &Path) -> ReadOnly {
        fs::create_dir(at).expect("mkdir");
        tool("mount").arg("--bind").arg(dir).arg(at).ok();
        let guard = ReadOnly(at.to_path_buf());
        tool("mount").args(["-o", "remount,bind,ro"]).arg(at).ok();
        assert!(fs::write(at.join("probe"), b"").is_err(), "it can be written");
        guard
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        tool("umount").arg(&self.0).run();
    }
}

#[test]
fn a_mount_goes_on_with_the_index_that_a_recovery_made() {
    let lab = Lab::with_files(&[("f", b"one"), ("d/g", b"below")]);
    let mount = lab.mount();
    assert_eq!(fs::read(mount.latest(&lab.src()).join("f")).unwrap(), b"one");
    lab.assay("recover", NONE).ok();
    lab.write("f", b"two");
    lab.backup();
    assert_eq!(names_in(&mount.point).len(), 3, "two versions and latest");
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    assert_eq!(fs::read(mount.version(0, &lab.src()).join("f")).unwrap(), b"one");
    mount.end().ok();
    lab.write("f", b"three");
    lab.backup();
    assert_eq!(lab.versions_of(&lab.repo()), [0, 1, 2], "the end of the mount left the new index whole");
}

#[test]
fn a_mount_of_a_read_only_view_shows_what_is_backed_up_meanwhile() {
    if !is_root() {
        // Only root can make a read-only view of a directory; src/index/view_tests.rs has the rest.
        return;
    }
    let lab = Lab::with_files(&[("f", b"one"), ("d/g", b"below")]);
    let view = ReadOnly::of(&lab.repo(), &lab.path("view"));
    let mount = Mount::start(&lab, &view.0, NONE);
    assert_eq!(fs::read(mount.latest(&lab.src()).join("f")).unwrap(), b"one");
    for round in 1..6u64 {
        lab.write("f", format!("round {round}").as_bytes());
        lab.write(&format!("d/{round}"), b"new");
        lab.backup();
        oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
        assert_eq!(names_in(&mount.point).len() as u64, round + 2);
        assert_eq!(names_in(&mount.version(round - 1, &lab.src()).join("d")).len() as u64, round);
    }
    mount.end().ok();
    drop(view);
}
