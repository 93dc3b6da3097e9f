//! `--from DEST`: arcs read at a destination, the index that they are read by, and what is kept of what was fetched.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::ui::Ui;
use super::{Context, print, print_json, say, show};
use crate::backupdir::BackupDir;
use crate::backupdir::config::parse_size;
use crate::copies::{Remote, Traffic, others};
use crate::depot::Depot;
use crate::dest;
use crate::error::{Error, Result};
use crate::fetch::{FrameCache, Hits};
use crate::follow::{Followed, anew, follow};
use crate::memory::OnChange;
use crate::monitor::Silent;
use crate::parity::Parity;
use crate::reader::plan::Plan;
use crate::text::{counted, hex};

/// How often somebody who waits for another process looks.
const LOOK_EVERY: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Args)]
pub struct FromArgs {
    /// Read arcs from this destination of dest.toml instead of the backup dir, only those parts that are needed
    ///
    /// The backup dir needs nothing but key.conf and dest.toml. If it has no index, one is made from what the destination
    /// has, in --cache-dir, and kept for the next time.
    #[arg(long, value_name = "DEST")]
    pub from: Option<String>,
    /// Fetch no more than SIZE from destinations; what is not read then fails, and is named
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub download_limit: Option<u64>,
    /// Where indexes made by --from, and what was fetched, are kept (default: $XDG_CACHE_HOME/assay or ~/.cache/assay)
    #[arg(long, value_name = "DIR", requires = "from")]
    pub cache_dir: Option<PathBuf>,
    /// Keep up to SIZE of file data that was fetched, sealed, in --cache-dir, and read it there the next time; 0: none
    ///
    /// If nothing is said a mount keeps 4GiB, and `get` reads what is there and keeps nothing. Where the backup dir has an
    /// index of its own, all is read at the destination unless a SIZE is said.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "from")]
    pub cache_size: Option<u64>,
}

/// What becomes of what is fetched, if nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// It may be read again.
    Keeps,
    /// It is read once.
    Passes,
}

/// What a mount keeps of what it has fetched.
const FRAME_CACHE_BYTES: u64 = 4 << 30;

/// A backup dir as a command reads it.
pub struct Seen {
    pub dir: BackupDir,
    /// Where its arcs are, if they are read from a destination.
    pub remote: Option<Remote>,
    /// Where else a block may be right that is not right there.
    pub copies: Vec<Arc<dyn Depot>>,
    /// What was fetched from there.
    pub frames: Option<Arc<FrameCache>>,
    /// Its index is one that follows the destination.
    follows: bool,
}

impl FromArgs {
    /// The backup dir, its arcs read from the destination that was named; its index is up to what that has.
    ///
    /// # Errors
    /// `USAGE` for an unknown destination; `DEST_…`; those of `follow`; `HISTORY_CHANGED`.
    pub fn open(&self, context: &Context, dir: BackupDir, habit: Habit) -> Result<Seen> {
        let Some(name) = self.from.as_deref() else {
            let dir = if self.download_limit.is_some() { dir.seen_locally() } else { dir };
            let around = super::copies::around_reader(&dir, self.download_limit);
            let parity: Arc<dyn Depot> = Arc::new(Parity::of(&dir));
            let copies = [parity].into_iter().chain(others(&around, None)).collect();
            let dir = super::copies::partly_here(dir, &around);
            return Ok(Seen { dir, remote: None, copies, frames: None, follows: false });
        };
        let around = super::copies::around_reader(&dir, self.download_limit);
        let remote = Remote::open(&around, &dest::named(&dir, name)?)?;
        let copies = others(&around, Some(name));
        let depot: Arc<dyn Depot> = Arc::new(remote.clone());
        // Another destination may be behind this one.
        let mirror = format!("{}-{}", hex(&dir.keys().backup_id().0), remote.id().0);
        let mirrored = || dir.mirrored(&self.cache_dir()?.join(&mirror));
        if dir.has_index() {
            let frames = match self.cache_size {
                Some(size) if size > 0 => self.frames(&mirrored()?, habit),
                _ => None,
            };
            let dir = dir.seen_through(|_| depot);
            return Ok(Seen { dir, remote: Some(remote), copies, frames, follows: false });
        }
        let dir = mirrored()?.seen_through(|_| depot);
        bring_up(context, &dir, &remote)?;
        super::meet(context, &dir)?;
        let frames = self.frames(&dir, habit);
        Ok(Seen { dir, remote: Some(remote), copies, frames, follows: true })
    }

    /// The cache of what is fetched; where it can't be had all of it is fetched again.
    fn frames(&self, mirror: &BackupDir, habit: Habit) -> Option<Arc<FrameCache>> {
        let opened = match (self.cache_size, habit) {
            (Some(0), _) => Ok(None),
            (None, Habit::Passes) => FrameCache::found(mirror.own()),
            (size, _) => FrameCache::open(mirror.own(), size.unwrap_or(FRAME_CACHE_BYTES)).map(Some),
        };
        let told = |error: &Error| say(&format!("assay: what is fetched is not kept: {}: {error}", error.code()));
        opened.inspect_err(told).ok().flatten().map(Arc::new)
    }

    fn cache_dir(&self) -> Result<PathBuf> {
        if let Some(dir) = &self.cache_dir {
            return std::path::absolute(dir).map_err(|e| Error::io("find", dir, &e));
        }
        let of = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        match (of("XDG_CACHE_HOME"), of("HOME")) {
            (Some(xdg), _) => Ok(xdg.join("assay")),
            (None, Some(home)) => Ok(home.join(".cache/assay")),
            (None, None) => Err(Error::Usage("there is no HOME to keep an index in: say --cache-dir".into())),
        }
    }
}

/// The index as the destination tells it now.
fn bring_up(context: &Context, dir: &BackupDir, remote: &Remote) -> Result<()> {
    loop {
        let ui = Ui::counting(context, "Reading catalogs", "runs");
        let done = match follow(dir, &ui) {
            Err(Error::HistoryChanged { .. }) if context.on_change == OnChange::Accept => anew(dir, &ui),
            done => done,
        };
        ui.finish();
        match done? {
            Followed::Busy if !dir.has_index() => std::thread::sleep(LOOK_EVERY),
            Followed::Made(made) => {
                if made.open_losses > 0 || !made.unproven.is_empty() {
                    let name = remote.name();
                    say(&format!(
                        "assay: not all of {name} could be read: `assay recover --from {name}` says what is missing"
                    ));
                }
                if !context.quiet {
                    let (traffic, versions) = (remote.traffic(), counted(made.versions.len() as u64, "version"));
                    let requests = counted(traffic.requests, "request");
                    say(&format!("{}: {versions}, {requests}, {} read", remote.name(), show::bytes(traffic.bytes)));
                }
                return Ok(());
            }
            Followed::Busy | Followed::Current | Followed::Added => return Ok(()),
        }
    }
}

impl Seen {
    fn hits(&self) -> Hits {
        self.frames.as_ref().map_or_else(Hits::default, |frames| frames.hits())
    }

    /// What was asked of the destination, and what needed not be.
    pub fn traffic_text(&self) -> Option<String> {
        let remote = self.remote.as_ref()?;
        let Traffic { requests, bytes } = remote.traffic();
        let mut text = format!("{}, {} from {}", show::counted(requests, "request"), show::bytes(bytes), remote.name());
        let hits = self.hits();
        if hits.frames > 0 {
            text += &format!("; from the cache {}, {}", show::counted(hits.frames, "frame"), show::bytes(hits.bytes));
        }
        Some(text)
    }

    pub fn with_traffic(&self, mut value: Value) -> Value {
        if let (Some(fields), Some(remote)) = (value.as_object_mut(), &self.remote) {
            let (Traffic { requests, bytes }, hits) = (remote.traffic(), self.hits());
            let cached = json!({ "frames": hits.frames, "bytes": hits.bytes });
            let fetched = json!({ "name": remote.name(), "requests": requests, "bytes": bytes, "cached": cached });
            fields.insert("fetched".into(), fetched);
        }
        value
    }

    /// Keeps the index up to the destination, by a thread, until what is returned is dropped.
    pub fn keep_following(&self, every: Duration) -> Option<Sender<()>> {
        let remote = self.remote.clone().filter(|_| self.follows)?;
        let (dir, (held, ended)) = (self.dir.clone(), channel::<()>());
        let work = move || {
            let mut told = None;
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                remote.look_again();
                // Nobody waits for it: it may be kept by a server that is.
                match follow(&dir, &Silent) {
                    Ok(_) => told = None,
                    Err(error) => {
                        if told.replace(error.code()) != Some(error.code()) {
                            ::log::warn!("new versions can't be looked for: {}: {error}", error.code());
                        }
                    }
                }
            }
        };
        std::thread::Builder::new().name("follow".into()).spawn(work).ok()?;
        Some(held)
    }
}

/// What a read would fetch, in words or as JSON.
pub fn tell_plan(plan: &Plan, is_json: bool) -> Result<()> {
    let Plan { files, file_bytes, unknown, far_arcs, traffic } = plan;
    if is_json {
        return print_json(&json!({
            "files": files,
            "file_bytes": file_bytes,
            "unknown": unknown,
            "far_arcs": far_arcs,
            "requests": traffic.requests,
            "bytes": traffic.bytes,
        }));
    }
    let mut text = format!("{}, {}\n", show::counted(*files, "file"), show::bytes(*file_bytes));
    text += &match far_arcs {
        0 => "Nothing of it is to be fetched: all of it is here.\n".to_string(),
        _ => format!(
            "To fetch: about {}, {} of {}\n",
            show::counted(traffic.requests, "request"),
            show::bytes(traffic.bytes),
            show::counted(*far_arcs, "arc")
        ),
    };
    if *unknown > 0 {
        text += &format!("Not known: {}\n", show::counted(*unknown, "entry"));
    }
    print(&text)
}
