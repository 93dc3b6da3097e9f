//! Header, trailer and footer of an arc: do they authenticate, and are they those of this arc.
//!
//! Invariant: what is wrong at a first read is read once more, past the page cache, before it is judged.

use crate::arc::shell::{HEADER_MAGIC, TRAILER_MAGIC};
use crate::arc::{ARC_HEADER_LEN, ARC_TRAILER_LEN, ArcHeader, ArcTrailer, FrameInfo};
use crate::catalog::{ArcEntry, ArcRole};
use crate::crypto::Keys;
use crate::depot::StoredArc;
use crate::error::{Damage, Error};
use crate::fetch::{self, open_footer};
use crate::findings::{Cause, Part};
use crate::ids::{ArcId, ArcName, ArcSalt};

/// Something wrong with a part of an arc, or what kept it from being read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadPart {
    pub part: Part,
    pub offset: u64,
    pub error: Error,
    pub cause: Cause,
}

impl BadPart {
    pub fn new(arc: ArcName, part: Part, offset: u64, damage: Damage, cause: Cause) -> BadPart {
        let error = Error::arc(arc, offset, damage);
        BadPart { part, offset, error, cause }
    }
}

/// What surrounds the frames of an arc.
#[derive(Debug, Default)]
pub(super) struct Shell {
    pub bad_parts: Vec<BadPart>,
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
    pub fn read(arc: &dyn StoredArc, entry: Option<&ArcEntry>, keys: &Keys) -> Shell {
        let mut shell = Shell::default();
        let (mut arc_magic, mut end_magic) = (false, false);
        let header = shell.part(arc, Part::Header, 0, ARC_HEADER_LEN as u64, |found| {
            arc_magic = found.starts_with(HEADER_MAGIC);
            let header = ArcHeader::decode(found, keys)?;
            let same = |e: &ArcEntry| (e.id, e.salt, e.role) == (header.id, header.salt, header.role);
            if header.name == arc.name() && entry.is_none_or(same) { Ok(header) } else { Err(Damage::WrongFrame) }
        });
        let trailer_at = arc.len_bytes().saturating_sub(ARC_TRAILER_LEN as u64);
        let trailer = shell.part(arc, Part::Trailer, trailer_at, ARC_TRAILER_LEN as u64, |found| {
            end_magic = found.starts_with(TRAILER_MAGIC);
            let trailer = ArcTrailer::decode(found, keys)?;
            let place = (trailer.footer_offset, trailer.footer_len, trailer.frames);
            let same = |e: &ArcEntry| {
                (e.id, e.salt, e.role) == (trailer.id, trailer.salt, trailer.role)
                    && (e.footer_offset, e.footer_len, e.frames) == place
            };
            if entry.is_none_or(same) { Ok(trailer) } else { Err(Damage::WrongFrame) }
        });
        let is = |bad_part: &&BadPart, wanted: &Damage| matches!(&bad_part.error, Error::Arc { damage, .. } if damage == wanted);
        let wrong = |damage: Damage| shell.bad_parts.iter().filter(|bad_part| is(bad_part, &damage)).count() == 2;
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
        if let (Some((id, salt, role)), Some((offset, len, frames))) = (shell.identity, footer) {
            let cipher = keys.arc_cipher(id, &salt);
            shell.table = shell.part(arc, Part::Footer, offset, u64::from(len), |found| {
                open_footer(keys, &cipher, role, frames, offset, found)
            });
        }
        shell
    }

    /// Reads one part and judges it; what fails is read again.
    fn part<T>(
        &mut self,
        arc: &dyn StoredArc,
        part: Part,
        offset: u64,
        len: u64,
        judge: impl FnMut(&[u8]) -> Result<T, Damage>,
    ) -> Option<T> {
        match fetch::look(arc, offset, len, judge) {
            Ok((value, first)) => {
                // One that was not read at first has not been wrong.
                let transient = first.filter(Error::is_damage);
                self.bad_parts.extend(transient.map(|error| BadPart { part, offset, error, cause: Cause::Transient }));
                Some(value)
            }
            Err(error) => {
                let cause = Cause::of(&error);
                self.bad_parts.push(BadPart { part, offset, error, cause });
                None
            }
        }
    }
}
