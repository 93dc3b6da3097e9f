//! The part of `apply` that is about arcs: frame tables, block hashes, relocations.
//!
//! Invariants: `hashes` names a block only while it can be read where it is, or where it was relocated to; the
//! block stored first keeps its hash.

use rusqlite::params;

use super::apply::{Apply, CatalogSource};
use super::fail::Found;
use super::row::{self, ArcValue, Key, Table, seal};
use super::rows::{self, blob};
use crate::arc::{ARC_HEADER_LEN, FrameInfo, FrameKind};
use crate::catalog::Commit;
use crate::catalog::codec::Encoder;
use crate::error::{Damage, Error, Place};
use crate::ids::{ArcSerial, BlockId, FrameNo, FramePlace};

/// Hashes are inserted in sorted batches of this many (16 bytes each): random inserts touch a page each.
const HASH_BATCH: usize = 1 << 20;

/// Frame tables that are asked for together, where they are far.
const TABLES_AHEAD: usize = 128;

/// Relocations that are read at once.
const MOVES: u32 = 4096;

impl Apply<'_> {
    /// Records the commit's arcs, their frames and their block hashes; returns how many hashes are new.
    pub(super) fn arcs(&mut self, commit: &Commit, source: &mut dyn CatalogSource) -> Found<u64> {
        let mut fresh = Vec::new();
        for arc in &commit.arcs {
            match rows::arc(self.c, arc.serial)? {
                None => fresh.push(arc),
                // A base lists the arcs of earlier runs too.
                Some(known) if known.entry == *arc => {}
                Some(_) => {
                    let what = format!("its {} has the serial of another arc", arc.name);
                    return Err(Error::CommitDamaged { run: commit.run, what }.into());
                }
            }
        }
        let mut new = 0;
        let mut batch: Vec<(i64, i64)> = Vec::new();
        for (number, &arc) in fresh.iter().enumerate() {
            if number % TABLES_AHEAD == 0 {
                source.ahead(&mut fresh.iter().skip(number).take(TABLES_AHEAD).copied());
            }
            let value = ArcValue { entry: arc.clone(), run: arc.name.version, dropped: false };
            self.c
                .prepare_cached("INSERT INTO arcs(id, row) VALUES(?1, ?2)")?
                .execute(params![arc.serial.0 as i64, value.encode()])?;
            let table = match source.frame_table(arc) {
                Ok(table) => table,
                Err(error) if error.is_damage() => {
                    self.report.unknown_arcs.push((arc.name, error));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if (table.len() as u64) < u64::from(arc.frames) {
                // The arc's end is damaged: what stands before it is as good as ever.
                let offset = ARC_HEADER_LEN as u64 + table.iter().map(FrameInfo::frame_len).sum::<u64>();
                let place = Place { arc: arc.name, frame: Some(FrameNo(table.len() as u32)), block: None, offset };
                self.report.unknown_arcs.push((arc.name, Error::Arc { place, damage: Damage::WrongFrame }));
            }
            for (first, body) in rows::encode_frames(&table) {
                let id = FramePlace::new(arc.serial, first).0 as i64;
                let sealed = seal(Table::Frames, Key::id(id), body);
                self.c.prepare_cached("INSERT INTO frames(id, row) VALUES(?1, ?2)")?.execute(params![id, sealed])?;
            }
            for (info, no) in table.iter().zip(0..).filter(|(info, _)| info.kind == FrameKind::Block) {
                let place = FramePlace::new(arc.serial, FrameNo(no));
                let named = info.slots().map(|(slot, block)| (rows::hash_key(&block.hash), place.slot(slot).0 as i64));
                batch.extend(named);
                if batch.len() >= HASH_BATCH {
                    new += self.hashes(&mut batch)?;
                }
            }
        }
        Ok(new + self.hashes(&mut batch)?)
    }

    /// The block stored first keeps its hash; equal prefixes of different hashes only cost dedup.
    fn hashes(&mut self, batch: &mut Vec<(i64, i64)>) -> Found<u64> {
        batch.sort_unstable();
        let mut insert = self.c.prepare_cached("INSERT OR IGNORE INTO hashes(id, block) VALUES(?1, ?2)")?;
        let mut new = 0;
        for (key, block) in batch.drain(..) {
            new += insert.execute([key, block])? as u64;
        }
        Ok(new)
    }

    pub(super) fn relocate(&mut self, from: BlockId, to: BlockId) -> Found<()> {
        let id = from.0 as i64;
        let mut e = Encoder::default();
        e.uint(to.0);
        self.c
            .prepare_cached("INSERT OR REPLACE INTO relocations(id, row) VALUES(?1, ?2)")?
            .execute(params![id, seal(Table::Relocations, Key::id(id), e.0)])?;
        Ok(())
    }

    /// Forgets the arc's frames, and the hashes of blocks that are read from it: dedup must not find them.
    pub(super) fn drop_arc(&mut self, serial: ArcSerial) -> Found<u64> {
        let Some(mut value) = rows::arc(self.c, serial)?.filter(|value| !value.dropped) else { return Ok(0) };
        let mut forgotten = 0;
        let mut next = FramePlace::new(serial, FrameNo(0));
        while let Some(chunk) = rows::next_frames(self.c, next)? {
            for (info, no) in chunk.frames.iter().zip(chunk.first.0..).filter(|(info, _)| info.kind == FrameKind::Block)
            {
                for (slot, block) in info.slots() {
                    let place = BlockId::new(serial, FrameNo(no), slot);
                    let key = rows::hash_key(&block.hash);
                    let Some(name) = rows::hash_row(self.c, key)? else { continue };
                    if rows::location(self.c, name)? == place {
                        forgotten += self.c.prepare_cached("DELETE FROM hashes WHERE id=?1")?.execute([key])? as u64;
                    }
                }
            }
            let first = FramePlace::new(serial, chunk.first);
            self.c.prepare_cached("DELETE FROM frames WHERE id=?1")?.execute([first.0 as i64])?;
            next = first;
        }
        value.dropped = true;
        self.dropped.insert(serial);
        self.c
            .prepare_cached("UPDATE arcs SET row=?2 WHERE id=?1")?
            .execute(params![serial.0 as i64, value.encode()])?;
        Ok(forgotten)
    }

    /// Blocks that nothing needs any more had been moved to arcs that are dropped now.
    pub(super) fn forget_moves_to_dropped(&self) -> Found<()> {
        if self.dropped.is_empty() {
            return Ok(());
        }
        let mut after = -1i64;
        loop {
            let mut gone = Vec::new();
            let mut scanned = 0;
            {
                let sql = "SELECT id, row FROM relocations WHERE id>?1 ORDER BY id LIMIT ?2";
                let mut statement = self.c.prepare_cached(sql)?;
                let mut found = statement.query(params![after, MOVES])?;
                while let Some(found) = found.next()? {
                    scanned += 1;
                    after = found.get(0)?;
                    let to = rows::decode_relocation(row::open(Table::Relocations, Key::id(after), blob(found, 1)?)?)?;
                    if self.dropped.contains(&to.arc()) {
                        gone.push(after);
                    }
                }
            }
            for id in gone {
                self.c.prepare_cached("DELETE FROM relocations WHERE id=?1")?.execute([id])?;
            }
            if scanned < MOVES {
                return Ok(());
            }
        }
    }
}
