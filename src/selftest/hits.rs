//! From damaged places to the files, versions and byte ranges that use them.

use std::collections::HashSet;

use super::findings::{Hit, MAX_HITS};
use crate::error::Result;
use crate::index::{Index, Places};

/// Hits of one place: at most `MAX_HITS`, and how many there are.
pub(super) type Hits = (Vec<Hit>, u64);

/// The hits of each of `count` places, which are tagged 0, 1, ….
pub(super) fn find(index: &Index, places: &Places, count: usize, stop: &dyn Fn() -> bool) -> Result<Vec<Hits>> {
    let mut hits: Vec<Hits> = (0..count).map(|_| Hits::default()).collect();
    if places.is_empty() {
        return Ok(hits);
    }
    let users = index.users(places, MAX_HITS, stop)?;
    let logids: HashSet<_> = users.uses.iter().map(|used| used.logid).collect();
    let names = index.names(&logids, MAX_HITS, stop)?;
    for used in &users.uses {
        // A file that no version shows any more is nobody's loss.
        let (Some((listed, total)), Some((names, names_total))) = (hits.get_mut(used.tag), names.get(&used.logid))
        else {
            continue;
        };
        *total += names_total;
        let room = MAX_HITS.saturating_sub(listed.len());
        listed.extend(names.iter().take(room).map(|name| Hit {
            logid: used.logid,
            path: name.path.clone(),
            versions: name.versions,
            bytes: used.bytes.clone(),
        }));
    }
    for (tag, uses) in &users.totals {
        if let Some((_, total)) = hits.get_mut(*tag) {
            *total += uses.saturating_sub(MAX_HITS as u64);
        }
    }
    Ok(hits)
}
