//! Which options go together, and how users name arcs and blocks.

use std::str::FromStr;

use super::{BlockRef, Fix, Level, Options, Scope};
use crate::error::{Error, Result};
use crate::ids::{ArcSerial, BlockHash, BlockId, FrameNo, Slot};
use crate::text::shown;

impl Level {
    /// From the number after `-v`.
    pub fn from_number(number: u8) -> Option<Level> {
        [Level::Opens, Level::Pages, Level::Structure, Level::LocalBlocks, Level::AllCopies, Level::Files]
            .into_iter()
            .find(|level| *level as u8 == number)
    }
}

impl FromStr for BlockRef {
    type Err = String;

    /// `b12.34.0`, or a block hash of 40 hexadecimal digits.
    fn from_str(text: &str) -> Result<BlockRef, String> {
        let wrong = || format!("`{text}` is no block such as b12.34.0, and no block hash");
        let parts: Vec<&str> = text.strip_prefix('b').map(|rest| rest.split('.').collect()).unwrap_or_default();
        if let [arc, frame, slot] = parts.as_slice() {
            let arc = arc.parse().map(ArcSerial).map_err(|_| wrong())?;
            let frame = frame.parse().map(FrameNo).map_err(|_| wrong())?;
            let slot = slot.parse().map(Slot).map_err(|_| wrong())?;
            let possible = arc <= ArcSerial::MAX && frame <= FrameNo::MAX && slot <= Slot::MAX;
            let id = possible.then(|| BlockId::new(arc, frame, slot)).filter(|id| id.to_string() == text);
            return id.map(BlockRef::Id).ok_or_else(wrong);
        }
        let mut hash = [0; 20];
        if text.len() != 40 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        for (n, byte) in hash.iter_mut().enumerate() {
            let digits = text.get(2 * n..2 * n + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(BlockRef::Hash(BlockHash(hash)))
    }
}

impl Options {
    /// All that a level tests, with nothing done about it.
    pub fn of(level: Level) -> Options {
        let (scope, fix) = (Scope::Everything, Fix::Report);
        Options { level, scope, rev: None, sample: None, seed: None, inc: None, download_limit: None, fix }
    }

    /// # Errors
    /// `USAGE` for combinations that make no sense, one line each.
    pub(super) fn check(&self) -> Result<()> {
        let level = self.level;
        let by_arcs = (Level::Structure..=Level::AllCopies).contains(&level);
        let by_files = matches!(level, Level::Structure | Level::Files);
        let reads_arcs = matches!(level, Level::LocalBlocks | Level::AllCopies);
        let number = level as u8;
        let complaint = match (&self.scope, &self.rev, self.sample) {
            (Scope::Arcs(_) | Scope::Blocks(_), ..) if !by_arcs => {
                Some(format!("arcs and blocks are tested with -v2, -v3 and -v4, not with -v{number}"))
            }
            (Scope::Paths(_), ..) if !by_files => {
                Some(format!("paths are tested with -v2 and -v5, not with -v{number}"))
            }
            (_, Some(_), _) if !by_files => Some(format!("-r goes with -v2 and -v5, not with -v{number}")),
            (Scope::Arcs(_) | Scope::Blocks(_), Some(_), _) => {
                Some("arcs and blocks belong to no version: leave -r out".into())
            }
            (_, _, Some(_)) if !reads_arcs => Some(format!("--sample goes with -v3 and -v4, not with -v{number}")),
            (_, _, Some(0)) => Some("--sample 0 would test nothing".into()),
            (Scope::Blocks(_), _, Some(_)) => {
                Some("a block that is named is tested as it is: leave --sample out".into())
            }
            _ if self.seed.is_some() && self.sample.is_none() => {
                Some("--seed repeats a sample or a drill: it goes with --sample or --drill".into())
            }
            _ if self.download_limit.is_some() && level != Level::AllCopies => {
                Some(format!("--download-limit goes with -v4, not with -v{number}"))
            }
            _ if self.download_limit == Some(0) => Some("--download-limit 0 would fetch nothing".into()),
            _ if self.inc.is_some() && level < Level::LocalBlocks => {
                Some(format!("--inc goes with -v3, -v4 and -v5, not with -v{number}"))
            }
            _ if self.inc.is_some()
                && (self.scope != Scope::Everything || self.rev.is_some() || self.sample.is_some()) =>
            {
                Some("--inc chooses itself what is due: leave arcs, blocks, paths, -r and --sample out".into())
            }
            (_, _, Some(_)) if self.fix == Fix::Correct => {
                Some("--fix needs to see all of an arc: it does not go with --sample".into())
            }
            _ => None,
        };
        complaint.map_or(Ok(()), |what| Err(Error::Usage(what)))
    }

    /// What part of the backup it is about, as the ledger remembers it; empty: all of it.
    pub(super) fn scope_text(&self) -> String {
        let mut words: Vec<String> = match &self.scope {
            Scope::Everything => Vec::new(),
            Scope::Arcs(names) => names.iter().map(ToString::to_string).collect(),
            Scope::Paths(paths) => paths.iter().map(|path| shown(path).to_string()).collect(),
            Scope::Blocks(blocks) => blocks
                .iter()
                .map(|block| match block {
                    BlockRef::Id(id) => id.to_string(),
                    BlockRef::Hash(hash) => hash.to_string(),
                })
                .collect(),
        };
        words.extend(self.rev.as_ref().map(|rev| format!("-r {rev}")));
        words.extend(self.sample.map(|count| format!("--sample {count}")));
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ArcName, Version};

    fn accepted(level: u8, scope: &Scope, rev: bool, sample: Option<u32>, fix: Fix) -> bool {
        let level = Level::from_number(level).unwrap();
        let rev = rev.then(|| "r1".to_string());
        let checked = Options { scope: scope.clone(), rev, sample, fix, ..Options::of(level) }.check();
        assert!(checked.as_ref().err().is_none_or(|e| e.code() == "USAGE" && !e.to_string().contains('\n')));
        checked.is_ok()
    }

    #[test]
    fn options_go_together_as_the_table_says() {
        let arc = Scope::Arcs(vec![ArcName { version: Version(0), number: 1 }]);
        let block = Scope::Blocks(vec!["b0.1.0".parse().unwrap()]);
        let path = Scope::Paths(vec![b"/etc".to_vec()]);
        // Levels 0 to 5 that take it.
        let table: [(&Scope, bool, Option<u32>, [bool; 6]); 8] = [
            (&Scope::Everything, false, None, [true; 6]),
            (&arc, false, None, [false, false, true, true, true, false]),
            (&block, false, None, [false, false, true, true, true, false]),
            (&path, false, None, [false, false, true, false, false, true]),
            (&path, true, None, [false, false, true, false, false, true]),
            (&Scope::Everything, true, None, [false, false, true, false, false, true]),
            (&Scope::Everything, false, Some(3), [false, false, false, true, true, false]),
            (&arc, false, Some(1), [false, false, false, true, true, false]),
        ];
        for (scope, rev, sample, wanted) in table {
            let got = [0, 1, 2, 3, 4, 5].map(|level| accepted(level, scope, rev, sample, Fix::Report));
            assert_eq!(got, wanted, "{scope:?} {rev} {sample:?}");
            let fixing = [0, 1, 2, 3, 4, 5].map(|level| accepted(level, scope, rev, sample, Fix::Correct));
            assert_eq!(fixing, if sample.is_some() { [false; 6] } else { wanted });
        }
        assert!(!accepted(2, &arc, true, None, Fix::Report) && !accepted(3, &block, false, Some(2), Fix::Report));
        assert!(!accepted(3, &Scope::Everything, false, Some(0), Fix::Report) && Level::from_number(6).is_none());
    }

    #[test]
    fn blocks_are_named_by_place_or_by_hash() {
        let id = BlockId::first(ArcSerial(12), FrameNo(34));
        assert_eq!(id.to_string().parse(), Ok(BlockRef::Id(id)));
        let hash = BlockHash([0xa5; 20]);
        assert_eq!(hash.to_string().parse(), Ok(BlockRef::Hash(hash)));
        for bad in [
            "",
            "b",
            "b1",
            "b1.",
            "b1.2",
            "b01.2.0",
            "b1.131072.0",
            "b1.2.128",
            "b1.2.3.4",
            "a5",
            &"g".repeat(40),
            &"é".repeat(20),
        ] {
            assert!(bad.parse::<BlockRef>().is_err(), "{bad}");
        }
    }
}
