//! Outages: whoever is away, orders are accepted as long as the order service and its database are
//! there, and all end once everybody is back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::Client;
use e2e::leaders::active_relays;
use e2e::load::{self, Load};
use e2e::outage::{self, Outage};
use e2e::topology::SERVICES;
use e2e::wait::eventually;
use e2e::{Stack, sabotage};
use events::TOPICS;
use futures::future::try_join_all;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::time::{Instant, sleep};

use crate::launcher::room;
use crate::stage::{DRAINED, SOON, Stage, all_end, alone, alone_and_checked, everybody, place_all};

/// What `make outage` does, in short: a load, one kill, the checker.
async fn killed_under_load(victim: &str) -> Result<()> {
    alone_and_checked(async |Stage { stack, client }| {
        let outage = Outage {
            victims: vec![victim.to_string()],
            rate: 50,
            lasting: Duration::from_secs(6),
            kills: 1,
            down: Duration::from_secs(2),
            drained_within: DRAINED,
            watched: false,
        };
        let report = outage::one(stack, client, &outage).await?;
        ensure!(report.holds(), "{}", report.faults.join("\n"));
        let summary = &report.summary;
        ensure!(summary.confirmed > 60, "{}", summary.lines().join("\n"));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_killed_under_load_costs_no_order_and_refuses_no_customer() -> Result<()> {
    killed_under_load("stock").await
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_killed_under_load_costs_no_order_and_refuses_no_customer() -> Result<()> {
    killed_under_load("payment").await
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_killed_under_load_costs_no_order_and_refuses_no_customer() -> Result<()> {
    killed_under_load("kafka").await
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_killed_under_load_costs_no_order_and_refuses_no_customer() -> Result<()> {
    killed_under_load("registry").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_stock_killed_under_load_costs_no_order_and_refuses_no_customer()
-> Result<()> {
    killed_under_load("stock-db").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_payment_killed_under_load_costs_no_order_and_refuses_no_customer()
-> Result<()> {
    killed_under_load("payment-db").await
}

/// Here clients are left without an answer; the same key tells them, and nothing happens twice.
#[tokio::test(flavor = "multi_thread")]
async fn order_killed_under_load_leaves_no_outcome_unknown_for_ever() -> Result<()> {
    killed_under_load("order").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_order_killed_under_load_leaves_no_outcome_unknown_for_ever() -> Result<()>
{
    killed_under_load("order-db").await
}

/// As when the machine stops: nobody is left who could go on, and all start at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn everything_killed_at_once_under_load_loses_nothing() -> Result<()> {
    alone(async |Stage { stack, client }| {
        let lasting = Duration::from_secs(10);
        let load = Load { rate: 50, lasting, drained_within: DRAINED, ..Load::default() };
        let killing = async {
            sleep(Duration::from_secs(3)).await;
            let everybody = everybody(stack).await?;
            try_join_all(everybody.iter().map(|name| stack.kill(name))).await?;
            sleep(Duration::from_secs(1)).await;
            stack.up().await
        };
        let (summary, ()) = load::run(client, &load, killing).await?;
        ensure!(summary.holds() && summary.confirmed > 60, "{}", summary.lines().join("\n"));
        Ok(())
    })
    .await
}

/// Also by an order service that starts while everything it needs but its database is away.
#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_and_registry_orders_are_accepted_and_all_end_when_they_are_back()
-> Result<()> {
    alone(async |Stage { stack, client }| {
        tokio::try_join!(stack.kill("kafka"), stack.kill("registry"))?;
        let began = Instant::now();
        let mut orders = place_all(client, 200).await?;
        ensure!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
        stack.kill("order").await?;
        stack.start("order").await?;
        orders.extend(place_all(client, 20).await?);
        tokio::try_join!(stack.start("kafka"), stack.start("registry"))?;
        all_end(client, &orders).await
    })
    .await
}

/// A service that grew beyond what it is given would be killed for it, and again after each start.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_the_largest_events_needs_no_more_memory_than_docker_compose_gives()
-> Result<()> {
    const EVENTS: i64 = 1_000;
    const MEMORY_BYTES_MAX: u64 = 128 * 1024 * 1024;
    let _room = room().await?;
    let stack = Stack::ephemeral()?;
    stack.up().await?;
    let look = |service| {
        let bytes = stack.memory_bytes(service)?;
        ensure!(bytes <= MEMORY_BYTES_MAX, "{service} grew to {bytes} bytes");
        Ok(())
    };
    stack.kill("kafka").await?;
    sabotage::publish_largest(&stack, EVENTS).await?;
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        look("order")?;
        sleep(Duration::from_millis(50)).await;
    }
    stack.start("kafka").await?;
    let within = Instant::now() + DRAINED;
    while sabotage::letters(&stack, "payment", "undecodable").await? < EVENTS
        || sabotage::letters(&stack, "stock", "undecodable").await? < EVENTS
    {
        SERVICES.into_iter().try_for_each(look)?;
        ensure!(Instant::now() < within, "payment and stock have not read them all");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Under load: second instances join, the first ones are killed and come back, the second ones leave.
#[tokio::test(flavor = "multi_thread")]
async fn instances_that_join_die_and_leave_under_load_lose_nothing() -> Result<()> {
    alone(async |Stage { stack, client }| {
        let died_before = stack.ends().await?.len();
        let lasting = Duration::from_secs(20);
        let load = Load { rate: 50, lasting, drained_within: DRAINED, ..Load::default() };
        let (summary, ()) = load::run(client, &load, async {
            sleep(Duration::from_secs(1)).await;
            stack.set_instances(2).await?;
            stack.up().await?;
            client.learn(stack)?;
            for service in SERVICES {
                shared_by_two(stack, service).await?;
            }
            for service in SERVICES {
                stack.kill(service).await?;
            }
            for service in SERVICES {
                one_relays(stack, service).await?;
            }
            sleep(Duration::from_secs(2)).await;
            stack.up().await?;
            for service in SERVICES {
                shared_by_two(stack, service).await?;
            }
            stack.set_instances(1).await?;
            client.learn(stack)
        })
        .await?;
        ensure!(
            summary.holds() && summary.refused <= summary.excused(),
            "{}",
            summary.lines().join("\n")
        );
        let ends = stack.ends().await?.split_off(died_before);
        ensure!(!ends.iter().any(|end| end.is_death()), "{ends:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_instances_of_everything_one_killed_every_3_s_nothing_is_lost_and_none_stands_still()
-> Result<()> {
    alone_and_checked(async |Stage { stack, client }| {
        stack.set_instances(2).await?;
        stack.up().await?;
        client.learn(stack)?;
        let outage = Outage {
            victims: ["order", "payment-2", "stock"].map(String::from).to_vec(),
            rate: 50,
            lasting: Duration::from_secs(9),
            kills: 3,
            down: Duration::from_secs(1),
            drained_within: DRAINED,
            watched: true,
        };
        let report = outage::one(stack, client, &outage).await?;
        ensure!(report.holds(), "{}", report.faults.join("\n"));
        Ok(())
    })
    .await
}

/// Exactly one relay is active, by its own word, and both instances have partitions to read.
async fn shared_by_two(stack: &Stack, service: &str) -> Result<()> {
    one_relays(stack, service).await?;
    let what = format!("two instances of {service} to share the partitions");
    eventually(&what, SOON, async || {
        let shares = shares(stack.kafka_bootstrap()?, service.to_string()).await?;
        let all: BTreeSet<&(String, i32)> = shares.iter().flatten().collect();
        let count: usize = shares.iter().map(Vec::len).sum();
        ensure!(shares.len() == 2 && shares.iter().all(|own| !own.is_empty()), "{shares:?}");
        ensure!(all.len() == count && count == partitions_of(service), "{shares:?}");
        Ok(())
    })
    .await
}

/// The first one may have died between its answer and the second one's: asked until it is quiet.
async fn one_relays(stack: &Stack, service: &str) -> Result<()> {
    eventually(&format!("one relay of {service} to be active"), SOON, async || {
        let active = active_relays(stack, &Client::of(stack)?, service).await?;
        ensure!(active == 1, "{active} relays of {service} are active");
        Ok(())
    })
    .await
}

/// How many partitions a service has to read, of all its topics.
pub fn partitions_of(service: &str) -> usize {
    let heard = TOPICS.iter().filter(|topic| topic.subscribers.contains(&service));
    heard.map(|topic| topic.partitions as usize).sum()
}

/// The partitions of each member of a group, as the broker knows them.
pub async fn shares(kafka: String, group: String) -> Result<Vec<Vec<(String, i32)>>> {
    tokio::task::spawn_blocking(move || {
        let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", kafka).create()?;
        let groups = client.fetch_group_list(Some(&group), Duration::from_secs(10))?;
        let group = groups.groups().first().context("the group exists")?;
        let members = group.members().iter();
        members.map(|member| assigned(member.assignment().unwrap_or_default())).collect()
    })
    .await?
}

/// Kafka's `ConsumerProtocolAssignment`: a version, and of each topic its name and its partitions.
fn assigned(bytes: &[u8]) -> Result<Vec<(String, i32)>> {
    let mut rest = bytes.get(2..).unwrap_or_default();
    let mut take = |length: usize| -> Result<Vec<u8>> {
        let (taken, after) = rest.split_at_checked(length).context("it is cut short")?;
        rest = after;
        Ok(taken.to_vec())
    };
    let mut partitions = Vec::new();
    if bytes.is_empty() {
        return Ok(partitions);
    }
    let number = |bytes: Vec<u8>| bytes.iter().fold(0_i32, |all, byte| all << 8 | i32::from(*byte));
    for _ in 0..number(take(4)?) {
        let length = number(take(2)?);
        let topic = String::from_utf8(take(usize::try_from(length)?)?)?;
        for _ in 0..number(take(4)?) {
            partitions.push((topic.clone(), number(take(4)?)));
        }
    }
    Ok(partitions)
}
