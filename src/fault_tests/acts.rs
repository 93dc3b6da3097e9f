//! What comes after a fault. Each act asserts that the documented error is told, and that all else still reads right.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use super::damage::Spot;
use super::lab::{Copy, Files, Said, Source, assert_same};
use super::layout::{Layout, told};
use super::questions::{Ask, Reader, fresh_store};
use super::recoveries::put;
use super::structures::{assert_clean, found, options, shown};
use super::table::{Row, World};
use crate::backup::{Options as BackupOptions, Summary};
use crate::catalog::ArcRole;
use crate::error::Exit;
use crate::findings::{Cause, Finding, Level, MAX_HITS, Part};
use crate::ids::{BlockId, Version};
use crate::mend::rewrite_shell;
use crate::monitor::Silent;
use crate::prune::{Mode, Protection, pack, versions};
use crate::recover::OnLoss;
use crate::selftest;
use crate::store::Heal;

pub const LEVELS: [Level; 6] =
    [Level::Opens, Level::Pages, Level::Structure, Level::LocalBlocks, Level::AllCopies, Level::Files];

/// A fault, and what it must cost.
pub struct Cell<'a> {
    pub world: &'a World,
    pub row: &'a Row,
    pub spot: &'a Spot<'a>,
    /// Counts the cells of the row: what takes long is done in the first.
    pub nth: usize,
}

fn is_of_tree(ask: &Ask) -> bool {
    !matches!(ask, Ask::Versions | Ask::Named(_) | Ask::History(..))
}

impl Cell<'_> {
    fn copy(&self) -> Copy {
        Copy::of(&self.spot.files(&self.world.lab.files))
    }

    fn role(&self) -> ArcRole {
        self.spot.arc.role()
    }

    /// Frames that can't be read.
    fn frames(&self) -> BTreeSet<usize> {
        let all = 0..self.spot.arc.frames.len();
        match self.row.lost {
            "nothing" => BTreeSet::new(),
            "all" => all.collect(),
            "behind" => (self.spot.arc.first_behind(self.spot.bytes.as_ref().unwrap().len())..all.end).collect(),
            _ => self.spot.struck.clone(),
        }
    }

    /// Blocks of these, of a data arc.
    fn blocks(&self) -> BTreeSet<BlockId> {
        let is_data = self.role() == ArcRole::Data;
        self.frames().into_iter().filter(|_| is_data).flat_map(|no| self.spot.arc.blocks(no)).collect()
    }

    /// Questions that have no answer without them.
    fn lost(&self) -> BTreeSet<usize> {
        self.blocks().iter().flat_map(|block| self.world.lab.truth.need(block.place())).collect()
    }

    /// Runs of frames that can't be read and that a file uses: v5 reads no others.
    fn used_runs(&self) -> usize {
        let is_used = |no: &usize| !self.world.users.ranges(&self.spot.arc.blocks(*no).collect()).is_empty();
        let used: BTreeSet<usize> = self.frames().into_iter().filter(is_used).collect();
        used.iter().filter(|no| !no.checked_sub(1).is_some_and(|before| used.contains(&before))).count()
    }

    /// Nothing is wrong but what was before.
    fn assert_as_before(&self, reader: &Reader, when: &str, those: &dyn Fn(&Ask) -> bool) {
        let (truth, lost) = (&self.world.lab.truth, self.lost());
        for (n, error) in truth.judge_those(reader, &|| format!("{} {when}", self.spot.what), those) {
            assert!(lost.contains(&n) && error.is_damage(), "{when}: also costs {:?}: {error}", truth.questions[n].0);
        }
    }

    /// The good arc comes back after a recovery: what that gave up is told and brought back.
    fn assert_comes_back(&self, copy: &Copy) {
        let name = self.spot.arc.name.to_string();
        put(copy, &name, &self.world.lab.files[&name]);
        let findings = found(copy, &options(Level::Structure));
        assert!(findings.iter().all(|f| f.cause == Cause::Index), "put back: {:#?}", shown(&findings));
        if let Some(run) = self.row.says("COMMIT_DAMAGED").then_some(self.spot.arc.name.version.0) {
            let [f] = &findings[..] else { panic!("put back: {:#?}", shown(&findings)) };
            let runs: Vec<String> = (run..=self.world.newest().0).map(|run| format!("r{run}")).collect();
            assert!(
                f.error.code() == "INDEX_ROW_DAMAGED" && f.error.to_string().contains(&runs.join(", ")),
                "{}",
                f.error
            );
        }
        let acts = found(copy, &selftest::Options { fix: selftest::Fix::Correct, ..options(Level::Structure) });
        assert!(acts.iter().all(|f| f.fixed.is_some()), "put back: {:#?}", shown(&acts));
        assert_clean(copy, "put back");
        assert!(!copy.path("index.db.bad").exists());
        if self.role() == ArcRole::Commit {
            copy.lose_index();
            let got = copy.recover();
            assert!(got.lost.is_empty() && got.lost_arcs.is_empty() && got.lost_runs.is_empty(), "{got:?}");
        }
        let failed = self.world.lab.truth.judge_those(&copy.reader(), &|| self.spot.what.clone(), &is_of_tree);
        assert!(failed.is_empty(), "put back: {failed:?}");
    }

    /// With the index only the frames are lost. `copy` is whole, and is so again.
    pub fn read(&self, copy: &Copy, reader: &mut Reader) {
        let (truth, arc) = (&self.world.lab.truth, self.spot.arc);
        let name = arc.name.to_string();
        fs::remove_file(copy.path(&name)).unwrap();
        self.spot.bytes.iter().for_each(|bytes| put(copy, &name, bytes));
        // Of another arc in its place all is asked.
        let all = self.nth == 0 || ["next", "stranger"].contains(&self.row.damage);
        if all {
            *reader = copy.reader();
        }
        let serial = arc.entry.as_ref().map(|entry| entry.serial);
        let here = |ask: &Ask| matches!(ask, Ask::Bytes(.., Some(block)) if Some(block.arc()) == serial);
        let those = |ask: &Ask| all || here(ask) || self.row.damage == "swap" && ask.is_bytes();
        let heals = if self.row.lost == "healed" { &[Heal::Off, Heal::On][..] } else { &[Heal::On] };
        for heal in heals {
            reader.store = fresh_store(&copy.open(), &reader.tree.index().clone(), *heal);
            let failed = truth.judge_those(reader, &|| self.spot.what.clone(), &those);
            assert!(failed.iter().all(|(_, e)| self.row.says(e.code())), "{failed:?}");
            let failed: BTreeSet<usize> = failed.into_iter().map(|(n, _)| n).collect();
            let healed = *heal == Heal::On && self.row.lost == "healed";
            let wanted = self.lost().into_iter().filter(|n| !healed && those(&truth.questions[*n].0));
            assert_eq!(failed, wanted.collect(), "{heal:?}");
        }
        put(copy, &name, &self.world.lab.files[&name]);
    }

    fn here(&self, finding: &Finding) -> bool {
        let name = self.spot.arc.name;
        matches!(finding.error, crate::Error::CommitDamaged { run, .. } if run == name.version && name.number == 0)
            || finding.place.as_ref().is_some_and(|place| place.arc == name)
    }

    /// What a selftest of one level finds; exactly that, at its place, with the files that it hits.
    fn selftest(&self, copy: &Copy, level: Level) {
        let (row, arc, is_data) = (self.row, self.spot.arc, self.role() == ArcRole::Data);
        let report = selftest::run(&copy.open(), &options(level), &Silent).unwrap();
        let findings = report.findings;
        let all = || format!("v{}: {:#?}", level as u8, shown(&findings));
        let (blocks, mut frames) = (self.blocks(), self.frames());
        let wanted = row.count(level as usize).map(|count| match (level, count) {
            (Level::Files, 1..) if is_data && row.count(2) == Some(0) => self.used_runs(),
            _ => count,
        });
        assert!(wanted.map_or(!findings.is_empty(), |count| findings.len() == count), "{}", all());
        for f in &findings {
            let is_it = self.here(f) && row.says(f.error.code()) && f.exit() == Exit::Damage && f.fixed.is_none();
            // What is read of a catalog is judged by how it is stored.
            let by_bytes = level > Level::Structure && (row.cause == "Catalog" || row.damage == "longer");
            assert!(is_it && (wanted.is_none() || by_bytes || row.is_cause(f.cause)), "{}", all());
            let hit: BTreeSet<usize> = match f.spot.map(|spot| spot.part) {
                Some(Part::Frames { first, count }) => {
                    assert_eq!(f.place.as_ref().unwrap().frame, Some(first));
                    (first.0..first.0 + count).map(|no| no as usize).collect()
                }
                Some(Part::Whole) => frames.clone(),
                _ => {
                    assert!(!is_data || f.hits.is_empty(), "{}", all());
                    continue;
                }
            };
            // Of a commit record another copy is read.
            assert!(hit.is_subset(&frames) || self.role() == ArcRole::Commit, "{}", all());
            frames.retain(|no| !hit.contains(no));
            if is_data && level != Level::Files {
                self.assert_hits(f, &hit.into_iter().flat_map(|no| arc.blocks(no)).collect());
            }
        }
        let of_level: Vec<&Finding> = findings.iter().filter(|f| f.level == level).collect();
        match level {
            Level::LocalBlocks if wanted.is_none() && is_data && row.damage != "next" => {
                let whole = of_level.iter().filter(|f| f.spot.is_some_and(|spot| spot.part == Part::Whole));
                let [f] = whole.collect::<Vec<_>>()[..] else { panic!("{}", all()) };
                let code = if row.damage == "longest" { "ARC_FRAME_WRONG" } else { "ARC_HEADER_BAD" };
                assert!(f.error.code() == code && row.is_cause(f.cause), "{}", all());
            }
            Level::Files if is_data && wanted.is_some() => {
                assert_eq!(told(of_level.iter().flat_map(|f| &f.hits)), self.world.users.told(&blocks), "{}", all());
            }
            Level::LocalBlocks | Level::AllCopies if is_data && row.lost != "all" => {
                assert!(frames.is_empty(), "not found: {frames:?}, {}", all());
                if ["healed", "struck"].contains(&row.lost) {
                    let stored: u64 = self.world.arcs.iter().map(Layout::stored).sum();
                    assert_eq!(report.blocks, stored - blocks.len() as u64, "all others are verified");
                }
            }
            _ => {}
        }
    }

    /// The finding names every file that uses one of these blocks, and no other, as far as the list goes.
    fn assert_hits(&self, f: &Finding, blocks: &BTreeSet<BlockId>) {
        let (is, wanted) = (told(&f.hits), self.world.users.told(blocks));
        let ranges = self.world.users.ranges(blocks).values().map(Vec::len).sum::<usize>();
        if f.hits_total == f.hits.len() as u64 {
            return assert_eq!(is, wanted);
        }
        assert!(f.hits.len() == MAX_HITS && f.hits_total as usize >= ranges, "{} of {ranges}", f.hits_total);
        let is_wanted = |(name, ranges): (&_, &Vec<std::ops::Range<u64>>)| {
            let inside =
                |r: &std::ops::Range<u64>| wanted[name].iter().any(|of| of.start <= r.start && r.end <= of.end);
            ranges.iter().all(inside)
        };
        assert!(is.iter().all(is_wanted), "{is:?}");
    }

    /// By all levels; at other places by those that look at an arc each in its own way.
    pub fn found(&self) {
        let (copy, row) = (self.copy(), self.row);
        let is_read = self.role() == ArcRole::Data && row.lost != "nothing";
        let due = |level: &&Level| match (level, row.damage) {
            (Level::AllCopies, damage) => self.nth == 0 && damage == "bytes",
            _ if self.nth == 0 => true,
            (Level::Structure, "cut") => row.part == "end",
            (Level::Structure, _) => row.count(2) != Some(0),
            (Level::LocalBlocks, damage) => damage != "bytes" || !is_read,
            (Level::Files, "cut") => row.part == "frame" && self.nth.is_multiple_of(2),
            (Level::Files, damage) => is_read && damage != "byte",
            _ => false,
        };
        LEVELS.iter().filter(due).for_each(|level| self.selftest(&copy, *level));
    }

    pub fn fix(&self) {
        let (copy, name) = (self.copy(), self.spot.arc.name.to_string());
        let files = || copy.files().into_iter().filter(|(name, _)| !name.ends_with("-wal")).collect::<Files>();
        let acts = found(&copy, &selftest::Options { fix: selftest::Fix::Correct, ..options(Level::LocalBlocks) });
        let (after, pristine) = (files(), &self.world.lab.files);
        let fixed: Vec<_> = acts.iter().map(|f| &f.fixed).collect();
        assert!(!acts.is_empty() && acts.iter().any(Finding::is_fixed) == (self.row.fix == "right"), "{fixed:?}");
        if self.row.fix == "right" {
            assert!(after.get(&name) == pristine.get(&name), "not to the byte");
            let left = found(&copy, &options(Level::LocalBlocks));
            assert!(left.is_empty(), "{:#?}", shown(&left));
            self.world.lab.truth.assert_whole(&copy.reader(), &|| self.spot.what.clone());
            let ledger = copy.ledger();
            assert!(self.row.damage != "bit" || ledger.flips().len() == 1, "the flipped bit is remembered");
        } else {
            assert!(after.get(&name) == self.spot.bytes.as_ref(), "touched");
            self.assert_as_before(&copy.reader(), "after the fix", &|_| true);
        }
        let names = |files: &Files| {
            files.keys().filter(|other| !other.ends_with("-wal") && **other != name).cloned().collect::<Vec<_>>()
        };
        assert_eq!(names(&after), names(pristine), "something is left over");
    }

    /// What is around the frames of an arc can be written anew as long as all frames are right.
    pub fn shell(&self) {
        let (Some(entry), copy) = (&self.spot.arc.entry, self.copy()) else { return };
        let (dir, name) = (copy.open(), entry.name.to_string());
        let (index, lock) = (dir.open_index().unwrap(), dir.lock_to_mend(Duration::ZERO).unwrap());
        let rewrite = || rewrite_shell(&dir, &lock, &index, entry);
        let (got, there) = (rewrite(), || fs::read(copy.path(&name)).ok());
        if self.row.lost != "nothing" {
            let code = if self.spot.bytes.is_none() { "ARC_MISSING" } else { "NOT_FIXED" };
            assert_eq!(got.unwrap_err().code(), code);
            return assert!(there() == self.spot.bytes, "touched");
        }
        let parts: &[&str] = match self.row.part {
            "header" => &["header"],
            "both" => &["header", "footer and trailer"],
            _ => &["footer and trailer"],
        };
        assert_eq!(got.unwrap(), parts);
        assert!(there().as_ref() == self.world.lab.files.get(&name), "not to the byte");
        assert!(rewrite().unwrap().is_empty(), "nothing is left to do");
        // With a frame damaged too nothing proves the rest.
        let mut bad = self.spot.bytes.clone().unwrap();
        bad.truncate(entry.footer_offset as usize);
        bad[self.spot.arc.frames[0].start + 40] ^= 1;
        put(&copy, &name, &bad);
        assert_eq!(rewrite().unwrap_err().code(), "NOT_FIXED");
        assert!(there() == Some(bad), "touched");
    }

    /// Without the index.
    pub fn recover(&self) {
        let (arc, copy) = (self.spot.arc, Copy::without_index(&self.spot.files(&self.world.lab.files)));
        let (run, newest) = (arc.name.version.0, self.world.newest());
        let is_lost = self.role() == ArcRole::Commit && self.row.lost == "all";
        let got = match crate::recover::run(&copy.open(), OnLoss::Report, &Silent) {
            // Nothing follows from a first run that can't be read.
            Err(e) => return assert_eq!((is_lost, run, e.code()), (true, 0, "COMMIT_DAMAGED")),
            Ok(got) => got,
        };
        let lost_frames = if self.role() == ArcRole::Catalog { self.frames().len() } else { 0 };
        let no_end = self.row.lost == "behind" || self.row.lost == "all" && self.row.part != "bodies";
        // What follows a lost run is lost too; that the newest was there is known to nobody once its arc is gone.
        let is_unknown = run == newest.0 && ["gone", "next", "stranger"].contains(&self.row.damage);
        let lost_runs = if is_lost && !is_unknown { run..newest.0 + 1 } else { 0..0 };
        assert_eq!(got.lost_runs.iter().map(|(run, _)| run.0).collect::<Vec<_>>(), lost_runs.collect::<Vec<_>>());
        assert!(got.lost_runs.iter().all(|(_, e)| e.code() == "COMMIT_DAMAGED"), "{got:?}");
        let counts = (got.lost.len(), got.lost_arcs.len());
        assert_eq!(counts, (lost_frames, usize::from(self.role() != ArcRole::Commit && no_end)), "{got:?}");
        assert!(got.lost.iter().all(|lost| lost.frame.arc == arc.name));
        assert!(got.lost_arcs.iter().all(|(name, e)| *name == arc.name && e.is_damage()), "{got:?}");
        let versions = 0..if is_lost { run } else { newest.0 + 1 };
        assert_eq!(got.versions, versions.map(Version).collect::<Vec<_>>());
        let reader = copy.reader();
        let told = |ask: &Ask| is_of_tree(ask) && ask.version().is_none_or(|v| got.versions.contains(&v));
        if self.role() == ArcRole::Data || self.row.lost == "nothing" {
            self.assert_as_before(&reader, "recovered", &told);
        } else {
            let failed = self.world.lab.truth.judge_those(&reader, &|| self.spot.what.clone(), &told);
            let is_its = |n: usize| !is_lost || self.world.lab.truth.questions[n].0.version().is_none();
            assert!(failed.iter().all(|(n, e)| e.is_damage() && is_its(*n)), "{failed:?}");
        }
        if is_lost {
            assert_eq!(reader.tree.version(&format!("r{run}")).unwrap_err().code(), "NO_VERSION");
        }
        drop(reader);
        if self.row.damage != "cut" || self.row.part == "end" || self.nth == 0 {
            self.assert_found_again(&copy);
        }
        if self.role() == ArcRole::Catalog
            && self.row.lost != "nothing"
            && (self.nth == 0 || self.row.damage == "bytes")
        {
            self.assert_comes_back(&copy);
        }
    }

    /// After a recovery the loss is one finding as before, whatever has been backed up since.
    fn assert_found_again(&self, copy: &Copy) {
        let findings = found(copy, &options(Level::Structure));
        match self.row.count(6) {
            // What follows a lost commit record may be told too.
            None if self.role() == ArcRole::Commit => {
                assert!(findings.iter().all(|f| f.cause != Cause::Index), "{:#?}", shown(&findings));
            }
            None => assert!(findings.iter().any(|f| self.here(f)), "{:#?}", shown(&findings)),
            Some(count) => {
                let frame = |f: &Finding| f.place.as_ref().and_then(|place| place.frame).map(|no| no.0 as usize);
                let is_there = |f: &Finding| self.row.lost != "struck" || frame(f) == self.spot.struck.first().copied();
                let is_it = |f: &Finding| self.here(f) && self.row.says(f.error.code()) && is_there(f);
                assert!(findings.len() == count && findings.iter().all(is_it), "{:#?}", shown(&findings));
            }
        }
    }

    /// The next runs say so, build nothing on it, and what they save is whole, also from their arcs alone.
    pub fn save(&self, source: &Source) {
        let (arc, row, users, newest) = (self.spot.arc, self.row, &self.world.users, self.world.newest());
        let (is_data, is_commit) = (self.role() == ArcRole::Data, self.role() == ArcRole::Commit);
        let is_told = row.backup == "told" || row.backup == "short" && self.spot.is_short();
        let text = match (is_commit, is_data, row.damage) {
            (true, ..) => "commit record",
            (_, true, "gone") => "missing",
            (_, true, _) => "cut short",
            _ => "",
        };
        // What is in a lost arc is read again, once.
        let blocks = (0..arc.frames.len()).filter(|_| is_data && is_told).flat_map(|no| arc.blocks(no)).collect();
        let names = users.told(&blocks).into_keys().filter(|(_, v)| *v == newest).count() as u64;
        let copy = self.copy();
        // Of a file that is as before nobody sees that a frame of it can't be read.
        let is_whole = is_told || self.blocks().is_empty();
        for (second, new, changed) in [(false, 5, names), (true, 0, 0)] {
            let (summary, said) = self.goes_on(&copy, source, is_told && !is_data && !second, is_whole);
            // Once the base is there a lost commit record is no more in the way; a lost catalog arc stays one.
            assert_eq!(said.failures.len(), usize::from(is_told && !(is_commit && second)), "{said:?}");
            assert!(
                said.failures.iter().all(|told| told.contains(text) && told.contains(&arc.name.to_string())),
                "{said:?}"
            );
            let info = &summary.info;
            assert_eq!((info.errors, info.new, info.changed), (said.failures.len() as u64, new, changed), "{second}");
            assert!(!second || info.blocks_new == 0, "stored again");
            if !is_told && row.lost == "nothing" {
                return;
            }
        }
        if is_told {
            let again = Copy::without_index(&copy.files());
            again.recover();
            (1..3).for_each(|n| assert_same(&again.reader(), Version(newest.0 + n), source.path(), &source.snapshot()));
        }
        let is_commit_lost = is_commit && (["gone", "empty"].contains(&row.damage) || row.part == "bodies");
        if is_data || row.damage != "bytes" && !is_commit_lost {
            return;
        }
        // A base goes on over it too, and makes no new findings.
        copy.make_a_base_due();
        fs::rename(source.join("d1/sub5"), source.join("d1/sub55")).unwrap();
        self.goes_on(&copy, source, true, true);
        fs::rename(source.join("d1/sub55"), source.join("d1/sub5")).unwrap();
        self.goes_on(&copy, source, false, true);
        self.selftest(&copy, Level::Structure);
        // Nor does a backup after a recovery, which takes nothing away.
        let copy = Copy::without_index(&self.spot.files(&self.world.lab.files));
        let Ok(got) = crate::recover::run(&copy.open(), OnLoss::Report, &Silent) else { return };
        let before: BTreeSet<_> = copy.arc_names().into_iter().collect();
        let v = self.goes_on(&copy, source, is_told || !got.lost_runs.is_empty(), true).0.version.unwrap();
        self.assert_found_again(&copy);
        assert!(before.is_subset(&copy.arc_names().into_iter().collect()), "removed");
        copy.lose_index();
        assert_eq!(copy.recover().versions, got.versions.into_iter().chain([v]).collect::<Vec<_>>());
        assert_same(&copy.reader(), v, source.path(), &source.snapshot());
        self.assert_comes_back(&copy);
        self.goes_on(&copy, source, false, true);
    }

    /// A backup.
    fn goes_on(&self, copy: &Copy, source: &Source, base: bool, is_whole: bool) -> (Summary, Said) {
        let (summary, said) = copy.try_backup(&[source.path()], &BackupOptions::default()).unwrap();
        assert_eq!(summary.base, base, "{said:?}");
        if is_whole {
            assert_same(&copy.reader(), summary.version.unwrap(), source.path(), &source.snapshot());
        }
        (summary, said)
    }

    /// A version goes, and what nobody needs any more: never what somebody can still read.
    pub fn prune(&self) {
        let (copy, gone) = (self.copy(), BTreeSet::from([Version(1)]));
        let choose: &dyn Fn(&[_]) -> _ = &|all| Ok(versions::named(all, &gone));
        let (protection, on_protected) = (Protection::Off, versions::OnProtected::Refuse);
        let request = versions::Request { choose, protection, on_protected, mode: Mode::Do };
        let removed = versions::remove(&copy.open(), &request, &Silent).map(drop);
        let options = pack::Options { threshold: 1, limit_bytes: None, mode: Mode::Do };
        let packed = pack::run(&copy.open(), &options, &Silent);
        // What follows would name a record that nobody can read.
        let is_last = self.spot.arc.name.version == self.world.newest() && self.role() == ArcRole::Commit;
        if is_last && self.row.lost == "all" {
            for error in [removed.unwrap_err(), packed.map(drop).unwrap_err()] {
                assert_eq!(error.code(), "COMMIT_DAMAGED");
            }
            return self.assert_as_before(&copy.reader(), "after nothing was done", &|_| true);
        }
        removed.unwrap();
        let (packed, blocks, users) = (packed.unwrap(), self.blocks(), &self.world.users);
        // An arc stays as it is if it would go and a block in it is needed that can't be read.
        assert_eq!(
            (packed.damaged + packed.rewritten, packed.damaged > 0 && blocks.is_empty()),
            (1, false),
            "{packed:?}"
        );
        let goes = |logid| users.names[&logid].values().flatten().all(|v| *v == Version(1));
        if packed.damaged > 0 {
            let mut of_lost = blocks.iter().filter_map(|block| users.blocks.get(block));
            assert!(of_lost.any(|of| of.keys().any(|logid| !goes(*logid))), "all that is left of it can be read");
            assert!(fs::read(copy.path(&self.spot.arc.name.to_string())).ok() == self.spot.bytes, "touched");
        }
        let others = |ask: &Ask| is_of_tree(ask) && ask.version() != Some(Version(1)) && !ask.logid().is_some_and(goes);
        self.assert_as_before(&copy.reader(), "after rm and pack", &others);
    }
}
