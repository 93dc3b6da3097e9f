//! What services that are reached by HTTP have in common.
//!
//! Invariants: an object is read from its source as it is sent, so that memory does not grow with it; an upload may take any
//! time as long as bytes go; what is read is the range that was asked for, by what the answer says of itself and by its
//! length; a listing has all its pages. What is different is a `Service`, and no more than that.

use std::convert::Infallible;
use std::ops::Range;
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use bytes::Bytes;
use futures_util::StreamExt;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig};
use reqwest::Method;
use reqwest::header::HeaderMap;
use sha2::Digest;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::http::{Http, of_put, trouble_of};
use super::{Body, Checksum, Compared, Lie, MAX_OBJECTS, Object, READ_LIMIT, STALL_LIMIT, Storage, Sum};
use super::{check_range, pieces, runtime, too_many, trouble, wrong_range};
use crate::error::{Error, Result, Trouble};
use crate::text::{hex, one_line};

/// Bytes that are given to the connection at a time, and how many such pieces may wait.
const SEND_BYTES: u64 = 64 << 10;
const SEND_WAITING: usize = 2;
/// What the kernel may still hold when the last byte was given to it.
const MAX_BUFFERED_BYTES: u64 = 8 << 20;
const PAGE_OBJECTS: usize = 1000;
/// A server behind another service may have to copy what it renames.
const NAME_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 20 } else { 300 });

/// Objects of a listing, and what to ask for the rest with.
pub type Page = (Vec<Object>, Option<String>);
pub type Header = (&'static str, String);
/// Errors of clients; what an answer said is found in them (`trouble_of`).
pub type Asked<T> = object_store::Result<T>;

/// What a service does in its own way.
pub trait Service: Send + Sync + Sized {
    /// What holds the objects, as the service calls it.
    const PLACE: &'static str;
    /// Whether it lets these pass is to be found out.
    const LIES: &'static [Lie];
    /// It tells the MD5 of what came.
    const NEEDS_MD5: bool = false;

    /// Its client, for heads and reads.
    fn store(&self) -> &dyn ObjectStore;

    fn path(&self, object: &str) -> Path;

    /// A request with what it needs to be believed, and without its body.
    fn request(
        &self,
        method: Method,
        object: &str,
        headers: Vec<Header>,
        body_sum: Option<&Sum>,
    ) -> impl Future<Output = Asked<reqwest::Request>>;

    /// What a put says besides: that it may not replace, and what the bytes are.
    fn put_headers(&self, sum: &Sum) -> Vec<Header>;

    /// The same with a lie in it, about what the bytes are.
    fn lie_headers(&self, sum: &Sum, lie: Lie) -> Vec<Header> {
        let md5 = (lie == Lie::Md5).then(wrong_md5);
        self.put_headers(sum).into_iter().chain(md5).collect()
    }

    /// What the service says to have computed of what came.
    fn compared(&self, answer: &HeaderMap, sent: &Sent) -> Compared;

    fn page(&self, http: &Http, token: Option<String>) -> impl Future<Output = Asked<Page>>;

    /// That the place is there.
    fn check(&self, http: &Http) -> impl Future<Output = Asked<()>>;

    /// The name under which an object is sent.
    fn sent_as(object: &str) -> String {
        object.to_string()
    }

    /// Gives its name to what was sent under another.
    async fn name(&self, _: &Http, _object: &str) -> Asked<()> {
        Ok(())
    }
}

/// What a put is said to have that has other bytes.
pub const OTHER_BYTES: &[u8] = b"other bytes";

pub fn wrong_md5() -> Header {
    ("content-md5", Base64::encode_string(&md5::Md5::digest(OTHER_BYTES)))
}

/// What was given to a connection.
pub struct Sent {
    pub sum: Sum,
    md5: Option<[u8; 16]>,
}

impl Sent {
    /// What an answer, which has not been told it, names as MD5.
    pub fn compared_md5(&self, told: Option<&str>) -> Compared {
        let Some((md5, told)) = self.md5.zip(told) else { return Compared::Nothing };
        let sum = |bytes: &[u8]| Checksum { algorithm: "md5".into(), value: hex(bytes) };
        let found = Base64::decode_vec(told).map_or_else(|_| sum(told.as_bytes()), |found| sum(&found));
        Compared::Told { source: sum(&md5), found }
    }
}

pub struct Cloud<S> {
    name: String,
    http: Http,
    runtime: Handle,
    service: S,
}

/// No request is repeated by a client.
pub fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

impl<S: Service> Cloud<S> {
    /// # Errors
    /// `Refused` where settings and credentials make no client.
    pub fn open(name: &str, http: reqwest::Result<Http>, service: impl FnOnce(&Http) -> Asked<S>) -> Result<Cloud<S>> {
        let refused = |error: String| trouble(name, "", Trouble::Refused(one_line(&error)));
        let http = http.map_err(|error| refused(error.to_string()))?;
        let service = service(&http).map_err(|error| match trouble_of(&error) {
            Some(kind) => trouble(name, "", kind),
            None => refused(error.to_string()),
        })?;
        Ok(Cloud { name: name.to_string(), http, runtime: runtime::handle()?, service })
    }

    /// What went wrong, where it is not about bytes that came.
    fn failed(&self, object: &str, error: &(dyn std::error::Error + 'static)) -> Error {
        let kind = trouble_of(error).unwrap_or_else(|| Trouble::Failed(one_line(&error.to_string())));
        trouble(&self.name, object, kind)
    }

    /// Waits for an act of the client, no longer than a read may take.
    fn wait<T>(&self, object: &str, act: impl Future<Output = Asked<T>>) -> Result<T> {
        let act = runtime::within(READ_LIMIT, &self.name, object, "no answer", act);
        self.runtime.block_on(act)?.map_err(|error| self.failed(object, &error))
    }

    /// The same where a place that is not found is no place without objects.
    fn wait_place<T>(&self, act: impl Future<Output = Asked<T>>) -> Result<T> {
        self.wait("", act).map_err(|error| match error {
            Error::Dest { trouble: Trouble::NotFound, .. } => {
                trouble(&self.name, "", Trouble::Absent(format!("the service does not know the {}", S::PLACE)))
            }
            other => other,
        })
    }

    /// Sends an object that must not be there yet, and gives it its name.
    fn send(&self, object: &str, body: &dyn Body, sum: &Sum, headers: Vec<Header>) -> Result<Compared> {
        let sent_as = S::sent_as(object);
        let sent = self.send_as(&sent_as, object, body, sum, headers);
        if sent.is_err() && sent_as != object {
            // It takes room that may be needed; what could not be removed is replaced by the next put.
            let _ = self.wait(object, self.delete(&sent_as));
        }
        sent
    }

    fn send_as(
        &self,
        sent_as: &str,
        object: &str,
        body: &dyn Body,
        sum: &Sum,
        mut headers: Vec<Header>,
    ) -> Result<Compared> {
        headers.push(("content-length", body.len_bytes().to_string()));
        let mut request = self.wait(object, self.service.request(Method::PUT, sent_as, headers, Some(sum)))?;
        let (give, take) = mpsc::channel::<Bytes>(SEND_WAITING);
        let pieces = futures_util::stream::unfold(take, |mut take| async move {
            take.recv().await.map(|piece| (Ok::<_, Infallible>(piece), take))
        });
        *request.body_mut() = Some(reqwest::Body::wrap_stream(pieces));
        let begun = Instant::now();
        let http = self.http.clone();
        let answer = self.runtime.spawn(async move { http.ask(request).await });
        let stop = answer.abort_handle();
        // A connection that is cut within the body stores nothing under the object's name.
        let given = self.give(object, body, &give).inspect_err(|_| stop.abort());
        drop(give);
        let md5 = given?;
        let bytes_s = body.len_bytes() / begun.elapsed().as_secs().max(1);
        let limit = STALL_LIMIT + Duration::from_secs(MAX_BUFFERED_BYTES.min(body.len_bytes()) / bytes_s.max(1));
        let waited = self.runtime.block_on(runtime::within(limit, &self.name, object, "no answer", answer));
        let answered = waited.inspect_err(|_| stop.abort())?;
        let answered = answered.map_err(|error| self.failed(object, &error))?;
        let (answer, _) = answered.map_err(|error| match self.failed(object, &error) {
            Error::Dest { dest, object, trouble } => Error::Dest { dest, object, trouble: of_put(trouble) },
            other => other,
        })?;
        let name =
            runtime::within(NAME_LIMIT, &self.name, object, "not renamed", self.service.name(&self.http, object));
        self.runtime.block_on(name)?.map_err(|error| self.failed(object, &error))?;
        Ok(self.service.compared(&answer, &Sent { sum: *sum, md5 }))
    }

    async fn delete(&self, object: &str) -> Asked<()> {
        let request = self.service.request(Method::DELETE, object, Vec::new(), None).await?;
        self.http.ask(request).await.map(drop)
    }

    /// Gives the body to the connection, which takes it as fast as the line does.
    fn give(&self, object: &str, body: &dyn Body, to: &mpsc::Sender<Bytes>) -> Result<Option<[u8; 16]>> {
        let mut md5 = S::NEEDS_MD5.then(md5::Md5::new);
        for piece in pieces(body, SEND_BYTES) {
            let (_, bytes) = piece?;
            if let Some(md5) = &mut md5 {
                md5.update(&bytes);
            }
            let given =
                runtime::within(STALL_LIMIT, &self.name, object, "nothing could be sent", to.send(bytes.into()));
            if self.runtime.block_on(given)?.is_err() {
                // It was answered, or broke, before its end: the answer says which.
                break;
            }
        }
        Ok(md5.map(|md5| md5.finalize().into()))
    }
}

impl<S: Service> Storage for Cloud<S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn put(&self, object: &str, body: &dyn Body) -> Result<Compared> {
        // A service that refuses at once may close the connection, and its answer is lost; another one may replace.
        if self.stat(object)?.is_some() {
            return Err(trouble(&self.name, object, Trouble::Exists));
        }
        let sum = body.sum()?;
        self.send(object, body, &sum, self.service.put_headers(&sum))
    }

    fn stat(&self, object: &str) -> Result<Option<u64>> {
        match self.wait(object, self.service.store().head(&self.service.path(object))) {
            Ok(found) => Ok(Some(found.size)),
            // An answer to HEAD does not tell a missing object from a missing place.
            Err(Error::Dest { trouble: Trouble::NotFound, .. }) => {
                self.wait_place(self.service.check(&self.http)).map(|()| None)
            }
            Err(error) => Err(error),
        }
    }

    fn read(&self, object: &str, range: Range<u64>) -> Result<Vec<u8>> {
        check_range(&self.name, object, &range)?;
        let wanted = (range.end - range.start) as usize;
        let wrong = |found: String| wrong_range(&self.name, object, &range, found);
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let path = self.service.path(object);
        let read = async {
            let found = match self.service.store().get_opts(&path, options).await {
                Ok(found) => found,
                Err(error) => {
                    return Err(match trouble_of(&error) {
                        Some(Trouble::Refused(what)) if what.starts_with("416") => wrong(what),
                        Some(kind) => trouble(&self.name, object, kind),
                        // The client did not take what the answer says of itself.
                        None => wrong(last_cause(&error)),
                    });
                }
            };
            let (mut stream, mut bytes) = (found.into_stream(), Vec::with_capacity(wanted));
            while let Some(piece) = stream.next().await {
                match piece {
                    Ok(piece) if bytes.len() + piece.len() <= wanted => bytes.extend_from_slice(&piece),
                    Ok(_) => return Err(wrong(format!("more than {wanted} bytes"))),
                    Err(_) => return Err(wrong(format!("{} bytes, and the connection broke", bytes.len()))),
                }
            }
            if bytes.len() == wanted { Ok(bytes) } else { Err(wrong(format!("{} bytes", bytes.len()))) }
        };
        self.runtime.block_on(runtime::within(READ_LIMIT, &self.name, object, "not all bytes came", read))?
    }

    fn list(&self) -> Result<Vec<Object>> {
        let (mut objects, mut token) = (Vec::new(), None);
        loop {
            let (found, next) = self.wait_place(self.service.page(&self.http, token))?;
            objects.extend(found);
            if objects.len() > MAX_OBJECTS {
                return Err(trouble(&self.name, "", too_many()));
            }
            token = next;
            if token.is_none() {
                break;
            }
        }
        objects.sort();
        Ok(objects)
    }

    fn remove(&self, object: &str) -> Result<()> {
        match self.wait(object, self.delete(object)) {
            Err(Error::Dest { trouble: Trouble::NotFound, .. }) => Ok(()),
            other => other,
        }
    }

    fn lies(&self) -> &'static [Lie] {
        S::LIES
    }

    fn lie(&self, object: &str, bytes: &[u8], lie: Lie) -> Result<()> {
        let sum = bytes.sum()?;
        self.send(object, &bytes, &sum, self.service.lie_headers(&sum, lie)).map(drop)
    }
}

/// A page of what is under a prefix (empty, or with `/` at its end), but not deeper.
pub async fn page_of(store: &dyn PaginatedListStore, prefix: &str, token: Option<String>) -> Asked<Page> {
    page(store, prefix, PAGE_OBJECTS, token).await
}

/// Whether there is a listing.
pub async fn check_by_listing(store: &dyn PaginatedListStore, prefix: &str) -> Asked<()> {
    page(store, prefix, 1, None).await.map(drop)
}

async fn page(store: &dyn PaginatedListStore, prefix: &str, most: usize, token: Option<String>) -> Asked<Page> {
    let options = PaginatedListOptions {
        delimiter: Some("/".into()),
        max_keys: Some(most),
        page_token: token,
        ..PaginatedListOptions::default()
    };
    let page = store.list_paginated(Some(prefix).filter(|prefix| !prefix.is_empty()), options).await?;
    let named = page.result.objects.into_iter().filter_map(|found| {
        let key: &str = found.location.as_ref();
        let name = key.strip_prefix(prefix).unwrap_or(key).to_string();
        // Some tools make an object for the "directory" itself.
        (!name.is_empty()).then_some(Object { name, len_bytes: found.size })
    });
    Ok((named.collect(), page.page_token))
}

fn last_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let last = std::iter::successors(Some(error), |error| error.source()).last();
    one_line(&last.map_or_else(String::new, ToString::to_string))
}
