//! Backup dirs that were made once, by the program of their time, and are kept for ever: fixtures/FORMAT/README.md.
//!
//! What they must show was written down then by find, sha256sum and getfattr, from the source itself.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::{Lab, NONE, below, is_root, tool};

/// What was saved, in all of them.
const SOURCE: &str = "/var/tmp/assay-format2/source";
const PASSPHRASE: &str = "correct horse ☃";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-tests/fixtures/format2").join(name)
}

fn recorded(name: &str) -> String {
    String::from_utf8_lossy(&fs::read(fixture("listings").join(name)).expect("a listing")).into_owned()
}

/// A lab whose backup dir is a copy of a fixture, with the modes that git does not keep.
fn lab_with(name: &str, wanted: &dyn Fn(&OsStr) -> bool) -> Lab {
    fn copy(from: &Path, to: &Path, wanted: &dyn Fn(&OsStr) -> bool) {
        fs::create_dir(to).expect("mkdir");
        fs::set_permissions(to, fs::Permissions::from_mode(0o700)).expect("chmod");
        for entry in fs::read_dir(from).expect("read the fixture") {
            let entry = entry.expect("an entry");
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            if entry.file_type().expect("type").is_dir() {
                copy(&from, &to, wanted);
            } else if wanted(&entry.file_name()) {
                fs::write(&to, fs::read(&from).expect("read")).expect("write");
                fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("chmod");
            }
        }
    }
    let lab = Lab::new();
    copy(&fixture(name), &lab.repo(), wanted);
    lab
}

/// Each version, as it was told: `v`, folder name, root digest.
fn versions(lab: &Lab, listing: &str) -> Vec<(String, String)> {
    let lines = recorded(listing);
    assert_eq!(lab.assay("versions", ["--digest"]).ok().out(), lines);
    let of_line = |line: &str| {
        let mut words = line.split(' ').map(str::to_string);
        (words.next().expect("a version"), words.next().expect("a folder name"))
    };
    lines.lines().map(of_line).collect()
}

#[track_caller]
fn shows(dir: &Path, version: &str) {
    let found = tool("bash").arg(fixture("listing")).arg(dir).ok();
    let recorded = fs::read(fixture("listings").join(version)).expect("a listing");
    let lines = |bytes: &[u8]| -> Vec<String> {
        bytes.split(|byte| *byte == b'\n').map(|line| line.escape_ascii().to_string()).collect()
    };
    assert_eq!(lines(&found.stdout), lines(&recorded), "{version}");
}

/// Restored and mounted, each version is what was saved.
#[track_caller]
fn all_is_as_it_was(lab: &Lab) {
    let versions = versions(lab, "digests");
    assert_eq!(versions.iter().map(|(version, _)| version.as_str()).collect::<Vec<_>>(), ["r0", "r2", "r4", "r7"]);
    for (version, _) in &versions {
        let to = lab.out_dir().join(version);
        let got = lab.assay("get", ["-y", "-r", version, "--to"]).arg(&to).arg(SOURCE).run();
        // Only root can give files away.
        assert_eq!(got.code, Some(if is_root() { 0 } else { 3 }), "{version}: {}", got.text());
        shows(&to.join("source"), version);
        fs::remove_dir_all(&to).expect("rm");
    }
    let mount = lab.mount_with(["--owner-me"]);
    for (version, folder) in &versions {
        shows(&below(&mount.point.join(folder), Path::new(SOURCE)), version);
    }
    mount.end().ok();
    lab.assay("selftest", ["-v5"]).ok();
}

#[test]
fn a_backup_dir_of_format_2_shows_what_was_saved_and_goes_on() {
    let lab = lab_with("backup", &|_| true);
    // Its ledger: the selftests that it went through then.
    let told = lab.assay("stats", ["--json"]).ok().json();
    for level in [3, 5] {
        let runs = told["selftests"].as_array().expect("an array");
        assert!(runs.iter().any(|run| run["level"] == level && run["findings"] == 0), "no -v{level}: {told}");
    }
    assert_eq!(told["open_damage"], 0);
    all_is_as_it_was(&lab);
    lab.write("new", b"saved by another program");
    lab.backup();
    let lines = lab.assay("versions", ["--digest"]).ok().out();
    let added = lines.strip_prefix(recorded("digests").as_str()).expect("the versions before it");
    assert!(added.starts_with("r8 ") && added.lines().count() == 1, "{added}");
    lab.assay("selftest", ["-v5"]).ok();
}

#[test]
fn a_backup_dir_of_format_2_is_recovered_from_its_arcs_and_key() {
    let lab = lab_with("backup", &|name| name == "key.conf" || name.to_string_lossy().starts_with("arc."));
    lab.assay("recover", NONE).ok();
    all_is_as_it_was(&lab);
}

#[test]
fn a_wrapped_key_of_format_2_opens_with_its_passphrase() {
    let lab = lab_with("wrapped", &|_| true);
    let with = |command: &str, args: &[&str], passphrase: &str| {
        lab.assay(command, args).env("ASSAY_PASSPHRASE", passphrase).run()
    };
    with("recover", &[], "another").code(12);
    with("recover", &[], PASSPHRASE).ok();
    assert_eq!(with("versions", &["--digest"], PASSPHRASE).ok().out(), recorded("digests-wrapped"));
    let to = lab.out_dir();
    with("get", &["-y", "--to", &to.to_string_lossy(), &format!("{SOURCE}/file")], PASSPHRASE);
    assert_eq!(fs::read(to.join("file")).expect("restored"), b"wrapped\n");
}

#[test]
fn the_second_reader_reads_a_backup_dir_of_format_2() {
    let (key, dir) = (fixture("backup/key.conf"), fixture("backup"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/read-arc.py");
    let reader = |args: &[&str]| tool("/usr/bin/python3").arg(&script).args(args).arg(&key).arg(&dir).ok();
    // As each version was when it was made, those that were removed later and paths that were taken away among them.
    assert_eq!(reader(&["--roots"]).out(), recorded("digests-then"));
    let files = ["before-1970", "copy of stays", "docs/small-07", "empty", "hole", "large", "sparse", "stays"];
    for name in files {
        let sum = tool("sha256sum").run_with_input(&reader(&["--file", &format!("{SOURCE}/{name}")]).stdout).ok().out();
        let (sum, listing) = (sum.split(' ').next().unwrap_or_default(), recorded("r7"));
        assert!(listing.contains(&format!("{sum}  ./{name}\n")), "{name}: {sum}");
    }
}
