//! "Is this block known?", asked by the workers of a running backup.
//!
//! Invariants: an answer is given only when all 160 bits of the hash agree; memory stays inside the budget given:
//! a full table stops remembering, a filter over many blocks gets less sharp, and only dedup is lost.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use super::Index;
use super::fail::Fail;
use super::rows;
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, BlockHash, BlockId, FramePlace};
use crate::sync::lock;

const SHARDS: usize = 64;
/// Hash (20) and block id + 1 (8); an id of 0 is an empty slot.
const SLOT_LEN: usize = 28;
const MIN_SLOTS: usize = 64;
/// Below this many lookups in vain no filter is made.
const MIN_MISSES: u64 = 20_000;
/// Reading this many rows in order takes about as long as one lookup in vain.
const ROWS_PER_MISS: u64 = 25;
const FILTER_BITS_PER_HASH: u64 = 10;

/// Blocks of the committed versions (in the index) and of the running one (in memory). Shared by all workers.
pub struct DedupTable {
    index: Arc<Index>,
    shards: Vec<Mutex<Shard>>,
    /// Slots that one shard may have.
    max_slots: usize,
    committed: u64,
    /// Arcs whose blocks count as not stored.
    lost: Lost,
    misses: AtomicU64,
    filter_bytes: usize,
    filter: OnceLock<Filter>,
    building: AtomicBool,
    trouble: Mutex<Option<Error>>,
}

/// Where blocks are that can't be read any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    pub arcs: HashSet<ArcSerial>,
    pub frames: HashSet<FramePlace>,
}

impl Lost {
    pub fn is_empty(&self) -> bool {
        self.arcs.is_empty() && self.frames.is_empty()
    }

    pub fn holds(&self, place: BlockId) -> bool {
        self.arcs.contains(&place.arc()) || self.frames.contains(&place.place())
    }
}

impl DedupTable {
    /// Uses at most `budget_bytes` of memory: three quarters for this run's blocks, a quarter to filter lookups.
    ///
    /// # Errors
    /// Those of `Index::state`.
    pub fn new(index: Arc<Index>, budget_bytes: usize) -> Result<DedupTable> {
        let committed = index.state()?.hashes;
        let filter_bytes = budget_bytes / 4;
        let shard_bytes = (budget_bytes - filter_bytes) / SHARDS;
        Ok(DedupTable {
            index,
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::default())).collect(),
            max_slots: shard_bytes / SLOT_LEN,
            committed,
            lost: Lost::default(),
            misses: AtomicU64::new(0),
            filter_bytes,
            filter: OnceLock::new(),
            building: AtomicBool::new(false),
            trouble: Mutex::new(None),
        })
    }

    /// Takes no block for known that is lost.
    pub fn without(self, lost: Lost) -> DedupTable {
        DedupTable { lost, ..self }
    }

    /// The block with this hash, if one was committed or is remembered from this run.
    ///
    /// A damaged index row counts as "not known" and is told by `trouble`.
    pub fn find(&self, hash: &BlockHash) -> Option<BlockId> {
        if let Some(block) = self.shard(hash).and_then(|shard| lock(shard).find(hash)) {
            return Some(block);
        }
        if self.committed == 0 || self.filter.get().is_some_and(|filter| !filter.may_hold(rows::hash_key(hash))) {
            return None;
        }
        match self.index.find_block(hash) {
            Ok(Some(block)) => Some(block).filter(|block| !self.is_lost(*block)),
            Ok(None) => {
                self.count_miss();
                None
            }
            Err(error) => {
                self.note(error);
                None
            }
        }
    }

    fn is_lost(&self, block: BlockId) -> bool {
        if self.lost.is_empty() {
            return false;
        }
        match self.index.location(block) {
            Ok(place) => self.lost.holds(place),
            Err(error) => {
                self.note(error);
                true
            }
        }
    }

    /// The block with this hash, if it was written in this run and is remembered.
    pub fn find_new(&self, hash: &BlockHash) -> Option<BlockId> {
        self.shard(hash).and_then(|shard| lock(shard).find(hash))
    }

    /// Remembers a block of this run. If its hash is remembered already, that block is returned and stays.
    pub fn insert(&self, hash: &BlockHash, block: BlockId) -> Option<BlockId> {
        self.shard(hash).and_then(|shard| lock(shard).insert(hash, block, self.max_slots))
    }

    /// The first error that a lookup met; the backup is sound, but the index is not.
    pub fn trouble(&self) -> Option<Error> {
        lock(&self.trouble).clone()
    }

    /// Bytes held now; never above the budget.
    pub fn memory_bytes(&self) -> usize {
        let slots: usize = self.shards.iter().map(|shard| lock(shard).slots.len()).sum();
        slots * SLOT_LEN + self.filter.get().map_or(0, Filter::len_bytes)
    }

    fn shard(&self, hash: &BlockHash) -> Option<&Mutex<Shard>> {
        let [.., last] = hash.0;
        self.shards.get(usize::from(last) % SHARDS)
    }

    fn note(&self, error: Error) {
        lock(&self.trouble).get_or_insert(error);
    }

    /// Makes the filter once the lookups in vain have cost about as much as making it does.
    fn count_miss(&self) {
        let misses = self.misses.fetch_add(1, Relaxed) + 1;
        let enough = MIN_MISSES.max(self.committed / ROWS_PER_MISS);
        if misses < enough || self.committed <= MIN_MISSES || self.building.swap(true, Relaxed) {
            return;
        }
        match Filter::over(&self.index, self.committed, self.filter_bytes) {
            Ok(filter) => {
                let _ = self.filter.set(filter);
            }
            Err(error) => self.note(error),
        }
    }
}

/// Open addressing with linear probing, at most seven eighths full.
#[derive(Default)]
struct Shard {
    slots: Vec<[u8; SLOT_LEN]>,
    used: usize,
}

fn take_apart(slot: &[u8; SLOT_LEN]) -> Option<(BlockHash, BlockId)> {
    let (hash, id) = slot.split_first_chunk::<20>()?;
    let id = u64::from_le_bytes(*id.first_chunk()?);
    Some((BlockHash(*hash), BlockId(id.checked_sub(1)?)))
}

impl Shard {
    /// Slots to look at for a hash, in order, from where it would be in an empty table.
    fn probe(&self, hash: &BlockHash) -> impl Iterator<Item = usize> + use<> {
        let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, ..] = hash.0;
        let len = self.slots.len();
        let start = ((u128::from(u64::from_le_bytes([a, b, c, d, e, f, g, h])) * len as u128) >> 64) as usize;
        (start..len).chain(0..start)
    }

    fn find(&self, hash: &BlockHash) -> Option<BlockId> {
        for at in self.probe(hash) {
            let (found, block) = take_apart(self.slots.get(at)?)?;
            if found == *hash {
                return Some(block);
            }
        }
        None
    }

    fn insert(&mut self, hash: &BlockHash, block: BlockId, max_slots: usize) -> Option<BlockId> {
        if let Some(known) = self.find(hash) {
            return Some(known);
        }
        if self.used >= self.slots.len() / 8 * 7 && !self.grow(max_slots) {
            return None;
        }
        self.place(hash, block);
        None
    }

    fn place(&mut self, hash: &BlockHash, block: BlockId) {
        for at in self.probe(hash) {
            let Some(slot) = self.slots.get_mut(at) else { return };
            if take_apart(slot).is_none() {
                let (head, tail) = slot.split_at_mut(20);
                head.copy_from_slice(&hash.0);
                tail.copy_from_slice(&(block.0 + 1).to_le_bytes());
                self.used += 1;
                return;
            }
        }
    }

    /// Half as large again, up to the bound; false when it is reached.
    fn grow(&mut self, max_slots: usize) -> bool {
        let len = (self.slots.len() * 3 / 2).max(MIN_SLOTS).min(max_slots);
        if len <= self.slots.len() {
            return false;
        }
        let old = std::mem::replace(&mut self.slots, vec![[0; SLOT_LEN]; len]);
        self.used = 0;
        for (hash, block) in old.iter().filter_map(take_apart) {
            self.place(&hash, block);
        }
        true
    }
}

/// Blocked Bloom filter over `hashes`: one cache line a lookup, six bits in it.
struct Filter {
    lines: Vec<[u64; 8]>,
}

impl Filter {
    fn over(index: &Index, hashes: u64, max_bytes: usize) -> Result<Filter> {
        let wanted = (hashes * FILTER_BITS_PER_HASH / 512 + 1) as usize;
        let lines = wanted.min(max_bytes / 64).max(1);
        index.ask(|c| {
            let mut filter = Filter { lines: vec![[0; 8]; lines] };
            let mut statement = c.prepare_cached("SELECT id FROM hashes")?;
            let mut rows = statement.query([])?;
            while let Some(found) = rows.next()? {
                filter.add(found.get(0)?);
            }
            Ok::<_, Fail>(filter)
        })
    }

    fn len_bytes(&self) -> usize {
        self.lines.len() * 64
    }

    /// The line for a key and the bits in it. Keys are hashes, but a line must not depend on the same bits.
    fn place(&self, key: i64) -> (usize, u64) {
        let mixed = (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let line = (u128::from((key as u64) << 1) * self.lines.len() as u128) >> 64;
        (line as usize, mixed ^ mixed >> 29)
    }

    fn bits(mixed: u64) -> impl Iterator<Item = (usize, u64)> {
        (0..6).map(move |i| {
            let bit = mixed >> (9 * i) & 511;
            ((bit >> 6) as usize, 1 << (bit & 63))
        })
    }

    fn add(&mut self, key: i64) {
        let (line, mixed) = self.place(key);
        if let Some(line) = self.lines.get_mut(line) {
            for (word, bit) in Self::bits(mixed) {
                if let Some(word) = line.get_mut(word) {
                    *word |= bit;
                }
            }
        }
    }

    fn may_hold(&self, key: i64) -> bool {
        let (line, mixed) = self.place(key);
        let Some(line) = self.lines.get(line) else { return true };
        Self::bits(mixed).all(|(word, bit)| line.get(word).is_none_or(|word| word & bit != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Built, Model, block_info};
    use super::*;
    use crate::ids::{ArcSerial, FrameNo};

    fn hash(n: u64) -> BlockHash {
        BlockHash(*crate::crypto::sha256(&n.to_le_bytes()).first_chunk().unwrap())
    }

    /// An index with `commits` times `blocks` blocks.
    fn index(commits: u64, blocks: u32) -> (Built, Arc<Index>) {
        let mut model = Model::new(1);
        model.blocks = blocks;
        (0..commits).for_each(|i| model.commit(2, i == 0));
        let built = Built::of(&model);
        let index = Arc::new(built.index());
        (built, index)
    }

    /// Room for all that these tests store.
    const BUDGET_BYTES: usize = 128 << 20;

    #[test]
    fn blocks_of_this_run_are_found_by_all_bits_of_their_hash() {
        let (_built, index) = index(1, 10);
        let table = DedupTable::new(index, BUDGET_BYTES).unwrap();
        for n in 0..20_000 {
            assert_eq!(table.find(&hash(n)), None);
            assert_eq!(table.insert(&hash(n), BlockId(n)), None);
        }
        assert_eq!(table.insert(&hash(5), BlockId(99_999)), Some(BlockId(5)), "the first one stays");
        for n in 0..20_000 {
            assert_eq!(table.find(&hash(n)), Some(BlockId(n)));
            let mut other = hash(n);
            other.0[n as usize % 20] ^= 1 << (n % 8);
            assert_eq!(table.find(&other), None);
        }
        let committed = block_info(0, 3).blocks[0].hash;
        assert_eq!(table.find(&committed), Some(BlockId::first(ArcSerial(0), FrameNo(3))));
        assert_eq!(table.find_new(&committed), None);
        assert!(table.trouble().is_none());
    }

    #[test]
    fn a_full_table_forgets_new_blocks_and_stays_in_its_budget() {
        let (_built, index) = index(1, 10);
        let budget = 1 << 20;
        let table = DedupTable::new(index, budget).unwrap();
        for n in 0..100_000 {
            table.insert(&hash(n), BlockId(n));
            if n % 10_000 == 0 {
                assert!(table.memory_bytes() <= budget);
            }
        }
        let known = (0..100_000).filter(|n| table.find(&hash(*n)) == Some(BlockId(*n))).count();
        let wrong = (0..100_000).filter(|n| table.find(&hash(*n)).is_some_and(|block| block != BlockId(*n))).count();
        assert!((20_000..28_000).contains(&known), "{known}");
        assert_eq!(wrong, 0);
        assert!(table.memory_bytes() <= budget && table.memory_bytes() > budget / 2);
        assert_eq!(DedupTable::new(table.index.clone(), 0).unwrap().insert(&hash(1), BlockId(1)), None);
    }

    #[test]
    fn a_filter_appears_after_many_misses_and_hides_no_block() {
        let (_built, index) = index(2, 15_000);
        let table = DedupTable::new(index, BUDGET_BYTES).unwrap();
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let table = &table;
                scope.spawn(move || {
                    (0..8_000).for_each(|n| assert_eq!(table.find(&hash(n * 4 + worker)), None));
                });
            }
        });
        assert!(table.trouble().is_none());
        let filter = table.filter.get().expect("30,000 rows and 32,000 misses are enough");
        for serial in [0, 2] {
            for no in (0..15_000).step_by(7) {
                let block = BlockId::first(ArcSerial(serial), FrameNo(no));
                assert_eq!(table.find(&block_info(serial, no).blocks[0].hash), Some(block));
            }
        }
        let passed = (0..100_000).filter(|n| filter.may_hold(rows::hash_key(&hash(n + 1_000_000)))).count();
        assert!(passed < 4_000, "{passed} of 100,000 unknown hashes pass the filter");
        assert!(table.memory_bytes() < 1 << 20);
    }

    #[test]
    fn a_damaged_index_costs_dedup_and_is_told() {
        let (built, index) = index(1, 300);
        drop(index);
        let mut bytes = std::fs::read(built.path()).unwrap();
        bytes.chunks_mut(4096).skip(1).for_each(|page| page[500] ^= 1);
        let table = DedupTable::new(Arc::new(built.index()), BUDGET_BYTES).unwrap();
        std::fs::write(built.path(), &bytes).unwrap();
        let found = (0..300).filter(|no| table.find(&block_info(0, *no).blocks[0].hash).is_some()).count();
        assert!(found < 300);
        assert!(table.trouble().is_some_and(|error| error.is_damage()));
        assert_eq!(table.insert(&hash(1), BlockId(1)), None);
        assert_eq!(table.find(&hash(1)), Some(BlockId(1)));
    }
}
