//! What is logged: each act of an operator, and refusals without their tokens.

use axum::body::Body;
use axum::http::Request;
use axum::routing::post;
use axum::{Extension, Router};
use tower::ServiceExt;

use super::*;
use crate::http::callers::authorize::operators_only;
use crate::tests::captured_log::CapturedLog;

#[tokio::test]
async fn an_act_is_one_line_with_its_actor_and_a_refusal_one_a_minute_without_its_token() {
    let log = CapturedLog::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone());
    let _logged = tracing::subscriber::set_default(subscriber.finish());
    let key = SigningKey::p256();
    let file = KeyFile::new(&[key.jwk("first")]);
    let callers = file.callers();
    let admin =
        Router::new().route("/dead-letters/7/discard", post(async || "done").get(async || ""));
    let admin = operators_only(admin).layer(Extension(callers));
    let send = async |method: &str, token: &str, body: &str| {
        // Another test may have met the same line first, while none was logged.
        tracing::callsite::rebuild_interest_cache();
        let request = Request::builder().method(method).uri("/dead-letters/7/discard");
        let request = request.header("authorization", format!("Bearer {token}"));
        let request = request.body(Body::from(body.to_owned())).unwrap();
        admin.clone().oneshot(request).await.unwrap().status().as_u16()
    };
    let operator = with(claims(), json!({"sub": "ann", "scope": "operator"}));
    let token = sign(&key, &header().to_string(), &operator.to_string());
    let expired = with(operator, json!({"exp": 1}));
    let expired = sign(&key, &header().to_string(), &expired.to_string());
    assert_eq!(send("POST", &token, "{\"reason\": \"gone\"}\nactor=bob").await, 200);
    assert_eq!(send("GET", &token, "").await, 200);
    for _ in 0..3 {
        assert_eq!(send("POST", &expired, "").await, 401);
    }
    let text = log.text();
    let of = |what: &str| text.lines().filter(|line| line.contains(what)).collect::<Vec<_>>();
    let acts = of("an operator acted");
    assert_eq!(acts.len(), 1, "{text}");
    for part in ["actor=\"ann\"", "POST /dead-letters/7/discard", "gone", "status=200"] {
        assert!(acts[0].contains(part), "{part}: {text}");
    }
    assert!(acts[0].contains("\\nactor=bob"), "it is escaped: {text}");
    let refusals = of("refused because of its token");
    assert!(refusals.len() == 1 && refusals[0].contains("expired"), "{text}");
    assert!(!text.contains(&expired) && !text.contains("eyJ"), "{text}");
}
