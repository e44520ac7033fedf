//! The keys of the issuer among the secrets of a stack. A key is replaced in three steps, without a refusal: the new
//! key is announced; it signs after every service has read the set again; the old key is removed after its last token
//! has expired.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::EcKey;
use openssl::pkey::Private;
use openssl::sha::sha256;
use serde_json::{Value, json};

use crate::certificates;
use crate::registry_tokens::base64_url;
use crate::secrets::Secrets;

/// The length of a coordinate and of half a signature of the curve P-256.
pub const COORDINATE_BYTES: i32 = 32;

/// The file names among the secrets: the keys, of which the first one signs, their public halves, and by the id of each
/// key the second in which its last token ends.
const KEYS_FILE: &str = "token-issuer.keys";
const KEY_SET_FILE: &str = "token-issuer.jwks";
const ENDS_FILE: &str = "token-issuer.ends";

/// A new key signs when the newest one is older than this.
const KEY_RENEWAL: Duration = Duration::from_secs(23 * 86_400);

/// An end is recorded as the next multiple of this, so that many tokens change the file once.
const END_STEP_SECONDS: i64 = 10;

/// Each change of the keys writes another file.
pub type FileVersion = (u64, SystemTime);

impl Secrets {
    /// The file of the keys. When the newest one is old, a new one signs at once.
    fn issuer_keys(&self) -> Result<PathBuf> {
        let file = self.path(KEYS_FILE);
        let made = || match read_keys(&file) {
            Ok(keys) => to_file(&[new_key()?, keys[0].clone()]),
            Err(_) => to_file(&[new_key()?]),
        };
        self.make(&file, is_fresh, made)?;
        Ok(file)
    }

    /// The file of the public half of each key, as the services read it: a JSON Web Key Set.
    pub fn token_key_set(&self) -> Result<PathBuf> {
        let (keys, file) = (self.issuer_keys()?, self.path(KEY_SET_FILE));
        let set = || key_set(&read_keys(&keys)?);
        let is_current =
            |file: &Path| fs::read(file).is_ok_and(|text| set().is_ok_and(|set| text == set));
        self.make(&file, is_current, set)?;
        Ok(file)
    }

    /// The key that signs.
    pub fn signing_key(&self) -> Result<EcKey<Private>> {
        from_pem(&read_keys(&self.path(KEYS_FILE))?[0])
    }

    /// The version of the file of the keys, if it exists.
    pub fn token_keys_version(&self) -> Option<FileVersion> {
        version_of(&self.path(KEYS_FILE))
    }

    /// Adds a key that does not sign yet. Keys without valid tokens make room for it: one that was announced and never
    /// signed, and old ones whose tokens have ended.
    pub fn announce_token_key(&self) -> Result<()> {
        let (now, ends) = (Utc::now().timestamp(), self.token_ends()?);
        self.change_keys(|keys| {
            let signer = keys.remove(0);
            keys.retain(|key| end_of(key, &ends).is_some_and(|end| end > now));
            keys.insert(0, signer);
            keys.push(new_key()?);
            Ok(())
        })
    }

    /// Lets the announced key, the last one, sign.
    pub fn switch_token_key(&self) -> Result<()> {
        let old = id_of(&self.signing_key()?)?;
        self.change_keys(|keys| {
            ensure!(keys.len() > 1, "the issuer has only one key: announce a new key first");
            keys.rotate_right(1);
            Ok(())
        })?;
        // A key without an end counts as announced, and this one may have signed no token.
        self.record_token_end(&old, Utc::now().timestamp())
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
        let (now, ends) = (Utc::now().timestamp(), self.token_ends()?);
        let keys = read_keys(&self.issuer_keys()?)?;
        let old = keys[1..].iter().filter_map(|key| end_of(key, &ends));
        let (ended, valid): (Vec<i64>, Vec<i64>) = old.partition(|end| *end <= now);
        if !ended.is_empty() {
            self.change_keys(|keys| {
                let signer = keys.remove(0);
                keys.retain(|key| end_of(key, &ends).is_none_or(|end| end > now));
                keys.insert(0, signer);
                Ok(())
            })?;
        }
        Ok(valid.into_iter().max().and_then(|end| DateTime::from_timestamp(end, 0)))
    }

    /// Notes that a key has signed a token which ends at this second.
    pub fn record_token_end(&self, key_id: &str, end: i64) -> Result<()> {
        let end = (end / END_STEP_SECONDS + 1) * END_STEP_SECONDS;
        let is_recorded = |_: &Path| {
            let ends = self.token_ends();
            ends.is_ok_and(|ends| ends.get(key_id).is_some_and(|known| *known >= end))
        };
        let recorded = || {
            let mut ends = self.token_ends()?;
            ends.insert(key_id.to_string(), end);
            let keys = read_keys(&self.path(KEYS_FILE))?;
            let ids = keys.iter().map(|key| id_of(&from_pem(key)?));
            let ids = ids.collect::<Result<Vec<String>>>()?;
            ends.retain(|id, _| ids.contains(id));
            Ok(serde_json::to_vec_pretty(&ends)?)
        };
        self.make(&self.path(ENDS_FILE), is_recorded, recorded)
    }

    fn token_ends(&self) -> Result<BTreeMap<String, i64>> {
        match fs::read(self.path(ENDS_FILE)) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error).with_context(|| format!("cannot read {ENDS_FILE}")),
        }
    }

    fn change_keys(&self, change: impl FnOnce(&mut Vec<String>) -> Result<()>) -> Result<()> {
        let file = self.issuer_keys()?;
        let changed = || {
            let mut keys = read_keys(&file)?;
            change(&mut keys)?;
            to_file(&keys)
        };
        self.make(&file, |_| false, changed)?;
        self.token_key_set().map(drop)
    }
}

/// The id of a key is its thumbprint, by RFC 7638.
pub fn id_of(key: &EcKey<Private>) -> Result<String> {
    let [x, y] = coordinates(key)?;
    let key = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    Ok(base64_url(&sha256(key.as_bytes())))
}

/// When the last token of a key ends, if it has signed one.
fn end_of(pem: &str, ends: &BTreeMap<String, i64>) -> Option<i64> {
    ends.get(&id_of(&from_pem(pem).ok()?).ok()?).copied()
}

/// Whether the newest key is young enough to go on signing.
fn is_fresh(file: &Path) -> bool {
    let age = version_of(file).and_then(|(_, written)| written.elapsed().ok());
    age.is_some_and(|age| age < KEY_RENEWAL)
}

/// The public half of each key, as JSON.
fn key_set(keys: &[String]) -> Result<Vec<u8>> {
    let public = |pem: &String| -> Result<Value> {
        let key = from_pem(pem)?;
        let ([x, y], id) = (coordinates(&key)?, id_of(&key)?);
        Ok(json!({
            "kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "sig", "alg": "ES256", "kid": id,
        }))
    };
    let keys: Vec<Value> = keys.iter().map(public).collect::<Result<_>>()?;
    Ok(serde_json::to_vec_pretty(&json!({ "keys": keys }))?)
}

/// The point of the public half of a key.
fn coordinates(key: &EcKey<Private>) -> Result<[String; 2]> {
    let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
    let mut context = BigNumContext::new()?;
    key.public_key().affine_coordinates(key.group(), &mut x, &mut y, &mut context)?;
    let [x, y] = [x, y].map(|it| it.to_vec_padded(COORDINATE_BYTES));
    Ok([base64_url(&x?), base64_url(&y?)])
}

fn new_key() -> Result<String> {
    Ok(String::from_utf8(certificates::new_key()?)?)
}

fn from_pem(pem: &str) -> Result<EcKey<Private>> {
    Ok(EcKey::private_key_from_pem(pem.as_bytes())?)
}

/// The keys of a file as PEM; the first one signs.
fn read_keys(file: &Path) -> Result<Vec<String>> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let keys: Vec<String> = serde_json::from_slice(&text)
        .with_context(|| format!("{} does not hold the keys of an issuer", file.display()))?;
    ensure!(!keys.is_empty(), "{} holds no key", file.display());
    Ok(keys)
}

fn to_file(keys: &[String]) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(keys)?)
}

fn version_of(file: &Path) -> Option<FileVersion> {
    let found = fs::metadata(file).ok()?;
    Some((found.ino(), found.modified().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token_issuer::TokenIssuer;

    const VALID: Duration = Duration::from_secs(600);

    fn secrets(name: &str) -> Secrets {
        let directory = std::env::temp_dir().join(format!("keys-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let secrets = Secrets::in_directory(&directory);
        secrets.create().unwrap();
        secrets
    }

    fn key_ids(secrets: &Secrets) -> Vec<String> {
        let keys = read_keys(&secrets.path(KEYS_FILE)).unwrap();
        keys.iter().map(|key| id_of(&from_pem(key).unwrap()).unwrap()).collect()
    }

    /// The end of the last token of a key is moved into the past.
    fn let_tokens_end(secrets: &Secrets, key_id: &str) {
        let mut ends = secrets.token_ends().unwrap();
        ends.insert(key_id.to_string(), Utc::now().timestamp());
        fs::write(secrets.path(ENDS_FILE), serde_json::to_vec(&ends).unwrap()).unwrap();
    }

    fn sign(issuer: &TokenIssuer) {
        issuer.sign("a", "", VALID).unwrap();
    }

    #[test]
    fn an_old_key_makes_room_for_a_new_one_and_stays_in_the_set() {
        let secrets = secrets("renews");
        secrets.token_issuer().unwrap();
        let before = key_ids(&secrets);
        let keys = fs::File::open(secrets.path(KEYS_FILE)).unwrap();
        keys.set_modified(SystemTime::now() - 2 * KEY_RENEWAL).unwrap();
        secrets.token_issuer().unwrap();
        let after = key_ids(&secrets);
        assert_eq!((after.len(), &after[1]), (2, &before[0]));
    }

    #[test]
    fn a_replaced_key_stays_until_the_last_token_that_it_signed_has_ended() {
        let secrets = secrets("ends");
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
        let secrets = secrets("left");
        sign(&secrets.token_issuer().unwrap());
        secrets.announce_token_key().unwrap();
        let left = key_ids(&secrets).remove(1);
        secrets.announce_token_key().unwrap();
        let ids = key_ids(&secrets);
        assert!(ids.len() == 2 && !ids.contains(&left), "{ids:?}");
    }
}
