//! Copies at destinations: what commands that write say of them, and `assay dest status|sync|verify|clear`.

use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::ui::Ui;
use super::{Context, print, print_json, report, say, show};
use crate::backupdir::BackupDir;
use crate::catalog::Timespec;
use crate::copies::{self, Around, Condition, Kept, PartlyHere, Remote, Report, Standing, Stands, State};
use crate::dest;
use crate::error::{Error, Exit, Result, Trouble};
use crate::monitor::{Monitor, Silent};
use crate::text::counted;

/// What copies are made with, as the library gets it.
pub(super) fn around(context: &Context, dir: &BackupDir) -> Around {
    around_of(dir, Arc::new(Ui::beside(context)))
}

/// As `around`, with what is told going elsewhere.
pub(super) fn around_of(dir: &BackupDir, monitor: Arc<dyn Monitor>) -> Around {
    let home = dir.clone();
    let open = move |settings: &dest::Settings| dest::open(&home, settings, &|name| std::env::var(name).ok());
    Around::new(dir, Arc::new(open), monitor)
}

/// What arcs are read from destinations with, no more than so many bytes of them.
pub(super) fn around_reader(dir: &BackupDir, limit_bytes: Option<u64>) -> Around {
    around_of(dir, Arc::new(Silent)).within(limit_bytes)
}

/// A destination, to read arcs from.
pub(super) fn remote(dir: &BackupDir, name: &str) -> Result<Remote> {
    Remote::open(&around_reader(dir, None), &dest::named(dir, name)?)
}

/// The backup dir, what is not kept in it read from destinations.
pub(super) fn partly_here(dir: BackupDir, around: &Around) -> BackupDir {
    dir.seen_through(|local| Arc::new(PartlyHere::of(around, local)))
}

/// Sends what a command has written, and what is still to be sent.
pub(super) fn send(context: &Context, dir: &BackupDir) -> Sent {
    context.status.begin_sending();
    let sent = copies::send(&around(context, dir));
    context.status.end();
    Sent::told(sent).keeping(context, dir, Back::Stays)
}

/// What becomes of arcs that are away, though there is room for them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Back {
    Stays,
    Fetch,
}

/// What came of all destinations.
#[derive(Default)]
pub(super) struct Sent {
    reports: Vec<Report>,
    kept: Option<Kept>,
    /// They could not even be begun with.
    failed: bool,
}

impl Sent {
    /// Says what went wrong, on standard error.
    pub fn told(sent: Result<Vec<Report>>) -> Sent {
        let reports = match sent {
            Ok(reports) => reports,
            Err(error) => {
                report(&error);
                return Sent { failed: true, ..Sent::default() };
            }
        };
        for one in reports.iter().filter(|one| !one.ignored) {
            match &one.trouble {
                Some(Error::Interrupted) | None => {}
                Some(error) => report(error),
            }
        }
        if let Some(help) = reports.iter().find_map(|one| Error::ArcAway { arc: one.away? }.help()) {
            say(&format!("help: {help}"));
        }
        Sent { reports, ..Sent::default() }
    }

    /// Removes here what destinations have, as far as `cache-size-limit` says; `back` fetches what is to be here again.
    pub fn keeping(self, context: &Context, dir: &BackupDir, back: Back) -> Sent {
        let limit_bytes = dir.config().cache_size_limit;
        let is_away = || copies::away(dir).is_ok_and(|away| !away.is_empty());
        if self.reports.is_empty() || (limit_bytes.is_none() && !(back == Back::Fetch && is_away())) {
            return self;
        }
        let around = around(context, dir);
        let kept = match (dir.lock(), limit_bytes) {
            (Ok(lock), Some(limit_bytes)) => copies::keep_within(&around, &lock, limit_bytes),
            (Ok(lock), None) => copies::bring_back(&around, &lock),
            // Who writes now does it.
            (Err(Error::Locked { .. }), _) => return self,
            (Err(error), _) => Err(error),
        };
        match kept {
            Ok(kept) => Sent { kept: Some(kept), ..self },
            Err(error) => {
                report(&error);
                Sent { failed: true, ..self }
            }
        }
    }

    pub fn exit(&self) -> Exit {
        let failed = if self.failed { Exit::FinishedWithErrors } else { Exit::Ok };
        self.reports.iter().map(Report::exit).max().unwrap_or(Exit::Ok).max(failed)
    }

    /// Lines of a summary.
    pub fn text(&self) -> String {
        let copies = self.reports.iter().map(|one| format!("{:<10}{}\n", "Copy", line(one)));
        let kept = self.kept.iter().map(|kept| {
            let (here, away) = (show::counted(kept.arcs, "arc"), show::counted(kept.away, "arc"));
            let (bytes, away_bytes) = (show::bytes(kept.bytes), show::bytes(kept.away_bytes));
            format!("{:<10}{here}, {bytes} of file data; at destinations only: {away}, {away_bytes}\n", "Here")
        });
        copies.chain(kept).collect()
    }

    /// Adds them to the summary of a command, where there are any.
    pub fn with(&self, mut value: Value) -> Value {
        if let (Some(fields), false) = (value.as_object_mut(), self.reports.is_empty()) {
            fields.insert("destinations".into(), self.reports.iter().map(as_json).collect());
            if let Some(kept) = &self.kept {
                let Kept { arcs, bytes, away, away_bytes, gone } = kept;
                let kept = json!({ "arcs": arcs, "bytes": bytes, "away_arcs": away, "away_bytes": away_bytes, "gone_arcs": gone });
                fields.insert("kept".into(), kept);
            }
        }
        value
    }
}

fn line(one: &Report) -> String {
    let mut parts = vec![match one.sent {
        0 => "nothing sent".to_string(),
        _ => format!("{} sent, {}", show::counted(one.sent, "arc"), show::bytes(one.sent_bytes)),
    }];
    parts.extend((one.proven > 0).then(|| format!("{} proven", show::number(one.proven))));
    parts.extend((one.unverified > 0).then(|| format!("{} unverified", show::number(one.unverified))));
    parts.extend((one.removed > 0).then(|| format!("{} removed", show::number(one.removed))));
    parts.push(match one.behind {
        0 if one.trouble.is_none() => "complete".into(),
        0 => "nothing noted as missing".into(),
        behind => format!("behind: {}, {}", show::counted(behind, "arc"), show::bytes(one.behind_bytes)),
    });
    if let Some(error) = &one.trouble {
        parts.push(format!("{}{}", error.code(), if one.ignored { ", ignored" } else { "" }));
    }
    format!("{}: {}", one.name, parts.join(", "))
}

fn as_json(one: &Report) -> Value {
    json!({
        "name": one.name,
        "sent": one.sent,
        "sent_bytes": one.sent_bytes,
        "proven": one.proven,
        "unverified": one.unverified,
        "behind": one.behind,
        "behind_bytes": one.behind_bytes,
        "removed": one.removed,
        "failed": one.failed,
        "ignored": one.ignored,
        "error": one.trouble.as_ref().map(Error::code),
        "message": one.trouble.as_ref().map(ToString::to_string),
    })
}

/// Show how each arc stands, in the backup dir and at each destination
///
/// ready: compared to its last byte, and not changed since. unknown: never compared, changed (size, mtime, inode), compared
/// more than 90 days ago, or it can't be asked. recovering: it is being put there. failed: other bytes were found; the
/// message has both checksums. missing: it is not there. As noted, and as names in directories tell; no service is asked
/// and nothing is read: `assay dest verify` and `assay selftest -v4` do that.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The destination's name in dest.toml; all destinations if there is none
    name: Option<String>,
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn status(context: &Context, args: &StatusArgs) -> Result<Exit> {
    let dir = context.open()?;
    let all = copies::status(&around(context, &dir), args.name.as_deref())?;
    if args.json {
        for standing in &all {
            print_json(&standing_json(standing))?;
        }
        return Ok(Exit::Ok);
    }
    let mut text = String::new();
    for standing in &all {
        let here =
            standing.here.as_ref().map_or_else(|| "not here".into(), |stands| format!("here {}", stands_text(stands)));
        let copies = standing.copies.iter().map(|copy| format!("{} {}", copy.dest, stands_text(&copy.stands)));
        let places: Vec<String> = std::iter::once(here).chain(copies).collect();
        let bytes = standing.arc_bytes.map_or_else(String::new, show::bytes);
        text += &format!("{:<14} {bytes:>10}  {}\n", standing.arc.to_string(), places.join(", "));
        let wrong = standing.copies.iter().filter(|copy| is_told(&copy.stands));
        let here = standing.here.iter().filter(|stands| is_told(stands)).map(|stands| (None, stands));
        for (dest, stands) in here.chain(wrong.map(|copy| (Some(copy.dest.as_str()), &copy.stands))) {
            let at = dest.map_or_else(String::new, |dest| format!(" at {dest}"));
            text += &format!("  {}{at}: {}\n", standing.arc, stands.why);
        }
    }
    if !context.quiet {
        let alone = all.iter().filter(|standing| !standing.copies.iter().any(|copy| copy.noted > Some(State::Sending)));
        let alone = alone.count() as u64;
        text += &format!("{}, {} without a copy\n", show::counted(all.len() as u64, "arc"), show::number(alone));
    }
    print(&text)?;
    Ok(Exit::Ok)
}

/// Why is said in a line of its own.
fn is_told(stands: &Stands) -> bool {
    matches!(stands.condition, Condition::Failed | Condition::Missing)
}

fn stands_text(stands: &Stands) -> String {
    let at = || show::time(Timespec { sec: stands.at_s as i64, nsec: 0 });
    match (stands.condition, stands.at_s) {
        (Condition::Unknown, _) => format!("unknown ({})", stands.why),
        (condition, 0) => condition.text().into(),
        (condition, _) => format!("{} ({})", condition.text(), at()),
    }
}

fn stands_json(stands: &Stands) -> Value {
    json!({ "state": stands.condition.text(), "why": stands.why, "at_s": stands.at_s })
}

fn standing_json(standing: &Standing) -> Value {
    let copies = standing.copies.iter().map(|copy| {
        let mut value = stands_json(&copy.stands);
        if let Some(fields) = value.as_object_mut() {
            fields.insert("name".into(), json!(copy.dest));
            fields.insert("noted".into(), json!(copy.noted.map(State::text)));
        }
        value
    });
    json!({
        "arc": standing.arc.to_string(),
        "arc_bytes": standing.arc_bytes,
        "here": standing.here.as_ref().map(stands_json),
        "copies": copies.collect::<Vec<_>>(),
    })
}

/// Complete destinations: send what is missing there from any good copy, replace what is wrong
///
/// An arc is read from the backup dir or, where that lacks it or has other bytes, from another destination; only what has
/// the recorded checksum is sent. Exit code 3: something is still missing; 4: damage was met.
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// The destination's name in dest.toml; all that are not off if there is none
    name: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn sync(context: &Context, args: &SyncArgs) -> Result<Exit> {
    let dir = context.open_to_save()?;
    super::meet(context, &dir)?;
    let around = around(context, &dir);
    context.status.begin_sending();
    let done = copies::sync(&around, args.name.as_deref());
    context.status.end();
    let sent = Sent::told(Ok(done?)).keeping(context, &dir, Back::Fetch);
    super::log::outcome(sent.text().trim_end());
    if args.json {
        print_json(&sent.with(json!({})))?;
    } else if !context.quiet {
        print(&sent.text())?;
    }
    Ok(sent.exit())
}

/// Read all that must be at a destination, and compare it with the recorded checksums
///
/// All of it is fetched, also what was not sent by this run or this machine. Exit code 3: something is missing; 4: something
/// has other bytes. `assay dest sync` puts both right.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The destination's name in dest.toml
    name: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn verify(context: &Context, args: &VerifyArgs) -> Result<Exit> {
    let dir = context.open()?;
    let around = around(context, &dir);
    context.status.begin("Verified", "arcs");
    let done = copies::verify(&around, &args.name);
    context.status.end();
    let found = done?;
    let verdict = format!(
        "{}: {} good, {}; {} missing, {} wrong, {} can't be told",
        args.name,
        show::counted(found.good, "arc"),
        show::bytes(found.good_bytes),
        show::number(found.missing),
        show::number(found.wrong),
        show::number(found.unknown)
    );
    super::log::outcome(&verdict);
    if args.json {
        print_json(&json!({
            "name": args.name,
            "good": found.good,
            "good_bytes": found.good_bytes,
            "missing": found.missing,
            "wrong": found.wrong,
            "unknown": found.unknown,
        }))?;
    } else if !context.quiet {
        print(&format!("{verdict}\n"))?;
    }
    if found.missing + found.wrong > 0 {
        say("help: `assay dest sync` sends what is missing, and replaces what is wrong");
    }
    Ok(match (found.wrong + found.unknown, found.missing) {
        (0, 0) => Exit::Ok,
        (0, _) => Exit::FinishedWithErrors,
        _ => Exit::Damage,
    })
}

/// Remove all copies of this backup from a destination
///
/// Refused where an arc has no other good copy: each is read here and compared or, if that is not right, looked for at the
/// other destinations. DESTID stays: the next backup sends all anew, unless the destination is off or not in dest.toml.
#[derive(Debug, Args)]
pub struct ClearArgs {
    /// The destination's name in dest.toml
    name: String,
    /// Don't ask
    #[arg(long)]
    yes: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn clear(context: &Context, args: &ClearArgs) -> Result<Exit> {
    let dir = context.open_to_save()?;
    super::meet(context, &dir)?;
    let lock = dir.lock()?;
    let ui = Ui::beside(context);
    let confirm = |objects: usize| {
        let objects = counted(objects as u64, "object");
        if args.yes {
            return Ok(true);
        }
        match ui.ask(&format!("Remove {objects} from {}? [y/N]", args.name)) {
            Some(answer) => Ok(["y", "yes"].contains(&answer.to_lowercase().as_str())),
            None => Err(Error::Usage(format!("{objects} would be removed from {}: say --yes", args.name))),
        }
    };
    let Some(cleared) = copies::clear(&around(context, &dir), &args.name, &lock, &confirm)? else {
        say("assay: nothing was removed");
        return Ok(Exit::Failed);
    };
    let verdict = format!("{}: {} removed", args.name, counted(cleared.removed, "object"));
    super::log::outcome(&verdict);
    if args.json {
        print_json(&json!({ "name": args.name, "removed": cleared.removed, "kept": cleared.kept }))?;
    } else if !context.quiet {
        print(&format!("{verdict}\n"))?;
    }
    if cleared.kept > 0 {
        let what = format!("{} may not be deleted", counted(cleared.kept, "object"));
        let trouble = Trouble::Denied(what);
        report(&Error::Dest { dest: args.name.as_str().into(), object: "".into(), trouble });
        return Ok(Exit::FinishedWithErrors);
    }
    Ok(Exit::Ok)
}
