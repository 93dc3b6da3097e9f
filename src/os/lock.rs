//! Whole-file advisory locks (`flock`): released when the last copy of the descriptor is closed, also by kill -9.

use std::fs::{File, TryLockError};
use std::io;

/// Takes the lock for one holder only; false if somebody has it.
pub fn try_exclusive(file: &File) -> io::Result<bool> {
    taken(file.try_lock())
}

/// Takes the lock together with other shared holders; false if an exclusive holder has it.
pub fn try_shared(file: &File) -> io::Result<bool> {
    taken(file.try_lock_shared())
}

/// Waits until the exclusive lock is ours.
pub fn exclusive(file: &File) -> io::Result<()> {
    file.lock()
}

fn taken(result: Result<(), TryLockError>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_excludes_and_shared_shares_until_closed() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(temp.path()).unwrap();
        let (a, b, c) = (open(), open(), open());
        assert!(try_exclusive(&a).unwrap());
        assert!(!try_exclusive(&b).unwrap());
        assert!(!try_shared(&b).unwrap());
        drop(a);
        assert!(try_shared(&b).unwrap());
        assert!(try_shared(&c).unwrap());
        assert!(!try_exclusive(&open()).unwrap());
        b.unlock().unwrap();
        c.unlock().unwrap();
        exclusive(&open()).unwrap();
    }
}
