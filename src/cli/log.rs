//! The log of runs: logs/runs.log of the backup dir, a line an event; `assay log` shows how the last runs ended.
//!
//! Invariants: a log that can't be written changes nothing else; an event is one line, whatever names it holds, and has
//! no secret; a run writes `MAX_EVENTS` lines at most, the two files hold about `MAX_BYTES` each.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::{Context, print, print_json, show};
use crate::catalog::Timespec;
use crate::error::{Error, Exit, Result};
use crate::ledger::now_s;
use crate::os::dir::Write;
use crate::os::process::is_alive;
use crate::own::{OwnDir, Sharing};
use crate::sync::lock;
use crate::text::{one_line, shown};

const DIR: &str = "logs";
const FILE: &str = "runs.log";
const MOUNT_FILE: &str = "mount.log";
/// A file of this size is put aside, in the place of the one before.
const MAX_BYTES: u64 = 1 << 20;
const MAX_EVENTS: u64 = 500;
/// Longest line, so that one long name does not push all else out.
const MAX_LINE_BYTES: usize = 8192;

/// Show how the last runs of backup, get, selftest, recover and mount ended
///
/// Each run writes into logs/runs.log of the backup dir what it was asked to do, each warning and failure, and how it
/// ended. A run without an end was killed, or the machine stopped.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// How many runs
    #[arg(short = 'n', value_name = "N", default_value_t = 20)]
    count: usize,
    /// Print warnings and failures, too
    #[arg(short, long)]
    verbose: bool,
    /// Print one JSON object a run
    #[arg(long)]
    json: bool,
}

/// What this process writes.
struct Writer {
    file: File,
    id: String,
    started: Instant,
    events: u64,
    outcome: String,
}

static WRITER: Mutex<Option<Writer>> = Mutex::new(None);

fn writer() -> MutexGuard<'static, Option<Writer>> {
    lock(&WRITER)
}

/// The command line, for the log: a command that gives a passphrase may hold it.
pub fn command_line(arguments: &[OsString]) -> String {
    let mut words = Vec::new();
    let mut after_option = false;
    for argument in arguments.iter().skip(1) {
        let text = shown(argument).to_string();
        let secret = (after_option && text.starts_with("cmd:")) || text.starts_with("--passphrase=cmd:");
        after_option = text == "--passphrase";
        let end = text.find("cmd:").filter(|_| secret).map_or(text.len(), |at| at + "cmd:".len());
        let word = text.get(..end).unwrap_or_default();
        let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%~".contains(c);
        let quoted = if word.chars().all(plain) && !word.is_empty() { word.to_string() } else { format!("'{word}'") };
        words.push(if secret { format!("{quoted}…") } else { quoted });
    }
    words.join(" ")
}

/// The run begins: from now on what is said is written down, too. The first one of a process counts.
pub fn begin(dir: &OwnDir, command: &str) {
    let mut writer = writer();
    if writer.is_some() {
        return;
    }
    match open(dir, FILE) {
        Ok(file) => {
            let id = format!("{:x}.{}", now_s(), std::process::id());
            let mut begun = Writer { file, id, started: Instant::now(), events: 0, outcome: String::new() };
            begun.write("start", command);
            *writer = Some(begun);
        }
        // Somebody else's file, or a link: that is worth a word.
        Err(error @ Error::FileForeign { .. }) => {
            drop(writer);
            ::log::warn!("no log of this run: {error}");
        }
        Err(error) => ::log::debug!("no log of this run: {error}"),
    }
}

/// Somewhere to put the messages of a mount in the background.
pub fn open_mount_log(dir: &OwnDir) -> Result<File> {
    open(dir, MOUNT_FILE)
}

fn open(dir: &OwnDir, name: &str) -> Result<File> {
    let logs = dir.sub_made(DIR, 0o700)?;
    let file = logs.write(name, 0o600, Write::Append)?;
    if file.metadata().is_ok_and(|meta| meta.len() < MAX_BYTES) {
        return Ok(file);
    }
    logs.rename(name, format!("{name}.1"))?;
    logs.write(name, 0o600, Write::Append)
}

/// A warning or a failure.
pub fn note(line: &str) {
    if let Some(writer) = &mut *writer() {
        writer.events += 1;
        if writer.events <= MAX_EVENTS {
            writer.write("note", line);
        }
    }
}

/// In a few words, what the run did.
pub fn outcome(text: &str) {
    if let Some(writer) = &mut *writer() {
        writer.outcome = text.trim().to_string();
    }
}

/// The run is over.
pub fn end(exit: Exit) {
    let Some(mut writer) = writer().take() else { return };
    let more = writer.events.saturating_sub(MAX_EVENTS);
    if more > 0 {
        writer.write("note", &format!("… and {more} more"));
    }
    let text = format!("{} {:.1} {}", exit as u8, writer.started.elapsed().as_secs_f64(), writer.outcome);
    writer.write("end", &text);
}

impl Writer {
    fn write(&mut self, kind: &str, text: &str) {
        let mut line = one_line(text);
        let mut end = MAX_LINE_BYTES.min(line.len());
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        // One write, so that lines of several processes don't mix. A log that is full or gone ends no run.
        let _ = self.file.write_all(format!("{now} {} {kind} {line}\n", self.id).as_bytes());
    }
}

/// A run as the log has it.
pub struct Run {
    id: String,
    started_s: u64,
    command: String,
    notes: Vec<String>,
    ended: Option<Ended>,
}

struct Ended {
    exit: u8,
    seconds: f64,
    outcome: String,
}

/// The last runs, oldest first; none where there is no log to be read.
pub fn last_runs(dir: &Path, sharing: Sharing, count: usize) -> Result<Vec<Run>> {
    let dir = std::fs::canonicalize(dir).map_err(|error| Error::io("find", dir, &error))?;
    let Some(logs) = OwnDir::open(&dir, sharing)?.sub(DIR)? else { return Ok(Vec::new()) };
    let mut runs = VecDeque::new();
    for name in [format!("{FILE}.1"), FILE.to_string()] {
        let mut bytes = Vec::new();
        match logs.read(&name) {
            Ok(file) => {
                let read = file.take(4 * MAX_BYTES).read_to_end(&mut bytes);
                read.map_err(|error| Error::io("read", logs.path_of(&name), &error))?;
            }
            Err(Error::Io { errno: libc::ENOENT, .. }) => {}
            Err(error) => return Err(error),
        }
        for line in bytes.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()) {
            add(&mut runs, line);
        }
    }
    let first = runs.len().saturating_sub(count);
    Ok(runs.into_iter().skip(first).collect())
}

/// A line that makes no sense is none.
fn add(runs: &mut VecDeque<Run>, line: &str) {
    let mut parts = line.splitn(4, ' ');
    let (Some(_), Some(id), Some(kind)) = (parts.next(), parts.next(), parts.next()) else { return };
    let text = parts.next().unwrap_or_default();
    if kind == "start" {
        let started_s = id.split('.').next().and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
        runs.push_back(Run { id: id.into(), started_s, command: text.into(), notes: Vec::new(), ended: None });
        return;
    }
    let Some(run) = runs.iter_mut().rev().find(|run| run.id == id) else { return };
    match kind {
        "note" => run.notes.push(text.to_string()),
        "end" => {
            let mut parts = text.splitn(3, ' ');
            let exit = parts.next().and_then(|text| text.parse().ok());
            let seconds = parts.next().and_then(|text| text.parse().ok());
            if let (Some(exit), Some(seconds)) = (exit, seconds) {
                run.ended = Some(Ended { exit, seconds, outcome: parts.next().unwrap_or_default().to_string() });
            }
        }
        _ => {}
    }
}

impl Run {
    fn outcome(&self) -> &'static str {
        match self.ended.as_ref().map(|ended| ended.exit) {
            Some(0) => "ok",
            Some(1) => "failed",
            Some(2) => "usage",
            Some(3) => "finished with errors",
            Some(4) => "damage found",
            Some(10) => "not a backup dir",
            Some(11) => "locked",
            Some(12) => "wrong key",
            Some(130) => "interrupted",
            Some(_) => "ended",
            None if self.is_running() => "running",
            None => "cut",
        }
    }

    /// A process of this number, perhaps another one, is there.
    fn is_running(&self) -> bool {
        let pid = self.id.split('.').nth(1).and_then(|pid| pid.parse().ok());
        self.ended.is_none() && pid.is_some_and(is_alive)
    }

    /// For a table.
    pub fn line(&self) -> String {
        let started = show::time(Timespec { sec: self.started_s as i64, nsec: 0 });
        let Some(ended) = &self.ended else {
            return format!("{started}  {:<20}  {:>12}  {}", self.outcome(), "", self.command);
        };
        let time = show::duration(Duration::from_secs_f64(ended.seconds.clamp(0.0, 1e9)));
        let mut line = format!("{started}  {:<20}  {time:>12}  {}", self.outcome(), self.command);
        if !ended.outcome.is_empty() {
            line += &format!(": {}", ended.outcome);
        } else if let Some(note) = self.notes.first().filter(|_| ended.exit != 0) {
            line += &format!(": {note}");
        }
        line
    }

    fn object(&self) -> serde_json::Value {
        json!({
            "started_s": self.started_s,
            "command": self.command,
            "outcome": self.outcome(),
            "exit": self.ended.as_ref().map(|ended| ended.exit),
            "seconds": self.ended.as_ref().map(|ended| ended.seconds),
            "summary": self.ended.as_ref().map(|ended| &ended.outcome),
            "notes": self.notes,
        })
    }
}

pub fn run(context: &Context, args: &LogArgs) -> Result<Exit> {
    if !context.dir.join("key.conf").exists() {
        return Err(Error::NotABackupDir { path: context.dir.clone() });
    }
    let runs = last_runs(&context.dir, context.sharing, args.count)?;
    if args.json {
        runs.iter().try_for_each(|run| print_json(&run.object()))?;
        return Ok(Exit::Ok);
    }
    let mut text = String::new();
    for run in &runs {
        text += &format!("{}\n", one_line(&run.line()));
        for note in run.notes.iter().filter(|_| args.verbose) {
            text += &format!("    {}\n", one_line(note));
        }
    }
    if runs.is_empty() {
        text += "No run is logged yet.\n";
    }
    print(&text)?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_several_runs_come_apart() {
        let mut runs = VecDeque::new();
        let text = "T 1.4294967295 start backup /a b\nT 2.5 start mount m\nT 1.4294967295 note assay: IO: x\nnonsense\n\
                    T 9.9 note nobody's\nT 2.5 end 4 12.5 2 files\nT 3.0 start get\nT 3.0 end x y\n";
        text.lines().for_each(|line| add(&mut runs, line));
        let told: Vec<_> = runs.iter().map(|run| (run.command.as_str(), run.outcome(), run.notes.len())).collect();
        assert_eq!(told, [("backup /a b", "cut", 1), ("mount m", "damage found", 0), ("get", "cut", 0)]);
        assert_eq!(runs[1].object()["summary"], "2 files");
    }

    #[test]
    fn a_command_line_tells_no_secret() {
        let line = |words: &[&str]| command_line(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(line(&["assay", "backup", "/a b", "x\ny"]), r"backup '/a b' 'x\x0ay'");
        for words in
            [&["assay", "--passphrase", "cmd:echo secret", "ls"][..], &["assay", "--passphrase=cmd:echo secret", "ls"]]
        {
            let line = line(words);
            assert!(!line.contains("secret") && line.ends_with("cmd:… ls"), "{line}");
        }
    }
}
