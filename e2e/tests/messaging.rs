//! The checker of messaging alone, as a project with other services uses it: it knows topics and
//! databases, and no order.

use anyhow::{Result, ensure};
use checker::{check, outbox_log};
use e2e::checker::sources::system;
use faults::database_faults::execute;

use crate::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn messaging_holds_after_an_outage_and_each_lost_or_unhandled_event_is_found() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let system = system(client);
        outbox_log::install(&system).await?;
        let mut orders = place_orders(client, 20).await?;
        stack.kill("payment").await?;
        orders.extend(place_orders(client, 20).await?);
        stack.start("payment").await?;
        wait_until_confirmed(client, &orders).await?;
        let verdict = check(&system, DRAIN_TIMEOUT).await?;
        ensure!(verdict.holds(), "{}", verdict.lines().join("\n"));
        for (service, events) in [("order", 80), ("payment", 40), ("stock", 40)] {
            ensure!(verdict.logged[service] >= events, "{service}: {:?}", verdict.logged);
        }

        let lose = "insert into checker.outbox_log (event_id, topic, key)
                    values (gen_random_uuid(), 'orders.created', 'lost')";
        execute(stack, "order", &[lose]).await?;
        let set_aside = "create table set_aside as
                         select * from chassis.inbox order by received_at desc limit 1";
        let forget = "delete from chassis.inbox where event_id in (select event_id from set_aside)";
        execute(stack, "payment", &[set_aside, forget]).await?;
        let found = check(&system, DRAIN_TIMEOUT).await?.findings.kinds();
        let restore = "insert into chassis.inbox select * from set_aside";
        execute(stack, "payment", &[restore, "drop table set_aside"]).await?;
        outbox_log::remove(&system).await?;
        ensure!(found == ["HandledOnce inbox", "Published lost"], "{found:?}");
        Ok(())
    })
    .await
}
