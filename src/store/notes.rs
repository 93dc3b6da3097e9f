//! What is noted of blocks that were fetched, and of those that were not: tally, ledger, log.
//!
//! Invariants: a damaged place is listed and logged once, and noted in the ledger each time: it may have been right in
//! between; each flipped bit that was found is noted with its place.

use std::sync::Arc;

use super::tally::{self, End, Met, Tally};
use super::{OnDamage, Wanted, Words};
use crate::arc::repair::BitFlip;
use crate::arc::{VerifiedBlock, VerifiedFrame};
use crate::error::{Damage, Error, Result};
use crate::fetch::{Asked, Bad, Fetch, Fetched, Refused, Repair, Way};
use crate::ids::{ArcSerial, BlockId, CopyId, FrameNo, FramePlace, Logid, Slot, Version};
use crate::index::Index;
use crate::ledger::{self, Flip, How, LedgerWriter, Record};
use crate::text::shown;

/// More differing bits than this are no flips: the frame was overwritten.
const MAX_FLIPS: usize = 2;

pub(super) struct Notes {
    pub tally: Tally,
    pub index: Arc<Index>,
    pub ledger: Option<Arc<LedgerWriter>>,
    pub words: Words,
    pub on_damage: Option<OnDamage>,
}

impl Notes {
    /// A frame was verified, at first or after all.
    pub fn fetched(&self, fetch: &Fetch, asked: &Asked, file: Option<Logid>, fetched: Fetched) -> VerifiedFrame {
        let Fetched { opened, copy, way, met } = fetched;
        self.tally.verified(opened.blocks() as u64, opened.plain_len());
        let how = match way {
            Way::First => Some(How::Read),
            Way::Again { .. } => Some(How::Medium),
            Way::Copy { is_repaired: false, .. } if copy != CopyId::PARITY => Some(How::Read),
            // What is stored there is not what was verified.
            Way::Repaired(_) | Way::Copy { .. } | Way::Kept => None,
        };
        if let (Some(ledger), Some(how)) = (&self.ledger, how) {
            ledger.frame(asked.at.serial, copy, asked.at.no, how);
        }
        if let Some(error) = met {
            let (end, flips) = match way {
                Way::First | Way::Kept => (End::ReadAgain, Vec::new()),
                Way::Again { flips } => (End::ReadAgain, flips),
                Way::Repaired(Repair { what, flips, .. }) => (End::Repaired(what), flips),
                Way::Copy { .. } => (End::Elsewhere(fetch.copy_name(copy).to_string()), Vec::new()),
            };
            let again = end != End::ReadAgain;
            let new = self.met(fetch, asked, file, &error, end);
            // What the arc has is one flip however often it is read; what a read brought is another one each time.
            if new || !again {
                self.flips(asked.at.frame(), &flips, again);
            }
        }
        opened
    }

    /// Other copies were asked for a frame, and what is stored there is damaged too.
    pub fn refused(&self, fetch: &Fetch, asked: &Asked, refused: &[Refused]) {
        for Refused { copy, error } in refused.iter().filter(|one| one.error.is_damage()) {
            self.remember(Some((asked.at.serial, *copy)), error, &End::Lost);
            if self.words == Words::Log {
                log::error!("{}: {error}, at {}", error.code(), fetch.copy_name(*copy));
            }
        }
    }

    /// A frame could not be had; gives the error for its readers. An arc that can't be opened is one place, told once (`told`
    /// remembers it over the frames of a job), but a log says each that was wanted.
    pub fn lost(
        &self,
        fetch: &Fetch,
        asked: &Asked,
        file: Option<Logid>,
        bad: Bad,
        told: &mut Option<ArcSerial>,
    ) -> Error {
        let each = !bad.is_whole_arc || (bad.error.is_damage() && self.words == Words::Log);
        if each {
            self.met(fetch, asked, file, &bad.error, End::Lost);
        } else if told.replace(asked.at.serial) != Some(asked.at.serial) {
            let key = BlockId::first(asked.at.serial, FrameNo(0)).0;
            self.note(key, Some((asked.at.serial, fetch.copy(asked.at.serial))), &bad.error, "", End::Lost, || {
                self.path_of(file)
            });
        }
        bad.error
    }

    /// The index does not know where a block is.
    pub fn unlocated(&self, block: BlockId, file: Option<Logid>, error: &Error) {
        self.note(block.0, None, error, "", End::Lost, || self.path_of(file));
    }

    /// Damage that was met outside of blocks.
    pub fn damage(&self, key: u64, error: &Error, path: impl FnOnce() -> Option<(Version, Vec<u8>)>) {
        self.note(key, None, error, "", End::Lost, path);
    }

    /// Damage of the index in the place of which the catalogs answer: they have told the log.
    pub fn index(&self) {
        let Some(error) = self.index.stood_in_for() else { return };
        let (end, what) = (End::Catalogs, error.to_string());
        let how = end.how().unwrap_or_default();
        let met = || Met { code: error.code(), path: Vec::new(), version: None, what, healed: true, how };
        self.tally.damage(u64::MAX, met, "INDEX", &end);
    }

    /// The block, if it has the length that its user expects.
    pub fn of_length(&self, want: &Wanted, verified: VerifiedBlock) -> Result<VerifiedBlock> {
        if verified.len() == want.len_bytes as usize {
            return Ok(verified);
        }
        let error = Error::IndexRow {
            path: self.index.path().to_path_buf(),
            what: format!("block {} has {} bytes, a file expects {}", want.block, verified.len(), want.len_bytes),
        };
        self.note(want.block.0, None, &error, "", End::Lost, || None);
        Err(error)
    }

    fn path_of(&self, file: Option<Logid>) -> Option<(Version, Vec<u8>)> {
        self.index.path_of_node(file?).ok()
    }

    fn met(&self, fetch: &Fetch, asked: &Asked, file: Option<Logid>, error: &Error, end: End) -> bool {
        let mut more = format!("expected hash {}", asked.at.block.hash);
        if let Some(source) = fetch.source(asked.at.serial) {
            more += &format!(", source {source}");
        }
        if let Some(how) = end.how() {
            more += &format!("; {how}");
        }
        let arc = Some((asked.at.serial, fetch.copy(asked.at.serial)));
        self.note(asked.at.frame().slot(Slot(0)).0, arc, error, &more, end, || self.path_of(file))
    }

    /// Lists and logs damage, once a place: path, version, arc, frame, block, expected and found hash, source. True
    /// the first time.
    fn note(
        &self,
        key: u64,
        arc: Option<(ArcSerial, CopyId)>,
        error: &Error,
        more: &str,
        end: End,
        path: impl FnOnce() -> Option<(Version, Vec<u8>)>,
    ) -> bool {
        if !error.is_damage() {
            // The mount tells it once for all.
            let told = matches!(error, Error::HistoryChanged { .. });
            if self.words == Words::Log && !told && self.tally.is_first(key, error.code()) {
                log::warn!("{}: {error}", error.code());
            }
            return true;
        }
        self.remember(arc, error, &end);
        let describe = || {
            let (path, version) = tally::shown_path(path());
            let how = end.how().unwrap_or_default();
            Met { code: error.code(), path, version, what: error.to_string(), healed: end != End::Lost, how }
        };
        let met = self.tally.damage(key, describe, error.code(), &end);
        if let Some(met) = met.as_ref().filter(|_| self.words == Words::Log) {
            let version = met.version.map_or_else(String::new, |version| format!(" in r{version}"));
            let path = if met.path.is_empty() { "(path unknown)".into() } else { shown(&met.path).to_string() };
            let separator = if more.is_empty() { "" } else { ", " };
            log::error!("{}: {path}{version}: {}{separator}{more}", met.code, met.what);
        }
        // What was right the second time is right where it is stored.
        let is_stored = arc.is_some_and(|(_, copy)| copy == CopyId::LOCAL) && end != End::ReadAgain;
        if let Some(tell) = self.on_damage.as_ref().filter(|_| met.is_some() && is_stored) {
            tell(error);
        }
        met.is_some()
    }

    /// Damage of an arc goes to the ledger too.
    fn remember(&self, arc: Option<(ArcSerial, CopyId)>, error: &Error, end: &End) {
        if let (Some(ledger), Some((arc, copy)), Error::Arc { place, damage }) = (&self.ledger, arc, error) {
            // A missing arc is one place, however many blocks were looked for in it.
            let frame = place.frame.filter(|_| *damage != Damage::Missing);
            ledger.record(Record::Damage(ledger::Damage {
                when_ms: ledger.now_ms(),
                arc,
                copy,
                frame,
                count: u32::from(frame.is_some()),
                code: error.code().to_string(),
                mended: *end == End::ReadAgain,
            }));
        }
    }

    fn flips(&self, frame: FramePlace, flips: &[BitFlip], again: bool) {
        let Some(ledger) = self.ledger.as_ref().filter(|_| flips.len() <= MAX_FLIPS) else { return };
        let block = frame.slot(Slot(0));
        for BitFlip { byte, bit, to_one } in flips.iter().copied() {
            ledger.record(Record::Flip(Flip { when_s: ledger.now_s(), block, byte, bit, to_one, again }));
        }
    }
}
