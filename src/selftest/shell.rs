//! Header, trailer and footer of an arc: do they authenticate, and are they those of this arc.
//!
//! Invariant: what is wrong at a first read is read once more, past the page cache, before it is judged.

use super::copies::ArcBytes;
use super::findings::{Cause, Part};
use crate::arc::shell::{HEADER_MAGIC, TRAILER_MAGIC};
use crate::arc::{ARC_HEADER_LEN, ARC_TRAILER_LEN, ArcHeader, ArcTrailer, FrameInfo, MAX_PLAIN_LEN};
use crate::backupdir::arcs::open_footer;
use crate::catalog::{ArcEntry, ArcRole};
use crate::crypto::Keys;
use crate::error::Damage;
use crate::ids::{ArcId, ArcName, ArcSalt};

/// Something wrong with a part of an arc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub part: Part,
    pub offset: u64,
    pub damage: Damage,
    pub cause: Cause,
}

/// What surrounds the frames of an arc.
#[derive(Debug, Default)]
pub(super) struct Shell {
    pub faults: Vec<Fault>,
    /// From the footer.
    pub table: Option<Vec<FrameInfo>>,
    /// As the commit record, the header or the trailer has them.
    pub identity: Option<(ArcId, ArcSalt, ArcRole)>,
    /// Header and trailer look like an arc's but do not authenticate: another key made it.
    pub foreign: bool,
    /// Header and trailer are authentic, but another arc's.
    pub other: bool,
}

impl Shell {
    /// Reads and checks them; `entry` is what the commit record says of the arc.
    pub fn read(bytes: &dyn ArcBytes, name: ArcName, entry: Option<&ArcEntry>, keys: &Keys) -> Shell {
        let mut shell = Shell::default();
        let (mut arc_magic, mut end_magic) = (false, false);
        let header = shell.part(bytes, Part::Header, 0, ARC_HEADER_LEN as u64, |found| {
            arc_magic = found.starts_with(HEADER_MAGIC);
            let header = ArcHeader::decode(found, keys)?;
            let same = |e: &ArcEntry| (e.id, e.salt, e.role) == (header.id, header.salt, header.role);
            if header.name == name && entry.is_none_or(same) { Ok(header) } else { Err(Damage::WrongFrame) }
        });
        let trailer_at = bytes.len_bytes().saturating_sub(ARC_TRAILER_LEN as u64);
        let trailer = shell.part(bytes, Part::Trailer, trailer_at, ARC_TRAILER_LEN as u64, |found| {
            end_magic = found.starts_with(TRAILER_MAGIC);
            let trailer = ArcTrailer::decode(found, keys)?;
            let place = (trailer.footer_offset, trailer.footer_len, trailer.frames);
            let same = |e: &ArcEntry| {
                (e.id, e.salt, e.role) == (trailer.id, trailer.salt, trailer.role)
                    && (e.footer_offset, e.footer_len, e.frames) == place
            };
            if entry.is_none_or(same) { Ok(trailer) } else { Err(Damage::WrongFrame) }
        });
        let wrong = |damage: Damage| shell.faults.iter().filter(|fault| fault.damage == damage).count() == 2;
        let (other, unknown) = (wrong(Damage::WrongFrame), header.is_none() && trailer.is_none());
        shell.other = other;
        shell.foreign = unknown && !other && arc_magic && end_magic;
        shell.identity = entry
            .map(|e| (e.id, e.salt, e.role))
            .or(header.map(|h| (h.id, h.salt, h.role)))
            .or(trailer.as_ref().map(|t| (t.id, t.salt, t.role)));
        let footer = entry
            .map(|e| (e.footer_offset, e.footer_len, e.frames))
            .or(trailer.map(|t| (t.footer_offset, t.footer_len, t.frames)));
        if let (Some((id, salt, _)), Some((offset, len, frames))) = (shell.identity, footer) {
            let cipher = keys.arc_cipher(id, &salt);
            shell.table = shell
                .part(bytes, Part::Footer, offset, u64::from(len), |found| open_footer(keys, &cipher, frames, found));
        }
        shell
    }

    /// Reads one part and judges it; what fails is read again.
    fn part<T>(
        &mut self,
        bytes: &dyn ArcBytes,
        part: Part,
        offset: u64,
        len: u64,
        mut judge: impl FnMut(&[u8]) -> Result<T, Damage>,
    ) -> Option<T> {
        let mut read = || -> Result<T, Damage> {
            let mut buffer = vec![0; len.min(MAX_PLAIN_LEN as u64 + 4096) as usize];
            let found = bytes.read(offset, &mut buffer).map_err(unreadable)?;
            judge(buffer.get(..found).unwrap_or_default())
        };
        let damage = match read() {
            Ok(value) => return Some(value),
            Err(damage) => damage,
        };
        bytes.forget(offset, len);
        let (damage, cause, value) = match read() {
            Ok(value) => (damage, Cause::Transient, Some(value)),
            Err(damage) => {
                let cause = cause_of(&damage);
                (damage, cause, None)
            }
        };
        self.faults.push(Fault { part, offset, damage, cause });
        value
    }
}

pub(super) fn unreadable(error: std::io::Error) -> Damage {
    Damage::Unreadable(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Why bytes that failed twice are wrong.
pub(super) fn cause_of(damage: &Damage) -> Cause {
    match damage {
        Damage::Missing | Damage::Truncated { .. } => Cause::Missing,
        Damage::BadCompression | Damage::HashMismatch { .. } => Cause::Memory,
        Damage::BadRecord(_) => Cause::Catalog,
        Damage::BadHeader | Damage::BadTrailer | Damage::WrongFrame | Damage::BadTag | Damage::Unreadable(_) => {
            Cause::Medium
        }
    }
}
