//! File contents: all bytes asked for, verified, or an error; and what to decode before it is asked for.

use std::ops::Range;
use std::sync::Arc;

use super::{Ino, Vfs};
use crate::arc::VerifiedBlock;
use crate::catalog::{Kind, Node};
use crate::error::{Error, Result};
use crate::reader::{Asked, Bytes, wanted};
use crate::sync::lock;

/// Bytes decoded ahead of a sequential reader.
const WINDOW_BYTES: u64 = 4 << 20;
/// Decoding ahead is started for at least so much at a time.
const STEP_BYTES: u64 = 512 << 10;
/// Smaller files are not worth watching.
pub(super) const MIN_STREAM_BYTES: u64 = 256 << 10;
/// Readers of one file that are told apart.
const MAX_READERS: usize = 4;

/// One reader of a file, as far as its requests tell.
#[derive(Clone, Copy, Default)]
struct Reader {
    /// Furthest byte asked for.
    reached: u64,
    /// Decoding was started up to here.
    ahead_to: u64,
    /// Requests that continued the one before.
    in_sequence: u32,
}

/// The readers of one file, the latest last.
#[derive(Default)]
pub(super) struct Streams(Vec<Reader>);

impl Streams {
    /// Notes a request and gives the range to decode ahead. The kernel sends the parts of its own read-ahead in
    /// any order, so near is near enough for large requests.
    fn note(&mut self, request: Range<u64>, size: u64) -> Option<Range<u64>> {
        let len = request.end - request.start;
        let slack = if len >= 64 << 10 { WINDOW_BYTES } else { 128 << 10 };
        let near = |reader: &Reader| request.start.abs_diff(reader.reached) <= slack;
        let mut reader = match self.0.iter().position(near) {
            Some(found) => {
                let mut reader = self.0.remove(found);
                reader.in_sequence += 1;
                reader
            }
            None => Reader { in_sequence: u32::from(request.start == 0 && len >= 64 << 10), ..Reader::default() },
        };
        reader.reached = reader.reached.max(request.end);
        let from = reader.ahead_to.max(reader.reached);
        let to = reader.reached.saturating_add(WINDOW_BYTES).min(size);
        let start = reader.in_sequence > 0 && (to >= from + STEP_BYTES || (to == size && from < to));
        if start {
            reader.ahead_to = to;
        }
        if self.0.len() == MAX_READERS {
            self.0.remove(0);
        }
        self.0.push(reader);
        start.then_some(from..to)
    }
}

impl Vfs {
    /// Bytes `offset..offset + len` of a file, cut at its end. `then` gets them: on this thread before it returns, unless
    /// they must come from far; then on another, and no later than the store's deadline.
    ///
    /// Errors: whatever block or index row is damaged; then nothing at all is given.
    pub fn read(self: &Arc<Vfs>, ino: Ino, offset: u64, len: u32, then: impl FnOnce(Result<Bytes>) + Send + 'static) {
        let (node, asked) = match self.asked(ino, offset, len) {
            Ok(asked) => asked,
            Err(error) => return then(Err(error)),
        };
        let (vfs, logid) = (self.clone(), node.logid);
        self.store.ask(&asked.wanted(), Some(logid), move |blocks| {
            then(blocks.and_then(|blocks| vfs.answer(&node, &asked, blocks)));
        });
    }

    fn asked(&self, ino: Ino, offset: u64, len: u32) -> Result<(Arc<Node>, Asked)> {
        let logid = self.file(ino)?;
        let node = self.tree.node(logid)?;
        if node.attr.kind != Kind::File {
            return Err(Error::Usage(format!("inode {} is no regular file", ino.0)));
        }
        if let Some(error) = self.hash_is_wrong(logid) {
            return Err(error);
        }
        let asked = Asked::of(&self.tree, &node, offset, u64::from(len))?;
        let range = asked.range();
        if node.attr.size >= MIN_STREAM_BYTES && !range.is_empty() {
            self.read_ahead(&node, range.clone());
        } else if offset == 0 {
            self.ahead.note(logid);
        }
        Ok((node, asked))
    }

    fn answer(&self, node: &Node, asked: &Asked, blocks: Vec<VerifiedBlock>) -> Result<Bytes> {
        let (bytes, range) = (asked.bytes(blocks)?, asked.range());
        self.hash_on_the_way(node, range.start, &bytes)?;
        self.store.file_read(node.logid, range.start, range.end, node.attr.size);
        Ok(bytes)
    }

    /// As `read`, waiting for it.
    #[cfg(test)]
    pub fn read_now(self: &Arc<Vfs>, ino: Ino, offset: u64, len: u32) -> Result<Bytes> {
        let (answer, told) = std::sync::mpsc::channel();
        self.read(ino, offset, len, move |bytes| answer.send(bytes).unwrap());
        told.recv().unwrap()
    }

    fn read_ahead(&self, node: &Node, request: Range<u64>) {
        let ahead = {
            let mut streams = lock(&self.streams);
            streams.get_or_insert_mut(node.logid, Streams::default).note(request, node.attr.size)
        };
        // An error here is met again by whoever reads that far.
        if let Some(ahead) = ahead
            && let Ok(pieces) = self.tree.segments(node, ahead.start, ahead.end - ahead.start)
        {
            self.store.prefetch(wanted(&pieces), Some(node.logid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_sequential_reader_is_always_a_window_ahead() {
        let mut streams = Streams::default();
        let size = 100 * MIB;
        let mut decoded_to = 0;
        for step in 0..100 {
            if let Some(ahead) = streams.note(step * MIB..(step + 1) * MIB, size) {
                assert!(ahead.start >= decoded_to && ahead.end <= size, "{ahead:?}");
                decoded_to = ahead.end;
            }
            assert!(decoded_to >= ((step + 2) * MIB).min(size), "step {step}: only {decoded_to}");
        }
    }

    #[test]
    fn requests_out_of_order_are_still_one_reader() {
        let mut streams = Streams::default();
        let mut ranges = Vec::new();
        for start in [1, 0, 3, 2, 5, 4, 7, 6] {
            ranges.extend(streams.note(start * MIB..(start + 1) * MIB, 100 * MIB));
        }
        assert_eq!(streams.0.len(), 1);
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:?}");
    }

    #[test]
    fn random_readers_decode_nothing_ahead() {
        let mut streams = Streams::default();
        for at in [90, 3, 55, 20, 71, 8, 40] {
            assert_eq!(streams.note(at * MIB..at * MIB + 4096, 100 * MIB), None);
        }
    }
}
