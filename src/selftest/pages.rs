//! v1: the index's pages and B-trees.

use super::{Exam, Level, Report};
use crate::error::{Error, Result};
use crate::findings::{Cause, Finding};
use crate::index::BadPage;

pub(super) fn check(exam: &Exam<'_>, _report: &mut Report) -> Result<()> {
    let damaged = |what: String| Error::IndexDamaged { path: exam.index.path().to_path_buf(), what };
    let found = |cause, error| exam.findings.add(Finding::new(Level::Pages, cause, error));
    match exam.index.check_pages(&|| exam.monitor.interrupted()) {
        Ok(bad) => {
            for one in bad {
                match one {
                    BadPage::Page { what } | BadPage::Tree { what } => found(Cause::Index, damaged(what)),
                    BadPage::Once { what } => found(Cause::Transient, damaged(what)),
                }
            }
        }
        Err(Error::Interrupted) => return Ok(()),
        Err(error) => found(Cause::Unchecked, error),
    }
    if let Err(error) = exam.index.read_wal() {
        found(Cause::Unchecked, error);
    }
    Ok(())
}
