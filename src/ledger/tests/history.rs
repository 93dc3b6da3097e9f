//! What was noted in another history, whose counters may mean other arcs and files, counts for nothing: forks, snapshots
//! that were rolled back, a history that goes on while a process notes.

use std::io::Write as _;

use super::super::files::{new_header, read_records, segment_name};
use super::super::segment::seal_batches;
use super::*;

/// Copies all of a ledger into the place of another one, as `rsync -a` would; more is left there than was copied.
fn copy_ledger(from: &Lab, to: &Lab) {
    let (from, to) = (from.dir.path().join(LEDGER_DIR), to.own().sub_made(LEDGER_DIR, 0o700).unwrap());
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
}

/// As this one, with its ledger, and from now on a history of its own.
fn fork(of: &Lab) -> Lab {
    let heads = of.heads.lock().unwrap().clone();
    let fork = Lab { clock: of.clock.clone(), heads: Arc::new(Mutex::new(heads)), ..Lab::new() };
    copy_ledger(of, &fork);
    fork
}

fn note(lab: &Lab, no: u32) {
    let writer = lab.writer(By::Selftest);
    note_by(&writer, lab, no);
    writer.flush().unwrap();
}

/// A frame and a file proven, another frame damaged, a flip, a run: all with this number.
fn note_by(writer: &LedgerWriter, lab: &Lab, no: u32) {
    writer.frame(ARC, CopyId::LOCAL, FrameNo(no), How::Medium);
    writer.file(Logid(100 + u64::from(no)), Extent::Hashed);
    writer.record(Record::Damage(damage(lab.now_s(), 32 + no)));
    let block = BlockId::first(ARC, FrameNo(no));
    writer.record(Record::Flip(Flip { when_s: lab.now_s(), block, byte: 1, bit: 2, to_one: true, again: true }));
    writer.record(Record::Run(Run { seconds: u64::from(no), ..run(lab.now_s()) }));
}

/// The numbers of which everything counts; fails if of some only a part does.
fn counts(lab: &Lab) -> Vec<u32> {
    let ledger = lab.ledger();
    let proven = frames(&ledger, How::Medium);
    let files: Vec<u32> = (0..64).filter(|no| ledger.file(Logid(100 + u64::from(*no))).is_some()).collect();
    let damaged: Vec<u32> = (0..32).filter(|no| ledger.is_damaged(ARC, CopyId::LOCAL, FrameNo(32 + no))).collect();
    let flipped = ledger.flips().iter().map(|flip| flip.block.frame().0);
    let mut others = [flipped.collect::<Vec<_>>(), ledger.runs().iter().map(|run| run.seconds as u32).collect()];
    others.iter_mut().for_each(|numbers| numbers.sort_unstable());
    assert_eq!([&files, &damaged, &others[0], &others[1]], [&proven; 4]);
    proven
}

#[test]
fn what_a_fork_has_proven_counts_for_nothing_but_what_was_proven_before_it() {
    let a = Lab::new();
    let mount = a.writer(By::Mount);
    note_by(&mount, &a, 1);
    mount.flush().unwrap();
    let b = fork(&a);
    // Both go on, with the same counters; the history of one moves on within a segment.
    a.commit(0xa);
    b.commit(0xb);
    note_by(&mount, &a, 2);
    mount.flush().unwrap();
    a.commit(0xaa);
    note_by(&mount, &a, 3);
    mount.flush().unwrap();
    note(&a, 4);
    note(&b, 5);
    assert_eq!((counts(&a), counts(&b)), (vec![1, 2, 3, 4], vec![1, 5]));
    copy_ledger(&a, &b);
    assert_eq!(counts(&b), [1, 5]);
    // Also when b has as many commits.
    b.commit(0xbb);
    note(&b, 6);
    assert_eq!(counts(&b), [1, 5, 6]);
    // A writer that still runs there goes on in its own history.
    note_by(&mount, &a, 7);
    mount.flush().unwrap();
    copy_ledger(&a, &b);
    assert_eq!((counts(&a), counts(&b)), (vec![1, 2, 3, 4, 7], vec![1, 5, 6]));
    // Who knows what is open and what is not asks the same.
    assert_eq!(frames(&b.writer(By::Mount).known(&b.commits()).unwrap(), How::Medium), [1, 5, 6]);
    drop(mount);
    for (lab, left) in [(&b, vec![1, 5, 6]), (&a, vec![1, 2, 3, 4, 7])] {
        assert_eq!(lab.merge(), []);
        lab.segment();
        assert_eq!(counts(lab), left);
    }
    // Merged it is of the newest commit.
    copy_ledger(&b, &a);
    assert_eq!(counts(&a), [1, 2, 3, 4, 7]);
}

#[test]
fn after_a_rollback_nothing_counts_that_was_noted_since() {
    let lab = Lab::new();
    note(&lab, 1);
    let mount = lab.writer(By::Mount);
    note_by(&mount, &lab, 2);
    lab.commit(2);
    // Not written before the next commit was seen: of that, for nobody knows better.
    mount.flush().unwrap();
    note(&lab, 3);
    assert_eq!(counts(&lab), [1, 2, 3]);
    // A snapshot of index and arcs; the ledger stays, and the same numbers are given again.
    lab.heads.lock().unwrap().pop();
    assert_eq!(counts(&lab), [1]);
    lab.commit(3);
    note(&lab, 4);
    assert_eq!(counts(&lab), [1, 4]);
    // The old process still lives: it has its segment, and the rest is merged.
    assert_eq!(lab.merge(), []);
    assert_eq!((lab.segments().len(), counts(&lab)), (2, vec![1, 4]));
    drop(mount);
    assert_eq!(lab.merge(), []);
    lab.segment();
    assert_eq!(counts(&lab), [1, 4]);
    // What is merged was noted by then.
    lab.heads.lock().unwrap().pop();
    assert_eq!(counts(&lab), Vec::<u32>::new());
}

#[test]
fn a_process_that_has_seen_no_commit_writes_nothing() {
    let lab = Lab::new();
    lab.heads.lock().unwrap().clear();
    note(&lab, 1);
    assert_eq!((lab.segments().len(), lab.dir.path().join(LEDGER_DIR).exists()), (0, false));
    assert_eq!(lab.merge(), []);
    lab.commit(1);
    note(&lab, 2);
    assert_eq!(counts(&lab), [2]);
}

/// All records of the only segment.
fn records(lab: &Lab) -> Vec<Record> {
    let mut records = Vec::new();
    let path = lab.segment();
    let name = path.file_name().unwrap().to_str().unwrap();
    let read = read_records(&fs::File::open(&path).unwrap(), Some(name), &lab.keys, |record| records.push(record));
    assert_eq!(read.1, None);
    records
}

/// A segment as no writer of today makes it.
fn segment_of(lab: &Lab, records: impl Iterator<Item = Record>) {
    let header = new_header().unwrap();
    let cipher = lab.keys.segment_cipher(header.id, &header.salt);
    let mut file = lab.own().sub(LEDGER_DIR).unwrap().unwrap().create(segment_name(header.id), 0o600).unwrap();
    file.write_all(&header.encode(&lab.keys)).unwrap();
    seal_batches(&cipher, 0, records, |batch| file.write_all(batch)).unwrap();
}

#[test]
fn the_history_is_told_when_it_changes_and_stands_over_many_batches() {
    let lab = Lab::new();
    let writer = lab.writer(By::Mount);
    for no in 0..6 {
        if no % 3 == 2 {
            lab.commit(no as u8);
        }
        note_by(&writer, &lab, no);
        writer.flush().unwrap();
    }
    drop(writer);
    let told = |records: &[Record]| -> Vec<Head> {
        let heads = records.iter().map(|record| if let Record::History(head) = record { Some(*head) } else { None });
        heads.flatten().collect()
    };
    let all = records(&lab);
    assert_eq!(told(&all), lab.heads.lock().unwrap()[..]);
    assert!(matches!(all[0], Record::History(FIRST)));
    assert_eq!(counts(&lab), [0, 1, 2, 3, 4, 5]);
    // Without one, or after one that is of another history, nothing counts.
    let proven = |first: u32, count: u32| {
        let proof = Proof { when_s: NOW_S, how: How::Medium, by: By::Get };
        Record::Frames(Frames { arc: ARC, copy: CopyId::LOCAL, first: FrameNo(first), count, proof })
    };
    let foreign = (Version(1), [0xff; 32]);
    segment_of(&lab, [proven(10, 1), Record::History(foreign), proven(11, 1)].into_iter());
    assert_eq!(frames(&lab.ledger(), How::Medium), [0, 1, 2, 3, 4, 5]);
    // More than fits one batch, each batch in the history that was told before it.
    let long =
        |first: u32| (0..100_000).map(move |n| proven(if n == 99_999 { first } else { 100 + 2 * (n % 60_000) }, 1));
    let history = |head| std::iter::once(Record::History(head));
    segment_of(
        &lab,
        history(FIRST).chain(long(12)).chain(history(foreign)).chain(long(13)).chain(history(FIRST)).chain(long(14)),
    );
    assert_eq!(frames(&lab.ledger(), How::Medium), [0, 1, 2, 3, 4, 5, 12, 14]);
}

proptest! {
    #[test]
    fn what_counts_is_what_was_written_in_this_history(steps in prop::collection::vec(0u8..10, 1..60)) {
        let lab = Lab::new();
        let mut writer = lab.writer(By::Mount);
        // Each with the commits that there were when it was written.
        let mut naive: Vec<(u32, Vec<Head>)> = Vec::new();
        let mut pending = Vec::new();
        let flush = |writer: &LedgerWriter, pending: &mut Vec<u32>, naive: &mut Vec<(u32, Vec<Head>)>| {
            writer.flush().unwrap();
            let heads = lab.heads.lock().unwrap().clone();
            naive.extend(pending.drain(..).map(|no| (no, heads.clone())));
        };
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                0..4 => {
                    writer.frame(ARC, CopyId::LOCAL, FrameNo(at as u32), How::Medium);
                    pending.push(at as u32);
                }
                4..6 => flush(&writer, &mut pending, &mut naive),
                6..8 => lab.commit(at as u8),
                8 => {
                    flush(&writer, &mut pending, &mut naive);
                    writer = lab.writer(By::Get);
                }
                // Rolled back, and opened by a new process.
                _ => {
                    flush(&writer, &mut pending, &mut naive);
                    let keep = at % (lab.heads.lock().unwrap().len() + 1);
                    lab.heads.lock().unwrap().truncate(keep.max(1));
                    writer = lab.writer(By::Get);
                }
            }
        }
        flush(&writer, &mut pending, &mut naive);
        let now = lab.heads.lock().unwrap().clone();
        let counts: Vec<u32> = naive.iter().filter(|(_, heads)| now.starts_with(heads)).map(|(no, _)| *no).collect();
        prop_assert_eq!(frames(&lab.ledger(), How::Medium), counts);
    }
}
