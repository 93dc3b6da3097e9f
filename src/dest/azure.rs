//! Azure Blob Storage, and what speaks as it does.
//!
//! Invariant: an object is sent by one Put Blob that may not replace (`If-None-Match: *`).

use std::sync::Arc;

use object_store::azure::{
    AzureAccessKey, AzureAuthorizer, AzureCredential, MicrosoftAzure, MicrosoftAzureBuilder, split_sas,
};
use object_store::path::Path;
use object_store::{ObjectStore, StaticCredentialProvider};
use reqwest::Method;
use reqwest::header::HeaderMap;

use super::cloud::{Asked, Cloud, Header, Page, Sent, Service, check_by_listing, once, page_of};
use super::http::{Http, Met, failed, signable, signed};
use super::secret::Secret;
use super::sign::Crypto;
use super::{Compared, Lie, Sum, settings};
use crate::error::{Result, Trouble};

pub struct Azure {
    /// `https://ACCOUNT.HOST/CONTAINER`.
    url: String,
    account: String,
    prefix: String,
    class: Option<String>,
    credential: AzureCredential,
    store: MicrosoftAzure,
}

/// A key of the account, or a shared access signature, which has its parameters' names in it.
fn credential(secret: &Secret) -> Asked<AzureCredential> {
    let wrong = |_| failed(Met(Trouble::Denied("the secret is no key of an account, and no SAS token".into())));
    match secret.contains("sig=") {
        true => split_sas(secret).map(AzureCredential::SASToken).map_err(wrong),
        false => AzureAccessKey::try_new(secret).map(AzureCredential::AccessKey).map_err(|error| wrong(error.into())),
    }
}

impl Azure {
    pub fn open(name: &str, settings: &settings::Azure, secret: &Secret) -> Result<Cloud<Azure>> {
        let endpoint = settings.endpoint.clone();
        let endpoint = endpoint.unwrap_or_else(|| format!("https://{}.blob.core.windows.net", settings.account));
        Cloud::open(name, Http::new(), |http| {
            let store = MicrosoftAzureBuilder::new()
                .with_account(&settings.account)
                .with_container_name(&settings.container)
                .with_endpoint(endpoint.clone())
                .with_allow_http(true)
                .with_credentials(Arc::new(StaticCredentialProvider::new(credential(secret)?)))
                .with_crypto_provider(Arc::new(Crypto))
                .with_retry(once())
                .with_http_connector(http.clone())
                .build()?;
            Ok(Azure {
                url: format!("{endpoint}/{}", settings.container),
                account: settings.account.clone(),
                prefix: settings.prefix.clone(),
                class: settings.class.clone(),
                credential: credential(secret)?,
                store,
            })
        })
    }
}

impl Service for Azure {
    const PLACE: &'static str = "container";
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
        headers: Vec<Header>,
        _: Option<&Sum>,
    ) -> Asked<reqwest::Request> {
        let mut request = signable(method, &format!("{}/{}{object}", self.url, self.prefix), headers)?;
        AzureAuthorizer::new(&self.credential, &self.account).with_crypto(&Crypto).try_authorize(&mut request)?;
        signed(request)
    }

    fn put_headers(&self, _: &Sum) -> Vec<Header> {
        let class = self.class.clone().map(|class| ("x-ms-access-tier", class));
        [("x-ms-blob-type", "BlockBlob".into()), ("if-none-match", "*".into())].into_iter().chain(class).collect()
    }

    fn compared(&self, answer: &HeaderMap, sent: &Sent) -> Compared {
        sent.compared_md5(answer.get("content-md5").and_then(|md5| md5.to_str().ok()))
    }

    async fn page(&self, _: &Http, token: Option<String>) -> Asked<Page> {
        page_of(&self.store, &self.prefix, token).await
    }

    async fn check(&self, _: &Http) -> Asked<()> {
        check_by_listing(&self.store, &self.prefix).await
    }
}

/// Makes the container, for tests.
#[cfg(test)]
pub fn make_container(settings: &settings::Azure, key: &str) {
    let credential = credential(&key.to_string().into()).unwrap();
    let url = format!("{}/{}?restype=container", settings.endpoint.as_deref().unwrap_or_default(), settings.container);
    let mut request = signable(Method::PUT, &url, vec![("content-length", "0".into())]).unwrap();
    AzureAuthorizer::new(&credential, &settings.account).with_crypto(&Crypto).try_authorize(&mut request).unwrap();
    let http = Http::new().unwrap();
    super::runtime::handle().unwrap().block_on(http.ask(signed(request).unwrap())).unwrap();
}
