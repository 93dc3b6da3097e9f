//! config.toml: the settings of a backup dir. Sizes are numbers of bytes or text such as "64MiB".

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::arc::parity::Percent;
use crate::text::shown;

/// Settings, with their defaults where the file is silent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// An arc is closed when it has grown to this size, bytes.
    #[serde(with = "size")]
    pub arc_size_limit: u64,
    /// Average size of a content-defined block, bytes; a power of two, 4 KiB to 1 MiB.
    #[serde(with = "size")]
    pub block_size: u64,
    /// zstd level, 1 to 19.
    pub zstd_level: i32,
    /// Bytes of file data that stay here once destinations have it; None: all.
    #[serde(with = "limit")]
    pub cache_size_limit: Option<u64>,
    /// Parity beside each arc, in percent of it; None: no more is made.
    #[serde(with = "percent")]
    pub parity: Option<Percent>,
    /// A shell command that `watch` runs for each event.
    pub on_event: Option<String>,
    /// How long `watch` waits for a good copy to come back before it puts together what is left.
    #[serde(with = "duration")]
    pub recovery_wait_interval: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            arc_size_limit: 64 << 20,
            block_size: 64 << 10,
            zstd_level: 3,
            cache_size_limit: None,
            parity: None,
            on_event: None,
            recovery_wait_interval: Duration::from_secs(5 * 60),
        }
    }
}

impl Config {
    /// Reads config.toml; the error says what is wrong and where.
    pub fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|e| e.to_string().trim_end().replace('\n', " "))?;
        let bounds = [
            ("arc-size-limit", config.arc_size_limit, 1 << 20, 4 << 30),
            ("block-size", config.block_size, 4 << 10, 1 << 20),
            ("zstd-level", config.zstd_level.max(0) as u64, 1, 19),
        ];
        for (name, value, low, high) in bounds {
            if !(low..=high).contains(&value) {
                return Err(format!("{name} is {value}, it must be between {low} and {high}"));
            }
        }
        if !config.block_size.is_power_of_two() {
            return Err("block-size must be a power of two".into());
        }
        Ok(config)
    }

    /// The file that `assay init` writes.
    pub fn to_text(&self) -> String {
        let parity =
            self.parity.map_or("# parity = \"2%\"".into(), |percent| format!("parity = \"{}%\"", percent.get()));
        format!(
            "# Settings of this backup dir; delete a line to get the default.\n\
             arc-size-limit = \"{}MiB\"\nblock-size = \"{}KiB\"\nzstd-level = {}\ncache-size-limit = {}\n{parity}\n",
            self.arc_size_limit >> 20,
            self.block_size >> 10,
            self.zstd_level,
            self.cache_size_limit.map_or("-1".to_string(), |bytes| bytes.to_string())
        )
    }
}

/// Longest fraction of a size: all of its digits count.
const MAX_FRACTION_DIGITS: usize = 9;

/// Parses `4096`, `64k`, `64KiB`, `1.5G`, `2 MB`: powers of 1024 in every spelling, as hb, restic and rsync have it.
///
/// size = digits [`.` digits] [space] [unit]; unit = `B` | (`K` | `M` | `G` | `T`) [`B` | `iB`], in either case. A fraction
/// needs a unit above bytes, and what it leaves of a byte is cut off.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{}` is not a size such as 64KiB or 1G", shown(text));
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let shift = match unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase().as_str() {
        "" | "b" if !unit.ends_with(' ') => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if shift > 0 && (1..=MAX_FRACTION_DIGITS).contains(&fraction.len()) => {
            (whole, fraction)
        }
        Some(_) => return Err(wrong()),
        None => (number, "0"),
    };
    let digits = |digits: &str| {
        let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if all { Ok(digits.parse::<u64>().unwrap_or(u64::MAX)) } else { Err(wrong()) }
    };
    let (whole, numerator) = (u128::from(digits(whole)?), u128::from(digits(fraction)?));
    let bytes = (whole << shift) + (numerator << shift) / 10u128.pow(fraction.len() as u32);
    let bytes = u64::try_from(bytes).ok().filter(|bytes| *bytes < 1 << 62);
    bytes.ok_or_else(|| format!("`{}` is too large", shown(text)))
}

mod size {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Bytes(u64),
        Text(String),
    }

    pub fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(*bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        match Size::deserialize(deserializer)? {
            Size::Bytes(bytes) => Ok(bytes),
            Size::Text(text) => super::parse_size(&text).map_err(serde::de::Error::custom),
        }
    }
}

/// Parses `30s`, `5m`, `12h`, `1d`, `4w`: one second to 100 years.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{}` is no time such as 30s, 5m, 12h or 1d", shown(text));
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_s = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(unit_s).filter(|seconds| (1..=100 * 366 * 86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}s", time.as_secs()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        super::parse_duration(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A bound, or -1 for none.
mod limit {
    use serde::{Deserialize, Deserializer, Serializer};

    /// What earlier releases wrote into each config.toml, when it bounded nothing.
    const UNUSED: &str = "1024MiB";

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Limit {
        Number(i64),
        Text(String),
    }

    pub fn serialize<S: Serializer>(limit: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match limit {
            Some(bytes) => serializer.serialize_u64(*bytes),
            None => serializer.serialize_i64(-1),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let wrong =
            |text: &str| serde::de::Error::custom(format!("`{text}` is no size such as 10G, and not -1 for all"));
        match Limit::deserialize(deserializer)? {
            Limit::Number(-1) => Ok(None),
            Limit::Number(number) => u64::try_from(number).map(Some).map_err(|_| wrong(&number.to_string())),
            Limit::Text(text) if matches!(text.as_str(), "-1" | UNUSED) => Ok(None),
            Limit::Text(text) => super::parse_size(&text).map(Some).map_err(serde::de::Error::custom),
        }
    }
}

/// `2%`, or 0 for none.
mod percent {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Percent;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Number(i64),
        Text(String),
    }

    pub fn serialize<S: Serializer>(percent: &Option<Percent>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}%", percent.map_or(0, Percent::get)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Percent>, D::Error> {
        let text = match Text::deserialize(deserializer)? {
            Text::Number(0) => return Ok(None),
            Text::Number(number) => number.to_string(),
            Text::Text(text) => text,
        };
        if matches!(text.as_str(), "0" | "0%") {
            return Ok(None);
        }
        let percent = text.strip_suffix('%').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        match percent.and_then(|digits| digits.parse().ok()).and_then(Percent::new) {
            Some(percent) => Ok(Some(percent)),
            None => Err(serde::de::Error::custom(format!(
                "parity is `{text}`, it must be \"1%\" to \"50%\", or 0 for none"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_file_reads_back_and_bad_settings_are_named() {
        assert_eq!(Config::parse(&Config::default().to_text()), Ok(Config::default()));
        assert_eq!(Config::parse(""), Ok(Config::default()));
        for (bad, word) in [
            ("zstd-level = 99", "zstd-level"),
            ("block-size = 5000", "power of two"),
            ("arc-size = 1", "arc-size"),
            ("block-size = \"9 bananas\"", "bananas"),
            ("cache-size-limit = -2", "-1 for all"),
            ("cache-size-limit = \"much\"", "much"),
            ("parity = 2", "must be"),
            ("parity = \"51%\"", "must be"),
            ("parity = \"+2%\"", "must be"),
            ("parity = \"some\"", "must be"),
        ] {
            assert!(Config::parse(bad).unwrap_err().contains(word), "{bad}");
        }
    }

    #[test]
    fn what_is_kept_here_is_bounded_only_where_somebody_said_so() {
        let limit = |text: &str| Config::parse(&format!("cache-size-limit = {text}")).unwrap().cache_size_limit;
        assert_eq!((limit("-1"), limit("\"-1\""), limit("\"1024MiB\"")), (None, None, None));
        assert_eq!((limit("0"), limit("\"1GiB\""), limit("5")), (Some(0), Some(1 << 30), Some(5)));
        let config = Config { cache_size_limit: Some(7), ..Config::default() };
        assert_eq!(Config::parse(&config.to_text()), Ok(config));
    }

    #[test]
    fn parity_is_kept_only_where_somebody_said_so() {
        let parity = |text: &str| Config::parse(&format!("parity = {text}")).unwrap().parity;
        assert_eq!((parity("0"), parity("\"0\""), parity("\"0%\"")), (None, None, None));
        assert_eq!((parity("\"1%\""), parity("\"50%\"")), (Percent::new(1), Percent::new(50)));
        let config = Config { parity: Percent::new(2), ..Config::default() };
        assert_eq!(Config::parse(&config.to_text()), Ok(config));
        // A release that does not know the key reads what `init` writes.
        assert!(!Config::default().to_text().lines().any(|line| line.starts_with("parity")));
    }

    #[test]
    fn sizes_are_read_in_every_common_spelling() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("4096b", 4096), ("64k", 65536), ("64KiB", 65536), ("1.5M", 1_572_864)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, bytes) in [("2 GB", 2 << 30), ("2gib", 2 << 30), ("0.5K", 512), ("1.3k", 1331), ("3T", 3 << 40)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in [
            "",
            " ",
            "k",
            "b",
            ".",
            "-1",
            "+1",
            "1x",
            "1kx",
            "1kbb",
            "1bb",
            "1kii",
            "1ki",
            "1i",
            "1ib",
            "1kibb",
            "1bk",
            "1 ",
            " 1",
            "1  k",
            "1k ",
            "1\tk",
            "1\u{a0}k",
            "1\n",
            "1.",
            ".5k",
            "1.k",
            "1.2.3",
            "1.2.3k",
            "1..5k",
            "1.5",
            "1.5b",
            "1,5k",
            "1_000",
            "1e3",
            "0x10",
            "nan",
            "inf",
            "NaNk",
            "1e400",
            "9999999T",
            "4611686018427387904",
            "99999999999999999999999999",
            "1.0000000001k",
            "１k",
            "1K\0",
        ] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_size("4611686018427387903"), Ok((1 << 62) - 1));
    }
}
