//! An order as it was, and its row rebuilt from its history.

use super::*;
use crate::order::HistoryEntry;
use crate::rebuild_order;

#[tokio::test]
async fn an_order_is_shown_as_it_was_at_each_moment() {
    let (fixture, client) = fixture_with_items().await;
    let order_id = post_order(&client).await;
    let path = format!("/orders/{order_id}");
    let mut seen = vec![client.get(&path).await.body];
    deliver(&fixture, &[verified(order_id)], saga::answered).await;
    seen.push(client.get(&path).await.body);
    deliver(&fixture, &[reserved(order_id)], saga::answered).await;
    seen.push(client.get(&path).await.body);
    let history = client.get(&format!("{path}/history")).await.body;
    let times = history["history"].as_array().unwrap().iter().map(|entry| &entry["recorded_at"]);
    let mut times: Vec<&str> = times.map(|time| time.as_str().unwrap()).collect();
    // The answer of stock and the confirmation are of one transaction.
    times.dedup();
    assert_eq!(times.len(), seen.len());
    for (time, order) in times.into_iter().zip(seen) {
        assert_eq!(client.get(&format!("{path}?at={time}")).await.body, order, "at {time}");
    }
    assert_eq!(client.get(&format!("{path}?at=2020-01-01T00:00:00Z")).await.status, 404);
    assert_eq!(client.get(&format!("{path}?at=yesterday")).await.status, 422);
}

#[tokio::test]
async fn a_damaged_or_lost_row_is_rebuilt_from_its_history() {
    let (fixture, [confirmed, pending]) = fixture_with_orders().await;
    let orders = || sqlx::query_as("select * from orders order by order_id").fetch_all(&fixture.db);
    let listed =
        || sqlx::query_scalar("select order_id from pending_orders").fetch_all(&fixture.db);
    let before: Vec<Order> = orders().await.unwrap();
    let admin = TestClient(rebuild_order::router(fixture.db.clone()).into());
    let rebuild = async |order_id: Uuid| {
        let answer = admin.post(&format!("/orders/{order_id}/rebuild"), None, json!({})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["repaired"].clone()
    };
    assert_eq!(rebuild(confirmed).await, false);
    // As an older version recorded it.
    let older = "update history set detail = (detail::jsonb - 'also_asks')::json";
    sqlx::query(older).execute(&fixture.owner).await.unwrap();
    assert_eq!(rebuild(confirmed).await, false);
    for damage in [
        "update orders set status = 'pending', ended_at = null, ended_event_id = null, stock = 'waiting', total_cents = 1",
        "update orders set payment = 'void', lines = '[]', currency = 'USD', last_position = 0",
        "delete from orders",
        "delete from pending_orders",
        "insert into pending_orders select created_at, order_id from orders on conflict do nothing",
    ] {
        sqlx::query(damage).execute(&fixture.owner).await.expect(damage);
        let is_of_orders = !damage.contains("pending_orders");
        assert_eq!(rebuild(confirmed).await, is_of_orders, "{damage}");
        rebuild(pending).await;
        assert_eq!(orders().await.unwrap(), before, "{damage}");
        let listed: Vec<Uuid> = listed().await.unwrap();
        assert_eq!(listed, [pending], "{damage}");
    }
    let unknown = admin.post(&format!("/orders/{ORDER}/rebuild"), None, json!({})).await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test]
async fn a_broken_history_rebuilds_nothing_and_names_the_event() {
    let (fixture, client) = fixture_with_items().await;
    let order_id = post_order(&client).await;
    deliver(&fixture, &[declined(order_id)], saga::answered).await;
    let broken = "update history set event = 'payments.verified' where event = 'payments.declined'";
    sqlx::query(broken).execute(&fixture.owner).await.unwrap();
    let admin = TestClient(rebuild_order::router(fixture.db.clone()).into());
    let answer = admin.post(&format!("/orders/{order_id}/rebuild"), None, json!({})).await;
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(
        answer.body["detail"].as_str().unwrap().starts_with("payments.verified "),
        "{answer:?}"
    );
}

/// The entries that rows in memory add.
pub fn entries(rows: &Orders) -> Vec<HistoryEntry> {
    let entry = |entry: &crate::order::NewHistoryEntry| HistoryEntry {
        order_id: entry.order_id,
        position: entry.position,
        event: entry.event.to_string(),
        event_id: entry.event_id,
        detail: serde_json::from_str(&entry.detail).unwrap(),
        occurred_at: entry.occurred_at,
        recorded_at: entry.recorded_at,
    };
    rows.history().iter().map(entry).collect()
}
