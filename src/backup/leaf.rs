//! The front of the pipeline for anything but directories: what is as before, what has to be read, and further
//! names of a file that was met already.
//!
//! Invariants: the first name of a file decides about all of them; a file is sent to the pool, or read here block
//! by block, exactly once a run (and again only if it changed meanwhile).

use std::sync::Arc;

use crossbeam::channel::bounded;

use super::catalog::Names;
use super::pipeline::{FileHead, Job, Step, Totals};
use super::previous::PrevChild;
use super::read::{self, FileError, Piece, Read};
use super::traverse::{Level, Links, Traverse};
use crate::catalog::{Attr, Child, Content, Kind, Node};
use crate::error::{Error, Result};
use crate::ids::Logid;
use crate::live::{self, OpenDir};
use crate::os::{Stat, xattr};

impl Traverse<'_> {
    /// Anything but a directory.
    pub(super) fn leaf(
        &mut self,
        level: &mut Level,
        dir: &Arc<OpenDir>,
        name: Vec<u8>,
        stat: Stat,
        was: Option<PrevChild>,
        path: &[u8],
    ) -> Result<()> {
        let attr = live::attr(&stat);
        let was_node = was.as_ref().and_then(|was| match was.entry.child {
            Child::Node(logid) if was.attr.as_ref() == Some(&attr) => Some((logid, was.entry.since)),
            _ => None,
        });
        // A state whose content is lost is no state to keep.
        let was_node = was_node.filter(|(logid, _)| !self.previous.has_lost_content(*logid));
        let linked = stat.nlink > 1;
        let key = (stat.dev, attr.clone());
        if linked && self.known_link(level, &name, &key, was.as_ref(), path)? {
            return Ok(());
        }
        let mut old = None;
        if let Some((logid, since)) = was_node {
            let again = self.full && stat.kind == Kind::File;
            if again || self.previous.may_be_racy(&attr, since) {
                old = Some(Box::new(self.previous.node(logid)?));
            }
            if !again && old.as_ref().is_none_or(|node| !node.racy) {
                if linked {
                    self.remember_link(key, logid, true);
                }
                return self.keep(level, name, stat.kind, attr.size, logid, old);
            }
        }
        let replaced_dir = matches!(&was, Some(PrevChild { entry, .. }) if matches!(entry.child, Child::Dir(_)));
        let was = match was {
            Some(gone) if replaced_dir => {
                self.remove(gone)?;
                None
            }
            was => was.map(|was| was.as_was()),
        };
        let logid = self.new_logid();
        if stat.kind == Kind::File {
            let head = FileHead { name, path: path.to_vec(), logid, was, old, linked };
            let logid = self.file(dir, head, &stat)?;
            if linked {
                self.remember_link(key, logid, false);
            }
            return Ok(());
        }
        match self.special(dir, &name, attr, logid, path)? {
            Some(node) => {
                if linked {
                    self.remember_link(key, logid, false);
                }
                self.send(Step::Put { name, was, node: Box::new(node), path: path.to_vec() })
            }
            None => match was {
                Some(was) => {
                    let mut totals = Totals::default();
                    totals.add(was.kind, was.size);
                    self.send(Step::Remove { name, totals })
                }
                None => Ok(()),
            },
        }
    }

    fn keep(
        &mut self,
        level: &mut Level,
        name: Vec<u8>,
        kind: Kind,
        size: u64,
        logid: Logid,
        node: Option<Box<Node>>,
    ) -> Result<()> {
        if level.names == Names::Changed {
            level.kept.add(kind, size);
            return Ok(());
        }
        let node = match node {
            Some(node) => node,
            None => Box::new(self.previous.node(logid)?),
        };
        // What is kept for unchanged is known, or was read again.
        self.previous.knows_blocks(&node)?;
        self.send(Step::Keep { name, node })
    }

    /// Handles a further name of a file that was met already; false when it is the first. Another inode number, or
    /// anything else that differs, makes another file: there are file systems that give one number to several.
    fn known_link(
        &mut self,
        level: &mut Level,
        name: &[u8],
        key: &(u64, Attr),
        was: Option<&PrevChild>,
        path: &[u8],
    ) -> Result<bool> {
        let Some(links) = self.links.get_mut(key) else { return Ok(false) };
        let (logid, kept) = (links.logid, links.kept);
        links.names_left = links.names_left.saturating_sub(1);
        let last = links.names_left == 0;
        if last {
            self.links.remove(key);
        }
        let same = was.is_some_and(|was| was.entry.child == Child::Node(logid));
        if kept && same {
            self.keep(level, name.to_vec(), key.1.kind, key.1.size, logid, None)?;
            return Ok(true);
        }
        let was = match was {
            Some(gone) if matches!(gone.entry.child, Child::Dir(_)) => {
                self.remove(gone.clone())?;
                None
            }
            was => was.map(PrevChild::as_was),
        };
        if kept {
            let node = Box::new(self.previous.node(logid)?);
            self.send(Step::Put { name: name.to_vec(), was, node, path: path.to_vec() })?;
        } else {
            self.send(Step::Link { name: name.to_vec(), path: path.to_vec(), was, logid, last })?;
        }
        Ok(true)
    }

    fn remember_link(&mut self, key: (u64, Attr), logid: Logid, kept: bool) {
        let names_left = key.1.nlink.saturating_sub(1);
        self.links.insert(key, Links { logid, kept, names_left });
    }

    fn special(
        &mut self,
        dir: &OpenDir,
        name: &[u8],
        mut attr: Attr,
        logid: Logid,
        path: &[u8],
    ) -> Result<Option<Node>> {
        let target = match attr.kind {
            Kind::Symlink => match dir.readlink_at(name) {
                Ok(target) => target,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                    self.left_out.vanished += 1;
                    return Ok(None);
                }
                Err(e) => {
                    self.failed(path, "read the link", &e)?;
                    return Ok(None);
                }
            },
            _ => Vec::new(),
        };
        attr.size = target.len() as u64;
        let (xattrs, failed) = live::readable_xattrs(xattr::Subject::At(dir, name));
        // In doubt until all of it can be read.
        let racy = failed.is_some();
        if let Some(error) = failed {
            self.send(Step::Incomplete { path: path.to_vec(), error })?;
        }
        let content = Content::Inline(Vec::new());
        Ok(Some(Node { logid, attr, data_bytes: 0, racy, sha1: None, target, xattrs, content }))
    }

    /// Sends a regular file to be read; returns the logid that it got in the end.
    fn file(&mut self, dir: &Arc<OpenDir>, head: FileHead, stat: &Stat) -> Result<Logid> {
        if self.dry_run {
            let logid = head.logid;
            self.send(Step::WouldRead { head, size: stat.size })?;
            return Ok(logid);
        }
        // Fewer blocks than bytes: it may have holes, which only the long way looks for.
        let sparse =
            stat.size > 0 && (stat.blocks == 0 || stat.blocks.saturating_mul(512).saturating_add(4095) < stat.size);
        if sparse || stat.size > self.cutting.whole_file_bytes() {
            return self.long_file(dir, head, stat);
        }
        let logid = head.logid;
        let (reply_to, reply) = bounded(1);
        self.take(stat.size)?;
        let job = Job::File { dir: dir.clone(), name: head.name.clone(), stat: *stat, reply: reply_to };
        self.jobs.send(job).map_err(|_| Error::Interrupted)?;
        self.send(Step::File { head, size: stat.size, reply })?;
        Ok(logid)
    }

    fn long_file(&mut self, dir: &OpenDir, head: FileHead, listed: &Stat) -> Result<Logid> {
        let mut logid = head.logid;
        let name = head.name.clone();
        self.send(Step::LongBegin { head })?;
        let mut tries = read::TRIES;
        let read = loop {
            match self.long_pass(dir, &name, listed)? {
                Ok(read) if read.unsettled => {
                    tries -= 1;
                    if tries == 0 {
                        break Ok(Box::new(read));
                    }
                    logid = self.new_logid();
                    self.send(Step::LongRestart { logid })?;
                }
                Ok(read) => break Ok(Box::new(read)),
                Err(e) => break Err(e),
            }
        };
        self.send(Step::LongEnd { read })?;
        Ok(logid)
    }

    fn long_pass(&self, dir: &OpenDir, name: &[u8], listed: &Stat) -> Result<Result<Read, FileError>> {
        let mut gone = None;
        let pass = read::long_pass(dir, name, listed, self.cutting, |piece| {
            let sent = match piece {
                Piece::Hole(len) => self.send(Step::LongHole { len }),
                Piece::Block(plain) => self.long_block(plain),
                Piece::Nothing => Ok(()),
            };
            let interrupted = self.monitor.interrupted();
            gone = sent.err().or(interrupted.then_some(Error::Interrupted));
            gone.is_none()
        });
        match (gone, pass) {
            (Some(e), _) => Err(e),
            (None, Ok(None)) => Err(Error::Interrupted),
            (None, Ok(Some(read))) => Ok(Ok(read)),
            (None, Err(e)) => Ok(Err(e)),
        }
    }

    fn long_block(&self, plain: &[u8]) -> Result<()> {
        let len = plain.len() as u64;
        let (reply_to, reply) = bounded(1);
        self.take(len)?;
        self.jobs.send(Job::Block { plain: plain.to_vec(), reply: reply_to }).map_err(|_| Error::Interrupted)?;
        self.send(Step::LongBlock { len, reply })
    }
}
