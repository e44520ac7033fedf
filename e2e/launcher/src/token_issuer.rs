//! The issuer of a secured stack: it signs the tokens by which the services know who calls them. No
//! issuer runs. A file has its keys, and another one the public half of each, which the services read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::EcKey;
use openssl::ecdsa::EcdsaSig;
use openssl::pkey::Private;
use openssl::sha::sha256;
use serde_json::{Value, json};

use crate::certificates;
use crate::registry_tokens::{base64_url, signed_parts};
use crate::secrets::Secrets;
use crate::stack::Stack;

/// The issuer of the tokens: the services compare it with their variable `TOKEN_ISSUER`. No server has
/// this name.
pub const ISSUER: &str = "https://issuer.holdfast.internal";

/// Whom the tokens are for: the services compare it with `TOKEN_AUDIENCE`.
pub const AUDIENCE: &str = "holdfast";

/// The type of an access token, by RFC 9068.
const TOKEN_TYPE: &str = "at+jwt";

/// The length of a coordinate and of half a signature of the curve P-256.
const COORDINATE_BYTES: i32 = 32;

/// The file names among the secrets: the keys, of which the first one signs, and their public halves.
const KEYS_FILE: &str = "token-issuer.keys";
const KEY_SET_FILE: &str = "token-issuer.jwks";

/// A new key signs when the newest one is older than this.
const KEY_RENEWAL: Duration = Duration::from_secs(23 * 86_400);

/// Signs the tokens of callers of a secured stack: for tests and tools on this machine.
pub struct TokenIssuer {
    key: EcKey<Private>,
    key_id: String,
    file: PathBuf,
    version: Option<FileVersion>,
}

/// Each change of the keys writes another file.
type FileVersion = (u64, SystemTime);

impl TokenIssuer {
    fn open(file: &Path) -> Result<TokenIssuer> {
        let version = version_of(file);
        let keys = read_keys(file)?;
        let key = EcKey::private_key_from_pem(keys[0].as_bytes())?;
        let key_id = key_id(&coordinates(&key)?);
        Ok(TokenIssuer { key, key_id, file: file.to_path_buf(), version })
    }

    /// Signs a token: `subject` is who calls, and `scopes` are what the caller may do, divided by blanks.
    ///
    /// # Errors
    /// If the key of the issuer is damaged.
    pub fn sign(&self, subject: &str, scopes: &str, lifetime: Duration) -> Result<String> {
        let now = Utc::now();
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": subject, "scope": scopes, "client_id": subject,
            "iat": now.timestamp(), "exp": (now + lifetime).timestamp(),
            "jti": format!("{:032x}", rand::random::<u128>()),
        });
        let header = json!({ "alg": "ES256", "typ": TOKEN_TYPE, "kid": self.key_id });
        let signed = signed_parts(&header, &claims);
        let signature = EcdsaSig::sign(&sha256(signed.as_bytes()), &self.key)?;
        let halves =
            [signature.r(), signature.s()].map(|half| half.to_vec_padded(COORDINATE_BYTES));
        let [r, s] = halves;
        Ok(format!("{signed}.{}", base64_url(&[r?, s?].concat())))
    }

    /// Reads the keys again if they were changed. Returns whether they were.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn refresh(&mut self) -> Result<bool> {
        let is_current = version_of(&self.file) == self.version;
        if !is_current {
            *self = TokenIssuer::open(&self.file)?;
        }
        Ok(!is_current)
    }
}

/// The keys of the issuer among the secrets of a stack. One key takes the place of another without a
/// refusal in three steps: it is announced; when every service has read the set again, it signs; when the
/// last token of the other key has expired, that one is retired.
impl Secrets {
    /// What signs with the first key, after the services have been given its public half.
    pub fn token_issuer(&self) -> Result<TokenIssuer> {
        self.token_key_set()?;
        TokenIssuer::open(&self.path(KEYS_FILE))
    }

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

    /// Adds a key that does not sign yet.
    pub fn announce_token_key(&self) -> Result<()> {
        self.change_keys(|keys| {
            ensure!(keys.len() == 1, "the issuer has two keys already: retire one first");
            keys.push(new_key()?);
            Ok(())
        })
    }

    /// Lets the other key sign.
    pub fn switch_token_key(&self) -> Result<()> {
        self.change_keys(|keys| {
            ensure!(keys.len() == 2, "the issuer has one key: announce another one first");
            keys.swap(0, 1);
            Ok(())
        })
    }

    /// Removes the key that does not sign: the services refuse its tokens from now on.
    pub fn retire_token_key(&self) -> Result<()> {
        self.change_keys(|keys| {
            keys.truncate(1);
            Ok(())
        })
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

/// The tokens of the callers of a secured stack.
impl Stack {
    /// What signs the tokens by which the services of a secured stack know their callers.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn token_issuer(&self) -> Result<Option<TokenIssuer>> {
        let state = self.state()?;
        if !state.secure {
            return Ok(None);
        }
        state.secrets()?.token_issuer().map(Some)
    }

    /// Adds a key to those of [`Stack::token_issuer`]. It does not sign yet, so that every service can
    /// read it first.
    ///
    /// # Errors
    /// If the stack is not secured, or has two keys already.
    pub fn announce_token_key(&self) -> Result<()> {
        self.state()?.secrets()?.announce_token_key()
    }

    /// Lets the announced key sign. Tokens of the other one stay valid.
    ///
    /// # Errors
    /// If no key was announced.
    pub fn switch_token_key(&self) -> Result<()> {
        self.state()?.secrets()?.switch_token_key()
    }

    /// Removes the key that does not sign. The services refuse its tokens as soon as they read the keys
    /// again.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn retire_token_key(&self) -> Result<()> {
        self.state()?.secrets()?.retire_token_key()
    }
}

/// Whether the newest key is young enough to go on signing.
fn is_fresh(file: &Path) -> bool {
    let age = version_of(file).and_then(|(_, written)| written.elapsed().ok());
    age.is_some_and(|age| age < KEY_RENEWAL)
}

/// The public half of each key, as JSON.
fn key_set(keys: &[String]) -> Result<Vec<u8>> {
    let public = |pem: &String| -> Result<Value> {
        let [x, y] = coordinates(&EcKey::private_key_from_pem(pem.as_bytes())?)?;
        let id = key_id(&[x.clone(), y.clone()]);
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

/// The id of a key is its thumbprint, by RFC 7638.
fn key_id([x, y]: &[String; 2]) -> String {
    let key = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    base64_url(&sha256(key.as_bytes()))
}

fn new_key() -> Result<String> {
    Ok(String::from_utf8(certificates::new_key()?)?)
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
    use openssl::base64::decode_block;
    use openssl::ec::EcGroup;
    use openssl::nid::Nid;

    use super::*;

    const LIFETIME: Duration = Duration::from_secs(600);

    fn secrets(name: &str) -> Secrets {
        let directory = std::env::temp_dir().join(format!("issuer-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let secrets = Secrets::in_directory(&directory);
        secrets.create().unwrap();
        secrets
    }

    fn issuer(secrets: &Secrets) -> TokenIssuer {
        secrets.token_issuer().unwrap()
    }

    /// Checks the signature of a token as a service does: by the key of its id in the published set.
    fn verify(secrets: &Secrets, token: &str) -> Result<Value> {
        let set: Value = serde_json::from_slice(&fs::read(secrets.token_key_set()?)?)?;
        let (header, claims) = (part(token, 0)?, part(token, 1)?);
        let mut keys = set["keys"].as_array().context("no keys")?.iter();
        let key = keys.find(|key| key["kid"] == header["kid"]).context("an unknown key")?;
        let number = |name: &str| -> Result<BigNum> {
            Ok(BigNum::from_slice(&decode(key[name].as_str().context("a number")?)?)?)
        };
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let key =
            EcKey::from_public_key_affine_coordinates(&group, &*number("x")?, &*number("y")?)?;
        let (signed, signature) = token.rsplit_once('.').context("three parts")?;
        let signature = decode(signature)?;
        let (r, s) = signature.split_at(32);
        let signature =
            EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?;
        ensure!(signature.verify(&sha256(signed.as_bytes()), &key)?, "another signature");
        Ok(claims)
    }

    fn part(token: &str, nth: usize) -> Result<Value> {
        Ok(serde_json::from_slice(&decode(token.split('.').nth(nth).context("a part")?)?)?)
    }

    fn decode(text: &str) -> Result<Vec<u8>> {
        let mut text = text.replace('-', "+").replace('_', "/");
        text.push_str(&"=".repeat((4 - text.len() % 4) % 4));
        Ok(decode_block(&text)?)
    }

    #[test]
    fn the_key_set_verifies_a_token_with_its_subject_and_scopes() {
        let secrets = secrets("signs");
        let token = issuer(&secrets).sign("ann", "shop:read shop:write", LIFETIME);
        let token = token.unwrap();
        let claims = verify(&secrets, &token).unwrap();
        assert_eq!(claims["sub"], "ann");
        assert_eq!(claims["scope"], "shop:read shop:write");
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 600);
        assert_eq!(claims["iss"], ISSUER);
        assert_eq!(claims["aud"], AUDIENCE);
        let header = part(&token, 0).unwrap();
        assert_eq!((&header["alg"], &header["typ"]), (&json!("ES256"), &json!("at+jwt")));

        let stranger = issuer(&self::secrets("stranger")).sign("ann", "", LIFETIME).unwrap();
        assert!(verify(&secrets, &stranger).is_err());
    }

    #[test]
    fn the_key_set_holds_no_private_key() {
        let secrets = secrets("public");
        let set: Value =
            serde_json::from_slice(&fs::read(secrets.token_key_set().unwrap()).unwrap()).unwrap();
        let key = set["keys"][0].as_object().unwrap();
        let names: Vec<&str> = key.keys().map(String::as_str).collect();
        assert_eq!(names, ["alg", "crv", "kid", "kty", "use", "x", "y"]);
    }

    #[test]
    fn tokens_of_both_keys_are_valid_until_one_is_retired() {
        let secrets = secrets("rotates");
        let mut signer = issuer(&secrets);
        assert!(!signer.refresh().unwrap());
        let before = signer.sign("a", "", LIFETIME).unwrap();
        secrets.announce_token_key().unwrap();
        assert!(secrets.announce_token_key().is_err());
        assert!(signer.refresh().unwrap());
        let announced = signer.sign("a", "", LIFETIME).unwrap();
        assert_eq!(signer_of(&announced), signer_of(&before));

        secrets.switch_token_key().unwrap();
        assert!(signer.refresh().unwrap());
        let after = signer.sign("a", "", LIFETIME).unwrap();
        assert_ne!(signer_of(&after), signer_of(&before));
        assert!(verify(&secrets, &before).is_ok() && verify(&secrets, &after).is_ok());

        secrets.retire_token_key().unwrap();
        assert!(verify(&secrets, &before).is_err() && verify(&secrets, &after).is_ok());
        assert!(secrets.switch_token_key().is_err());
    }

    #[test]
    fn an_old_key_makes_room_for_a_new_one_and_stays_in_the_set() {
        let secrets = secrets("renews");
        let before = issuer(&secrets).sign("a", "", LIFETIME).unwrap();
        let keys = fs::File::open(secrets.issuer_keys().unwrap()).unwrap();
        keys.set_modified(SystemTime::now() - 2 * KEY_RENEWAL).unwrap();
        let after = issuer(&secrets).sign("a", "", LIFETIME).unwrap();
        assert_ne!(signer_of(&after), signer_of(&before));
        assert!(verify(&secrets, &before).is_ok() && verify(&secrets, &after).is_ok());
    }

    fn signer_of(token: &str) -> Value {
        part(token, 0).unwrap()["kid"].clone()
    }
}
