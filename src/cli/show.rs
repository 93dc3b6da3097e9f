//! How numbers, sizes, times and paths are shown.

use std::time::Duration;

use crate::catalog::{Kind, Timespec};
pub use crate::text::number;
use crate::text::shown;

/// `1.25 GiB`; exact below 1 KiB.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1023.995 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    if unit == 0 { format!("{count} B") } else { format!("{value:.2} {name}") }
}

/// Paths, as many as one likes to read; JSON has them all.
pub fn names(paths: &[Vec<u8>]) -> String {
    const MOST: usize = 8;
    let mut text: Vec<String> = paths.iter().take(MOST).map(|path| shown(path).to_string()).collect();
    if paths.len() > MOST {
        text.push(format!("{} more", number((paths.len() - MOST) as u64)));
    }
    text.join(", ")
}

/// `2.4 s`, `3 min 12 s`, `5 h 03 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// `3.2` of `part` to `whole`; `-` when there is nothing to compare.
pub fn ratio(whole: u64, part: u64) -> String {
    if part == 0 { "-".into() } else { format!("{:.1}", whole as f64 / part as f64) }
}

/// `2026-11-22 16:05` in the local time zone; the seconds since 1970 where no calendar reaches.
pub fn time(time: Timespec) -> String {
    match jiff::Timestamp::new(time.sec, time.nsec as i32) {
        Ok(stamp) => stamp.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string(),
        Err(_) => format!("@{}", time.sec),
    }
}

/// `drwxr-xr-x`, as `ls -l` has it.
pub fn mode(kind: Kind, perm: u16) -> String {
    let mut text = String::with_capacity(10);
    text.push(match kind {
        Kind::File => '-',
        Kind::Dir => 'd',
        Kind::Symlink => 'l',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
    });
    for (shift, special, set, unset) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        let bits = perm >> shift & 7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (perm & special != 0, bits & 1 != 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_as_people_write_them() {
        assert_eq!((bytes(0).as_str(), bytes(1023).as_str(), bytes(1024).as_str()), ("0 B", "1023 B", "1.00 KiB"));
        assert_eq!(bytes(u64::MAX), "16384.00 PiB");
        assert_eq!((number(0).as_str(), number(999).as_str(), number(1_234_567).as_str()), ("0", "999", "1,234,567"));
        assert_eq!(duration(Duration::from_secs(3_723)), "1 h 02 min");
        assert_eq!(mode(Kind::File, 0o4755), "-rwsr-xr-x");
        assert_eq!(mode(Kind::Dir, 0o1776), "drwxrwxrwT");
    }
}
