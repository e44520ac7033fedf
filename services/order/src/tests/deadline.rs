//! The deadline ends what nobody answers.

use std::future::ready;
use std::time::{Instant, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};

use super::*;
use crate::deadline::{self, Swept, Times};

const DEADLINE: Duration = Duration::from_secs(30);

/// What is overdue where the database's clock and the time that was measured agree. By the service's clock
/// it is a minute later: what was placed a moment ago has an id that is older than the deadline.
async fn times(bench: &Bench<Orders>) -> Times {
    let now: DateTime<Utc> =
        sqlx::query_scalar("select clock_timestamp()").fetch_one(&bench.db).await.unwrap();
    let service = SystemTime::from(now) + Duration::from_secs(60);
    Times { deadline: DEADLINE, service, horizon: now - DEADLINE }
}

/// One sweep, where all that was said so long ago was handled.
pub async fn sweep(bench: &Bench<Orders>, swept: &mut Swept, caught_up: Option<Duration>) {
    sweep_at(bench, &times(bench).await, swept, caught_up).await;
}

async fn sweep_at(
    bench: &Bench<Orders>,
    times: &Times,
    swept: &mut Swept,
    caught_up: Option<Duration>,
) {
    let caught_up = || ready(caught_up);
    deadline::once(&bench.db, &bench.commands, times, swept, caught_up).await.unwrap();
}

#[tokio::test]
async fn the_deadline_ends_what_is_overdue_and_pending_and_nothing_else() {
    let (bench, client) = stocked_bench().await;
    let (confirmed, overdue, other, young) = (
        placed(&client).await,
        placed(&client).await,
        placed(&client).await,
        placed(&client).await,
    );
    bring(&bench, &[verified(confirmed)], saga::payment_verified).await;
    bring(&bench, &[reserved(confirmed)], saga::stock_reserved).await;
    // By the database's time the last is young; its id says nothing.
    sqlx::query(
        "update orders set created_at = created_at - interval '1 minute' where order_id <> $1",
    )
    .bind(young)
    .execute(&bench.db)
    .await
    .unwrap();
    let mut swept = Swept::default();
    sweep(&bench, &mut swept, Some(Duration::ZERO)).await;
    let status = async |order_id: Uuid| {
        let order = client.get(&format!("/orders/{order_id}")).await.body;
        (order["status"].as_str().unwrap().to_string(), order["reason"].clone())
    };
    assert_eq!(status(confirmed).await, ("confirmed".into(), Value::Null));
    assert_eq!(status(overdue).await, ("cancelled".into(), json!("deadline")));
    assert_eq!(status(other).await, ("cancelled".into(), json!("deadline")));
    assert_eq!(status(young).await, ("pending".into(), Value::Null));
    let cancelled: Vec<_> = bench
        .outbox()
        .await
        .into_iter()
        .filter(|(topic, ..)| topic == "orders.cancelled")
        .collect();
    let keys: Vec<_> = cancelled.iter().map(|(_, key, _)| key.as_str()).collect();
    assert_eq!(keys, [overdue.to_string(), other.to_string()], "oldest first");

    sweep(&bench, &mut swept, Some(Duration::ZERO)).await;
    assert_eq!(bench.count("outbox").await, 7, "nothing is cancelled twice");
}

#[tokio::test]
async fn as_long_as_answers_may_lie_there_unread_no_order_is_ended() {
    let (bench, client) = stocked_bench().await;
    let overdue = placed(&client).await;
    let past = "update orders set created_at = created_at - interval '1 minute'";
    sqlx::query(past).execute(&bench.db).await.unwrap();
    let mut swept = Swept::default();
    // It has been overdue for half a minute.
    let ago = |seconds| Some(Duration::from_secs(seconds));
    for (caught_up, status) in [(None, "pending"), (ago(40), "pending"), (ago(20), "cancelled")] {
        sweep(&bench, &mut swept, caught_up).await;
        assert_eq!(client.get(&format!("/orders/{overdue}")).await.body["status"], status);
    }
}

#[tokio::test]
async fn an_order_that_is_overdue_later_than_one_with_a_greater_id_is_ended_too() {
    let (bench, client) = stocked_bench().await;
    let (slow, quick) = (placed(&client).await, placed(&client).await);
    let past =
        "update orders set created_at = created_at - interval '1 minute' where order_id = $1";
    sqlx::query(past).bind(quick).execute(&bench.db).await.unwrap();
    let mut swept = Swept::default();
    sweep(&bench, &mut swept, Some(Duration::ZERO)).await;
    assert_eq!(client.get(&format!("/orders/{slow}")).await.body["status"], "pending");
    sqlx::query(past).bind(slow).execute(&bench.db).await.unwrap();
    sweep(&bench, &mut swept, Some(Duration::ZERO)).await;
    assert_eq!(client.get(&format!("/orders/{slow}")).await.body["status"], "cancelled");
}

/// It was drawn by a service whose clock was far ahead.
#[tokio::test]
async fn an_order_whose_id_bears_another_time_is_found_when_all_are_looked_at() {
    let (bench, client) = stocked_bench().await;
    let overdue = placed(&client).await;
    let strange = Uuid::from_u128(overdue.as_u128() + (1 << 120));
    sqlx::query(
        "update orders set order_id = $1, created_at = created_at - interval '1 minute'
         where order_id = $2",
    )
    .bind(strange)
    .bind(overdue)
    .execute(&bench.db)
    .await
    .unwrap();
    let mut swept = Swept { walked_at: Some(Instant::now()), ..Swept::default() };
    for (walked_at, status) in [(swept.walked_at, "pending"), (None, "cancelled")] {
        swept.walked_at = walked_at;
        sweep(&bench, &mut swept, Some(Duration::ZERO)).await;
        assert_eq!(client.get(&format!("/orders/{strange}")).await.body["status"], status);
    }
}

/// The database's clock is an hour ahead, or the service's is, or the machine slept for so long.
#[tokio::test]
async fn an_order_is_ended_only_where_both_clocks_and_the_time_that_was_measured_say_so() {
    let (bench, client) = stocked_bench().await;
    let order = placed(&client).await;
    let agreed = times(&bench).await;
    let hour = TimeDelta::hours(1);
    let (service, horizon) = (agreed.service, agreed.horizon);
    let clocks = [
        // The row is younger than the deadline.
        Times { service, horizon: horizon + hour, ..agreed },
        // Its id is.
        Times { service: service - Duration::from_secs(60), horizon: horizon + hour, ..agreed },
        // No process has run for so long.
        Times { service, horizon: horizon - hour, ..agreed },
    ];
    let status = async || client.get(&format!("/orders/{order}")).await.body["status"].clone();
    for (nth, times) in clocks.iter().enumerate() {
        if nth == 1 {
            let past = "update orders set created_at = created_at - interval '1 minute'";
            sqlx::query(past).execute(&bench.db).await.unwrap();
        }
        sweep_at(&bench, times, &mut Swept::default(), Some(Duration::ZERO)).await;
        assert_eq!(status().await, "pending", "{nth}");
    }
    let mut swept = Swept::default();
    sweep_at(&bench, &clocks[2], &mut swept, Some(Duration::ZERO)).await;
    sweep(&bench, &mut swept, Some(Duration::ZERO)).await;
    assert_eq!(status().await, "cancelled");
}
