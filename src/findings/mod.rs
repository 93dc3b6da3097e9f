//! What is wrong with a backup dir: each thing once, with its place, cause, the files that it hits, and what can be done.
//!
//! Invariants: two findings about arcs never have the same code and the same place (the one that names more files
//! stays); what is kept is bounded, what is more is counted.

mod advice;
mod cause;
mod fixed;
pub mod hits;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::backupdir::Accepted;
use crate::backupdir::arcs::COMMIT_NUMBER;
use crate::error::{Damage, Error, Exit, Place, Result, Trouble};
use crate::ids::{ArcName, ArcSerial, BlockId, CopyId, FrameNo, Logid, Version};
use crate::index::Index;
use crate::sync::lock;

pub use advice::Advice;
pub use cause::Cause;
pub use fixed::{Fixed, FramesFixed};

/// What a selftest proves; each level includes those before it, but v5 reads files where v3 and v4 read arcs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// The index opens with this key and can be read.
    Opens = 0,
    /// Its pages authenticate, its B-trees are sound.
    Pages = 1,
    /// All structures agree with each other and with the catalogs; no data is read.
    Structure = 2,
    /// Each block of the local arcs, read from the medium.
    LocalBlocks = 3,
    /// The same of every copy at every destination.
    AllCopies = 4,
    /// Every file of every version rebuilt and compared with its whole-file hash.
    Files = 5,
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
    /// The destination where it is so; None: here.
    pub at: Option<Box<str>>,
    /// At most `MAX_HITS`.
    pub hits: Vec<Hit>,
    pub hits_total: u64,
    /// What the user can do.
    pub advice: Advice,
    /// What `--fix` came to; None if nobody tried.
    pub fixed: Option<Fixed>,
}

impl Finding {
    /// With the place that the error names, the usual advice for the cause, and no files.
    pub fn new(level: Level, cause: Cause, error: Error) -> Finding {
        let place = match &error {
            Error::Arc { place, .. } => Some(place.clone()),
            Error::Dest { object, trouble: Trouble::Checksum { .. }, .. } => {
                ArcName::parse(object).map(|arc| Place::in_arc(arc, 0))
            }
            _ => None,
        };
        let advice = Advice::usual(cause);
        let (spot, at, hits) = (None, None, Vec::new());
        Finding { level, error, cause, place, spot, at, hits, hits_total: 0, advice, fixed: None }
    }

    /// The same at a destination, if one is named.
    pub fn at(self, dest: Option<&str>) -> Finding {
        match dest {
            Some(dest) => Finding { at: Some(dest.into()), advice: Advice::of_copy(self.cause), ..self },
            None => self,
        }
    }

    /// What the user can do.
    pub fn remedy(&self) -> String {
        match &self.at {
            Some(dest) => self.advice.text().replace("NAME", dest),
            None => self.advice.text().into(),
        }
    }

    /// As `new`, where nothing but the error is known.
    pub fn of(level: Level, error: Error) -> Finding {
        Finding::new(level, Cause::of(&error), error)
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
            let name = ArcName { version: run, number: COMMIT_NUMBER };
            return Some((self.error.code(), self.at.clone(), name, None));
        }
        let place = self.place.as_ref()?;
        // An arc ends in one place only, whoever meets its end.
        let cut = matches!(self.error, Error::Arc { damage: Damage::Truncated { .. }, .. });
        Some((self.error.code(), self.at.clone(), place.arc, place.frame.filter(|_| !cut)))
    }
}

type Subject = (&'static str, Option<Box<str>>, ArcName, Option<FrameNo>);

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
        let same = subject.as_ref().and_then(|subject| all.known.get(subject).copied());
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

    /// Has something done about those that are listed; what came of it stands in them afterwards.
    pub fn work_on<T>(&self, work: impl FnOnce(&mut [Finding]) -> Result<T>) -> Result<T> {
        let (mut listed, unlisted) = self.take();
        let done = work(&mut listed);
        listed.into_iter().for_each(|finding| self.add(finding));
        self.add_unlisted(unlisted);
        done
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
