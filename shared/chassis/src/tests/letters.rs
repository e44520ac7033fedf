//! What operators do about dead letters: read and replay, each once.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceExt;

use super::*;

/// An operator's request, and the answer.
pub async fn ask(desk: &Router, method: &str, path: &str, body: Value) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path);
    let (request, body) = match body {
        Value::Null => (request, Body::empty()),
        body => (request.header("content-type", "application/json"), body.to_string().into()),
    };
    let answer = desk.clone().oneshot(request.body(body).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let read = to_bytes(answer.into_body(), 1024 * 1024).await.unwrap();
    (status, serde_json::from_slice(&read).unwrap_or(Value::Null))
}

pub async fn get(desk: &Router, path: &str) -> Value {
    let (status, answer) = ask(desk, "GET", path, Value::Null).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

pub async fn post(desk: &Router, path: &str, body: Value) -> (u16, Value) {
    ask(desk, "POST", path, body).await
}

/// The outcome of a request that has to succeed.
pub async fn outcome(desk: &Router, path: &str, body: Value) -> String {
    let (status, answer) = post(desk, path, body).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer["outcome"].as_str().unwrap().to_string()
}

/// The kind of the problem that a request is refused with, and its detail.
pub async fn refusal(desk: &Router, path: &str, body: Value) -> (u16, String, String) {
    let (status, answer) = post(desk, path, body).await;
    let kind = answer["type"].as_str().unwrap_or_else(|| panic!("{path}: {answer}"));
    let kind = kind.trim_start_matches("/problems/").to_string();
    (status, kind, answer["detail"].as_str().unwrap().to_string())
}

impl<const TEST: u32> Till<TEST> {
    pub fn desk(&self) -> Router {
        self.consumer().operator()
    }

    /// Until further notice, the database refuses to count into this till: a bad migration.
    pub async fn refuse(&self, till: &str) {
        let refusing =
            format!("alter table tallies add constraint spoilt check (till <> '{till}')");
        self.force(&refusing).await;
    }

    pub async fn relent(&self) {
        self.force("alter table tallies drop constraint spoilt").await;
    }

    /// How many letters are in each state.
    pub async fn states(&self) -> BTreeMap<String, i64> {
        let states: Vec<(String, i64)> =
            sqlx::query_as("select state, count(*) from dead_letters group by state")
                .fetch_all(&self.db)
                .await
                .unwrap();
        states.into_iter().collect()
    }
}

/// Speaks for a registry that does not know its one schema until it is told to.
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

pub fn states<const N: usize>(states: [(&str, i64); N]) -> BTreeMap<String, i64> {
    states.map(|(state, count)| (state.to_string(), count)).into()
}

#[tokio::test]
async fn letters_are_listed_page_by_page_and_each_is_read_whole() {
    let till = Till::<40>::open_with_contracts().await;
    let mut events = vec![counted("a", 0); 5];
    events.push(Counted { note: Some("half".into()), ..counted("b", 0) });
    let batch = till.delivered(&events).await;
    till.handle(batch.clone()).await;
    let desk = till.desk();

    let first = get(&desk, "/dead-letters?limit=4").await;
    assert_eq!(
        (first["waiting"].as_i64(), first["dead_letters"].as_array().unwrap().len()),
        (Some(6), 4)
    );
    let next = first["next"].as_i64().unwrap();
    let second = get(&desk, &format!("/dead-letters?limit=4&after={next}")).await;
    let rest = second["dead_letters"].as_array().unwrap();
    assert_eq!((rest.len(), &second["next"]), (2, &Value::Null));
    assert_eq!(rest[1]["kind"], "impossible");
    assert!(rest[1].get("record").is_none(), "a list is short");
    let topic = names(40).counted.name;
    for (query, found) in [
        (format!("topic={topic}&state=all"), 6),
        ("topic=another".into(), 0),
        ("state=replayed".into(), 0),
    ] {
        let page = get(&desk, &format!("/dead-letters?{query}")).await;
        assert_eq!(page["dead_letters"].as_array().unwrap().len(), found, "{query}");
    }
    for wrong in ["state=dead", "limit=0", "limit=1001", "after=x", "colour=red"] {
        let (status, problem) =
            ask(&desk, "GET", &format!("/dead-letters?{wrong}"), Value::Null).await;
        assert!((400..500).contains(&status), "{wrong}: {problem}");
    }

    let letter_id = rest[1]["letter_id"].as_i64().unwrap();
    let letter = get(&desk, &format!("/dead-letters/{letter_id}")).await;
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
        .fetch_one(&till.db)
        .await
        .unwrap();
    assert_eq!(Some(&*bytes), batch[5].payload());
    assert_eq!(letter["if_discarded"]["consequence"], "Till b stays at 0.");
    assert_eq!(letter["if_discarded"]["offer"]["path"], "/tills/b");
    for nowhere in ["/dead-letters/0", "/dead-letters/7000", "/dead-letters/x"] {
        assert_eq!(ask(&desk, "GET", nowhere, Value::Null).await.0, 404, "{nowhere}");
    }
    let looked = "select count(*) from inbox";
    assert_eq!(till.number(looked).await, 0, "to look changes nothing");
}

#[tokio::test]
async fn once_its_cause_is_gone_a_letter_is_replayed_and_never_twice() {
    let till = Till::<41>::open_with_contracts().await;
    till.refuse("a").await;
    let batch = till.delivered(&[counted("b", 1), counted("a", 7), counted("b", 1)]).await;
    till.handle(batch.clone()).await;
    assert_eq!(till.states().await, states([("waiting", 1)]));
    let desk = till.desk();

    let (status, kind, detail) = refusal(&desk, "/dead-letters/1/replay", Value::Null).await;
    assert_eq!((status, kind.as_str()), (409, "still-dead"));
    assert!(detail.contains("spoilt"), "{detail}");
    assert_eq!(till.states().await, states([("waiting", 1)]));
    assert_eq!(till.number("select count(*) from inbox").await, 2, "it is not entered");

    till.relent().await;
    // Two operators at once, on two instances: while one's replay is under way the other's waits.
    let other = till.desk();
    // It asks for the schema now, and not while it is waited for.
    get(&other, "/dead-letters/1").await;
    let held = till.lock("a").await;
    let once = outcome(&desk, "/dead-letters/1/replay", Value::Null);
    let again = outcome(&other, "/dead-letters/1/replay", Value::Null);
    let both_wait = async {
        till.blocked(2).await;
        held.rollback().await.unwrap();
    };
    let (once, again, ()) = tokio::join!(once, again, both_wait);
    let mut outcomes = [once, again];
    outcomes.sort();
    assert_eq!(outcomes, ["done_before", "replayed"]);
    assert_eq!(outcome(&desk, "/dead-letters/1/replay", Value::Null).await, "done_before");
    assert_eq!(till.tallies().await["a"], (1, 7));
    assert_eq!(
        till.number("select count(*) from outbox").await,
        3,
        "what it says is published once"
    );
    let attempts = "select attempts::bigint from inbox order by attempts desc limit 1";
    assert_eq!(till.number(attempts).await, 5, "whole, halved, alone, set aside, replayed");

    // The whole topic once more.
    till.handle(batch).await;
    assert_eq!(till.tallies().await["a"], (1, 7));
    assert_eq!(till.states().await, states([("replayed", 1)]));
    let (status, kind, _) =
        refusal(&desk, "/dead-letters/1/discard", json!({ "because": "too late" })).await;
    assert_eq!((status, kind.as_str()), (409, "replayed"));
}

#[tokio::test]
async fn a_letter_whose_event_was_handled_at_another_place_is_closed_without_a_second_effect() {
    let till = Till::<42>::open_with_contracts().await;
    till.refuse("a").await;
    let mut batch = till.delivered(&[counted("a", 7), counted("a", 150)]).await;
    till.handle(batch.clone()).await;
    till.relent().await;
    // The same events, published again, at offsets of their own.
    for (message, offset) in batch.iter_mut().zip(10..) {
        *message = OwnedMessage::new(
            message.payload().map(<[u8]>::to_vec),
            message.key().map(<[u8]>::to_vec),
            message.topic().to_string(),
            Timestamp::NotAvailable,
            0,
            offset,
            message.headers().cloned(),
        );
    }
    till.handle(batch).await;
    assert_eq!(till.tallies().await["a"], (2, 157));
    let desk = till.desk();
    assert_eq!(outcome(&desk, "/dead-letters/1/replay", Value::Null).await, "handled_before");
    // To discard it costs nothing any more.
    let because = json!({ "because": "it came again" });
    assert_eq!(outcome(&desk, "/dead-letters/2/discard", because).await, "handled_before");
    assert_eq!(till.tallies().await["a"], (2, 157));
    assert_eq!(till.number("select count(*) from write_offs").await, 0);
    assert_eq!(till.states().await, states([("replayed", 2)]));
}

#[tokio::test]
async fn bytes_that_decode_once_their_schema_is_registered_are_replayed_and_others_never() {
    let till = Till::<46>::open_with_contracts().await;
    let topic = names(46).counted;
    let newer =
        COUNTED.replace("]}", r#", {"name": "by", "type": ["null", "string"], "default": null}]}"#);
    let body = [&Outgoing::of(&counted::<46>("a", 7)).body[..], b"\x02\x06who"].concat();
    let (good, unknown) = (frame(46, &body), frame(47, &body));
    let message = |record: Vec<u8>, offset| {
        let headers = Some(event_id_header(&Uuid::now_v7().to_string()));
        let topic = topic.name.to_string();
        OwnedMessage::new(Some(record), None, topic, Timestamp::NotAvailable, 0, offset, headers)
    };
    let mut cut = good.clone();
    cut.pop();
    let (url, registered) = late_registry(46, newer).await;
    let late = till.with(|config| config.schema_registry.schema_registry_url = url);
    let consumer = late.consumer();
    let desk = consumer.operator();
    let client = till.client();
    let cut = message(cut, 1);
    let again = [cut.clone().set_offset(3), cut.clone().set_offset(4)];
    // One after the other: deferred events are set aside in any order.
    for message in [message(good, 0), cut, message(unknown, 2)].into_iter().chain(again) {
        handle_all(&consumer, &client, vec![message]).await;
    }
    assert_eq!(till.states().await, states([("waiting", 5)]));
    for letter_id in 1..=5 {
        let path = format!("/dead-letters/{letter_id}/replay");
        let (status, kind, detail) = refusal(&desk, &path, Value::Null).await;
        assert_eq!((status, kind.as_str()), (409, "still-dead"), "{detail}");
    }
    let letter = get(&desk, "/dead-letters/1").await;
    assert!(letter["unreadable"].as_str().unwrap().contains("unknown"), "{letter}");
    assert_eq!(letter["event"], Value::Null, "the older schema does not fit it");
    let consequence = letter["if_discarded"]["consequence"].as_str().unwrap();
    assert!(consequence.contains("Nobody can read what it said"), "{letter}");

    registered.send_replace(true);
    let (status, counts) = post(&desk, "/dead-letters/replay", Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(counts, json!({ "replayed": 1, "still_dead": 4, "left": 0, "next": null }));
    assert_eq!(till.tallies().await["a"], (1, 7));
    let letter = get(&desk, "/dead-letters/1").await;
    assert_eq!(letter["event"]["by"], "who", "by the schema that wrote it: {letter}");
    // Nobody knows what it was about, so somebody has to say that it may be given up all the same.
    let discard = "/dead-letters/2/discard";
    let (status, kind, _) = refusal(&desk, discard, json!({ "because": "cut" })).await;
    assert_eq!((status, kind.as_str()), (409, "write-off-needed"));
    // Two operators at once, each with another letter of one event.
    let agreed = json!({ "because": "cut", "write_off": true });
    let (one, other) = tokio::join!(
        outcome(&desk, discard, agreed.clone()),
        outcome(&desk, "/dead-letters/4/discard", agreed)
    );
    assert_eq!(BTreeSet::from([&*one, &*other]), BTreeSet::from(["discarded", "discarded_before"]));
    let written_off = "select sum(amount)::bigint from write_offs where unit = 'unread events'";
    assert_eq!(till.number(written_off).await, 1);
    let because = json!({ "because": "cut" });
    assert_eq!(outcome(&desk, "/dead-letters/5/discard", because).await, "discarded_before");
    assert_eq!(till.number(written_off).await, 1, "it was one event");
}

#[tokio::test]
async fn all_that_wait_are_replayed_oldest_first_and_the_dead_among_them_hold_up_nobody() {
    let till = Till::<47>::open_with_contracts().await;
    till.refuse("a").await;
    let events: Vec<_> =
        (1..=30).map(|nth| counted("a", if nth % 3 == 0 { 0 } else { nth })).collect();
    for some in till.delivered(&events).await.chunks(15) {
        till.handle(some.to_vec()).await;
    }
    till.relent().await;
    let desk = till.desk();
    let (status, counts) = post(&desk, "/dead-letters/replay", json!({ "topic": "another" })).await;
    assert_eq!((status, &counts["replayed"]), (200, &json!(0)));
    let wish = json!({ "topic": names(47).counted.name, "after": 6 });
    let (_, counts) = post(&desk, "/dead-letters/replay", wish).await;
    assert_eq!(counts, json!({ "replayed": 16, "still_dead": 8, "left": 0, "next": null }));
    let (_, counts) = post(&desk, "/dead-letters/replay", Value::Null).await;
    assert_eq!(counts, json!({ "replayed": 4, "still_dead": 10, "left": 0, "next": null }));
    assert_eq!(till.tallies().await["a"].0, 20);
    assert_eq!(post(&desk, "/dead-letters/replay", json!({ "tpoic": "x" })).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_something_passing_stops_changes_nothing_and_says_so() {
    let till = Till::<48>::open_with_contracts().await;
    till.refuse("a").await;
    till.handle(till.delivered(&[counted("a", 7)]).await).await;
    till.relent().await;
    let desk = till.desk();
    // Somebody holds the row for longer than a statement waits.
    let mut other = till.session().await;
    sqlx::raw_sql("begin; select * from dead_letters for update")
        .execute(&mut other)
        .await
        .unwrap();
    for path in ["/dead-letters/1/replay", "/dead-letters/replay"] {
        let (status, kind, detail) = refusal(&desk, path, Value::Null).await;
        assert_eq!((status, kind.as_str()), (503, "unavailable"), "{detail}");
    }
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    let (away, proxy) = till.with_registry_proxy().await;
    proxy.set(Way::Shut);
    let (status, ..) = refusal(&away.desk(), "/dead-letters/1/replay", Value::Null).await;
    assert_eq!(status, 503);
    let read = get(&away.desk(), "/dead-letters/1").await;
    assert_eq!(read["event"]["amount"], 7, "by this service's own schema: {read}");
    assert!(
        read["unreadable"].as_str().is_some_and(|because| because.contains("registry")),
        "{read}"
    );
    assert_eq!(till.states().await, states([("waiting", 1)]));
    assert_eq!(outcome(&desk, "/dead-letters/1/replay", Value::Null).await, "replayed");
}
