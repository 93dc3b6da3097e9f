//! The primitives of this program, for the signatures of requests.

use hmac::{Hmac, KeyInit, Mac};
use object_store::client::{CryptoProvider, DigestAlgorithm, DigestContext, HmacContext, Signer, SigningAlgorithm};
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use sha2::{Digest, Sha256};

use super::Sum;
use super::http::failed;

#[derive(Debug)]
pub struct Crypto;

struct Hashing(Sha256, Sum);
struct Keyed(Hmac<Sha256>, Sum);
struct Rsa(PKey<Private>);

impl CryptoProvider for Crypto {
    fn digest(&self, _: DigestAlgorithm) -> object_store::Result<Box<dyn DigestContext>> {
        Ok(Box::new(Hashing(Sha256::new(), [0; 32])))
    }

    fn hmac(&self, _: DigestAlgorithm, secret: &[u8]) -> object_store::Result<Box<dyn HmacContext>> {
        let keyed = Hmac::new_from_slice(secret).map_err(failed)?;
        Ok(Box::new(Keyed(keyed, [0; 32])))
    }

    fn sign(&self, _: SigningAlgorithm, pem: &[u8]) -> object_store::Result<Box<dyn Signer>> {
        Ok(Box::new(Rsa(PKey::private_key_from_pem(pem).map_err(failed)?)))
    }
}

impl Signer for Rsa {
    fn sign(&self, text: &[u8]) -> object_store::Result<Vec<u8>> {
        let signer = openssl::sign::Signer::new(MessageDigest::sha256(), &self.0);
        signer.and_then(|mut signer| signer.sign_oneshot_to_vec(text)).map_err(failed)
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
