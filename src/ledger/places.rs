//! Damaged places, and those that read right again: runs of frames, and arcs apart from their frames.
//!
//! Invariants: runs of one copy of an arc do not overlap; of each frame the newest verdict stands, of two with the same
//! time the one that came last; never more than `max` of either sort.

use std::collections::BTreeMap;

use super::Damage;
use crate::ids::{ArcSerial, CopyId, FrameNo};

#[derive(Debug, Clone)]
pub struct Places {
    /// By the first frame.
    runs: BTreeMap<(ArcSerial, CopyId, u32), Damage>,
    /// Header, footer, trailer, or the file itself.
    wholes: BTreeMap<(ArcSerial, CopyId), Damage>,
    max: usize,
}

impl Damage {
    pub(super) fn end(&self) -> u32 {
        self.frame.map_or(0, |no| no.0.saturating_add(self.count))
    }
}

impl Places {
    pub fn new(max: usize) -> Places {
        Places { runs: BTreeMap::new(), wholes: BTreeMap::new(), max }
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.wholes.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Damage> {
        self.wholes.values().chain(self.runs.values())
    }

    /// Takes a verdict, where there is no newer one.
    pub fn take(&mut self, new: Damage) {
        let (arc, copy) = (new.arc, new.copy);
        let Some(FrameNo(start)) = new.frame else {
            let known = self.wholes.get(&(arc, copy));
            let room = known.is_some() || self.wholes.len() < self.max;
            if room && known.is_none_or(|known| known.when_ms <= new.when_ms) {
                self.wholes.insert((arc, copy), new);
            }
            return;
        };
        let end = new.end();
        let mut at = start;
        for known in self.cut(arc, copy, start, end) {
            if known.when_ms > new.when_ms {
                let from = known.frame.map_or(at, |no| no.0);
                self.put(&new, at, from);
                at = known.end();
                self.put(&known, from, at);
            }
        }
        self.put(&new, at, end);
    }

    /// Takes out what is known of these frames, in order; what is known of others stays.
    fn cut(&mut self, arc: ArcSerial, copy: CopyId, start: u32, end: u32) -> Vec<Damage> {
        let before = self.runs.range(..(arc, copy, start)).next_back();
        let reaching = before.filter(|(key, known)| (key.0, key.1) == (arc, copy) && known.end() > start);
        let from = reaching.map_or(start, |(key, _)| key.2);
        let keys: Vec<_> = self.runs.range((arc, copy, from)..(arc, copy, end)).map(|(key, _)| *key).collect();
        let mut taken = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(known) = self.runs.remove(&key) else { continue };
            self.put(&known, key.2, known.end().min(start));
            self.put(&known, key.2.max(end), known.end());
            let (from, to) = (key.2.max(start), known.end().min(end));
            taken.push(Damage { frame: Some(FrameNo(from)), count: to.saturating_sub(from), ..known });
        }
        taken
    }

    fn put(&mut self, of: &Damage, start: u32, end: u32) {
        if start < end && self.runs.len() < self.max {
            let part = Damage { frame: Some(FrameNo(start)), count: end - start, ..of.clone() };
            self.runs.insert((of.arc, of.copy, start), part);
        }
    }

    /// The verdict on a frame.
    pub fn frame(&self, arc: ArcSerial, copy: CopyId, no: FrameNo) -> Option<&Damage> {
        let (key, known) = self.runs.range(..=(arc, copy, no.0)).next_back()?;
        ((key.0, key.1) == (arc, copy) && no.0 < known.end()).then_some(known)
    }

    /// The verdict on an arc apart from its frames.
    pub fn whole(&self, arc: ArcSerial, copy: CopyId) -> Option<&Damage> {
        self.wholes.get(&(arc, copy))
    }

    /// A frame reads right at this time: what that mends is taken out and returned as mended.
    pub fn mend(&mut self, arc: ArcSerial, copy: CopyId, no: FrameNo, when_ms: u64) -> Vec<Damage> {
        let mut mended = Vec::new();
        if self.frame(arc, copy, no).is_some() {
            mended = self.cut(arc, copy, no.0, no.0.saturating_add(1));
        }
        // Whatever can be read of it proves that the arc is there.
        if self.whole(arc, copy).is_some_and(Damage::is_absence) {
            mended.extend(self.wholes.remove(&(arc, copy)));
        }
        mended.retain(|damage| !damage.mended);
        mended.iter_mut().for_each(|damage| (damage.when_ms, damage.mended) = (when_ms, true));
        mended
    }

    pub fn retain(&mut self, keep: impl Fn(&Damage) -> bool) {
        self.runs.retain(|_, damage| keep(damage));
        self.wholes.retain(|_, damage| keep(damage));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_frame_has_its_newest_verdict(
            verdicts in prop::collection::vec((0u64..2, 0u32..30, 1u32..12, 0u64..8, any::<bool>()), 1..60)
        ) {
            let mut places = Places::new(1000);
            let mut naive: HashMap<(u64, u32), (u64, bool)> = HashMap::new();
            for (arc, first, count, when_ms, mended) in verdicts {
                let (arc_no, copy, frame) = (ArcSerial(arc), CopyId::LOCAL, Some(FrameNo(first)));
                places.take(Damage { when_ms, arc: arc_no, copy, frame, count, code: "X".into(), mended });
                for no in first..first + count {
                    let known = naive.entry((arc, no)).or_insert((when_ms, mended));
                    if known.0 <= when_ms {
                        *known = (when_ms, mended);
                    }
                }
            }
            for (arc, no) in (0..2).flat_map(|arc| (0..45).map(move |no| (arc, no))) {
                let found = places.frame(ArcSerial(arc), CopyId::LOCAL, FrameNo(no));
                prop_assert_eq!(found.map(|d| (d.when_ms, d.mended)), naive.get(&(arc, no)).copied());
            }
            let mut last = (ArcSerial(0), 0);
            for damage in places.iter() {
                let first = damage.frame.unwrap().0;
                prop_assert!(damage.count > 0 && (damage.arc, first) >= last, "{:?}", damage);
                last = (damage.arc, damage.end());
            }
        }
    }
}
