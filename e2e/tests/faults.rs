//! Faults of whole processes, each with what has to hold all the same. `e2e/FAULTS.md` says which
//! test proves which fault of the matrix.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::client::Client;
use e2e::metrics::Metrics;
use e2e::topology::SERVICES;
use e2e::wait::eventually;
use e2e::{Stack, leaders, replays, sabotage};
use futures::future::try_join_all;
use serde_json::Value;
use tokio::time::sleep;
use uuid::Uuid;

use crate::outages::{partitions_of, shares};
use crate::records::letters_of;
use crate::records_faults::outbox_is_empty;
use crate::stage::{
    DRAINED, SOON, Stage, all_end, alone, basket, nobody_notices, place_all, rich, wish,
};

/// How long a table is locked to keep an instance in the middle of a batch: less than it waits.
const LOCKED: Duration = Duration::from_millis(1_500);

/// How long it is watched that nothing comes of a record whose schema nobody can tell. One that a
/// healthy registry does not know would be a dead letter by then.
const WATCHED: Duration = Duration::from_secs(3);

/// Twice each service, until the test is over.
pub async fn two_of_each(Stage { stack, client }: &Stage) -> Result<()> {
    stack.set_instances(2).await?;
    stack.up().await?;
    client.learn(stack)
}

/// F10. The other instance takes what comes meanwhile; what was under way is answered.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_ends_with_0_in_time_and_no_request_fails() -> Result<()> {
    alone(async |stage| {
        two_of_each(stage).await?;
        let Stage { stack, client } = stage;
        nobody_notices(client, 50, 12, async {
            for name in ["order", "payment", "stock", "order-2"] {
                sleep(Duration::from_millis(500)).await;
                stack.stop_well(name).await?;
                stack.start(name).await?;
            }
            Ok(())
        })
        .await
    })
    .await
}

/// F16 and F18. No schema's id is known to any service then, neither of what it is to publish nor
/// of what it is to read.
#[tokio::test(flavor = "multi_thread")]
async fn services_that_start_without_the_registry_take_orders_and_end_them_when_it_is_back()
-> Result<()> {
    alone(async |Stage { stack, client }| {
        let hearing = [("payment", "payments"), ("stock", "reservations")];
        try_join_all(hearing.map(|(service, _)| stack.stop(service))).await?;
        let published = place_all(client, 10).await?;
        outbox_is_empty(client, "order").await?;
        stack.stop("order").await?;
        stack.kill("registry").await?;
        let letters = letters_of_all(client).await?;
        try_join_all(SERVICES.map(|service| stack.start(service))).await?;
        let placed = place_all(client, 20).await?;
        for (service, _) in hearing {
            takes_records(stack, client, service).await?;
        }
        sleep(WATCHED).await;
        // Their answers would have to wait too, so what the orders show does not tell.
        for (service, rows) in hearing {
            for order in &published {
                let path = format!("/{rows}/{}", order.order_id);
                let found: Option<Value> = client.find(service, &path).await?;
                ensure!(found.is_none(), "{service} read what it has no schema of: {found:?}");
            }
        }
        for order in published.iter().chain(&placed) {
            let order = client.order(order.order_id).await?;
            let states = (&*order.status, &*order.payment, &*order.stock);
            ensure!(states == ("pending", "waiting", "waiting"), "{order:?}");
        }
        ensure!(letters_of_all(client).await? == letters, "what has to wait is a dead letter");
        stack.start("registry").await?;
        all_end(client, &published).await?;
        all_end(client, &placed).await?;
        ensure!(letters_of_all(client).await? == letters, "what had to wait is a dead letter");
        Ok(())
    })
    .await
}

/// How many dead letters wait, of all services.
async fn letters_of_all(client: &Client) -> Result<usize> {
    let mut letters = 0;
    for service in SERVICES {
        letters += letters_of(client, service).await?.len();
    }
    Ok(letters)
}

/// A service that was just started has records in its hands, whatever becomes of them.
async fn takes_records(stack: &Stack, client: &Client, service: &str) -> Result<()> {
    eventually(&format!("{service} to take what lies there"), SOON, async || {
        let metrics = Metrics::of(stack, client, service).await?;
        let taken = metrics.sum("consumer_batch_size_sum").unwrap_or_default();
        ensure!(taken > 0.0, "it has taken nothing");
        Ok(())
    })
    .await
}

/// F17.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_registry_orders_end_as_long_as_every_schema_is_known() -> Result<()> {
    alone(async |Stage { stack, client }| {
        // Cancellations have schemas of their own, and so have their answers.
        stack.stop("stock").await?;
        let cancelled = client.placed(rich(), &basket()).await?;
        client.cancelled(cancelled.order_id).await?;
        let scarce = client.placed(rich(), &[wish("sextant", 500)]).await?;
        let poor = client.placed(Uuid::now_v7(), &basket()).await?;
        stack.start("stock").await?;
        for order in [cancelled, scarce, poor] {
            client.ended(order.order_id, SOON).await?;
        }
        all_end(client, &place_all(client, 5).await?).await?;
        stack.kill("registry").await?;
        let orders = place_all(client, 50).await?;
        let poor = client.placed(Uuid::now_v7(), &basket()).await?;
        all_end(client, &orders).await?;
        client.ended(poor.order_id, SOON).await?;
        Ok(())
    })
    .await
}

/// F21: beyond its session with Kafka, so that the other instance has its partitions when it wakes
/// in the middle of what it was about to write; and beyond the relay's lock.
pub async fn frozen(stage: &Stage, seconds: u64) -> Result<()> {
    two_of_each(stage).await?;
    let lasting = seconds + 10;
    nobody_notices(&stage.client, 50, lasting, async {
        sleep(Duration::from_secs(1)).await;
        let woken = |service| Box::pin(woken(stage, service, seconds));
        let [payment, stock] = ["payment", "stock"].map(woken);
        tokio::try_join!(payment, stock).map(drop)
    })
    .await
}

/// Freezes the instance that relays while it writes, and wakes it when the other one has its place:
/// its partitions, and the relay. What it had in its hands was done by then, and it has to notice.
async fn woken(stage: &Stage, service: &'static str, seconds: u64) -> Result<()> {
    let Stage { stack, client } = stage;
    let name = relaying(stage, service).await?;
    let repeated = async || -> Result<f64> {
        let metrics = Metrics::of(stack, client, &name).await?;
        Ok(metrics.sum("events_repeated_total").unwrap_or_default())
    };
    let before = repeated().await?;
    eventually("it to wait for a lock, and be frozen", SOON, async || {
        let freeze = async {
            // Both consumers, with what they have read, and the relay.
            let all_wait = async || {
                let waiting = sabotage::waiting_for_locks(stack, service).await?;
                ensure!(waiting >= 3, "{waiting} sessions wait");
                Ok(())
            };
            // With time left to freeze it before the lock is gone.
            eventually("all sessions to wait", LOCKED / 2, all_wait).await?;
            stack.pause(&name).await
        };
        let (locked, frozen) = tokio::join!(sabotage::lock_table(stack, service, LOCKED), freeze);
        locked.and(frozen)
    })
    .await?;
    sleep(Duration::from_secs(seconds)).await;
    let done = async {
        let there = replays::places(client, service).await?;
        replaced(stage, service, &name).await?;
        eventually(&format!("{service} to handle what was there"), SOON, async || {
            let now = replays::places(client, service).await?;
            let left = there.iter().zip(&now).filter(|((_, end), (next, _))| next < end).count();
            ensure!(left == 0, "in {left} partitions it has not");
            Ok(())
        })
        .await
    }
    .await;
    stack.resume(&name).await?;
    done?;
    eventually(&format!("{name} to find done what it had in its hands"), SOON, async || {
        let now = repeated().await?;
        ensure!(now > before, "no event came to it again: it was frozen with empty hands");
        Ok(())
    })
    .await
}

/// The other instance has all partitions, and relays.
async fn replaced(stage: &Stage, service: &str, frozen: &str) -> Result<()> {
    eventually(&format!("another to take the place of {frozen}"), SOON, async || {
        let shares = shares(stage.stack.kafka_bootstrap()?, service.to_string()).await?;
        let all = shares.iter().map(Vec::len).eq([partitions_of(service)]);
        ensure!(all, "{shares:?}");
        let now = relaying(stage, service).await?;
        ensure!(now != frozen, "{frozen} still relays");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_wakes_after_others_took_its_place_does_nothing_twice() -> Result<()> {
    alone(async |stage| frozen(stage, 16).await).await
}

/// The instance of a service whose relay is active.
pub async fn relaying(Stage { stack, client }: &Stage, service: &str) -> Result<String> {
    eventually(&format!("a relay of {service}"), SOON, async || {
        for name in stack.instances_of(service)? {
            if leaders::is_relaying(stack, client, &name).await {
                return Ok(name);
            }
        }
        anyhow::bail!("no relay of {service} is active")
    })
    .await
}

/// F32, the half of it that takes no half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_session_is_ended_under_load_is_followed_by_another() -> Result<()> {
    alone(async |stage| {
        two_of_each(stage).await?;
        let Stage { stack, client } = stage;
        nobody_notices(client, 100, 8, async {
            for _ in 0..6 {
                sleep(Duration::from_secs(1)).await;
                for service in SERVICES {
                    relay_session_ended(stack, service).await?;
                }
            }
            for service in SERVICES {
                relaying(stage, service).await?;
            }
            Ok(())
        })
        .await
    })
    .await
}

/// Ends the one session that relays. Where there is none, the one before had no follower.
async fn relay_session_ended(stack: &Stack, service: &str) -> Result<()> {
    eventually(&format!("a session that relays for {service}"), SOON, async || {
        let ended = sabotage::end_relay_session(stack, service).await?;
        ensure!(ended == 1, "{ended} sessions held the lock of the relay of {service}");
        Ok(())
    })
    .await
}

/// F34. Everybody wants the same few things, named in any order.
#[tokio::test(flavor = "multi_thread")]
async fn of_64_clients_who_want_the_last_of_20_items_nobody_gets_what_is_not_there() -> Result<()> {
    alone(async |Stage { client, .. }| {
        let run = Uuid::now_v7().simple().to_string();
        let skus: Vec<String> = (0..20).map(|nth| format!("hot-{}-{nth}", &run[20..])).collect();
        const DELIVERED: i64 = 40;
        try_join_all(skus.iter().map(async |sku| {
            client.put_item(sku, "Hot", 100).await?;
            client.deliver(sku, DELIVERED, &run).await
        }))
        .await?;
        let known = async || {
            let known = client.items("order").await?;
            let all = skus.iter().all(|sku| known.iter().any(|item| item["sku"] == **sku));
            ensure!(all, "they are not known yet");
            Ok(())
        };
        eventually("order to know the items", SOON, known).await?;
        let orders = try_join_all((0..64).map(async |_| {
            let mut placed = Vec::new();
            for _ in 0..5 {
                let chosen = rand::seq::index::sample(&mut rand::rng(), skus.len(), 8);
                let lines: Vec<_> = chosen.iter().map(|nth| wish(&skus[nth], 1)).collect();
                placed.push(client.placed(rich(), &lines).await?);
            }
            anyhow::Ok(placed)
        }))
        .await?;
        let (mut confirmed, mut rejected) = (0, 0);
        for order in orders.iter().flatten() {
            match &*client.ended(order.order_id, DRAINED).await?.status {
                "confirmed" => confirmed += 1,
                _ => rejected += 1,
            }
        }
        // 320 orders of 8 pieces want 2,560 of 800.
        ensure!((50..=100).contains(&confirmed) && rejected >= 220, "{confirmed}, {rejected}");
        for sku in &skus {
            let item: Value = client.read("stock", &format!("/items/{sku}")).await?;
            let count = |name: &str| item[name].as_i64().unwrap_or(-1);
            ensure!(
                count("available") >= 0 && count("available") + count("reserved") == DELIVERED,
                "{item}"
            );
        }
        Ok(())
    })
    .await
}

/// F38. The answers arrive when the deadline has decided.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_fires_while_events_are_in_flight_ends_every_order_once() -> Result<()> {
    alone(async |Stage { stack, client }| {
        stack.stop("order").await?;
        stack.set_environment("order", sabotage::DEADLINE, Some("1"))?;
        stack.start("order").await?;
        stack.pause("stock").await?;
        let orders = place_all(client, 40).await?;
        let ended = eventually("the deadline", SOON, async || {
            let mut cancelled = 0;
            for order in &orders {
                let order = client.order(order.order_id).await?;
                cancelled += usize::from(order.reason.as_deref() == Some("deadline"));
            }
            ensure!(cancelled == orders.len(), "{cancelled} of {}", orders.len());
            Ok(())
        })
        .await;
        stack.resume("stock").await?;
        stack.stop("order").await?;
        stack.set_environment("order", sabotage::DEADLINE, None)?;
        stack.start("order").await?;
        ended?;
        for order in &orders {
            let ended = client.ended(order.order_id, SOON).await?;
            let undone = ["void", "released"].contains(&&*ended.stock);
            ensure!(ended.reason.as_deref() == Some("deadline") && undone, "{ended:?}");
        }
        Ok(())
    })
    .await
}

/// What has to be read again is.
pub async fn read_all(client: &Client, service: &'static str) -> Result<()> {
    eventually("everything to be read", DRAINED, async || {
        let left = replays::behind(client, service).await?;
        ensure!(left == 0, "{service} has {left} records to read");
        Ok(())
    })
    .await
}
