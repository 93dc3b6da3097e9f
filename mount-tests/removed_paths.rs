//! `rm PATH`: cut at any write-class system call, on a full disk, and under a running mount.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::rng::Rng;
use crate::support::strace;
use crate::support::{Lab, NONE, arcfile, assay_binary, is_root, oracle, tool};

const ESTALE: i32 = 116;

/// Three versions with a directory that is to go, and copies of the source as it was without it.
fn three_versions(lab: &Lab, rng: &mut Rng) -> Vec<PathBuf> {
    let mut without = Vec::new();
    lab.write("kept/same", &rng.bytes(40_000));
    for v in 0..3 {
        lab.write("kept/changes", &rng.bytes(50_000));
        lab.write("secret/deep/er", &rng.bytes(30_000 + v));
        lab.write(&format!("secret/of-{v}"), &rng.bytes(20_000));
        lab.backup();
        let copy = lab.path(&format!("without-{v}"));
        tool("cp").arg("-a").arg(lab.src()).arg(&copy).ok();
        fs::remove_dir_all(copy.join("secret")).expect("rm");
        // The directory's own times are those of the backup.
        tool("touch").arg("-r").arg(lab.src()).arg(&copy).ok();
        without.push(copy);
    }
    without
}

fn shows_secret(lab: &Lab, repo: &Path, v: usize) -> bool {
    let out = lab.assay_on(repo, "ls", ["-r", &v.to_string()]).arg(lab.src()).ok();
    out.out().contains("secret")
}

#[track_caller]
fn judge(lab: &Lab, repo: &Path, what: &str, without: &[PathBuf]) {
    for (v, wanted) in without.iter().enumerate() {
        assert!(!shows_secret(lab, repo, v), "{what}: r{v}");
        let to = lab.path("got");
        let _ = fs::remove_dir_all(&to);
        fs::create_dir(&to).expect("mkdir");
        lab.assay_on(repo, "get", ["-r", &v.to_string(), "-y", "--to"]).arg(&to).arg(lab.src()).ok();
        oracle::diff_clean(wanted, &crate::atomicity::restored(&to, &lab.src()), &[]);
    }
    let checked = lab.assay_on(repo, "selftest", ["-v3"]).run();
    assert_eq!(checked.code, Some(0), "{what}: {}", checked.text());
}

#[test]
fn kill_rm_path() {
    let mut rng = Rng::from_env("kill rm path");
    let lab = Lab::new();
    lab.init();
    let without = three_versions(&lab, &mut rng);
    let repo = lab.path("trial");
    let reset = || {
        let _ = fs::remove_dir_all(&repo);
        tool("cp").arg("-a").arg(lab.repo()).arg(&repo).ok();
    };
    let secret = lab.src().join("secret");
    let args: Vec<OsString> = vec!["--force".into(), secret.into()];
    let mut make: Vec<OsString> = vec![assay_binary().into(), "rm".into(), "-c".into(), repo.clone().into()];
    make.extend(args.iter().cloned());
    let (home, log) = (lab.path("home"), lab.path("strace.log"));
    reset();
    let counts = strace::count(&make, &home, &log);
    judge(&lab, &repo, "not killed", &without);
    let (mut fired, mut done) = (0, 0);
    for (call, number) in crate::atomicity::points(&counts, &mut rng, 2, 12) {
        reset();
        let Some(hit) = strace::kill_at(&make, &home, &log, &call, number) else { continue };
        fired += 1;
        let what = format!("kill at {call} {number} ({})", hit.hit);
        let shown: Vec<bool> = (0..3).map(|v| shows_secret(&lab, &repo, v)).collect();
        assert!(shown == [true; 3] || shown == [false; 3], "{what}: all or nothing: {shown:?}");
        done += u32::from(!shown[0]);
        let again = lab.assay_on(&repo, "rm", &args).run();
        assert!(again.code == Some(0) || again.err().contains("NO_PATH"), "{what}: {}", again.text());
        judge(&lab, &repo, &what, &without);
        fs::remove_file(repo.join("index.db")).expect("rm");
        lab.assay_on(&repo, "recover", NONE).ok();
        judge(&lab, &repo, &format!("{what}, recovered"), &without);
    }
    println!("{fired} kills, {done} after the commit");
    assert!(fired >= 5, "only {fired} kills fired");
}

#[test]
fn a_running_mount_forgets_what_was_removed() {
    let mut rng = Rng::from_env("mount and rm path");
    let lab = Lab::new();
    lab.init();
    let without = three_versions(&lab, &mut rng);
    let mount = lab.mount();
    let secret = |v: u64| mount.version(v, &lab.src()).join("secret");
    // The kernel knows all of it, and somebody is in it.
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    tool("find").arg(mount.latest(&lab.src())).ok();
    let open = fs::File::open(secret(2).join("deep/er")).expect("open");
    let mut byte = [0];
    open.read_exact_at(&mut byte, 0).expect("read");
    let held = fs::File::open(secret(1)).expect("open directory");
    let inside = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&held)));
    let told = lab.assay("rm", ["--force", "--json"]).arg(lab.src().join("secret")).ok().json();
    assert_eq!(told["versions"], serde_json::json!([0, 1, 2]), "{told}");
    assert_eq!((told["entries"].as_u64(), told["in_newest"].as_bool()), (Some(8), Some(true)), "{told}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while (0..3).any(|v| secret(v).exists()) {
        assert!(Instant::now() < deadline, "it is still there");
        std::thread::sleep(Duration::from_millis(100));
    }
    for (v, wanted) in without.iter().enumerate() {
        oracle::diff_clean(wanted, &mount.version(v as u64, &lab.src()), &[]);
    }
    // What is open reads as it was, or is stale.
    let wanted = fs::read(lab.src().join("secret/deep/er")).expect("read");
    let mut bytes = vec![0; wanted.len()];
    match open.read_exact_at(&mut bytes, 0) {
        Ok(()) => assert_eq!(bytes, wanted),
        Err(error) => assert_eq!(error.raw_os_error(), Some(ESTALE), "{error}"),
    }
    let listed = fs::read_dir(&inside).and_then(|names| names.collect::<Result<Vec<_>, _>>());
    assert_eq!(listed.expect_err("it is gone").raw_os_error(), Some(ESTALE));
    drop((open, held));
    lab.assay("pack", ["--threshold", "1"]).ok();
    oracle::diff_clean(&without[0], &mount.version(0, &lab.src()), &[]);
    // It is in the source still, so the next backup has it again, and nothing of this is damage.
    lab.backup();
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    mount.end().ok();
    lab.assay("selftest", ["-v5"]).ok();
}

#[test]
fn mistakes_are_told_and_change_nothing() {
    let lab = Lab::with_files(&[("a", b"one"), ("dir/b", b"two")]);
    let before = arcfile::arc_names(&lab.repo());
    let a = lab.src().join("a");
    let out = lab.assay("rm", NONE).arg(&a).run().code(1);
    assert!(out.err().contains("PROTECTED") && out.err().contains("--force"), "{}", out.err());
    let out = lab.assay("rm", ["--force"]).arg(&a).arg(lab.src().join("none")).run().code(1);
    assert!(out.err().contains("NO_PATH"), "{}", out.err());
    for (args, code, word) in
        [(&["/"][..], 2, "-r removes versions"), (&["-r", "0", "--", "/x"], 2, "cannot be used with"), (&[""], 2, "")]
    {
        let out = lab.assay("rm", args).run().code(code);
        assert!(out.err().contains(word), "{args:?}: {}", out.err());
    }
    let dry = lab.assay("rm", ["--dry-run"]).arg(lab.src().join("dir")).arg(lab.src().join("dir/b")).ok();
    assert!(dry.out().contains("2 entries would go from 1 version."), "{}", dry.out());
    assert_eq!(arcfile::arc_names(&lab.repo()), before);
    // A relative path is what it is for all commands.
    let out = lab.assay("rm", ["--force", "./dir/../a"]).dir(&lab.src()).ok();
    assert!(out.out().contains("1 entry removed from 1 version."), "{}", out.out());
    lab.assay("selftest", ["-v5"]).ok();
}

#[test]
fn a_full_disk_under_rm_path() {
    if !is_root() {
        // Only root can make a small file system.
        return;
    }
    let lab = Lab::with_files(&[("a", b"stays"), ("secret", b"goes")]);
    let small = lab.path("small");
    fs::create_dir(&small).expect("mkdir");
    tool("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(&small).ok();
    let repo = small.join("backup");
    let run = || {
        let mut ends = std::collections::BTreeSet::new();
        for room_bytes in [0, 40_000, 70_000, 100_000, 150_000, 250_000] {
            let _ = fs::remove_dir_all(&repo);
            tool("cp").arg("-a").arg(lab.repo()).arg(&repo).ok();
            let names = arcfile::arc_names(&repo);
            let free = tool("df").args(["--output=avail", "-B1"]).arg(&small).ok().out();
            let free: usize = free.lines().nth(1).and_then(|line| line.trim().parse().ok()).expect("df");
            let ballast = small.join("ballast");
            fs::write(&ballast, vec![0; free.saturating_sub(room_bytes)]).expect("ballast");
            let secret = lab.src().join("secret");
            let out = lab.assay_on(&repo, "rm", ["--force"]).arg(&secret).run();
            let what = format!("{room_bytes}: {}", out.text());
            match out.code {
                Some(0) => {}
                Some(1) => assert_eq!(arcfile::arc_names(&repo), names, "{what}: everything is as before"),
                // Committed, and the index could not be told.
                Some(3) => assert!(out.text().contains("Left:"), "{what}"),
                _ => panic!("{what}"),
            }
            ends.insert(out.code);
            fs::remove_file(&ballast).expect("rm");
            let again = lab.assay_on(&repo, "rm", ["--force"]).arg(&secret).run();
            assert!(again.code == Some(0) || again.err().contains("NO_PATH"), "{what}: {}", again.text());
            lab.assay_on(&repo, "ls", ["-r", "0"]).arg(lab.src().join("secret")).run().code(1);
            lab.assay_on(&repo, "selftest", ["-v5"]).ok();
        }
        assert!(ends.contains(&Some(1)) && ends.contains(&Some(0)), "{ends:?}");
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    tool("umount").arg(&small).ok();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
