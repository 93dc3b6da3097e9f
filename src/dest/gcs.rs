//! Google Cloud Storage, by its XML API.
//!
//! Invariant: an object is sent by one PUT that may not replace (`x-goog-if-generation-match: 0`).

use std::sync::Arc;

use object_store::gcp::{GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::path::Path;
use object_store::{ObjectStore, StaticCredentialProvider};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::cloud::{Asked, Cloud, Header, Page, Sent, Service, check_by_listing, once, page_of};
use super::http::{Http, Met, failed, signable, signed};
use super::secret::Secret;
use super::sign::Crypto;
use super::{Compared, Lie, Sum, settings};
use crate::error::{Result, Trouble};

const GOOGLE: &str = "https://storage.googleapis.com";

pub struct Gcs {
    /// `https://HOST/BUCKET`.
    url: String,
    prefix: String,
    class: Option<String>,
    store: GoogleCloudStorage,
}

/// What the key of a service account must have.
#[derive(Deserialize)]
#[expect(dead_code, reason = "their presence is what is asked")]
struct ServiceAccount {
    private_key: String,
    private_key_id: String,
    client_email: String,
}

impl Gcs {
    /// `account`: the JSON of a service account's key; without it nothing is signed.
    pub fn open(name: &str, settings: &settings::Gcs, account: Option<&Secret>) -> Result<Cloud<Gcs>> {
        let endpoint = settings.endpoint.clone().unwrap_or_else(|| GOOGLE.into());
        Cloud::open(name, Http::new(), |http| {
            let store = GoogleCloudStorageBuilder::new()
                .with_bucket_name(&settings.bucket)
                .with_base_url(&endpoint)
                .with_crypto_provider(Arc::new(Crypto))
                .with_retry(once())
                .with_http_connector(http.clone());
            let store = match account {
                Some(account) => {
                    // The client's own error quotes what it met.
                    let wrong = |what: &str| failed(Met(Trouble::Denied(format!("the credentials {what}"))));
                    let parsed = serde_json::from_str::<ServiceAccount>(account);
                    parsed.map_err(|_| wrong("are no JSON of a service account's key"))?;
                    let store = store.with_service_account_key(account.as_str()).build();
                    store.map_err(|_| wrong("have a private_key that can't be used"))?
                }
                None => {
                    let nobody = GcpCredential { bearer: String::new() };
                    let store = store.with_credentials(Arc::new(StaticCredentialProvider::new(nobody)));
                    store.with_skip_signature(true).build()?
                }
            };
            Ok(Gcs {
                url: format!("{endpoint}/{}", settings.bucket),
                prefix: settings.prefix.clone(),
                class: settings.class.clone(),
                store,
            })
        })
    }
}

impl Service for Gcs {
    const PLACE: &'static str = "bucket";
    const LIES: &'static [Lie] = &[Lie::Md5, Lie::Replace];
    const NEEDS_MD5: bool = true;

    fn store(&self) -> &dyn ObjectStore {
        &self.store
    }

    fn path(&self, object: &str) -> Path {
        Path::from(format!("{}{object}", self.prefix))
    }

    async fn request(
        &self,
        method: Method,
        object: &str,
        mut headers: Vec<Header>,
        _: Option<&Sum>,
    ) -> Asked<reqwest::Request> {
        let bearer = self.store.credentials().get_credential().await?.bearer.clone();
        if !bearer.is_empty() {
            headers.push(("authorization", format!("Bearer {bearer}")));
        }
        signed(signable(method, &format!("{}/{}{object}", self.url, self.prefix), headers)?)
    }

    fn put_headers(&self, _: &Sum) -> Vec<Header> {
        let class = self.class.clone().map(|class| ("x-goog-storage-class", class));
        let kind = ("content-type", "application/octet-stream".into());
        [("x-goog-if-generation-match", "0".into()), kind].into_iter().chain(class).collect()
    }

    fn compared(&self, answer: &HeaderMap, sent: &Sent) -> Compared {
        // `crc32c=…,md5=…`, in one header or two.
        let hashes = answer.get_all("x-goog-hash").iter().filter_map(|value| value.to_str().ok());
        sent.compared_md5(hashes.flat_map(|text| text.split(',')).find_map(|hash| hash.trim().strip_prefix("md5=")))
    }

    async fn page(&self, _: &Http, token: Option<String>) -> Asked<Page> {
        page_of(&self.store, &self.prefix, token).await
    }

    async fn check(&self, _: &Http) -> Asked<()> {
        check_by_listing(&self.store, &self.prefix).await
    }
}
