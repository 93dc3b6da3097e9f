//! What a mount shows is what was backed up: every kind of file, every attribute, judged by other programs.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::support::rng::Rng;
use crate::support::{Lab, NONE, is_root, names_in, odd, oracle, sys, tool};

fn odd_lab(test: &str) -> Lab {
    let lab = Lab::new();
    odd::odd_tree(&lab.src(), &mut Rng::from_env(test));
    lab.init();
    lab.backup();
    lab
}

#[test]
fn the_oracles_see_what_they_are_there_for() {
    let lab = Lab::new();
    let (a, b) = (lab.path("src"), lab.path("copy"));
    odd::odd_tree(&a, &mut Rng::from_env("oracles"));
    tool("cp").arg("-a").arg(&a).arg(&b).ok();
    oracle::diff_clean(&a, &b, &["special"]);
    oracle::rsync_clean(&a, &b);
    oracle::tar_clean(&a, &b, &lab.root);
    oracle::same_xattrs(&a, &b);
    oracle::same_acls(&a, &b);
    let noticed = |what: &str, check: &(dyn Fn() + std::panic::RefUnwindSafe)| {
        assert!(std::panic::catch_unwind(check).is_err(), "nobody noticed: {what}");
    };
    let (a2, b2) = (a.clone(), b.clone());
    tool("touch").args(["-d", "@1600000000.111222334"]).arg(b.join("times/ordinary")).ok();
    noticed("one nanosecond", &move || oracle::same_listing_no_ctime(&a2, &b2));
    let (a2, b2) = (a.clone(), b.clone());
    tool("setfattr").args(["-x", "user.comment"]).arg(b.join("xattr/few")).ok();
    noticed("a lost xattr", &move || oracle::same_xattrs(&a2, &b2));
    let (a2, b2) = (a.clone(), b.clone());
    tool("setfacl").args(["-k"]).arg(b.join("acl/with-default")).ok();
    noticed("a lost default ACL", &move || oracle::same_acls(&a2, &b2));
    let (a2, b2) = (a, b.clone());
    fs::write(b.join("plain/one-byte"), "y").expect("write");
    noticed("a changed byte", &move || oracle::diff_clean(&a2, &b2, &["special"]));
}

#[test]
fn diff_rsync_tar_find_getfattr_getfacl_find_no_difference() {
    let lab = odd_lab("fidelity");
    let mount = lab.mount();
    oracle::identical(&lab.src(), &mount.latest(&lab.src()), &lab.out_dir());
    // Through the version's own folder too, and the parents of the saved path are there.
    oracle::same_listing(&lab.src(), &mount.version(0, &lab.src()));
    let parent = mount.latest(&lab.root).metadata().expect("stat of the parent");
    let real = fs::metadata(&lab.root).expect("stat");
    assert_eq!((parent.mode(), parent.uid(), parent.gid()), (real.mode(), real.uid(), real.gid()));
    assert_eq!(names_in(&mount.latest(&lab.root)), [b"src".to_vec()], "only what was asked for");
    mount.end().ok();
}

#[test]
fn a_second_backup_of_the_same_tree_changes_nothing() {
    let lab = odd_lab("unchanged");
    lab.backup_with(["--full"]);
    lab.backup();
    let mount = lab.mount();
    for version in 0..3 {
        oracle::same_listing(&lab.src(), &mount.version(version, &lab.src()));
    }
    oracle::rsync_clean(&lab.src(), &mount.version(2, &lab.src()));
    mount.end().ok();
}

#[test]
fn stat_tells_each_kind_as_it_is() {
    let lab = odd_lab("kinds");
    let mount = lab.mount();
    let shown = mount.latest(&lab.src());
    let special = |name: &str| shown.join("special").join(name).symlink_metadata().expect("stat");
    assert!(special("fifo").file_type().is_fifo());
    assert_eq!(special("fifo").nlink(), 2);
    assert!(special("socket").file_type().is_socket());
    if is_root() {
        assert!(special("null").file_type().is_char_device());
        assert!(special("loop").file_type().is_block_device());
        for name in ["null", "big-char", "loop"] {
            let source = lab.src().join("special").join(name).symlink_metadata().expect("stat");
            assert_eq!(special(name).rdev(), source.rdev(), "{name}");
            assert_ne!(special(name).rdev(), 0, "{name}");
        }
        // nodev: a device is shown, never opened.
        let error = fs::File::open(shown.join("special/null")).expect_err("a device opened");
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
    let link = shown.join("links/long-target");
    assert_eq!(link.symlink_metadata().expect("stat").len(), 4095);
    assert_eq!(fs::read_link(&link).expect("readlink"), fs::read_link(lab.src().join("links/long-target")).unwrap());
    assert_eq!(fs::read_link(shown.join("links/odd-target")).unwrap().as_os_str().as_bytes(), b"not \xff UTF-8 \n");
    assert_eq!(shown.join("links/sym").symlink_metadata().expect("stat").nlink(), 2);
    assert_eq!(shown.join("plain/empty-file").metadata().expect("stat").blocks(), 0);
    assert_eq!(names_in(&shown.join("plain/empty")), Vec::<Vec<u8>>::new());
    assert_eq!(names_in(&shown.join("many")).len(), 5000);
    mount.end().ok();
}

#[test]
fn no_nlink_is_zero_and_dot_entries_are_right() {
    let lab = odd_lab("nlink");
    let mount = lab.mount();
    let records = oracle::listing_of(&mount.latest(&lab.src()), "%n %P\\0");
    assert!(records.len() > 5000);
    assert!(records.iter().all(|record| !record.starts_with(b"0 ")), "an nlink of 0");
    // ls -ai agrees with stat for `.` and `..` everywhere near the root.
    let shown = mount.latest(&lab.src());
    for dir in [shown.clone(), shown.join("plain"), shown.join("plain/nested")] {
        let own = dir.metadata().expect("stat").ino();
        assert_eq!(own, dir.join(".").metadata().expect("stat").ino());
        let above = dir.parent().expect("parent").metadata().expect("stat").ino();
        assert_eq!(above, dir.join("..").metadata().expect("stat").ino(), "{}", dir.display());
        let listed = tool("ls").arg("-aif").arg(&dir).ok().out();
        let line = |name: &str| listed.lines().find(|l| l.split_whitespace().nth(1) == Some(name)).map(str::to_string);
        let dot = line(".").expect("a dot entry");
        assert_eq!(dot.split_whitespace().next(), Some(own.to_string().as_str()));
        assert!(line("..").is_some());
    }
    mount.end().ok();
}

#[test]
fn holes_stay_holes() {
    let lab = odd_lab("holes");
    let mount = lab.mount();
    let (real, shown) = (lab.src().join("holes"), mount.latest(&lab.src()).join("holes"));
    for name in names_in(&real) {
        let name = String::from_utf8(name).expect("UTF-8");
        let (a, b) = (real.join(&name), shown.join(&name));
        let source = sys::data_ranges(&a).expect("SEEK_DATA on the source");
        let ranges = sys::data_ranges(&b).expect("SEEK_DATA on the mount");
        assert_eq!(ranges, source, "{name}: data ranges");
        let (meta_a, meta_b) = (a.metadata().expect("stat"), b.metadata().expect("stat"));
        let data: u64 = ranges.iter().map(|(start, end)| end - start).sum();
        assert_eq!(meta_a.len(), meta_b.len(), "{name}");
        assert_eq!(meta_b.blocks() == 0, data == 0, "{name}: st_blocks {} for {data} data bytes", meta_b.blocks());
        assert!(meta_b.blocks() * 512 >= data, "{name}: {} blocks for {data} bytes", meta_b.blocks());
        assert!(meta_b.blocks() * 512 < data + 4096 * ranges.len().max(1) as u64, "{name}: {} blocks", meta_b.blocks());
        assert_eq!(fs::read(&a).expect("read"), fs::read(&b).expect("read"), "{name}");
    }
    let len = fs::metadata(shown.join("middle")).expect("stat").len() as i64;
    for whence in [libc::SEEK_DATA, libc::SEEK_HOLE] {
        assert_eq!(sys::seek_errno(&shown.join("middle"), len, whence), Err(libc::ENXIO));
        assert_eq!(
            sys::seek_errno(&shown.join("plain-is-not-here").with_file_name("middle"), -1, whence),
            Err(libc::ENXIO)
        );
    }
    assert_eq!(sys::seek_errno(&shown.join("middle"), len - 1, libc::SEEK_HOLE), Ok(len as u64));
    // du sees the same, rounded to blocks.
    let du = |dir: &Path, apparent: bool| -> u64 {
        let cmd = tool("du").args(["-s", "-B1"]);
        let cmd = if apparent { cmd.arg("--apparent-size") } else { cmd };
        cmd.arg(dir).ok().out().split_whitespace().next().and_then(|n| n.parse().ok()).expect("du")
    };
    assert_eq!(du(&real, true), du(&shown, true));
    assert!(du(&shown, false) < du(&shown, true) / 2, "holes take space");
    mount.end().ok();
}

#[test]
fn files_of_more_than_4_gib() {
    let lab = Lab::new();
    odd::huge_tree(&lab.src());
    lab.init();
    lab.backup();
    let mount = lab.mount();
    let shown = mount.latest(&lab.src());
    oracle::same_listing(&lab.src(), &shown);
    for name in ["only-hole", "data-past-4g"] {
        let (a, b) = (lab.src().join(name), shown.join(name));
        assert_eq!(sys::data_ranges(&a).unwrap(), sys::data_ranges(&b).unwrap(), "{name}");
        assert!(b.metadata().expect("stat").blocks() < 1000, "{name}");
    }
    let out = tool("cmp").arg(lab.src().join("data-past-4g")).arg(shown.join("data-past-4g")).run();
    assert!(out.code == Some(0) && out.text().is_empty(), "{}", out.text());
    mount.end().ok();
}

#[test]
fn paths_of_more_than_4096_bytes() {
    let lab = Lab::new();
    odd::deep_tree(&lab.src(), b"down here");
    lab.init();
    lab.backup();
    let mount = lab.mount();
    let shown = mount.latest(&lab.src());
    oracle::same_listing(&lab.src(), &shown);
    let leaf = sys::read_deep(&shown, &odd::deep_name(), odd::DEEP_LEVELS, "leaf").expect("read the leaf");
    assert_eq!(leaf, b"down here");
    mount.end().ok();
}

#[test]
fn attributes_of_60_kb_where_the_file_system_takes_them() {
    // tmpfs takes them in newer kernels, ext4 stops at a block; each gives what it can.
    let shm = Path::new("/dev/shm");
    let parent = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
    let lab = Lab::new_in(&parent);
    let file = lab.write("long", b"x");
    if !odd::try_setfattr(&file, "user.probe", b"1") {
        // No user attributes on this tmpfs: the disk has them.
        let lab = odd_lab("xattrs on disk");
        let mount = lab.mount();
        oracle::same_xattrs(&lab.src(), &mount.latest(&lab.src()));
        mount.end().ok();
        return;
    }
    let len = odd::set_long_xattr(&file, b'Z');
    println!("longest attribute here: {len} bytes");
    lab.init();
    lab.backup();
    let mount = lab.mount();
    oracle::same_xattrs(&lab.src(), &mount.latest(&lab.src()));
    mount.end().ok();
}

#[test]
fn missing_attributes_are_enodata_and_lists_are_exact() {
    let lab = odd_lab("xattr errors");
    let mount = lab.mount();
    let shown = mount.latest(&lab.src());
    let out = tool("getfattr").args(["-n", "user.nothing"]).arg(shown.join("xattr/few")).run();
    assert!(out.err().contains("No such attribute"), "{}", out.text());
    let out = tool("getfattr").args(["-d", "-m", "-"]).arg(shown.join("plain/text")).ok();
    assert!(out.text().is_empty(), "attributes from nowhere: {}", out.text());
    if is_root() {
        let caps = tool("getcap").arg(shown.join("xattr/capable")).ok().out();
        assert!(caps.contains("cap_net_bind_service") && caps.contains("cap_net_raw"), "{caps}");
    }
    mount.end().ok();
}

#[test]
fn the_mount_table_says_read_only_and_df_is_sensible() {
    let lab = odd_lab("table");
    let mount = lab.mount();
    let line = crate::support::mount::mount_line(&lab.mnt()).expect("mounted");
    let options: Vec<&str> = line.split(' ').nth(5).expect("options").split(',').collect();
    for wanted in ["ro", "nosuid", "nodev"] {
        assert!(options.contains(&wanted), "{wanted} is missing in {line}");
    }
    assert!(line.contains("default_permissions"), "{line}");
    let df = tool("df").args(["-B1", "--output=size,used,avail,itotal"]).arg(lab.mnt()).ok().out();
    let numbers: Vec<u64> =
        df.lines().nth(1).expect("df").split_whitespace().map(|n| n.parse().expect("a number")).collect();
    assert!(numbers[0] > 0 && numbers[1] > 0 && numbers[1] <= numbers[0], "{df}");
    assert!(numbers[3] >= 5000, "inodes: {df}");
    // What is free is what the disk with the backup dir has free: a mount is not always full.
    let free = |path: &Path| -> u64 {
        let out = tool("df").args(["-B1", "--output=avail"]).arg(path).ok().out();
        out.lines().nth(1).expect("df").trim().parse().expect("a number")
    };
    assert!(numbers[2] > 0 && numbers[2].abs_diff(free(&lab.repo())) < 1 << 30, "{df}");
    type Write = fn(&Path) -> std::io::Result<()>;
    let writes: [(&str, Write); 5] = [
        ("create", |dir| fs::write(dir.join("new"), "x")),
        ("mkdir", |dir| fs::create_dir(dir.join("new"))),
        ("unlink", |dir| fs::remove_file(dir.join("plain/text"))),
        ("rename", |dir| fs::rename(dir.join("plain/text"), dir.join("plain/moved"))),
        ("append", |dir| fs::OpenOptions::new().append(true).open(dir.join("plain/text")).map(drop)),
    ];
    for dir in [lab.mnt(), mount.latest(&lab.src())] {
        for (what, write) in &writes {
            if dir == lab.mnt() && ["unlink", "rename", "append"].contains(what) {
                continue;
            }
            let error = write(&dir).expect_err(what);
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{what} in {}", dir.display());
        }
    }
    assert_eq!(fs::metadata(lab.mnt().join("nothing")).expect_err("stat").raw_os_error(), Some(libc::ENOENT));
    mount.end().ok();
}

#[test]
fn direct_mode_shows_the_same() {
    let lab = odd_lab("direct");
    let mount = lab.mount_with(["--direct"]);
    let shown = mount.latest(&lab.src());
    oracle::diff_clean(&lab.src(), &shown, &["special"]);
    oracle::rsync_clean(&lab.src(), &shown);
    mount.end().ok();
}

#[test]
fn a_tiny_cache_is_only_slower() {
    let lab = odd_lab("cache");
    let mount = lab.mount_with(["--cache-mem", "1M"]);
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &["special"]);
    mount.end().ok();
}

#[test]
fn several_paths_and_a_single_file() {
    let lab = Lab::new();
    let one = lab.write("a/one", b"1");
    lab.write("a/two", b"2");
    lab.write("b/c/three", b"3");
    lab.init();
    lab.assay("backup", NONE).arg(&one).arg(lab.src().join("b")).ok();
    let mount = lab.mount();
    let shown = mount.latest(&lab.src());
    let found: Vec<PathBuf> =
        oracle::inodes(&shown).keys().map(|p| PathBuf::from(String::from_utf8(p.clone()).unwrap())).collect();
    assert_eq!(found, ["a", "a/one", "b", "b/c", "b/c/three"].map(PathBuf::from));
    assert_eq!(fs::read(shown.join("a/one")).unwrap(), b"1");
    mount.end().ok();
}
