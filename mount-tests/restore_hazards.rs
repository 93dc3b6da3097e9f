//! `assay get` where somebody or something is in its way: other users, full disks, kills, file systems that hold less.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use crate::atomicity::restored;
use crate::restore::Mounted;
use crate::support::{Cmd, Lab, NONE, arcfile, assay_binary, is_root, names_in, strace, tool};
use crate::user::Ordinary;

const MALLORY: u32 = 4321;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("stat").permissions().mode() & 0o7777
}

fn owner(path: &Path) -> (u32, u32) {
    let stat = fs::symlink_metadata(path).expect("stat");
    (stat.uid(), stat.gid())
}

/// A file system in a file, of 128-byte inodes: no times past 2038, no nanoseconds.
fn small_inodes(lab: &Lab) -> Mounted {
    let image = lab.path("image");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    tool("mkfs.ext4").args(["-q", "-I", "128"]).arg(&image).env("PATH", crate::support::admin_path()).ok();
    Mounted::new(&["-o", "loop", image.to_str().unwrap()], lab.path("small"))
}

#[test]
fn a_symlink_of_another_user_leads_no_restore_elsewhere() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.write("theirs/etc/passwd", b"mallory is root");
    chown(lab.src().join("theirs/etc"), Some(MALLORY), Some(MALLORY)).unwrap();
    lab.init();
    lab.backup();
    // What mallory wants: the owner of this directory, and its files replaced.
    let (home, victim) = (lab.path("mallory"), lab.path("victim"));
    fs::create_dir_all(victim.join("etc")).unwrap();
    fs::write(victim.join("etc/passwd"), "root is root").unwrap();
    fs::create_dir(&home).unwrap();
    chown(&home, Some(MALLORY), Some(MALLORY)).unwrap();
    symlink(&victim, home.join("out")).unwrap();
    symlink("out", home.join("twice")).unwrap();
    lchown(home.join("out"), Some(MALLORY), Some(MALLORY)).unwrap();
    let etc = lab.src().join("theirs/etc");
    for target in ["out", "out/new", "twice", "out/../out/."] {
        let out = lab.assay("get", ["-y", "--delete", "--to"]).arg(home.join(target)).arg(&etc).run().code(1);
        assert!(out.err().contains("mallory/out") && out.err().contains("4321"), "{}", out.text());
        assert_eq!(out.err().lines().filter(|line| line.contains("UNSUPPORTED")).count(), 1, "{}", out.text());
    }
    assert_eq!((owner(&victim.join("etc")), names_in(&victim)), ((0, 0), vec![b"etc".to_vec()]));
    assert_eq!(fs::read(victim.join("etc/passwd")).unwrap(), b"root is root");
    // Planted inside of the target it is replaced, not followed.
    fs::create_dir(home.join("real")).unwrap();
    symlink(victim.join("etc"), home.join("real/etc")).unwrap();
    lab.assay("get", ["-y", "--delete", "--to"]).arg(home.join("real")).arg(&etc).ok();
    assert_eq!(fs::read(home.join("real/etc/passwd")).unwrap(), b"mallory is root");
    assert_eq!(fs::read(victim.join("etc/passwd")).unwrap(), b"root is root");
    // A symlink of the caller's own is the caller's choice, and a file in another's hard link is not written through.
    symlink(home.join("real"), lab.path("ours")).unwrap();
    fs::remove_file(home.join("real/etc/passwd")).unwrap();
    fs::hard_link(victim.join("etc/passwd"), home.join("real/etc/passwd")).unwrap();
    lab.assay("get", ["-y", "--to"]).arg(lab.path("ours")).arg(&etc).ok();
    assert_eq!(fs::read(home.join("real/etc/passwd")).unwrap(), b"mallory is root");
    assert_eq!(fs::read(victim.join("etc/passwd")).unwrap(), b"root is root");
}

#[test]
fn a_directory_that_exists_keeps_its_attributes_without_a_yes() {
    let lab = Lab::with_files(&[("dir/sub/file", b"content")]);
    fs::set_permissions(lab.src().join("dir/sub"), fs::Permissions::from_mode(0o750)).unwrap();
    lab.backup();
    let out = lab.out_dir();
    fs::create_dir_all(out.join("dir/sub")).unwrap();
    for (name, mode) in [("", 0o711), ("dir", 0o701), ("dir/sub", 0o710)] {
        fs::set_permissions(out.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let get = |args: &[&str]| lab.assay("get", args).arg("--to").arg(&out).arg(lab.src().join("dir")).run();
    let told = get(&["--json"]).code(3).json();
    let kept = [out.join("dir"), out.join("dir/sub")].map(|path| path.to_str().unwrap().to_string());
    assert_eq!(told["kept_paths"], serde_json::json!(kept));
    assert_eq!(fs::read(out.join("dir/sub/file")).unwrap(), b"content", "the entries are restored all the same");
    assert_eq!([mode(&out), mode(&out.join("dir")), mode(&out.join("dir/sub"))], [0o711, 0o701, 0o710]);
    get(&["-y"]).ok();
    assert_eq!([mode(&out), mode(&out.join("dir/sub"))], [0o711, 0o750], "the target itself is not what is restored");
    // By itself, and where nothing would change, nobody is asked.
    get(&[]).ok();
    fs::set_permissions(lab.src().join("dir/sub"), fs::Permissions::from_mode(0o700)).unwrap();
    lab.assay("get", ["--orig"]).arg(lab.src().join("dir")).ok();
    assert_eq!(mode(&lab.src().join("dir/sub")), 0o750);
}

/// The first 320 bytes of two files with one SHA-1, from <https://shattered.io>.
fn colliding() -> [Vec<u8>; 2] {
    const COMMON: &str = "255044462d312e330a25e2e3cfd30a0a0a312030206f626a0a3c3c2f57696474682032203020522f4865696768742033203020522f\
        547970652034203020522f537562747970652035203020522f46696c7465722036203020522f436f6c6f7253706163652037203020522f4c656e67\
        74682038203020522f42697473506572436f6d706f6e656e7420383e3e0a73747265616d0affd8fffe00245348412d31206973206465616421212121\
        21852fec092339759c39b1a1c63c4c97e1fffe01";
    const ONE: &str = "7f46dc93a6b67e013b029aaa1db2560b45ca67d688c7f84b8c4c791fe02b3df614f86db1690901c56b45c1530afedfb76038e972722f\
        e7ad728f0e4904e046c230570fe9d41398abe12ef5bc942be33542a4802d98b5d70f2a332ec37fac3514e74ddc0f2cc1a874cd0c78305a21566461\
        309789606bd0bf3f98cda8044629a1";
    const TWO: &str = "7346dc9166b67e118f029ab621b2560ff9ca67cca8c7f85ba84c79030c2b3de218f86db3a90901d5df45c14f26fedfb3dc38e96ac22f\
        e7bd728f0e45bce046d23c570feb141398bb552ef5a0a82be331fea48037b8b5d71f0e332edf93ac3500eb4ddc0decc1a864790c782c76215660dd\
        309791d06bd0af3f98cda4bc4629b1";
    let bytes = |text: String| -> Vec<u8> {
        let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
        (0..text.len()).step_by(2).map(digits).collect()
    };
    [bytes(format!("{COMMON}{ONE}")), bytes(format!("{COMMON}{TWO}"))]
}

#[test]
fn a_file_with_the_same_sha1_and_other_bytes_is_not_unchanged() {
    let [mine, forged] = colliding();
    let lab = Lab::with_files(&[("file", &mine)]);
    let file = lab.src().join("file");
    for bytes in [&mine, &forged] {
        fs::write(lab.path("x"), bytes).unwrap();
        let sum = tool("sha1sum").arg(lab.path("x")).ok();
        assert!(sum.out().starts_with("f92d74e3874587aaf443d1db961d4e26dde13e9c"), "{}", sum.out());
    }
    lab.assay("get", ["--to"]).arg(lab.out_dir()).arg(&file).ok();
    let back = lab.out_dir().join("file");
    let time = fs::metadata(&back).unwrap().modified().unwrap();
    fs::write(&back, &forged).unwrap();
    fs::File::options().write(true).open(&back).unwrap().set_modified(time).unwrap();
    let told = lab.assay("get", ["-y", "--json", "--to"]).arg(lab.out_dir()).arg(&file).ok().json();
    assert_eq!((told["unchanged"].as_u64(), told["files"].as_u64()), (Some(0), Some(1)));
    assert_eq!(fs::read(&back).unwrap(), mine);
    let told = lab.assay("get", ["--json", "--to"]).arg(lab.out_dir()).arg(&file).ok().json();
    assert_eq!(told["unchanged"], 1);
}

/// Names of what a killed restore left, anywhere below.
fn leftovers(dir: &Path) -> Vec<String> {
    let found = tool("find").arg(dir).args(["-name", ".assay-tmp-*"]).ok().out();
    found.lines().map(str::to_string).collect()
}

fn get_command(lab: &Lab, to: &Path) -> Vec<OsString> {
    let mut command: Vec<OsString> =
        [assay_binary().as_os_str(), "get".as_ref(), "-y".as_ref(), "-c".as_ref()].map(OsString::from).to_vec();
    command.extend([lab.repo().into(), "--to".into(), to.into(), lab.src().into()]);
    command
}

#[test]
fn a_restore_that_is_killed_leaves_nothing_behind_and_nothing_in_the_next_backup() {
    let lab = Lab::new();
    for name in ["a", "b/c", "b/d"] {
        lab.write(name, name.repeat(20_000).as_bytes());
    }
    fs::hard_link(lab.src().join("a"), lab.src().join("b/link")).unwrap();
    symlink("a", lab.src().join("symlink")).unwrap();
    lab.init();
    lab.backup();
    let (home, log) = (lab.path("home"), lab.path("strace.log"));
    // New entries have no other name before their own.
    for (call, times) in [("pwrite64", 3), ("linkat", 4), ("symlinkat", 1), ("utimensat", 5)] {
        for when in 1..=times {
            let to = lab.path(&format!("{call}-{when}"));
            fs::create_dir(&to).unwrap();
            let Some(_) = strace::kill_at(&get_command(&lab, &to), &home, &log, call, when) else { continue };
            assert_eq!(leftovers(&to), Vec::<String>::new(), "{call} {when}");
            tool("sh").args(["-c", "exec \"$@\"", "sh"]).args(get_command(&lab, &to)).env("HOME", &home).ok();
        }
    }
    // What replaces another may leave one.
    let to = lab.out_dir();
    tool("sh").args(["-c", "exec \"$@\"", "sh"]).args(get_command(&lab, &to)).env("HOME", &home).ok();
    let back = restored(&to, &lab.src());
    let spoil = || {
        for name in ["a", "b/c", "b/d", "b/link", "symlink"] {
            let _ = fs::remove_file(back.join(name));
            fs::write(back.join(name), "another").unwrap();
        }
    };
    let mut seen = 0;
    for when in 1..=5 {
        spoil();
        strace::kill_at(&get_command(&lab, &to), &home, &log, "renameat", when).expect("five entries are replaced");
        let left = leftovers(&to);
        seen += left.len();
        // A backup of the place saves none of them.
        let repo = lab.path(&format!("other-{when}"));
        lab.assay_on(&repo, "init", NONE).ok();
        lab.assay_on(&repo, "backup", [&to]).ok();
        let listed = lab.assay_on(&repo, "ls", NONE).ok().out();
        assert!(listed.contains("/b/d") && !listed.contains("assay-tmp"), "{listed}");
        tool("sh").args(["-c", "exec \"$@\"", "sh"]).args(get_command(&lab, &to)).env("HOME", &home).ok();
        assert_eq!(leftovers(&to), Vec::<String>::new(), "swept: {left:?}");
    }
    assert!(seen >= 4, "{seen} leftovers");
    // A name that only looks like one is the user's.
    let theirs = back.join(".assay-tmp-00112233445566778899aabbccddeeff");
    fs::write(&theirs, "mine").unwrap();
    tool("sh").args(["-c", "exec \"$@\"", "sh"]).args(get_command(&lab, &to)).env("HOME", &home).ok();
    assert_eq!(fs::read(&theirs).unwrap(), b"mine");
}

#[test]
fn where_a_file_can_not_be_named_later_it_is_named_first() {
    let lab = Lab::with_files(&[("a", b"content of a"), ("dir/b", b"content of b"), ("old", b"saved")]);
    let (home, log) = (lab.path("home"), lab.path("strace.log"));
    for error in ["EOPNOTSUPP", "EXDEV"] {
        let to = lab.path(error);
        fs::create_dir_all(to.join("src")).unwrap();
        fs::write(to.join("src/old"), "another").unwrap();
        let run = strace::fail_at(&get_command(&lab, &to), &home, &log, "linkat", error, 1, true).expect("it is tried");
        run.out.ok();
        tool("diff").arg("-r").arg(lab.src()).arg(to.join("src")).ok();
        assert_eq!(leftovers(&to), Vec::<String>::new());
    }
}

/// `chattr` on a directory, undone at the end.
struct Flagged(PathBuf, &'static str);

impl Flagged {
    fn new(path: PathBuf, flag: &'static str) -> Flagged {
        tool("chattr").arg(format!("+{flag}")).arg(&path).env("PATH", crate::support::admin_path()).ok();
        Flagged(path, flag)
    }
}

impl Drop for Flagged {
    fn drop(&mut self) {
        let _ = std::process::Command::new("chattr")
            .env("PATH", crate::support::admin_path())
            .arg(format!("-{}", self.1))
            .arg(&self.0)
            .status();
    }
}

#[test]
fn directories_and_files_with_flags_cost_what_they_forbid_and_nothing_is_left() {
    if !is_root() {
        return;
    }
    let lab = Lab::with_files(&[("dir/new", b"new"), ("dir/old", b"old"), ("dir/fixed", b"fixed"), ("free", b"free")]);
    symlink("new", lab.src().join("dir/symlink")).unwrap();
    lab.backup();
    let back = lab.out_dir().join("src");
    fs::create_dir_all(back.join("dir")).unwrap();
    fs::write(back.join("dir/old"), "another").unwrap();
    fs::write(back.join("dir/fixed"), "another").unwrap();
    let fixed = Flagged::new(back.join("dir/fixed"), "i");
    let append = Flagged::new(back.join("dir"), "a");
    let get = || lab.assay("get", ["-y", "--json", "--to"]).arg(lab.out_dir()).arg(lab.src()).run();
    let told = get().code(3).json();
    assert_eq!(told["missing"], 2, "old and fixed: {told}");
    assert_eq!(fs::read(back.join("dir/new")).unwrap(), b"new");
    assert_eq!(fs::read(back.join("free")).unwrap(), b"free");
    assert!(fs::symlink_metadata(back.join("dir/symlink")).is_ok());
    assert_eq!(fs::read(back.join("dir/old")).unwrap(), b"another");
    assert_eq!(leftovers(&back), Vec::<String>::new());
    drop(append);
    let told = get().code(3).json();
    assert_eq!((told["missing"].as_u64(), told["errors"].as_array().unwrap().len()), (Some(1), 1), "fixed: {told}");
    assert_eq!(leftovers(&back), Vec::<String>::new());
    drop(fixed);
    get().ok();
    assert_eq!(fs::read(back.join("dir/fixed")).unwrap(), b"fixed");
}

#[test]
fn a_full_target_costs_what_does_not_fit_and_the_count_is_true() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.write("a", &vec![1; 600_000]);
    for n in 0..6 {
        lab.write(&format!("big/{n}"), &vec![n; 900_000]);
    }
    lab.write("z/small", b"fits");
    lab.init();
    lab.backup();
    let full = Mounted::new(&["-t", "tmpfs", "-o", "size=1m", "none"], lab.path("full"));
    let out = lab.assay("get", ["-y", "--to"]).arg(&full.0).arg(lab.src()).run().code(3);
    assert!(
        out.out().contains("6 failed") && out.out().contains("6 entries of the version were not restored"),
        "{}",
        out.text()
    );
    assert_eq!(fs::read(full.0.join("src/z/small")).unwrap(), b"fits", "what fits is restored");
    assert_eq!(fs::read(full.0.join("src/a")).unwrap().len(), 600_000);
    assert!(names_in(&full.0.join("src/big")).is_empty());
    // No more inodes: directories can't be made, and all below them is missing.
    let few = Mounted::new(&["-t", "tmpfs", "-o", "nr_inodes=4", "none"], lab.path("few"));
    let told = lab.assay("get", ["-y", "--json", "--to"]).arg(&few.0).arg(lab.src()).run().code(3).json();
    assert_eq!(told["missing"], 8, "of a, big/0..6, z/small two inodes are left: {told}");
    assert_eq!(told["error_count"], 7);
    // The limit of a user's files is an error of that file.
    let limited = |args: &[&str]| {
        let script = "ulimit -f 1400; exec \"$@\"";
        tool("sh").env("HOME", lab.path("home")).args(["-c", script, "sh"]).arg(assay_binary()).args(args)
    };
    let (repo, to, src) = (lab.repo(), lab.out_dir(), lab.src());
    let args = ["get", "-y", "-c", repo.to_str().unwrap(), "--to", to.to_str().unwrap(), src.to_str().unwrap()];
    let out = limited(&args).run().code(3);
    assert!(out.err().contains("File too large") && out.out().contains("6 failed"), "{}", out.text());
    assert_eq!(fs::read(to.join("src/z/small")).unwrap(), b"fits");
}

#[test]
fn what_was_left_alone_is_named() {
    let lab = Lab::new();
    for n in 0..12 {
        lab.write(&format!("{n:02}"), b"saved");
    }
    lab.write("in-the-way", b"a file");
    lab.write("dir/below", b"x");
    lab.init();
    lab.backup();
    let back = lab.out_dir().join("src");
    fs::create_dir_all(back.join("in-the-way/full")).unwrap();
    for n in 0..12 {
        fs::write(back.join(format!("{n:02}")), "mine").unwrap();
    }
    fs::write(back.join("dir"), "a file").unwrap();
    tool("chmod").arg("--reference").arg(lab.src()).arg(&back).ok();
    let get = |args: &[&str]| lab.assay("get", args).arg("--to").arg(lab.out_dir()).arg(lab.src()).run();
    let out = get(&[]).code(3);
    assert!(out.out().contains("14 exist and were left alone"), "{}", out.text());
    assert!(out.out().contains("/out/src/09\n") && out.out().contains("and 4 more"), "{}", out.text());
    assert!(out.out().contains("1 entry of the version was not restored"), "below `dir`: {}", out.text());
    let told = get(&["--json"]).code(3).json();
    assert_eq!((told["kept"].as_u64(), told["kept_paths"].as_array().unwrap().len()), (Some(14), 14));
    let out = get(&["-y"]).code(3);
    assert!(out.err().contains("in-the-way") && out.err().contains("--delete"), "{}", out.text());
    get(&["-y", "--delete"]).ok();
    assert_eq!(fs::read(back.join("in-the-way")).unwrap(), b"a file");
}

#[test]
fn what_the_target_does_not_keep_is_told() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.write("future", b"x");
    lab.write("now", b"x");
    tool("touch").args(["-d", "2100-01-01 00:00:00"]).arg(lab.src().join("future")).ok();
    tool("touch").args(["-d", "2020-01-01 00:00:00"]).arg(lab.src().join("now")).arg(lab.src()).ok();
    tool("setfattr").args(["-n", "user.note", "-v", "n"]).arg(lab.src().join("now")).ok();
    lab.init();
    lab.backup();
    let small = small_inodes(&lab);
    let get = |to: &Path, args: &[&str]| lab.assay("get", args).arg("-y").arg("--to").arg(to).arg(lab.src()).run();
    let out = get(&small.0, &[]).code(3);
    assert!(out.err().contains("ATTRIBUTE_NOT_KEPT") && out.err().contains("future"), "{}", out.text());
    assert!(out.out().contains("1 did not get its time"), "{}", out.text());
    let told = get(&small.0, &["--json"]).code(3).json();
    assert_eq!((told["lacking_counts"]["time"].as_u64(), told["unchanged"].as_u64()), (Some(1), Some(1)), "{told}");
    assert!(told["lacking"][0]["path"].as_str().unwrap().ends_with("src/future"));
    // No extended attributes at all.
    let plain = Mounted::new(&["-t", "ramfs", "none"], lab.path("plain"));
    let out = get(&plain.0, &[]).code(3);
    assert!(out.err().contains("set an extended attribute of") && out.err().contains("/now"), "{}", out.text());
    assert!(out.out().contains("1 did not get its extended attributes"), "{}", out.text());
}

#[test]
fn what_only_root_can_give_is_told_to_others() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.write("mine", b"x");
    lab.write("theirs", b"x");
    tool("mknod").arg(lab.src().join("null")).args(["c", "1", "3"]).ok();
    lab.init();
    let user = Ordinary::of(&lab);
    chown(lab.src().join("theirs"), Some(MALLORY), Some(MALLORY)).unwrap();
    user.assay("backup", [lab.src()]).ok();
    let get = || user.assay("get", ["-y", "--json", "--to"]).arg(lab.out_dir()).arg(lab.src()).run().code(3).json();
    let told = get();
    assert_eq!((told["lacking_counts"]["owner"].as_u64(), told["missing"].as_u64()), (Some(1), Some(1)), "{told}");
    assert_eq!(told["errors"][0]["path"].as_str().unwrap(), lab.src().join("null").to_str().unwrap());
    assert_eq!(fs::read(lab.out_dir().join("src/theirs")).unwrap(), b"x");
    // The second time too: it is there, and still not theirs.
    let told = get();
    assert_eq!((told["lacking_counts"]["owner"].as_u64(), told["unchanged"].as_u64()), (Some(1), Some(2)), "{told}");
}

/// A command under limits of open files.
fn with_few_files(lab: &Lab, args: &[&str]) -> Cmd {
    tool("sh")
        .env("HOME", lab.path("home"))
        .args(["-c", "ulimit -n 64; exec \"$@\"", "sh"])
        .arg(assay_binary())
        .args(args)
}

#[test]
fn many_arcs_and_deep_directories_need_few_open_files() {
    let lab = Lab::new();
    lab.init();
    // Each version has an arc of its own.
    for n in 0..80 {
        lab.write(&format!("file-{n}"), format!("content {n}").as_bytes());
        lab.backup();
    }
    let mut deep = lab.src();
    (0..200).for_each(|_| deep.push("d"));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("leaf"), "leaf").unwrap();
    lab.backup();
    assert!(arcfile::data_arcs(&lab.repo()).len() > 80);
    let (repo, out, src) = (lab.repo(), lab.out_dir(), lab.src());
    let [repo, out, src] = [&repo, &out, &src].map(|path| path.to_str().unwrap());
    with_few_files(&lab, &["get", "-y", "-c", repo, "--to", out, src]).ok();
    tool("diff").arg("-r").arg(src).arg(format!("{out}/src")).ok();
    fs::create_dir_all(lab.out_dir().join("src/extra").join(deep.strip_prefix(lab.src()).unwrap())).unwrap();
    with_few_files(&lab, &["get", "-y", "--delete", "-c", repo, "--to", out, src]).ok();
    assert!(!lab.out_dir().join("src/extra").exists());
    fs::remove_dir_all(lab.src().join("d")).unwrap();
    with_few_files(&lab, &["get", "-y", "--orig", "-c", repo, deep.join("leaf").to_str().unwrap()]).ok();
    assert_eq!(fs::read(deep.join("leaf")).unwrap(), b"leaf");
    with_few_files(&lab, &["selftest", "-v5", "-c", repo]).ok();
}
