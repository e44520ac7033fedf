//! Outages: whoever is away, orders are accepted as long as the order service and its database are
//! there, and all end once everybody is back.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::client::{Client, Order, eventually};
use e2e::load::{self, Load};
use futures::future::try_join_all;
use tokio::time::Instant;

use crate::stage::{SOON, Stage, alone, basket, rich};

const DRAINED: Duration = Duration::from_secs(60);

/// A short load while one member is killed and started twice.
async fn load_while_killing(victim: &str) -> Result<()> {
    alone(async |Stage { stack, client }| {
        let (every, down, drain) = (8, 2, 60);
        let kill = Some(victim.to_string());
        let load = Load { rate: 50, seconds: 16, kill, every, down, drain, ..Load::default() };
        let summary = load::run(stack, client, &load).await?;
        ensure!(summary.holds(&load), "{}", summary.lines().join("\n"));
        ensure!(summary.kills == 2 && summary.confirmed > 400, "{}", summary.lines().join("\n"));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_killed_under_load_costs_no_order_and_refuses_no_customer() -> Result<()> {
    load_while_killing("stock").await
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_killed_under_load_costs_no_order_and_refuses_no_customer() -> Result<()> {
    load_while_killing("payment").await
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_killed_under_load_costs_no_order_and_refuses_no_customer() -> Result<()> {
    load_while_killing("kafka").await
}

/// Here clients are left without an answer; the same key tells them, and nothing happens twice.
#[tokio::test(flavor = "multi_thread")]
async fn order_killed_under_load_leaves_no_outcome_unknown_for_ever() -> Result<()> {
    load_while_killing("order").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_databases_killed_one_after_the_other_cost_no_order() -> Result<()> {
    alone(async |Stage { stack, client }| {
        for victim in ["stock-db", "payment-db"] {
            stack.kill(victim).await?;
            let orders = place_all(client, 50).await?;
            stack.start(victim).await?;
            all_end(client, &orders).await?;
        }
        stack.kill("order-db").await?;
        let refused = client.place(rich(), &basket(), "while its database is away").await;
        ensure!(!matches!(refused, e2e::client::Outcome::Ok(_)), "{refused:?}");
        stack.start("order-db").await?;
        let order = eventually("orders to be accepted again", SOON, async || {
            client.placed(rich(), &basket()).await
        })
        .await?;
        all_end(client, &[order]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_and_registry_orders_are_accepted_and_all_end_when_they_are_back()
-> Result<()> {
    alone(async |Stage { stack, client }| {
        tokio::try_join!(stack.kill("kafka"), stack.kill("registry"))?;
        let began = Instant::now();
        let orders = place_all(client, 200).await?;
        ensure!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
        tokio::try_join!(stack.start("kafka"), stack.start("registry"))?;
        all_end(client, &orders).await
    })
    .await
}

/// A service that starts while everything it needs but its database is away serves all the same.
#[tokio::test(flavor = "multi_thread")]
async fn order_starts_without_kafka_and_registry() -> Result<()> {
    alone(async |Stage { stack, client }| {
        tokio::try_join!(stack.kill("kafka"), stack.kill("registry"), stack.kill("order"))?;
        stack.start("order").await?;
        let orders = place_all(client, 20).await?;
        tokio::try_join!(stack.start("kafka"), stack.start("registry"))?;
        all_end(client, &orders).await
    })
    .await
}

async fn place_all(client: &Client, count: usize) -> Result<Vec<Order>> {
    try_join_all((0..count).map(async |_| client.placed(rich(), &basket()).await)).await
}

async fn all_end(client: &Client, orders: &[Order]) -> Result<()> {
    let deadline = Instant::now() + DRAINED;
    for order in orders {
        let ended = client.ended(order.order_id, deadline - Instant::now()).await?;
        ensure!(ended.status == "confirmed", "{ended:?}");
    }
    Ok(())
}
