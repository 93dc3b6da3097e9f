//! `assay mount`: the versions of a backup as read-only trees in which each read is verified.

use std::cell::Cell;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::far::{self, FromArgs, Habit};
use super::ui::Ui;
use super::{paths, show};
use serde_json::Value;

use super::json::with_name;
use super::{Context, open_index};
use crate::backupdir::{BackupDir, config::parse_size};
use crate::error::{Error, Exit, Result};
use crate::fuse::{Access, Caching};
use crate::index::Index;
use crate::monitor::Monitor as _;
use crate::mount::{self, Hiding, MountOptions, Ownership, Point};
use crate::os::process::{Inherited, Side, Started, Starter, daemonize};
use crate::own::OwnDir;
use crate::reader::{self, Backup};
use crate::store::{Heal, StoreOptions, Summary};
use crate::text::shown;
use crate::tree::View;
use crate::vfs::{Hashing, VirtualXattrs};

/// Show all versions as read-only trees below MNT and verify every block that is read.
///
/// MNT/latest is the newest version, MNT/YYYY-MM-DD-HHMM-rN (UTC) each of them, with full paths below:
/// MNT/latest/home/ann/notes. New backups appear while mounted. What is read is exactly what was backed up;
/// where stored bytes are damaged the read fails with an I/O error instead, and the message names the place. So
/// `diff -r --no-dereference /home/ann MNT/latest/home/ann` proves that a restore would bring everything back.
///
/// The mount ends with Ctrl-C, `fusermount3 -u MNT` or `umount MNT`, and then says what was read and verified.
/// SIGUSR1 makes it say so at once. Exit code 4 means that damage was met.
#[derive(Debug, Clone, Args)]
#[command(override_usage = "assay mount [OPTIONS] <MNT>\n       assay mount [OPTIONS] --plan <PATH>")]
pub struct MountArgs {
    /// An existing empty directory outside of the backup dir.
    #[arg(value_name = "MNT", required_unless_present = "plan")]
    pub point: Option<PathBuf>,
    /// Let other users in too, each as far as the saved permissions go.
    ///
    /// Unless root mounts, /etc/fuse.conf must say `user_allow_other`.
    #[arg(short = 'a', long)]
    pub allow_other: bool,
    /// Show all files as yours, so that you can read what belonged to others.
    #[arg(long, conflicts_with = "allow_other")]
    pub owner_me: bool,
    /// Show in each version only what that backup saved as new or changed.
    #[arg(long)]
    pub changed: bool,
    /// Show only this version: r3, 3, latest or a folder name.
    #[arg(short = 'r', long, value_name = "REV")]
    pub rev: Option<String>,
    /// Keep nothing in the kernel's page cache: what is read again is verified again, unless that was within the
    /// last second.
    #[arg(long)]
    pub direct: bool,
    /// What to do about a block that fails verification: `memory` (or `on`) reads it again past the page cache, puts a
    /// single flipped bit right in memory, and asks the destinations of dest.toml for it; what a damaged index can't tell is
    /// answered from the catalogs. `write` also mends the arc in the backup dir, beside the readers; `off` shows the damage
    /// as it is.
    #[arg(long, value_name = "HOW", default_value = "memory")]
    pub heal: HealArg,
    #[command(flatten)]
    pub from: FromArgs,
    /// Mount nothing: say what reading all of PATH would fetch from destinations, requests and bytes.
    #[arg(long, value_name = "PATH", conflicts_with = "point")]
    pub plan: Option<PathBuf>,
    /// With --from: seconds after which new versions are looked for at the destination.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..), requires = "from")]
    pub follow: u64,
    /// Memory for verified blocks.
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = parse_size)]
    pub cache_mem: u64,
    /// Compare the SHA-1 of long files, too, while they are read from start to end.
    ///
    /// Small files are always compared, those of one block by its hash. Every block is verified either way; this finds
    /// an index that lists the wrong blocks. It makes reading long files about a third slower.
    #[arg(long)]
    pub hash_files: bool,
    /// List the attributes system.assay.sha1, .version, .logid, .blocks, .verified, .health and .damage of each file.
    ///
    /// By name (`getfattr -n system.assay.health FILE`) they are there always, and nothing that was saved can stand in
    /// their place. Listed, `getfattr -d -m - FILE` prints them.
    #[arg(long)]
    pub list_xattrs: bool,
    /// Mount also where there are files, which the mount then hides.
    #[arg(long)]
    pub nonempty: bool,
    /// Succeed, and do nothing, where this backup dir is mounted on MNT already.
    #[arg(long)]
    pub unless_mounted: bool,
    /// Return once the mount is ready and go on in the background; messages go to logs/mount.log of the backup dir.
    #[arg(long)]
    pub background: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HealArg {
    #[value(alias = "on")]
    Memory,
    Write,
    Off,
}

impl HealArg {
    pub fn heal(self) -> Heal {
        match self {
            HealArg::Memory | HealArg::Write => Heal::On,
            HealArg::Off => Heal::Off,
        }
    }

    /// What this machine remembers must not contradict the backup dir, as far as its index can be read.
    pub fn meet(self, context: &Context, dir: &BackupDir) -> Result<()> {
        match self {
            HealArg::Memory | HealArg::Write => super::meet_first(context, dir),
            HealArg::Off => super::meet(context, dir),
        }
    }

    /// The index, with what answers in its place.
    pub fn index(self, context: &Context, dir: &BackupDir) -> Result<Index> {
        match self {
            HealArg::Memory | HealArg::Write => super::open_met(context, dir),
            HealArg::Off => open_index(dir),
        }
    }

    /// # Errors
    /// `USAGE` where it would write to a backup dir that is not what is read.
    pub fn mends(self, from: &FromArgs) -> Result<bool> {
        match (self, &from.from) {
            (HealArg::Write, Some(name)) => Err(Error::Usage(format!(
                "--heal write mends the backup dir, and --from {name} reads elsewhere: `assay selftest -v4 --fix` mends both"
            ))),
            (how, _) => Ok(how == HealArg::Write),
        }
    }
}

impl MountArgs {
    fn options(&self) -> MountOptions {
        MountOptions {
            access: if self.allow_other { Access::Everyone } else { Access::Owner },
            caching: if self.direct { Caching::Direct } else { Caching::PageCache },
            ownership: if self.owner_me { Ownership::Mounter } else { Ownership::Saved },
            view: if self.changed { View::Changed } else { View::Whole },
            version: self.rev.clone(),
            heal: self.heal.heal(),
            mends: false,
            cache_bytes: self.cache_mem,
            hashing: if self.hash_files { Hashing::All } else { Hashing::Small },
            virtual_xattrs: if self.list_xattrs { VirtualXattrs::Listed } else { VirtualXattrs::Unlisted },
            threads: 0,
            copies: Vec::new(),
            frames: None,
        }
    }
}

/// Runs until the mount ends (or, with `--background`, until it is ready).
pub fn run(context: &Context, args: &MountArgs) -> Result<Exit> {
    let Some(point) = args.point.as_deref() else { return plan(context, args) };
    // Before anything is opened.
    let inherited = if args.background { Inherited::now().ok() } else { None };
    if args.unless_mounted && mount::is_mounted(&context.dir, point) {
        return Ok(Exit::Ok);
    }
    let backup = context.open()?;
    args.heal.meet(context, &backup)?;
    let hiding = if args.nonempty { Hiding::Allowed } else { Hiding::Refused };
    let point = Point::check(backup.path(), point, hiding)?;
    if !args.background {
        let summary = serve(context, &backup, &point, args, || {
            if !context.quiet {
                super::say(&format!("{} is mounted on {}; Ctrl-C ends it", shown(&backup.path()), shown(point.path())));
            }
            Ok(())
        })?;
        return Ok(exit(&summary));
    }
    let failed = |error: &std::io::Error| Error::io("go into the background at", point.path(), error);
    // No thread and no open index may exist before this.
    match daemonize().map_err(|error| failed(&error))? {
        // The run goes on, and is logged, in the other process.
        Side::Front(waiter) => match waiter.wait().map_err(|error| failed(&error))? {
            Started::Ready => Ok(Exit::Ok),
            Started::Failed(code, message) => {
                eprint!("{message}");
                Ok(exit_of(code))
            }
            Started::Died => Ok(Exit::Failed),
        },
        Side::Back(starter) => {
            if let Some(inherited) = inherited {
                inherited.close();
            }
            let starter = Cell::new(Some(starter));
            let result = serve(context, &backup, &point, args, || match starter.take() {
                Some(starter) => leave_terminal(starter, backup.own(), point.path()),
                None => Ok(()),
            });
            match (result, starter.take()) {
                // The front process says it, for the terminal is its own.
                (Err(error), Some(starter)) => {
                    let help = error.help().map_or_else(String::new, |help| format!("help: {help}\n"));
                    let message = format!("assay: {}: {error}\n{help}", error.code());
                    super::log::note(&message);
                    starter.failed(error.exit_code() as u8, &message).map_err(|error| failed(&error))?;
                    Ok(error.exit_code())
                }
                (result, _) => Ok(exit(&result?)),
            }
        }
    }
}

fn plan(context: &Context, args: &MountArgs) -> Result<Exit> {
    let dir = context.open()?;
    super::meet(context, &dir)?;
    let seen = args.from.open(context, dir, Habit::Keeps)?;
    let store = StoreOptions { frames: seen.frames.clone(), ..StoreOptions::default() };
    let options = reader::Options { store, ..reader::Options::default() };
    let backup = Backup::of(&seen.dir, open_index(&seen.dir)?, options);
    let row = backup.tree.version(args.rev.as_deref().unwrap_or("latest"))?;
    let given = args.plan.iter().map(|path| paths::given(path.as_os_str(), seen.dir.path()));
    let found = |path: &[u8]| backup.tree.find(row.version, path).map(drop);
    let stored = given.map(|given| Ok(paths::stored(&given?.path, found)?.0)).collect::<Result<Vec<_>>>()?;
    let ui = Ui::counting(context, "Planning", "files");
    let planned = reader::plan::plan(&backup, row.version, &stored, &|| ui.interrupted());
    ui.finish();
    far::tell_plan(&planned?, args.json).map(|()| Exit::Ok)
}

fn serve(
    context: &Context,
    backup: &BackupDir,
    point: &Point,
    args: &MountArgs,
    ready: impl FnOnce() -> Result<()>,
) -> Result<Summary> {
    context.begin_log(backup.own());
    let seen = args.from.open(context, backup.clone(), Habit::Keeps)?;
    let backup = &seen.dir;
    let index = args.heal.index(context, backup)?;
    let show = |title: &str, summary: &Summary| {
        if args.json {
            // A closed stdout is no reason to fail.
            let _ = writeln!(std::io::stdout().lock(), "{}", seen.with_traffic(summary_json(summary)));
        } else if !context.quiet || summary.damage > 0 {
            summary_text(title, summary).lines().for_each(super::say);
            seen.traffic_text().iter().for_each(|line| super::say(&format!("  fetched   {line}")));
        }
    };
    let _following = seen.keep_following(Duration::from_secs(args.follow));
    let (copies, frames, mends) = (seen.copies.clone(), seen.frames.clone(), args.heal.mends(&args.from)?);
    let options = MountOptions { copies, frames, mends, ..args.options() };
    let summary = mount::serve(backup, index, point, &options, ready, |summary| {
        show(&format!("{} so far", shown(point.path())), summary);
    })?;
    show(&format!("{} is unmounted", shown(point.path())), &summary);
    super::log::outcome(&format!(
        "{} read, {} verified, {} met",
        show::counted(summary.files_read, "file"),
        show::counted(summary.blocks_verified, "block"),
        show::counted(summary.damage, "damaged place")
    ));
    Ok(summary)
}

/// Where no log can be written there is none; a log that is not ours is an error.
fn leave_terminal(starter: Starter, dir: &OwnDir, point: &Path) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("go into the background at", point, &error);
    let log = match super::log::open_mount_log(dir) {
        Err(Error::Io { .. }) => OpenOptions::new().write(true).open("/dev/null").map_err(failed)?,
        Err(Error::DirShared { .. }) if dir.is_foreign() => {
            OpenOptions::new().write(true).open("/dev/null").map_err(failed)?
        }
        log => log?,
    };
    std::env::set_current_dir("/").map_err(failed)?;
    starter.ready(&log).map_err(failed)
}

fn exit(summary: &Summary) -> Exit {
    if summary.damage > 0 { Exit::Damage } else { Exit::Ok }
}

fn exit_of(code: u8) -> Exit {
    let known = [
        Exit::Ok,
        Exit::Failed,
        Exit::Usage,
        Exit::FinishedWithErrors,
        Exit::Damage,
        Exit::NotABackupDir,
        Exit::Locked,
        Exit::WrongKey,
        Exit::Interrupted,
    ];
    known.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Exit::Failed)
}

/// The counters by their names, and each damaged place with its path.
fn summary_json(summary: &Summary) -> Value {
    let mut value = serde_json::to_value(summary).unwrap_or_default();
    let places = value.get_mut("places").and_then(Value::as_array_mut);
    for (place, met) in places.into_iter().flatten().zip(&summary.places) {
        *place = with_name(place.take(), "path", &met.path);
    }
    value
}

fn summary_text(title: &str, summary: &Summary) -> String {
    let mut text = format!("{title}\n");
    let at_least = if summary.files_inexact { "at least " } else { "" };
    // Writing to a String can't fail.
    let _ = writeln!(
        text,
        "  read      {at_least}{}, {at_least}{} of them wholly; {}",
        show::counted(summary.files_read, "file"),
        show::number(summary.files_wholly_read),
        show::bytes(summary.bytes_read)
    );
    let (blocks, bytes) = (show::counted(summary.blocks_verified, "block"), show::bytes(summary.bytes_verified));
    let _ = writeln!(text, "  verified  {blocks}, {bytes}");
    match summary.damage {
        0 => text.push_str("  damage    none met\n"),
        damage => {
            let at_least = if summary.damage_inexact { "at least " } else { "" };
            let again = summary.healed - summary.repaired - summary.elsewhere - summary.catalogs;
            let places = show::counted(damage, "place");
            let _ = write!(text, "  damage    {at_least}{places}, {at_least}{again} of them right when read again");
            for (count, how) in [
                (summary.repaired, "repaired in memory"),
                (summary.elsewhere, "read from another copy"),
                (summary.catalogs, "answered from the catalogs"),
            ] {
                let _ = if count > 0 { write!(text, ", {at_least}{count} {how}") } else { Ok(()) };
            }
            if summary.mended > 0 {
                let _ = write!(text, "; {} mended in the backup dir", show::number(summary.mended));
            }
            text.push('\n');
        }
    }
    for met in &summary.places {
        let path = if met.path.is_empty() { "(path unknown)".into() } else { shown(&met.path).to_string() };
        let version = met.version.map_or_else(String::new, |version| format!(" in r{version}"));
        let how = if met.healed { format!("; {}", met.how) } else { String::new() };
        let _ = writeln!(text, "    {} {path}{version}: {}{how}", met.code, met.what);
    }
    if (summary.places.len() as u64) < summary.damage {
        let _ = writeln!(text, "    … and {} more", summary.damage - summary.places.len() as u64);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Met;

    #[test]
    fn the_summary_names_each_damaged_place() {
        let place = Met {
            code: "ARC_TAG_MISMATCH",
            path: b"/home/ann/x".to_vec(),
            version: Some(3),
            what: "arc.3.1 frame 7".into(),
            healed: true,
            how: "right when read again".into(),
        };
        let summary =
            Summary { damage: 4, healed: 3, repaired: 1, elsewhere: 1, places: vec![place], ..Summary::default() };
        let text = summary_text("mnt", &summary);
        assert!(
            text.contains("ARC_TAG_MISMATCH /home/ann/x in r3: arc.3.1 frame 7; right when read again\n"),
            "{text}"
        );
        let counts = "4 places, 1 of them right when read again, 1 repaired in memory, 1 read from another copy\n";
        assert!(text.contains(counts) && text.contains("and 3 more"), "{text}");
        assert_eq!(exit(&summary), Exit::Damage);
        let text = summary_text("mnt", &Summary { damage_inexact: true, ..summary });
        assert!(text.contains("at least 4 places") && text.contains("and 3 more"), "{text}");
        assert!(summary_text("mnt", &Summary::default()).contains("damage    none met"));
    }

    #[test]
    fn exit_codes_survive_the_way_through_the_fork() {
        assert_eq!(exit_of(Exit::WrongKey as u8), Exit::WrongKey);
        assert_eq!(exit_of(99), Exit::Failed);
    }
}
