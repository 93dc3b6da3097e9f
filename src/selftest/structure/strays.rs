//! Files with names of arcs that the index does not list: commits that it does not know, arcs that no commit names, and
//! what does not belong here at all.
//!
//! Invariant: what a backup is writing, or was cut while writing, is known by the index as begun, and is no finding.

use std::collections::BTreeMap;

use super::{Advice, Cause, Check, Report, Subject};
use crate::backupdir::{Survey, What, arcs};
use crate::error::{Error, Result};
use crate::ids::Version;
use crate::selftest::Scope;
use crate::text::counted;

pub fn check(check: &Check<'_>, report: &mut Report) -> Result<()> {
    let exam = check.exam;
    let asked = |found: &&crate::backupdir::Unlisted| match &exam.options.scope {
        Scope::Everything => exam.options.rev.is_none(),
        Scope::Arcs(names) => names.contains(&found.name),
        Scope::Paths(_) | Scope::Blocks(_) => false,
    };
    let open = |survey: &Survey| {
        let in_doubt = |what: &What| matches!(what, What::Commit | What::BadCommit(_) | What::Unclaimed);
        survey.unlisted.iter().any(|found| in_doubt(&found.what))
    };
    let mut survey = match Survey::take(exam.dir, &exam.index) {
        // What is wrong with the index was told.
        Err(error) if error.is_damage() && exam.findings.any(Cause::Index) => return Ok(()),
        taken => taken?,
    };
    let mut busy = false;
    if open(&survey) {
        // A backup that was just ending has told the index when it lets go of the lock.
        busy = exam.dir.is_locked();
        survey = Survey::take(exam.dir, &exam.index)?;
    }
    let mut unknown: Vec<Version> = Vec::new();
    let mut unclaimed: BTreeMap<Version, Vec<String>> = BTreeMap::new();
    let (mut left, mut old) = (Vec::new(), 0u64);
    for found in survey.unlisted.iter().filter(asked) {
        let run = found.name.version;
        match &found.what {
            What::Commit => unknown.push(run),
            What::BadCommit(error) if !busy => {
                check.advise(Subject::Commit(run), error.clone(), Cause::Catalog, Vec::new(), Advice::PutCommitBack);
            }
            What::Unclaimed => unclaimed.entry(run).or_default().push(found.name.to_string()),
            What::Leftover(_) => left.push(found.file_name()),
            What::Old | What::Dropped => old += 1,
            What::BadCommit(_) => {}
            What::Misnamed { .. } | What::Foreign | What::Unknown | What::Unreadable(_) => {
                let cause = match &found.what {
                    What::Foreign => Cause::Key,
                    What::Unreadable(_) => Cause::Unchecked,
                    _ => Cause::Stray,
                };
                if let Some(error) = found.stray(exam.dir) {
                    check.advise(Subject::Stray(found.name), error, cause, Vec::new(), Advice::AsItSays);
                }
            }
        }
    }
    if let (Some(first), Some(last)) = (unknown.first(), unknown.last()) {
        let runs = if first == last { first.to_string() } else { format!("{first} to {last}") };
        if busy {
            report.notes.push(format!("{runs} is not in the index yet: a backup is just ending"));
        } else {
            let what = format!("{runs} is committed, and the index does not know it: it is older than the arcs");
            check.advise(Subject::Behind, check.row_error(what), Cause::Index, Vec::new(), Advice::AddedNext);
        }
    }
    for (run, names) in unclaimed {
        let commit = arcs::commit_arc(run);
        let there = counted(names.len() as u64, "arc");
        let what = format!("{commit} is missing, and its run left {there}: {}", few(&names));
        let error = Error::CommitDamaged { run, what };
        check.advise(Subject::Commit(run), error, Cause::Missing, Vec::new(), Advice::PutCommitBack);
    }
    if let Some(first) = left.first() {
        report.notes.push(format!(
            "not looked at: {} of no commit, first {first}: a backup is running, or was cut; the next one uses or \
             removes what a cut one left",
            counted(left.len() as u64, "arc")
        ));
    }
    if old > 0 {
        report.notes.push(format!("not looked at: {} that no commit in the index names", counted(old, "arc")));
    }
    Ok(())
}

fn few(names: &[String]) -> String {
    let listed = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 3 { format!("{listed}, …") } else { listed }
}
