//! When each of many numbers was last proven, as intervals.
//!
//! Invariants: a number has the newest time it was given; intervals do not overlap, and neighbours that say the same are
//! one; there are never more than `max` of them. When there would be, times that differ by less than an hour, then a day,
//! count as equal, the older for both; what still does not fit is forgotten, the shortest intervals first: it will be
//! verified again.

use std::collections::BTreeMap;

use super::By;

/// Times that are equal in these units count as equal, seconds.
const GRAINS_S: [u64; 3] = [1, 3600, 86_400];

/// Neighbouring numbers with the same proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub end: u64,
    pub when_s: u64,
    pub by: By,
}

#[derive(Debug, Clone)]
pub struct Spans {
    /// By their start.
    spans: BTreeMap<u64, Span>,
    grain: usize,
    max: usize,
}

impl Spans {
    pub fn new(max: usize) -> Spans {
        Spans { spans: BTreeMap::new(), grain: 0, max }
    }

    pub fn get(&self, number: u64) -> Option<Span> {
        self.spans.range(..=number).next_back().map(|(_, span)| *span).filter(|span| number < span.end)
    }

    /// The first number behind this one of which something else may be said.
    pub fn change_behind(&self, number: u64) -> Option<u64> {
        let end = self.get(number).map(|span| span.end);
        let start = self.spans.range(number.checked_add(1)?..).next().map(|(start, _)| *start);
        end.into_iter().chain(start).min()
    }

    pub fn iter(&self) -> impl Iterator<Item = Span> {
        self.spans.values().copied()
    }

    /// Takes note of a proof; where there is a newer one that stays.
    pub fn insert(&mut self, new: Span) {
        if new.start >= new.end {
            return;
        }
        // Those that overlap, and those that touch: they may become one with it.
        let first = self.spans.range(..new.start).next_back().filter(|(_, span)| span.end >= new.start);
        let from = first.map_or(new.start, |(start, _)| *start);
        let old: Vec<Span> = self.spans.range(from..=new.end).map(|(_, span)| *span).collect();
        let mut joined: Vec<Span> = Vec::with_capacity(old.len() * 2 + 1);
        let mut at = new.start;
        for span in old {
            self.spans.remove(&span.start);
            let (start, end) = (span.start.max(new.start), span.end.min(new.end));
            self.push(&mut joined, Span { end: span.end.min(new.start), ..span });
            self.push(&mut joined, Span { start: at, end: start.min(new.end), ..new });
            let winner = if span.when_s > new.when_s { span } else { new };
            self.push(&mut joined, Span { start, end, ..winner });
            at = at.max(end);
            if span.end > new.end {
                self.push(&mut joined, Span { start: at, end: new.end, ..new });
                at = new.end;
                self.push(&mut joined, Span { start: span.start.max(new.end), ..span });
            }
        }
        self.push(&mut joined, Span { start: at, end: new.end, ..new });
        self.spans.extend(joined.into_iter().map(|span| (span.start, span)));
        if self.spans.len() > self.max {
            self.shrink();
        }
    }

    /// Appends a span, as a part of the last one if it says the same.
    fn push(&self, spans: &mut Vec<Span>, span: Span) {
        if span.start >= span.end {
            return;
        }
        let grain_s = GRAINS_S.get(self.grain).copied().unwrap_or(1);
        match spans.last_mut() {
            Some(last)
                if last.end == span.start && last.by == span.by && last.when_s / grain_s == span.when_s / grain_s =>
            {
                last.end = span.end;
                last.when_s = last.when_s.min(span.when_s);
            }
            _ => spans.push(span),
        }
    }

    fn shrink(&mut self) {
        while self.spans.len() > self.max / 2 && self.grain + 1 < GRAINS_S.len() {
            self.grain += 1;
            let mut joined = Vec::with_capacity(self.spans.len());
            self.spans.values().for_each(|span| self.push(&mut joined, *span));
            self.spans = joined.into_iter().map(|span| (span.start, span)).collect();
        }
        if self.spans.len() > self.max / 2 {
            let mut lens: Vec<u64> = self.spans.values().map(|span| span.end - span.start).collect();
            let at = lens.len() - self.max / 2;
            let limit = *lens.select_nth_unstable(at).1;
            let mut equal = self.max / 2 - self.spans.values().filter(|span| span.end - span.start > limit).count();
            self.spans.retain(|_, span| {
                let len = span.end - span.start;
                let keep = len > limit || (len == limit && equal > 0);
                equal -= usize::from(keep && len == limit);
                keep
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn span(start: u64, end: u64, when_s: u64) -> Span {
        Span { start, end, when_s, by: By::Mount }
    }

    fn tidy(spans: &Spans) {
        let all: Vec<Span> = spans.iter().collect();
        assert!(all.iter().all(|span| span.start < span.end));
        assert!(all.windows(2).all(|pair| {
            let apart = pair[0].end < pair[1].start;
            let differ = pair[0].by != pair[1].by || pair[0].when_s != pair[1].when_s;
            apart || (pair[0].end == pair[1].start && differ)
        }));
    }

    proptest! {
        #[test]
        fn each_number_has_its_newest_time(
            notes in prop::collection::vec((0u64..60, 1u64..20, 0u64..30, 1u8..4), 1..60)
        ) {
            let mut spans = Spans::new(1000);
            // The oracle: all that was ever said of each number.
            let mut naive: HashMap<u64, Vec<(u64, By)>> = HashMap::new();
            for (start, len, when_s, by) in notes {
                let by = [By::Mount, By::Get, By::Selftest][by as usize - 1];
                spans.insert(Span { start, end: start + len, when_s, by });
                (start..start + len).for_each(|number| naive.entry(number).or_default().push((when_s, by)));
                tidy(&spans);
            }
            for number in 0..100 {
                let found = spans.get(number);
                let Some(said) = naive.get(&number) else {
                    prop_assert_eq!(found, None);
                    continue;
                };
                let found = found.unwrap();
                let newest = said.iter().map(|(when_s, _)| *when_s).max().unwrap();
                prop_assert!(said.contains(&(newest, found.by)) && found.when_s == newest, "{} {:?}", number, found);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_told_more_coarsely_and_then_forgotten_the_shortest_first() {
        let mut spans = Spans::new(8);
        // A minute each in one hour: they become one.
        (0..9).for_each(|n| spans.insert(span(n, n + 1, 7200 + n * 60)));
        assert_eq!(spans.iter().collect::<Vec<_>>(), [span(0, 9, 7200)]);
        (1..20).for_each(|n| spans.insert(span(n * 100, n * 100 + n, 7200)));
        assert!(spans.iter().count() <= 8);
        assert_eq!((spans.get(100), spans.get(1900)), (None, Some(span(1900, 1919, 7200))));
    }
}
