//! The commit record: what makes a version exist.
//!
//! Sealed twice in a commit arc that appears under its final name by one rename, last of all. Each record
//! names the one before it by digest, so that a missing link shows.

use super::Timespec;
use super::codec::{BadRecord, Decoder, Encoder};
use crate::ids::{ArcDigest, ArcId, ArcName, ArcSalt, ArcSerial, Dirno, FrameNo, Version};

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
    /// Folder name in the mount, `YYYY-MM-DD-HHMM-rN`, fixed here for good.
    pub name: String,
    pub started: Timespec,
    pub finished: Timespec,
    pub tag: String,
    pub host: String,
    /// Absolute paths that were backed up.
    pub paths: Vec<Vec<u8>>,
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
    /// The commit stands alone: its catalog lists every directory of the version, and `arcs` every arc in use.
    pub base: bool,
    /// Data and catalog arcs of this run (not the commit arc); of all runs, if it is a base.
    pub arcs: Vec<ArcEntry>,
    pub catalog: Vec<CatalogFrame>,
    pub next_serial: u64,
    pub next_logid: u64,
    pub next_dirno: u64,
}

const COMMIT_FORMAT: u8 = 1;

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
        e.uint(self.arcs.len() as u64);
        for arc in &self.arcs {
            e.bytes(&arc.encode());
        }
        e.uint(self.catalog.len() as u64);
        for frame in &self.catalog {
            e.uint(frame.arc.0);
            e.uint(u64::from(frame.frame.0));
            e.uint(frame.dirs.len() as u64);
            let mut last = 0u64;
            for (first, count) in &frame.dirs {
                e.int(first.0.wrapping_sub(last) as i64);
                e.uint(*count);
                last = first.0.wrapping_add(*count);
            }
        }
        e.uint(self.next_serial);
        e.uint(self.next_logid);
        e.uint(self.next_dirno);
        e.0
    }

    /// Reads a record back.
    ///
    /// # Errors
    /// `BadRecord` for anything that `encode` can't have written.
    pub fn decode(bytes: &[u8]) -> Result<Commit, BadRecord> {
        let mut d = Decoder::new(bytes);
        if d.u8()? != COMMIT_FORMAT {
            return Err(BadRecord("commit record of another format"));
        }
        let run = Version(d.small()?);
        let run_id = d.array()?;
        let flags = d.u8()?;
        if flags > 7 {
            return Err(BadRecord("commit flags"));
        }
        let commit = Commit {
            run,
            run_id,
            previous: if flags & 1 != 0 { Some((Version(d.small()?), d.array()?)) } else { None },
            version: if flags & 2 != 0 { Some(VersionInfo::decode(d.bytes()?)?) } else { None },
            base: flags & 4 != 0,
            arcs: (0..d.count()?).map(|_| ArcEntry::decode(d.bytes()?)).collect::<Result<_, _>>()?,
            catalog: (0..d.count()?)
                .map(|_| {
                    let (arc, frame) = (ArcSerial(d.uint()?), FrameNo(d.small()?));
                    let mut last = 0u64;
                    let dirs = (0..d.count()?)
                        .map(|_| {
                            let first = last.wrapping_add(d.int()? as u64);
                            let count = d.uint()?;
                            last = first.wrapping_add(count);
                            Ok((Dirno(first), count))
                        })
                        .collect::<Result<_, BadRecord>>()?;
                    Ok(CatalogFrame { arc, frame, dirs })
                })
                .collect::<Result<_, BadRecord>>()?,
            next_serial: d.uint()?,
            next_logid: d.uint()?,
            next_dirno: d.uint()?,
        };
        d.end()?;
        Ok(commit)
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

    pub fn decode(bytes: &[u8]) -> Result<ArcEntry, BadRecord> {
        let mut d = Decoder::new(bytes);
        let entry = ArcEntry {
            serial: Some(ArcSerial(d.uint()?)).filter(|s| *s <= ArcSerial::MAX).ok_or(BadRecord("arc serial"))?,
            name: ArcName { version: Version(d.small()?), number: d.small()? },
            role: match d.u8()? {
                1 => ArcRole::Data,
                2 => ArcRole::Catalog,
                3 => ArcRole::Commit,
                _ => return Err(BadRecord("arc role")),
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
        Ok(entry)
    }
}

impl VersionInfo {
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        for text in [&self.name, &self.tag, &self.host] {
            e.bytes(text.as_bytes());
        }
        e.time(self.started);
        e.time(self.finished);
        e.uint(self.paths.len() as u64);
        for path in &self.paths {
            e.bytes(path);
        }
        for number in self.numbers() {
            e.uint(number);
        }
        e.0
    }

    pub fn decode(bytes: &[u8]) -> Result<VersionInfo, BadRecord> {
        let mut d = Decoder::new(bytes);
        let mut info = VersionInfo {
            name: d.string()?,
            tag: d.string()?,
            host: d.string()?,
            started: d.time()?,
            finished: d.time()?,
            paths: (0..d.count()?).map(|_| Ok(d.bytes()?.to_vec())).collect::<Result<_, BadRecord>>()?,
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
            &mut info.bytes_read,
            &mut info.blocks_new,
            &mut info.blocks_deduped,
            &mut info.plain_bytes,
            &mut info.stored_bytes,
        ] {
            *number = d.uint()?;
        }
        d.end()?;
        if !super::codec::valid_name(info.name.as_bytes()) {
            return Err(BadRecord("version name"));
        }
        Ok(info)
    }

    fn numbers(&self) -> [u64; 13] {
        [
            self.files,
            self.dirs,
            self.others,
            self.tree_bytes,
            self.new,
            self.changed,
            self.removed,
            self.errors,
            self.bytes_read,
            self.blocks_new,
            self.blocks_deduped,
            self.plain_bytes,
            self.stored_bytes,
        ]
    }
}
