//! Rows behind right seals: what is accepted is written again as it was read, and what no writer makes is refused.

use super::row::{self, ArcValue, EntryRow, Key, Main, Table, open, seal};
use super::rows::{DirValue, decode_frames, decode_state, encode_state};
use super::runs::{
    OpenRun, Told, decode_loss, decode_open_runs, decode_spare_arcs, encode_loss, encode_open_runs, encode_spare_arcs,
};
use super::{FrameChunk, State, model, row_again};
use crate::catalog::codec::{Encoder, encode_node};
use crate::catalog::{ArcEntry, ArcRole, Child, DirState, Kind, Loss};
use crate::ids::*;
use crate::testing::Rng;
use crate::testing::mutate::assert_canonical;

const KEY: Key<'static> = Key(7, 3, b"name");

/// The value without its seal; of what is put in a row.
fn body(table: Table, key: Key<'_>, value: &[u8]) -> Vec<u8> {
    open(table, key, value).unwrap().to_vec()
}

fn number(rng: &mut Rng, bound: u64) -> u64 {
    if rng.below(3) == 0 { bound - rng.next() % bound.min(3) } else { rng.next() % bound.min(500) }
}

fn an_entry(rng: &mut Rng) -> EntryRow {
    let v_to = (rng.below(2) == 0).then(|| Version(1 + number(rng, u64::from(Version::MAX.0) - 1) as u32));
    let child = match rng.below(2) {
        0 => (Kind::Dir, Child::Dir(Dirno(1 + number(rng, Dirno::MAX.0 - 1)))),
        _ => (Kind::File, Child::Node(Logid(16 + number(rng, Logid::MAX.0 - 16)))),
    };
    let digest = (child.0 == Kind::File).then_some(NodeDigest([rng.next() as u8; 16]));
    EntryRow { v_to, kind: child.0, child: child.1, digest }
}

fn an_arc(serial: u64) -> ArcValue {
    let name = ArcName { version: Version(5), number: 1 };
    let entry = ArcEntry {
        serial: ArcSerial(serial),
        name,
        role: ArcRole::Data,
        id: ArcId([1; 16]),
        salt: ArcSalt([2; 32]),
        arc_bytes: 112 + 152 + 100 + 96,
        digest: ArcDigest([3; 32]),
        frames: 1,
        footer_offset: 112 + 152,
        footer_len: 100,
        plain_bytes: 1000,
    };
    ArcValue { entry, run: Version(5), dropped: false }
}

fn a_dir(rng: &mut Rng) -> DirValue {
    let (children, listing) = (rng.next() % 9, ListingDigest([rng.next() as u8; 32]));
    let state = DirState { attr: model::attr(Kind::Dir, 5), xattrs: vec![], children, listing };
    let name = [b"n".to_vec(), rng.noise(3).into_iter().map(|byte| byte | 0x40).collect()].concat();
    let state = (rng.below(3) > 0).then_some(state);
    DirValue { parent: Dirno(rng.next() % 5), name, gone: rng.below(2) == 0, state }
}

fn a_state(rng: &mut Rng) -> State {
    State {
        next_serial: number(rng, ArcSerial::MAX.0),
        next_logid: 16 + number(rng, Logid::MAX.0 - 15),
        next_dirno: 1 + number(rng, Dirno::MAX.0),
        next_run: Version(number(rng, u64::from(Version::MAX.0) + 1) as u32),
        settled_below: Version(number(rng, u64::from(Version::MAX.0) + 1) as u32),
        last_commit: (rng.below(2) == 0).then_some((Version(4), [9; 32])),
        catalog_bytes_since_base: number(rng, u64::MAX),
        base_catalog_bytes: 5,
        hashes: number(rng, u64::MAX),
        newest: (rng.below(2) == 0).then_some(Version(3)),
        versions: [rng.next() as u8; 32],
    }
}

fn frames_body(chunk: &FrameChunk) -> Vec<u8> {
    let mut body = chunk.offset.to_le_bytes().to_vec();
    chunk.frames.iter().for_each(|info| body.extend_from_slice(&info.encode()));
    body
}

fn uint(value: u64) -> Vec<u8> {
    let mut e = Encoder::default();
    e.uint(value);
    e.0
}

#[test]
fn rows_are_written_again_as_they_were_read() {
    assert_canonical(
        "entry",
        |rng| body(Table::Entries, KEY, &an_entry(rng).encode(KEY)),
        |bytes| row_again(Table::Entries as u8, bytes),
    );
    let key = Key::id(9);
    assert_canonical(
        "arc",
        |_| body(Table::Arcs, key, &an_arc(9).encode()),
        |bytes| row_again(Table::Arcs as u8, bytes),
    );
    assert_canonical("directory", |rng| a_dir(rng).encode(), |bytes| row_again(Table::Dirs as u8, bytes));
    assert_canonical("state", |rng| encode_state(&a_state(rng)), |bytes| row_again(Table::Meta as u8, bytes));
    assert_canonical(
        "frames",
        |rng| {
            let frames = (0..1 + rng.next() as u32 % 3).map(|no| model::block_info(1, no)).collect();
            frames_body(&FrameChunk { first: FrameNo(0), offset: 112 + rng.next() % 9999, frames })
        },
        |bytes| row_again(Table::Frames as u8, bytes),
    );
    assert_canonical(
        "node",
        |rng| [uint(rng.next() % 300), encode_node(&model::node(77, rng.next() % 7, 3))].concat(),
        |bytes| row_again(Table::Nodes as u8, bytes),
    );
    assert_canonical(
        "relocation",
        |rng| uint(number(rng, BlockId::MAX.0)),
        |bytes| row_again(Table::Relocations as u8, bytes),
    );
    assert_canonical(
        "lost",
        |rng| uint(number(rng, u64::from(Version::MAX.0))),
        |bytes| row_again(Table::Lost as u8, bytes),
    );
}

#[test]
fn rows_of_runs_are_written_again_as_they_were_read() {
    assert_canonical(
        "open runs",
        |rng| {
            let version = |rng: &mut Rng| Version(number(rng, u64::from(Version::MAX.0)) as u32);
            let runs: Vec<OpenRun> =
                (0..rng.below(4)).map(|_| OpenRun { version: version(rng), id: [rng.next() as u8; 16] }).collect();
            encode_open_runs(&runs)
        },
        |bytes| row_again(20, bytes),
    );
    assert_canonical(
        "spare arcs",
        |rng| {
            let first = number(rng, ArcSerial::MAX.0 - 9);
            encode_spare_arcs(&[first..first + 1, first + 2..first + 3 + rng.next() % 8])
        },
        |bytes| row_again(21, bytes),
    );
    assert_canonical(
        "losses",
        |rng| {
            let (serial, from) = (ArcSerial(number(rng, ArcSerial::MAX.0)), rng.next());
            let loss = [Loss::Shell(serial), Loss::Arc { serial, from }, Loss::Run(Version(3))][rng.below(3)];
            encode_loss(&loss, [Told::Here, Told::InACommit][rng.below(2)])
        },
        |bytes| row_again(22, bytes),
    );
    let mut told = encode_loss(&Loss::Run(Version(3)), Told::InACommit);
    told[0] = 2;
    assert_eq!(decode_loss(&told).err(), Some(row::BadRow("flag is neither 0 nor 1")));
    let last = ArcSerial::MAX.0;
    for range in [5..5, last..last + 2, 0..u64::MAX] {
        assert_eq!(decode_spare_arcs(&encode_spare_arcs(&[range])), Err(row::BadRow("run out of range")));
    }
    let above = OpenRun { version: Version(1 << 24), id: [0; 16] };
    assert_eq!(decode_open_runs(&encode_open_runs(&[above])), Err(row::BadRow("version out of range")));
}

#[test]
fn rows_that_no_writer_makes_are_refused() {
    let entry = |change: &dyn Fn(&mut EntryRow)| {
        let mut row =
            EntryRow { v_to: None, kind: Kind::File, child: Child::Node(Logid(16)), digest: Some(NodeDigest([0; 16])) };
        change(&mut row);
        row.encode(KEY)
    };
    let dir = |row: &mut EntryRow, dirno| {
        (row.kind, row.child, row.digest) = (Kind::Dir, Child::Dir(Dirno(dirno)), None);
    };
    for (what, value) in [
        ("version out of range", entry(&|row| row.v_to = Some(Version(1 << 24)))),
        ("logid out of range", entry(&|row| row.child = Child::Node(Logid(15)))),
        ("root directory below another", entry(&|row| dir(row, 0))),
        ("directory number out of range", entry(&|row| dir(row, 1 << 39))),
        ("bytes left over", seal(Table::Entries, KEY, [&[0, 1, 16][..], &[0; 17]].concat())),
        ("number longer than it need be", seal(Table::Entries, KEY, [0x80, 0, 1, 16].to_vec())),
    ] {
        assert_eq!(EntryRow::decode(KEY, &value), Err(row::BadRow(what)));
    }
    let arc = |change: &dyn Fn(&mut ArcValue)| {
        let mut value = an_arc(9);
        change(&mut value);
        let body = body(Table::Arcs, Key::id(value.entry.serial.0 as i64), &value.encode());
        seal(Table::Arcs, Key::id(9), body)
    };
    let mut flag = body(Table::Arcs, Key::id(9), &an_arc(9).encode());
    flag[0] = 2;
    for (what, value) in [
        ("the row is another arc's", arc(&|value| value.entry.serial = ArcSerial(8))),
        ("the row is another arc's", arc(&|value| value.run = Version(6))),
        ("flag is neither 0 nor 1", seal(Table::Arcs, Key::id(9), flag)),
    ] {
        assert_eq!(ArcValue::decode(9, &value), Err(row::BadRow(what)));
    }
    let dir = |parent: u64, name: &[u8]| {
        DirValue { parent: Dirno(parent), name: name.to_vec(), gone: false, state: None }.encode()
    };
    for (what, dirno, bytes) in [
        ("directory below itself", 5, dir(5, b"d")),
        ("root directory with a name or parent", 0, dir(0, b"d")),
        ("root directory with a name or parent", 0, dir(5, b"")),
        ("impossible name", 5, dir(0, b"")),
        ("flag is neither 0 nor 1", 5, vec![0, 1, b'd', 2]),
    ] {
        assert_eq!(DirValue::decode(Dirno(dirno), &bytes), Err(row::BadRow(what)));
    }
    let state = |change: &dyn Fn(&mut State)| {
        let mut state = a_state(&mut Rng::new(5));
        change(&mut state);
        encode_state(&state)
    };
    for bytes in [
        state(&|state| state.next_serial = (1 << 39) + 1),
        state(&|state| state.next_logid = 15),
        state(&|state| state.next_logid = (1 << 63) + 1),
        state(&|state| state.next_dirno = 0),
        state(&|state| state.next_dirno = (1 << 39) + 1),
        state(&|state| state.next_run = Version((1 << 24) + 1)),
        state(&|state| state.settled_below = Version((1 << 24) + 1)),
    ] {
        assert_eq!(decode_state(&bytes), Err(row::BadRow("counter out of range")));
    }
    let frames = |offset: u64, count: u32| {
        let frames = (0..count).map(|no| model::block_info(1, no)).collect();
        frames_body(&FrameChunk { first: FrameNo(0), offset, frames })
    };
    let last = FrameNo(FrameNo::MAX.0 - 1);
    assert!(decode_frames(FrameNo(0), &frames(112, 9)).is_ok() && decode_frames(last, &frames(112, 1)).is_ok());
    for (first, bytes) in [(0, frames(112, 0)), (last.0, frames(112, 2)), (0, frames(111, 1)), (0, frames(1 << 62, 1))]
    {
        assert_eq!(decode_frames(FrameNo(first), &bytes), Err(row::BadRow("frame row out of range")));
    }
    // Parts of a long value: cut where the writer cuts.
    let cut = row::split(&[7; 5000]);
    assert_eq!(Main::read(&cut.main).unwrap().parts, 2);
    assert!(Main::read(&cut.main[..cut.main.len() - 1]).is_err());
    assert!(Main::read(&[&cut.main[..], b"x"].concat()).is_err());
    assert!(Main::read(&[&[0], &[7; 3701][..]].concat()).is_err());
}
