//! `assay watch`: what is wrong is seen, told and put right without anybody asking, and a kill costs nothing.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::atomicity::command;
use crate::copies::{arcs_at, lab, setid};
use crate::support::arcfile::{block_frames, overwrite};
use crate::support::mount::Mount;
use crate::support::rng::Rng;
use crate::support::{Lab, NONE, oracle, strace, sys, tool};

const PATIENCE: Duration = Duration::from_secs(90);

/// A backup at two destinations, all of it proven; each event is a line of the file that it gives.
fn world(rng: &mut Rng) -> Lab {
    let lab = lab(&[("usb", ""), ("nas", "")]);
    setid(&lab, "usb");
    setid(&lab, "nas");
    let heard = lab.path("heard");
    set(&lab, &format!("on-event = \"echo $ASSAY_EVENT $ASSAY_ARC $ASSAY_DESTINATION >> {}\"", heard.display()));
    set(&lab, "recovery-wait-interval = \"2s\"");
    lab.write("big", &rng.bytes(2_100_000));
    lab.write("small", &rng.bytes(3000));
    lab.assay("backup", NONE).arg(lab.src()).ok();
    lab.assay("selftest", ["-v4"]).ok();
    lab
}

fn set(lab: &Lab, line: &str) {
    let path = lab.repo().join("config.toml");
    let text = fs::read_to_string(&path).expect("read");
    fs::write(&path, format!("{text}{line}\n")).expect("write");
}

/// A watch in the background; killed when it is dropped.
struct Watch {
    child: Child,
    log: std::path::PathBuf,
}

impl Watch {
    fn start(lab: &Lab, args: &[&str]) -> Watch {
        let log = lab.path("watch-log");
        let (mut command, _) = lab.assay("watch", ["--json", "--interval", "2s"]).args(args).into_parts();
        let out = fs::OpenOptions::new().create(true).append(true).open(&log).expect("log");
        let child = command.stdout(out.try_clone().expect("log")).stderr(out).stdin(Stdio::null()).spawn();
        Watch { child: child.expect("start"), log }
    }

    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, is: impl Fn() -> bool) {
        let start = Instant::now();
        while !is() {
            let said = || fs::read_to_string(&self.log).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "not in time: {what}\n{}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(&mut self, signal: i32) -> (Option<i32>, Duration) {
        let start = Instant::now();
        sys::kill(self.child.id(), signal).expect("kill");
        let status = self.child.wait().expect("wait");
        (status.code(), start.elapsed())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sha256(path: &Path) -> String {
    let text = tool("sha256sum").arg(path).run().out();
    text.split(' ').next().unwrap_or_default().to_string()
}

fn are_ready(lab: &Lab) -> bool {
    let copies = lab.assay("stats", ["--json"]).ok().json()["copies"].clone();
    let all = copies.as_array().expect("copies");
    let arcs = arcs_at(&lab.repo()).len() as u64;
    all.len() == 3 && all.iter().all(|place| place["ready"].as_u64() == Some(arcs))
}

#[test]
fn overwritten_and_removed_copies_come_back_after_a_kill_of_everything() {
    let mut rng = Rng::from_env("watch");
    let lab = world(&mut rng);
    assert!(are_ready(&lab));
    let places = ["usb", "nas"].map(|place| lab.path(place).join("arc.0.1"));
    let recorded = sha256(&lab.repo().join("arc.0.1"));
    let mut watch = Watch::start(&lab, &[]);
    watch.wait_for("a first part", || watch.events().iter().any(|event| event["event"] == "proven"));
    // One copy is overwritten in its size, the other one removed, and whoever runs is killed at once.
    let bytes = rng.bytes(fs::metadata(&places[0]).expect("stat").len() as usize);
    overwrite(&places[0], &bytes);
    fs::remove_file(&places[1]).expect("remove");
    assert_eq!(watch.signal(libc::SIGKILL).0, None);
    // States and messages, with nobody at work.
    let status = lab.assay("dest", ["status"]).ok().out();
    assert!(status.contains("usb unknown (its mtime changed)"), "{status}");
    assert!(status.contains("arc.0.1 at nas: no such file"), "{status}");
    let mut watch = Watch::start(&lab, &[]);
    watch.wait_for("all is ready", || are_ready(&lab));
    for path in &places {
        assert_eq!(sha256(path), recorded, "{}", path.display());
    }
    watch.wait_for("it is told", || {
        let events = watch.events();
        let is = |kind: &str, part: &str| {
            events
                .iter()
                .any(|event| event["event"] == kind && event["text"].as_str().unwrap_or_default().contains(part))
        };
        is("damage", "arc.0.1 at usb: expected checksum")
            && is("healed", "usb")
            && is("state", "arc.0.1 at nas: missing: no such file")
    });
    let heard = lab.path("heard");
    watch.wait_for("it is heard", || fs::read_to_string(&heard).unwrap_or_default().contains("healed arc.0.1 usb"));
    // Never two at once, and it stops within a second.
    let second = lab.assay("watch", ["--once"]).run().code(11);
    assert!(second.err().contains("LOCKED"), "{}", second.err());
    let (code, took) = watch.signal(libc::SIGTERM);
    assert!(code == Some(0) && took < Duration::from_millis(1500), "{code:?} {took:?}");
    lab.assay("selftest", ["-v4"]).ok();
}

#[test]
fn what_no_copy_has_waits_and_is_put_together_then() {
    let mut rng = Rng::from_env("watch");
    let lab = world(&mut rng);
    let pristine = fs::read(lab.repo().join("arc.0.1")).expect("read");
    // The same frame is bad everywhere; the original has its bytes.
    let frame = block_frames(&pristine)[1];
    let mut bytes = pristine.clone();
    bytes[frame.body()..frame.end()].iter_mut().for_each(|byte| *byte ^= 0x5a);
    for place in ["backup", "usb", "nas"] {
        overwrite(&lab.path(place).join("arc.0.1"), &bytes);
    }
    let mut watch = Watch::start(&lab, &[]);
    let text = |kind: &str| -> Vec<String> {
        let events = watch.events().into_iter().filter(|event| event["event"] == kind);
        events.map(|event| event["text"].as_str().unwrap_or_default().to_string()).collect()
    };
    watch.wait_for("it waits", || text("recovery").iter().any(|text| text.contains("in 2 s")));
    watch.wait_for("it is sealed anew", || text("healed").iter().any(|text| text.contains("sealed anew")));
    let mount = Mount::start(&lab, &lab.repo(), ["--heal", "off"]);
    oracle::rsync_clean(&lab.src(), &mount.latest(&lab.src()));
    mount.end().ok();
    watch.signal(libc::SIGTERM);
}

#[test]
fn what_is_lost_is_listed_by_file_version_and_bytes() {
    let mut rng = Rng::from_env("watch");
    let lab = world(&mut rng);
    let mut bytes = fs::read(lab.repo().join("arc.0.1")).expect("read");
    let frame = block_frames(&bytes)[1];
    bytes[frame.body()..frame.end()].iter_mut().for_each(|byte| *byte ^= 0x5a);
    for place in ["backup", "usb", "nas"] {
        overwrite(&lab.path(place).join("arc.0.1"), &bytes);
    }
    fs::rename(lab.src(), lab.path("away")).expect("rename");
    let watch = Watch::start(&lab, &[]);
    let is_lost = |event: &Value| {
        let text = event["text"].as_str().unwrap_or_default();
        event["event"] == "lost" && text.contains("in r0, bytes ")
    };
    watch.wait_for("it is listed", || watch.events().iter().any(is_lost));
    // It is told once, and tried again.
    std::thread::sleep(Duration::from_secs(5));
    let lost: Vec<String> =
        watch.events().iter().filter(|event| is_lost(event)).map(|event| event["text"].to_string()).collect();
    let mut once = lost.clone();
    once.dedup();
    assert!(once.len() == lost.len(), "{lost:?}");
    fs::rename(lab.path("away"), lab.src()).expect("rename");
    watch.wait_for("it is found again", || {
        watch.events().iter().any(|event| event["text"].as_str().unwrap_or_default().contains("sealed anew"))
    });
}

#[test]
fn a_destination_that_is_away_is_told_once_and_completed_when_it_is_back() {
    let mut rng = Rng::from_env("watch");
    let lab = world(&mut rng);
    fs::rename(lab.path("usb"), lab.path("unplugged")).expect("rename");
    lab.write("more", &rng.bytes(50_000));
    lab.assay("backup", NONE).arg(lab.src()).run().code(3);
    let watch = Watch::start(&lab, &[]);
    let failed = || watch.events().iter().filter(|event| event["event"] == "failed").count();
    watch.wait_for("it is told", || failed() > 0);
    std::thread::sleep(Duration::from_secs(5));
    let told: Vec<String> = watch
        .events()
        .iter()
        .filter(|event| event["event"] == "failed")
        .map(|event| event["text"].to_string())
        .collect();
    let mut once = told.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), told.len(), "{told:?}");
    fs::rename(lab.path("unplugged"), lab.path("usb")).expect("rename");
    watch.wait_for("it is complete", || arcs_at(&lab.path("usb")).len() == arcs_at(&lab.repo()).len());
    watch.wait_for("all is ready", || are_ready(&lab));
}

#[test]
fn killed_at_any_write_a_watch_goes_on_the_next_time() {
    let mut rng = Rng::from_env("watch and kill");
    let lab = world(&mut rng);
    let recorded = sha256(&lab.repo().join("arc.0.1"));
    fs::remove_file(lab.repo().join("arc.0.1")).expect("remove");
    fs::remove_file(lab.path("nas").join("arc.0.1")).expect("remove");
    let saved = ["backup", "nas"].map(|place| (lab.path(place), lab.path(&format!("saved-{place}"))));
    saved.iter().for_each(|(from, to)| drop(tool("cp").arg("-a").arg(from).arg(to).ok()));
    let reset = || {
        for (place, saved) in &saved {
            fs::remove_dir_all(place).expect("remove");
            tool("cp").arg("-a").arg(saved).arg(place).ok();
        }
    };
    let (home, log) = (lab.path("home"), lab.path("strace.log"));
    let make = command("watch", &lab.repo(), &[Path::new("--once")]);
    let judge = |what: &str| {
        let out = lab.assay("watch", ["--once"]).run();
        assert!(matches!(out.code, Some(0 | 4)), "{what}: {}", out.text());
        for place in ["backup", "usb", "nas"] {
            assert_eq!(sha256(&lab.path(place).join("arc.0.1")), recorded, "{what}: {place}: {}", out.text());
        }
    };
    strace::kill_at_some(&make, &home, &log, reset, judge);
}
