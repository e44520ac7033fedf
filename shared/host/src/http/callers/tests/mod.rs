//! Tokens, keys and routes of callers. This file has an issuer that signs whatever a test wants.

mod bad_tokens;
mod key_sets;
mod logs;
mod routes;

use std::sync::Arc;

use openssl::base64::encode_block;
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sha::sha256;
use openssl::sign::Signer;
use serde_json::{Value, json};

use crate::config::KeyLocation;
use crate::config::tests::parse_config;
use crate::http::callers::identify::Callers;
use crate::http::callers::keys::Keys;
use crate::http::callers::token::TokenVerifier;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "holdfast";
const CUSTOMER: &str = "01900000-0000-7000-8000-000000000001";

fn base64_url(bytes: &[u8]) -> String {
    encode_block(bytes).replace('+', "-").replace('/', "_").replace(['=', '\n'], "")
}

/// A key pair of an issuer.
#[derive(Clone)]
enum SigningKey {
    Ec(EcKey<Private>),
    Ed(PKey<Private>),
    Rsa(Rsa<Private>),
}

impl SigningKey {
    fn ec(curve: Nid) -> SigningKey {
        SigningKey::Ec(EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap())
    }

    fn p256() -> SigningKey {
        SigningKey::ec(Nid::X9_62_PRIME256V1)
    }

    fn rsa(bits: u32) -> SigningKey {
        SigningKey::Rsa(Rsa::generate(bits).unwrap())
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let with = |key: &PKey<Private>| {
            let mut signer = Signer::new(MessageDigest::sha256(), key).unwrap();
            signer.sign_oneshot_to_vec(message).unwrap()
        };
        match self {
            SigningKey::Ec(key) => {
                let size = (key.group().degree() as i32 + 7) / 8;
                let signature = EcdsaSig::sign(&sha256(message), key).unwrap();
                let (r, s) = (signature.r(), signature.s());
                [r.to_vec_padded(size).unwrap(), s.to_vec_padded(size).unwrap()].concat()
            }
            SigningKey::Ed(key) => {
                Signer::new_without_digest(key).unwrap().sign_oneshot_to_vec(message).unwrap()
            }
            SigningKey::Rsa(key) => with(&PKey::from_rsa(key.clone()).unwrap()),
        }
    }

    /// Its public part as a JSON Web Key.
    fn jwk(&self, id: &str) -> Value {
        match self {
            SigningKey::Ec(key) => {
                let (mut x, mut y) = (BigNum::new().unwrap(), BigNum::new().unwrap());
                let mut context = BigNumContext::new().unwrap();
                let point = key.public_key();
                point.affine_coordinates(key.group(), &mut x, &mut y, &mut context).unwrap();
                let size = (key.group().degree() as i32 + 7) / 8;
                let number = |n: &BigNum| base64_url(&n.to_vec_padded(size).unwrap());
                let curve = if size == 32 { "P-256" } else { "P-384" };
                json!({"kty": "EC", "crv": curve, "kid": id, "x": number(&x), "y": number(&y)})
            }
            SigningKey::Ed(key) => {
                let x = base64_url(&key.raw_public_key().unwrap());
                json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "use": "sig", "x": x})
            }
            SigningKey::Rsa(key) => {
                let (n, e) = (base64_url(&key.n().to_vec()), base64_url(&key.e().to_vec()));
                json!({"kty": "RSA", "alg": "RS256", "kid": id, "n": n, "e": e})
            }
        }
    }
}

/// A token of these texts, which need not be valid JSON.
fn sign(key: &SigningKey, header: &str, claims: &str) -> String {
    let message = format!("{}.{}", base64_url(header.as_bytes()), base64_url(claims.as_bytes()));
    let signature = base64_url(&key.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

/// The header of a good token that this key has signed.
fn header() -> Value {
    json!({"alg": "ES256", "typ": "at+jwt", "kid": "first"})
}

/// The claims of a good token of a customer.
fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": CUSTOMER, "exp": now() + 600, "iat": now(),
        "scope": "orders:read orders:write",
    })
}

/// The value with these fields changed; null removes one.
fn with(mut value: Value, changes: Value) -> Value {
    for (name, changed) in changes.as_object().unwrap() {
        match changed {
            Value::Null => drop(value.as_object_mut().unwrap().remove(name)),
            changed => value[name] = changed.clone(),
        }
    }
    value
}

/// A file with a set of keys, removed with this value.
struct KeyFile(std::path::PathBuf);

impl KeyFile {
    fn new(keys: &[Value]) -> KeyFile {
        let name = format!("keys-{}.json", uuid::Uuid::now_v7());
        let file = KeyFile(std::env::temp_dir().join(name));
        file.write(keys);
        file
    }

    fn write(&self, keys: &[Value]) {
        std::fs::write(&self.0, json!({"keys": keys}).to_string()).unwrap();
    }

    fn location(&self) -> KeyLocation {
        KeyLocation::File(self.0.display().to_string())
    }

    /// The callers of a service that is configured with this file.
    fn callers(&self) -> Callers {
        let keys = self.0.display().to_string();
        let config = parse_config(&[("TOKEN_ISSUER", ISSUER), ("TOKEN_KEYS", &keys)]).unwrap();
        Callers::new(&config.tokens).unwrap()
    }

    fn verifier(&self) -> (TokenVerifier, Arc<Keys>) {
        let keys = Keys::new(self.location()).unwrap();
        (TokenVerifier::new(ISSUER, AUDIENCE, keys.clone()), keys)
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}
