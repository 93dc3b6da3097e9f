//! Why something is wrong: one table from errors to causes, and what each cause is called.

use crate::error::{Damage, Error};

/// Why something is wrong, as far as can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A second read, past the page cache, was right: memory, cable or controller.
    Transient,
    /// The stored bytes are not those that were written.
    Medium,
    /// Authentic bytes with wrong content: they were wrong before they were sealed.
    Memory,
    /// The arc file, or a part of it, is not there.
    Missing,
    /// The index says something else than the arcs, or can't be read.
    Index,
    /// The catalog or commit record in an arc.
    Catalog,
    /// Another key, another backup dir.
    Key,
    /// A file that does not belong where it is.
    Stray,
    /// It could not be checked: an I/O error, a permission.
    Unchecked,
}

impl Cause {
    /// One word, for output that programs read.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Transient => "transient",
            Cause::Medium => "medium",
            Cause::Memory => "memory",
            Cause::Missing => "missing",
            Cause::Index => "index",
            Cause::Catalog => "catalog",
            Cause::Key => "key",
            Cause::Stray => "stray",
            Cause::Unchecked => "unchecked",
        }
    }

    /// What it means, for people.
    pub fn text(self) -> &'static str {
        match self {
            Cause::Transient => "a second read, past the page cache, was right: memory, cable or controller",
            Cause::Medium => "the stored bytes are not those that were written, on a second read too",
            Cause::Memory => "the stored bytes are authentic but wrong: they were wrong before they were sealed",
            Cause::Missing => "it is not there, or not to its end",
            Cause::Index => "the index is damaged, or says something else than the arcs",
            Cause::Catalog => {
                "the catalog or commit record in an arc is damaged; the index may still know what it says"
            }
            Cause::Key => "another key made it: it belongs to another backup dir, or key.conf does",
            Cause::Stray => "it does not belong where it is",
            Cause::Unchecked => "it could not be checked",
        }
    }

    /// What an error says of the cause, where nothing but the error is known.
    pub fn of(error: &Error) -> Cause {
        match error {
            Error::Arc { damage, .. } => match damage {
                Damage::Missing | Damage::Truncated { .. } => Cause::Missing,
                Damage::BadCompression | Damage::HashMismatch { .. } => Cause::Memory,
                Damage::BadRecord(_) => Cause::Catalog,
                Damage::WrongSum(_)
                | Damage::BadHeader
                | Damage::BadTrailer
                | Damage::WrongFrame
                | Damage::BadTag
                | Damage::Unreadable(_) => Cause::Medium,
            },
            Error::DirectoryLost { .. } | Error::ExtentsLost { .. } | Error::CommitDamaged { .. } => Cause::Catalog,
            Error::IndexDamaged { .. }
            | Error::IndexRow { .. }
            | Error::TreeMismatch { .. }
            | Error::FileHashMismatch { .. } => Cause::Index,
            Error::KeyWrong { .. } => Cause::Key,
            Error::Stray { .. } => Cause::Stray,
            _ => Cause::Unchecked,
        }
    }
}
