//! A way down through directories of which only the lowest are open: the limit of open files does not limit the depth.
//!
//! Invariant: a directory above is reached again through `..` of the one below, and is the same as before or lost: whoever
//! moves directories meanwhile leads nobody elsewhere.

use std::io;

use crate::os::{DirFd, Stat};

/// Directories that are open at once.
const MAX_OPEN: usize = 16;

enum Place {
    Open(DirFd),
    Closed,
    /// It could not be opened again.
    Lost(io::Error),
}

struct Step<T> {
    place: Place,
    stat: Stat,
    of: T,
}

pub struct Descent<T> {
    steps: Vec<Step<T>>,
}

impl<T> Descent<T> {
    pub fn new() -> Descent<T> {
        Descent { steps: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut T> {
        self.steps.iter_mut().map(|step| &mut step.of)
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.steps.iter().map(|step| &step.of)
    }

    /// Goes down into `dir`, an entry of the lowest one.
    pub fn push(&mut self, dir: DirFd, stat: Stat, of: T) {
        self.steps.push(Step { place: Place::Open(dir), stat, of });
        let above = self.steps.len().checked_sub(1 + MAX_OPEN).and_then(|at| self.steps.get_mut(at));
        if let Some(step) = above.filter(|step| matches!(step.place, Place::Open(_))) {
            step.place = Place::Closed;
        }
    }

    /// The lowest directory; an error if it could not be reached again.
    pub fn last(&mut self) -> Option<(Result<&DirFd, io::Error>, &Stat, &mut T)> {
        self.steps.last_mut().map(|step| (step.place.get(), &step.stat, &mut step.of))
    }

    /// Goes up; gives the directory that was left.
    pub fn pop(&mut self) -> Option<(Result<DirFd, io::Error>, Stat, T)> {
        let Step { place, stat, of } = self.steps.pop()?;
        if let Some(above) = self.steps.last_mut().filter(|above| matches!(above.place, Place::Closed)) {
            above.place = match place.get().and_then(|dir| reopen(dir, &above.stat)) {
                Ok(dir) => Place::Open(dir),
                Err(error) => Place::Lost(error),
            };
        }
        let dir = match place {
            Place::Open(dir) => Ok(dir),
            other => Err(other.error()),
        };
        Some((dir, stat, of))
    }
}

impl Place {
    fn get(&self) -> Result<&DirFd, io::Error> {
        match self {
            Place::Open(dir) => Ok(dir),
            other => Err(other.error()),
        }
    }

    fn error(&self) -> io::Error {
        match self {
            Place::Lost(error) => io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO)),
            _ => io::Error::from_raw_os_error(libc::ESTALE),
        }
    }
}

/// The directory above `dir`, which must be `expected`; ESTALE if it is another.
pub fn reopen(dir: &DirFd, expected: &Stat) -> io::Result<DirFd> {
    let above = match dir.open_dir(b"..") {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => dir.open_place(b".."),
        other => other,
    }?;
    if above.stat()?.same_file(expected) { Ok(above) } else { Err(io::Error::from_raw_os_error(libc::ESTALE)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes down `names` from `path`.
    fn descend(path: &std::path::Path, names: &[String]) -> Descent<usize> {
        let mut descent = Descent::new();
        let first = DirFd::open(path).unwrap();
        let stat = first.stat().unwrap();
        descent.push(first, stat, 0);
        for (depth, name) in names.iter().enumerate() {
            let next = descent.last().unwrap().0.unwrap().open_dir(name.as_bytes()).unwrap();
            let stat = next.stat().unwrap();
            descent.push(next, stat, depth + 1);
        }
        descent
    }

    #[test]
    fn few_directories_are_open_and_each_is_the_same_on_the_way_up() {
        let temp = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..60).map(|n| n.to_string()).collect();
        std::fs::create_dir_all(temp.path().join(names.join("/"))).unwrap();
        let mut descent = descend(temp.path(), &names);
        assert_eq!(descent.steps.iter().filter(|step| matches!(step.place, Place::Open(_))).count(), MAX_OPEN);
        for depth in (0..=60).rev() {
            let (dir, stat, of) = descent.pop().unwrap();
            assert_eq!((of, dir.unwrap().stat().unwrap().ino), (depth, stat.ino));
        }
        assert!(descent.is_empty());
    }

    #[test]
    fn a_directory_that_was_moved_away_leads_nowhere_else() {
        let temp = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..30).map(|n| n.to_string()).collect();
        std::fs::create_dir_all(temp.path().join(names.join("/"))).unwrap();
        std::fs::create_dir(temp.path().join("elsewhere")).unwrap();
        let mut descent = descend(temp.path(), &names);
        let moved: std::path::PathBuf = names[..5].iter().collect();
        std::fs::rename(temp.path().join(moved), temp.path().join("elsewhere/moved")).unwrap();
        let mut lost = 0;
        while let Some((dir, ..)) = descent.pop() {
            lost += usize::from(dir.is_err_and(|error| error.raw_os_error() == Some(libc::ESTALE)));
        }
        assert_eq!(lost, 5, "it and all above it");
    }
}
