//! Names of any bytes: exact where programs read them, one harmless line where people do.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::support::{Lab, NONE, Out, arcfile, names_in, tool};

const NAMES: [&[u8]; 6] = [
    b"a\nssh-ed25519 AAAA",
    b"a\\x0assh-ed25519 AAAA",
    b"\x1b[2Jesc",
    b"\xff\xfe",
    b"back\\slash",
    "\u{202e}txt".as_bytes(),
];

fn lab() -> Lab {
    let lab = Lab::new();
    for name in NAMES {
        fs::write(lab.src().join(OsStr::from_bytes(name)), [name, &[7; 4000]].concat()).expect("write");
    }
    lab.init();
    lab
}

/// The path that an object of ours names, put together as the documentation says.
fn path_of(object: &serde_json::Value) -> Vec<u8> {
    match object.get("path_bytes").and_then(|value| value.as_str()) {
        Some(base64) => tool("base64").arg("-d").run_with_input(base64.as_bytes()).stdout,
        None => object["path"].as_str().expect("a path").as_bytes().to_vec(),
    }
}

#[track_caller]
fn assert_harmless(out: &Out) {
    for bytes in [&out.stdout, &out.stderr] {
        let text = std::str::from_utf8(bytes).unwrap_or_else(|e| panic!("{}: {e}", out.what));
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{}: {text:?}", out.what);
        assert!(!text.lines().any(|line| line.starts_with("ssh-")), "{}: {text}", out.what);
    }
}

#[test]
fn json_tells_every_name_exactly() {
    let lab = lab();
    lab.backup();
    let listed = lab.assay("ls", ["--json"]).arg(lab.src()).ok();
    let objects = listed.out();
    let paths: BTreeSet<Vec<u8>> =
        objects.lines().map(|line| path_of(&serde_json::from_str(line).expect("JSON"))).collect();
    for name in NAMES {
        let wanted = [lab.src().as_os_str().as_bytes(), b"/", name].concat();
        assert!(paths.contains(&wanted), "{name:?} is not in {objects}");
        // What was printed is what brings the file back.
        let out = lab.out_dir();
        lab.assay("get", [OsStr::new("--to"), out.as_os_str(), OsStr::from_bytes(&wanted)]).ok();
    }
    assert_eq!(names_in(&lab.out_dir()), names_in(&lab.src()));
}

#[test]
fn no_name_writes_a_line_of_its_own_or_talks_to_the_terminal() {
    let lab = lab();
    let tag = ["-v", "-t", "tag\x1b[31m\nssh-rsa AAAA"];
    assert_harmless(&lab.backup_with(tag));
    assert_harmless(&lab.assay("versions", NONE).ok());
    assert_harmless(&lab.assay("ls", ["-l", "-a"]).arg(lab.src()).ok());
    let missing = lab.src().join(OsStr::from_bytes(b"none\nssh-dss"));
    for command in ["ls", "get", "damage", "backup"] {
        let out = lab.assay(command, [missing.as_os_str()]).run();
        assert!(out.code != Some(0) && out.err().contains("none\\x0assh-dss"), "{command}: {}", out.err());
        assert_harmless(&out);
    }
    spoil_all(&lab.repo());
    let mount = lab.mount();
    for name in NAMES {
        fs::read(mount.latest(&lab.src()).join(OsStr::from_bytes(name))).expect_err("damaged");
    }
    assert_harmless(&mount.end().code(4));
    let out = lab.out_dir();
    assert_harmless(&lab.assay("get", [OsStr::new("--to"), out.as_os_str(), lab.src().as_os_str()]).run().code(4));
    for level in ["-v3", "-v5"] {
        let found = lab.assay("selftest", [level]).run().code(4);
        assert!(found.text().contains("a\\x0assh-ed25519"), "{}", found.text());
        assert_harmless(&found);
    }
    assert_harmless(&lab.assay("stats", NONE).run());
    assert_harmless(&lab.assay("coverage", ["--list", "none"]).run());
}

/// Damages each block of the first data arc beyond repair.
fn spoil_all(repo: &Path) {
    let path = repo.join("arc.0.1");
    let mut bytes = fs::read(&path).expect("read");
    arcfile::frames(&bytes).iter().for_each(|frame| arcfile::spoil(&mut bytes, frame));
    fs::write(&path, bytes).expect("write");
}
