//! Names, attributes and contents of all versions against the digests in the commits, in one scan of the index.
//!
//! Invariants: what every version shows is proven from its root digest down: a directory's state by its parent's listing
//! or by the commit, a listing by the directory's state, a file state by its name, a list of extents by the file state.
//! Nothing is told: where something differs the shadow is made, which explains it. Memory holds 56 bytes a directory
//! state, and 16 a file state for at most `WINDOW` of them at a time.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::content::Contents;
use super::told::Racy;
use super::tree::{Totals, versions};
use super::{Check, Ground};
use crate::catalog::digest::{self, ItemDigest, Known, Listing};
use crate::catalog::{Child, DirState, Kind, Node};
use crate::error::Result;
use crate::ids::{Dirno, Logid, NodeDigest, TreeDigest, Version};
use crate::index::{Cursor, ScanTable, Scanned, Span};

/// File states that are remembered in one pass over the entries, 16 bytes each.
const MAX_STATES: usize = 5 << 20;
/// The same; in unit tests there are few files, and several passes all the same.
const WINDOW: usize = if cfg!(test) { 32 } else { MAX_STATES };
/// Rows between two looks whether to stop, and two words of how far it is.
const STRIDE: u32 = if cfg!(test) { 8 } else { 1 << 12 };

/// The file states that are to be read again, if all that the index says of names and contents is what the versions' root
/// digests prove.
pub fn prove(check: &Check<'_>, ground: &Ground<'_, '_>) -> Result<Option<Racy>> {
    let Some(dirs) = Dirs::read(ground)? else { return Ok(None) };
    let mut proof = Proof { check, ground, dirs, totals: Totals::default(), nodes: 0, found: 0 };
    let mut contents = Contents::new(check, ground);
    let mut next = contents.next()?;
    let (mut racy, mut first) = (Racy::new(), true);
    loop {
        let dirs_walked = if first { 0 } else { proof.last_dirno() };
        let states = States::read(check, dirs_walked, &mut contents, &mut next, &mut racy)?;
        if !check.index_is_clean() || !proof.pass(&states, first)? {
            return Ok(None);
        }
        if first && !(proof.dirs.all_named() && proof.roots()?) {
            return Ok(None);
        }
        first = false;
        if next.is_none() {
            break;
        }
    }
    versions(check, ground, &proof.totals)?;
    Ok(Some(racy).filter(|_| proof.nodes == proof.found && check.index_is_clean()))
}

/// A directory from a version on.
struct DirFact {
    dirno: Dirno,
    from: Version,
    /// Of parent and name.
    place: u64,
    /// None: it is gone.
    digest: Option<TreeDigest>,
    /// A name was met that leads to it.
    named: bool,
}

/// All states of all directories, in order.
struct Dirs {
    facts: Vec<DirFact>,
    hasher: RandomState,
}

impl Dirs {
    fn read(ground: &Ground<'_, '_>) -> Result<Option<Dirs>> {
        let mut dirs = Dirs { facts: Vec::new(), hasher: RandomState::new() };
        let mut cursor = ground.rows.cursor(ScanTable::Dirs);
        while let Some(scanned) = cursor.take() {
            let Scanned::Row(row) = scanned else { return Ok(None) };
            let value = ground.rows.open_dir(&row)?;
            // Without attributes it is lost.
            if value.gone == value.state.is_some() {
                return Ok(None);
            }
            let place = dirs.hasher.hash_one((value.parent, &value.name));
            let digest = value.state.as_ref().map(digest::dir);
            dirs.facts.push(DirFact { dirno: row.key.dirno(), from: row.key.version(), place, digest, named: false });
        }
        Ok(Some(dirs))
    }

    /// The states of one directory.
    fn of(&mut self, dirno: Dirno) -> &mut [DirFact] {
        let from = self.facts.partition_point(|fact| fact.dirno < dirno);
        let rest = self.facts.get_mut(from..).unwrap_or_default();
        let len = rest.partition_point(|fact| fact.dirno == dirno);
        rest.get_mut(..len).unwrap_or_default()
    }

    /// While a name leads to it a directory is there, under this name, and no longer.
    fn lead_to(&mut self, dirno: Dirno, span: &Span) -> Option<&[DirFact]> {
        let place = self.hasher.hash_one((span.parent, &span.name));
        let states = self.of(dirno);
        let from = states.iter().position(|state| state.from == span.from)?;
        let was_there = from.checked_sub(1).and_then(|before| states.get(before)).is_some_and(|s| s.digest.is_some());
        let shown = states.get_mut(from..)?;
        let len = shown.iter().position(|state| state.digest.is_none()).unwrap_or(shown.len());
        let end = shown.get(len).map(|state| state.from);
        if shown.get(len).is_some_and(|gone| gone.place != place) || was_there || end != span.to || dirno == Dirno::ROOT
        {
            return None;
        }
        let shown = shown.get_mut(..len)?;
        for state in shown.iter_mut() {
            if state.place != place || state.named {
                return None;
            }
            state.named = true;
        }
        Some(shown)
    }

    fn all_named(&self) -> bool {
        self.facts.iter().all(|state| state.named || state.digest.is_none() || state.dirno == Dirno::ROOT)
    }
}

/// Some file states, in order.
struct States {
    from: Logid,
    /// After `from`, size, and what else is known of the state: a part of its digest, its type, whether content is in
    /// dropped arcs.
    prints: Vec<(u32, u32, u64)>,
    /// Sizes of 4 GiB and more, by place.
    sizes: HashMap<usize, u64>,
}

/// A part of the digest, with the type in place of its last bits.
fn print(digest: &NodeDigest, kind: Kind) -> u64 {
    u64::from_le_bytes(*digest.0.first_chunk().unwrap_or(&[0; 8])) << 4 | (kind as u64) << 1
}

/// What has content in arcs that were dropped.
const PACKED_AWAY: u64 = 1;

impl States {
    /// From `next` on as many as are remembered.
    fn read(
        check: &Check<'_>,
        dirs_walked: u64,
        contents: &mut Contents<'_, '_, '_>,
        next: &mut Option<(Node, bool)>,
        racy: &mut Racy,
    ) -> Result<States> {
        let from = next.as_ref().map_or(Logid(0), |(node, _)| node.logid);
        let mut states = States { from, prints: Vec::new(), sizes: HashMap::new() };
        while let Some((node, packed_away)) = next {
            let at = states.prints.len();
            let Ok(after) = u32::try_from(node.logid.0 - from.0) else { break };
            if at == WINDOW {
                break;
            }
            if node.racy {
                racy.insert(node.logid);
            }
            let size = u32::try_from(node.attr.size).unwrap_or(u32::MAX);
            if size == u32::MAX {
                states.sizes.insert(at, node.attr.size);
            }
            let packed_away = if *packed_away { PACKED_AWAY } else { 0 };
            states.prints.push((after, size, print(&digest::node(node), node.attr.kind) | packed_away));
            if (at as u32).is_multiple_of(STRIDE) {
                check.interrupted()?;
                check.walked(dirs_walked + node.logid.0);
            }
            *next = contents.next()?;
        }
        Ok(states)
    }

    /// The number behind the last.
    fn end(&self) -> u64 {
        self.prints.last().map_or(self.from.0, |(after, ..)| self.from.0 + u64::from(*after) + 1)
    }

    /// Where a file state is; names stand in about the order of what they lead to.
    fn find(&self, logid: Logid, near: usize) -> Option<usize> {
        let after = u32::try_from(logid.0.checked_sub(self.from.0)?).ok()?;
        let is = |at: &usize| self.prints.get(*at).is_some_and(|(other, ..)| *other == after);
        Some(near + 1).filter(is).or_else(|| self.prints.binary_search_by_key(&after, |(after, ..)| *after).ok())
    }
}

struct Proof<'c, 's, 'i> {
    check: &'c Check<'c>,
    ground: &'c Ground<'s, 'i>,
    dirs: Dirs,
    totals: Totals,
    /// Names of file states that were met, and those whose state was found.
    nodes: u64,
    found: u64,
}

impl Proof<'_, '_, '_> {
    fn last_dirno(&self) -> u64 {
        self.dirs.facts.last().map_or(0, |fact| fact.dirno.0)
    }

    /// One walk over the entries; the first also proves the directories.
    fn pass(&mut self, states: &States, first: bool) -> Result<bool> {
        let rows = self.ground.rows;
        let mut entries = rows.cursor(ScanTable::Entries);
        let mut dirs = rows.cursor(ScanTable::Dirs);
        let (mut near, mut steps) = (0, 0u32);
        loop {
            let of_entry = match entries.peek() {
                Some(Scanned::Row(row)) => Some(Dirno(row.key.first as u64)),
                Some(Scanned::Bad { .. }) => return Ok(false),
                None => None,
            };
            let of_dir = match dirs.peek() {
                Some(Scanned::Row(row)) if first => Some(row.key.dirno()),
                Some(Scanned::Bad { .. }) => return Ok(false),
                _ => None,
            };
            let Some(dirno) = of_entry.into_iter().chain(of_dir).min() else { return Ok(true) };
            let mut here = Here::default();
            if first {
                self.states_of(dirno, &mut dirs, &mut here)?;
            }
            while matches!(entries.peek(), Some(Scanned::Row(row)) if row.key.first as u64 == dirno.0) {
                let Some(Scanned::Row(row)) = entries.take() else { return Ok(false) };
                let span = row.span(rows.index())?;
                steps = steps.wrapping_add(1);
                if steps.is_multiple_of(STRIDE) {
                    self.check.interrupted()?;
                    self.check.walked(states.end() + if first { dirno.0 } else { self.last_dirno() });
                }
                if first && !self.name(&mut here, &span) {
                    return Ok(false);
                }
                if let Child::Node(logid) = span.child
                    && let Some(at) = states.find(logid, near)
                {
                    near = at;
                    if !self.leads_to_state(states, at, &span) {
                        return Ok(false);
                    }
                }
            }
            if first && !here.adds_up() {
                return Ok(false);
            }
        }
    }

    fn states_of(&self, dirno: Dirno, dirs: &mut Cursor<'_, '_>, here: &mut Here) -> Result<()> {
        while matches!(dirs.peek(), Some(Scanned::Row(row)) if row.key.dirno() == dirno) {
            let Some(Scanned::Row(row)) = dirs.take() else { break };
            let value = self.ground.rows.open_dir(&row)?;
            here.versions.push(row.key.version());
            here.states.push(value.state.map(|state| (state, Listing::new(Known::All), 0)));
        }
        Ok(())
    }

    /// Adds a name to the listings of all states that show it; false if it comes or goes without a new state.
    fn name(&mut self, here: &mut Here, span: &Span) -> bool {
        let at = |v: &Version| here.versions.binary_search(v).ok();
        let end = match &span.to {
            Some(to) => at(to),
            None => Some(here.versions.len()),
        };
        let (Some(from), Some(end)) = (at(&span.from), end) else { return false };
        let (Some(versions), Some(states)) = (here.versions.get(from..end), here.states.get_mut(from..end)) else {
            return false;
        };
        let mut below: &[DirFact] = &[];
        let mut item = match (span.child, &span.digest) {
            (Child::Node(_), Some(digest)) => ItemDigest::Node(*digest),
            (Child::Node(_), None) => return false,
            (Child::Dir(dirno), _) => match self.dirs.lead_to(dirno, span) {
                Some(shown) => {
                    below = shown;
                    ItemDigest::Dir(TreeDigest([0; 32]))
                }
                None => return false,
            },
        };
        match (span.kind, span.child) {
            (Kind::Dir, _) => self.totals.add(span, [0, 1, 0, 0]),
            (Kind::File, _) => self.totals.add(span, [1, 0, 0, 0]),
            _ => self.totals.add(span, [0, 0, 1, 0]),
        }
        self.nodes += u64::from(span.kind != Kind::Dir);
        for (v, state) in versions.iter().zip(states) {
            let Some((_, listing, count)) = state else { return false };
            if let Some((fact, rest)) = below.split_first().filter(|(fact, _)| fact.from == *v) {
                item = fact.digest.map_or(item, ItemDigest::Dir);
                below = rest;
            }
            listing.add(&span.name, span.kind, &item);
            *count += 1;
        }
        // Each state of a subdirectory has one of this directory, which proves it.
        below.is_empty()
    }

    fn leads_to_state(&mut self, states: &States, at: usize, span: &Span) -> bool {
        let (Some((_, size, found)), Some(digest)) = (states.prints.get(at), &span.digest) else { return false };
        let packed_away = found & PACKED_AWAY != 0;
        if found & !PACKED_AWAY != print(digest, span.kind)
            || (packed_away && self.ground.needed.meets(span.from, span.to))
        {
            return false;
        }
        self.found += 1;
        if span.kind == Kind::File {
            let size = states.sizes.get(&at).copied().filter(|_| *size == u32::MAX).unwrap_or(u64::from(*size));
            self.totals.add(span, [0, 0, 0, size as i64]);
        }
        true
    }

    /// The root directory's states are those that the commits prove.
    fn roots(&mut self) -> Result<bool> {
        let mut roots = self.dirs.of(Dirno::ROOT).iter().peekable();
        let mut versions = self.ground.rows.cursor(ScanTable::Versions);
        let mut now = None;
        while let Some(scanned) = versions.take() {
            let Scanned::Row(row) = scanned else { return Ok(false) };
            let (row, _) = self.ground.rows.open_version(&row)?;
            if let Some(state) = roots.next_if(|state| state.from <= row.version) {
                // One that no version has would be proven by nothing.
                if state.from != row.version {
                    return Ok(false);
                }
                now = state.digest;
            }
            if now != Some(row.root.digest) {
                return Ok(false);
            }
        }
        Ok(roots.peek().is_none())
    }
}

/// A directory while its names are walked over.
#[derive(Default)]
struct Here {
    versions: Vec<Version>,
    /// None: it is gone. Else what it says, and what was found.
    states: Vec<Option<(DirState, Listing, u64)>>,
}

impl Here {
    fn adds_up(self) -> bool {
        self.states.into_iter().flatten().all(|(state, listing, count)| {
            !state.listing.is_of_all() || (state.children == count && state.listing == listing.finish())
        })
    }
}
