//! Decodes small files before they are asked for.
//!
//! Files are numbered in the order of the tree, which is the order in which `diff -r`, rsync and tar read. So whoever
//! reads some small files with growing numbers will probably want the next ones; another thread reads them through
//! the store as a reader would, and the reader finds their blocks, and their rows, at hand.
//! Invariants: one thread; a reader never waits for it; what it does is bounded in files and bytes; what it meets is
//! noted as a reader would note it.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::catalog::Kind;
use crate::ids::Logid;
use crate::reader::Asked;
use crate::store::Store;
use crate::sync::lock;
use crate::tree::Tree;

/// Files and bytes decoded ahead of a reader.
const AHEAD_FILES: u64 = 64;
const AHEAD_BYTES: u64 = 2 << 20;
/// Decoding ahead is started for at least so many files at a time.
const STEP_FILES: u64 = 32;
/// Numbers that may lie between two files read in sequence: special files, and files that did not change.
const NEAR: u64 = 8;
/// Files read in sequence before that is believed.
const IN_SEQUENCE: u32 = 4;

#[derive(Default)]
struct Reader {
    last: u64,
    in_sequence: u32,
    ahead_to: u64,
}

impl Reader {
    /// Notes a file that was read, and gives those to decode next.
    fn note(&mut self, logid: Logid) -> Option<Range<u64>> {
        let near = logid.0 > self.last && logid.0 - self.last <= NEAR;
        self.in_sequence = if near { self.in_sequence.saturating_add(1) } else { 0 };
        self.last = logid.0;
        if !near {
            self.ahead_to = 0;
        }
        let from = self.ahead_to.max(logid.0 + 1);
        let to = logid.0 + 1 + AHEAD_FILES;
        if self.in_sequence < IN_SEQUENCE || to < from + STEP_FILES {
            return None;
        }
        self.ahead_to = to;
        Some(from..to)
    }
}

/// Ends its thread when dropped.
pub(super) struct Ahead {
    reader: Mutex<Reader>,
    ranges: Option<Sender<Range<u64>>>,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    /// Starts the thread; none on a machine with one CPU, where it would only be in the way.
    pub fn start(tree: Arc<Tree>, store: Arc<Store>) -> Ahead {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (sender, receiver) = bounded(4);
        let run = move || serve(&tree, &store, &receiver);
        let thread = if cores > 1 { std::thread::Builder::new().name("ahead".into()).spawn(run).ok() } else { None };
        Ahead { reader: Mutex::default(), ranges: thread.is_some().then_some(sender), thread }
    }

    /// A small file is read from its start.
    pub fn note(&self, logid: Logid) {
        let Some(ranges) = &self.ranges else { return };
        if let Some(range) = lock(&self.reader).note(logid) {
            // When the thread is behind, the reader is as fast by itself.
            let _ = ranges.try_send(range);
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.ranges = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(tree: &Tree, store: &Store, ranges: &Receiver<Range<u64>>) {
    for range in ranges {
        let mut room = AHEAD_BYTES;
        // An error here is met again by whoever reads the file.
        for node in tree.nodes(range).unwrap_or_default() {
            if node.attr.kind != Kind::File || node.attr.size > super::read::MIN_STREAM_BYTES {
                continue;
            }
            let Some(left) = room.checked_sub(node.attr.size) else { break };
            room = left;
            if let Ok(asked) = Asked::of(tree, &node, 0, node.attr.size) {
                store.ask(&asked.wanted(), Some(node.logid), |_| ());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_read_in_the_order_of_the_tree_are_decoded_ahead_once_each() {
        let mut reader = Reader::default();
        let mut next = 0;
        for logid in 100..300 {
            if let Some(ahead) = reader.note(Logid(logid)) {
                assert!(
                    ahead.start > logid && ahead.start >= next && ahead.end - ahead.start >= STEP_FILES,
                    "{ahead:?}"
                );
                next = ahead.end;
            }
            assert!(logid < 100 + u64::from(IN_SEQUENCE) || next > logid + AHEAD_FILES - STEP_FILES, "{logid}: {next}");
        }
    }

    #[test]
    fn files_read_in_any_other_order_are_not() {
        let mut reader = Reader::default();
        for logid in [500, 20, 90, 91, 92, 40, 39, 38, 37, 36, 35, 700, 800, 900] {
            assert_eq!(reader.note(Logid(logid)), None, "{logid}");
        }
    }
}
