//! Rows are deleted once nothing needs them any more.

use messaging::commands::idempotency;
use messaging::db;
use messaging::dead_letter;
use messaging::inbox;
use serde_json::Value;

use super::admin_client::get;
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn only_expired_rows_are_pruned_and_a_bounded_number_at_a_time() {
    let fixture = Fixture::<207>::create().await;
    let statement = "insert into chassis.clock_ticks (tick, elapsed_ms)
         select days, days * 86400000::bigint from generate_series(1, 40) as days;
         insert into chassis.inbox (event_id, topic, tick)
         select gen_random_uuid(), 't', 9 from generate_series(1, 1001);
         insert into chassis.inbox (event_id, topic, tick)
         values ('0190a000-0000-7000-8000-000000000001', 't', 10);
         insert into chassis.inbox (event_id, topic, tick)
         values ('019aa000-0000-7000-8000-000000000001', 't', 9);
         insert into chassis.dead_letters (cluster, topic, partition, \"offset\", hash, event_id, headers,
                                   kind, reason, state, settled_at)
         values ('c', 't', 0, 0, '', '019aa000-0000-7000-8000-000000000001', '{}', 'handler_failed', 'r',
                 'discarded', now() - interval '31 days');
         insert into chassis.idempotency_keys (path, key, request_hash, status, body, tick)
         values ('/old', 'k', '', 200, '', 38), ('/new', 'k', '', 200, '', 39)";
    fixture.execute_as_superuser(statement).await;
    for gone in [1_000, 1, 0] {
        let pruned =
            db::retention::prune_batch(&fixture.db, inbox::PRUNE_STATEMENT, inbox::RETENTION).await;
        assert_eq!(pruned.unwrap(), gone);
    }
    let pruned = db::retention::prune_batch(
        &fixture.db,
        idempotency::PRUNE_STATEMENT,
        idempotency::RETENTION,
    )
    .await;
    assert_eq!(pruned.unwrap(), 1);
    // The entry of an old event that was received lately and the entry of the discarded event are left.
    assert_eq!(fixture.count("chassis.inbox").await, 2);
    assert_eq!(fixture.count("chassis.idempotency_keys where path = '/new'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_loses_its_bytes_and_headers_a_month_after_it_was_settled() {
    let fixture = Fixture::<215>::create().await;
    let statement = "update chassis.clock_ticks set recorded_at = now() - interval '41 days';
             insert into chassis.clock_ticks (tick, elapsed_ms, recorded_at)
             select days, days * 86400000::bigint, now() - (40 - days) * interval '1 day'
             from generate_series(1, 40) as days;
             insert into chassis.dead_letters (cluster, topic, partition, \"offset\", hash, headers, record,
                                       key, kind, reason, state, settled_at)
             select 'c', 't', 0, days, sha256('bytes'), '{\"ce_type\": \"t\"}', 'bytes', 'key', 'handler_failed',
                    'why', 'replayed', now() - days * interval '1 day'
             from generate_series(29, 1040) as days;
             insert into chassis.dead_letters (cluster, topic, partition, \"offset\", hash, headers, record,
                                       kind, reason)
             values ('c', 't', 0, 0, sha256('bytes'), '{\"ce_type\": \"t\"}', 'bytes', 'handler_failed', 'why')";
    fixture.execute_as_superuser(statement).await;
    let prune = async || {
        let pruned = db::retention::prune_batch(
            &fixture.db,
            dead_letter::PRUNE_STATEMENT,
            dead_letter::RECORD_RETENTION,
        );
        pruned.await.unwrap()
    };
    assert_eq!((prune().await, prune().await, prune().await), (1_000, 10, 0));
    let whole = "select count(*) from chassis.dead_letters where record = 'bytes' and headers ->> 'ce_type' = 't'";
    assert_eq!(fixture.query_number(whole).await, 3, "of 29 and 30 days, and the one that waits");
    let emptied = "select count(*) from chassis.dead_letters
                   where record is null and headers = '{}' and key = 'key' and reason = 'why'";
    assert_eq!(fixture.query_number(emptied).await, 1_010);

    let admin = fixture.admin_router();
    let letter = get(&admin, "/dead-letters/3").await;
    assert_eq!((&letter["record"], &letter["event"]), (&Value::Null, &Value::Null), "{letter}");
    let unreadable = letter["unreadable"].as_str().unwrap();
    assert_eq!(unreadable, "its bytes and headers were deleted 30 days after it was settled");

    for refused in [
        "update chassis.dead_letters set record = 'other' where dead_letter_id = 1",
        "update chassis.dead_letters set headers = '{\"a\": 1}', record = null where dead_letter_id = 1",
        "update chassis.dead_letters set record = 'other' where dead_letter_id = 3",
        "update chassis.dead_letters set record = null, headers = '{}' where state = 'waiting'",
    ] {
        let refusal = sqlx::query(refused).execute(&fixture.db).await.unwrap_err();
        let code = refusal.as_database_error().unwrap().code();
        assert_eq!(code.as_deref(), Some("42501"), "{refused}");
    }
}
