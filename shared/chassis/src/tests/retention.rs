//! Rows are deleted once nothing needs them any more.

use super::*;
use crate::commands::idempotency;
use crate::db;
use crate::inbox;

#[tokio::test(flavor = "multi_thread")]
async fn only_expired_rows_are_pruned_and_a_bounded_number_at_a_time() {
    let fixture = Fixture::<207>::create().await;
    fixture.execute_as_superuser(
        "insert into chassis.clock_ticks (tick, elapsed_ms)
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
         values ('/old', 'k', '', 200, '', 38), ('/new', 'k', '', 200, '', 39)",
    )
    .await;
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
    assert_eq!(fixture.query_number("select count(*) from chassis.inbox").await, 2);
    assert_eq!(
        fixture
            .query_number("select count(*) from chassis.idempotency_keys where path = '/new'")
            .await,
        1
    );
}
