//! Rules of the source tree that the compiler does not know.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module uses only what stands before it.
const ORDER: &[&str] = &[
    "ids",
    "text",
    "error",
    "sync",
    "monitor",
    "catalog",
    "os",
    "scratch",
    "own",
    "crypto",
    "arc",
    "index",
    "ledger",
    "depot",
    "fetch",
    "live",
    "backupdir",
    "parity",
    "memory",
    "dest",
    "copies",
    "store",
    "run",
    "tree",
    "backup",
    "prune",
    "recover",
    "follow",
    "standin",
    "findings",
    "reader",
    "compare",
    "mend",
    "vfs",
    "restore",
    "coverage",
    "selftest",
    "watch",
    "fuse",
    "mount",
    "cli",
    "fuzz",
    "testing",
    // Tests only: they compare docs/ with everything above, and damage whole backup dirs.
    "docs_tests",
    "fault_tests",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file and the module it belongs to.
fn sources() -> Vec<(String, PathBuf, String)> {
    fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("read src") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|e| e == "rs") {
                into.push(path);
            }
        }
    }
    let src = root().join("src");
    let mut files = Vec::new();
    walk(&src, &mut files);
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let first = path.strip_prefix(&src).expect("below src").components().next().expect("a name");
            let module = first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_string();
            let text = fs::read_to_string(&path).expect("read");
            (module, path, text)
        })
        .collect()
}

/// The part before the unit tests, which may use what they like; nothing of a file of tests.
fn without_tests<'a>(path: &Path, text: &'a str) -> &'a str {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    if stem == "tests"
        || stem.ends_with("_tests")
        || path.parent().is_some_and(|dir| dir.ends_with("tests") || dir.ends_with("testing"))
    {
        return "";
    }
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

#[test]
fn a_module_uses_only_what_stands_before_it() {
    let place = |name: &str| ORDER.iter().position(|module| *module == name);
    for (module, path, text) in sources() {
        let Some(own) = place(&module) else {
            assert!(["lib", "main", "docs_tests"].contains(&module.as_str()), "{module} is not in the order");
            continue;
        };
        for (number, line) in without_tests(&path, &text).lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for piece in line.split("crate::").skip(1) {
                let name: String = piece.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if let Some(used) = place(&name) {
                    assert!(used <= own, "{}:{}: {module} uses {name}", path.display(), number + 1);
                }
            }
        }
    }
}

#[test]
fn clients_stay_where_they_belong_and_printing_in_cli() {
    for (module, path, text) in sources() {
        for (number, line) in without_tests(&path, &text).lines().enumerate() {
            let at = format!("{}:{}: {line}", path.display(), number + 1);
            let code = line.split("//").next().unwrap_or_default();
            let has = |needle: &str| code.contains(needle);
            assert!(module == "fuse" || !has("fuser::"), "only fuse.rs knows fuser: {at}");
            let services = ["object_store::", "russh_sftp::", "reqwest::", "tokio::"].iter().any(|needle| has(needle));
            assert!(module == "dest" || !services, "only dest knows the clients of services: {at}");
            let prints = ["println!(", "print!(", "dbg!("].iter().any(|needle| has(needle));
            assert!(["cli", "main"].contains(&module.as_str()) || !prints, "the library never prints: {at}");
        }
    }
}

/// A name in a message may hold anything: only `text::shown` and `cli/json.rs` turn one into text.
#[test]
fn names_are_turned_into_text_in_one_place() {
    // What the system says of itself: a host name, a file system's type, an error of a child of ours; our own man page.
    let not_names = ["src/os/process.rs", "src/os/mounts.rs", "src/cli/completions.rs"];
    for (module, path, text) in sources() {
        let own = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        if ["docs_tests", "fault_tests"].contains(&module.as_str()) || not_names.contains(&own.as_str()) {
            continue;
        }
        for (number, line) in without_tests(&path, &text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let raw = [".display()", "from_utf8_lossy"].iter().any(|needle| code.contains(needle));
            assert!(!raw, "{own}:{}: {line}", number + 1);
        }
    }
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    for (_, path, text) in sources() {
        assert!(text.lines().count() < 700, "{} has {} lines", path.display(), text.lines().count());
        let tests = path.file_stem().is_some_and(|stem| stem == "tests");
        assert!(tests || text.starts_with("//! "), "{} does not say its purpose", path.display());
    }
}

/// The order of writes is in one place: nobody else burns a run's number or writes a commit.
#[test]
fn only_a_run_writes_a_commit() {
    for (module, path, text) in sources() {
        // Those that have them, and tests that cut and forge runs.
        if ["run", "index", "backupdir", "fault_tests"].contains(&module.as_str()) {
            continue;
        }
        for needle in ["write_commit", "reserve_run", "OpenRun::new"] {
            assert!(!without_tests(&path, &text).contains(needle), "{}: {needle}", path.display());
        }
    }
}

/// What is in a backup dir is opened through `own::OwnDir`: nobody else opens a file by its path.
#[test]
fn files_of_the_backup_dir_are_opened_in_one_place() {
    // The source, targets of a restore, /proc and /dev, private temporary files, what the machine remembers, and SQLite's,
    // which go by path.
    let others =
        ["src/os/", "src/index/", "src/scratch.rs", "src/restore", "src/vfs/", "src/docs_tests/", "src/fault_tests/"];
    let others =
        others.iter().chain(&["src/scratch.rs", "src/selftest/drill.rs", "src/mend/originals.rs", "src/mount.rs"]);
    let others: Vec<&str> = others.chain(&["src/cli/mount.rs", "src/fuse.rs", "src/memory.rs"]).copied().collect();
    for (_, path, text) in sources() {
        let own = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        if others.iter().any(|other| own.starts_with(other)) {
            continue;
        }
        for (number, line) in without_tests(&path, &text).lines().enumerate() {
            // A directory that is made durable is opened as well.
            let opens = ["File::open(", "File::create(", "File::options(", "OpenOptions", "fs::write(", "fs::read("];
            let line = line.replace("ArcFile::open(", "");
            let found = opens.iter().any(|needle| line.contains(needle)) && !line.contains("dir.sync_all()");
            assert!(!found, "{own}:{}: {line}", number + 1);
        }
    }
}

/// The bytes of arcs come from a depot, and what is in a frame from the ladder: nobody else opens one.
#[test]
fn a_frame_is_read_in_one_place() {
    for (module, path, text) in sources() {
        let code = without_tests(&path, &text);
        for (needle, places) in [
            ("frame::open(", &["arc", "fetch"][..]),
            (".open_as(", &["depot", "backupdir"]),
            ("repair(", &["arc", "fetch", "mend", "selftest"]),
        ] {
            let is_test = module.ends_with("_tests") || path.ends_with("medium.rs");
            assert!(
                is_test || places.contains(&module.as_str()) || !code.contains(needle),
                "{}: {needle}",
                path.display()
            );
        }
    }
}
