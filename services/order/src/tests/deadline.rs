//! The deadline ends what nobody answers.

use std::future::ready;
use std::time::{Instant, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};

use super::*;
use crate::deadline::{self, OverdueCriteria, SweepProgress};

const DEADLINE: Duration = Duration::from_secs(30);

/// What is overdue where the database's clock and the time that was measured agree. By the service's clock
/// it is a minute later: what was placed a moment ago has an id that is older than the deadline.
async fn criteria(fixture: &TestService<Orders>) -> OverdueCriteria {
    let now: DateTime<Utc> =
        sqlx::query_scalar("select clock_timestamp()").fetch_one(&fixture.db).await.unwrap();
    let service = SystemTime::from(now) + Duration::from_secs(60);
    OverdueCriteria { deadline: DEADLINE, service_time: service, horizon: now - DEADLINE }
}

/// One sweep, where all that was said so long ago was handled.
pub async fn sweep(
    fixture: &TestService<Orders>,
    progress: &mut SweepProgress,
    caught_up: Option<Duration>,
) {
    sweep_at(fixture, &criteria(fixture).await, progress, caught_up).await;
}

async fn sweep_at(
    fixture: &TestService<Orders>,
    criteria: &OverdueCriteria,
    progress: &mut SweepProgress,
    caught_up: Option<Duration>,
) {
    let caught_up = || ready(caught_up);
    deadline::sweep_once(&fixture.db, &fixture.commands, criteria, progress, caught_up)
        .await
        .unwrap();
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
    deliver(&fixture, &[verified(confirmed)], saga::payment_verified).await;
    deliver(&fixture, &[reserved(confirmed)], saga::stock_reserved).await;
    // By the database's time the last is young; its id says nothing.
    sqlx::query(
        "update orders set created_at = created_at - interval '1 minute' where order_id <> $1",
    )
    .bind(young)
    .execute(&fixture.db)
    .await
    .unwrap();
    let mut progress = SweepProgress::default();
    sweep(&fixture, &mut progress, Some(Duration::ZERO)).await;
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

    sweep(&fixture, &mut progress, Some(Duration::ZERO)).await;
    assert_eq!(fixture.count_rows("outbox").await, 7, "nothing is cancelled twice");
}

#[tokio::test]
async fn no_order_is_cancelled_while_responses_may_be_unread() {
    let (fixture, client) = fixture_with_items().await;
    let overdue = post_order(&client).await;
    let past = "update orders set created_at = created_at - interval '1 minute'";
    sqlx::query(past).execute(&fixture.db).await.unwrap();
    let mut progress = SweepProgress::default();
    // It has been overdue for half a minute.
    let ago = |seconds| Some(Duration::from_secs(seconds));
    for (caught_up, status) in [(None, "pending"), (ago(40), "pending"), (ago(20), "cancelled")] {
        sweep(&fixture, &mut progress, caught_up).await;
        assert_eq!(client.get(&format!("/orders/{overdue}")).await.body["status"], status);
    }
}

#[tokio::test]
async fn an_order_overdue_later_than_one_with_a_greater_id_is_cancelled_too() {
    let (fixture, client) = fixture_with_items().await;
    let (slow, quick) = (post_order(&client).await, post_order(&client).await);
    let past =
        "update orders set created_at = created_at - interval '1 minute' where order_id = $1";
    sqlx::query(past).bind(quick).execute(&fixture.db).await.unwrap();
    let mut progress = SweepProgress::default();
    sweep(&fixture, &mut progress, Some(Duration::ZERO)).await;
    assert_eq!(client.get(&format!("/orders/{slow}")).await.body["status"], "pending");
    sqlx::query(past).bind(slow).execute(&fixture.db).await.unwrap();
    sweep(&fixture, &mut progress, Some(Duration::ZERO)).await;
    assert_eq!(client.get(&format!("/orders/{slow}")).await.body["status"], "cancelled");
}

/// It was drawn by a service whose clock was far ahead.
#[tokio::test]
async fn an_order_whose_id_has_a_wrong_time_is_found_by_the_full_scan() {
    let (fixture, client) = fixture_with_items().await;
    let overdue = post_order(&client).await;
    let strange = Uuid::from_u128(overdue.as_u128() + (1 << 120));
    sqlx::query(
        "update orders set order_id = $1, created_at = created_at - interval '1 minute'
         where order_id = $2",
    )
    .bind(strange)
    .bind(overdue)
    .execute(&fixture.db)
    .await
    .unwrap();
    let mut progress =
        SweepProgress { full_scan_ended_at: Some(Instant::now()), ..SweepProgress::default() };
    for (walked_at, status) in [(progress.full_scan_ended_at, "pending"), (None, "cancelled")] {
        progress.full_scan_ended_at = walked_at;
        sweep(&fixture, &mut progress, Some(Duration::ZERO)).await;
        assert_eq!(client.get(&format!("/orders/{strange}")).await.body["status"], status);
    }
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
            service_time: service - Duration::from_secs(60),
            horizon: horizon + hour,
            ..agreed
        },
        // No process has run for so long.
        OverdueCriteria { service_time: service, horizon: horizon - hour, ..agreed },
    ];
    let status = async || client.get(&format!("/orders/{order}")).await.body["status"].clone();
    for (nth, criteria) in clocks.iter().enumerate() {
        if nth == 1 {
            let past = "update orders set created_at = created_at - interval '1 minute'";
            sqlx::query(past).execute(&fixture.db).await.unwrap();
        }
        sweep_at(&fixture, criteria, &mut SweepProgress::default(), Some(Duration::ZERO)).await;
        assert_eq!(status().await, "pending", "{nth}");
    }
    let mut progress = SweepProgress::default();
    sweep_at(&fixture, &clocks[2], &mut progress, Some(Duration::ZERO)).await;
    sweep(&fixture, &mut progress, Some(Duration::ZERO)).await;
    assert_eq!(status().await, "cancelled");
}
