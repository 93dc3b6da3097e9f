//! A backup dir on disk: making one, opening one, locking it, and its arc files.
//!
//! Invariants: key.conf appears last and whole when a backup dir is made, so a directory without it is no backup
//! dir yet; only the holder of `Lock` writes anything but the ledger and the cache; readers take no lock. All files are
//! opened in one open directory by one name (`OwnDir`), but for the index, which SQLite opens by path.

pub mod arcs;
pub mod config;
mod locks;
mod losses;
#[cfg(test)]
mod tests;
mod unlisted;

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::catalog::Kind;
use crate::crypto::keyfile::{self, KeyFileError};
use crate::crypto::{Keys, MasterKey};
use crate::depot::{self, Depot, Local};
use crate::error::{Error, Foreign, Result};
use crate::ids::BackupId;
use crate::index::{Commits, Index, IndexWriter};
use crate::os::stat;
use crate::own::{OwnDir, Sharing};

pub use config::Config;
pub use locks::{COPIES_DIR, Lock, MendLock};
pub use losses::Accepted;
pub use unlisted::{Claim, Survey, Unlisted, What, unknown_commits};

use locks::LOCK_FILE;

const KEY_FILE: &str = "key.conf";
const KEY_FILE_NEW: &str = "key.conf.new";
const CONFIG_FILE: &str = "config.toml";
const DEST_FILE: &str = "dest.toml";
const EXCLUDE_FILE: &str = "inex.conf";
const INDEX_FILE: &str = "index.db";
/// What SQLite keeps beside an index.
const BESIDE_INDEX: [&str; 3] = ["-wal", "-shm", "-journal"];
/// A key file has some 500 bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;
const MAX_CONFIG_BYTES: u64 = 1 << 20;

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
#[derive(Clone)]
pub struct BackupDir {
    own: Arc<OwnDir>,
    arcs: Arc<dyn Depot>,
    sharing: Sharing,
    keys: Arc<Keys>,
    config: Config,
    lock_of_key: LockOfKey,
    /// The permission bits of key.conf, where others can read it.
    key_is_readable: Option<u16>,
}

/// What stands between key.conf and the key in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockOfKey {
    Nothing,
    Passphrase,
}

impl BackupDir {
    /// Makes a backup dir in an absent or empty directory.
    ///
    /// Settings and patterns that are there already stay, and so does a symlink `index.db`: the index is made where it
    /// leads to.
    ///
    /// # Errors
    /// `NOT_EMPTY` when there is anything else in it but what a cut `init` leaves; `CONFIG` when the settings that
    /// are there make no sense, or are not those asked for; `DIR_SHARED` in another user's directory.
    pub fn init(path: &Path, passphrase: Option<&str>, config: &Config) -> Result<()> {
        BackupDir::init_as(path, passphrase, config, Sharing::Refused)
    }

    /// As `init`, perhaps where others can write.
    pub fn init_as(path: &Path, passphrase: Option<&str>, config: &Config, sharing: Sharing) -> Result<()> {
        match DirBuilder::new().mode(0o700).recursive(false).create(path) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("create directory", path, &e)),
        }
        check_empty(path)?;
        let private = fs::Permissions::from_mode(0o700);
        match fs::set_permissions(path, private) {
            Err(e) if sharing == Sharing::Refused => return Err(Error::io("chmod", path, &e)),
            _ => {}
        }
        let own = OwnDir::open(path, sharing)?;
        let lock = Lock::writer(&own)?;
        // Another init may have been faster.
        check_empty(path)?;
        own.check_link(INDEX_FILE)?;
        let index = Index::target(&own.path_of(INDEX_FILE))?;
        let index_dir = OwnDir::open(index.parent().unwrap_or(path), sharing)?;
        index_dir.check_writable()?;
        let kept = kept_settings(&own, config)?;
        clear_cut_init(&own, &index)?;
        let random_failed = |e: std::io::Error| Error::io("get random bytes for", path, &e);
        let master: MasterKey = Zeroizing::new(crate::crypto::random().map_err(random_failed)?);
        let backup_id = BackupId(crate::crypto::random().map_err(random_failed)?);
        let keys = Keys::new(&master, backup_id);
        let key_text = keyfile::encode(&master, backup_id, passphrase)
            .map_err(|e| key_error(e, &own.path_of(KEY_FILE)))
            .map(Zeroizing::new)?;
        let texts =
            [(CONFIG_FILE, config.to_text()), (DEST_FILE, DEST_TEXT.into()), (EXCLUDE_FILE, EXCLUDE_TEXT.into())];
        for (name, text) in texts.iter().filter(|(name, _)| !kept.contains(name)) {
            write_file(&own, name, 0o600, text.as_bytes())?;
        }
        // From here on an index that is there is one that a cut init has left.
        write_file(&own, KEY_FILE_NEW, 0o400, key_text.as_bytes())?;
        own.sync()?;
        Index::create(&index, &keys.index_key())?;
        index_dir.sync()?;
        own.rename(KEY_FILE_NEW, KEY_FILE)?;
        own.sync()?;
        if let Some(parent) = std::path::absolute(path).ok().as_deref().and_then(Path::parent) {
            sync_dir(parent)?;
        }
        drop(lock);
        Ok(())
    }

    /// Opens a backup dir: reads its key and settings, nothing else.
    ///
    /// # Errors
    /// `NOT_A_BACKUP_DIR`, `KEY_…`, `PASSPHRASE_…`, `CONFIG`; `DIR_SHARED` where others can write, and `FILE_FOREIGN`
    /// for a file of another user's, or a symlink that leads to one.
    pub fn open(path: &Path, ask: AskPassphrase<'_>) -> Result<BackupDir> {
        BackupDir::open_as(path, ask, Sharing::Refused)
    }

    /// As `open`, perhaps where others can write.
    pub fn open_as(path: &Path, ask: AskPassphrase<'_>, sharing: Sharing) -> Result<BackupDir> {
        let missing = |e: &std::io::Error| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
        let path = match fs::canonicalize(path) {
            Ok(path) if path.is_dir() => path,
            Err(e) if !missing(&e) => return Err(Error::io("find", path, &e)),
            _ => return Err(Error::NotABackupDir { path: path.into() }),
        };
        let own = match OwnDir::open(&path, sharing) {
            // Whose directory it is matters only if it is a backup dir.
            Err(Error::DirShared { .. }) if !looks_like_one(&path) => return Err(Error::NotABackupDir { path }),
            opened => opened?,
        };
        let key_path = own.path_of(KEY_FILE);
        let Some(file) = own.prepared(KEY_FILE)? else {
            return Err(match depot::list(&own) {
                Ok(list) if !list.is_empty() => Error::KeyDamaged { path: key_path, what: "it is missing" },
                _ => Error::NotABackupDir { path },
            });
        };
        let found = stat::of_fd(&file).map_err(|e| Error::io("stat", &key_path, &e))?;
        let text = match read_bounded(&file, MAX_KEY_BYTES).map_err(|e| Error::io("read", &key_path, &e))? {
            Some(bytes) => Zeroizing::new(bytes),
            None => return Err(Error::KeyDamaged { path: key_path, what: "it is too long" }),
        };
        let text = std::str::from_utf8(&text)
            .map_err(|_| Error::KeyDamaged { path: key_path.clone(), what: "it is not text" })?;
        let asked = std::cell::Cell::new(LockOfKey::Nothing);
        let passphrase = || {
            asked.set(LockOfKey::Passphrase);
            ask(&key_path)
        };
        let (master, backup_id) = keyfile::decode(text, passphrase).map_err(|e| key_error(e, &key_path))?;
        let config = read_config(&own)?;
        let own = Arc::new(own);
        Ok(BackupDir {
            arcs: Arc::new(Local::new(&own)),
            own,
            sharing,
            keys: Arc::new(Keys::new(&master, backup_id)),
            config,
            lock_of_key: asked.get(),
            key_is_readable: Some(found.perm).filter(|perm| perm & 0o044 != 0),
        })
    }

    /// The same backup dir, its files under another path: a private directory of links that this process has made.
    pub fn elsewhere(&self, links: &Path) -> Result<BackupDir> {
        let own = Arc::new(OwnDir::of_links(links)?);
        Ok(BackupDir { arcs: Arc::new(Local::new(&own)), own, key_is_readable: None, ..self.clone() })
    }

    /// The same backup, with the same arcs; index, notes and lock are in another directory of ours, made if need be.
    ///
    /// # Errors
    /// `DIR_SHARED` where others can write; `IO`.
    pub fn mirrored(&self, path: &Path) -> Result<BackupDir> {
        let made = DirBuilder::new().mode(0o700).recursive(true).create(path);
        made.map_err(|e| Error::io("create directory", path, &e))?;
        let path = fs::canonicalize(path).map_err(|e| Error::io("find", path, &e))?;
        Ok(BackupDir { own: Arc::new(OwnDir::open(&path, self.sharing)?), key_is_readable: None, ..self.clone() })
    }

    pub fn has_index(&self) -> bool {
        self.index_path().try_exists().unwrap_or(true)
    }

    /// The directory itself: everything in it is opened through this.
    pub fn own(&self) -> &Arc<OwnDir> {
        &self.own
    }

    /// The arcs in it.
    pub fn arcs(&self) -> &dyn Depot {
        self.arcs.as_ref()
    }

    /// As `arcs`, to keep.
    pub fn home(&self) -> Arc<dyn Depot> {
        self.arcs.clone()
    }

    /// The same backup dir, its arcs read through something else.
    pub fn seen_through(mut self, wrap: impl FnOnce(Arc<dyn Depot>) -> Arc<dyn Depot>) -> BackupDir {
        self.arcs = wrap(self.arcs);
        self
    }

    /// The same backup dir, with the arcs that are in it.
    pub fn seen_locally(self) -> BackupDir {
        BackupDir { arcs: Arc::new(Local::new(&self.own)), ..self }
    }

    /// Absolute path without symlinks.
    pub fn path(&self) -> &Path {
        self.own.path()
    }

    pub fn lock_of_key(&self) -> LockOfKey {
        self.lock_of_key
    }

    /// The permission bits of key.conf, where others can read it.
    pub fn key_is_readable(&self) -> Option<u16> {
        self.key_is_readable
    }

    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn key_path(&self) -> PathBuf {
        self.own.path_of(KEY_FILE)
    }

    pub fn index_path(&self) -> PathBuf {
        self.own.path_of(INDEX_FILE)
    }

    /// inex.conf: exclude patterns, one a line.
    pub fn excludes_path(&self) -> PathBuf {
        self.own.path_of(EXCLUDE_FILE)
    }

    /// What is in inex.conf; nothing where there is none.
    ///
    /// # Errors
    /// `FILE_FOREIGN` when others could have written it; `IO`.
    pub fn excludes(&self) -> Result<Vec<u8>> {
        read_prepared(&self.own, EXCLUDE_FILE)
    }

    /// dest.toml, and what is in it; nothing where there is none.
    ///
    /// # Errors
    /// `FILE_FOREIGN` when others could have written it; `IO`; `CONFIG` when it is no text.
    pub fn destinations(&self) -> Result<(PathBuf, String)> {
        let path = self.own.path_of(DEST_FILE);
        match String::from_utf8(read_prepared(&self.own, DEST_FILE)?) {
            Ok(text) => Ok((path, text)),
            Err(_) => Err(Error::Config { path, what: "it is not text".into() }),
        }
    }

    /// Opens the index for reading. Nothing is written beside an index that is not ours alone.
    ///
    /// # Errors
    /// `KEY_WRONG` only if no arc header opens with this key either; else `INDEX_DAMAGED`; `DIR_SHARED`.
    pub fn open_index(&self) -> Result<Index> {
        let (path, writable) = (self.existing_index()?, self.check_index());
        let key = self.keys.index_key();
        let opened = match writable {
            Ok(()) => Index::open(&path, &key),
            Err(Error::DirShared { .. } | Error::FileForeign { .. }) => Index::open_read_only(&path, &key),
            Err(error) => return Err(error),
        };
        opened.map_err(|e| self.key_or_index(e))
    }

    /// The index, where `open_index` is an error.
    pub fn unopened_index(&self) -> Index {
        Index::unopened(&self.index_path(), &self.keys.index_key(), self.check_index().is_ok())
    }

    /// The commits of this history: those that the index knows or, where it can't tell, those that can be read.
    pub fn commits(&self, index: &Index) -> Result<Commits> {
        match index.commits() {
            Err(error) if error.is_damage() || matches!(error, Error::IndexIo { .. }) => {
                arcs::commits(self.arcs(), &self.keys)
            }
            told => told,
        }
    }

    /// Opens the index for writing; only the holder of the lock may. Errors as `open_index`.
    pub fn open_index_writer(&self, _: &Lock) -> Result<IndexWriter> {
        let path = self.existing_index()?;
        self.check_index()?;
        IndexWriter::open(&path, &self.keys.index_key()).map_err(|e| self.key_or_index(e))
    }

    fn existing_index(&self) -> Result<PathBuf> {
        let path = self.index_path();
        match path.try_exists() {
            Ok(false) => Err(Error::IndexDamaged { path, what: "it is missing".into() }),
            _ => Ok(path),
        }
    }

    /// The directory in which the index is, or is to be made: another one where index.db is a symlink.
    ///
    /// # Errors
    /// `FILE_FOREIGN` for a symlink that somebody else has made; `DIR_SHARED` where others can write.
    pub fn index_dir(&self) -> Result<(OwnDir, PathBuf)> {
        self.own.check_link(INDEX_FILE)?;
        let target = Index::target(&self.index_path())?;
        let dir = OwnDir::open(target.parent().unwrap_or(self.path()), self.sharing)?;
        Ok((dir, target))
    }

    /// Where a new index is to be put in the place of the old one.
    ///
    /// # Errors
    /// As `index_dir`; `FILE_FOREIGN` when a symlink leads to a file that is no index of this backup dir.
    pub fn index_to_replace(&self) -> Result<PathBuf> {
        let (dir, target) = self.index_dir()?;
        dir.check_writable()?;
        let linked = self.own.stat(INDEX_FILE)?.is_some_and(|found| found.kind == Kind::Symlink);
        let used = fs::metadata(&target).is_ok_and(|meta| meta.len() > 0);
        if linked && used && !Index::is_of(&target, &self.keys.index_key()) {
            return Err(Error::FileForeign { path: target, why: Foreign::NoIndex });
        }
        Ok(target)
    }

    /// Whether SQLite may open the index by path and write to it and to what it keeps beside it.
    fn check_index(&self) -> Result<()> {
        let (dir, target) = self.index_dir()?;
        dir.check_writable()?;
        let name = target.file_name().unwrap_or(INDEX_FILE.as_ref());
        dir.check_before_writing(name)?;
        BESIDE_INDEX.iter().try_for_each(|suffix| {
            let mut name = name.to_owned();
            name.push(suffix);
            dir.check_before_writing(name)
        })
    }

    /// A key that opens an arc is right, whatever the index says; one that opens none of several is wrong.
    fn key_or_index(&self, error: Error) -> Error {
        if !matches!(error, Error::KeyWrong { .. } | Error::IndexDamaged { .. }) {
            return error;
        }
        match (arcs::key_opens_an_arc(self.arcs(), &self.keys), error) {
            (Some(false), _) => Error::KeyWrong { path: self.key_path() },
            (Some(true) | None, Error::KeyWrong { .. }) => Error::IndexDamaged {
                path: self.index_path(),
                what: "it does not open with the key of this backup dir".into(),
            },
            (Some(true) | None, own_reason) => own_reason,
        }
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

/// There is a key, or an arc.
fn looks_like_one(path: &Path) -> bool {
    let known = |own: &OwnDir| {
        own.stat(KEY_FILE).is_ok_and(|key| key.is_some()) || depot::list(own).is_ok_and(|list| !list.is_empty())
    };
    OwnDir::open(path, Sharing::Allowed).is_ok_and(|own| known(&own))
}

/// Files of settings that are there and have something in them.
fn kept_settings(own: &OwnDir, wanted: &Config) -> Result<Vec<&'static str>> {
    let mut kept = Vec::new();
    for name in [CONFIG_FILE, DEST_FILE, EXCLUDE_FILE] {
        if let Some(file) = own.prepared(name)? {
            let found = stat::of_fd(&file).map_err(|e| Error::io("stat", own.path_of(name), &e))?;
            kept.extend((found.size > 0).then_some(name));
        }
    }
    if kept.contains(&CONFIG_FILE) {
        let found = read_config(own)?;
        if *wanted != Config::default() && *wanted != found {
            let what =
                "it is there already, with other settings than those asked for: delete it, or don't ask for others"
                    .into();
            return Err(Error::Config { path: own.path_of(CONFIG_FILE), what });
        }
    }
    Ok(kept)
}

/// Removes what a cut `init` has left, its key last: that one tells that the rest is no one's.
fn clear_cut_init(own: &OwnDir, index: &Path) -> Result<()> {
    let in_use = fs::metadata(index).is_ok_and(|meta| meta.len() > 0);
    if in_use && own.stat(KEY_FILE_NEW)?.is_none() {
        return Err(Error::NotEmpty { path: index.into() });
    }
    for suffix in BESIDE_INDEX.iter().chain(&[""]) {
        let mut name = index.as_os_str().to_owned();
        name.push(suffix);
        remove_if_there(Path::new(&name))?;
    }
    for name in [CONFIG_FILE, DEST_FILE, EXCLUDE_FILE] {
        if own.stat(name)?.is_some_and(|found| found.size == 0) {
            own.remove_if_there(name)?;
        }
    }
    own.remove_if_there(KEY_FILE_NEW)
}

/// What is in a file that the user may have prepared; nothing where there is none.
fn read_prepared(own: &OwnDir, name: &str) -> Result<Vec<u8>> {
    let Some(file) = own.prepared(name)? else { return Ok(Vec::new()) };
    let path = own.path_of(name);
    match read_bounded(&file, MAX_CONFIG_BYTES).map_err(|e| Error::io("read", &path, &e))? {
        Some(bytes) => Ok(bytes),
        None => Err(Error::FileForeign { path, why: Foreign::TooLong }),
    }
}

/// None when there is more.
fn read_bounded(file: &File, max_bytes: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= max_bytes))
}

fn read_config(own: &OwnDir) -> Result<Config> {
    let bytes = read_prepared(own, CONFIG_FILE)?;
    let text = str::from_utf8(&bytes).map_err(|_| "it is not text".to_string());
    text.and_then(Config::parse).map_err(|what| Error::Config { path: own.path_of(CONFIG_FILE), what })
}

fn key_error(error: KeyFileError, path: &Path) -> Error {
    let path = path.to_path_buf();
    match error {
        KeyFileError::Damaged(what) => Error::KeyDamaged { path, what },
        KeyFileError::OtherFormat(found) => Error::OtherFormat { path, found, known: keyfile::FORMAT },
        KeyFileError::NeedsPassphrase => Error::PassphraseMissing { path },
        KeyFileError::WrongPassphrase => Error::PassphraseWrong { path },
        KeyFileError::Unusable(what) => Error::Unsupported { path, what: what.into() },
    }
}

/// Writes a new file durably (its name becomes durable with `sync`).
fn write_file(own: &OwnDir, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut file = own.create(name, mode)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| Error::io("write", own.path_of(name), &e))
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
