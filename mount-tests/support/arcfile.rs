//! Enough of docs/format.md to find frames in an arc file, written anew: a second reader of the layout.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use hkdf::Hkdf;
use sha2::Sha256;

/// Bytes before the first frame.
pub const ARC_HEADER_LEN: usize = 112;
/// The sealed head that a frame begins with.
pub const FRAME_HEADER_LEN: usize = 32;
pub const TAG_LEN: usize = 16;
/// An entry of the table that a frame's body begins with.
const BLOCK_ENTRY_LEN: usize = 24;

/// Bare master keys of the backup dirs that were met, by backup id.
static KEYS: Mutex<Option<HashMap<[u8; 16], [u8; 32]>>> = Mutex::new(None);

/// Remembers the key of a backup dir, if it is bare; arcs of it can be read from then on.
pub fn know(repo: &Path) {
    let Ok(text) = fs::read_to_string(repo.join("key.conf")) else { return };
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='))?;
        let hex = line.trim().trim_matches('"');
        (0..hex.len() / 2).map(|n| u8::from_str_radix(hex.get(2 * n..2 * n + 2)?, 16).ok()).collect::<Option<Vec<u8>>>()
    };
    let (Some(id), Some(key)) = (value("backup_id"), value("key")) else { return };
    let mut keys = KEYS.lock().expect("keys");
    keys.get_or_insert_default().insert(id.try_into().expect("16 bytes"), key.try_into().expect("32 bytes"));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub number: u32,
    pub kind: u8,
    pub codec: u8,
    /// Plain lengths of its blocks, if it opens; kept for as long as a test runs.
    pub lens: &'static [usize],
    blocks: usize,
    pub plain_len: usize,
    pub stored_len: usize,
    /// Of the head's first byte.
    pub offset: usize,
}

impl Frame {
    pub fn end(&self) -> usize {
        self.tag() + TAG_LEN
    }
    pub fn body(&self) -> usize {
        self.offset + FRAME_HEADER_LEN
    }
    pub fn tag(&self) -> usize {
        self.body() + self.blocks * BLOCK_ENTRY_LEN + self.stored_len
    }
}

/// Changes a frame in two places, behind its head: damage that no repair of a single bit puts right.
pub fn spoil(bytes: &mut [u8], frame: &Frame) {
    bytes[frame.body()] ^= 1;
    bytes[frame.end() - 1] ^= 0x80;
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The frames of an arc in order, as long as their heads open (what follows is footer and trailer).
pub fn frames(arc: &[u8]) -> Vec<Frame> {
    let (backup_id, arc_id, salt) = (&arc[24..40], &arc[40..56], &arc[56..88]);
    let keys = KEYS.lock().expect("keys");
    let master = keys.iter().flatten().find(|(id, _)| *id == backup_id).expect("a backup dir that is known").1;
    let mut key = [0; 32];
    let info = [b"assay arc v2", arc_id, salt].concat();
    Hkdf::<Sha256>::new(Some(backup_id), master).expand(&info, &mut key).expect("32 bytes");
    let (cipher, aad) = (Aes256Gcm::new(&key.into()), [b"assay v2", backup_id, arc_id].concat());
    let mut nonce_of_body = [0; 12];
    let mut frames: Vec<Frame> = Vec::new();
    let mut at = ARC_HEADER_LEN;
    while at + FRAME_HEADER_LEN + TAG_LEN <= arc.len() {
        let mut nonce = [0; 12];
        nonce[3] = 6;
        nonce[8..].copy_from_slice(&(frames.len() as u32).to_be_bytes());
        let mut head: [u8; 16] = arc[at..at + 16].try_into().expect("a head");
        let tag: [u8; TAG_LEN] = arc[at + 16..at + 32].try_into().expect("a tag");
        let (nonce, tag) = (Nonce::from(nonce), Tag::from(tag));
        if cipher.decrypt_inout_detached(&nonce, &aad, head.as_mut_slice().into(), &tag).is_err() {
            break;
        }
        let mut frame = Frame {
            lens: &[],
            number: u32_at(&head, 0),
            kind: head[4],
            codec: head[5],
            blocks: usize::from(u16::from_le_bytes([head[6], head[7]])),
            stored_len: u32_at(&head, 8) as usize,
            plain_len: u32_at(&head, 12) as usize,
            offset: at,
        };
        if frame.number as usize != frames.len() || frame.end() > arc.len() {
            break;
        }
        nonce_of_body[8..].copy_from_slice(&frame.number.to_be_bytes());
        let mut body = arc[frame.body()..frame.tag()].to_vec();
        let tag: [u8; TAG_LEN] = arc[frame.tag()..frame.end()].try_into().expect("a tag");
        let (nonce, tag, aad) = (Nonce::from(nonce_of_body), Tag::from(tag), [&aad[..], &head].concat());
        if cipher.decrypt_inout_detached(&nonce, &aad, body.as_mut_slice().into(), &tag).is_ok() {
            let lens = (0..frame.blocks).map(|n| u32_at(&body, n * BLOCK_ENTRY_LEN) as usize).collect();
            frame.lens = Vec::leak(lens);
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
    know(repo);
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
