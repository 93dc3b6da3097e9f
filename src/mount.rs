//! The life of a mount: checks, start, signals, end, summary.
//!
//! Invariants: readers never wait for a backup, nor a backup for them; when `serve` says that the mount is ready
//! a request was already answered through it; whatever ends it, no mount is left behind. No thread is started
//! before `serve` is called, so a caller may fork until then.

use std::cell::Cell;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::crypto::Keys;
use crate::error::{Error, Result};
use crate::fuse::{Access, Caching, Mounted, raise_read_ahead};
use crate::index::Index;
use crate::ledger::{By, FLUSH_EVERY_S, LedgerWriter, Record, Session};
use crate::os;
use crate::own::OwnDir;
use crate::store::{Heal, Spread, Store, StoreOptions, Summary};
use crate::text::shown;
use crate::tree::{Tree, View};
use crate::vfs::{Hashing, Owners, Vfs, VfsOptions, VirtualXattrs};

/// How long open files keep a mount alive that was told to end.
const GRACE: Duration = Duration::from_secs(1);

/// How long a verified block serves a `--direct` mount: the parts of one block are mostly read one after the other.
const DIRECT_MAX_AGE: Duration = Duration::from_secs(1);

const DEAD_MOUNT: &str = "a mount whose process is gone is here; end it with `fusermount3 -u` first";

/// What a mount shows, to whom, and how.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    pub access: Access,
    pub caching: Caching,
    pub ownership: Ownership,
    pub view: View,
    /// Show only this version: `r3`, `3`, `latest` or a folder name.
    pub version: Option<String>,
    pub heal: Heal,
    /// Bound of the cache of verified blocks; 0: the default.
    pub cache_bytes: u64,
    pub hashing: Hashing,
    pub virtual_xattrs: VirtualXattrs,
    /// Threads that answer requests; 0: as many as there are cores, between 2 and 4.
    pub threads: usize,
}

/// Whose the files are shown to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    #[default]
    Saved,
    /// The user's that mounts.
    Mounter,
}

/// Refuses mount points that can't work; gives the canonical one.
pub fn check_point(backup_dir: &Path, point: &Path) -> Result<PathBuf> {
    let refuse = |what: String| Error::Mount { path: point.to_path_buf(), what };
    let stat = std::fs::metadata(point).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOTCONN) => refuse(DEAD_MOUNT.into()),
        _ => refuse(format!("not usable as a mount point: {error}")),
    })?;
    if !stat.is_dir() {
        return Err(refuse("not a directory".into()));
    }
    let canonical = |path: &Path| std::fs::canonicalize(path).map_err(|error| Error::io("resolve", path, &error));
    let (backup_dir, point) = (canonical(backup_dir)?, canonical(point)?);
    if point.starts_with(&backup_dir) {
        return Err(refuse(format!("it is inside the backup dir {}", shown(&backup_dir))));
    }
    if backup_dir.starts_with(&point) {
        return Err(refuse(format!("the mount would hide the backup dir {}", shown(&backup_dir))));
    }
    let mounts = os::mounts::all().map_err(|error| Error::io("read", "/proc/self/mountinfo", &error))?;
    let on_top = mounts.iter().rev().find(|mount| mount.point == point);
    if on_top.is_some_and(|mount| mount.fstype == "fuse.assay") {
        if os::mounts::fs_info(&point).is_err() {
            return Err(refuse(DEAD_MOUNT.into()));
        }
        return Err(refuse("a backup is mounted here already".into()));
    }
    Ok(point)
}

enum News {
    Signal(i32),
    /// It is unmounted: from outside, or as we asked.
    Ended,
}

/// Mounts at `point`, answers requests until it is unmounted or a signal ends it, and says what was read.
///
/// `ready` is called once the mount answers, `report` at each SIGUSR1.
/// Errors: those of the mount itself; damage that readers met is in the summary, not an error.
pub fn serve(
    dir: &Arc<OwnDir>,
    keys: Arc<Keys>,
    index: Arc<Index>,
    point: &Path,
    options: &MountOptions,
    ready: impl FnOnce() -> Result<()>,
    report: impl Fn(&Summary),
) -> Result<Summary> {
    let failed = |what: String| Error::Mount { path: point.to_path_buf(), what };
    let tree = Tree::new(index.clone(), options.view);
    let only = options.version.as_deref().map(|name| tree.version(name)).transpose()?.map(|row| row.version);
    // A damaged row of one version leaves the others usable by name; if not even the newest can be read, say so now.
    if tree.versions().is_err() {
        tree.index().newest()?;
    }
    let mut store_options = StoreOptions { heal: options.heal, ..StoreOptions::default() };
    if options.cache_bytes > 0 {
        store_options.cache_bytes = options.cache_bytes;
    }
    let mounter = (os::process::geteuid(), os::process::getegid());
    let owners = match options.ownership {
        Ownership::Saved => Owners::Saved,
        Ownership::Mounter => Owners::All { uid: mounter.0, gid: mounter.1 },
    };
    if options.caching == Caching::Direct {
        store_options.max_age = Some(DIRECT_MAX_AGE);
    }
    let (news_tx, news) = unbounded();
    // What ends it too.
    os::mapped::tell_by(SIGTERM);
    // Before the mount exists: a signal from now on ends it cleanly.
    let signals = watch_signals(news_tx.clone()).map_err(|error| failed(format!("signals: {error}")))?;
    let ledger = Arc::new(LedgerWriter::new(dir, keys.clone(), By::Mount));
    store_options.ledger = Some(ledger.clone());
    let started_s = ledger.now_s();
    let store = Arc::new(Store::with_options(dir, keys, index.clone(), store_options));
    let vfs_options =
        VfsOptions { owners, only, mounter, hashing: options.hashing, virtual_xattrs: options.virtual_xattrs };
    let vfs = Arc::new(Vfs::new(tree, store.clone(), vfs_options));
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = match options.threads {
        0 => cores.clamp(2, 4),
        threads => threads,
    };
    let ended = move || {
        let _ = news_tx.send(News::Ended);
    };
    let mounted = Mounted::start(vfs.clone(), point, options.access, options.caching, threads, ended)
        .map_err(|error| failed(mount_error(&error)))?;
    let answered = std::fs::metadata(point).map(|stat| {
        // When the kernel asks for so much at a time that each core has a request, decoding ahead has no use.
        let reads_far_ahead = raise_read_ahead(stat.dev()) && options.caching == Caching::PageCache;
        if reads_far_ahead && threads >= cores {
            store.set_spread(Spread::Caller);
        }
    });
    let started =
        answered.map_err(|error| failed(format!("the mount does not answer: {error}"))).and_then(|()| ready());
    let told = Cell::new((0, 0, 0, 0));
    let remember = || {
        let summary = vfs.summary();
        let now = (summary.dirs_listed, summary.bytes_read, summary.blocks_verified, summary.damage);
        // A mount that nobody uses writes nothing.
        if told.replace(now) != now {
            remember(&ledger, started_s, &summary);
        }
    };
    let over = started.map(|()| {
        wait_for_end(&news, remember, || {
            remember();
            report(&vfs.summary());
        })
    });
    match over {
        Ok(Over::Unmounted) => mounted.forget(),
        Ok(Over::Signal) | Err(_) => end_mount(mounted, point, &news),
    }
    signals.close();
    remember();
    index.check_shared()?;
    over.map(|_| vfs.summary())
}

/// Why a mount is over.
#[derive(Clone, Copy)]
enum Over {
    Unmounted,
    Signal,
}

/// Waits; meanwhile, each `FLUSH_EVERY_S`, what was verified is written down.
fn wait_for_end(news: &Receiver<News>, remember: impl Fn(), report: impl Fn()) -> Over {
    loop {
        match news.recv_timeout(Duration::from_secs(FLUSH_EVERY_S)) {
            Ok(News::Signal(SIGUSR1)) => report(),
            Ok(News::Signal(_)) => return Over::Signal,
            Ok(News::Ended) | Err(RecvTimeoutError::Disconnected) => return Over::Unmounted,
            Err(RecvTimeoutError::Timeout) => remember(),
        }
    }
}

/// Writes down what was verified since the last time, and what this mount did in all.
fn remember(ledger: &LedgerWriter, started_s: u64, summary: &Summary) {
    ledger.record(Record::Session(Session {
        started_s,
        by: By::Mount,
        seconds: ledger.now_s().saturating_sub(started_s),
        dirs_listed: summary.dirs_listed,
        files_read: summary.files_read,
        bytes_read: summary.bytes_read,
    }));
    // It has said so itself, and no reader depends on it.
    let _ = ledger.flush();
}

/// Takes the mount away, also while files in it are open: their readers get a moment, then errors.
fn end_mount(mounted: Mounted, point: &Path, news: &Receiver<News>) {
    let place = point.to_path_buf();
    // In a thread of its own: it ends only when the last open file is closed.
    let unmounting = std::thread::Builder::new().name("unmount".into()).spawn(move || {
        if let Err(busy) = mounted.unmount() {
            log::debug!("{}: {busy}; detaching it", shown(&place));
            if let Err(error) = os::mounts::detach(&place) {
                log::error!("cannot unmount {}: {error}", shown(&place));
            }
        }
    });
    if let Err(error) = unmounting {
        log::error!("cannot unmount {}: {error}", shown(&point));
        return;
    }
    let deadline = std::time::Instant::now() + GRACE;
    while let Ok(message) = news.recv_deadline(deadline) {
        if matches!(message, News::Ended) {
            return;
        }
    }
    log::warn!("files in {} are still open; reading them gives errors from now on", shown(&point));
}

/// Turns signals into messages, in a thread of its own.
fn watch_signals(news: Sender<News>) -> std::io::Result<signal_hook::iterator::Handle> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1])?;
    let handle = signals.handle();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if news.send(News::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(handle)
}

fn mount_error(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound if !Path::new("/dev/fuse").exists() => {
            "this system has no /dev/fuse; load the fuse module".into()
        }
        ErrorKind::PermissionDenied if File::options().read(true).write(true).open("/dev/fuse").is_err() => {
            "this user may not open /dev/fuse; root can allow it with `chmod 666 /dev/fuse`".into()
        }
        ErrorKind::NotFound => "fusermount3 is missing; install the package fuse3".into(),
        // Not even fusermount3 opens it for a user who may not.
        ErrorKind::PermissionDenied if !may_open_fuse() => {
            "/dev/fuse is closed to this user; root can open it with `chmod 666 /dev/fuse`".into()
        }
        _ => error.to_string().trim_end().to_string(),
    }
}

fn may_open_fuse() -> bool {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_that_cannot_work_are_refused() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("backup");
        let inside = dir.join("mnt");
        let beside = top.path().join("mnt");
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::create_dir(&beside).unwrap();
        std::fs::write(top.path().join("file"), "").unwrap();
        assert_eq!(check_point(&dir, &beside).unwrap(), std::fs::canonicalize(&beside).unwrap());
        for (point, part) in [
            (inside.as_path(), "inside the backup dir"),
            (dir.as_path(), "inside the backup dir"),
            (top.path(), "would hide"),
            (Path::new("/"), "would hide"),
            (&top.path().join("file"), "not a directory"),
            (&top.path().join("absent"), "not usable"),
        ] {
            let error = check_point(&dir, point).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
