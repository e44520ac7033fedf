//! What the order service published can be republished.

use chassis::Republish;

use super::deadline::{make_older, sweep};
use super::*;

#[tokio::test]
async fn published_events_are_republished_unchanged() {
    let (fixture, client) = fixture_with_items().await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(post_order(&client).await);
    }
    deliver(&fixture, &[verified(ids[0])], saga::payment_verified).await;
    deliver(&fixture, &[reserved(ids[0])], saga::stock_reserved).await;
    deliver(&fixture, &[declined(ids[1])], saga::payment_declined).await;
    deliver(&fixture, &[rejected(ids[2])], saga::stock_rejected).await;
    client.post(&format!("/orders/{}/cancel", ids[3]), None, json!({})).await;
    make_older(&fixture, ids[4]).await;
    // As if its record had been published at another time, which does not happen.
    sqlx::query("delete from chassis.outbox where key = $1")
        .bind(ids[4].to_string())
        .execute(&fixture.db)
        .await
        .unwrap();
    let (_, created) = fixture.republished([orders()], json!({"key": ids[4]})).await;
    assert_eq!(created.len(), 1);
    sweep(&fixture, Some(Duration::ZERO)).await;
    let mut published = fixture.outbox_records().await;
    let (answer, again) = fixture.republished([orders()], json!({})).await;
    assert_eq!((answer.status, &answer.body["republished"]), (200, &json!(11)));
    published.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(again, published, "by order, and of each in the order in which it was published");
}

fn orders() -> chassis::RepublishSource {
    Order::source()
}
