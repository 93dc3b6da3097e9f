//! v3 and v4: each block of the arcs of one copy, in the order of the medium.
//!
//! Every byte of an arc is authenticated in its place: header, all frames, footer, trailer, and the length. So an arc
//! without a finding is, byte for byte, the one whose SHA-256 is recorded; here it is not hashed once more
//! (docs/decisions.md), at a destination it is.
//! Invariants: neighbouring frames with the same damage are one finding, and so is an arc that is missing, cut, or
//! another one; damage, and what reads right again, is noted in the ledger.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::copies;
use super::drill::Random;
use super::in_order::InOrder;
use super::inc::Due;
use super::medium::{self, Bad, Job, Placed, Watch};
use super::plan::{Plan, commit_arc};
use super::shell::{BadPart, Shell};
use super::{Exam, Level, Report};
use crate::arc::{ARC_HEADER_LEN, ArcHeader, FrameInfo};
use crate::backupdir::arcs;
use crate::catalog::ArcEntry;
use crate::copies::{Note, Proving, State, note_here, stamp_here};
use crate::depot::{Depot, StoredArc};
use crate::dest::Stamp;
use crate::error::{Damage, Error, Place, Result};
use crate::fetch::ArcFile;
use crate::findings::hits::Wrong;
use crate::findings::{Cause, Finding, MAX_LISTED, Part, Spot};
use crate::ids::{ArcId, ArcName, ArcSerial, BlockId, FrameNo, Version};
use crate::ledger::{self, How, Record};
use crate::monitor::{Event, Progress};
use crate::sync::{into_inner, lock};

pub(super) fn check(exam: &Exam<'_>, report: &mut Report) -> Result<()> {
    let plan = Plan::make(exam)?;
    report.notes.extend(plan.notes.iter().cloned());
    let near = plan.near(exam, report);
    let run = Run::new(exam, exam.dir.arcs(), &near, exam.due.as_ref());
    exam.show_expected(near.arcs.len() as u64, run.expected_bytes());
    medium::verify_all(exam.dir.keys(), run.jobs(), 1, &run)?;
    run.end(report);
    match exam.options.level {
        Level::AllCopies if !exam.monitor.interrupted() => copies::check(exam, &plan, report),
        _ => Ok(()),
    }
}

/// One copy being checked.
pub(super) struct Run<'a> {
    pub exam: &'a Exam<'a>,
    level: Level,
    copy: &'a dyn Depot,
    /// The same, if it is at a destination.
    far: Option<&'a Proving>,
    plan: &'a Plan,
    due: Option<&'a Due>,
    /// Arcs that were known to be damaged apart from their frames.
    known: HashMap<ArcSerial, ledger::Damage>,
    wrong: Mutex<Vec<Wrong>>,
    unlisted: AtomicU64,
    /// Arcs that were not, or not wholly, read, for reasons that say nothing of their bytes.
    pub unread: Mutex<BTreeSet<ArcName>>,
    /// Arcs that are not there, and those of which something is wrong.
    missing: Mutex<BTreeSet<ArcName>>,
    damaged: Mutex<BTreeSet<ArcName>>,
    /// Arcs that were verified to their end, and those of them, at a destination, in which nothing is wrong.
    arcs: AtomicU64,
    pub right: AtomicU64,
    /// Arcs of which nothing is to be read: not due, missing, not to be opened.
    without_job: AtomicU64,
    blocks: AtomicU64,
    plain_bytes: AtomicU64,
    read_bytes: AtomicU64,
}

/// What came of one copy.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Those in which nothing is wrong.
    pub arcs: u64,
    pub blocks: u64,
    pub plain_bytes: u64,
    pub damaged: u64,
    pub missing: u64,
}

impl<'a> Run<'a> {
    /// Of a copy that is at hand.
    fn new(exam: &'a Exam<'a>, copy: &'a dyn Depot, plan: &'a Plan, due: Option<&'a Due>) -> Run<'a> {
        let of_arc = |damage: &&ledger::Damage| damage.copy == copy.id() && damage.frame.is_none();
        let known = exam.known.open_damage().iter().filter(of_arc).map(|damage| (damage.arc, damage.clone())).collect();
        Run {
            exam,
            level: Level::LocalBlocks,
            copy,
            far: None,
            plan,
            due,
            known,
            wrong: Mutex::default(),
            unlisted: AtomicU64::new(0),
            unread: Mutex::default(),
            missing: Mutex::default(),
            damaged: Mutex::default(),
            arcs: AtomicU64::new(0),
            right: AtomicU64::new(0),
            without_job: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            plain_bytes: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
        }
    }

    /// Of a copy at a destination.
    pub fn far(exam: &'a Exam<'a>, far: &'a Proving, plan: &'a Plan, due: Option<&'a Due>) -> Run<'a> {
        Run { level: Level::AllCopies, far: Some(far), ..Run::new(exam, far, plan, due) }
    }

    fn expected_bytes(&self) -> u64 {
        match (self.exam.options.sample, self.due) {
            (None, None) => self.plan.arcs.iter().map(|entry| entry.arc_bytes).sum(),
            (None, Some(due)) => due.bytes,
            (Some(_), _) => 0,
        }
    }

    /// All arcs, each opened when its turn comes.
    pub fn jobs(&self) -> impl Iterator<Item = Job> + Send {
        let go_on = |_: &&ArcEntry| !self.stop();
        let arcs = self.plan.arcs.iter().take_while(go_on).map(|entry| self.arc(entry));
        let commits = self.plan.commits.iter().take_while(|_| !self.stop()).map(|run| self.commit(*run));
        let orphans = self.plan.orphans.iter().take_while(|_| !self.stop()).map(|name| self.orphan(*name));
        let counted = |job: &Option<Job>| {
            self.without_job.fetch_add(u64::from(job.is_none()), Relaxed);
        };
        arcs.chain(commits).chain(orphans).inspect(counted).flatten()
    }

    /// An arc that a commit record describes.
    fn arc(&self, entry: &ArcEntry) -> Option<Job> {
        let due = self.due.map(|due| due.frames(entry.serial));
        if due.is_some_and(<[_]>::is_empty) {
            return None;
        }
        let stamp = self.stamp(entry.name);
        let bytes = match self.copy.open(entry.name) {
            Ok(bytes) => bytes,
            Err(error) => {
                if !self.stop() || error.is_damage() {
                    self.whole(entry.name, Some(entry), error);
                }
                return None;
            }
        };
        let keys = self.exam.dir.keys();
        let whole = self.is_asked(entry);
        let cut = bytes.len_bytes() < entry.arc_bytes;
        if cut && self.is_another(bytes.as_ref(), entry) {
            let bad_part = BadPart::new(entry.name, Part::Whole, 0, Damage::WrongFrame, Cause::Missing);
            self.bad_part(entry.name, Some(entry), &bad_part);
            return None;
        }
        let shell = match whole && !cut {
            true => Shell::read(bytes.as_ref(), Some(entry), keys),
            false => Shell::default(),
        };
        if self.stop() {
            return None;
        }
        let is_hashed = self.far.is_some() && whole && bytes.len_bytes() == entry.arc_bytes;
        let head = is_hashed.then(|| bytes.exactly(0, ARC_HEADER_LEN).ok()).flatten();
        let Some(mut frames) = self.frames(entry, &shell) else {
            let error = self.index_error(format!("the frame table of {} is lost, in the arc too", entry.name));
            if self.far.is_some() {
                // The copy here has told it.
                lock(&self.unread).insert(entry.name);
            } else if self.exam.findings.accept(&error, None, last_block(entry)) {
                self.exam.findings.pass_over();
            } else {
                self.note(Finding::new(Level::LocalBlocks, Cause::Unchecked, error));
                lock(&self.unread).insert(entry.name);
            }
            shell.bad_parts.iter().for_each(|bad_part| self.bad_part(entry.name, Some(entry), bad_part));
            return None;
        };
        if cut {
            self.cut(entry, bytes.len_bytes(), &mut frames);
        }
        if let Some(due) = due {
            frames.retain(|(no, ..)| due.iter().any(|range| range.contains(&no.0)));
        }
        if let Some(count) = self.exam.options.sample {
            // The same seed chooses the same blocks, whatever else is tested.
            let random = Random(self.exam.seed ^ entry.serial.0 << 16 ^ u64::from(self.copy.id().0));
            frames = sample(frames, count, random);
        }
        Some(Job {
            stamp,
            name: entry.name,
            serial: Some(entry.serial),
            cipher: keys.arc_cipher(entry.id, &entry.salt),
            bytes,
            frames,
            whole: whole && !cut,
            sum: head.map(|head| Mutex::new(InOrder::after(&head))),
            bad_parts: shell.bad_parts,
            foreign: shell.foreign,
            other: shell.other,
            bad: Mutex::default(),
        })
    }

    fn stamp(&self, name: ArcName) -> Option<Stamp> {
        if self.far.is_some() { None } else { stamp_here(self.exam.dir, name) }
    }

    /// All of it is to be read.
    pub fn is_asked(&self, entry: &ArcEntry) -> bool {
        let is_all = |due: &Due| matches!(due.frames(entry.serial), [all] if all.start == 0 && all.end >= entry.frames);
        self.exam.options.sample.is_none() && self.due.is_none_or(is_all)
    }

    /// A shorter arc stands in its place.
    fn is_another(&self, bytes: &dyn StoredArc, entry: &ArcEntry) -> bool {
        let head = bytes.exactly(0, ARC_HEADER_LEN).ok();
        let header = head.and_then(|head| ArcHeader::decode(&head, self.exam.dir.keys()).ok());
        header.is_some_and(|header| header.id != entry.id)
    }

    /// The frames as the index has them; when it does not, as the arc itself does.
    fn frames(&self, entry: &ArcEntry, shell: &Shell) -> Option<Vec<Placed>> {
        if self.plan.indexed {
            match self.indexed_frames(entry) {
                Ok(frames) => return Some(frames),
                // The checks of the index have told it already.
                Err(_) if self.far.is_some() || self.exam.findings.any(Cause::Index) => {}
                Err(error) if self.exam.findings.accept(&error, None, last_block(entry)) => {}
                Err(error) => {
                    self.note(Finding::of(Level::LocalBlocks, error));
                }
            }
        }
        let table = shell.table.clone().or_else(|| {
            let arc = ArcFile::open_known(self.copy, entry, self.exam.dir.keys()).ok()?;
            arc.frame_table(self.exam.dir.keys()).ok()
        })?;
        Some(placed(table))
    }

    fn indexed_frames(&self, entry: &ArcEntry) -> Result<Vec<Placed>> {
        let mut frames = Vec::with_capacity(entry.frames as usize);
        while frames.len() < entry.frames as usize {
            let chunk = self.exam.index.frame_chunk(entry.serial, FrameNo(frames.len() as u32))?;
            let mut offset = chunk.offset;
            for (info, no) in chunk.frames.iter().zip(chunk.first.0..) {
                frames.push((FrameNo(no), offset, info.clone()));
                offset += info.frame_len();
            }
        }
        Ok(frames)
    }

    /// A cut arc is one finding, from its first frame that is not all there on.
    fn cut(&self, entry: &ArcEntry, len_bytes: u64, frames: &mut Vec<Placed>) {
        let there = frames.partition_point(|(_, offset, info)| offset + info.frame_len() <= len_bytes);
        let gone = frames.split_off(there);
        let mut damage = Damage::Truncated { wanted_bytes: entry.arc_bytes, found_bytes: len_bytes };
        let (part, offset) = match gone.first() {
            Some((first, offset, info)) => {
                let found_bytes = len_bytes.saturating_sub(*offset);
                damage = Damage::Truncated { wanted_bytes: info.frame_len(), found_bytes };
                (Part::Frames { first: *first, count: gone.len() as u32 }, *offset)
            }
            None if len_bytes < entry.footer_offset + u64::from(entry.footer_len) => {
                (Part::Footer, entry.footer_offset)
            }
            None => (Part::Trailer, entry.footer_offset + u64::from(entry.footer_len)),
        };
        self.bad_part(entry.name, Some(entry), &BadPart::new(entry.name, part, offset, damage, Cause::Missing));
    }

    /// A commit arc: both copies of the record, and what surrounds them.
    fn commit(&self, run: Version) -> Option<Job> {
        let name = commit_arc(run);
        let keys = self.exam.dir.keys();
        let spot = Spot { copy: self.copy.id(), serial: None, part: Part::Whole };
        let damaged = |cause, error: Error| {
            let place = Some(Place::in_arc(name, 0));
            self.note(Finding { place, spot: Some(spot), ..Finding::new(Level::LocalBlocks, cause, error) });
        };
        let bytes = match self.copy.open(name) {
            Ok(bytes) => bytes,
            Err(Error::Arc { damage: Damage::Missing, .. }) => {
                let what = format!("{name} is missing");
                damaged(Cause::Missing, Error::CommitDamaged { run, what });
                return None;
            }
            Err(error) => {
                self.whole(name, None, error);
                return None;
            }
        };
        if let Err(error) = arcs::read_commit(self.copy, run, keys) {
            damaged(if error.is_damage() { Cause::Catalog } else { Cause::Unchecked }, error);
            return None;
        }
        self.unlisted_arc(name, bytes)
    }

    /// An arc whose commit record can't be read.
    fn orphan(&self, name: ArcName) -> Option<Job> {
        match self.copy.open(name) {
            Ok(bytes) => self.unlisted_arc(name, bytes),
            Err(error) => {
                self.whole(name, None, error);
                None
            }
        }
    }

    /// An arc that is described by nothing but itself.
    fn unlisted_arc(&self, name: ArcName, bytes: Box<dyn StoredArc>) -> Option<Job> {
        let keys = self.exam.dir.keys();
        let stamp = self.stamp(name);
        let shell = Shell::read(bytes.as_ref(), None, keys);
        let walked = || ArcFile::open(self.copy, name, keys).ok()?.frame_table(keys).ok();
        let table = shell.table.clone().or_else(walked);
        let (Some((id, salt, _)), Some(table)) = (shell.identity, table) else {
            let cause = if shell.foreign { Cause::Key } else { Cause::Medium };
            let damage = if shell.other { Damage::WrongFrame } else { Damage::BadHeader };
            match shell.bad_parts.iter().find(|bad_part| bad_part.cause == Cause::Unchecked) {
                Some(unread) => self.bad_part(name, None, unread),
                None => self.bad_part(name, None, &BadPart::new(name, Part::Whole, 0, damage, cause)),
            }
            return None;
        };
        Some(Job {
            stamp,
            name,
            serial: None,
            cipher: keys.arc_cipher(id, &salt),
            bytes,
            frames: placed(table),
            whole: true,
            sum: None,
            bad_parts: shell.bad_parts,
            foreign: shell.foreign,
            other: shell.other,
            bad: Mutex::default(),
        })
    }

    /// The arc as a whole can't be read.
    fn whole(&self, name: ArcName, entry: Option<&ArcEntry>, error: Error) {
        let cause = Cause::of(&error);
        self.bad_part(name, entry, &BadPart { part: Part::Whole, offset: 0, error, cause });
    }

    pub fn bad_part(&self, name: ArcName, entry: Option<&ArcEntry>, bad_part: &BadPart) {
        let serial = entry.map(|entry| entry.serial);
        let frames = match (bad_part.part, entry) {
            (Part::Whole, Some(entry)) => Some((0, entry.frames)),
            (Part::Frames { first, count }, _) => Some((first.0, count)),
            _ => None,
        };
        self.add(name, serial, bad_part, frames);
    }

    /// Lists it for the end, and notes it in the ledger.
    fn add(&self, name: ArcName, serial: Option<ArcSerial>, bad_part: &BadPart, frames: Option<(u32, u32)>) {
        let frame = match bad_part.part {
            Part::Frames { first, .. } => Some(first),
            _ => None,
        };
        let block = serial.zip(frame).map(|(serial, no)| BlockId::first(serial, no));
        let place = Place { arc: name, frame, block, offset: bad_part.offset };
        let error = match (bad_part.cause, &bad_part.error) {
            (Cause::Index, _) => self.index_error(format!("it has another frame than {place}, which is authentic")),
            (_, Error::Arc { damage, .. }) => Error::Arc { place, damage: damage.clone() },
            (_, other) => other.clone(),
        };
        if let (Some(serial), Error::Arc { damage, .. }) = (serial, &error) {
            // Of a missing arc no frame is damaged: they are all right when it comes back.
            let noted = frames.filter(|_| *damage != Damage::Missing);
            self.damage(serial, noted, error.code(), bad_part.cause == Cause::Transient);
        }
        match (bad_part.cause, &error) {
            (Cause::Unchecked, _) => drop(lock(&self.unread).insert(name)),
            (Cause::Transient | Cause::Index, _) => {}
            (_, Error::Arc { damage: Damage::Missing, .. }) => drop(lock(&self.missing).insert(name)),
            _ => drop(lock(&self.damaged).insert(name)),
        }
        if let (Some(far), Some(entry), true) = (self.far, self.entry(serial), self.is_wrong(name)) {
            far.found_wrong(entry, &error);
        }
        let spot = Spot { copy: self.copy.id(), serial, part: bad_part.part };
        let frames = serial.zip(frames).map(|(serial, (first, count))| (serial, first, first + count));
        let mut wrong = lock(&self.wrong);
        if wrong.len() < MAX_LISTED {
            wrong.push(Wrong { error, cause: bad_part.cause, spot, frames });
        } else {
            self.unlisted.fetch_add(1, Relaxed);
        }
    }

    /// Notes the verdict on frames (first, count), or on the arc apart from them.
    fn damage(&self, arc: ArcSerial, frames: Option<(u32, u32)>, code: &str, mended: bool) {
        self.exam.ledger.record(Record::Damage(ledger::Damage {
            when_ms: ledger::now_ms(),
            arc,
            copy: self.copy.id(),
            frame: frames.map(|(first, _)| FrameNo(first)),
            count: frames.map_or(0, |(_, count)| count),
            code: code.to_string(),
            mended,
        }));
    }

    fn note(&self, finding: Finding) {
        self.exam.findings.add(finding);
    }

    fn index_error(&self, what: String) -> Error {
        Error::IndexRow { path: self.exam.index.path().to_path_buf(), what }
    }

    /// Something lasting was found.
    pub fn is_wrong(&self, name: ArcName) -> bool {
        lock(&self.missing).contains(&name) || lock(&self.damaged).contains(&name)
    }

    fn show_progress(&self) {
        let found = self.exam.findings.count() + lock(&self.wrong).len() as u64 + self.unlisted.load(Relaxed);
        let before = *lock(&self.exam.shown);
        self.exam.monitor.progress(Progress {
            files: before.files + self.arcs.load(Relaxed),
            bytes: before.bytes + self.read_bytes.load(Relaxed),
            errors: found,
            ..before
        });
    }

    /// Hands over what was found, with the files that it hits.
    pub fn tell(&self, notes: &mut Vec<String>) -> Outcome {
        let wrong = std::mem::take(&mut *lock(&self.wrong));
        self.exam.tell(self.level, wrong, notes, self.far.map(Depot::name));
        self.exam.findings.add_unlisted(self.unlisted.swap(0, Relaxed));
        let mut shown = lock(&self.exam.shown);
        shown.files += self.arcs.load(Relaxed);
        shown.bytes += self.read_bytes.load(Relaxed);
        Outcome {
            arcs: self.right.load(Relaxed),
            blocks: self.blocks.load(Relaxed),
            plain_bytes: self.plain_bytes.load(Relaxed),
            damaged: lock(&self.damaged).len() as u64,
            missing: lock(&self.missing).len() as u64,
        }
    }

    /// Of the copy that is here.
    fn end(self, report: &mut Report) {
        let outcome = self.tell(&mut report.notes);
        report.arcs += self.arcs.load(Relaxed);
        report.blocks += outcome.blocks;
        report.bytes += outcome.plain_bytes;
        // Those that could not be read, and those whose turn did not come.
        report.not_checked.arcs += lock(&self.unread).len() as u64;
        let planned = (self.plan.arcs.len() + self.plan.commits.len() + self.plan.orphans.len()) as u64;
        report.not_checked.arcs += planned.saturating_sub(self.arcs.load(Relaxed) + self.without_job.load(Relaxed));
    }
}

impl Watch for Run<'_> {
    fn good(&self, job: &Job, no: FrameNo, info: &FrameInfo) {
        if let Some(serial) = job.serial {
            self.exam.ledger.frame(serial, self.copy.id(), no, How::Medium);
        }
        self.blocks.fetch_add(info.blocks.len() as u64, Relaxed);
        self.plain_bytes.fetch_add(u64::from(info.plain_len()), Relaxed);
    }

    fn advanced(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Relaxed);
        self.show_progress();
    }

    fn stop(&self) -> bool {
        self.exam.monitor.interrupted() || self.far.is_some_and(|far| far.lost().is_some())
    }

    fn close(&self, job: Job) {
        if self.exam.monitor.interrupted() {
            // Not all of it was judged.
            return;
        }
        if let Some(far) = self.far {
            return self.close_far(job, far);
        }
        self.closed(&job);
        let (name, is_whole, stamp) = (job.name, job.whole, job.stamp);
        let id = match self.entry(job.serial) {
            Some(entry) => Some(entry.id).filter(|_| is_whole && self.is_asked(entry)),
            // Whose id a commit has is said by nothing but itself.
            None => Some(ArcId([0; 16])).filter(|_| is_whole && name.number == arcs::COMMIT_NUMBER),
        };
        self.judge(job);
        let is_right = !self.is_wrong(name) && !lock(&self.unread).contains(&name);
        if let Some(id) = id.filter(|_| is_right) {
            note_here(self.exam.dir, name, Note { stamp, ..Note::now(id, State::Proven) });
        }
    }
}

impl Run<'_> {
    /// An arc was verified to its end.
    pub fn closed(&self, job: &Job) {
        self.arcs.fetch_add(1, Relaxed);
        // A run that is killed has not proven all for nothing. An error here comes again at the end.
        let _ = self.exam.ledger.flush_if_due();
        let shown = match self.copy.name() {
            "" => job.name.to_string(),
            copy => format!("{copy}: {}", job.name),
        };
        self.exam.monitor.event(Event::Path(shown.as_bytes()));
    }

    pub fn entry(&self, serial: Option<ArcSerial>) -> Option<&ArcEntry> {
        let at = self.plan.arcs.binary_search_by_key(&serial?, |entry| entry.serial).ok()?;
        self.plan.arcs.get(at)
    }

    /// Tells what is wrong with an arc.
    pub fn judge(&self, job: Job) {
        let Job { name, serial, frames, whole, bad_parts, foreign, other, bad, .. } = job;
        let mut bad = into_inner(bad);
        bad.sort_by_key(|bad| bad.no);
        // Frames that read right mend themselves; what surrounds them is right if all of the arc is.
        if let Some(known) = serial.and_then(|serial| self.known.get(&serial))
            && whole
            && bad_parts.is_empty()
            && bad.is_empty()
        {
            self.damage(known.arc, None, &known.code, true);
        }
        let nothing_opens = bad.len() == frames.len() && bad.iter().all(|bad| bad.cause == Cause::Medium);
        if (foreign || other) && nothing_opens {
            // Another backup dir's, or another arc of this one, under this name.
            let (damage, cause) =
                if foreign { (Damage::BadHeader, Cause::Key) } else { (Damage::WrongFrame, Cause::Missing) };
            let bad_part = BadPart::new(name, Part::Whole, 0, damage, cause);
            self.add(name, serial, &bad_part, Some((0, frames.len() as u32)));
            return;
        }
        bad_parts.iter().for_each(|bad_part| self.add(name, serial, bad_part, None));
        for bad_part in folded(bad) {
            let Part::Frames { first, count } = bad_part.part else { continue };
            self.add(name, serial, &bad_part, Some((first.0, count)));
        }
    }
}

/// Neighbouring frames with the same damage become one.
fn folded(bad: Vec<Bad>) -> Vec<BadPart> {
    let mut bad_parts: Vec<BadPart> = Vec::new();
    for Bad { no, offset, error, cause } in bad {
        if let Some(BadPart { part: Part::Frames { first, count }, error: before, cause: same, .. }) =
            bad_parts.last_mut()
            && first.0 + *count == no.0
            && (before.code(), *same) == (error.code(), cause)
        {
            *count += 1;
            continue;
        }
        bad_parts.push(BadPart { part: Part::Frames { first: no, count: 1 }, offset, error, cause });
    }
    bad_parts
}

fn placed(table: Vec<FrameInfo>) -> Vec<Placed> {
    let mut offset = ARC_HEADER_LEN as u64;
    let at = |(info, no): (FrameInfo, u32)| {
        let start = offset;
        offset += info.frame_len();
        (FrameNo(no), start, info)
    };
    table.into_iter().zip(0..).map(at).collect()
}

/// `count` frames at random; from two on the last one always, so that a cut arc shows.
fn sample(mut frames: Vec<Placed>, count: u32, mut random: Random) -> Vec<Placed> {
    let mut chosen = Vec::new();
    if count >= 2 {
        chosen.extend(frames.pop());
    }
    while chosen.len() < count as usize && !frames.is_empty() {
        chosen.push(frames.swap_remove(random.below(frames.len() as u64) as usize));
    }
    chosen.sort_by_key(|(no, ..)| *no);
    chosen
}

fn last_block(entry: &ArcEntry) -> Option<BlockId> {
    entry.frames.checked_sub(1).map(|no| BlockId::first(entry.serial, FrameNo(no)))
}
