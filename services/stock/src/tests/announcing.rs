//! What stock published, said once more.

use chassis::announce;
use events::stock::StockItem;

use super::*;
use crate::stock::{Item, Reservation};

fn sources() -> [announce::Source; 2] {
    [announce::of::<Item>(), announce::of::<Reservation>()]
}

#[tokio::test]
async fn what_was_published_is_announced_again_word_for_word() {
    let (bench, client) = bench().await;
    let id = |nth: u128| Uuid::from_u128(nth);
    stocked(&client, "pen", 5).await;
    stocked(&client, "ink", 1).await;
    let orders = [
        created(id(1), &[("pen", 2), ("ink", 1)]),
        created(id(2), &[("pen", 1)]),
        created(id(3), &[("pen", 9)]),
        created(id(4), &[("nib", 1)]),
    ];
    for order in &orders {
        bench.bring(&[(Uuid::now_v7(), order)], saga::reserve_stock).await.unwrap();
    }
    for order in [cancelled(id(2)), cancelled(id(3)), cancelled(id(9))] {
        bench.bring(&[(Uuid::now_v7(), &order)], saga::release_stock).await.unwrap();
    }
    let first = bench.said().await;
    client.put("/items/pen", json!({"name": "Pen", "price_cents": 160})).await;
    let mut said = bench.said().await;
    // Of state, the newest is all there is to say.
    said.retain(|event| *event != first[0]);
    let (answer, again) = bench.announced(sources(), json!({})).await;
    assert_eq!((answer.status, &answer.body["announced"]), (200, &json!(said.len())));
    assert_eq!((&answer.body["rows"], &answer.body["next"]), (&json!(7), &Value::Null));
    for key in said.iter().map(|(_, _, key, ..)| key) {
        let of_key = |events: &[chassis::testing::Said]| -> Vec<_> {
            events.iter().filter(|event| event.2 == *key).cloned().collect()
        };
        assert_eq!(of_key(&again), of_key(&said), "in the order in which it was said");
    }
    assert_eq!(again.len(), said.len());

    let (_, pen) = bench.announced(sources(), json!({"key": "pen"})).await;
    assert_eq!(pen, said[said.len() - 1..]);
    let (_, undone) = bench.announced(sources(), json!({"key": id(2)})).await;
    let topics: Vec<_> = undone.iter().map(|(_, topic, ..)| topic.as_str()).collect();
    assert_eq!(topics, ["stock.reserved", "stock.released"]);
    let (nothing, none) = bench.announced(sources(), json!({"key": "nib"})).await;
    assert_eq!((nothing.status, none.len()), (404, 0));
    let last = said.iter().map(|event| event.5).max().unwrap();
    let (_, newest) = bench.announced(sources(), json!({"since": last})).await;
    assert_eq!(newest, pen, "only what was decided at that time or later");
    for after in ["pen", "prices/pen"] {
        let (refused, none) = bench.announced(sources(), json!({"after": after})).await;
        assert_eq!((refused.status, none.len()), (422, 0));
    }
}

/// A topic of state keeps the last record of a key. While an item changes all the time, what is
/// announced again may repeat a version, and never step back behind one that went out before.
#[tokio::test]
async fn an_item_announced_while_it_changes_is_never_followed_by_what_it_was() {
    let (bench, client) = bench().await;
    let changing = async {
        for price in 1..=150 {
            let wish = json!({"name": "Pen", "price_cents": price});
            assert!(client.put("/items/pen", wish).await.status < 300);
        }
    };
    let announcing = async {
        for nth in 0..150 {
            let wish = if nth % 2 == 0 { json!({}) } else { json!({"key": "pen"}) };
            bench.announced(sources(), wish).await;
        }
    };
    tokio::join!(changing, announcing);
    let topic = &events::stock::ITEMS;
    let versions: Vec<i64> = bench
        .said()
        .await
        .iter()
        .map(|said| topic.codec().decode::<StockItem>(topic.codec(), &said.4).unwrap().version)
        .collect();
    assert!(versions.len() > 200, "{}", versions.len());
    assert!(versions.is_sorted(), "{versions:?}");
}

#[tokio::test]
async fn a_page_is_followed_by_the_next_until_everything_is_announced() {
    let (bench, _client) = bench().await;
    let orders: Vec<_> =
        (1..=1_200).map(|nth| created(Uuid::from_u128(nth), &[("pen", 1)])).collect();
    let orders: Vec<_> = orders.iter().map(|order| (Uuid::now_v7(), order)).collect();
    bench.bring(&orders, saga::reserve_stock).await.unwrap();
    let (answer, again) = bench.announced(sources(), json!({})).await;
    assert_eq!((answer.body["announced"].as_u64(), again.len()), (Some(1_200), 1_200));
    let after = format!("reservations/{}", Uuid::from_u128(1_000));
    let (rest, again) = bench.announced(sources(), json!({"after": after})).await;
    assert_eq!((rest.body["rows"].as_u64(), again.len()), (Some(200), 200));
}

#[tokio::test]
async fn while_the_outbox_is_full_nothing_is_announced_and_the_answer_says_where_to_go_on() {
    let (bench, client) = bench().await;
    stocked(&client, "pen", 5).await;
    let fill = "insert into outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
                select gen_random_uuid(), 'stock.items', 'pen', '', '', now()
                from generate_series(1, 10001)";
    sqlx::query(fill).execute(&bench.db).await.unwrap();
    let (answer, again) = bench.announced(sources(), json!({})).await;
    assert_eq!((answer.status, &answer.body["announced"]), (200, &json!(0)));
    assert_eq!((again.len(), &answer.body["next"]), (0, &json!("items/")));
    sqlx::query("delete from outbox").execute(&bench.db).await.unwrap();
    let (_, again) = bench.announced(sources(), json!({"after": "items/"})).await;
    assert_eq!(again.len(), 1);
}
