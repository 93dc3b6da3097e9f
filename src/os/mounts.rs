//! The mount table and what kind of file system a path is on.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::stat::makedev;
use super::{c_string, check};

/// One line of /proc/self/mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    pub parent: u64,
    /// Device number of the file system, as `st_dev` (btrfs shows others per subvolume).
    pub dev: u64,
    pub point: PathBuf,
    /// Mount options, comma-separated (`ro,nosuid,…`).
    pub options: String,
    /// File system type with subtype (`ext4`, `fuse.assay`).
    pub fstype: String,
    pub source: PathBuf,
}

/// All mounts that this process sees, in mount order (a later one may cover an earlier one).
pub fn all() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount that `path` is on, by the longest mount point; the path should be absolute and canonical.
pub fn holding<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    // Of equal mount points the last one is on top.
    mounts.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.as_os_str().len())
}

/// Parses mountinfo; lines that it does not understand are left out.
pub fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let text = |index: usize| fields.get(index).and_then(|field| std::str::from_utf8(field).ok());
    let number = |index: usize| text(index).and_then(|field| field.parse().ok());
    // id parent major:minor root point options [tags…] - fstype source super-options
    let separator = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let (major, minor) = text(2)?.split_once(':')?;
    Some(Mount {
        id: number(0)?,
        parent: number(1)?,
        dev: makedev(major.parse().ok()?, minor.parse().ok()?),
        point: unescape(fields.get(4)?),
        options: text(5)?.to_string(),
        fstype: String::from_utf8_lossy(unescape(fields.get(separator + 1)?).as_os_str().as_bytes()).into_owned(),
        source: unescape(fields.get(separator + 2)?),
    })
}

/// Resolves the `\ooo` by which the kernel writes space, tab, newline and backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match octal {
            Some(digits) if first == b'\\' => {
                plain.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                plain.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&plain))
}

/// A directory that is held, so that what was checked of it is what will be mounted on, whatever its names lead to
/// by then.
#[derive(Debug)]
pub struct MountPoint {
    dir: OwnedFd,
}

impl MountPoint {
    /// Holds what `path` names, but never what a symlink there leads to (ENOTDIR, as for a file).
    pub fn hold(path: &Path) -> io::Result<MountPoint> {
        let point = MountPoint { dir: held(path)? };
        // O_DIRECTORY would have an automounter, which waits for us, mount something here first.
        if point.stat()?.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
        }
        Ok(point)
    }

    /// Where it is by now.
    pub fn path(&self) -> io::Result<PathBuf> {
        std::fs::read_link(self.magic_link())
    }

    /// The mount that it is in. Unlike `stat` this asks nothing of the file system there.
    fn mount_id(&self) -> io::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.dir.as_raw_fd()))?;
        let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        id.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODATA))
    }

    /// True when there is nothing in it that a mount would hide.
    pub fn is_empty(&self) -> io::Result<bool> {
        let path = self.magic_link();
        if fs_info(&path)?.magic == AUTOFS_MAGIC {
            return Ok(true);
        }
        Ok(std::fs::read_dir(path)?.next().transpose()?.is_none())
    }

    /// Mounts a FUSE file system on it, read-only, without devices and set-id bits; gives the open /dev/fuse.
    ///
    /// EPERM for those who need the helper to do it.
    pub fn mount_fuse(&self, source: &std::ffi::OsStr, subtype: &str, options: &str) -> io::Result<OwnedFd> {
        let fuse = OwnedFd::from(std::fs::File::options().read(true).write(true).open("/dev/fuse")?);
        let mode = self.stat()?.st_mode & libc::S_IFMT;
        let (uid, gid) = (super::process::getuid(), super::process::getgid());
        let data = format!("fd={},rootmode={mode:o},user_id={uid},group_id={gid},{options}", fuse.as_raw_fd());
        let (source, target) = (c_string(source.as_bytes())?, c_string(self.magic_link().as_os_str().as_bytes())?);
        let (fstype, data) = (c_string(format!("fuse.{subtype}").as_bytes())?, c_string(data.as_bytes())?);
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
        // SAFETY: all strings are NUL-terminated and live for the whole call.
        check(|| unsafe {
            libc::mount(source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags, data.as_ptr().cast())
        })?;
        Ok(fuse)
    }

    fn stat(&self) -> io::Result<libc::stat> {
        // SAFETY: `stat` is plain integers, for which zeros are valid.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open and `stat` is writable for the whole call.
        check(|| unsafe { libc::fstat(self.dir.as_raw_fd(), &raw mut stat) })?;
        Ok(stat)
    }

    /// The kernel's link to the directory itself.
    fn magic_link(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.dir.as_raw_fd()).into()
    }
}

fn held(path: &Path) -> io::Result<OwnedFd> {
    let path = c_string(path.as_os_str().as_bytes())?;
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `path` is NUL-terminated.
    let fd = check(|| unsafe { libc::open(path.as_ptr(), flags) })?;
    // SAFETY: the call just gave us the descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes every mount of a file system out of the tree now, also while files in it are open, and no other one that is
/// in its place by then.
pub fn detach(device: u64) -> io::Result<()> {
    for mount in all()?.iter().rev().filter(|mount| mount.dev == device) {
        let root = MountPoint { dir: held(&mount.point)? };
        if root.mount_id()? != mount.id {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let link = c_string(root.magic_link().as_os_str().as_bytes())?;
        // SAFETY: `link` is NUL-terminated.
        check(|| unsafe { libc::umount2(link.as_ptr(), libc::MNT_DETACH) })?;
    }
    Ok(())
}

/// Space and kind of the file system that holds a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsInfo {
    /// `f_type`, as in linux/magic.h.
    pub magic: u64,
    pub block_bytes: u64,
    pub blocks: u64,
    pub blocks_free: u64,
    /// Free for ordinary users.
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub name_max: u64,
}

/// Asks the file system that holds `path` (following symlinks).
pub fn fs_info(path: &Path) -> io::Result<FsInfo> {
    let path = c_string(path.as_os_str().as_bytes())?;
    // SAFETY: `statfs` is plain integers, for which zeros are valid.
    let mut raw: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is NUL-terminated and `raw` is writable for the whole call.
    check(|| unsafe { libc::statfs(path.as_ptr(), &raw mut raw) })?;
    Ok(FsInfo {
        // The low 32 bits are the number, whatever the sign of the platform's field.
        magic: raw.f_type as u64 & 0xffff_ffff,
        block_bytes: u64::try_from(raw.f_bsize).unwrap_or(0),
        blocks: raw.f_blocks,
        blocks_free: raw.f_bfree,
        blocks_available: raw.f_bavail,
        files: raw.f_files,
        files_free: raw.f_ffree,
        name_max: u64::try_from(raw.f_namelen).unwrap_or(255),
    })
}

/// `f_type` of every FUSE file system.
pub const FUSE_MAGIC: u64 = 0x6573_5546;
const AUTOFS_MAGIC: u64 = 0x0187;

/// NFS, SMB/CIFS (three numbers), AFS, Coda, Ceph, 9p, OCFS2, GFS2, Lustre, NCP.
const NETWORK_MAGICS: [u64; 12] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x5346_414f,
    0x7375_7245,
    0x00c3_6400,
    0x0102_1997,
    0x7461_636f,
    0x0116_1970,
    0x0bd0_0bd0,
    0x564c,
];

/// FUSE subtypes that are local, or at least keep shared memory and locks on one machine.
const LOCAL_FUSE: [&str; 10] = [
    "fuseblk",
    "fuse.ntfs-3g",
    "fuse.exfat",
    "fuse.bindfs",
    "fuse.mergerfs",
    "fuse.encfs",
    "fuse.gocryptfs",
    "fuse.cryfs",
    "fuse.squashfuse",
    "fuse.fuse-overlayfs",
];

/// A test's directory with this name in it counts as a network file system.
#[cfg(test)]
pub const PRETENDED: &str = ".a-network-file-system";

/// True when `path` is on a file system that other machines may change too, where SQLite's WAL does not work.
///
/// An unknown FUSE file system counts as one.
pub fn fs_is_network(path: &Path) -> io::Result<bool> {
    #[cfg(test)]
    if path.join(PRETENDED).exists() {
        return Ok(true);
    }
    let magic = fs_info(path)?.magic;
    if magic != FUSE_MAGIC {
        return Ok(NETWORK_MAGICS.contains(&magic));
    }
    let path = std::fs::canonicalize(path)?;
    let mounts = all()?;
    Ok(!holding(&mounts, &path).is_some_and(|mount| LOCAL_FUSE.contains(&mount.fstype.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_optional_fields_and_octal_escapes() {
        let text =
            b"36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
            40 35 0:52 / /home/u/\xff\\011m ro,nosuid,nodev - fuse.assay assay ro,user_id=0\ngarbage\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!((mounts[0].id, mounts[0].parent, mounts[0].dev), (36, 35, makedev(98, 0)));
        assert_eq!(mounts[0].point, Path::new("/mnt 2\\x"));
        assert_eq!((mounts[0].fstype.as_str(), mounts[0].source.as_path()), ("ext3", Path::new("/dev/root")));
        assert_eq!(mounts[1].point.as_os_str().as_bytes(), b"/home/u/\xff\tm");
        assert_eq!((mounts[1].fstype.as_str(), mounts[1].options.as_str()), ("fuse.assay", "ro,nosuid,nodev"));
    }

    #[test]
    fn the_longest_mount_point_holds_a_path_and_the_last_of_equals() {
        let line = |id: u32, point: &str| format!("{id} 1 0:{id} / {point} rw - tmpfs none rw\n");
        let text = [line(1, "/"), line(2, "/a/b"), line(3, "/a"), line(4, "/a/b"), line(5, "/a/bc")].concat();
        let mounts = parse(text.as_bytes());
        let found = |path| holding(&mounts, Path::new(path)).map(|mount| mount.id);
        assert_eq!(
            (found("/a/b/x"), found("/a/bcd"), found("/z"), found("/a/bc")),
            (Some(4), Some(3), Some(1), Some(5))
        );
    }

    #[test]
    fn this_machine_has_a_proc_that_is_no_network() {
        let mounts = all().unwrap();
        let proc = holding(&mounts, Path::new("/proc/self")).unwrap();
        assert_eq!((proc.fstype.as_str(), proc.point.as_path()), ("proc", Path::new("/proc")));
        assert!(!fs_is_network(Path::new("/proc")).unwrap());
        assert!(!fs_is_network(&std::env::temp_dir()).unwrap());
        let info = fs_info(&std::env::temp_dir()).unwrap();
        assert!(info.block_bytes >= 512 && info.name_max == 255);
    }
}
