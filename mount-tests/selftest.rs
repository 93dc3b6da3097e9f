//! `assay selftest` as users and scripts see it: exit codes, JSON, what it may change, what it refuses.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::rng::Rng;
use crate::support::{Lab, NONE, Out, arcfile, assay_binary, is_root, tool};

/// Two versions; the one data arc of the first.
fn lab(test: &str) -> (Lab, PathBuf, Rng) {
    let mut rng = Rng::from_env(test);
    let lab = Lab::new();
    lab.write("docs/letter", &rng.text(40_000));
    lab.write("docs/copy of letter", &fs::read(lab.src().join("docs/letter")).expect("read"));
    lab.write("photo", &rng.bytes(300_000));
    lab.init();
    lab.backup();
    let arc = arcfile::data_arcs(&lab.repo()).remove(0);
    lab.write("docs/new", b"in r1 only");
    lab.backup();
    (lab, arc, rng)
}

fn selftest(lab: &Lab, args: &[&str]) -> Out {
    lab.assay("selftest", args).run()
}

/// Each line is an object; the last one is the summary.
#[track_caller]
fn objects(out: &Out) -> (Vec<Value>, Value) {
    let text = out.out();
    let mut all: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect();
    let summary = all.pop().unwrap_or_else(|| panic!("no output: {}", out.err()));
    assert_eq!(summary["type"], "summary");
    assert_eq!(summary["exit"], out.code.expect("an exit code"), "{text}");
    (all, summary)
}

/// Everything in a backup dir but what a selftest may write, by the digest of its bytes.
fn digests(repo: &Path) -> BTreeMap<String, String> {
    let find = tool("find").arg(repo).args(["-type", "f", "-exec", "sha256sum", "{}", "+"]).ok().out();
    let may_change = |name: &str| ["/ledger/", "/logs/", "/copies/"].iter().any(|part| name.contains(part));
    let lines = find.lines().filter_map(|line| line.split_once("  "));
    lines.filter(|(_, name)| !may_change(name)).map(|(sum, name)| (name.to_string(), sum.to_string())).collect()
}

#[test]
fn a_clean_backup_dir_passes_every_level_and_stays_as_it_is() {
    let (lab, _, _) = lab("selftest clean");
    let before = digests(&lab.repo());
    assert!(before.len() > 6, "{before:?}");
    for level in 0..=5 {
        let flag = format!("-v{level}");
        let out = selftest(&lab, &[&flag]).ok();
        assert!(out.out().contains("nothing is wrong") && out.out().contains(&flag), "{}", out.text());
        let (findings, summary) = objects(&selftest(&lab, &[&flag, "--json"]).ok());
        assert_eq!((findings.len(), &summary["findings"], &summary["level"]), (0, &0.into(), &level.into()));
        let blocks = summary["blocks"].as_u64().expect("a number");
        assert!(!(3..=4).contains(&level) || blocks > 5, "{summary}");
    }
    assert_eq!(digests(&lab.repo()), before, "a selftest without --fix changed the backup dir");
    assert!(selftest(&lab, &["-v", "4"]).ok().out().contains("no destinations"));
    assert!(selftest(&lab, &[]).ok().out().contains("-v2"), "2 is the level that is meant when none is given");
    assert_eq!(selftest(&lab, &["-q", "-v3"]).ok().text(), "");
    let listed = selftest(&lab, &["-v3", "--debug"]).ok().out();
    for name in arcfile::arc_names(&lab.repo()) {
        assert!(listed.lines().any(|line| line == name), "{name} in {listed}");
    }
    let (_, summary) = objects(&selftest(&lab, &["-v3", "--sample", "1", "--json"]).ok());
    // One block of each of at least four arcs, two records of two commit arcs.
    assert!((8..20).contains(&summary["blocks"].as_u64().expect("a number")), "{summary}");
}

#[test]
fn damage_is_told_with_place_cause_files_and_remedy() {
    let (lab, arc, mut rng) = lab("selftest damage");
    let name = arc.file_name().and_then(|name| name.to_str()).expect("a name").to_string();
    let frame = arcfile::block_frames(&fs::read(&arc).expect("read arc"))
        .into_iter()
        .find(|frame| frame.lens == [40_000])
        .expect("the letter is one block");
    let at = frame.body() + rng.below(frame.stored_len as u64) as usize;
    arcfile::rewrite(&arc, |bytes| {
        bytes[at] ^= 0xa5;
        bytes[frame.tag() + 3] ^= 0x3c;
    });
    let before = digests(&lab.repo());
    selftest(&lab, &["-v1"]).ok();
    let (findings, summary) = objects(&selftest(&lab, &["-v3", "--json"]).code(4));
    let [found] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(summary["findings"], 1);
    let wanted = [("code", "ARC_TAG_MISMATCH"), ("cause", "medium"), ("arc", &name), ("part", "frames")];
    wanted.iter().for_each(|(key, value)| assert_eq!(found[key], *value, "{found}"));
    assert_eq!((&found["frame"], &found["frames"]), (&frame.number.into(), &1.into()));
    assert_eq!(found["offset"], frame.offset);
    let mut hits: Vec<(String, Value, Value, Value, Value)> = found["hits"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|hit| {
            let path = hit["path"].as_str().expect("a path").to_string();
            let field = |name: &str| hit[name].clone();
            (path, field("first_version"), field("last_version"), field("start"), field("end"))
        })
        .collect();
    hits.sort_by(|a, b| a.0.cmp(&b.0));
    let path = |rel: &str| lab.src().join(rel).display().to_string();
    let file = |rel| (path(rel), Value::from(0), Value::from(1), Value::from(0), Value::from(40_000));
    assert_eq!(hits, [file("docs/copy of letter"), file("docs/letter")]);

    let text = selftest(&lab, &["-v3"]).code(4).out();
    for part in [&name, "why: ", "r0 to r1, bytes 0-40000", &path("docs/letter"), "do: ", "1 finding"] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    // A part of it, by arc, block and hash of the block.
    selftest(&lab, &["-v3", &name]).code(4);
    selftest(&lab, &["-v3", "arc.1.1"]).ok();
    let block = found["block"].as_str().expect("a block").to_string();
    let (objects_found, _) = objects(&selftest(&lab, &["-v3", "--json", &block]).code(4));
    let used = objects_found.iter().find(|object| object["type"] == "block").expect("who uses the block");
    assert_eq!((&used["block"], &used["hits_total"]), (&block.as_str().into(), &2.into()));
    assert!(selftest(&lab, &["-v3", "-q", &block]).code(4).out().contains("is used by"));
    assert_eq!(digests(&lab.repo()), before, "a selftest without --fix changed the backup dir");
}

#[test]
fn each_end_has_its_exit_code() {
    let (lab, arc, _) = lab("selftest exits");
    // The index is gone: the blocks are proven all the same.
    let repo = lab.copy_repo("no-index");
    fs::remove_file(repo.join("index.db")).expect("rm");
    for args in [&["-v0"], &["-v2"], &["-v5"]] {
        let out = lab.assay_on(&repo, "selftest", args).run().code(4);
        assert!(out.out().contains("INDEX_DAMAGED"), "{}", out.text());
    }
    let (_, summary) = objects(&lab.assay_on(&repo, "selftest", ["-v3", "--json"]).run().code(4));
    assert!(summary["blocks"].as_u64().expect("a number") > 5, "{summary}");
    assert!(!repo.join("index.db").exists(), "a selftest makes no index");

    let other = Lab::with_files(&[("f", b"x")]);
    let repo = lab.copy_repo("other-key");
    arcfile::overwrite(&repo.join("key.conf"), &fs::read(other.repo().join("key.conf")).expect("read key"));
    let out = lab.assay_on(&repo, "selftest", ["-v5"]).run().code(12);
    assert!(out.out().contains("KEY_WRONG"), "{}", out.text());
    let nowhere = lab.path("nowhere");
    lab.assay_on(&nowhere, "selftest", ["-v1"]).run().code(10);

    // A permission that is missing: it could not be checked, and that is no damage.
    let denied = if is_root() {
        let name = arc.file_name().expect("a name");
        let mut strace = tool("strace").args(["-f", "-qq", "-o", "/dev/null", "-P"]).arg(name);
        strace = strace.args(["-e", "inject=openat:error=EACCES"]).arg(assay_binary());
        strace.args(["selftest", "-v3", "--json", "-c"]).arg(lab.repo()).run()
    } else {
        fs::set_permissions(&arc, fs::Permissions::from_mode(0o0)).expect("chmod");
        selftest(&lab, &["-v3", "--json"])
    };
    let (findings, _) = objects(&denied.code(3));
    assert!(findings.iter().any(|found| found["cause"] == "unchecked" && found["code"] == "IO"), "{findings:?}");
}

#[test]
fn combinations_that_make_no_sense_are_refused_with_one_line() {
    let (lab, _, _) = lab("selftest usage");
    let path = lab.src().display().to_string();
    let wrong: &[&[&str]] = &[
        &["-v0", "arc.0.1"],
        &["-v5", "arc.0.1"],
        &["-v1", "b0.0.0"],
        &["-v3", &path],
        &["-v4", &path],
        &["-v3", "-r", "r0"],
        &["-v2", "-r", "0", "arc.0.1"],
        &["-v2", "--sample", "3"],
        &["-v5", "--sample", "3"],
        &["-v3", "--sample", "0"],
        &["-v3", "--sample", "2", "--fix"],
        &["-v3", "--sample", "2", "b0.0.0"],
        &["-v3", "arc.0.1", "b0.0.0"],
        &["-v2", "arc.0.1", &path],
        &["-v3", "arc.99.1"],
        &["-v3", "b99.1.0"],
        &["-v3", "ffffffffffffffffffffffffffffffffffffffff"],
    ];
    for args in wrong {
        let out = selftest(&lab, args).code(2);
        let text = out.err();
        assert!(text.lines().count() == 1 && text.starts_with("assay: USAGE: "), "{args:?}: {}", out.text());
    }
    selftest(&lab, &["-v6"]).code(2);
    selftest(&lab, &["--sample", "x"]).code(2);
}

#[test]
fn a_backup_that_reads_a_long_file_in_vain_is_sound() {
    let mut rng = Rng::from_env("selftest in vain");
    let lab = Lab::new();
    let file = lab.write("f", &rng.bytes(8_000_000));
    lab.init();
    lab.backup();
    lab.backup_with(["--full"]);
    selftest(&lab, &["-v5"]).ok();
    // The second read of the file fails: more than a node's worth of blocks is on its way by then.
    lab.write("f", &rng.bytes(12_000_000));
    let failing = tool("strace").args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=pread64:error=EIO:when=2", "-P"]);
    let failed = failing.arg(file).arg(assay_binary()).args(["backup", "-c"]).arg(lab.repo()).arg(lab.src()).run();
    assert!(failed.code(3).err().contains("IO"), "the file is named");
    selftest(&lab, &["-v5"]).ok();
    lab.backup();
    fs::remove_file(lab.repo().join("index.db")).expect("rm");
    lab.assay("recover", crate::support::NONE).ok();
    selftest(&lab, &["-v5"]).ok();
}

#[test]
fn what_was_just_written_is_not_overdue() {
    let mut rng = Rng::from_env("selftest just written");
    let lab = Lab::new();
    for n in 0..40 {
        lab.write(&format!("f{n}"), &rng.bytes(1_000_000));
    }
    lab.init();
    lab.backup();
    lab.write("later", b"in another version");
    lab.backup();
    for level in ["-v3", "-v4", "-v5"] {
        let out = selftest(&lab, &[level, "--inc", "1d/30d"]).ok().out();
        assert!(out.contains("of the backup was due") && !out.contains("older"), "{level}: {out}");
    }
    let (_, summary) = objects(&selftest(&lab, &["-v5", "--inc", "1d/30d,1", "--json"]).ok());
    let notes = summary["notes"].to_string();
    assert!(notes.contains("nothing was due") && !notes.contains("0.0 %") && !notes.contains("older"), "{notes}");
}

#[test]
fn one_missing_arc_is_one_finding_and_told_once() {
    let mut rng = Rng::from_env("selftest one arc");
    let lab = Lab::new();
    for n in 0..300 {
        lab.write(&format!("d/f{n:03}"), &rng.bytes(2000));
    }
    let long = lab.write("long", &rng.bytes(5_000_000));
    lab.init();
    lab.backup();
    let arc = arcfile::data_arcs(&lab.repo()).remove(0);
    let whole = fs::read(&arc).expect("read");
    let gone = || fs::remove_file(&arc).expect("rm");
    let cut = || {
        fs::write(&arc, &whole[..1_000_000]).expect("write");
    };
    let overwritten = || {
        let zeros = vec![0; 3_000_000];
        fs::write(&arc, [&whole[..500_000], &zeros, &whole[3_500_000..]].concat()).expect("write");
    };
    for (what, act) in [("gone", &gone as &dyn Fn()), ("cut", &cut), ("overwritten", &overwritten)] {
        act();
        for level in ["-v3", "-v5"] {
            let out = selftest(&lab, &[level, "--json"]).code(4);
            let (findings, _) = objects(&out);
            let names: Vec<_> = findings.iter().map(|finding| &finding["what"]).collect();
            // A frame that is half overwritten differs in another way than one that is all zeros.
            assert!(findings.len() == 1 || (what == "overwritten" && findings.len() <= 3), "{what} {level}: {names:?}");
            let hits = findings.iter().map(|one| one["hits_total"].as_u64().expect("a number")).sum::<u64>();
            assert!(what != "gone" || hits == 301, "{what} {level}: {hits}");
            assert!(findings[0]["hits"].as_array().expect("hits").len() <= 100);
            assert_eq!(out.err(), "", "{what} {level}");
            let text = selftest(&lab, &[level]).code(4);
            assert!(text.out().lines().count() < 60, "{what} {level}: {}", text.out());
            assert!(!text.out().contains("at offset 0:") && !text.out().contains("bytes 0-0"), "{}", text.out());
            assert_eq!(text.err(), "", "{what} {level}");
        }
        // Who has words of its own adds no line of the log to them.
        let map = lab.assay("damage", [&long]).run().code(4);
        assert!(map.out().contains("  -\n") && map.err().is_empty(), "{what}: {}", map.text());
        let got = lab.assay("get", ["--to"]).arg(lab.out_dir()).arg(&long).run();
        assert!(!got.err().contains("assay: error:"), "{what}: {}", got.text());
        assert_eq!(got.err().matches("ARC_").count(), 1, "{what}: {}", got.text());
        let _ = fs::remove_dir_all(lab.out_dir());
        fs::create_dir(lab.out_dir()).expect("mkdir");
        let _ = fs::remove_file(&arc);
        fs::write(&arc, &whole).expect("write");
    }
    selftest(&lab, &["-v3"]).ok();
    let drill = selftest(&lab, &["--drill", "6", "--seed", "7"]).ok();
    assert_eq!(drill.err(), "", "{}", drill.text());
    for command in ["get", "damage", "coverage"] {
        let out = lab.assay(command, NONE).arg(lab.src().join("no such")).run();
        assert_eq!(out.text().matches("NO_PATH").count(), 1, "{}", out.text());
    }
}

#[test]
fn what_a_killed_selftest_leaves_is_taken_away_by_the_next() {
    let (lab, arc, _) = lab("selftest killed");
    let tmp = lab.path("tmp");
    fs::create_dir(&tmp).expect("mkdir");
    let scratch = || {
        let names = crate::support::names_in(&tmp);
        names.iter().filter(|name| name.starts_with(b"assay-")).count()
    };
    let away = lab.path("away");
    for args in [&["selftest", "-v2"][..], &["selftest", "--drill", "3"]] {
        if args == ["selftest", "-v2"] {
            // Where all agrees it needs no second index.
            fs::rename(&arc, &away).expect("rename");
        }
        // The first writes may be those of the index's shared memory: later ones find it at work on its copies.
        let left = (1..100).step_by(3).any(|when| {
            let inject = format!("inject=pwrite64:signal=KILL:when={when}");
            let strace = tool("strace").args(["-f", "-qq", "-o", "/dev/null", "-e", &inject]).env("TMPDIR", &tmp);
            let killed = strace.arg(assay_binary()).args(args).arg("-c").arg(lab.repo()).run();
            assert_eq!(killed.signal, Some(9), "{args:?} write {when}: {}", killed.text());
            scratch() == 1
        });
        assert!(left, "{args:?}");
        if away.exists() {
            fs::rename(&away, &arc).expect("rename");
        }
        selftest_in(&lab, &tmp).ok();
        assert_eq!(scratch(), 0, "{args:?}");
    }
    // One that is at work keeps what it has.
    let held = tmp.join("assay-scratch-held");
    fs::create_dir(&held).expect("mkdir");
    let lock = fs::File::open(&held).expect("open");
    lock.lock().expect("flock");
    selftest_in(&lab, &tmp).ok();
    assert!(held.exists());
    drop(lock);
    selftest_in(&lab, &tmp).ok();
    assert!(!held.exists());
}

fn selftest_in(lab: &Lab, tmp: &Path) -> Out {
    lab.assay("selftest", ["-v2"]).env("TMPDIR", tmp).run()
}

#[test]
fn little_memory_is_an_error_and_no_panic() {
    let (lab, _, _) = lab("selftest memory");
    for kib in [50_000, 100_000, 150_000, 200_000, 300_000, 600_000] {
        for args in ["selftest -v3", "selftest -v5", "coverage", "backup SRC", "get --to OUT SRC"] {
            let (repo, src, out) = (lab.repo(), lab.src(), lab.out_dir());
            let args = args.replace("SRC", &src.display().to_string()).replace("OUT", &out.display().to_string());
            let script = format!("ulimit -v {kib}; exec {} {args} -c {}", assay_binary().display(), repo.display());
            let out = tool("sh").args(["-c", &script]).run();
            assert!(!out.err().contains("panicked"), "{kib} {args}: {}", out.text());
        }
    }
    selftest(&lab, &["-v5"]).ok();
}
