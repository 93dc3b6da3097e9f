//! The index can be lost: arcs and key.conf give the same tree again, inodes included.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::support::rng::Rng;
use crate::support::{Lab, Mount, NONE, arcfile, names_in, odd, oracle, tool};

/// Everything that a mount shows below the source in version `number`, inodes included.
fn all_of(mount: &Mount, number: u64, src: &Path) -> Vec<Vec<u8>> {
    oracle::listing_of(&mount.version(number, src), "%i %y %m %U %G %n %s %b %T@ %C@ [%l] %P\\0")
}

/// Whole view of a backup dir: each version's listing with inodes, and the folder names.
fn view(lab: &Lab, repo: &Path) -> (Vec<Vec<u8>>, Vec<Vec<Vec<u8>>>) {
    let versions = lab.versions_of(repo);
    let mount = Mount::start(lab, repo, NONE);
    let names = names_in(&lab.mnt());
    let lists = versions.into_iter().map(|number| all_of(&mount, number, &lab.src())).collect();
    mount.end().ok();
    (names, lists)
}

fn three_versions(test: &str) -> Lab {
    let lab = Lab::new();
    let mut rng = Rng::from_env(test);
    odd::odd_tree(&lab.src(), &mut rng);
    lab.init();
    lab.backup();
    lab.write("plain/new", &rng.bytes(200_000));
    fs::remove_dir_all(lab.src().join("many")).expect("rm -r");
    fs::rename(lab.src().join("plain/nested"), lab.src().join("moved")).expect("mv");
    lab.backup_with(["-t", "second"]);
    odd::append(&lab.src().join("plain/text"), b"more text");
    lab.backup();
    lab
}

fn lose_index(repo: &Path) {
    for name in names_in(repo) {
        let name = String::from_utf8(name).expect("UTF-8");
        if name.starts_with("index.db") {
            fs::remove_file(repo.join(name)).expect("rm");
        }
    }
}

#[test]
fn the_index_comes_back_the_same() {
    let lab = three_versions("recover");
    let before = view(&lab, &lab.repo());
    let versions = lab.assay("versions", ["--json"]).ok().out();
    let listing = lab.assay("ls", ["-a", "-l"]).ok().out();
    lose_index(&lab.repo());
    lab.assay("recover", NONE).ok();
    assert!(view(&lab, &lab.repo()) == before, "the recovered tree differs");
    assert_eq!(lab.assay("versions", ["--json"]).ok().out(), versions);
    assert_eq!(lab.assay("ls", ["-a", "-l"]).ok().out(), listing);
    let mount = lab.mount();
    oracle::identical(&lab.src(), &mount.latest(&lab.src()), &lab.out_dir());
    mount.end().ok();
    // Life goes on: a backup after a recover is incremental and complete.
    lab.write("after", b"after the recover");
    lab.backup();
    let mount = lab.mount();
    oracle::same_listing(&lab.src(), &mount.latest(&lab.src()));
    mount.end().ok();
}

#[test]
fn only_arcs_and_key_are_needed() {
    let lab = three_versions("arcs only");
    let before = view(&lab, &lab.repo());
    let bare = lab.path("bare");
    fs::create_dir(&bare).expect("mkdir");
    for name in arcfile::arc_names(&lab.repo()).iter().map(String::as_str).chain(["key.conf"]) {
        tool("cp").arg("-a").arg(lab.repo().join(name)).arg(bare.join(name)).ok();
    }
    lab.assay_on(&bare, "recover", NONE).ok();
    assert!(view(&lab, &bare) == before, "the recovered tree differs");
    lab.assay_on(&bare, "backup", [lab.src()]).ok();
}

#[test]
fn a_damaged_index_is_replaced() {
    let lab = three_versions("damaged index");
    let before = view(&lab, &lab.repo());
    let mut rng = Rng::from_env("noise in the index");
    arcfile::rewrite(&lab.repo().join("index.db"), |bytes| {
        for _ in 0..200 {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= rng.flip();
        }
    });
    lab.assay("recover", NONE).ok();
    assert!(view(&lab, &lab.repo()) == before, "the recovered tree differs");
}

#[test]
fn leftovers_of_a_cut_run_are_not_recovered() {
    let lab = Lab::with_files(&[("file", b"content")]);
    let fork = lab.copy_repo("fork");
    lab.write("later", b"only in the fork");
    lab.assay_on(&fork, "backup", [lab.src()]).ok();
    // All arcs of the fork's r1 but number 0, which holds the commit record.
    let names: Vec<String> =
        arcfile::arc_names(&fork).into_iter().filter(|n| n.starts_with("arc.1.") && n != "arc.1.0").collect();
    assert!(!names.is_empty());
    for name in &names {
        fs::copy(fork.join(name), lab.repo().join(name)).expect("cp");
    }
    lose_index(&lab.repo());
    lab.assay("recover", NONE).ok();
    assert_eq!(lab.versions(), [0]);
    lab.backup();
    assert_eq!(lab.versions().len(), 2);
    let mount = lab.mount();
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    mount.end().ok();
}

/// Reads `dir-00` … `dir-39` of the newest version: right, or EIO and named in what recover said. Gives how many failed.
fn read_dirs(lab: &Lab, said: &str) -> usize {
    let mount = lab.mount();
    let shown = mount.latest(&lab.src());
    let mut lost = 0;
    for dir in 0..40 {
        let name = format!("dir-{dir:02}");
        // What the directory itself is was not lost, nor the way to it.
        assert_eq!(fs::metadata(shown.join(&name)).expect("stat").ino() >> 63, 1, "{name}");
        match fs::read_dir(shown.join(&name)).and_then(|list| list.collect::<Result<Vec<_>, _>>()) {
            Ok(list) => {
                assert_eq!(list.len(), 250, "{name} is short without an error");
                oracle::diff_clean(&lab.src().join(&name), &shown.join(&name), &[]);
            }
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO), "{name}: {e}");
                assert!(said.contains(&name), "recover did not name {name}: {said}");
                lost += 1;
            }
        }
    }
    let top_lost = said.contains(&format!("  {}\n", lab.src().display()));
    if lost > 0 || top_lost {
        // A lost directory is an error, never empty: rsync must not delete what it can't see.
        let copy = lab.path("copy");
        tool("cp").arg("-a").arg(lab.src()).arg(&copy).ok();
        let trailing = format!("{}/", shown.display());
        let out = tool("rsync").args(["-a", "--delete"]).arg(trailing).arg(&copy).run();
        assert_ne!(out.code, Some(0), "rsync noticed nothing");
        oracle::diff_clean(&lab.src(), &copy, &[]);
        fs::remove_dir_all(&copy).expect("rm -r");
        mount.end().code(4);
    } else {
        mount.end().ok();
    }
    lost
}

#[test]
fn a_damaged_catalog_frame_costs_only_its_directories() {
    let lab = Lab::new();
    let mut rng = Rng::from_env("catalog frame");
    // Enough names for several catalog frames.
    for dir in 0..40 {
        for number in 0..250 {
            let name = format!("dir-{dir:02}/file-{number:03}-{}", "n".repeat(60));
            lab.write(&name, format!("{dir}/{number}").as_bytes());
        }
    }
    lab.init();
    lab.backup();
    let catalog: Vec<PathBuf> = arcfile::arc_names(&lab.repo())
        .into_iter()
        .map(|name| lab.repo().join(name))
        .filter(|path| arcfile::frames(&fs::read(path).expect("arc")).iter().any(|frame| frame.kind == 2))
        .collect();
    let [catalog] = catalog.as_slice() else { panic!("{catalog:?}") };
    let pristine = fs::read(catalog).expect("arc");
    let frames: Vec<arcfile::Frame> = arcfile::frames(&pristine).into_iter().filter(|frame| frame.kind == 2).collect();
    assert!(frames.len() > 2, "{} catalog frames", frames.len());
    // One of those in the middle, the last one with names (it has `/`), and the one that tells all directories again.
    let (middle, top, again) = (rng.below(frames.len() as u64 - 2) as usize, frames.len() - 2, frames.len() - 1);
    for (victim, most_lost) in [(middle, 3), (top, 2), (again, 0)] {
        arcfile::overwrite(catalog, &pristine);
        let frame = frames[victim];
        arcfile::rewrite(catalog, |bytes| bytes[frame.body() + frame.stored_len / 2] ^= rng.flip());
        lose_index(&lab.repo());
        let out = lab.assay("recover", NONE).run().code(4);
        let lost = read_dirs(&lab, &out.text());
        assert!(lost <= most_lost && (lost > 0 || victim != middle), "frame {victim}: {lost} lost: {}", out.text());
        assert_eq!(out.text().contains("  /\n"), victim == top, "{}", out.text());
    }

    // With the good arc back, recover gives everything.
    arcfile::overwrite(catalog, &pristine);
    lab.assay("recover", NONE).ok();
    let mount = lab.mount();
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    mount.end().ok();
}

#[test]
fn a_damaged_commit_record_is_said_and_the_other_versions_live() {
    let lab = three_versions("commit");
    let commit = lab.repo().join("arc.2.0");
    let frames = arcfile::frames(&fs::read(&commit).expect("arc"));
    assert!(frames.iter().any(|frame| frame.kind == 3), "{} holds no commit record", commit.display());
    // Every frame: the record is stored twice.
    arcfile::rewrite(&commit, |bytes| {
        for frame in &frames {
            bytes[frame.body()] ^= 1;
        }
    });
    lose_index(&lab.repo());
    let out = lab.assay("recover", NONE).run();
    assert_ne!(out.code, Some(0), "a lost version must be said: {}", out.text());
    assert!(out.text().contains("r2") || out.text().contains("arc.2."), "{}", out.text());
    assert_eq!(lab.versions(), [0, 1]);
    let mount = lab.mount();
    assert!(mount.version(1, &lab.src()).join("plain/new").exists());
    mount.end();
}

#[test]
fn a_lost_commit_record_costs_no_arc_and_comes_back_with_it() {
    let lab = three_versions("lost commit");
    let before = view(&lab, &lab.repo());
    for victim in ["arc.0.0", "arc.1.0", "arc.2.0"] {
        let repo = lab.copy_repo(&format!("without-{victim}"));
        let arcs = arcfile::arc_names(&repo);
        fs::remove_file(repo.join(victim)).expect("rm");
        lose_index(&repo);
        let out = lab.assay_on(&repo, "recover", NONE).run();
        if victim != "arc.2.0" {
            // The newest run without its record looks like a run that was cut.
            assert_eq!(out.code, Some(4), "{victim}: {}", out.text());
            assert!(out.text().contains(victim) || out.text().contains(&victim[4..5]), "{victim}: {}", out.text());
            let out = lab.assay_on(&repo, "backup", [lab.src()]).run();
            assert!(out.code.is_some_and(|code| code != 101), "{victim}: {}", out.text());
            let after = arcfile::arc_names(&repo);
            for arc in &arcs {
                assert!(arc == victim || after.contains(arc), "{victim}: {arc} was removed");
            }
            if out.code == Some(0) {
                let mount = Mount::start(&lab, &repo, NONE);
                oracle::same_listing(&lab.src(), &mount.latest(&lab.src()));
                oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &["special"]);
                mount.end().ok();
            }
        }
        // With the record back, all is as it was.
        fs::copy(lab.repo().join(victim), repo.join(victim)).expect("cp");
        lose_index(&repo);
        let out = lab.assay_on(&repo, "recover", NONE).run();
        let mut versions = lab.versions_of(&repo);
        versions.truncate(3);
        assert_eq!(versions, [0, 1, 2], "{victim}: {}", out.text());
        let mount = Mount::start(&lab, &repo, NONE);
        for version in 0..3 {
            let list = all_of(&mount, version, &lab.src());
            assert!(list == before.1[version as usize], "{victim}: r{version} differs");
        }
        mount.end().ok();
    }
}
