//! How each arc stands, here and at each destination, as far as notes, the ledger and a look at names tell.
//!
//! Invariants: nothing is read but names and notes, and no service is asked; nothing is called ready that was not compared to its last
//! byte, or that was changed, found damaged, or not looked at for long since; what can't be reached is unknown, never failed.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use super::away::Away;
use super::notes::{self, Note, Noted, State};
use super::plan::{Plan, Wanted, What};
use super::{Around, known};
use crate::backupdir::{BackupDir, arcs};
use crate::dest::settings::Place;
use crate::dest::{self, Settings, Stamp};
use crate::error::{Error, Result, Trouble};
use crate::ids::{ArcId, ArcName, CopyId};
use crate::ledger::{Damage, Ledger, now_s};
use crate::os::stat::Stat;
use crate::sync::lock;
use crate::text::hex;

/// What was proven longer ago than this is to be looked at again.
pub const LOOK_AGAIN_S: u64 = 90 * 24 * 3600;
/// How long a directory may take to tell its names.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a copy of an arc stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    Ready,
    /// It has to be looked at.
    Unknown,
    /// It is being put there, or put right.
    Recovering,
    Failed,
    Missing,
}

impl Condition {
    pub const ALL: [Condition; 5] =
        [Condition::Ready, Condition::Unknown, Condition::Recovering, Condition::Failed, Condition::Missing];

    pub fn text(self) -> &'static str {
        match self {
            Condition::Ready => "ready",
            Condition::Unknown => "unknown",
            Condition::Recovering => "recovering",
            Condition::Failed => "failed",
            Condition::Missing => "missing",
        }
    }
}

/// How it stands, why it is not ready, and when that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stands {
    pub condition: Condition,
    /// Empty where it is ready.
    pub why: String,
    /// Seconds since 1970; 0: nobody has looked.
    pub at_s: u64,
    /// Its file is another one than was looked at.
    pub has_changed: bool,
}

impl Stands {
    fn of(condition: Condition, why: impl Into<String>, at_s: u64) -> Stands {
        Stands { condition, why: why.into(), at_s, has_changed: false }
    }
}

/// Where an arc is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub arc: ArcName,
    /// None: of a commit nothing is recorded.
    pub arc_bytes: Option<u64>,
    /// In the backup dir; None: it is kept at destinations only.
    pub here: Option<Stands>,
    pub copies: Vec<Copy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    pub dest: String,
    /// Nothing is sent there by itself.
    pub is_off: bool,
    /// How far it had come.
    pub noted: Option<State>,
    pub stands: Stands,
}

/// How all arcs stand that must be there, at one destination or at all of them.
///
/// # Errors
/// `USAGE` for an unknown destination; what keeps dest.toml or the index from being read.
pub fn status(around: &Around, only: Option<&str>) -> Result<Vec<Standing>> {
    let mut places = dest::all(&around.dir)?;
    if let Some(name) = only {
        places = vec![dest::named(&around.dir, name)?];
    }
    let index = around.dir.open_index()?;
    let plan = Plan::of(&index)?;
    let ledger =
        around.dir.commits(&index).and_then(|commits| Ledger::load(around.dir.own(), around.dir.keys(), &commits));
    let ledger = ledger.map(|(ledger, _)| ledger).unwrap_or_default();
    let names: Vec<ArcName> = plan.wanted.iter().map(|wanted| wanted.name).collect();
    let here = Here::of(around, &ledger);
    let looks: Vec<_> = places.iter().map(|settings| look(around, settings, &names)).collect();
    let copy_ids = known(&around.dir)?;
    let there: Vec<There<'_>> = (places.iter().zip(looks))
        .map(|(settings, looked)| There {
            settings,
            noted: around.noted(&settings.name),
            is_held: notes::is_held(&around.dir, &settings.name),
            was_reached: notes::was_reached(&around.dir, &settings.name).unwrap_or(false),
            damage: damage(&ledger, |copy| copy_ids.name_of(copy) == Some(settings.name.as_str())),
            looked: looked(),
        })
        .collect();
    let standing = |wanted: &Wanted| Standing {
        arc: wanted.name,
        arc_bytes: Some(wanted.arc_bytes()).filter(|_| !wanted.is_commit()),
        here: here.stands(wanted),
        copies: there.iter().map(|place| place.copy(wanted)).collect(),
    };
    Ok(plan.wanted.iter().map(standing).collect())
}

/// Damage that was not seen right since, by the arc's number; the newest.
fn damage(ledger: &Ledger, is_of: impl Fn(CopyId) -> bool) -> BTreeMap<u64, &Damage> {
    let open = ledger.open_damage().iter().filter(|damage| is_of(damage.copy));
    let mut found: BTreeMap<u64, &Damage> = BTreeMap::new();
    for damage in open {
        let newest = found.entry(damage.arc.0).or_insert(damage);
        if damage.when_ms > newest.when_ms {
            *newest = damage;
        }
    }
    found
}

/// What a directory tells of names, by now.
enum Looked {
    /// It is no directory of this machine: nobody asks it here.
    Unasked,
    Away(Error),
    /// What has an arc's name, or why that can't be told.
    At(BTreeMap<ArcName, Result<Stamp>>),
}

/// Begins to look at names; what is returned waits for it, but not for one that hangs.
fn look(around: &Around, settings: &Settings, names: &[ArcName]) -> impl FnOnce() -> Looked + use<> {
    let (tell, told) = mpsc::channel();
    let is_dir = matches!(settings.place, Place::Dir { .. });
    let settings_name = settings.name.clone();
    if is_dir {
        let (open, settings, names) = (around.open.clone(), settings.clone(), names.to_vec());
        let looking = around.looking.clone();
        let work = move || -> Result<BTreeMap<ArcName, Result<Stamp>>> {
            let storage = open(&settings)?;
            let stamp = |name: ArcName| Some((name, storage.stamp(&name.to_string()).transpose()?));
            Ok(names.into_iter().filter_map(stamp).collect())
        };
        let name = settings_name;
        // One that hangs is not asked once more beside that.
        if lock(&looking).insert(name.clone()) {
            let look = move || {
                let looked = work();
                lock(&looking).remove(&name);
                tell.send(looked)
            };
            let _ = std::thread::Builder::new().name("look".into()).spawn(look);
        }
    }
    let name = settings.name.clone();
    move || match is_dir {
        false => Looked::Unasked,
        true => match told.recv_timeout(PATIENCE) {
            Ok(Ok(found)) => Looked::At(found),
            Ok(Err(error)) => Looked::Away(error),
            Err(_) => {
                let trouble = Trouble::TimedOut { what: "no answer", limit_s: PATIENCE.as_secs() };
                Looked::Away(Error::Dest { dest: name.as_str().into(), object: "".into(), trouble })
            }
        },
    }
}

/// One destination.
struct There<'a> {
    settings: &'a Settings,
    noted: Noted,
    is_held: bool,
    was_reached: bool,
    damage: BTreeMap<u64, &'a Damage>,
    looked: Looked,
}

impl There<'_> {
    fn copy(&self, wanted: &Wanted) -> Copy {
        let note = self.noted.get(&wanted.name).filter(|note| is_of(note, wanted));
        let stands = match &self.looked {
            Looked::Away(error) => {
                let at_s = note.map_or(0, |note| note.at_s);
                Stands::of(Condition::Unknown, format!("it can't be asked: {error}"), at_s)
            }
            Looked::At(found) => match found.get(&wanted.name) {
                Some(Err(error)) => Stands::of(
                    Condition::Unknown,
                    format!("it can't be looked at: {error}"),
                    note.map_or(0, |note| note.at_s),
                ),
                Some(Ok(stamp)) => self.stands(wanted, note, Some(Some(stamp))),
                None => self.stands(wanted, note, Some(None)),
            },
            Looked::Unasked => self.stands(wanted, note, None),
        };
        Copy { dest: self.settings.name.clone(), is_off: self.settings.off, noted: note.map(|note| note.state), stands }
    }

    /// `now`: what has its name there, where that was looked at.
    fn stands(&self, wanted: &Wanted, note: Option<&Note>, now: Option<Option<&Stamp>>) -> Stands {
        let Some(note) = note else {
            return match now {
                Some(Some(_)) => Stands::of(Condition::Unknown, "it is there, and was never compared", 0),
                Some(None) => Stands::of(Condition::Missing, "no such file", 0),
                None if self.was_reached => Stands::of(Condition::Missing, "it was not sent there", 0),
                None => Stands::of(Condition::Unknown, "the destination was never reached", 0),
            };
        };
        if now == Some(None) {
            let condition =
                if note.state == State::Sending && self.is_held { Condition::Recovering } else { Condition::Missing };
            return Stands::of(condition, "no such file", note.at_s);
        }
        let damage = match &wanted.what {
            What::Arc(entry) => self.damage.get(&entry.serial.0).copied(),
            What::Commit(_) => None,
        };
        judged(wanted, note, now.flatten(), damage, self.is_held)
    }
}

/// What a note tells by now.
fn judged(wanted: &Wanted, note: &Note, now: Option<&Stamp>, damage: Option<&Damage>, is_held: bool) -> Stands {
    let stands = |condition, why: String| Stands::of(condition, why, note.at_s);
    // A length that is not the recorded one needs no other look.
    if let (What::Arc(entry), Some(now)) = (&wanted.what, now)
        && now.len_bytes != entry.arc_bytes
    {
        if is_held && note.state == State::Sending {
            return stands(Condition::Recovering, "it is being sent".into());
        }
        let (source, found) =
            (hex(&entry.digest.0), format!("none: {} of {} bytes are there", now.len_bytes, entry.arc_bytes));
        return stands(Condition::Failed, sums(&source, &found));
    }
    let changed = note.stamp.zip(now).and_then(|(before, now)| now.differs(&before));
    let anew = |why: String| Stands { has_changed: true, ..stands(Condition::Unknown, why) };
    match note.state {
        State::Gone if now.is_some() => anew("it is there again, and was not compared".into()),
        State::Gone => stands(Condition::Missing, "no such file".into()),
        State::Sending if is_held => stands(Condition::Recovering, "it is being sent".into()),
        State::Sending => stands(Condition::Unknown, "its sending was cut".into()),
        _ if changed.is_some() => anew(format!("its {} changed", changed.unwrap_or_default())),
        State::Failed => stands(Condition::Failed, note.why.to_string()),
        _ => match damage {
            // What was proven in the same second was sent again.
            Some(damage) if damage.when_ms / 1000 > note.at_s => {
                Stands::of(Condition::Failed, format!("{} was met", damage.code), damage.when_ms / 1000)
            }
            _ if note.state == State::Unverified => {
                stands(Condition::Unknown, "it was sent, and never compared".into())
            }
            _ if now_s().saturating_sub(note.at_s) > LOOK_AGAIN_S => {
                stands(Condition::Unknown, "it was compared long ago".into())
            }
            _ => stands(Condition::Ready, String::new()),
        },
    }
}

/// Both sums, in the words of the messages.
fn sums(expected: &str, found: &str) -> String {
    format!("expected checksum {expected} doesn't match the existing file checksum {found}")
}

fn is_of(note: &Note, wanted: &Wanted) -> bool {
    match &wanted.what {
        What::Arc(entry) => entry.id == note.id,
        What::Commit(_) => true,
    }
}

/// The backup dir itself.
struct Here<'a> {
    around: &'a Around,
    noted: Noted,
    away: Away,
    is_mending: bool,
    damage: BTreeMap<u64, &'a Damage>,
}

impl Here<'_> {
    fn of<'a>(around: &'a Around, ledger: &'a Ledger) -> Here<'a> {
        let noted = notes::noted_here(&around.dir);
        let is_mending = around.dir.is_mending();
        // What is not known to be kept elsewhere is told as missing.
        let away = super::away(&around.dir).unwrap_or_default();
        Here { around, noted, away, is_mending, damage: damage(ledger, |copy| copy == CopyId::LOCAL) }
    }

    fn stands(&self, wanted: &Wanted) -> Option<Stands> {
        let (dir, name) = (&self.around.dir, wanted.name);
        let note = self.noted.get(&name).filter(|note| is_of(note, wanted));
        let damage = match &wanted.what {
            What::Arc(entry) => self.damage.get(&entry.serial.0).copied(),
            What::Commit(_) => None,
        };
        let at_s = note.map_or(0, |note| note.at_s);
        let is_coming = self.is_mending && arcs::is_fetched(dir.own(), name);
        let found = match dir.own().stat(name.to_string()) {
            _ if is_coming => return Some(Stands::of(Condition::Recovering, "it is being brought back", at_s)),
            Ok(found) => found,
            Err(error) => return Some(Stands::of(Condition::Unknown, error.to_string(), at_s)),
        };
        let Some(found) = found else {
            let is_away = self.away.contains_key(&name);
            return (!is_away).then(|| Stands::of(Condition::Missing, "no such file", at_s));
        };
        let stamp = Stamp::of(&found);
        if let Some(damage) = damage.filter(|damage| is_newer(damage, &found, note)) {
            return Some(Stands::of(Condition::Failed, format!("{} was met", damage.code), damage.when_ms / 1000));
        }
        let unread = Note { at_s: 0, ..Note::now(ArcId([0; 16]), State::Unverified) };
        let stands = judged(wanted, note.unwrap_or(&unread), Some(&stamp), None, self.is_mending);
        Some(match note {
            None if stands.condition == Condition::Unknown => {
                Stands::of(Condition::Unknown, "not all of it was read since it was written", 0)
            }
            _ => stands,
        })
    }
}

/// The damage was met in what is there now, and since it was last proven.
fn is_newer(damage: &Damage, found: &Stat, note: Option<&Note>) -> bool {
    let proven_s = note.filter(|note| note.state == State::Proven).map_or(0, |note| note.at_s);
    damage.is_of(found) && damage.when_ms / 1000 > proven_s
}

/// Notes that all of an arc here was read and is right, or what is wrong; what can't be noted is only not known the next time.
pub fn note_here(dir: &BackupDir, name: ArcName, note: Note) {
    let stamp = note.stamp.or_else(|| stamp_here(dir, name));
    let _ = notes::note_here(dir, name, &Note { stamp, ..note });
}

/// What the file of an arc is now: to be asked for before it is read.
pub fn stamp_here(dir: &BackupDir, name: ArcName) -> Option<Stamp> {
    dir.own().stat(name.to_string()).ok().flatten().map(|found| Stamp::of(&found))
}

/// How many arcs stand how, at each place; the backup dir's name is empty.
pub fn counts(all: &[Standing]) -> Vec<(String, BTreeMap<Condition, u64>)> {
    let mut places: Vec<(String, BTreeMap<Condition, u64>)> = vec![(String::new(), BTreeMap::new())];
    let mut count = |name: &str, condition| {
        let at = places.iter().position(|(place, _)| place == name).unwrap_or_else(|| {
            places.push((name.to_string(), BTreeMap::new()));
            places.len() - 1
        });
        if let Some((_, counts)) = places.get_mut(at) {
            *counts.entry(condition).or_insert(0) += 1;
        }
    };
    for standing in all {
        standing.here.iter().for_each(|stands| count("", stands.condition));
        standing.copies.iter().for_each(|copy| count(&copy.dest, copy.stands.condition));
    }
    places
}
