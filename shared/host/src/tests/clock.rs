//! Elapsed time is measured; neither a clock nor a sequence is trusted alone.

use messaging::db::clock::{advance, older_than};
use messaging::db::sequences;

use super::*;

#[tokio::test]
async fn elapsed_time_counts_once_for_all_processes_and_only_while_one_runs() {
    let fixture = Fixture::<270>::create().await;
    let elapsed =
        async || fixture.query_number("select max(elapsed_ms) from chassis.clock_ticks").await;
    let began = Instant::now();
    let (mut one, mut other) = (None, None);
    let short = Duration::from_millis(50);
    for ticks in 1..=5 {
        // The first read of a tick does not show how old it is.
        assert!(!advance(&fixture.db, &mut one, Duration::ZERO).await.unwrap());
        assert!(!advance(&fixture.db, &mut other, Duration::ZERO).await.unwrap());
        assert!(
            !advance(&fixture.db, &mut one, TEST_TIMEOUT).await.unwrap(),
            "it is not a minute yet"
        );
        sleep(short).await;
        assert!(advance(&fixture.db, &mut one, short).await.unwrap());
        assert!(!advance(&fixture.db, &mut other, Duration::ZERO).await.unwrap(), "it was counted");
        other = None;
        assert_eq!(
            fixture.query_number("select max(tick)::bigint from chassis.clock_ticks").await,
            ticks
        );
        let elapsed = elapsed().await;
        assert!(elapsed >= 50 * ticks && elapsed <= began.elapsed().as_millis() as i64);
    }
    // Two processes add the same tick: the second changes nothing.
    let (mut one, mut other) = (None, None);
    for newest in [&mut one, &mut other] {
        advance(&fixture.db, newest, Duration::ZERO).await.unwrap();
    }
    let added = tokio::join!(
        advance(&fixture.db, &mut one, Duration::ZERO),
        advance(&fixture.db, &mut other, Duration::ZERO)
    );
    assert!(added.0.is_ok() && added.1.is_ok(), "{added:?}");
    assert!(elapsed().await <= began.elapsed().as_millis() as i64);
}

#[tokio::test]
async fn the_age_of_rows_comes_from_ticks_and_ticks_are_kept_no_longer_than_needed() {
    let fixture = Fixture::<271>::create().await;
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(older_than(&fixture.db, day).await.unwrap(), None, "no time has passed");
    let statement = "insert into chassis.clock_ticks (tick, elapsed_ms)
         select hours, hours * 3600000::bigint from generate_series(1, 800) as hours";
    fixture.execute_as_superuser(statement).await;
    assert_eq!(older_than(&fixture.db, day).await.unwrap(), Some(776));
    assert_eq!(older_than(&fixture.db, day * 40).await.unwrap(), None);
    let mut newest = None;
    advance(&fixture.db, &mut newest, Duration::ZERO).await.unwrap();
    sleep(Duration::from_millis(20)).await;
    advance(&fixture.db, &mut newest, Duration::ZERO).await.unwrap();
    assert_eq!(
        fixture.query_number("select min(tick)::bigint from chassis.clock_ticks").await,
        800 - 31 * 24 + 1
    );
}

/// This happens after a failover to a replica that did not receive the sequences.
#[tokio::test]
async fn sequences_behind_their_tables_are_advanced_and_others_are_unchanged() {
    let fixture = Fixture::<272>::create().await;
    let row =
        "insert into chassis.outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
               select gen_random_uuid(), 't', 'k', '', '', now() from generate_series(1, 9);";
    fixture.execute_as_superuser(row).await;
    let last = "select pg_sequence_last_value('chassis.outbox_position_seq')";
    sequences::advance_all(&fixture.db).await;
    assert_eq!(fixture.query_number(last).await, 9);
    fixture
        .execute_as_superuser("alter table chassis.outbox alter column position restart with 1")
        .await;
    sequences::advance_all(&fixture.db).await;
    fixture.publish(&[counted::<272>("a", 1)]).await;
    assert_eq!(fixture.query_number("select max(position) from chassis.outbox").await, 10);
    fixture.execute_as_superuser("delete from chassis.outbox").await;
    sequences::advance_all(&fixture.db).await;
    assert_eq!(fixture.query_number(last).await, 10, "an empty table changes nothing");
}

/// Otherwise a duplicate could be answered before a standby has the original commit. A commit without rows is
/// logged too, and waits like any other.
#[tokio::test]
async fn a_transaction_that_only_answers_still_commits_to_the_write_ahead_log() {
    let fixture = Fixture::<273>::create().await;
    let noted = "select (pg_current_xact_id_if_assigned() is not null)::int::bigint";
    let mut tx = fixture.db.begin().await.unwrap();
    WriteBatch::new(&mut tx).execute().await.unwrap();
    let is_noted: i64 = sqlx::query_scalar(noted).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(is_noted, 0);
    WriteBatch::new(&mut tx).execute_durably().await.unwrap();
    let is_noted: i64 = sqlx::query_scalar(noted).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(is_noted, 1);
    tx.rollback().await.unwrap();

    fixture.execute_as_superuser("create extension pg_stat_statements").await;
    let locks = async || {
        fixture
            .query_number(
                "select coalesce(sum(calls), 0)::bigint from pg_stat_statements
             where query like 'select from chassis.consumer for key share%'
               and dbid = (select oid from pg_database where datname = current_database())",
            )
            .await
    };
    let (commands, writing) = fixture.commands();
    let request = counted::<273>("a", 5);
    let run = || commands.execute(super::commands::idempotent("key", &request));
    assert!(run().await.is_ok());
    let before = locks().await;
    assert!(run().await.is_ok());
    assert_eq!(locks().await, before + 1, "a duplicate of a command");
    let refused = counted::<273>("a", 0);
    assert!(commands.execute(once(refused)).await.is_err());
    assert_eq!(locks().await, before + 1, "a rejection reports that nothing is stored");
    writing.stop().await;

    let events = fixture.to_records(&[counted("b", 1)]).await;
    fixture.handle(events.clone()).await;
    assert_eq!(locks().await, before + 1);
    fixture.handle(events).await;
    assert_eq!(locks().await, before + 2, "a duplicate of an event");
}
