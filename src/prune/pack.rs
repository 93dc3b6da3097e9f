//! `assay pack`: arcs that hold much that nobody needs are written anew without it, or go as they are.
//!
//! Invariants: a block is opened and verified before it is sealed again; the old arc goes by the commit that says where
//! its blocks are now, and its file only after that commit is durable and the index knows it; an arc with a needed block
//! that can't be read stays; each commit stands alone, so that whatever ends the work keeps what was done.

use std::collections::BTreeSet;

use super::{Mode, begin, gaps, told};
use crate::backupdir::{BackupDir, Lock, Survey, What};
use crate::catalog::Record;
use crate::depot::{Depot, Reach};
use crate::error::{Error, Result};
use crate::fetch::{Asked, Fetch, Fetched, Heal};
use crate::ids::{ArcSerial, BlockHash, BlockId};
use crate::index::{ArcUse, Index, Live, Subtrees};
use crate::monitor::{Event, Monitor, Progress};
use crate::run::{Contents, LeftToDo, Output, Run, Whole, records};

/// Dead bytes of an arc, in percent, from which on it is written anew.
pub const DEFAULT_THRESHOLD: u8 = 25;

#[derive(Debug, Clone)]
pub struct Options {
    /// Percent.
    pub threshold: u8,
    /// Bytes that are written at most.
    pub limit_bytes: Option<u64>,
    pub mode: Mode,
}

/// What was done, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Arcs that went because nothing in them was needed.
    pub dropped: u64,
    /// Arcs that were written anew.
    pub rewritten: u64,
    pub blocks_moved: u64,
    /// Bytes of files that went, and of those that were written.
    pub removed_bytes: u64,
    pub written_bytes: u64,
    /// Arcs that stay because a block that is needed can't be read; each was told.
    pub damaged: u64,
    /// Dead bytes in arcs that stay.
    pub dead_bytes_left: u64,
    pub left_to_do: Option<LeftToDo>,
}

/// Packs.
///
/// # Errors
/// `COMMIT_DAMAGED`, `DIRECTORY_LOST` or `EXTENTS_LOST` where the index does not know all that is needed; those of a run. What was committed before stays.
pub fn run(dir: &BackupDir, options: &Options, monitor: &dyn Monitor) -> Result<Packed> {
    let mut packed = Packed::default();
    if options.mode == Mode::DryRun {
        let index = dir.open_index()?;
        let (_, uses) = used(dir.arcs(), &index, &Survey::take(dir, &index)?, monitor)?;
        let plan = Plan::of(&uses, options);
        packed.dropped = plan.dead.len() as u64;
        packed.rewritten = plan.sparse.len() as u64;
        packed.written_bytes = plan.sparse.iter().map(|arc| arc.live_bytes).sum();
        packed.removed_bytes = plan.dead.iter().chain(&plan.sparse).map(|arc| arc.entry.arc_bytes).sum();
        packed.dead_bytes_left = plan.dead_bytes_left;
        return Ok(packed);
    }
    let lock = dir.lock()?;
    let run = begin(dir, &lock, monitor)?;
    let (live, uses) = used(dir.arcs(), run.index(), &run.settled().survey, monitor)?;
    let plan = Plan::of(&uses, options);
    packed.dead_bytes_left = plan.dead_bytes_left;
    let expected_bytes = plan.sparse.iter().map(|arc| arc.live_bytes).sum();
    let mut progress = Progress { expected_bytes, ..Progress::default() };
    // What gives room comes first.
    let mut batches = vec![plan.dead.iter().collect::<Vec<_>>()];
    batches.extend(batches_of(&plan.sparse, dir.config().arc_size_limit));
    let mut next = Some(run);
    for batch in batches.into_iter().filter(|batch| !batch.is_empty()) {
        if monitor.interrupted() {
            return Err(Error::Interrupted);
        }
        let run = match next.take() {
            Some(run) => run,
            None => begin(dir, &lock, monitor)?,
        };
        if !one(dir, &lock, run, &batch, &live, &mut packed, &mut progress, monitor)? {
            break;
        }
    }
    Ok(packed)
}

/// What is to be done.
struct Plan {
    dead: Vec<ArcUse>,
    /// The emptiest first.
    sparse: Vec<ArcUse>,
    dead_bytes_left: u64,
}

impl Plan {
    fn of(uses: &[ArcUse], options: &Options) -> Plan {
        let (dead, mut rest): (Vec<ArcUse>, Vec<ArcUse>) = uses.iter().cloned().partition(|arc| arc.live_bytes == 0);
        rest.sort_by_key(|arc| arc.live_bytes * 1000 / (arc.live_bytes + arc.dead_bytes).max(1));
        let mut left_bytes = options.limit_bytes.unwrap_or(u64::MAX);
        let (sparse, stays): (Vec<ArcUse>, Vec<ArcUse>) = rest.into_iter().partition(|arc| {
            let all_bytes = u128::from(arc.live_bytes) + u128::from(arc.dead_bytes);
            let much =
                arc.dead_bytes > 0 && u128::from(arc.dead_bytes) * 100 >= all_bytes * u128::from(options.threshold);
            let fits = much && arc.live_bytes <= left_bytes;
            left_bytes -= if fits { arc.live_bytes } else { 0 };
            fits
        });
        Plan { dead, sparse, dead_bytes_left: stays.iter().map(|arc| arc.dead_bytes).sum() }
    }
}

/// Arcs whose needed blocks fill about one new arc.
fn batches_of(arcs: &[ArcUse], arc_size_limit: u64) -> Vec<Vec<&ArcUse>> {
    let mut batches: Vec<(u64, Vec<&ArcUse>)> = Vec::new();
    for arc in arcs {
        match batches.last_mut().filter(|(bytes, _)| bytes + arc.live_bytes <= arc_size_limit) {
            Some((bytes, batch)) => {
                *bytes += arc.live_bytes;
                batch.push(arc);
            }
            None => batches.push((arc.live_bytes, vec![arc])),
        }
    }
    batches.into_iter().map(|(_, batch)| batch).collect()
}

/// What is needed, and how full the arcs are of it. Blocks that a cut run has stored wait for the next backup.
fn used(depot: &dyn Depot, index: &Index, survey: &Survey, monitor: &dyn Monitor) -> Result<(Live, Vec<ArcUse>)> {
    let gaps = gaps(index)?;
    if gaps == crate::index::Gaps::Refuse
        && let Some(found) = survey
            .unlisted
            .iter()
            .find(|found| matches!(found.what, What::Commit | What::BadCommit(_) | What::Old | What::Unclaimed))
    {
        let what = format!(
            "{} is there, the index does not know the run, and it may need what seems dead (is it the rest of a run that \
             was cut? `assay recover --accept-loss` says so)",
            found.name
        );
        return Err(Error::CommitDamaged { run: found.name.version, what });
    }
    let live = index.live(&index.needed()?, &Subtrees::default(), gaps, &|| monitor.interrupted())?;
    let spare = index.spare_arcs()?;
    let mut uses = index.arc_uses(&live)?;
    // What is not kept here is not fetched to be packed.
    uses.retain(|arc| arc.live_bytes == 0 || depot.reach_of(arc.entry.name) == Reach::Near);
    uses.retain(|arc| !spare.iter().any(|range| range.contains(&arc.entry.serial.0)));
    Ok((live, uses))
}

/// Packs some arcs by one run. False if what comes after its commit failed.
#[expect(clippy::too_many_arguments, reason = "it goes on with itself, without what is damaged")]
fn one<'a>(
    dir: &'a BackupDir,
    lock: &'a Lock,
    run: Run<'a>,
    batch: &[&ArcUse],
    live: &Live,
    packed: &mut Packed,
    progress: &mut Progress,
    monitor: &dyn Monitor,
) -> Result<bool> {
    let index = run.index().clone();
    let serials: BTreeSet<ArcSerial> = batch.iter().map(|arc| arc.entry.serial).collect();
    let names = index.names_in(&serials, live, &|| monitor.interrupted())?;
    let mut damaged = BTreeSet::new();
    let written = run.reserve()?.write(Whole::Remove, |out| {
        let mut mover = Mover {
            fetch: Fetch::new(dir.home(), Vec::new(), dir.keys().clone(), index.clone(), Heal::On),
            out,
            progress,
            monitor,
            moved: Vec::new(),
            stay: BTreeSet::new(),
        };
        let mut rest = names.as_slice();
        while !rest.is_empty() {
            rest = mover.some(rest)?;
        }
        let Mover { moved, stay, .. } = mover;
        if !stay.is_empty() {
            damaged = stay;
            return Err(Error::SelfCheck { what: "an arc that was to be packed is damaged".into() });
        }
        // Twice: a lost frame of them would lose what a recovery knows of where the blocks are.
        let mut catalog = Vec::new();
        for _ in 0..2 {
            catalog.extend(records::relocations(out, moved.iter().copied().map(Ok))?);
        }
        catalog.extend(records::records(out, serials.iter().map(|serial| Ok(Record::DropArc(*serial))))?);
        let arcs = out.finish()?;
        if monitor.interrupted() {
            return Err(Error::Interrupted);
        }
        Ok((Contents { arcs, catalog, roots: Vec::new(), version: None }, moved.len() as u64))
    });
    let (committed, blocks_moved) = match written {
        Err(_) if !damaged.is_empty() && !monitor.interrupted() => {
            // Nothing of them is written: good blocks out of an arc that stays would only stand in two places.
            let (stays, rest): (Vec<&ArcUse>, Vec<&ArcUse>) =
                batch.iter().partition(|arc| damaged.contains(&arc.entry.serial));
            packed.damaged += stays.len() as u64;
            packed.dead_bytes_left += stays.iter().map(|arc| arc.dead_bytes).sum::<u64>();
            return match rest.is_empty() {
                true => Ok(true),
                false => one(dir, lock, begin(dir, lock, monitor)?, &rest, live, packed, progress, monitor),
            };
        }
        written => written?,
    };
    let applied = committed.apply();
    packed.written_bytes += applied.commit.arcs.iter().map(|arc| arc.arc_bytes).sum::<u64>();
    packed.blocks_moved += blocks_moved;
    for arc in batch {
        *(if arc.live_bytes == 0 { &mut packed.dropped } else { &mut packed.rewritten }) += 1;
        packed.removed_bytes += arc.entry.arc_bytes;
    }
    packed.left_to_do = told(applied, monitor);
    Ok(packed.left_to_do.is_none())
}

/// Plain bytes that are fetched before they are sealed.
const FETCH_BYTES: u64 = 4 << 20;

/// Moves blocks, in the order in which they lie.
struct Mover<'m, 'o> {
    fetch: Fetch,
    out: &'m mut Output<'o>,
    progress: &'m mut Progress,
    monitor: &'m dyn Monitor,
    /// Name and new place.
    moved: Vec<(BlockId, BlockId)>,
    /// Arcs with a needed block that can't be read.
    stay: BTreeSet<ArcSerial>,
}

impl Mover<'_, '_> {
    /// Moves the first blocks of a list of places and names; the rest of it.
    fn some<'n>(&mut self, names: &'n [(BlockId, BlockId)]) -> Result<&'n [(BlockId, BlockId)]> {
        let (mut asked, mut plain_bytes, mut taken) = (Vec::<Asked>::new(), 0, 0);
        // Places of blocks, each with its hash and the number of its frame in `asked`.
        let mut blocks: Vec<(BlockId, BlockHash, usize)> = Vec::new();
        for (place, name) in names {
            // Several names of one place follow each other.
            if blocks.last().is_none_or(|(last, ..)| last != place) {
                let same_frame = asked.last().is_some_and(|last| last.at.frame() == place.place());
                if !same_frame && plain_bytes >= FETCH_BYTES {
                    break;
                }
                match self.fetch.locate(*name) {
                    Ok(found) if found.at.place() == *place => {
                        let hash = found.at.block.hash;
                        if !same_frame {
                            plain_bytes += u64::from(found.at.info.plain_len());
                            asked.push(found);
                        }
                        blocks.push((*place, hash, asked.len() - 1));
                    }
                    Ok(_) => return Err(Error::SelfCheck { what: format!("block {name} is not where it was") }),
                    Err(error) => self.failed(*place, &error)?,
                }
            }
            taken += 1;
        }
        let mut fetched: Vec<Option<Fetched>> = asked.iter().map(|_| None).collect();
        let mut failed = Vec::new();
        self.fetch.near(&asked, &mut |number, asked, outcome| match (outcome, fetched.get_mut(number)) {
            (Ok(found), Some(slot)) => *slot = Some(found),
            (Ok(_), None) => {}
            (Err(bad), _) => failed.push((asked.at.place(), bad.error)),
        });
        failed.iter().try_for_each(|(place, error)| self.failed(*place, error))?;
        let (now, rest) = names.split_at_checked(taken).unwrap_or((names, &[]));
        for (asked, fetched) in asked.iter().zip(&fetched) {
            let Some(fetched) = fetched else { continue };
            // What was put right in memory is proven, and its arc is damaged all the same.
            if let Some(error) = &fetched.met {
                self.monitor.event(Event::Failure { path: b"", error });
            }
            self.progress.bytes += asked.at.info.frame_len();
        }
        let mut now = now.iter().peekable();
        for (place, hash, frame) in blocks {
            if self.monitor.interrupted() {
                return Err(Error::Interrupted);
            }
            let block =
                fetched.get(frame).and_then(Option::as_ref).and_then(|fetched| fetched.opened.block(place.slot()));
            let Some(block) = block else { continue };
            let to = self.out.block(block.to_vec(), hash)?;
            while now.next_if(|(at, _)| *at < place).is_some() {}
            while let Some((_, name)) = now.next_if(|(at, _)| *at == place) {
                self.moved.push((*name, to));
            }
            self.progress.files += 1;
            self.monitor.progress(*self.progress);
        }
        Ok(rest)
    }

    /// Damage keeps the arc; whatever else is wrong ends the run.
    fn failed(&mut self, place: BlockId, error: &Error) -> Result<()> {
        if !error.is_damage() {
            return Err(error.clone());
        }
        self.monitor.event(Event::Failure { path: b"", error });
        self.stay.insert(place.arc());
        Ok(())
    }
}
