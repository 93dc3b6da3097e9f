//! What the connections of a pool are opened on: the index itself, or a private copy, and whether that is still what
//! the path leads to.
//!
//! Invariants: an index whose directory can't be written is read in place only while it has no WAL and its file does
//! not change; a copy is the index and its WAL as they were at one moment, as encrypted as they are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension};

use super::fail::{Fail, open_error};
use super::rows;
use super::schema::{self, Access};
use crate::error::{Error, Result};
use crate::scratch::Scratch;

/// Whether the index is another one by now is looked at no later than this.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a file that changes all the time is looked at again before giving up.
const TRIES: usize = 5;

/// A file as `stat` knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileState {
    file: (u64, u64),
    len_bytes: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl FileState {
    fn of(path: &Path) -> Option<FileState> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(path).ok()?;
        Some(FileState {
            file: (meta.dev(), meta.ino()),
            len_bytes: meta.len(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Of a WAL with content. Root's SQLite sets its owner each time that it opens one, so its ctime says nothing.
    fn of_wal(path: &Path) -> Option<FileState> {
        let state = FileState::of(path).filter(|wal| wal.len_bytes > 0)?;
        Some(FileState { ctime: (0, 0), ..state })
    }
}

/// Index and WAL; an empty WAL counts as none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Files {
    main: Option<FileState>,
    wal: Option<FileState>,
}

impl Files {
    pub(super) fn is_there(&self) -> bool {
        self.main.is_some()
    }

    /// However much was written to it since.
    pub(super) fn is_same_file(&self, other: &Files) -> bool {
        self.main.map(|main| main.file) == other.main.map(|main| main.file)
    }

    /// Without a WAL nothing is on its way into the index: then `main` is a state that a commit left.
    fn of(main: &Path, wal: &Path) -> Files {
        let look = || Files { main: FileState::of(main), wal: FileState::of_wal(wal) };
        let mut files = look();
        for _ in 0..TRIES {
            let again = FileState::of(main);
            if again == files.main {
                break;
            }
            files = look();
        }
        files
    }
}

#[derive(Debug)]
enum Mode {
    /// SQLite's locks and shared memory keep it right, whoever writes.
    Live,
    /// Read without locks.
    Immutable,
    Copy(Scratch),
}

/// A state of the index that connections can be opened on.
#[derive(Debug)]
pub(super) struct View {
    /// The index, symlinks followed.
    real: PathBuf,
    files: Files,
    mode: Mode,
}

impl View {
    /// Looks at what `path` leads to. `in_place`: may be read where it is. The connection shows that it can be.
    pub(super) fn open(
        path: &Path,
        key: &[u8; 48],
        may_write: bool,
        in_place: bool,
    ) -> Result<(View, Connection), Error> {
        let real = real_path(path)?;
        refuse_network(&real)?;
        let live = View { files: Files::of(&real, &wal_path(&real)), real, mode: Mode::Live };
        let failed = |fail, view: &View| open_error(fail, &view.real, key);
        if may_write && in_place {
            match live.connect(key) {
                Ok(connection) => return Ok((live, connection)),
                Err(Fail::Sql(error)) if needs_writable(&error) => {}
                Err(fail) => return Err(failed(fail, &live)),
            }
        }
        let view = View::of_unwritable(live.real, in_place)?;
        match view.connect(key) {
            Ok(connection) if view.stands() => Ok((view, connection)),
            Err(fail) if view.stands() => Err(failed(fail, &view)),
            _ if in_place => View::open(path, key, false, false),
            _ => Err(restless(path)),
        }
    }

    /// What `path` leads to, not looked at yet.
    pub(super) fn unopened(path: &Path, may_write: bool) -> View {
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let mode = if may_write { Mode::Live } else { Mode::Immutable };
        View { files: Files::of(&real, &wal_path(&real)), real, mode }
    }

    /// The index as it is, nobody else using it.
    #[cfg(test)]
    pub(super) fn immutable(path: &Path) -> View {
        View { real: path.to_path_buf(), files: Files::of(path, &wal_path(path)), mode: Mode::Immutable }
    }

    fn of_unwritable(real: PathBuf, in_place: bool) -> Result<View> {
        let files = Files::of(&real, &wal_path(&real));
        if in_place && files.wal.is_none() {
            return Ok(View { real, files, mode: Mode::Immutable });
        }
        let (dir, files) = copy(&real)?;
        Ok(View { real, files, mode: Mode::Copy(dir) })
    }

    pub(super) fn connect(&self, key: &[u8; 48]) -> Result<Connection, Fail> {
        let connection = match &self.mode {
            Mode::Live => schema::connect(&self.real, key, Access::Read)?,
            Mode::Immutable => schema::connect(&self.real, key, Access::ReadImmutable)?,
            Mode::Copy(dir) => schema::connect(&dir.path().join("index.db"), key, Access::Read)?,
        };
        check_header(&connection, &self.real)?;
        Ok(connection)
    }

    /// The index, symlinks followed.
    pub(super) fn path(&self) -> &Path {
        &self.real
    }

    /// What is there now.
    pub(super) fn files_now(&self) -> Files {
        Files { main: FileState::of(&self.real), wal: FileState::of_wal(&wal_path(&self.real)) }
    }

    /// The same of what `path` leads to now.
    pub(super) fn files_at(&self, path: &Path) -> Files {
        Files { main: FileState::of(path), ..self.files_now() }
    }

    /// The index is still the file that this was opened on.
    pub(super) fn is_of(&self, files: &Files) -> bool {
        self.files.is_same_file(files)
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.mode, Mode::Live)
    }

    pub(super) fn is_copy(&self) -> bool {
        matches!(self.mode, Mode::Copy(_))
    }

    /// True when each question needs a look at the files.
    pub(super) fn may_fall(&self) -> bool {
        matches!(self.mode, Mode::Immutable)
    }

    /// True while what was read through it was the index at one moment.
    pub(super) fn stands(&self) -> bool {
        !self.may_fall() || FileState::of(&self.real) == self.files.main
    }

    /// True when there is something newer than what its connections can see.
    pub(super) fn is_behind(&self, path: &Path) -> bool {
        match &self.mode {
            Mode::Live => {
                // Gone for good or for the moment of a rename: what is open is all there is.
                FileState::of(path).is_some_and(|now| Some(now.file) != self.files.main.map(|main| main.file))
            }
            Mode::Immutable | Mode::Copy(_) => {
                let now = Files::of(path, &wal_path(&self.real));
                now.main.is_some() && now != self.files
            }
        }
    }

    pub(super) fn has_empty_wal(&self) -> bool {
        std::fs::metadata(wal_path(&self.real)).is_ok_and(|meta| meta.len() == 0)
    }

    /// True when looking anew means making a copy.
    pub(super) fn needs_copy(&self) -> bool {
        !self.is_live() && Files::of(&self.real, &wal_path(&self.real)).wal.is_some()
    }
}

/// How long a copy must do, given how long it took to make: a tenth of the time is enough for copying.
pub(super) fn copy_lasts(took: Duration) -> Duration {
    (took * 10).max(LOOK_EVERY)
}

/// Index and WAL as they were at one moment, in a private directory.
fn copy(real: &Path) -> Result<(Scratch, Files)> {
    let io = |e: std::io::Error| Error::io("copy", real, &e);
    let wal = wal_path(real);
    for _ in 0..TRIES {
        let dir = Scratch::new()?;
        let before = Files::of(real, &wal);
        copy_file(real, &dir.path().join("index.db")).map_err(io)?;
        if before.wal.is_some() {
            match copy_file(&wal, &dir.path().join("index.db-wal")) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
                _ => {}
            }
        }
        if Files::of(real, &wal) == before {
            return Ok((dir, before));
        }
    }
    Err(restless(real))
}

fn copy_file(from: &Path, to: &Path) -> std::io::Result<u64> {
    std::io::copy(&mut std::fs::File::open(from)?, &mut std::fs::File::create(to)?)
}

pub(super) fn restless(path: &Path) -> Error {
    Error::IndexIo {
        path: path.to_path_buf(),
        what: "it changes all the time, and its directory can't be written".into(),
    }
}

pub(super) fn needs_writable(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied))
}

pub(super) fn wal_path(path: &Path) -> PathBuf {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    wal.into()
}

/// The file behind `path`, symlinks followed (SQLite keeps the WAL beside that one).
pub(super) fn real_path(path: &Path) -> Result<PathBuf> {
    let meta = std::fs::canonicalize(path).and_then(|real| Ok((std::fs::metadata(&real)?, real)));
    match meta {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::IndexDamaged { path: path.to_path_buf(), what: "the file is missing".into() })
        }
        Err(e) => Err(Error::io("open", path, &e)),
        Ok((meta, _)) if meta.len() == 0 => {
            Err(Error::IndexDamaged { path: path.to_path_buf(), what: "the file is empty".into() })
        }
        Ok((_, real)) => Ok(real),
    }
}

/// Where the file is, or would be made: symlinks are followed, and the last one may lead to nothing yet.
pub(super) fn target_path(path: &Path) -> Result<PathBuf> {
    let failed = |e: std::io::Error| Error::io("find", path, &e);
    let mut at = std::path::absolute(path).map_err(failed)?;
    for _ in 0..40 {
        let dir = at.parent().unwrap_or(Path::new("/"));
        match std::fs::read_link(&at) {
            Ok(target) => at = dir.join(target),
            Err(_) => {
                let name = at.file_name().ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
                return Ok(std::fs::canonicalize(dir).map_err(failed)?.join(name));
            }
        }
    }
    Err(failed(std::io::Error::from_raw_os_error(libc::ELOOP)))
}

/// SQLite's WAL needs memory that all users share, which machines do not.
pub(super) fn refuse_network(path: &Path) -> Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if crate::os::mounts::fs_is_network(dir).map_err(|e| Error::io("statfs", dir, &e))? {
        return Err(Error::Unsupported {
            path: path.to_path_buf(),
            what:
                "the index can't be used on a network file system; make index.db a symlink to a file on a local disk \
                   (before `assay init`, or before `assay recover`, which makes the file)"
                    .into(),
        });
    }
    Ok(())
}

/// SQLite maps index.db-shm; what comes of a mapping whose file was cut off is not believed.
///
/// # Errors
/// `INDEX_IO` from then on, for this process.
pub(super) fn check_shared(path: &Path) -> Result<()> {
    if crate::os::mapped::is_lost() {
        let what = "its -shm file was cut off, or its disk failed, while this process used it".into();
        return Err(Error::IndexIo { path: path.to_path_buf(), what });
    }
    Ok(())
}

/// Is it an index, of a format that this program knows?
fn check_header(connection: &Connection, path: &Path) -> Result<(), Fail> {
    let damaged = |what: &str| Error::IndexDamaged { path: path.to_path_buf(), what: what.into() };
    let pragma = |name: &str| -> Result<u32, Fail> {
        let value: Option<i64> = connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).optional()?;
        Ok(value.and_then(|value| u32::try_from(value).ok()).ok_or_else(|| damaged("it has no format number"))?)
    };
    if pragma("application_id")? != schema::APPLICATION_ID {
        return Err(damaged("it is no index of this program").into());
    }
    let found = pragma("user_version")?;
    if found > schema::FORMAT {
        return Err(Error::IndexTooNew { path: path.to_path_buf(), found, known: schema::FORMAT }.into());
    }
    if found < schema::FORMAT {
        return Err(damaged("it was never finished").into());
    }
    Ok(())
}

/// A reader or writer begins with this.
pub(super) fn check_format(connection: &Connection, path: &Path) -> Result<()> {
    check_header(connection, path).and_then(|()| rows::state(connection)).map(|_| ()).map_err(|fail| fail.at(path))
}
