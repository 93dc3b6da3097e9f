//! Backups in bad circumstances: names that change hands while they are read, blocks larger than what is read ahead,
//! directories whose names are lost, a newest version that was removed.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use super::Rng;
use super::lab::{Copy, Source, assert_same};
use super::layout::Layout;
use super::recoveries;
use super::reserved::maintain;
use super::structures::assert_clean;
use crate::backup::{self, Options};
use crate::catalog::{ArcRole, Record};
use crate::ids::{ArcName, Dirno, Version};
use crate::monitor::{Event, Monitor, Progress};
use crate::tree::Found;

#[test]
fn a_large_fixed_block_holds_a_large_file_whole() {
    let source = Source::new();
    let bytes: Vec<u8> = (0..12_000_000u32).map(|n| (n >> 8) as u8 ^ n as u8).collect();
    source.write("large", &bytes);
    source.write("small", b"small");
    let copy = Copy::init();
    let summary = copy.backup(&source, &Options { fixed_block: Some(16 << 20), ..Options::default() });
    assert_eq!((summary.info.blocks_new, summary.info.errors), (2, 0));
    assert_same(&copy.reader(), Version(0), source.path(), &source.snapshot());
}

/// Runs something when the walk looks at its n-th entry.
struct Meddler<F: Fn() + Send + Sync> {
    at: Mutex<u32>,
    act: F,
    failures: Mutex<Vec<String>>,
}

impl<F: Fn() + Send + Sync> Monitor for Meddler<F> {
    fn progress(&self, _: Progress) {}
    fn event(&self, event: Event<'_>) {
        if let Event::Failure { path, error } = event {
            self.failures.lock().unwrap().push(format!("{} {error}", String::from_utf8_lossy(path)));
        }
    }
    fn interrupted(&self) -> bool {
        let mut at = self.at.lock().unwrap();
        *at = at.wrapping_sub(1);
        if *at == 0 {
            (self.act)();
        }
        false
    }
}

#[test]
fn a_name_that_changes_hands_while_it_waits_gives_its_content_to_no_other_name() {
    // Short and long files are read in different ways.
    for len in [100, 20_000] {
        let source = Source::new();
        source.write("a/first", b"makes the others wait");
        source.write("h1", &vec![b'h'; len]);
        fs::hard_link(source.join("h1"), source.join("h2")).unwrap();
        let copy = Copy::init();
        let (from, to) = (source.join("new"), source.join("h1"));
        let act = move || {
            fs::write(&from, vec![b'N'; len]).unwrap();
            fs::hard_link(&from, from.with_extension("too")).unwrap();
            fs::rename(&from, &to).unwrap();
        };
        // Entries: a, first, h1: all names of the top are listed before the first of them is looked at.
        let meddler = Meddler { at: Mutex::new(2), act, failures: Mutex::default() };
        let options = Options { paths: vec![source.path().to_path_buf()], ..Options::default() };
        // The walk looks at the directories above the source as well.
        let summary = backup::run(&copy.open(), &options, &meddler).unwrap();
        let reader = copy.reader();
        let read = |name: &str| {
            let path: PathBuf = source.join(name);
            match reader.tree.find(Version(0), path.as_os_str().as_encoded_bytes()) {
                Ok(Found::Node(logid, _)) => Some(reader.bytes(logid, 0, u64::MAX).unwrap()),
                _ => None,
            }
        };
        assert_eq!(read("h1"), Some(vec![b'N'; len]), "{len}");
        // Not with the content of another file; that it is missing was told.
        assert_eq!(read("h2"), None, "{len}");
        let failures = meddler.failures.lock().unwrap();
        assert!(failures.len() == 1 && failures[0].contains("h2"), "{failures:?}");
        assert_eq!(summary.info.errors, 1);
        drop(reader);
        copy.backup(&source, &Options::default());
        assert_same(&copy.reader(), Version(1), source.path(), &source.snapshot());
    }
}

#[test]
fn one_inode_number_for_two_files_makes_no_link() {
    use std::os::unix::fs::MetadataExt;
    // Between listing and looking, "second" gets the inode number of "first" in the eyes of the walk: a hard link that is
    // another file by its ctime. Here: a real link, whose ctime changes between two directories.
    let source = Source::new();
    source.write("a/first", b"one content");
    fs::create_dir(source.join("b")).unwrap();
    fs::hard_link(source.join("a/first"), source.join("b/second")).unwrap();
    let copy = Copy::init();
    let file = source.join("b/second");
    let act = move || {
        let mtime = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, b"two content").unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(mtime).unwrap();
    };
    // Entries: the top, a, first, b: by then "first" has been listed, and "b" has not.
    let meddler = Meddler { at: Mutex::new(4), act, failures: Mutex::default() };
    let options = Options { paths: vec![source.path().to_path_buf()], ..Options::default() };
    backup::run(&copy.open(), &options, &meddler).unwrap();
    assert_eq!(fs::metadata(source.join("a/first")).unwrap().nlink(), 2);
    let reader = copy.reader();
    let path: PathBuf = source.join("b/second");
    let Ok(Found::Node(logid, _)) = reader.tree.find(Version(0), path.as_os_str().as_encoded_bytes()) else { panic!() };
    assert_eq!(reader.bytes(logid, 0, u64::MAX).unwrap(), b"two content");
}

#[test]
fn a_lost_directory_stays_an_error_in_later_versions_until_it_is_saved_whole() {
    let source = Source::new();
    for dir in 0..6 {
        for file in 0..30 {
            source.write(&format!("top/d{dir}/f{file}-{}", "x".repeat(60)), b"content");
        }
        source.write(&format!("top/d{dir}/sub/inner"), b"inner");
    }
    source.write("other/file", b"other");
    let copy = Copy::init();
    copy.backup(&source, &Options::default());
    let dir = copy.open();
    let index = dir.open_index().unwrap();
    let catalog = index.arcs().unwrap().into_iter().map(|row| row.entry).find(|e| e.role == ArcRole::Catalog).unwrap();
    drop(index);
    let pristine = fs::read(copy.path(&catalog.name.to_string())).unwrap();
    let source_path = source.path().as_os_str().as_encoded_bytes().to_vec();
    let mut cases = 0;
    for frame in 0..catalog.frames {
        let copy = Copy::without_index(&copy.files());
        damage(&copy, catalog.name, frame);
        let got = copy.recover();
        let lost: Vec<Dirno> = got.lost.iter().flat_map(|l| &l.frame.dirs).map(|(first, _)| *first).collect();
        // What is given, and the way to it, is told anew; the rest is carried over.
        copy.make_a_base_due();
        let (summary, _) = copy.try_backup(&[&source.join("other")], &Options::default()).unwrap();
        assert!(summary.base);
        let alone = from_the_base_alone(&copy);
        for (copy, how) in [(&copy, "carried over"), (&alone, "from the base alone")] {
            let reader = copy.reader();
            let find = |name: &str| {
                let path = [&source_path[..], b"/", name.as_bytes()].concat();
                reader.tree.find(Version(1), &path)
            };
            assert!(find("other/file").is_ok(), "{how}, frame {frame}");
            for d in 0..6 {
                for name in
                    [format!("top/d{d}"), format!("top/d{d}/f3-{}", "x".repeat(60)), format!("top/d{d}/sub/inner")]
                {
                    // There, or an error: never "not there".
                    let code = find(&name).err().map(|e| e.code());
                    assert!(code != Some("NO_PATH"), "{how}, frame {frame}: {name}");
                    cases += u32::from(code.is_some());
                }
                let Ok(Found::Dir(dirno)) = find(&format!("top/d{d}")) else { continue };
                match reader.names(Version(1), dirno) {
                    Ok(names) => assert_eq!(names.len(), 31, "{how}, frame {frame}: d{d}"),
                    Err(e) => assert!(e.is_damage() && lost.contains(&dirno), "{how}, frame {frame}: d{d}: {e}"),
                }
            }
        }
        // Saved whole, it is whole; and so is all once the arc is back.
        copy.backup(&source, &Options::default());
        assert_same(&copy.reader(), Version(2), source.path(), &source.snapshot());
        fs::remove_file(copy.path(&catalog.name.to_string())).unwrap();
        fs::write(copy.path(&catalog.name.to_string()), &pristine).unwrap();
        copy.lose_index();
        let got = copy.recover();
        assert!(got.lost.is_empty() && got.lost_runs.is_empty());
        for v in [0, 2] {
            assert_same(&copy.reader(), Version(v), source.path(), &source.snapshot());
        }
    }
    assert!(cases > 0, "nothing was lost");
}

/// The same, as an index has it that was made without the first commit.
fn from_the_base_alone(copy: &Copy) -> Copy {
    let alone = Copy::of(&copy.files());
    alone.lose_index();
    for name in alone.arc_names().into_iter().filter(|name| name.version == Version(0) && name.number == 0) {
        fs::remove_file(alone.path(&name.to_string())).unwrap();
    }
    alone.recover();
    alone
}

/// Flips bits in the middle of a frame.
fn damage(copy: &Copy, name: ArcName, frame: u32) {
    let hit = Layout::of(&copy.open(), name).frames[frame as usize].clone();
    let mut bytes = fs::read(copy.path(&name.to_string())).unwrap();
    bytes[hit.start + hit.len() / 2] ^= 0x5a;
    recoveries::put(copy, &name.to_string(), &bytes);
}

#[test]
fn what_only_a_removed_newest_version_had_does_not_come_back() {
    let source = Source::new();
    source.write("a", b"in r0");
    let copy = Copy::init();
    copy.backup(&source, &Options::default());
    source.write("b", b"in r1 only");
    source.write("dir/c", b"in r1 only");
    copy.backup(&source, &Options::default());
    maintain(&copy.open(), &[], |_| vec![Record::RemoveVersion(Version(1))]);
    fs::remove_file(source.join("b")).unwrap();
    fs::remove_dir_all(source.join("dir")).unwrap();
    let summary = copy.backup(&source, &Options::default());
    assert_eq!(summary.version, Some(Version(3)));
    assert_same(&copy.reader(), Version(3), source.path(), &source.snapshot());
    copy.lose_index();
    copy.recover();
    assert_same(&copy.reader(), Version(3), source.path(), &source.snapshot());
}

#[test]
fn a_dry_run_writes_nothing_and_waits_for_nobody() {
    let source = Source::new();
    source.write("a", b"a");
    let copy = Copy::init();
    copy.backup(&source, &Options::default());
    // What a cut run would have left.
    fs::write(copy.path("arc.7.1"), b"cut").unwrap();
    source.write("b", b"new");
    let before = copy.files();
    let dir = copy.open();
    let _busy = dir.lock().unwrap();
    let (summary, _) = copy.try_backup(&[source.path()], &Options { dry_run: true, ..Options::default() }).unwrap();
    assert_eq!((summary.version, summary.info.new), (None, 1));
    assert!(copy.files() == before);
}

/// Does something each time that the run asks whether it is to stop, which it does for each piece of a long file.
struct Busy<F: Fn(u32) + Send + Sync>(Mutex<u32>, F);

impl<F: Fn(u32) + Send + Sync> Monitor for Busy<F> {
    fn progress(&self, _: Progress) {}
    fn event(&self, _: Event<'_>) {}
    fn interrupted(&self) -> bool {
        let mut asked = self.0.lock().unwrap();
        *asked += 1;
        (self.1)(*asked);
        false
    }
}

#[test]
fn a_long_file_that_is_read_again_or_changes_meanwhile_leaves_no_list_behind() {
    let blocks = |seed: u64, count: usize| Rng::new(seed).noise(count * 4096);
    let options = |full: bool| Options { full, fixed_block: Some(4096), ..Options::default() };
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    for case in ["full", "racy", "grows once", "grows for ever", "is cut", "becomes short"] {
        let source = Source::new();
        source.write("dir/long", &blocks(1, 200));
        source.write("other", &blocks(2, 100));
        let copy = Copy::init();
        let path = source.join("dir/long");
        let change = |asked: u32| match case {
            "grows once" if asked == 40 => put(&path, &blocks(3, 210)),
            "grows for ever" if asked.is_multiple_of(20) => put(&path, &blocks(u64::from(asked), 200 + asked as usize)),
            "is cut" if asked == 90 => put(&path, &blocks(1, 150)),
            "becomes short" if asked == 100 => put(&path, b"short"),
            _ => {}
        };
        let run = |full: bool| {
            let options = Options { paths: vec![source.path().to_path_buf()], ..options(full) };
            backup::run(&copy.open(), &options, &Busy(Mutex::new(0), change)).unwrap()
        };
        let first = run(false);
        assert_clean(&copy, &format!("{case}, first run"));
        if case == "full" {
            // Old enough not to be racy.
            fs::File::open(&path).unwrap().set_modified(old).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(150));
        }
        let second = run(case == "full");
        assert_clean(&copy, &format!("{case}, second run"));
        copy.make_a_base_due();
        assert!(run(true).base && first.base && !second.base);
        assert_clean(&copy, &format!("{case}, base"));
        copy.lose_index();
        copy.recover();
        assert_clean(&copy, &format!("{case}, recovered"));
    }
}

fn put(path: &std::path::Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

/// A file whose list of blocks is lost alone is known, and as it was; the next version has it whole all the same.
#[test]
fn a_file_whose_list_of_blocks_is_lost_is_saved_again() {
    let source = Source::new();
    // Its list fills many frames by itself.
    source.write("many", &Rng::from_env().noise(4_000_000));
    source.write("few", b"a few bytes");
    let copy = Copy::init();
    copy.backup(&source, &Options::default());
    super::runs::let_it_age();
    let (files, layouts) = (copy.files(), Layout::all(&copy));
    let catalog = layouts.iter().find(|arc| arc.role() == ArcRole::Catalog).unwrap();
    assert!(catalog.frames.len() > 3, "{:?}", catalog.frames);
    let name = catalog.name.to_string();
    let mut lists = 0;
    for frame in &catalog.frames {
        let mut damaged = files.clone();
        damaged.get_mut(&name).unwrap()[frame.end - 1] ^= 0x10;
        let copy = Copy::without_index(&damaged);
        let got = copy.recover();
        assert_eq!(got.lost.len(), 1, "the fault did not fire");
        lists += usize::from(got.lost[0].frame.dirs.is_empty());
        let version = copy.backup(&source, &Options::default()).version.unwrap();
        assert_same(&copy.reader(), version, source.path(), &source.snapshot());
        // And is not stored a third time.
        let again = copy.backup(&source, &Options::default());
        assert_eq!((again.info.changed, again.info.blocks_new), (0, 0));
    }
    assert!(lists > 1, "{lists} of {} frames have nothing but lists", catalog.frames.len());
}

/// It is not looked at, and a base is to tell it anew.
#[test]
fn a_base_carries_a_file_whose_list_of_blocks_is_lost_and_says_so() {
    let source = Source::new();
    let many = Rng::from_env().noise(4_000_000);
    source.write("seen/few", b"a few bytes");
    source.write("unseen/many", &many);
    source.write("unseen/other", b"other");
    let copy = Copy::init();
    copy.backup(&source, &Options::default());
    super::runs::let_it_age();
    let (files, layouts) = (copy.files(), Layout::all(&copy));
    let catalog = layouts.iter().find(|arc| arc.role() == ArcRole::Catalog).unwrap();
    let name = catalog.name.to_string();
    let source_path = source.path().as_os_str().as_encoded_bytes().to_vec();
    let mut lists = 0;
    for frame in &catalog.frames {
        let mut damaged = files.clone();
        damaged.get_mut(&name).unwrap()[frame.end - 1] ^= 0x10;
        let copy = Copy::without_index(&damaged);
        let got = copy.recover();
        assert_eq!(got.lost.len(), 1, "the fault did not fire");
        if !got.lost[0].frame.dirs.is_empty() {
            continue;
        }
        copy.make_a_base_due();
        let (summary, told) = copy.try_backup(&[&source.join("seen")], &Options::default()).unwrap();
        assert!(summary.base);
        let alone = from_the_base_alone(&copy);
        let path = |name: &str| [&source_path[..], b"/unseen/", name.as_bytes()].concat();
        let mut lost = Vec::new();
        for copy in [&copy, &alone] {
            let reader = copy.reader();
            let find = |name: &str| match reader.tree.find(Version(1), &path(name)) {
                Ok(Found::Node(logid, _)) => logid,
                other => panic!("{other:?}"),
            };
            assert_eq!(reader.bytes(find("other"), 0, u64::MAX).unwrap(), b"other");
            let starts = (0..many.len() as u64).step_by(20_000);
            let is_lost = |start: &u64| match reader.bytes(find("many"), *start, 1000) {
                Ok(bytes) => {
                    assert_eq!(bytes, many[*start as usize..][..bytes.len()]);
                    false
                }
                Err(error) => {
                    assert_eq!(error.code(), "EXTENTS_LOST");
                    true
                }
            };
            lost.push(starts.filter(is_lost).count());
        }
        assert!(lost[0] == lost[1] && lost[0] < many.len() / 20_000, "what is known is carried: {lost:?}");
        assert_eq!((told.failures.len(), summary.info.errors), (usize::from(lost[0] > 0), u64::from(lost[0] > 0)));
        assert!(told.failures.iter().all(|what| what.contains("unseen/many")), "{:?}", told.failures);
        lists += usize::from(lost[0] > 0);
        // Looked at, it is saved again.
        for copy in [&copy, &alone] {
            let version = copy.backup(&source, &Options::default()).version.unwrap();
            assert_same(&copy.reader(), version, source.path(), &source.snapshot());
        }
    }
    assert!(lists > 1, "{lists} of {} frames have nothing but lists", catalog.frames.len());
}
