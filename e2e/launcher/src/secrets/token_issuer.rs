//! The issuer of a secured stack: it signs the tokens by which the services know who calls them. No
//! issuer runs: its keys are files (`token_keys.rs`), and the services read the public half of each from another file.

use std::time::Duration;

use anyhow::Result;
use chrono::Utc;
use openssl::ec::EcKey;
use openssl::ecdsa::EcdsaSig;
use openssl::pkey::Private;
use openssl::sha::sha256;
use serde_json::json;

use crate::secrets::Secrets;
use crate::secrets::registry_tokens::{base64_url, signed_parts};
use crate::secrets::token_keys::{COORDINATE_BYTES, FileVersion};

/// The issuer of the tokens: the services compare it with their variable `TOKEN_ISSUER`. No server has
/// this name.
pub const ISSUER: &str = "https://issuer.holdfast.internal";

/// Whom the tokens are for: the services compare it with `TOKEN_AUDIENCE`.
pub const AUDIENCE: &str = "holdfast";

/// The type of an access token, by RFC 9068.
const TOKEN_TYPE: &str = "at+jwt";

/// Signs the tokens of callers of a secured stack: for tests and tools on this machine.
pub struct TokenIssuer {
    key: EcKey<Private>,
    key_id: String,
    secrets: Secrets,
    version: Option<FileVersion>,
}

impl TokenIssuer {
    fn open(secrets: &Secrets) -> Result<TokenIssuer> {
        let (version, key) = (secrets.token_keys_version(), secrets.token_keys()?.swap_remove(0));
        Ok(TokenIssuer { key: key.private()?, key_id: key.id, secrets: secrets.clone(), version })
    }

    /// Signs a token: `subject` is who calls, and `scopes` are what the caller may do, divided by blanks. The key stays
    /// until the token has expired, also if another key takes its place.
    ///
    /// # Errors
    /// If the key of the issuer is damaged, or the stack was deleted.
    pub fn sign(&self, subject: &str, scopes: &str, lifetime: Duration) -> Result<String> {
        let now = Utc::now();
        let end = (now + lifetime).timestamp();
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": subject, "scope": scopes, "client_id": subject,
            "iat": now.timestamp(), "exp": end, "jti": format!("{:032x}", rand::random::<u128>()),
        });
        let header = json!({ "alg": "ES256", "typ": TOKEN_TYPE, "kid": self.key_id });
        let signed = signed_parts(&header, &claims);
        let signature = EcdsaSig::sign(&sha256(signed.as_bytes()), &self.key)?;
        let halves =
            [signature.r(), signature.s()].map(|half| half.to_vec_padded(COORDINATE_BYTES));
        let [r, s] = halves;
        self.secrets.record_token_end(&self.key_id, end)?;
        Ok(format!("{signed}.{}", base64_url(&[r?, s?].concat())))
    }

    /// Takes the key that signs now. Returns whether it is another one.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn refresh(&mut self) -> Result<bool> {
        // Clients ask before every request.
        if self.secrets.token_keys_version() == self.version {
            return Ok(false);
        }
        let before = self.key_id.clone();
        *self = TokenIssuer::open(&self.secrets)?;
        Ok(self.key_id != before)
    }
}

impl Secrets {
    /// What signs with the first key, after the services have been given its public half. Old keys whose tokens have
    /// ended are removed.
    pub fn token_issuer(&self) -> Result<TokenIssuer> {
        self.token_key_set()?;
        self.retire_ended_token_keys()?;
        TokenIssuer::open(self)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use anyhow::{Context, ensure};
    use openssl::base64::decode_block;
    use openssl::bn::BigNum;
    use openssl::ec::EcGroup;
    use openssl::nid::Nid;
    use serde_json::Value;
    use tempfile::TempDir;

    use super::*;

    const LIFETIME: Duration = Duration::from_secs(600);

    fn secrets() -> (TempDir, Secrets) {
        let directory = TempDir::new().unwrap();
        let secrets = Secrets::in_directory(directory.path());
        (directory, secrets)
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
        let (_directory, secrets) = secrets();
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

        let (_other_directory, others) = self::secrets();
        let stranger = issuer(&others).sign("ann", "", LIFETIME).unwrap();
        assert!(verify(&secrets, &stranger).is_err());
    }

    #[test]
    fn the_key_set_holds_no_private_key() {
        let (_directory, secrets) = secrets();
        let set: Value =
            serde_json::from_slice(&fs::read(secrets.token_key_set().unwrap()).unwrap()).unwrap();
        let key = set["keys"][0].as_object().unwrap();
        let names: Vec<&str> = key.keys().map(String::as_str).collect();
        assert_eq!(names, ["alg", "crv", "kid", "kty", "use", "x", "y"]);
    }

    #[test]
    fn tokens_of_both_keys_are_valid_until_one_is_retired() {
        let (_directory, secrets) = secrets();
        let mut signer = issuer(&secrets);
        assert!(!signer.refresh().unwrap());
        let before = signer.sign("a", "", LIFETIME).unwrap();
        secrets.announce_token_key().unwrap();
        assert!(!signer.refresh().unwrap());
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

    fn signer_of(token: &str) -> Value {
        part(token, 0).unwrap()["kid"].clone()
    }
}
