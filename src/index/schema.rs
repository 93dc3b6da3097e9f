//! Tables of the index and how a connection to it is made.
//!
//! Invariants: the key is given before anything else is read; no connection logs to the terminal; readers can't
//! write. `WITHOUT ROWID` rows stay below 981 bytes and rowid rows below 3,981 (no overflow pages).

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use zeroize::Zeroizing;

use crate::ids::{Dirno, Version};

/// Format of the tables; an index with a larger number is from a newer program.
pub const FORMAT: u32 = 2;
/// `application_id` of the file: "Asay".
pub const APPLICATION_ID: u32 = 0x4173_6179;
/// Page cache of one reader, and how many readers there may be at once: 16 MiB together.
pub const READER_CACHE_KIB: u32 = 4 * 1024;
pub const MAX_READERS: usize = 4;
/// How long a connection waits for a lock.
pub const BUSY_WAIT: Duration = Duration::from_secs(10);
/// Page cache of the writer.
const WRITER_CACHE_KIB: u32 = 96 * 1024;

pub const TABLES: &str = "
CREATE TABLE meta(id INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
CREATE TABLE commits(id INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
CREATE TABLE versions(id INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
CREATE TABLE arcs(id INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
CREATE TABLE frames(id INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
CREATE TABLE hashes(id INTEGER PRIMARY KEY, block INTEGER NOT NULL) STRICT;
CREATE TABLE relocations(id INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
CREATE TABLE entries(parent INTEGER NOT NULL, name BLOB NOT NULL, v_from INTEGER NOT NULL, row BLOB NOT NULL,
  PRIMARY KEY(parent, name, v_from)) STRICT, WITHOUT ROWID;
CREATE TABLE nodes(id INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
CREATE TABLE dirs(id INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
CREATE TABLE extents(logid INTEGER NOT NULL, start INTEGER NOT NULL, row BLOB NOT NULL,
  PRIMARY KEY(logid, start)) STRICT, WITHOUT ROWID;
CREATE TABLE lost(id INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
CREATE TABLE removed(run INTEGER NOT NULL, parent INTEGER NOT NULL, name BLOB NOT NULL, row BLOB NOT NULL,
  PRIMARY KEY(run, name, parent)) STRICT, WITHOUT ROWID;
CREATE TABLE parts(kind INTEGER NOT NULL, id INTEGER NOT NULL, no INTEGER NOT NULL, row BLOB NOT NULL,
  PRIMARY KEY(kind, id, no)) STRICT, WITHOUT ROWID;
";

/// Names of all tables, for dumps and checks.
#[cfg(test)]
pub const TABLE_NAMES: [&str; 14] = [
    "meta",
    "commits",
    "versions",
    "arcs",
    "frames",
    "hashes",
    "relocations",
    "entries",
    "nodes",
    "dirs",
    "extents",
    "lost",
    "removed",
    "parts",
];

/// Row of `dirs` and `lost`: a directory from a version on.
pub fn dir_key(dirno: Dirno, v: Version) -> i64 {
    (dirno.0 << 24 | u64::from(v.0)) as i64
}

/// The version in a key of `dirs` and `lost`.
pub fn version_of_dir_key(key: i64) -> Version {
    Version((key & 0xff_ffff) as u32)
}

/// The directory in a key of `dirs` and `lost`.
pub fn dirno_of_dir_key(key: i64) -> Dirno {
    Dirno(key as u64 >> 24)
}

/// How a connection may use the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Nobody writes, there is no WAL, and the directory need not be writable.
    ReadImmutable,
    Write,
}

#[cfg(test)]
thread_local! {
    /// Connections that this thread has opened.
    pub static OPENED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Opens a connection, gives the key and reads the schema once.
pub fn connect(path: &Path, key: &[u8; 48], access: Access) -> rusqlite::Result<Connection> {
    #[cfg(test)]
    OPENED.set(OPENED.get() + 1);
    let base = OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match access {
        Access::ReadImmutable => {
            let flags = base | OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(immutable_uri(path), flags)?
        }
        Access::Read | Access::Write => {
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
            Connection::open_with_flags(absolute, base | OpenFlags::SQLITE_OPEN_READ_WRITE)?
        }
    };
    connection.set_prepared_statement_cache_capacity(64);
    connection.busy_timeout(BUSY_WAIT)?;
    give_key(&connection, key)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    // Else a statement is prepared anew each time that what its plan might depend on is bound.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.execute_batch("PRAGMA temp_store=MEMORY; PRAGMA cell_size_check=ON; PRAGMA mmap_size=0;")?;
    match access {
        Access::Write => connection.execute_batch(&format!(
            "PRAGMA cache_size=-{WRITER_CACHE_KIB}; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0;"
        ))?,
        Access::Read | Access::ReadImmutable => {
            connection.execute_batch(&format!("PRAGMA cache_size=-{READER_CACHE_KIB}; PRAGMA query_only=ON;"))?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        }
    }
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

/// The key must be the first thing that an encrypted file hears; the log level is no part of the file.
fn give_key(connection: &Connection, key: &[u8; 48]) -> rusqlite::Result<()> {
    let mut text = Zeroizing::new(String::with_capacity(200));
    text.push_str("PRAGMA cipher_log_level=NONE; PRAGMA key=\"x'");
    for byte in key {
        let _ = write!(text, "{byte:02x}");
    }
    text.push_str("'\"; PRAGMA cipher_page_size=4096; PRAGMA cipher_hmac_algorithm=HMAC_SHA256;");
    connection.execute_batch(&text)
}

fn immutable_uri(path: &Path) -> std::path::PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut uri = b"file://".to_vec();
    for byte in absolute.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => uri.push(*byte),
            other => uri.extend_from_slice(format!("%{other:02X}").as_bytes()),
        }
    }
    uri.extend_from_slice(b"?immutable=1");
    OsStr::from_bytes(&uri).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_largest_ids_stay_positive_and_apart() {
        assert!(dir_key(Dirno::MAX, Version::MAX) > dir_key(Dirno::MAX, Version(0)));
        assert!(dir_key(Dirno(5), Version(0)) > dir_key(Dirno(4), Version::MAX));
        let key = dir_key(Dirno::MAX, Version(77));
        assert_eq!((dirno_of_dir_key(key), version_of_dir_key(key)), (Dirno::MAX, Version(77)));
    }

    #[test]
    fn any_byte_of_a_path_survives_in_the_uri() {
        let uri = immutable_uri(Path::new(OsStr::from_bytes(b"/a b/%?#\xff")));
        assert_eq!(uri.as_os_str().as_bytes(), b"file:///a%20b/%25%3F%23%FF?immutable=1");
    }
}
