//! Segments as files: their names, and the reading of what can be believed of one.
//!
//! Invariants: what does not authenticate is named, what stands before it in its segment is believed; memory holds one
//! batch.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::Record;
use super::segment::{BATCH_HEADER_LEN, BatchHeader, MAX_BATCH_BYTES, SEGMENT_HEADER_LEN, SegmentHeader, open_batch};
use crate::crypto::{self, Keys};
use crate::error::Result;
use crate::ids::{ArcSalt, SegmentId};
use crate::index::Commits;
use crate::own::OwnDir;

/// A segment, or the rest of one, that is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub path: PathBuf,
    pub what: &'static str,
}

/// Names of the segments, in order.
pub fn list(dir: &OwnDir) -> Result<Vec<String>> {
    let segment = |name: Vec<u8>| String::from_utf8(name).ok().filter(|name| name.ends_with(".seg"));
    Ok(dir.names()?.into_iter().filter_map(segment).collect())
}

pub fn segment_name(id: SegmentId) -> String {
    format!("{id}.seg")
}

pub fn new_header() -> io::Result<SegmentHeader> {
    Ok(SegmentHeader { id: SegmentId(crypto::random()?), salt: ArcSalt(crypto::random()?) })
}

/// Gives all records that can be believed; says how many batches they were in, and why it stops before the end. A torn
/// tail is an end. `name`: of a segment, which its id must be.
pub fn read_records(
    file: &File,
    name: Option<&str>,
    keys: &Keys,
    mut each: impl FnMut(Record),
) -> (u32, Option<&'static str>) {
    let mut file = BufReader::new(file);
    let mut head = [0; SEGMENT_HEADER_LEN];
    match fill(&mut file, &mut head) {
        ControlFlow::Continue(()) => {}
        ControlFlow::Break(why) => return (0, why),
    }
    let header = match SegmentHeader::decode(&head, keys) {
        Ok(header) => header,
        Err(what) => return (0, Some(what)),
    };
    if name.is_some_and(|name| name != segment_name(header.id)) {
        return (0, Some("it is a segment of another name"));
    }
    let cipher = keys.segment_cipher(header.id, &header.salt);
    let mut body = Vec::new();
    for number in 0.. {
        let mut head = [0; BATCH_HEADER_LEN];
        match fill(&mut file, &mut head) {
            ControlFlow::Continue(()) => {}
            ControlFlow::Break(why) => return (number, why),
        }
        let header = BatchHeader::decode(&head);
        if header.len as usize > MAX_BATCH_BYTES {
            return (number, Some("a batch is too long"));
        }
        if header.len == 0 {
            // A power cut may leave zeros where the last batch was to be.
            return (number, if rest_is_zero(&head, &mut file) { None } else { Some("a batch is empty") });
        }
        body.clear();
        body.resize(header.body_len(), 0);
        match fill(&mut file, &mut body) {
            ControlFlow::Continue(()) => {}
            ControlFlow::Break(why) => return (number, why),
        }
        match open_batch(&cipher, number, &header, &mut body) {
            Ok(records) => records.into_iter().for_each(&mut each),
            Err(what) => return (number, Some(what)),
        }
    }
    (u32::MAX, None)
}

/// What of a segment's records counts: those that were noted in the history that has these commits.
pub fn of_history(commits: &Commits, mut each: impl FnMut(Record)) -> impl FnMut(Record) {
    let mut counts = false;
    move |record| match record {
        Record::History(head) => counts = commits.has(&head),
        record if counts => each(record),
        _ => {}
    }
}

/// Breaks without a reason when the file ends before.
fn fill(file: &mut impl Read, target: &mut [u8]) -> ControlFlow<Option<&'static str>> {
    match file.read_exact(target) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => ControlFlow::Break(None),
        Err(_) => ControlFlow::Break(Some("it cannot be read")),
    }
}

fn rest_is_zero(head: &[u8], file: &mut impl BufRead) -> bool {
    head.iter().all(|byte| *byte == 0) && file.bytes().all(|byte| matches!(byte, Ok(0)))
}
