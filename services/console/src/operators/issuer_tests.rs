use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use crate::operators::claims::tests::unsigned;
use crate::operators::encoding;
use crate::operators::issuer::{Issuer, IssuerError};
use crate::operators::pending::{PendingSignIns, SignInAttempt};
use crate::settings::OidcSettings;

type Fields = HashMap<String, String>;

/// A token endpoint with one answer, which keeps what it was asked.
struct Endpoint {
    url: String,
    asked: Mutex<Option<(HeaderMap, Fields)>>,
    answer: Mutex<(StatusCode, Value)>,
    /// What the discovery document has beside the addresses.
    discovery: Value,
}

async fn discover(State(endpoint): State<Arc<Endpoint>>) -> Json<Value> {
    let url = &endpoint.url;
    let mut document = json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/authorize?realm=a"),
        "token_endpoint": format!("{url}/token"),
    });
    for (name, value) in endpoint.discovery.as_object().into_iter().flatten() {
        document[name] = value.clone();
    }
    Json(document)
}

async fn exchange(
    State(endpoint): State<Arc<Endpoint>>,
    headers: HeaderMap,
    Form(fields): Form<Fields>,
) -> Response {
    *endpoint.asked.lock() = Some((headers, fields));
    let (status, body) = endpoint.answer.lock().clone();
    (status, Json(body)).into_response()
}

async fn start(discovery: Value) -> Arc<Endpoint> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Arc::new(Endpoint {
        url: format!("http://{}", listener.local_addr().unwrap()),
        asked: Mutex::default(),
        answer: Mutex::new((StatusCode::OK, json!({}))),
        discovery,
    });
    let routes = Router::new()
        .route("/.well-known/openid-configuration", get(discover))
        .route("/token", post(exchange))
        .with_state(endpoint.clone());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    endpoint
}

impl Endpoint {
    fn answer(&self, status: StatusCode, body: Value) {
        *self.answer.lock() = (status, body);
    }

    fn asked(&self) -> (HeaderMap, Fields) {
        self.asked.lock().take().unwrap()
    }
}

fn issuer(url: &str, secret: Option<&str>, scopes: &str) -> Issuer {
    let settings = OidcSettings {
        oidc_issuer: Some(url.to_string()),
        oidc_client_id: Some("control room".to_string()),
        oidc_client_secret: secret.map(|secret| secret.to_string().into()),
        oidc_scopes: scopes.to_string(),
    };
    Issuer::from_settings(&settings).unwrap().unwrap()
}

fn attempt() -> (String, SignInAttempt) {
    PendingSignIns::default().begin("http://localhost:8000/sign-in/callback".to_string()).unwrap()
}

#[tokio::test]
async fn the_issuer_is_asked_with_a_state_and_the_hash_of_a_secret() {
    let endpoint = start(json!({})).await;
    let (state, attempt) = attempt();
    let fields = async |scopes| {
        let url = issuer(&endpoint.url, None, scopes).sign_in_url(&state, &attempt).await.unwrap();
        assert!(url.as_str().starts_with(&format!("{}/authorize?", endpoint.url)));
        url.query_pairs().into_owned().collect::<Fields>()
    };
    let asked = fields("operator support:read").await;
    let hash = encoding::encode(&Sha256::digest(&attempt.verifier));
    for (name, value) in [
        ("realm", "a"),
        ("response_type", "code"),
        ("client_id", "control room"),
        ("redirect_uri", "http://localhost:8000/sign-in/callback"),
        ("scope", "operator support:read"),
        ("state", &state),
        ("code_challenge", &hash),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(asked[name], value, "{name}");
    }
    assert!(!asked.contains_key("nonce") && asked.values().all(|it| *it != attempt.verifier));
    assert_eq!(fields("openid operator").await["nonce"], attempt.nonce);
}

#[tokio::test]
async fn a_code_is_exchanged_with_the_secret_of_this_sign_in() {
    let endpoint = start(json!({})).await;
    let (_, attempt) = attempt();
    endpoint.answer(StatusCode::OK, json!({"access_token": "a.b.c", "token_type": "Bearer"}));
    let public = issuer(&endpoint.url, None, "operator");
    assert_eq!(public.exchange("code 1", &attempt).await.unwrap(), "a.b.c");
    let (headers, fields) = endpoint.asked();
    assert!(!headers.contains_key(header::AUTHORIZATION));
    for (name, value) in [
        ("grant_type", "authorization_code"),
        ("code", "code 1"),
        ("redirect_uri", &*attempt.redirect_uri),
        ("client_id", "control room"),
        ("code_verifier", &attempt.verifier),
    ] {
        assert_eq!(fields[name], value, "{name}");
    }

    let confidential = issuer(&endpoint.url, Some("s:1"), "operator");
    confidential.exchange("code", &attempt).await.unwrap();
    let (headers, fields) = endpoint.asked();
    // "control%20room:s%3A1"
    assert_eq!(headers[header::AUTHORIZATION], "Basic Y29udHJvbCUyMHJvb206cyUzQTE=");
    assert!(!fields.contains_key("client_secret"));
}

#[tokio::test]
async fn an_issuer_that_takes_the_secret_in_the_form_alone_gets_it_there() {
    let methods = json!({"token_endpoint_auth_methods_supported": ["client_secret_post"]});
    let endpoint = start(methods).await;
    endpoint.answer(StatusCode::OK, json!({"access_token": "a", "token_type": "bearer"}));
    let issuer = issuer(&endpoint.url, Some("s:1"), "operator");
    issuer.exchange("code", &attempt().1).await.unwrap();
    let (headers, fields) = endpoint.asked();
    assert_eq!(fields["client_secret"], "s:1");
    assert!(!headers.contains_key(header::AUTHORIZATION));
}

#[tokio::test]
async fn an_identity_token_has_to_belong_to_this_sign_in() {
    let endpoint = start(json!({})).await;
    let issuer = issuer(&endpoint.url, None, "openid operator");
    let (_, attempt) = attempt();
    let good = json!({
        "iss": endpoint.url, "aud": ["other", "control room"], "nonce": attempt.nonce, "exp": 1e11,
    });
    let exchanged = async |claims: Option<Value>| {
        let mut body = json!({"access_token": "a", "token_type": "Bearer"});
        body["id_token"] = claims.map(|claims| unsigned(&claims)).into();
        endpoint.answer(StatusCode::OK, body);
        issuer.exchange("code", &attempt).await.map_err(|error| error.to_string())
    };
    assert_eq!(exchanged(Some(good.clone())).await.unwrap(), "a");
    assert!(exchanged(None).await.unwrap_err().contains("no identity token"));
    for (name, value, named) in [
        ("iss", json!("https://other"), "of another issuer"),
        ("aud", json!("other"), "for another client"),
        ("nonce", json!("other"), "to another sign-in"),
        ("exp", json!(1), "has ended"),
        ("exp", json!(null), "has ended"),
    ] {
        let mut claims = good.clone();
        claims[name] = value;
        let refused = exchanged(Some(claims)).await.unwrap_err();
        assert!(refused.contains(named), "{name}: {refused}");
    }
}

#[tokio::test]
async fn a_refusal_of_the_issuer_is_shown_in_its_words_and_no_longer_than_a_line() {
    let endpoint = start(json!({})).await;
    let issuer = issuer(&endpoint.url, None, "operator");
    let refusal = async |status, body| {
        endpoint.answer(status, body);
        issuer.exchange("code", &attempt().1).await.unwrap_err()
    };
    let long = format!("{}\r\n{}", "a".repeat(200), "b".repeat(20_000));
    let body = json!({"error": "invalid_grant", "error_description": long});
    let error = refusal(StatusCode::BAD_REQUEST, body).await;
    assert!(matches!(error, IssuerError::Refused { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("refuses the sign-in: invalid_grant: aaa") && text.contains("ab"),
        "{text}"
    );
    assert!(text.len() < 400 && !text.contains(char::is_control), "{text}");
    let text = refusal(StatusCode::INTERNAL_SERVER_ERROR, json!([])).await.to_string();
    assert!(text.contains("it answers 500"), "{text}");
    for body in
        [json!({"access_token": "secret"}), json!({"access_token": "secret", "token_type": "mac"})]
    {
        let error = refusal(StatusCode::OK, body).await;
        assert!(matches!(error, IssuerError::Unusable { .. }), "{error:?}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let error = refusal(StatusCode::OK, json!("x".repeat(70_000))).await;
    assert!(error.to_string().contains("too large"), "{error}");
    assert!(issuer.check_sender(None).is_ok() && issuer.check_sender(Some(&endpoint.url)).is_ok());
    assert!(issuer.check_sender(Some("https://other")).is_err());
}

#[tokio::test]
async fn a_discovery_document_of_another_issuer_is_refused() {
    let (state, attempt) = attempt();
    for (document, named) in [
        (json!({"issuer": "https://other"}), "names the issuer https://other"),
        (json!({"token_endpoint": "file:///etc/passwd"}), "endpoint"),
        (json!({"authorization_endpoint": 1}), "invalid type"),
    ] {
        let endpoint = start(document).await;
        let issuer = issuer(&endpoint.url, None, "operator");
        let refused = issuer.sign_in_url(&state, &attempt).await.unwrap_err().to_string();
        assert!(refused.contains(named), "{refused}");
    }
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_costs_a_bounded_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = issuer(&format!("http://{}", listener.local_addr().unwrap()), None, "operator");
    let ((state, attempt), begun) = (attempt(), Instant::now());
    // Those that wait for another's answer do not add to the time.
    let asked = (0..5).map(|_| silent.sign_in_url(&state, &attempt));
    for answer in futures::future::join_all(asked).await {
        let refused = answer.unwrap_err();
        assert!(matches!(refused, IssuerError::Unavailable { .. }), "{refused:?}");
        assert!(refused.to_string().contains("does not answer in time"), "{refused}");
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop(listener);
    let gone = silent.sign_in_url(&state, &attempt).await.unwrap_err().to_string();
    assert!(gone.contains("does not answer"), "{gone}");
}
