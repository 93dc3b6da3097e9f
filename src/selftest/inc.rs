//! `--inc`: which frames or files are due in this run, by the ledger and the schedule.
//!
//! Invariants: a unit of work lies in one arc (or one range of files), so that it is read in one go; what is chosen is
//! fixed at the start of the run.

use std::collections::BTreeMap;
use std::ops::Range;

use super::schedule::{Plan, Schedule, Unit, plan};
use super::{Exam, Level};
use crate::arc::ARC_HEADER_LEN;
use crate::catalog::{ArcEntry, Child, Kind};
use crate::depot::Reach;
use crate::error::Result;
use crate::ids::{ArcSerial, CopyId, FrameNo, Logid, Version};
use crate::index::{ScanTable, Scanned};
use crate::ledger::{self, Extent, How};

/// Frames are taken in pieces of about this many stored bytes.
const UNIT_BYTES: u64 = 4 << 20;
/// All of an arc as one piece.
const WHOLE_ARC: u64 = u64::MAX;
/// Files are taken in runs of at most so many, and of about `UNIT_BYTES`.
const UNIT_FILES: u64 = 256;

/// What is due; nothing else is read.
#[derive(Debug, Default)]
pub struct Due {
    /// Frame ranges by arc, in order.
    frames: BTreeMap<ArcSerial, Vec<Range<u32>>>,
    /// Ranges of file states, in order.
    files: Vec<Range<u64>>,
    pub bytes: u64,
    pub total_bytes: u64,
    pub late_bytes: u64,
    pub longer_s: Option<u64>,
}

impl Due {
    /// The frames of an arc that are due, all of them as one range; none: the arc is not opened.
    pub fn frames(&self, arc: ArcSerial) -> &[Range<u32>] {
        self.frames.get(&arc).map_or(&[], Vec::as_slice)
    }

    pub fn file(&self, logid: Logid) -> bool {
        let after = self.files.partition_point(|range| range.start <= logid.0);
        after.checked_sub(1).and_then(|at| self.files.get(at)).is_some_and(|range| range.contains(&logid.0))
    }

    /// What an operator should know beside the counts, of the copy that is here or at a destination.
    pub fn notes(&self, dest: Option<&str>) -> Vec<String> {
        let at = dest.map_or_else(String::new, |dest| format!(" at {dest}"));
        let share = |part: u64| format!("{} of the backup{at}", share(part, self.total_bytes));
        let mut notes = vec![match (self.bytes, self.total_bytes) {
            (_, 0) => format!("there is nothing to prove yet{at}"),
            (0, _) => format!("nothing was due{at}"),
            (bytes, _) => format!("{} was due", share(bytes)),
        }];
        if let Some(longer_s) = self.longer_s {
            let days = crate::text::counted(longer_s.div_ceil(86_400), "day");
            notes.push(format!("with this limit everything{at} is proven once in {days}, not in the period given"));
        }
        if self.late_bytes > 0 {
            let what = "is older than the period, and waits for the next runs: earlier ones were missed";
            notes.push(format!("{} {what}, or the limit is too low", share(self.late_bytes)));
        }
        notes
    }
}

/// A part of a whole, in words that are never 0 % for something, nor 100 % for less than all.
fn share(part: u64, whole: u64) -> String {
    let tenths = (u128::from(part) * 1000).checked_div(u128::from(whole)).unwrap_or(1000);
    match tenths {
        1000.. => "all".into(),
        0 => "less than 0.1 %".into(),
        tenths => format!("{}.{} %", tenths / 10, tenths % 10),
    }
}

/// When things were written.
struct Written {
    /// When each version was finished, removed ones included.
    versions: BTreeMap<Version, u64>,
    /// The highest logid up to a version, and its time: logids grow with the runs.
    states: Vec<(Logid, u64)>,
}

impl Written {
    fn read(exam: &Exam<'_>) -> Result<Written> {
        let rows = exam.index.snapshot()?;
        let mut versions = BTreeMap::new();
        let mut cursor = rows.cursor(ScanTable::Versions);
        while let Some(scanned) = cursor.take() {
            let Scanned::Row(row) = scanned else { continue };
            // What can't be read here is a finding of the structure.
            let Ok((version, _)) = rows.open_version(&row) else { continue };
            versions.insert(version.version, version.info.finished.sec.max(0) as u64);
        }
        let mut written = Written { versions, states: Vec::new() };
        if exam.options.level == Level::Files {
            let mut highest: BTreeMap<Version, Logid> = BTreeMap::new();
            let mut entries = rows.cursor(ScanTable::Entries);
            while let Some(scanned) = entries.take() {
                let Scanned::Row(row) = scanned else { continue };
                let Ok(span) = row.span(rows.index()) else { continue };
                if let Child::Node(logid) = span.child {
                    let known = highest.entry(span.from).or_insert(logid);
                    *known = logid.max(*known);
                }
            }
            let mut so_far = Logid(0);
            for (version, logid) in highest {
                so_far = so_far.max(logid);
                written.states.push((so_far, written.by(version)));
            }
        }
        Ok(written)
    }

    /// A run without a version counts from the one before it.
    fn by(&self, run: Version) -> u64 {
        self.versions.range(..=run).next_back().map_or(0, |(_, written_s)| *written_s)
    }

    /// When a file state was first saved.
    fn state(&self, logid: Logid) -> u64 {
        let at = self.states.partition_point(|(highest, _)| *highest < logid);
        self.states.get(at).or(self.states.last()).map_or(0, |(_, written_s)| *written_s)
    }
}

/// Chooses what this run proves of the copy that is here.
///
/// # Errors
/// Those of the index.
pub(super) fn due(exam: &Exam<'_>, schedule: &Schedule) -> Result<Due> {
    if exam.options.level == Level::Files {
        let written = Written::read(exam)?;
        let chosen = plan(file_units(exam, &written)?, schedule, ledger::now_s(), last_run_s(exam));
        let mut found = Due::default();
        found.take(&chosen);
        found.files = chosen.chosen;
        found.files.sort_by_key(|range| range.start);
        Ok(found)
    } else {
        let is_here = |entry: &ArcEntry| exam.dir.arcs().reach_of(entry.name) == Reach::Near;
        let arcs = exam.index.arcs()?.into_iter().map(|row| row.entry).filter(is_here);
        frames_due(exam, schedule, CopyId::LOCAL, arcs, UNIT_BYTES)
    }
}

/// Chooses what this run proves of a copy at a destination, of the arcs that are there: whole ones as far as the limit goes
/// for one, so that they can be compared as wholes.
///
/// # Errors
/// Those of the index.
pub(super) fn due_there(exam: &Exam<'_>, schedule: &Schedule, copy: CopyId, arcs: &[ArcEntry]) -> Result<Due> {
    let longest = arcs.iter().map(|entry| entry.arc_bytes).max().unwrap_or_default();
    let fits = schedule.limit_bytes.is_none_or(|limit| longest <= limit);
    let unit_bytes = if fits { WHOLE_ARC } else { UNIT_BYTES };
    frames_due(exam, schedule, copy, arcs.iter().cloned(), unit_bytes)
}

/// The start of the last run of this level that had a schedule.
fn last_run_s(exam: &Exam<'_>) -> Option<u64> {
    let level = exam.options.level as u8;
    let mut runs = exam.known.runs().iter().rev();
    runs.find(|run| run.level == level && run.inc.is_some()).map(|run| run.when_s)
}

fn frames_due(
    exam: &Exam<'_>,
    schedule: &Schedule,
    copy: CopyId,
    arcs: impl Iterator<Item = ArcEntry>,
    unit_bytes: u64,
) -> Result<Due> {
    let (written, mut units) = (Written::read(exam)?, Vec::new());
    for entry in arcs {
        let written_s = written.by(entry.name.version);
        frame_units(exam, (copy, &entry, written_s), unit_bytes, &mut units)?;
    }
    let chosen = plan(units, schedule, ledger::now_s(), last_run_s(exam));
    let mut found = Due::default();
    found.take(&chosen);
    for (arc, frames) in chosen.chosen {
        found.frames.entry(arc).or_default().push(frames);
    }
    found.frames.values_mut().for_each(joined);
    Ok(found)
}

impl Due {
    fn take<K>(&mut self, plan: &Plan<K>) {
        (self.bytes, self.total_bytes) = (plan.bytes, plan.total_bytes);
        (self.late_bytes, self.longer_s) = (plan.late_bytes, plan.longer_s);
    }
}

/// Sorts ranges and joins those that touch.
fn joined(ranges: &mut Vec<Range<u32>>) {
    ranges.sort_by_key(|range| range.start);
    let mut all: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match all.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => all.push(range),
        }
    }
    *ranges = all;
}

type FrameUnit = Unit<(ArcSerial, Range<u32>)>;

fn frame_units(
    exam: &Exam<'_>,
    (copy, entry, written_s): (CopyId, &ArcEntry, u64),
    unit_bytes: u64,
    units: &mut Vec<FrameUnit>,
) -> Result<()> {
    // What surrounds the frames is read with all of them.
    let around_bytes = entry.arc_bytes.saturating_sub(entry.footer_offset) + ARC_HEADER_LEN as u64;
    let (mut first, mut bytes, mut since_s) = (0, if unit_bytes == WHOLE_ARC { around_bytes } else { 0 }, u64::MAX);
    let mut no = 0;
    while no < entry.frames {
        let chunk = exam.index.frame_chunk(entry.serial, FrameNo(no))?;
        for info in &chunk.frames {
            let frame = FrameNo(no);
            let proof = exam.known.frame(entry.serial, copy, frame, How::Medium);
            // What is known to be damaged is told again by each run.
            let bad = exam.known.is_damaged(entry.serial, copy, frame);
            since_s = since_s.min(if bad { 0 } else { proof.map_or(written_s, |proof| proof.when_s) });
            bytes += info.frame_len();
            no += 1;
            if bytes >= unit_bytes || no == entry.frames {
                units.push(Unit { key: (entry.serial, first..no), bytes, since_s });
                (first, bytes, since_s) = (no, 0, u64::MAX);
            }
        }
    }
    Ok(())
}

/// Runs of file states, whatever versions show them.
fn file_units(exam: &Exam<'_>, written: &Written) -> Result<Vec<Unit<Range<u64>>>> {
    let mut units: Vec<Unit<Range<u64>>> = Vec::new();
    let mut open: Option<Unit<Range<u64>>> = None;
    let rows = exam.index.snapshot()?;
    let mut nodes = rows.cursor(ScanTable::Nodes);
    while let Some(scanned) = nodes.take() {
        let Scanned::Row(row) = scanned else { continue };
        // What can't be read here is a finding of the structure.
        let Ok((_, node)) = rows.open_node(&row) else { continue };
        if node.attr.kind != Kind::File {
            continue;
        }
        let bytes = node.attr.size;
        let proof = exam.known.file(node.logid).filter(|files| files.extent == Extent::Hashed);
        let since_s = proof.map_or_else(|| written.state(node.logid), |files| files.when_s);
        match &mut open {
            Some(unit) if unit.bytes + bytes <= UNIT_BYTES && node.logid.0 - unit.key.start < UNIT_FILES => {
                unit.key.end = node.logid.0 + 1;
                unit.bytes += bytes;
                unit.since_s = unit.since_s.min(since_s);
            }
            _ => {
                units.extend(open.take());
                open = Some(Unit { key: node.logid.0..node.logid.0 + 1, bytes, since_s });
            }
        }
    }
    units.extend(open);
    Ok(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one() {
        let mut ranges = vec![5..9, 0..2, 2..5, 12..13];
        joined(&mut ranges);
        assert_eq!(ranges, [0..9, 12..13]);
    }

    #[test]
    fn only_files_in_a_range_are_due() {
        let due = Due { files: vec![16..18, 30..31], ..Due::default() };
        let found: Vec<u64> = (10..40).filter(|no| due.file(Logid(*no))).collect();
        assert_eq!(found, [16, 17, 30]);
    }
}
