//! Where keys come from, and how they are replaced.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::Mutex;
use tokio::net::TcpListener;

use super::*;
use crate::http::callers::token::TokenError;

fn token(key: &SigningKey, id: &str) -> String {
    sign(key, &with(header(), json!({"kid": id})).to_string(), &claims().to_string())
}

#[tokio::test]
async fn a_key_that_is_gone_is_refused_at_once_and_a_new_one_accepted_from_its_first_token() {
    let (first, second) = (SigningKey::p256(), SigningKey::p256());
    let file = KeyFile::new(&[first.jwk("first")]);
    let (verifier, keys) = file.verifier();
    let (old, new) = (token(&first, "first"), token(&second, "second"));
    verifier.verify(&old).await.unwrap();
    file.write(&[first.jwk("first"), second.jwk("second")]);
    verifier.verify(&new).await.unwrap();
    verifier.verify(&old).await.unwrap();
    // A file that is being written, or lost, takes no key away.
    for text in ["", "{\"keys\": [", "{}", "[]"] {
        std::fs::write(&file.0, text).unwrap();
        assert!(!keys.read().await, "{text}");
        verifier.verify(&old).await.unwrap();
    }
    file.write(&[second.jwk("second")]);
    assert!(keys.read().await);
    assert_eq!(verifier.verify(&old).await.err(), Some(TokenError::UnknownKey), "it was cached");
    verifier.verify(&new).await.unwrap();
    // The id stays, and another key stands behind it.
    file.write(&[first.jwk("second")]);
    assert!(keys.read().await);
    assert_eq!(verifier.verify(&new).await.err(), Some(TokenError::Signature));
    file.write(&[]);
    assert!(keys.read().await);
    assert_eq!(verifier.verify(&token(&first, "second")).await.err(), Some(TokenError::UnknownKey));
}

#[tokio::test]
async fn a_file_is_read_again_without_a_request() {
    let (first, second) = (SigningKey::p256(), SigningKey::p256());
    let file = KeyFile::new(&[first.jwk("first")]);
    let (verifier, keys) = file.verifier();
    let before = keys.current().unwrap().generation;
    file.write(&[second.jwk("second")]);
    for _ in 0..100 {
        if keys.current().unwrap().generation != before {
            let refused = verifier.verify(&token(&first, "first")).await;
            assert_eq!(refused.err(), Some(TokenError::UnknownKey));
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the file was not read again");
}

#[tokio::test]
async fn a_file_without_a_key_that_can_be_used_is_refused_at_the_start() {
    let rsa = SigningKey::rsa(1024).jwk("short");
    for keys in [&[][..], &[rsa], &[with(SigningKey::p256().jwk("x"), json!({"kid": null}))]] {
        let file = KeyFile::new(keys);
        let refused = Keys::new(file.location()).err().expect("no key").to_string();
        assert!(refused.contains("ES256, EdDSA or RS256"), "{refused}");
    }
}

/// An issuer that answers with what a test tells it, and counts.
#[derive(Clone, Default)]
struct Issuer(Arc<(Mutex<(u16, String)>, AtomicUsize)>);

impl Issuer {
    fn answer(&self, status: u16, text: impl Into<String>) {
        *self.0.0.lock() = (status, text.into());
    }

    fn requests(&self) -> usize {
        self.0.1.load(Relaxed)
    }

    /// Serves the keys and a discovery document; returns the base URL.
    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (issuer, discovered) = (self.clone(), json!({"jwks_uri": format!("{base}/keys")}));
        let keys = get(async move || {
            issuer.0.1.fetch_add(1, Relaxed);
            let (status, text) = issuer.0.0.lock().clone();
            let location = [("location", "/elsewhere".to_owned())];
            (StatusCode::from_u16(status).unwrap(), location, text).into_response()
        });
        let discovery = get(async move || discovered.to_string());
        let router = Router::new().route("/keys", keys.clone()).route("/elsewhere", keys);
        let router = router.route("/.well-known/openid-configuration", discovery);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        base
    }
}

async fn until_read(keys: &Keys) {
    for _ in 0..100 {
        if keys.current().is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the keys were not read");
}

#[tokio::test]
async fn the_last_keys_are_used_while_the_issuer_is_away_and_it_is_asked_at_a_bounded_rate() {
    let key = SigningKey::p256();
    let issuer = Issuer::default();
    issuer.answer(200, json!({"keys": [key.jwk("first")]}).to_string());
    let base = issuer.serve().await;
    for location in [KeyLocation::Url(format!("{base}/keys")), KeyLocation::Discovery(base.clone())]
    {
        let before = issuer.requests();
        let keys = Keys::new(location).unwrap();
        until_read(&keys).await;
        let verifier = TokenVerifier::new(ISSUER, AUDIENCE, keys.clone());
        verifier.verify(&token(&key, "first")).await.unwrap();
        assert_eq!(issuer.requests(), before + 1);
        for nth in 0..20 {
            let unknown = verifier.verify(&token(&key, &format!("unknown {nth}"))).await;
            assert_eq!(unknown.err(), Some(TokenError::UnknownKey));
        }
        assert_eq!(issuer.requests(), before + 2, "once for all unknown keys");
        let keep = issuer.0.0.lock().clone();
        for (status, text) in [
            (500, String::new()),
            (302, keep.1.clone()),
            (404, keep.1.clone()),
            (200, " ".repeat(300 * 1024)),
            (200, "<html>".into()),
        ] {
            issuer.answer(status, text);
            assert!(!keys.read().await, "{status}");
            verifier.verify(&token(&key, "first")).await.unwrap();
        }
        issuer.answer(keep.0, keep.1);
    }
}

#[tokio::test]
async fn without_any_keys_a_request_is_not_answered_yet() {
    let keys = Keys::new(KeyLocation::Url("http://127.0.0.1:1/keys".into())).unwrap();
    let verifier = TokenVerifier::new(ISSUER, AUDIENCE, keys);
    let token = token(&SigningKey::p256(), "first");
    assert_eq!(verifier.verify(&token).await.err(), Some(TokenError::KeysUnavailable));
}
