//! Another history in the place of the one that was seen: by this machine, or by a mount that runs.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::rng::Rng;
use crate::support::{Cmd, Lab, NONE, Out, arcfile, oracle, tool};

const ESTALE: i32 = 116;
const EIO: i32 = 5;

/// Commands with a memory of their own.
struct Machine {
    lab: Lab,
    state: PathBuf,
}

impl Machine {
    /// r0 is there, and the older copy of it; r1 has changed.
    fn with_two_versions() -> Machine {
        let lab = Lab::with_files(&[("a", b"in r0"), ("same", b"in both")]);
        let state = lab.path("state");
        let machine = Machine { lab, state };
        machine.copy(&machine.lab.repo(), &machine.older());
        machine.lab.write("a", b"in r1");
        machine.run("backup", NONE).arg(machine.lab.src()).ok();
        machine
    }

    fn older(&self) -> PathBuf {
        self.lab.path("older")
    }

    fn run<'a>(&self, command: &str, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        self.on(&self.lab.repo(), command, args)
    }

    fn on<'a>(&self, repo: &Path, command: &str, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        self.lab.assay_on(repo, command, args).env("ASSAY_STATE_DIR", &self.state)
    }

    fn copy(&self, from: &Path, to: &Path) {
        let _ = fs::remove_dir_all(to);
        tool("cp").arg("-a").arg(from).arg(to).ok();
    }

    fn put_back_the_older(&self) {
        self.copy(&self.older(), &self.lab.repo());
    }
}

#[track_caller]
fn refused(out: Out, word: &str) {
    assert!(out.code == Some(1) && out.err().contains("HISTORY_CHANGED"), "{:?} {}", out.code, out.text());
    assert!(out.err().contains(word) && out.err().contains("--accept-history"), "{}", out.err());
}

#[test]
fn an_older_copy_stops_who_writes_mounts_or_restores_until_it_is_accepted() {
    let machine = Machine::with_two_versions();
    let lab = &machine.lab;
    machine.put_back_the_older();
    let names = arcfile::arc_names(&lab.repo());
    let word = "this machine has seen r1, and the newest here is r0";
    refused(machine.run("backup", NONE).arg(lab.src()).run(), word);
    refused(machine.run("get", ["-y", "--to"]).arg(lab.path("to")).arg(lab.src()).run(), word);
    refused(machine.run("mount", NONE).arg(lab.mnt()).run(), word);
    refused(machine.run("mount", ["--background"]).arg(lab.mnt()).run(), word);
    for args in [&["rm", "-r", "0", "--force"][..], &["retain", "-t", "1"], &["pack"]] {
        refused(machine.run(args[0], args[1..].iter().copied()).run(), word);
    }
    // Also where catalogs answer for its index.
    let index = fs::read(lab.repo().join("index.db")).expect("read");
    arcfile::rewrite(&lab.repo().join("index.db"), |bytes| bytes[99] ^= 1);
    refused(machine.run("get", ["-y", "--to"]).arg(lab.path("to")).arg(lab.src()).run(), word);
    refused(machine.run("mount", NONE).arg(lab.mnt()).run(), word);
    arcfile::overwrite(&lab.repo().join("index.db"), &index);
    assert_eq!(arcfile::arc_names(&lab.repo()), names);
    // A recovery tells it too: that is damage, for all it can know.
    let out = machine.run("recover", NONE).run();
    assert!(out.code == Some(4) && out.err().contains(word), "{:?} {}", out.code, out.text());
    refused(machine.run("backup", NONE).arg(lab.src()).run(), word);
    machine.run("backup", ["--accept-history"]).arg(lab.src()).ok();
    // From now on this is the history.
    machine.run("backup", NONE).arg(lab.src()).ok();
    machine.run("selftest", ["-v5"]).ok();
}

#[test]
fn accepting_the_loss_accepts_the_history() {
    let machine = Machine::with_two_versions();
    machine.put_back_the_older();
    machine.run("recover", ["--accept-loss"]).ok();
    machine.run("backup", NONE).arg(machine.lab.src()).ok();
}

#[test]
fn a_fork_and_another_backup_dir_are_told() {
    let machine = Machine::with_two_versions();
    let lab = &machine.lab;
    // Another machine went on from r0.
    lab.write("a", b"elsewhere");
    lab.assay_on(&machine.older(), "backup", NONE).arg(lab.src()).ok();
    machine.put_back_the_older();
    refused(machine.run("backup", NONE).arg(lab.src()).run(), "r1 is another one than this machine has seen");
    // One that is not of this key at all.
    let other = lab.path("other");
    lab.assay_on(&other, "init", NONE).ok();
    machine.copy(&other, &lab.repo());
    refused(machine.run("backup", NONE).arg(lab.src()).run(), "here was the backup dir");
    machine.run("backup", ["--accept-history"]).arg(lab.src()).ok();
    machine.run("backup", NONE).arg(lab.src()).ok();
}

#[test]
fn what_is_no_other_history_stops_nobody() {
    let machine = Machine::with_two_versions();
    let lab = &machine.lab;
    // A copy that is up to date, at another place.
    let copy = lab.path("copy");
    machine.copy(&lab.repo(), &copy);
    machine.on(&copy, "backup", NONE).arg(lab.src()).ok();
    // It is ahead of the first one now, which has not lost anything that it ever had; but this machine can't know that.
    refused(machine.run("backup", NONE).arg(lab.src()).run(), "this machine has seen r2");
    machine.copy(&copy, &lab.repo());
    // An index that is behind its arcs, and none.
    fs::copy(machine.older().join("index.db"), lab.repo().join("index.db")).expect("copy");
    machine.run("backup", NONE).arg(lab.src()).ok();
    fs::remove_file(lab.repo().join("index.db")).expect("rm");
    machine.run("recover", NONE).ok();
    machine.run("backup", NONE).arg(lab.src()).ok();
    // A memory that is damaged, or can't be kept.
    for entry in fs::read_dir(&machine.state).expect("state") {
        fs::write(entry.expect("entry").path(), b"\xff damaged").expect("write");
    }
    let out = machine.run("backup", NONE).arg(lab.src()).ok();
    assert!(out.err().contains("is damaged: what it said is forgotten"), "{}", out.err());
    let out = lab.assay("backup", NONE).arg(lab.src()).env("ASSAY_STATE_DIR", "/proc/none").ok();
    assert!(out.err().contains("can't be remembered"), "{}", out.err());
    let out = lab.assay("backup", NONE).arg(lab.src()).ok();
    assert_eq!(out.err().matches("remember").count(), 0, "{}", out.err());
}

#[test]
fn the_memory_is_where_the_system_keeps_such_things() {
    let machine = Machine::with_two_versions();
    let lab = &machine.lab;
    let mut cmd = lab.assay("backup", NONE).arg(lab.src()).env("XDG_STATE_HOME", lab.path("xdg"));
    cmd = cmd.unset("ASSAY_STATE_DIR");
    cmd.ok();
    let names: Vec<PathBuf> =
        fs::read_dir(lab.path("xdg/assay")).expect("state").map(|entry| entry.expect("entry").path()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    for path in names {
        let stat = fs::metadata(&path).expect("stat");
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&stat.permissions()) & 0o077, 0, "{path:?}");
    }
}

#[test]
fn noted_root_digests_tell_a_rollback_and_a_fork_from_what_was_removed_on_purpose() {
    let machine = Machine::with_two_versions();
    let lab = &machine.lab;
    let noted = lab.path("noted");
    let lines = lab.assay("versions", ["--digest"]).ok().out();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(lines.lines().all(|line| line.split(' ').count() == 3 && line.len() > 64), "{lines}");
    fs::write(&noted, &lines).expect("write");
    let expect = || lab.assay("versions", ["--expect"]).arg(&noted).run();
    assert_eq!(expect().code(0).out().matches("as noted").count(), 2);
    lab.assay("versions", ["--expect", lines.lines().next().expect("a line")]).ok();
    lab.assay("rm", ["--force"]).arg(lab.src().join("same")).ok();
    assert_eq!(expect().code(0).out().matches("on purpose").count(), 2);
    lab.assay("rm", ["-r", "0", "--force"]).ok();
    assert_eq!(expect().code(0).out().matches("on purpose").count(), 2);
    // An older copy lacks r1, a fork has another one.
    machine.put_back_the_older();
    let said = expect().code(4);
    assert_eq!(said.out().matches("as noted").count(), 1, "{}", said.text());
    lab.write("a", b"elsewhere");
    lab.backup();
    let said = expect().code(4);
    assert_eq!(said.out().matches("as noted").count(), 1, "{}", said.text());
    fs::write(&noted, "nonsense\n").expect("write");
    expect().code(2);
    fs::remove_file(&noted).expect("rm");
    expect().code(1);
}

/// Replaces what a running mount shows, and looks that nothing of the new history comes out of the old names.
fn under_a_mount(test: &str, change: impl FnOnce(&Lab)) {
    let mut rng = Rng::from_env(test);
    let lab = Lab::new();
    lab.init();
    let [first, second] = [rng.bytes(50_000), rng.bytes(50_000)];
    lab.write("a", &first);
    lab.write("dir/other", &rng.bytes(3000));
    lab.backup();
    let older = lab.path("older");
    tool("cp").arg("-a").arg(lab.repo()).arg(&older).ok();
    lab.write("a", &second);
    lab.write("dir/late", &rng.bytes(3000));
    lab.backup();
    let then = lab.path("then");
    tool("cp").arg("-a").arg(lab.src()).arg(&then).ok();
    let mount = lab.mount_with(["--direct"]);
    let folder = mount.version(1, &lab.src());
    oracle::diff_clean(&then, &folder, &[]);
    let open = fs::File::open(folder.join("a")).expect("open");
    change(&lab);
    std::thread::sleep(Duration::from_millis(2500));
    // By an open file, and by a name: as it was, or stale.
    let mut bytes = vec![0; second.len()];
    match open.read_exact_at(&mut bytes, 0) {
        Ok(()) => assert!(bytes == second, "another version's bytes"),
        Err(error) => told(&error),
    }
    for name in ["a", "dir/late", "dir/other"] {
        let mut bytes = Vec::new();
        let read = fs::File::open(folder.join(name)).and_then(|mut file| file.read_to_end(&mut bytes));
        match read {
            Ok(_) => assert!(bytes == fs::read(then.join(name)).expect("read"), "{name}: another version's bytes"),
            Err(error) => told(&error),
        }
    }
    let listed = fs::read_dir(&mount.point).and_then(|names| names.collect::<Result<Vec<_>, _>>());
    assert_eq!(listed.expect_err("it is another history").raw_os_error(), Some(ESTALE));
    drop(open);
    let out = mount.end();
    assert!(out.err().contains("HISTORY_CHANGED"), "{}", out.err());
    assert_eq!(out.err().matches("HISTORY_CHANGED").count(), 1, "{}", out.err());
    // What it has verified was of the other history. Mounted again it shows, and proves, what is there.
    let proven = || {
        let found = lab.assay("coverage", ["--json"]).ok().json();
        (found["proven"]["blocks"] == 0, found["proven"] == found["total"], found["files"]["none"] == 3)
    };
    assert_eq!(proven(), (true, false, true));
    let mount = lab.mount();
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    mount.end().ok();
    assert_eq!(proven(), (false, true, false));
}

/// Stale, or an arc that is not the one that it was.
#[track_caller]
fn told(error: &std::io::Error) {
    assert!(matches!(error.raw_os_error(), Some(ESTALE | EIO)), "{error}");
}

/// Makes r1 anew, with other content of the same size.
fn go_on_otherwise(lab: &Lab, repo: &Path) {
    let mut bytes = fs::read(lab.src().join("a")).expect("read");
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    lab.write("a", &bytes);
    lab.write("dir/late", b"of another history");
    lab.assay_on(repo, "backup", [lab.src()]).ok();
}

#[test]
fn a_version_that_was_lost_and_made_again() {
    under_a_mount("lost and made again", |lab| {
        for name in arcfile::arc_names(&lab.repo()).into_iter().filter(|name| name.starts_with("arc.1.")) {
            fs::remove_file(lab.repo().join(name)).expect("rm");
        }
        fs::remove_file(lab.repo().join("index.db")).expect("rm");
        let _ = lab.assay("recover", NONE).run();
        go_on_otherwise(lab, &lab.repo());
    });
}

#[test]
fn a_fork_that_is_renamed_into_place() {
    under_a_mount("a fork", |lab| {
        let older = lab.path("older");
        go_on_otherwise(lab, &older);
        for name in fs::read_dir(&older).expect("older").map(|entry| entry.expect("entry").file_name()) {
            let to = lab.repo().join(&name);
            if to.is_dir() {
                continue;
            }
            fs::rename(older.join(&name), to).expect("rename");
        }
    });
}

#[test]
fn a_fork_that_is_copied_over_in_place() {
    under_a_mount("a fork in place", |lab| {
        let older = lab.path("older");
        go_on_otherwise(lab, &older);
        tool("rsync").args(["-a", "--inplace", "--ignore-times"]).arg(older.join("")).arg(lab.repo()).ok();
    });
}
