//! Digests that bind a version's tree: of a file state, of a long file's segments, of a listing, of a directory state.
//! Pure.
//!
//! Invariants: a digest is a function of what the catalog says and of nothing else, so that writers, readers and whoever
//! checks a noted line come to the same one; what is numbered anew by a recovery (logids, directory numbers) and what only
//! says how sure something is (racy) is no part of it. A directory state holds the digest of its listing, so that what
//! `stat` says of a directory is proven without a look at its names.

use sha2::{Digest, Sha256};

use super::codec::{self, Encoder};
use super::{DirState, Kind, Node, Segment};
use crate::ids::{BlockId, ListingDigest, NodeDigest, SegmentsDigest, TreeDigest};

/// What an entry of a listing stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemDigest {
    Node(NodeDigest),
    Dir(TreeDigest),
}

/// All of the node but its logid, and whether it is to be read again.
pub fn node(node: &Node) -> NodeDigest {
    let mut e = Encoder(Vec::with_capacity(256));
    e.raw(b"assay node v2");
    codec::put_state(&mut e, node, false);
    let digest: [u8; 32] = Sha256::digest(&e.0).into();
    NodeDigest(*digest.first_chunk().unwrap_or(&[0; 16]))
}

/// All of the state, and by its listing all that is below.
pub fn dir(state: &DirState) -> TreeDigest {
    let mut hash = Sha256::new();
    hash.update(b"assay dir v2");
    hash.update(codec::encode_dir_state(state));
    TreeDigest(hash.finalize().into())
}

/// Which names of a directory are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    All,
    /// Others may exist.
    Some,
}

/// The names of a directory, in byte order.
pub struct Listing {
    hash: Sha256,
    known: Known,
    /// The name that is being added.
    name: Encoder,
}

impl Listing {
    pub fn new(known: Known) -> Listing {
        let mut hash = Sha256::new();
        hash.update(b"assay listing v2");
        hash.update([u8::from(known == Known::Some)]);
        Listing { hash, known, name: Encoder::default() }
    }

    pub fn add(&mut self, name: &[u8], kind: Kind, item: &ItemDigest) {
        let e = &mut self.name;
        e.0.clear();
        e.bytes(name);
        e.u8(kind as u8);
        match item {
            ItemDigest::Node(digest) => e.raw(&digest.0),
            ItemDigest::Dir(digest) => e.raw(&digest.0),
        }
        self.hash.update(&e.0);
    }

    pub fn finish(self) -> ListingDigest {
        let mut digest: [u8; 32] = self.hash.finalize().into();
        if let (Known::Some, Some(last)) = (self.known, digest.last_chunk_mut()) {
            *last = ListingDigest::PARTIAL;
        }
        ListingDigest(digest)
    }
}

/// All segments of a long file, in order; how they are cut into Extents records does not matter.
pub struct Segments {
    hash: Sha256,
    expected: BlockId,
}

impl Default for Segments {
    fn default() -> Segments {
        let mut hash = Sha256::new();
        hash.update(b"assay segments v2");
        Segments { hash, expected: BlockId(0) }
    }
}

impl Segments {
    pub fn add(&mut self, segments: &[Segment]) {
        let mut e = Encoder::default();
        self.expected = codec::put_segments_from(&mut e, segments, self.expected);
        self.hash.update(&e.0);
    }

    pub fn finish(self) -> SegmentsDigest {
        SegmentsDigest(self.hash.finalize().into())
    }
}
