//! Tokens that are accepted, and every kind of token that is not.

use super::*;
use crate::http::callers::token::TokenError::{self, *};

fn hmac(secret: &[u8], header: &Value, claims: &Value) -> String {
    let message = format!(
        "{}.{}",
        base64_url(header.to_string().as_bytes()),
        base64_url(claims.to_string().as_bytes())
    );
    let key = PKey::hmac(secret).unwrap();
    let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
    let signature = signer.sign_oneshot_to_vec(message.as_bytes()).unwrap();
    format!("{message}.{}", base64_url(&signature))
}

#[tokio::test]
async fn a_token_of_each_accepted_algorithm_names_its_caller() {
    let (ec, rsa) = (SigningKey::p256(), SigningKey::rsa(2048));
    let ed = SigningKey::Ed(PKey::generate_ed25519().unwrap());
    // Keys of different kinds may have one id.
    let file = KeyFile::new(&[ec.jwk("first"), ed.jwk("first"), rsa.jwk("first")]);
    let (verifier, _) = file.verifier();
    for (key, algorithm) in [(&ec, "ES256"), (&ed, "EdDSA"), (&rsa, "RS256")] {
        let header = with(header(), json!({"alg": algorithm}));
        let token = sign(key, &header.to_string(), &claims().to_string());
        for _ in 0..2 {
            let caller =
                verifier.verify(&token).await.unwrap_or_else(|e| panic!("{algorithm}: {e:?}"));
            assert_eq!(caller.subject(), Some(CUSTOMER));
            assert!(caller.has_scope("orders:write") && !caller.has_scope("operator"));
            assert!(caller.owns(CUSTOMER.parse().unwrap()) && !caller.owns(uuid::Uuid::nil()));
        }
    }
    for (header_changes, claim_changes) in [
        (json!({"typ": "application/at+jwt"}), json!({})),
        (json!({"typ": "AT+JWT"}), json!({})),
        (json!({}), json!({"aud": ["another", AUDIENCE]})),
        (json!({}), json!({"exp": now() as f64 + 60.5})),
        (json!({}), json!({"exp": now() - 20, "nbf": now() + 20})),
        (json!({}), json!({"scope": null})),
        (json!({"x5t": "thumb", "more": 1}), json!({"more": [1]})),
    ] {
        let header = with(header(), header_changes.clone()).to_string();
        let token = sign(&ec, &header, &with(claims(), claim_changes.clone()).to_string());
        let accepted = verifier.verify(&token).await;
        assert!(accepted.is_ok(), "{header_changes} {claim_changes}: {accepted:?}");
    }
}

#[tokio::test]
#[allow(clippy::too_many_lines)]
async fn every_bad_token_is_refused() {
    let (key, other, p384) =
        (SigningKey::p256(), SigningKey::p256(), SigningKey::ec(Nid::SECP384R1));
    let (rsa, short) = (SigningKey::rsa(2048), SigningKey::rsa(1024));
    let jwk = key.jwk("first");
    let file = KeyFile::new(&[
        jwk.clone(),
        rsa.jwk("rsa"),
        p384.jwk("p384"),
        short.jwk("short"),
        with(other.jwk("encryption"), json!({"use": "enc"})),
        json!({"kty": "oct", "kid": "secret", "k": base64_url(b"secret")}),
        json!({"kty": "unheard-of", "kid": "new"}),
    ]);
    let (verifier, _) = file.verifier();
    let SigningKey::Ec(ec) = &key else { unreachable!() };
    let pem = ec.public_key_to_pem().unwrap();
    let good = sign(&key, &header().to_string(), &claims().to_string());
    verifier.verify(&good).await.unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let of = |key: &SigningKey, header_changes: Value, claim_changes: Value| {
        let header = with(header(), header_changes).to_string();
        sign(key, &header, &with(claims(), claim_changes).to_string())
    };
    let by_header = |changes: Value| of(&key, changes, json!({}));
    let by_claims = |changes: Value| of(&key, json!({}), changes);
    let raw_claims = |text: &str| {
        let claims = claims().to_string();
        sign(&key, &header().to_string(), &claims.replacen('{', &format!("{{{text},"), 1))
    };
    let zeros = base64_url(&[0; 64]);
    let hs256 = with(header(), json!({"alg": "HS256"}));
    let mut altered = with(claims(), json!({"sub": "another"})).to_string();
    altered = base64_url(altered.as_bytes());
    let none = base64_url(br#"{"alg":"none","typ":"at+jwt","kid":"first"}"#);
    let bad: Vec<(&str, String, TokenError)> = vec![
        ("empty", String::new(), Malformed),
        ("no algorithm", format!("{none}.{}.", parts[1]), Malformed),
        ("no algorithm, but a signature", format!("{none}.{}.{}", parts[1], parts[2]), Malformed),
        ("HMAC with the public key", hmac(&pem, &hs256, &claims()), Algorithm),
        (
            "HMAC with a key of the set",
            hmac(b"secret", &with(hs256.clone(), json!({"kid": "secret"})), &claims()),
            Algorithm,
        ),
        ("another key", of(&other, json!({}), json!({})), Signature),
        ("an unknown key id", by_header(json!({"kid": "second"})), UnknownKey),
        ("a key id with a path", by_header(json!({"kid": "../../../dev/null"})), UnknownKey),
        ("no key id", by_header(json!({"kid": null})), Malformed),
        ("a key id of another algorithm", by_header(json!({"kid": "rsa"})), UnknownKey),
        ("another algorithm than the key's", by_header(json!({"alg": "RS256"})), UnknownKey),
        ("another curve", of(&p384, json!({"alg": "ES384", "kid": "p384"}), json!({})), Algorithm),
        ("another curve under ES256", of(&p384, json!({"kid": "p384"}), json!({})), UnknownKey),
        (
            "a short RSA key",
            of(&short, json!({"alg": "RS256", "kid": "short"}), json!({})),
            UnknownKey,
        ),
        (
            "RSA with another padding",
            of(&rsa, json!({"alg": "PS256", "kid": "rsa"}), json!({})),
            Algorithm,
        ),
        ("a key for encryption", of(&other, json!({"kid": "encryption"}), json!({})), UnknownKey),
        ("an identity token", by_header(json!({"typ": "JWT"})), Malformed),
        ("no type", by_header(json!({"typ": null})), Malformed),
        (
            "a key's URL in its header",
            by_header(json!({"jku": "https://evil.example/keys"})),
            Malformed,
        ),
        (
            "a certificate's URL in its header",
            by_header(json!({"x5u": "https://evil.example/c"})),
            Malformed,
        ),
        ("a key in its header", by_header(json!({"jwk": jwk})), Malformed),
        ("a certificate in its header", by_header(json!({"x5c": ["MIIB"]})), Malformed),
        ("a critical field", by_header(json!({"crit": ["b64"], "b64": false})), Malformed),
        ("a compressed payload", by_header(json!({"zip": "DEF"})), Malformed),
        ("expired", by_claims(json!({"exp": now() - 60})), Expired),
        ("not valid yet", by_claims(json!({"nbf": now() + 60})), NotYetValid),
        ("a beginning that is no time", by_claims(json!({"nbf": "soon"})), Malformed),
        ("no end", by_claims(json!({"exp": null})), Malformed),
        ("an end that is no time", by_claims(json!({"exp": "never"})), Malformed),
        ("an end before 1970", by_claims(json!({"exp": -1})), Malformed),
        ("another audience", by_claims(json!({"aud": "another"})), Audience),
        ("other audiences", by_claims(json!({"aud": ["another", "third"]})), Audience),
        ("no audience", by_claims(json!({"aud": null})), Malformed),
        ("another issuer", by_claims(json!({"iss": "https://issuer.example/"})), Issuer),
        ("a list of issuers", by_claims(json!({"iss": [ISSUER, "another"]})), Malformed),
        ("no issuer", by_claims(json!({"iss": null})), Malformed),
        ("no subject", by_claims(json!({"sub": null})), Malformed),
        ("an empty subject", by_claims(json!({"sub": ""})), Malformed),
        ("a subject of two lines", by_claims(json!({"sub": "a\nb"})), Malformed),
        ("a long subject", by_claims(json!({"sub": "x".repeat(256)})), Malformed),
        ("scopes as a list", by_claims(json!({"scope": ["orders:read"]})), Malformed),
        ("two subjects", raw_claims(r#""sub":"another""#), Malformed),
        ("two ends", raw_claims(r#""exp":99999999999"#), Malformed),
        ("two audiences", raw_claims(r#""aud":"another""#), Malformed),
        (
            "two key ids",
            sign(
                &key,
                &header().to_string().replacen('{', r#"{"kid":"x","#, 1),
                &claims().to_string(),
            ),
            Malformed,
        ),
        ("claims that are no object", sign(&key, &header().to_string(), "[]"), Malformed),
        ("two signatures", format!("{good}.{}", parts[2]), Malformed),
        ("no signature", format!("{}.{}", parts[0], parts[1]), Malformed),
        ("an empty signature", format!("{}.{}.", parts[0], parts[1]), Signature),
        ("a signature of zeros", format!("{}.{}.{zeros}", parts[0], parts[1]), Signature),
        ("a truncated signature", good[..good.len() - 6].to_owned(), Signature),
        ("other claims", format!("{}.{altered}.{}", parts[0], parts[2]), Signature),
        ("padding", format!("{good}="), Malformed),
        ("a blank", format!("{good} "), Malformed),
        ("huge", by_claims(json!({"more": "x".repeat(8 * 1024)})), Malformed),
        (
            "an envelope in JSON",
            json!({"payload": parts[1], "signatures": []}).to_string(),
            Malformed,
        ),
    ];
    assert!(bad.len() >= 24);
    for (name, token, error) in &bad {
        let refused = verifier.verify(token).await;
        assert_eq!(refused.err(), Some(*error), "{name}");
    }
    verifier.verify(&good).await.unwrap();
}

#[tokio::test]
async fn a_token_that_was_accepted_is_refused_once_it_has_expired() {
    let key = SigningKey::p256();
    let file = KeyFile::new(&[key.jwk("first")]);
    let (verifier, _) = file.verifier();
    // Its leeway ends in a second.
    let claims = with(claims(), json!({"exp": now() - 29}));
    let token = sign(&key, &header().to_string(), &claims.to_string());
    verifier.verify(&token).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(verifier.verify(&token).await.err(), Some(Expired));
}
