//! Time that has passed is measured, and no clock and no sequence is trusted alone.

use super::*;
use crate::clock::{advance, older_than};
use crate::sequences;

#[tokio::test]
async fn time_counts_once_however_many_processes_measure_it_and_only_while_one_runs() {
    let till = Till::<270>::open().await;
    let elapsed = async || till.number("select max(elapsed_ms) from clock_ticks").await;
    let began = Instant::now();
    let (mut one, mut other) = (None, None);
    let short = Duration::from_millis(50);
    for ticks in 1..=5 {
        // The first look at a tick is no measure of how old that is.
        assert!(!advance(&till.db, &mut one, Duration::ZERO).await.unwrap());
        assert!(!advance(&till.db, &mut other, Duration::ZERO).await.unwrap());
        assert!(!advance(&till.db, &mut one, WITHIN).await.unwrap(), "it is not a minute yet");
        sleep(short).await;
        assert!(advance(&till.db, &mut one, short).await.unwrap());
        assert!(!advance(&till.db, &mut other, Duration::ZERO).await.unwrap(), "it was counted");
        other = None;
        assert_eq!(till.number("select max(tick)::bigint from clock_ticks").await, ticks);
        let elapsed = elapsed().await;
        assert!(elapsed >= 50 * ticks && elapsed <= began.elapsed().as_millis() as i64);
    }
    // Two that add the same one: the second changes nothing.
    let (mut one, mut other) = (None, None);
    for newest in [&mut one, &mut other] {
        advance(&till.db, newest, Duration::ZERO).await.unwrap();
    }
    let added = tokio::join!(
        advance(&till.db, &mut one, Duration::ZERO),
        advance(&till.db, &mut other, Duration::ZERO)
    );
    assert!(added.0.is_ok() && added.1.is_ok(), "{added:?}");
    assert!(elapsed().await <= began.elapsed().as_millis() as i64);
}

#[tokio::test]
async fn what_is_older_than_a_span_is_told_by_ticks_and_ticks_are_kept_no_longer_than_needed() {
    let till = Till::<271>::open().await;
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(older_than(&till.db, day).await.unwrap(), None, "no time has passed");
    till.force(
        "insert into clock_ticks (tick, elapsed_ms)
         select hours, hours * 3600000::bigint from generate_series(1, 800) as hours",
    )
    .await;
    assert_eq!(older_than(&till.db, day).await.unwrap(), Some(776));
    assert_eq!(older_than(&till.db, day * 40).await.unwrap(), None);
    let mut newest = None;
    advance(&till.db, &mut newest, Duration::ZERO).await.unwrap();
    sleep(Duration::from_millis(20)).await;
    advance(&till.db, &mut newest, Duration::ZERO).await.unwrap();
    assert_eq!(till.number("select min(tick)::bigint from clock_ticks").await, 800 - 31 * 24 + 1);
}

/// As after a failover to a copy that did not get them.
#[tokio::test]
async fn sequences_that_are_behind_their_tables_are_put_ahead_and_others_are_left() {
    let till = Till::<272>::open().await;
    let row = "insert into outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
               select gen_random_uuid(), 't', 'k', '', '', now() from generate_series(1, 9);";
    till.force(row).await;
    let last = "select pg_sequence_last_value('outbox_position_seq')";
    sequences::put_ahead(&till.db).await;
    assert_eq!(till.number(last).await, 9);
    till.force("alter table outbox alter column position restart with 1").await;
    sequences::put_ahead(&till.db).await;
    till.publish(&[counted::<272>("a", 1)]).await;
    assert_eq!(till.number("select max(position) from outbox").await, 10);
    till.force("delete from outbox").await;
    sequences::put_ahead(&till.db).await;
    assert_eq!(till.number(last).await, 10, "an empty table says nothing");
}

/// What a repeat repeats may have been seen before a standby had it: a commit that has nothing to write is
/// noted in the log all the same, and waits as any other.
#[tokio::test]
async fn a_transaction_that_answers_and_has_nothing_to_write_is_noted_in_the_log() {
    let till = Till::<273>::open().await;
    let noted = "select (pg_current_xact_id_if_assigned() is not null)::int::bigint";
    let mut tx = till.db.begin().await.unwrap();
    Writes::of(&mut tx).run().await.unwrap();
    let is_noted: i64 = sqlx::query_scalar(noted).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(is_noted, 0);
    Writes::of(&mut tx).run_durably().await.unwrap();
    let is_noted: i64 = sqlx::query_scalar(noted).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(is_noted, 1);
    tx.rollback().await.unwrap();

    till.force("create extension pg_stat_statements").await;
    let locks = async || {
        till.number(
            "select coalesce(sum(calls), 0)::bigint from pg_stat_statements
             where query like 'select from consumer for key share%'
               and dbid = (select oid from pg_database where datname = current_database())",
        )
        .await
    };
    let (commands, writing) = till.commands();
    let wish = counted::<273>("a", 5);
    let run = || commands.run(wish.clone(), super::commands::once("key", &wish), count);
    assert!(run().await.is_ok());
    let before = locks().await;
    assert!(run().await.is_ok());
    assert_eq!(locks().await, before + 1, "a repeat of a command");
    let refused = counted::<273>("a", 0);
    assert!(commands.run(refused, None, count).await.is_err());
    assert_eq!(locks().await, before + 1, "a refusal says that nothing is stored");
    writing.stop().await;

    let events = till.delivered(&[counted("b", 1)]).await;
    till.handle(events.clone()).await;
    assert_eq!(locks().await, before + 1);
    till.handle(events).await;
    assert_eq!(locks().await, before + 2, "a repeat of an event");
}
