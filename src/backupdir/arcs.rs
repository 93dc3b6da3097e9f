//! Arc files of a backup dir: listing, reading tables and commit records, creating and committing.
//!
//! Invariants: a name is never written twice; a commit arc appears under its final name by one rename after all
//! other arcs of its run are durable, so an arc file that is there and named by a commit record was whole once.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::arc::{
    ARC_HEADER_LEN, ARC_TRAILER_LEN, ArcHeader, ArcTrailer, ArcWriter, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameInfo,
    FrameKind, MAX_PLAIN_LEN, Packer, VerifiedBlock, decode_frame_table, frame,
};
use crate::catalog::{ArcEntry, ArcRole, CatalogFrame, Commit};
use crate::crypto::{ArcCipher, Keys};
use crate::depot::{LocalArc, StoredArc};
use crate::error::{Damage, Error, Place, Result};
use crate::ids::{ArcDigest, ArcName, ArcSerial, BlockId, FrameNo, Version};
use crate::index::OpenRun;
use crate::own::OwnDir;

pub(super) const TMP_SUFFIX: &str = ".tmp";

/// Names of all arcs in the directory, sorted; files with other names are not arcs.
pub fn list(dir: &OwnDir) -> Result<Vec<ArcName>> {
    Ok(list_all(dir)?.into_iter().filter(|(_, tmp)| !tmp).map(|(name, _)| name).collect())
}

/// As `list`, and the commit arcs that stand under their temporary names.
pub(super) fn list_all(dir: &OwnDir) -> Result<Vec<(ArcName, bool)>> {
    let mut names = Vec::new();
    for text in dir.names()?.iter().filter_map(|name| std::str::from_utf8(name).ok()) {
        let tmp = text.strip_suffix(TMP_SUFFIX).and_then(ArcName::parse).filter(|name| name.number == COMMIT_NUMBER);
        names.extend(ArcName::parse(text).map(|name| (name, false)).or(tmp.map(|name| (name, true))));
    }
    names.sort();
    Ok(names)
}

/// True if a file has the name of this arc, whatever is in it.
pub fn is_there(dir: &OwnDir, name: ArcName) -> bool {
    dir.stat(name.to_string()).is_ok_and(|found| found.is_some())
}

/// True if a file has the temporary name of the run's commit arc.
pub fn is_being_committed(dir: &OwnDir, run: Version) -> bool {
    dir.stat(write_name(commit_arc(run), ArcRole::Commit)).is_ok_and(|found| found.is_some())
}

pub fn commit_arc(run: Version) -> ArcName {
    ArcName { version: run, number: COMMIT_NUMBER }
}

/// None when there is no arc on which the key could be tried.
pub fn key_opens_an_arc(dir: &OwnDir, keys: &Keys) -> Option<bool> {
    let names = list(dir).ok()?;
    let mut tried = None;
    for name in names.iter().take(16) {
        match ArcFile::open(dir, *name, keys) {
            Ok(_) => return Some(true),
            Err(error) if error.is_damage() => tried = Some(false),
            Err(_) => {}
        }
    }
    tried
}

/// One arc file, opened for reading its structure. Mount reads go through `store`, not through this.
pub struct ArcFile {
    file: LocalArc,
    name: ArcName,
    len: u64,
    cipher: ArcCipher,
    role: ArcRole,
    /// Where the footer frame is and how many frames precede it, if the trailer is readable.
    footer: Option<(u64, u32, u32)>,
}

impl ArcFile {
    /// Opens by header, or by trailer when the header is damaged.
    ///
    /// # Errors
    /// Damage (`Arc`), or what keeps it from being read.
    pub fn open(dir: &OwnDir, name: ArcName, keys: &Keys) -> Result<ArcFile> {
        let file = LocalArc::open(dir, name)?;
        let len = file.len_bytes();
        let whole = |damage| damaged(name, None, 0, damage);
        let (head, tail) = ends(&file)?;
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
    pub fn open_known(dir: &OwnDir, entry: &ArcEntry, keys: &Keys) -> Result<ArcFile> {
        let file = LocalArc::open(dir, entry.name)?;
        Ok(ArcFile {
            name: entry.name,
            len: file.len_bytes(),
            file,
            cipher: keys.arc_cipher(entry.id, &entry.salt),
            role: entry.role,
            footer: Some((entry.footer_offset, entry.footer_len, entry.frames)),
        })
    }

    pub fn role(&self) -> ArcRole {
        self.role
    }

    /// True when trailer and length agree: it is not cut.
    pub fn is_whole(&self) -> bool {
        let end = |(at, len, _): (u64, u32, u32)| at.checked_add(u64::from(len) + ARC_TRAILER_LEN as u64);
        self.footer.is_some_and(|footer| end(footer) == Some(self.len))
    }

    /// All frames, from the footer. When it is damaged, from the headers of the frames themselves: then as many as
    /// stand in a row from the first one, which may be fewer than the arc had.
    pub fn frame_table(&self, keys: &Keys) -> Result<Vec<FrameInfo>> {
        let error = match self.footer_table(keys) {
            Err(error) if error.is_damage() => error,
            other => return other,
        };
        let table = self.walk_headers()?;
        if table.is_empty() { Err(error) } else { Ok(table) }
    }

    /// All frames, from the footer and nothing else.
    pub fn footer_table(&self, keys: &Keys) -> Result<Vec<FrameInfo>> {
        let Some((at, len, frames)) = self.footer else {
            return Err(damaged(self.name, None, self.len, Damage::BadTrailer));
        };
        let bytes = self.bytes(at, u64::from(len))?;
        let table = open_footer(keys, &self.cipher, self.role, frames, at, &bytes);
        table.map_err(|damage| damaged(self.name, None, at, damage))
    }

    /// Length of the file, bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// The table as the frame headers claim it, up to the first one that makes no sense or is cut off; each claim
    /// is proven when its frame is opened.
    fn walk_headers(&self) -> Result<Vec<FrameInfo>> {
        let mut table = Vec::new();
        let mut at = ARC_HEADER_LEN as u64;
        while self.footer.is_none_or(|(footer_at, ..)| at < footer_at) {
            let header = match self.bytes(at, FRAME_HEADER_LEN as u64) {
                Ok(header) => Some(header),
                Err(error) if error.is_damage() => None,
                Err(error) => return Err(error),
            };
            let claim = header.and_then(|bytes| FrameInfo::from_header(bytes.first_chunk()?));
            // Within the file, so the sum is in bounds; numbers in a row, so each is one that an arc can have.
            let fits = |(no, info): &(FrameNo, FrameInfo)| {
                no.0 as usize == table.len()
                    && *no <= FrameNo::MAX
                    && info.kind == FrameKind::of(self.role)
                    && at + info.frame_len() <= self.len
            };
            let Some((_, info)) = claim.filter(fits) else { break };
            table.push(info);
            at += info.frame_len();
        }
        Ok(table)
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
        let bytes = self.bytes(offset, info.frame_len()).map_err(|error| match error {
            Error::Arc { damage, .. } => at(damage),
            other => other,
        })?;
        frame::open(keys, &self.cipher, no, info, &bytes).map_err(at)
    }

    fn bytes(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let longest = (MAX_PLAIN_LEN + FRAME_OVERHEAD) as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.len) || len > longest {
            let found_bytes = self.len.saturating_sub(offset).min(len);
            return Err(damaged(self.name, None, offset, Damage::Truncated { wanted_bytes: len, found_bytes }));
        }
        self.file.exactly(offset, len as usize)
    }
}

/// Verifies every byte of a closed arc that no commit names, and makes it durable; gives what a commit says of it, but
/// for the serial. `advance` is told of bytes as they are done, and says whether to go on.
///
/// # Errors
/// `ARC_…` where it is not exactly what was sealed; `INTERRUPTED`.
pub fn prove(dir: &OwnDir, name: ArcName, keys: &Keys, advance: impl Fn(u64) -> bool) -> Result<ArcEntry> {
    let arc = ArcFile::open(dir, name, keys)?;
    let whole = |damage| damaged(name, None, 0, damage);
    arc.file.sync()?;
    let (head, tail) = ends(&arc.file)?;
    let (header, trailer) =
        (ArcHeader::decode(&head, keys).map_err(whole)?, ArcTrailer::decode(&tail, keys).map_err(whole)?);
    let same = header.name == name && (header.id, header.salt, header.role) == (trailer.id, trailer.salt, trailer.role);
    if !same || !arc.is_whole() {
        return Err(whole(Damage::BadTrailer));
    }
    let table = arc.footer_table(keys)?;
    let mut digest = Sha256::new();
    digest.update(&head);
    let (mut at, mut plain_bytes) = (ARC_HEADER_LEN as u64, 0);
    for (info, no) in table.iter().zip(0..) {
        let bytes = arc.bytes(at, info.frame_len())?;
        let bad = |damage| damaged(name, Some(FrameNo(no)), at, damage);
        if info.kind != FrameKind::Block {
            return Err(bad(Damage::WrongFrame));
        }
        frame::open(keys, &arc.cipher, FrameNo(no), info, &bytes).map_err(bad)?;
        digest.update(&bytes);
        at += info.frame_len();
        plain_bytes += u64::from(info.plain_len);
        if !advance(info.frame_len()) {
            return Err(Error::Interrupted);
        }
    }
    if at != trailer.footer_offset {
        return Err(whole(Damage::BadRecord("frame table")));
    }
    digest.update(arc.bytes(at, u64::from(trailer.footer_len))?);
    digest.update(&tail);
    Ok(ArcEntry {
        serial: ArcSerial(0),
        name,
        role: header.role,
        id: header.id,
        salt: header.salt,
        arc_bytes: arc.len,
        digest: ArcDigest(digest.finalize().into()),
        frames: trailer.frames,
        footer_offset: trailer.footer_offset,
        footer_len: trailer.footer_len,
        plain_bytes,
    })
}

/// Verifies a footer frame and reads the frame table in it: so many frames, of the kind that the role allows, and they end
/// where the footer begins.
pub fn open_footer(
    keys: &Keys,
    cipher: &ArcCipher,
    role: ArcRole,
    frames: u32,
    footer_offset: u64,
    bytes: &[u8],
) -> Result<Vec<FrameInfo>, Damage> {
    let header = bytes
        .first_chunk()
        .ok_or(Damage::Truncated { wanted_bytes: FRAME_OVERHEAD as u64, found_bytes: bytes.len() as u64 })?;
    let (no, info) = FrameInfo::from_header(header).ok_or(Damage::WrongFrame)?;
    if info.kind != FrameKind::Footer || no != crate::arc::writer::FOOTER_NO {
        return Err(Damage::WrongFrame);
    }
    let table = decode_frame_table(&frame::open(keys, cipher, no, &info, bytes)?)?;
    let fits = table.len() == frames as usize
        && table.iter().all(|info| info.kind == FrameKind::of(role))
        && ARC_HEADER_LEN as u64 + table.iter().map(FrameInfo::frame_len).sum::<u64>() == footer_offset;
    if fits { Ok(table) } else { Err(Damage::BadRecord("frame table")) }
}

/// Number of a run's commit arc: `arc.V.0` exists if and only if run V was committed.
pub const COMMIT_NUMBER: u32 = 0;

/// Reads the commit record of a run and its SHA-256.
///
/// # Errors
/// `COMMIT_DAMAGED` when neither copy of the record is right; what keeps them from being read.
pub fn read_commit(dir: &OwnDir, run: Version, keys: &Keys) -> Result<(Commit, [u8; 32])> {
    let (commit, digest) = read_record(dir, run, keys)?;
    if commit.run == run {
        Ok((commit, digest))
    } else {
        Err(Error::CommitDamaged { run, what: format!("it is the record of {}", commit.run) })
    }
}

/// Reads the commit record in `arc.V.0`, whatever run it is of.
pub fn read_record(dir: &OwnDir, run: Version, keys: &Keys) -> Result<(Commit, [u8; 32])> {
    let name = ArcName { version: run, number: COMMIT_NUMBER };
    let damaged = |what: &dyn std::fmt::Display| Error::CommitDamaged { run, what: what.to_string() };
    let judged = |error: Error| if error.is_damage() { damaged(&error) } else { error };
    let arc = ArcFile::open(dir, name, keys).map_err(judged)?;
    let table = arc.frame_table(keys).map_err(judged)?;
    let mut last = damaged(&"the commit arc holds no record");
    for (n, _) in table.iter().enumerate().filter(|(_, info)| info.kind == FrameKind::Commit) {
        match arc.open_frame(keys, &table, FrameNo(n as u32), None) {
            Ok(record) => match Commit::decode(&record) {
                Ok(commit) => return Ok((commit, crate::crypto::sha256(&record))),
                Err(e) => last = damaged(&e),
            },
            Err(e) => last = judged(e),
        }
    }
    Err(last)
}

/// Makes a commit arc that is there under its final name durable.
pub fn sync_commit(dir: &OwnDir, run: Version) -> Result<()> {
    let name = ArcName { version: run, number: COMMIT_NUMBER }.to_string();
    dir.read(&name)?.sync_all().map_err(|e| Error::io("fsync", dir.path_of(&name), &e))?;
    dir.sync()
}

/// Is the commit of a run there? Looks at the ends of its arc, and at the record only if they are damaged.
///
/// # Errors
/// As `read_commit`.
pub fn check_commit(dir: &OwnDir, run: Version, keys: &Keys) -> Result<()> {
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
pub fn runs(dir: &OwnDir) -> Result<Vec<Run>> {
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
    dir: &'a OwnDir,
    keys: &'a Keys,
    /// The catalog arc that was used last, with its table.
    current: Option<(ArcSerial, ArcFile, Vec<FrameInfo>)>,
}

impl<'a> ArcSource<'a> {
    pub fn new(dir: &'a OwnDir, keys: &'a Keys) -> ArcSource<'a> {
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
pub fn create(
    dir: &OwnDir,
    keys: &Keys,
    run: OpenRun,
    number: u32,
    role: ArcRole,
    serial: ArcSerial,
) -> Result<ArcFileWriter> {
    let name = ArcName { version: run.version, number };
    let path = write_path(dir, name, role);
    let file = dir.create(write_name(name, role), 0o400)?;
    let out = BufWriter::with_capacity(1 << 20, file);
    ArcWriter::create(out, keys, name, role, serial, run.arc_id(number)).map_err(|e| e.at(&path))
}

/// Ends an arc file; the returned file still has to be made durable by `sync_all`.
pub fn finish(
    dir: &OwnDir,
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
pub fn write_path(dir: &OwnDir, name: ArcName, role: ArcRole) -> PathBuf {
    dir.path_of(write_name(name, role))
}

fn write_name(name: ArcName, role: ArcRole) -> String {
    match role {
        ArcRole::Commit => format!("{name}{TMP_SUFFIX}"),
        ArcRole::Data | ArcRole::Catalog => name.to_string(),
    }
}

/// Writes the commit arc of a run and gives it its final name: the moment from which the version exists.
///
/// All other arcs of the run must be durable, names included, before.
pub fn write_commit(dir: &OwnDir, keys: &Keys, commit: &Commit) -> Result<[u8; 32]> {
    let name = ArcName { version: commit.run, number: COMMIT_NUMBER };
    let record = commit.encode();
    let self_check = |why: &str| Error::SelfCheck { what: format!("the commit record does not decode: {why}") };
    if Commit::decode(&record).map_err(|bad| self_check(bad.0))? != *commit {
        return Err(self_check("it becomes another"));
    }
    let tmp_name = write_name(name, ArcRole::Commit);
    let tmp = dir.path_of(&tmp_name);
    let mut packer = Packer::new(3)?;
    let run = OpenRun { version: commit.run, id: commit.run_id };
    let mut arc = create(dir, keys, run, COMMIT_NUMBER, ArcRole::Commit, ArcSerial(0))?;
    let packed = packer.pack(&record)?;
    for _ in 0..2 {
        arc.append(FrameKind::Commit, &packed, record.len(), keys.block_hash(&record)).map_err(|e| e.at(&tmp))?;
    }
    let (_, file) = finish(dir, keys, arc, ArcRole::Commit, &mut packer)?;
    file.sync_all().map_err(|e| Error::io("fsync", &tmp, &e))?;
    dir.rename(&tmp_name, name.to_string())?;
    dir.sync()?;
    Ok(crate::crypto::sha256(&record))
}

/// Header and trailer, or what stands in their places.
pub(super) fn ends(file: &LocalArc) -> Result<(Vec<u8>, Vec<u8>)> {
    let len = file.len_bytes();
    let head = file.exactly(0, len.min(ARC_HEADER_LEN as u64) as usize)?;
    let tail_at = len.saturating_sub(ARC_TRAILER_LEN as u64);
    Ok((head, file.exactly(tail_at, (len - tail_at) as usize)?))
}

fn damaged(arc: ArcName, frame: Option<FrameNo>, offset: u64, damage: Damage) -> Error {
    Error::Arc { place: Place { arc, frame, block: None, offset }, damage }
}
