//! The check of a token: a JWT access token as RFC 9068 describes it.
//!
//! Its `typ` must be `at+jwt`, as that RFC requires: an identity token, which the same issuer signs for the same user
//! with the same key, has another one, and must not open an API.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode, decode_header};
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::http::callers::caller::Caller;
use crate::http::callers::keys::Keys;

/// The algorithms that are accepted: each has a public key, and no known weakness.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::ES256, Algorithm::EdDSA, Algorithm::RS256];

/// What `typ` may be, in any case of its letters.
const TYPES: [&str; 2] = ["at+jwt", "application/at+jwt"];

const TOKEN_BYTES_MAX: usize = 8 * 1024;
const SUBJECT_CHARACTERS_MAX: usize = 255;

/// How far the clocks of the issuer and of this service may be apart.
const LEEWAY_SECONDS: u64 = 30;

/// Checked tokens that are kept, at most: a signature costs a hundred times what a hash does.
const CACHE_MAX: usize = 10_000;

/// Why a request is refused before its handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    Missing,
    /// It is no JWT that could ever be accepted: its form, its type, a header field or a claim.
    Malformed,
    /// Another algorithm than those that are accepted.
    Algorithm,
    UnknownKey,
    Signature,
    Expired,
    NotYetValid,
    Issuer,
    Audience,
    /// The keys of the issuer were never read.
    KeysUnavailable,
}

impl TokenError {
    pub fn as_str(self) -> &'static str {
        match self {
            TokenError::Missing => "missing",
            TokenError::Malformed => "malformed",
            TokenError::Algorithm => "algorithm",
            TokenError::UnknownKey => "unknown_key",
            TokenError::Signature => "signature",
            TokenError::Expired => "expired",
            TokenError::NotYetValid => "not_yet_valid",
            TokenError::Issuer => "issuer",
            TokenError::Audience => "audience",
            TokenError::KeysUnavailable => "keys_unavailable",
        }
    }
}

impl From<Error> for TokenError {
    fn from(error: Error) -> TokenError {
        match error.kind() {
            ErrorKind::InvalidSignature => TokenError::Signature,
            ErrorKind::ExpiredSignature => TokenError::Expired,
            ErrorKind::ImmatureSignature => TokenError::NotYetValid,
            ErrorKind::InvalidIssuer => TokenError::Issuer,
            ErrorKind::InvalidAudience => TokenError::Audience,
            ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
            _ => TokenError::Malformed,
        }
    }
}

/// The claims that are read here; others are ignored. A claim that is listed twice is refused.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// As a text alone: the crate would accept a list of issuers that contains the right one.
    #[serde(rename = "iss")]
    _iss: String,
    exp: f64,
    scope: Option<String>,
}

struct Checked {
    caller: Caller,
    /// The set of keys with which it was.
    generation: u64,
    /// In seconds since 1970, with the leeway.
    valid_until: u64,
}

pub struct TokenVerifier {
    keys: Arc<Keys>,
    validations: [Validation; ALGORITHMS.len()],
    /// By the SHA-256 of the token.
    checked: Mutex<HashMap<[u8; 32], Checked>>,
}

impl TokenVerifier {
    pub(super) fn new(issuer: &str, audience: &str, keys: Arc<Keys>) -> TokenVerifier {
        let validations = ALGORITHMS.map(|algorithm| {
            let mut validation = Validation::new(algorithm);
            validation.leeway = LEEWAY_SECONDS;
            validation.validate_nbf = true;
            validation.set_issuer(&[issuer]);
            validation.set_audience(&[audience]);
            validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
            validation
        });
        TokenVerifier { keys, validations, checked: Mutex::default() }
    }

    /// The caller that a token names.
    ///
    /// # Errors
    /// The reason why the token is refused.
    pub async fn verify(&self, token: &str) -> Result<Caller, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        let mut set = self.keys.current();
        if let Some(set) = &set
            && let Some(known) = self.checked.lock().get(&hash)
            && known.generation == set.generation
        {
            let is_valid = now() < known.valid_until;
            return if is_valid { Ok(known.caller.clone()) } else { Err(TokenError::Expired) };
        }
        let (algorithm, id) = key_of(&decode_header(token)?)?;
        if set.as_ref().and_then(|set| set.find(&id, algorithm)).is_none() {
            set = self.keys.after_unknown_key().await;
        }
        let set = set.ok_or(TokenError::KeysUnavailable)?;
        let key = set.find(&id, algorithm).ok_or(TokenError::UnknownKey)?;
        let (caller, valid_until) = self.check(token, algorithm, key)?;
        let generation = set.generation;
        self.keep(hash, Checked { caller: caller.clone(), generation, valid_until });
        Ok(caller)
    }

    fn check(
        &self,
        token: &str,
        algorithm: Algorithm,
        key: &DecodingKey,
    ) -> Result<(Caller, u64), TokenError> {
        let validation = self.validations.iter().find(|it| it.algorithms.contains(&algorithm));
        let validation = validation.ok_or(TokenError::Algorithm)?;
        let Claims { sub, exp, scope, .. } = decode::<Claims>(token, key, validation)?.claims;
        // It is stored and logged where its owner acts.
        let length = sub.chars().count();
        if !(1..=SUBJECT_CHARACTERS_MAX).contains(&length) || sub.contains(char::is_control) {
            return Err(TokenError::Malformed);
        }
        let scopes: BTreeSet<String> =
            scope.iter().flat_map(|scope| scope.split(' ')).map(str::to_owned).collect();
        Ok((Caller::named(sub, scopes), (exp as u64).saturating_add(LEEWAY_SECONDS)))
    }

    fn keep(&self, hash: [u8; 32], token: Checked) {
        let mut checked = self.checked.lock();
        if checked.len() >= CACHE_MAX {
            // Each is checked once more. To search for those that have expired would cost every request of a full cache.
            checked.clear();
        }
        checked.insert(hash, token);
    }
}

/// The algorithm and the id of the key that a header names. A field that brings a key of the token's own, or that must
/// be understood and is not, makes a token unacceptable.
fn key_of(header: &Header) -> Result<(Algorithm, String), TokenError> {
    let Header { typ, alg, kid, jku, jwk, x5u, x5c, crit, enc, zip, .. } = header;
    let typ = typ.as_deref().unwrap_or_default();
    let brings_a_key = jku.is_some() || jwk.is_some() || x5u.is_some() || x5c.is_some();
    if brings_a_key
        || crit.is_some()
        || enc.is_some()
        || zip.is_some()
        || !TYPES.iter().any(|it| typ.eq_ignore_ascii_case(it))
    {
        return Err(TokenError::Malformed);
    }
    if !ALGORITHMS.contains(alg) {
        return Err(TokenError::Algorithm);
    }
    Ok((*alg, kid.clone().ok_or(TokenError::Malformed)?))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
