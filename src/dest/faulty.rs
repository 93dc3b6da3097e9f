//! Storage for tests: another one's, in which requests are counted, fail, lie, or take their time.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Body, Checksum, Compared, Lie, Object, Stamp, Storage, pieces, trouble};
use crate::error::{Result, Trouble};
use crate::sync::lock;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Put,
    Stat,
    Read,
    List,
    Remove,
}

#[derive(Debug, Clone)]
pub enum Fault {
    /// Before anything is done.
    Fail(Trouble),
    /// It is done, and then fails: the answer is lost.
    FailAfter(Trouble),
    /// A put stores, and a read gives, one wrong byte.
    Flip,
    /// A put stores only so many bytes, and says that all is well.
    Shorten(u64),
    Wait(Duration),
    /// A listing, or a look by name, does not have what came last: it is stale.
    Hide,
    /// A put says to have computed this checksum.
    Claim(Checksum),
}

type Rule = Box<dyn Fn(Request, &str) -> Option<Fault> + Send + Sync>;

pub struct Faulty<S> {
    inner: S,
    rule: Rule,
    fired: AtomicUsize,
    requests: Mutex<Vec<(Request, String)>>,
    given: Arc<AtomicU64>,
}

impl<S: Storage> Faulty<S> {
    pub fn new(inner: S, rule: impl Fn(Request, &str) -> Option<Fault> + Send + Sync + 'static) -> Faulty<S> {
        Faulty {
            inner,
            rule: Box::new(rule),
            fired: AtomicUsize::new(0),
            requests: Mutex::default(),
            given: Arc::default(),
        }
    }

    /// Adds up the bytes that reads have given.
    pub fn counting(self, given: Arc<AtomicU64>) -> Faulty<S> {
        Faulty { given, ..self }
    }

    /// How often a fault was injected.
    pub fn fired(&self) -> usize {
        self.fired.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> Vec<(Request, String)> {
        lock(&self.requests).clone()
    }

    fn meet<T>(&self, request: Request, object: &str, act: impl FnOnce(Option<&Fault>) -> Result<T>) -> Result<T> {
        lock(&self.requests).push((request, object.to_string()));
        let fault = (self.rule)(request, object);
        self.fired.fetch_add(usize::from(fault.is_some()), Ordering::Relaxed);
        match &fault {
            Some(Fault::Fail(kind)) => return Err(trouble(self.name(), object, kind.clone())),
            Some(Fault::Wait(time)) => std::thread::sleep(*time),
            _ => {}
        }
        let done = act(fault.as_ref())?;
        match fault {
            Some(Fault::FailAfter(kind)) => Err(trouble(self.name(), object, kind)),
            _ => Ok(done),
        }
    }
}

impl Storage for Box<dyn Storage> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn put(&self, object: &str, body: &dyn Body) -> Result<Compared> {
        (**self).put(object, body)
    }

    fn stamp(&self, object: &str) -> Result<Option<Stamp>> {
        (**self).stamp(object)
    }

    fn stat(&self, object: &str) -> Result<Option<u64>> {
        (**self).stat(object)
    }

    fn read(&self, object: &str, range: Range<u64>) -> Result<Vec<u8>> {
        (**self).read(object, range)
    }

    fn list(&self) -> Result<Vec<Object>> {
        (**self).list()
    }

    fn remove(&self, object: &str) -> Result<()> {
        (**self).remove(object)
    }

    fn lies(&self) -> &'static [Lie] {
        (**self).lies()
    }

    fn lie(&self, object: &str, bytes: &[u8], lie: Lie) -> Result<()> {
        (**self).lie(object, bytes, lie)
    }
}

impl<S: Storage> Storage for Faulty<S> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn put(&self, object: &str, body: &dyn Body) -> Result<Compared> {
        self.meet(Request::Put, object, |fault| {
            let mut bytes = Vec::new();
            pieces(body, 1 << 20).try_for_each(|piece| piece.map(|(_, piece)| bytes.extend(piece)))?;
            match fault {
                Some(Fault::Flip) => bytes[0] ^= 1,
                Some(Fault::Shorten(len)) => bytes.truncate(*len as usize),
                _ => {}
            }
            let told = self.inner.put(object, &bytes.as_slice())?;
            let Some(Fault::Claim(found)) = fault else { return Ok(told) };
            Ok(Compared::Told { source: Checksum::sha256(&body.sum()?), found: found.clone() })
        })
    }

    fn stat(&self, object: &str) -> Result<Option<u64>> {
        self.meet(Request::Stat, object, |_| self.inner.stat(object))
    }

    fn read(&self, object: &str, range: Range<u64>) -> Result<Vec<u8>> {
        self.meet(Request::Read, object, |fault| {
            let mut bytes = self.inner.read(object, range)?;
            self.given.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if matches!(fault, Some(Fault::Flip)) {
                bytes[0] ^= 1;
            }
            Ok(bytes)
        })
    }

    fn list(&self) -> Result<Vec<Object>> {
        self.meet(Request::List, "", |fault| {
            let mut objects = self.inner.list()?;
            if matches!(fault, Some(Fault::Hide)) {
                objects.retain(|object| object.name == "DESTID");
            }
            Ok(objects)
        })
    }

    fn lies(&self) -> &'static [Lie] {
        self.inner.lies()
    }

    fn lie(&self, object: &str, bytes: &[u8], lie: Lie) -> Result<()> {
        self.inner.lie(object, bytes, lie)
    }

    fn remove(&self, object: &str) -> Result<()> {
        self.meet(Request::Remove, object, |_| self.inner.remove(object))
    }
}
