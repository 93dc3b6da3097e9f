//! Arc files of a backup dir: listing, reading tables and commit records, creating and committing.
//!
//! Invariants: a name is never written twice; a commit arc appears under its final name by one rename after all
//! other arcs of its run are durable, so an arc file that is there and named by a commit record was whole once.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{remove_if_there, rename, sync_dir};
use crate::arc::{
    ARC_HEADER_LEN, ARC_TRAILER_LEN, ArcHeader, ArcTrailer, ArcWriter, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameInfo,
    FrameKind, MAX_PLAIN_LEN, Packer, VerifiedBlock, decode_frame_table, frame,
};
use crate::catalog::{ArcEntry, ArcRole, CatalogFrame, Commit};
use crate::crypto::{ArcCipher, Keys};
use crate::error::{Damage, Error, Place, Result};
use crate::ids::{ArcName, ArcSerial, BlockId, FrameNo, Version};

const TMP_SUFFIX: &str = ".tmp";

/// Names of all arcs in the directory, sorted; files with other names are not arcs.
pub fn list(dir: &Path) -> Result<Vec<ArcName>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, &e))? {
        let entry = entry.map_err(|e| Error::io("list", dir, &e))?;
        names.extend(entry.file_name().to_str().and_then(ArcName::parse));
    }
    names.sort();
    Ok(names)
}

/// None when there is no arc to try the key on.
pub fn key_opens_an_arc(dir: &Path, keys: &Keys) -> Option<bool> {
    let names = list(dir).ok()?;
    if names.is_empty() {
        return None;
    }
    Some(names.iter().take(16).any(|name| ArcFile::open(dir, *name, keys).is_ok()))
}

/// One arc file, opened for reading its structure. Mount reads go through `store`, not through this.
pub struct ArcFile {
    file: File,
    name: ArcName,
    len: u64,
    cipher: ArcCipher,
    role: ArcRole,
    /// Where the footer frame is and how many frames precede it, if the trailer is readable.
    footer: Option<(u64, u32, u32)>,
}

impl ArcFile {
    /// Opens by header, or by trailer when the header is damaged.
    pub fn open(dir: &Path, name: ArcName, keys: &Keys) -> Result<ArcFile> {
        let (file, len) = open_file(dir, name)?;
        let whole = |damage| damaged(name, None, 0, damage);
        let head = read_at(&file, name, 0, len.min(ARC_HEADER_LEN as u64))?;
        let tail_at = len.saturating_sub(ARC_TRAILER_LEN as u64);
        let tail = read_at(&file, name, tail_at, len - tail_at)?;
        let header = ArcHeader::decode(&head, keys);
        let trailer = ArcTrailer::decode(&tail, keys);
        let (id, salt, role) = match (&header, &trailer) {
            (Ok(h), _) if h.name == name => (h.id, h.salt, h.role),
            (Ok(_), _) => return Err(whole(Damage::WrongFrame)),
            (Err(_), Ok(t)) => (t.id, t.salt, t.role),
            (Err(e), Err(_)) => return Err(whole(e.clone())),
        };
        let footer = trailer.ok().map(|t| (t.footer_offset, t.footer_len, t.frames));
        Ok(ArcFile { file, name, len, cipher: keys.arc_cipher(id, &salt), role, footer })
    }

    /// Opens by what the commit record says of the arc: needs neither header nor trailer.
    pub fn open_known(dir: &Path, entry: &ArcEntry, keys: &Keys) -> Result<ArcFile> {
        let (file, len) = open_file(dir, entry.name)?;
        Ok(ArcFile {
            file,
            name: entry.name,
            len,
            cipher: keys.arc_cipher(entry.id, &entry.salt),
            role: entry.role,
            footer: Some((entry.footer_offset, entry.footer_len, entry.frames)),
        })
    }

    pub fn role(&self) -> ArcRole {
        self.role
    }

    /// True when trailer and length agree: it is not cut.
    fn is_whole(&self) -> bool {
        let end = |(at, len, _)| at + u64::from(len) + ARC_TRAILER_LEN as u64;
        self.footer.is_some_and(|footer| end(footer) == self.len)
    }

    /// All frames, from the footer. When it is damaged, from the headers of the frames themselves: then as many as
    /// stand in a row from the first one, which may be fewer than the arc had.
    pub fn frame_table(&self, keys: &Keys) -> Result<Vec<FrameInfo>> {
        self.footer_table(keys).or_else(|error| {
            let table = self.walk_headers();
            if table.is_empty() { Err(error) } else { Ok(table) }
        })
    }

    /// All frames, from the footer and nothing else.
    pub fn footer_table(&self, keys: &Keys) -> Result<Vec<FrameInfo>> {
        let from_footer = self.footer.ok_or(Damage::BadTrailer).and_then(|(at, len, frames)| {
            open_footer(keys, &self.cipher, frames, &self.bytes(at, u64::from(len)).map_err(damage_of)?)
        });
        let at = self.footer.map_or(self.len, |(at, ..)| at);
        from_footer.map_err(|damage| damaged(self.name, None, at, damage))
    }

    /// Length of the file, bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// The table as the frame headers claim it, up to the first one that makes no sense or is cut off; each claim
    /// is proven when its frame is opened.
    fn walk_headers(&self) -> Vec<FrameInfo> {
        let mut table = Vec::new();
        let mut at = ARC_HEADER_LEN as u64;
        while self.footer.is_none_or(|(footer_at, ..)| at < footer_at) {
            let header = self.bytes(at, FRAME_HEADER_LEN as u64).ok();
            let claim = header.and_then(|bytes| FrameInfo::from_header(bytes.first_chunk()?));
            match claim.filter(|(no, info)| no.0 as usize == table.len() && at + info.frame_len() <= self.len) {
                Some((_, info)) if info.kind != FrameKind::Footer => {
                    table.push(info);
                    at += info.frame_len();
                }
                _ => break,
            }
        }
        table
    }

    /// Verifies one frame given the arc's table.
    pub fn open_frame(
        &self,
        keys: &Keys,
        table: &[FrameInfo],
        no: FrameNo,
        serial: Option<ArcSerial>,
    ) -> Result<VerifiedBlock> {
        let (before, info) = table
            .split_at_checked(no.0 as usize)
            .and_then(|(before, rest)| Some((before, rest.first()?)))
            .ok_or_else(|| damaged(self.name, Some(no), 0, Damage::BadRecord("no such frame")))?;
        let offset = ARC_HEADER_LEN as u64 + before.iter().map(FrameInfo::frame_len).sum::<u64>();
        let at = |damage| Error::Arc {
            place: Place { arc: self.name, frame: Some(no), block: serial.map(|s| BlockId::new(s, no)), offset },
            damage,
        };
        let bytes = self.bytes(offset, info.frame_len()).map_err(|e| at(damage_of(e)))?;
        frame::open(keys, &self.cipher, no, info, &bytes).map_err(at)
    }

    fn bytes(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let longest = (MAX_PLAIN_LEN + FRAME_OVERHEAD) as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.len) || len > longest {
            let found_bytes = self.len.saturating_sub(offset).min(len);
            return Err(damaged(self.name, None, offset, Damage::Truncated { wanted_bytes: len, found_bytes }));
        }
        read_at(&self.file, self.name, offset, len)
    }
}

/// Verifies a footer frame and reads the frame table in it, which must have so many frames.
pub fn open_footer(keys: &Keys, cipher: &ArcCipher, frames: u32, bytes: &[u8]) -> Result<Vec<FrameInfo>, Damage> {
    let header = bytes
        .first_chunk()
        .ok_or(Damage::Truncated { wanted_bytes: FRAME_OVERHEAD as u64, found_bytes: bytes.len() as u64 })?;
    let (no, info) = FrameInfo::from_header(header).ok_or(Damage::WrongFrame)?;
    if info.kind != FrameKind::Footer || no != crate::arc::writer::FOOTER_NO {
        return Err(Damage::WrongFrame);
    }
    let table = decode_frame_table(&frame::open(keys, cipher, no, &info, bytes)?)?;
    if table.len() == frames as usize { Ok(table) } else { Err(Damage::BadRecord("frame table")) }
}

/// Number of a run's commit arc: `arc.V.0` exists if and only if run V was committed.
pub const COMMIT_NUMBER: u32 = 0;

/// Reads the commit record of a run and its SHA-256.
///
/// # Errors
/// `COMMIT_DAMAGED` when neither copy of the record is readable.
pub fn read_commit(dir: &Path, run: Version, keys: &Keys) -> Result<(Commit, [u8; 32])> {
    let name = ArcName { version: run, number: COMMIT_NUMBER };
    let damaged = |e: &dyn std::fmt::Display| Error::CommitDamaged { run, what: e.to_string() };
    let arc = ArcFile::open(dir, name, keys).map_err(|e| damaged(&e))?;
    let table = arc.frame_table(keys).map_err(|e| damaged(&e))?;
    let mut last = damaged(&"the commit arc holds no record");
    for (n, _) in table.iter().enumerate().filter(|(_, info)| info.kind == FrameKind::Commit) {
        match arc.open_frame(keys, &table, FrameNo(n as u32), None) {
            Ok(record) => match Commit::decode(&record) {
                Ok(commit) if commit.run == run => {
                    return Ok((commit, crate::crypto::sha256(&record)));
                }
                Ok(_) => last = damaged(&"it is the record of another run"),
                Err(e) => last = damaged(&e),
            },
            Err(e) => last = damaged(&e),
        }
    }
    Err(last)
}

/// Makes a commit arc that is there under its final name durable.
pub fn sync_commit(dir: &Path, run: Version) -> Result<()> {
    let path = dir.join(ArcName { version: run, number: COMMIT_NUMBER }.to_string());
    File::open(&path).and_then(|file| file.sync_all()).map_err(|e| Error::io("fsync", &path, &e))?;
    sync_dir(dir)
}

/// Is the commit of a run there? Looks at the ends of its arc, and at the record only if they are damaged.
///
/// # Errors
/// `COMMIT_DAMAGED` as `read_commit`.
pub fn check_commit(dir: &Path, run: Version, keys: &Keys) -> Result<()> {
    match ArcFile::open(dir, ArcName { version: run, number: COMMIT_NUMBER }, keys) {
        Ok(arc) if arc.is_whole() => Ok(()),
        _ => read_commit(dir, run, keys).map(|_| ()),
    }
}

/// A run as its files show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub version: Version,
    pub arcs: Vec<ArcName>,
    /// Its commit arc is there: the run was committed, whatever became of the arc since.
    pub committed: bool,
}

/// Runs found on disk, oldest first.
pub fn runs(dir: &Path) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for name in list(dir)? {
        let committed = name.number == COMMIT_NUMBER;
        match runs.last_mut().filter(|run| run.version == name.version) {
            Some(run) => {
                run.arcs.push(name);
                run.committed |= committed;
            }
            None => runs.push(Run { version: name.version, arcs: vec![name], committed }),
        }
    }
    Ok(runs)
}

/// Gives `index::apply` the frame tables and catalog frames of a commit, verified.
pub struct ArcSource<'a> {
    dir: &'a Path,
    keys: &'a Keys,
    /// The catalog arc that was used last, with its table.
    current: Option<(ArcSerial, ArcFile, Vec<FrameInfo>)>,
}

impl<'a> ArcSource<'a> {
    pub fn new(dir: &'a Path, keys: &'a Keys) -> ArcSource<'a> {
        ArcSource { dir, keys, current: None }
    }
}

impl crate::index::CatalogSource for ArcSource<'_> {
    fn frame_table(&mut self, arc: &ArcEntry) -> Result<Vec<FrameInfo>> {
        ArcFile::open_known(self.dir, arc, self.keys)?.frame_table(self.keys)
    }

    fn catalog_frame(&mut self, wanted: &CatalogFrame, arc: &ArcEntry) -> Result<Vec<u8>> {
        if self.current.as_ref().is_none_or(|(serial, ..)| *serial != arc.serial) {
            let file = ArcFile::open_known(self.dir, arc, self.keys)?;
            let table = file.frame_table(self.keys)?;
            self.current = Some((arc.serial, file, table));
        }
        match &self.current {
            Some((serial, file, table)) => {
                file.open_frame(self.keys, table, wanted.frame, Some(*serial)).map(VerifiedBlock::into_plain)
            }
            None => Err(damaged(arc.name, Some(wanted.frame), 0, Damage::Missing)),
        }
    }
}

/// An arc being written in the backup dir.
pub type ArcFileWriter = ArcWriter<BufWriter<File>>;

/// Starts an arc file; a commit arc starts under a temporary name.
///
/// # Errors
/// `IO` also when the name is taken: names are never written twice.
pub fn create(dir: &Path, keys: &Keys, name: ArcName, role: ArcRole, serial: ArcSerial) -> Result<ArcFileWriter> {
    let path = write_path(dir, name, role);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&path)
        .map_err(|e| Error::io("create", &path, &e))?;
    ArcWriter::create(BufWriter::with_capacity(1 << 20, file), keys, name, role, serial).map_err(|e| e.at(&path))
}

/// Ends an arc file; the returned file still has to be made durable by `sync_all`.
pub fn finish(
    dir: &Path,
    keys: &Keys,
    arc: ArcFileWriter,
    role: ArcRole,
    packer: &mut Packer,
) -> Result<(ArcEntry, File)> {
    let path = write_path(dir, arc.name(), role);
    let done = arc.finish(keys, packer).map_err(|e| e.at(&path))?;
    let file = done.out.into_inner().map_err(|e| Error::io("write", &path, e.error()))?;
    Ok((done.entry, file))
}

/// Where an arc stands while it is written.
pub fn write_path(dir: &Path, name: ArcName, role: ArcRole) -> PathBuf {
    match role {
        ArcRole::Commit => dir.join(format!("{name}{TMP_SUFFIX}")),
        ArcRole::Data | ArcRole::Catalog => dir.join(name.to_string()),
    }
}

/// Writes the commit arc of a run and gives it its final name: the moment from which the version exists.
///
/// All other arcs of the run must be durable, names included, before.
pub fn write_commit(dir: &Path, keys: &Keys, commit: &Commit) -> Result<[u8; 32]> {
    let name = ArcName { version: commit.run, number: COMMIT_NUMBER };
    let record = commit.encode();
    if Commit::decode(&record).as_ref() != Ok(commit) {
        return Err(Error::SelfCheck { what: "the commit record does not decode to what it was".into() });
    }
    let tmp = write_path(dir, name, ArcRole::Commit);
    remove_if_there(&tmp)?;
    let mut packer = Packer::new(3)?;
    let mut arc = create(dir, keys, name, ArcRole::Commit, ArcSerial(0))?;
    let packed = packer.pack(&record)?;
    for _ in 0..2 {
        arc.append(FrameKind::Commit, &packed, record.len(), keys.block_hash(&record)).map_err(|e| e.at(&tmp))?;
    }
    let (_, file) = finish(dir, keys, arc, ArcRole::Commit, &mut packer)?;
    file.sync_all().map_err(|e| Error::io("fsync", &tmp, &e))?;
    rename(&tmp, &dir.join(name.to_string()))?;
    sync_dir(dir)?;
    Ok(crate::crypto::sha256(&record))
}

/// Removes the arcs of a run that was cut, and temporary files.
pub fn remove_leftovers(dir: &Path, arcs: &[ArcName]) -> Result<()> {
    for name in arcs {
        remove_if_there(&dir.join(name.to_string()))?;
    }
    for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, &e))? {
        let entry = entry.map_err(|e| Error::io("list", dir, &e))?;
        let name = entry.file_name();
        if name.to_str().and_then(|n| n.strip_suffix(TMP_SUFFIX)).is_some_and(|n| ArcName::parse(n).is_some()) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn open_file(dir: &Path, name: ArcName) -> Result<(File, u64)> {
    let path = dir.join(name.to_string());
    let opened = File::open(&path).and_then(|file| file.metadata().map(|meta| (file, meta.len())));
    opened.map_err(|e| match e.kind() {
        ErrorKind::NotFound => damaged(name, None, 0, Damage::Missing),
        _ => damaged(name, None, 0, Damage::Unreadable(e.raw_os_error().unwrap_or(libc::EIO))),
    })
}

fn read_at(file: &File, name: ArcName, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|e| damaged(name, None, offset, Damage::Unreadable(e.raw_os_error().unwrap_or(libc::EIO))))?;
    Ok(bytes)
}

fn damaged(arc: ArcName, frame: Option<FrameNo>, offset: u64, damage: Damage) -> Error {
    Error::Arc { place: Place { arc, frame, block: None, offset }, damage }
}

fn damage_of(error: Error) -> Damage {
    match error {
        Error::Arc { damage, .. } => damage,
        _ => Damage::Unreadable(libc::EIO),
    }
}
