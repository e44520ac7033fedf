//! The saga as its customers see it: how an order can end, and that repeated requests change
//! nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::client::http_client::Client;
use e2e::client::order::Order;
use e2e::client::outcome::{require_accepted, retry_until_settled};
use e2e::workload::seed;
use futures::future::{join_all, try_join_all};
use launcher::eventually;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::{
    Fixture, TIMEOUT, basket, line, rich_customer, with_exclusive_fixture, with_shared_fixture,
};

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

/// The states of an order according to payment and stock.
async fn legs(client: &Client, order_id: Uuid) -> Result<(String, String)> {
    Ok((
        read_state(client, "payment", &format!("/payments/{order_id}")).await?,
        read_state(client, "stock", &format!("/reservations/{order_id}")).await?,
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_can_be_paid_and_supplied_is_confirmed() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let placed = client
            .place_until_accepted(rich_customer(), &[line("hand-compass", 1), line("dock-line", 3)])
            .await?;
        assert_eq!((placed.total_cents, placed.currency.as_str()), (7_900 + 3 * 2_450, "EUR"));
        let order = client.wait_until_ended(placed.order_id, TIMEOUT).await?;
        assert_eq!((order.status.as_str(), order.reason), ("confirmed", None));
        let legs = legs(client, order.order_id).await?;
        assert_eq!((legs.0.as_str(), legs.1.as_str()), ("verified", "reserved"));
        let events = event_names(client, order.order_id).await?;
        assert_eq!(events.len(), 4, "{events:?}");
        assert_eq!(
            (events[0].as_str(), events[3].as_str()),
            ("orders.created", "orders.confirmed")
        );
        let between: BTreeSet<&str> = events[1..3].iter().map(String::as_str).collect();
        assert_eq!(between, BTreeSet::from(["payments.verified", "stock.reserved"]));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_cannot_be_paid_is_cancelled_and_its_stock_is_released() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let placed =
            client.place_until_accepted(seed::POOR_CUSTOMER.customer_id, &basket()).await?;
        let order = client.wait_until_ended(placed.order_id, TIMEOUT).await?;
        assert_eq!(
            (order.status.as_str(), order.reason.as_deref()),
            ("cancelled", Some("payment_declined"))
        );
        assert_eq!(order.payment, "declined");
        assert!(["released", "void"].contains(&order.stock.as_str()), "{order:?}");
        let legs = legs(client, order.order_id).await?;
        assert_eq!(legs, (order.payment, order.stock));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_more_than_there_is_is_cancelled_and_its_payment_is_refunded() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let before: Value =
            client.get("stock", &format!("/items/{}", seed::SCARCE_ITEM.sku)).await?;
        let lines = [
            line("wool-cap", 1),
            line(seed::SCARCE_ITEM.sku, seed::SCARCE_ITEM.delivered_quantity + 1),
        ];
        let placed = client.place_until_accepted(rich_customer(), &lines).await?;
        let order = client.wait_until_ended(placed.order_id, TIMEOUT).await?;
        assert_eq!(
            (order.status.as_str(), order.reason.as_deref()),
            ("cancelled", Some("stock_rejected"))
        );
        assert_eq!(order.stock, "rejected");
        assert!(["refunded", "void"].contains(&order.payment.as_str()), "{order:?}");
        let after: Value =
            client.get("stock", &format!("/items/{}", seed::SCARCE_ITEM.sku)).await?;
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
            assert_eq!(
                (order.status.as_str(), order.reason.as_deref()),
                ("cancelled", Some("customer"))
            );
            assert!(["refunded", "void"].contains(&order.payment.as_str()), "{order:?}");
            assert!(["released", "void"].contains(&order.stock.as_str()), "{order:?}");
            assert_eq!(
                legs(client, order.order_id).await?,
                (order.payment.clone(), order.stock.clone())
            );
            let again = client.cancel_until_accepted(&order).await?;
            assert_eq!(again, order, "a second cancellation changes nothing");
            return Ok(());
        }
        bail!("no order could be cancelled before it was confirmed");
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_order_cannot_be_cancelled() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let placed = client.place_until_accepted(rich_customer(), &basket()).await?;
        let order = client.wait_until_ended(placed.order_id, TIMEOUT).await?;
        let refused = retry_until_settled(async || client.cancel_order(&order).await).await?;
        assert_eq!(refused.status, 409, "{refused}");
        assert_eq!(client.get_order(order.order_id).await?, order);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_cancelled_after_its_payment_while_stock_is_down_is_refunded_at_once() -> Result<()>
{
    with_exclusive_fixture(async |Fixture { stack, client }| {
        stack.kill("stock").await?;
        let placed = client.place_until_accepted(rich_customer(), &basket()).await?;
        let order_id = placed.order_id;
        let order = eventually("payment to be verified", TIMEOUT, async || {
            let order = client.get_order(order_id).await?;
            ensure!(order.payment == "verified", "{order:?}");
            Ok(order)
        })
        .await?;
        assert_eq!((order.status.as_str(), order.stock.as_str()), ("pending", "waiting"));
        let items = client.items("order").await?;
        assert!(items.len() > 10, "{items:?}");

        client.cancel_until_accepted(&order).await?;
        let order = eventually("the refund", TIMEOUT, async || {
            let order = client.get_order(order_id).await?;
            ensure!(order.payment == "refunded", "{order:?}");
            Ok(order)
        })
        .await?;
        assert_eq!((order.status.as_str(), order.stock.as_str()), ("cancelled", "waiting"));
        stack.start("stock").await?;
        let order = client.wait_until_ended(order_id, TIMEOUT).await?;
        assert!(["released", "void"].contains(&order.stock.as_str()), "{order:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_and_body_are_answered_the_same_and_another_body_is_refused() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let (customer, key) = (rich_customer(), Uuid::now_v7().to_string());
        let place = async || client.place_order(customer, &basket(), &key).await;
        let first = require_accepted(place).await?;
        let order: Order = first.json()?;
        assert_eq!(
            (first.status, first.location.as_deref()),
            (201, Some(&*format!("/orders/{}", order.order_id)))
        );
        client.wait_until_ended(order.order_id, TIMEOUT).await?;
        let repeat = require_accepted(place).await?;
        assert_eq!(first, repeat, "also after the order has ended");

        let other = [line("wool-cap", 3)];
        let refused =
            retry_until_settled(async || client.place_order(customer, &other, &key).await).await?;
        assert_eq!(refused.status, 422, "{refused}");
        assert_ne!(
            client.place_until_accepted(customer, &basket()).await?.order_id,
            order.order_id
        );
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_posts_with_one_key_at_once_are_one_order() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        // A customer of this test alone, so that its orders can be counted.
        let (customer, key) = (Uuid::now_v7(), Uuid::now_v7().to_string());
        let lines = basket();
        let post = || require_accepted(async || client.place_order(customer, &lines, &key).await);
        let answers = try_join_all((0..10).map(|_| post())).await?;
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        let orders: Value = client.get("order", &format!("/orders?customer_id={customer}")).await?;
        assert_eq!(orders["orders"].as_array().map(Vec::len), Some(1), "{orders}");
        let order: Order = answers[0].json()?;
        let order = client.wait_until_ended(order.order_id, TIMEOUT).await?;
        assert_eq!(order.reason.as_deref(), Some("payment_declined"), "it has no account");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposit_and_a_delivery_are_booked_once_however_often_they_are_sent() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        let (customer, key) = (Uuid::now_v7(), Uuid::now_v7().to_string());
        let deposits = try_join_all((0..5).map(|_| client.deposit(customer, 700, &key))).await?;
        assert!(deposits.iter().all(|deposit| *deposit == deposits[0]), "{deposits:?}");
        let account: Value = client.get("payment", &format!("/accounts/{customer}")).await?;
        assert_eq!(account["deposited_cents"], 700);
        let sku = format!("brick-{}", &key[24..]);
        client.put_item(&sku, "Brick", 50).await?;
        let deliveries = join_all((0..5).map(|_| client.deliver(&sku, 9, &key))).await;
        for item in deliveries {
            assert_eq!(item?["available"], 9);
        }
        let body = json!({ "amount_cents": 701 });
        let path = format!("/accounts/{customer}/deposits");
        let post = reqwest::Method::POST;
        let refused = retry_until_settled(async || {
            client.command(post.clone(), "payment", &path, Some(&key), &body).await
        });
        let refused = refused.await?;
        assert_eq!(refused.status, 422, "{refused}");
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
            assert_eq!(
                (ended.status.as_str(), ended.total_cents),
                ("confirmed", order.total_cents)
            );
        }
        Ok(())
    })
    .await
}
