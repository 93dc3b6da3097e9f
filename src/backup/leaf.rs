//! The front of the pipeline for anything but directories: what is as before, what has to be read, and further
//! names of a file that was met already.
//!
//! Invariants: the first name of a file decides about all of them; a file is sent to the pool, or read here block
//! by block, exactly once a run (and again only if it changed meanwhile).

use crossbeam::channel::bounded;

use super::catalog::Names;
use super::pipeline::{FileHead, Job, LongRead, Step, Totals};
use super::previous::PrevChild;
use super::read::{self, FileError, Piece};
use super::traverse::{Here, Links, Traverse};
use super::walk;
use crate::catalog::{Child, Content, Kind, Node};
use crate::error::{Error, Result};
use crate::ids::Logid;
use crate::os::{Stat, xattr};

impl Traverse<'_> {
    /// Anything but a directory.
    pub(super) fn leaf(
        &mut self,
        here: &mut Here,
        name: Vec<u8>,
        stat: Stat,
        was: Option<PrevChild>,
        path: &[u8],
    ) -> Result<()> {
        let attr = walk::attr(&stat);
        let was_node = was.as_ref().and_then(|was| match was.entry.child {
            Child::Node(logid) if was.attr.as_ref() == Some(&attr) => Some((logid, was.entry.since)),
            _ => None,
        });
        // A state whose content is lost is no state to keep.
        let was_node = was_node.filter(|(logid, _)| !self.previous.has_lost_content(*logid));
        let linked = stat.nlink > 1;
        if linked && self.known_link(here, &name, &stat, was.as_ref(), path)? {
            return Ok(());
        }
        let mut old = None;
        if let Some((logid, since)) = was_node {
            let doubt = self.full || self.previous.may_be_racy(&attr, since);
            if doubt && stat.kind == Kind::File {
                old = Some(Box::new(self.previous.node(logid)?));
            }
            let proven = !self.full && old.as_ref().is_none_or(|node| !node.racy);
            if proven || stat.kind != Kind::File {
                if linked {
                    self.remember_link(&stat, logid, true);
                }
                return self.keep(here, name, stat.kind, attr.size, logid, old);
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
            let logid = self.file(here, head, &stat)?;
            if linked {
                self.remember_link(&stat, logid, false);
            }
            return Ok(());
        }
        match self.special(here, &name, &stat, logid, path)? {
            Some(node) => {
                if linked {
                    self.remember_link(&stat, logid, false);
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
        here: &mut Here,
        name: Vec<u8>,
        kind: Kind,
        size: u64,
        logid: Logid,
        node: Option<Box<Node>>,
    ) -> Result<()> {
        if here.names == Names::Changed {
            here.kept.add(kind, size);
            return Ok(());
        }
        let node = match node {
            Some(node) => node,
            None => Box::new(self.previous.node(logid)?),
        };
        self.send(Step::Keep { name, kind, child: Child::Node(logid), node: Some(node) })
    }

    /// Handles a further name of a file that was met already; false when it is the first.
    fn known_link(
        &mut self,
        here: &mut Here,
        name: &[u8],
        stat: &Stat,
        was: Option<&PrevChild>,
        path: &[u8],
    ) -> Result<bool> {
        let key = (stat.dev, stat.ino);
        // A number that was given to another file meanwhile is no link.
        let another = |links: &mut Links| links.seen != (stat.kind, stat.size, stat.mtime);
        if self.links.get_mut(&key).is_some_and(another) {
            self.links.remove(&key);
        }
        let Some(links) = self.links.get_mut(&key) else { return Ok(false) };
        let (logid, kept) = (links.logid, links.kept);
        links.names_left = links.names_left.saturating_sub(1);
        let last = links.names_left == 0;
        if last {
            self.links.remove(&key);
        }
        let same = was.is_some_and(|was| was.entry.child == Child::Node(logid));
        if kept && same {
            self.keep(here, name.to_vec(), stat.kind, stat.size, logid, None)?;
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

    fn remember_link(&mut self, stat: &Stat, logid: Logid, kept: bool) {
        let (seen, names_left) = ((stat.kind, stat.size, stat.mtime), stat.nlink.saturating_sub(1));
        self.links.insert((stat.dev, stat.ino), Links { logid, kept, seen, names_left });
    }

    fn special(&mut self, here: &Here, name: &[u8], stat: &Stat, logid: Logid, path: &[u8]) -> Result<Option<Node>> {
        let target = match stat.kind {
            Kind::Symlink => match here.dir.readlink_at(name) {
                Ok(target) => target,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
                Err(e) => {
                    self.failed(path, "read the link", &e)?;
                    return Ok(None);
                }
            },
            _ => Vec::new(),
        };
        let mut attr = walk::attr(stat);
        attr.size = target.len() as u64;
        let xattrs = match walk::xattrs(xattr::Subject::At(&here.dir, name)) {
            Ok(xattrs) => xattrs,
            Err(e) => {
                self.failed(path, "read the extended attributes of", &e)?;
                return Ok(None);
            }
        };
        let content = Content::Inline(Vec::new());
        Ok(Some(Node { logid, attr, data_bytes: 0, racy: false, sha1: None, target, xattrs, content }))
    }

    /// Sends a regular file to be read; returns the logid that it got in the end.
    fn file(&mut self, here: &Here, head: FileHead, stat: &Stat) -> Result<Logid> {
        if self.dry_run {
            let logid = head.logid;
            self.send(Step::WouldRead { head, size: stat.size })?;
            return Ok(logid);
        }
        // Fewer blocks than bytes: it may have holes, which only the long way looks for.
        let sparse = stat.size > 0 && (stat.blocks == 0 || stat.blocks * 512 + 4095 < stat.size);
        if sparse || stat.size > self.cutting.whole_file_bytes() {
            return self.long_file(here, head, stat);
        }
        let logid = head.logid;
        let (reply_to, reply) = bounded(1);
        self.take(stat.size)?;
        let job = Job::File { dir: here.dir.clone(), name: head.name.clone(), stat: *stat, reply: reply_to };
        self.jobs.send(job).map_err(|_| Error::Interrupted)?;
        self.send(Step::File { head, size: stat.size, reply })?;
        Ok(logid)
    }

    fn long_file(&mut self, here: &Here, head: FileHead, listed: &Stat) -> Result<Logid> {
        let mut logid = head.logid;
        let name = head.name.clone();
        self.send(Step::LongBegin { head })?;
        let mut tries = 3;
        let read = loop {
            match self.long_pass(here, &name, listed)? {
                Ok(mut read) if read.unsettled => {
                    tries -= 1;
                    if tries == 0 {
                        read.racy = true;
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

    fn long_pass(&self, here: &Here, name: &[u8], listed: &Stat) -> Result<Result<LongRead, FileError>> {
        let began = read::now();
        let opened = match read::open(&here.dir, name) {
            Ok(opened) => opened,
            Err(e) => return Ok(Err(e)),
        };
        let before = match crate::os::stat::of_fd(&opened) {
            Ok(stat) => stat,
            Err(e) => return Ok(Err(e.into())),
        };
        let mut gone = None;
        let pass = read::long_file(&opened, before.size, self.cutting, |piece| {
            let sent = match piece {
                Piece::Hole(len) => self.send(Step::LongHole { len }),
                Piece::Block(plain) => self.long_block(plain),
            };
            let interrupted = self.monitor.interrupted();
            gone = sent.err().or(interrupted.then_some(Error::Interrupted));
            gone.is_none()
        });
        if let Some(e) = gone {
            return Err(e);
        }
        let pass = match pass {
            Ok(Some(pass)) => pass,
            Ok(None) => return Err(Error::Interrupted),
            Err(e) => return Ok(Err(FileError::Io(e))),
        };
        let after = match crate::os::stat::of_fd(&opened) {
            Ok(stat) => stat,
            Err(e) => return Ok(Err(e.into())),
        };
        // Without its attributes it would be kept as it is for ever, for nothing shows that they are missing.
        let xattrs = match walk::xattrs_of_fd(&opened) {
            Ok(xattrs) => xattrs,
            Err(e) => return Ok(Err(e.into())),
        };
        let unsettled = !read::same_state(&before, &after) || pass.size != after.size;
        let mut attr = walk::attr(&after);
        attr.size = pass.size;
        let (racy, replaced) = (read::is_racy(after.ctime, began), !after.same_file(listed));
        Ok(Ok(LongRead { attr, xattrs, sha1: pass.sha1, racy, unsettled, replaced }))
    }

    fn long_block(&self, plain: &[u8]) -> Result<()> {
        let len = plain.len() as u64;
        let (reply_to, reply) = bounded(1);
        self.take(len)?;
        self.jobs.send(Job::Block { plain: plain.to_vec(), reply: reply_to }).map_err(|_| Error::Interrupted)?;
        self.send(Step::LongBlock { len, reply })
    }
}
