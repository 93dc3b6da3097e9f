//! Files with temporary names: held while a restore works on them, and swept when one that was killed has left them.

use std::fs::File;
use std::io;

use crate::catalog::Kind;
use crate::os::{DirFd, Stat, lock, process, stat, temp};

/// Shows other restores that the file is being worked on, until it is closed; without effect where there are no locks.
pub(super) fn hold(file: &File) {
    let _ = lock::try_exclusive(file);
}

/// Removes from `dir` what restores of this user that were killed have left. What can't be told or removed stays.
pub(super) fn sweep(dir: &DirFd) {
    for name in dir.read_names().unwrap_or_default().iter().filter(|name| temp::is_ours(name)) {
        let Ok(stat) = dir.stat_at(name) else { continue };
        let user = process::geteuid();
        if !stat.is_dir() && (user == 0 || stat.uid == user) && !is_held(dir, name, &stat) {
            let _ = dir.unlink_at(name);
        }
    }
}

/// True when a running restore works on it, or nobody can say.
fn is_held(dir: &DirFd, name: &[u8], now: &Stat) -> bool {
    if now.kind != Kind::File {
        // It has its temporary name for an instant only.
        return false;
    }
    let file = match dir.open_file(name) {
        Ok(file) => file,
        // It has its saved mode, so it was finished.
        Err(error) => return error.kind() != io::ErrorKind::PermissionDenied,
    };
    let same = stat::of_fd(&file).is_ok_and(|opened| opened.same_file(now));
    !same || !lock::try_shared(&file).unwrap_or(false)
}
