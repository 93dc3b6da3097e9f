//! `assay ls`.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use clap::Args;
use globset::{GlobBuilder, GlobMatcher};
use serde_json::json;

use super::json::with_name;
use super::{Context, open_index, paths, print, print_json, show};
use crate::catalog::{Attr, Child, Kind};
use crate::error::{Error, Exit, Result};
use crate::ids::{Dirno, Version};
use crate::index::VersionRow;
use crate::text::shown;
use crate::tree::{Found, Tree, View};

/// List what a version holds
///
/// A directory is listed with its entries; without PATH, everything that was saved. What is not the path of an
/// entry and has `*`, `?` or `[` in it is a pattern: `*` stops at a slash, `**` does not; one without a slash
/// matches names anywhere.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct LsArgs {
    /// The version, as r3, 3, or a folder name of the mount; the newest if not given
    #[arg(short, long, value_name = "REV", conflicts_with = "all")]
    rev: Option<String>,
    /// All versions, oldest first; an entry is shown with the version in which it is new
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
    Glob(GlobMatcher),
}

struct Lister<'a> {
    tree: &'a Tree,
    args: &'a LsArgs,
    row: VersionRow,
    found: bool,
    failed: Option<Error>,
    out: String,
}

pub fn run(context: &Context, args: &LsArgs) -> Result<Exit> {
    let index = Arc::new(open_index(&context.open()?)?);
    let tree = Tree::new(index, View::Whole);
    let rows = if args.all { tree.versions()? } else { vec![tree.version(args.rev.as_deref().unwrap_or("latest"))?] };
    let wanted: Vec<Wanted> = match args.what.as_slice() {
        [] => vec![Wanted::All],
        some => some.iter().map(|what| wanted(what, &tree, &rows)).collect::<Result<_>>()?,
    };
    let mut exit = Exit::Ok;
    for wanted in &wanted {
        let mut found = false;
        for row in &rows {
            let mut lister =
                Lister { tree: &tree, args, row: row.clone(), found: false, failed: None, out: String::new() };
            lister.list(wanted)?;
            lister.flush()?;
            found |= lister.found;
            if let Some(error) = lister.failed {
                super::report(&error);
                exit = exit.max(if error.is_damage() { Exit::Damage } else { Exit::FinishedWithErrors });
            }
        }
        if let (false, Wanted::Path(path), Some(row)) = (found, wanted, rows.last()) {
            super::report(&Error::NoPath { path: path.clone(), version: row.version });
            exit = exit.max(Exit::Failed);
        }
    }
    Ok(exit)
}

fn wanted(what: &OsStr, tree: &Tree, rows: &[VersionRow]) -> Result<Wanted> {
    let find = |path: &[u8]| {
        let mut last = Err(Error::NoPath { path: path.to_vec(), version: Version(0) });
        for row in rows.iter().rev() {
            last = tree.find(row.version, path).map(drop);
            if !matches!(last, Err(Error::NoPath { .. })) {
                break;
            }
        }
        last
    };
    let (path, known) = paths::stored(what, find)?;
    let Some(text) = what.to_str().filter(|text| !known && text.contains(['*', '?', '['])) else {
        return Ok(Wanted::Path(path));
    };
    let pattern = if text.contains('/') { text.to_string() } else { format!("**/{text}") };
    GlobBuilder::new(&pattern)
        .literal_separator(true)
        .build()
        .map(|glob| Wanted::Glob(glob.compile_matcher()))
        .map_err(|e| Error::Usage(e.to_string()))
}

impl Lister<'_> {
    fn list(&mut self, wanted: &Wanted) -> Result<()> {
        let version = self.row.version;
        let Wanted::Path(path) = wanted else {
            return self.below(version, Dirno::ROOT, &mut Vec::new(), wanted, true);
        };
        match self.tree.find(version, path) {
            Ok(Found::Dir(dirno)) => {
                self.found = true;
                let mut path = path.clone();
                while path.last() == Some(&b'/') {
                    path.pop();
                }
                self.below(version, dirno, &mut path, &Wanted::All, false)
            }
            Ok(Found::Node(logid, kind)) => {
                let child = Child::Node(logid);
                let attr = self.tree.attr(logid).map(|(attr, _)| attr);
                self.found = true;
                self.entry(version, path, kind, child, attr)
            }
            Err(Error::NoPath { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn below(&mut self, version: Version, dir: Dirno, path: &mut Vec<u8>, wanted: &Wanted, deep: bool) -> Result<()> {
        let mut listing = match self.tree.list(version, dir) {
            Ok(listing) => listing,
            Err(e) => return self.trouble(e),
        };
        loop {
            let page = match listing.next_page(self.tree) {
                Ok(page) if page.is_empty() => return Ok(()),
                Ok(page) => page,
                Err(e) => return self.trouble(e),
            };
            for listed in page {
                let length = path.len();
                path.push(b'/');
                path.extend_from_slice(&listed.entry.name);
                let matches = match wanted {
                    Wanted::Glob(glob) => glob.is_match(crate::backup::walk::path_of(path)),
                    Wanted::All | Wanted::Path(_) => true,
                };
                let new = !self.args.all || listed.entry.since == version;
                if matches && new {
                    self.found = true;
                    let attr = listed.attr.map(|(attr, _)| attr);
                    self.entry(version, path, listed.entry.kind, listed.entry.child, attr)?;
                }
                if let (Child::Dir(dirno), true) = (listed.entry.child, deep) {
                    self.below(version, dirno, path, wanted, deep)?;
                }
                path.truncate(length);
            }
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
        print_json(&with_name(entry, "path", path))
    }

    fn flush(&mut self) -> Result<()> {
        print(&std::mem::take(&mut self.out))
    }
}
