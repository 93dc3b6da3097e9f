//! Habits of users of other programs, and of machines: guesses, passphrases, fstab, cron, the log of runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::signals::wait_until;
use crate::support::mount::{mount_line, mounts_below};
use crate::support::{Cmd, Lab, NONE, assay_binary, is_root, tool};

#[test]
fn wrong_guesses_get_the_right_hint() {
    let lab = Lab::with_files(&[("file", b"content")]);
    for (word, part) in [
        ("verify", "assay selftest"),
        ("check", "assay selftest"),
        ("list", "assay ls"),
        ("umount", "fusermount3 -u"),
        ("unmount", "fusermount3 -u"),
        ("prune", "assay retain"),
        ("forget", "assay retain"),
        ("remove", "assay rm"),
        ("cmp", "assay compare"),
        ("extract", "assay get"),
        ("bananas", "assay --help"),
        ("a\nb", "assay --help"),
    ] {
        let out = lab.assay(word, ["--some", "thing"]).run().code(2);
        assert_eq!((out.out().as_str(), out.err().lines().count()), ("", 2), "{word}: {}", out.text());
        assert!(out.err().starts_with("assay: USAGE: ") && out.err().contains(part), "{word}: {}", out.err());
    }
    // What other programs call so just works.
    assert!(lab.assay("snapshots", NONE).ok().out().starts_with("r0"));
    lab.assay("restore", ["--to"]).arg(lab.out_dir()).arg(lab.src().join("file")).ok();
    assert_eq!(fs::read(lab.out_dir().join("file")).unwrap(), b"content");
    for help in [&["-h"][..], &["help"], &["--help"], &["help", "get"], &["get", "-h"]] {
        Cmd::new(assay_binary()).args(help).ok();
    }
    let made = lab.path("elsewhere");
    let bare = |args: &[&str]| Cmd::new(assay_binary()).env("HOME", lab.path("home")).args(args);
    let out = bare(&["init"]).arg(&made).ok();
    assert!(made.join("key.conf").exists() && out.out().contains("-c "), "{}", out.out());
    assert!(!lab.path("home/assay").exists());
}

#[test]
fn who_stops_listening_still_gets_the_verdict() {
    let lab = Lab::with_files(&[("file", b"content")]);
    lab.write("file", b"other content");
    lab.backup();
    let dir = lab.repo().display().to_string();
    // The pipe is closed before anything is printed.
    let code = |args: &str| {
        let program = assay_binary().display().to_string();
        let script = format!("( sleep 1; {program} -c {dir} {args}; echo $? >&2 ) | true");
        let out = tool("sh").args(["-c", &script]).ok();
        out.err().lines().last().unwrap_or_default().to_string()
    };
    assert_eq!(code("diff r0 r1"), "1", "there are differences");
    assert_eq!(code("ls"), "0");
    assert_eq!(code("selftest -v3"), "0");
    let arc = lab.repo().join("arc.0.1");
    let mut bytes = fs::read(&arc).unwrap();
    bytes[200..].iter_mut().for_each(|byte| *byte ^= 0xff);
    fs::write(&arc, bytes).unwrap();
    assert_eq!(code("selftest -v3"), "4", "damage");
    assert_eq!(code("selftest -v3 --json"), "4", "damage");
}

/// Runs a command on a terminal of its own; gives what that showed.
fn on_a_terminal(lab: &Lab, command: &str) -> String {
    let out =
        tool("script").args(["-qec", command, "/dev/null"]).env("HOME", lab.path("home")).env("TERM", "dumb").run();
    out.text()
}

#[test]
fn alone_in_a_terminal_it_says_what_to_do_first() {
    let lab = Lab::new();
    let program = assay_binary().display().to_string();
    let first = on_a_terminal(&lab, &program);
    assert!(first.contains("assay init") && first.contains("home/assay"), "{first}");
    lab.write("file", b"content");
    lab.init();
    lab.backup();
    let state = on_a_terminal(&lab, &format!("{program} -c {}", lab.repo().display()));
    assert!(state.contains("backup") && state.contains("ok") && !state.contains("assay init "), "{state}");
    let out = Cmd::new(assay_binary()).run().code(2);
    assert_eq!(out.err().lines().count(), 2, "{}", out.err());
}

#[test]
fn a_passphrase_comes_from_where_it_is_said_to() {
    let lab = Lab::new();
    lab.write("file", b"content");
    let file = lab.path("passphrase");
    fs::write(&file, "open sesame\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let from_file = format!("file:{}", file.display());
    lab.assay("init", ["--passphrase", &from_file]).ok();
    assert_eq!(lab.assay("backup", ["--passphrase", &from_file]).arg(lab.src()).ok().err(), "");
    let opens = |from: &str| lab.assay("versions", ["--passphrase", from]);
    assert!(opens("cmd:printf 'open sesame\\n'").ok().out().contains("r0"));
    opens("cred:key").env("CREDENTIALS_DIRECTORY", &lab.root).run().code(12);
    fs::rename(&file, lab.path("key")).unwrap();
    opens("cred:key").env("CREDENTIALS_DIRECTORY", &lab.root).ok();
    opens("env").env("ASSAY_PASSPHRASE", "open sesame").ok();
    lab.assay("versions", NONE).env("ASSAY_PASSPHRASE_FROM", "cred:key").env("CREDENTIALS_DIRECTORY", &lab.root).ok();
    // What was named counts, and nothing else is tried.
    for (from, part) in [
        ("env", "PASSPHRASE_MISSING"),
        ("cred:key", "LoadCredential"),
        ("cmd:exit 3", "exit status: 3"),
        ("cmd:printf 'wrong'", "PASSPHRASE_WRONG"),
        (from_file.as_str(), "No such file"),
        ("file:/dev/zero", "no regular file"),
        ("file:/dev/null", "no regular file"),
    ] {
        let out = opens(from).run().code(12);
        assert!(out.err().contains(part), "{from}: {}", out.err());
    }
    let out = opens("file:/absent").env("ASSAY_PASSPHRASE", "open sesame").run().code(12);
    assert!(out.err().contains("PASSPHRASE_SOURCE"), "{}", out.err());
    opens("secret").run().code(2);
    // A file that others can read does, but not without a word. A fifo is not waited for.
    fs::set_permissions(lab.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
    let out = opens(&format!("file:{}", lab.path("key").display())).ok();
    assert!(out.err().contains("open to others"), "{}", out.err());
    tool("mkfifo").arg(lab.path("fifo")).ok();
    opens(&format!("file:{}", lab.path("fifo").display())).run().code(12);
    // No child sees the variable.
    let out = opens("cmd:env >&2; printf 'open sesame'").env("ASSAY_PASSPHRASE", "hidden away").ok();
    assert!(out.err().contains("HOME=") && !out.err().contains("hidden away"), "{}", out.err());
}

fn runs(lab: &Lab) -> Vec<serde_json::Value> {
    let out = lab.assay("log", ["--json"]).ok().out();
    out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn the_log_tells_how_each_run_ended() {
    let lab = Lab::new();
    lab.write("file", b"content");
    lab.init();
    lab.backup();
    let absent = lab.src().join("a\nT 1.1 end 0 0.0 forged");
    lab.assay("backup", [lab.src(), absent]).run();
    lab.assay("selftest", ["--passphrase", "cmd:printf secret"]).ok();
    lab.assay("get", ["--to"]).arg(lab.out_dir()).arg(lab.src().join("absent")).run();
    lab.assay("backup", ["--dry-run"]).arg(lab.src()).ok();
    lab.assay("versions", NONE).ok();
    let mount = lab.mount();
    let going_on = runs(&lab);
    assert_eq!(going_on.last().expect("a run")["outcome"], "running");
    mount.end().ok();
    let mount = lab.mount();
    mount.signal(libc::SIGKILL);
    tool("umount").args(["-l"]).arg(lab.mnt()).ok();
    assert_eq!(mount.finish().signal, Some(libc::SIGKILL));
    let runs = runs(&lab);
    let told: Vec<(String, String)> = runs
        .iter()
        .map(|run| {
            let word = |key: &str| run[key].as_str().expect("text").to_string();
            (word("command").split(' ').next().unwrap().to_string(), word("outcome"))
        })
        .collect();
    let told: Vec<(&str, &str)> = told.iter().map(|(command, outcome)| (command.as_str(), outcome.as_str())).collect();
    assert_eq!(told[..2], [("init", "ok"), ("backup", "ok")]);
    assert_eq!(told[3..], [("selftest", "ok"), ("get", "failed"), ("mount", "ok"), ("mount", "cut")]);
    assert!(matches!(told[2], ("backup", "failed" | "finished with errors")), "{told:?}");
    assert!(runs[1]["summary"].as_str().expect("text").contains("-r0, "), "{}", runs[1]);
    assert!(runs[2]["notes"].to_string().contains("forged"), "{}", runs[2]);
    let text = lab.assay("log", ["-v", "-n", "3"]).ok().out();
    assert!(text.contains("NO_PATH") && text.contains("cut") && !text.contains("init"), "{text}");
    let log = lab.repo().join("logs/runs.log");
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!fs::read_to_string(&log).unwrap().contains("secret"));
}

#[test]
fn the_log_is_bounded_follows_no_link_and_stops_no_run() {
    let lab = Lab::with_files(&[("file", b"content")]);
    let log = lab.repo().join("logs/runs.log");
    fs::write(&log, vec![b'x'; 3 << 20]).unwrap();
    lab.backup();
    assert!(fs::metadata(&log).unwrap().len() < 4096 && log.with_extension("log.1").exists());
    assert_eq!(runs(&lab).len(), 1);
    // A link leads nowhere; a directory in its place, or no room, stops nothing.
    fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink(lab.path("victim"), &log).unwrap();
    lab.backup();
    assert!(!lab.path("victim").exists());
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    lab.backup();
    fs::remove_dir_all(lab.repo().join("logs")).unwrap();
    fs::write(lab.repo().join("logs"), "a file").unwrap();
    lab.backup();
    assert_eq!(lab.versions(), [0, 1, 2, 3, 4]);
}

#[test]
fn versions_are_named_in_utc() {
    let lab = Lab::new();
    lab.write("file", b"content");
    lab.init();
    // Fourteen hours ahead of UTC, and twelve behind: the names are in order all the same.
    lab.assay("backup", [lab.src()]).env("TZ", "XXX-14").ok();
    lab.assay("backup", [lab.src()]).env("TZ", "YYY+12").ok();
    let mount = lab.mount();
    let names = [mount.folder(0), mount.folder(1)];
    mount.end().ok();
    let now = tool("date").args(["-u", "+%Y-%m-%d-%H"]).ok().out();
    assert!(names[0] <= names[1], "{names:?}");
    let hour: u32 = now.trim().replace('-', "").parse().expect("a number");
    let named: u32 = names[1].replace('-', "")[..10].parse().expect("a number");
    assert!(hour - named <= 1 || now.trim().ends_with("-00"), "{names:?} at {now}");
}

fn contrib(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib").join(name)
}

#[test]
fn mount_assay_takes_a_passfile_and_mounts_once() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.write("file", b"content");
    let passfile = lab.path("pass");
    fs::write(&passfile, "open sesame\n").unwrap();
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
    let from = format!("file:{}", passfile.display());
    lab.assay("init", ["--passphrase", &from]).ok();
    lab.assay("backup", ["--passphrase", &from]).arg(lab.src()).ok();
    let bin = lab.path("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(assay_binary(), bin.join("assay")).unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
    let mount = |options: &str| {
        Cmd::new("/bin/sh")
            .arg(contrib("mount.assay"))
            .arg(lab.repo())
            .arg(lab.mnt())
            .args(["-o", options])
            .env("PATH", &path)
            .env("HOME", lab.path("home"))
            .run()
    };
    let options = format!("rw,noauto,allow_other,passfile={}", passfile.display());
    mount(&options).ok();
    mount(&options).ok();
    assert_eq!(mounts_below(&lab.root).len(), 1);
    let shown = lab.mnt().join("latest").join(lab.src().strip_prefix("/").unwrap());
    assert_eq!(fs::read(shown.join("file")).unwrap(), b"content");
    tool("umount").arg(lab.mnt()).ok();
    wait_until("unmounted", || mount_line(&lab.mnt()).is_none());
    fs::write(lab.mnt().join("in the way"), "").unwrap();
    mount(&options).code(1);
    mount(&format!("{options},nonempty")).ok();
    tool("umount").arg(lab.mnt()).ok();
}

/// One file of settings serves systemd, the shell and cron.
#[test]
fn the_settings_of_the_units_survive_a_shell() {
    let readme = fs::read_to_string(contrib("README.md")).expect("README");
    let begin = readme.find("<<'END'\n").expect("the settings") + "<<'END'\n".len();
    let settings = &readme[begin..begin + readme[begin..].find("END\n").expect("their end")];
    let lab = Lab::new();
    fs::write(lab.path("backup.env"), settings).unwrap();
    let script =
        format!("set -eu; set -a; . {}; set +a; printf '%s|' $ASSAY_PATHS; env", lab.path("backup.env").display());
    let out = tool("sh").args(["-c", &script]).ok().out();
    assert!(out.starts_with("/home|/etc|") && out.contains("ASSAY_DIR=/srv/assay\n"), "{out}");
}
