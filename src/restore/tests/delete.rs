//! `--delete`: what goes, and what never does.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::fake::Fake;
use super::names;
use crate::error::{Error, Exit};
use crate::ids::Dirno;
use crate::restore::{Decision, Extra, Report, Spare, Target, Why};

/// A version with `/d/kept`, and a target where `d` holds more.
fn lab() -> (Fake, Dirno, tempfile::TempDir) {
    let mut fake = Fake::new();
    let dir = fake.add_dir(Dirno::ROOT, b"d", 0o755);
    fake.add_file(dir, b"kept", b"kept", |_| {});
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(temp.path().join("d/extra/below")).unwrap();
    std::fs::write(temp.path().join("d/extra/file"), b"x").unwrap();
    (fake, dir, temp)
}

fn delete(fake: &Fake, target: &Path) -> Report {
    fake.get_with(&["/d"], Target::Below(target.into()), Extra::Delete, &mut |_| Decision::All)
}

fn make_backup_dir(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for name in ["key.conf", "index.db", "arc.0.0"] {
        std::fs::write(dir.join(name), name).unwrap();
    }
}

#[test]
fn the_backup_dir_and_what_is_above_it_stay() {
    let (mut fake, _, temp) = lab();
    let dir = temp.path().join("d/extra/below/assay");
    make_backup_dir(&dir);
    fake.spare = Spare::backup_dir(&dir).unwrap();
    let report = delete(&fake, temp.path());
    assert_eq!(report.exit(), Exit::Ok, "{:?}", report.errors);
    assert_eq!(report.spared, [(dir.clone(), Why::BackupDir)]);
    assert_eq!((report.spared_count, report.deleted), (1, 1), "only the file beside it");
    assert_eq!(names(&dir), [b"arc.0.0".to_vec(), b"index.db".to_vec(), b"key.conf".to_vec()]);
    assert!(!temp.path().join("d/extra/file").exists());
}

#[test]
fn the_real_places_of_a_backup_dirs_symlinks_stay() {
    let (mut fake, _, temp) = lab();
    let (dir, real) = (temp.path().join("elsewhere"), temp.path().join("d/extra/below"));
    make_backup_dir(&dir);
    for name in ["key.conf", "index.db", "arc.0.0"] {
        std::fs::rename(dir.join(name), real.join(name)).unwrap();
        symlink(real.join(name), dir.join(name)).unwrap();
    }
    std::fs::write(real.join("other"), b"goes").unwrap();
    fake.spare = Spare::backup_dir(&dir).unwrap();
    // A backup that runs meanwhile makes this, and a restored one beside the newer index would spoil it.
    std::fs::write(real.join("index.db-wal"), b"wal").unwrap();
    let report = delete(&fake, temp.path());
    assert_eq!((report.spared_count, report.exit()), (4, Exit::Ok), "{:?}", report.errors);
    let left: Vec<Vec<u8>> = names(&real);
    assert_eq!(left, [&b"arc.0.0"[..], b"index.db", b"index.db-wal", b"key.conf"]);
    std::fs::remove_file(real.join("index.db-wal")).unwrap();
    fake.add_file(Dirno::ROOT, b"index.db-wal", b"an old one", |_| {});
    let report = fake.get_with(&["/index.db-wal"], Target::Below(real.clone()), Extra::Keep, &mut |_| Decision::All);
    assert!(matches!(&report.errors[..], [(_, Error::Unsupported { .. })]), "{:?}", report.errors);
    assert!(!real.join("index.db-wal").exists());
}

#[test]
fn nothing_of_the_backup_dir_is_replaced_or_written_into() {
    let mut fake = Fake::new();
    let dir = fake.add_dir(Dirno::ROOT, b"assay", 0o700);
    fake.add_file(dir, b"key.conf", b"another key", |_| {});
    fake.add_file(Dirno::ROOT, b"key", b"another key", |_| {});
    fake.add_file(Dirno::ROOT, b"above", b"was a file once", |_| {});
    let temp = tempfile::tempdir().unwrap();
    let repo = temp.path().join("assay");
    make_backup_dir(&repo);
    std::fs::rename(repo.join("key.conf"), temp.path().join("key")).unwrap();
    symlink("../key", repo.join("key.conf")).unwrap();
    fake.spare = Spare::backup_dir(&repo).unwrap();
    let get = |fake: &Fake, paths: &[&str], target: &Path| {
        fake.get_with(paths, Target::Below(target.into()), Extra::Delete, &mut |_| Decision::All)
    };
    let report = get(&fake, &["/assay", "/key"], temp.path());
    assert_eq!((report.error_count, report.files), (2, 0), "{:?}", report.errors);
    assert!(report.errors.iter().all(|(_, error)| matches!(error, Error::Unsupported { .. })), "{:?}", report.errors);
    assert_eq!(std::fs::read(temp.path().join("key")).unwrap(), b"key.conf");
    assert_eq!(std::fs::read(repo.join("index.db")).unwrap(), b"index.db");
    // Below it, at a directory that is not there yet either.
    for inside in ["", "new", "new/../er"] {
        let error = fake.get_fails("/key", &repo.join(inside));
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
    assert_eq!(names(&repo), [b"arc.0.0".to_vec(), b"index.db".to_vec(), b"key.conf".to_vec()]);
    // A directory above it in the place of a file.
    std::fs::create_dir(temp.path().join("above")).unwrap();
    std::fs::rename(&repo, temp.path().join("above/assay")).unwrap();
    let report = get(&fake, &["/above"], temp.path());
    assert!(matches!(&report.errors[..], [(_, Error::Unsupported { .. })]), "{:?}", report.errors);
    assert_eq!(names(&temp.path().join("above/assay")).len(), 3);
}

#[test]
fn what_is_excluded_stays_with_the_directories_above_it() {
    let (mut fake, dir, temp) = lab();
    let cache = fake.add_dir(dir, b"cache", 0o755);
    fake.add_file(cache, b"old", b"saved before it was excluded", |_| {});
    let d = temp.path().join("d");
    std::fs::create_dir(d.join("cache")).unwrap();
    for name in ["cache/new", "top.o", "extra/below/deep.o", "extra/below/deep.c"] {
        std::fs::write(d.join(name), name).unwrap();
    }
    let patterns = ["*.o".to_string(), "/d/cache/".to_string()];
    let excludes = crate::live::Excludes::parse(&temp.path().join("none"), b"", &patterns).unwrap();
    fake.spare = Spare::default().with_excludes(excludes);
    let report = delete(&fake, temp.path());
    assert_eq!(report.exit(), Exit::Ok, "{:?}", report.errors);
    assert_eq!(report.spared.iter().filter(|(_, why)| *why == Why::Excluded).count(), 3, "{:?}", report.spared);
    assert_eq!(report.deleted, 2, "extra/file and deep.c");
    assert_eq!(names(&d), [&b"cache"[..], b"extra", b"kept", b"top.o"]);
    assert_eq!(names(&d.join("cache")), [b"new".to_vec(), b"old".to_vec()]);
    assert_eq!(names(&d.join("extra/below")), [b"deep.o".to_vec()]);
}
