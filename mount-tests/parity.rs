//! Parity beside arcs, no other copy: what is read of damaged arcs is compared with the source tree.

use std::fs;
use std::path::{Path, PathBuf};

use crate::atomicity::command;
use crate::copies::{lab as lab_with, setid};
use crate::support::arcfile::{overwrite, rewrite};
use crate::support::mount::Mount;
use crate::support::rng::Rng;
use crate::support::{Lab, NONE, Out, names_in, oracle, strace, tool};

const SECTOR: usize = 4096;

/// Changes the bytes of an arc.
type Harm<'a> = &'a dyn Fn(&mut Vec<u8>);

fn set_parity(lab: &Lab, parity: &str) {
    let path = lab.repo().join("config.toml");
    let text = fs::read_to_string(&path).expect("read");
    let others = text.lines().filter(|line| !line.starts_with("parity")).map(|line| format!("{line}\n"));
    fs::write(&path, others.collect::<String>() + &format!("parity = \"{parity}\"\n")).expect("write");
}

fn fill(lab: &Lab, rng: &mut Rng) {
    for number in 0..30 {
        lab.write(&format!("small/{number}"), &rng.bytes(5000 + 700 * number));
    }
    lab.write("big", &rng.bytes(3_600_000));
}

fn world(rng: &mut Rng) -> Lab {
    let lab = Lab::new();
    lab.init();
    set_parity(&lab, "2%");
    fill(&lab, rng);
    let out = lab.backup();
    assert!(out.out().contains("\nParity    ") && out.out().contains(" for 3 arcs\n"), "{}", out.out());
    lab
}

fn sidecars(dir: &Path) -> Vec<String> {
    let names = names_in(dir).into_iter().map(|name| String::from_utf8(name).expect("UTF-8"));
    let mut names: Vec<String> = names.filter(|name| name.contains(".par")).collect();
    names.sort();
    names
}

fn arcs(dir: &Path) -> usize {
    let is_arc = |name: &Vec<u8>| name.starts_with(b"arc.") && !name.windows(4).any(|part| part == b".par");
    names_in(dir).into_iter().filter(is_arc).count()
}

fn read_all(lab: &Lab, args: &[&str]) -> Out {
    let mount = Mount::start(lab, &lab.repo(), args);
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    mount.end()
}

fn data_arc(lab: &Lab) -> (PathBuf, usize) {
    let path = lab.repo().join("arc.0.1");
    let sectors = fs::metadata(&path).expect("stat").len().div_ceil(SECTOR as u64) as usize;
    (path, (sectors * 2).div_ceil(100))
}

#[test]
fn what_is_lost_of_the_only_copy_is_read_by_its_parity() {
    let mut rng = Rng::from_env("parity");
    let lab = world(&mut rng);
    read_all(&lab, &[]).ok();
    lab.assay("selftest", ["-v3"]).ok();
    let (arc, parity) = data_arc(&lab);
    assert!(parity > 15, "{parity}");
    let intact = fs::read(&arc).expect("read");
    let (lost, at) = (parity * SECTOR, rng.below((intact.len() / SECTOR - 2 * parity) as u64) as usize * SECTOR);
    let mask = rng.flip();
    let damages: [(&str, Harm<'_>); 4] = [
        ("a run of sectors", &|bytes| bytes[at..at + lost].fill(0)),
        ("a burst", &|bytes| bytes[at + 77..at + 78 + lost - SECTOR].iter_mut().for_each(|byte| *byte ^= mask)),
        ("a byte in many sectors", &|bytes| {
            bytes.iter_mut().skip(99).step_by(40 * SECTOR).take(parity).for_each(|byte| *byte ^= mask | 9);
        }),
        ("a cut end", &|bytes| bytes.truncate((bytes.len() - 1) / SECTOR * SECTOR - (parity - 1) * SECTOR)),
    ];
    for (what, damage) in damages {
        rewrite(&arc, damage);
        let out = read_all(&lab, &["--json"]).code(4);
        let json = out.json();
        let elsewhere = json["elsewhere"].as_u64().unwrap_or(0);
        assert!(elsewhere > 0 && json["healed"] == json["damage"], "{what}: {json}");
        assert!(out.err().contains("read from parity"), "{what}: {}", out.err());
        let to = lab.path("got");
        let got = lab.assay("get", ["--to"]).arg(&to).arg(lab.src()).run().code(4);
        assert!(got.out().contains("read from parity"), "{what}: {}", got.out());
        oracle::diff_clean(&lab.src(), &crate::atomicity::restored(&to, &lab.src()), &[]);
        fs::remove_dir_all(&to).expect("remove");
        // What is there is told by whoever is asked what is there.
        lab.assay("selftest", ["-v3"]).run().code(4);
        let bare = Mount::start(&lab, &lab.repo(), ["--heal", "off"]);
        let read = tool("diff").arg("-r").arg(lab.src()).arg(bare.latest(&lab.src())).run();
        assert!(read.code == Some(2) && read.err().contains("Input/output error"), "{what}: {}", read.text());
        bare.end().code(4);
        // And put right, to the byte: by the selftest or, what a reader meets, while it is read.
        let damaged = fs::read(&arc).expect("read");
        let fixed = lab.assay("selftest", ["-v3", "--fix"]).run().code(4);
        assert!(fs::read(&arc).expect("read") == intact, "{what}: {}", fixed.text());
        assert!(fixed.out().contains(" fixed\n") && !fixed.out().contains("not fixed"), "{what}: {}", fixed.out());
        lab.assay("selftest", ["-v3"]).ok();
        overwrite(&arc, &damaged);
        read_all(&lab, &["--heal", "write"]).code(4);
        assert!(fs::read(&arc).expect("read") == intact, "{what}: mended while it is read");
    }
    read_all(&lab, &[]).ok();
    lab.assay("selftest", ["-v3"]).ok();
}

#[test]
fn beyond_the_bound_it_is_an_error_and_all_else_is_read() {
    let mut rng = Rng::from_env("parity");
    let lab = world(&mut rng);
    let (arc, parity) = data_arc(&lab);
    rewrite(&arc, |bytes| bytes[50 * SECTOR..(51 + parity) * SECTOR].fill(0));
    let mount = Mount::start(&lab, &lab.repo(), NONE);
    let read = tool("diff").arg("-r").arg(lab.src()).arg(mount.latest(&lab.src())).run();
    assert!(read.code == Some(2) && read.out().is_empty(), "nothing differs: {}", read.text());
    assert_eq!(read.err().lines().count(), 1, "{}", read.err());
    let out = mount.end().code(4);
    let told = format!("{} sectors of arc.0.1 are bad, and {parity} can be put right", parity + 1);
    assert!(out.err().contains(&told), "{}", out.err());
    // A sidecar that is bad too, or none: nothing is worse than without.
    rewrite(&lab.repo().join("arc.0.1.par"), |bytes| bytes.truncate(50));
    let got = lab.assay("get", ["--to"]).arg(lab.path("got")).arg(lab.src()).run().code(4);
    assert!(got.out().contains("1 is damaged"), "{}", got.text());
}

#[test]
fn sidecars_go_with_their_arcs_and_nowhere_else() {
    let mut rng = Rng::from_env("parity");
    let lab = lab_with(&[("usb", "")]);
    setid(&lab, "usb");
    set_parity(&lab, "5%");
    fill(&lab, &mut rng);
    lab.backup();
    let first = arcs(&lab.repo());
    assert!(first > 2 && sidecars(&lab.repo()).len() == first, "{:?}", sidecars(&lab.repo()));
    lab.write("big", &rng.bytes(2_000_000));
    fs::write(lab.repo().join("arc.0.2.par.tmp"), "of a run that was killed").expect("write");
    let json = lab.backup_with(["--json"]).json();
    let all = arcs(&lab.repo());
    assert_eq!(json["parity_arcs"].as_u64(), Some((all - first) as u64), "{json}");
    assert_eq!((sidecars(&lab.repo()).len(), sidecars(&lab.path("usb"))), (all, vec![]));
    // Most of the first arc is not needed any more.
    lab.assay("rm", ["-r", "r0", "--force"]).ok();
    lab.assay("pack", NONE).ok();
    assert!(!lab.repo().join("arc.0.1").exists() && !lab.repo().join("arc.0.1.par").exists());
    for name in sidecars(&lab.repo()) {
        assert!(lab.repo().join(name.trim_end_matches(".par")).exists(), "{name} has an arc");
    }
    // The next backup makes what is missing; without the key in config.toml they are files that nobody asks for.
    lab.write("more", b"more");
    lab.backup();
    let all = arcs(&lab.repo());
    assert_eq!(sidecars(&lab.repo()).len(), all);
    set_parity(&lab, "0");
    lab.write("more", b"and more");
    lab.backup();
    assert_eq!(sidecars(&lab.repo()).len(), all);
    lab.assay("selftest", ["-v3"]).ok();
    read_all(&lab, &[]).ok();
    lab.assay("recover", NONE).ok();
    read_all(&lab, &[]).ok();
}

#[test]
fn a_kill_or_a_full_disk_leaves_whole_sidecars_or_none() {
    let mut rng = Rng::from_env("parity");
    let lab = Lab::new();
    lab.write("noise", &rng.bytes(400_000));
    lab.init();
    lab.backup();
    set_parity(&lab, "10%");
    let (trial, home, log) = (lab.path("trial"), lab.path("home"), lab.path("strace.log"));
    let reset = || {
        let _ = fs::remove_dir_all(&trial);
        tool("cp").arg("-a").arg(lab.repo()).arg(&trial).ok();
    };
    let make = command("backup", &trial, &[&lab.src()]);
    reset();
    let counts = strace::count(&make, &home, &log);
    let of_first = |dir: &Path| {
        let of_first = sidecars(dir).into_iter().filter(|name| name.starts_with("arc.0.") && name.ends_with(".par"));
        of_first.map(|name| (fs::read(dir.join(&name)).expect("read"), name)).collect::<Vec<_>>()
    };
    let whole = of_first(&trial);
    assert_eq!(whole.len(), 3);
    let mut fired = 0;
    // Sidecars are the last that is written.
    for call in ["pwrite64", "fsync", "renameat"] {
        let count = counts.0.get(call).copied().unwrap_or_else(|| panic!("no {call}: {:?}", counts.0));
        for when in (1..=count).rev().take(if call == "pwrite64" { 14 } else { 5 }) {
            reset();
            let Some(hit) = strace::kill_at(&make, &home, &log, call, when) else { continue };
            fired += u32::from(hit.hit.contains(".par"));
            let what = format!("kill at {call} {when} ({})", hit.hit);
            assert!(of_first(&trial).iter().all(|sidecar| whole.contains(sidecar)), "{what}");
            lab.assay_on(&trial, "backup", [lab.src()]).ok();
            assert!(
                of_first(&trial) == whole && sidecars(&trial).len() == arcs(&trial),
                "{what}: {:?}",
                sidecars(&trial)
            );
        }
    }
    assert!(fired > 5, "only {fired} kills hit a sidecar");
    // A disk that is full by then: the version is saved, and the next backup goes on.
    reset();
    let count = counts.0["pwrite64"];
    let full = (1..=count).rev().find_map(|when| {
        reset();
        let found = strace::fail_at(&make, &home, &log, "pwrite64", "ENOSPC", when, true)?;
        found.hit.contains("arc.0.1.par").then_some(found)
    });
    let out = full.expect("a write of a sidecar").out.code(3);
    let told = out.err().lines().filter(|line| line.contains("No space left")).count();
    assert!(told == 1 && out.err().contains("got no parity yet"), "{}", out.err());
    assert_eq!((lab.versions_of(&trial).len(), sidecars(&trial)), (2, vec![]));
    lab.assay_on(&trial, "backup", [lab.src()]).ok();
    assert!(of_first(&trial) == whole && sidecars(&trial).len() == arcs(&trial), "{:?}", sidecars(&trial));
}
