//! What `--fix` came to.

use std::fmt;

use crate::ids::ArcName;
use crate::text::counted;

/// What `--fix` did about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fixed {
    /// It read right before anything was done.
    RightByNow,
    /// The recorded bytes are in their place again; what was wrong with them.
    Rewritten {
        what: String,
    },
    /// Header, footer or trailer of an arc were written anew.
    Shell {
        parts: Vec<&'static str>,
    },
    /// The block is read from another arc now; where its bytes came from.
    Sealed {
        arc: ArcName,
        how: String,
    },
    /// All of the arc is here again; the copies that had it.
    Brought {
        from: String,
    },
    /// It was sent again from a good copy, and proven there, where anything is compared.
    SentAgain {
        is_proven: bool,
    },
    IndexRebuilt,
    /// The next catalog is a base; what is damaged stays so, and is needed by fewer versions.
    BaseIsDue,
    /// Several frames, not all with the same end.
    Frames(FramesFixed),
    /// Nothing was done, and why.
    Not {
        why: String,
    },
}

/// What became of the frames of one finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FramesFixed {
    pub rewritten: usize,
    pub sealed: usize,
    pub base_is_due: usize,
    pub lost: usize,
    /// The run was interrupted, or there were too many.
    pub not_tried: usize,
}

impl Fixed {
    /// Nothing is left to do.
    pub fn is_done(&self) -> bool {
        match self {
            Fixed::RightByNow | Fixed::Rewritten { .. } | Fixed::Shell { .. } => true,
            Fixed::Sealed { .. } | Fixed::IndexRebuilt => true,
            Fixed::Brought { .. } | Fixed::SentAgain { .. } => true,
            Fixed::BaseIsDue | Fixed::Not { .. } => false,
            Fixed::Frames(counts) => counts.base_is_due + counts.lost + counts.not_tried == 0,
        }
    }
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fixed::RightByNow => f.write_str("it reads right by now"),
            Fixed::Rewritten { what } => write!(f, "{what}; the arc has its recorded bytes again"),
            Fixed::Shell { parts } => write!(f, "{} written anew, byte for byte as recorded", parts.join(" and ")),
            Fixed::Sealed { arc, how } => write!(f, "the block was sealed anew in {arc}, {how}"),
            Fixed::Brought { from } => write!(f, "put back from {from}, byte for byte as recorded"),
            Fixed::SentAgain { is_proven: true } => f.write_str("a good copy took its place there, and was proven"),
            Fixed::SentAgain { is_proven: false } => f.write_str("a good copy was sent there; nothing was compared"),
            Fixed::IndexRebuilt => f.write_str("the index was made anew from the catalogs"),
            Fixed::BaseIsDue => {
                f.write_str("the next backup writes a base catalog, which does without what is damaged")
            }
            Fixed::Frames(FramesFixed { rewritten, sealed, base_is_due, lost, not_tried }) => {
                let total = rewritten + sealed + base_is_due + lost + not_tried;
                let parts: Vec<String> = [
                    (rewritten, "put right in place"),
                    (sealed, "sealed anew"),
                    (base_is_due, "of the catalog: the next backup writes a base, which does without"),
                    (lost, "lost: no copy has them, and neither a flipped bit nor a live file explains them"),
                    (not_tried, "not looked at"),
                ]
                .into_iter()
                .filter(|(count, _)| **count > 0)
                .map(|(count, what)| format!("{count} {what}"))
                .collect();
                write!(f, "of {}: {}", counted(total as u64, "frame"), parts.join(", "))
            }
            Fixed::Not { why } => f.write_str(why),
        }
    }
}
