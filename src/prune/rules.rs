//! The rules of `retain`: which versions stay.
//!
//! Invariants: a version stays if any rule keeps it; the newest always does. Of a period the newest version counts, and a
//! period without one does not use up the number of a rule. Days, weeks and years are those of the local time zone.

use std::fmt;

use jiff::{Span, Timestamp, Zoned, tz::TimeZone};

use super::versions::Verdict;
use crate::catalog::Timespec;
use crate::index::VersionRow;

/// A length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
}

impl Period {
    const ALL: [(char, Period); 6] = [
        ('h', Period::Hour),
        ('d', Period::Day),
        ('w', Period::Week),
        ('m', Period::Month),
        ('q', Period::Quarter),
        ('y', Period::Year),
    ];

    fn of(unit: char) -> Option<Period> {
        Period::ALL.iter().find(|(letter, _)| *letter == unit.to_ascii_lowercase()).map(|(_, period)| *period)
    }

    fn name(self) -> &'static str {
        match self {
            Period::Hour => "hour",
            Period::Day => "day",
            Period::Week => "week",
            Period::Month => "month",
            Period::Quarter => "quarter",
            Period::Year => "year",
        }
    }

    /// The one that a time is in, as text.
    fn at(self, time: &Zoned) -> String {
        let (year, month) = (time.year(), time.month());
        match self {
            Period::Hour => time.strftime("%Y-%m-%d %H:00").to_string(),
            Period::Day => time.strftime("%Y-%m-%d").to_string(),
            Period::Week => {
                let week = time.date().iso_week_date();
                format!("{}-W{:02}", week.year(), week.week())
            }
            Period::Month => format!("{year}-{month:02}"),
            Period::Quarter => format!("{year}-Q{}", (month + 2) / 3),
            Period::Year => year.to_string(),
        }
    }

    fn span(self, count: u32) -> Option<Span> {
        let (span, count) = (Span::new(), i64::from(count));
        match self {
            Period::Hour => span.try_hours(count),
            Period::Day => span.try_days(count),
            Period::Week => span.try_weeks(count),
            Period::Month => span.try_months(count),
            Period::Quarter => span.try_months(count * 3),
            Period::Year => span.try_years(count),
        }
        .ok()
    }
}

/// So many periods: `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    pub count: u32,
    pub period: Period,
}

/// `-s`: one version a period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule(pub Vec<Count>);

/// `-t`: the newest ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    Versions(u32),
    Younger(Count),
}

impl fmt::Display for Last {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Last::Versions(count) => write!(f, "one of the last {count}"),
            Last::Younger(Count { count, period }) => {
                write!(f, "younger than {}", crate::text::counted(u64::from(*count), period.name()))
            }
        }
    }
}

/// What keeps versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    pub schedule: Option<Schedule>,
    pub last: Option<Last>,
    pub tags: Vec<String>,
}

/// Numbers with units, such as `7d4w12m1y`: h, d, w, m, q, y, each at most once.
pub fn parse_schedule(text: &str) -> Result<Schedule, String> {
    let wrong = || format!("`{text}` is no schedule such as 7d4w12m1y: numbers, each with one of h d w m q y");
    let (mut counts, mut digits) = (Vec::<Count>::new(), String::new());
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        let (count, period) = (digits.parse().map_err(|_| wrong())?, Period::of(letter).ok_or_else(wrong)?);
        if count == 0 || counts.iter().any(|known| known.period == period) {
            return Err(wrong());
        }
        counts.push(Count { count, period });
        digits.clear();
    }
    if counts.is_empty() || !digits.is_empty() { Err(wrong()) } else { Ok(Schedule(counts)) }
}

/// A number of versions, or an age such as `2w`.
pub fn parse_last(text: &str) -> Result<Last, String> {
    let wrong = || format!("`{text}` is neither a number of versions nor an age such as 2w (h d w m q y)");
    if let Ok(count) = text.parse::<u32>() {
        return if count > 0 { Ok(Last::Versions(count)) } else { Err(wrong()) };
    }
    match parse_schedule(text).map_err(|_| wrong())?.0.as_slice() {
        [one] => Ok(Last::Younger(*one)),
        _ => Err(wrong()),
    }
}

fn local(time: Timespec, zone: &TimeZone) -> Zoned {
    Timestamp::new(time.sec, 0)
        .unwrap_or(if time.sec < 0 { Timestamp::MIN } else { Timestamp::MAX })
        .to_zoned(zone.clone())
}

/// Judges all versions, oldest first.
pub fn judge(versions: &[VersionRow], rules: &Rules, now: &Zoned) -> Vec<Verdict> {
    let mut why: Vec<Vec<String>> = vec![Vec::new(); versions.len()];
    let times: Vec<Zoned> = versions.iter().map(|row| local(row.info.started, now.time_zone())).collect();
    if let Some(newest) = why.last_mut() {
        newest.push("the newest".into());
    }
    match rules.last {
        Some(last @ Last::Versions(count)) => {
            why.iter_mut().rev().take(count as usize).for_each(|why| why.push(last.to_string()));
        }
        Some(last @ Last::Younger(Count { count, period })) => {
            // What reaches back before all time keeps everything.
            let since = period.span(count).and_then(|span| now.checked_sub(span).ok());
            for (why, time) in why.iter_mut().zip(&times) {
                if since.as_ref().is_none_or(|since| time > since) {
                    why.push(last.to_string());
                }
            }
        }
        None => {}
    }
    for Count { count, period } in rules.schedule.iter().flat_map(|schedule| &schedule.0) {
        let (mut left, mut before) = (*count, None);
        for (why, time) in why.iter_mut().zip(&times).rev() {
            let at = period.at(time);
            if left > 0 && before.as_ref() != Some(&at) {
                why.push(format!("the {} {at}", period.name()));
                left -= 1;
                before = Some(at);
            }
        }
    }
    let verdicts = versions.iter().zip(why).map(|(row, mut why)| {
        if rules.tags.contains(&row.info.tag) {
            why.push(format!("its tag is {}", crate::text::one_line(&row.info.tag)));
        }
        let keep = !why.is_empty();
        Verdict { version: row.clone(), keep, why: if keep { why.join(", ") } else { "no rule keeps it".into() } }
    });
    verdicts.collect()
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
