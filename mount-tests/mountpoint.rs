//! Where a mount may be, what the mount table says of it, and what a mount in the background holds.

use std::fs;
use std::path::Path;

use crate::signals::wait_until;
use crate::support::mount::{mount_line, mounts_below};
use crate::support::{Cmd, Lab, NONE, assay_binary, is_root, sys, tool};
use crate::user::{Ordinary, where_fuse_is_open};

/// Process that serves the mounts of a lab in the background.
fn daemon_of(lab: &Lab) -> u32 {
    let wanted = lab.repo().display().to_string();
    let is_ours = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("--background")
            && line.contains(&wanted)
            && line.starts_with(&assay_binary().display().to_string())
    };
    let all = fs::read_dir("/proc").expect("/proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.into_iter().find(is_ours).expect("a mount in the background")
}

#[track_caller]
fn unmount(lab: &Lab) {
    tool("umount").arg(lab.mnt()).ok();
    wait_until("unmounted", || mount_line(&lab.mnt()).is_none());
}

#[test]
fn a_mount_hides_nothing_unless_it_may() {
    let lab = Lab::with_files(&[("file", b"content")]);
    fs::write(lab.mnt().join("precious"), "x").unwrap();
    let out = lab.assay("mount", [lab.mnt()]).run().code(1);
    assert!(out.err().contains("not empty") && out.err().contains("--nonempty"), "{}", out.err());
    assert!(mount_line(&lab.mnt()).is_none());
    let mount = lab.mount_with(["--nonempty"]);
    assert!(!lab.mnt().join("precious").exists());
    mount.end().ok();
    assert!(lab.mnt().join("precious").exists());
    // A dot file, a directory, or what this user may not list: all of it would be hidden.
    for name in [".hidden", "dir"] {
        let point = lab.path(&format!("point-{name}"));
        fs::create_dir_all(point.join(name)).unwrap();
        lab.assay("mount", [point]).run().code(1);
    }
    std::os::unix::fs::symlink("out", lab.path("link")).unwrap();
    let out = lab.assay("mount", [lab.path("link")]).run().code(1);
    assert!(out.err().contains("symlink"), "{}", out.err());
    assert!(mounts_below(&lab.root).is_empty());
}

/// What is checked is what is mounted on, also when its name comes to lead elsewhere in between.
#[test]
fn a_directory_that_is_swapped_meanwhile_is_no_mount_point() {
    if !is_root() {
        return;
    }
    let lab = Lab::with_files(&[("file", b"content")]);
    let (mine, victim) = (lab.path("mine"), lab.path("victim"));
    fs::create_dir(&mine).unwrap();
    fs::create_dir(&victim).unwrap();
    // The mount is held up at the system call that mounts.
    let (command, _) = lab.assay("mount", [&mine]).into_parts();
    let traced = tool("strace")
        .args(["-f", "-qq", "-e", "trace=mount", "-e", "inject=mount:delay_enter=1500000", "-o"])
        .arg(lab.path("strace"))
        .arg(command.get_program())
        .args(command.get_args())
        .env("HOME", lab.path("home"));
    let mut run = crate::signals::Running::start(traced, &lab.path("log"));
    wait_until("the mount is about to happen", || {
        fs::read_to_string(lab.path("strace")).is_ok_and(|t| t.contains("mount("))
    });
    fs::rename(&mine, lab.path("moved")).unwrap();
    std::os::unix::fs::symlink(&victim, &mine).unwrap();
    wait_until("a mount, or the end", || {
        !mounts_below(&lab.root).is_empty() || run.child.try_wait().expect("wait").is_some()
    });
    assert_eq!(mounts_below(&lab.root), [lab.path("moved")], "{}", run.text());
    // The program still looks at its mount when the kernel's table shows it: until then it is busy.
    wait_until("the mount is free", || tool("umount").arg(lab.path("moved")).run().code == Some(0));
    assert_eq!(run.end(), Some(0), "{}", run.text());
}

#[test]
fn the_mount_table_names_the_backup_dir() {
    let lab = Lab::with_files(&[("file", b"content")]);
    // Commas and spaces are part of names.
    let odd = lab.path("back, up\\");
    fs::rename(lab.repo(), &odd).unwrap();
    let source = |point: &Path| {
        let out = tool("findmnt").args(["-n", "-r", "-o", "SOURCE,FSTYPE"]).arg(point).ok().out();
        out.trim_end().to_string()
    };
    let mount = crate::support::Mount::start(&lab, &odd, NONE);
    assert_eq!(
        source(&lab.mnt()),
        format!("{} fuse.assay", odd.display()).replace('\\', "\\x5c").replace("back, up", "back,\\x20up")
    );
    mount.end().ok();
}

#[test]
fn the_mount_table_names_the_backup_dir_for_users_too() {
    if !where_fuse_is_open("mountpoint::the_mount_table_names_the_backup_dir_for_users_too") {
        return;
    }
    let lab = Lab::with_files(&[("file", b"content")]);
    let user = Ordinary::of(&lab);
    let odd = lab.path("back,up");
    fs::rename(lab.repo(), &odd).unwrap();
    let cmd = user.run(&lab.path("assay")).args(["mount", "-c"]).arg(&odd).arg(lab.mnt());
    let mount = crate::support::Mount::spawn(cmd, &lab.mnt(), &lab.root);
    let line = mount_line(&lab.mnt()).expect("mounted");
    assert!(line.contains(&format!(" fuse.assay {} ", odd.display())), "{line}");
    // A crash takes it away too: by fusermount3.
    wait_until("ready", || mount.err().contains("is mounted on"));
    mount.signal(libc::SIGSEGV);
    assert_eq!(mount.finish().signal, Some(libc::SIGSEGV));
}

#[test]
fn a_mount_in_the_background_holds_nothing_of_its_starter() {
    let lab = Lab::new();
    lab.write("file", b"content");
    lab.assay("init", ["--passphrase", "env"]).env("ASSAY_PASSPHRASE", "open sesame").ok();
    lab.assay("backup", [lab.src()]).env("ASSAY_PASSPHRASE", "open sesame").ok();
    let lock = lab.path("held");
    // The descriptor is left open on purpose: no --close.
    let script = "exec 9>\"$1\"; flock 9; shift; exec 8<\"$HOME\"; \"$@\"";
    let (command, _) = lab.assay("mount", ["--background"]).arg(lab.mnt()).into_parts();
    Cmd::new("bash")
        .args(["-c", script, "bash"])
        .arg(&lock)
        .arg(command.get_program())
        .args(command.get_args())
        .env("HOME", lab.path("home"))
        .env("ASSAY_PASSPHRASE", "open sesame")
        .ok();
    tool("flock").args(["--nonblock"]).arg(&lock).arg("true").ok();
    let pid = daemon_of(&lab);
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors") {
        let target = fs::read_link(entry.expect("entry").path()).unwrap_or_default();
        assert!(target != lock && target != lab.path("home"), "{}", target.display());
    }
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("environ");
    assert!(!String::from_utf8_lossy(&environment).contains("sesame"));
    assert_eq!(
        fs::read(lab.mnt().join("latest").join(lab.src().strip_prefix("/").unwrap()).join("file")).unwrap(),
        b"content"
    );
    unmount(&lab);
    wait_until("the end", || sys::kill(pid, 0).is_err());
}

#[test]
fn mounting_again_what_is_mounted_can_be_well() {
    let lab = Lab::with_files(&[("file", b"content")]);
    lab.assay("mount", ["--background"]).arg(lab.mnt()).ok();
    let out = lab.assay("mount", ["--background"]).arg(lab.mnt()).run().code(1);
    assert!(out.err().contains("this backup is mounted here already"), "{}", out.err());
    lab.assay("mount", ["--background", "--unless-mounted"]).arg(lab.mnt()).ok();
    assert_eq!(mounts_below(&lab.root).len(), 1);
    // Another backup there is another thing.
    let other = lab.path("other");
    lab.assay_on(&other, "init", NONE).ok();
    let out = lab.assay_on(&other, "mount", ["--unless-mounted"]).arg(lab.mnt()).run().code(1);
    assert!(out.err().contains("a backup is mounted here already"), "{}", out.err());
    unmount(&lab);
}
