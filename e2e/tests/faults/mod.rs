//! Faults of whole processes, each with what must hold in spite of it. `docs/testing.md` lists the
//! test of each fault of the matrix.

mod database;
mod failover;
mod frozen;
mod long;
mod network;
mod relay_sessions;

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::client::http_client::Client;
use e2e::client::order::Order;
use e2e::metrics::Metrics;
use e2e::scenarios::order_faults;
use e2e::stack_description::SERVICES;
use futures::future::try_join_all;
use launcher::{Stack, eventually};
use serde_json::Value;
use tokio::time::sleep;
use uuid::Uuid;

use crate::fixture::*;

/// How long a record with an unresolvable schema id is watched to have no effect. By then it would
/// be a dead letter if a healthy registry did not have its schema.
const OBSERVATION_TIME: Duration = Duration::from_secs(3);

/// F10. The other instance takes over, and requests in flight are completed.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_ends_with_0_in_time_and_no_request_fails() -> Result<()> {
    with_exclusive_fixture(async |fixture| {
        start_two_of_each(fixture).await?;
        let Fixture { stack, client } = fixture;
        under_load_without_errors(client, 50, 12, async {
            for name in ["order", "payment", "stock", "order-2"] {
                sleep(Duration::from_millis(500)).await;
                stack.stop_gracefully(name).await?;
                stack.start(name).await?;
            }
            Ok(())
        })
        .await
    })
    .await
}

/// F16 and F18. No service can resolve a schema id then, neither to publish nor to read.
#[tokio::test(flavor = "multi_thread")]
async fn services_that_start_without_the_registry_take_orders_and_end_them_when_it_is_back()
-> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let subscribers = [("payment", "payments"), ("stock", "reservations")];
        try_join_all(subscribers.map(|(service, _)| stack.stop(service))).await?;
        let published = place_orders(client, 10).await?;
        wait_until_outbox_empty(client, "order").await?;
        stack.stop("order").await?;
        stack.kill("registry").await?;
        let dead_letters = count_dead_letters(client).await?;
        try_join_all(SERVICES.map(|service| stack.start(service))).await?;
        let placed = place_orders(client, 20).await?;
        for (service, _) in subscribers {
            wait_until_records_taken(stack, client, service).await?;
        }
        sleep(OBSERVATION_TIME).await;
        // Their responses would have to wait too, so the state of the orders proves nothing.
        for (service, rows) in subscribers {
            for order in &published {
                let path = format!("/{rows}/{}", order.order_id);
                let found: Option<Value> = client.find(service, &path).await?;
                ensure!(found.is_none(), "{service} handled a record without a schema: {found:?}");
            }
        }
        for orders in [&published, &placed] {
            assert_unanswered(client, orders, "without the registry").await?;
        }
        ensure!(count_dead_letters(client).await? == dead_letters, "one that must wait is dead");
        stack.start("registry").await?;
        wait_until_confirmed(client, &published).await?;
        wait_until_confirmed(client, &placed).await?;
        ensure!(count_dead_letters(client).await? == dead_letters, "one that had to wait is dead");
        Ok(())
    })
    .await
}

/// The number of waiting dead letters of all services.
async fn count_dead_letters(client: &Client) -> Result<usize> {
    let mut dead_letters = 0;
    for service in SERVICES {
        dead_letters += waiting_dead_letters(client, service).await?.len();
    }
    Ok(dead_letters)
}

/// Waits until a service that was just started has read records.
async fn wait_until_records_taken(stack: &Stack, client: &Client, service: &str) -> Result<()> {
    let taken = async || {
        let metrics = Metrics::fetch(stack, client, service).await?;
        Ok(metrics.sum("consumer_batch_size_sum"))
    };
    let what = format!("{service} to read the records");
    wait_for(&what, TIMEOUT, taken, |taken| *taken > Some(0.0)).await.map(drop)
}

/// F17.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_registry_orders_end_as_long_as_every_schema_is_known() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        // Cancellations and the responses to them have schemas of their own.
        stack.stop("stock").await?;
        let cancelled = client.place_until_accepted(rich_customer(), &basket()).await?;
        client.cancel_until_accepted(&cancelled).await?;
        let scarce = client.place_until_accepted(rich_customer(), &[line("sextant", 500)]).await?;
        let poor = client.place_until_accepted(Uuid::now_v7(), &basket()).await?;
        stack.start("stock").await?;
        for order in [cancelled, scarce, poor] {
            client.wait_until_ended(order.order_id, TIMEOUT).await?;
        }
        confirm_orders(client, 5).await?;
        stack.kill("registry").await?;
        let orders = place_orders(client, 50).await?;
        let poor = client.place_until_accepted(Uuid::now_v7(), &basket()).await?;
        wait_until_confirmed(client, &orders).await?;
        client.wait_until_ended(poor.order_id, TIMEOUT).await?;
        Ok(())
    })
    .await
}

/// F34. All clients want the same few items, in any order.
#[tokio::test(flavor = "multi_thread")]
async fn of_64_clients_who_want_the_last_of_20_items_none_is_oversold() -> Result<()> {
    with_exclusive_fixture(async |Fixture { client, .. }| {
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
            ensure!(all, "the order service does not have the items yet");
            Ok(())
        };
        eventually("the order service to have the items", TIMEOUT, known).await?;
        let orders = try_join_all((0..64).map(async |_| {
            let mut placed = Vec::new();
            for _ in 0..5 {
                let chosen = rand::seq::index::sample(&mut rand::rng(), skus.len(), 8);
                let lines: Vec<_> = chosen.iter().map(|nth| line(&skus[nth], 1)).collect();
                placed.push(client.place_until_accepted(rich_customer(), &lines).await?);
            }
            anyhow::Ok(placed)
        }))
        .await?;
        let (mut confirmed, mut rejected) = (0, 0);
        for order in orders.iter().flatten() {
            match &*client.wait_until_ended(order.order_id, DRAIN_TIMEOUT).await?.status {
                "confirmed" => confirmed += 1,
                _ => rejected += 1,
            }
        }
        // 320 orders of 8 units want 2,560 of 800.
        ensure!((50..=100).contains(&confirmed) && rejected >= 220, "{confirmed}, {rejected}");
        for sku in &skus {
            let item: Value = client.get("stock", &format!("/items/{sku}")).await?;
            let count = |name: &str| item[name].as_i64().unwrap_or(-1);
            let all = count("available") + count("reserved");
            ensure!(count("available") >= 0 && all == DELIVERED, "{item}");
        }
        Ok(())
    })
    .await
}

/// F38. The responses arrive after the deadline has decided.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_fires_while_events_are_in_flight_ends_every_order_once() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        stack.stop("order").await?;
        stack.set_environment("order", order_faults::DEADLINE_VARIABLE, Some("1"))?;
        stack.start("order").await?;
        stack.pause("stock").await?;
        let orders = place_orders(client, 40).await?;
        let is_late = |it: &Order| it.reason.as_deref() == Some("deadline");
        let ended = wait_until_each(client, &orders, "the deadline", is_late).await;
        stack.resume("stock").await?;
        stack.stop("order").await?;
        stack.set_environment("order", order_faults::DEADLINE_VARIABLE, None)?;
        stack.start("order").await?;
        ended?;
        for order in &orders {
            let ended = client.wait_until_ended(order.order_id, TIMEOUT).await?;
            let undone = ["void", "released"].contains(&ended.leg("stock"));
            ensure!(ended.reason.as_deref() == Some("deadline") && undone, "{ended:?}");
        }
        Ok(())
    })
    .await
}
