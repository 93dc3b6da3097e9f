//! WebDAV: a collection on an ordinary web server, or what `rclone serve webdav` makes one of.
//!
//! Invariants: an object gets its name when all of it is there, by a MOVE that may not replace (`Overwrite: F`); a listing
//! is believed only if it has the collection itself, and what it says of each member is a success.

use std::collections::BTreeMap;

use base64ct::{Base64, Encoding};
use object_store::ObjectStore;
use object_store::http::{HttpBuilder, HttpStore};
use object_store::path::Path;
use percent_encoding::percent_decode_str;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::cloud::{Asked, Cloud, Header, Page, Sent, Service, once};
use super::dir::PART;
use super::http::{Http, Met, failed, signable, signed};
use super::secret::Secret;
use super::{Compared, Lie, Object, Sum, settings};
use crate::error::Trouble;
use crate::text::one_line;

const ASKED: &str =
    r#"<?xml version="1.0"?><propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/></prop></propfind>"#;

pub struct WebDav {
    /// Without a `/` at its end.
    url: String,
    store: HttpStore,
}

impl WebDav {
    /// `password`: of the user, if there is one.
    pub fn open(
        name: &str,
        settings: &settings::WebDav,
        password: Option<&Secret>,
    ) -> crate::error::Result<Cloud<WebDav>> {
        let mut headers = HeaderMap::new();
        if let (Some(user), Some(password)) = (&settings.user, password) {
            let pair = Base64::encode_string(format!("{user}:{}", password.as_str()).as_bytes());
            let value = HeaderValue::from_str(&format!("Basic {pair}"));
            headers.extend(value.ok().map(|mut value| {
                value.set_sensitive(true);
                (AUTHORIZATION, value)
            }));
        }
        Cloud::open(name, Http::with_headers(headers), |http| {
            let store = HttpBuilder::new().with_url(&settings.url).with_retry(once()).with_http_connector(http.clone());
            Ok(WebDav { url: settings.url.clone(), store: store.build()? })
        })
    }

    /// What a PROPFIND of the collection, or of it and its members, is answered.
    async fn find(&self, http: &Http, depth: &'static str) -> Asked<Vec<Object>> {
        let headers = vec![("depth", depth.to_string()), ("content-type", "application/xml".into())];
        let mut request = signed(signable(method("PROPFIND")?, &format!("{}/", self.url), headers)?)?;
        *request.body_mut() = Some(ASKED.into());
        let (_, text) = http.ask(request).await?;
        members(&Url::parse(&format!("{}/", self.url)).map_err(failed)?, &text).map_err(|what| failed(Met(what)))
    }
}

impl Service for WebDav {
    const PLACE: &'static str = "collection";
    const LIES: &'static [Lie] = &[Lie::Replace];

    fn store(&self) -> &dyn ObjectStore {
        &self.store
    }

    fn path(&self, object: &str) -> Path {
        Path::from(object)
    }

    async fn request(
        &self,
        method: Method,
        object: &str,
        headers: Vec<Header>,
        _: Option<&Sum>,
    ) -> Asked<reqwest::Request> {
        signed(signable(method, &format!("{}/{object}", self.url), headers)?)
    }

    fn put_headers(&self, _: &Sum) -> Vec<Header> {
        Vec::new()
    }

    fn compared(&self, _: &HeaderMap, _: &Sent) -> Compared {
        Compared::Nothing
    }

    async fn page(&self, http: &Http, _: Option<String>) -> Asked<Page> {
        Ok((self.find(http, "1").await?, None))
    }

    async fn check(&self, http: &Http) -> Asked<()> {
        self.find(http, "0").await.map(drop)
    }

    fn sent_as(object: &str) -> String {
        format!("{object}{PART}")
    }

    async fn name(&self, http: &Http, object: &str) -> Asked<()> {
        let part = Self::sent_as(object);
        let headers = vec![("destination", format!("{}/{object}", self.url)), ("overwrite", "F".into())];
        http.ask(self.request(method("MOVE")?, &part, headers, None).await?).await.map(drop)
    }
}

fn method(name: &str) -> Asked<Method> {
    Method::from_bytes(name.as_bytes()).map_err(failed)
}

#[derive(Deserialize)]
struct MultiStatus {
    #[serde(default)]
    response: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    href: String,
    status: Option<String>,
    #[serde(default)]
    propstat: Vec<PropStat>,
}

#[derive(Deserialize)]
struct PropStat {
    prop: Prop,
    status: String,
}

#[derive(Deserialize)]
struct Prop {
    resourcetype: Option<ResourceType>,
    getcontentlength: Option<String>,
}

#[derive(Deserialize)]
struct ResourceType {
    collection: Option<()>,
}

/// The objects that an answer to PROPFIND has.
fn members(root: &Url, text: &[u8]) -> Result<Vec<Object>, Trouble> {
    let wrong = |what: String| Trouble::Failed(one_line(&format!("the listing {what}")));
    let answer = quick_xml::de::from_reader::<_, MultiStatus>(text);
    let answer = answer.map_err(|error| wrong(format!("is broken: {error}")))?;
    let is_good = |status: &str| status.split(' ').nth(1).is_some_and(|code| code.starts_with('2'));
    let (mut objects, mut has_root) = (BTreeMap::new(), false);
    for member in answer.response {
        if let Some(status) = member.status.filter(|status| !is_good(status)) {
            return Err(wrong(format!("is not whole: {} has {status}", member.href)));
        }
        let name = name_below(root, &member.href);
        let name = name.ok_or_else(|| wrong(format!("has {}, which is elsewhere", member.href)))?;
        let (mut is_collection, mut len) = (false, None);
        for found in member.propstat.into_iter().filter(|found| is_good(&found.status)) {
            is_collection |= found.prop.resourcetype.is_some_and(|kind| kind.collection.is_some());
            len = len.or(found.prop.getcontentlength);
        }
        match (name.is_empty(), is_collection) {
            (true, true) => has_root = true,
            (true, false) => return Err(Trouble::Absent("it is a file, and no collection".into())),
            (false, false) if !name.ends_with(PART) => {
                let len_bytes = len.and_then(|len| len.trim().parse().ok());
                let len_bytes = len_bytes.ok_or_else(|| wrong(format!("has no length of {name}")))?;
                objects.insert(name.clone(), Object { name, len_bytes });
            }
            _ => {}
        }
    }
    if !has_root {
        return Err(wrong("is not whole: the collection itself is not in it".into()));
    }
    Ok(objects.into_values().collect())
}

/// The name of a member; empty for the collection itself, None for what is not in it.
fn name_below(root: &Url, href: &str) -> Option<String> {
    let path = path_of(&root.join(href).ok()?)?;
    let below = path.strip_prefix(&path_of(root)?)?;
    let name = if below.is_empty() { "" } else { below.strip_prefix('/')? };
    (!name.contains('/')).then(|| name.to_string())
}

/// The path of a URL in clear, without a `/` at its end.
fn path_of(url: &Url) -> Option<String> {
    Some(percent_decode_str(url.path()).decode_utf8().ok()?.trim_end_matches('/').to_string())
}
