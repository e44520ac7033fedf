//! The deadline cancels orders that wait for too long.

use std::future::ready;

use chrono::{DateTime, TimeDelta, Utc};

use super::*;
use crate::deadline::{self, OverdueCriteria};

const DEADLINE: Duration = Duration::from_secs(30);

/// What is overdue where the database's clock and the time that was measured agree. By the service's clock
/// it is a minute later: what was placed a moment ago has an id that is older than the deadline.
async fn criteria(fixture: &TestService<Orders>) -> OverdueCriteria {
    let now: DateTime<Utc> =
        sqlx::query_scalar("select clock_timestamp()").fetch_one(&fixture.db).await.unwrap();
    let service_time = now + TimeDelta::minutes(1);
    OverdueCriteria { deadline: DEADLINE, service_time, horizon: now - DEADLINE }
}

/// One sweep. Everything was handled that arrived so long ago.
pub async fn sweep(fixture: &TestService<Orders>, caught_up: Option<Duration>) {
    sweep_at(fixture, &criteria(fixture).await, caught_up).await;
}

async fn sweep_at(
    fixture: &TestService<Orders>,
    criteria: &OverdueCriteria,
    caught_up: Option<Duration>,
) {
    let caught_up = || ready(caught_up);
    deadline::sweep_once(&fixture.db, &fixture.commands, criteria, caught_up).await.unwrap();
}

/// By the database's time the order is a minute older; its id stays.
pub async fn make_older(fixture: &TestService<Orders>, order_id: Uuid) {
    for statement in [
        "update orders set created_at = created_at - interval '1 minute' where order_id = $1",
        "update pending_orders set created_at = created_at - interval '1 minute' where order_id = $1",
    ] {
        sqlx::query(statement).bind(order_id).execute(&fixture.db).await.unwrap();
    }
}

#[tokio::test]
async fn the_deadline_cancels_only_overdue_pending_orders() {
    let (fixture, client) = fixture_with_items().await;
    let (confirmed, overdue, other, young) = (
        post_order(&client).await,
        post_order(&client).await,
        post_order(&client).await,
        post_order(&client).await,
    );
    deliver(&fixture, &[verified(confirmed)], saga::answered).await;
    deliver(&fixture, &[reserved(confirmed)], saga::answered).await;
    // By the database's time the last one is young, though its id is not.
    for order_id in [confirmed, overdue, other] {
        make_older(&fixture, order_id).await;
    }
    assert_eq!(fixture.count_rows("pending_orders").await, 3);
    sweep(&fixture, Some(Duration::ZERO)).await;
    let status = async |order_id: Uuid| {
        let order = client.get(&format!("/orders/{order_id}")).await.body;
        (order["status"].as_str().unwrap().to_string(), order["reason"].clone())
    };
    assert_eq!(status(confirmed).await, ("confirmed".into(), Value::Null));
    assert_eq!(status(overdue).await, ("cancelled".into(), json!("deadline")));
    assert_eq!(status(other).await, ("cancelled".into(), json!("deadline")));
    assert_eq!(status(young).await, ("pending".into(), Value::Null));
    let cancelled: Vec<_> = fixture
        .outbox_entries()
        .await
        .into_iter()
        .filter(|(topic, ..)| topic == "orders.cancelled")
        .collect();
    let keys: Vec<_> = cancelled.iter().map(|(_, key, _)| key.as_str()).collect();
    assert_eq!(keys, [overdue.to_string(), other.to_string()], "oldest first");

    sweep(&fixture, Some(Duration::ZERO)).await;
    assert_eq!(fixture.count_rows("pending_orders").await, 1, "those of ended orders are deleted");
    assert_eq!(fixture.count_rows("chassis.outbox").await, 7, "nothing is cancelled twice");
}

#[tokio::test]
async fn no_order_is_cancelled_while_responses_may_be_unread() {
    let (fixture, client) = fixture_with_items().await;
    let overdue = post_order(&client).await;
    make_older(&fixture, overdue).await;
    // It has been overdue for half a minute.
    let ago = |seconds| Some(Duration::from_secs(seconds));
    for (caught_up, status) in [(None, "pending"), (ago(40), "pending"), (ago(20), "cancelled")] {
        sweep(&fixture, caught_up).await;
        assert_eq!(client.get(&format!("/orders/{overdue}")).await.body["status"], status);
    }
}

#[tokio::test]
async fn an_order_overdue_later_than_one_with_a_greater_id_is_cancelled_too() {
    let (fixture, client) = fixture_with_items().await;
    let (slow, quick) = (post_order(&client).await, post_order(&client).await);
    make_older(&fixture, quick).await;
    sweep(&fixture, Some(Duration::ZERO)).await;
    assert_eq!(client.get(&format!("/orders/{slow}")).await.body["status"], "pending");
    make_older(&fixture, slow).await;
    sweep(&fixture, Some(Duration::ZERO)).await;
    assert_eq!(client.get(&format!("/orders/{slow}")).await.body["status"], "cancelled");
}

/// It was drawn by a service whose clock was far ahead.
#[tokio::test]
async fn an_order_whose_id_has_a_wrong_time_is_cancelled_too() {
    let (fixture, client) = fixture_with_items().await;
    let overdue = post_order(&client).await;
    make_older(&fixture, overdue).await;
    let strange = Uuid::from_u128(overdue.as_u128() + (1 << 120));
    for statement in ["update orders set order_id = $1", "update pending_orders set order_id = $1"]
    {
        sqlx::query(statement).bind(strange).execute(&fixture.db).await.unwrap();
    }
    sweep(&fixture, Some(Duration::ZERO)).await;
    assert_eq!(client.get(&format!("/orders/{strange}")).await.body["status"], "cancelled");
}

/// The database's clock is an hour ahead, or the service's is, or the machine slept for so long.
#[tokio::test]
async fn an_order_is_cancelled_only_if_both_clocks_and_the_measured_time_agree() {
    let (fixture, client) = fixture_with_items().await;
    let order = post_order(&client).await;
    let agreed = criteria(&fixture).await;
    let hour = TimeDelta::hours(1);
    let (service, horizon) = (agreed.service_time, agreed.horizon);
    let clocks = [
        // The row is younger than the deadline.
        OverdueCriteria { service_time: service, horizon: horizon + hour, ..agreed },
        // Its id is.
        OverdueCriteria {
            service_time: service - TimeDelta::minutes(1),
            horizon: horizon + hour,
            ..agreed
        },
        // No process has run for so long.
        OverdueCriteria { service_time: service, horizon: horizon - hour, ..agreed },
    ];
    let status = async || client.get(&format!("/orders/{order}")).await.body["status"].clone();
    for (nth, criteria) in clocks.iter().enumerate() {
        if nth == 1 {
            make_older(&fixture, order).await;
        }
        sweep_at(&fixture, criteria, Some(Duration::ZERO)).await;
        assert_eq!(status().await, "pending", "{nth}");
    }
    sweep_at(&fixture, &clocks[2], Some(Duration::ZERO)).await;
    sweep(&fixture, Some(Duration::ZERO)).await;
    assert_eq!(status().await, "cancelled");
}
