//! The timeline of an order: `make timeline`.

use anyhow::{Context, Result, ensure};
use e2e::admin::order_timeline;
use launcher::eventually;
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
