//! Requests of object stores, and what their answers mean.
//!
//! Invariants: nothing is tried again and no redirection is followed here; an answer that is no success is an `Answer`, with
//! what the service says of it; what connections and answers say becomes a `Trouble` here and nowhere else.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use reqwest::header::{CONTENT_RANGE, HeaderMap, RANGE, RETRY_AFTER};
use reqwest::{Client, StatusCode};

use crate::error::Trouble;
use crate::text::one_line;

const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Longest explanation that is read.
const MAX_ANSWER_BYTES: usize = 64 << 10;
const MAX_TEXT_CHARS: usize = 200;

/// A client as object_store wants it.
#[derive(Debug, Clone)]
pub struct Http(pub Client);

impl Http {
    pub fn new() -> reqwest::Result<Http> {
        let client = Client::builder()
            .user_agent(concat!("assay/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
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
        if status.is_success() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let text = body.bytes().await.unwrap_or_default();
        let answer = Answer::new(status, &parts.headers, &text);
        Err(HttpError::new(HttpErrorKind::Unknown, answer))
    }
}

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
        let body = std::str::from_utf8(body.get(..MAX_ANSWER_BYTES).unwrap_or(body)).unwrap_or_default();
        let element = |name: &str| {
            let (_, rest) = body.split_once(&format!("<{name}>"))?;
            rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
        };
        let clean = |text: &str| one_line(text).chars().take(MAX_TEXT_CHARS).collect::<String>();
        let code = clean(element("Code").unwrap_or_default());
        let text = clean(element("Message").unwrap_or_default());
        Answer { status: status.as_u16(), retry_after_s: retry_after_s(headers), code, text }
    }

    pub fn trouble(&self) -> Trouble {
        let what = self.to_string();
        let is = |codes: &[&str]| codes.contains(&self.code.as_str());
        match self.status {
            _ if is(&["NoSuchBucket"]) => Trouble::Absent(what),
            _ if is(&["QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"]) => Trouble::Full(what),
            _ if self.is_expired() => Trouble::Denied(what),
            _ if is(&["SlowDown", "RequestLimitExceeded", "Throttling", "TooManyRequests", "ServiceUnavailable"]) => {
                Trouble::Busy { what: what.into(), retry_after_s: self.retry_after_s }
            }
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
            (403, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>", "DEST_DENIED"),
            (400, "<Error><Code>ExpiredToken</Code></Error>", "DEST_DENIED"),
            (400, "<Error><Code>BadDigest</Code></Error>", "DEST_REFUSED"),
            (301, "", "DEST_REFUSED"),
            (412, "", "DEST_EXISTS"),
            (429, "", "DEST_BUSY"),
            (503, "", "DEST_BUSY"),
            (502, "", "DEST_FAILED"),
            (507, "", "DEST_FULL"),
        ] {
            assert_eq!(answer(status, body), code, "{status} {body}");
        }
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
