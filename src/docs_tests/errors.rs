//! docs/errors.md: every code with its errno and exit code.

use std::collections::{BTreeMap, BTreeSet};

use super::{file, table};
use crate::error::{Damage, Error, Exit, Foreign, Place, Trouble};
use crate::ids::{ArcDigest, ArcName, BlockHash, Dirno, FileHash, Logid, Version};

fn all_damage() -> Vec<Damage> {
    let every = vec![
        Damage::Missing,
        Damage::Truncated { wanted_bytes: 2, found_bytes: 1 },
        Damage::BadHeader,
        Damage::BadTrailer,
        Damage::WrongFrame,
        Damage::BadTag,
        Damage::BadCompression,
        Damage::HashMismatch { expected: BlockHash([0; 20]), found: BlockHash([1; 20]) },
        Damage::BadRecord("what"),
        Damage::WrongSum(Box::new((ArcDigest([0; 32]), ArcDigest([1; 32])))),
        Damage::Unreadable(libc::EIO),
    ];
    every
}

fn all_trouble() -> Vec<Trouble> {
    let what = || String::from("what");
    vec![
        Trouble::Absent(what()),
        Trouble::NotFound,
        Trouble::Exists,
        Trouble::Denied(what()),
        Trouble::Full(what()),
        Trouble::Busy { what: what().into(), retry_after_s: None },
        Trouble::Failed(what()),
        Trouble::Refused(what()),
        Trouble::TimedOut { what: "what", limit_s: 1 },
        Trouble::WrongRange { wanted: what().into(), found: what().into() },
        Trouble::Checksum { source: what().into(), found: what().into() },
        Trouble::Algorithm { source: what().into(), found: what().into() },
        Trouble::Diverged(what()),
        Trouble::InUse,
        Trouble::Unmarked,
        Trouble::NotOurs(what()),
        Trouble::Behind(String::new()),
        Trouble::NotEmpty(what()),
    ]
}

fn all_errors() -> Vec<Error> {
    let path = || std::path::PathBuf::from("/p");
    let place = || Place { arc: ArcName { version: Version(3), number: 1 }, frame: None, block: None, offset: 0 };
    let (what, version) = (String::from("what"), Version(3));
    let mut every = vec![
        Error::Io { op: "read", path: path(), errno: libc::ENOENT },
        Error::IndexDamaged { path: path(), what: what.clone() },
        Error::IndexRow { path: path(), what: what.clone() },
        Error::IndexIo { path: path(), what: what.clone() },
        Error::IndexTooNew { path: path(), found: 2, known: 1 },
        Error::DirectoryLost { dirno: Dirno(1), version },
        Error::TreeMismatch { version, dirno: Dirno(1), what: what.clone() },
        Error::ExtentsLost { logid: Logid(16), offset: 0 },
        Error::FileHashMismatch { path: b"/p".to_vec(), expected: FileHash([0; 20]), found: FileHash([1; 20]) },
        Error::NotFixed { path: path(), what: what.clone() },
        Error::Stray { path: path(), what: what.clone() },
        Error::DirShared { path: path(), what: what.clone() },
        Error::FileForeign { path: path(), why: Foreign::Link },
        Error::NotABackupDir { path: path() },
        Error::NotEmpty { path: path() },
        Error::Locked { path: path(), holder: "1".into() },
        Error::KeyWrong { path: path() },
        Error::KeyDamaged { path: path(), what: "what" },
        Error::OtherFormat { path: path(), found: 1, known: 2 },
        Error::KeyBare { path: path() },
        Error::PassphraseWrong { path: path() },
        Error::PassphraseMissing { path: path() },
        Error::PassphraseSource { what: what.clone() },
        Error::Config { path: path(), what: what.clone() },
        Error::CommitDamaged { run: version, what: what.clone() },
        Error::ParityShort { path: path(), what: what.clone() },
        Error::Usage(what.clone()),
        Error::AllExcluded { excluded: 1 },
        Error::NoVersion("r9".into()),
        Error::NoPath { path: b"/p".to_vec(), version },
        Error::DeleteUnsafe { path: b"/p".to_vec(), version, run: version, errors: 1 },
        Error::Protected { what: what.clone() },
        Error::ArcDropped { arc: ArcName { version, number: 1 } },
        Error::VersionGone { version },
        Error::PathGone { version },
        Error::HistoryChanged { path: path(), what: what.clone() },
        Error::SelfCheck { what: what.clone() },
        Error::Unsupported { path: path(), what: what.clone() },
        Error::NotKept { path: path(), what: what.clone() },
        Error::Mount { path: path(), what },
        Error::ArcAway { arc: ArcName { version, number: 1 } },
        Error::TimedOut,
        Error::DownloadLimit { limit_bytes: 1 },
        Error::Interrupted,
    ];
    let of_usb = |trouble| Error::Dest { dest: "usb".into(), object: "".into(), trouble };
    every.extend(all_trouble().into_iter().map(of_usb));
    every.extend(all_damage().into_iter().map(|damage| Error::Arc { place: place(), damage }));
    every
}

/// Codes as the sources spell them: a new variant can't be forgotten above.
fn codes_in_source() -> BTreeSet<String> {
    [file("src/error.rs"), file("src/error/trouble.rs")]
        .concat()
        .lines()
        .filter_map(|line| Some(line.split_once("=> \"")?.1.split_once('"')?.0.to_string()))
        .filter(|code| code.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect()
}

fn errno_name(errno: i32) -> &'static str {
    match errno {
        libc::EIO => "EIO",
        libc::ENOENT => "ENOENT",
        libc::ESTALE => "ESTALE",
        libc::EINTR => "EINTR",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::EINVAL => "EINVAL",
        libc::EBUSY => "EBUSY",
        _ => panic!("errno {errno} has no name here"),
    }
}

#[test]
fn every_code_is_documented_with_its_errno_and_exit_code() {
    let text = file("docs/errors.md");
    let mut documented = BTreeMap::new();
    for (heading, header) in [
        ("## Damage of arcs", "| code | what is wrong | errno | exit | what to do |"),
        ("## Damage of the index and of the catalog", "| code | what is wrong | errno | exit | what to do |"),
        ("## Destinations", "| code | meaning | errno | exit | what to do |"),
        ("## Other errors", "| code | meaning | errno | exit | what to do |"),
    ] {
        for row in table(&text, heading, header) {
            let [code, meaning, errno, exit, todo] = row.try_into().unwrap();
            assert!(!meaning.is_empty() && !todo.is_empty(), "{code}");
            assert_eq!(documented.insert(code.clone(), (errno, exit)), None, "{code} stands there twice");
        }
    }
    let coded: BTreeMap<String, (String, String)> = all_errors()
        .iter()
        .map(|e| (e.code().to_string(), (errno_name(e.errno()).to_string(), (e.exit_code() as u8).to_string())))
        .collect();
    assert_eq!(coded, documented);
    assert_eq!(coded.into_keys().collect::<BTreeSet<_>>(), codes_in_source());
}

#[test]
fn damage_is_exactly_what_exits_4() {
    assert!(all_errors().iter().all(|e| e.is_damage() == (e.exit_code() == Exit::Damage)));
}

#[test]
fn every_exit_code_is_documented() {
    let documented: BTreeSet<u8> = table(&file("docs/errors.md"), "## Exit codes", "| exit | meaning |")
        .iter()
        .map(|row| row.first().unwrap().parse().unwrap())
        .collect();
    let source = file("src/error.rs");
    let (_, body) = source.split_once("pub enum Exit {").unwrap();
    let coded: BTreeSet<u8> = body
        .split_once('}')
        .unwrap()
        .0
        .lines()
        .filter_map(|line| line.split_once(" = ")?.1.trim_end_matches(',').parse().ok())
        .collect();
    assert_eq!(coded, documented);
    let help = <crate::cli::Cli as clap::CommandFactory>::command().get_after_help().unwrap().to_string();
    let words: Vec<&str> = help.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    assert!(coded.iter().all(|code| words.contains(&code.to_string().as_str())), "{help}");
}
