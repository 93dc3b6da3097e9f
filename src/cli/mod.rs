//! The command line: one file a command. Only this module prints, reads the environment and asks.
//!
//! Invariants: results go to standard output, everything else to standard error; every error is one line with its
//! code and at most one `help:` line; a closed pipe is no error.

mod backup;
mod changes;
mod compare;
mod completions;
mod copies;
mod coverage;
mod damage;
mod dest;
mod diff;
mod far;
mod first_steps;
mod get;
mod guesses;
mod init;
mod json;
mod log;
mod ls;
mod mount;
mod noted;
mod pack;
mod passphrase;
mod paths;
mod recover;
mod retain;
mod rm;
mod selftest;
mod show;
mod stats;
mod status;
mod ui;
mod versions;
mod watch;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::{FalseyValueParser, OsStringValueParser};
use clap::{Parser, Subcommand};

use crate::backupdir::{BackupDir, LockOfKey, unknown_commits};
use crate::error::{Error, Exit, Result};
use crate::index::Index;
use crate::memory::{self, Memory, OnChange};
use crate::own::{OwnDir, Sharing};
use crate::standin;
use crate::text::{one_line, shown};
use passphrase::{Passphrase, parse_source};
use status::{ProgressArg, Status, Watch};

/// Backs up directories and mounts the backups: every block that is read is verified first.
#[derive(Debug, Parser)]
#[command(name = "assay", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// The backup dir
    #[arg(short = 'c', long = "dir", global = true, env = "ASSAY_DIR", value_name = "DIR", default_value = "~/assay")]
    dir: PathBuf,
    /// Say only what went wrong
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Where the passphrase of the key is from: ask, env, file:PATH, cmd:COMMAND or cred:NAME
    ///
    /// `env` is the variable ASSAY_PASSPHRASE, `file:` a file that only its owner can read, `cmd:` what a command of the
    /// shell prints, `cred:` a credential that systemd hands to a unit. A newline at the end does not count. If nothing
    /// is said, it is the variable where that is set, else it is asked for. With `init` the new key gets it; without,
    /// the key of a new backup dir has none.
    #[arg(long, global = true, value_name = "FROM", env = "ASSAY_PASSPHRASE_FROM", value_parser = parse_source)]
    passphrase: Option<passphrase::Source>,
    /// How progress is shown
    #[arg(long, global = true, value_name = "HOW", default_value = "auto")]
    progress: ProgressArg,
    /// Use the backup dir although others can write to it, or own it: trust them all
    #[arg(long, global = true, env = "ASSAY_ALLOW_SHARED_DIR", value_parser = FalseyValueParser::new())]
    allow_shared_dir: bool,
    /// Go on although the backup dir has another history than this machine, or this mount, has seen
    ///
    /// As after an older copy of it was put back. What is there now is remembered from then on.
    #[arg(long, global = true)]
    accept_history: bool,
    /// Where to remember the newest commit of each backup; empty: nowhere
    ///
    /// If nothing is said: $XDG_STATE_HOME/assay, for root /var/lib/assay, else ~/.local/state/assay.
    #[arg(long, global = true, value_name = "DIR", env = "ASSAY_STATE_DIR", value_parser = OsStringValueParser::new())]
    state_dir: Option<OsString>,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXIT_CODES: &str = "\
Exit codes: 0 ok, 1 failed, 2 usage, 3 finished with errors, 4 damage found, 10 not a backup dir,\n\
11 locked, 12 wrong key, 130 interrupted.";

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::InitArgs),
    Backup(backup::BackupArgs),
    Mount(mount::MountArgs),
    #[command(alias = "restore")]
    Get(get::GetArgs),
    Ls(ls::LsArgs),
    #[command(alias = "snapshots")]
    Versions(versions::VersionsArgs),
    Stats(stats::StatsArgs),
    Coverage(coverage::CoverageArgs),
    Selftest(selftest::SelftestArgs),
    Damage(damage::DamageArgs),
    Diff(diff::DiffArgs),
    Compare(compare::CompareArgs),
    Dest(dest::DestArgs),
    Log(log::LogArgs),
    Recover(recover::RecoverArgs),
    Rm(rm::RmArgs),
    Retain(retain::RetainArgs),
    Pack(pack::PackArgs),
    Watch(watch::WatchArgs),
    Completions(completions::CompletionsArgs),
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Command::Init(_) => "init",
            Command::Backup(_) => "backup",
            Command::Mount(_) => "mount",
            Command::Get(_) => "get",
            Command::Ls(_) => "ls",
            Command::Versions(_) => "versions",
            Command::Stats(_) => "stats",
            Command::Coverage(_) => "coverage",
            Command::Selftest(_) => "selftest",
            Command::Damage(_) => "damage",
            Command::Diff(_) => "diff",
            Command::Compare(_) => "compare",
            Command::Dest(_) => "dest",
            Command::Log(_) => "log",
            Command::Recover(_) => "recover",
            Command::Rm(_) => "rm",
            Command::Retain(_) => "retain",
            Command::Pack(_) => "pack",
            Command::Watch(_) => "watch",
            Command::Completions(_) => "completions",
        }
    }

    /// What changes something, proves something, or brings something back.
    fn is_logged(&self) -> bool {
        match self {
            Command::Backup(args) => !args.dry_run(),
            Command::Rm(args) => !args.dry_run(),
            Command::Retain(args) => !args.dry_run(),
            Command::Pack(args) => !args.dry_run(),
            Command::Dest(args) => args.is_logged(),
            Command::Init(_) | Command::Mount(_) | Command::Get(_) | Command::Selftest(_) | Command::Recover(_) => true,
            Command::Watch(_) => true,
            _ => false,
        }
    }
}

/// What every command gets.
struct Context {
    dir: PathBuf,
    quiet: bool,
    passphrase: Passphrase,
    status: Arc<Status>,
    sharing: Sharing,
    memory: Option<Memory>,
    on_change: OnChange,
    /// The command line as the log gets it, where the command is one that is logged.
    logged: Option<String>,
    /// It may go on in another process, whose log it is then.
    forks: bool,
}

/// Runs the program; returns its exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Exit {
    // First of all: while there is one thread it can be taken out of the environment.
    let variable = passphrase::take_variable();
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let sharing = if cli.allow_shared_dir { Sharing::Allowed } else { Sharing::Refused };
    let Some(command) = cli.command else {
        return first_steps::run(&home_expanded(cli.dir), sharing);
    };
    start_log();
    status::harmless_signals();
    // Many directories and arcs are open at once; failing to raise the limit shows when it is reached.
    let _ = crate::os::process::raise_open_file_limit();
    // Without it a lost page of the index's shared memory ends the process without a word.
    let _ = crate::os::mapped::guard();
    crate::os::process::ignore_file_size_signal();
    // Whatever an earlier umask says, what we write is for its owner.
    crate::os::process::set_umask(0o077);
    let progress = if cli.quiet && cli.progress == ProgressArg::Auto { ProgressArg::None } else { cli.progress };
    let status = Arc::new(Status::new(command.name(), progress));
    // A mount forks before its first thread, and answers SIGUSR1 itself.
    let watch = if matches!(command, Command::Mount(_)) { None } else { Watch::start(status.clone()) };
    let context = Context {
        dir: home_expanded(cli.dir),
        quiet: cli.quiet,
        passphrase: Passphrase::new(cli.passphrase, variable),
        sharing,
        memory: memory(cli.state_dir),
        on_change: if cli.accept_history { OnChange::Accept } else { OnChange::Refuse },
        forks: matches!(command, Command::Mount(_)),
        logged: command.is_logged().then(|| log::command_line(&args)),
        status,
    };
    let done = match &command {
        Command::Init(args) => init::run(&context, args),
        Command::Backup(args) => backup::run(&context, args),
        Command::Mount(args) => mount::run(&context, args),
        Command::Get(args) => get::run(&context, args),
        Command::Ls(args) => ls::run(&context, args),
        Command::Versions(args) => versions::run(&context, args),
        Command::Stats(args) => stats::run(&context, args),
        Command::Coverage(args) => coverage::run(&context, args),
        Command::Selftest(args) => selftest::run(&context, args),
        Command::Damage(args) => damage::run(&context, args),
        Command::Diff(args) => diff::run(&context, args),
        Command::Compare(args) => compare::run(&context, args),
        Command::Dest(args) => dest::run(&context, args),
        Command::Log(args) => log::run(&context, args),
        Command::Recover(args) => recover::run(&context, args),
        Command::Rm(args) => rm::run(&context, args),
        Command::Retain(args) => retain::run(&context, args),
        Command::Pack(args) => pack::run(&context, args),
        Command::Watch(args) => watch::run(&context, args),
        Command::Completions(args) => completions::run(args),
    };
    drop(watch);
    let exit = match done {
        Ok(exit) => exit,
        // The reader of a listing went away: that is its choice.
        Err(Error::Io { op: "print", errno: libc::EPIPE, .. }) => Exit::Ok,
        Err(Error::Interrupted) => {
            say(&format!(
                "assay: {}: {}; until then: {}",
                Error::Interrupted.code(),
                Error::Interrupted,
                context.status.line()
            ));
            Exit::Interrupted
        }
        Err(e) => {
            report(&e);
            e.exit_code()
        }
    };
    log::end(exit);
    exit
}

/// Ends the program as its exit code says.
pub fn end(exit: Exit) -> ! {
    crate::os::process::end(exit as u8)
}

/// What this machine remembers, if anything.
fn memory(asked: Option<OsString>) -> Option<Memory> {
    let dir = match asked {
        Some(dir) => Some(PathBuf::from(dir)).filter(|dir| !dir.as_os_str().is_empty()),
        None => {
            let of = |name: &str| std::env::var_os(name).map(PathBuf::from);
            let is_root = crate::os::process::geteuid() == 0;
            memory::default_dir(of("XDG_STATE_HOME").as_deref(), of("HOME").as_deref(), is_root)
        }
    };
    dir.map(Memory::at)
}

/// What clap has to say: help, or what is wrong with the command line.
fn usage(error: &clap::Error) -> Exit {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if let (ErrorKind::InvalidSubcommand, Some(ContextValue::String(word))) =
        (error.kind(), error.get(ContextKind::InvalidSubcommand))
    {
        say(&format!("assay: {}: there is no command {}", Error::Usage(String::new()).code(), shown(word)));
        say(&format!("help: {}", guesses::hint(word)));
        return Exit::Usage;
    }
    let _ = error.print();
    if error.use_stderr() { Exit::Usage } else { Exit::Ok }
}

/// Prints an error as docs/errors.md says.
fn report(error: &Error) {
    say(&format!("assay: {}: {error}", error.code()));
    if let Some(help) = error.help() {
        say(&format!("help: {help}"));
    }
}

/// A line for people. Where messages go may be full or gone: that must not change how a run ends.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", one_line(line));
    log::note(line);
}

fn start_log() {
    let _ = env_logger::Builder::from_env(env_logger::Env::new().filter_or("ASSAY_LOG", "warn,russh_sftp=off"))
        .format(|out, record| {
            let level = record.level().as_str().to_ascii_lowercase();
            let line = format!("assay: {level}: {}", one_line(&record.args().to_string()));
            log::note(&line);
            writeln!(out, "{line}")
        })
        .try_init();
}

/// In debug builds, where ASSAY_CHECK_WRITER asks for it: what a writer wrote must obey the rules of `selftest -v2`.
fn check_writer(dir: &BackupDir) -> Result<()> {
    const MAX_INDEX_BYTES: u64 = 8 << 20;
    let asked = cfg!(debug_assertions) && std::env::var_os("ASSAY_CHECK_WRITER").is_some();
    if !asked || std::fs::metadata(dir.index_path()).is_ok_and(|meta| meta.len() > MAX_INDEX_BYTES) {
        return Ok(());
    }
    match crate::selftest::written_wrong(dir)?.first() {
        Some(finding) => Err(Error::SelfCheck { what: format!("what was written breaks a rule: {}", finding.error) }),
        None => Ok(()),
    }
}

/// What this machine remembers of the backup dir must not contradict it; what is new is remembered.
///
/// # Errors
/// `HISTORY_CHANGED`. An index that can't be opened is no error here: whoever uses it next is told.
fn meet(context: &Context, dir: &BackupDir) -> Result<()> {
    meet_as(context, dir, context.on_change)
}

fn meet_as(context: &Context, dir: &BackupDir, on_change: OnChange) -> Result<()> {
    match (&context.memory, dir.open_index()) {
        (Some(memory), Ok(index)) => memory.meet(dir, &index, on_change),
        _ => Ok(()),
    }
}

/// As `meet`, for those who go on with `open_met`: damage of the index is no error here.
fn meet_first(context: &Context, dir: &BackupDir) -> Result<()> {
    meet(context, dir).or_else(|error| if error.is_of_index() { Ok(()) } else { Err(error) })
}

/// What comes after a command has written.
fn wrote(context: &Context, dir: &BackupDir) -> Result<()> {
    meet(context, dir)?;
    check_writer(dir)
}

fn home_expanded(dir: PathBuf) -> PathBuf {
    match (dir.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => dir,
    }
}

impl Context {
    fn open(&self) -> Result<BackupDir> {
        let opened = self.passphrase.open(&self.dir, self.sharing);
        match &opened {
            Ok(dir) if !self.forks => self.begin_log(dir.own()),
            // It is a backup dir, and the run goes no further: the log tells why.
            Err(e) if e.exit_code() == Exit::WrongKey => {
                if let Ok(dir) = OwnDir::open(&self.dir, self.sharing) {
                    self.begin_log(&dir);
                }
            }
            Ok(_) | Err(_) => {}
        }
        let dir = opened?;
        if let Some(perm) = dir.key_is_readable() {
            let path = dir.key_path();
            ::log::warn!("others can read {} (mode {perm:04o}): `chmod 400` it", shown(&path));
        }
        if self.has_spare_passphrase(&dir) {
            let path = dir.key_path();
            ::log::warn!("{} has a bare key: the passphrase was not needed. Is this your backup dir?", shown(&path));
        }
        let around = copies::around_reader(&dir, None);
        Ok(copies::partly_here(dir, &around))
    }

    fn begin_log(&self, dir: &OwnDir) {
        if let Some(command) = &self.logged {
            log::begin(dir, command);
        }
    }

    /// As `open`, for a command that hands secrets to the key.
    ///
    /// # Errors
    /// `KEY_BARE` when a passphrase is given for a key that needs none: whoever has put it there can read what it seals.
    fn open_to_save(&self) -> Result<BackupDir> {
        let dir = self.open()?;
        if self.has_spare_passphrase(&dir) {
            return Err(Error::KeyBare { path: dir.key_path() });
        }
        Ok(dir)
    }

    fn has_spare_passphrase(&self, dir: &BackupDir) -> bool {
        dir.lock_of_key() == LockOfKey::Nothing && self.passphrase.is_given()
    }
}

/// Opens the index for a command that only reads, and tells when it is behind the arcs.
fn open_index(dir: &BackupDir) -> Result<Index> {
    let index = dir.open_index()?;
    tell_unknown(dir, &index)?;
    Ok(index)
}

/// As `open_index`, and where the index is damaged the catalogs answer.
fn open_healing(dir: &BackupDir) -> Result<Index> {
    let index = standin::open(dir)?;
    tell_unknown(dir, &index).or_else(|error| if error.is_of_index() { Ok(()) } else { Err(error) })?;
    Ok(index)
}

/// As `open_healing`; what this machine remembers must not contradict what answers.
fn open_met(context: &Context, dir: &BackupDir) -> Result<Index> {
    let index = open_healing(dir)?;
    if let Some(memory) = &context.memory {
        memory.meet(dir, &index, context.on_change)?;
    }
    Ok(index)
}

fn tell_unknown(dir: &BackupDir, index: &Index) -> Result<()> {
    let unknown = unknown_commits(dir, index)?;
    if let (Some(first), Some(last)) = (unknown.first(), unknown.last()) {
        let which = if first == last { first.to_string() } else { format!("{first} to {last}") };
        ::log::warn!("the index does not know {which} yet: the next backup, or `assay recover`, adds what is missing");
    }
    Ok(())
}

/// Prints to standard output. That its reader went away is the reader's choice: the exit code still says what was found.
fn print(text: &str) -> Result<()> {
    match list(text) {
        Err(Error::Io { errno: libc::EPIPE, .. }) => Ok(()),
        printed => printed,
    }
}

/// As `print`, where without a reader nothing is left to do: an error of EPIPE.
fn list(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Error::io("print", "standard output", &e))
}

/// Prints a value as JSON, one line.
fn print_json(value: &serde_json::Value) -> Result<()> {
    print(&format!("{value}\n"))
}
