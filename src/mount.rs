//! The life of a mount: checks, start, signals, end, summary.
//!
//! Invariants: readers never wait for a backup, nor a backup for them; when `serve` says that the mount is ready
//! a request was already answered through it; whatever ends it, no mount is left behind. No thread is started
//! before `serve` is called, so a caller may fork until then.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use signal_hook::consts::{SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::backupdir::BackupDir;
use crate::depot::Depot;
use crate::error::{Error, Result};
use crate::fetch::FrameCache;
use crate::fuse::{Access, Caching, Mounted, raise_read_ahead};
use crate::index::Index;
use crate::ledger::{By, FLUSH_EVERY_S, LedgerWriter, Record, Session};
use crate::mend::Mender;
use crate::os;
use crate::os::mounts::{Mount, MountPoint};
use crate::reader::{self, Backup};
use crate::store::{Heal, Spread, StoreOptions, Summary};
use crate::text::shown;
use crate::tree::View;
use crate::vfs::{Hashing, Owners, Vfs, VfsOptions, VirtualXattrs};

/// How long open files keep a mount alive that was told to end.
const GRACE: Duration = Duration::from_secs(1);

/// How long a path that was removed may still be seen, by whoever has seen it before.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// How long a verified block serves a `--direct` mount: the parts of one block are mostly read one after the other.
const DIRECT_MAX_AGE: Duration = Duration::from_secs(1);

const DEAD_MOUNT: &str = "a mount whose process is gone is here; end it with `fusermount3 -u` first";

/// What a mount shows, to whom, and how.
#[derive(Clone, Default)]
pub struct MountOptions {
    pub access: Access,
    pub caching: Caching,
    pub ownership: Ownership,
    pub view: View,
    /// Show only this version: `r3`, `3`, `latest` or a folder name.
    pub version: Option<String>,
    pub heal: Heal,
    /// What readers meet is mended in the backup dir, too.
    pub mends: bool,
    /// Bound of the cache of verified blocks.
    pub cache_bytes: u64,
    pub hashing: Hashing,
    pub virtual_xattrs: VirtualXattrs,
    /// Threads that answer requests; 0: as many as there are cores, between 2 and 4.
    pub threads: usize,
    /// Keeps what was fetched from far.
    pub frames: Option<Arc<FrameCache>>,
    /// Asked for a block that is not right where it is read first.
    pub copies: Vec<Arc<dyn Depot>>,
}

/// Whose the files are shown to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    #[default]
    Saved,
    /// The user's that mounts.
    Mounter,
}

/// Whether a mount point may have something in it, which the mount hides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hiding {
    #[default]
    Refused,
    Allowed,
}

/// A mount point that was checked, and is held from then on.
#[derive(Debug)]
pub struct Point {
    held: MountPoint,
    path: PathBuf,
    /// What the mount table has as the source: the backup dir.
    name: OsString,
}

impl Point {
    /// Absolute, without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses mount points that can't work, or would hide something.
    pub fn check(backup_dir: &Path, point: &Path, hiding: Hiding) -> Result<Point> {
        let refuse = |what: String| Error::Mount { path: point.to_path_buf(), what };
        let unusable = |error: std::io::Error| match error.raw_os_error() {
            Some(libc::ENOTCONN) => refuse(DEAD_MOUNT.into()),
            Some(libc::ENOTDIR) if std::fs::symlink_metadata(point).is_ok_and(|stat| stat.is_symlink()) => {
                refuse("a symlink; name the directory that it leads to".into())
            }
            Some(libc::ENOTDIR) => refuse("not a directory".into()),
            _ => refuse(format!("not usable as a mount point: {error}")),
        };
        let held = MountPoint::hold(point).map_err(unusable)?;
        let path = held.path().map_err(unusable)?;
        let backup_dir = std::fs::canonicalize(backup_dir).map_err(|error| Error::io("resolve", backup_dir, &error))?;
        if path.starts_with(&backup_dir) {
            return Err(refuse(format!("it is inside the backup dir {}", shown(&backup_dir))));
        }
        if backup_dir.starts_with(&path) {
            return Err(refuse(format!("the mount would hide the backup dir {}", shown(&backup_dir))));
        }
        if let Some(mount) = mounted_at(&path)? {
            if os::mounts::fs_info(&path).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN)) {
                return Err(refuse(DEAD_MOUNT.into()));
            }
            let whose = if mount.source == backup_dir { "this backup" } else { "a backup" };
            return Err(refuse(format!("{whose} is mounted here already")));
        }
        let point = Point { held, path, name: backup_dir.into_os_string() };
        match point.held.is_empty() {
            _ if hiding == Hiding::Allowed => Ok(point),
            Ok(true) => Ok(point),
            Ok(false) => {
                Err(refuse("it is not empty, and the mount would hide what is in it (--nonempty allows that)".into()))
            }
            Err(error) => {
                Err(refuse(format!("it can't be told whether it is empty: {error} (--nonempty allows that)")))
            }
        }
    }

    /// The mount that is here, if it is one of this backup dir.
    fn mount(&self) -> Option<Mount> {
        // By the name that the directory has by now: what was mounted is there, or was put elsewhere.
        let path = self.held.path().ok()?;
        mounted_at(&path).ok()?.filter(|mount| self.is_source_of(mount))
    }

    fn is_source_of(&self, mount: &Mount) -> bool {
        // The helper takes names that are UTF-8 only.
        let helped = shown(&self.name).to_string();
        let source = mount.source.as_os_str();
        mount.fstype == "fuse.assay" && (source == self.name || source == helped.as_str())
    }
}

/// The topmost mount of ours at exactly this path.
fn mounted_at(path: &Path) -> Result<Option<Mount>> {
    let mounts = os::mounts::all().map_err(|error| Error::io("read", "/proc/self/mountinfo", &error))?;
    let on_top = mounts.into_iter().rev().find(|mount| mount.point == path);
    Ok(on_top.filter(|mount| mount.fstype == "fuse.assay"))
}

/// True when this backup dir is mounted at `point`, and answers.
pub fn is_mounted(backup_dir: &Path, point: &Path) -> bool {
    let (Ok(backup_dir), Ok(path)) = (std::fs::canonicalize(backup_dir), std::fs::canonicalize(point)) else {
        return false;
    };
    let here = mounted_at(&path).ok().flatten();
    here.is_some_and(|mount| mount.source == backup_dir) && os::mounts::fs_info(&path).is_ok()
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
    dir: &BackupDir,
    index: Index,
    point: &Point,
    options: &MountOptions,
    ready: impl FnOnce() -> Result<()>,
    report: impl Fn(&Summary),
) -> Result<Summary> {
    let failed = |what: String| Error::Mount { path: point.path.clone(), what };
    let mut store = StoreOptions {
        heal: options.heal,
        copies: options.copies.clone(),
        frames: options.frames.clone(),
        cache_bytes: options.cache_bytes,
        ..StoreOptions::default()
    };
    if options.caching == Caching::Direct {
        store.max_age = Some(DIRECT_MAX_AGE);
    }
    let index = Arc::new(index);
    let ledger = Arc::new(LedgerWriter::new(dir.own(), dir.keys().clone(), By::Mount, &index));
    let started_s = ledger.now_s();
    store.ledger = Some(ledger.clone());
    let mender = || Mender::start(dir, options.copies.clone(), ledger.clone());
    let mender = options.mends.then(mender).transpose()?;
    store.on_damage = mender.as_ref().map(Mender::told);
    let backup = Backup::of(dir, index, reader::Options { view: options.view, store, ..reader::Options::default() });
    let tree = &backup.tree;
    let only = options.version.as_deref().map(|name| tree.version(name)).transpose()?.map(|row| row.version);
    // A damaged row of one version leaves the others usable by name; if not even the newest can be read, say so now.
    if tree.versions().is_err() {
        tree.index().newest()?;
    }
    let mounter = (os::process::geteuid(), os::process::getegid());
    let owners = match options.ownership {
        Ownership::Saved => Owners::Saved,
        Ownership::Mounter => Owners::All { uid: mounter.0, gid: mounter.1 },
    };
    let (news_tx, news) = unbounded();
    // What ends it too.
    os::mapped::tell_by(libc::SIGTERM);
    // Before the mount exists: a signal from now on ends it cleanly.
    let signals = watch_signals(news_tx.clone()).map_err(|error| failed(format!("signals: {error}")))?;
    let vfs_options = VfsOptions {
        owners,
        only,
        mounter,
        hashing: options.hashing,
        virtual_xattrs: options.virtual_xattrs,
        dir: dir.path().to_path_buf(),
    };
    let vfs = Arc::new(Vfs::new(&backup, vfs_options));
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = match options.threads {
        0 => cores.clamp(2, 4),
        threads => threads,
    };
    let ended = move || {
        let _ = news_tx.send(News::Ended);
    };
    let mounted =
        Mounted::start(vfs.clone(), &point.held, &point.name, options.access, options.caching, threads, ended)
            .map_err(|error| failed(mount_error(&error)))?;
    let Some(mount) = point.mount() else {
        let newest =
            os::mounts::all().ok().and_then(|mounts| mounts.into_iter().rfind(|mount| point.is_source_of(mount)));
        end_mount(mounted, newest.map(|mount| mount.dev), &point.path, &news);
        return Err(failed("the directory was moved or replaced while it was being mounted on".into()));
    };
    let crash = os::crash::unmount_on_crash(&mount.point, &unmount_helper());
    let looked = os::process::without_descriptors(|| std::fs::metadata(&mount.point));
    let answered = looked.and_then(|stat| stat).map(|stat| {
        // When the kernel asks for so much at a time that each core has a request, decoding ahead has no use.
        let reads_far_ahead = raise_read_ahead(stat.dev()) && options.caching == Caching::PageCache;
        if reads_far_ahead && threads >= cores {
            backup.store.set_spread(Spread::Caller);
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
    let other_history = Cell::new(false);
    let forget = || match vfs.removed_names() {
        Ok(names) => mounted.forget_names(names),
        Err(error @ Error::HistoryChanged { .. }) => {
            mounted.forget_names(vfs.folders());
            if !other_history.replace(true) {
                log::error!("{}: {error}; unmount it, and mount it again", error.code());
            }
        }
        // Whoever reads meets it too.
        Err(error) => log::debug!("{error}"),
    };
    let over = started.map(|()| {
        wait_for_end(&news, forget, remember, || {
            remember();
            report(&vfs.summary());
        })
    });
    match over {
        Ok(Over::Unmounted) => mounted.forget(),
        Ok(Over::Signal) | Err(_) => end_mount(mounted, Some(mount.dev), &mount.point, &news),
    }
    drop(crash);
    signals.close();
    // Whoever unmounts it waits for nothing; what was met is mended to its end, unless a signal says that there is no time.
    let mended = mender.map(|mender| mender.end(!matches!(over, Ok(Over::Unmounted)))).unwrap_or_default();
    remember();
    backup.index().check_shared()?;
    over.map(|_| Summary { mended: mended.mended, ..vfs.summary() })
}

/// Why a mount is over.
#[derive(Clone, Copy)]
enum Over {
    Unmounted,
    Signal,
}

/// Waits; meanwhile removed paths are forgotten, and, each `FLUSH_EVERY_S`, what was verified is written down.
fn wait_for_end(news: &Receiver<News>, forget: impl Fn(), remember: impl Fn(), report: impl Fn()) -> Over {
    let mut remembered = Instant::now();
    loop {
        match news.recv_timeout(FORGET_EVERY) {
            Ok(News::Signal(SIGUSR1)) => report(),
            Ok(News::Signal(_)) => return Over::Signal,
            Ok(News::Ended) | Err(RecvTimeoutError::Disconnected) => return Over::Unmounted,
            Err(RecvTimeoutError::Timeout) => {
                forget();
                if remembered.elapsed() >= Duration::from_secs(FLUSH_EVERY_S) {
                    remembered = Instant::now();
                    remember();
                }
            }
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
fn end_mount(mounted: Mounted, device: Option<u64>, point: &Path, news: &Receiver<News>) {
    let place = point.to_path_buf();
    // In a thread of its own: it ends only when the last open file is closed.
    let unmounting = std::thread::Builder::new().name("unmount".into()).spawn(move || {
        if let Err(error) = mounted.unmount(device) {
            log::error!("cannot unmount {}: {error}", shown(&place));
        }
    });
    if let Err(error) = unmounting {
        log::error!("cannot unmount {}: {error}", shown(&point));
        return;
    }
    let deadline = Instant::now() + GRACE;
    while let Ok(message) = news.recv_deadline(deadline) {
        if matches!(message, News::Ended) {
            return;
        }
    }
    log::warn!("files in {} are still open; reading them gives errors from now on", shown(&point));
}

/// Turns signals into messages, in a thread of its own.
fn watch_signals(news: Sender<News>) -> std::io::Result<signal_hook::iterator::Handle> {
    // A mount under nohup(1) outlives its terminal. A limit of file sizes is an error of the write that meets it.
    let wanted = os::process::ending_signals().into_iter().filter(|signal| !os::process::is_ignored(*signal));
    let mut signals = Signals::new(wanted)?;
    let handle = signals.handle();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if signal == SIGXFSZ {
                continue;
            }
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

/// What unmounts for users who may not.
fn unmount_helper() -> PathBuf {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&directories).map(|dir| dir.join("fusermount3")).find(|file| file.is_file());
    found.unwrap_or_else(|| "/usr/bin/fusermount3".into())
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
        std::os::unix::fs::symlink("mnt", top.path().join("link")).unwrap();
        std::fs::create_dir_all(top.path().join("full/of")).unwrap();
        let check = |point: &Path| Point::check(&dir, point, Hiding::Refused);
        assert_eq!(check(&beside).unwrap().path(), std::fs::canonicalize(&beside).unwrap());
        for (point, part) in [
            (inside.as_path(), "inside the backup dir"),
            (dir.as_path(), "inside the backup dir"),
            (top.path(), "would hide"),
            (Path::new("/"), "would hide"),
            (&top.path().join("file"), "not a directory"),
            (&top.path().join("absent"), "not usable"),
            (&top.path().join("link"), "a symlink"),
            (&top.path().join("full"), "not empty"),
        ] {
            let error = check(point).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        Point::check(&dir, &top.path().join("full"), Hiding::Allowed).unwrap();
    }
}
