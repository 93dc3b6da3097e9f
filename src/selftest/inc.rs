//! `--inc`: which frames or files are due in this run, by the ledger and the schedule.
//!
//! Invariants: a unit of work lies in one arc (or one range of files), so that it is read in one go; what is chosen is
//! fixed at the start of the run.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::schedule::{Plan, Schedule, Unit, plan};
use super::{Exam, Level};
use crate::catalog::{ArcEntry, Kind};
use crate::error::Result;
use crate::ids::{ArcSerial, CopyId, FrameNo, Logid, Version};
use crate::index::{ScanTable, Scanned};
use crate::ledger::{self, Extent, How};

/// Frames are taken in pieces of about this many stored bytes.
const UNIT_BYTES: u64 = 4 << 20;
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

    /// What an operator should know beside the counts.
    pub fn notes(&self) -> Vec<String> {
        let share = |part: u64| 100.0 * part as f64 / self.total_bytes.max(1) as f64;
        let mut notes = vec![format!("{:.1} % of the backup was due", share(self.bytes))];
        if let Some(longer_s) = self.longer_s {
            let days = longer_s.div_ceil(86_400);
            notes.push(format!("with this limit everything is proven once in {days} days, not in the period given"));
        }
        if self.late_bytes > 0 {
            let what = "is older than the period, and waits for the next runs: earlier ones were missed";
            notes.push(format!("{:.1} % {what}, or the limit is too low", share(self.late_bytes)));
        }
        notes
    }
}

/// Chooses what this run proves.
///
/// # Errors
/// Those of the index.
pub(super) fn due(exam: &Exam<'_>, schedule: &Schedule) -> Result<Due> {
    let level = exam.options.level as u8;
    let runs = exam.known.runs().iter().rev();
    let last_run_s = runs.filter(|run| run.level == level && run.inc.is_some()).map(|run| run.when_s).next();
    let written: HashMap<Version, u64> = {
        let rows = exam.index.versions()?;
        rows.iter().map(|row| (row.version, row.info.finished.sec.max(0) as u64)).collect()
    };
    let now_s = ledger::now_s();
    let mut found = Due::default();
    if exam.options.level == Level::Files {
        let chosen = plan(file_units(exam)?, schedule, now_s, last_run_s);
        found.take(&chosen);
        found.files = chosen.chosen;
        found.files.sort_by_key(|range| range.start);
    } else {
        let mut units = Vec::new();
        for row in exam.index.arcs()? {
            let written_s = written.get(&row.run).copied().unwrap_or(0);
            frame_units(exam, &row.entry, written_s, &mut units)?;
        }
        let chosen = plan(units, schedule, now_s, last_run_s);
        found.take(&chosen);
        for (arc, frames) in chosen.chosen {
            found.frames.entry(arc).or_default().push(frames);
        }
        found.frames.values_mut().for_each(joined);
    }
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

fn frame_units(exam: &Exam<'_>, entry: &ArcEntry, written_s: u64, units: &mut Vec<FrameUnit>) -> Result<()> {
    let (mut first, mut bytes, mut since_s) = (0, 0, u64::MAX);
    let mut no = 0;
    while no < entry.frames {
        let chunk = exam.index.frame_chunk(entry.serial, FrameNo(no))?;
        for info in &chunk.frames {
            let proof = exam.known.frame(entry.serial, CopyId::LOCAL, FrameNo(no), How::Medium);
            since_s = since_s.min(proof.map_or(written_s, |proof| proof.when_s));
            bytes += info.frame_len();
            no += 1;
            if bytes >= UNIT_BYTES || no == entry.frames {
                units.push(Unit { key: (entry.serial, first..no), bytes, since_s });
                (first, bytes, since_s) = (no, 0, u64::MAX);
            }
        }
    }
    Ok(())
}

/// Runs of file states, whatever versions show them; what a state is as old as is not known, so one that was never
/// proven is due at once.
fn file_units(exam: &Exam<'_>) -> Result<Vec<Unit<Range<u64>>>> {
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
        let since_s = proof.map_or(0, |files| files.when_s);
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
