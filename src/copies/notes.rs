//! What is noted of the copies at one destination, or of the arcs in the backup dir: `copies/ID` there, a line a fact, the
//! last one of an arc counts.
//!
//! Invariants: a note saves requests, and never makes anything true: what is noted as stored must be in the listing too, or
//! be looked for by name. It may be lost: then what is there is proven again. Who sends holds `copies/ID.lock`.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{Read, Write as _};
use std::sync::Mutex;

use crate::backupdir::{BackupDir, COPIES_DIR as DIR, MendLock};
use crate::crypto::sha256;
use crate::dest::Stamp;
use crate::error::{Error, Result, Trouble};
use crate::ids::{ArcId, ArcName, DestId};
use crate::ledger::now_s;
use crate::os::dir::Write;
use crate::own::OwnDir;
use crate::sync::lock;
use crate::text::hex;

/// The backup dir itself, among places.
const HERE: DestId = DestId([0; 16]);
const PLACE: &str = ".place";
const ID_DIGITS: u64 = 32;
/// More lines than this are no notes of ours.
const MAX_BYTES: u64 = 256 << 20;
/// A file with so many more lines than arcs is written anew.
const SLACK_LINES: usize = 1000;

/// How far the copy of an arc has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It was there, and is not.
    Gone,
    /// Other bytes were found than are recorded.
    Failed,
    /// It was about to be sent: what has its name there may be half of it, and may be replaced.
    Sending,
    /// It was sent, and nothing was compared.
    Unverified,
    Proven,
}

impl State {
    pub fn text(self) -> &'static str {
        match self {
            State::Gone => "missing",
            State::Failed => "failed",
            State::Sending => "sending",
            State::Unverified => "unverified",
            State::Proven => "proven",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Of the arc, not of its name alone.
    pub id: ArcId,
    pub state: State,
    /// Seconds since 1970.
    pub at_s: u64,
    /// Of the file, where it is one of this machine, when that was found.
    pub stamp: Option<Stamp>,
    /// What was found, if it failed.
    pub why: Box<str>,
}

impl Note {
    /// Found now.
    pub fn now(id: ArcId, state: State) -> Note {
        Note { id, state, at_s: now_s(), stamp: None, why: "".into() }
    }
}

pub type Noted = BTreeMap<ArcName, Note>;

/// The notes of one destination, held by who sends to it.
pub struct Notes {
    dest: DestId,
    known: Mutex<(Noted, File)>,
    /// Released when it is closed.
    _held: File,
}

impl Notes {
    /// # Errors
    /// `DEST_IN_USE` while another process sends there; those of the files.
    pub fn hold(dir: &BackupDir, dest: DestId, name: &str) -> Result<Notes> {
        let own = dir.own().sub_made(DIR, 0o700)?;
        let file = dest.to_string();
        let held = own.write(format!("{file}.lock"), 0o600, Write::Over)?;
        match held.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Dest { dest: name.into(), object: "".into(), trouble: Trouble::InUse });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", own.path_of(&file), &error)),
        }
        name_place(&own, name, dest)?;
        let (noted, lines) = read(&own, dest)?;
        if lines > noted.len() + SLACK_LINES {
            write_anew(&own, dest, &noted)?;
        }
        let out = own.write(&file, 0o600, Write::Append)?;
        // A line that a kill has cut must not spoil the next one.
        (&out).write_all(b"\n").map_err(|error| Error::io("write", own.path_of(&file), &error))?;
        Ok(Notes { dest, known: Mutex::new((noted, out)), _held: held })
    }

    pub fn of(&self, name: ArcName) -> Option<Note> {
        lock(&self.known).0.get(&name).cloned()
    }

    /// A note that can't be written is only missing the next time.
    pub fn put(&self, name: ArcName, note: Note) {
        let mut known = lock(&self.known);
        let _ = known.1.write_all(line(self.dest, name, Some(&note)).as_bytes());
        known.0.insert(name, note);
    }

    /// It is not there any more.
    pub fn forget(&self, name: ArcName) {
        let mut known = lock(&self.known);
        known.0.remove(&name);
        let _ = known.1.write_all(line(self.dest, name, None).as_bytes());
    }
}

/// What is noted of the place that had this name last, for who only looks; nothing where that can't be told.
pub fn noted(dir: &BackupDir, name: &str) -> Noted {
    let read = || -> Result<Noted> {
        let Some(own) = dir.own().sub(DIR)? else { return Ok(Noted::new()) };
        match place_of(&own, name)? {
            Some(dest) => Ok(read(&own, dest)?.0),
            None => Ok(Noted::new()),
        }
    };
    read().unwrap_or_default()
}

fn write_anew(own: &OwnDir, dest: DestId, noted: &Noted) -> Result<()> {
    let (file, new) = (dest.to_string(), format!("{dest}.new"));
    own.remove_if_there(&new)?;
    let text: String = noted.iter().map(|(name, note)| line(dest, *name, Some(note))).collect();
    let mut out = own.create(&new, 0o600)?;
    out.write_all(text.as_bytes()).map_err(|error| Error::io("write", own.path_of(&new), &error))?;
    own.rename(&new, &file)
}

/// Writes the notes of the backup dir itself anew, once most of their lines are old. A note that is made meanwhile may go: it
/// is only missing then. What can't be written stays as it is.
pub fn tidy(dir: &BackupDir, _: &MendLock) {
    let tidied = || -> Result<()> {
        let Some(own) = dir.own().sub(DIR)? else { return Ok(()) };
        let (noted, lines) = read(&own, HERE)?;
        if lines > 2 * noted.len() + SLACK_LINES { write_anew(&own, HERE, &noted) } else { Ok(()) }
    };
    if let Err(error) = tidied() {
        log::debug!("{error}");
    }
}

/// What is noted of the arcs in the backup dir itself.
pub fn noted_here(dir: &BackupDir) -> Noted {
    let read = || dir.own().sub(DIR)?.map_or_else(|| Ok(Noted::new()), |own| Ok(read(&own, HERE)?.0));
    let noted: Result<Noted> = read();
    noted.unwrap_or_default()
}

/// Notes what was found of an arc in the backup dir. Whoever looks may: a line is added, and the last one counts.
///
/// # Errors
/// Those of the file: then it is not noted.
pub fn note_here(dir: &BackupDir, name: ArcName, note: &Note) -> Result<()> {
    let own = dir.own().sub_made(DIR, 0o700)?;
    let file = HERE.to_string();
    let mut out = own.write(&file, 0o600, Write::Append)?;
    // What a kill has cut before must not spoil this line.
    let text = format!("\n{}", line(HERE, name, Some(note)));
    out.write_all(text.as_bytes()).map_err(|error| Error::io("write", own.path_of(&file), &error))
}

/// Somebody sends to the place that had this name last.
pub fn is_held(dir: &BackupDir, name: &str) -> bool {
    let held = || -> Result<bool> {
        let Some(own) = dir.own().sub(DIR)? else { return Ok(false) };
        let Some(dest) = place_of(&own, name)? else { return Ok(false) };
        let lock = own.read(format!("{dest}.lock"))?;
        Ok(matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    };
    held().unwrap_or(false)
}

/// A place was reached under this name.
pub fn was_reached(dir: &BackupDir, name: &str) -> Result<bool> {
    let Some(own) = dir.own().sub(DIR)? else { return Ok(false) };
    Ok(place_of(&own, name)?.is_some())
}

/// `copies/NAME.place` has the id of the place that dest.toml calls so.
fn place_of(own: &OwnDir, name: &str) -> Result<Option<DestId>> {
    let file = format!("{name}{PLACE}");
    if own.stat(&file)?.is_none() {
        return Ok(None);
    }
    let mut text = String::new();
    let read = own.read(&file)?.take(ID_DIGITS).read_to_string(&mut text);
    read.map_err(|error| Error::io("read", own.path_of(&file), &error))?;
    Ok(bytes_of(&text).map(DestId))
}

fn name_place(own: &OwnDir, name: &str, dest: DestId) -> Result<()> {
    if place_of(own, name)? == Some(dest) {
        return Ok(());
    }
    let (file, new) = (format!("{name}{PLACE}"), format!("{name}{PLACE}.new"));
    own.remove_if_there(&new)?;
    let mut out = own.create(&new, 0o600)?;
    out.write_all(dest.to_string().as_bytes()).map_err(|error| Error::io("write", own.path_of(&new), &error))?;
    own.rename(&new, &file)
}

fn bytes_of(digits: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// What can be read of the file, and its lines.
fn read(own: &OwnDir, dest: DestId) -> Result<(Noted, usize)> {
    let name = dest.to_string();
    if own.stat(&name)?.is_none() {
        return Ok((Noted::new(), 0));
    }
    let mut bytes = Vec::new();
    let read = own.read(&name)?.take(MAX_BYTES).read_to_end(&mut bytes);
    read.map_err(|error| Error::io("read", own.path_of(&name), &error))?;
    let (mut noted, mut lines) = (Noted::new(), 0);
    for text in bytes.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()) {
        lines += 1;
        match parse(dest, text) {
            Some((name, Some(note))) => drop(noted.insert(name, note)),
            Some((name, None)) => drop(noted.remove(&name)),
            None => {}
        }
    }
    Ok((noted, lines))
}

fn line(dest: DestId, name: ArcName, note: Option<&Note>) -> String {
    let text = match note {
        Some(Note { id, state, at_s, stamp, why }) => {
            let stamp = stamp
                .map_or("-".into(), |Stamp { len_bytes, mtime_ns, inode }| format!("{len_bytes}:{mtime_ns}:{inode}"));
            // One line, whatever a service has said.
            let why = why.replace(|c: char| c.is_control(), " ");
            format!("{name} {} {at_s} {id} {stamp} {why}", state.text())
        }
        None => format!("{name} gone 0 -"),
    };
    let text = text.trim_end();
    format!("{text} {}\n", check(dest, text))
}

/// What of a line was cut or damaged is no note.
fn check(dest: DestId, text: &str) -> String {
    let sum = sha256(&[&dest.0[..], text.as_bytes()].concat());
    hex(sum.first_chunk::<4>().unwrap_or(&[0; 4]))
}

fn parse(dest: DestId, line: &str) -> Option<(ArcName, Option<Note>)> {
    let (text, sum) = line.rsplit_once(' ')?;
    if sum != check(dest, text) {
        return None;
    }
    let mut words = text.splitn(6, ' ');
    let (name, state, at_s, id) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let name = ArcName::parse(name)?;
    let all = [State::Gone, State::Failed, State::Sending, State::Unverified, State::Proven];
    let state = match state {
        "gone" => return Some((name, None)),
        text => all.into_iter().find(|state| state.text() == text)?,
    };
    let stamp = words.next().and_then(stamp_of);
    let why = words.next().unwrap_or_default().into();
    Some((name, Some(Note { id: ArcId(bytes_of(id)?), state, at_s: at_s.parse().ok()?, stamp, why })))
}

fn stamp_of(text: &str) -> Option<Stamp> {
    let mut parts = text.split(':');
    let (len, mtime, inode) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Stamp { len_bytes: len.parse().ok()?, mtime_ns: mtime.parse().ok()?, inode: inode.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Version;

    #[test]
    fn a_note_is_read_as_it_was_written_or_not_at_all() {
        let dest = DestId([3; 16]);
        let name = ArcName { version: Version(3), number: 1 };
        let stamp = Stamp { len_bytes: 7, mtime_ns: -5, inode: 12 };
        for (state, stamp, why) in [
            (State::Sending, None, ""),
            (State::Unverified, None, ""),
            (State::Proven, Some(stamp), ""),
            (State::Failed, Some(stamp), "expected this, found that"),
            (State::Gone, None, ""),
        ] {
            let note = Note { id: ArcId([0xa5; 16]), state, at_s: 1_764_320_000, stamp, why: why.into() };
            let text = line(dest, name, Some(&note));
            let text = text.trim_end();
            assert_eq!(parse(dest, text), Some((name, Some(note))));
            assert_eq!(parse(DestId([4; 16]), text), None);
            for at in 0..text.len() {
                assert_eq!(parse(dest, &text[..at]), None);
                let mut bad = text.as_bytes().to_vec();
                bad[at] ^= 1;
                assert_eq!(std::str::from_utf8(&bad).ok().and_then(|bad| parse(dest, bad)), None, "byte {at}");
            }
        }
        assert_eq!(parse(dest, line(dest, name, None).trim_end()), Some((name, None)));
        // As it was written before there were stamps.
        let old = format!("{name} proven 1764320000 {}", ArcId([0xa5; 16]));
        let old = format!("{old} {}", check(dest, &old));
        assert!(matches!(parse(dest, &old), Some((_, Some(Note { state: State::Proven, stamp: None, .. })))));
    }
}
