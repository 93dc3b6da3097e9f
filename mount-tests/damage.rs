//! Truth under damage, through the real mount: EIO on exactly the ranges of the bad block, all else right. What one
//! flipped bit explains is put right (`repair`), so damage here changes two places of a frame, or `--heal off` shows it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::arcfile::{self, Frame};
use crate::support::rng::Rng;
use crate::support::{Lab, Mount, NONE, Out, below, sys};

const BLOCK: usize = 65_536;
const PAGE: usize = 4096;

/// A backup whose blocks can be told apart: small files of one block, each of its own size, that share frames, and
/// two files of whole 64 KiB blocks.
struct Target {
    lab: Lab,
    arc: PathBuf,
    pristine: Vec<u8>,
    frames: Vec<Frame>,
}

impl Target {
    fn new(test: &str) -> (Target, Rng) {
        let mut rng = Rng::from_env(test);
        let lab = Lab::new();
        for number in 0..30 {
            let len = 1000 + number * 1237;
            let bytes = if number % 2 == 0 { rng.bytes(len) } else { rng.text(len) };
            lab.write(&format!("small/{number}"), &bytes);
        }
        lab.write("big", &rng.bytes(16 * BLOCK));
        lab.write("text", &rng.text(6 * BLOCK));
        lab.init();
        lab.backup_with(["-B", "64K"]);
        let arcs = arcfile::data_arcs(&lab.repo());
        let [arc] = arcs.as_slice() else { panic!("more than one data arc: {arcs:?}") };
        let pristine = fs::read(arc).expect("read arc");
        let frames = arcfile::block_frames(&pristine);
        assert_eq!(frames.iter().map(|frame| frame.lens.len()).sum::<usize>(), 30 + 16 + 6);
        assert!(frames.len() < 48, "small blocks share frames");
        (Target { arc: arc.clone(), pristine, frames, lab }, rng)
    }

    /// Puts changed bytes in the arc's place, mounts, and demands that exactly `bad` blocks are lost.
    #[track_caller]
    fn expect_lost(&self, heal: &str, what: &str, bytes: &[u8], bad: &[Frame], codes: &[&str]) -> Out {
        assert!(bytes != self.pristine, "{what}: the fault did not fire");
        arcfile::overwrite(&self.arc, bytes);
        let out = self.mount_and_judge(what, &["--heal", heal], bad, codes);
        arcfile::overwrite(&self.arc, &self.pristine);
        out
    }

    #[track_caller]
    fn mount_and_judge(&self, what: &str, args: &[&str], bad: &[Frame], codes: &[&str]) -> Out {
        let mount = self.lab.mount_with(args);
        judge(what, &self.lab.src(), &mount, bad);
        let out = mount.end();
        let arc = self.arc.file_name().and_then(|n| n.to_str()).expect("arc name");
        for frame in bad {
            let place = format!("{arc} frame {} ", frame.number);
            let text = out.text();
            let lines: Vec<&str> = text.lines().filter(|line| line.contains(&place)).collect();
            // The log line at the event, and perhaps the list of the summary.
            assert!((1..=2).contains(&lines.len()), "{what}: {} lines for {place}:\n{text}", lines.len());
            let line = lines[0];
            assert!(codes.iter().any(|code| line.contains(code)), "{what}: none of {codes:?} in: {line}");
            assert!(line.contains("r0"), "{what}: no version in: {line}");
            assert!(line.contains(&self.lab.src().display().to_string()), "{what}: no path in: {line}");
        }
        assert_eq!(out.code, Some(if bad.is_empty() { 0 } else { 4 }), "{what}: exit code\n{}", out.text());
        out
    }
}

/// Reads everything page by page and compares errors with what the damaged frames say.
#[track_caller]
fn judge(what: &str, source: &Path, mount: &Mount, bad: &[Frame]) {
    let shown = mount.latest(source);
    let mut lost_blocks = 0;
    for name in ["big", "text"] {
        let wanted = fs::read(source.join(name)).expect("source");
        let (found, pages) = sys::read_pieces(&shown.join(name), PAGE);
        let pages: BTreeSet<usize> = pages.into_iter().collect();
        for (page, (a, b)) in wanted.chunks(PAGE).zip(found.chunks(PAGE)).enumerate() {
            assert!(pages.contains(&page) || a == b, "{what}: WRONG BYTES in page {page} of {name}");
        }
        let per_block = BLOCK / PAGE;
        let blocks: BTreeSet<usize> = pages.iter().map(|page| page / per_block).collect();
        assert_eq!(pages.len(), blocks.len() * per_block, "{what}: {name}: EIO is not on whole blocks: {pages:?}");
        lost_blocks += blocks.len();
    }
    let wanted_lost = bad.iter().filter(|frame| frame.lens == [BLOCK]).count();
    assert_eq!(lost_blocks, wanted_lost, "{what}: blocks of the long files lost");
    for number in 0..30 {
        let name = format!("small/{number}");
        let wanted = fs::read(source.join(&name)).expect("source");
        let damaged = bad.iter().any(|frame| frame.lens.contains(&wanted.len()));
        let (found, pages) = sys::read_pieces(&shown.join(&name), PAGE);
        if damaged {
            assert_eq!(pages.len(), wanted.len().div_ceil(PAGE), "{what}: {name} must be EIO as a whole");
            let error = fs::read(shown.join(&name)).expect_err("a damaged file read");
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{what}: {name}");
        } else {
            assert!(pages.is_empty(), "{what}: {name} lost without a reason");
            assert!(found == wanted, "{what}: WRONG BYTES in {name}");
        }
    }
}

/// Frames of `target`, shuffled.
fn pick(frames: &[Frame], rng: &mut Rng) -> Vec<Frame> {
    let mut list = frames.to_vec();
    for at in (1..list.len()).rev() {
        list.swap(at, rng.below(at as u64 + 1) as usize);
    }
    list
}

#[test]
fn a_flip_anywhere_in_a_frame_costs_that_block_alone() {
    let (target, mut rng) = Target::new("flips");
    target.mount_and_judge("untouched", &[], &[], &[]);
    // Each round damages half of the frames, each at another place: header, body, tag.
    for round in 0..4 {
        let order = pick(&target.frames, &mut rng);
        let victims = &order[..order.len() / 2];
        let mut bytes = target.pristine.clone();
        for (number, frame) in victims.iter().enumerate() {
            let at = match (number + round) % 7 {
                0 => frame.offset + rng.below(arcfile::FRAME_HEADER_LEN as u64) as usize,
                1 => frame.body(),
                2 => frame.tag() - 1,
                3 => frame.tag(),
                4 => frame.end() - 1,
                _ => frame.body() + rng.below(frame.stored_len as u64) as usize,
            };
            bytes[at] ^= rng.flip();
        }
        let codes = ["ARC_TAG_MISMATCH", "ARC_FRAME_WRONG"];
        let out = target.expect_lost("off", &format!("flips, round {round}"), &bytes, victims, &codes);
        let summary = out.text().to_lowercase();
        assert!(summary.contains("damage"), "the summary must speak of damage: {summary}");
    }
}

#[test]
fn every_byte_of_one_frame_header() {
    let (target, mut rng) = Target::new("header");
    // 36 bytes on 36 different frames at once.
    let victims: Vec<Frame> = pick(&target.frames, &mut rng).into_iter().take(36).collect();
    let mut bytes = target.pristine.clone();
    for (byte, frame) in victims.iter().enumerate() {
        bytes[frame.offset + byte] ^= rng.flip();
    }
    target.expect_lost("off", "header bytes", &bytes, &victims, &["ARC_FRAME_WRONG", "ARC_TAG_MISMATCH"]);
}

#[test]
fn arc_header_footer_and_trailer_cost_no_data() {
    let (target, mut rng) = Target::new("shell");
    let end_of_blocks = target.frames.last().expect("frames").end();
    let len = target.pristine.len();
    let places = [(0, arcfile::ARC_HEADER_LEN), (end_of_blocks, len), (len - 96, len)];
    for (from, to) in places {
        let mut bytes = target.pristine.clone();
        for _ in 0..5 {
            bytes[from + rng.below((to - from) as u64) as usize] ^= rng.flip();
        }
        target.expect_lost("on", &format!("bytes {from}..{to}"), &bytes, &[], &[]);
    }
}

#[test]
fn truncation_at_frame_edges() {
    let (target, mut rng) = Target::new("truncation");
    let mut cuts: Vec<usize> =
        vec![0, 1, arcfile::ARC_HEADER_LEN - 1, arcfile::ARC_HEADER_LEN, target.pristine.len() - 1];
    let last = target.frames.len() - 1;
    for index in [0, rng.below(last as u64) as usize, last] {
        let frame = target.frames[index];
        cuts.extend([frame.offset + 1, frame.body(), frame.end() - 1, frame.end(), frame.end() + 1]);
    }
    cuts.sort_unstable();
    cuts.dedup();
    for cut in cuts {
        let bad: Vec<Frame> = target.frames.iter().filter(|frame| frame.end() > cut).copied().collect();
        let codes = ["ARC_FRAME_TRUNCATED"];
        target.expect_lost("on", &format!("cut at {cut}"), &target.pristine[..cut], &bad, &codes);
    }
}

#[test]
fn a_missing_arc() {
    let (target, _) = Target::new("missing");
    fs::remove_file(&target.arc).expect("rm");
    target.mount_and_judge("missing arc", &[], &target.frames, &["ARC_MISSING"]);
    // The tree is all there: only content is lost.
    fs::write(&target.arc, &target.pristine).expect("write");
    target.mount_and_judge("the arc is back", &[], &[], &[]);
}

#[test]
fn zeroed_and_overwritten_stretches() {
    let (target, mut rng) = Target::new("stretch");
    let first = rng.below(30) as usize;
    let victims: Vec<Frame> = target.frames[first..first + 5].to_vec();
    for (what, filler) in [("zeros", vec![0; 1]), ("noise", rng.bytes(4096))] {
        let mut bytes = target.pristine.clone();
        let (from, to) = (victims[0].offset, victims[4].end());
        for (at, byte) in bytes[from..to].iter_mut().enumerate() {
            *byte = filler[at % filler.len()];
        }
        target.expect_lost("on", what, &bytes, &victims, &["ARC_FRAME_WRONG", "ARC_TAG_MISMATCH"]);
    }
}

#[test]
fn swapped_frames_of_equal_size() {
    let (target, mut rng) = Target::new("swap");
    let whole: Vec<Frame> =
        target.frames.iter().filter(|f| f.lens == [BLOCK] && f.stored_len == BLOCK).copied().collect();
    assert!(whole.len() >= 8, "incompressible blocks are stored as they are");
    let order = pick(&whole, &mut rng);
    let (a, b) = (order[0], order[1]);
    let swap = |bytes: &mut Vec<u8>, from_a: usize, to_a: usize| {
        for at in from_a..to_a {
            bytes.swap(a.offset + at, b.offset + at);
        }
    };
    let len = a.end() - a.offset;
    // Whole frames, then only what stands behind the headers (numbers and hashes stay in place).
    for (what, from) in [("whole frames", 0), ("bodies", arcfile::FRAME_HEADER_LEN)] {
        let mut bytes = target.pristine.clone();
        swap(&mut bytes, from, len);
        target.expect_lost("on", what, &bytes, &[a, b], &["ARC_FRAME_WRONG", "ARC_TAG_MISMATCH"]);
    }
    // One frame twice.
    let mut bytes = target.pristine.clone();
    bytes.copy_within(a.offset..a.end(), b.offset);
    target.expect_lost("on", "a copied frame", &bytes, &[b], &["ARC_FRAME_WRONG", "ARC_TAG_MISMATCH"]);
}

#[test]
fn an_arc_of_another_backup_dir_or_another_history() {
    let (target, _) = Target::new("strangers");
    // The same files in another backup dir: same sizes everywhere, another key.
    let other = target.lab.path("other");
    target.lab.assay_on(&other, "init", NONE).ok();
    target.lab.assay_on(&other, "backup", ["-B", "64K"]).arg(target.lab.src()).ok();
    let strange = fs::read(&arcfile::data_arcs(&other)[0]).expect("arc");
    let codes = ["ARC_FRAME_WRONG", "ARC_TAG_MISMATCH", "ARC_FRAME_TRUNCATED", "ARC_HEADER_BAD"];
    target.expect_lost("on", "another backup dir's arc", &strange, &target.frames, &codes);

    // The same backup dir went on twice from one state: two arcs of one name, one key.
    let fork = target.lab.copy_repo("fork");
    target.lab.write("late", b"in the fork: 16");
    target.lab.assay_on(&fork, "backup", NONE).arg(target.lab.src()).ok();
    target.lab.write("late", b"the real one 16");
    target.lab.backup();
    let name = arcfile::data_arcs(&target.lab.repo())[1].clone();
    let in_fork = fork.join(name.file_name().expect("name"));
    let bytes = fs::read(&in_fork).expect("the fork has an arc of the same name");
    arcfile::rewrite(&name, |old| *old = bytes);
    let mount = target.lab.mount();
    let error = fs::read(mount.latest(&target.lab.src()).join("late")).expect_err("the fork's content");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    judge("fork", &target.lab.src(), &mount, &[]);
    mount.end().code(4);
}

#[test]
fn damage_in_catalog_and_commit_arcs_costs_no_read_while_the_index_lives() {
    let (target, mut rng) = Target::new("catalog");
    for name in arcfile::arc_names(&target.lab.repo()) {
        let path = target.lab.repo().join(&name);
        if path == target.arc {
            continue;
        }
        arcfile::rewrite(&path, |bytes| {
            for _ in 0..20 {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] ^= rng.flip();
            }
        });
    }
    let mount = target.lab.mount();
    judge("catalog", &target.lab.src(), &mount, &[]);
    mount.end();
}

#[test]
fn heal_off_direct_and_repeated_reads_tell_the_same() {
    let (target, mut rng) = Target::new("modes");
    let victims: Vec<Frame> = pick(&target.frames, &mut rng).into_iter().take(6).collect();
    arcfile::rewrite(&target.arc, |bytes| {
        for frame in &victims {
            arcfile::spoil(bytes, frame);
            bytes[frame.body() + rng.below(frame.stored_len as u64) as usize] = rng.flip();
        }
    });
    for args in [&["--heal", "off"][..], &["--direct"], &["--cache-mem", "1M"]] {
        target.mount_and_judge(&args.join(" "), args, &victims, &["ARC_TAG_MISMATCH"]);
    }
}

#[test]
fn damage_that_comes_while_mounted_is_met_with_direct() {
    let (target, mut rng) = Target::new("while mounted");
    let mount = target.lab.mount_with(["--direct", "--cache-mem", "64K"]);
    judge("before", &target.lab.src(), &mount, &[]);
    // Not what was read last: verified blocks in memory stay good.
    let long: Vec<Frame> = target.frames.iter().filter(|frame| frame.lens == [BLOCK]).copied().collect();
    let victims: Vec<Frame> = pick(&long, &mut rng).into_iter().take(5).collect();
    let mut bytes = target.pristine.clone();
    for frame in &victims {
        arcfile::spoil(&mut bytes, frame);
    }
    // In place: the mount may hold the arc open.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&target.arc, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::write(&target.arc, &bytes).expect("write");
    judge("after", &target.lab.src(), &mount, &victims);
    mount.end().code(4);
}

#[test]
fn other_versions_that_share_the_block_are_told_too() {
    let lab = Lab::with_files(&[("shared", &[b's'; 40_000]), ("other", b"not this one, it is longer")]);
    lab.write("new", b"r1 has a new file");
    lab.backup();
    let arc = arcfile::data_arcs(&lab.repo())[0].clone();
    let frames = arcfile::block_frames(&fs::read(&arc).expect("arc"));
    let victim = *frames.iter().find(|f| f.lens == [40_000]).expect("frame");
    arcfile::rewrite(&arc, |bytes| arcfile::spoil(bytes, &victim));
    let mount = lab.mount();
    for version in 0..2 {
        let shown = mount.version(version, &lab.src());
        assert_eq!(fs::read(shown.join("shared")).expect_err("damage").raw_os_error(), Some(libc::EIO));
        assert_eq!(fs::read(shown.join("other")).unwrap(), b"not this one, it is longer");
    }
    assert_eq!(fs::read(mount.latest(&lab.src()).join("new")).unwrap(), b"r1 has a new file");
    mount.end().code(4);
}

#[test]
fn wrong_key_and_damaged_key_file() {
    let lab = Lab::with_files(&[("secret", b"content")]);
    let other = lab.path("other");
    lab.assay_on(&other, "init", NONE).ok();
    let key = lab.repo().join("key.conf");
    let good = fs::read(&key).expect("key.conf");
    arcfile::overwrite(&key, &fs::read(other.join("key.conf")).expect("key.conf"));
    for command in ["versions", "ls", "stats"] {
        let out = lab.assay(command, NONE).run().code(12);
        assert!(out.err().contains("key"), "{}", out.err());
        assert!(!out.text().contains("secret"), "{}", out.text());
    }
    lab.assay("mount", [lab.mnt()]).run().code(12);
    lab.assay("backup", [lab.src()]).run().code(12);
    lab.assay("get", ["--to"]).arg(lab.out_dir()).arg(lab.src()).run().code(12);

    let mut rng = Rng::from_env("key file");
    let mut refused = 0;
    for round in 0..25 {
        let mut bytes = good.clone();
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] ^= rng.flip();
        arcfile::overwrite(&key, &bytes);
        let out = lab.assay("versions", NONE).run();
        match out.code {
            Some(4 | 12) => refused += 1,
            // A changed comment is no damage.
            Some(0) => {}
            code => panic!("round {round}, byte {at}: exit {code:?}: {}", out.text()),
        }
    }
    assert!(refused >= 12, "only {refused} of 25 flips were noticed");
    arcfile::overwrite(&key, &good[..good.len() / 2]);
    assert!(matches!(lab.assay("versions", NONE).run().code, Some(4 | 12)));
    fs::remove_file(&key).expect("rm");
    let out = lab.assay("versions", NONE).run();
    assert!(matches!(out.code, Some(4 | 10 | 12)), "{}", out.text());
    fs::write(&key, &good).expect("write");
    let mount = lab.mount();
    assert_eq!(fs::read(below(&lab.mnt().join("latest"), &lab.src()).join("secret")).unwrap(), b"content");
    mount.end().ok();
}

#[test]
fn a_request_that_touches_a_bad_block_fails_whole() {
    use std::os::unix::fs::FileExt;
    let (target, mut rng) = Target::new("whole request");
    let long: Vec<Frame> = target.frames.iter().filter(|frame| frame.lens == [BLOCK]).copied().collect();
    let victim = pick(&long, &mut rng)[0];
    arcfile::rewrite(&target.arc, |bytes| arcfile::spoil(bytes, &victim));
    let mount = target.lab.mount_with(["--direct"]);
    let shown = mount.latest(&target.lab.src());
    for name in ["big", "text"] {
        let wanted = fs::read(target.lab.src().join(name)).expect("source");
        let bad = sys::read_pieces(&shown.join(name), BLOCK).1;
        let file = fs::File::open(shown.join(name)).expect("open");
        for block in 0..wanted.len() / BLOCK - 1 {
            // From the middle of one block to the middle of the next.
            let mut found = vec![0; BLOCK];
            let offset = block * BLOCK + BLOCK / 2;
            match file.read_at(&mut found, offset as u64) {
                Ok(got) => {
                    assert_eq!(got, BLOCK, "{name}: a short reply at {offset}");
                    assert!(found == wanted[offset..][..BLOCK], "{name}: WRONG BYTES at {offset}");
                    assert!(!bad.contains(&block) && !bad.contains(&(block + 1)), "{name}: {offset}");
                }
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(libc::EIO));
                    assert!(bad.contains(&block) || bad.contains(&(block + 1)), "{name}: {offset} for no reason");
                }
            }
        }
    }
    mount.end().code(4);
}

#[test]
fn of_many_arcs_a_missing_one_costs_its_own_files() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("many arcs");
    for number in 0..60 {
        lab.write(&format!("file-{number:02}"), &rng.bytes(60_000 + number * 111));
    }
    lab.init();
    fs::write(lab.repo().join("config.toml"), "arc-size-limit = \"1MiB\"\n").expect("write");
    lab.backup();
    let arcs = arcfile::data_arcs(&lab.repo());
    assert!(arcs.len() >= 3, "{arcs:?}");
    let victim = &arcs[rng.below(arcs.len() as u64) as usize];
    let lens: BTreeSet<usize> =
        arcfile::block_frames(&fs::read(victim).expect("arc")).iter().flat_map(|frame| frame.lens).copied().collect();
    let moved = lab.path("moved");
    fs::rename(victim, &moved).expect("mv");
    let mount = lab.mount();
    let mut lost = 0;
    for number in 0..60 {
        let name = format!("file-{number:02}");
        let wanted = fs::read(lab.src().join(&name)).expect("source");
        let (found, bad) = sys::read_pieces(&mount.latest(&lab.src()).join(&name), PAGE);
        if bad.is_empty() {
            assert!(found == wanted, "WRONG BYTES in {name}");
        } else {
            // Content-defined blocks: at least one of the file's blocks was in the arc.
            lost += 1;
        }
    }
    assert!(lost > 0 && lost <= lens.len(), "{lost} files for {} blocks", lens.len());
    // Put back, it reads again, in the same mount, once the verdict is forgotten.
    fs::rename(&moved, victim).expect("mv");
    let start = std::time::Instant::now();
    while crate::support::tool("diff").arg("-rq").arg(lab.src()).arg(mount.latest(&lab.src())).run().code != Some(0) {
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "still lost");
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    mount.end().code(4);
}
