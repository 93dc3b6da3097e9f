//! What the ledger says was read, against what was read: diff, rsync, cat, the page cache, strace.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::mount::Mount;
use crate::support::{Cmd, Lab, NONE, arcfile, names_in, rng::Rng, sys, tool};

/// Three files of one block each, one long one, one empty.
fn lab() -> Lab {
    let mut rng = Rng::from_env("coverage");
    let long = rng.bytes(3 << 20);
    Lab::with_files(&[("a", b"first"), ("sub/b", b"second"), ("sub/c", &[7; 40_000]), ("long", &long), ("empty", b"")])
}

fn coverage(lab: &Lab, args: &[&str]) -> Value {
    lab.assay("coverage", ["--json"]).args(args).ok().json()
}

fn counts(found: &Value) -> [u64; 3] {
    ["whole", "part", "none"].map(|key| found["files"][key].as_u64().expect("a count"))
}

fn listed(lab: &Lab, args: &[&str]) -> BTreeSet<String> {
    let src = format!("{}/", lab.src().display());
    let text = lab.assay("coverage", args).ok().out();
    text.lines().map(|line| line.strip_prefix(&src).unwrap_or_else(|| panic!("{line}")).to_string()).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_string()).collect()
}

#[test]
fn nothing_is_proven_before_and_all_after_a_diff() {
    let lab = lab();
    let before = coverage(&lab, &[]);
    assert_eq!((counts(&before), before["proven"]["blocks"].as_u64()), ([0, 0, 4], Some(0)));
    assert_eq!(listed(&lab, &["--list", "none"]), names(&["a", "sub/b", "sub/c", "long"]));
    let mount = lab.mount();
    tool("diff").args(["-r", "--no-dereference"]).arg(lab.src()).arg(mount.latest(&lab.src())).ok();
    let told = mount.end().ok().text();
    let after = coverage(&lab, &["--since", "mount"]);
    assert_eq!(counts(&after), [4, 0, 0], "{told}");
    assert_eq!(after["proven"], after["total"]);
    assert!(told.contains(&format!("verified  {} blocks", after["total"]["blocks"])), "{told}");
    assert_eq!((after["by"][0]["by"].as_str(), after["by"][0]["how"].as_str()), (Some("mount"), Some("read")));
    assert_eq!(listed(&lab, &["--list", "whole"]), names(&["a", "sub/b", "sub/c", "long"]));
    let text = lab.assay("coverage", NONE).ok().out();
    assert!(text.contains("4 read whole, 0 in part, 0 not at all") && text.contains("100.0 % of the blocks"), "{text}");
    // The next backup merges what was noted.
    lab.write("a", b"first, changed");
    lab.backup();
    let in_ledger = names_in(&lab.repo().join("ledger"));
    assert_eq!(in_ledger.iter().filter(|name| name.ends_with(b".seg")).count(), 1, "{in_ledger:?}");
    assert_eq!((counts(&coverage(&lab, &["-r", "0"])), counts(&coverage(&lab, &[]))), ([4, 0, 0], [3, 0, 1]));
    assert_eq!(listed(&lab, &["--list", "none"]), names(&["a"]));
}

#[test]
fn what_comes_from_the_page_cache_is_no_new_proof() {
    let lab = lab();
    let mount = lab.mount();
    let read = |mount: &Mount| tool("diff").arg("-r").arg(lab.src()).arg(mount.latest(&lab.src())).ok();
    let noted = |mount: &Mount| {
        mount.signal(libc::SIGUSR1);
        let start = std::time::Instant::now();
        loop {
            let found = coverage(&lab, &[]);
            if found["proven"]["blocks"].as_u64() > Some(0) {
                return found;
            }
            assert!(start.elapsed().as_secs() < 20, "nothing is noted");
        }
    };
    read(&mount);
    let first = noted(&mount);
    assert_eq!(first["being_written"], true);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    read(&mount);
    mount.end().ok();
    let second = coverage(&lab, &[]);
    assert_eq!((&second["newest_s"], counts(&second)), (&first["newest_s"], [4, 0, 0]));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    // A new mount begins without a cache.
    let mount = lab.mount();
    read(&mount);
    mount.end().ok();
    let third = coverage(&lab, &[]);
    assert!(third["oldest_s"].as_u64() > second["newest_s"].as_u64(), "{third}");
    assert_eq!(third["being_written"], false);
}

#[test]
fn rsync_without_checksums_reads_nothing_and_is_told_to_use_them() {
    let lab = lab();
    let source = format!("{}/", lab.src().display());
    let sync = |options: &str| {
        let mount = lab.mount();
        tool("rsync").arg(options).arg("--delete").arg(&source).arg(mount.latest(&lab.src())).ok();
        mount.end().ok();
    };
    sync("-an");
    let found = coverage(&lab, &[]);
    assert_eq!((counts(&found), &found["only_walked"]), ([0, 0, 4], &Value::Bool(true)));
    let text = lab.assay("coverage", NONE).ok().out();
    assert!(text.contains("read no file") && text.contains("`rsync -c`"), "{text}");
    sync("-anc");
    let found = coverage(&lab, &[]);
    assert_eq!((counts(&found), &found["only_walked"]), ([4, 0, 0], &Value::Bool(false)));
}

#[test]
fn one_file_half_a_file_and_the_rest() {
    let mut rng = Rng::from_env("coverage");
    let lab = Lab::with_files(&[("one", b"first"), ("huge", &rng.bytes(24 << 20)), ("sub/other", b"second")]);
    let mount = lab.mount();
    let shown = mount.latest(&lab.src());
    tool("cat").arg(shown.join("one")).ok();
    tool("head").args(["-c", "1000000"]).arg(shown.join("huge")).ok();
    mount.end().ok();
    let found = coverage(&lab, &[]);
    assert_eq!(counts(&found), [1, 1, 1]);
    let lists = ["whole", "part", "none"].map(|how| listed(&lab, &["--list", how]));
    assert_eq!(lists, [names(&["one"]), names(&["huge"]), names(&["sub/other"])]);
    let share = found["proven"]["bytes"].as_u64().expect("bytes") as f64 / (24 << 20) as f64;
    assert!((0.03..0.6).contains(&share), "{share}");
    let sub = lab.src().join("sub");
    assert_eq!(counts(&coverage(&lab, &[sub.to_str().expect("UTF-8")])), [0, 0, 1]);
    let one = lab.src().join("one");
    assert_eq!(counts(&coverage(&lab, &[one.to_str().expect("UTF-8")])), [1, 0, 0]);
    lab.assay("coverage", ["/nowhere"]).run().code(1);
    lab.assay("coverage", ["--since", "0s"]).ok();
    lab.assay("coverage", ["--since", "yesterday"]).run().code(2);
    // A restore reads it whole, and compares the SHA-1.
    lab.assay("get", ["--to"]).arg(lab.out_dir()).arg(lab.src()).ok();
    let found = coverage(&lab, &[]);
    assert_eq!((counts(&found), found["files"]["hashed"].as_u64()), ([3, 0, 0], Some(3)));
}

#[test]
fn a_pair_that_diff_skips_was_not_read() {
    // Of the same length: else diff need not read it.
    let lab = Lab::with_files(&[("same", &[3; 2000]), ("other", b"first!")]);
    lab.write("other", b"second");
    lab.backup();
    let mount = lab.mount();
    tool("diff").arg("-rq").arg(mount.version(0, &lab.src())).arg(mount.version(1, &lab.src())).run().code(1);
    mount.end().ok();
    assert_eq!(listed(&lab, &["--list", "none"]), names(&["same"]));
    assert_eq!(listed(&lab, &["--list", "whole", "--since", "mount"]), names(&["other"]));
}

#[test]
fn damage_is_known_until_the_block_reads_right_again() {
    let lab = lab();
    let arc = arcfile::data_arcs(&lab.repo())[0].clone();
    let whole = fs::read(&arc).expect("arc");
    let victim = *arcfile::block_frames(&whole).iter().find(|frame| frame.lens == [40_000]).expect("the block");
    arcfile::rewrite(&arc, |bytes| {
        bytes[victim.body()] ^= 0x81;
        bytes[victim.tag() + 3] ^= 0x81;
    });
    let read = |code| {
        let mount = lab.mount();
        tool("diff").arg("-r").arg(lab.src()).arg(mount.latest(&lab.src())).run();
        mount.end().code(code);
        coverage(&lab, &[])
    };
    let found = read(4);
    assert_eq!((found["damaged_blocks"].as_u64(), counts(&found)), (Some(1), [3, 0, 1]));
    let stats = |args: &[&str]| lab.assay("stats", args).ok();
    let told = stats(&["--json"]).json();
    assert_eq!((told["open_damage"].as_u64(), &told["damage"][0]["code"]), (Some(1), &"ARC_TAG_MISMATCH".into()));
    assert_eq!(
        (&told["damage"][0]["arc"], told["damage"][0]["frame"].as_u64()),
        (&"arc.0.1".into(), Some(victim.number.into()))
    );
    let text = stats(&[]).out();
    assert!(text.contains("1 place, not seen right since") && text.contains("Selftest       none yet"), "{text}");
    arcfile::rewrite(&arc, |bytes| bytes.copy_from_slice(&whole));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let found = read(0);
    assert_eq!((found["damaged_blocks"].as_u64(), counts(&found)), (Some(0), [4, 0, 0]));
    assert!(stats(&[]).out().contains("Damage         none known"));
}

#[test]
fn a_backup_dir_that_nobody_may_write_is_mounted_with_a_warning() {
    let lab = lab();
    // In the way of the directory: root, too, can't write there.
    fs::write(lab.repo().join("ledger"), b"").expect("write");
    let mount = lab.mount();
    tool("diff").arg("-r").arg(lab.src()).arg(mount.latest(&lab.src())).ok();
    let told = mount.end().ok().text();
    assert!(told.contains("remembered only as long as this process runs"), "{told}");
}

/// Ranges of arcs that a traced program read: (arc, offset, bytes).
fn preads(log: &str) -> Vec<(String, usize, usize)> {
    let read = |line: &str| {
        let (_, call) = line.split_once("pread64(")?;
        let (_, rest) = call.split_once('<')?;
        let (path, rest) = rest.split_once(">")?;
        let arc = Path::new(path).file_name()?.to_str()?.to_string();
        let (args, result) = rest.rsplit_once(") = ")?;
        let offset = args.rsplit_once(", ")?.1.parse().ok()?;
        Some((arc, offset, result.trim().parse().ok()?))
    };
    // A call that another thread's interrupts stands in two lines.
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let (pid, call) = line.split_once(' ').unwrap_or_default();
        if let Some(start) = call.strip_suffix("<unfinished ...>") {
            begun.insert(pid, start);
        } else if let Some((_, end)) = call.split_once("resumed>") {
            calls.push(format!("{}{end}", begun.remove(pid).unwrap_or_default()));
        } else {
            calls.push(call.to_string());
        }
    }
    calls.iter().filter_map(|call| read(call)).filter(|(arc, ..)| arc.starts_with("arc.")).collect()
}

#[test]
fn what_counts_as_proven_is_what_strace_saw_being_read() {
    let mut rng = Rng::from_env("coverage");
    let files: Vec<(String, Vec<u8>)> = (0..40)
        .map(|n| {
            let len = 1 + rng.below(300_000);
            (format!("d{}/f{n}", n % 5), rng.bytes(len as usize))
        })
        .collect();
    let borrowed: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let lab = Lab::with_files(&borrowed);
    let log = lab.path("strace-log");
    let traced = lab.assay("mount", NONE).arg(lab.mnt()).into_parts().0;
    let strace = Cmd::new("strace").args(["-f", "-y", "-qq", "-e", "trace=pread64", "-s", "1", "-o"]).arg(&log);
    let home = lab.root.join("home");
    let cmd = strace.arg("--").arg(traced.get_program()).args(traced.get_args()).env("HOME", home);
    let mount = Mount::spawn(cmd, &lab.mnt(), &lab.root);
    let chosen: Vec<&(String, Vec<u8>)> = files.iter().filter(|_| rng.below(3) == 0).collect();
    for (name, bytes) in &chosen {
        assert!(fs::read(mount.latest(&lab.src()).join(name)).expect("read") == *bytes, "{name}");
    }
    mount.end().ok();
    let reads = preads(&fs::read_to_string(&log).expect("log"));
    assert!(!reads.is_empty(), "strace saw nothing");
    let mut seen = (0, 0);
    for arc in arcfile::data_arcs(&lab.repo()) {
        let name = arc.file_name().expect("name").to_str().expect("UTF-8").to_string();
        for frame in arcfile::block_frames(&fs::read(&arc).expect("arc")) {
            let covers = |(of, offset, len): &(String, usize, usize)| {
                *of == name && *offset <= frame.offset && frame.end() <= offset + len
            };
            if reads.iter().any(covers) {
                seen = (seen.0 + frame.lens.len() as u64, seen.1 + frame.plain_len);
            }
        }
    }
    let found = coverage(&lab, &[]);
    let proven = (found["proven"]["blocks"].as_u64(), found["proven"]["bytes"].as_u64());
    assert_eq!(proven, (Some(seen.0), Some(seen.1 as u64)), "{found}");
    assert_eq!(listed(&lab, &["--list", "whole"]), chosen.iter().map(|(name, _)| name.clone()).collect());
    assert!(sys::euid() == 0 || !chosen.is_empty());
}

/// Blocks that are proven, and damaged, and of how many.
fn health(lab: &Lab) -> (u64, u64, u64) {
    let found = coverage(lab, &[]);
    let number = |value: &Value| value.as_u64().expect("a number");
    (number(&found["proven"]["blocks"]), number(&found["damaged_blocks"]), number(&found["total"]["blocks"]))
}

#[test]
fn what_is_damaged_is_not_proven_and_what_reads_right_again_is() {
    let lab = lab();
    lab.assay("selftest", ["-v3"]).ok();
    let (proven, damaged, total) = health(&lab);
    assert_eq!((proven, damaged), (total, 0));
    let arc = arcfile::data_arcs(&lab.repo()).remove(0);
    let whole = fs::read(&arc).expect("read");
    // All that lies behind a cut, however much it is, was right before.
    tool("truncate").args(["-s", "2000000"]).arg(&arc).ok();
    lab.assay("selftest", ["-v3"]).run().code(4);
    let (proven, damaged, _) = health(&lab);
    assert!(damaged > 5 && proven + damaged == total, "{proven} {damaged} {total}");
    fs::remove_file(&arc).expect("rm");
    fs::write(&arc, &whole).expect("write");
    lab.assay("selftest", ["-v3"]).ok();
    assert_eq!(health(&lab), (total, 0, total), "in the same second, perhaps");
    // Away for a moment under a mount, whose notes all have the time of the first.
    lab.write("later", b"in another arc");
    lab.backup();
    let away = arc.with_extension("away");
    let mount = lab.mount();
    let shown = mount.latest(&lab.src());
    fs::read(shown.join("later")).expect("read");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    fs::rename(&arc, &away).expect("mv");
    assert!(fs::read(shown.join("long")).is_err());
    fs::rename(&away, &arc).expect("mv");
    // A verdict stands for five seconds.
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert_eq!(fs::read(shown.join("long")).expect("read").len(), 3 << 20);
    mount.end().code(4);
    let (proven, damaged, now_total) = health(&lab);
    assert_eq!((proven, damaged, now_total), (total + 1, 0, total + 1));
    assert!(lab.assay("stats", NONE).ok().out().contains("none known"));
}

#[test]
fn damage_is_not_forgotten_with_the_part_of_the_ledger_that_told_it() {
    let lab = lab();
    lab.assay("selftest", ["-v3"]).ok();
    let arc = arcfile::data_arcs(&lab.repo()).remove(0);
    fs::remove_file(&arc).expect("rm");
    lab.assay("selftest", ["-v3"]).run().code(4);
    let mut segments: Vec<_> = fs::read_dir(lab.repo().join("ledger"))
        .expect("ledger")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .collect();
    segments.sort_by_key(|path| fs::metadata(path).expect("stat").modified().expect("mtime"));
    fs::remove_file(segments.pop().expect("a segment")).expect("rm");
    let out = lab.assay("coverage", NONE).run();
    assert!(out.err().contains("it is missing") && !out.out().contains("100.0 %"), "{}", out.text());
    assert!(out.out().contains("proven   0 blocks"), "{}", out.text());
}

/// Saves two files, of this content, in blocks that are new.
fn save(lab: &Lab, repo: &Path, content: &[u8]) {
    lab.write("a", content);
    lab.write("sub/new", &content.repeat(1000));
    lab.assay_on(repo, "backup", ["-q"]).arg(lab.src()).ok();
}

#[test]
fn what_a_fork_has_proven_is_not_proven_here() {
    let lab = lab();
    lab.assay("selftest", ["-v3"]).ok();
    let (here, fork) = (lab.path("here"), lab.repo());
    tool("cp").arg("-a").arg(&fork).arg(&here).ok();
    save(&lab, &fork, b"there");
    save(&lab, &here, b"here.");
    let names = |repo: &Path| arcfile::arc_names(repo);
    assert_eq!(names(&here), names(&fork));
    let found = |repo: &Path| {
        let found = lab.assay_on(repo, "coverage", ["--json"]).ok().json();
        (found["proven"]["blocks"].as_u64().expect("blocks"), found["total"]["blocks"].as_u64().expect("blocks"))
    };
    // What the first run has stored was proven in both, and here once more.
    let before = found(&here);
    assert!(before.0 > 0 && before.0 < before.1 && found(&fork) == before, "{before:?}");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let of_r0 = names(&here).into_iter().filter(|name| name.starts_with("arc.0."));
    of_r0.for_each(|name| drop(lab.assay_on(&here, "selftest", ["-v3", &name]).ok()));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    // There all of it is read and proven, and the ledger comes here.
    let mount = lab.mount();
    tool("cat").args([mount.latest(&lab.src()).join("a"), mount.latest(&lab.src()).join("sub/new")]).ok();
    mount.end().ok();
    lab.assay("selftest", ["-v5"]).ok();
    lab.assay("selftest", ["-v3"]).ok();
    assert_eq!(found(&fork).0, before.1);
    tool("rsync").arg("-a").arg(fork.join("ledger")).arg(&here).ok();
    assert_eq!(found(&here), before);
    let listed = lab.assay_on(&here, "coverage", ["--list", "none"]).ok().out();
    assert!(listed.contains("/a\n") && listed.contains("/sub/new\n"), "{listed}");
    let stats = lab.assay_on(&here, "stats", ["--json"]).ok().json();
    assert!(stats["selftests"].as_array().expect("a list").iter().all(|run| run["level"] == 3), "{stats}");
    // What is damaged in a place that was proven there is due at once.
    let arc = arcfile::data_arcs(&here).pop().expect("a data arc");
    arcfile::rewrite(&arc, |bytes| {
        let frame = arcfile::block_frames(bytes).remove(0);
        arcfile::spoil(bytes, &frame);
    });
    let out = lab.assay_on(&here, "selftest", ["-v3", "--inc", "1d/30d"]).run().code(4);
    assert!(out.out().contains("arc.1.1"), "{}", out.text());
    // The other way it is no damage there.
    tool("rsync").arg("-a").arg(here.join("ledger")).arg(&fork).ok();
    assert_eq!(found(&fork).0, before.1);
    assert!(lab.assay("stats", NONE).ok().out().contains("none known"));
}
