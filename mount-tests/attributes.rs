//! Virtual attributes of the mount, and the SHA-1 that is compared on the way.

use std::fs;
use std::path::Path;

use crate::support::{Lab, arcfile, tool};

fn attribute(file: &Path, name: &str) -> String {
    let out = tool("getfattr")
        .args(["--only-values", "--absolute-names", "-n"])
        .arg(format!("system.assay.{name}"))
        .arg(file);
    out.ok().out()
}

#[test]
fn attributes_tell_what_is_known_of_a_file() {
    let lab = Lab::with_files(&[("good", b"nothing wrong here"), ("bad", &[7; 40_000]), ("sub/empty", b"")]);
    // The directory of the first is as it was, that of the second has a new name in it.
    lab.write("good", b"nothing wrong here, and more");
    lab.write("sub/new", b"new");
    lab.backup();
    let arc = arcfile::data_arcs(&lab.repo())[0].clone();
    let frames = arcfile::block_frames(&fs::read(&arc).expect("arc"));
    let victim = *frames.iter().find(|frame| frame.lens == [40_000]).expect("the block");
    arcfile::rewrite(&arc, |bytes| {
        bytes[victim.body()] ^= 0x81;
        bytes[victim.tag() + 3] ^= 0x81;
    });
    let mount = lab.mount();
    let shown = mount.latest(&lab.src());
    let (good, bad) = (shown.join("good"), shown.join("bad"));
    let sum = tool("sha1sum").arg(lab.src().join("good")).ok().out();
    assert_eq!(Some(attribute(&good, "sha1").as_str()), sum.split(' ').next());
    assert_eq!((attribute(&good, "version"), attribute(&bad, "version")), ("r1".into(), "r0".into()));
    assert_eq!((attribute(&shown, "version"), attribute(&shown.join("sub"), "version")), ("r0".into(), "r1".into()));
    use std::os::unix::fs::MetadataExt;
    assert_eq!(attribute(&good, "logid"), fs::metadata(&good).expect("stat").ino().to_string());
    let blocks = attribute(&bad, "blocks");
    assert!(blocks.starts_with("1\nb") && blocks.ends_with(&format!(":arc.0.1:{}", victim.number)), "{blocks}");
    assert_eq!((attribute(&good, "health"), attribute(&bad, "health")), ("unknown".into(), "unknown".into()));
    assert_eq!(attribute(&shown.join("sub/empty"), "health"), "good");

    assert_eq!(fs::read(&good).expect("read"), b"nothing wrong here, and more");
    fs::read(&bad).expect_err("it is damaged");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!((attribute(&good, "health"), attribute(&good, "damage")), ("good".into(), String::new()));
    assert_eq!((attribute(&bad, "health"), attribute(&bad, "damage")), ("damaged".into(), "0-40000".into()));
    let verified: serde_json::Value = serde_json::from_str(&attribute(&good, "verified")).expect("JSON");
    assert_eq!((verified["blocks"].as_u64(), verified["proven"].as_u64()), (Some(1), Some(1)));
    assert_eq!((&verified["oldest"]["by"], &verified["read"]["extent"]), (&"mount".into(), &"hashed".into()));

    let none = tool("getfattr").args(["-n", "system.assay.nonsense"]).arg(&good).run();
    assert!(none.err().contains("No such attribute"), "{}", none.text());
    mount.end().code(4);
}

#[test]
fn saved_attributes_are_shown_and_hide_none_of_the_mounts_own() {
    let lab = Lab::new();
    let file = lab.write("file", b"content");
    tool("setfattr").args(["-n", "user.assay.health", "-v", "of the original"]).arg(&file).ok();
    lab.write("other", b"more");
    lab.init();
    lab.backup();
    for listed in [false, true] {
        let mount = lab.mount_with(listed.then_some("--list-xattrs"));
        let shown = mount.latest(&lab.src());
        let value = |name: &str, file: &str| {
            tool("getfattr").args(["--only-values", "--absolute-names", "-n", name]).arg(shown.join(file)).run().out()
        };
        // Whoever may write a file can give it a good word to go with it; nobody can in the name of the system.
        assert!(["unknown", "good"].contains(&value("system.assay.health", "file").as_str()));
        assert_eq!(value("user.assay.health", "file"), "of the original");
        assert_eq!(value("user.assay.logid", "file"), "", "either all are saved ones or none");
        assert_eq!(value("user.assay.health", "other"), value("system.assay.health", "other"));
        let dump =
            |name: &str| tool("getfattr").args(["-d", "-m", "-", "--absolute-names"]).arg(shown.join(name)).ok().out();
        assert_eq!(dump("other").matches("assay.").count(), if listed { 7 } else { 0 });
        assert_eq!(dump("file").matches("assay.").count(), if listed { 8 } else { 1 });
        let differ = tool("rsync")
            .args(["-anXc", "--itemize-changes"])
            .arg(format!("{}/", lab.src().display()))
            .arg(&shown)
            .ok();
        assert_eq!(differ.out(), "");
        mount.end().ok();
    }
}

#[test]
fn long_files_are_hashed_on_the_way_if_asked_to() {
    let mut rng = crate::support::rng::Rng::from_env("hashed");
    let long = rng.bytes(9 << 20);
    let lab = Lab::with_files(&[("long", &long), ("short", b"content")]);
    let hashed = |args: &[&str]| {
        let mount = lab.mount_with(args);
        tool("cmp").arg(lab.src().join("long")).arg(mount.latest(&lab.src()).join("long")).ok();
        tool("cat").arg(mount.latest(&lab.src()).join("short")).ok();
        mount.end().ok();
        let found = lab.assay("coverage", ["--json", "--since", "mount"]).ok().json();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        (found["files"]["whole"].as_u64(), found["files"]["hashed"].as_u64())
    };
    assert_eq!(hashed(&[]), (Some(2), Some(1)));
    assert_eq!(hashed(&["--hash-files"]), (Some(2), Some(2)));
}
