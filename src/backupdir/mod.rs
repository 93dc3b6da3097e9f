//! A backup dir on disk: making one, opening one, locking it, and its arc files.
//!
//! Invariants: key.conf appears last and whole when a backup dir is made, so a directory without it is no backup
//! dir yet; only the holder of `Lock` writes anything but the ledger and the cache; readers take no lock.

pub mod arcs;
pub mod config;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::crypto::keyfile::{self, KeyFileError};
use crate::crypto::{Keys, MasterKey};
use crate::error::{Error, Result};
use crate::ids::{BackupId, Version};
use crate::index::{Index, IndexWriter};

pub use config::Config;

const KEY_FILE: &str = "key.conf";
const KEY_FILE_NEW: &str = "key.conf.new";
const CONFIG_FILE: &str = "config.toml";
const DEST_FILE: &str = "dest.toml";
const EXCLUDE_FILE: &str = "inex.conf";
const INDEX_FILE: &str = "index.db";
const LOCK_FILE: &str = "lock";

/// All that `init` may find: what the user has prepared, and what an `init` that was cut has left.
const BEFORE_INIT: &[&str] = &[
    KEY_FILE_NEW,
    CONFIG_FILE,
    DEST_FILE,
    EXCLUDE_FILE,
    INDEX_FILE,
    "index.db-wal",
    "index.db-shm",
    "index.db-journal",
    LOCK_FILE,
];

const DEST_TEXT: &str = "# Destinations: none yet.\n";
const EXCLUDE_TEXT: &str = "# Exclude patterns, one a line, as in .gitignore, matched against absolute paths.\n\
                            # Example: *.tmp\n";

/// Asks for a passphrase when the key file needs one.
pub type AskPassphrase<'a> = &'a dyn Fn(&Path) -> Option<Zeroizing<String>>;

/// An open backup dir.
pub struct BackupDir {
    path: PathBuf,
    keys: Arc<Keys>,
    config: Config,
}

impl BackupDir {
    /// Makes a backup dir in an absent or empty directory.
    ///
    /// Settings and patterns that are there already stay, and so does a symlink `index.db`: the index is made where it
    /// leads to.
    ///
    /// # Errors
    /// `NOT_EMPTY` when there is anything else in it but what a cut `init` leaves; `CONFIG` when the settings that
    /// are there make no sense, or are not those asked for.
    pub fn init(path: &Path, passphrase: Option<&str>, config: &Config) -> Result<()> {
        match DirBuilder::new().mode(0o700).recursive(false).create(path) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("create directory", path, &e)),
        }
        check_empty(path)?;
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(path, private).map_err(|e| Error::io("chmod", path, &e))?;
        let lock = Lock::take(path)?;
        // Another init may have been faster.
        check_empty(path)?;
        let index = Index::target(&path.join(INDEX_FILE))?;
        let kept = kept_settings(path, config)?;
        clear_cut_init(path, &index)?;
        let random_failed = |e: std::io::Error| Error::io("get random bytes for", path, &e);
        let master: MasterKey = Zeroizing::new(crate::crypto::random().map_err(random_failed)?);
        let backup_id = BackupId(crate::crypto::random().map_err(random_failed)?);
        let keys = Keys::new(&master, backup_id);
        let key_text = keyfile::encode(&master, backup_id, passphrase)
            .map_err(|e| key_error(e, &path.join(KEY_FILE)))
            .map(Zeroizing::new)?;
        let texts =
            [(CONFIG_FILE, config.to_text()), (DEST_FILE, DEST_TEXT.into()), (EXCLUDE_FILE, EXCLUDE_TEXT.into())];
        for (name, text) in texts.iter().filter(|(name, _)| !kept.contains(name)) {
            write_file(&path.join(name), 0o600, text.as_bytes())?;
        }
        // From here on an index that is there is one that a cut init has left.
        write_file(&path.join(KEY_FILE_NEW), 0o400, key_text.as_bytes())?;
        sync_dir(path)?;
        Index::create(&index, &keys.index_key())?;
        if let Some(dir) = index.parent() {
            sync_dir(dir)?;
        }
        rename(&path.join(KEY_FILE_NEW), &path.join(KEY_FILE))?;
        sync_dir(path)?;
        if let Some(parent) = std::path::absolute(path).ok().as_deref().and_then(Path::parent) {
            sync_dir(parent)?;
        }
        drop(lock);
        Ok(())
    }

    /// Opens a backup dir: reads its key and settings, nothing else.
    pub fn open(path: &Path, ask: AskPassphrase<'_>) -> Result<BackupDir> {
        let key_path = path.join(KEY_FILE);
        let text = match fs::read(&key_path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(match arcs::list(path) {
                    Ok(list) if !list.is_empty() => Error::KeyDamaged { path: key_path, what: "it is missing" },
                    _ => Error::NotABackupDir { path: path.into() },
                });
            }
            Err(e) => return Err(Error::io("read", key_path, &e)),
        };
        let text = std::str::from_utf8(&text)
            .map_err(|_| Error::KeyDamaged { path: key_path.clone(), what: "it is not text" })?;
        let (master, backup_id) = keyfile::decode(text, || ask(&key_path)).map_err(|e| key_error(e, &key_path))?;
        let config = read_config(path)?;
        let path = fs::canonicalize(path).map_err(|e| Error::io("find", path, &e))?;
        Ok(BackupDir { path, keys: Arc::new(Keys::new(&master, backup_id)), config })
    }

    /// The same backup dir, its files under another path: for overlays.
    pub fn elsewhere(&self, path: &Path) -> BackupDir {
        BackupDir { path: path.to_path_buf(), keys: self.keys.clone(), config: self.config.clone() }
    }

    /// Absolute path without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn key_path(&self) -> PathBuf {
        self.path.join(KEY_FILE)
    }

    pub fn index_path(&self) -> PathBuf {
        self.path.join(INDEX_FILE)
    }

    /// inex.conf: exclude patterns, one a line.
    pub fn excludes_path(&self) -> PathBuf {
        self.path.join(EXCLUDE_FILE)
    }

    /// Opens the index for reading.
    ///
    /// # Errors
    /// `KEY_WRONG` only if no arc header opens with this key either; else `INDEX_DAMAGED`.
    pub fn open_index(&self) -> Result<Index> {
        Index::open(&self.existing_index()?, &self.keys.index_key()).map_err(|e| self.key_or_index(e))
    }

    /// Opens the index for writing; only the holder of the lock may. Errors as `open_index`.
    pub fn open_index_writer(&self, _: &Lock) -> Result<IndexWriter> {
        IndexWriter::open(&self.existing_index()?, &self.keys.index_key()).map_err(|e| self.key_or_index(e))
    }

    fn existing_index(&self) -> Result<PathBuf> {
        let path = self.index_path();
        match path.try_exists() {
            Ok(false) => Err(Error::IndexDamaged { path, what: "it is missing".into() }),
            _ => Ok(path),
        }
    }

    /// Runs whose commit arc is there but that the index does not know, because a backup was cut just before it told
    /// the index, or because the index is an older copy; a recovery that gave them up does not count them.
    pub fn unknown_commits(&self, index: &Index) -> Result<Vec<Version>> {
        let state = index.state()?;
        let unknown = |run: &arcs::Run| {
            run.committed
                && run.version >= state.settled_below
                && state.last_commit.is_none_or(|(last, _)| run.version > last)
        };
        Ok(arcs::runs(&self.path)?.into_iter().filter(unknown).map(|run| run.version).collect())
    }

    /// A key that opens an arc is right, whatever the index says; one that opens none of several is wrong.
    fn key_or_index(&self, error: Error) -> Error {
        if !matches!(error, Error::KeyWrong { .. } | Error::IndexDamaged { .. }) {
            return error;
        }
        match (arcs::key_opens_an_arc(&self.path, &self.keys), error) {
            (Some(false), _) => Error::KeyWrong { path: self.key_path() },
            (Some(true) | None, Error::KeyWrong { .. }) => Error::IndexDamaged {
                path: self.index_path(),
                what: "it does not open with the key of this backup dir".into(),
            },
            (Some(true) | None, own_reason) => own_reason,
        }
    }

    /// Becomes the one writer.
    ///
    /// # Errors
    /// `LOCKED` at once when another process is.
    pub fn lock(&self) -> Result<Lock> {
        Lock::take(&self.path)
    }
}

/// The right to write, held until dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl Lock {
    fn take(dir: &Path) -> Result<Lock> {
        let path = dir.join(LOCK_FILE);
        let failed = |op| {
            let path = path.clone();
            move |e: std::io::Error| Error::io(op, path, &e)
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.take(20).read_to_string(&mut holder);
                return Err(Error::Locked { path: dir.into(), holder: holder.trim().to_string() });
            }
            Err(fs::TryLockError::Error(e)) => return Err(failed("lock")(e)),
        }
        // Who holds it is for messages only: an error here must not stop a backup.
        let _ = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        Ok(Lock(file))
    }
}

/// Nothing but what the user may prepare and what a cut `init` leaves.
fn check_empty(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(|e| Error::io("list", path, &e))? {
        let entry = entry.map_err(|e| Error::io("list", path, &e))?;
        if !BEFORE_INIT.iter().any(|name| entry.file_name() == *name) {
            return Err(Error::NotEmpty { path: path.into() });
        }
    }
    Ok(())
}

/// Files of settings that are there and have something in them.
fn kept_settings(path: &Path, wanted: &Config) -> Result<Vec<&'static str>> {
    let mut kept = Vec::new();
    for name in [CONFIG_FILE, DEST_FILE, EXCLUDE_FILE] {
        let file = path.join(name);
        match fs::metadata(&file) {
            Ok(meta) if meta.len() > 0 => kept.push(name),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("find", file, &e)),
        }
    }
    if kept.contains(&CONFIG_FILE) {
        let found = read_config(path)?;
        if *wanted != Config::default() && *wanted != found {
            let what =
                "it is there already, with other settings than those asked for: delete it, or don't ask for others"
                    .into();
            return Err(Error::Config { path: path.join(CONFIG_FILE), what });
        }
    }
    Ok(kept)
}

/// Removes what a cut `init` has left, its key last: that one tells that the rest is no one's.
fn clear_cut_init(path: &Path, index: &Path) -> Result<()> {
    let key = path.join(KEY_FILE_NEW);
    let in_use = fs::metadata(index).is_ok_and(|meta| meta.len() > 0);
    if in_use && !key.exists() {
        return Err(Error::NotEmpty { path: index.into() });
    }
    for suffix in ["-wal", "-shm", "-journal", ""] {
        let mut name = index.as_os_str().to_owned();
        name.push(suffix);
        remove_if_there(Path::new(&name))?;
    }
    for name in [CONFIG_FILE, DEST_FILE, EXCLUDE_FILE] {
        if fs::symlink_metadata(path.join(name)).is_ok_and(|meta| meta.len() == 0) {
            remove_if_there(&path.join(name))?;
        }
    }
    remove_if_there(&key)
}

fn read_config(path: &Path) -> Result<Config> {
    let path = path.join(CONFIG_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Config::parse(&text).map_err(|what| Error::Config { path, what }),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Config::default()),
        Err(e) if e.kind() == ErrorKind::InvalidData => Err(Error::Config { path, what: "it is not text".into() }),
        Err(e) => Err(Error::io("read", path, &e)),
    }
}

fn key_error(error: KeyFileError, path: &Path) -> Error {
    let path = path.to_path_buf();
    match error {
        KeyFileError::Damaged(what) => Error::KeyDamaged { path, what },
        KeyFileError::NeedsPassphrase => Error::PassphraseMissing { path },
        KeyFileError::WrongPassphrase => Error::PassphraseWrong { path },
        KeyFileError::Unusable(what) => Error::Unsupported { path, what: what.into() },
    }
}

/// Writes a new file durably (its name becomes durable with `sync_dir`).
fn write_file(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|e| Error::io("create", path, &e))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| Error::io("write", path, &e))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("rename", from, &e))
}

/// Removes a file; one that is not there is fine.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| Error::io("fsync", path, &e))
}
