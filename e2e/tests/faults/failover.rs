//! A database failover: data that a standby had not received, and sequences that are set back.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::client::outcome::{Outcome, require_accepted};
use e2e::stack_description::SERVICES;
use faults::database_faults;
use launcher::eventually;
use tokio::time::Instant;
use uuid::Uuid;

use crate::fixture::*;

/// A commit that waits for a standby and is cut is visible before the standby has it: a repeated
/// request that reads it must not be acknowledged earlier than that.
#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_acknowledged_only_as_durably_as_its_first_request() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let (customer, key) = (rich_customer(), Uuid::now_v7().to_string());
        let place = async |key: &str| client.place_order(customer, &basket(), key).await;
        let first = require_accepted(async || place(&key).await).await?;
        // An order may be confirmed before its cancellation arrives.
        let cancelled = eventually("a cancellation in time", TIMEOUT, async || {
            let placed = client.place_until_accepted(customer, &basket()).await?;
            client.cancel_until_accepted(&placed).await
        });
        let cancelled = cancelled.await?;
        database_faults::set_absent_standby(stack, "order", true).await?;
        let asked = async {
            eventually("commits to wait", TIMEOUT, async || {
                match place(&Uuid::now_v7().to_string()).await {
                    Outcome::Unknown(_) => Ok(()),
                    outcome => anyhow::bail!("{outcome}"),
                }
            })
            .await?;
            for outcome in [place(&key).await, client.cancel_order(&cancelled).await] {
                // Or refused, if another waiting commit holds a lock on its row.
                ensure!(!matches!(outcome, Outcome::Ok(_)), "no standby has it: {outcome}");
            }
            Ok(())
        };
        let asked = asked.await;
        database_faults::set_absent_standby(stack, "order", false).await?;
        asked?;
        let again = require_accepted(async || place(&key).await).await?;
        ensure!((again.status, &again.body) == (201, &first.body), "{first}, and then {again}");
        // Its legs may have changed meanwhile.
        let again = client.cancel_until_accepted(&cancelled).await?;
        ensure!(again.status == cancelled.status && again.reason == cancelled.reason, "{again:?}");
        wait_until_confirmed(client, &[first.json()?]).await
    })
    .await
}

/// As after a failover to a standby that had not received them, while orders are in flight.
#[tokio::test(flavor = "multi_thread")]
async fn sequences_that_are_set_back_mislead_no_subscriber_and_delay_no_order() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        stack.stop("stock").await?;
        let orders = place_orders(client, 10).await?;
        let order = client.get_order(orders[0].order_id).await?;
        let api = &client.addresses.apis["order"];
        let followed = reqwest::get(format!("{api}/orders/{}/events", order.order_id));
        let followed = followed.await?.error_for_status()?;
        wait_until_paid(client, std::slice::from_ref(&order)).await?;
        for service in SERVICES {
            database_faults::reset_sequences(stack, service).await?;
        }
        stack.start("stock").await?;
        wait_until_confirmed(client, &orders).await?;
        let began = Instant::now();
        let followed = tokio::time::timeout(TIMEOUT, followed.text()).await??;
        ensure!(followed.contains("event: orders.confirmed"), "{followed}");
        let late = began.elapsed();
        ensure!(late < Duration::from_secs(2), "the event came {late:?} late");
        let path = format!("/orders/{}/history", order.order_id);
        let history: serde_json::Value = client.get("order", &path).await?;
        let events: Vec<_> = history["history"].as_array().into_iter().flatten().collect();
        ensure!(events[0]["event"] == "orders.created", "{history}");
        ensure!(events[events.len() - 1]["event"] == "orders.confirmed", "{history}");
        confirm_orders(client, 10).await
    })
    .await
}
