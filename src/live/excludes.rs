//! Patterns of what is not saved.
//!
//! Invariants: a pattern means what whoever wrote it sees from where it stands (on the command line: the current
//! directory), with symlinks resolved as in the paths of a version; one that can match nothing is told.

use std::collections::HashSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::error::{Error, Result};
use crate::os::Stat;
use crate::text::shown;

/// Patterns of what is not saved, in gitignore's syntax with `/` as the top: `*.o` anywhere, `/var/tmp/`,
/// `/home/*/.cache`, `!keep.o`. The last pattern that matches decides.
#[derive(Debug)]
pub struct Excludes {
    matcher: Gitignore,
    /// What it is made of.
    patterns: Vec<String>,
    doubts: Vec<Doubt>,
}

/// A pattern with a place, which may be one where nothing is.
#[derive(Debug)]
struct Doubt {
    /// As the user knows it.
    pattern: String,
    /// What it matches is here, or below.
    place: PathBuf,
    /// Why it can match nothing, whatever is saved.
    why: Option<String>,
    written: Written,
}

/// Where a pattern stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// In inex.conf, which may be about other paths than those of one run.
    Conf,
    /// On the command line, from the current directory.
    Option,
}

impl Excludes {
    /// The patterns of inex.conf, and then those of the command line.
    ///
    /// A pattern that does not parse is an error that names its line.
    pub fn parse(inex_conf: &Path, conf: &[u8], options: &[String]) -> Result<Excludes> {
        let mut patterns = Vec::new();
        let mut doubts = Vec::new();
        for (index, line) in conf.split(|byte| *byte == b'\n').enumerate() {
            let wrong = |what: String| Error::Config {
                path: inex_conf.to_path_buf(),
                what: format!("line {}: {what}", index + 1),
            };
            let line = std::str::from_utf8(line).map_err(|_| wrong("the pattern is not UTF-8".into()))?;
            let line = line.trim_start_matches('\u{feff}').trim_end_matches('\r');
            if line.trim_end().is_empty() || line.starts_with('#') {
                continue;
            }
            check(line).map_err(|error| wrong(error.to_string()))?;
            let name = format!("inex.conf: line {}: {}", index + 1, line.trim_end());
            doubts.extend(place(line, Path::new("/"), name, Written::Conf, &mut patterns));
        }
        for option in options {
            let wrong = |what: String| Error::Usage(format!("--exclude {option}: {what}"));
            check(option).map_err(|error| wrong(error.to_string()))?;
            let here = std::env::current_dir().map_err(|error| wrong(format!("the current directory: {error}")))?;
            let name = format!("--exclude {option}");
            doubts.extend(place(&literal_edges(option), &here, name, Written::Option, &mut patterns));
        }
        Ok(Excludes { matcher: matcher(&patterns)?, patterns, doubts })
    }

    /// Whether an entry is left out. `path` is absolute; below an excluded directory nothing is asked any more.
    pub fn excludes(&self, path: &[u8], stat: &Stat) -> bool {
        self.excludes_kind(path, stat.is_dir())
    }

    /// As `excludes`, where only this is known of the entry.
    pub fn excludes_kind(&self, path: &[u8], is_dir: bool) -> bool {
        !self.matcher.is_empty() && self.matcher.matched(path_of(path), is_dir).is_ignore()
    }

    /// The patterns that hold below a path that was given by name, if not all do: one with a slash that covers the path
    /// itself is set aside, for it would leave out what was asked for. A pattern that covers everything is not.
    pub fn below_given(&self, path: &[u8], is_dir: bool) -> Result<Option<Excludes>> {
        if path.is_empty() || self.matcher.is_empty() {
            return Ok(None);
        }
        let end = path.iter().skip(1).position(|byte| *byte == b'/').map_or(path.len(), |at| at + 1);
        let top = path.get(..end).unwrap_or(path);
        if !self.matcher.matched(path_of(path), is_dir).is_ignore() {
            return Ok(None);
        }
        // The last one decides, and once it is set aside the one before it.
        let mut aside = HashSet::new();
        for pattern in self.patterns.iter().rev() {
            let alone = matcher(std::slice::from_ref(pattern))?;
            match alone.matched(path_of(path), is_dir) {
                ignore::Match::None => continue,
                ignore::Match::Whitelist(_) => break,
                ignore::Match::Ignore(_) => {}
            }
            let general = !pattern.trim_end_matches('/').contains('/') || alone.matched(path_of(top), true).is_ignore();
            if general {
                break;
            }
            aside.insert(pattern.as_str());
        }
        if aside.is_empty() {
            return Ok(None);
        }
        let patterns = self.patterns.iter().filter(|known| !aside.contains(known.as_str()));
        let patterns: Vec<String> = patterns.cloned().collect();
        Ok(Some(Excludes { matcher: matcher(&patterns)?, patterns, doubts: Vec::new() }))
    }

    /// What to tell about patterns that can match nothing in a run that saves these paths.
    pub fn in_vain(&self, given: &[Vec<u8>]) -> Vec<String> {
        let apart = |place: &Path| {
            !given.iter().any(|given| place.starts_with(path_of(given)) || path_of(given).starts_with(place))
        };
        let tell = |doubt: &Doubt| {
            let outside = || {
                let outside = doubt.written == Written::Option && apart(&doubt.place);
                outside.then(|| format!("{} is outside of what is saved", shown(&doubt.place)))
            };
            let why = doubt.why.clone().or_else(outside)?;
            Some(format!("{} can match nothing: {why}", crate::text::one_line(&doubt.pattern)))
        };
        self.doubts.iter().filter_map(tell).collect()
    }
}

fn path_of(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}

fn builder() -> GitignoreBuilder {
    let mut builder = GitignoreBuilder::new("/");
    builder.allow_unclosed_class(false);
    builder
}

fn check(pattern: &str) -> Result<(), ignore::Error> {
    builder().add_line(None, pattern).map(drop)
}

fn matcher(patterns: &[String]) -> Result<Gitignore> {
    let together = |error| Error::Usage(format!("the patterns can't be used together: {error}"));
    let mut builder = builder();
    for pattern in patterns {
        builder.add_line(None, pattern).map_err(together)?;
    }
    builder.build().map_err(together)
}

/// On the command line nothing is a comment, and spaces at the end are meant.
fn literal_edges(option: &str) -> String {
    let mut pattern = if option.starts_with('#') { format!("\\{option}") } else { option.to_string() };
    if pattern.ends_with(' ') && !pattern.ends_with("\\ ") {
        pattern.insert(pattern.len() - 1, '\\');
    }
    pattern
}

/// Adds a pattern as the matcher takes it: absolute if it has a place, without `.`, `..` and double slashes, and once
/// more with the symlinks in its place resolved. Returns what is to be known of the place.
fn place(pattern: &str, here: &Path, name: String, written: Written, patterns: &mut Vec<String>) -> Option<Doubt> {
    let (sign, body) = pattern.strip_prefix('!').map_or(("", pattern), |body| ("!", body));
    let core = body.trim_end_matches('/');
    let dirs_only = if core.len() < body.len() { "/" } else { "" };
    let mut doubt = Doubt { pattern: name, place: here.to_path_buf(), why: None, written };
    if core.is_empty() {
        patterns.push(pattern.to_string());
        doubt.why = Some("it names nothing".into());
        return Some(doubt);
    }
    if !core.contains('/') || core.starts_with("**/") {
        patterns.push(format!("{sign}{core}{dirs_only}"));
        return None;
    }
    let mut names: Vec<String> = Vec::new();
    if !core.starts_with('/') {
        let Some(here) = here.to_str() else {
            patterns.push(pattern.to_string());
            doubt.why = Some("the current directory has a name that is not UTF-8".into());
            return Some(doubt);
        };
        names.extend(here.split('/').filter(|name| !name.is_empty()).map(escaped));
    }
    for name in core.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name.to_string()),
        }
    }
    patterns.push(format!("{sign}/{}{dirs_only}", names.join("/")));
    // The names before the first that is no plain name; the last one may be a symlink itself, so it is not resolved.
    let plain: Vec<String> = names.iter().map_while(|name| literal(name)).collect();
    let (last, parents) = match plain.split_last() {
        Some((last, parents)) if plain.len() == names.len() => (Some(last), parents),
        _ => (None, plain.as_slice()),
    };
    let parent: PathBuf = std::iter::once("/").chain(parents.iter().map(String::as_str)).collect();
    let real = std::fs::canonicalize(&parent);
    if let Ok(real) = &real
        && *real != parent
        && let Some(text) = real.to_str()
    {
        let resolved = text.split('/').filter(|name| !name.is_empty()).map(escaped);
        let resolved: Vec<String> = resolved.chain(names.iter().skip(parents.len()).cloned()).collect();
        patterns.push(format!("{sign}/{}{dirs_only}", resolved.join("/")));
    }
    let real_parent = real.as_ref().unwrap_or(&parent);
    doubt.place = last.map_or_else(|| real_parent.clone(), |last| real_parent.join(last));
    let stands_from_root = written == Written::Conf && !core.starts_with('/');
    doubt.why = if sign == "!" {
        None
    } else if stands_from_root
        && (real.is_err() || (names.len() == 1 && std::fs::symlink_metadata(&doubt.place).is_err()))
    {
        Some("in inex.conf a pattern with a slash starts at /; put / or **/ before it".into())
    } else if written == Written::Option && real.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        Some(format!("there is no {}", shown(&parent)))
    } else if !dirs_only.is_empty()
        && last.is_some()
        && std::fs::symlink_metadata(&doubt.place).is_ok_and(|found| !found.is_dir())
    {
        Some("with a slash at its end it stands for a directory, and there is none".into())
    } else {
        None
    };
    (sign != "!").then_some(doubt)
}

/// A name as a pattern that matches nothing else.
fn escaped(name: &str) -> String {
    name.chars().flat_map(|c| "*?[]{}!\\".contains(c).then_some('\\').into_iter().chain([c])).collect()
}

/// The one name that a pattern without wildcards matches.
fn literal(pattern: &str) -> Option<String> {
    let mut plain = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' | '{' => return None,
            '\\' => plain.push(chars.next()?),
            c => plain.push(c),
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Kind;
    use crate::os::DirFd;

    #[test]
    fn excludes_match_absolute_paths_as_gitignore_does() {
        let conf = b"# comment\r\n*.o\r\n/home/*/.cache/\n!keep.o\n\n/exact/path\nsub/dir\n\\#literal\n";
        let excludes = Excludes::parse(Path::new("inex.conf"), conf, &["*.tmp".into(), "/var/tmp/*".into()]).unwrap();
        let temp = tempfile::tempdir().unwrap();
        let dir = DirFd::open(temp.path()).unwrap().stat().unwrap();
        let file = Stat { kind: Kind::File, ..dir };
        let cases: [(&[u8], &Stat, bool); 16] = [
            (b"/a/b/c.o", &file, true),
            (b"/c.o", &file, true),
            (b"/a/keep.o", &file, false),
            (b"/home/ann/.cache", &dir, true),
            (b"/home/ann/.cache", &file, false),
            (b"/x/home/ann/.cache", &dir, false),
            (b"/home/ann/sub/.cache", &dir, false),
            (b"/exact/path", &file, true),
            (b"/else/exact/path", &file, false),
            (b"/sub/dir", &dir, true),
            (b"/x/sub/dir", &dir, false),
            (b"/x/#literal", &file, true),
            (b"/x/y.tmp", &dir, true),
            (b"/var/tmp", &dir, false),
            (b"/var/tmp/x", &file, true),
            (b"/x/\xff\xfe.o", &file, true),
        ];
        for (path, stat, expected) in cases {
            assert_eq!(excludes.excludes(path, stat), expected, "{}", String::from_utf8_lossy(path));
        }
        assert!(!excludes.excludes(b"/", &dir));
    }

    #[test]
    fn a_bad_pattern_is_named_with_its_line() {
        let wrong = Excludes::parse(Path::new("inex.conf"), b"fine\n[z-a]\n", &[]).unwrap_err();
        assert!(wrong.to_string().starts_with("inex.conf: line 2: "), "{wrong}");
        let wrong = Excludes::parse(Path::new("inex.conf"), b"\n\n\xff\n", &[]).unwrap_err();
        assert!(wrong.to_string().starts_with("inex.conf: line 3: "), "{wrong}");
        let wrong = Excludes::parse(Path::new("/nonexistent"), b"", &["{a".into()]).unwrap_err();
        assert!(matches!(&wrong, Error::Usage(text) if text.starts_with("--exclude {a: ")), "{wrong}");
    }

    fn options(patterns: &[&str]) -> Excludes {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        Excludes::parse(Path::new("inex.conf"), b"", &patterns).unwrap()
    }

    #[test]
    fn a_pattern_on_the_command_line_means_what_is_seen_from_there() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("real/x[1]")).unwrap();
        std::os::unix::fs::symlink("real", base.join("LINK")).unwrap();
        let here = std::env::current_dir().unwrap();
        let at = |base: &Path, name: &str| base.join(name).into_os_string().into_encoded_bytes();
        for (pattern, path) in [
            ("./x", at(&here, "x")),
            ("S/x", at(&here, "S/x")),
            ("S//y/./x/", at(&here, "S/y/x")),
            ("S/../T/x", at(&here, "T/x")),
            (&format!("{}/LINK/f", base.display()), at(&base, "real/f")),
            (&format!("{}/LINK/*.o", base.display()), at(&base, "real/f.o")),
            (&format!("{}//real/x\\[1]/f", base.display()), at(&base, "real/x[1]/f")),
            ("#x", b"/any/#x".to_vec()),
            ("x ", b"/any/x ".to_vec()),
            ("**/S/x", b"/any/S/x".to_vec()),
        ] {
            let excludes = options(&[pattern]);
            assert!(excludes.excludes_kind(&path, true), "{pattern} {}", String::from_utf8_lossy(&path));
            assert!(!excludes.excludes_kind(b"/any/x", true), "{pattern}");
        }
    }

    #[test]
    fn what_can_match_nothing_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("S/d")).unwrap();
        std::fs::create_dir_all(base.join("other")).unwrap();
        std::os::unix::fs::symlink("d", base.join("S/link")).unwrap();
        let given = [base.join("S").into_os_string().into_encoded_bytes()];
        let told = |pattern: &str| !options(&[pattern]).in_vain(&given).is_empty();
        let absolute = |name: &str| format!("{}/{name}", base.display());
        for vain in ["./x", "S/x", "/x", "/", "~/x", &absolute("T/x"), &absolute("other/x"), &absolute("S/link/")] {
            assert!(told(vain), "{vain}");
        }
        for fine in ["*.o", "x", "x/", "**/x/y", "/*/x", &absolute("S/x"), &absolute("S/d/"), &absolute("*/x"), "!/x"] {
            assert!(!told(fine), "{fine}");
        }
        let conf = |line: &str| Excludes::parse(Path::new("inex.conf"), line.as_bytes(), &[]).unwrap().in_vain(&given);
        assert!(conf("/nowhere/at/all\n/etc/x\n#x\netc/x\n*.o\n").is_empty());
        let told = conf("\n./nowhere\nno-such-place/x\n");
        assert!(told.len() == 2 && told[1].starts_with("inex.conf: line 3: no-such-place/x can match"), "{told:?}");
    }

    #[test]
    fn below_a_given_path_only_patterns_that_name_its_place_are_set_aside() {
        let excludes = options(&["*.o", "/s/b", "/s/b/**", "*.tmp"]);
        assert!(excludes.below_given(b"/s/x", true).unwrap().is_none());
        let below = excludes.below_given(b"/s/b/c", true).unwrap().unwrap();
        let left_out = |path: &str| below.excludes_kind(path.as_bytes(), false);
        assert!(!left_out("/s/b/c/file") && left_out("/s/b/c/x.o") && left_out("/s/b/c/x.tmp"));
        // A name pattern, and one that covers everything, hold.
        for general in ["*", "/**", "c"] {
            assert!(options(&[general]).below_given(b"/s/b/c", true).unwrap().is_none(), "{general}");
        }
        // One that brings it back ends what is set aside, and many take no longer than once each.
        let below = options(&["/s/b", "!/s/b/c", "/s/b/?"]).below_given(b"/s/b/c", true).unwrap().unwrap();
        assert_eq!(below.patterns, ["/s/b", "!/s/b/c"]);
        let many: String = (0..3000).map(|n| format!("/s/b/{{c,{n}}}\n")).collect();
        let many = Excludes::parse(Path::new("inex.conf"), many.as_bytes(), &[]).unwrap();
        assert!(many.below_given(b"/s/b/c", true).unwrap().unwrap().patterns.is_empty());
    }
}
