//! The ledger from note to answer: against a naive model, against every kind of damage of a segment, and against other
//! histories.

mod history;
mod segments;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::files::Refused;
use super::merged::{LEDGER_DIR, PROOF_MAX_AGE_S};
use super::*;
use crate::crypto::Keys;
use crate::ids::{BackupId, Version};
use crate::index::Commits;
use crate::own::{OwnDir, Sharing};

const NOW_S: u64 = 2_000_000_000;
const ARC: ArcSerial = ArcSerial(7);
const FIRST: Head = (Version(0), [1; 32]);

struct Lab {
    dir: tempfile::TempDir,
    keys: Arc<Keys>,
    /// Milliseconds.
    clock: Arc<AtomicU64>,
    /// The commits of the index, as each process sees them.
    heads: Arc<Mutex<Vec<Head>>>,
}

impl Lab {
    fn new() -> Lab {
        let keys = Arc::new(Keys::new(&Zeroizing::new([3; 32]), BackupId([4; 16])));
        let (clock, heads) = (Arc::new(AtomicU64::new(1000 * NOW_S)), Arc::new(Mutex::new(vec![FIRST])));
        Lab { dir: tempfile::tempdir().unwrap(), keys, clock, heads }
    }
    fn writer(&self, by: By) -> LedgerWriter {
        let (clock, heads) = (self.clock.clone(), self.heads.clone());
        let head = move || heads.lock().unwrap().last().copied();
        LedgerWriter::with(&self.own(), self.keys.clone(), by, head, move || clock.load(Ordering::Relaxed))
    }
    /// The next run, with this byte in its digest.
    fn commit(&self, byte: u8) {
        let mut heads = self.heads.lock().unwrap();
        let run = Version(heads.len() as u32);
        heads.push((run, [byte; 32]));
    }
    fn commits(&self) -> Commits {
        let mut commits = Commits::default();
        commits.extend(self.heads.lock().unwrap().iter().copied());
        commits
    }
    fn own(&self) -> Arc<OwnDir> {
        Arc::new(OwnDir::open(self.dir.path(), Sharing::Refused).unwrap())
    }
    fn later(&self, seconds: u64) {
        self.clock.fetch_add(1000 * seconds, Ordering::Relaxed);
    }
    fn now_s(&self) -> u64 {
        self.clock.load(Ordering::Relaxed) / 1000
    }
    fn tick(&self) {
        self.clock.fetch_add(1, Ordering::Relaxed);
    }
    fn load(&self) -> (Ledger, Vec<Refused>) {
        Ledger::load_at(&self.own(), &self.keys, &self.commits(), self.now_s()).unwrap()
    }
    /// What there is, when nothing may be refused.
    fn ledger(&self) -> Ledger {
        let (ledger, refused) = self.load();
        assert_eq!(refused, []);
        ledger
    }
    fn merge(&self) -> Vec<Refused> {
        Ledger::merge(&self.own(), &self.keys, &self.commits(), self.now_s()).unwrap()
    }
    fn segments(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = fs::read_dir(self.dir.path().join(LEDGER_DIR))
            .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default();
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|end| end == "seg" || end == "bad");
        paths.retain(is_segment);
        paths.sort();
        paths
    }
    /// The only segment.
    fn segment(&self) -> PathBuf {
        let [path] = self.segments().try_into().unwrap();
        path
    }
}

fn frames(ledger: &Ledger, how: How) -> Vec<u32> {
    (0..64).filter(|no| ledger.frame(ARC, CopyId::LOCAL, FrameNo(*no), how).is_some()).collect()
}

fn damage(when_s: u64, no: u32) -> Damage {
    let (code, frame) = ("ARC_TAG_MISMATCH".to_string(), Some(FrameNo(no)));
    Damage { when_ms: 1000 * when_s, arc: ARC, copy: CopyId::LOCAL, frame, count: 1, code, mended: false }
}

fn run(when_s: u64) -> Run {
    Run {
        when_s,
        seconds: 60,
        level: 3,
        inc: Some("1d/30d".into()),
        scope: String::new(),
        blocks: 1000,
        bytes: 1 << 40,
        findings: 2,
        fixed: 1,
    }
}

/// Three batches of all kinds of records.
fn written(lab: &Lab) {
    written_with(lab, true);
}

/// The same without damage, which the list would notice to be gone.
fn proven(lab: &Lab) {
    written_with(lab, false);
}

fn written_with(lab: &Lab, damaged: bool) {
    let writer = lab.writer(By::Selftest);
    for batch in 0..3u32 {
        (0..4).for_each(|no| writer.frame(ARC, CopyId::LOCAL, FrameNo(batch * 10 + no), How::Medium));
        writer.file(Logid(100 + u64::from(batch)), Extent::Hashed);
        writer.record(Record::Run(run(lab.now_s())));
        if damaged {
            writer.record(Record::Damage(damage(lab.now_s(), 60 + batch)));
        }
        let flip = Flip {
            when_s: lab.now_s(),
            block: BlockId::first(ARC, FrameNo(batch)),
            byte: batch,
            bit: 3,
            to_one: true,
            again: false,
        };
        writer.record(Record::Flip(flip));
        let session = Session {
            started_s: NOW_S,
            by: By::Mount,
            seconds: u64::from(batch),
            dirs_listed: 5,
            files_read: 6,
            bytes_read: 7,
        };
        writer.record(Record::Session(session));
        writer.flush().unwrap();
        lab.later(61);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Frame(u64, u16, u32, bool),
    File(u64, u8),
    Later(u64),
    Flush,
    Commit,
    Merge,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0u64..3, 0u16..2, 0u32..20, any::<bool>()).prop_map(|(a, c, f, m)| Step::Frame(a, c, f, m)),
        6 => (16u64..30, 1u8..4).prop_map(|(logid, extent)| Step::File(logid, extent)),
        4 => prop_oneof![0u64..200, Just(40_000), Just(30 * 86_400)].prop_map(Step::Later),
        3 => Just(Step::Flush),
        2 => Just(Step::Commit),
        1 => Just(Step::Merge),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #[test]
    fn the_ledger_knows_what_a_naive_model_knows(steps in prop::collection::vec(step(), 1..80)) {
        let lab = Lab::new();
        let by = [By::Mount, By::Get, By::Selftest];
        let mut writer = lab.writer(by[0]);
        let (mut naive, mut naive_files) = (HashMap::new(), HashMap::new());
        // All notes between two flushes have the time of the first.
        let mut since_s = None;
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                Step::Frame(arc, copy, no, medium) => {
                    let since_s = *since_s.get_or_insert(lab.now_s());
                    writer.frame(ArcSerial(arc), CopyId(copy), FrameNo(no), if medium { How::Medium } else { How::Read });
                    naive.insert((arc, copy, no, medium), since_s);
                }
                Step::File(logid, code) => {
                    let since_s = *since_s.get_or_insert(lab.now_s());
                    writer.file(Logid(logid), [Extent::Part, Extent::Whole, Extent::Hashed][code as usize - 1]);
                    naive_files.insert((logid, code), since_s);
                }
                Step::Later(seconds) => lab.later(seconds),
                Step::Flush => {
                    writer.flush().unwrap();
                    since_s = None;
                }
                Step::Commit => lab.commit(at as u8),
                Step::Merge => assert_eq!(lab.merge(), []),
                Step::Restart => {
                    writer.flush().unwrap();
                    since_s = None;
                    writer = lab.writer(by[at % 3]);
                }
            }
        }
        let mut ledger = lab.ledger();
        writer.add_to(&mut ledger);
        let counts = |when_s: &u64| when_s + PROOF_MAX_AGE_S >= lab.now_s();
        for (arc, copy, no) in (0..3).flat_map(|a| (0..2).flat_map(move |c| (0..21).map(move |no| (a, c, no)))) {
            let of = |medium| naive.get(&(arc, copy, no, medium)).copied().filter(counts);
            let found = |how| ledger.frame(ArcSerial(arc), CopyId(copy), FrameNo(no), how).map(|proof| proof.when_s);
            prop_assert_eq!(found(How::Medium), of(true));
            prop_assert_eq!(found(How::Read), of(true).max(of(false)));
        }
        for logid in 16..31 {
            let of = |code| naive_files.get(&(logid, code)).copied().filter(counts);
            let best = (1u8..=3).rev().find_map(|code| Some((code, of(code)?)));
            let found = ledger.file(Logid(logid));
            prop_assert_eq!(found.map(|files| (files.extent as u8, files.when_s)), best);
        }
    }
}

#[test]
fn everything_that_is_noted_comes_back() {
    let lab = Lab::new();
    written(&lab);
    for merged in [false, true] {
        let ledger = lab.ledger();
        assert_eq!(frames(&ledger, How::Medium), [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]);
        assert_eq!(frames(&ledger, How::Read).len(), 12);
        assert_eq!(ledger.proven(CopyId::LOCAL, How::Medium).map(|run| run.count).collect::<Vec<_>>(), [4, 4, 4]);
        assert_eq!(ledger.runs(), [run(NOW_S), run(NOW_S + 61), run(NOW_S + 122)]);
        let damaged: Vec<Damage> = (0..3).map(|n| damage(NOW_S + u64::from(n) * 61, 60 + n)).collect();
        assert_eq!(ledger.open_damage(), damaged);
        assert_eq!((ledger.flips().len(), ledger.same_flip_twice()), (3, None));
        assert_eq!(ledger.sessions().iter().map(|session| session.seconds).collect::<Vec<_>>(), [2]);
        let file = Files { first: Logid(101), count: 1, extent: Extent::Hashed, when_s: NOW_S + 61, by: By::Selftest };
        assert_eq!(ledger.file(Logid(101)), Some(file));
        assert_eq!((ledger.file_since(Logid(101), NOW_S + 62), ledger.file(Logid(103))), (None, None));
        if !merged {
            let writer = lab.writer(By::Get);
            writer.frame(ARC, CopyId(1), FrameNo(0), How::Read);
            writer.flush().unwrap();
            drop(writer);
            assert_eq!(lab.segments().len(), 2);
            assert_eq!(lab.merge(), []);
            lab.segment();
        }
    }
}

#[test]
fn old_proofs_and_those_of_a_wrong_clock_count_for_nothing() {
    let lab = Lab::new();
    let note = |no| {
        let writer = lab.writer(By::Mount);
        writer.frame(ARC, CopyId::LOCAL, FrameNo(no), How::Read);
        writer.file(Logid(u64::from(no) + 16), Extent::Whole);
        writer.flush().unwrap();
    };
    note(0);
    lab.later(PROOF_MAX_AGE_S - 10);
    note(1);
    assert_eq!(frames(&lab.ledger(), How::Read), [0, 1]);
    lab.later(11);
    assert_eq!(frames(&lab.ledger(), How::Read), [1]);
    assert_eq!((lab.ledger().file(Logid(16)), lab.ledger().file(Logid(17)).is_some()), (None, true));
    assert_eq!(lab.merge(), []);
    // The clock was two days ahead, and is put right.
    lab.later(2 * 86_400);
    note(2);
    lab.clock.fetch_sub(2 * 86_400_000, Ordering::Relaxed);
    assert_eq!(frames(&lab.ledger(), How::Read), [1]);
    lab.later(86_400);
    assert_eq!(frames(&lab.ledger(), How::Read), [1, 2]);
}

#[test]
fn damage_is_open_until_it_reads_right_again() {
    let lab = Lab::new();
    let writer = lab.writer(By::Mount);
    writer.frame(ARC, CopyId::LOCAL, FrameNo(1), How::Read);
    (1..4).for_each(|no| writer.record(Record::Damage(damage(lab.now_s(), no))));
    let missing = Damage { frame: None, count: 0, code: "ARC_MISSING".into(), ..damage(lab.now_s(), 0) };
    let header =
        Damage { arc: ArcSerial(8), frame: None, count: 0, code: "ARC_HEADER_BAD".into(), ..damage(lab.now_s(), 0) };
    writer.record(Record::Damage(missing));
    writer.record(Record::Damage(header.clone()));
    writer.flush().unwrap();
    assert_eq!(lab.ledger().open_damage().len(), 5, "a proof from before mends nothing");
    // The same process reads one right, in the same second; it goes bad again, and right again.
    writer.frame(ARC, CopyId::LOCAL, FrameNo(1), How::Read);
    writer.record(Record::Damage(damage(lab.now_s(), 2)));
    writer.frame(ARC, CopyId::LOCAL, FrameNo(2), How::Medium);
    writer.flush().unwrap();
    let open = |lab: &Lab| lab.ledger().open_damage().iter().map(|d| d.frame.map(|no| no.0)).collect::<Vec<_>>();
    assert_eq!(open(&lab), [None, Some(3)], "the header of the other arc, and one frame");
    // Another one reads the last, later; a frame of the arc proves that it is there.
    lab.later(5);
    let other = lab.writer(By::Selftest);
    other.frame(ARC, CopyId::LOCAL, FrameNo(3), How::Medium);
    other.frame(ArcSerial(8), CopyId::LOCAL, FrameNo(3), How::Medium);
    other.flush().unwrap();
    assert_eq!(lab.ledger().open_damage(), [header]);
    drop((writer, other));
    assert_eq!(lab.merge(), []);
    assert_eq!(open(&lab), [None]);
}

#[test]
fn the_same_flip_twice_is_told_and_one_bad_bit_met_twice_is_not() {
    let flip = |block: u64, again| Flip { when_s: NOW_S, block: BlockId(block), byte: 9, bit: 2, to_one: true, again };
    let suspect = |flips: &[Flip]| {
        let mut ledger = Ledger::empty(NOW_S);
        flips.iter().for_each(|flip| ledger.take(Record::Flip(*flip)));
        ledger.same_flip_twice().is_some()
    };
    assert!(!suspect(&[flip(1, true), flip(1, true)]));
    assert!(suspect(&[flip(1, false), flip(1, false)]));
    assert!(suspect(&[flip(1, true), flip(2, true)]));
    assert!(!suspect(&[flip(1, false), Flip { to_one: false, ..flip(2, false) }, Flip { bit: 3, ..flip(3, false) }]));
}

#[test]
fn where_nothing_can_be_written_memory_serves_and_is_asked() {
    let lab = Lab::new();
    // A file in the way fails for root too.
    fs::write(lab.dir.path().join(LEDGER_DIR), b"").unwrap();
    let writer = lab.writer(By::Mount);
    writer.flush().unwrap();
    for no in 0..3 {
        writer.frame(ARC, CopyId::LOCAL, FrameNo(no), How::Read);
        writer.file(Logid(16), Extent::Whole);
        assert_eq!(writer.flush().is_err(), no == 0, "the first failure is told, once");
    }
    let mut ledger = Ledger::empty(lab.now_s());
    writer.add_to(&mut ledger);
    assert_eq!((frames(&ledger, How::Read), ledger.file(Logid(16)).is_some()), (vec![0, 1, 2], true));
}

#[test]
fn notes_are_bounded_and_cheap() {
    let lab = Lab::new();
    let writer = lab.writer(By::Mount);
    let started = std::time::Instant::now();
    const NOTES: u32 = 200_000;
    (0..NOTES).for_each(|n| writer.frame(ArcSerial(u64::from(n) % 100_000), CopyId::LOCAL, FrameNo(n), How::Read));
    let each = started.elapsed() / NOTES;
    // A wait for the disk would be a thousand times as long.
    assert!(each < std::time::Duration::from_micros(50), "{each:?} a note");
    writer.flush().unwrap();
    assert!(lab.ledger().proven(CopyId::LOCAL, How::Read).count() <= 2 * 16_384);
}

#[test]
fn files_and_directory_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    written(&lab);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(lab.dir.path().join(LEDGER_DIR)), mode(lab.segment())), (0o700, 0o600));
    assert_eq!(lab.merge(), []);
    assert_eq!(mode(lab.segment()), 0o600);
}

#[test]
fn the_later_verdict_counts_whatever_process_and_flush_it_is_from() {
    let lab = Lab::new();
    let proven = |no: u32| lab.ledger().frame(ARC, CopyId::LOCAL, FrameNo(no), How::Read).is_some();
    // Good, then bad in the same flush: a run of frames, and an arc that was away for less than a minute.
    let mount = lab.writer(By::Mount);
    (0..10).for_each(|no| mount.frame(ARC, CopyId::LOCAL, FrameNo(no), How::Read));
    mount.frame(ArcSerial(8), CopyId::LOCAL, FrameNo(0), How::Read);
    lab.later(10);
    mount.record(Record::Damage(Damage { count: 5, ..damage(lab.now_s(), 2) }));
    let away =
        Damage { arc: ArcSerial(8), frame: None, count: 0, code: "ARC_MISSING".into(), ..damage(lab.now_s(), 0) };
    mount.record(Record::Damage(away));
    mount.flush().unwrap();
    assert_eq!((0..10).filter(|no| proven(*no)).collect::<Vec<_>>(), [0, 1, 7, 8, 9]);
    assert!(lab.ledger().frame(ArcSerial(8), CopyId::LOCAL, FrameNo(0), How::Read).is_none());
    // Right again, in the window that began before the damage; one frame of the run, anything of the arc.
    mount.frame(ARC, CopyId::LOCAL, FrameNo(9), How::Read);
    lab.later(5);
    mount.record(Record::Damage(damage(lab.now_s(), 9)));
    mount.frame(ARC, CopyId::LOCAL, FrameNo(9), How::Read);
    mount.frame(ARC, CopyId::LOCAL, FrameNo(4), How::Read);
    mount.frame(ArcSerial(8), CopyId::LOCAL, FrameNo(3), How::Read);
    mount.flush().unwrap();
    assert_eq!((0..10).filter(|no| proven(*no)).collect::<Vec<_>>(), [0, 1, 4, 7, 8, 9]);
    assert!(lab.ledger().frame(ArcSerial(8), CopyId::LOCAL, FrameNo(0), How::Read).is_some());
    // Another process, in the same second: it knows what is open.
    for _ in 0..8 {
        let other = lab.writer(By::Selftest).expecting(&lab.ledger());
        (0..10).for_each(|no| other.frame(ARC, CopyId::LOCAL, FrameNo(no), How::Medium));
        other.flush().unwrap();
        assert_eq!((lab.ledger().open_damage().len(), proven(3)), (0, true));
        lab.tick();
        let other = lab.writer(By::Selftest);
        let when_ms = lab.clock.load(Ordering::Relaxed);
        other.record(Record::Damage(Damage { when_ms, ..damage(0, 3) }));
        other.flush().unwrap();
        assert_eq!((lab.ledger().open_damage().len(), proven(3)), (1, false));
        lab.tick();
    }
    drop(mount);
    assert_eq!(lab.merge(), []);
    assert_eq!((lab.ledger().open_damage().len(), proven(3), proven(2)), (1, false, true));
}

#[test]
fn what_was_mended_is_found_however_many_frames_are_damaged() {
    // One by one they are more than a thousand million frames.
    let damaged = |n| Damage {
        when_ms: 1000 * (NOW_S - 100),
        arc: ArcSerial(n),
        copy: CopyId::LOCAL,
        frame: Some(FrameNo(0)),
        count: 131_000,
        code: "FRAME_BAD_TAG".into(),
        mended: false,
    };
    let proven = |first, count, when_s, how| {
        let proof = Proof { when_s, how, by: By::Selftest };
        Record::Frames(Frames { arc: ARC, copy: CopyId::LOCAL, first: FrameNo(first), count, proof })
    };
    let proofs = [
        proven(500, 3, NOW_S - 50, How::Medium),
        proven(502, 4, NOW_S - 40, How::Read),
        proven(900, 9, NOW_S - 200, How::Medium),
        proven(130_990, 50, NOW_S - 10, How::Read),
    ];
    let ledger = Ledger::of((0..10_000).map(damaged).map(Record::Damage).chain(proofs), NOW_S);
    let stretches: Vec<(u32, u32)> = ledger
        .open_damage()
        .iter()
        .filter(|damage| damage.arc == ARC)
        .map(|damage| (damage.frame.map_or(0, |no| no.0), damage.count))
        .collect();
    assert_eq!(stretches, [(0, 500), (506, 130_484)]);
    assert_eq!(ledger.open_damage().len(), 10_001);
}
