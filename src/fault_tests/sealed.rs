//! Well sealed, and wrong: what a holder of the key, or a bug, could write. Each is refused by its rule, at once, and costs
//! what it describes and nothing else.

use std::fs;

use super::lab::{Copy, lab};
use crate::arc::{BlockInfo, FrameKind, Packer};
use crate::backupdir::BackupDir;
use crate::backupdir::arcs;
use crate::catalog::codec::encode_record;
use crate::catalog::{ArcEntry, ArcRole, CatalogFrame, Commit, Listing, Named, Record};
use crate::error::Error;
use crate::ids::{ArcName, ArcSerial, BlockId, Dirno, FrameNo, Version};
use crate::index::{IndexWriter, OpenRun, State};
use crate::monitor::Silent;
use crate::run::settle;

/// Writes an arc, durable or not, with these plain bytes in its frames.
fn arc(dir: &BackupDir, name: ArcName, role: ArcRole, serial: u64, frames: &[Vec<u8>]) -> ArcEntry {
    let (mut packer, keys) = (Packer::new(3).unwrap(), dir.keys());
    let run = OpenRun { version: name.version, id: [7; 16] };
    let mut writer = arcs::create(dir.own(), keys, run, name.number, role, ArcSerial(serial)).unwrap();
    for plain in frames {
        let packed = packer.pack(plain).unwrap();
        writer.append(FrameKind::of(role), &packed, vec![BlockInfo::of(keys, plain)]).unwrap();
    }
    let (entry, _) = arcs::finish(dir.own(), keys, writer, role, &mut packer).unwrap();
    entry
}

fn state(dir: &BackupDir) -> State {
    dir.open_index().unwrap().state().unwrap()
}

/// A maintenance commit with one catalog frame of these bytes, which describes these directories.
fn maintenance(dir: &BackupDir, plain: Vec<u8>, dirs: Vec<(Dirno, u64)>) -> Commit {
    let State { next_serial, next_logid, next_dirno, next_run: run, last_commit, .. } = state(dir);
    let entry = arc(dir, ArcName { version: run, number: 1 }, ArcRole::Catalog, next_serial, &[plain]);
    Commit {
        run,
        run_id: [7; 16],
        previous: last_commit,
        version: None,
        roots: Vec::new(),
        base: false,
        catalog: vec![CatalogFrame { arc: entry.serial, frame: FrameNo(0), dirs }],
        arcs: vec![entry],
        next_serial: next_serial + 1,
        next_logid,
        next_dirno,
    }
}

/// Seals a commit record, whatever it says.
fn commit(dir: &BackupDir, commit: &Commit) {
    let name = ArcName { version: commit.run, number: arcs::COMMIT_NUMBER };
    let record = commit.encode();
    arc(dir, name, ArcRole::Commit, 0, &[record.clone(), record]);
    let tmp = arcs::write_path(dir.own(), name, ArcRole::Commit);
    fs::rename(&tmp, tmp.with_extension("")).unwrap();
}

fn settled(dir: &BackupDir) -> crate::Result<settle::Settled> {
    let _lock = dir.lock().unwrap();
    let index = dir.open_index().unwrap();
    let mut writer = IndexWriter::open(&dir.index_path(), &dir.keys().index_key()).unwrap();
    settle::settle(dir, &index, &mut writer, &Silent)
}

#[test]
fn a_sealed_commit_that_no_run_writes_is_told_by_its_rule() {
    type Change = fn(&mut Commit);
    let changes: [(&str, Change); 9] = [
        ("directory run out of range", |c| c.catalog[0].dirs = vec![(Dirno(0), u64::MAX)]),
        ("too many directories in a frame", |c| {
            (c.catalog[0].dirs, c.next_dirno) = (vec![(Dirno(0), 1 << 16), (Dirno(1 << 20), 1)], 1 << 30);
        }),
        ("parts of an arc that do not add up", |c| c.arcs[0].arc_bytes = u64::MAX),
        ("more plain bytes than the frames can hold", |c| c.arcs[0].plain_bytes = u64::MAX),
        ("role of an arc", |c| c.arcs[0].role = ArcRole::Commit),
        ("catalog frame of no catalog arc of this run", |c| c.catalog[0].arc = ArcSerial(0)),
        ("counter out of range", |c| c.next_serial = u64::MAX),
        ("commit before this one is not below it", |c| c.previous = Some((c.run, [0; 32]))),
        ("arcs out of order", |c| c.arcs.push(c.arcs[0].clone())),
    ];
    for (rule, change) in changes {
        let copy = Copy::of(&lab().files);
        let dir = copy.open();
        let mut bad = maintenance(&dir, vec![7, 1], vec![]);
        change(&mut bad);
        let written = arcs::write_commit(dir.own(), dir.keys(), &bad).unwrap_err();
        assert!(matches!(&written, Error::SelfCheck { what } if what.contains(rule)), "{rule}: {written}");
        commit(&dir, &bad);
        let before = copy.rows();
        let error = settled(&dir).unwrap_err();
        assert!(error.code() == "COMMIT_DAMAGED" && error.to_string().contains(rule), "{rule}: {error}");
        assert!(copy.rows() == before, "{rule}: the index is as before");
        lab().truth.assert_whole(&copy.reader(), &|| rule.into());
        let recovered = crate::recover::run(&dir, crate::recover::OnLoss::Report, &Silent).unwrap();
        let [(Version(4), error)] = &recovered.lost_runs[..] else { panic!("{rule}: {recovered:?}") };
        assert!(error.to_string().contains(rule), "{rule}: {error}");
        assert_eq!(recovered.versions, (0..4).map(Version).collect::<Vec<_>>(), "{rule}");
    }
}

#[test]
fn a_sealed_catalog_frame_that_no_run_writes_is_lost_whole_and_told_by_its_rule() {
    let records = |list: &[Record]| {
        let mut plain = Vec::new();
        list.iter().for_each(|record| encode_record(&mut plain, record));
        plain
    };
    let root =
        || Record::Dir { dirno: Dirno::ROOT, parent: Dirno::ROOT, name: vec![], listing: Listing::Delta, state: None };
    let put = |item| Record::Put { name: b"new".to_vec(), item };
    let node = crate::testing::fixture::node(1 << 40, &[], vec![]);
    let uncounted = "id that its commit does not count";
    for (rule, plain) in [
        ("number longer than it need be", [records(&[Record::DropArc(ArcSerial(0))]), vec![7, 0x80, 0]].concat()),
        (
            "directory below itself",
            records(&[Record::DropArc(ArcSerial(0)), root()]).into_iter().chain([1, 5, 5, 1, b'd', 1, 0]).collect(),
        ),
        ("root directory below another", [records(&[root()]), vec![2, 1, b'n', 2, 0]].concat()),
        (uncounted, records(&[root(), put(Named::Node(Box::new(node)))])),
        (uncounted, records(&[root(), put(Named::Dir(Dirno(1 << 30)))])),
        (uncounted, records(&[Record::DropArc(ArcSerial(0)), Record::DropArc(ArcSerial(1 << 38))])),
        (uncounted, records(&[Record::RemoveVersion(Version(0)), Record::RemoveVersion(Version(4))])),
        (uncounted, records(&[Record::Relocate { from: BlockId(0), to: BlockId(1 << 50) }])),
    ] {
        let copy = Copy::of(&lab().files);
        let dir = copy.open();
        let bad = maintenance(&dir, plain, vec![]);
        commit(&dir, &bad);
        let applied = settled(&dir).unwrap().applied;
        let [(Version(4), report)] = &applied[..] else { panic!("{rule}: {applied:?}") };
        assert_eq!((report.lost.len(), report.opened, report.closed, report.conflicts), (1, 0, 0, 0), "{rule}");
        let Error::Arc { damage, .. } = &report.lost[0].error else { panic!("{rule}") };
        assert_eq!(*damage, crate::error::Damage::BadRecord(rule));
        // Of a frame that is refused not even the records before the bad one count.
        lab().truth.assert_whole(&copy.reader(), &|| rule.into());
    }
}
