//! S3 and what speaks as it does.
//!
//! Invariants: an object is sent by one PUT that carries its SHA-256 and may not replace (`If-None-Match: *`); it is read
//! from the file as it goes, so that memory does not grow with it; an upload may take any time as long as bytes go.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use bytes::Bytes;
use futures_util::StreamExt;
use hmac::{Hmac, KeyInit, Mac};
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::{
    CryptoProvider, DigestAlgorithm, DigestContext, HmacContext, HttpRequest, HttpRequestBody, Signer, SigningAlgorithm,
};
use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig, StaticCredentialProvider};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::http::{Answer, Http, trouble_of};
use super::secret::Credentials;
use super::{Body, Compared, Lie, Object, READ_LIMIT, STALL_LIMIT, Storage, Sum, check_range, runtime, settings};
use super::{Checksum, pieces, trouble, wrong_range};
use crate::error::{Error, Result, Trouble};
use crate::text::{hex, one_line};

/// Bytes that are given to the connection at a time, and how many such pieces may wait.
const SEND_BYTES: u64 = 64 << 10;
const SEND_WAITING: usize = 2;
/// What the kernel may still hold when the last byte was given to it.
const MAX_BUFFERED_BYTES: u64 = 8 << 20;
const PAGE_OBJECTS: usize = 1000;

pub struct S3 {
    name: String,
    /// `https://HOST/BUCKET`.
    url: String,
    region: String,
    prefix: String,
    class: Option<String>,
    credential: AwsCredential,
    http: Http,
    store: AmazonS3,
    runtime: Handle,
}

impl S3 {
    pub fn open(name: &str, settings: &settings::S3, credentials: &Credentials) -> Result<S3> {
        let refused = |error: String| trouble(name, "", Trouble::Refused(one_line(&error)));
        let endpoint = settings.endpoint.clone();
        let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", settings.region));
        let credential = || AwsCredential {
            key_id: credentials.access_key.clone(),
            secret_key: credentials.secret.to_string(),
            token: credentials.token.as_ref().map(|token| token.to_string()),
        };
        let http = Http::new().map_err(|error| refused(error.to_string()))?;
        let store = AmazonS3Builder::new()
            .with_bucket_name(&settings.bucket)
            .with_region(&settings.region)
            .with_endpoint(&endpoint)
            .with_allow_http(true)
            .with_credentials(Arc::new(StaticCredentialProvider::new(credential())))
            .with_crypto_provider(Arc::new(Crypto))
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_disable_bulk_delete(true)
            .with_http_connector(http.clone())
            .build()
            .map_err(|error| refused(error.to_string()))?;
        Ok(S3 {
            name: name.to_string(),
            url: format!("{endpoint}/{}", settings.bucket),
            region: settings.region.clone(),
            prefix: settings.prefix.clone(),
            class: settings.class.clone(),
            credential: credential(),
            http,
            store,
            runtime: runtime::handle()?,
        })
    }

    fn path(&self, object: &str) -> Path {
        Path::from(format!("{}{object}", self.prefix))
    }

    /// What went wrong, where it is not about bytes that came.
    fn failed(&self, object: &str, error: &(dyn std::error::Error + 'static)) -> Error {
        let kind = trouble_of(error).unwrap_or_else(|| Trouble::Failed(one_line(&error.to_string())));
        trouble(&self.name, object, kind)
    }

    /// Waits for an act of the client, no longer than a read may take.
    fn wait<T>(&self, object: &str, act: impl Future<Output = object_store::Result<T>>) -> Result<T> {
        let act = runtime::within(READ_LIMIT, &self.name, object, "no answer", act);
        self.runtime.block_on(act)?.map_err(|error| self.failed(object, &error))
    }

    fn page(&self, most: usize, token: Option<String>) -> Result<PaginatedListResult> {
        let options = PaginatedListOptions {
            delimiter: Some("/".into()),
            max_keys: Some(most),
            page_token: token,
            ..PaginatedListOptions::default()
        };
        let prefix = Some(self.prefix.as_str()).filter(|prefix| !prefix.is_empty());
        self.wait("", self.store.list_paginated(prefix, options)).map_err(|error| match error {
            // A listing that is not found is no listing of nothing.
            Error::Dest { trouble: Trouble::NotFound, .. } => {
                trouble(&self.name, "", Trouble::Absent("the service does not know the bucket".into()))
            }
            other => other,
        })
    }

    /// A signed PUT of an object, without its body.
    fn put_request(
        &self,
        object: &str,
        body_sum: &Sum,
        headers: &[(&'static str, String)],
    ) -> Result<reqwest::Request> {
        let failed = |what: &str| trouble(&self.name, object, Trouble::Refused(format!("no request: {what}")));
        let url = format!("{}/{}{object}", self.url, self.prefix);
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = url.parse().map_err(|_| failed("the endpoint is no URL"))?;
        for (header, value) in headers {
            let value = HeaderValue::from_str(value).map_err(|_| failed(header))?;
            request.headers_mut().insert(HeaderName::from_static(header), value);
        }
        AwsAuthorizer::new(&self.credential, "s3", &self.region)
            .with_crypto(&Crypto)
            .try_authorize(&mut request, Some(body_sum))
            .map_err(|error| failed(&error.to_string()))?;
        let mut signed =
            reqwest::Request::new(Method::PUT, Url::parse(&url).map_err(|_| failed("the endpoint is no URL"))?);
        *signed.headers_mut() = std::mem::take(request.headers_mut());
        Ok(signed)
    }

    /// Sends an object that must not be there yet, with one more header.
    fn send(&self, object: &str, body: &dyn Body, sum: &Sum, more: (&'static str, String)) -> Result<HeaderMap> {
        let mut headers = vec![("content-length", body.len_bytes().to_string()), ("if-none-match", "*".into()), more];
        headers.extend(self.class.clone().map(|class| ("x-amz-storage-class", class)));
        let mut request = self.put_request(object, sum, &headers)?;
        let (give, take) = mpsc::channel::<Bytes>(SEND_WAITING);
        let pieces = futures_util::stream::unfold(take, |mut take| async move {
            take.recv().await.map(|piece| (Ok::<_, Infallible>(piece), take))
        });
        *request.body_mut() = Some(reqwest::Body::wrap_stream(pieces));
        let begun = Instant::now();
        let http = self.http.0.clone();
        let answer = self.runtime.spawn(async move {
            let answer = http.execute(request).await?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            Ok::<_, reqwest::Error>((status, headers, answer.bytes().await?))
        });
        let stop = answer.abort_handle();
        // A connection that is cut within the body stores nothing.
        let given = self.give(object, body, &give).inspect_err(|_| stop.abort());
        drop(give);
        given?;
        let bytes_s = body.len_bytes() / begun.elapsed().as_secs().max(1);
        let limit = STALL_LIMIT + Duration::from_secs(MAX_BUFFERED_BYTES.min(body.len_bytes()) / bytes_s.max(1));
        let waited = self.runtime.block_on(runtime::within(limit, &self.name, object, "no answer", answer));
        let answered = waited.inspect_err(|_| stop.abort())?;
        let answered = answered.map_err(|error| self.failed(object, &error))?;
        let (status, headers, text) = answered.map_err(|error| self.failed(object, &error))?;
        if status.is_success() {
            return Ok(headers);
        }
        Err(trouble(&self.name, object, Answer::new(status, &headers, &text).trouble()))
    }

    /// Gives the body to the connection, which takes it as fast as the line does.
    fn give(&self, object: &str, body: &dyn Body, to: &mpsc::Sender<Bytes>) -> Result<()> {
        for piece in pieces(body, SEND_BYTES) {
            let (_, bytes) = piece?;
            let given =
                runtime::within(STALL_LIMIT, &self.name, object, "nothing could be sent", to.send(bytes.into()));
            if self.runtime.block_on(given)?.is_err() {
                // It was answered, or broke, before its end: the answer says which.
                break;
            }
        }
        Ok(())
    }
}

impl Storage for S3 {
    fn name(&self) -> &str {
        &self.name
    }

    fn put(&self, object: &str, body: &dyn Body) -> Result<Compared> {
        // A service that refuses at once may close the connection, and its answer is lost.
        if self.stat(object)?.is_some() {
            return Err(trouble(&self.name, object, Trouble::Exists));
        }
        let sum = body.sum()?;
        let headers = self.send(object, body, &sum, ("x-amz-checksum-sha256", Base64::encode_string(&sum)))?;
        Ok(Compared::Told(told(&headers).unwrap_or_else(|| Checksum::sha256(&sum))))
    }

    fn stat(&self, object: &str) -> Result<Option<u64>> {
        match self.wait(object, self.store.head(&self.path(object))) {
            Ok(found) => Ok(Some(found.size)),
            // An answer to HEAD does not tell a missing object from a missing bucket.
            Err(Error::Dest { trouble: Trouble::NotFound, .. }) => self.page(1, None).map(|_| None),
            Err(error) => Err(error),
        }
    }

    fn read(&self, object: &str, range: Range<u64>) -> Result<Vec<u8>> {
        check_range(&self.name, object, &range)?;
        let wanted = (range.end - range.start) as usize;
        let wrong = |found: String| wrong_range(&self.name, object, &range, found);
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let path = self.path(object);
        let read = async {
            let found = match self.store.get_opts(&path, options).await {
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
            let page = self.page(PAGE_OBJECTS, token)?;
            for found in page.result.objects {
                let key: &str = found.location.as_ref();
                let name = key.strip_prefix(&self.prefix).unwrap_or(key).to_string();
                // Some tools make an object for the "directory" itself.
                if !name.is_empty() {
                    objects.push(Object { name, len_bytes: found.size });
                }
            }
            token = page.page_token;
            if token.is_none() {
                break;
            }
        }
        objects.sort();
        Ok(objects)
    }

    fn remove(&self, object: &str) -> Result<()> {
        match self.wait(object, self.store.delete(&self.path(object))) {
            Err(Error::Dest { trouble: Trouble::NotFound, .. }) => Ok(()),
            other => other,
        }
    }

    fn lies(&self) -> &'static [Lie] {
        &[Lie::Sha256, Lie::Md5, Lie::Replace]
    }

    fn lie(&self, object: &str, bytes: &[u8], lie: Lie) -> Result<()> {
        let of_others = |len| Base64::encode_string(Sha256::digest(b"other bytes").get(..len).unwrap_or_default());
        let sum: Sum = Sha256::digest(bytes).into();
        let header = match lie {
            Lie::Sha256 => ("x-amz-checksum-sha256", of_others(32)),
            Lie::Md5 => ("content-md5", of_others(16)),
            Lie::Replace => ("x-amz-checksum-sha256", Base64::encode_string(&sum)),
        };
        self.send(object, &bytes, &sum, header).map(drop)
    }
}

/// The checksum that an answer names. One that names none has accepted the one that it was sent.
fn told(headers: &HeaderMap) -> Option<Checksum> {
    let mut named = headers.iter().filter_map(|(name, value)| {
        let algorithm = name.as_str().strip_prefix("x-amz-checksum-").filter(|rest| *rest != "type")?;
        let value = value.to_str().ok().and_then(|text| Base64::decode_vec(text).ok()).map(|bytes| hex(&bytes));
        Some(Checksum { algorithm: algorithm.to_string(), value: value.unwrap_or_default() })
    });
    let (first, rest) = (named.next()?, named);
    Some(std::iter::once(first.clone()).chain(rest).find(|sum| sum.algorithm == "sha256").unwrap_or(first))
}

fn last_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let last = std::iter::successors(Some(error), |error| error.source()).last();
    one_line(&last.map_or_else(String::new, ToString::to_string))
}

/// The primitives of this program, for the signatures of requests.
#[derive(Debug)]
struct Crypto;

struct Hashing(Sha256, Sum);
struct Keyed(Hmac<Sha256>, Sum);

impl CryptoProvider for Crypto {
    fn digest(&self, _: DigestAlgorithm) -> object_store::Result<Box<dyn DigestContext>> {
        Ok(Box::new(Hashing(Sha256::new(), [0; 32])))
    }

    fn hmac(&self, _: DigestAlgorithm, secret: &[u8]) -> object_store::Result<Box<dyn HmacContext>> {
        let keyed = Hmac::new_from_slice(secret).map_err(|error| unsupported(&error.to_string()))?;
        Ok(Box::new(Keyed(keyed, [0; 32])))
    }

    fn sign(&self, _: SigningAlgorithm, _: &[u8]) -> object_store::Result<Box<dyn Signer>> {
        Err(unsupported("RSA"))
    }
}

impl DigestContext for Hashing {
    fn update(&mut self, data: &[u8]) {
        Digest::update(&mut self.0, data);
    }

    fn finish(&mut self) -> object_store::Result<&[u8]> {
        self.1 = self.0.finalize_reset().into();
        Ok(&self.1)
    }
}

impl HmacContext for Keyed {
    fn update(&mut self, data: &[u8]) {
        Mac::update(&mut self.0, data);
    }

    fn finish(&mut self) -> object_store::Result<&[u8]> {
        self.1 = self.0.clone().finalize().into_bytes().into();
        Ok(&self.1)
    }
}

fn unsupported(what: &str) -> object_store::Error {
    object_store::Error::NotSupported { source: what.to_string().into() }
}
