//! The token with which the program of the contracts may write to the registry of a secured stack.
//! Everybody may read. The registry checks the signature against a key that it is given at its start,
//! so no issuer has to run.

use anyhow::Result;
use chrono::{TimeDelta, Utc};
use openssl::base64::encode_block;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::sign::Signer;
use serde_json::{Value, json};

/// The tenant of the registry that checks the tokens, and their audience.
const TENANT: &str = "contracts";

/// The registry's role that may write schemas.
const WRITER: &str = "sr-developer";

const KEY_BITS: u32 = 2048;
const TOKEN_DAYS: i64 = 30;

/// A new key that signs tokens, as PEM.
pub fn new_key() -> Result<Vec<u8>> {
    Ok(PKey::from_rsa(Rsa::generate(KEY_BITS)?)?.private_key_to_pem_pkcs8()?)
}

/// A token that is signed with this key.
pub fn new_token(key: &[u8]) -> Result<Vec<u8>> {
    let key = PKey::private_key_from_pem(key)?;
    let (now, expires) = (Utc::now(), Utc::now() + TimeDelta::days(TOKEN_DAYS));
    let claims = json!({
        "sub": TENANT, "upn": TENANT, "aud": TENANT, "groups": [WRITER],
        "iat": now.timestamp(), "exp": expires.timestamp(),
    });
    let header = json!({ "alg": "RS256", "typ": "JWT" });
    let signed = signed_parts(&header, &claims);
    let mut signer = Signer::new(MessageDigest::sha256(), &key)?;
    signer.update(signed.as_bytes())?;
    Ok(format!("{signed}.{}", base64_url(&signer.sign_to_vec()?)).into_bytes())
}

/// The part of a token that its signature covers.
pub fn signed_parts(header: &Value, claims: &Value) -> String {
    [header, claims].map(|part| base64_url(part.to_string().as_bytes())).join(".")
}

pub fn base64_url(bytes: &[u8]) -> String {
    encode_block(bytes).replace('+', "-").replace('/', "_").replace(['=', '\n'], "")
}

/// The settings of the registry that let everybody read, and only the bearer of a token that this key
/// has signed write.
pub fn settings(key: &[u8]) -> Result<Vec<String>> {
    let public = encode_block(&PKey::private_key_from_pem(key)?.public_key_to_der()?);
    let settings = [
        // Its default tenant asks an issuer; no request reaches that tenant.
        "quarkus.oidc.tenant-enabled=true",
        "quarkus.oidc.auth-server-url=http://127.0.0.1:1",
        "quarkus.oidc.discovery-enabled=false",
        "quarkus.oidc.jwks-path=/none",
        "quarkus.oidc.jwks.resolve-early=false",
        &format!("quarkus.oidc.{TENANT}.tenant-paths=/*"),
        &format!("quarkus.oidc.{TENANT}.client-id={TENANT}"),
        &format!("quarkus.oidc.{TENANT}.token.audience={TENANT}"),
        &format!("quarkus.oidc.{TENANT}.public-key={}", public.replace('\n', "")),
        // They log refused tokens, some of them whole: the first at DEBUG, which the registry sets, and the second at
        // ERROR, with all causes of a refusal.
        "quarkus.log.category.\"io.quarkus.oidc.runtime.OidcProvider\".level=WARN",
        "quarkus.log.category.\"io.apicurio.registry.auth\".level=OFF",
        "apicurio.auth.role-based-authorization=true",
        "apicurio.auth.role-source=token",
        "apicurio.auth.anonymous-read-access.enabled=true",
    ];
    Ok(settings.map(|setting| format!("-D{setting}")).to_vec())
}
