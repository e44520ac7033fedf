//! The deadline cancels orders that wait for too long.

use chrono::{DateTime, TimeDelta, Utc};

use super::*;
use crate::deadline;
use crate::order::Deadline;

const DEADLINE: Duration = Duration::from_secs(30);

/// The deadline of an order has passed.
pub async fn expire(fixture: &TestService<Orders>, order_id: Uuid) -> Vec<Uuid> {
    let timer = Deadline { order_id };
    fixture.fire(&[(Uuid::now_v7(), &timer)], saga::overdue).await.unwrap()
}

/// The timers of these orders, each due by the database's time so long after its order was placed.
async fn assert_due(fixture: &TestService<Orders>, orders: &[Uuid], deadline: Duration) {
    let placed =
        "select order_id, created_at from orders where order_id = any($1) order by created_at";
    let placed = sqlx::query_as(placed).bind(orders).fetch_all(&fixture.db).await;
    let placed: Vec<(Uuid, DateTime<Utc>)> = placed.unwrap();
    let due = placed.into_iter().map(|(order_id, created_at)| {
        ("timer/deadline".to_string(), order_id.to_string(), created_at + deadline)
    });
    assert_eq!(fixture.timers().await, Vec::from_iter(due));
}

#[tokio::test]
async fn an_order_is_due_at_its_deadline_and_without_one_never() {
    let (fixture, client) = fixture_with_items().await;
    post_order(&client).await;
    assert_eq!(fixture.timers().await, []);
    let new_orders = api::NewOrders { deadline: Some(DEADLINE), ..NEW_ORDERS };
    let watch = fixture.change_feed(&CancellationToken::new());
    let api = api::router(fixture.db.clone(), fixture.commands.clone(), watch, new_orders);
    let order = post_order(&TestClient::of_api(api)).await;
    assert_due(&fixture, &[order], DEADLINE).await;
}

#[tokio::test]
async fn a_deadline_ends_a_pending_order_once_and_no_other() {
    let (fixture, client) = fixture_with_items().await;
    let (confirmed, overdue) = (post_order(&client).await, post_order(&client).await);
    deliver(&fixture, &[verified(confirmed)], saga::answered).await;
    deliver(&fixture, &[reserved(confirmed)], saga::answered).await;
    let status = async |order_id: Uuid| {
        let order = client.get(&format!("/orders/{order_id}")).await.body;
        (order["status"].as_str().unwrap().to_string(), order["reason"].clone())
    };
    let none: [Uuid; 0] = [];
    assert_eq!(expire(&fixture, confirmed).await, none);
    assert_eq!(expire(&fixture, Uuid::now_v7()).await, none, "there is no such order");
    let timer = Deadline { order_id: overdue };
    let due = [(Uuid::now_v7(), &timer)];
    let published = fixture.fire(&due, saga::overdue).await.unwrap();
    assert_eq!(published.len(), 1);
    assert_eq!(fixture.fire(&due, saga::overdue).await.unwrap(), none, "it fires once");
    assert_eq!(expire(&fixture, overdue).await, none);
    assert_eq!(status(confirmed).await, ("confirmed".into(), Value::Null));
    assert_eq!(status(overdue).await, ("cancelled".into(), json!("deadline")));
    let last = fixture.outbox_entries().await.pop().unwrap();
    assert_eq!(last, ("orders.cancelled".into(), overdue.to_string(), published[0]));
    assert_eq!(fixture.count_rows("pending_orders").await, 0);
}

/// More than one page of them.
#[tokio::test]
async fn the_setting_holds_for_orders_that_are_older_than_it() {
    let (fixture, client) = fixture_with_items().await;
    let first = post_order(&client).await;
    let others =
        "insert into pending_orders select created_at + n * interval '1 ms', gen_random_uuid()
                  from pending_orders, generate_series(1, 1200) as n";
    sqlx::query(others).execute(&fixture.db).await.unwrap();
    let of_first = async || {
        let timers = fixture.timers().await.into_iter();
        Vec::from_iter(timers.filter(|(_, key, _)| *key == first.to_string()))
    };
    let mut ids = Vec::new();
    for (deadline, count) in
        [(Some(DEADLINE), 1_201), (Some(DEADLINE), 1_201), (Some(2 * DEADLINE), 1_201), (None, 0)]
    {
        deadline::apply(&fixture.db, deadline).await.unwrap();
        assert_eq!(fixture.count_rows("chassis.scheduled").await, count, "{deadline:?}");
        let placed: DateTime<Utc> = sqlx::query_scalar("select created_at from orders")
            .fetch_one(&fixture.db)
            .await
            .unwrap();
        let due = deadline.map(|it| placed + TimeDelta::from_std(it).unwrap());
        assert_eq!(of_first().await.first().map(|(.., due_at)| *due_at), due);
        let row = "select event_id, set_at = (select created_at from orders) from chassis.scheduled where key = $1";
        let row = sqlx::query_as(row).bind(first.to_string()).fetch_optional(&fixture.db).await;
        let row: Option<(Uuid, bool)> = row.unwrap();
        assert!(row.is_none_or(|(_, is_of_order)| is_of_order), "measured from when it was placed");
        ids.push(row.map(|(event_id, _)| event_id));
    }
    assert_eq!(ids[0], ids[1], "one that is due at the same time is not set again");
    assert_ne!(ids[1], ids[2]);
}
