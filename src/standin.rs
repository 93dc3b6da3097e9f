//! An index for readers of one that is damaged: made from the catalogs, in a private place.
//!
//! Invariants: nothing in the backup dir is changed, and nobody's lock is taken; the place is gone with the reader.

use std::sync::Arc;

use crate::backupdir::BackupDir;
use crate::error::{Error, Result};
use crate::follow;
use crate::index::{Index, IndexWriter, Lacks, Maker};
use crate::monitor::{Hushed, Monitor};
use crate::recover;
use crate::scratch::Scratch;

/// Opens the index of `dir` to read it. What it can't tell is answered from the catalogs: from the first question on if it does
/// not open, or can't say what the newest version is.
///
/// # Errors
/// As `BackupDir::open_index`, if the catalogs can't help.
pub fn open(dir: &BackupDir) -> Result<Index> {
    let maker = Box::new(Catalogs { dir: dir.clone(), made: None, lost: None });
    let (index, opens, met) = match dir.open_index() {
        Ok(index) => {
            let met = index.newest().and_then(|_| index.state()).err();
            (index, true, met)
        }
        Err(met) if met.is_of_index() => (dir.unopened_index(), false, Some(met)),
        Err(error) => return Err(error),
    };
    let index = index.backed_by(maker);
    match met {
        Some(met) if met.is_of_index() => index.make_stand_in(met, opens)?,
        Some(error) => return Err(error),
        None => {}
    }
    Ok(index)
}

/// The catalogs of a backup dir, and the index that was made of them.
struct Catalogs {
    dir: BackupDir,
    made: Option<Made>,
    /// What the index lacks, and why.
    lost: Option<Error>,
}

struct Made {
    index: Arc<Index>,
    place: Scratch,
}

impl Made {
    fn path(place: &Scratch) -> std::path::PathBuf {
        place.path().join("index.db")
    }
}

impl Catalogs {
    fn make(&mut self, monitor: &dyn Monitor) -> Result<()> {
        self.made = None;
        let place = Scratch::new()?;
        let path = Made::path(&place);
        // What is wrong with a catalog is told where somebody needs it.
        let recovered = recover::build(&self.dir, &path, &Hushed(monitor))?;
        self.lost = recovered.lost_runs.into_iter().next().map(|(_, error)| error);
        if let Some(run) = recovered.missing_runs.first() {
            let what = "it is gone".into();
            self.lost.get_or_insert(Error::CommitDamaged { run: *run, what });
        }
        if recovered.versions.is_empty() {
            let nothing = || Error::IndexDamaged { path: self.dir.index_path(), what: "no catalog is there".into() };
            return Err(self.lost.take().unwrap_or_else(nothing));
        }
        let index = Arc::new(Index::open(&path, &self.dir.keys().index_key())?);
        self.made = Some(Made { index, place });
        Ok(())
    }

    fn go_on(&self, made: &Made, monitor: &dyn Monitor) -> Result<()> {
        let writer = || IndexWriter::open(&Made::path(&made.place), &self.dir.keys().index_key());
        follow::add_to(&self.dir, &made.index, writer, monitor).map(drop)
    }
}

impl Maker for Catalogs {
    fn bring_up(&mut self, lacks: Lacks, monitor: &dyn Monitor) -> Result<Arc<Index>> {
        match &self.made {
            None => self.make(monitor)?,
            Some(made) => match self.go_on(made, monitor) {
                Err(error) if error.is_damage() => self.make(monitor)?,
                done => done?,
            },
        }
        if let Some(lost) = &self.lost {
            if lacks == Lacks::Refused {
                return Err(lost.clone());
            }
            log::warn!("the catalogs do not tell all versions: {}: {lost}", lost.code());
        }
        let made = self.made.as_ref().map(|made| made.index.clone());
        made.ok_or_else(|| Error::SelfCheck { what: "an index that was made is not there".into() })
    }
}
