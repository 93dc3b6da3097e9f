//! What a backup makes of sources that change, vanish, can't be read, or are given as several paths.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Rng;
use super::lab::{Copy, Source, assert_same, lab};
use super::questions::Reader;
use crate::backup::Options;
use crate::catalog::{Child, Kind, VersionInfo};
use crate::ids::{Dirno, Logid, Version};
use crate::tree::{Found, Piece};

/// Long enough for a ctime to prove that nothing changed since.
pub(super) fn let_it_age() {
    std::thread::sleep(Duration::from_millis(250));
}

pub(super) fn logid(r: &Reader, v: u32, path: &Path) -> Logid {
    match r.tree.find(Version(v), path.as_os_str().as_encoded_bytes()).unwrap() {
        Found::Node(logid, _) => logid,
        Found::Dir(_) => panic!("{} is a directory", path.display()),
    }
}

/// Counts a version's entries one by one, the root included.
pub(super) fn assert_totals(r: &Reader, v: Version) {
    let mut wanted = VersionInfo { dirs: 1, ..VersionInfo::default() };
    let mut open = vec![Dirno::ROOT];
    while let Some(dir) = open.pop() {
        for entry in r.names(v, dir).unwrap() {
            match (entry.child, entry.kind) {
                (Child::Dir(dirno), _) => {
                    wanted.dirs += 1;
                    open.push(dirno);
                }
                (Child::Node(logid), Kind::File) => {
                    wanted.files += 1;
                    wanted.tree_bytes += r.tree.attr(logid).unwrap().0.size;
                }
                _ => wanted.others += 1,
            }
        }
    }
    let row = r.tree.version(&v.to_string()).unwrap();
    let totals = |i: &VersionInfo| [i.files, i.dirs, i.others, i.tree_bytes];
    assert_eq!(totals(&row.info), totals(&wanted), "files, dirs, others, bytes of {v}");
}

#[test]
fn totals_are_those_of_the_whole_tree() {
    let copy = Copy::of(&lab().files);
    (0..4).for_each(|v| assert_totals(&copy.reader(), Version(v)));
}

#[test]
fn an_edit_that_only_the_ctime_shows_is_read() {
    let source = Source::new();
    source.write("edited", b"one");
    source.write("still", b"still");
    let copy = Copy::init();
    let_it_age();
    copy.backup(&source, &Options::default());
    let file = fs::OpenOptions::new().write(true).open(source.join("edited")).unwrap();
    let mtime = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"two", 0).unwrap();
    file.set_modified(mtime).unwrap();
    let summary = copy.backup(&source, &Options::default());
    assert_eq!((summary.info.changed, summary.info.new, summary.info.bytes_read), (1, 0, 3));
    assert_same(&copy.reader(), Version(1), source.path(), &source.snapshot());
    let_it_age();
    let quiet = copy.backup(&source, &Options::default());
    let said = (quiet.info.changed, quiet.info.new, quiet.info.removed, quiet.info.blocks_new);
    assert_eq!(said, (0, 0, 0, 0), "nothing changed");
    let third = copy.backup(&source, &Options::default());
    assert_eq!(third.info.bytes_read, 0, "all is proven by now");
    let full = copy.backup(&source, &Options { full: true, ..Options::default() });
    assert_eq!((full.info.bytes_read, full.info.changed, full.info.blocks_new), (8, 0, 0));
    assert_eq!(logid(&copy.reader(), 4, &source.join("still")), logid(&copy.reader(), 0, &source.join("still")));
}

#[test]
fn a_directory_of_many_frames_with_subdirectories_keeps_its_history_over_a_base() {
    let source = Source::new();
    for n in 0..60 {
        source.write(&format!("wide/{n:02}-file-{}", "x".repeat(100)), b"file");
        source.write(&format!("wide/{n:02}-dir/inner/file"), b"below");
    }
    let copy = Copy::init();
    let_it_age();
    copy.backup(&source, &Options::default());
    copy.make_a_base_due();
    source.write("wide/new", b"new");
    let summary = copy.backup(&source, &Options::default());
    assert_eq!((summary.base, summary.info.new, summary.info.changed, summary.info.removed), (true, 1, 0, 0));
    let reader = copy.reader();
    assert_same(&reader, Version(1), source.path(), &source.snapshot());
    let mut open = vec![Dirno::ROOT];
    let mut entries = 0;
    while let Some(dir) = open.pop() {
        for entry in reader.names(Version(1), dir).unwrap() {
            entries += 1;
            let since = Version(u32::from(entry.name == b"new"));
            assert_eq!(entry.since, since, "{}", String::from_utf8_lossy(&entry.name));
            if let Child::Dir(dirno) = entry.child {
                open.push(dirno);
            }
        }
    }
    assert!(entries > 240, "{entries}");
    let before = copy.rows();
    copy.lose_index();
    copy.recover();
    let counters = |rows: Vec<String>| rows.into_iter().filter(|row| !row.starts_with("meta")).collect::<Vec<_>>();
    assert!(counters(copy.rows()) == counters(before));
}

#[test]
fn a_fresh_file_is_read_again_and_keeps_its_inode() {
    let source = Source::new();
    let copy = Copy::init();
    source.write("fresh", b"fresh");
    fs::hard_link(source.join("fresh"), source.join("linked")).unwrap();
    copy.backup(&source, &Options::default());
    let reader = copy.reader();
    let id = logid(&reader, 0, &source.join("fresh"));
    assert!(reader.tree.node(id).unwrap().racy, "its ctime proves nothing yet");
    let_it_age();
    let again = copy.backup(&source, &Options::default());
    assert_eq!((again.info.bytes_read, again.info.changed), (5, 0));
    let reader = copy.reader();
    for (v, name) in [(0, "fresh"), (1, "fresh"), (0, "linked"), (1, "linked")] {
        assert_eq!(logid(&reader, v, &source.join(name)), id, "{name} in r{v}");
    }
    assert!(!reader.tree.node(id).unwrap().racy);
    assert_eq!(copy.backup(&source, &Options::default()).info.bytes_read, 0);
    (0..3).for_each(|v| assert_same(&copy.reader(), Version(v), source.path(), &source.snapshot()));
}

#[test]
fn files_that_change_or_vanish_while_they_are_read_are_saved_as_some_state_or_left_out() {
    let source = Source::new();
    source.write("steady", b"steady");
    source.write("small", &[b'a'; 3000]);
    source.write("long", &[b'a'; 300_000]);
    let copy = Copy::init();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let byte = b'a' + (n % 26) as u8;
                for (name, len) in [("small", 3000 + n % 7), ("long", 300_000 + n % 5000)] {
                    fs::write(source.join(name), vec![byte; len as usize]).unwrap();
                }
                source.write(&format!("gone{}", n % 5), b"here for a moment");
                let _ = fs::remove_file(source.join(&format!("gone{}", (n + 2) % 5)));
            }
        });
        for _ in 0..6 {
            let (summary, said) = copy.try_backup(&[source.path()], &Options::default()).unwrap();
            assert!(said.failures.is_empty() && summary.info.errors == 0, "{said:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    let reader = copy.reader();
    for v in 0..6 {
        assert_totals(&reader, Version(v));
        for (path, child) in reader.below(Version(v), source.path().as_os_str().as_encoded_bytes()) {
            let Child::Node(logid) = child else { continue };
            let (node, bytes) = (reader.tree.node(logid).unwrap(), reader.bytes(logid, 0, u64::MAX).unwrap());
            let mut hasher = crate::crypto::FileHasher::default();
            hasher.update(&bytes);
            let path = String::from_utf8_lossy(&path);
            assert_eq!((node.attr.size, node.sha1), (bytes.len() as u64, Some(hasher.finish())), "{path} in r{v}");
        }
    }
    drop(reader);
    let_it_age();
    copy.backup(&source, &Options::default());
    assert_same(&copy.reader(), Version(6), source.path(), &source.snapshot());
}

#[test]
fn what_cannot_be_read_is_told_and_absent() {
    let source = Source::new();
    source.write("fine", b"fine");
    let copy = Copy::init();
    // A regular file whose read fails with EIO for anybody.
    let bad = Path::new("/proc/self/mem");
    let (summary, said) = copy.try_backup(&[source.path(), bad], &Options::default()).unwrap();
    assert_eq!((summary.info.errors, said.failures.len()), (1, 1), "{said:?}");
    let reader = copy.reader();
    let process = format!("/proc/{}", std::process::id());
    let v = Version(0);
    assert!(matches!(reader.tree.find(v, process.as_bytes()), Ok(Found::Dir(_))), "the way to it is saved");
    let path = format!("{process}/mem");
    assert_eq!(reader.tree.find(v, path.as_bytes()).unwrap_err().code(), "NO_PATH");
    assert_same(&reader, v, source.path(), &source.snapshot());
    assert_totals(&reader, v);
}

#[test]
fn fixed_blocks_and_holes_lie_where_they_should() {
    let source = Source::new();
    source.write("image", &Rng::new(5).noise(10_000));
    let file = fs::File::create(source.join("sparse")).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(b"data", 512 << 10).unwrap();
    fs::File::create(source.join("hole")).unwrap().set_len(100_000).unwrap();
    let copy = Copy::init();
    copy.backup(&source, &Options { fixed_block: Some(4096), ..Options::default() });
    let reader = copy.reader();
    let pieces = |name: &str| {
        let node = reader.tree.node(logid(&reader, 0, &source.join(name))).unwrap();
        reader.tree.segments(&node, 0, u64::MAX).unwrap()
    };
    assert_eq!(pieces("image").iter().map(Piece::len).collect::<Vec<_>>(), [4096, 4096, 1808]);
    assert_eq!(pieces("hole"), [Piece::Zero { len: 100_000 }]);
    let sparse = pieces("sparse");
    let data: u64 = sparse.iter().filter(|p| matches!(p, Piece::Data { .. })).map(Piece::len).sum();
    assert!(data <= 8192, "{sparse:?}");
    let node = reader.tree.node(logid(&reader, 0, &source.join("sparse"))).unwrap();
    assert_eq!(node.data_bytes, data);
    assert_same(&reader, Version(0), source.path(), &source.snapshot());
}

#[test]
fn several_paths_nested_ones_and_those_not_given_again() {
    let (one, two) = (Source::new(), Source::new());
    one.write("sub/file", b"one");
    one.write("other", b"outside the nested path");
    two.write("file", b"two");
    let sub = one.join("sub");
    let copy = Copy::init();
    copy.try_backup(&[&sub, two.path()], &Options::default()).unwrap();
    let reader = copy.reader();
    assert_same(&reader, Version(0), two.path(), &two.snapshot());
    let other = one.join("other");
    assert!(reader.tree.find(Version(0), other.as_os_str().as_encoded_bytes()).is_err(), "it was not asked for");
    assert_totals(&reader, Version(0));

    // A path within a path that is given too is saved once; the order makes no difference.
    let (_, said) = copy.try_backup(&[&sub, one.path(), &sub], &Options::default()).unwrap();
    assert!(said.failures.is_empty());
    let reader = copy.reader();
    assert_same(&reader, Version(1), one.path(), &one.snapshot());
    assert_same(&reader, Version(1), two.path(), &two.snapshot());
    assert_totals(&reader, Version(1));

    // Only what is asked for is looked at.
    one.write("other", b"changed, not asked for");
    let before = one.snapshot();
    one.write("sub/more", b"asked for");
    fs::remove_dir_all(two.join("file")).unwrap_or_else(|_| fs::remove_file(two.join("file")).unwrap());
    copy.try_backup(&[&sub], &Options::default()).unwrap();
    let reader = copy.reader();
    assert!(reader.tree.find(Version(2), two.join("file").as_os_str().as_encoded_bytes()).is_ok(), "it stays");
    assert_eq!(logid(&reader, 2, &other), logid(&reader, 1, &other), "{:?}", before.keys());
    let below = reader.below(Version(2), sub.as_os_str().as_encoded_bytes());
    assert_eq!(below.keys().map(|k| k.as_slice()).collect::<Vec<_>>(), [&b""[..], b"file", b"more"]);
    assert_totals(&reader, Version(2));

    // A file as a path, and one that does not exist.
    let (summary, said) = copy.try_backup(&[&other, Path::new("/no/such/path")], &Options::default()).unwrap();
    assert_eq!((summary.info.errors, said.failures.len()), (1, 1));
    let reader = copy.reader();
    assert_ne!(logid(&reader, 3, &other), logid(&reader, 2, &other));
    assert_totals(&reader, Version(3));
}

#[test]
fn what_is_excluded_later_is_gone_and_comes_back() {
    let source = Source::new();
    source.write("keep/a", b"a");
    source.write("keep/b.tmp", b"b");
    source.write("cache/deep/c", b"c");
    let copy = Copy::init();
    copy.backup(&source, &Options::default());
    let everything = source.snapshot();
    let excludes = vec!["*.tmp".to_string(), format!("{}/cache/", source.path().display())];
    let summary = copy.backup(&source, &Options { excludes, ..Options::default() });
    assert_eq!(summary.info.removed, 4);
    let shown = copy.reader().below(Version(1), source.path().as_os_str().as_encoded_bytes());
    assert_eq!(shown.keys().map(|k| k.as_slice()).collect::<Vec<_>>(), [&b""[..], b"keep", b"keep/a"]);
    copy.backup(&source, &Options::default());
    (0..3).for_each(|v| assert_totals(&copy.reader(), Version(v)));
    assert_same(&copy.reader(), Version(2), source.path(), &everything);
    assert_same(&copy.reader(), Version(0), source.path(), &everything);
}

#[test]
fn names_that_become_something_else_and_links_that_come_and_go() {
    let source = Source::new();
    let copy = Copy::init();
    let mut snapshots = Vec::new();
    let at = |name: &str| source.join(name);
    let steps: [&dyn Fn(); 7] = [
        &|| {
            source.write("x/in/deep", b"x was a directory");
            source.write("y", b"y was a file");
            source.write("hard", b"one inode");
        },
        &|| {
            fs::remove_dir_all(at("x")).unwrap();
            source.write("x", b"x is a file");
            fs::remove_file(at("y")).unwrap();
            source.write("y/in/deep", b"y is a directory");
            fs::hard_link(at("hard"), at("also")).unwrap();
        },
        &|| {
            fs::remove_file(at("x")).unwrap();
            source.write("x/in/deep", b"x is a directory again");
            fs::remove_dir_all(at("y")).unwrap();
            std::os::unix::fs::symlink("x", at("y")).unwrap();
            fs::hard_link(at("hard"), at("x/third")).unwrap();
        },
        &|| fs::remove_file(at("also")).unwrap(),
        &|| {
            fs::remove_file(at("x/third")).unwrap();
            // The same bytes, another inode.
            fs::write(at("x/third"), b"one inode").unwrap();
        },
        &|| fs::set_permissions(at("hard"), fs::Permissions::from_mode(0o600)).unwrap(),
        &|| {
            fs::rename(at("hard"), at("moved")).unwrap();
            fs::remove_dir_all(at("x")).unwrap();
            fs::remove_file(at("y")).unwrap();
        },
    ];
    for step in steps {
        step();
        copy.backup(&source, &Options::default());
        snapshots.push(source.snapshot());
    }
    let recovered = Copy::without_index(&copy.files());
    recovered.recover();
    for copy in [&copy, &recovered] {
        let reader = copy.reader();
        for (v, snapshot) in snapshots.iter().enumerate() {
            assert_same(&reader, Version(v as u32), source.path(), snapshot);
            assert_totals(&reader, Version(v as u32));
        }
    }
}

/// Makes, changes and removes files, directories and links.
pub fn change_at_random(source: &Source, rng: &mut Rng) {
    let names: Vec<String> = (0..6).flat_map(|a| (0..5).map(move |b| format!("{a}/{b}"))).collect();
    for _ in 0..12 {
        let name = &names[rng.below(names.len())];
        let path = source.join(name);
        let _ = fs::create_dir_all(path.parent().unwrap());
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        match (rng.below(8), is_dir) {
            (0, true) => fs::remove_dir_all(&path).unwrap(),
            (0 | 1, false) => drop(fs::remove_file(&path)),
            (2, false) => {
                let from = source.join(&names[rng.below(names.len())]);
                drop(fs::hard_link(from, &path));
            }
            (3, false) => {
                let _ = fs::remove_file(&path);
                std::os::unix::fs::symlink(format!("{:0>9}", rng.below(99)), &path).unwrap();
            }
            (4, false) if fs::symlink_metadata(&path).is_err() => fs::create_dir_all(path.join("below")).unwrap(),
            (_, true) => fs::write(path.join(format!("{}", rng.below(3))), b"below").unwrap(),
            (5, false) if path.is_file() => {
                let times = fs::File::open(&path).unwrap();
                times.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(rng.below(9) as u64)).unwrap();
            }
            // A symlink may lead anywhere: it is replaced, not followed.
            _ if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_symlink()) => fs::remove_file(&path).unwrap(),
            _ => {
                let len = [0, 1, 100, 5000, 9000][rng.below(5)];
                fs::write(&path, rng.noise(len)).unwrap();
            }
        }
    }
}

#[test]
fn random_trees_that_change_at_random_are_saved_as_they_are() {
    let mut rng = Rng::from_env();
    let source = Source::new();
    let copy = Copy::init();
    let mut snapshots = Vec::new();
    for _ in 0..8 {
        change_at_random(&source, &mut rng);
        let base = rng.below(4) == 0;
        if base {
            copy.make_a_base_due();
        }
        let summary = copy.backup(&source, &Options { full: rng.below(4) == 0, ..Options::default() });
        assert_eq!(summary.base, base || snapshots.is_empty(), "seed {}", rng.seed);
        snapshots.push(source.snapshot());
    }
    let recovered = Copy::without_index(&copy.files());
    recovered.recover();
    for copy in [&copy, &recovered] {
        let reader = copy.reader();
        for (v, snapshot) in snapshots.iter().enumerate() {
            naming_seed(rng.seed, || {
                assert_same(&reader, Version(v as u32), source.path(), snapshot);
                assert_totals(&reader, Version(v as u32));
            });
        }
    }
}

/// Names the seed if the checks fail.
pub fn naming_seed(seed: u64, check: impl FnOnce()) {
    if let Err(why) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)) {
        let text = why.downcast_ref::<String>().cloned().unwrap_or_default();
        panic!("seed {seed}: {text}");
    }
}
