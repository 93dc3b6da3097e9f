//! Cut at any write-class system call, or refused by a full or failing disk: committed versions stay whole, the
//! cut version is whole or absent, the next backup works, nothing is left over.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::rng::Rng;
use crate::support::strace::{self, Counts};
use crate::support::{Lab, NONE, arcfile, assay_binary, below, names_in, oracle, tool};

/// Arguments of an assay run, program first, for strace.
pub fn command(command: &str, repo: &Path, args: &[&Path]) -> Vec<OsString> {
    let mut list: Vec<OsString> = vec![assay_binary().into(), command.into(), "-c".into(), repo.into()];
    list.extend(args.iter().map(|path| path.as_os_str().to_owned()));
    list
}

/// Points (call, n) to try: first, last and `some` random ones of each call, at most `limit` in all. Every one of them
/// if ASSAY_ALL_POINTS is 1.
pub fn points(counts: &Counts, rng: &mut Rng, some: u64, limit: usize) -> Vec<(String, u64)> {
    if std::env::var_os("ASSAY_ALL_POINTS").is_some_and(|value| value == "1") {
        return counts.0.iter().flat_map(|(call, count)| (1..=*count).map(|n| (call.clone(), n))).collect();
    }
    let mut list = Vec::new();
    for (call, &count) in &counts.0 {
        let mut numbers = BTreeSet::from([1, count]);
        // Opening files for reading is most of the openat calls: what is late writes.
        for _ in 0..some {
            numbers.insert(1 + rng.below(count));
        }
        list.extend(numbers.into_iter().map(|n| (call.clone(), n)));
    }
    for at in (1..list.len()).rev() {
        list.swap(at, rng.below(at as u64 + 1) as usize);
    }
    list.truncate(limit);
    list
}

/// The state from which each cut starts: r0 is committed, the source has changed since.
struct Before {
    lab: Lab,
    then: PathBuf,
    repo: PathBuf,
}

impl Before {
    fn new(rng: &mut Rng) -> Before {
        let lab = Lab::new();
        lab.write("kept", b"kept as it is");
        lab.write("changes", b"before");
        lab.write("dir/removed", b"gone in r1");
        lab.write("dir/random", &rng.bytes(150_000));
        lab.init();
        lab.backup();
        let then = lab.path("then-0");
        tool("cp").arg("-a").arg(lab.src()).arg(&then).ok();
        lab.write("changes", b"after!");
        lab.write("new", &rng.bytes(90_000));
        fs::remove_file(lab.src().join("dir/removed")).expect("rm");
        let repo = lab.path("trial");
        Before { lab, then, repo }
    }

    fn reset(&self) {
        if self.repo.exists() {
            fs::remove_dir_all(&self.repo).expect("rm -r");
        }
        tool("cp").arg("-a").arg(self.lab.repo()).arg(&self.repo).ok();
    }

    /// What must hold after a cut or a failure at `what`. True when the cut version was committed.
    #[track_caller]
    fn judge(&self, what: &str) -> bool {
        let versions = self.lab.versions_of(&self.repo);
        let committed = match versions.as_slice() {
            [0] => false,
            [0, 1] => true,
            other => panic!("{what}: versions {other:?}"),
        };
        let get = |version: &str, to: &str| {
            let to = self.lab.path(to);
            let _ = fs::remove_dir_all(&to);
            fs::create_dir(&to).expect("mkdir");
            self.lab.assay_on(&self.repo, "get", ["-r", version, "-y", "--to"]).arg(&to).arg(self.lab.src()).ok();
            restored(&to, &self.lab.src())
        };
        oracle::diff_clean(&self.then, &get("0", "got"), &[]);
        if committed {
            oracle::diff_clean(&self.lab.src(), &get("1", "got"), &[]);
        }
        // A commit that the index did not learn of any more is on disk, whole, and the next run takes it in.
        let pending = !committed && self.repo.join("arc.1.0").exists();
        self.lab.assay_on(&self.repo, "backup", [self.lab.src()]).ok();
        let after = self.lab.versions_of(&self.repo);
        assert_eq!(after.len(), versions.len() + 1 + usize::from(pending), "{what}: the next backup: {after:?}");
        assert_eq!(after[..versions.len()], versions[..], "{what}: the next backup keeps the versions");
        for version in &after[1..] {
            oracle::diff_clean(&self.lab.src(), &get(&version.to_string(), "got"), &[]);
        }
        let checked = self.lab.assay_on(&self.repo, "selftest", ["-v2"]).run();
        assert_eq!(checked.code, Some(0), "{what}: {}", checked.text());
        self.no_leftovers(what, &after);
        committed || pending
    }

    /// Only files that belong there, and arcs of committed runs only: of versions, and of blocks that a cut run had
    /// stored and the next one uses.
    #[track_caller]
    fn no_leftovers(&self, what: &str, versions: &[u64]) {
        let known =
            ["key.conf", "config.toml", "dest.toml", "inex.conf", "index.db", "lock", "ledger", "cache", "logs"];
        for name in names_in(&self.repo) {
            let name = String::from_utf8(name).expect("UTF-8");
            if name.starts_with("arc.") {
                let (version, _) = arcfile::arc_numbers(&name);
                let committed = versions.contains(&version) || self.repo.join(format!("arc.{version}.0")).exists();
                assert!(committed, "{what}: {name} belongs to no version of {versions:?} and no commit");
            } else {
                assert!(known.contains(&name.as_str()), "{what}: {name} was left");
            }
        }
    }
}

/// Where `get --to DIR` put the source tree.
pub fn restored(to: &Path, source: &Path) -> PathBuf {
    let name = to.join(source.file_name().expect("a name"));
    if name.exists() { name } else { below(to, source) }
}

fn kill_backup_at(calls: impl Fn(&str) -> bool, test: &str, some: u64, limit: usize) {
    let mut rng = Rng::from_env(test);
    let before = Before::new(&mut rng);
    let home = before.lab.path("home");
    let log = before.lab.path("strace.log");
    let src = before.lab.src();
    let make = command("backup", &before.repo, &[&src]);
    before.reset();
    let mut counts = strace::count(&make, &home, &log);
    counts.0.retain(|call, _| calls(call));
    println!("{test}: {:?}", counts.0);
    let (mut fired, mut committed) = (0, 0);
    for (call, number) in points(&counts, &mut rng, some, limit) {
        // Threads share the work differently in each run: come nearer until it hits.
        let mut number = number;
        let hit = loop {
            before.reset();
            match strace::kill_at(&make, &home, &log, &call, number) {
                Some(hit) => break Some(hit),
                None if number <= 1 => break None,
                None => number /= 2,
            }
        };
        let Some(hit) = hit else { continue };
        fired += 1;
        let what = format!("kill at {call} {number} ({})", hit.hit);
        committed += u32::from(before.judge(&what));
    }
    println!("{test}: {fired} kills, {committed} after the commit");
    assert!(fired >= 5, "only {fired} kills fired");
}

#[test]
fn kill_a_backup_at_writes_and_syncs() {
    let calls = ["write", "pwrite64", "writev", "pwritev", "fsync", "fdatasync", "ftruncate", "fallocate"];
    kill_backup_at(|call| calls.contains(&call), "kill writes", 8, 36);
}

#[test]
fn kill_a_backup_at_names_and_opens() {
    let calls = ["write", "pwrite64", "writev", "pwritev", "fsync", "fdatasync", "ftruncate", "fallocate"];
    kill_backup_at(|call| !calls.contains(&call), "kill names", 8, 24);
}

#[test]
fn kill_a_first_backup_and_init() {
    let mut rng = Rng::from_env("kill init");
    let lab = Lab::new();
    lab.write("file", b"content");
    let (home, log) = (lab.path("home"), lab.path("strace.log"));
    let repo = lab.path("trial");
    let make = command("init", &repo, &[]);
    let counts = strace::count(&make, &home, &log);
    println!("init: {:?}", counts.0);
    let mut fired = 0;
    for (call, number) in points(&counts, &mut rng, 4, 30) {
        let _ = fs::remove_dir_all(&repo);
        let Some(hit) = strace::kill_at(&make, &home, &log, &call, number) else {
            panic!("init is one thread, yet {call} {number} did not fire")
        };
        fired += 1;
        let what = format!("kill init at {call} {number} ({})", hit.hit);
        // Whole or absent: it either works, or a second init makes it work.
        let usable = lab.assay_on(&repo, "versions", NONE).run();
        match usable.code {
            Some(0) => {}
            Some(10) => {
                lab.assay_on(&repo, "init", NONE).ok();
            }
            code => panic!("{what}: versions exits {code:?}: {}", usable.text()),
        }
        lab.assay_on(&repo, "backup", [lab.src()]).ok();
        assert_eq!(lab.versions_of(&repo).len(), 1, "{what}");
    }
    assert!(fired >= 8, "only {fired} kills");

    // The first backup of all.
    let empty = lab.path("empty");
    lab.assay_on(&empty, "init", NONE).ok();
    let make = command("backup", &repo, &[&lab.src()]);
    let reset = || {
        let _ = fs::remove_dir_all(&repo);
        tool("cp").arg("-a").arg(&empty).arg(&repo).ok();
    };
    reset();
    let counts = strace::count(&make, &home, &log);
    for (call, number) in points(&counts, &mut rng, 1, 12) {
        reset();
        let Some(hit) = strace::kill_at(&make, &home, &log, &call, number) else { continue };
        let what = format!("kill the first backup at {call} {number} ({})", hit.hit);
        let before = lab.versions_of(&repo).len().max(usize::from(repo.join("arc.0.0").exists()));
        assert!(before <= 1, "{what}");
        lab.assay_on(&repo, "backup", [lab.src()]).ok();
        assert_eq!(lab.versions_of(&repo).len(), before + 1, "{what}");
    }
}

#[test]
fn a_commit_is_durable_before_the_index_learns_of_it() {
    let before = Before::new(&mut Rng::from_env("unknown commit"));
    let log = before.lab.path("strace.log");
    before.reset();
    let index = before.repo.join("index.db");
    let old = fs::read(&index).expect("index.db");
    before.lab.assay_on(&before.repo, "backup", [before.lab.src()]).ok();
    // As after a cut between the commit's rename and the sync of the directory.
    fs::write(&index, &old).expect("index.db");
    strace::count(&command("backup", &before.repo, &[&before.lab.src()]), &before.lab.path("home"), &log);
    assert_eq!(before.lab.versions_of(&before.repo), [0, 1, 2]);
    let text = String::from_utf8_lossy(&fs::read(&log).expect("strace log")).into_owned();
    let first = |call: &str, path: &str| {
        let place = format!("<{}{path}>", before.repo.display());
        let found = text.lines().position(|line| line.contains(call) && line.contains(&place));
        found.unwrap_or_else(|| panic!("no {call} of {place}"))
    };
    let told = first("pwrite64(", "/index.db-wal");
    assert!(first("fsync(", "/arc.1.0") < told && first("fsync(", "") < told, "the index was ahead of the disk");
}

/// A full or failing disk at the n-th call of one kind.
fn fail_backup_at(test: &str, error: &str, calls: &[&str], some: u64, limit: usize) {
    let mut rng = Rng::from_env(test);
    let before = Before::new(&mut rng);
    let (home, log) = (before.lab.path("home"), before.lab.path("strace.log"));
    let src = before.lab.src();
    let make = command("backup", &before.repo, &[&src]);
    before.reset();
    let mut counts = strace::count(&make, &home, &log);
    counts.0.retain(|call, _| calls.contains(&call.as_str()));
    println!("{test}: {:?}", counts.0);
    let mut failed = 0;
    for (call, number) in points(&counts, &mut rng, some, limit) {
        before.reset();
        let forever = rng.below(2) == 0;
        let Some(hit) = strace::fail_at(&make, &home, &log, &call, error, number, forever) else { continue };
        let what = format!("{error} at {call} {number} (forever: {forever}; {})", hit.hit);
        let out = &hit.out;
        assert!(out.signal.is_none(), "{what}: signal {:?}", out.signal);
        assert!(!out.err().contains("panicked"), "{what}: {}", out.err());
        let in_arc = hit.hit.contains(&format!("{}/arc.", before.repo.display()));
        match out.code {
            Some(1) => {
                failed += 1;
                // The terminal fails as well when every write does.
                let mute = call == "write" && forever;
                assert!(mute || !out.err().trim().is_empty(), "{what}: exit 1 without a word");
            }
            // The terminal may be full, the index may be caught up by the next run; an arc must be written.
            Some(0 | 3) => assert!(!in_arc, "{what}: exit {:?}: {}", out.code, out.text()),
            code => panic!("{what}: exit {code:?}: {}", out.text()),
        }
        before.judge(&what);
    }
    println!("{test}: {failed} runs failed");
    assert!(failed >= 2, "hardly a run failed");
}

#[test]
fn a_full_disk() {
    fail_backup_at("ENOSPC", "ENOSPC", &["write", "pwrite64", "writev", "pwritev", "ftruncate", "fallocate"], 6, 20);
}

#[test]
fn a_failing_disk() {
    fail_backup_at(
        "EIO",
        "EIO",
        &["write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2"],
        4,
        20,
    );
}

#[test]
fn a_really_full_file_system() {
    if !crate::support::is_root() {
        // Only root can make a small file system; an ordinary user has the injected ENOSPC above.
        return;
    }
    let lab = Lab::new();
    let mut rng = Rng::from_env("full");
    lab.write("first", &rng.bytes(300_000));
    let small = lab.path("small");
    fs::create_dir(&small).expect("mkdir");
    tool("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(&small).ok();
    let repo = small.join("backup");
    let run = || {
        lab.assay_on(&repo, "init", NONE).ok();
        lab.assay_on(&repo, "backup", [lab.src()]).ok();
        let first = lab.write("too-much", &rng.bytes(9_000_000));
        let out = lab.assay_on(&repo, "backup", [lab.src()]).run().code(1);
        assert!(out.err().to_lowercase().contains("space"), "{}", out.err());
        assert_eq!(lab.versions_of(&repo), [0]);
        fs::remove_file(first).expect("rm");
        lab.assay_on(&repo, "backup", [lab.src()]).ok();
        assert_eq!(lab.versions_of(&repo).len(), 2);
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    tool("umount").arg(&small).ok();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
