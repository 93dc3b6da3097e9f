//! What reading paths would fetch from destinations, told before anything is fetched.
//!
//! Invariant: only the index is asked; what can't be told from it is counted, and told when it is read.

use super::walk::{Met, Walk};
use super::{Backup, wanted};
use crate::catalog::{Child, Kind};
use crate::copies::{Estimate, Traffic};
use crate::error::Result;
use crate::ids::{Logid, Version};
use crate::tree::Found;

/// Bytes of a file that are looked up at a time.
const STEP_BYTES: u64 = 64 << 20;

/// What it comes to.
#[derive(Debug, Default)]
pub struct Plan {
    pub files: u64,
    pub file_bytes: u64,
    /// Files and directories that the index can't tell of.
    pub unknown: u64,
    /// Arcs that are read at destinations.
    pub far_arcs: u64,
    pub traffic: Traffic,
}

/// Plans a read of everything in and below paths of a version.
///
/// # Errors
/// `NO_PATH`; `INTERRUPTED`.
pub fn plan(backup: &Backup, version: Version, paths: &[Vec<u8>], stop: &dyn Fn() -> bool) -> Result<Plan> {
    let (mut plan, mut estimate) = (Plan::default(), Estimate::default());
    let walk = Walk { tree: &backup.tree, version, since: None, stop };
    for path in paths {
        match backup.tree.find(version, path)? {
            Found::Node(logid, _) => plan.file(backup, logid, &mut estimate),
            Found::Dir(dirno) => walk.below(dirno, path, &mut |_, met| {
                match met {
                    Met::Entry(listed) => match listed.entry.child {
                        Child::Node(logid) => plan.file(backup, logid, &mut estimate),
                        Child::Dir(_) => {}
                    },
                    Met::Lost(..) => plan.unknown += 1,
                }
                Ok(())
            })?,
        }
    }
    (plan.far_arcs, plan.traffic) = (estimate.arcs(), estimate.traffic());
    Ok(plan)
}

impl Plan {
    fn file(&mut self, backup: &Backup, logid: Logid, estimate: &mut Estimate) {
        let mut look = || -> Result<Option<u64>> {
            let node = backup.tree.node(logid)?;
            if node.attr.kind != Kind::File {
                return Ok(None);
            }
            let mut at = 0;
            while at < node.attr.size {
                let pieces = backup.tree.segments(&node, at, STEP_BYTES.min(node.attr.size - at))?;
                for want in wanted(&pieces) {
                    backup.store.far_range(want.block)?.into_iter().for_each(|(arc, arc_bytes, range)| {
                        estimate.add(arc, arc_bytes, range);
                    });
                }
                at += STEP_BYTES;
            }
            Ok(Some(node.attr.size))
        };
        match look() {
            Ok(Some(size)) => {
                self.files += 1;
                self.file_bytes += size;
            }
            Ok(None) => {}
            Err(_) => self.unknown += 1,
        }
    }
}
