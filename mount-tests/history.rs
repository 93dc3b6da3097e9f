//! What the files of a backup dir say of its history, and what an index says: whatever disagrees is told, nothing that is
//! not proven to be a leftover is removed, and what a cut run has stored is used again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::rng::Rng;
use crate::support::{Lab, NONE, arcfile, assay_binary, oracle, strace, tool};

/// Name → bytes of every file in the backup dir that looks like an arc, or did once.
fn arc_files(repo: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = fs::read_dir(repo).expect("list").map(|entry| entry.expect("entry").file_name());
    let arcs = names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("arc."));
    arcs.map(|name| (name.clone(), fs::read(repo.join(&name)).expect("arc"))).collect()
}

/// Two versions.
fn two_versions() -> Lab {
    let lab = Lab::with_files(&[("first", b"in r0"), ("dir/kept", b"kept")]);
    lab.write("second", b"in r1");
    lab.backup();
    lab
}

/// A backup that is killed when its first arc has been closed.
fn kill_a_backup(lab: &Lab) {
    let mut child = std::process::Command::new(assay_binary())
        .args(["backup", "-q", "-c"])
        .arg(lab.repo())
        .arg(lab.src())
        .env("HOME", lab.path("home"))
        .env("ASSAY_STATE_DIR", "")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("assay");
    let next = lab.versions().last().map_or(0, |last| last + 1);
    let since = Instant::now();
    // The second data arc is begun when the first one is closed.
    while !lab.repo().join(format!("arc.{next}.2")).exists() {
        assert!(since.elapsed() < Duration::from_secs(60), "no second arc");
        assert!(child.try_wait().expect("wait").is_none(), "the backup was faster");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("kill");
    child.wait().expect("wait");
}

/// A backup dir with the smallest arcs.
fn init_small_arcs(lab: &Lab) {
    fs::create_dir(lab.repo()).expect("mkdir");
    fs::write(lab.repo().join("config.toml"), "arc-size-limit = \"1MiB\"\n").expect("config");
    lab.init();
}

#[test]
fn a_misnamed_arc_is_never_removed_and_is_told() {
    for (from, to) in [("arc.0.1", "arc.2.1"), ("arc.0.1", "arc.1.7"), ("arc.0.2", "arc.5.9"), ("arc.0.0", "arc.2.0")] {
        let lab = two_versions();
        let bytes = fs::read(lab.repo().join(from)).expect("arc");
        fs::rename(lab.repo().join(from), lab.repo().join(to)).expect("mv");
        let before = arc_files(&lab.repo());
        let out = lab.assay("backup", [lab.src()]).run();
        assert!(out.err().contains(to) && out.err().contains(&format!("rename it to {from}")), "{}", out.text());
        let after = arc_files(&lab.repo());
        assert!(before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "{to}: {:?}", after.keys());
        let told = lab.assay("selftest", ["-v2"]).run();
        assert!(told.code.is_some_and(|code| code == 3 || code == 4) && told.out().contains(to), "{}", told.text());
        // As it says.
        fs::rename(lab.repo().join(to), lab.repo().join(from)).expect("mv");
        assert_eq!(fs::read(lab.repo().join(from)).expect("arc"), bytes);
        lab.assay("selftest", ["-v5"]).ok();
        lab.backup();
    }
}

#[test]
fn what_is_not_a_leftover_stays_also_under_the_number_of_a_cut_run() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("leftovers");
    init_small_arcs(&lab);
    lab.write("first", b"in r0");
    lab.backup();
    let other = Lab::with_files(&[("foreign", b"of another backup dir")]);
    lab.write("long", &rng.bytes(6_000_000));
    kill_a_backup(&lab);
    // r1 was begun and cut. All these are in its way, and none of them is its.
    let put = |from: &Path, name: &str| {
        tool("cp").arg(from).arg(lab.repo().join(name)).ok();
    };
    fs::rename(lab.repo().join("arc.0.1"), lab.repo().join("arc.1.901")).expect("mv");
    put(&lab.repo().join("arc.0.2"), "arc.1.902");
    put(&other.repo().join("arc.0.1"), "arc.1.903");
    put(&lab.repo().join("arc.1.1"), "arc.1.904");
    fs::write(lab.repo().join("arc.1.905"), b"junk").expect("write");
    put(&lab.repo().join("arc.1.1"), "arc.1.1.bak");
    put(&lab.repo().join("arc.0.0"), "arc.1.0.tmp");
    let before = arc_files(&lab.repo());
    let out = lab.assay("backup", [lab.src()]).run().code(4);
    let after = arc_files(&lab.repo());
    for name in ["arc.1.901", "arc.1.902", "arc.1.903", "arc.1.904", "arc.1.905", "arc.1.1.bak"] {
        assert!(after.get(name) == before.get(name), "{name} was touched: {}", out.text());
        assert!(name.ends_with("bak") || out.err().contains(name), "{name} is not told: {}", out.text());
    }
    assert!(out.err().contains("belongs to another backup dir"), "{}", out.err());
    fs::rename(lab.repo().join("arc.1.901"), lab.repo().join("arc.0.1")).expect("mv");
    let mount = lab.mount();
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    mount.end().ok();
}

#[test]
fn names_that_are_not_authentic_move_no_counter_and_stop_nobody() {
    let lab = two_versions();
    let other = Lab::with_files(&[("foreign", b"of another backup dir")]);
    fs::write(lab.repo().join("arc.16777214.1"), b"junk\n").expect("write");
    fs::write(lab.repo().join("arc.16777215.0"), b"").expect("write");
    fs::write(lab.repo().join("arc.2.3"), b"in the way of the next number").expect("write");
    fs::copy(lab.repo().join("arc.0.1"), lab.repo().join("arc.16777213.1")).expect("cp");
    fs::copy(other.repo().join("arc.0.0"), lab.repo().join("arc.700.0")).expect("cp");
    fs::copy(lab.repo().join("arc.1.0"), lab.repo().join("arc.701.0")).expect("cp");
    for _ in 0..2 {
        let out = lab.assay("backup", [lab.src()]).ok();
        for name in ["arc.16777214.1", "arc.16777215.0", "arc.2.3", "arc.16777213.1", "arc.700.0", "arc.701.0"] {
            assert!(out.err().contains(name), "{name} is not told: {}", out.err());
        }
    }
    assert_eq!(lab.versions(), [0, 1, 3, 4]);
    let out = lab.assay("selftest", ["-v2"]).run().code(3);
    assert!(["arc.700.0", "arc.701.0"].iter().all(|name| out.out().contains(name)), "{}", out.text());
    assert!(!out.out().contains("COMMIT_DAMAGED"), "{}", out.text());
    // Nor without the index.
    let out = lab.assay("recover", NONE).ok();
    assert!(out.out().contains("arc.700.0"), "{}", out.text());
    assert_eq!(lab.versions(), [0, 1, 3, 4]);
    lab.backup();
    assert_eq!(lab.versions(), [0, 1, 3, 4, 5]);
}

#[test]
fn a_foreign_or_copied_commit_is_told_and_in_nobodys_way() {
    let other = Lab::with_files(&[("foreign", b"of another backup dir")]);
    for which in ["foreign", "copied", "empty", "junk"] {
        let lab = Lab::with_files(&[("file", b"content")]);
        let stray = lab.repo().join("arc.1.0");
        match which {
            "foreign" => drop(fs::copy(other.repo().join("arc.0.0"), &stray).expect("cp")),
            "copied" => drop(fs::copy(lab.repo().join("arc.0.0"), &stray).expect("cp")),
            "empty" => fs::write(&stray, b"").expect("write"),
            _ => fs::write(&stray, [7; 900]).expect("write"),
        }
        let bytes = fs::read(&stray).expect("read");
        let found = lab.assay("selftest", ["-v2"]).run().code(3);
        assert!(found.out().contains("arc.1.0") && found.out().contains("move"), "{which}: {}", found.text());
        let out = lab.assay("backup", [lab.src()]).ok();
        assert!(out.err().contains("arc.1.0"), "{which}: {}", out.text());
        assert_eq!(lab.versions(), [0, 2], "{which}");
        assert_eq!(fs::read(&stray).expect("read"), bytes, "{which}");
        fs::remove_file(&stray).expect("rm");
        lab.assay("selftest", ["-v3"]).ok();
        assert!(!lab.backup().err().contains("arc.1.0"));
    }
}

#[test]
fn an_index_that_is_older_than_its_arcs_is_a_finding() {
    let lab = Lab::with_files(&[("file", b"content")]);
    let old = fs::read(lab.repo().join("index.db")).expect("index");
    lab.write("newer", b"newer");
    lab.backup();
    let roll_back = || {
        let _ = fs::remove_file(lab.repo().join("index.db-wal"));
        fs::write(lab.repo().join("index.db"), &old).expect("index");
    };
    roll_back();
    for level in ["-v2", "-v3", "-v4", "-v5"] {
        let out = lab.assay("selftest", [level]).run().code(4);
        assert!(out.out().contains("r1 is committed, and the index does not know it"), "{level}: {}", out.text());
    }
    // Its commit is gone as well: what no commit names.
    let commit = fs::read(lab.repo().join("arc.1.0")).expect("arc");
    fs::remove_file(lab.repo().join("arc.1.0")).expect("rm");
    for level in ["-v2", "-v5"] {
        let out = lab.assay("selftest", [level]).run().code(4);
        assert!(out.out().contains("arc.1.0 is missing") && out.out().contains("arc.1.1"), "{level}: {}", out.text());
    }
    let before = arc_files(&lab.repo());
    let out = lab.assay("backup", [lab.src()]).ok();
    assert!(out.err().contains("arc.1.1") && out.err().contains("put arc.1.0 back"), "{}", out.err());
    let after = arc_files(&lab.repo());
    assert!(before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "{:?}", after.keys());
    assert_eq!(lab.versions(), [0, 2]);

    // Put back now, it is of a run that is over: r2 follows r0.
    fs::write(lab.repo().join("arc.1.0"), &commit).expect("arc");
    lab.backup();
}

#[test]
fn after_the_commit_a_failure_says_that_the_version_is_saved() {
    let lab = Lab::with_files(&[("file", b"content")]);
    lab.write("more", b"more");
    let home = lab.path("home");
    let log = lab.path("strace.log");
    // What fails, in which file, whether it is for good, and whether the version shows at once.
    let faults =
        [("pwrite64", "ENOSPC", "index.db", true), ("pwrite64", "EIO", "index.db", true), ("fsync", "EIO", "", false)];
    for (n, (call, error, file, shows)) in faults.into_iter().enumerate() {
        let repo = lab.copy_repo(&format!("copy-{n}"));
        let mut cmd = tool("strace").env("HOME", &home).args(["-f", "-qq", "-o"]).arg(&log);
        let target = if file.is_empty() { repo.clone() } else { repo.join(file) };
        // The directory is synced for the write-ahead log, for the arcs' names, and for the commit's.
        let when = if file.is_empty() { ":when=3" } else { "" };
        cmd = cmd.arg("-P").arg(&target).args(["-e", &format!("trace={call}")]);
        cmd = cmd.args(["-e", &format!("inject={call}:error={error}{when}")]);
        let out = cmd.arg("--").arg(assay_binary()).args(["backup", "--json", "-c"]).arg(&repo).arg(lab.src()).run();
        let text = fs::read_to_string(&log).expect("strace log");
        assert!(text.contains("(INJECTED)"), "{call} of {}: {text}", target.display());
        let out = out.code(3);
        assert!(out.err().contains("r1") && out.err().contains("is saved"), "{call}: {}", out.text());
        assert_eq!((out.json()["version"].as_u64(), out.json()["left_to_do"].is_string()), (Some(1), true));
        assert_eq!(lab.versions_of(&repo) == [0, 1], shows, "{call}: {}", out.text());
        lab.assay_on(&repo, "backup", [lab.src()]).ok();
        assert_eq!(lab.versions_of(&repo), [0, 1, 2], "{call}");
        lab.assay_on(&repo, "selftest", ["-v3"]).ok();
    }
}

#[test]
fn a_full_standard_output_hides_no_version() {
    let lab = Lab::with_files(&[("file", b"content")]);
    for (n, args) in [&["--json"][..], &[][..]].into_iter().enumerate() {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let mut command = std::process::Command::new(assay_binary());
        command.args(["backup", "-c"]).arg(lab.repo()).args(args).arg(lab.src()).env("HOME", lab.path("home"));
        command.env("ASSAY_STATE_DIR", "");
        let out = command.stdout(full).stderr(Stdio::piped()).output().expect("assay");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(3), "{said}");
        assert!(said.contains(&format!("r{} (", n + 1)) && said.contains("is saved"), "{said}");
        assert_eq!(lab.versions().len(), n + 2);
    }
    // A reader that goes away changes nothing about how the run ended.
    lab.write("unreadable", b"x");
    let missing = lab.path("not-there");
    let script = format!(
        "{{ {} backup -c {} {} {}; echo $? >{}; }} | true",
        assay_binary().display(),
        lab.repo().display(),
        lab.src().display(),
        missing.display(),
        lab.path("code").display()
    );
    tool("sh").args(["-c", &script]).run();
    assert_eq!(fs::read_to_string(lab.path("code")).expect("code").trim(), "3");
}

#[test]
fn whole_arcs_of_a_cut_first_run_are_used_again() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("resume");
    init_small_arcs(&lab);
    for n in 0..6 {
        lab.write(&format!("file-{n}"), &rng.bytes(1_500_000));
    }
    kill_a_backup(&lab);
    assert!(lab.versions().is_empty());
    let first = fs::read(lab.repo().join("arc.0.1")).expect("arc");
    let out = lab.assay("backup", ["--json"]).arg(lab.src()).ok();
    let json = out.json();
    assert!(json["resumed_bytes"].as_u64() >= Some(900_000), "{json}");
    let stored = json["stored_bytes"].as_u64().expect("bytes");
    assert!(stored + 900_000 < 9_000_000 + 200_000, "{json}");
    assert_eq!(lab.versions(), [1]);
    assert_eq!(fs::read(lab.repo().join("arc.0.1")).expect("arc"), first);
    for repo in [lab.repo(), lab.copy_repo("recovered")] {
        if repo != lab.repo() {
            fs::remove_file(repo.join("index.db")).expect("rm");
            lab.assay_on(&repo, "recover", NONE).ok();
        }
        lab.assay_on(&repo, "selftest", ["-v2"]).ok();
        lab.assay_on(&repo, "selftest", ["-v3"]).ok();
        lab.assay_on(&repo, "selftest", ["-v5"]).ok();
        let mount = crate::support::Mount::start(&lab, &repo, NONE);
        oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
        mount.end().ok();
    }
    assert_eq!(lab.backup_with(["--json"]).json()["resumed_blocks"].as_u64(), Some(0));
}

#[test]
fn ctrl_c_keeps_what_is_stored_and_what_is_damaged_is_not_used() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("interrupt");
    init_small_arcs(&lab);
    for n in 0..6 {
        lab.write(&format!("file-{n}"), &rng.bytes(1_500_000));
    }
    let mut child = std::process::Command::new(assay_binary())
        .args(["backup", "-q", "-c"])
        .arg(lab.repo())
        .arg(lab.src())
        .env("HOME", lab.path("home"))
        .env("ASSAY_STATE_DIR", "")
        .spawn()
        .expect("assay");
    let since = Instant::now();
    while !lab.repo().join("arc.0.2").exists() && child.try_wait().expect("wait").is_none() {
        assert!(since.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    tool("kill").args(["-INT", &child.id().to_string()]).ok();
    assert_eq!(child.wait().expect("wait").code(), Some(130));
    let left = arc_files(&lab.repo());
    assert!(left.contains_key("arc.0.1") && left.contains_key("arc.0.2"), "{:?}", left.keys());
    let damaged = lab.copy_repo("damaged");
    let frame = arcfile::frames(&left["arc.0.1"])[1];
    arcfile::rewrite(&damaged.join("arc.0.1"), |bytes| arcfile::spoil(bytes, &frame));
    for (repo, used) in [(lab.repo(), 2), (damaged, 1)] {
        let json = lab.assay_on(&repo, "backup", ["--json"]).arg(lab.src()).ok().json();
        assert!(json["resumed_bytes"].as_u64() >= Some(used * 900_000), "{json}");
        assert_eq!(repo.join("arc.0.1").exists(), used == 2, "what is damaged is not kept");
        lab.assay_on(&repo, "selftest", ["-v5"]).ok();
        let mount = crate::support::Mount::start(&lab, &repo, NONE);
        oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
        mount.end().ok();
    }
}

#[test]
fn arcs_of_a_cut_run_that_nobody_needs_are_removed() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("unused");
    init_small_arcs(&lab);
    lab.write("first", b"in r0");
    lab.backup();
    let long = lab.write("long", &rng.bytes(6_000_000));
    kill_a_backup(&lab);
    // A second cut changes nothing.
    kill_a_backup_again(&lab);
    fs::remove_file(&long).expect("rm");
    let out = lab.assay("backup", ["--json"]).arg(lab.src()).ok();
    assert_eq!(out.json()["resumed_blocks"].as_u64(), Some(0));
    let left: Vec<String> = arc_files(&lab.repo()).into_keys().filter(|name| name.starts_with("arc.1.")).collect();
    assert_eq!(left, ["arc.1.0"], "only the commit record of the blocks is left");
    for level in ["-v2", "-v3", "-v5"] {
        lab.assay("selftest", [level]).ok();
    }
    fs::remove_file(lab.repo().join("index.db")).expect("rm");
    lab.assay("recover", NONE).ok();
    lab.backup();
    lab.assay("selftest", ["-v2"]).ok();
}

/// The next backup is killed as it is about to write its commit.
fn kill_a_backup_again(lab: &Lab) {
    let make: Vec<std::ffi::OsString> =
        vec![assay_binary().into(), "backup".into(), "-c".into(), lab.repo().into(), lab.src().into()];
    let log = lab.path("strace.log");
    // The last rename of all is the commit's.
    let copy = lab.copy_repo("count");
    let mut counting = make.clone();
    counting[3] = copy.into();
    let counts = strace::count(&counting, &lab.path("home"), &log).0;
    let renames = ["rename", "renameat", "renameat2"].iter().find_map(|call| Some((*call, *counts.get(*call)?)));
    let (call, count) = renames.expect("a commit is a rename");
    // One before is that of the resumed arcs, later ones are of the ledger.
    strace::kill_at(&make, &lab.path("home"), &log, call, 2.min(count)).expect("killed");
}

/// Everything that tells of losses is quiet, and still says that they were accepted.
#[track_caller]
fn quiet_about(lab: &Lab, repo: &Path, accepted: &str) {
    lab.assay_on(repo, "backup", [lab.src()]).ok();
    for level in ["-v2", "-v3", "-v5"] {
        let out = lab.assay_on(repo, "selftest", [level]).run();
        assert_eq!(out.code, Some(0), "{level}: {}", out.text());
    }
    let stats = lab.assay_on(repo, "stats", ["--json"]).ok().json();
    assert!(stats["accepted_losses"].to_string().contains(accepted), "{stats}");
    for command in ["stats", "versions"] {
        assert!(lab.assay_on(repo, command, NONE).ok().out().contains("ccepted"), "{command}");
    }
}

#[test]
fn a_loss_that_is_accepted_is_told_no_more_and_nothing_else_is_hidden() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("accepted");
    lab.write("first", &rng.bytes(200_000));
    lab.init();
    lab.backup();
    lab.write("second", &rng.bytes(200_000));
    lab.backup();
    lab.write("third", &rng.bytes(200_000));
    lab.backup();
    // Within the first block, or in one of the next.
    let cut = |path: &Path| arcfile::rewrite(path, |bytes| bytes.truncate(bytes.len() * 3 / 4));
    let cut_short = |path: &Path| arcfile::rewrite(path, |bytes| bytes.truncate(1000));
    let spoil = |path: &Path| {
        let frame = arcfile::frames(&fs::read(path).expect("arc"))[0];
        arcfile::rewrite(path, |bytes| arcfile::spoil(bytes, &frame));
    };
    let remove = |path: &Path| fs::remove_file(path).expect("rm");
    type Damage<'a> = (&'a str, &'a [&'a str], &'a dyn Fn(&Path));
    let cases: [Damage<'_>; 7] = [
        ("a data arc", &["arc.1.1"], &remove),
        ("a catalog arc", &["arc.1.2"], &remove),
        ("a commit record", &["arc.1.0"], &remove),
        ("the end of a data arc", &["arc.1.1"], &cut),
        ("nearly all of a data arc", &["arc.1.1"], &cut_short),
        ("a block", &["arc.1.1"], &spoil),
        ("a rollback", &["arc.2.0", "arc.2.1", "arc.2.2"], &remove),
    ];
    for (n, (what, names, damage)) in cases.into_iter().enumerate() {
        let repo = lab.copy_repo(&format!("copy-{n}"));
        names.iter().for_each(|name| damage(&repo.join(name)));
        let told = lab.assay_on(&repo, "selftest", ["-v3"]).run();
        assert_eq!(told.code, Some(4), "{what}: {}", told.text());
        if what != "a block" {
            let told = lab.assay_on(&repo, "recover", NONE).run();
            assert_eq!(told.code, Some(4), "{what}: {}", told.text());
            assert!(told.out().contains("--accept-loss") || what == "a rollback", "{what}: {}", told.text());
        }
        // The index that knew more is gone by now: a rollback is told to whom has it.
        if what == "a rollback" {
            tool("cp").arg(lab.repo().join("index.db")).arg(repo.join("index.db")).ok();
        }
        let out = lab.assay_on(&repo, "recover", ["--accept-loss"]).run();
        assert_eq!(out.code, Some(0), "{what}: {}", out.text());
        let name = if matches!(what, "a commit record") { "r1" } else { names[0] };
        let name = if what == "a rollback" { "r2" } else { name };
        assert!(out.out().contains(&format!("Accepted as lost: {name}")), "{what}: {}", out.text());
        quiet_about(&lab, &repo, name);
        // What was lost reads as lost.
        if what.contains("data arc") || what == "a block" {
            let to = lab.path(&format!("out-{n}"));
            fs::create_dir(&to).expect("mkdir");
            let file = lab.src().join("second");
            let got = lab.assay_on(&repo, "get", ["-r", "1", "-y", "--to"]).arg(&to).arg(file).run();
            assert!(got.code.is_some_and(|code| code != 0), "{what}: {}", got.text());
        }
        // The commit of that backup tells it: the index can be lost, and a recovery is quiet too.
        fs::remove_file(repo.join("index.db")).expect("rm");
        let again = lab.assay_on(&repo, "recover", NONE).run();
        assert_eq!(again.code, Some(0), "{what}: {}", again.text());
        quiet_about(&lab, &repo, name);
        // Something else is told as ever.
        fs::remove_file(repo.join("arc.0.1")).expect("rm");
        let out = lab.assay_on(&repo, "backup", [lab.src()]).run().code(4);
        assert!(out.err().contains("arc.0.1") && !out.err().contains("arc.1.1"), "{what}: {}", out.err());
        let out = lab.assay_on(&repo, "selftest", ["-v2"]).run().code(4);
        assert!(out.out().contains("arc.0.1"), "{what}: {}", out.text());
    }
}

#[test]
fn recover_tells_what_only_the_old_index_knew() {
    let lab = two_versions();
    lab.write("third", b"in r2");
    lab.backup();
    for name in arcfile::arc_names(&lab.repo()).iter().filter(|name| !name.starts_with("arc.0.")) {
        fs::remove_file(lab.repo().join(name)).expect("rm");
    }
    let out = lab.assay("recover", ["--json"]).run().code(4);
    assert_eq!(out.json()["missing_versions"], serde_json::json!([1, 2]));
    // Their numbers, and those of what was in them, are not given again.
    lab.backup();
    assert_eq!(lab.versions(), [0, 3]);
    lab.assay("selftest", ["-v5"]).ok();
}
