//! Random damage spread over three copies while a mount reads: one good copy of each frame is enough, and no byte is wrong.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
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
        std::thread::sleep(Duration::from_millis(3));
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
            mount.get_or_insert_with(|| Mount::start(&lab, &lab.repo(), ["--direct", "--cache-mem", "128K", "--json"]));
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

/// Everything is gone here.
fn lose_all_here(arcs: &[Arc]) {
    arcs.iter().for_each(|arc| fs::remove_file(&arc.paths[0]).expect("remove"));
}

/// It is right, or it says that it can't be read: nothing differs, and nothing is missing.
#[track_caller]
fn is_right_or_an_error(out: &Out) {
    assert!(out.out().is_empty(), "{}", out.text());
    assert!(out.err().lines().all(|line| line.ends_with(": Input/output error")), "{}", out.err());
}

#[test]
fn destinations_that_come_and_go_cost_errors_at_most_and_are_found_again() {
    let mut rng = Rng::from_env("come and go");
    let (lab, arcs) = world(&mut rng);
    lose_all_here(&arcs);
    // What was fetched is held, and fetched again where it is wrong: each frame has a flipped bit.
    for arc in &arcs {
        for path in &arc.paths[1..] {
            let mut bytes = arc.pristine.clone();
            arc.frames.iter().for_each(|frame| bytes[frame.end - 20] ^= 1 << rng.below(8));
            store(path, &Some(bytes), true);
        }
    }
    let away = lab.path("away");
    fs::create_dir(&away).expect("mkdir");
    let mount = lab.mount_with(["--direct", "--cache-mem", "128K"]);
    let shown = mount.latest(&lab.src());
    let diff = || diff_while(&lab.src(), &shown, || {}).code(0);
    // Arc after arc leaves one destination and comes back; then the other one's turn.
    let mut moves = 0_usize;
    for _ in 0..10 {
        let out = diff_while(&lab.src(), &shown, || {
            let order = |at: usize| (1 + at / (2 * arcs.len()) % 2, at % arcs.len(), at / arcs.len() % 2);
            let (place, which, back) = order(moves);
            let (there, aside) = (&arcs[which].paths[place], away.join(format!("{which}")));
            let (from, to) = if back == 1 { (&aside, there) } else { (there, &aside) };
            fs::rename(from, to).expect("rename");
            moves += 1;
        });
        is_right_or_an_error(&out);
    }
    for (which, arc) in arcs.iter().enumerate() {
        for path in arc.paths[1..].iter().filter(|path| !path.exists()) {
            fs::rename(away.join(format!("{which}")), path).expect("rename");
        }
    }
    // What was found to be bad is not read again for five seconds.
    std::thread::sleep(Duration::from_secs(6));
    diff();
    // One is renamed and back while the other is there, and comes back as another directory, as a disk that was plugged in anew.
    for round in 0..4 {
        let (goes, stays) = if round % 2 == 0 { ("usb", "nas") } else { ("nas", "usb") };
        fs::rename(lab.path(goes), lab.path("unplugged")).expect("rename");
        diff();
        if round < 2 {
            fs::rename(lab.path("unplugged"), lab.path(goes)).expect("rename");
            diff();
            continue;
        }
        tool("cp").arg("-a").arg(lab.path("unplugged")).arg(lab.path(goes)).ok();
        fs::remove_dir_all(lab.path("unplugged")).expect("remove");
        diff();
        // Now it is the only one.
        arcs.iter().for_each(|arc| fs::rename(arc_at(&lab, stays, arc), arc_at(&lab, "away", arc)).expect("rename"));
        diff();
        arcs.iter().for_each(|arc| fs::rename(arc_at(&lab, "away", arc), arc_at(&lab, stays, arc)).expect("rename"));
    }
    let out = mount.end().code(4);
    println!("{moves} moves");
    assert!(moves > 100 && out.err().contains("read from usb") && out.err().contains("read from nas"), "{moves}");
}

fn arc_at(lab: &Lab, place: &str, arc: &Arc) -> PathBuf {
    lab.path(place).join(arc.paths[0].file_name().expect("a name"))
}

/// Reads each file by itself; the longest time that one took.
#[track_caller]
fn read_each(lab: &Lab, shown: &Path) -> Duration {
    let files = tool("find").arg(".").args(["-type", "f"]).dir(&lab.src()).ok().out();
    let timed = files.lines().map(|name| {
        let begun = Instant::now();
        let read = fs::read(shown.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(read == fs::read(lab.src().join(name)).expect("read"), "{name} differs");
        begun.elapsed()
    });
    timed.max().expect("a file")
}

#[test]
fn one_that_hangs_and_one_that_lies_hold_nobody_up_while_there_is_a_good_one() {
    let mut rng = Rng::from_env("frozen and lying");
    let (lab, arcs) = world(&mut rng);
    lose_all_here(&arcs);
    for arc in &arcs {
        fs::write(&arc.paths[1], rng.bytes(arc.pristine.len())).expect("write");
    }
    // One that takes connections, and never says a word.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let port = listener.local_addr().expect("address").port();
    let path = lab.repo().join("dest.toml");
    let others = fs::read_to_string(&path).expect("read");
    let frozen = format!("[[destination]]\nname = \"cloud\"\ntype = \"webdav\"\nurl = \"http://127.0.0.1:{port}/x\"\n");
    fs::write(&path, frozen + &others).expect("write");
    let mount = lab.mount_with(["--direct", "--cache-mem", "128K"]);
    let shown = mount.latest(&lab.src());
    let slowest = read_each(&lab, &shown);
    diff_while(&lab.src(), &shown, || {}).code(0);
    listener.set_nonblocking(true).expect("nonblocking");
    assert!(listener.accept().is_ok(), "it was not asked");
    let err = mount.end().code(4).err();
    println!("the slowest read took {slowest:?}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    assert!(err.contains(", at usb") && err.contains("read from nas"), "{err}");
}

/// A file system that hangs once it was read from: another mount, stopped.
#[test]
fn a_directory_that_freezes_under_readers_holds_up_only_the_first_of_them() {
    let mut rng = Rng::from_env("frozen directory");
    let (lab, arcs) = world(&mut rng);
    lose_all_here(&arcs);
    // The copies at usb, saved by another backup, whose mount is the first destination.
    let other = lab.path("other");
    lab.assay_on(&other, "init", NONE).ok();
    lab.assay_on(&other, "backup", NONE).arg(lab.path("usb")).ok();
    let (point, logs) = (lab.path("frozen"), lab.path("logs"));
    fs::create_dir(&point).expect("mkdir");
    fs::create_dir(&logs).expect("mkdir");
    let below = Mount::spawn(lab.assay_on(&other, "mount", ["--direct"]).arg(&point), &point, &logs);
    let path = lab.repo().join("dest.toml");
    let text = fs::read_to_string(&path).expect("read");
    let usb = lab.path("usb");
    let there = below.latest(&usb);
    fs::write(&path, text.replace(&format!("\"{}\"", usb.display()), &format!("\"{}\"", there.display())))
        .expect("write");
    let mount = lab.mount_with(["--direct", "--cache-mem", "128K"]);
    let shown = mount.latest(&lab.src());
    assert!(fs::read(shown.join("0/small/0")).expect("read") == fs::read(lab.src().join("0/small/0")).expect("read"));
    assert!(mount.err().contains("read from usb"), "{}", mount.err());
    below.signal(libc::SIGSTOP);
    let first = read_each(&lab, &shown);
    let begun = Instant::now();
    diff_while(&lab.src(), &shown, || {}).code(0);
    let again = begun.elapsed();
    let ending = Instant::now();
    let err = mount.end().code(4).err();
    let ended = ending.elapsed();
    below.signal(libc::SIGCONT);
    below.end().ok();
    println!("the slowest read took {first:?}, then all of it {again:?}, the end {ended:?}");
    assert!(err.contains("read from nas"), "{err}");
    assert!(first > Duration::from_secs(1), "it was not frozen");
    assert!(first < Duration::from_secs(5) && again < Duration::from_secs(5), "{first:?} {again:?}");
    assert!(ended < Duration::from_secs(5), "{ended:?}");
}
