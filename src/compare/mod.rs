//! What differs: between two versions, or between a version and the live tree.
//!
//! Invariants: names come in byte order, what is in a directory right behind it; a subtree of two versions with one digest
//! is not looked into; what can't be read on one side is told as that, never as a difference.

pub mod live;
mod side;
pub mod versions;

use crate::catalog::digest;
use crate::catalog::{Attr, Content, Kind, Node, Xattrs};
use crate::error::{Error, Result};

/// What became of a path, from the first side to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Letter {
    Added,
    Removed,
    /// Its content: the bytes of a file, the target of a symlink.
    Content,
    /// Its type or attributes, and not its content.
    Attributes,
}

impl Letter {
    pub fn sign(self) -> char {
        match self {
            Letter::Added => '+',
            Letter::Removed => '-',
            Letter::Content => 'M',
            Letter::Attributes => 'T',
        }
    }
}

/// In what two states differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Type,
    Content,
    Size,
    Target,
    Mode,
    Owner,
    Mtime,
    Ctime,
    Links,
    Device,
    Xattrs,
}

impl What {
    pub fn name(self) -> &'static str {
        match self {
            What::Type => "type",
            What::Content => "content",
            What::Size => "size",
            What::Target => "target",
            What::Mode => "mode",
            What::Owner => "owner",
            What::Mtime => "mtime",
            What::Ctime => "ctime",
            What::Links => "links",
            What::Device => "device",
            What::Xattrs => "xattrs",
        }
    }
}

/// Why the content of a file is another one, where its bytes were compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Somebody wrote to the source: a time or the size shows it.
    SourceEdited,
    /// The bytes in the source are others and nothing shows that anybody wrote them: size and all times are as they were.
    SourceRotted,
    /// What was backed up can't be read, or is not what was backed up.
    BackupBad,
}

impl Verdict {
    pub fn words(&self) -> &'static str {
        match self {
            Verdict::SourceEdited => "source edited",
            Verdict::SourceRotted => "source rotted",
            Verdict::BackupBad => "backup bad",
        }
    }
}

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub letter: Letter,
    /// Of the second side, or of what was removed.
    pub kind: Kind,
    /// In order, each once; empty for what was added or removed.
    pub differs: Vec<What>,
    pub verdict: Option<Verdict>,
}

impl Change {
    fn whole(letter: Letter, kind: Kind) -> Change {
        Change { letter, kind, differs: Vec::new(), verdict: None }
    }

    /// None if nothing differs.
    fn of(kind: Kind, mut differs: Vec<What>) -> Option<Change> {
        differs.sort_unstable();
        differs.dedup();
        let content = differs.iter().any(|what| matches!(what, What::Content | What::Size | What::Target));
        let letter = if content && !differs.contains(&What::Type) { Letter::Content } else { Letter::Attributes };
        (!differs.is_empty()).then_some(Change { letter, kind, differs, verdict: None })
    }
}

/// What a comparison comes to.
pub enum Met<'a> {
    Change(&'a Change),
    /// The path, or what is below it, could not be compared.
    Failed(&'a Error),
}

/// Gets each path that differs. An error ends the comparison.
pub type Visit<'a> = dyn FnMut(&[u8], Met<'_>) -> Result<()> + 'a;

/// Which times and counts matter: a live tree that was restored has others than the version, and is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// All that a mount shows.
    Stored,
    /// What a restore can set.
    Restorable,
}

fn attributes(a: &Attr, b: &Attr, scope: Scope) -> Vec<What> {
    let mut differs = Vec::new();
    let mut note = |differ: bool, what: What| {
        if differ {
            differs.push(what);
        }
    };
    note(a.kind != b.kind, What::Type);
    note(a.perm != b.perm, What::Mode);
    note((a.uid, a.gid) != (b.uid, b.gid), What::Owner);
    note(a.mtime != b.mtime, What::Mtime);
    note((a.rdev_major, a.rdev_minor) != (b.rdev_major, b.rdev_minor), What::Device);
    // A directory's links and size are its file system's.
    if scope == Scope::Stored {
        note(a.ctime != b.ctime, What::Ctime);
        note(a.nlink != b.nlink && a.kind != Kind::Dir, What::Links);
    }
    note(a.size != b.size && a.kind == Kind::File && b.kind == Kind::File, What::Size);
    differs
}

fn xattrs(a: &Xattrs, b: &Xattrs) -> Option<What> {
    (a != b).then_some(What::Xattrs)
}

/// What differs between two stored states.
fn nodes(a: &Node, b: &Node) -> Vec<What> {
    let mut differs = attributes(&a.attr, &b.attr, Scope::Stored);
    differs.extend(xattrs(&a.xattrs, &b.xattrs));
    if a.attr.kind == b.attr.kind {
        differs.extend((a.target != b.target).then_some(What::Target));
        differs.extend((!same_content(a, b)).then_some(What::Content));
    }
    differs
}

fn same_content(a: &Node, b: &Node) -> bool {
    let segments = |node: &Node| match &node.content {
        Content::Inline(list) => {
            let mut all = digest::Segments::default();
            all.add(list);
            all.finish()
        }
        Content::Chunked(digest) => *digest,
    };
    match (a.sha1, b.sha1) {
        (Some(a_hash), Some(b_hash)) => a_hash == b_hash && a.attr.size == b.attr.size,
        _ => segments(a) == segments(b),
    }
}
