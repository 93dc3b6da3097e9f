//! `assay retain`.

use clap::{ArgGroup, Args};

use super::rm::{as_json, exit, remove, summary_text};
use super::{Context, print, print_json, show};
use crate::error::{Exit, Result};
use crate::index::VersionRow;
use crate::prune::rules::{self, Last, Rules, Schedule, parse_last, parse_schedule};
use crate::prune::versions::{OnProtected, Request};
use crate::prune::{Mode, Protection};

/// Keep versions by rules, and remove all others at once
///
/// A version stays if any rule keeps it; the newest always does. Days, weeks (from Monday), months, quarters and years are
/// those of the local time zone, and the time of a version is when it was begun. Of each period the newest version counts,
/// and periods without a version are passed over. The room comes back with `assay pack`.
///
/// Without --force a version stays too if it is the newest that has a path which no other version that stays has.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("rules").required(true).multiple(true).args(["schedule", "last"]))]
pub struct RetainArgs {
    /// Keep one version of each of so many hours (h), days (d), weeks (w), months (m), quarters (q), years (y)
    ///
    /// 7d4w12m1y keeps one of each of 7 days, of 4 weeks, of 12 months, and of one year.
    #[arg(short, long, value_name = "SCHEDULE", value_parser = parse_schedule)]
    schedule: Option<Schedule>,
    /// Keep the last 30 versions (30), or those of the last two weeks (2w)
    #[arg(short = 't', long, value_name = "NUMBER|AGE", value_parser = parse_last)]
    last: Option<Last>,
    /// Keep versions with this tag
    #[arg(long, value_name = "TAG", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    keep_tag: Vec<String>,
    /// Remove also versions that hold the last copy of a path
    #[arg(long)]
    force: bool,
    /// Say what would go, and why; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl RetainArgs {
    pub fn dry_run(&self) -> bool {
        self.dry_run
    }
}

pub fn run(context: &Context, args: &RetainArgs) -> Result<Exit> {
    let dir = context.open()?;
    super::meet(context, &dir)?;
    let rules = Rules { schedule: args.schedule.clone(), last: args.last, tags: args.keep_tag.clone() };
    let now = jiff::Zoned::now();
    let request = Request {
        choose: &|all| Ok(rules::judge(all, &rules, &now)),
        protection: if args.force { Protection::Off } else { Protection::On },
        on_protected: OnProtected::Keep,
        mode: if args.dry_run { Mode::DryRun } else { Mode::Do },
    };
    let (outcome, ui, sent) = remove(context, "Retaining", &dir, &request)?;
    if args.json {
        print_json(&sent.with(as_json(&outcome, args.dry_run)))?;
    } else if !context.quiet {
        let mut text = String::new();
        for verdict in &outcome.verdicts {
            let VersionRow { version, info, .. } = &verdict.version;
            let word = if verdict.keep { "keep" } else { "drop" };
            text += &format!("{:<6} {}  {word}  {}\n", version.to_string(), show::time(info.started), verdict.why);
        }
        print(&(text + &summary_text(&outcome, args.dry_run) + &sent.text()))?;
    }
    Ok(exit(&ui, outcome.left_to_do).max(sent.exit()))
}
