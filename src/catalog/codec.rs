//! Catalog values ↔ bytes (docs/format.md, "Catalog"). Pure.
//!
//! Invariants: whatever `encode` writes `decode` reads back equal; `decode` never panics and refuses bytes that
//! are cut, have something left over, or hold a value that `encode` can't have written.
//! Numbers are LEB128 varints, signed ones zigzag; strings are a length and the bytes.

use super::*;
use crate::ids::{BlockId, Dirno, FileHash, Logid, Version};

/// Bytes that are no record; says which part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRecord(pub &'static str);

type Decoded<T> = Result<T, BadRecord>;

/// Appends numbers and strings to a buffer.
#[derive(Default)]
pub struct Encoder(pub Vec<u8>);

impl Encoder {
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    pub fn uint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
    pub fn int(&mut self, value: i64) {
        self.uint(((value << 1) ^ (value >> 63)) as u64);
    }
    pub fn bytes(&mut self, value: &[u8]) {
        self.uint(value.len() as u64);
        self.raw(value);
    }
    pub fn raw(&mut self, value: &[u8]) {
        self.0.extend_from_slice(value);
    }
    pub fn time(&mut self, time: Timespec) {
        self.int(time.sec);
        self.uint(u64::from(time.nsec));
    }
}

/// Reads what `Encoder` wrote.
pub struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    pub fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder(bytes)
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn u8(&mut self) -> Decoded<u8> {
        let (first, rest) = self.0.split_first().ok_or(BadRecord("cut short"))?;
        self.0 = rest;
        Ok(*first)
    }
    pub fn uint(&mut self) -> Decoded<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(BadRecord("number too long"))
    }
    /// A number that must fit the smaller type.
    pub fn small<T: TryFrom<u64>>(&mut self) -> Decoded<T> {
        T::try_from(self.uint()?).map_err(|_| BadRecord("number out of range"))
    }
    pub fn int(&mut self) -> Decoded<i64> {
        let raw = self.uint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }
    pub fn raw(&mut self, len: usize) -> Decoded<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(BadRecord("cut short"))?;
        self.0 = rest;
        Ok(bytes)
    }
    pub fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(BadRecord("cut short"))?;
        self.0 = rest;
        Ok(*bytes)
    }
    pub fn bytes(&mut self) -> Decoded<&'a [u8]> {
        let len = self.small()?;
        self.raw(len)
    }
    pub fn string(&mut self) -> Decoded<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| BadRecord("text is not UTF-8"))
    }
    pub fn time(&mut self) -> Decoded<Timespec> {
        let time = Timespec { sec: self.int()?, nsec: self.small()? };
        if time.nsec < 1_000_000_000 { Ok(time) } else { Err(BadRecord("nanoseconds out of range")) }
    }
    /// A count of things that take at least one byte each, so it can't make a reader allocate more than it was given.
    pub fn count(&mut self) -> Decoded<usize> {
        let count = self.small()?;
        if count <= self.0.len() { Ok(count) } else { Err(BadRecord("count too large")) }
    }
    /// What is not decoded yet.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
    pub fn end(self) -> Decoded<()> {
        if self.0.is_empty() { Ok(()) } else { Err(BadRecord("bytes left over")) }
    }
}

impl Kind {
    pub fn from_code(code: u8) -> Option<Kind> {
        Some(match code {
            1 => Kind::File,
            2 => Kind::Dir,
            3 => Kind::Symlink,
            4 => Kind::Fifo,
            5 => Kind::Socket,
            6 => Kind::CharDevice,
            7 => Kind::BlockDevice,
            _ => return None,
        })
    }
}

fn kind(d: &mut Decoder) -> Decoded<Kind> {
    Kind::from_code(d.u8()?).ok_or(BadRecord("unknown file type"))
}

fn put_attr(e: &mut Encoder, attr: &Attr) {
    e.u8(attr.kind as u8);
    e.uint(u64::from(attr.perm));
    e.uint(u64::from(attr.uid));
    e.uint(u64::from(attr.gid));
    e.uint(attr.size);
    e.time(attr.mtime);
    e.time(attr.ctime);
    e.uint(u64::from(attr.nlink));
    e.uint(attr.source_ino);
    if matches!(attr.kind, Kind::CharDevice | Kind::BlockDevice) {
        e.uint(u64::from(attr.rdev_major));
        e.uint(u64::from(attr.rdev_minor));
    }
}

fn attr(d: &mut Decoder) -> Decoded<Attr> {
    let kind = kind(d)?;
    let mut attr = Attr {
        kind,
        perm: d.small()?,
        uid: d.small()?,
        gid: d.small()?,
        size: d.uint()?,
        mtime: d.time()?,
        ctime: d.time()?,
        nlink: d.small()?,
        source_ino: d.uint()?,
        rdev_major: 0,
        rdev_minor: 0,
    };
    if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
        attr.rdev_major = d.small()?;
        attr.rdev_minor = d.small()?;
    }
    if attr.perm > 0o7777 || attr.size > i64::MAX as u64 {
        return Err(BadRecord("attribute out of range"));
    }
    Ok(attr)
}

fn put_xattrs(e: &mut Encoder, xattrs: &Xattrs) {
    e.uint(xattrs.len() as u64);
    for (name, value) in xattrs {
        e.bytes(name);
        e.bytes(value);
    }
}

fn xattrs(d: &mut Decoder) -> Decoded<Xattrs> {
    (0..d.count()?).map(|_| Ok((d.bytes()?.to_vec(), d.bytes()?.to_vec()))).collect()
}

fn put_segments(e: &mut Encoder, segments: &[Segment]) {
    e.uint(segments.len() as u64);
    let mut expected = 0u64;
    for segment in segments {
        match *segment {
            Segment::Hole { len } => e.uint(len << 1 | 1),
            Segment::Data { block, len } => {
                e.uint(u64::from(len) << 1);
                e.int((block.0 as i64).wrapping_sub(expected as i64));
                expected = block.0.wrapping_add(1);
            }
        }
    }
}

fn segments(d: &mut Decoder) -> Decoded<Vec<Segment>> {
    let mut expected = 0u64;
    let mut total = 0u64;
    (0..d.count()?)
        .map(|_| {
            let head = d.uint()?;
            let len = head >> 1;
            total = total.checked_add(len).filter(|t| *t <= i64::MAX as u64).ok_or(BadRecord("file too long"))?;
            if len == 0 {
                return Err(BadRecord("empty segment"));
            }
            if head & 1 == 1 {
                return Ok(Segment::Hole { len });
            }
            let block = (expected as i64).wrapping_add(d.int()?) as u64;
            if block > i64::MAX as u64 {
                return Err(BadRecord("block id out of range"));
            }
            expected = block.wrapping_add(1);
            Ok(Segment::Data { block: BlockId(block), len: len.try_into().map_err(|_| BadRecord("block too long"))? })
        })
        .collect()
}

/// Segments in a row: count, then (length × 2 + 1 for a hole) and the block id as difference to the one expected.
pub fn encode_segments(list: &[Segment]) -> Vec<u8> {
    let mut e = Encoder::default();
    put_segments(&mut e, list);
    e.0
}

pub fn decode_segments(bytes: &[u8]) -> Decoded<Vec<Segment>> {
    let mut d = Decoder::new(bytes);
    let list = segments(&mut d)?;
    d.end()?;
    Ok(list)
}

const FLAG_RACY: u8 = 1;
const FLAG_SHA1: u8 = 2;
const FLAG_CHUNKED: u8 = 4;

fn put_node(e: &mut Encoder, node: &Node) {
    e.uint(node.logid.0);
    put_attr(e, &node.attr);
    e.uint(node.data_bytes);
    let chunked = matches!(node.content, Content::Chunked);
    e.u8(u8::from(node.racy) * FLAG_RACY
        + u8::from(node.sha1.is_some()) * FLAG_SHA1
        + u8::from(chunked) * FLAG_CHUNKED);
    if let Some(sha1) = node.sha1 {
        e.raw(&sha1.0);
    }
    if let Content::Inline(list) = &node.content {
        put_segments(e, list);
    }
    e.bytes(&node.target);
    put_xattrs(e, &node.xattrs);
}

fn node(d: &mut Decoder) -> Decoded<Node> {
    let logid = Logid(d.uint()?);
    let attr = attr(d)?;
    let data_bytes = d.uint()?;
    let flags = d.u8()?;
    if flags > FLAG_RACY + FLAG_SHA1 + FLAG_CHUNKED || attr.kind == Kind::Dir {
        return Err(BadRecord("node flags"));
    }
    let sha1 = if flags & FLAG_SHA1 != 0 { Some(FileHash(d.array()?)) } else { None };
    let content = if flags & FLAG_CHUNKED != 0 { Content::Chunked } else { Content::Inline(segments(d)?) };
    if let Content::Inline(list) = &content {
        let total: u64 = list.iter().map(Segment::len).sum();
        if total != if attr.kind == Kind::File { attr.size } else { 0 } {
            return Err(BadRecord("segments do not add up to the file's size"));
        }
    }
    Ok(Node {
        logid,
        attr,
        data_bytes,
        racy: flags & FLAG_RACY != 0,
        sha1,
        content,
        target: d.bytes()?.to_vec(),
        xattrs: xattrs(d)?,
    })
}

pub fn encode_node(value: &Node) -> Vec<u8> {
    let mut e = Encoder::default();
    put_node(&mut e, value);
    e.0
}

pub fn decode_node(bytes: &[u8]) -> Decoded<Node> {
    let mut d = Decoder::new(bytes);
    let value = node(&mut d)?;
    d.end()?;
    Ok(value)
}

/// The attributes and data bytes of an encoded node, of which the first 150 bytes are enough.
pub fn decode_node_attr(bytes: &[u8]) -> Decoded<(Attr, u64)> {
    let mut d = Decoder::new(bytes);
    d.uint()?;
    Ok((attr(&mut d)?, d.uint()?))
}

fn put_dir_state(e: &mut Encoder, state: &DirState) {
    put_attr(e, &state.attr);
    e.uint(state.children);
    put_xattrs(e, &state.xattrs);
}

fn dir_state(d: &mut Decoder) -> Decoded<DirState> {
    let attr = attr(d)?;
    if attr.kind != Kind::Dir {
        return Err(BadRecord("directory with another type"));
    }
    Ok(DirState { attr, children: d.uint()?, xattrs: xattrs(d)? })
}

pub fn encode_dir_state(value: &DirState) -> Vec<u8> {
    let mut e = Encoder::default();
    put_dir_state(&mut e, value);
    e.0
}

pub fn decode_dir_state(bytes: &[u8]) -> Decoded<DirState> {
    let mut d = Decoder::new(bytes);
    let value = dir_state(&mut d)?;
    d.end()?;
    Ok(value)
}

/// Longest name, bytes. ext4 takes 255, but file systems that count characters (vfat, exfat, ntfs, cifs) take three
/// times as many; a row of the index must hold one without an overflow page.
pub const MAX_NAME_LEN: usize = 800;

/// A file or directory name as the kernel can give one; anything else could escape its directory.
pub fn valid_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_LEN
        && name != b"."
        && name != b".."
        && !name.contains(&b'/')
        && !name.contains(&0)
}

fn name(d: &mut Decoder) -> Decoded<Vec<u8>> {
    let name = d.bytes()?;
    if valid_name(name) { Ok(name.to_vec()) } else { Err(BadRecord("impossible name")) }
}

fn dirno(d: &mut Decoder) -> Decoded<Dirno> {
    Some(Dirno(d.uint()?)).filter(|n| *n <= Dirno::MAX).ok_or(BadRecord("directory number out of range"))
}

/// Appends one record to a catalog frame.
pub fn encode_record(out: &mut Vec<u8>, record: &Record) {
    let mut e = Encoder(std::mem::take(out));
    match record {
        Record::Dir { dirno, parent, name, listing, state } => {
            e.u8(1);
            e.uint(dirno.0);
            e.uint(parent.0);
            e.bytes(name);
            e.u8(*listing as u8);
            e.u8(u8::from(state.is_some()));
            if let Some(state) = state {
                put_dir_state(&mut e, state);
            }
        }
        Record::Put { name, child, kind, node } => {
            e.u8(2);
            e.bytes(name);
            e.u8(*kind as u8);
            let (Child::Node(Logid(id)) | Child::Dir(Dirno(id))) = *child;
            e.uint(id);
            e.u8(u8::from(node.is_some()));
            if let Some(node) = node {
                put_node(&mut e, node);
            }
        }
        Record::Remove { name } => {
            e.u8(3);
            e.bytes(name);
        }
        Record::Extents(chunk) => {
            e.u8(4);
            e.uint(chunk.logid.0);
            e.uint(chunk.start);
            put_segments(&mut e, &chunk.segments);
        }
        Record::RemoveVersion(version) => {
            e.u8(5);
            e.uint(u64::from(version.0));
        }
        Record::Relocate { from, to } => {
            e.u8(6);
            e.uint(from.0);
            e.uint(to.0);
        }
        Record::DropArc(serial) => {
            e.u8(7);
            e.uint(serial.0);
        }
    }
    *out = e.0;
}

fn record(d: &mut Decoder) -> Decoded<Record> {
    Ok(match d.u8()? {
        1 => {
            let (dirno, parent) = (dirno(d)?, dirno(d)?);
            let name = if dirno == Dirno::ROOT { d.bytes()?.to_vec() } else { name(d)? };
            if dirno == Dirno::ROOT && !(name.is_empty() && parent == Dirno::ROOT) {
                return Err(BadRecord("root directory with a name"));
            }
            let listing = match d.u8()? {
                1 => Listing::Delta,
                2 => Listing::Full,
                3 => Listing::FullMore,
                4 => Listing::Lost,
                _ => return Err(BadRecord("unknown listing")),
            };
            Record::Dir { dirno, parent, name, listing, state: if flag(d)? { Some(dir_state(d)?) } else { None } }
        }
        2 => {
            let (name, kind, id) = (name(d)?, kind(d)?, d.uint()?);
            let child = if kind == Kind::Dir { Child::Dir(Dirno(id)) } else { Child::Node(Logid(id)) };
            let node = if flag(d)? { Some(Box::new(node(d)?)) } else { None };
            let fits = match (&child, &node) {
                (Child::Node(logid), Some(node)) => node.logid == *logid && node.attr.kind == kind,
                (Child::Node(_), None) => true,
                (Child::Dir(dirno), node) => node.is_none() && *dirno <= Dirno::MAX,
            };
            if !fits || id > i64::MAX as u64 {
                return Err(BadRecord("entry and node disagree"));
            }
            Record::Put { name, child, kind, node }
        }
        3 => Record::Remove { name: name(d)? },
        4 => Record::Extents(ExtentChunk { logid: Logid(d.uint()?), start: d.uint()?, segments: segments(d)? }),
        5 => Record::RemoveVersion(Version(d.small()?)),
        6 => Record::Relocate { from: BlockId(d.uint()?), to: BlockId(d.uint()?) },
        7 => Record::DropArc(crate::ids::ArcSerial(d.uint()?)),
        _ => return Err(BadRecord("unknown record")),
    })
}

fn flag(d: &mut Decoder) -> Decoded<bool> {
    match d.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(BadRecord("flag")),
    }
}

/// All records of a catalog frame, in order.
pub fn decode_records(bytes: &[u8]) -> Decoded<Vec<Record>> {
    let mut d = Decoder::new(bytes);
    let mut records = Vec::new();
    while !d.is_empty() {
        records.push(record(&mut d)?);
    }
    Ok(records)
}

pub fn encode_version_info(value: &VersionInfo) -> Vec<u8> {
    value.encode()
}

pub fn decode_version_info(bytes: &[u8]) -> Decoded<VersionInfo> {
    VersionInfo::decode(bytes)
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
