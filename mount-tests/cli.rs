//! The command line: exit codes, messages, options of each command.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::mount::mount_line;
use crate::support::rng::Rng;
use crate::support::{Cmd, Lab, Mount, NONE, arcfile, assay_binary, is_root, names_in, oracle, tool};
use crate::user::Ordinary;

#[test]
fn help_is_there_for_every_command() {
    let top = Cmd::new(assay_binary()).arg("--help").ok().out();
    for command in ["init", "backup", "mount", "get", "ls", "versions", "stats", "recover"] {
        assert!(top.contains(command), "{command} is not in --help");
        let help = Cmd::new(assay_binary()).args([command, "--help"]).ok().out();
        assert!(help.contains("-c"), "{help}");
        assert!(help.lines().count() > 5, "{help}");
    }
    Cmd::new(assay_binary()).arg("--version").ok();
}

#[test]
fn usage_errors_exit_2() {
    let lab = Lab::with_files(&[("f", b"x")]);
    lab.assay("versions", ["--no-such-option"]).run().code(2);
    Cmd::new(assay_binary()).arg("no-such-command").run().code(2);
    Cmd::new(assay_binary()).run().code(2);
    lab.assay("backup", NONE).run().code(2);
    lab.assay("backup", ["-B", "nine bananas"]).arg(lab.src()).run().code(2);
    assert!(lab.assay("ls", ["-r", "not-a-version"]).run().code(1).err().contains("NO_VERSION"));
}

#[test]
fn not_a_backup_dir_exits_10() {
    let lab = Lab::new();
    for dir in [lab.path("absent"), lab.src()] {
        for command in ["versions", "ls", "stats", "recover"] {
            let out = lab.assay_on(&dir, command, NONE).run().code(10);
            assert!(out.err().contains(&dir.display().to_string()), "{}", out.err());
            assert!(out.err().contains("help:"), "{}", out.err());
        }
        lab.assay_on(&dir, "backup", [lab.src()]).run().code(10);
        lab.assay_on(&dir, "mount", [lab.mnt()]).run().code(10);
        lab.assay_on(&dir, "get", [lab.src()]).run().code(10);
    }
    assert!(!lab.path("absent").exists(), "a command other than init made something");
    assert_eq!(names_in(&lab.src()), Vec::<Vec<u8>>::new());
}

#[test]
fn init_makes_private_files_and_never_touches_another_backup_dir() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let out = lab.assay("init", NONE).ok();
    assert!(out.text().contains("key.conf"), "init must speak of the key: {}", out.text());
    let mode = |path: &Path| fs::metadata(path).expect("stat").permissions().mode() & 0o7777;
    assert_eq!(mode(&lab.repo()), 0o700);
    assert_eq!(mode(&lab.repo().join("key.conf")), 0o400);
    let before = fs::read(lab.repo().join("key.conf")).unwrap();
    lab.assay("init", NONE).run().code(1);
    assert_eq!(fs::read(lab.repo().join("key.conf")).unwrap(), before);
    lab.write("something", b"else");
    lab.assay_on(&lab.src(), "init", NONE).run().code(1);
    assert_eq!(names_in(&lab.src()), [b"something".to_vec()]);
    // An empty directory that is there already is fine.
    fs::create_dir(lab.path("empty")).unwrap();
    lab.assay_on(&lab.path("empty"), "init", NONE).ok();
    assert_eq!(mode(&lab.path("empty")), 0o700);
    // Two backup dirs have two keys.
    assert_ne!(fs::read(lab.path("empty/key.conf")).unwrap(), before);
}

#[test]
fn the_directory_comes_from_the_environment_or_home() {
    let lab = Lab::with_files(&[("f", b"x")]);
    let bare = |command: &str| Cmd::new(assay_binary()).env("HOME", lab.path("home")).arg(command);
    assert!(bare("versions").env("ASSAY_DIR", lab.repo()).ok().out().contains("r0"));
    bare("versions").run().code(10);
    bare("init").ok();
    assert!(lab.path("home/assay/key.conf").exists());
    bare("backup").arg(lab.src()).ok();
    assert!(bare("versions").ok().out().contains("r0"));
}

#[test]
fn a_locked_backup_dir_exits_11_and_reading_goes_on() {
    let lab = Lab::with_files(&[("f", b"x")]);
    // Anyone's flock on the lock file is a lock; the shell holds it while assay runs.
    let out = tool("flock")
        .args(["--exclusive"])
        .arg(lab.repo().join("lock"))
        .arg(assay_binary())
        .args(["backup", "-c"])
        .arg(lab.repo())
        .arg(lab.src())
        .run();
    assert_eq!(out.code, Some(11), "{}", out.text());
    let out = tool("flock")
        .args(["--exclusive"])
        .arg(lab.repo().join("lock"))
        .arg(assay_binary())
        .args(["versions", "-c"])
        .arg(lab.repo())
        .ok();
    assert!(out.out().contains("r0"));
    lab.backup();
}

#[test]
fn a_passphrase_wraps_the_key() {
    let lab = Lab::new();
    lab.write("f", b"secret content");
    lab.assay("init", ["--passphrase", "env"]).run().code(12);
    lab.assay("init", ["--passphrase", "env"]).env("ASSAY_PASSPHRASE", "open sesame").ok();
    lab.assay("backup", [lab.src()]).env("ASSAY_PASSPHRASE", "open sesame").ok();
    lab.assay("versions", NONE).run().code(12);
    lab.assay("versions", NONE).env("ASSAY_PASSPHRASE", "wrong").run().code(12);
    assert!(lab.assay("versions", NONE).env("ASSAY_PASSPHRASE", "open sesame").ok().out().contains("r0"));
    let mount =
        Mount::spawn(lab.assay("mount", [lab.mnt()]).env("ASSAY_PASSPHRASE", "open sesame"), &lab.mnt(), &lab.root);
    assert_eq!(fs::read(mount.latest(&lab.src()).join("f")).unwrap(), b"secret content");
    mount.end().ok();
}

#[test]
fn nothing_of_names_or_content_is_readable_in_the_backup_dir() {
    let name = "a-file-name-that-stands-out";
    let content = b"content that would be found by anyone who looks".repeat(50);
    let lab = Lab::with_files(&[(name, &content), ("dir-that-stands-out/x", b"short but secret")]);
    for file in names_in(&lab.repo()) {
        let path = lab.repo().join(String::from_utf8(file).unwrap());
        if !path.is_file() {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        for needle in [name.as_bytes(), b"that-stands-out", b"content that would", b"short but secret"] {
            assert!(!bytes.windows(needle.len()).any(|w| w == needle), "{} holds a secret", path.display());
        }
    }
}

#[test]
fn json_outputs_parse() {
    let lab = Lab::with_files(&[("dir/f", b"x"), ("g", b"longer")]);
    lab.write("g", b"changed");
    let summary = lab.assay("backup", ["--json"]).arg(lab.src()).ok();
    let last = summary.out().lines().last().map(str::to_string).expect("a summary");
    assert!(serde_json::from_str::<serde_json::Value>(&last).is_ok() || summary.json().is_object(), "{last}");
    assert_eq!(lab.versions(), [0, 1]);
    assert!(lab.assay("stats", ["--json"]).ok().json().is_object());
    let listing = lab.assay("ls", ["--json"]).ok();
    let objects: Vec<serde_json::Value> = match serde_json::from_slice(&listing.stdout) {
        Ok(serde_json::Value::Array(list)) => list,
        Ok(one) => vec![one],
        Err(_) => listing.out().lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect(),
    };
    let text = serde_json::to_string(&objects).unwrap();
    assert!(text.contains("dir/f") && text.contains("src/g"), "{text}");
}

#[test]
fn ls_lists_paths_versions_and_patterns() {
    let lab = Lab::with_files(&[("dir/one.txt", b"1"), ("dir/two.c", b"22"), ("three.txt", b"333")]);
    lab.write("dir/one.txt", b"changed");
    fs::remove_file(lab.src().join("three.txt")).unwrap();
    lab.backup();
    let all = lab.assay("ls", NONE).ok().out();
    assert!(all.contains("dir/one.txt") && all.contains("dir/two.c") && !all.contains("three.txt"), "{all}");
    let first = lab.assay("ls", ["-r", "0"]).ok().out();
    assert!(first.contains("three.txt"), "{first}");
    assert_eq!(first, lab.assay("ls", ["-r", "r0"]).ok().out());
    assert!(lab.assay("ls", ["-a"]).ok().out().contains("three.txt"));
    let glob = lab.assay("ls", ["*.txt"]).ok().out();
    assert!(glob.contains("one.txt") && !glob.contains("two.c"), "{glob}");
    let below = lab.assay("ls", [lab.src().join("dir")]).ok().out();
    assert!(below.contains("two.c") && !below.contains("three"), "{below}");
    let long = lab.assay("ls", ["-l", "-r", "0"]).ok().out();
    let line = long.lines().find(|line| line.ends_with("three.txt")).expect("a line");
    assert!(line.contains("-rw") && line.contains(" 3 "), "{line}");
    let out = lab.assay("ls", ["-r", "7"]).run().code(1);
    assert!(out.err().contains("r7") || out.err().contains('7'), "{}", out.err());
    let out = lab.assay("ls", [lab.src().join("absent")]).run();
    assert_eq!(out.code, Some(1), "{}", out.text());
}

#[test]
fn ls_takes_paths_of_any_bytes_and_a_path_before_a_pattern() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let lab = Lab::with_files(&[("dir/a[1]", b"1"), ("dir/a1", b"2"), ("dir/b*", b"3"), ("dir/bcd", b"4")]);
    let odd = lab.src().join(OsStr::from_bytes(b"\xff\xfe"));
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("inside"), b"x").unwrap();
    lab.backup();
    let ls = |what: &OsStr| lab.assay("ls", [what]).dir(&lab.src()).run();
    assert!(ls(odd.as_os_str()).ok().out().contains("inside"));
    assert!(ls(OsStr::from_bytes(b"\xff\xfe/inside")).ok().out().contains("inside"));
    ls(OsStr::from_bytes(b"\xff\xfe/absent*")).code(1);
    let listed = |what: &str| -> Vec<String> {
        let out = ls(what.as_ref()).ok().out();
        out.lines().map(|line| line.rsplit('/').next().unwrap_or_default().to_string()).collect()
    };
    assert_eq!(listed("dir/a[1]"), ["a[1]"], "the entry of this name");
    assert_eq!(listed("**/a[1]"), ["a1"], "a pattern");
    assert_eq!(listed("dir/b*"), ["b*"]);
    assert_eq!(listed("b*"), ["b*", "bcd"]);
}

#[test]
fn a_missing_path_is_an_error_and_the_rest_is_saved() {
    let lab = Lab::new();
    lab.write("there", b"x");
    lab.init();
    let out = lab.assay("backup", [lab.src().join("absent"), lab.src().join("there")]).run();
    assert!(matches!(out.code, Some(1 | 3)), "{}", out.text());
    assert!(out.err().contains("absent"), "{}", out.err());
    lab.assay("backup", [lab.src().join("absent")]).run();
    // A path that was saved and is gone now must not be taken for an empty tree.
    lab.backup();
    let mount = lab.mount();
    assert_eq!(fs::read(mount.latest(&lab.src()).join("there")).unwrap(), b"x");
    mount.end().ok();
}

#[test]
fn excludes_and_inex_conf() {
    let lab = Lab::new();
    for name in ["keep.txt", "drop.tmp", "sub/drop.tmp", "sub/keep", "cache/x", "sub/cache/y", "not-a-log/log"] {
        lab.write(name, name.as_bytes());
    }
    lab.init();
    fs::write(lab.repo().join("inex.conf"), "# temporary files\n*.tmp\n").unwrap();
    lab.assay("backup", ["--exclude", "cache/"]).arg(lab.src()).ok();
    let mount = lab.mount();
    let found: Vec<String> =
        oracle::inodes(&mount.latest(&lab.src())).into_keys().map(|path| String::from_utf8(path).unwrap()).collect();
    assert_eq!(found, ["keep.txt", "not-a-log", "not-a-log/log", "sub", "sub/keep"]);
    mount.end().ok();
}

#[test]
fn dry_run_writes_nothing() {
    let lab = Lab::with_files(&[("f", b"x")]);
    lab.write("g", b"new");
    let before = tool("find").arg(lab.repo()).args(["-type", "f", "-printf", "%P %s\\n"]).ok().out();
    let out = lab.assay("backup", ["--dry-run"]).arg(lab.src()).ok();
    assert!(!out.text().is_empty());
    let after = tool("find").arg(lab.repo()).args(["-type", "f", "-printf", "%P %s\\n"]).ok().out();
    assert_eq!(before, after);
    assert_eq!(lab.versions(), [0]);
}

#[test]
fn tags_blocks_and_file_system_borders() {
    let lab = Lab::new();
    lab.write("f", &Rng::from_env("blocks").bytes(300_000));
    lab.init();
    lab.backup_with(["-t", "before the upgrade", "-B", "64K"]);
    assert!(lab.assay("versions", NONE).ok().out().contains("before the upgrade"));
    let arc = fs::read(&arcfile::data_arcs(&lab.repo())[0]).unwrap();
    let lens: Vec<usize> = arcfile::block_frames(&arc).iter().map(|frame| frame.plain_len).collect();
    assert_eq!(lens, [65_536, 65_536, 65_536, 65_536, 300_000 - 4 * 65_536]);
    if !is_root() {
        return;
    }
    let other = lab.src().join("other-fs");
    fs::create_dir(&other).unwrap();
    tool("mount").args(["-t", "tmpfs", "none"]).arg(&other).ok();
    fs::write(other.join("inside"), b"x").unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        lab.backup();
        let mount = lab.mount();
        let shown = mount.latest(&lab.src()).join("other-fs");
        assert!(shown.is_dir() && names_in(&shown).is_empty(), "crossed without -X");
        mount.end().ok();
        lab.backup_with(["-X"]);
        let mount = lab.mount();
        assert_eq!(fs::read(mount.latest(&lab.src()).join("other-fs/inside")).unwrap(), b"x");
        mount.end().ok();
    }));
    tool("umount").arg(&other).ok();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn the_backup_dir_and_our_mounts_are_never_saved() {
    let lab = Lab::new();
    lab.write("f", b"x");
    let repo = lab.src().join("backup");
    let point = lab.src().join("mnt");
    fs::create_dir(&point).unwrap();
    lab.assay_on(&repo, "init", NONE).ok();
    lab.assay_on(&repo, "backup", [lab.src()]).ok();
    let logs = lab.path("logs");
    fs::create_dir(&logs).unwrap();
    let mount = Mount::spawn(lab.assay_on(&repo, "mount", [&point]), &point, &logs);
    lab.assay_on(&repo, "backup", ["-X"]).arg(lab.src()).ok();
    let found: Vec<Vec<u8>> = oracle::inodes(&mount.version(1, &lab.src())).into_keys().collect();
    let text: Vec<String> = found.into_iter().map(|path| String::from_utf8_lossy(&path).into_owned()).collect();
    assert!(text.contains(&"f".to_string()), "{text:?}");
    assert!(!text.iter().any(|path| path.contains("arc.") || path.contains("key.conf")), "{text:?}");
    assert!(!text.iter().any(|path| path.starts_with("mnt/")), "{text:?}");
    mount.end().ok();
    // Saved as a path of its own, it is refused or empty, never copied into itself.
    let out = lab.assay_on(&repo, "backup", [&repo]).run();
    assert!(matches!(out.code, Some(0..=3)), "{}", out.text());
    let listing = lab.assay_on(&repo, "ls", ["-a"]).ok().out();
    assert!(!listing.contains("arc.") && !listing.contains("key.conf"), "{listing}");
}

#[test]
fn mount_points_that_would_bite_their_tail_are_refused() {
    let lab = Lab::with_files(&[("f", b"x")]);
    let inside = lab.repo().join("mnt");
    fs::create_dir(&inside).unwrap();
    for point in [inside, lab.repo(), lab.root.clone(), lab.path("absent")] {
        let out = lab.assay("mount", [&point]).run();
        assert!(matches!(out.code, Some(1 | 2)), "{}: exit {:?}: {}", point.display(), out.code, out.text());
        assert!(!out.err().trim().is_empty());
        assert!(mount_line(&point).is_none());
    }
    lab.assay("mount", ["-a", "--owner-me"]).arg(lab.mnt()).run().code(2);
}

#[test]
fn a_file_that_cannot_be_read_is_reported_and_the_rest_is_saved() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    for name in ["readable", "closed", "shut/inside"] {
        lab.write(name, name.as_bytes());
    }
    let user = Ordinary::of(&lab);
    fs::set_permissions(lab.src().join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(lab.src().join("shut"), fs::Permissions::from_mode(0o000)).unwrap();
    user.assay("init", NONE).ok();
    let out = user.assay("backup", [lab.src()]).run().code(3);
    assert!(out.text().contains("closed") && out.text().contains("shut"), "{}", out.text());
    assert!(!out.text().contains("readable"), "{}", out.text());
    user.assay("get", ["-y", "--to"]).arg(lab.out_dir()).arg(lab.src().join("readable")).ok();
    let back = crate::atomicity::restored(&lab.out_dir(), &lab.src().join("readable"));
    assert_eq!(fs::read(back).unwrap(), b"readable");
}

#[test]
fn a_mount_ends_by_signal_while_files_are_open() {
    let lab = Lab::with_files(&[("f", b"open")]);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mount = lab.mount();
        let path = mount.latest(&lab.src()).join("f");
        let open = fs::File::open(&path).unwrap();
        mount.signal(signal);
        let start = Instant::now();
        while mount_line(&lab.mnt()).is_some() {
            assert!(start.elapsed() < Duration::from_secs(10), "still mounted after signal {signal}");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(open);
        let out = mount.finish();
        assert!(matches!(out.code, Some(0 | 130)), "signal {signal}: {:?}\n{}", out.code, out.text());
    }
}

#[test]
fn the_summary_says_what_was_read_and_sigusr1_asks_for_it() {
    let lab = Lab::with_files(&[("whole", &[7; 100_000]), ("untouched", b"x")]);
    let mount = lab.mount();
    assert_eq!(fs::read(mount.latest(&lab.src()).join("whole")).unwrap().len(), 100_000);
    mount.signal(libc::SIGUSR1);
    let start = Instant::now();
    while !mount.err().contains("verified") {
        assert!(start.elapsed() < Duration::from_secs(5), "no summary on SIGUSR1: {}", mount.err());
        std::thread::sleep(Duration::from_millis(10));
    }
    let out = mount.end().ok();
    assert!(out.text().matches("verified").count() >= 2, "{}", out.text());
    assert!(out.text().contains('1'), "one file was read: {}", out.text());
}

#[test]
fn background_detaches_once_it_is_ready() {
    let lab = Lab::with_files(&[("f", b"x")]);
    let out = lab.assay("mount", ["--background"]).arg(lab.mnt()).ok();
    let line = mount_line(&lab.mnt());
    let text = fs::read(lab.mnt().join("latest").join(lab.src().strip_prefix("/").unwrap()).join("f"));
    let ended = if is_root() {
        tool("umount").arg(lab.mnt()).run()
    } else {
        tool("fusermount3").arg("-u").arg(lab.mnt()).run()
    };
    assert!(line.is_some(), "not mounted when the command returned: {}", out.text());
    assert_eq!(text.unwrap(), b"x");
    ended.ok();
}

#[test]
fn stats_and_versions_count_right() {
    let lab = Lab::with_files(&[("a", &[1; 1000]), ("b", &[2; 2000])]);
    lab.write("c", &[3; 3000]);
    lab.backup();
    let versions = lab.assay("versions", ["--json"]).ok().json();
    let text = versions.to_string();
    assert!(text.contains("3000") || text.contains("6000"), "sizes are missing: {text}");
    let stats = lab.assay("stats", NONE).ok().out();
    assert!(stats.contains('2'), "{stats}");
    let arcs: u64 =
        arcfile::arc_names(&lab.repo()).iter().map(|name| fs::metadata(lab.repo().join(name)).unwrap().len()).sum();
    let json = lab.assay("stats", ["--json"]).ok().json().to_string();
    assert!(json.contains(&arcs.to_string()), "{arcs} bytes of arcs are not in {json}");
}

#[test]
fn identical_content_is_stored_once() {
    let bytes = Rng::from_env("dedup").bytes(500_000);
    let lab = Lab::with_files(&[("one", &bytes)]);
    let size = |lab: &Lab| -> u64 {
        arcfile::data_arcs(&lab.repo()).iter().map(|path| fs::metadata(path).unwrap().len()).sum()
    };
    let first = size(&lab);
    lab.write("two", &bytes);
    let mut shifted = b"a few bytes before ".to_vec();
    shifted.extend_from_slice(&bytes);
    lab.write("three", &shifted);
    lab.backup();
    let grown = size(&lab) - first;
    assert!(grown < 250_000, "{grown} bytes for content that is there already");
    let mount = lab.mount();
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    mount.end().ok();
}

#[test]
fn full_or_closed_output_changes_no_exit_code() {
    let lab = Lab::with_files(&[("f", b"x")]);
    let (repo, src) = (lab.repo().display().to_string(), lab.src().display().to_string());
    let assay = assay_binary().display();
    let sh = |script: String| tool("sh").env("HOME", lab.path("home")).args(["-c", &script]).run().code;
    assert_eq!(sh(format!("{assay} backup -c {repo} {src} 2>/dev/full")), Some(0));
    assert_eq!(sh(format!("{assay} backup -c {repo} {src} 2>&-")), Some(0));
    assert_eq!(sh(format!("{assay} versions -c {repo}/none 2>/dev/full")), Some(10));
    assert_eq!(sh(format!("{assay} ls -c {repo} | true; exit 0")), Some(0));
    // What was asked for could not be printed: that is a failure, not a panic.
    assert_eq!(sh(format!("{assay} versions -c {repo} >/dev/full")), Some(1));
    assert!(lab.versions().len() >= 3);
}
