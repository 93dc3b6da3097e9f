//! Arcs that are not here as a whole, brought back from what other copies have of them.
//!
//! Two ways, in this order: a copy with the recorded checksum is fetched; where no copy has that, the arc is put together,
//! each frame from whoever has it right, the backup dir first.
//!
//! Invariants: what is here keeps its name until something better was read back and proven; no frame that was right here is
//! less so afterwards; a copy that fails for reasons that say nothing of its bytes is told once, and not asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::frames::Correction;
use super::rewrite::{footer, frame_table, rewrite_shell};
use crate::arc::repair::repair;
use crate::arc::{ARC_HEADER_LEN, ArcHeader, ArcTrailer};
use crate::backupdir::arcs::{COMMIT_NUMBER, FETCHED_SUFFIX, commit_arc, reads_back};
use crate::catalog::ArcEntry;
use crate::copies::{Note, State, What, bring_one, note_here};
use crate::depot::{Depot, Local, Reach, StoredArc, Via};
use crate::error::{Damage, Error, Place, Result};
use crate::fetch::{Frame, Way};
use crate::findings::{Cause, Finding, Fixed};
use crate::ids::{ArcName, ArcSerial, CopyId, FrameNo, FramePlace};
use crate::ledger::{self, Record};
use crate::monitor::Event;
use crate::text::counted;

/// More frames of an arc than these are not fetched one by one.
const FEW_FRAMES: usize = 32;

/// What came of an arc that was put together.
enum Made {
    /// It has its recorded bytes again, by these copies.
    Whole(BTreeSet<String>),
    /// More of it is here than before.
    Partly,
    /// Nothing of it was to be had that is not here.
    Nothing,
}

impl Correction<'_> {
    /// Brings back what no rewriting in place can put right: arcs that are gone, cut, another's, or can't be read, and commits.
    pub(super) fn bring_back(&mut self, findings: &[Finding]) -> Result<()> {
        let missing: BTreeMap<ArcName, Error> = findings.iter().filter_map(not_whole).collect();
        for (name, error) in missing {
            if self.mending.monitor.interrupted() {
                return Ok(());
            }
            self.bring(name, &error)?;
        }
        Ok(())
    }

    /// Arcs of which many frames are wanted are fetched whole, where a copy is whole.
    pub(super) fn bring_back_many<'f>(
        &mut self,
        wanted: impl Iterator<Item = &'f FramePlace>,
        findings: &[Finding],
    ) -> Result<()> {
        let mut counts: BTreeMap<ArcSerial, Vec<FramePlace>> = BTreeMap::new();
        wanted.for_each(|place| counts.entry(place.arc()).or_default().push(*place));
        for (serial, places) in counts.into_iter().filter(|(_, places)| places.len() > FEW_FRAMES) {
            let Some(name) = self.arcs.get(&serial).map(|entry| entry.name) else { continue };
            let is_about = |finding: &&Finding| finding.place.as_ref().is_some_and(|place| place.arc == name);
            let Some(wrong) = findings.iter().find(is_about).map(|finding| finding.error.clone()) else { continue };
            self.bring(name, &wrong)?;
            if let Some(outcome) = self.brought.get(&name).filter(|outcome| outcome.is_done()) {
                self.outcomes.extend(places.into_iter().map(|place| (place, outcome.clone())));
            }
        }
        Ok(())
    }

    /// An arc of which a part was written has its recorded checksum then, or what else is wrong with it is put right too.
    pub(super) fn prove(&mut self) -> Result<()> {
        let is_written = |outcome: &Fixed| matches!(outcome, Fixed::Rewritten { .. });
        let written = self.outcomes.iter().filter(|(_, outcome)| is_written(outcome)).map(|(place, _)| place.arc());
        let written: BTreeSet<ArcSerial> = written.collect();
        let entries = written.iter().filter_map(|serial| self.arcs.get(serial));
        let entries: Vec<ArcEntry> = entries.filter(|entry| !self.brought.contains_key(&entry.name)).cloned().collect();
        let dir = self.mending.dir;
        for entry in entries {
            if self.mending.monitor.interrupted() {
                return Ok(());
            }
            let name = entry.name.to_string();
            let is_right = || reads_back(dir.own(), entry.name, &name, &entry.digest.0).unwrap_or(false);
            let shell = || rewrite_shell(dir, &self.lock, &self.index, &entry);
            if is_right() || (shell().is_ok() && is_right()) {
                note_here(dir, entry.name, Note::now(entry.id, State::Proven));
                continue;
            }
            let wrong = Error::Arc { place: Place::in_arc(entry.name, 0), damage: Damage::BadTag };
            self.bring(entry.name, &wrong)?;
        }
        Ok(())
    }

    /// Notes what is still damaged: what was noted before may have been of a file that was written to since.
    pub(super) fn note_lost(&self) {
        let dir = self.mending.dir;
        for (place, _) in self.outcomes.iter().filter(|(_, outcome)| !outcome.is_done()) {
            let (Some(entry), Ok(chunk)) =
                (self.arcs.get(&place.arc()), self.index.frame_chunk(place.arc(), place.frame()))
            else {
                continue;
            };
            let Some((offset, info)) = chunk.locate(place.frame()) else { continue };
            let cipher = dir.keys().arc_cipher(entry.id, &entry.salt);
            let (keys, arc, no) = (dir.keys(), entry.name, place.frame());
            let frame = Frame { keys, cipher: &cipher, arc, no, block: None, offset, info };
            let read = Local::new(dir.own()).open(arc).map(|arc| frame.read(arc.as_ref(), Via::Medium));
            if let Ok(Err(bad)) = read
                && bad.error.is_damage()
            {
                self.mending.ledger.record(Record::Damage(ledger::Damage {
                    when_ms: self.mending.ledger.now_ms(),
                    arc: place.arc(),
                    copy: CopyId::LOCAL,
                    frame: Some(no),
                    count: 1,
                    code: bad.error.code().to_string(),
                    mended: false,
                }));
            }
        }
    }

    /// Sees to it that an arc is here as recorded, if any other copy helps; what came of it is in `brought`.
    pub(super) fn bring(&mut self, name: ArcName, wrong: &Error) -> Result<()> {
        // What only destinations keep is none the worse here.
        if self.mending.dir.arcs().reach_of(name) == Reach::Far || self.brought.contains_key(&name) {
            return Ok(());
        }
        let Some(what) = self.recorded_of(name)? else { return Ok(()) };
        let (dir, monitor) = (self.mending.dir, self.mending.monitor);
        let go_on = |_| if monitor.interrupted() { Err(Error::Interrupted) } else { Ok(()) };
        let mut refused = Vec::new();
        for copy in self.copies.clone() {
            let outcome = match bring_one(dir, &self.lock, (name, &what), copy.as_ref(), &go_on) {
                Ok(None) => Fixed::RightByNow,
                Ok(Some(_)) => {
                    dir.own().sync()?;
                    Fixed::Brought { from: copy.name().to_string() }
                }
                Err(Error::Interrupted) => return Ok(()),
                // What is near has this arc, or not: the next one may be had.
                Err(error) if copy.reach() == Reach::Near && !error.is_damage() => continue,
                Err(error) if error.is_damage() => {
                    refused.push(error);
                    continue;
                }
                Err(error @ (Error::Arc { .. } | Error::Dest { .. })) => {
                    self.is_away(&copy, &error);
                    continue;
                }
                // This machine fails.
                Err(error) => Fixed::Not { why: format!("a copy could not be written: {error}") },
            };
            self.brought.insert(name, outcome);
            return Ok(());
        }
        // Where it never was it is only behind.
        let is_there = |error: &&Error| !matches!(error, Error::Arc { damage: Damage::Missing, .. });
        refused.iter().filter(is_there).for_each(|error| monitor.event(Event::Failure { path: b"", error }));
        let What::Arc(entry) = what else { return Ok(()) };
        if let Made::Whole(from) = self.put_together(&entry, wrong)? {
            let from = from.into_iter().collect::<Vec<_>>().join(" and ");
            self.brought.insert(name, Fixed::Brought { from });
        }
        Ok(())
    }

    /// What must be here under a name.
    fn recorded_of(&self, name: ArcName) -> Result<Option<What>> {
        if name.number == COMMIT_NUMBER {
            return Ok(self.index.commits()?.of(name.version).map(What::Commit));
        }
        Ok(self.arcs.values().find(|entry| entry.name == name).cloned().map(What::Arc))
    }

    /// A copy that can't be asked.
    fn is_away(&mut self, copy: &Arc<dyn Depot>, error: &Error) {
        let what = format!("{} is not asked any more: {error}", copy.name());
        self.mending.monitor.event(Event::Warning { path: b"", what });
        self.copies.retain(|other| !Arc::ptr_eq(other, copy));
    }

    /// A frame from the first copy that has it right, sealed; and that copy's name.
    pub(super) fn of_copies(&mut self, frame: &Frame<'_>) -> Option<(String, Vec<u8>)> {
        for copy in self.copies.clone() {
            match frame.at(&copy).map(|found| found.way) {
                Ok(Way::Copy { frame, .. }) => return Some((copy.name().to_string(), frame)),
                Ok(_) => {}
                Err(refused) if refused.error.is_damage() => {
                    self.mending.monitor.event(Event::Failure { path: b"", error: &refused.error });
                }
                Err(_) if copy.reach() == Reach::Near => {}
                Err(refused) => self.is_away(&copy, &refused.error),
            }
        }
        None
    }

    /// Writes an arc anew from what is left of it, here and elsewhere, and gives it its name if that is all of it, or if more is
    /// here then than before.
    fn put_together(&mut self, entry: &ArcEntry, wrong: &Error) -> Result<Made> {
        if self.copies.is_empty() {
            return Ok(Made::Nothing);
        }
        let (dir, name) = (self.mending.dir, entry.name);
        let keys = dir.keys().clone();
        let opened = Local::new(dir.own()).open(name);
        // What can't be read now may be right: it is replaced by nothing but all of it.
        let mut may_be_partly = matches!(opened, Ok(_) | Err(Error::Arc { damage: Damage::Missing, .. }));
        let here = opened.ok().filter(|arc| is_of(arc.as_ref(), entry, &keys));
        let table = match frame_table(&self.index, entry) {
            Ok(table) => table,
            // The index is what is wrong: that is told.
            Err(error) if error.is_damage() => return Ok(Made::Nothing),
            Err(error) => return Err(error),
        };
        let cipher = keys.arc_cipher(entry.id, &entry.salt);
        let temporary = format!("{name}{FETCHED_SUFFIX}");
        dir.own().remove_if_there(&temporary)?;
        let file = dir.own().create(&temporary, 0o400)?;
        let mut out = Out { file, digest: Sha256::new(), at: 0 };
        let path = dir.own().path_of(&temporary);
        let failed = |error: std::io::Error| Error::io("write", &path, &error);
        let ArcEntry { role, id, salt, footer_offset, footer_len, frames, .. } = *entry;
        let mut from = BTreeSet::new();
        let (mut came, mut lost) = (0, 0);
        let mut written = out.put(&ArcHeader { name, role, id, salt }.encode(&keys)).map_err(failed);
        for (info, no) in table.iter().zip(0..) {
            if written.is_err() || self.mending.monitor.interrupted() {
                break;
            }
            let frame =
                Frame { keys: &keys, cipher: &cipher, arc: name, no: FrameNo(no), block: None, offset: out.at, info };
            let stored = here.as_deref().map(|arc| stored(arc, out.at, info.frame_len())).transpose();
            may_be_partly &= stored.is_ok();
            let stored = stored.unwrap_or_default();
            let sealed = match stored.as_deref().map(|bytes| frame.judge(bytes)) {
                Some(Ok(_)) => stored.unwrap_or_default(),
                _ => match self.of_copies(&frame) {
                    Some((copy, sealed)) => {
                        came += 1;
                        from.insert(copy);
                        sealed
                    }
                    None => {
                        let repaired = repair(&keys, &cipher, frame.no, info, stored.as_deref().unwrap_or_default());
                        lost += u64::from(repaired.is_none());
                        // What can't be had stays as it was: a live file may have its bytes.
                        let mut bytes = repaired.map_or_else(|| stored.unwrap_or_default(), |repaired| repaired.frame);
                        bytes.resize(info.frame_len() as usize, 0);
                        bytes
                    }
                },
            };
            written = out.put(&sealed).map_err(failed);
        }
        let found = here.as_deref().and_then(|arc| stored(arc, footer_offset, u64::from(footer_len)).ok());
        let tail = footer(&keys, &cipher, &table, footer_len, found.as_deref().unwrap_or_default())?;
        lost += u64::from(tail.is_none());
        let tail = tail.unwrap_or_else(|| vec![0; footer_len as usize]);
        let trailer = ArcTrailer { role, id, salt, footer_offset, footer_len, frames }.encode(&keys);
        let synced = |out: &Out| out.file.sync_all().map_err(failed);
        let done = written
            .and_then(|()| out.put(&tail).and_then(|()| out.put(&trailer)).map_err(failed))
            .and_then(|()| synced(&out));
        let written: [u8; 32] = out.digest.finalize().into();
        let is_whole = lost == 0 && written == entry.digest.0;
        let is_more = came > 0 && may_be_partly && matches!(wrong, Error::Arc { .. });
        let is_better = (is_whole || is_more) && done.is_ok() && !self.mending.monitor.interrupted();
        // Each frame that is in it was judged before: what is on the medium must be just that.
        if !is_better || !reads_back(dir.own(), name, &temporary, &written)? {
            let _ = dir.own().remove_if_there(&temporary);
            return done.map(|()| Made::Nothing);
        }
        dir.own().rename(&temporary, name.to_string())?;
        dir.own().sync()?;
        if is_whole {
            note_here(dir, name, Note::now(entry.id, State::Proven));
            return Ok(Made::Whole(from));
        }
        let what =
            format!("{name}: {} came from other copies, {} no copy has", counted(came, "frame"), counted(lost, "part"));
        self.mending.monitor.event(Event::Warning { path: b"", what });
        Ok(Made::Partly)
    }
}

/// The arc of a finding that more than a part of it is wrong, here, and what is.
fn not_whole(finding: &Finding) -> Option<(ArcName, Error)> {
    let is_here = finding.at.is_none() && finding.spot.is_none_or(|spot| spot.copy == CopyId::LOCAL);
    let tried = matches!(finding.cause, Cause::Medium | Cause::Memory | Cause::Missing | Cause::Catalog);
    if !is_here || !tried || finding.fixed.is_some() {
        return None;
    }
    let name = match &finding.error {
        Error::CommitDamaged { run, .. } => commit_arc(*run),
        Error::Arc { place, .. } if place.arc.number == COMMIT_NUMBER => place.arc,
        Error::Arc { place, damage: Damage::Missing | Damage::Truncated { .. } | Damage::Unreadable(_) } => place.arc,
        Error::Arc { place, .. } if place.frame.is_none() && finding.cause == Cause::Missing => place.arc,
        _ => return None,
    };
    Some((name, finding.error.clone()))
}

/// What has the arc's name is this very arc, or what is left of it.
fn is_of(arc: &dyn StoredArc, entry: &ArcEntry, keys: &crate::crypto::Keys) -> bool {
    let head = arc.exactly(0, ARC_HEADER_LEN).ok().and_then(|head| ArcHeader::decode(&head, keys).ok());
    head.is_none_or(|header| header.id == entry.id)
}

/// All bytes of a stretch that are there.
fn stored(arc: &dyn StoredArc, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    let count = arc.read(offset, &mut bytes, Via::Medium)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// An arc being written.
struct Out {
    file: std::fs::File,
    digest: Sha256,
    at: u64,
}

impl Out {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.digest.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }
}
