use std::sync::{Arc, Mutex};

use super::*;
use crate::depot::faulty::{Fault, Faulty};
use crate::depot::{Local, Reach};
use crate::ids::{ArcSerial, Dirno};
use crate::own::{OwnDir, Sharing};
use crate::sync::lock;
use crate::testing::fixture::{Fixture, dir_record, some_bytes};

/// A backup dir with one data arc of some blocks, and their names.
fn with_blocks(count: u64) -> (Fixture, Vec<Vec<u8>>, Vec<BlockId>) {
    let mut fixture = Fixture::new();
    let blocks: Vec<_> = (0..count).map(|seed| some_bytes(seed, 3000 + seed as usize)).collect();
    let serial = fixture.next_data_serial();
    fixture.commit(&blocks, &[dir_record(Dirno::ROOT, Dirno::ROOT, b"", 0)]);
    let names = (0..count as u32).map(|no| BlockId::first(serial, FrameNo(no))).collect();
    (fixture, blocks, names)
}

fn home(fixture: &Fixture) -> Arc<dyn Depot> {
    Arc::new(Local::new(&fixture.own()))
}

fn fetch(fixture: &Fixture, home: Arc<dyn Depot>, copies: Vec<Arc<dyn Depot>>, heal: Heal) -> Fetch {
    Fetch::new(home, copies, fixture.keys.clone(), fixture.index.clone(), heal)
}

/// What comes of each block: the copy it came from and what was met on the way, or the code of the error.
type Outcomes = Vec<Result<(Vec<u8>, CopyId, Option<&'static str>), &'static str>>;

fn ask(fetch: &Fetch, names: &[BlockId]) -> Outcomes {
    let asked: Vec<Asked> = names.iter().map(|name| fetch.locate(*name).unwrap()).collect();
    let outcomes = Mutex::new(vec![Err("nothing was said"); names.len()]);
    fetch.near(&asked, &mut |number, _, outcome| {
        lock(&outcomes)[number] = match outcome {
            Ok(fetched) => Ok((fetched.opened.into_plain(), fetched.copy, fetched.met.map(|error| error.code()))),
            Err(bad) => Err(bad.error.code()),
        };
    });
    outcomes.into_inner().unwrap()
}

#[test]
fn two_copies_with_different_bad_frames_give_all_blocks() {
    let (fixture, blocks, names) = with_blocks(6);
    // Spoiled twice is right again: in the end frames 1 and 4 are bad in the copy, 2 in the backup dir.
    let spoil = |frames: &[u32]| frames.iter().for_each(|no| fixture.spoil_frame(ArcSerial(0), FrameNo(*no)));
    spoil(&[1, 4]);
    let other = tempfile::tempdir().unwrap();
    for arc in home(&fixture).list().unwrap() {
        std::fs::copy(fixture.dir.path().join(arc.to_string()), other.path().join(arc.to_string())).unwrap();
    }
    spoil(&[1, 2, 4]);
    let own = Arc::new(OwnDir::open(other.path(), Sharing::Refused).unwrap());
    let second: Arc<dyn Depot> = Arc::new(Faulty::recording(Arc::new(Local::new(&own))).copy(1, "usb", Reach::Near));

    let alone = ask(&fetch(&fixture, home(&fixture), vec![], Heal::On), &names);
    let failed: Vec<usize> = (0..6).filter(|no| alone[*no].is_err()).collect();
    assert_eq!((failed, alone[2].clone()), (vec![2], Err("ARC_TAG_MISMATCH")), "the fault fired");

    let both = ask(&fetch(&fixture, home(&fixture), vec![second.clone()], Heal::On), &names);
    for (no, outcome) in both.iter().enumerate() {
        let (copy, met) = if no == 2 { (CopyId(1), Some("ARC_TAG_MISMATCH")) } else { (CopyId::LOCAL, None) };
        assert_eq!(*outcome, Ok((blocks[no].clone(), copy, met)), "{no}");
    }
    // The other way round.
    let swapped = vec![home(&fixture)];
    let both = ask(&fetch(&fixture, second.clone(), swapped, Heal::On), &names);
    assert!(both.iter().zip(&blocks).all(|(outcome, block)| outcome.as_ref().is_ok_and(|(found, ..)| found == block)));
    assert_eq!(both.iter().filter(|outcome| matches!(outcome, Ok((_, _, Some(_))))).count(), 2);

    // A frame that is bad in both is damage, and costs only itself.
    spoil(&[4]);
    let both = ask(&fetch(&fixture, home(&fixture), vec![second], Heal::On), &names);
    let failed: Vec<usize> = (0..6).filter(|no| both[*no].is_err()).collect();
    assert_eq!((failed, both[4].clone()), (vec![4], Err("ARC_TAG_MISMATCH")));
}

#[test]
fn each_rung_is_tried_once_and_in_order() {
    let (fixture, blocks, names) = with_blocks(3);
    let flips_by_cache = |(_, range, via): &crate::depot::faulty::Read| {
        (*via == Via::Cache && range.contains(&5000)).then_some(Fault::Flip(5000, 0x11))
    };
    // Wrong only in the page cache: right when it is read again.
    let depot = Faulty::new(home(&fixture), flips_by_cache);
    let found = ask(&fetch(&fixture, Arc::new(depot.clone()), vec![], Heal::On), &names);
    assert_eq!(found.iter().filter(|outcome| matches!(outcome, Ok((_, _, Some("ARC_TAG_MISMATCH"))))).count(), 1);
    assert!(found.iter().zip(&blocks).all(|(outcome, block)| outcome.as_ref().is_ok_and(|(found, ..)| found == block)));
    let vias: Vec<Via> = depot.reads().into_iter().map(|(.., via)| via).collect();
    assert_eq!(vias, [Via::Cache, Via::Medium], "one read of all three, one of the bad frame");
    // Not healed: shown as it is, after one read.
    let depot = Faulty::new(home(&fixture), flips_by_cache);
    let found = ask(&fetch(&fixture, Arc::new(depot.clone()), vec![], Heal::Off), &names);
    assert_eq!(found.iter().filter(|outcome| **outcome == Err("ARC_TAG_MISMATCH")).count(), 1);
    assert_eq!(depot.reads().len(), 1);
    // A bad sector fails the read of all: the others are read alone.
    let bad_sector =
        |(_, range, _): &crate::depot::faulty::Read| range.contains(&5000).then_some(Fault::Errno(libc::EIO));
    let depot = Faulty::new(home(&fixture), bad_sector);
    let found = ask(&fetch(&fixture, Arc::new(depot), vec![], Heal::On), &names);
    assert_eq!(found.iter().filter(|outcome| **outcome == Err("ARC_UNREADABLE")).count(), 1);
    assert_eq!(found.iter().filter(|outcome| outcome.is_ok()).count(), 2);
    // What speaks of this process and not of the bytes is no damage.
    let refused = Faulty::new(home(&fixture), |_| Some(Fault::Errno(libc::EACCES)));
    assert_eq!(ask(&fetch(&fixture, Arc::new(refused), vec![], Heal::On), &names), vec![Err("IO"); 3]);
}

#[test]
fn a_missing_arc_comes_from_a_copy_and_a_far_one_is_left_to_others() {
    let (fixture, blocks, names) = with_blocks(4);
    let empty: Arc<dyn Depot> = Arc::new(Faulty::recording(home(&fixture)).hiding(|_| true));
    assert_eq!(ask(&fetch(&fixture, empty.clone(), vec![], Heal::On), &names), vec![Err("ARC_MISSING"); 4]);
    for reach in [Reach::Near, Reach::Far] {
        let copy = Faulty::recording(home(&fixture)).copy(3, "disk", reach);
        let fetch = fetch(&fixture, empty.clone(), vec![Arc::new(copy.clone())], Heal::On);
        let found = ask(&fetch, &names);
        if reach == Reach::Near {
            let expected = blocks.iter().map(|block| Ok((block.clone(), CopyId(3), Some("ARC_MISSING"))));
            assert_eq!(found, expected.collect::<Vec<_>>());
            continue;
        }
        assert_eq!((found, copy.reads().len()), (vec![Err("ARC_MISSING"); 4], 0), "it is not asked by who reads");
        assert!(fetch.has_far());
        for (name, block) in names.iter().zip(&blocks) {
            assert_eq!(fetch.far(&fetch.locate(*name).unwrap()).found.unwrap().opened.into_plain(), *block);
        }
    }
}

/// Of far copies one hangs, one does not have it, and one has it with two bits wrong, besides the one that is right.
#[test]
fn a_far_copy_that_hangs_or_is_wrong_holds_up_nobody() {
    let (fixture, blocks, names) = with_blocks(2);
    let empty: Arc<dyn Depot> = Arc::new(Faulty::recording(home(&fixture)).hiding(|_| true));
    let far = |copy: Faulty, id, name| Arc::new(copy.copy(id, name, Reach::Far));
    let hangs = far(Faulty::new(home(&fixture), |_| Some(Fault::Wait(std::time::Duration::from_secs(20)))), 1, "hangs");
    let lacks = far(Faulty::recording(home(&fixture)).hiding(|_| true), 2, "lacks");
    let flips = |(_, range, _): &crate::depot::faulty::Read| Some(Fault::Flip(range.start + 40, 0x5a));
    let wrong = far(Faulty::new(home(&fixture), flips), 3, "wrong");
    let right = far(Faulty::recording(home(&fixture)), 4, "right");
    let copies: Vec<Arc<dyn Depot>> = vec![hangs.clone(), lacks, wrong.clone(), right];
    let fetch = fetch(&fixture, empty, copies, Heal::On);
    for (number, (name, block)) in names.iter().zip(&blocks).enumerate() {
        let begun = std::time::Instant::now();
        let far = fetch.far(&fetch.locate(*name).unwrap());
        let found = far.found.unwrap();
        assert_eq!((found.copy, found.opened.into_plain()), (CopyId(4), block.clone()));
        assert!(begun.elapsed().as_secs() < 15, "{:?}", begun.elapsed());
        // One that has not answered yet is asked last from then on.
        assert_eq!((hangs.reads().len(), wrong.reads().len()), (1, 2 * (number + 1)));
        let refused: Vec<_> = far.refused.iter().map(|one| (one.copy, one.error.code())).collect();
        assert_eq!(refused, [(CopyId(2), "ARC_MISSING"), (CopyId(3), "ARC_TAG_MISMATCH")]);
    }
}

/// What is stored there is as bad as it was: it counts for the reader, and not for the copy.
#[test]
fn a_copy_that_is_put_right_in_memory_is_told_apart() {
    let (fixture, blocks, names) = with_blocks(1);
    let empty: Arc<dyn Depot> = Arc::new(Faulty::recording(home(&fixture)).hiding(|_| true));
    let flips = |(_, range, _): &crate::depot::faulty::Read| Some(Fault::Flip(range.end - 40, 1));
    let copy = Faulty::new(home(&fixture), flips).copy(2, "usb", Reach::Far);
    let fetch = fetch(&fixture, empty, vec![Arc::new(copy)], Heal::On);
    let found = fetch.far(&fetch.locate(names[0]).unwrap()).found.unwrap();
    assert!(matches!(found.way, Way::Copy { is_repaired: true, .. }), "{:?}", found.way);
    assert_eq!((found.copy, found.opened.into_plain()), (CopyId(2), blocks[0].clone()));
}
