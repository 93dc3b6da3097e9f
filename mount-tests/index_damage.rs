//! A damaged index: what is shown is right or an error, the rest stays usable, nothing crashes or hangs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::support::arcfile;
use crate::support::rng::Rng;
use crate::support::{Lab, Mount, NONE, names_in, odd, tool};

const PAGE: usize = 4096;

/// Of a directory; none otherwise.
type Names = Option<Vec<Vec<u8>>>;
type Facts = (u32, u32, u32, u64, u64, i64, i64);

fn facts(path: &Path) -> Result<Facts, Option<i32>> {
    let m = path.symlink_metadata().map_err(|e| e.raw_os_error())?;
    Ok((m.mode(), m.uid(), m.gid(), m.size(), m.nlink(), m.mtime(), m.mtime_nsec()))
}

/// What the tree was, by path relative to the source; a directory has its names.
struct Truth {
    entries: BTreeMap<PathBuf, (Facts, Names)>,
}

impl Truth {
    fn of(source: &Path) -> Truth {
        let mut entries = BTreeMap::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(rel) = todo.pop() {
            let path = if rel.as_os_str().is_empty() { source.to_path_buf() } else { source.join(&rel) };
            let is_dir = path.symlink_metadata().expect("stat").is_dir();
            let names = is_dir.then(|| names_in(&path));
            for name in names.iter().flatten() {
                todo.push(rel.join(PathBuf::from(String::from_utf8(name.clone()).expect("UTF-8"))));
            }
            entries.insert(rel, (facts(&path).expect("stat"), names));
        }
        Truth { entries }
    }

    /// Panics at the first lie; returns how many answers were right and how many were errors.
    fn judge(&self, what: &str, source: &Path, shown: &Path) -> (u32, u32) {
        let (mut right, mut errors) = (0, 0);
        for (rel, (wanted, names)) in &self.entries {
            let join = |base: &Path| if rel.as_os_str().is_empty() { base.to_path_buf() } else { base.join(rel) };
            let path = join(shown);
            match facts(&path) {
                Ok(found) => {
                    assert_eq!(&found, wanted, "{what}: WRONG ATTRIBUTES of {}", rel.display());
                    right += 1;
                }
                Err(errno) => {
                    assert_eq!(errno, Some(libc::EIO), "{what}: {}: only EIO is a true answer", rel.display());
                    errors += 1;
                    continue;
                }
            }
            let outcome = match names {
                Some(names) => fs::read_dir(&path).and_then(|list| {
                    let mut found = Vec::new();
                    for entry in list {
                        found.push(std::os::unix::ffi::OsStringExt::into_vec(entry?.file_name()));
                    }
                    found.sort();
                    assert!(&found == names, "{what}: WRONG LIST of {} without an error", rel.display());
                    Ok(())
                }),
                None if wanted.0 & libc::S_IFMT == libc::S_IFLNK => fs::read_link(&path)
                    .map(|found| assert_eq!(found, fs::read_link(join(source)).expect("readlink"), "{what}: target")),
                None => fs::read(&path).map(|found| {
                    assert!(found == fs::read(join(source)).expect("read"), "{what}: WRONG BYTES in {}", rel.display());
                }),
            };
            match outcome {
                Ok(()) => right += 1,
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(libc::EIO), "{what}: {}", rel.display());
                    errors += 1;
                }
            }
        }
        (right, errors)
    }
}

/// Values of attributes that fill more than a page: right or an error.
fn judge_xattrs(what: &str, source: &Path, shown: &Path) {
    for name in ["xattr", "link"] {
        let dump = |base: &Path| {
            tool("getfattr")
                .args(["-h", "--absolute-names", "-d", "-m", "-", "-e", "hex", "--only-values"])
                .arg(base.join(name))
                .run()
        };
        let (wanted, found) = (dump(source), dump(shown));
        if found.code == Some(0) && found.stderr.is_empty() {
            assert!(wanted.stdout == found.stdout, "{what}: WRONG ATTRIBUTE VALUE of {name}");
        } else {
            assert!(found.err().contains("Input/output error"), "{what}: {name}: {}", found.err());
        }
    }
}

fn lab_with_pages(rng: &mut Rng) -> Lab {
    let lab = Lab::new();
    for dir in 0..12 {
        for number in 0..60 {
            let len = rng.below(60) as usize;
            lab.write(&format!("dir-{dir:02}/file-{number:03}-{}", "n".repeat(number % 40)), &rng.text(len));
        }
    }
    odd::set_long_xattr(&lab.write("xattr", b"has a long attribute"), b'X');
    std::os::unix::fs::symlink("t/".repeat(2047) + "x", lab.src().join("link")).expect("symlink");
    lab.write("long", &rng.bytes(9_000_000));
    lab.init();
    lab.backup();
    lab
}

/// Mounts a copy with a damaged index; None when it was refused (with a clear code).
fn try_mount(lab: &Lab, repo: &Path) -> Option<Mount> {
    // `versions` reads what a mount reads first, and ends by itself.
    let out = lab.assay_on(repo, "versions", NONE).run();
    match out.code {
        Some(0) => Some(Mount::start(lab, repo, NONE)),
        Some(4 | 12) => {
            let text = out.err();
            assert!(text.contains("index") || text.contains("key"), "{text}");
            None
        }
        code => panic!("versions with a damaged index: exit {code:?} signal {:?}: {}", out.signal, out.text()),
    }
}

#[test]
fn a_flip_in_any_index_page_never_shows_a_wrong_answer() {
    let mut rng = Rng::from_env("index flips");
    let lab = lab_with_pages(&mut rng);
    let truth = Truth::of(&lab.src());
    let index = lab.repo().join("index.db");
    let pristine = fs::read(&index).expect("index");
    let listing = lab.assay("ls", ["-l"]).ok().out();
    let pages = pristine.len() / PAGE;
    assert!(pages > 30, "the index has {pages} pages");
    let mut numbers: Vec<usize> = (0..6).collect();
    numbers.extend((0..22).map(|_| rng.below(pages as u64) as usize));
    let (mut refused, mut whole, mut partly) = (0, 0, 0);
    for page in numbers {
        let mut bytes = pristine.clone();
        let at = page * PAGE + rng.below(PAGE as u64) as usize;
        bytes[at] ^= rng.flip();
        assert!(bytes != pristine);
        arcfile::overwrite(&index, &bytes);
        let what = format!("page {page}, byte {}", at % PAGE);
        let listed = lab.assay("ls", ["-l"]).run();
        match listed.code {
            Some(0) => assert!(listed.out() == listing, "{what}: ls lies"),
            Some(1 | 3 | 4 | 12) => {
                let truth: Vec<&str> = listing.lines().collect();
                // A line may lack what could not be read (a symlink's target), nothing else.
                let known = |line: &&str| truth.iter().any(|whole| whole.starts_with(*line));
                let lie = listed.out().lines().find(|line| !known(line)).map(str::to_string);
                assert_eq!(lie, None, "{what}: ls lies");
                assert!(!listed.err().is_empty(), "{what}: an exit code without a word");
            }
            code => panic!("{what}: ls: exit {code:?} signal {:?}: {}", listed.signal, listed.text()),
        }
        let Some(mount) = try_mount(&lab, &lab.repo()) else {
            refused += 1;
            continue;
        };
        let shown = mount.latest(&lab.src());
        let errors = if shown.symlink_metadata().is_ok() {
            judge_xattrs(&what, &lab.src(), &shown);
            truth.judge(&what, &lab.src(), &shown).1
        } else {
            1
        };
        let out = mount.end();
        if errors > 0 {
            partly += 1;
            assert_eq!(out.code, Some(4), "{what}: damage was met: {}", out.text());
        } else {
            whole += 1;
        }
    }
    println!("{refused} refused, {partly} with errors, {whole} whole");
    assert!(refused <= 8, "{refused} of 28 flips took the whole mount away");
    assert!(partly + refused > 0, "no flip did anything");
    arcfile::overwrite(&index, &pristine);
}

#[test]
fn an_older_image_of_an_index_page_crashes_nothing() {
    let mut rng = Rng::from_env("old page");
    let lab = lab_with_pages(&mut rng);
    let index = lab.repo().join("index.db");
    let old = fs::read(&index).expect("index");
    for number in 0..12 {
        lab.write(&format!("dir-{number:02}/more"), b"new in r1");
        fs::remove_file(lab.src().join(format!("dir-{number:02}/file-001-n"))).expect("rm");
    }
    lab.backup();
    let new = fs::read(&index).expect("index");
    let differ: Vec<usize> =
        (0..old.len() / PAGE).filter(|page| old[page * PAGE..][..PAGE] != new[page * PAGE..][..PAGE]).collect();
    assert!(differ.len() > 3, "{differ:?}");
    for _ in 0..8 {
        let page = differ[rng.below(differ.len() as u64) as usize];
        let mut bytes = new.clone();
        bytes[page * PAGE..][..PAGE].copy_from_slice(&old[page * PAGE..][..PAGE]);
        arcfile::overwrite(&index, &bytes);
        let listed = lab.assay("ls", ["-l"]).run();
        assert!(listed.signal.is_none(), "page {page}: {}", listed.text());
        if let Some(mount) = try_mount(&lab, &lab.repo()) {
            // Old rows may show; a crash, a hang or a made-up byte may not.
            let _ = tool("find").arg(lab.mnt()).args(["-type", "f", "-size", "-100k", "-exec", "cat", "{}", "+"]).run();
            let out = mount.end();
            assert!(matches!(out.code, Some(0 | 4)), "page {page}: {:?} {}", out.code, out.text());
        }
    }
}

#[test]
fn a_truncated_missing_or_alien_index_is_refused_with_a_remedy() {
    let lab = Lab::with_files(&[("file", b"content")]);
    let index = lab.repo().join("index.db");
    let pristine = fs::read(&index).expect("index");
    let other = lab.path("other");
    lab.assay_on(&other, "init", NONE).ok();
    let alien = fs::read(other.join("index.db")).expect("index");
    let cases: [(&str, Vec<u8>); 5] = [
        ("empty", Vec::new()),
        ("half", pristine[..pristine.len() / 2].to_vec()),
        ("one page", pristine[..PAGE].to_vec()),
        ("alien", alien),
        ("noise", Rng::from_env("noise").bytes(pristine.len())),
    ];
    for (what, bytes) in cases {
        arcfile::overwrite(&index, &bytes);
        let out = lab.assay("versions", NONE).run();
        let silent_loss = out.code == Some(0) && !out.out().contains("r0");
        assert!(!silent_loss, "{what}: the version is gone without an error: {}", out.text());
        assert!(matches!(out.code, Some(0 | 4 | 12)), "{what}: {:?} {}", out.code, out.text());
        if out.code == Some(4) {
            assert!(out.err().contains("recover"), "{what}: no remedy: {}", out.err());
        }
        // A backup must not build on it silently.
        let out = lab.assay("backup", [lab.src()]).run();
        assert!(out.code != Some(0) || what == "half" || what == "one page", "{what}: {}", out.text());
        if out.code == Some(0) {
            assert!(lab.assay("versions", NONE).ok().out().contains("r0"), "{what}: r0 was lost");
        }
    }
    fs::remove_file(&index).expect("rm");
    let out = lab.assay("versions", NONE).run();
    assert_ne!(out.code, Some(0), "a missing index is no empty backup");
    assert!(out.err().contains("recover"), "{}", out.err());
}
