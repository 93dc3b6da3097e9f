//! Destinations: storage outside of the backup dir that holds copies of its arcs, behind one small trait.
//!
//! Invariants: only this module knows the clients of services; what is asynchronous in them stays in here, and whoever
//! calls waits; every wait has a deadline. A put never replaces. What is read is the range that was asked for, whole, or
//! an error; a listing is whole or an error; a place that is not there is `Absent`, never empty. Nothing here judges the
//! bytes of an arc: they prove themselves.

mod azure;
mod cloud;
mod dir;
mod exam;
#[cfg(test)]
pub(crate) mod faulty;
mod fields;
mod gcs;
mod http;
mod known;
pub mod mark;
mod proof;
mod runtime;
mod s3;
mod secret;
pub mod settings;
mod sftp;
mod sign;
mod ssh;
#[cfg(test)]
pub(crate) mod tests;
mod webdav;

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backupdir::BackupDir;
use crate::error::{Error, Result, Trouble};
use crate::os::stat::Stat;
use crate::text::{hex, shown};

pub use exam::{Exam, examine};
pub use known::{Known, Place as KnownPlace};
pub use proof::{Proof, compare, prove, put_proven};
pub use secret::Variables;
pub use settings::Settings;

/// Bytes that are read of what is stored, or given to a client, at a time.
const PIECE_BYTES: u64 = 256 << 10;
/// How long a read, or any other short request, may take.
const READ_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 20 } else { 30 });
/// How long nothing of an upload may go.
const STALL_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 20 } else { 30 });
/// Longest range that is read at once.
const MAX_READ_BYTES: u64 = 64 << 20;
/// Most objects that a listing may have.
const MAX_OBJECTS: usize = if cfg!(test) { 20_000 } else { 10_000_000 };

/// All destinations of a backup dir, in the order of dest.toml.
///
/// # Errors
/// `CONFIG`, with the line and what to do; `FILE_FOREIGN`.
pub fn all(dir: &BackupDir) -> Result<Vec<Settings>> {
    let (path, text) = dir.destinations()?;
    Settings::parse_all(&text).map_err(|what| Error::Config { path, what })
}

/// One of them.
///
/// # Errors
/// `USAGE` for a name that dest.toml does not have.
pub fn named(dir: &BackupDir, name: &str) -> Result<Settings> {
    let all = all(dir)?;
    let names: Vec<&str> = all.iter().map(|settings| settings.name.as_str()).collect();
    let known = if names.is_empty() { "it has none".into() } else { format!("it has {}", names.join(", ")) };
    let missing = || Error::Usage(format!("dest.toml has no destination {}: {known}", shown(name)));
    all.iter().find(|settings| settings.name == name).cloned().ok_or_else(missing)
}

/// Opens a destination; nothing of it is believed before its mark was read.
///
/// # Errors
/// `Absent`, and what keeps it from being reached; `CONFIG` for a directory within the backup dir.
pub fn open(dir: &BackupDir, settings: &Settings, variables: Variables<'_>) -> Result<Box<dyn Storage>> {
    Ok(match &settings.place {
        settings::Place::Dir { path } => {
            if path.canonicalize().is_ok_and(|path| path.starts_with(dir.path())) {
                let what = format!("the destination {} is within the backup dir: name another place", settings.name);
                return Err(Error::Config { path: dir.destinations()?.0, what });
            }
            Box::new(dir::Dir::open(&settings.name, path)?)
        }
        settings::Place::Sftp(sftp) => Box::new(sftp::Sftp::open(&settings.name, sftp)?),
        settings::Place::S3(s3) => {
            let credentials = secret::Credentials::find(&settings.name, s3, variables)?;
            Box::new(s3::S3::open(&settings.name, s3, &credentials)?)
        }
        settings::Place::WebDav(webdav) => {
            let password = secret::of_webdav(&settings.name, webdav, variables)?;
            Box::new(webdav::WebDav::open(&settings.name, webdav, password.as_ref())?)
        }
        settings::Place::Azure(azure) => {
            let secret = secret::of_azure(&settings.name, azure, variables)?;
            Box::new(azure::Azure::open(&settings.name, azure, &secret)?)
        }
        settings::Place::Gcs(gcs) => {
            let account = secret::of_gcs(&settings.name, gcs, variables)?;
            Box::new(gcs::Gcs::open(&settings.name, gcs, account.as_ref())?)
        }
    })
}

/// A place that holds objects: whole files under one name each.
pub trait Storage: Send + Sync {
    /// The destination's name, for messages.
    fn name(&self) -> &str;

    /// Stores an object; when this returns it is on the medium, as far as the service promises.
    ///
    /// # Errors
    /// `Exists` when the name is taken, and nothing was changed. After any other error it is not known what is there.
    fn put(&self, object: &str, body: &dyn Body) -> Result<Compared>;

    /// Length of an object; None where there is none.
    fn stat(&self, object: &str) -> Result<Option<u64>>;

    /// The bytes of a range, all of them.
    ///
    /// # Errors
    /// `WrongRange` when others came, or fewer, also where the object ends before.
    fn read(&self, object: &str, range: Range<u64>) -> Result<Vec<u8>>;

    /// All objects, sorted by name.
    fn list(&self) -> Result<Vec<Object>>;

    /// Removes an object; one that is not there is fine.
    fn remove(&self, object: &str) -> Result<()>;

    /// What the service could be found to let pass.
    fn lies(&self) -> &'static [Lie];

    /// Does what must be refused, and must change nothing.
    fn lie(&self, object: &str, bytes: &[u8], lie: Lie) -> Result<()>;

    /// What tells that an object was changed, without reading it, where the place has such a thing.
    fn stamp(&self, _object: &str) -> Result<Option<Stamp>> {
        Ok(None)
    }

    /// Makes the next reads of an object come from the medium, where there is a cache of ours before it.
    fn forget(&self, _object: &str) -> Result<()> {
        Ok(())
    }
}

/// What a file system says of a file. Another one says that it was changed; the same one proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub len_bytes: u64,
    /// Since 1970.
    pub mtime_ns: i64,
    pub inode: u64,
}

impl Stamp {
    pub fn of(stat: &Stat) -> Stamp {
        let mtime_ns = stat.mtime.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(stat.mtime.nsec));
        Stamp { len_bytes: stat.size, mtime_ns, inode: stat.ino }
    }

    /// What differs, in a word.
    pub fn differs(&self, before: &Stamp) -> Option<&'static str> {
        match () {
            () if self.len_bytes != before.len_bytes => Some("size"),
            () if self.mtime_ns != before.mtime_ns => Some("mtime"),
            () if self.inode != before.inode => Some("inode"),
            () => None,
        }
    }
}

/// An object of a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub name: String,
    pub len_bytes: u64,
}

/// A checksum, as one side has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// As both sides call it, `sha256`.
    pub algorithm: String,
    /// In hexadecimal digits.
    pub value: String,
}

impl Checksum {
    pub fn sha256(sum: &Sum) -> Checksum {
        Checksum { algorithm: "sha256".into(), value: hex(sum) }
    }
}

/// What the service itself says of what it has stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    Nothing,
    /// It has computed `found` of what came, where `source` was sent.
    Told {
        source: Checksum,
        found: Checksum,
    },
}

/// What a put says or asks that a careful service refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lie {
    /// That the bytes have another SHA-256 than they have.
    Sha256,
    /// The same with their MD5.
    Md5,
    /// To store under a name that is taken.
    Replace,
}

/// SHA-256 of what is stored.
pub type Sum = [u8; 32];

/// What is to be stored: bytes in memory, or what is read as it is sent.
pub trait Body {
    fn len_bytes(&self) -> u64;

    /// Fills all of `piece` with the bytes from `start` on.
    fn fill(&self, start: u64, piece: &mut [u8]) -> Result<()>;

    /// SHA-256 of all of it, as it is recorded or, if it is not, as it is found by reading.
    fn sum(&self) -> Result<Sum>;
}

impl Body for &[u8] {
    fn len_bytes(&self) -> u64 {
        (**self).len() as u64
    }

    fn fill(&self, start: u64, piece: &mut [u8]) -> Result<()> {
        let rest = self.get(start as usize..).unwrap_or_default();
        piece.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    fn sum(&self) -> Result<Sum> {
        Ok(Sha256::digest(self).into())
    }
}

/// The bytes of a body in order, each piece with its place.
fn pieces(body: &dyn Body, most: u64) -> impl Iterator<Item = Result<(u64, Vec<u8>)>> {
    let starts = (0..body.len_bytes().div_ceil(most)).map(move |number| number * most);
    starts.map(move |start| {
        let mut piece = vec![0; (body.len_bytes() - start).min(most) as usize];
        body.fill(start, &mut piece)?;
        Ok((start, piece))
    })
}

/// An error of the destination `dest`, about an object or (empty) the place as a whole.
fn trouble(dest: &str, object: &str, trouble: Trouble) -> Error {
    Error::Dest { dest: dest.into(), object: object.into(), trouble }
}

fn too_many() -> Trouble {
    Trouble::Refused(format!("its listing has more than {MAX_OBJECTS} objects"))
}

/// What came instead of a range.
fn wrong_range(dest: &str, object: &str, wanted: &Range<u64>, found: String) -> Error {
    let (wanted, found) = (format!("bytes {} to {}", wanted.start, wanted.end).into(), found.into());
    trouble(dest, object, Trouble::WrongRange { wanted, found })
}

/// A range must make sense before it is asked for.
fn check_range(dest: &str, object: &str, range: &Range<u64>) -> Result<()> {
    if range.start >= range.end || range.end - range.start > MAX_READ_BYTES {
        return Err(wrong_range(dest, object, range, "no request: the range makes no sense".into()));
    }
    Ok(())
}
