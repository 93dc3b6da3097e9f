//! Arcs and their parts, and who uses which block, by what the library says of an undamaged backup dir.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::lab::Copy;
use super::questions::Reader;
use crate::arc::{ARC_HEADER_LEN, ARC_TRAILER_LEN, FRAME_HEADER_LEN, FrameInfo};
use crate::backupdir::BackupDir;
use crate::catalog::{ArcEntry, ArcRole, Child, Kind};
use crate::fetch::ArcFile;
use crate::findings::Hit;
use crate::ids::{ArcName, BlockId, FrameNo, FramePlace, Logid, Version};
use crate::reader::file::join;
use crate::tree::Piece;

pub fn entries(dir: &BackupDir) -> Vec<ArcEntry> {
    dir.open_index().unwrap().arcs().unwrap().into_iter().map(|row| row.entry).collect()
}

/// An arc: what is known of it, and where its frames lie.
pub struct Layout {
    pub name: ArcName,
    /// None: a commit arc, or there is no index.
    pub entry: Option<ArcEntry>,
    pub infos: Vec<FrameInfo>,
    pub frames: Vec<Range<usize>>,
    pub len: usize,
}

impl Layout {
    pub fn of(dir: &BackupDir, name: ArcName) -> Layout {
        let arc = ArcFile::open(dir.arcs(), name, dir.keys()).unwrap();
        let infos = arc.frame_table(dir.keys()).unwrap();
        let mut at = ARC_HEADER_LEN;
        let place = |info: &FrameInfo| {
            at += info.frame_len() as usize;
            at - info.frame_len() as usize..at
        };
        let frames = infos.iter().map(place).collect();
        let known = dir.open_index().map_or_else(|_| Vec::new(), |index| index.arcs().unwrap());
        let entry = known.into_iter().map(|row| row.entry).find(|entry| entry.name == name);
        assert!(entry.as_ref().is_none_or(|entry| entry.footer_offset as usize == at));
        Layout { name, entry, infos, frames, len: arc.len_bytes() as usize }
    }

    /// All arcs, by name.
    pub fn all(copy: &Copy) -> Vec<Layout> {
        copy.arc_names().into_iter().map(|name| Layout::of(&copy.open(), name)).collect()
    }

    pub fn role(&self) -> ArcRole {
        self.entry.as_ref().map_or(ArcRole::Commit, |entry| entry.role)
    }

    /// Of an arc that the index lists.
    pub fn entry(&self) -> &ArcEntry {
        self.entry.as_ref().unwrap()
    }

    pub fn place(&self, frame: usize) -> FramePlace {
        FramePlace::new(self.entry().serial, FrameNo(frame as u32))
    }

    /// How many blocks it has.
    pub fn stored(&self) -> u64 {
        self.infos.iter().map(|info| info.blocks.len() as u64).sum()
    }

    /// All that a frame holds.
    pub fn blocks(&self, frame: usize) -> impl Iterator<Item = BlockId> {
        self.infos[frame].slots().map(move |(slot, _)| self.place(frame).slot(slot))
    }

    /// The frame that a byte belongs to, and whether it is one of its header.
    pub fn frame_at(&self, at: usize) -> Option<(u32, bool)> {
        let no = self.first_behind(at);
        let frame = self.frames.get(no).filter(|frame| frame.contains(&at))?;
        Some((no as u32, at < frame.start + FRAME_HEADER_LEN))
    }

    /// The first frame that does not end before this.
    pub fn first_behind(&self, cut: usize) -> usize {
        self.frames.partition_point(|frame| frame.end <= cut)
    }

    /// What one fault in such a part hits: for each place where it can strike the frame, and the bytes.
    pub fn parts(&self, part: &str) -> Vec<(Option<usize>, Vec<Range<usize>>)> {
        let (head, trailer) = (FRAME_HEADER_LEN, self.len - ARC_TRAILER_LEN);
        let footer = self.frames.last().map_or(ARC_HEADER_LEN, |last| last.end);
        let one = |range: Range<usize>| vec![(None, vec![range])];
        let each = |of: &dyn Fn(&Range<usize>) -> Range<usize>| {
            self.frames.iter().enumerate().map(|(no, frame)| (Some(no), vec![of(frame)])).collect::<Vec<_>>()
        };
        match part {
            "header" => one(0..ARC_HEADER_LEN),
            "head" => each(&|frame| frame.start..frame.start + head),
            "body" => each(&|frame| frame.start + head..frame.end),
            "tag" => each(&|frame| frame.end - 16..frame.end),
            "frame" => each(&Range::clone),
            "first" => each(&Range::clone).into_iter().take(1).collect(),
            "last" => each(&Range::clone).into_iter().last().into_iter().collect(),
            "bodies" => vec![(None, self.frames.iter().map(|frame| frame.start + head..frame.end).collect())],
            "footer-head" => one(footer..footer + head),
            "footer" => one(footer + head..trailer),
            "trailer" => one(trailer..self.len),
            "end" => one(footer..self.len),
            "both" => vec![(None, vec![0..ARC_HEADER_LEN, trailer..self.len])],
            "file" => one(0..self.len),
            _ => panic!("no part {part}"),
        }
    }
}

/// For each file: its names with the versions that show them, and where each block is.
pub struct Users {
    pub names: BTreeMap<Logid, BTreeMap<Vec<u8>, BTreeSet<Version>>>,
    pub blocks: BTreeMap<BlockId, BTreeMap<Logid, Vec<Range<u64>>>>,
}

/// What is bad of a file, by each of its names.
pub type Told = BTreeMap<(Vec<u8>, Version), Vec<Range<u64>>>;

impl Users {
    pub fn of(r: &Reader) -> Users {
        let mut users = Users { names: BTreeMap::new(), blocks: BTreeMap::new() };
        for row in r.tree.versions().unwrap() {
            for (path, child) in r.below(row.version, b"/") {
                let Child::Node(logid) = child else { continue };
                let names = users.names.entry(logid).or_default();
                names.entry([b"/", &path[..]].concat()).or_default().insert(row.version);
            }
        }
        for logid in users.names.keys() {
            let node = r.tree.node(*logid).unwrap();
            if node.attr.kind != Kind::File {
                continue;
            }
            let mut at = 0;
            for piece in r.tree.segments(&node, 0, u64::MAX).unwrap() {
                if let Piece::Data { block, .. } = piece {
                    users.blocks.entry(block).or_default().entry(*logid).or_default().push(at..at + piece.len());
                }
                at += piece.len();
            }
        }
        users
    }

    /// What these blocks are in each file that uses one of them.
    pub fn ranges(&self, blocks: &BTreeSet<BlockId>) -> BTreeMap<Logid, Vec<Range<u64>>> {
        let mut all: BTreeMap<Logid, Vec<Range<u64>>> = BTreeMap::new();
        for (logid, ranges) in blocks.iter().filter_map(|block| self.blocks.get(block)).flatten() {
            all.entry(*logid).or_default().extend(ranges.iter().cloned());
        }
        all.into_iter().map(|(logid, ranges)| (logid, tidy(ranges))).collect()
    }

    pub fn told(&self, blocks: &BTreeSet<BlockId>) -> Told {
        let named = |(logid, ranges): (Logid, Vec<Range<u64>>)| {
            let names = self.names[&logid].iter().flat_map(|(path, all)| all.iter().map(|v| (path.clone(), *v)));
            names.map(move |name| (name, ranges.clone())).collect::<Vec<_>>()
        };
        self.ranges(blocks).into_iter().flat_map(named).collect()
    }
}

/// In order; those that touch are one.
fn tidy(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut all = Vec::new();
    ranges.into_iter().for_each(|range| join(&mut all, range));
    all
}

/// What these say of files.
pub fn told<'a>(hits: impl IntoIterator<Item = &'a Hit>) -> Told {
    let mut told = Told::new();
    for hit in hits {
        for v in hit.versions.0.0..=hit.versions.1.0 {
            told.entry((hit.path.clone(), Version(v))).or_default().push(hit.bytes.clone());
        }
    }
    told.into_iter().map(|(key, ranges)| (key, tidy(ranges))).collect()
}
