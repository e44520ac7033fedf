//! What stock published can be republished.

use chassis::{Republish, RepublishSource};
use events::stock::StockItem;

use super::*;
use crate::stock::{Item, Reservation};

fn sources() -> [RepublishSource; 2] {
    [Item::source(), Reservation::source()]
}

#[tokio::test]
async fn published_events_are_republished_unchanged() {
    let (fixture, client) = fixture().await;
    let id = |nth: u128| Uuid::from_u128(nth);
    add_stock(&client, "pen", 5).await;
    add_stock(&client, "ink", 1).await;
    let orders = [
        created(id(1), &[("pen", 2), ("ink", 1)]),
        created(id(2), &[("pen", 1)]),
        created(id(3), &[("pen", 9)]),
        created(id(4), &[("nib", 1)]),
    ];
    for order in &orders {
        fixture.deliver(&[(Uuid::now_v7(), order)], saga::reserve_stock).await.unwrap();
    }
    for order in [cancelled(id(2)), cancelled(id(3)), cancelled(id(9))] {
        fixture.deliver(&[(Uuid::now_v7(), &order)], saga::release_stock).await.unwrap();
    }
    let first = fixture.outbox_records().await;
    client.put("/items/pen", json!({"name": "Pen", "price_cents": 160})).await;
    let mut published = fixture.outbox_records().await;
    // Of state, only the newest record counts.
    published.retain(|event| *event != first[0]);
    let (answer, again) = fixture.republished(sources(), json!({})).await;
    assert_eq!((answer.status, &answer.body["republished"]), (200, &json!(published.len())));
    assert_eq!((&answer.body["rows"], &answer.body["next"]), (&json!(7), &Value::Null));
    for key in published.iter().map(|event| &event.key) {
        let of_key = |events: &[testing::OutboxRecord]| -> Vec<_> {
            events.iter().filter(|event| event.key == *key).cloned().collect()
        };
        assert_eq!(of_key(&again), of_key(&published), "in the order in which it was published");
    }
    assert_eq!(again.len(), published.len());

    let (_, pen) = fixture.republished(sources(), json!({"key": "pen"})).await;
    assert_eq!(pen, published[published.len() - 1..]);
    let (_, undone) = fixture.republished(sources(), json!({"key": id(2)})).await;
    let topics: Vec<_> = undone.iter().map(|event| event.topic.as_str()).collect();
    assert_eq!(topics, ["stock.reserved", "stock.released"]);
    let (nothing, none) = fixture.republished(sources(), json!({"key": "nib"})).await;
    assert_eq!((nothing.status, none.len()), (404, 0));
    let last = published.iter().map(|event| event.occurred_at).max().unwrap();
    let (_, newest) = fixture.republished(sources(), json!({"since": last})).await;
    assert_eq!(newest, pen, "only what was decided at that time or later");
    for after in ["pen", "prices/pen"] {
        let (refused, none) = fixture.republished(sources(), json!({"after": after})).await;
        assert_eq!((refused.status, none.len()), (422, 0));
    }
}

/// A topic of state keeps the last record of a key. While an item changes all the time, a republished record may
/// repeat a version, but never one that is older than a version that was published before.
#[tokio::test]
async fn an_item_republished_while_it_changes_never_goes_back() {
    let (fixture, client) = fixture().await;
    let changing = async {
        for price in 1..=150 {
            let request = json!({"name": "Pen", "price_cents": price});
            assert!(client.put("/items/pen", request).await.status < 300);
        }
    };
    let announcing = async {
        for nth in 0..150 {
            let request = if nth % 2 == 0 { json!({}) } else { json!({"key": "pen"}) };
            fixture.republished(sources(), request).await;
        }
    };
    tokio::join!(changing, announcing);
    let published = fixture.published::<StockItem>().await;
    let versions = Vec::from_iter(published.iter().map(|item| item.version));
    assert!(versions.len() > 200, "{}", versions.len());
    assert!(versions.is_sorted(), "{versions:?}");
}

#[tokio::test]
async fn every_page_is_republished_until_the_end() {
    let (fixture, _client) = fixture().await;
    let orders: Vec<_> =
        (1..=1_200).map(|nth| created(Uuid::from_u128(nth), &[("pen", 1)])).collect();
    let orders: Vec<_> = orders.iter().map(|order| (Uuid::now_v7(), order)).collect();
    fixture.deliver(&orders, saga::reserve_stock).await.unwrap();
    let (answer, again) = fixture.republished(sources(), json!({})).await;
    assert_eq!((answer.body["republished"].as_u64(), again.len()), (Some(1_200), 1_200));
    let after = format!("reservations/{}", Uuid::from_u128(1_000));
    let (rest, again) = fixture.republished(sources(), json!({"after": after})).await;
    assert_eq!((rest.body["rows"].as_u64(), again.len()), (Some(200), 200));
}

#[tokio::test]
async fn while_the_outbox_is_full_nothing_is_republished_and_the_response_says_where_to_continue() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 5).await;
    let fill =
        "insert into chassis.outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
                select gen_random_uuid(), 'stock.items', 'pen', '', '', now()
                from generate_series(1, 10001)";
    sqlx::query(fill).execute(&fixture.db).await.unwrap();
    let (answer, again) = fixture.republished(sources(), json!({})).await;
    assert_eq!((answer.status, &answer.body["republished"]), (200, &json!(0)));
    assert_eq!((again.len(), &answer.body["next"]), (0, &json!("items/")));
    sqlx::query("delete from chassis.outbox").execute(&fixture.db).await.unwrap();
    let (_, again) = fixture.republished(sources(), json!({"after": "items/"})).await;
    assert_eq!(again.len(), 1);
}
