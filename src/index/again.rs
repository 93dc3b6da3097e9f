//! Rows, decoded and written again: one function over all kinds of them, for those who prove that nothing else is accepted.

use super::row::{self, ArcValue, EntryRow, Key, Main, Table, seal, split};
use super::rows::{self, DirValue};
use super::runs;
use crate::arc::FrameInfo;
use crate::catalog::codec::{self, Decoder, Encoder};
use crate::ids::{Dirno, FrameNo};

/// Key of the rows whose key does not show in what they hold.
const KEY: Key<'_> = Key(7, 3, b"name");

/// Decodes the body of a row and encodes what came of it; None: refused, or no such kind. A kind is the table's number, 20 and
/// more for those of `meta` that are not the state.
pub fn row_again(kind: u8, body: &[u8]) -> Option<Vec<u8>> {
    let sealed = |table, key: Key<'_>| seal(table, key, body.to_vec());
    let opened = |table, key: Key<'_>, value: Vec<u8>| row::open(table, key, &value).map(<[u8]>::to_vec).ok();
    let number = |value: u64| {
        let mut e = Encoder::default();
        e.uint(value);
        e.0
    };
    let is = |table: Table| kind == table as u8;
    if is(Table::Meta) {
        return rows::decode_state(body).ok().map(|state| rows::encode_state(&state));
    }
    if is(Table::Versions) {
        let (row, removed) = rows::decode_version(7, body).ok()?;
        return Some(rows::encode_version(&row, removed));
    }
    if is(Table::Arcs) {
        let mut d = Decoder::new(body);
        d.flag().and_then(|_| d.version()).ok()?;
        let key = Key::id(d.serial().ok()?.0 as i64);
        let value = ArcValue::decode(key.0, &sealed(Table::Arcs, key)).ok()?;
        return opened(Table::Arcs, key, value.encode());
    }
    if is(Table::Frames) {
        let chunk = rows::decode_frames(FrameNo(0), body).ok()?;
        let offset = chunk.offset.to_le_bytes();
        return Some(offset.into_iter().chain(chunk.frames.iter().flat_map(FrameInfo::encode)).collect());
    }
    if is(Table::Relocations) {
        return rows::decode_relocation(body).ok().map(|to| number(to.0));
    }
    if is(Table::Entries) {
        let row = EntryRow::decode(KEY, &sealed(Table::Entries, KEY)).ok()?;
        return opened(Table::Entries, KEY, row.encode(KEY));
    }
    if is(Table::Nodes) {
        let (first_link, node) = rows::decode_node_row(body).ok()?;
        // Its attributes alone, from the first part of the row.
        let mut head = Decoder::new(body);
        head.dirno().ok()?;
        assert!(codec::decode_node_attr(head.rest()) == Ok((node.attr.clone(), node.data_bytes)), "other attributes");
        return Some([number(first_link.0), codec::encode_node(&node)].concat());
    }
    if is(Table::Dirs) {
        return DirValue::decode(Dirno(5), body).ok().map(|value| value.encode());
    }
    if is(Table::Lost) {
        return row::decode_lost(body).ok().map(|to| number(to.map_or(0, |v| u64::from(v.0))));
    }
    if is(Table::Parts) {
        let main = Main::read(body).ok()?;
        return if main.parts == 0 { Some(split(main.first).main) } else { None };
    }
    match kind {
        20 => runs::decode_open_runs(body).ok().map(|open| runs::encode_open_runs(&open)),
        21 => runs::decode_spare_arcs(body).ok().map(|spare| runs::encode_spare_arcs(&spare)),
        22 => runs::decode_loss(body).ok().map(|(loss, told)| runs::encode_loss(&loss, told)),
        _ => None,
    }
}
