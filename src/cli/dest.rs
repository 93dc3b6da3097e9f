//! `assay dest`: what dest.toml names, the mark of a place, and what its service is found to do.

use std::time::SystemTime;

use clap::{Args, Subcommand};
use serde_json::json;

use super::copies::{self, ClearArgs, StatusArgs, SyncArgs, VerifyArgs};
use super::{Context, print, print_json, show};
use crate::backupdir::BackupDir;
use crate::catalog::Timespec;
use crate::dest::settings::{OnFail, Verify};
use crate::dest::{self, Exam, Lie, Settings, Storage, mark};
use crate::error::{Error, Exit, Result, Trouble};
use crate::text::{counted, shown};

/// Look at destinations: places outside of the backup dir, as dest.toml names them
///
/// Each `backup`, `rm`, `retain` and `pack` sends what is missing there.
#[derive(Debug, Args)]
pub struct DestArgs {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Subcommand)]
enum Act {
    Setid(SetidArgs),
    Test(TestArgs),
    Ls(LsArgs),
    Status(StatusArgs),
    Sync(SyncArgs),
    Verify(VerifyArgs),
    Clear(ClearArgs),
}

/// Make a new, empty place one of this backup, after a test as `dest test` does it
///
/// Writes the object DESTID: the id of the backup, and sealed what copy it is. A place with anything in it is refused.
#[derive(Debug, Args)]
struct SetidArgs {
    /// The destination's name in dest.toml
    name: String,
    /// A place of this name was marked before: that one is gone, and this is another one
    #[arg(long)]
    anew: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Find out what a service really does: which wrong checksums it refuses, whether it replaces objects and lets us delete,
/// how fast it is
///
/// Sends about 8 MiB, reads them twice, and removes them again. What is found is kept in dest.known. A service's own
/// word for a checksum counts only if it refused a wrong one, and did not store it all the same.
#[derive(Debug, Args)]
struct TestArgs {
    /// The destination's name in dest.toml
    name: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// List destinations, or what is at one
#[derive(Debug, Args)]
struct LsArgs {
    /// The destination's name in dest.toml; all destinations if there is none
    name: Option<String>,
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
}

impl DestArgs {
    /// What changes something, or finds something out.
    pub fn is_logged(&self) -> bool {
        !matches!(self.act, Act::Ls(_) | Act::Status(_))
    }
}

pub fn run(context: &Context, args: &DestArgs) -> Result<Exit> {
    match &args.act {
        Act::Setid(args) => setid(context, args),
        Act::Test(args) => test(context, args),
        Act::Ls(LsArgs { name: None, json }) => ls_all(context, *json),
        Act::Ls(LsArgs { name: Some(name), json }) => ls(context, name, *json),
        Act::Status(args) => copies::status(context, args),
        Act::Sync(args) => copies::sync(context, args),
        Act::Verify(args) => copies::verify(context, args),
        Act::Clear(args) => copies::clear(context, args),
    }
}

fn open(dir: &BackupDir, settings: &Settings) -> Result<Box<dyn Storage>> {
    dest::open(dir, settings, &|name| std::env::var(name).ok())
}

fn setid(context: &Context, args: &SetidArgs) -> Result<Exit> {
    let dir = context.open_to_save()?;
    super::meet(context, &dir)?;
    let settings = dest::named(&dir, &args.name)?;
    let lock = dir.lock()?;
    let mut known = crate::copies::known(&dir)?;
    let storage = open(&dir, &settings)?;
    let before = if args.anew { mark::Before::Gone } else { mark::Before::Absent };
    let mark = mark::set(storage.as_ref(), &settings, before, &dir, &lock, &mut known)?;
    let exam = dest::examine(storage.as_ref())?;
    known.found(&mark, &settings.name, &exam, now_s());
    known.write(&dir)?;
    super::log::outcome(&format!("{} is copy {}", settings.name, mark.copy.0));
    if args.json {
        let mut object = exam_json(&settings, &exam);
        if let Some(fields) = object.as_object_mut() {
            fields.insert("copy".into(), mark.copy.0.into());
        }
        print_json(&object)?;
    } else if !context.quiet {
        let head = format!("{} is copy {} of this backup now.\n", settings.name, mark.copy.0);
        print(&(head + &exam_text(&settings, &exam)))?;
    }
    Ok(exit(&exam))
}

fn test(context: &Context, args: &TestArgs) -> Result<Exit> {
    let dir = context.open_to_save()?;
    let settings = dest::named(&dir, &args.name)?;
    let _lock = dir.lock()?;
    let mut known = crate::copies::known(&dir)?;
    let storage = open(&dir, &settings)?;
    let mark = mark::read(storage.as_ref(), dir.keys(), &known)?;
    let exam = dest::examine(storage.as_ref())?;
    known.found(&mark, &settings.name, &exam, now_s());
    known.write(&dir)?;
    super::log::outcome(&format!("{}: {}", settings.name, counted(exam.accepts.len() as u64, "lie")));
    if args.json {
        print_json(&exam_json(&settings, &exam))?;
    } else if !context.quiet {
        print(&exam_text(&settings, &exam))?;
    }
    Ok(exit(&exam))
}

/// Objects that stay behind are left to do.
fn exit(exam: &Exam) -> Exit {
    if exam.left > 0 { Exit::FinishedWithErrors } else { Exit::Ok }
}

fn ls_all(context: &Context, as_json: bool) -> Result<Exit> {
    let dir = context.open()?;
    let (all, known) = (dest::all(&dir)?, crate::copies::known(&dir)?);
    let mut text = String::new();
    for settings in &all {
        let place = known.of_name(&settings.name);
        if as_json {
            print_json(&json!({
                "name": settings.name,
                "type": settings.type_name(),
                "place": settings.place_text(),
                "workers": settings.workers,
                "rate_bytes_s": settings.rate,
                "onfail": if settings.on_fail == OnFail::Ignore { "ignore" } else { "report" },
                "off": settings.off,
                "verify": verify_text(settings.verify),
                "copy": place.map(dest::KnownPlace::copy),
                "tested_s": place.and_then(dest::KnownPlace::tested_s),
                "accepts": place.map(dest::KnownPlace::accepts),
            }))?;
            continue;
        }
        let copy = place.map_or("not marked".into(), |place| format!("copy {}", place.copy()));
        let mut notes = vec![copy, format!("verify {}", verify_text(settings.verify))];
        notes.extend(settings.rate.map(|rate| format!("at most {}/s", show::bytes(rate))));
        notes.extend((settings.workers != 4).then(|| counted(settings.workers, "worker")));
        notes.extend((settings.on_fail == OnFail::Ignore).then(|| "failures ignored".to_string()));
        notes.extend(settings.off.then(|| "off".to_string()));
        if let Some(tested_s) = place.and_then(dest::KnownPlace::tested_s) {
            notes.push(format!("tested {}", show::time(Timespec { sec: tested_s as i64, nsec: 0 })));
        }
        let (name, kind, place) = (&settings.name, settings.type_name(), settings.place_text());
        text += &format!("{name:<16} {kind:<5} {place}  ({})\n", notes.join(", "));
    }
    if all.is_empty() && !as_json {
        text += "dest.toml has no destination.\n";
    }
    print(&text)?;
    Ok(Exit::Ok)
}

fn ls(context: &Context, name: &str, as_json: bool) -> Result<Exit> {
    let dir = context.open()?;
    let settings = dest::named(&dir, name)?;
    let known = crate::copies::known(&dir)?;
    let storage = open(&dir, &settings)?;
    let mark = match mark::read(storage.as_ref(), dir.keys(), &known) {
        Ok(mark) => Some(mark),
        // What is there may be why it is not marked.
        Err(Error::Dest { trouble: Trouble::Unmarked | Trouble::NotOurs(_), .. }) => None,
        Err(error) => return Err(error),
    };
    let objects = storage.list()?;
    if as_json {
        for object in &objects {
            print_json(&json!({ "name": object.name, "size_bytes": object.len_bytes }))?;
        }
        return Ok(Exit::Ok);
    }
    let mut text = String::new();
    for object in &objects {
        text += &format!("{:>12}  {}\n", show::bytes(object.len_bytes), shown(&object.name));
    }
    let total = show::bytes(objects.iter().map(|object| object.len_bytes).sum());
    let copy = mark.map_or("not marked as one of this backup".into(), |mark| format!("copy {}", mark.copy.0));
    if !context.quiet {
        text += &format!("{}, {total}, {copy}\n", counted(objects.len() as u64, "object"));
    }
    print(&text)?;
    Ok(Exit::Ok)
}

fn verify_text(verify: Verify) -> &'static str {
    match verify {
        Verify::Read => "read",
        Verify::Server => "server",
        Verify::Trust => "trust",
    }
}

fn exam_json(settings: &Settings, exam: &Exam) -> serde_json::Value {
    json!({
        "name": settings.name,
        "refuses": exam.refuses,
        "accepts": exam.accepts,
        "deletes": exam.deletes,
        "left_objects": exam.left,
        "put_bytes_s": exam.put_bytes_s,
        "get_bytes_s": exam.get_bytes_s,
        "range_ms": exam.range_ms,
    })
}

fn exam_text(settings: &Settings, exam: &Exam) -> String {
    let mut text = String::new();
    let mut line = |title: &str, what: String| text += &format!("{title:<10}{what}\n");
    let list = |lies: &[Lie]| lies.iter().map(|lie| lie.text()).collect::<Vec<_>>().join(", ");
    if !exam.refuses.is_empty() {
        line("Refuses", list(&exam.refuses));
    }
    if !exam.accepts.is_empty() {
        line("Accepts", format!("{}: its word does not count", list(&exam.accepts)));
    }
    let proof = match (settings.verify, settings.checksum().filter(|sum| exam.refuses.contains(sum))) {
        (Verify::Trust, _) => "none: verify = \"trust\"",
        (Verify::Server, Some(Lie::Md5)) => "the server compares the md5",
        (Verify::Server, Some(_)) => "the server compares the sha256",
        (Verify::Server | Verify::Read, _) => "what is sent is read back",
    };
    line("Proof", proof.into());
    let left = || format!("not allowed: {} stay there, named test.…", counted(exam.left, "object"));
    line("Delete", if exam.deletes { "allowed".into() } else { left() });
    line("Put", format!("{}/s", show::bytes(exam.put_bytes_s)));
    line("Get", format!("{}/s", show::bytes(exam.get_bytes_s)));
    line("Range", format!("{} ms for 64 KiB", exam.range_ms));
    text
}

fn now_s() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}
