//! A client that waits for an order, by `Prefer: wait` or by its stream of events, learns of its end.

use std::time::Instant;

use tokio::time::timeout;

use super::*;

/// No answer may be held back for longer than this.
async fn with_timeout<T>(answer: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), answer).await.expect("an answer")
}

/// The API of another replica, which the commits of this fixture do not wake.
fn other_replica(fixture: &TestService<Orders>) -> TestClient {
    let watch = fixture.remote_change_feed(&CancellationToken::new());
    TestClient::of_api(api::router(fixture.db.clone(), fixture.commands.clone(), watch, NEW_ORDERS))
}

async fn text(response: axum::response::Response) -> String {
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn an_order_that_ends_on_one_replica_wakes_waiting_clients_on_every_replica() {
    let (fixture, client) = fixture_with_items().await;
    for waiting in [other_replica(&fixture), client.clone()] {
        let order_id = post_order(&client).await;
        let (path, began) = (format!("/orders/{order_id}"), Instant::now());
        let wait = with_timeout(waiting.get_with_headers(&path, &[("prefer", "wait=10")]));
        let end = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            deliver(&fixture, &[verified(order_id)], saga::answered).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            deliver(&fixture, &[reserved(order_id)], saga::answered).await;
        };
        let (answer, ()) = tokio::join!(wait, end);
        assert!((400..5_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        assert_eq!(answer.headers()["preference-applied"], "wait=10");
        let order: Value = serde_json::from_str(&text(answer).await).unwrap();
        assert_eq!(order, client.get(&path).await.body);
        assert_eq!(order["status"], "confirmed");

        let began = Instant::now();
        let answer = waiting.get_with_headers(&path, &[("prefer", "wait=10")]).await;
        assert!(answer.status() == 200 && began.elapsed() < Duration::from_secs(5), "it is over");
    }
}

#[tokio::test]
async fn a_wait_times_out_with_the_order_as_it_is() {
    let (_fixture, client) = fixture_with_items().await;
    let path = format!("/orders/{}", post_order(&client).await);
    let began = Instant::now();
    let answer = with_timeout(client.get_with_headers(&path, &[("prefer", "wait=1")])).await;
    assert!((1_000..5_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["preference-applied"]),
        (200, &"wait=1".parse().unwrap())
    );
    assert!(text(answer).await.contains(r#""status":"pending""#));
    for unread in [&[][..], &[("prefer", "wait=soon")]] {
        let began = Instant::now();
        let answer = client.get_with_headers(&path, unread).await;
        assert!(answer.status() == 200 && !answer.headers().contains_key("preference-applied"));
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    let nowhere =
        client.get_with_headers(&format!("/orders/{ORDER}"), &[("prefer", "wait=10")]).await;
    assert_eq!(nowhere.status(), 404);
}

#[tokio::test]
async fn an_event_stream_ends_with_its_order_and_resumes_after_a_break() {
    let (fixture, client) = fixture_with_items().await;
    let order_id = post_order(&client).await;
    let path = format!("/orders/{order_id}/events");
    let stream = other_replica(&fixture).get_with_headers(&path, &[]).await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let end = async {
        deliver(&fixture, &[verified(order_id)], saga::answered).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        deliver(&fixture, &[rejected(order_id)], saga::answered).await;
        let refunded = refunded(order_id, Some(TOTAL_CENTS));
        deliver(&fixture, &[refunded], saga::answered).await;
    };
    let (stream_text, ()) = tokio::join!(with_timeout(text(stream)), end);
    let history = client.get(&format!("/orders/{order_id}/history")).await.body;
    let history = history["history"].as_array().unwrap();
    let events: Vec<_> = history.iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    let whole = ["orders.created", "payments.verified", "stock.rejected", "orders.cancelled"];
    assert_eq!(events, [&whole[..], &["payments.refunded"]].concat());

    let ids: Vec<_> = history.iter().map(|entry| entry["event_id"].as_str().unwrap()).collect();
    for (nth, event) in stream_text.split_terminator("\n\n").enumerate() {
        let line = |name| event.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert_eq!((line("event: "), line("id: ")), (events[nth], ids[nth]));
        assert_eq!(&serde_json::from_str::<Value>(line("data: ")).unwrap(), &history[nth]);
    }
    assert_eq!(stream_text.matches("\n\n").count(), 4, "it ends with the order: {stream_text}");

    let rest =
        with_timeout(text(client.get_with_headers(&path, &[("last-event-id", ids[1])]).await))
            .await;
    assert!(rest.starts_with(&format!("id: {}\n", ids[2])), "{rest}");
    assert_eq!(rest.matches("\n\n").count(), 2);
    for seen in &ids[3..] {
        assert_eq!(client.get_with_headers(&path, &[("last-event-id", seen)]).await.status(), 204);
    }
    assert_eq!(client.get(&format!("/orders/{ORDER}/events")).await.status, 404);
}

/// As after a failover to a copy that did not get them.
#[tokio::test]
async fn reset_sequences_neither_cut_an_event_stream_nor_reorder_a_history() {
    let (fixture, client) = fixture_with_items().await;
    let order_id = post_order(&client).await;
    deliver(&fixture, &[verified(order_id)], saga::answered).await;
    let stream =
        other_replica(&fixture).get_with_headers(&format!("/orders/{order_id}/events"), &[]).await;
    let end = async {
        let back = "select setval(oid::regclass, 1, false) from pg_class where relkind = 'S'";
        sqlx::query(back).fetch_all(&fixture.db).await.unwrap();
        // The sequence of the outbox draws positions that are taken, and passes them.
        sqlx::query("delete from chassis.outbox").execute(&fixture.db).await.unwrap();
        deliver(&fixture, &[reserved(order_id)], saga::answered).await;
    };
    let (stream_text, ()) = tokio::join!(with_timeout(text(stream)), end);
    assert!(stream_text.contains("event: orders.confirmed"), "{stream_text}");
    let history = client.get(&format!("/orders/{order_id}/history")).await.body;
    let history = history["history"].as_array().unwrap();
    let events: Vec<_> = history.iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    let whole = ["orders.created", "payments.verified", "stock.reserved", "orders.confirmed"];
    assert_eq!(events, whole);
}
