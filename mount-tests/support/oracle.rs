//! Judges that know nothing of Assay: diff, rsync, tar, find, getfattr, getfacl.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{is_root, tool};

/// Every field that `find` can print and a backup can keep; records end in NUL. `%i`, the device, access times
/// and allocated blocks are the file system's own.
const FIND_FIELDS: &str = "%y %m %U %G %n %s %T@ %C@ [%l] %P\\0";
const FIND_FIELDS_NO_CTIME: &str = "%y %m %U %G %n %T@ [%l] %P\\0";

#[track_caller]
fn same(what: &str, left: &Path, right: &Path, a: Vec<Vec<u8>>, b: Vec<Vec<u8>>) {
    if a == b {
        return;
    }
    let show = |from: &[Vec<u8>], other: &[Vec<u8>]| -> String {
        let other: std::collections::BTreeSet<&Vec<u8>> = other.iter().collect();
        let lines: Vec<String> = from
            .iter()
            .filter(|line| !other.contains(line))
            .take(8)
            .map(|line| {
                let mut text = String::from_utf8_lossy(line).into_owned();
                text.truncate(text.char_indices().nth(400).map_or(text.len(), |(at, _)| at));
                text
            })
            .collect();
        lines.join("\n  ")
    };
    panic!(
        "{what} differs\nonly {}:\n  {}\nonly {}:\n  {}\n({} and {} records)",
        left.display(),
        show(&a, &b),
        right.display(),
        show(&b, &a),
        a.len(),
        b.len()
    );
}

/// `find -printf` of everything below `dir`, sorted.
#[track_caller]
pub fn listing(dir: &Path) -> Vec<Vec<u8>> {
    listing_of(dir, FIND_FIELDS)
}

/// Without ctime and sizes of directories: what a copy or a restore can have.
#[track_caller]
pub fn listing_no_ctime(dir: &Path) -> Vec<Vec<u8>> {
    listing_of(dir, FIND_FIELDS_NO_CTIME)
}

#[track_caller]
pub fn listing_of(dir: &Path, fields: &str) -> Vec<Vec<u8>> {
    let out = tool("find").arg(dir).arg("-printf").arg(fields).ok();
    assert!(out.stderr.is_empty(), "find: {}", out.err());
    let mut records: Vec<Vec<u8>> =
        out.stdout.split(|byte| *byte == 0).filter(|r| !r.is_empty()).map(<[u8]>::to_vec).collect();
    records.sort();
    records
}

#[track_caller]
pub fn same_listing(a: &Path, b: &Path) {
    same("find -printf", a, b, listing(a), listing(b));
}

#[track_caller]
pub fn same_as_listing(saved: &[Vec<u8>], b: &Path) {
    same("find -printf", Path::new("then"), b, saved.to_vec(), listing(b));
}

#[track_caller]
pub fn same_listing_no_ctime(a: &Path, b: &Path) {
    same("find -printf", a, b, listing_no_ctime(a), listing_no_ctime(b));
}

/// `diff -r`; `skip` are names that diff can't compare (fifos, devices).
#[track_caller]
pub fn diff_clean(a: &Path, b: &Path, skip: &[&str]) {
    let out = tool("diff")
        .args(["-r", "--no-dereference"])
        .args(skip.iter().map(|name| format!("--exclude={name}")))
        .arg(a)
        .arg(b)
        .run();
    assert!(out.code == Some(0) && out.text().is_empty(), "diff -r: exit {:?}\n{}", out.code, out.text());
}

/// `rsync -aHAXnc --itemize-changes --delete` must have nothing to do, in both directions.
#[track_caller]
pub fn rsync_clean(a: &Path, b: &Path) {
    for (from, to) in [(a, b), (b, a)] {
        let mut source = from.as_os_str().to_owned();
        source.push("/");
        let mut dest = to.as_os_str().to_owned();
        dest.push("/");
        let out = tool("rsync")
            .args(["-aHAXnc", "--numeric-ids", "--itemize-changes", "--delete"])
            .arg(source)
            .arg(dest)
            .run();
        assert!(
            out.code == Some(0) && out.text().is_empty(),
            "rsync {} -> {}: exit {:?}\n{}",
            from.display(),
            to.display(),
            out.code,
            out.text()
        );
    }
}

/// `tar --create` here, `tar --compare` there, in both directions.
#[track_caller]
pub fn tar_clean(a: &Path, b: &Path, scratch: &Path) {
    let mut all = vec!["--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sparse", "--format=posix"];
    if is_root() {
        all.push("--same-owner");
    }
    let archive = scratch.join("oracle.tar");
    for (from, to) in [(a, b), (b, a)] {
        let made = tool("tar").args(&all).arg("--create").arg("--file").arg(&archive).arg("-C").arg(from).arg(".").ok();
        // tar has no way to keep a socket and says so.
        let complaints: Vec<&str> = std::str::from_utf8(&made.stderr)
            .unwrap_or("not UTF-8")
            .lines()
            .filter(|line| !line.ends_with("socket ignored"))
            .collect();
        assert!(complaints.is_empty(), "tar --create {}: {complaints:?}", from.display());
        let out = tool("tar").args(&all).arg("--compare").arg("--file").arg(&archive).arg("-C").arg(to).run();
        assert!(
            out.code == Some(0) && out.text().is_empty(),
            "tar --compare {} with {}: exit {:?}\n{}",
            from.display(),
            to.display(),
            out.code,
            out.text()
        );
    }
    std::fs::remove_file(archive).expect("rm");
}

/// Paragraphs of getfattr or getfacl, sorted, for the order of a directory is free.
fn paragraphs(bytes: &[u8]) -> Vec<Vec<u8>> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let mut list: Vec<Vec<u8>> = text.split("\n\n").map(|p| p.trim().as_bytes().to_vec()).collect();
    list.retain(|p| !p.is_empty());
    list.sort();
    list
}

#[track_caller]
pub fn xattr_dump(dir: &Path) -> Vec<Vec<u8>> {
    let out = tool("getfattr").args(["-R", "-P", "-h", "-d", "-m", "-", "-e", "hex", "."]).dir(dir).ok();
    assert!(out.stderr.is_empty(), "getfattr: {}", out.err());
    paragraphs(&out.stdout)
}

#[track_caller]
pub fn acl_dump(dir: &Path) -> Vec<Vec<u8>> {
    let out = tool("getfacl").args(["-R", "-P", "-n", "."]).dir(dir).ok();
    assert!(out.stderr.is_empty(), "getfacl: {}", out.err());
    paragraphs(&out.stdout)
}

#[track_caller]
pub fn same_xattrs(a: &Path, b: &Path) {
    same("getfattr -R -d -m -", a, b, xattr_dump(a), xattr_dump(b));
}

#[track_caller]
pub fn same_acls(a: &Path, b: &Path) {
    same("getfacl -R", a, b, acl_dump(a), acl_dump(b));
}

/// Inode of everything below `dir`, by path relative to it.
#[track_caller]
pub fn inodes(dir: &Path) -> BTreeMap<Vec<u8>, (u64, bool)> {
    fn walk(base: &Path, dir: &Path, into: &mut BTreeMap<Vec<u8>, (u64, bool)>) {
        for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.expect("entry").path();
            let meta = path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let rel = path.strip_prefix(base).expect("below").as_os_str().as_bytes().to_vec();
            into.insert(rel, (meta.ino(), meta.is_dir()));
            if meta.is_dir() {
                walk(base, &path, into);
            }
        }
    }
    let mut map = BTreeMap::new();
    walk(dir, dir, &mut map);
    map
}

/// Names that share an inode, as sets; directories left out.
#[track_caller]
pub fn hard_link_sets(dir: &Path) -> Vec<Vec<Vec<u8>>> {
    let mut sets: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    for (path, (inode, is_dir)) in inodes(dir) {
        if !is_dir {
            sets.entry(inode).or_default().push(path);
        }
    }
    let mut sets: Vec<Vec<Vec<u8>>> = sets.into_values().filter(|set| set.len() > 1).collect();
    sets.sort();
    sets
}

/// All of them: nothing may differ between the two trees.
#[track_caller]
pub fn identical(source: &Path, shown: &Path, scratch: &Path) {
    same_listing(source, shown);
    diff_clean(source, shown, &["special"]);
    rsync_clean(source, shown);
    tar_clean(source, shown, scratch);
    same_xattrs(source, shown);
    same_acls(source, shown);
    let (a, b) = (hard_link_sets(source), hard_link_sets(shown));
    assert_eq!(a, b, "hard links of {} and {}", source.display(), shown.display());
}
