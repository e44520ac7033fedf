//! Faults while a connector carries the outboxes of the services.

use super::*;
use e2e::admin::connectors::{self, Carrier};
use e2e::admin::hanging_transactions;
use e2e::scenarios::outage;
use e2e::scenarios::outage::options::Outage;
use e2e::workload::options::Load;

/// How long a switch may take under load: instances start again, and the one carrier ends before the other begins.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(60);

async fn start_with_connector(stack: &Stack) -> Result<Client> {
    connectors::choose(stack, Carrier::Cdc)?;
    let client = start_and_seed(stack).await?;
    connectors::apply(stack).await?;
    connectors::wait_until_carried(stack, Carrier::Cdc, SWITCH_TIMEOUT).await?;
    Ok(client)
}

/// The services start again for it, so a client repeats some requests.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes three minutes: make faults"]
async fn from_the_relay_to_the_connector_and_back_under_load_nothing_is_lost() -> Result<()> {
    on_ephemeral_stack(async |stack| {
        let client = start_and_seed(stack).await?;
        let switching = async {
            for carrier in [Carrier::Cdc, Carrier::Service, Carrier::Cdc, Carrier::Service] {
                sleep(Duration::from_secs(3)).await;
                connectors::switch(stack, carrier).await?;
                connectors::wait_until_carried(stack, carrier, SWITCH_TIMEOUT).await?;
            }
            Ok(())
        };
        let (summary, ()) = under_load(&client, 50, 100, switching).await?;
        ensure!(summary.confirmed > 1_000, "{}", summary.lines().join("\n"));
        assert_verified(&client).await
    })
    .await
}

/// 100 orders a second, as `make outage` places them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes five minutes: make faults"]
async fn whatever_is_killed_while_a_connector_carries_the_events_nothing_is_lost() -> Result<()> {
    on_ephemeral_stack(async |stack| {
        let client = start_with_connector(stack).await?;
        for victim in ["connect", "order", "order-db", "kafka"] {
            // A transaction that hangs is listed a minute later.
            let load = Load { drain_timeout: 3 * DRAIN_TIMEOUT, ..load_of(100, 30) };
            let outage = Outage { load, kills: 2, ..Outage::of(victim) };
            let report = tokio::select! {
                report = outage::run_one(stack, &client, &outage) => report?,
                ended = end_hanging_transactions(stack), if victim == "kafka" => ended?,
            };
            ensure!(report.report.holds(), "{}", report.verdict());
        }
        Ok(())
    })
    .await
}

/// Does for ever what `docs/how-to/cdc.md` asks of an operator: a broker that starts after a crash may have dropped the
/// end of a transaction (KAFKA-20734).
async fn end_hanging_transactions<T>(stack: &Stack) -> Result<T> {
    loop {
        sleep(Duration::from_secs(10)).await;
        // It fails while the broker is away.
        if !hanging_transactions::find(stack).await.is_ok_and(|hanging| !hanging.is_empty()) {
            continue;
        }
        hanging_transactions::print(&hanging_transactions::end(stack).await?);
    }
}
