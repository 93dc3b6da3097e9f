//! Every error of the library: what happened, where, and what to do about it.
//!
//! Invariants: each variant has a stable code (docs/errors.md lists them all, a test compares), an errno for
//! the mount and an exit code for the CLI, each by an exhaustive match: a new error can't become EIO by accident.

mod trouble;

pub use trouble::Trouble;

use std::fmt;
use std::path::PathBuf;

use crate::ids::{ArcDigest, ArcName, BlockHash, BlockId, Dirno, FileHash, FrameNo, Logid, Version};
use crate::text::{counted, shown};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Process exit codes, as docs/errors.md lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    FinishedWithErrors = 3,
    Damage = 4,
    NotABackupDir = 10,
    Locked = 11,
    WrongKey = 12,
    Interrupted = 130,
}

/// Where in the stored bytes something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub arc: ArcName,
    /// None for the arc header, footer or trailer, or the arc as a whole.
    pub frame: Option<FrameNo>,
    pub block: Option<BlockId>,
    /// Byte offset in the arc.
    pub offset: u64,
}

impl Place {
    /// Outside of the frames, or an arc as a whole.
    pub fn in_arc(arc: ArcName, offset: u64) -> Place {
        Place { arc, frame: None, block: None, offset }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.arc)?;
        if let Some(frame) = self.frame {
            write!(f, " frame {}", frame.0)?;
        }
        if let Some(block) = self.block {
            write!(f, " block {block}")?;
        }
        // An arc as a whole is nowhere in itself.
        if self.frame.is_some() || self.offset > 0 { write!(f, " at offset {}", self.offset) } else { Ok(()) }
    }
}

/// What is wrong with stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// The arc file does not exist.
    Missing,
    /// The arc ends before the frame does.
    Truncated { wanted_bytes: u64, found_bytes: u64 },
    /// The arc header does not authenticate.
    BadHeader,
    /// The arc trailer does not authenticate.
    BadTrailer,
    /// The frame's head, or the table of its blocks, is not the one that the index or frame table has for this place.
    WrongFrame,
    /// The AEAD tag does not match: the bytes were changed, or belong elsewhere.
    BadTag,
    /// zstd refused the decrypted bytes, or they have another length.
    BadCompression,
    /// The plain bytes hash to something else.
    HashMismatch { expected: BlockHash, found: BlockHash },
    /// A catalog, footer or commit frame decrypts but does not parse.
    BadRecord(&'static str),
    /// All of it has another SHA-256 than its commit has recorded: recorded, found.
    WrongSum(Box<(ArcDigest, ArcDigest)>),
    /// The operating system could not read the bytes.
    Unreadable(i32),
}

/// Why a file is not opened, or not written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    Link,
    /// A directory, fifo, socket or device.
    NoFile,
    NoDir,
    /// So many hard links.
    Names(u32),
    /// The uid that it belongs to.
    Owner(u32),
    /// Its permission bits: others can write to it.
    Writable(u16),
    /// Longer than anything that belongs there.
    TooLong,
    /// `index.db` is a symlink that leads to it.
    NoIndex,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Foreign::Link => write!(f, "it is a symbolic link"),
            Foreign::NoFile => write!(f, "it is no regular file"),
            Foreign::NoDir => write!(f, "it is no directory"),
            Foreign::Names(count) => write!(f, "it has {count} names (hard links)"),
            Foreign::Owner(uid) => write!(f, "it belongs to user {uid}"),
            Foreign::Writable(perm) => write!(f, "others can write to it (mode {perm:04o})"),
            Foreign::NoIndex => write!(f, "index.db leads to it, and it is no index of this backup dir"),
            Foreign::TooLong => write!(f, "it is too long to be what its name says"),
        }
    }
}

/// Every way in which the library fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{op} {}: {}", shown(path), errno_text(*errno))]
    Io { op: &'static str, path: PathBuf, errno: i32 },
    #[error("{place}: {}", damage_text(place, damage))]
    Arc { place: Place, damage: Damage },
    #[error("index {}: {what}", shown(path))]
    IndexDamaged { path: PathBuf, what: String },
    #[error("index {}: {what}", shown(path))]
    IndexRow { path: PathBuf, what: String },
    #[error("index {}: {what}", shown(path))]
    IndexIo { path: PathBuf, what: String },
    #[error("{} is of a backup dir in format {found}, this release reads format {known}", shown(path))]
    OtherFormat { path: PathBuf, found: u32, known: u32 },
    #[error("index {} has format {found}, this program knows {known}", shown(path))]
    IndexTooNew { path: PathBuf, found: u32, known: u32 },
    #[error("the catalog frame that describes directory {} in {version} is damaged", dirno.0)]
    DirectoryLost { dirno: Dirno, version: Version },
    #[error("{version}, directory {}: {what}", dirno.0)]
    TreeMismatch { version: Version, dirno: Dirno, what: String },
    #[error("file {} has no recorded content at offset {offset}", logid.0)]
    ExtentsLost { logid: Logid, offset: u64 },
    #[error("{}: all blocks are good, but the file's SHA-1 is {found}, backed up was {expected}", shown(path))]
    FileHashMismatch { path: Vec<u8>, expected: FileHash, found: FileHash },
    #[error("{}: {what}", shown(path))]
    Stray { path: PathBuf, what: String },
    #[error("{} is left as it was: {what}", shown(path))]
    NotFixed { path: PathBuf, what: String },
    #[error("{}: {what}", shown(path))]
    DirShared { path: PathBuf, what: String },
    #[error("{} is not used: {why}", shown(path))]
    FileForeign { path: PathBuf, why: Foreign },
    #[error("{} is not a backup dir", shown(path))]
    NotABackupDir { path: PathBuf },
    #[error("{} has a backup dir, or other files, in it already", shown(path))]
    NotEmpty { path: PathBuf },
    #[error("{} is locked by process {holder}", shown(path))]
    Locked { path: PathBuf, holder: String },
    #[error("the key in {} does not open this backup dir", shown(path))]
    KeyWrong { path: PathBuf },
    #[error("{} is damaged: {what}", shown(path))]
    KeyDamaged { path: PathBuf, what: &'static str },
    #[error("the key in {} is bare, and a passphrase was given for it", shown(path))]
    KeyBare { path: PathBuf },
    #[error("the passphrase is wrong for {}", shown(path))]
    PassphraseWrong { path: PathBuf },
    #[error("{} needs a passphrase", shown(path))]
    PassphraseMissing { path: PathBuf },
    #[error("the passphrase: {what}")]
    PassphraseSource { what: String },
    #[error("{}: {what}", shown(path))]
    Config { path: PathBuf, what: String },
    #[error("the commit record of {run} is damaged or missing: {what}")]
    CommitDamaged { run: Version, what: String },
    #[error("{0}")]
    Usage(String),
    #[error(
        "nothing would be saved: patterns leave out all that is in the given paths ({})",
        counted(*excluded, "entry")
    )]
    AllExcluded { excluded: u64 },
    #[error("no version {0} in this backup")]
    NoVersion(String),
    #[error("{} is not in {version}", shown(path))]
    NoPath { path: Vec<u8>, version: Version },
    #[error(
        "{run} could not read {errors} of its entries, so {} in {version} may lack them: nothing was restored",
        shown(path)
    )]
    DeleteUnsafe { path: Vec<u8>, version: Version, run: Version, errors: u64 },
    #[error("nothing was removed: {what}")]
    Protected { what: String },
    #[error("{arc} was packed away: no version needs what is read from it")]
    ArcDropped { arc: ArcName },
    #[error("{version} was removed")]
    VersionGone { version: Version },
    #[error("it was removed from {version}, and from all others")]
    PathGone { version: Version },
    #[error("{}: {what}", shown(path))]
    HistoryChanged { path: PathBuf, what: String },
    #[error("what was just written reads back differently: {what}")]
    SelfCheck { what: String },
    #[error("{}: {what}", shown(path))]
    Unsupported { path: PathBuf, what: String },
    #[error("{}: {what}", shown(path))]
    NotKept { path: PathBuf, what: String },
    #[error("mount {}: {what}", shown(path))]
    Mount { path: PathBuf, what: String },
    #[error("{}", trouble.text(dest, object))]
    Dest { dest: Box<str>, object: Box<str>, trouble: Trouble },
    #[error("{arc} is not kept in the backup dir, and no destination that was asked has it (`assay dest sync`)")]
    ArcAway { arc: ArcName },
    #[error("the bytes did not come in time")]
    TimedOut,
    #[error("no more than {limit_bytes} bytes may be fetched: the rest was left out")]
    DownloadLimit { limit_bytes: u64 },
    #[error("{}: {what}", shown(path))]
    ParityShort { path: PathBuf, what: String },
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// Says of an arc as a whole, from `offset` on, that it is damaged.
    pub fn arc(arc: ArcName, offset: u64, damage: Damage) -> Error {
        Error::Arc { place: Place::in_arc(arc, offset), damage }
    }

    /// The arc is not there, by the word of the place that was asked.
    pub fn is_missing_arc(&self) -> bool {
        matches!(self, Error::Arc { damage: Damage::Missing, .. })
    }

    /// Wraps an operating-system error with what was being done to which file.
    pub fn io(op: &'static str, path: impl Into<PathBuf>, source: &std::io::Error) -> Error {
        Error::Io { op, path: path.into(), errno: source.raw_os_error().unwrap_or(libc::EIO) }
    }

    /// Stable name, as scripts, tests and docs/errors.md use it.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Io { .. } => "IO",
            Error::Arc { damage, .. } => damage.code(),
            Error::IndexDamaged { .. } => "INDEX_DAMAGED",
            Error::IndexRow { .. } => "INDEX_ROW_DAMAGED",
            Error::IndexIo { .. } => "INDEX_IO",
            Error::OtherFormat { .. } => "OTHER_FORMAT",
            Error::IndexTooNew { .. } => "INDEX_TOO_NEW",
            Error::DirectoryLost { .. } => "DIRECTORY_LOST",
            Error::TreeMismatch { .. } => "TREE_MISMATCH",
            Error::ExtentsLost { .. } => "EXTENTS_LOST",
            Error::FileHashMismatch { .. } => "FILE_HASH_MISMATCH",
            Error::Stray { .. } => "STRAY_FILE",
            Error::NotFixed { .. } => "NOT_FIXED",
            Error::DirShared { .. } => "DIR_SHARED",
            Error::FileForeign { .. } => "FILE_FOREIGN",
            Error::NotABackupDir { .. } => "NOT_A_BACKUP_DIR",
            Error::NotEmpty { .. } => "NOT_EMPTY",
            Error::Locked { .. } => "LOCKED",
            Error::KeyWrong { .. } => "KEY_WRONG",
            Error::KeyDamaged { .. } => "KEY_DAMAGED",
            Error::KeyBare { .. } => "KEY_BARE",
            Error::PassphraseWrong { .. } => "PASSPHRASE_WRONG",
            Error::PassphraseMissing { .. } => "PASSPHRASE_MISSING",
            Error::PassphraseSource { .. } => "PASSPHRASE_SOURCE",
            Error::Config { .. } => "CONFIG",
            Error::CommitDamaged { .. } => "COMMIT_DAMAGED",
            Error::Usage(_) => "USAGE",
            Error::AllExcluded { .. } => "ALL_EXCLUDED",
            Error::NoVersion(_) => "NO_VERSION",
            Error::NoPath { .. } => "NO_PATH",
            Error::DeleteUnsafe { .. } => "DELETE_UNSAFE",
            Error::Protected { .. } => "PROTECTED",
            Error::ArcDropped { .. } => "ARC_DROPPED",
            Error::VersionGone { .. } => "VERSION_GONE",
            Error::PathGone { .. } => "PATH_GONE",
            Error::HistoryChanged { .. } => "HISTORY_CHANGED",
            Error::SelfCheck { .. } => "SELF_CHECK",
            Error::Unsupported { .. } => "UNSUPPORTED",
            Error::NotKept { .. } => "ATTRIBUTE_NOT_KEPT",
            Error::Mount { .. } => "MOUNT",
            Error::Dest { trouble, .. } => trouble.code(),
            Error::ArcAway { .. } => "ARC_AWAY",
            Error::TimedOut => "READ_TIMED_OUT",
            Error::DownloadLimit { .. } => "DOWNLOAD_LIMIT",
            Error::ParityShort { .. } => "PARITY_SHORT",
            Error::Interrupted => "INTERRUPTED",
        }
    }

    /// What the kernel is told when a request on the mount ends in this error.
    pub fn errno(&self) -> i32 {
        match self {
            Error::NoPath { .. } => libc::ENOENT,
            Error::NoVersion(_) => libc::ENOENT,
            Error::VersionGone { .. }
            | Error::PathGone { .. }
            | Error::HistoryChanged { .. }
            | Error::ArcDropped { .. } => libc::ESTALE,
            Error::TimedOut | Error::Dest { trouble: Trouble::TimedOut { .. }, .. } => libc::ETIMEDOUT,
            Error::Interrupted => libc::EINTR,
            Error::Usage(_) | Error::AllExcluded { .. } => libc::EINVAL,
            Error::Locked { .. } => libc::EBUSY,
            Error::Io { .. }
            | Error::Arc { .. }
            | Error::IndexDamaged { .. }
            | Error::IndexRow { .. }
            | Error::IndexIo { .. }
            | Error::OtherFormat { .. }
            | Error::IndexTooNew { .. }
            | Error::DirectoryLost { .. }
            | Error::TreeMismatch { .. }
            | Error::ExtentsLost { .. }
            | Error::FileHashMismatch { .. }
            | Error::Stray { .. }
            | Error::NotFixed { .. }
            | Error::DirShared { .. }
            | Error::FileForeign { .. }
            | Error::NotABackupDir { .. }
            | Error::NotEmpty { .. }
            | Error::KeyWrong { .. }
            | Error::KeyDamaged { .. }
            | Error::KeyBare { .. }
            | Error::PassphraseWrong { .. }
            | Error::PassphraseMissing { .. }
            | Error::PassphraseSource { .. }
            | Error::Config { .. }
            | Error::CommitDamaged { .. }
            | Error::DeleteUnsafe { .. }
            | Error::Protected { .. }
            | Error::SelfCheck { .. }
            | Error::Unsupported { .. }
            | Error::NotKept { .. }
            | Error::Dest { .. }
            | Error::ArcAway { .. }
            | Error::DownloadLimit { .. }
            | Error::ParityShort { .. }
            | Error::Mount { .. } => libc::EIO,
        }
    }

    pub fn exit_code(&self) -> Exit {
        match self {
            Error::Usage(_) | Error::AllExcluded { .. } => Exit::Usage,
            Error::Stray { .. } => Exit::FinishedWithErrors,
            Error::Arc { .. }
            | Error::IndexDamaged { .. }
            | Error::IndexRow { .. }
            | Error::DirectoryLost { .. }
            | Error::TreeMismatch { .. }
            | Error::ExtentsLost { .. }
            | Error::FileHashMismatch { .. }
            | Error::NotFixed { .. }
            | Error::CommitDamaged { .. } => Exit::Damage,
            Error::NotABackupDir { .. } => Exit::NotABackupDir,
            Error::Locked { .. } => Exit::Locked,
            Error::KeyWrong { .. }
            | Error::KeyDamaged { .. }
            | Error::KeyBare { .. }
            | Error::PassphraseWrong { .. }
            | Error::PassphraseMissing { .. }
            | Error::PassphraseSource { .. } => Exit::WrongKey,
            Error::Interrupted => Exit::Interrupted,
            Error::Dest { trouble: Trouble::Checksum { .. }, .. } => Exit::Damage,
            Error::Dest { trouble: Trouble::InUse, .. } => Exit::Locked,
            Error::Dest { trouble: Trouble::Behind(_), .. } => Exit::FinishedWithErrors,
            Error::NotKept { .. } | Error::TimedOut | Error::DownloadLimit { .. } | Error::ArcAway { .. } => {
                Exit::FinishedWithErrors
            }
            Error::Io { .. }
            | Error::IndexIo { .. }
            | Error::OtherFormat { .. }
            | Error::IndexTooNew { .. }
            | Error::DirShared { .. }
            | Error::FileForeign { .. }
            | Error::NotEmpty { .. }
            | Error::Config { .. }
            | Error::NoVersion(_)
            | Error::NoPath { .. }
            | Error::DeleteUnsafe { .. }
            | Error::Protected { .. }
            | Error::ArcDropped { .. }
            | Error::VersionGone { .. }
            | Error::PathGone { .. }
            | Error::HistoryChanged { .. }
            | Error::SelfCheck { .. }
            | Error::Unsupported { .. }
            | Error::Dest { .. }
            | Error::ParityShort { .. }
            | Error::Mount { .. } => Exit::Failed,
        }
    }

    /// What the user can do, where there is something; one line.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Error::IndexDamaged { .. } | Error::IndexRow { .. } | Error::TreeMismatch { .. } => {
                Some("`assay recover` rebuilds the index from the arcs and key.conf")
            }
            Error::DirectoryLost { .. } | Error::ExtentsLost { .. } => {
                Some("run `assay recover` with an undamaged copy of the catalog arc")
            }
            Error::Arc { damage: Damage::Missing, .. } => Some(
                "put the arc file back from a copy of the backup dir; from a destination `assay recover --from NAME --arcs` \
                 fetches it",
            ),
            Error::Arc { damage: Damage::Unreadable(_), .. } => Some("check the disk (dmesg, smartctl)"),
            Error::Arc { .. } => Some("the data behind it is lost unless another copy of the arc exists"),
            Error::FileHashMismatch { .. } => Some("run `assay recover`: the index may list the wrong blocks"),
            Error::NotFixed { .. } => Some("put the arc back from a copy of the backup dir"),
            Error::DirShared { .. } => {
                Some("run as its user, or `chmod go-w` it, or trust all who can write there: --allow-shared-dir")
            }
            Error::FileForeign { why: Foreign::Link | Foreign::NoFile | Foreign::NoDir, .. } => {
                Some("look who has put it there, and take it away")
            }
            Error::FileForeign { why: Foreign::Names(_), .. } => {
                Some("put a copy of its own in its place: what is written must not change another file")
            }
            Error::FileForeign { why: Foreign::Owner(_) | Foreign::Writable(_), .. } => {
                Some("look at what it says, then give it to the user who runs assay (chown, chmod go-w)")
            }
            Error::FileForeign { why: Foreign::NoIndex, .. } => {
                Some("take the symlink index.db away, or let it lead to a file that is not there yet")
            }
            Error::FileForeign { why: Foreign::TooLong, .. } => Some("put your copy of it back"),
            Error::NotABackupDir { .. } => Some("make one with `assay init -c DIR`, or name it with -c or ASSAY_DIR"),
            Error::NotEmpty { .. } => Some("name an absent or empty directory"),
            Error::Locked { .. } => Some("wait until the other assay has finished"),
            Error::KeyWrong { .. } | Error::KeyDamaged { .. } => {
                Some("put your copy of this backup dir's key.conf back")
            }
            Error::KeyBare { .. } => {
                Some("look whether this is your backup dir; if its key is bare by intent, unset ASSAY_PASSPHRASE")
            }
            Error::PassphraseMissing { .. } => {
                Some("set ASSAY_PASSPHRASE, say --passphrase FROM, or run on a terminal")
            }
            Error::CommitDamaged { .. } => Some("put the arc back from a copy, then run `assay recover`"),
            Error::AllExcluded { .. } => Some("look at inex.conf in the backup dir, and at --exclude"),
            Error::NoVersion(_) => Some("`assay versions` lists them"),
            Error::NoPath { .. } => Some("`assay ls -a` lists all versions of a path"),
            Error::DeleteUnsafe { .. } => {
                Some("restore without --delete, or add --ignore-errors if what was not read may be removed")
            }
            Error::HistoryChanged { .. } => {
                Some("look whether an older copy was put in its place; if it is right so, say --accept-history")
            }
            Error::ArcAway { .. } => Some(
                "`assay dest sync` brings it from any that is in dest.toml and not off; if none has it, \
                 `assay selftest -v5 --fix` makes it anew from the files",
            ),
            Error::TimedOut => Some("try again when the place that has the bytes can be reached"),
            Error::Dest { trouble, .. } => trouble.help(),
            Error::DownloadLimit { .. } => {
                Some("say a higher --download-limit; a selftest with --inc goes on where this one has ended")
            }
            Error::Protected { .. } => Some("look at what is named; `rm` takes it all the same with `--force`"),
            Error::OtherFormat { .. } => Some(
                "read it with the release that made it; to go on, make a new backup dir (`assay init`) and back up into that",
            ),
            Error::IndexTooNew { .. } => Some("use the newer assay that wrote it"),
            Error::SelfCheck { .. } => {
                Some("suspect the memory or CPU of this machine and test it; nothing was committed")
            }
            Error::Io { errno, .. } if *errno == libc::ENOSPC => {
                Some("free some space; committed versions are safe and the next backup cleans up")
            }
            Error::Io { .. } if self.is_lack_of_descriptors() => {
                Some("raise the limit of open files: `ulimit -n`, or LimitNOFILE= in a systemd unit")
            }
            Error::Io { errno, .. } if *errno == libc::EACCES || *errno == libc::EPERM => {
                Some("run as a user who may do this")
            }
            Error::Io { .. }
            | Error::Stray { .. }
            | Error::IndexIo { .. }
            | Error::PassphraseSource { .. }
            | Error::PassphraseWrong { .. }
            | Error::Config { .. }
            | Error::Usage(_)
            | Error::ArcDropped { .. }
            | Error::VersionGone { .. }
            | Error::PathGone { .. }
            | Error::Unsupported { .. }
            | Error::NotKept { .. }
            | Error::ParityShort { .. }
            | Error::Mount { .. }
            | Error::Interrupted => None,
        }
    }

    /// True when this process, or the machine, may open no more files: that says nothing about the file in question.
    pub fn is_lack_of_descriptors(&self) -> bool {
        matches!(self, Error::Io { errno: libc::EMFILE | libc::ENFILE, .. })
    }

    /// True when there is no room left, on the disk or in a quota.
    pub fn is_lack_of_space(&self) -> bool {
        matches!(self, Error::Io { errno: libc::ENOSPC | libc::EDQUOT | libc::EFBIG, .. })
    }

    /// True when the index is not what it was, or says what was not backed up: the catalogs may know better.
    pub fn is_of_index(&self) -> bool {
        matches!(self, Error::IndexDamaged { .. } | Error::IndexRow { .. } | Error::TreeMismatch { .. })
    }

    /// True for anything that means stored bytes are not what they should be (the mount then exits 4).
    pub fn is_damage(&self) -> bool {
        self.exit_code() == Exit::Damage
    }
}

impl Damage {
    /// What an errno says of stored bytes that were to be read: only these speak of the medium, or of the file system
    /// on it. None: it speaks of a permission, of this process, this machine or a connection, and the bytes may be well.
    pub fn of_errno(errno: i32) -> Option<Damage> {
        match errno {
            // EBADMSG is how ext4 and XFS say that a checksum of theirs is wrong.
            libc::EIO | libc::EUCLEAN | libc::ENODATA | libc::EBADMSG => Some(Damage::Unreadable(errno)),
            _ => None,
        }
    }

    pub fn code(&self) -> &'static str {
        match self {
            Damage::Missing => "ARC_MISSING",
            Damage::Truncated { .. } => "ARC_FRAME_TRUNCATED",
            Damage::BadHeader => "ARC_HEADER_BAD",
            Damage::BadTrailer => "ARC_TRAILER_BAD",
            Damage::WrongFrame => "ARC_FRAME_WRONG",
            Damage::BadTag => "ARC_TAG_MISMATCH",
            Damage::BadCompression => "BLOCK_COMPRESSION_BAD",
            Damage::HashMismatch { .. } => "BLOCK_HASH_MISMATCH",
            Damage::BadRecord(_) => "ARC_RECORD_BAD",
            Damage::WrongSum(_) => "ARC_CHECKSUM",
            Damage::Unreadable(_) => "ARC_UNREADABLE",
        }
    }
}

fn damage_text(place: &Place, damage: &Damage) -> String {
    match damage {
        Damage::Missing => "the arc is missing".into(),
        Damage::Truncated { wanted_bytes, found_bytes } => {
            let part = if place.frame.is_some() { "frame" } else { "arc" };
            format!("the {part} is cut short: {found_bytes} of {wanted_bytes} bytes are there")
        }
        Damage::BadHeader => "the arc header is damaged".into(),
        Damage::BadTrailer => "the arc trailer is damaged".into(),
        Damage::WrongFrame => "the frame header is damaged or belongs to another frame".into(),
        Damage::BadTag => "the frame is damaged or from another place (AES-GCM tag mismatch)".into(),
        Damage::BadCompression => "the block does not decompress to its recorded length".into(),
        Damage::HashMismatch { expected, found } => format!("block hash mismatch: expected {expected}, found {found}"),
        Damage::BadRecord(what) => format!("the record does not parse: {what}"),
        Damage::WrongSum(sums) => {
            format!("the arc has another checksum (sha256) than was recorded: recorded {}, found {}", sums.0, sums.1)
        }
        Damage::Unreadable(errno) => format!("read error: {}", errno_text(*errno)),
    }
}

fn errno_text(errno: i32) -> String {
    io_text(&std::io::Error::from_raw_os_error(errno))
}

/// What an I/O error says, without its number.
pub(crate) fn io_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_string(),
        None => text,
    }
}
