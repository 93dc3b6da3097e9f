//! What rules keep, against a slow model and by hand.

use jiff::civil::date;

use super::*;
use crate::catalog::VersionInfo;
use crate::ids::Version;

fn rows(times: &[Zoned]) -> Vec<VersionRow> {
    let row = |(n, time): (usize, &Zoned)| VersionRow {
        version: Version(n as u32),
        info: VersionInfo {
            started: Timespec { sec: time.timestamp().as_second(), nsec: 0 },
            tag: if n == 3 { "release".into() } else { String::new() },
            ..VersionInfo::default()
        },
        base: false,
        root: crate::index::Root { digest: crate::ids::TreeDigest([0; 32]), set_by: Version(0) },
    };
    times.iter().enumerate().map(row).collect()
}

fn kept(verdicts: &[Verdict]) -> Vec<u32> {
    verdicts.iter().filter(|verdict| verdict.keep).map(|verdict| verdict.version.version.0).collect()
}

fn zone() -> TimeZone {
    TimeZone::get("Europe/Berlin").unwrap()
}

/// Twice a day from 2025-11-01 on, at 00:30 and 12:00 local time.
fn half_days(days: i64) -> Vec<Zoned> {
    let first = date(2025, 11, 1);
    (0..days)
        .flat_map(|n| {
            let day = first.checked_add(Span::new().days(n)).unwrap();
            [day.at(0, 30, 0, 0), day.at(12, 0, 0, 0)].map(|time| time.to_zoned(zone()).unwrap())
        })
        .collect()
}

#[test]
fn a_schedule_keeps_the_newest_of_each_period() {
    let times = half_days(120);
    let all = rows(&times);
    let now = times.last().unwrap().clone();
    let rules = Rules { schedule: Some(parse_schedule("7d4w3m1y").unwrap()), ..Rules::default() };
    let verdicts = judge(&all, &rules, &now);
    // By hand, slowly: of each local day (week, month, year) the last index, the newest so many of them.
    let newest_of = |key: &dyn Fn(&Zoned) -> String, count: usize| -> Vec<u32> {
        let mut last: Vec<(String, u32)> = Vec::new();
        for (n, time) in times.iter().enumerate() {
            last.retain(|(known, _)| *known != key(time));
            last.push((key(time), n as u32));
        }
        last.iter().rev().take(count).map(|(_, n)| *n).collect()
    };
    let mut wanted = newest_of(&|t| t.strftime("%F").to_string(), 7);
    wanted.extend(newest_of(&|t| t.strftime("%G-%V").to_string(), 4));
    wanted.extend(newest_of(&|t| t.strftime("%Y-%m").to_string(), 3));
    wanted.extend(newest_of(&|t| t.strftime("%Y").to_string(), 1));
    wanted.sort_unstable();
    wanted.dedup();
    assert_eq!(kept(&verdicts), wanted);
    assert_eq!(
        verdicts.last().unwrap().why,
        "the newest, the day 2026-02-28, the week 2026-W09, the month 2026-02, the year 2026"
    );
    assert_eq!(verdicts[0].why, "no rule keeps it");
    // 00:30 in Berlin is the day before in UTC: days are local.
    assert!(wanted.iter().all(|n| n % 2 == 1), "{wanted:?}");
}

#[test]
fn periods_without_a_version_use_up_nothing() {
    let day = |y, m, d| date(y, m, d).at(9, 0, 0, 0).to_zoned(zone()).unwrap();
    let times = [day(2020, 1, 1), day(2022, 5, 5), day(2022, 5, 6), day(2025, 1, 1)];
    let with = |schedule: &str| {
        let rules = Rules { schedule: Some(parse_schedule(schedule).unwrap()), ..Rules::default() };
        kept(&judge(&rows(&times), &rules, &day(2026, 1, 1)))
    };
    assert_eq!(with("2y"), [2, 3]);
    assert_eq!(with("3y"), [0, 2, 3]);
    assert_eq!(with("1h"), [3]);
    assert_eq!(with("4d"), [0, 1, 2, 3]);
    assert_eq!(with("2q1m"), [2, 3]);
    // A clock that went back is taken as it is.
    let times = [day(2025, 1, 1), day(2024, 1, 1), day(2025, 1, 1)];
    let rules = Rules { schedule: Some(parse_schedule("2y").unwrap()), ..Rules::default() };
    assert_eq!(kept(&judge(&rows(&times), &rules, &day(2026, 1, 1))), [1, 2]);
}

#[test]
fn the_last_by_count_by_age_and_by_tag() {
    let times = half_days(20);
    let all = rows(&times);
    let now = date(2025, 11, 21).at(12, 0, 0, 0).to_zoned(zone()).unwrap();
    let with = |last: &str, tags: &[&str]| {
        let tags = tags.iter().map(ToString::to_string).collect();
        let rules = Rules { last: Some(parse_last(last).unwrap()), tags, ..Rules::default() };
        kept(&judge(&all, &rules, &now))
    };
    assert_eq!(with("3", &[]), [37, 38, 39]);
    assert_eq!(with("1", &["release", "other"]), [3, 39]);
    // Younger than a day: none is; the newest stays.
    assert_eq!(with("1d", &[]), [39]);
    assert_eq!(with("2d", &[]), [38, 39]);
    // From the 14th, 12:00, exclusively.
    assert_eq!(with("1w", &[]).len(), 12);
    assert_eq!(with("9999y", &[]).len(), 40);
    assert!(judge(&[], &Rules::default(), &now).is_empty());
}

#[test]
fn what_is_no_rule_is_refused() {
    for bad in ["", "7", "d", "7x", "0d", "7d7d", "7d4", "-1d", "7 d", "4294967296d", "1d2w3d"] {
        assert!(parse_schedule(bad).is_err(), "{bad:?}");
    }
    for bad in ["", "0", "0w", "2w3d", "w", "-1", "1.5d"] {
        assert!(parse_last(bad).is_err(), "{bad:?}");
    }
    assert_eq!(parse_last("30"), Ok(Last::Versions(30)));
    assert_eq!(parse_last("2W"), Ok(Last::Younger(Count { count: 2, period: Period::Week })));
}
