//! Making a backup dir: what is there already, what a cut `init` leaves, an index that lies elsewhere.

use std::os::unix::fs::symlink;

use super::*;

fn init(path: &Path) -> Result<()> {
    BackupDir::init(path, None, &Config::default())
}

fn open(path: &Path) -> BackupDir {
    BackupDir::open(path, &|_| None).unwrap()
}

#[test]
fn settings_that_were_prepared_stay_and_empty_ones_are_leftovers() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at(CONFIG_FILE), "block-size = \"128KiB\"\n").unwrap();
    fs::write(at(EXCLUDE_FILE), "*.o\n").unwrap();
    fs::write(at(DEST_FILE), "").unwrap();
    let other = Config { block_size: 32 << 10, ..Config::default() };
    assert_eq!(BackupDir::init(dir.path(), None, &other).unwrap_err().code(), "CONFIG");
    init(dir.path()).unwrap();
    assert_eq!(open(dir.path()).config().block_size, 128 << 10);
    assert_eq!(fs::read_to_string(at(EXCLUDE_FILE)).unwrap(), "*.o\n");
    assert_eq!(fs::read_to_string(at(DEST_FILE)).unwrap(), DEST_TEXT);

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG_FILE), "block-size = 5\n").unwrap();
    assert_eq!(init(dir.path()).unwrap_err().code(), "CONFIG");
    assert_eq!(fs::read_to_string(dir.path().join(CONFIG_FILE)).unwrap(), "block-size = 5\n");
    assert!(!dir.path().join(KEY_FILE).exists());
}

#[test]
fn of_many_inits_at_once_one_makes_the_key() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let done = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    if init(dir.path()).is_ok() {
                        done.lock().unwrap().push(fs::read(dir.path().join(KEY_FILE)).unwrap());
                    }
                });
            }
        });
        let done = done.into_inner().unwrap();
        assert_eq!(done.len(), 1, "a second one replaced the key of the first");
        assert_eq!(fs::read(dir.path().join(KEY_FILE)).unwrap(), done[0]);
        open(dir.path()).open_index().unwrap();
    }
}

#[test]
fn an_index_that_is_in_use_elsewhere_is_not_taken() {
    let (backup, local) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    init(local.path()).unwrap();
    let before = fs::read(local.path().join(INDEX_FILE)).unwrap();
    symlink(local.path().join(INDEX_FILE), backup.path().join(INDEX_FILE)).unwrap();
    assert_eq!(init(backup.path()).unwrap_err().code(), "NOT_EMPTY");
    assert_eq!(fs::read(local.path().join(INDEX_FILE)).unwrap(), before);
    // But what a cut init has left is.
    fs::remove_file(backup.path().join(INDEX_FILE)).unwrap();
    symlink(local.path().join("new.db"), backup.path().join(INDEX_FILE)).unwrap();
    fs::write(local.path().join("new.db"), "half an index").unwrap();
    fs::write(backup.path().join(KEY_FILE_NEW), "").unwrap();
    init(backup.path()).unwrap();
    open(backup.path()).open_index().unwrap();
}
