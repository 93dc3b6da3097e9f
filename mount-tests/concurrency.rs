//! Backups while mounted, many readers at once, and programs that map, execute and check what they read.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::rng::Rng;
use crate::support::{Lab, names_in, odd, oracle, sys, tool};

/// Waits until `check` holds; fails with `what` after five seconds.
#[track_caller]
fn soon(what: &str, check: impl Fn() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < Duration::from_secs(5), "not within 5 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_new_version_appears_in_a_running_mount() {
    let lab = Lab::with_files(&[("file", b"one"), ("dir/kept", b"kept")]);
    let mount = lab.mount();
    let first = mount.folder(0);
    assert_eq!(names_in(&lab.mnt()).len(), 2);
    let latest = lab.mnt().join("latest");
    assert_eq!(fs::read_link(&latest).unwrap().to_str(), Some(first.as_str()));
    assert_eq!(fs::read(mount.latest(&lab.src()).join("file")).unwrap(), b"one");
    // Names that are not there yet are asked for: the answer must not stick.
    assert!(!mount.latest(&lab.src()).join("second").exists());

    for round in 1..4u64 {
        lab.write("file", format!("round {round}").as_bytes());
        lab.write("second", b"2");
        lab.backup();
        soon("the new folder", || names_in(&lab.mnt()).len() == 2 + round as usize);
        let folder = mount.folder(round);
        soon("latest", || fs::read_link(&latest).is_ok_and(|t| t.to_str() == Some(folder.as_str())));
        let text = fs::read_to_string(mount.latest(&lab.src()).join("file")).unwrap();
        assert_eq!(text, format!("round {round}"));
        oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
        assert_eq!(fs::read(mount.version(0, &lab.src()).join("file")).unwrap(), b"one");
    }
    mount.end().ok();
}

#[test]
fn an_empty_backup_dir_mounts_and_gets_its_first_version() {
    let lab = Lab::new();
    lab.write("file", b"first");
    lab.init();
    let mount = lab.mount();
    assert!(names_in(&lab.mnt()).iter().all(|name| name == b"latest"), "versions from nowhere");
    lab.backup();
    soon("r0", || names_in(&lab.mnt()).iter().any(|name| name.ends_with(b"-r0")));
    assert_eq!(fs::read(mount.latest(&lab.src()).join("file")).unwrap(), b"first");
    mount.end().ok();
}

#[test]
fn reading_goes_on_while_backups_run() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("read during backup");
    for number in 0..60 {
        let len = rng.below(40_000) as usize;
        lab.write(&format!("d{}/f{number}", number % 7), &rng.bytes(len));
    }
    lab.init();
    lab.backup();
    tool("cp").arg("-a").arg(lab.src()).arg(lab.path("then")).ok();
    let mount = lab.mount_with(["--direct"]);
    let shown = mount.version(0, &lab.src());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..6 {
                oracle::diff_clean(&lab.path("then"), &shown, &[]);
            }
        });
        for round in 0..4 {
            for number in 0..10 {
                lab.write(&format!("d{number}/new-{round}"), &vec![round; 50_000]);
            }
            lab.backup();
        }
        reader.join().expect("the reader");
    });
    assert_eq!(lab.versions().len(), 5);
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    mount.end().ok();
}

fn big_file(lab: &Lab, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for round in 0..12 {
        let part = if round % 3 == 0 { rng.text(400_000) } else { rng.bytes(399_999) };
        bytes.extend_from_slice(&part);
        if round % 4 == 1 {
            bytes.extend(std::iter::repeat_n(0, 300_000));
        }
    }
    lab.write("big", &bytes);
    bytes
}

#[test]
fn sixteen_readers_with_odd_offsets() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("readers");
    let bytes = big_file(&lab, &mut rng);
    lab.init();
    lab.backup();
    for mode in [&["--direct", "--cache-mem", "2M"][..], &[][..]] {
        let mount = lab.mount_with(mode);
        let path = mount.latest(&lab.src()).join("big");
        std::thread::scope(|scope| {
            for reader in 0..16 {
                let (path, bytes) = (&path, &bytes);
                let mut rng = Rng::new(rng.next().wrapping_add(reader));
                scope.spawn(move || {
                    let file = File::open(path).expect("open");
                    for _ in 0..60 {
                        let offset = rng.below(bytes.len() as u64 + 10) as usize;
                        let len = rng.below(if reader % 2 == 0 { 5000 } else { 500_000 }) as usize + 1;
                        let mut found = vec![0; len];
                        let mut got = 0;
                        while got < len {
                            match file.read_at(&mut found[got..], (offset + got) as u64).expect("read") {
                                0 => break,
                                more => got += more,
                            }
                        }
                        let wanted = bytes.get(offset..bytes.len().min(offset + len)).unwrap_or_default();
                        assert!(&found[..got] == wanted, "offset {offset}, length {len}: got {got} bytes");
                    }
                });
            }
        });
        mount.end().ok();
    }
}

#[test]
fn mmap_reads_the_same_bytes() {
    let lab = Lab::new();
    let bytes = big_file(&lab, &mut Rng::from_env("mmap"));
    lab.init();
    lab.backup();
    let mount = lab.mount();
    assert!(sys::mmap_bytes(&mount.latest(&lab.src()).join("big")).expect("mmap") == bytes);
    mount.end().ok();
    let mount = lab.mount_with(["--direct"]);
    assert!(sys::mmap_bytes(&mount.latest(&lab.src()).join("big")).expect("mmap") == bytes);
    mount.end().ok();
}

#[test]
fn programs_run_from_the_mount() {
    let lab = Lab::new();
    fs::create_dir(lab.src().join("bin")).unwrap();
    tool("cp").args(["-L", "/bin/ls"]).arg(lab.src().join("bin/ls")).ok();
    lab.write("bin/hello", b"#!/bin/sh\necho hello from a script\n");
    tool("chmod").arg("755").arg(lab.src().join("bin/hello")).ok();
    lab.init();
    lab.backup();
    let mount = lab.mount();
    let bin = mount.latest(&lab.src()).join("bin");
    assert_eq!(tool(bin.join("ls").to_str().unwrap()).arg("-1").arg(&bin).ok().out(), "hello\nls\n");
    assert_eq!(tool(bin.join("hello").to_str().unwrap()).ok().out(), "hello from a script\n");
    mount.end().ok();
}

#[test]
fn git_fsck_and_sqlite_integrity_check() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("git");
    let repo = lab.src().join("repo");
    fs::create_dir(&repo).unwrap();
    let git = |dir: &Path, args: &[&str]| {
        tool("git")
            .env("HOME", lab.path("home"))
            .args(["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "safe.directory=*", "-C"])
            .arg(dir)
            .args(args)
    };
    git(&repo, &["init", "-q"]).ok();
    for round in 0..5 {
        for number in 0..10 {
            let len = rng.below(20_000) as usize;
            fs::write(repo.join(format!("f{number}")), rng.text(len)).unwrap();
        }
        git(&repo, &["add", "."]).ok();
        git(&repo, &["commit", "-q", "-m", &format!("round {round}")]).ok();
        if round == 2 {
            git(&repo, &["gc", "-q"]).ok();
        }
    }
    let database = lab.src().join("data.sqlite");
    let sql = "CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB); CREATE INDEX i ON t(b);
        WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 5000)
        INSERT INTO t SELECT x, randomblob(200) FROM n;";
    tool("sqlite3").arg(&database).arg(sql).ok();
    lab.init();
    lab.backup();
    let mount = lab.mount();
    let shown = mount.latest(&lab.src());
    let fsck = git(&shown.join("repo"), &["fsck", "--full", "--strict"]).ok();
    assert!(!fsck.text().contains("error"), "{}", fsck.text());
    let wanted = git(&repo, &["log", "--stat", "--format=%H"]).ok().out();
    assert_eq!(git(&shown.join("repo"), &["log", "--stat", "--format=%H"]).ok().out(), wanted);
    let check =
        tool("sqlite3").arg(shown.join("data.sqlite")).arg("PRAGMA integrity_check; SELECT count(*) FROM t").ok();
    assert_eq!(check.out(), "ok\n5000\n");
    mount.end().ok();
}

#[test]
fn two_mounts_of_one_backup_dir() {
    let lab = Lab::with_files(&[("f", b"both see it")]);
    let first = lab.mount();
    let point = lab.path("mnt2");
    fs::create_dir(&point).unwrap();
    let logs = lab.path("logs2");
    fs::create_dir(&logs).unwrap();
    let second = crate::support::Mount::spawn(lab.assay("mount", [&point]), &point, &logs);
    assert_eq!(fs::read(first.latest(&lab.src()).join("f")).unwrap(), b"both see it");
    assert_eq!(fs::read(second.latest(&lab.src()).join("f")).unwrap(), b"both see it");
    first.end().ok();
    assert_eq!(fs::read(second.latest(&lab.src()).join("f")).unwrap(), b"both see it");
    second.end().ok();
}

#[test]
fn a_lot_of_lookups_at_once() {
    let lab = Lab::new();
    odd::odd_tree(&lab.src(), &mut Rng::from_env("lookups"));
    lab.init();
    lab.backup();
    let mount = lab.mount();
    let shown = mount.latest(&lab.src());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| oracle::same_listing(&lab.src(), &shown));
        }
    });
    mount.end().ok();
}

#[test]
fn a_file_that_changes_while_it_is_read_is_right_the_next_time() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let lab = Lab::new();
    let mut rng = Rng::from_env("changing");
    let path = lab.write("busy", &rng.bytes(30_000_000));
    lab.write("calm", b"calm");
    lab.init();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&path).expect("open");
            let mut rng = Rng::new(7);
            while !stop.load(Ordering::Relaxed) {
                file.write_all_at(&rng.bytes(1000), rng.below(29_999_000)).expect("write");
            }
        });
        let out = lab.assay("backup", [lab.src()]).run();
        stop.store(true, Ordering::Relaxed);
        assert!(matches!(out.code, Some(0 | 3)), "{}", out.text());
        assert!(out.err().contains("changed while"), "no warning: {}", out.text());
    });
    lab.backup();
    let mount = lab.mount();
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    mount.end().ok();
}

#[test]
fn a_change_right_after_the_backup_is_never_missed() {
    let lab = Lab::with_files(&[("same-size", b"0000")]);
    for round in 1..12u32 {
        // Same size, and as close to the backup's read as it gets; the mtime is set back.
        lab.write("same-size", format!("{round:04}").as_bytes());
        tool("touch").args(["-d", "@1600000000"]).arg(lab.src().join("same-size")).ok();
        lab.backup();
        lab.write("same-size", format!("{:04}", round + 5000).as_bytes());
        tool("touch").args(["-d", "@1600000000"]).arg(lab.src().join("same-size")).ok();
        lab.backup();
        let mount = lab.mount();
        let shown = mount.latest(&lab.src()).join("same-size");
        assert_eq!(fs::read_to_string(shown).unwrap(), format!("{:04}", round + 5000));
        mount.end().ok();
    }
}

/// musl and others read directories by 2 KiB; what the mount answered beyond that is asked for again.
#[test]
fn a_large_directory_is_read_by_small_buffers_in_one_pass() {
    use std::os::fd::AsRawFd;
    let lab = Lab::new();
    let count = 6000;
    for number in 0..count {
        lab.write(&format!("dir/{number:06}-{}", "n".repeat(150)), b"");
    }
    lab.init();
    lab.backup();
    let read = |path: &Path, bytes: usize| {
        let dir = fs::File::open(path).expect("open");
        let (mut buffer, mut found) = (vec![0u8; bytes], 0);
        loop {
            // SAFETY: the descriptor is open, and at most `bytes` are written to the buffer.
            let got = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), bytes) };
            assert!(got >= 0, "{}", std::io::Error::last_os_error());
            if got == 0 {
                return (found, dir);
            }
            let mut at = 0;
            while at < got as usize {
                found += 1;
                at += usize::from(u16::from_ne_bytes([buffer[at + 16], buffer[at + 17]]));
            }
        }
    };
    for bytes in [512, 2048, 32_768] {
        let mount = lab.mount();
        let start = std::time::Instant::now();
        assert_eq!(read(&mount.latest(&lab.src()).join("dir"), bytes).0, count + 2);
        // In one pass it is a fraction of a second, else more than ten.
        assert!(start.elapsed() < std::time::Duration::from_secs(5), "{bytes}: {:?}", start.elapsed());
        mount.end().ok();
    }
    // A reader that stops on the way keeps nothing here.
    let mount = lab.mount();
    let memory_kib = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", mount.pid())).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS").to_string();
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    };
    let dir = mount.latest(&lab.src()).join("dir");
    let open_one = || {
        let dir = fs::File::open(&dir).expect("open");
        let mut buffer = [0u8; 600];
        // SAFETY: as above.
        let got = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
        assert!(got > 0);
        dir
    };
    let _first = open_one();
    let before = memory_kib();
    let _more: Vec<fs::File> = (0..700).map(|_| open_one()).collect();
    let grown = memory_kib().saturating_sub(before);
    assert!(grown < 30_000, "{grown} KiB for 700 open directories");
    drop((_first, _more));
    mount.end().ok();
}
