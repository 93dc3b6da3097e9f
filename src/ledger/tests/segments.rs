//! Segments that are damaged, torn, moved or gone, and their merging.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::super::merged::LEDGER_DIR;
use super::super::segment::{BATCH_HEADER_LEN, BatchHeader, SEGMENT_HEADER_LEN};
use super::*;
use crate::crypto::Keys;
use crate::ids::BackupId;

/// Nothing that was not noted, whatever happened to the segment.
fn nothing_false(lab: &Lab, whole: &Ledger) -> bool {
    let (found, refused) = lab.load();
    let believed = |no: u32, how| {
        let proof = found.frame(ARC, CopyId::LOCAL, FrameNo(no), how);
        proof.is_none() || proof == whole.frame(ARC, CopyId::LOCAL, FrameNo(no), how)
    };
    assert!((0..64).all(|no| believed(no, How::Medium) && believed(no, How::Read)));
    assert!(found.open_damage().iter().all(|damage| whole.open_damage().contains(damage)));
    assert!(found.runs().iter().all(|run| whole.runs().contains(run)));
    assert!((0..200).all(|n| found.file(Logid(n)).is_none_or(|file| Some(file) == whole.file(Logid(n)))));
    !refused.is_empty()
}

#[test]
fn a_flip_of_any_byte_is_refused_and_what_stands_before_it_believed() {
    let lab = Lab::new();
    proven(&lab);
    let whole = lab.ledger();
    let path = lab.segment();
    let bytes = fs::read(&path).unwrap();
    let first = BatchHeader::decode(bytes[SEGMENT_HEADER_LEN..][..BATCH_HEADER_LEN].try_into().unwrap());
    let second_at = SEGMENT_HEADER_LEN + BATCH_HEADER_LEN + first.body_len();
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x40;
        fs::write(&path, bad).unwrap();
        let refused = nothing_false(&lab, &whole);
        // A length that now reaches past the end of the file looks like a torn tail: nothing of it is believed.
        assert!(refused || lab.ledger().runs().len() < 3, "byte {at}");
        if at >= second_at {
            assert_eq!(frames(&lab.load().0, How::Medium)[..4], [0, 1, 2, 3], "byte {at}");
        }
    }
}

#[test]
fn a_torn_tail_is_the_end_and_no_complaint() {
    let lab = Lab::new();
    proven(&lab);
    let whole = lab.ledger();
    let path = lab.segment();
    let bytes = fs::read(&path).unwrap();
    for len in 0..bytes.len() {
        fs::write(&path, &bytes[..len]).unwrap();
        assert!(!nothing_false(&lab, &whole), "{len} bytes");
    }
    let zeros = [&bytes[..], &[0; 5000]].concat();
    fs::write(&path, zeros).unwrap();
    assert_eq!(lab.ledger().runs().len(), 3);
}

#[test]
fn batches_that_were_moved_copied_or_taken_from_elsewhere_are_refused() {
    let lab = Lab::new();
    proven(&lab);
    let path = lab.segment();
    let bytes = fs::read(&path).unwrap();
    let mut batches = Vec::new();
    let mut rest = &bytes[SEGMENT_HEADER_LEN..];
    while !rest.is_empty() {
        let header = BatchHeader::decode(rest[..BATCH_HEADER_LEN].try_into().unwrap());
        let (batch, after) = rest.split_at(BATCH_HEADER_LEN + header.body_len());
        batches.push(batch);
        rest = after;
    }
    let head = &bytes[..SEGMENT_HEADER_LEN];
    let cases: [(&[&[u8]], usize); 4] = [
        (&[batches[1], batches[0]], 0),
        (&[batches[0], batches[0]], 1),
        (&[batches[0], batches[2]], 1),
        (&[batches[0], batches[1], batches[2], batches[0]], 3),
    ];
    for (order, believed) in cases {
        fs::write(&path, [head, &order.concat()].concat()).unwrap();
        let (ledger, refused) = lab.load();
        assert_eq!((ledger.runs().len(), refused.len()), (believed, 1), "{refused:?}");
    }
    // The same in a segment of its own name.
    fs::write(&path, &bytes).unwrap();
    fs::copy(&path, path.with_file_name(format!("{}.seg", "ab".repeat(16)))).unwrap();
    let (ledger, refused) = lab.load();
    assert_eq!((ledger.runs().len(), refused.len()), (3, 1));
    assert_eq!(refused[0].what, "it is a segment of another name");
    // A batch of another segment under this header.
    let other = Lab::new();
    written(&other);
    let theirs = fs::read(other.segment()).unwrap();
    fs::write(&path, [head, &theirs[SEGMENT_HEADER_LEN..]].concat()).unwrap();
    assert_eq!(lab.load().0.runs().len(), 0);
    // A whole segment of another backup dir.
    let mut foreign = Lab::new();
    foreign.keys = Arc::new(Keys::new(&Zeroizing::new([3; 32]), BackupId([5; 16])));
    written(&foreign);
    let theirs = foreign.segment();
    fs::remove_file(&path).unwrap();
    fs::copy(&theirs, path.with_file_name(theirs.file_name().unwrap())).unwrap();
    let (ledger, refused) = lab.load();
    assert_eq!(ledger.runs().len(), 0);
    assert!(refused.iter().any(|refused| refused.what == "it belongs to another backup dir"), "{refused:?}");
}

#[test]
fn a_segment_that_is_gone_is_noticed_and_nothing_proven_before_counts() {
    let lab = Lab::new();
    let note = |no: u32, bad: Option<u32>| {
        let writer = lab.writer(By::Selftest);
        writer.frame(ARC, CopyId::LOCAL, FrameNo(no), How::Medium);
        bad.into_iter().for_each(|bad| writer.record(Record::Damage(damage(lab.now_s(), bad))));
        writer.flush().unwrap();
        lab.later(5);
    };
    note(1, None);
    note(2, None);
    assert_eq!(lab.merge(), []);
    note(3, Some(1));
    note(4, None);
    let whole = lab.ledger();
    assert_eq!((frames(&whole, How::Medium), whole.open_damage().len()), (vec![2, 3, 4], 1));
    let ledger = lab.dir.path().join(LEDGER_DIR);
    let files = || -> Vec<(PathBuf, Vec<u8>)> {
        let path = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().path();
        fs::read_dir(&ledger).unwrap().map(path).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    };
    let put = |files: &[(PathBuf, Vec<u8>)]| {
        fs::remove_dir_all(&ledger).unwrap();
        fs::create_dir(&ledger).unwrap();
        fs::set_permissions(&ledger, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        files.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    };
    let before = files();
    let named = before.iter().filter(|(path, _)| !path.ends_with("list.lock")).count();
    assert_eq!(named, 4, "three segments and their list");
    for gone in before.iter().filter(|(path, _)| !path.ends_with("list.lock")) {
        let left: Vec<_> = before.iter().filter(|file| *file != gone).cloned().collect();
        put(&left);
        let (found, refused) = lab.load();
        assert_eq!((frames(&found, How::Medium), refused.len()), (vec![], 1), "{gone:?}");
        // Who writes next knows it too, and what is proven from then on counts.
        lab.later(5);
        note(9, None);
        let (found, refused) = lab.load();
        assert_eq!((frames(&found, How::Medium), refused), (vec![9], vec![]), "{gone:?}");
        lab.later(5);
        lab.merge();
        assert_eq!(frames(&lab.ledger(), How::Medium), [9]);
        // Or the next backup does.
        put(&left);
        assert_eq!(lab.merge().len(), 1, "{gone:?}");
        lab.later(5);
        note(8, None);
        assert_eq!(frames(&lab.ledger(), How::Medium), [8], "{gone:?}");
    }
    // The end of the segment that tells of damage, cut off as a crash would.
    put(&before);
    let tells = before.iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "seg"));
    for (path, bytes) in tells {
        fs::write(path, &bytes[..SEGMENT_HEADER_LEN]).unwrap();
    }
    assert!(!lab.load().1.is_empty() && frames(&lab.load().0, How::Medium).is_empty());
    // With all of it gone nothing is known, and nothing missed.
    put(&[]);
    assert_eq!((lab.load().1, lab.merge()), (vec![], vec![]));
}

#[test]
fn a_merge_that_was_cut_only_leaves_things_twice() {
    let lab = Lab::new();
    written(&lab);
    lab.later(600);
    written(&lab);
    let before = lab.ledger();
    let old: Vec<(PathBuf, Vec<u8>)> =
        lab.segments().into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    assert_eq!(lab.merge(), []);
    old.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    fs::write(lab.dir.path().join(LEDGER_DIR).join("merged.tmp"), b"cut").unwrap();
    let answer = |ledger: &Ledger| {
        (
            frames(ledger, How::Medium),
            ledger.open_damage().to_vec(),
            ledger.file(Logid(100)),
            ledger.sessions().to_vec(),
        )
    };
    assert_eq!(answer(&lab.ledger()), answer(&before));
    assert_eq!(lab.merge(), []);
    assert_eq!(answer(&lab.ledger()), answer(&before));
    lab.segment();
}

#[test]
fn merging_leaves_what_is_being_written_and_keeps_what_is_refused() {
    let lab = Lab::new();
    proven(&lab);
    let damaged = lab.segment();
    let mut bytes = fs::read(&damaged).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&damaged, bytes).unwrap();
    written(&lab);
    let live = lab.writer(By::Mount);
    live.frame(ARC, CopyId::LOCAL, FrameNo(50), How::Read);
    live.flush().unwrap();
    assert_eq!((lab.load().0.being_written(), lab.segments().len()), (1, 3));
    let before = frames(&lab.load().0, How::Read);
    assert_eq!(lab.merge().len(), 1);
    assert_eq!(frames(&lab.ledger(), How::Read), before);
    let names: Vec<String> =
        lab.segments().iter().map(|path| path.file_name().unwrap().to_str().unwrap().into()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(damaged.with_extension("seg.bad").exists() && !damaged.exists());
    // It goes on in its segment, which the next merge takes.
    live.frame(ARC, CopyId::LOCAL, FrameNo(51), How::Read);
    live.flush().unwrap();
    drop(live);
    assert_eq!(lab.merge(), []);
    assert_eq!(lab.segments().iter().filter(|path| path.extension().unwrap() == "seg").count(), 1);
    let ledger = lab.ledger();
    assert_eq!((frames(&ledger, How::Read).last(), ledger.being_written()), (Some(&51), 0));
}
