//! The timeline of an order: `make timeline`, and the requests of the admin ports that tell the same.

use anyhow::{Context, Result, ensure};
use e2e::admin::order_timeline;
use e2e::client::http_client::Client;
use launcher::eventually;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::{
    DRAIN_TIMEOUT, Fixture, TIMEOUT, basket, rich_customer, with_exclusive_fixture,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_shows_every_event_of_an_order_and_what_it_waits_for() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let ended = client.place_until_accepted(rich_customer(), &basket()).await?.order_id;
        client.wait_until_ended(ended, TIMEOUT).await?;
        let shown = eventually("every inbox to be shown", TIMEOUT, async || {
            let shown = order_timeline::run(client, ended).await?;
            ensure!(!shown.join("\n").contains("waits"), "{}", shown.join("\n"));
            Ok(shown)
        })
        .await?;
        let text = shown.join("\n");
        for event in ["orders.created", "payments.verified", "stock.reserved", "orders.confirmed"] {
            let line = shown.iter().find(|line| line.contains(event)).context(text.clone())?;
            // The time in the outbox is that of a commit, whose disk may stall.
            let was_sent = line.contains(" ms") || line.contains(" s ");
            ensure!(line.contains('@') && was_sent, "{text}");
        }
        ensure!(shown[3].contains("orders.created"), "in time order:\n{text}");
        ensure!(text.contains("status confirmed, payment verified, stock reserved"), "{text}");
        ensure!(text.ends_with("nothing is pending"), "{text}");
        ensure!(shown.iter().all(|line| line.chars().count() <= 100), "{text}");

        stack.kill("stock").await?;
        let pending = client.place_until_accepted(rich_customer(), &basket()).await?.order_id;
        let waits = ["orders.created waits for stock", "the order waits for the response of stock"];
        eventually("payment's answer to be shown", TIMEOUT, async || {
            let text = order_timeline::run(client, pending).await?.join("\n");
            ensure!(waits.iter().all(|wait| text.contains(wait)), "{text}");
            ensure!(text.contains("status pending, payment verified, stock waiting"), "{text}");
            Ok(())
        })
        .await?;
        stack.kill("kafka").await?;
        let unsent = client.place_until_accepted(rich_customer(), &basket()).await?.order_id;
        stack.start("kafka").await?;
        stack.start("stock").await?;
        client.wait_until_ended(unsent, DRAIN_TIMEOUT).await?;
        ensure!(
            order_timeline::run(client, Uuid::now_v7()).await.is_err(),
            "that order was never placed"
        );
        Ok(())
    })
    .await
}

/// The answer of a service's admin port.
async fn ask(client: &Client, service: &str, path: &str) -> Result<Value> {
    client.get_url(&format!("{}{path}", client.addresses.admins[service])).await
}

/// The events that a service published for an order.
async fn published(client: &Client, service: &str, order_id: Uuid) -> Result<Vec<Value>> {
    let answer = ask(client, service, &format!("/published-events?key={order_id}")).await?;
    Ok(answer["events"].as_array().context("a list")?.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_ports_tell_where_an_order_is_and_which_orders_are_stuck() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let ended = client.place_until_accepted(rich_customer(), &basket()).await?.order_id;
        client.wait_until_ended(ended, TIMEOUT).await?;
        let created = published(client, "order", ended).await?[0].clone();
        ensure!(created["topic"] == "orders.created", "{created}");
        let handled =
            format!("/handled-events?event_id={}", created["event_id"].as_str().context("an id")?);
        for service in ["payment", "stock"] {
            eventually("the events to be acknowledged", TIMEOUT, async || {
                let events = published(client, service, ended).await?;
                ensure!(
                    events.len() == 1 && events[0]["in_outbox"] == false,
                    "{service}: {events:?}"
                );
                Ok(())
            })
            .await?;
            let answer = ask(client, service, &handled).await?;
            let event = &answer["events"][0];
            ensure!(
                event["attempts"].as_i64() >= Some(1) && event["dead_letters"] == json!([]),
                "{answer}"
            );
        }

        stack.kill("stock").await?;
        let pending = client.place_until_accepted(rich_customer(), &basket()).await?.order_id;
        let listed = async |waits_for: Value| {
            eventually("the order to be listed", TIMEOUT, async || {
                let answer = ask(client, "order", "/pending-orders?limit=200").await?;
                let orders = answer["orders"].as_array().context("a list")?;
                let order = orders.iter().find(|it| it["order_id"] == json!(pending));
                ensure!(order.is_some_and(|order| order["waits_for"] == waits_for), "{answer}");
                Ok(())
            })
            .await
        };
        listed(json!(["stock"])).await?;
        stack.kill("kafka").await?;
        let unsent = client.place_until_accepted(rich_customer(), &basket()).await?.order_id;
        let waiting = published(client, "order", unsent).await?;
        ensure!(waiting.len() == 1 && waiting[0]["in_outbox"] == true, "{waiting:?}");
        stack.start("kafka").await?;
        stack.start("stock").await?;
        for order_id in [pending, unsent] {
            client.wait_until_ended(order_id, DRAIN_TIMEOUT).await?;
        }
        eventually("nothing to be stuck", TIMEOUT, async || {
            let answer = ask(client, "order", "/pending-orders").await?;
            ensure!(answer["pending"] == 0 && answer["orders"] == json!([]), "{answer}");
            Ok(())
        })
        .await
    })
    .await
}
