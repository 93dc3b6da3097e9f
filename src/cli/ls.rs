//! `assay ls`.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use globset::{GlobBuilder, GlobMatcher};
use serde_json::json;

use super::json::with_name;
use super::{Context, list, open_healing, paths, show};
use crate::catalog::{Attr, Child, Kind};
use crate::error::{Error, Exit, Result};
use crate::ids::{Dirno, Logid, Version};
use crate::index::VersionRow;
use crate::reader::walk::{Met, Walk};
use crate::text::shown;
use crate::tree::{Found, Tree, View};

/// List what a version holds
///
/// A directory is listed with its entries; without PATH, everything that was saved. What is not the path of an
/// entry and has `*`, `?` or `[` in it is a pattern: `*` stops at a slash, `**` does not; one without a slash, or that begins
/// with `**/`, matches anywhere, any other counts from the current directory, as a path does. Exit code 1 if there is no such
/// path, or nothing that matches.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct LsArgs {
    /// The version, as r3, 3, or a folder name of the mount; the newest if not given
    #[arg(short, long, value_name = "REV", conflicts_with = "all")]
    rev: Option<String>,
    /// All versions, oldest first; an entry is shown with each version in which it is new or was changed
    #[arg(short, long)]
    all: bool,
    /// Mode, links, owner, size and time too
    #[arg(short)]
    long: bool,
    /// Sizes as 1.5 MiB
    #[arg(short = 'h', long)]
    human: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// A path (relative ones count from the current directory), or a pattern
    #[arg(value_name = "GLOB|PATH")]
    what: Vec<OsString>,
}

/// What is asked for.
enum Wanted {
    All,
    Path(Vec<u8>),
    Glob(Pattern),
}

struct Pattern {
    /// As it was given.
    text: Vec<u8>,
    /// The directory from which it counts, as versions have it; none if they don't.
    below: Option<Vec<u8>>,
    /// Of the path from there on.
    glob: GlobMatcher,
}

/// How far the entries of a directory are listed.
#[derive(Clone, Copy)]
enum Which<'a> {
    /// Its own.
    Entries,
    /// All below.
    Tree,
    /// Those below that match; the length of the path where the pattern begins.
    Matching(&'a GlobMatcher, usize),
}

struct Lister<'a> {
    tree: &'a Tree,
    args: &'a LsArgs,
    row: VersionRow,
    /// What the path was in the version before.
    before: Option<Logid>,
    found: bool,
    failed: Option<Error>,
    out: String,
}

pub fn run(context: &Context, args: &LsArgs) -> Result<Exit> {
    let dir = context.open()?;
    let index = Arc::new(open_healing(&dir)?);
    let tree = Tree::of(&dir, index, View::Whole);
    let rows = |folder: Option<&str>| {
        if args.all {
            tree.versions()
        } else {
            Ok(vec![tree.version(args.rev.as_deref().or(folder).unwrap_or("latest"))?])
        }
    };
    let all: Vec<(Wanted, Vec<VersionRow>)> = match args.what.as_slice() {
        [] => vec![(Wanted::All, rows(None)?)],
        some => some.iter().map(|what| wanted(what, dir.path(), &tree, &rows)).collect::<Result<_>>()?,
    };
    let mut exit = Exit::Ok;
    for (wanted, rows) in &all {
        let mut found = false;
        let mut before = None;
        for row in rows {
            let mut lister =
                Lister { tree: &tree, args, row: row.clone(), before, found: false, failed: None, out: String::new() };
            lister.list(wanted)?;
            lister.flush()?;
            found |= lister.found;
            before = lister.before;
            if let Some(error) = lister.failed {
                super::report(&error);
                exit = exit.max(if error.is_damage() { Exit::Damage } else { Exit::FinishedWithErrors });
            }
        }
        let missing = match wanted {
            Wanted::All => None,
            Wanted::Path(path) => Some(path),
            Wanted::Glob(pattern) => Some(&pattern.text),
        };
        if let (false, Some(path), Some(row)) = (found, missing, rows.last()) {
            super::report(&Error::NoPath { path: path.clone(), version: row.version });
            exit = exit.max(Exit::Failed);
        }
    }
    Ok(if tree.index().stood_in_for().is_some() { exit.max(Exit::Damage) } else { exit })
}

type Rows<'a> = &'a dyn Fn(Option<&str>) -> Result<Vec<VersionRow>>;

/// What the user means by `what`, and the versions to look at.
fn wanted(what: &OsStr, backup_dir: &Path, tree: &Tree, rows: Rows<'_>) -> Result<(Wanted, Vec<VersionRow>)> {
    let find = |rows: &[VersionRow], path: &[u8]| {
        let mut last = Err(Error::NoPath { path: path.to_vec(), version: Version(0) });
        for row in rows.iter().rev() {
            last = tree.find(row.version, path).map(drop);
            if !matches!(last, Err(Error::NoPath { .. })) {
                break;
            }
        }
        last
    };
    let given = paths::given(what, backup_dir)?;
    let among = rows(given.folder.as_deref())?;
    let (path, known) = paths::stored(&given.path, |path| find(&among, path))?;
    let Some(text) = what.to_str().filter(|text| !known && text.contains(['*', '?', '['])) else {
        return Ok((Wanted::Path(path), among));
    };
    // What stands before the first name with something special in it is a path.
    let special = text.find(['*', '?', '[', '{', '\\']).unwrap_or(0);
    let start = text.get(..special).and_then(|plain| plain.rfind('/')).map_or(0, |slash| slash + 1);
    let (mut plain, rest) = text.split_at(start);
    let names: Vec<&str> = rest.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    let mut pattern = names.join("/");
    if !text.contains('/') {
        pattern = format!("**/{pattern}");
    }
    if plain.is_empty() {
        plain = if pattern.starts_with("**/") { "/" } else { "." };
    }
    let glob = GlobBuilder::new(&pattern).literal_separator(true).build();
    let glob = glob.map_err(|e| Error::Usage(e.to_string()))?.compile_matcher();
    let given = paths::given(plain.as_ref(), backup_dir)?;
    let among = rows(given.folder.as_deref())?;
    let (below, known) = paths::stored(&given.path, |path| find(&among, path))?;
    Ok((Wanted::Glob(Pattern { text: text.into(), below: known.then_some(below), glob }), among))
}

impl Lister<'_> {
    fn list(&mut self, wanted: &Wanted) -> Result<()> {
        let version = self.row.version;
        let path = match wanted {
            Wanted::All => return self.below(version, Dirno::ROOT, b"", Which::Tree),
            Wanted::Glob(Pattern { below: None, .. }) => return Ok(()),
            Wanted::Glob(Pattern { below: Some(path), .. }) | Wanted::Path(path) => path,
        };
        let found = match self.tree.find(version, path) {
            Err(Error::NoPath { .. }) => {
                self.before = None;
                return Ok(());
            }
            found => found?,
        };
        match (found, wanted) {
            (Found::Dir(dirno), _) => {
                let mut path = path.as_slice();
                while let Some(shorter) = path.strip_suffix(b"/") {
                    path = shorter;
                }
                if let Wanted::Glob(pattern) = wanted {
                    let start = path.len() + 1;
                    return self.below(version, dirno, path, Which::Matching(&pattern.glob, start));
                }
                self.found = true;
                self.below(version, dirno, path, Which::Entries)
            }
            (Found::Node(..), Wanted::Glob(_)) => Ok(()),
            (Found::Node(logid, kind), _) => {
                self.found = true;
                // A state of a file that an earlier version had is no news.
                if self.args.all && self.before.replace(logid) == Some(logid) {
                    return Ok(());
                }
                let child = Child::Node(logid);
                let attr = self.tree.attr(logid).map(|(attr, _)| attr);
                self.entry(version, path, kind, child, attr)
            }
        }
    }

    fn below(&mut self, version: Version, dir: Dirno, path: &[u8], which: Which<'_>) -> Result<()> {
        let walk = Walk { tree: self.tree, version, since: None, stop: &|| false };
        let visit = &mut |path: &[u8], met: Met<'_>| {
            let listed = match met {
                Met::Entry(listed) => listed,
                Met::Lost(_, error) => return self.trouble(error),
            };
            let matches = match which {
                Which::Matching(glob, start) => {
                    glob.is_match(crate::live::path_of(path.get(start..).unwrap_or_default()))
                }
                Which::Entries | Which::Tree => true,
            };
            self.found |= matches;
            if matches && (!self.args.all || listed.entry.since == version) {
                let attr = listed.attr.clone().map(|(attr, _)| attr);
                return self.entry(version, path, listed.entry.kind, listed.entry.child, attr);
            }
            Ok(())
        };
        match which {
            Which::Entries => walk.entries(dir, path, visit),
            Which::Tree | Which::Matching(..) => walk.below(dir, path, visit),
        }
    }

    /// What can't be listed is told at the end; the rest is listed.
    fn trouble(&mut self, error: Error) -> Result<()> {
        self.failed.get_or_insert(error);
        Ok(())
    }

    fn entry(&mut self, version: Version, path: &[u8], kind: Kind, child: Child, attr: Result<Attr>) -> Result<()> {
        let attr = match attr {
            Ok(attr) => attr,
            Err(e) => return self.trouble(e),
        };
        if self.args.json {
            return self.json(version, path, kind, child, &attr);
        }
        if self.args.all {
            self.out += &format!("{:<6} ", version.to_string());
        }
        if self.args.long {
            let size = match kind {
                Kind::CharDevice | Kind::BlockDevice => format!("{}, {}", attr.rdev_major, attr.rdev_minor),
                _ if self.args.human => show::bytes(attr.size),
                _ => attr.size.to_string(),
            };
            let (mode, time) = (show::mode(kind, attr.perm), show::time(attr.mtime));
            self.out += &format!("{mode} {:>3} {:>6} {:>6} {size:>12} {time} ", attr.nlink, attr.uid, attr.gid);
        }
        self.out += &shown(path).to_string();
        if let (true, Kind::Symlink, Child::Node(logid)) = (self.args.long, kind, child) {
            match self.tree.node(logid) {
                Ok(node) => self.out += &format!(" -> {}", shown(&node.target)),
                Err(e) => self.trouble(e)?,
            }
        }
        self.out.push('\n');
        if self.out.len() > 1 << 16 { self.flush() } else { Ok(()) }
    }

    fn json(&mut self, version: Version, path: &[u8], kind: Kind, child: Child, attr: &Attr) -> Result<()> {
        let sha1 = match (kind, child) {
            (Kind::File, Child::Node(logid)) => match self.tree.node(logid) {
                Ok(node) => node.sha1.map(|hash| hash.to_string()),
                Err(e) => {
                    self.trouble(e)?;
                    None
                }
            },
            _ => None,
        };
        self.flush()?;
        let entry = json!({
            "version": version.0,
            "kind": format!("{kind:?}").to_lowercase(),
            "mode": format!("{:04o}", attr.perm),
            "uid": attr.uid,
            "gid": attr.gid,
            "size": attr.size,
            "mtime_s": attr.mtime.sec,
            "mtime_ns": attr.mtime.nsec,
            "nlink": attr.nlink,
            "sha1": sha1,
        });
        list(&format!("{}\n", with_name(entry, "path", path)))
    }

    fn flush(&mut self) -> Result<()> {
        list(&std::mem::take(&mut self.out))
    }
}
