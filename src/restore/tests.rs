//! Restores from a version in memory, compared through the standard library.

mod delete;
mod drafts;
mod fake;

use std::cell::RefCell;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicU64, Ordering};

use fake::{BLOCK, Fake, attr};

use super::*;
use crate::catalog::{Attr, Content, Kind, Timespec, Xattrs};
use crate::error::Damage;
use crate::ids::FileHash;
use crate::monitor::{Event, Progress};
use crate::os::process::{getegid, geteuid};
use crate::os::{DirFd, xattr};

fn content(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8 ^ (i % 251) as u8 ^ seed).collect()
}

fn check_attr(path: &Path, attr: &Attr) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    if attr.kind != Kind::Symlink {
        assert_eq!(meta.mode() & 0o7777, u32::from(attr.perm), "mode of {path:?}");
    }
    assert_eq!((meta.uid(), meta.gid()), (attr.uid, attr.gid), "owner of {path:?}");
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (attr.mtime.sec, i64::from(attr.mtime.nsec)), "time of {path:?}");
}

fn os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(bytes)
}

fn names(dir: &Path) -> Vec<Vec<u8>> {
    let mut names = DirFd::open(dir).unwrap().read_names().unwrap();
    names.sort();
    names
}

#[test]
fn everything_comes_back_with_every_attribute() {
    let mut fake = Fake::new();
    let top = fake.add_dir(Dirno::ROOT, b"top", 0o2751);
    let closed = fake.add_dir(top, b"closed", 0o555);
    let old = Timespec { sec: -2_147_483_647, nsec: 1 };
    let new = Timespec { sec: 7_258_118_400, nsec: 999_999_999 };
    let text = content(12_345, 1);
    fake.add_file(top, b"plain", &text, |node| node.attr.mtime = old);
    fake.add_file(closed, b"in a closed directory", &text, |_| {});
    fake.add_file(top, b"empty", b"", |node| node.attr.mtime = new);
    fake.add_file(top, b"setuid", &text, |node| node.attr.perm = 0o6755);
    fake.add_file(top, b"unreadable", &text, |node| node.attr.perm = 0);
    let odd = [&b"\xff\x80 \n\\"[..], &[b'l'; 249]].concat();
    assert_eq!(odd.len(), 254);
    fake.add_file(top, &odd, &text, |_| {});
    let link = |node: &mut Node| {
        node.target = b"../nowhere\xff".to_vec();
        node.attr.mtime = Timespec { sec: -1, nsec: 5 };
    };
    fake.add_node(top, b"symlink", attr(Kind::Symlink, 0o777), link);
    fake.add_node(top, b"fifo", attr(Kind::Fifo, 0o622), |_| {});
    fake.add_node(top, b"socket", attr(Kind::Socket, 0o1700), |_| {});
    let acl = [
        &[2u8, 0, 0, 0][..],
        &[1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 210, 4, 0, 0],
        &[4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat();
    let mut wanted: Xattrs = vec![(b"system.posix_acl_access".to_vec(), acl), (b"user.note".to_vec(), vec![0, 255])];
    if geteuid() == 0 {
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
        wanted.insert(0, (b"security.capability".to_vec(), capability));
        wanted.insert(2, (b"trusted.t".to_vec(), b"v".to_vec()));
    }
    let xattrs = wanted.clone();
    fake.add_file(top, b"attributes", &text, |node| node.xattrs = xattrs);
    fake.dirs.get_mut(&closed).unwrap().0.xattrs = vec![(b"user.dir".to_vec(), b"d".to_vec())];
    if geteuid() == 0 {
        let device = Attr { rdev_major: 7, rdev_minor: 70_000, ..attr(Kind::BlockDevice, 0o660) };
        fake.add_node(top, b"device", device, |_| {});
    }

    let temp = tempfile::tempdir().unwrap();
    let report = fake.get(&["/top"], temp.path());
    assert_eq!((report.exit(), &report.errors.len()), (Exit::Ok, &0), "{:?}", report.errors);
    assert_eq!((report.files, report.dirs, report.bytes), (7, 2, 5 * 12_345 + 12_345));
    let out = temp.path().join("top");
    for (dirno, base) in [(top, out.clone()), (closed, out.join("closed"))] {
        let (state, entries) = &fake.dirs[&dirno];
        check_attr(&base, &state.attr);
        assert_eq!(names(&base), entries.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
        for (name, child) in entries {
            let path = base.join(os(name));
            match child {
                Child::Dir(dirno) => check_attr(&path, &fake.dirs[dirno].0.attr),
                Child::Node(logid) => {
                    let node = &fake.nodes[logid];
                    check_attr(&path, &node.attr);
                    if node.attr.kind == Kind::File && (geteuid() == 0 || node.attr.perm != 0) {
                        let wanted = if node.attr.size == 0 { &[][..] } else { &text };
                        assert!(std::fs::read(&path).unwrap() == wanted, "{path:?}");
                    }
                }
            }
        }
    }
    assert_eq!(std::fs::read_link(out.join("symlink")).unwrap().as_os_str().as_bytes(), b"../nowhere\xff");
    let kind = |name: &str| std::fs::symlink_metadata(out.join(name)).unwrap();
    assert!(kind("fifo").file_type().is_fifo() && kind("socket").file_type().is_socket());
    if geteuid() == 0 {
        assert!(kind("device").file_type().is_block_device());
        assert_eq!(kind("device").rdev(), crate::os::stat::makedev(7, 70_000));
    }
    let dir = DirFd::open(&out).unwrap();
    assert_eq!(crate::live::xattrs(xattr::Subject::At(&dir, b"attributes")).unwrap(), wanted);
    assert_eq!(xattr::get(xattr::Subject::At(&dir, b"closed"), b"user.dir").unwrap(), b"d");
    if geteuid() != 0 {
        std::fs::set_permissions(out.join("closed"), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn holes_are_holes_again_and_hard_links_are_links() {
    let mut fake = Fake::new();
    let mut sparse = vec![0; BLOCK * 2_000];
    sparse[BLOCK * 1_000 + 3] = 1;
    let file = fake.add_file(Dirno::ROOT, b"sparse", &sparse, |node| node.attr.nlink = 3);
    fake.add_file(Dirno::ROOT, b"all hole", &vec![0; BLOCK * 300], |_| {});
    let dir = fake.add_dir(Dirno::ROOT, b"z", 0o700);
    fake.put(dir, b"second", Child::Node(file));
    fake.put(dir, b"third", Child::Node(file));
    let temp = tempfile::tempdir().unwrap();
    let report = fake.get(&["/sparse", "/all hole", "/z"], temp.path());
    assert_eq!((report.exit(), report.files), (Exit::Ok, 4), "{:?}", report.errors);
    let meta = |name: &str| std::fs::metadata(temp.path().join(name)).unwrap();
    assert!(std::fs::read(temp.path().join("z/third")).unwrap() == sparse);
    assert!(meta("sparse").blocks() * 512 < 200_000, "{}", meta("sparse").blocks());
    assert_eq!((meta("all hole").len(), meta("all hole").blocks()), (BLOCK as u64 * 300, 0));
    assert_eq!(meta("sparse").nlink(), 3);
    assert_eq!(meta("sparse").ino(), meta("z/second").ino());
    // Once more over itself: nothing changes, nothing is asked.
    let report = fake.get(&["/sparse", "/all hole", "/z"], temp.path());
    assert_eq!((report.exit(), report.files, report.unchanged), (Exit::Ok, 0, 4));
}

#[test]
fn paths_deeper_than_4096_bytes_come_back() {
    let mut fake = Fake::new();
    let mut dir = Dirno::ROOT;
    for _ in 0..300 {
        dir = fake.add_dir(dir, &[b'n'; 50], 0o750);
    }
    fake.add_file(dir, b"deep", b"down here", |_| {});
    let temp = tempfile::tempdir().unwrap();
    let report = fake.get(&["/"], &temp.path().join("made/too"));
    assert_eq!((report.exit(), report.files, report.dirs), (Exit::Ok, 1, 301), "{:?}", report.errors);
    let mut at = DirFd::open(&temp.path().join("made/too")).unwrap();
    for _ in 0..300 {
        at = at.open_dir(&[b'n'; 50]).unwrap();
    }
    assert_eq!(std::io::read_to_string(at.open_file(b"deep").unwrap()).unwrap(), "down here");
    assert_eq!(at.stat().unwrap().mtime, fake.dirs[&dir].0.attr.mtime);
}

#[test]
fn a_damaged_file_gets_another_name_and_its_bad_ranges_are_holes() {
    let mut fake = Fake::new();
    let text = content(BLOCK * 10 + 17, 9);
    let long = [b'n'; 255];
    for name in [&b"bad"[..], &long, b"good"] {
        fake.add_file(Dirno::ROOT, name, &text, |node| node.attr.perm = 0o4755);
    }
    for (file, blocks) in [(Logid(16), &[2, 3, 7][..]), (Logid(17), &[10][..])] {
        blocks.iter().for_each(|block| fake.flip(file, *block));
    }
    fake.nodes.insert(Logid(16), {
        let mut node = (*fake.nodes[&Logid(16)]).clone();
        node.attr.nlink = 2;
        Arc::new(node)
    });
    fake.put(Dirno::ROOT, b"bad link", Child::Node(Logid(16)));
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("bad"), "an older state").unwrap();
    let extra = Extra::Delete;
    let report = fake.get_with(&["/"], Target::Below(temp.path().into()), extra, &mut |_| Decision::All);
    assert_eq!((report.exit(), report.damaged_count, report.files), (Exit::Damage, 3, 1));
    assert_eq!(std::fs::read(temp.path().join("bad")).unwrap(), b"an older state");
    assert!(std::fs::read(temp.path().join("good")).unwrap() == text);
    let short = [&long[..247], b".damaged"].concat();
    let mut expected =
        vec![b"bad".to_vec(), b"bad link.damaged".to_vec(), b"bad.damaged".to_vec(), b"good".to_vec(), short.clone()];
    expected.sort();
    assert_eq!(names(temp.path()), expected);
    let block = BLOCK as u64;
    let mut wanted = text.clone();
    wanted[BLOCK * 2..BLOCK * 4].fill(0);
    wanted[BLOCK * 7..BLOCK * 8].fill(0);
    assert!(std::fs::read(temp.path().join("bad.damaged")).unwrap() == wanted);
    let meta = |name: &[u8]| std::fs::metadata(temp.path().join(os(name))).unwrap();
    assert_eq!(meta(b"bad.damaged").ino(), meta(b"bad link.damaged").ino());
    assert_eq!((meta(b"bad.damaged").mode() & 0o7777, meta(b"good").mode() & 0o7777), (0o755, 0o4755));
    for damaged in &report.damaged {
        let ranges = if damaged.logid == Logid(16) {
            vec![block * 2..block * 4, block * 7..block * 8]
        } else {
            Vec::from_iter([Range { start: block * 10, end: block * 10 + 17 }])
        };
        assert_eq!(damaged.ranges, ranges);
        assert!(matches!(damaged.error, Error::Arc { damage: Damage::BadTag, .. }));
        assert!(damaged.written.exists());
    }
    // The name is taken now: the next one is numbered, nothing is overwritten.
    let report = fake.get_with(&["/bad"], Target::Below(temp.path().into()), Extra::Keep, &mut |_| Decision::All);
    assert!(report.damaged[0].written.ends_with("bad.damaged.2"));
}

#[test]
fn good_blocks_in_the_wrong_order_are_found_by_the_hash_of_the_file() {
    let mut fake = Fake::new();
    let file = fake.add_file(Dirno::ROOT, b"f", &content(BLOCK * 2, 3), |_| {});
    let mut node = (*fake.nodes[&file]).clone();
    let Content::Inline(segments) = &mut node.content else { panic!() };
    segments.reverse();
    fake.nodes.insert(file, Arc::new(node));
    let temp = tempfile::tempdir().unwrap();
    let report = fake.get(&["/f"], temp.path());
    assert_eq!(names(temp.path()), [b"f.damaged".to_vec()]);
    assert!(matches!(report.damaged[0].error, Error::FileHashMismatch { .. }));
    assert_eq!(report.exit(), Exit::Damage);
}

#[test]
fn a_lost_part_of_the_block_list_costs_only_that_part() {
    let mut fake = Fake::new();
    let text = content(9 << 20, 5);
    let file = fake.add_file(Dirno::ROOT, b"f", &text, |_| {});
    fake.lost.insert(file, 5_000_000..6_000_000);
    let temp = tempfile::tempdir().unwrap();
    let report = fake.get(&["/f"], temp.path());
    let [range] = &report.damaged[0].ranges[..] else { panic!("{:?}", report.damaged) };
    assert!(range.start <= 5_000_000 && range.start > 4_995_000 && range.end >= 6_000_000 && range.end < 6_005_000);
    let found = std::fs::read(temp.path().join("f.damaged")).unwrap();
    let (start, end) = (range.start as usize, range.end as usize);
    assert!(
        found[..start] == text[..start] && found[end..] == text[end..] && found[start..end].iter().all(|b| *b == 0)
    );
}

#[test]
fn what_differs_is_replaced_only_after_a_yes() {
    let mut fake = Fake::new();
    for name in ["a", "b", "c", "d"] {
        fake.add_file(Dirno::ROOT, name.as_bytes(), &content(20_000, 1), |_| {});
    }
    fake.add_node(Dirno::ROOT, b"e", attr(Kind::Symlink, 0o777), |node| node.target = b"t".to_vec());
    let temp = tempfile::tempdir().unwrap();
    assert_eq!(fake.get(&["/"], temp.path()).exit(), Exit::Ok);
    assert_eq!(fake.get(&["/"], temp.path()).unchanged, 5);
    // Same size and time, other content: must be noticed. Same content, other mode: so must that.
    let dir = DirFd::open(temp.path()).unwrap();
    let mut other = content(20_000, 1);
    other[19_999] ^= 1;
    for name in ["b", "c"] {
        std::fs::write(temp.path().join(name), &other).unwrap();
        dir.set_mtime_at(name.as_bytes(), attr(Kind::File, 0).mtime).unwrap();
    }
    dir.chmod_at(b"d", 0o600).unwrap();
    let asked = RefCell::new(Vec::new());
    let mut confirm = |question: Question<'_>| {
        let (Question::Replace(path) | Question::Change(path)) = question;
        asked.borrow_mut().push(path.file_name().unwrap().to_owned());
        if path.ends_with("b") { Decision::No } else { Decision::All }
    };
    let report = fake.get_with(&["/"], Target::Below(temp.path().into()), Extra::Keep, &mut confirm);
    assert_eq!(*asked.borrow(), ["b", "c"]);
    assert_eq!((report.kept_count, report.files, report.unchanged), (1, 2, 2));
    assert_eq!(report.exit(), Exit::FinishedWithErrors);
    assert!(std::fs::read(temp.path().join("b")).unwrap() == other);
    assert!(std::fs::read(temp.path().join("c")).unwrap() == content(20_000, 1));
    assert_eq!(dir.stat_at(b"d").unwrap().perm, 0o640);
    let report = fake.get_with(&["/"], Target::Below(temp.path().into()), Extra::Keep, &mut |_| Decision::Quit);
    assert_eq!(report.exit(), Exit::Interrupted);
}

#[test]
fn what_has_another_type_is_in_the_way() {
    let mut fake = Fake::new();
    let dir = fake.add_dir(Dirno::ROOT, b"dir", 0o755);
    fake.add_file(dir, b"f", b"inside", |_| {});
    fake.add_file(Dirno::ROOT, b"file", b"content", |_| {});
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(temp.path().join("outside")).unwrap();
    std::fs::create_dir_all(temp.path().join("file/full")).unwrap();
    symlink("outside", temp.path().join("dir")).unwrap();
    let target = || Target::Below(temp.path().into());
    let report = fake.get_with(&["/dir", "/file"], target(), Extra::Keep, &mut |_| Decision::Yes);
    // A symlink is replaced, never followed; a directory with something in it stays.
    assert_eq!(names(&temp.path().join("outside")), Vec::<Vec<u8>>::new());
    assert_eq!(std::fs::read(temp.path().join("dir/f")).unwrap(), b"inside");
    assert_eq!((report.exit(), report.error_count), (Exit::FinishedWithErrors, 1));
    assert!(temp.path().join("file/full").exists());
    let report = fake.get_with(&["/file"], target(), Extra::Delete, &mut |_| Decision::Yes);
    assert_eq!((report.exit(), report.deleted), (Exit::Ok, 2));
    assert_eq!(std::fs::read(temp.path().join("file")).unwrap(), b"content");
    assert_eq!(names(temp.path()), [b"dir".to_vec(), b"file".to_vec(), b"outside".to_vec()]);
}

#[test]
fn delete_takes_what_the_version_does_not_have_but_only_where_it_knows() {
    let mut fake = Fake::new();
    let known = fake.add_dir(Dirno::ROOT, b"known", 0o755);
    let lost = fake.add_dir(Dirno::ROOT, b"lost", 0o755);
    for dir in [known, lost] {
        fake.add_file(dir, b"f", b"1", |_| {});
    }
    fake.unlistable.insert(lost);
    let temp = tempfile::tempdir().unwrap();
    for name in ["known/extra/deep/er", "lost/extra", "outside"] {
        std::fs::create_dir_all(temp.path().join(name)).unwrap();
    }
    let target = Target::Below(temp.path().into());
    let report = fake.get_with(&["/known", "/lost"], target, Extra::Delete, &mut |question| {
        assert!(matches!(question, Question::Change(_)), "{question:?}");
        Decision::No
    });
    assert_eq!(names(&temp.path().join("known")), [b"f".to_vec()]);
    assert_eq!(names(&temp.path().join("lost")), [b"extra".to_vec(), b"f".to_vec()]);
    assert!(temp.path().join("outside").exists());
    assert_eq!((report.deleted, report.exit()), (3, Exit::Damage));
    assert!(matches!(&report.errors[..], [(path, Error::DirectoryLost { .. })] if path == b"/lost"));
}

#[test]
fn names_that_would_lead_out_are_refused() {
    let mut fake = Fake::new();
    let dir = fake.add_dir(Dirno::ROOT, b"d", 0o755);
    for name in [&b".."[..], b".", b"", b"a/b", b"../evil", b"nul\0", &[b'x'; 256]] {
        fake.add_file(dir, name, b"evil", |_| {});
    }
    let up = fake.add_dir(dir, b"..", 0o777);
    fake.add_file(up, b"evil", b"evil", |_| {});
    fake.add_file(dir, b"fine", b"fine", |_| {});
    let temp = tempfile::tempdir().unwrap();
    let report = fake.get(&["/d"], &temp.path().join("t"));
    assert_eq!((report.error_count, report.exit()), (8, Exit::FinishedWithErrors));
    assert_eq!(names(&temp.path().join("t")), [b"d".to_vec()]);
    assert_eq!(names(&temp.path().join("t/d")), [b"fine".to_vec()]);
    let report = fake.get(&["/d/../d", "/none", "/d/fine"], temp.path());
    assert_eq!((report.error_count, report.files), (2, 1));
    assert!(matches!(fake.get_fails("/none", temp.path()), Error::NoPath { .. }));
}

#[test]
fn the_original_place_gets_its_parents_back() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path().canonicalize().unwrap();
    let mut fake = Fake::new();
    let mut dir = Dirno::ROOT;
    for name in base.components().skip(1) {
        dir = fake.add_dir(dir, name.as_os_str().as_bytes(), 0o700);
    }
    let (a, _) = (fake.add_dir(dir, b"a", 0o751), ());
    let b = fake.add_dir(a, b"b", 0o711);
    fake.add_file(b, b"f", b"content", |_| {});
    let path = base.join("a/b/f");
    let before = std::fs::metadata(&base).unwrap();
    let get =
        |fake: &Fake| fake.get_with(&[path.to_str().unwrap()], Target::Original, Extra::Keep, &mut |_| Decision::No);
    let report = get(&fake);
    assert_eq!((report.exit(), report.files, report.dirs), (Exit::Ok, 1, 2), "{:?}", report.errors);
    check_attr(&base.join("a"), &fake.dirs[&a].0.attr);
    check_attr(&base.join("a/b"), &fake.dirs[&b].0.attr);
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
    assert_eq!(std::fs::metadata(&base).unwrap().mode(), before.mode(), "an existing parent is left alone");
    // A symlink where a parent was is not followed.
    std::fs::rename(base.join("a"), base.join("elsewhere")).unwrap();
    std::fs::remove_file(base.join("elsewhere/b/f")).unwrap();
    symlink("elsewhere", base.join("a")).unwrap();
    let report = get(&fake);
    assert!(matches!(&report.errors[..], [(_, Error::Unsupported { .. })]), "{:?}", report.errors);
    assert!(!base.join("elsewhere/b/f").exists());
}

/// Wants to stop after some progress.
struct Impatient(AtomicU64);

impl Monitor for Impatient {
    fn progress(&self, _: Progress) {}
    fn event(&self, _: Event<'_>) {}
    fn interrupted(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) == 0
    }
}

#[test]
fn a_restore_that_is_cut_leaves_nothing_half_under_a_final_name() {
    let mut fake = Fake::new();
    let dir = fake.add_dir(Dirno::ROOT, b"d", 0o751);
    let text = content(BLOCK * 5, 1);
    fake.add_file(dir, b"1", &text, |_| {});
    fake.add_file(dir, b"2", &text, |_| {});
    let options = |target: &Path| Options {
        paths: vec![b"/d".to_vec()],
        target: Target::Below(target.into()),
        extra: Extra::Delete,
        spare: Spare::default(),
    };
    let mut cut = 0;
    for polls in 0..100 {
        let temp = tempfile::tempdir().unwrap();
        let monitor = Impatient(AtomicU64::new(polls));
        let report = run(&fake, &options(temp.path()), &monitor, &mut |_| Decision::All).unwrap();
        cut += u32::from(report.interrupted);
        let out = temp.path().join("d");
        check_attr(&out, &fake.dirs[&dir].0.attr);
        for name in names(&out) {
            assert!(name == b"1" || name == b"2", "{name:?}");
            assert!(std::fs::read(out.join(os(&name))).unwrap() == text);
        }
        if !report.interrupted {
            break;
        }
    }
    assert!((10..100).contains(&cut), "{cut} cuts");
}

#[test]
fn wrong_owners_are_quietly_ours_for_an_ordinary_user_and_lose_setuid() {
    let mut fake = Fake::new();
    fake.add_file(Dirno::ROOT, b"f", b"x", |node| {
        node.attr.perm = 0o6755;
        (node.attr.uid, node.attr.gid) = (4_321, 8_765);
        node.xattrs = vec![(b"trusted.t".to_vec(), b"v".to_vec()), (b"user.u".to_vec(), b"v".to_vec())];
    });
    let temp = tempfile::tempdir().unwrap();
    let report = fake.get(&["/f"], temp.path());
    assert_eq!(report.exit(), Exit::Ok, "{:?}", report.errors);
    let meta = std::fs::metadata(temp.path().join("f")).unwrap();
    if geteuid() == 0 {
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (4_321, 8_765, 0o6755));
    } else {
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (geteuid(), getegid(), 0o755));
    }
    let dir = DirFd::open(temp.path()).unwrap();
    assert_eq!(xattr::get(xattr::Subject::At(&dir, b"f"), b"user.u").unwrap(), b"v");
    let report = fake.get_with(&["/f"], Target::Below(temp.path().into()), Extra::Keep, &mut |_| Decision::Yes);
    // An ordinary user's copy lacks setuid and so is not what the version has.
    assert_eq!(report.unchanged, u64::from(geteuid() == 0));
}

#[test]
fn a_default_acl_of_the_target_leaves_no_trace() {
    let mut fake = Fake::new();
    let dir = fake.add_dir(Dirno::ROOT, b"d", 0o755);
    fake.add_file(dir, b"f", b"x", |_| {});
    let temp = tempfile::tempdir().unwrap();
    let acl = [
        &[2u8, 0, 0, 0][..],
        &[1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 210, 4, 0, 0],
        &[4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255],
    ]
    .concat();
    let top = DirFd::open(temp.path()).unwrap();
    use std::os::fd::AsFd;
    xattr::set(xattr::Subject::Fd(top.as_fd()), b"system.posix_acl_default", &acl).unwrap();
    let report = fake.get(&["/d"], temp.path());
    assert_eq!(report.exit(), Exit::Ok, "{:?}", report.errors);
    let dir = top.open_dir(b"d").unwrap();
    assert_eq!(crate::live::xattrs_of_fd(&dir).unwrap(), Xattrs::new());
    assert_eq!(crate::live::xattrs(xattr::Subject::At(&dir, b"f")).unwrap(), Xattrs::new());
    assert_eq!(dir.stat_at(b"f").unwrap().perm, 0o640);
}

#[test]
fn a_missing_hash_is_not_taken_for_a_match() {
    let mut fake = Fake::new();
    fake.add_file(Dirno::ROOT, b"f", b"x", |node| node.sha1 = None);
    fake.add_file(Dirno::ROOT, b"g", b"x", |node| node.sha1 = Some(FileHash([0; 20])));
    let temp = tempfile::tempdir().unwrap();
    assert_eq!(fake.get(&["/"], temp.path()).damaged_count, 2);
}
