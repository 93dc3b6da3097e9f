//! Versions go: chosen by name or by rules, all in one commit.
//!
//! Invariants: a version stays unless it was chosen to go; with protection on, the newest stays, and of each path that no
//! staying version shows the newest version that has it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Mode, Protection, begin, free_bytes, told};
use crate::backupdir::BackupDir;
use crate::catalog::Record;
use crate::error::{Error, Result};
use crate::ids::Version;
use crate::index::{Index, Subtrees, VersionRow, VersionSet};
use crate::monitor::Monitor;
use crate::run::{Contents, LeftToDo, Whole, records};

/// Paths that are named; more are counted.
pub const MAX_NAMED: usize = 1000;

/// What becomes of a version, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub version: VersionRow,
    pub keep: bool,
    pub why: String,
}

/// Paths of which the last copy goes, or would go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastCopies {
    pub count: u64,
    /// With the newest version that has it; the first `MAX_NAMED`.
    pub paths: Vec<(Version, Vec<u8>)>,
}

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Of all versions, oldest first.
    pub verdicts: Vec<Verdict>,
    pub last_copies: LastCopies,
    /// What `pack` could give back afterwards; None: the index can't tell.
    pub free_bytes: Option<u64>,
    pub left_to_do: Option<LeftToDo>,
}

impl Outcome {
    pub fn going(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter().filter(|verdict| !verdict.keep)
    }
}

/// What is done about a version that is chosen to go, and protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnProtected {
    /// It stays.
    Keep,
    /// Nothing is done.
    Refuse,
}

/// Who goes.
pub struct Request<'a> {
    /// Says of all versions, oldest first, what becomes of them.
    pub choose: &'a dyn Fn(&[VersionRow]) -> Result<Vec<Verdict>>,
    pub protection: Protection,
    pub on_protected: OnProtected,
    pub mode: Mode,
}

/// Removes versions.
///
/// # Errors
/// `PROTECTED` if a version holds the last copy of something, or is the newest, and that is to be refused; those of a run.
pub fn remove(dir: &BackupDir, request: &Request<'_>, monitor: &dyn Monitor) -> Result<Outcome> {
    if request.mode == Mode::DryRun {
        return plan(&dir.open_index()?, request, monitor);
    }
    let lock = dir.lock()?;
    let run = begin(dir, &lock, monitor)?;
    let mut outcome = plan(run.index(), request, monitor)?;
    let going: Vec<Version> = outcome.going().map(|verdict| verdict.version.version).collect();
    if going.is_empty() {
        return Ok(outcome);
    }
    let (committed, ()) = run.reserve()?.write(Whole::Remove, |out| {
        let catalog = records::records(out, going.iter().map(|version| Ok(Record::RemoveVersion(*version))))?;
        let arcs = out.finish()?;
        if monitor.interrupted() {
            return Err(Error::Interrupted);
        }
        Ok((Contents { arcs, catalog, roots: Vec::new(), version: None }, ()))
    })?;
    outcome.left_to_do = told(committed.apply(), monitor);
    Ok(outcome)
}

fn plan(index: &Index, request: &Request<'_>, monitor: &dyn Monitor) -> Result<Outcome> {
    let stop = || monitor.interrupted();
    let mut verdicts = (request.choose)(&index.versions()?)?;
    if request.protection == Protection::On
        && let Some(newest) = verdicts.last_mut().filter(|newest| !newest.keep)
    {
        if request.on_protected == OnProtected::Refuse {
            return Err(Error::Protected { what: format!("{} is the newest version", newest.version.version) });
        }
        (newest.keep, newest.why) = (true, "the newest".into());
    }
    let mut last_copies = LastCopies::default();
    // Of each version the paths that it has last, and one of them.
    let mut holds: BTreeMap<Version, (u64, Vec<u8>)> = BTreeMap::new();
    let (going, staying) = sets(&verdicts);
    if going.iter().next().is_some() {
        index.only_in(&going, &staying, &stop, |version, parent, name| {
            let path = || -> Result<Vec<u8>> {
                let mut path = index.path_of_dir(version, parent)?;
                if path.last() != Some(&b'/') {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                Ok(path)
            };
            last_copies.count += 1;
            if last_copies.paths.len() < MAX_NAMED {
                last_copies.paths.push((version, path()?));
            }
            match holds.get_mut(&version) {
                Some((count, _)) => *count += 1,
                None => drop(holds.insert(version, (1, path()?))),
            }
            Ok(())
        })?;
    }
    if request.protection == Protection::On && last_copies.count > 0 {
        if request.on_protected == OnProtected::Refuse {
            let paths: Vec<&[u8]> = last_copies.paths.iter().map(|(_, path)| path.as_slice()).collect();
            return Err(Error::Protected { what: lost_text(last_copies.count, &paths) });
        }
        for verdict in verdicts.iter_mut().filter(|verdict| !verdict.keep) {
            if let Some((count, first)) = holds.get(&verdict.version.version) {
                (verdict.keep, verdict.why) = (true, held_text(*count, first));
            }
        }
        last_copies = LastCopies::default();
    }
    let (going, staying) = sets(&verdicts);
    let newest = index.newest_ever()?.map(|row| row.version);
    let needed = VersionSet::new(staying.iter().chain(newest));
    let free_bytes = match going.iter().next().is_some() || index.any_removed()? {
        true => free_bytes(index, &needed, &Subtrees::default(), &stop)?,
        false => Some(0),
    };
    Ok(Outcome { verdicts, last_copies, free_bytes, left_to_do: None })
}

fn sets(verdicts: &[Verdict]) -> (VersionSet, VersionSet) {
    let of = |keep: bool| {
        VersionSet::new(verdicts.iter().filter(move |verdict| verdict.keep == keep).map(|v| v.version.version))
    };
    (of(false), of(true))
}

fn held_text(count: u64, first: &[u8]) -> String {
    let more = if count > 1 { format!(" and {} more", crate::text::counted(count - 1, "path")) } else { String::new() };
    format!("the last copy of {}{more}", crate::text::shown(first))
}

fn lost_text(count: u64, paths: &[&[u8]]) -> String {
    const MOST: usize = 5;
    let named: Vec<String> = paths.iter().take(MOST).map(|path| crate::text::shown(*path).to_string()).collect();
    let more = count.saturating_sub(named.len() as u64);
    let more = if more > 0 { format!(" and {} more", crate::text::number(more)) } else { String::new() };
    let verb = if count == 1 { "is" } else { "are" };
    format!("{} {verb} in no version that stays: {}{more}", crate::text::counted(count, "path"), named.join(", "))
}

/// The verdicts of `rm`: these versions go, all others stay.
pub fn named(versions: &[VersionRow], going: &BTreeSet<Version>) -> Vec<Verdict> {
    let verdict = |version: &VersionRow| {
        let keep = !going.contains(&version.version);
        Verdict { version: version.clone(), keep, why: if keep { "not named" } else { "named" }.into() }
    };
    versions.iter().map(verdict).collect()
}
