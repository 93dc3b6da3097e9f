//! Several versions of a changing tree: each shows what was there then, inodes are stable, `latest` is the newest.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::support::rng::Rng;
use crate::support::{Lab, names_in, odd, oracle, tool};

/// Changes of every sort between version `step` and the next.
fn change(src: &Path, step: u32, rng: &mut Rng) {
    let at = |name: &str| src.join(name);
    match step {
        0 => {
            fs::write(at("new-file"), rng.bytes(200_000)).unwrap();
            fs::create_dir_all(at("new-dir/below")).unwrap();
            fs::write(at("new-dir/below/file"), rng.text(5000)).unwrap();
            fs::remove_file(at("plain/len-4096")).unwrap();
            odd::append(&at("plain/random"), &rng.bytes(1000));
            fs::set_permissions(at("plain/text"), fs::Permissions::from_mode(0o600)).unwrap();
        }
        1 => {
            fs::rename(at("plain/nested"), at("plain/renamed")).unwrap();
            fs::remove_file(at("links/sym-again")).unwrap();
            // Type changes: file → directory, directory → file, symlink → file, file → symlink.
            fs::remove_file(at("plain/one-byte")).unwrap();
            fs::create_dir(at("plain/one-byte")).unwrap();
            fs::write(at("plain/one-byte/inside"), b"x").unwrap();
            fs::remove_dir_all(at("plain/empty")).unwrap();
            fs::write(at("plain/empty"), b"now a file").unwrap();
            fs::remove_file(at("links/dangling")).unwrap();
            fs::write(at("links/dangling"), b"now a file").unwrap();
            fs::remove_file(at("plain/no-newline")).unwrap();
            symlink("text", at("plain/no-newline")).unwrap();
        }
        2 => {
            fs::hard_link(at("plain/twin-1"), at("plain/twin-3")).unwrap();
            tool("setfattr").args(["-n", "user.comment", "-v", "changed"]).arg(at("xattr/few")).ok();
            tool("setfacl").arg("-b").arg(at("acl/file")).ok();
            tool("touch").args(["-d", "@1500000000.5"]).arg(at("times/dir-ordinary")).ok();
            fs::remove_dir_all(at("many")).unwrap();
            // Same size, same mtime, other content: only ctime tells.
            let path = at("plain/len-65536");
            let old = fs::metadata(&path).unwrap();
            fs::write(&path, rng.bytes(65_536)).unwrap();
            let stamp = format!("@{}.{:09}", old.mtime(), old.mtime_nsec());
            tool("touch").args(["-d", &stamp]).arg(&path).ok();
        }
        _ => {
            // What was removed comes back.
            fs::rename(at("plain/renamed"), at("plain/nested")).unwrap();
            fs::create_dir(at("many")).unwrap();
            fs::write(at("many/one"), b"1").unwrap();
            fs::remove_dir_all(at("new-dir")).unwrap();
        }
    }
}

#[test]
fn each_version_shows_the_tree_of_its_time() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("versions");
    odd::odd_tree(&lab.src(), &mut rng);
    lab.init();
    let mut listings = Vec::new();
    for version in 0..5 {
        let out = lab.backup();
        assert!(!out.text().is_empty(), "a backup ends with a summary");
        listings.push(oracle::listing(&lab.src()));
        tool("cp").arg("-a").arg(lab.src()).arg(lab.path(&format!("then-{version}"))).ok();
        if version < 4 {
            change(&lab.src(), version, &mut rng);
        }
    }
    assert_eq!(lab.versions(), [0, 1, 2, 3, 4]);
    let mount = lab.mount();
    for (version, listing) in listings.iter().enumerate() {
        let shown = mount.version(version as u64, &lab.src());
        let then = lab.path(&format!("then-{version}"));
        oracle::same_as_listing(listing, &shown);
        oracle::rsync_clean(&then, &shown);
        oracle::diff_clean(&then, &shown, &["special"]);
        oracle::same_xattrs(&then, &shown);
        oracle::same_acls(&then, &shown);
    }
    assert_eq!(mount.end().ok().code, Some(0));
}

#[test]
fn folder_names_and_latest() {
    let lab = Lab::with_files(&[("a", b"1")]);
    lab.backup();
    let mount = lab.mount();
    let names: Vec<String> = names_in(&lab.mnt()).into_iter().map(|n| String::from_utf8(n).unwrap()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(names.last().map(String::as_str), Some("latest"));
    for (name, suffix) in names.iter().zip(["-r0", "-r1"]) {
        let stem = name.strip_suffix(suffix).unwrap_or_else(|| panic!("{name} does not end in {suffix}"));
        let shape: String = stem.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert_eq!(shape, "9999-99-99-9999", "{name}");
    }
    let target = fs::read_link(lab.mnt().join("latest")).unwrap();
    assert_eq!(target.to_str(), Some(names[1].as_str()));
    assert!(lab.mnt().join("latest").symlink_metadata().unwrap().is_symlink());
    mount.end().ok();
}

#[test]
fn inodes_are_shared_only_while_nothing_changes() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("inodes");
    odd::odd_tree(&lab.src(), &mut rng);
    lab.init();
    lab.backup();
    change(&lab.src(), 0, &mut rng);
    lab.backup();
    let mount = lab.mount();
    let (r0, r1) = (mount.version(0, &lab.src()), mount.version(1, &lab.src()));
    let (old, new) = (oracle::inodes(&r0), oracle::inodes(&r1));
    let changed: [&[u8]; 2] = [b"plain/random", b"plain/text"];
    let mut shared = 0;
    for (path, (inode, is_dir)) in &old {
        let Some((other, _)) = new.get(path) else {
            assert_eq!(path.as_slice(), b"plain/len-4096");
            continue;
        };
        let text = String::from_utf8_lossy(path);
        if *is_dir {
            assert_ne!(inode, other, "{text}: two versions share a directory inode");
        } else if changed.contains(&path.as_slice()) {
            assert_ne!(inode, other, "{text} changed, its inode did not");
        } else {
            assert_eq!(inode, other, "{text} did not change, its inode did");
            shared += 1;
        }
    }
    assert!(shared > 5000);
    mount.end().ok();

    let again = lab.mount();
    assert_eq!(oracle::inodes(&again.version(0, &lab.src())), old, "after a remount");
    assert_eq!(oracle::inodes(&again.version(1, &lab.src())), new, "after a remount");
    again.end().ok();
}

#[test]
fn an_open_directory_stays_in_its_version() {
    let lab = Lab::with_files(&[("dir/a", b"old")]);
    lab.write("dir/a", b"newer");
    lab.write("dir/b", b"more");
    lab.backup();
    let mount = lab.mount();
    let (r0, r1) = (mount.version(0, &lab.src().join("dir")), mount.version(1, &lab.src().join("dir")));
    // A shell that stands in r0 while r1 is listed still sees r0, and `pwd -P` says so.
    let script = format!("cd '{}' && ls -l '{}' >/dev/null && cat a && /bin/pwd -P && ls", r0.display(), r1.display());
    let out = tool("sh").arg("-c").arg(script).ok().out();
    assert_eq!(out, format!("old{}\na\n", r0.display()));
    let diff = tool("diff").arg("-r").arg(&r0).arg(&r1).run().code(1).out();
    assert!(diff.contains("Only in") && diff.contains(": b"), "{diff}");
    assert!(diff.contains("newer"), "{diff}");
    mount.end().ok();
}

#[test]
fn a_run_replaces_only_the_paths_that_it_was_given() {
    let lab = Lab::new();
    lab.write("a/file", b"a0");
    lab.write("b/file", b"b0");
    lab.init();
    lab.assay("backup", [lab.src().join("a"), lab.src().join("b")]).ok();
    lab.write("a/file", b"a1!");
    lab.write("b/file", b"b1!");
    lab.assay("backup", [lab.src().join("a")]).ok();
    let mount = lab.mount();
    let read = |version, name: &str| fs::read_to_string(mount.version(version, &lab.src()).join(name)).unwrap();
    assert_eq!((read(0, "a/file"), read(0, "b/file")), ("a0".into(), "b0".into()));
    assert_eq!((read(1, "a/file"), read(1, "b/file")), ("a1!".into(), "b0".into()));
    mount.end().ok();
}

#[test]
fn one_revision_or_only_what_changed() {
    let lab = Lab::with_files(&[("same", b"same"), ("dir/changes", b"1"), ("other/same", b"x")]);
    lab.write("dir/changes", b"second");
    lab.backup();

    let mount = lab.mount_with(["-r", "0"]);
    assert_eq!(fs::read(mount.version(0, &lab.src()).join("dir/changes")).unwrap(), b"1");
    let names: Vec<String> = names_in(&lab.mnt()).into_iter().map(|n| String::from_utf8(n).unwrap()).collect();
    assert!(!names.iter().any(|name| name.ends_with("-r1")), "{names:?}");
    mount.end().ok();

    let mount = lab.mount_with(["--changed"]);
    let shown = mount.version(1, &lab.src());
    assert_eq!(fs::read(shown.join("dir/changes")).unwrap(), b"second");
    assert!(!shown.join("same").exists(), "an unchanged file is shown with --changed");
    assert!(!shown.join("other").exists(), "an unchanged directory is shown with --changed");
    assert!(mount.version(0, &lab.src()).join("same").exists());
    mount.end().ok();
}
