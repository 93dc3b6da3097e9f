//! Dedup among many blocks: an index with synthetic block hashes, and lookups in it as a backup does them.
//!
//! `dedup DIR BLOCKS` puts the hashes into a new index through `apply`, a million a commit, then asks for hashes
//! that are there, and for some that are not, on one and on all cores, and remembers new ones until the memory is
//! full. Prints one JSON object.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use assay::bench::{
    ArcDigest, ArcEntry, ArcId, ArcName, ArcRole, ArcSalt, ArcSerial, BlockHash, BlockInfo, CatalogFrame,
    CatalogSource, Codec, Commit, DedupTable, FrameInfo, FrameKind, FrameNo, Index, IndexWriter, sha256,
};
use assay::{BlockId, Version};

type Done<T> = Result<T, Box<dyn Error>>;

const KEY: [u8; 48] = [7; 48];
const FRAMES_PER_ARC: u64 = 1 << 16;
const ARCS_PER_COMMIT: u64 = 8;
/// What a backup gives the table.
const BUDGET_BYTES: usize = 96 << 20;
const LOOKUPS: u64 = 400_000;

fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

/// 160 bits that look random, different for each `n`.
fn hash(n: u64) -> BlockHash {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&mix(n).to_le_bytes());
    bytes[8..16].copy_from_slice(&mix(n ^ 1 << 63).to_le_bytes());
    bytes[16..].copy_from_slice(&(mix(n ^ 1 << 62) as u32).to_le_bytes());
    BlockHash(bytes)
}

/// Frame tables that are computed when they are asked for.
struct Synthetic;

impl CatalogSource for Synthetic {
    fn frame_table(&mut self, arc: &ArcEntry) -> assay::Result<Vec<FrameInfo>> {
        let first = arc.serial.0 * FRAMES_PER_ARC;
        let frame = |n| FrameInfo {
            kind: FrameKind::Block,
            codec: Codec::Zstd,
            stored_len: 30_000,
            blocks: vec![BlockInfo { len: 65_536, hash: hash(n) }],
        };
        Ok((first..first + u64::from(arc.frames)).map(frame).collect())
    }

    fn catalog_frame(&mut self, _: &CatalogFrame, _: &ArcEntry) -> assay::Result<Vec<u8>> {
        Ok(Vec::new())
    }
}

fn commit(run: u32, previous: Option<(Version, [u8; 32])>, arcs: std::ops::Range<u64>, blocks: u64) -> Commit {
    let entry = |serial: u64| ArcEntry {
        serial: ArcSerial(serial),
        name: ArcName { version: Version(run), number: (serial - arcs.start) as u32 + 1 },
        role: ArcRole::Data,
        id: ArcId([1; 16]),
        salt: ArcSalt([2; 32]),
        arc_bytes: 1 << 32,
        digest: ArcDigest([3; 32]),
        frames: (blocks - serial * FRAMES_PER_ARC).min(FRAMES_PER_ARC) as u32,
        footer_offset: 0,
        footer_len: 0,
        plain_bytes: 0,
    };
    Commit {
        run: Version(run),
        run_id: [0; 16],
        previous,
        version: None,
        roots: Vec::new(),
        base: false,
        arcs: arcs.clone().map(entry).collect(),
        catalog: Vec::new(),
        next_serial: arcs.end,
        next_logid: 16,
        next_dirno: 1,
    }
}

/// Lookups a second of hashes spread over `from..from + span`, and how many were found.
fn lookups(table: &DedupTable, threads: u64, from: u64, span: u64) -> (f64, u64) {
    let found = AtomicU64::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let found = &found;
            scope.spawn(move || {
                for i in 0..LOOKUPS / threads {
                    let wanted = from + mix(i * threads + thread) % span;
                    found.fetch_add(u64::from(table.find(&hash(wanted)).is_some()), Relaxed);
                }
            });
        }
    });
    ((LOOKUPS / threads * threads) as f64 / started.elapsed().as_secs_f64(), found.into_inner())
}

/// Peak resident memory of this process, MiB.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

fn main() -> Done<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, blocks] = args.as_slice() else { return Err("usage: dedup DIR BLOCKS".into()) };
    let blocks: u64 = blocks.parse()?;
    std::fs::create_dir(dir)?;
    let path = Path::new(dir).join("index.db");
    Index::create(&path, &KEY)?;
    let mut writer = IndexWriter::open(&path, &KEY)?;
    let started = Instant::now();
    let arcs = blocks.div_ceil(FRAMES_PER_ARC);
    let mut previous = None;
    let mut last_commit_s = 0.0;
    for (first, run) in (0..arcs).step_by(ARCS_PER_COMMIT as usize).zip(0u32..) {
        let begun = Instant::now();
        let commit = commit(run, previous, first..(first + ARCS_PER_COMMIT).min(arcs), blocks);
        let digest = sha256(&commit.encode());
        writer.apply(&commit, digest, &mut Synthetic)?;
        writer.checkpoint()?;
        previous = Some((Version(run), digest));
        last_commit_s = begun.elapsed().as_secs_f64();
    }
    let apply_s = started.elapsed().as_secs_f64();
    let apply_peak_mib = peak_mib();
    drop(writer);

    let index = Arc::new(Index::open(&path, &KEY)?);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let table = DedupTable::new(index, BUDGET_BYTES)?;
    let (hit_one, found) = lookups(&table, 1, 0, blocks);
    assert_eq!(found, LOOKUPS, "a block that is there was not found");
    let (hit_all, _) = lookups(&table, cores, 0, blocks);
    // In vain, until the filter is made (or not), and after.
    let far = 1 << 40;
    let mut first_misses = 0.0;
    let mut rounds = 0;
    let started = Instant::now();
    while rounds == 0 || (table.memory_bytes() == 0 && rounds < 20) {
        let (rate, wrong) = lookups(&table, cores, far, far);
        assert_eq!(wrong, 0, "a block that is not there was found");
        if rounds == 0 {
            first_misses = rate;
        }
        rounds += 1;
    }
    let until_filter_s = started.elapsed().as_secs_f64();
    let filter_bytes = table.memory_bytes();
    let (miss_one, _) = lookups(&table, 1, far, far);
    let (miss_all, _) = lookups(&table, cores, far, far);
    let started = Instant::now();
    let new = 4_000_000u64.min(blocks);
    for n in far..far + new {
        table.insert(&hash(n), BlockId::first(ArcSerial(1 << 30), FrameNo((n - far) as u32)));
    }
    let insert_s = started.elapsed().as_secs_f64();
    let kept = (far..far + new).filter(|n| table.find_new(&hash(*n)).is_some()).count();
    if let Some(error) = table.trouble() {
        return Err(error.into());
    }
    println!(
        "{}",
        serde_json::json!({
            "blocks": blocks, "index_bytes": std::fs::metadata(&path)?.len(), "apply_s": apply_s,
            "last_commit_of_a_million_s": last_commit_s, "apply_peak_mib": apply_peak_mib,
            "hits_per_s_one": hit_one, "hits_per_s_all": hit_all,
            "first_misses_per_s": first_misses, "until_filter_s": until_filter_s, "filter_bytes": filter_bytes,
            "misses_per_s_one": miss_one, "misses_per_s_all": miss_all,
            "inserts_per_s": new as f64 / insert_s, "new_remembered": kept, "new_offered": new,
            "table_bytes": table.memory_bytes(), "budget_bytes": BUDGET_BYTES, "peak_mib": peak_mib(),
        })
    );
    Ok(())
}
