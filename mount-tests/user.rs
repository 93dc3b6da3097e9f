//! As an ordinary user: fusermount3 mounts, /etc/fuse.conf stays as it is. Run as root, the tests become `nobody`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::support::mount::mount_line;
use crate::support::rng::Rng;
use crate::support::{Cmd, Lab, Mount, NONE, assay_binary, is_root, names_in, oracle, tool};

const NOBODY: u32 = 65_534;

/// An ordinary user who owns the lab and has the program where it can be run.
pub struct Ordinary<'a> {
    lab: &'a Lab,
    program: PathBuf,
}

impl<'a> Ordinary<'a> {
    /// Gives the lab to the user, with what is in it now.
    pub fn of(lab: &'a Lab) -> Ordinary<'a> {
        let program = lab.path("assay");
        tool("cp").arg(assay_binary()).arg(&program).ok();
        fs::set_permissions(&lab.root, fs::Permissions::from_mode(0o755)).expect("chmod");
        if is_root() {
            tool("chown").arg("-R").arg(format!("{NOBODY}:{NOBODY}")).arg(&lab.root).ok();
        }
        Ordinary { lab, program }
    }

    /// A command run as the user.
    pub fn run(&self, program: &Path) -> Cmd {
        let cmd = if is_root() {
            let user = format!("--reuid={NOBODY}");
            let group = format!("--regid={NOBODY}");
            tool("setpriv").args([user.as_str(), group.as_str(), "--clear-groups", "--"]).arg(program)
        } else {
            tool(program.to_str().expect("UTF-8"))
        };
        cmd.env("HOME", self.lab.path("home")).dir(&self.lab.root)
    }

    pub fn assay<A: AsRef<OsStr>>(&self, command: &str, args: impl IntoIterator<Item = A>) -> Cmd {
        self.run(&self.program).arg(command).arg("-c").arg(self.lab.repo()).args(args)
    }

    pub fn mount(&self, args: &[&str]) -> UserMount<'_> {
        let cmd = self.assay("mount", args).arg(self.lab.mnt());
        UserMount { mount: Some(Mount::spawn(cmd, &self.lab.mnt(), &self.lab.root)), user: self }
    }

    /// Output of a shell script run as the user.
    #[track_caller]
    pub fn sh(&self, script: &str) -> crate::support::Out {
        self.run(Path::new("/bin/sh")).args(["-c", script]).run()
    }
}

/// A mount that its user ends with fusermount3.
pub struct UserMount<'a> {
    mount: Option<Mount>,
    user: &'a Ordinary<'a>,
}

impl UserMount<'_> {
    fn get(&self) -> &Mount {
        self.mount.as_ref().expect("mounted")
    }
    #[track_caller]
    fn end(mut self) -> crate::support::Out {
        self.user.sh(&format!("fusermount3 -u '{}'", self.user.lab.mnt().display())).ok();
        self.mount.take().expect("mounted").finish()
    }
}

/// Runs the rest of the test where ordinary users may open /dev/fuse, as udev has it on every desktop and server.
///
/// Where only root may (bare virtual machines), the test starts itself anew in a mount namespace of its own with
/// an open /dev/fuse; false in the outer process, which then has nothing left to do.
pub fn where_fuse_is_open(test: &str) -> bool {
    const INSIDE: &str = "ASSAY_TEST_FUSE_IS_OPEN";
    let mode = fs::metadata("/dev/fuse").expect("/dev/fuse").permissions().mode();
    if !is_root() || mode & 0o006 == 0o006 || std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let lab = Lab::new();
    let node = lab.path("fuse").display().to_string();
    // In a chroot `/` is no mount point; then it is /dev that must not show the change to anyone else.
    let script = format!(
        "{{ mount --make-rprivate / 2>/dev/null || mount --make-private /dev; }} &&
         mknod -m 666 {node} c 10 229 && mount --bind {node} /dev/fuse && exec \"$@\""
    );
    let me = std::env::current_exe().expect("the test binary");
    let out = tool("unshare")
        .env(INSIDE, "1")
        .args(["--mount", "--propagation", "unchanged", "--", "sh", "-c", script.as_str(), "sh"])
        .arg(me)
        .args(["--exact", "--nocapture", test])
        .ok();
    assert!(out.out().contains("1 passed"), "{}", out.text());
    false
}

fn user_lab(rng: &mut Rng) -> Lab {
    let lab = Lab::new();
    lab.write("dir/text", &rng.text(100_000));
    lab.write("dir/random", &rng.bytes(300_000));
    lab.write("private", b"for the owner only");
    fs::set_permissions(lab.src().join("private"), fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink("dir/text", lab.src().join("link")).unwrap();
    lab
}

#[test]
fn backup_mount_diff_and_get_as_an_ordinary_user() {
    if !where_fuse_is_open("user::backup_mount_diff_and_get_as_an_ordinary_user") {
        return;
    }
    let lab = user_lab(&mut Rng::from_env("user"));
    let fuse_conf = fs::read("/etc/fuse.conf").ok();
    let user = Ordinary::of(&lab);
    user.assay("init", NONE).ok();
    user.assay("backup", [lab.src()]).ok();
    let mount = user.mount(&[]);
    let shown = mount.get().point.join("latest").join(lab.src().strip_prefix("/").unwrap());
    let (src, shown) = (lab.src().display().to_string(), shown.display().to_string());
    let out = user.sh(&format!("diff -r --no-dereference '{src}' '{shown}'"));
    assert!(out.code == Some(0) && out.text().is_empty(), "{}", out.text());
    let out = user.sh(&format!("rsync -aHAXnc --itemize-changes --delete '{src}/' '{shown}/'"));
    assert!(out.code == Some(0) && out.text().is_empty(), "{}", out.text());
    let line = mount_line(&lab.mnt()).expect("mounted");
    let options: Vec<&str> = line.split(' ').nth(5).expect("options").split(',').collect();
    for wanted in ["ro", "nosuid", "nodev"] {
        assert!(options.contains(&wanted), "{wanted} is missing in {line}");
    }
    assert!(line.contains(&format!("user_id={}", fs::metadata(lab.src()).unwrap().uid())), "{line}");
    if is_root() {
        // Nobody else gets in without -a, not even root.
        let error = fs::read_dir(lab.mnt()).expect_err("another user's mount is open");
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
    mount.end().ok();
    user.assay("get", ["-y", "--to"]).arg(lab.out_dir()).arg(lab.src()).ok();
    let back = crate::atomicity::restored(&lab.out_dir(), &lab.src());
    oracle::rsync_clean(&lab.src(), &back);
    assert_eq!(fs::read("/etc/fuse.conf").ok(), fuse_conf);
}

#[test]
fn owner_me_shows_all_as_the_mounting_users() {
    if !where_fuse_is_open("user::owner_me_shows_all_as_the_mounting_users") {
        return;
    }
    if !is_root() {
        // Foreign owners can't be made here; the option must still mount.
        let lab = user_lab(&mut Rng::from_env("owner-me"));
        let user = Ordinary::of(&lab);
        user.assay("init", NONE).ok();
        user.assay("backup", [lab.src()]).ok();
        user.mount(&["--owner-me"]).end().ok();
        return;
    }
    let lab = user_lab(&mut Rng::from_env("owner-me"));
    chown(lab.src().join("private"), Some(0), Some(0)).unwrap();
    lab.init();
    lab.backup();
    let user = Ordinary::of(&lab);
    // The backup dir is the user's now; what it shows belongs to root.
    let shown = lab.mnt().join("latest").join(lab.src().strip_prefix("/").unwrap());
    let private = shown.join("private").display().to_string();
    let mount = user.mount(&[]);
    let out = user.sh(&format!("stat -c %u '{private}'; cat '{private}'"));
    assert_eq!(out.out().trim(), "0");
    assert!(out.err().contains("Permission denied"), "{}", out.text());
    mount.end();
    let mount = user.mount(&["--owner-me"]);
    let out = user.sh(&format!("stat -c '%u %g' '{private}'; cat '{private}'")).ok();
    assert_eq!(out.out(), format!("{NOBODY} {NOBODY}\nfor the owner only"));
    mount.end().ok();
}

#[test]
fn another_users_mount_as_root_obeys_modes() {
    if !is_root() {
        return;
    }
    let lab = user_lab(&mut Rng::from_env("modes"));
    for (name, mode, acl) in [("denied", 0o644, "u:nobody:---"), ("granted", 0o600, "u:nobody:r--")] {
        let file = lab.write(name, b"by name");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        tool("setfacl").args(["-m", acl]).arg(&file).ok();
    }
    lab.init();
    lab.backup();
    fs::set_permissions(&lab.root, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(lab.mnt(), fs::Permissions::from_mode(0o755)).unwrap();
    let shown = lab.mnt().join("latest").join(lab.src().strip_prefix("/").unwrap());
    let as_nobody = |script: String| {
        let user = format!("--reuid={NOBODY}");
        let group = format!("--regid={NOBODY}");
        tool("setpriv")
            .args([user.as_str(), group.as_str(), "--clear-groups", "sh", "-c", &script])
            .dir(Path::new("/"))
            .run()
    };
    // Without -a other users see nothing.
    let mount = lab.mount();
    assert_ne!(as_nobody(format!("ls '{}'", lab.mnt().display())).code, Some(0));
    mount.end().ok();
    // With -a they see what the modes allow.
    let mount = lab.mount_with(["-a"]);
    as_nobody(format!("cat '{}' >/dev/null", shown.join("dir/text").display())).ok();
    let out = as_nobody(format!("cat '{}'", shown.join("private").display()));
    assert!(out.err().contains("Permission denied"), "{}", out.text());
    let out = as_nobody(format!("getfattr -d -m - '{}'", shown.join("dir/text").display()));
    assert!(!out.out().contains("trusted"), "{}", out.out());
    // An ACL decides against the mode, and for it.
    let out = as_nobody(format!("cat '{}'", shown.join("denied").display()));
    assert!(out.code != Some(0) && out.err().contains("Permission denied"), "{}", out.text());
    let out = as_nobody(format!("cat '{}'", shown.join("granted").display())).ok();
    assert_eq!(out.out(), "by name");
    mount.end().ok();
    assert!(names_in(&lab.mnt()).is_empty());
}

#[test]
fn a_closed_dev_fuse_is_explained() {
    let closed = fs::metadata("/dev/fuse").expect("/dev/fuse").permissions().mode() & 0o006 != 0o006;
    let lab = user_lab(&mut Rng::from_env("closed"));
    let user = Ordinary::of(&lab);
    user.assay("init", NONE).ok();
    user.assay("backup", [lab.src()]).ok();
    if is_root() && closed {
        let out = user.assay("mount", [lab.mnt()]).run().code(1);
        assert!(out.err().contains("/dev/fuse"), "{}", out.err());
    }
    // Restoring needs no mount.
    user.assay("get", ["-y", "--to"]).arg(lab.out_dir()).arg(lab.src()).ok();
}
