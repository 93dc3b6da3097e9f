//! What a selftest found: each thing once, with its place, cause, the files that it hits and the remedy.
//!
//! Invariants: two findings about arcs never have the same code and the same place (the one that names more files
//! stays); what is kept is bounded, what is more is counted.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use super::Level;
use crate::backupdir::Accepted;
use crate::backupdir::arcs::COMMIT_NUMBER;
use crate::error::{Damage, Error, Exit, Place};
use crate::ids::{ArcName, ArcSerial, BlockId, CopyId, FrameNo, Logid, Version};
use crate::index::Index;
use crate::sync::lock;
use crate::text::counted;

/// Why something is wrong, as far as can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A second read, past the page cache, was right: memory, cable or controller.
    Transient,
    /// The stored bytes are not those that were written.
    Medium,
    /// Authentic bytes with wrong content: they were wrong before they were sealed.
    Memory,
    /// The arc file, or a part of it, is not there.
    Missing,
    /// The index says something else than the arcs, or can't be read.
    Index,
    /// The catalog or commit record in an arc.
    Catalog,
    /// Another key, another backup dir.
    Key,
    /// A file that does not belong where it is.
    Stray,
    /// It could not be checked: an I/O error, a permission.
    Unchecked,
}

impl Cause {
    /// One word, for output that programs read.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Transient => "transient",
            Cause::Medium => "medium",
            Cause::Memory => "memory",
            Cause::Missing => "missing",
            Cause::Index => "index",
            Cause::Catalog => "catalog",
            Cause::Key => "key",
            Cause::Stray => "stray",
            Cause::Unchecked => "unchecked",
        }
    }

    /// What it means, for people.
    pub fn text(self) -> &'static str {
        match self {
            Cause::Transient => "a second read, past the page cache, was right: memory, cable or controller",
            Cause::Medium => "the stored bytes are not those that were written, on a second read too",
            Cause::Memory => "the stored bytes are authentic but wrong: they were wrong before they were sealed",
            Cause::Missing => "it is not there, or not to its end",
            Cause::Index => "the index is damaged, or says something else than the arcs",
            Cause::Catalog => {
                "the catalog or commit record in an arc is damaged; the index may still know what it says"
            }
            Cause::Key => "another key made it: it belongs to another backup dir, or key.conf does",
            Cause::Stray => "it does not belong where it is",
            Cause::Unchecked => "it could not be checked",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Cause::Transient => "nothing is lost; test the memory, cables and controller of this machine",
            Cause::Medium => {
                "`assay selftest --fix` tries to repair it; else put the arc back from a copy of the backup dir"
            }
            Cause::Memory => "test the memory of this machine; `assay selftest --fix` looks for a flipped bit",
            Cause::Missing => "put the arc back from a copy of the backup dir",
            Cause::Index => "`assay selftest -v2 --fix`, or `assay recover`, makes the index anew from the arcs",
            Cause::Catalog => "put the arc back from a copy of the backup dir; do not lose the index before",
            Cause::Key => "put the right file back from a copy of this backup dir",
            Cause::Stray => "move it out of the backup dir, or give it its own name back",
            Cause::Unchecked => "make it readable, then run the selftest again",
        }
    }
}

/// A file that uses what is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    pub logid: Logid,
    pub path: Vec<u8>,
    /// First and last version that show it so.
    pub versions: (Version, Version),
    /// Bytes of the file; the whole of it if that can't be told.
    pub bytes: Range<u64>,
}

/// What part of an arc.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// All of it: it is not there, or is another arc.
    Whole,
    Header,
    /// Neighbouring frames.
    Frames {
        first: FrameNo,
        count: u32,
    },
    Footer,
    Trailer,
}

/// Stored bytes that are wrong, as whoever repairs them must know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spot {
    pub copy: CopyId,
    /// None: a commit arc, or one whose commit record is lost.
    pub serial: Option<ArcSerial>,
    pub part: Part,
}

/// Something that is wrong.
#[derive(Debug, Clone)]
pub struct Finding {
    pub level: Level,
    pub error: Error,
    pub cause: Cause,
    /// Where in an arc, if it is there; of neighbouring frames the first one.
    pub place: Option<Place>,
    pub spot: Option<Spot>,
    /// At most `MAX_HITS`.
    pub hits: Vec<Hit>,
    pub hits_total: u64,
    /// What the user can do.
    pub remedy: &'static str,
    /// What `--fix` came to; None if nobody tried.
    pub fixed: Option<Fixed>,
}

/// What `--fix` did about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fixed {
    /// It read right before anything was done.
    RightByNow,
    /// The recorded bytes are in their place again; what was wrong with them.
    Rewritten {
        what: String,
    },
    /// Header, footer or trailer of an arc were written anew.
    Shell {
        parts: Vec<&'static str>,
    },
    /// The block is read from another arc now; where its bytes came from.
    Sealed {
        arc: ArcName,
        how: String,
    },
    IndexRebuilt,
    /// The next catalog is a base; what is damaged stays so, and is needed by fewer versions.
    BaseIsDue,
    /// Several frames, not all with the same end.
    Frames(FramesFixed),
    /// Nothing was done, and why.
    Not {
        why: String,
    },
}

/// What became of the frames of one finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FramesFixed {
    pub rewritten: usize,
    pub sealed: usize,
    pub base_is_due: usize,
    pub lost: usize,
    /// The run was interrupted, or there were too many.
    pub not_tried: usize,
}

impl Fixed {
    /// Nothing is left to do.
    pub fn is_done(&self) -> bool {
        match self {
            Fixed::RightByNow | Fixed::Rewritten { .. } | Fixed::Shell { .. } => true,
            Fixed::Sealed { .. } | Fixed::IndexRebuilt => true,
            Fixed::BaseIsDue | Fixed::Not { .. } => false,
            Fixed::Frames(counts) => counts.base_is_due + counts.lost + counts.not_tried == 0,
        }
    }
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fixed::RightByNow => f.write_str("it reads right by now"),
            Fixed::Rewritten { what } => write!(f, "{what}; the arc has its recorded bytes again"),
            Fixed::Shell { parts } => write!(f, "{} written anew, byte for byte as recorded", parts.join(" and ")),
            Fixed::Sealed { arc, how } => write!(f, "the block was sealed anew in {arc}, {how}"),
            Fixed::IndexRebuilt => f.write_str("the index was made anew from the catalogs"),
            Fixed::BaseIsDue => {
                f.write_str("the next backup writes a base catalog, which does without what is damaged")
            }
            Fixed::Frames(FramesFixed { rewritten, sealed, base_is_due, lost, not_tried }) => {
                let total = rewritten + sealed + base_is_due + lost + not_tried;
                let parts: Vec<String> = [
                    (rewritten, "put right in place"),
                    (sealed, "sealed anew"),
                    (base_is_due, "of the catalog: the next backup writes a base, which does without"),
                    (lost, "lost: neither a flipped bit nor a live file explains them"),
                    (not_tried, "not looked at"),
                ]
                .into_iter()
                .filter(|(count, _)| **count > 0)
                .map(|(count, what)| format!("{count} {what}"))
                .collect();
                write!(f, "of {}: {}", counted(total as u64, "frame"), parts.join(", "))
            }
            Fixed::Not { why } => f.write_str(why),
        }
    }
}

impl Finding {
    /// With the place that the error names, the usual remedy for the cause, and no files.
    pub fn new(level: Level, cause: Cause, error: Error) -> Finding {
        let place = match &error {
            Error::Arc { place, .. } => Some(place.clone()),
            _ => None,
        };
        let remedy = cause.remedy();
        Finding { level, error, cause, place, spot: None, hits: Vec::new(), hits_total: 0, remedy, fixed: None }
    }

    /// Names the files that it hits, as far as they are listed.
    pub fn with_hits(self, hits: Vec<Hit>) -> Finding {
        let hits_total = hits.len() as u64;
        Finding { hits: hits.into_iter().take(MAX_HITS).collect(), hits_total, ..self }
    }

    /// True when something was done and nothing is left to do.
    pub fn is_fixed(&self) -> bool {
        self.fixed.as_ref().is_some_and(Fixed::is_done)
    }

    /// How a run that found nothing else ends.
    pub fn exit(&self) -> Exit {
        match (self.cause, self.error.exit_code()) {
            (_, Exit::WrongKey) => Exit::WrongKey,
            (Cause::Unchecked, _) | (_, Exit::FinishedWithErrors) => Exit::FinishedWithErrors,
            _ => Exit::Damage,
        }
    }

    /// What two findings about the same part of an arc have in common.
    fn subject(&self) -> Option<Subject> {
        if let Error::CommitDamaged { run, .. } = self.error {
            return Some((self.error.code(), ArcName { version: run, number: COMMIT_NUMBER }, None));
        }
        let place = self.place.as_ref()?;
        // An arc ends in one place only, whoever meets its end.
        let cut = matches!(self.error, Error::Arc { damage: Damage::Truncated { .. }, .. });
        Some((self.error.code(), place.arc, place.frame.filter(|_| !cut)))
    }
}

type Subject = (&'static str, ArcName, Option<FrameNo>);

/// Findings that are listed; more are counted.
pub const MAX_LISTED: usize = 10_000;
/// Files that are named for one finding.
pub const MAX_HITS: usize = 100;

/// Collects from any thread.
#[derive(Default)]
pub struct Findings {
    all: Mutex<Collected>,
    accepted: Option<(Accepted, Arc<Index>)>,
    passed_over: AtomicU64,
}

#[derive(Debug, Default)]
struct Collected {
    listed: Vec<Finding>,
    unlisted: u64,
    /// Where in `listed` the finding about a part of an arc is.
    known: HashMap<Subject, usize>,
}

impl Findings {
    /// Findings about losses that were accepted are only counted.
    pub fn but_for(accepted: Accepted, index: Arc<Index>) -> Findings {
        Findings { accepted: Some((accepted, index)), ..Findings::default() }
    }

    /// True if what the error tells, of these frames or of this block, was accepted.
    pub fn accept(&self, error: &Error, frames: Option<(FrameNo, u32)>, block: Option<BlockId>) -> bool {
        self.accepted.as_ref().is_some_and(|(accepted, index)| {
            accepted.covers(error, frames, index)
                || block.is_some_and(|block| accepted.covers_block(error, block, index))
        })
    }

    pub fn pass_over(&self) {
        self.passed_over.fetch_add(1, Relaxed);
    }

    /// Findings about losses that were accepted.
    pub fn passed_over(&self) -> u64 {
        self.passed_over.load(Relaxed)
    }

    pub fn add(&self, finding: Finding) {
        let frames = match finding.spot.map(|spot| spot.part) {
            Some(Part::Frames { first, count }) => Some((first, count)),
            _ => None,
        };
        if self.accept(&finding.error, frames, None) {
            return self.pass_over();
        }
        let mut all = lock(&self.all);
        let all = &mut *all;
        let subject = finding.subject();
        let same = subject.and_then(|subject| all.known.get(&subject).copied());
        if let Some(known) = same.and_then(|at| all.listed.get_mut(at)) {
            // Of two the one that says more: which frames, which files.
            let more = (finding.hits_total, finding.spot.is_some()) > (known.hits_total, known.spot.is_some());
            if more {
                *known = finding;
            }
        } else if all.listed.len() < MAX_LISTED {
            all.known.extend(subject.map(|subject| (subject, all.listed.len())));
            all.listed.push(finding);
        } else {
            all.unlisted += 1;
        }
    }

    /// Counts findings that are not listed.
    pub fn add_unlisted(&self, count: u64) {
        lock(&self.all).unlisted += count;
    }

    pub fn count(&self) -> u64 {
        let all = lock(&self.all);
        all.listed.len() as u64 + all.unlisted
    }

    /// True if one with this cause is listed.
    pub fn any(&self, cause: Cause) -> bool {
        lock(&self.all).listed.iter().any(|finding| finding.cause == cause)
    }

    /// All of them, and how many more there were.
    pub fn take(&self) -> (Vec<Finding>, u64) {
        let Collected { listed, unlisted, .. } = std::mem::take(&mut *lock(&self.all));
        (listed, unlisted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(frame: u32, hits_total: u64) -> Finding {
        let arc = ArcName { version: Version(1), number: 2 };
        let place = Place { arc, frame: Some(FrameNo(frame)), block: None, offset: 0 };
        let error = Error::Arc { place, damage: Damage::BadTag };
        Finding { hits_total, ..Finding::new(Level::LocalBlocks, Cause::Medium, error) }
    }

    #[test]
    fn the_same_thing_is_listed_once_and_too_many_are_counted() {
        let findings = Findings::default();
        [finding(1, 0), finding(1, 5), finding(1, 2), finding(2, 0)].into_iter().for_each(|f| findings.add(f));
        assert_eq!(findings.count(), 2);
        let (listed, more) = findings.take();
        assert_eq!((listed.iter().map(|f| f.hits_total).collect::<Vec<_>>(), more), (vec![5, 0], 0));
        let index = || Error::IndexDamaged { path: "index.db".into(), what: "page 7".into() };
        for _ in 0..MAX_LISTED + 7 {
            findings.add(Finding::new(Level::Pages, Cause::Index, index()));
        }
        assert_eq!((findings.count(), findings.any(Cause::Index), findings.any(Cause::Key)), (10_007, true, false));
        assert_eq!(findings.take().1, 7);
    }
}
