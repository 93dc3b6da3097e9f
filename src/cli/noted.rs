//! Lines of `assay versions --digest` that were noted elsewhere, and what became of the versions since.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use crate::backupdir::{BackupDir, arcs};
use crate::error::{Error, Result};
use crate::ids::{TreeDigest, Version};
use crate::tree::Tree;

/// A noted version.
pub struct Noted {
    pub version: Version,
    pub name: String,
    pub root: TreeDigest,
}

/// What became of it.
pub enum Fate {
    AsNoted,
    /// `rm` or `retain` removed it.
    Removed,
    /// A run removed paths from it; before it was as noted.
    LostPaths(Version),
    Missing,
    Other(TreeDigest),
    OtherName(String),
}

impl Fate {
    pub fn is_wrong(&self) -> bool {
        matches!(self, Fate::Missing | Fate::Other(_) | Fate::OtherName(_))
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fate::AsNoted => write!(f, "as noted"),
            Fate::Removed => write!(f, "removed on purpose, by `rm` or `retain`"),
            Fate::LostPaths(run) => write!(f, "paths were removed from it on purpose, by {run}; else as noted"),
            Fate::Missing => write!(f, "IS NOT HERE: the backup dir is older than the note, or another one"),
            Fate::Other(found) => write!(f, "IS ANOTHER: its root digest is {found}"),
            Fate::OtherName(found) => write!(f, "IS ANOTHER: the version of this number is {found}"),
        }
    }
}

/// Reads the lines that were given: one of them, the name of a file of them, or `-`.
pub fn lines(given: &OsStr) -> Result<Vec<Noted>> {
    if let Some(one) = given.to_str().and_then(parse) {
        return Ok(vec![one]);
    }
    let text = match given.as_bytes() {
        b"-" => std::io::read_to_string(std::io::stdin().lock()),
        _ => std::fs::read_to_string(given),
    };
    let text = text.map_err(|e| Error::io("read", given, &e))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let bad =
        |line: &str| Error::Usage(format!("no line of `assay versions --digest`: {}", crate::text::one_line(line)));
    let noted: Vec<Noted> = lines.map(|line| parse(line).ok_or_else(|| bad(line))).collect::<Result<_>>()?;
    // Nothing compared is nothing proven.
    if noted.is_empty() { Err(Error::Usage("no line to compare with was given".into())) } else { Ok(noted) }
}

fn parse(line: &str) -> Option<Noted> {
    let mut words = line.split_whitespace();
    let (version, name, root) = (words.next()?.parse().ok()?, words.next()?.to_string(), words.next()?);
    let mut digest = [0; 32];
    if words.next().is_some() || root.len() != 64 || !root.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(root.get(at..at + 2)?, 16).ok()?;
    }
    Some(Noted { version, name, root: TreeDigest(digest) })
}

/// Looks a noted version up.
pub fn fate(dir: &BackupDir, tree: &Tree, noted: &Noted) -> Result<Fate> {
    let Some((row, removed)) = tree.index().version_ever(noted.version)? else { return Ok(Fate::Missing) };
    if row.info.name != noted.name {
        return Ok(Fate::OtherName(row.info.name));
    }
    // A version that is shown is proven down to its root.
    let root = if removed { row.root.digest } else { tree.root(noted.version)? };
    if root == noted.root {
        return Ok(if removed { Fate::Removed } else { Fate::AsNoted });
    }
    // Its own commit record says what it was; a later one that paths went.
    let was = || -> Result<bool> {
        let (commit, _) = arcs::read_commit(dir.arcs(), noted.version, dir.keys())?;
        Ok(commit.roots.contains(&(noted.version, noted.root)))
    };
    if row.root.set_by != noted.version && was()? {
        return Ok(if removed { Fate::Removed } else { Fate::LostPaths(row.root.set_by) });
    }
    Ok(Fate::Other(root))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::Options;
    use crate::ids::Version;
    use crate::monitor::Silent;
    use crate::prune::{Mode, Protection, paths, versions};
    use crate::testing::lab::{Copy, Source};
    use crate::tree::View;

    fn noted(copy: &Copy) -> Vec<Noted> {
        let tree = Tree::of(&copy.open(), copy.open().open_index().unwrap(), View::Whole);
        let line = |v: Version, name: &str| format!("{v} {name} {}\n", tree.root(v).unwrap());
        let rows = tree.versions().unwrap();
        rows.iter().map(|row| parse(&line(row.version, &row.info.name)).unwrap()).collect()
    }

    fn fates(copy: &Copy, noted: &[Noted]) -> Vec<String> {
        let dir = copy.open();
        let tree = Tree::of(&dir, dir.open_index().unwrap(), View::Whole);
        noted.iter().map(|one| fate(&dir, &tree, one).unwrap().to_string()).collect()
    }

    #[test]
    fn what_went_on_purpose_is_told_from_what_is_missing_or_another() {
        let source = Source::new();
        source.write("kept", b"kept");
        let copy = Copy::init();
        for n in 0..3 {
            source.write("goes", format!("{n}").as_bytes());
            copy.backup(&source, &Options::default());
        }
        let all = noted(&copy);
        assert_eq!(fates(&copy, &all), ["as noted"; 3]);
        let before = Copy::of(&copy.files());
        source.write("goes", b"later");
        copy.backup(&source, &Options::default());
        let later = noted(&copy);
        assert_eq!(fates(&copy, &all), ["as noted"; 3], "a later version changes nothing");
        assert!(fates(&before, &later)[3].starts_with("IS NOT HERE"));

        let choose = |rows: &[crate::index::VersionRow]| Ok(versions::named(rows, &[Version(0)].into()));
        let going = versions::Request {
            choose: &choose,
            protection: Protection::Off,
            on_protected: versions::OnProtected::Refuse,
            mode: Mode::Do,
        };
        versions::remove(&copy.open(), &going, &Silent).unwrap();
        let path = [source.path().as_os_str().as_bytes(), b"/goes"].concat();
        let gone = paths::Request { paths: &[path], protection: Protection::Off, mode: Mode::Do };
        paths::remove(&copy.open(), &gone, &Silent).unwrap();
        let told = fates(&copy, &all);
        assert!(told[0].starts_with("removed on purpose"), "{told:?}");
        assert!(
            told[1..].iter().all(|told| told.starts_with("paths were removed from it on purpose, by r5")),
            "{told:?}"
        );

        let mut other = noted(&copy);
        other[0].root.0[5] ^= 1;
        other[1].name = "2020-01-01-0000-r2".into();
        let told = fates(&copy, &other);
        assert!(told[0].starts_with("IS ANOTHER: its root digest"), "{told:?}");
        assert!(told[1].starts_with("IS ANOTHER: the version of this number"), "{told:?}");
        assert_eq!(told[2], "as noted");
    }

    #[test]
    fn only_whole_lines_are_compared() {
        let root = "0f".repeat(32);
        assert!(parse(&format!("r3 2026-01-01-0000-r3 {root}")).is_some_and(|one| one.root.0 == [15; 32]));
        for line in [String::new(), format!("r3 {root}"), format!("r3 n {root} more"), format!("r3 n {}", &root[2..])] {
            assert!(parse(&line).is_none(), "{line}");
        }
        for root in ["é".repeat(32), "+f".repeat(32)] {
            assert!(parse(&format!("r3 n {root}")).is_none(), "{root}");
        }
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(lines(empty.path().as_os_str()).err().unwrap().code(), "USAGE");
    }
}
