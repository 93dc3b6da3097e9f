//! selftest -v2 against an index whose rows are well sealed and wrong: each change is one finding, by the comparison with
//! the catalogs, and by the rules alone where no catalog is left. And what `--fix` makes of it.

use std::fs;
use std::path::Path;

use super::lab::{Copy, Source, lab};
use super::questions::Reader;
use super::reserved::maintain;
use super::structures::{found, options, shown, v2};
use crate::backup::Options as BackupOptions;
use crate::catalog::{Child, Content, ExtentChunk, Kind, Record, Segment};
use crate::findings::Fixed;
use crate::ids::{ArcName, ArcSerial, BlockId, Dirno, FrameNo, Logid, Version};
use crate::index::vandal::Vandal;
use crate::selftest::{Cause, Finding, Fix, Level, Options, Scope};
use crate::tree::Found;

/// A few versions with all that rules are about: long files, hard links, files and directories that come back.
fn history() -> (Source, Copy) {
    let source = Source::new();
    let long: String = (0..80).map(|n| format!("{n:03} {}\n", "x".repeat(507))).collect();
    source.write("long", long.as_bytes());
    source.write("dir/sub/file", b"deep");
    source.write("dir/gone", b"for a while");
    source.write("plain", b"plain");
    source.write("hard", b"two names");
    fs::hard_link(source.join("hard"), source.join("dir/hard2")).unwrap();
    let copy = Copy::init();
    copy.backup(&source, &BackupOptions { fixed_block: Some(512), ..BackupOptions::default() });
    fs::remove_file(source.join("dir/gone")).unwrap();
    copy.backup(&source, &BackupOptions::default());
    source.write("dir/gone", b"and back");
    source.write("plain", b"changed");
    copy.backup(&source, &BackupOptions::default());
    (source, copy)
}

fn dirno(r: &Reader, path: &Path) -> Dirno {
    match r.tree.find(Version(0), path.as_os_str().as_encoded_bytes()).unwrap() {
        Found::Dir(dirno) => dirno,
        Found::Node(..) => panic!("{}", path.display()),
    }
}

fn logid(r: &Reader, v: u32, path: &Path) -> Logid {
    match r.tree.find(Version(v), path.as_os_str().as_encoded_bytes()).unwrap() {
        Found::Node(logid, _) => logid,
        Found::Dir(_) => panic!("{}", path.display()),
    }
}

fn key(dirno: Dirno, v: u32) -> i64 {
    (dirno.0 << 24 | u64::from(v)) as i64
}

/// Removes what the catalogs say, so that only the rules are left.
fn without_commits(copy: &Copy) {
    for name in copy.arc_names().into_iter().filter(|name| name.number == 0) {
        fs::remove_file(copy.path(&name.to_string())).unwrap();
    }
}

fn only(findings: &[Finding], cause: Cause) -> Vec<Finding> {
    findings.iter().filter(|finding| finding.cause == cause).cloned().collect()
}

#[test]
fn each_broken_rule_is_one_finding_with_and_without_catalogs() {
    let (source, made) = history();
    let files = made.files();
    let r = made.reader();
    let at = |name: &str| source.join(name);
    let (dir, sub) = (dirno(&r, &at("dir")), dirno(&r, &at("dir/sub")));
    let (long, plain, hard) = (logid(&r, 0, &at("long")), logid(&r, 0, &at("plain")), logid(&r, 0, &at("hard")));
    let (back, deep) = (logid(&r, 2, &at("dir/gone")), logid(&r, 0, &at("dir/sub/file")));
    drop(r);
    let entry = |v: &Vandal, parent: Dirno, name: &[u8], from: u32| {
        v.entries().into_iter().find(|e| e.0 == parent && e.1 == name && e.2 == Version(from)).unwrap().3
    };
    let mut failures = Vec::new();
    // What is broken, how, and what the rule says about it.
    type Break<'a> = (&'a str, &'a dyn Fn(&Vandal), &'a str);
    for (what, act, text) in std::convert::identity::<Vec<Break<'_>>>(vec![
        ("two at a time", &|v| v.entry(dir, b"gone", Version(0), with(entry(v, dir, b"gone", 0), None)), "two things"),
        (
            "backwards",
            &|v| v.entry(dir, b"gone", Version(2), with(entry(v, dir, b"gone", 2), Some(1))),
            "ends before it begins",
        ),
        ("no parent", &|v| v.entry(Dirno(999), b"x", Version(0), entry(v, dir, b"gone", 2)), "has no row"),
        ("name gone", &|v| assert_eq!(v.sql("DELETE FROM entries WHERE name=x'706c61696e' AND v_from=2"), 1), "names"),
        (
            "kind",
            &|v| v.entry(dir, b"gone", Version(2), EntryRow { kind: Kind::Fifo, ..entry(v, dir, b"gone", 2) }),
            "another type",
        ),
        ("no node", &|v| assert_eq!(v.sql(&format!("DELETE FROM nodes WHERE id={}", deep.0)), 1), "has no row"),
        ("no dir", &|v| assert_eq!(v.sql(&format!("DELETE FROM dirs WHERE id>>24={}", sub.0)), 1), ""),
        ("count", &|v| v.dir(key(sub, 0), |value| value.state.as_mut().unwrap().children += 1), "names in r0"),
        ("other name", &|v| v.dir(key(sub, 0), |value| value.name = b"else".to_vec()), ""),
        ("loop", &|v| v.dir(key(sub, 0), |value| value.parent = sub), ""),
        ("gone", &|v| v.dir(key(sub, 0), |value| (value.gone, value.state) = (true, None)), ""),
        ("data bytes", &|v| v.node(plain, |node| node.data_bytes -= 1), "data ranges"),
        (
            "block length",
            &|v| {
                v.node(plain, |node| {
                    let Content::Inline(list) = &mut node.content else { panic!() };
                    let Segment::Data { block, len } = list[0] else { panic!() };
                    *list = vec![Segment::Data { block, len: len - 1 }, Segment::Hole { len: 1 }];
                    node.data_bytes -= 1;
                })
            },
            "another length",
        ),
        (
            "no block",
            &|v| {
                v.node(back, |node| {
                    let Content::Inline(list) = &mut node.content else { panic!() };
                    let Segment::Data { block, len } = list[0] else { panic!() };
                    *list = vec![Segment::Data { block: BlockId(block.0 + 100), len }];
                })
            },
            "is not there",
        ),
        ("gap", &|v| assert_eq!(v.sql("DELETE FROM extents WHERE start>0"), 1), "does not tile"),
        ("extents of nobody", &|v| v.extents(plain, 0, &[Segment::Hole { len: 5 }]), "no row that needs one"),
        ("overlap", &|v| v.extents(long, 512, &[Segment::Hole { len: 512 }]), ""),
        ("links", &|v| v.node(hard, |node| node.attr.nlink = 1), "and 1 links"),
        ("frame offset", &|v| v.frames(0, |chunk| chunk.offset += 1), "follow each other"),
        ("frame length", &|v| v.frames(0, |chunk| chunk.frames[1].blocks[0].len += 1), ""),
        ("frame hash", &|v| v.frames(0, |chunk| chunk.frames[1].blocks[0].hash.0[0] ^= 1), "not those of its footer"),
        ("no frames", &|v| assert_eq!(v.sql("DELETE FROM frames WHERE id=0"), 1), "the index lists 0"),
        ("no arc", &|v| assert_eq!(v.sql("DELETE FROM arcs WHERE id=0"), 1), "does not list"),
        ("arc frames", &|v| v.arc(ArcSerial(0), |arc| arc.entry.frames -= 1), ""),
        ("hash block", &|v| assert_eq!(v.sql("UPDATE hashes SET block=block+1 WHERE block=1"), 1), "another one"),
        ("hash gone", &|v| assert_eq!(v.sql("DELETE FROM hashes WHERE block=1"), 1), "block hashes"),
        (
            "moved to nowhere",
            &|v| v.relocation(BlockId(1), BlockId::first(ArcSerial(0), FrameNo(9999))),
            "where it is not",
        ),
        (
            "same name",
            &|v| {
                let mut name = String::new();
                v.version(Version(0), |info| name = info.name.clone());
                v.version(Version(1), |info| info.name = name.clone());
            },
            "which r0 has",
        ),
        ("totals", &|v| v.version(Version(1), |info| info.tree_bytes += 1), "by its record"),
        ("lost until before", &|v| v.lost(key(sub, 1), 1), "until before"),
    ]) {
        let copy = Copy::of(&files);
        act(&copy.vandal());
        let findings = v2(&copy);
        // Where the index says itself that something is lost, the comparison says that it is not.
        let wanted = 1 + usize::from(what == "lost until before");
        if findings.len() != wanted || only(&findings, Cause::Index).len() != wanted {
            failures.push(format!("{what}: {:#?}", shown(&findings)));
        }
        // The catalogs are gone: the rules say it by themselves.
        let alone = Copy::of(&copy.files());
        without_commits(&alone);
        let findings = v2(&alone);
        let own = only(&findings, Cause::Index);
        if (findings.len(), own.len()) != (4, 1) || !own[0].error.to_string().contains(text) {
            failures.push(format!("{what}, rules alone: {:#?}", shown(&findings)));
        }
        // And it is put right.
        let acts = found(&copy, &Options { fix: Fix::Correct, ..options(Level::Structure) });
        let fixed = |f: &Finding| f.fixed == Some(Fixed::IndexRebuilt);
        let left = v2(&copy);
        if !acts.iter().all(fixed) || !left.is_empty() {
            let acts: Vec<_> = acts.iter().map(|f| &f.fixed).collect();
            failures.push(format!("{what}, fixed: {acts:?} {:#?}", shown(&left)));
        }
        let left: Vec<String> = copy.files().into_keys().filter(|name| name.starts_with("index.db")).collect();
        assert!(left.iter().all(|name| !name.contains("bad") && !name.contains("new")), "{what}: {left:?}");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn directories_in_a_ring_are_found() {
    let (source, copy) = (Source::new(), Copy::init());
    source.write("dir/sub/deep/er", b"below a ring");
    copy.backup(&source, &BackupOptions::default());
    let r = copy.reader();
    let [dir, sub, deep] = ["dir", "dir/sub", "dir/sub/deep"].map(|path| dirno(&r, &source.join(path)));
    drop(r);
    let vandal = copy.vandal();
    let row = vandal.entries().into_iter().find(|e| e.0 == dir && e.1 == b"sub").unwrap().3;
    assert_eq!(vandal.sql(&format!("DELETE FROM entries WHERE parent={} AND name=x'737562'", dir.0)), 1);
    vandal.entry(deep, b"sub", Version(0), row);
    vandal.dir(key(sub, 0), |value| value.parent = deep);
    vandal.dir(key(deep, 0), |value| value.state.as_mut().unwrap().children += 1);
    vandal.dir(key(dir, 0), |value| value.state.as_mut().unwrap().children -= 1);
    drop(vandal);
    without_commits(&copy);
    let own = only(&v2(&copy), Cause::Index);
    assert_eq!(own.len(), 1, "{:#?}", shown(&own));
    assert!(own[0].error.to_string().contains("below itself"), "{}", own[0].error);
}

use crate::index::EntryRow;

fn with(row: EntryRow, to: Option<u32>) -> EntryRow {
    EntryRow { v_to: to.map(Version), ..row }
}

#[test]
fn a_removed_row_of_any_table_is_one_finding() {
    let (_, made) = history();
    let files = made.files();
    let tables = [
        ("versions", "id"),
        ("arcs", "id"),
        ("frames", "id"),
        ("hashes", "id"),
        ("nodes", "id"),
        ("dirs", "id"),
        ("extents", "start"),
        ("entries", "rank"),
    ];
    let mut failures = Vec::new();
    for (table, column) in tables {
        let vandal = made.vandal();
        let rows: Vec<i64> = match column {
            "rank" => (0..vandal.entries().len() as i64).collect(),
            _ => vandal.numbers(&format!("SELECT {column} FROM {table}")),
        };
        drop(vandal);
        assert!(!rows.is_empty(), "{table}");
        for row in rows.iter().step_by(rows.len() / 8 + 1) {
            let copy = Copy::of(&files);
            let vandal = copy.vandal();
            if column == "rank" {
                let (parent, name, from, _) = vandal.entries().swap_remove(*row as usize);
                let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
                let which = format!("parent={} AND name=x'{name}' AND v_from={}", parent.0, from.0);
                assert_eq!(vandal.sql(&format!("DELETE FROM entries WHERE {which}")), 1);
            } else {
                assert_eq!(vandal.sql(&format!("DELETE FROM {table} WHERE {column}={row}")), 1);
            }
            drop(vandal);
            let findings = v2(&copy);
            if findings.len() != 1 || findings[0].cause != Cause::Index {
                failures.push(format!("{table} {row}: {:#?}", shown(&findings)));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // The one row of meta: nothing can be checked without it, but it is told.
    let copy = Copy::of(&files);
    copy.vandal().state(|state| state.next_logid -= 1);
    let findings = v2(&copy);
    assert_eq!(findings.len(), 1, "{:#?}", shown(&findings));
}

#[test]
fn unreadable_pages_are_told_by_table_and_range_and_the_rest_is_checked() {
    const PAGE: usize = 4096;
    let source = Source::new();
    for n in 0..300 {
        source.write(&format!("d{}/a file with quite a long name, number {n}", n % 7), format!("{n}").as_bytes());
    }
    let copy = Copy::init();
    copy.backup(&source, &BackupOptions::default());
    let files = copy.files();
    let clean = files["index.db"].clone();
    let (mut told, mut elsewhere, mut failures) = (0, 0, Vec::new());
    for page in 1..clean.len() / PAGE {
        let mut bad = clean.clone();
        bad[page * PAGE + 77] ^= 4;
        let mut files = files.clone();
        files.insert("index.db".into(), bad);
        let copy = Copy::of(&files);
        // A second thing that is wrong must not be hidden.
        let also = ArcName { version: Version(0), number: 1 };
        fs::remove_file(copy.path(&also.to_string())).unwrap();
        let Ok(report) = crate::selftest::run(&copy.open(), &options(Level::Structure), &crate::monitor::Silent) else {
            continue;
        };
        let (mine, other): (Vec<Finding>, Vec<Finding>) =
            report.findings.into_iter().partition(|f| f.cause == Cause::Index);
        // The question that met it, the page itself, and the rows that it hides: one each.
        if mine.len() > 3 {
            failures.push(format!("page {page}: {:#?}", shown(&mine)));
        }
        told += usize::from(mine.iter().any(|f| f.error.to_string().contains("table ")));
        elsewhere += usize::from(other.iter().any(|f| f.error.code() == "ARC_MISSING"));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(told > 20 && elsewhere > 20, "{told} {elsewhere}");
}

#[test]
fn only_what_was_asked_for_is_told() {
    let (source, made) = history();
    let copy = Copy::of(&made.files());
    let r = copy.reader();
    let (plain, deep) = (logid(&r, 0, &source.join("plain")), logid(&r, 0, &source.join("dir/sub/file")));
    drop(r);
    let vandal = copy.vandal();
    vandal.node(plain, |node| node.attr.perm ^= 1);
    vandal.node(deep, |node| node.attr.perm ^= 1);
    drop(vandal);
    fs::remove_file(copy.path("arc.2.1")).unwrap();
    let ask = |rev: Option<&str>, scope: Scope| {
        let findings = found(&copy, &Options { rev: rev.map(String::from), scope, ..options(Level::Structure) });
        let mut paths: Vec<String> = findings
            .iter()
            .map(|f| {
                f.hits.first().map_or(f.error.code().into(), |hit| String::from_utf8_lossy(&hit.path).into_owned())
            })
            .map(|path| path.rsplit('/').next().unwrap().to_string())
            .collect();
        paths.sort();
        paths
    };
    let path = |name: &str| Scope::Paths(vec![source.join(name).into_os_string().into_encoded_bytes()]);
    assert_eq!(ask(None, Scope::Everything), ["ARC_MISSING", "file", "plain"]);
    // The state of `plain` that is wrong is not in r2.
    assert_eq!(ask(Some("r2"), Scope::Everything), ["ARC_MISSING", "file"]);
    assert_eq!(ask(Some("r1"), Scope::Everything), ["ARC_MISSING", "file", "plain"]);
    assert_eq!(ask(None, path("dir")), ["file"]);
    assert_eq!(ask(None, path("plain")), ["plain"]);
    assert_eq!(ask(Some("r2"), path("plain")), Vec::<String>::new());
    let arc = |name: &str| Scope::Arcs(vec![ArcName::parse(name).unwrap()]);
    assert_eq!(ask(None, arc("arc.2.1")), ["ARC_MISSING"]);
    assert_eq!(ask(None, arc("arc.0.1")), Vec::<String>::new());
}

#[test]
fn a_fix_never_loses_what_can_be_read() {
    let copy = Copy::of(&lab().files);
    let reader = copy.reader();
    let node = reader.below(Version(0), b"/").into_values().find_map(|child| match child {
        Child::Node(logid) if reader.tree.node(logid).unwrap().xattrs.is_empty() => Some(logid),
        _ => None,
    });
    drop(reader);
    copy.vandal().node(node.unwrap(), |node| node.attr.perm ^= 1);
    fs::remove_file(copy.path("arc.1.0")).unwrap();
    let before = copy.files();
    let findings = found(&copy, &Options { fix: Fix::Correct, ..options(Level::Structure) });
    let refused = only(&findings, Cause::Index);
    assert_eq!(refused.len(), 1, "{:#?}", shown(&findings));
    let Some(Fixed::Not { why }) = &refused[0].fixed else { panic!("{:?}", refused[0].fixed) };
    assert!(why.contains('4'), "{why}");
    assert!(copy.open().open_index().unwrap().state().unwrap().catalog_bytes_since_base > 1 << 40, "a base is due");
    let names = |files: &super::lab::Files| {
        files.keys().filter(|name| !name.ends_with("-wal")).cloned().collect::<Vec<String>>()
    };
    assert_eq!(names(&copy.files()), names(&before), "the old index stays, and nothing beside it");
}

#[test]
fn a_rule_that_the_catalogs_break_is_never_called_fixed() {
    let (source, copy) = history();
    let r = copy.reader();
    let (plain, deep) = (logid(&r, 0, &source.join("plain")), logid(&r, 0, &source.join("dir/sub/file")));
    drop(r);
    let list = ExtentChunk { logid: plain, start: 0, segments: vec![Segment::Hole { len: 5 }] };
    maintain(&copy.open(), &[], |_| vec![Record::Extents(list)]);
    let fixed = || found(&copy, &Options { fix: Fix::Correct, ..options(Level::Structure) });
    let is_refused = |f: &Finding| matches!(&f.fixed, Some(Fixed::Not { why }) if why.contains("catalogs say so"));
    let findings = fixed();
    assert!(findings.len() == 1 && is_refused(&findings[0]), "{:#?}", shown(&findings));
    assert!(copy.open().open_index().unwrap().state().unwrap().catalog_bytes_since_base < 1 << 40, "a base is no help");
    // Beside something that a new index does put right.
    copy.vandal().node(deep, |node| node.attr.perm ^= 1);
    let findings = fixed();
    let (rebuilt, left): (Vec<_>, Vec<_>) = findings.iter().partition(|f| f.fixed == Some(Fixed::IndexRebuilt));
    assert!(rebuilt.len() == 1 && left.len() == 1 && is_refused(left[0]), "{:#?}", shown(&findings));
    let left = v2(&copy);
    assert!(left.len() == 1 && left[0].error.to_string().contains("no row that needs one"), "{:#?}", shown(&left));
}
