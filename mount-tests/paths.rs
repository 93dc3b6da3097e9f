//! What users name on the command line: patterns, and paths in a mount.

use std::fs;
use std::path::Path;

use crate::support::Lab;

fn listed(lab: &Lab, from: &Path, args: &[&str]) -> Vec<String> {
    lab.assay("ls", args).dir(from).ok().out().lines().map(str::to_string).collect()
}

#[test]
fn patterns_count_from_the_current_directory_and_must_match() {
    let lab = Lab::with_files(&[("sub/one", b"1"), ("sub/two", b"2"), ("sub/deep/one", b"3"), ("a[b]/one", b"4")]);
    std::os::unix::fs::symlink("src", lab.path("link")).unwrap();
    let at = |rel: &str| lab.src().join(rel).to_str().unwrap().to_string();
    let all = [at("sub/deep"), at("sub/one"), at("sub/two")];
    for (from, pattern) in [
        (lab.src(), "sub/*"),
        (lab.src(), "./sub/*"),
        (lab.src(), "./sub//./*"),
        (lab.src().join("sub"), "./*"),
        (lab.src().join("sub"), "../sub/*"),
        (lab.src().join("sub/deep"), "../*"),
        (lab.root.clone(), "src/sub/*"),
        (lab.root.clone(), "link/sub/*"),
        (lab.root.clone(), "link/sub/*/"),
        (Path::new("/").into(), &at("sub/*")),
        (Path::new("/").into(), lab.path("link/sub/*").to_str().unwrap()),
    ] {
        assert_eq!(listed(&lab, &from, &[pattern]), all, "{pattern} in {from:?}");
    }
    assert_eq!(listed(&lab, &lab.src(), &["s*/*/one"]), [at("sub/deep/one")]);
    assert_eq!(listed(&lab, &lab.src(), &["sub/**/one"]), [at("sub/deep/one"), at("sub/one")]);
    for anywhere in ["one*", "**/one"] {
        assert_eq!(listed(&lab, Path::new("/"), &[anywhere]).len(), 3, "{anywhere}");
    }
    assert_eq!(listed(&lab, &lab.src(), &["a\\[b\\]/o*"]), [at("a[b]/one")]);
    // The place is gone, the version has it.
    fs::remove_dir_all(lab.src().join("sub")).unwrap();
    assert_eq!(listed(&lab, &lab.src(), &["sub/*"]), all);
    for none in ["sub/x*", "none/*", "x?", "/none/*", "sub/one/*", "one/*"] {
        let out = lab.assay("ls", [none]).dir(&lab.src()).run().code(1);
        assert!(out.err().contains("NO_PATH") && out.err().contains(none) && out.out().is_empty(), "{}", out.text());
        lab.assay("ls", ["-a", none]).dir(&lab.src()).run().code(1);
    }
    // The others are listed all the same.
    let out = lab.assay("ls", ["x?", "sub/*"]).dir(&lab.src()).run().code(1);
    assert_eq!(out.out().lines().count(), 3, "{}", out.text());
}

#[test]
fn all_versions_of_a_path_are_those_in_which_it_changed() {
    let lab = Lab::with_files(&[("dir/file", b"one"), ("other", b"0")]);
    lab.write("other", b"r1");
    lab.backup();
    lab.write("dir/file", b"second");
    lab.backup();
    lab.write("other", b"again in r3");
    lab.backup();
    fs::remove_file(lab.src().join("dir/file")).unwrap();
    lab.backup();
    lab.write("dir/file", b"back");
    lab.backup();
    lab.backup();
    let versions = |what: &str| -> Vec<String> {
        let lines = listed(&lab, &lab.src(), &["-a", what]);
        lines.iter().map(|line| line.split_whitespace().next().unwrap().to_string()).collect()
    };
    assert_eq!(versions("dir/file"), ["r0", "r2", "r5"]);
    assert_eq!(versions("dir"), ["r0", "r2", "r5"]);
    assert_eq!(versions("dir/*"), ["r0", "r2", "r5"]);
    assert_eq!(versions("other"), ["r0", "r1", "r3"]);
}

#[test]
fn a_path_in_a_mount_is_what_is_shown_there() {
    let lab = Lab::with_files(&[("dir/file", b"old"), ("dir/other", b"x")]);
    lab.write("dir/file", b"newer");
    lab.backup();
    let mount = lab.mount();
    let folder = |number: usize| {
        let mut names: Vec<_> = fs::read_dir(lab.mnt()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        lab.mnt().join(&names[number])
    };
    let inside = |base: &Path| crate::support::below(base, &lab.src().join("dir"));
    let get = |from: &Path, args: &[&str]| {
        let _ = fs::remove_dir_all(lab.out_dir());
        lab.assay("get", ["-y", "--to"]).arg(lab.out_dir()).args(args).dir(from).ok();
        fs::read(lab.out_dir().join("file")).unwrap()
    };
    assert_eq!(get(&inside(&folder(0)), &["file"]), b"old");
    assert_eq!(get(&inside(&folder(1)), &["file"]), b"newer");
    assert_eq!(get(&inside(&lab.mnt().join("latest")), &["file"]), b"newer");
    assert_eq!(get(Path::new("/"), &[inside(&folder(0)).join("file").to_str().unwrap()]), b"old");
    assert_eq!(get(&inside(&folder(0)), &["-r", "1", "file"]), b"newer", "another version of the same path");
    // A whole version, by its folder.
    let _ = fs::remove_dir_all(lab.out_dir());
    lab.assay("get", ["-y", "--to"]).arg(lab.out_dir()).arg(lab.mnt().join("latest")).ok();
    assert_eq!(fs::read(crate::support::below(&lab.out_dir(), &lab.src().join("dir/file"))).unwrap(), b"newer");
    // Back to where it was, from the mount.
    lab.write("dir/file", b"spoilt");
    lab.assay("get", ["-y", "--orig", "file"]).dir(&inside(&folder(0))).ok();
    assert_eq!(fs::read(lab.src().join("dir/file")).unwrap(), b"old");
    let out = lab.assay("get", ["-y", "file"]).dir(&inside(&folder(0))).run().code(2);
    assert!(out.err().contains("--to") && out.err().contains("--orig"), "{}", out.text());
    let [old, new] = [0, 1].map(|number| inside(&folder(number)).join("file"));
    let out = lab.assay("get", ["-y", "--to"]).arg(lab.out_dir()).args([&old, &new]).run().code(2);
    assert!(out.err().contains("different versions"), "{}", out.text());
    // `ls` and `damage` too.
    let at = |rel: &str| lab.src().join(rel).to_str().unwrap().to_string();
    assert_eq!(listed(&lab, &inside(&folder(0)), &["."]), [at("dir/file"), at("dir/other")]);
    assert_eq!(listed(&lab, &inside(&folder(0)), &["./f*"]), [at("dir/file")]);
    let old_line = listed(&lab, &inside(&folder(0)), &["-l", "file"]).join("");
    assert!(old_line.contains(" 3 "), "three bytes: {old_line}");
    let map = lab.assay("damage", ["file"]).dir(&inside(&folder(0))).ok().out();
    assert!(map.contains("in r0"), "{map}");
    mount.end().ok();
}

#[test]
fn a_path_in_a_mount_of_another_backup_dir_is_not_taken_for_this_one() {
    let lab = Lab::with_files(&[("f", b"theirs")]);
    let other = lab.path("other");
    lab.assay_on(&other, "init", crate::support::NONE).ok();
    lab.write("f", b"ours");
    lab.assay_on(&other, "backup", [lab.src()]).ok();
    let mount = lab.mount();
    let file = mount.latest(&lab.src()).join("f");
    let out = lab.assay_on(&other, "get", ["--to"]).arg(lab.out_dir()).arg(&file).run().code(2);
    assert!(out.err().contains(&format!("-c {}", lab.repo().display())), "{}", out.err());
    lab.assay("get", ["--to"]).arg(lab.out_dir()).arg(&file).ok();
    assert_eq!(fs::read(lab.out_dir().join("f")).unwrap(), b"theirs");
    mount.end();
}
