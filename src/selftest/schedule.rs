//! `--inc 1d/30d[,500MB]`: what is due in this run, so that everything is proven once a period. Pure: the clock is given.
//!
//! Invariants: no state of its own, so a schedule may change at any time: what was proven, and when, is all it
//! needs. The oldest comes first; what was never proven counts from the time when it was written. The limit is never
//! passed; the cycle then takes longer, and the plan says how long. After missed runs at most twice the usual share
//! is done, until all is caught up.

use std::fmt;
use std::str::FromStr;

use crate::backupdir::config::parse_duration;

const MINUTE_S: u64 = 60;
const HOUR_S: u64 = 60 * MINUTE_S;
const DAY_S: u64 = 24 * HOUR_S;

/// How often runs come, and in what time they shall have proven everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    pub every_s: u64,
    pub period_s: u64,
    /// Bytes that one run may read.
    pub limit_bytes: Option<u64>,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |seconds: u64| match seconds {
            s if s.is_multiple_of(DAY_S) => format!("{}d", s / DAY_S),
            s if s.is_multiple_of(HOUR_S) => format!("{}h", s / HOUR_S),
            s => format!("{}m", s / MINUTE_S),
        };
        write!(f, "{}/{}", time(self.every_s), time(self.period_s))?;
        self.limit_bytes.map_or(Ok(()), |limit| write!(f, ",{limit}"))
    }
}

impl FromStr for Schedule {
    type Err = String;

    /// `1d/30d`, `12h/2w,500MB`: units m, h, d, w (a number alone: days).
    fn from_str(text: &str) -> Result<Schedule, String> {
        let (times, limit) = match text.split_once(',') {
            Some((times, limit)) => (times, Some(crate::backupdir::config::parse_size(limit.trim())?)),
            None => (text, None),
        };
        let (every, period) =
            times.split_once('/').ok_or_else(|| format!("`{text}` is no schedule such as 1d/30d or 1d/30d,500MB"))?;
        let schedule = Schedule { every_s: duration_s(every)?, period_s: duration_s(period)?, limit_bytes: limit };
        if schedule.every_s > schedule.period_s {
            return Err(format!("`{text}`: runs every {every} can't prove everything in {period}"));
        }
        if limit == Some(0) {
            return Err(format!("`{text}`: a limit of 0 allows nothing"));
        }
        Ok(schedule)
    }
}

fn duration_s(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let wrong = || format!("`{text}` is no time such as 12h, 1d or 4w");
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let with_unit = if is_number { format!("{text}d") } else { text.to_string() };
    // Runs don't come by the second.
    let time = parse_duration(&with_unit).ok().filter(|_| !with_unit.ends_with('s'));
    time.map(|time| time.as_secs()).ok_or_else(wrong)
}

/// A piece of work that is done as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit<K> {
    pub key: K,
    /// What proving it reads.
    pub bytes: u64,
    /// Its last proof by the level's own method, or when it was written.
    pub since_s: u64,
}

impl Schedule {
    /// The same with a limit of no more than this.
    pub fn within(self, limit_bytes: Option<u64>) -> Schedule {
        let limit_bytes = self.limit_bytes.into_iter().chain(limit_bytes).min();
        Schedule { limit_bytes, ..self }
    }

    /// What was proven then would be older than the period when the next run comes.
    pub fn is_due(&self, since_s: u64, now_s: u64) -> bool {
        since_s <= (now_s + self.every_s).saturating_sub(self.period_s)
    }
}

/// What one run does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<K> {
    /// The oldest first.
    pub chosen: Vec<K>,
    pub bytes: u64,
    pub total_bytes: u64,
    /// Older than the period already, and not chosen: earlier runs were missed, or the limit is too low.
    pub late_bytes: u64,
    /// In what time everything is proven at this rate, if that is longer than the period.
    pub longer_s: Option<u64>,
}

/// Chooses what this run proves. `units` in the order in which they are read best; `last_run_s` is the start of the
/// last run of this level that had a schedule.
pub fn plan<K>(mut units: Vec<Unit<K>>, schedule: &Schedule, now_s: u64, last_run_s: Option<u64>) -> Plan<K> {
    units.sort_by_key(|unit| unit.since_s);
    let total_bytes = units.iter().map(|unit| unit.bytes).sum::<u64>();
    // A run that comes early has less to do, one that comes late has more: up to twice as much.
    let elapsed_s = last_run_s.map_or(schedule.every_s, |last| now_s.saturating_sub(last)).min(2 * schedule.every_s);
    let share = portion(total_bytes, elapsed_s, schedule.period_s);
    let twice = portion(total_bytes, 2 * schedule.every_s, schedule.period_s);
    let due = units.iter().filter(|unit| schedule.is_due(unit.since_s, now_s)).map(|unit| unit.bytes).sum::<u64>();
    let wanted = share.max(due.min(twice));
    let limit = schedule.limit_bytes.unwrap_or(u64::MAX);
    let late_before_s = now_s.saturating_sub(schedule.period_s);
    let mut plan = Plan { chosen: Vec::new(), bytes: 0, total_bytes, late_bytes: 0, longer_s: None };
    let mut full = false;
    for unit in units {
        full |= plan.bytes >= wanted || plan.bytes.saturating_add(unit.bytes) > limit;
        if full {
            plan.late_bytes += if unit.since_s < late_before_s { unit.bytes } else { 0 };
        } else {
            plan.bytes += unit.bytes;
            plan.chosen.push(unit.key);
        }
    }
    let runs = schedule.period_s / schedule.every_s;
    if limit.saturating_mul(runs) < total_bytes {
        plan.longer_s = Some(total_bytes.div_ceil(limit.max(1)).saturating_mul(schedule.every_s));
    }
    plan
}

/// `total` × `part` / `whole`, rounded up.
fn portion(total: u64, part: u64, whole: u64) -> u64 {
    let exact = (u128::from(total) * u128::from(part)).div_ceil(u128::from(whole.max(1)));
    u64::try_from(exact).unwrap_or(u64::MAX).min(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read_and_nonsense_is_refused() {
        let of = |every_s, period_s, limit_bytes| Schedule { every_s, period_s, limit_bytes };
        for (text, wanted) in [
            ("1d/30d", of(DAY_S, 30 * DAY_S, None)),
            ("1/30", of(DAY_S, 30 * DAY_S, None)),
            ("12h/2w,500MB", of(12 * HOUR_S, 14 * DAY_S, Some(500 << 20))),
            ("30m/1d, 1GiB", of(30 * MINUTE_S, DAY_S, Some(1 << 30))),
        ] {
            assert_eq!(text.parse(), Ok(wanted), "{text}");
            assert_eq!(wanted.to_string().parse(), Ok(wanted), "{wanted}");
        }
        for text in [
            "",
            "1d",
            "30d/1d",
            "1x/2x",
            "0d/1d",
            "-1d/1d",
            "1d/30d,",
            "1d/30d,0",
            "99999999999999999d/1d",
            "1d/30d,many",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
    }

    /// A backup that is proven day by day. Nothing here knows how `plan` works.
    struct World {
        now_s: u64,
        last_run_s: Option<u64>,
        /// Size, time of writing, times of proofs.
        units: Vec<(u64, u64, Vec<u64>)>,
        seed: u64,
    }

    impl World {
        fn new(units: usize, seed: u64) -> World {
            let mut world = World { now_s: 1_000 * DAY_S, last_run_s: None, units: Vec::new(), seed };
            (0..units).for_each(|_| world.write());
            world
        }

        fn random(&mut self, below: u64) -> u64 {
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.seed >> 33) % below
        }

        fn write(&mut self) {
            let bytes = 1 + self.random(4 << 20);
            self.units.push((bytes, self.now_s, Vec::new()));
        }

        fn total(&self) -> u64 {
            self.units.iter().map(|(bytes, ..)| bytes).sum()
        }

        fn run(&mut self, schedule: &Schedule) -> Plan<usize> {
            let units = self.units.iter().enumerate();
            let units = units.map(|(key, (bytes, written_s, proofs))| Unit {
                key,
                bytes: *bytes,
                since_s: proofs.last().copied().unwrap_or(*written_s),
            });
            let plan = plan(units.collect(), schedule, self.now_s, self.last_run_s);
            for key in &plan.chosen {
                self.units[*key].2.push(self.now_s);
            }
            let read: u64 = plan.chosen.iter().map(|key| self.units[*key].0).sum();
            assert_eq!(read, plan.bytes);
            assert!(schedule.limit_bytes.is_none_or(|limit| read <= limit), "{read} passes the limit");
            self.last_run_s = Some(self.now_s);
            plan
        }

        /// The longest time that any unit was without a proof, up to now.
        fn longest_s(&self) -> u64 {
            let gaps = self.units.iter().map(|(_, written_s, proofs)| {
                let times: Vec<u64> =
                    [*written_s].into_iter().chain(proofs.iter().copied()).chain([self.now_s]).collect();
                times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
            });
            gaps.max().unwrap_or(0)
        }
    }

    #[test]
    fn over_ninety_days_everything_is_proven_once_a_period_and_no_run_does_much_more_than_its_share() {
        for (seed, spec) in [(1, "1d/30d"), (2, "1d/7d"), (3, "12h/10d"), (4, "1d/1d")] {
            let schedule: Schedule = spec.parse().unwrap();
            let mut world = World::new(900, seed);
            let start_s = world.now_s;
            while world.now_s < start_s + 90 * DAY_S {
                world.now_s += schedule.every_s;
                for _ in 0..world.random(6) {
                    world.write();
                }
                let plan = world.run(&schedule);
                assert_eq!((plan.late_bytes, plan.longer_s), (0, None), "{spec}");
                let twice = 2 * world.total() * schedule.every_s / schedule.period_s + (8 << 20);
                assert!(plan.bytes <= twice, "{spec}: {} of {}", plan.bytes, plan.total_bytes);
                assert!(world.longest_s() <= schedule.period_s, "{spec}: {} s", world.longest_s());
            }
        }
    }

    #[test]
    fn a_limit_is_never_passed_and_the_longer_cycle_is_told_and_kept() {
        let mut world = World::new(1_000, 7);
        let limit = world.total() / 60;
        let schedule = Schedule { every_s: DAY_S, period_s: 30 * DAY_S, limit_bytes: Some(limit) };
        let mut longer_s = 0;
        for _ in 0..200 {
            world.now_s += DAY_S;
            longer_s = world.run(&schedule).longer_s.expect("60 days are needed");
        }
        assert!((59 * DAY_S..64 * DAY_S).contains(&longer_s), "{longer_s}");
        // A run ends before the piece that would pass the limit: each leaves up to one piece of it unused.
        let slack = longer_s + longer_s / 8 + DAY_S;
        assert!(world.longest_s() <= slack, "{} days", world.longest_s() / DAY_S);
        let tiny = Schedule { limit_bytes: Some(1), ..schedule };
        assert!(world.run(&tiny).chosen.is_empty());
    }

    #[test]
    fn missed_days_are_caught_up_over_the_next_runs_oldest_first() {
        let schedule: Schedule = "1d/20d".parse().unwrap();
        let mut world = World::new(800, 11);
        for day in 0..40 {
            world.now_s += DAY_S;
            // A week without power.
            if !(25..32).contains(&day) {
                world.run(&schedule);
            }
        }
        let share = world.total() / 20;
        world.now_s += 6 * DAY_S;
        let before = world.units.clone();
        let plan = world.run(&schedule);
        assert!(plan.bytes <= 2 * share + (8 << 20), "{} of a share of {share}", plan.bytes);
        let since = |key: usize| before[key].2.last().copied().unwrap_or(before[key].1);
        let newest_chosen = plan.chosen.iter().map(|key| since(*key)).max().unwrap();
        let oldest_left = (0..before.len()).filter(|key| !plan.chosen.contains(key)).map(since).min().unwrap();
        assert!(newest_chosen <= oldest_left);
        for _ in 0..20 {
            world.now_s += DAY_S;
            world.run(&schedule);
        }
        let oldest =
            world.units.iter().map(|(_, written_s, proofs)| proofs.last().copied().unwrap_or(*written_s)).min();
        assert!(world.now_s - oldest.unwrap() <= schedule.period_s);
    }

    #[test]
    fn runs_that_come_early_do_less_and_a_new_schedule_takes_over_at_once() {
        let slow: Schedule = "1d/30d".parse().unwrap();
        let mut world = World::new(600, 5);
        for _ in 0..30 {
            world.now_s += DAY_S;
            world.run(&slow);
        }
        world.now_s += HOUR_S;
        let early = world.run(&slow);
        assert!(early.bytes <= world.total() / 30 / 24 + (4 << 20), "{}", early.bytes);
        let fast: Schedule = "1d/5d".parse().unwrap();
        for _ in 0..8 {
            world.now_s += DAY_S;
            world.run(&fast);
        }
        let oldest = world.units.iter().filter_map(|(.., proofs)| proofs.last().copied()).min().unwrap();
        assert!(world.now_s - oldest <= 5 * DAY_S);
    }
}
