//! Files with names of arcs that the index does not list, and what each of them is.
//!
//! Invariants: a header, a trailer or a record that authenticates says what an arc is, its file name never does; only
//! what is proven to be of a run that this index saw begin and not commit, or of an arc that it dropped, may be
//! removed; whatever can't be told stays, and moves no counter.

use std::collections::{BTreeSet, HashMap};

use super::BackupDir;
use super::arcs::{self, COMMIT_NUMBER, TMP_SUFFIX};
use crate::arc::{ArcHeader, ArcTrailer};
use crate::catalog::ArcEntry;
use crate::crypto::Keys;
use crate::depot::{Local, StoredArc, Via};
use crate::error::{Damage, Error, Result};
use crate::fetch;
use crate::ids::{ArcId, ArcName, Version};
use crate::index::{Index, OpenRun};

/// What a file says of itself.
#[derive(Debug)]
enum Identity {
    /// It is of this backup dir. Without a name: only its trailer is left.
    Own {
        name: Option<ArcName>,
        id: ArcId,
    },
    Foreign,
    /// Not a byte of it is anything but zero: there is nothing to lose.
    Blank,
    /// Damaged, or no arc at all.
    Unknown,
    Unreadable(Error),
}

/// What an unlisted file is.
#[derive(Debug)]
pub enum What {
    /// The commit of a run that the index does not know.
    Commit,
    /// The same, but its record can't be read.
    BadCommit(Error),
    /// Of a run that was begun and has no commit: it is running, or was cut.
    Leftover(OpenRun),
    /// An arc that was dropped.
    Dropped,
    /// Of a run that is over, and named by no commit that is left: a recovery has told of it.
    Old,
    /// Of a run above the newest one that the index knows, and named by no commit.
    Unclaimed,
    /// An arc of this backup dir under another name than its own.
    Misnamed {
        own: ArcName,
        own_is_there: bool,
    },
    Foreign,
    Unknown,
    Unreadable(Error),
}

#[derive(Debug)]
pub struct Unlisted {
    pub name: ArcName,
    /// It stands under the name of a commit arc that is being written.
    pub tmp: bool,
    pub what: What,
}

impl Unlisted {
    pub fn file_name(&self) -> String {
        file_name(self.name, self.tmp)
    }

    /// For files that nobody accounts for and that the user has to see to: what is wrong, and what can be done.
    pub fn stray(&self, dir: &BackupDir) -> Option<Error> {
        let name = self.name;
        let what = match &self.what {
            What::Commit | What::BadCommit(_) | What::Leftover(_) | What::Dropped | What::Old => return None,
            What::Unclaimed => {
                let commit = arcs::commit_arc(name.version);
                format!("no commit names it: {commit} is lost, or this index is older than it; put {commit} back")
            }
            What::Misnamed { own, own_is_there: false } => {
                format!("it is {own} under another name, and {own} is missing: rename it to {own}")
            }
            What::Misnamed { own, own_is_there: true } => {
                format!("it is a copy of {own}, which is there: move it out of the backup dir")
            }
            What::Foreign => {
                "it belongs to another backup dir: move it there, and put this one's own arc of that name back if there \
                 was one"
                    .into()
            }
            What::Unknown => {
                "it is no arc of this backup dir, or damaged beyond recognition: move it out of the backup dir".into()
            }
            What::Unreadable(error) => format!("it can't be told what it is: {error}"),
        };
        Some(Error::Stray { path: dir.path().join(self.file_name()), what })
    }
}

/// What the index does not list.
#[derive(Debug)]
pub struct Survey {
    pub unlisted: Vec<Unlisted>,
    /// A run number above all that were ever given, of which no file has the name.
    pub next_run: Version,
}

impl Survey {
    /// Looks at every file with an arc's name that the index does not list.
    ///
    /// The directory is read before the index: what a backup writes meanwhile is known as its own.
    ///
    /// # Errors
    /// Those of the index and of listing the directory; `UNSUPPORTED` when no number is left.
    pub fn take(dir: &BackupDir, index: &Index) -> Result<Survey> {
        let files = arcs::list_all(dir.own())?;
        let state = index.state()?;
        let look = Look {
            dir,
            last: state.last_commit.map(|(last, _)| last),
            settled_below: state.settled_below,
            open: index.open_runs()?,
            present: files.iter().filter(|(_, tmp)| !tmp).map(|(name, _)| *name).collect(),
        };
        let all = index.all_arcs()?;
        let known_runs = index.known_runs()?;
        let listed: BTreeSet<ArcName> =
            all.iter().filter(|value| !value.dropped).map(|value| value.entry.name).collect();
        let by_id: HashMap<ArcId, &ArcEntry> = all.iter().map(|value| (value.entry.id, &value.entry)).collect();
        let is_listed = |name: ArcName| {
            listed.contains(&name) || (name.number == COMMIT_NUMBER && known_runs.contains(&name.version))
        };
        let unlisted: Vec<(ArcName, bool, Identity)> = files
            .iter()
            .filter(|(name, tmp)| *tmp || !is_listed(*name))
            .map(|(name, tmp)| (*name, *tmp, identify(dir, *name, *tmp)))
            .collect();
        let own_runs: BTreeSet<Version> = unlisted
            .iter()
            .filter(|(name, tmp, found)| {
                !tmp && matches!(found, Identity::Own { name: own, .. } if *own == Some(*name))
            })
            .map(|(name, ..)| name.version)
            .collect();
        let unlisted: Vec<Unlisted> = unlisted
            .into_iter()
            .filter_map(|(name, tmp, found)| {
                let what = look.what(name, tmp, found, &by_id, &own_runs)?;
                Some(Unlisted { name, tmp, what })
            })
            .collect();
        let counts = |found: &&Unlisted| {
            matches!(found.what, What::Commit | What::BadCommit(_) | What::Leftover(_) | What::Old | What::Unclaimed)
        };
        let highest = unlisted.iter().filter(counts).map(|found| found.name.version.0 + 1).max().unwrap_or(0);
        let taken: BTreeSet<Version> = files.iter().map(|(name, _)| name.version).collect();
        let next_run = (state.next_run.0.max(highest)..=Version::MAX.0).map(Version).find(|run| !taken.contains(run));
        match next_run {
            Some(next_run) => Ok(Survey { unlisted, next_run }),
            None => Err(Error::Unsupported { path: dir.path().into(), what: "too many runs".into() }),
        }
    }

    pub fn strays<'s>(&'s self, dir: &'s BackupDir) -> impl Iterator<Item = Error> + 's {
        self.unlisted.iter().filter_map(|found| found.stray(dir))
    }
}

/// Runs whose commit arc is there but that the index does not know, because a backup was cut just before it told the
/// index, or because the index is an older copy; a recovery that gave them up does not count them.
///
/// # Errors
/// Those of the index and of listing the directory.
pub fn unknown_commits(dir: &BackupDir, index: &Index) -> Result<Vec<Version>> {
    let files = dir.arcs().list()?;
    let state = index.state()?;
    let unknown = |name: &&ArcName| {
        name.number == COMMIT_NUMBER
            && name.version >= state.settled_below
            && state.last_commit.is_none_or(|(last, _)| name.version > last)
    };
    let own = |name: &&ArcName| {
        arcs::read_commit(dir.arcs(), name.version, dir.keys()).is_ok()
            || matches!(identify(dir, **name, false), Identity::Own { name: Some(own), .. } if own == **name)
    };
    Ok(files.iter().filter(unknown).filter(own).map(|name| name.version).collect())
}

/// What the files of a run say of it to whom has no index.
#[derive(Debug)]
pub struct Claim {
    /// Its commit arc is there, though it may be damaged.
    pub committed: bool,
    /// Its other arcs.
    pub arcs: usize,
    /// Files that only have such names.
    pub strays: Vec<Unlisted>,
}

impl Claim {
    pub fn of(dir: &BackupDir, run: &arcs::Run) -> Claim {
        let misnamed = |own| What::Misnamed { own, own_is_there: arcs::is_there(dir.own(), own) };
        let mut claim = Claim { committed: false, arcs: 0, strays: Vec::new() };
        // The commit arc comes last: where nothing else of the run is, junk with its name is no damaged commit.
        for name in run.arcs.iter().rev().copied() {
            let is_commit = name.number == COMMIT_NUMBER;
            let what = match identify(dir, name, false) {
                Identity::Own { name: Some(own), .. } if own != name => misnamed(own),
                Identity::Foreign => What::Foreign,
                found if is_commit => match arcs::read_record(dir.arcs(), run.version, dir.keys()) {
                    Ok((commit, _)) if commit.run != run.version => misnamed(arcs::commit_arc(commit.run)),
                    Err(_) if claim.arcs == 0 && !matches!(found, Identity::Own { .. }) => What::Unknown,
                    _ => {
                        claim.committed = true;
                        continue;
                    }
                },
                Identity::Own { .. } => {
                    claim.arcs += 1;
                    continue;
                }
                Identity::Blank | Identity::Unknown => What::Unknown,
                Identity::Unreadable(error) => What::Unreadable(error),
            };
            claim.strays.push(Unlisted { name, tmp: false, what });
        }
        claim
    }
}

/// What tells what a file is.
struct Look<'a> {
    dir: &'a BackupDir,
    last: Option<Version>,
    settled_below: Version,
    open: Vec<OpenRun>,
    /// Arcs by name.
    present: BTreeSet<ArcName>,
}

impl Look<'_> {
    fn what(
        &self,
        name: ArcName,
        tmp: bool,
        found: Identity,
        by_id: &HashMap<ArcId, &ArcEntry>,
        own_runs: &BTreeSet<Version>,
    ) -> Option<What> {
        let run = name.version;
        let is_over = self.last.is_some_and(|last| run <= last) || run < self.settled_below;
        let is_committed = self.present.contains(&arcs::commit_arc(run));
        let open = self.open.iter().find(|open| open.version == run && !is_committed && !is_over);
        if tmp {
            let is_ours = |open: &&OpenRun| match &found {
                Identity::Own { id, .. } => *id == open.arc_id(name.number),
                Identity::Blank => true,
                _ => false,
            };
            return open.filter(is_ours).map(|open| What::Leftover(*open));
        }
        let misnamed = |own| What::Misnamed { own, own_is_there: self.present.contains(&own) };
        Some(match found {
            Identity::Own { name: own, id, .. } => match (by_id.get(&id), own) {
                (Some(known), _) if known.name == name => What::Dropped,
                (Some(known), _) => misnamed(known.name),
                (None, Some(own)) if own != name => misnamed(own),
                (None, _) if name.number == COMMIT_NUMBER && is_over => What::Old,
                (None, _) if name.number == COMMIT_NUMBER => self.commit(run),
                (None, _) => match open.filter(|open| open.arc_id(name.number) == id) {
                    Some(open) => What::Leftover(*open),
                    None if is_over || is_committed => What::Old,
                    None => What::Unclaimed,
                },
            },
            Identity::Foreign => What::Foreign,
            // Where a run of ours was, its commit arc is damaged; elsewhere it is none.
            _ if name.number == COMMIT_NUMBER && !is_over && own_runs.contains(&run) => self.commit(run),
            Identity::Blank => open.map_or(What::Unknown, |open| What::Leftover(*open)),
            Identity::Unknown => What::Unknown,
            Identity::Unreadable(error) => What::Unreadable(error),
        })
    }

    fn commit(&self, run: Version) -> What {
        match arcs::read_record(self.dir.arcs(), run, self.dir.keys()) {
            Ok((commit, _)) if commit.run == run => What::Commit,
            Ok((commit, _)) => {
                let own = arcs::commit_arc(commit.run);
                What::Misnamed { own, own_is_there: self.present.contains(&own) }
            }
            Err(error) => What::BadCommit(error),
        }
    }
}

fn identify(dir: &BackupDir, name: ArcName, tmp: bool) -> Identity {
    let file_name = file_name(name, tmp);
    let found = Local::new(dir.own()).open_as(name, &file_name).and_then(|file| {
        let (head, tail) = fetch::ends(file.as_ref())?;
        match by_ends(&head, &tail, dir.keys()) {
            Some(found) => Ok(found),
            None => Ok(if is_blank(file.as_ref())? { Identity::Blank } else { Identity::Unknown }),
        }
    });
    match found {
        Ok(found) => found,
        // A directory, say: it has the name, and nothing can be read there.
        Err(Error::Arc { damage: Damage::Missing, .. }) => Identity::Unknown,
        Err(error) => Identity::Unreadable(error),
    }
}

fn file_name(name: ArcName, tmp: bool) -> String {
    format!("{name}{}", if tmp { TMP_SUFFIX } else { "" })
}

fn by_ends(head: &[u8], tail: &[u8], keys: &Keys) -> Option<Identity> {
    if let Ok(header) = ArcHeader::decode(head, keys) {
        return Some(Identity::Own { name: Some(header.name), id: header.id });
    }
    if let Ok(trailer) = ArcTrailer::decode(tail, keys) {
        return Some(Identity::Own { name: None, id: trailer.id });
    }
    ArcHeader::backup_id(head).filter(|id| *id != keys.backup_id()).map(|_| Identity::Foreign)
}

fn is_blank(file: &dyn StoredArc) -> Result<bool> {
    let mut bytes = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        match file.read(at, &mut bytes, Via::Cache)? {
            0 => return Ok(true),
            n if bytes.iter().take(n).all(|byte| *byte == 0) => at += n as u64,
            _ => return Ok(false),
        }
    }
}
