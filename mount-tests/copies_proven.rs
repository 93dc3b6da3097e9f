//! `assay selftest -v4` as users and scripts see it: each copy by its name, what is wrong with its place and remedy.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::copies::{arcs_at, lab, setid};
use crate::support::arcfile::overwrite;
use crate::support::rng::Rng;
use crate::support::{Lab, NONE, Out};

fn backup(lab: &Lab) {
    lab.assay("backup", NONE).arg(lab.src()).ok();
}

fn v4(lab: &Lab, args: &[&str]) -> Out {
    lab.assay("selftest", ["-v4"].iter().chain(args).copied()).run()
}

/// Findings, and the summary.
#[track_caller]
fn objects(out: &Out) -> (Vec<Value>, Value) {
    let text = out.out();
    let mut all: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let summary = all.pop().expect("a summary");
    assert_eq!((&summary["type"], summary["exit"].as_i64()), (&"summary".into(), out.code.map(i64::from)), "{text}");
    (all, summary)
}

/// What is noted of the copies at one destination.
#[track_caller]
fn states(lab: &Lab, name: &str) -> Vec<(String, Option<String>)> {
    let out = lab.assay("dest", ["status", name, "--json"]).ok().out();
    let state = |line: &str| {
        let arc: Value = serde_json::from_str(line).expect("JSON");
        let state = arc["copies"][0]["noted"].as_str().map(str::to_string);
        (arc["arc"].as_str().expect("an arc").to_string(), state)
    };
    out.lines().map(state).collect()
}

fn all_are(lab: &Lab, name: &str, wanted: &str) -> bool {
    states(lab, name).iter().all(|(_, state)| state.as_deref() == Some(wanted))
}

#[test]
fn all_copies_are_proven_and_damage_is_told_by_destination() {
    let mut rng = Rng::from_env("v4");
    let lab = lab(&[("usb", "verify = \"trust\""), ("nas", ""), ("shelf", "off = true")]);
    ["usb", "nas"].iter().for_each(|name| setid(&lab, name));
    lab.write("noise", &rng.bytes(3 << 20));
    lab.write("text", &rng.text(60_000));
    backup(&lab);
    assert!(all_are(&lab, "usb", "unverified"));
    let clean = v4(&lab, &[]).ok();
    let arcs = arcs_at(&lab.path("usb")).len() as u64;
    assert!(clean.out().contains(&format!("usb: {arcs} arcs proven")), "{}", clean.out());
    assert!(clean.out().contains("nothing is wrong") && !clean.out().contains("shelf"), "{}", clean.out());
    assert!(all_are(&lab, "usb", "proven") && all_are(&lab, "nas", "proven"));
    let (_, summary) = objects(&v4(&lab, &["--json"]).ok());
    let copy = &summary["copies"][0];
    for (key, value) in [("arcs", arcs), ("damaged", 0), ("missing", 0), ("unproven", 0)] {
        assert_eq!(copy[key], value, "{summary}");
    }
    let there: u64 =
        fs::read_dir(lab.path("usb")).expect("read").map(|e| e.expect("e").metadata().expect("m").len()).sum();
    assert_eq!((&copy["name"], &copy["fetched_bytes"]), (&"usb".into(), &there.into()), "each byte once: {summary}");
    assert_eq!(copy["blocks"], summary["copies"][1]["blocks"]);

    // One byte there.
    let name = arcs_at(&lab.path("usb")).into_iter().find(|name| !name.ends_with(".0")).expect("an arc");
    let path = lab.path("usb").join(&name);
    let good = fs::read(&path).expect("read");
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1 << rng.below(8);
    overwrite(&path, &bad);
    let found = v4(&lab, &[]).code(4);
    for part in
        [&format!("ARC_TAG_MISMATCH: at usb: {name} frame"), "do: `assay dest sync usb`", "1 damaged", "1 finding"]
    {
        assert!(found.out().contains(part), "{part} in {}", found.out());
    }
    assert!(found.err().contains(&format!("{name} at usb: expected checksum ")), "{}", found.err());
    let (findings, summary) = objects(&v4(&lab, &["--json"]).code(4));
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(
        (&finding["destination"], &finding["arc"], &finding["level"]),
        (&"usb".into(), &name.clone().into(), &4.into())
    );
    assert_eq!((&summary["copies"][0]["damaged"], &summary["copies"][1]["damaged"]), (&1.into(), &0.into()));
    let noted = states(&lab, "usb");
    assert!(noted.iter().all(|(arc, state)| (state.as_deref() != Some("proven")) == (*arc == name)), "{noted:?}");
    assert!(lab.assay("stats", NONE).ok().out().contains("usb"));
    lab.assay("dest", ["sync"]).ok();
    assert!(fs::read(&path).expect("read") == good);
    v4(&lab, &[]).ok();
    assert!(lab.assay("stats", NONE).ok().out().contains("none known"));

    // One that is not there is not known, and keeps nobody from proving the other.
    fs::rename(lab.path("usb"), lab.path("away")).expect("rename");
    let absent = v4(&lab, &[]).code(3);
    assert!(
        absent.out().contains("DEST_ABSENT") && absent.out().contains(&format!("nas: {arcs} arcs proven")),
        "{}",
        absent.out()
    );
    fs::rename(lab.path("away"), lab.path("usb")).expect("rename");
    fs::remove_file(&path).expect("remove");
    let missing = v4(&lab, &[&name]).code(4);
    assert!(missing.out().contains(&format!("ARC_MISSING: at usb: {name}")), "{}", missing.out());
    lab.assay("dest", ["sync", "usb"]).ok();
    v4(&lab, &[]).ok();
}

#[test]
fn samples_repeat_and_limits_are_kept() {
    let mut rng = Rng::from_env("v4 parts");
    let lab = lab(&[("usb", "")]);
    setid(&lab, "usb");
    lab.write("noise", &rng.bytes(3 << 20));
    backup(&lab);
    let sample = |args: &[&str]| objects(&v4(&lab, &[&["--sample", "2", "--json"], args].concat()).ok()).1;
    let first = sample(&[]);
    let seed = first["seed"].as_u64().expect("a seed").to_string();
    let again = sample(&["--seed", &seed]);
    for key in ["blocks", "fetched_bytes", "requests"] {
        assert_eq!(first["copies"][0][key], again["copies"][0][key], "{first} {again}");
    }
    let fetched = first["copies"][0]["fetched_bytes"].as_u64().expect("bytes");
    assert!(fetched > 0 && fetched < 1 << 20, "{fetched}");
    assert!(v4(&lab, &["--sample", "1"]).ok().out().contains("--seed "));
    let limited = v4(&lab, &["--download-limit", "1500k", "--json"]).code(3);
    let (findings, summary) = objects(&limited);
    assert_eq!((findings.len(), &findings[0]["code"]), (1, &"DOWNLOAD_LIMIT".into()));
    let fetched = summary["copies"][0]["fetched_bytes"].as_u64().expect("bytes");
    assert!(fetched <= 1500 << 10 && summary["copies"][0]["arcs"].as_u64() > Some(0), "{summary}");
    v4(&lab, &["--inc", "1d/1d,1M"]).ok();
    for wrong in [&["--seed", "3"][..], &["--download-limit", "0"], &["--download-limit", "x"]] {
        v4(&lab, wrong).code(2);
    }
    lab.assay("selftest", ["-v3", "--download-limit", "1M"]).run().code(2);
}

/// Killed at any moment it leaves notes that are true, and nothing that keeps the next run from its work.
#[test]
fn a_kill_while_copies_are_proven_costs_nothing() {
    let mut rng = Rng::from_env("kill v4");
    let lab = lab(&[("usb", "verify = \"trust\""), ("nas", "")]);
    ["usb", "nas"].iter().for_each(|name| setid(&lab, name));
    lab.write("noise", &rng.bytes(12 << 20));
    backup(&lab);
    let mut cut = 0;
    for _ in 0..8 {
        let (mut command, _) = lab.assay("selftest", ["-v4"]).into_parts();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawn");
        let begun = Instant::now();
        // Somewhere between its first note and its end.
        while all_are(&lab, "usb", "unverified") && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(rng.below(300)));
        cut += u32::from(child.try_wait().expect("wait").is_none());
        let _ = child.kill();
        child.wait().expect("wait");
        // Each state is one that was true.
        for (arc, state) in states(&lab, "usb") {
            assert!(["unverified", "proven"].contains(&state.as_deref().unwrap_or("none")), "{arc} {state:?}");
        }
    }
    println!("{cut} of 8 cut");
    assert!(cut > 0);
    lab.write("more", b"more");
    backup(&lab);
    v4(&lab, &[]).ok();
    assert!(all_are(&lab, "usb", "proven") && all_are(&lab, "nas", "proven"));
}
