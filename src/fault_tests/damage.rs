//! What is done to an arc.

use std::collections::BTreeSet;

use super::Rng;
use super::lab::Files;
use super::layout::Layout;
use super::table::{Row, World};
use crate::arc::{Codec, FRAME_HEADER_LEN, frame};
use crate::ids::FrameNo;

/// One fault.
pub struct Spot<'a> {
    pub arc: &'a Layout,
    /// Frames that it strikes.
    pub struck: BTreeSet<usize>,
    /// None: the file is gone.
    pub bytes: Option<Vec<u8>>,
    pub what: String,
}

impl Spot<'_> {
    /// The files with this fault.
    pub fn files(&self, files: &Files) -> Files {
        let (mut damaged, name) = (files.clone(), self.arc.name.to_string());
        match &self.bytes {
            Some(bytes) => drop(damaged.insert(name, bytes.clone())),
            None => drop(damaged.remove(&name)),
        }
        assert!(damaged != *files, "the fault did not fire");
        damaged
    }

    /// The file ends too early.
    pub fn is_short(&self) -> bool {
        self.bytes.as_ref().is_none_or(|bytes| bytes.len() < self.arc.len)
    }
}

/// A byte that changes several bits.
fn several(rng: &mut Rng) -> u8 {
    loop {
        let mask = rng.mask();
        if mask.count_ones() > 1 {
            return mask;
        }
    }
}

/// Every place of an arc where a fault of this row can strike.
pub fn spots<'a>(row: &Row, arc: &'a Layout, world: &World, rng: &mut Rng) -> Vec<Spot<'a>> {
    let name = arc.name.to_string();
    let whole = &world.lab.files[&name];
    let what = format!("seed {}: {} {} of {name}", rng.seed, row.damage, row.part);
    let spot = |struck: &[usize], bytes: Option<Vec<u8>>| {
        let what = format!("{what}, frames {struck:?}, {:?} of {} bytes", bytes.as_ref().map(Vec::len), arc.len);
        Spot { arc, struck: struck.iter().copied().collect(), bytes, what }
    };
    let other = |other: Option<&Layout>| {
        let other = other.filter(|other| other.name != arc.name);
        other.map(|other| spot(&[], Some(world.lab.files[&other.name.to_string()].clone()))).into_iter().collect()
    };
    match row.damage {
        "gone" => return vec![spot(&[], None)],
        "empty" => return vec![spot(&[], Some(vec![]))],
        "longer" => return vec![spot(&[], Some([&whole[..], &[0; 999]].concat()))],
        "longest" => return other(world.arcs.iter().max_by_key(|other| other.len)),
        "next" => return other(world.arcs.iter().cycle().skip_while(|other| other.name != arc.name).nth(1)),
        "stranger" => {
            return world.stranger.get(&name).map(|bytes| spot(&[], Some(bytes.clone()))).into_iter().collect();
        }
        _ => {}
    }
    let mut spots = Vec::new();
    for (frame, ranges) in arc.parts(row.part) {
        let (mut bytes, first, no) = (whole.clone(), ranges[0].clone(), frame.unwrap_or_default());
        let mut struck: Vec<usize> = frame.into_iter().collect();
        match row.damage {
            "bit" => bytes[first.start + rng.below(first.len())] ^= 1 << rng.below(8),
            "byte" => ranges.iter().for_each(|r| bytes[r.start + rng.below(r.len())] ^= several(rng)),
            // One in each half.
            "bytes" => ranges.iter().for_each(|r| {
                let half = r.len() / 2;
                bytes[r.start + rng.below(half)] ^= several(rng);
                bytes[r.start + half + rng.below(r.len() - half)] ^= several(rng);
            }),
            "fill" => ranges.iter().for_each(|r| bytes[r.clone()].iter_mut().for_each(|byte| *byte ^= 0x55)),
            // This frame and the four before, with a sound one between.
            "five" if no < 6 => continue,
            "five" => {
                struck = (no - 6..no - 2).chain([no]).collect();
                struck.iter().for_each(|no| bytes[arc.frames[*no].start + 40] ^= 0xff);
            }
            "cut" => {
                let near = BTreeSet::from([0, 1, 20, 40, first.len() - 1].map(|from| first.start + from));
                let cuts = near.into_iter().filter(|cut| first.contains(cut));
                spots.extend(cuts.map(|cut| spot(&struck, Some(whole[..cut].to_vec()))));
                continue;
            }
            // With the frame before, if they are of one length.
            "swap" if no == 0 || arc.frames[no].len() != arc.frames[no - 1].len() => continue,
            "swap" => {
                struck.push(no - 1);
                let head = if row.part == "body" { FRAME_HEADER_LEN } else { 0 };
                let (a, b) = (arc.frames[no - 1].clone(), arc.frames[no].clone());
                bytes[a.clone()][head..].copy_from_slice(&whole[b.clone()][head..]);
                bytes[b][head..].copy_from_slice(&whole[a][head..]);
            }
            // With the right key over other bytes; where it says so they are no compressed ones.
            "sealed" | "sealed-zstd" => {
                let (entry, info) = (arc.entry(), &arc.infos[no]);
                if (info.codec == Codec::Zstd) != (row.damage == "sealed-zstd") || info.plain_len() <= 100 {
                    continue;
                }
                let cipher = world.keys.arc_cipher(entry.id, &entry.salt);
                let sealed = frame::seal(&cipher, FrameNo(no as u32), info, &vec![7; info.stored_len as usize]);
                bytes[arc.frames[no].clone()].copy_from_slice(&sealed);
            }
            _ => panic!("no damage {}", row.damage),
        }
        spots.push(spot(&struck, Some(bytes)));
    }
    spots
}
