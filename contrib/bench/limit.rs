//! The in-memory limit of the read path: opening frames (AEAD, zstd, block hash) that are already in memory.
//!
//! `limit BACKUPDIR PATH…` opens the very frames that hold each file's blocks in the newest version, on all cores:
//! a mount can't read the file faster. `limit --sizes FILE` seals the file's bytes in blocks of several sizes and
//! opens them: what the choice of the block size costs. One JSON object a line.

use std::error::Error;
use std::hint::black_box;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use assay::bench::{
    ArcCipher, ArcId, ArcSalt, ArcSerial, BLOCK_ENTRY_LEN, BackupId, BlockInfo, Codec, Domain, FRAME_HEADER_LEN, Found,
    FrameInfo, FrameKind, FrameNo, Keys, Packer, Piece, TAG_LEN, open, seal,
};
use assay::{BackupDir, Tree, View};
use zeroize::Zeroizing;

type Done<T> = Result<T, Box<dyn Error>>;

/// Sealed bytes held at once.
const MAX_HELD: u64 = 4 << 30;
/// Bytes of the file that `--sizes` uses.
const SIZES_BYTES: u64 = 256 << 20;
const ROUNDS: usize = 3;

struct Sealed {
    cipher: Arc<ArcCipher>,
    no: FrameNo,
    info: FrameInfo,
    bytes: Vec<u8>,
}

fn main() -> Done<()> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [flag, file] if flag == "--sizes" => sizes(Path::new(file)),
        [dir, paths @ ..] if !paths.is_empty() => {
            let ask = |_: &Path| std::env::var("ASSAY_PASSPHRASE").ok().map(Zeroizing::new);
            let dir = BackupDir::open(Path::new(dir), &ask)?;
            paths.iter().try_for_each(|path| stored_file(&dir, path.as_bytes()))
        }
        _ => Err("usage: limit BACKUPDIR PATH… | limit --sizes FILE".into()),
    }
}

/// Seconds (the best of some rounds) that `threads` threads need to open all frames.
fn open_all(keys: &Keys, frames: &[Sealed], threads: usize) -> f64 {
    let round = || {
        let next = AtomicUsize::new(0);
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(frame) = frames.get(next.fetch_add(1, Relaxed)) {
                        let opened = open(keys, &frame.cipher, frame.no, &frame.info, &frame.bytes);
                        assert!(black_box(opened).is_ok(), "a frame does not open");
                    }
                });
            }
        });
        started.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn plain_bytes(frames: &[Sealed]) -> f64 {
    frames.iter().map(|frame| f64::from(frame.info.plain_len())).sum()
}

/// The frames of one file, each as often as the file uses it.
fn stored_file(dir: &BackupDir, path: &[u8]) -> Done<()> {
    let tree = Tree::of(dir, dir.open_index()?, View::Whole);
    let version = tree.version("latest")?.version;
    let Found::Node(logid, _) = tree.find(version, path)? else { return Err("not a file".into()) };
    let node = tree.node(logid)?;
    let mut frames = Vec::new();
    let mut held = 0;
    let mut arc: Option<(ArcSerial, Arc<ArcCipher>, std::fs::File)> = None;
    for piece in tree.segments(&node, 0, node.attr.size)? {
        let Piece::Data { block, .. } = piece else { continue };
        let place = tree.index().location(block)?;
        let (cipher, file) = match &arc {
            Some((serial, cipher, file)) if *serial == place.arc() => (cipher.clone(), file),
            _ => {
                let entry = tree.index().arc(place.arc())?.entry;
                let file = std::fs::File::open(dir.path().join(entry.name.to_string()))?;
                let cipher = Arc::new(dir.keys().arc_cipher(entry.id, &entry.salt));
                let (_, _, file) = &*arc.insert((place.arc(), cipher.clone(), file));
                (cipher, file)
            }
        };
        let chunk = tree.index().frame_chunk(place.arc(), place.frame())?;
        let (offset, info) = chunk.locate(place.frame()).ok_or("the index does not know a frame")?;
        let mut bytes = vec![0; info.frame_len() as usize];
        file.read_exact_at(&mut bytes, offset)?;
        held += info.frame_len();
        if held > MAX_HELD {
            return Err("the file is too large to hold in memory".into());
        }
        // Small blocks that follow each other share a frame.
        if frames.last().is_none_or(|last: &Sealed| last.bytes != bytes) {
            frames.push(Sealed { cipher, no: place.frame(), info: info.clone(), bytes });
        }
    }
    let one_s = open_all(dir.keys(), &frames, 1);
    let all_s = open_all(dir.keys(), &frames, cores());
    println!(
        "{}",
        serde_json::json!({
            "path": String::from_utf8_lossy(path), "file_bytes": node.attr.size, "data_bytes": plain_bytes(&frames),
            "stored_bytes": held, "blocks": frames.len(), "one_core_s": one_s, "all_cores_s": all_s, "cores": cores(),
        })
    );
    Ok(())
}

fn sizes(file: &Path) -> Done<()> {
    let mut plain = Vec::new();
    std::fs::File::open(file)?.take(SIZES_BYTES).read_to_end(&mut plain)?;
    let keys = Keys::new(&Zeroizing::new([1; 32]), BackupId([2; 16]));
    let cipher = Arc::new(keys.arc_cipher(ArcId([3; 16]), &ArcSalt([4; 32])));
    for kib in [16usize, 32, 64, 128, 256, 512, 1024] {
        let mut frames = Vec::new();
        let mut packer = Packer::new(3)?;
        for (block, no) in plain.chunks(kib << 10).zip(0..) {
            let packed = packer.pack(block)?;
            let info = FrameInfo::of_one(FrameKind::Block, &packed, BlockInfo::of(&keys, block));
            let bytes = seal(&cipher, FrameNo(no), &info, &packed.stored);
            frames.push(Sealed { cipher: cipher.clone(), no: FrameNo(no), info, bytes });
        }
        let total = plain_bytes(&frames);
        let stored: f64 = frames.iter().map(|frame| f64::from(frame.info.stored_len)).sum();
        let one_s = open_all(&keys, &frames, 1);
        let all_s = open_all(&keys, &frames, cores());
        let [aead_s, zstd_s, hash_s] = parts(&keys, &frames)?;
        println!(
            "{}",
            serde_json::json!({
                "block_kib": kib, "plain_bytes": total, "stored_ratio": stored / total,
                "one_core_gb_s": total / one_s / 1e9, "all_cores_gb_s": total / all_s / 1e9,
                "block_us": one_s / frames.len() as f64 * 1e6,
                "aead_gb_s": stored / aead_s / 1e9, "zstd_gb_s": total / zstd_s / 1e9, "hash_gb_s": total / hash_s / 1e9,
                "aead_share": aead_s / one_s, "zstd_share": zstd_s / one_s, "hash_share": hash_s / one_s,
            })
        );
    }
    Ok(())
}

/// Seconds on one core for decryption, decompression and hashing alone.
fn parts(keys: &Keys, frames: &[Sealed]) -> Done<[f64; 3]> {
    let (mut aead, mut unzstd, mut hash) = (0.0, 0.0, 0.0);
    let mut decompressor = zstd::bulk::Decompressor::new()?;
    for frame in frames {
        let (_, rest) = frame.bytes.split_at(FRAME_HEADER_LEN);
        let (body, tag) = rest.split_at(rest.len() - TAG_LEN);
        let mut buffer = body.to_vec();
        let tag: &[u8; TAG_LEN] = tag.try_into()?;
        let started = Instant::now();
        let right = frame.cipher.open(Domain::Frame, frame.no.0, &frame.info.head(frame.no), &mut buffer, tag);
        aead += started.elapsed().as_secs_f64();
        assert!(right, "a frame does not open");
        let stored = buffer.split_off(frame.info.blocks.len() * BLOCK_ENTRY_LEN);
        let started = Instant::now();
        let plain = match frame.info.codec {
            Codec::Plain => stored,
            Codec::Zstd => decompressor.decompress(&stored, frame.info.plain_len() as usize)?,
        };
        unzstd += started.elapsed().as_secs_f64();
        let started = Instant::now();
        black_box(keys.block_hash(&plain));
        hash += started.elapsed().as_secs_f64();
    }
    Ok([aead, unzstd, hash])
}
