//! Nothing is left out without a word: given paths on other file systems and below excluded directories, mounts, what
//! can't be read, what says nothing true of itself.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::{Lab, Out, assay_binary, is_root, oracle, tool};

/// Runs a shell script in a mount namespace of its own: `$A` is `assay`, the source tree is the current directory, and
/// `$S` its path. `code N COMMAND…` demands an exit code.
#[track_caller]
fn script(lab: &Lab, script: &str) -> Out {
    let functions = "code() { local want=$1 got=0; shift; \"$@\" || got=$?; \
                     [ $got = $want ] || { echo \"exit $got, not $want: $*\" >&2; exit 99; }; }\n";
    let unshare = tool("unshare").arg("--mount");
    let unshare = if is_root() { unshare } else { unshare.arg("--map-root-user") };
    let shell = unshare.args(["bash", "-euc"]).arg(format!("{functions}{script}")).dir(&lab.src());
    let shell = shell.env("A", assay_binary()).env("ASSAY_DIR", lab.repo()).env("S", lab.src());
    shell.env("HOME", lab.path("home")).ok()
}

/// What a version holds below the source tree, sorted, one a line.
#[track_caller]
fn holds(lab: &Lab, version: u32) -> String {
    let all = format!("{}/**", lab.src().display());
    let out = lab.assay("ls", ["-r", &version.to_string(), &all]).ok().out();
    let prefix = format!("{}/", lab.src().display());
    let mut names: Vec<&str> = out.lines().filter_map(|line| line.split(&prefix).nth(1)).collect();
    names.sort_unstable();
    names.join(" ")
}

/// The JSON of a version.
fn version(lab: &Lab, number: usize) -> serde_json::Value {
    lab.assay("versions", ["--json"]).ok().json()[number].clone()
}

fn below(lab: &Lab, names: &[&str]) -> serde_json::Value {
    names.iter().map(|name| lab.src().join(name).display().to_string()).collect::<Vec<_>>().into()
}

fn lab() -> Lab {
    let lab = Lab::new();
    lab.init();
    lab
}

#[test]
fn each_given_path_is_saved_from_its_own_file_system() {
    // Whatever is mounted where, and in whatever order the paths are given.
    for order in ["$S $S/mnt $S/mnt/in/deep", "$S/mnt/in/deep $S/mnt $S", "$S/mnt $S/mnt/in/deep $S"] {
        let lab = lab();
        lab.write("own", b"1");
        fs::create_dir(lab.src().join("mnt")).unwrap();
        fs::create_dir(lab.src().join("bound")).unwrap();
        script(
            &lab,
            &format!(
                "mount -t tmpfs t mnt; mkdir -p mnt/in; mount -t tmpfs u mnt/in; mkdir -p mnt/in/deep mnt/in/not
                 mount -t tmpfs v mnt/in/deep; echo x >mnt/f; echo y >mnt/in/deep/f; echo z >mnt/in/not/f
                 mkdir mnt/back; mount --bind $S mnt/back; mount --bind $S/mnt bound
                 $A backup {order}; $A backup $S $S/mnt/in/deep; $A backup $S"
            ),
        );
        assert_eq!(holds(&lab, 0), "bound mnt mnt/back mnt/f mnt/in mnt/in/deep mnt/in/deep/f own", "{order}");
        // What the first run was given, and this one did not look at, stays.
        assert_eq!(holds(&lab, 1), "bound mnt mnt/back mnt/f mnt/in mnt/in/deep mnt/in/deep/f own", "{order}");
        assert_eq!(holds(&lab, 2), "bound mnt mnt/back mnt/f mnt/in mnt/in/deep mnt/in/deep/f own", "{order}");
        assert_eq!(version(&lab, 0)["not_entered"], below(&lab, &["bound", "mnt/back", "mnt/in"]));
        assert_eq!(version(&lab, 1)["kept_paths"], below(&lab, &["mnt"]));
        assert_eq!(version(&lab, 2)["kept_paths"], below(&lab, &["mnt", "mnt/in/deep"]));
        assert_eq!(version(&lab, 2)["not_entered"], below(&lab, &["bound", "mnt"]));
    }
}

#[test]
fn two_jobs_into_one_backup_dir_leave_each_other_alone() {
    let lab = lab();
    lab.write("own", b"1");
    lab.write("home/old/x", b"below the mount point");
    let out = script(
        &lab,
        "mount -t tmpfs t home; mkdir home/ann; echo x >home/ann/f
         $A backup $S/home; $A backup $S; $A backup $S/home/ann; $A backup $S --exclude own -v
         umount home; $A backup $S --exclude /$S/home",
    );
    for version in 1..=3 {
        assert!(holds(&lab, version).starts_with("home home/ann home/ann/f"), "{version}: {}", holds(&lab, version));
    }
    assert_eq!(holds(&lab, 4), "home home/ann home/ann/f own");
    assert_eq!(version(&lab, 3)["kept_paths"], below(&lab, &["home", "home/ann"]));
    assert!(out.out().contains("/src/home  (another file system, not entered)"), "{}", out.out());
    assert!(out.out().contains("/src/own  (excluded)"), "{}", out.out());
    assert!(out.out().contains("Kept      /"), "{}", out.out());
    // Looked at at last, what is there is what counts.
    lab.backup();
    assert_eq!(holds(&lab, 5), "home home/old home/old/x own");
    assert_eq!(version(&lab, 5)["kept_paths"], serde_json::json!([]));
    lab.assay("selftest", ["-v5"]).ok();
}

#[test]
fn what_is_named_is_saved_whatever_pattern_covers_it() {
    let lab = lab();
    for name in ["a", "b/c/f", "b/c/x.o", "b/c/tmp/y", "b/d/f", "b/e.o/f", "keep.o"] {
        lab.write(name, name.as_bytes());
    }
    let src = lab.src();
    let src = src.to_str().unwrap();
    fs::write(lab.repo().join("inex.conf"), format!("*.o\n{src}/b/**\n{src}/b\n")).unwrap();
    let given = ["", "b/c", "b/e.o/f", "keep.o"].map(|name| lab.src().join(name));
    let json = lab.assay("backup", ["--json", "--exclude", "tmp/"]).args(&given).ok().json();
    assert_eq!(holds(&lab, 0), "a b b/c b/c/f b/e.o b/e.o/f keep.o");
    assert_eq!(json["excluded"], 3, "b, b/c/tmp, b/c/x.o: {json}");
    // The same in any order, alone, and in the next run.
    lab.assay("backup", ["--exclude", "tmp/"]).args(given.iter().rev()).ok();
    assert_eq!(holds(&lab, 1), holds(&lab, 0));
    lab.assay("backup", [lab.src().join("b/c")]).ok();
    assert_eq!(holds(&lab, 2), "a b b/c b/c/f b/c/tmp b/c/tmp/y b/e.o b/e.o/f keep.o");
    lab.assay("selftest", ["-v5"]).ok();
}

#[test]
fn a_run_of_which_patterns_leave_nothing_fails_and_says_so() {
    let lab = Lab::with_files(&[("a/f", b"1"), ("b/g", b"2")]);
    fs::write(lab.repo().join("inex.conf"), "*\n").unwrap();
    let err = lab.assay("backup", [lab.src()]).run().code(2).err();
    assert!(err.contains("ALL_EXCLUDED") && err.contains("inex.conf"), "{err}");
    lab.assay("backup", ["--dry-run"]).arg(lab.src()).run().code(2);
    assert_eq!(lab.versions(), [0]);
    // One of several is a warning.
    fs::write(lab.repo().join("inex.conf"), "g\n").unwrap();
    let err = lab.assay("backup", [lab.src().join("a"), lab.src().join("b")]).ok().err();
    assert!(err.contains("/b: patterns leave out all that is in it"), "{err}");
    // A file that is named is saved all the same, and an empty directory is no matter of patterns.
    fs::write(lab.repo().join("inex.conf"), "*\n").unwrap();
    lab.assay("backup", [lab.src().join("b/g")]).ok();
    fs::create_dir(lab.src().join("empty")).unwrap();
    lab.assay("backup", [lab.src().join("empty")]).ok();
}

#[test]
fn patterns_mean_what_their_writer_sees_and_idle_ones_are_told() {
    let lab = lab();
    for name in ["x", "#x", "a/b", "d/x", "real/x"] {
        lab.write(name, b"1");
    }
    std::os::unix::fs::symlink("real", lab.src().join("LINK")).unwrap();
    let run = |pattern: &str| {
        let root = lab.root.clone();
        lab.assay("backup", ["--exclude", pattern]).arg("src").dir(&root).ok().err()
    };
    let absolute = |name: &str| format!("{}/{name}", lab.src().display());
    for (n, (pattern, gone)) in [
        ("./src/x".to_string(), "x"),
        ("src/d/x".to_string(), "d/x"),
        ("src/LINK/x".to_string(), "real/x"),
        ("#x".to_string(), "#x"),
        (absolute("a//b"), "a/b"),
        (absolute("LINK/./x"), "real/x"),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(!run(&pattern).contains("warning"), "{pattern}");
        let names = holds(&lab, n as u32);
        assert!(!names.split(' ').any(|name| name == gone), "{pattern}: {names}");
        assert_eq!(names.split(' ').count(), 8, "{pattern}: {names}");
    }
    for pattern in ["./x", "/x", "d/x", "~/x", "src/none/x", "src/LINK/"] {
        let err = run(pattern);
        assert!(err.contains(&format!("--exclude {pattern} can match nothing")), "{pattern}: {err}");
    }
    fs::write(lab.repo().join("inex.conf"), "# fine\n./nothing-here\n").unwrap();
    let err = run("*.o");
    assert!(err.contains("inex.conf: line 2: ./nothing-here can match nothing"), "{err}");
    // A link that is given is saved as one, and its user is told.
    let err = lab.assay("backup", [lab.src().join("LINK")]).ok().err();
    assert!(err.contains("LINK: a symlink, saved as such") && err.contains("src/real"), "{err}");
}

#[test]
fn a_mount_that_cannot_be_entered_keeps_its_state_and_is_told() {
    assert!(is_root(), "killing a mount's server needs root");
    let lab = lab();
    lab.write("own", b"1");
    fs::create_dir_all(lab.src().join("dead")).unwrap();
    // A FUSE mount whose server is gone: its root answers ENOTCONN.
    let out = script(
        &lab,
        r#"mount -t tmpfs t dead; mkdir dead/sub; echo x >dead/sub/f; $A backup -q -X $S; umount dead
           python3 -c 'import ctypes, os
fuse = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fuse
assert ctypes.CDLL(None, use_errno=True).mount(b"gone", b"dead", b"fuse", 0, options) == 0'
           ! ls dead 2>/dev/null; code 0 $A backup $S; code 3 $A backup -X $S; code 3 $A backup $S $S/dead
           umount dead; mount -t tmpfs t dead; $A backup $S"#,
    );
    assert!(out.err().contains("Transport endpoint is not connected"), "{}", out.err());
    assert!(out.out().contains("Not saved") && out.out().contains("/dead"), "{}", out.out());
    assert_eq!(version(&lab, 1)["not_entered"], below(&lab, &["dead"]));
    for version in 0..4 {
        assert_eq!(holds(&lab, version), "dead dead/sub dead/sub/f own", "{version}");
    }
    // Alive again, it is another file system like any other.
    assert_eq!(holds(&lab, 4), "dead own");
    lab.assay("selftest", ["-v5"]).ok();
}

#[test]
fn a_directory_that_cannot_be_listed_keeps_what_it_held() {
    let lab = lab();
    for name in ["d/f", "d/sub/g", "own"] {
        lab.write(name, name.as_bytes());
    }
    lab.backup();
    lab.write("own", b"newer");
    lab.write("d/new", b"not seen");
    // The first getdents64 of the directory fails; every other call is served.
    let run = |args: &[&str], inject: &str| {
        let strace = tool("strace").args(["-f", "-qq", "-o", "/dev/null", "-e", inject, "-P"]).arg(lab.src().join("d"));
        strace.arg(assay_binary()).args(["backup", "-c"]).arg(lab.repo()).args(args).arg(lab.src()).run()
    };
    for (n, inject) in ["inject=getdents64:error=EIO", "inject=getdents64:error=ESTALE"].into_iter().enumerate() {
        let out = run(&[], inject).code(3);
        assert!(out.err().contains("list ") && out.err().contains("src/d: "), "{}", out.err());
        assert_eq!(holds(&lab, n as u32 + 1), "d d/f d/sub d/sub/g own");
    }
    lab.assay("selftest", ["-v5"]).ok();
    let mount = lab.mount();
    assert_eq!(fs::read(mount.version(2, &lab.src()).join("own")).unwrap(), b"newer");
    mount.end().ok();
    lab.backup();
    assert_eq!(holds(&lab, 3), "d d/f d/new d/sub d/sub/g own");
}

#[test]
fn a_file_whose_attributes_cannot_be_listed_is_saved_without_them() {
    let lab = lab();
    lab.write("f", b"content");
    lab.write("sub/g", b"content too");
    std::os::unix::fs::symlink("f", lab.src().join("link")).unwrap();
    tool("setfattr").args(["-n", "user.a", "-v", "1"]).arg(lab.src().join("f")).ok();
    let refused = |path: &str, errno: &str| {
        let inject = format!("inject=flistxattr,listxattr,llistxattr:error={errno}");
        let strace = tool("strace").args(["-f", "-qq", "-o", "/dev/null", "-e", &inject, "-P"]).arg(path);
        strace.arg(assay_binary()).args(["backup", "--json", "-c"]).arg(lab.repo()).arg(lab.src()).run().code(3)
    };
    let file = lab.src().join("f").display().to_string();
    for (n, errno) in ["E2BIG", "EIO", "EACCES", "EPERM"].into_iter().enumerate() {
        // A change, so that it is read.
        fs::write(&file, format!("content {n}")).unwrap();
        let out = refused(&file, errno);
        assert_eq!((&out.json()["incomplete"], &out.json()["errors"]), (&1.into(), &1.into()), "{errno}");
        assert!(out.err().contains("save all extended attributes of") && out.err().contains("src/f"), "{}", out.err());
        assert_eq!(holds(&lab, n as u32), "f link sub sub/g");
    }
    // Nothing shows that they are missing: the next run looks again, however old the file is.
    std::thread::sleep(std::time::Duration::from_millis(3100));
    lab.assay("backup", ["--full"]).arg(lab.src()).ok();
    lab.backup();
    let mount = lab.mount();
    oracle::same_xattrs(&lab.src(), &mount.version(4, &lab.src()));
    assert_eq!(fs::read(mount.version(3, &lab.src()).join("f")).unwrap(), b"content 3");
    mount.end().ok();
}

#[test]
fn a_real_file_with_more_attributes_than_can_be_listed_is_saved() {
    let lab = lab();
    fs::create_dir(lab.src().join("t")).unwrap();
    let out = script(
        &lab,
        r#"mount -t tmpfs t t; echo content >t/f; setfattr -n trusted.x -v 1 t/f || true
           python3 -c 'import os
for n in range(600): os.setxattr("t/f", "user." + "n" * 200 + str(n), b"v")'
           ! getfattr t/f 2>/dev/null; code 3 $A backup $S/t; $A ls $S/t"#,
    );
    assert!(out.out().contains("t/f") && out.err().contains("Argument list too long"), "{}", out.text());
}

#[test]
fn content_beyond_the_size_is_saved() {
    let lab = lab();
    let paths = ["/proc/cpuinfo", "/proc/filesystems", "/proc/kallsyms", "/sys/kernel/mm/transparent_hugepage/enabled"];
    let paths: Vec<&str> =
        paths.into_iter().filter(|path| fs::read(path).is_ok_and(|bytes| !bytes.is_empty())).collect();
    assert!(paths.len() >= 2);
    let json = lab.assay("backup", ["--json"]).args(&paths).ok().json();
    assert_eq!((&json["torn"], &json["errors"]), (&0.into(), &0.into()));
    for path in &paths {
        let got = lab.out_dir().join("got");
        lab.assay("get", ["--to"]).arg(&got).arg(path).ok();
        let name = std::path::Path::new(path).file_name().unwrap();
        let (got, wanted) = (fs::read(got.join(name)).unwrap(), fs::read(path).unwrap());
        assert!(got.len() > 1 && got.len() == wanted.len(), "{path}: {} of {}", got.len(), wanted.len());
        fs::remove_dir_all(lab.out_dir().join("got")).unwrap();
    }
    lab.assay("selftest", ["-v5"]).ok();
}

#[test]
fn a_name_that_is_listed_and_cannot_be_found_is_told() {
    let lab = Lab::with_files(&[("d/f", b"1"), ("d/g", b"2")]);
    // As a file system does that can't map a name to what its server has.
    let strace =
        tool("strace").args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=statx:error=ENOENT:when=2+2", "-P"]);
    // The second and fourth time that the walk asks in this directory are about its first name.
    let strace = strace.arg(lab.src().join("d")).arg(assay_binary()).args(["backup", "-c"]);
    let out = strace.arg(lab.repo()).arg(lab.src()).run().code(3);
    assert!(out.err().contains("stat ") && out.err().contains("d/f: No such file"), "{}", out.err());
    assert_eq!(holds(&lab, 1), "d d/f d/g");
}

#[test]
fn without_proc_everything_is_saved() {
    let lab = lab();
    crate::support::odd::odd_tree(&lab.src(), &mut crate::support::rng::Rng::from_env("without-proc"));
    let out = script(&lab, "mount -t tmpfs none /proc; $A backup $S; $A backup --full $S; $A backup -X $S");
    assert!(!out.err().contains("vanished"), "{}", out.err());
    let mount = lab.mount();
    for version in 0..3 {
        let shown = mount.version(version, &lab.src());
        oracle::same_listing(&lab.src(), &shown);
        oracle::same_xattrs(&lab.src(), &shown);
        oracle::same_acls(&lab.src(), &shown);
    }
    oracle::rsync_clean(&lab.src(), &mount.version(2, &lab.src()));
    mount.end().ok();
}

#[test]
fn directories_nested_deeper_than_the_limit_of_open_files_are_saved() {
    let lab = lab();
    let script = format!(
        "cd '{}'; for n in $(seq 400); do echo $n >f; mkdir d; cd d; done; cd '{0}'; mkdir w; cd w
         for n in $(seq 2000); do mkdir d$n; echo $n >d$n/f; done",
        lab.src().display()
    );
    tool("bash").arg("-euc").arg(script).ok();
    let limited = |command: &str| {
        let line = format!("ulimit -n 100; exec \"$0\" {command} -q -c \"$1\" \"$2\"");
        tool("bash").arg("-c").arg(line).arg(assay_binary()).arg(lab.repo()).arg(lab.src()).run()
    };
    limited("backup").ok();
    limited("backup --full").ok();
    let mut deep = lab.src();
    (0..300).for_each(|_| deep.push("d"));
    // A given path at that depth, and many of them.
    fs::write(deep.join("f"), b"changed").unwrap();
    let line = "ulimit -n 100; exec \"$0\" backup -q -c \"$1\" \"$2\" \"$3\"/w/d*";
    tool("bash").arg("-c").arg(line).arg(assay_binary()).arg(lab.repo()).arg(&deep).arg(lab.src()).ok();
    let mount = lab.mount();
    for version in 0..2 {
        let listing = oracle::listing(&mount.version(version, &lab.src()));
        assert_eq!(listing.len(), oracle::listing(&lab.src()).len());
    }
    assert_eq!(fs::read(mount.latest(&deep).join("f")).unwrap(), b"changed");
    oracle::same_listing(&lab.src(), &mount.latest(&lab.src()));
    mount.end().ok();
}

#[test]
fn holes_of_any_size_take_no_time() {
    let lab = lab();
    let hole = lab.src().join("hole");
    tool("truncate").args(["-s", "60G"]).arg(&hole).ok();
    tool("bash").arg("-c").arg(format!("printf tail >>'{}'", hole.display())).ok();
    fs::create_dir(lab.src().join("t")).unwrap();
    let began = std::time::Instant::now();
    lab.backup();
    let bytes = fs::metadata(&hole).unwrap().len();
    assert!(began.elapsed().as_secs() < 20, "zeros were hashed");
    // Two of nearly 8 EiB, whose sizes add up to more than a number holds.
    script(
        &lab,
        "mount -t tmpfs t t; for n in 1 2 3; do truncate -s 9223372036854771712 t/$n; done; $A backup $S/t; $A versions
         $A selftest -v5; mkdir t/out; $A get --to t/out $S/t/1; [ $(stat -c %s t/out/1) = 9223372036854771712 ]
         $A damage $S/t/2; rm t/1 t/3; $A backup $S/t",
    );
    lab.assay("selftest", ["-v2"]).ok();
    let mount = lab.mount();
    let shown = mount.version(0, &lab.src()).join("hole");
    assert_eq!(fs::metadata(&shown).unwrap().len(), bytes);
    assert!(fs::metadata(&shown).unwrap().blocks() <= 16);
    mount.end().ok();
}

#[test]
fn torn_files_are_counted_in_summary_versions_and_exit_code() {
    let lab = lab();
    let file = lab.write("busy", &vec![1; 3_000_000]);
    lab.write("quiet", b"1");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let out = std::thread::scope(|scope| {
        scope.spawn(|| {
            let writer = fs::OpenOptions::new().write(true).open(&file).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::os::unix::fs::FileExt::write_at(&writer, b"x", 7).unwrap();
            }
        });
        let out = lab.assay("backup", [lab.src()]).run();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        out
    });
    let out = out.code(3);
    assert!(out.out().contains("Torn      1 file:"), "{}", out.out());
    assert_eq!(version(&lab, 0)["torn"], 1);
    assert!(lab.assay("versions", [""; 0]).ok().out().contains("  1 torn  "));
    lab.backup();
    assert_eq!(version(&lab, 1)["torn"], 0);
}
