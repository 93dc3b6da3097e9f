//! Blocks on their way to arcs: small ones are gathered into frames, and frames are compressed on all cores.
//!
//! Invariants: frames leave in the order in which they were begun; which blocks share one depends on nothing but the blocks;
//! what waits is bounded; what comes out was decompressed again and compared.

use std::collections::VecDeque;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use crate::arc::{BLOCK_ENTRY_LEN, BlockInfo, FRAME_OVERHEAD, MAX_BLOCKS, Packed, Packer};
use crate::error::{Error, Result};
use crate::ids::{BlockId, FramePlace, Slot};

/// Plain bytes of a frame of several blocks, at most.
const SHARED_BYTES: usize = 64 << 10;
/// A longer block has a frame of its own.
const SMALL_BYTES: usize = 32 << 10;
/// The same; in unit tests a small tree has frames of both kinds.
const SHARE_BYTES: (usize, usize) =
    if cfg!(test) { (SHARED_BYTES / 32, SMALL_BYTES / 32) } else { (SHARED_BYTES, SMALL_BYTES) };
/// Plain bytes that wait before the first of them must be written.
const WAITING_BYTES: usize = 8 << 20;
const MAX_THREADS: usize = 16;

struct Job {
    plain: Vec<u8>,
    reply: Sender<Result<Packed>>,
}

enum State {
    /// Small blocks are added to it.
    Open(Vec<u8>),
    Packing(Receiver<Result<Packed>>),
}

struct Waiting {
    place: FramePlace,
    blocks: Vec<BlockInfo>,
    plain_len: usize,
    state: State,
}

/// The frames that wait, and the threads that compress them, started with the first one.
pub(super) struct Queue {
    zstd_level: i32,
    frames: VecDeque<Waiting>,
    /// Of all of them.
    plain_bytes: usize,
    blocks: usize,
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Queue {
    pub fn new(zstd_level: i32) -> Queue {
        Queue { zstd_level, frames: VecDeque::new(), plain_bytes: 0, blocks: 0, jobs: None, threads: Vec::new() }
    }

    /// Frames that wait.
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Blocks in them.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes that they take in an arc, at most.
    pub fn most_bytes(&self) -> u64 {
        (self.plain_bytes + self.blocks * BLOCK_ENTRY_LEN + self.frames.len() * FRAME_OVERHEAD) as u64
    }

    /// Adds a block to the frame that is open, if it is small and there is room; its name.
    pub fn share(&mut self, plain: &[u8], info: BlockInfo) -> Result<Option<BlockId>> {
        if !is_small(plain) {
            return Ok(None);
        }
        let open = |frame: &&mut Waiting| matches!(frame.state, State::Open(_));
        let Some(Waiting { place, blocks, plain_len, state: State::Open(bytes) }) =
            self.frames.iter_mut().rev().find(open)
        else {
            return Ok(None);
        };
        if bytes.len() + plain.len() > SHARE_BYTES.0 || blocks.len() >= MAX_BLOCKS {
            self.close()?;
            return Ok(None);
        }
        let id = place.slot(Slot(blocks.len() as u8));
        bytes.extend_from_slice(plain);
        blocks.push(info);
        *plain_len = bytes.len();
        self.plain_bytes += plain.len();
        self.blocks += 1;
        Ok(Some(id))
    }

    /// Begins a frame in its place, behind all others. That of a small block stays open.
    pub fn begin(&mut self, place: FramePlace, plain: Vec<u8>, info: BlockInfo) -> Result<()> {
        let plain_len = plain.len();
        let state = if is_small(&plain) { State::Open(plain) } else { State::Packing(self.pack(plain)?) };
        self.frames.push_back(Waiting { place, blocks: vec![info], plain_len, state });
        self.plain_bytes += plain_len;
        self.blocks += 1;
        Ok(())
    }

    /// The first frame, while too much waits.
    pub fn overflow(&mut self) -> Result<Option<(Packed, Vec<BlockInfo>)>> {
        if self.plain_bytes > WAITING_BYTES && self.frames.len() > 1 { self.first() } else { Ok(None) }
    }

    /// The first frame, compressed.
    pub fn first(&mut self) -> Result<Option<(Packed, Vec<BlockInfo>)>> {
        if matches!(self.frames.front(), Some(Waiting { state: State::Open(_), .. })) {
            self.close()?;
        }
        let Some(Waiting { blocks, plain_len, state: State::Packing(packing), .. }) = self.frames.pop_front() else {
            return Ok(None);
        };
        self.plain_bytes -= plain_len;
        self.blocks -= blocks.len();
        let died = |_| Err(Error::SelfCheck { what: "a thread that compresses died".into() });
        Ok(Some((packing.recv().unwrap_or_else(died)?, blocks)))
    }

    /// Nothing is added any more to the frame that is open.
    fn close(&mut self) -> Result<()> {
        let Some(at) = self.frames.iter().rposition(|frame| matches!(frame.state, State::Open(_))) else {
            return Ok(());
        };
        let Some(State::Open(bytes)) = self.frames.get_mut(at).map(|frame| &mut frame.state) else { return Ok(()) };
        let bytes = std::mem::take(bytes);
        let packing = State::Packing(self.pack(bytes)?);
        if let Some(frame) = self.frames.get_mut(at) {
            frame.state = packing;
        }
        Ok(())
    }

    fn pack(&mut self, plain: Vec<u8>) -> Result<Receiver<Result<Packed>>> {
        let (reply, packing) = bounded(1);
        let mut job = Job { plain, reply };
        if let Some(jobs) = self.jobs()? {
            match jobs.send(job) {
                Ok(()) => return Ok(packing),
                Err(unsent) => job = unsent.into_inner(),
            }
        }
        let packed = Packer::new(self.zstd_level)?.pack(&job.plain);
        let _ = job.reply.send(packed);
        Ok(packing)
    }

    /// The way to the threads; None if none can be started.
    fn jobs(&mut self) -> Result<Option<&Sender<Job>>> {
        if self.jobs.is_none() {
            let (jobs, queue) = unbounded::<Job>();
            let count = std::thread::available_parallelism().map_or(2, usize::from).min(MAX_THREADS);
            for number in 0..count {
                let (queue, mut packer) = (queue.clone(), Packer::new(self.zstd_level)?);
                let work = move || {
                    for Job { plain, reply } in queue {
                        // Nobody waits for it where the run was given up.
                        let _ = reply.send(packer.pack(&plain));
                    }
                };
                let thread = std::thread::Builder::new().name(format!("pack-{number}"));
                self.threads.extend(thread.spawn(work).ok());
            }
            self.jobs = Some(jobs);
        }
        Ok(self.jobs.as_ref().filter(|_| !self.threads.is_empty()))
    }
}

fn is_small(plain: &[u8]) -> bool {
    plain.len() <= SHARE_BYTES.1
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arc::Codec;
    use crate::ids::{ArcSerial, BlockHash, FrameNo};
    use crate::testing::Rng;

    /// What came out: blocks and plain bytes of each frame, in order.
    type Frames = Vec<(Vec<BlockInfo>, Vec<u8>)>;

    fn put(frames: &mut Frames, (packed, blocks): (Packed, Vec<BlockInfo>)) {
        let plain = match packed.codec {
            Codec::Plain => packed.stored,
            Codec::Zstd => zstd::decode_all(&packed.stored[..]).unwrap(),
        };
        frames.push((blocks, plain));
    }

    /// Sends blocks through a queue; gives the frames, and the names that the blocks got.
    fn through(blocks: &[Vec<u8>]) -> (Frames, Vec<BlockId>) {
        let (mut queue, mut frames, mut names) = (Queue::new(3), Vec::new(), Vec::new());
        for (plain, n) in blocks.iter().zip(0u8..=255) {
            let info = BlockInfo { len: plain.len() as u32, hash: BlockHash([n; 20]) };
            let shared = queue.share(plain, info).unwrap();
            names.push(shared.unwrap_or_else(|| {
                let place = FramePlace::new(ArcSerial(1), FrameNo((frames.len() + queue.frames()) as u32));
                queue.begin(place, plain.clone(), info).unwrap();
                place.slot(Slot(0))
            }));
            while let Some(frame) = queue.overflow().unwrap() {
                put(&mut frames, frame);
            }
            assert!(queue.most_bytes() <= WAITING_BYTES as u64 + (1 << 20), "{}", queue.most_bytes());
        }
        while let Some(frame) = queue.first().unwrap() {
            put(&mut frames, frame);
        }
        assert_eq!((queue.frames(), queue.blocks(), queue.most_bytes()), (0, 0, 0));
        (frames, names)
    }

    #[test]
    fn each_block_comes_out_where_its_name_says_and_small_ones_share_frames() {
        let mut rng = Rng::from_env();
        let (most, small) = SHARE_BYTES;
        for round in 0..20 {
            let len = |rng: &mut Rng| match rng.below(4) {
                0 => small + 1 + rng.below(2 * most),
                1 if round % 5 == 0 => 500_000 + rng.below(100_000),
                _ => rng.below(small + 1),
            };
            let blocks: Vec<Vec<u8>> = (0..200)
                .map(|_| {
                    let len = len(&mut rng);
                    if rng.below(2) == 0 { rng.noise(len) } else { vec![7; len] }
                })
                .collect();
            let (frames, names) = through(&blocks);
            for ((plain, name), n) in blocks.iter().zip(&names).zip(0u8..) {
                let (infos, all) = &frames[name.frame().0 as usize];
                let slot = usize::from(name.slot().0);
                let start: usize = infos[..slot].iter().map(|info| info.len as usize).sum();
                assert_eq!((infos[slot].hash.0[0], infos[slot].len as usize), (n, plain.len()), "seed {}", rng.seed);
                assert!(all[start..start + plain.len()] == plain[..], "seed {}", rng.seed);
            }
            assert_eq!(frames.iter().map(|(infos, _)| infos.len()).sum::<usize>(), blocks.len());
            assert!(frames.iter().all(|(infos, all)| infos.len() == 1 || all.len() <= most));
            assert!(frames.len() < blocks.len() * 3 / 4, "seed {}: {} frames", rng.seed, frames.len());
            // The order of frames is that of their first blocks, and depends on nothing else.
            let firsts: Vec<&BlockId> = names.iter().filter(|name| name.slot() == Slot(0)).collect();
            assert!(firsts.is_sorted() && through(&blocks) == (frames, names.clone()), "seed {}", rng.seed);
        }
    }

    #[test]
    fn a_frame_has_at_most_as_many_blocks_as_there_are_slots() {
        let (frames, names) = through(&vec![b"x".to_vec(); 200]);
        assert_eq!(frames.iter().map(|(infos, _)| infos.len()).collect::<Vec<_>>(), [128, 72]);
        assert_eq!((names[127].slot(), names[128].slot(), names[128].frame()), (Slot::MAX, Slot(0), FrameNo(1)));
    }
}
