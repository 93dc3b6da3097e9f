//! The commit record: what makes a version exist.
//!
//! Invariants: what `decode` accepts is consistent in itself (arcs in order and of this run, catalog frames in them,
//! counters above all that they count), so that whoever applies it adds and loops within bounds. Sealed twice in a commit arc that appears under its final name by one rename, last of all. Each record
//! names the one before it by digest, so that a missing link shows.

use super::codec::{BadRecord, Decoded, Decoder, Encoder, require, valid_name};
use super::{Content, Loss, MAX_BLOCK_BYTES, Named, Record, Segment, Timespec};
use crate::ids::{ArcDigest, ArcId, ArcName, ArcSalt, ArcSerial, BlockId, Dirno, FrameNo, Logid, TreeDigest, Version};

/// What an arc has beside the stored bytes of its frames; `arc` has the same numbers, and the compiler compares them.
pub const ARC_HEADER_BYTES: u64 = 112;
pub const ARC_TRAILER_BYTES: u64 = 96;
pub const FRAME_OVERHEAD_BYTES: u64 = 48;
/// The table of a frame with one block, and of one with as many as can be.
pub const TABLE_BYTES: (u64, u64) = (24, 128 * 24);
/// A catalog frame describes at most so many: it is closed at as many bytes, and each directory takes several.
const MAX_FRAME_DIRS: u64 = 1 << 16;

/// What an arc is for; the discriminants are the on-disk codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ArcRole {
    Data = 1,
    Catalog = 2,
    Commit = 3,
}

/// One arc that a commit makes part of the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArcEntry {
    pub serial: ArcSerial,
    pub name: ArcName,
    pub role: ArcRole,
    pub id: ArcId,
    pub salt: ArcSalt,
    pub arc_bytes: u64,
    pub digest: ArcDigest,
    /// Frames before the footer.
    pub frames: u32,
    /// Offset and total length of the footer frame (header, ciphertext and tag).
    pub footer_offset: u64,
    pub footer_len: u32,
    /// Sum of the plain lengths of its frames.
    pub plain_bytes: u64,
}

/// A frame of the catalog and the directories that it describes, as runs (first, count).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogFrame {
    pub arc: ArcSerial,
    pub frame: FrameNo,
    pub dirs: Vec<(Dirno, u64)>,
}

/// What users see of a version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VersionInfo {
    /// Folder name in the mount, `YYYY-MM-DD-HHMM-rN` in UTC, fixed here for good.
    pub name: String,
    pub started: Timespec,
    pub finished: Timespec,
    pub tag: String,
    pub host: String,
    /// Absolute paths that were backed up.
    pub paths: Vec<Vec<u8>>,
    /// Paths that earlier runs were given and this one did not look at: they stay as they were.
    pub kept_paths: Vec<Vec<u8>>,
    /// Mount points below the paths that were not entered.
    pub not_entered: Vec<Vec<u8>>,
    /// Entries in the whole tree, by what they are.
    pub files: u64,
    pub dirs: u64,
    pub others: u64,
    /// Sum of `st_size` of the regular files in the whole tree.
    pub tree_bytes: u64,
    /// What this run did.
    pub new: u64,
    pub changed: u64,
    pub removed: u64,
    pub errors: u64,
    /// Entries that patterns left out (a directory counts as one).
    pub excluded: u64,
    /// Entries that were gone before they could be read.
    pub vanished: u64,
    /// Files that changed each time they were read; saved as they were read last.
    pub torn: u64,
    /// Entries that were saved without some of their extended attributes; they count as errors too.
    pub incomplete: u64,
    pub bytes_read: u64,
    pub blocks_new: u64,
    pub blocks_deduped: u64,
    /// Plain bytes of new blocks, and the arc bytes that they took.
    pub plain_bytes: u64,
    pub stored_bytes: u64,
}

/// The record itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// V of the arcs of this run.
    pub run: Version,
    /// Random, tells two runs with the same number apart.
    pub run_id: [u8; 16],
    /// The commit before: its run and the SHA-256 of its record; none for the first.
    pub previous: Option<(Version, [u8; 32])>,
    /// Absent when the run made no version (maintenance).
    pub version: Option<VersionInfo>,
    /// Versions whose root directory has this digest from now on: the one that the run made; those from which it removed
    /// paths.
    pub roots: Vec<(Version, TreeDigest)>,
    /// The commit stands alone: its catalog lists every directory of the version, and `arcs` every arc in use.
    pub base: bool,
    /// Data and catalog arcs of this run (not the commit arc); of all runs, if it is a base.
    pub arcs: Vec<ArcEntry>,
    pub catalog: Vec<CatalogFrame>,
    pub next_serial: u64,
    pub next_logid: u64,
    pub next_dirno: u64,
}

const COMMIT_FORMAT: u8 = 2;

impl Commit {
    /// The record's bytes; their SHA-256 is what the next commit names.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        e.u8(COMMIT_FORMAT);
        e.uint(u64::from(self.run.0));
        e.raw(&self.run_id);
        e.u8(u8::from(self.previous.is_some()) + 2 * u8::from(self.version.is_some()) + 4 * u8::from(self.base));
        if let Some((run, digest)) = &self.previous {
            e.uint(u64::from(run.0));
            e.raw(digest);
        }
        if let Some(version) = &self.version {
            e.bytes(&version.encode());
        }
        e.uint(self.roots.len() as u64);
        for (version, digest) in &self.roots {
            e.uint(u64::from(version.0));
            e.raw(&digest.0);
        }
        e.uint(self.arcs.len() as u64);
        for arc in &self.arcs {
            e.bytes(&arc.encode());
        }
        e.uint(self.catalog.len() as u64);
        for frame in &self.catalog {
            frame.encode(&mut e);
        }
        e.uint(self.next_serial);
        e.uint(self.next_logid);
        e.uint(self.next_dirno);
        e.0
    }

    /// Reads a record back.
    ///
    /// # Errors
    /// `BadRecord` for anything that no run can have written.
    pub fn decode(bytes: &[u8]) -> Decoded<Commit> {
        let mut d = Decoder::new(bytes);
        require(d.u8()? == COMMIT_FORMAT, BadRecord("commit record of another format"))?;
        let run = d.version()?;
        let run_id = d.array()?;
        let flags = d.u8()?;
        require(flags <= 7, BadRecord("unknown flag of a commit"))?;
        let commit = Commit {
            run,
            run_id,
            previous: if flags & 1 != 0 { Some((d.version()?, d.array()?)) } else { None },
            version: if flags & 2 != 0 { Some(VersionInfo::decode(d.bytes()?)?) } else { None },
            roots: (0..d.count()?).map(|_| Ok((d.version()?, TreeDigest(d.array()?)))).collect::<Decoded<_>>()?,
            base: flags & 4 != 0,
            arcs: (0..d.count()?).map(|_| ArcEntry::decode(d.bytes()?)).collect::<Decoded<_>>()?,
            catalog: (0..d.count()?).map(|_| CatalogFrame::decode(&mut d)).collect::<Decoded<_>>()?,
            next_serial: d.within(0, ArcSerial::MAX.0 + 1, BadRecord("counter out of range"))?,
            next_logid: d.within(Logid::FIRST.0, Logid::MAX.0 + 1, BadRecord("counter out of range"))?,
            next_dirno: d.within(1, Dirno::MAX.0 + 1, BadRecord("counter out of range"))?,
        };
        d.end()?;
        commit.check()?;
        Ok(commit)
    }

    /// What must hold between the fields.
    fn check(&self) -> Decoded<()> {
        let follows = self.previous.is_none_or(|(before, _)| before < self.run);
        require(follows, BadRecord("commit before this one is not below it"))?;
        // What a cut first run has left can be committed before it, without a version.
        let first = self.previous.is_none() && self.version.is_some();
        require(self.base || !first, BadRecord("first version that is no base"))?;
        let own_name = |info: &VersionInfo| info.name.ends_with(&format!("-{}", self.run));
        require(self.version.as_ref().is_none_or(own_name), BadRecord("version name of another run"))?;
        let ascend = self.roots.is_sorted_by(|a, b| a.0 < b.0);
        require(ascend, BadRecord("roots out of order"))?;
        let newest = self.roots.last().map(|(version, _)| *version);
        require(newest.is_none_or(|newest| newest <= self.run), BadRecord("root of a later version"))?;
        let made = newest == Some(self.run);
        require(made == self.version.is_some(), BadRecord("version without its root, or the other way round"))?;
        for arc in &self.arcs {
            let run = arc.name.version;
            let known = run == self.run || (self.base && run < self.run);
            require(known, BadRecord("arc of another run"))?;
        }
        let ascend = self.arcs.is_sorted_by(|a, b| a.serial < b.serial && a.name < b.name);
        require(ascend, BadRecord("arcs out of order"))?;
        let counted = self.arcs.last().is_none_or(|arc| arc.serial.0 < self.next_serial);
        require(counted, BadRecord("arc above the next serial"))?;
        let ascend = self.catalog.is_sorted_by(|a, b| (a.arc, a.frame) < (b.arc, b.frame));
        require(ascend, BadRecord("catalog frames out of order"))?;
        for frame in &self.catalog {
            let arc = self.arc(frame.arc).filter(|arc| arc.role == ArcRole::Catalog && arc.name.version == self.run);
            let arc = arc.ok_or(BadRecord("catalog frame of no catalog arc of this run"))?;
            require(frame.frame.0 < arc.frames, BadRecord("catalog frame that its arc does not have"))?;
            let counted = frame.dirs.iter().all(|(first, count)| first.0 + count <= self.next_dirno);
            require(counted, BadRecord("directory above the next one"))?;
        }
        Ok(())
    }

    /// A commit's counters stand above all that its catalog names: what it does not count would be given again.
    pub fn counts(&self, record: &Record) -> Decoded<()> {
        let logid = |logid: &Logid| logid.0 < self.next_logid;
        let dirno = |dirno: &Dirno| dirno.0 < self.next_dirno;
        let block = |block: &BlockId| block.arc().0 < self.next_serial;
        let stored = |segments: &[Segment]| {
            segments.iter().all(|segment| match segment {
                Segment::Data { block: id, .. } => block(id),
                Segment::Hole { .. } => true,
            })
        };
        let counted = match record {
            Record::Dir { dirno: no, parent, .. } => dirno(no) && dirno(parent),
            Record::Put { item: Named::Dir(no), .. } => dirno(no),
            Record::Put { item: Named::Node(node), .. } => {
                logid(&node.logid)
                    && match &node.content {
                        Content::Inline(segments) => stored(segments),
                        Content::Chunked(_) => true,
                    }
            }
            Record::Remove { .. } => true,
            Record::Extents(chunk) => logid(&chunk.logid) && stored(&chunk.segments),
            Record::RemoveVersion(version) => *version < self.run,
            Record::RemovePath { dirno: no, .. } => dirno(no),
            Record::Relocate { from, to } => block(from) && block(to),
            Record::AcceptLoss(Loss::Run(version)) => *version < self.run,
            Record::AcceptLoss(Loss::Arc { serial, .. } | Loss::Frame { serial, .. } | Loss::Shell(serial))
            | Record::DropArc(serial) => serial.0 < self.next_serial,
        };
        require(counted, BadRecord("id that its commit does not count"))
    }

    /// The arc with this serial, if the commit lists it.
    pub fn arc(&self, serial: ArcSerial) -> Option<&ArcEntry> {
        let at = self.arcs.binary_search_by_key(&serial, |arc| arc.serial).ok()?;
        self.arcs.get(at)
    }
}

impl CatalogFrame {
    fn encode(&self, e: &mut Encoder) {
        e.uint(self.arc.0);
        e.uint(u64::from(self.frame.0));
        e.uint(self.dirs.len() as u64);
        let mut end = 0u64;
        for (first, count) in &self.dirs {
            e.int(first.0.wrapping_sub(end) as i64);
            e.uint(*count);
            end = first.0.wrapping_add(*count);
        }
    }

    fn decode(d: &mut Decoder<'_>) -> Decoded<CatalogFrame> {
        let (arc, frame) = (d.serial()?, d.frame_no()?);
        let (mut dirs, mut end, mut described) = (Vec::new(), 0u64, 0u64);
        for n in 0..d.count()? {
            let difference = d.int()?;
            let count = d.within(1, MAX_FRAME_DIRS, BadRecord("directory run out of range"))?;
            let first = end.checked_add_signed(difference).filter(|first| *first <= Dirno::MAX.0 + 1 - count);
            let first = first.ok_or(BadRecord("directory run out of range"))?;
            require(n == 0 || difference != 0, BadRecord("directory run that goes on with the one before"))?;
            (end, described) = (first + count, described + count);
            require(described <= MAX_FRAME_DIRS, BadRecord("too many directories in a frame"))?;
            dirs.push((Dirno(first), count));
        }
        Ok(CatalogFrame { arc, frame, dirs })
    }
}

impl ArcEntry {
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        e.uint(self.serial.0);
        e.uint(u64::from(self.name.version.0));
        e.uint(u64::from(self.name.number));
        e.u8(self.role as u8);
        e.raw(&self.id.0);
        e.raw(&self.salt.0);
        e.uint(self.arc_bytes);
        e.raw(&self.digest.0);
        e.uint(u64::from(self.frames));
        e.uint(self.footer_offset);
        e.uint(u64::from(self.footer_len));
        e.uint(self.plain_bytes);
        e.0
    }

    pub fn decode(bytes: &[u8]) -> Decoded<ArcEntry> {
        let mut d = Decoder::new(bytes);
        let entry = ArcEntry {
            serial: d.serial()?,
            name: ArcName { version: d.version()?, number: d.small()? },
            role: match d.u8()? {
                1 => ArcRole::Data,
                2 => ArcRole::Catalog,
                // A commit arc has no serial, and no record lists one.
                _ => return Err(BadRecord("role of an arc")),
            },
            id: ArcId(d.array()?),
            salt: ArcSalt(d.array()?),
            arc_bytes: d.uint()?,
            digest: ArcDigest(d.array()?),
            frames: d.small()?,
            footer_offset: d.uint()?,
            footer_len: d.small()?,
            plain_bytes: d.uint()?,
        };
        d.end()?;
        require(entry.name.number > 0, BadRecord("arc with the name of a commit arc"))?;
        let laid_out = footer_fits(entry.footer_offset, entry.footer_len, entry.frames)
            && entry.footer_offset + u64::from(entry.footer_len) + ARC_TRAILER_BYTES == entry.arc_bytes;
        require(laid_out, BadRecord("parts of an arc that do not add up"))?;
        let most = u64::from(entry.frames) * u64::from(MAX_BLOCK_BYTES);
        require(entry.plain_bytes <= most, BadRecord("more plain bytes than the frames can hold"))?;
        Ok(entry)
    }
}

/// Can a footer of this length stand there, behind so many frames? Then nothing about the arc reaches 2^63.
pub fn footer_fits(offset: u64, len: u32, frames: u32) -> bool {
    let least = FRAME_OVERHEAD_BYTES + TABLE_BYTES.0;
    let most = FRAME_OVERHEAD_BYTES + TABLE_BYTES.1 + u64::from(MAX_BLOCK_BYTES);
    let body = |each: u64| ARC_HEADER_BYTES + u64::from(frames) * each;
    frames <= FrameNo::MAX.0
        && (body(least)..=body(most)).contains(&offset)
        && (least..=least + u64::from(MAX_BLOCK_BYTES)).contains(&u64::from(len))
}

impl VersionInfo {
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        for text in [&self.name, &self.tag, &self.host] {
            e.bytes(text.as_bytes());
        }
        e.time(self.started);
        e.time(self.finished);
        for paths in [&self.paths, &self.kept_paths, &self.not_entered] {
            e.uint(paths.len() as u64);
            for path in paths {
                e.bytes(path);
            }
        }
        for number in self.numbers() {
            e.uint(number);
        }
        e.0
    }

    pub fn decode(bytes: &[u8]) -> Decoded<VersionInfo> {
        fn paths(d: &mut Decoder<'_>) -> Decoded<Vec<Vec<u8>>> {
            let path = |path: &[u8]| {
                require(path.starts_with(b"/") && !path.contains(&0), BadRecord("impossible path"))?;
                Ok(path.to_vec())
            };
            (0..d.count()?).map(|_| path(d.bytes()?)).collect()
        }
        let mut d = Decoder::new(bytes);
        let mut info = VersionInfo {
            name: d.string()?,
            tag: d.string()?,
            host: d.string()?,
            started: d.time()?,
            finished: d.time()?,
            paths: paths(&mut d)?,
            kept_paths: paths(&mut d)?,
            not_entered: paths(&mut d)?,
            ..VersionInfo::default()
        };
        for number in [
            &mut info.files,
            &mut info.dirs,
            &mut info.others,
            &mut info.tree_bytes,
            &mut info.new,
            &mut info.changed,
            &mut info.removed,
            &mut info.errors,
            &mut info.excluded,
            &mut info.vanished,
            &mut info.torn,
            &mut info.incomplete,
            &mut info.bytes_read,
            &mut info.blocks_new,
            &mut info.blocks_deduped,
            &mut info.plain_bytes,
            &mut info.stored_bytes,
        ] {
            *number = d.uint()?;
        }
        d.end()?;
        require(valid_name(info.name.as_bytes()), BadRecord("impossible version name"))?;
        Ok(info)
    }

    fn numbers(&self) -> [u64; 17] {
        [
            self.files,
            self.dirs,
            self.others,
            self.tree_bytes,
            self.new,
            self.changed,
            self.removed,
            self.errors,
            self.excluded,
            self.vanished,
            self.torn,
            self.incomplete,
            self.bytes_read,
            self.blocks_new,
            self.blocks_deduped,
            self.plain_bytes,
            self.stored_bytes,
        ]
    }
}
