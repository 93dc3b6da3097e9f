//! What `diff` and `compare` print: a line, or a JSON object, for each path that differs.

use serde_json::json;

use super::json::with_name;
use super::{print, say, show};
use crate::catalog::Kind;
use crate::compare::{Change, Letter, Met, Verdict};
use crate::error::{Error, Exit, Result};
use crate::text::{counted, shown};

/// Printed at once, bytes.
const AT_ONCE_BYTES: usize = 64 << 10;

/// Prints changes as they come, and counts them.
pub struct Changes {
    json: bool,
    out: String,
    counts: [u64; 4],
    bad: u64,
    rotted: u64,
    failed: u64,
    damage: bool,
}

impl Changes {
    pub fn new(json: bool) -> Changes {
        Changes { json, out: String::new(), counts: [0; 4], bad: 0, rotted: 0, failed: 0, damage: false }
    }

    pub fn met(&mut self, path: &[u8], met: Met<'_>) -> Result<()> {
        let path = if path.is_empty() { b"/" } else { path };
        match met {
            Met::Failed(error @ Error::Interrupted) => return Err(error.clone()),
            Met::Failed(error) => {
                self.failed += 1;
                self.damage |= error.is_damage();
                let path = shown(path).to_string();
                let text = error.to_string();
                let place = if text.contains(&path) { String::new() } else { format!("{path}: ") };
                say(&format!("assay: {}: {place}{text}", error.code()));
            }
            Met::Change(change) => {
                self.count(change);
                self.out += &if self.json { as_json(path, change) } else { as_text(path, change) };
                self.out.push('\n');
                if self.out.len() >= AT_ONCE_BYTES {
                    print(&std::mem::take(&mut self.out))?;
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, change: &Change) {
        let [added, removed, content, attributes] = &mut self.counts;
        *match change.letter {
            Letter::Added => added,
            Letter::Removed => removed,
            Letter::Content => content,
            Letter::Attributes => attributes,
        } += 1;
        self.bad += u64::from(change.verdict == Some(Verdict::BackupBad));
        self.rotted += u64::from(change.verdict == Some(Verdict::SourceRotted));
    }

    /// Prints what is left.
    pub fn flush(mut self) -> Result<()> {
        print(&std::mem::take(&mut self.out))
    }

    /// Prints what is left, and for people the numbers.
    pub fn end(mut self, quiet: bool) -> Result<Exit> {
        let [added, removed, content, attributes] = self.counts;
        let differ = added + removed + content + attributes;
        if !self.json && !quiet {
            self.out += &match differ {
                0 if self.failed == 0 => "No differences.\n".to_string(),
                0 => "No differences in what could be compared.\n".to_string(),
                _ => format!(
                    "{} added, {} removed, {} with other content, {} with other attributes.\n",
                    show::number(added),
                    show::number(removed),
                    show::number(content),
                    show::number(attributes)
                ),
            };
            for (count, what) in [(self.bad, "bad in the backup"), (self.rotted, "rotted in the source")] {
                if count > 0 {
                    self.out += &format!("{} {what}.\n", counted(count, "file"));
                }
            }
            if self.failed > 0 {
                self.out += &format!("{} could not be compared.\n", counted(self.failed, "path"));
            }
        }
        print(&self.out)?;
        super::log::outcome(&format!("{} differ", counted(differ, "path")));
        Ok(match (self.damage || self.bad > 0, self.failed > 0, differ > 0) {
            (true, ..) => Exit::Damage,
            (false, true, _) => Exit::FinishedWithErrors,
            (false, false, true) => Exit::Failed,
            (false, false, false) => Exit::Ok,
        })
    }
}

fn as_text(path: &[u8], change: &Change) -> String {
    let slash = if change.kind == Kind::Dir && path != b"/" { "/" } else { "" };
    let mut text = format!("{} {}{slash}", change.letter.sign(), shown(path));
    let differs: Vec<&str> = change.differs.iter().map(|what| what.name()).collect();
    if !differs.is_empty() {
        text += &format!("  ({})", differs.join(", "));
    }
    if let Some(verdict) = &change.verdict {
        text += &format!("  {}", verdict.words());
    }
    text
}

fn as_json(path: &[u8], change: &Change) -> String {
    let value = json!({
        "change": change.letter.sign().to_string(),
        "kind": format!("{:?}", change.kind).to_lowercase(),
        "differs": change.differs.iter().map(|what| what.name()).collect::<Vec<_>>(),
        "verdict": change.verdict.as_ref().map(Verdict::words),
    });
    with_name(value, "path", path).to_string()
}
