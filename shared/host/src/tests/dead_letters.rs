//! Dead letters on the admin port: listing, reading, and replaying each of them once.

use axum::Router;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::admin_client::{
    admin_of, as_operator, get, outcome, post, refused, send_request, state_counts,
};
use super::*;
use crate::db::erasure::{self, ErasureRequest};

/// A registry that does not serve its one schema until `true` is sent.
async fn late_registry(id: u32, schema: String) -> (String, watch::Sender<bool>) {
    let (registered, is_registered) = watch::channel(false);
    let answer = async move |uri: axum::http::Uri| match *is_registered.borrow() {
        true if uri.path().ends_with(&format!("/schemas/ids/{id}")) => {
            (StatusCode::OK, axum::Json(json!({ "schema": schema })))
        }
        _ => (StatusCode::NOT_FOUND, axum::Json(json!({ "error_code": 40403, "message": "" }))),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, Router::new().fallback(answer)).await });
    (url, registered)
}

#[tokio::test]
#[allow(clippy::too_many_lines)]
async fn dead_letters_are_listed_page_by_page_and_each_is_shown_in_full() {
    let fixture = Fixture::<40>::create_with_contracts().await;
    let mut events = vec![counted("a", 0); 5];
    events.push(Counted { note: Some("half".into()), ..counted("b", 0) });
    let batch = fixture.to_records(&events).await;
    fixture.handle(batch.clone()).await;
    let admin = fixture.admin_router();

    let first = get(&admin, "/dead-letters?limit=4").await;
    assert_eq!(
        (first["waiting"].as_i64(), first["dead_letters"].as_array().unwrap().len()),
        (Some(6), 4)
    );
    let next = first["next"].as_i64().unwrap();
    let second = get(&admin, &format!("/dead-letters?limit=4&after={next}")).await;
    let rest = second["dead_letters"].as_array().unwrap();
    assert_eq!((rest.len(), &second["next"]), (2, &Value::Null));
    assert_eq!(rest[1]["kind"], "unprocessable");
    assert!(rest[1].get("record").is_none(), "a list is short");
    let topic = names(40).counted.name;
    for (query, found) in [
        (format!("topic={topic}&state=all"), 6),
        ("topic=another".into(), 0),
        ("state=replayed".into(), 0),
    ] {
        let page = get(&admin, &format!("/dead-letters?{query}")).await;
        assert_eq!(page["dead_letters"].as_array().unwrap().len(), found, "{query}");
    }
    let stored_at = rest[1]["received_at"].as_str().unwrap();
    let stored_at = stored_at.parse::<DateTime<Utc>>().unwrap() + TimeDelta::seconds(1);
    let later = stored_at.to_rfc3339_opts(SecondsFormat::Micros, true);
    for (query, found) in [
        ("kind=unprocessable", 6),
        ("kind=undecodable", 0),
        ("key=b", 1),
        ("key=B", 0),
        ("reason=Nothing%20was", 6),
        ("reason=%25", 0),
        (&*format!("until={later}"), 6),
        (&*format!("since={later}"), 0),
        ("key=b&kind=unprocessable&state=all", 1),
        ("key=b&state=replayed", 0),
    ] {
        let page = get(&admin, &format!("/dead-letters?{query}&limit=1")).await;
        let waiting = if query.contains("replayed") { 1 } else { found };
        let shown = page["dead_letters"].as_array().unwrap().len();
        assert_eq!((&page["waiting"], shown), (&json!(waiting), found.min(1)), "{query}");
    }
    for wrong in [
        "state=dead",
        "kind=poison",
        "since=noon",
        "limit=0",
        "limit=1001",
        "after=x",
        "colour=red",
    ] {
        let (status, problem) =
            send_request(&admin, "GET", &format!("/dead-letters?{wrong}"), Value::Null).await;
        assert!((400..500).contains(&status), "{wrong}: {problem}");
    }

    let dead_letter_id = rest[1]["dead_letter_id"].as_i64().unwrap();
    let letter = get(&admin, &format!("/dead-letters/{dead_letter_id}")).await;
    assert_eq!(letter["event"], json!({ "till": "b", "amount": 0, "note": "half" }));
    assert!(letter["read_with"].as_str().unwrap().contains("of the registry"), "{letter}");
    assert_eq!(letter["reason"], "nothing was counted");
    assert_eq!(
        (&letter["key"], &letter["partition"], &letter["offset"]),
        (&json!("b"), &json!(0), &json!(5))
    );
    assert_eq!(letter["headers"]["ce_id"], letter["event_id"]);
    assert!(letter["cluster"].as_str().is_some_and(|cluster| !cluster.is_empty()));
    let bytes: Vec<u8> = sqlx::query_scalar("select decode($1, 'base64')")
        .bind(letter["record"].as_str().unwrap())
        .fetch_one(&fixture.db)
        .await
        .unwrap();
    assert_eq!(Some(&*bytes), batch[5].payload());
    assert_eq!(letter["discard_impact"]["consequence"], "Till b stays at 0.");
    assert_eq!(letter["discard_impact"]["remedy"]["path"], "/tills/b");
    for nowhere in ["/dead-letters/0", "/dead-letters/7000", "/dead-letters/x"] {
        assert_eq!(send_request(&admin, "GET", nowhere, Value::Null).await.0, 404, "{nowhere}");
    }
    let inbox_rows = "select count(*) from chassis.inbox";
    assert_eq!(fixture.query_number(inbox_rows).await, 0, "reading changes nothing");
}

#[tokio::test]
async fn a_dead_letter_is_replayed_once_its_cause_is_fixed_and_never_twice() {
    let fixture = Fixture::<41>::create_with_contracts().await;
    fixture.reject_till("a").await;
    let batch = fixture.to_records(&[counted("b", 1), counted("a", 7), counted("b", 1)]).await;
    fixture.handle(batch.clone()).await;
    assert_eq!(fixture.dead_letter_counts().await, state_counts([("waiting", 1)]));
    let admin = fixture.admin_router();

    let detail =
        refused(&admin, "/dead-letters/1/replay", Value::Null, (409, "still-unprocessable")).await;
    assert!(detail.contains("spoilt"), "{detail}");
    assert_eq!(fixture.dead_letter_counts().await, state_counts([("waiting", 1)]));
    assert_eq!(fixture.count("chassis.inbox").await, 2, "the rejected event is not in the inbox");

    fixture.accept_tills().await;
    // Two operators at once, on two instances: the second replay waits for the first.
    let other = fixture.admin_router();
    // This loads the schema, so that the replay does not request it while the test waits.
    get(&other, "/dead-letters/1").await;
    let held = fixture.lock_tally("a").await;
    let once = outcome(&admin, "/dead-letters/1/replay", Value::Null);
    let again = outcome(&other, "/dead-letters/1/replay", Value::Null);
    let both_wait = async {
        fixture.wait_for_blocked(2).await;
        held.rollback().await.unwrap();
    };
    let (once, again, ()) = tokio::join!(once, again, both_wait);
    let mut outcomes = [once, again];
    outcomes.sort();
    assert_eq!(outcomes, ["done_before", "replayed"]);
    assert_eq!(outcome(&admin, "/dead-letters/1/replay", Value::Null).await, "done_before");
    assert_eq!(fixture.tallies().await["a"], (1, 7));
    assert_eq!(fixture.count("chassis.outbox").await, 3, "its answer is published once");
    let attempts = "select attempts::bigint from chassis.inbox order by attempts desc limit 1";
    assert_eq!(fixture.query_number(attempts).await, 5, "whole, halved, alone, stored, replayed");

    // The whole topic is delivered again.
    fixture.handle(batch).await;
    assert_eq!(fixture.tallies().await["a"], (1, 7));
    assert_eq!(fixture.dead_letter_counts().await, state_counts([("replayed", 1)]));
    refused(&admin, "/dead-letters/1/discard", json!({ "reason": "too late" }), (409, "replayed"))
        .await;
}

#[tokio::test]
async fn a_dead_letter_whose_event_was_handled_at_another_offset_is_settled_without_an_effect() {
    let fixture = Fixture::<42>::create_with_contracts().await;
    fixture.reject_till("a").await;
    let mut batch = fixture.to_records(&[counted("a", 7), counted("a", 150)]).await;
    fixture.handle(batch.clone()).await;
    fixture.accept_tills().await;
    // The same events, published again, at offsets of their own.
    for (message, offset) in batch.iter_mut().zip(10..) {
        *message = message.clone().set_offset(offset);
    }
    fixture.handle(batch).await;
    assert_eq!(fixture.tallies().await["a"], (2, 157));
    let admin = fixture.admin_router();
    assert_eq!(outcome(&admin, "/dead-letters/1/replay", Value::Null).await, "handled_before");
    // A discard has no cost any more.
    let because = json!({ "reason": "it came again" });
    assert_eq!(outcome(&admin, "/dead-letters/2/discard", because).await, "handled_before");
    assert_eq!(fixture.tallies().await["a"], (2, 157));
    assert_eq!(fixture.count("chassis.write_offs").await, 0);
    assert_eq!(fixture.dead_letter_counts().await, state_counts([("replayed", 2)]));
}

#[tokio::test]
async fn bytes_that_decode_once_their_schema_is_registered_are_replayed_and_others_are_not() {
    let fixture = Fixture::<46>::create_with_contracts().await;
    let topic = names(46).counted;
    let newer = COUNTED_SCHEMA
        .replace("]}", r#", {"name": "by", "type": ["null", "string"], "default": null}]}"#);
    let body = [&Outgoing::from_event(&counted::<46>("a", 7)).body[..], b"\x02\x06who"].concat();
    let (good, unknown) = (frame(46, &body), frame(47, &body));
    let message = |record: Vec<u8>, offset| {
        let headers = Some(event_id_header(&Uuid::now_v7().to_string()));
        let topic = topic.name.to_string();
        OwnedMessage::new(Some(record), None, topic, Timestamp::NotAvailable, 0, offset, headers)
    };
    let mut cut = good.clone();
    cut.pop();
    let (url, registered) = late_registry(46, newer).await;
    let late = fixture.with_config(|config| config.schema_registry.schema_registry_url = url);
    let stepped = late.stepped_consumer();
    let admin = as_operator(admin_of(&stepped.consumer));
    let cut = message(cut, 1);
    let again = [cut.clone().set_offset(3), cut.clone().set_offset(4)];
    // One at a time, because deferred events become dead letters in any order.
    for message in [message(good, 0), cut, message(unknown, 2)].into_iter().chain(again) {
        stepped.handle(vec![message]).await;
    }
    assert_eq!(fixture.dead_letter_counts().await, state_counts([("waiting", 5)]));
    for dead_letter_id in 1..=5 {
        let path = format!("/dead-letters/{dead_letter_id}/replay");
        refused(&admin, &path, Value::Null, (409, "still-unprocessable")).await;
    }
    let letter = get(&admin, "/dead-letters/1").await;
    assert!(letter["unreadable"].as_str().unwrap().contains("unknown"), "{letter}");
    assert_eq!(letter["event"], Value::Null, "the older schema does not fit it");
    let consequence = letter["discard_impact"]["consequence"].as_str().unwrap();
    assert!(consequence.contains("cannot be decoded"), "{letter}");

    registered.send_replace(true);
    let (status, counts) = post(&admin, "/dead-letters/replay", Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(counts, json!({ "replayed": 1, "still_unprocessable": 4, "left": 0, "next": null }));
    assert_eq!(fixture.tallies().await["a"], (1, 7));
    let letter = get(&admin, "/dead-letters/1").await;
    assert_eq!(letter["event"]["by"], "who", "by the schema that wrote it: {letter}");
    // Its content is unknown, so the operator has to agree to a write-off.
    let discard = "/dead-letters/2/discard";
    refused(&admin, discard, json!({ "reason": "cut" }), (409, "write-off-needed")).await;
    // Two operators at once, each with a different dead letter of one event.
    let agreed = json!({ "reason": "cut", "write_off": true });
    let (one, other) = tokio::join!(
        outcome(&admin, discard, agreed.clone()),
        outcome(&admin, "/dead-letters/4/discard", agreed)
    );
    assert_eq!(BTreeSet::from([&*one, &*other]), BTreeSet::from(["discarded", "discarded_before"]));
    let written_off =
        "select sum(amount)::bigint from chassis.write_offs where unit = 'unread events'";
    assert_eq!(fixture.query_number(written_off).await, 1);
    let because = json!({ "reason": "cut" });
    assert_eq!(outcome(&admin, "/dead-letters/5/discard", because).await, "discarded_before");
    assert_eq!(fixture.query_number(written_off).await, 1, "it was one event");
}

#[tokio::test]
async fn a_bulk_replay_goes_oldest_first_and_unprocessable_events_do_not_block_it() {
    let fixture = Fixture::<47>::create_with_contracts().await;
    fixture.reject_till("a").await;
    let events: Vec<_> =
        (1..=30).map(|nth| counted("a", if nth % 3 == 0 { 0 } else { nth })).collect();
    for some in fixture.to_records(&events).await.chunks(15) {
        fixture.handle(some.to_vec()).await;
    }
    fixture.accept_tills().await;
    let admin = fixture.admin_router();
    let (status, counts) =
        post(&admin, "/dead-letters/replay", json!({ "topic": "another" })).await;
    assert_eq!((status, &counts["replayed"]), (200, &json!(0)));
    for (filter, unreached) in [("kind", "undecodable"), ("key", "b"), ("reason", "another")] {
        let (_, counts) = post(&admin, "/dead-letters/replay", json!({ filter: unreached })).await;
        let none = json!({ "replayed": 0, "still_unprocessable": 0, "left": 0, "next": null });
        assert_eq!(counts, none, "{filter}");
    }
    let request = json!({ "topic": names(47).counted.name, "after": 6 });
    let (_, counts) = post(&admin, "/dead-letters/replay", request).await;
    assert_eq!(
        counts,
        json!({ "replayed": 16, "still_unprocessable": 8, "left": 0, "next": null })
    );
    let (_, counts) = post(&admin, "/dead-letters/replay", Value::Null).await;
    assert_eq!(
        counts,
        json!({ "replayed": 4, "still_unprocessable": 10, "left": 0, "next": null })
    );
    assert_eq!(fixture.tallies().await["a"].0, 20);
    assert_eq!(post(&admin, "/dead-letters/replay", json!({ "tpoic": "x" })).await.0, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_stopped_by_a_transient_failure_is_a_503_and_changes_nothing() {
    let fixture = Fixture::<48>::create_with_contracts().await;
    fixture.reject_till("a").await;
    fixture.handle(fixture.to_records(&[counted("a", 7)]).await).await;
    fixture.accept_tills().await;
    let admin = fixture.admin_router();
    // Another session holds the row for longer than a statement waits.
    let mut other = fixture.superuser_connection().await;
    sqlx::raw_sql("begin; select * from chassis.dead_letters for update")
        .execute(&mut other)
        .await
        .unwrap();
    for path in ["/dead-letters/1/replay", "/dead-letters/replay"] {
        refused(&admin, path, Value::Null, (503, "unavailable")).await;
    }
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    let (away, proxy) = fixture.with_registry_proxy().await;
    proxy.set_mode(ProxyMode::Refuse);
    refused(&away.admin_router(), "/dead-letters/1/replay", Value::Null, (503, "unavailable"))
        .await;
    let read = get(&away.admin_router(), "/dead-letters/1").await;
    assert_eq!(read["event"]["amount"], 7, "by this service's own schema: {read}");
    assert!(
        read["unreadable"].as_str().is_some_and(|because| because.contains("registry")),
        "{read}"
    );
    assert_eq!(fixture.dead_letter_counts().await, state_counts([("waiting", 1)]));
    assert_eq!(outcome(&admin, "/dead-letters/1/replay", Value::Null).await, "replayed");
}

/// The hash of a dead letter is that of its record in Kafka, and no longer that of the bytes that are kept.
#[tokio::test]
async fn a_dead_letter_is_replayed_after_an_id_in_its_bytes_was_replaced() {
    let fixture = Fixture::<50>::create_with_contracts().await;
    let (person_id, replacement_id) = (Uuid::now_v7(), Uuid::now_v7());
    let (till, replacement) = (person_id.to_string(), replacement_id.to_string());
    fixture.reject_till(&till).await;
    let batch = fixture.to_records(&[counted(&till, 7)]).await;
    fixture.handle(batch.clone()).await;
    let request = ErasureRequest { person_id, replacement_id, actor: None };
    erasure::erase(fixture.service, &fixture.config, &request).await.unwrap();
    erasure::end(fixture.service, &fixture.config, &request).await.unwrap();

    let admin = fixture.admin_router();
    let letter = get(&admin, "/dead-letters/1").await;
    assert_eq!(
        (&letter["event"]["till"], &letter["key"]),
        (&json!(replacement), &json!(replacement))
    );
    fixture.accept_tills().await;
    assert_eq!(outcome(&admin, "/dead-letters/1/replay", Value::Null).await, "replayed");
    assert_eq!(fixture.tallies().await, BTreeMap::from([(replacement, (1, 7))]));
    // The record is read again, and its dead letter is recognised.
    fixture.handle(batch).await;
    assert_eq!(fixture.dead_letter_counts().await, state_counts([("replayed", 1)]));
}
