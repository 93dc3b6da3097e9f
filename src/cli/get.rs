//! `assay get`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::far::{self, FromArgs, Habit};
use super::json::{with_name, with_names};
use super::mount::HealArg;
use super::ui::Ui;
use super::{Context, paths, print, print_json, show};
use crate::depot::Reach;
use crate::error::{Error, Exit, Result};
use crate::ledger::{By, LedgerWriter};
use crate::live;
use crate::mend::Mender;
use crate::monitor::Monitor as _;
use crate::reader::{self, Backup};
use crate::restore::{self, Decision, Extra, Lack, Options, Question, Report, Source, Spare, Target, VersionSource};
use crate::store::{Met, StoreOptions, Summary, Words};
use crate::text::shown;

/// Restore files and directories with all their attributes
///
/// Without --to and --orig they go into the current directory, under their last name. Whatever exists is asked about
/// before it is replaced, and a directory that exists before it gets another owner, mode or attributes; with nobody there
/// to ask it stays as it is. A file with damage is written as NAME.damaged, with holes where the bad ranges are, and the
/// exit code is 4. What could not be restored, and each attribute that the target did not keep, is named and counted, and
/// the exit code is 3. The backup dir itself is never replaced or written into.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// What to restore (relative paths count from the current directory; paths in a mount too)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The version, as r3, 3, or a folder name of the mount; if not given that of the PATH in a mount, or the newest
    #[arg(short, long, value_name = "REV")]
    rev: Option<String>,
    /// Put each path below this directory, under its last name
    ///
    /// It is made if it is absent. A symlink on the way to it is followed only if it belongs to root or to you.
    #[arg(long, value_name = "DIR", conflicts_with = "orig")]
    to: Option<PathBuf>,
    /// Put each path where it was
    #[arg(long)]
    orig: bool,
    /// Remove, without asking, what the restored directories hold and the version does not
    ///
    /// Left alone are: other file systems that are mounted in them (name a mount point as PATH to clean it), what
    /// inex.conf or --exclude leaves out of backups, and the backup dir. If the backup could not read everything
    /// below PATH, nothing is done: see --ignore-errors.
    #[arg(long)]
    delete: bool,
    /// With --delete, remove also what the version may lack only because the backup could not read it
    #[arg(long, requires = "delete")]
    ignore_errors: bool,
    /// With --delete, leave alone what matches, as inex.conf has it; name what the backup was given
    #[arg(long, value_name = "PATTERN", requires = "delete")]
    exclude: Vec<String>,
    /// Replace and change what exists without asking
    #[arg(short, long)]
    yes: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    /// What to do about a block that fails verification: `memory` reads it again past the page cache, puts a single flipped
    /// bit right in memory, and asks the destinations of dest.toml for it; `write` also mends the arc in the backup dir by
    /// it; `off` restores nothing of it
    #[arg(long, value_name = "HOW", default_value = "memory")]
    heal: HealArg,
    #[command(flatten)]
    from: FromArgs,
    /// Restore nothing: say what would be fetched from destinations, requests and bytes
    #[arg(long, conflicts_with_all = ["to", "orig", "delete"])]
    plan: bool,
}

/// How long a restore waits for what is far.
const FAR_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// Verified blocks that are kept in memory, bytes.
const CACHE_BYTES: u64 = 64 << 20;

pub fn run(context: &Context, args: &GetArgs) -> Result<Exit> {
    let dir = context.open()?;
    args.heal.meet(context, &dir)?;
    let mends = args.heal.mends(&args.from)?;
    let seen = args.from.open(context, dir, Habit::Passes)?;
    let dir = seen.dir;
    let deadline = if dir.arcs().reach() == Reach::Far { FAR_DEADLINE } else { StoreOptions::default().deadline };
    let (words, frames, copies) = (Words::Reader, seen.frames, seen.copies);
    let index = Arc::new(args.heal.index(context, &dir)?);
    let mender = || {
        let ledger = LedgerWriter::new(dir.own(), dir.keys().clone(), By::Get, &index);
        Mender::start(&dir, copies.clone(), Arc::new(ledger))
    };
    let mender = (mends && !args.plan).then(mender).transpose()?;
    let on_damage = mender.as_ref().map(Mender::told);
    let store = StoreOptions {
        cache_bytes: CACHE_BYTES,
        heal: args.heal.heal(),
        words,
        on_damage,
        deadline,
        frames,
        copies,
        ..StoreOptions::default()
    };
    let reading = reader::Options { by: Some(By::Get), store, ..reader::Options::default() };
    let backup = Backup::of(&dir, index, reading);
    let tree = &backup.tree;
    let versions = if args.delete { tree.versions()? } else { Vec::new() };
    let given = args.paths.iter().map(|path| paths::given(path.as_os_str(), dir.path())).collect::<Result<Vec<_>>>()?;
    let row = tree.version(paths::version_of(args.rev.as_deref(), &given)?)?;
    let source = VersionSource::new(&backup, row.version);
    let stored = |given: &paths::Given| paths::stored(&given.path, |reading| source.find(reading).map(drop));
    let paths = given.iter().map(|given| Ok(stored(given)?.0)).collect::<Result<Vec<_>>>()?;
    if args.plan {
        let ui = Ui::counting(context, "Planning", "files");
        let plan = reader::plan::plan(&backup, row.version, &paths, &|| ui.interrupted());
        ui.finish();
        return far::tell_plan(&plan?, args.json).map(|()| Exit::Ok);
    }
    let target = match (&args.to, args.orig) {
        (_, true) => Target::Original,
        (Some(to), _) => Target::Below(to.clone()),
        (None, false) if paths::mount_of(Path::new(".")).is_some() => {
            let what =
                "the current directory is in a mount, which takes nothing: name another with --to, or use --orig";
            return Err(Error::Usage(what.into()));
        }
        (None, false) => Target::Below(".".into()),
    };
    if args.delete && !args.ignore_errors {
        for path in &paths {
            restore::refuse_delete(&versions, row.version, path)?;
        }
    }
    let excludes = live::Excludes::parse(&dir.excludes_path(), &dir.excludes()?, &args.exclude)?;
    let spare = Spare::backup_dir(dir.path())?.with_excludes(excludes);
    let extra = if args.delete { Extra::Delete } else { Extra::Keep };
    let options = Options { paths, target, extra, spare };
    let ui = Ui::new(context, "Restoring");
    let mut confirm = |question: Question<'_>| if args.yes { Decision::All } else { ask(&ui, question) };
    let done = restore::run(&source, &options, &ui, &mut confirm);
    ui.finish();
    backup.flush_notes();
    let mended = mender.map(|mender| mender.end(ui.interrupted())).unwrap_or_default();
    let report = done?;
    let healed = Healed { mended: mended.mended, ..Healed::of(backup.store.summary()) };
    super::log::outcome(done_text(&report, &row.info.name).lines().next().unwrap_or_default());
    if !context.quiet {
        // Else it is said, and noted so.
        undone_text(&report, &healed).lines().for_each(super::log::note);
    }
    if args.json {
        print_json(&as_json(&report, &healed))?;
    } else if context.quiet {
        undone_text(&report, &healed).lines().for_each(super::say);
    } else {
        print(&(done_text(&report, &row.info.name) + &undone_text(&report, &healed)))?;
    }
    Ok(match report.exit() {
        // Nothing is missing, but the backup is not as it was.
        Exit::Ok if !healed.is_none() => Exit::Damage,
        exit => exit,
    })
}

fn ask(ui: &Ui, question: Question<'_>) -> Decision {
    let question = match question {
        Question::Replace(path) => format!("{} exists. Replace it?", shown(path)),
        Question::Change(path) => format!("{} exists. Give it the saved owner, mode and attributes?", shown(path)),
    };
    match ui.ask(&format!("{question} [y]es, [n]o, [a]ll, [q]uit:")).as_deref() {
        Some("y" | "yes") => Decision::Yes,
        Some("a" | "all") => Decision::All,
        Some("q" | "quit") => Decision::Quit,
        _ => Decision::No,
    }
}

/// Damage that was put right on the way; the first places.
struct Healed {
    /// Blocks.
    count: u64,
    /// Of these, or beside them, what is right again in the backup dir.
    mended: u64,
    /// Of the index, in the place of which the catalogs have answered: told when it was met.
    of_index: u64,
    places: Vec<Met>,
}

impl Healed {
    fn of(summary: Summary) -> Healed {
        let places = summary.places.into_iter().filter(|met| met.healed).collect();
        Healed { count: summary.healed - summary.catalogs, mended: 0, of_index: summary.catalogs, places }
    }

    fn is_none(&self) -> bool {
        self.count + self.of_index == 0
    }
}

/// Names that the text shows of each kind; the JSON has all that the report lists.
const MAX_SHOWN: usize = 10;

/// What was done.
fn done_text(report: &Report, from: &str) -> String {
    let mut text = format!(
        "Restored {}, {}, {}, {} from {from}\n",
        show::counted(report.files, "file"),
        show::counted(report.dirs, "directory"),
        show::counted(report.others, "other"),
        show::bytes(report.bytes),
    );
    for (count, one, many) in [
        (report.unchanged, "was there already, unchanged", "were there already, unchanged"),
        (report.deleted, "was removed", "were removed"),
    ] {
        if count > 0 {
            text += &format!("{} {}\n", show::number(count), if count == 1 { one } else { many });
        }
    }
    text
}

/// What was not done, or not as asked.
fn undone_text(report: &Report, healed: &Healed) -> String {
    let mut text = String::new();
    let mut line = |count: u64, one: &str, many: &str, names: &[String]| {
        if count == 0 {
            return;
        }
        text += &format!("{} {}\n", show::number(count), if count == 1 { one } else { many });
        for name in names.iter().take(MAX_SHOWN) {
            text += &format!("  {name}\n");
        }
        let more = count.saturating_sub(MAX_SHOWN as u64);
        if more > 0 && !names.is_empty() {
            text += &format!("  and {} more (--json lists them)\n", show::number(more));
        }
    };
    let first =
        |paths: &[PathBuf]| paths.iter().take(MAX_SHOWN).map(|path| shown(path).to_string()).collect::<Vec<_>>();
    let (one, many) = ("exists and was left alone (-y replaces it)", "exist and were left alone (-y replaces them)");
    line(report.kept_count, one, many, &first(&report.kept));
    let (one, many) = ("is not in the version and was left alone", "are not in the version and were left alone");
    line(report.spared_count, one, many, &[]);
    let damaged = report.damaged.iter().map(|file| {
        let ranges: Vec<String> = file.ranges.iter().map(|r| format!("{}-{}", r.start, r.end)).collect();
        format!("{}: bytes {} are lost", shown(&file.path), ranges.join(", "))
    });
    let damaged: Vec<String> = damaged.take(MAX_SHOWN).collect();
    let (one, many) = ("is damaged and was written as .damaged", "are damaged and were written as .damaged");
    line(report.damaged_count, one, many, &damaged);
    for (lack, count) in Lack::ALL.iter().zip(report.lacking_counts) {
        let (one, many) = (format!("did not get its {}", lack.noun()), format!("did not get their {}", lack.noun()));
        line(count, &one, &many, &[]);
    }
    line(report.error_count, "failed", "failed", &[]);
    let (one, many) = ("entry of the version was not restored", "entries of the version were not restored");
    line(report.missing, one, many, &[]);
    let places: Vec<String> = healed.places.iter().take(MAX_SHOWN).map(Met::to_string).collect();
    let one = "damaged block was put right while it was read (assay selftest --fix)";
    let many = "damaged blocks were put right while they were read (assay selftest --fix)";
    line(healed.count, one, many, &places);
    line(healed.mended, "is mended in the backup dir", "are mended in the backup dir", &[]);
    if report.interrupted {
        let there = report.files + report.unchanged;
        let of = report.expected.map_or(String::new(), |all| format!(" of {}", show::number(all.files)));
        text += &format!(
            "Interrupted: {}{of} there, whole. The same command goes on from here: it compares what is there and writes the \
             rest\n",
            show::counted(there, "file")
        );
    }
    text
}

fn as_json(report: &Report, healed: &Healed) -> serde_json::Value {
    let lacking: serde_json::Map<String, serde_json::Value> = Lack::ALL
        .iter()
        .zip(report.lacking_counts)
        .map(|(lack, count)| (format!("{lack:?}").to_lowercase(), count.into()))
        .collect();
    let summary = json!({
        "files": report.files,
        "dirs": report.dirs,
        "others": report.others,
        "bytes": report.bytes,
        "unchanged": report.unchanged,
        "kept": report.kept_count,
        "deleted": report.deleted,
        "spared": report.spared.iter().map(|(path, why)| {
            with_name(json!({ "why": why.to_string() }), "path", path)
        }).collect::<Vec<_>>(),
        "spared_count": report.spared_count,
        "damaged": report.damaged.iter().map(|file| {
            let damaged = json!({
                "ranges": file.ranges.iter().map(|r| [r.start, r.end]).collect::<Vec<_>>(),
                "code": file.error.code(),
            });
            with_name(with_name(damaged, "path", &file.path), "written", &file.written)
        }).collect::<Vec<_>>(),
        "damaged_count": report.damaged_count,
        "errors": report.errors.iter().map(|(path, e)| {
            with_name(json!({ "code": e.code(), "error": e.to_string() }), "path", path)
        }).collect::<Vec<_>>(),
        "error_count": report.error_count,
        "missing": report.missing,
        "lacking": report.lacking.iter().map(|(path, lack, e)| {
            let what = format!("{lack:?}").to_lowercase();
            with_name(json!({ "what": what, "code": e.code(), "error": e.to_string() }), "path", path)
        }).collect::<Vec<_>>(),
        "lacking_counts": lacking,
        "interrupted": report.interrupted,
        "expected_files": report.expected.map(|all| all.files),
        "expected_bytes": report.expected.map(|all| all.bytes),
        "healed_blocks": healed.count,
        "mended": healed.mended,
        "healed": healed.places.iter().map(|met| {
            let value = json!({ "code": met.code, "version": met.version, "what": met.what, "how": met.how });
            with_name(value, "path", &met.path)
        }).collect::<Vec<_>>(),
    });
    with_names(summary, "kept_paths", &report.kept)
}
