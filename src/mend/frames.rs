//! `--fix` of what v3 to v5 found: bytes are put right in place, lost blocks are found again and sealed anew.
//!
//! Invariants: only bytes that verify are written, by one process at a time; each act is told in the finding that it is
//! about, and what could not be corrected says why. What is fixed here is proven by reading it back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::{FrameAt, Mending, Original, originals, read_original, recut, replace, rewrite_frame, rewrite_shell};
use crate::arc::repair::{self, BitFlip};
use crate::arc::{BlockInfo, FrameInfo, FrameKind};
use crate::backupdir::arcs::{clear_fetched, commit_arc};
use crate::backupdir::{Lock, MendLock};
use crate::catalog::ArcEntry;
use crate::copies::MEND_PATIENCE;
use crate::depot::{Depot, Via};
use crate::error::{Error, Result};
use crate::fetch::{Bad, Fetched, Frame, Repair, Way};
use crate::findings::{Cause, Finding, Fixed, FramesFixed, Level, Part};
use crate::ids::{ArcName, ArcSerial, BlockId, CopyId, FrameNo, FramePlace, Slot};
use crate::index::Index;
use crate::ledger::{self, Flip, Record};
use crate::monitor::Progress;
use crate::text::{counted, shown};
use crate::tree::{Tree, View};

/// Frames of one run that are looked at one by one; more are left for the next run.
const MAX_FRAMES: usize = 200_000;
/// Plain bytes of found blocks that are sealed anew by one maintenance run.
const BATCH_BYTES: u64 = 64 << 20;

/// Corrects what is wrong with frames and with what surrounds them.
pub(super) fn mend(mending: Mending<'_>, findings: &mut [Finding]) -> Result<()> {
    // Nobody who writes waits for another one who mends.
    let mut correction = Correction::begin(mending, MEND_PATIENCE)?;
    let writer = mending.dir.lock()?;
    correction.all(findings, Some(&writer))
}

/// As `mend`, by other copies and flipped bits alone.
pub(super) fn heal(mending: Mending<'_>, findings: &mut [Finding]) -> Result<()> {
    let mut correction = Correction::begin(mending, Duration::ZERO)?;
    correction.brings_back(findings)?;
    correction.all(findings, None)
}

/// Brings back from other copies what is not here as a whole.
pub(super) fn bring_back(mending: Mending<'_>, findings: &mut [Finding]) -> Result<()> {
    let mut correction = match Correction::begin(mending, MEND_PATIENCE) {
        // The index is what is wrong: that is told.
        Err(error) if error.is_damage() => return Ok(()),
        begun => begun?,
    };
    correction.brings_back(findings)
}

pub(super) struct Correction<'a> {
    pub mending: Mending<'a>,
    pub lock: MendLock,
    /// What the rebuilding of the index may have left behind is not asked any more.
    pub index: Arc<Index>,
    pub arcs: HashMap<ArcSerial, ArcEntry>,
    /// Those that answer.
    pub copies: Vec<Arc<dyn Depot>>,
    /// Arcs that were brought back, or could not be though a copy is good.
    pub brought: BTreeMap<ArcName, Fixed>,
    /// Names of blocks that were relocated, by the place that they are read from.
    names: HashMap<BlockId, BlockId>,
    pub outcomes: BTreeMap<FramePlace, Fixed>,
    /// Frames whose blocks are wanted from elsewhere, and why they can't be repaired.
    lost: BTreeMap<FramePlace, (FrameInfo, String)>,
}

impl<'a> Correction<'a> {
    fn begin(mending: Mending<'a>, patience: Duration) -> Result<Correction<'a>> {
        let lock = mending.dir.lock_to_mend(patience)?;
        clear_fetched(mending.dir.own())?;
        let index = Arc::new(mending.dir.open_index()?);
        let arcs = index.arcs()?.into_iter().map(|row| (row.entry.serial, row.entry)).collect();
        let moved = index.relocations(BlockId(0)..=BlockId::MAX)?;
        let names = moved.into_iter().map(|(name, place)| (place, name)).collect();
        let (copies, brought) = (mending.copies.to_vec(), BTreeMap::new());
        let (outcomes, lost) = (BTreeMap::new(), BTreeMap::new());
        Ok(Correction { mending, lock, index, arcs, copies, brought, names, outcomes, lost })
    }

    /// What was found is put right where it is or, by the one writer, found again in live files and sealed anew.
    fn all(&mut self, findings: &mut [Finding], writer: Option<&Lock>) -> Result<()> {
        self.go_on()?;
        let wanted: Vec<Vec<FramePlace>> = findings.iter().map(|finding| self.frames_of(finding)).collect();
        self.bring_back_many(wanted.iter().flatten(), findings)?;
        let total = wanted.iter().map(Vec::len).sum::<usize>().min(MAX_FRAMES) as u64;
        for (place, seen) in wanted.iter().flatten().take(MAX_FRAMES).zip(1u64..) {
            if self.mending.monitor.interrupted() {
                return Ok(());
            }
            if !self.outcomes.contains_key(place) && !self.lost.contains_key(place) {
                self.frame(*place, writer)?;
            }
            let progress = Progress { files: seen, expected_files: total, ..Progress::default() };
            self.mending.monitor.progress(progress);
        }
        match writer {
            Some(writer) => self.seek_originals(writer)?,
            None => {
                let lost = std::mem::take(&mut self.lost).into_iter();
                self.outcomes.extend(lost.map(|(place, (_, why))| (place, Fixed::Not { why })));
            }
        }
        if let Some(writer) = writer
            && self.outcomes.values().any(|outcome| *outcome == Fixed::BaseIsDue)
        {
            let mut writer = self.mending.dir.open_index_writer(writer)?;
            writer.make_base_due()?;
            writer.checkpoint()?;
        }
        // Footers and headers last: what stands between them must be right for the arc's checksum to be.
        for (finding, places) in findings.iter_mut().zip(&wanted) {
            let said = match self.shell_of(finding) {
                Some(entry) => Some(self.shell(&entry, &finding.error)?),
                None if places.is_empty() => None,
                None => Some(self.said(places)),
            };
            finding.fixed = finding.fixed.take().or(said);
        }
        self.prove()?;
        self.note_lost();
        Ok(())
    }

    /// Ends what attempts that were cut have begun.
    fn go_on(&mut self) -> Result<()> {
        for (name, part) in replace::left(self.mending.dir.own())? {
            let Some(entry) = self.arcs.values().find(|entry| entry.name == name).cloned() else { continue };
            match part.parse::<u32>() {
                Ok(no) => self.end_frame(&entry, FrameNo(no))?,
                // What can't be put right is a finding.
                Err(_) => drop(rewrite_shell(self.mending.dir, &self.lock, &self.index, &entry)),
            }
        }
        Ok(())
    }

    /// A frame that reads right needs no old bytes beside it.
    fn end_frame(&self, entry: &ArcEntry, no: FrameNo) -> Result<()> {
        let chunk = self.index.frame_chunk(entry.serial, no)?;
        let Some((offset, info)) = chunk.locate(no) else { return Ok(()) };
        let at = FrameAt { arc: entry, no, offset, info };
        let arc = self.mending.dir.arcs().open(entry.name);
        if let Some(bytes) = arc.ok().and_then(|arc| arc.exactly(offset, info.frame_len() as usize).ok()) {
            // Other bytes than this very frame's are refused.
            let _ = rewrite_frame(self.mending.dir, &self.lock, at, &bytes);
        }
        Ok(())
    }

    /// Places of the frames that a finding is about, if they are worth a try.
    fn frames_of(&self, finding: &Finding) -> Vec<FramePlace> {
        if finding.fixed.is_some() {
            return Vec::new();
        }
        let tried = match finding.cause {
            Cause::Medium | Cause::Memory | Cause::Missing => finding.level >= Level::LocalBlocks,
            Cause::Catalog => true,
            Cause::Transient | Cause::Index | Cause::Key | Cause::Stray | Cause::Unchecked => false,
        } && finding.error.is_damage();
        let Some(place) = finding.place.as_ref().filter(|_| tried) else { return Vec::new() };
        let entry = self.arcs.values().find(|entry| entry.name == place.arc);
        let Some(entry) = entry else { return Vec::new() };
        let frames = match finding.spot.map(|spot| (spot.copy, spot.part)) {
            Some((copy, _)) if copy != CopyId::LOCAL => 0..0,
            Some((_, Part::Frames { first, count })) => first.0..first.0.saturating_add(count),
            Some((_, Part::Whole)) => 0..entry.frames,
            Some(_) => 0..0,
            None => place.frame.map_or(0..0, |no| no.0..no.0 + 1),
        };
        frames.map(|no| FramePlace::new(entry.serial, FrameNo(no))).collect()
    }

    fn shell_of(&self, finding: &Finding) -> Option<ArcEntry> {
        let spot = finding.spot.filter(|spot| spot.copy == CopyId::LOCAL)?;
        let shell = matches!(spot.part, Part::Header | Part::Footer | Part::Trailer);
        self.arcs.get(&spot.serial.filter(|_| shell)?).cloned()
    }

    fn shell(&mut self, entry: &ArcEntry, wrong: &Error) -> Result<Fixed> {
        let why = match rewrite_shell(self.mending.dir, &self.lock, &self.index, entry) {
            Ok(parts) if parts.is_empty() => return Ok(Fixed::RightByNow),
            Ok(parts) => return Ok(Fixed::Shell { parts }),
            Err(error) => error.to_string(),
        };
        self.bring(entry.name, wrong)?;
        Ok(self.brought.get(&entry.name).cloned().unwrap_or(Fixed::Not { why }))
    }

    fn brings_back(&mut self, findings: &mut [Finding]) -> Result<()> {
        self.bring_back(findings)?;
        for finding in findings.iter_mut().filter(|finding| finding.fixed.is_none() && finding.at.is_none()) {
            finding.fixed = self.brought_for(finding);
        }
        Ok(())
    }

    /// What was brought back, of what a finding is about.
    fn brought_for(&self, finding: &Finding) -> Option<Fixed> {
        let name = match finding.error {
            Error::CommitDamaged { run, .. } => commit_arc(run),
            _ => finding.place.as_ref()?.arc,
        };
        self.brought.get(&name).filter(|outcome| outcome.is_done()).cloned()
    }

    /// Tries to repair one frame where it is.
    fn frame(&mut self, place: FramePlace, writer: Option<&Lock>) -> Result<()> {
        let Some(entry) = self.arcs.get(&place.arc()).cloned() else { return Ok(()) };
        let chunk = self.index.frame_chunk(place.arc(), place.frame())?;
        let Some((offset, info)) = chunk.locate(place.frame()).map(|(offset, info)| (offset, info.clone())) else {
            return Ok(());
        };
        let (keys, no) = (self.mending.dir.keys(), place.frame());
        let cipher = keys.arc_cipher(entry.id, &entry.salt);
        let block = Some(place.slot(Slot(0)));
        let frame = Frame { keys, cipher: &cipher, arc: entry.name, no, block, offset, info: &info };
        let read = self.mending.dir.arcs().open(entry.name).map(|arc| frame.read(arc.as_ref(), Via::Medium));
        let bad = match read {
            Ok(Ok(_)) => {
                self.outcomes.insert(place, Fixed::RightByNow);
                return Ok(());
            }
            Ok(Err(bad)) if bad.error.is_damage() => Some(bad),
            Err(error) if error.is_damage() => None,
            Ok(Err(Bad { error, .. })) | Err(error) => {
                self.outcomes.insert(place, Fixed::Not { why: error.to_string() });
                return Ok(());
            }
        };
        let repaired = bad.as_ref().and_then(|bad| frame.repaired(bad));
        if let Some(Fetched { way: Way::Repaired(Repair { what, flips, frame }), .. }) = repaired {
            self.note(place, &flips);
            let at = FrameAt { arc: &entry, no, offset, info: &info };
            let outcome = match rewrite_frame(self.mending.dir, &self.lock, at, &frame) {
                Ok(_) => Fixed::Rewritten { what },
                Err(error) => Fixed::Not { why: format!("{what}, but writing it failed: {error}") },
            };
            self.outcomes.insert(place, outcome);
            return Ok(());
        }
        if let Some((copy, sealed)) = self.of_copies(&frame) {
            let at = FrameAt { arc: &entry, no, offset, info: &info };
            match rewrite_frame(self.mending.dir, &self.lock, at, &sealed) {
                Ok(_) => {
                    let what = format!("taken from {copy}");
                    self.outcomes.insert(place, Fixed::Rewritten { what });
                    return Ok(());
                }
                // It stands where nothing can be written, or the arc is shorter: all of it is written anew.
                Err(error) => {
                    let wrong = bad.as_ref().map_or(&error, |bad| &bad.error);
                    self.bring(entry.name, wrong)?;
                    if let Some(outcome) = self.brought.get(&entry.name).cloned() {
                        self.outcomes.insert(place, outcome);
                        return Ok(());
                    }
                }
            }
        }
        if info.kind != FrameKind::Block {
            self.outcomes.insert(place, Fixed::BaseIsDue);
            return Ok(());
        }
        let Some(writer) = writer else {
            self.lost.insert(place, (info, "no copy has it, and no single flipped bit explains it".into()));
            return Ok(());
        };
        let monitor = self.mending.monitor;
        let mut go_on = |done: u64, total: u64| {
            monitor.progress(Progress { bytes: done, expected_bytes: total, ..Progress::default() });
            !monitor.interrupted()
        };
        let bytes = bad.and_then(|bad| bad.bytes).unwrap_or_default();
        match repair::search_plaintext(keys, &cipher, no, &info, &bytes, &mut go_on) {
            Some(found) => {
                let what = format!("{} was flipped before it was sealed", found.flip);
                let block = |(name, _, bytes): (BlockId, BlockInfo, Range<usize>)| {
                    (name, found.plain.get(bytes).unwrap_or_default().to_vec(), what.clone())
                };
                self.seal(writer, self.blocks_in(place, &info).into_iter().map(block).collect())?;
            }
            None => {
                self.lost.insert(place, (info, "no single flipped bit explains it".into()));
            }
        }
        Ok(())
    }

    fn note(&self, place: FramePlace, flips: &[BitFlip]) {
        for flip in flips.iter().take(8) {
            let BitFlip { byte, bit, to_one } = *flip;
            let (when_s, block) = (ledger::now_s(), place.slot(Slot(0)));
            self.mending.ledger.record(Record::Flip(Flip { when_s, block, byte, bit, to_one, again: true }));
        }
    }

    /// Names of the blocks that are read from a frame, what they must be, and which of the frame's plain bytes they are.
    fn blocks_in(&self, place: FramePlace, info: &FrameInfo) -> Vec<(BlockId, BlockInfo, Range<usize>)> {
        let mut end = 0;
        let block = |(slot, block): (Slot, &BlockInfo)| {
            let start = end;
            end += block.len as usize;
            let at = place.slot(slot);
            let name = self.names.get(&at).copied().unwrap_or(at);
            let is_here = self.index.location(name).is_ok_and(|now| now == at);
            is_here.then_some((name, *block, start..end))
        };
        info.slots().filter_map(block).collect()
    }

    /// Looks for the blocks of lost frames in the live files that they were cut from.
    fn seek_originals(&mut self, writer: &Lock) -> Result<()> {
        let lost = std::mem::take(&mut self.lost);
        let held = |(place, (info, why)): (FramePlace, (FrameInfo, String))| (place, self.blocks_in(place, &info), why);
        let frames: Vec<_> = lost.into_iter().map(held).collect();
        let wanted: HashSet<BlockId> =
            frames.iter().flat_map(|(_, blocks, _)| blocks).map(|(name, ..)| *name).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let tree = Tree::of(self.mending.dir, self.index.clone(), View::Whole);
        let monitor = self.mending.monitor;
        let found = match originals(&tree, &wanted, &|| monitor.interrupted()) {
            Err(Error::Interrupted) => return Ok(()),
            found => found?,
        };
        let mut batch: Vec<(BlockId, Vec<u8>, String)> = Vec::new();
        let mut batch_bytes = 0;
        let mut not_all = Vec::new();
        for (place, blocks, why) in frames {
            if self.mending.monitor.interrupted() {
                break;
            }
            let (mut sealed, mut gone) = (0, 0);
            for (name, block, _) in &blocks {
                let right = |original: &Original| {
                    let plain = read_original(original).ok()?;
                    (self.mending.dir.keys().block_hash(&plain) == block.hash)
                        .then(|| (plain, shown(&original.path).to_string()))
                };
                // One that no file uses is not missed, unless all are like that.
                let originals = found.get(name).map(Vec::as_slice).unwrap_or_default();
                match originals.iter().find_map(right) {
                    Some((plain, path)) => {
                        sealed += 1;
                        batch_bytes += plain.len() as u64;
                        batch.push((*name, plain, format!("from {path}")));
                    }
                    None => gone += u64::from(!originals.is_empty()),
                }
            }
            if sealed == 0 {
                let why = format!("{why}, and no live file has its bytes any more");
                self.outcomes.insert(place, Fixed::Not { why });
            } else if gone > 0 {
                let why = format!("{why}, and of {} no live file has the bytes any more", counted(gone, "block"));
                not_all.push((place, Fixed::Not { why }));
            }
            if batch_bytes >= BATCH_BYTES {
                self.seal(writer, std::mem::take(&mut batch))?;
                batch_bytes = 0;
            }
        }
        if !batch.is_empty() {
            self.seal(writer, batch)?;
        }
        self.outcomes.extend(not_all);
        Ok(())
    }

    /// Seals blocks anew, by a run of its own.
    fn seal(&mut self, writer: &Lock, blocks: Vec<(BlockId, Vec<u8>, String)>) -> Result<()> {
        let place = |name: BlockId| self.index.location(name).unwrap_or(name).place();
        let places: Vec<(FramePlace, String)> =
            blocks.iter().map(|(name, _, how)| (place(*name), how.clone())).collect();
        let plain: Vec<(BlockId, Vec<u8>)> = blocks.into_iter().map(|(name, plain, _)| (name, plain)).collect();
        let sealed = recut(self.mending.dir, writer, &self.index, &plain, self.mending.monitor);
        for (place, how) in places {
            let outcome = match &sealed {
                Ok(done) => Fixed::Sealed { arc: done.arc, how },
                Err(error) => Fixed::Not { why: format!("found again {how}, but it could not be written: {error}") },
            };
            self.outcomes.insert(place, outcome);
        }
        Ok(())
    }

    /// What was done about some frames.
    fn said(&self, places: &[FramePlace]) -> Fixed {
        if let [only] = places
            && let Some(outcome) = self.outcomes.get(only)
        {
            return outcome.clone();
        }
        let mut counts = FramesFixed::default();
        for place in places {
            *match self.outcomes.get(place) {
                None => &mut counts.not_tried,
                Some(Fixed::Sealed { .. }) => &mut counts.sealed,
                Some(Fixed::BaseIsDue) => &mut counts.base_is_due,
                Some(outcome) if outcome.is_done() => &mut counts.rewritten,
                Some(_) => &mut counts.lost,
            } += 1;
        }
        Fixed::Frames(counts)
    }
}
