//! What goes wrong at a destination.
//!
//! Invariant: an object is gone only by `NotFound`; whatever else keeps one from being read says nothing of it.

use crate::text::shown;

/// Why something could not be done at a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The place itself is not there: a disk that is not mounted, no such directory or bucket. Says nothing of objects.
    Absent(String),
    /// It is there, and has no object of this name.
    NotFound,
    /// An object has this name already, and nothing was changed.
    Exists,
    /// It does not let us: credentials, permissions.
    Denied(String),
    /// There is no room left.
    Full(String),
    /// It asks for less; after so many seconds, if it says so.
    Busy { what: Box<str>, retry_after_s: Option<u64> },
    /// It could not be done this time: a connection, or the server, broke. What a put left is not known.
    Failed(String),
    /// It could not be done, and will not be the next time either.
    Refused(String),
    /// Nothing came, or nothing could be sent, for so long.
    TimedOut { what: &'static str, limit_s: u64 },
    /// Not the bytes that were asked for: fewer, more, or of another place.
    WrongRange { wanted: Box<str>, found: Box<str> },
    /// The two sides have checksums that can't be compared.
    Algorithm { source: Box<str>, found: Box<str> },
    /// What is stored there is not what was sent, by their SHA-256.
    Checksum { source: Box<str>, found: Box<str> },
    /// Something else writes there with this backup's key: another history, of a copy of the backup dir.
    Diverged(String),
    /// Another process sends there.
    InUse,
    /// Nobody has made it a place of a backup.
    Unmarked,
    /// It is a place of another backup, or its mark is damaged.
    NotOurs(String),
    /// Something is in it that was to be empty.
    NotEmpty(String),
    /// It lacks what was never sent there.
    Behind(String),
}

impl Trouble {
    pub fn code(&self) -> &'static str {
        match self {
            Trouble::Absent(_) => "DEST_ABSENT",
            Trouble::NotFound => "DEST_NOT_FOUND",
            Trouble::Exists => "DEST_EXISTS",
            Trouble::Denied(_) => "DEST_DENIED",
            Trouble::Full(_) => "DEST_FULL",
            Trouble::Busy { .. } => "DEST_BUSY",
            Trouble::Failed(_) => "DEST_FAILED",
            Trouble::Refused(_) => "DEST_REFUSED",
            Trouble::TimedOut { .. } => "DEST_TIMED_OUT",
            Trouble::WrongRange { .. } => "DEST_WRONG_RANGE",
            Trouble::Algorithm { .. } => "DEST_ALGORITHM",
            Trouble::Checksum { .. } => "DEST_CHECKSUM",
            Trouble::Diverged(_) => "DEST_DIVERGED",
            Trouble::InUse => "DEST_IN_USE",
            Trouble::Unmarked => "DEST_UNMARKED",
            Trouble::NotOurs(_) => "DEST_NOT_OURS",
            Trouble::NotEmpty(_) => "DEST_NOT_EMPTY",
            Trouble::Behind(_) => "DEST_BEHIND",
        }
    }

    pub(super) fn help(&self) -> Option<&'static str> {
        match self {
            Trouble::Absent(_) => Some("mount it, or correct its place in dest.toml; nothing there was changed"),
            Trouble::Denied(_) => Some("look at its credentials and permissions in dest.toml and at the service"),
            Trouble::Full(_) => Some("make room there, or name another place in dest.toml"),
            Trouble::Busy { .. } | Trouble::Failed(_) | Trouble::TimedOut { .. } => {
                Some("try again; if it stays so, look at the connection and the service")
            }
            Trouble::WrongRange { .. } => {
                Some("the server, or something before it, changes what it sends: look there; nothing of it was used")
            }
            Trouble::Checksum { .. } => {
                Some("`assay dest sync` sends it again; if it stays so, don't trust this place")
            }
            Trouble::Algorithm { .. } => {
                Some("say verify = \"read\" for it in dest.toml: what is sent is read back then")
            }
            Trouble::Diverged(_) => {
                Some("find out which of the backup dirs is the right one; give the other a place of its own")
            }
            Trouble::InUse => {
                Some("wait until the other assay has sent what it has; the same place may be named twice in dest.toml")
            }
            Trouble::Unmarked => Some("`assay dest setid NAME` makes a new, empty place one of this backup"),
            Trouble::NotOurs(_) => Some("name a place of its own in dest.toml; nothing there was changed"),
            Trouble::NotEmpty(_) => Some("name an empty place in dest.toml, a new directory or prefix"),
            Trouble::Behind(_) => Some("the next backup sends it, or `assay dest sync`"),
            Trouble::NotFound | Trouble::Exists | Trouble::Refused(_) => None,
        }
    }

    /// What happened, and to which object, if to one.
    pub(super) fn text(&self, dest: &str, object: &str) -> String {
        let place = if object.is_empty() { dest.to_string() } else { format!("{dest}: {}", shown(object)) };
        match self {
            Trouble::Absent(what) => format!("{dest} is not there: {what}"),
            Trouble::NotFound if object.is_empty() => format!("{dest}: no such file"),
            Trouble::NotFound => format!("{} at {dest}: no such file", shown(object)),
            Trouble::Exists => format!("{place} is there already, and was not replaced"),
            Trouble::Denied(what) => format!("{place}: not allowed: {what}"),
            Trouble::Full(what) => format!("{place}: no room: {what}"),
            Trouble::Busy { what, retry_after_s: None } => format!("{place}: asked to wait: {what}"),
            Trouble::Busy { what, retry_after_s: Some(s) } => format!("{place}: asked to wait {s} s: {what}"),
            Trouble::Failed(what) => format!("{place}: failed: {what}"),
            Trouble::Refused(what) => format!("{place}: refused: {what}"),
            Trouble::TimedOut { what, limit_s } => format!("{place}: {what} for {limit_s} s"),
            Trouble::WrongRange { wanted, found } => format!("{place}: asked for {wanted}, got {found}"),
            Trouble::Checksum { source, found } => {
                format!(
                    "{} at {dest}: expected checksum {source} doesn't match the existing file checksum {found}",
                    shown(object)
                )
            }
            Trouble::Algorithm { source, found } => {
                format!(
                    "checksum algorithm mismatch for {} at {dest}: source={source}, destination={found}",
                    shown(object)
                )
            }
            Trouble::Diverged(what) => {
                format!("another backup dir writes to {dest} too: {what}; nothing is sent there")
            }
            Trouble::InUse => format!("another process sends to {dest}"),
            Trouble::Unmarked => format!("{dest} is no place of this backup yet: it has no DESTID"),
            Trouble::NotOurs(what) => format!("{dest} is no place of this backup: {what}"),
            Trouble::NotEmpty(what) => format!("{dest} is not empty: {what}"),
            Trouble::Behind(what) => format!("{dest} is behind: {what} not sent there yet"),
        }
    }
}
