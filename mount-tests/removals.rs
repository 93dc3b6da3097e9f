//! `rm`, `retain` and `pack`: cut at any write-class system call, on a full disk, under a running mount, with damage.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::rng::Rng;
use crate::support::strace::{self, Counts};
use crate::support::{Lab, NONE, arcfile, assay_binary, is_root, oracle, tool};

/// Four versions; each has a large file of its own, which the next changes, and all share one.
fn four_versions(lab: &Lab, rng: &mut Rng) -> Vec<PathBuf> {
    let mut then = Vec::new();
    lab.write("shared/kept", &rng.bytes(40_000));
    for v in 0..4 {
        lab.write("changes", &rng.bytes(120_000));
        lab.write(&format!("dir/of-{v}"), &rng.bytes(60_000));
        lab.backup();
        let copy = lab.path(&format!("then-{v}"));
        tool("cp").arg("-a").arg(lab.src()).arg(&copy).ok();
        then.push(copy);
    }
    then
}

/// These versions read as they were.
#[track_caller]
fn contents(lab: &Lab, repo: &Path, versions: &BTreeSet<u64>, then: &[PathBuf]) {
    for v in versions {
        let to = lab.path("got");
        let _ = fs::remove_dir_all(&to);
        fs::create_dir(&to).expect("mkdir");
        lab.assay_on(repo, "get", ["-r", &v.to_string(), "-y", "--to"]).arg(&to).arg(lab.src()).ok();
        oracle::diff_clean(&then[*v as usize], &crate::atomicity::restored(&to, &lab.src()), &[]);
    }
}

/// Exactly these versions are there, and everything is in order.
#[track_caller]
fn judge(lab: &Lab, repo: &Path, what: &str, wanted: &BTreeSet<u64>, then: &[PathBuf]) {
    assert_eq!(lab.versions_of(repo), wanted.iter().copied().collect::<Vec<_>>(), "{what}");
    contents(lab, repo, wanted, then);
    let checked = lab.assay_on(repo, "selftest", ["-v3"]).run();
    assert_eq!(checked.code, Some(0), "{what}: {}", checked.text());
}

fn points(counts: &Counts, rng: &mut Rng, some: u64, limit: usize) -> Vec<(String, u64)> {
    crate::atomicity::points(counts, rng, some, limit)
}

/// Kills a command at write-class calls; afterwards it is as before or as after, and goes on.
fn kill_at_points(test: &str, args: &[&str], prepare: &[&[&str]], after: &[u64], limit: usize) {
    let mut rng = Rng::from_env(test);
    let lab = Lab::new();
    lab.init();
    let then = four_versions(&lab, &mut rng);
    for args in prepare {
        lab.assay(args[0], &args[1..]).ok();
    }
    let before: BTreeSet<u64> = lab.versions().into_iter().collect();
    let after: BTreeSet<u64> = after.iter().copied().collect();
    let repo = lab.path("trial");
    let reset = || {
        let _ = fs::remove_dir_all(&repo);
        tool("cp").arg("-a").arg(lab.repo()).arg(&repo).ok();
    };
    let mut make: Vec<OsString> = vec![assay_binary().into(), args[0].into(), "-c".into(), repo.clone().into()];
    make.extend(args[1..].iter().map(OsString::from));
    let (home, log) = (lab.path("home"), lab.path("strace.log"));
    reset();
    let counts = strace::count(&make, &home, &log);
    judge(&lab, &repo, "not killed", &after, &then);
    println!("{test}: {:?}", counts.0);
    let (mut fired, mut done) = (0, 0);
    for (call, number) in points(&counts, &mut rng, 2, limit) {
        reset();
        let Some(hit) = strace::kill_at(&make, &home, &log, &call, number) else { continue };
        fired += 1;
        let what = format!("{test}: kill at {call} {number} ({})", hit.hit);
        let now: BTreeSet<u64> = lab.versions_of(&repo).into_iter().collect();
        assert!(now == before || now == after, "{what}: {now:?}");
        contents(&lab, &repo, &now, &then);
        // The same again ends what was begun, or has nothing to do.
        let again = lab.assay_on(&repo, args[0], &args[1..]).run();
        done += u32::from(now == after);
        // What was committed, and not known to the index yet, is settled first: then there is nothing of that name.
        assert!(again.code == Some(0) || again.err().contains("NO_VERSION"), "{what}: {}", again.text());
        judge(&lab, &repo, &what, &after, &then);
        lab.assay_on(&repo, "backup", [lab.src()]).ok();
        let checked = lab.assay_on(&repo, "selftest", ["-v2"]).run();
        assert_eq!(checked.code, Some(0), "{what}: {}", checked.text());
        let index = repo.join("index.db");
        fs::remove_file(&index).expect("rm");
        lab.assay_on(&repo, "recover", NONE).ok();
        let newest = lab.versions_of(&repo).into_iter().filter(|v| *v < 4).collect::<BTreeSet<_>>();
        assert_eq!(newest, after, "{what}: recovered");
    }
    println!("{test}: {fired} kills, {done} after the commit");
    assert!(fired >= 5, "only {fired} kills fired");
}

#[test]
fn kill_rm() {
    kill_at_points("kill rm", &["rm", "-r", "r1", "2"], &[], &[0, 3], 14);
}

#[test]
fn kill_retain() {
    kill_at_points("kill retain", &["retain", "-t", "2"], &[], &[2, 3], 10);
}

#[test]
fn kill_pack() {
    let prepare: &[&[&str]] = &[&["rm", "-r", "r1..r2"]];
    kill_at_points("kill pack", &["pack", "--threshold", "1"], prepare, &[0, 3], 16);
}

#[test]
fn what_is_the_last_of_its_kind_stays_until_it_is_forced() {
    let lab = Lab::with_files(&[("a", b"in both"), ("dir/gone", b"only in r0")]);
    fs::remove_dir_all(lab.src().join("dir")).expect("rm");
    lab.write("b", b"new in r1");
    lab.backup();
    let out = lab.assay("rm", ["-r", "latest"]).run().code(1);
    assert!(out.err().contains("PROTECTED") && out.err().contains("--force"), "{}", out.err());
    let out = lab.assay("rm", ["-r", "0"]).run().code(1);
    assert!(out.err().contains("dir/gone") && out.err().contains("2 paths"), "{}", out.err());
    assert_eq!(lab.versions(), [0, 1]);
    // retain keeps it, and says why.
    let out = lab.assay("retain", ["-t", "1"]).ok();
    assert!(out.out().contains("keep") && out.out().contains("the last copy of"), "{}", out.out());
    assert_eq!(lab.versions(), [0, 1]);
    let dry = lab.assay("rm", ["-r", "r0", "--force", "--dry-run", "--json"]).ok().json();
    assert_eq!((dry["removed"].clone(), dry["last_copies"]["count"].clone()), (serde_json::json!([0]), 2.into()));
    assert!(dry["free_bytes"].as_u64() > Some(0), "{dry}");
    assert_eq!(lab.versions(), [0, 1]);
    lab.assay("retain", ["-t", "1", "--force"]).ok();
    assert_eq!(lab.versions(), [1]);
    lab.assay("rm", ["-r", "0"]).run().code(1);
    // The newest can go too; the next backup knows what was in it.
    lab.assay("rm", ["-r", "r1", "--force"]).ok();
    assert_eq!(lab.versions(), NONE_LEFT);
    lab.assay("pack", ["--threshold", "1"]).ok();
    lab.backup();
    let mount = lab.mount();
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    mount.end().ok();
    lab.assay("selftest", ["-v5"]).ok();
}

const NONE_LEFT: [u64; 0] = [];

#[test]
fn mistakes_are_told_and_change_nothing() {
    let lab = Lab::with_files(&[("a", b"r0")]);
    lab.write("a", b"in r1");
    lab.backup();
    for (args, code, word) in [
        (&["rm", "-r", "7"][..], 1, "NO_VERSION"),
        (&["rm", "-r", "r1..r0"], 2, "no range"),
        (&["rm"], 2, "<PATH|--rev <REV>...>"),
        (&["retain"], 2, "--schedule"),
        (&["retain", "-s", "7x"], 2, "7x"),
        (&["retain", "-t", "0"], 2, "0"),
        (&["pack", "--threshold", "0"], 2, "0"),
        (&["prune"], 2, "assay retain"),
        (&["gc"], 2, "assay pack"),
    ] {
        let out = lab.assay(args[0], &args[1..]).run().code(code);
        assert!(out.err().contains(word), "{args:?}: {}", out.err());
    }
    assert_eq!(lab.versions(), [0, 1]);
    let held = fs::File::open(lab.repo().join("lock")).expect("lock");
    held.lock().expect("flock");
    for args in [&["rm", "-r", "0"][..], &["retain", "-t", "1"], &["pack"]] {
        lab.assay(args[0], &args[1..]).run().code(11);
    }
}

#[test]
fn a_running_mount_goes_on_or_says_that_what_it_had_is_stale() {
    let mut rng = Rng::from_env("mount and pack");
    let lab = Lab::new();
    lab.init();
    let then = four_versions(&lab, &mut rng);
    let mount = lab.mount_with(["--direct"]);
    let open = |v: u64, name: &str| fs::File::open(mount.version(v, &lab.src()).join(name)).expect("open");
    let (shared, gone, stays) = (open(0, "shared/kept"), open(1, "dir/of-1"), open(3, "changes"));
    let mut buffer = [0; 100];
    shared.read_exact_at(&mut buffer, 0).expect("read");
    let folder = mount.version(1, &lab.src());
    lab.assay("rm", ["-r", "r1..r2"]).ok();
    lab.assay("pack", ["--threshold", "1"]).ok();
    // A name that the kernel does not remember.
    assert!(fs::metadata(folder.join("dir/never-asked-for")).is_err());
    let whole = |mut file: fs::File| -> std::io::Result<Vec<u8>> {
        file.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    assert_eq!(whole(shared).expect("it moved on"), fs::read(then[0].join("shared/kept")).expect("read"));
    assert_eq!(whole(stays).expect("it moved on"), fs::read(then[3].join("changes")).expect("read"));
    // of-1 is in r3 too; what only r1 had is in `changes`.
    assert_eq!(whole(gone).expect("r3 has it"), fs::read(then[1].join("dir/of-1")).expect("read"));
    for v in [0, 3] {
        oracle::diff_clean(&then[v], &mount.version(v as u64, &lab.src()), &[]);
    }
    // A second time, with nothing left of what is open.
    let old = open(0, "changes");
    old.read_exact_at(&mut buffer, 0).expect("read");
    lab.assay("rm", ["-r", "r0"]).ok();
    lab.assay("pack", ["--threshold", "1"]).ok();
    std::thread::sleep(std::time::Duration::from_millis(1200));
    match whole(old) {
        Ok(bytes) => assert_eq!(bytes, fs::read(then[0].join("changes")).expect("read")),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc_estale()), "{error}"),
    }
    oracle::diff_clean(&then[3], &mount.latest(&lab.src()), &[]);
    // Nothing of this is damage.
    mount.end().ok();
    lab.assay("selftest", ["-v3"]).ok();
}

fn libc_estale() -> i32 {
    116
}

#[test]
fn a_damaged_block_is_not_packed_and_its_arc_stays() {
    let mut rng = Rng::from_env("damaged pack");
    let lab = Lab::new();
    lab.init();
    let then = four_versions(&lab, &mut rng);
    lab.assay("rm", ["-r", "r1..r2"]).ok();
    // arc.0.1 has `changes`, which only r0 needs, and what all share; of-1 in arc.1.1 is needed, `changes` is not.
    let victim = lab.repo().join("arc.1.1");
    let before = fs::read(&victim).expect("arc");
    for frame in arcfile::frames(&before) {
        arcfile::rewrite(&victim, |bytes| arcfile::spoil(bytes, &frame));
    }
    let damaged = fs::read(&victim).expect("arc");
    let out = lab.assay("pack", ["--threshold", "1", "--json"]).run().code(4);
    assert!(out.err().contains("arc.1.1") && out.err().contains("help:"), "{}", out.err());
    let json = out.json();
    assert_eq!(json["damaged_arcs"].as_u64(), Some(1), "{json}");
    assert!(json["rewritten_arcs"].as_u64() >= Some(1), "the others are packed: {json}");
    assert_eq!(fs::read(&victim).expect("it stays"), damaged);
    // In vain, as often as one likes: nothing is left of it.
    let names = || arcfile::arc_names(&lab.repo());
    let left = names();
    for _ in 0..2 {
        lab.assay("pack", ["--threshold", "1"]).run().code(4);
        assert_eq!(names(), left);
    }
    assert!(!lab.repo().join("arc.2.1").exists());
    // Put back, it is packed like any other.
    arcfile::rewrite(&victim, |bytes| bytes.clone_from(&before));
    lab.assay("pack", ["--threshold", "1"]).ok();
    assert!(!victim.exists());
    judge(&lab, &lab.repo(), "put back", &BTreeSet::from([0, 3]), &then);
}

#[test]
fn a_full_disk_under_rm_and_pack() {
    if !is_root() {
        // Only root can make a small file system.
        return;
    }
    let lab = Lab::new();
    let mut rng = Rng::from_env("full pack");
    let small = lab.path("small");
    fs::create_dir(&small).expect("mkdir");
    tool("mount").args(["-t", "tmpfs", "-o", "size=16m", "none"]).arg(&small).ok();
    let repo = small.join("backup");
    let run = || {
        lab.assay_on(&repo, "init", NONE).ok();
        lab.write("keep", &rng.bytes(2_000_000));
        lab.write("changes", &rng.bytes(2_000_000));
        lab.assay_on(&repo, "backup", [lab.src()]).ok();
        lab.write("changes", b"short");
        lab.assay_on(&repo, "backup", [lab.src()]).ok();
        lab.assay_on(&repo, "rm", ["-r", "r0"]).ok();
        let room = |left: u64| {
            let out = tool("df").args(["--output=avail", "-B1"]).arg(&small).ok().out();
            let free: u64 = out.lines().nth(1).and_then(|line| line.trim().parse().ok()).expect("df");
            fs::write(small.join("ballast"), vec![0; free.saturating_sub(left) as usize]).expect("ballast");
        };
        room(1_200_000);
        let names = arcfile::arc_names(&repo);
        let out = lab.assay_on(&repo, "pack", ["--threshold", "10"]).run().code(1);
        assert!(out.err().to_lowercase().contains("space"), "{}", out.err());
        assert_eq!(arcfile::arc_names(&repo), names, "everything is as before");
        lab.assay_on(&repo, "selftest", ["-v3"]).ok();
        fs::remove_file(small.join("ballast")).expect("rm");
        let json = lab.assay_on(&repo, "pack", ["--threshold", "10", "--json"]).ok().json();
        assert!(json["freed_bytes"].as_u64() > Some(1_900_000), "{json}");
        lab.assay_on(&repo, "selftest", ["-v3"]).ok();
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    tool("umount").arg(&small).ok();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// A lost write leaves an older page in the index: what that page does not know may be needed.
#[test]
fn an_older_page_of_the_index_makes_pack_throw_nothing_away() {
    const PAGE_BYTES: usize = 4096;
    let mut rng = Rng::from_env("an_older_page_of_the_index_makes_pack_throw_nothing_away");
    let lab = Lab::new();
    lab.init();
    for name in ["kept", "gone"] {
        lab.write(name, &rng.bytes(90_000));
    }
    lab.backup();
    let older = fs::read(lab.repo().join("index.db")).expect("read");
    fs::remove_file(lab.src().join("gone")).expect("remove");
    for n in 0..40 {
        lab.write(&format!("new/{n}"), &rng.bytes(3000));
    }
    lab.backup();
    lab.assay("rm", ["-r", "0", "--force"]).ok();
    let newer = fs::read(lab.repo().join("index.db")).expect("read");
    let pages = older.chunks(PAGE_BYTES).zip(newer.chunks(PAGE_BYTES)).enumerate();
    let differing: Vec<usize> = pages.filter(|(_, (old, new))| old != new).map(|(page, _)| page).collect();
    assert!(differing.len() > 4, "{differing:?}");
    let (mut refused, mut packed) = (0, 0);
    for page in differing {
        let trial = lab.path("trial");
        let _ = fs::remove_dir_all(&trial);
        tool("cp").arg("-a").arg(lab.repo()).arg(&trial).ok();
        let range = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
        let index = fs::File::options().write(true).open(trial.join("index.db")).expect("open");
        index.write_all_at(&older[range.clone()], range.start as u64).expect("write");
        let out = lab.assay_on(&trial, "pack", ["--threshold", "1"]).run();
        *(if out.code == Some(0) { &mut packed } else { &mut refused }) += 1;
        // With a right index all is there, whatever pack was told.
        fs::remove_file(trial.join("index.db")).expect("remove");
        lab.assay_on(&trial, "recover", NONE).ok();
        let to = lab.path("got");
        let _ = fs::remove_dir_all(&to);
        fs::create_dir(&to).expect("mkdir");
        let got = lab.assay_on(&trial, "get", ["-y", "--to"]).arg(&to).arg(lab.src()).run();
        assert_eq!(got.code, Some(0), "page {page}: {}\n{}", out.text(), got.text());
        oracle::diff_clean(&lab.src(), &crate::atomicity::restored(&to, &lab.src()), &[]);
    }
    assert!(refused > 0, "{refused} refused, {packed} packed: no page mattered");
}

/// What a version held that was removed does not come back with the next one.
#[test]
fn a_path_that_went_with_the_newest_version_is_not_kept() {
    let lab = Lab::new();
    lab.init();
    for (name, bytes) in [("public/f", b"1"), ("secret/key", b"s"), ("other/g", b"2")] {
        lab.write(name, bytes);
    }
    let save = |name: &str| lab.assay("backup", [lab.src().join(name)]).ok();
    ["public", "other", "secret"].iter().for_each(|name| drop(save(name)));
    lab.assay("rm", ["-r", "2", "--force"]).ok();
    let text = save("public").text();
    assert!(text.contains("other") && !text.contains("secret"), "what is kept is told: {text}");
    let listed = lab.assay("ls", ["-r", "latest", "**"]).ok().out();
    assert!(listed.contains("public/f") && listed.contains("other/g") && !listed.contains("secret"), "{listed}");
    lab.assay("selftest", ["-v5"]).ok();
}

/// Arcs of a snapshot that was put back are older than the index: what that calls dropped may be all there is.
#[test]
fn arcs_that_are_older_than_the_index_are_not_removed() {
    let mut rng = Rng::from_env("arcs_that_are_older_than_the_index_are_not_removed");
    let lab = Lab::new();
    lab.init();
    let (index, away) = (lab.repo().join("index.db"), lab.path("local"));
    fs::create_dir(&away).expect("mkdir");
    fs::rename(&index, away.join("index.db")).expect("rename");
    std::os::unix::fs::symlink(away.join("index.db"), &index).expect("symlink");
    lab.write("kept", &rng.bytes(90_000));
    lab.write("changes", &rng.bytes(300_000));
    lab.backup();
    lab.write("changes", &rng.bytes(300_000));
    lab.backup();
    lab.assay("rm", ["-r", "0"]).ok();
    let snapshot = lab.path("snapshot");
    tool("cp").arg("-a").arg(lab.repo()).arg(&snapshot).ok();
    lab.assay("pack", NONE).ok();
    assert!(!lab.repo().join("arc.0.1").exists(), "it was packed away");
    fs::remove_dir_all(lab.repo()).expect("remove");
    tool("cp").arg("-a").arg(&snapshot).arg(lab.repo()).ok();
    for (command, args) in [("pack", &[][..]), ("rm", &["-r", "1", "--force"]), ("retain", &["-t", "5"])] {
        let out = lab.assay(command, args).run();
        assert_eq!(out.code, Some(4), "{command}: {}", out.text());
    }
    let whole = fs::read(snapshot.join("arc.0.1")).expect("read");
    assert!(fs::read(lab.repo().join("arc.0.1")).expect("it is kept") == whole);
    // Without the newer index all of it is there.
    fs::remove_file(snapshot.join("index.db")).expect("remove");
    lab.assay_on(&snapshot, "recover", NONE).ok();
    contents(&lab, &snapshot, &BTreeSet::from([1]), &[lab.src(), lab.src()]);
    // A backup builds what is missing anew, and takes nothing away either.
    lab.assay("backup", [lab.src()]).run();
    assert!(lab.repo().join("arc.0.1").exists(), "it is kept");
}
