//! Who may write: one writer, one who mends what is committed, one who watches; and who only asks whether there is one.
//!
//! Invariants: each is a file that is locked as a whole (`flock`), so a kill lets go of it; nobody waits for the writer; what
//! only mends is waited for by nobody who writes.

use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::time::{Duration, Instant};

use super::BackupDir;
use crate::error::{Error, Result};
use crate::os::dir::Write;
use crate::own::OwnDir;

pub(super) const LOCK_FILE: &str = "lock";
/// Notes of copies, and who mends.
pub const COPIES_DIR: &str = "copies";
const MEND_LOCK_FILE: &str = "mend.lock";
const WATCH_LOCK_FILE: &str = "watch.lock";
/// How often somebody who waits for the lock looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl BackupDir {
    /// True while another process holds the lock; nothing is changed.
    pub fn is_locked(&self) -> bool {
        let lock = self.own.read(LOCK_FILE);
        lock.is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
    }

    /// Becomes the one who watches it.
    ///
    /// # Errors
    /// `LOCKED` at once when another process does.
    pub fn lock_to_watch(&self) -> Result<Lock> {
        Lock::take(&self.own.sub_made(COPIES_DIR, 0o700)?, WATCH_LOCK_FILE)
    }

    /// True while another process puts back what committed arcs must be; nothing is changed.
    pub fn is_mending(&self) -> bool {
        let beside = self.own.sub(COPIES_DIR).ok().flatten();
        let lock = beside.and_then(|beside| beside.read(MEND_LOCK_FILE).ok());
        lock.is_some_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
    }

    /// Becomes the one writer.
    ///
    /// # Errors
    /// `LOCKED` at once when another process is.
    pub fn lock(&self) -> Result<Lock> {
        Lock::writer(&self.own)
    }

    /// Becomes the one who puts back what committed arcs must be. No writer waits for it, and none is waited for: arcs that
    /// are committed are changed by nobody else.
    ///
    /// # Errors
    /// `LOCKED` when another process is that for so long.
    pub fn lock_to_mend(&self, patience: Duration) -> Result<MendLock> {
        let until = Instant::now() + patience;
        let beside = self.own.sub_made(COPIES_DIR, 0o700)?;
        loop {
            match Lock::take(&beside, MEND_LOCK_FILE) {
                Err(Error::Locked { .. }) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
                taken => return taken.map(MendLock),
            }
        }
    }
}

/// The right to put back what committed arcs must be, held until dropped.
#[derive(Debug)]
pub struct MendLock(#[expect(dead_code, reason = "held, not asked")] Lock);

/// The right to write, held until dropped.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    /// A child that is just being started has the open file too, until it executes: closing ours would not be enough.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

impl Lock {
    /// Of a directory that is no backup dir yet.
    pub(super) fn writer(dir: &OwnDir) -> Result<Lock> {
        Lock::take(dir, LOCK_FILE)
    }

    fn take(dir: &OwnDir, name: &str) -> Result<Lock> {
        let mut file = dir.write(name, 0o600, Write::Over)?;
        let mut taken = file.try_lock();
        if matches!(taken, Err(fs::TryLockError::WouldBlock)) {
            // Whoever only looks has it for a moment.
            std::thread::sleep(LOOK_EVERY);
            taken = file.try_lock();
        }
        match taken {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.take(20).read_to_string(&mut holder);
                return Err(Error::Locked { path: dir.path().into(), holder: holder.trim().to_string() });
            }
            Err(fs::TryLockError::Error(e)) => return Err(Error::io("lock", dir.path_of(name), &e)),
        }
        // Who holds it is for messages only: an error here must not stop a backup.
        let _ = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        Ok(Lock(file))
    }
}
