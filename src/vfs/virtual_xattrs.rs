//! Attributes that no file has and every file answers: `system.assay.…`, what Assay knows about it.
//!
//! Invariants: nothing that was saved can stand in their place, for no user can give a file an attribute of that name;
//! they are found by name only, unless the mount lists them, and `rsync -X` copies none; an answer says what index and
//! ledger know, verifies nothing, and takes bounded time and room.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Ino, Place, Vfs, place_of};
use crate::catalog::{Kind, Node};
use crate::error::Result;
use crate::ids::{CopyId, Logid};
use crate::ledger::{How, Ledger, Proof};
use crate::sync::lock;
use crate::tree::{Piece, SeekTo};

/// Of the names that are only ours.
pub(super) const OWN_PREFIX: &[u8] = b"system.assay.";
/// Of names that a file may have been saved with; short for ours where it was not.
pub(super) const USER_PREFIX: &[u8] = b"user.assay.";
/// Of directories; files have all.
const OF_DIRS: &[&str] = &["version"];
const OF_FILES: &[&str] = &["sha1", "version", "logid", "blocks", "verified", "health", "damage"];
/// Lines of a value: it must stay below 64 KiB.
const MAX_LINES: usize = 1000;
/// Bytes of a file whose blocks are looked up at a time.
const WINDOW_BYTES: u64 = 64 << 20;
/// How long the blocks of a file are looked at for one answer.
const MAX_TIME: Duration = Duration::from_secs(2);
/// How long what the ledger said may be used again, and so many times as long as it took to read it.
const LEDGER_AGE: Duration = Duration::from_millis(500);
const LEDGER_AGE_PER_LOAD: u32 = 10;

/// The ledger, as it was read at some time.
pub(super) struct Known {
    ledger: Arc<Ledger>,
    until: Instant,
}

/// What the ledger says of all blocks of a file.
#[derive(Default)]
struct Survey {
    /// Blocks, each as often as the file has it.
    blocks: u64,
    proven: u64,
    /// The newest proof of the block whose newest proof is oldest.
    oldest: Option<Proof>,
    /// Known to be bad, neighbours joined.
    damage: Vec<Range<u64>>,
    /// Up to where the file was looked at, when there was no time for all of it.
    only_to: Option<u64>,
}

impl Survey {
    fn bad(&mut self, range: Range<u64>) {
        match self.damage.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => self.damage.push(range),
        }
    }
}

impl Vfs {
    /// Value of a virtual attribute, named without its prefix; None where there is none of that name.
    pub(super) fn virtual_xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let text = match place_of(ino)? {
            Place::Dir(version, dir) if name == b"version" => {
                self.dir_row(version, dir)?;
                Some(self.tree.index().dir_since(version, dir)?.to_string())
            }
            Place::Root | Place::Latest(_) | Place::Dir(..) => None,
            Place::Node(logid) => self.of_node(logid, name)?,
        };
        Ok(text.map(String::into_bytes))
    }

    /// Names of the virtual attributes of an inode.
    pub(super) fn virtual_xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let names = match place_of(ino)? {
            Place::Dir(..) => OF_DIRS,
            Place::Node(logid) if self.tree.node(logid)?.attr.kind == Kind::File => OF_FILES,
            Place::Root | Place::Latest(_) | Place::Node(_) => &[],
        };
        Ok(names.iter().map(|name| [OWN_PREFIX, name.as_bytes()].concat()).collect())
    }

    fn of_node(&self, logid: Logid, name: &[u8]) -> Result<Option<String>> {
        let node = self.tree.node(logid)?;
        if node.attr.kind != Kind::File {
            return Ok(None);
        }
        Ok(Some(match name {
            b"sha1" => return Ok(node.sha1.map(|hash| hash.to_string())),
            b"version" => self.tree.index().path_of_node(logid)?.0.to_string(),
            b"logid" => logid.0.to_string(),
            b"blocks" => self.blocks_text(&node)?,
            b"verified" => self.verified_text(&node)?,
            b"health" => {
                let survey = self.survey(&node)?;
                let good = survey.proven == survey.blocks && survey.only_to.is_none();
                if !survey.damage.is_empty() {
                    "damaged".into()
                } else {
                    (if good { "good" } else { "unknown" }).into()
                }
            }
            b"damage" => {
                let survey = self.survey(&node)?;
                let mut lines: Vec<String> = survey
                    .damage
                    .iter()
                    .take(MAX_LINES)
                    .map(|range| format!("{}-{}", range.start, range.end))
                    .collect();
                if survey.damage.len() > MAX_LINES {
                    lines.push(format!("… and {} more", survey.damage.len() - MAX_LINES));
                }
                lines.extend(survey.only_to.map(|end| format!("… of the first {end} bytes")));
                lines.join("\n")
            }
            _ => return Ok(None),
        }))
    }

    /// The number of blocks, and of the first ones name:arc:frame.
    fn blocks_text(&self, node: &Node) -> Result<String> {
        let index = self.tree.index();
        let (mut count, mut lines) = (0, String::new());
        let mut arc = None;
        let only_to = self.each_piece(node, |_, piece| {
            let Piece::Data { block, .. } = piece else { return Ok(()) };
            count += 1;
            if count <= MAX_LINES {
                let place = index.location(block)?;
                let name = match arc {
                    Some((serial, name)) if serial == place.arc() => name,
                    _ => index.arc(place.arc())?.entry.name,
                };
                arc = Some((place.arc(), name));
                // Writing to a String can't fail.
                let _ = write!(lines, "\n{block}:{name}:{}", place.frame().0);
            }
            Ok(())
        })?;
        let more = if count > MAX_LINES { format!("\n… and {} more", count - MAX_LINES) } else { String::new() };
        let part = only_to.map_or_else(String::new, |end| format!("\n… in the first {end} bytes"));
        Ok(format!("{count}{lines}{more}{part}"))
    }

    fn verified_text(&self, node: &Node) -> Result<String> {
        let survey = self.survey(node)?;
        let oldest = survey.oldest.map(|proof| {
            json!({
                "when_s": proof.when_s,
                "how": format!("{:?}", proof.how).to_lowercase(),
                "by": format!("{:?}", proof.by).to_lowercase(),
            })
        });
        let read = self
            .known()
            .ledger
            .file(node.logid)
            .map(|files| json!({ "extent": format!("{:?}", files.extent).to_lowercase(), "when_s": files.when_s }));
        Ok(json!({ "blocks": survey.blocks, "proven": survey.proven, "oldest": oldest, "read": read,
                  "only_to": survey.only_to })
        .to_string())
    }

    fn survey(&self, node: &Node) -> Result<Survey> {
        let ledger = self.known().ledger;
        let index = self.tree.index();
        let mut survey = Survey::default();
        if self.hash_is_wrong(node.logid).is_some() {
            survey.bad(0..node.attr.size);
        }
        let walked = self.each_piece(node, |at, piece| {
            let Piece::Data { block, len, .. } = piece else { return Ok(()) };
            let place = index.location(block)?;
            survey.blocks += 1;
            if ledger.is_damaged(place.arc(), CopyId::LOCAL, place.frame()) {
                survey.bad(at..at + u64::from(len));
            } else if let Some(proof) = ledger.frame(place.arc(), CopyId::LOCAL, place.frame(), How::Read) {
                survey.proven += 1;
                if survey.oldest.is_none_or(|oldest| proof.when_s < oldest.when_s) {
                    survey.oldest = Some(proof);
                }
            }
            Ok(())
        });
        match walked {
            // Where the content is cannot be told: all of it is out of reach from there on.
            Err(error) if error.is_damage() => survey.bad(0..node.attr.size),
            other => survey.only_to = other?,
        }
        if survey.proven < survey.blocks || survey.only_to.is_some() {
            survey.oldest = None;
        }
        Ok(survey)
    }

    /// Visits the pieces of a file that have data, with their offsets, each block once where it stands; gives the offset
    /// at which it ran out of time.
    fn each_piece(&self, node: &Node, mut visit: impl FnMut(u64, Piece) -> Result<()>) -> Result<Option<u64>> {
        let until = Instant::now() + MAX_TIME;
        let mut at = 0;
        while let Some(data) = self.tree.seek(node, at, SeekTo::Data)? {
            if Instant::now() > until {
                return Ok(Some(data));
            }
            at = data;
            for piece in self.tree.segments(node, at, WINDOW_BYTES.min(node.attr.size - at))? {
                // A block that begins in one window and ends in the next is taken whole the first time.
                match piece {
                    Piece::Data { start, block_len, block, len } if start == 0 && len < block_len => {
                        visit(at, Piece::Data { block, block_len, start, len: block_len })?;
                    }
                    Piece::Data { start, .. } if start > 0 => {}
                    piece => visit(at, piece)?,
                }
                at += piece.len();
            }
        }
        Ok(None)
    }

    /// What the ledger says, with what this mount has noted.
    fn known(&self) -> Known {
        let mut known = lock(&self.known);
        if let Some(Known { ledger, until }) = &*known
            && *until > Instant::now()
        {
            return Known { ledger: ledger.clone(), until: *until };
        }
        let start = Instant::now();
        let loaded = match self.store.ledger().map(|writer| writer.known(&self.tree.index().commits()?)) {
            Some(Ok(ledger)) => ledger,
            Some(Err(error)) => {
                log::warn!("{}: {error}", error.code());
                Ledger::default()
            }
            None => Ledger::default(),
        };
        let ledger = Arc::new(loaded);
        let until = Instant::now() + LEDGER_AGE + start.elapsed() * LEDGER_AGE_PER_LOAD;
        *known = Some(Known { ledger: ledger.clone(), until });
        Known { ledger, until }
    }
}
