//! What `selftest --fix` does to arcs: frames and shells put back to the byte, lost blocks sealed anew.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use super::Rng;
use super::lab::{Copy, Source, assert_same, lab};
use super::layout::{Layout, entries};
use super::questions::Ask;
use super::recoveries::put;
use crate::arc::FrameKind;
use crate::arc::repair::repair;
use crate::backup::Options;
use crate::backupdir::BackupDir;
use crate::backupdir::arcs::read_commit;
use crate::catalog::{ArcEntry, ArcRole};
use crate::ids::{BlockId, FrameNo, Version};
use crate::index::OpenRun;
use crate::mend::{FrameAt, Original, Recut, originals, read_original, recorded, recut, rewrite_frame};
use crate::monitor::Silent;
use crate::tree::{Tree, View};

#[test]
fn a_repaired_frame_is_written_back_to_the_bit() {
    let (lab, mut rng) = (lab(), Rng::from_env());
    let copy = Copy::of(&lab.files);
    let (dir, arcs) = (copy.open(), Layout::all(&copy));
    let (before, lock) = (copy.files(), dir.lock_to_mend(Duration::ZERO).unwrap());
    let (mut fixed, mut roles) = (0, HashSet::new());
    for arc in arcs.iter().filter(|arc| arc.entry.is_some()) {
        let (entry, name) = (arc.entry(), arc.name.to_string());
        let pristine = &before[&name];
        for (no, (range, info)) in arc.frames.iter().zip(&arc.infos).enumerate() {
            let what = || format!("seed {}: frame {no} of {name}", rng.seed);
            let mut damaged = pristine.clone();
            damaged[range.start + rng.clone_below(range.len(), no)] ^= 1 << (no % 8);
            put(&copy, &name, &damaged);
            let cipher = dir.keys().arc_cipher(entry.id, &entry.salt);
            let at = FrameAt { arc: entry, no: FrameNo(no as u32), offset: range.start as u64, info };
            let repaired = repair(dir.keys(), &cipher, at.no, info, &damaged[range.clone()]).unwrap();
            // What is not this frame is not written.
            let other = &pristine[arc.frames[(no + 1) % arc.frames.len()].clone()];
            if arc.frames.len() > 1 {
                assert!(rewrite_frame(&dir, &lock, at, other).unwrap_err().is_damage(), "{}", what());
            }
            assert!(rewrite_frame(&dir, &lock, at, &damaged[range.clone()]).unwrap_err().is_damage(), "{}", what());
            assert!(fs::read(copy.path(&name)).unwrap() == damaged, "{}: touched", what());

            assert!(rewrite_frame(&dir, &lock, at, &repaired.frame).unwrap(), "{}", what());
            assert!(fs::read(copy.path(&name)).unwrap() == *pristine, "{}", what());
            assert!(!rewrite_frame(&dir, &lock, at, &repaired.frame).unwrap(), "{}: nothing is left to do", what());
            fixed += 1;
            roles.insert(entry.role);
        }
        rng.next();
    }
    assert!(fixed > 40 && roles.len() == 2, "{fixed} {roles:?}");
    assert!(copy.files() == before, "nothing else was touched, nothing is left over");
}

/// The plain bytes of all blocks of a data arc.
fn blocks_of(copy: &Copy, entry: &ArcEntry) -> Vec<(BlockId, Vec<u8>)> {
    let (dir, bytes) = (copy.open(), fs::read(copy.path(&entry.name.to_string())).unwrap());
    let (arc, cipher) = (Layout::of(&dir, entry.name), dir.keys().arc_cipher(entry.id, &entry.salt));
    let all = arc.frames.iter().zip(&arc.infos).zip(0u32..);
    all.flat_map(|((range, info), no)| {
        assert_eq!(info.kind, FrameKind::Block);
        let opened = crate::arc::frame::open(dir.keys(), &cipher, FrameNo(no), info, &bytes[range.clone()]).unwrap();
        let block = |(slot, _)| (BlockId::new(entry.serial, FrameNo(no), slot), opened.block(slot).unwrap().to_vec());
        info.slots().map(block).collect::<Vec<_>>()
    })
    .collect()
}

fn recut_all(dir: &BackupDir, blocks: &[(BlockId, Vec<u8>)]) -> crate::Result<Recut> {
    let lock = dir.lock()?;
    let index = dir.open_index()?;
    recut(dir, &lock, &index, blocks, &Silent)
}

fn recovered(copy: &Copy) -> Copy {
    let again = Copy::without_index(&copy.files());
    let got = again.recover();
    assert!(got.lost.is_empty() && got.lost_runs.is_empty() && got.lost_arcs.is_empty(), "{got:?}");
    again
}

fn first_data_arc(dir: &BackupDir) -> ArcEntry {
    entries(dir).into_iter().find(|entry| entry.role == ArcRole::Data).unwrap()
}

/// Destroys all frames of an arc.
fn ruin(copy: &Copy, entry: &ArcEntry) {
    let name = entry.name.to_string();
    let mut bytes = fs::read(copy.path(&name)).unwrap();
    bytes[112..entry.footer_offset as usize].fill(0x55);
    put(copy, &name, &bytes);
}

#[test]
fn blocks_that_are_sealed_anew_are_read_under_their_old_names() {
    let lab = lab();
    let copy = Copy::of(&lab.files);
    let dir = copy.open();
    let old = first_data_arc(&dir);
    let blocks = blocks_of(&copy, &old);
    // A store that is open all the time, as a mount's is.
    let reader = copy.reader();
    ruin(&copy, &old);
    let lost: HashSet<usize> = lab.truth.judge(&reader, &|| "ruined".into()).into_iter().map(|(n, _)| n).collect();
    assert!(lost.len() > 100, "{}", lost.len());

    let Recut { run, moved, .. } = recut_all(&dir, &blocks).unwrap();
    assert_eq!((run, moved.len()), (Version(4), blocks.len()));
    std::thread::sleep(std::time::Duration::from_millis(350));
    lab.truth.assert_whole(&reader, &|| "the open reader, after its verdicts".into());
    lab.truth.assert_whole(&copy.reader(), &|| "recut".into());
    lab.truth.assert_whole(&recovered(&copy).reader(), &|| "recut and recovered".into());
    assert_eq!(copy.reader().tree.version("latest").unwrap().version, Version(3), "it made no version");
    for (from, to) in &moved {
        assert_eq!(recorded(reader.tree.index(), *from).unwrap().0, *to);
    }

    // The same again: the new place takes the old one's.
    let twice = recut_all(&dir, &blocks[..3]).unwrap();
    lab.truth.assert_whole(&recovered(&copy).reader(), &|| "moved twice".into());
    assert_eq!(recorded(copy.reader().tree.index(), blocks[0].0).unwrap().0, twice.moved[0].1);
}

#[test]
fn other_bytes_than_the_recorded_ones_are_not_sealed() {
    let lab = lab();
    let copy = Copy::of(&lab.files);
    let dir = copy.open();
    let old = first_data_arc(&dir);
    let mut blocks = blocks_of(&copy, &old);
    let before = copy.arc_names();
    blocks[5].1[0] ^= 1;
    assert_eq!(recut_all(&dir, &blocks).unwrap_err().code(), "BLOCK_HASH_MISMATCH");
    blocks[5].1.clear();
    assert_eq!(recut_all(&dir, &blocks).unwrap_err().code(), "BLOCK_HASH_MISMATCH");
    let nowhere = [(BlockId::first(old.serial, FrameNo(1 << 20)), vec![1])];
    assert_eq!(recut_all(&dir, &nowhere).unwrap_err().code(), "INDEX_ROW_DAMAGED");
    assert_eq!(recut_all(&dir, &[]).unwrap_err().code(), "USAGE");
    assert_eq!(copy.arc_names(), before);
    lab.truth.assert_whole(&copy.reader(), &|| "nothing was done".into());
}

#[test]
fn a_run_that_was_cut_left_all_of_it_or_nothing() {
    let lab = lab();
    let copy = Copy::of(&lab.files);
    let dir = copy.open();
    let old = first_data_arc(&dir);
    let blocks = blocks_of(&copy, &old);
    ruin(&copy, &old);
    let before = copy.files();
    recut_all(&dir, &blocks).unwrap();
    let after = copy.files();
    let (commit, _) = read_commit(dir.arcs(), Version(4), dir.keys()).unwrap();
    let begun = OpenRun { version: commit.run, id: commit.run_id };
    let new: Vec<&String> = after.keys().filter(|name| !before.contains_key(*name)).collect();
    assert_eq!(new, ["arc.4.0", "arc.4.1", "arc.4.2"]);
    let source = Source::new();
    source.write("a", b"a backup after it");
    // Cut before the rename, at several places; and after it, before the index knew.
    for (kept, whole) in [
        (&[][..], false),
        (&["arc.4.1"], false),
        (&["arc.4.1", "arc.4.2"], false),
        (&["arc.4.0", "arc.4.1", "arc.4.2"], true),
    ] {
        let mut files = before.clone();
        files.extend(kept.iter().map(|name| (name.to_string(), after[*name].clone())));
        let cut = Copy::of(&files);
        if !kept.is_empty() && !whole {
            let dir = cut.open();
            let lock = dir.lock().unwrap();
            dir.open_index_writer(&lock).unwrap().reserve_run(begun).unwrap();
        }
        let summary = cut.backup(&source, &Options::default());
        assert_eq!(summary.version, Some(Version(if kept.is_empty() { 4 } else { 5 })), "{kept:?}");
        for copy in [recovered(&cut), cut] {
            let of_before = |ask: &Ask| !matches!(ask, Ask::Versions | Ask::Named(_));
            let failed = lab.truth.judge_those(&copy.reader(), &|| format!("{kept:?}"), &of_before);
            assert_eq!(failed.is_empty(), whole, "{kept:?}: {failed:?}");
            assert_eq!(copy.path("arc.4.1").exists(), whole || kept.is_empty(), "{kept:?}");
            assert_same(&copy.reader(), summary.version.unwrap(), source.path(), &source.snapshot());
        }
    }
}

#[test]
fn a_base_alone_knows_where_blocks_went() {
    let source = Source::new();
    let mut rng = Rng::from_env();
    source.write("a/file", &rng.noise(9000));
    source.write("b", b"another");
    let copy = Copy::init();
    copy.backup(&source, &Options::default());
    let dir = copy.open();
    let old = first_data_arc(&dir);
    let blocks = blocks_of(&copy, &old);
    ruin(&copy, &old);
    recut_all(&dir, &blocks).unwrap();
    copy.make_a_base_due();
    source.write("c", b"new in the base");
    let summary = copy.backup(&source, &Options::default());
    assert!(summary.base && summary.info.blocks_new == 1, "{summary:?}");
    let v = summary.version.unwrap();
    assert_same(&recovered(&copy).reader(), v, source.path(), &source.snapshot());

    // All older commit records are lost.
    let mut files = copy.files();
    files.retain(|name, _| !name.starts_with("index.db") && !["arc.0.0", "arc.1.0"].contains(&name.as_str()));
    let alone = Copy::of(&files);
    let got = alone.recover();
    assert_eq!((got.versions.as_slice(), got.lost_runs.len()), (&[v][..], 2));
    assert_same(&alone.reader(), v, source.path(), &source.snapshot());
    // And it goes on: what is known there is not stored again.
    source.write("d", b"another");
    let summary = alone.backup(&source, &Options::default());
    assert_eq!(summary.info.blocks_new, 0);
    assert_same(&alone.reader(), summary.version.unwrap(), source.path(), &source.snapshot());
}

#[test]
fn the_live_originals_of_a_block_are_named_newest_first_and_read_with_care() {
    let source = Source::new();
    let mut rng = Rng::from_env();
    let long = rng.noise(200 * 512);
    source.write("long", &long);
    source.write("old", &long[512 * 70..512 * 71]);
    let copy = Copy::init();
    let fixed = Options { fixed_block: Some(512), ..Options::default() };
    copy.backup(&source, &fixed);
    source.write("newer", &[b"x".repeat(512), long[512 * 70..512 * 71].to_vec()].concat());
    copy.backup(&source, &fixed);
    let dir = copy.open();
    let tree = Tree::of(&dir, dir.open_index().unwrap(), View::Whole);
    let hash = dir.keys().block_hash(&long[512 * 70..512 * 71]);
    let block = tree.index().find_block(&hash).unwrap().unwrap();
    let found = originals(&tree, &HashSet::from([block]), &|| false).unwrap().remove(&block).unwrap();
    let at = |name: &str, offset, version| {
        let path = source.join(name).into_os_string().into_encoded_bytes();
        Original { path, offset, len: 512, version: Version(version) }
    };
    let mut older = vec![at("long", 512 * 70, 0), at("old", 0, 0)];
    assert_eq!(found[0], at("newer", 512, 1));
    let mut rest = found[1..].to_vec();
    rest.sort_by_key(|o| o.path.clone());
    older.sort_by_key(|o| o.path.clone());
    assert_eq!(rest, older);
    for original in &found {
        assert_eq!(dir.keys().block_hash(&read_original(original).unwrap()), hash);
    }
    assert!(originals(&tree, &HashSet::from([BlockId(u64::MAX >> 1)]), &|| false).unwrap().is_empty());

    // What is there now is something else.
    let error = |name: &str| read_original(&at(name, 0, 0)).unwrap_err();
    std::os::unix::fs::symlink(source.join("long"), source.join("link")).unwrap();
    assert_eq!(error("link").raw_os_error(), Some(libc::ELOOP));
    let here = crate::os::DirFd::open(source.path()).unwrap();
    here.mknod_at(b"fifo", crate::catalog::Kind::Fifo, 0o600, 0, 0).unwrap();
    assert_eq!(error("fifo").kind(), std::io::ErrorKind::InvalidInput, "not waited for");
    source.write("old", b"short");
    assert_eq!(error("old").kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(error("gone").kind(), std::io::ErrorKind::NotFound);
}
