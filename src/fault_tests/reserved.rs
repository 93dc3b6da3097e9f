//! The catalog records that removing versions and packing will write, made with the library's own writers: reading,
//! recovering and backing up know what they mean already.

use std::fs;

use super::lab::{Copy, Source, assert_same, lab};
use super::layout::Layout;
use super::questions::{Ask, Truth};
use crate::arc::FrameKind;
use crate::backup::Options;
use crate::backupdir::BackupDir;
use crate::backupdir::arcs;
use crate::catalog::{ArcRole, Record};
use crate::fetch::ArcFile;
use crate::ids::{ArcName, ArcSerial, BlockId, Dirno, Version};
use crate::monitor::Silent;
use crate::reader::Backup;
use crate::run::{Contents, Run, Whole, records as run_records};
use crate::vfs::{Ino, Vfs, VfsOptions};

/// Commits a run without a version: blocks that are copied, and records that are made from their new names.
pub fn maintain(dir: &BackupDir, moved: &[BlockId], records: impl FnOnce(&[BlockId]) -> Vec<Record>) -> Version {
    let lock = dir.lock().unwrap();
    let run = Run::begin(dir, &lock, &Silent).unwrap();
    let index = run.index().clone();
    let (committed, ()) = run
        .reserve()
        .unwrap()
        .write(Whole::Remove, |out| {
            let mut to = Vec::new();
            for block in moved {
                let entry = index.arc(block.arc())?.entry;
                let arc = ArcFile::open(dir.arcs(), entry.name, dir.keys())?;
                let table = arc.frame_table(dir.keys())?;
                let plain = arc.open_frame(dir.keys(), &table, block.frame(), Some(block.arc()))?;
                assert_eq!(table[block.frame().0 as usize].kind, FrameKind::Block);
                let plain = plain.block(block.slot()).unwrap().to_vec();
                let hash = dir.keys().block_hash(&plain);
                to.push(out.block(plain, hash)?);
            }
            let catalog = run_records::records(out, records(&to).into_iter().map(Ok))?;
            Ok((Contents { arcs: out.finish()?, catalog, roots: Vec::new(), version: None }, ()))
        })
        .unwrap();
    let applied = committed.apply().whole().unwrap();
    let report = applied.report;
    assert!(report.lost.is_empty() && report.unknown_arcs.is_empty() && report.conflicts == 0);
    applied.commit.run
}

/// After a recovery everything must be as it was before it.
fn recovered(copy: &Copy) -> Copy {
    let again = Copy::without_index(&copy.files());
    let got = again.recover();
    assert!(got.lost.is_empty() && got.lost_runs.is_empty() && got.lost_arcs.is_empty(), "{got:?}");
    again
}

#[test]
fn a_removed_version_is_gone_and_the_others_stay() {
    let lab = lab();
    let copy = Copy::of(&lab.files);
    maintain(&copy.open(), &[], |_| vec![Record::RemoveVersion(Version(1))]);
    for (copy, how) in [(recovered(&copy), "recovered"), (copy, "applied")] {
        let reader = copy.reader();
        let versions: Vec<u32> = reader.tree.versions().unwrap().iter().map(|row| row.version.0).collect();
        assert_eq!(versions, [0, 2, 3], "{how}");
        let row = lab.truth.questions.iter().find(|(ask, _)| *ask == Ask::Named("r1".into())).unwrap().1.clone();
        let name = row.split('"').nth(1).unwrap().to_string();
        for gone in ["r1", name.as_str()] {
            assert_eq!(reader.tree.version(gone).unwrap_err().code(), "NO_VERSION", "{how}: {gone}");
        }
        let others = |ask: &Ask| match ask {
            Ask::Versions => false,
            Ask::Named(asked) => *asked != "r1" && *asked != name,
            _ => ask.version() != Some(Version(1)),
        };
        let failed = lab.truth.judge_those(&reader, &|| how.into(), &others);
        assert!(failed.is_empty(), "{how}: {failed:?}");

        // A mount that showed it says that it is stale, not that files are not there.
        let backup = Backup { tree: reader.tree, store: reader.store };
        let vfs = Vfs::new(&backup, VfsOptions::default());
        let top = Ino::of_dir(Version(1), Dirno::ROOT);
        let answers =
            [vfs.getattr(top).map(drop), vfs.opendir(top).map(drop), vfs.lookup(top, b"no such name").map(drop)];
        let errors: Vec<i32> = answers.into_iter().map(|answer| answer.unwrap_err().errno()).collect();
        assert_eq!(errors, [libc::ESTALE; 3], "{how}");
    }
}

#[test]
fn the_newest_version_can_be_removed_and_a_backup_goes_on() {
    let source = Source::new();
    source.write("a", b"in r0");
    let copy = Copy::init();
    copy.backup(&source, &Options::default());
    source.write("b", b"in r1 only");
    copy.backup(&source, &Options::default());
    let run = maintain(&copy.open(), &[], |_| vec![Record::RemoveVersion(Version(1))]);
    assert_eq!(run, Version(2));
    assert_eq!(copy.reader().tree.version("latest").unwrap().version, Version(0));
    source.write("c", b"in r3");
    for copy in [recovered(&copy), copy] {
        let summary = copy.backup(&source, &Options::default());
        assert_eq!(summary.version, Some(Version(3)));
        assert_same(&copy.reader(), Version(3), source.path(), &source.snapshot());
        assert_same(&recovered(&copy).reader(), Version(3), source.path(), &source.snapshot());
    }
}

#[test]
fn relocated_blocks_are_read_from_their_new_place_and_the_old_arc_may_go() {
    let lab = lab();
    let copy = Copy::of(&lab.files);
    let dir = copy.open();
    let arc = Layout::all(&copy).into_iter().find(|arc| arc.role() == ArcRole::Data).unwrap();
    let (old, blocks) = (arc.entry(), (0..arc.frames.len()).flat_map(|no| arc.blocks(no)).collect::<Vec<_>>());
    let relocate = |to: &[BlockId]| -> Vec<Record> {
        blocks.iter().zip(to).map(|(from, to)| Record::Relocate { from: *from, to: *to }).collect()
    };
    let run = maintain(&dir, &blocks, relocate);
    // The old place is not looked at any more.
    fs::remove_file(copy.path(&old.name.to_string())).unwrap();
    lab.truth.assert_whole(&copy.reader(), &|| "relocated".into());

    maintain(&dir, &[], |_| vec![Record::DropArc(old.serial)]);
    lab.truth.assert_whole(&copy.reader(), &|| "relocated, the old arc dropped".into());
    assert!(!dir.open_index().unwrap().arcs().unwrap().iter().any(|row| row.entry.serial == old.serial));
    // A recovery does not miss an arc that was dropped.
    let again = recovered(&copy);
    lab.truth.assert_whole(&again.reader(), &|| "relocated, dropped, recovered".into());

    // Damage in the new place is noticed there.
    let new = ArcName { version: run, number: 1 };
    let mut bytes = fs::read(again.path(&new.to_string())).unwrap();
    bytes[112 + 40] ^= 4;
    bytes[112 + 45] ^= 4;
    fs::remove_file(again.path(&new.to_string())).unwrap();
    fs::write(again.path(&new.to_string()), bytes).unwrap();
    let failed = lab.truth.judge(&again.reader(), &|| "new place damaged".into());
    assert!(
        !failed.is_empty() && failed.iter().all(|(n, _)| lab.truth.need(blocks[0].place()).contains(n)),
        "{failed:?}"
    );
    assert!(failed.iter().all(|(_, e)| e.to_string().contains(&new.to_string())), "{failed:?}");
}

#[test]
fn a_block_can_move_twice_and_backups_find_it_there() {
    let source = Source::new();
    source.write("a", b"the only block of this file");
    let copy = Copy::init();
    copy.backup(&source, &Options::default());
    let truth = Truth::of(&copy.reader());
    let dir = copy.open();
    let first = *truth.readers.keys().next().unwrap();
    let mut at = first;
    for _ in 0..2 {
        let mut went = at;
        maintain(&dir, &[at], |to| {
            went = to[0];
            vec![Record::Relocate { from: first, to: to[0] }, Record::DropArc(at.arc())]
        });
        let name = arc_name(&copy, at.arc());
        assert!(!copy.path(&name).exists(), "{name} was dropped");
        at = went;
        let history = |ask: &Ask| !matches!(ask, Ask::History(..));
        for copy in [recovered(&copy).reader(), copy.reader()] {
            assert!(truth.judge_those(&copy, &|| format!("moved to {at}"), &history).is_empty());
        }
    }
    // The same bytes under another name are not stored again, here nor after a recovery.
    source.write("b", b"the only block of this file");
    for copy in [recovered(&copy), copy] {
        let summary = copy.backup(&source, &Options::default());
        assert_eq!((summary.info.blocks_new, summary.info.new), (0, 1));
        let v = summary.version.unwrap();
        assert_same(&copy.reader(), v, source.path(), &source.snapshot());
        assert_same(&recovered(&copy).reader(), v, source.path(), &source.snapshot());
    }
}

/// The one data arc that no row lists any more: the run of a serial is found on disk.
fn arc_name(copy: &Copy, serial: ArcSerial) -> String {
    let dir = copy.open();
    for run in arcs::runs(dir.arcs()).unwrap() {
        let (commit, _) = arcs::read_commit(dir.arcs(), run.version, dir.keys()).unwrap();
        if let Some(arc) = commit.arcs.iter().find(|arc| arc.serial == serial) {
            return arc.name.to_string();
        }
    }
    panic!("no commit has arc {}", serial.0)
}
