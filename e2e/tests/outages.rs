//! Outages: orders are accepted while the order service and its database run. All orders end after every component is
//! back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::checker::relay_leadership::active_relays;
use e2e::client::http_client::Client;
use e2e::scenarios::outage;
use e2e::scenarios::outage::options::{Outage, OutageOptions};
use e2e::stack_description::{SERVICES, with_shipping};
use futures::future::try_join_all;
use launcher::{Stack, eventually};
use tokio::time::{Instant, sleep};

use crate::fixture::*;

/// A short version of `make outage`, for one victim after the other: a load, one kill, the checker.
async fn kill_under_load(victims: &[&str]) -> Result<()> {
    let mut failures = Vec::new();
    for victim in victims {
        let killed = with_unverified_fixture(async |Fixture { stack, client }| {
            let outage = Outage {
                load: load_of(50, 6),
                kills: 1,
                downtime: Duration::from_secs(2),
                ..Outage::of(victim)
            };
            let outage = outage::run_one(stack, client, &outage).await?;
            ensure!(outage.report.holds(), "{}", outage.verdict());
            let summary = &outage.summary;
            ensure!(summary.confirmed > 60, "{}", summary.lines().join("\n"));
            Ok(())
        });
        failures.extend(killed.await.err().map(|error| format!("{victim}: {error:#}")));
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_killed_under_load_costs_no_order_and_refuses_no_customer() -> Result<()> {
    kill_under_load(&["stock"]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn whatever_orders_need_later_is_killed_under_load_and_costs_none_and_refuses_no_customer()
-> Result<()> {
    kill_under_load(&["payment", "kafka", "registry", "stock-db", "payment-db"]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes three minutes: make faults"]
async fn shipping_and_a_carrier_that_lies_killed_under_load_agree_on_every_parcel() -> Result<()> {
    without_fixture(async || {
        let stack = Stack::ephemeral(&with_shipping())?;
        let victim = "shipping,carrier,shipping-db,kafka".to_string();
        let (load_duration, downtime) =
            (Some(Duration::from_secs(60)), Some(Duration::from_secs(3)));
        let options = OutageOptions {
            victim,
            rate: 30,
            load_duration,
            kills: Some(4),
            downtime,
            catch_up: false,
        };
        ensure!(outage::run(&stack, &options).await?, "the outage did not hold");
        Ok(())
    })
    .await
}

/// Here clients get no response; the same key settles the outcome, and nothing happens twice.
#[tokio::test(flavor = "multi_thread")]
async fn order_or_its_database_killed_under_load_leaves_no_outcome_unknown_for_ever() -> Result<()>
{
    kill_under_load(&["order", "order-db"]).await
}

/// As after a power failure: no component survives, and all start at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn everything_killed_at_once_under_load_loses_nothing() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let killing = async {
            sleep(Duration::from_secs(3)).await;
            let names = component_names(stack).await?;
            try_join_all(names.iter().map(|name| stack.kill(name))).await?;
            sleep(Duration::from_secs(1)).await;
            stack.up().await
        };
        let (summary, ()) = under_load(client, 50, 10, killing).await?;
        ensure!(summary.confirmed > 60, "{}", summary.lines().join("\n"));
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
    with_exclusive_fixture(async |fixture| {
        let Fixture { stack, client } = fixture;
        let exits_before = stack.exits().await?.len();
        let (summary, ()) = under_load(client, 50, 20, async {
            sleep(Duration::from_secs(1)).await;
            start_two_of_each(fixture).await?;
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
        let excused = summary.excused_count();
        ensure!(summary.refused <= excused, "{}", summary.lines().join("\n"));
        let ends = stack.exits().await?.split_off(exits_before);
        ensure!(!ends.iter().any(|end| end.is_unexpected()), "{ends:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn of_two_instances_of_everything_one_killed_every_3_s_nothing_is_lost_and_none_stalls()
-> Result<()> {
    with_unverified_fixture(async |fixture| {
        start_two_of_each(fixture).await?;
        let outage = Outage {
            victims: ["order", "payment-2", "stock"].map(String::from).to_vec(),
            load: load_of(50, 9),
            downtime: Duration::from_secs(1),
            is_redundant: true,
            ..Outage::of("order")
        };
        let outage = outage::run_one(&fixture.stack, &fixture.client, &outage).await?;
        ensure!(outage.report.holds(), "{}", outage.verdict());
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
    let active = async || active_relays(stack, &Client::for_stack(stack)?, service).await;
    let what = format!("one relay of {service} to be active");
    wait_for(&what, TIMEOUT, active, |active| *active == 1).await.map(drop)
}
