//! `assay diff`.

use std::ffi::OsString;

use clap::Args;

use super::changes::Changes;
use super::paths::{given, stored};
use super::ui::Ui;
use super::{Context, open_index};
use crate::compare::versions::Versions;
use crate::error::{Error, Exit, Result};
use crate::monitor::Monitor;
use crate::tree::{Tree, View};

/// Say what differs between two versions
///
/// One line a path: `+` only the second has it, `-` only the first, `M` its content differs, `T` its type or attributes;
/// then in what. A subtree that is the same in both costs one comparison, whatever its size. No file data is read.
///
/// Exit code 0: no difference; 1: there are some; 3: something could not be compared; 4: damage.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The first version: r3, 3, latest, or a folder name of the mount
    #[arg(value_name = "REV")]
    first: String,
    /// The second version
    #[arg(value_name = "REV")]
    second: String,
    /// Files and directories, with all below them; everything if not given
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: &DiffArgs) -> Result<Exit> {
    let dir = context.open()?;
    let tree = Tree::of(&dir, open_index(&dir)?, View::Whole);
    let (first, second) = (tree.version(&args.first)?.version, tree.version(&args.second)?.version);
    let ui = Ui::counting(context, "Comparing", "paths");
    let mut changes = Changes::new(args.json);
    let versions = Versions { tree: &tree, first: Some(first), second, stop: &|| ui.interrupted() };
    let known = |path: &[u8]| match tree.find(second, path) {
        Err(Error::NoPath { .. }) => tree.find(first, path).map(drop),
        other => other.map(drop),
    };
    let mut paths = vec![Vec::new()];
    if !args.paths.is_empty() {
        let of = |path: &OsString| Ok(stored(&given(path, dir.path())?.path, known)?.0);
        paths = args.paths.iter().map(of).collect::<Result<_>>()?;
    }
    for path in &paths {
        versions.below(path, &mut |path, met| changes.met(path, met))?;
    }
    ui.finish();
    changes.end(context.quiet)
}
