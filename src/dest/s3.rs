//! S3 and what speaks as it does.
//!
//! Invariant: an object is sent by one PUT that carries its SHA-256 and may not replace (`If-None-Match: *`).

use std::sync::Arc;

use base64ct::{Base64, Encoding};
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::path::Path;
use object_store::{ObjectStore, StaticCredentialProvider};
use reqwest::Method;
use reqwest::header::HeaderMap;
use sha2::{Digest, Sha256};

use super::cloud::{Asked, Cloud, Header, OTHER_BYTES, Page, Sent, Service};
use super::cloud::{check_by_listing, once, page_of, wrong_md5};
use super::http::{Http, signable, signed};
use super::secret::Credentials;
use super::sign::Crypto;
use super::{Checksum, Compared, Lie, Sum, settings};
use crate::error::Result;
use crate::text::hex;

/// The header that has the SHA-256.
const SUM: &str = "x-amz-checksum-sha256";

pub struct S3 {
    /// `https://HOST/BUCKET`.
    url: String,
    region: String,
    prefix: String,
    class: Option<String>,
    credential: AwsCredential,
    store: AmazonS3,
}

impl S3 {
    pub fn open(name: &str, settings: &settings::S3, credentials: &Credentials) -> Result<Cloud<S3>> {
        let endpoint = settings.endpoint.clone();
        let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", settings.region));
        let credential = || AwsCredential {
            key_id: credentials.access_key.clone(),
            secret_key: credentials.secret.to_string(),
            token: credentials.token.as_ref().map(|token| token.to_string()),
        };
        Cloud::open(name, Http::new(), |http| {
            let store = AmazonS3Builder::new()
                .with_bucket_name(&settings.bucket)
                .with_region(&settings.region)
                .with_endpoint(&endpoint)
                .with_allow_http(true)
                .with_credentials(Arc::new(StaticCredentialProvider::new(credential())))
                .with_crypto_provider(Arc::new(Crypto))
                .with_retry(once())
                .with_http_connector(http.clone())
                .build()?;
            Ok(S3 {
                url: format!("{endpoint}/{}", settings.bucket),
                region: settings.region.clone(),
                prefix: settings.prefix.clone(),
                class: settings.class.clone(),
                credential: credential(),
                store,
            })
        })
    }
}

impl Service for S3 {
    const PLACE: &'static str = "bucket";
    const LIES: &'static [Lie] = &[Lie::Sha256, Lie::Md5, Lie::Replace];

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
        headers: Vec<Header>,
        body_sum: Option<&Sum>,
    ) -> Asked<reqwest::Request> {
        let mut request = signable(method, &format!("{}/{}{object}", self.url, self.prefix), headers)?;
        let authorizer = AwsAuthorizer::new(&self.credential, "s3", &self.region).with_crypto(&Crypto);
        authorizer.try_authorize(&mut request, body_sum.map(|sum| &sum[..]))?;
        signed(request)
    }

    fn put_headers(&self, sum: &Sum) -> Vec<Header> {
        let class = self.class.clone().map(|class| ("x-amz-storage-class", class));
        let sum = (SUM, Base64::encode_string(sum));
        [("if-none-match", "*".into()), sum].into_iter().chain(class).collect()
    }

    fn lie_headers(&self, sum: &Sum, lie: Lie) -> Vec<Header> {
        let other = match lie {
            Lie::Sha256 => (SUM, Base64::encode_string(&Sha256::digest(OTHER_BYTES))),
            Lie::Md5 => wrong_md5(),
            Lie::Replace => return self.put_headers(sum),
        };
        self.put_headers(sum).into_iter().filter(|(name, _)| *name != SUM).chain([other]).collect()
    }

    /// One that names none has accepted the one that it was sent.
    fn compared(&self, answer: &HeaderMap, sent: &Sent) -> Compared {
        let source = Checksum::sha256(&sent.sum);
        Compared::Told { found: told(answer).unwrap_or_else(|| source.clone()), source }
    }

    async fn page(&self, _: &Http, token: Option<String>) -> Asked<Page> {
        page_of(&self.store, &self.prefix, token).await
    }

    async fn check(&self, _: &Http) -> Asked<()> {
        check_by_listing(&self.store, &self.prefix).await
    }
}

/// The checksum that an answer names.
fn told(headers: &HeaderMap) -> Option<Checksum> {
    let mut named = headers.iter().filter_map(|(name, value)| {
        let algorithm = name.as_str().strip_prefix("x-amz-checksum-").filter(|rest| *rest != "type")?;
        let value = value.to_str().ok().and_then(|text| Base64::decode_vec(text).ok()).map(|bytes| hex(&bytes));
        Some(Checksum { algorithm: algorithm.to_string(), value: value.unwrap_or_default() })
    });
    let (first, rest) = (named.next()?, named);
    Some(std::iter::once(first.clone()).chain(rest).find(|sum| sum.algorithm == "sha256").unwrap_or(first))
}
