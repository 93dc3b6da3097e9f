//! The mounted filesystem without FUSE: names, attributes, directories, contents.
//!
//! Invariants: an answer is what was backed up, or an error; a read gives all bytes asked for (to the end of the
//! file) or none; what lies below a version never changes, so the kernel may keep it for ever, while the root
//! is asked each time; no table of inodes exists: a number says what it stands for (`ino`).

mod ahead;
mod dirs;
mod hashing;
mod ino;
mod read;
#[cfg(test)]
mod tests;
mod virtual_xattrs;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use lru::LruCache;

use crate::catalog::{Attr, Child, Kind, Timespec, Xattrs, codec};
use crate::error::{Error, Result};
use crate::ids::{Dirno, Logid, Version};
use crate::index::{DirRow, Name, VersionRow};
use crate::reader::Backup;
use crate::store::{Store, Summary};
use crate::sync::lock;
use crate::tree::{SeekTo, Tree};
use ahead::Ahead;
pub use dirs::DirItem;
use dirs::Listings;
use hashing::Hashes;
pub use hashing::Hashing;
pub use ino::{Ino, Place};
use read::Streams;
use virtual_xattrs::{Known, OWN_PREFIX, USER_PREFIX};

/// Files whose readers are watched for sequential reading.
const MAX_STREAMS: usize = 256;
/// Unit of `st_blocks` rounding: what ext4 allocates.
const ALLOCATION_BYTES: u64 = 4096;

/// Who owns what is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owners {
    /// As it was saved.
    #[default]
    Saved,
    /// All of it belongs to this user and group.
    All { uid: u32, gid: u32 },
}

/// Whether `system.assay.…` attributes are listed; by name they are there always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VirtualXattrs {
    #[default]
    Unlisted,
    Listed,
}

/// How a mount shows the backup.
#[derive(Debug, Clone, Default)]
pub struct VfsOptions {
    pub owners: Owners,
    /// Show only this version (`latest` points to it).
    pub only: Option<Version>,
    /// Owner of the mount's root and of `latest`.
    pub mounter: (u32, u32),
    pub hashing: Hashing,
    pub virtual_xattrs: VirtualXattrs,
    /// Where the backup dir is: the room on its file system is the mount's.
    pub dir: PathBuf,
}

/// What `stat` gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub ino: Ino,
    pub kind: Kind,
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub mtime: Timespec,
    pub ctime: Timespec,
    pub rdev_major: u32,
    pub rdev_minor: u32,
}

/// How long the kernel may believe an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    Forever,
    /// A second: the root's own attributes, which every path walk checks.
    Briefly,
    /// `LATEST_LIFETIME`: the name `latest`, which many a path walk passes.
    Moment,
    /// The root's other names.
    Never,
}

/// Sizes for `df`: in use is what the newest version has, free is the room for more backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsSize {
    /// Of `FsSize::UNIT` bytes.
    pub blocks: u64,
    pub blocks_free: u64,
    pub files: u64,
    pub files_free: u64,
}

impl FsSize {
    pub const UNIT: u32 = 4096;
    pub const MAX_NAME_LEN: u32 = codec::MAX_NAME_LEN as u32;
}

/// The filesystem.
pub struct Vfs {
    tree: Arc<Tree>,
    store: Arc<Store>,
    options: VfsOptions,
    listings: Mutex<Listings>,
    streams: Mutex<LruCache<Logid, Streams>>,
    ahead: Ahead,
    hashes: Hashes,
    /// What the ledger said when it was last asked.
    known: Mutex<Option<Known>>,
    /// The run up to which it is known what was removed; None: no run is known.
    removals_known: Mutex<Option<Version>>,
    /// Names of versions' folders that were given out.
    folders: Mutex<BTreeSet<String>>,
}

impl Vfs {
    pub fn new(backup: &Backup, options: VfsOptions) -> Vfs {
        let (tree, store) = (backup.tree.clone(), backup.store.clone());
        let last = tree.index().state().ok().and_then(|state| state.last_commit).map(|(run, _)| run);
        Vfs {
            ahead: Ahead::start(tree.clone(), store.clone()),
            tree,
            store,
            options,
            listings: Mutex::new(Listings::new()),
            streams: Mutex::new(LruCache::new(NonZeroUsize::new(MAX_STREAMS).unwrap_or(NonZeroUsize::MIN))),
            hashes: Hashes::new(),
            known: Mutex::new(None),
            removals_known: Mutex::new(last),
            folders: Mutex::new(BTreeSet::new()),
        }
    }

    pub fn summary(&self) -> Summary {
        self.store.summary()
    }

    /// Finds a name in a directory; `None` with the time for which its absence may be believed.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<(Option<Stat>, Lifetime)> {
        match place_of(parent)? {
            Place::Root => self.lookup_in_root(name),
            Place::Dir(version, dir) => match self.tree.child(version, dir, name)? {
                Some(entry) => {
                    let (attr, data_bytes) = self.tree.entry_attr(version, dir, &entry)?;
                    Ok((Some(self.entry_stat(version, entry.child, &attr, data_bytes)), Lifetime::Forever))
                }
                None => {
                    self.check_not_gone(version, dir)?;
                    Ok((None, Lifetime::Forever))
                }
            },
            Place::Latest(_) | Place::Node(_) => Err(not_a_directory(parent)),
        }
    }

    fn lookup_in_root(&self, name: &[u8]) -> Result<(Option<Stat>, Lifetime)> {
        if name == b"latest" {
            let stat = self.newest()?.map(|row| self.latest_stat(&row));
            let lifetime = if stat.is_some() { Lifetime::Moment } else { Lifetime::Never };
            return Ok((stat, lifetime));
        }
        let row = match std::str::from_utf8(name) {
            Ok(name) => self.tree.index().version_by_name(name)?,
            Err(_) => None,
        };
        match row.filter(|row| self.options.only.is_none_or(|only| only == row.version)) {
            Some(row) => {
                let stat = self.version_stat(&row)?;
                lock(&self.folders).insert(row.info.name);
                Ok((Some(stat), Lifetime::Forever))
            }
            None => Ok((None, Lifetime::Never)),
        }
    }

    /// What `stat` gives for an inode.
    pub fn getattr(&self, ino: Ino) -> Result<(Stat, Lifetime)> {
        match place_of(ino)? {
            Place::Root => Ok((self.root_stat()?, Lifetime::Briefly)),
            Place::Latest(version) => Ok((self.latest_stat(&self.version_row(version)?), Lifetime::Forever)),
            Place::Dir(version, Dirno::ROOT) => {
                Ok((self.version_stat(&self.version_row(version)?)?, Lifetime::Forever))
            }
            Place::Dir(version, dir) => {
                let row = self.dir_row(version, dir)?;
                Ok((self.entry_stat(version, Child::Dir(dir), &row.state.attr, 0), Lifetime::Forever))
            }
            Place::Node(logid) => {
                let (attr, data_bytes) = self.tree.attr(logid)?;
                Ok((self.node_stat(logid, &attr, data_bytes), Lifetime::Forever))
            }
        }
    }

    /// Target of a symlink.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        match place_of(ino)? {
            Place::Latest(version) => Ok(self.version_row(version)?.info.name.into_bytes()),
            Place::Node(logid) => {
                let node = self.tree.node(logid)?;
                match node.attr.kind {
                    Kind::Symlink => Ok(node.target.clone()),
                    _ => Err(Error::Usage(format!("inode {} is no symlink", ino.0))),
                }
            }
            Place::Root | Place::Dir(..) => Err(Error::Usage(format!("inode {} is no symlink", ino.0))),
        }
    }

    /// Value of an extended attribute; None if there is none of that name (ENODATA).
    ///
    /// `system.assay.…` is the mount's own word whatever was saved; `user.assay.…` is too, on what was saved without
    /// attributes of such names.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if let Some(own) = name.strip_prefix(OWN_PREFIX) {
            return self.virtual_xattr(ino, own);
        }
        let find = |xattrs: &Xattrs| {
            let value = xattrs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            (value, xattrs.iter().any(|(known, _)| known.starts_with(USER_PREFIX)))
        };
        match (self.with_xattrs(ino, find)?, name.strip_prefix(USER_PREFIX)) {
            ((None, false), Some(own)) => self.virtual_xattr(ino, own),
            ((saved, _), _) => Ok(saved),
        }
    }

    /// Names of the extended attributes, each ended by NUL. `trusted.*` is shown to root only, as on ext4.
    pub fn listxattr(&self, ino: Ino, caller_uid: u32) -> Result<Vec<u8>> {
        let saved = self.with_xattrs(ino, |xattrs| {
            let allowed = |name: &[u8]| caller_uid == 0 || !name.starts_with(b"trusted.");
            let shown = xattrs.iter().filter(|(name, _)| allowed(name) && !name.starts_with(OWN_PREFIX));
            shown.map(|(name, _)| name.clone()).collect::<Vec<_>>()
        })?;
        let mut names: Vec<u8> = saved.iter().flat_map(|name| name.iter().copied().chain([0])).collect();
        if self.options.virtual_xattrs == VirtualXattrs::Listed {
            names.extend(self.virtual_xattr_names(ino)?.into_iter().flat_map(|name| name.into_iter().chain([0])));
        }
        Ok(names)
    }

    fn with_xattrs<T>(&self, ino: Ino, look: impl FnOnce(&Xattrs) -> T) -> Result<T> {
        match place_of(ino)? {
            Place::Root | Place::Latest(_) => Ok(look(&Vec::new())),
            Place::Dir(version, dir) => Ok(look(&self.dir_row(version, dir)?.state.xattrs)),
            Place::Node(logid) => Ok(look(&self.tree.node(logid)?.xattrs)),
        }
    }

    /// Where data or a hole begins at or after `offset`; None past the end (ENXIO).
    pub fn seek(&self, ino: Ino, offset: u64, to: SeekTo) -> Result<Option<u64>> {
        let logid = self.file(ino)?;
        self.tree.seek(&*self.tree.node(logid)?, offset, to)
    }

    /// The size of the newest version that is shown, and the room where the backup dir is: a read-only mount that is
    /// always full would set off every alarm about full disks.
    pub fn size(&self) -> Result<FsSize> {
        let info = self.newest()?.map(|row| row.info).unwrap_or_default();
        let disk = crate::os::mounts::fs_info(&self.options.dir).ok();
        let unit = u64::from(FsSize::UNIT);
        let blocks_free = disk.map_or(0, |disk| {
            (u128::from(disk.blocks_available) * u128::from(disk.block_bytes) / u128::from(unit)) as u64
        });
        let files_free = disk.map_or(0, |disk| disk.files_free);
        Ok(FsSize {
            blocks: info.tree_bytes.div_ceil(unit).max(1).saturating_add(blocks_free),
            blocks_free,
            files: info.files.saturating_add(info.dirs).saturating_add(info.others).max(1).saturating_add(files_free),
            files_free,
        })
    }

    /// The errno for an error of a request at `ino`; damage is counted and logged, once for each inode.
    pub fn errno(&self, ino: Ino, error: &Error) -> i32 {
        // Damage of a block was noted where it was met, with its place.
        if error.is_damage() && !matches!(error, Error::Arc { .. }) {
            let index = self.tree.index();
            self.store.note_damage(ino.0, error, || match ino.place()? {
                Place::Node(logid) => index.path_of_node(logid).ok(),
                Place::Dir(version, dir) => Some((version, index.path_of_dir(version, dir).ok()?)),
                Place::Root | Place::Latest(_) => None,
            });
        } else if !matches!(error, Error::Arc { .. }) && error.errno() == libc::EIO {
            log::error!("{}: {error}", error.code());
        }
        match error {
            Error::Usage(_) if matches!(ino.place(), Some(Place::Dir(..) | Place::Root)) => libc::EISDIR,
            error => error.errno(),
        }
    }

    fn newest(&self) -> Result<Option<VersionRow>> {
        match self.options.only {
            Some(only) => self.tree.index().version(only),
            None => self.tree.index().newest(),
        }
    }

    fn version_row(&self, version: Version) -> Result<VersionRow> {
        self.tree.index().version(version)?.ok_or(Error::VersionGone { version })
    }

    fn dir_row(&self, version: Version, dir: Dirno) -> Result<DirRow> {
        self.tree.dir(version, dir).or_else(|error| {
            self.check_not_gone(version, dir)?;
            Err(error)
        })
    }

    /// `VersionGone` or `PathGone` if it was removed while it was mounted.
    fn check_not_gone(&self, version: Version, dir: Dirno) -> Result<()> {
        self.version_row(version)?;
        match self.tree.index().is_removed(dir)? {
            true => Err(Error::PathGone { version }),
            false => Ok(()),
        }
    }

    /// The folders of versions that somebody may know.
    pub fn folders(&self) -> Vec<(Ino, Vec<u8>)> {
        lock(&self.folders).iter().map(|name| (Ino::ROOT, name.clone().into_bytes())).collect()
    }

    /// The names below versions that were removed since the last time: whoever has kept them is to forget them.
    pub fn removed_names(&self) -> Result<Vec<(Ino, Vec<u8>)>> {
        let mut known = lock(&self.removals_known);
        let (removed, last) = self.tree.index().removed_after(*known)?;
        if last > *known {
            *known = last;
        }
        if removed.is_empty() {
            return Ok(Vec::new());
        }
        *lock(&self.listings) = Listings::new();
        let versions = self.tree.versions()?;
        let in_all = |(dir, name): &Name| {
            let ino = |row: &VersionRow| (Ino::of_dir(row.version, *dir), name.clone());
            versions.iter().map(ino).collect::<Vec<_>>()
        };
        Ok(removed.iter().flat_map(in_all).collect())
    }

    fn file(&self, ino: Ino) -> Result<Logid> {
        match place_of(ino)? {
            Place::Node(logid) => Ok(logid),
            Place::Root | Place::Latest(_) | Place::Dir(..) => Err(Error::Usage(format!("inode {} is no file", ino.0))),
        }
    }

    fn root_stat(&self) -> Result<Stat> {
        let versions = match self.shown_versions() {
            // Every path leads through the root: one bad row of a version must not close them all.
            Err(error) if error.is_damage() => {
                self.errno(Ino::ROOT, &error);
                Vec::new()
            }
            other => other?,
        };
        let mtime = versions.last().map(|row| row.info.finished).unwrap_or_default();
        Ok(Stat {
            ino: Ino::ROOT,
            kind: Kind::Dir,
            perm: 0o555,
            nlink: 2 + versions.len() as u32,
            size: ALLOCATION_BYTES,
            blocks: 0,
            ..self.own_stat(mtime)
        })
    }

    fn latest_stat(&self, newest: &VersionRow) -> Stat {
        Stat {
            ino: Ino::of_latest(newest.version),
            kind: Kind::Symlink,
            perm: 0o777,
            nlink: 1,
            size: newest.info.name.len() as u64,
            blocks: 0,
            ..self.own_stat(newest.info.finished)
        }
    }

    /// A version's folder: the saved `/`, but dated with the end of the backup run, so that `ls -l` says when.
    fn version_stat(&self, row: &VersionRow) -> Result<Stat> {
        let dir = self.tree.dir(row.version, Dirno::ROOT)?;
        let stat = self.entry_stat(row.version, Child::Dir(Dirno::ROOT), &dir.state.attr, 0);
        Ok(Stat { mtime: row.info.finished, ctime: row.info.finished, ..stat })
    }

    /// Fields of what exists in the mount only.
    fn own_stat(&self, time: Timespec) -> Stat {
        let (uid, gid) = self.options.mounter;
        Stat {
            ino: Ino::ROOT,
            kind: Kind::Dir,
            perm: 0,
            uid,
            gid,
            nlink: 1,
            size: 0,
            blocks: 0,
            mtime: time,
            ctime: time,
            rdev_major: 0,
            rdev_minor: 0,
        }
    }

    fn entry_stat(&self, version: Version, child: Child, attr: &Attr, data_bytes: u64) -> Stat {
        match child {
            Child::Node(logid) => self.node_stat(logid, attr, data_bytes),
            Child::Dir(dir) => self.stat(Ino::of_dir(version, dir), attr, attr.size),
        }
    }

    fn node_stat(&self, logid: Logid, attr: &Attr, data_bytes: u64) -> Stat {
        self.stat(Ino::of_node(logid), attr, data_bytes)
    }

    fn stat(&self, ino: Ino, attr: &Attr, allocated_bytes: u64) -> Stat {
        let (uid, gid) = match self.options.owners {
            Owners::Saved => (attr.uid, attr.gid),
            Owners::All { uid, gid } => (uid, gid),
        };
        Stat {
            ino,
            kind: attr.kind,
            perm: attr.perm,
            uid,
            gid,
            nlink: attr.nlink.max(1),
            size: attr.size,
            blocks: allocated_bytes.div_ceil(ALLOCATION_BYTES).saturating_mul(ALLOCATION_BYTES / 512),
            mtime: attr.mtime,
            ctime: attr.ctime,
            rdev_major: attr.rdev_major,
            rdev_minor: attr.rdev_minor,
        }
    }

    fn shown_versions(&self) -> Result<Vec<VersionRow>> {
        let mut versions = self.tree.versions()?;
        if let Some(only) = self.options.only {
            versions.retain(|row| row.version == only);
        }
        Ok(versions)
    }
}

fn place_of(ino: Ino) -> Result<Place> {
    ino.place().ok_or_else(|| Error::Usage(format!("no file has the inode number {}", ino.0)))
}

fn not_a_directory(ino: Ino) -> Error {
    Error::Usage(format!("inode {} is no directory", ino.0))
}
