//! dest.known: what this backup dir knows of destinations, from when they were marked and tested.
//!
//! Invariants: a copy number that stands here is never given again, also of a place that is gone; what was found of a
//! service is of the place with that id, not of a name; it is replaced by one rename.

use std::collections::BTreeSet;
use std::io::Write;

use serde::{Deserialize, Serialize};

use super::mark::Mark;
use super::{Exam, Lie};
use crate::backupdir::BackupDir;
use crate::error::{Error, Result};
use crate::ids::CopyId;

const FILE: &str = "dest.known";
const FILE_NEW: &str = "dest.known.new";
const MAX_BYTES: u64 = 1 << 20;
const HEAD: &str = "# What assay knows of destinations; written by `assay dest setid` and `assay dest test`.\n\n";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    #[serde(default, rename = "place")]
    places: Vec<Place>,
    /// More names under which marked places were reached: dest.toml may call one otherwise by now.
    #[serde(skip)]
    names: BTreeSet<String>,
}

/// One that was marked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Place {
    id: String,
    copy: u16,
    /// The name under which it was marked.
    name: String,
    /// Its mark was seen there; before, the number is only taken.
    #[serde(default)]
    marked: bool,
    /// When it was tested, seconds since 1970; what follows was found then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tested_s: Option<u64>,
    #[serde(default)]
    refuses: Vec<Lie>,
    #[serde(default)]
    accepts: Vec<Lie>,
    #[serde(default)]
    deletes: bool,
}

impl Place {
    pub fn new(mark: &Mark, name: &str) -> Place {
        let (id, copy) = (mark.id.to_string(), mark.copy.0);
        let (refuses, accepts) = (Vec::new(), Vec::new());
        let name = name.to_string();
        Place { id, copy, name, marked: false, tested_s: None, refuses, accepts, deletes: false }
    }

    /// It was found to refuse this.
    pub fn refuses(&self, lie: Lie) -> bool {
        self.refuses.contains(&lie)
    }

    pub fn tested_s(&self) -> Option<u64> {
        self.tested_s
    }

    pub fn copy(&self) -> u16 {
        self.copy
    }

    pub fn accepts(&self) -> &[Lie] {
        &self.accepts
    }
}

impl Known {
    /// # Errors
    /// `CONFIG` where it makes no sense; `FILE_FOREIGN`; `IO`.
    pub fn read(dir: &BackupDir) -> Result<Known> {
        let Some(mut file) = dir.own().prepared(FILE)? else { return Ok(Known::default()) };
        let path = dir.own().path_of(FILE);
        let mut text = String::new();
        let read = std::io::Read::read_to_string(&mut std::io::Read::take(&mut file, MAX_BYTES), &mut text);
        read.map_err(|error| Error::io("read", &path, &error))?;
        toml::from_str(&text).map_err(|error| {
            let what = format!("{}: delete it, and run `assay dest test` for each destination", error.message());
            Error::Config { path, what }
        })
    }

    /// Durably, in one step.
    pub fn write(&self, dir: &BackupDir) -> Result<()> {
        let path = dir.own().path_of(FILE_NEW);
        let failed = |error: std::io::Error| Error::io("write", &path, &error);
        let text = toml::to_string(self).map_err(|error| failed(std::io::Error::other(error.to_string())))?;
        dir.own().remove_if_there(FILE_NEW)?;
        let mut file = dir.own().create(FILE_NEW, 0o600)?;
        file.write_all(HEAD.as_bytes()).and_then(|()| file.write_all(text.as_bytes())).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        dir.own().rename(FILE_NEW, FILE)?;
        dir.own().sync()
    }

    /// A place of this backup was reached under this name.
    pub fn reached_as(&mut self, name: &str) {
        self.names.insert(name.to_string());
    }

    /// A place was marked, or reached, under this name.
    pub fn has_name(&self, name: &str) -> bool {
        self.names.contains(name) || self.places.iter().any(|place| place.name == name && place.marked)
    }

    pub fn of_name(&self, name: &str) -> Option<&Place> {
        self.places.iter().rfind(|place| place.name == name && place.marked)
    }

    pub fn of_mark(&self, mark: &Mark) -> Option<&Place> {
        let id = mark.id.to_string();
        self.places.iter().find(|place| place.id == id)
    }

    /// What the place with this copy was called last.
    pub fn name_of(&self, copy: CopyId) -> Option<&str> {
        self.places.iter().find(|place| place.copy == copy.0).map(|place| place.name.as_str())
    }

    pub fn next_copy(&self) -> Result<CopyId> {
        let last = self.places.iter().map(|place| place.copy).max().unwrap_or(CopyId::LOCAL.0);
        last.checked_add(1).map(CopyId).ok_or_else(|| Error::Usage("there are no more numbers for copies".into()))
    }

    pub fn add(&mut self, place: Place) {
        self.places.push(place);
    }

    /// The mark was seen at this place; one that another machine has marked becomes known by it.
    pub fn seen(&mut self, mark: &Mark, name: &str) {
        let id = mark.id.to_string();
        if !self.places.iter().any(|place| place.id == id) {
            self.add(Place::new(mark, name));
        }
        if let Some(place) = self.places.iter_mut().find(|place| place.id == id) {
            place.name = name.to_string();
            place.marked = true;
        }
    }

    /// Keeps what was found of a place.
    pub fn found(&mut self, mark: &Mark, name: &str, exam: &Exam, now_s: u64) {
        self.seen(mark, name);
        let id = mark.id.to_string();
        if let Some(place) = self.places.iter_mut().find(|place| place.id == id) {
            place.tested_s = Some(now_s);
            place.refuses.clone_from(&exam.refuses);
            place.accepts.clone_from(&exam.accepts);
            place.deletes = exam.deletes;
        }
    }
}
