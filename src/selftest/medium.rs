//! Frames on their way from the medium to all cores: one thread reads in the order of the medium, several where each read
//! costs a way, all others verify.
//!
//! Invariants: at most `IN_FLIGHT_BYTES` of sealed bytes are in memory (or one frame, if it is larger); a frame counts
//! as good only when `Frame::judge` accepted it; a frame that fails is read once more, by itself and past the page
//! cache, before it is judged; each arc is closed exactly once, after its last frame.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::in_order::{Done, InOrder};
use super::shell::BadPart;
use crate::arc::FrameInfo;
use crate::crypto::{ArcCipher, Keys};
use crate::depot::{StoredArc, Via};
use crate::dest::Stamp;
use crate::error::{Error, Result};
use crate::fetch::Frame;
use crate::findings::Cause;
use crate::ids::{ArcName, ArcSerial, BlockId, FrameNo};
use crate::sync::{lock, wait};

/// What one read asks for: neighbouring frames up to this many bytes.
const PIECE_BYTES: u64 = 1 << 20;
/// Sealed bytes that were read and not yet verified.
const IN_FLIGHT_BYTES: u64 = 48 << 20;
const MAX_THREADS: usize = 64;

/// A frame to verify: its number, where it starts, what must be there.
pub(super) type Placed = (FrameNo, u64, FrameInfo);

/// An arc whose frames are verified.
pub(super) struct Job {
    /// Of the file, before it was read.
    pub stamp: Option<Stamp>,
    pub name: ArcName,
    /// None: a commit arc, or one whose commit record is lost.
    pub serial: Option<ArcSerial>,
    pub cipher: ArcCipher,
    pub bytes: Box<dyn StoredArc>,
    /// In the order of the medium.
    pub frames: Vec<Placed>,
    /// All frames of the arc are in `frames`, and what surrounds them was checked.
    pub whole: bool,
    /// Where all of it is hashed.
    pub sum: Option<Mutex<InOrder>>,
    /// What is wrong around the frames.
    pub bad_parts: Vec<BadPart>,
    pub foreign: bool,
    pub other: bool,
    pub bad: Mutex<Vec<Bad>>,
}

impl Job {
    fn frame<'a>(&'a self, keys: &'a Keys, (no, offset, info): &'a Placed) -> Frame<'a> {
        let block = self.serial.map(|serial| BlockId::first(serial, *no));
        Frame { keys, cipher: &self.cipher, arc: self.name, no: *no, block, offset: *offset, info }
    }

    /// A piece was judged; gives back what nobody needs any more.
    fn hashed(&self, start: u64, len: u64, bytes: Option<Vec<u8>>) -> Vec<Done> {
        match &self.sum {
            Some(sum) => lock(sum).add(start, len, bytes),
            None => vec![(len, bytes)],
        }
    }
}

/// A frame that is wrong, or that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bad {
    pub no: FrameNo,
    pub offset: u64,
    pub error: Error,
    pub cause: Cause,
}

/// Learns what happens, from all threads.
pub(super) trait Watch: Sync {
    fn good(&self, job: &Job, no: FrameNo, info: &FrameInfo);
    /// So many more bytes were read and judged.
    fn advanced(&self, bytes: u64);
    fn stop(&self) -> bool;
    /// All frames of the arc were judged (or it was stopped).
    fn close(&self, job: Job);
}

struct Piece {
    job: Arc<Job>,
    /// In `job.frames`.
    frames: Range<usize>,
    start: u64,
    len: u64,
    /// None: it could not be read as one.
    bytes: Option<Vec<u8>>,
}

/// Verifies all frames of all jobs, with so many reads at a time.
///
/// # Errors
/// When no thread can be started for it.
pub(super) fn verify_all(
    keys: &Keys,
    jobs: impl Iterator<Item = Job> + Send,
    reads: usize,
    watch: &dyn Watch,
) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(MAX_THREADS);
    let flow = Flow::default();
    let (pieces, queue) = bounded::<Piece>(2 * threads);
    let feed = Mutex::new(Feed { jobs, current: None });
    std::thread::scope(|scope| {
        for number in 0..threads {
            let (queue, flow) = (queue.clone(), &flow);
            let started = std::thread::Builder::new().spawn_scoped(scope, move || serve(keys, &queue, flow, watch));
            if let (0, Err(e)) = (number, started) {
                return Err(Error::io("start a thread for", "the selftest", &e));
            }
        }
        drop(queue);
        let (feed, flow) = (&feed, &flow);
        let read = |pieces: Sender<Piece>| {
            loop {
                let next = lock(feed).next(flow, watch);
                let Some(mut piece) = next else { return };
                piece.bytes = flow.read(piece.job.bytes.as_ref(), piece.start, piece.len);
                // Dropped again at once: a selftest must not take the page cache from those who need it.
                piece.job.bytes.release(piece.start, piece.len);
                let _ = pieces.send(piece);
            }
        };
        for _ in 1..reads {
            let pieces = pieces.clone();
            // With fewer threads it only takes longer.
            let _ = std::thread::Builder::new().spawn_scoped(scope, move || read(pieces));
        }
        read(pieces);
        Ok(())
    })
}

/// What is to be read, in its order.
struct Feed<I> {
    jobs: I,
    /// An arc, and its first frame that is not on its way.
    current: Option<(Arc<Job>, usize)>,
}

impl<I: Iterator<Item = Job>> Feed<I> {
    /// A piece that is to be read; its bytes count as on their way.
    fn next(&mut self, flow: &Flow, watch: &dyn Watch) -> Option<Piece> {
        loop {
            if let Some((job, next)) = &mut self.current
                && !watch.stop()
                && let Some((frames, start, len)) = stretch(&job.frames, *next)
            {
                *next = frames.end;
                flow.enter(len);
                return Some(Piece { job: job.clone(), frames, start, len, bytes: None });
            }
            if let Some((job, _)) = self.current.take() {
                finish(job, watch);
            }
            let job = self.jobs.next()?;
            job.bytes.forget();
            self.current = Some((Arc::new(job), 0));
        }
    }
}

/// The next frames that lie together, with the range that they take.
fn stretch(frames: &[Placed], from: usize) -> Option<(Range<usize>, u64, u64)> {
    let (_, start, _) = frames.get(from)?;
    let (mut len, mut end) = (0, from);
    for (_, offset, info) in frames.iter().skip(from) {
        let more = info.frame_len();
        if end > from && (*offset != start + len || len + more > PIECE_BYTES) {
            break;
        }
        len += more;
        end += 1;
    }
    Some((from..end, *start, len))
}

fn finish(job: Arc<Job>, watch: &dyn Watch) {
    if let Some(job) = Arc::into_inner(job) {
        watch.close(job);
    }
}

fn serve(keys: &Keys, queue: &Receiver<Piece>, flow: &Flow, watch: &dyn Watch) {
    for piece in queue {
        let job = &piece.job;
        for placed in job.frames.get(piece.frames.clone()).unwrap_or_default() {
            if watch.stop() {
                break;
            }
            let (no, offset, info) = placed;
            let frame = job.frame(keys, placed);
            let first = match &piece.bytes {
                Some(bytes) => {
                    let start = ((offset - piece.start) as usize).min(bytes.len());
                    let end = (start + info.frame_len() as usize).min(bytes.len());
                    frame.judge(bytes.get(start..end).unwrap_or_default())
                }
                // One bad sector failed the whole piece: its other frames may be well.
                None => frame.read(job.bytes.as_ref(), Via::Cache),
            };
            let Err(first) = first else {
                watch.good(job, *no, info);
                continue;
            };
            let (error, cause) = match frame.again(job.bytes.as_ref(), &first) {
                Ok(_) => (first.error, Cause::Transient),
                Err(second) if second.is_another => (second.error, Cause::Index),
                Err(second) => {
                    let cause = Cause::of(&second.error);
                    (second.error, cause)
                }
            };
            if cause == Cause::Transient {
                watch.good(job, *no, info);
            }
            // One that was not read at first has not been wrong.
            if cause != Cause::Transient || error.is_damage() {
                lock(&job.bad).push(Bad { no: *no, offset: *offset, error, cause });
            }
        }
        watch.advanced(piece.len);
        for (len, bytes) in job.hashed(piece.start, piece.len, piece.bytes) {
            flow.leave(len, bytes);
        }
        finish(piece.job, watch);
    }
}

/// Bounds the bytes on their way, and keeps their buffers.
#[derive(Default)]
struct Flow {
    bytes: Mutex<u64>,
    left: Condvar,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Flow {
    fn enter(&self, len: u64) {
        let mut bytes = lock(&self.bytes);
        while *bytes > 0 && *bytes + len > IN_FLIGHT_BYTES {
            bytes = wait(&self.left, bytes);
        }
        *bytes += len;
    }

    fn leave(&self, len: u64, buffer: Option<Vec<u8>>) {
        if let Some(buffer) = buffer.filter(|buffer| buffer.capacity() as u64 <= 2 * PIECE_BYTES) {
            lock(&self.buffers).push(buffer);
        }
        *lock(&self.bytes) -= len;
        self.left.notify_one();
    }

    /// None when it can't be read as one; shorter where the arc ends.
    fn read(&self, arc: &dyn StoredArc, start: u64, len: u64) -> Option<Vec<u8>> {
        let mut buffer = lock(&self.buffers).pop().unwrap_or_default();
        buffer.resize(len as usize, 0);
        let found = arc.read(start, &mut buffer, Via::Cache).ok()?;
        buffer.truncate(found);
        Some(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arc::{BlockInfo, FrameKind, Packer, frame};
    use crate::depot;
    use crate::ids::{ArcId, ArcSalt, BackupId, CopyId, Version};
    use std::io;
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use zeroize::Zeroizing;

    /// An arc in memory whose reads of some byte are wrong, or fail, a number of times.
    struct Faulty {
        bytes: Vec<u8>,
        at: u64,
        times: AtomicU64,
        errno: Option<i32>,
        forgotten: AtomicU64,
    }

    impl StoredArc for Faulty {
        fn name(&self) -> ArcName {
            ArcName { version: Version(0), number: 1 }
        }
        fn copy(&self) -> CopyId {
            CopyId::LOCAL
        }
        fn source(&self) -> String {
            "memory".into()
        }
        fn is_current(&self) -> bool {
            true
        }
        fn len_bytes(&self) -> u64 {
            self.bytes.len() as u64
        }
        fn read(&self, offset: u64, buffer: &mut [u8], via: Via) -> Result<usize> {
            self.forgotten.fetch_add(u64::from(via == Via::Medium), Relaxed);
            let rest = self.bytes.get(offset as usize..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            let hit = self.at.checked_sub(offset).filter(|at| *at < count as u64);
            if let Some(at) = hit
                && self.times.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                match self.errno {
                    Some(errno) => {
                        let error = io::Error::from_raw_os_error(errno);
                        let name = ArcName { version: Version(0), number: 1 };
                        return Err(depot::read_error(name, Path::new("arc.0.1"), offset, &error));
                    }
                    None => buffer[at as usize] ^= 0x11,
                }
            }
            Ok(count)
        }
        fn forget(&self) {}
        fn release(&self, _: u64, _: u64) {}
    }

    #[derive(Default)]
    struct Ears {
        good: Mutex<Vec<u32>>,
        bad: Mutex<Vec<Bad>>,
        closed: AtomicU64,
    }

    impl Watch for Ears {
        fn good(&self, _: &Job, no: FrameNo, _: &FrameInfo) {
            lock(&self.good).push(no.0);
        }
        fn advanced(&self, _: u64) {}
        fn stop(&self) -> bool {
            false
        }
        fn close(&self, job: Job) {
            self.closed.fetch_add(1, Relaxed);
            lock(&self.bad).extend(job.bad.into_inner().unwrap());
        }
    }

    fn keys() -> Keys {
        Keys::new(&Zeroizing::new([1; 32]), BackupId([2; 16]))
    }

    /// Frames of `lens` plain bytes, with what goes wrong.
    fn job(lens: &[usize], at: u64, times: u64, errno: Option<i32>) -> Job {
        let keys = keys();
        let cipher = keys.arc_cipher(ArcId([3; 16]), &ArcSalt([4; 32]));
        let (mut bytes, mut frames) = (Vec::new(), Vec::new());
        for (len, no) in lens.iter().zip(0..) {
            let plain: Vec<u8> = (0..*len).map(|n| (n * 31 % 251) as u8 ^ no as u8).collect();
            let packed = Packer::new(3).unwrap().pack(&plain).unwrap();
            let info = FrameInfo::of_one(FrameKind::Block, &packed, BlockInfo::of(&keys, &plain));
            let sealed = frame::seal(&cipher, FrameNo(no), &info, &packed.stored);
            frames.push((FrameNo(no), bytes.len() as u64, info));
            bytes.extend(sealed);
        }
        let times = AtomicU64::new(times);
        let bytes = Box::new(Faulty { bytes, at, times, errno, forgotten: AtomicU64::new(0) });
        let name = ArcName { version: Version(0), number: 1 };
        let (bad, bad_parts) = (Mutex::default(), Vec::new());
        Job {
            stamp: None,
            name,
            serial: None,
            cipher,
            bytes,
            frames,
            whole: true,
            sum: None,
            bad_parts,
            foreign: false,
            other: false,
            bad,
        }
    }

    fn verify(jobs: Vec<Job>) -> (Vec<u32>, Vec<(u32, &'static str, Cause)>) {
        verify_by(jobs, 1)
    }

    fn verify_by(jobs: Vec<Job>, reads: usize) -> (Vec<u32>, Vec<(u32, &'static str, Cause)>) {
        let (ears, count) = (Ears::default(), jobs.len() as u64);
        verify_all(&keys(), jobs.into_iter(), reads, &ears).unwrap();
        assert_eq!(ears.closed.into_inner(), count, "each arc is closed once");
        let mut good = ears.good.into_inner().unwrap();
        good.sort_unstable();
        let bad = ears.bad.into_inner().unwrap();
        (good, bad.into_iter().map(|bad| (bad.no.0, bad.error.code(), bad.cause)).collect())
    }

    #[test]
    fn a_second_read_tells_passing_faults_from_lasting_ones() {
        let lens = [100, 70_000, 300, 5];
        let in_second = 300;
        let all = vec![0, 1, 2, 3];
        assert_eq!(verify(vec![job(&lens, 0, 0, None)]), (all.clone(), vec![]));
        let once = verify(vec![job(&lens, in_second, 1, None)]);
        assert_eq!(once, (all.clone(), vec![(1, "ARC_TAG_MISMATCH", Cause::Transient)]));
        let lasting = verify(vec![job(&lens, in_second, 99, None)]);
        assert_eq!(lasting, (vec![0, 2, 3], vec![(1, "ARC_TAG_MISMATCH", Cause::Medium)]));
        // A bad sector fails the read of all four: the others are read alone and are well.
        let sector = verify(vec![job(&lens, in_second, 99, Some(libc::EIO))]);
        assert_eq!(sector, (vec![0, 2, 3], vec![(1, "ARC_UNREADABLE", Cause::Medium)]));
        let passing = verify(vec![job(&lens, in_second, 2, Some(libc::EIO))]);
        assert_eq!(passing, (all.clone(), vec![(1, "ARC_UNREADABLE", Cause::Transient)]));
        // One that is right when it is read alone was not wrong for sure: the whole read failed, not the frame.
        assert_eq!(verify(vec![job(&lens, in_second, 1, Some(libc::EIO))]), (all.clone(), vec![]));
        // What says nothing of the medium is no damage, neither for good nor in passing.
        for errno in [libc::EACCES, libc::ESTALE, libc::ETIMEDOUT, libc::ENOMEM, libc::ENOTCONN, libc::ENXIO] {
            let unread = verify(vec![job(&lens, in_second, 99, Some(errno))]);
            assert_eq!(unread, (vec![0, 2, 3], vec![(1, "IO", Cause::Unchecked)]));
            assert_eq!(verify(vec![job(&lens, in_second, 2, Some(errno))]), (all.clone(), vec![]));
        }
    }

    #[test]
    fn who_expects_another_frame_than_an_authentic_one_is_wrong() {
        let mut wrong = job(&[100, 200], 0, 0, None);
        wrong.frames[1].2.blocks[0].hash.0[3] ^= 1;
        assert_eq!(verify(vec![wrong]), (vec![0], vec![(1, "ARC_FRAME_WRONG", Cause::Index)]));
    }

    #[test]
    fn large_frames_and_many_arcs_pass_through_bounded_memory() {
        let large = 3 * PIECE_BYTES as usize;
        let jobs = || (0..40).map(|n| job(&[large, 10, 200_000 + n, 0], 0, 0, None)).collect::<Vec<Job>>();
        let by_many = verify_by(jobs(), 5);
        assert_eq!((by_many.0.len(), by_many.1.len()), (160, 0));
        let jobs = jobs();
        let pieces: Vec<_> =
            std::iter::successors(stretch(&jobs[0].frames, 0), |(frames, ..)| stretch(&jobs[0].frames, frames.end))
                .collect();
        assert!(pieces.iter().all(|(frames, _, len)| *len <= PIECE_BYTES || frames.len() == 1));
        assert_eq!(pieces.iter().map(|(.., len)| len).sum::<u64>(), jobs[0].bytes.len_bytes());
        assert_eq!(verify(jobs).0.len(), 160);
    }
}
