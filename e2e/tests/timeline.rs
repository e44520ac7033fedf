//! The timeline of an order: `make timeline`, and the orders that the admin port of order calls stuck.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::admin::order_timeline;
use e2e::client::operator::Operator;
use e2e::metrics::Metrics;
use e2e::stack_description::SERVICES;
use launcher::directories::programs_directory;
use launcher::{Stack, eventually};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::{
    DRAIN_TIMEOUT, Fixture, TIMEOUT, basket, rich_customer, with_exclusive_fixture,
};

/// Waits until the timeline of an order has each of these texts, and returns its lines.
async fn wait_for(stack: &Stack, order_id: Uuid, texts: &[&str]) -> Result<Vec<String>> {
    let operator = Operator::for_stack(stack)?;
    eventually("the timeline", TIMEOUT, async || {
        let lines = order_timeline::run(&operator, order_id).await?;
        let shown = lines.join("\n");
        let missing = texts.iter().find(|text| !shown.contains(**text));
        ensure!(missing.is_none(), "it lacks {missing:?}:\n{shown}");
        Ok(lines)
    })
    .await
}

/// The output of `make timeline` where there is no stack, but the ports of one can be reached.
fn run_elsewhere(stack: &Stack, order_id: Uuid) -> Result<String> {
    let mut command = Command::new(programs_directory()?.join("e2e"));
    command.args(["timeline", &order_id.to_string()]).env("HOLDFAST_STATE", "/nowhere");
    let urls = |url: fn(&Stack, &str) -> Result<String>| -> Result<String> {
        let urls = SERVICES.map(|service| Ok(format!("{service}={}", url(stack, service)?)));
        Ok(urls.into_iter().collect::<Result<Vec<_>>>()?.join(","))
    };
    command.env("ADMIN_URLS", urls(Stack::admin_url)?).env("API_URLS", urls(Stack::url)?);
    if let (Some(ca), Some(issuer)) = (stack.ca_certificate()?, stack.token_issuer()?) {
        let token = issuer.sign("operator", "operator support:read", TIMEOUT)?;
        command.env("SSL_CERT_FILE", ca).env("TOKEN", token);
    }
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_shows_every_event_of_an_order_and_what_it_waits_for() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let operator = Operator::for_stack(stack)?;
        let ended = client.place_until_accepted(rich_customer(), &basket()).await?.order_id;
        client.wait_until_ended(ended, TIMEOUT).await?;
        let decided = "status confirmed, payment verified, stock reserved";
        let shown = wait_for(stack, ended, &[decided, "nothing is pending"]).await?;
        let text = shown.join("\n");
        for event in ["orders.created", "payments.verified", "stock.reserved"] {
            let line = shown.iter().find(|line| line.contains(event)).context(text.clone())?;
            // The time is that of a commit, whose disk may stall.
            ensure!(line.contains(" ms") || line.contains(" s "), "{text}");
        }
        ensure!(text.contains("orders.confirmed"), "{text}");
        ensure!(shown[3].contains("orders.created"), "in time order:\n{text}");
        ensure!(shown.iter().all(|line| line.chars().count() <= 100), "{text}");
        let elsewhere = run_elsewhere(stack, ended)?;
        ensure!(elsewhere.trim_end() == text, "{elsewhere}");

        operator.ask()?.pause("stock", "a test").await?;
        eventually("stock to pause", TIMEOUT, async || {
            let metrics = Metrics::fetch(stack, client, "stock").await?;
            let paused = metrics.sum_with_label("consumer_paused", "cause=\"operator\"");
            ensure!(paused == Some(1.0), "{paused:?}");
            Ok(())
        })
        .await?;
        let pending = client.place_until_accepted(rich_customer(), &basket()).await?.order_id;
        let state = "status pending, payment verified, stock waiting";
        let waits = "the order waits for the response of stock";
        let unhandled = "orders.created waits for stock to handle it";
        wait_for(stack, pending, &[state, waits, unhandled]).await?;
        stack.kill("stock").await?;
        wait_for(stack, pending, &[state, waits, "part of stock is missing"]).await?;
        stack.kill("kafka").await?;
        let unsent = client.place_until_accepted(rich_customer(), &basket()).await?.order_id;
        wait_for(stack, unsent, &["orders.created waits in the outbox of order for Kafka"]).await?;
        stack.start("kafka").await?;
        stack.start("stock").await?;
        operator.ask()?.resume("stock").await?;
        for order_id in [pending, unsent] {
            client.wait_until_ended(order_id, DRAIN_TIMEOUT).await?;
        }
        let unknown = order_timeline::run(&operator, Uuid::now_v7()).await;
        ensure!(unknown.is_err_and(|error| error.to_string().contains("does not exist")));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_tells_which_orders_are_stuck() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let ask = async |path: &str| -> Result<Value> {
            client.get_url(&format!("{}{path}", client.addresses.admins["order"])).await
        };
        stack.kill("stock").await?;
        let pending = client.place_until_accepted(rich_customer(), &basket()).await?.order_id;
        eventually("the order to be listed", TIMEOUT, async || {
            let answer = ask("/pending-orders?limit=200").await?;
            let orders = answer["orders"].as_array().context("a list")?;
            let order = orders.iter().find(|it| it["order_id"] == json!(pending));
            ensure!(order.is_some_and(|order| order["waits_for"] == json!(["stock"])), "{answer}");
            Ok(())
        })
        .await?;
        stack.start("stock").await?;
        client.wait_until_ended(pending, DRAIN_TIMEOUT).await?;
        eventually("nothing to be stuck", TIMEOUT, async || {
            let answer = ask("/pending-orders").await?;
            ensure!(answer["pending"] == 0 && answer["orders"] == json!([]), "{answer}");
            Ok(())
        })
        .await
    })
    .await
}
