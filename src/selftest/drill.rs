//! `--drill N`: damages N things in an overlay and shows that each is found, where it was done, and put right.
//!
//! Invariants: the real files are only read: the overlay is a private directory of links to them, in which what is
//! damaged is a copy; the same seed does the same damage to the same backup.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use super::{Exam, Level, Options, Report, Scope, blocks, pages};
use crate::arc::{FRAME_HEADER_LEN, FrameInfo, FrameKind};
use crate::backupdir::BackupDir;
use crate::catalog::ArcEntry;
use crate::error::{Error, Result};
use crate::findings::Findings;
use crate::ids::{BlockId, FrameNo};
use crate::index::Index;
use crate::ledger::{By, Ledger, LedgerWriter};
use crate::monitor::{Event, Monitor, Progress, Silent};
use crate::reader::{self, Backup};
use crate::scratch::Scratch;
use crate::store::{StoreOptions, Words};

/// Pages of the index have this size.
const PAGE_BYTES: u64 = 4096;
/// A larger index is not copied for a drill.
const MAX_INDEX_BYTES: u64 = 1 << 30;

/// One thing that was damaged, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drilled {
    /// What was done, and where.
    pub what: String,
    /// Code of the finding at this very place; none if it was not found there.
    pub found: Option<&'static str>,
    /// Reading the block gives the right bytes all the same; none where there is no way to repair such damage.
    pub healed: Option<bool>,
}

/// What a drill did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillReport {
    pub seed: u64,
    pub drilled: Vec<Drilled>,
    /// Findings elsewhere: damage that the backup has itself, or false alarms.
    pub elsewhere: u64,
    pub interrupted: bool,
}

impl DrillReport {
    /// Everything was found where it was done, and put right where that is possible.
    pub fn passed(&self) -> bool {
        self.drilled.iter().all(|one| one.found.is_some() && one.healed != Some(false))
    }
}

/// Numbers from a seed (SplitMix64, Steele et al. 2014).
pub(super) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Below `bound`; 0 for 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// Damages `count` things, one after the other.
///
/// # Errors
/// `USAGE` for a backup without arcs; what keeps an overlay from being made.
pub fn run(dir: &BackupDir, count: u32, seed: u64, monitor: &dyn Monitor) -> Result<DrillReport> {
    let index = dir.open_index()?;
    let arcs: Vec<ArcEntry> = index.arcs()?.into_iter().map(|row| row.entry).filter(|arc| arc.frames > 0).collect();
    if arcs.is_empty() {
        return Err(Error::Usage("there is nothing to damage yet: the backup has no arcs".into()));
    }
    let mut report = DrillReport { seed, drilled: Vec::new(), elsewhere: 0, interrupted: false };
    let mut random = Random(seed);
    for done in 0..count {
        if monitor.interrupted() {
            report.interrupted = true;
            break;
        }
        let (one, elsewhere) = drill(dir, &index, &arcs, done, &mut random)?;
        monitor.event(Event::Path(one.what.as_bytes()));
        report.drilled.push(one);
        report.elsewhere += elsewhere;
        let (files, expected_files) = (u64::from(done + 1), u64::from(count));
        monitor.progress(Progress { files, expected_files, ..Progress::default() });
    }
    Ok(report)
}

/// Where a finding must be to count.
enum Target {
    Frames { arc: ArcEntry, first: u32, last: u32, heals: bool },
    Page(u64),
}

fn drill(
    dir: &BackupDir,
    index: &Index,
    arcs: &[ArcEntry],
    number: u32,
    random: &mut Random,
) -> Result<(Drilled, u64)> {
    let overlay = Overlay::over(dir)?;
    let index_bytes = fs::metadata(dir.index_path()).map_or(0, |meta| meta.len());
    let (what, target) = match number % 6 {
        5 if (2 * PAGE_BYTES..MAX_INDEX_BYTES).contains(&index_bytes) => overlay.page(index_bytes, random)?,
        kind => overlay.arc(index, arcs, kind, random)?,
    };
    let examined = overlay.examine(&target)?;
    let found = examined.iter().find(|(_, here)| *here).map(|(code, _)| *code);
    let elsewhere = examined.iter().filter(|(_, here)| !here).count() as u64;
    let healed = match &target {
        Target::Frames { arc, first, heals: true, .. } => Some(overlay.reads(index, arc, *first)),
        _ => None,
    };
    Ok((Drilled { what, found, healed }, elsewhere))
}

/// A private directory that looks like the backup dir.
struct Overlay {
    _temp: Scratch,
    dir: BackupDir,
}

impl Overlay {
    fn over(real: &BackupDir) -> Result<Overlay> {
        let temp = Scratch::new()?;
        let listing = fs::read_dir(real.path()).map_err(|e| Error::io("list", real.path(), &e))?;
        for entry in listing {
            let entry = entry.map_err(|e| Error::io("list", real.path(), &e))?;
            let name = entry.file_name();
            let text = name.to_string_lossy();
            if text.starts_with("arc.") || text.starts_with("index.db") {
                let link = temp.path().join(&name);
                symlink(entry.path(), &link).map_err(|e| Error::io("link", link, &e))?;
            }
        }
        let dir = real.elsewhere(temp.path())?;
        Ok(Overlay { _temp: temp, dir })
    }

    /// Puts a copy in the place of a link, for damage.
    fn copy(&self, name: &str) -> Result<fs::File> {
        let path = self.dir.path().join(name);
        let real = fs::canonicalize(&path).map_err(|e| Error::io("find", &path, &e))?;
        let copied = fs::remove_file(&path)
            .and_then(|()| fs::copy(&real, &path))
            .and_then(|_| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))
            .and_then(|()| fs::File::options().read(true).write(true).open(&path));
        copied.map_err(|e| Error::io("copy", &real, &e))
    }

    fn page(&self, index_bytes: u64, random: &mut Random) -> Result<(String, Target)> {
        // The copy has what the log had: SQLite opens them together.
        let page = 1 + random.below(index_bytes / PAGE_BYTES - 1);
        let byte = random.below(PAGE_BYTES);
        let file = self.copy("index.db")?;
        flip(&file, page * PAGE_BYTES + byte, 1 << random.below(8), self.dir.path())?;
        Ok((format!("one bit of page {} of the index", page + 1), Target::Page(page + 1)))
    }

    fn arc(&self, index: &Index, arcs: &[ArcEntry], kind: u32, random: &mut Random) -> Result<(String, Target)> {
        let frames: u64 = arcs.iter().map(|arc| u64::from(arc.frames)).sum();
        let mut at = random.below(frames);
        let mut chosen = None;
        for arc in arcs {
            if at < u64::from(arc.frames) {
                chosen = Some(arc);
                break;
            }
            at -= u64::from(arc.frames);
        }
        let Some(arc) = chosen else { return Err(Error::Usage("there is nothing to damage".into())) };
        let no = FrameNo(at as u32);
        let located = |no: FrameNo| -> Result<(u64, FrameInfo)> {
            let chunk = index.frame_chunk(arc.serial, no)?;
            let lost = || Error::Usage(format!("{} frame {} is not in the index", arc.name, no.0));
            chunk.locate(no).map(|(offset, info)| (offset, info.clone())).ok_or_else(lost)
        };
        let (offset, info) = located(no)?;
        let name = arc.name.to_string();
        let path = self.dir.path();
        let frames = |first: u32, last: u32, heals| Target::Frames { arc: arc.clone(), first, last, heals };
        let only = |heals| frames(no.0, no.0, heals && info.kind == FrameKind::Block);
        Ok(match kind {
            // A burst: several bytes, so that no single bit explains it.
            1 => {
                let file = self.copy(&name)?;
                let start = random.below(info.frame_len() - 1);
                let end = (start + 2 + random.below(62)).min(info.frame_len());
                for byte in start..end {
                    flip(&file, offset + byte, 1 + random.below(255) as u8, path)?;
                }
                let in_header = end <= FRAME_HEADER_LEN as u64;
                (format!("bytes {start} to {} of {name} frame {}", end - 1, no.0), only(in_header))
            }
            2 => {
                let cut = offset + random.below(info.frame_len());
                let set = self.copy(&name)?.set_len(cut);
                set.map_err(|e| Error::io("cut", path, &e))?;
                (format!("{name} cut to {cut} bytes, in frame {}", no.0), frames(no.0, arc.frames - 1, false))
            }
            3 => {
                let other = FrameNo((no.0 + 1 + random.below(u64::from(arc.frames.max(2) - 1)) as u32) % arc.frames);
                let (other_offset, other_info) = located(other)?;
                let file = self.copy(&name)?;
                let len = info.frame_len().min(other_info.frame_len()) as usize;
                let mut bytes = vec![0; len];
                let swapped =
                    file.read_exact_at(&mut bytes, other_offset).and_then(|()| file.write_all_at(&bytes, offset));
                swapped.map_err(|e| Error::io("write", path, &e))?;
                if other == no {
                    // An arc of one frame has no other: its first byte stands for one.
                    flip(&file, offset, 0xff, path)?;
                }
                (format!("{name} frame {} overwritten with frame {}", no.0, other.0), only(false))
            }
            4 => {
                let link = path.join(&name);
                fs::remove_file(&link).map_err(|e| Error::io("remove", &link, &e))?;
                (format!("{name} missing"), frames(0, arc.frames - 1, false))
            }
            _ => {
                let byte = random.below(info.frame_len());
                let bit = random.below(8);
                flip(&self.copy(&name)?, offset + byte, 1 << bit, path)?;
                (format!("bit {bit} of byte {byte} of {name} frame {}", no.0), only(true))
            }
        })
    }

    /// Codes of what is found, and whether that is where the damage was done.
    fn examine(&self, target: &Target) -> Result<Vec<(&'static str, bool)>> {
        let scope = match target {
            Target::Frames { arc, .. } => Scope::Arcs(vec![arc.name]),
            Target::Page(_) => Scope::Everything,
        };
        let options = Options { scope, ..Options::of(Level::LocalBlocks) };
        let index = match self.dir.open_index() {
            Ok(index) => Arc::new(index),
            // The first pages of an index are needed to open it.
            Err(error) if matches!(target, Target::Page(_)) => return Ok(vec![(error.code(), true)]),
            Err(error) => return Err(error),
        };
        let ledger = Arc::new(LedgerWriter::new(self.dir.own(), self.dir.keys().clone(), By::Selftest, &index));
        let exam = Exam {
            dir: &self.dir,
            index,
            options: &options,
            monitor: &Silent,
            ledger,
            known: Ledger::default(),
            findings: Findings::default(),
            due: None,
            around: None,
            seed: 0,
            shown: Default::default(),
        };
        let mut report = Report::default();
        match target {
            Target::Frames { .. } => blocks::check(&exam, &mut report)?,
            Target::Page(_) => pages::check(&exam, &mut report)?,
        }
        let (findings, _) = exam.findings.take();
        let here = |finding: &super::Finding| match target {
            Target::Frames { arc, first, last, .. } => finding.place.as_ref().is_some_and(|place| {
                place.arc == arc.name && place.frame.is_none_or(|no| (*first..=*last).contains(&no.0))
            }),
            Target::Page(page) => {
                let text = finding.error.to_string();
                text.split(|c: char| !c.is_ascii_digit()).any(|number| number == page.to_string())
            }
        };
        Ok(findings.iter().map(|finding| (finding.error.code(), here(finding))).collect())
    }

    /// A reader gets the block all the same.
    fn reads(&self, index: &Index, arc: &ArcEntry, frame: u32) -> bool {
        let block = BlockId::first(arc.serial, FrameNo(frame));
        let len = index.frame_chunk(arc.serial, FrameNo(frame)).ok();
        let len = len.and_then(|chunk| chunk.block(block).map(|info| info.len));
        let Ok(own) = self.dir.open_index() else { return false };
        let store = StoreOptions { cache_bytes: 0, words: Words::Reader, ..StoreOptions::default() };
        let backup = Backup::of(&self.dir, own, reader::Options { store, ..reader::Options::default() });
        len.is_some_and(|len| backup.store.block(block, len, None).is_ok())
    }
}

/// XORs one byte.
fn flip(file: &fs::File, at: u64, mask: u8, path: &Path) -> Result<()> {
    let mut byte = [0];
    let done = file.read_exact_at(&mut byte, at).and_then(|()| {
        let changed = byte.map(|byte| byte ^ mask);
        file.write_all_at(&changed, at)
    });
    done.map_err(|e| Error::io("damage the copy in", path, &e))
}
