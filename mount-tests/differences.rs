//! `diff` and `compare`, with `diff -rq` and the source as judges.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use crate::support::rng::Rng;
use crate::support::{Lab, Out, arcfile, tool};

/// What a command said, by path relative to the source.
fn said(lab: &Lab, out: &Out) -> BTreeMap<String, (String, Vec<String>, Option<String>)> {
    let root = format!("{}/", lab.src().display());
    let mut found = BTreeMap::new();
    for line in out.out().lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let Some(path) = value["path"].as_str().and_then(|path| path.strip_prefix(&root)) else { continue };
        let differs = value["differs"].as_array().expect("differs");
        let differs = differs.iter().map(|what| what.as_str().expect("word").to_string()).collect();
        let verdict = value["verdict"].as_str().map(str::to_string);
        found.insert(path.to_string(), (value["change"].as_str().expect("change").to_string(), differs, verdict));
    }
    found
}

fn lines(all: &BTreeMap<String, (String, Vec<String>, Option<String>)>) -> Vec<String> {
    all.iter().map(|(path, (sign, differs, _))| format!("{sign} {path} {}", differs.join(","))).collect()
}

fn touch(lab: &Lab, name: &str, seconds_ago: u64) {
    let file = fs::File::options().write(true).open(lab.src().join(name)).expect("open");
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds_ago)).expect("times");
}

#[test]
fn two_versions_differ_in_what_was_changed_and_in_nothing_else() {
    let mut rng = Rng::from_env("diff");
    let lab = Lab::new();
    lab.init();
    for n in 0..30 {
        lab.write(&format!("same/{n}/file"), &rng.bytes(2000));
    }
    lab.write("content", b"one");
    lab.write("longer", &rng.bytes(900_000));
    lab.write("mode", b"same");
    lab.write("gone/deep/file", b"x");
    lab.write("becomes-dir", b"x");
    lab.write("d/in", b"x");
    std::os::unix::fs::symlink("old", lab.src().join("link")).expect("symlink");
    lab.backup();
    assert_eq!(lab.assay("diff", ["r0", "latest"]).ok().out(), "No differences.\n");
    lab.write("content", b"two");
    lab.write("longer", &rng.bytes(910_000));
    fs::set_permissions(lab.src().join("mode"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::remove_dir_all(lab.src().join("gone")).expect("rm");
    fs::remove_file(lab.src().join("becomes-dir")).expect("rm");
    lab.write("becomes-dir/new", b"x");
    lab.write("added/deep/file", b"x");
    fs::remove_file(lab.src().join("link")).expect("rm");
    std::os::unix::fs::symlink("new", lab.src().join("link")).expect("symlink");
    lab.backup();
    let out = lab.assay("diff", ["0", "r1", "--json"]).run().code(1);
    let found = said(&lab, &out);
    let mut of_content = lines(&found);
    // Times of what was written say little.
    of_content.iter_mut().for_each(|line| *line = line.replace(",mtime", "").replace(",ctime", ""));
    assert_eq!(
        of_content,
        [
            "+ added ",
            "+ added/deep ",
            "+ added/deep/file ",
            "T becomes-dir type",
            "+ becomes-dir/new ",
            "M content content",
            "- gone ",
            "- gone/deep ",
            "- gone/deep/file ",
            "M link target",
            "M longer content,size",
            "T mode mode",
        ]
    );
    // The other way round; and what diff(1) says of the two trees.
    let back = said(&lab, &lab.assay("diff", ["1", "0", "--json"]).run().code(1));
    let swapped = |sign: &str| match sign {
        "+" => "-".to_string(),
        "-" => "+".to_string(),
        other => other.to_string(),
    };
    for (path, (sign, differs, _)) in &found {
        if !path.starts_with("becomes-dir/") {
            assert_eq!(
                back.get(path).map(|(sign, differs, _)| (swapped(sign), differs.clone())),
                Some((sign.clone(), differs.clone())),
                "{path}"
            );
        }
    }
    let mount = lab.mount();
    let judge = tool("diff").arg("-rq").arg(mount.version(0, &lab.src())).arg(mount.version(1, &lab.src())).run();
    let judged = judge
        .out()
        .lines()
        .filter(|line| line.starts_with("Files ") || line.starts_with("Only ") || line.starts_with("File "))
        .count();
    // gone, added, becomes-dir, content, longer, and link, which leads nowhere on either side.
    assert!((5..=7).contains(&judged), "{}", judge.text());
    mount.end().ok();
    // Below a path, as text.
    let text = lab.assay("diff", ["r0", "r1"]).arg(lab.src().join("added")).run().code(1);
    assert!(text.out().starts_with(&format!("+ {}/added/\n", lab.src().display())), "{}", text.out());
    assert!(
        text.out().ends_with("3 added, 0 removed, 0 with other content, 0 with other attributes.\n"),
        "{}",
        text.out()
    );
    lab.assay("diff", ["r0", "r1"]).arg(lab.src().join("same")).ok();
    let out = lab.assay("diff", ["r0", "r1", "/none"]).run().code(1);
    assert!(out.err().contains("NO_PATH"), "{}", out.err());
    lab.assay("diff", ["r0", "r7"]).run().code(1);
}

#[test]
fn the_live_tree_is_compared_with_a_version() {
    let mut rng = Rng::from_env("compare");
    let lab = Lab::new();
    lab.init();
    for name in ["same", "edited", "rotted", "rewritten", "attr", "gone", "touched"] {
        lab.write(name, &rng.bytes(70_000));
        touch(&lab, name, 1000);
    }
    lab.write("sub/file", b"x");
    std::os::unix::fs::symlink("there", lab.src().join("link")).expect("symlink");
    lab.backup();
    assert_eq!(lab.assay("compare", ["-f"]).ok().out(), "No differences.\n");
    assert_eq!(lab.assay("compare", ["-r", "0"]).arg(lab.src()).ok().out(), "No differences.\n");
    lab.write("edited", &rng.bytes(70_001));
    // Another content, and the times put back: only the ctime shows it.
    let before = fs::metadata(lab.src().join("rewritten")).expect("stat").modified().expect("mtime");
    lab.write("rewritten", &rng.bytes(70_000));
    fs::File::options()
        .write(true)
        .open(lab.src().join("rewritten"))
        .expect("open")
        .set_modified(before)
        .expect("times");
    fs::set_permissions(lab.src().join("attr"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::remove_file(lab.src().join("gone")).expect("rm");
    touch(&lab, "touched", 500);
    lab.write("new/file", b"x");
    lab.write("left-out.tmp", b"x");
    fs::write(lab.repo().join("inex.conf"), "*.tmp\n").expect("inex.conf");
    let quick = said(&lab, &lab.assay("compare", ["--json"]).run().code(1));
    assert_eq!(
        lines(&quick),
        ["T attr mode", "M edited content,size,mtime", "- gone ", "+ new ", "+ new/file ", "M touched content,mtime",]
    );
    let full = said(&lab, &lab.assay("compare", ["-f", "--json"]).run().code(1));
    assert_eq!(
        lines(&full),
        [
            "T attr mode",
            "M edited content,size,mtime",
            "- gone ",
            "+ new ",
            "+ new/file ",
            "M rewritten content",
            "T touched mtime",
        ]
    );
    for name in ["edited", "rewritten"] {
        assert_eq!(full[name].2.as_deref(), Some("source edited"), "{name}");
    }
    // After a restore nothing differs, though its ctimes are new.
    lab.assay("get", ["--orig", "-y", "--delete"]).arg(lab.src()).ok();
    let out = lab.assay("compare", ["-f"]).run();
    assert_eq!(out.out(), "No differences.\n", "{}", out.text());
}

#[test]
fn a_bad_backup_is_told_from_an_edited_source() {
    let mut rng = Rng::from_env("a bad backup");
    let lab = Lab::new();
    lab.init();
    for name in ["bad", "edited", "good"] {
        lab.write(name, &rng.bytes(90_000));
    }
    lab.backup();
    lab.write("edited", &rng.bytes(90_000));
    let arc = lab.repo().join("arc.0.1");
    let frame = arcfile::frames(&fs::read(&arc).expect("arc")).remove(0);
    arcfile::rewrite(&arc, |bytes| arcfile::spoil(bytes, &frame));
    let out = lab.assay("compare", ["-f", "--json"]).run().code(4);
    let found = said(&lab, &out);
    let verdicts: Vec<_> = found.iter().map(|(name, (_, _, verdict))| (name.as_str(), verdict.as_deref())).collect();
    assert_eq!(verdicts, [("bad", Some("backup bad")), ("edited", Some("source edited"))], "{}", out.text());
    let text = lab.assay("compare", ["-f"]).run().code(4);
    assert!(text.out().contains("1 file bad in the backup."), "{}", text.out());
    // Without -f nothing of it is read.
    assert_eq!(lines(&said(&lab, &lab.assay("compare", ["--json"]).run().code(1))), ["M edited content,mtime"]);
}

#[test]
fn a_backup_tells_what_it_changed_in_the_same_letters() {
    let lab = Lab::with_files(&[("same", b"x"), ("changes", b"one"), ("goes", b"x")]);
    fs::remove_file(lab.src().join("goes")).expect("rm");
    lab.write("changes", b"two!");
    lab.write("comes", b"x");
    let out = lab.assay("backup", ["-v"]).arg(lab.src()).ok().out();
    let src = lab.src().display().to_string();
    let said: Vec<&str> = out.lines().take_while(|line| line.starts_with(['+', '-', 'M', 'T'])).collect();
    assert_eq!(said.len(), 4, "{out}");
    assert!(said[0].starts_with(&format!("T {src}/  (mtime")), "{out}");
    assert!(said[1].starts_with(&format!("M {src}/changes  (content, size")), "{out}");
    assert_eq!(said[2..], [format!("+ {src}/comes"), format!("- {src}/goes")], "{out}");
    let diff = lab.assay("diff", ["0", "1"]).arg(lab.src()).run().code(1).out();
    assert_eq!(diff.lines().take(4).collect::<Vec<_>>(), said);
    // A first version is all new.
    let other = lab.path("other");
    lab.assay_on(&other, "init", crate::support::NONE).ok();
    let out = lab.assay_on(&other, "backup", ["-v"]).arg(lab.src()).ok().out();
    assert!(out.starts_with(&format!("+ {src}/\n+ {src}/changes\n+ {src}/comes\n+ {src}/same\n")), "{out}");
}
