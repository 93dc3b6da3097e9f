//! Enough of docs/format.md to find frames in an arc file, written anew: a second reader of the layout.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes before the first frame.
pub const ARC_HEADER_LEN: usize = 112;
pub const FRAME_HEADER_LEN: usize = 36;
pub const TAG_LEN: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub number: u32,
    pub kind: u8,
    pub codec: u8,
    pub plain_len: usize,
    pub stored_len: usize,
    /// Of the header's first byte.
    pub offset: usize,
}

impl Frame {
    pub fn end(&self) -> usize {
        self.offset + FRAME_HEADER_LEN + self.stored_len + TAG_LEN
    }
    pub fn body(&self) -> usize {
        self.offset + FRAME_HEADER_LEN
    }
    pub fn tag(&self) -> usize {
        self.body() + self.stored_len
    }
}

/// Changes a frame in two places, behind its header: damage that no repair of a single bit puts right.
pub fn spoil(bytes: &mut [u8], frame: &Frame) {
    bytes[frame.body()] ^= 1;
    bytes[frame.end() - 1] ^= 0x80;
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The frames of an arc in order, as long as they are numbered 0, 1, 2, … (what follows is footer and trailer).
pub fn frames(arc: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut at = ARC_HEADER_LEN;
    while at + FRAME_HEADER_LEN + TAG_LEN <= arc.len() {
        let frame = Frame {
            number: u32_at(arc, at),
            kind: arc[at + 4],
            codec: arc[at + 5],
            plain_len: u32_at(arc, at + 8) as usize,
            stored_len: u32_at(arc, at + 12) as usize,
            offset: at,
        };
        if frame.number as usize != frames.len() || frame.end() > arc.len() {
            break;
        }
        at = frame.end();
        frames.push(frame);
    }
    frames
}

/// Frames of blocks (kind 1), the only ones that file content needs.
pub fn block_frames(arc: &[u8]) -> Vec<Frame> {
    frames(arc).into_iter().filter(|frame| frame.kind == 1).collect()
}

/// Names of the arcs in a backup dir, sorted by version and number.
pub fn arc_names(repo: &Path) -> Vec<String> {
    let mut names: Vec<String> = super::names_in(repo)
        .into_iter()
        .map(|name| String::from_utf8(name).expect("UTF-8"))
        .filter(|name| name.starts_with("arc."))
        .collect();
    names.sort_by_key(|name| arc_numbers(name));
    names
}

pub fn arc_numbers(name: &str) -> (u64, u64) {
    let mut parts = name.split('.').skip(1).map(|part| part.parse().unwrap_or_else(|_| panic!("odd arc name {name}")));
    (parts.next().expect("V"), parts.next().expect("N"))
}

/// Arcs that hold blocks.
pub fn data_arcs(repo: &Path) -> Vec<PathBuf> {
    let arcs: Vec<PathBuf> = arc_names(repo)
        .into_iter()
        .map(|name| repo.join(name))
        .filter(|path| !block_frames(&fs::read(path).expect("read arc")).is_empty())
        .collect();
    assert!(!arcs.is_empty(), "no data arc in {}", repo.display());
    arcs
}

/// Replaces an arc's bytes and makes sure that they changed.
pub fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let before = fs::read(path).expect("read arc");
    let mut after = before.clone();
    change(&mut after);
    assert!(before != after, "the fault did not change {}", path.display());
    overwrite(path, &after);
}

/// Writes over a file that may be read-only, keeping its mode.
pub fn overwrite(path: &Path, bytes: &[u8]) {
    let mode = fs::metadata(path).expect("stat").permissions();
    fs::remove_file(path).expect("rm");
    fs::write(path, bytes).expect("write");
    fs::set_permissions(path, mode).expect("chmod");
    assert!(fs::read(path).expect("read back") == bytes, "{} reads back differently", path.display());
}
