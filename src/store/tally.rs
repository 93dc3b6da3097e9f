//! What was read and verified, and the damage met: for the closing summary, SIGUSR1 and the exit code.
//!
//! Invariants: memory is bounded whatever is read; a count that the bounds make inexact is a lower bound and
//! says so; each damaged place is listed and logged once.

use std::collections::HashSet;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;

use crate::ids::{Logid, Version};
use crate::ledger::Extent;
use crate::ledger::bits::{Bits, Insert};
use crate::sync::lock;
use crate::text::shown;

/// Damaged places that are listed; more are only counted.
pub const MAX_LISTED: usize = 1000;
/// Places that are told apart; more are neither counted nor logged, and the summary says so.
const MAX_TOLD_APART: usize = 100_000;
/// Files that are partly read at a time before the longest untouched one is forgotten.
const MAX_PARTIAL: usize = 4096;
/// Separate stretches remembered of one partly read file.
const MAX_STRETCHES: usize = 64;
/// Bitmaps of 4,096 logids each: at most 8 MiB for each of the two sets.
const MAX_BITMAPS: usize = 16384;

/// One damaged place, once.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Met {
    /// Stable error code.
    pub code: &'static str,
    /// Path in the backup, empty when none is known; its bytes, so whoever writes it out says how.
    #[serde(skip)]
    pub path: Vec<u8>,
    /// Version that shows the path.
    pub version: Option<u32>,
    /// The error in words, with its place.
    pub what: String,
    /// The right bytes were served all the same.
    pub healed: bool,
    /// How they were come by, in words; empty if they were not.
    pub how: String,
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}", shown(&self.path))?;
            self.version.map_or(Ok(()), |version| write!(f, " in r{version}"))?;
            f.write_str(": ")?;
        }
        write!(f, "{}", self.what)?;
        if self.how.is_empty() { Ok(()) } else { write!(f, "; {}", self.how) }
    }
}

/// How an encounter with damage ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// A second read gave the right bytes.
    ReadAgain,
    /// What was wrong was found, and put right in memory.
    Repaired(String),
    /// Another copy, of this name, has the right bytes.
    Elsewhere(String),
    /// What the index could not tell the catalogs told.
    Catalogs,
    Lost,
}

impl End {
    /// How the right bytes were come by.
    pub fn how(&self) -> Option<String> {
        match self {
            End::ReadAgain => Some("right when read again".into()),
            End::Repaired(what) => {
                Some(format!("{what}; repaired in memory, the arc still has it (assay selftest --fix)"))
            }
            End::Elsewhere(name) => Some(format!("read from {}", shown(name))),
            End::Catalogs => Some(
                "answered from the catalogs; the index still has it (assay selftest -v2 --fix, or assay recover)"
                    .into(),
            ),
            End::Lost => None,
        }
    }
}

/// Counters as they stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Files of which at least one byte was read.
    pub files_read: u64,
    /// Files of which every byte was read (empty files can't be read, so they don't count).
    pub files_wholly_read: u64,
    /// The two counts are lower bounds: there were too many files to tell all apart.
    pub files_inexact: bool,
    /// Bytes given to readers, holes included.
    pub bytes_read: u64,
    /// Directories whose names were asked for, each time.
    pub dirs_listed: u64,
    pub blocks_verified: u64,
    pub bytes_verified: u64,
    pub cache_hits: u64,
    /// Damaged places met, healed or not.
    pub damage: u64,
    /// More places than could be told apart: the counts are lower bounds.
    pub damage_inexact: bool,
    /// Of these, those where the right bytes were served all the same.
    pub healed: u64,
    /// Of these, those that were repaired in memory: the arc still has the damage.
    pub repaired: u64,
    /// Of these, those that another copy had right.
    pub elsewhere: u64,
    /// Of these, those that are right again where they are stored.
    pub mended: u64,
    /// Of these, damage of the index in the place of which the catalogs have answered: one, however much of it.
    pub catalogs: u64,
    /// The first `MAX_LISTED` of them.
    pub places: Vec<Met>,
}

#[derive(Default)]
struct Damage {
    told_apart: HashSet<(u64, &'static str)>,
    count: u64,
    healed: u64,
    inexact: bool,
    repaired: u64,
    elsewhere: u64,
    catalogs: u64,
    places: Vec<Met>,
}

struct Files {
    read: Bits,
    whole: Bits,
    partial: LruCache<Logid, Vec<(u64, u64)>>,
    inexact: bool,
}

/// Counts from any thread.
pub struct Tally {
    blocks_verified: AtomicU64,
    bytes_verified: AtomicU64,
    cache_hits: AtomicU64,
    bytes_read: AtomicU64,
    dirs_listed: AtomicU64,
    files: Mutex<Files>,
    damage: Mutex<Damage>,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            blocks_verified: AtomicU64::new(0),
            bytes_verified: AtomicU64::new(0),
            cache_hits: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            dirs_listed: AtomicU64::new(0),
            files: Mutex::new(Files {
                read: Bits::default(),
                whole: Bits::default(),
                partial: LruCache::new(NonZeroUsize::new(MAX_PARTIAL).unwrap_or(NonZeroUsize::MIN)),
                inexact: false,
            }),
            damage: Mutex::new(Damage::default()),
        }
    }
}

impl Tally {
    pub fn verified(&self, blocks: u64, len_bytes: u64) {
        self.blocks_verified.fetch_add(blocks, Ordering::Relaxed);
        self.bytes_verified.fetch_add(len_bytes, Ordering::Relaxed);
    }

    pub fn cache_hit(&self) {
        self.cache_hits.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes `start..end` of a file of `size_bytes` were given to a reader; tells how much of it was by then. A
    /// file that was wholly read is so again only when each byte was given once more.
    pub fn file_read(&self, logid: Logid, start: u64, end: u64, size_bytes: u64) -> Option<Extent> {
        if start >= end {
            return None;
        }
        self.bytes_read.fetch_add(end - start, Ordering::Relaxed);
        let mut files = lock(&self.files);
        let files = &mut *files;
        files.inexact |= files.read.insert(logid.0, MAX_BITMAPS) == Insert::Full;
        let known = files.whole.contains(logid.0);
        let whole = if start == 0 && end >= size_bytes {
            files.partial.pop(&logid);
            true
        } else {
            if files.partial.len() == MAX_PARTIAL && !files.partial.contains(&logid) {
                files.inexact |= !known;
            }
            let stretches = files.partial.get_or_insert_mut(logid, Vec::new);
            files.inexact |= !add_stretch(stretches, start, end) && !known;
            let whole = stretches.first().is_some_and(|(from, to)| *from == 0 && *to >= size_bytes);
            if whole {
                files.partial.pop(&logid);
            }
            whole
        };
        if whole && !known {
            files.inexact |= files.whole.insert(logid.0, MAX_BITMAPS) == Insert::Full;
        }
        Some(if whole { Extent::Whole } else { Extent::Part })
    }

    /// A directory's names were read.
    pub fn dir_listed(&self) {
        self.dirs_listed.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes damage; what is to be logged when this place (told apart by `key` and code) was not met before.
    pub(super) fn damage(&self, key: u64, met: impl FnOnce() -> Met, code: &'static str, end: &End) -> Option<Met> {
        {
            let mut damage = lock(&self.damage);
            if damage.told_apart.contains(&(key, code)) {
                return None;
            }
            if damage.told_apart.len() >= MAX_TOLD_APART {
                if !std::mem::replace(&mut damage.inexact, true) {
                    log::error!("{code}: more than {MAX_TOLD_APART} places are damaged: further ones are not logged");
                }
                return None;
            }
            damage.told_apart.insert((key, code));
            damage.count += 1;
            damage.healed += u64::from(*end != End::Lost);
            damage.repaired += u64::from(matches!(end, End::Repaired(_)));
            damage.elsewhere += u64::from(matches!(end, End::Elsewhere(_)));
            damage.catalogs += u64::from(*end == End::Catalogs);
        }
        // Finding the path takes a query: not under the lock.
        let met = met();
        let mut damage = lock(&self.damage);
        if damage.places.len() < MAX_LISTED {
            damage.places.push(met.clone());
        }
        Some(met)
    }

    /// True the first time that it is asked about a place and code; nothing is counted.
    pub(super) fn is_first(&self, key: u64, code: &'static str) -> bool {
        let mut damage = lock(&self.damage);
        damage.told_apart.len() < MAX_TOLD_APART && damage.told_apart.insert((key, code))
    }

    pub fn summary(&self) -> Summary {
        let files = lock(&self.files);
        let damage = lock(&self.damage);
        Summary {
            files_read: files.read.len(),
            files_wholly_read: files.whole.len(),
            files_inexact: files.inexact,
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            dirs_listed: self.dirs_listed.load(Ordering::Relaxed),
            blocks_verified: self.blocks_verified.load(Ordering::Relaxed),
            bytes_verified: self.bytes_verified.load(Ordering::Relaxed),
            cache_hits: self.cache_hits.load(Ordering::Relaxed),
            damage: damage.count,
            damage_inexact: damage.inexact,
            healed: damage.healed,
            repaired: damage.repaired,
            elsewhere: damage.elsewhere,
            mended: 0,
            catalogs: damage.catalogs,
            places: damage.places.clone(),
        }
    }
}

/// Where a path is, for a damage line.
pub fn shown_path(found: Option<(Version, Vec<u8>)>) -> (Vec<u8>, Option<u32>) {
    match found {
        Some((version, path)) => (path, Some(version.0)),
        None => (Vec::new(), None),
    }
}

/// Merges `start..end` into sorted, separate stretches; false when there are too many to keep.
fn add_stretch(stretches: &mut Vec<(u64, u64)>, start: u64, end: u64) -> bool {
    let first = stretches.partition_point(|(_, to)| *to < start);
    let last = stretches.partition_point(|(from, _)| *from <= end);
    let touching = stretches.get(first..last).unwrap_or_default();
    let from = touching.first().map_or(start, |(from, _)| (*from).min(start));
    let to = touching.last().map_or(end, |(_, to)| (*to).max(end));
    if first == last && stretches.len() >= MAX_STRETCHES {
        return false;
    }
    stretches.splice(first..last, [(from, to)]);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met() -> Met {
        Met { code: "X", path: b"/p".to_vec(), version: Some(1), what: "w".into(), healed: false, how: String::new() }
    }

    #[test]
    fn a_file_is_wholly_read_once_its_parts_cover_it_in_any_order() {
        let tally = Tally::default();
        let file = Logid(70_000);
        for (start, end) in [(50, 60), (0, 10), (20, 50), (5, 20)] {
            assert_eq!(tally.summary().files_wholly_read, 0);
            tally.file_read(file, start, end, 60);
        }
        tally.file_read(file, 0, 60, 60);
        tally.file_read(Logid(16), 0, 5, 5);
        tally.file_read(Logid(17), 0, 4, 5);
        let summary = tally.summary();
        assert_eq!((summary.files_read, summary.files_wholly_read, summary.files_inexact), (3, 2, false));
        assert_eq!(summary.bytes_read, 10 + 10 + 30 + 15 + 60 + 5 + 4);
    }

    #[test]
    fn a_file_is_wholly_read_anew_when_each_byte_was_given_once_more() {
        let tally = Tally::default();
        let read = |start, end| tally.file_read(Logid(99), start, end, 60);
        assert_eq!((read(0, 30), read(30, 60)), (Some(Extent::Part), Some(Extent::Whole)));
        assert_eq!((read(0, 30), read(0, 30)), (Some(Extent::Part), Some(Extent::Part)));
        assert_eq!((read(30, 60), read(0, 60)), (Some(Extent::Whole), Some(Extent::Whole)));
        assert_eq!((read(60, 60), tally.summary().files_wholly_read), (None, 1));
    }

    #[test]
    fn too_many_parts_make_the_counts_say_that_they_are_lower_bounds() {
        let tally = Tally::default();
        for part in 0..200 {
            tally.file_read(Logid(99), part * 10, part * 10 + 1, 10_000);
        }
        let summary = tally.summary();
        assert_eq!((summary.files_read, summary.files_wholly_read, summary.files_inexact), (1, 0, true));
    }

    #[test]
    fn a_damaged_place_counts_once_and_healed_damage_is_damage() {
        let tally = Tally::default();
        assert!(tally.damage(7, met, "X", &End::Lost).is_some());
        assert!(tally.damage(7, met, "X", &End::Lost).is_none());
        assert!(tally.damage(8, met, "X", &End::ReadAgain).is_some());
        assert!(tally.damage(9, met, "X", &End::Repaired("bit".into())).is_some());
        let summary = tally.summary();
        assert_eq!((summary.damage, summary.healed, summary.repaired, summary.places.len()), (3, 2, 1, 3));
    }

    #[test]
    fn more_damage_than_can_be_told_apart_makes_the_count_a_lower_bound() {
        let tally = Tally::default();
        let all = MAX_TOLD_APART as u64;
        for key in 0..all {
            assert!(tally.damage(key, met, "X", &End::Lost).is_some());
        }
        assert!(tally.damage(7, met, "X", &End::Lost).is_none());
        assert!(!tally.summary().damage_inexact, "known places are no more than there were");
        assert!(tally.damage(all, met, "X", &End::Lost).is_none());
        let summary = tally.summary();
        assert_eq!((summary.damage, summary.damage_inexact, summary.places.len()), (all, true, MAX_LISTED));
    }

    proptest::proptest! {
        #[test]
        fn stretches_stay_sorted_and_cover_what_was_added(parts in proptest::collection::vec((0u64..200, 1u64..40), 1..40)) {
            let mut stretches = Vec::new();
            let mut covered = vec![false; 240];
            for (start, len) in parts {
                assert!(add_stretch(&mut stretches, start, start + len));
                covered[start as usize..(start + len) as usize].fill(true);
            }
            assert!(stretches.windows(2).all(|pair| pair[0].1 < pair[1].0));
            for (at, &is_covered) in covered.iter().enumerate() {
                let found = stretches.iter().any(|(from, to)| (*from..*to).contains(&(at as u64)));
                assert_eq!(found, is_covered, "{at}");
            }
        }
    }
}
