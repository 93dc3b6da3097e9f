//! What the index knows of runs beside their versions: those that were begun, and arcs that no version uses yet.
//!
//! Invariants: a run is noted, durably, before any of its arcs is made, and until a later commit is applied; spare arcs
//! follow from the commits alone, so that a recovery finds the same ones.

use std::collections::BTreeSet;
use std::ops::Range;

use rusqlite::{Connection, params};

use super::Index;
use super::fail::Found;
use super::row::{self, ArcValue, BadRow, Key, Table};
use super::rows::{self, blob, value};
use crate::catalog::codec::{self, BadRecord, Decoder, Encoder};
use crate::catalog::{Commit, Loss};
use crate::error;
use crate::ids::{ArcId, ArcSerial, Dirno, Version};

const OPEN_RUNS_ID: i64 = 2;
const SPARE_ARCS_ID: i64 = 3;
/// There is such a row, without a body, if a catalog frame could not be applied.
const GAP_ID: i64 = 4;
/// More runs than this were never cut one after the other; what the oldest of them left would stay.
const MAX_OPEN_RUNS: usize = 128;

/// Rows of accepted losses: their ids have this bit, and for the rest a hash of the loss.
const LOSS_BIT: i64 = 1 << 62;

/// A run that was begun: its number is burned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenRun {
    pub version: Version,
    /// Random, tells two runs with the same number apart; the ids of its arcs are made from it.
    pub id: [u8; 16],
}

/// Where it is noted that a loss was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// In this index only.
    Here,
    InACommit,
}

impl OpenRun {
    pub fn new(version: Version) -> std::io::Result<OpenRun> {
        Ok(OpenRun { version, id: crate::crypto::random()? })
    }

    /// The id of the run's arc with this number: no other run has one with it.
    pub fn arc_id(&self, number: u32) -> ArcId {
        let digest = crate::crypto::sha256(&[&b"arc id"[..], &self.id, &number.to_le_bytes()].concat());
        ArcId(*digest.first_chunk().unwrap_or(&[0; 16]))
    }
}

impl Index {
    /// Runs that were begun since the last commit: running, or cut.
    pub fn open_runs(&self) -> error::Result<Vec<OpenRun>> {
        self.ask(open_runs)
    }

    /// Serials of arcs that cut runs have left and that no version uses.
    pub fn spare_arcs(&self) -> error::Result<Vec<Range<u64>>> {
        self.ask(spare_arcs)
    }

    /// Losses that were accepted, in order, and whether a commit tells so.
    pub fn losses(&self) -> error::Result<Vec<(Loss, Told)>> {
        self.ask(losses)
    }

    /// True if the listing of some directory is lost in the newest version.
    pub fn any_lost(&self) -> error::Result<bool> {
        self.ask(|c| {
            let mut statement = c.prepare_cached("SELECT id, row FROM lost")?;
            let mut rows = statement.query([])?;
            while let Some(found) = rows.next()? {
                if row::decode_lost(row::open(Table::Lost, Key::id(found.get(0)?), blob(found, 1)?)?)?.is_none() {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// True if a frame of some catalog could not be applied, or a base told not all of some file: files may be known whose
    /// blocks are not.
    pub fn has_gaps(&self) -> error::Result<bool> {
        self.ask(has_gaps)
    }

    /// Since when a directory's listing is lost in a version, if it is.
    pub fn lost_since(&self, v: Version, dir: Dirno) -> error::Result<Option<Version>> {
        self.ask(|c| rows::lost_since(c, dir, v))
    }

    /// All arcs that were ever committed, by serial.
    pub fn all_arcs(&self) -> error::Result<Vec<ArcValue>> {
        self.ask(|c| {
            let mut statement = c.prepare_cached("SELECT id, row FROM arcs ORDER BY id")?;
            let mut rows = statement.query([])?;
            let mut arcs = Vec::new();
            while let Some(found) = rows.next()? {
                arcs.push(ArcValue::decode(found.get(0)?, blob(found, 1)?)?);
            }
            Ok(arcs)
        })
    }

    /// Runs of which there is a version or an arc.
    pub fn known_runs(&self) -> error::Result<BTreeSet<Version>> {
        let mut runs: BTreeSet<Version> = self.ask(|c| {
            let mut statement = c.prepare_cached("SELECT id FROM versions")?;
            let runs = statement.query_map([], |found| Ok(Version(found.get(0)?)))?.collect::<Result<_, _>>()?;
            Ok(runs)
        })?;
        runs.extend(self.all_arcs()?.iter().map(|arc| arc.run));
        Ok(runs)
    }
}

pub(super) fn open_runs(c: &Connection) -> Found<Vec<OpenRun>> {
    let runs = value(c, Table::Meta, OPEN_RUNS_ID, |body| Ok(decode_open_runs(body)?))?;
    Ok(runs.unwrap_or_default())
}

pub(super) fn decode_open_runs(body: &[u8]) -> Result<Vec<OpenRun>, BadRow> {
    let mut d = Decoder::new(body);
    let mut runs = Vec::new();
    for _ in 0..d.count()? {
        runs.push(OpenRun { version: d.version()?, id: d.array()? });
    }
    d.end()?;
    Ok(runs)
}

pub(super) fn encode_open_runs(runs: &[OpenRun]) -> Vec<u8> {
    let mut e = Encoder::default();
    e.uint(runs.len() as u64);
    for run in runs {
        e.uint(u64::from(run.version.0));
        e.raw(&run.id);
    }
    e.0
}

pub(super) fn put_open_run(c: &Connection, run: OpenRun) -> Found<()> {
    let mut runs = open_runs(c)?;
    runs.push(run);
    let extra = runs.len().saturating_sub(MAX_OPEN_RUNS);
    put_open_runs(c, runs.get(extra..).unwrap_or_default())
}

fn put_open_runs(c: &Connection, runs: &[OpenRun]) -> Found<()> {
    put(c, OPEN_RUNS_ID, encode_open_runs(runs))
}

fn spare_arcs(c: &Connection) -> Found<Vec<Range<u64>>> {
    let spare = value(c, Table::Meta, SPARE_ARCS_ID, |body| Ok(decode_spare_arcs(body)?))?;
    Ok(spare.unwrap_or_default())
}

pub(super) fn has_gaps(c: &Connection) -> Found<bool> {
    Ok(value(c, Table::Meta, GAP_ID, |body| Ok(Decoder::new(body).end()?))?.is_some())
}

pub(super) fn note_gap(c: &Connection) -> Found<()> {
    put(c, GAP_ID, Vec::new())
}

fn losses(c: &Connection) -> Found<Vec<(Loss, Told)>> {
    let mut statement = c.prepare_cached("SELECT id, row FROM meta WHERE id>=?1")?;
    let mut rows = statement.query([LOSS_BIT])?;
    let mut losses = Vec::new();
    while let Some(found) = rows.next()? {
        let id: i64 = found.get(0)?;
        losses.push(decode_loss(row::open(Table::Meta, Key::id(id), blob(found, 1)?)?)?);
    }
    losses.sort_by_key(|(loss, _)| *loss);
    Ok(losses)
}

/// Notes that a loss was accepted.
pub(super) fn put_loss(c: &Connection, loss: &Loss, told: Told) -> Found<()> {
    let mut e = Encoder::default();
    codec::put_loss(&mut e, loss);
    let hash = crate::crypto::sha256(&e.0);
    let id = LOSS_BIT | (i64::from_le_bytes(*hash.first_chunk().unwrap_or(&[0; 8])) & (LOSS_BIT - 1));
    if told == Told::Here && value(c, Table::Meta, id, |_| Ok(()))?.is_some() {
        return Ok(());
    }
    put(c, id, encode_loss(loss, told))
}

pub(super) fn encode_loss(loss: &Loss, told: Told) -> Vec<u8> {
    let mut e = Encoder::default();
    e.u8(u8::from(told == Told::InACommit));
    codec::put_loss(&mut e, loss);
    e.0
}

pub(super) fn decode_loss(body: &[u8]) -> Result<(Loss, Told), BadRow> {
    let mut d = Decoder::new(body);
    let told = if d.flag()? { Told::InACommit } else { Told::Here };
    let loss = codec::loss(&mut d)?;
    d.end()?;
    Ok((loss, told))
}

pub(super) fn decode_spare_arcs(body: &[u8]) -> Result<Vec<Range<u64>>, BadRow> {
    let mut d = Decoder::new(body);
    let mut spare = Vec::new();
    for _ in 0..d.count()? {
        let first = d.serial()?.0;
        let count = d.within(1, ArcSerial::MAX.0 + 1 - first, BadRecord("run out of range"))?;
        spare.push(first..first + count);
    }
    d.end()?;
    Ok(spare)
}

pub(super) fn encode_spare_arcs(spare: &[Range<u64>]) -> Vec<u8> {
    let mut e = Encoder::default();
    e.uint(spare.len() as u64);
    for range in spare {
        e.uint(range.start);
        e.uint(range.end.saturating_sub(range.start));
    }
    e.0
}

/// After a commit: what a version does not use by then it has dropped.
pub(super) fn note_commit(c: &Connection, commit: &Commit) -> Found<()> {
    let mut open = open_runs(c)?;
    let before = open.len();
    open.retain(|run| run.version > commit.run);
    if open.len() != before {
        put_open_runs(c, &open)?;
    }
    let mut spare = spare_arcs(c)?;
    let before = spare.len();
    if commit.version.is_some() {
        spare.clear();
    } else if let (true, Some(first), Some(last)) = (commit.catalog.is_empty(), commit.arcs.first(), commit.arcs.last())
    {
        spare.push(first.serial.0..last.serial.0.saturating_add(1));
    }
    if spare.len() == before {
        return Ok(());
    }
    put(c, SPARE_ARCS_ID, encode_spare_arcs(&spare))
}

fn put(c: &Connection, id: i64, body: Vec<u8>) -> Found<()> {
    let sealed = row::seal(Table::Meta, Key::id(id), body);
    c.prepare_cached("INSERT OR REPLACE INTO meta(id, row) VALUES(?1, ?2)")?.execute(params![id, sealed])?;
    Ok(())
}
