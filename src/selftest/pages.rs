//! v1: the index's pages and B-trees.

use super::{Exam, Report};
use crate::error::Result;

pub(super) fn check(_exam: &Exam<'_>, _report: &mut Report) -> Result<()> {
    Ok(())
}
