//! `assay get`: every attribute back, damage never passed off as whole.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::atomicity::restored;
use crate::support::rng::Rng;
use crate::support::{Lab, NONE, arcfile, is_root, names_in, odd, oracle, sys, tool};
use crate::user::Ordinary;

#[track_caller]
fn get(lab: &Lab, args: &[&str], to: &Path) -> crate::support::Out {
    lab.assay("get", args).arg("-y").arg("--to").arg(to).arg(lab.src()).run()
}

#[test]
fn everything_comes_back() {
    let lab = Lab::new();
    odd::odd_tree(&lab.src(), &mut Rng::from_env("get"));
    lab.init();
    lab.backup();
    get(&lab, &[], &lab.out_dir()).ok();
    let back = restored(&lab.out_dir(), &lab.src());
    oracle::same_listing_no_ctime(&lab.src(), &back);
    oracle::diff_clean(&lab.src(), &back, &["special"]);
    oracle::rsync_clean(&lab.src(), &back);
    oracle::tar_clean(&lab.src(), &back, &lab.path("home"));
    oracle::same_xattrs(&lab.src(), &back);
    oracle::same_acls(&lab.src(), &back);
    assert_eq!(oracle::hard_link_sets(&lab.src()), oracle::hard_link_sets(&back));
    for name in names_in(&lab.src().join("holes")) {
        let name = String::from_utf8(name).expect("UTF-8");
        let ranges = |base: &Path| sys::data_ranges(&base.join("holes").join(&name)).expect("SEEK_DATA");
        assert_eq!(ranges(&back), ranges(&lab.src()), "{name}");
    }
    // Again over itself: nothing changes.
    get(&lab, &[], &lab.out_dir()).ok();
    oracle::rsync_clean(&lab.src(), &back);
}

#[test]
fn huge_holes_and_deep_paths_come_back() {
    let lab = Lab::new();
    odd::huge_tree(&lab.src().join("huge"));
    odd::deep_tree(&lab.src().join("deep"), b"the leaf");
    lab.init();
    lab.backup();
    get(&lab, &[], &lab.out_dir()).ok();
    let back = restored(&lab.out_dir(), &lab.src());
    oracle::same_listing_no_ctime(&lab.src(), &back);
    let leaf = sys::read_deep(&back.join("deep"), &odd::deep_name(), odd::DEEP_LEVELS, "leaf").expect("leaf");
    assert_eq!(leaf, b"the leaf");
    for name in ["only-hole", "data-past-4g"] {
        let ranges = |base: &Path| sys::data_ranges(&base.join("huge").join(name)).expect("SEEK_DATA");
        assert_eq!(ranges(&back), ranges(&lab.src()), "{name}");
    }
}

#[test]
fn versions_and_single_files() {
    let lab = Lab::with_files(&[("dir/file", b"old"), ("dir/gone", b"gone later")]);
    lab.write("dir/file", b"newer");
    fs::remove_file(lab.src().join("dir/gone")).expect("rm");
    lab.backup();
    let file = lab.src().join("dir/file");
    lab.assay("get", ["-y", "-r", "0", "--to"]).arg(lab.out_dir()).arg(&file).ok();
    let back = restored(&lab.out_dir(), &file);
    assert_eq!(fs::read(&back).unwrap(), b"old");
    lab.assay("get", ["-y", "--to"]).arg(lab.out_dir()).arg(&file).ok();
    assert_eq!(fs::read(&back).unwrap(), b"newer");
    let out = lab.assay("get", ["-y", "--to"]).arg(lab.out_dir()).arg(lab.src().join("dir/gone")).run();
    assert_eq!(out.code, Some(1), "{}", out.text());
    assert!(out.err().contains("gone"), "{}", out.err());
}

#[test]
fn an_existing_file_is_not_overwritten_unasked() {
    let lab = Lab::with_files(&[("file", b"from the backup")]);
    let file = lab.src().join("file");
    lab.assay("get", ["-y", "--to"]).arg(lab.out_dir()).arg(&file).ok();
    let back = restored(&lab.out_dir(), &file);
    fs::write(&back, b"mine").unwrap();
    // No terminal to ask on and no -y: it stays.
    let out = lab.assay("get", ["--to"]).arg(lab.out_dir()).arg(&file).run();
    assert_ne!(out.code, Some(0), "{}", out.text());
    assert_eq!(fs::read(&back).unwrap(), b"mine");
    lab.assay("get", ["-y", "--to"]).arg(lab.out_dir()).arg(&file).ok();
    assert_eq!(fs::read(&back).unwrap(), b"from the backup");
}

#[test]
fn to_the_original_place_and_delete() {
    let lab = Lab::with_files(&[("dir/a", b"a"), ("dir/b", b"b")]);
    fs::remove_file(lab.src().join("dir/a")).unwrap();
    fs::write(lab.src().join("dir/b"), b"spoilt").unwrap();
    lab.write("dir/extra", b"not in the backup");
    lab.assay("get", ["-y", "--orig"]).arg(lab.src().join("dir")).ok();
    assert_eq!(fs::read(lab.src().join("dir/a")).unwrap(), b"a");
    assert_eq!(fs::read(lab.src().join("dir/b")).unwrap(), b"b");
    assert!(lab.src().join("dir/extra").exists(), "deleted without --delete");
    lab.assay("get", ["-y", "--orig", "--delete"]).arg(lab.src().join("dir")).ok();
    assert_eq!(names_in(&lab.src().join("dir")), [b"a".to_vec(), b"b".to_vec()]);
}

#[test]
fn a_damaged_file_is_named_so() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("damaged get");
    let big = rng.bytes(5 * 65_536);
    lab.write("dir/bad", &big);
    lab.write("dir/good", b"all well");
    lab.init();
    lab.backup_with(["-B", "64K"]);
    let arc = arcfile::data_arcs(&lab.repo())[0].clone();
    let frames = arcfile::block_frames(&fs::read(&arc).unwrap());
    let victim = *frames.iter().find(|frame| frame.lens == [65_536]).unwrap();
    arcfile::rewrite(&arc, |bytes| arcfile::spoil(bytes, &victim));
    let out = get(&lab, &[], &lab.out_dir()).code(4);
    assert!(out.text().contains("dir/bad"), "{}", out.text());
    let back = restored(&lab.out_dir(), &lab.src()).join("dir");
    assert_eq!(fs::read(back.join("good")).unwrap(), b"all well");
    assert!(!back.join("bad").exists(), "a damaged file under its own name");
    let rest = fs::read(back.join("bad.damaged")).unwrap();
    // What could be read is right; the lost block is not made up.
    assert_eq!(rest.len(), big.len(), "offsets stay");
    let wrong: Vec<usize> = (0..5).filter(|n| rest[n * 65_536..][..65_536] != big[n * 65_536..][..65_536]).collect();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(rest[wrong[0] * 65_536..][..65_536].iter().all(|byte| *byte == 0), "bytes from nowhere");
    // A good file that is there already is not replaced by a damaged one.
    fs::write(back.join("bad"), b"my good copy").unwrap();
    get(&lab, &[], &lab.out_dir()).code(4);
    assert_eq!(fs::read(back.join("bad")).unwrap(), b"my good copy");
}

#[test]
fn a_missing_arc_loses_only_its_files() {
    let lab = Lab::with_files(&[("one", b"in the first arc")]);
    lab.write("two", b"in the second arc");
    lab.backup();
    fs::remove_file(&arcfile::data_arcs(&lab.repo())[0]).unwrap();
    get(&lab, &[], &lab.out_dir()).code(4);
    let back = restored(&lab.out_dir(), &lab.src());
    assert!(!back.join("one").exists());
    assert_eq!(fs::read(back.join("two")).unwrap(), b"in the second arc");
}

#[test]
fn a_symlink_in_the_way_is_not_followed() {
    let lab = Lab::with_files(&[("dir/file", b"inside")]);
    get(&lab, &[], &lab.out_dir()).ok();
    let back = restored(&lab.out_dir(), &lab.src());
    let outside = lab.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), b"do not touch").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o751)).unwrap();
    fs::remove_dir_all(back.join("dir")).unwrap();
    std::os::unix::fs::symlink(&outside, back.join("dir")).unwrap();
    let _ = get(&lab, &[], &lab.out_dir());
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"do not touch");
    assert_eq!(fs::metadata(&outside).unwrap().permissions().mode() & 0o777, 0o751);
    assert_eq!(names_in(&outside), [b"file".to_vec()]);
    // The same with a symlink in a file's place.
    let _ = fs::remove_file(back.join("dir"));
    let _ = fs::remove_dir_all(back.join("dir"));
    fs::create_dir(back.join("dir")).unwrap();
    std::os::unix::fs::symlink(outside.join("file"), back.join("dir/file")).unwrap();
    get(&lab, &[], &lab.out_dir()).ok();
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"do not touch");
    assert_eq!(fs::read(back.join("dir/file")).unwrap(), b"inside");
}

#[test]
fn delete_spares_the_backup_dir_that_it_reads_from() {
    let lab = Lab::new();
    lab.write("dir/file", b"content");
    let repo = lab.src().join("dir/assay");
    lab.assay_on(&repo, "init", NONE).ok();
    let keys = lab.src().join("keys");
    fs::create_dir(&keys).unwrap();
    lab.assay_on(&repo, "backup", [lab.src()]).ok();
    // The key moves to a directory that the version has, but empty.
    fs::rename(repo.join("key.conf"), keys.join("my.key")).unwrap();
    std::os::unix::fs::symlink(keys.join("my.key"), repo.join("key.conf")).unwrap();
    lab.write("dir/extra", b"goes");
    let before = names_in(&repo);
    let out = lab.assay_on(&repo, "get", ["-y", "--orig", "--delete"]).arg(lab.src()).ok();
    assert!(out.err().contains(repo.to_str().unwrap()) && out.err().contains("my.key"), "{}", out.text());
    assert!(!lab.src().join("dir/extra").exists());
    assert_eq!(names_in(&repo), before);
    assert_eq!(names_in(&keys), [b"my.key".to_vec()]);
    lab.assay_on(&repo, "get", ["-y", "--to"]).arg(lab.out_dir()).arg(lab.src().join("dir/file")).ok();
    let out = lab.assay_on(&repo, "get", ["-y", "--to"]).arg(&repo).arg(lab.src().join("dir/file")).run().code(1);
    assert!(out.err().contains("UNSUPPORTED"), "{}", out.text());
}

/// A file system mounted by a test, gone at its end.
pub struct Mounted(pub std::path::PathBuf);

impl Mounted {
    pub fn new(args: &[&str], point: std::path::PathBuf) -> Mounted {
        fs::create_dir_all(&point).unwrap();
        tool("mount").args(args).arg(&point).ok();
        Mounted(point)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn delete_does_not_reach_into_what_is_mounted() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.write("dir/file", b"content");
    let dir = lab.src().join("dir");
    let source = lab.path("elsewhere");
    fs::create_dir(&source).unwrap();
    let other = Mounted::new(&["-t", "tmpfs", "none"], dir.join("other"));
    let bound = Mounted::new(&["--bind", source.to_str().unwrap()], dir.join("bound"));
    fs::write(other.0.join("inside"), b"precious").unwrap();
    lab.init();
    lab.backup();
    // Bound in the tree it is on the same file system, and saved; then it holds more.
    fs::write(bound.0.join("later"), b"precious").unwrap();
    let late = Mounted::new(&["-t", "tmpfs", "none"], dir.join("extra/late"));
    fs::write(late.0.join("inside"), b"precious").unwrap();
    lab.write("dir/gone", b"not in the version");
    let out = lab.assay("get", ["-y", "--orig", "--delete"]).arg(lab.src()).ok();
    for place in [other.0.join("inside"), bound.0.join("later"), late.0.join("inside")] {
        assert_eq!(fs::read(&place).expect("removed"), b"precious");
        let point = place.parent().unwrap().to_str().unwrap().to_string();
        assert!(out.err().contains(&point), "not told: {point}\n{}", out.text());
    }
    assert!(!dir.join("gone").exists());
    // By its name too: the version has it empty because it was not entered.
    lab.assay("get", ["-y", "--orig", "--delete"]).arg(&other.0).ok();
    assert_eq!(fs::read(other.0.join("inside")).unwrap(), b"precious");
    // Saved with -X it is restored, but emptied of the rest only when it is named.
    lab.backup_with(["-X"]);
    fs::write(other.0.join("new"), b"n").unwrap();
    fs::remove_file(other.0.join("inside")).unwrap();
    lab.assay("get", ["-y", "--orig", "--delete"]).arg(lab.src()).ok();
    assert_eq!(names_in(&other.0), [b"inside".to_vec(), b"new".to_vec()]);
    lab.assay("get", ["-y", "--orig", "--delete"]).arg(&other.0).ok();
    assert_eq!(names_in(&other.0), [b"inside".to_vec()]);
}

#[test]
fn delete_is_refused_when_the_backup_could_not_read_everything() {
    let lab = Lab::new();
    lab.write("dir/file", b"content");
    lab.write("dir/secret/file", b"could not be read");
    lab.write("good/file", b"content");
    let user = Ordinary::of(&lab);
    user.assay("init", NONE).ok();
    let secret = lab.src().join("dir/secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    user.assay("backup", [lab.src()]).run().code(3);
    let get =
        |args: &[&str], what: &str| user.assay("get", ["-y", "--orig"]).args(args).arg(lab.src().join(what)).run();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o755)).unwrap();
    lab.write("dir/extra", b"x");
    let out = get(&["--delete"], "dir").code(1);
    assert!(out.err().contains("DELETE_UNSAFE") && out.err().contains("--ignore-errors"), "{}", out.text());
    assert!(secret.join("file").exists() && lab.src().join("dir/extra").exists());
    // A later run that only takes it over changes nothing about that.
    user.assay("backup", [lab.src().join("good")]).ok();
    get(&["--delete"], "dir").code(1);
    get(&["--delete"], "good").ok();
    get(&[], "dir").ok();
    get(&["--delete", "--ignore-errors"], "dir").ok();
    assert!(!lab.src().join("dir/extra").exists() && !secret.join("file").exists());
}

#[test]
fn delete_leaves_what_backups_leave_out() {
    let lab = Lab::new();
    lab.write("dir/file", b"content");
    lab.init();
    fs::write(lab.repo().join("inex.conf"), "*.iso\n").unwrap();
    lab.write("dir/big.iso", b"excluded by inex.conf");
    lab.write("dir/tmp/x", b"excluded by an option");
    lab.backup_with(["--exclude", "tmp/"]);
    lab.write("dir/extra", b"x");
    lab.assay("get", ["-y", "--orig", "--delete", "--exclude", "tmp/"]).arg(lab.src()).ok();
    assert_eq!(names_in(&lab.src().join("dir")), [&b"big.iso"[..], b"file", b"tmp"]);
    lab.assay("get", ["-y", "--orig", "--delete"]).arg(lab.src()).ok();
    assert_eq!(names_in(&lab.src().join("dir")), [&b"big.iso"[..], b"file"]);
}

#[test]
fn setuid_goes_when_the_owner_can_not_be_set() {
    if !is_root() {
        return;
    }
    let lab = Lab::with_files(&[("program", b"x")]);
    let program = lab.src().join("program");
    std::os::unix::fs::chown(&program, Some(1234), Some(5678)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
    lab.backup();
    let log = lab.path("strace.log");
    let out = tool("strace")
        .args(["-f", "-qq", "-e", "trace=fchownat", "-e", "inject=fchownat:error=EPERM", "-o"])
        .arg(&log)
        .arg("--")
        .arg(crate::support::assay_binary())
        .args(["get", "-y", "-c"])
        .arg(lab.repo())
        .arg("--to")
        .arg(lab.out_dir())
        .arg(&program)
        .run()
        .code(3);
    assert!(fs::read_to_string(&log).unwrap().contains("INJECTED"), "the fault did not fire");
    assert!(out.err().contains("set the owner of"), "{}", out.text());
    let mode = fs::metadata(lab.out_dir().join("program")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

/// A command under limits of open files, as `ulimit` takes them.
fn limited(lab: &Lab, limits: &str, args: &[&std::ffi::OsStr]) -> crate::support::Cmd {
    tool("sh")
        .env("HOME", lab.path("home"))
        .args(["-c", &format!("ulimit {limits}; exec \"$@\""), "sh"])
        .arg(crate::support::assay_binary())
        .args(args)
}

#[test]
fn the_limit_of_open_files_is_raised_and_running_out_is_no_empty_directory() {
    let lab = Lab::new();
    let mut deep = lab.src();
    (0..300).for_each(|_| deep.push("d"));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("leaf"), b"leaf").unwrap();
    lab.init();
    let (src, repo, out) = (lab.src(), lab.repo(), lab.out_dir());
    let backup = ["backup".as_ref(), "-c".as_ref(), repo.as_os_str(), src.as_os_str()];
    // A backup keeps within the limit; what it can't help is that others use up what the machine has.
    let strace = tool("strace").args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=openat:error=EMFILE", "-P"]);
    let strace = strace.arg(src.join("d/d/d")).arg(crate::support::assay_binary());
    let failed = strace.env("HOME", lab.path("home")).args(backup).run().code(1);
    assert!(failed.err().contains("Too many open files") && failed.err().contains("ulimit -n"), "{}", failed.text());
    assert_eq!(failed.err().lines().count(), 2, "{}", failed.text());
    assert!(lab.versions().is_empty(), "a version without what could not be opened");
    limited(&lab, "-n 150", &backup).ok();
    let get = ["get", "-y", "-c"].map(std::ffi::OsStr::new);
    let get: Vec<_> =
        get.into_iter().chain([repo.as_os_str(), "--to".as_ref(), out.as_os_str(), src.as_os_str()]).collect();
    limited(&lab, "-S -n 150", &get).ok();
    let back = restored(&out, &src);
    assert_eq!(fs::read(back.join(deep.strip_prefix(&src).unwrap()).join("leaf")).unwrap(), b"leaf");
}

#[test]
fn a_path_is_found_however_it_is_written() {
    let lab = Lab::with_files(&[("dir/sub/file", b"content"), ("dir/a[1]*?", b"odd")]);
    std::os::unix::fs::symlink("src/dir", lab.path("link")).unwrap();
    let get = |from: &Path, path: &Path| {
        let _ = fs::remove_dir_all(lab.out_dir());
        lab.assay("get", ["-y", "--to"]).arg(lab.out_dir()).arg(path).dir(from).ok();
        fs::read(lab.out_dir().join(path.file_name().unwrap())).unwrap()
    };
    assert_eq!(get(&lab.root, &lab.path("link/sub/file")), b"content");
    assert_eq!(get(&lab.root, Path::new("link/sub/file")), b"content");
    fs::remove_dir_all(lab.src().join("dir/sub")).unwrap();
    assert_eq!(get(&lab.root, &lab.path("link/sub/file")), b"content", "its parent is gone");
    assert_eq!(get(&lab.src(), Path::new("dir/sub/file")), b"content", "its parent is gone");
    assert_eq!(get(&lab.src(), Path::new("dir/a[1]*?")), b"odd");
}
