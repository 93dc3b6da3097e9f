//! The backup dir as a place: what others put there, what can't be opened there, and whose it is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::rng::Rng;
use crate::support::{Cmd, Lab, Mount, NONE, Out, assay_binary, is_root, tool};

const NOBODY: &str = "65534";

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// Every file below a directory, with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(&at).expect("read dir") {
            let path = entry.expect("entry").path();
            let meta = path.symlink_metadata().expect("stat");
            if meta.is_dir() {
                open.push(path);
            } else if meta.is_file() {
                found.insert(path.clone(), fs::read(&path).expect("read"));
            }
        }
    }
    found
}

/// A backup of two files, the longer one in some blocks.
fn lab(test: &str) -> Lab {
    let mut rng = Rng::from_env(test);
    Lab::with_files(&[("long", &rng.bytes(600_000)), ("short", b"short")])
}

/// `assay COMMAND` under strace, with an error at a system call that names `what`.
fn with_error(lab: &Lab, what: &Path, inject: &str, command: &str, args: &[&str]) -> Cmd {
    let mut strace = tool("strace").args(["-f", "-qq", "-o", "/dev/null", "-P"]).arg(what);
    strace = strace.arg("-e").arg(format!("inject={inject}")).arg(assay_binary());
    strace.env("HOME", lab.path("home")).arg(command).arg("-c").arg(lab.repo()).args(args)
}

#[track_caller]
fn says_no_damage(out: &Out) {
    let text = out.text();
    for word in ["ARC_", "damaged", "is lost", "missing"] {
        assert!(!text.contains(word), "`{}` says {word}:\n{text}", out.what);
    }
}

#[test]
fn what_only_cannot_be_opened_is_not_damage() {
    let lab = lab("what only cannot be opened");
    let arc = Path::new("arc.0.1");
    let read_index = || fs::read(lab.repo().join("index.db")).expect("read index");
    let (source, back) = (lab.src().display().to_string(), lab.out_dir().display().to_string());
    for error in ["EACCES", "EMFILE", "ESTALE", "ETIMEDOUT", "ELOOP"] {
        let opening = format!("openat:error={error}");
        for level in ["-v2", "-v3", "-v4", "-v5"] {
            let out = with_error(&lab, arc, &opening, "selftest", &[level]).run().code(3);
            assert!(out.out().contains("unchecked") || out.out().contains("could not be checked"), "{}", out.text());
            says_no_damage(&out);
        }
        says_no_damage(&with_error(&lab, arc, &opening, "get", &["--to", &back, &source]).run().code(3));
        let index = read_index();
        for arc in ["arc.0.0", "arc.0.1", "arc.0.2"] {
            says_no_damage(&with_error(&lab, Path::new(arc), &opening, "recover", &[]).run().code(1));
        }
        assert!(read_index() == index, "{error}: recover changed the index");
        assert!(!lab.repo().join("index.db.bad").exists() && !lab.repo().join("index.db.new").exists());
        let looking = format!("statx:error={error}");
        let out = with_error(&lab, arc, &looking, "backup", &[&source]).run();
        says_no_damage(&out.code(3));
    }
    // Fixing takes nothing for lost that can't be opened.
    says_no_damage(&with_error(&lab, arc, "openat:error=EACCES", "selftest", &["-v3", "--fix"]).run().code(3));
    // An error of a read, by the file that is open.
    for error in ["ESTALE", "ENOMEM", "ETIMEDOUT"] {
        let reading = format!("pread64:error={error}");
        for level in ["-v3", "-v5"] {
            says_no_damage(&with_error(&lab, &lab.repo().join(arc), &reading, "selftest", &[level]).run().code(3));
        }
    }
    // Nothing of it was noted as damage, and nothing is wrong.
    let found = lab.assay("stats", ["--json"]).ok().json();
    assert!(!found.to_string().contains("ARC_"), "{found}");
    lab.assay("selftest", ["-v5"]).ok();
    // And what speaks of the medium is damage as ever.
    let out = with_error(&lab, &lab.repo().join(arc), "pread64:error=EIO", "selftest", &["-v3"]).run().code(4);
    assert!(out.out().contains("ARC_UNREADABLE"), "{}", out.text());
}

#[test]
fn a_mount_does_not_call_a_permission_damage() {
    let lab = lab("a mount and a permission");
    let cmd = with_error(&lab, Path::new("arc.0.1"), "openat:error=EACCES", "mount", &[]).arg(lab.mnt());
    let mount = Mount::spawn(cmd, &lab.mnt(), &lab.root);
    let error = fs::read(mount.latest(&lab.src().join("long"))).expect_err("it can't be read");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let out = mount.end().ok();
    assert!(out.err().contains("damage    none met") && out.err().contains("Permission denied"), "{}", out.text());
    assert!(!out.err().contains("ARC_"), "{}", out.text());
}

#[test]
fn nothing_in_a_backup_dir_leads_root_elsewhere() {
    let lab = lab("nothing leads elsewhere");
    let victims = lab.path("victims");
    fs::create_dir(&victims).expect("mkdir");
    let victim = victims.join("shadow");
    fs::write(&victim, "precious\n").expect("write");
    let untouched = |what: &str| {
        assert_eq!(files(&victims), BTreeMap::from([(victim.clone(), b"precious\n".to_vec())]), "{what}");
    };
    let repo = lab.repo();
    let put_aside = |name: &str| {
        let (from, to) = (repo.join(name), lab.path("aside"));
        if from.symlink_metadata().is_ok() {
            fs::rename(&from, &to).expect("rename");
        }
        to
    };
    let put_back = |name: &str, aside: &Path| {
        fs::remove_file(repo.join(name)).expect("rm");
        if aside.symlink_metadata().is_ok() {
            fs::rename(aside, repo.join(name)).expect("rename");
        }
    };
    let source = lab.src();
    let backup = || lab.assay("backup", NONE).arg(&source).run();
    for hard in [false, true] {
        let plant = |name: &str| match hard {
            true => fs::hard_link(&victim, repo.join(name)).expect("link"),
            false => symlink(&victim, repo.join(name)).expect("symlink"),
        };
        for name in ["lock", "index.db-shm", "index.db-wal"] {
            let aside = put_aside(name);
            plant(name);
            let out = backup().code(1);
            assert!(out.err().contains("FILE_FOREIGN") && out.err().contains("help:"), "{name}: {}", out.text());
            untouched(name);
            put_back(name, &aside);
        }
        // Readers write nothing there, and need nothing of it.
        plant("index.db-shm");
        lab.assay("versions", NONE).ok();
        untouched("a reader");
        fs::remove_file(repo.join("index.db-shm")).expect("rm");

        let aside = put_aside("index.db");
        plant("index.db");
        lab.assay("versions", NONE).run();
        assert_ne!(backup().code, Some(0));
        untouched("index.db");
        if !hard {
            let out = lab.assay("recover", NONE).run().code(1);
            assert!(out.err().contains("FILE_FOREIGN"), "{}", out.text());
        }
        untouched("index.db at recover");
        put_back("index.db", &aside);
    }
    // A directory that leads elsewhere: no segment, no log.
    lab.assay("selftest", ["-v3"]).ok();
    for name in ["ledger", "logs"] {
        let _ = fs::rename(repo.join(name), lab.path("aside"));
        symlink(&victims, repo.join(name)).expect("symlink");
        if name == "ledger" {
            lab.assay("selftest", ["-v3"]).ok();
            backup().code(0);
        } else {
            let out = lab.assay("mount", ["--background"]).arg(lab.mnt()).run().code(1);
            assert!(out.err().contains("FILE_FOREIGN"), "{}", out.text());
        }
        untouched(name);
        fs::remove_file(repo.join(name)).expect("rm");
        let _ = fs::rename(lab.path("aside"), repo.join(name));
    }
    let _ = fs::remove_file(repo.join("logs/mount.log"));
    symlink(&victim, repo.join("logs/mount.log")).expect("symlink");
    lab.assay("mount", ["--background"]).arg(lab.mnt()).run().code(1);
    untouched("logs/mount.log");
    lab.assay("selftest", ["-v5"]).ok();
}

#[test]
fn a_backup_dir_in_which_others_write_is_refused() {
    let lab = lab("others write");
    let source = lab.src().display().to_string();
    for shared in [0o777, 0o770, 0o1777] {
        mode(&lab.repo(), shared);
        for (command, args) in
            [("backup", vec![source.as_str()]), ("versions", vec![]), ("get", vec!["/"]), ("recover", vec![])]
        {
            let out = lab.assay(command, &args).run().code(1);
            assert!(out.err().contains("DIR_SHARED") && out.err().contains("--allow-shared-dir"), "{}", out.text());
        }
        lab.assay("versions", ["--allow-shared-dir"]).ok();
        lab.assay("backup", ["--allow-shared-dir", &source]).ok();
        lab.assay("versions", NONE).env("ASSAY_ALLOW_SHARED_DIR", "1").ok();
    }
    mode(&lab.repo(), 0o755);
    lab.assay("backup", [&source]).ok();
    // What is no backup dir is told as that.
    let nothing = lab.path("nothing");
    fs::create_dir(&nothing).expect("mkdir");
    mode(&nothing, 0o777);
    lab.assay_on(&nothing, "versions", NONE).run().code(10);
    // The ledger alone.
    lab.assay("selftest", ["-v3"]).ok();
    mode(&lab.repo().join("ledger"), 0o777);
    let out = lab.assay("stats", NONE).run();
    assert!(out.text().contains("DIR_SHARED"), "{}", out.text());
}

#[test]
fn another_users_backup_dir_is_read_and_nothing_is_written_there() {
    if !is_root() {
        return;
    }
    let lab = lab("another users dir");
    lab.assay("selftest", ["-v3"]).ok();
    tool("chown").arg("-R").arg(format!("{NOBODY}:{NOBODY}")).arg(lab.repo()).ok();
    let before = files(&lab.repo());
    let source = lab.src().display().to_string();
    let back = lab.out_dir().display().to_string();
    lab.assay("versions", NONE).ok();
    lab.assay("get", ["--to", &back, &source]).ok();
    lab.assay("selftest", ["-v5"]).ok();
    lab.assay("selftest", ["-v3"]).ok();
    let mount = lab.mount();
    assert_eq!(fs::read(mount.latest(&lab.src().join("short"))).expect("read"), b"short");
    mount.end().ok();
    lab.assay("mount", ["--background"]).arg(lab.mnt()).ok();
    tool("umount").arg(lab.mnt()).ok();
    assert!(files(&lab.repo()) == before, "something was written");
    for (command, args) in [("backup", vec![source.as_str()]), ("recover", vec![])] {
        let out = lab.assay(command, &args).run().code(1);
        assert!(out.err().contains("DIR_SHARED"), "{}", out.text());
    }
    assert!(files(&lab.repo()) == before, "something was written");
    lab.assay("backup", ["--allow-shared-dir", &source]).ok();
}

#[test]
fn a_key_file_keeps_nobody_waiting_and_tells_who_can_read_it() {
    let lab = lab("a key file");
    let (key, kept) = (lab.repo().join("key.conf"), lab.path("kept.conf"));
    mode(&key, 0o644);
    let out = lab.assay("versions", NONE).ok();
    assert!(out.err().contains("others can read") && out.err().contains("0644"), "{}", out.text());
    mode(&key, 0o400);
    assert!(!lab.assay("versions", NONE).ok().err().contains("others can read"));
    fs::rename(&key, &kept).expect("rename");
    tool("mkfifo").arg(&key).ok();
    lab.assay("versions", NONE).run().code(1);
    fs::remove_file(&key).expect("rm");
    for target in ["/dev/zero", "/dev/null", "/proc/self/environ"] {
        symlink(target, &key).expect("symlink");
        let out = lab.assay("versions", NONE).run();
        assert!(matches!(out.code, Some(1 | 12)), "{target}: {:?} {}", out.code, out.text());
        fs::remove_file(&key).expect("rm");
    }
    fs::File::create(&key).expect("create").set_len(1 << 40).expect("a long hole");
    lab.assay("versions", NONE).run().code(12);
    fs::remove_file(&key).expect("rm");
    // A symlink of one's own is how a key is kept elsewhere.
    symlink(&kept, &key).expect("symlink");
    lab.assay("versions", NONE).ok();
}

#[test]
fn a_passphrase_that_is_not_needed_is_told() {
    let lab = lab("a spare passphrase");
    let source = lab.src().display().to_string();
    let out = lab.assay("versions", NONE).env("ASSAY_PASSPHRASE", "secret").ok();
    assert!(out.err().contains("bare key"), "{}", out.text());
    // The log of runs may say that this one was refused.
    let stored = || files(&lab.repo()).into_iter().filter(|(path, _)| !path.starts_with(lab.repo().join("logs")));
    let before: BTreeMap<_, _> = stored().collect();
    let out = lab.assay("backup", [&source]).env("ASSAY_PASSPHRASE", "secret").run().code(12);
    assert!(out.err().contains("KEY_BARE") && out.err().contains("help:"), "{}", out.text());
    assert!(stored().collect::<BTreeMap<_, _>>() == before);
    let wrapped = lab.path("wrapped");
    lab.assay_on(&wrapped, "init", ["--passphrase", "env"]).env("ASSAY_PASSPHRASE", "secret").ok();
    let out = lab.assay_on(&wrapped, "backup", [&source]).env("ASSAY_PASSPHRASE", "secret").ok();
    assert!(!out.err().contains("bare"), "{}", out.text());
}

/// Cuts index.db-shm off until `over` says that it is enough.
fn cut_off(repo: &Path, mut over: impl FnMut() -> bool) {
    let shm = repo.join("index.db-shm");
    let start = Instant::now();
    while !over() {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not end");
        if let Ok(file) = fs::File::options().write(true).open(&shm) {
            let _ = file.set_len(0);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_cut_shared_memory_file_ends_nobody_without_a_word() {
    let lab = lab("shared memory");
    let mount = lab.mount();
    fs::read(mount.latest(&lab.src().join("short"))).expect("read");
    assert!(lab.repo().join("index.db-shm").metadata().expect("a live index").size() > 0);
    cut_off(&lab.repo(), || {
        let _ = fs::read_dir(mount.latest(&lab.src())).map(Iterator::count);
        crate::support::mount::mount_line(&lab.mnt()).is_none()
    });
    let out = mount.finish().code(1);
    assert!(out.err().contains("INDEX_IO") && out.err().contains("-shm"), "{}", out.text());

    // A backup, wherever it is hit: it ends with an exit code, and the next one is well.
    for number in 0..300 {
        lab.write(&format!("many/{number}"), format!("{number}").repeat(5000).as_bytes());
    }
    let (mut command, what) = lab.assay("backup", NONE).arg(lab.src()).into_parts();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawn");
    let mut status = None;
    cut_off(&lab.repo(), || {
        status = child.try_wait().expect("wait");
        status.is_some()
    });
    let code = status.and_then(|status| status.code());
    assert!(matches!(code, Some(0 | 1)), "`{what}` ended with {status:?}");
    lab.backup();
    lab.assay("selftest", ["-v5"]).ok();
}
