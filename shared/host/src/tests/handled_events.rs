//! What the admin port answers about events: which were handled, and which of them are dead letters.

use serde_json::{Value, json};

use super::admin_client::{admin_of, as_operator, get, outcome, send_request, with_scope};
use super::*;

/// The id of the event in each record of a batch.
fn event_ids(batch: &[OwnedMessage]) -> Vec<String> {
    batch.iter().map(|record| header(record, "ce_id").unwrap().to_string()).collect()
}

#[tokio::test]
async fn an_event_is_shown_with_its_attempts_and_with_its_dead_letters() {
    let fixture = Fixture::<610>::create_with_contracts().await;
    fixture.reject_till("a").await;
    let batch = fixture.to_records(&[counted("b", 1), counted("a", 7), counted("b", 0)]).await;
    let ids = event_ids(&batch);
    fixture.handle(batch).await;
    let admin = fixture.admin_router();
    let unknown = Uuid::now_v7();
    let path = format!(
        "/handled-events?event_id={}&event_id={}&event_id={}&event_id={unknown}&event_id={unknown}",
        ids[0], ids[1], ids[2]
    );
    let answer = get(&admin, &path).await;
    assert_eq!(answer["topics"], json!([names(610).counted.name]));
    let events = answer["events"].as_array().unwrap();
    let shown: Vec<&str> = events.iter().map(|event| event["event_id"].as_str().unwrap()).collect();
    assert_eq!(
        shown,
        [&*ids[0], &ids[1], &ids[2], &unknown.to_string()],
        "each once, as requested"
    );
    assert!(events[0]["received_at"].is_string() && events[0]["attempts"].as_i64() > Some(0));
    assert_eq!(events[0]["dead_letters"], json!([]));
    let letter = |event: &Value| {
        assert_eq!((&event["received_at"], &event["attempts"]), (&Value::Null, &Value::Null));
        let letters = event["dead_letters"].as_array().unwrap();
        assert_eq!(letters.len(), 1, "{event}");
        letters[0].clone()
    };
    let (refused, unprocessable) = (letter(&events[1]), letter(&events[2]));
    assert_eq!(
        (&refused["state"], &refused["kind"]),
        (&json!("waiting"), &json!("handler_failed"))
    );
    assert!(refused["reason"].as_str().unwrap().contains("spoilt"), "{refused}");
    assert_eq!(unprocessable["reason"], "nothing was counted");
    assert_eq!(events[3]["dead_letters"], json!([]));

    fixture.accept_tills().await;
    let id = refused["dead_letter_id"].as_i64().unwrap();
    outcome(&admin, &format!("/dead-letters/{id}/replay"), Value::Null).await;
    let answer = get(&admin, &format!("/handled-events?event_id={}", ids[1])).await;
    let event = &answer["events"][0];
    assert!(event["received_at"].is_string(), "{event}");
    assert_eq!(event["dead_letters"][0]["state"], "replayed");
}

#[tokio::test]
async fn a_request_about_handled_events_names_1_to_50_ids_and_nothing_else() {
    let fixture = Fixture::<611>::create().await;
    let admin = as_operator(admin_of(&fixture.consumer()));
    let ids = |count: usize| {
        let ids = (0..count).map(|_| format!("event_id={}", Uuid::now_v7()));
        ids.collect::<Vec<_>>().join("&")
    };
    assert_eq!(
        get(&admin, &format!("/handled-events?{}", ids(50))).await["events"]
            .as_array()
            .unwrap()
            .len(),
        50
    );
    for (query, field) in [
        (String::new(), "event_id"),
        (ids(51), "event_id"),
        ("event_id=7".into(), "event_id"),
        (format!("{}&topic=a", ids(1)), "topic"),
    ] {
        let path = format!("/handled-events?{query}");
        let (status, problem) = send_request(&admin, "GET", &path, Value::Null).await;
        assert_eq!((status, &problem["field"]), (422, &json!(field)), "{query}");
    }
    let customer = with_scope(admin_of(&fixture.consumer()), "support:read");
    let path = format!("/handled-events?{}", ids(1));
    assert_eq!(send_request(&customer, "GET", &path, Value::Null).await.0, 403);
}

/// Every delivery of an event under another offset can be a dead letter of its own.
#[tokio::test]
async fn the_dead_letters_of_one_event_are_bounded_and_found_by_an_index() {
    let fixture = Fixture::<612>::create().await;
    let statement = "insert into chassis.dead_letters
                 (cluster, topic, partition, \"offset\", hash, event_id, headers, kind, reason)
             select 'c', 't', 0, nth, '', lpad((nth % 100)::text, 32, '0')::uuid, '{}', 'undecodable', 'r' || nth
             from generate_series(1, 20000) as nth;
             analyze chassis.dead_letters";
    fixture.execute_as_superuser(statement).await;
    let admin = as_operator(admin_of(&fixture.consumer()));
    let path = format!("/handled-events?event_id={}", Uuid::from_u128(7));
    let letters = get(&admin, &path).await["events"][0]["dead_letters"].clone();
    let reasons: Vec<&str> = letters
        .as_array()
        .unwrap()
        .iter()
        .map(|letter| letter["reason"].as_str().unwrap())
        .collect();
    assert_eq!(reasons.len(), 10);
    assert_eq!((reasons[0], reasons[9]), ("r19907", "r19007"), "the newest first");
    let plan: Vec<String> = sqlx::query_scalar(
        "explain select dead_letter_id from chassis.dead_letters
         where event_id = '00000000-0000-0000-0000-000000000007' order by dead_letter_id desc limit 10",
    )
    .fetch_all(&fixture.db)
    .await
    .unwrap();
    assert!(plan.join("").contains("dead_letters_by_event"), "{plan:#?}");
}
