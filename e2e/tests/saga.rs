//! The saga as its customers see it: how an order can end. The tests of each service show that repeated requests change
//! nothing, and so does every load.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::client::http_client::Client;
use e2e::client::order::Order;
use e2e::client::outcome::retry_until_settled;
use e2e::workload::seed;
use events::participants::participants;
use launcher::eventually;
use serde_json::Value;
use uuid::Uuid;

use crate::fixture::*;

/// The events of an order, in the order of their decisions.
async fn event_names(client: &Client, order_id: Uuid) -> Result<Vec<String>> {
    let history: Value = client.get("order", &format!("/orders/{order_id}/history")).await?;
    let events = history["history"].as_array().into_iter().flatten();
    Ok(events.filter_map(|event| Some(event["event"].as_str()?.to_string())).collect())
}

async fn read_state(client: &Client, service: &str, path: &str) -> Result<String> {
    let found: Value = client.get(service, path).await?;
    Ok(found["state"].as_str().unwrap_or_default().to_string())
}

/// The legs of an order are the states that payment and stock have.
async fn assert_legs(client: &Client, order: &Order) -> Result<()> {
    for (service, kind) in [("payment", "payments"), ("stock", "reservations")] {
        let state = read_state(client, service, &format!("/{kind}/{}", order.order_id)).await?;
        assert_eq!(order.leg(service), state);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_can_be_paid_and_supplied_is_confirmed() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let lines = [line("hand-compass", 1), line("dock-line", 3)];
        let placed = client.place_until_accepted(rich_customer(), &lines).await?;
        assert_eq!((placed.total_cents, placed.currency.as_str()), (7_900 + 3 * 2_450, "EUR"));
        let order = client.wait_until_ended(placed.order_id, TIMEOUT).await?;
        assert_eq!((order.status.as_str(), &order.reason), ("confirmed", &None));
        assert_legs(client, &order).await?;
        let mut events = event_names(client, order.order_id).await?;
        let mut names = participants().map(|it| it.accepted.name).to_vec();
        names.extend(["orders.created", "orders.confirmed"]);
        let ends = [events.first(), events.last()].map(|name| name.cloned().unwrap_or_default());
        assert_eq!(ends, ["orders.created", "orders.confirmed"]);
        events.sort_unstable();
        names.sort_unstable();
        assert_eq!(events, names);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_cannot_be_paid_is_cancelled_and_its_stock_is_released() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let order = place_until(client, seed::POOR_CUSTOMER.customer_id, "cancelled").await?;
        assert_eq!(order.reason.as_deref(), Some("payment_declined"));
        assert_eq!(order.leg("payment"), "declined");
        assert!(["released", "void"].contains(&order.leg("stock")), "{order:?}");
        assert_legs(client, &order).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_more_than_there_is_is_cancelled_and_its_payment_is_refunded() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let scarce = seed::SCARCE_ITEM;
        let item = format!("/items/{}", scarce.sku);
        let before: Value = client.get("stock", &item).await?;
        let lines = [line("wool-cap", 1), line(scarce.sku, scarce.delivered_quantity + 1)];
        let placed = client.place_until_accepted(rich_customer(), &lines).await?;
        let order = client.wait_until_ended(placed.order_id, TIMEOUT).await?;
        assert_eq!(
            (&*order.status, order.reason.as_deref()),
            ("cancelled", Some("stock_rejected"))
        );
        assert_eq!(order.leg("stock"), "rejected");
        assert!(["refunded", "void"].contains(&order.leg("payment")), "{order:?}");
        let after: Value = client.get("stock", &item).await?;
        assert_eq!(before, after, "every line is reserved, or nothing is");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_cancelled_at_once_ends_with_both_legs_undone() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        // The saga may be faster than the customer; another test covers that case.
        for _ in 0..20 {
            let placed = client.place_until_accepted(rich_customer(), &basket()).await?;
            let cancelled =
                retry_until_settled(async || client.cancel_order(&placed).await).await?;
            let order = client.wait_until_ended(placed.order_id, TIMEOUT).await?;
            if cancelled.status == 409 {
                assert_eq!(order.status, "confirmed");
                continue;
            }
            assert_eq!(cancelled.accepted_json::<Order>()?.status, "cancelled");
            assert_eq!((&*order.status, order.reason.as_deref()), ("cancelled", Some("customer")));
            assert!(["refunded", "void"].contains(&order.leg("payment")), "{order:?}");
            assert!(["released", "void"].contains(&order.leg("stock")), "{order:?}");
            assert_legs(client, &order).await?;
            let again = client.cancel_until_accepted(&order).await?;
            assert_eq!(again, order, "a second cancellation changes nothing");
            return Ok(());
        }
        bail!("no order could be cancelled before it was confirmed");
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_cancelled_after_its_payment_while_stock_is_down_is_refunded_at_once() -> Result<()>
{
    with_exclusive_fixture(async |Fixture { stack, client }| {
        stack.kill("stock").await?;
        let placed = [client.place_until_accepted(rich_customer(), &basket()).await?];
        let order = wait_until_paid(client, &placed).await?;
        assert_eq!((order.status.as_str(), order.leg("stock")), ("pending", "waiting"));
        let items = client.items("order").await?;
        assert!(items.len() > 10, "{items:?}");

        client.cancel_until_accepted(&order).await?;
        let is_refunded = |it: &Order| it.leg("payment") == "refunded";
        let order = wait_until_each(client, &placed, "the refund", is_refunded).await?;
        assert_eq!((order.status.as_str(), order.leg("stock")), ("cancelled", "waiting"));
        stack.start("stock").await?;
        let order = client.wait_until_ended(order.order_id, TIMEOUT).await?;
        assert!(["released", "void"].contains(&order.leg("stock")), "{order:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_price_counts_for_new_orders_and_for_no_old_one() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let sku = format!("candle-{}", &Uuid::now_v7().to_string()[24..]);
        client.put_item(&sku, "Candle", 100).await?;
        client.deliver(&sku, 10, "candles").await?;
        let priced = async |price: i64| {
            eventually("the order service to know the price", TIMEOUT, async || {
                let items = client.items("order").await?;
                let known = items.iter().find(|item| item["sku"] == sku.as_str());
                ensure!(known.is_some_and(|item| item["price_cents"] == price), "{known:?}");
                Ok(())
            })
            .await
        };
        priced(100).await?;
        let cheap = client.place_until_accepted(rich_customer(), &[line(&sku, 2)]).await?;
        client.put_item(&sku, "Candle", 150).await?;
        priced(150).await?;
        let dear = client.place_until_accepted(rich_customer(), &[line(&sku, 2)]).await?;
        assert_eq!((cheap.total_cents, dear.total_cents), (200, 300));
        for order in [cheap, dear] {
            let ended = client.wait_until_ended(order.order_id, Duration::from_secs(30)).await?;
            assert_eq!((&*ended.status, ended.total_cents), ("confirmed", order.total_cents));
        }
        Ok(())
    })
    .await
}
