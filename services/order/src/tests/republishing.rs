//! What the order service published can be republished.

use chassis::Republish;

use super::deadline::expire;
use super::*;

#[tokio::test]
async fn published_events_are_republished_unchanged() {
    let (fixture, client) = fixture_with_items().await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(post_order(&client).await);
    }
    deliver(&fixture, &[verified(ids[0])], saga::answered).await;
    deliver(&fixture, &[reserved(ids[0])], saga::answered).await;
    deliver(&fixture, &[declined(ids[1])], saga::answered).await;
    deliver(&fixture, &[rejected(ids[2])], saga::answered).await;
    client.post(&format!("/orders/{}/cancel", ids[3]), None, json!({})).await;
    expire(&fixture, ids[4]).await;
    let mut published = fixture.outbox_records().await;
    let (answer, again) = fixture.republished([orders()], json!({})).await;
    assert_eq!((answer.status, &answer.body["republished"]), (200, &json!(11)));
    let (_, of_one) = fixture.republished([orders()], json!({"key": ids[4]})).await;
    assert_eq!(of_one.len(), 2, "created and cancelled");
    let (unknown, _) = fixture.republished([orders()], json!({"key": Uuid::nil()})).await;
    assert_eq!(unknown.status, 404);
    let acts = "select act, request::jsonb from chassis.operator_acts order by act_id";
    let acts: Vec<(String, Value)> = sqlx::query_as(acts).fetch_all(&fixture.db).await.unwrap();
    let act =
        |key: Value| ("republish".to_owned(), json!({"key": key, "since": null, "after": null}));
    assert_eq!(acts, [act(Value::Null), act(json!(ids[4]))], "each is on record");
    published.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(again, published, "by order, and of each in the order in which it was published");
}

#[tokio::test]
async fn published_events_are_listed_by_their_key_and_tell_whether_they_wait() {
    let (fixture, client) = fixture_with_items().await;
    let (cancelled, other) = (post_order(&client).await, post_order(&client).await);
    client.post(&format!("/orders/{cancelled}/cancel"), None, json!({})).await;
    // As if Kafka had acknowledged the first event.
    let acknowledged = "delete from chassis.outbox where key = $1 and topic = 'orders.created'";
    sqlx::query(acknowledged).bind(cancelled.to_string()).execute(&fixture.db).await.unwrap();
    let history = client.get(&format!("/orders/{cancelled}/history")).await.body;
    let list = async |key: &str| fixture.published_events([orders()], key).await;
    let event = |nth: usize, in_outbox: Value| {
        let entry = &history["history"][nth];
        json!({"event_id": entry["event_id"], "topic": entry["event"],
               "occurred_at": entry["occurred_at"], "in_outbox": in_outbox})
    };
    let listed = list(&cancelled.to_string()).await;
    assert_eq!(listed.body["events"], json!([event(0, json!(false)), event(1, json!(true))]));
    for (key, events) in [(other.to_string(), 1), (ORDER.to_string(), 0), ("cap".into(), 0)] {
        let listed = list(&key).await.body["events"].as_array().unwrap().len();
        assert_eq!(listed, events, "{key}");
    }
    assert_eq!(fixture.published_events([orders()], "a&state=b").await.status, 422);

    // The outbox is searched up to a bound. Beyond it, only an event that was found is known to wait.
    let many =
        "insert into chassis.outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
                select gen_random_uuid(), 'orders.created', 'k', '', '', now()
                from generate_series(1, 100000)";
    sqlx::query(many).execute(&fixture.db).await.unwrap();
    let listed = list(&cancelled.to_string()).await;
    assert_eq!(listed.body["events"], json!([event(0, Value::Null), event(1, json!(true))]));
}

/// A client's transaction holds the row of the order meanwhile.
#[tokio::test]
async fn published_events_are_listed_without_a_lock() {
    let (fixture, client) = fixture_with_items().await;
    let order_id = post_order(&client).await;
    let mut held = fixture.db.begin().await.unwrap();
    let lock = sqlx::query("select from orders where order_id = $1 for update").bind(order_id);
    lock.execute(&mut *held).await.unwrap();
    let listed = fixture.published_events([orders()], &order_id.to_string()).await;
    assert_eq!(listed.body["events"][0]["topic"], "orders.created", "{listed:?}");
}

fn orders() -> chassis::RepublishSource {
    Order::source()
}
