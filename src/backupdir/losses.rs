//! What is gone and was accepted as gone: backups and selftests don't tell it again.
//!
//! Invariant: exactly what was accepted is passed over; reading it is an error as before.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::catalog::{ArcRole, Loss};
use crate::error::{Damage, Error, Result};
use crate::ids::{ArcName, ArcSerial, BlockId, FrameNo, Version};
use crate::index::Index;

/// The losses that were accepted, as errors name them.
#[derive(Debug, Default)]
pub struct Accepted {
    losses: HashSet<Loss>,
    /// From where on an arc is gone.
    arcs: BTreeMap<ArcSerial, u64>,
    serials: BTreeMap<ArcName, ArcSerial>,
    /// Which run committed an arc.
    runs: BTreeMap<ArcSerial, Version>,
    /// Runs of which a part of the catalog is gone.
    catalogs: BTreeSet<Version>,
}

impl Accepted {
    pub fn of(index: &Index) -> Result<Accepted> {
        let mut accepted =
            Accepted { losses: index.losses()?.into_iter().map(|(loss, _)| loss).collect(), ..Accepted::default() };
        if accepted.losses.is_empty() {
            return Ok(accepted);
        }
        for loss in &accepted.losses {
            if let Loss::Arc { serial, from } = loss {
                let at = accepted.arcs.entry(*serial).or_insert(*from);
                *at = (*at).min(*from);
            }
        }
        for row in index.arcs()? {
            accepted.serials.insert(row.entry.name, row.entry.serial);
            accepted.runs.insert(row.entry.serial, row.run);
            if row.entry.role == ArcRole::Catalog && accepted.is_hit(row.entry.serial) {
                accepted.catalogs.insert(row.run);
            }
        }
        Ok(accepted)
    }

    fn is_hit(&self, serial: ArcSerial) -> bool {
        let is_frame = |loss: &Loss| matches!(loss, Loss::Frame { serial: hit, .. } if *hit == serial);
        self.arcs.contains_key(&serial) || self.losses.iter().any(is_frame)
    }

    pub fn is_empty(&self) -> bool {
        self.losses.is_empty()
    }

    /// What was accepted, as text.
    pub fn texts(&self) -> Vec<String> {
        let mut losses: Vec<&Loss> = self.losses.iter().collect();
        losses.sort();
        losses.into_iter().map(|loss| self.text(loss)).collect()
    }

    /// Of this, what stands in arcs of one run.
    pub fn texts_of(&self, run: Version) -> Vec<String> {
        let of_run = |loss: &&Loss| match loss {
            Loss::Run(lost) => *lost == run,
            Loss::Arc { serial, .. } | Loss::Frame { serial, .. } | Loss::Shell(serial) => {
                self.runs.get(serial) == Some(&run)
            }
        };
        let mut losses: Vec<&Loss> = self.losses.iter().filter(of_run).collect();
        losses.sort();
        losses.into_iter().map(|loss| self.text(loss)).collect()
    }

    fn text(&self, loss: &Loss) -> String {
        let arc = |serial: &ArcSerial| {
            let name = self.serials.iter().find(|(_, known)| *known == serial).map(|(name, _)| name.to_string());
            name.unwrap_or_else(|| format!("arc number {}", serial.0))
        };
        match loss {
            Loss::Run(run) => format!("{run}: its commit record"),
            Loss::Arc { serial, from: 0 } => arc(serial),
            Loss::Arc { serial, from } => format!("{} from byte {from} on", arc(serial)),
            Loss::Frame { serial, frame } => format!("{} frame {}", arc(serial), frame.0),
            Loss::Shell(serial) => format!("{}: header, footer or trailer", arc(serial)),
        }
    }

    /// True when the loss was accepted, by itself or with more.
    pub fn holds(&self, loss: &Loss) -> bool {
        match loss {
            Loss::Arc { serial, from } => self.arcs.get(serial).is_some_and(|gone| gone <= from),
            Loss::Frame { serial, .. } | Loss::Shell(serial) => {
                self.losses.contains(loss) || self.arcs.get(serial) == Some(&0)
            }
            Loss::Run(_) => self.losses.contains(loss),
        }
    }

    /// True when a block can't be read because the index was made when the frame table of its arc was gone already.
    pub fn covers_block(&self, error: &Error, block: BlockId, index: &Index) -> bool {
        let place = index.location(block).unwrap_or(block);
        matches!(error, Error::IndexRow { .. })
            && self.arcs.contains_key(&place.arc())
            && index.frame_chunk(place.arc(), place.frame()).is_err()
    }

    /// True when what the error tells was accepted. `frames`: those that it is about, if they are several.
    pub fn covers(&self, error: &Error, frames: Option<(FrameNo, u32)>, index: &Index) -> bool {
        if self.losses.is_empty() {
            return false;
        }
        match error {
            Error::CommitDamaged { run, .. } => self.losses.contains(&Loss::Run(*run)),
            Error::Arc { place, damage } => {
                let Some(&serial) = self.serials.get(&place.arc) else { return false };
                let gone = self
                    .arcs
                    .get(&serial)
                    .is_some_and(|from| *from == 0 || (*damage != Damage::Missing && place.offset >= *from));
                let whole = matches!(damage, Damage::Missing | Damage::Truncated { .. });
                gone || match frames.or(place.frame.map(|frame| (frame, 1))) {
                    Some((first, count)) => (first.0..first.0.saturating_add(count))
                        .all(|no| self.losses.contains(&Loss::Frame { serial, frame: FrameNo(no) })),
                    None => !whole && self.losses.contains(&Loss::Shell(serial)),
                }
            }
            Error::DirectoryLost { dirno, version } => {
                let since = index.lost_since(*version, *dirno);
                since.is_ok_and(|since| since.is_some_and(|since| self.catalogs.contains(&since)))
            }
            Error::ExtentsLost { .. } => !self.catalogs.is_empty(),
            _ => false,
        }
    }
}
