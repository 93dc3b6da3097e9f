//! The whole-file SHA-1 on the way: a file that is read from its start to its end is compared at no extra pass.
//!
//! Invariants: nobody gets all bytes of a file whose hash was found to be wrong: the request that completes it fails, and
//! so do all that come later; what is hashed was verified before; memory is bounded. A file that is not read in
//! sequence is given up without a word: nothing is said about it, neither good nor bad.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;

use super::Vfs;
use crate::catalog::Node;
use crate::crypto::FileHasher;
use crate::error::{Error, Result};
use crate::ids::Logid;
use crate::ledger::Extent;
use crate::reader::Bytes;
use crate::sync::lock;

/// Files that are hashed at a time.
const MAX_FILES: usize = 16;
/// Bytes of one that came before those ahead of them.
const MAX_WAITING_BYTES: u64 = 4 << 20;
/// Files with a wrong hash that are remembered.
const MAX_WRONG: usize = 10_000;

/// Which files are hashed while they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hashing {
    /// Those of several blocks that one request reads whole: it costs next to nothing.
    #[default]
    Small,
    /// All that are read in sequence: it costs a third of the speed of a long read.
    All,
}

/// What is being hashed, and what was found wrong.
pub(super) struct Hashes {
    going_on: Mutex<LruCache<Logid, Arc<Mutex<Progress>>>>,
    wrong: Mutex<HashMap<Logid, Error>>,
}

/// A file on its way.
#[derive(Default)]
struct Progress {
    hasher: FileHasher,
    /// All bytes before are hashed.
    reached: u64,
    /// By their offset: requests of one reader come slightly out of order.
    waiting: BTreeMap<u64, Vec<u8>>,
    waiting_bytes: u64,
    given_up: bool,
}

impl Hashes {
    pub fn new() -> Hashes {
        let going_on = LruCache::new(NonZeroUsize::new(MAX_FILES).unwrap_or(NonZeroUsize::MIN));
        Hashes { going_on: Mutex::new(going_on), wrong: Mutex::new(HashMap::new()) }
    }
}

impl Progress {
    fn take(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        if self.given_up || end <= self.reached {
            return;
        }
        if offset > self.reached {
            if !self.waiting.contains_key(&offset) {
                self.waiting_bytes += bytes.len() as u64;
                self.waiting.insert(offset, bytes.to_vec());
            }
            if self.waiting_bytes > MAX_WAITING_BYTES {
                *self = Progress { given_up: true, ..Progress::default() };
            }
            return;
        }
        self.advance(offset, bytes);
        while let Some(next) = self.waiting.first_entry().filter(|next| *next.key() <= self.reached) {
            let (offset, bytes) = next.remove_entry();
            self.waiting_bytes -= bytes.len() as u64;
            self.advance(offset, &bytes);
        }
    }

    /// Hashes what is new of bytes that begin where it has come to, or before.
    fn advance(&mut self, offset: u64, bytes: &[u8]) {
        let known = usize::try_from(self.reached - offset).unwrap_or(usize::MAX);
        if let Some(new) = bytes.get(known..) {
            self.hasher.update(new);
            self.reached += new.len() as u64;
        }
    }
}

impl Vfs {
    /// Why a file is not given out, if its hash was found wrong.
    pub(super) fn hash_is_wrong(&self, logid: Logid) -> Option<Error> {
        lock(&self.hashes.wrong).get(&logid).cloned()
    }

    /// Takes verified bytes that are about to be given out.
    ///
    /// # Errors
    /// `FILE_HASH_MISMATCH` when they complete a file whose SHA-1 is not the one that was backed up.
    pub(super) fn hash_on_the_way(&self, node: &Node, offset: u64, bytes: &Bytes) -> Result<()> {
        let size = node.attr.size;
        if node.sha1.is_none() || bytes.is_empty() {
            return Ok(());
        }
        if bytes.len() as u64 == size {
            if node.is_one_block() {
                // The block's own hash was made of the same bytes, and was just compared.
                self.note_hashed(node.logid);
                return Ok(());
            }
            let mut hasher = FileHasher::default();
            hasher.update(bytes);
            return self.compare(node, hasher);
        }
        if self.options.hashing == Hashing::Small {
            return Ok(());
        }
        let progress = {
            let mut going_on = lock(&self.hashes.going_on);
            match going_on.get(&node.logid) {
                // From the start again: whatever was given up may succeed now.
                Some(known) if offset > 0 || !lock(known).given_up => known.clone(),
                _ => {
                    let fresh = Arc::new(Mutex::new(Progress::default()));
                    going_on.put(node.logid, fresh.clone());
                    fresh
                }
            }
        };
        let mut progress = lock(&progress);
        progress.take(offset, bytes);
        if progress.reached < size {
            return Ok(());
        }
        let hasher = std::mem::take(&mut *progress).hasher;
        drop(progress);
        lock(&self.hashes.going_on).pop(&node.logid);
        self.compare(node, hasher)
    }

    fn note_hashed(&self, logid: Logid) {
        if let Some(ledger) = self.store.ledger() {
            ledger.file(logid, Extent::Hashed);
        }
    }

    fn compare(&self, node: &Node, hasher: FileHasher) -> Result<()> {
        let Some(expected) = node.sha1 else { return Ok(()) };
        let found = hasher.finish();
        if found == expected {
            self.note_hashed(node.logid);
            return Ok(());
        }
        let path = self.tree.index().path_of_node(node.logid).map_or_else(|_| Vec::new(), |(_, path)| path);
        let error = Error::FileHashMismatch { path, expected, found };
        let mut wrong = lock(&self.hashes.wrong);
        if wrong.len() < MAX_WRONG {
            wrong.insert(node.logid, error.clone());
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_slightly_out_of_order_are_hashed_in_order() {
        let content: Vec<u8> = (0..100_000u32).map(|n| (n * 7 + n / 251) as u8).collect();
        let mut whole = FileHasher::default();
        whole.update(&content);
        let mut progress = Progress::default();
        for (start, end) in
            [(0, 10), (20_000, 30_000), (10, 15_000), (12_000, 20_000), (60_000, 100_000), (30_000, 60_000)]
        {
            progress.take(start as u64, &content[start..end]);
        }
        assert_eq!((progress.reached, progress.waiting_bytes), (100_000, 0));
        assert_eq!(progress.hasher.finish(), whole.finish());
    }

    #[test]
    fn a_reader_that_is_not_sequential_is_given_up_and_its_memory_with_it() {
        let mut progress = Progress::default();
        for part in 1..100 {
            progress.take(part * (1 << 20), &[0; 1 << 19]);
            assert!(progress.waiting_bytes <= MAX_WAITING_BYTES);
        }
        assert!(progress.given_up && progress.waiting.is_empty());
    }
}
