//! Outages: orders are accepted while the order service and its database run. All orders end after every component is
//! back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::checker::relay_leadership::active_relays;
use e2e::client::http_client::Client;
use e2e::scenarios::outage;
use e2e::scenarios::outage::plan::Outage;
use e2e::stack_description::SERVICES;
use e2e::workload::load;
use e2e::workload::options::Load;
use futures::future::try_join_all;
use launcher::{Stack, eventually};
use tokio::time::{Instant, sleep};

use crate::fixture::{
    DRAIN_TIMEOUT, Fixture, TIMEOUT, component_names, group_assignments, place_orders,
    subscribed_partitions, wait_until_confirmed, with_exclusive_fixture, with_unverified_fixture,
};

/// A short version of `make outage`: a load, one kill, the checker.
async fn kill_under_load(victim: &str) -> Result<()> {
    with_unverified_fixture(async |Fixture { stack, client }| {
        let outage = Outage {
            victims: vec![victim.to_string()],
            rate: 50,
            load_duration: Duration::from_secs(6),
            kills: 1,
            downtime: Duration::from_secs(2),
            drain_timeout: DRAIN_TIMEOUT,
            is_redundant: false,
        };
        let report = outage::run_one(stack, client, &outage).await?;
        ensure!(report.holds(), "{}", report.failures.join("\n"));
        let summary = &report.summary;
        ensure!(summary.confirmed > 60, "{}", summary.lines().join("\n"));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_killed_under_load_costs_no_order_and_refuses_no_customer() -> Result<()> {
    kill_under_load("stock").await
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_killed_under_load_costs_no_order_and_refuses_no_customer() -> Result<()> {
    kill_under_load("payment").await
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_killed_under_load_costs_no_order_and_refuses_no_customer() -> Result<()> {
    kill_under_load("kafka").await
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_killed_under_load_costs_no_order_and_refuses_no_customer() -> Result<()> {
    kill_under_load("registry").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_stock_killed_under_load_costs_no_order_and_refuses_no_customer()
-> Result<()> {
    kill_under_load("stock-db").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_payment_killed_under_load_costs_no_order_and_refuses_no_customer()
-> Result<()> {
    kill_under_load("payment-db").await
}

/// Here clients get no response; the same key settles the outcome, and nothing happens twice.
#[tokio::test(flavor = "multi_thread")]
async fn order_killed_under_load_leaves_no_outcome_unknown_for_ever() -> Result<()> {
    kill_under_load("order").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_order_killed_under_load_leaves_no_outcome_unknown_for_ever() -> Result<()>
{
    kill_under_load("order-db").await
}

/// As after a power failure: no component survives, and all start at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn everything_killed_at_once_under_load_loses_nothing() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let duration = Duration::from_secs(10);
        let load = Load { rate: 50, duration, drain_timeout: DRAIN_TIMEOUT, ..Load::default() };
        let killing = async {
            sleep(Duration::from_secs(3)).await;
            let names = component_names(stack).await?;
            try_join_all(names.iter().map(|name| stack.kill(name))).await?;
            sleep(Duration::from_secs(1)).await;
            stack.up().await
        };
        let (summary, ()) = load::run(client, &load, killing).await?;
        ensure!(summary.holds() && summary.confirmed > 60, "{}", summary.lines().join("\n"));
        Ok(())
    })
    .await
}

/// This includes an order service that starts while everything except its database is away.
#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_and_registry_orders_are_accepted_and_all_end_when_they_are_back()
-> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        tokio::try_join!(stack.kill("kafka"), stack.kill("registry"))?;
        let began = Instant::now();
        let mut orders = place_orders(client, 200).await?;
        ensure!(began.elapsed() < TIMEOUT, "it took {:?}", began.elapsed());
        stack.kill("order").await?;
        stack.start("order").await?;
        orders.extend(place_orders(client, 20).await?);
        tokio::try_join!(stack.start("kafka"), stack.start("registry"))?;
        wait_until_confirmed(client, &orders).await
    })
    .await
}

/// Under load, second instances join, the first ones are killed and restarted, and the second ones
/// leave.
#[tokio::test(flavor = "multi_thread")]
async fn instances_that_join_die_and_leave_under_load_lose_nothing() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let exits_before = stack.exits().await?.len();
        let duration = Duration::from_secs(20);
        let load = Load { rate: 50, duration, drain_timeout: DRAIN_TIMEOUT, ..Load::default() };
        let (summary, ()) = load::run(client, &load, async {
            sleep(Duration::from_secs(1)).await;
            stack.set_instances(2).await?;
            stack.up().await?;
            client.refresh_instances(stack)?;
            for service in SERVICES {
                wait_until_shared_by_two(stack, service).await?;
            }
            for service in SERVICES {
                stack.kill(service).await?;
            }
            for service in SERVICES {
                wait_until_one_relays(stack, service).await?;
            }
            sleep(Duration::from_secs(2)).await;
            stack.up().await?;
            for service in SERVICES {
                wait_until_shared_by_two(stack, service).await?;
            }
            stack.set_instances(1).await?;
            client.refresh_instances(stack)
        })
        .await?;
        ensure!(
            summary.holds() && summary.refused <= summary.excused_count(),
            "{}",
            summary.lines().join("\n")
        );
        let ends = stack.exits().await?.split_off(exits_before);
        ensure!(!ends.iter().any(|end| end.is_unexpected()), "{ends:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_instances_of_everything_one_killed_every_3_s_nothing_is_lost_and_none_stalls()
-> Result<()> {
    with_unverified_fixture(async |Fixture { stack, client }| {
        stack.set_instances(2).await?;
        stack.up().await?;
        client.refresh_instances(stack)?;
        let outage = Outage {
            victims: ["order", "payment-2", "stock"].map(String::from).to_vec(),
            rate: 50,
            load_duration: Duration::from_secs(9),
            kills: 3,
            downtime: Duration::from_secs(1),
            drain_timeout: DRAIN_TIMEOUT,
            is_redundant: true,
        };
        let report = outage::run_one(stack, client, &outage).await?;
        ensure!(report.holds(), "{}", report.failures.join("\n"));
        Ok(())
    })
    .await
}

/// Exactly one relay is active, by its metrics, and both instances have partitions to read.
async fn wait_until_shared_by_two(stack: &Stack, service: &str) -> Result<()> {
    wait_until_one_relays(stack, service).await?;
    let what = format!("two instances of {service} to share the partitions");
    eventually(&what, TIMEOUT, async || {
        let shares = group_assignments(stack.kafka_client()?, service.to_string()).await?;
        let all: BTreeSet<&(String, i32)> = shares.iter().flatten().collect();
        let count: usize = shares.iter().map(Vec::len).sum();
        ensure!(shares.len() == 2 && shares.iter().all(|own| !own.is_empty()), "{shares:?}");
        ensure!(all.len() == count && count == subscribed_partitions(service), "{shares:?}");
        Ok(())
    })
    .await
}

/// The first one may have died between the two reads: they are repeated until the result is stable.
async fn wait_until_one_relays(stack: &Stack, service: &str) -> Result<()> {
    eventually(&format!("one relay of {service} to be active"), TIMEOUT, async || {
        let active = active_relays(stack, &Client::for_stack(stack)?, service).await?;
        ensure!(active == 1, "{active} relays of {service} are active");
        Ok(())
    })
    .await
}
