//! Requests of object stores, and what their answers mean.
//!
//! Invariants: nothing is tried again and no redirection is followed here; an answer that is no success is an `Answer`, with
//! what the service says of it; what connections and answers say becomes a `Trouble` here and nowhere else.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpService,
};
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Client, Method, StatusCode, Url};

use super::cloud::{Asked, Header};
use crate::error::Trouble;
use crate::text::one_line;

const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Longest explanation of an error that is read.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Longest answer that is held in memory as a whole: a page of a listing.
pub const MAX_ANSWER_BYTES: usize = if cfg!(test) { 2 << 20 } else { 64 << 20 };
const MAX_TEXT_CHARS: usize = 200;

/// A client as object_store wants it.
#[derive(Debug, Clone)]
pub struct Http(pub Client);

impl Http {
    pub fn new() -> reqwest::Result<Http> {
        Http::with_headers(HeaderMap::new())
    }

    /// With these in each request.
    pub fn with_headers(headers: HeaderMap) -> reqwest::Result<Http> {
        let client = Client::builder()
            .user_agent(concat!("assay/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .build()?;
        Ok(Http(client))
    }

    async fn answered(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_range = request.headers().contains_key(RANGE);
        let mut response = HttpService::call(&self.0, request).await?;
        let status = response.status();
        if is_range && status == StatusCode::OK && response.headers().contains_key(CONTENT_RANGE) {
            // Some servers forget to say that it is a part.
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        let (parts, body) = response.into_parts();
        if !status.is_success() {
            let text = start_of(body.bytes_stream()).await;
            let answer = Answer::new(status, &parts.headers, &text);
            return Err(HttpError::new(HttpErrorKind::Unknown, answer));
        }
        // What is read by ranges is counted by who reads it.
        let body = if is_range { body } else { all_of(body.bytes_stream()).await?.into() };
        Ok(HttpResponse::from_parts(parts, body))
    }

    /// What a request of our own is answered.
    pub async fn ask(&self, request: reqwest::Request) -> Asked<(HeaderMap, Bytes)> {
        let lost = |error: reqwest::Error| failed(error.without_url());
        let response = self.0.execute(request).await.map_err(lost)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes_stream().map(|piece| piece.map_err(reqwest::Error::without_url));
        if !status.is_success() {
            return Err(failed(Answer::new(status, &headers, &start_of(body).await)));
        }
        Ok((headers, all_of(body).await.map_err(failed)?))
    }
}

/// As much of a body as explains an error.
async fn start_of<E>(body: impl Stream<Item = Result<Bytes, E>>) -> Vec<u8> {
    let (mut body, mut text) = (std::pin::pin!(body), Vec::new());
    while let Some(Ok(piece)) = body.next().await {
        text.extend_from_slice(&piece);
        if text.len() >= MAX_ERROR_BYTES {
            break;
        }
    }
    text.truncate(MAX_ERROR_BYTES);
    text
}

/// A whole body, if it is not too long.
async fn all_of<E: StdError + Send + Sync + 'static>(
    body: impl Stream<Item = Result<Bytes, E>>,
) -> Result<Bytes, HttpError> {
    let (mut body, mut all) = (std::pin::pin!(body), Vec::new());
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        if all.len() + piece.len() > MAX_ANSWER_BYTES {
            return Err(HttpError::new(HttpErrorKind::Unknown, too_long()));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.into())
}

fn too_long() -> Met {
    Met(Trouble::Refused(format!("its answer has more than {} MiB", MAX_ANSWER_BYTES >> 20)))
}

/// What a client's error is made of.
pub fn failed(source: impl Into<Box<dyn StdError + Send + Sync>>) -> object_store::Error {
    object_store::Error::Generic { store: "service", source: source.into() }
}

/// A request without a body, for a signature.
pub fn signable(method: Method, url: &str, headers: Vec<Header>) -> Asked<HttpRequest> {
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.method_mut() = method;
    *request.uri_mut() = url.parse().map_err(failed)?;
    for (name, value) in headers {
        let value = HeaderValue::from_str(&value).map_err(failed)?;
        request.headers_mut().insert(HeaderName::from_static(name), value);
    }
    Ok(request)
}

/// The same for the connection.
pub fn signed(mut request: HttpRequest) -> Asked<reqwest::Request> {
    let url = Url::parse(&request.uri().to_string()).map_err(failed)?;
    let mut signed = reqwest::Request::new(request.method().clone(), url);
    *signed.headers_mut() = std::mem::take(request.headers_mut());
    Ok(signed)
}

/// An error whose meaning is known where it is met.
#[derive(Debug)]
pub struct Met(pub Trouble);

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.code())
    }
}

impl StdError for Met {}

impl HttpService for Http {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(self.answered(request))
    }
}

impl HttpConnector for Http {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// What services say where the body of a put has not the checksum that came with it.
const NOT_AS_SENT: [&str; 5] =
    ["BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "Md5Mismatch", "Crc64Mismatch"];

/// An answer that is no success.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    retry_after_s: Option<u64>,
    /// The service's own name of the error; empty where it has none.
    code: String,
    text: String,
}

impl Answer {
    pub fn new(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
        let body = std::str::from_utf8(body).unwrap_or_default();
        let element = |name: &str| {
            let (_, rest) = body.split_once(&format!("<{name}>"))?;
            rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
        };
        let clean = |text: &str| one_line(text).chars().take(MAX_TEXT_CHARS).collect::<String>();
        // An answer to HEAD has no body.
        let named = headers.get("x-ms-error-code").and_then(|value| value.to_str().ok());
        let code = clean(element("Code").or(named).unwrap_or_default());
        let text = clean(element("Message").unwrap_or_default());
        Answer { status: status.as_u16(), retry_after_s: retry_after_s(headers), code, text }
    }

    pub fn trouble(&self) -> Trouble {
        let what = self.to_string();
        let is = |codes: &[&str]| codes.contains(&self.code.as_str());
        match self.status {
            _ if is(&["NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"]) => Trouble::Absent(what),
            _ if is(&["QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"]) => Trouble::Full(what),
            _ if self.is_expired() => Trouble::Denied(what),
            _ if is(&["SlowDown", "RequestLimitExceeded", "Throttling", "TooManyRequests", "ServiceUnavailable"]) => {
                Trouble::Busy { what: what.into(), retry_after_s: self.retry_after_s }
            }
            _ if is(&["IncompleteBody", "RequestTimeout"]) => Trouble::Failed(what),
            401 | 403 => Trouble::Denied(what),
            404 => Trouble::NotFound,
            409 | 412 => Trouble::Exists,
            429 | 503 => Trouble::Busy { what: what.into(), retry_after_s: self.retry_after_s },
            507 => Trouble::Full(what),
            501 => Trouble::Refused(what),
            408 | 500..=599 => Trouble::Failed(what),
            _ => Trouble::Refused(what),
        }
    }

    /// Other credentials would do.
    fn is_expired(&self) -> bool {
        ["ExpiredToken", "TokenRefreshRequired", "InvalidToken", "RequestExpired"].contains(&self.code.as_str())
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        for part in [&self.code, &self.text].into_iter().filter(|part| !part.is_empty()) {
            write!(f, " {part}")?;
        }
        Ok(())
    }
}

impl StdError for Answer {}

/// What a put was answered: a body that is refused for its checksum is to be sent again.
pub fn of_put(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Refused(what) if NOT_AS_SENT.iter().any(|code| what.split(' ').nth(1) == Some(code)) => {
            Trouble::Checksum { source: "as sent".into(), found: what.into() }
        }
        other => other,
    }
}

/// Seconds, or the time of day until which to wait.
fn retry_after_s(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let until = || {
        let until = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value.replace("GMT", "+0000")).ok()?;
        u64::try_from(until.as_second() - jiff::Timestamp::now().as_second()).ok()
    };
    value.parse().ok().or_else(until)
}

/// What an error of a client means: its answer, or what happened to the connection. None: something else.
pub fn trouble_of(error: &(dyn StdError + 'static)) -> Option<Trouble> {
    let (mut next, mut last, mut is_connection) = (Some(error), String::new(), false);
    while let Some(cause) = next {
        next = cause.source();
        if let Some(answer) = cause.downcast_ref::<Answer>() {
            return Some(answer.trouble());
        }
        if let Some(Met(trouble)) = cause.downcast_ref() {
            return Some(trouble.clone());
        }
        is_connection |= cause.is::<HttpError>() || cause.is::<reqwest::Error>();
        last = cause.to_string();
    }
    is_connection.then(|| Trouble::Failed(one_line(&last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_troubles() {
        let answer = |status: u16, body: &str| {
            Answer::new(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes()).trouble().code()
        };
        for (status, body, code) in [
            (404, "", "DEST_NOT_FOUND"),
            (404, "<Error><Code>NoSuchBucket</Code></Error>", "DEST_ABSENT"),
            (404, "<Error><Code>ContainerNotFound</Code></Error>", "DEST_ABSENT"),
            (409, "<Error><Code>BlobAlreadyExists</Code></Error>", "DEST_EXISTS"),
            (403, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>", "DEST_DENIED"),
            (400, "<Error><Code>ExpiredToken</Code></Error>", "DEST_DENIED"),
            (400, "<Error><Code>BadDigest</Code></Error>", "DEST_REFUSED"),
            (400, "<Error><Code>IncompleteBody</Code></Error>", "DEST_FAILED"),
            (400, "<Error><Code>RequestTimeout</Code></Error>", "DEST_FAILED"),
            (400, "<Error><Code>MalformedXML</Code></Error>", "DEST_REFUSED"),
            (301, "", "DEST_REFUSED"),
            (412, "", "DEST_EXISTS"),
            (429, "", "DEST_BUSY"),
            (503, "", "DEST_BUSY"),
            (502, "", "DEST_FAILED"),
            (507, "", "DEST_FULL"),
        ] {
            assert_eq!(answer(status, body), code, "{status} {body}");
        }
        let of_put = |what: &str| of_put(Trouble::Refused(what.into())).code();
        assert_eq!((of_put("400 BadDigest no"), of_put("400 Other BadDigest")), ("DEST_CHECKSUM", "DEST_REFUSED"));
    }

    #[test]
    fn a_server_may_say_when_to_come_again() {
        let after = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after_s(&headers)
        };
        assert_eq!((after("7"), after(" 120 "), after("soon"), after("-1")), (Some(7), Some(120), None, None));
        let date = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(90)).strftime("%a, %d %b %Y %H:%M:%S GMT");
        let s = after(&date.to_string()).unwrap();
        assert!((85..=90).contains(&s), "{s}");
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), None);
    }
}
