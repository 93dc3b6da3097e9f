//! Where the live source may still have the bytes of a lost block.
//!
//! Invariants: nothing found here is believed: the caller compares the block hash; a path that is now a symlink, a
//! device or a fifo is not followed, waited for or read.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::io::{Error as IoError, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::error::Result;
use crate::ids::{BlockId, Logid, Version};
use crate::index::Pass;
use crate::tree::Tree;

/// Files that are named for one block; the newest ones.
const MAX_ORIGINALS: usize = 64;

/// A stretch of a file that had a block's bytes when it was backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// Absolute.
    pub path: Vec<u8>,
    pub offset: u64,
    pub len: u32,
    /// A version that shows the file so.
    pub version: Version,
}

/// Where the blocks were found in the source, newest file state first. One pass over the index for all of them.
///
/// # Errors
/// `INTERRUPTED` when `stop` says so; what keeps the index from being read.
pub fn originals(
    tree: &Tree,
    blocks: &HashSet<BlockId>,
    stop: &dyn Fn() -> bool,
) -> Result<HashMap<BlockId, Vec<Original>>> {
    let index = tree.index();
    let mut found: HashMap<BlockId, Vec<(Logid, Original)>> = HashMap::new();
    index.each_use(Pass::Readable, stop, |block, logid, bytes| {
        if !blocks.contains(&block) {
            return;
        }
        let originals = found.entry(block).or_default();
        // A file that no version shows any more has no path.
        if originals.len() < MAX_ORIGINALS
            && let Ok((version, path)) = index.path_of_node(logid)
        {
            let len = (bytes.end - bytes.start) as u32;
            originals.push((logid, Original { path, offset: bytes.start, len, version }));
        }
    })?;
    let newest_first = |mut originals: Vec<(Logid, Original)>| {
        originals.sort_by_key(|(logid, _)| Reverse(*logid));
        originals.into_iter().map(|(_, original)| original).collect()
    };
    Ok(found.into_iter().map(|(block, originals)| (block, newest_first(originals))).collect())
}

/// Reads a stretch of a live file.
///
/// # Errors
/// Whatever the system says; `InvalidInput` if it is no regular file, `UnexpectedEof` if it is shorter now.
pub fn read_original(original: &Original) -> std::io::Result<Vec<u8>> {
    let path = Path::new(std::ffi::OsStr::from_bytes(&original.path));
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(IoError::from(ErrorKind::InvalidInput));
    }
    let mut bytes = vec![0; original.len as usize];
    file.read_exact_at(&mut bytes, original.offset)?;
    Ok(bytes)
}
