//! The deadline ends what nobody answers.

use std::future::ready;
use std::time::Instant;

use super::*;
use crate::deadline::{self, Swept};

/// One sweep with a deadline of 30 s, where all that was said so long ago was handled.
pub async fn sweep(bench: &Bench<Orders>, swept: &mut Swept, caught_up: Option<Duration>) {
    let deadline = Duration::from_secs(30);
    let caught_up = || ready(caught_up);
    deadline::once(&bench.db, &bench.commands, deadline, swept, caught_up).await.unwrap();
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
