//! The rules of shop, then its edges on a real database.

use chassis::{HandlerContext, Republish};
use chrono::DateTime;
use contracts::checks;
use events::{CONTRACTS, RequestAccepted, RequestCreated, TOPICS};
use serde_json::json;
use testing::{TestClient, TestService};
use uuid::Uuid;

use crate::requests::{Request, Requests};
use crate::{api, saga};

const REQUEST: Uuid = Uuid::from_u128(7);

fn context() -> HandlerContext {
    let now = DateTime::from_timestamp(1_795_132_800, 0).unwrap();
    HandlerContext { now, event_id: Uuid::from_u128(1), causation_id: Some(Uuid::from_u128(2)) }
}

fn created(request_id: Uuid, subject: &str) -> RequestCreated {
    RequestCreated { request_id, subject: subject.to_string(), occurred_at: context().now }
}

#[test]
fn a_request_is_accepted_once() {
    let mut requests = Requests::default();
    let accepted = saga::accept_request(&created(REQUEST, "a desk"), &mut requests, context());
    let expected = RequestAccepted { request_id: REQUEST, occurred_at: context().now };
    assert_eq!(accepted, Ok(Some(expected)));
    let again = saga::accept_request(&created(REQUEST, "a desk"), &mut requests, context());
    assert_eq!(again, Ok(None));
}

#[test]
fn a_request_without_a_subject_is_unprocessable() {
    let mut requests = Requests::default();
    for subject in ["", &"x".repeat(201)] {
        saga::accept_request(&created(REQUEST, subject), &mut requests, context()).unwrap_err();
    }
    assert_eq!(requests.request(REQUEST), None);
}

#[tokio::test]
async fn a_request_is_stored_once_readable_and_published() {
    let fixture = TestService::<Requests>::new("shop", sqlx::migrate!()).await;
    let client = TestClient(api::router(fixture.db.clone()));
    let (event_id, request) = (Uuid::now_v7(), created(REQUEST, "a desk"));
    for event_id in [event_id, event_id, Uuid::now_v7()] {
        fixture.deliver(&[(event_id, &request)], saga::accept_request).await.unwrap();
    }
    let published = fixture.published::<RequestAccepted>().await;
    assert_eq!(published.iter().map(|event| event.request_id).collect::<Vec<_>>(), [REQUEST]);

    let shown = client.get(&format!("/requests/{REQUEST}")).await;
    assert_eq!((shown.status, &shown.body["subject"]), (200, &json!("a desk")), "{shown:?}");
    assert_eq!(client.get(&format!("/requests/{}", Uuid::nil())).await.status, 404);

    let before = fixture.outbox_records().await;
    let (_, again) = fixture.republished([Request::source()], json!({})).await;
    assert_eq!(again, before);
    fixture.assert_append_only(&["requests"]).await;
}

#[test]
fn structs_and_schemas_agree_and_every_version_is_recorded() {
    checks::assert_matches_schema(&created(REQUEST, "a desk"));
    checks::assert_matches_schema(&RequestAccepted {
        request_id: REQUEST,
        occurred_at: context().now,
    });
    let schemas = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas");
    checks::assert_schema_files(&TOPICS, schemas);
    checks::assert_documented(&TOPICS);
    checks::assert_versions(schemas);
    checks::assert_inbox_outlasts_retention(&TOPICS);
    checks::assert_asyncapi_file(&CONTRACTS, concat!(env!("CARGO_MANIFEST_DIR"), "/asyncapi.json"));
}

#[test]
fn the_committed_openapi_document_matches_the_code() {
    testing::compare_openapi("shop", env!("CARGO_MANIFEST_DIR"), &api::routes());
}
