//! DESTID: the object that makes a place one of a backup (docs/format.md, "Destination").
//!
//! Invariants: a place without it, or with another backup's, is never written to but by `set`, and that only where nothing
//! is; an id is random and a number is given once, so that what is remembered of a copy is never believed of another.

use super::known::{Known, Place};
use super::settings::Verify;
use super::{Settings, Storage, proof, trouble};
use crate::backupdir::{BackupDir, Lock};
use crate::crypto::{self, Domain, Keys, TAG_LEN};
use crate::error::{Error, Result, Trouble};
use crate::ids::{ArcSalt, BackupId, CopyId, DestId};
use crate::text::counted;

pub const DESTID: &str = "DESTID";
pub const MARK_FORMAT: u16 = 2;
pub const MARK_LEN: usize = 98;
const MAGIC: &[u8; 8] = b"ASSAYDST";
/// What stands before the sealed bytes.
const CLEAR_LEN: usize = 64;
const SEALED_LEN: usize = 18;

/// Which copy of which backup is at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub id: DestId,
    pub copy: CopyId,
}

impl Mark {
    pub fn encode(&self, keys: &Keys, salt: &ArcSalt) -> Vec<u8> {
        let mut clear = Vec::with_capacity(MARK_LEN);
        clear.extend(MAGIC);
        clear.extend(MARK_FORMAT.to_le_bytes());
        clear.extend([0; 6]);
        clear.extend(keys.backup_id().0);
        clear.extend(salt.0);
        let mut sealed = [&self.id.0[..], &self.copy.0.to_le_bytes()].concat();
        let tag = keys.mark_cipher(salt).seal(Domain::Mark, 0, &clear, &mut sealed);
        [clear, sealed, tag.to_vec()].concat()
    }

    /// Authenticates and reads a mark; says what is wrong otherwise.
    pub fn decode(bytes: &[u8], keys: &Keys) -> Result<Mark, String> {
        let no_mark = || "its DESTID is none of this program's".to_string();
        let (clear, rest) = bytes.split_at_checked(CLEAR_LEN).ok_or_else(no_mark)?;
        let field = |from: usize, len: usize| clear.get(from..from + len).ok_or_else(no_mark);
        if field(0, 8)? != MAGIC {
            return Err(no_mark());
        }
        if field(8, 2)? != MARK_FORMAT.to_le_bytes() || field(10, 6)? != [0; 6] {
            return Err("its DESTID is of a format that this program does not know".into());
        }
        let backup = BackupId(field(16, 16)?.try_into().map_err(|_| no_mark())?);
        if backup != keys.backup_id() {
            return Err(format!("it belongs to the backup {backup}"));
        }
        let damaged = || "its DESTID does not authenticate: damaged, or sealed by another key".to_string();
        let salt = ArcSalt(field(32, 32)?.try_into().map_err(|_| no_mark())?);
        let (sealed, tag) = rest.split_at_checked(SEALED_LEN).ok_or_else(damaged)?;
        let tag: [u8; TAG_LEN] = tag.try_into().map_err(|_| damaged())?;
        let mut plain: [u8; SEALED_LEN] = sealed.try_into().map_err(|_| damaged())?;
        if !keys.mark_cipher(&salt).open(Domain::Mark, 0, clear, &mut plain, &tag) {
            return Err(damaged());
        }
        let [id @ .., low, high] = plain;
        Ok(Mark { id: DestId(id), copy: CopyId(u16::from_le_bytes([low, high])) })
    }
}

/// Reads the mark of a place.
///
/// # Errors
/// `Unmarked`; `NotOurs`; `Absent` where the mark of a place that was marked is missing.
pub fn read(storage: &dyn Storage, keys: &Keys, known: &Known) -> Result<Mark> {
    let wrong = |kind| trouble(storage.name(), "", kind);
    let bytes = match storage.stat(DESTID)? {
        None if known.has_name(storage.name()) => {
            return Err(wrong(Trouble::Absent("it was marked, and has no DESTID now: is it mounted?".into())));
        }
        None => return Err(wrong(Trouble::Unmarked)),
        Some(len) if len == MARK_LEN as u64 => storage.read(DESTID, 0..len)?,
        Some(_) => return Err(wrong(Trouble::NotOurs("its DESTID has another length".into()))),
    };
    Mark::decode(&bytes, keys).map_err(|what| wrong(Trouble::NotOurs(what)))
}

/// What to do where a place of this name was marked before, and there is no mark now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// It is taken for absent.
    Absent,
    /// The user says that this is a new place.
    Gone,
}

/// Makes an empty place one of this backup. The number is taken before it is written there: a cut one is not given again.
///
/// # Errors
/// `NotEmpty`, also of one that has a mark; `Absent`; those of the storage.
pub fn set(
    storage: &dyn Storage,
    settings: &Settings,
    before: Before,
    dir: &BackupDir,
    _: &Lock,
    known: &mut Known,
) -> Result<Mark> {
    let objects = storage.list()?;
    if let Some(first) = objects.first() {
        let mark = objects.iter().find(|object| object.name == DESTID).map(|_| Mark::read_any(storage, dir.keys()));
        let what = match mark {
            Some(what) => what,
            None => {
                format!("it has {}, {} first", counted(objects.len() as u64, "object"), crate::text::shown(&first.name))
            }
        };
        return Err(trouble(storage.name(), "", Trouble::NotEmpty(what)));
    }
    if before == Before::Absent && known.has_name(&settings.name) {
        let what = "one of this name was marked, and has no DESTID now: is it mounted? (If it is a new one: --anew)";
        return Err(trouble(storage.name(), "", Trouble::Absent(what.into())));
    }
    let random = |error: std::io::Error| Error::io("get random bytes for", DESTID, &error);
    let (id, salt) = (DestId(crypto::random().map_err(random)?), ArcSalt(crypto::random().map_err(random)?));
    let mark = Mark { id, copy: known.next_copy()? };
    known.add(Place::new(&mark, &settings.name));
    known.write(dir)?;
    let bytes = mark.encode(dir.keys(), &salt);
    // So short that it is always read back.
    proof::put_proven(storage, DESTID, &bytes.as_slice(), Verify::Read, false)?;
    known.seen(&mark, &settings.name);
    known.write(dir)?;
    Ok(mark)
}

impl Mark {
    /// What the mark that is there says.
    fn read_any(storage: &dyn Storage, keys: &Keys) -> String {
        match read(storage, keys, &Known::default()) {
            Ok(mark) => format!("it is marked as copy {} of this backup already", mark.copy.0),
            Err(Error::Dest { trouble: Trouble::NotOurs(what), .. }) => what,
            Err(error) => error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn a_mark_is_believed_whole_or_not_at_all() {
        let keys = |master: u8, id: u8| Keys::new(&Zeroizing::new([master; 32]), BackupId([id; 16]));
        let ours = keys(1, 2);
        let mark = Mark { id: DestId([7; 16]), copy: CopyId(0x0102) };
        let bytes = mark.encode(&ours, &ArcSalt([9; 32]));
        assert_eq!((bytes.len(), Mark::decode(&bytes, &ours)), (MARK_LEN, Ok(mark)));
        assert!(Mark::decode(&bytes, &keys(1, 3)).unwrap_err().contains("belongs to the backup 0202"));
        assert!(Mark::decode(&bytes, &keys(3, 2)).unwrap_err().contains("does not authenticate"));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x20;
            assert!(Mark::decode(&bad, &ours).is_err(), "byte {at}");
            assert!(Mark::decode(&bytes[..at], &ours).is_err(), "cut at {at}");
        }
        assert!(Mark::decode(&[&bytes[..], &[0]].concat(), &ours).is_err());
        // Id and number are not there to be seen.
        assert!(!bytes.windows(16).any(|part| part == [7; 16]));
    }
}
