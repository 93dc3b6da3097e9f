//! What this machine remembers of backup dirs, outside of them: which one is at a place, and its newest commit.
//!
//! Invariants: what is remembered of a backup never goes back, unless the user says that it is right so; a memory that
//! can't be kept stops nobody.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backupdir::{BackupDir, arcs};
use crate::crypto::sha256;
use crate::error::{Error, Result};
use crate::ids::Version;
use crate::index::Index;
use crate::text::{hex, shown};

/// Longest file that is taken for a memory, bytes.
const MAX_BYTES: u64 = 64 << 10;

/// A directory of small files: `ID.toml` for each backup, `place-HASH.toml` for each path of a backup dir.
#[derive(Debug, Clone)]
pub struct Memory {
    dir: PathBuf,
}

/// The newest commit of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    run: u32,
    /// SHA-256 of the commit record, hex.
    commit: String,
}

/// Which backup dir is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    backup_id: String,
    /// For people.
    path: String,
}

/// What to do about what contradicts the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    Refuse,
    /// The user says that it is right so.
    Accept,
}

impl Memory {
    pub fn at(dir: PathBuf) -> Memory {
        Memory { dir }
    }

    /// Compares a backup dir with what is remembered, and remembers what is new.
    ///
    /// # Errors
    /// `HISTORY_CHANGED`; those of reading the index.
    pub fn meet(&self, dir: &BackupDir, index: &Index, on_change: OnChange) -> Result<()> {
        if on_change == OnChange::Refuse {
            self.compare(dir, index)?;
        }
        self.keep(dir, index, on_change)
    }

    fn compare(&self, dir: &BackupDir, index: &Index) -> Result<()> {
        let changed = |what: String| Error::HistoryChanged { path: dir.path().to_path_buf(), what };
        let id = hex(&dir.keys().backup_id().0);
        if let Some(place) = self.read::<Place>(&place_name(dir)?)
            && place.backup_id != id
        {
            return Err(changed(format!("here was the backup dir {}, and now it is {id}", shown(&place.backup_id))));
        }
        let Some(head) = self.read::<Head>(&head_name(&id)) else { return Ok(()) };
        let run = Version(head.run);
        let known = match index.commit_digest(run) {
            Ok(Some(digest)) => Some(digest),
            Err(error) if !error.is_damage() => return Err(error),
            // The index may be behind its arcs, or damaged.
            _ if dir.arcs().list()?.contains(&arcs::commit_arc(run)) => {
                arcs::read_commit(dir.arcs(), run, dir.keys()).ok().map(|(_, digest)| digest)
            }
            _ => None,
        };
        match known {
            Some(digest) if hex(&digest) == head.commit => Ok(()),
            Some(_) => Err(changed(format!("{run} is another one than this machine has seen"))),
            None => {
                let last = index.state()?.last_commit.map(|(last, _)| last);
                let newest = last.map_or("nothing".into(), |last| last.to_string());
                Err(changed(format!("this machine has seen {run}, and the newest here is {newest}")))
            }
        }
    }

    fn keep(&self, dir: &BackupDir, index: &Index, on_change: OnChange) -> Result<()> {
        let id = hex(&dir.keys().backup_id().0);
        let path = shown(&fs::canonicalize(dir.path()).unwrap_or_else(|_| dir.path().into())).to_string();
        let place = Place { backup_id: id.clone(), path };
        let mut kept = self.write(&place_name(dir)?, &place);
        if let Some((run, digest)) = index.state()?.last_commit {
            let head = Head { run: run.0, commit: hex(&digest) };
            let name = head_name(&id);
            let newer = self.read::<Head>(&name).is_none_or(|known| known.run <= head.run);
            if newer || on_change == OnChange::Accept {
                kept = kept.and(self.write(&name, &head));
            }
        }
        if let Err(error) = kept {
            log::warn!("what was seen can't be remembered in {}: {error}", shown(&self.dir));
        }
        Ok(())
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Option<T> {
        let path = self.dir.join(name);
        let read = fs::metadata(&path).and_then(|meta| match meta.is_file() && meta.len() <= MAX_BYTES {
            true => fs::read(&path),
            false => Err(ErrorKind::InvalidData.into()),
        });
        match read {
            Ok(text) => toml::from_slice(&text)
                .map_err(|_| log::warn!("{} is damaged: what it said is forgotten", shown(&path)))
                .ok(),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                log::warn!("what was seen before can't be read: {}: {error}", shown(&path));
                None
            }
        }
    }

    /// Writes a file whole, if it says something new.
    fn write<T: Serialize + for<'de> Deserialize<'de> + PartialEq>(
        &self,
        name: &str,
        value: &T,
    ) -> std::io::Result<()> {
        let path = self.dir.join(name);
        let text = toml::to_string(value).map_err(std::io::Error::other)?;
        if fs::read_to_string(&path).is_ok_and(|known| known == text) {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(())
    }
}

fn head_name(id: &str) -> String {
    format!("{id}.toml")
}

fn place_name(dir: &BackupDir) -> Result<String> {
    let path = fs::canonicalize(dir.path()).map_err(|error| Error::io("resolve", dir.path(), &error))?;
    Ok(format!("place-{}.toml", hex(&sha256(path.as_os_str().as_bytes())[..16])))
}

/// Where the memory is if nothing is said: for root in /var/lib, for others in their home.
pub fn default_dir(xdg_state_home: Option<&Path>, home: Option<&Path>, is_root: bool) -> Option<PathBuf> {
    match (xdg_state_home, home) {
        (Some(xdg), _) if xdg.is_absolute() => Some(xdg.join("assay")),
        _ if is_root => Some("/var/lib/assay".into()),
        (_, Some(home)) if home.is_absolute() => Some(home.join(".local/state/assay")),
        _ => None,
    }
}
