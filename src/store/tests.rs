use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::error::{Damage, Place};
use crate::ids::{ArcSerial, CopyId, Dirno, FrameNo};
use crate::ledger::{self, How};
use crate::testing::fixture::{Fixture, dir_record, some_bytes};

fn wanted(serial: ArcSerial, blocks: &[Vec<u8>]) -> Vec<Wanted> {
    let want = |(no, bytes): (usize, &Vec<u8>)| Wanted {
        block: BlockId::first(serial, FrameNo(no as u32)),
        len_bytes: bytes.len() as u32,
    };
    blocks.iter().enumerate().map(want).collect()
}

fn with_blocks(count: u64, len: usize) -> (Fixture, Vec<Vec<u8>>, Vec<Wanted>) {
    let mut fixture = Fixture::new();
    let blocks: Vec<_> = (0..count).map(|seed| some_bytes(seed, len + seed as usize)).collect();
    let wanted = wanted(fixture.next_data_serial(), &blocks);
    fixture.commit(&blocks, &[dir_record(Dirno::ROOT, Dirno::ROOT, b"", 0)]);
    (fixture, blocks, wanted)
}

fn options(cache_bytes: u64, threads: usize) -> StoreOptions {
    StoreOptions { cache_bytes, threads, ..StoreOptions::default() }
}

#[test]
fn many_readers_get_the_right_bytes_and_each_block_is_verified_once() {
    let (fixture, blocks, wanted) = with_blocks(300, 20_000);
    let store = fixture.store(options(64 << 20, 3));
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (store, blocks, wanted) = (&store, &blocks, &wanted);
            scope.spawn(move || {
                for start in (0..280).step_by(7 + reader) {
                    store.prefetch(wanted[start..start + 20].iter().copied(), None);
                    let got = store.blocks(&wanted[start..start + 15], None).unwrap();
                    assert!(got.iter().zip(&blocks[start..]).all(|(got, expected)| got[..] == expected[..]));
                }
                assert_eq!(store.blocks(wanted, None).unwrap().len(), 300);
            });
        }
    });
    assert_eq!(store.tally().summary().blocks_verified, 300);
}

#[test]
fn the_cache_stays_within_its_bound() {
    let (fixture, blocks, wanted) = with_blocks(100, 10_000);
    for (limit, threads) in [(0, 0), (35_000, 2), (5_000, 1)] {
        let store = fixture.store(options(limit, threads));
        for (want, expected) in wanted.iter().zip(&blocks) {
            assert_eq!(store.block(want.block, want.len_bytes, None).unwrap()[..], expected[..]);
            assert!(lock(&store.inner.shelf).kept_bytes() <= limit);
        }
    }
}

#[test]
fn a_block_asked_for_twice_in_one_request_comes_twice() {
    let (fixture, blocks, wanted) = with_blocks(2, 1000);
    let store = fixture.store(options(0, 1));
    let got = store.blocks(&[wanted[1], wanted[0], wanted[1]], None).unwrap();
    assert!(got[0][..] == blocks[1][..] && got[1][..] == blocks[0][..] && got[2][..] == blocks[1][..]);
}

#[test]
fn a_block_that_is_too_old_is_verified_again() {
    let (fixture, _, wanted) = with_blocks(1, 1000);
    let max_age = Some(Duration::from_millis(50));
    let store = fixture.store(StoreOptions { max_age, ..options(1 << 20, 0) });
    let want = wanted[0];
    let read = || store.block(want.block, want.len_bytes, None).map(|block| block.len());
    assert_eq!((read().unwrap(), read().unwrap()), (1000, 1000));
    assert_eq!(store.tally().summary().blocks_verified, 1);
    std::thread::sleep(Duration::from_millis(60));
    fixture.spoil_frame(want.block.arc(), FrameNo(0));
    assert!(read().is_err());
}

#[test]
fn a_bad_block_costs_only_itself_and_is_listed_once() {
    let (fixture, blocks, wanted) = with_blocks(50, 5_000);
    fixture.spoil_frame(wanted[20].block.arc(), FrameNo(20));
    for (heal, threads) in [(Heal::On, 2), (Heal::Off, 0)] {
        let store = fixture.store(StoreOptions { heal, ..options(1 << 20, threads) });
        for _ in 0..3 {
            match store.blocks(&wanted, None) {
                Err(Error::Arc { place: Place { frame, block, .. }, damage: Damage::BadTag }) => {
                    assert_eq!((frame, block), (Some(FrameNo(20)), Some(wanted[20].block)));
                }
                Err(other) => panic!("{other}"),
                Ok(_) => panic!("damage was not noticed"),
            }
        }
        for (no, want) in wanted.iter().enumerate().filter(|(no, _)| *no != 20) {
            assert_eq!(store.block(want.block, want.len_bytes, None).unwrap()[..], blocks[no][..]);
        }
        let summary = store.tally().summary();
        assert_eq!((summary.damage, summary.healed, summary.places[0].code), (1, 0, "ARC_TAG_MISMATCH"));
    }
}

#[test]
fn a_flipped_bit_is_put_right_in_memory_and_counts_as_damage() {
    let (fixture, blocks, wanted) = with_blocks(10, 5_000);
    let serial = wanted[0].block.arc();
    // In the head, in the body, and in both.
    fixture.flip_bit(serial, FrameNo(2), 17, 3);
    fixture.flip_bit(serial, FrameNo(4), 1000, 7);
    fixture.flip_bit(serial, FrameNo(6), 0, 0);
    fixture.flip_bit(serial, FrameNo(6), 32, 0);
    let damaged = std::fs::read(fixture.arc_path(serial)).unwrap();
    for threads in [0, 2] {
        let store = fixture.store(options(0, threads));
        for _ in 0..2 {
            let got = store.blocks(&wanted, None).unwrap();
            assert!(got.iter().zip(&blocks).all(|(got, expected)| got[..] == expected[..]));
        }
        let summary = store.tally().summary();
        assert_eq!((summary.damage, summary.healed, summary.repaired, summary.places.len()), (3, 3, 3, 3));
        let mut told: Vec<String> = summary.places.iter().map(|met| format!("{} {}", met.code, met.how)).collect();
        told.sort();
        let still = "repaired in memory, the arc still has it (assay selftest --fix)";
        assert!(told[0].starts_with("ARC_FRAME_WRONG bit 3 of byte 17 was flipped to "), "{told:?}");
        assert!(told[1].starts_with("ARC_FRAME_WRONG its head was changed and bit 0") || told[1].contains("byte 0"));
        assert!(told[2].starts_with("ARC_TAG_MISMATCH bit 7 of byte 1000 was flipped to "), "{told:?}");
        assert!(told.iter().all(|told| told.ends_with(still)), "{told:?}");
    }
    assert!(std::fs::read(fixture.arc_path(serial)).unwrap() == damaged, "the arc is left as it is");

    let bare = fixture.store(StoreOptions { heal: Heal::Off, ..options(0, 0) });
    for (no, want) in wanted.iter().enumerate() {
        let got = bare.block(want.block, want.len_bytes, None);
        match no {
            2 | 6 => assert_eq!(got.unwrap_err().code(), "ARC_FRAME_WRONG"),
            4 => assert_eq!(got.unwrap_err().code(), "ARC_TAG_MISMATCH"),
            _ => assert!(got.unwrap()[..] == blocks[no][..]),
        }
    }
    let summary = bare.tally().summary();
    assert_eq!((summary.damage, summary.healed, summary.repaired), (3, 0, 0));
}

#[test]
fn a_read_that_is_right_the_second_time_is_no_repair() {
    let (fixture, blocks, wanted) = with_blocks(2, 5_000);
    let path = fixture.arc_path(wanted[0].block.arc());
    let whole = std::fs::read(&path).unwrap();
    fixture.flip_bit(wanted[0].block.arc(), FrameNo(1), 700, 1);
    let store = fixture.store(options(0, 0));
    std::fs::write(fixture.dir.path().join("good"), whole).unwrap();
    // The store holds the damaged file open; under its name there is a good one when it looks again.
    assert!(store.block(wanted[0].block, wanted[0].len_bytes, None).unwrap()[..] == blocks[0][..]);
    std::fs::rename(fixture.dir.path().join("good"), &path).unwrap();
    assert!(store.block(wanted[1].block, wanted[1].len_bytes, None).unwrap()[..] == blocks[1][..]);
    let summary = store.tally().summary();
    assert_eq!((summary.damage, summary.healed, summary.repaired), (1, 1, 0));
    assert_eq!(summary.places[0].how, "right when read again");
}

#[test]
fn truncation_costs_the_frames_behind_it() {
    let (fixture, blocks, wanted) = with_blocks(10, 3_000);
    let serial = wanted[0].block.arc();
    let chunk = fixture.index.frame_chunk(serial, FrameNo(6)).unwrap();
    let (end_of_5, _) = chunk.locate(FrameNo(6)).unwrap();
    for (cut, last_whole) in [(end_of_5 - 1, 4), (end_of_5, 5), (end_of_5 + 1, 5)] {
        let file = std::fs::OpenOptions::new().write(true).open(fixture.arc_path(serial)).unwrap();
        let whole = std::fs::read(fixture.arc_path(serial)).unwrap();
        file.set_len(cut).unwrap();
        let store = fixture.store(options(1 << 20, 1));
        assert!(store.blocks(&wanted, None).is_err());
        for (no, want) in wanted.iter().enumerate() {
            match store.block(want.block, want.len_bytes, None) {
                Ok(block) => assert!(no <= last_whole && block[..] == blocks[no][..]),
                Err(error) => assert!(no > last_whole && error.code() == "ARC_FRAME_TRUNCATED", "{no}: {error}"),
            }
        }
        std::fs::write(fixture.arc_path(serial), whole).unwrap();
    }
}

#[test]
fn a_missing_arc_that_comes_back_is_read_again() {
    let (fixture, blocks, wanted) = with_blocks(3, 3_000);
    let path = fixture.arc_path(wanted[0].block.arc());
    let aside = fixture.dir.path().join("aside");
    std::fs::rename(&path, &aside).unwrap();
    let store = fixture.store(options(1 << 20, 1));
    assert_eq!(store.block(wanted[0].block, wanted[0].len_bytes, None).unwrap_err().code(), "ARC_MISSING");
    std::fs::rename(&aside, &path).unwrap();
    std::thread::sleep(shelf::VERDICT_TTL + Duration::from_millis(20));
    assert_eq!(store.block(wanted[0].block, wanted[0].len_bytes, None).unwrap()[..], blocks[0][..]);
    let summary = store.tally().summary();
    assert_eq!(summary.damage, 1);
}

#[test]
fn a_block_of_another_length_than_its_file_expects_is_refused() {
    let (fixture, _, wanted) = with_blocks(2, 100);
    let store = fixture.store(options(1 << 20, 0));
    assert_eq!(store.block(wanted[0].block, 99, None).unwrap_err().code(), "INDEX_ROW_DAMAGED");
}

#[test]
fn the_arc_of_another_backup_is_refused() {
    let (fixture, _, wanted) = with_blocks(3, 3_000);
    let mut other = Fixture::new();
    other.keys = Arc::new(crate::crypto::Keys::new(&zeroize::Zeroizing::new([8; 32]), crate::ids::BackupId([2; 16])));
    let blocks: Vec<_> = (0..3).map(|seed| some_bytes(seed, 3_000 + seed as usize)).collect();
    let serial = other.next_data_serial();
    other.commit(&blocks, &[dir_record(Dirno::ROOT, Dirno::ROOT, b"", 0)]);
    std::fs::copy(other.arc_path(serial), fixture.arc_path(serial)).unwrap();
    let store = fixture.store(options(1 << 20, 0));
    for want in &wanted {
        assert!(store.block(want.block, want.len_bytes, None).unwrap_err().is_damage());
    }
}

#[test]
fn what_is_verified_goes_to_the_ledger_and_so_does_damage_until_it_is_mended() {
    let (fixture, _, wanted) = with_blocks(4, 3_000);
    let serial = wanted[0].block.arc();
    let path = fixture.arc_path(serial);
    let whole = std::fs::read(&path).unwrap();
    fixture.spoil_frame(serial, FrameNo(2));
    let writer = Arc::new(LedgerWriter::new(&fixture.own(), fixture.keys.clone(), ledger::By::Mount, &fixture.index));
    let store = fixture.store(StoreOptions { ledger: Some(writer.clone()), heal: Heal::Off, ..options(1 << 20, 1) });
    let known = || {
        writer.flush().unwrap();
        let (ledger, refused) =
            ledger::Ledger::load(&fixture.own(), &fixture.keys, &fixture.index.commits().unwrap()).unwrap();
        assert_eq!(refused, []);
        let proof = |no| ledger.frame(serial, CopyId::LOCAL, FrameNo(no), How::Read);
        let open: Vec<_> = ledger.open_damage().iter().map(|damage| (damage.frame, damage.code.clone())).collect();
        ((0..4).map(|no| proof(no).is_some()).collect::<Vec<_>>(), open)
    };
    assert_eq!(known(), (vec![false; 4], vec![]));
    for want in &wanted {
        assert_eq!(store.block(want.block, want.len_bytes, None).is_err(), want.block.frame().0 == 2);
    }
    let bad = vec![(Some(FrameNo(2)), "ARC_TAG_MISMATCH".to_string())];
    assert_eq!(known(), (vec![true, true, false, true], bad));
    std::fs::write(&path, whole).unwrap();
    std::thread::sleep(shelf::VERDICT_TTL + Duration::from_millis(20));
    store.block(wanted[2].block, wanted[2].len_bytes, None).unwrap();
    assert_eq!(known(), (vec![true; 4], vec![]));
    let medium = ledger::Ledger::load(&fixture.own(), &fixture.keys, &fixture.index.commits().unwrap()).unwrap().0;
    assert_eq!(medium.frame(serial, CopyId::LOCAL, FrameNo(0), How::Medium), None);
}

#[test]
fn flipped_bits_go_to_the_ledger_and_a_repaired_frame_is_not_proven() {
    let (fixture, blocks, wanted) = with_blocks(3, 3_000);
    let serial = wanted[0].block.arc();
    let path = fixture.arc_path(serial);
    let whole = std::fs::read(&path).unwrap();
    let frame_at = |no| fixture.index.frame_chunk(serial, FrameNo(no)).unwrap().locate(FrameNo(no)).unwrap().0 as usize;
    let flip = |no: u32, byte: u32, bit: u8, again| {
        let to_one = whole[frame_at(no) + byte as usize] >> bit & 1 == 0;
        (wanted[no as usize].block, byte, bit, to_one, again)
    };
    fixture.flip_bit(serial, FrameNo(0), 777, 6);
    fixture.flip_bit(serial, FrameNo(1), 20, 3);
    let writer = Arc::new(LedgerWriter::new(&fixture.own(), fixture.keys.clone(), ledger::By::Mount, &fixture.index));
    let store = fixture.store(StoreOptions { ledger: Some(writer.clone()), ..options(0, 0) });
    let read = |no: usize| store.block(wanted[no].block, wanted[no].len_bytes, None).unwrap()[..] == blocks[no][..];
    // Met twice it is one flip: the arc has it.
    assert!(read(0) && read(0) && read(1) && read(2));
    let known = || {
        writer.flush().unwrap();
        let (ledger, _) =
            ledger::Ledger::load(&fixture.own(), &fixture.keys, &fixture.index.commits().unwrap()).unwrap();
        let mut flips: Vec<_> = ledger.flips().iter().map(|f| (f.block, f.byte, f.bit, f.to_one, f.again)).collect();
        flips.sort();
        let proven = (0..3).map(|no| ledger.frame(serial, CopyId::LOCAL, FrameNo(no), How::Read).is_some());
        let open: Vec<_> = ledger.open_damage().iter().map(|damage| damage.frame).collect();
        (flips, proven.collect::<Vec<_>>(), open)
    };
    let of_arc = vec![flip(0, 777, 6, true), flip(1, 20, 3, true)];
    let damaged = vec![Some(FrameNo(0)), Some(FrameNo(1))];
    assert_eq!(known(), (of_arc.clone(), vec![false, false, true], damaged.clone()));

    // A flip that a second read does not have: the open file has it, the one under the name does not.
    fixture.flip_bit(serial, FrameNo(2), 99, 1);
    std::fs::write(fixture.dir.path().join("good"), &whole).unwrap();
    assert!(read(0));
    std::fs::rename(fixture.dir.path().join("good"), &path).unwrap();
    assert!(read(2));
    let flips = [of_arc, vec![flip(2, 99, 1, false)]].concat();
    assert_eq!(known(), (flips, vec![false, false, true], damaged));
}
