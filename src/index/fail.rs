//! Why a question to the index had no answer, and the error that the rest of the library gets for it.
//!
//! Invariant: what SQLite says of the machine (memory, locks, disk) is never told as damage.

use std::path::Path;

use rusqlite::ErrorCode;

use super::row::BadRow;
use crate::error::{Error, Result};

/// An answer of one connection.
pub type Found<T> = Result<T, Fail>;

/// Why a question to one connection had no answer.
#[derive(Debug)]
pub enum Fail {
    Sql(rusqlite::Error),
    Row(&'static str),
    /// An answer of its own: asking again would give the same.
    Known(Error),
}

impl From<rusqlite::Error> for Fail {
    fn from(error: rusqlite::Error) -> Fail {
        Fail::Sql(error)
    }
}

impl From<BadRow> for Fail {
    fn from(bad: BadRow) -> Fail {
        Fail::Row(bad.0)
    }
}

impl From<crate::catalog::codec::BadRecord> for Fail {
    fn from(bad: crate::catalog::codec::BadRecord) -> Fail {
        Fail::Row(bad.0)
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Fail {
        Fail::Known(error)
    }
}

impl Fail {
    /// The error as the rest of the library knows it.
    pub fn at(self, path: &Path) -> Error {
        let path = path.to_path_buf();
        match self {
            Fail::Known(error) => error,
            Fail::Row(what) => Error::IndexRow { path, what: what.into() },
            Fail::Sql(error) => match error.sqlite_error_code() {
                Some(
                    ErrorCode::OutOfMemory
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::DiskFull
                    | ErrorCode::CannotOpen
                    | ErrorCode::PermissionDenied
                    | ErrorCode::ReadOnly
                    | ErrorCode::OperationInterrupted,
                ) => Error::IndexIo { path, what: error.to_string() },
                Some(_) => Error::IndexDamaged { path, what: error.to_string() },
                None => Error::IndexRow { path, what: error.to_string() },
            },
        }
    }
}

/// Tells a wrong key from a damaged first page.
pub fn open_error(fail: Fail, path: &Path, key: &[u8; 48]) -> Error {
    let not_a_database =
        matches!(&fail, Fail::Sql(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase));
    if not_a_database && has_salt(path, key) == Some(false) {
        return Error::KeyWrong { path: path.to_path_buf() };
    }
    match fail.at(path) {
        Error::IndexDamaged { path, .. } if not_a_database => {
            Error::IndexDamaged { path, what: "its first page is damaged".into() }
        }
        other => other,
    }
}

/// The file starts with the salt that the key material came with, or most of it; None if it can't be read so far.
pub fn has_salt(path: &Path, key: &[u8; 48]) -> Option<bool> {
    use std::io::Read;
    let mut found = [0u8; 16];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut found)).ok()?;
    let (_, salt) = key.split_at(32);
    Some(found.iter().zip(salt).filter(|(a, b)| a == b).count() >= 8)
}
