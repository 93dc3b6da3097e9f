//! `contrib/read-arc.py`, written from docs/format.md alone, reads what Assay writes and refuses what was changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::backup::{self, Options};
use crate::backupdir::{BackupDir, Config, arcs};
use crate::monitor::Silent;

/// Debian's python3 with python3-cryptography and python3-zstandard; a missing package is a failed test.
fn reader(args: &[&std::ffi::OsStr]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/read-arc.py");
    let done = Command::new("/usr/bin/python3").arg(script).args(args).output();
    let done = done.unwrap_or_else(|e| panic!("/usr/bin/python3: {e}; install python3"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(!said.contains("ModuleNotFoundError"), "install python3-cryptography and python3-zstandard: {said}");
    done
}

fn lines(done: &Output) -> Vec<Value> {
    done.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect()
}

struct Lab {
    _top: tempfile::TempDir,
    dir: BackupDir,
    source: PathBuf,
    long: Vec<u8>,
}

impl Lab {
    /// Two versions: a long file in many blocks with a hole, a short one that changes, a link, a directory.
    fn new() -> Lab {
        let top = tempfile::tempdir().unwrap();
        let source = fs::canonicalize(top.path()).unwrap().join("source");
        fs::create_dir_all(source.join("sub")).unwrap();
        let long: Vec<u8> = (0..600_000u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57) as u8).collect();
        fs::write(source.join("long"), &long).unwrap();
        fs::hard_link(source.join("long"), source.join("sub/linked")).unwrap();
        fs::write(source.join("short"), "first").unwrap();
        std::os::unix::fs::symlink("short", source.join("pointer")).unwrap();
        let path = top.path().join("backup");
        BackupDir::init(&path, None, &Config::default()).unwrap();
        let dir = BackupDir::open(&path, &|_| None).unwrap();
        let options = Options { paths: vec![source.clone()], fixed_block: Some(4096), ..Options::default() };
        backup::run(&dir, &options, &Silent).unwrap();
        fs::write(source.join("short"), "second, and longer").unwrap();
        fs::remove_file(source.join("pointer")).unwrap();
        backup::run(&dir, &options, &Silent).unwrap();
        Lab { _top: top, dir, source, long }
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("key.conf")
    }
}

#[test]
fn it_reads_every_frame_record_and_file() {
    let lab = Lab::new();
    let names = lab.dir.arcs().list().unwrap();
    assert_eq!(names.iter().filter(|name| name.number == 0).count(), 2);
    let mut kinds = std::collections::BTreeSet::new();
    for name in names {
        let path = lab.dir.path().join(name.to_string());
        let done = reader(&["--records".as_ref(), lab.key().as_os_str(), path.as_os_str()]);
        assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
        let lines = lines(&done);
        let table = crate::fetch::ArcFile::open(lab.dir.arcs(), name, lab.dir.keys()).unwrap();
        let table = table.frame_table(lab.dir.keys()).unwrap();
        let frames: Vec<&Value> = lines.iter().filter(|line| line.get("frame").is_some()).collect();
        let frames: Vec<&Value> = frames.into_iter().filter(|line| line.get("kind").is_some()).collect();
        assert_eq!(frames.len(), table.len());
        for (line, info) in frames.iter().zip(&table) {
            let blocks: Vec<Value> = info
                .blocks
                .iter()
                .map(|block| serde_json::json!({"plain": block.len, "hash": block.hash.to_string()}))
                .collect();
            assert_eq!((&line["blocks"], &line["plain"]), (&blocks.into(), &info.plain_len().into()));
        }
        kinds.extend(lines.iter().filter_map(|line| Some(line.get("record")?.as_str()?.to_string())));
        if name.number == 0 {
            let (commit, digest) = arcs::read_commit(lab.dir.arcs(), name.version, lab.dir.keys()).unwrap();
            for found in lines.iter().filter(|line| line["record"] == "commit") {
                let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!((&found["digest"], &found["run"]), (&hex.into(), &name.version.0.into()));
                let info = commit.version.as_ref().unwrap();
                assert_eq!(found["version"]["name"], *info.name);
                assert_eq!(found["version"]["paths"][0], *String::from_utf8_lossy(&info.paths[0]));
                assert_eq!(found["version"]["tree_bytes"], info.tree_bytes);
                assert_eq!(found["version"]["stored_bytes"], info.stored_bytes);
                assert_eq!(found["next"]["logid"], commit.next_logid);
                for (arc, entry) in found["arcs"].as_array().unwrap().iter().zip(&commit.arcs) {
                    assert_eq!(
                        (&arc["name"], &arc["serial"]),
                        (&entry.name.to_string().into(), &entry.serial.0.into())
                    );
                    assert_eq!(arc["digest"], entry.digest.to_string());
                    let sum =
                        Command::new("sha256sum").arg(lab.dir.path().join(entry.name.to_string())).output().unwrap();
                    assert!(String::from_utf8_lossy(&sum.stdout).starts_with(arc["digest"].as_str().unwrap()));
                }
            }
        }
    }
    for kind in ["commit", "dir", "put", "remove", "extents"] {
        assert!(kinds.contains(kind), "no {kind} record was met: {kinds:?}");
    }
    for (name, wanted) in [("long", lab.long.as_slice()), ("sub/linked", &lab.long), ("short", b"second, and longer")] {
        let path = lab.source.join(name);
        let done = reader(&["--file".as_ref(), path.as_os_str(), lab.key().as_os_str(), lab.dir.path().as_os_str()]);
        assert!(done.stdout == wanted, "{name}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let gone = lab.source.join("pointer");
    let done = reader(&["--file".as_ref(), gone.as_os_str(), lab.key().as_os_str(), lab.dir.path().as_os_str()]);
    assert_eq!(done.status.code(), Some(4), "{}", gone.display());
}

#[test]
fn it_comes_to_the_root_digest_of_each_version_by_itself() {
    let lab = Lab::new();
    let done = reader(&["--roots".as_ref(), lab.key().as_os_str(), lab.dir.path().as_os_str()]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    let versions = lab.dir.open_index().unwrap().versions().unwrap();
    let lines = |root: &dyn Fn(&crate::index::VersionRow) -> String| -> String {
        versions.iter().map(|row| format!("{} {} {}\n", row.version, row.info.name, root(row))).collect()
    };
    assert_eq!(versions.len(), 2);
    assert_eq!(String::from_utf8_lossy(&done.stdout), lines(&|row| row.root.digest.to_string()));
}

#[test]
fn it_refuses_a_flipped_bit_anywhere_and_loses_no_other_frame() {
    let lab = Lab::new();
    let path = lab.dir.path().join("arc.1.2");
    let good = fs::read(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let total = lines(&reader(&[lab.key().as_os_str(), path.as_os_str()])).len() - 1;
    // Header, frame header, ciphertext, footer, trailer.
    for at in [9, 50, 120, 170, good.len() - 150, good.len() - 60, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        let done = reader(&[lab.key().as_os_str(), path.as_os_str()]);
        assert_eq!(done.status.code(), Some(4), "byte {at}");
        let lines = lines(&done);
        let whole = lines.iter().filter(|line| line.get("sha1").is_some()).count();
        assert!(whole + 1 >= total, "byte {at}: {whole} of {total} frames: {lines:?}");
    }
    fs::write(&path, &good).unwrap();
    let other = Lab::new();
    let done = reader(&[other.key().as_os_str(), path.as_os_str()]);
    assert_eq!((done.status.code(), done.stdout.as_slice()), (Some(4), &b""[..]));
    assert!(String::from_utf8_lossy(&done.stderr).contains("another backup dir"));
}
