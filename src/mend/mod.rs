//! What `selftest --fix` does to a backup dir: each act alone, proven before and after.
//!
//! - `index`: the index is made anew from the catalogs.
//! - `arcs`: what is gone or cut is brought back from other copies.
//! - `frames`: what was found is put right where it is, or found again elsewhere and sealed anew.
//! - `mender`: the same of what readers meet, but for live files.
//! - `rewrite_frame`, `rewrite_shell`: a part of an arc is written in place, only with exactly the recorded bytes.
//! - `recut`: blocks whose bytes are known again are sealed into a new arc, by a run without a version.
//! - `originals`, `read_original`: where the live source may still have a lost block.
//!
//! Invariants: (key, nonce) never seals other bytes than the first time; what is replaced stands beside the arc as
//! `.bad` until the new bytes were read back and proven; whatever fails leaves the backup dir as it was, or with
//! both; a kill at any instant does too.

mod arcs;
mod frames;
mod index;
mod mender;
mod originals;
mod recut;
mod replace;
mod rewrite;

use std::sync::Arc;

use crate::backupdir::BackupDir;
use crate::depot::Depot;
use crate::error::{Error, Result};
use crate::findings::{Cause, Finding, Findings, Level, Part, Spot};
use crate::ids::CopyId;
use crate::ledger::LedgerWriter;
use crate::monitor::Monitor;

pub use mender::Mender;
pub use originals::{Original, originals, read_original};
pub use recut::recut;
#[cfg(test)]
pub use recut::{Recut, recorded};
pub use rewrite::{FrameAt, rewrite_frame, rewrite_shell};

/// What all acts share.
#[derive(Clone, Copy)]
pub struct Mending<'a> {
    pub dir: &'a BackupDir,
    pub ledger: &'a LedgerWriter,
    pub monitor: &'a dyn Monitor,
    /// Other copies of the arcs, in the order in which they are asked.
    pub copies: &'a [Arc<dyn Depot>],
    /// All that v2 finds wrong with what is in place when it is called.
    pub look_again: &'a dyn Fn() -> Result<Vec<Finding>>,
}

/// Corrects what can be corrected; what was done stands in the findings afterwards.
///
/// # Errors
/// `LOCKED`; what keeps the index from being read or written.
pub fn mend(mending: Mending<'_>, findings: &Findings) -> Result<()> {
    // What the index is made from comes first; where it does not open nothing tells what that must be.
    if !mending.copies.is_empty() && mending.dir.open_index().is_ok() {
        findings.work_on(|findings| frames::bring_back(mending, findings))?;
    }
    // An index that is wrong is made anew before anybody goes by it; a catalog frame that can be put right needs no base.
    let index_first = findings.any(Cause::Index);
    if index_first {
        findings.work_on(|findings| index::mend(mending, findings))?;
    }
    findings.work_on(|findings| frames::mend(mending, findings))?;
    if !index_first {
        findings.work_on(|findings| index::mend(mending, findings))?;
    }
    Ok(())
}

/// Puts right, of all that was found, what other copies have, or where one bit was flipped. Where another process mends, that does.
///
/// # Errors
/// What keeps the index from being read.
pub fn heal_all(mending: Mending<'_>, findings: &Findings) -> Result<()> {
    if mending.dir.open_index().is_err() {
        return Ok(());
    }
    findings.work_on(|findings| match frames::heal(mending, findings) {
        Err(Error::Locked { .. }) => Ok(()),
        done => done,
    })
}

/// Puts right what readers have met, from other copies or where one bit was flipped. What came of it stands in the findings
/// that it gives.
///
/// # Errors
/// As `mend`.
pub fn heal(mending: Mending<'_>, met: &[Error]) -> Result<Vec<Finding>> {
    let findings = Findings::default();
    for error in met {
        let finding = Finding::of(Level::LocalBlocks, error.clone());
        let frame = finding.place.as_ref().and_then(|place| place.frame);
        let part = frame.map_or(Part::Whole, |first| Part::Frames { first, count: 1 });
        findings.add(Finding { spot: Some(Spot { copy: CopyId::LOCAL, serial: None, part }), ..finding });
    }
    findings.work_on(|findings| frames::heal(mending, findings))?;
    Ok(findings.take().0)
}
