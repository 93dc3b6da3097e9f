//! What is being written and its temporary name; what the progress says meanwhile.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::fake::{BLOCK, Fake};
use super::{content, names};
use crate::catalog::Kind;
use crate::error::Exit;
use crate::ids::Dirno;
use crate::monitor::{Event, Monitor, Progress, Silent};
use crate::os::process::geteuid;
use crate::os::{DirFd, lock, temp};
use crate::restore::engine::Restore;
use crate::restore::{Decision, Extra, Options, Question, Report, Spare, Target, Totals, leftovers};

fn options(target: &Path) -> Options {
    Options {
        paths: vec![b"/".to_vec()],
        target: Target::Below(target.into()),
        extra: Extra::Keep,
        spare: Spare::default(),
    }
}

/// As on a file system where each file needs a name to be written.
fn get_with_names(fake: &Fake, target: &Path) -> Report {
    let options = options(target);
    let mut yes = |_: Question<'_>| Decision::All;
    let mut restore = Restore::new(fake, &options, &Silent, &mut yes).unwrap();
    restore.can_name_later = false;
    restore.run(&options.paths).unwrap()
}

#[test]
fn where_no_file_can_be_without_a_name_all_is_the_same() {
    let mut fake = Fake::new();
    let text = content(BLOCK * 3, 1);
    for name in [&b"a"[..], b"b", b"bad"] {
        fake.add_file(Dirno::ROOT, name, &text, |_| {});
    }
    fake.flip(crate::ids::Logid(18), 1);
    let target = tempfile::tempdir().unwrap();
    std::fs::write(target.path().join("a"), "another").unwrap();
    let report = get_with_names(&fake, target.path());
    assert_eq!((report.exit(), report.files, report.damaged_count), (Exit::Damage, 2, 1), "{:?}", report.errors);
    assert_eq!(names(target.path()), [&b"a"[..], b"b", b"bad.damaged"]);
    assert!(std::fs::read(target.path().join("a")).unwrap() == text);
}

#[test]
fn only_what_nobody_works_on_is_swept() {
    let target = tempfile::tempdir().unwrap();
    let dir = DirFd::open(target.path()).unwrap();
    let (held, left, link) = (temp::name(1), temp::name(2), temp::name(3));
    let file = dir.create_file(&held, 0o600).unwrap();
    assert!(lock::try_exclusive(&file).unwrap());
    dir.create_file(&left, 0o000).unwrap();
    dir.symlink_at(b"nowhere", &link).unwrap();
    dir.mkdir_at(&temp::name(4), 0o700).unwrap();
    dir.create_file(b".assay-tmp-00112233445566778899aabbccddeeff", 0o600).unwrap();
    dir.mknod_at(&temp::name(5), Kind::Fifo, 0o600, 0, 0).unwrap();
    leftovers::sweep(&dir);
    let mut expected = vec![held.clone(), temp::name(4), b".assay-tmp-00112233445566778899aabbccddeeff".to_vec()];
    expected.sort();
    assert_eq!(names(target.path()), expected);
    drop(file);
    leftovers::sweep(&dir);
    assert!(!names(target.path()).contains(&held));
}

/// Keeps the last progress, and asks for totals.
#[derive(Default)]
struct Watching(Mutex<Progress>);

impl Monitor for Watching {
    fn progress(&self, progress: Progress) {
        let mut last = self.0.lock().unwrap();
        assert!(progress.bytes >= last.bytes && progress.files >= last.files, "{progress:?} after {last:?}");
        *last = progress;
    }
    fn event(&self, _: Event<'_>) {}
    fn wants_totals(&self) -> bool {
        true
    }
}

#[test]
fn progress_ends_at_the_totals_whatever_becomes_of_the_files() {
    let mut fake = Fake::new();
    let dir = fake.add_dir(Dirno::ROOT, b"d", 0o755);
    let text = content(BLOCK * 2, 1);
    fake.add_file(dir, b"new", &text, |_| {});
    fake.add_file(dir, b"there", &text, |_| {});
    fake.add_file(dir, b"bad", &text, |_| {});
    fake.add_file(dir, b"hole", &vec![0; BLOCK * 40], |_| {});
    fake.flip(crate::ids::Logid(18), 1);
    let target = tempfile::tempdir().unwrap();
    fake.get(&["/d/there"], &target.path().join("d"));
    let watching = Watching::default();
    let report = crate::restore::run(&fake, &options(target.path()), &watching, &mut |_| Decision::All).unwrap();
    let bytes = 46 * BLOCK as u64;
    assert_eq!(report.expected, Some(Totals { entries: 6, files: 4, bytes }));
    let last = *watching.0.lock().unwrap();
    assert_eq!((last.files, last.bytes, last.expected_files, last.expected_bytes), (4, bytes, 4, bytes));
}

/// Looks at a directory whenever an entry is begun.
struct Looking(PathBuf, Mutex<Vec<(u32, u32)>>);

impl Monitor for Looking {
    fn progress(&self, _: Progress) {}
    fn event(&self, event: Event<'_>) {
        if let Event::Path(_) = event {
            let stat = std::fs::metadata(&self.0).unwrap();
            self.1.lock().unwrap().push((stat.mode() & 0o7777, stat.uid()));
        }
    }
}

#[test]
fn rights_that_were_not_saved_are_gone_before_a_directory_is_filled() {
    let mut fake = Fake::new();
    let dir = fake.add_dir(Dirno::ROOT, b"d", 0o2750);
    fake.add_file(dir, b"f", b"secret", |_| {});
    let target = tempfile::tempdir().unwrap();
    let place = target.path().join("d");
    std::fs::create_dir(&place).unwrap();
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o777)).unwrap();
    if geteuid() == 0 {
        chown(&place, Some(4321), Some(4321)).unwrap();
    }
    let looking = Looking(place.clone(), Mutex::default());
    let options = Options { paths: vec![b"/d".to_vec()], ..options(target.path()) };
    crate::restore::run(&fake, &options, &looking, &mut |_| Decision::All).unwrap();
    let owner = fake.dirs[&dir].0.attr.uid;
    assert_eq!(*looking.1.lock().unwrap(), [(0o750, owner)]);
    assert_eq!(std::fs::metadata(&place).unwrap().mode() & 0o7777, 0o2750);
}
