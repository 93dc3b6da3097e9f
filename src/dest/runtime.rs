//! The threads on which sockets of destinations are served, and deadlines.
//!
//! Invariants: they are started when a destination is first asked for something that leaves the machine, and not before:
//! a mount has forked by then; whoever waits for one of them waits no longer than a deadline.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use super::trouble;
use crate::error::{Error, Result, Trouble};

const THREADS: usize = 2;

static RUNTIME: OnceLock<Result<Runtime>> = OnceLock::new();

/// # Errors
/// `IO` when no thread can be had.
pub fn handle() -> Result<Handle> {
    let runtime = RUNTIME.get_or_init(|| {
        let built = Builder::new_multi_thread().worker_threads(THREADS).thread_name("destination").enable_all().build();
        built.map_err(|error| Error::io("start threads", "destinations", &error))
    });
    runtime.as_ref().map(|runtime| runtime.handle().clone()).map_err(Clone::clone)
}

/// What an act gives within a time; `what` did not happen otherwise.
pub async fn within<T>(
    limit: Duration,
    dest: &str,
    object: &str,
    what: &'static str,
    act: impl Future<Output = T>,
) -> Result<T> {
    let timed_out = |_| trouble(dest, object, Trouble::TimedOut { what, limit_s: limit.as_secs() });
    tokio::time::timeout(limit, act).await.map_err(timed_out)
}
