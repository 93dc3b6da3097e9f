//! What is asked of a destination and what comes from it, counted where it happens, and how much may come.
//!
//! Invariant: what would pass the limit is not asked for. A read counts before it is made, whatever comes of it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Traffic;
use crate::dest::{Body, Compared, Lie, Object, Stamp, Storage};
use crate::error::{Error, Result};

/// Bytes that may still be fetched, from all destinations together.
#[derive(Debug)]
pub struct Budget {
    limit_bytes: u64,
    left: AtomicU64,
}

impl Budget {
    pub fn new(limit_bytes: u64) -> Budget {
        Budget { limit_bytes, left: AtomicU64::new(limit_bytes) }
    }

    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> Result<()> {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken.map(drop).map_err(|_| Error::DownloadLimit { limit_bytes: self.limit_bytes })
    }
}

/// Counts for one destination.
#[derive(Debug, Default)]
pub struct Meter {
    requests: AtomicU64,
    bytes: AtomicU64,
    budget: Option<Arc<Budget>>,
}

impl Meter {
    pub fn new(budget: Option<Arc<Budget>>) -> Meter {
        Meter { budget, ..Meter::default() }
    }

    pub fn traffic(&self) -> Traffic {
        Traffic { requests: self.requests.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// A storage whose traffic is counted.
pub struct Metered {
    pub inner: Box<dyn Storage>,
    pub meter: Arc<Meter>,
}

impl Metered {
    fn asked(&self) -> &dyn Storage {
        self.meter.requests.fetch_add(1, Ordering::Relaxed);
        self.inner.as_ref()
    }
}

impl Storage for Metered {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn put(&self, object: &str, body: &dyn Body) -> Result<Compared> {
        self.asked().put(object, body)
    }

    fn stat(&self, object: &str) -> Result<Option<u64>> {
        self.asked().stat(object)
    }

    fn read(&self, object: &str, range: Range<u64>) -> Result<Vec<u8>> {
        let bytes = range.end.saturating_sub(range.start);
        self.meter.budget.as_ref().map_or(Ok(()), |budget| budget.take(bytes))?;
        self.meter.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.asked().read(object, range)
    }

    fn list(&self) -> Result<Vec<Object>> {
        self.asked().list()
    }

    fn remove(&self, object: &str) -> Result<()> {
        self.asked().remove(object)
    }

    fn lies(&self) -> &'static [Lie] {
        self.inner.lies()
    }

    fn lie(&self, object: &str, bytes: &[u8], lie: Lie) -> Result<()> {
        self.inner.lie(object, bytes, lie)
    }

    fn stamp(&self, object: &str) -> Result<Option<Stamp>> {
        // What a directory says of a name is no request.
        self.inner.stamp(object)
    }

    fn forget(&self, object: &str) -> Result<()> {
        self.inner.forget(object)
    }
}
