//! A damaged index: the catalogs answer for it; with `--heal off` what is shown is right or an error, and the rest stays usable.
//! Nothing crashes or hangs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::support::arcfile;
use crate::support::rng::Rng;
use crate::support::{Lab, Mount, NONE, names_in, odd, oracle, tool};

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

/// Shows the damage of an index as it is; None when the mount was refused (with a clear code).
fn try_mount(lab: &Lab, repo: &Path) -> Option<Mount> {
    // `versions` reads what a mount reads first, and ends by itself.
    let out = lab.assay_on(repo, "versions", NONE).run();
    match out.code {
        Some(0) => Some(Mount::start(lab, repo, ["--heal", "off"])),
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
        assert!(listed.out() == listing, "{what}: ls lies: {}", listed.text());
        assert_eq!(listed.code, Some(if told(&listed.err()) { 4 } else { 0 }), "{what}: {}", listed.text());
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
    let mut mismatches = 0;
    for _ in 0..8 {
        let page = differ[rng.below(differ.len() as u64) as usize];
        let mut bytes = new.clone();
        bytes[page * PAGE..][..PAGE].copy_from_slice(&old[page * PAGE..][..PAGE]);
        arcfile::overwrite(&index, &bytes);
        let listed = lab.assay("ls", ["-l"]).run();
        assert!(listed.signal.is_none(), "page {page}: {}", listed.text());
        let healed = Mount::start(&lab, &lab.repo(), NONE);
        oracle::diff_clean(&lab.src(), &healed.latest(&lab.src()), &[]);
        let out = healed.end();
        let code = if told(&out.err()) { 4 } else { 0 };
        mismatches += usize::from(out.err().contains("TREE_MISMATCH"));
        assert_eq!(out.code, Some(code), "page {page}: {}", out.text());
        if let Some(mount) = try_mount(&lab, &lab.repo()) {
            // Old rows may show; a crash, a hang or a made-up byte may not.
            let _ = tool("find").arg(lab.mnt()).args(["-type", "f", "-size", "-100k", "-exec", "cat", "{}", "+"]).run();
            let out = mount.end();
            assert!(matches!(out.code, Some(0 | 4)), "page {page}: {:?} {}", out.code, out.text());
        }
    }
    assert!(mismatches > 0, "no older page showed what was not backed up");
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

/// Was it told that the catalogs answer, and what to do?
fn told(said: &str) -> bool {
    let told =
        said.matches("warn: ").filter(|_| said.contains("is answered from the catalogs: `assay selftest -v2 --fix`"));
    told.count() > 0
}

fn small_lab(rng: &mut Rng) -> Lab {
    let lab = Lab::new();
    for dir in 0..4 {
        for number in 0..40 {
            let len = rng.below(200) as usize;
            lab.write(&format!("dir-{dir}/file-{number:02}-{}", "n".repeat(number)), &rng.text(len));
        }
    }
    lab.write("long", &rng.bytes(3_000_000));
    lab.init();
    lab.backup();
    lab
}

/// All of the newest version is right; gives what the mount said.
fn read_all(what: &str, lab: &Lab, met: Option<bool>) -> String {
    let mount = Mount::start(lab, &lab.repo(), NONE);
    oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    let out = mount.end();
    let said = out.err();
    assert_eq!(out.code, Some(if told(&said) { 4 } else { 0 }), "{what}: {}", out.text());
    assert!(met.is_none_or(|met| met == told(&said)), "{what}: {}", out.text());
    assert!(said.matches("is answered from the catalogs").count() <= 1, "{what}: it is told once: {said}");
    if told(&said) {
        assert!(
            said.contains("damage    1 place, 0 of them right when read again, 1 answered from the catalogs"),
            "{said}"
        );
    } else {
        assert!(said.contains("damage    none met"), "{what}: {said}");
    }
    said
}

#[test]
fn a_wrong_byte_anywhere_in_a_small_index_costs_a_mount_nothing() {
    let mut rng = Rng::from_env("small index");
    let lab = small_lab(&mut rng);
    let index = lab.repo().join("index.db");
    let pristine = fs::read(&index).expect("index");
    let (mut met, mut unopened) = (0, 0);
    for n in 0..60 {
        let at = if n < 8 { n * 512 } else { rng.below(pristine.len() as u64) as usize };
        let mut bytes = pristine.clone();
        bytes[at] ^= rng.flip();
        arcfile::overwrite(&index, &bytes);
        unopened += u32::from(lab.assay("versions", NONE).run().code != Some(0));
        met += u32::from(told(&read_all(&format!("byte {at}"), &lab, None)));
        assert!(fs::read(&index).expect("index") == bytes, "nothing is repaired on the disk");
    }
    println!("{met} met, {unopened} did not open");
    assert!(met > 20 && unopened > 3, "{met} met, {unopened} did not open");
}

#[test]
fn an_index_that_does_not_open_keeps_no_mount_from_starting() {
    let mut rng = Rng::from_env("no index");
    let lab = small_lab(&mut rng);
    let index = lab.repo().join("index.db");
    let pristine = fs::read(&index).expect("index");
    let mut no_head = pristine.clone();
    no_head[..PAGE].copy_from_slice(&rng.bytes(PAGE));
    let cases: [(&str, Option<Vec<u8>>); 5] = [
        ("no head", Some(no_head)),
        ("empty", Some(Vec::new())),
        ("half", Some(pristine[..pristine.len() / 2].to_vec())),
        ("noise", Some(rng.bytes(pristine.len()))),
        ("missing", None),
    ];
    for (number, (what, bytes)) in cases.iter().enumerate() {
        match bytes {
            Some(bytes) => arcfile::overwrite(&index, bytes),
            None => fs::remove_file(&index).expect("rm"),
        }
        let said = read_all(what, &lab, Some(true));
        assert!(said.contains("INDEX_"), "{what}: {said}");
        let to = lab.path(&format!("got{number}"));
        let got = lab.assay("get", ["--to"]).arg(&to).arg(lab.src()).run().code(4);
        assert!(told(&got.err()), "{what}: {}", got.text());
        oracle::diff_clean(&lab.src(), &to.join("src"), &[]);
        let bare = lab.assay("mount", ["--heal", "off"]).arg(lab.mnt()).run();
        assert!(*what == "half" || bare.code == Some(4), "{what}: {}", bare.text());
        assert_eq!(index.exists(), bytes.is_some(), "{what}: the index is left as it is");
    }
    // The key of another backup dir is told as such.
    let other = lab.path("other");
    lab.assay_on(&other, "init", NONE).ok();
    let key = fs::read(other.join("key.conf")).expect("key");
    arcfile::overwrite(&lab.repo().join("key.conf"), &key);
    for bytes in [Some(pristine), None] {
        bytes.iter().for_each(|bytes| fs::write(&index, bytes).expect("write"));
        if bytes.is_none() {
            fs::remove_file(&index).expect("rm");
        }
        lab.assay("mount", NONE).arg(lab.mnt()).run().code(12);
    }
}

#[test]
fn with_a_catalog_damaged_too_only_what_it_describes_is_lost() {
    let mut rng = Rng::from_env("index and catalog");
    let lab = Lab::new();
    for dir in 0..40 {
        for number in 0..60 {
            lab.write(
                &format!("dir-{dir:02}/file-{number:02}-{}", "n".repeat(120)),
                format!("{dir}/{number}").as_bytes(),
            );
        }
    }
    lab.init();
    lab.backup();
    arcfile::know(&lab.repo());
    let all = arcfile::arc_names(&lab.repo()).into_iter().map(|name| lab.repo().join(name));
    let frames = |path: &Path| {
        let frames = arcfile::frames(&fs::read(path).expect("arc")).into_iter();
        frames.filter(|frame| frame.kind == 2).collect::<Vec<_>>()
    };
    let catalog = all.into_iter().find(|path| !frames(path).is_empty()).expect("a catalog");
    let frame = frames(&catalog)[1];
    arcfile::rewrite(&catalog, |bytes| arcfile::spoil(bytes, &frame));
    let index = lab.repo().join("index.db");
    let pristine = fs::read(&index).expect("index");
    let judge = |what: &str| {
        let mount = Mount::start(&lab, &lab.repo(), NONE);
        let (mut right, mut lost) = (0, 0);
        for dir in names_in(&lab.src()) {
            let dir = String::from_utf8(dir).expect("UTF-8");
            let shown = mount.latest(&lab.src()).join(&dir);
            match fs::read_dir(&shown).and_then(|list| list.collect::<Result<Vec<_>, _>>()) {
                Ok(_) => {
                    oracle::diff_clean(&lab.src().join(&dir), &shown, &[]);
                    right += 1;
                }
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{what}: {dir}: {error}");
                    lost += 1;
                }
            }
        }
        let out = mount.end();
        assert_eq!(out.code, Some(if told(&out.err()) || lost > 0 { 4 } else { 0 }), "{what}: {}", out.text());
        (right, lost)
    };
    assert_eq!(judge("the index is whole"), (40, 0));
    // Without the index: what the frame describes, nothing else.
    let mut no_head = pristine.clone();
    no_head[100] ^= rng.flip();
    arcfile::overwrite(&index, &no_head);
    let (right, lost) = judge("no index");
    assert!(right + lost == 40 && (1..=15).contains(&lost), "{right} right, {lost} lost");
    // With it: what neither of them has.
    let mut whole = 0;
    for _ in 0..12 {
        let mut bytes = pristine.clone();
        let at = PAGE + rng.below((pristine.len() - PAGE) as u64) as usize;
        bytes[at] ^= rng.flip();
        arcfile::overwrite(&index, &bytes);
        let (right, now_lost) = judge(&format!("byte {at}"));
        assert!(right + now_lost == 40 && now_lost <= lost, "byte {at}: {right} right, {now_lost} lost");
        whole += u32::from(now_lost == 0);
    }
    assert!(whole > 0, "no mount showed all");
}

#[test]
fn an_index_that_is_damaged_under_a_mount_costs_it_nothing() {
    let mut rng = Rng::from_env("under a mount");
    let lab = small_lab(&mut rng);
    let index = lab.repo().join("index.db");
    let in_place = |bytes: &[u8]| {
        use std::io::{Seek, Write};
        let mut file = fs::File::options().write(true).open(&index).expect("open");
        file.rewind().and_then(|()| file.write_all(bytes)).expect("write");
    };
    let mount = lab.mount();
    let newest = |mount: &Mount| oracle::diff_clean(&lab.src(), &mount.latest(&lab.src()), &[]);
    assert!(mount.latest(&lab.src()).join("dir-0").exists());
    let pristine = fs::read(&index).expect("index");
    let mut bad = pristine.clone();
    bad.chunks_mut(PAGE).skip(1).for_each(|page| page[77] ^= 8);
    in_place(&bad);
    newest(&mount);
    // Kept by the kernel or asked anew: of the same inodes.
    let inode = |mount: &Mount| fs::metadata(mount.latest(&lab.src()).join("long")).expect("stat").ino();
    let before = inode(&mount);
    // The index is put right, and a backup goes on with it: the mount shows it.
    in_place(&pristine);
    lab.write("dir-1/new", b"in r1");
    lab.backup();
    newest(&mount);
    // It is damaged again.
    let mut bad = fs::read(&index).expect("index");
    bad.chunks_mut(PAGE).skip(1).for_each(|page| page[78] ^= 8);
    in_place(&bad);
    newest(&mount);
    // A recovery makes another one, which is then followed.
    lab.assay("recover", NONE).ok();
    lab.write("dir-2/new", b"in r2");
    lab.backup();
    newest(&mount);
    assert_eq!(inode(&mount), before);
    for (version, name) in [(0, "long"), (1, "dir-1/new")] {
        let shown = mount.version(version, &lab.src()).join(name);
        assert!(fs::read(shown).expect("read") == fs::read(lab.src().join(name)).expect("read"));
    }
    let out = mount.end().code(4);
    assert!(told(&out.err()), "{}", out.text());
    read_all("after the recovery", &lab, Some(false));
}
