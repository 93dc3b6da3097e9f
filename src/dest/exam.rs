//! The lie test: what a service really compares, whether it lets us delete, and how fast it is.
//!
//! Invariants: a service is believed to refuse something only if it said no *and* nothing changed; all objects that are made
//! have names of their own and are removed again, where that is allowed.

use std::time::{Duration, Instant};

use super::{Lie, Storage, proof, trouble};
use crate::crypto;
use crate::error::{Error, Result, Trouble};
use crate::text::hex;

const SMALL_BYTES: usize = 5000;
const LARGE_BYTES: usize = 8 << 20;
const RANGE_BYTES: u64 = 64 << 10;
const RANGES: u64 = 16;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exam {
    /// Lies that were refused, and changed nothing.
    pub refuses: Vec<Lie>,
    /// Lies that were believed, or refused and done all the same.
    pub accepts: Vec<Lie>,
    /// It lets us delete.
    pub deletes: bool,
    /// Objects that it did not let us delete.
    pub left: u64,
    pub put_bytes_s: u64,
    pub get_bytes_s: u64,
    /// Half of the short reads took no longer.
    pub range_ms: u64,
}

impl Lie {
    pub fn text(self) -> &'static str {
        match self {
            Lie::Sha256 => "a wrong sha256",
            Lie::Md5 => "a wrong Content-MD5",
            Lie::Replace => "to replace an object",
        }
    }
}

/// Tests a place with about 16 MiB.
///
/// # Errors
/// What keeps it from being tested: an object that was put can't be read back, a range is wrong, the connection breaks.
pub fn examine(storage: &dyn Storage) -> Result<Exam> {
    let random = |error: std::io::Error| Error::io("get random bytes for", "a test", &error);
    let run: [u8; 8] = crypto::random().map_err(random)?;
    let mut bytes = vec![0; LARGE_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| random(std::io::Error::other(error.to_string())))?;
    let mut test = Test { storage, run: hex(&run), made: Vec::new() };
    let tested = test.all(&bytes);
    let cleared = test.clear();
    let (exam, (deletes, left)) = (tested?, cleared?);
    Ok(Exam { deletes, left, ..exam })
}

struct Test<'a> {
    storage: &'a dyn Storage,
    run: String,
    made: Vec<String>,
}

impl Test<'_> {
    fn name(&mut self, what: &str) -> String {
        let name = format!("test.{}.{what}", self.run);
        self.made.push(name.clone());
        name
    }

    fn all(&mut self, bytes: &[u8]) -> Result<Exam> {
        let small = bytes.get(..SMALL_BYTES).unwrap_or(bytes);
        let first = self.name("small");
        self.put_and_prove(&first, small)?;
        let (mut refuses, mut accepts) = (Vec::new(), Vec::new());
        for lie in self.storage.lies() {
            let is_refused = match lie {
                Lie::Replace => self.refuses_to_replace(&first, small)?,
                Lie::Sha256 => self.refuses_wrong_sum("sha256", small, *lie)?,
                Lie::Md5 => self.refuses_wrong_sum("md5", small, *lie)?,
            };
            if is_refused { refuses.push(*lie) } else { accepts.push(*lie) }
        }
        let large = self.name("large");
        let begun = Instant::now();
        self.storage.put(&large, &bytes)?;
        let put_bytes_s = rate(bytes.len(), begun.elapsed());
        let begun = Instant::now();
        proof::prove(self.storage, &large, bytes.len() as u64, &crypto::sha256(bytes))?;
        let get_bytes_s = rate(bytes.len(), begun.elapsed());
        let range_ms = self.ranges(&large, bytes)?;
        Ok(Exam { refuses, accepts, deletes: false, left: 0, put_bytes_s, get_bytes_s, range_ms })
    }

    fn put_and_prove(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.storage.put(name, &bytes)?;
        proof::prove(self.storage, name, bytes.len() as u64, &crypto::sha256(bytes))
    }

    fn refuses_wrong_sum(&mut self, what: &str, bytes: &[u8], lie: Lie) -> Result<bool> {
        let name = self.name(what);
        let said_no = is_refusal(self.storage.lie(&name, bytes, lie))?;
        Ok(self.storage.stat(&name)?.is_none() && said_no)
    }

    fn refuses_to_replace(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        let others: Vec<u8> = bytes.iter().map(|byte| byte ^ 0xff).collect();
        let said_no = is_refusal(self.storage.lie(name, &others, Lie::Replace))?;
        match proof::prove(self.storage, name, bytes.len() as u64, &crypto::sha256(bytes)) {
            Ok(()) => Ok(said_no),
            Err(Error::Dest { trouble: Trouble::Checksum { .. } | Trouble::NotFound, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Short reads here and there, the last one at the end; how long one takes.
    fn ranges(&self, name: &str, bytes: &[u8]) -> Result<u64> {
        let mut times = Vec::new();
        for number in 0..RANGES {
            let start = (bytes.len() as u64 - RANGE_BYTES) * number / (RANGES - 1);
            let range = start..start + RANGE_BYTES;
            let begun = Instant::now();
            let found = self.storage.read(name, range.clone())?;
            times.push(begun.elapsed());
            if bytes.get(range.start as usize..range.end as usize) != Some(&found) {
                let wanted = format!("bytes {} to {}", range.start, range.end).into();
                let kind = Trouble::WrongRange { wanted, found: "bytes of another place".into() };
                return Err(trouble(self.storage.name(), name, kind));
            }
        }
        times.sort();
        Ok(times.get(times.len() / 2).map_or(0, |time| time.as_millis() as u64))
    }

    /// Removes what was made; whether that is allowed, and how many objects stay if not.
    fn clear(&self) -> Result<(bool, u64)> {
        let mut left = 0;
        for name in &self.made {
            match self.storage.remove(name) {
                // A service may say yes, and keep it.
                Ok(()) => left += u64::from(self.storage.stat(name)?.is_some()),
                Err(Error::Dest { trouble: Trouble::Denied(_), .. }) => {
                    left += u64::from(self.storage.stat(name)?.is_some());
                }
                Err(error) => return Err(error),
            }
        }
        Ok((left == 0, left))
    }
}

/// A no, and not something else that went wrong.
fn is_refusal(done: Result<()>) -> Result<bool> {
    match done {
        Ok(()) => Ok(false),
        Err(Error::Dest { trouble: Trouble::Refused(_) | Trouble::Checksum { .. } | Trouble::Exists, .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

fn rate(bytes: usize, time: Duration) -> u64 {
    (bytes as f64 / time.as_secs_f64().max(1e-6)) as u64
}
