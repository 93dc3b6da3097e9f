//! Inode numbers of the mount: made from the ids that are saved, so they are the same after a remount.
//!
//! ```text
//! 1                                      the mount's root
//! logid (16 .. 2^63)                     a file, symlink, device, …: one state of it, shared by versions
//! 1<<63 | version<<39 | dirno            a directory of one version; dirno 0 is the version's folder
//! 1<<63 | version<<39 | 2^39-1           the symlink `latest` while it points to that version
//! ```
//! `latest` has an inode for each target, so that the kernel may keep what it has read of it.

use crate::ids::{Dirno, Logid, Version};

/// An inode number as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ino(pub u64);

/// What an inode number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Root,
    Latest(Version),
    Dir(Version, Dirno),
    Node(Logid),
}

const DIR_BIT: u64 = 1 << 63;
const DIRNO_BITS: u32 = 39;

impl Ino {
    pub const ROOT: Ino = Ino(1);

    pub fn of_dir(version: Version, dir: Dirno) -> Ino {
        Ino(DIR_BIT | u64::from(version.0) << DIRNO_BITS | dir.0)
    }

    pub fn of_latest(version: Version) -> Ino {
        Ino::of_dir(version, Dirno::MAX)
    }

    pub fn of_node(logid: Logid) -> Ino {
        Ino(logid.0)
    }

    /// None for a number that no file can have.
    pub fn place(self) -> Option<Place> {
        if self == Ino::ROOT {
            return Some(Place::Root);
        }
        if self.0 & DIR_BIT == 0 {
            return (self.0 >= Logid::FIRST.0).then_some(Place::Node(Logid(self.0)));
        }
        let version = Version((self.0 >> DIRNO_BITS) as u32 & Version::MAX.0);
        let dirno = Dirno(self.0 & Dirno::MAX.0);
        Some(if dirno == Dirno::MAX { Place::Latest(version) } else { Place::Dir(version, dirno) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_apart_into_what_they_were_made_of() {
        for place in [
            Place::Dir(Version::MAX, Dirno::ROOT),
            Place::Dir(Version(0), Dirno(Dirno::MAX.0 - 1)),
            Place::Latest(Version(7)),
            Place::Node(Logid::FIRST),
            Place::Node(Logid((1 << 63) - 1)),
        ] {
            let ino = match place {
                Place::Root => Ino::ROOT,
                Place::Latest(version) => Ino::of_latest(version),
                Place::Dir(version, dir) => Ino::of_dir(version, dir),
                Place::Node(logid) => Ino::of_node(logid),
            };
            assert_eq!(ino.place(), Some(place));
        }
        assert_eq!(Ino(1).place(), Some(Place::Root));
        assert_eq!((Ino(0).place(), Ino(2).place(), Ino(15).place()), (None, None, None));
    }
}
