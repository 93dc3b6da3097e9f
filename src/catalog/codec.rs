//! Catalog values ↔ bytes (docs/format.md, "Catalog"). Pure.
//!
//! Invariants: whatever `encode` writes `decode` reads back equal, and what `decode` accepts `encode` writes again, byte
//! for byte; `decode` never panics and refuses what no backup writes: each rule of docs/format.md is refused by name.

pub use super::numbers::{BadRecord, Decoded, Decoder, Encoder, require};
use super::*;
use crate::ids::{BlockId, Dirno, FileHash, ListingDigest, SegmentsDigest};

/// Files, and so offsets in them, are shorter than this, as in `off_t`.
const MAX_FILE_BYTES: u64 = i64::MAX as u64;

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
    require(attr.perm <= 0o7777, BadRecord("permissions out of range"))?;
    require(attr.size <= MAX_FILE_BYTES, BadRecord("size out of range"))?;
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
    let mut list = Xattrs::new();
    for _ in 0..d.count()? {
        let name = d.bytes()?;
        require(!name.is_empty() && !name.contains(&0), BadRecord("impossible name of an extended attribute"))?;
        let ascends = list.last().is_none_or(|(before, _)| before.as_slice() < name);
        require(ascends, BadRecord("extended attributes out of order"))?;
        list.push((name.to_vec(), d.bytes()?.to_vec()));
    }
    Ok(list)
}

fn put_segments(e: &mut Encoder, segments: &[Segment]) {
    e.uint(segments.len() as u64);
    put_segments_from(e, segments, BlockId(0));
}

/// Segments without their number, the first block id as difference to the one expected; returns the one expected next.
pub(super) fn put_segments_from(e: &mut Encoder, segments: &[Segment], mut expected: BlockId) -> BlockId {
    for segment in segments {
        match *segment {
            Segment::Hole { len } => e.uint(len << 1 | 1),
            Segment::Data { block, len } => {
                e.uint(u64::from(len) << 1);
                e.int(block.0.wrapping_sub(expected.0) as i64);
                expected = BlockId(block.0.wrapping_add(1));
            }
        }
    }
    expected
}

/// Segments of a file from `start` on.
fn segments(d: &mut Decoder, start: u64) -> Decoded<Vec<Segment>> {
    let count = d.count()?;
    require(count <= MAX_INLINE_SEGMENTS, BadRecord("too many segments"))?;
    let mut list = Vec::with_capacity(count);
    let (mut at, mut expected) = (start, 0u64);
    for _ in 0..count {
        let head = d.uint()?;
        let len = head >> 1;
        require(len > 0, BadRecord("empty segment"))?;
        at = at.checked_add(len).filter(|end| *end <= MAX_FILE_BYTES).ok_or(BadRecord("file too long"))?;
        if head & 1 == 1 {
            list.push(Segment::Hole { len });
            continue;
        }
        // Each block id has one difference modulo 2^64.
        let block = BlockId(expected.wrapping_add_signed(d.int()?));
        require(block <= BlockId::MAX, BadRecord("block id out of range"))?;
        expected = block.0 + 1;
        let len = u32::try_from(len).ok().filter(|len| *len <= MAX_BLOCK_BYTES).ok_or(BadRecord("block too long"))?;
        list.push(Segment::Data { block, len });
    }
    Ok(list)
}

/// Segments in a row: count, then (length × 2 + 1 for a hole) and the block id as difference to the one expected.
pub fn encode_segments(list: &[Segment]) -> Vec<u8> {
    let mut e = Encoder::default();
    put_segments(&mut e, list);
    e.0
}

/// A stretch of a long file that begins at `start`.
pub fn decode_segments(start: u64, bytes: &[u8]) -> Decoded<Vec<Segment>> {
    let mut d = Decoder::new(bytes);
    let list = stretch(&mut d, start)?;
    d.end()?;
    Ok(list)
}

fn stretch(d: &mut Decoder, start: u64) -> Decoded<Vec<Segment>> {
    let list = segments(d, start)?;
    require(!list.is_empty(), BadRecord("no segments"))?;
    Ok(list)
}

const FLAG_RACY: u8 = 1;
const FLAG_SHA1: u8 = 2;
const FLAG_CHUNKED: u8 = 4;

fn put_node(e: &mut Encoder, node: &Node) {
    e.uint(node.logid.0);
    put_state(e, node, node.racy);
}

/// A node without its logid.
pub(super) fn put_state(e: &mut Encoder, node: &Node, racy: bool) {
    put_attr(e, &node.attr);
    e.uint(node.data_bytes);
    let chunked = matches!(node.content, Content::Chunked(_));
    e.u8(u8::from(racy) * FLAG_RACY + u8::from(node.sha1.is_some()) * FLAG_SHA1 + u8::from(chunked) * FLAG_CHUNKED);
    if let Some(sha1) = node.sha1 {
        e.raw(&sha1.0);
    }
    match &node.content {
        Content::Inline(list) => put_segments(e, list),
        Content::Chunked(digest) => e.raw(&digest.0),
    }
    e.bytes(&node.target);
    put_xattrs(e, &node.xattrs);
}

fn node(d: &mut Decoder) -> Decoded<Node> {
    let (logid, attr, data_bytes) = node_head(d)?;
    let flags = d.u8()?;
    require(flags <= FLAG_RACY + FLAG_SHA1 + FLAG_CHUNKED, BadRecord("unknown flag of a node"))?;
    require(flags & !FLAG_RACY == 0 || attr.kind == Kind::File, BadRecord("flag of what is no regular file"))?;
    let sha1 = if flags & FLAG_SHA1 != 0 { Some(FileHash(d.array()?)) } else { None };
    let content = match flags & FLAG_CHUNKED {
        0 => Content::Inline(segments(d, 0)?),
        _ => Content::Chunked(SegmentsDigest(d.array()?)),
    };
    let file_bytes = if attr.kind == Kind::File { attr.size } else { 0 };
    match &content {
        Content::Inline(list) => {
            let (mut bytes, mut data) = (0, 0);
            for segment in list {
                bytes += segment.len();
                data += if matches!(segment, Segment::Data { .. }) { segment.len() } else { 0 };
            }
            require(bytes == file_bytes, BadRecord("segments do not add up to the file's size"))?;
            require(data == data_bytes, BadRecord("data bytes are not the sum of its data ranges"))?;
        }
        Content::Chunked(_) => {
            require(file_bytes > MAX_INLINE_SEGMENTS as u64, BadRecord("file too short for Extents records"))?;
        }
    }
    let target = d.bytes()?.to_vec();
    require(attr.kind == Kind::Symlink || target.is_empty(), BadRecord("target of what is no symlink"))?;
    require(!target.contains(&0), BadRecord("impossible target"))?;
    let measured = attr.kind != Kind::Symlink || attr.size == target.len() as u64;
    require(measured, BadRecord("symlink of another size than its target"))?;
    Ok(Node { logid, attr, data_bytes, racy: flags & FLAG_RACY != 0, sha1, content, target, xattrs: xattrs(d)? })
}

fn node_head(d: &mut Decoder) -> Decoded<(Logid, Attr, u64)> {
    let (logid, attr, data_bytes) = (d.logid()?, attr(d)?, d.uint()?);
    require(attr.kind != Kind::Dir, BadRecord("directory in the place of a node"))?;
    let sized = matches!(attr.kind, Kind::File | Kind::Symlink) || attr.size == 0;
    require(sized, BadRecord("size of what has no content"))?;
    let bound = if attr.kind == Kind::File { attr.size } else { 0 };
    require(data_bytes <= bound, BadRecord("more data bytes than the file has"))?;
    Ok((logid, attr, data_bytes))
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
    let (_, attr, data_bytes) = node_head(&mut Decoder::new(bytes))?;
    Ok((attr, data_bytes))
}

fn put_dir_state(e: &mut Encoder, state: &DirState) {
    put_attr(e, &state.attr);
    e.uint(state.children);
    put_xattrs(e, &state.xattrs);
    e.raw(&state.listing.0);
}

fn dir_state(d: &mut Decoder) -> Decoded<DirState> {
    let attr = attr(d)?;
    require(attr.kind == Kind::Dir, BadRecord("directory with another type"))?;
    Ok(DirState { attr, children: d.uint()?, xattrs: xattrs(d)?, listing: ListingDigest(d.array()?) })
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
    require(valid_name(name), BadRecord("impossible name"))?;
    Ok(name.to_vec())
}

/// Number, parent and name of a directory: the root is its own parent, and nothing else is.
pub fn dir_place(d: &mut Decoder) -> Decoded<(Dirno, Dirno, Vec<u8>)> {
    let dirno = d.dirno()?;
    let (parent, name) = parent_and_name(d, dirno)?;
    Ok((dirno, parent, name))
}

/// As `dir_place`, where the number is known already.
pub fn parent_and_name(d: &mut Decoder, dirno: Dirno) -> Decoded<(Dirno, Vec<u8>)> {
    let parent = d.dirno()?;
    if dirno == Dirno::ROOT {
        require(parent == Dirno::ROOT && d.bytes()?.is_empty(), BadRecord("root directory with a name or parent"))?;
        return Ok((parent, Vec::new()));
    }
    require(parent != dirno, BadRecord("directory below itself"))?;
    Ok((parent, name(d)?))
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
        Record::Put { name, item } => {
            e.u8(2);
            e.bytes(name);
            e.u8(item.kind() as u8);
            match item {
                Named::Node(node) => put_node(&mut e, node),
                Named::Dir(dirno) => e.uint(dirno.0),
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
        Record::AcceptLoss(loss) => {
            e.u8(8);
            put_loss(&mut e, loss);
        }
        Record::RemovePath { dirno, name } => {
            e.u8(9);
            e.uint(dirno.0);
            e.bytes(name);
        }
    }
    *out = e.0;
}

fn record(d: &mut Decoder) -> Decoded<Record> {
    Ok(match d.u8()? {
        1 => {
            let (dirno, parent, name) = dir_place(d)?;
            let listing = match d.u8()? {
                1 => Listing::Delta,
                2 => Listing::Full,
                3 => Listing::FullMore,
                4 => Listing::Lost,
                _ => return Err(BadRecord("unknown listing")),
            };
            Record::Dir { dirno, parent, name, listing, state: if d.flag()? { Some(dir_state(d)?) } else { None } }
        }
        2 => {
            let (name, kind) = (name(d)?, kind(d)?);
            if kind == Kind::Dir {
                return Ok(Record::Put { name, item: Named::Dir(subdirectory(d)?) });
            }
            let node = Box::new(node(d)?);
            require(kind == node.attr.kind, BadRecord("entry and node disagree"))?;
            Record::Put { name, item: Named::Node(node) }
        }
        3 => Record::Remove { name: name(d)? },
        4 => {
            let (logid, start) = (d.logid()?, d.uint()?);
            Record::Extents(ExtentChunk { logid, start, segments: stretch(d, start)? })
        }
        5 => Record::RemoveVersion(d.version()?),
        6 => {
            let (from, to) = (d.block()?, d.block()?);
            require(from != to, BadRecord("block that moves to where it is"))?;
            Record::Relocate { from, to }
        }
        7 => Record::DropArc(d.serial()?),
        8 => Record::AcceptLoss(loss(d)?),
        9 => Record::RemovePath { dirno: d.dirno()?, name: name(d)? },
        _ => return Err(BadRecord("unknown record")),
    })
}

pub fn put_loss(e: &mut Encoder, loss: &Loss) {
    match loss {
        Loss::Run(run) => {
            e.u8(1);
            e.uint(u64::from(run.0));
        }
        Loss::Arc { serial, from } => {
            e.u8(2);
            e.uint(serial.0);
            e.uint(*from);
        }
        Loss::Frame { serial, frame } => {
            e.u8(3);
            e.uint(serial.0);
            e.uint(u64::from(frame.0));
        }
        Loss::Shell(serial) => {
            e.u8(4);
            e.uint(serial.0);
        }
    }
}

pub fn loss(d: &mut Decoder) -> Decoded<Loss> {
    Ok(match d.u8()? {
        1 => Loss::Run(d.version()?),
        2 => Loss::Arc { serial: d.serial()?, from: d.uint()? },
        3 => Loss::Frame { serial: d.serial()?, frame: d.frame_no()? },
        4 => Loss::Shell(d.serial()?),
        _ => return Err(BadRecord("unknown loss")),
    })
}

/// What a name of this type stands for. Nothing is above the root, so it is nobody's child.
pub fn child(d: &mut Decoder, kind: Kind) -> Decoded<Child> {
    if kind == Kind::Dir { subdirectory(d).map(Child::Dir) } else { d.logid().map(Child::Node) }
}

fn subdirectory(d: &mut Decoder) -> Decoded<Dirno> {
    let dirno = d.dirno()?;
    require(dirno != Dirno::ROOT, BadRecord("root directory below another"))?;
    Ok(dirno)
}

/// The records of a catalog frame, one by one, so that a frame of many small ones takes no memory.
pub struct Records<'a> {
    rest: Decoder<'a>,
    open: Option<Dirno>,
}

impl<'a> Records<'a> {
    /// Proves that all of `bytes` are records, and keep the caller's own rule, before the first is given.
    pub fn new(bytes: &'a [u8], mut rule: impl FnMut(&Record) -> Decoded<()>) -> Decoded<Records<'a>> {
        let records = |bytes| Records { rest: Decoder::new(bytes), open: None };
        records(bytes).try_for_each(|record| rule(&record?))?;
        Ok(records(bytes))
    }

    /// A record in its place: Put and Remove are about the Dir before them.
    fn record(&mut self) -> Decoded<Record> {
        let record = record(&mut self.rest)?;
        match &record {
            Record::Dir { dirno, .. } => self.open = Some(*dirno),
            Record::Put { item, .. } => {
                let dir = self.open.ok_or(BadRecord("entry of no directory"))?;
                require(*item != Named::Dir(dir), BadRecord("directory below itself"))?;
            }
            Record::Remove { .. } => require(self.open.is_some(), BadRecord("entry of no directory"))?,
            _ => {}
        }
        Ok(record)
    }
}

impl Iterator for Records<'_> {
    type Item = Decoded<Record>;

    fn next(&mut self) -> Option<Decoded<Record>> {
        (!self.rest.is_empty()).then(|| self.record())
    }
}

/// All records of a catalog frame, in order.
#[cfg(test)]
pub fn decode_records(bytes: &[u8]) -> Decoded<Vec<Record>> {
    Records::new(bytes, |_| Ok(()))?.collect()
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
