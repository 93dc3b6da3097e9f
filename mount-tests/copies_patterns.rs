//! Random damage spread over three copies while a mount reads: one good copy of each frame is enough, and no byte is wrong.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::copies::{lab as lab_with, setid};
use crate::support::arcfile::{ARC_HEADER_LEN, FRAME_HEADER_LEN, block_frames, data_arcs};
use crate::support::mount::Mount;
use crate::support::rng::Rng;
use crate::support::{Lab, NONE, Out, tool};

const PLACES: usize = 3;

fn rounds() -> usize {
    if std::env::var_os("ASSAY_ALL_POINTS").is_some_and(|value| value == "1") { 1000 } else { 100 }
}

/// An arc of file data as it was written, and where its copies are: here, at usb, at nas.
struct Arc {
    pristine: Vec<u8>,
    frames: Vec<Range<usize>>,
    paths: [PathBuf; PLACES],
}

/// Three versions, and so three arcs of file data, with frames of one block and of several.
fn world(rng: &mut Rng) -> (Lab, Vec<Arc>) {
    let lab = lab_with(&[("usb", ""), ("nas", "")]);
    let config = lab.repo().join("config.toml");
    let text = fs::read_to_string(&config).expect("read");
    let smaller = text.replace("block-size = \"64KiB\"", "block-size = \"4KiB\"");
    assert_ne!(smaller, text);
    fs::write(&config, smaller).expect("write");
    setid(&lab, "usb");
    setid(&lab, "nas");
    for version in 0..3 {
        for number in 0..12 {
            let len = 1 + rng.below(9000) as usize;
            lab.write(&format!("{version}/small/{number}"), &rng.bytes(len));
        }
        lab.write(&format!("{version}/text"), &rng.text(300_000));
        lab.write(&format!("{version}/noise"), &rng.bytes(150_000));
        lab.assay("backup", NONE).arg(lab.src()).ok();
    }
    let arc = |here: PathBuf| {
        let name = here.file_name().expect("a name").to_owned();
        let pristine = fs::read(&here).expect("read");
        let frames = block_frames(&pristine).iter().map(|frame| frame.offset..frame.end()).collect();
        Arc { pristine, frames, paths: [here, lab.path("usb").join(&name), lab.path("nas").join(&name)] }
    };
    let arcs: Vec<Arc> = data_arcs(&lab.repo()).into_iter().map(arc).collect();
    assert!(arcs.len() == 3 && arcs.iter().all(|arc| arc.frames.len() > 4), "{}", arcs.len());
    (lab, arcs)
}

/// What stands under an arc's name; None: nothing.
type Stored = Option<Vec<u8>>;

/// What keeps good each frame of one arc: its number in `PLACES`.
type Keepers = Vec<usize>;

/// Of one arc: each frame is kept by any place, by one of two, or all of them by one.
fn keepers(rng: &mut Rng, arc: &Arc) -> Keepers {
    let (few, first) = (1 + rng.below(PLACES as u64), rng.below(PLACES as u64));
    arc.frames.iter().map(|_| ((first + rng.below(few)) % PLACES as u64) as usize).collect()
}

/// One copy of an arc with random damage, but for the frames that this place keeps.
fn damaged(rng: &mut Rng, arcs: &[Arc], which: usize, kept: &[&Range<usize>]) -> Stored {
    let arc = &arcs[which];
    let len = arc.pristine.len();
    let mut bytes = arc.pristine.clone();
    let last = kept.iter().map(|frame| frame.end).max();
    if last.is_none() && rng.below(2) == 0 {
        return match rng.below(7) {
            0 => None,
            1 => Some(Vec::new()),
            2 => Some(rng.bytes(len)),
            3 => Some(vec![0; len]),
            4 => Some(arcs[(which + 1) % arcs.len()].pristine.clone()),
            // All of it, and more behind it.
            5 => Some([&arcs[(which + 2) % arcs.len()].pristine[..], &bytes].concat()),
            _ => {
                bytes.truncate(rng.below(len as u64) as usize);
                Some(bytes)
            }
        };
    }
    let often = 1 + rng.below(4);
    for frame in arc.frames.iter().filter(|frame| !kept.contains(frame)) {
        if rng.below(4) < often {
            ruin(rng, &mut bytes, frame, &arc.frames);
        }
    }
    let footer = arc.frames.last().expect("a frame").end;
    if rng.below(3) == 0 {
        bytes[..ARC_HEADER_LEN].iter_mut().for_each(|byte| *byte ^= 0x5a);
    }
    if rng.below(3) == 0 {
        let filler = rng.bytes(len - footer);
        bytes[footer..].copy_from_slice(&filler);
    }
    if rng.below(3) == 0 {
        let least = last.unwrap_or(0);
        bytes.truncate(least + rng.below((len - least) as u64) as usize);
    }
    Some(bytes)
}

fn ruin(rng: &mut Rng, bytes: &mut [u8], frame: &Range<usize>, all: &[Range<usize>]) {
    let len = frame.len();
    match rng.below(6) {
        0 => bytes[frame.clone()].fill(0),
        1 => bytes[frame.start..frame.start + FRAME_HEADER_LEN].fill(0xff),
        2 => {
            for third in 1..3 {
                bytes[frame.start + len * third / 3] ^= rng.flip();
            }
        }
        3 => bytes[frame.start + rng.below(len as u64) as usize] ^= 1 << rng.below(8),
        4 => {
            let start = frame.start + rng.below(len as u64) as usize;
            let end = frame.end.min(start + 512);
            bytes[start..end].iter_mut().for_each(|byte| *byte ^= 0xa5);
        }
        _ => {
            // Another frame of the same arc.
            let other = &all[rng.below(all.len() as u64) as usize];
            let common = other.len().min(len);
            let copy = bytes[other.start..other.start + common].to_vec();
            bytes[frame.start..frame.start + common].copy_from_slice(&copy);
            bytes[frame.end - 1] ^= 1;
        }
    }
}

/// A mount trusts an arc that it has opened for a second, another file under the name is met only after that, or after
/// damage: most are changed in place.
fn is_in_place(rng: &mut Rng) -> bool {
    rng.below(4) > 0
}

/// Makes a copy so: in place, only where it differs, or as another file.
fn store(path: &Path, wanted: &Stored, in_place: bool) {
    let there = fs::read(path).ok();
    if there == *wanted {
        return;
    }
    match (wanted, there) {
        (None, _) => fs::remove_file(path).expect("remove"),
        (Some(bytes), Some(there)) if in_place => {
            let file = fs::OpenOptions::new().write(true).open(path).expect("open");
            let common = bytes.len().min(there.len());
            for at in (0..common).step_by(64) {
                let part = at..common.min(at + 64);
                if bytes[part.clone()] != there[part.clone()] {
                    file.write_all_at(&bytes[part], at as u64).expect("write");
                }
            }
            file.write_all_at(&bytes[common..], common as u64).expect("write");
            file.set_len(bytes.len() as u64).expect("cut");
        }
        (Some(bytes), _) => {
            let new = path.with_extension("new");
            fs::write(&new, bytes).expect("write");
            fs::rename(&new, path).expect("rename");
        }
    }
    assert!(fs::read(path).ok() == *wanted, "{} reads back differently", path.display());
}

/// The frames of an arc that a place keeps.
fn kept<'a>(arc: &'a Arc, keepers: &Keepers, place: usize) -> Vec<&'a Range<usize>> {
    arc.frames.iter().zip(keepers).filter(|(_, keeper)| **keeper == place).map(|(frame, _)| frame).collect()
}

/// `diff -r`, and what is done meanwhile, again and again until it ends.
fn diff_while(source: &Path, shown: &Path, mut act: impl FnMut()) -> Out {
    let (mut command, what) = tool("diff").args(["-r", "--no-dereference"]).arg(source).arg(shown).into_parts();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    while child.try_wait().expect("wait").is_none() {
        act();
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().expect("wait");
    Out { what, code: output.status.code(), signal: None, stdout: output.stdout, stderr: output.stderr }
}

/// Damaged places that a mount has met: here (each once), at destinations.
#[derive(Default, Debug)]
struct Met {
    here: u64,
    elsewhere: u64,
    repaired: u64,
    at_destinations: usize,
    changes: usize,
}

fn end(mount: Mount, met: &mut Met) {
    let out = mount.end();
    let json = out.json();
    let count = |key: &str| json[key].as_u64().unwrap_or(0);
    assert_eq!(count("healed"), count("damage"), "{json}");
    assert_eq!(out.code, Some(if count("damage") > 0 { 4 } else { 0 }), "{}", out.err());
    met.here += count("damage");
    met.elsewhere += count("elsewhere");
    met.repaired += count("repaired");
    met.at_destinations +=
        out.err().lines().filter(|line| line.ends_with(", at usb") || line.ends_with(", at nas")).count();
}

#[test]
fn one_good_copy_of_each_frame_is_enough_whatever_the_damage_and_no_byte_is_wrong() {
    let mut rng = Rng::from_env("patterns");
    let (lab, arcs) = world(&mut rng);
    let (begun, mut met, mut slowest) = (Instant::now(), Met::default(), Duration::ZERO);
    let rounds = rounds();
    let mut mount: Option<Mount> = None;
    for round in 0..rounds {
        // All of it is right before any of it is wrong: at no time is a frame good nowhere.
        let in_place = is_in_place(&mut rng);
        for (arc, path) in arcs.iter().flat_map(|arc| arc.paths.iter().map(move |path| (arc, path))) {
            store(path, &Some(arc.pristine.clone()), in_place);
        }
        let keepers: Vec<Keepers> = arcs.iter().map(|arc| keepers(&mut rng, arc)).collect();
        let mut spoil = |rng: &mut Rng, which: usize, place: usize, in_place: bool| {
            let kept = kept(&arcs[which], &keepers[which], place);
            store(&arcs[which].paths[place], &damaged(rng, &arcs, which, &kept), in_place);
            met.changes += 1;
        };
        for (which, place) in (0..arcs.len()).flat_map(|which| (0..PLACES).map(move |place| (which, place))) {
            let in_place = is_in_place(&mut rng);
            spoil(&mut rng, which, place, in_place);
        }
        let mount_now =
            mount.get_or_insert_with(|| Mount::start(&lab, &lab.repo(), ["--direct", "--cache-mem", "0", "--json"]));
        let shown = mount_now.latest(&lab.src());
        let started = Instant::now();
        // In every second round other damage comes and goes, and what is good stays good.
        let out = diff_while(&lab.src(), &shown, || {
            if round % 2 == 1 {
                let (which, place) = (rng.below(arcs.len() as u64) as usize, rng.below(PLACES as u64) as usize);
                let in_place = is_in_place(&mut rng);
                spoil(&mut rng, which, place, in_place);
            }
        });
        slowest = slowest.max(started.elapsed());
        assert!(out.code == Some(0) && out.text().is_empty(), "round {round}: {}\n{}", out.text(), mount_now.err());
        // What a mount holds of destinations is right however they are damaged since: it lives for two rounds on average.
        if rng.below(2) == 0 {
            end(mount.take().expect("a mount"), &mut met);
        }
    }
    mount.into_iter().for_each(|mount| end(mount, &mut met));
    println!("{rounds} rounds in {:?}, the slowest diff took {slowest:?}: {met:?}", begun.elapsed());
    assert!(met.elsewhere > rounds as u64 * 2 && met.at_destinations > rounds && met.repaired > 0, "{met:?}");
}
