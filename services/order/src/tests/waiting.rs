//! Who waits for an order, by `Prefer: wait` or by its stream of events, learns of its end.

use std::time::Instant;

use tokio::time::timeout;

use super::*;

/// An answer that is held back longer than any may be is none.
async fn in_time<T>(answer: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), answer).await.expect("an answer")
}

/// As another replica answers, which hears nothing of what this bench commits.
fn elsewhere(bench: &Bench<Orders>) -> Client {
    let watch = bench.watch_elsewhere(&CancellationToken::new());
    Client(api::router(bench.db.clone(), bench.commands.clone(), watch))
}

async fn text(response: axum::response::Response) -> String {
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn an_order_that_ends_on_one_replica_wakes_who_waits_for_it_on_any() {
    let (bench, client) = stocked_bench().await;
    for waiting in [elsewhere(&bench), client.clone()] {
        let order_id = placed(&client).await;
        let (place, began) = (format!("/orders/{order_id}"), Instant::now());
        let wait = in_time(waiting.ask(&place, &[("prefer", "wait=10")]));
        let end = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            bring(&bench, &[verified(order_id)], saga::payment_verified).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            bring(&bench, &[reserved(order_id)], saga::stock_reserved).await;
        };
        let (answer, ()) = tokio::join!(wait, end);
        assert!((400..5_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        assert_eq!(answer.headers()["preference-applied"], "wait=10");
        let order: Value = serde_json::from_str(&text(answer).await).unwrap();
        assert_eq!(order, client.get(&place).await.body);
        assert_eq!(order["status"], "confirmed");

        let began = Instant::now();
        let answer = waiting.ask(&place, &[("prefer", "wait=10")]).await;
        assert!(answer.status() == 200 && began.elapsed() < Duration::from_secs(5), "it is over");
    }
}

#[tokio::test]
async fn a_wait_ends_in_time_with_the_order_as_it_is() {
    let (_bench, client) = stocked_bench().await;
    let place = format!("/orders/{}", placed(&client).await);
    let began = Instant::now();
    let answer = in_time(client.ask(&place, &[("prefer", "wait=1")])).await;
    assert!((1_000..5_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["preference-applied"]),
        (200, &"wait=1".parse().unwrap())
    );
    assert!(text(answer).await.contains(r#""status":"pending""#));
    for unread in [&[][..], &[("prefer", "wait=soon")]] {
        let began = Instant::now();
        let answer = client.ask(&place, unread).await;
        assert!(answer.status() == 200 && !answer.headers().contains_key("preference-applied"));
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    let nowhere = client.ask(&format!("/orders/{ORDER}"), &[("prefer", "wait=10")]).await;
    assert_eq!(nowhere.status(), 404);
}

#[tokio::test]
async fn an_order_is_followed_to_its_end_and_a_stream_that_broke_is_resumed() {
    let (bench, client) = stocked_bench().await;
    let order_id = placed(&client).await;
    let place = format!("/orders/{order_id}/events");
    let stream = elsewhere(&bench).ask(&place, &[]).await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let end = async {
        bring(&bench, &[verified(order_id)], saga::payment_verified).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        bring(&bench, &[rejected(order_id)], saga::stock_rejected).await;
        let refunded = refunded(order_id, Some(TOTAL_CENTS));
        bring(&bench, &[refunded], saga::payment_refunded).await;
    };
    let (told, ()) = tokio::join!(in_time(text(stream)), end);
    let history = client.get(&format!("/orders/{order_id}/history")).await.body;
    let history = history["history"].as_array().unwrap();
    let events: Vec<_> = history.iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    let whole = ["orders.created", "payments.verified", "stock.rejected", "orders.cancelled"];
    assert_eq!(events, [&whole[..], &["payments.refunded"]].concat());

    let ids: Vec<_> = history.iter().map(|entry| entry["event_id"].as_str().unwrap()).collect();
    for (nth, event) in told.split_terminator("\n\n").enumerate() {
        let line = |name| event.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert_eq!((line("event: "), line("id: ")), (events[nth], ids[nth]));
        assert_eq!(&serde_json::from_str::<Value>(line("data: ")).unwrap(), &history[nth]);
    }
    assert_eq!(told.matches("\n\n").count(), 4, "it ends with the order: {told}");

    let rest = in_time(text(client.ask(&place, &[("last-event-id", ids[1])]).await)).await;
    assert!(rest.starts_with(&format!("id: {}\n", ids[2])), "{rest}");
    assert_eq!(rest.matches("\n\n").count(), 2);
    for seen in &ids[3..] {
        assert_eq!(client.ask(&place, &[("last-event-id", seen)]).await.status(), 204);
    }
    assert_eq!(client.get(&format!("/orders/{ORDER}/events")).await.status, 404);
}

/// As after a failover to a copy that did not get them.
#[tokio::test]
async fn sequences_that_are_set_back_neither_end_what_a_follower_hears_nor_turn_a_history_round() {
    let (bench, client) = stocked_bench().await;
    let order_id = placed(&client).await;
    bring(&bench, &[verified(order_id)], saga::payment_verified).await;
    let stream = elsewhere(&bench).ask(&format!("/orders/{order_id}/events"), &[]).await;
    let end = async {
        let back = "select setval(oid::regclass, 1, false) from pg_class where relkind = 'S'";
        sqlx::query(back).fetch_all(&bench.db).await.unwrap();
        // Positions of the outbox that are taken are drawn again, and passed.
        sqlx::query("delete from outbox").execute(&bench.db).await.unwrap();
        bring(&bench, &[reserved(order_id)], saga::stock_reserved).await;
    };
    let (told, ()) = tokio::join!(in_time(text(stream)), end);
    assert!(told.contains("event: orders.confirmed"), "{told}");
    let history = client.get(&format!("/orders/{order_id}/history")).await.body;
    let history = history["history"].as_array().unwrap();
    let events: Vec<_> = history.iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    let whole = ["orders.created", "payments.verified", "stock.reserved", "orders.confirmed"];
    assert_eq!(events, whole);
}
