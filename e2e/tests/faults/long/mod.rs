//! Faults that take minutes, or need their own disk or clock: `make faults` runs them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chassis::event::Event;
use e2e::client::http_client::Client;
use e2e::client::kafka;
use e2e::client::order::Order;
use e2e::stack_description::{SERVICES, stack_description};
use e2e::workload::stall_detector::StallDetector;
use events::saga_topics;
use events::stock::StockReserved;
use futures::future::try_join_all;
use launcher::{Brokers, Stack, eventually};
use rdkafka::admin::{AdminOptions, NewPartitions};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::faults::frozen::freeze_under_load;
use crate::fixture::*;

mod benchmark;
mod boards;
mod captured_traffic;
mod catch_up;
mod clocks;
mod compressed_records;
mod connector;
mod disks;
mod evolution;
mod foreign_client;
mod foreign_generators;
mod foreign_transactions;
mod gateways;
mod generated_repository;
mod memory;
mod network;
mod open_files;
mod participant;
mod readiness;
mod rejected_records;
mod replaced_registry;
mod reporting;
mod restored_database;
mod rotation;
mod secured_flows;
mod standby;
mod streams;
mod token_logs;
mod traces;
mod unread_log;

/// The limit of a service in docker compose.
const MEMORY_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// F22: the longest time that a partition may be without an owner.
const UNOWNED_MAX: Duration = Duration::from_secs(15);

/// Runs a test on a stack of its own, where only the test may end a process.
async fn on_ephemeral_stack(test: impl AsyncFnOnce(&Stack) -> Result<()>) -> Result<()> {
    without_fixture(async || {
        let stack = Stack::ephemeral(&stack_description())?;
        without_unexpected_exits(&stack, test(&stack)).await
    })
    .await
}

/// F12. Longer than the broker's session with the controller and the relays' delivery timeout.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_broker_that_is_frozen_under_load_refuses_no_customer_and_loses_nothing() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        under_load_without_errors(client, 50, 40, async {
            sleep(Duration::from_secs(5)).await;
            stack.pause("kafka").await?;
            sleep(Duration::from_secs(30)).await;
            stack.resume("kafka").await
        })
        .await
    })
    .await
}

/// F12. One of three brokers: no effect. Two of three: no record is acknowledged, orders are
/// accepted and wait. The controller: partitions that it leads wait.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn of_three_brokers_one_may_be_lost_and_of_two_that_are_lost_all_is_caught_up() -> Result<()>
{
    on_ephemeral_stack(brokers_lost).await
}

async fn brokers_lost(stack: &Stack) -> Result<()> {
    let brokers = Brokers::start_three(stack).await?;
    let client = start_and_seed(stack).await?;
    confirm_orders(&client, 20).await?;
    under_load_without_errors(&client, 30, 15, async {
        sleep(Duration::from_secs(3)).await;
        brokers.kill(2)?;
        // With one broker missing, before it is back.
        sleep(Duration::from_secs(6)).await;
        confirm_orders(&client, 10).await?;
        brokers.start(2).await
    })
    .await?;

    let waited = under_load_without_errors(&client, 30, 15, async {
        sleep(Duration::from_secs(3)).await;
        brokers.kill(2)?;
        brokers.kill(3)?;
        sleep(Duration::from_secs(4)).await;
        let orders = place_orders(&client, 10).await?;
        sleep(Duration::from_secs(4)).await;
        let mut waiting = 0;
        for order in orders {
            waiting += u32::from(client.get_order(order.order_id).await?.status == "pending");
        }
        tokio::try_join!(brokers.start(2), brokers.start(3))?;
        Ok(waiting)
    })
    .await?;
    ensure!(waited == 10, "{waited} of 10 waited: a single broker acknowledged a record");

    under_load_without_errors(&client, 30, 12, async {
        sleep(Duration::from_secs(3)).await;
        stack.kill("kafka").await?;
        sleep(Duration::from_secs(4)).await;
        stack.start("kafka").await
    })
    .await?;
    assert_verified(&client).await
}

/// The machine sleeps, like a laptop, with everything on it except the clients. When it wakes,
/// every session, lease and timeout has expired at the same moment.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn a_machine_that_sleeps_for_a_minute_under_load_loses_nothing() -> Result<()> {
    with_exclusive_fixture(async |fixture| {
        start_two_of_each(fixture).await?;
        let Fixture { stack, client } = fixture;
        let names = component_names(stack).await?;
        let sleeping = async {
            sleep(Duration::from_secs(10)).await;
            try_join_all(names.iter().map(|name| stack.pause(name))).await?;
            sleep(Duration::from_secs(60)).await;
            try_join_all(names.iter().map(|name| stack.resume(name))).await.map(drop)
        };
        under_load(client, 20, 80, sleeping).await.map(drop)
    })
    .await
}

/// F21 and F32, with the duration in docs/testing.md.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn an_instance_that_wakes_after_a_minute_does_nothing_twice() -> Result<()> {
    with_exclusive_fixture(async |fixture| freeze_under_load(fixture, 60).await).await
}

/// F22.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn from_one_instance_to_three_and_back_under_load_no_partition_stalls() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let mut detector = StallDetector::connect(client).await?;
        let scaling = async {
            for service in ["order", "payment", "stock"] {
                for (further, is_added) in [(2, true), (3, true), (2, false), (3, false)] {
                    let instance = format!("{service}-{further}");
                    match is_added {
                        true => stack.start(&instance).await?,
                        false => stack.remove(&instance).await?,
                    }
                    client.refresh_instances(stack)?;
                    sleep(Duration::from_secs(3)).await;
                }
            }
            Ok(())
        };
        let (summary, ()) = tokio::select! {
            loaded = under_load(client, 50, 60, scaling) => loaded?,
            broken = detector.run() => return Err(broken.err().context("the watch ended")?),
        };
        let excused = summary.excused_count();
        ensure!(summary.refused <= excused, "{}", summary.lines().join("\n"));
        for stall in detector.stalls() {
            let longest = stall.consumer.max(stall.relay).max(stall.partition);
            ensure!(longest < UNOWNED_MAX, "{stall:?}");
        }
        Ok(())
    })
    .await
}

/// F28. A key may go to another partition from then on; no handler depends on order.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn partitions_that_are_added_under_load_are_read_from_their_first_record() -> Result<()> {
    on_ephemeral_stack(partitions_added).await
}

async fn partitions_added(stack: &Stack) -> Result<()> {
    let client = start_and_seed(stack).await?;
    under_load_without_errors(&client, 50, 50, async {
        // Many at once: it takes long to create their logs, and records are refused until then.
        for count in [16, 40, 64] {
            sleep(Duration::from_secs(10)).await;
            let more = saga_topics().iter().map(|topic| NewPartitions::new(topic.name, count));
            let more: Vec<_> = more.collect();
            let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
            for made in kafka::admin_client(&client)?.create_partitions(&more, &options).await? {
                made.map_err(|(topic, error)| anyhow::anyhow!("{topic}: {error}"))?;
            }
        }
        Ok(())
    })
    .await?;
    assert_verified(&client).await
}

/// F28. An operator deletes a topic, and `contracts apply` creates it again: the acknowledged
/// events are gone, and are republished.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_topic_that_is_missing_delays_its_own_events_and_nothing_else() -> Result<()> {
    on_ephemeral_stack(topic_missing).await
}

async fn topic_missing(stack: &Stack) -> Result<()> {
    stack.up_infrastructure().await?;
    // No topic exists yet. Services wait for what they need and do not exit.
    for service in SERVICES {
        stack.migrate(service).await?;
        stack.start(service).await?;
    }
    sleep(Duration::from_secs(3)).await;
    let client = start_and_seed(stack).await?;
    confirm_orders(&client, 20).await?;
    let topic = StockReserved::topic().name;
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
    for deleted in kafka::admin_client(&client)?.delete_topics(&[topic], &options).await? {
        deleted.map_err(|(topic, error)| anyhow::anyhow!("{topic}: {error}"))?;
    }
    let orders = place_orders(&client, 20).await?;
    eventually("payment's approval", Duration::from_secs(25), async || {
        for order in &orders {
            let order = client.get_order(order.order_id).await?;
            ensure!(order.leg("payment") == "verified", "{order:?}");
        }
        Ok(())
    })
    .await?;
    sleep(Duration::from_secs(5)).await;
    for order in &orders {
        let order = client.get_order(order.order_id).await?;
        ensure!((order.leg("payment"), order.leg("stock")) == ("verified", "waiting"), "{order:?}");
    }
    e2e::admin::republish::run(stack, &e2e::admin::republish::RepublishOptions::default()).await?;
    wait_until_confirmed(&client, &orders).await?;
    assert_verified(&client).await
}
