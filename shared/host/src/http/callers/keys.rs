//! The public keys of the issuer: a set that is read again at a bounded interval.
//!
//! A token with an unknown key triggers a read of the set at once, at a bounded rate. A new key is therefore accepted
//! with its first token, and strangers cannot flood the issuer with requests. While the issuer is away, the last set
//! stays. A key that a newer set lacks is refused as soon as that set was read.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, ensure};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use messaging::telemetry::log_throttle::LogThrottle;
use parking_lot::{Mutex, RwLock};
use reqwest::{Client, redirect};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::config::KeyLocation;
use crate::http::callers::signatures;

/// Timeout of one request to the issuer, and how much it may answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const RESPONSE_BYTES_MAX: usize = 256 * 1024;

/// From one reading of the set to the next. An operator who withdraws a key expects that it is refused within a minute.
const URL_INTERVAL: Duration = Duration::from_secs(30);
const FILE_INTERVAL: Duration = Duration::from_secs(5);

/// From one reading on account of an unknown key to the next.
const URL_UNKNOWN_KEY_INTERVAL: Duration = Duration::from_secs(30);
const FILE_UNKNOWN_KEY_INTERVAL: Duration = Duration::from_secs(1);

/// From a failure to the next reading.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Shorter RSA keys are no protection (RFC 7518, 3.3).
const RSA_BYTES_MIN: usize = 2048 / 8;

/// A set of keys, by id and algorithm: keys of different kinds may share an id (RFC 7517, 4.5).
pub(super) struct KeySet {
    /// Another set has another number.
    pub generation: u64,
    keys: HashMap<String, Vec<(Algorithm, DecodingKey)>>,
    text: String,
}

/// The keys of the issuer, as they were read last.
pub(super) struct Keys {
    location: KeyLocation,
    client: Client,
    current: RwLock<Option<Arc<KeySet>>>,
    /// When an unknown key made the set be read last. One reading at a time.
    unknown_key_read: tokio::sync::Mutex<Option<Instant>>,
    log_throttle: Mutex<LogThrottle>,
}

impl Keys {
    /// Reads a file at once. A URL is read from now on in the background, so that a service starts while its issuer is
    /// away.
    ///
    /// # Errors
    /// If the file holds no key that can be used.
    pub fn new(location: KeyLocation) -> anyhow::Result<Arc<Keys>> {
        signatures::install();
        let client = Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .redirect(redirect::Policy::none())
            // As for the registry: a proxy that the environment names leads to another network.
            .no_proxy()
            .build()?;
        let keys = Arc::new(Keys {
            location,
            client,
            current: RwLock::default(),
            unknown_key_read: tokio::sync::Mutex::default(),
            log_throttle: Mutex::default(),
        });
        if let KeyLocation::File(path) = &keys.location {
            keys.replace(std::fs::read_to_string(path)?)?;
            let is_usable = keys.current().is_some_and(|set| !set.keys.is_empty());
            ensure!(is_usable, "it contains no key with a `kid` for ES256, EdDSA or RS256");
        }
        tokio::spawn(read_regularly(Arc::downgrade(&keys)));
        Ok(keys)
    }

    pub fn current(&self) -> Option<Arc<KeySet>> {
        self.current.read().clone()
    }

    /// The set after a token named an unknown key: read again, unless that was just done.
    pub async fn after_unknown_key(&self) -> Option<Arc<KeySet>> {
        let mut last = self.unknown_key_read.lock().await;
        let interval = match self.location {
            KeyLocation::File(_) => FILE_UNKNOWN_KEY_INTERVAL,
            _ => URL_UNKNOWN_KEY_INTERVAL,
        };
        if last.is_none_or(|last| last.elapsed() >= interval) {
            self.read().await;
            *last = Some(Instant::now());
        }
        self.current()
    }

    /// Reads the set. After a failure the last one stays.
    pub(super) async fn read(&self) -> bool {
        let read = async { self.replace(self.text().await?) };
        let Err(error) = read.await else { return true };
        let text = format!("{error:#}");
        if self.log_throttle.lock().should_log("keys", &text) {
            tracing::warn!("the keys of the token issuer could not be read: {text}");
        }
        false
    }

    async fn text(&self) -> anyhow::Result<String> {
        match &self.location {
            KeyLocation::File(path) => Ok(std::fs::read_to_string(path)?),
            KeyLocation::Url(url) => self.get(url).await,
            KeyLocation::Discovery(issuer) => {
                let document =
                    self.get(&format!("{issuer}/.well-known/openid-configuration")).await?;
                let document: Value = serde_json::from_str(&document)?;
                let url = document["jwks_uri"].as_str();
                let url = url.context("the discovery document names no jwks_uri")?;
                ensure!(
                    url.starts_with("https://") || !issuer.starts_with("https://"),
                    "the issuer names {url} for its keys, and that is not an https URL"
                );
                self.get(url).await
            }
        }
    }

    async fn get(&self, url: &str) -> anyhow::Result<String> {
        let mut response = self.client.get(url).send().await?.error_for_status()?;
        ensure!(response.status().is_success(), "{url} answered with {}", response.status());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            ensure!(body.len() <= RESPONSE_BYTES_MAX, "{url} answered with a document too large");
        }
        Ok(String::from_utf8(body)?)
    }

    /// A set without any key is a set: its issuer has withdrawn them all.
    fn replace(&self, text: String) -> anyhow::Result<()> {
        if self.current().is_some_and(|current| current.text == text) {
            return Ok(());
        }
        let keys = parse(&text)?;
        let mut current = self.current.write();
        let generation = current.as_ref().map_or(0, |current| current.generation + 1);
        tracing::info!(keys = keys.len(), "the keys of the token issuer were read");
        *current = Some(Arc::new(KeySet { generation, keys, text }));
        Ok(())
    }
}

async fn read_regularly(keys: Weak<Keys>) {
    let Some(location) = keys.upgrade().map(|keys| keys.location.clone()) else { return };
    let (mut wait, interval) = match location {
        KeyLocation::File(_) => (FILE_INTERVAL, FILE_INTERVAL),
        KeyLocation::Url(_) | KeyLocation::Discovery(_) => (Duration::ZERO, URL_INTERVAL),
    };
    loop {
        sleep(wait).await;
        let Some(keys) = keys.upgrade() else { return };
        wait = if keys.read().await { interval } else { RETRY_INTERVAL };
    }
}

impl KeySet {
    pub fn find(&self, id: &str, algorithm: Algorithm) -> Option<&DecodingKey> {
        let same = self.keys.get(id)?;
        same.iter().find(|(of, _)| *of == algorithm).map(|(_, key)| key)
    }
}

/// The keys of a set that can check the signature of a token. All others are ignored, as RFC 7517 requires.
fn parse(text: &str) -> anyhow::Result<HashMap<String, Vec<(Algorithm, DecodingKey)>>> {
    let set: Value = serde_json::from_str(text).context("it is not a JSON Web Key Set")?;
    let listed =
        set["keys"].as_array().context("it is not a JSON Web Key Set: it has no `keys`")?;
    let mut keys: HashMap<String, Vec<_>> = HashMap::new();
    for key in listed {
        let Some((id, algorithm, key)) = verification_key(key) else { continue };
        keys.entry(id).or_default().push((algorithm, key));
    }
    Ok(keys)
}

fn verification_key(key: &Value) -> Option<(String, Algorithm, DecodingKey)> {
    let stated = key["alg"].as_str();
    let key: Jwk = serde_json::from_value(key.clone()).ok()?;
    let algorithm = match &key.algorithm {
        AlgorithmParameters::EllipticCurve(of) if of.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(of) if of.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        _ => return None,
    };
    let is_for_signatures =
        key.common.public_key_use.as_ref().is_none_or(|of| *of == PublicKeyUse::Signature);
    let is_for_algorithm = stated.is_none_or(|stated| stated == format!("{algorithm:?}"));
    let decoding = DecodingKey::from_jwk(&key).ok()?;
    let is_long = match decoding.kind() {
        jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } => n.len() >= RSA_BYTES_MIN,
        jsonwebtoken::DecodingKeyKind::SecretOrDer(_) => true,
    };
    let id = key.common.key_id.filter(|id| !id.is_empty())?;
    (is_for_signatures && is_for_algorithm && is_long).then_some((id, algorithm, decoding))
}
