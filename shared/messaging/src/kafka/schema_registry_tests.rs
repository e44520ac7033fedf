//! The client of the registry, against a registry of the test.

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::{Json, Router};
use serde_json::json;

use std::time::Instant;

use super::*;

type Responses = fn(&str) -> (StatusCode, serde_json::Value);

/// A client of a registry that answers each path with the result of the function.
async fn client_of(
    answers: impl Fn(&str) -> (StatusCode, serde_json::Value) + Clone + Send + Sync + 'static,
) -> Arc<SchemaRegistryClient> {
    client(settings(&serve(move |request| answers(request.uri().path())).await, None))
}

/// Serves a registry, and returns its URL.
async fn serve(
    answers: impl Fn(&Request) -> (StatusCode, serde_json::Value) + Clone + Send + Sync + 'static,
) -> String {
    let answer = move |request: Request| {
        let (status, body) = answers(&request);
        async move { (status, Json(body)) }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, Router::new().fallback(answer)).await });
    url
}

fn settings(url: &str, token: Option<&str>) -> SrSettings {
    let mut settings = SrSettings::new_builder(url.to_owned());
    if let Some(token) = token {
        settings.set_token_authorization(token);
    }
    settings.no_proxy().set_timeout(REQUEST_TIMEOUT).build().unwrap()
}

fn client(settings: SrSettings) -> Arc<SchemaRegistryClient> {
    Arc::new(SchemaRegistryClient::new(settings, Duration::from_secs(120)))
}

const NULL: &str = r#""null""#;

fn schema(_: &str) -> (StatusCode, serde_json::Value) {
    (StatusCode::OK, json!({ "schema": NULL }))
}

fn refusal(status: StatusCode, error_code: u32) -> (StatusCode, serde_json::Value) {
    (status, json!({ "error_code": error_code, "message": "" }))
}

#[tokio::test]
async fn only_an_error_code_of_the_registry_makes_a_schema_unknown() {
    let registry = client_of(|_| refusal(StatusCode::NOT_FOUND, 40403)).await;
    let known = registry.get_schemas([7, u32::MAX]).await;
    assert!(matches!(known.get(7), CachedSchema::Unregistered(_)));
    assert!(
        matches!(known.get(u32::MAX), CachedSchema::Unreadable(_)),
        "no registry gives this id"
    );
    let answers: [Responses; 3] = [
        |_| (StatusCode::NOT_FOUND, json!("no such page")),
        |_| refusal(StatusCode::UNPROCESSABLE_ENTITY, 422),
        |_| refusal(StatusCode::INTERNAL_SERVER_ERROR, 50001),
    ];
    for answers in answers {
        let known = client_of(answers).await.get_schemas([7]).await;
        assert!(matches!(known.get(7), CachedSchema::Pending(_)));
    }
}

#[tokio::test]
async fn an_id_that_is_refused_while_another_is_served_is_unreadable_and_a_wrong_password_is_waited_for()
 {
    let refusals: [Responses; 4] = [
        |_| refusal(StatusCode::FORBIDDEN, 40301),
        |_| refusal(StatusCode::UNAUTHORIZED, 401),
        |_| (StatusCode::FORBIDDEN, json!("a page of a gateway")),
        |_| refusal(StatusCode::UNPROCESSABLE_ENTITY, 42201),
    ];
    for refuse in refusals {
        let one = move |path: &str| if path.ends_with("/7") { refuse(path) } else { schema(path) };
        let registry = client_of(one).await;
        let together = registry.get_schemas([7, 8]).await;
        assert!(matches!(together.get(7), CachedSchema::Unreadable(_)));
        assert!(matches!(together.get(8), CachedSchema::Resolved(_)));

        let registry = client_of(one).await;
        registry.get_schemas([8]).await;
        assert!(
            matches!(registry.get_schemas([7]).await.get(7), CachedSchema::Unreadable(_)),
            "served before"
        );

        let registry = client_of(refuse).await;
        let all = registry.get_schemas([7, 8]).await;
        assert!(
            [7, 8].iter().all(|id| matches!(all.get(*id), CachedSchema::Pending(_))),
            "every id"
        );
    }
    let ill = |path: &str| match path.ends_with("/7") {
        true => refusal(StatusCode::INTERNAL_SERVER_ERROR, 50001),
        false => schema(path),
    };
    let known = client_of(ill).await.get_schemas([7, 8]).await;
    assert!(
        matches!(known.get(7), CachedSchema::Pending(_)),
        "an error of the registry's may pass"
    );
}

#[tokio::test]
async fn a_registry_that_hangs_blocks_no_cached_id() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let silent = client(settings(&url, None));
    let began = Instant::now();
    assert!(matches!(silent.get_schemas([7]).await.get(7), CachedSchema::Pending(_)));
    assert!(began.elapsed() < REQUEST_TIMEOUT, "{:?}", began.elapsed());
    let (began, later) = (Instant::now(), silent.get_schemas([7, 8]).await);
    assert!([7, 8].iter().all(|id| matches!(later.get(*id), CachedSchema::Pending(_))));
    assert!(began.elapsed() < LOOKUP_TIMEOUT, "it is known to hang: {:?}", began.elapsed());
}

#[tokio::test]
async fn a_schema_that_refers_to_others_is_read_with_them() {
    let rail =
        r#"{"type": "enum", "name": "Rail", "symbols": ["card", "unknown"], "default": "unknown"}"#;
    let way = r#"{"type": "record", "name": "Way", "fields": [{"name": "rail", "type": "Rail"}]}"#;
    let paid = r#"{"type": "record", "name": "Paid", "fields": [
        {"name": "way", "type": "Way"}, {"name": "other", "type": ["null", "Rail"], "default": null}]}"#;
    let reference = |name: &str| json!([{ "name": name, "subject": name, "version": 1 }]);
    let answers = move |path: &str| {
        let body = match path {
            "/schemas/ids/7" => json!({ "schema": paid, "references": [
                { "name": "Way", "subject": "Way", "version": 1 },
                { "name": "Rail", "subject": "Rail", "version": 1 } ] }),
            "/subjects/Way/versions/1" => {
                json!({ "id": 2, "schema": way, "references": reference("Rail") })
            }
            _ => json!({ "id": 3, "schema": rail }),
        };
        (StatusCode::OK, body)
    };
    let known = client_of(answers).await.get_schemas([7]).await;
    let CachedSchema::Resolved(codec) = known.get(7) else { panic!("it was not read") };
    let read = codec.decode_json(&[0, 2, 0]).unwrap();
    assert_eq!(read, json!({ "way": { "rail": "card" }, "other": "card" }));
}

#[tokio::test]
async fn a_refused_lookup_does_not_mean_that_the_registry_is_unavailable() {
    let id_of = async |status, error_code: u32| {
        let registry = client_of(move |_| refusal(status, error_code)).await;
        registry.get_id("till.counted", b"", "{}").await.unwrap_err()
    };
    assert!(matches!(id_of(StatusCode::NOT_FOUND, 40401).await, SchemaIdError::Unregistered(_)));
    assert!(matches!(id_of(StatusCode::FORBIDDEN, 40301).await, SchemaIdError::Refused(_)));
    assert!(matches!(
        id_of(StatusCode::UNPROCESSABLE_ENTITY, 422).await,
        SchemaIdError::Refused(_)
    ));
    let broken = id_of(StatusCode::INTERNAL_SERVER_ERROR, 50001).await;
    assert!(matches!(broken, SchemaIdError::Unavailable(_)), "{broken}");
}

#[tokio::test]
async fn a_new_token_is_used_if_the_registry_accepts_it() {
    let accepted = Arc::new(RwLock::new("Bearer first"));
    let present = accepted.clone();
    let url = serve(move |request| match request.headers().get(header::AUTHORIZATION) {
        Some(token) if token == *present.read() => match request.uri().path() {
            "/subjects" => (StatusCode::OK, json!([])),
            path => schema(path),
        },
        _ => refusal(StatusCode::UNAUTHORIZED, 401),
    })
    .await;
    let registry = client(settings(&url, Some("first")));
    let second = settings(&url, Some("second"));
    registry.renew(second.clone()).await.unwrap_err();
    let is_read = async |id: u32| {
        matches!(registry.get_schemas([id]).await.get(id), CachedSchema::Resolved(_))
    };
    assert!(is_read(7).await, "the first token stays in use");
    *accepted.write() = "Bearer second";
    assert!(!is_read(8).await);
    registry.renew(second).await.unwrap();
    assert!(is_read(9).await);
}
