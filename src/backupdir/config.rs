//! config.toml: the settings of a backup dir. Sizes are numbers of bytes or text such as "64MiB".

use serde::{Deserialize, Serialize};

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
    /// Bound of the cache of fetched frames, bytes.
    #[serde(with = "size")]
    pub cache_size_limit: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config { arc_size_limit: 64 << 20, block_size: 64 << 10, zstd_level: 3, cache_size_limit: 1 << 30 }
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
        format!(
            "# Settings of this backup dir; delete a line to get the default.\n\
             arc-size-limit = \"{}MiB\"\nblock-size = \"{}KiB\"\nzstd-level = {}\ncache-size-limit = \"{}MiB\"\n",
            self.arc_size_limit >> 20,
            self.block_size >> 10,
            self.zstd_level,
            self.cache_size_limit >> 20
        )
    }
}

/// Parses `4096`, `64k`, `64KiB`, `1.5G`, `2MB`: powers of 1024 in every spelling, as hb, restic and rsync have it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("`{text}` is not a size such as 64KiB or 1G")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a size such as 64KiB or 1G"))?;
    let bytes = number * (1u64 << shift) as f64;
    if bytes < (1u64 << 62) as f64 { Ok(bytes as u64) } else { Err(format!("`{text}` is too large")) }
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
        ] {
            assert!(Config::parse(bad).unwrap_err().contains(word), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_in_every_common_spelling() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64k", 65536), ("64KiB", 65536), ("1.5M", 1_572_864), ("2 GB", 2 << 30)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "k", "-1", "1x", "9999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
