//! One flipped bit of a block: read right through mount and `get`, told as damage, and the arc left as it is.

use std::fs;
use std::path::PathBuf;

use crate::support::arcfile::{self, Frame};
use crate::support::rng::Rng;
use crate::support::{Lab, tool};

/// A backup of files of one block each and a longer one, and the frames of its one data arc.
struct Target {
    lab: Lab,
    arc: PathBuf,
    pristine: Vec<u8>,
    frames: Vec<Frame>,
}

impl Target {
    fn new(rng: &mut Rng) -> Target {
        let lab = Lab::new();
        for number in 0..40 {
            let len = 1000 + number * 1237;
            lab.write(&format!("{number}"), &if number % 2 == 0 { rng.bytes(len) } else { rng.text(len) });
        }
        lab.write("long", &rng.bytes(10 << 16));
        lab.init();
        lab.backup_with(["-B", "64K"]);
        let arcs = arcfile::data_arcs(&lab.repo());
        let [arc] = arcs.as_slice() else { panic!("more than one data arc: {arcs:?}") };
        let pristine = fs::read(arc).expect("read arc");
        let frames = arcfile::block_frames(&pristine);
        assert_eq!(frames.iter().map(|frame| frame.lens.len()).sum::<usize>(), 50);
        assert!(frames.len() < 45 && frames.iter().any(|frame| frame.lens.len() == 1), "small blocks share frames");
        Target { arc: arc.clone(), pristine, frames, lab }
    }

    /// Flips one bit of each frame; gives what was flipped.
    fn flip(&self, rng: &mut Rng, place: impl Fn(usize, &Frame, &mut Rng) -> usize) -> Vec<(Frame, usize, u8)> {
        let mut bytes = self.pristine.clone();
        let flips: Vec<(Frame, usize, u8)> = (self.frames.iter().enumerate())
            .map(|(number, frame)| (*frame, place(number, frame, rng), rng.below(8) as u8))
            .collect();
        flips.iter().for_each(|(_, at, bit)| bytes[*at] ^= 1 << bit);
        arcfile::overwrite(&self.arc, &bytes);
        assert!(bytes != self.pristine, "the fault did not fire");
        flips
    }
}

#[test]
fn a_flipped_bit_in_every_block_is_put_right_and_told() {
    let mut rng = Rng::from_env("bits");
    let target = Target::new(&mut rng);
    // Each byte of a head once, then bodies, then tags.
    type Pick<'a> = &'a dyn Fn(usize, &Frame, &mut Rng) -> usize;
    let places: [Pick<'_>; 3] = [
        &|number, frame, _| frame.offset + number % arcfile::FRAME_HEADER_LEN,
        &|_, frame, rng| frame.body() + rng.below(frame.stored_len as u64) as usize,
        &|number, frame, _| frame.tag() + number % arcfile::TAG_LEN,
    ];
    for place in places {
        let flips = target.flip(&mut rng, place);
        let damaged = fs::read(&target.arc).expect("arc");
        let mount = target.lab.mount();
        tool("diff").arg("-r").arg(target.lab.src()).arg(mount.latest(&target.lab.src())).ok();
        let told = mount.end().code(4).text();
        let count = target.frames.len();
        let wanted = format!("{count} places, 0 of them right when read again, {count} repaired in memory");
        assert!(told.contains(&wanted), "{told}");
        for (frame, at, bit) in flips {
            let flipped_to = damaged[at] >> bit & 1;
            let what = format!("bit {bit} of byte {} was flipped to {flipped_to}", at - frame.offset);
            let lines: Vec<&str> =
                told.lines().filter(|line| line.contains(&format!("arc.0.1 frame {} ", frame.number))).collect();
            assert_eq!(lines.len(), 2, "logged once, listed once: {lines:?}");
            for line in lines {
                assert!(line.contains(&what) && line.contains("selftest --fix"), "{what}: {line}");
                assert!(line.contains(&target.lab.src().display().to_string()) && line.contains("r0"), "{line}");
            }
        }
        assert!(fs::read(&target.arc).expect("arc") == damaged, "the arc was changed");

        // Shown bare on demand: nothing is readable then.
        let mount = target.lab.mount_with(["--heal", "off"]);
        let shown = mount.latest(&target.lab.src());
        for name in ["0", "1", "39", "long"] {
            assert_eq!(fs::read(shown.join(name)).expect_err(name).raw_os_error(), Some(libc::EIO));
        }
        mount.end().code(4);
    }
}

#[test]
fn get_restores_whole_files_and_says_so() {
    let mut rng = Rng::from_env("bits and get");
    let target = Target::new(&mut rng);
    target.flip(&mut rng, |_, frame, rng| frame.body() + rng.below(frame.stored_len as u64) as usize);
    let said = target.lab.assay("get", ["--to"]).arg(target.lab.out_dir()).arg(target.lab.src()).run().code(4);
    let (text, count) = (said.text(), target.frames.len());
    assert!(text.contains(&format!("{count} damaged blocks were put right")) && !text.contains("are lost"), "{text}");
    assert!(text.contains("was flipped to"), "each is logged: {text}");
    let name = target.lab.src().file_name().expect("name").to_os_string();
    tool("diff").arg("-r").arg(target.lab.src()).arg(target.lab.out_dir().join(name)).ok();
    let again = target.lab.path("again");
    let json = target.lab.assay("get", ["--json", "--to"]).arg(&again).arg(target.lab.src()).run().code(4).json();
    assert_eq!((json["healed_blocks"].as_u64(), json["error_count"].as_u64()), (Some(count as u64), Some(0)), "{json}");
}

#[test]
fn the_mount_tells_repaired_blocks_in_json() {
    let mut rng = Rng::from_env("bits in json");
    let target = Target::new(&mut rng);
    target.flip(&mut rng, |_, frame, _| frame.tag());
    let mount = target.lab.mount_with(["--json"]);
    fs::read(mount.latest(&target.lab.src()).join("0")).expect("a file that is put right");
    let out = mount.end().code(4).out();
    let json: serde_json::Value = serde_json::from_str(out.lines().last().expect("a line")).expect("JSON");
    assert_eq!(
        (json["damage"].as_u64(), json["healed"].as_u64(), json["repaired"].as_u64()),
        (Some(1), Some(1), Some(1))
    );
    let place = &json["places"][0];
    assert_eq!(place["healed"].as_bool(), Some(true));
    assert!(place["how"].as_str().is_some_and(|how| how.contains("of byte")), "{place}");
}
