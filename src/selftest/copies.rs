//! Where arcs are kept: the backup dir, and whatever else holds copies of them. A selftest reads each by ranges.
//!
//! Invariant: nothing here judges bytes; what is missing or unreadable is an error with its place.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Damage, Error, Place, Result};
use crate::ids::{ArcName, CopyId};
use crate::os::file::{self, Advice};

/// A place that holds a copy of all arcs.
pub(super) trait Copies: Sync {
    fn id(&self) -> CopyId;
    /// For messages; empty for the backup dir itself.
    fn name(&self) -> &str;
    /// # Errors
    /// `Missing` and `Unreadable` are damage; anything else (a permission, a connection) keeps the arc from being checked.
    fn open(&self, arc: ArcName) -> Result<Box<dyn ArcBytes>>;
}

/// An arc of a copy.
pub(super) trait ArcBytes: Send + Sync {
    fn len_bytes(&self) -> u64;
    /// Fills `buffer` from `offset` on as far as the arc goes.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Makes the next read of a range come from the medium (`len` 0: to the end).
    fn forget(&self, offset: u64, len: u64);
}

/// As large as pages come.
const PAGE_BYTES: u64 = 64 << 10;

/// The arcs in the backup dir.
pub(super) struct Local(PathBuf);

impl Local {
    pub fn new(dir: &Path) -> Local {
        Local(dir.to_path_buf())
    }
}

impl Copies for Local {
    fn id(&self) -> CopyId {
        CopyId::LOCAL
    }

    fn name(&self) -> &str {
        ""
    }

    fn open(&self, arc: ArcName) -> Result<Box<dyn ArcBytes>> {
        let path = self.0.join(arc.to_string());
        // Not blocking, should it be a fifo.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let opened = opened.and_then(|file| Ok((file.metadata()?, file)));
        let damage = match opened {
            Ok((meta, file)) if meta.is_file() => {
                file::advise(&file, 0, 0, Advice::DontNeed);
                file::advise(&file, 0, 0, Advice::Sequential);
                return Ok(Box::new(LocalArc { file, len_bytes: meta.len() }));
            }
            Ok(_) => Damage::Missing,
            Err(e) if e.kind() == ErrorKind::NotFound => Damage::Missing,
            Err(e) => match e.raw_os_error() {
                Some(errno @ (libc::EIO | libc::EUCLEAN | libc::ENODATA | libc::ELOOP)) => Damage::Unreadable(errno),
                _ => return Err(Error::io("open", path, &e)),
            },
        };
        Err(Error::Arc { place: Place { arc, frame: None, block: None, offset: 0 }, damage })
    }
}

struct LocalArc {
    file: File,
    len_bytes: u64,
}

impl ArcBytes for LocalArc {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        file::read_up_to(&self.file, buffer, offset)
    }

    fn forget(&self, offset: u64, len: u64) {
        // The kernel forgets only pages that lie in the range as a whole.
        let start = offset / PAGE_BYTES * PAGE_BYTES;
        let len = if len == 0 { 0 } else { (offset - start + len).next_multiple_of(PAGE_BYTES) };
        file::advise(&self.file, start, len, Advice::DontNeed);
    }
}
