//! The keys of the issuer among the secrets of a stack. A key is replaced in three steps, without a refusal: the new
//! key is announced; it signs after every service has read the set again; the old key is removed after its last token
//! has expired.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::EcKey;
use openssl::pkey::Private;
use openssl::sha::sha256;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::secrets::registry_tokens::base64_url;
use crate::secrets::{Secrets, certificates};

/// The length of a coordinate and of half a signature of the curve P-256.
pub const COORDINATE_BYTES: i32 = 32;

/// The file names among the secrets: the keys, of which the first one signs, and their public halves.
const KEYS_FILE: &str = "token-issuer.json";
const KEY_SET_FILE: &str = "token-issuer.jwks";

/// A new key signs when the newest one is older than this.
const KEY_RENEWAL: Duration = Duration::from_secs(23 * 86_400);

/// An end is recorded as the next multiple of this, so that many tokens change the file once.
const END_STEP_SECONDS: i64 = 10;

/// Each change of the keys writes another file.
pub type FileVersion = (u64, SystemTime);

/// A key of the issuer. Times are in seconds since 1970.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenKey {
    /// Its thumbprint, by RFC 7638.
    pub id: String,
    pem: String,
    made: i64,
    /// When the last token ends that it has signed. None: it was announced, and has not signed.
    end: Option<i64>,
}

impl TokenKey {
    fn new() -> Result<Self> {
        let pem = String::from_utf8(certificates::new_key()?)?;
        let key = TokenKey { id: String::new(), pem, made: Utc::now().timestamp(), end: None };
        let [x, y] = key.coordinates()?;
        let public = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        Ok(TokenKey { id: base64_url(&sha256(public.as_bytes())), ..key })
    }

    pub fn private(&self) -> Result<EcKey<Private>> {
        Ok(EcKey::private_key_from_pem(self.pem.as_bytes())?)
    }

    /// The point of the public half.
    fn coordinates(&self) -> Result<[String; 2]> {
        let (key, mut context) = (self.private()?, BigNumContext::new()?);
        let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
        key.public_key().affine_coordinates(key.group(), &mut x, &mut y, &mut context)?;
        let [x, y] = [x, y].map(|it| it.to_vec_padded(COORDINATE_BYTES));
        Ok([base64_url(&x?), base64_url(&y?)])
    }

    /// The public half, as a JSON Web Key.
    fn public(&self) -> Result<Value> {
        let [x, y] = self.coordinates()?;
        Ok(json!({
            "kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "sig", "alg": "ES256", "kid": self.id,
        }))
    }

    fn is_fresh(&self) -> bool {
        Utc::now().timestamp() - self.made < KEY_RENEWAL.as_secs() as i64
    }
}

impl Secrets {
    /// The keys, of which the first one signs. When the newest one is old, a new one signs at once.
    pub fn token_keys(&self) -> Result<Vec<TokenKey>> {
        let file = self.path(KEYS_FILE);
        let is_current =
            |file: &Path| read_keys(file).is_ok_and(|keys| keys.iter().any(TokenKey::is_fresh));
        let made = || {
            let newest = read_keys(&file).into_iter().flatten().max_by_key(|key| key.made);
            let keys: Vec<TokenKey> = [TokenKey::new()?].into_iter().chain(newest).collect();
            Ok(serde_json::to_vec_pretty(&keys)?)
        };
        self.make(&file, is_current, made)?;
        read_keys(&file)
    }

    /// The version of the file of the keys, if it exists.
    pub fn token_keys_version(&self) -> Option<FileVersion> {
        let found = fs::metadata(self.path(KEYS_FILE)).ok()?;
        Some((found.ino(), found.modified().ok()?))
    }

    /// The file of the public half of each key, as the services read it: a JSON Web Key Set.
    pub fn token_key_set(&self) -> Result<PathBuf> {
        self.token_keys()?;
        let (keys, file) = (self.path(KEYS_FILE), self.path(KEY_SET_FILE));
        // The lock is held when this reads the keys for the last time, so no older set replaces a newer one.
        let set = || -> Result<Vec<u8>> {
            let keys: Result<Vec<Value>> = read_keys(&keys)?.iter().map(TokenKey::public).collect();
            Ok(serde_json::to_vec_pretty(&json!({ "keys": keys? }))?)
        };
        let is_current =
            |file: &Path| fs::read(file).is_ok_and(|text| set().is_ok_and(|set| text == set));
        self.make(&file, is_current, set)?;
        Ok(file)
    }

    /// Adds a key that does not sign yet. Keys without valid tokens make room for it: one that was announced and never
    /// signed, and old ones whose tokens have ended.
    pub fn announce_token_key(&self) -> Result<()> {
        let now = Utc::now().timestamp();
        self.change_keys(|keys| {
            retain_old(keys, |key| key.end.is_some_and(|end| end > now));
            keys.push(TokenKey::new()?);
            Ok(())
        })
    }

    /// Lets the announced key, the last one, sign.
    pub fn switch_token_key(&self) -> Result<()> {
        self.change_keys(|keys| {
            ensure!(keys.len() > 1, "the issuer has only one key: announce a new key first");
            // A key without an end counts as announced, and this one may have signed no token.
            keys[0].end.get_or_insert(Utc::now().timestamp());
            keys.rotate_right(1);
            Ok(())
        })
    }

    /// Removes the keys that do not sign, at once: the services refuse their tokens from now on.
    pub fn retire_token_key(&self) -> Result<()> {
        self.change_keys(|keys| {
            keys.truncate(1);
            Ok(())
        })
    }

    /// Removes the old keys whose tokens have all ended. Returns when the last token of the other old keys ends.
    pub fn retire_ended_token_keys(&self) -> Result<Option<DateTime<Utc>>> {
        let (now, keys) = (Utc::now().timestamp(), self.token_keys()?);
        let ends: Vec<i64> = keys[1..].iter().filter_map(|key| key.end).collect();
        if ends.iter().any(|end| *end <= now) {
            self.change_keys(|keys| {
                retain_old(keys, |key| key.end.is_none_or(|end| end > now));
                Ok(())
            })?;
        }
        let last = ends.into_iter().filter(|end| *end > now).max();
        Ok(last.and_then(|end| DateTime::from_timestamp(end, 0)))
    }

    /// Notes that a key has signed a token which ends at this second.
    pub fn record_token_end(&self, id: &str, end: i64) -> Result<()> {
        let end = (end / END_STEP_SECONDS + 1) * END_STEP_SECONDS;
        let is_missing = |key: &TokenKey| key.id == id && key.end < Some(end);
        if self.token_keys()?.iter().any(is_missing) {
            self.change_keys(|keys| {
                keys.iter_mut().filter(|key| is_missing(key)).for_each(|key| key.end = Some(end));
                Ok(())
            })?;
        }
        Ok(())
    }

    fn change_keys(&self, change: impl FnOnce(&mut Vec<TokenKey>) -> Result<()>) -> Result<()> {
        self.token_keys()?;
        let file = self.path(KEYS_FILE);
        let changed = || {
            let mut keys = read_keys(&file)?;
            change(&mut keys)?;
            Ok(serde_json::to_vec_pretty(&keys)?)
        };
        self.make(&file, |_| false, changed)?;
        self.token_key_set().map(drop)
    }
}

/// Removes keys other than the first one, which signs.
fn retain_old(keys: &mut Vec<TokenKey>, is_kept: impl Fn(&TokenKey) -> bool) {
    let signer = keys[0].id.clone();
    keys.retain(|key| key.id == signer || is_kept(key));
}

fn read_keys(file: &Path) -> Result<Vec<TokenKey>> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let keys: Vec<TokenKey> = serde_json::from_slice(&text)
        .with_context(|| format!("{} does not hold the keys of an issuer", file.display()))?;
    ensure!(!keys.is_empty(), "{} holds no key", file.display());
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::secrets::token_issuer::TokenIssuer;

    const VALID: Duration = Duration::from_secs(600);

    fn secrets() -> (TempDir, Secrets) {
        let directory = TempDir::new().unwrap();
        let secrets = Secrets::in_directory(directory.path());
        (directory, secrets)
    }

    fn key_ids(secrets: &Secrets) -> Vec<String> {
        read_keys(&secrets.path(KEYS_FILE)).unwrap().into_iter().map(|key| key.id).collect()
    }

    /// The end of the last token of a key is moved into the past.
    fn let_tokens_end(secrets: &Secrets, id: &str) {
        let ended = |keys: &mut Vec<TokenKey>| {
            let key = keys.iter_mut().find(|key| key.id == id).unwrap();
            key.end = Some(Utc::now().timestamp());
            Ok(())
        };
        secrets.change_keys(ended).unwrap();
    }

    fn sign(issuer: &TokenIssuer) {
        issuer.sign("a", "", VALID).unwrap();
    }

    #[test]
    fn an_old_key_makes_room_for_a_new_one_and_stays_in_the_set() {
        let (_directory, secrets) = secrets();
        secrets.token_issuer().unwrap();
        let before = key_ids(&secrets);
        let aged = |keys: &mut Vec<TokenKey>| {
            keys[0].made -= 2 * KEY_RENEWAL.as_secs() as i64;
            Ok(())
        };
        secrets.change_keys(aged).unwrap();
        secrets.token_issuer().unwrap();
        let after = key_ids(&secrets);
        assert_eq!((after.len(), &after[1]), (2, &before[0]));
    }

    #[test]
    fn a_replaced_key_stays_until_the_last_token_that_it_signed_has_ended() {
        let (_directory, secrets) = secrets();
        let mut issuer = secrets.token_issuer().unwrap();
        sign(&issuer);
        let first = key_ids(&secrets).remove(0);
        secrets.announce_token_key().unwrap();
        assert_eq!(secrets.retire_ended_token_keys().unwrap(), None);
        assert_eq!(key_ids(&secrets).len(), 2, "an announced key is no old one");
        secrets.switch_token_key().unwrap();
        let end = secrets.retire_ended_token_keys().unwrap().expect("a token is valid");
        let left = (end - Utc::now()).num_seconds();
        assert!((595..=610).contains(&left), "{left}");

        // A second replacement while tokens of the first key are valid.
        issuer.refresh().unwrap();
        let second = key_ids(&secrets).remove(0);
        secrets.announce_token_key().unwrap();
        secrets.switch_token_key().unwrap();
        assert_eq!(key_ids(&secrets)[1..], [second.clone(), first.clone()]);
        let_tokens_end(&secrets, &second);
        assert!(secrets.retire_ended_token_keys().unwrap().is_some());
        assert_eq!(&key_ids(&secrets)[1..], std::slice::from_ref(&first));
        let_tokens_end(&secrets, &first);
        secrets.token_issuer().unwrap();
        assert_eq!(key_ids(&secrets).len(), 1, "the next issuer removes it");
    }

    #[test]
    fn a_key_that_was_announced_and_left_makes_room_for_the_next_one() {
        let (_directory, secrets) = secrets();
        sign(&secrets.token_issuer().unwrap());
        secrets.announce_token_key().unwrap();
        let left = key_ids(&secrets).remove(1);
        secrets.announce_token_key().unwrap();
        let ids = key_ids(&secrets);
        assert!(ids.len() == 2 && !ids.contains(&left), "{ids:?}");
    }
}
